"""The generate stage, its plan and its server, with a scripted teacher for the engine."""

import json
import shutil
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.context import Context, load_context
from pipeline.errors import EngineError, PipelineError, RecipeError, StageError
from pipeline.flags import AdoptFlags, EngineFlags, SamplingFlags, WorkerFlags, in_this_process
from pipeline.plan.command import run as print_plan
from pipeline.plan.estimate import Assumed
from pipeline.problems import stage as problems_stage
from pipeline.recipe.cards import Tags, card_names, sampled_teacher, teacher_card
from pipeline.records import Problem, ProblemFile, Tokens, Trace, from_json, to_json
from pipeline.run.contract import Manifest, Start, read_manifest
from pipeline.sampling import Store, request_fingerprint
from pipeline.verify.table import VERSIONS
from teachers import generate
from teachers.pilot import run_pilot, spread
from teachers.serve import command, device_shares
from teachers.serve import run as serve
from tests.conftest import ROOT, command_line
from tests.served import num_asked, scripted_server
from tests.test_kills import Growth, wait_for_lines

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


NOWHERE = "http://127.0.0.1:9/v1"


@pytest.fixture(scope="module")
def finished(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with 60 sums, and a run over them whose problems and generate stages are finished."""
    directory = tmp_path_factory.mktemp("finished")
    generate.run(with_problems(directory), flags_for(url))
    return directory


def with_problems(directory: Path, **override: Any) -> Context:
    """A run over 60 sums whose problems stage is finished."""
    write_sums(directory, 0)
    context = recipe_of(directory, directory, **override)
    problems_stage.run(context, WorkerFlags(workers=1))
    return context


def write_sums(directory: Path, num_wrong: int) -> None:
    """60 sums; the gold of the first so many is one that no answer gives."""
    rows = [
        {"question": f"What is {i} + {3 * i}?", "answer": str(4 * i + 5 * (i < num_wrong))} for i in range(60)
    ]
    (directory / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe_of(
    finished: Path, directory: Path, name: str = "small", recipe: str = RECIPE, **override: Any
) -> Context:
    path = directory / f"{name}.yaml"
    path.write_text(recipe.format(name=name, path=finished / "sums.jsonl"))
    overrides = [f"{key}={value}" for key, value in override.items()]
    return load_context(path, directory / "runs", Start(recipe=str(path)), overrides)


def context_of(finished: Path, directory: Path, name: str = "small", **override: Any) -> Context:
    """A run of its own in `directory`, with its problems stage finished."""
    context = recipe_of(finished, directory, name, **override)
    if not context.directory("problems").exists():
        shutil.copytree(finished / "runs/small/problems", context.directory("problems"))
    return context


def forced(context: Context) -> Context:
    return replace(context, start=replace(context.start, force=True))


def with_card(context: Context, **changes: Any) -> Context:
    """The same with another card of its teacher."""
    name = context.recipe.generate.teacher
    card = context.teacher_card.model_copy(update=changes)
    return replace(context, cards=replace(context.cards, teachers={name: card}))


def flags_for(url: str, *adopt: str) -> generate.GenerateFlags:
    engine = EngineFlags(engine="server", urls=(url,), served_name="scripted", concurrency=32)
    return generate.GenerateFlags(engine, AdoptFlags(adopt=adopt), WorkerFlags(workers=1))


def manifest_of(context: Context) -> Manifest:
    return context.require("generate", "the test")


def keys_of(directory: Path) -> set[tuple[str, int]]:
    return {(trace.problem_id, trace.sample) for trace in Store(directory).traces()}


def bytes_in(run: Path) -> dict[str, bytes]:
    """The files of a run's generate directories, those moved aside among them."""
    found = (path for path in run.glob("generate*/**/*") if path.is_file())
    return {str(path.relative_to(run)): path.read_bytes() for path in found}


def test_the_stage_writes_traces_verdicts_tries_and_manifest(finished: Path) -> None:
    context = recipe_of(finished, finished)
    manifest, directory = manifest_of(context), context.directory("generate")
    problems = list(ProblemFile(context.directory("problems") / "problems.jsonl"))
    tries = [json.loads(line) for line in (directory / "tries.jsonl").read_text().splitlines()]
    assert [row["problem_id"] for row in tries] == [problem.id for problem in problems]
    assert sum(row["tries"] for row in tries) == manifest.counts.kept == manifest.counts.num_in
    assert manifest.notes["solved"] + manifest.notes["given_up"] == len(problems)
    assert all(row["correct"] == 2 for row in tries if row["solved"])
    assert manifest.usage.output_tokens == sum(t.output_tokens for t in Store(directory).traces())


def test_a_second_run_is_up_to_date_and_another_plan_is_refused(
    url: str, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    generate.run(recipe_of(finished, finished), flags_for(NOWHERE))
    assert "up to date" in caplog.text
    with pytest.raises(StageError, match=r"samples\.max: 6 -> 7"):
        generate.run(recipe_of(finished, finished, **{"generate.samples.max": 7}), flags_for(url))


def test_equal_keys_are_adopted_from_another_run(url: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    bought = manifest_of(recipe_of(finished, finished)).usage.sampled
    second = context_of(finished, tmp_path, "second")
    generate.run(second, flags_for(NOWHERE, "small"))
    assert manifest_of(second).usage.adopted == bought
    with pytest.raises(
        RecipeError, match=r"--adopt missing: .*generate does not exist; known: second, small, third"
    ):
        generate.run(context_of(finished, tmp_path, "third"), flags_for(url, "missing"))


@pytest.mark.parametrize("name", ["small/generate.1", "{runs}/small/generate.1"], ids=["by name", "by path"])
def test_a_directory_that_lies_aside_can_be_adopted_by_its_name(
    finished: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    bought = manifest_of(recipe_of(finished, finished)).usage.sampled
    (tmp_path / "runs/small/generate").rename(tmp_path / "runs/small/generate.1")
    second = context_of(finished, tmp_path, "second")
    generate.run(second, flags_for(NOWHERE, name.format(runs=tmp_path / "runs")))
    assert manifest_of(second).usage.adopted == bought


@pytest.mark.slow
def test_what_force_moved_aside_is_adopted(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    context = recipe_of(finished, tmp_path)
    bought = manifest_of(context).usage.sampled
    generate.run(forced(context), flags_for(NOWHERE))
    assert manifest_of(context).usage.adopted == bought
    assert (tmp_path / "runs/small/generate.1/manifest.json").exists()


def test_a_corrected_gold_is_verified_again_and_buys_nothing(url: str, tmp_path: Path) -> None:
    with_problems(tmp_path)
    write_sums(tmp_path, num_wrong=20)
    context, directory = recipe_of(tmp_path, tmp_path), tmp_path / "runs/small/generate"
    problems_stage.run(forced(context), WorkerFlags(workers=1))
    generate.run(context, flags_for(url))
    before, asked = manifest_of(context), num_asked(url)
    problems = list(ProblemFile(context.directory("problems") / "problems.jsonl"))
    wrong = {problem.id for problem in problems[:20] if int(problem.gold) % 4}
    assert len(wrong) > 10

    write_sums(tmp_path, num_wrong=0)
    problems_stage.run(forced(context), WorkerFlags(workers=1))
    with pytest.raises(StageError, match=r"(?s)inputs\.problems: .*FORCE=1"):
        generate.run(context, flags_for(url))
    generate.run(forced(context), flags_for(url))
    after = manifest_of(context)
    assert num_asked(url) == asked
    assert (after.usage.sampled, after.usage.adopted) == (0, after.counts.kept)
    assert after.notes["solved"] > before.notes["solved"]
    assert keys_of(directory) <= keys_of(directory.with_name("generate.1"))
    old, new = (
        {(v.problem_id, v.sample): v for v in Store(path).verdicts()}
        for path in (directory.with_name("generate.1"), directory)
    )
    assert all((new[key].basis == old[key].basis) == (key[0] not in wrong) for key in new)
    assert all(verdict == old[key] for key, verdict in new.items() if key[0] not in wrong)
    assert {v.status for v in old.values() if v.problem_id in wrong} == {"wrong"}
    assert {v.status for v in new.values() if v.problem_id in wrong} == {"wrong", "correct"}


def test_corrected_tags_leave_the_plan_and_split_again(tmp_path: Path) -> None:
    right = with_problems(tmp_path)
    num_problems = generate.prepare(right).num_problems
    wrong = with_card(right, thinking=Tags(close="</thought>"))
    assert generate.prepare(wrong).plan == generate.prepare(right).plan
    assert request_fingerprint(generate.job_of(wrong)) == request_fingerprint(generate.job_of(right))
    with scripted_server(0.0, "in_text") as url:
        generate.run(wrong, flags_for(url))
        before, asked = manifest_of(wrong), num_asked(url)
        assert (before.notes["solved"], before.usage.sampled) == (0, 6 * num_problems)
        generate.run(right, flags_for(url))
        assert manifest_of(right) == before, "the finished stage is up to date"
        generate.run(forced(right), flags_for(url))
        assert num_asked(url) == asked
    after = manifest_of(right)
    assert (after.usage.sampled, after.usage.adopted) == (0, after.counts.kept)
    assert after.notes["solved"] > num_problems / 2
    wrong_digest, right_digest = (
        {verdict.basis[-8:] for verdict in Store(right.run / name).verdicts()}
        for name in ("generate.1", "generate")
    )
    assert len(wrong_digest) == len(right_digest) == 1
    assert wrong_digest != right_digest


def test_what_changes_no_trace_is_not_in_the_plan(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(finished, tmp_path)
    plan = generate.prepare(context).plan
    stated = {
        "generate.sampling.top_p": 1.0,
        "generate.sampling.top_k": 0,
        "generate.keep_tokens": "false",
        "generate.samples.redistribute": "false",
        "generate.max_failure_rate": 0.5,
        "generate.accept_licence": "some",
    }
    assert generate.prepare(context_of(finished, tmp_path, **stated)).plan.fingerprint == plan.fingerprint
    monkeypatch.setitem(VERSIONS, "new", "1")
    monkeypatch.setitem(VERSIONS, "math", "next")
    assert generate.prepare(context).plan.fingerprint == plan.fingerprint
    monkeypatch.setitem(VERSIONS, "text", "next")
    assert generate.prepare(context).plan.config["verifiers"] == {"text": "next"}
    kept = generate.prepare(context_of(finished, tmp_path, **{"generate.keep_tokens": "true"}))
    assert kept.plan.config["keep_tokens"] is True


def test_a_second_force_adopts_from_every_directory_aside(url: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    first, second, third = (recipe_of(finished, tmp_path, **{"generate.samples.keep": n}) for n in (2, 3, 4))
    failed = pytest.raises(StageError, match="requests failed")
    with scripted_server(0.0, "flaky_400") as flaky, failed:
        generate.run(forced(second), flags_for(flaky))
    run = first.run
    paid = keys_of(run / "generate") | keys_of(run / "generate.1")
    assert keys_of(run / "generate.1") < keys_of(run / "generate")
    for _ in range(2):
        with pytest.raises(EngineError, match="no server answers"):
            generate.run(forced(third), flags_for(NOWHERE))
    asked = num_asked(url)
    generate.run(forced(third), flags_for(url))
    usage, keys = manifest_of(third).usage, keys_of(run / "generate")
    assert (run / "generate.2").is_dir()
    assert usage.adopted == len(keys & paid)
    assert usage.sampled == len(keys - paid) == num_asked(url) - asked > 0


@pytest.mark.parametrize(
    ("fault", "state"),
    [(fault, state) for fault in ("adopt", "licence", "server", "prompt") for state in ("new", "moved")]
    + [("adopt", "begun"), ("server", "begun")],
)
def test_a_start_that_fails_leaves_the_directory_as_it_was(
    fault: str, state: str, url: str, finished: Path, tmp_path: Path
) -> None:
    """And the repaired call needs no FORCE. Where a directory was `moved` by FORCE, it is moved back, unless
    traces were adopted from it before the engine was asked."""
    override: dict[str, Any] = {"generate.sampling.max_tokens": 1020} if fault == "prompt" else {}
    if state == "moved":
        shutil.copytree(finished / "runs", tmp_path / "runs")
        override["generate.samples.max"] = 7
    context = context_of(finished, tmp_path, **override)
    if state == "begun":
        run_pilot(context_of(finished, tmp_path), 5, flags_for(url))
    faulty = forced(context) if state == "moved" else context
    if fault == "licence":
        faulty = with_card(faulty, training_on_outputs="restricted")
    before = bytes_in(context.run)
    with pytest.raises(PipelineError):
        generate.run(
            faulty,
            flags_for(NOWHERE if fault == "server" else url, *(["missing"] if fault == "adopt" else [])),
        )
    if (fault, state) != ("server", "moved"):
        assert bytes_in(context.run) == before
    repaired = context_of(finished, tmp_path)
    generate.run(repaired, flags_for(url))
    assert manifest_of(repaired).counts.kept > 0


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


def test_a_pilot_of_failures_fails_in_the_server_s_words(finished: Path, tmp_path: Path) -> None:
    context = context_of(finished, tmp_path)
    with scripted_server(0.0, "error_400") as address:
        with pytest.raises(StageError, match=r"pilot: \d+ of \d+ requests failed .*http_400: .*refused"):
            run_pilot(context, 2, flags_for(address))
        with pytest.raises(EngineError, match=r"the first 16 requests failed alike .*refused"):
            run_pilot(context, 20, flags_for(address))
    assert not (context.directory("generate") / "forecast.json").exists()


@pytest.mark.slow
def test_a_pilot_forecasts_and_its_traces_are_kept(
    url: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = context_of(finished, tmp_path)
    run_pilot(context, 20, flags_for(url))
    print_plan(context, Assumed())
    assert "pilot of 20 problems" in capsys.readouterr().out
    piloted = sum(1 for _ in Store(context.directory("generate")).traces())
    generate.run(context, flags_for(url))
    manifest = manifest_of(context)
    assert manifest.usage.found == piloted
    forecast = manifest.notes["forecast"]["output_tokens"]
    assert forecast["fact"] == manifest.usage.output_tokens
    assert 0.7 < forecast["ratio"] < 1.4


def test_usage_adds_up_over_the_processes_of_a_stage(url: str, finished: Path, tmp_path: Path) -> None:
    context = context_of(finished, tmp_path)
    run_pilot(context, 20, flags_for(url))
    directory = context.directory("generate")
    spent = json.loads((directory / "progress.json").read_text())["carried"]
    assert spent["engine_seconds"] > 0
    (directory / "failures.jsonl").write_text("")
    generate.run(context, flags_for(url))
    usage, traces = manifest_of(context).usage, list(Store(directory).traces())
    assert usage.engine_seconds > spent["engine_seconds"]
    assert usage.sampled == len(traces)
    assert usage.sampled_output_tokens == usage.output_tokens == sum(t.output_tokens for t in traces)
    assert usage.output_tokens / usage.tokens_per_second == pytest.approx(usage.engine_seconds, abs=0.01)
    correct = sum(verdict.status == "correct" for verdict in Store(directory).verdicts())
    assert usage.tokens_per_kept == pytest.approx(usage.output_tokens / correct, abs=0.1)


def test_adopted_traces_took_no_engine_time(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    context = context_of(finished, tmp_path, "second")
    generate.run(context, flags_for(NOWHERE, "small"))
    usage, paid = manifest_of(context).usage, manifest_of(recipe_of(finished, finished)).usage
    assert (usage.sampled, usage.sampled_output_tokens, usage.engine_seconds) == (0, 0, 0)
    assert (usage.tokens_per_second, usage.tokens_per_kept) == (None, paid.tokens_per_kept)


def engine_seconds_in(directory: Path) -> float:
    progress = json.loads((directory / "progress.json").read_text())
    return float(progress["carried"].get("engine_seconds", 0))


@pytest.mark.slow
def test_a_killed_process_leaves_its_engine_time_to_the_next(finished: Path, tmp_path: Path) -> None:
    context = context_of(finished, tmp_path)
    directory = context.directory("generate")
    with scripted_server(0.2) as address:
        command = command_line(
            "generate", "--recipe", context.start.recipe, "--runs", context.runs, "--engine", "server",
            "--url", address, "--served-name", "scripted", "--concurrency", 4,
        )  # fmt: skip
        child = subprocess.Popen(command, cwd=ROOT)
        wait_for_lines(child, Growth(directory), 50)
        while not engine_seconds_in(directory):  # they are saved every second
            assert child.poll() is None
            time.sleep(0.05)
        child.kill()
        child.wait()
        spent = engine_seconds_in(directory)
        generate.run(context, flags_for(address))
    usage = manifest_of(context).usage
    assert usage.engine_seconds > spent
    assert usage.sampled == sum(1 for _ in Store(directory).traces())


def test_a_restrictive_licence_is_to_be_acknowledged_by_name(
    url: str, finished: Path, tmp_path: Path
) -> None:
    guarded = {"licence": "Guarded-1.0", "training_on_outputs": "restricted"}
    for wrong in ({}, {"generate.accept_licence": "Apache-2.0"}):
        with pytest.raises(
            RecipeError, match=r"\(Guarded-1.0\) restricts .* set generate.accept_licence: Guarded-1.0"
        ):
            generate.run(with_card(context_of(finished, tmp_path, **wrong), **guarded), flags_for(url))
    accepted = context_of(finished, tmp_path, **{"generate.accept_licence": "Guarded-1.0"})
    prepared = generate.prepare(with_card(accepted, **guarded))
    assert prepared.plan == generate.prepare(context_of(finished, tmp_path)).plan


def edit_manifest(directory: Path, rows: int) -> None:
    """Let problems.jsonl have so many rows by its manifest."""
    path = directory / "manifest.json"
    values = json.loads(path.read_text())
    values["outputs"]["problems.jsonl"]["rows"] = rows
    del values["seal"]
    path.write_text(json.dumps(values))


def test_one_problem_gives_no_interval(url: str, finished: Path, tmp_path: Path) -> None:
    context = context_of(finished, tmp_path)
    edit_manifest(context.directory("problems"), rows=1)
    with pytest.raises(RecipeError, match="--pilot 2: there is 1 problem"):
        run_pilot(context, 2, flags_for(url))


def test_a_port_that_is_not_free_is_refused_before_the_server_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RecipeError, match=rf"--port {port}: 127.0.0.1:{port} is not free"):
            serve("embedded-moe", port, in_this_process(SamplingFlags()))
    for port in (0, 65536, -1):
        with pytest.raises(RecipeError, match=rf"--port {port}: ports are 1 to 65535"):
            serve("embedded-moe", port, EngineFlags())


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
    assert sampled_teacher(name, card).tensor_parallel == card.engine.tensor_parallel


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
    trace = Trace("p", 0, 1, "r", 'quote " and \u2028 and \\', "stop", 1, 2, "t")
    kept = replace(trace, sample=1, tokens=Tokens([3, 4], [-1e-07, -12.5]))
    with Store(tmp_path) as store:
        store.load("r", "")
        store.add_trace(trace)
        store.add_trace(kept)
    assert list(Store(tmp_path).traces()) == [trace, kept]
    assert from_json(Trace, to_json(kept)) == kept
    assert '"tokens"' not in to_json(trace)


@pytest.mark.parametrize("change", ["removed", "changed"])
def test_problems_that_are_not_those_that_were_checked_are_refused(
    url: str, tmp_path: Path, change: str
) -> None:
    context = with_problems(tmp_path)
    path = context.directory("problems") / "problems.jsonl"
    path.unlink() if change == "removed" else path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(StageError, match=r"problems\.jsonl: (is an output|was changed).*[\s\S]*FORCE=1"):
        generate.run(context, flags_for(url))
    assert not context.directory("generate").exists()


@pytest.mark.parametrize(
    ("environment", "each", "share"),
    [
        (
            {"CUDA_VISIBLE_DEVICES": "0,1,2,3"},
            2,
            [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}],
        ),
        ({"CUDA_VISIBLE_DEVICES": "4,6"}, 1, [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "6"}]),
    ],
)
def test_each_replica_has_gpus_of_its_own(
    environment: dict[str, str], each: int, share: list[dict[str, str]]
) -> None:
    assert device_shares(2, each, environment) == share
    assert device_shares(1, each, environment) == [{}]


def test_more_replicas_than_devices_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"--replicas 3: needs 6 GPUs, this machine has 4"):
        device_shares(3, 2, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    with pytest.raises(RecipeError, match=r"--replicas 4096: needs 4096 cores"):
        device_shares(4096, 1, {"CUDA_VISIBLE_DEVICES": ""})


def test_replicas_without_gpus_have_cores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {1, 2, 5})
    shares = device_shares(3, 1, {"CUDA_VISIBLE_DEVICES": ""})
    assert [share["VLLM_CPU_OMP_THREADS_BIND"] for share in shares] == ["1", "2", "5"]
    own = {"CUDA_VISIBLE_DEVICES": "", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    assert device_shares(2, 1, own) == [{}, {}]
