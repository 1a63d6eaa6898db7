"""publish without a network: what is laid out for the hub and what is refused (see also test_student_commands)."""

import hashlib
from pathlib import Path

import pytest

from pipeline.context import Context
from pipeline.errors import RecipeError, StageError
from pipeline.records import Example, write_examples
from pipeline.report.publish import run
from pipeline.run.contract import Counts
from tests.finished_run import Run, finish


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """A run with made-up weights, an adapter and three examples under two licences."""
    context = Run(tmp_path).context
    chat = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
    examples = [Example(str(n), 0, chat, 5, 1, "sums", "MIT" if n else "Apache-2.0") for n in range(3)]
    path = tmp_path / "examples.parquet"
    write_examples(path, examples)
    finish(context, "filter", Counts(5, 3, {"wrong": 2}), {"examples.parquet": path.read_bytes()})
    files = {"checkpoint/model.safetensors": b"weights", "adapter/adapter_config.json": b"{}"}
    finish(context, "train", Counts(3, 3), files)
    finish(context, "report", Counts(0, 0), {"README.md": b"# the card\n"})
    return context


def test_a_dry_run_lays_out_the_student_with_its_card_and_sums(context: Context) -> None:
    run(context, None, None, dry_run=True)
    target = context.directory("publish") / "model"
    held = {str(path.relative_to(target)): path for path in target.rglob("*") if path.is_file()}
    files = {"model.safetensors", "adapter/adapter_config.json", "README.md"}
    assert set(held) == files | {"SHA256SUMS"}
    assert held["README.md"].read_text() == "# the card\n"
    sums = dict(line.split("  ")[::-1] for line in held["SHA256SUMS"].read_text().splitlines())
    assert sums == {name: hashlib.sha256(held[name].read_bytes()).hexdigest() for name in files}


def test_the_card_of_the_examples_says_what_they_are_and_under_which_licences(context: Context) -> None:
    run(context, None, None, dry_run=True)
    target = context.directory("publish") / "data"
    assert (target / "data/train.parquet").is_file()
    card = (target / "README.md").read_text()
    for part in (
        "license: other",
        "3 verified chain-of-thought examples",
        "Of 5 traces 3 were kept and 2 dropped",
        "| wrong | 2 |",
        "- MIT: 2 examples\n- Apache-2.0: 1 examples",
        "is allowed by its licence (Apache-2.0)",
    ):
        assert part in card
    assert str(context.runs) not in card


def test_what_cannot_be_published_is_refused(context: Context) -> None:
    with pytest.raises(RecipeError, match=r"publish: name --model-repo and/or --data-repo \(owner/name\)"):
        run(context, None, None, dry_run=False)
    (context.checkpoint / "model.safetensors").write_bytes(b"others")
    with pytest.raises(StageError, match=r"model.safetensors: was changed after train finished"):
        run(context, None, None, dry_run=True)
    (context.directory("report") / "manifest.json").unlink()
    (context.checkpoint / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(StageError, match=r"publish needs .*report has not run. Run: make report"):
        run(context, None, None, dry_run=True)
