"""The exported checkpoint in the engine that eval uses: the same prompt ids, the same greedy tokens."""

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.flags import EngineFlags, TrainFlags
from pipeline.recipe.cards import SampledModel, sampled_student, student_card
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.schema import Sampling
from pipeline.sampling import Completion, Request, start_engine
from pipeline.sampling.engines.serving import serve_command
from students.format import load_format
from students.train import run
from tests.students_fixtures import (
    CHATML_THINK,
    build_student,
    build_tokenizer,
    card_of,
    finished_filter,
    sampled,
    sums,
)

QUESTIONS = [f"Calculate {11 * i + 12} + {7 * i + 35}." for i in range(8)]
GREEDY = Sampling(temperature=0.0, max_tokens=24)
BOXED = PROMPTS["boxed"]


async def in_vllm(model: SampledModel) -> list[tuple[list[int], str]]:
    """Prompt ids and the text of each response."""
    found = []
    async with start_engine(model, EngineFlags(concurrency=8, kv_cache_gib=1)) as engine:
        await engine.ready()
        for question in QUESTIONS:
            prompt = engine.prompt(BOXED.messages(question))
            done = await engine.sample(Request(prompt, GREEDY, 0, (question, 0)))
            found.append((prompt, done.text))
    return found


@pytest.mark.slow
def test_a_trained_checkpoint_says_the_same_in_vllm_and_transformers(tmp_path: Path) -> None:
    context = finished_filter(tmp_path, sums(64), "train.epochs=2", "train.method=lora")
    run(context, TrainFlags(device="cpu"))
    model = dataclasses.replace(context.finished_student("the test"), dtype="float32")
    theirs = asyncio.run(in_vllm(model))
    style = load_format(context.student_card, context.base)
    student = AutoModelForCausalLM.from_pretrained(model.model, dtype=torch.float32)
    same = 0
    for question, (prompt, text) in zip(QUESTIONS, theirs, strict=True):
        assert prompt == style.prompts.ids(BOXED.messages(question))
        out = student.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)[0][len(prompt) :]
        ids = [int(i) for i in out if int(i) != style.turn_end_id]
        same += style.prompts.decode(ids) == text
    assert same == len(QUESTIONS)


def embedded() -> SampledModel:
    return sampled_student("base", student_card("embedded-dense"))


def always_writes(token: str, directory: Path) -> Path:
    """A base that greedily writes `token` whatever it is asked, and whose own files name another end token."""
    tokenizer = build_tokenizer(CHATML_THINK, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    build_student(
        directory, tokenizer, tie_word_embeddings=False, head_dim=32
    )  # what vLLM's CPU kernels take
    student: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()  # no layer adds anything to the embedding
        student.model.embed_tokens.weight.fill_(1)
        student.model.norm.weight.fill_(1)
        student.lm_head.weight[tokenizer.convert_tokens_to_ids(token)] = 1
    student.save_pretrained(directory)
    return directory


@pytest.mark.slow
def test_the_end_token_of_the_card_ends_a_response_of_the_base(tmp_path: Path) -> None:
    """A pretrained base names its end of text; what ends the turn of the card's template must stop it too."""
    base = sampled(card_of(always_writes("<|im_end|>", tmp_path), eos="<|im_end|>"))

    async def ask() -> Completion:
        async with start_engine(base, EngineFlags(concurrency=1, kv_cache_gib=1)) as engine:
            await engine.ready()
            return await engine.sample(Request(engine.prompt(BOXED.messages("1 + 1?")), GREEDY, 0, ("x", 0)))

    done = asyncio.run(ask())
    assert (done.output_tokens, done.text, done.finish_reason) == (1, "", "stop")


def test_the_served_command_names_the_checkpoint_and_its_limits(tmp_path: Path) -> None:
    model = dataclasses.replace(embedded(), model=str(tmp_path))
    command = serve_command(model, EngineFlags(), served_model_name="demo", port=8001)
    assert command[command.index("--model") + 1] == str(tmp_path)
    assert command[command.index("--max-model-len") + 1] == "1024"


@pytest.mark.slow  # imports vLLM
def test_the_base_is_served_with_the_positions_that_its_card_gives_it() -> None:
    from pipeline.sampling.engines.vllm import engine_arguments

    arguments = engine_arguments(sampled_student("base", student_card("qwen2.5-math-1.5b")), EngineFlags())
    assert arguments["hf_overrides"] == {"max_position_embeddings": 131072}
    assert "hf_overrides" not in engine_arguments(embedded(), EngineFlags())


def on_a_cpu() -> None:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("these are arguments of vLLM's build for CPUs")


@pytest.mark.slow  # imports vLLM
def test_the_cache_on_a_cpu_is_what_the_requests_in_flight_can_fill() -> None:
    """All of --kv-cache-gib is written at the start of an engine, and eval starts one while another is asked."""
    from pipeline.sampling.engines.vllm import engine_arguments

    on_a_cpu()

    def cache_mib(**flags: int) -> float:
        return engine_arguments(embedded(), EngineFlags(**flags))["kv_cache_memory_bytes"] / 2**20

    config = json.loads((Path(embedded().model) / "config.json").read_text())
    values = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"]
    assert cache_mib() == 2 * 256 * (1024 + 128) * values * 2 / 2**20
    assert cache_mib(concurrency=1) == 256
    assert cache_mib(concurrency=4096, kv_cache_gib=1) == 1024
    away = sampled_student("base", student_card("qwen2.5-math-1.5b"))  # its configuration is at the hub
    assert engine_arguments(away, EngineFlags())["kv_cache_memory_bytes"] == 2 * 2**30


@pytest.mark.slow  # imports vLLM
def test_a_kernel_that_turns_some_queries_wrongly_is_kept_for_those_that_it_turns_right() -> None:
    from pipeline.sampling.engines.vllm import engine_arguments

    on_a_cpu()
    assert "compilation_config" not in engine_arguments(embedded(), EngineFlags())
    unseen = sampled_student("base", student_card("lfm2.5-1.2b-base"))
    in_torch = {"custom_ops": ["-rotary_embedding"]}
    assert engine_arguments(unseen, EngineFlags())["compilation_config"] == in_torch
    flags = EngineFlags(engine_arguments=("compilation_config={level: 0}",))
    assert engine_arguments(unseen, flags)["compilation_config"] == in_torch | {"level": 0}
