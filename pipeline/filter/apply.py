"""Apply the rules to chunks of traces, in worker processes that are given bytes and give bytes back.

An item is a trace's line with those of its verdict and its problem; its outcome is the row for kept.jsonl or
dropped.jsonl, ready to be written, with what selection needs to know.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from multiprocessing import get_context, parent_process
from typing import Any, NamedTuple

from pipeline.filter.examples import Format, token_counter, trained_text
from pipeline.filter.joins import Item
from pipeline.filter.rules import Candidate, Hit, bind_rules, correct
from pipeline.problems.overlap import EvalIndex, EvalQuestion, Ngram
from pipeline.recipe.rule_entry import RuleEntry
from pipeline.records import (
    PROBLEM,
    UNREADABLE,
    Trace,
    Verdict,
    filtered_line,
    is_correct,
    line_decoder,
    with_outcome,
)
from pipeline.render import split_response
from pipeline.run.lifetime import die_with_parent

IN_FLIGHT_PER_WORKER = 3
BARRED = "eval_set"  # stands as the rule where a problem is barred
CHARACTERS_A_TOKEN = 4  # about, where nobody has counted the tokens of a response
STUDENT = "student"  # the rule that no recipe names, behind all others


class Outcome(NamedTuple):
    """`reason` is empty where every rule let the trace pass; `fault` says why a line is not a trace.
    `spare`: it is wrong, and every other rule lets it pass."""

    row: bytes
    rule: str
    reason: str
    source: str
    trained_tokens: int
    correct: bool
    fault: str = ""
    spare: bool = False


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All that a worker is told once: rules as in the recipe, eval questions, and how examples look.
    `spares`: wrong traces may be kept (pipeline.filter.unsolved). `barred` are problems that the eval set
    holds since, with the question (pipeline.problems.eval_sets)."""

    rules: list[RuleEntry]
    form: Format
    questions: list[EvalQuestion] = field(default_factory=list)
    templates: dict[str, set[Ngram]] = field(default_factory=dict)
    spares: bool = False
    barred: dict[str, str] = field(default_factory=dict)


class RuleWorker:
    """The bound rules and the tokenizer of one process."""

    def __init__(self, rule_set: RuleSet) -> None:
        self.form = rule_set.form
        self.spares, self.barred = rule_set.spares, rule_set.barred
        self.rules = bind_rules(rule_set.rules, EvalIndex(rule_set.questions, rule_set.templates))
        path = rule_set.form.tokenizer
        self.tokens: Callable[[str], int] | None = token_counter(path) if path else None
        self.read_trace: Callable[[bytes], Trace] = line_decoder(Trace)
        self.read_verdict: Callable[[bytes], Verdict] = line_decoder(Verdict)
        self.read_problem = lru_cache(maxsize=64)(PROBLEM.decode)
        self.count_prompt = lru_cache(maxsize=64)(self._count_prompt)

    def apply(self, item: Item) -> Outcome:
        try:
            trace = self.read_trace(item.trace)
        except UNREADABLE as error:  # msgspec's ValidationError names the field
            return Outcome(b"", "", "", "", 0, False, str(error))
        problem, verdict = self.read_problem(item.problem), self.read_verdict(item.verdict)
        split = split_response(trace.response, self.form.teacher)
        candidate = Candidate(problem, trace, verdict, split, self._count)
        checks = chain(self.rules, [(STUDENT, self._trainable)])
        found = ((name, check(candidate)) for name, check in checks)
        hits: Iterator[tuple[str, Hit]] = ((name, hit) for name, hit in found if hit is not None)
        if problem.id in self.barred:
            hits = iter([(BARRED, Hit("contaminated", self.barred[problem.id][:300]))])
        rule, hit = next(hits, ("", None))
        more: dict[str, Any] = {
            "question": problem.question,
            "gold": problem.gold,
            "source": problem.source,
            "licence": problem.licence,
            "kind": "trace",
        }
        if "gold_from" in problem.metadata:
            more["gold_from"] = problem.metadata["gold_from"]
        wrong = self.spares and rule == correct.__name__ and verdict.status == "wrong"
        spare = wrong and next(hits, None) is None
        trained = 0
        if hit is None or spare:
            trained = candidate.num_tokens
            more |= {
                "num_tokens": trained + self.count_prompt(problem.question, problem.source),
                "trained_tokens": trained,
            }
        else:
            more |= {"rule": rule, "reason": hit.reason, "detail": hit.detail}
        row = filtered_line(item.trace, item.verdict, more)
        if spare and hit is not None:  # at the end, where it can be taken off again
            row = with_outcome(row, rule, hit.reason, hit.detail)
        right = is_correct(verdict.status, trace.finish_reason)
        reason = hit.reason if hit else ""
        return Outcome(row, rule, reason, problem.source, trained, right, spare=spare)

    def _trainable(self, candidate: Candidate) -> Hit | None:
        """The last rule of every recipe: what train would refuse is not kept."""
        reason = self.form.stray_mark(candidate.split)
        return None if reason is None else Hit(reason)

    def _count(self, candidate: Candidate) -> int:
        if self.tokens is None:
            counted = candidate.trace.output_tokens
            return len(candidate.trace.response) // CHARACTERS_A_TOKEN if counted is None else counted
        return self.tokens(trained_text(candidate.split, self.form.student))

    def _count_prompt(self, question: str, source: str) -> int:
        if self.tokens is None:
            return 0
        return sum(self.tokens(turn["content"]) for turn in self.form.prompt.messages(question, source))


_worker: RuleWorker | None = None


def _start_worker(rule_set: RuleSet) -> None:
    global _worker
    if (parent := parent_process()) is not None and parent.pid is not None:
        die_with_parent(parent.pid)
    _worker = RuleWorker(rule_set)


def _apply_to_chunk(chunk: Sequence[Item]) -> list[Outcome]:
    assert _worker is not None
    return [_worker.apply(item) for item in chunk]


def apply_rules(
    chunks: Iterable[Sequence[Item]], rule_set: RuleSet, workers: int
) -> Iterator[tuple[Item, Outcome]]:
    """Items in order, each with its outcome; a few chunks a worker are in flight, so memory is bounded.

    A single worker is this process itself.
    """
    if workers == 1:
        worker = RuleWorker(rule_set)
        yield from ((item, worker.apply(item)) for chunk in chunks for item in chunk)
        return
    flying: deque[tuple[Sequence[Item], Future[list[Outcome]]]] = deque()

    def landed() -> Iterator[tuple[Item, Outcome]]:
        chunk, future = flying.popleft()
        return zip(chunk, future.result(), strict=True)

    # spawned, not forked: this process may run the threads of a verifier pool
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (rule_set,)) as pool:
        for chunk in chunks:
            if len(flying) == workers * IN_FLIGHT_PER_WORKER:
                yield from landed()
            flying.append((chunk, pool.submit(_apply_to_chunk, chunk)))
        while flying:
            yield from landed()
