"""The filter's speed and memory on synthetic traces of 2 KB, verdicts given, by the number of workers.

Runs all rules that read text and the whole selection and writing on 100,000 and on 1,000,000 traces, each in
a process of its own, then on 100,000 with tokens counted by a byte-level BPE tokenizer of 8,000 entries made
here, and on 100,000 with one worker. Needs about 9 GB in the temporary directory. The last line on stdout is
one JSON object: traces_per_second (the larger run), traces_per_second_counting, the ratios of peak memory (all
processes together) and of time between the two runs, and under `workers` what tests.bench.scaling makes of one
worker against two.

    python -m tests.bench.bench_filter [--traces 1000000] [--only-workers]
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pipeline.filter.apply import RuleSet
from pipeline.filter.examples import Format
from pipeline.filter.first_pass import FirstPass, Inputs
from pipeline.filter.ledger import Ledger
from pipeline.filter.mix import Mixer
from pipeline.filter.stage import PASSED, drop_unselected, write_kept
from pipeline.problems.overlap import EvalQuestion
from pipeline.recipe.cards import Tags
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.rule_entry import RuleEntry
from pipeline.recipe.schema import Select
from pipeline.records import Problem, Status, Trace, Verdict, problem_id, to_json
from pipeline.render import Split, join_response
from pipeline.verify.basis import basis_of, tags_digest
from pipeline.verify.table import VERSIONS
from tests.bench.scaling import cpu_seconds, scaling

RULES: list[RuleEntry] = [
    "finished",
    "closed_thinking",
    "one_answer",
    "correct",
    "not_repetitive",
    "one_language",
    "no_leaked_template",
    "no_refusal",
    "no_gold_leak",
    "not_contaminated",
]
SAMPLES = 8  # traces of a problem
TRACE_BYTES = 2_000
NUM_EVAL_QUESTIONS = 1_819  # as many as GSM8K test and MATH-500 together
NUM_TEXTS = 400  # different thinkings; each trace adds its own numbers
WORKERS = 2
TAGS = Tags()


def vocabulary(rng: random.Random) -> list[str]:
    """3,000 pronounceable words, the short ones first."""
    parts = [c + v for c in "bcdfghjklmnprstvwz" for v in "aeiou"]
    words = {
        "".join(rng.choice(parts) for _ in range(1 + i // 1000)) + rng.choice("nrst") for i in range(4000)
    }
    return sorted(words, key=lambda word: (len(word), word))[:3000]


def sentence(rng: random.Random, words: list[str]) -> str:
    chosen = [words[min(int(rng.expovariate(1 / 300)), len(words) - 1)] for _ in range(rng.randint(6, 16))]
    return " ".join([*chosen, str(rng.randint(2, 9999))]).capitalize() + rng.choice([".", ".", ":", ","])


def thinking(rng: random.Random, words: list[str]) -> str:
    text = ""
    while len(text) < TRACE_BYTES - 120:
        text += sentence(rng, words) + rng.choice([" ", " ", "\n"])
    return text


def write_inputs(directory: Path, num_traces: int) -> None:
    """problems.jsonl, one shard of traces and verdicts.jsonl; every fifth answer is wrong."""
    rng = random.Random(0)
    words = vocabulary(rng)
    texts = [thinking(rng, words) for _ in range(NUM_TEXTS)]
    with (
        (directory / "problems.jsonl").open("w") as problems,
        (directory / "traces-00000.jsonl").open("w") as traces,
        (directory / "verdicts.jsonl").open("w") as verdicts,
    ):
        for number in range(num_traces // SAMPLES):
            question, gold = f"{sentence(rng, words)} Question {number}?", str(number)
            problem = Problem(problem_id(question), question, gold, "math", f"s{number % 5}", "none")
            problems.write(to_json(problem) + "\n")
            basis = basis_of(problem, tags_digest(TAGS))
            for sample in range(SAMPLES):
                right = rng.random() < 0.8
                own = f"Attempt {sample} at {number}: {rng.random()} {rng.random()}\n"
                answer = f"So the result is \\boxed{{{gold if right else number + 1}}}."
                split = Split(own + texts[rng.randrange(NUM_TEXTS)], answer, "closed")
                text = join_response(split, TAGS, opening=f"{TAGS.open}\n")
                trace = Trace(problem.id, sample, 1, "request", text, "stop", 60, len(text) // 4, "teacher")
                traces.write(to_json(trace) + "\n")
                status: Status = "correct" if right else "wrong"
                version = VERSIONS["math"]
                verdict = Verdict(
                    problem.id, sample, status, basis, "equal", gold, "string", "math", version, 0.001
                )
                verdicts.write(to_json(verdict) + "\n")


def write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    rng = random.Random(1)
    words = vocabulary(rng)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=8_000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([thinking(rng, words) for _ in range(1_000)], trainer)
    tokenizer.save(str(path))


def filter_all(directory: Path, tokenizer: str | None, workers: int) -> dict[str, float]:
    """Everything that the stage does between its manifests; seconds and peak memory of this process tree."""
    rng = random.Random(2)
    words = vocabulary(rng)
    questions = [
        EvalQuestion("task", str(i), " ".join(sentence(rng, words) for _ in range(3)), False)
        for i in range(NUM_EVAL_QUESTIONS)
    ]
    rule_set = RuleSet(RULES, Format(PROMPTS["boxed"], TAGS, TAGS, tokenizer), questions)
    select = Select(per_problem=2, prefer="shortest")
    out = directory / "out"
    out.mkdir()
    inputs = Inputs(
        directory / "problems.jsonl", [directory / "traces-00000.jsonl"], directory / "verdicts.jsonl"
    )
    start, (before, _) = time.monotonic(), cpu_seconds()
    with (out / "dropped.jsonl").open("wb") as dropped, (out / "failed.jsonl").open("wb") as failed:
        ledger = Ledger(dropped, failed)
        first = FirstPass(inputs, rule_set, select, 0, workers, ledger)
        first.run(out / PASSED)
        selected = first.selection.choose()
        first_pass = time.monotonic() - start
        drop_unselected(out / PASSED, selected, ledger)
        kept, _ = write_kept(out / PASSED, out, selected, rule_set.form, Mixer([], rule_set, 0, 0, ledger))
    seconds = time.monotonic() - start
    if first.num_verified or ledger.failed or kept != len(selected.offsets):
        raise SystemExit(f"not the run that was meant to be measured: {first.num_verified=}, {ledger.failed}")
    own, theirs = cpu_seconds()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak += workers * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # that of the largest worker
    return {
        "rows": ledger.num_in,
        "seconds": seconds,
        "first_pass": first_pass,
        "peak_mb": peak / 1024,
        "own_cpu": own - before,
        "workers_cpu": theirs,
    }


def measure(num_traces: int, *, counting: bool = False, workers: int = WORKERS) -> dict[str, float]:
    """Write inputs, filter them in a fresh process, remove everything."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_inputs(directory, num_traces)
        command = [sys.executable, "-m", "tests.bench.bench_filter", "--child", name]
        command += ["--workers", str(workers)]
        if counting:
            write_tokenizer(directory / "tokenizer.json")
            command += ["--tokenizer", str(directory / "tokenizer.json")]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    rate = result["rows"] / result["seconds"]
    cpu = result["own_cpu"] + result["workers_cpu"]
    print(
        f"{num_traces:>9,} traces{' counting tokens' if counting else '':16}, {workers} workers "
        f"{result['seconds']:7.1f} s "
        f"(rules and selection {result['first_pass']:.1f} s) {rate:7,.0f} traces/s, "
        f"{1000 * cpu / num_traces:.2f} ms of CPU a trace, {result['peak_mb']:.0f} MB peak",
        flush=True,
    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--traces", type=int, default=1_000_000)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer", help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=WORKERS, help=argparse.SUPPRESS)
    parser.add_argument("--only-workers", action="store_true", help="one worker against two, and no more")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(filter_all(arguments.child, arguments.tokenizer, arguments.workers)))
        return
    small = measure(arguments.traces // 10)
    workers = scaling({1: measure(arguments.traces // 10, workers=1), WORKERS: small})
    if arguments.only_workers:
        print(json.dumps({"workers": workers}))
        return
    counted = measure(arguments.traces // 10, counting=True)
    large = measure(arguments.traces)
    result = {
        "traces_per_second": round(large["rows"] / large["seconds"]),
        "traces_per_second_counting": round(counted["rows"] / counted["seconds"]),
        "memory_ratio": round(large["peak_mb"] / small["peak_mb"], 3),
        "time_ratio": round(large["seconds"] / small["seconds"], 2),
        "workers": workers,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
