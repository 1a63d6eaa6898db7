"""The filter stage: every trace kept, or dropped for one reason, or counted as failed by kind.

Reads runs/<name>/problems/ and runs/<name>/generate/. Writes runs/<name>/filter/: kept.jsonl and
dropped.jsonl (the trace with its verdict, rule, reason and detail), failed.jsonl (lines that are no trace of
this run, by file and line) and examples.parquet. Both passes stream.

    python -m pipeline filter --recipe recipes/demo.yaml
"""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.cards import sampled_student, student_card
from pipeline.decontaminate import EvalQuestion
from pipeline.emit import write_kept, write_unselected
from pipeline.errors import PipelineError, StageError
from pipeline.examples import Format, token_counter, tokenizer_file, tokenizer_identity
from pipeline.judge import Judging
from pipeline.mix import Mixer
from pipeline.recipe import Recipe, Select
from pipeline.render import Tags
from pipeline.revisions import pinned, resolved_revisions, unpinned_mix
from pipeline.rows import json_lines, require_file
from pipeline.selection import select_examples
from pipeline.sift import PASSED, Inputs, Sifted, Sifter
from pipeline.stage import (
    Context,
    Counts,
    Plan,
    StageRun,
    begin,
    check_outputs,
    hash_file,
    inputs_of,
    require,
)
from pipeline.verify.table import VERSIONS

log = logging.getLogger(__name__)

STAGE_VERSION = 2


def run(context: Context, workers: int = 2) -> None:
    """Run the stage, or say that it is up to date. `workers` processes apply the rules."""
    problems, generate = context.directory("problems"), context.directory("generate")
    manifests = {
        "problems": require(problems, "filter", context.start.recipe),
        "generate": require(generate, "filter", context.start.recipe),
    }
    revisions = resolved_revisions(context, unpinned_mix(context.recipe))
    plan = plan_of(context.recipe, inputs_of(manifests), revisions)
    stage = begin(context.directory("filter"), plan, context.start)
    if stage is None:
        return
    with stage:
        try:
            check_outputs(problems)
            check_outputs(generate)
            recipe = with_revisions(context.recipe, plan.config["revisions"])
            judging = judging_of(recipe, problems)
        except PipelineError:
            stage.abandon()
            raise
        names = sorted(name for name in manifests["generate"]["outputs"] if name.startswith("traces-"))
        inputs = Inputs(
            problems / "problems.jsonl",
            [generate / name for name in names],
            generate / "verdicts.jsonl",
            stage.directory,
            manifests["generate"]["counts"]["kept"],
        )
        sift_and_select(recipe, inputs, judging, stage, workers)


def plan_of(recipe: Recipe, inputs: dict[str, str], revisions: dict[str, str]) -> Plan:
    """Everything that decides which examples there are, and how they are written."""
    card = student_card(recipe.train.student)
    config = {
        "filter": recipe.filter.model_dump(),
        "prompt": recipe.generate.prompt,
        "student": {"thinking": card.thinking.model_dump(), **tokenizer_identity(card)},
        "verifiers": VERSIONS,
        "revisions": revisions,
    }
    for source in recipe.filter.mix:
        if source.path is not None:
            inputs = {**inputs, f"mix.{source.name}": hash_file(require_file(Path(source.path)))}
    return Plan("filter", STAGE_VERSION, config, inputs, recipe.seed)


def with_revisions(recipe: Recipe, revisions: dict[str, str]) -> Recipe:
    """The recipe with the resolved revisions of its mix put in."""
    mix = [
        entry.model_copy(update={"revision": entry.revision or revisions.get(entry.hub or "")})
        for entry in recipe.filter.mix
    ]
    return recipe.model_copy(update={"filter": recipe.filter.model_copy(update={"mix": mix})})


def judging_of(recipe: Recipe, problems: Path) -> Judging:
    """What the workers are told: rules, format, and the eval questions that problems wrote down."""
    card = student_card(recipe.train.student)
    base = pinned(problems.parent, sampled_student(recipe.train.student))
    tokenizer = tokenizer_file(card, base.revision)
    token_counter(str(tokenizer))  # a broken file is named here, before worker processes start
    form = Format(recipe.generate.prompt, Tags(**card.thinking.model_dump()), str(tokenizer))
    protected = [line.values or {} for line in json_lines(problems / "protected.jsonl")]
    templates = json.loads((problems / "templates.json").read_text(encoding="utf-8"))
    return Judging(
        recipe.filter.rules,
        form,
        [EvalQuestion(**values) for values in protected],
        {source: {tuple(run.split()) for run in runs} for source, runs in templates.items()},
    )


def sift_and_select(recipe: Recipe, inputs: Inputs, judging: Judging, stage: StageRun, workers: int) -> None:
    """Both passes, then the manifest."""
    out, select = stage.directory, recipe.filter.select
    with Sifter(inputs, select, recipe.seed, workers) as sifter:
        counts = sifter.run(judging)
        selected = select_examples(sifter.best, select, counts.num_passed, sifter.by_position())
    dropped = counts.dropped + write_unselected(out / PASSED, out / "dropped.jsonl", selected)
    mixer = Mixer(recipe.filter.mix, judging, len(selected.offsets), recipe.seed)
    num_kept = write_kept(out / PASSED, out, selected, judging.form, mixer)
    (out / PASSED).unlink()
    dropped, failed = dropped + mixer.counts.dropped, counts.failed + mixer.counts.failed
    reasons = total_by(dropped, 1)
    if len(selected.offsets) == 0:
        raise StageError(
            f"{out}: none of {counts.num_in:,} traces is left (dropped: {reasons}, failed: "
            f"{dict(failed)}). Read dropped.jsonl there, then change filter in the recipe"
        )
    rows: dict[str, int | None] = {
        "kept.jsonl": num_kept,
        "dropped.jsonl": sum(reasons.values()),
        "failed.jsonl": sum(failed.values()),
        "examples.parquet": num_kept,
    }
    usage = {
        "trained_tokens": int(selected.tokens.sum()),
        "mix_tokens": sum(mixer.counts.tokens.values()),
        "verified_again": counts.num_verified,
    }
    num_in = counts.num_in + mixer.counts.num_in
    notes = {**notes_of(dropped, counts, select), "mix": dict(mixer.counts.kept)}
    stage.finish(Counts(num_in, num_kept, reasons, dict(failed)), rows, usage, notes)
    announce(num_in, num_kept, usage, notes)
    log.info("filter: dropped %s; failed %s", reasons or "none", dict(failed) or "none")


def announce(num_in: int, num_kept: int, usage: dict[str, int], notes: dict[str, Any]) -> None:
    tokens, budget, mixed = usage["trained_tokens"], notes["token_budget"], sum(notes["mix"].values())
    text = f"kept {num_kept:,} of {num_in:,}, {tokens:,} trained tokens"
    if budget:
        text += f" of a budget of {budget:,} ({tokens / budget:.2%})"
    if mixed:
        text += f"; {mixed:,} of the kept are the mix, {usage['mix_tokens']:,} tokens more"
    log.info("filter: %s", text)


def total_by(dropped: Counter[tuple[str, str, str]], part: int) -> dict[str, int]:
    """Counts by one part of (rule, reason, source), the largest first."""
    totals: Counter[str] = Counter()
    for key, count in dropped.items():
        totals[key[part]] += count
    return dict(totals.most_common())


def notes_of(dropped: Counter[tuple[str, str, str]], counts: Sifted, select: Select) -> dict[str, Any]:
    """Counts that the manifest's totals do not show."""
    sources = sorted({source for _, _, source in dropped} | counts.passed_by_source.keys())
    return {
        "dropped_by_rule": total_by(dropped, 0),
        "by_source": {
            source: {
                "passed_rules": counts.passed_by_source[source],
                "dropped": total_by(Counter({k: n for k, n in dropped.items() if k[2] == source}), 1),
            }
            for source in sources
        },
        "token_budget": select.max_tokens,
    }
