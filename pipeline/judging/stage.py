"""The judge stage: ask a model where verifiers cannot tell, and hold it to canaries.

Only where the recipe has a section `judge`; all others pass it over.

Reads runs/<name>/problems and generate. Writes runs/<name>/judge/: verdicts.jsonl (generate's verdicts, with
the judge's in place of those that waited for it; filter reads it), judged.jsonl (which trace was which case,
and what was said), the cases, the canaries and the judge's own responses (pipeline.judging.cases).

    python -m pipeline judge --recipe recipes/NAME.yaml
"""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.context import Context
from pipeline.errors import PipelineError
from pipeline.filter.joins import TRACE, VERDICT, Joined, inputs_of, judge_inputs
from pipeline.flags import AdoptFlags, EngineFlags, WorkerFlags
from pipeline.judging.asking import (
    AUDIT,
    Answered,
    AskFlags,
    answered,
    ask,
    identity_of,
    refuse,
    saved_audit,
    section_of,
)
from pipeline.judging.cases import PREFIX, Cases, needs_judge
from pipeline.problems.sources import verifiers_in_use
from pipeline.records import PROBLEM, to_json
from pipeline.render import split_response
from pipeline.rows import count_rows
from pipeline.run.contract import Counts, Manifest, Plan, StageRun, begin, check_outputs
from pipeline.run.revisions import same_revision
from pipeline.sampling import Store, Tally
from pipeline.sampling.progress import Progress
from pipeline.sampling.spending import refuse_failures, save_spent, spent, usage_of
from pipeline.verify.judge import FAILED

log = logging.getLogger(__name__)

STAGE_VERSION = 1
JOINED = ".joined.jsonl"  # each verdict behind the id of its case, or blanks, until the judge has answered
ID_LETTERS = 16


@dataclass(frozen=True, slots=True)
class JudgeFlags:
    """How the judge runs, not what it is asked."""

    engine: EngineFlags = field(default_factory=EngineFlags)
    adopt: AdoptFlags = field(default_factory=AdoptFlags)
    workers: WorkerFlags = field(default_factory=WorkerFlags)


def run(context: Context, flags: JudgeFlags | None = None) -> None:
    """Run or resume the stage. StageError for a judge that is mistaken too often, with all that it said
    saved."""
    flags, section = flags or JudgeFlags(), section_of(context)
    read = context.require("problems", "judge"), context.require("generate", "judge")
    plan = plan_of(context, *read)
    stage = begin(context.directory("judge"), plan, context.start)
    if stage is None:  # a bound may have been lowered since
        refuse(saved_audit(context.directory("judge")), section, context.directory("judge"))
        return
    if context.judge_restriction and context.recipe.generate.accept_licence != context.judge_card.licence:
        log.warning("judge.model: %s: read it before the student is passed on", context.judge_restriction)
    with stage:
        for name in ("problems", "generate"):
            check_outputs(context.directory(name))
        judge_traces(context, stage, read, flags)


def plan_of(context: Context, problems: Manifest, generate: Manifest) -> Plan:
    """All that decides what is asked and what is said."""
    config = {"judge": identity_of(context), "verifiers": verifiers_in_use(context.recipe.problems)}
    inputs = judge_inputs(problems, generate)
    return Plan("judge", STAGE_VERSION, config, inputs, context.recipe.seed)


def judge_traces(
    context: Context, stage: StageRun, read: tuple[Manifest, Manifest], flags: JudgeFlags
) -> None:
    """Collect the cases, ask, and write the verdicts, then the manifest."""
    section, joined_path = section_of(context), stage.directory / JOINED
    folders = [*stage.aside, *adopted_judges(context, flags.adopt.adopt)]
    how = AskFlags(flags.engine, tuple(folders))
    with (
        Cases(stage.directory, context.recipe.seed, section.canaries) as cases,
        Store(stage.directory, PREFIX) as store,
    ):
        joined = Joined(inputs_of(context, *read), context.teacher.tags, flags.workers.num_workers)
        with joined, joined_path.open("wb") as file:
            file.writelines(joined_lines(joined, cases, context))
        cases.finish(flags.workers.num_workers)
        tally, notes = sampled(context, stage, cases, store, how)
        found = answered(context, cases, store)
        refuse(found.audit, section, stage.directory)
        judged = write_verdicts(stage.directory, joined_path, found)
        joined_path.unlink()
        finish(stage, cases, store, (tally, notes), (found, judged))


def joined_lines(joined: Joined, cases: Cases, context: Context) -> Iterator[bytes]:
    """Each verdict behind the id of the case that asks about it, or blanks where nobody is asked."""
    section, tags = section_of(context), context.teacher.tags
    for chunk in joined.chunks():
        for item in chunk:
            if not item.verdict:  # the line is no trace: filter says so
                continue
            verdict, case_id = VERDICT.decode(item.verdict), ""
            trace = TRACE.decode(item.trace)
            if needs_judge(verdict, trace.finish_reason, section):
                answer = split_response(trace.response, tags).answer
                case_id = cases.add(PROBLEM.decode(item.problem), answer)
            yield b"%b %b\n" % (case_id.ljust(ID_LETTERS).encode(), item.verdict.strip())


def adopted_judges(context: Context, names: tuple[str, ...]) -> list[Path]:
    """The judge directories of the runs that --adopt names; a run may have none."""
    runs = [context.run_named("--adopt", name) for name in names]
    for run in runs:
        same_revision(context.judge, context.run, run)
        if not (run / "judge").is_dir():
            log.info("judge: %s holds no replies to adopt", run / "judge")
    return [run / "judge" for run in runs]


def sampled(
    context: Context, stage: StageRun, cases: Cases, store: Store, how: AskFlags
) -> tuple[Tally, dict[str, Any]]:
    """Ask about what is not answered yet. A judge that answered nothing leaves nothing behind."""
    if not len(cases):
        log.info("judge: every verifier could tell, there is nothing to ask")
        return Tally(), {}
    log.info("judge: %d cases, %d canaries among them", len(cases), len(cases.canaries))
    watched = replace(how, watcher=Progress(len(cases), save_spent(stage), "cases"))
    try:
        asked = asyncio.run(ask(context, cases, store, watched))
    except PipelineError:
        if not store.keys.num_traces:
            cases.discard()
            (stage.directory / JOINED).unlink(missing_ok=True)
        raise
    refuse_failures("judge", asked[0], context.recipe.generate.max_failure_rate, store)
    return asked


def write_verdicts(directory: Path, joined: Path, found: Answered) -> Counter[tuple[str, str, str]]:
    """verdicts.jsonl and judged.jsonl; what was judged, by verifier, status and reason."""
    judged: Counter[tuple[str, str, str]] = Counter()
    with (
        joined.open("rb") as lines,
        (directory / "verdicts.jsonl").open("wb") as verdicts,
        (directory / "judged.jsonl").open("w", encoding="utf-8") as rows,
    ):
        for line in lines:
            case_id, verdict_line = line[:ID_LETTERS].decode().strip(), line[ID_LETTERS + 1 :]
            if case_id:
                verdict = found.verdict(VERDICT.decode(verdict_line), case_id)
                verdict_line = to_json(verdict).encode() + b"\n"
                row = {name: getattr(verdict, name) for name in ("problem_id", "sample", "status", "reason")}
                rows.write(json.dumps({**row, "case": case_id}) + "\n")
                judged[verdict.verifier, verdict.status, verdict.reason] += 1
            verdicts.write(verdict_line)
    return judged


def finish(
    stage: StageRun,
    cases: Cases,
    store: Store,
    asked: tuple[Tally, dict[str, Any]],
    told: tuple[Answered, Counter[tuple[str, str, str]]],
) -> None:
    """Write the manifest: traces judged, those about which the judge could not tell, the canaries."""
    (tally, notes), (found, judged) = asked, told
    open_ones = Counter[str]()
    statuses = Counter[str]()
    for (_, status, reason), count in judged.items():
        statuses[status] += count
        open_ones[reason] += count if status == "unverifiable" else 0
    failed = {FAILED: open_ones.pop(FAILED)} if open_ones.get(FAILED) else {}
    dropped = {reason: count for reason, count in open_ones.most_common() if count}
    decided = statuses["correct"] + statuses["wrong"]
    files = [path.name for path in (*cases.paths, stage.directory / AUDIT)]
    outputs: dict[str, int | None] = {
        **{name: count_rows(stage.directory / name) for name in ("verdicts.jsonl", "judged.jsonl", *files)},
        **store.outputs(),
    }
    stage.finish(
        Counts(judged.total(), decided, dropped, failed),
        outputs,
        usage_of(spent(stage.carried, tally), tally.found, store, statuses["correct"]),
        {
            "cases": len(cases) - len(cases.canaries),
            "canaries": len(cases.canaries),
            **statuses,
            "by_verifier": by_verifier(judged),
            "audit": found.audit.to_json(),
            **notes,
        },
    )
    log.info(
        "judge: %d of %d traces correct, %d wrong; %s", statuses["correct"], judged.total(),
        statuses["wrong"], dict(dropped) or "all could be told",
    )  # fmt: skip


def by_verifier(judged: Counter[tuple[str, str, str]]) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for (verifier, status, _), count in judged.items():
        found.setdefault(verifier, Counter())[status] += count
    return {verifier: dict(counts) for verifier, counts in sorted(found.items())}
