"""Which models eval compares, as engines see them, and the faults that can be seen before one starts."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from pipeline.cards import SampledModel, sampled_student, sampled_teacher
from pipeline.errors import RecipeError, StageError
from pipeline.recipe import ExtraModel, Recipe
from pipeline.stage import check_outputs, hash_file, read_manifest

CHECKPOINT = "checkpoint"
TEMPLATE_FILE = "chat_template.jinja"


def compared_models(recipe: Recipe, train: Path) -> dict[str, SampledModel]:
    """Each model of eval.compare and eval.extra by its name; the student is the checkpoint of train."""
    models: dict[str, SampledModel] = {}
    for name in recipe.eval.compare:
        if name == "teacher":
            models[name] = sampled_teacher(recipe.generate.teacher)
        elif name == "base":
            models[name] = sampled_student(recipe.train.student)
        else:
            models[name] = sampled_student(recipe.train.student, checkpoint=train / CHECKPOINT)
    for extra in recipe.eval.extra:
        models[extra.name] = extra_model(extra)
    return models


def extra_model(extra: ExtraModel) -> SampledModel:
    """A model that is only compared: a checkpoint read with a student's card, or a card's own model."""
    if extra.teacher is not None:
        return dataclasses.replace(sampled_teacher(extra.teacher), name=extra.name)
    checkpoint = Path(extra.checkpoint) if extra.checkpoint else None
    if checkpoint is not None and not checkpoint.is_dir():
        raise RecipeError(f"eval.extra: {extra.name}: there is no checkpoint directory {checkpoint}")
    return dataclasses.replace(sampled_student(str(extra.student), checkpoint=checkpoint), name=extra.name)


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
    """True where one of the files from which an engine takes the token names it."""
    names = [("generation_config.json", "eos_token_id"), ("config.json", "eos_token_id")]
    for file, key in [*names, ("tokenizer_config.json", "eos_token")]:
        path = directory / file
        if path.is_file() and read_settings(path).get(key) is not None:
            return True
    return False


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint. RecipeError where it is none: no engine could start from it."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RecipeError(
            f"{path}: is no JSON object ({error}); write the checkpoint again, or name another"
        ) from None


def check_template(train: Path, student: SampledModel) -> None:
    """StageError where the student would be asked with another template than it was trained with, or is
    not the checkpoint that train wrote."""
    manifest = read_manifest(train) or {"outputs": {}, "config": {}}
    recorded = manifest["outputs"].get(f"{CHECKPOINT}/{TEMPLATE_FILE}")
    path = train / CHECKPOINT / TEMPLATE_FILE
    if recorded is not None and (not path.is_file() or hash_file(path) != recorded["sha256"]):
        raise StageError(
            f"{path}: is not the chat template that the student was trained with (its sha256 is not the one "
            "in train's manifest): the score would be of another prompt than the training's. Put the "
            "template back, or train again with FORCE=1"
        )
    check_outputs(train, [name for name in manifest["outputs"] if name.startswith(f"{CHECKPOINT}/")])
    trained = manifest["config"].get("student") or {}
    carded = {**student.identity, "eos": student.eos}
    for key in ("thinking", "template_options", "eos"):
        if key in trained and trained[key] != carded[key]:
            raise StageError(
                f"the student's card says {key} {carded[key]}, and the student was trained with "
                f"{trained[key]}: the score would be of another prompt than the training's. Put the card "
                "back, or train again with FORCE=1"
            )
