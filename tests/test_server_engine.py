"""What the server engine learns of its servers: when it starts, and when one comes back as another."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from pipeline.errors import EngineError
from pipeline.flags import EngineFlags
from pipeline.recipe.cards import SampledModel, sampled_teacher, teacher_card
from pipeline.recipe.schema import Sampling
from pipeline.sampling import Request, Store, Tally, collect, start_engine
from pipeline.sampling.engines.server import PROBE, request_body, timeout_seconds
from pipeline.sampling.prompts import load_prompts
from pipeline.verify import VerifierPool
from tests.collect_child import MODEL, make_problems
from tests.scripted_teacher import ScriptedTeacher
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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


async def ready_notes(teacher: ScriptedTeacher, end: str = "/v1") -> dict[str, object]:
    """What the engine notes of one server that serves `teacher` as the embedded one."""
    teacher.model = EMBEDDED.name
    async with serving(teacher) as port:
        flags = EngineFlags(engine="server", urls=(url(port, end),))
        async with start_engine(EMBEDDED, flags) as engine:
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
