"""Lists of chat messages, as data sets write them: one reading for problems, imported traces and the mix.

A message has `role` and `content`, or `from` and `value`, or all four with nulls, as tables made of both
have. The content is a text or a list of parts; the thinking stands in `reasoning_content`, `thinking` or
`reasoning` of the message, or in a part of that type, or, between tags, in the content itself.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.rows.cells import unpacked

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}
THINKING = ("reasoning_content", "thinking", "reasoning")


class Turn(NamedTuple):
    """`role` is user, assistant, system, or "" for any other; `text` is None where it has none."""

    role: str
    text: str | None
    thinking: str | None = None


def chat_in(value: Any) -> list[Turn] | None:
    """The turns of a cell; None where it is no list of messages. ValueError for a content that is no text."""
    value = unpacked(value)
    if not isinstance(value, list) or not value:
        return None
    if not all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value):
        return None
    return [_turn(turn) for turn in value]


def _turn(turn: dict[str, Any]) -> Turn:
    role = ROLES.get(str(turn.get("role") or turn.get("from") or "").lower(), "")
    content = turn.get("content")
    content = turn.get("value") if content is None else content
    stated = [turn[key] for key in THINKING if turn.get(key)]
    if isinstance(content, list):
        content, inner = _parts(content)
        stated += [inner] if inner else []
    for text in (content, *stated):
        if not isinstance(text, str | None):
            raise ValueError(f"a message holds {type(text).__name__}, not text: {text!r:.40}")
    return Turn(role, content, stated[0] if stated else None)


def _parts(parts: Sequence[Any]) -> tuple[str, str]:
    """Text and thinking of a content in parts. ValueError for a part that is neither."""
    texts: list[str] = []
    thoughts: list[str] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        thinking = kind in THINKING
        keys = (*THINKING, "text", "content") if thinking else ("text", "content")
        held = next((part[key] for key in keys if part.get(key)), "") if isinstance(part, dict) else None
        if not isinstance(held, str) or not (thinking or kind in ("text", "output_text", "input_text", None)):
            raise ValueError(f"a message has a part of type {kind}, which is no text")
        (thoughts if thinking else texts).append(held)
    return "".join(texts), "\n".join(thoughts)


def first_of(turns: Sequence[Turn], role: str) -> Turn | None:
    return next((turn for turn in turns if turn.role == role), None)


def last_of(turns: Sequence[Turn], role: str) -> Turn | None:
    return first_of(turns[::-1], role)
