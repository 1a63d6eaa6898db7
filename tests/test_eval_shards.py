"""Shards of eval: put together they are what one process measures, with the same results.json."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from eval.flags import EvalFlags
from eval.stage import run
from pipeline.context import Context
from pipeline.errors import StageError
from pipeline.flags import EngineFlags, ModelFlags, ShardFlags, WorkerFlags
from pipeline.report.results import RESULTS
from pipeline.run.contract import Manifest, Plan, Start, begin, read_manifest
from pipeline.sampling.shards import Shard, bought_before
from tests.conftest import ROOT, command_line
from tests.scripted_judge import scripted_judge
from tests.served import num_asked, scripted_server
from tests.test_eval_stage import context_of, evaluate, sums
from tests.test_judge import NOWHERE, sampled
from tests.test_judge_eval import eval_context
from tests.test_judge_eval import evaluate as evaluate_judged
from tests.test_kills import Growth, killed

__all__ = ["sampled"]  # a fixture
KILLS = 3  # of each of two shards
TEACHERS = "eval.extra=[{name: again, teacher: embedded-moe}]"


@pytest.fixture(scope="module")
def whole(url: str, tmp_path_factory: pytest.TempPathFactory) -> Context:
    """What one process measures: two models on six sums, two samples each."""
    context = context_of(tmp_path_factory.mktemp("whole"), TEACHERS)
    evaluate(context, url)
    return context


def flags(url: str, shards: ShardFlags) -> EvalFlags:
    models = ModelFlags(
        model_urls=(f"teacher={url}", f"again={url}"), model_names=("teacher=scripted", "again=scripted")
    )
    return EvalFlags(EngineFlags(), models, workers=WorkerFlags(workers=1), shards=shards)


def take(context: Context, url: str, of: int) -> None:
    for number in range(of):
        run(context, flags(url, ShardFlags(shard=f"{number}/{of}")))


def merge(context: Context, url: str = NOWHERE) -> Manifest:
    run(context, flags(url, ShardFlags(merge=True)))
    return manifest_of(context)


def manifest_of(context: Context) -> Manifest:
    return context.require("eval", "the test")


def results_in(context: Context) -> bytes:
    return (context.directory("eval") / RESULTS).read_bytes()


def test_shards_put_together_are_what_one_process_measures(url: str, whole: Context, tmp_path: Path) -> None:
    context = context_of(tmp_path, TEACHERS)
    take(context, url, 2)
    before = num_asked(url)
    with pytest.raises(StageError, match=r"begun in shards, and they are not merged. Run: .* eval .*--merge"):
        context.require("eval", "report")
    made, wanted = merge(context), manifest_of(whole)
    assert num_asked(url) == before
    assert results_in(context) == results_in(whole)
    assert (made.fingerprint, made.counts) == (wanted.fingerprint, wanted.counts)
    rows = {name: output.rows for name, output in made.outputs.items()}
    assert rows == {name: output.rows for name, output in wanted.outputs.items()} | {
        f"sums.{model}.samples-0000{part}.jsonl": rows[f"sums.{model}.samples-0000{part}.jsonl"]
        for model in ("teacher", "again")
        for part in (0, 1)
    }
    for model in ("teacher", "again"):
        took, theirs = made.usage.models[model], wanted.usage.models[model]
        for name in ("prompt_tokens", "output_tokens"):
            assert took[name] == theirs[name]
        assert set(took["engine"]) == {"0/2", "1/2"}
    assert made.usage.sampled == wanted.usage.sampled
    parts = [shard_manifest(context, 2, number) for number in (0, 1)]
    assert made.seconds >= sum(part.seconds for part in parts)
    assert made.hardware == {"machines": [wanted.hardware | {"shards": 2}]}
    assert all(part.counts.kept for part in parts), "both shards hold questions"
    take(context, NOWHERE, 2)  # up to date
    merge(context)


def shard_manifest(context: Context, of: int, number: int) -> Manifest:
    manifest = read_manifest(Shard(of, number).directory(context.directory("eval")))
    assert manifest is not None
    return manifest


def write_manifest(context: Context, of: int, number: int, manifest: Manifest) -> None:
    """As though another machine had finished the shard."""
    path = Shard(of, number).directory(context.directory("eval")) / "manifest.json"
    path.write_text(json.dumps(manifest.sealed().to_json()))


def test_what_is_not_the_whole_eval_is_refused(url: str, tmp_path: Path) -> None:
    context = context_of(tmp_path, TEACHERS)
    run(context, flags(url, ShardFlags(shard="0/2")))
    with pytest.raises(
        StageError, match=r"Of 2 shards 1 is not begun \(1/2\); run: python -m pipeline eval "
    ):
        merge(context)
    run(context, flags(url, ShardFlags(shard="1/2")))
    foreign = context_of(tmp_path, TEACHERS, "eval.samples=3")
    with pytest.raises(StageError, match=r"0/2 .* of another plan; what differs:\n.*samples.sums: 2 -> 3"):
        merge(foreign)
    context = context_of(tmp_path, TEACHERS)
    held = shard_manifest(context, 2, 1)
    less = msgspec.structs.replace(held.counts, num_in=held.counts.num_in - 1, kept=held.counts.kept - 1)
    write_manifest(context, 2, 1, msgspec.structs.replace(held, counts=less))
    with pytest.raises(StageError, match=r"the 2 shards have in 23 together, .* has 24"):
        merge(context)
    write_manifest(context, 2, 1, held)
    for number, commit in ((0, "a" * 40), (1, "b" * 40)):
        part = shard_manifest(context, 2, number)
        noted = part.notes | {"revisions": {"models/Org/Teacher": commit}}
        write_manifest(context, 2, number, msgspec.structs.replace(part, notes=noted))
    with pytest.raises(
        StageError, match=r"001-of-002: was made with Org/Teacher at b{40}, and .* says a{40}"
    ):
        merge(context)
    run_revisions, directory = context.run / "revisions.json", context.directory("eval")
    run_revisions.write_text(json.dumps({"models/Org/Teacher": "a" * 40}))
    stage = begin(directory, Plan("eval", 1, {}, {}, 0), Start())
    assert stage is not None
    with stage:
        assert bought_before(directory, stage, None) == [*stage.aside, Shard(2, 0).directory(directory)]
    run_revisions.unlink()
    one = shard_manifest(context, 2, 0)
    write_manifest(context, 2, 1, msgspec.structs.replace(held, notes=one.notes))
    merge(context)
    assert json.loads(run_revisions.read_text()) == {"models/Org/Teacher": "a" * 40}


@pytest.mark.slow
@pytest.mark.parametrize("of", [1, 4, 16])
def test_any_number_of_shards_measures_the_same(of: int, url: str, whole: Context, tmp_path: Path) -> None:
    context = context_of(tmp_path, TEACHERS)
    take(context, url, of)
    made = merge(context)
    assert results_in(context) == results_in(whole)
    assert made.counts == manifest_of(whole).counts
    before = num_asked(url)
    take(context, NOWHERE, 3)  # another number of shards takes what is there
    evaluate(context_of(tmp_path, TEACHERS, force=True), NOWHERE)  # and so does one process
    assert results_in(context) == results_in(whole)
    assert num_asked(url) == before


@pytest.mark.slow
def test_the_judge_is_asked_once_by_the_merge(sampled: Path, tmp_path: Path, url: str) -> None:
    for name in ("one", "cut"):
        (tmp_path / name).mkdir()
    one, cut = (eval_context(sampled, tmp_path / name) for name in ("one", "cut"))
    with scripted_judge("right") as judge:
        evaluate_judged(one, url, judge)
        for number in (0, 1):
            run(cut, judged_flags(url, NOWHERE, ShardFlags(shard=f"{number}/2")))
        run(cut, judged_flags(NOWHERE, judge, ShardFlags(merge=True)))
    assert results_in(cut) == results_in(one)
    assert manifest_of(cut).usage.models["judge"]["sampled"] > 40


def judged_flags(teacher: str, judge: str, shards: ShardFlags) -> EvalFlags:
    models = ModelFlags(
        model_urls=(f"teacher={teacher}", f"judge={judge}"),
        model_names=("teacher=scripted", "judge=scripted"),
    )
    return replace(EvalFlags(EngineFlags(), models, workers=WorkerFlags(workers=1)), shards=shards)


@pytest.mark.slow
def test_forced_budgets_of_a_model_in_this_process_are_put_together(tmp_path: Path) -> None:
    """The embedded teacher in vLLM, its thinking closed by force; one process then adopts all samples."""
    overrides = ("eval.forced_budgets=[16]", "eval.samples=2")
    context = context_of(tmp_path, *overrides)
    engine = EvalFlags(EngineFlags(concurrency=16, kv_cache_gib=1), workers=WorkerFlags(workers=1))
    for number in (0, 1):
        run(context, replace(engine, shards=ShardFlags(shard=f"{number}/2")))
    run(context, replace(engine, shards=ShardFlags(merge=True)))
    forced = {name for name in manifest_of(context).outputs if "forced-16" in name}
    assert {"sums.teacher.forced-16.samples-00000.jsonl", "sums.teacher.forced-16.verdicts.jsonl"} <= forced
    one = context_of(tmp_path, *overrides, name="one")
    run(one, replace(engine, adopt=replace(engine.adopt, adopt=("small",))))
    assert results_in(one) == results_in(context)
    assert manifest_of(one).usage.sampled == 0


@pytest.mark.slow
def test_a_killed_shard_of_eval_goes_on_where_it_was(tmp_path: Path) -> None:
    context = context_of(tmp_path, "eval.samples=8")
    sums(tmp_path, "sums", 12)
    with scripted_server(0.1) as slow:
        command = command_line("eval", "--recipe", context.start.recipe, "--workers", 1)
        command += ["--runs", str(context.runs), "--set", "eval.samples=8", "--set", "name=small"]
        command += ["--url", f"teacher={slow}", "--served-name", "teacher=scripted", "--concurrency", "2"]
        kills = 0
        for number in (0, 1):
            growth = Growth(Shard(2, number).directory(context.directory("eval")), "sums.teacher.samples")
            for _ in range(KILLS):
                kills += killed([*command, "--shard", f"{number}/2"], growth, 3)
            subprocess.run([*command, "--shard", f"{number}/2"], cwd=ROOT, check=True, timeout=300)
        subprocess.run([*command, "--merge"], cwd=ROOT, check=True, timeout=300)
        asked = num_asked(slow)
        one = context_of(tmp_path, "eval.samples=8", name="one")
        sums(tmp_path, "sums", 12)
        evaluate(one, slow)
    print(f"{kills} kills, {asked} requests for {12 * 8} samples")
    assert kills == 2 * KILLS
    assert asked <= 12 * 8 + 2 * kills, "a kill costs no more than what was in flight"
    assert results_in(context) == results_in(one)
