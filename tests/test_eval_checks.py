"""What eval refuses before an engine starts, each with a message that says what to do."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from eval.flags import EvalFlags, names_by_model, urls_by_model
from eval.models import check_model, check_template, compared_models
from eval.stage import flags_of, load_tasks, plan_of
from pipeline.cards import sampled_student
from pipeline.errors import RecipeError, StageError
from pipeline.recipe import Recipe, load_recipe
from pipeline.sampling import EngineFlags
from pipeline.stage import Counts, Plan, Start, begin, hash_file
from tests.conftest import ROOT


def recipe_with(recipe_file: Path, *overrides: str) -> Recipe:
    return load_recipe(recipe_file, list(overrides))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A finished train directory whose checkpoint is a copy of the embedded base."""
    train = tmp_path / "train"
    model = sampled_student("embedded-dense")
    stage = begin(train, Plan("train", 1, {"student": {**model.identity, "eos": model.eos}}, {}, 0), Start())
    assert stage is not None
    with stage:
        shutil.copytree(
            ROOT / "students/embedded", train / "checkpoint", ignore=shutil.ignore_patterns("*.py")
        )
        stage.finish(Counts(1, 1), {"checkpoint/chat_template.jinja": None})
    return train


def test_a_task_without_questions_is_refused(recipe_file: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    recipe = recipe_with(recipe_file, f"eval.tasks=[{{path: {empty}}}]")
    with pytest.raises(RecipeError, match="eval task empty: has no question with an answer"):
        load_tasks(recipe, {}, tmp_path)


def test_a_model_without_an_end_token_is_refused(trained: Path) -> None:
    checkpoint = trained / "checkpoint"
    carded = dataclasses.replace(sampled_student("embedded-dense"), model=str(checkpoint))
    model = dataclasses.replace(carded, eos=None)
    check_model("student", model, 384)
    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
        values = json.loads((checkpoint / name).read_text())
        (checkpoint / name).write_text(
            json.dumps({k: v for k, v in values.items() if not k.startswith("eos")})
        )
    with pytest.raises(RecipeError, match=r"student .* names no end-of-sequence token"):
        check_model("student", model, 384)
    check_model("student", carded, 384)


def test_another_end_token_than_the_trained_one_is_refused(trained: Path) -> None:
    student = sampled_student("embedded-dense", checkpoint=trained / "checkpoint")
    with pytest.raises(StageError, match=r"the student's card says eos <\|other\|>, and .* trained with"):
        check_template(trained, dataclasses.replace(student, eos="<|other|>"))


def test_a_token_budget_that_a_model_cannot_hold_is_refused() -> None:
    model = sampled_student("embedded-dense")
    with pytest.raises(RecipeError, match=r"base holds .* no room is left for a question"):
        check_model("base", model, model.max_model_len)


def test_another_template_than_the_trained_one_is_refused(trained: Path) -> None:
    student = sampled_student("embedded-dense", checkpoint=trained / "checkpoint")
    check_template(trained, student)
    template = trained / "checkpoint/chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(
        StageError, match=r"chat_template.jinja: is not the chat template that the student was"
    ):
        check_template(trained, student)


def test_a_student_that_train_did_not_write_is_refused(trained: Path) -> None:
    student = sampled_student("embedded-dense", checkpoint=trained / "checkpoint")
    manifest = json.loads((trained / "manifest.json").read_text())
    config = trained / "checkpoint/config.json"
    manifest["outputs"]["checkpoint/config.json"] = {"sha256": hash_file(config), "rows": None}
    (trained / "manifest.json").write_text(json.dumps(manifest))
    check_template(trained, student)
    config.write_text(config.read_text() + " ")
    with pytest.raises(StageError, match=r"config.json: was changed after train finished"):
        check_template(trained, student)


@pytest.mark.parametrize("text", ["{", "[1]", '"x"'], ids=["torn", "list", "text"])
def test_a_checkpoint_file_that_is_no_json_object_is_named(trained: Path, text: str) -> None:
    checkpoint = trained / "checkpoint"
    (checkpoint / "generation_config.json").write_text(text)
    model = dataclasses.replace(sampled_student("embedded-dense"), model=str(checkpoint))
    with pytest.raises(
        RecipeError, match=r"generation_config.json: is no JSON object .* write the checkpoint"
    ):
        check_model("student", model, 384)


def test_a_renamed_task_keeps_the_version_of_its_card(recipe_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy.jsonl"
    path.write_text("{}")
    recipe = recipe_with(recipe_file, f"eval.tasks=[{{task: gsm8k, name: mine, path: {path}}}]")
    assert plan_of(recipe, {}, {}, {}).config["task_cards"]["mine"]["version"] == 1


def test_other_thinking_tags_than_the_trained_ones_are_refused(trained: Path) -> None:
    student = sampled_student("embedded-dense", checkpoint=trained / "checkpoint")
    identity = {**student.identity, "thinking": {**student.identity["thinking"], "open": "<reason>"}}
    with pytest.raises(StageError, match=r"the student's card says thinking .*<reason>.* was trained with"):
        check_template(trained, dataclasses.replace(student, identity=identity))


def test_a_changed_checkpoint_changes_the_plan(recipe_file: Path, trained: Path) -> None:
    recipe = recipe_with(recipe_file)
    before = plan_of(recipe, compared_models(recipe, trained), {}, {}).fingerprint
    config = trained / "checkpoint/generation_config.json"
    config.write_text(config.read_text() + "\n")
    assert plan_of(recipe, compared_models(recipe, trained), {}, {}).fingerprint != before


def test_files_of_one_name_are_told_apart_and_a_missing_one_is_refused(
    recipe_file: Path, tmp_path: Path
) -> None:
    paths = [tmp_path / folder / "test.jsonl" for folder in ("a", "b")]
    tasks = ", ".join(f"{{path: {path}, name: {path.parent.name}}}" for path in paths)
    recipe = recipe_with(recipe_file, f"eval.tasks=[{tasks}]")
    for path in paths:
        path.parent.mkdir()
        path.write_text("{}")
    before = plan_of(recipe, {}, {}, {})
    assert set(before.inputs) == set(map(str, paths))
    paths[0].write_text("{ }")
    assert plan_of(recipe, {}, {}, {}).fingerprint != before.fingerprint
    paths[1].unlink()
    with pytest.raises(RecipeError, match=r"b/test\.jsonl: there is no such file"):
        plan_of(recipe, {}, {}, {})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.forced_budgets=[256]", r"each must be below max_tokens \(256\)"),
        ("eval.tasks=[{reasoning_gym: chain_sum, size: 2, name: all}]", "a task cannot be called 'all'"),
        (
            "eval.tasks=[{reasoning_gym: chain_sum, size: 2}, {reasoning_gym: chain_sum, size: 3}]",
            "two tasks are called 'chain_sum'",
        ),
    ],
    ids=["forced budget", "task called all", "tasks of one name"],
)
def test_an_impossible_plan_is_refused(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        plan_of(recipe_with(recipe_file, override), {}, {}, {})


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("{name: other}", "name one card, either student or teacher"),
        ("{name: other, teacher: embedded-moe, checkpoint: x}", "a checkpoint is read with a student's card"),
        ("{name: student, student: embedded-dense}", "the name 'student' is taken"),
        ("{name: a/b, student: embedded-dense}", "pattern"),
        (f"{{name: {'a' * 65}, student: embedded-dense}}", "at most 64 characters"),
        ("{name: a, student: embedded-dense}, {name: a, teacher: embedded-moe}", "a model stands here twice"),
    ],
    ids=["no card", "teacher's checkpoint", "taken name", "name with a slash", "long name", "name twice"],
)
def test_an_extra_model_must_be_named_and_described(recipe_file: Path, extra: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_with(recipe_file, f"eval.extra=[{extra}]")


def test_an_extra_model_is_compared_by_its_checkpoint(recipe_file: Path, trained: Path) -> None:
    extra = f"{{name: other, student: embedded-dense, checkpoint: {trained / 'checkpoint'}}}"
    recipe = recipe_with(recipe_file, f"eval.extra=[{extra}]", "eval.compare=[base]")
    models = compared_models(recipe, trained)
    assert list(models) == ["base", "other"]
    assert models["other"].model == str(trained / "checkpoint")
    assert models["other"].name == "other"


def test_a_missing_checkpoint_of_an_extra_model_is_named(recipe_file: Path, tmp_path: Path) -> None:
    extra = "{name: other, student: embedded-dense, checkpoint: /nowhere/at/all}"
    recipe = recipe_with(recipe_file, f"eval.extra=[{extra}]", "eval.compare=[base]")
    with pytest.raises(RecipeError, match="other: there is no checkpoint directory /nowhere/at/all"):
        compared_models(recipe, tmp_path)


def test_a_url_serves_the_model_that_it_names() -> None:
    urls = urls_by_model(["teacher=http://a/v1", "teacher=http://b/v1"], ["base", "teacher"])
    flags = EvalFlags(urls=urls)
    assert flags.of("teacher").engine == "server"
    assert flags.of("teacher").urls == ("http://a/v1", "http://b/v1")
    assert flags.of("base").engine == "vllm"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://a/v1", "say which model the server has, for example --url base=http://a/v1"),
        ("http://a/v1?x=1", "say which model the server has"),
        ("other=http://a/v1", r"no model 'other' is compared \(there are: base, teacher\)"),
        ("base=nonsense", "--url nonsense: is not the http:// or https:// address of a server"),
    ],
    ids=["no model", "equals sign in the URL", "unknown model", "no URL"],
)
def test_a_url_without_a_known_model_or_server_is_refused(url: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        urls_by_model([url], ["base", "teacher"])


def test_a_server_may_call_a_model_by_another_name() -> None:
    urls = {"teacher": ("http://a/v1",), "student": ("http://b/v1",)}
    flags = EvalFlags(urls=urls, served_names=names_by_model(["student=demo=1"], urls))
    assert flags.of("student").served_name == "demo=1"
    assert flags.of("teacher").served_name is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["demo"], "--served-name demo: say whose name it is, for example student=demo"),
        (["student="], "--served-name student=: say whose name it is"),
        (["base=demo"], r"no --url is given for 'base' \(given for: student\)"),
        (["student=a", "student=b"], "student has two names, a and b"),
    ],
    ids=["no model", "no name", "not served", "two names"],
)
def test_a_name_at_no_known_server_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        names_by_model(names, ["student"])


def test_a_served_model_cannot_be_closed_by_force(recipe_file: Path) -> None:
    recipe = recipe_with(recipe_file, "eval.forced_budgets=[8]")
    urls = {"teacher": ("http://a/v1",)}
    with pytest.raises(RecipeError, match=r"--url teacher=...: eval.forced_budgets is set"):
        flags_of(recipe, EngineFlags(), urls, [])
    assert flags_of(recipe, EngineFlags(), {}, []).urls == {}
