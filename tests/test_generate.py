"""The generate stage, its plan and its server, with a scripted teacher for the engine."""

import itertools
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import problems as problems_stage
from pipeline.cards import FOLDERS, card_names, sampled_teacher, teacher_card
from pipeline.errors import RecipeError, StageError
from pipeline.recipe import Samples, load_recipe
from pipeline.records import Problem, Trace, from_json, to_json
from pipeline.sampling import EngineFlags, Store
from pipeline.stage import Context, Start, read_manifest
from teachers import generate, plan
from teachers.assumed import Assumed, assumed_from
from teachers.estimate import Devices, expected_tries, layout_for, size_of, solved_share
from teachers.forecast import Forecast, write_forecast
from teachers.pilot import run_pilot, spread
from teachers.serve import command
from teachers.serve import run as serve
from tests.conftest import ROOT
from tests.test_kills import Growth, scripted_server

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
    generate.run(with_problems(directory), flags_for(url))
    return directory


def with_problems(directory: Path) -> Context:
    """A run over 60 sums whose problems stage is finished."""
    sums = [{"question": f"What is {i} + {3 * i}?", "answer": str(4 * i)} for i in range(60)]
    (directory / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    context = recipe_of(directory, directory)
    problems_stage.run(context, workers=1)
    return context


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
    plan.run(context, Assumed(), 20, flags_for(url))
    assert "pilot of 20 problems" in capsys.readouterr().out
    piloted = sum(1 for _ in Store(context.directory("generate")).traces())
    generate.run(context, flags_for(url))
    manifest = manifest_of(context)
    assert manifest["usage"]["found"] == piloted
    forecast = manifest["notes"]["forecast"]["output_tokens"]
    assert forecast["fact"] == manifest["usage"]["output_tokens"]
    assert 0.7 < forecast["ratio"] < 1.4


def test_usage_adds_up_over_the_processes_of_a_stage(url: str, finished: Path, tmp_path: Path) -> None:
    context = context_of(finished, tmp_path)
    run_pilot(context, 20, flags_for(url))
    directory = context.directory("generate")
    spent = json.loads((directory / "progress.json").read_text())["carried"]
    assert spent["engine_seconds"] > 0
    (directory / "failures.jsonl").write_text("")
    generate.run(context, flags_for(url))
    usage, traces = manifest_of(context)["usage"], list(Store(directory).traces())
    assert usage["engine_seconds"] > spent["engine_seconds"]
    assert usage["sampled"] == len(traces)
    assert usage["sampled_output_tokens"] == usage["output_tokens"] == sum(t.output_tokens for t in traces)
    assert usage["tokens_per_second"] == pytest.approx(
        usage["output_tokens"] / usage["engine_seconds"], rel=0.1
    )
    correct = sum(verdict.status == "correct" for verdict in Store(directory).verdicts())
    assert usage["tokens_per_kept"] == pytest.approx(usage["output_tokens"] / correct, abs=0.1)


def test_adopted_traces_took_no_engine_time(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    context = context_of(finished, tmp_path, "second")
    generate.run(context, flags_for("http://127.0.0.1:9/v1", "small"))
    usage, paid = manifest_of(context)["usage"], manifest_of(recipe_of(finished, finished))["usage"]
    assert (usage["sampled"], usage["sampled_output_tokens"], usage["engine_seconds"]) == (0, 0, 0)
    assert (usage["tokens_per_second"], usage["tokens_per_kept"]) == (None, paid["tokens_per_kept"])


def test_a_killed_process_leaves_its_engine_time_to_the_next(finished: Path, tmp_path: Path) -> None:
    context = context_of(finished, tmp_path)
    directory = context.directory("generate")
    with scripted_server(0.2) as address:
        command = [sys.executable, "-m", "pipeline", "generate", "--recipe", context.start.recipe]
        command += ["--runs", context.runs, "--engine", "server", "--url", address]
        child = subprocess.Popen([*command, "--served-name", "scripted", "--concurrency", "4"], cwd=ROOT)
        growth, end = Growth(directory), time.monotonic() + 60
        while growth.num_lines() < 50 and time.monotonic() < end:
            time.sleep(0.05)
        child.kill()
        child.wait()
        spent = json.loads((directory / "progress.json").read_text())["carried"]["engine_seconds"]
        assert spent > 50 * 0.2 / 4 / 2
        generate.run(context, flags_for(address))
    usage = manifest_of(context)["usage"]
    assert usage["engine_seconds"] > spent + 0.2
    assert usage["sampled"] == sum(1 for _ in Store(directory).traces())


def test_a_restrictive_licence_is_to_be_acknowledged_by_name(
    url: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cards = tmp_path / "cards"
    cards.mkdir()
    card = (FOLDERS["teacher"] / "embedded-moe.yaml").read_text()
    card = card.replace("licence: Apache-2.0", "licence: Guarded-1.0").replace(
        "outputs: allowed", "outputs: restricted"
    )
    (cards / "embedded-moe.yaml").write_text(card)
    monkeypatch.setitem(FOLDERS, "teacher", cards)
    for wrong in ({}, {"generate.accept_licence": "Apache-2.0"}):
        with pytest.raises(
            RecipeError, match=r"\(Guarded-1.0\) restricts .* set generate.accept_licence: Guarded-1.0"
        ):
            generate.run(context_of(finished, tmp_path, **wrong), flags_for(url))
    accepted = context_of(finished, tmp_path, **{"generate.accept_licence": "Guarded-1.0"})
    assert generate.prepare(accepted).plan.config["accept_licence"] == "Guarded-1.0"


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("pass_rate=1.5", "out of range, expected 0 to 1"),
        ("pass_rate=nan", "out of range"),
        ("bandwidth=0", "out of range"),
        ("memory=inf", "out of range"),
        ("devices=0", "out of range"),
        ("concurrency=1", "out of range, expected 8 to"),
        ("devices=two", "expected a number after '=', found 'two'"),
        ("devices", "expected a number after '=', found ''"),
        ("device=2", "unknown name; did you mean 'devices'"),
    ],
)
def test_what_cannot_be_assumed_is_refused(pair: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"--assume {pair}: {message}"):
        assumed_from([pair])


def test_a_pilot_is_scaled_to_the_problems_that_are_assumed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = context_of(finished, tmp_path)
    figures = Forecast(20, 60, 0.6, 0.9, 3.0, 100.0, 18_000, 15_000, 21_000, 1000.0)
    context.directory("generate").mkdir()
    write_forecast(context.directory("generate"), figures)
    plan.run(context, assumed_from(["problems=600"]), None, generate.GenerateFlags())
    printed = capsys.readouterr().out
    assert re.search(r"output tokens +180,000 +pilot of 20", printed)
    assert re.search(r"95% interval of them +150,000 to 210,000", printed)


def test_one_problem_gives_no_interval(url: str, finished: Path, tmp_path: Path) -> None:
    context = context_of(finished, tmp_path)
    rows = context.directory("problems") / "problems.jsonl"
    rows.write_text(rows.read_text().splitlines(keepends=True)[0])
    with pytest.raises(RecipeError, match="--pilot 2: there is 1 problem"):
        run_pilot(context, 2, flags_for(url))


def test_a_port_that_is_not_free_is_refused_before_the_server_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RecipeError, match=rf"--port {port}: 127.0.0.1:{port} is not free"):
            serve("embedded-moe", port, EngineFlags())
    for port in (0, 65536, -1):
        with pytest.raises(RecipeError, match=rf"--port {port}: ports are 1 to 65535"):
            serve("embedded-moe", port, EngineFlags())


def test_a_plan_without_a_pilot_buys_nothing(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = context_of(finished, tmp_path)
    plan.run(context, Assumed(), None, generate.GenerateFlags())
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


def test_a_trace_of_the_store_is_what_was_written(tmp_path: Path) -> None:
    trace = Trace("p", 0, 1, "r", None, 'quote " and \u2028 and \\', "stop", 1, 2, "t")
    with Store(tmp_path) as store:
        store.load("r")
        store.add_trace(trace)
    assert next(Store(tmp_path).traces()) == trace
    assert from_json(Trace, to_json(trace)) == trace
