"""The judge's work in a directory: each different case once, and the canaries among them.

    judge.cases.jsonl      what is asked, a Problem a line: `question` is the case, `id` is made of it
    judge.canaries.jsonl   the same for canaries; `source` is the kind
    judge.samples-*.jsonl  the judge's responses (pipeline.sampling.store)
    judge.audit.jsonl      the verdict on each canary

Two traces that give one question the same answer are one case. Memory: 100 bytes a case, and the problems
that canaries are made of.
"""

import hashlib
import heapq
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.recipe.schema import Judge
from pipeline.records import Problem, ProblemFile, Verdict, is_correct, problem_id, to_json, write_lines
from pipeline.sampling.keys import compact
from pipeline.verify.canaries import Canary, Subject, canaries, num_canaries, subject_of, with_others
from pipeline.verify.judge import LAYER, NEEDS_JUDGE, case_text
from pipeline.verify.table import DEFERRED

PREFIX = "judge.samples"
CASES, CANARIES = "judge.cases.jsonl", "judge.canaries.jsonl"
MAX_SUBJECTS = 20_000  # problems that canaries are made of


def needs_judge(verdict: Verdict, finish_reason: str, section: Judge) -> bool:
    """Whether a judge is asked about a trace: never where a verifier decided, nor about a cut response, which
    is never correct."""
    if not is_correct("correct", finish_reason) or verdict.status != "unverifiable" or verdict.layer == LAYER:
        return False
    return verdict.reason == NEEDS_JUDGE or verdict.verifier in section.second_opinion


class Cases:
    """A context manager that writes the cases; iterated, it streams them with the canaries between them."""

    def __init__(self, directory: Path, seed: int, share: float) -> None:
        self.canaries: list[Canary] = []
        self._seed = seed
        self._share = share
        self._paths = directory / CASES, directory / CANARIES
        self._file = self._paths[0].open("w", encoding="utf-8")
        self._ids: set[int] = set()
        self._subjects: list[tuple[int, str, Subject]] = []  # a heap that gives up what comes last
        self._drawn: set[str] = set()
        self._hidden: list[Problem] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._ids) + len(self._hidden)

    @property
    def paths(self) -> Sequence[Path]:
        return self._paths

    def add(self, problem: Problem, answer: str) -> str:
        """The id of the case that asks about this answer."""
        case = as_problem(case_text(problem.question, problem.gold, answer), problem.source)
        if compact(case.id) not in self._ids:
            self._ids.add(compact(case.id))
            self._file.write(to_json(case) + "\n")
            self._draw(problem)
        return case.id

    def _draw(self, problem: Problem) -> None:
        """Keep the problems of smallest hash."""
        if problem.id in self._drawn:
            return
        digest = hashlib.sha256(f"{self._seed}/{problem.id}".encode()).digest()
        subject = subject_of(problem.id, problem.question, problem.gold, problem.verifier, problem.metadata)
        entry = (-int.from_bytes(digest[:8], "big"), problem.id, subject)
        self._drawn.add(problem.id)
        if len(self._subjects) < MAX_SUBJECTS:
            heapq.heappush(self._subjects, entry)
        else:
            heapq.heappushpop(self._subjects, entry)

    def finish(self, workers: int) -> None:
        """All cases are added: make the canaries, with so many worker processes where verifiers are asked."""
        self._file.close()
        subjects = [subject for _, _, subject in sorted(self._subjects, reverse=True)]
        wanted = num_canaries(len(self._ids), self._share)
        self.canaries = canaries(verified(subjects, wanted, workers), wanted)
        cases = [as_problem(canary.text, canary.kind) for canary in self.canaries]
        write_lines(self._paths[1], cases)
        once = {case.id: case for case in cases if compact(case.id) not in self._ids}
        self._hidden = list(once.values())

    def __iter__(self) -> Iterator[Problem]:
        hidden = iter(self._hidden)
        every = max(len(self._ids) // (len(self._hidden) + 1), 1)
        for number, case in enumerate(ProblemFile(self._paths[0]), 1):
            yield case
            if number % every == 0 and (canary := next(hidden, None)) is not None:
                yield canary
        yield from hidden

    def discard(self) -> None:
        """Remove the files, where nothing was bought for them."""
        self._file.close()
        for path in self._paths:
            path.unlink(missing_ok=True)


def verified(subjects: Sequence[Subject], wanted: int, workers: int) -> list[Subject]:
    """The subjects with golds of others that their own verifiers find wrong."""
    from pipeline.verify import VerifierPool

    if all(subject.verifier in DEFERRED for subject in subjects):  # nobody but the judge could tell
        return with_others(subjects, wanted, lambda pairs: [True] * len(pairs))
    with VerifierPool(workers=workers) as pool:

        def refuses(pairs: Sequence[tuple[Subject, str]]) -> Iterator[bool]:
            rows = (
                ((one.problem_id, 0), one.verifier, one.reference, f"\\boxed{{{gold}}}", one.metadata)
                for one, gold in pairs
                if one.verifier not in DEFERRED
            )
            told = pool.map(rows)
            for subject, _ in pairs:
                yield subject.verifier in DEFERRED or next(told).status == "wrong"

        return with_others(subjects, wanted, refuses)


def as_problem(text: str, source: str) -> Problem:
    """A case as the loop takes it. The gold is for the judge's eyes, in the text."""
    return Problem(problem_id(text), text, "", "judge", source, "", {})


def audit_line(canary: Canary, status: str, reason: str) -> str:
    row = {"kind": canary.kind, "problem_id": canary.problem_id, "status": status, "reason": reason}
    return json.dumps({**row, "case": canary.text}, ensure_ascii=False) + "\n"
