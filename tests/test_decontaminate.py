"""Decontamination and duplicates: tables of questions and what must become of them."""

import itertools
from pathlib import Path

import pytest

from pipeline.problems.dedupe import CANDIDATE_SIMILARITY, duplicates, shingles, similarity
from pipeline.problems.held import Held
from pipeline.problems.overlap import (
    EvalIndex,
    EvalQuestion,
    Match,
    Ngram,
    find_matches,
    flagged_questions,
    ngrams_of,
    program_of,
    runs_of,
    words_of,
)
from pipeline.problems.sources import normalise_question
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


def found_in(
    problems: list[Problem], procedural: set[str], questions: list[EvalQuestion]
) -> tuple[dict[str, Match], dict[str, set[Ngram]]]:
    """Problem id -> match, and the templates of the written sources."""
    index = EvalIndex(questions)
    index.learn_templates(problem for problem in problems if problem.source not in procedural)
    matches = find_matches(enumerate(problems), procedural, index)
    return {problems[place].id: match for place, match in matches}, index.templates


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
    matches, _ = found_in([problem(question)], set(), ASKED)
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
    matches, templates = found_in([problem(question, "chain_sum")], {"chain_sum"}, ASKED)
    assert [match.rule for match in matches.values()] == ([rule] if rule else [])
    assert templates == {}


@pytest.mark.parametrize(("num_others", "rules"), [(590, set()), (594, {"ngram"})], ids=["over 1%", "at 1%"])
def test_runs_in_more_than_a_hundredth_of_a_source_are_its_template(num_others: int, rules: set[str]) -> None:
    opening = "It takes 2 bolts of blue fiber and half that much"
    names = ["silk", "wool", "hemp", "jute", "flax", "yarn"]
    own = [problem(f"{opening} {name}, or less, for a {name} shirt that nobody wears.") for name in names]
    others = [problem(f"Question {n} is about something else, the number {n}.") for n in range(num_others)]
    matches, templates = found_in([*own, *others], set(), ASKED)
    assert {match.rule for match in matches.values()} == rules
    assert bool(templates["train"]) is not bool(rules)


def test_a_source_of_a_few_questions_has_no_template() -> None:
    copies = [problem(f"{ROBE} {n}") for n in range(4)]
    matches, _ = found_in([*copies, problem("What is 2 + 2?")], set(), ASKED)
    assert [match.rule for match in matches.values()] == ["ngram"] * 4


def test_the_32_short_questions_of_math500_are_covered() -> None:
    rows = [line.values or {} for line in read_rows(SHORT_QUESTIONS)]
    assert len(rows) == 32
    assert all(len(row["problem"].split()) < 8 for row in rows)
    short = [EvalQuestion("math500", str(n), row["problem"], False) for n, row in enumerate(rows)]
    copies = [problem(row["problem"].replace("$", "").rstrip(".?") + " ?") for row in rows]
    matches, _ = found_in(copies, set(), short)
    assert [copy.question for copy in copies if copy.id not in matches] == []


def test_duplicates_name_the_first_and_other_numbers_are_another_problem(tmp_path: Path) -> None:
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
    with Held(tmp_path / "held.jsonl") as held:
        for one in problems:
            held.append(one)
        found = {d.position: d for d in duplicates(held, {"chain_sum"})}
    assert {place: (d.rule, d.first) for place, d in found.items()} == {
        1: ("duplicate", 0),
        2: ("near_duplicate", 0),
    }
    assert found[1].detail == "gold '2' against '1'"
    assert 0.7 <= float(found[2].detail) < 1


PALINDROME = '''def make_palindrome(string: str) -> str:
    """ Find the shortest palindrome that begins with a supplied string. """
    if not string:
        return ""
    beginning_of_suffix = 0
    while not is_palindrome(string[beginning_of_suffix:]):
        beginning_of_suffix += 1
    return string + string[:beginning_of_suffix][::-1]


def is_palindrome(string: str) -> bool:
    return string == string[::-1]
'''
# the same under other names, without types and docstring, in another style
RENAMED = """from typing import Any

def complete(w):
    # make it read the same both ways
    if not w:
        return ''
    start = 0
    while not mirrored(w[start:]):
        start += 1
    return (w + w[:start][::-1])

def mirrored(w): return w == w[::-1]
"""
NAMESAKE = """def make_palindrome(number, base):
    digits = []
    while number:
        number, digit = divmod(number, base)
        digits.append(digit)
    for place, digit in enumerate(reversed(digits)):
        number += digit * base ** (len(digits) + place)
    return number
"""
HALF = """def make_palindrome(text):
    if not text:
        return ""
    cut = 0
    while not reads_both_ways(text[cut:]):
        cut += 1
    tail = text[:cut][::-1]
    return text + tail


def reads_both_ways(text):
    return all(one == other for one, other in zip(text, reversed(text)))
"""


def program(question: str, solution: str) -> Problem:
    metadata = {"solution": solution}
    return Problem(problem_id(question), question, '{"kind": "stdio"}', "code", "train", "MIT", metadata)


@pytest.mark.parametrize(
    ("solution", "rule"),
    [
        (PALINDROME, "body"),
        (RENAMED, "body"),
        (f"import sys\n\n{RENAMED}\nfor line in sys.stdin:\n    print(complete(line.strip()))\n", "body"),
        (HALF, "name"),
        (HALF.replace("make_palindrome", "extend"), None),
        (NAMESAKE, None),
        ("def make_palindrome(:", None),
        ("", None),
    ],
    ids=[
        "same",
        "renamed",
        "renamed, inside a program",
        "half, by name",
        "half",
        "namesake",
        "no Python",
        "none",
    ],
)
def test_a_solution_is_compared_by_body_and_name(solution: str, rule: str | None) -> None:
    asked = program(
        "Write a function that begins with what it is given and reads the same both ways.", PALINDROME
    )
    held = EvalQuestion("humaneval", asked.id, asked.question, False, program_of(asked))
    trained = program("Lengthen the word of each line.", solution)
    matches, _ = found_in([trained], set(), [held, *ASKED])
    assert [match.rule for match in matches.values()] == ([rule] if rule else [])
    flags = flagged_questions({"humaneval": [asked]}, [trained], [])
    assert flags["humaneval"] == ({asked.id: rule} if rule else {})


TESTED = "Write a function that {} of the given list.\n\n```python\n# tests\nassert {}\n```"
ENDS = TESTED.format("gives the sum of the first and last", "ends([4, 1]) == 5")


@pytest.mark.parametrize(
    ("question", "rule"),
    [
        (TESTED.format("gives the smallest", "least([4, 1]) == 1"), None),
        (TESTED.format("adds both ends", "ends([2, 3, 5]) == 7"), None),
        (TESTED.format("adds both ends", "ends([4, 1]) == 5"), "ngram"),
        (ENDS, "exact"),
    ],
    ids=["another", "the name of its function", "its test", "same"],
)
def test_what_every_question_of_programs_has_is_no_match(question: str, rule: str | None) -> None:
    asked = EvalQuestion("mbpp", "1", ENDS, False)
    matches, _ = found_in([program(question, "")], set(), [asked])
    assert [match.rule for match in matches.values()] == ([rule] if rule else [])


def test_what_solutions_share_is_no_match() -> None:
    """Loops over lines and sums are in every program; a solution of few tokens is in many."""
    short = EvalQuestion(
        "mbpp", "1", "Add two numbers that are given.", False, "def add(a, b):\n    return a + b\n"
    )
    trained = program(
        "Sum up.", "def total(items):\n    s = 0\n    for a in items:\n        s = s + a\n    return s\n"
    )
    assert found_in([trained], set(), [short])[0] == {}


def test_without_a_fence_a_question_has_all_its_runs() -> None:
    """What finished runs were decontaminated by; with a fence there are fewer, never others."""
    plain = normalise_question("Let $x$ be a number such that x + 3 = 12, and find x. It is not zero.")
    assert list(runs_of(plain)) == list(ngrams_of(words_of(plain)))
    fenced = plain.replace(", and", " ``` and")
    assert set(runs_of(fenced)) < set(ngrams_of(words_of(plain.replace(", and", " and"))))


@pytest.mark.parametrize("fence", ["", "```\n"])
def test_a_question_of_short_parts_is_looked_for_as_a_whole(fence: str) -> None:
    """Neither its text nor its code has 8 words, both together have."""
    question = f"What does this code print here?\n{fence}print sum of two"
    index = EvalIndex([EvalQuestion("made", "1", question, procedural=False)])
    [match, *_] = index.inside(f"The user asks: {question}, so let us see.")
    assert match.rule in ("in a trace", "ngram in a trace")
    assert not list(index.inside("What does this code print? Nothing else is asked here by anyone at all."))


def test_near_duplicates_are_those_of_the_whole_index(tmp_path: Path) -> None:
    """Group by group, over bands that are held as digests, as datasketch's index over all problems finds them."""
    from datasketch import MinHash, MinHashLSH

    words = ["cat", "dog", "hen", "owl", "fox"]
    questions = [
        f"Say why the {one} of the old farm that stands behind the hill near the wide and slow river went with "
        f"the {two} to the small town on the other side, and what the {three} did there on day {number % 3}."
        for number, (one, two, three) in enumerate(itertools.product(words, repeat=3))
    ]
    problems = [problem(question, gold=str(place % 2)) for place, question in enumerate(questions)]
    index, expected = MinHashLSH(threshold=CANDIDATE_SIMILARITY, num_perm=128), {}
    for place, one in enumerate(problems):
        runs = shingles(one.question)
        sketch = MinHash(num_perm=128)
        sketch.update_batch([run.encode() for run in runs])
        near = [
            (similarity(runs, shingles(problems[other].question)), -other)
            for other in index.query(sketch)
            if (problems[other].gold, problems[other].question[-2]) == (one.gold, one.question[-2])
        ]
        score, other = max(near, default=(0.0, 0))
        if score >= 0.7:
            expected[place] = (-other, f"{score:.3f}")
        else:
            index.insert(place, sketch)
    with Held(tmp_path / "held.jsonl") as held:
        for one in problems:
            held.append(one)
        found = {d.position: (d.first, d.detail) for d in duplicates(held, set())}
    assert found == expected
    assert 10 < len(expected) < 120
