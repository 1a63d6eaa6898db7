"""Each thing that spoils a run without a word elsewhere is a fault here, with what to do next."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from safetensors.torch import load_file, save_file

from pipeline.errors import RecipeError, StageError
from pipeline.recipe.cards import StudentCard
from pipeline.sampling.prompts import ChatPrompts
from students.examples import Shown, build
from students.format import Encoded, load_format
from students.model import load_student
from students.preflight import (
    CHECKS,
    Subject,
    lora_targets_match,
    mask_not_empty,
    preflight,
    question_in_prompt,
    render,
    thinking_left_open,
    thinking_once,
    turn_end_is_trained,
)
from tests.conftest import RECIPE
from tests.students_fixtures import (
    CHATML,
    CHATML_THINK,
    POINTER,
    build_student,
    build_tokenizer,
    card_of,
    context_of,
    example_of,
    finished_filter,
    sampled,
    sums,
)

TEMPLATES = Path(trl.__file__).parent / "chat_templates"


def subject_of(root: Path, card: StudentCard, *overrides: str) -> Subject:
    recipe = context_of(root, *overrides, card=card).recipe
    model = sampled(card)
    style = load_format(card, model)
    data = build(sums(4), style, recipe.train, recipe.seed)
    student = load_student(card, model, recipe.train, "cpu")
    return Subject(recipe, card, model, style, student, data.shown, data.largest_id)


def with_ids(subject: Subject, change: Callable[[Encoded], Encoded]) -> Subject:
    return replace(subject, shown=[Shown(one.messages, change(one.encoded)) for one in subject.shown])


def test_a_sound_student_passes_every_check(student_directory: Path, tmp_path: Path) -> None:
    subject = subject_of(tmp_path, card_of(student_directory))
    assert len(subject.shown) == 3
    assert preflight(subject) == list(CHECKS)


def test_a_student_without_thinking_passes_where_its_prompt_opens_none(
    student_directory: Path, tmp_path: Path
) -> None:
    plain = build_student(tmp_path / "plain", build_tokenizer(CHATML))
    assert preflight(subject_of(tmp_path, card_of(plain, thinking="none"))) == list(CHECKS)
    with pytest.raises(
        StageError, match=r"thinking: none, and the generation prompt ends with <think>\. State"
    ):
        preflight(subject_of(tmp_path, card_of(student_directory, thinking="none")))


def test_the_view_marks_what_is_trained_on(student_directory: Path, tmp_path: Path) -> None:
    subject = subject_of(tmp_path, card_of(student_directory))
    plain = render(subject.shown[0].encoded, subject.style, colour=False)
    coloured = render(subject.shown[0].encoded, subject.style, colour=True)
    assert plain.endswith("\\boxed{13}<|im_end|>]]")
    assert "<|im_start|>assistant\n<think>\n[[10 + 3" in plain
    assert "\x1b[32m10 + 3" in coloured


FAULTS: dict[str, tuple[Callable[[Encoded], Encoded], str]] = {
    "empty mask": (lambda e: Encoded(e.ids, len(e.ids)), r"no token that is trained on.*make filter"),
    "thinking lost": (
        lambda e: Encoded(e.ids[: e.num_prompt] + e.ids[-11:], e.num_prompt),
        "closing thinking tags",
    ),
    "end of turn lost": (
        lambda e: Encoded(e.ids[:-1], e.num_prompt),
        r"is not trained on at the end of the turn",
    ),
    "ended twice": (lambda e: Encoded([*e.ids, e.ids[-1]], e.num_prompt), r"holds <\|im_end\|> 2 times"),
    "another prompt": (lambda e: Encoded(e.ids[1:], e.num_prompt - 1), r"tokens in training and \d+ in eval"),
}


@pytest.mark.parametrize("name", list(FAULTS))
def test_wrong_ids_are_found(student_directory: Path, tmp_path: Path, name: str) -> None:
    change, message = FAULTS[name]
    with pytest.raises(StageError, match=message):
        preflight(with_ids(subject_of(tmp_path, card_of(student_directory)), change))


def test_all_faults_come_at_once(student_directory: Path, tmp_path: Path) -> None:
    subject = with_ids(subject_of(tmp_path, card_of(student_directory)), FAULTS["end of turn lost"][0])
    with pytest.raises(StageError, match=rf"2 of {len(CHECKS)} checks failed, nothing was trained"):
        preflight(with_ids(subject, FAULTS["another prompt"][0]))


def test_an_orphan_closing_tag_is_found(student_directory: Path, tmp_path: Path) -> None:
    """The thinking opened by the prompt, rendered again: an empty block and a second closing tag."""
    subject = subject_of(tmp_path, card_of(student_directory))
    close = subject.style.tokenizer.convert_tokens_to_ids("</think>")
    doubled = with_ids(
        subject, lambda e: Encoded([*e.ids[: e.num_prompt], close, *e.ids[e.num_prompt :]], e.num_prompt)
    )
    with pytest.raises(StageError, match="1 opening and 2 closing thinking tags, expected 1 and 1"):
        preflight(doubled)


CARDS: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "opening tag": ({"thinking": {"opened_by_prompt": False}}, [], r"Set thinking.opened_by_prompt: true"),
    "end token": ({"eos": "<|endoftext|>"}, [], r"the template ends the assistant's turn with '<\|im_end\|>"),
    "positions": (
        {},
        ["train.max_length=1024"],
        r"train.max_length is 1024, and the student has 512 positions",
    ),
    "targets": ({"lora_targets": ["q_proj", "wq"]}, ["train.method=lora"], r"wq match no layer .*q_proj"),
    "target pattern": ({"lora_targets": "q_prj"}, ["train.method=lora"], r"q_prj match no layer .*q_proj"),
    "broken pattern": ({"lora_targets": "("}, ["train.method=lora"], r"'\(' cannot be read as a pattern"),
    "no targets": ({"lora_targets": []}, ["train.method=lora"], r"an empty list match no layer"),
    "tied embedding": (
        {"lora_targets": ["q_proj", "embed_tokens"]},
        ["train.method=lora"],
        r"model.embed_tokens is tied to the output embedding.*train.lora.tokens",
    ),
    "head": ({"lora_targets": ["lm_head"]}, ["train.method=lora"], r"lm_head is the output embedding, whose"),
    "a norm": ({"lora_targets": ["q_norm"]}, ["train.method=lora"], r"q_norm is a .*Norm, which takes no"),
    "prompt in eval": ({}, ["eval.prompt=plain"], r"eval.prompt is 'plain' .*Remove eval.prompt"),
}


@pytest.mark.parametrize("name", list(CARDS))
def test_a_card_or_recipe_that_does_not_fit_is_found(
    student_directory: Path, tmp_path: Path, name: str
) -> None:
    changes, overrides, message = CARDS[name]
    with pytest.raises(StageError, match=message):
        preflight(subject_of(tmp_path, card_of(student_directory, **changes), *overrides))


def test_a_double_beginning_is_found(tmp_path: Path) -> None:
    tokens = {"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"}
    tokenizer = build_tokenizer("<|endoftext|>{{ bos_token }}" + CHATML_THINK, **tokens)
    directory = build_student(tmp_path / "base", tokenizer)
    with pytest.raises(StageError, match=r"begins with <\|endoftext\|> twice"):
        preflight(subject_of(tmp_path, card_of(directory)))


def test_tokens_outside_the_embedding_are_found(tmp_path: Path) -> None:
    """A tokenizer of another model, or a vocabulary that the teacher padded and the student did not."""
    directory = build_student(tmp_path / "base", vocab_size=260)
    with pytest.raises(StageError, match=r"token 260 \('</think>'\) is outside the embedding, which has 260"):
        preflight(subject_of(tmp_path, card_of(directory)))


def test_an_added_token_outside_the_embedding_is_found(tmp_path: Path) -> None:
    """No example holds it, and the libraries write it into configurations that then do not load."""
    tokenizer = build_tokenizer(CHATML_THINK)
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    directory = build_student(tmp_path / "base", tokenizer, vocab_size=rows)
    with pytest.raises(StageError, match=r"token 261 \('\[PAD\]'\) is outside the embedding.*not resized"):
        preflight(subject_of(tmp_path, card_of(directory)))


def resized(weight: torch.Tensor, row: int) -> None:
    """As transformers writes a row that it adds: the mean, and next to nothing around it."""
    weight[row] = weight.mean(dim=0) + 1e-6 * torch.randn(weight.shape[1])


UNLEARNED: dict[str, tuple[Callable[[torch.Tensor, int], Any], str]] = {
    "zeros": (lambda weight, row: weight[row].zero_(), "is all zeros"),
    "a copy": (lambda weight, row: weight[row].copy_(weight[0]), "equals 1 other rows"),
    "resized": (resized, "is the mean of all rows"),
}


@pytest.mark.parametrize("name", list(UNLEARNED))
def test_a_special_token_that_the_base_never_learned_is_trained_or_refused(
    student_directory: Path, tmp_path: Path, name: str
) -> None:
    change, said = UNLEARNED[name]
    subject = subject_of(tmp_path, card_of(student_directory), "train.method=lora")
    token = subject.style.tokenizer.convert_tokens_to_ids("<|im_start|>")
    with torch.no_grad():
        change(subject.student.get_input_embeddings().weight, token)
    with pytest.raises(StageError, match=rf"input embedding of <\|im_start\|> {said}.*train.lora.tokens"):
        preflight(subject)
    lora = subject.recipe.train.lora.model_copy(update={"tokens": ["<|im_start|>"]})
    for changes in ({"lora": lora}, {"method": "full"}):
        section = subject.recipe.train.model_copy(update=changes)
        recipe = subject.recipe.model_copy(update={"train": section})
        assert preflight(replace(subject, recipe=recipe)) == list(CHECKS)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_base_with_a_row_of_no_numbers_is_refused(
    student_directory: Path, tmp_path: Path, method: str
) -> None:
    """In the words for that, and not as a row like others, whatever is trained."""
    subject = subject_of(tmp_path, card_of(student_directory), f"train.method={method}")
    with torch.no_grad():
        subject.student.get_input_embeddings().weight[subject.style.turn_end_id] = torch.nan
    with pytest.raises(
        StageError, match=rf"1 of {len(CHECKS)} .*\n  weights of the base: 1 weights of the base hold .*embed"
    ):
        preflight(subject)


@pytest.mark.parametrize("loaded", [torch.float32, torch.float16], ids=["trained in fp32", "in float16"])
def test_a_base_beyond_the_dtype_that_is_written_is_refused_before_training(
    student_directory: Path, tmp_path: Path, loaded: torch.dtype
) -> None:
    """Its weights are numbers as they were saved; on a GPU an adapter's base is loaded as it is written."""
    subject = subject_of(tmp_path, card_of(student_directory, dtype="float16"), "train.method=lora")
    weights: Any = subject.student
    with torch.no_grad():
        weights.model.layers[1].mlp.up_proj.weight[0, 0] = 1e5
    weights.to(loaded)
    with pytest.raises(
        StageError,
        match=rf"1 of {len(CHECKS)} .*\n.* 1 weights .* float16 does not \(model.layers.1.*\(bfloat16\)",
    ):
        preflight(subject)
    if loaded == torch.float32:
        assert preflight(replace(subject, card=card_of(student_directory))) == list(CHECKS)


def test_a_base_that_cannot_emit_its_end_of_turn_is_found(tmp_path: Path) -> None:
    subject = subject_of(tmp_path, card_of(build_student(tmp_path / "base")), "train.method=lora")
    with torch.no_grad():
        subject.student.get_output_embeddings().weight[subject.style.turn_end_id] = 0
    with pytest.raises(StageError, match=r"output embedding of <\|im_end\|> is all zeros.*method: full"):
        preflight(subject)


def test_weights_that_are_not_safetensors_are_refused(tmp_path: Path) -> None:
    directory = build_student(tmp_path / "base")
    (directory / "model.safetensors").rename(directory / "model.bin")
    with pytest.raises(StageError, match=r"weights cannot be loaded .*read from \*\.safetensors only"):
        subject_of(tmp_path, card_of(directory))


def test_code_that_comes_with_a_model_is_refused(tmp_path: Path) -> None:
    directory = build_student(tmp_path / "base")
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "mine.py").write_text("raise SystemExit('ran')")
    with pytest.raises((StageError, RecipeError), match=r"needs code of its own"):
        subject_of(tmp_path, card_of(directory))


@pytest.mark.slow
def test_the_command_shows_examples_before_anything_is_generated(tmp_path: Path, retort: Any) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    done = retort("preflight", "--recipe", tmp_path / "r.yaml", "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert "[[2 + 2 is 4.\n</think>" in done.stdout
    assert f"preflight: {len(CHECKS)} checks passed" in done.stdout


@pytest.mark.slow
def test_the_command_reads_the_examples_of_a_finished_filter(tmp_path: Path, retort: Any) -> None:
    finished_filter(tmp_path, sums(5))
    done = retort("preflight", "--recipe", tmp_path / "small.yaml", "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert "--- 5 examples to train on, 0 held out" in done.stdout
    assert "What is 10 + 3?" in done.stdout


SHIPPED = sorted(path for path in TEMPLATES.glob("*.jinja") if not path.stem.endswith("_training"))
UNFIT = {
    "qwen3_5_nothink": "closes a thinking block itself",
    **dict.fromkeys(("idefics3", "llava_next", "smolvlm"), "does not hold the question"),
}


@pytest.fixture(scope="module")
def loaded(student_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject_of(tmp_path_factory.mktemp("loaded"), card_of(student_directory))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_template_that_trl_ships_is_fit_or_refused(loaded: Subject, path: Path) -> None:
    """Prompt with the question, one block of thinking in the turn, or a fault that says what is lost."""
    tokenizer = build_tokenizer(path.read_text(), eos_token="<|im_end|>", bos_token="<|endoftext|>")
    style = replace(loaded.style, tokenizer=tokenizer, prompts=ChatPrompts(tokenizer, loaded.model))
    shown = [Shown(one.messages, style.encode(one.messages)) for one in loaded.shown]
    subject = replace(loaded, style=style, shown=shown)
    checks = (question_in_prompt, thinking_left_open, thinking_once, mask_not_empty, turn_end_is_trained)
    faults = [fault for check in checks if (fault := check(subject)) is not None]
    assert len(faults) == (path.stem in UNFIT)
    assert UNFIT.get(path.stem, "") in "".join(faults)


def test_an_example_that_would_be_dropped_is_not_what_is_checked(
    student_directory: Path, tmp_path: Path
) -> None:
    examples = [example_of("What is 3 + 4?", "<think>\ntwice", "7"), *sums(11)]
    subject = subject_of(tmp_path, card_of(student_directory))
    data = build(examples, subject.style, subject.recipe.train, 0)
    assert [one.messages for one in data.shown] == [one.messages for one in examples[1:4]]


@pytest.mark.parametrize(
    "targets", ["all-linear", ["self_attn.q_proj"], r".*\.(q|v)_proj"], ids=["all", "path", "pattern"]
)
def test_targets_are_read_as_peft_reads_them(loaded: Subject, targets: str | list[str]) -> None:
    recipe = loaded.recipe.model_copy(
        update={"train": loaded.recipe.train.model_copy(update={"method": "lora"})}
    )
    card = loaded.card.model_copy(update={"lora_targets": targets})
    assert lora_targets_match(replace(loaded, recipe=recipe, card=card)) is None


def lose_a_weight(directory: Path) -> None:
    path = directory / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})


def cut(name: str) -> Callable[[Path], None]:
    """As a download that broke off leaves it."""
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:-1000]) and None


def change_json(name: str, **values: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        path = directory / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def only_an_adapter(directory: Path) -> None:
    (directory / "config.json").unlink()
    (directory / "model.safetensors").rename(directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "none", "peft_type": "LORA"}')


def no_tokenizer(directory: Path) -> None:
    for path in directory.glob("*token*"):
        path.unlink()


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).write_text(text) and None


def template(text: str) -> Callable[[Path], None]:
    return lambda directory: (directory / "chat_template.jinja").write_text(text) and None


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "a weight less": (
        lose_a_weight,
        r"lack 1 weights .*\(model.layers.0.mlp.up_proj.weight\).*random numbers",
    ),
    "cut file": (cut("model.safetensors"), r"its weights cannot be loaded"),
    "other sizes": (change_json("config.json", hidden_size=64), r"its weights cannot be loaded"),
    "adapter": (only_an_adapter, r"(cannot be loaded|needs code of its own)"),
    "no tokenizer": (no_tokenizer, r"its tokenizer has no token '<\|im_end\|>'"),
    "torn tokenizer": (
        cut("tokenizer.json"),
        r"base/tokenizer\.json: its tokenizer cannot be loaded .*Fetch the whole checkpoint",
    ),
    "pointer for a tokenizer": (
        written("tokenizer.json", POINTER),
        r"base/tokenizer\.json: its .* git lfs pull",
    ),
    "pointer for a configuration": (
        written("config.json", POINTER),
        r"base/config\.json: its tokenizer cannot",
    ),
    "list for a tokenizer": (written("tokenizer.json", "[1]"), r"base/tokenizer\.json: its tokenizer cannot"),
    "empty tokenizer": (written("tokenizer.json", "{}"), r"base: its tokenizer cannot be loaded .*KeyError"),
    "template's grammar": (template("{% if"), r"its chat template fails on the roles user .*Correct it"),
    "template's refusal": (
        template("{{ raise_exception('no users here') }}"),
        r"fails on the roles user \(no users here\)",
    ),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_base_that_is_not_whole_is_refused(tmp_path: Path, name: str) -> None:
    directory = build_student(tmp_path / "base")
    change, message = BROKEN[name]
    change(directory)
    with pytest.raises((StageError, RecipeError), match=message):
        subject_of(tmp_path, card_of(directory))


def test_examples_of_both_modes_pass_where_the_card_knows_the_switch(tmp_path: Path) -> None:
    """The block that the prompt closes in the other mode is no fault of the thinking one."""
    text = (TEMPLATES / "qwen3.jinja").read_text()
    card = card_of(
        build_student(tmp_path / "base", build_tokenizer(text)),
        thinking={"opened_by_prompt": False},
        without_thinking={"enable_thinking": False},
    )
    subject = subject_of(tmp_path, card)
    examples = [*sums(4), example_of("What is 1 + 1?", None, "2", 4)]
    model = sampled(card, without_thinking=card.without_thinking)
    data = build(examples, load_format(card, model), subject.recipe.train, 0)
    subject = replace(subject, model=model, style=load_format(card, model), shown=data.shown)
    assert (len(data.shown), data.thinking) == (4, "both")
    assert preflight(subject) == list(CHECKS)
    assert "<think>\n\n</think>\n\n[[2<|im_end|>]]" in render(
        data.shown[3].encoded, subject.style, colour=False
    )


def test_an_unthinking_template_is_a_student_too(tmp_path: Path) -> None:
    directory = build_student(tmp_path / "base", build_tokenizer(CHATML))
    subject = subject_of(tmp_path, card_of(directory, thinking={"opened_by_prompt": False}))
    assert preflight(subject) == list(CHECKS)
    assert "assistant\n[[<think>\n" in render(subject.shown[0].encoded, subject.style, colour=False)
