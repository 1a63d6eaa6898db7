"""The generate stage, its plan and its imports, with a scripted teacher for the engine."""

import itertools
import json
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
from pipeline.stage import Context, Start, read_manifest
from teachers import generate, import_traces, plan
from teachers.estimate import Devices, expected_tries, layout_for, size_of, solved_share
from teachers.layouts import Columns
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


def context_of(directory: Path, name: str = "small", force: bool = False, **override: Any) -> Context:
    """A recipe over 60 sums, with its problems stage finished."""
    rows = directory / "sums.jsonl"
    if not rows.exists():
        sums = [{"question": f"What is {i} + {3 * i}?", "answer": str(4 * i)} for i in range(60)]
        rows.write_text("".join(json.dumps(row) + "\n" for row in sums))
    path = directory / f"{name}.yaml"
    path.write_text(RECIPE.format(name=name, path=rows))
    recipe = load_recipe(path, [f"{key}={value}" for key, value in override.items()])
    context = Context(recipe, directory / "runs", Start(force, [], str(path)))
    problems_stage.run(Context(recipe, directory / "runs", Start(False, [], str(path))), workers=1)
    return context


def flags_for(url: str, *adopt: str) -> generate.GenerateFlags:
    engine = EngineFlags("server", urls=(url,), served_name="scripted", concurrency=32)
    return generate.GenerateFlags(engine, adopt, verifier_workers=1)


def manifest_of(context: Context) -> dict[str, Any]:
    manifest = read_manifest(context.directory("generate"))
    assert manifest is not None
    return manifest


def test_the_stage_writes_traces_verdicts_tries_and_manifest(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = context_of(tmp_path)
    generate.run(context, flags_for(url))
    manifest, directory = manifest_of(context), context.directory("generate")
    problems = list(generate.ProblemFile(context.directory("problems") / "problems.jsonl"))
    tries = [json.loads(line) for line in (directory / "tries.jsonl").read_text().splitlines()]
    assert [row["problem_id"] for row in tries] == [problem.id for problem in problems]
    assert sum(row["tries"] for row in tries) == manifest["counts"]["kept"] == manifest["counts"]["in"]
    assert manifest["notes"]["solved"] + manifest["notes"]["given_up"] == len(problems)
    assert all(row["correct"] == 2 for row in tries if row["solved"])
    assert manifest["usage"]["output_tokens"] == sum(t.output_tokens for t in Store(directory).traces())
    caplog.set_level("INFO")
    generate.run(context, flags_for("http://127.0.0.1:9/v1"))
    assert "up to date" in caplog.text
    with pytest.raises(StageError, match=r"samples\.max: 6 -> 7"):
        generate.run(context_of(tmp_path, **{"generate.samples.max": 7}), flags_for(url))


def test_equal_keys_are_adopted_from_a_run_and_from_what_force_moved(url: str, tmp_path: Path) -> None:
    first = context_of(tmp_path)
    generate.run(first, flags_for(url))
    bought = manifest_of(first)["usage"]["sampled"]
    second = context_of(tmp_path, "second")
    generate.run(second, flags_for("http://127.0.0.1:9/v1", "small"))
    assert manifest_of(second)["usage"]["adopted"] == bought
    forced = context_of(tmp_path, force=True)
    generate.run(forced, flags_for("http://127.0.0.1:9/v1"))
    assert manifest_of(forced)["usage"]["adopted"] == bought
    assert (tmp_path / "runs/small/generate.1/manifest.json").exists()
    with pytest.raises(RecipeError, match="runs with traces: second, small"):
        generate.run(context_of(tmp_path, "third"), flags_for(url, "missing"))


def test_too_many_failures_fail_the_stage_after_saving(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    rows = context.directory("problems") / "problems.jsonl"
    problems = [from_json(Problem, line) for line in rows.read_text().splitlines()]
    failed = pytest.raises(StageError, match=r"requests failed \(http_400 .*max_failure_rate 0.02")
    with scripted_server(0.0, "flaky_400") as address, failed:
        generate.run(context, flags_for(address))
    saved = list(Store(context.directory("generate")).traces())
    assert len(saved) > len(problems) / 4
    assert read_manifest(context.directory("generate")) is None


def test_a_pilot_forecasts_and_its_traces_are_kept(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = context_of(tmp_path)
    plan.run(context, plan.Assumed(), 20, flags_for(url))
    assert "pilot of 20 problems" in capsys.readouterr().out
    piloted = sum(1 for _ in Store(context.directory("generate")).traces())
    generate.run(context, flags_for(url))
    manifest = manifest_of(context)
    assert manifest["usage"]["found"] == piloted
    forecast = manifest["notes"]["forecast"]["output_tokens"]
    assert forecast["fact"] == manifest["usage"]["output_tokens"]
    assert 0.7 < forecast["ratio"] < 1.4


def test_a_plan_without_a_pilot_buys_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = context_of(tmp_path)
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
def test_budgets_that_cannot_be_are_refused(override: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        generate.run(context_of(tmp_path, **override), generate.GenerateFlags())


def test_a_prompt_that_leaves_no_room_is_refused_before_the_engine_starts(url: str, tmp_path: Path) -> None:
    context = context_of(tmp_path, **{"generate.sampling.max_tokens": 1020})
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
def test_traces_are_imported(layout: str, tmp_path: Path) -> None:
    context = context_of(tmp_path)
    file = tmp_path / "traces.jsonl"
    other = json.loads(json.dumps(IMPORTS[layout]).replace("7 + 21", "8 + 99"))
    file.write_text(json.dumps(IMPORTS[layout]) + "\n" + json.dumps(other) + "\n")
    import_traces.run(context, import_traces.Imported(file, layout, Columns("prompt", "text")))
    manifest = manifest_of(context)
    traces = list(Store(context.directory("generate")).traces())
    verdicts = list(Store(context.directory("generate")).verdicts())
    assert manifest["counts"]["dropped"] == {"no_such_problem": manifest["counts"]["kept"]}
    assert (traces[0].thinking, traces[0].answer, traces[0].finish_reason) == (
        "7 + 21",
        "\\boxed{28}",
        "stop",
    )
    assert verdicts[0].status == "correct"
    assert [trace.finish_reason for trace in traces[1:]] == (["length"] if layout == "openr1" else [])


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean 'openr1'"):
        import_traces.run(context_of(tmp_path), import_traces.Imported(tmp_path / "x.jsonl", "openr"))


def test_a_trace_of_the_store_is_what_was_written(tmp_path: Path) -> None:
    trace = Trace("p", 0, 1, "r", None, 'quote " and \u2028 and \\', "stop", 1, 2, "t")
    with Store(tmp_path) as store:
        store.load("r")
        store.add_trace(trace)
    assert next(Store(tmp_path).traces()) == trace
    assert from_json(Trace, to_json(trace)) == trace
