"""Put the cases to the judge, read its replies, and hold it to its canaries; for the stage and for eval.

The judge is asked once and greedily, through the engines, the loop and the store of all sampling: an
interrupted judge goes on where it was, and replies of equal key are adopted.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.context import Context
from pipeline.errors import RecipeError, StageError
from pipeline.flags import EngineFlags
from pipeline.judging.cases import PREFIX, Cases, audit_line
from pipeline.recipe.cards import called
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.schema import Judge, Samples, Sampling
from pipeline.records import Problem, Verdict
from pipeline.rows import json_lines
from pipeline.run.revisions import pinned
from pipeline.sampling import (
    Job,
    Options,
    Store,
    Tally,
    adopted,
    collect,
    request_fingerprint,
    start_engine,
)
from pipeline.sampling.engines.base import Engine
from pipeline.sampling.keys import compact
from pipeline.sampling.loop import Watcher
from pipeline.verify.judge import FAILED, LAYER, REPLY_SCHEMA, TOO_LONG, Audit, audit, read_reply
from pipeline.verify.outcome import Outcome, unverifiable

log = logging.getLogger(__name__)

AUDIT = "judge.audit.jsonl"
TEMPLATE_TOKENS = 256  # more than a chat template puts around one turn


@dataclass(frozen=True, slots=True)
class AskFlags:
    """How the judge runs; `folders` hold replies that may be adopted, `watcher` shows how far it is."""

    engine: EngineFlags
    folders: tuple[Path, ...] = ()
    watcher: Watcher | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of all cases: the outcome by case, and that of the canaries."""

    outcomes: dict[int, Outcome]
    audit: Audit
    request: str

    def of(self, case_id: str) -> Outcome:
        return self.outcomes[compact(case_id)]

    def verdict(self, verdict: Verdict, case_id: str) -> Verdict:
        """The judge's verdict in place of one that a verifier could not give.

        Its basis holds the judge's request too: a verdict of another judge is never taken for this one's.
        """
        outcome = self.of(case_id)
        held, _, tags = verdict.basis.rpartition("-")
        digest = hashlib.sha256(f"{held}/{self.request}".encode()).hexdigest()[:16]
        return replace(
            verdict, status=outcome.status, reason=outcome.reason, layer=LAYER, basis=f"{digest}-{tags}"
        )


def section_of(context: Context) -> Judge:
    """The recipe's section; RecipeError where it has none."""
    if context.recipe.judge is None:
        raise RecipeError("the recipe has no section judge: that names the `model` that verifies")
    return context.recipe.judge


def job_of(context: Context) -> Job:
    """One greedy reply to each case, held to the structure that is read."""
    section = section_of(context)
    sampling = Sampling(temperature=0, max_tokens=section.max_tokens)
    return Job(
        context.judge,
        PROMPTS[section.prompt],
        sampling,
        Samples(keep=1, max=1),
        context.recipe.seed,
        reply_schema=REPLY_SCHEMA,
    )


def identity_of(context: Context) -> dict[str, Any]:
    """All that decides what the judge says: for the plans of stages. How many mistakes are too many is not
    in it, so a raised bound asks nobody again."""
    section = section_of(context)
    bounds = {"model", "prompt", "max_false_accept", "max_false_reject"}
    return {
        **section.model_dump(exclude=bounds, exclude_defaults=True),
        "model": context.judge.identity,
        "prompt": PROMPTS[section.prompt].user,
        "schema": REPLY_SCHEMA,
    }


async def ask(context: Context, cases: Cases, store: Store, flags: AskFlags) -> tuple[Tally, dict[str, Any]]:
    """Ask about every case that the store lacks; the tally and the engine's notes.

    A case that is too long for the judge is not asked about. Without a case no engine starts.
    """
    job = job_of(context)
    model = job.model if flags.engine.engine == "server" else pinned(context.run, job.model)
    with ExitStack() as stack:
        found = adopted(flags.folders, job, PREFIX)
        sources = tuple(stack.enter_context(closing(source)) for source in found)
        options = Options(flags.engine.concurrency, sources, flags.watcher)
        async with start_engine(model, flags.engine) as engine:
            fitting = await those_that_fit(job, cases, engine)
            tally = await collect(job, fitting, engine, store, None, options)
        return tally, engine.notes


@dataclass(frozen=True, slots=True)
class Fitting:
    """The cases without those that are too long, streamed anew each time."""

    cases: Cases
    too_long: frozenset[str]

    def __iter__(self) -> Iterator[Problem]:
        return (case for case in self.cases if case.id not in self.too_long)


async def those_that_fit(job: Job, cases: Cases, engine: Engine) -> Fitting:
    """RecipeError where none does. Only those near the limit are tokenized; without a tokenizer here the
    server says so."""
    room = job.model.max_model_len - job.sampling.max_tokens
    frame = len(job.prompt.user.encode()) + TEMPLATE_TOKENS
    near = [case for case in cases if frame + len(case.question.encode()) > room]
    prompts = await engine.prompts() if near else None
    if prompts is None:
        return Fitting(cases, frozenset())
    too_long = {case.id for case in near if len(prompts.ids(job.prompt.messages(case.question))) > room}
    if len(too_long) == len(cases):
        raise RecipeError(
            f"judge.max_tokens: {job.sampling.max_tokens:,} leave {room:,} tokens for a prompt, as the "
            f"max_model_len of {job.model.name} is {job.model.max_model_len:,}, and each of {len(cases):,} "
            "prompts is longer. Lower it, or take a judge with a longer context"
        )
    return Fitting(cases, frozenset(too_long))


def answered(context: Context, cases: Cases, store: Store) -> Answered:
    """Read every reply; the verdict on each canary goes to judge.audit.jsonl."""
    job = job_of(context)
    outcomes = {
        compact(trace.problem_id): read_reply(trace.response, trace.finish_reason, job.model.tags.close)
        for trace in store.traces()
    }
    failures = json_lines(store.failures_path) if store.failures_path.is_file() else ()
    failed = {line.values["problem_id"] for line in failures if line.values}
    for case in cases:
        lacking = FAILED if case.id in failed else TOO_LONG
        outcomes.setdefault(compact(case.id), unverifiable(lacking, layer=LAYER))
    told = [(canary, outcomes[compact(canary.id)]) for canary in cases.canaries]
    with (store.directory / AUDIT).open("w", encoding="utf-8") as file:
        for canary, outcome in told:
            file.write(audit_line(canary, outcome.status, outcome.reason))
    found = audit((canary.kind, outcome.status) for canary, outcome in told)
    return Answered(outcomes, found, request_fingerprint(job))


def saved_audit(directory: Path) -> Audit:
    """What the canaries of a finished stage said; nothing where no judge was asked."""
    path = directory / AUDIT
    rows = [line.values or {} for line in json_lines(path)] if path.is_file() else []
    return audit((row["kind"], row["status"]) for row in rows)


def refuse(found: Audit, section: Judge, directory: Path) -> None:
    """StageError where a judge was mistaken too often on canaries, by the share itself, not its interval. All
    that it said is saved by then."""
    accepts, rejects = found.false_accepts, found.false_rejects
    log.info("judge: false accepts %s, false rejects %s on canaries (95%% intervals)", accepts, rejects)
    faults = []
    if accepts.value > section.max_false_accept:
        faults.append(
            f"accepted {accepts} answers that it must refuse (judge.max_false_accept: "
            f"{section.max_false_accept:g}; {by_kind(found)})"
        )
    if rejects.value > section.max_false_reject:
        faults.append(
            f"did not accept {rejects} gold answers (judge.max_false_reject: {section.max_false_reject:g})"
        )
    if faults:
        raise StageError(
            f"judge: {called(section.model)} {' and '.join(faults)}: its verdicts are not used. Its replies "
            f"are saved in {directory}, those on canaries in {AUDIT}. Take another judge.model, "
            "or raise the bound and run the same command again: this judge is not asked again"
        )


def by_kind(found: Audit) -> str:
    counts = {kind: held.get("correct", 0) for kind, held in found.counts.items() if kind != "gold"}
    return ", ".join(f"{kind} {count}" for kind, count in counts.items() if count)
