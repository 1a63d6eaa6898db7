"""Cards: YAML that describes a teacher, a student or a task, read as data and never imported.

A card's `revision` may be null: it is resolved at the first run, written into the run and enforced from
then on. What changes a result (model, revision, dtype, quantisation, template, thinking tags) is the
card's identity and goes into fingerprints; tensor, expert and data parallelism are not.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.errors import RecipeError
from pipeline.names import HubId, LocalOrHubId
from pipeline.recipe import Columns
from pipeline.render import Tags
from pipeline.strict_yaml import Strict, nearest, read_mapping, validate

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "teacher": ROOT / "teachers/cards",
    "student": ROOT / "students/cards",
    "task": ROOT / "eval/tasks",
}


class Thinking(Strict):
    """`opened_by_prompt`: the generation prompt ends with the opening tag, so responses lack it."""

    open: str = "<think>"
    close: str = "</think>"
    opened_by_prompt: bool = True


class EngineNeeds(Strict):
    """What the engine needs to hold the model. Only dtype and quantisation bear identity.

    `reasoning_parser` is vLLM's, for `serve-teacher` alone: in this process the tags are enough.
    """

    dtype: Literal["bfloat16", "float16", "float32", "auto"] = "bfloat16"
    quantisation: str | None = None
    max_model_len: int = Field(ge=1)
    tensor_parallel: int = Field(default=1, ge=1)
    expert_parallel: bool = False
    data_parallel: int = Field(default=1, ge=1)
    reasoning_parser: str | None = None


class ModelSize(Strict):
    """What `plan` needs where the model's own configuration is not at hand.

    `kv_values_per_layer`: values that the cache holds for one token in one layer (keys and values together).
    """

    parameters: float = Field(gt=0)
    active_parameters: float = Field(gt=0)
    bytes_per_parameter: float = Field(default=2, gt=0)
    layers: int = Field(ge=1)
    kv_values_per_layer: int = Field(ge=1)


class TeacherCard(Strict):
    """`model` is a hub id or a directory relative to the project; `facts` maps each field to its source."""

    model: str
    revision: str | None = None
    thinking: Thinking = Thinking()
    template_options: dict[str, Any] = {}
    engine: EngineNeeds
    size: ModelSize | None = None
    licence: str
    training_on_outputs: Literal["allowed", "restricted"]
    facts: dict[str, str] = {}


class StudentCard(Strict):
    """`template` null means the tokenizer's own; otherwise the name of a file in students/templates/."""

    model: LocalOrHubId
    revision: str | None = None
    thinking: Thinking = Thinking()
    template: str | None = None
    template_options: dict[str, Any] = {}
    eos: str | None = None
    max_positions: int = Field(ge=1)
    config_overrides: dict[str, Any] = {}
    lora_targets: str | list[str] = "all-linear"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    size: ModelSize | None = None
    licence: str
    facts: dict[str, str] = {}


class TaskCard(Strict):
    """A benchmark: where its questions are, which columns hold what, how an answer is verified.

    `version` goes up when a score can change; `k` is the number of samples that its scores are usual with;
    `size` is the number of questions, for `plan` alone.
    """

    version: Annotated[int, Field(ge=1)] = 1
    hub: HubId | None = None
    revision: str | None = None
    subset: str | None = None
    split: str = "test"
    columns: Columns = Columns()
    answer: Literal["plain", "hashes", "boxed"] = "plain"
    verifier: str = "math"
    prompt: str | None = None
    k: Annotated[int, Field(ge=1)] = 1
    size: Annotated[int, Field(ge=1)] | None = None
    licence: str
    facts: dict[str, str] = {}

    @property
    def identity(self) -> dict[str, Any]:
        """All that bears on a score: not what `plan` reads, nor where a fact was read."""
        return self.model_dump(exclude={"size", "facts"})


@dataclass(frozen=True, slots=True)
class SampledModel:
    """All that an engine needs to know of a model; teacher, base and student are alike to it.

    `model` is a local directory or a hub id. `identity` is what fingerprints and request keys are made of.
    `eos` ends a response, whatever other token the model's own files name.
    """

    name: str
    model: str
    revision: str | None
    dtype: str
    quantisation: str | None
    max_model_len: int
    tags: Tags
    template: str | None = None
    template_options: dict[str, Any] = field(default_factory=dict)
    config_overrides: dict[str, Any] = field(default_factory=dict)
    eos: str | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    tensor_parallel: int = 1
    data_parallel: int = 1
    expert_parallel: bool = False


def teacher_card(name: str) -> TeacherCard:
    """The card teachers/cards/<name>.yaml; RecipeError names the nearest card where there is none."""
    return validate(
        TeacherCard, read_mapping(_card_path("teacher", name), "card"), f"teachers/cards/{name}.yaml"
    )


def student_card(name: str) -> StudentCard:
    """The card students/cards/<name>.yaml; RecipeError names the nearest card where there is none."""
    return validate(
        StudentCard, read_mapping(_card_path("student", name), "card"), f"students/cards/{name}.yaml"
    )


def task_card(name: str) -> TaskCard:
    """The card eval/tasks/<name>.yaml; RecipeError names the nearest card where there is none."""
    return validate(TaskCard, read_mapping(_card_path("task", name), "card"), f"eval/tasks/{name}.yaml")


def card_names(kind: str) -> list[str]:
    return sorted(path.stem for path in FOLDERS[kind].glob("*.yaml"))


def model_location(model: str) -> str:
    """A directory of the project as an absolute path, anything else (a hub id) as it is."""
    local = ROOT / model
    return str(local) if os.path.isdir(local) else model  # Path.is_dir raises on a name that is too long


def model_identity(model: str, revision: str | None) -> dict[str, Any]:
    """Hub id and revision, or for a local directory the sha256 over its model and tokenizer files."""
    directory = Path(model_location(model))
    if not directory.is_dir():
        return {"model": model, "revision": revision}
    return {
        "model": directory.name if directory.is_absolute() else model,
        "content": hash_checkpoint(directory),
    }


def hash_checkpoint(directory: Path) -> str:
    """sha256 over names and contents of what makes a checkpoint: weights, configuration, tokenizer."""
    kinds = (".safetensors", ".json", ".jinja", ".model", ".txt")
    files = sorted(path for path in directory.iterdir() if path.is_file() and path.suffix in kinds)
    if not any(path.suffix == ".safetensors" for path in files):
        held = ", ".join(sorted(path.name for path in directory.iterdir())[:8]) or "nothing"
        raise RecipeError(
            f"{directory}: no *.safetensors weights in this checkpoint directory (it holds {held}); "
            "name a directory that train or save_pretrained wrote"
        )
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def sampled_teacher(name: str) -> SampledModel:
    """The teacher of a card, as engines see it."""
    card = teacher_card(name)
    tags = Tags(**card.thinking.model_dump())
    identity = {
        **model_identity(card.model, card.revision),
        "dtype": card.engine.dtype,
        "quantisation": card.engine.quantisation,
        "thinking": card.thinking.model_dump(),
        "template_options": card.template_options,
    }
    return SampledModel(
        name=name,
        model=model_location(card.model),
        revision=card.revision,
        dtype=card.engine.dtype,
        quantisation=card.engine.quantisation,
        max_model_len=card.engine.max_model_len,
        tags=tags,
        template_options=card.template_options,
        identity=identity,
        tensor_parallel=card.engine.tensor_parallel,
        data_parallel=card.engine.data_parallel,
        expert_parallel=card.engine.expert_parallel,
    )


def sampled_student(name: str, checkpoint: Path | None = None) -> SampledModel:
    """The student of a card: its base, or with `checkpoint` the trained student in that directory."""
    card = student_card(name)
    model = str(checkpoint) if checkpoint else card.model
    template = str(ROOT / "students/templates" / card.template) if card.template and not checkpoint else None
    identity = {
        **model_identity(model, None if checkpoint else card.revision),
        "dtype": card.dtype,
        "thinking": card.thinking.model_dump(),
        "template": hashlib.sha256(Path(template).read_bytes()).hexdigest() if template else None,
        "template_options": card.template_options,
        "config_overrides": card.config_overrides,
    }
    if card.eos is not None and card.eos != own_eos(model):
        identity["eos"] = card.eos
    return SampledModel(
        name="student" if checkpoint else "base",
        model=model_location(model),
        revision=None if checkpoint else card.revision,
        dtype=card.dtype,
        quantisation=None,
        max_model_len=card.max_positions,
        tags=Tags(**card.thinking.model_dump()),
        template=template,
        template_options=card.template_options,
        config_overrides={} if checkpoint else card.config_overrides,  # a checkpoint has them in its config
        eos=card.eos,
        identity=identity,
    )


def own_eos(model: str) -> str | None:
    """The end-of-text token that a local model's tokenizer names; None for a model of the hub.

    A card's `eos` that says the same changes no response, so it is in no fingerprint.
    """
    try:
        text = (Path(model_location(model)) / "tokenizer_config.json").read_text(encoding="utf-8")
        token = json.loads(text).get("eos_token")
    except (OSError, ValueError, AttributeError):
        return None
    return token.get("content") if isinstance(token, dict) else token


def _card_path(kind: str, name: str) -> Path:
    known = card_names(kind)
    if name not in known:  # also refuses a name with `/` or `..`, which would be read as a path
        folder = FOLDERS[kind].relative_to(ROOT)
        raise RecipeError(f"{folder}/{name}.yaml: there is no such {kind} card; {nearest(name, known)}")
    return FOLDERS[kind] / f"{name}.yaml"
