"""Shards of generate: their union is what one process samples, and a merge refuses whatever is not that."""

import json
import os
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.context import Context
from pipeline.errors import PipelineError, RecipeError, StageError
from pipeline.filter import stage as filter_stage
from pipeline.flags import ShardFlags, WorkerFlags
from pipeline.run.contract import Plan, Start, begin, check_outputs, read_manifest
from pipeline.sampling.job import requests_of
from pipeline.sampling.shards import Shard, bought_before, parse_shard
from teachers import generate
from teachers.generate import is_asked
from tests.conftest import ROOT, command_line
from tests.served import num_asked, scripted_server
from tests.test_generate import context_of, flags_for, keys_of, manifest_of
from tests.test_generate import finished as whole
from tests.test_kills import Growth, killed

__all__ = ["whole"]  # a fixture: a run of 60 sums that one process has sampled


def part(url: str, text: str) -> generate.GenerateFlags:
    return replace(flags_for(url), shards=ShardFlags(shard=text))


def merge(url: str) -> generate.GenerateFlags:
    return replace(flags_for(url), shards=ShardFlags(merge=True))


def sampled(context: Context, url: str, of: int) -> Context:
    for number in range(of):
        generate.run(context, part(url, f"{number}/{of}"))
    return context


def lines_of(directory: Path, pattern: str) -> list[str]:
    return sorted(line for path in directory.glob(pattern) for line in path.read_text().splitlines())


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, without what the clock decides, in the order of their keys."""
    rows = [json.loads(line) | {"seconds": 0} for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: (row["problem_id"], row.get("sample", 0)))


def traces_of(directory: Path) -> list[dict[str, Any]]:
    """All traces of a stage, without what the clock decides."""
    return [json.loads(line) for line in lines_of(directory, "traces-*.jsonl")]


@pytest.mark.parametrize("of", [2, *(pytest.param(of, marks=pytest.mark.slow) for of in (1, 4, 7))])
def test_the_union_of_shards_is_what_one_process_samples(
    of: int, url: str, whole: Path, tmp_path: Path
) -> None:
    context = sampled(context_of(whole, tmp_path), url, of)
    generate.run(context, merge(url))
    one, merged = whole / "runs/small/generate", context.directory("generate")
    assert traces_of(merged) == traces_of(one)
    for name in ("verdicts.jsonl", "tries.jsonl"):
        assert rows_of(merged / name) == rows_of(one / name)
    made, wanted = manifest_of(context), read_manifest(one)
    assert wanted is not None
    assert (made.fingerprint, made.counts) == (wanted.fingerprint, wanted.counts)
    assert made.usage.output_tokens == wanted.usage.output_tokens
    assert made.usage.sampled == wanted.usage.sampled
    assert set(made.notes["shards"]) == {f"{number}/{of}" for number in range(of)}
    filter_stage.run(context, WorkerFlags(workers=1))
    kept = context.require("filter", "the test")
    assert kept.counts.kept == len({trace["problem_id"] for trace in traces_of(one)})


@pytest.mark.slow
def test_a_merge_links_traces_and_changes_no_shard(url: str, whole: Path, tmp_path: Path) -> None:
    context = sampled(context_of(whole, tmp_path), url, 2)
    directory = context.directory("generate")
    generate.run(context, merge(url))
    parts = sorted(directory.glob("shards/*/traces-*.jsonl"))
    assert [path.stat().st_ino for path in parts] == [
        path.stat().st_ino for path in sorted(directory.glob("traces-*.jsonl"))
    ]
    before = num_asked(url)
    for text in ("0/2", "1/2"):
        generate.run(context, part(url, text))  # still up to date
    generate.run(context, merge(url))
    generate.run(context, flags_for(url))
    assert num_asked(url) == before


@pytest.mark.slow
def test_another_number_of_shards_buys_nothing_again(url: str, whole: Path, tmp_path: Path) -> None:
    context = sampled(context_of(whole, tmp_path), url, 3)
    before = num_asked(url)
    sampled(context, url, 2)
    generate.run(context, flags_for(url))  # nor does one process that has never heard of them
    assert num_asked(url) == before
    assert keys_of(context.directory("generate")) == keys_of(whole / "runs/small/generate")


@pytest.mark.slow
def test_what_a_process_without_shards_began_is_taken_over(url: str, whole: Path, tmp_path: Path) -> None:
    context = context_of(whole, tmp_path)
    shutil.copytree(whole / "runs/small/generate", context.directory("generate"))
    (context.directory("generate") / "manifest.json").unlink()
    progress = {**manifest_of_whole(whole), "carried": {}}
    (context.directory("generate") / "progress.json").write_text(json.dumps(progress))
    before = num_asked(url)
    sampled(context, url, 2)
    generate.run(context, merge(url))
    assert num_asked(url) == before
    assert manifest_of(context).counts == read_manifest(whole / "runs/small/generate").counts  # type: ignore[union-attr]
    assert keys_of(context.run / "generate.1") == keys_of(context.directory("generate")), "moved, not deleted"


def manifest_of_whole(whole: Path) -> dict[str, Any]:
    held = json.loads((whole / "runs/small/generate/manifest.json").read_text())
    return {
        name: held[name] for name in ("stage", "stage_version", "config", "inputs", "seed", "fingerprint")
    }


def test_a_merge_cut_short_and_gone_on_with_by_one_process_changes_no_shard(
    url: str, whole: Path, tmp_path: Path
) -> None:
    context = sampled(context_of(whole, tmp_path), url, 2)
    directory = context.directory("generate")
    part_of_it = Shard(2, 0).directory(directory)
    os.link(part_of_it / "traces-00000.jsonl", directory / "traces-00000.jsonl")
    (directory / "progress.json").write_text(json.dumps({**manifest_of_whole(whole), "carried": {}}))
    generate.run(context, flags_for(url))
    check_outputs(part_of_it)
    assert keys_of(directory) == keys_of(whole / "runs/small/generate")


@pytest.mark.slow
def test_a_forced_merge_leaves_the_shards_in_their_place(url: str, whole: Path, tmp_path: Path) -> None:
    context = sampled(context_of(whole, tmp_path), url, 2)
    generate.run(context, merge(url))
    forced = replace(context, start=replace(context.start, force=True))
    generate.run(forced, merge(url))
    assert read_manifest(context.run / "generate.1") is not None
    assert not (context.run / "generate.1/shards").exists()
    assert manifest_of(context).counts == read_manifest(context.run / "generate.1").counts  # type: ignore[union-attr]


def test_what_is_not_the_whole_is_not_merged(url: str, whole: Path, tmp_path: Path) -> None:
    context = context_of(whole, tmp_path)
    with pytest.raises(StageError, match=r"no shard was begun.*--shard 0/N"):
        generate.run(context, merge(url))
    generate.run(context, part(url, "0/3"))
    generate.run(context, part(url, "2/3"))
    before = sorted(path.name for path in context.directory("generate").rglob("*"))
    with pytest.raises(StageError, match=r"Of 3 shards 1 is not begun \(1/3\); run: .*--shard 1/3"):
        generate.run(context, merge(url))
    generate.run(context, part(url, "1/3"))
    unfinished = Shard(3, 1).directory(context.directory("generate")) / "manifest.json"
    held = unfinished.read_bytes()
    unfinished.unlink()
    with pytest.raises(StageError, match=r"1 is not finished \(1/3\)"):
        generate.run(context, merge(url))
    unfinished.write_bytes(held)
    foreign = context_of(whole, tmp_path, **{"generate.sampling.max_tokens": 300})
    with pytest.raises(
        StageError, match=r"0/3 .* is of another plan; what differs:\n.*max_tokens: 256 -> 300"
    ):
        generate.run(foreign, merge(url))
    after = sorted(path.name for path in context.directory("generate").rglob("*"))
    assert set(before) <= set(after)
    assert read_manifest(context.directory("generate")) is None
    generate.run(context, merge(url))
    assert keys_of(context.directory("generate")) == keys_of(whole / "runs/small/generate")


def test_a_shard_that_was_changed_is_not_merged(url: str, whole: Path, tmp_path: Path) -> None:
    context = sampled(context_of(whole, tmp_path), url, 2)
    verdicts = Shard(2, 1).directory(context.directory("generate")) / "verdicts.jsonl"
    verdicts.write_text(verdicts.read_text().replace('"correct"', '"wrong"', 1))
    with pytest.raises(StageError, match=r"001-of-002/verdicts.jsonl: was changed after"):
        generate.run(context, merge(url))


def test_the_teacher_can_be_asked_about_a_share_of_the_problems(
    url: str, whole: Path, tmp_path: Path
) -> None:
    before = num_asked(url)
    context = context_of(whole, tmp_path, **{"generate.share": 0.5})
    generate.run(context, flags_for(url, str(whole / "runs/small")))
    assert num_asked(url) == before, "a problem keeps its samples"
    asked = {trace["problem_id"] for trace in traces_of(context.directory("generate"))}
    ids = [row["problem_id"] for row in rows_of(context.directory("generate") / "tries.jsonl")]
    assert asked == set(ids)
    assert 15 < len(ids) < 45
    assert asked == {problem for problem in ids if is_asked(problem, 0.5, 0)}
    assert all(is_asked(problem, 0.7, 0) for problem in ids), "a larger share holds a smaller one"
    filter_stage.run(context, WorkerFlags(workers=1))
    kept = context.require("filter", "the test")
    assert kept.counts.kept == len(ids)


def test_shards_of_a_source_with_a_prompt_of_its_own_merge(url: str, whole: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("user: '{question} Answer in \\boxed{}.'\n")
    context = sampled(context_of(whole, tmp_path, **{"problems.sources.0.prompt": mine}), url, 2)
    assert context.prompt.by_source
    generate.run(context, merge(url))
    requests = {trace["request"] for trace in traces_of(context.directory("generate"))}
    assert requests == {requests_of(generate.job_of(context))["sums"]}


def test_a_share_that_draws_no_problem_is_refused(whole: Path, tmp_path: Path) -> None:
    context = context_of(whole, tmp_path, **{"generate.share": 0.0001})
    with pytest.raises(StageError, match=r"generate.share: 0.0001 of 53 problems draws none"):
        generate.prepare(context)


def test_every_problem_is_in_one_shard() -> None:
    ids = [f"{number:016x}" for number in range(3000)]
    for of in (1, 2, 16):
        held = [sum(Shard(of, number).holds(problem) for problem in ids) for number in range(of)]
        assert sum(held) == len(ids)
        assert min(held) > 0.7 * len(ids) / of


@pytest.mark.parametrize("text", ["16/16", "-1/4", "1", "a/b", "1/0", "0/20000", "1/2/3", ""])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=r"--shard .*0/16 to 15/16"):
        parse_shard(text)


def test_budgets_that_look_at_all_problems_take_no_shard(url: str, whole: Path, tmp_path: Path) -> None:
    changes = {"generate.samples.redistribute": "true", "generate.samples.cap": "9"}
    context = context_of(whole, tmp_path, **changes)
    with pytest.raises(RecipeError, match="redistribute"):
        generate.run(context, part(url, "0/2"))


def test_both_flags_at_once_are_refused() -> None:
    with pytest.raises(PipelineError, match="leave --shard out"):
        ShardFlags(shard="0/2", merge=True)


@pytest.mark.slow
def test_killed_shards_lose_and_double_nothing(whole: Path, tmp_path: Path) -> None:
    """kill -9 of two shards at ten moments each, and resumed; the union is that of one process."""
    context = context_of(whole, tmp_path)
    rng, kills = random.Random(0), 0
    with scripted_server(0.1) as slow:
        command = command_line(
            "generate", "--recipe", context.start.recipe, "--runs", context.runs, "--engine", "server",
            "--url", slow, "--workers", 1, "--served-name", "scripted", "--concurrency", 2,
        )  # fmt: skip
        for number in (0, 1):
            growth = Growth(Shard(2, number).directory(context.directory("generate")))
            for _ in range(10):
                kills += killed([*command, "--shard", f"{number}/2"], growth, rng.randrange(0, 4))
            subprocess.run([*command, "--shard", f"{number}/2"], cwd=ROOT, check=True, timeout=120)
        generate.run(context, merge(slow))
        asked = num_asked(slow)
    assert kills == 20
    one = whole / "runs/small/generate"
    assert keys_of(context.directory("generate")) == keys_of(one)
    assert manifest_of(context).counts == read_manifest(one).counts  # type: ignore[union-attr]
    num_traces = len(traces_of(one))
    print(f"{kills} kills, {num_traces} traces, {asked} requests")
    assert asked <= num_traces + 2 * kills, "a kill costs no more than what was in flight"


def test_what_lies_aside_and_cannot_be_read_is_not_adopted_and_stops_no_shard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = tmp_path / "generate"
    for name, text in (("generate.1", "{}"), ("generate.2", "not JSON")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(text)
    stage = begin(parse_shard("0/2").directory(whole), Plan("generate", 1, {}, {}, 0), Start())
    assert stage is not None
    with caplog.at_level("WARNING"):
        places = bought_before(whole, stage, parse_shard("0/2"))
    assert whole in places
    assert not {tmp_path / "generate.1", tmp_path / "generate.2"} & set(places)
    assert caplog.text.count("nothing is adopted from") == 2
