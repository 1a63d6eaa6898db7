"""What a pilot says of the whole run, and afterwards how right it was. forecast.json beside the traces."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pipeline.errors import StageError
from pipeline.recipe.schema import Samples
from pipeline.records import Problem
from pipeline.sampling import Store, Tally
from pipeline.sampling.job import most_samples
from pipeline.sampling.keys import counts
from pipeline.verify.table import DEFERRED

FORECAST = "forecast.json"
Z95 = 1.96


@dataclass(frozen=True, slots=True)
class Forecast:
    """Means over the pilot and what they say of the whole; intervals are 95%."""

    pilot_problems: int
    problems: int
    pass_rate: float
    solved_share: float
    tries_per_problem: float
    tokens_per_trace: float
    output_tokens: float
    output_tokens_low: float
    output_tokens_high: float
    tokens_per_second: float | None


def forecast_from(chosen: list[Problem], store: Store, tally: Tally, scale: tuple[int, int]) -> Forecast:
    """The forecast of `scale` = (samples.max, number of all problems) from the pilot's traces."""
    most, num_problems = scale
    tokens = dict.fromkeys((problem.id for problem in chosen), 0)
    for trace in store.traces():
        if trace.output_tokens is None:
            raise StageError(
                f"{store.directory}: the server does not count tokens, and the teacher's tokenizer is not on "
                "this machine to count them here, so a pilot forecasts nothing. Fetch the tokenizer (the "
                "`model` of the card may be a directory with nothing else), or buy without a pilot"
            )
        if trace.problem_id in tokens:
            tokens[trace.problem_id] += trace.output_tokens
    samples = Samples(keep=1, max=most)
    found = [counts(store.keys.all_bits(p.id), most_samples(p, samples)) for p in chosen]
    tries = sum(n for n, _ in found)
    # those that are decided after sampling say nothing of the pass rate
    told = [pair for pair, problem in zip(found, chosen, strict=True) if problem.verifier not in DEFERRED]
    correct = sum(c for _, c in told)
    per_problem = mean(tokens.values())
    margin = Z95 * stdev(tokens.values()) / math.sqrt(len(tokens)) * math.sqrt(1 - len(tokens) / num_problems)
    return Forecast(
        pilot_problems=len(chosen),
        problems=num_problems,
        pass_rate=round(correct / max(sum(n for n, _ in told), 1), 4),
        solved_share=round(tally.solved / len(chosen), 4),
        tries_per_problem=round(tries / len(chosen), 3),
        tokens_per_trace=round(sum(tokens.values()) / max(tries, 1), 1),
        output_tokens=round(per_problem * num_problems),
        output_tokens_low=round(max(per_problem - margin, 0) * num_problems),
        output_tokens_high=round((per_problem + margin) * num_problems),
        tokens_per_second=round(tally.output_tokens / tally.engine_seconds, 1) if tally.sampled else None,
    )


def against_fact(forecast: dict[str, Any], fact: dict[str, Any]) -> dict[str, Any]:
    """Forecast, fact and their ratio for each figure that both have; for the manifest and the report."""
    found = {}
    for name, value in fact.items():
        if forecast.get(name) is not None:
            ratio = round(forecast[name] / value, 4) if value else None
            ends = {end: forecast[f"{name}_{end}"] for end in ("low", "high") if f"{name}_{end}" in forecast}
            found[name] = {"forecast": forecast[name], **ends, "fact": value, "ratio": ratio}
    return found


def write_forecast(directory: Path, forecast: Forecast) -> None:
    (directory / FORECAST).write_text(json.dumps(asdict(forecast), indent=2) + "\n", encoding="utf-8")


def read_forecast(directory: Path) -> dict[str, Any]:
    """What a pilot forecast in this directory; empty where there was none."""
    try:
        return dict(json.loads((directory / FORECAST).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
