"""Problems solved an engine-second: the generate loop beside distilabel and ray.data.llm, in one run.

    python -m tests.bench.bench_peers [--problems 512] [--peers distilabel,ray] [--environments .bench]

The demo's families, the embedded teacher, temperature 1, at most 8 samples a problem, the same chats (what the
engines make of them is compared, token by token) and the same vLLM with the same settings. retort stops a problem
at its first correct trace; the peers verify nothing, so they sample every problem alike: 8 times first, then, in
a run of its own, n times, the fewest that solve the share that retort solves, counted from their own 8 (the mean
over all choices of n of them). Where only all 8 do, or not even they, the first run is the one that counts.

Engine start counts for nobody. The peers' seconds end with their last token: their answers are read by retort's
verifiers afterwards, untimed, and one that was cut may count as solved. retort's seconds are those of the whole
loop, with store and verifiers in it and with a seed of its own for every sample; it runs before and after the
peers. Each peer has an environment of its own, made here: it adds what tests/bench/peers/*.lock lists to the
installed lock, so that its vLLM and torch are ours. What else had to be changed for a peer to run stands in its
`changes`. Prints JSON: {"retort": ..., "distilabel": ..., "ray.data.llm": ..., "ratio": {peer: retort's solved an
engine-second over the peer's}, "ratio_at_budget": {the same over its 8 samples}}.
"""

import argparse
import asyncio
import hashlib
import json
import logging
import math
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.scores import pass_at_k
from pipeline.embedded.training import FAMILIES
from pipeline.flags import EngineFlags
from pipeline.problems.sources import procedural_problems
from pipeline.recipe.cards import sampled_teacher, teacher_card
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.schema import Samples, Sampling
from pipeline.recipe.sources import ProceduralSource
from pipeline.records import Problem
from pipeline.render import split_response
from pipeline.run.lifetime import Guard
from pipeline.sampling import Job, Options, Store, collect, start_engine
from pipeline.sampling.prompts import load_prompts
from pipeline.verify import VerifierPool

HERE = Path(__file__).resolve().parent / "peers"
ENVIRONMENTS = HERE.parents[2] / ".bench"
NAMES = {"distilabel": "distilabel", "ray": "ray.data.llm"}
BUDGET = 8
CONCURRENCY = 256
BATCH = 50  # problems in a batch of distilabel, its default
CHILD_SECONDS = 1800
# no hub, nothing sent anywhere, no log but errors, and all at the same priority
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_memory_monitor_refresh_ms": "0",  # it ends workers for the memory that others take
    "RAY_worker_niceness": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def make_job() -> Job:
    model = sampled_teacher("embedded-moe", teacher_card("embedded-moe"))
    sampling = Sampling(temperature=1.0, max_tokens=200)
    return Job(model, PROMPTS["boxed"], sampling, Samples(keep=1, max=BUDGET), 0)


def make_problems(count: int) -> list[Problem]:
    """As many of each of the demo's families, one after the other."""
    size = math.ceil(count / len(FAMILIES))
    families = [
        procedural_problems(ProceduralSource(reasoning_gym=name, size=size, config=config), 0, reserved=False)
        for name, config in FAMILIES.items()
    ]
    return [problem for row in zip(*families, strict=True) for problem in row][:count]


def environment(name: str, folder: Path) -> Path:
    """The Python of a peer's own environment, which is made where it is not there or is of other locks."""
    lock, ours = HERE / f"{name}.lock", str(Path(sysconfig.get_path("purelib")).resolve())
    home = folder.absolute() / name
    python, digest = home / "bin" / "python", hashlib.sha256(lock.read_bytes() + ours.encode()).hexdigest()
    ready = home / f".ready-{digest[:16]}"
    if not ready.exists():
        print(f"making {home}", file=sys.stderr)
        venv.create(home, clear=True, symlinks=True)
        own = sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)})
        # the packages of our lock, after its own: one engine for all, and nothing that is 4 GB twice
        (Path(own) / "installed_lock.pth").write_text(ours + "\n")
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
        subprocess.run([*pip, "-r", str(lock)], check=True)
        ready.touch()
    return python


def solved_by_samples(correct: Sequence[int]) -> list[float]:
    """The share of problems solved by 1, 2, ... BUDGET samples, from how many of BUDGET are correct of each."""
    return [float(pass_at_k(correct, BUDGET, samples).mean()) for samples in range(1, BUDGET + 1)]


def fewest_samples(shares: Sequence[float], wanted: float) -> int:
    """How many samples solve the share that is wanted; all where not even they do."""
    reached = [number for number, share in enumerate(shares, 1) if share >= wanted - 1e-9]
    return min(reached, default=len(shares))


def peers_of(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    if unknown := [name for name in names if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(NAMES)}")
    return names


async def run_retort(job: Job, problems: list[Problem]) -> dict[str, Any]:
    """The loop on all problems; its engine and its verifiers are warm, as the peers' are not timed either."""
    with tempfile.TemporaryDirectory() as directory, VerifierPool() as pool:
        first = problems[0]
        await pool.verify((first.id, 0), first.verifier, first.gold, first.gold, first.metadata)
        async with start_engine(job.model, EngineFlags(concurrency=CONCURRENCY)) as engine:
            await engine.ready()
            with Store(Path(directory)) as store:
                begun = time.perf_counter()
                tally = await collect(job, problems, engine, store, pool, Options(CONCURRENCY))
                seconds = time.perf_counter() - begun
    if tally.failed:
        raise SystemExit(f"error: requests failed: {dict(tally.failed)}")
    return figures(tally.solved, tally.sampled, tally.output_tokens, seconds)


def figures(solved: int, samples: int, tokens: int, seconds: float) -> dict[str, Any]:
    return {
        "solved": solved,
        "samples": samples,
        "output_tokens": tokens,
        "engine_seconds": round(seconds, 2),
        "tokens_per_second": round(tokens / seconds),
        "solved_per_engine_second": round(solved / seconds, 2),
    }


def work_of(job: Job, problems: list[Problem], samples: int) -> dict[str, Any]:
    """What a peer is asked, as JSON; the batches of distilabel are its own, or larger to fill the engine."""
    from pipeline.sampling.engines.vllm import engine_arguments

    return {
        "engine": engine_arguments(job.model, EngineFlags(concurrency=CONCURRENCY)),
        "chats": [job.prompt.messages(problem.question, problem.source) for problem in problems],
        "samples": samples,
        "batch": max(BATCH, math.ceil(CONCURRENCY / samples)),
        **job.sampling.model_dump(include={"temperature", "top_p", "max_tokens"}),
    }


def ask(name: str, python: Path, work: dict[str, Any]) -> dict[str, Any]:
    """A peer's answers, from a process of its own environment."""
    with tempfile.TemporaryDirectory() as directory:
        asked, answered, log = (Path(directory) / file for file in ("work.json", "answers.json", "log"))
        asked.write_text(json.dumps(work))
        command = [str(python), str(HERE / f"ask_{name}.py"), str(asked), str(answered)]
        guard = Guard()  # what is left of its engine ends with this process
        environment = os.environ | SETTINGS | guard.mark
        with log.open("wb") as stream:
            child = subprocess.Popen(command, cwd=directory, env=environment, stdout=stream, stderr=stream)
            try:
                ending = f"ended with {child.wait(CHILD_SECONDS)}"
            except subprocess.TimeoutExpired:
                ending = f"did not end in {CHILD_SECONDS} s"
            finally:
                child.kill()
                child.wait()
        if answered.exists():
            guard.dismiss()
        else:
            raise SystemExit(f"{log.read_text(errors='replace')[-6000:]}\nerror: {NAMES[name]} {ending}")
        found: dict[str, Any] = json.loads(answered.read_text())
        return found


def check_answers(name: str, job: Job, problems: list[Problem], samples: int, found: dict[str, Any]) -> None:
    """SystemExit where an answer is missing, or where an engine was asked anything else than ours is."""
    if wrong := [len(texts) for texts in found["texts"] if len(texts) != samples]:
        raise SystemExit(f"error: {NAMES[name]} gave {wrong[0]} answers to a problem instead of {samples}")
    prompts = load_prompts(job.model)
    for problem, ids in zip(problems, found["prompts"], strict=True):
        if ids != (wanted := prompts.ids(job.prompt.messages(problem.question, problem.source))):
            raise SystemExit(f"error: {NAMES[name]} asks {problem.id} as {ids} instead of {wanted}")


def correct_answers(job: Job, problems: list[Problem], texts: list[list[str]]) -> list[int]:
    """How many of each problem's answers the verifiers call correct."""
    rows = [
        ((problem.id, sample), problem.verifier, problem.gold, split_response(text, job.model.tags).answer,
         problem.metadata)
        for problem, own in zip(problems, texts, strict=True)
        for sample, text in enumerate(own)
    ]  # fmt: skip
    with VerifierPool() as pool:
        verdicts = pool.map(rows)
        return [sum(next(verdicts).status == "correct" for _ in own) for own in texts]


def run_peer(name: str, python: Path, job: Job, problems: list[Problem], wanted: float) -> dict[str, Any]:
    """A peer with all 8 samples, and with the fewest that solve the share that is wanted."""

    def measure(samples: int) -> tuple[dict[str, Any], list[int], list[str]]:
        found = ask(name, python, work_of(job, problems, samples))
        check_answers(name, job, problems, samples, found)
        correct = correct_answers(job, problems, found["texts"])
        solved, taken = sum(count > 0 for count in correct), len(problems) * samples
        shown = figures(solved, taken, found["output_tokens"], found["seconds"])
        show(f"{NAMES[name]}, {samples} samples", shown)
        return shown, correct, found["changes"]

    whole, correct, changes = measure(BUDGET)
    shares = solved_by_samples(correct)
    samples = fewest_samples(shares, wanted)
    equal = whole if samples == BUDGET else measure(samples)[0]
    return {
        **equal,
        "samples_per_problem": samples,
        "solved_by_samples": [round(share, 4) for share in shares],
        "at_budget": whole,
        "changes": changes,
    }


def show(name: str, found: dict[str, Any]) -> None:
    print(
        f"{name:<24} {found['solved']:>5,} solved by {found['samples']:>6,} samples, {found['output_tokens']:>9,} "
        f"tokens in {found['engine_seconds']:>7.2f} s: {found['solved_per_engine_second']:>7.2f} solved/s",
        file=sys.stderr,
    )


def measure_all(job: Job, problems: list[Problem], pythons: dict[str, Path]) -> dict[str, Any]:
    turns = [asyncio.run(run_retort(job, problems))]
    show("retort", turns[0])
    wanted = turns[0]["solved"] / len(problems)
    peers = {NAMES[name]: run_peer(name, python, job, problems, wanted) for name, python in pythons.items()}
    # once more: what else the machine does is met before the peers and after them
    turns.append(asyncio.run(run_retort(job, problems)))
    show("retort", turns[1])
    both = figures(
        *(turns[0][key] + turns[1][key] for key in ("solved", "samples", "output_tokens", "engine_seconds"))
    )

    def over(found: dict[str, Any]) -> float:
        """retort's problems solved a second over a peer's."""
        return round(both["solved"] / both["engine_seconds"] / (found["solved"] / found["engine_seconds"]), 3)

    return {
        "problems": len(problems),
        "retort": {
            "solved_per_engine_second": both["solved_per_engine_second"],
            "before": turns[0],
            "after": turns[1],
        },
        **peers,
        "ratio": {name: over(found) for name, found in peers.items()},
        "ratio_at_budget": {name: over(found["at_budget"]) for name, found in peers.items()},
    }


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=512)
    parser.add_argument("--peers", type=peers_of, default=list(NAMES), help=f"of {', '.join(NAMES)}")
    parser.add_argument(
        "--environments", type=Path, default=ENVIRONMENTS, help="where the peers' are, or are made"
    )
    return parser.parse_args(given)


def main() -> None:
    flags = arguments()
    logging.basicConfig(level=logging.WARNING)
    os.environ.update(SETTINGS | os.environ)
    pythons = {name: environment(name, flags.environments) for name in flags.peers}
    found = measure_all(make_job(), make_problems(flags.problems), pythons)
    for name in flags.peers:
        for change in found[NAMES[name]]["changes"]:
            print(f"{NAMES[name]}: {change}", file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
