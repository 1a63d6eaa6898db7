"""Messages to ids and mask: a test for each way that templates, tags and end tokens go wrong elsewhere."""

from pathlib import Path
from typing import Any

import pytest
import trl

from pipeline.errors import RecipeError, StageError
from pipeline.recipe.cards import Tags
from pipeline.records import Example
from pipeline.render import STRAY_END, STRAY_SPECIAL, STRAY_TAG, Split, join_response, split_message
from pipeline.sampling.prompts import THE_DAY, ChatPrompts
from students.examples import TOO_LONG, why_dropped
from students.format import IGNORED, Format, load_format
from tests.students_fixtures import CHATML, CHATML_THINK, build_tokenizer, card_of, example_of, sampled

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
THINKING, ANSWER = "3 + 4\nis 7", "\\boxed{7}"
ASKED = {"role": "user", "content": "What is 3 + 4?"}
CHAT = [ASKED, {"role": "assistant", "content": ANSWER, "reasoning_content": THINKING}]
# as a row of a mix may hold it
INLINE = [ASKED, {"role": "assistant", "content": f"<think>\n{THINKING}\n</think>\n\n{ANSWER}"}]
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
DEEPSEEK = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
LLAMA = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
GEMMA = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
PHI = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]

# template, special tokens, end of turn, whether the generation prompt opens the thinking
STUDENTS = {
    "chatml": (CHATML, QWEN, "<|im_end|>", False),
    "chatml-think": (CHATML_THINK, QWEN, "<|im_end|>", True),
    "qwen2_5": ("qwen2_5", QWEN, "<|im_end|>", False),
    "qwen3": ("qwen3", QWEN, "<|im_end|>", False),
    "qwen3_5_think": ("qwen3_5_think", QWEN, "<|im_end|>", True),
    "deepseek_r1_distill": ("deepseek_r1_distill", DEEPSEEK, "<｜end▁of▁sentence｜>", True),
    "llama3_2": ("llama3_2", LLAMA, "<|eot_id|>", False),
    "gemma3": ("gemma3", GEMMA, "<end_of_turn>", False),
    "phi3": ("phi3", PHI, "<|end|>", False),
}


def style_of(name: str) -> Format:
    template, special, end, opened = STUDENTS[name]
    text = template if "{" in template else (TEMPLATES / f"{template}.jinja").read_text()
    tokens = (
        {"eos_token": end, "bos_token": special[0]}
        if special in (DEEPSEEK, LLAMA, GEMMA)
        else {"eos_token": end}
    )
    tokenizer = build_tokenizer(text, special, **tokens)
    card = card_of(Path("none"), eos=end, thinking={"opened_by_prompt": opened})
    model = sampled(card)
    return Format(tokenizer, ChatPrompts(tokenizer, model), model.tags, end)


@pytest.fixture(params=list(STUDENTS))
def style(request: pytest.FixtureRequest) -> Format:
    return style_of(request.param)


def whole(style: Format, ids: list[int]) -> str:
    return style.tokenizer.decode(ids, skip_special_tokens=False)


def test_thinking_is_there_once_whatever_the_template_does(style: Format) -> None:
    """Templates open the block in the prompt, drop the thinking, or know only reasoning_content."""
    encoded = style.encode(CHAT)
    prompt = encoded.ids[: encoded.num_prompt]
    turn = style.opening(prompt) + whole(style, encoded.ids[encoded.num_prompt :])
    assert turn == f"<think>\n{THINKING}\n</think>\n\n{ANSWER}{style.turn_end}"


def test_the_opening_tag_is_trained_only_where_the_prompt_does_not_write_it(style: Format) -> None:
    encoded = style.encode(CHAT)
    opened = bool(style.opening(encoded.ids[: encoded.num_prompt]))
    trained = whole(style, encoded.ids[encoded.num_prompt :])
    assert opened == style.tags.opened_by_prompt
    assert trained.startswith("<think>") is not opened


def test_the_mask_covers_the_prompt_and_nothing_else(style: Format) -> None:
    encoded = style.encode(CHAT)
    labels = encoded.labels
    assert labels[: encoded.num_prompt] == [IGNORED] * encoded.num_prompt
    assert labels[encoded.num_prompt :] == encoded.ids[encoded.num_prompt :]
    assert "3 + 4?" in whole(style, encoded.ids[: encoded.num_prompt])
    assert labels[-1] == style.turn_end_id


def test_prompt_ids_are_those_that_eval_sends(style: Format) -> None:
    encoded = style.encode(CHAT)
    # a template that writes today's date is given one day, for all prompts
    asked = style.tokenizer.apply_chat_template(
        CHAT[:1], add_generation_prompt=True, return_dict=False, strftime_now=THE_DAY.strftime
    )
    assert encoded.ids[: encoded.num_prompt] == asked


def test_nothing_special_is_doubled(style: Format) -> None:
    encoded = style.encode(CHAT)
    assert encoded.ids[encoded.num_prompt :].count(style.turn_end_id) == 1
    begin = style.tokenizer.bos_token_id
    assert begin is None or encoded.ids.count(begin) <= 1


def test_tags_in_the_content_give_the_same_ids_as_reasoning_content(style: Format) -> None:
    assert style.encode(INLINE) == style.encode(CHAT)


OPENING = "<think>\n"


@pytest.mark.parametrize(
    ("thinking", "opening", "text"),
    [
        ("a", "", "<think>\na\n</think>\n\nb"),
        ("a", OPENING, "a\n</think>\n\nb"),
        ("a", "<think>", "\na\n</think>\n\nb"),
        ("a", "<think> ", "\na\n</think>\n\nb"),
        ("", "", "<think>\n\n</think>\n\nb"),
        ("", OPENING, "\n</think>\n\nb"),
        (None, "", "b"),
        (None, OPENING, "\n</think>\n\nb"),
    ],
    ids=["whole", "opened", "tag alone", "another blank", "empty", "empty opened", "none", "none opened"],
)
def test_the_trained_turn_is_joined_once(thinking: str | None, opening: str, text: str) -> None:
    turn = {"role": "assistant", "content": "b"}
    split = split_message(turn if thinking is None else {**turn, "reasoning_content": thinking}, Tags())
    assert split == Split(thinking, "b", "none" if thinking is None else "closed")
    assert join_response(split, Tags(), opening) == text


def test_a_completion_without_thinking_closes_what_the_prompt_opened() -> None:
    style = style_of("chatml-think")
    encoded = style.encode([ASKED, {"role": "assistant", "content": ANSWER}])
    assert whole(style, encoded.ids[encoded.num_prompt :]) == f"\n</think>\n\n{ANSWER}<|im_end|>"


def test_a_tag_of_many_tokens_is_seen_where_the_prompt_opens_it() -> None:
    """The byte-level tokenizer reads it byte by byte."""
    tag = "<reasoning_process>"
    tokenizer = build_tokenizer(CHATML_THINK.replace("<think>", tag), QWEN, eos_token="<|im_end|>")
    card = card_of(
        Path("none"), thinking={"open": tag, "close": "</reasoning_process>", "opened_by_prompt": True}
    )
    style = Format(tokenizer, ChatPrompts(tokenizer, sampled(card)), card.thinking, "<|im_end|>")
    encoded = style.encode(CHAT)
    assert style.opening(encoded.prompt) == f"{tag}\n"
    assert whole(style, encoded.trained) == f"{THINKING}\n</reasoning_process>\n\n{ANSWER}<|im_end|>"


def test_without_thinking_and_without_an_opened_block_there_are_no_tags() -> None:
    style = style_of("chatml")
    encoded = style.encode([ASKED, {"role": "assistant", "content": ANSWER}])
    assert whole(style, encoded.ids[encoded.num_prompt :]) == f"{ANSWER}<|im_end|>"


def test_earlier_turns_stay_as_the_template_writes_them() -> None:
    style = style_of("deepseek_r1_distill")
    encoded = style.encode([*INLINE, {"role": "user", "content": "And 1 + 1?"}, CHAT[1]])
    assert whole(style, encoded.ids).count(THINKING) == 1


def test_pad_equal_to_eos_keeps_the_end_of_turn_in_the_loss() -> None:
    style = style_of("chatml")
    style.tokenizer.pad_token = "<|im_end|>"
    assert style.encode(CHAT).labels[-1] == style.tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("content", "limit", "reason"),
    [
        (INLINE[1]["content"], 512, None),
        (INLINE[1]["content"], 20, TOO_LONG),
        ("<think>\nno end", 512, STRAY_TAG),
        ("<think>\n<think>\ntwice\n</think>\n\n7", 512, STRAY_TAG),
        ("<think>\none\n</think>\n\n7</think>", 512, STRAY_TAG),
        ("<think>\none\n</think>\n\n7<|im_end|>8", 512, STRAY_END),
    ],
    ids=["good", "long", "unclosed", "opened twice", "closed twice", "ended twice"],
)
def test_examples_that_teach_the_wrong_thing_are_dropped(
    content: str, limit: int, reason: str | None
) -> None:
    style = style_of("chatml")
    chat = [ASKED, {"role": "assistant", "content": content}]
    assert why_dropped(Example("x", 0, chat, 0), style.encode(chat), style, limit) == reason


@pytest.mark.parametrize(
    ("thinking", "answer", "reason"),
    [
        (THINKING, ANSWER, None),
        ("", ANSWER, None),
        ("<think>\ntwice", ANSWER, STRAY_TAG),
        ("one\n</think>\n\n7", ANSWER, STRAY_TAG),
        (THINKING, "7</think>", STRAY_TAG),
        ("one<|im_end|>", ANSWER, STRAY_END),
        ("one<|endoftext|>", ANSWER, STRAY_SPECIAL),
        (THINKING, "7\n<|im_start|>user\nAnd 1 + 1?", STRAY_SPECIAL),
    ],
    ids=[
        *("good", "empty", "opened twice", "closed twice", "closed in the answer", "ended twice"),
        *("another end of text", "another turn"),
    ],
)
def test_thinking_apart_is_held_to_the_same(thinking: str, answer: str, reason: str | None) -> None:
    style, example = style_of("chatml"), example_of("3 + 4?", thinking, answer)
    assert why_dropped(example, style.encode(example.messages), style, 512) == reason


@pytest.mark.parametrize("name", ["gemma3", "llama3_2"])
def test_tags_that_are_special_tokens_are_no_stray_ones(name: str) -> None:
    """Where they stand as tags; the template's own end of turn is no stray one either."""
    style = style_of(name)
    style.tokenizer.add_special_tokens({"extra_special_tokens": ["<think>", "</think>"]})
    assert {"<think>", style.turn_end} < style.special
    good, twice = example_of("3 + 4?", THINKING, ANSWER), example_of("3 + 4?", "<think>", ANSWER)
    assert why_dropped(good, style.encode(good.messages), style, 512) is None
    assert why_dropped(twice, style.encode(twice.messages), style, 512) == STRAY_TAG


def test_a_chat_that_does_not_end_with_the_assistant_is_refused() -> None:
    with pytest.raises(StageError, match="last message must be the assistant's"):
        style_of("chatml").encode(CHAT[:1])


def test_an_end_token_that_the_tokenizer_lacks_is_refused(tmp_path: Path) -> None:
    build_tokenizer(CHATML).save_pretrained(tmp_path)
    card: Any = card_of(tmp_path, eos="<|eot_id|>")
    with pytest.raises(
        RecipeError, match=r"no token '<\|eot_id\|>', which the student's card names as `eos`"
    ):
        load_format(card, sampled(card))


def test_a_tokenizer_without_template_asks_for_one(tmp_path: Path) -> None:
    build_tokenizer(None).save_pretrained(tmp_path)
    card: Any = card_of(tmp_path)
    with pytest.raises(StageError, match=r"no chat template; name one of students/templates"):
        load_format(card, sampled(card))
