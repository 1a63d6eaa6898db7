"""Rows that train: through the train stage on the embedded student, and students of real sizes with random
weights, whose memory and speed are held against what `plan` says.
"""

import json
import math
import random
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3Config, TrainerCallback

from pipeline.context import CHECKPOINT, Context
from pipeline.embedded.training import mixed_items, score
from pipeline.errors import PipelineError
from pipeline.flags import TrainFlags
from pipeline.plan.estimate import FLOPS_TRAINED, Assumed
from pipeline.plan.memory import GIB, Load, least_change, load_of, need
from pipeline.recipe.cards import sampled_student, student_card
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.schema import Train
from pipeline.records import Example
from students import attention
from students.examples import TrainingSet
from students.format import Encoded, load_format
from students.memory import device_gib, size_of_model
from students.model import quiet_libraries
from students.train import run
from students.trainer import Job, OrderedTrainer, build_trainer, last_checkpoint, train
from teachers.embedded import steps
from tests.architectures import build_architecture
from tests.gpu.setting import Setting, hold_estimate, require_gpus
from tests.students_fixtures import card_of, finished_filter, sums

EMBEDDED = "embedded-dense"
# the figures of https://huggingface.co/Qwen/Qwen3-0.6B-Base and Qwen3-1.7B-Base; weights are random
SIZES = {
    "0.6B": {"hidden_size": 1024, "intermediate_size": 3072},
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144},
}
SHARED = {
    "vocab_size": 151936,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "vocab_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}


def written_out(number: int) -> list[Example]:
    """Distinct questions of the embedded families with their written-out steps."""
    found: dict[str, Example] = {}
    for item in mixed_items(11):
        thinking, answer = steps.SOLVERS[item.family](item.entry["metadata"])
        turn = {"role": "assistant", "content": f"\\boxed{{{answer}}}", "reasoning_content": thinking}
        chat = [*PROMPTS["boxed"].messages(item.question), turn]
        found[item.question] = Example(f"{len(found):016x}", 0, chat, 1)
        if len(found) == number:
            break
    return list(found.values())


def prepared(setting: Setting, *overrides: str) -> Context:
    """A run of the embedded student whose filter stage is finished."""
    examples = written_out(64 if setting.dry else 8000)
    values = ["train.batch_size=32", "train.max_length=256", "train.learning_rate=2.0e-3", *overrides]
    return finished_filter(setting.directory, examples, *values)


def rows_of(context: Context) -> list[dict[str, Any]]:
    path = context.directory("train") / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def through_the_stage(setting: Setting, epochs: int, *overrides: str) -> dict[str, Any]:
    """Train, export and load: the loss curve, and the checkpoint's greedy score on reserved questions."""
    quiet_libraries()
    epochs = 1 if setting.dry else epochs
    context = prepared(setting, f"train.epochs={epochs}", *overrides)
    started = time.monotonic()
    run(context, TrainFlags(device=setting.device, log_every=10))  # type: ignore[arg-type]
    seconds = time.monotonic() - started
    losses = [row["loss"] for row in rows_of(context)]
    directory = context.directory("train") / CHECKPOINT
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = load_format(context.student_card, context.base).tokenizer
    families = score(model, tokenizer, 1 if setting.dry else 40, 0.0)
    assert all(map(math.isfinite, losses)), losses
    assert setting.dry or losses[-1] < losses[0] / 2, losses
    manifest = json.loads((context.directory("train") / "manifest.json").read_text())
    usage = manifest["usage"]
    return {
        "losses": [round(loss, 4) for loss in losses[:: max(1, len(losses) // 12)]],
        "last_loss": round(losses[-1], 4),
        "score": round(sum(families.values()) / len(families), 4),
        "train_seconds": usage["train_seconds"],
        "step_ms": round(1000 * usage["train_seconds"] / usage["steps"], 1),
        "tokens_per_second": round(usage["tokens_per_epoch"] * epochs / usage["train_seconds"]),
        "stage_seconds": round(seconds, 1),
        "attention": manifest["notes"]["attention"],
    }


def full(setting: Setting) -> dict[str, Any]:
    return through_the_stage(setting, 2)


def lora(setting: Setting) -> dict[str, Any]:
    return through_the_stage(setting, 1, *LORA)


def qlora(setting: Setting) -> dict[str, Any]:
    require_gpus(setting)
    return through_the_stage(setting, 1, *LORA, "train.method=qlora")


LORA = ("train.method=lora", "train.lora.rank=64", "train.lora.alpha=128", "train.learning_rate=5.0e-3")


@dataclass(frozen=True, slots=True)
class Shape:
    """A student of random weights and what it is trained on: examples of `length` tokens, some to a micro-batch."""

    size: str
    method: str
    length: int
    tokens: int
    checkpointing: bool = False
    liger: bool = False

    def on(self, setting: Setting) -> "Shape":
        return replace(self, length=64, tokens=128) if setting.dry else self


def random_student(setting: Setting, shape: Shape) -> PreTrainedModel:
    """In the types that load_student loads: fp32 in full, bf16 below an adapter."""
    config = Qwen3Config(**(TINY if setting.dry else {**SHARED, **SIZES[shape.size]}))
    dtype = torch.float32 if shape.method == "full" or setting.dry else torch.bfloat16
    torch.manual_seed(0)
    with torch.device(setting.device):
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention.implementation(setting.device)
        )


def random_examples(shape: Shape, number: int, vocabulary: int) -> TrainingSet:
    """Prompts of a fifth of the length, the rest is trained on; lengths vary by a tenth."""
    rng = random.Random(0)
    train = []
    for _ in range(number):
        length = rng.randint(shape.length * 9 // 10, shape.length)
        train.append(Encoded([rng.randrange(vocabulary) for _ in range(length)], length // 5))
    return TrainingSet(train)


class Seconds(TrainerCallback):
    """When each step ended, the device having finished its work."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.ended: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.ended.append(time.monotonic())


class Kernels(TrainerCallback):
    """The kernels of one step: how long the device was at work, and at what."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
        self.milliseconds = 0.0
        self.longest: list[str] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            torch.cuda.synchronize()
            self.profile.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step + 1:
            torch.cuda.synchronize()
            self.profile.__exit__(None, None, None)
            events = [
                e for e in self.profile.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA
            ]
            events.sort(key=lambda event: -event.self_device_time_total)
            self.milliseconds = sum(event.self_device_time_total for event in events) / 1000
            self.longest = [f"{e.key[:48]} {e.self_device_time_total / 1000:.0f} ms" for e in events[:4]]


def trainer_for(
    setting: Setting, shape: Shape, num_steps: int, parts: int = 2
) -> tuple[OrderedTrainer, Job, Train]:
    """Our trainer of a student of random weights, `parts` micro-batches a step."""
    quiet_libraries()
    batch = parts * max(1, shape.tokens // shape.length)
    recipe = Train.model_validate(
        {
            "student": EMBEDDED,
            "method": shape.method,
            "epochs": 1.0,
            "learning_rate": 1e-4,
            "max_length": shape.length,
            "batch_size": batch,
        }
    )
    student = random_student(setting, shape)
    data = random_examples(shape, batch * num_steps, student.config.vocab_size)
    flags = TrainFlags(
        device=setting.device,  # type: ignore[arg-type]
        tokens_per_device=shape.tokens,
        gradient_checkpointing=shape.checkpointing,
        liger=shape.liger,
        save_every=10**6,
        log_every=1,
    )
    job = Job("check-gpu", recipe, 0, flags, setting.device, setting.directory)
    tokenizer = load_format(student_card(EMBEDDED), sampled_student("base", student_card(EMBEDDED))).tokenizer
    return build_trainer(job, data, student, tokenizer, "all-linear"), job, recipe


def measured(setting: Setting, shape: Shape, num_steps: int = 6) -> dict[str, Any]:
    """Memory at the peak against the estimate, tokens a second against plan's, and the share of peak FLOPs.

    The last step is not timed: its kernels are recorded, to tell a slow device from one that waits.
    """
    shape = shape.on(setting)
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer, job, recipe = trainer_for(setting, shape, num_steps)
    assert trainer.model is not None
    size = size_of_model(trainer.model)
    clock, kernels = Seconds(setting.device), Kernels(num_steps - 1)
    trainer.add_callback(clock)
    if setting.device == "cuda":
        trainer.add_callback(kernels)
    train(trainer, job)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert all(map(math.isfinite, losses)), losses
    skipped = 2  # kernels are compiled and the allocator filled in the first steps
    tokens = sum(trainer.step_tokens[skipped : num_steps - 1])
    seconds = clock.ended[num_steps - 2] - clock.ended[skipped - 1]
    rate = tokens / seconds
    load = Load(
        shape.method,
        recipe.lora.rank,
        max(sum(row["seq_lengths"]) for row in trainer.train_dataset),
        shape.checkpointing,
    )
    estimate = need(size, load)
    assert estimate is not None
    assumed = Assumed()
    operations = FLOPS_TRAINED[shape.method] * size.parameters
    found = {
        "micro_batch_tokens": load.tokens,
        "loss": [round(losses[0], 3), round(losses[-1], 3)],
        "tokens_per_second": round(rate),
        "plan_tokens_per_second": round(assumed.tflops * 1e12 * assumed.mfu / operations),
        "estimate_gib": round(estimate.total / GIB, 2),
        "estimate": str(estimate),
    }
    if setting.device == "cuda":
        peak = torch.cuda.max_memory_allocated() / GIB
        found |= {
            "peak_gib": round(peak, 2),
            "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2),
            "estimate_over_peak": round(estimate.total / GIB / peak, 3),
            "step_ms": round(1000 * seconds / (num_steps - 1 - skipped)),
            "kernel_ms": round(kernels.milliseconds),
            "longest": kernels.longest,
            "mfu": round(operations * rate / (assumed.tflops * 1e12), 3),
        }
    return found


SHAPES = {
    "0.6B full, 8k": Shape("0.6B", "full", 2048, 8192),
    "0.6B full, 8k, checkpointed": Shape("0.6B", "full", 2048, 8192, checkpointing=True),
    "1.7B LoRA, 8k": Shape("1.7B", "lora", 2048, 8192),
    "1.7B LoRA, 16k, checkpointed": Shape("1.7B", "lora", 16384, 16384, checkpointing=True),
    "0.6B LoRA, 4k": Shape("0.6B", "lora", 1024, 4096),
}


def sized(name: str) -> Any:
    """The row's function for one of SHAPES."""
    return lambda setting: hold_estimate(measured(setting, SHAPES[name]))


def inside(setting: Setting, name: str) -> Setting:
    """The same in a directory of its own: a run goes on from the checkpoints that it finds."""
    (setting.directory / name).mkdir()
    return replace(setting, directory=setting.directory / name)


def liger(setting: Setting) -> dict[str, Any]:
    """Liger's kernels against ours: the same first loss, speed and memory."""
    require_gpus(setting)
    shape = Shape("0.6B", "lora", 2048, 8192)
    plain, kernels = (
        measured(inside(setting, str(wanted)), replace(shape, liger=wanted)) for wanted in (False, True)
    )
    assert math.isclose(plain["loss"][0], kernels["loss"][0], rel_tol=0.01), (plain, kernels)
    return {
        "speed_ratio": round(kernels["tokens_per_second"] / plain["tokens_per_second"], 3),
        "memory_ratio": round(kernels["peak_gib"] / plain["peak_gib"], 3),
        "loss": kernels["loss"],
    }


def resumed(setting: Setting) -> dict[str, Any]:
    """Stopped in the middle and gone on with: the same losses as without the stop."""
    curves = []
    for stops in (False, True):
        place = inside(setting, str(stops))
        shape = Shape("0.6B", "lora", 512, 2048).on(setting)
        trainer, job, _ = trainer_for(place, shape, 6)
        trainer.args.save_steps = 3
        trainer.args.set_save(strategy="steps", steps=3)
        if stops:
            trainer.add_callback(StopAt(3))
            train(trainer, job)
            assert last_checkpoint(job.steps) is not None
            trainer, job, _ = trainer_for(place, shape, 6)
        train(trainer, job)
        curves.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    apart = max(abs(a - b) for a, b in zip(*curves, strict=True))
    assert apart < 0.02, curves
    return {"losses": [round(loss, 4) for loss in curves[1]], "largest_difference": round(apart, 5)}


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True
        return control


def fits_24_gib(setting: Setting) -> dict[str, Any]:
    """What the estimate says of 16k tokens for a LoRA of 1.7B on a device of 24 GiB, held against the peak."""
    require_gpus(setting)
    shape = SHAPES["1.7B LoRA, 16k, checkpointed"]
    recipe = Train.model_validate(
        {
            "student": EMBEDDED,
            "method": "lora",
            "epochs": 1.0,
            "learning_rate": 1e-4,
            "max_length": shape.length,
        }
    )
    with torch.device("meta"):
        size = size_of_model(
            AutoModelForCausalLM.from_config(Qwen3Config(**{**SHARED, **SIZES["1.7B"]}), dtype=torch.bfloat16)
        )
    wanted = least_change(size, recipe, load_of(recipe, 8192, False), 24)[0]
    whole = device_gib("cuda")
    assert whole is not None
    torch.cuda.set_per_process_memory_fraction(min(1.0, 23 / whole))  # 24 GiB less the context
    return {"flags_for_24_gib": wanted, **hold_estimate(measured(setting, shape, 4))}


# one of each way: linear attention, a short convolution, Mamba, sinks, windows, experts
# (flash-linear-attention compiles its kernels for minutes, so Qwen3.5 is the last)
KINDS = ("Gemma-3", "LFM2", "Granite-4", "GPT-OSS", "Qwen3-MoE", "Qwen3.5")


def architectures(setting: Setting) -> dict[str, Any]:
    """Tiny students of other architectures through the train stage: how each was laid out, and its losses.

    A dry row is content with one that is packed and one that is padded.
    """
    found: dict[str, Any] = {"fla": find_spec("fla") is not None}
    failed, layouts = [], set()
    for name in KINDS[:2] if setting.dry else KINDS:
        place = setting.directory / name
        place.mkdir()
        card = card_of(build_architecture(place / "base", name), thinking={"opened_by_prompt": False})
        context = finished_filter(
            place,
            sums(8 if setting.dry else 64),
            "train.learning_rate=1.0e-3",
            "train.max_length=256",
            card=card,
        )
        try:
            run(context, TrainFlags(device=setting.device, log_every=1, without_vllm=True))  # type: ignore[arg-type]
        except (PipelineError, RuntimeError, ValueError, TypeError) as error:
            failed.append(name)
            found[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            continue
        losses = [row["loss"] for row in rows_of(context)]
        notes = json.loads((context.directory("train") / "manifest.json").read_text())["notes"]
        layouts.add(notes["layout"])
        found[name] = f"{notes['layout']}, {notes['attention']}, loss {losses[0]:.3f} to {losses[-1]:.3f}"
        if not all(map(math.isfinite, losses)):
            failed.append(name)
    assert not failed, found
    assert not setting.dry or len(layouts) == 2, found
    return found
