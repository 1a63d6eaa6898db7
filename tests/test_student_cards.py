"""Student cards, their templates and launch files: every file that a user may name loads and fits."""

from argparse import Namespace
from pathlib import Path

import pytest
import yaml

from pipeline.errors import RecipeError
from pipeline.recipe.cards import StudentCard, card_names, sampled_student, student_card
from pipeline.recipe.strict_yaml import validate
from pipeline.sampling.prompts import ChatPrompts
from students.format import Format
from tests.conftest import ROOT
from tests.students_fixtures import build_tokenizer, card_of, sampled

TEMPLATES = sorted((ROOT / "students/templates").glob("*.jinja"))
CHAT = [
    {"role": "user", "content": "What is 3 + 4?"},
    {"role": "assistant", "content": "<think>\n3 + 4 is 7\n</think>\n\n7"},
]


@pytest.mark.parametrize("name", card_names("student"))
def test_a_card_states_its_sources(name: str) -> None:
    card = student_card(name)
    assert card.revision is None
    assert {"model", "eos", "licence"} - card.facts.keys() <= {"licence"}
    assert card.thinking.open == "<think>"
    assert card.template is None or (ROOT / "students/templates" / card.template).is_file()


@pytest.mark.parametrize(
    "name",
    ["../cards/qwen3-1.7b-base", "./qwen3-1.7b-base", str(ROOT / "students/cards/qwen3-1.7b-base"), "..", ""],
)
def test_a_card_is_named_and_never_a_path(name: str) -> None:
    with pytest.raises(RecipeError, match=r"there is no such student card; .*known: .*qwen3-1.7b-base"):
        student_card(name)


@pytest.mark.parametrize("model", ["a b", "a/b/c", "", "/nowhere/student", "students/none/here", "a" * 300])
def test_a_model_that_can_be_nowhere_is_refused_with_the_card(model: str) -> None:
    values = {**student_card("embedded-dense").model_dump(), "model": model}
    with pytest.raises(RecipeError, match=r"mine\.yaml: model: there is no such directory, and"):
        validate(StudentCard, values, "mine.yaml")


def test_an_end_token_is_in_a_fingerprint_only_where_it_is_not_the_models_own() -> None:
    embedded = sampled_student("base", student_card("embedded-dense"))
    assert (embedded.eos, "eos" in embedded.identity) == ("<|im_end|>", False)
    pretrained = sampled_student("base", student_card("qwen3-0.6b-base"))
    assert pretrained.eos == pretrained.identity["eos"] == "<|im_end|>"


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_our_templates_open_the_block_and_end_the_turn_once(path: Path) -> None:
    tokenizer = build_tokenizer(path.read_text(), eos_token="<|im_end|>", bos_token="<|endoftext|>")
    model = sampled(card_of(Path("none")))
    style = Format(tokenizer, ChatPrompts(tokenizer, model), model.tags, "<|im_end|>")
    encoded = style.encode(CHAT)
    text = tokenizer.decode(encoded.ids)
    assert tokenizer.decode(encoded.ids[encoded.num_prompt :]) == "3 + 4 is 7\n</think>\n\n7<|im_end|>"
    assert text.count("<think>") == text.count("</think>") == 1
    assert encoded.ids.count(tokenizer.bos_token_id) <= 1
    assert style.prompts.text(CHAT, generation_prompt=False).rstrip().endswith("7<|im_end|>")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_our_templates_drop_the_thinking_of_earlier_turns(path: Path) -> None:
    tokenizer = build_tokenizer(path.read_text())
    prompts = ChatPrompts(tokenizer, sampled(card_of(Path("none"))))
    text = prompts.text([*CHAT, {"role": "user", "content": "And 1 + 1?"}])
    assert "3 + 4 is 7" not in text
    assert text.endswith("<think>\n")


LAUNCHED = {"ddp": "multi_gpu", "fsdp2": "use_fsdp", "zero3": "use_deepspeed"}


def launch_arguments(name: str) -> Namespace:
    """What `accelerate launch` makes of a launch file and the command line in its header."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    path = ROOT / f"students/launch/{name}.yaml"
    header = next(line for line in path.read_text().splitlines() if "accelerate launch" in line)
    words = header.partition("accelerate launch")[2].split()
    words[words.index("--config_file") + 1] = str(path)
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    return arguments


@pytest.mark.parametrize("name", LAUNCHED)
def test_launch_files_are_what_accelerate_reads(name: str) -> None:
    from accelerate.commands.launch import launch_command_parser

    arguments = launch_arguments(name)
    assert [mode for mode in LAUNCHED.values() if getattr(arguments, mode)] == [LAUNCHED[name]]
    assert (arguments.num_processes, arguments.mixed_precision, arguments.use_cpu) == (8, "bf16", False)
    assert (arguments.module, arguments.training_script, arguments.training_script_args[0]) == (
        True,
        "pipeline",
        "train",
    )
    known = {action.dest for action in launch_command_parser()._actions}
    written = yaml.safe_load((ROOT / f"students/launch/{name}.yaml").read_text())
    for section in ("fsdp_config", "deepspeed_config"):
        assert written.get(section, {}).keys() <= known


def test_fsdp2_is_set_up_as_its_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin that accelerate builds in each process from the environment that its launcher sets."""
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env
    from torch.distributed.fsdp import MixedPrecisionPolicy

    for key, value in prepare_multi_gpu_env(launch_arguments("fsdp2")).items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.cpu_ram_efficient_loading
    assert not plugin.activation_checkpointing
    plugin.set_mixed_precision("bf16")
    assert isinstance(plugin.mixed_precision_policy, MixedPrecisionPolicy)


def test_zero3_is_set_up_as_its_file_says() -> None:
    from accelerate.utils import DeepSpeedPlugin

    written = yaml.safe_load((ROOT / "students/launch/zero3.yaml").read_text())["deepspeed_config"]
    plugin = DeepSpeedPlugin(**written)
    assert plugin.zero_stage == plugin.deepspeed_config["zero_optimization"]["stage"] == 3
    assert plugin.deepspeed_config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
    assert plugin.deepspeed_config["gradient_clipping"] == "auto"
