"""What a filter rule looks at: one trace with its problem and its verdict, and how it turns out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from pipeline.records import Problem, Trace, Verdict


class Hit(NamedTuple):
    """Why a trace is dropped: the reason that is counted, and what a reader should see."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Candidate:
    """`count` gives the tokens of the trace as the student will read it; it is called at most once."""

    problem: Problem
    trace: Trace
    verdict: Verdict
    procedural: bool
    count: Callable[["Candidate"], int]

    @cached_property
    def text(self) -> str:
        """Thinking and answer, one after the other."""
        thinking = self.trace.thinking
        return f"{thinking}\n{self.trace.answer}" if thinking else self.trace.answer

    @cached_property
    def folded(self) -> str:
        return self.text.casefold()

    @cached_property
    def num_tokens(self) -> int:
        return self.count(self)
