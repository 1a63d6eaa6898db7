"""Each rule against its own examples, and the errors that a recipe with a wrong rule meets."""

import inspect
from typing import Any

import pytest

from pipeline.errors import RecipeError
from pipeline.filter.rules import RULES, Candidate, bind_rules, check_rules, parameters_of
from pipeline.problems.overlap import EvalIndex, EvalQuestion
from pipeline.recipe.rule_entry import rule_name, rule_values
from pipeline.records import Problem, Status, Trace, Verdict
from pipeline.render import Split
from tests.rule_examples import RULE_EXAMPLES, RuleExample

ROWS = [
    pytest.param(name, example, id=f"{name}-{number}")
    for name, examples in RULE_EXAMPLES.items()
    for number, example in enumerate(examples)
]


def candidate_of(example: RuleExample) -> Candidate:
    """Rules read the split, not the response that it was made from."""
    key = "0" * 16
    status: Status = example.status  # type: ignore[assignment]
    problem = Problem(key, example.question, "4", example.verifier, "s", "none", {})
    trace = Trace(key, 0, 1, "request", "", example.finish_reason, 9, 9, "teacher")
    verdict = Verdict(key, 0, status, "basis", "equal", "4", "string", example.verifier, "1", 0.0)
    split = Split(example.thinking, example.answer, example.closing)  # type: ignore[arg-type]
    return Candidate(problem, trace, verdict, split, lambda _: example.num_tokens)


@pytest.mark.parametrize(("name", "example"), ROWS)
def test_a_rule_says_what_its_examples_state(name: str, example: RuleExample) -> None:
    procedural = example.verifier == "reasoning_gym"
    questions = (
        [EvalQuestion("task", "1", example.eval_question, procedural)] if example.eval_question else []
    )
    [(_, rule)] = bind_rules([{name: example.parameters}], EvalIndex(questions))
    hit = rule(candidate_of(example))
    assert (hit.reason if hit else None) == example.reason


def test_every_rule_has_examples_both_ways() -> None:
    assert RULES.keys() == RULE_EXAMPLES.keys()
    for name, examples in RULE_EXAMPLES.items():
        reasons = {example.reason for example in examples}
        assert None in reasons, name
        assert len(reasons) > 1, name


@pytest.mark.parametrize("name", RULES)
def test_a_rule_explains_itself_and_takes_nothing_that_a_recipe_cannot_set(name: str) -> None:
    assert inspect.getdoc(RULES[name])
    parameters = inspect.signature(RULES[name]).parameters
    assert parameters.keys() - parameters_of(name).model_fields.keys() <= {"candidate", "index"}


def test_the_first_hit_in_the_recipes_order_names_the_drop() -> None:
    example = RuleExample("x", answer="", status="wrong", finish_reason="length")
    for order, reason in ((["finished", "correct"], "truncated"), (["correct", "finished"], "wrong")):
        hits = [hit for _, rule in bind_rules(order, EvalIndex()) if (hit := rule(candidate_of(example)))]
        assert hits[0].reason == reason


def test_an_entry_is_a_name_or_a_name_with_parameters() -> None:
    entry = {"max_tokens": {"limit": 9}}
    assert (rule_name("correct"), rule_values("correct")) == ("correct", {})
    assert (rule_name(entry), rule_values(entry)) == ("max_tokens", {"limit": 9})
    for wrong in ({}, {"finished": {}, "correct": {}}):
        with pytest.raises(ValueError, match=f"found {len(wrong)} names in one entry"):
            rule_name(wrong)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["corect"], r"^filter\.rules\[0\]: unknown rule 'corect'; did you mean 'correct'\?"),
        (["boxed_answers"], r"unknown rule 'boxed_answers'; .*known: closed_thinking, correct, finished"),
        (
            ["correct", {"max_tokens": {"limit": 0}}],
            r"^filter\.rules\[1\]: rule max_tokens: limit: .*greater than or equal to 1, found 0$",
        ),
        ([{"not_repetitive": {"max_repeated_lines": 1.5}}], r"max_repeated_lines: .*less than or equal to 1"),
        ([{"not_repetitive": {"max_loop": 3}}], r"max_loop: unknown key; did you mean 'max_loops'"),
        ([{"one_language": {"max_letters": "2"}}], r"max_letters: .*valid integer, found '2'"),
        (["max_tokens"], r"rule max_tokens: limit: this key is missing"),
        ([{"finished": {}, "correct": {}}], r"filter\.rules\[0\]: .*found 2 names in one entry"),
        ([{"correct": {"strict": True}}], r"strict: unknown key"),
        ([{"not_contaminated": {"index": 1}}], r"index: unknown key; .*min_letters"),
        (["corect", "finished", "max_tokens"], r"rules\[0\]: unknown.*; filter\.rules\[2\]: rule max_tokens"),
    ],
    ids=[
        "unknown",
        "helper",
        "zero",
        "share",
        "parameter",
        "type",
        "missing",
        "two",
        "none",
        "index",
        "all faults",
    ],
)
def test_a_wrong_rule_is_an_error_of_the_recipe(rules: list[Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_rules(rules)


def test_right_rules_are_let_through() -> None:
    check_rules(["correct", {"finished": {}}, {"not_repetitive": {"max_compression": 9}}])
