"""What the server engine learns of its servers: when it starts, and when one comes back as another."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from pipeline.errors import EngineError
from pipeline.flags import EngineFlags
from pipeline.recipe.cards import SampledModel, sampled_teacher, teacher_card
from pipeline.recipe.schema import Sampling
from pipeline.sampling import Options, Request, Store, Tally, collect, start_engine
from pipeline.sampling.engines.replicas import Replica, Replicas
from pipeline.sampling.engines.server import PROBE, request_body, timeout_seconds
from pipeline.sampling.prompts import load_prompts
from pipeline.verify import VerifierPool
from tests.collect_child import MODEL, make_problems
from tests.scripted_teacher import ScriptedTeacher
from tests.served import free_port
from tests.test_sampling import make_job


def teacher_of(name: str) -> SampledModel:
    return sampled_teacher(name, teacher_card(name))


EMBEDDED = teacher_of("embedded-moe")


@asynccontextmanager
async def serving(teacher: ScriptedTeacher, port: int = 0) -> AsyncIterator[int]:
    runner = web.AppRunner(teacher.application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True, shutdown_timeout=0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def url(port: int, end: str = "/v1") -> str:
    return f"http://127.0.0.1:{port}{end}"


async def collect_with_a_late_server(late: ScriptedTeacher, directory: Path) -> tuple[Tally, ScriptedTeacher]:
    """A collection that begins with one server of two; the other one comes up after the first ten requests."""
    early, port = ScriptedTeacher("good", 0.05), free_port()
    flags_of = {"concurrency": 8, "outage_seconds": 10.0}
    with VerifierPool(workers=1) as pool, Store(directory) as store:
        async with serving(early) as first:
            flags = EngineFlags(engine="server", urls=(url(first), url(port)), **flags_of)  # type: ignore[arg-type]
            async with start_engine(MODEL, flags) as engine:
                work = asyncio.create_task(collect(make_job(1, 2), make_problems(200), engine, store, pool))
                while sum(early.asked.values()) < 10:
                    await asyncio.sleep(0.01)
                async with serving(late, port):
                    return await work, early


def test_a_server_that_comes_up_late_is_asked_as_what_it_is(tmp_path: Path) -> None:
    late = ScriptedTeacher("good", 0.05, owner="vllm")
    tally, early = asyncio.run(collect_with_a_late_server(late, tmp_path))
    assert not tally.failed
    assert tally.solved + tally.given_up == 200
    assert late.last_body["skip_special_tokens"] is False
    assert late.last_body["repetition_penalty"] == 1.0
    assert "skip_special_tokens" not in early.last_body


def test_a_server_that_comes_up_with_another_model_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late = ScriptedTeacher(model="another")
    tally, _ = asyncio.run(collect_with_a_late_server(late, tmp_path))
    assert not tally.failed
    assert not late.asked
    assert caplog.text.count("answers but is not used: ") == 1
    assert "does not serve scripted (scripted); it serves another" in caplog.text


async def ready_notes(
    teacher: ScriptedTeacher, end: str = "/v1", model: SampledModel = EMBEDDED
) -> dict[str, object]:
    """What the engine notes of one server that serves `teacher` as the embedded one."""
    teacher.model = model.name
    async with serving(teacher) as port:
        flags = EngineFlags(engine="server", urls=(url(port, end),))
        async with start_engine(model, flags) as engine:
            await engine.ready()
            return engine.notes


def test_prompts_are_compared_where_a_vllm_tells_its_tokens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    prompts = load_prompts(EMBEDDED)
    assert prompts is not None
    ours = prompts.ids(PROBE)
    assert asyncio.run(ready_notes(ScriptedTeacher(owner="vllm", tokens=ours)))["prompts_compared"]
    assert "prompts_compared" not in asyncio.run(ready_notes(ScriptedTeacher(owner="vllm")))
    assert "prompts not compared, /tokenize does not answer (http_404" in caplog.text
    with pytest.raises(EngineError, match=rf"another template: 2 tokens where embedded-moe has {len(ours)}"):
        asyncio.run(ready_notes(ScriptedTeacher(owner="vllm", tokens=[1, 2])))


DATED = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "Today is {{ date_string }}. {{ messages[0].content }}"
)


def test_a_template_that_prints_the_day_s_date_prints_one_day(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Llama's does: a prompt, and so a request, would be another one on each day."""
    caplog.set_level("INFO")
    (tmp_path / "dated.jinja").write_text(DATED)
    dated = replace(EMBEDDED, template=str(tmp_path / "dated.jinja"))
    prompts = load_prompts(dated)
    assert prompts is not None
    assert prompts.text(PROBE) == f"Today is 26 Jul 2024. {PROBE[0]['content']}"
    assert not load_prompts(EMBEDDED).is_dated  # type: ignore[union-attr]
    same = ScriptedTeacher(owner="vllm", tokens=prompts.ids(PROBE))
    assert asyncio.run(ready_notes(same, model=dated))["prompts_compared"]
    assert same.last_body["chat_template_kwargs"] == {"date_string": "26 Jul 2024"}
    asyncio.run(ready_notes(ScriptedTeacher(owner="vllm", tokens=[1, 2]), model=dated))
    assert "prints the day's date, so prompts change by the day" in caplog.text


def test_the_address_of_a_server_ends_in_v1_and_may_end_in_a_slash() -> None:
    assert asyncio.run(ready_notes(ScriptedTeacher(), "/v1/"))["servers"]
    with pytest.raises(
        EngineError, match=r"no server answers .*http_404.* is it the address that ends in /v1"
    ):
        asyncio.run(ready_notes(ScriptedTeacher(), "/"))


@pytest.mark.parametrize(
    ("stated", "max_tokens", "seconds"),
    [(None, 200, 1800), (None, 32_768, 8192), (60.0, 32_768, 60)],
    ids=["short", "long", "stated"],
)
def test_a_long_answer_has_its_time(stated: float | None, max_tokens: int, seconds: float) -> None:
    flags = EngineFlags(engine="server", urls=(url(1),), request_timeout_seconds=stated)
    assert timeout_seconds(flags, max_tokens) == seconds


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ("embedded-moe", {}),
        ("deepseek-v3.2", {"chat_template_kwargs": {"thinking": True}}),
        ("gpt-oss-120b", {"chat_template_kwargs": {"reasoning_effort": "high"}, "reasoning_effort": "high"}),
    ],
)
def test_a_card_s_template_options_are_said_to_the_server(teacher: str, said: dict[str, object]) -> None:
    request = Request(PROBE, Sampling(temperature=1.0, max_tokens=9), 5, ("p", 0))
    body = request_body(request, teacher_of(teacher))
    assert body.keys() - said.keys() == {"messages", "temperature", "top_p", "max_tokens", "seed"}
    assert {name: body[name] for name in said} == said


def of_a_hundred(share: float) -> Replica:
    """A server that has refused so large a share of 10,000 requests, by lot."""
    replica, lots = Replica("http://x/v1", 64.0, 64), random.Random(0)
    for _ in range(10_000):
        if lots.random() < share:
            replica.refused(replica.cuts, 0.0)
        else:
            replica.succeeded()
    return replica


def test_isolated_refusals_slow_nobody_down() -> None:
    for share in (0.0, 0.01, 0.05):
        replica = of_a_hundred(share)
        assert (replica.cuts, replica.limit, replica.paused_until) == (0, 64.0, 0.0)
    assert of_a_hundred(0.3).limit < 32


@pytest.mark.parametrize("capacity", [1, 5, 16, 50])
def test_the_limit_finds_what_a_server_takes(capacity: int) -> None:
    replica, sent = Replica("http://x/v1", 256.0, 256), []
    for _ in range(400):
        cuts, number = replica.cuts, int(replica.limit)
        for i in range(number):
            if i < capacity:
                replica.succeeded()
            else:
                replica.refused(cuts, 0.0)
        sent.append(number)
    assert capacity * 0.7 <= sum(sent[-100:]) / 100 <= max(capacity * 1.3, capacity + 4)


def test_of_a_burst_of_refusals_one_cut_is_made() -> None:
    replica = Replica("http://x/v1", 64.0, 64)
    for _ in range(64):
        replica.refused(0, 7.0)
    assert (replica.cuts, replica.limit) == (1, 32.0)
    assert 6 < replica.paused_until - time.monotonic() <= 7
    for _ in range(64):
        replica.refused(0, 7.0)  # they were sent before that
    assert (replica.cuts, replica.limit) == (1, 32.0)


async def asked_of(
    teacher: ScriptedTeacher, directory: Path, seconds: float = 60.0
) -> tuple[Tally, dict[str, int]]:
    """A collection of 300 problems, cut off after so many seconds; what the server's notes say."""
    async with serving(teacher) as port:
        flags = EngineFlags(engine="server", urls=(url(port),), concurrency=64)
        with Store(directory) as store:
            async with start_engine(MODEL, flags) as engine:
                work = collect(make_job(1, 1), make_problems(300), engine, store, None, Options(64))
                task = asyncio.create_task(work)
                await asyncio.wait([task], timeout=seconds)
                task.cancel()
                tally = (await asyncio.gather(task, return_exceptions=True))[0]
    return (tally if isinstance(tally, Tally) else Tally()), engine.notes["servers"][url(port)]


@pytest.mark.parametrize(
    "behaviour", ["refuse_503_5", "refuse_429_5", "refuse_429_5_after_1", "refuse_429_5_after_86400"]
)
def test_what_is_refused_now_and_then_is_asked_again(behaviour: str, tmp_path: Path) -> None:
    tally, server = asyncio.run(asked_of(ScriptedTeacher(behaviour, 0.02), tmp_path))
    assert (tally.sampled, sum(tally.failed.values())) == (300, 0)
    assert 300 < server["requests"] < 340
    assert "slowed_down" not in server


@pytest.mark.parametrize(
    "behaviour",
    [
        "refuse_429_100",
        pytest.param("refuse_503_100", marks=pytest.mark.slow),
        pytest.param("refuse_429_100_after_60", marks=pytest.mark.slow),
    ],
)
def test_a_server_that_refuses_all_rests(behaviour: str, tmp_path: Path) -> None:
    """64 at once, then half as many after a rest, and so on: not all that 64 could ask in 3 seconds."""
    teacher = ScriptedTeacher(behaviour)
    asyncio.run(asked_of(teacher, tmp_path, seconds=3.0))
    assert 64 <= teacher.asked.total() <= (64 if "after" in behaviour else 180)


@pytest.mark.parametrize("others", ["up", "down", "in flight"])
def test_where_the_rest_of_one_server_is_all_that_is_left_the_run_ends(others: str) -> None:
    """Not while another one may come back, nor while an answer is on its way, which would end the rest."""

    async def taken() -> Replica:
        replicas = Replicas(("http://a/v1", "http://b/v1"), 1, 0.2)
        first, second = replicas.all
        replicas.rest(first, 86400.0, "http_429 tomorrow")
        if others == "down":
            replicas.fell(second, "connection")
        else:
            replicas.rest(second, 86400.0, "http_429 tomorrow")
        if others == "in flight":
            first.in_flight = 1
            asyncio.get_running_loop().call_later(0.5, first.succeeded)
            asyncio.get_running_loop().call_later(0.5, replicas.give_back, first)
        async with asyncio.timeout(10):
            return await replicas.take()

    if others == "in flight":
        assert asyncio.run(taken()).url == "http://a/v1"
        return
    with pytest.raises(EngineError, match=r"told to wait 86,\d+ s .*tomorrow"):
        asyncio.run(taken())
