"""A finished run on disk, written through the real stage contract, store and scores, without any model.

Texts are made up; some hold what a page must not run. `python -m tests.finished_run DIRECTORY` writes one.
"""

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval.asking import Asked, Asking
from eval.compare import compared
from eval.scoring import RESULTS, counts_of, overlaps, read_all, results_of
from eval.stage import plan_of
from pipeline.cards import SampledModel, sampled_student, sampled_teacher
from pipeline.recipe import Recipe, load_recipe
from pipeline.records import Problem, Trace, Verdict, problem_id, to_json
from pipeline.report import run as run_report
from pipeline.sampling import request_fingerprint
from pipeline.stage import Context, Counts, Plan, Start, begin

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
ABILITY = {"base": 0.1, "student": 0.75, "teacher": 0.88}


@dataclass(frozen=True)
class Run:
    """`ability` is how often a model is right; `traces` are kept and dropped together."""

    runs: Path
    name: str = "finished"
    seed: int = 0
    questions: int = 60
    traces: int = 200
    hostile: bool = True
    ability: dict[str, float] | None = None

    @property
    def context(self) -> Context:
        path = self.runs / f"{self.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RECIPE.format(name=self.name))
        return Context(load_recipe(path), self.runs, Start(recipe=str(path)))


def write_report(context: Context, against: str | None = None) -> None:
    run_report(context, compared, against)


def write_run(run: Run) -> Context:
    """All stages up to eval; the context to write a report with."""
    context, chance = run.context, random.Random(run.seed)
    problems = [made_problem(chance, "chain_sum") for _ in range(max(run.traces // 2, 1))]
    write_problems(context, problems)
    kept, dropped = split_traces(run, problems, chance)
    write_filter(context, kept, dropped)
    write_train(context, len(kept))
    write_eval(context, run)
    return context


def made_problem(chance: random.Random, family: str) -> Problem:
    first, second = chance.randrange(10_000), chance.randrange(10_000)
    question, gold = f"State the sum of {first} and {second}.", str(first + second)
    entry: dict[str, Any] = {"family": family, "entry": {"answer": gold}}
    return Problem(
        problem_id(question, gold, "reasoning_gym"),
        question,
        gold,
        "reasoning_gym",
        family,
        "Apache-2.0",
        entry,
    )


def made_trace(problem: Problem, sample: int, right: bool, name: str, request: str, hostile: bool) -> Trace:
    size = 40 + 7 * ((sample * 31 + int(problem.gold)) % 31)
    text = f"First the ones of {problem.question}\n" + (HOSTILE if hostile else "then the tens.")
    answer = f"\\boxed{{{problem.gold if right else '7'}}}"
    cut = not right and sample % 2 == 1
    finish = "length" if cut else "stop"
    return Trace(
        problem.id,
        sample,
        sample,
        request,
        text,
        "" if cut else answer,
        finish,
        30,
        256 if cut else size,
        name,
    )


def made_verdict(trace: Trace, right: bool, gold: str) -> Verdict:
    status, reason = (
        ("correct", "equal") if right else ("wrong", "different" if trace.answer else "no_answer")
    )
    extracted = (gold if right else "7") if trace.answer else None
    return Verdict(
        trace.problem_id, trace.sample, status, reason, extracted, "string", "reasoning_gym", "1", 0.001
    )  # type: ignore[arg-type]


def finish(context: Context, stage: str, counts: Counts, files: dict[str, str], **more: Any) -> None:
    run = begin(context.directory(stage), Plan(stage, 1, {"made": "up"}, {}, 0), context.start)
    if run is None:
        return
    with run:
        for name, text in files.items():
            (run.directory / name).write_text(text, encoding="utf-8")
        run.finish(counts, {name: text.count("\n") for name, text in files.items()}, **more)


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_problems(context: Context, problems: list[Problem]) -> None:
    text = "".join(to_json(problem) + "\n" for problem in problems)
    counts = Counts(len(problems) + 7, len(problems), {"duplicate": 5, "contaminated": 2})
    finish(context, "problems", counts, {"problems.jsonl": text})
    total = 3 * len(problems)
    usage = {"prompt_tokens": 30 * total, "output_tokens": 120 * total, "engine_seconds": 42.0}
    foretold = {
        "output_tokens": 110 * total,
        "output_tokens_low": 100 * total,
        "output_tokens_high": 125 * total,
    }
    forecast = {"output_tokens": {"forecast": 110 * total, "fact": 120 * total, "ratio": 0.9167}}
    notes = {"solved": len(problems), "forecast": forecast}
    files = {"forecast.json": json.dumps(foretold)}
    finish(context, "generate", Counts(total + 1, total, {}, {"timeout": 1}), files, usage=usage, notes=notes)


def split_traces(run: Run, problems: list[Problem], chance: random.Random) -> tuple[list[Any], list[Any]]:
    kept, dropped = [], []
    for number in range(run.traces):
        problem = problems[number // 2]
        right = chance.random() < 0.6
        trace = made_trace(problem, number % 2, right, "embedded-moe", "r", run.hostile and number % 5 == 0)
        row = {
            **asdict(trace),
            "verdict": asdict(made_verdict(trace, right, problem.gold)),
            "question": problem.question,
            "gold": problem.gold,
            "source": problem.source,
            "licence": problem.licence,
            "kind": "trace",
        }
        if right:
            kept.append({**row, "num_tokens": 150, "trained_tokens": 120})
        else:
            reason = "cut" if trace.finish_reason == "length" else "wrong"
            dropped.append(
                {**row, "rule": "finished", "reason": reason, "detail": HOSTILE if run.hostile else ""}
            )
    return kept, dropped


def write_filter(context: Context, kept: list[Any], dropped: list[Any]) -> None:
    reasons = {reason: sum(row["reason"] == reason for row in dropped) for reason in ("cut", "wrong")}
    counts = Counts(len(kept) + len(dropped), len(kept), {k: v for k, v in reasons.items() if v})
    finish(context, "filter", counts, {"kept.jsonl": lines(kept), "dropped.jsonl": lines(dropped)})


def write_train(context: Context, examples: int) -> None:
    metrics = lines([{"step": step, "loss": 2.0 / step} for step in range(1, 40)])
    finish(context, "train", Counts(examples, examples), {"metrics.jsonl": metrics})


def models_of(recipe: Recipe) -> dict[str, SampledModel]:
    base = sampled_student(recipe.train.student)
    return {"base": base, "student": base, "teacher": sampled_teacher(recipe.generate.teacher)}


def write_eval(context: Context, run: Run) -> None:
    recipe, models = context.recipe, models_of(context.recipe)
    tasks = []
    for name in ("chain_sum", "basic_arithmetic"):
        chance = random.Random(name)  # every run asks the same questions, or the first of them
        tasks.append(Asked(name, [made_problem(chance, name) for _ in range(run.questions)], "boxed", 4))
    stage = begin(context.directory("eval"), plan_of(recipe, models, {}, {}), context.start)
    assert stage is not None
    with stage:
        asking = Asking(stage.directory, recipe.generate.sampling, recipe.seed)
        for task in tasks:
            path = stage.directory / f"{task.name}.problems.jsonl"
            path.write_text("".join(to_json(problem) + "\n" for problem in task.problems))
            for name, model in models.items():
                ability = (run.ability or ABILITY)[name]
                answer_all(asking, task, (name, model), ability, run.hostile)
        measured = read_all(asking, list(models), tasks)
        seen = overlaps(tasks, stage.directory.parent)
        results = results_of(stage.plan, measured, tasks, seen)
        (stage.directory / RESULTS).write_text(json.dumps(results))
        usage = {"engine_seconds": 20.0, "output_tokens": 90_000}
        counts = counts_of(measured, 0.0, stage.directory)
        stage.finish(counts, {**measured.outputs, RESULTS: None}, usage=usage)


def answer_all(
    asking: Asking, task: Asked, named: tuple[str, SampledModel], ability: float, hostile: bool
) -> None:
    name, model = named
    request = request_fingerprint(asking.job(model, task))
    with asking.store(task.name, name) as store:
        store.load(request)
        for trace, verdict in made_answers(task, name, request, ability, hostile):
            store.add_trace(trace)
            store.add_verdict(verdict)


def made_answers(
    task: Asked, name: str, request: str, ability: float, hostile: bool
) -> Iterator[tuple[Trace, Verdict]]:
    for number, problem in enumerate(task.problems):
        chance = random.Random(f"{problem.id}{name}")
        easy = chance.betavariate(8 * ability, 8 * (1 - ability))
        for sample in range(task.k):
            right = chance.random() < easy
            trace = made_trace(problem, sample, right, name, request, hostile and number % 7 == 0)
            yield trace, made_verdict(trace, right, problem.gold)


if __name__ == "__main__":
    write_report(write_run(Run(Path(sys.argv[1]), questions=200, traces=2_400)))
