"""A streamed answer put together again: server-sent events in, one chat completion out.

A server stops working on an answer whose reader has gone, so whatever stops a collection also stops the
bill; and the pieces say that it lives. Of the pieces nothing is held but their text, as bytes: the objects of
100,000 small strings would take ten times as much. (httpx-sse and the openai package were looked at: neither
bounds what it holds, and the latter refuses answers of odd servers as a whole.)
"""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.sampling.engines.answers import content_of
from pipeline.sampling.engines.base import RequestFailed
from pipeline.sampling.engines.faults import Retry

EVENT_BYTES = 2**20  # of one event; a usual one has 300
STREAM_TO_TEXT = 16  # bytes of events for a byte of text, at most
TEXTS = ("content", "reasoning", "reasoning_content", "thinking")


@dataclass(slots=True)
class Held:
    """The bytes that all streams hold together, and how many they may."""

    most: int
    in_memory: int = 0


@dataclass(slots=True)
class Assembled:
    """One answer as far as it has come. `pieces` counts those with text: about the tokens so far."""

    held: Held
    max_bytes: int
    texts: dict[str, bytearray] = field(default_factory=dict)
    details: list[Any] = field(default_factory=list)
    answer: dict[str, Any] = field(default_factory=dict)
    finish_reason: Any = None
    pieces: int = 0
    size: int = 0
    begun: bool = False
    done: bool = False

    def add(self, event: Any) -> None:
        """One event. RequestFailed where more comes than was asked for can take."""
        if not isinstance(event, dict):
            raise RequestFailed("invalid_answer", f"an event of the stream is a {type(event).__name__}")
        for name in ("model", "usage", "error"):
            if event.get(name) is not None:
                self.answer[name] = event[name]
        choices = event.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            return
        choice = choices[0]
        self.begun = True
        if choice.get("error"):
            self.answer["error"] = choice["error"]
        if choice.get("finish_reason") is not None:
            self.finish_reason = choice["finish_reason"]
        delta = choice.get("delta") or choice.get("message") or {}
        if isinstance(delta, dict):
            self._add_delta(delta)

    def _add_delta(self, delta: dict[str, Any]) -> None:
        before = self.size
        for name in TEXTS:
            value = delta.get(name)
            if isinstance(value, str):
                self._add_text(name, value)
            elif isinstance(value, list):
                self._add_parts(name, value)
        details = delta.get("reasoning_details")
        for part in details if isinstance(details, list) else []:
            self._add_detail(part)
        self.pieces += self.size > before

    def _add_parts(self, name: str, parts: list[Any]) -> None:
        """A list of parts: text of the content is content, thinking in it stands apart."""
        try:
            text, thinking = content_of(parts)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise RequestFailed("invalid_answer", f"{type(error).__name__}: {error}") from None
        self._add_text(name, text)
        if thinking:
            self._add_text("part" if name == "content" else name, thinking)

    def _add_detail(self, part: Any) -> None:
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            self._add_text("detail", part["text"])
        elif isinstance(part, dict) and len(self.details) < 8:  # encrypted, or a summary: only that it is so
            self.details.append({"type": part.get("type")})

    def _add_text(self, name: str, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        self.size += len(data)
        self.held.in_memory += len(data)
        if self.size > self.max_bytes or self.held.in_memory > self.held.most:
            raise RequestFailed(
                "too_large", f"{self.size:,} bytes of text, more than what was asked for can take"
            )
        self.texts.setdefault(name, bytearray()).extend(data)

    def whole(self) -> dict[str, Any]:
        """The answer as it would have come in one piece. Retry where the stream ended before it did: it says
        neither how the answer ended nor that it is done itself."""
        if "error" not in self.answer and self.finish_reason is None and not self.done:
            raise Retry("cut_stream", "the stream ended before the answer did")
        message: dict[str, Any] = {"content": None}
        message |= {name: data.decode("utf-8", "surrogatepass") for name, data in self.texts.items()}
        if "part" in message:  # as a whole answer is read: before the fields
            message["thinking"] = message.pop("part")
        if "detail" in message:
            self.details.append({"type": "reasoning.text", "text": message.pop("detail")})
        if self.details:
            message["reasoning_details"] = self.details
        choice = {"message": message, "finish_reason": self.finish_reason}
        return {**self.answer, "choices": [choice] if self.begun else []}

    def release(self) -> None:
        self.held.in_memory -= self.size


async def read_events(pieces: AsyncIterator[bytes], assembled: Assembled) -> dict[str, Any]:
    """The whole answer of a stream: `data: {...}` lines until `data: [DONE]` or the end. Comments, which keep
    a connection open, and names of events are passed over."""
    rest, total = b"", 0
    async for piece in pieces:
        total += len(piece)
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if _take(line, assembled):
                return assembled.whole()
        if len(rest) > EVENT_BYTES or total > STREAM_TO_TEXT * assembled.max_bytes:
            raise RequestFailed("too_large", f"a stream of {total:,} bytes")
    _take(rest, assembled)
    return assembled.whole()


def _take(line: bytes, assembled: Assembled) -> bool:
    """Take one line of a stream; whether it was its end."""
    name, colon, value = line.strip(b"\r").partition(b":")
    if name != b"data" or not colon:
        return False
    value = value.strip()
    if value == b"[DONE]":
        assembled.done = True
        return True
    if not value:
        return False
    try:
        event = json.loads(value)
    except (ValueError, RecursionError):
        raise RequestFailed("invalid_json", f"an event of the stream is no JSON: {value[:80]!r}") from None
    assembled.add(event)
    return False
