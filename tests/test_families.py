"""Chat templates of real families (TRL ships them): what is trained on, decoded, and what is never trained on."""

from pathlib import Path
from typing import Any

import pytest
import trl

from pipeline.recipe.cards import Tags, asked_without_thinking
from pipeline.render import split_response
from pipeline.sampling.prompts import ChatPrompts
from students.format import Format
from tests.students_fixtures import build_tokenizer, card_of, sampled

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
THINK = Tags()
CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
TURNS = ["<bos>", "<eos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>"]
PHI = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"]
GEMMA = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
DEEPSEEK = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
# template, special tokens (the first is written at the beginning, if any is), end of turn, the model's tags,
# whether the prompt opens the thinking, template options
FAMILIES: dict[str, tuple[str, list[str], str, Tags, bool, dict[str, Any]]] = {
    "Qwen2.5": ("qwen2_5", CHATML, "<|im_end|>", THINK, False, {}),
    "Qwen3": ("qwen3", CHATML, "<|im_end|>", THINK, False, {"enable_thinking": True}),
    "Qwen3-2507": ("qwen3_instruct_2507", CHATML, "<|im_end|>", THINK, False, {}),
    "Qwen3.5": ("qwen3_5_think", CHATML, "<|im_end|>", THINK, True, {}),
    "Qwen3.6": ("qwen3_6", CHATML, "<|im_end|>", THINK, True, {}),
    "Llama-3.1": ("llama3_1", LLAMA, "<|eot_id|>", THINK, False, {}),
    "Llama-3.2": ("llama3_2", LLAMA, "<|eot_id|>", THINK, False, {}),
    "Gemma-3": ("gemma3", GEMMA, "<end_of_turn>", THINK, False, {}),
    "Gemma-4": (
        "gemma4_v5",
        TURNS,
        "<turn|>",
        Tags(open="<|channel>thought", close="<channel|>", opened_by_prompt=False),
        False,
        {"enable_thinking": True},
    ),
    "Phi-3.5": ("phi3_5", PHI, "<|end|>", THINK, False, {}),
    "DeepSeek-V3": ("deepseekv3", DEEPSEEK, "<｜end▁of▁sentence｜>", THINK, True, {}),
    "LFM2.5": ("lfm2_2_5", ["<|startoftext|>", *CHATML[1:]], "<|im_end|>", THINK, False, {}),
    "Nemotron-3": ("nemotron_3_nano", CHATML, "<|im_end|>", THINK, True, {}),
}
ASKED = {"role": "user", "content": "What is 3 + 4?"}
CHAT = [ASKED, {"role": "assistant", "content": "\\boxed{7}", "reasoning_content": "3 + 4\nis 7"}]


@pytest.fixture(params=list(FAMILIES), scope="module")
def style(request: pytest.FixtureRequest) -> Format:
    template, special, end, tags, opened, options = FAMILIES[request.param]
    text = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    tokenizer = build_tokenizer(text, special, eos_token=end, bos_token=special[0])
    thinking = tags.model_copy(update={"opened_by_prompt": opened}).model_dump()
    card = card_of(Path("none"), eos=end, thinking=thinking, template_options=options)
    model = sampled(card)
    return Format(tokenizer, ChatPrompts(tokenizer, model), model.tags, end)


def test_the_turn_has_one_block_of_thinking_and_its_end_is_trained(style: Format) -> None:
    encoded, tags = style.encode(CHAT), style.tags
    opening = style.opening(encoded.prompt)
    turn = opening + style.prompts.decode(encoded.trained)
    assert turn == f"{tags.open}\n3 + 4\nis 7\n{tags.close}\n\n\\boxed{{7}}{style.turn_end}"
    assert bool(opening) is tags.opened_by_prompt
    assert encoded.labels[-1] == style.turn_end_id
    assert encoded.trained.count(style.turn_end_id) == 1


def test_nothing_of_the_prompt_is_trained_and_it_is_what_the_engine_is_sent(style: Format) -> None:
    encoded = style.encode(CHAT)
    assert encoded.prompt == style.prompts.ids([ASKED])
    assert set(encoded.labels[: encoded.num_prompt]) == {-100}
    assert style.prompts.decode(encoded.prompt) == style.prompts.text([ASKED])
    assert ASKED["content"] in style.prompts.text([ASKED])
    begin = style.tokenizer.bos_token_id
    assert encoded.ids.count(begin) <= 1


def test_a_response_is_split_with_the_tags_that_joined_it(style: Format) -> None:
    encoded = style.encode(CHAT)
    response = style.prompts.decode(encoded.trained[:-1])
    split = split_response(response, style.tags)
    assert (split.thinking, split.answer) == ("3 + 4\nis 7", "\\boxed{7}")


def test_a_harmony_response_is_split_into_analysis_and_final_answer() -> None:
    """gpt-oss as a teacher: its channels are its tags."""
    tags = Tags(
        open="<|channel|>analysis<|message|>",
        close="<|end|><|start|>assistant<|channel|>final<|message|>",
        opened_by_prompt=False,
    )
    split = split_response(f"{tags.open}3 + 4 is 7{tags.close}\\boxed{{7}}", tags)
    assert (split.thinking, split.answer, split.closing) == ("3 + 4 is 7", "\\boxed{7}", "closed")
    assert split_response(f"{tags.open}3 + 4", tags).closing == "unclosed"


def test_a_template_that_is_switched_off_closes_its_empty_block_before_what_is_trained() -> None:
    text = (TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8")
    tokenizer = build_tokenizer(text, CHATML, eos_token="<|im_end|>")
    options = {"enable_thinking": False}
    model = sampled(card_of(Path("none"), thinking={"opened_by_prompt": False}, template_options=options))
    style = Format(tokenizer, ChatPrompts(tokenizer, model), model.tags, "<|im_end|>")
    encoded = style.encode([ASKED, {"role": "assistant", "content": "\\boxed{7}"}])
    assert style.prompts.decode(encoded.prompt).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert style.prompts.decode(encoded.trained) == "\\boxed{7}<|im_end|>"


@pytest.mark.parametrize("template", ["qwen3", "qwen3_5_think", "qwen3_8"])
def test_one_student_has_examples_of_both_modes(template: str) -> None:
    """Each with the prompt that eval sends in that mode; only the thinking one holds thinking."""
    text = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    tokenizer = build_tokenizer(text, CHATML, eos_token="<|im_end|>")
    thinking = {"opened_by_prompt": template != "qwen3"}
    card = card_of(Path("none"), thinking=thinking, without_thinking={"enable_thinking": False})
    model = sampled(card, without_thinking=card.without_thinking)
    style = Format(tokenizer, ChatPrompts(tokenizer, model), model.tags, "<|im_end|>")
    with_thinking, without = (
        style.encode(CHAT),
        style.encode([ASKED, {"role": "assistant", "content": "\\boxed{7}"}]),
    )
    off = asked_without_thinking(model)
    assert with_thinking.prompt == style.prompts.ids([ASKED])
    assert without.prompt == ChatPrompts(tokenizer, off).ids([ASKED]) != with_thinking.prompt
    assert style.prompts.decode(without.prompt).endswith("assistant\n<think>\n\n</think>\n\n")
    assert style.prompts.decode(without.trained) == "\\boxed{7}<|im_end|>"
    assert "</think>" in style.prompts.decode(with_thinking.trained)
    assert off.identity["template_options"] == {"enable_thinking": False}
    assert split_response("\\boxed{7}", off.tags).closing == "none"
