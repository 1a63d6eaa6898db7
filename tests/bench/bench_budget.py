"""What a budget {keep: 2, max: 8} saves over a fixed 8 samples, on the same problems and the same engine.

    python -m tests.bench.bench_budget [--problems 150]

Both run through the generate loop with the embedded teacher, verified. Groups of problems are put together by
their mean pass rate in the fixed run: families that the teacher was trained on, and sums that are longer than
those. Solved means two correct traces, as `keep` asks for. Prints JSON {"easy": ratio of output tokens where
the mean pass rate is at least 0.75, "medium": at least 0.4, "hard": below, "solved_points": the largest
difference in the share of problems solved, over these three}.
"""

import argparse
import asyncio
import json
import logging
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.embedded.training import FAMILIES
from pipeline.flags import EngineFlags
from pipeline.problems.sources import procedural_problems
from pipeline.recipe.cards import sampled_teacher, teacher_card
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.schema import Samples, Sampling
from pipeline.recipe.sources import ProceduralSource
from pipeline.records import Problem
from pipeline.sampling import Job, Options, Store, collect, start_engine
from pipeline.verify import VerifierPool

CONCURRENCY = 256
KEEP, MAX = 2, 8
BUDGETS = {"fixed": Samples(keep=MAX, max=MAX), "budget": Samples(keep=KEEP, max=MAX)}
BANDS = {"easy": 0.75, "medium": 0.4, "hard": 0.0}
# one term more than the teacher was trained on, then one digit more
HARDER = {
    "sums of 4": {"min_terms": 4, "max_terms": 4, "min_digits": 2, "max_digits": 3},
    "sums of 4 digits": {"min_terms": 2, "max_terms": 2, "min_digits": 4, "max_digits": 4},
}


@dataclass(slots=True)
class Bought:
    """What a run has of one problem."""

    tokens: int = 0
    tries: int = 0
    correct: int = 0


@dataclass(slots=True)
class Group:
    """Sums over problems: of all tries those correct, output tokens and problems solved by kind of budget."""

    problems: int = 0
    tries: int = 0
    correct: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    solved: Counter[str] = field(default_factory=Counter)

    @property
    def pass_rate(self) -> float:
        return self.correct / self.tries

    @property
    def ratio(self) -> float:
        return self.tokens["budget"] / self.tokens["fixed"]

    @property
    def solved_points(self) -> float:
        return 100 * (self.solved["budget"] - self.solved["fixed"]) / self.problems

    def add(self, other: "Group") -> None:
        for name in ("problems", "tries", "correct"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.tokens.update(other.tokens)
        self.solved.update(other.solved)


def grouped_problems(count: int) -> dict[str, list[Problem]]:
    configs = {name: (name, config) for name, config in FAMILIES.items()}
    configs |= {name: ("chain_sum", config) for name, config in HARDER.items()}
    return {
        name: list(
            procedural_problems(
                ProceduralSource(reasoning_gym=family, size=count, config=config), 0, reserved=False
            )
        )
        for name, (family, config) in configs.items()
    }


async def run_all(problems: list[Problem], directory: Path) -> dict[str, dict[str, Bought]]:
    """Both budgets with one engine; by budget and problem id what was bought."""
    model = sampled_teacher("embedded-moe", teacher_card("embedded-moe"))
    sampling = Sampling(temperature=1.0, max_tokens=200)
    found = {}
    with VerifierPool(workers=2) as pool:
        async with start_engine(model, EngineFlags(concurrency=CONCURRENCY)) as engine:
            await engine.ready()
            for name, samples in BUDGETS.items():
                job = Job(model, PROMPTS["boxed"], sampling, samples, 0)
                with Store(directory / name) as store:
                    await collect(job, problems, engine, store, pool, Options(CONCURRENCY))
                    found[name] = bought(store)
    return found


def bought(store: Store) -> dict[str, Bought]:
    found: dict[str, Bought] = defaultdict(Bought)
    for trace in store.traces():
        found[trace.problem_id].tokens += trace.output_tokens
        found[trace.problem_id].tries += 1
    for verdict in store.verdicts():
        found[verdict.problem_id].correct += verdict.status == "correct"
    return found


def group_of(problems: list[Problem], found: dict[str, dict[str, Bought]]) -> Group:
    group = Group()
    for problem in problems:
        fixed = found["fixed"][problem.id]
        if fixed.tries != MAX:
            raise SystemExit(f"{problem.id}: {fixed.tries} tries instead of {MAX}")
        group.problems += 1
        group.tries += fixed.tries
        group.correct += fixed.correct
        for name in BUDGETS:
            group.tokens[name] += found[name][problem.id].tokens
            group.solved[name] += found[name][problem.id].correct >= KEEP
    return group


def show(name: str, group: Group) -> None:
    shares = ", ".join(f"{budget} {group.solved[budget] / group.problems:.1%}" for budget in BUDGETS)
    print(
        f"{name:<24} {group.problems:>5} problems, pass rate {group.pass_rate:.3f}, "
        f"{group.ratio:.3f} of the tokens, solved: {shares}",
        file=sys.stderr,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=150, help="in each group")
    flags = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    problems = grouped_problems(flags.problems)
    everything = [problem for group in problems.values() for problem in group]
    with tempfile.TemporaryDirectory() as directory:
        found = asyncio.run(run_all(everything, Path(directory)))
    bands = {band: Group() for band in BANDS}
    for name, own in problems.items():
        group = group_of(own, found)
        show(name, group)
        bands[next(band for band, least in BANDS.items() if group.pass_rate >= least)].add(group)
    measured = {band: group for band, group in bands.items() if group.problems}
    for band, group in measured.items():
        show(band, group)
    result = {band: round(group.ratio, 4) for band, group in measured.items()}
    furthest = max((group.solved_points for group in measured.values()), key=abs)
    print(json.dumps({**result, "solved_points": round(furthest, 2)}))


if __name__ == "__main__":
    main()
