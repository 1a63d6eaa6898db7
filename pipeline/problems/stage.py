"""The problems stage: load, check each gold answer, dedupe, decontaminate, cap.

Reads the sources and the eval tasks of the recipe. Writes runs/<name>/problems/: problems.jsonl,
dropped.jsonl (every dropped row with its reason and what it matched), protected.jsonl (the eval questions,
which filter keeps out of traces), templates.json (runs of words ignored as a source's template) and
contaminated.jsonl (up to 20 examples of each decontamination rule, to be read).

    python -m pipeline problems --recipe recipes/demo.yaml
"""

import json
import logging
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.context import Context
from pipeline.errors import StageError, VerifyError, inside
from pipeline.flags import WorkerFlags
from pipeline.problems.dedupe import duplicates
from pipeline.problems.eval_sets import searched_again
from pipeline.problems.held import Drops, Held
from pipeline.problems.overlap import EvalIndex, Match, eval_questions, find_matches
from pipeline.problems.sources import read_source, verifiers_in_use
from pipeline.problems.tasks import TaskProblems, draw_key, task_problems
from pipeline.recipe.schema import Recipe
from pipeline.recipe.sources import HubSource, ProceduralSource, Source, source_names
from pipeline.records import PROBLEM, Problem, Verdict, lot_of
from pipeline.rows import digests_of, write_rows
from pipeline.run.contract import Counts, Plan, StageRun, begin
from pipeline.run.lifetime import SCRATCH
from pipeline.run.revisions import resolved, unpinned_sources
from pipeline.verify.any import read_golds
from pipeline.verify.code import Tests, read_gold
from pipeline.verify.table import DEFERRED

log = logging.getLogger(__name__)

STAGE_VERSION = 2
EXAMPLES_PER_RULE = 20
# reasons of a verdict that may pass when it is asked for again
PASSING = ("timeout", "crash", "memory")


def run(context: Context, flags: WorkerFlags | None = None) -> None:
    """Run the stage, or say that it is up to date. Its worker processes verify the gold answers."""
    where = context.start.recipe or context.recipe.name
    with inside(where):
        revisions = resolved(context.run, unpinned_sources(context.recipe, context.cards))
        plan = plan_of(context, revisions)
        if searched_again(context, plan, lambda: load_tasks(context, revisions)):
            return
    stage = begin(context.directory("problems"), plan, context.start)
    if stage is None:
        return
    with stage, inside(where):
        make_problems(context, revisions, (flags or WorkerFlags()).num_workers, stage)


def make_problems(context: Context, revisions: dict[str, str], workers: int, stage: StageRun) -> None:
    """Every step in order, over problems that stay on disk. Nothing is put in place before all is done."""
    recipe, names = context.recipe, source_names(context.recipe.problems.sources)
    procedural = {
        name
        for name, source in zip(names, recipe.problems.sources, strict=True)
        if isinstance(source, ProceduralSource)
    }
    questions = eval_questions(load_tasks(context, revisions))
    scratch = stage.directory / SCRATCH / "steps"
    scratch.mkdir(parents=True)
    with Held(scratch / "held.jsonl") as held, Drops(scratch / "dropped.jsonl") as drops:
        load(recipe, names, revisions, held, drops)
        drop_bad_golds(held, drops, workers)
        drop_duplicates(held, drops, procedural)
        index = EvalIndex(questions)
        index.learn_templates(p for _, p in held.living() if p.source not in procedural)
        examples = Examples(recipe.seed)
        matches = find_matches(held.living(), procedural, index)
        if recipe.problems.decontaminate:
            drop_contaminated(held, drops, matches, examples)
        else:
            refuse_contaminated(held.num_living, matches)
        cap(held, drops, names, recipe)
        if not held.num_living:
            hint = "".join(f". {reason}: {detail}" for reason, detail in list(drops.details.items())[:1])
            raise StageError(
                f"problems: none of {drops.total:,} problems is left (dropped: {reasons_of(drops)}); look at "
                f"the sources of the recipe{hint}"
            )
        kept = write_living(held, scratch / "problems.jsonl")
    ignored = {source: sorted(map(" ".join, runs)) for source, runs in index.templates.items() if runs}
    text = json.dumps(ignored, indent=1, ensure_ascii=False)
    (scratch / "templates.json").write_text(text + "\n", encoding="utf-8")
    rows: dict[str, int | None] = {
        "problems.jsonl": held.num_living,
        "dropped.jsonl": drops.total,
        "protected.jsonl": write_rows(scratch / "protected.jsonl", map(asdict, questions)),
        "contaminated.jsonl": write_rows(scratch / "contaminated.jsonl", examples.rows()),
        "templates.json": None,
    }
    for name in rows:
        (scratch / name).replace(stage.directory / name)
    num_in, reasons = held.num_living + drops.total, reasons_of(drops)
    stage.finish(Counts(num_in, held.num_living, reasons), rows, notes=notes_of(kept, drops))
    log.info("problems: kept %s of %s; dropped %s", f"{held.num_living:,}", f"{num_in:,}", reasons or "none")


def plan_of(context: Context, revisions: dict[str, str]) -> Plan:
    """Everything that decides which problems there are; local files go in by their content."""
    recipe = context.recipe
    section = recipe.problems.model_dump(exclude_defaults=True)
    for source in section["sources"]:
        source.pop("prompt", None)  # how it is asked changes no problem
        if "majority" in source:  # of what share it is, filter asks
            source["majority"] = {"of": source["majority"].get("of")}
    config = {
        "problems": section,
        "eval_tasks": [
            task.model_dump(exclude={"prompt"}, exclude_defaults=True) for task in recipe.eval.tasks
        ],
        "task_cards": {name: card.identity for name, card in context.cards.tasks.items()},
        "revisions": revisions,
        "verifiers": verifiers_in_use(recipe.problems),
    }
    inputs: dict[str, str] = {}
    for key, entries in (("problems.sources", recipe.problems.sources), ("eval.tasks", recipe.eval.tasks)):
        for position, entry in enumerate(entries):
            with inside(f"{key}[{position}]"):
                inputs |= digests_of(getattr(entry, "path", None) or [])
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


def load(recipe: Recipe, names: list[str], revisions: dict[str, str], held: Held, drops: Drops) -> None:
    """All rows of all sources, as problems or as drops (reserved, no_question, no_answer)."""
    for position, (name, source) in enumerate(zip(names, recipe.problems.sources, strict=True)):
        known: dict[str, str | None] = {"name": name}
        if isinstance(source, HubSource):
            known["revision"] = source.revision or revisions.get(source.hub)
        with inside(f"problems.sources[{position}]"):
            for item in read_source(source.model_copy(update=known), recipe.seed):
                if isinstance(item, Problem):
                    held.append(item)
                else:
                    row = {"reason": item.reason, "source": name, "where": item.where, "row": item.row}
                    drops.add(row | ({"detail": item.detail} if item.detail else {}))


def drop_bad_golds(held: Held, drops: Drops, workers: int) -> None:
    """bad_gold: the verifier does not accept the problem's own gold answer as a response.

    Those that are decided after sampling have none that could be asked about here.
    """
    from tqdm import tqdm

    from pipeline.verify import VerifierPool

    with VerifierPool(workers=workers) as pool:
        told = (problem for _, problem in held.living() if problem.verifier not in DEFERRED)
        verdicts = pool.map(map(row_of, told))
        bar = tqdm(held.living(), "gold answers", held.num_living, unit=" problems", disable=None)
        for position, problem in bar:
            if problem.verifier in DEFERRED:
                continue
            verdict = next(verdicts)
            if verdict.reason in PASSING:  # a loaded machine must not decide which problems there are
                verdict = pool.submit(*row_of(problem)).result()
            if fault := gold_fault(problem, verdict):
                held.drop(position)
                drops.add(drop_row(problem, "bad_gold", detail=fault))


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


def drop_duplicates(held: Held, drops: Drops, procedural: set[str]) -> None:
    """duplicate and near_duplicate: the first of equals stays (pipeline.problems.dedupe)."""
    for duplicate in duplicates(held, procedural):
        first = held[duplicate.first]
        matched = {"id": first.id, "source": first.source, "question": first.question}
        row = drop_row(held[duplicate.position], duplicate.rule, matched=matched, detail=duplicate.detail)
        held.drop(duplicate.position)
        drops.add(row)


def drop_contaminated(
    held: Held, drops: Drops, matches: Iterable[tuple[int, Match]], examples: "Examples"
) -> None:
    """contaminated: an eval question of the recipe, or nearly one (pipeline.problems.overlap)."""
    for position, match in matches:
        why = {"rule": match.rule, "matched": asdict(match.matched), "detail": match.detail}
        row = drop_row(held[position], "contaminated", **why)
        held.drop(position)
        drops.add(row)
        examples.add(row)


def refuse_contaminated(num_problems: int, matches: Iterable[tuple[int, Match]]) -> None:
    """Without decontamination the very questions of a task are an error."""
    same = [match for _, match in matches if match.rule in ("exact", "whole")]
    if same:
        raise StageError(
            f"{len(same):,} of {num_problems:,} training problems are questions of the eval task "
            f"{same[0].matched.task}, for example {same[0].matched.question[:120]!r}, and "
            "problems.decontaminate is false. Set it to true, or take another source or task"
        )


class Examples:
    """Up to 20 of the contaminated drops of each rule, drawn by the seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._by_rule: dict[str, list[tuple[bytes, int, dict[str, Any]]]] = defaultdict(list)
        self._seen = 0

    def add(self, drop: dict[str, Any]) -> None:
        self._seen += 1
        held = self._by_rule[drop["rule"]]
        # a problem's lot, by which it is drawn, is of these three
        lot = lot_of(drop["question"], drop["gold"], drop["verifier"])
        insort(held, (draw_key(self._seed, lot), self._seen, drop))
        del held[EXAMPLES_PER_RULE:]

    def rows(self) -> Iterator[dict[str, Any]]:
        for rule in sorted(self._by_rule):
            for _, _, hit in self._by_rule[rule]:
                yield {
                    **{key: hit[key] for key in ("rule", "detail", "source", "question")},
                    "task": hit["matched"]["task"],
                    "matched": hit["matched"]["question"],
                }


def cap(held: Held, drops: Drops, names: list[str], recipe: Recipe) -> None:
    """over_limit and over_weight: a source's `limit`, then the proportions of those that state a `weight`."""
    import numpy

    sources = recipe.problems.sources
    if all(source.weight is None and getattr(source, "limit", None) is None for source in sources):
        return
    number = {name: place for place, name in enumerate(names)}
    # position, source, and the problem's place in the draw (see seeded_part), which orders as its bytes do
    columns = [("position", "i8"), ("source", "i4"), ("draw", "u8")]
    rows = (
        (position, number[p.source], int.from_bytes(draw_key(recipe.seed, p.lot), "big"))
        for position, p in held.living()
    )
    table = numpy.fromiter(rows, dtype=columns)
    by_source = {name: table[table["source"] == number[name]] for name in names}

    def cut(name: str, size: int | None, reason: str, detail: str) -> None:
        there = by_source[name]
        if size is None or size >= len(there):
            return
        chosen = numpy.zeros(len(there), dtype=bool)
        chosen[numpy.argsort(there["draw"], kind="stable")[:size]] = True
        for position in map(int, there["position"][~chosen]):
            drops.add(drop_row(held[position], reason, detail=detail))
            held.drop(position)
        by_source[name] = there[chosen]

    for name, source in zip(names, sources, strict=True):
        limit = getattr(source, "limit", None)
        cut(name, limit, "over_limit", f"limit {limit}")
    for name, size in weighted_sizes(by_source, names, sources).items():
        cut(name, size, "over_weight", f"weight allows {size}")


def weighted_sizes(by_source: Mapping[str, Sized], names: list[str], sources: list[Source]) -> dict[str, int]:
    """How many problems each source with a weight keeps: the most that stand in the weights' proportions."""
    weights = {n: s.weight for n, s in zip(names, sources, strict=True) if s.weight is not None}
    unit = min((len(by_source[name]) / weight for name, weight in weights.items()), default=0.0)
    return {name: round(unit * weight) for name, weight in weights.items()}


def drop_row(problem: Problem, reason: str, **why: Any) -> dict[str, Any]:
    return {"reason": reason, **why, **asdict(problem)}


@dataclass(slots=True)
class Kept:
    """Counts of the problems that stay."""

    sources: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    without_gold: Counter[str] = field(default_factory=Counter)


def write_living(held: Held, path: Path) -> Kept:
    """problems.jsonl, of the lines as they are held."""
    kept = Kept()
    with path.open("wb") as file:
        for _, line in held.lines():
            file.write(line)
            problem = PROBLEM.decode(line)
            kept.sources[problem.source] += 1
            kept.licences[problem.licence] += 1
            kept.without_gold[problem.source] += problem.verifier == "majority"
    return kept


def reasons_of(drops: Drops) -> dict[str, int]:
    """Reason -> number, the most frequent first."""
    return dict(drops.reasons.most_common())


def notes_of(kept: Kept, drops: Drops) -> dict[str, Any]:
    """Counts that the manifest's totals do not show: by source, and by rule of decontamination."""
    return {
        "kept_by_source": dict(kept.sources),
        "dropped_by_source": {
            source: {reason: n for (name, reason), n in drops.by_source.items() if name == source}
            for source in {name: None for name, _ in drops.by_source}
        },
        "contaminated_by_rule": dict(drops.rules),
        "licences": dict(kept.licences),
        "without_gold": dict(+kept.without_gold),
    }
