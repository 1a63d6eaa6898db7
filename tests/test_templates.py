"""Chat templates that ask for what they cannot have, or never end: one error each, in any thread."""

import asyncio

import pytest

from pipeline.errors import RecipeError
from pipeline.sampling import prompts
from pipeline.sampling.prompts import ChatPrompts
from tests.students_fixtures import CHATML, build_tokenizer, card_of, sampled

CHAT = [{"role": "user", "content": "1 + 1?"}]
LOOP = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
TEMPLATES = {
    "include": ("{% include 'secrets.txt' %}", "no loader"),
    "import": ("{% import 'os' as os %}", "no loader"),
    "range": ("{% for a in range(10000000000) %}{% endfor %}", "Range too big"),
    "division": ("{{ 1 // 0 }}", "division"),
    "recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    "attribute": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "syntax": ("{% for", "template"),
}


def chat_prompts(tmp_path: object, template: str) -> ChatPrompts:
    return ChatPrompts(build_tokenizer(template), sampled(card_of(tmp_path)))


@pytest.mark.parametrize(("template", "said"), TEMPLATES.values(), ids=TEMPLATES.keys())
def test_a_template_that_asks_for_what_it_cannot_have_is_one_error(
    tmp_path: object, template: str, said: str
) -> None:
    with pytest.raises(RecipeError, match=f"(?s)its chat template fails on the roles user .*{said}"):
        chat_prompts(tmp_path, template).text(CHAT)


@pytest.mark.parametrize("threaded", [False, True], ids=["main thread", "other thread"])
def test_a_template_that_does_not_end_is_ended(
    tmp_path: object, threaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "TEMPLATE_SECONDS", 0.5)
    made = chat_prompts(tmp_path, LOOP)
    with pytest.raises(
        RecipeError, match=r"its chat template has not ended after 0.5 s on a chat of 1 messages"
    ):
        asyncio.run(asyncio.to_thread(made.text, CHAT)) if threaded else made.text(CHAT)


def test_a_good_template_is_timed_once(tmp_path: object) -> None:
    made = chat_prompts(tmp_path, CHATML)
    assert made.text(CHAT) == made.text(CHAT)
    assert made.text(CHAT).startswith("<|im_start|>user\n1 + 1?")
