"""The loop, the store and the server engine, against a scripted teacher on loopback."""

import asyncio
import json
import os
import re
import resource
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pipeline.errors import EngineError, RecipeError, StageError
from pipeline.flags import EngineFlags
from pipeline.recipe.cards import Tags
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.schema import Samples, Sampling
from pipeline.records import Problem, Tokens, Trace, to_json, trace_row
from pipeline.render import Split, split_response
from pipeline.sampling import Job, Options, Store, Tally, collect, request_fingerprint, start_engine
from pipeline.sampling.adopt import AdoptedRun
from pipeline.sampling.engines.vllm import has_one_thread
from pipeline.sampling.job import sample_seed
from pipeline.sampling.progress import describe
from pipeline.verify import VerifierPool
from pipeline.verify.basis import tags_digest
from tests.collect_child import MODEL, make_problems
from tests.scripted_teacher import BEHAVIOURS, ScriptedTeacher, answer, kept_tokens, with_odd_blanks

SAMPLING = Sampling(temperature=1.0, max_tokens=100)
TAGS = tags_digest(MODEL.tags)


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(workers=1) as workers:
        yield workers


def make_job(keep: int, most: int, **more: Any) -> Job:
    return Job(MODEL, PROMPTS["plain"], SAMPLING, Samples(keep=keep, max=most, **more), 0)


def split_of(trace: Trace) -> Split:
    return split_response(trace.response, MODEL.tags)


def outcomes(job: Job, problem: Problem, count: int) -> list[bool]:
    """Whether each of the first samples is right, from the script itself."""
    return [
        answer(problem.question, sample_seed(job.seed, problem, i))[1] == f"\\boxed{{{problem.gold}}}"
        for i in range(count)
    ]


def tries_by_rule(right: list[bool], keep: int) -> int:
    """The smallest number of samples that holds `keep` right ones, all of them where there is none."""
    return next((n for n in range(len(right) + 1) if sum(right[:n]) == keep), len(right))


class Run:
    """One collection against a scripted teacher of its own."""

    def __init__(self, behaviour: str = "good", delay: float = 0.0, **flags: Any) -> None:
        self.teacher = ScriptedTeacher(behaviour, delay)
        self.flags = {"concurrency": 16, "request_timeout_seconds": 1.0, "outage_seconds": 1.0, **flags}
        self.notes: dict[str, Any] = {}

    def __call__(
        self,
        job: Job,
        problems: Any,
        directory: Path,
        pool: VerifierPool | None,
        sources: tuple[Any, ...] = (),
        watcher: "Release | None" = None,
    ) -> Tally:
        return asyncio.run(self._run(job, problems, directory, pool, Options(16, sources, watcher)))

    async def _run(
        self, job: Job, problems: Any, directory: Path, pool: VerifierPool | None, options: Options
    ) -> Tally:
        runner = web.AppRunner(self.teacher.application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.1).start()
        flags = EngineFlags(
            engine="server", urls=(f"http://127.0.0.1:{runner.addresses[0][1]}/v1",), **self.flags
        )
        try:
            with Store(directory) as store:
                async with start_engine(job.model, flags) as engine:
                    self.notes = engine.notes
                    return await collect(job, problems, engine, store, pool, options)
        finally:
            await runner.cleanup()


class Release:
    """Lets the teacher answer what it holds when there are `sampled` traces."""

    def __init__(self, teacher: ScriptedTeacher, sampled: int) -> None:
        self.teacher, self.sampled = teacher, sampled

    async def watch(self, tally: Tally) -> None:
        while tally.sampled < self.sampled:
            await asyncio.sleep(0.01)
        self.teacher.released.set()


def keys_in(directory: Path) -> Counter[tuple[str, int]]:
    return Counter((trace.problem_id, trace.sample) for trace in Store(directory).traces())


def test_samples_follow_the_budget_rule_and_not_the_timing(tmp_path: Path, pool: VerifierPool) -> None:
    job, problems = make_job(2, 6), make_problems(60)
    tally = Run(delay=0.01)(job, problems, tmp_path, pool)
    expected = {
        (problem.id, i) for problem in problems for i in range(tries_by_rule(outcomes(job, problem, 6), 2))
    }
    found = keys_in(tmp_path)
    assert set(found) == expected
    assert set(found.values()) == {1}
    assert tally.sampled == len(expected)
    assert tally.solved == sum(sum(outcomes(job, problem, 6)) >= 2 for problem in problems)
    assert tally.solved + tally.given_up == len(problems)
    assert sum(1 for _ in Store(tmp_path).verdicts()) == len(expected)


def test_keep_equal_to_max_samples_exactly_max(tmp_path: Path, pool: VerifierPool) -> None:
    tally = Run()(make_job(3, 3), make_problems(10), tmp_path, pool)
    assert tally.sampled == 30


def test_without_a_pool_all_of_max_is_sampled(tmp_path: Path) -> None:
    tally = Run()(make_job(1, 3), make_problems(10), tmp_path, None)
    assert tally.sampled == 30
    assert not list(Store(tmp_path).verdicts())


def test_a_second_collection_asks_for_nothing(tmp_path: Path, pool: VerifierPool) -> None:
    job, problems = make_job(2, 4), make_problems(20)
    first = Run()(job, problems, tmp_path, pool)
    again = Run()
    second = again(job, problems, tmp_path, pool)
    assert (second.sampled, second.found) == (0, first.sampled)
    assert (second.solved, second.given_up) == (first.solved, first.given_up)
    assert not again.teacher.asked


def test_resume_tops_up_what_is_missing_and_verifies_what_is_not(tmp_path: Path, pool: VerifierPool) -> None:
    job, problems = make_job(2, 4), make_problems(20)
    Run()(job, problems, tmp_path, pool)
    whole = keys_in(tmp_path)
    lines = (tmp_path / "traces-00000.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "traces-00000.jsonl").write_text("".join(lines[:15]) + lines[15][:40])
    (tmp_path / "verdicts.jsonl").write_text("")
    resumed = Run()(job, problems, tmp_path, pool)
    assert keys_in(tmp_path) == whole
    assert (resumed.found, resumed.sampled) == (15, len(lines) - 15)
    assert sum(1 for _ in Store(tmp_path).verdicts()) == len(lines)


def test_a_torn_tail_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = make_job(1, 1)
    (tmp_path / "traces-00000.jsonl").write_text('{"problem_id": "0123')
    store = Store(tmp_path)
    store.load(request_fingerprint(job), TAGS)
    store.close()
    assert "the last line was torn by a kill; cut 20 bytes" in caplog.text
    assert (tmp_path / "traces-00000.jsonl").read_bytes() == b""


def a_trace(problem: str, sample: int, request: str, text: str = "1") -> Trace:
    return Trace(problem, sample, 5, request, f"so\n</think>\n\n{text}", "stop", 3, 4, "scripted")


def test_a_foreign_request_is_refused(tmp_path: Path) -> None:
    (tmp_path / "traces-00000.jsonl").write_text(to_json(a_trace("p", 0, "another")) + "\n")
    with pytest.raises(StageError, match=r"traces-00000.jsonl:1: this trace is of request another"):
        Store(tmp_path).load("this", TAGS)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "traces-00000.jsonl").write_text((to_json(a_trace("p", 0, "r")) + "\n") * 2)
    with pytest.raises(StageError, match="a second trace of problem p, sample 0"):
        Store(tmp_path).load("r", TAGS)


def test_a_line_that_is_no_trace_is_named(tmp_path: Path) -> None:
    (tmp_path / "traces-00000.jsonl").write_text('{"problem_id": "p"}\n')
    with pytest.raises(StageError, match=r"traces-00000.jsonl:1: is not a trace"):
        Store(tmp_path).load("r", TAGS)


def test_shards_rotate_at_their_size_and_stream_in_order(tmp_path: Path) -> None:
    with Store(tmp_path, "tasks.base.samples", max_shard_bytes=1000) as store:
        store.load("r", TAGS)
        for i in range(50):
            store.add_trace(a_trace("p", i, "r", "x" * 50))
    shards = sorted(path.name for path in tmp_path.glob("tasks.base.samples-*.jsonl"))
    assert len(shards) > 5
    assert (tmp_path / "tasks.base.verdicts.jsonl").exists()
    again = Store(tmp_path, "tasks.base.samples")
    assert [trace.sample for trace in again.traces()] == list(range(50))
    again.load("r", TAGS)
    assert again.keys.num_traces == 50
    assert again.keys.output_tokens == 200
    again.close()


def test_text_that_looks_like_a_field_does_not_fool_the_reader(tmp_path: Path) -> None:
    text = '", "finish_reason": "stop", "prompt_tokens": 9, "output_tokens": 9, "teacher": "x"}\n'
    with Store(tmp_path) as store:
        store.load("r", TAGS)
        store.add_trace(a_trace("p", 0, "r", text * 20))
    again = Store(tmp_path)
    again.load("r", TAGS)
    assert (again.keys.prompt_tokens, again.keys.output_tokens) == (3, 4)
    assert next(again.traces()).response == f"so\n</think>\n\n{text * 20}"
    again.close()


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_each_behaviour_ends_as_a_trace_or_a_failure_kind(
    behaviour: str, tmp_path: Path, pool: VerifierPool
) -> None:
    kinds = {
        "error_500": "http_500", "hang": "timeout", "drop": "connection", "invalid_json": "invalid_json",
        "empty_choices": "empty_choices", "wrong_model": "wrong_model", "error_400": "http_400",
        "odd_reason": "invalid_answer",
    }  # fmt: skip
    run = Run(request_timeout_seconds=0.3 if behaviour == "hang" else 5.0, outage_seconds=10.0)
    tally = run(make_job(2, 2), make_problems(2, f"[{behaviour}]"), tmp_path, pool)
    traces = list(Store(tmp_path).traces())
    if behaviour in kinds:
        assert tally.failed == {kinds[behaviour]: 4}
        rows = [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]
        assert {row["kind"] for row in rows} == {kinds[behaviour]}
        assert not traces
    else:
        cut = "length" if behaviour == "cut_thinking" else "stop"
        assert {trace.finish_reason for trace in traces} == {cut}
        assert len(traces) == 4
        closed = behaviour not in ("cut_thinking", "unclosed", "no_tags")
        assert {split_of(trace).closing for trace in traces} == {"closed" if closed else "unclosed"}
        assert all("adding [" in str(split_of(trace).thinking) for trace in traces) == (
            behaviour != "no_tags"
        )
        assert all(split_of(trace).answer.startswith("\\boxed{") == closed for trace in traces)


def test_a_response_is_stored_byte_for_byte(tmp_path: Path, pool: VerifierPool) -> None:
    job, problems = make_job(3, 3), make_problems(3, "[odd_blanks]")
    tally = Run()(job, problems, tmp_path, pool)
    questions = {problem.id: problem.question for problem in problems}
    for trace in Store(tmp_path).traces():
        thinking, text, _ = answer(questions[trace.problem_id], trace.seed)
        assert trace.response == with_odd_blanks(thinking, text)
        assert split_of(trace) == Split(f" \n\t{thinking}  ", text, "closed")
    assert tally.correct == sum(sum(outcomes(job, problem, 3)) for problem in problems) > 0


def test_a_reasoning_parser_is_undone(tmp_path: Path, pool: VerifierPool) -> None:
    Run("good")(make_job(1, 1), make_problems(1), tmp_path / "taken apart", pool)
    Run("in_text")(make_job(1, 1), make_problems(1), tmp_path / "whole", pool)
    apart, whole = (next(Store(tmp_path / name).traces()) for name in ("taken apart", "whole"))
    assert apart == whole
    tags = Tags(open="<a>", close="</a>", opened_by_prompt=False)
    job = replace(make_job(1, 1), model=replace(MODEL, tags=tags))
    Run("good")(job, make_problems(1), tmp_path / "other tags", pool)
    other = next(Store(tmp_path / "other tags").traces())
    assert other.response.startswith("<a>\nadding [")
    assert split_response(other.response, tags) == split_of(whole)


def run_with_tokens(behaviour: str = "good", owner: str = "vllm") -> Run:
    run = Run(behaviour)
    run.teacher.owner = owner
    return run


def test_tokens_are_kept_where_the_recipe_asks(tmp_path: Path, pool: VerifierPool) -> None:
    job, problems = replace(make_job(2, 3), keep_tokens=True), make_problems(20)
    first = run_with_tokens()(job, problems, tmp_path / "kept", pool)
    traces = list(Store(tmp_path / "kept").traces())
    assert all(Tokens(*kept_tokens(trace.output_tokens)) == trace.tokens for trace in traces)
    lines = (tmp_path / "kept/traces-00000.jsonl").read_bytes().splitlines(keepends=True)
    assert [trace_row(line)[:2] for line in lines] == [(trace.problem_id, trace.sample) for trace in traces]

    (tmp_path / "kept/traces-00000.jsonl").write_bytes(b"".join(lines[:15]) + lines[15][:-9])
    resumed = run_with_tokens()(job, problems, tmp_path / "kept", pool)
    assert (resumed.found, resumed.sampled) == (15, len(lines) - 15)
    assert sorted(map(str, Store(tmp_path / "kept").traces())) == sorted(map(str, traces))

    run = run_with_tokens()
    plain = run(
        replace(job, keep_tokens=False),
        problems,
        tmp_path / "plain",
        pool,
        (AdoptedRun(tmp_path / "kept", job),),
    )
    assert (plain.adopted, plain.sampled) == (first.sampled, 0)
    assert not run.teacher.asked


def test_traces_without_tokens_are_not_adopted_where_they_are_kept(
    tmp_path: Path, pool: VerifierPool
) -> None:
    job, problems = make_job(2, 3), make_problems(5)
    run_with_tokens()(job, problems, tmp_path / "plain", pool)
    kept = replace(job, keep_tokens=True)
    assert request_fingerprint(kept) == request_fingerprint(job)
    source = AdoptedRun(tmp_path / "plain", kept)
    tally = run_with_tokens()(kept, problems, tmp_path / "kept", pool, (source,))
    assert (tally.adopted, tally.sampled) == (0, len(source))
    assert all(trace.tokens for trace in Store(tmp_path / "kept").traces())


def test_a_server_that_gives_no_tokens_is_refused_at_its_first_answer(
    tmp_path: Path, pool: VerifierPool
) -> None:
    run, job = run_with_tokens(owner="script"), replace(make_job(2, 3), keep_tokens=True)
    with pytest.raises(
        EngineError, match=r"does not give a log-probability for each token id.*keep_tokens: false"
    ):
        run(job, make_problems(100), tmp_path, pool)
    assert sum(run.teacher.asked.values()) <= 32, "two for each place at the server"


def test_a_transient_error_is_asked_again(tmp_path: Path, pool: VerifierPool) -> None:
    run = Run("error_500_once")
    tally = run(make_job(1, 1), make_problems(8), tmp_path, pool)
    assert (tally.sampled, sum(tally.failed.values())) == (8, 0)
    assert set(run.teacher.asked.values()) == {2}


def test_failures_are_tried_again_on_resume(tmp_path: Path, pool: VerifierPool) -> None:
    job, problems = make_job(1, 1), make_problems(8)
    failed = Run("error_400")(job, problems, tmp_path, pool)
    assert failed.failed == {"http_400": 8}
    assert Run()(job, problems, tmp_path, pool).sampled == 8


def test_the_key_is_sent_and_never_recorded(
    tmp_path: Path, pool: VerifierPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RETORT_API_KEY", "sk-very-secret\n")  # as `cat` of a file would leave it
    run = Run()
    problems = make_problems(2, "[error_400]") + make_problems(2, "[wrong_model]")
    run(make_job(1, 1), problems, tmp_path, pool)
    recorded = (tmp_path / "failures.jsonl").read_text()
    assert "refused Bearer ***" in recorded
    assert "another, for Bearer ***" in recorded
    assert "sk-very-secret" not in recorded + caplog.text + json.dumps(run.notes)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_ends_the_collection(status: int, tmp_path: Path, pool: VerifierPool) -> None:
    with pytest.raises(EngineError, match="RETORT_API_KEY"):
        Run(f"error_{status}")(make_job(1, 1), make_problems(2), tmp_path, pool)


def test_no_server_is_an_error_that_says_what_to_start(tmp_path: Path, pool: VerifierPool) -> None:
    async def attempt() -> None:
        flags = EngineFlags(engine="server", urls=("http://127.0.0.1:9/v1",))
        with Store(tmp_path) as store:
            async with start_engine(MODEL, flags) as engine:
                await collect(make_job(1, 1), make_problems(1), engine, store, pool)

    with pytest.raises(EngineError, match=r"no server answers .* make serve-teacher"):
        asyncio.run(attempt())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"engine": "server"}, "at least one --url"),
        ({"engine": "vllm", "urls": ("http://x/v1",)}, "takes none"),
        ({"engine": "server", "urls": ("http://user:pw@x/v1",)}, "no user or password"),
        ({"engine": "server", "urls": ("nonsense",)}, "--url nonsense: is not the http:// .*127.0.0.1"),
        ({"engine": "server", "urls": ("ftp://x/v1",)}, "--url ftp://x/v1: is not the http://"),
        ({"engine": "server", "urls": ("http:///v1",)}, "give one with its host"),
        ({"engine": "server", "urls": ("http://x/v1", "http://x:port/v1")}, "--url http://x:port/v1: is not"),
        ({"engine": "server", "urls": ("http://[::1/v1",)}, "is not the http://"),
        ({"engine": "server", "urls": ("http://x/v1?key=sk-1",)}, "is not the http://"),
        ({"engine": "server", "urls": ("http://x/v1", "http://x/v1/")}, "one server stands twice"),
        ({"concurrency": 0}, "--concurrency 0"),
        ({"tensor_parallel": 0}, "--tensor-parallel 0: at least 1 device; leave it out for the card's"),
        ({"data_parallel": -1}, "--data-parallel -1: at least 1 device"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        EngineFlags(**flags)


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store(tmp_path) as store:
        store.load("r", TAGS)
        store.add_trace(a_trace("p", 0, "r"))
        path = tmp_path / "traces-00000.jsonl"
        whole = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 50, limits[1]))
        try:
            with pytest.raises(
                StageError, match=r"traces-00000.jsonl: cannot be written .*run the same command"
            ):
                store.add_trace(a_trace("p", 1, "r"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == whole
        store.add_trace(a_trace("p", 2, "r"))
    assert [trace.sample for trace in Store(tmp_path).traces()] == [0, 2]


def test_a_sample_that_fails_leaves_the_others_of_its_problem(tmp_path: Path, pool: VerifierPool) -> None:
    problems = make_problems(20, "[flaky_400]")
    tally = Run()(make_job(4, 4), problems, tmp_path, pool)
    kept = Counter(problem for problem, _ in keys_in(tmp_path))
    assert tally.sampled + tally.failed["http_400"] == 80
    assert 0 < tally.failed["http_400"] < 80
    assert sum(0 < kept[problem.id] < 4 for problem in problems) > 10


def test_keys_are_contents_and_not_places(tmp_path: Path, pool: VerifierPool) -> None:
    job, problems = make_job(2, 2), make_problems(20)
    Run()(job, problems, tmp_path, pool)
    edited = make_problems(21)[20]
    run = Run()
    tally = run(job, [edited, *reversed(problems[1:])], tmp_path, pool)
    assert (tally.found, tally.sampled) == (38, 2)
    assert all(question.startswith(edited.question) for question in run.teacher.asked)
    questions = {problem.id: problem.question for problem in [*problems, edited]}
    for trace in Store(tmp_path).traces():
        assert split_of(trace).answer == answer(questions[trace.problem_id], trace.seed)[1]


def test_samples_of_one_problem_and_of_one_number_have_seeds_of_their_own() -> None:
    problems = make_problems(500)
    seeds = {sample_seed(0, problem, i) for problem in problems for i in range(8)}
    assert len(seeds) == 4000
    assert sample_seed(0, problems[0], 1) != sample_seed(1, problems[0], 1)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_slow_answer_holds_no_other_up(tmp_path: Path, pool: VerifierPool) -> None:
    """Two answers are held back until all others are there; were those waiting for them, all would time out."""
    problems = [*make_problems(2, "[hold]"), *make_problems(60)]
    run = Run(request_timeout_seconds=30.0, outage_seconds=10.0, concurrency=4)
    tally = run(make_job(1, 1), problems, tmp_path, pool, watcher=Release(run.teacher, 60))
    assert (tally.sampled, tally.failed) == (62, {})
    last = [trace.problem_id for trace in Store(tmp_path).traces()][60:]
    assert set(last) == {problem.id for problem in problems[:2]}


def test_a_cut_trace_is_never_enough(tmp_path: Path, pool: VerifierPool) -> None:
    problems = make_problems(5, "[cut_answer]")
    tally = Run()(make_job(1, 3), problems, tmp_path, pool)
    assert (tally.sampled, tally.correct, tally.given_up) == (15, 0, 5)
    assert any(verdict.status == "correct" for verdict in Store(tmp_path).verdicts())
    again = Run()(make_job(1, 3), problems, tmp_path, pool)
    assert (again.sampled, again.given_up) == (0, 5)


@pytest.mark.parametrize(
    ("tally", "said"),
    [
        (Tally(), r"0/10 problems \(0 solved, 0 given up\) waiting for the engine"),
        (Tally(solved=6, found=6), r"6/10 .* 6 found 0 adopted waiting"),
        # 5 of the 6 were there before: 1 in 10 seconds, so 4 take 40 and not 7
        (Tally(solved=6, found=5, sampled=1, done_before=5, first_launch=-10.0), r"0:00:40 left"),
        (Tally(solved=6, adopted=9, sampled=1, output_tokens=10, correct=10, verified_tokens=500, first_launch=-1.0), r" 50 tok/kept"),
        (Tally(solved=10, sampled=10, first_launch=-1.0), r"tok/s$"),
    ],
    ids=["start", "found", "time left", "tokens", "end"],
)  # fmt: skip
def test_progress_counts_what_is_bought_now(tally: Tally, said: str) -> None:
    tally.first_launch += time.monotonic() if tally.first_launch else 0.0
    assert re.search(said, describe(tally, 10)), describe(tally, 10)


def test_redistribution_gives_saved_samples_to_the_hardest(tmp_path: Path, pool: VerifierPool) -> None:
    plain, more = make_job(2, 3), make_job(2, 3, redistribute=True, cap=8)
    problems = make_problems(60)
    before = Run()(plain, problems, tmp_path / "plain", pool)
    after = Run()(more, problems, tmp_path / "more", pool)
    tries = {p.id: tries_by_rule(outcomes(plain, p, 3), 2) for p in problems}
    right = {p.id: sum(outcomes(plain, p, 3)) for p in problems}
    saved = sum(3 - tries[p.id] for p in problems if right[p.id] >= 2)
    extra = after.sampled - before.sampled
    assert 0 < extra <= saved
    assert after.solved > before.solved
    assert after.solved + after.given_up == len(problems)
    counts = Counter(problem for problem, _ in keys_in(tmp_path / "more"))
    assert max(counts.values()) <= 8
    again = Run()(more, problems, tmp_path / "more", pool)
    assert again.sampled == 0


def test_adopted_traces_are_bought_once(tmp_path: Path, pool: VerifierPool) -> None:
    job, problems = make_job(2, 4), make_problems(30)
    first = Run()(job, problems, tmp_path / "first", pool)
    source = AdoptedRun(tmp_path / "first", job)
    assert len(source) == first.sampled
    run = Run()
    tally = run(job, problems, tmp_path / "second", pool, (source,))
    source.close()
    assert (tally.adopted, tally.sampled, tally.solved) == (first.sampled, 0, first.solved)
    assert keys_in(tmp_path / "second") == keys_in(tmp_path / "first")
    assert not run.teacher.asked


def test_a_broken_line_is_not_adopted_but_named(tmp_path: Path, pool: VerifierPool) -> None:
    job, problems = make_job(1, 1), make_problems(3)
    Run()(job, problems, tmp_path / "first", pool)
    path = tmp_path / "first/traces-00000.jsonl"
    path.write_text(path.read_text().replace('"teacher": ', '"taecher": '))
    with pytest.raises(
        StageError, match=r"traces-00000.jsonl: the line at byte \d+ is not a trace .*remove that line"
    ):
        Run()(job, problems, tmp_path / "second", pool, (AdoptedRun(tmp_path / "first", job),))


def test_another_sampling_adopts_nothing(tmp_path: Path, pool: VerifierPool) -> None:
    Run()(make_job(1, 1), make_problems(3), tmp_path / "first", pool)
    other = replace(make_job(1, 1), seed=1)
    assert len(AdoptedRun(tmp_path / "first", other)) == 0


def test_a_verdict_is_adopted_where_it_still_holds(tmp_path: Path, pool: VerifierPool) -> None:
    job, problem = make_job(1, 1), make_problems(1)[0]
    Run()(job, [problem], tmp_path, pool)
    retagged = replace(job, model=replace(MODEL, tags=Tags(close="</thought>")))
    cases = {
        "as it was": (job, problem, True),
        "another gold": (job, replace(problem, gold="5"), False),
        "another verifier": (job, replace(problem, verifier="math"), False),
        "other metadata": (job, replace(problem, metadata={"a": 1}), False),
        "other tags": (retagged, problem, False),
    }
    for name, (wanted, asked, holds) in cases.items():
        source = AdoptedRun(tmp_path, wanted)
        taken = source.take(asked, 0)
        source.close()
        assert taken is not None, name
        assert (taken[1] is not None) == holds, name


def test_a_store_verifies_again_where_the_tags_were_corrected(tmp_path: Path, pool: VerifierPool) -> None:
    """No answer is read with the first tags, all are with the second ones: the same traces, split anew."""
    problems = make_problems(10, "[odd_blanks]")
    wrong = replace(make_job(4, 4), model=replace(MODEL, tags=Tags(close="</thought>")))
    before = Run()(wrong, problems, tmp_path, pool)
    assert (before.sampled, before.correct) == (40, 0)
    right, run = make_job(4, 4), Run()
    assert request_fingerprint(right) == request_fingerprint(wrong)
    after = run(right, problems, tmp_path, pool)
    assert (after.found, after.sampled) == (40, 0)
    assert after.correct == sum(sum(outcomes(right, problem, 4)) for problem in problems)
    assert not run.teacher.asked
    again = Run()(right, problems, tmp_path, pool)
    assert (again.solved, again.found) == (after.solved, 40)
    assert sum(1 for _ in Store(tmp_path).verdicts()) == 80, "no verdict was asked for a third time"
    Run()(wrong, problems, tmp_path, pool)
    last = {(verdict.problem_id, verdict.sample): verdict for verdict in Store(tmp_path).verdicts()}
    assert {verdict.basis[-8:] for verdict in last.values()} == {tags_digest(wrong.model.tags)}


def test_a_smaller_budget_adopts_only_what_it_would_have_sampled(tmp_path: Path, pool: VerifierPool) -> None:
    problems = make_problems(30)
    Run()(make_job(4, 4), problems, tmp_path / "large", pool)
    job = make_job(1, 4)
    tally = Run()(job, problems, tmp_path / "small", pool, (AdoptedRun(tmp_path / "large", job),))
    assert tally.sampled == 0
    assert tally.adopted == sum(tries_by_rule(outcomes(job, problem, 4), 1) for problem in problems)


def test_one_of_two_servers_dies_and_the_other_takes_over(tmp_path: Path, pool: VerifierPool) -> None:
    teachers = [ScriptedTeacher("good", 0.05) for _ in range(2)]

    async def collection() -> tuple[Tally, dict[str, Any]]:
        runners = []
        for teacher in teachers:
            runner = web.AppRunner(teacher.application())
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0).start()
            runners.append(runner)
        urls = tuple(f"http://127.0.0.1:{runner.addresses[0][1]}/v1" for runner in runners)

        async def end_the_first() -> None:
            while sum(teachers[0].asked.values()) < 30:
                await asyncio.sleep(0.01)
            await runners[0].cleanup()

        end = asyncio.create_task(end_the_first())
        with Store(tmp_path) as store:
            async with start_engine(MODEL, EngineFlags(engine="server", urls=urls, concurrency=16)) as engine:
                tally = await collect(make_job(2, 4), make_problems(100), engine, store, pool, Options(16))
        await end
        await runners[1].cleanup()
        return tally, engine.notes["servers"]

    tally, servers = asyncio.run(collection())
    assert tally.solved + tally.given_up == 100
    assert not tally.failed
    first, second = servers.values()
    assert first["down"] == 1
    assert second["answered"] > first["answered"] > 0


def test_a_million_keys_are_read_in_bounded_memory(tmp_path: Path) -> None:
    """A hundredth of the size here; the whole size is measured by tests.bench.bench_resume."""
    with Store(tmp_path) as store:
        store.load("r", TAGS)
        for i in range(2_500):
            for sample in range(4):
                store.add_trace(a_trace(f"{i:016x}", sample, "r"))
    again = Store(tmp_path)
    again.load("r", TAGS)
    assert again.keys.num_traces == 10_000
    assert len(again.keys) == 2_500
    again.close()
    assert os.path.getsize(tmp_path / "traces-00000.jsonl") > 1_000_000


@pytest.mark.parametrize(
    ("cores", "environment", "alone"),
    [
        (2, {}, True),
        (2, {"OMP_NUM_THREADS": "2"}, True),  # vLLM sets it anew where it binds threads
        (2, {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}, False),
        (2, {"VLLM_CPU_OMP_THREADS_BIND": "0-1"}, False),
        (8, {}, False),
        (8, {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}, False),
        (8, {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}, True),
    ],
)
def test_a_model_with_one_thread_needs_no_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch, cores: int, environment: dict[str, str], alone: bool
) -> None:
    for name in ("OMP_NUM_THREADS", "VLLM_CPU_NUM_OF_RESERVED_CPU", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    assert has_one_thread() is alone
