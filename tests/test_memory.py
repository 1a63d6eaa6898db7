"""What training takes of a device: the formula against what torch keeps, and what is advised from it."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3Config

from pipeline.flags import TrainFlags
from pipeline.plan.memory import KEPT_BYTES, Load, adapter_parameters, least_change, load_of, need
from pipeline.recipe.cards import ModelSize, student_card
from pipeline.recipe.schema import Train
from students.attention import register
from students.memory import settle, size_of_model
from tests.students_fixtures import build_student

RANK = 8
BIG = student_card("qwen3-1.7b-base").size or pytest.fail("the card has no size")


def recipe_of(method: str, max_length: int, **more: Any) -> Train:
    values = {
        "student": "x",
        "method": method,
        "epochs": 1.0,
        "learning_rate": 1e-4,
        "max_length": max_length,
    }
    return Train.model_validate({**values, **more})


def tiny(layers: int, method: str, widths: tuple[int, int, int, int]) -> Any:
    """A Qwen3 in the types of training on a GPU; widths are those of KEPT_BYTES."""
    hidden, mlp, queries, keys = widths
    config = Qwen3Config(
        vocab_size=128,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=queries // 16,
        num_key_value_heads=keys // 16,
        head_dim=16,
    )
    dtype = torch.float32 if method == "full" else torch.bfloat16
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=register())
    if method == "full":
        return model
    return get_peft_model(model, LoraConfig(r=RANK, target_modules="all-linear", task_type="CAUSAL_LM"))


def kept(layers: int, method: str, widths: tuple[int, int, int, int], tokens: int) -> int:
    """Bytes that torch keeps for the backward pass, each storage once and no parameter."""
    model = tiny(layers, method, widths)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=torch.randint(0, 128, (1, tokens)), logits_to_keep=1, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_layer_keeps_what_the_formula_says(method: str) -> None:
    """Differences of lengths and of depths leave what one layer keeps for one token."""
    for widths in ((32, 64, 32, 16), (48, 160, 64, 32)):
        grown = [kept(depth, method, widths, 64) - kept(depth, method, widths, 32) for depth in (1, 3)]
        measured = (grown[1] - grown[0]) / 2 / 32
        wanted = sum(each * width for each, width in zip(KEPT_BYTES[method], widths, strict=True))
        wanted += 7 * RANK * 2 if method == "lora" else 0
        assert measured == pytest.approx(wanted, rel=0.01)


def test_an_adapter_has_as_many_parameters_as_peft_makes() -> None:
    model = tiny(2, "lora", (64, 128, 64, 32))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert adapter_parameters(size_of_model(model.get_base_model()), RANK) == trained


CARDS = ["qwen3-0.6b-base", "qwen3-1.7b-base", "qwen2.5-coder-1.5b", "qwen2.5-math-1.5b", "llama-3.2-1b"]
CARDS += ["gemma-3-270m", "smollm2-135m-instruct"]


@pytest.mark.parametrize("name", CARDS)
def test_the_widths_of_a_card_make_its_parameters(name: str) -> None:
    """All of them tie the embedding to the head."""
    size = student_card(name).size
    assert size is not None
    hidden, mlp, queries = size.hidden or 0, size.mlp or 0, size.queries or 0
    layer = hidden * (2 * queries + size.kv_values_per_layer + 3 * mlp)
    assert (size.vocabulary or 0) * hidden + size.layers * layer == pytest.approx(size.parameters, rel=0.02)


def test_16k_tokens_of_a_1_7b_lora_fit_24_gib_with_checkpointing_alone() -> None:
    recipe = recipe_of("lora", 16384)
    flags, load = least_change(BIG, recipe, load_of(recipe, 8192, False), 24)
    assert flags == "--gradient-checkpointing"
    assert load == Load("lora", recipe.lora.rank, 16384, checkpointing=True)


def test_the_least_change_that_fits_is_advised() -> None:
    recipe = recipe_of("full", 2048)
    load = load_of(recipe, 32768, False)
    said = [least_change(BIG, recipe, load, gib)[0] for gib in (400, 60, 33, 24, 1)]
    assert said == [
        "",
        "--gradient-checkpointing",
        "--gradient-checkpointing --tokens-per-device 2048",
        "2 processes of students/launch/fsdp2.yaml, --gradient-checkpointing",
        "lower train.max_length, or take method: lora",
    ]


def test_a_micro_batch_is_never_shorter_than_an_example_nor_longer_than_a_batch() -> None:
    lengths = [
        load_of(recipe_of("lora", *given), 8192, False).tokens for given in ((16384,), (100,), (1024,))
    ]
    assert lengths == [16384, 3200, 8192]


def test_nothing_is_estimated_for_unknown_widths() -> None:
    size = ModelSize(parameters=1e9, active_parameters=1e8, layers=2, kv_values_per_layer=64)
    assert need(size, Load("full", 8, 1024)) is None
    assert least_change(size, recipe_of("full", 512), Load("full", 8, 1024), 1)[0] == ""


def test_checkpointing_is_taken_where_it_is_needed_and_not_forbidden(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = AutoModelForCausalLM.from_pretrained(build_student(tmp_path), dtype=torch.float32)
    recipe, flags = recipe_of("full", 512, batch_size=64), TrainFlags(tokens_per_device=32768)
    load = load_of(recipe, 32768, False)
    size = size_of_model(student)
    gib = [
        found.device_gib
        for found in (need(size, replace(load, checkpointing=wanted)) for wanted in (False, True))
        if found is not None
    ]
    between = sum(gib) / 2
    with caplog.at_level(logging.INFO):
        assert settle(student, recipe, flags, gib[0] + 1).gradient_checkpointing is False
        assert "too much" not in caplog.text
        assert settle(student, recipe, flags, between).gradient_checkpointing is True
        assert "too much, so --gradient-checkpointing is taken" in caplog.text
        forbidden = settle(student, recipe, replace(flags, gradient_checkpointing=False), between)
        assert forbidden.gradient_checkpointing is False
        assert "more than the device has. What would fit: --gradient-checkpointing" in caplog.text
        assert settle(student, recipe, flags, None).gradient_checkpointing is False
