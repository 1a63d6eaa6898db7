"""Student cards, their templates and launch files: every file that a user may name loads and fits."""

from pathlib import Path

import pytest
import yaml

from pipeline.cards import card_names, sampled_student, student_card
from pipeline.errors import RecipeError
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


def test_an_end_token_is_in_a_fingerprint_only_where_it_is_not_the_models_own() -> None:
    embedded = sampled_student("embedded-dense")
    assert (embedded.eos, "eos" in embedded.identity) == ("<|im_end|>", False)
    pretrained = sampled_student("qwen3-0.6b-base")
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


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero3"])
def test_launch_files_are_what_accelerate_reads(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    path = ROOT / f"students/launch/{name}.yaml"
    config = load_config_from_file(str(path))
    assert str(config.distributed_type).endswith(
        {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}[name]
    )
    assert f"--config_file students/launch/{name}.yaml" in path.read_text()
    assert yaml.safe_load(path.read_text())["main_training_function"] == "main"
