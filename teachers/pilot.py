"""A pilot: N problems sampled for real before the rest is bought, and what they forecast.

The traces are ordinary ones: they go to the generate directory, and generate goes on from them. Writes
forecast.json there, which generate's manifest sets against the fact.
"""

import asyncio
from dataclasses import replace

from pipeline.context import Context
from pipeline.errors import RecipeError
from pipeline.plan.forecast import Forecast, forecast_from, write_forecast
from pipeline.recipe.schema import Samples
from pipeline.records import Problem
from pipeline.run.contract import begin
from pipeline.sampling import Store
from pipeline.sampling.spending import refuse_failures
from teachers.generate import GenerateFlags, prepare, sample


def spread(problems: list[Problem], count: int) -> list[Problem]:
    """`count` problems evenly over source and length of question, so that a small pilot meets all kinds."""
    ordered = sorted(problems, key=lambda problem: (problem.source, len(problem.question), problem.lot))
    if count >= len(ordered):
        return ordered
    return [ordered[int((i + 0.5) * len(ordered) / count)] for i in range(count)]


def run_pilot(context: Context, count: int, flags: GenerateFlags) -> Forecast | None:
    """Sample `count` problems and forecast the rest; None where generate is finished already."""
    if count < 2:
        raise RecipeError(f"--pilot {count}: at least 2 problems are needed for an interval")
    prepared = prepare(context)
    if prepared.num_problems < 2:
        raise RecipeError(
            f"--pilot {count}: there is {prepared.num_problems} problem; generate it without a pilot"
        )
    stage = begin(context.directory("generate"), prepared.plan, context.start)
    if stage is None:
        return None
    chosen = spread(list(prepared.problems), count)
    samples = prepared.job.samples
    # without redistribution, which is for the whole
    job = replace(prepared.job, samples=Samples(keep=samples.keep, max=samples.max))
    with stage, Store(stage.directory) as store:
        tally, _ = asyncio.run(sample(replace(prepared, job=job), chosen, store, stage, flags))
        refuse_failures("pilot", tally, context.recipe.generate.max_failure_rate, store)
        forecast = forecast_from(chosen, store, tally, (samples.max, prepared.num_problems))
        write_forecast(stage.directory, forecast)
    return forecast
