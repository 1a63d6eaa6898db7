"""judge: a model says whether an answer agrees with the gold, and what it says is itself measured.

Pure: what the judge is shown, the form of its reply, how a reply is read, and the rates that canaries give,
which are cases of known verdict among its work (pipeline.verify.canaries). Who asks is pipeline.judging; in a
worker the verifier says only that a judge is needed.

What a candidate wrote stands between marks that it can neither write nor guess: behind `<` and `[` a blank is
put wherever a mark, a tag or a special token of a tokenizer could start, and the marks carry a code that is
made of the text between them.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from pipeline.records import STOP, Status
from pipeline.verify.confusion import wilson_interval
from pipeline.verify.extract import find_answer
from pipeline.verify.json import DECODER
from pipeline.verify.outcome import Outcome, unverifiable, wrong

NEEDS_JUDGE = "needs_judge"  # the reason of a verdict that waits for the judge
LAYER = "judge"  # of a verdict that a judge decided

REPLY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "reason": {"type": "string", "maxLength": 200},
        "verdict": {"type": "string", "enum": ["correct", "wrong", "unsure"]},
    },
    "required": ["reason", "verdict"],
    "additionalProperties": False,
}

# where a mark of ours may start, or a token with a meaning of its own to a tokenizer (<|im_end|>, [INST])
OPENING = re.compile(r"([<\[])(?![\s\d=])")
CODE_LETTERS = 8


def verify_judge(response: str, gold: str, metadata: dict[str, Any]) -> Outcome:
    """What can be told without the judge: that there is no answer."""
    if not response.strip():
        return wrong(None, "", "no_answer")
    return unverifiable(NEEDS_JUDGE, find_answer(response))


def case_text(question: str, gold: str, answer: str) -> str:
    """What the judge is shown of one answer: three fields, none of which holds a mark."""
    fields = {name: fenced(text) for name, text in zip(MARKS, (question, gold, answer), strict=True)}
    code = code_of(fields.values())
    return "\n".join(f"<{name} {code}>\n{text}\n</{name} {code}>" for name, text in fields.items())


MARKS = ("question", "reference", "answer")


def fenced(text: str) -> str:
    """The text as it stands between marks: it cannot open or close one, nor any other tag."""
    return OPENING.sub(r"\1 ", text.strip())


def code_of(texts: Iterable[str]) -> str:
    """Hex digits that stand in none of the texts, and that nobody who wrote one of them could foresee."""
    held = "\0".join(texts)
    codes = (hashlib.sha256(f"{n}\0{held}".encode()).hexdigest()[:CODE_LETTERS] for n in range(len(held) + 1))
    return next(code for code in codes if code not in held)


class Reply(msgspec.Struct, forbid_unknown_fields=True):
    """What a judge must reply, and nothing else."""

    reason: str
    verdict: Literal["correct", "wrong", "unsure"]


REPLY = msgspec.json.Decoder(Reply)
# why a judge's answer is no verdict; `judge_failed` and `judge_too_long`: it was never had
UNSURE, NOT_STRUCTURED, CUT, FAILED, TOO_LONG = (
    "judge_unsure", "judge_reply", "judge_cut", "judge_failed", "judge_too_long"
)  # fmt: skip


def read_reply(text: str, finish_reason: str, closing_tag: str) -> Outcome:
    """The verdict in a judge's response, behind its thinking where it thought. Anything but the structured
    reply is unverifiable."""
    if finish_reason != STOP:
        return unverifiable(CUT, layer=LAYER)
    said = (text.rpartition(closing_tag)[2] if closing_tag else text).strip()
    try:
        reply = REPLY.decode(said)
        DECODER.decode(said)  # a key that stands twice, of which msgspec takes the last
    except (msgspec.DecodeError, ValueError):  # the latter: what is no Unicode
        return unverifiable(NOT_STRUCTURED, layer=LAYER)
    if reply.verdict == "unsure":
        return unverifiable(UNSURE, layer=LAYER)
    if reply.verdict == "correct":
        return Outcome("correct", "equal", None, LAYER)
    return wrong(None, LAYER)


# --- the account ---

ACCEPT = "gold"  # the one kind of canary that must be accepted


@dataclass(frozen=True, slots=True)
class Rate:
    """How often a judge was mistaken on canaries, with its 95% interval (Wilson)."""

    mistaken: int
    total: int

    @property
    def value(self) -> float:
        return self.mistaken / self.total if self.total else 0.0

    @property
    def ci95(self) -> tuple[float, float]:
        return wilson_interval(self.mistaken, self.total)

    def to_json(self) -> dict[str, Any]:
        ci95 = [round(bound, 6) for bound in self.ci95]
        return {"mistaken": self.mistaken, "total": self.total, "rate": round(self.value, 6), "ci95": ci95}

    def __str__(self) -> str:
        low, high = self.ci95
        return f"{self.mistaken:,} of {self.total:,} = {self.value:.1%} [{low:.1%}, {high:.1%}]"


@dataclass(frozen=True, slots=True)
class Audit:
    """What the canaries say of a judge: `counts` by kind and status."""

    counts: dict[str, dict[Status, int]]

    @property
    def false_accepts(self) -> Rate:
        """Accepted of those that must be refused."""
        refused = [by for kind, by in self.counts.items() if kind != ACCEPT]
        return Rate(sum(by.get("correct", 0) for by in refused), sum(sum(by.values()) for by in refused))

    @property
    def false_rejects(self) -> Rate:
        """Not accepted of the golds themselves; what is unverifiable was not accepted."""
        by = self.counts.get(ACCEPT, {})
        return Rate(sum(by.values()) - by.get("correct", 0), sum(by.values()))

    def to_json(self) -> dict[str, Any]:
        rates = {"false_accept": self.false_accepts, "false_reject": self.false_rejects}
        return {
            **{name: rate.to_json() for name, rate in rates.items()},
            "by_kind": self.counts,
        }


def audit(verdicts: Iterable[tuple[str, Status]]) -> Audit:
    """Count the verdicts on canaries, given as kind and status."""
    counts: dict[str, Counter[Status]] = {}
    for kind, status in verdicts:
        counts.setdefault(kind, Counter())[status] += 1
    return Audit({kind: dict(sorted(by.items())) for kind, by in counts.items()})
