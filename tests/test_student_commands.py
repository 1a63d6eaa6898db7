"""chat and publish on a finished run, as a user types them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from pipeline.context import Context
from pipeline.flags import TrainFlags
from pipeline.recipe.cards import Tags
from pipeline.run.contract import Counts
from students.chat import DIM, PLAIN, show
from students.train import run
from tests.finished_run import finish
from tests.students_fixtures import finished_filter, sums

Retort = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A run that was trained on the CPU and has a report with a model card."""
    context = finished_filter(tmp_path_factory.mktemp("run"), sums(16), "train.method=lora")
    run(context, TrainFlags(device="cpu"))
    finish(context, "report", Counts(0, 0), {"README.md": b"---\nlicense: apache-2.0\n---\n# small\n"})
    return context


def arguments(context: Context) -> list[str]:
    return ["--recipe", context.start.recipe, "--runs", str(context.runs), "--set", "train.batch_size=8"]


@pytest.mark.slow
def test_a_dry_run_writes_both_cards_and_contacts_nobody(finished: Context, retort: Retort) -> None:
    done = retort("publish", *arguments(finished), "--dry-run")
    assert done.returncode == 0, done.stderr
    target = finished.directory("publish")
    assert (target / "model/README.md").read_text().endswith("# small\n")
    assert (target / "model/model.safetensors").is_file()
    assert json.loads((target / "model/adapter/adapter_config.json").read_text())["r"] == 16
    card = (target / "data/README.md").read_text()
    assert "16 verified chain-of-thought examples" in card
    assert "temperature 1, top_p 1, 256 tokens" in card
    assert str(finished.runs) not in card
    listed = (target / "model/SHA256SUMS").read_text()
    assert "  model.safetensors\n" in listed
    assert "  adapter/adapter_model.safetensors\n" in listed
    subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=target / "model", check=True
    )


@pytest.mark.slow
def test_publishing_without_a_repository_says_what_to_name(finished: Context, retort: Retort) -> None:
    done = retort("publish", *arguments(finished))
    assert done.returncode == 2
    assert "name --model-repo and/or --data-repo (owner/name), or give --dry-run" in done.stderr


def test_an_unfinished_run_cannot_be_published(tmp_path: Path, retort: Retort) -> None:
    context = finished_filter(tmp_path, sums(2))
    done = retort("publish", *arguments(context), "--dry-run")
    assert done.returncode == 1
    assert "publish needs" in done.stderr
    assert "Run: make train" in done.stderr


SPOKEN = {
    "opened by the prompt": (
        True,
        ["2 + ", "2\n</thi", "nk>\n\n", "4"],
        f"{DIM}2 + 2\n</think>{PLAIN}\n\n4\n",
    ),
    "opened by the student": (False, ["<think>\n2", "</think> 4"], f"{DIM}<think>\n2</think>{PLAIN} 4\n"),
    "no thinking": (False, ["4", " it is"], "4 it is\n"),
    "never closed": (True, ["2 + ", "2"], f"{DIM}2 + 2{PLAIN}\n"),
}


@pytest.mark.parametrize("name", list(SPOKEN))
def test_exactly_the_thinking_is_dimmed(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, pieces, printed = SPOKEN[name]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert list(show(iter(pieces), Tags(opened_by_prompt=opened))) == pieces
    assert capsys.readouterr().out == printed


@pytest.mark.slow
def test_chat_answers_until_an_empty_line(finished: Context, retort: Retort) -> None:
    done = retort("chat", *arguments(finished), "--device", "cpu", input="What is 1 + 1?\n\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "\x1b" not in done.stdout
