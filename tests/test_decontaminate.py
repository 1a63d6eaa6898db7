"""Decontamination and duplicates: tables of questions and what must become of them."""

import pytest

from pipeline.problems.dedupe import duplicates
from pipeline.problems.overlap import EvalQuestion, find_matches
from pipeline.records import Problem, problem_id
from pipeline.rows import read_rows
from tests.conftest import ROOT

ROBE = "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total is that?"
SINE = "Compute $\\sin 60^\\circ$."
CHAIN = "State the final answer to the following arithmetic problem: 317 + 58 ="
SHORT_QUESTIONS = ROOT / "tests/data/math500_short.jsonl"


def problem(question: str, source: str = "train", gold: str = "1") -> Problem:
    return Problem(problem_id(question), question, gold, "math", source, "none", {})


ASKED = [
    EvalQuestion("gsm8k", "1", ROBE, False),
    EvalQuestion("math500", "2", SINE, False),
    EvalQuestion("chain_sum", "3", CHAIN, True),
]


@pytest.mark.parametrize(
    ("question", "rule"),
    [
        (ROBE, "exact"),
        (f"  {ROBE.upper()} ", "exact"),
        (ROBE.replace(" 2 ", " \uff12 "), "exact"),
        ("compute $ \\sin60^\\circ $", "whole"),
        ("Compute \\sin\\, 60^\\circ!", "whole"),
        ("It takes 2 bolts of blue fiber and half that much WHITE fiber, they say.", "ngram"),
        ("A cloak takes 3 bolts of red silk and half that much white silk. What is that in all?", None),
        (
            "A robe takes 7 bolts of blue fibre and half that much white fibre. How many bolts in total is that?",
            "fuzzy",
        ),
        ("Compute $\\sin 30^\\circ$.", "fuzzy"),
        ("Compute $\\log_2 8$.", None),
        (CHAIN, "exact"),
        (CHAIN.replace("317", "318"), None),
    ],
)
def test_a_written_question(question: str, rule: str | None) -> None:
    matches, _ = find_matches([problem(question)], set(), ASKED)
    assert [match.rule for match in matches.values()] == ([rule] if rule else [])


@pytest.mark.parametrize(
    ("question", "rule"),
    [
        (CHAIN, "exact"),
        (CHAIN.replace("+", "-"), None),
        (CHAIN.replace("317", "318"), None),
        (SINE[:-1], None),
    ],
    ids=["same", "sign", "number", "whole"],
)
def test_a_procedural_question_is_only_matched_exactly(question: str, rule: str | None) -> None:
    matches, templates = find_matches([problem(question, "chain_sum")], {"chain_sum"}, ASKED)
    assert [match.rule for match in matches.values()] == ([rule] if rule else [])
    assert templates == {}


@pytest.mark.parametrize(("num_others", "rules"), [(590, set()), (594, {"ngram"})], ids=["over 1%", "at 1%"])
def test_runs_in_more_than_a_hundredth_of_a_source_are_its_template(num_others: int, rules: set[str]) -> None:
    opening = "It takes 2 bolts of blue fiber and half that much"
    names = ["silk", "wool", "hemp", "jute", "flax", "yarn"]
    own = [problem(f"{opening} {name}, or less, for a {name} shirt that nobody wears.") for name in names]
    others = [problem(f"Question {n} is about something else, the number {n}.") for n in range(num_others)]
    matches, templates = find_matches([*own, *others], set(), ASKED)
    assert {match.rule for match in matches.values()} == rules
    assert bool(templates["train"]) is not bool(rules)


def test_a_source_of_a_few_questions_has_no_template() -> None:
    copies = [problem(f"{ROBE} {n}") for n in range(4)]
    matches, _ = find_matches([*copies, problem("What is 2 + 2?")], set(), ASKED)
    assert [match.rule for match in matches.values()] == ["ngram"] * 4


def test_the_32_short_questions_of_math500_are_covered() -> None:
    rows = [line.values or {} for line in read_rows(SHORT_QUESTIONS)]
    assert len(rows) == 32
    assert all(len(row["problem"].split()) < 8 for row in rows)
    short = [EvalQuestion("math500", str(n), row["problem"], False) for n, row in enumerate(rows)]
    copies = [problem(row["problem"].replace("$", "").rstrip(".?") + " ?") for row in rows]
    matches, _ = find_matches(copies, set(), short)
    assert [copy.question for copy in copies if copy.id not in matches] == []


def test_duplicates_name_the_first_and_other_numbers_are_another_problem() -> None:
    long = (
        "A farmer has 12 cows and 30 hens on a small farm near the river. How many legs do they have in all?"
    )
    problems = [
        problem(long),
        problem(long.upper(), gold="2"),
        problem(long.replace("small farm", "tiny farm")),
        problem(long.replace("12", "14")),
        problem(long.replace("legs", "wings"), gold="60"),
        problem(CHAIN, "chain_sum"),
        problem(CHAIN.replace("317 + 58", "58 + 317"), "chain_sum"),
    ]
    found = duplicates(problems, {"chain_sum"})
    assert {place: (d.rule, d.first.id) for place, d in found.items()} == {
        1: ("duplicate", problems[0].id),
        2: ("near_duplicate", problems[0].id),
    }
    assert found[1].detail == "gold '2' against '1'"
    assert 0.7 <= float(found[2].detail) < 1
