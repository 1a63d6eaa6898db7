"""A pilot: N problems sampled for real before the rest is bought, and what they forecast.

The traces are ordinary ones: they go to the generate directory, and generate goes on from them. Writes
forecast.json there, which generate's manifest sets against the fact.
"""

import asyncio
import logging
from dataclasses import replace

from pipeline.errors import RecipeError
from pipeline.recipe import Samples
from pipeline.records import Problem
from pipeline.sampling import Store
from pipeline.stage import Context, begin
from teachers.forecast import Forecast, forecast_from, write_forecast
from teachers.generate import GenerateFlags, Work, prepare, sample

log = logging.getLogger(__name__)


def spread(problems: list[Problem], count: int) -> list[Problem]:
    """`count` problems evenly over source and length of question, so that a small pilot meets all kinds."""
    ordered = sorted(problems, key=lambda problem: (problem.source, len(problem.question), problem.id))
    if count >= len(ordered):
        return ordered
    return [ordered[int((i + 0.5) * len(ordered) / count)] for i in range(count)]


def run_pilot(context: Context, count: int, flags: GenerateFlags) -> Forecast | None:
    """Sample `count` problems and forecast the rest; None where generate is finished already."""
    if count < 2:
        raise RecipeError(f"--pilot {count}: at least 2 problems are needed for an interval")
    prepared = prepare(context)
    stage = begin(context.directory("generate"), prepared.plan, context.start)
    if stage is None:
        return None
    everything = list(prepared.problems)
    if len(everything) < 2:
        raise RecipeError(f"--pilot {count}: there is {len(everything)} problem; generate it without a pilot")
    chosen = spread(everything, count)
    samples = prepared.job.samples
    job = replace(prepared.job, samples=Samples(keep=samples.keep, max=samples.max))
    with stage, Store(stage.directory) as store:
        work = Work(stage, context.runs, flags, len(chosen))
        tally, _ = asyncio.run(sample(job, chosen, store, work))
        forecast = forecast_from(chosen, store, tally, (samples.max, len(everything)))
        write_forecast(stage.directory, forecast)
    return forecast
