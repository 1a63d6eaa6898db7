"""Cards: YAML that describes a teacher, a student or a task, read as data and never imported.

A card's `revision` may be null: it is resolved at the first run, written into the run and enforced from
then on. What changes a response (model, revision, dtype, quantisation, template) is the card's identity and
goes into fingerprints, where it is not the default. Not in it: how a response is read (thinking tags), where
a fact was found, and parallelism (tensor, expert, data).
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipeline.errors import RecipeError, inside
from pipeline.recipe.names import HubId, LocalOrHubId
from pipeline.recipe.schema import CardTask, Count, PromptName, Recipe, Rows
from pipeline.recipe.strict_yaml import Model, Strict, nearest, read_mapping, validate

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "teacher": ROOT / "teachers/cards",
    "student": ROOT / "students/cards",
    "task": ROOT / "eval/tasks",
}


class Tags(Strict):
    """How a model marks its thinking. `opened_by_prompt`: the opening tag ends the generation prompt, so
    responses hold only the closing one. For reading alone: tags are in no fingerprint of a response."""

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


class ModelCard(Strict):
    """`model` is a hub id or a directory relative to the project; `facts` maps each field to its source."""

    model: str
    revision: str | None = None
    thinking: Tags = Tags()
    template_options: dict[str, Any] = {}
    size: ModelSize | None = None
    licence: str
    facts: dict[str, str] = {}


class TeacherCard(ModelCard):
    engine: EngineNeeds
    training_on_outputs: Literal["allowed", "restricted"]


class StudentCard(ModelCard):
    """`template` null means the tokenizer's own; otherwise the name of a file in students/templates/."""

    model: LocalOrHubId
    template: str | None = None
    eos: str | None = None
    max_positions: int = Field(ge=1)
    config_overrides: dict[str, Any] = {}
    lora_targets: str | list[str] = "all-linear"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"


class TaskCard(Rows):
    """A benchmark: where its questions are, which columns hold what, how an answer is verified.

    `version` goes up when a score can change; `k` is the number of samples that its scores are usual with;
    `size` is the number of questions, for `plan` alone.
    """

    version: Count = 1
    hub: HubId | None = None
    revision: str | None = None
    subset: str | None = None
    split: str = "test"
    prompt: PromptName | None = None
    k: Count = 1
    size: Count | None = None
    licence: str
    facts: dict[str, str] = {}

    @property
    def identity(self) -> dict[str, Any]:
        """All that bears on a score: not what `plan` reads, nor where a fact was read, nor `k`, since eval's
        plan states how many samples it takes."""
        apart = {"version", "k", "size", "facts", "licence"}
        return {"version": self.version, **self.model_dump(exclude=apart, exclude_defaults=True)}


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


def card_names(kind: str) -> list[str]:
    return sorted(path.stem for path in FOLDERS[kind].glob("*.yaml"))


def _card(model: type[Model], kind: str, name: str) -> Model:
    """The card of that name; RecipeError names the nearest card where there is none."""
    path, known = FOLDERS[kind] / f"{name}.yaml", card_names(kind)
    where = f"{FOLDERS[kind].relative_to(ROOT)}/{name}.yaml"
    if name not in known:  # also refuses a name with `/` or `..`, which would be read as a path
        raise RecipeError(f"{where}: there is no such {kind} card; {nearest(name, known)}")
    return validate(model, read_mapping(path, "card"), where)


teacher_card = partial(_card, TeacherCard, "teacher")
student_card = partial(_card, StudentCard, "student")
task_card = partial(_card, TaskCard, "task")


@dataclass(frozen=True, slots=True)
class Cards:
    """Every card that a recipe names, by name."""

    teachers: dict[str, TeacherCard]
    students: dict[str, StudentCard]
    tasks: dict[str, TaskCard]


def load_cards(recipe: Recipe) -> Cards:
    """Load and check every card that the recipe names. RecipeError with the key that names it."""
    cards = Cards({}, {}, {})
    with inside("generate.teacher"):
        cards.teachers[recipe.generate.teacher] = teacher_card(recipe.generate.teacher)
    if recipe.judge is not None:
        with inside("judge.model"):
            cards.teachers[recipe.judge.model] = teacher_card(recipe.judge.model)
    with inside("train.student"):
        cards.students[recipe.train.student] = student_card(recipe.train.student)
    for position, task in enumerate(recipe.eval.tasks):
        if isinstance(task, CardTask):
            with inside(f"eval.tasks[{position}].task"):
                cards.tasks[task.task] = card = task_card(task.task)
                if card.verifier == "judge" and recipe.judge is None:
                    raise RecipeError(
                        "its verifier is judge, and the recipe has no section judge: that names the `model` "
                        "that verifies"
                    )
    for position, extra in enumerate(recipe.eval.extra):
        with inside(f"eval.extra[{position}]"):
            if extra.teacher is not None:
                cards.teachers[extra.teacher] = teacher_card(extra.teacher)
            if extra.student is not None:
                cards.students[extra.student] = student_card(extra.student)
    return cards


def model_location(model: str) -> str:
    """A directory of the project as an absolute path, anything else (a hub id) as it is."""
    local = ROOT / model
    return str(local) if os.path.isdir(local) else model  # Path.is_dir raises on a name that is too long


def model_identity(model: str, revision: str | None, **options: Any) -> dict[str, Any]:
    """Hub id and revision, or for a local directory the sha256 over its model and tokenizer files; and those
    of the options that say something."""
    identity: dict[str, Any] = {"model": model, "revision": revision}
    if os.path.isdir(location := model_location(model)):
        identity = {"model": Path(location).name, "content": hash_checkpoint(Path(location))}
    return identity | {key: value for key, value in options.items() if value}


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


def sampled_teacher(name: str, card: TeacherCard) -> SampledModel:
    """The teacher of a card, as engines see it."""
    return SampledModel(
        name=name,
        model=model_location(card.model),
        revision=card.revision,
        dtype=card.engine.dtype,
        quantisation=card.engine.quantisation,
        max_model_len=card.engine.max_model_len,
        tags=card.thinking,
        template_options=card.template_options,
        identity=model_identity(
            card.model,
            card.revision,
            dtype=card.engine.dtype,
            quantisation=card.engine.quantisation,
            template_options=card.template_options,
        ),
        tensor_parallel=card.engine.tensor_parallel,
        data_parallel=card.engine.data_parallel,
        expert_parallel=card.engine.expert_parallel,
    )


def sampled_student(name: str, card: StudentCard, checkpoint: Path | None = None) -> SampledModel:
    """The base of a card, or with `checkpoint` the trained student in that directory."""
    model, revision = (str(checkpoint.absolute()), None) if checkpoint else (card.model, card.revision)
    template = str(ROOT / "students/templates" / card.template) if card.template and not checkpoint else None
    return SampledModel(
        name=name,
        model=model_location(model),
        revision=revision,
        dtype=card.dtype,
        quantisation=None,
        max_model_len=card.max_positions,
        tags=card.thinking,
        template=template,
        template_options=card.template_options,
        config_overrides={} if checkpoint else card.config_overrides,  # a checkpoint has them in its config
        eos=card.eos,
        identity=model_identity(
            model,
            revision,
            dtype=card.dtype,
            template=hashlib.sha256(Path(template).read_bytes()).hexdigest() if template else None,
            template_options=card.template_options,
            config_overrides=card.config_overrides,
            eos=card.eos if card.eos != own_eos(model) else None,
        ),
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
