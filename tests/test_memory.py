"""What training takes of a device: the formula against what torch keeps, and what is advised from it."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3Config

from pipeline.flags import TrainFlags, launched
from pipeline.plan.memory import (
    KEPT_BYTES,
    SCORE_BYTES,
    Load,
    adapter_parameters,
    is_tied,
    least_change,
    load_of,
    need,
    sharers_of,
)
from pipeline.recipe.cards import ModelSize, student_card
from pipeline.recipe.schema import Train
from students.attention import register
from students.format import Encoded
from students.memory import say_disk, settle, size_of_model
from students.model import load_base
from students.rehearsal import rehearse
from tests.architectures import build_model
from tests.students_fixtures import build_student, card_of, sampled

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
    return kept_by(tiny(layers, method, widths), tokens)


def kept_by(model: Any, tokens: int) -> int:
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


@pytest.mark.slow
def test_eager_attention_with_a_cap_keeps_its_scores() -> None:
    """Second differences of lengths leave what is quadratic: Gemma-2's own attention, heads x tokens x tokens."""
    heads, lengths = 2, (32, 64, 128)
    held = [
        kept_by(build_model("Gemma-2", 128, eos_token_id=0, num_hidden_layers=1), length)
        for length in lengths
    ]
    # held(n) = a + b n + c n^2, so that held(4n) - 3 held(2n) + 2 held(n) is 6 c n^2
    quadratic = (held[2] - 3 * held[1] + 2 * held[0]) / (6 * lengths[0] ** 2)
    assert quadratic / heads == pytest.approx(SCORE_BYTES, abs=2.5), "and at most a mask beside it"
    recipe, plain = recipe_of("lora", 8192), load_of(recipe_of("lora", 8192), 8192, False)
    eager = replace(plain, scores=8 * 8192)
    assert need(BIG, eager).activations - need(BIG, plain).activations == 28 * 8192 * SCORE_BYTES * 8 * 8192
    assert least_change(BIG, recipe, eager, 80)[0] != ""


@pytest.mark.parametrize(
    ("environment", "sharded"),
    [
        ({}, False),
        ({"ACCELERATE_USE_FSDP": "true"}, True),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, True),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, False),
    ],
    ids=["ddp", "fsdp", "zero-3", "zero-2"],
)
def test_a_launcher_that_shares_out_the_model_is_seen_before_the_trainer_is_built(
    environment: dict[str, str], sharded: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = launched(TrainFlags(), {"WORLD_SIZE": "8", **environment})
    assert (flags.processes, flags.sharded) == (8, sharded)
    student = AutoModelForCausalLM.from_pretrained(build_student(tmp_path), dtype=torch.float32)
    recipe, size = recipe_of("full", 512), size_of_model(student)
    found = need(size, load_of(recipe, 8192, False, shards=8 if sharded else 1))
    assert found is not None
    with caplog.at_level(logging.INFO):
        settle(student, recipe, flags, room=80.0)
    assert f"({found})" in caplog.text


def test_rows_are_shared_where_an_example_fits_no_other_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = AutoModelForCausalLM.from_pretrained(build_student(tmp_path), dtype=torch.float32)
    recipe, flags = recipe_of("full", 2**20), TrainFlags(processes=4)
    size = size_of_model(student)
    gib = {
        number: found.device_gib
        for number in (1, 2, 4)
        if (found := need(size, load_of(recipe, 8192, True, sharers=number)))
    }
    between = (gib[1] + gib[2]) / 2
    with caplog.at_level(logging.INFO):
        settled = settle(student, recipe, flags, between, [2, 4])
    assert (settled.gradient_checkpointing, settled.context_parallel) == (True, 2)
    assert "so --gradient-checkpointing with --context-parallel 2 is taken" in caplog.text
    assert settle(student, recipe, flags, (gib[2] + gib[4]) / 2, [2, 4]).context_parallel == 4
    assert settle(student, recipe, flags, between, []).context_parallel is None
    assert settle(student, recipe, replace(flags, context_parallel=1), between, [2]).context_parallel == 1


@pytest.mark.parametrize(("method", "most"), [("full", 3 * 12 + 4 + 2), ("lora", 2)])
def test_a_disk_without_room_is_said_before_training(
    method: str, most: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three checkpoints with both moments, the weights once in fp32 and once as they are exported."""
    student, held = tiny(1, method, (32, 64, 32, 16)), 1000
    number = sum(weight.numel() for weight in student.parameters())
    adapter = sum(weight.numel() for weight in student.parameters() if weight.requires_grad)
    needed = most * number + (0 if method == "full" else (3 * 12 + 4 + 4) * adapter)
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps/kept").write_bytes(bytes(held))
    for free, said in ((needed - held, False), (needed - held - 1, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        say_disk(student, torch.bfloat16, method, tmp_path / "steps")
        assert ("disk: train writes up to" in caplog.text) is said


def test_an_adapter_has_as_many_parameters_as_peft_makes() -> None:
    model = tiny(2, "lora", (64, 128, 64, 32))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert adapter_parameters(size_of_model(model.get_base_model()), RANK) == trained


CARDS = ["qwen3-0.6b-base", "qwen3-1.7b-base", "qwen2.5-coder-1.5b", "qwen2.5-math-1.5b", "llama-3.2-1b"]
CARDS += ["gemma-3-270m", "smollm2-135m-instruct", "llama-3.2-3b", "qwen3-4b-base", "smollm3-3b"]
UNTIED = ["llama-3.1-8b", "qwen3-8b-base", "olmo-3-7b"]


@pytest.mark.parametrize("name", CARDS + UNTIED)
def test_the_widths_of_a_card_make_its_parameters(name: str) -> None:
    """A head that is not tied to the embedding is as large again."""
    size = student_card(name).size
    assert size is not None
    hidden, mlp, queries = size.hidden or 0, size.mlp or 0, size.queries or 0
    layer = hidden * (2 * queries + size.kv_values_per_layer + 3 * mlp)
    embedding = (size.vocabulary or 0) * hidden * (2 if name in UNTIED else 1)
    assert embedding + size.layers * layer == pytest.approx(size.parameters, rel=0.02)
    assert is_tied(size) is (name not in UNTIED)


@pytest.mark.parametrize(
    ("method", "of_head", "of_layers"), [("full", 4.0, 6.0), ("lora", 2.0, 2.0), ("qlora", 2.0, 0.52)]
)
def test_a_head_of_its_own_is_held_as_the_embedding_is(method: str, of_head: float, of_layers: float) -> None:
    """bitsandbytes leaves it in 16 bits: at 0.52 a parameter 8B would want 0.8 GB less than they do."""
    size = student_card("llama-3.1-8b").size or pytest.fail("the card has no size")
    held = need(size, Load(method, RANK, 1024))
    assert held is not None
    both = 2 * 128256 * 4096
    adapter = 0 if method == "full" else 4 * adapter_parameters(size, RANK)
    assert held.weights == pytest.approx(of_layers * (size.parameters - both) + of_head * both + adapter)


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
        # of all 32,768 tokens at a time two processes would need 31.5 GiB each
        "2 processes of students/launch/fsdp2.yaml, --gradient-checkpointing --tokens-per-device 2048",
        "lower train.max_length, or take method: lora",
    ]


def test_an_example_that_no_device_holds_is_shared_by_several() -> None:
    recipe = recipe_of("lora", 131072)
    load = load_of(recipe, 8192, False)
    assert least_change(BIG, recipe, load, 24)[1] is None
    assert sharers_of(BIG, recipe) == [2, 4, 8, 16]  # of 16 heads, and 8 of keys that are copied
    flags, found = least_change(BIG, recipe, load, 24, [2])
    assert flags == (
        "2 processes of students/launch/fsdp2.yaml, --gradient-checkpointing --tokens-per-device 65536 "
        "--context-parallel 2"
    )
    assert found == replace(load, checkpointing=True, tokens=65536, shards=2, sharers=2)
    assert load_of(recipe, 65536, True, shards=2, sharers=2) == found, (
        "the flags make the load that was meant"
    )


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


def test_a_device_that_is_full_is_no_fault_of_the_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a RuntimeError, as is what an unknown architecture or a broken file raises."""

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    card = card_of(build_student(tmp_path))
    student = load_base(card, sampled(card))
    monkeypatch.setattr(student, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        rehearse(student, Encoded([1, 2, 3], 1, ("p", 0)))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        load_base(card, sampled(card))
