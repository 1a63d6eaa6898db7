"""Every key is told: its type, its default, its meaning, in the terminal and to editors."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from pipeline.errors import RecipeError
from pipeline.recipe.described import ROOTS, all_models, json_schema, listing, meaning_of, meanings
from tests.conftest import ROOT

SCHEMA = ROOT / "recipes/schema.json"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
MODELS = sorted(
    {model for root in ROOTS.values() for model in all_models(root)}, key=lambda model: model.__name__
)  # in one order for all workers


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_has_a_meaning(model: type[BaseModel]) -> None:
    assert [name for name in model.model_fields if not meaning_of(model, name)] == []


def test_no_meaning_is_of_a_key_that_is_gone() -> None:
    declared = {
        each.__name__: each for model in MODELS for each in model.__mro__ if issubclass(each, BaseModel)
    }
    gone = [f"{owner}.{key}" for owner, keys in meanings().items() for key in keys
            if owner not in declared or key not in declared[owner].model_fields]  # fmt: skip
    assert gone == []


def test_a_key_is_listed_with_type_default_and_meaning() -> None:
    text = listing(None)
    for line in (
        "train.learning_rate   number > 0   required\n    The highest of the schedule.",
        'filter.select.prefer   shortest | first | random | likely | surprising   default: "shortest"\n',
        "seed   whole number >= 0 < 2,147,483,648   default: 0\n",
        "problems.sources[](reasoning_gym).size   whole number >= 1   required\n",
    ):
        assert line in text
    assert listing("train").startswith("train   section   required\n")
    assert "thinking   section | none" in listing("student")
    with pytest.raises(RecipeError, match=r"schema trian: there is no such section; did you mean 'train'\?"):
        listing("trian")


def test_a_preset_is_told_of_and_accepted() -> None:
    assert "problems.sources[](preset).preset   apps | " in listing("problems")
    sources = json.loads(SCHEMA.read_text())["$defs"]["Problems"]["properties"]["sources"]
    whole = {**sources, "$defs": json.loads(SCHEMA.read_text())["$defs"]}
    jsonschema.validate([{"preset": "s1k", "path": "a.jsonl"}, {"path": "b.jsonl"}], whole)
    for entry in ({"preset": "s2k"}, {"preset": "s1k", "pth": "a"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate([entry], whole)


def test_the_checked_in_schema_is_the_one_that_is_printed() -> None:
    """Where it is not: python -m pipeline schema --json > recipes/schema.json"""
    assert SCHEMA.read_text() == json_schema()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_editors_find_the_schema_of_a_shipped_recipe_and_accept_it(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=schema.json"
    jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(SCHEMA.read_text()))


def test_editors_see_a_wrong_key() -> None:
    values = yaml.safe_load((ROOT / "recipes/demo.yaml").read_text())
    values["train"]["epoch"] = 3
    with pytest.raises(jsonschema.ValidationError, match="'epoch' was unexpected"):
        jsonschema.validate(values, json.loads(SCHEMA.read_text()))
