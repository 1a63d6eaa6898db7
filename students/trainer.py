"""TRL's SFTTrainer on our own ids, labels and order.

TRL prepares nothing: rows are micro-batches that students.batching laid out, its padding-free collator lays
the examples end to end with position ids that start again, and attention keeps them apart. The loss of a step
is the sum over its trained tokens divided by their number, over all processes, so how a global batch is cut
changes nothing but rounding.
"""

import functools
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from transformers.integrations import TensorBoardCallback
from trl import SFTConfig, SFTTrainer

from pipeline.errors import RecipeError, StageError
from pipeline.recipe import Train
from students.batching import Steps, balanced, cut, global_batches
from students.examples import TrainingSet
from students.flags import TrainFlags
from students.format import Encoded
from students.model import lora_config
from students.schedule import learning_rate_share


@dataclass(frozen=True, slots=True)
class Job:
    """One training run: what the recipe says, how it runs, and where its own checkpoints go."""

    recipe: Train
    seed: int
    flags: TrainFlags
    device: str
    directory: Path


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


def build_trainer(
    job: Job,
    data: TrainingSet,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lora_targets: str | list[str],
) -> OrderedTrainer:
    """The trainer of one run, its global batches decided."""
    require_extras(job.flags)
    config = base_config(job)
    steps = plan_steps(job, data.train, config.world_size)
    config.max_steps = len(steps.parts)
    config.gradient_accumulation_steps = steps.num_parts // config.world_size
    config.save_steps = save_interval(job, config.max_steps)
    held_out = None
    if job.recipe.early_stopping is not None and not data.held_out:
        raise StageError(
            f"train.early_stopping: no example of {len(data.train):,} is held out by train.held_out_share "
            f"{job.recipe.held_out_share:g}, so no loss can say when to stop. Raise it, or leave both out"
        )
    if data.held_out:
        held_out = rows(data.held_out, held_out_parts(data.held_out, job.flags.tokens_per_device))
        config.eval_strategy = "steps"
        config.eval_steps = max(1, config.max_steps // job.recipe.evaluations)
    trainer = OrderedTrainer(
        model=model,
        args=config,
        train_dataset=rows(data.train, steps.flat()),
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=None if job.recipe.method == "full" else lora_config(job.recipe, lora_targets),
    )
    trainer.recipe = job.recipe
    lengths = [len(example.ids) for example in data.train]
    trainer.step_tokens = [sum(lengths[i] for part in parts for i in part) for parts in steps.parts]
    trainer.remove_callback(PrinterCallback)
    if job.flags.tracker == "tensorboard" and job.flags.rank == 0:
        trainer.add_callback(tensorboard(job))
    if held_out is not None and job.recipe.early_stopping is not None:
        trainer.add_callback(EarlyStoppingCallback(job.recipe.early_stopping))
    return trainer


def base_config(job: Job) -> SFTConfig:
    """The part of TRL's configuration that does not depend on the data."""
    recipe, flags, on_cpu = job.recipe, job.flags, job.device == "cpu"
    stops_early = recipe.early_stopping is not None
    return SFTConfig(
        output_dir=str(job.directory),
        seed=job.seed,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
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
        save_total_limit=2,
        load_best_model_at_end=stops_early,
        # else a resumed run forgets how many evaluations brought no better loss
        restore_callback_states_from_checkpoint=stops_early,
        metric_for_best_model="eval_loss" if stops_early else None,
        eval_strategy="steps" if stops_early else "no",
        eval_steps=1 if stops_early else None,
        report_to=flags.tracker if flags.tracker in ("trackio", "wandb") else "none",
        project="retort",
        run_name=job.directory.parent.parent.name,
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


def tensorboard(job: Job) -> TensorBoardCallback:
    """Into train/tensorboard/: the library's own place is among the checkpoints, which go at the end."""
    from torch.utils.tensorboard import SummaryWriter

    return TensorBoardCallback(SummaryWriter(log_dir=str(job.directory.parent / "tensorboard")))


def plan_steps(job: Job, train: list[Encoded], processes: int) -> Steps:
    """All optimizer steps of the run, each cut into equally many micro-batches for every process."""
    recipe = job.recipe
    if processes > recipe.batch_size:
        raise RecipeError(
            f"train.batch_size: {recipe.batch_size} examples cannot be shared by {processes} processes, each "
            "needs at least one; start fewer, or raise batch_size (another run: it changes the result)"
        )
    batches = global_batches(len(train), recipe.batch_size, recipe.epochs, job.seed)
    return cut(batches, [len(example.ids) for example in train], processes, job.flags.tokens_per_device)


def held_out_parts(held_out: list[Encoded], max_tokens: int) -> list[list[int]]:
    lengths = [len(example.ids) for example in held_out]
    return balanced(list(range(len(held_out))), lengths, min(len(lengths), 1 + sum(lengths) // max_tokens))


def save_interval(job: Job, num_steps: int) -> int:
    """Steps between checkpoints; with early stopping those are the evaluations, to keep the best one."""
    if job.recipe.early_stopping is not None:
        return max(1, num_steps // job.recipe.evaluations)
    return job.flags.save_every or max(1, num_steps // 10)


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
