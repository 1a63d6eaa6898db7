"""Which models eval compares, as engines see them, and the faults that can be seen before one starts."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from pipeline.context import CHECKPOINT, Context
from pipeline.errors import RecipeError, StageError
from pipeline.flags import EngineFlags
from pipeline.recipe.cards import SampledModel, asked_without_thinking
from pipeline.run.contract import Manifest, check_outputs, hash_file
from pipeline.run.revisions import pinned

log = logging.getLogger(__name__)

TEMPLATE_FILE = "chat_template.jinja"
TRAINED_FROM_BASE = "train"  # the stage whose plan holds what the card said of the student


@dataclass(frozen=True, slots=True)
class Compared:
    """A model by the name that results call it. `model` is as its card says, and what keys are made of;
    `loaded` is what the engine is started with."""

    name: str
    model: SampledModel
    loaded: SampledModel
    engine: EngineFlags


def compared_models(context: Context) -> dict[str, SampledModel]:
    """Each model of eval.compare and eval.extra by its name; the student's checkpoint must be there."""
    for name, extra in context.extra.items():
        if extra.checkpoint is not None and not Path(extra.checkpoint).is_dir():
            raise RecipeError(f"eval.extra: {name}: there is no checkpoint directory {extra.checkpoint}")
    recipe = context.recipe.eval
    models = {name: context.model(name) for name in recipe.models}
    trained = context.trained_thinking if not context.student_stages.keys().isdisjoint(models) else None
    if recipe.thinking is not None and trained == ("never" if recipe.thinking else "always"):
        log.warning(
            "eval.thinking: %s, and the student was trained on examples %s thinking alone: it is asked in a "
            "mode that it never saw. Leave the key out to ask it as it was trained",
            str(recipe.thinking).lower(),
            "with" if trained == "always" else "without",
        )
    if recipe.thinking is False:
        return {name: asked_without_thinking(model) for name, model in models.items()}
    if recipe.thinking or trained != "never":
        return models
    if recipe.forced_budgets:
        raise RecipeError(
            "eval.forced_budgets: they close the thinking, and the student was trained on examples without "
            "any. Leave them out, or ask it for some all the same: eval.thinking: true"
        )
    # its base too: the same prompt for both, or the difference would be one of prompts
    alike = {"base", *context.student_stages}
    return {
        name: context.as_trained(model, "eval") if name in alike else model for name, model in models.items()
    }


def loaded(run: Path, model: SampledModel, flags: EngineFlags) -> SampledModel:
    """The model as its engine is started: at the run's revision, unless a server holds it.

    Its job keeps the card's identity: how a model is reached changes neither plan nor keys.
    """
    return model if flags.engine == "server" else pinned(run, model)


def check_model(name: str, model: SampledModel, max_tokens: int) -> None:
    """RecipeError where a local model cannot stop or cannot hold what it is asked to write."""
    if model.max_model_len <= max_tokens:
        raise RecipeError(
            f"eval: {name} holds {model.max_model_len:,} tokens and max_tokens is {max_tokens:,}: no room is "
            "left for a question. Set eval.sampling.max_tokens lower; every model gets the same budget"
        )
    directory = Path(model.model)
    # read although the card names the token: files that no engine could start from are told now
    if directory.is_dir() and not has_eos(directory) and model.eos is None:
        raise RecipeError(
            f"eval: {name} ({model.model}) names no end-of-sequence token in generation_config.json, "
            "config.json or tokenizer_config.json, and its card no `eos`: every response would run to the "
            "token limit. Name one in generation_config.json (eos_token_id), or in the student's card"
        )


def has_eos(directory: Path) -> bool:
    """True where one of the files from which an engine takes the token names it.

    RecipeError where one of them is not a JSON object: no engine could start from it.
    """
    for file in ("generation_config.json", "config.json", "tokenizer_config.json"):
        path = directory / file
        try:
            values = dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
        except (ValueError, TypeError) as error:
            raise RecipeError(
                f"{path}: is not a JSON object ({error}); write the checkpoint again, or name another"
            ) from None
        if values.get("eos_token" if file == "tokenizer_config.json" else "eos_token_id") is not None:
            return True
    return False


def check_student(context: Context, stage: str) -> None:
    """StageError where the student of `stage` would be asked with another template than it was trained with,
    or is not the checkpoint that the stage wrote."""
    manifest = context.require(stage, "eval")
    template = context.directory(stage) / CHECKPOINT / TEMPLATE_FILE
    written = manifest.outputs.get(f"{CHECKPOINT}/{TEMPLATE_FILE}")
    if written is not None and (not template.is_file() or hash_file(template) != written.sha256):
        raise StageError(
            f"{template}: is not the chat template that the student was trained with (its sha256 is not the "
            f"one in the manifest of {stage}): the score would be of another prompt than the training's. Put "
            f"the template back, or run {stage} again with FORCE=1"
        )
    names = [name for name in manifest.outputs if name.startswith(f"{CHECKPOINT}/")]
    check_outputs(context.directory(stage), names)
    check_card(context, context.require(TRAINED_FROM_BASE, "eval"))


def check_card(context: Context, trained: Manifest) -> None:
    """StageError where the student's card says otherwise now than it did when the student was trained."""
    if "student" not in trained.config:
        return
    base = context.base
    carded = {
        "thinking": {"open": base.tags.open, "close": base.tags.close},
        "template_options": base.template_options or None,
        "eos": base.eos,
    }
    for key, says in carded.items():
        said = trained.config["student"].get(key)
        if said != says:
            raise StageError(
                f"the student's card says {key} {says}, and the student was trained with {said}: the score "
                "would be of another prompt than the training's. Put the card back, or run "
                f"{trained.stage} again with FORCE=1"
            )
