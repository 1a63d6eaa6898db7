"""The four records that stages pass on, and their JSON form (JSON only at the edge).

A problem is asked, a trace is one sampled response to it, a verdict says whether the trace's answer is
right, an example is what the student is trained on.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

Status = Literal["correct", "wrong", "unverifiable"]


@dataclass(frozen=True, slots=True)
class Problem:
    """`id` is `problem_id(question, gold, verifier)`; `metadata` is the rest that its verifier needs."""

    id: str
    question: str
    gold: str
    verifier: str
    source: str
    licence: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trace:
    """One sampled response. `request` is the fingerprint of teacher identity, prompt and sampling.

    `thinking` is None where the response has no thinking block; `finish_reason` is the engine's word
    ("stop", "length", ...), or "unclosed" where a response stopped inside its thinking block.
    """

    problem_id: str
    sample: int
    seed: int
    request: str
    thinking: str | None
    answer: str
    finish_reason: str
    prompt_tokens: int
    output_tokens: int
    teacher: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """`layer` names what decided (string, numeric, ...); `extracted` is the answer that was read."""

    problem_id: str
    sample: int
    status: Status
    reason: str
    extracted: str | None
    layer: str
    verifier: str
    version: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Example:
    """`messages` is a chat in the layout that TRL reads; the last message is the one that is trained on."""

    problem_id: str
    sample: int
    messages: list[dict[str, str]]
    num_tokens: int


Record = TypeVar("Record", Problem, Trace, Verdict, Example)


def problem_id(question: str, gold: str, verifier: str) -> str:
    """The first 16 hex digits (64 bits) of sha256 over the three parts, each with its length."""
    parts = [question, gold, verifier]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:16]


def to_json(record: Problem | Trace | Verdict | Example) -> str:
    """One line of JSON, keys in field order."""
    return json.dumps(
        {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}, ensure_ascii=False
    )


def from_json(kind: type[Record], line: str) -> Record:
    """Read back what `to_json` wrote. Raises ValueError on broken JSON, missing or unknown fields."""
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError(f"expected an object, found {type(values).__name__}")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(str(error).replace(f"{kind.__name__}.__init__()", kind.__name__)) from None
