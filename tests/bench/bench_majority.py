"""How often the majority of a problem's own samples is its true gold answer, by the share that is asked for.

    python -m tests.bench.bench_majority [--problems 100]

The embedded teacher answers problems of its families, and sums longer than any that it has seen, which it
gets wrong nearly always and often alike: 8 samples each. Their gold answers are withheld, the answers are
grouped by verifier math, and the majority is then set against the gold. Prints JSON {"pass_rate": of a single
sample, "<share>": {"found": problems with such a majority, "agreement": of these, those where it is the gold,
"ci95": its interval}}.
"""

import argparse
import asyncio
import json
import logging
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.filter.majorities import driven
from pipeline.flags import EngineFlags
from pipeline.recipe.cards import sampled_teacher, teacher_card
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.schema import Samples, Sampling
from pipeline.records import STOP, Problem
from pipeline.sampling import Job, Options, Store, collect, start_engine
from pipeline.verify import VerifierPool
from pipeline.verify.confusion import wilson_interval
from pipeline.verify.majority import majority_of
from tests.bench.bench_budget import grouped_problems

CONCURRENCY = 256
OF = 8
SHARES = (0.25, 0.5, 0.75, 1.0)

Answers = dict[str, list[tuple[int, str | None]]]


@dataclass(slots=True)
class Agreement:
    """Of so many problems: right single samples, and by share the majorities that there are and are right."""

    problems: int = 0
    samples: int = 0
    right: int = 0
    found: Counter[float] = field(default_factory=Counter)
    agreed: Counter[float] = field(default_factory=Counter)

    def add(self, other: "Agreement") -> None:
        for name in ("problems", "samples", "right"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.found.update(other.found)
        self.agreed.update(other.agreed)

    def to_json(self) -> dict[str, object]:
        shares = {
            f"{share:g}": {
                "found": round(self.found[share] / self.problems, 4),
                "agreement": round(self.agreed[share] / max(self.found[share], 1), 4),
                "ci95": [round(b, 4) for b in wilson_interval(self.agreed[share], self.found[share])],
            }
            for share in SHARES
        }
        return {"pass_rate": round(self.right / self.samples, 4), **shares}


def withheld(problem: Problem) -> Problem:
    """The same question without its gold answer."""
    return replace(problem, gold="", verifier="majority", metadata={"verifier": "math", "of": OF})


async def sample(problems: list[Problem], directory: Path, flags: EngineFlags, pool: VerifierPool) -> Answers:
    """What every sample answered, None where it did not end or says nothing."""
    model = sampled_teacher("embedded-moe", teacher_card("embedded-moe"))
    # a budget of one correct trace: none is correct yet, so all OF samples are taken
    job = Job(
        model, PROMPTS["boxed"], Sampling(temperature=1.0, max_tokens=200), Samples(keep=1, max=2), seed=0
    )
    answers: Answers = defaultdict(list)
    async with start_engine(model, flags) as engine:
        with Store(directory) as store:
            await collect(job, problems, engine, store, pool, Options(flags.concurrency))
            finished = {(t.problem_id, t.sample) for t in store.traces() if t.finish_reason == STOP}
            for verdict in store.verdicts():
                key = (verdict.problem_id, verdict.sample)
                answers[verdict.problem_id].append(
                    (verdict.sample, verdict.extracted if key in finished else None)
                )
    return answers


def agreement(problems: list[Problem], answers: Answers, pool: VerifierPool) -> Agreement:
    """Majorities against the gold answers of `problems`, which nobody was shown before."""
    found = Agreement(problems=len(problems))
    rows = [
        ((problem.id, sample), "math", problem.gold, f"\\boxed{{{answer}}}", {})
        for problem in problems
        for sample, answer in answers[problem.id]
        if answer is not None
    ]
    found.samples = sum(len(answers[problem.id]) for problem in problems)
    found.right = sum(verdict.status == "correct" for verdict in pool.map(rows))
    places = {place: withheld(problem) for place, problem in enumerate(problems)}
    for share in SHARES:
        groupings = {place: majority_of(answers[problem.id], share, OF) for place, problem in places.items()}
        majorities = driven(groupings, places, pool)
        golds = [
            ((problem.id, 0), "math", problem.gold, f"\\boxed{{{majorities[place].gold}}}", {})
            for place, problem in enumerate(problems)
            if majorities[place].gold is not None
        ]
        found.found[share] = len(golds)
        found.agreed[share] = sum(verdict.status == "correct" for verdict in pool.map(golds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=100, help="in each group")
    flags = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    groups, total = grouped_problems(flags.problems), Agreement()
    everything = [withheld(problem) for group in groups.values() for problem in group]
    with tempfile.TemporaryDirectory() as directory, VerifierPool(workers=2) as pool:
        engine = EngineFlags(concurrency=CONCURRENCY)
        answers = asyncio.run(sample(everything, Path(directory), engine, pool))
        for name, problems in groups.items():
            own = agreement(problems, answers, pool)
            print(f"{name:<24} {json.dumps(own.to_json())}", file=sys.stderr)
            total.add(own)
    print(json.dumps(total.to_json()))


if __name__ == "__main__":
    main()
