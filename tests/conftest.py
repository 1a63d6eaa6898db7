"""Fixtures that several test modules share, and the command line as a user runs it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

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


@pytest.fixture(scope="session")
def retort() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m pipeline ...` from the checkout, as a user would."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, **options
        )

    return run


def is_running(pid: int) -> bool:
    """A process that has ended and that nobody has waited for yet runs no more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
