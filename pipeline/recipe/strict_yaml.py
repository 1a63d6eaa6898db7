"""Hand-written YAML, read strictly: the scalars of YAML 1.2, no anchors, aliases, merge keys, duplicate keys.

PyYAML parses; which plain scalars are numbers and booleans is stated here, because it goes by YAML 1.1: there
1:30 is 90, 010 is 8, yes is true, and 1e-4 is text. ruamel.yaml reads 1.2, but is one more library, and takes
anchors and merge keys. A date, which 1.2 does not know, is refused: written in quotes it is text.

Used for recipes and cards alike. Values are then checked by a pydantic model; every fault becomes one
RecipeError that names the file, the path of the key, what was found, and the nearest valid key.
"""

import difflib
import math
import re
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import RecipeError, in_one_line


class Strict(BaseModel):
    """Base of every section of a recipe and of every card: frozen, typed, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=Strict)


NULL, BOOL, INT, FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))
TIMESTAMP = "tag:yaml.org,2002:timestamp"
# the core schema of YAML 1.2.2, section 10.3.2: pattern, and the characters that such a scalar begins with
SCALARS = {
    NULL: (r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    BOOL: (r"(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    INT: (r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    FLOAT: (
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    # of YAML 1.1 the dates alone, so that they can be refused
    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag == TIMESTAMP]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise yaml.MarkedYAMLError(
                problem="anchors and aliases are not allowed", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(
                    problem="a key must be plain text", problem_mark=key_node.start_mark
                )
            if key_node.value == "<<" and key_node.style is None:
                raise yaml.MarkedYAMLError(
                    problem="merge keys are not allowed; write the keys out", problem_mark=key_node.start_mark
                )
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{key_node.value}' stands here twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        text = node.value
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)  # 010 is ten


class _Dumper(yaml.SafeDumper):
    """Quotes what a reader of YAML 1.1 or of 1.2 would take for anything but text."""

    yaml_implicit_resolvers = dict(yaml.SafeDumper.yaml_implicit_resolvers)

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.add_constructor(INT, _Loader.construct_int)
for _tag, (_pattern, _first) in SCALARS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)
    _Dumper.add_implicit_resolver(_tag, re.compile(_pattern), _first)


def dump(value: Any) -> str:
    """YAML that `parse` reads as the same value, and that other readers do."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def parse(text: str, where: str) -> Any:
    """The value of one YAML document. RecipeError names the line of what cannot be read."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{where}:{line} is not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise RecipeError(f"{where}: is not valid YAML: {in_one_line(error)}") from None


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The mapping that a hand-written file holds; RecipeError where there is no such file or no mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        there = f"{path.parent}/ holds: {', '.join(near)}" if near else f"{path.parent}/ holds no .yaml file"
        raise RecipeError(f"{path}: there is no such {what}; {there}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as a {what}: {error}") from None
    value = parse(text, str(path))
    if not isinstance(value, dict):
        found = "an empty file" if value is None else type(value).__name__
        raise RecipeError(
            f"{path}: a {what} is a mapping of keys to values, found {found}; copy a checked-in one"
        )
    return value


def validate(model: type[Model], value: dict[str, Any], where: str, folder: Path | None = None) -> Model:
    """Build `model` from `value`. All faults are listed in one RecipeError, the first one in full.

    `folder` is that of the file, where the paths in it may lead too (pipeline.recipe.names).
    """
    _refuse_foreign(value, where)
    try:
        return model.model_validate(value, context={"folder": folder})
    except ValidationError as error:
        faults = [_explain(model, fault) for fault in error.errors(include_url=False)]
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise RecipeError(f"{where}: {'; '.join(faults[:5])}{more}") from None


def _refuse_foreign(value: Any, where: str, path: str = "") -> None:
    """RecipeError on what JSON cannot hold: dates, sets, infinities, broken text. Fingerprints are JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_foreign(key, where, f"{path}.{key}".lstrip("."))
            _refuse_foreign(inner, where, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            _refuse_foreign(inner, where, f"{path}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{where}: {path}: input should be a finite number, found {value!r}")
    elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise RecipeError(f"{where}: {_shorten(path)}: holds a lone surrogate, which is not valid text")
    elif not isinstance(value, str | int | float | bool | None):
        raise RecipeError(
            f"{where}: {path}: expected text, a number, true or false, found {type(value).__name__} "
            f"{_shorten(value)}; put it in quotes if it is meant as text"
        )


def nearest(word: str, known: list[str]) -> str:
    """A did-you-mean clause for `word`, or the list of what is known."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    listed = ", ".join(sorted(known))
    return f"did you mean '{close[0]}'? (known: {listed})" if close else f"known: {listed}"


def _explain(model: type[Strict], fault: Any) -> str:
    # what pydantic puts into the location of a union, and names of functions, are not keys of the file
    sections = {section.__name__ for section in Strict.__subclasses__()}
    location = [
        part
        for place, part in enumerate(fault["loc"], start=1)
        if isinstance(part, int)
        or (fault["type"] == "extra_forbidden" and place == len(fault["loc"]))  # as the file spells it
        or not (part.startswith(("tag:", "function-", "literal[")) or part in sections)
    ]
    path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).lstrip(".")
    if fault["type"] == "extra_forbidden":
        known = _known_keys(model, fault["loc"][:-1])
        return f"{path}: unknown key; {nearest(str(location[-1]), known)}"
    if fault["type"] == "missing":
        return f"{path}: this key is missing"
    message = fault["msg"].removeprefix("Value error, ")
    said = f"{path + ': ' if path else ''}{message[0].lower() + message[1:]}"
    # a section that contradicts itself is not found anywhere: the message names its keys
    if fault["type"] == "value_error" and isinstance(fault.get("input"), dict):
        return said
    return f"{said}, found {_shorten(fault.get('input'))}"


def _shorten(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python prints
        return "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The keys that are valid at `location`, following pydantic's location through the field types."""
    current: list[type[BaseModel]] = [model]
    for part in location:
        if isinstance(part, str) and part.startswith("tag:"):
            current = [m for m in current if m.__name__ == part[4:]]
            continue
        fields = [m.model_fields[part] for m in current if isinstance(part, str) and part in m.model_fields]
        if fields:
            current = [m for field in fields for m in models_in(field.annotation)]
    return sorted({name for m in current for name in m.model_fields})


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a key of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in get_args(annotation) for m in models_in(argument)]
