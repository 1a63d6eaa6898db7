"""docs/first-hour.md, run as it stands: from an empty directory outside the checkout to a student and its report."""

import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.records import read_examples
from tests.conftest import ROOT
from tests.students_fixtures import CHATML

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/first-hour.md").read_text()
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]
FILES = dict(re.findall(r"```yaml\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
WITHOUT_THINKING = 'make -C "$RETORT" all RECIPE="$PWD/plain.yaml" RUNS="$PWD/runs" ADOPT=first'
UNTOUCHED = (".py", ".yaml", ".json", ".jinja", ".md", ".toml", ".lock", ".safetensors")


def checkout() -> dict[str, tuple[int, int]]:
    """Size and time of every file that a person could have written."""
    walked = (Path(folder) / name for top in ("pipeline", "teachers", "students", "eval", "recipes", "docs", "runs")
              for folder, _, names in os.walk(ROOT / top) for name in names)  # fmt: skip
    files = [path for path in walked if path.suffix in UNTOUCHED]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def write_sums(path: Path) -> None:
    chance = random.Random(7)
    pairs = [(chance.randrange(10, 100), chance.randrange(10, 100)) for _ in range(30)]
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["task", "result"])
        for a, b in pairs:
            rows.writerow([f"State the final answer to the following arithmetic problem: {a} + {b} =", a + b])


def plain_recipe() -> str:
    """The same traces for a student that writes no thinking block."""
    student = "{model: my-student, thinking: none, template: ./plain.jinja}"
    changes = {"name: first": "name: plain", "{model: my-student}": student, "[base, student]": "[student]"}
    text = FILES["first.yaml"]
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    return text


@dataclass(frozen=True)
class FirstHour:
    """The reader's directory, and the checkout before and after all commands of the page."""

    directory: Path
    before: dict[str, tuple[int, int]]
    after: dict[str, tuple[int, int]]


@pytest.fixture(scope="module")
def first_hour(tmp_path_factory: pytest.TempPathFactory) -> FirstHour:
    directory = tmp_path_factory.mktemp("elsewhere") / "first"
    directory.mkdir()
    write_sums(directory / "sums.csv")
    skipped = shutil.ignore_patterns("*.py", "__pycache__")
    shutil.copytree(ROOT / "students/embedded", directory / "my-student", ignore=skipped)
    for name, text in {**FILES, "plain.yaml": plain_recipe(), "plain.jinja": CHATML}.items():
        (directory / name).write_text(text)
    before = checkout()
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "RETORT": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for command in [*COMMANDS, WITHOUT_THINKING]:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=directory,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return FirstHour(directory, before, checkout())


@pytest.fixture
def first(first_hour: FirstHour) -> Path:
    return first_hour.directory


def test_the_page_names_the_files_and_the_two_commands() -> None:
    assert set(FILES) == {"prompt.yaml", "first.yaml"}
    assert [command.split()[0] for command in COMMANDS] == ["retort", "retort", "retort", "make", "retort"]


def test_a_student_and_a_report_are_there(first: Path) -> None:
    run = first / "runs/first"
    assert {path.name for path in (run / "train/checkpoint").iterdir()} >= {
        "model.safetensors",
        "tokenizer.json",
    }
    results = json.loads((run / "eval/results.json").read_text())
    assert {"base", "student"} <= set(results["tasks"]["chain_sum"])
    assert "teacher" not in results["tasks"]["chain_sum"]
    assert "my-student" in (run / "report/report.html").read_text()
    assert json.loads((run / "train/manifest.json").read_text())["counts"]["kept"] >= 15


def test_no_file_of_the_checkout_was_written(first_hour: FirstHour) -> None:
    assert first_hour.after == first_hour.before


def test_what_the_reader_wrote_is_what_was_used(first: Path) -> None:
    config = json.loads((first / "runs/first/generate/manifest.json").read_text())["config"]
    assert (
        config["prompt"]
        == "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}."
    )
    problems = [json.loads(line) for line in (first / "runs/first/problems/problems.jsonl").open()]
    assert {problem["source"] for problem in problems} == {"sums"}
    assert str(first) not in json.dumps(
        json.loads((first / "runs/first/problems/manifest.json").read_text())["config"]
    )


def test_a_student_without_thinking_learns_it_as_text_and_buys_nothing(first: Path) -> None:
    usage = json.loads((first / "runs/plain/generate/manifest.json").read_text())["usage"]
    assert (usage["sampled"], usage["adopted"] > 0) == (0, True)
    assert (
        "reasoning_content" in next(read_examples(first / "runs/plain/filter/examples.parquet")).messages[-1]
    )
    template = (first / "runs/plain/train/checkpoint/chat_template.jinja").read_text()
    assert template == CHATML
    assert (first / "runs/plain/report/report.html").is_file()
