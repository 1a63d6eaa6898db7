"""Apply the rules to chunks of traces, in worker processes that are given bytes and give bytes back.

An item is a trace line with its verdict and its problem; its outcome is the row for kept.jsonl or
dropped.jsonl, ready to be written, with what selection needs to know.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from typing import Any, NamedTuple

import msgspec

from pipeline.candidate import Candidate, Hit
from pipeline.contamination import TraceIndex
from pipeline.decontaminate import EvalQuestion, Ngram
from pipeline.examples import Format, response_text, token_counter
from pipeline.lookup import UNREADABLE, line_decoder
from pipeline.records import Problem, Trace, Verdict
from pipeline.render import messages
from pipeline.rules import bind_rules

IN_FLIGHT_PER_WORKER = 3


class Item(NamedTuple):
    """One line of JSON each."""

    trace: bytes
    verdict: bytes
    problem: bytes


class Outcome(NamedTuple):
    """`reason` is empty where every rule let the trace pass; `fault` says why a line is no trace."""

    row: bytes
    rule: str
    reason: str
    source: str
    trained_tokens: int
    correct: bool
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Judging:
    """All that a worker is told once: rules as in the recipe, eval questions, and how examples look."""

    rules: list[str | dict[str, dict[str, Any]]]
    form: Format
    questions: list[EvalQuestion] = field(default_factory=list)
    templates: dict[str, set[Ngram]] = field(default_factory=dict)


class Judge:
    """The bound rules and the tokenizer of one worker."""

    def __init__(self, judging: Judging) -> None:
        self.form = judging.form
        self.rules = bind_rules(judging.rules, TraceIndex(judging.questions, judging.templates))
        path = judging.form.tokenizer
        self.tokens: Callable[[str], int] | None = token_counter(path) if path else None
        self.read_trace: Callable[[bytes], Trace] = line_decoder(Trace)
        self.read_verdict: Callable[[bytes], Verdict] = line_decoder(Verdict)
        self.read_problem = lru_cache(maxsize=64)(msgspec.json.Decoder(Problem).decode)
        self.count_prompt = lru_cache(maxsize=64)(self._count_prompt)

    def judge(self, item: Item) -> Outcome:
        try:
            trace = self.read_trace(item.trace)
        except UNREADABLE as error:  # msgspec's ValidationError ValidationError names the field
            return Outcome(b"", "", "", "", 0, False, str(error))
        problem, verdict = self.read_problem(item.problem), self.read_verdict(item.verdict)
        candidate = Candidate(problem, trace, verdict, problem.verifier == "reasoning_gym", self._count)
        rule, hit = self._first_hit(candidate)
        extra: dict[str, Any] = {
            "question": problem.question,
            "gold": problem.gold,
            "source": problem.source,
            "licence": problem.licence,
            "kind": "trace",
        }
        correct = verdict.status == "correct" and trace.finish_reason == "stop"
        if hit is not None:
            extra |= {"rule": rule, "reason": hit.reason, "detail": hit.detail}
            return Outcome(_joined(item, extra), rule, hit.reason, problem.source, 0, correct)
        trained = candidate.num_tokens
        extra["num_tokens"] = trained + self.count_prompt(problem.question)
        extra["trained_tokens"] = trained
        return Outcome(_joined(item, extra), "", "", problem.source, trained, correct)

    def _first_hit(self, candidate: Candidate) -> tuple[str, Hit | None]:
        for name, check in self.rules:
            if (hit := check(candidate)) is not None:
                return name, hit
        return "", None

    def _count(self, candidate: Candidate) -> int:
        trace = candidate.trace
        if self.tokens is None:
            return trace.output_tokens
        return self.tokens(response_text(trace.thinking, trace.answer, self.form.tags))

    def _count_prompt(self, question: str) -> int:
        if self.tokens is None:
            return 0
        return sum(self.tokens(message["content"]) for message in messages(question, self.form.prompt))


def _joined(item: Item, extra: dict[str, Any]) -> bytes:
    """The trace's own line with its verdict and more fields; the trace is not written anew."""
    tail = msgspec.json.encode(extra)
    return b'%b, "verdict": %b, %b\n' % (item.trace.rstrip()[:-1], item.verdict.strip(), tail[1:])


_judge: Judge | None = None


def _start_worker(judging: Judging) -> None:
    global _judge
    _judge = Judge(judging)


def _judge_chunk(chunk: list[Item]) -> list[Outcome]:
    assert _judge is not None
    return [_judge.judge(item) for item in chunk]


def judge_all(chunks: Iterable[list[Item]], judging: Judging, workers: int) -> Iterator[list[Outcome]]:
    """Outcomes of each chunk in order; a few chunks a worker are in flight, so memory is bounded."""
    if workers == 0:
        judge = Judge(judging)
        for chunk in chunks:
            yield [judge.judge(item) for item in chunk]
        return
    flying: deque[Future[list[Outcome]]] = deque()
    # spawned, not forked: this process may run the threads of a verifier pool
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (judging,))
    with pool:
        for chunk in chunks:
            if len(flying) == workers * IN_FLIGHT_PER_WORKER:
                yield flying.popleft().result()
            flying.append(pool.submit(_judge_chunk, chunk))
        while flying:
            yield flying.popleft().result()
