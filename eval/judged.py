"""After sampling and before scoring: the recipe's judge on the samples that verifiers could not tell.

Reads the samples and verdicts of an eval directory; a sample's verdict by the judge is appended to its store,
where the last one counts. Writes judge.* there (pipeline.judging.cases).
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.asking import Asked, Asking, Spent
from eval.flags import EvalFlags
from eval.models import Compared
from pipeline.context import Context
from pipeline.errors import PipelineError
from pipeline.judging.asking import AUDIT, Answered, AskFlags, answered, ask, refuse, saved_audit, section_of
from pipeline.judging.cases import PREFIX, Cases, needs_judge
from pipeline.records import Key, Problem, Status, Verdict
from pipeline.render import split_response
from pipeline.report.results import JudgeFacts, JudgeRate
from pipeline.rows import count_rows
from pipeline.sampling import Job, Store, request_fingerprint
from pipeline.sampling.progress import Progress
from pipeline.sampling.spending import refuse_failures
from pipeline.verify.basis import tags_digest
from pipeline.verify.judge import LAYER, Rate

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Judged:
    """What the judge did: for results.json, for the manifest's outputs, and what it took."""

    facts: JudgeFacts
    outputs: dict[str, int | None]
    spent: Spent


@dataclass(slots=True)
class Samples:
    """The samples of one model on one task, where some wait for the judge: each verdict with its case."""

    store: Store
    job: Job
    waiting: list[tuple[Verdict, str]] = field(default_factory=list)
    last: dict[Key, Verdict] = field(default_factory=dict)

    def settle(self, found: Answered) -> Counter[Status]:
        """Append the judge's verdicts that are not there; what was judged, by status."""
        statuses: Counter[Status] = Counter()
        with self.store as store:
            store.load(request_fingerprint(self.job), tags_digest(self.job.model.tags))
            for verdict, case_id in self.waiting:
                judged = found.verdict(verdict, case_id)
                statuses[judged.status] += 1
                if self.last[judged.problem_id, judged.sample] != judged:
                    store.add_verdict(judged)
        return statuses


def may_need_judge(context: Context, problems: Sequence[Problem]) -> bool:
    section = context.recipe.judge
    verifiers = {problem.verifier for problem in problems}
    return section is not None and not verifiers.isdisjoint({"judge", *section.second_opinion})


def judge_samples(
    context: Context, asking: Asking, models: Sequence[Compared], tasks: Sequence[Asked], flags: EvalFlags
) -> Judged | None:
    """Judge what waits; None where nothing does. StageError for a judge that is mistaken too often, with all
    samples and all that it said saved."""
    chosen = [task for task in tasks if may_need_judge(context, task.problems)]
    if not chosen:
        return None
    section, spent = section_of(context), Spent()
    with (
        Cases(asking.directory, asking.seed, section.canaries) as cases,
        Store(asking.directory, PREFIX) as store,
    ):
        held = [
            add_cases(context, cases, Samples(samples, job), task)
            for task, job, samples in asking.stores(models, chosen)
        ]
        cases.finish(flags.workers.num_workers)
        if not len(cases):
            cases.discard()
            return None
        log.info("eval: the judge on %d cases, %d canaries among them", len(cases), len(cases.canaries))
        how = AskFlags(flags.of("judge"), asking.adopt, Progress(len(cases), unit="cases"))
        try:
            tally, spent.engine = asyncio.run(ask(context, cases, store, how))
        except PipelineError:
            if not store.keys.num_traces:
                cases.discard()
            raise
        refuse_failures("eval: judge", tally, context.recipe.generate.max_failure_rate, store)
        spent.count(tally)
        spent.count_tokens(store.keys)
        found = answered(context, cases, store)
        refuse(found.audit, section, asking.directory)
        statuses = sum((samples.settle(found) for samples in held), Counter[Status]())
        facts = JudgeFacts(
            model=context.judge.identity,
            prompt=section.prompt,
            cases=len(cases) - len(cases.canaries),
            samples={str(status): number for status, number in statuses.items()},
            canaries=len(cases.canaries),
            false_accept=rate_of(found.audit.false_accepts),
            false_reject=rate_of(found.audit.false_rejects),
        )
        files = {path.name: count_rows(path) for path in (*cases.paths, asking.directory / AUDIT)}
        return Judged(facts, {**files, **store.outputs()}, spent)


def hold_to_bounds(context: Context, directory: Path) -> None:
    """StageError where the judge of a finished eval is above a bound that was lowered since."""
    if context.recipe.judge is not None and AUDIT in context.require("eval", "eval").outputs:
        refuse(saved_audit(directory), section_of(context), directory)


def add_cases(context: Context, cases: Cases, samples: Samples, task: Asked) -> Samples:
    """Find what waits for the judge, or did before it was judged here."""
    section, tags = section_of(context), samples.job.model.tags
    problems = {problem.id: problem for problem in task.problems}
    own: dict[Key, Verdict] = {}
    for verdict in samples.store.verdicts():
        samples.last[verdict.problem_id, verdict.sample] = verdict
        if verdict.layer != LAYER:
            own[verdict.problem_id, verdict.sample] = verdict
    for trace in samples.store.traces():
        last, problem = own.get((trace.problem_id, trace.sample)), problems.get(trace.problem_id)
        if last is None or problem is None or not needs_judge(last, trace.finish_reason, section):
            continue
        answer = split_response(trace.response, tags).answer
        samples.waiting.append((last, cases.add(problem, answer)))
    return samples


def rate_of(rate: Rate) -> JudgeRate:
    return JudgeRate(rate.mistaken, rate.total, rate.value, rate.ci95)
