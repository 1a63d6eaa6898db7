"""publish without a network: what is laid out for the hub and what is refused (see also test_student_commands)."""

import errno
import hashlib
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
import yaml
from markdown_it import MarkdownIt

from pipeline.context import Context
from pipeline.errors import RecipeError, StageError
from pipeline.filter.exports import export
from pipeline.records import Example, write_examples
from pipeline.report.licences import license_fields
from pipeline.report.publish import data_card, run
from pipeline.report.use import place_of
from pipeline.run.contract import Counts, Start, held, read_manifest
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


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        ("restricted", "Training on the teacher's outputs is restricted by its licence (Guarded-1.0)."),
        ("unstated", "The teacher's card does not say whether its licence (Guarded-1.0) allows training"),
    ],
)
def test_the_card_of_the_examples_claims_nothing_that_nobody_read(
    context: Context, outputs: str, said: str
) -> None:
    changes = {"licence": "Guarded-1.0", "training_on_outputs": outputs}
    teachers = {context.teacher_name: context.teacher_card.model_copy(update=changes)}
    manifest = read_manifest(context.directory("filter"))
    assert manifest is not None
    guarded = replace(context, cards=replace(context.cards, teachers=teachers))
    assert said in data_card(guarded, manifest, Counter({"MIT": 3}))


def test_the_card_says_how_to_use_the_student_where_it_is_published(context: Context) -> None:
    card = context.directory("report") / "README.md"
    finish(replace(context, start=Start(force=True)), "report", Counts(0, 0), {
        "README.md": f"vllm serve {place_of(context)}\n".encode()
    })  # fmt: skip
    assert str(context.runs) not in card.read_text()
    run(context, "lab/small", None, dry_run=True)
    assert (context.directory("publish") / "model/README.md").read_text() == "vllm serve lab/small\n"
    run(context, None, None, dry_run=True)
    assert (context.directory("publish") / "model/README.md").read_text() == "vllm serve .\n"


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


NASTY = "MIT\nlicense: apache-2.0\n---\n# [owned](http://x) ![y](z) `a` *b* <b> \x1b[31m"


def test_no_licence_and_no_source_writes_markup_or_front_matter(context: Context, tmp_path: Path) -> None:
    found = Counter({NASTY: 3})
    card = data_card(context, read_manifest(context.directory("filter")), found)
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "other"
    assert yaml.safe_load(front)["license_name"] == " ".join(NASTY.split())
    html = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    assert not re.search(r"<a |<img|<em>b|<b>|<code>a", html)
    assert "\x1b" not in text
    assert html.count("<h1>") == 1


@pytest.mark.parametrize(
    ("licences", "fields"),
    [
        (["MIT"], {"license": "mit"}),
        (["Apache-2.0", "Apache-2.0 "], {"license": "apache-2.0"}),
        (["MIT", "CC-BY-4.0"], {"license": "other", "license_name": "CC-BY-4.0 and MIT"}),
        (["Apache-2.0 (reasoning-gym)", "Apache-2.0"], {"license": "apache-2.0"}),
        (["CC BY-SA 4.0"], {"license": "cc-by-sa-4.0"}),
        (["Qwen Research"], {"license": "other", "license_name": "Qwen Research"}),
        ([], {"license": "other", "license_name": "unknown"}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_licence_that_the_hub_does_not_know_is_stated_by_its_name(
    licences: list[str], fields: dict[str, str]
) -> None:
    assert license_fields(licences) == fields


def test_a_second_publish_is_refused_while_one_runs(context: Context) -> None:
    with held(context.directory("publish")), pytest.raises(StageError, match=r"another process \(pid \d+\)"):
        run(context, None, None, dry_run=True)
    run(context, None, None, dry_run=True)


def test_nothing_is_written_or_removed_through_a_link(context: Context, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "model").mkdir(parents=True)
    (mine / "model/thesis.tex").write_text("years of work")
    context.directory("publish").symlink_to(mine)
    with pytest.raises(StageError, match=r"publish: is a symbolic link; .*Remove the link"):
        run(context, None, None, dry_run=True)
    context.directory("publish").unlink()
    context.directory("publish").mkdir()
    (context.directory("publish") / "model").symlink_to(mine / "model")
    run(context, None, None, dry_run=True)
    assert (mine / "model/thesis.tex").read_text() == "years of work"
    assert [path.name for path in (mine / "model").iterdir()] == ["thesis.tex"]


def test_what_lies_beside_the_checkpoint_is_not_published_and_all_files_have_one_mode(
    context: Context,
) -> None:
    (context.checkpoint / "notes.txt").write_text("private")
    (context.checkpoint / "model.safetensors").chmod(0o600)
    run(context, None, None, dry_run=True)
    target = context.directory("publish") / "model"
    assert not (target / "notes.txt").exists()
    assert len({path.stat().st_mode for path in target.rglob("*") if path.is_file()}) == 1


@pytest.mark.parametrize("command", ["publish", "export"])
def test_a_disk_that_takes_nothing_is_one_error(
    context: Context, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests may run as root, whom no permission stops: the system's own call refuses."""
    opened = Path.open

    def refusing(path: Path, mode: str = "r", *more: object, **others: object) -> IO[Any]:
        if "w" in mode:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, mode, *more, **others)

    monkeypatch.setattr(Path, "open", refusing)
    with pytest.raises(StageError, match=rf"{command}: cannot be read or written .*Read-only file system"):
        run(context, None, None, dry_run=True) if command == "publish" else export(context, "trl")
    monkeypatch.undo()
    run(context, None, None, dry_run=True) if command == "publish" else export(context, "trl")
