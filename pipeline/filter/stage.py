"""The filter stage: every trace kept, or dropped for one reason, or counted as failed by kind.

Reads runs/<name>/problems/ and generate/, and the verdicts of judge/ where the recipe has one. Writes
runs/<name>/filter/: kept.jsonl and dropped.jsonl (the trace with its verdict, rule, reason and detail),
failed.jsonl (lines that are no trace of this run, by file and line) and examples.parquet. Both passes stream.

    python -m pipeline filter --recipe recipes/demo.yaml
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from pipeline.context import Context
from pipeline.errors import StageError, inside
from pipeline.filter.apply import RuleSet
from pipeline.filter.difficulty import by_pass_rate
from pipeline.filter.examples import Format, example_of, special_tokens, tokenizer_file, tokenizer_identity
from pipeline.filter.first_pass import FirstPass
from pipeline.filter.joins import Inputs, inputs_of, judge_inputs, shards_of
from pipeline.filter.ledger import Ledger
from pipeline.filter.mix import Mixer
from pipeline.filter.rules import check_rules, read_rule
from pipeline.filter.selection import KEPT, REASONS, Selected
from pipeline.filter.weighing import BY_MODEL, MakeWeigher, Weigh, means_of, weigh_passed
from pipeline.flags import WorkerFlags
from pipeline.problems.eval_sets import barred_digest, barred_problems
from pipeline.problems.overlap import EvalQuestion
from pipeline.problems.sources import verifiers_in_use
from pipeline.recipe.cards import own_eos
from pipeline.recipe.rule_entry import RuleEntry
from pipeline.recipe.schema import Filter, Recipe
from pipeline.recipe.sources import RowSource, source_names
from pipeline.records import FILTERED, Example, read_as, with_outcome, write_examples
from pipeline.rows import digest_of_all
from pipeline.run.contract import Counts, Manifest, Plan, StageRun, Usage, begin, check_outputs
from pipeline.run.revisions import pinned, resolved, unpinned_mix
from pipeline.run.stages import BY_NAME

log = logging.getLogger(__name__)

STAGE_VERSION = 4
PASSED = ".passed.jsonl"  # the traces that passed the rules, until selection has divided them


def run(context: Context, flags: WorkerFlags | None = None, make_weigher: MakeWeigher | None = None) -> None:
    """Run the stage, or say that it is up to date. Its worker processes apply the rules; `make_weigher` loads
    the model of preferences that need one."""
    manifests = {name: context.require(name, "filter") for name in read_stages(context)}
    with inside(context.start.recipe or context.recipe.name):
        check_rules(context.recipe.filter.rules)
    revisions = resolved(context.run, unpinned_mix(context.recipe))
    plan = plan_of(context, manifests, revisions)
    stage = begin(context.directory("filter"), plan, context.start)
    if stage is None:
        return
    with stage:
        for name in manifests:
            check_outputs(context.directory(name))
        section = with_revisions(context.recipe.filter, revisions)
        inputs = inputs_for(context, manifests)
        weigh = None
        if section.select.prefer in BY_MODEL:
            assert make_weigher is not None, "the command line hands one in"
            weigh = make_weigher(context)
        num_workers = (flags or WorkerFlags()).num_workers
        make_examples(section, inputs, rule_set_of(context), num_workers, stage, weigh)


def read_stages(context: Context) -> list[str]:
    """The stages of this recipe that filter reads."""
    return [stage.name for stage in context.stages if stage.name in BY_NAME["filter"].reads]


def inputs_for(context: Context, manifests: dict[str, Manifest]) -> Inputs:
    """Traces and verdicts, those of the judge where the recipe has one. StageError where the judge was asked
    about other traces than those that are there now."""
    problems, generate, judge = manifests["problems"], manifests["generate"], manifests.get("judge")
    inputs = replace(inputs_of(context, problems, generate), min_shares=min_shares_of(context.recipe))
    if judge is None:
        return inputs
    read = judge_inputs(problems, generate)
    if judge.inputs != read:
        raise StageError(
            f"{context.directory('judge')}: the judge was asked about other traces than generate holds now. "
            f"Run: make judge RECIPE={context.start.recipe} FORCE=1 (what it said before is adopted)"
        )
    return replace(inputs, verdicts=context.directory("judge") / "verdicts.jsonl", judged=True)


def min_shares_of(recipe: Recipe) -> dict[str, float]:
    """The share that a majority needs, by the name of each source without gold answers."""
    sources = zip(source_names(recipe.problems.sources), recipe.problems.sources, strict=True)
    return {
        name: source.majority.min_share
        for name, source in sources
        if isinstance(source, RowSource) and source.majority is not None
    }


def plan_of(context: Context, manifests: dict[str, Manifest], revisions: dict[str, str]) -> Plan:
    """Everything that decides which examples there are, and how they are written."""
    recipe, card = context.recipe, context.student_card
    section = recipe.filter.model_dump(exclude_defaults=True)
    config = {
        "filter": {**section, "rules": [without_defaults(entry) for entry in recipe.filter.rules]},
        "prompt": context.prompt.identity,
        "student": {"thinking": [card.thinking.open, card.thinking.close], **tokenizer_identity(card)},
        "verifiers": verifiers_in_use(recipe.problems),
        "revisions": revisions,
    }
    if recipe.filter.select.prefer in BY_MODEL:
        config["weighed_by"] = context.base.identity
    if shares := min_shares_of(recipe):
        config["majority"] = shares
    inputs = {
        "problems": manifests["problems"].digest(["problems.jsonl", "protected.jsonl", "templates.json"]),
        "generate": manifests["generate"].digest([*shards_of(manifests["generate"]), "verdicts.jsonl"]),
    }
    inputs |= barred_digest(barred_problems(context.directory("problems")))
    if "judge" in manifests:
        inputs["judge"] = manifests["judge"].digest(["verdicts.jsonl"])
    for source in recipe.filter.mix:
        if source.path is not None:
            inputs[f"mix.{source.name}"] = digest_of_all(source.path)
    return Plan("filter", STAGE_VERSION, config, inputs, recipe.seed)


def without_defaults(entry: RuleEntry) -> RuleEntry:
    """The same rule with those parameters alone that differ from their defaults."""
    name, parameters = read_rule(entry)
    stated = parameters.model_dump(exclude_defaults=True)
    return {name: stated} if stated else name


def with_revisions(section: Filter, revisions: dict[str, str]) -> Filter:
    """The section with the resolved revisions of its mix put in."""
    mix = [
        entry.model_copy(update={"revision": entry.revision or revisions.get(entry.hub or "")})
        for entry in section.mix
    ]
    return section.model_copy(update={"mix": mix})


def rule_set_of(context: Context) -> RuleSet:
    """What the workers are told: rules, format, and the eval questions that problems wrote down."""
    card, problems = context.student_card, context.directory("problems")
    tokenizer = tokenizer_file(card, pinned(context.run, context.base).revision)
    special = special_tokens(str(tokenizer))  # a broken file is named here, before worker processes start
    end = card.eos or own_eos(card.model)
    form = Format(context.prompt, context.teacher_card.thinking, card.thinking, str(tokenizer), end, special)
    decode = msgspec.json.Decoder(EvalQuestion).decode
    questions = list(read_as(decode, "an eval question", problems / "protected.jsonl"))
    templates = json.loads((problems / "templates.json").read_text(encoding="utf-8"))
    known = {source: {tuple(run.split()) for run in runs} for source, runs in templates.items()}
    section = context.recipe.filter
    spares, barred = section.select.unsolved != "drop", barred_problems(problems)
    return RuleSet(section.rules, form, questions, known, spares, barred)


def make_examples(
    section: Filter,
    inputs: Inputs,
    rule_set: RuleSet,
    workers: int,
    stage: StageRun,
    weigh: Weigh | None = None,
) -> None:
    """Both passes, then the manifest."""
    out, seed = stage.directory, stage.plan.seed
    passed = out / PASSED
    with (out / "dropped.jsonl").open("wb") as dropped_file, (out / "failed.jsonl").open("wb") as failed_file:
        ledger = Ledger(dropped_file, failed_file)
        first = FirstPass(inputs, rule_set, section.select, seed, workers, ledger, weigh)
        first.run(passed)
        num_traces = ledger.num_in
        weights = weigh_passed(passed, first.joined.index, first.selection, weigh) if weigh else None
        selected = first.selection.choose()
        drop_unselected(passed, selected, ledger)
        mixer = Mixer(section.mix, rule_set, len(selected.offsets), seed, ledger)
        num_kept, num_unsolved = write_kept(passed, out, selected, rule_set.form, mixer)
    passed.unlink()
    reasons, failed = total_by(ledger.dropped, 1), dict(ledger.failed)
    if len(selected.offsets) == 0:
        raise StageError(
            f"{out}: none of {num_traces:,} traces is left (dropped: {reasons}, failed: {failed}). Read "
            "dropped.jsonl there, change filter in the recipe, then run make filter again"
        )
    rows: dict[str, int | None] = {
        "kept.jsonl": num_kept,
        "dropped.jsonl": sum(reasons.values()),
        "failed.jsonl": sum(failed.values()),
        "examples.parquet": num_kept,
    }
    tokens, budget = int(selected.tokens.sum()), section.select.max_tokens
    usage = Usage(trained_tokens=tokens, mix_tokens=mixer.num_tokens, verified_again=first.num_verified)
    notes = {
        **notes_of(ledger.dropped, first.passed_by_source),
        "token_budget": budget,
        "mix": dict(mixer.kept),
        "by_pass_rate": by_pass_rate(first.selection, selected),
    }
    if weights is not None:
        notes["weights"] = means_of(weights, [code == KEPT for code in selected.reasons])
    if section.select.unsolved != "drop":
        notes["unsolved"] = num_unsolved
    if first.majorities.found:
        notes["without_gold"] = first.majorities.to_json()
    stage.finish(Counts(ledger.num_in, num_kept, reasons, failed), rows, usage, notes)
    text = f"kept {num_kept:,} of {ledger.num_in:,}, {tokens:,} trained tokens"
    if budget:
        text += f" of a budget of {budget:,} ({tokens / budget:.2%})"
    if mixed := sum(mixer.kept.values()):
        text += f"; {mixed:,} of the kept are the mix, {mixer.num_tokens:,} tokens more"
    if num_unsolved:
        text += f"; {num_unsolved:,} of the kept are wrong, one of each problem that no trace solves"
    log.info("filter: %s", text)
    log.info("filter: dropped %s; failed %s", reasons or "none", failed or "none")


def drop_unselected(passed: Path, selected: Selected, ledger: Ledger) -> None:
    """Drop the traces that passed the rules but were not selected."""
    with passed.open("rb") as lines:
        for code, line in zip(selected.reasons, lines, strict=True):
            if code != KEPT:
                reason = REASONS[code]
                row = with_outcome(line, "select", reason)
                ledger.drop(row, "select", reason, FILTERED.decode(line).source)


def write_kept(passed: Path, out: Path, selected: Selected, form: Format, mixer: Mixer) -> tuple[int, int]:
    """Write kept.jsonl and examples.parquet together: selected traces in their order, then the mix. How many
    there are, and how many of them are wrong traces of unsolved problems."""
    num_unsolved = 0
    with passed.open("rb") as file, (out / "kept.jsonl").open("wb") as kept:

        def lines() -> Iterator[bytes]:
            for offset in selected.offsets:
                file.seek(int(offset))
                yield file.readline()
            for row in mixer.rows():
                yield json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"

        def examples() -> Iterator[Example]:
            nonlocal num_unsolved
            for line in lines():
                kept.write(line)
                row = FILTERED.decode(line)
                num_unsolved += row.unsolved
                yield example_of(row, form)

        return write_examples(out / "examples.parquet", examples()), num_unsolved


def total_by(dropped: Counter[tuple[str, str, str]], part: int) -> dict[str, int]:
    """Counts by one part of (rule, reason, source), the largest first."""
    totals: Counter[str] = Counter()
    for key, count in dropped.items():
        totals[key[part]] += count
    return dict(totals.most_common())


def notes_of(dropped: Counter[tuple[str, str, str]], passed: Counter[str]) -> dict[str, Any]:
    """Counts that the manifest's totals do not show: by rule, and by source."""
    sources = sorted({source for _, _, source in dropped} | passed.keys())
    return {
        "dropped_by_rule": total_by(dropped, 0),
        "by_source": {
            source: {
                "passed_rules": passed[source],
                "dropped": total_by(Counter({k: n for k, n in dropped.items() if k[2] == source}), 1),
            }
            for source in sources
        },
    }
