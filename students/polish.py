"""The polish stage: on-policy distillation of the trained student, where the recipe has the section.

Reads runs/<name>/problems/problems.jsonl and runs/<name>/train/checkpoint; writes runs/<name>/polish/rounds/
(what the student was asked and answered), checkpoint/, adapter/ and metrics.jsonl. The loss is the divergence
of student and teacher at every token of the student's own samples (Agarwal et al., arXiv 2306.13649; Thinking
Machines, On-Policy Distillation, 2025), by TRL's DistillationTrainer. An interrupted run completes its round.

    python -m pipeline polish --recipe recipes/demo-polish.yaml
"""

import logging
import shutil
import warnings
from typing import Any

from pipeline.context import CHECKPOINT, Context
from pipeline.errors import RecipeError
from pipeline.flags import EngineFlags, TrainFlags
from pipeline.problems.sources import verifiers_in_use
from pipeline.recipe.cards import SampledModel
from pipeline.run.contract import Manifest, Plan, begin, check_outputs
from pipeline.run.revisions import pinned
from students.train import PROBLEMS, STEPS

STAGE_VERSION = 2
SFT = "train"  # the stage whose checkpoint is polished


def run(context: Context, flags: TrainFlags | None = None, engine: EngineFlags | None = None) -> None:
    """Polish the recipe's student; `engine` says where the teacher is whose scores are asked for."""
    flags, engine = flags or TrainFlags(), engine or EngineFlags()
    check_flags(context, flags, engine)
    problems = context.require("problems", "polish")
    trained = context.require(SFT, "polish")
    teacher = context.as_trained(pinned(context.run, context.teacher), "polish")
    plan = plan_of(context, teacher, problems, trained)
    stage_run = begin(context.directory("polish"), plan, context.start)
    if stage_run is not None:
        with stage_run:
            check_outputs(context.directory("problems"), [PROBLEMS])
            check_outputs(context.directory(SFT))
            # torch, transformers, trl and peft, only when there is work; with trl comes vLLM, which TRL finds
            # newer than it knows, in four warnings
            logging.getLogger("vllm").setLevel(logging.ERROR)
            with warnings.catch_warnings(action="ignore", category=UserWarning):
                from students.polisher import fit
            fit(context, teacher, flags, engine, stage_run)
    # only after the manifest, so that a run killed before it goes on from its last round, not from the first
    shutil.rmtree(context.directory("polish") / STEPS, ignore_errors=True)


def check_flags(context: Context, flags: TrainFlags, engine: EngineFlags) -> None:
    """RecipeError where the stage cannot run as it is asked to."""
    assert context.recipe.polish is not None, "only recipes with the section have the stage"
    divergence = context.recipe.polish.divergence
    if flags.processes > 1:
        raise RecipeError(
            f"polish: {flags.processes} processes were launched, and rounds are sampled and trained by one. "
            "Run: python -m pipeline polish, without a launcher"
        )
    if (flags.context_parallel or 1) > 1:
        raise RecipeError(
            f"--context-parallel {flags.context_parallel}: polish is one process, which has no other to "
            "share rows with; leave it out"
        )
    if flags.liger:
        raise RecipeError(
            "--liger: its kernels compute no loss of polish, which compares the student with its teacher; "
            "leave it out"
        )
    if engine.engine != "vllm" and divergence != "sampled":
        raise RecipeError(
            f"polish.divergence: {divergence} compares whole distributions, which needs the teacher's "
            "weights here; an engine gives the probabilities of the sampled tokens. Set polish.divergence: "
            "sampled, or leave --engine and --url out"
        )


def plan_of(context: Context, teacher: SampledModel, problems: Manifest, trained: Manifest) -> Plan:
    """All that decides the checkpoint: the section, both models, the prompt, the problems and their
    verifiers."""
    recipe, card = context.recipe, context.student_card
    assert recipe.polish is not None, "only recipes with the section have the stage"
    student: dict[str, Any] = {
        "thinking": {"open": card.thinking.open, "close": card.thinking.close},
        "eos": card.eos,
    }
    if recipe.polish.method != "full":
        student["lora_targets"] = card.lora_targets
    config = {
        "polish": recipe.polish.model_dump(mode="json", exclude_defaults=True),
        "teacher": teacher.identity,
        "student": student,
        "held_out_share": recipe.train.held_out_share,
        "prompt": context.prompt.identity,
        "verifiers": verifiers_in_use(recipe.problems),
        # generation_config.json of the checkpoint states it
        "sampling": recipe.generate.sampling.model_dump(mode="json", exclude_defaults=True),
    }
    checkpoint = [name for name in trained.outputs if name.startswith(f"{CHECKPOINT}/")]
    inputs = {"problems": problems.digest([PROBLEMS]), SFT: trained.digest(checkpoint)}
    return Plan("polish", STAGE_VERSION, config, inputs, recipe.seed)
