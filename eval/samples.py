"""The stored samples of one task and one model as arrays: a row a question, a column a sample.

Reads `<task>.<model>.samples-*.jsonl` and its verdicts from an eval directory; writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import StageError
from pipeline.records import Problem, Trace, Verdict
from pipeline.sampling.store import Store


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model answered to one task, (questions, k) each, in the order of `problem_ids`.

    `correct` demands that the response came to its own end: a cut response is never correct. `extracted` is
    None without an answer. A sample that failed for good has no tokens, no answer and finish "failed".
    """

    problem_ids: tuple[str, ...]
    correct: NDArray[np.bool_]
    extracted: NDArray[np.object_]
    tokens: NDArray[np.int64]
    finish: NDArray[np.object_]
    unverifiable: NDArray[np.bool_]

    @property
    def k(self) -> int:
        return int(self.correct.shape[1])

    def part(self, chosen: Sequence[int]) -> "Answers":
        """The same for some of the questions, by row."""
        ids = tuple(self.problem_ids[row] for row in chosen)
        rows = np.asarray(chosen, dtype=np.int64)
        return Answers(
            ids,
            self.correct[rows],
            self.extracted[rows],
            self.tokens[rows],
            self.finish[rows],
            self.unverifiable[rows],
        )


def read_answers(store: Store, problems: Sequence[Problem], k: int) -> Answers:
    """Read a store of `k` samples a question. StageError where it is empty or holds an unverified sample."""
    rows = {problem.id: row for row, problem in enumerate(problems)}
    shape = (len(problems), k)
    answers = Answers(
        tuple(rows),
        np.zeros(shape, dtype=bool),
        np.full(shape, None, dtype=object),
        np.zeros(shape, dtype=np.int64),
        np.full(shape, "failed", dtype=object),
        np.zeros(shape, dtype=bool),
    )
    verdicts = {(verdict.problem_id, verdict.sample): verdict for verdict in store.verdicts()}
    found = 0
    for trace in store.traces():
        if trace.problem_id not in rows or trace.sample >= k:
            continue
        _enter(answers, rows[trace.problem_id], trace, _verdict_of(trace, verdicts, store))
        found += 1
    if not found:
        files = ", ".join(path.name for path in store.shards()) or f"no {store.prefix}-*.jsonl"
        raise StageError(
            f"{store.directory}: there is no sample of this task in {files}: the sample file is empty or "
            "of other questions. Run eval again with FORCE=1 (the directory is moved, not deleted)"
        )
    return answers


def _verdict_of(trace: Trace, verdicts: dict[tuple[str, int], Verdict], store: Store) -> Verdict:
    verdict = verdicts.get((trace.problem_id, trace.sample))
    if verdict is None:
        raise StageError(
            f"{store.verdicts_path}: has no verdict on problem {trace.problem_id}, sample {trace.sample}; "
            "run eval again, it verifies what is missing"
        )
    return verdict


def _enter(answers: Answers, row: int, trace: Trace, verdict: Verdict) -> None:
    at = row, trace.sample
    answers.correct[at] = verdict.status == "correct" and trace.finish_reason == "stop"
    answers.unverifiable[at] = verdict.status == "unverifiable"
    answers.extracted[at] = verdict.extracted
    answers.tokens[at] = trace.output_tokens
    answers.finish[at] = trace.finish_reason


def joined(parts: Sequence[Answers]) -> Answers:
    """All tasks as one, question below question; they must have the same k."""
    return Answers(
        tuple(name for part in parts for name in part.problem_ids),
        np.concatenate([part.correct for part in parts]),
        np.concatenate([part.extracted for part in parts]),
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.finish for part in parts]),
        np.concatenate([part.unverifiable for part in parts]),
    )
