"""The embedded models: exact solvers, the shared tokenizer and template, and the committed files."""

import inspect
import itertools
import json
import re
from typing import Any

import pytest

from pipeline.embedded import training as embedded
from pipeline.problems.sources import is_reserved
from pipeline.recipe.cards import Tags
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.schema import load_recipe
from pipeline.render import split_response
from students.embedded import build as student_build
from students.embedded import facts
from teachers.embedded import build as teacher_build
from teachers.embedded import steps
from tests.conftest import ROOT

DIRECTORIES = {name: ROOT / name / "embedded" for name in ("teachers", "students")}
FAMILIES = sorted(embedded.FAMILIES)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DIRECTORIES["students"])


@pytest.mark.parametrize("family", FAMILIES)
def test_solvers_agree_with_reasoning_gym(family: str) -> None:
    import reasoning_gym

    scorer = reasoning_gym.create_dataset(family, seed=0, size=1, **embedded.FAMILIES[family])
    for item in itertools.islice(embedded.items(family, seed=3), 500):
        thinking, answer = steps.SOLVERS[family](item.entry["metadata"])
        assert scorer.score_answer(answer, item.entry) == 1.0, (item.question, thinking)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_equation_in_the_steps_holds(family: str) -> None:
    """Additions, subtractions and products written as `a+b+1=c`, `a-b=c` or `a*b+c=d` are true."""
    for item in itertools.islice(embedded.items(family, seed=4), 200):
        thinking, _ = steps.SOLVERS[family](item.entry["metadata"])
        for left, right in re.findall(r"(\d+(?:[-+*]\d+)+)=(\d+)", thinking):
            assert _value(left) == int(right), (item.question, thinking)


def _value(expression: str) -> int:
    """Sums and differences of products, left to right."""
    total = 0
    for sign, product in re.findall(r"([-+]?)([\d*]+)", expression):
        value = 1
        for factor in product.split("*"):
            value *= int(factor)
        total += -value if sign == "-" else value
    return total


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (steps.add(47, 85), "47+85:7+5=12,4+8+1=13;132"),
        (steps.subtract(85, 47), "85-47:15-7=8,8-4-1=3;38"),
        (steps.signed_sum(12, -45), "-(45-12):5-2=3,4-1=3;-33"),
        (steps.signed_sum(-20, -15), "-(20+15):0+5=5,2+1=3;-35"),
        (steps.multiply_by_digit(47, 6), "47*6:7*6=42,4*6+4=28;282"),
    ],
    ids=["carry", "borrow", "negative difference", "negative sum", "product"],
)
def test_steps_read_as_documented(step: str, expected: str) -> None:
    assert step == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_scorers_run_no_code_of_the_answer(family: str) -> None:
    import reasoning_gym

    scorer = reasoning_gym.create_dataset(family, seed=0, size=1, **embedded.FAMILIES[family])
    source = inspect.getsource(type(scorer).score_answer)
    assert not re.search(r"\b(eval|exec|parse_expr|sympify)\b", source)


def test_training_texts_hold_no_reserved_question() -> None:
    questions = [item.question for item in itertools.islice(embedded.mixed_items(5), 3000)]
    assert not any(is_reserved(question) for question in questions)
    held_out = itertools.islice(embedded.items("products", 5, reserved=True), 200)
    assert all(is_reserved(item.question) for item in held_out)


@pytest.mark.parametrize(
    "stream", [teacher_build.worked_texts, student_build.base_texts], ids=["teacher", "base"]
)
def test_no_training_stream_yields_a_reserved_question(stream: Any) -> None:
    for text in itertools.islice(stream(6), 1000):
        if text.prompt:
            question = text.prompt.partition("user\n")[2].partition("\n\nPlease reason")[0]
            assert question
            assert not is_reserved(question)


def test_base_is_never_shown_a_worked_chain() -> None:
    texts = list(itertools.islice(student_build.base_texts(7), 1000))
    answers = [text.completion for text in texts if text.prompt]
    assert answers
    assert all(answer.startswith("\n</think>\n\n\\boxed{") for answer in answers)


def test_facts_are_true() -> None:
    import random

    rng = random.Random(0)
    for fact in facts.FACTS[:5]:
        for _ in range(200):
            left, right = fact(rng).split("=")
            assert _value(left) == int(right)


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "12*x + 35 = 431",
        "naïve 数学 🙂\t\r\n",
        "$\\frac{84}{126}$",
        "a\n\n\nb",
        " </think> <think>",
    ],
)
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_one_token_each(tokenizer: Any) -> None:
    tokens = tokenizer.tokenize("x10 2345\n678")
    assert [token for token in tokens if any(c.isdigit() for c in token)] == list("102345678")
    assert not [token for token in tokenizer.get_vocab() if len(token) > 1 and re.search(r"\d", token)]


def test_thinking_tags_stay_in_text_without_special_tokens(tokenizer: Any) -> None:
    ids = tokenizer.encode("<think>\n1\n</think>\n\n\\boxed{1}<|im_end|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>\n1\n</think>\n\n\\boxed{1}"
    assert ids.count(tokenizer.convert_tokens_to_ids("</think>")) == 1


def test_pad_and_eos_differ(tokenizer: Any) -> None:
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.encode("a<|im_end|>")[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "reasoning_content": "1+1=2", "content": "\\boxed{2}"},
        {"role": "assistant", "content": "<think>\n1+1=2\n</think>\n\n\\boxed{2}"},
        {"role": "assistant", "content": "1+1=2\n</think>\n\n\\boxed{2}"},
    ],
    ids=["reasoning_content", "inline", "inline without opening"],
)
def test_template_writes_the_thinking_once_after_the_generation_prompt(tokenizer: Any, turn: Any) -> None:
    chat = PROMPTS["boxed"].messages("1 + 1 =")
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template([*chat, turn], return_dict=True, return_assistant_tokens_mask=True)
    assert whole["input_ids"][: len(prompt)] == prompt
    assert tokenizer.decode(prompt) == embedded.chat_prompt("1 + 1 =")
    completion = tokenizer.decode(whole["input_ids"][len(prompt) :])
    assert completion == embedded.chat_completion("1+1=2", "2")
    trained = [i for i, on in zip(whole["input_ids"], whole["assistant_masks"], strict=True) if on]
    assert tokenizer.decode(trained) == completion
    assert split_response(completion.removesuffix("<|im_end|>"), Tags()).thinking == "1+1=2"


def test_empty_thinking_keeps_the_prompt_whole(tokenizer: Any) -> None:
    chat = PROMPTS["boxed"].messages("1 + 1 =")
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template(
        [*chat, {"role": "assistant", "content": "\\boxed{2}"}], return_dict=True
    )["input_ids"]
    assert whole[: len(prompt)] == prompt
    assert tokenizer.decode(whole[len(prompt) :]) == embedded.chat_completion("", "2")


def test_template_drops_the_thinking_of_earlier_turns(tokenizer: Any) -> None:
    turn = {"role": "assistant", "content": "<think>\na\n</think>\n\nfirst"}
    text = tokenizer.apply_chat_template(
        [*PROMPTS["plain"].messages("q"), turn, *PROMPTS["plain"].messages("r"), turn], tokenize=False
    )
    assert text.count("<think>") == 1
    assert text.count("first") == 2


def test_both_models_hold_the_tokenizer_that_is_built_today() -> None:
    for name in TOKENIZER_FILES:
        assert (DIRECTORIES["teachers"] / name).read_bytes() == (DIRECTORIES["students"] / name).read_bytes()
    built = json.loads(embedded.build_tokenizer().backend_tokenizer.to_str())
    committed = json.loads((DIRECTORIES["students"] / "tokenizer.json").read_text())
    assert built["model"] == committed["model"]
    assert built["added_tokens"] == committed["added_tokens"]


@pytest.mark.parametrize(
    ("name", "kind"), [("teachers", "Qwen3MoeForCausalLM"), ("students", "Qwen3ForCausalLM")]
)
def test_committed_weights(name: str, kind: str, tokenizer: Any) -> None:
    import torch
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM

    directory = DIRECTORIES[name]
    path = directory / "model.safetensors"
    assert sum(file.stat().st_size for file in directory.iterdir() if file.is_file()) < 6_000_000
    with safe_open(path, "pt") as weights:
        assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.bfloat16}  # noqa: SIM118
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == [kind]
    assert config["vocab_size"] % 64 == 0
    assert config["vocab_size"] >= len(tokenizer)
    assert config["eos_token_id"] == tokenizer.eos_token_id != config["pad_token_id"]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    assert type(model).__name__ == kind
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_demo_asks_what_the_models_were_trained_for() -> None:
    recipe = load_recipe(ROOT / "recipes/demo.yaml")
    for procedural in (recipe.problems.sources, recipe.eval.tasks):
        assert {entry.reasoning_gym: entry.config for entry in procedural} == embedded.FAMILIES
