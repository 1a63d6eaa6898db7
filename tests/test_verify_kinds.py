"""The verifiers beside math: choice, text, json, any, reasoning_gym, and the check that a verifier exists."""

import json

import pytest

from pipeline.errors import VerifyError
from pipeline.verify.choice import verify_choice
from pipeline.verify.json import verify_json
from pipeline.verify.table import VERIFIERS, VERSIONS, check_verifier, function_of, versions_of
from pipeline.verify.text import verify_text

OPTIONS = {"options": ["red", "dark blue", "green", "yellow"]}


@pytest.mark.parametrize(
    ("gold", "response", "metadata", "status"),
    [
        ("B", "\\boxed{B}", {}, "correct"),
        ("B", "The answer is (B).", {}, "correct"),
        ("B", "Answer: b", {}, "correct"),
        ("(B)", "\\boxed{\\text{B}}", {}, "correct"),
        ("B", "\\boxed{B. dark blue}", OPTIONS, "correct"),
        ("B", "The answer is dark blue.", OPTIONS, "correct"),
        ("dark blue", "\\boxed{B}", OPTIONS, "correct"),
        ("B", "I would choose B", {}, "correct"),
        ("B", "\\boxed{C}", {}, "wrong"),
        ("B", "The answer is green", OPTIONS, "wrong"),
        ("B", "\\boxed{B. green}", OPTIONS, "unverifiable"),
        ("B", "\\boxed{E}", OPTIONS, "unverifiable"),
        ("B", "", {}, "wrong"),
        ("purple", "\\boxed{B}", OPTIONS, "unverifiable"),
    ],
)
def test_choice(gold: str, response: str, metadata: dict[str, object], status: str) -> None:
    assert verify_choice(response, gold, metadata).status == status


@pytest.mark.parametrize(
    ("gold", "response", "status"),
    [
        ("Café", "\\boxed{cafe\u0301}", "correct"),
        ("New York", "Answer: **new  york**.", "correct"),
        ("the cat", "\\boxed{\\text{The cat}}", "correct"),
        ("it's", "\\boxed{it’s}", "correct"),
        ("cat", "\\boxed{dog}", "wrong"),
        ("cat", "", "wrong"),
        ("  ", "\\boxed{cat}", "unverifiable"),
    ],
)
def test_text(gold: str, response: str, status: str) -> None:
    assert verify_text(response, gold, {}).status == status


SCHEMA = {"schema": {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}}


@pytest.mark.parametrize(
    ("gold", "response", "metadata", "status", "layer"),
    [
        ('{"a": 1, "b": [1, 2]}', '```json\n{"b": [1, 2.0], "a": 1}\n```', {}, "correct", "json"),
        ("[1, 2]", "[2, 1]", {}, "wrong", "json"),
        ("[true]", "[1]", {}, "wrong", "json"),
        ('{"a": 1}', '{"a": 1}', SCHEMA, "correct", "json"),
        ('{"a": 1}', '{"a": "1"}', SCHEMA, "wrong", "schema"),
        ('{"a": 1}', '{"b": 1}', SCHEMA, "wrong", "schema"),
        ("1", "Answer: 1", {}, "correct", "json"),
        ("[1]", "[1]", {"schema": {"type": ["array", "null"]}}, "correct", "json"),
        ("null", "null", {"schema": {"type": ["array", "null"]}}, "correct", "json"),
        ("1", "1", {"schema": {"type": ["array", "null"]}}, "wrong", "schema"),
        ("9007199254740992", "9007199254740993.0", {}, "wrong", "json"),
        ("1", "no JSON here", {}, "unverifiable", ""),
        ("{", "{}", {}, "unverifiable", ""),
        ("1", " ", {}, "wrong", ""),
    ],
)
def test_json(gold: str, response: str, metadata: dict[str, object], status: str, layer: str) -> None:
    outcome = verify_json(response, gold, metadata)
    assert (outcome.status, outcome.layer) == (status, layer)


@pytest.mark.parametrize(
    ("golds", "response", "metadata", "status"),
    [
        (["1/2", "0.6"], "\\boxed{0.5}", {}, "correct"),
        (["1/2", "0.6"], "\\boxed{0.7}", {}, "wrong"),
        (["cat", "dog"], "\\boxed{Dog}", {"verifier": "text"}, "correct"),
        ([], "\\boxed{1}", {}, "unverifiable"),
    ],
)
def test_any(golds: list[str], response: str, metadata: dict[str, object], status: str) -> None:
    assert function_of("any")(response, json.dumps(golds), metadata).status == status


def entry(answer: str) -> dict[str, object]:
    return {"question": "1 + 2 =", "answer": answer, "metadata": {}}


@pytest.mark.parametrize(
    ("family", "answer", "response", "status"),
    [
        ("chain_sum", "3", "\\boxed{3}", "correct"),
        ("chain_sum", "3", "So the answer is 3.", "correct"),
        ("chain_sum", "3", "\\boxed{it is 3}", "wrong"),
        ("chain_sum", "3", "\\boxed{4}", "wrong"),
        ("chain_sum", "3", "", "wrong"),
        ("letter_counting", "12", "\\boxed{\\text{12}}", "correct"),
        ("countdown", "3", "\\boxed{3}", "unverifiable"),
    ],
)
def test_reasoning_gym(family: str, answer: str, response: str, status: str) -> None:
    metadata = {"family": family, "entry": entry(answer)}
    assert function_of("reasoning_gym")(response, answer, metadata).status == status


def test_every_row_of_the_table_has_its_function() -> None:
    assert all(callable(function_of(name)) for name in VERIFIERS)
    assert VERIFIERS.keys() == VERSIONS.keys()


def test_the_versions_in_use_are_sorted_and_named_once() -> None:
    found = versions_of(["text", "math", "text"])
    assert list(found.items()) == [("math", VERSIONS["math"]), ("text", VERSIONS["text"])]
    assert versions_of([]) == {}


@pytest.mark.parametrize(
    ("name", "metadata", "message"),
    [
        ("maths", {}, "unknown verifier 'maths'; did you mean 'math'"),
        ("sandbox", {}, "there are: math, choice"),
        ("reasoning_gym", {}, "needs metadata"),
        ("reasoning_gym", {"family": "countdown"}, "'countdown' is refused: its scorer calls parse_expr"),
        ("reasoning_gym", {"family": "chain_sums"}, "did you mean 'chain_sum'"),
        ("any", {"verifier": "any"}, "cannot hold another"),
        ("any", {"verifier": "mth"}, "did you mean 'math'"),
        ("math", {"layers": ["string", ["values"]]}, "`layers` in its metadata must be a list of names"),
        ("json", {"schema": []}, r"schema must be an object, found \[\]"),
        ("json", {"schema": {"type": "foo"}}, "schema.type must be one or more of object, .* found 'foo'"),
        ("json", {"schema": {"type": [["null"]]}}, "schema.type must be one or more"),
        ("json", {"schema": {"required": "a"}}, "schema.required must list keys, found 'a'"),
        ("json", {"schema": {"enum": "a"}}, "schema.enum must be a list"),
        ("json", {"schema": {"properties": ["a"]}}, "schema.properties must be an object"),
        (
            "json",
            {"schema": {"properties": {"a": {"items": 1}}}},
            "schema.properties.a.items must be an object",
        ),
        ("any", {"verifier": "json", "schema": {"type": "foo"}}, "schema.type must be"),
        ("any", {"verifier": ["math"]}, r"must name a verifier, found \['math'\]"),
    ],
)
def test_verifiers_that_are_refused(name: str, metadata: dict[str, object], message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        check_verifier(name, metadata)


@pytest.mark.parametrize("name", ["math", "choice", "text", "json"])
def test_verifiers_that_exist(name: str) -> None:
    assert check_verifier(name, {}) is None
