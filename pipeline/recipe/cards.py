"""Cards: YAML that describes a teacher, a student or a task, read as data and never imported.

A card's `revision` may be null: it is resolved at the first run, written into the run and enforced from
then on. What changes a response (model, revision, dtype, quantisation, template) is the card's identity and
goes into fingerprints, where it is not the default. Not in it: how a response is read (thinking tags), where
a fact was found, and parallelism (tensor, expert, data).
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from pipeline.errors import RecipeError, inside
from pipeline.recipe.engine_arguments import check_card, identity_of
from pipeline.recipe.names import HubId, LocalOrHubId, beside, is_yaml
from pipeline.recipe.prompts import PROMPTS, Prompt, read_prompt
from pipeline.recipe.reading import NONE, read_card
from pipeline.recipe.schema import Entry, PromptName, Recipe
from pipeline.recipe.sources import CardTask, Count, Rows
from pipeline.recipe.strict_yaml import Model, Strict, dump, nearest, parse, read_mapping, validate

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

    def __bool__(self) -> bool:
        """False for a model that writes no thinking block: `thinking: none` in its card."""
        return bool(self.close)

    @property
    def hidden(self) -> bool:
        """Of a teacher that thinks where nobody sees it: `thinking: hidden` in its card."""
        return not self.close and self.opened_by_prompt


NO_THINKING = Tags(open="", close="", opened_by_prompt=False)
HIDDEN_THINKING = Tags(open="", close="", opened_by_prompt=True)


def _tags_or_none(value: Any) -> Any:
    if isinstance(value, dict) and "" in (value.get("open"), value.get("close")):
        raise ValueError("a tag cannot be empty; a model that writes no thinking block has `thinking: none`")
    if value is None or (isinstance(value, str) and value != NONE):
        raise ValueError("expected {open, close, opened_by_prompt}, or none for a model without thinking")
    return NO_THINKING if value == NONE else value


def _tags_none_or_hidden(value: Any) -> Any:
    return HIDDEN_THINKING if value == HIDDEN else _tags_or_none(value)


HIDDEN = "hidden"
Thinking = Annotated[Tags, BeforeValidator(_tags_or_none, json_schema_input_type=Tags | Literal["none"])]


class EngineNeeds(Strict):
    """What the engine needs to hold the model. Of it dtype, quantisation and, where they can change a
    response, `arguments` bear identity: further ones of vLLM's engine, by its own names.

    `reasoning_parser` is vLLM's, for `serve-teacher` alone: in this process the tags are enough.
    """

    dtype: Literal["bfloat16", "float16", "float32", "auto"] = "bfloat16"
    quantisation: str | None = None
    max_model_len: int = Field(ge=1)
    tensor_parallel: int = Field(default=1, ge=1)
    expert_parallel: bool = False
    data_parallel: int = Field(default=1, ge=1)
    reasoning_parser: str | None = None
    arguments: Annotated[dict[str, Any], AfterValidator(check_card)] = {}


class ModelSize(Strict):
    """What `plan` needs where the model's own configuration is not at hand.

    `kv_values_per_layer`: values that the cache holds for one token in one layer (keys and values together);
    `kv_heads`: heads that tensor parallelism can spread them over, 1 with latent attention. The widths, of
    hidden states, the MLP and all heads' queries, and the vocabulary are what the memory of training is
    estimated from; a model that is only sampled from needs none.
    """

    parameters: float = Field(gt=0)
    active_parameters: float = Field(gt=0)
    bytes_per_parameter: float = Field(default=2, gt=0)
    layers: int = Field(ge=1)
    kv_values_per_layer: int = Field(ge=1)
    kv_heads: int | None = Field(default=None, ge=1)
    hidden: int | None = Field(default=None, ge=1)
    mlp: int | None = Field(default=None, ge=1)
    queries: int | None = Field(default=None, ge=1)
    vocabulary: int | None = Field(default=None, ge=1)


class ModelCard(Strict):
    """`model` is a hub id or a directory; `facts` maps each field to its source. `thinking: none`: the model
    writes no thinking block (pipeline.render says what that means for who learns from whom).

    `without_thinking`: the template options that switch thinking off, for examples that have none and for
    eval.thinking: false.
    """

    model: str
    revision: str | None = None
    thinking: Thinking = Tags()
    template_options: dict[str, Any] = {}
    without_thinking: dict[str, Any] = {}
    size: ModelSize | None = None
    licence: str
    facts: dict[str, str] = {}


class TeacherCard(ModelCard):
    """`thinking: hidden`: its server keeps the thinking to itself, so that there are answers alone."""

    thinking: Annotated[
        Tags,
        BeforeValidator(_tags_none_or_hidden, json_schema_input_type=Tags | Literal["none", "hidden"]),
    ] = Tags()
    engine: EngineNeeds
    training_on_outputs: Literal["allowed", "restricted", "unstated"]

    def restriction(self, who: str) -> str | None:
        """What stands, or may stand, against training on what this model wrote as `who`: teacher or judge."""
        if self.training_on_outputs == "allowed":
            return None
        if self.training_on_outputs == "restricted":
            return f"The licence of the {who} ({self.licence}) restricts what may be trained on its outputs"
        unread = f"The {who}'s card does not say whether its licence ({self.licence})"
        return f"{unread} allows training on its outputs"


class StudentCard(ModelCard):
    """`template` null means the tokenizer's own; else a file, or the name of one in students/templates/."""

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
    without_thinking: dict[str, Any] = field(default_factory=dict)
    config_overrides: dict[str, Any] = field(default_factory=dict)
    eos: str | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    tensor_parallel: int = 1
    data_parallel: int = 1
    expert_parallel: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)


def card_names(kind: str) -> list[str]:
    return sorted(path.stem for path in FOLDERS[kind].glob("*.yaml"))


def called(entry: Entry) -> str:
    """What messages, files and the report call the model that an entry of a recipe names."""
    if isinstance(entry, str):
        return Path(entry).stem if is_yaml(entry) else entry
    return Path(os.path.abspath(entry["model"])).name


def is_ours(entry: Entry) -> bool:
    """Whether an entry of a recipe names a card that the project holds; any other is the user's own."""
    return isinstance(entry, str) and not is_yaml(entry)


def _card(model: type[Model], kind: Literal["teacher", "student", "task"], entry: Entry) -> Model:
    """The card that a recipe names: one of ours by its name, the user's by its path, or the keys themselves.

    What the user's leave out is read from the model. RecipeError names the nearest card where there is none.
    """
    if isinstance(entry, dict) and kind != "task":
        return validate(model, completed(kind, entry), f"the card of {entry['model']}")
    if isinstance(entry, str) and is_yaml(entry) and kind != "task":
        values, folder = read_mapping(Path(entry), "card"), Path(entry).parent
        values |= {key: beside(values[key], folder) for key in ("model", "template") if _is_text(values, key)}
        return validate(model, completed(kind, values), entry)
    name = str(entry)
    path, known = FOLDERS[kind] / f"{name}.yaml", card_names(kind)
    where = f"{FOLDERS[kind].relative_to(ROOT)}/{name}.yaml"
    if name not in known:  # also refuses a name with `/` or `..`, which would be read as a path
        own = f"; a model is written as {{model: {name}}}" if "/" in name and kind != "task" else ""
        raise RecipeError(f"{where}: there is no such {kind} card; {nearest(name, known)}{own}")
    return validate(model, read_mapping(path, "card"), where)


def _is_text(values: dict[str, Any], key: str) -> bool:
    return isinstance(values.get(key), str)


def completed(kind: Literal["teacher", "student"], given: dict[str, Any]) -> dict[str, Any]:
    """The keys of a user's card, with those that are not there read from the model's files.

    A model that is not on this machine is looked up only where a key is missing that no default stands for.
    """
    if not _is_text(given, "model"):
        return given  # whoever validates it says so
    near = os.path.abspath(given["model"])
    location = near if os.path.isdir(near) else model_location(given["model"])
    given = {**given, "model": location}
    if _is_text(given, "template") and os.path.isfile(given["template"]):
        given["template"] = os.path.abspath(given["template"])
    engine = given.get("engine", {})
    length = given if kind == "student" else engine if isinstance(engine, dict) else {}
    needed = {"max_positions" if kind == "student" else "max_model_len"} <= length.keys()
    if os.path.isdir(location) or not needed or "thinking" not in given:
        read = read_card(kind, location, given.get("revision"))
        facts = {name: said for name, said in read["facts"].items() if name.partition(".")[0] not in given}
        if isinstance(engine, dict) and kind == "teacher":
            given["engine"] = {**read["engine"], **engine}
        given = {**read, **given, "facts": {**facts, **given.get("facts", {})}}
    unstated = {"licence": "unknown"} | ({"training_on_outputs": "unstated"} if kind == "teacher" else {})
    return {**unstated, **given}


def card_text(kind: Literal["teacher", "student"], model: str, revision: str | None = None) -> str:
    """A card of a model as YAML, ready to save. RecipeError where there is no such model, or where the card
    would not be valid: what its files do not say is to be put in by hand."""
    given = {"model": model} | ({} if revision is None else {"revision": revision})
    values = completed(kind, given)
    shown = values["model"] if os.path.isdir(values["model"]) else model
    order = ["model", "revision", "thinking", "template", "eos", "max_positions", "engine", "dtype", "size"]
    keys = [key for key in order if key in values] + [key for key in values if key not in order]
    lines = [f"# A {kind}'s card; a recipe names it by its path. facts: where each key was read.\n"]
    lines += [dump({key: shown if key == "model" else values[key]}) for key in keys]
    text = "".join(lines)
    card: Any = TeacherCard if kind == "teacher" else StudentCard
    validate(card, parse(text, model), f"{model}: what its files say makes no whole card")
    return text


teacher_card = partial(_card, TeacherCard, "teacher")
student_card = partial(_card, StudentCard, "student")
task_card = partial(_card, TaskCard, "task")


@dataclass(frozen=True, slots=True)
class Cards:
    """Every card that a recipe names, by what its model is called, and every prompt by what names it."""

    teachers: dict[str, TeacherCard]
    students: dict[str, StudentCard]
    tasks: dict[str, TaskCard]
    prompts: dict[str, Prompt] = field(default_factory=lambda: dict(PROMPTS))


def load_cards(recipe: Recipe) -> Cards:
    """Load and check every card and prompt that the recipe names. RecipeError with the key that names it."""
    cards = Cards({}, {}, {})
    with inside("generate.teacher"):
        _put(cards.teachers, recipe.generate.teacher, teacher_card)
    if recipe.judge is not None:
        with inside("judge.model"):
            _put(cards.teachers, recipe.judge.model, teacher_card)
    with inside("train.student"):
        _put(cards.students, recipe.train.student, student_card)
        hidden = cards.teachers[called(recipe.generate.teacher)].thinking.hidden
        if hidden and cards.students[called(recipe.train.student)].thinking:
            raise RecipeError(
                "this student thinks, and its teacher hides its thinking (thinking: hidden): it would learn "
                "to close its thinking at once. Take a student whose card says thinking: none"
            )
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
                _put(cards.teachers, extra.teacher, teacher_card)
            if extra.student is not None:
                _put(cards.students, extra.student, student_card)
    of_cards = [(f"the task card {name}", card.prompt) for name, card in cards.tasks.items() if card.prompt]
    for key, name in [*recipe.prompts_named(), *of_cards]:
        if name not in cards.prompts:
            with inside(key):
                cards.prompts[name] = read_prompt(Path(name))
    return cards


def _put(held: dict[str, Model], entry: Entry, load: Callable[[Entry], Model]) -> None:
    """RecipeError where another model of the recipe is called the same: results are by name."""
    name, card = called(entry), load(entry)
    if held.setdefault(name, card) != card:
        raise RecipeError(
            f"two models of this recipe are called {name!r}; write a card with a name of its own for one of "
            "them (python -m pipeline card --model DIR prints one)"
        )


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
        without_thinking=card.without_thinking,
        identity=model_identity(
            card.model,
            card.revision,
            dtype=card.engine.dtype,
            quantisation=card.engine.quantisation,
            engine_arguments=identity_of(card.engine.arguments),
            template_options=card.template_options,
        ),
        tensor_parallel=card.engine.tensor_parallel,
        data_parallel=card.engine.data_parallel,
        expert_parallel=card.engine.expert_parallel,
        arguments=card.engine.arguments,
    )


def template_path(template: str) -> Path:
    """The file of a card's `template`. RecipeError where there is none."""
    ours = ROOT / "students/templates"
    path = ours / template  # an absolute one stays what it is
    if not path.is_file():
        known = sorted(found.name for found in ours.glob("*.jinja"))
        raise RecipeError(f"{template}: no such chat template; {nearest(template, known)}, or name a file")
    return path


def sampled_student(name: str, card: StudentCard, checkpoint: Path | None = None) -> SampledModel:
    """The base of a card, or with `checkpoint` the trained student in that directory."""
    model, revision = (str(checkpoint.absolute()), None) if checkpoint else (card.model, card.revision)
    template = str(template_path(card.template)) if card.template and not checkpoint else None
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
        without_thinking=card.without_thinking,
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


def asked_without_thinking(model: SampledModel) -> SampledModel:
    """The same model in its other mode. RecipeError where its card does not know one."""
    if not model.without_thinking:
        raise RecipeError(
            f"eval.thinking: false: the card of {model.name} does not say how its template switches thinking "
            "off. State it there, for example without_thinking: {enable_thinking: false}, or compare other "
            "models"
        )
    options = {**model.template_options, **model.without_thinking}
    return replace(
        model,
        tags=model.tags.model_copy(update={"opened_by_prompt": False}),
        template_options=options,
        identity={**model.identity, "template_options": options},
    )


def in_mode_of(thinking: str | None, model: SampledModel) -> SampledModel:
    """The model as it was asked in its examples: without thinking where they `never` have some and its card
    knows that mode."""
    return asked_without_thinking(model) if thinking == "never" and model.without_thinking else model


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
