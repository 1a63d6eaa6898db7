"""Rows about vLLM in this process: the embedded teacher, seeds, and tensor parallelism where there are two GPUs."""

import asyncio
import time
from typing import Any
from unittest import TestCase
from unittest.mock import patch

from pipeline.flags import EngineFlags
from pipeline.recipe.cards import sampled_student, sampled_teacher, student_card, teacher_card
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.schema import Sampling
from pipeline.sampling import Request, start_engine
from students import in_vllm
from students.model import load_base
from tests.gpu.setting import Setting, require_gpus

QUESTIONS = [f"Calculate {11 * i + 12} + {7 * i + 35}." for i in range(400)]
BOXED = PROMPTS["boxed"]


async def sampled(
    questions: list[str], times: int, parallel: int
) -> tuple[list[list[str]], dict[str, float]]:
    """The responses of each of `times` passes over the questions, with the same seeds, in one engine."""
    card = teacher_card("embedded-moe")
    flags = EngineFlags(concurrency=256, kv_cache_gib=1, tensor_parallel=parallel, gpu_memory_share=0.3)
    sampling = Sampling(temperature=1.0, max_tokens=200)
    passes, tokens, started = [], 0, time.monotonic()
    async with start_engine(sampled_teacher("teacher", card), flags) as engine:
        await engine.ready()
        ready = time.monotonic()
        for _ in range(times):
            asked = [
                Request(engine.prompt(BOXED.messages(question)), sampling, seed, (question, 0))
                for seed, question in enumerate(questions)
            ]
            done = await asyncio.gather(*map(engine.sample, asked))
            passes.append([one.text for one in done])
            tokens += sum(one.output_tokens for one in done)
        rate = tokens / (time.monotonic() - ready)
    return passes, {"start_seconds": round(ready - started, 1), "output_tokens_per_second": round(rate)}


def in_process(setting: Setting) -> dict[str, Any]:
    """The embedded teacher answers sums in its own format, and the same seeds give the same responses."""
    passes, figures = asyncio.run(sampled(QUESTIONS[: 16 if setting.dry else 400], 2, 1))
    first, second = passes
    boxed = sum("\\boxed{" in text for text in first) / len(first)
    same = sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
    found = {**figures, "boxed": round(boxed, 3), "same by seed": round(same, 3)}
    assert boxed > 0.9, found
    assert len(set(first)) > len(first) / 2, found
    assert same == 1, found
    return found


def tried(setting: Setting) -> dict[str, Any]:
    """What train asks of vLLM about an architecture that it does not know."""
    card = student_card("embedded-dense")
    model = sampled_student("base", card)
    started = time.monotonic()
    # a warning says that it could not be asked
    with patch.object(in_vllm, "ANSWERING", frozenset()), TestCase().assertNoLogs(in_vllm.log, "WARNING"):
        in_vllm.check_answers(model, load_base(card, model), list(range(20)))
    return {"seconds": round(time.monotonic() - started, 1)}


def two_gpus(setting: Setting) -> dict[str, Any]:
    """Tensor parallelism over two GPUs."""
    require_gpus(setting, 2)
    passes, figures = asyncio.run(sampled(QUESTIONS, 1, 2))
    boxed = sum("\\boxed{" in text for text in passes[0]) / len(passes[0])
    assert boxed > 0.9, passes[0][:3]
    return {**figures, "boxed": round(boxed, 3)}


def sampler(setting: Setting) -> dict[str, Any]:
    """The sampler of polish, which draws from a model that is being trained."""
    import torch

    from pipeline.recipe.schema import Train
    from students.format import load_format
    from students.model import load_student
    from students.sampler import Draw, draw

    card = student_card("embedded-dense")
    model = sampled_student("base", card)
    style = load_format(card, model)
    values = {
        "student": "embedded-dense",
        "method": "full",
        "epochs": 1.0,
        "learning_rate": 1e-3,
        "max_length": 256,
    }
    student = load_student(card, model, Train.model_validate(values), setting.device)
    student.to(setting.device)
    student.set_attn_implementation("sdpa")  # as polish loads it: the sampler's batch is padded
    number = 16 if setting.dry else 128
    asked = [
        Draw(style.prompts.ids(BOXED.messages(question)), seed)
        for seed, question in enumerate(QUESTIONS[:number])
    ]
    draw(student, asked[:8], style.turn_end_id, 32, 1.0, 8)
    started = time.monotonic()
    first = draw(student, asked, style.turn_end_id, 128, 1.0, number)
    if setting.device == "cuda":
        torch.cuda.synchronize()
    seconds = time.monotonic() - started
    second = draw(student, asked, style.turn_end_id, 128, 1.0, number)
    assert [one.ids for one in first] == [one.ids for one in second]
    tokens = sum(len(one.ids) for one in first)
    return {"tokens": tokens, "tokens_per_second": round(tokens / seconds)}
