"""From stored samples to results.json: every score with its interval, every comparison paired.

Reads the samples and verdicts of an eval directory, and for contamination training problems and kept traces.
The layout of results.json is documented in eval/results.md; its records are those of pipeline.report.results.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from eval.asking import Asked, Asking
from eval.forced import forced_name
from eval.scores import Array, cons_at_k, gap_recovered, holm, mean_score, paired, pass_at_1, pass_at_k
from pipeline.context import Context
from pipeline.errors import StageError
from pipeline.problems.overlap import Overlap, flagged_questions, overlap_of, trained_texts
from pipeline.recipe.schema import Compared
from pipeline.records import Problem, ProblemFile, is_correct, read_filtered
from pipeline.report.results import (
    POOLED,
    BudgetPoint,
    Consensus,
    Contamination,
    Estimate,
    ForcedPoint,
    Interval,
    PartScore,
    Results,
    Score,
    ScoreIntervals,
    TaskFacts,
    TaskResult,
)
from pipeline.run.contract import Counts
from pipeline.run.provenance import library_versions
from pipeline.sampling import Store
from pipeline.sampling.spending import last_words
from pipeline.verify.table import needed, versions_of

# which differences are reported, where both models were compared; an extra model is set against each of them
PAIRS = [
    ("student", "base"),
    ("student", "unpolished"),
    ("student", "teacher"),
    ("unpolished", "base"),
    ("teacher", "base"),
]
NUM_BUDGETS = 10
NO_CONSENSUS = "no meaning for programs"  # two that do the same are two texts
FAILED = "failed"  # the finish of a sample that could not be had
UNCOUNTED = -1  # tokens of a sample whose server does not count them

# What one model answered to one task: (questions, k) of SAMPLE. `correct` demands that the response came to
# its own end: a cut response is never correct. `extracted` is None without an answer.
Answers = NDArray[np.void]
SAMPLE = np.dtype(
    [("correct", bool), ("unverifiable", bool), ("extracted", object), ("tokens", int), ("finish", object)]
)
NO_SAMPLE = np.array((False, False, None, 0, FAILED), dtype=SAMPLE)


@dataclass(frozen=True, slots=True)
class Measured:
    """Answers by task and model, those with forced closing by budget too, and the rows of the files."""

    answers: dict[str, dict[str, Answers]]
    forced: dict[str, dict[str, dict[int, Answers]]]
    outputs: dict[str, int | None]


def read_all(asking: Asking, models: Sequence[str], tasks: Sequence[Asked]) -> Measured:
    """Everything that was sampled. StageError where a store is empty or a sample is not verified."""
    found = Measured({}, {}, {})

    def read(task: Asked, name: str) -> Answers:
        with asking.store(task.name, name) as store:
            found.outputs.update(store.outputs())
            return read_answers(store, task.problems, task.k)

    for task in tasks:
        found.answers[task.name] = {model: read(task, model) for model in models}
        found.forced[task.name] = {
            model: {budget: read(task, forced_name(model, budget)) for budget in asking.forced}
            for model in models
            if asking.forced
        }
    return found


def read_answers(store: Store, problems: Sequence[Problem], k: int) -> Answers:
    """Read a store of `k` samples a question. StageError where it is empty or holds an unverified sample."""
    rows = {problem.id: row for row, problem in enumerate(problems)}
    answers = np.full((len(problems), k), NO_SAMPLE)
    # where a sample was verified again the later verdict stands
    verdicts = {(verdict.problem_id, verdict.sample): verdict for verdict in store.verdicts()}
    for trace in store.traces():
        if trace.problem_id not in rows or trace.sample >= k:
            continue
        verdict = verdicts.get((trace.problem_id, trace.sample))
        if verdict is None:
            raise StageError(
                f"{store.verdicts_path}: has no verdict on problem {trace.problem_id}, sample "
                f"{trace.sample}; run eval again, it verifies what is missing"
            )
        answers[rows[trace.problem_id], trace.sample] = (
            is_correct(verdict.status, trace.finish_reason),
            verdict.status == "unverifiable",
            verdict.extracted,
            UNCOUNTED if trace.output_tokens is None else trace.output_tokens,
            trace.finish_reason,
        )
    failures = store.failures_path
    if (answers["finish"] == FAILED).all() and not (failures.is_file() and failures.stat().st_size):
        files = ", ".join(path.name for path in store.shards()) or f"no {store.prefix}-*.jsonl"
        raise StageError(
            f"{store.directory}: there is no sample of this task in {files}: the sample file is empty or "
            "of other questions. Run eval again with FORCE=1 (the directory is moved, not deleted)"
        )
    return answers


def counts_of(measured: Measured, max_failure_rate: float, directory: Path) -> Counts:
    """Samples wanted, taken, and failed for good; StageError where too many failed."""
    held = [answers for task in measured.answers.values() for answers in task.values()]
    held += [answers for task in measured.forced.values() for by in task.values() for answers in by.values()]
    wanted = sum(answers.size for answers in held)
    failed = sum(num_failed(answers) for answers in held)
    if failed > max_failure_rate * wanted:
        held_there = [path for path in directory.glob("*.failures.jsonl") if path.stat().st_size]
        last = max(held_there, key=lambda path: path.stat().st_mtime, default=None)
        raise StageError(
            f"{directory}: {failed:,} of {wanted:,} samples failed, more than generate.max_failure_rate "
            f"({max_failure_rate:.1%}). {f'{last_words(last)}; ' if last else ''}*.failures.jsonl there say "
            "why. Repair the cause and run eval again: it takes just those"
        )
    return Counts(wanted, wanted - failed, failed={"request": failed} if failed else {})


def num_failed(answers: Answers) -> int:
    return int((answers["finish"] == FAILED).sum())


def overlaps(context: Context, tasks: Sequence[Asked]) -> dict[str, Overlap]:
    """What of each task stands in the run's training problems and kept traces; with the pool of all."""
    questions = {task.name: task.problems for task in tasks}
    training = ProblemFile(context.directory("problems") / "problems.jsonl")
    kept = read_filtered(context.directory("filter") / "kept.jsonl")
    flags = flagged_questions(questions, training, trained_texts(kept, context.teacher.tags))
    found = {task.name: overlap_of(flags[task.name], task.problems) for task in tasks}
    return {**found, POOLED: pooled(list(found.values()))}


def pooled(parts: Sequence[Overlap]) -> Overlap:
    """The overlap of all tasks, question below question as their answers in the pool."""
    rules: dict[int, str] = {}
    total = 0
    for part in parts:
        rules |= {total + row: rule for row, rule in part.rules.items()}
        total += part.questions
    return Overlap(rules, total)


def results_of(
    asking: Asking,
    models: Mapping[str, dict[str, Any]],
    measured: Measured,
    tasks: Sequence[Asked],
    seen: Mapping[str, Overlap] | None,
) -> Results:
    """All of results.json. `models` is the identity of each, `seen` None where nothing was trained."""
    answers, forced = dict(measured.answers), measured.forced
    if len({task.k for task in tasks}) == 1:
        answers[POOLED] = {name: np.concatenate([held[name] for held in answers.values()]) for name in models}
    facts = {task.name: TaskFacts(task.version, task.problems[0].licence) for task in tasks}
    programs = {task.name for task in tasks if any(p.verifier == "code" for p in task.problems)}
    if programs:
        programs.add(POOLED)
    entries = {
        name: msgspec.structs.replace(
            score_task(held, asking.sampling.max_tokens, asking.seed, programs=name in programs),
            forced_budget=forced_points(forced.get(name, {}), asking.seed),
            task=facts.get(name),
            contamination=contamination_of(held, seen[name], asking.seed) if seen is not None else None,
        )
        for name, held in answers.items()
    }
    adjust({name: entries[name] for name in facts})
    verifiers = {name for task in tasks for p in task.problems for name in needed(p.verifier, p.metadata)}
    return Results(
        tasks=entries,
        models=dict(models),
        sampling=asking.sampling,
        prompt={task.name: task.prompt.name for task in tasks},
        verifier=versions_of(verifiers),
        versions=library_versions(),
    )


def score_task(
    models: Mapping[str, Answers], max_tokens: int, seed: int, *, programs: bool = False
) -> TaskResult:
    """One task: scores by model, paired differences, the recovered gap, the budget curve. `programs`: some of
    its answers are, so there is no most frequent one."""
    k = next(iter(models.values())).shape[1]
    shares = {name: answers["correct"].mean(axis=1) for name, answers in models.items()}
    gap = None
    if {"base", "student", "teacher"} <= shares.keys():
        gap = gap_recovered(shares["base"], shares["student"], shares["teacher"], seed)
    return TaskResult(
        models={name: score_model(answers, seed, programs=programs) for name, answers in models.items()},
        paired={
            f"{first}-{second}": paired(shares[first], shares[second], k, seed)
            for first, second in pairs_of(list(models))
        },
        gap_recovered=gap,
        budget={
            name: budget_curve(answers, max_tokens, seed)
            for name, answers in models.items()
            if counted(answers)
        },
    )


def pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    own = get_args(Compared)
    extra = [name for name in names if name not in own]
    wanted = PAIRS + [(name, other) for name in extra for other in own]
    return [pair for pair in wanted if pair[0] in names and pair[1] in names]


def adjust(tasks: Mapping[str, TaskResult]) -> None:
    """Put `p_holm` into each paired difference: over the tasks, for each pair of models on its own."""
    for pair in next(iter(tasks.values())).paired:
        for task, p in holm({task: entry.paired[pair].p for task, entry in tasks.items()}).items():
            found = tasks[task].paired
            found[pair] = msgspec.structs.replace(found[pair], p_holm=p)


def score_of(answers: Answers, seed: int) -> Estimate:
    """pass@1 of a model on the questions of a task, or on some of them."""
    return pass_at_1(answers["correct"].sum(axis=1), answers.shape[1], seed)


def score_model(answers: Answers, seed: int, *, programs: bool = False) -> Score:
    """All scores of one model on one task; shares and means are over questions, each with its k samples."""
    n, k = answers.shape
    correct, tokens = answers["correct"].sum(axis=1), answers["tokens"].mean(axis=1)
    first = score_of(answers, seed)
    cut = mean_score((answers["finish"] == "length").mean(axis=1), k, seed)
    silent = mean_score((answers["extracted"] == None).mean(axis=1), k, seed)  # noqa: E711 (elementwise)
    return Score(
        n=n,
        k=k,
        pass_at_1=first.value,
        ci95=first.ci95,
        pass_at_k={
            size: mean_score(pass_at_k(correct, k, size), max(k - size + 1, 1), seed)
            for size in sizes_up_to(k)
        },
        cons_at_k=Consensus(None, None, NO_CONSENSUS) if programs else consensus_of(answers, seed),
        mean_tokens=float(tokens.mean()) if counted(answers) else None,
        truncated=cut.value,
        no_answer=silent.value,
        unverifiable=float(answers["unverifiable"].mean()),
        failed=num_failed(answers),
        intervals=ScoreIntervals(
            mean_interval(tokens) if counted(answers) else None, truncated=cut.ci95, no_answer=silent.ci95
        ),
    )


def counted(answers: Answers) -> bool:
    """Whether the tokens of every sample are known: else there is no mean of them, and no curve."""
    return bool((answers["tokens"] != UNCOUNTED).all())


def consensus_of(answers: Answers, seed: int) -> Consensus:
    held = mean_score(cons_at_k(answers["extracted"].tolist(), answers["correct"].tolist()), 1, seed)
    return Consensus(held.value, held.ci95)


def sizes_up_to(k: int) -> list[int]:
    """2, 4, 8, ... and k itself: the sizes of which pass@k is reported (pass@1 stands on its own)."""
    powers = [2**i for i in range(1, k.bit_length()) if 2**i <= k]
    return sorted({*powers, k} - {1})


def budget_curve(answers: Answers, max_tokens: int, seed: int) -> list[BudgetPoint]:
    """pass@1 had every response been cut at a smaller number of tokens.

    This is exact, not a model: the first t tokens do not depend on a limit that lies beyond them, so the same
    samples with at most t tokens are what sampling with max_tokens = t would have finished.
    """
    curve = []
    for budget in budgets_below(max_tokens):
        within = (answers["correct"] & (answers["tokens"] <= budget)).sum(axis=1)
        score = pass_at_1(within, answers.shape[1], seed)
        curve.append(BudgetPoint(budget, score.value, score.ci95))
    return curve


def budgets_below(max_tokens: int) -> list[int]:
    """Ten budgets up to `max_tokens`, each 1 / sqrt(2) of the next."""
    return sorted({max(1, round(max_tokens / 2 ** (i / 2))) for i in range(NUM_BUDGETS)})


def forced_points(forced: Mapping[str, dict[int, Answers]], seed: int) -> dict[str, list[ForcedPoint]]:
    """pass@1 of each model where its thinking was closed after a number of tokens."""
    points: dict[str, list[ForcedPoint]] = {}
    for model, by_budget in forced.items():
        points[model] = []
        for budget, answers in sorted(by_budget.items()):
            score, tokens = score_of(answers, seed), float(answers["tokens"].mean())
            points[model].append(ForcedPoint(budget, score.value, score.ci95, tokens))
    return points


def contamination_of(models: Mapping[str, Answers], overlap: Overlap, seed: int) -> Contamination:
    """How many questions training has seen, by rule, and every score without them."""
    rest = [row for row in range(overlap.questions) if row not in overlap.rules]
    without = None
    if overlap.rules and rest:
        scores = {name: score_of(answers[rest], seed) for name, answers in models.items()}
        without = {name: PartScore(len(rest), score.value, score.ci95) for name, score in scores.items()}
    return Contamination(
        questions=overlap.questions,
        flagged=len(overlap.rules),
        rules=dict(Counter(overlap.rules.values()).most_common()),
        without_flagged=without,
    )


def mean_interval(values: Array) -> Interval | None:
    """Student's t interval for a mean that is not a share; None for one value, which says nothing of it."""
    n, mean = len(values), float(values.mean())
    if n < 2:
        return None
    half = -float(stdtrit(n - 1, 0.025)) * float(values.std(ddof=1)) / float(np.sqrt(n))
    return mean - half, mean + half
