"""`python -m pipeline schema`: every key of recipes, cards and prompt files, from the classes that read them.

Reads keys.yaml for what keys mean. The JSON Schema is for editors: recipes/schema.json is what

    python -m pipeline schema --json > recipes/schema.json

prints, and the first line of a recipe names it (`# yaml-language-server: $schema=schema.json`).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.errors import RecipeError
from pipeline.recipe.cards import StudentCard, TaskCard, TeacherCard
from pipeline.recipe.prompts import PromptFile
from pipeline.recipe.schema import Recipe
from pipeline.recipe.strict_yaml import models_in, nearest, read_mapping

KEYS = Path(__file__).with_name("keys.yaml")
ROOTS: dict[str, type[BaseModel]] = {
    "recipe": Recipe,
    "teacher": TeacherCard,
    "student": StudentCard,
    "task": TaskCard,
    "prompt": PromptFile,
}
# what recipes call the model of such a card, where its keys may stand too
ENTRIES = {
    "Generate": {"teacher"},
    "Judge": {"model"},
    "Train": {"student"},
    "ExtraModel": {"teacher", "student"},
}


@dataclass(frozen=True, slots=True)
class Key:
    """One key, with the keys of the sections that may stand behind it."""

    path: str
    type: str
    default: str
    meaning: str


@cache
def meanings() -> dict[str, dict[str, str]]:
    return read_mapping(KEYS, "file of keys")


def meaning_of(model: type[BaseModel], name: str) -> str:
    """By the class that declares the key, or the nearest one that says something else of it."""
    held = (meanings().get(each.__name__, {}).get(name) for each in model.__mro__)
    return next((text for text in held if text), "")


def keys_of(model: type[BaseModel], path: str = "") -> Iterator[Key]:
    """The keys of a section and of all below it."""
    schema = model.model_json_schema()
    for name, field in model.model_fields.items():
        here = f"{path}.{name}".lstrip(".")
        said = type_of(schema["properties"][name], schema.get("$defs", {}))
        yield Key(here, said, default_of(field), meaning_of(model, name))
        for kind in schema["properties"][name].get("items", {}).get("oneOf", ()):
            if "properties" in kind:  # no section of its own: a preset
                [key] = kind["required"]
                held = kind["properties"][key]
                yield Key(f"{here}[]({key}).{key}", type_of(held, {}), "required", held["description"])
        inner = models_in(field.annotation)
        for each in inner:
            several = f"{here}[]" if str(field.annotation).startswith("list") else here
            yield from keys_of(each, several if len(inner) == 1 else f"{several}({kind_of(each)})")


def kind_of(model: type[BaseModel]) -> str:
    """An entry of a list is told from the others by its one required key that they lack."""
    return next(name for name, field in model.model_fields.items() if field.is_required())


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel):
        return "default: as below"
    return f"default: {json.dumps(field.default, ensure_ascii=False)}"


def type_of(schema: dict[str, Any], defs: dict[str, Any]) -> str:
    """A JSON Schema in a few words."""
    if "properties" in schema:
        return "section"
    if "$ref" in schema:
        held = defs[schema["$ref"].rpartition("/")[2]]
        return "section" if held.get("type") == "object" else type_of(held, defs)
    if "enum" in schema or "const" in schema:
        return " | ".join(map(str, schema.get("enum", [schema.get("const")])))
    kinds = schema.get("anyOf") or schema.get("oneOf")
    if kinds:
        said = list(dict.fromkeys(type_of(kind, defs) for kind in kinds))
        return " | ".join(said)
    if schema.get("type") == "array":
        return f"list of {type_of(schema.get('items', {}), defs)}"
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[name]:,}" for name, sign in bounds.items() if name in schema]
    names = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true | false"}
    names |= {"object": "mapping", "null": "null"}
    return " ".join([names.get(str(schema.get("type")), "any value"), *limits])


def listing(section: str | None) -> str:
    """The keys of a recipe, of one of its sections, of a kind of card, or of a prompt file."""
    wanted = section or "recipe"
    if wanted in ROOTS:
        keys = list(keys_of(ROOTS[wanted]))
    else:
        keys = [key for key in keys_of(Recipe) if f"{key.path}.".startswith((f"{wanted}.", f"{wanted}["))]
    if not keys:
        known = [*ROOTS, *Recipe.model_fields]
        raise RecipeError(f"schema {wanted}: there is no such section; {nearest(wanted, known)}")
    return "".join(f"{key.path}   {key.type}   {key.default}\n    {key.meaning}\n" for key in keys)


def json_schema(section: str | None = None) -> str:
    """The JSON Schema of a recipe, of a kind of card or of a prompt file, as text."""
    wanted = section or "recipe"
    if wanted not in ROOTS:
        raise RecipeError(f"schema --json {wanted}: there is no such file; {nearest(wanted, list(ROOTS))}")
    models = {model.__name__: model for model in all_models(ROOTS[wanted])}
    schema = ROOTS[wanted].model_json_schema()
    sections = {ROOTS[wanted].__name__: schema, **schema.get("$defs", {})}
    for name, held in sections.items():
        for key, said in held.get("properties", {}).items():
            said["description"] = meaning_of(models[name], key)
            if key in ENTRIES.get(name, ()):
                said["description"] += " Keys of a card: python -m pipeline schema teacher, or student."
    schema["title"] = f"retort: {wanted}"
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def all_models(model: type[BaseModel]) -> list[type[BaseModel]]:
    """The class of a file, and of every section in it."""
    found = [model]
    for each in found:
        inner = [m for field in each.model_fields.values() for m in models_in(field.annotation)]
        found += [m for m in dict.fromkeys(inner) if m not in found]
    return found
