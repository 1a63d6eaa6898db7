"""The train stage: preflight, TRL's SFTTrainer with or without PEFT, a checkpoint that all tools load.

Reads runs/<name>/filter/examples.parquet, and with stop_on: pass_rate problems/problems.jsonl; writes
runs/<name>/train/checkpoint/, adapter/ and metrics.jsonl, and with it evaluations/. An interrupted run goes
on from its last checkpoint under steps/, which is removed when the stage is finished.

    python -m pipeline train --recipe recipes/demo.yaml
"""

import shutil

from pipeline.context import Context
from pipeline.errors import RecipeError
from pipeline.flags import TrainFlags
from pipeline.problems.sources import verifiers_in_use
from pipeline.recipe.cards import SampledModel
from pipeline.recipe.schema import TopkLoss, Train
from pipeline.run.contract import Manifest, Plan, StageRun, begin, check_outputs
from pipeline.run.revisions import pinned

STAGE_VERSION = 3
EXAMPLES, TRACES = "examples.parquet", "kept.jsonl"
METRICS = "metrics.jsonl"
PROBLEMS = "problems.jsonl"
STEPS = "steps"


def run(context: Context, flags: TrainFlags | None = None) -> None:
    """Train the recipe's student. Under a launcher, rank 0 alone holds the directory."""
    flags = flags or TrainFlags()
    check_flags(context.recipe.train, flags)
    directory = context.directory("train")
    examples = context.require("filter", "train")
    model = pinned(context.run, context.base)
    plan = plan_of(context, model, examples)
    if flags.rank > 0:
        done = None if context.start.force else context.manifest("train")
        if done is None or done.fingerprint != plan.fingerprint:
            _fit(context, model, flags, None)
        return
    stage_run = begin(directory, plan, context.start)
    if stage_run is not None:
        with stage_run:
            check_outputs(context.directory("filter"), read_files(context.recipe.train))
            if context.recipe.train.stop_on == "pass_rate":
                check_outputs(context.directory("problems"), [PROBLEMS])
            _fit(context, model, flags, stage_run)
    # only after the manifest, so that a run killed before it goes on from its last step, not from the first
    shutil.rmtree(directory / STEPS, ignore_errors=True)


def check_flags(recipe: Train, flags: TrainFlags) -> None:
    """RecipeError where the stage cannot run as it is asked to."""
    size = flags.context_parallel or 1
    if flags.processes % size:
        number = "1 process was" if flags.processes == 1 else f"{flags.processes} processes were"
        raise RecipeError(
            f"--context-parallel {size}: {number} launched, and each row is shared by {size}. Launch a "
            f"multiple of {size} (students/launch/fsdp2.yaml), or leave the flag out"
        )
    if size > 1 and isinstance(recipe.loss, TopkLoss):
        raise RecipeError(
            f"--context-parallel {size}: train.loss: topk_kl reads whole rows; leave one of the two out"
        )
    if recipe.stop_on == "pass_rate" and flags.processes > 1:
        raise RecipeError(
            f"train.stop_on: pass_rate: {flags.processes} processes were launched, and a student is sampled "
            "by one. Run: python -m pipeline train, without a launcher, or set stop_on: token_accuracy"
        )


def plan_of(context: Context, model: SampledModel, examples: Manifest) -> Plan:
    """All that decides the checkpoint. The sampling is in it because generation_config.json states it.

    Of the recipe only what differs from the defaults, of the card only what training reads: a new key with a
    default leaves finished runs up to date.
    """
    recipe, card = context.recipe, context.student_card
    train = recipe.train.model_dump(mode="json", exclude={"student", "seed"}, exclude_defaults=True)
    student = {**model.identity, "thinking": {"open": model.tags.open, "close": model.tags.close}}
    if card.without_thinking:
        student["without_thinking"] = card.without_thinking
    if card.eos is not None:
        student["eos"] = card.eos
    if recipe.train.method != "full":
        student["lora_targets"] = card.lora_targets
    sampling = recipe.generate.sampling.model_dump(mode="json", exclude_defaults=True)
    config = {"train": train, "student": student, "sampling": sampling}
    if recipe.train.early_stopping is not None and recipe.train.stop_on != "pass_rate":
        config["held_out"] = {"mean": "tokens"}  # of micro-batches before, which kept another step
    inputs = {"filter": examples.digest(read_files(recipe.train))}
    if recipe.train.stop_on == "pass_rate":
        asked = {"max_tokens": recipe.eval_sampling.max_tokens, "prompt": context.prompt.identity}
        config["asked"] = asked | {"verifiers": verifiers_in_use(recipe.problems)}
        inputs["problems"] = context.require("problems", "train").digest([PROBLEMS])
    return Plan("train", STAGE_VERSION, config, inputs, recipe.train_seed)


def read_files(recipe: Train) -> list[str]:
    """What train reads of filter: the examples, and for what is stored of their tokens the traces."""
    return [EXAMPLES, TRACES] if isinstance(recipe.loss, TopkLoss) else [EXAMPLES]


def _fit(context: Context, model: SampledModel, flags: TrainFlags, stage: StageRun | None) -> None:
    from students.trainer import fit  # torch, transformers, trl and peft, only when there is work

    fit(context, model, flags, stage)
