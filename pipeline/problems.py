"""The problems stage: load, check each gold answer, dedupe, decontaminate, cap.

Reads the sources and the eval tasks of the recipe. Writes runs/<name>/problems/: problems.jsonl,
dropped.jsonl (every dropped row with its reason and what it matched), protected.jsonl (the eval questions,
which filter keeps out of traces), templates.json (runs of words ignored as a source's template) and
contaminated.jsonl (up to 20 examples of each decontamination rule, to be read).

    python -m pipeline problems --recipe recipes/demo.yaml
"""

import json
import logging
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.cards import task_card
from pipeline.decontaminate import EvalIndex, EvalQuestion, Match, Ngram, eval_questions, find_matches
from pipeline.dedupe import duplicates
from pipeline.errors import PipelineError, StageError, inside
from pipeline.recipe import CardTask, HubSource, ProceduralSource, Recipe, Source
from pipeline.records import Problem
from pipeline.revisions import resolved_revisions, unpinned_sources
from pipeline.rows import require_file, write_rows
from pipeline.sources import source_names
from pipeline.stage import Context, Counts, Plan, begin, hash_file
from pipeline.tasks import TaskProblems, draw_key, seeded_part, task_names, task_problems
from pipeline.verify.several import read_golds
from pipeline.verify.table import VERSIONS

log = logging.getLogger(__name__)

STAGE_VERSION = 1
EXAMPLES_PER_RULE = 20
# reasons of a verdict that may pass when it is asked for again
PASSING = ("timeout", "crash", "memory")

# one step's result: the problems that stay, and a row for each that goes
Step = tuple[list[Problem], list[dict[str, Any]]]


def run(context: Context, workers: int = 2) -> None:
    """Run the stage, or say that it is up to date. `workers` processes verify the gold answers."""
    where = context.start.recipe or context.recipe.name
    revisions = resolved_revisions(context, unpinned_sources(context.recipe))
    with inside(where):
        plan = plan_of(context.recipe, revisions)
    stage = begin(context.directory("problems"), plan, context.start)
    if stage is None:
        return
    with stage, inside(where):
        try:
            made = make_problems(context.recipe, revisions, workers)
        except PipelineError:
            stage.abandon()
            raise
        num_in, reasons = len(made.problems) + len(made.drops), made.reasons()
        rows = write_outputs(stage.directory, made, context.recipe.seed)
        counts = Counts(num_in, len(made.problems), reasons)
        stage.finish(counts, rows, notes=notes_of(made.problems, made.drops))
    log.info("problems: kept %s of %s; dropped %s", f"{counts.kept:,}", f"{num_in:,}", reasons or "none")


@dataclass(frozen=True, slots=True)
class Made:
    """All that the stage has found, before anything is written."""

    problems: list[Problem]
    drops: list[dict[str, Any]]
    protected: list[EvalQuestion]
    templates: dict[str, set[Ngram]]

    def reasons(self) -> dict[str, int]:
        return dict(Counter(drop["reason"] for drop in self.drops).most_common())


def make_problems(recipe: Recipe, revisions: dict[str, str], workers: int) -> Made:
    """Every step in order. A PipelineError leaves nothing behind."""
    names = source_names(recipe.problems.sources)
    procedural = {
        name
        for name, source in zip(names, recipe.problems.sources, strict=True)
        if isinstance(source, ProceduralSource)
    }
    questions = eval_questions(load_tasks(recipe, revisions))
    problems, drops = load(recipe, names, revisions)
    problems, bad = check_golds(problems, workers)
    problems, repeated = drop_duplicates(problems, procedural)
    matches, templates = find_matches(problems, procedural, EvalIndex(questions))
    problems, contaminated = drop_contaminated(problems, matches, recipe.problems.decontaminate)
    problems, over = cap(problems, names, recipe)
    made = Made(problems, [*drops, *bad, *repeated, *contaminated, *over], questions, templates)
    if not problems:
        raise StageError(
            f"problems: none of {len(made.drops):,} problems is left (dropped: {made.reasons()}); look at "
            "the sources of the recipe"
        )
    return made


def write_outputs(directory: Path, made: Made, seed: int) -> dict[str, int | None]:
    """Write all files; their rows, for the manifest."""
    contaminated = [drop for drop in made.drops if drop["reason"] == "contaminated"]
    ignored = {source: sorted(map(" ".join, runs)) for source, runs in made.templates.items() if runs}
    text = json.dumps(ignored, indent=1, ensure_ascii=False)
    (directory / "templates.json").write_text(text + "\n", encoding="utf-8")
    return {
        "problems.jsonl": write_rows(directory / "problems.jsonl", map(asdict, made.problems)),
        "dropped.jsonl": write_rows(directory / "dropped.jsonl", made.drops),
        "protected.jsonl": write_rows(directory / "protected.jsonl", map(asdict, made.protected)),
        "contaminated.jsonl": write_rows(directory / "contaminated.jsonl", examples_of(contaminated, seed)),
        "templates.json": None,
    }


def plan_of(recipe: Recipe, revisions: dict[str, str]) -> Plan:
    """Everything that decides which problems there are; local files go in by their content."""
    task_names(list(recipe.eval.tasks))
    cards = {t.task: task_card(t.task).identity for t in recipe.eval.tasks if isinstance(t, CardTask)}
    config = {
        "problems": recipe.problems.model_dump(),
        "eval_tasks": [task.model_dump() for task in recipe.eval.tasks],
        "task_cards": cards,
        "revisions": revisions,
        "verifiers": VERSIONS,
    }
    inputs: dict[str, str] = {}
    for key, entries in (("problems.sources", recipe.problems.sources), ("eval.tasks", recipe.eval.tasks)):
        for position, entry in enumerate(entries):
            if path := getattr(entry, "path", None):
                with inside(f"{key}[{position}]"):
                    inputs[path] = hash_file(require_file(Path(path)))
    return Plan("problems", STAGE_VERSION, config, inputs, recipe.seed)


def load_tasks(recipe: Recipe, revisions: dict[str, str]) -> list[TaskProblems]:
    """The eval tasks of the recipe with their questions."""
    tasks = []
    for position, task in enumerate(recipe.eval.tasks):
        card = task_card(task.task) if isinstance(task, CardTask) else None
        with inside(f"eval.tasks[{position}]"):
            tasks.append(task_problems(task, recipe.seed, revisions.get(card.hub or "") if card else None))
    return tasks


def load(recipe: Recipe, names: list[str], revisions: dict[str, str]) -> Step:
    """All rows of all sources, as problems or as drops (reserved, no_question, no_answer)."""
    from pipeline.sources import read_source

    problems: list[Problem] = []
    drops: list[dict[str, Any]] = []
    for position, (name, source) in enumerate(zip(names, recipe.problems.sources, strict=True)):
        named = source.model_copy(update={"name": name})
        revision = revisions.get(source.hub) if isinstance(source, HubSource) else None
        with inside(f"problems.sources[{position}]"):
            rows = list(read_source(named, recipe.seed, revision))
        for item in rows:
            if isinstance(item, Problem):
                problems.append(item)
            else:
                drops.append({"reason": item.reason, "source": name, "where": item.where, "row": item.row})
    return problems, drops


def check_golds(problems: list[Problem], workers: int) -> Step:
    """bad_gold: the verifier does not accept the problem's own gold answer as a response."""
    from tqdm import tqdm

    from pipeline.verify import VerifierPool

    kept, drops = [], []
    with VerifierPool(workers=workers) as pool:
        verdicts = tqdm(
            pool.map(map(row_of, problems)), "gold answers", len(problems), unit=" problems", disable=None
        )
        for problem, verdict in zip(problems, verdicts, strict=True):
            if verdict.reason in PASSING:  # a loaded machine must not decide which problems there are
                verdict = pool.submit(*row_of(problem)).result()
            if verdict.status == "correct":
                kept.append(problem)
            else:
                drops.append(drop_row(problem, "bad_gold", detail=f"{verdict.status}: {verdict.reason}"))
    return kept, drops


def row_of(problem: Problem) -> tuple[tuple[str, int], str, str, str, dict[str, Any]]:
    """The problem with its own gold as the response, as the verifier pool takes it."""
    return (problem.id, 0), problem.verifier, problem.gold, own_answer(problem), problem.metadata


def own_answer(problem: Problem) -> str:
    """The gold answer as a response would state it; of several golds the first."""
    golds = read_golds(problem.gold) if problem.verifier == "any" else []
    return f"\\boxed{{{golds[0] if golds else problem.gold}}}"


def drop_duplicates(problems: list[Problem], procedural: set[str]) -> Step:
    """duplicate and near_duplicate: the first of equals stays (pipeline.dedupe)."""
    found = duplicates(problems, procedural)
    drops = []
    for position, duplicate in sorted(found.items()):
        first = duplicate.first
        matched = {"id": first.id, "source": first.source, "question": first.question}
        drops.append(drop_row(problems[position], duplicate.rule, matched=matched, detail=duplicate.detail))
    return [problem for position, problem in enumerate(problems) if position not in found], drops


def drop_contaminated(problems: list[Problem], matches: dict[str, Match], enabled: bool) -> Step:
    """contaminated: an eval question of the recipe, or nearly one (pipeline.decontaminate)."""
    if not enabled:
        same = [match for match in matches.values() if match.rule in ("exact", "whole")]
        if same:
            raise StageError(
                f"{len(same):,} of {len(problems):,} training problems are questions of the eval task "
                f"{same[0].matched.task}, for example {same[0].matched.question[:120]!r}, and "
                "problems.decontaminate is false. Set it to true, or take another source or task"
            )
        return problems, []
    drops = [
        drop_row(p, "contaminated", rule=m.rule, matched=asdict(m.matched), detail=m.detail)
        for p in problems
        if (m := matches.get(p.id))
    ]
    return [problem for problem in problems if problem.id not in matches], drops


def examples_of(drops: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Up to 20 drops of each rule, drawn by the seed."""
    rows = []
    for rule in sorted({drop["rule"] for drop in drops}):
        hits = sorted((d for d in drops if d["rule"] == rule), key=lambda d: draw_key(seed, d["id"]))
        for hit in hits[:EXAMPLES_PER_RULE]:
            matched = hit["matched"]
            rows.append(
                {
                    "rule": rule,
                    "detail": hit["detail"],
                    "source": hit["source"],
                    "question": hit["question"],
                    "task": matched["task"],
                    "matched": matched["question"],
                }
            )
    return rows


def cap(problems: list[Problem], names: list[str], recipe: Recipe) -> Step:
    """over_limit and over_weight: a source's `limit`, then the proportions of those that state a `weight`."""
    drops: list[dict[str, Any]] = []
    by_source = {name: [p for p in problems if p.source == name] for name in names}
    limits = {
        name: getattr(source, "limit", None)
        for name, source in zip(names, recipe.problems.sources, strict=True)
    }
    for name, limit in limits.items():
        by_source[name], over = split_part(by_source[name], limit, recipe.seed)
        drops += [drop_row(problem, "over_limit", detail=f"limit {limit}") for problem in over]
    for name, size in weighted_sizes(by_source, names, recipe.problems.sources).items():
        by_source[name], over = split_part(by_source[name], size, recipe.seed)
        drops += [drop_row(problem, "over_weight", detail=f"weight allows {size}") for problem in over]
    return [problem for name in names for problem in by_source[name]], drops


def split_part(problems: list[Problem], size: int | None, seed: int) -> tuple[list[Problem], list[Problem]]:
    kept = seeded_part(problems, size, seed)
    ids = {problem.id for problem in kept}
    return kept, [problem for problem in problems if problem.id not in ids]


def weighted_sizes(
    by_source: dict[str, list[Problem]], names: list[str], sources: list[Source]
) -> dict[str, int]:
    """How many problems each source with a weight keeps: the most that stand in the weights' proportions."""
    weights = {n: s.weight for n, s in zip(names, sources, strict=True) if s.weight is not None}
    unit = min((len(by_source[name]) / weight for name, weight in weights.items()), default=0.0)
    return {name: round(unit * weight) for name, weight in weights.items()}


def drop_row(problem: Problem, reason: str, **why: Any) -> dict[str, Any]:
    return {"reason": reason, **why, **asdict(problem)}


def notes_of(problems: list[Problem], drops: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts that the manifest's totals do not show: by source, and by rule of decontamination."""
    sources = Counter(problem.source for problem in problems)
    dropped = Counter((drop["source"], drop["reason"]) for drop in drops)
    return {
        "kept_by_source": dict(sources),
        "dropped_by_source": {
            source: {reason: n for (name, reason), n in dropped.items() if name == source}
            for source in {name: None for name, _ in dropped}
        },
        "contaminated_by_rule": dict(Counter(d["rule"] for d in drops if d["reason"] == "contaminated")),
        "licences": dict(Counter(problem.licence for problem in problems)),
    }
