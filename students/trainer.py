"""The work of the train stage: examples in, exported checkpoint out, by TRL's SFTTrainer in our own order.

TRL prepares nothing: rows are micro-batches that students.batching laid out, its padding-free collator lays
the examples end to end with position ids that start again, and attention keeps them apart. The loss of a step
is the sum over its trained tokens divided by their number, over all processes, so how a global batch is cut
changes nothing but rounding.
"""

import functools
import json
import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from transformers.integrations import TensorBoardCallback
from trl import SFTConfig, SFTTrainer

from pipeline.context import Context
from pipeline.errors import RecipeError, StageError
from pipeline.flags import TrainFlags
from pipeline.recipe.cards import SampledModel
from pipeline.recipe.schema import Train
from pipeline.records import read_examples
from pipeline.run.contract import Counts, StageRun, Usage
from students.batching import balanced, cut, global_batches
from students.examples import TrainingSet, build
from students.export import export
from students.format import Encoded, load_format
from students.model import load_student, lora_config, pick_device, quiet_libraries
from students.preflight import Subject, preflight
from students.progress import Progress, Stopper
from students.train import EXAMPLES, METRICS, STEPS

log = logging.getLogger(__name__)

WSD_DECAY_SHARE = 0.2  # the last fifth decays; MiniCPM (arXiv 2404.06395) finds a tenth or more enough
# the share of the learning rate, by the share of the steps after the warm-up that is done
SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
    "wsd": lambda done: min(1.0, (1 - done) / WSD_DECAY_SHARE),
}


@dataclass(frozen=True, slots=True)
class Job:
    """One training run: what it is called, what the recipe says, how it runs, and the stage's directory."""

    name: str
    recipe: Train
    seed: int
    flags: TrainFlags
    device: str
    directory: Path

    @property
    def steps(self) -> Path:
        """The checkpoints to resume from; removed once the stage has finished."""
        return self.directory / STEPS

    @property
    def metrics(self) -> Path:
        return self.directory / METRICS


class OrderedTrainer(SFTTrainer):
    """SFTTrainer with the recipe's schedule. The report stage writes the model card, not TRL.

    `step_tokens` holds the number of tokens of each optimizer step, over all processes.
    """

    recipe: Train
    step_tokens: list[int]

    def count_from(self, step: int) -> None:
        """Go on counting tokens where the run stopped: TRL counts those of one process's life."""
        self._total_train_tokens = sum(self.step_tokens[:step])

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        share = functools.partial(learning_rate_share, num_steps=num_training_steps, recipe=self.recipe)
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, share)  # type: ignore[arg-type]
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def create_model_card(self, *_: Any, **__: Any) -> None:
        return None


def fit(context: Context, model: SampledModel, flags: TrainFlags, stage: StageRun | None) -> None:
    """Train, export and finish the stage. KeyboardInterrupt leaves a run to go on with.

    `stage` is None on every process but the first. Nothing is written before every check has passed, so that
    a fault leaves the stage's directory as it was.
    """
    quiet_libraries()
    recipe, card = context.recipe, context.student_card
    device = pick_device(flags.device)
    style = load_format(card, model)
    data = build(read_examples(context.directory("filter") / EXAMPLES), style, recipe.train, recipe.seed)
    student = load_student(card, model, recipe.train, device)
    checks = preflight(Subject(recipe, card, model, style, student, data.shown, data.largest_id))
    log.info("preflight: %d checks passed", len(checks))
    job = Job(recipe.name, recipe.train, recipe.seed, flags, device, context.directory("train"))
    trainer = build_trainer(job, data, student, style.tokenizer, card.lora_targets)
    seconds = train(trainer, job)
    trained = job.steps / "trained"
    trainer.save_model(str(trained))
    if stage is None:
        return
    files = export(trained, job.directory, card, model, style, recipe.generate.sampling)
    num_rows = len(job.metrics.read_text(encoding="utf-8").splitlines())
    stage.finish(
        Counts(data.num_in, len(data.train) + len(data.held_out), data.dropped),
        {METRICS: num_rows, **dict.fromkeys(files)},
        Usage(
            train_seconds=round(seconds, 1),
            steps=trainer.state.global_step,
            tokens_per_epoch=sum(len(example.ids) for example in data.train),
        ),
        {
            "held_out": len(data.held_out),
            "device": str(trainer.args.device),
            "processes": trainer.args.world_size,
            "attention": student.config._attn_implementation,
        },
    )


def train(trainer: OrderedTrainer, job: Job) -> float:
    """Run to the last step, from the last whole checkpoint if there is one; the seconds it took."""
    last = last_checkpoint(job.steps)
    if last is not None:
        log.info("train: going on from %s", last.name)
        trainer.count_from(step_of(last))
    started = time.monotonic()
    trainer.add_callback(Progress(job.metrics))
    with Stopper() as stopper:
        trainer.add_callback(stopper)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    if stopper.asked:
        raise KeyboardInterrupt
    return time.monotonic() - started


def last_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that was written to its end: trainer_state.json is its last file.

    What a kill cut short is removed, so that it can never be taken for a checkpoint.
    """
    whole = []
    for path in directory.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            shutil.rmtree(path, ignore_errors=True)  # another process may be at it
        else:
            whole.append(path)
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def build_trainer(
    job: Job,
    data: TrainingSet,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lora_targets: str | list[str],
) -> OrderedTrainer:
    """The trainer of one run, its global batches decided."""
    require_extras(job.flags)
    recipe, flags = job.recipe, job.flags
    steps = plan_steps(job, data.train, flags.processes)
    if recipe.early_stopping is not None and not data.held_out:
        raise StageError(
            f"train.early_stopping: no example of {len(data.train):,} is held out by train.held_out_share "
            f"{recipe.held_out_share:g}, so no loss can say when to stop. Raise it, or leave both out"
        )
    lengths = [len(example.ids) for example in data.held_out]
    num_parts = min(len(lengths), 1 + sum(lengths) // flags.tokens_per_device)
    held_out = rows(data.held_out, balanced([*range(len(lengths))], lengths, num_parts)) if lengths else None
    trainer = OrderedTrainer(
        model=model,
        args=config_of(job, len(steps), len(steps[0]), bool(lengths)),
        train_dataset=rows(data.train, [part for step in steps for part in step]),
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=None if recipe.method == "full" else lora_config(recipe, lora_targets),
    )
    trainer.recipe = recipe
    trainer.step_tokens = [sum(len(data.train[i].ids) for part in step for i in part) for step in steps]
    trainer.remove_callback(PrinterCallback)
    if flags.tracker == "tensorboard" and flags.rank == 0:
        from torch.utils.tensorboard import SummaryWriter

        # the library's own place is among the checkpoints, which go at the end
        writer = SummaryWriter(log_dir=str(job.directory / "tensorboard"))
        trainer.add_callback(TensorBoardCallback(writer))
    if recipe.early_stopping is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.early_stopping))
    return trainer


def config_of(job: Job, num_steps: int, num_parts: int, measured: bool) -> SFTConfig:
    """TRL's configuration for steps of `num_parts` micro-batches; `measured`: examples are held out.

    With early stopping the checkpoints are the evaluations, to keep the best one.
    """
    recipe, flags, on_cpu = job.recipe, job.flags, job.device == "cpu"
    stops_early = recipe.early_stopping is not None
    between = max(1, num_steps // recipe.evaluations)
    return SFTConfig(
        output_dir=str(job.steps),
        seed=job.seed,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        max_steps=num_steps,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=num_parts // flags.processes,
        train_sampling_strategy="sequential",
        padding_free=True,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        use_cpu=on_cpu,
        bf16=not on_cpu,
        ddp_find_unused_parameters=False if flags.processes > 1 else None,
        ddp_backend="gloo" if on_cpu and flags.processes > 1 else None,
        dataloader_pin_memory=not on_cpu,
        gradient_checkpointing=flags.gradient_checkpointing,
        use_liger_kernel=flags.liger,
        logging_steps=flags.log_every,
        logging_first_step=True,
        save_strategy="steps",
        save_steps=between if stops_early else flags.save_every or max(1, num_steps // 10),
        save_total_limit=2,
        load_best_model_at_end=stops_early,
        # else a resumed run forgets how many evaluations brought no better loss
        restore_callback_states_from_checkpoint=stops_early,
        metric_for_best_model="eval_loss" if stops_early else None,
        eval_strategy="steps" if measured else "no",
        eval_steps=between if measured else None,
        report_to=flags.tracker if flags.tracker in ("trackio", "wandb") else "none",
        project="retort",
        run_name=job.name,
        disable_tqdm=True,
    )


def require_extras(flags: TrainFlags) -> None:
    """RecipeError where a flag asks for a library that is not installed."""
    wanted = {"--liger": "liger_kernel"} if flags.liger else {}
    if flags.tracker != "none":
        wanted[f"--tracker {flags.tracker}"] = flags.tracker
    for flag, module in wanted.items():
        if find_spec(module) is None:
            name = module.replace("_", "-")
            raise RecipeError(
                f"{flag}: {name} is not installed here; run: pip install {name}, or leave it out"
            )


def plan_steps(job: Job, train: list[Encoded], processes: int) -> list[list[list[int]]]:
    """All optimizer steps of the run, each cut into equally many micro-batches for every process."""
    recipe = job.recipe
    if processes > recipe.batch_size:
        raise RecipeError(
            f"train.batch_size: {recipe.batch_size} examples cannot be shared by {processes} processes, each "
            "needs at least one; start fewer, or raise batch_size (another run: it changes the result)"
        )
    batches = global_batches(len(train), recipe.batch_size, recipe.epochs, job.seed)
    return cut(batches, [len(example.ids) for example in train], processes, job.flags.tokens_per_device)


def rows(examples: list[Encoded], parts: list[list[int]]) -> Dataset:
    """A data set with one row a micro-batch, laid out only when it is read."""

    def lay_out(batch: dict[str, list[list[int]]]) -> dict[str, list[Any]]:
        chosen = [[examples[index] for index in part] for part in batch["part"]]
        return {
            "input_ids": [[token for example in part for token in example.ids] for part in chosen],
            "labels": [[label for example in part for label in example.labels] for part in chosen],
            "seq_lengths": [[len(example.ids) for example in part] for part in chosen],
        }

    return Dataset.from_dict({"part": parts}).with_transform(lay_out)


def learning_rate_share(step: int, num_steps: int, recipe: Train) -> float:
    """Warm-up to 1, then the recipe's schedule down to `min_learning_rate_ratio` at the last step.

    Pure, so that a resumed run gets the same one.
    """
    warmup = math.ceil(recipe.warmup_ratio * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    floor = recipe.min_learning_rate_ratio
    return floor + (1 - floor) * SHAPES[recipe.schedule](done)
