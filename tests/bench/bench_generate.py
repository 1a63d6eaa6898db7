"""The generate loop against the bare engine: the same prompts, parameters and per-request seeds, in one run.

    python -m tests.bench.bench_generate [--problems 500] [--rounds 3]

`LLM.generate` gets all requests at once; the loop runs them through store and, in its second turn, through
the verifiers; a naive loop sends fixed batches with a barrier. Engine start counts for none of them, and the
three take turns, so that what else the machine does meets all alike. Prints JSON of the ratios of output
tokens a second, medians over the rounds: {"verify_off": ..., "verify_on": ..., "fixed_batches": ...}.
"""

import argparse
import asyncio
import gc
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.flags import EngineFlags
from pipeline.problems.sources import procedural_problems
from pipeline.recipe.cards import sampled_teacher, teacher_card
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.schema import Samples, Sampling
from pipeline.recipe.sources import ProceduralSource
from pipeline.records import Problem
from pipeline.sampling import Job, Options, Store, collect, start_engine
from pipeline.sampling.job import sample_seed
from pipeline.verify import VerifierPool

CONCURRENCY = 256
SAMPLES = 4
BATCH = 256


def make_job() -> Job:
    return Job(
        sampled_teacher("embedded-moe", teacher_card("embedded-moe")),
        PROMPTS["boxed"],
        Sampling(temperature=1.0, max_tokens=384),
        Samples(keep=SAMPLES, max=SAMPLES),
        0,
    )


def make_problems(count: int) -> list[Problem]:
    config = {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 3}
    source = ProceduralSource(reasoning_gym="chain_sum", size=count, config=config)
    return list(procedural_problems(source, 0, reserved=False))


def bare_requests(job: Job, problems: list[Problem], tokenizer: Any) -> tuple[list[Any], list[Any]]:
    """Prompts and parameters of all requests, as `LLM.generate` wants them."""
    from vllm import SamplingParams

    prompts, params = [], []
    for problem in problems:
        chat = job.prompt.messages(problem.question)
        ids = tokenizer.apply_chat_template(
            chat, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        for sample in range(SAMPLES):
            prompts.append({"prompt_token_ids": list(ids)})
            seed = sample_seed(job.seed, problem, sample)
            params.append(SamplingParams(**job.sampling.model_dump(exclude={"seed"}), seed=seed))
    return prompts, params


def rate_of(llm: Any, prompts: list[Any], params: list[Any], batch: int) -> float:
    """Output tokens a second of `LLM.generate` in batches of `batch`, each waited for."""
    start, tokens = time.perf_counter(), 0
    for first in range(0, len(prompts), batch):
        last = first + batch
        answers = llm.generate(prompts[first:last], params[first:last], use_tqdm=False)
        tokens += sum(len(answer.outputs[0].token_ids) for answer in answers)
    return tokens / (time.perf_counter() - start)


async def loop_rate(job: Job, problems: list[Problem], engine: Any, pool: VerifierPool | None) -> float:
    """Output tokens a second of the loop, from its first launch until everything is stored and verified."""
    with tempfile.TemporaryDirectory() as directory, Store(Path(directory)) as store:
        start = time.perf_counter()
        tally = await collect(job, problems, engine, store, pool, Options(CONCURRENCY))
        seconds = time.perf_counter() - start
    assert tally.sampled == len(problems) * SAMPLES, tally
    return tally.output_tokens / seconds


def start_bare(job: Job, flags: EngineFlags) -> Any:
    from vllm import LLM

    from pipeline.sampling.engines.vllm import arguments_here

    arguments, environment = arguments_here(job.model, flags)
    os.environ.update(environment)
    return LLM(**arguments)


def show(name: str, rates: list[float]) -> None:
    listed = ", ".join(f"{rate:,.0f}" for rate in rates)
    print(f"{name:<24} {statistics.median(rates):>8,.0f} output tok/s  ({listed})", file=sys.stderr)


async def measure_loop(job: Job, problems: list[Problem], rounds: int) -> tuple[list[float], list[float]]:
    """Rates with verification off and on, taking turns."""
    off, on = [], []
    with VerifierPool(workers=2) as pool:
        warm = problems[0]
        await pool.verify((warm.id, 0), warm.verifier, warm.gold, warm.gold, warm.metadata)
        async with start_engine(job.model, EngineFlags(concurrency=CONCURRENCY)) as engine:
            await engine.ready()
            await loop_rate(job, problems[:32], engine, None)
            for _ in range(rounds):
                off.append(await loop_rate(job, problems, engine, None))
                on.append(await loop_rate(job, problems, engine, pool))
    return off, on


def measure_bare(job: Job, problems: list[Problem], rounds: int) -> tuple[list[float], list[float]]:
    """Rates of all requests at once, and in fixed batches with a barrier."""
    llm = start_bare(job, EngineFlags(concurrency=CONCURRENCY))
    prompts, params = bare_requests(job, problems, llm.get_tokenizer())
    rate_of(llm, prompts[:128], params[:128], 128)
    whole, batches = [], []
    for _ in range(rounds):
        whole.append(rate_of(llm, prompts, params, len(prompts)))
        batches.append(rate_of(llm, prompts, params, BATCH))
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    return whole, batches


def stay_quiet() -> None:
    """Warnings alone, and nothing sent over a network."""
    logging.basicConfig(level=logging.WARNING)
    for name, value in {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}.items():
        os.environ.setdefault(name, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    stay_quiet()
    job, problems = make_job(), make_problems(flags.problems)
    # bare, loop, bare again: what else the machine does is met before and after
    before, batches_before = measure_bare(job, problems, flags.rounds)
    off, on = asyncio.run(measure_loop(job, problems, flags.rounds))
    after, batches_after = measure_bare(job, problems, flags.rounds)
    bare, batches = before + after, batches_before + batches_after
    for name, rates in {
        "LLM.generate": bare, "loop, verification off": off, "loop, verification on": on, "fixed batches": batches
    }.items():  # fmt: skip
        show(name, rates)
    base = statistics.median(bare)
    ratios = {"verify_off": off, "verify_on": on, "fixed_batches": batches}
    print(json.dumps({name: round(statistics.median(rates) / base, 4) for name, rates in ratios.items()}))


if __name__ == "__main__":
    main()
