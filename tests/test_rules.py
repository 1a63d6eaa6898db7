"""Each rule against its own examples, and the errors that a recipe with a wrong rule meets."""

import pytest

from pipeline.candidate import Candidate
from pipeline.contamination import TraceIndex
from pipeline.decontaminate import EvalQuestion
from pipeline.errors import RecipeError
from pipeline.recipe import Filter
from pipeline.records import Problem, Status, Trace, Verdict
from pipeline.rule_examples import RULE_EXAMPLES, RuleExample
from pipeline.rule_parameters import PARAMETERS
from pipeline.rules import RULES, bind_rules
from pipeline.strict_yaml import validate

ROWS = [
    pytest.param(name, example, id=f"{name}-{number}")
    for name, examples in RULE_EXAMPLES.items()
    for number, example in enumerate(examples)
]


def candidate_of(example: RuleExample) -> Candidate:
    status: Status = example.status  # type: ignore[assignment]
    problem = Problem("0" * 16, example.question, "4", example.verifier, "s", "none", {})
    trace = Trace(
        "0" * 16, 0, 1, "r", example.thinking, example.answer, example.finish_reason, 9, 9, "teacher"
    )
    verdict = Verdict("0" * 16, 0, status, "equal", "4", "string", example.verifier, "1", 0.0)
    procedural = example.verifier == "reasoning_gym"
    return Candidate(problem, trace, verdict, procedural, lambda _: example.num_tokens)


@pytest.mark.parametrize(("name", "example"), ROWS)
def test_a_rule_says_what_its_examples_state(name: str, example: RuleExample) -> None:
    procedural = example.verifier == "reasoning_gym"
    questions = (
        [EvalQuestion("task", "1", example.eval_question, procedural)] if example.eval_question else []
    )
    [(_, rule)] = bind_rules([{name: example.parameters}], TraceIndex(questions))
    hit = rule(candidate_of(example))
    assert (hit.reason if hit else None) == example.reason


def test_every_rule_has_examples_both_ways_and_parameters() -> None:
    assert RULES.keys() == RULE_EXAMPLES.keys() == PARAMETERS.keys()
    for name, examples in RULE_EXAMPLES.items():
        reasons = {example.reason for example in examples}
        assert None in reasons, name
        assert len(reasons) > 1, name


def test_the_first_hit_in_the_recipes_order_names_the_drop() -> None:
    example = RuleExample("x", answer="", status="wrong", finish_reason="length")
    for order, reason in ((["finished", "correct"], "truncated"), (["correct", "finished"], "wrong")):
        hits = [hit for _, rule in bind_rules(order, TraceIndex()) if (hit := rule(candidate_of(example)))]
        assert hits[0].reason == reason


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["corect"], r"unknown rule 'corect'; did you mean 'correct'\?"),
        ([{"max_tokens": {"limit": 0}}], r"rule max_tokens: limit: .*greater than or equal to 1, found 0"),
        ([{"not_repetitive": {"max_repeated_lines": 1.5}}], r"max_repeated_lines: .*less than or equal to 1"),
        ([{"not_repetitive": {"max_loop": 3}}], r"max_loop: unknown key; did you mean 'max_loops'"),
        ([{"one_language": {"max_letters": "2"}}], r"max_letters: .*valid integer, found '2'"),
        (["max_tokens"], r"rule max_tokens: limit: this key is missing"),
        ([{"finished": {}, "correct": {}}], r"found 2 names in one entry"),
        (["correct", "correct"], r"the rule 'correct' stands here 2 times"),
        ([{"correct": {"strict": True}}], r"strict: unknown key"),
    ],
    ids=["unknown", "zero", "share", "parameter", "type", "missing", "two", "twice", "none"],
)
def test_a_wrong_rule_is_an_error_of_the_recipe(rules: list[object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        validate(Filter, {"rules": rules}, "filter")
