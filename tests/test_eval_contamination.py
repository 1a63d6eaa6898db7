"""Eval questions that training has seen are flagged by each rule, procedural ones only as a whole."""

import json
from pathlib import Path

import pytest

from eval.contamination import flagged_questions, overlap_of
from pipeline.records import Problem, problem_id, to_json

LONG = "A train leaves the old harbour at nine and arrives at noon after {} stops; how long did it travel?"


def problem(question: str, verifier: str = "math", source: str = "train") -> Problem:
    return Problem(problem_id(question, "3", verifier), question, "3", verifier, source, "CC0", {})


def flags_of(
    tmp_path: Path, asked: list[Problem], trained: list[Problem], traces: list[dict] | None = None
) -> dict[str, str]:
    problems, kept = tmp_path / "problems.jsonl", tmp_path / "kept.jsonl"
    problems.write_text("".join(to_json(item) + "\n" for item in trained))
    kept.write_text("".join(json.dumps(row) + "\n" for row in traces or []))
    return flagged_questions({"task": asked}, problems, kept)["task"]


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
def test_each_rule_flags_what_it_says(tmp_path: Path, question: str, trained: str, rule: str | None) -> None:
    asked = problem(question)
    assert flags_of(tmp_path, [asked], [problem(trained)]) == ({asked.id: rule} if rule else {})


def test_procedural_questions_are_only_flagged_as_a_whole(tmp_path: Path) -> None:
    first, second = (problem(LONG.format(n), "reasoning_gym") for n in (2, 3))
    assert flags_of(tmp_path, [first, second], [first]) == {first.id: "exact"}


def test_a_question_inside_a_trace_is_flagged(tmp_path: Path) -> None:
    asked = problem(LONG.format(4), "reasoning_gym")
    row = {"thinking": f"As in: {LONG.format(4)} so 3.", "answer": "3", "source": "train"}
    assert flags_of(tmp_path, [asked], [problem("other")], [row]) == {asked.id: "in a trace"}


def test_eight_words_of_a_written_question_inside_a_trace_are_flagged(tmp_path: Path) -> None:
    asked = problem(LONG.format(4))
    row = {"thinking": "leaves the old harbour at nine and arrives at", "answer": "", "source": "train"}
    assert flags_of(tmp_path, [asked], [problem("other")], [row]) == {asked.id: "ngram in a trace"}


def test_every_eval_question_that_one_training_problem_matches_is_flagged(tmp_path: Path) -> None:
    asked = [problem(LONG.format(n)) for n in (2, 3, 4)]
    assert set(flags_of(tmp_path, asked, [problem(LONG.format(5))])) == {item.id for item in asked}


def test_flags_become_the_rows_of_their_questions() -> None:
    asked = [problem(f"question {n}") for n in range(3)]
    overlap = overlap_of({asked[2].id: "exact"}, asked)
    assert overlap.rules == {2: "exact"}
    assert overlap.questions == 3
