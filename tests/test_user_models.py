"""Models of the user's: a card by its path, a model by its directory, what is read of it, and no thinking."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from pipeline.context import Context, load_context
from pipeline.errors import RecipeError
from pipeline.filter.examples import Format as Written
from pipeline.filter.examples import example_of, trained_text
from pipeline.filter.rules import Candidate, closed_thinking
from pipeline.plan.estimate import size_of
from pipeline.recipe.cards import (
    NO_THINKING,
    StudentCard,
    Tags,
    TeacherCard,
    card_text,
    teacher_card,
    template_path,
)
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.reading import HARMONY, experts_of, read_card
from pipeline.recipe.strict_yaml import validate
from pipeline.records import Filtered
from pipeline.render import Split, join_response, split_response, taught
from pipeline.sampling.prompts import ChatPrompts
from students.examples import why_dropped
from students.format import Format
from tests.conftest import RECIPE, ROOT
from tests.students_fixtures import CHATML, CHATML_THINK, build_tokenizer, card_of, sampled
from tests.students_fixtures import example_of as example

THINK = Tags()
CONFIG = {
    "max_position_embeddings": 512,
    "dtype": "float32",
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@cache
def tokenizer_files() -> dict[str, str]:
    with TemporaryDirectory() as directory:
        build_tokenizer(None).save_pretrained(directory)
        return {path.name: path.read_text() for path in Path(directory).iterdir()}


def model_in(directory: Path, template: str | None = CHATML_THINK, **config: Any) -> Path:
    """The files of a model that a card is read from; it has no weights."""
    directory.mkdir(parents=True)
    for name, text in tokenizer_files().items():
        (directory / name).write_text(text)
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return directory


def context_of(directory: Path, *overrides: str) -> Context:
    path = directory / "small.yaml"
    path.write_text(RECIPE)
    return load_context(path, directory / "runs", overrides=list(overrides))


def test_a_model_is_named_by_its_directory_and_read(tmp_path: Path) -> None:
    model = model_in(tmp_path / "mine")
    context = context_of(tmp_path, f"train.student={{model: {model}}}")
    card = context.student_card
    assert (context.student_name, card.model) == ("mine", str(model))
    assert (card.max_positions, card.dtype, card.eos) == (512, "float32", "<|im_end|>")
    assert card.thinking == Tags(opened_by_prompt=True)
    assert card.facts["max_positions"] == "config.json, 512 positions"


@pytest.mark.parametrize(
    "wrong",
    [{"num_attention_heads": 0}, {"hidden_size": "128"}, {"num_hidden_layers": None}, {"text_config": [1]}],
    ids=str,
)
def test_a_size_that_the_files_do_not_tell_is_left_out(tmp_path: Path, wrong: dict[str, Any]) -> None:
    model = model_in(tmp_path / "mine", **{"hidden_size": 128, **wrong})
    (model / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": [{"content": [1]}]}))
    header = json.dumps({"w": {"shape": [2, 2], "data_offsets": [0, 16]}}).encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    assert ("size" in read_card("student", str(model))) == ("text_config" in wrong)


def test_a_name_that_no_directory_can_have_is_one_error() -> None:
    with pytest.raises(RecipeError, match=r"is no directory here, and its config.json cannot be fetched"):
        read_card("student", "a" * 300)


def test_keys_beside_a_model_are_taken_before_what_is_read(tmp_path: Path) -> None:
    model = model_in(tmp_path / "mine")
    context = context_of(
        tmp_path,
        f"generate.teacher={{model: {model}, engine: {{max_model_len: 300}}, licence: MIT, thinking: none}}",
    )
    card = context.teacher_card
    assert (card.engine.max_model_len, card.engine.dtype, card.licence) == (300, "float32", "MIT")
    assert card.thinking == NO_THINKING
    assert card.training_on_outputs == "unstated"
    assert "licence" not in card.facts


def test_a_card_by_its_path_is_looked_for_beside_the_recipe_and_its_model_beside_it(tmp_path: Path) -> None:
    model = model_in(tmp_path / "cards/mine")
    (tmp_path / "cards/strong.yaml").write_text("model: mine\nlicence: MIT\n")
    context = context_of(tmp_path, "train.student=cards/strong.yaml")
    assert (context.student_name, context.student_card.model) == ("strong", str(model))
    assert context.recipe.model_dump()["train"]["student"] == "cards/strong.yaml"


def test_a_template_is_a_file_of_the_users_or_one_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_in(tmp_path / "mine")
    (tmp_path / "own.jinja").write_text(CHATML)
    monkeypatch.chdir(tmp_path)  # where the recipe is and where the command is started are one place, too
    for given, path in (
        ("own.jinja", tmp_path / "own.jinja"),
        ("./own.jinja", tmp_path / "own.jinja"),
        ("chatml-think.jinja", ROOT / "students/templates/chatml-think.jinja"),
    ):
        card = context_of(tmp_path, f"train.student={{model: {model}, template: {given}}}").student_card
        assert template_path(str(card.template)) == path


def test_neither_the_place_nor_the_name_of_a_card_bears_identity(tmp_path: Path) -> None:
    embedded = ROOT / "students/embedded"
    given = (
        f"{{model: {embedded}, dtype: bfloat16, eos: <|im_end|>, max_positions: 1024, licence: Apache-2.0}}"
    )
    named, stated = context_of(tmp_path), context_of(tmp_path, f"train.student={given}")
    assert stated.base.identity == named.base.identity
    teacher = context_of(tmp_path, f"generate.teacher={{model: {ROOT / 'teachers/embedded'}}}")
    assert teacher.teacher.identity == named.teacher.identity
    assert teacher.teacher.tags == named.teacher.tags


CARDS = {
    "no model": (
        "generate.teacher={engine: {max_model_len: 5}}",
        r"generate\.teacher: a model is the name of",
    ),
    "no such card file": ("train.student=none.yaml", r"train\.student: none\.yaml: there is no such card"),
    "a model by itself": ("train.student=Qwen/Qwen3-4B", r"a model is written as \{model: Qwen/Qwen3-4B\}$"),
    "unknown key": (
        "train.student={model: MINE, eoss: x}",
        r"the card of .*mine: eoss: unknown key; did you mean",
    ),
    "no such directory": (
        "train.student={model: ./none}",
        r"none: is no directory here, and its config\.json cannot",
    ),
    "no such template": (
        "train.student={model: MINE, template: none.jinja}",
        r"none\.jinja: no such chat",
    ),
    "empty tag": ("train.student={model: MINE, thinking: {open: '', close: x}}", "a tag cannot be empty"),
    "thinking off": ("train.student={model: MINE, thinking: off}", "or none for a model without thinking"),
    "two of one name": (
        "eval.extra=[{name: a, student: {model: MINE}}, {name: b, student: {model: MINE, dtype: float16}}]",
        "two models of this recipe are called 'mine'",
    ),
}


@pytest.mark.parametrize(("override", "message"), CARDS.values(), ids=CARDS.keys())
def test_a_faulty_model_is_one_error_with_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = model_in(tmp_path / "mine")
    with pytest.raises(RecipeError, match=message) as caught:
        assert context_of(tmp_path, override.replace("MINE", str(model))).base
    if "template" not in override:
        assert str(caught.value).startswith(str(tmp_path / "small.yaml"))


def test_a_model_that_is_not_here_needs_no_reading_where_its_card_says_enough(tmp_path: Path) -> None:
    given = "{model: some/model, thinking: none, engine: {max_model_len: 4096}}"
    context = context_of(tmp_path, f"generate.teacher={given}")
    assert context.teacher.identity == {"model": "some/model", "revision": None, "dtype": "bfloat16"}
    assert context.teacher_card.licence == "unknown"


@pytest.mark.parametrize("kind", ["teacher", "student"])
@pytest.mark.parametrize("template", [CHATML, CHATML_THINK, None], ids=["plain", "thinks", "no template"])
def test_a_printed_card_is_the_card_that_a_recipe_would_read(
    tmp_path: Path, kind: Any, template: Any
) -> None:
    model = model_in(tmp_path / "mine", template)
    card: type[StudentCard] | type[TeacherCard] = StudentCard if kind == "student" else TeacherCard
    printed = validate(card, yaml.safe_load(card_text(kind, str(model))), "printed")
    key = {"teacher": "generate.teacher", "student": "train.student"}[kind]
    context = context_of(tmp_path, f"{key}={{model: {model}}}")
    assert printed == (context.student_card if kind == "student" else context.teacher_card)
    assert set(printed.facts) >= {"thinking", "licence"}


def test_a_base_without_a_template_gets_one_of_ours(tmp_path: Path) -> None:
    card = read_card("student", str(model_in(tmp_path / "mine", None)))
    assert (card["template"], card["eos"]) == ("chatml-think.jinja", "<|im_end|>")


TEMPLATES = {
    "none": (CHATML, None),
    "opened by the prompt": (CHATML_THINK, ("<think>", True)),
    "written by the model": (CHATML + "{# </think> is dropped #}", ("<think>", False)),
    "channels": (CHATML + "{# <|channel|>analysis #}", (HARMONY[0], False)),
    "brackets": (CHATML + "{# [/THINK] #}", ("[THINK]", False)),
    "does not end": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}</think>",
        ("<think>", False),
    ),
    "broken": ("{% if </think>", ("<think>", False)),
}


@pytest.mark.parametrize(("template", "found"), TEMPLATES.values(), ids=TEMPLATES.keys())
def test_thinking_tags_are_found_in_the_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, found: tuple[str, bool] | None
) -> None:
    monkeypatch.setattr("pipeline.recipe.templates.TEMPLATE_SECONDS", 0.3)
    thinking = read_card("teacher", str(model_in(tmp_path / "mine", template)))["thinking"]
    assert thinking == "none" if found is None else (thinking["open"], thinking["opened_by_prompt"]) == found


def test_the_licence_and_long_positions_are_read(tmp_path: Path) -> None:
    model = model_in(tmp_path / "mine", max_position_embeddings=262_144)
    (model / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Mine\nlicense: other\n")
    card = read_card("teacher", str(model))
    assert (card["licence"], card["training_on_outputs"]) == ("apache-2.0", "allowed")
    assert card["engine"]["max_model_len"] == 32_768
    assert "262,144" in card["facts"]["engine.max_model_len"]


def test_a_model_that_sees_pictures_too_has_its_sizes_inside(tmp_path: Path) -> None:
    model = model_in(tmp_path / "mine")
    (model / "config.json").write_text(json.dumps({"text_config": CONFIG}))
    assert read_card("student", str(model))["max_positions"] == 512


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "version https://git-lfs", "config.json is not a JSON object"),
        ("config.json", "{}", "has no config"),
    ],
    ids=["torn", "none"],
)
def test_a_torn_model_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    model = model_in(tmp_path / "mine")
    (model / name).write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_card("student", str(model))


def test_the_size_of_the_embedded_teacher_is_read_as_its_experts_are(tmp_path: Path) -> None:
    read = read_card("teacher", str(ROOT / "teachers/embedded"))["size"]
    size, _ = size_of(teacher_card("embedded-moe"))
    assert (read["parameters"], read["active_parameters"]) == (size.parameters, size.active_parameters)


# what transformers' own configurations say, in the words of each
NUMBERS_OF_EXPERTS = {
    "qwen3_moe": (128, 8),
    "gpt_oss": (128, 4),
    "mixtral": (8, 2),
    "deepseek_v3": (256, 8),
    "deepseek_v4": (256, 6),
    "glm4_moe": (128, 8),
    "kimi_linear": (256, 8),
    "minimax_m2": (256, 8),
    "nemotron_h": (8, 2),
    "ernie4_5_moe": (64, 6),
    "longcat_flash": (512, 12),
    "gemma4_text": (1, 1),
    "llama": (1, 1),
}


@pytest.mark.parametrize(("kind", "experts"), NUMBERS_OF_EXPERTS.items(), ids=NUMBERS_OF_EXPERTS.keys())
def test_experts_are_read_by_the_name_that_their_family_gives_them(
    kind: str, experts: tuple[int, int]
) -> None:
    from transformers import AutoConfig

    assert experts_of(AutoConfig.for_model(kind).to_dict()) == experts


def test_where_no_number_of_experts_per_token_is_said_none_of_them_is_idle() -> None:
    assert experts_of({"num_experts": 8, "num_experts_per_tok": None}) == (8, 8)
    assert experts_of({"num_experts": 64, "moe_topk": [8, 8]}) == (64, 8)


def test_layers_without_experts_and_experts_that_all_tokens_share_are_always_active(tmp_path: Path) -> None:
    """The names of a DeepSeek-V3 of one dense layer and one of four experts, two of which a token meets."""
    model = model_in(
        tmp_path / "mine", hidden_size=8, n_routed_experts=4, num_experts_per_tok=2, first_k_dense_replace=1,
        moe_intermediate_size=4, intermediate_size=16,
    )  # fmt: skip
    shared = "model.layers.1.mlp.shared_experts.up_proj.weight"
    shapes = {"model.layers.0.mlp.up_proj.weight": [16, 8], shared: [4, 8]}
    shapes |= {f"model.layers.1.mlp.experts.{number}.up_proj.weight": [4, 8] for number in range(4)}
    header = {name: {"shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    text = json.dumps(header).encode()
    (model / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    size = read_card("teacher", str(model))["size"]
    assert (size["parameters"], size["active_parameters"], size["mlp"]) == (288, 288 - 64, None)


LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MIXTURES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "minimax_m2": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": ROUTED | LATENT | {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
    "glm4_moe": ROUTED | {"first_k_dense_replace": 1},
    "kimi_linear": LATENT | {"num_experts": 4, "num_experts_per_token": 2, "moe_intermediate_size": 16},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MIXTURES)
def test_active_parameters_are_those_of_the_modules_that_a_token_meets(kind: str, tmp_path: Path) -> None:
    """Tiny random mixtures, counted once by their modules and once by the files that they are saved to."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from students.memory import size_of_model

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3} | {
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0,
    } | MIXTURES[kind]  # fmt: skip
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    routed = sum(
        parameter.numel()
        for module in model.modules()
        if type(module).__name__.endswith("Experts")
        for parameter in module.parameters(recurse=False)
    )
    model.save_pretrained(tmp_path)
    size = read_card("teacher", str(tmp_path))["size"]
    assert size["parameters"] - size["active_parameters"] == routed / 2 > 0
    assert size["mlp"] is None
    assert size_of_model(model).mlp is None, "train estimates no dense layer for it either"


# --- no thinking ---

TEXT = "First, 3 + 4 is 7.\n\nSo it is\n7.\n\nThe answer is \\boxed{7}."
CODE = "We add.\n\n```python\nx = 1\n\nprint(x)\n```"


def test_all_is_answer_in_the_response_of_a_model_without_thinking() -> None:
    assert split_response("<think>a</think>b ", NO_THINKING) == Split(None, "<think>a</think>b", "unmarked")


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        (TEXT, "First, 3 + 4 is 7.\n\nSo it is\n7.", "The answer is \\boxed{7}."),
        (CODE.replace(".\n\n", ".\n"), "We add.", "```python\nx = 1\n\nprint(x)\n```"),
        (CODE.partition("\n\n")[2], None, CODE.partition("\n\n")[2]),
        ("We add.\n\nSo \\boxed{7}.\n\nAsk again!", "We add.", "So \\boxed{7}.\n\nAsk again!"),
        (CODE, "We add.", "```python\nx = 1\n\nprint(x)\n```"),
        ("3 + 4 is 7\n\\boxed{7}", "3 + 4 is 7", "\\boxed{7}"),
        ("\\boxed{7}", None, "\\boxed{7}"),
    ],
    ids=[
        "paragraphs",
        "program behind a line",
        "program alone",
        "a word after the box",
        "program",
        "lines",
        "one line",
    ],
)
def test_a_teacher_without_thinking_teaches_a_student_with_it(
    text: str, thinking: str | None, answer: str
) -> None:
    split = taught(split_response(text, NO_THINKING), THINK)
    assert (split.thinking, split.answer) == (thinking, answer)
    form = Written(PROMPTS["plain"], NO_THINKING, THINK, None)
    turn = example_of(Filtered(question="3 + 4?", response=text), form).messages[-1]
    assert (turn.get("reasoning_content"), turn["content"]) == (thinking, answer)


def test_a_student_without_thinking_learns_thinking_and_answer_as_one_text() -> None:
    split = split_response("<think>\n3 + 4\n</think>\n\n7", THINK)
    assert trained_text(split, NO_THINKING) == join_response(split, NO_THINKING) == "3 + 4\n\n7"
    assert trained_text(split_response(TEXT, NO_THINKING), NO_THINKING) == TEXT


def test_no_thinking_is_missing_in_the_trace_of_a_teacher_that_writes_none() -> None:
    def hit(tags: Tags) -> Any:
        return closed_thinking(Candidate(None, None, None, split_response("7", tags), len))  # type: ignore[arg-type]

    assert hit(NO_THINKING) is None
    assert hit(Tags(opened_by_prompt=False)).reason == "no_thinking"


def test_a_student_without_thinking_is_trained_on_the_whole_text() -> None:
    card = card_of(Path("none"), thinking="none")
    tokenizer = build_tokenizer(CHATML)
    style = Format(tokenizer, ChatPrompts(tokenizer, sampled(card)), card.thinking, "<|im_end|>")
    held = example("What is 3 + 4?", "3 + 4 is 7", "\\boxed{7}")
    encoded = style.encode(held.messages)
    assert tokenizer.decode(encoded.trained) == "3 + 4 is 7\n\n\\boxed{7}<|im_end|>"
    assert why_dropped(held, encoded, style, 512) is None
