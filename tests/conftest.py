"""Fixtures that several test modules share, and the command line as a user runs it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from students.format import Format

ROOT = Path(__file__).resolve().parent.parent

# a shell that puts these tests into the background starts them deaf to SIGINT, and so all that they start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

RECIPE = """\
name: small
seed: 0
problems:
  sources:
    - {reasoning_gym: chain_sum, size: 20, config: {min_terms: 2, max_terms: 3}}
generate:
  teacher: embedded-moe
  prompt: boxed
  samples: {keep: 1, max: 2}
  sampling: {temperature: 1.0, top_p: 1.0, max_tokens: 256}
filter:
  rules: [finished, closed_thinking, correct]
  select: {per_problem: 1, prefer: shortest}
train:
  student: embedded-dense
  method: full
  epochs: 1
  learning_rate: 1.0e-3
  max_length: 512
eval:
  tasks: [{reasoning_gym: chain_sum, size: 20, config: {min_terms: 2, max_terms: 3}}]
  samples: 1
  compare: [base, student, teacher]
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A small valid recipe on disk."""
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


def command_line(*arguments: object) -> list[str]:
    """`python -m pipeline ...`, as a user would type it in the checkout."""
    return [sys.executable, "-m", "pipeline", *map(str, arguments)]


@pytest.fixture(scope="session")
def retort() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command of the pipeline from the checkout."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            command_line(*arguments), cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
            **options,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The URL of a scripted teacher."""
    from tests.served import scripted_server

    with scripted_server(0.0) as address:
        yield address


@pytest.fixture(scope="session")
def student_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny student of tests/students_fixtures.py on disk, which nobody changes."""
    from tests.students_fixtures import build_student

    return build_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def tiny(student_directory: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(student_directory, dtype=torch.float32)


@pytest.fixture(scope="module")
def style(student_directory: Path) -> "Format":
    from students.format import load_format
    from tests.students_fixtures import card_of, sampled

    card = card_of(student_directory)
    return load_format(card, sampled(card))


def is_running(pid: int) -> bool:
    """A process that has ended and that nobody has waited for yet runs no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
