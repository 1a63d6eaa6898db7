"""A finished run on disk, written through the real stage contract, store and scores, without any model.

Texts are made up; some hold what a page must not run. `python -m tests.finished_run DIRECTORY` writes one.
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.asking import Asked, Asking
from eval.compare import compared
from eval.results import counts_of, overlaps, read_all, results_of
from eval.stage import plan_of
from pipeline.context import Context, load_context
from pipeline.recipe.cards import SampledModel, Tags
from pipeline.records import (
    STOP,
    Problem,
    Trace,
    Verdict,
    filtered_line,
    problem_id,
    to_json,
    with_outcome,
    write_lines,
)
from pipeline.report.results import RESULTS, write_results
from pipeline.report.stage import run as run_report
from pipeline.run.contract import Counts, Plan, Start, Usage, begin
from pipeline.sampling import request_fingerprint
from pipeline.verify.basis import basis_of, tags_digest

HOSTILE = (
    "</script><script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">\u2028&<!--"
)

RECIPE = """\
name: {name}
seed: 0
problems:
  sources: [{{reasoning_gym: chain_sum, size: 20}}]
generate:
  teacher: embedded-moe
  samples: {{keep: 2, max: 4}}
  sampling: {{temperature: 1.0, max_tokens: 256}}
filter:
  rules: [finished, correct]
train: {{student: embedded-dense, method: full, epochs: 1, learning_rate: 1.0e-3, max_length: 512}}
eval:
  tasks: [{{reasoning_gym: chain_sum, size: 60}}, {{reasoning_gym: basic_arithmetic, size: 40}}]
  samples: 4
report: {{price_per_engine_hour: 0.5}}
"""
POLISH = """\
polish: {{rounds: 20, problems_per_round: 32, max_tokens: 256, learning_rate: 1.0e-4, batch_size: 32}}
"""
ABILITY = {"base": 0.1, "unpolished": 0.6, "student": 0.75, "teacher": 0.88}


@dataclass(frozen=True)
class Run:
    """`ability` is how often a model is right; `traces` are kept and dropped together. `polished`: the student
    was polished too."""

    runs: Path
    name: str = "finished"
    seed: int = 0
    questions: int = 60
    traces: int = 200
    hostile: bool = True
    ability: dict[str, float] | None = None
    polished: bool = False

    @property
    def context(self) -> Context:
        path = self.runs / f"{self.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = RECIPE + POLISH if self.polished else RECIPE
        if self.polished:
            text = text.replace("max_length: 512", "max_length: 512, held_out_share: 0.05")
        path.write_text(text.format(name=self.name))
        return load_context(path, self.runs, Start(recipe=str(path)))


def write_report(context: Context, against: str | None = None) -> None:
    run_report(context, compared, against)


def write_run(run: Run) -> Context:
    """All stages up to eval; the context to write a report with."""
    context, chance = run.context, random.Random(run.seed)
    problems = [made_problem(chance, "chain_sum") for _ in range(max(run.traces // 2, 1))]
    write_problems(context, problems)
    write_generate(context, len(problems))
    write_train(context, write_filter(context, run, problems, chance))
    if run.polished:
        write_polish(context)
    write_eval(context, run)
    return context


def made_problem(chance: random.Random, family: str) -> Problem:
    first, second = chance.randrange(10_000), chance.randrange(10_000)
    question, gold = f"State the sum of {first} and {second}.", str(first + second)
    entry: dict[str, Any] = {"family": family, "entry": {"answer": gold}}
    return Problem(problem_id(question), question, gold, "reasoning_gym", family, "Apache-2.0", entry)


@dataclass(frozen=True)
class Author:
    """Who a made-up trace is by; `hostile` texts hold what a page must not run."""

    name: str
    request: str
    tags: Tags

    def trace(self, problem: Problem, sample: int, right: bool, hostile: bool) -> Trace:
        """Every second wrong one is cut inside its thinking."""
        size = 40 + 7 * ((sample * 31 + int(problem.gold)) % 31)
        text = f"First the ones of {problem.question}\n" + (HOSTILE if hostile else "then the tens.")
        cut = not right and sample % 2 == 1
        opening = "" if self.tags.opened_by_prompt else self.tags.open
        answer = f"{self.tags.close}\n\n\\boxed{{{problem.gold if right else '7'}}}"
        return Trace(
            problem_id=problem.id,
            sample=sample,
            seed=sample,
            request=self.request,
            response=f"{opening}{text}" + ("" if cut else answer),
            finish_reason="length" if cut else STOP,
            prompt_tokens=30,
            output_tokens=256 if cut else size,
            teacher=self.name,
        )

    def verdict(self, problem: Problem, trace: Trace, right: bool) -> Verdict:
        answered = trace.finish_reason == STOP
        reason = "equal" if right else "different" if answered else "no_answer"
        return Verdict(
            problem_id=problem.id,
            sample=trace.sample,
            status="correct" if right else "wrong",
            basis=basis_of(problem, tags_digest(self.tags)),
            reason=reason,
            extracted=(problem.gold if right else "7") if answered else None,
            layer="string",
            verifier="reasoning_gym",
            version="1",
            seconds=0.001,
        )


def finish(context: Context, stage: str, counts: Counts, files: dict[str, bytes], **more: Any) -> None:
    run = begin(context.directory(stage), Plan(stage, 1, {"made": "up"}, {}, 0), context.start)
    if run is None:
        return
    with run:
        for name, data in files.items():
            (run.directory / name).parent.mkdir(exist_ok=True)
            (run.directory / name).write_bytes(data)
        run.finish(counts, {name: data.count(b"\n") for name, data in files.items()}, **more)


def write_problems(context: Context, problems: list[Problem]) -> None:
    text = "".join(to_json(problem) + "\n" for problem in problems)
    counts = Counts(len(problems) + 7, len(problems), {"duplicate": 5, "contaminated": 2})
    finish(context, "problems", counts, {"problems.jsonl": text.encode()})


def write_generate(context: Context, num_problems: int) -> None:
    total = 3 * num_problems
    usage = Usage(prompt_tokens=30 * total, output_tokens=120 * total, engine_seconds=42.0)
    figures = {"forecast": 110 * total, "low": 100 * total, "high": 125 * total, "fact": 120 * total}
    notes = {"solved": num_problems, "forecast": {"output_tokens": {**figures, "ratio": 0.9167}}}
    counts = Counts(total + 1, total, {}, {"timeout": 1})
    finish(context, "generate", counts, {}, usage=usage, notes=notes)


def write_filter(context: Context, run: Run, problems: list[Problem], chance: random.Random) -> int:
    """How many traces were kept."""
    author = Author(context.recipe.generate.teacher, "r", context.teacher_card.thinking)
    kept, dropped, reasons = [], [], Counter()
    for number in range(run.traces):
        problem, right = problems[number // 2], chance.random() < 0.6
        trace = author.trace(problem, number % 2, right, run.hostile and number % 5 == 0)
        verdict = author.verdict(problem, trace, right)
        more = {name: getattr(problem, name) for name in ("question", "gold", "source", "licence")}
        more |= {"kind": "trace", "num_tokens": 150, "trained_tokens": 120}
        line = filtered_line(to_json(trace).encode(), to_json(verdict).encode(), more)
        if right:
            kept.append(line)
        else:
            reason = "cut" if trace.finish_reason == "length" else "wrong"
            reasons[reason] += 1
            dropped.append(with_outcome(line, "finished", reason, HOSTILE if run.hostile else ""))
    files = {"kept.jsonl": b"".join(kept), "dropped.jsonl": b"".join(dropped)}
    columns = {"0%": (3, 6, 0, 0), "26-50%": (2, 4, 2, 2)}
    names = ("problems", "traces", "kept", "problems_kept")
    rates = {column: dict(zip(names, numbers, strict=True)) for column, numbers in columns.items()}
    notes = {"by_pass_rate": rates, "unsolved": 1}
    finish(
        context, "filter", Counts(run.traces, len(kept), dict(sorted(reasons.items()))), files, notes=notes
    )
    return len(kept)


def write_train(context: Context, examples: int) -> None:
    rows = [{"step": step, "loss": 2.0 / step} for step in range(1, 40)]
    metrics = "".join(json.dumps(row) + "\n" for row in rows)
    finish(context, "train", Counts(examples, examples), {"metrics.jsonl": metrics.encode()})


def write_polish(context: Context) -> None:
    """Twenty rounds, on whose held-out problems the student was measured every ten."""
    rows = [
        {"round": number, "pass_rate": 0.5 + number / 50, "mean_length": 60 + number, "cut_share": 0.01}
        | ({"divergence": 1 / (1 + number), "entropy": 0.4, "loss": 1 / (1 + number)} if number < 20 else {})
        | ({"held_out": 0.6 + number / 100} if number % 10 == 0 else {})
        for number in range(21)
    ]
    metrics = "".join(json.dumps(row) + "\n" for row in rows)
    usage = Usage(
        engine_seconds=30.0,
        output_tokens=50_000,
        scored_tokens=40_000,
        scoring_seconds=12.0,
        train_seconds=60.0,
    )
    notes = {"rounds": 20, "kept_round": 20, "stopped": ""}
    counts = Counts(640, 640)
    finish(context, "polish", counts, {"metrics.jsonl": metrics.encode()}, usage=usage, notes=notes)


def write_eval(context: Context, run: Run) -> None:
    recipe = context.recipe
    models = {name: context.teacher if name == "teacher" else context.base for name in recipe.eval.models}
    tasks = []
    for name in ("chain_sum", "basic_arithmetic"):
        chance = random.Random(name)  # every run asks the same questions, or the first of them
        problems = [made_problem(chance, name) for _ in range(run.questions)]
        tasks.append(Asked(name, problems, context.eval_prompt(None), 4))
    stage = begin(context.directory("eval"), plan_of(context, models, {}, {}), context.start)
    assert stage is not None
    with stage:
        asking = Asking(stage.directory, recipe.eval_sampling, recipe.seed)
        for task in tasks:
            write_lines(stage.directory / f"{task.name}.problems.jsonl", task.problems)
            for name, model in models.items():
                answer_all(asking, task, (name, model), (run.ability or ABILITY)[name], run.hostile)
        measured = read_all(asking, list(models), tasks)
        identities = {name: model.identity for name, model in models.items()}
        results = results_of(asking, identities, measured, tasks, overlaps(context, tasks))
        write_results(stage.directory / RESULTS, results)
        questions = {f"{task.name}.problems.jsonl": len(task.problems) for task in tasks}
        counts = counts_of(measured, 0.0, stage.directory)
        usage = Usage(engine_seconds=20.0, output_tokens=90_000)
        stage.finish(counts, {**questions, **measured.outputs, RESULTS: None}, usage=usage)


def answer_all(
    asking: Asking, task: Asked, named: tuple[str, SampledModel], ability: float, hostile: bool
) -> None:
    name, model = named
    author = Author(name, request_fingerprint(asking.job(model, task)), model.tags)
    with asking.store(task.name, name) as store:
        store.load(author.request, tags_digest(author.tags))
        for trace, verdict in made_answers(task, author, ability, hostile):
            store.add_trace(trace)
            store.add_verdict(verdict)


def made_answers(
    task: Asked, author: Author, ability: float, hostile: bool
) -> Iterator[tuple[Trace, Verdict]]:
    for number, problem in enumerate(task.problems):
        chance = random.Random(f"{problem.lot}{author.name}")
        easy = chance.betavariate(8 * ability, 8 * (1 - ability))
        for sample in range(task.k):
            right = chance.random() < easy
            trace = author.trace(problem, sample, right, hostile and number % 7 == 0)
            yield trace, author.verdict(problem, trace, right)


if __name__ == "__main__":
    write_report(write_run(Run(Path(sys.argv[1]), questions=200, traces=2_400)))
