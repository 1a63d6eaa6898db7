"""Eval questions that training has seen are flagged by each rule, procedural ones only as a whole."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from pipeline.problems.overlap import (
    PROBLEMS_AT_ONCE,
    TrainedText,
    flagged_questions,
    overlap_of,
    trained_texts,
)
from pipeline.recipe.cards import Tags
from pipeline.records import Problem, problem_id, read_filtered

LONG = "A train leaves the old harbour at nine and arrives at noon after {} stops; how long did it travel?"


def problem(question: str, verifier: str = "math", source: str = "train") -> Problem:
    return Problem(problem_id(question), question, "3", verifier, source, "CC0", {})


def flags_of(
    asked: list[Problem], training: list[Problem], *texts: str, procedural: bool = False
) -> dict[str, str]:
    traces = [TrainedText(text, "train", procedural) for text in texts]
    return flagged_questions({"task": asked}, training, traces)["task"]


@pytest.mark.parametrize(
    ("question", "trained", "rule"),
    [
        ("What is 3 + 4?", "what  is 3 + 4?", "exact"),
        ("Solve $x + 1 = 4$.", "Solve x + 1 = 4", "whole"),
        (
            LONG.format(2),
            "Think: the old harbour at nine and arrives at noon after all, and what then?",
            "ngram",
        ),
        ("Ann has 12 apples, eats 5.", "Ann has 77 apples, eats 31.", "fuzzy"),
        ("What is 3 + 4?", "What is 3 + 5 - 17 * 2?", None),
    ],
    ids=[
        "same but for case and blanks",
        "same but for dollars",
        "eight words",
        "other numbers",
        "another question",
    ],
)
def test_each_rule_flags_what_it_says(question: str, trained: str, rule: str | None) -> None:
    asked = problem(question)
    assert flags_of([asked], [problem(trained)]) == ({asked.id: rule} if rule else {})


def test_the_closest_rule_names_a_question_whichever_problem_comes_first() -> None:
    asked = problem(LONG.format(2))
    near, same = problem(LONG.format(3)), problem(LONG.format(2), source="other")
    assert flags_of([asked], [near, same]) == {asked.id: "exact"}


class Text(str):
    """A question that can be seen to be gone."""


def test_training_problems_are_never_held_all_at_once() -> None:
    living: WeakSet[Text] = WeakSet()
    most = 0

    class Streamed:
        def __iter__(self) -> Iterator[Problem]:
            nonlocal most
            for number in range(3 * PROBLEMS_AT_ONCE):
                question = Text(f"trained {number}")
                living.add(question)
                most = max(most, len(living))
                yield problem(question)

    asked = [problem("trained 2999"), problem("What is left?")]
    assert flagged_questions({"task": asked}, Streamed(), [])["task"] == {asked[0].id: "exact"}
    assert PROBLEMS_AT_ONCE <= most <= 2 * PROBLEMS_AT_ONCE + 2


def test_procedural_questions_are_only_flagged_as_a_whole() -> None:
    first, second = (problem(LONG.format(n), "reasoning_gym") for n in (2, 3))
    assert flags_of([first, second], [first]) == {first.id: "exact"}


def test_a_question_inside_a_trace_is_flagged() -> None:
    asked = problem(LONG.format(4), "reasoning_gym")
    flags = flags_of([asked], [problem("other")], f"As in: {LONG.format(4)} so 3.", procedural=True)
    assert flags == {asked.id: "in a trace"}


@pytest.mark.parametrize("procedural", [False, True], ids=["written", "procedural"])
def test_eight_words_of_a_written_question_inside_a_trace_are_flagged(procedural: bool) -> None:
    asked = problem(LONG.format(4))
    text = "leaves the old harbour at nine and arrives at"
    flags = flags_of([asked], [problem("other")], text, procedural=procedural)
    assert flags == ({} if procedural else {asked.id: "ngram in a trace"})


def test_every_eval_question_that_one_training_problem_matches_is_flagged() -> None:
    asked = [problem(LONG.format(n)) for n in (2, 3, 4)]
    assert set(flags_of(asked, [problem(LONG.format(5))])) == {item.id for item in asked}


def test_a_template_of_a_source_flags_nothing_in_its_problems_and_traces() -> None:
    asked = problem("A farmer in the small town of Arles owns seven goats; what do they eat?")
    trained = [problem(f"A farmer in the small town of Arles owns {10**n}, and so on") for n in range(6)]
    assert flags_of([asked], trained, trained[0].question) == {}
    other = TrainedText(trained[0].question, "other", False)
    assert flagged_questions({"task": [asked]}, trained, [other])["task"] == {asked.id: "ngram in a trace"}


def test_the_traces_that_were_trained_on_are_read_without_their_tags(tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    verdict = {"status": "correct", "verifier": "math"}
    rows: list[dict[str, Any]] = [
        {"response": "Add.</think>\n\n3", "source": "train", "verdict": verdict},
        {"response": "4", "source": "gym", "verdict": {**verdict, "verifier": "reasoning_gym"}},
        {"messages": [], "verdict": None, "source": "mix", "kind": "mix"},
    ]
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(trained_texts(read_filtered(kept), Tags(opened_by_prompt=False))) == [
        TrainedText("Add.\n3", "train", False),
        TrainedText("4", "gym", True),
    ]


def test_flags_become_the_rows_of_their_questions() -> None:
    asked = [problem(f"question {n}") for n in range(3)]
    overlap = overlap_of({asked[2].id: "exact"}, asked)
    assert overlap.rules == {2: "exact"}
    assert overlap.questions == 3
