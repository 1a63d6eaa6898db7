"""What polish is worth against more training: arms at two sizes of start, each a sibling recipe of the demo.

An arm is <problems a family>-<kind>-<epochs>, its run of that name under --runs:

    360-sft-20      trained on the traces of 360 problems a family for 20 epochs
    360-polish-20   the same, then polished
    360-traces-20   as many more traces as the teacher writes in the time in which it scores that polish's tokens
    360-time-20     as many more epochs on the same traces as fit into the wall time of 360-polish-20
    1800-demo-20    the demo, at other epochs; 1800-unverified-20 without the rule correct; 1800-demo_polish-5 polished

Traces are adopted from a finished run of the demo (--traces), so no teacher is asked: until eval, which samples
through vLLM, arms need torch alone and may run side by side, each in a process of its own:

    python -m tests.bench.bench_polish --arms 360-sft-20,360-polish-20 --until polish
    python -m tests.bench.bench_polish --arms 360-sft-20,360-polish-20
    python -m tests.bench.bench_polish --table
    python -m tests.bench.bench_polish --rates

Which epochs are the best is decided on problems that no arm trains on (train.held_out_share), never on the
reserved questions, on which all scores are. The last line is {"arms": {...}, "pairs": {...}}: of each arm its
cost and score, of each pair the paired difference.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from shutil import copytree
from typing import Any, cast

from eval.compare import compare_task, finished_run, pooled
from pipeline.context import Context, load_context
from pipeline.flags import EngineFlags
from pipeline.problems.sources import procedural_problems
from pipeline.recipe.cards import ROOT
from pipeline.recipe.sources import ProceduralSource
from pipeline.recipe.strict_yaml import dump, read_mapping
from pipeline.records import ProblemFile
from pipeline.render import split_response
from pipeline.report.sharing import link_or_copy
from pipeline.run.contract import Manifest, Start, Usage, read_manifest
from pipeline.sampling import Request, start_engine
from pipeline.sampling.engines.base import ScoringEngine
from pipeline.sampling.job import sample_seed
from pipeline.verify import VerifierPool
from pipeline.verify.confusion import wilson_interval
from students.examples import is_held_out

SIZES, EPOCHS = (360, 715), (5, 10, 20, 40)  # 715: less than 40% of the tokens that the demo's teacher writes
FAMILIES = 5
NUM_TIMED = 512
HELD_OUT_SHARE = 0.1
HELD_OUT_SAMPLES = 4
SCORED_PER_GENERATED = 0.66  # seconds of a scored token over those of a generated one; --rates measures both
POLISH = {
    "rounds": 100,
    "problems_per_round": 128,
    "max_tokens": 200,
    "learning_rate": 2e-4,
    "held_out": 256,
    "evaluate_every": 20,
}
KINDS = ("sft", "polish", "traces", "time")  # in an order in which each finds what it needs
NAME = re.compile(r"(\d+)-(sft|polish|traces|time|demo|unverified|demo_polish)-(\d+)")
DEMO_ARMS = ["1800-demo-5", "1800-unverified-5", "1800-demo-20", "1800-unverified-20", "1800-demo_polish-5"]
STAGES = ("problems", "generate", "filter", "train", "polish", "eval")


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm, where its run is, where the traces come from, and what is set beside the recipe."""

    name: str
    runs: Path
    traces: Path
    override: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[int, str, int]:
        found = NAME.fullmatch(self.name)
        if found is None:
            raise SystemExit(f"{self.name}: no arm is called so; --help shows their names")
        return int(found[1]), found[2], int(found[3])

    @property
    def path(self) -> Path:
        return self.runs / self.name

    def other(self, kind: str) -> "Arm":
        size, _, epochs = self.parts
        return Arm(f"{size}-{kind}-{epochs}", self.runs, self.traces, self.override)

    def recipe(self) -> dict[str, Any]:
        """The demo's recipe with what makes it this arm."""
        size, kind, epochs = self.parts
        values = read_mapping(ROOT / "recipes/demo.yaml", "recipe")
        values["name"], values["train"]["epochs"] = self.name, epochs
        values["eval"]["compare"] = ["student"]
        if kind in ("demo", "unverified", "demo_polish"):
            if kind == "unverified":
                values["filter"]["rules"].remove("correct")
            if kind == "demo_polish":
                values["polish"] = {**POLISH, "held_out": 0}
            return values
        values["train"]["held_out_share"] = HELD_OUT_SHARE
        del values["filter"]["select"]["max_tokens"]
        if kind == "polish":
            values["polish"] = dict(POLISH)
        if kind == "traces":
            size += self.more_problems(size)
        if kind == "time":
            values["train"]["epochs"] = self.epochs_in_time(epochs)
        sizes = {source["size"] for source in values["problems"]["sources"]}
        if size > (most := max(sizes)):
            print(f"{self.name}: for that time the teacher writes the traces of {size:,} problems a family; "
                  f"the demo has {most:,}, and this arm has those", file=sys.stderr)  # fmt: skip
        values["generate"]["share"] = min(1.0, round(size / most, 4))
        return values

    def more_problems(self, size: int) -> int:
        """Problems a family for whose traces the teacher's time is that of scoring the polished arm's tokens."""
        polish = self.other("polish")
        section = polish.context().recipe.polish
        bought = read_manifest(self.traces / "generate")
        assert section is not None
        assert bought is not None
        assert bought.usage.output_tokens
        responses = section.rounds * section.problems_per_round * section.samples
        scored = responses * bought.usage.output_tokens / bought.counts.num_in
        demo = read_mapping(ROOT / "recipes/demo.yaml", "recipe")["problems"]["sources"]
        tokens_per_problem = bought.usage.output_tokens / sum(source["size"] for source in demo)
        return round(SCORED_PER_GENERATED * scored / tokens_per_problem / FAMILIES)

    def epochs_in_time(self, epochs: int) -> int:
        polish = self.other("polish")
        taken = [read_manifest(polish.path / stage) for stage in ("train", "polish")]
        if None in taken:
            raise SystemExit(f"{self.name}: needs the finished {polish.name}, whose wall time it is given")
        train, polished = (seconds_of(manifest) for manifest in taken if manifest)
        return round(epochs * (1 + polished / train))

    def write(self) -> Path:
        path = self.runs / f"{self.name}.yaml"
        text = f"# Purpose:  arm {self.name} of tests/bench/bench_polish.py\n" + dump(self.recipe())
        if not path.is_file() or path.read_text() != text:  # arms beside this one read it
            path.write_text(text)
        return path

    def own_overrides(self) -> list[str]:
        """Those of --set whose section this arm has."""
        sections = read_mapping(self.write(), "recipe")
        return [pair for pair in self.override if pair.partition("=")[0].partition(".")[0] in sections]

    def context(self) -> Context:
        path, override = self.write(), self.own_overrides()
        return load_context(path, self.runs, Start(recipe=str(path)), override)

    def run(self, until: str) -> None:
        """Every stage up to `until`, by the ordinary command line."""
        path = self.write()
        self.share()
        for stage in STAGES[: STAGES.index(until) + 1]:
            command = [
                sys.executable,
                "-m",
                "pipeline",
                stage,
                "--recipe",
                str(path),
                "--runs",
                str(self.runs),
            ]
            command += [f"--set={pair}" for pair in self.own_overrides()]
            if stage == "generate":
                command += ["--adopt", str(self.traces)]
            subprocess.run(command, check=True, cwd=ROOT)
        self.held_out()

    def share(self) -> None:
        """The stages up to train of the arm that this one starts from, as links, where they are finished."""
        origin = {"polish": "sft", "demo_polish": "demo"}.get(self.parts[1])
        source = self.other(origin).path if origin else self.path
        if origin is None or self.path.exists() or read_manifest(source / "train") is None:
            return
        for stage in ("problems", "generate", "filter", "train"):
            copytree(source / stage, self.path / stage, copy_function=link_or_copy)

    def held_out(self) -> dict[str, Any]:
        """How many of the held-out problems the student answers rightly, sampled in this process; kept in
        held_out.json."""
        path, context = self.path / "held_out.json", self.context()
        if not context.recipe.train.held_out_share:
            return {}
        if not path.is_file():
            path.write_text(json.dumps(answer_held_out(context)))
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def figures(self) -> dict[str, Any]:
        """What the arm cost, and what it came to; None where it has no such stage."""
        manifests = {stage: read_manifest(self.path / stage) for stage in STAGES}
        usage = {stage: manifest.usage for stage, manifest in manifests.items() if manifest is not None}
        polish, held = usage.get("polish"), self.held_out() if self.path.is_dir() else {}
        scored = polish and (polish.scored_tokens or polish.output_tokens)
        found: dict[str, Any] = {
            "epochs": manifests["train"].config["train"]["epochs"] if manifests["train"] else None,
            "kept_traces": manifests["filter"].counts.kept if manifests["filter"] else None,
            "teacher_generated_tokens": usage["generate"].output_tokens if "generate" in usage else None,
            "teacher_scored_tokens": scored,
            "train_seconds": seconds_of(manifests["train"]),
            "polish_seconds": seconds_of(manifests["polish"]),
            "held_out": held.get("rate"),
            "held_out_ci95": held.get("ci95"),
        }
        if manifests["eval"] is not None:
            score = finished_run(self.path, "student").results.tasks["all"].models["student"]
            found |= {"pass@1": round(score.pass_at_1, 4), "ci95": [round(end, 4) for end in score.ci95]}
        return found


def seconds_of(manifest: Manifest | None) -> float:
    """What a stage of training took: its updates, and in polish the sampling and the scoring."""
    usage = manifest.usage if manifest else Usage()
    taken = (usage.train_seconds, usage.engine_seconds, usage.scoring_seconds)
    return round(sum(seconds or 0 for seconds in taken), 1)


def answer_held_out(context: Context) -> dict[str, Any]:
    """Right answers of the run's student to the problems that train holds out, `HELD_OUT_SAMPLES` each."""
    import torch
    from transformers import AutoModelForCausalLM

    from students.format import load_format
    from students.sampler import Draw, draw

    torch.manual_seed(0)
    asked = [
        (problem, sample)
        for problem in ProblemFile(context.directory("problems") / "problems.jsonl")
        if is_held_out(problem.id, context.recipe.train.held_out_share, context.recipe.seed)
        for sample in range(HELD_OUT_SAMPLES)
    ]
    student, limit = context.student, context.recipe.generate.sampling.max_tokens
    style = load_format(context.student_card, student)
    model = AutoModelForCausalLM.from_pretrained(student.model, dtype=torch.float32).eval()
    draws = [
        Draw(style.prompts.ids(context.prompt.messages(problem.question)), sample_seed(1, problem, sample))
        for problem, sample in asked
    ]
    drawn = draw(model, draws, style.turn_end_id, limit, temperature=1.0, batch=128)
    answers = [
        (
            (problem.id, sample),
            problem,
            split_response(style.prompts.decode(found.ids[:-1]), student.tags).answer,
        )
        for (problem, sample), found in zip(asked, drawn, strict=True)
        if found.ids[-1] == style.turn_end_id  # a cut response is never right
    ]
    with VerifierPool(workers=1) as pool:
        rows = ((key, held.verifier, held.gold, answer, held.metadata) for key, held, answer in answers)
        right = sum(verdict.status == "correct" for verdict in pool.map(rows))
    low, high = wilson_interval(right, len(asked))
    return {
        "rate": round(right / len(asked), 4),
        "ci95": [round(low, 4), round(high, 4)],
        "samples": len(asked),
    }


def best_of(arms: list[Arm], figures: dict[str, dict[str, Any]]) -> Arm | None:
    """The arm that answers most of the held-out problems, the one with fewer epochs of equal ones."""
    done = [arm for arm in arms if "pass@1" in figures.get(arm.name, {})]
    return max(done, key=lambda arm: (figures[arm.name]["held_out"], -arm.parts[2]), default=None)


def pairs_of(arms: list[Arm], figures: dict[str, dict[str, Any]]) -> Iterator[tuple[Arm, Arm]]:
    """Which differences answer the question; the first of a pair is set against the second."""
    by_name = {arm.name: arm for arm in arms if "pass@1" in figures.get(arm.name, {})}
    for size in sorted({arm.parts[0] for arm in arms}):
        kinds = {
            kind: best_of([arm for arm in arms if arm.parts[:2] == (size, kind)], figures)
            for kind in ("polish", "sft", "traces", "time")
        }
        polish = kinds.pop("polish")
        others = [
            *kinds.values(),
            polish and by_name.get(polish.other("sft").name),
            by_name.get("1800-demo-5"),
        ]
        for other in dict.fromkeys(others):
            if polish is not None and other is not None:
                yield polish, other
    for first, second in (
        ("demo_polish-5", "demo-5"),
        ("demo-5", "unverified-5"),
        ("demo-20", "unverified-20"),
    ):
        names = f"1800-{first}", f"1800-{second}"
        if by_name.keys() >= set(names):
            yield by_name[names[0]], by_name[names[1]]


def difference(first: Arm, second: Arm) -> dict[str, Any]:
    """pass@1 of the first minus the second's, on the same questions."""
    runs = finished_run(second.path, "student"), finished_run(first.path, "student")
    tasks = [task for task in runs[0].results.task_names if task in runs[1].results.task_names]
    result = pooled([compare_task(*runs, task, "student") for task in tasks])[0].result
    return {"delta": round(result.delta, 4), "ci95": [round(end, 4) for end in result.ci95], "p": result.p}


def table(arms: list[Arm]) -> dict[str, Any]:
    """All that is finished, as JSON; a line an arm and a pair on stderr."""
    figures = {arm.name: arm.figures() for arm in arms if (arm.path / "train/manifest.json").is_file()}
    pairs = {f"{a.name} - {b.name}": difference(a, b) for a, b in pairs_of(arms, figures)}
    for name, held in {**figures, **pairs}.items():
        print(f"{name:40} {json.dumps(held)}", file=sys.stderr)
    return {"arms": figures, "pairs": pairs}


async def rates() -> dict[str, float]:
    """Tokens a second that the embedded teacher writes, and scores, through vLLM here; what it wrote is scored."""
    context = load_context(ROOT / "recipes/demo.yaml", Path("runs"))
    sampling, source = context.recipe.generate.sampling, context.recipe.problems.sources[0]
    assert isinstance(source, ProceduralSource)
    problems = list(islice(procedural_problems(source, context.recipe.seed, reserved=False), NUM_TIMED))
    async with start_engine(context.teacher, EngineFlags()) as started:
        engine = cast(ScoringEngine, started)
        await engine.ready()
        requests = [
            Request(
                engine.prompt(context.prompt.messages(problem.question)),
                sampling,
                seed,
                (problem.id, 0),
                True,
            )
            for seed, problem in enumerate(problems)
        ]
        took: list[float] = []
        for _ in range(2):  # the first time warms it
            begun = time.monotonic()
            done = await asyncio.gather(*map(engine.sample, requests))
            written = [completion.tokens.ids for completion in done if completion.tokens is not None]
            wrote = time.monotonic()
            pairs = zip(requests, written, strict=True)
            await asyncio.gather(*(engine.score(request.prompt, ids) for request, ids in pairs))
            took = [wrote - begun, time.monotonic() - wrote]
    tokens = sum(map(len, written))
    return {
        "generated_tokens_per_second": round(tokens / took[0], 1),
        "scored_tokens_per_second": round(tokens / took[1], 1),
        "scored_per_generated": round(took[1] / took[0], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/bench-polish"))
    parser.add_argument("--traces", type=Path, default=Path("runs/demo"), help="A finished run of the demo.")
    parser.add_argument("--arms", help="Names, with commas between; else all.")
    parser.add_argument("--until", choices=("filter", "train", "polish", "eval"), default="eval")
    parser.add_argument(
        "--set", action="append", default=[], help="section.key=value for every arm that has it."
    )
    parser.add_argument("--table", action="store_true", help="Run nothing; what is finished as JSON.")
    parser.add_argument("--rates", action="store_true", help="Time the teacher's engine instead.")
    flags = parser.parse_args()
    if flags.rates:
        print(json.dumps(asyncio.run(rates())))
        return
    flags.runs.mkdir(parents=True, exist_ok=True)
    names = [f"{size}-{kind}-{n}" for size in SIZES for kind in KINDS for n in EPOCHS] + DEMO_ARMS
    if flags.table and not flags.arms:
        names = sorted(path.name for path in flags.runs.iterdir() if NAME.fullmatch(path.name))
    elif flags.arms:
        names = flags.arms.split(",")
    runs, traces = flags.runs.resolve(), flags.traces.resolve()
    arms = [Arm(name, runs, traces, tuple(flags.set)) for name in names]
    if not flags.table:
        for arm in arms:
            arm.run(flags.until)
    print(json.dumps(table(arms)))


if __name__ == "__main__":
    main()
