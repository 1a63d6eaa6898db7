"""The problems stage: load, check each gold answer, dedupe, decontaminate, cap.

Reads the sources and the eval tasks of the recipe. Writes runs/<name>/problems/: problems.jsonl,
dropped.jsonl (every dropped row with its reason and what it matched), protected.jsonl (the eval questions,
which filter keeps out of traces), templates.json (runs of words ignored as a source's template) and
contaminated.jsonl (up to 20 examples of each decontamination rule, to be read).

    python -m pipeline problems --recipe recipes/demo.yaml
"""

import json
import logging
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.context import Context
from pipeline.errors import StageError, VerifyError, inside
from pipeline.flags import WorkerFlags
from pipeline.problems.dedupe import duplicates
from pipeline.problems.overlap import Match, eval_questions, find_matches
from pipeline.problems.sources import read_source, verifiers_in_use
from pipeline.problems.tasks import TaskProblems, draw_key, seeded_part, task_problems
from pipeline.recipe.schema import HubSource, ProceduralSource, Recipe, Source, source_names
from pipeline.records import Problem, Verdict, lot_of, write_lines
from pipeline.rows import require_file, write_rows
from pipeline.run.contract import Counts, Plan, StageRun, begin, hash_file
from pipeline.run.revisions import resolved, unpinned_sources
from pipeline.verify.any import read_golds
from pipeline.verify.code import Tests, read_gold
from pipeline.verify.table import DEFERRED

log = logging.getLogger(__name__)

STAGE_VERSION = 2
EXAMPLES_PER_RULE = 20
# reasons of a verdict that may pass when it is asked for again
PASSING = ("timeout", "crash", "memory")

# one step's result: the problems that stay, and a row for each that goes
Step = tuple[list[Problem], list[dict[str, Any]]]


def run(context: Context, flags: WorkerFlags | None = None) -> None:
    """Run the stage, or say that it is up to date. Its worker processes verify the gold answers."""
    where = context.start.recipe or context.recipe.name
    with inside(where):
        revisions = resolved(context.run, unpinned_sources(context.recipe, context.cards))
        plan = plan_of(context, revisions)
    stage = begin(context.directory("problems"), plan, context.start)
    if stage is None:
        return
    with stage, inside(where):
        make_problems(context, revisions, (flags or WorkerFlags()).num_workers, stage)


def make_problems(context: Context, revisions: dict[str, str], workers: int, stage: StageRun) -> None:
    """Every step in order. Nothing is written before all of them are done."""
    recipe, sources = context.recipe, context.recipe.problems.sources
    names = source_names(sources)
    procedural = {
        name for name, source in zip(names, sources, strict=True) if isinstance(source, ProceduralSource)
    }
    questions = eval_questions(load_tasks(context, revisions))
    problems, drops = load(recipe, names, revisions)
    problems, bad = check_golds(problems, workers)
    problems, repeated = drop_duplicates(problems, procedural)
    matches, templates = find_matches(problems, procedural, questions)
    problems, contaminated = drop_contaminated(problems, matches, recipe.problems.decontaminate)
    problems, over = cap(problems, names, recipe)
    drops += [*bad, *repeated, *contaminated, *over]
    reasons = dict(Counter(drop["reason"] for drop in drops).most_common())
    if not problems:
        raise StageError(
            f"problems: none of {len(drops):,} problems is left (dropped: {reasons}); look at the sources of "
            "the recipe"
        )
    directory = stage.directory
    ignored = {source: sorted(map(" ".join, runs)) for source, runs in templates.items() if runs}
    text = json.dumps(ignored, indent=1, ensure_ascii=False)
    (directory / "templates.json").write_text(text + "\n", encoding="utf-8")
    examples = examples_of(contaminated, recipe.seed)
    rows: dict[str, int | None] = {
        "problems.jsonl": write_lines(directory / "problems.jsonl", problems),
        "dropped.jsonl": write_rows(directory / "dropped.jsonl", drops),
        "protected.jsonl": write_rows(directory / "protected.jsonl", map(asdict, questions)),
        "contaminated.jsonl": write_rows(directory / "contaminated.jsonl", examples),
        "templates.json": None,
    }
    num_in = len(problems) + len(drops)
    stage.finish(Counts(num_in, len(problems), reasons), rows, notes=notes_of(problems, drops))
    log.info("problems: kept %s of %s; dropped %s", f"{len(problems):,}", f"{num_in:,}", reasons or "none")


def plan_of(context: Context, revisions: dict[str, str]) -> Plan:
    """Everything that decides which problems there are; local files go in by their content."""
    recipe = context.recipe
    section = recipe.problems.model_dump(exclude_defaults=True)
    for source in section["sources"]:
        if "majority" in source:  # of what share it is, filter asks
            source["majority"] = {"of": source["majority"].get("of")}
    config = {
        "problems": section,
        "eval_tasks": [task.model_dump(exclude_defaults=True) for task in recipe.eval.tasks],
        "task_cards": {name: card.identity for name, card in context.cards.tasks.items()},
        "revisions": revisions,
        "verifiers": verifiers_in_use(recipe.problems),
    }
    inputs: dict[str, str] = {}
    for key, entries in (("problems.sources", recipe.problems.sources), ("eval.tasks", recipe.eval.tasks)):
        for position, entry in enumerate(entries):
            if path := getattr(entry, "path", None):
                with inside(f"{key}[{position}]"):
                    inputs[path] = hash_file(require_file(Path(path)))
    return Plan("problems", STAGE_VERSION, config, inputs, recipe.seed)


def load_tasks(context: Context, revisions: dict[str, str]) -> list[TaskProblems]:
    """The eval tasks of the recipe with their questions."""
    tasks = []
    for position, task in enumerate(context.recipe.eval.tasks):
        card = context.task_card(task)
        revision = revisions.get(card.hub or "") if card else None
        with inside(f"eval.tasks[{position}]"):
            tasks.append(task_problems(task, card, context.recipe.seed, revision))
    return tasks


def load(recipe: Recipe, names: list[str], revisions: dict[str, str]) -> Step:
    """All rows of all sources, as problems or as drops (reserved, no_question, no_answer)."""
    problems: list[Problem] = []
    drops: list[dict[str, Any]] = []
    for position, (name, source) in enumerate(zip(names, recipe.problems.sources, strict=True)):
        known: dict[str, str | None] = {"name": name}
        if isinstance(source, HubSource):
            known["revision"] = source.revision or revisions.get(source.hub)
        with inside(f"problems.sources[{position}]"):
            rows = list(read_source(source.model_copy(update=known), recipe.seed))
        for item in rows:
            if isinstance(item, Problem):
                problems.append(item)
            else:
                row = {"reason": item.reason, "source": name, "where": item.where, "row": item.row}
                drops.append(row | ({"detail": item.detail} if item.detail else {}))
    return problems, drops


def check_golds(problems: list[Problem], workers: int) -> Step:
    """bad_gold: the verifier does not accept the problem's own gold answer as a response.

    Those that a judge or a majority decides have none that could be asked about here.
    """
    from tqdm import tqdm

    from pipeline.verify import VerifierPool

    kept, drops = [], []
    with VerifierPool(workers=workers) as pool:
        checked = [problem for problem in problems if problem.verifier not in DEFERRED]
        verdicts = tqdm(
            pool.map(map(row_of, checked)), "gold answers", len(checked), unit=" problems", disable=None
        ).__iter__()
        for problem in problems:
            if problem.verifier in DEFERRED:
                kept.append(problem)
                continue
            verdict = next(verdicts)
            if verdict.reason in PASSING:  # a loaded machine must not decide which problems there are
                verdict = pool.submit(*row_of(problem)).result()
            if fault := gold_fault(problem, verdict):
                drops.append(drop_row(problem, "bad_gold", detail=fault))
            else:
                kept.append(problem)
    return kept, drops


def idle_program(gold: str) -> str:
    """A program that does nothing, and defines what the tests call."""
    try:
        tests = read_gold(gold)
    except VerifyError:
        return "pass"
    names = tests.names if isinstance(tests, Tests) else ()
    return "\n".join(f"def {name}(*given, **named): return None" for name in names) or "pass"


def gold_fault(problem: Problem, verdict: Verdict) -> str:
    """What is wrong with a gold by the verdict on it, "" where nothing is. Tests for which there is no right
    program must run, and a program that does nothing must not pass them."""
    said = f"{verdict.status}: {verdict.reason}"
    if problem.verifier != "code":
        return "" if verdict.status == "correct" else said
    if "solution" in problem.metadata:
        return "" if verdict.status == "correct" else f"its own solution is {said}: {verdict.extracted}"
    if verdict.status == "correct":
        return "a program that does nothing passes the tests"
    return "" if verdict.status == "wrong" else f"the tests do not run: {verdict.reason}: {verdict.extracted}"


def row_of(problem: Problem) -> tuple[tuple[str, int], str, str, str, dict[str, Any]]:
    """The problem as the verifier pool takes it, with its own gold as the response: of several the first; of
    tests a program that passes them, where there is one, else one that does nothing."""
    golds = read_golds(problem.gold) if problem.verifier == "any" else []
    response = f"\\boxed{{{golds[0] if golds else problem.gold}}}"
    if problem.verifier == "code":
        response = f"```\n{problem.metadata.get('solution') or idle_program(problem.gold)}\n```"
    return (problem.id, 0), problem.verifier, problem.gold, response, problem.metadata


def drop_duplicates(problems: list[Problem], procedural: set[str]) -> Step:
    """duplicate and near_duplicate: the first of equals stays (pipeline.problems.dedupe)."""
    found = duplicates(problems, procedural)
    drops = []
    for position, duplicate in sorted(found.items()):
        first = duplicate.first
        matched = {"id": first.id, "source": first.source, "question": first.question}
        drops.append(drop_row(problems[position], duplicate.rule, matched=matched, detail=duplicate.detail))
    return [problem for position, problem in enumerate(problems) if position not in found], drops


def drop_contaminated(problems: list[Problem], matches: dict[str, Match], enabled: bool) -> Step:
    """contaminated: an eval question of the recipe, or nearly one (pipeline.problems.overlap)."""
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
    """Up to 20 of the contaminated drops of each rule, drawn by the seed."""
    by_rule: dict[str, list[dict[str, Any]]] = defaultdict(list)
    # a problem's lot, by which it is drawn, is of these three
    for drop in sorted(drops, key=lambda d: draw_key(seed, lot_of(d["question"], d["gold"], d["verifier"]))):
        by_rule[drop["rule"]].append(drop)
    return [
        {
            **{key: hit[key] for key in ("rule", "detail", "source", "question")},
            "task": hit["matched"]["task"],
            "matched": hit["matched"]["question"],
        }
        for rule in sorted(by_rule)
        for hit in by_rule[rule][:EXAMPLES_PER_RULE]
    ]


def cap(problems: list[Problem], names: list[str], recipe: Recipe) -> Step:
    """over_limit and over_weight: a source's `limit`, then the proportions of those that state a `weight`."""
    drops: list[dict[str, Any]] = []
    sources = recipe.problems.sources
    by_source = {name: [p for p in problems if p.source == name] for name in names}

    def cut(name: str, size: int | None, reason: str, detail: str) -> None:
        kept = seeded_part(by_source[name], size, recipe.seed)
        ids = {problem.id for problem in kept}
        over = [problem for problem in by_source[name] if problem.id not in ids]
        drops.extend(drop_row(problem, reason, detail=detail) for problem in over)
        by_source[name] = kept

    for name, source in zip(names, sources, strict=True):
        limit = getattr(source, "limit", None)
        cut(name, limit, "over_limit", f"limit {limit}")
    for name, size in weighted_sizes(by_source, names, sources).items():
        cut(name, size, "over_weight", f"weight allows {size}")
    return [problem for name in names for problem in by_source[name]], drops


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
        "without_gold": dict(Counter(p.source for p in problems if p.verifier == "majority")),
    }
