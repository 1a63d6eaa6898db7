"""Cards against the real thing: vLLM's own list of arguments, its command line, its engine, tiny random models."""

import asyncio
import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RecipeError
from pipeline.flags import EngineFlags
from pipeline.recipe.cards import card_names, sampled_teacher, teacher_card
from pipeline.recipe.engine_arguments import HOW_IT_RUNS, NOT_TAKEN, OURS
from pipeline.recipe.schema import Sampling
from pipeline.render import split_response
from pipeline.sampling import Completion, Request, start_engine
from pipeline.sampling.engines.serving import serve_command
from pipeline.sampling.prompts import load_prompts
from tests.students_fixtures import build_tokenizer
from tests.test_cards import CHAT, family_template, model_of

pytestmark = pytest.mark.slow


def known_arguments() -> set[str]:
    from vllm.engine.arg_utils import AsyncEngineArgs

    return {item.name for item in dataclasses.fields(AsyncEngineArgs)}


def test_vllm_knows_every_argument_that_is_named_here() -> None:
    assert HOW_IT_RUNS | OURS.keys() | NOT_TAKEN.keys() <= known_arguments()
    for name in card_names("teacher"):
        assert teacher_card(name).engine.arguments.keys() <= known_arguments(), name


def test_vllm_s_command_line_reads_what_the_cards_ask_for() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    flags = EngineFlags(engine_arguments=("pipeline_parallel_size=2", "numa_bind_nodes=[0, 1]"))
    for name in card_names("teacher"):
        model = model_of(name)
        read = vars(parser.parse_args(serve_command(model, flags)[3:]))
        assert (read["pipeline_parallel_size"], read["numa_bind_nodes"]) == (2, [0, 1])
        assert {key: read[key] for key in model.arguments} == model.arguments, name


def test_an_argument_that_vllm_does_not_have_is_an_error_with_the_nearest() -> None:
    from pipeline.sampling.engines.vllm import engine_arguments

    model = replace(model_of("embedded-moe"), arguments={"kv_cache_dtyp": "fp8"})
    with pytest.raises(
        RecipeError,
        match=r"embedded-moe: engine\.arguments: .* 'kv_cache_dtyp', did you mean 'kv_cache_dtype'",
    ):
        engine_arguments(model, EngineFlags())


def ask(samplings: list[Sampling]) -> list[Completion]:
    """The answers of the embedded teacher, run with an argument of its card and one of the command line."""
    model = replace(model_of("embedded-moe"), arguments={"enable_prefix_caching": False})
    flags = EngineFlags(concurrency=8, kv_cache_gib=1, engine_arguments=("async_scheduling=false",))

    async def run() -> list[Completion]:
        async with start_engine(model, flags) as engine:
            await engine.ready()
            prompt = engine.prompt([{"role": "user", "content": "What is 12 + 34?"}])
            return [await engine.sample(Request(prompt, each, 7, ("p", 0))) for each in samplings]

    return asyncio.run(run())


def test_the_extras_of_sampling_do_what_they_say_in_the_real_engine() -> None:
    greedy, free = {"temperature": 0.0, "max_tokens": 200}, {"temperature": 2.0, "max_tokens": 60}
    whole, stopped, penalised, first, second, off, off_again = ask(
        [
            Sampling(**greedy),
            Sampling(**greedy, stop=["\n"]),
            Sampling(**greedy, repetition_penalty=2.0, presence_penalty=1.5),
            *[Sampling(**free)] * 2,
            *[Sampling(**free, seed="off")] * 2,
        ]
    )
    assert "\n" in whole.text
    assert (stopped.text, stopped.finish_reason) == (whole.text.partition("\n")[0], "stop")
    assert penalised.text != whole.text
    assert first.text == second.text
    assert off.text != off_again.text


SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "intermediate_size": 32}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3.6-35b-a3b": (
        "Qwen3_5MoeTextConfig",
        {"num_experts": 4, "shared_expert_intermediate_size": 16, "linear_num_value_heads": 2}
        | {"linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
        | {"layer_types": ["linear_attention", "full_attention"]},
    ),
    "gpt-oss-20b": ("GptOssConfig", {"num_local_experts": 4}),
    "nemotron-3-nano-30b-a3b": (
        "NemotronHConfig",
        {"layers_block_type": ["linear_attention", "full_attention"], "n_routed_experts": 4, "n_groups": 1}
        | {"mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 16},
    ),
    "gemma-4-26b-a4b": (
        "Gemma4TextConfig",
        {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "hidden_size_per_layer_input": 0}
        | {"global_head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "lfm2.5-8b-a1b": (
        "Lfm2MoeConfig",
        {"num_experts": 4, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    ),
}


@pytest.mark.parametrize("teacher", TINY)
def test_a_tiny_random_model_of_a_family_is_asked_and_read_by_its_card(teacher: str, tmp_path: Path) -> None:
    import torch
    import transformers

    tokenizer = build_tokenizer(family_template(teacher))
    kind, sizes = TINY[teacher]
    config = getattr(transformers, kind)(
        **SMALL, **EXPERTS, **sizes, vocab_size=len(tokenizer), pad_token_id=None, bos_token_id=None
    )
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config)
    made.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    card = teacher_card(teacher).model_copy(update={"model": str(tmp_path)})
    prompts = load_prompts(sampled_teacher(teacher, card))
    assert prompts is not None
    ids = prompts.ids(CHAT)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    sampled = loaded.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=True, eos_token_id=None)[0]
    assert sampled[: len(ids)].tolist() == ids
    text = prompts.decode(sampled[len(ids) :].tolist())
    assert split_response(text, card.thinking).closing in ("none", "unclosed")
    assert split_response(f"{text}{card.thinking.close}7", card.thinking).answer == "7"
