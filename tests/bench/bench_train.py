"""Training speed of the train stage over a bare TRL SFTTrainer: same examples, same machine, one run.

Both see the same ids and labels, of written-out steps of the embedded families or of --data; the bare trainer
has TRL's own collator and random batches, ours the packed micro-batches. Rounds alternate, so a busy machine
slows both. With --score both train to the end and are scored on reserved questions (about ten minutes on two
idle cores).

    python -m tests.bench.bench_train --score [--data runs/demo/filter/examples.parquet]
    python -m tests.bench.bench_train --candidates     # about five minutes on two idle cores

The last line is {"speed": ours over bare in useful tokens/s, "padding": share of ours that is padding, ...};
speed_a_core counts processor seconds instead, which hold on a busy machine.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTConfig, SFTTrainer

from pipeline.embedded.training import mixed_items, score
from pipeline.flags import TrainFlags
from pipeline.recipe.cards import sampled_student, student_card
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.schema import Train
from pipeline.records import Example, read_examples
from students.examples import TrainingSet, build
from students.format import load_format
from students.model import load_student, quiet_libraries
from students.trainer import Job, OrderedTrainer, build_trainer
from teachers.embedded import steps

STUDENT = "embedded-dense"
CARD = student_card(STUDENT)


class Clock(TrainerCallback):
    """Seconds of the wall clock and of this process between the end of the warm-up and the last step."""

    def __init__(self, warm_up: int, stop: int | None) -> None:
        self.warm_up, self.stop = warm_up, stop
        self.started = self.ended = (0.0, 0.0)

    @property
    def seconds(self) -> tuple[float, float]:
        return self.ended[0] - self.started[0], self.ended[1] - self.started[1]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        if state.global_step == self.warm_up:
            self.started = (time.monotonic(), time.process_time())
        self.ended = (time.monotonic(), time.process_time())
        control.should_training_stop = state.global_step == self.stop
        return control


def perfect_examples(number: int) -> list[Example]:
    """Distinct questions of the embedded families with their written-out steps."""
    found: dict[str, Example] = {}
    for item in mixed_items(11):
        thinking, answer = steps.SOLVERS[item.family](item.entry["metadata"])
        turn = {"role": "assistant", "content": f"\\boxed{{{answer}}}", "reasoning_content": thinking}
        chat = [*PROMPTS["boxed"].messages(item.question), turn]
        found[item.question] = Example(item.question, 0, chat, 0)
        if len(found) == number:
            break
    return list(found.values())


def ours(data: TrainingSet, recipe: Train, directory: Path) -> OrderedTrainer:
    card, model = CARD, sampled_student("base", CARD)
    job = Job("bench", recipe, 0, TrainFlags(device="cpu", save_every=10**6), "cpu", directory)
    student = load_student(card, model, recipe, "cpu")
    return build_trainer(job, data, student, load_format(card, model).tokenizer, card.lora_targets)


# what might be faster than what is taken: changes of the trainer's configuration, or of the trainer
CANDIDATES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "TRL's fused head": {"max_logits": 0},
    "AdamW not fused": {"optim": "adamw_torch"},
    "bf16": {"bf16": True},
    "torch.compile": {"torch_compile": True},
    "a row of metrics every step": {"logging_steps": 1},
    "a row of metrics every 100 steps": {"logging_steps": 100},
    "one thread": {"threads": 1},
}


def changed(trainer: OrderedTrainer, changes: dict[str, Any]) -> OrderedTrainer:
    """The same run with other arguments."""
    options = {name: value for name, value in changes.items() if name not in ("max_logits", "threads")}
    args = SFTConfig(
        **{**{f.name: getattr(trainer.args, f.name) for f in fields(SFTConfig) if f.init}, **options}
    )
    other = OrderedTrainer(
        model=trainer.model,
        args=args,
        train_dataset=trainer.train_dataset,
        processing_class=trainer.processing_class,
    )
    other.recipe, other.step_tokens, other.padding = trainer.recipe, trainer.step_tokens, trainer.padding
    other.max_logits = changes.get("max_logits", trainer.max_logits)
    other.remove_callback(PrinterCallback)
    return other


def compare_candidates(
    data: TrainingSet, recipe: Train, directory: Path, rounds: int, num_steps: int
) -> None:
    """Seconds of each candidate over those of the trainer as it is, median of the rounds; above 1 is faster."""
    threads = torch.get_num_threads()
    seconds: dict[str, list[float]] = {name: [] for name in CANDIDATES}
    for number in range(rounds):
        for place, (name, changes) in enumerate(CANDIDATES.items()):
            torch.set_num_threads(changes.get("threads", threads))
            trainer = ours(data, recipe, directory / f"{number}-{place}")
            seconds[name].append(seconds_of(changed(trainer, changes), 3, num_steps)[0])
            ratio = statistics.median(a / b for a, b in zip(seconds["as it is"], seconds[name], strict=False))
            print(f"{name:<34} {seconds[name][-1]:6.1f} s, {ratio:.2f} times as fast", file=sys.stderr)
    torch.set_num_threads(threads)
    fastest = {
        name: round(statistics.median(a / b for a, b in zip(seconds["as it is"], each, strict=True)), 3)
        for name, each in seconds.items()
    }
    print(json.dumps(fastest))


def bare(data: TrainingSet, recipe: Train, directory: Path) -> SFTTrainer:
    """TRL as it comes but for what the CPU needs (fp32) and gradient checkpointing, which is off in both."""
    card, model = CARD, sampled_student("base", CARD)
    student = load_student(card, model, recipe, "cpu")
    student.set_attn_implementation("sdpa")
    config = SFTConfig(
        output_dir=str(directory),
        per_device_train_batch_size=recipe.batch_size,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup_ratio,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    columns = {"input_ids": [e.ids for e in data.train], "labels": [e.labels for e in data.train]}
    trainer = SFTTrainer(
        model=student,
        args=config,
        train_dataset=Dataset.from_dict(columns),
        processing_class=load_format(card, model).tokenizer,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def padding(trainer: SFTTrainer, num_batches: int) -> float:
    """The share of the tokens of the first batches that is padding."""
    filled = laid_out = 0
    for number, batch in enumerate(trainer.get_train_dataloader()):
        if number == num_batches:
            break
        laid_out += batch["input_ids"].numel()
        mask = batch.get("attention_mask")
        filled += batch["input_ids"].numel() if mask is None else int(mask.sum())
    return 1 - filled / laid_out


def seconds_of(trainer: SFTTrainer, warm_up: int, num_steps: int) -> tuple[float, float]:
    """Wall and processor seconds of `num_steps` after the warm-up."""
    clock = Clock(warm_up, warm_up + num_steps)
    trainer.add_callback(clock)
    trainer.train()
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--examples", type=int, default=8000)
    parser.add_argument("--data", type=Path, help="examples.parquet of a run, in place of --examples")
    parser.add_argument("--steps", type=int, default=25, help="timed steps of each trainer a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--score", action="store_true", help="train both to the end and score them")
    parser.add_argument("--candidates", action="store_true", help="ours against what might be faster")
    parser.add_argument("--threads", type=int, default=None)
    flags = parser.parse_args()
    quiet_libraries()
    if flags.threads:
        torch.set_num_threads(flags.threads)
    values = {
        "student": STUDENT,
        "method": "full",
        "learning_rate": 2e-3,
        "max_length": 512,
        "batch_size": 32,
    }
    recipe = Train.model_validate({**values, "epochs": float(flags.epochs)})
    style = load_format(CARD, sampled_student("base", CARD))
    examples = read_examples(flags.data) if flags.data else perfect_examples(flags.examples)
    data = build(examples, style, recipe, 0)
    mean = statistics.mean(len(example.ids) for example in data.train)
    print(f"{len(data.train):,} examples, {mean:.0f} tokens on average", file=sys.stderr)
    if flags.candidates:
        with tempfile.TemporaryDirectory() as directory:
            compare_candidates(data, recipe, Path(directory), flags.rounds, flags.steps)
        return
    makers = {"bare": bare, "ours": ours}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in makers}
    shares: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as directory:
        for number in range(flags.rounds):
            for name, make in makers.items():
                trainer = make(data, recipe, Path(directory) / f"{name}-{number}")
                shares[name] = padding(trainer, 20)
                spent[name].append(seconds_of(trainer, 3, flags.steps))
                rates = [flags.steps * recipe.batch_size * mean / s for s in spent[name][-1]]
                print(f"{name}: {rates[0]:,.0f} useful tokens/s ({rates[1]:,.0f} a core)", file=sys.stderr)
        scores = scored(makers, data, recipe, Path(directory)) if flags.score else {}
    pairs = list(zip(spent["bare"], spent["ours"], strict=True))
    result = {
        "speed": round(statistics.median(bare[0] / ours[0] for bare, ours in pairs), 2),
        "speed_a_core": round(statistics.median(bare[1] / ours[1] for bare, ours in pairs), 2),
        "padding": round(shares["ours"], 4),
        "bare_padding": round(shares["bare"], 4),
        **scores,
    }
    print(json.dumps(result))


def scored(makers: dict[str, Any], data: TrainingSet, recipe: Train, directory: Path) -> dict[str, float]:
    """Exact-match, greedy, over all families: trained by us, and with plain random batches by bare TRL."""
    found = {}
    for name, make in makers.items():
        trainer = make(data, recipe, directory / f"{name}-scored")
        started = time.monotonic()
        trainer.train()
        seconds = time.monotonic() - started
        model = trainer.model
        assert model is not None
        model.set_attn_implementation("sdpa")
        families = score(model, trainer.processing_class, 100, 0.0)  # type: ignore[arg-type]
        found["score" if name == "ours" else "score_random"] = round(statistics.mean(families.values()), 4)
        print(f"{name}: {seconds:.0f} s, {families}", file=sys.stderr)
    return found


if __name__ == "__main__":
    main()
