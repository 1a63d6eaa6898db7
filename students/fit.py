"""The work of the train stage: examples in, exported checkpoint out. Imports torch, TRL and PEFT."""

import json
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from pipeline.cards import SampledModel, StudentCard
from pipeline.stage import Context, Counts
from students.examples import TrainingSet, build, read_examples
from students.export import export
from students.flags import TrainFlags
from students.format import load_format
from students.model import load_student, pick_device
from students.preflight import Subject, choose, preflight
from students.progress import Progress, Stopper
from students.trainer import Job, OrderedTrainer, build_trainer

log = logging.getLogger(__name__)
STEPS = "steps"
METRICS = "metrics.jsonl"
EXAMPLES = "examples.parquet"


@dataclass(frozen=True, slots=True)
class Result:
    """What the stage's manifest is told."""

    counts: Counts
    outputs: dict[str, int | None]
    usage: dict[str, Any]
    notes: dict[str, Any]


def fit(context: Context, card: StudentCard, model: SampledModel, flags: TrainFlags) -> Result | None:
    """Train and export; None on every process but the first. KeyboardInterrupt leaves a run to go on with."""
    quiet_libraries()
    recipe, directory = context.recipe.train, context.directory("train")
    device = pick_device(flags.device)
    style = load_format(card, model)
    examples = read_examples(context.directory("filter") / EXAMPLES)
    data = build(examples, style, recipe, context.recipe.seed)
    student = load_student(card, model, recipe, device)
    shown = choose(examples, style, recipe)
    checks = preflight(Subject(context.recipe, card, model, style, student, shown, data.largest_id))
    log.info("preflight: %d checks passed on %s", len(checks), recipe.student)
    job = Job(recipe, context.recipe.seed, flags, device, directory / STEPS)
    trainer = build_trainer(job, data, student, style.tokenizer, card.lora_targets)
    seconds = train(trainer, job, directory / METRICS)
    trained = job.directory / "trained"
    trainer.save_model(str(trained))
    if not trainer.is_world_process_zero():
        return None
    files = export(trained, directory, card, model, style, context.recipe.generate.sampling)
    shutil.rmtree(job.directory)
    return result(trainer, data, directory, files, seconds)


def train(trainer: OrderedTrainer, job: Job, metrics: Path) -> float:
    """Run to the last step, from the last whole checkpoint if there is one; the seconds it took."""
    last = last_checkpoint(job.directory)
    if last is not None:
        log.info("train: going on from %s", last.name)
        trainer.count_from(step_of(last))
    started = time.monotonic()
    trainer.add_callback(Progress(metrics))
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


def result(
    trainer: OrderedTrainer, data: TrainingSet, directory: Path, files: list[str], seconds: float
) -> Result:
    """Counts, outputs and usage of a finished run."""
    attention = getattr(getattr(trainer.model, "config", None), "_attn_implementation", None)
    metrics = (directory / METRICS).read_text(encoding="utf-8").splitlines()
    tokens = sum(len(example.ids) for example in data.train)
    kept = len(data.train) + len(data.held_out)
    return Result(
        counts=Counts(data.num_in, kept, data.dropped),
        outputs={METRICS: len(metrics), **dict.fromkeys(files)},
        usage={
            "train_seconds": round(seconds, 1),
            "steps": trainer.state.global_step,
            "tokens_per_epoch": tokens,
        },
        notes={
            "held_out": len(data.held_out),
            "device": str(trainer.args.device),
            "processes": trainer.args.world_size,
            "attention": attention,
        },
    )


def quiet_libraries() -> None:
    """One bar and one log: ours."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    # TRL advises larger batches of examples; ours hold many in each row
    logging.getLogger("trl").setLevel(logging.ERROR)
