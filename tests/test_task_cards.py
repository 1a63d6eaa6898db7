"""Every task card loads, takes an offline copy, and asks in the form that its verifier reads."""

import json
from pathlib import Path

import pytest

from pipeline.problems.tasks import task_problems
from pipeline.recipe.cards import card_names, task_card
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.sources import CardTask
from pipeline.verify.table import VERSIONS

# one row of each data set as its columns are on the hub, with made-up content, and the gold answer it must give
ROWS = {
    "gsm8k": ({"question": "Two and three?", "answer": "Two plus three is <<2+3=5>>5.\n#### 5"}, "5"),
    "math500": (
        {"problem": "Halve 1.", "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 1},
        "\\frac{1}{2}",
    ),
    "aime24": ({"problem": "What is 700 + 77?", "answer": "777"}, "777"),
    "aime25": ({"problem": "What is 70 more than 0?", "answer": "070"}, "070"),
    "gpqa_diamond": (
        {
            "Question": "Which is a noble gas?",
            "Correct Answer": "neon",
            "Incorrect Answer 1": "iron",
            "Incorrect Answer 2": "zinc",
            "Incorrect Answer 3": "lead",
        },
        None,
    ),
    "mmlu_pro": (
        {"question": "Which is even?", "options": ["1", "3", "4"], "answer": "C", "category": "math"},
        "C",
    ),
    "humaneval": (
        {
            "prompt": 'def one() -> int:\n    """Give one."""\n',
            "entry_point": "one",
            "canonical_solution": "    return 1\n",
            "test": "def check(candidate):\n    assert candidate() == 1\n",
        },
        '{"kind": "function", "tests": "def check(candidate):\\n    assert candidate() == 1\\n", "entry_point": "one"}',
    ),
    "mbpp": (
        {
            "prompt": "Write a function that gives one.",
            "code": "def one():\n    return 1",
            "test_imports": [],
            "test_list": ["assert one() == 1"],
        },
        '{"kind": "function", "tests": "assert one() == 1", "entry_point": null}',
    ),
    "livecodebench": (
        {
            "question_content": "Print the number.",
            "starter_code": "",
            "metadata": "{}",
            "contest_date": "2025-03-01T00:00:00",
            "public_test_cases": '[{"input": "1", "output": "1", "testtype": "stdin"}]',
            "private_test_cases": '[{"input": "2", "output": "2", "testtype": "stdin"}]',
        },
        '{"kind": "stdio", "cases": [{"input": "1", "output": "1"}, {"input": "2", "output": "2"}]}',
    ),
    "svamp": ({"question_concat": "Ann has 2 pens and gets 1. How many has she?", "Answer": "3.0"}, "3.0"),
}


def test_there_is_a_row_for_every_card() -> None:
    assert set(card_names("task")) == set(ROWS)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_card_invents_no_revision_and_names_what_exists(name: str) -> None:
    card = task_card(name)
    assert card.revision is None
    assert card.hub
    assert card.hub in card.facts["hub"]
    assert card.verifier in VERSIONS
    assert card.prompt is None or card.prompt in PROMPTS
    assert card.licence


@pytest.mark.parametrize("name", sorted(ROWS))
def test_an_offline_copy_serves_a_card(name: str, tmp_path: Path) -> None:
    row, gold = ROWS[name]
    path = tmp_path / "copy.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (problem,) = task_problems(CardTask(task=name, path=str(path)), task_card(name), seed=0).problems
    assert problem.licence == task_card(name).licence
    assert gold is None or problem.gold == gold


def test_the_options_of_gpqa_are_in_the_question_and_the_gold_is_a_letter(tmp_path: Path) -> None:
    path = tmp_path / "copy.jsonl"
    path.write_text(json.dumps(ROWS["gpqa_diamond"][0]) + "\n")
    task, card = CardTask(task="gpqa_diamond", path=str(path)), task_card("gpqa_diamond")
    (problem,) = task_problems(task, card, seed=0).problems
    assert f"{problem.gold}. neon" in problem.question
    assert "letter" in PROMPTS[str(card.prompt)].user
    assert task_problems(task, card, seed=1).problems[0].question == problem.question
