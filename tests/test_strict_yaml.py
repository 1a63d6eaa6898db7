"""Scalars as YAML 1.2 has them; what is written is read as the same, here and by others."""

from typing import Any

import pytest
import yaml

from pipeline.errors import RecipeError
from pipeline.recipe.strict_yaml import dump, parse

# fmt: off
SCALARS: list[tuple[str, Any]] = [
    ("1:30", "1:30"), ("1:30.5", "1:30.5"), ("yes", "yes"), ("no", "no"), ("on", "on"), ("Off", "Off"), ("y", "y"),
    ("010", 10), ("0o10", 8), ("0x1F", 31), ("0b11", "0b11"), ("1_000", "1_000"), ("-7", -7), ("+3", 3),
    ("1e-4", 1e-4), ("1.0e-3", 1e-3), ("1e3", 1000.0), (".5", 0.5), ("1.", 1.0), ("-.5", -0.5), ("1.5.2", "1.5.2"),
    ("true", True), ("False", False), ("TRUE", True), ("null", None), ("~", None), ("", None), ("None", "None"),
    ("'010'", "010"), ('"true"', "true"), ("=", "="), ("!!str 5", "5"), ("!!int 010", 10), ("!!float 1", 1.0),
]
# fmt: on


@pytest.mark.parametrize(("text", "value"), SCALARS, ids=[text or "nothing" for text, _ in SCALARS])
def test_a_scalar_is_what_yaml_1_2_says(text: str, value: Any) -> None:
    (found,) = parse(f"key: {text}\n", "here").values()
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<<: {a: 1}\nb: 2", "line 1 is not valid YAML: merge keys are not allowed"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "anchors and aliases are not allowed"),
        ("a: !!int 1:30", "is not valid YAML"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a: 2024-13-45", "month must be in"),
    ],
)
def test_what_is_not_plain_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(text, "here")


def test_what_is_written_is_read_as_the_same_by_readers_of_both_versions() -> None:
    values = [text for text, _ in SCALARS] + [
        "a\n---\nb: 1",
        "<<",
        "*x",
        "&x",
        "- a",
        "# b",
        "\x1b[31m",
        "2024-01-01",
    ]
    values += [" a ", "\u2028", 1e-5, 7, True, None, ["x"], {"k": "0o17"}]
    for value in values:
        assert parse(dump({"key": value}), "here") == {"key": value}
        assert yaml.safe_load(dump({"key": value})) == {"key": value}
