"""The train stage: preflight, TRL's SFTTrainer with or without PEFT, a checkpoint that all tools load.

Reads runs/<name>/filter/examples.parquet; writes runs/<name>/train/checkpoint/, adapter/ and metrics.jsonl.
An interrupted run goes on from its last checkpoint under steps/, which is removed when the stage finishes.

    python -m pipeline train --recipe recipes/demo.yaml
"""

from typing import Any

from pipeline.cards import SampledModel, StudentCard, sampled_student, student_card
from pipeline.revisions import pinned
from pipeline.stage import Context, Plan, begin, check_outputs, inputs_of, read_manifest, require
from students.flags import TrainFlags

STAGE_VERSION = 2
EXAMPLES = "examples.parquet"


def run(context: Context, flags: TrainFlags | None = None) -> None:
    """Train the recipe's student. Under a launcher, rank 0 alone holds the directory."""
    flags = flags or TrainFlags()
    recipe = context.recipe
    filter_directory, directory = context.directory("filter"), context.directory("train")
    card = student_card(recipe.train.student)
    model = pinned(context.run, sampled_student(recipe.train.student))
    examples = require(filter_directory, "train", context.start.recipe)
    plan = plan_of(context, card, model, examples)
    if flags.rank > 0:
        done = None if context.start.force else read_manifest(directory)
        if done is None or done["fingerprint"] != plan.fingerprint:
            _fit(context, card, model, flags)
        return
    stage_run = begin(directory, plan, context.start)
    if stage_run is None:
        return
    with stage_run:
        check_outputs(filter_directory, [EXAMPLES])
        result = _fit(context, card, model, flags)
        stage_run.finish(result.counts, result.outputs, result.usage, result.notes)


def plan_of(context: Context, card: StudentCard, model: SampledModel, examples: dict[str, Any]) -> Plan:
    """All that decides the checkpoint. The sampling is in it because generation_config.json states it."""
    recipe = context.recipe
    config = {
        "train": recipe.train.model_dump(mode="json"),
        "student": {**model.identity, "eos": card.eos, "lora_targets": card.lora_targets},
        "sampling": recipe.generate.sampling.model_dump(mode="json"),
    }
    return Plan("train", STAGE_VERSION, config, inputs_of({"filter": examples}), recipe.seed)


def _fit(context: Context, card: StudentCard, model: SampledModel, flags: TrainFlags) -> Any:
    from students.fit import fit  # torch, transformers, trl and peft, only when there is work

    return fit(context, card, model, flags)
