"""Recipes: what is valid, and one clear error for each thing that is not."""

from pathlib import Path

import pytest

from pipeline.context import load_context
from pipeline.errors import RecipeError
from pipeline.filter.rules import check_rules
from pipeline.recipe.schema import load_recipe
from pipeline.recipe.sources import CardTask, FileSource, HubSource, ProceduralSource
from tests.conftest import RECIPE, ROOT

CHECKED_IN = sorted((ROOT / "recipes").glob("*.yaml"))


def test_every_checked_in_recipe_is_found() -> None:
    assert {path.stem for path in CHECKED_IN} >= {"demo", "demo-lora", "demo-unverified"}


@pytest.mark.parametrize("path", CHECKED_IN, ids=lambda path: path.stem)
def test_every_checked_in_recipe_loads_under_its_own_name(tmp_path: Path, path: Path) -> None:
    loaded = load_context(path, tmp_path)
    check_rules(loaded.recipe.filter.rules)
    assert loaded.recipe.name == path.stem


@pytest.mark.parametrize("path", CHECKED_IN, ids=lambda path: path.stem)
def test_every_checked_in_recipe_states_purpose_needs_command_and_result(path: Path) -> None:
    header = "".join(line for line in path.read_text().splitlines(True) if line.startswith("#"))
    for word in ("Purpose:", "Needs:", "Command:", "Expected:"):
        assert word in header, f"{path}: the header comment lacks '{word}'"


def test_kinds_of_sources_and_tasks_are_told_by_their_key(tmp_path: Path) -> None:
    text = RECIPE.replace(
        "    - {reasoning_gym: chain_sum, size: 20, config: {min_terms: 2, max_terms: 3}}",
        "    - {reasoning_gym: gcd, size: 5}\n    - {path: a.jsonl}\n    - {hub: openai/gsm8k, subset: main}",
    ).replace("tasks: [{", "tasks: [{task: gsm8k}, {")
    path = tmp_path / "kinds.yaml"
    path.write_text(text)
    recipe = load_recipe(path)
    assert [type(source) for source in recipe.problems.sources] == [ProceduralSource, FileSource, HubSource]
    assert [type(task) for task in recipe.eval.tasks] == [CardTask, ProceduralSource]


# fmt: off
FAULTS = {
    "unknown key": (("epochs: 1", "epoch: 1"), r"train\.epoch: unknown key; did you mean 'epochs'\?"),
    "unknown key that a class is called by": (("train:", "Train:"), r"Train: unknown key; did you mean 'train'"),
    "unknown key in a source": (("size: 20", "siez: 20"), r"\[0\]\.siez: unknown key; did you mean 'size'"),
    "unknown key that two kinds share": (("reasoning_gym: chain_sum, size: 20, config: {min_terms: 2, max_terms: 3}", "path: a.jsonl, licens: MIT"), r"\[0\]\.licens: unknown key; did you mean 'licence'\? \(known: answer, columns, licence, limit, majority, name, path, prompt, verifier, weight, window\)"),
    "an adapter that sees nothing": (("epochs: 1", "epochs: 1\n  lora: {dropout: 1}"), r"lora\.dropout: .*less than 1, found 1"),
    "wrong type": (("epochs: 1", "epochs: three"), r"train\.epochs: .*valid number, found 'three'"),
    "a number as text is text": (("size: 20", "size: '20'"), r"size: .*valid integer, found '20'"),
    "missing key": (("  student: embedded-dense\n", ""), r"train\.student: this key is missing"),
    "impossible value": (("keep: 1, max: 2", "keep: 3, max: 2"), r"keep \(3\) cannot be more than max \(2\)"),
    "unknown prompt": (("prompt: boxed", "prompt: boxd"), r"unknown prompt style; did you mean 'boxed'\?"),
    "unknown source kind": (("reasoning_gym: chain_sum, size: 20", "gym: x"), r"with the key reasoning_gym or path"),
    "duplicate key": (("seed: 0", "seed: 0\nseed: 1"), r"line 3 is not valid YAML: the key 'seed' stands here"),
    "anchor": (("seed: 0", "seed: &s 0"), r"anchors and aliases are not allowed"),
    "name that is no directory": (("name: small", "name: ../small"), r"name: a name becomes a directory"),
    "name too long": (("name: small", "name: " + "a" * 101), r"name: .*at most 100 characters"),
    "source name with a slash": (("size: 20", "name: ../x, size: 20"), r"sources\[0\]\.name: .*pattern"),
    "hub id with spaces": (("reasoning_gym: chain_sum, size: 20, config: {min_terms: 2, max_terms: 3}", "hub: 'a b'"), r"sources\[0\]\.hub: a data set on the hub is called owner/name.* found 'a b'"),
    "hub id with slashes": (("reasoning_gym: chain_sum, size: 20, config: {min_terms: 2, max_terms: 3}", "hub: a/b/c"), r"sources\[0\]\.hub: .*`path:`, found 'a/b/c'"),
    "empty hub id": (("reasoning_gym: chain_sum, size: 20, config: {min_terms: 2, max_terms: 3}", "hub: ''"), r"sources\[0\]\.hub: .*found ''"),
    "hub id of a mix": (("  select:", "  mix: [{name: chat, hub: 'a b', weight: 1.0, licence: MIT}]\n  select:"), r"mix\[0\]\.hub: .*found 'a b'"),
    "task name with a slash": (("tasks: [{", "tasks: [{task: gsm8k, name: a/b}, {"), r"tasks\[0\]\.name: .*pattern"),
    "model compared twice": (("[base, student, teacher]", "[base, base]"), r"eval: compare: .*base.*stands here twice"),
    "no model compared": (("[base, student, teacher]", "[]"), r"eval: compare: nothing would be measured"),
    "thinking budget": (("samples: 1", "forced_budgets: [256]"), r"each must be below max_tokens \(256\)"),
    "broken YAML": (("name: small", "name: [small"), r"is not valid YAML"),
    "a rule twice": (("[finished, closed_thinking, correct]", "[correct, correct]"), r"filter\.rules: the rule 'correct' stands here 2 times"),
    "two rules in one entry": (("[finished, closed_thinking, correct]", "[{correct: {}, finished: {}}]"), r"found 2 names in one entry"),
    "not a number": (("temperature: 1.0", "temperature: .nan"), r"temperature: .*finite number"),
}
# fmt: on


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_one_error_with_place_and_next_step(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    path = tmp_path / "faulty.yaml"
    assert change[0] in RECIPE
    path.write_text(RECIPE.replace(change[0], change[1], 1))
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(str(path))


def test_a_missing_recipe_lists_what_is_there(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no such recipe; .* holds: small\.yaml"):
        load_recipe(recipe_file.with_name("smal.yaml"))


def test_exponents_without_a_dot_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "float.yaml"
    path.write_text(RECIPE.replace("1.0e-3", "1e-3"))
    assert load_recipe(path).train.learning_rate == pytest.approx(0.001)


def test_set_overrides_one_value(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["train.epochs=3", "filter.select.per_problem=2"])
    assert (recipe.train.epochs, recipe.filter.select.per_problem) == (3, 2)


def test_set_reaches_into_lists(recipe_file: Path) -> None:
    sets = [
        "problems.sources.0.size=24",
        "problems.sources.0.config.max_terms=4",
        "filter.rules.1=one_answer",
    ]
    recipe = load_recipe(recipe_file, [*sets, "eval.compare.0=teacher", "eval.compare.2=base"])
    (source,) = recipe.problems.sources
    assert (source.size, source.config["max_terms"]) == (24, 4)  # type: ignore[union-attr]
    assert recipe.filter.rules == ["finished", "one_answer", "correct"]
    assert recipe.eval.compare == ["teacher", "student", "base"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=1", "unknown key; did you mean 'epochs'"),
        ("train.epochs", r"expected section\.key=value"),
        ("seed.x=1", "'seed' holds int, not a section"),
        ("problems.sources.1.size=2", "'1' is no entry of a list of 1; the entries are 0 to 0"),
        ("problems.sources.first.size=2", "'first' is no entry of a list of 1"),
        ("problems.sources.0.siez=2", r"sources\[0\]\.siez: unknown key; did you mean 'size'"),
        ("train.epochs=[", "is not valid YAML"),
    ],
)
def test_a_faulty_override_names_itself(recipe_file: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(recipe_file, [override])
    assert f"--set {override}" in str(caught.value)


TASK = "{reasoning_gym: chain_sum, size: 2"
REFERENCES = {
    "teacher": ("generate.teacher=embeded-moe", r"generate\.teacher: .*did you mean 'embedded-moe'"),
    "student": ("train.student=embeded-dense", r"train\.student: .*did you mean 'embedded-dense'"),
    "task": ("eval.tasks=[{task: gsm9k}]", r"eval\.tasks\[0\]\.task: .*did you mean 'gsm8k'"),
    "extra model": ("eval.extra=[{name: other, student: x}]", r"eval\.extra\[0\]: .*no such student card"),
    "task called all": (f"eval.tasks=[{TASK}, name: all}}]", "a task cannot be called 'all'"),
    "tasks of one name": (f"eval.tasks=[{TASK}}}, {TASK}}}]", "two tasks are called 'chain_sum'"),
    "per_source": (
        "filter.select.per_source={chain_sun: 5}",
        r"filter\.select\.per_source\.chain_sun: unknown source; did you mean 'chain_sum'\?",
    ),
    "mix called as a source": (
        "filter.mix=[{name: chain_sum, path: a.jsonl, weight: 1.0, licence: MIT}]",
        r"filter\.mix\[0\]\.name: 'chain_sum' is a source of problems already",
    ),
}


@pytest.mark.parametrize(("override", "message"), REFERENCES.values(), ids=REFERENCES.keys())
def test_a_name_that_stands_for_nothing_is_found_before_any_stage(
    recipe_file: Path, override: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_context(recipe_file, recipe_file.parent, overrides=[override])
    assert str(caught.value).startswith(str(recipe_file))


def test_a_cap_may_name_any_source_by_the_name_that_its_problems_carry(recipe_file: Path) -> None:
    sources = "problems.sources=[{hub: a/b}, {reasoning_gym: gcd, size: 5}, {reasoning_gym: gcd, size: 5}]"
    caps = "filter.select.per_source={a/b: 1, gcd: 1, gcd-2: 1}"
    recipe = load_recipe(recipe_file, [sources, caps])
    assert recipe.filter.select.per_source == {"a/b": 1, "gcd": 1, "gcd-2": 1}


def test_nothing_of_the_run_need_be_compared_where_another_model_is(recipe_file: Path) -> None:
    extra = "eval.extra=[{name: other, student: embedded-dense}]"
    assert load_recipe(recipe_file, ["eval.compare=[]", extra]).eval.compare == []


HARMLESS = {
    "a rule's own default": "filter.rules=[finished, closed_thinking, correct]",
    "a default of generate": "generate.keep_tokens=false",
    "a default of train": "train.schedule=cosine",
    "a default of eval": "eval.forced_budgets=[]",
    "a default of a source": "problems.decontaminate=true",
}


@pytest.mark.parametrize("override", HARMLESS.values(), ids=HARMLESS.keys())
def test_a_key_that_states_its_default_is_no_other_recipe(recipe_file: Path, override: str) -> None:
    plain, stated = load_recipe(recipe_file), load_recipe(recipe_file, [override])
    assert stated.model_dump(exclude_defaults=True) == plain.model_dump(exclude_defaults=True)
