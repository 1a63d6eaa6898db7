"""Many architectures through our own layout: an example among others is the same as alone, or it is refused."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AttentionInterface, AutoModelForCausalLM, Gemma3Config
from transformers.masking_utils import AttentionMaskInterface

from pipeline.context import Context
from pipeline.errors import StageError
from pipeline.flags import TrainFlags
from pipeline.recipe.schema import Lora
from students.attention import attend_apart, register
from students.batching import buckets, cut_padded, num_padded, ordered_batches
from students.examples import build
from students.format import load_format
from students.in_vllm import ANSWERING, LACKS_MEMORY, asked_apart, check_answers, ending, known_to_answer
from students.layout import Layout, choose_layout
from students.model import _load, linear_config, load_base, unadaptable
from students.train import run
from students.trainer import Job, build_trainer
from tests.architectures import ARCHITECTURES, SIZES, build_architecture, build_model
from tests.conftest import ROOT
from tests.students_fixtures import (
    CHATML,
    build_tokenizer,
    card_of,
    context_of,
    finished_filter,
    sampled,
    sums,
)

CPU = TrainFlags(device="cpu", log_every=1, without_vllm=True)
PADDED, OWN = "see each other", "is not the model's own attention"
# what is not packed with our attention, and why; tests of a few, a slow test of all
SLOW_WAY = {
    "Qwen3-Next": ("sdpa", PADDED),
    "Qwen3.5": ("sdpa", PADDED),
    "LFM2": ("sdpa", PADDED),
    "Nemotron-H": ("sdpa", PADDED),
    "Granite-4": ("sdpa", PADDED),
    "Falcon-H1": ("sdpa", PADDED),
    "Gemma-2": ("eager", OWN),
    "GPT-OSS": ("eager", OWN),
    "Llama-4": ("sdpa", OWN),
}
# what TRL or PEFT cannot train
REFUSED = {"Llama-4": r"does not run as it would be trained .*last_hidden_state"}
FAST = ("Qwen3", "Qwen3.5", "Gemma-2", "GPT-OSS")
slow = pytest.mark.slow
EVERY = [pytest.param(name, marks=() if name in FAST else slow) for name in ARCHITECTURES]
VOCABULARY = 263


def laid_out(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> tuple[Any, Layout]:
    model = build_model(name, VOCABULARY, eos_token_id=0, **changes).to(dtype)
    model.set_attn_implementation(register())
    numbers = torch.Generator().manual_seed(1)
    examples = torch.randint(0, VOCABULARY, (2, 60), generator=numbers).tolist()
    return model, choose_layout(model, examples, longest=512)


@pytest.mark.parametrize("name", EVERY)
def test_the_layout_of_an_architecture_is_found_by_asking_it(name: str) -> None:
    model, layout = laid_out(name)
    attention, reason = SLOW_WAY.get(name, (register(), ""))
    assert (layout.packed, layout.attention) == (name not in SLOW_WAY, attention)
    assert reason in layout.reason
    assert model.config._attn_implementation == attention


@slow
@pytest.mark.parametrize("name", ["Qwen3-MoE", "GPT-OSS", "Qwen3.5"])
def test_rounding_in_16_bits_is_no_difference(name: str) -> None:
    """Of a mixture of experts it sends single tokens to other experts."""
    assert laid_out(name, torch.bfloat16)[1].packed is (name not in SLOW_WAY)


def test_a_kernel_that_loses_the_borders_is_not_used() -> None:
    """As one that takes `cu_seq_lens_q` and does not heed it."""

    def borderless(*given: Any, **options: Any) -> Any:
        return attend_apart(
            *given, **{key: value for key, value in options.items() if key != "cu_seq_lens_q"}
        )

    AttentionInterface.register("borderless", borderless)
    AttentionMaskInterface.register("borderless", lambda *_, **__: None)
    model = build_model("Qwen3", VOCABULARY, eos_token_id=0)
    model.set_attn_implementation("borderless")
    layout = choose_layout(model, [list(range(60)), list(range(60, 120))], longest=512)
    assert (layout.packed, layout.attention) == (False, "sdpa")
    assert PADDED in layout.reason


def test_a_chunk_longer_than_the_probe_is_seen_in_the_mask() -> None:
    """Up to 128 tokens both are the same; train.max_length is 512."""
    _, layout = laid_out("Llama-4", attention_chunk_size=128)
    assert "of 512 tokens the last one would see 512 and not 128" in layout.reason


LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 16,
    "long_factor": [1.0 + i for i in range(16)],
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Phi-4-mini", {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 128}),
        ("Llama-3", {"rope_parameters": DYNAMIC, "max_position_embeddings": 128}),
    ],
    ids=["LongRoPE", "dynamic"],
)
def test_a_rotary_embedding_that_goes_by_the_longest_example_is_refused(name: str, changes: Any) -> None:
    """Up to the length that it was trained on, it does not."""
    model = build_model(name, VOCABULARY, eos_token_id=0, **changes)
    model.set_attn_implementation(register())
    examples = [list(range(60)), list(range(60, 120))]
    assert choose_layout(model, examples, longest=128).packed
    with pytest.raises(StageError, match=r"beside one of 512 tokens .*Lower train.max_length to 128"):
        choose_layout(model, examples, longest=512)


def trainer_for(root: Path, name: str, *overrides: str) -> tuple[Any, list[Any], Any]:
    """The trainer that fit builds for an architecture, its examples, and the base alone."""
    card = card_of(build_architecture(root / "base", name), thinking={"opened_by_prompt": False})
    context = context_of(root, *overrides, card=card)
    recipe, style = context.recipe, load_format(card, sampled(card))
    data = build(sums(16), style, recipe.train, recipe.seed)
    student = load_base(card, sampled(card))
    student.set_attn_implementation(register())
    layout = choose_layout(student, [one.encoded.ids for one in data.shown], recipe.train.max_length)
    job = Job(recipe.name, recipe.train, recipe.seed, CPU, "cpu", root / "train", not layout.packed)
    trainer = build_trainer(job, data, student, style.tokenizer, card.lora_targets)
    return trainer, data.train, load_base(card, sampled(card))


@slow
@pytest.mark.parametrize("name", ["Qwen3.5", "LFM2", "Gemma-2"])
def test_what_the_loader_gives_is_computed_as_alone(tmp_path: Path, name: str) -> None:
    """Each example's loss in its micro-batch is that of the example alone, and padding is below 5%."""
    trainer, examples, alone = trainer_for(tmp_path, name)
    together = apart = torch.zeros(())
    num_trained = 0
    with torch.no_grad():
        for batch in trainer.get_train_dataloader():
            together = together - trainer.model(**batch, use_cache=False, fused_lm_head=True).log_probs.sum()
            num_trained += int((batch["labels"] != -100).sum())
        for one in examples:
            logits = alone(torch.tensor([one.ids]), use_cache=False).logits[0, :-1]
            apart = apart + torch.nn.functional.cross_entropy(
                logits, torch.tensor(one.labels[1:]), reduction="sum"
            )
    assert num_trained == sum(len(one.trained) for one in examples)
    assert together.item() == pytest.approx(apart.item(), rel=1e-4)
    assert 0 <= trainer.padding < 0.05


LENGTHS = [20 + 37 * i % 200 for i in range(640)]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_padded_micro_batches_hold_what_the_step_sees(processes: int) -> None:
    batches = ordered_batches(LENGTHS, 32, 1, 0, "random")
    steps = cut_padded(batches, LENGTHS, processes, max_tokens=1500)
    assert [sorted(i for part in step for i in part) for step in steps] == [sorted(b) for b in batches]
    (num_parts,) = {len(step) for step in steps}
    assert num_parts % processes == 0
    parts = [part for step in steps for part in step]
    assert max(num_padded([part], LENGTHS) for part in parts) <= 1500
    assert 1 - sum(LENGTHS) / num_padded(parts, LENGTHS) < 0.05


def test_fewer_examples_than_parts_are_padded_together() -> None:
    assert cut_padded([[0, 1, 2]], [100, 50, 10], processes=2, max_tokens=1000) == [[[0], [1, 2]]]


def test_short_first_goes_from_short_to_long_in_each_epoch() -> None:
    lengths = [len(LENGTHS) - i for i in range(64)]
    batches = ordered_batches(lengths, 8, 2, 0, "short_first")
    means = [sum(lengths[i] for i in batch) / 8 for batch in batches]
    assert means == [*sorted(means[:8]), *sorted(means[8:])]
    assert ordered_batches(lengths, 8, 2, 1, "short_first") == batches  # there are no two of a length


def test_bucketed_stages_hold_all_their_epochs_before_longer_ones() -> None:
    found = buckets(LENGTHS, 32)
    assert sorted(i for bucket in found for i in bucket) == list(range(len(LENGTHS)))
    assert len(found) > 2
    batches = ordered_batches(LENGTHS, 32, 2, 0, "bucketed")
    stage_of = {i: number for number, bucket in enumerate(found) for i in bucket}
    stages = [{stage_of[i] for i in batch} for batch in batches]
    assert all(len(stage) == 1 for stage in stages)
    assert stages == sorted(stages, key=min)
    assert batches != ordered_batches(LENGTHS, 32, 2, 1, "bucketed")
    assert [len(bucket) >= 32 for bucket in buckets([1, 3, *[4] * 31, *[9] * 8], 32)] == [True]


def test_layers_that_take_no_adapter_are_passed_over() -> None:
    """A router whose layer gives two tensors, and what a state-space kernel reads past an adapter."""
    assert unadaptable(build_model("Qwen3.5", VOCABULARY)) == []
    mixer = build_model("Nemotron-H", VOCABULARY)
    assert linear_config(Lora(), "all-linear", mixer).exclude_modules == unadaptable(mixer)
    assert unadaptable(build_model("Llama-4", VOCABULARY)) == [
        f"model.layers.{n}.feed_forward.router" for n in range(2)
    ]
    assert unadaptable(mixer) == ["model.layers.0.mixer.out_proj"]


def refused_before_training(context: Context, flags: TrainFlags, reason: str) -> None:
    with pytest.raises(StageError, match=reason):
        run(context, flags)
    assert not context.directory("train").exists()


def test_what_answers_in_vllm_is_what_the_table_says() -> None:
    answering = ARCHITECTURES.keys() - REFUSED.keys() - NOT_IN_VLLM.keys()
    assert {type(build_model(name, VOCABULARY)).__name__ for name in answering} == ANSWERING


@pytest.mark.parametrize(
    ("name", "dtype", "known"),
    [
        ("Gemma3ForCausalLM", "bfloat16", True),
        ("Gemma3ForCausalLM", "float32", True),
        ("Gemma3ForCausalLM", "float16", False),
        ("Qwen3NextForCausalLM", "bfloat16", True),
        ("Qwen3NextForCausalLM", "float32", False),
        ("NemotronHForCausalLM", "bfloat16", False),
    ],
)
def test_vllm_is_asked_about_a_dtype_that_was_not_tried(name: str, dtype: str, known: bool) -> None:
    assert known_to_answer(name, dtype) is known


@slow
def test_an_architecture_that_is_not_known_to_answer_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("students.in_vllm.ANSWERING", frozenset())
    card = card_of(build_architecture(tmp_path, "Qwen3"), thinking={"opened_by_prompt": False})
    caplog.set_level("INFO")
    check_answers(sampled(card), load_base(card, sampled(card)), list(range(20)))
    assert "asking vLLM whether it can answer with a Qwen3ForCausalLM" in caplog.text


@pytest.mark.parametrize(
    ("fault", "is_memory"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("RuntimeError: CUDA out of memory occurred when warming up sampler", True),
        ("RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", True),
        ("ValueError: No available memory for the cache blocks. Try increasing", True),
        ("ValueError: (0.1 GiB KV cache is needed, which is larger than the available KV cache memory", True),
        (ending(-signal.SIGKILL), True),
        ("AcceleratorError: CUDA error: an illegal memory access was encountered", False),
        ("OutOfResources: out of resource: shared memory, Required: 262144", False),
        (ending(-signal.SIGSEGV), False),
        (ending(1), False),
    ],
)
def test_only_a_lack_of_memory_is_taken_for_one(fault: str, is_memory: bool) -> None:
    assert bool(LACKS_MEMORY.search(fault)) is is_memory


def end_by(number: int) -> None:
    os.kill(os.getpid(), number)


@slow  # the process imports torch
def test_how_the_process_of_the_question_ends_is_told() -> None:
    assert asked_apart(end_by, signal.SIGSEGV) == "its process was ended by SIGSEGV"
    assert asked_apart(end_by, signal.SIGKILL) == ending(-signal.SIGKILL)
    assert asked_apart(os._exit, 3) == "its process ended with exit code 3 and no answer"
    assert asked_apart(str.upper, "answered") == "ANSWERED"


@slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_of_a_class_that_reads_pictures_too_the_text_model_is_trained(tmp_path: Path, method: str) -> None:
    """It says what the whole model says of a text, and what is exported is text alone."""
    tokenizer = build_tokenizer(CHATML)
    text = {**SIZES, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    pictures = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    whole: Any = AutoModelForCausalLM.from_config(
        Gemma3Config(text_config=text, vision_config={**pictures, "image_size": 28}), dtype=torch.float32
    ).eval()
    assert type(whole).__name__ == "Gemma3ForConditionalGeneration"
    whole.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    card = card_of(tmp_path / "base", thinking={"opened_by_prompt": False})
    alone: Any = load_base(card, sampled(card)).eval()
    assert type(alone).__name__ == "Gemma3ForCausalLM"
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.allclose(alone(input_ids=ids).logits, whole(input_ids=ids).logits, atol=1e-5)
    with pytest.raises(StageError, match="reads more than text, and what is quantised does not come apart"):
        _load(card, sampled(card), torch.float32, "eager", low_cpu_mem_usage=True)
    overrides = [f"train.method={method}", 'train.lora.tokens=["<|im_end|>"]', "train.learning_rate=3.0e-3"]
    context = finished_filter(tmp_path, sums(16), *overrides, card=card)
    run(context, TrainFlags(device="cpu", log_every=1))
    config = json.loads((context.directory("train") / "checkpoint/config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["Gemma3ForCausalLM"], "gemma3_text")
    if method == "lora":
        adapter, checkpoint = (context.directory("train") / name for name in ("adapter", "checkpoint"))
        assert (
            json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == card.model
        )
        adapted: Any = AutoPeftModelForCausalLM.from_pretrained(str(adapter), dtype=torch.float32).eval()
        assert type(adapted.get_base_model()) is type(whole)
        changed = [name for name, _ in adapted.named_parameters() if "lora_" in name]
        assert changed
        assert not any("vision" in name for name in changed)
        merged: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        with torch.no_grad():
            before, with_adapter, after = (model(input_ids=ids).logits for model in (whole, adapted, merged))
        assert (with_adapter - before).abs().max() > 1e-2
        assert torch.allclose(with_adapter, after, atol=1e-4)


def through_the_pipeline(root: Path, name: str) -> dict[str, str]:
    """One row of the table: LoRA trained, merged, exported and loaded, or the reason why not."""
    card = card_of(build_architecture(root / "base", name), thinking={"opened_by_prompt": False})
    overrides = ["train.learning_rate=3.0e-3", "train.method=lora"]
    context = finished_filter(root, sums(16), *overrides, card=card)
    if name in REFUSED:
        refused_before_training(context, CPU, REFUSED[name])
        return {"layout": "refused before training"}
    if name in NOT_IN_VLLM:
        refused_before_training(context, TrainFlags(device="cpu"), re.escape(NOT_IN_VLLM[name]))
    run(context, CPU)
    directory, notes = context.directory("train"), context.require("train", "the test").notes
    style = load_format(card, sampled(card))
    asked = torch.tensor([style.encode(sums(20)[-1].messages).ids])
    base = load_base(card, sampled(card)).eval()
    checkpoint = directory / "checkpoint"
    merged = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        before = base(asked).logits
        adapted = PeftModel.from_pretrained(base, str(directory / "adapter")).eval()(asked).logits
        after = merged.eval()(asked).logits
    moved, apart = ((adapted - other).abs().max().item() / adapted.std().item() for other in (before, after))
    assert moved > 1e-2
    assert apart < 1e-4
    row = {
        "layout": str(notes["layout"]),
        "attention": str(notes["attention"]),
        "padding": f"{notes['padding']:.1%}",
    }
    return {**row, "merged = adapter": f"{apart:.0e}", "transformers": "loads"}


# vLLM's kernel for linear attention on a CPU takes bf16 alone, in which a card states its student by default
IN_16_BITS = ("Qwen3-Next", "Qwen3.5")
# what it may refuse and why: Qwen3.5's module imports the one for pictures, which needs torchvision, and the
# experts of Nemotron-H have no kernel on a CPU; whatever it loads must answer the same
NOT_IN_VLLM = {
    "Qwen3.5": "['Qwen3_5ForCausalLM'] failed to be inspected",
    "Nemotron-H": "is_act_and_mul=False is supported only for CUDA",
}
NUM_ANSWERED = 8


Answer = list[tuple[int, float]]


def greedy(checkpoint: Path, prompt: list[int], clear: float) -> Answer:
    """Its answer, in which each token is by `clear` above the next best: rounding cannot give another. With the
    log-probability of each."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    options = {"do_sample": False, "max_new_tokens": NUM_ANSWERED, "min_new_tokens": NUM_ANSWERED}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    done = model.eval().generate(torch.tensor([prompt]), **options)
    logits = torch.cat(done.logits)
    best, second = logits.topk(2).values.T
    assert (best - second).min() > clear, f"{checkpoint}: ask another prompt"
    best_logprobs, tokens = logits.log_softmax(-1).max(-1)
    return list(zip(tokens.tolist(), best_logprobs.tolist(), strict=True))


def nats_apart(answer: Answer, other: Answer) -> float:
    """The largest difference of their log-probabilities, NaN if one is; infinite where tokens differ."""
    pairs = list(zip(answer, other, strict=True))
    nats = [abs(one[1] - two[1]) if one[0] == two[0] else math.inf for one, two in pairs]
    return float(torch.tensor(nats).max())


@slow
def test_every_architecture_is_trained_right_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table: layout, merged = adapter, and the export's answers in transformers and vLLM."""
    rows = {name: through_the_pipeline(tmp_path / name, name) for name in ARCHITECTURES}
    checkpoints = {
        name: tmp_path / name / "runs/small/train/checkpoint" for name in rows if name not in REFUSED
    }
    asked = {
        name: f"{path}@bfloat16" if name in IN_16_BITS else str(path) for name, path in checkpoints.items()
    }
    # bf16 sets a logit of these models 0.04 off at most, fp32 1e-5
    steps = {name: 52 if name in IN_16_BITS else 7 for name in checkpoints}
    prompts = {name: [step * i % 250 for i in range(24)] for name, step in steps.items()}
    wanted = {
        asked[name]: greedy(path, prompts[name], 0.05 if name in IN_16_BITS else 1e-4)
        for name, path in checkpoints.items()
    }
    bounds = {asked[name]: 0.1 if name in IN_16_BITS else 1e-3 for name in checkpoints}
    adapter = f"{tmp_path}/Qwen3/base+{tmp_path}/Qwen3/runs/small/train/adapter"
    wanted[adapter], bounds[adapter] = wanted[asked["Qwen3"]], 1e-3  # what was merged
    given = {asked[name]: prompt for name, prompt in prompts.items()} | {adapter: prompts["Qwen3"]}
    command = [sys.executable, "-m", "tests.vllm_child", str(NUM_ANSWERED), json.dumps(given)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    away = {path: nats_apart(said, wanted[path]) for path, said in found.items() if isinstance(said, list)}
    refused = {name: found[path] for name, path in asked.items() if path not in away}
    for name, path in asked.items():
        rows[name]["vLLM"] = refused.get(name) or f"answers, {away[path]:.0e} nats apart"
    with capsys.disabled():
        print()
        for name, row in rows.items():
            print(f"{name:12}", ", ".join(f"{key} {value}" for key, value in row.items()))
        print(f"adapter as LoRARequest: {away.get(adapter, found[adapter])} nats apart from what was merged")
    assert {path: nats for path, nats in away.items() if not nats <= bounds[path]} == {}
    assert refused.keys() <= NOT_IN_VLLM.keys()
    assert all(NOT_IN_VLLM[name] in said for name, said in refused.items())
    assert adapter in away
