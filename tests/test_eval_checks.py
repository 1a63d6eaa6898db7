"""What eval refuses before an engine starts, each with a message that says what to do; and what its plan holds."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from eval.flags import EvalFlags
from eval.models import check_card, check_model, check_student, compared_models
from eval.stage import load_tasks, plan_of
from pipeline.context import Context, load_context
from pipeline.errors import RecipeError, StageError
from pipeline.flags import EngineFlags, ModelFlags
from pipeline.recipe.cards import Cards, Tags, TaskCard, sampled_student, student_card
from pipeline.recipe.schema import Eval, Sampling
from pipeline.recipe.sources import FileSource
from pipeline.recipe.strict_yaml import validate
from pipeline.run.contract import Counts, Plan, begin
from pipeline.verify.table import VERSIONS
from tests.conftest import ROOT


def context_with(recipe_file: Path, *overrides: str) -> Context:
    return load_context(recipe_file, recipe_file.parent / "runs", overrides=list(overrides))


def fingerprint(context: Context) -> str:
    """Of a plan without the student, whose checkpoint is another matter."""
    return plan_of(context, {"teacher": context.teacher}, {}, {}).fingerprint


def with_student_card(context: Context, **changes: object) -> Context:
    """The same with another card of its student."""
    name = context.recipe.train.student
    card = context.student_card.model_copy(update=changes)
    return dataclasses.replace(context, cards=dataclasses.replace(context.cards, students={name: card}))


@pytest.fixture
def trained(recipe_file: Path) -> Context:
    """A run whose train stage is finished; the checkpoint is a copy of the embedded base."""
    return finish_train(context_with(recipe_file))


def finish_train(context: Context, **notes: str) -> Context:
    tags = context.base.tags
    student = {"thinking": {"open": tags.open, "close": tags.close}, "eos": context.base.eos}
    stage = begin(context.directory("train"), Plan("train", 1, {"student": student}, {}, 0), context.start)
    assert stage is not None
    with stage:
        shutil.copytree(ROOT / "students/embedded", context.checkpoint, ignore=shutil.ignore_patterns("*.py"))
        names = ("chat_template.jinja", "config.json")
        stage.finish(Counts(1, 1), {f"checkpoint/{name}": None for name in names}, notes=dict(notes))
    return context


OFF = {"enable_thinking": False}


def modes_of(context: Context, wanted: str) -> dict[str, dict[str, Any]]:
    """What each model compared is asked with, where train left a student of examples that `wanted` think."""
    knowing = finish_train(with_student_card(context, without_thinking=OFF), thinking=wanted)
    return {name: model.template_options for name, model in compared_models(knowing).items()}


def test_a_student_is_asked_in_the_one_mode_that_its_examples_were_in(
    recipe_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With its base, so that both have one prompt; the teacher has its own. chat and serve ask alike."""
    caplog.set_level(logging.INFO)
    context = context_with(recipe_file)
    assert modes_of(context, "never") == {"base": OFF, "student": OFF, "teacher": {}}
    assert "eval: student is asked without thinking, as in all examples of train" in caplog.messages
    knowing = with_student_card(context, without_thinking=OFF)
    for asked in (knowing.finished_student("chat"), knowing.as_trained(knowing.student, "polish")):
        assert (asked.template_options, asked.tags.opened_by_prompt) == (OFF, False)
    assert compared_models(context)["student"].template_options == {}  # its card knows but one mode
    forced = with_student_card(context_with(recipe_file, "eval.forced_budgets=[10]"), without_thinking=OFF)
    with pytest.raises(
        RecipeError, match=r"forced_budgets: .*trained on examples without any.*thinking: true"
    ):
        compared_models(forced)


@pytest.mark.parametrize(
    ("trained", "asked", "warning"),
    [
        (
            "never",
            "true",
            "eval.thinking: true, and the student was trained on examples without thinking alone",
        ),
        (
            "always",
            "false",
            "eval.thinking: false, and the student was trained on examples with thinking alone",
        ),
        ("both", "true", ""),
        ("always", "null", ""),
    ],
)
def test_another_mode_than_the_trained_one_is_warned_of(
    recipe_file: Path, caplog: pytest.LogCaptureFixture, trained: str, asked: str, warning: str
) -> None:
    context = context_with(recipe_file, f"eval.thinking={asked}", "eval.compare=[base, student]")
    options = OFF if asked == "false" else {}
    assert modes_of(context, trained) == {"base": options, "student": options}
    assert warning in caplog.text
    assert bool(caplog.text) is bool(warning)


def test_every_model_is_asked_in_the_mode_of_the_recipe(recipe_file: Path) -> None:
    context = context_with(recipe_file, "eval.thinking=false", "eval.compare=[base]")
    with pytest.raises(RecipeError, match=r"the card of base does not say how .*without_thinking"):
        compared_models(context)
    knowing = with_student_card(context, without_thinking={"enable_thinking": False})
    asked = compared_models(knowing)["base"]
    assert asked.template_options == {"enable_thinking": False}
    thinking = compared_models(with_student_card(context_with(recipe_file, "eval.compare=[base]")))["base"]
    assert asked.identity != thinking.identity
    with pytest.raises(RecipeError, match=r"forced_budgets close the thinking"):
        context_with(recipe_file, "eval.thinking=false", "eval.forced_budgets=[10]")


def test_a_task_without_questions_is_refused(recipe_file: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    context = context_with(recipe_file, f"eval.tasks=[{{path: {empty}}}]")
    with pytest.raises(RecipeError, match="eval task empty: has no question with an answer"):
        load_tasks(context, {})


def test_a_model_without_an_end_token_is_refused(trained: Context) -> None:
    carded = trained.student
    model = dataclasses.replace(carded, eos=None)
    check_model("student", model, 384)
    for name in ("generation_config.json", "config.json", "tokenizer_config.json"):
        values = json.loads((trained.checkpoint / name).read_text())
        (trained.checkpoint / name).write_text(
            json.dumps({k: v for k, v in values.items() if not k.startswith("eos")})
        )
    with pytest.raises(RecipeError, match=r"student .* names no end-of-sequence token"):
        check_model("student", model, 384)
    check_model("student", carded, 384)


def test_a_token_budget_that_a_model_cannot_hold_is_refused() -> None:
    model = sampled_student("base", student_card("embedded-dense"))
    with pytest.raises(RecipeError, match=r"base holds .* no room is left for a question"):
        check_model("base", model, model.max_model_len)


def test_the_student_as_it_was_trained_passes(trained: Context) -> None:
    check_student(trained, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eos": "<|other|>"}, r"card says eos <\|other\|>, and .* trained with .* run train again"),
        ({"thinking": Tags(open="<reason>")}, r"card says thinking .*<reason>.* was trained with"),
        ({"template_options": {"a": 1}}, r"card says template_options {'a': 1}, and .* trained with None"),
    ],
    ids=["end token", "thinking tags", "template options"],
)
def test_another_card_than_the_trained_one_is_refused(trained: Context, change: dict, message: str) -> None:
    changed, manifest = with_student_card(trained, **change), trained.manifest("train")
    assert manifest is not None
    with pytest.raises(StageError, match=message):
        check_card(changed, manifest)


def test_another_template_than_the_trained_one_is_refused(trained: Context) -> None:
    template = trained.checkpoint / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    with pytest.raises(
        StageError, match=r"chat_template.jinja: is not the chat template that the student was"
    ):
        check_student(trained, "train")


def test_a_student_that_train_did_not_write_is_refused(trained: Context) -> None:
    config = trained.checkpoint / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(StageError, match=r"config.json: was changed after train finished"):
        check_student(trained, "train")


def test_a_student_whose_stage_is_not_finished_is_refused(recipe_file: Path) -> None:
    with pytest.raises(StageError, match=r"eval needs .*train/manifest.json.* make train"):
        check_student(context_with(recipe_file), "train")


@pytest.mark.parametrize("text", ["{", "[1]", '"x"'], ids=["torn", "list", "text"])
def test_a_checkpoint_file_that_holds_no_json_object_is_named(trained: Context, text: str) -> None:
    (trained.checkpoint / "generation_config.json").write_text(text)
    with pytest.raises(
        RecipeError, match=r"generation_config.json: is not a JSON object .* write the checkpoint"
    ):
        check_model("student", trained.student, 384)


def test_a_renamed_task_keeps_the_version_of_its_card(recipe_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy.jsonl"
    path.write_text("{}")
    context = context_with(recipe_file, f"eval.tasks=[{{task: gsm8k, name: mine, path: {path}}}]")
    assert plan_of(context, {}, {}, {}).config["task_cards"]["mine"]["version"] == 1


def test_the_usual_number_of_samples_of_a_card_counts_only_where_the_recipe_states_none(
    recipe_file: Path,
) -> None:
    for samples, same in (4, True), ("null", False):
        context = context_with(recipe_file, "eval.tasks=[{task: math500}]", f"eval.samples={samples}")
        card = context.cards.tasks["math500"]
        cards = dataclasses.replace(context.cards, tasks={"math500": card.model_copy(update={"k": 9})})
        assert (fingerprint(dataclasses.replace(context, cards=cards)) == fingerprint(context)) is same


def test_a_card_with_an_unknown_prompt_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"prompt: unknown prompt style; did you mean 'boxed'"):
        validate(TaskCard, {"licence": "MIT", "prompt": "boxd"}, "mine.yaml")


def test_a_changed_checkpoint_changes_the_plan(trained: Context) -> None:
    before = plan_of(trained, compared_models(trained), {}, {}).fingerprint
    config = trained.checkpoint / "generation_config.json"
    config.write_text(config.read_text() + "\n")
    assert plan_of(trained, compared_models(trained), {}, {}).fingerprint != before


def test_corrected_thinking_tags_leave_the_plan_as_it_is(recipe_file: Path) -> None:
    """But not where the thinking is closed by force, with those tags."""
    for overrides, same in ((), True), (("eval.forced_budgets=[8]",), False):
        context = context_with(recipe_file, *overrides)
        corrected = with_student_card(context, thinking=Tags(close="</thought>"))
        plans = [plan_of(each, {"base": each.base}, {}, {}) for each in (context, corrected)]
        assert (plans[0].fingerprint == plans[1].fingerprint) is same


def test_a_new_key_with_a_default_leaves_the_plan_as_it_is(recipe_file: Path) -> None:
    class NewSampling(Sampling):
        penalty: float = 0.0

    class NewEval(Eval):
        repetitions: int = 1

    class NewTask(FileSource):
        language: str = "en"

    (recipe_file.parent / "sums.jsonl").write_text("{}")
    context = context_with(recipe_file, f"eval.tasks=[{{path: {recipe_file.parent / 'sums.jsonl'}}}]")
    section, sampling = context.recipe.eval, context.recipe.generate.sampling
    new = {
        "tasks": [NewTask(**section.tasks[0].model_dump())],
        "sampling": NewSampling(**sampling.model_dump()),
    }
    recipe = context.recipe.model_copy(
        update={"eval": NewEval(**section.model_dump()).model_copy(update=new)}
    )
    assert fingerprint(dataclasses.replace(context, recipe=recipe)) == fingerprint(context)


def test_a_verifier_counts_where_a_task_uses_it(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_with(recipe_file)
    before = fingerprint(context)
    monkeypatch.setitem(VERSIONS, "proof", "1")
    monkeypatch.setitem(VERSIONS, "math", "of tomorrow")
    assert fingerprint(context) == before
    monkeypatch.setitem(VERSIONS, "reasoning_gym", "of tomorrow")
    assert fingerprint(context) != before


def test_a_card_that_no_task_names_is_not_in_the_plan(recipe_file: Path) -> None:
    context = context_with(recipe_file)
    none = dataclasses.replace(context, cards=Cards(context.cards.teachers, context.cards.students, {}))
    assert fingerprint(none) == fingerprint(context)


def test_files_of_one_name_are_told_apart_and_a_missing_one_is_refused(
    recipe_file: Path, tmp_path: Path
) -> None:
    paths = [tmp_path / folder / "test.jsonl" for folder in ("a", "b")]
    tasks = ", ".join(f"{{path: {path}, name: {path.parent.name}}}" for path in paths)
    context = context_with(recipe_file, f"eval.tasks=[{tasks}]")
    for path in paths:
        path.parent.mkdir()
        path.write_text("{}")
    before = plan_of(context, {}, {}, {})
    assert set(before.inputs) == {"task a", "task b"}
    paths[0].write_text("{ }")
    assert plan_of(context, {}, {}, {}).fingerprint != before.fingerprint
    paths[1].unlink()
    with pytest.raises(RecipeError, match=r"b/test\.jsonl: there is no such file"):
        plan_of(context, {}, {}, {})


def test_a_task_file_may_stand_elsewhere(recipe_file: Path, tmp_path: Path) -> None:
    prints = set()
    for folder in ("a", "b"):
        path = tmp_path / folder / "test.jsonl"
        path.parent.mkdir()
        path.write_text("{}")
        prints.add(fingerprint(context_with(recipe_file, f"eval.tasks=[{{path: {path}}}]")))
    assert len(prints) == 1


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
def test_an_impossible_section_is_refused(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        context_with(recipe_file, override)


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
        context_with(recipe_file, f"eval.extra=[{extra}]")


def test_an_extra_model_is_compared_by_its_checkpoint(recipe_file: Path, trained: Context) -> None:
    extra = f"{{name: other, student: embedded-dense, checkpoint: {trained.checkpoint}}}"
    models = compared_models(context_with(recipe_file, f"eval.extra=[{extra}]", "eval.compare=[base]"))
    assert list(models) == ["base", "other"]
    assert models["other"].model == str(trained.checkpoint)
    assert models["other"].name == "other"


def test_a_checkpoint_is_found_from_where_the_command_runs(
    recipe_file: Path, trained: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only from the project, whose directories cards name."""
    monkeypatch.chdir(trained.checkpoint.parent)
    extra = "eval.extra=[{name: other, student: embedded-dense, checkpoint: checkpoint}]"
    context = context_with(recipe_file, extra, "eval.compare=[student]")
    models = compared_models(context)
    assert models["other"].identity == models["student"].identity == trained.student.identity
    assert models["other"].model == str(trained.checkpoint)


def test_every_compared_model_has_its_card(recipe_file: Path) -> None:
    extra = "{name: one, teacher: embedded-moe}, {name: two, student: embedded-dense}"
    context = context_with(recipe_file, f"eval.extra=[{extra}]")
    names = {name: context.card(name)[0] for name in context.recipe.eval.models}
    teachers, students = ("teacher", "one"), ("base", "student", "two")
    assert names == dict.fromkeys(students, "embedded-dense") | dict.fromkeys(teachers, "embedded-moe")
    assert all(context.card(name)[1] is context.teacher_card for name in teachers)
    assert all(context.card(name)[1] is context.student_card for name in students)
    assert context.model("one") == dataclasses.replace(context.teacher, name="one")


def test_a_missing_checkpoint_of_an_extra_model_is_named(recipe_file: Path) -> None:
    extra = "{name: other, student: embedded-dense, checkpoint: /nowhere/at/all}"
    context = context_with(recipe_file, f"eval.extra=[{extra}]", "eval.compare=[base]")
    with pytest.raises(RecipeError, match="other: there is no checkpoint directory /nowhere/at/all"):
        compared_models(context)


def flags_of(urls: tuple[str, ...], names: tuple[str, ...] = ()) -> EvalFlags:
    return EvalFlags(EngineFlags(), ModelFlags(model_urls=urls, model_names=names))


def test_a_url_serves_the_model_that_it_names() -> None:
    flags = flags_of(("teacher=http://a/v1", "teacher=http://b/v1"))
    flags.check(["base", "teacher"], [])
    assert flags.of("teacher").engine == "server"
    assert flags.of("teacher").urls == ("http://a/v1", "http://b/v1")
    assert flags.of("base").engine == "vllm"


def test_engine_flags_go_for_every_model() -> None:
    flags = EvalFlags(EngineFlags(tensor_parallel=2), ModelFlags(model_urls=("base=http://a/v1",)))
    assert [flags.of(name).tensor_parallel for name in ("base", "teacher")] == [2, 2]


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
        flags_of((url,)).check(["base", "teacher"], [])


def test_a_url_that_stands_twice_is_refused() -> None:
    with pytest.raises(RecipeError, match="one server stands twice"):
        flags_of(("base=http://a/v1", "base=http://a/v1/")).check(["base"], [])


def test_a_server_may_call_a_model_by_another_name() -> None:
    flags = flags_of(("teacher=http://a/v1", "student=http://b/v1"), ("student=demo=1",))
    flags.check(["teacher", "student"], [])
    assert flags.of("student").served_name == "demo=1"
    assert flags.of("teacher").served_name is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("demo",), "--served-name demo: say whose name it is, for example student=demo"),
        (("student=",), "--served-name student=: say whose name it is"),
        (("base=demo",), r"no --url is given for 'base' \(given for: student\)"),
        (("student=a", "student=b"), "student has two names, a and b"),
    ],
    ids=["no model", "no name", "not served", "two names"],
)
def test_a_name_at_no_known_server_is_refused(names: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        flags_of(("student=http://a/v1",), names).check(["student"], [])


def test_a_served_model_cannot_be_closed_by_force() -> None:
    with pytest.raises(RecipeError, match=r"--url teacher=...: eval.forced_budgets is set"):
        flags_of(("teacher=http://a/v1",)).check(["teacher"], [8])
    flags_of(()).check(["teacher"], [8])
