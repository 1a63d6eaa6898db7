"""Memory and time of the problems stage by the number of its rows.

    python -m tests.bench.bench_problems [--rows 100000,1000000] [--only-workers]

Each size runs in a process of its own, on questions made up from sixty words, with numbers: one row
in fifty repeats another, one in fifty nearly does, one in a thousand is a question of the eval task of 500,
one in two hundred has no gold. Golds are verified by `math`. Prints JSON {"<rows>": {"seconds", "mb": the peak
of the stage's process, "mb_of_bare_process", "kept", "dropped", CPU times}, "mb_per_million_rows": between the sizes, "workers": what
tests.bench.scaling makes of one worker against two at the smallest size}.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from tests.bench.scaling import cpu_seconds, scaling

SIZES = (100_000, 1_000_000)
WORKERS = 2
TASK_ROWS = 500
CHILD = "--child"
STARTS = ("ba", "de", "fi", "go", "lu", "me", "no", "pi", "ra", "su")
ENDS = ("nk", "rt", "sp", "l", "m", "x")
WORDS = [start + end for start in STARTS for end in ENDS]


def question(random: Random) -> tuple[str, int]:
    words = [random.choice(WORDS) for _ in range(random.randint(12, 40))]
    numbers = [random.randint(2, 999) for _ in range(3)]
    text = f"{' '.join(words)}: {numbers[0]}, {numbers[1]} and {numbers[2]}, how many are they together?"
    return text, sum(numbers)


def write_rows(path: Path, num_rows: int, asked: list[tuple[str, int]]) -> None:
    random = Random(0)
    earlier: list[tuple[str, int]] = []
    with path.open("w") as file:
        for _ in range(num_rows):
            text, gold = question(random)
            draw = random.random()
            if earlier and draw < 0.02:
                text, gold = random.choice(earlier)
            elif earlier and draw < 0.04:
                text, gold = random.choice(earlier)
                text = text.replace("how many", "say how many")
            elif draw < 0.041:
                text, gold = random.choice(asked)
            answer = "" if 0.041 <= draw < 0.046 else str(gold)
            file.write(json.dumps({"question": text, "answer": answer}) + "\n")
            if len(earlier) < 1_000:
                earlier.append((text, gold))


def run_child(directory: Path, workers: int) -> dict[str, float]:
    from pipeline.context import Context
    from pipeline.flags import WorkerFlags
    from pipeline.problems.stage import run
    from pipeline.recipe.cards import load_cards
    from pipeline.recipe.schema import load_recipe
    from pipeline.run.contract import Start, read_manifest

    recipe = load_recipe(directory / "recipe.yaml")
    context = Context(recipe, load_cards(recipe), directory / "runs", Start())
    before, started, own_before = peak_mb(), time.monotonic(), cpu_seconds()[0]
    run(context, WorkerFlags(workers=workers))
    manifest = read_manifest(context.directory("problems"))
    assert manifest is not None
    own, theirs = cpu_seconds()
    return {
        "rows": manifest.counts.num_in,
        "seconds": round(time.monotonic() - started, 1),
        "own_cpu": round(own - own_before, 1),
        "workers_cpu": round(theirs, 1),
        "mb": peak_mb(),
        "mb_of_bare_process": before,
        "kept": manifest.counts.kept,
        "dropped": sum(manifest.counts.dropped.values()),
    }


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


RECIPE = """name: bench
problems:
  sources: [{path: DIR/rows.jsonl}]
generate:
  teacher: embedded-moe
  samples: {keep: 1, max: 1}
  sampling: {temperature: 1.0, max_tokens: 64}
filter: {rules: [correct]}
train: {student: embedded-dense, method: full, epochs: 1, learning_rate: 1.0e-3, max_length: 128}
eval: {tasks: [{path: DIR/task.jsonl}]}
"""


def prepare(directory: Path, num_rows: int) -> None:
    random = Random(1)
    asked = [question(random) for _ in range(TASK_ROWS)]
    lines = (json.dumps({"question": text, "answer": str(gold)}) + "\n" for text, gold in asked)
    (directory / "task.jsonl").write_text("".join(lines))
    (directory / "recipe.yaml").write_text(RECIPE.replace("DIR", str(directory)))
    write_rows(directory / "rows.jsonl", num_rows, asked)


def measure(size: int, workers: int) -> dict[str, float]:
    """The stage on so many rows, in a process of its own."""
    with tempfile.TemporaryDirectory() as made:
        prepare(Path(made), size)
        command = [sys.executable, "-m", "tests.bench.bench_problems", CHILD, made, f"--workers={workers}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(size, workers, found, file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default=",".join(map(str, SIZES)))
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--only-workers", action="store_true", help="one worker against two, and no more")
    parser.add_argument(CHILD, type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(run_child(arguments.child, arguments.workers)))
        return
    sizes = [int(size) for size in arguments.rows.split(",")]
    found = {sizes[0]: measure(sizes[0], arguments.workers)}
    workers = scaling({1: measure(sizes[0], 1), arguments.workers: found[sizes[0]]})
    if arguments.only_workers:
        print(json.dumps({"workers": workers}))
        return
    found |= {size: measure(size, arguments.workers) for size in sizes[1:]}
    figures: dict[str, object] = {str(size): figure for size, figure in found.items()}
    if len(sizes) > 1:
        growth = found[sizes[-1]]["mb"] - found[sizes[0]]["mb"]
        figures["mb_per_million_rows"] = round(growth / (sizes[-1] - sizes[0]) * 1e6)
    print(json.dumps(figures | {"workers": workers}))


if __name__ == "__main__":
    main()
