"""The generate stage, its plan and its imports, with a scripted teacher for the engine."""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import problems as problems_stage
from pipeline.cards import card_names, sampled_teacher, teacher_card
from pipeline.errors import RecipeError, StageError
from pipeline.recipe import Samples, load_recipe
from pipeline.records import Problem, Trace, from_json, to_json
from pipeline.sampling import EngineFlags, Store
from pipeline.sampling.engine import completion_of
from pipeline.stage import Context, Start, read_manifest
from teachers import generate, import_traces, plan
from teachers.estimate import Devices, expected_tries, layout_for, size_of, solved_share
from teachers.layouts import LAYOUTS, Columns, bare_question, bare_solution
from teachers.pilot import spread
from teachers.serve import command
from tests.test_kills import scripted_server

RECIPE = """\
name: {name}
seed: 0
problems:
  sources:
    - {{path: {path}, verifier: text}}
  decontaminate: false
generate:
  teacher: embedded-moe
  prompt: plain
  samples: {{keep: 2, max: 6}}
  sampling: {{temperature: 1.0, max_tokens: 256}}
filter:
  rules: [finished]
train:
  student: embedded-dense
  method: full
  epochs: 1
  learning_rate: 1.0e-3
  max_length: 512
eval:
  tasks: [{{reasoning_gym: chain_sum, size: 5}}]
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with scripted_server(0.0) as address:
        yield address


@pytest.fixture(scope="module")
def finished(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with 60 sums, and a run over them whose problems and generate stages are finished."""
    directory = tmp_path_factory.mktemp("finished")
    sums = [{"question": f"What is {i} + {3 * i}?", "answer": str(4 * i)} for i in range(60)]
    (directory / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    context = recipe_of(directory, directory)
    problems_stage.run(context, workers=1)
    generate.run(context, flags_for(url))
    return directory


def recipe_of(finished: Path, directory: Path, name: str = "small", **override: Any) -> Context:
    path = directory / f"{name}.yaml"
    path.write_text(RECIPE.format(name=name, path=finished / "sums.jsonl"))
    recipe = load_recipe(path, [f"{key}={value}" for key, value in override.items()])
    return Context(recipe, directory / "runs", Start(False, [], str(path)))


def context_of(finished: Path, directory: Path, name: str = "small", **override: Any) -> Context:
    """A run of its own in `directory`, with its problems stage finished."""
    context = recipe_of(finished, directory, name, **override)
    if not context.directory("problems").exists():
        shutil.copytree(finished / "runs/small/problems", context.directory("problems"))
    return context


def flags_for(url: str, *adopt: str) -> generate.GenerateFlags:
    engine = EngineFlags("server", urls=(url,), served_name="scripted", concurrency=32)
    return generate.GenerateFlags(engine, adopt, verifier_workers=1)


def manifest_of(context: Context) -> dict[str, Any]:
    manifest = read_manifest(context.directory("generate"))
    assert manifest is not None
    return manifest


def test_the_stage_writes_traces_verdicts_tries_and_manifest(finished: Path) -> None:
    context = recipe_of(finished, finished)
    manifest, directory = manifest_of(context), context.directory("generate")
    problems = list(generate.ProblemFile(context.directory("problems") / "problems.jsonl"))
    tries = [json.loads(line) for line in (directory / "tries.jsonl").read_text().splitlines()]
    assert [row["problem_id"] for row in tries] == [problem.id for problem in problems]
    assert sum(row["tries"] for row in tries) == manifest["counts"]["kept"] == manifest["counts"]["in"]
    assert manifest["notes"]["solved"] + manifest["notes"]["given_up"] == len(problems)
    assert all(row["correct"] == 2 for row in tries if row["solved"])
    assert manifest["usage"]["output_tokens"] == sum(t.output_tokens for t in Store(directory).traces())


def test_a_second_run_is_up_to_date_and_another_plan_is_refused(
    url: str, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    generate.run(recipe_of(finished, finished), flags_for("http://127.0.0.1:9/v1"))
    assert "up to date" in caplog.text
    with pytest.raises(StageError, match=r"samples\.max: 6 -> 7"):
        generate.run(recipe_of(finished, finished, **{"generate.samples.max": 7}), flags_for(url))


def test_equal_keys_are_adopted_from_another_run(url: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    bought = manifest_of(recipe_of(finished, finished))["usage"]["sampled"]
    second = context_of(finished, tmp_path, "second")
    generate.run(second, flags_for("http://127.0.0.1:9/v1", "small"))
    assert manifest_of(second)["usage"]["adopted"] == bought
    with pytest.raises(RecipeError, match="runs with traces: "):
        generate.run(context_of(finished, tmp_path, "third"), flags_for(url, "missing"))


@pytest.mark.slow
def test_what_force_moved_aside_is_adopted(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    context = recipe_of(finished, tmp_path)
    bought = manifest_of(context)["usage"]["sampled"]
    forced = Context(context.recipe, context.runs, Start(True, [], ""))
    generate.run(forced, flags_for("http://127.0.0.1:9/v1"))
    assert manifest_of(forced)["usage"]["adopted"] == bought
    assert (tmp_path / "runs/small/generate.1/manifest.json").exists()


def test_too_many_failures_fail_the_stage_after_saving(finished: Path, tmp_path: Path) -> None:
    context = context_of(finished, tmp_path)
    rows = context.directory("problems") / "problems.jsonl"
    problems = [from_json(Problem, line) for line in rows.read_text().splitlines()]
    failed = pytest.raises(StageError, match=r"requests failed \(http_400 .*max_failure_rate 0.02")
    with scripted_server(0.0, "flaky_400") as address, failed:
        generate.run(context, flags_for(address))
    saved = list(Store(context.directory("generate")).traces())
    assert len(saved) > len(problems) / 4
    assert read_manifest(context.directory("generate")) is None


@pytest.mark.slow
def test_a_pilot_forecasts_and_its_traces_are_kept(
    url: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = context_of(finished, tmp_path)
    plan.run(context, plan.Assumed(), 20, flags_for(url))
    assert "pilot of 20 problems" in capsys.readouterr().out
    piloted = sum(1 for _ in Store(context.directory("generate")).traces())
    generate.run(context, flags_for(url))
    manifest = manifest_of(context)
    assert manifest["usage"]["found"] == piloted
    forecast = manifest["notes"]["forecast"]["output_tokens"]
    assert forecast["fact"] == manifest["usage"]["output_tokens"]
    assert 0.7 < forecast["ratio"] < 1.4


def test_a_plan_without_a_pilot_buys_nothing(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = context_of(finished, tmp_path)
    plan.run(context, plan.Assumed(), None, generate.GenerateFlags())
    printed = capsys.readouterr().out
    assert "assumed (pass_rate)" in printed
    assert "the finished problems stage" in printed
    assert not context.directory("generate").exists()


def test_expected_tries_and_solved_share_are_those_of_all_outcomes() -> None:
    samples, rate = Samples(keep=2, max=5), 0.3
    tries = solved = 0.0
    for outcome in itertools.product([0, 1], repeat=samples.max):
        weight = rate ** sum(outcome) * (1 - rate) ** (samples.max - sum(outcome))
        taken = next((n for n in range(samples.max + 1) if sum(outcome[:n]) == samples.keep), samples.max)
        tries += weight * taken
        solved += weight * (sum(outcome) >= samples.keep)
    assert expected_tries(rate, samples) == pytest.approx(tries)
    assert solved_share(rate, samples) == pytest.approx(solved)


@pytest.mark.parametrize(
    ("name", "count", "fits"),
    [
        ("qwen3-30b-a3b-thinking-2507", 1, True),
        ("deepseek-r1-0528", 8, False),
        ("deepseek-r1-0528", 16, True),
    ],
)
def test_layouts_hold_the_weights(name: str, count: int, fits: bool) -> None:
    size, _ = size_of(teacher_card(name))
    if not fits:
        with pytest.raises(RecipeError, match="cannot hold"):
            layout_for(size, Devices(count), 8000, 256)
        return
    layout = layout_for(size, Devices(count), 8000, 256)
    assert layout.replicas * layout.tensor_parallel <= count
    assert layout.sequences >= 8
    assert layout.tokens_per_second > 0


def test_a_pilot_is_spread_over_sources_and_lengths() -> None:
    problems = [Problem(f"{i:016x}", "x" * (i % 50), "", "text", f"source{i % 3}", "") for i in range(3000)]
    chosen = spread(problems, 60)
    assert len({problem.id for problem in chosen}) == 60
    assert [sum(p.source == f"source{k}" for p in chosen) for k in range(3)] == [20, 20, 20]
    assert len({len(problem.question) for problem in chosen}) > 15


@pytest.mark.parametrize("name", card_names("teacher"))
def test_every_fact_of_a_card_has_a_source(name: str) -> None:
    card = teacher_card(name)
    assert card.revision is None
    wanted = {"model", "thinking", "engine.max_model_len", "licence"}
    wanted |= {"size"} if card.size else set()
    assert wanted <= card.facts.keys()
    words = command(name, 8123, EngineFlags())
    assert words[words.index("--served-model-name") + 1] == name
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert str(card.engine.max_model_len) in words
    assert sampled_teacher(name).tensor_parallel == card.engine.tensor_parallel


@pytest.mark.parametrize(
    ("override", "message"),
    [({"generate.sampling.temperature": 0}, "the same text"), ({"generate.samples.cap": 9}, "no meaning")],
    ids=["greedy", "cap"],
)
def test_budgets_that_cannot_be_are_refused(
    override: dict[str, Any], message: str, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        generate.run(context_of(finished, tmp_path, **override), generate.GenerateFlags())


def test_a_prompt_that_leaves_no_room_is_refused_before_the_engine_starts(
    url: str, finished: Path, tmp_path: Path
) -> None:
    context = context_of(finished, tmp_path, **{"generate.sampling.max_tokens": 1020})
    with pytest.raises(RecipeError, match=r"1,020 and the longest prompt of \d+ tokens exceed .* 1,024"):
        generate.run(context, flags_for(url))


IMPORTS = {
    "openr1": {
        "problem": "What is 7 + 21?",
        "generations": ["<think>\n7 + 21\n</think>\n\n\\boxed{28}", "<think>\nendless"],
        "finish_reasons": ["stop", "length"],
    },
    "openthoughts": {
        "conversations": [
            {"from": "user", "value": "Return your final response within \\boxed{}. What is 7 + 21?"},
            {
                "from": "assistant",
                "value": "<|begin_of_thought|>\n7 + 21\n<|end_of_thought|>\n\n"
                "<|begin_of_solution|>\n\\boxed{28}\n<|end_of_solution|>",
            },
        ]
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "What is 7 + 21?"},
            {"from": "gpt", "value": "7 + 21\n</think>\n\\boxed{28}"},
        ]
    },
    "columns": {"prompt": "What is 7 + 21?", "text": "<think>7 + 21</think>\\boxed{28}"},
}


@pytest.mark.parametrize("layout", IMPORTS)
def test_each_layout_gives_question_and_split_response(layout: str) -> None:
    read, tags = LAYOUTS[layout]
    row = read(IMPORTS[layout], Columns("prompt", "text"))
    assert bare_question(row.question) == "What is 7 + 21?"
    done = completion_of(row.responses[0], "stop", (0, 0), tags)
    assert (done.thinking, bare_solution(done.answer)) == ("7 + 21", "\\boxed{28}")


def test_imported_traces_take_the_place_of_generate(finished: Path, tmp_path: Path) -> None:
    context = context_of(finished, tmp_path)
    file = tmp_path / "traces.jsonl"
    other = json.loads(json.dumps(IMPORTS["openr1"]).replace("7 + 21", "8 + 99"))
    file.write_text(json.dumps(IMPORTS["openr1"]) + "\n" + json.dumps(other) + "\n")
    import_traces.run(context, import_traces.Imported(file, "openr1"))
    manifest = manifest_of(context)
    assert manifest["counts"]["kept"] == 2
    assert manifest["counts"]["dropped"] == {"no_such_problem": 2}
    store = Store(context.directory("generate"))
    assert [trace.finish_reason for trace in store.traces()] == ["stop", "length"]
    assert next(verdict.status for verdict in store.verdicts()) == "correct"


@pytest.mark.parametrize(
    ("row", "layout", "message"),
    [({"a": 1}, "openr1", "is no row of layout openr1"), ({}, "openr", "did you mean 'openr1'")],
    ids=["row", "layout"],
)
def test_what_cannot_be_imported_is_named(
    row: dict[str, Any], layout: str, message: str, finished: Path, tmp_path: Path
) -> None:
    file = tmp_path / "traces.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(RecipeError, match=message):
        import_traces.run(context_of(finished, tmp_path), import_traces.Imported(file, layout))


def test_a_trace_of_the_store_is_what_was_written(tmp_path: Path) -> None:
    trace = Trace("p", 0, 1, "r", None, 'quote " and \u2028 and \\', "stop", 1, 2, "t")
    with Store(tmp_path) as store:
        store.load("r")
        store.add_trace(trace)
    assert next(Store(tmp_path).traces()) == trace
    assert from_json(Trace, to_json(trace)) == trace
