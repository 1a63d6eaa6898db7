"""Revisions that cards and recipes leave null: one file a run, read by every stage, and none invented."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelInfo

from eval.models import compared_models, loaded
from pipeline.context import load_context
from pipeline.errors import RecipeError, StageError
from pipeline.flags import EngineFlags
from pipeline.recipe.cards import SampledModel, sampled_student, sampled_teacher, student_card, teacher_card
from pipeline.run.revisions import known_revision, pinned, read_revisions, same_revision


def teacher(name: str) -> SampledModel:
    return sampled_teacher(name, teacher_card(name))


def base(name: str) -> SampledModel:
    return sampled_student("base", student_card(name))


TEACHER, BASE = teacher("gpt-oss-120b"), base("qwen3-0.6b-base")
KNOWN = {f"models/{TEACHER.model}": "abc", f"models/{BASE.model}": "def", TEACHER.model: "of a data set"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that resolved a teacher, a base and a data set."""
    directory = tmp_path / "ours"
    directory.mkdir()
    (directory / "revisions.json").write_text(json.dumps(KNOWN))
    return directory


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No hub; and its cache, in which one model lies."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    held = tmp_path / "cache/models--Qwen--Qwen3-0.6B-Base"
    (held / "snapshots/0a1b").mkdir(parents=True)
    (held / "snapshots/0a1b/config.json").write_text("{}")
    (held / "refs").mkdir()
    (held / "refs/main").write_text("0a1b")
    return tmp_path / "cache"


@pytest.mark.parametrize(("model", "commit"), [(TEACHER, "abc"), (BASE, "def")], ids=["teacher", "base"])
def test_what_the_run_resolved_is_enforced(run: Path, model: SampledModel, commit: str) -> None:
    found = pinned(run, model)
    assert found.revision == found.identity["revision"] == commit == known_revision(run, model.model)
    assert replace(found, revision=None, identity=model.identity) == model
    assert read_revisions(run / "revisions.json") == KNOWN


@pytest.mark.parametrize("model", [teacher("embedded-moe"), base("embedded-dense")])
def test_a_model_of_this_machine_needs_no_revision(tmp_path: Path, model: SampledModel) -> None:
    assert pinned(tmp_path, model) is model
    assert not (tmp_path / "revisions.json").exists()


def test_a_stated_revision_is_left_alone(run: Path) -> None:
    stated = replace(BASE, revision="123")
    assert pinned(run, stated) is stated


def test_eval_loads_the_revisions_that_generate_and_train_resolved(run: Path, recipe_file: Path) -> None:
    changes = [
        "generate.teacher=gpt-oss-120b",
        "train.student=qwen3-0.6b-base",
        "eval.compare=[base, teacher]",
    ]
    models = compared_models(load_context(recipe_file, run.parent, overrides=changes))
    served = EngineFlags(engine="server", urls=("http://127.0.0.1:1/v1",))
    found = {name: loaded(run, model, EngineFlags()).revision for name, model in models.items()}
    assert found == {"base": "def", "teacher": "abc"}
    assert loaded(run, models["teacher"], served).revision is None


def test_without_a_hub_the_downloaded_commit_is_taken_and_written_down(tmp_path: Path, offline: Path) -> None:
    assert offline.is_dir()
    assert pinned(tmp_path / "run", BASE).revision == "0a1b"
    assert json.loads((tmp_path / "run/revisions.json").read_text()) == {f"models/{BASE.model}": "0a1b"}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["revisions.json"]


def test_what_another_process_resolved_meanwhile_stands(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def main_of(hub: HfApi, name: str) -> ModelInfo:
        (run / "revisions.json").write_text(json.dumps({f"models/{name}": "theirs"}))
        return ModelInfo(id=name, sha="ours")

    monkeypatch.setattr(HfApi, "model_info", main_of)
    found = pinned(run, replace(TEACHER, model="owner/new"))
    assert found.revision == known_revision(run, "owner/new") == "theirs"


def test_a_revision_that_cannot_be_resolved_is_never_invented(tmp_path: Path, offline: Path) -> None:
    assert offline.is_dir()
    with pytest.raises(RecipeError, match="its card's revision is null and cannot be resolved"):
        pinned(tmp_path / "run", TEACHER)
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_not_a_hub_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"not a hub id!: is neither a hub id .*correct `model` in its card"
    ):
        pinned(tmp_path, replace(TEACHER, model="not a hub id!"))
    assert not (tmp_path / "revisions.json").exists()


def test_traces_of_two_revisions_are_never_mixed(run: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    same_revision(TEACHER, run, theirs)
    (theirs / "revisions.json").write_text(json.dumps({f"models/{TEACHER.model}": "other"}))
    with pytest.raises(RecipeError, match="two revisions are never mixed"):
        same_revision(TEACHER, run, theirs)


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": null}'], ids=["torn", "a list", "null"])
def test_a_damaged_file_says_what_to_do(run: Path, text: str) -> None:
    (run / "revisions.json").write_text(text)
    with pytest.raises(StageError, match=r"revisions.json: .*remove it to resolve again"):
        pinned(run, TEACHER)
