"""Servers that are not vLLM: each answer is read right, or ends in one error that says what to do."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tokenizers import Tokenizer

from pipeline.context import load_context
from pipeline.errors import EngineError, RecipeError
from pipeline.flags import EngineFlags
from pipeline.recipe.cards import HIDDEN_THINKING, SampledModel, Tags
from pipeline.recipe.schema import Samples, Sampling
from pipeline.records import Trace
from pipeline.render import split_response, taught
from pipeline.sampling import Options, Store, Tally, collect, start_engine
from pipeline.sampling.engines.answers import same_model
from pipeline.sampling.engines.base import RequestFailed
from pipeline.sampling.engines.events import Assembled, Held, read_events
from pipeline.sampling.engines.faults import Retry
from pipeline.sampling.engines.server import served_name
from tests.collect_child import JOB, MODEL, make_problems
from tests.conftest import ROOT
from tests.scripted_teacher import answer
from tests.scripted_vendor import VENDORS, ScriptedVendor

PLAIN = {
    "models": {"data": [{"id": "scripted"}]},
    "reply": {
        "model": "$asked",
        "message": {"content": "$answer", "reasoning_content": "$thinking"},
        "finish_reason": "stop",
    },
}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What is asked again is asked again soon."""
    monkeypatch.setattr("pipeline.sampling.engines.server.MAX_BACKOFF_SECONDS", 0.01)
    caplog.set_level(logging.INFO)


def vendor(**change: Any) -> dict[str, Any]:
    """The plain server with other keys; those of `reply`, and of its message, beside the others."""
    entry = json.loads(json.dumps(PLAIN))
    for name, value in change.items():
        if name in ("content", "reasoning", "reasoning_content", "reasoning_details", "thinking"):
            entry["reply"]["message"][name] = value
        elif name in ("finish_reason", "model"):
            entry["reply"][name] = value
        else:
            entry[name] = value
    return entry


@asynccontextmanager
async def serving(server: ScriptedVendor) -> AsyncIterator[str]:
    runner = web.AppRunner(server.application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


class Asked:
    """One collection from one scripted server."""

    def __init__(self, entry: dict[str, Any], directory: Path, count: int = 3, **more: Any) -> None:
        self.server = ScriptedVendor(entry)
        self.directory, self.problems = directory, make_problems(count)
        self.sampling: Sampling = more.get("sampling", Sampling(temperature=1.0, max_tokens=1000))
        self.model: SampledModel = more.get("model", MODEL)
        self.flags: dict[str, Any] = {"concurrency": 4, **entry.get("options", {})}
        self.notes: dict[str, Any] = {}

    def tally(self) -> Tally:
        return asyncio.run(self._collect())

    async def _collect(self) -> Tally:
        job = replace(JOB, model=self.model, sampling=self.sampling, samples=Samples(keep=1, max=1))
        async with serving(self.server) as url:
            flags = EngineFlags(engine="server", urls=(url,), **self.flags)
            with Store(self.directory) as store:
                async with start_engine(self.model, flags) as engine:
                    self.notes = engine.notes
                    return await collect(job, self.problems, engine, store, None, Options(4))

    def traces(self) -> list[Trace]:
        return list(Store(self.directory).traces())

    def failures(self) -> list[dict[str, Any]]:
        path = self.directory / "failures.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


def is_as_sampled(trace: Trace, asked: Asked) -> bool:
    """Whether thinking and answer are those that the script made; a seed that was left out is 0 there."""
    question = {problem.id: problem.question for problem in asked.problems}[trace.problem_id]
    split = split_response(trace.response, asked.model.tags)
    seeds = (trace.seed, 0)
    return (split.thinking, split.answer) in [answer(question, seed)[:2] for seed in seeds]


@pytest.mark.parametrize("name", VENDORS)
def test_a_vendor_is_read_right(name: str, tmp_path: Path) -> None:
    entry = VENDORS[name]
    asked = Asked(entry, tmp_path)
    tally = asked.tally()
    assert (tally.sampled, tally.failed) == (3, {})
    traces = asked.traces()
    assert all(is_as_sampled(trace, asked) for trace in traces), traces[0].response
    assert {trace.finish_reason for trace in traces} == {"stop"}
    assert all(trace.prompt_tokens == 10 and (trace.output_tokens or 0) >= 20 for trace in traces)
    assert sorted(*asked.notes.get("left_out", {"": []}).values()) == entry.get("left_out", [])
    assert bool(asked.server.bodies[-1].get("stream")) == (name != "vLLM")


def test_the_document_shows_the_table_of_vendors() -> None:
    shown = (ROOT / "docs/servers.md").read_text()
    for name, entry in VENDORS.items():
        assert f"| [{name}]({entry['source']}) | {entry['known']} |" in shown


MISREAD = {
    "eos": vendor(finish_reason="eos"),
    "STOP": vendor(finish_reason="STOP"),
    "end_turn": vendor(finish_reason="end_turn"),
    "null end": vendor(finish_reason=None, stream="no"),
    "null end of a stream": vendor(finish_reason=None),
    "parts": vendor(
        content=[{"type": "thinking", "thinking": "$thinking"}, {"type": "text", "text": "$answer"}],
        reasoning_content=None,
    ),
    "thinking in a field of that name": vendor(reasoning_content=None, thinking="$thinking"),
    "a field of parts": vendor(reasoning_content=[{"type": "text", "text": "$thinking"}]),
    **{
        f"{name}, {how}": vendor(content=parts, reasoning_content=None, stream=stream)
        for how, stream in (("whole", "no"), ("streamed", "yes"))
        for name, parts in {
            "output_text": [
                {"type": "reasoning", "reasoning": "$thinking"},
                {"type": "output_text", "text": "$answer"},
            ],
            "a part without a type": [{"type": "thinking", "thinking": "$thinking"}, {"text": "$answer"}],
            "a plain text": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "$thinking"}]},
                "$answer",
            ],
        }.items()
    },
    "empty field": vendor(content="<think>\n$thinking\n</think>\n$answer", reasoning_content=""),
    "same twice": vendor(content="<think>\n$thinking\n</think>\n$answer"),
    "two fields": vendor(reasoning="$thinking"),
    "details alone": vendor(
        reasoning_content=None, reasoning_details=[{"type": "reasoning.text", "text": "$thinking"}]
    ),
    "snapshot": vendor(model="maker/Scripted-2025-05-28"),
    "no model": vendor(model=None),
    "error of 502": vendor(first=[{"error": {"code": 502, "message": "provider"}}]),
    "error of text": vendor(first=[{"error": {"type": "overloaded_error", "message": "Overloaded"}}]),
    "409": vendor(first=[{"status": 409, "body": ""}]),
    "524": vendor(first=[{"status": 524, "body": "<html>"}]),
    "529": vendor(first=[{"status": 529, "body": "overloaded"}]),
    "empty 200": vendor(first=[{"status": 200, "body": ""}]),
    "null choices": vendor(first=[{"status": 200, "body": '{"choices": null}'}]),
    "stream refused": vendor(
        refuses={"stream": {"status": 400, "body": {"error": "Unrecognized request argument: stream"}}}
    ),
    "max_tokens renamed": vendor(
        refuses={
            "max_tokens": {
                "status": 400,
                "body": {
                    "error": {
                        "message": "Unsupported parameter: 'max_tokens' is not supported with this model. "
                        "Use 'max_completion_tokens' instead.",
                        "param": "max_tokens",
                    }
                },
            }
        }
    ),
    "temperature of 1": vendor(
        refuses={
            "temperature": {"status": 400, "body": {"error": "temperature is deprecated for this model"}}
        }
    ),
}


@pytest.mark.parametrize("name", MISREAD)
def test_an_odd_answer_is_read_right(name: str, tmp_path: Path) -> None:
    asked = Asked(MISREAD[name], tmp_path)
    tally = asked.tally()
    assert (tally.sampled, tally.failed) == (3, {}), asked.failures()
    assert all(is_as_sampled(trace, asked) for trace in asked.traces()), asked.traces()[0].response
    assert {trace.finish_reason for trace in asked.traces()} == {"stop"}


QUOTA = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
REFUSED = {
    "unknown end": (vendor(finish_reason="banana"), "unknown_finish_reason", r"'banana'; the response ends with .*boxed"),
    "null end, tokens unknown": (vendor(finish_reason=None, usage="none"), "unknown_finish_reason", "not say how"),
    "no end in a stream": (vendor(finish_reason=None, done=False), "cut_stream", "the stream ended before"),
    "filtered": (vendor(finish_reason="content_filter"), "content_filter", "finish_reason content_filter"),
    "another model": (vendor(model="gpt-2"), "wrong_model", "the answer is from gpt-2.*--served-name"),
    "another size": (vendor(model="scripted-8b"), "wrong_model", "from scripted-8b"),
    "hidden": (
        vendor(reasoning_content=None, reasoning_details=[{"type": "reasoning.encrypted", "data": "gAAAA"}]),
        "hidden_thinking",
        "thinking: hidden in the teacher's card",
    ),
    "an unknown part": (vendor(content=[{"type": "image_url"}], stream="no"), "invalid_answer", "image_url"),
    "an unknown part of a stream": (vendor(content=[{"type": "image_url"}]), "invalid_answer", "image_url"),
    "an error without a code": (
        vendor(first=[{"error": {"message": "odd"}}] * 16),
        "error_in_answer",
        "odd",
    ),
    "404": (vendor(refuses={"model": {"status": 404, "body": "no such model"}}), "http_404", "no such model"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_the_first_requests_that_fail_alike_end_the_collection_in_the_server_s_words(
    name: str, tmp_path: Path
) -> None:
    entry, kind, said = REFUSED[name]
    asked = Asked(entry, tmp_path, 40)
    with pytest.raises(EngineError, match=rf"the first 16 requests failed alike \({kind}\).*{said}"):
        asked.tally()
    assert {failure["kind"] for failure in asked.failures()} == {kind}
    assert 16 <= len(asked.failures()) <= 20, "no more than are in flight"


ENDED = {
    "no money": (vendor(refuses={"model": {"status": 429, "body": QUOTA}}), "has nothing left .429"),
    "402": (vendor(refuses={"model": {"status": 402, "body": "Insufficient Balance"}}), "has nothing left"),
    "no money in a 200": (vendor(first=[QUOTA] * 9), "has nothing left"),
    "a day": (
        vendor(refuses={"model": {"status": 429, "body": "wait", "headers": {"Retry-After": "86400"}}}),
        "told to wait 86,.* s .*wait.*--outage-seconds",
    ),
    "401": (vendor(refuses={"model": {"status": 401, "body": ""}}), "RETORT_API_KEY"),
    "403": (vendor(refuses={"model": {"status": 403, "body": "no access"}}), "RETORT_API_KEY"),
    "no list": (vendor(models=404), "no server answers .*http_404"),
    "temperature": (
        vendor(refuses={"temperature": {"status": 400, "body": {"error": "only the default temperature"}}}),
        r"refuses temperature .*temperature 0.7 bears on the result: set .*temperature to 1",
    ),
    "top_k": (
        vendor(refuses={"top_k": {"status": 422, "body": {"detail": "Unexpected fields: {'top_k'}"}}}),
        r"refuses top_k .*top_k to 0",
    ),
}


@pytest.mark.parametrize("name", ENDED)
def test_what_no_request_can_pass_ends_the_collection_at_once(name: str, tmp_path: Path) -> None:
    entry, said = ENDED[name]
    asked = Asked(entry, tmp_path, 40, sampling=Sampling(temperature=0.7, top_k=20, max_tokens=100))
    with pytest.raises(EngineError, match=said):
        asked.tally()
    assert len(asked.server.bodies) <= 8, "two for each place at the server"


def test_a_question_that_a_moderation_refuses_is_that_question_s_failure(tmp_path: Path) -> None:
    body = {"error": {"code": 403, "message": "Input flagged", "metadata": {"reasons": ["violence"]}}}
    asked = Asked(vendor(first=[{"status": 403, "body": body}]), tmp_path)
    tally = asked.tally()
    assert (tally.sampled, tally.failed) == (2, {"http_403": 1})


def test_of_a_teacher_that_hides_its_thinking_the_answers_are_kept_and_no_summary(tmp_path: Path) -> None:
    details = [
        {"type": "reasoning.summary", "summary": "Adding."},
        {"type": "reasoning.encrypted", "data": "gA"},
    ]
    entry = vendor(reasoning_content=None, reasoning="Adding.", reasoning_details=details)
    asked = Asked(entry, tmp_path, model=replace(MODEL, tags=HIDDEN_THINKING))
    assert asked.tally().sampled == 3
    for trace in asked.traces():
        split = split_response(trace.response, HIDDEN_THINKING)
        assert (split.thinking, split.closing) == (None, "hidden")
        assert split.answer == trace.response.strip() != ""
        assert "Adding." not in trace.response
        assert taught(split, Tags()) == split, "what is no thinking is not made into some"


def test_a_student_that_thinks_is_not_taught_by_a_teacher_that_hides_it(recipe_file: Path) -> None:
    hidden = "generate.teacher={model: teachers/embedded, thinking: hidden}"
    with pytest.raises(RecipeError, match=r"train.student: .*hides its thinking.*thinking: none"):
        load_context(recipe_file, recipe_file.parent, overrides=[hidden])
    silent = "train.student={model: students/embedded, thinking: none}"
    loaded = load_context(recipe_file, recipe_file.parent, overrides=[hidden, silent])
    assert loaded.teacher.tags.hidden
    with pytest.raises(RecipeError, match="thinking"):
        load_context(recipe_file, recipe_file.parent, overrides=[silent.replace("none", "hidden")])


def test_a_response_that_was_cut_is_cut_in_every_word(tmp_path: Path) -> None:
    for number, word in enumerate(["length", "max_tokens", "MAX_TOKENS", "model_length"]):
        asked = Asked(vendor(finish_reason=word), tmp_path / str(number), 1)
        asked.tally()
        assert asked.traces()[0].finish_reason == "length"


def test_tokens_that_nobody_counts_are_unknown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = Asked(vendor(usage="none"), tmp_path)
    assert asked.tally().sampled == 3
    assert {(trace.prompt_tokens, trace.output_tokens) for trace in asked.traces()} == {(None, None)}
    assert caplog.text.count("tokens are not counted by the server: unknown") == 1
    again = Store(tmp_path)
    again.load(asked.traces()[0].request, "")
    again.close()
    assert (again.keys.uncounted, again.keys.output_tokens, again.keys.num_traces) == (3, 0, 3)


def test_responses_without_a_closing_tag_are_told_of_after_the_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = Asked(vendor(reasoning_content=None), tmp_path, 20)
    assert asked.tally().sampled == 20
    assert caplog.text.count("none of the first 16 responses holds </think>") == 1


@pytest.mark.slow  # a tokenizer's library takes seconds to import
def test_tokens_that_a_server_does_not_count_are_counted_by_the_model_s_tokenizer(tmp_path: Path) -> None:
    model = replace(MODEL, model=str(ROOT / "teachers/embedded"), max_model_len=2000)
    asked = Asked(vendor(usage="none"), tmp_path, model=model)
    assert asked.tally().sampled == 3
    assert "counted here" in asked.notes["tokens"]
    tokenizer = Tokenizer.from_file(str(ROOT / "teachers/embedded/tokenizer.json"))
    for trace in asked.traces():
        assert trace.output_tokens == len(tokenizer.encode(trace.response, add_special_tokens=False).ids)
        assert trace.prompt_tokens


def test_a_reader_that_goes_away_stops_the_work(tmp_path: Path) -> None:
    async def cut_off() -> ScriptedVendor:
        server = ScriptedVendor(vendor(), pause=0.05)
        job = replace(JOB, samples=Samples(keep=1, max=1))
        async with serving(server) as url:
            flags = EngineFlags(engine="server", urls=(url,), concurrency=4)
            with Store(tmp_path) as store:
                async with start_engine(MODEL, flags) as engine:
                    work = asyncio.create_task(collect(job, make_problems(4), engine, store, None))
                    while (await engine.tokens_in_flight() or 0) < 8:
                        await asyncio.sleep(0.01)
                    work.cancel()
                    await asyncio.gather(work, return_exceptions=True)
            while server.gone < 4:
                await asyncio.sleep(0.01)
        return server

    assert asyncio.run(asyncio.wait_for(cut_off(), 10)).gone == 4


def test_a_redirect_is_followed_as_the_post_that_it_was(tmp_path: Path) -> None:
    server = ScriptedVendor(vendor())

    async def moved(request: web.Request) -> web.Response:
        return web.Response(status=301, headers={"Location": "/v1/chat/completions"})

    async def redirected() -> Tally:
        app = server.application()
        app.add_routes([web.get("/old/models", server.models), web.post("/old/chat/completions", moved)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0).start()
        flags = EngineFlags(engine="server", urls=(f"http://127.0.0.1:{runner.addresses[0][1]}/old",))
        with Store(tmp_path) as store:
            async with start_engine(MODEL, flags) as engine:
                tally = await collect(JOB, make_problems(1), engine, store, None)
        await runner.cleanup()
        return tally

    assert asyncio.run(redirected()).sampled == 6


def test_a_proxy_of_the_environment_is_used_but_for_what_it_excepts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for: list[str] = []

    async def through(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked_for.append((await reader.readline()).decode().split()[1])
        writer.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    async def attempt(url: str) -> None:
        proxy = await asyncio.start_server(through, "127.0.0.1", 0)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
        async with proxy:
            flags = EngineFlags(engine="server", urls=(url,), outage_seconds=0.1)
            async with start_engine(MODEL, flags) as engine:
                with pytest.raises(EngineError):
                    await engine.ready()

    asyncio.run(attempt("http://a-host.invalid:8000/v1"))
    assert asked_for == ["http://a-host.invalid:8000/v1/models"]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    asyncio.run(attempt("http://127.0.0.1:9/v1"))
    assert len(asked_for) == 1
    monkeypatch.setenv("http_proxy", "socks5://user:secret@127.0.0.1:1")
    with pytest.raises(EngineError, match="HTTP_PROXY: a socks5 proxy cannot be used") as caught:
        start_engine_of("http://127.0.0.1:9/v1")
    assert "secret" not in str(caught.value)


def start_engine_of(url: str) -> None:
    async def start() -> None:
        async with start_engine(MODEL, EngineFlags(engine="server", urls=(url,))):
            pass

    asyncio.run(start())


@pytest.mark.parametrize(
    ("asked", "said", "same"),
    [
        ("Qwen/Qwen3-8B", "qwen/qwen3-8b", True),
        ("deepseek-r1", "deepseek/deepseek-r1:free", True),
        ("gpt-oss-120b", "gpt-oss-120b-2025-08-05", True),
        ("mistral-large", "mistral-large-2411", True),
        ("llama3", "llama3:latest", True),
        ("deepseek-r1", "deepseek-r1:0528", True),
        ("llama3", "llama3:70b", False),
        ("deepseek-r1", "deepseek-r1:1.5b", False),
        ("llama3:8b", "llama3:8b-q4_K_M", False),
        ("m", "m@refs-pr-1", True),
        ("qwen3", "qwen3-32b", False),
        ("qwen3:8b", "qwen3:14b", False),
        ("gpt-4o", "gpt-4o-mini", False),
        ("scripted", "", False),
        ("scripted", None, False),
    ],
)
def test_a_name_is_another_spelling_or_another_model(asked: str, said: Any, same: bool) -> None:
    assert same_model(asked, said) == same


def test_of_several_names_that_are_alike_none_is_taken() -> None:
    model = replace(MODEL, name="r1", model="maker/r1")
    assert served_name(model, EngineFlags(), ["r1:1.5b", "r1:latest"]) == "r1:latest"
    assert served_name(model, EngineFlags(), ["r1:free", "r1"]) == "r1"
    assert served_name(model, EngineFlags(), ["r1:70b"]) is None
    with pytest.raises(EngineError, match=r"2 models that may be r1: r1:latest, r1:0528; .*--served-name"):
        served_name(model, EngineFlags(), ["r1:latest", "r1:0528"])


@pytest.mark.parametrize("dated", [True, False])
def test_a_template_that_prints_the_date_is_told_of_once(
    dated: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = tmp_path / "model/chat_template.jinja"
    template.parent.mkdir()
    template.write_text("{{ strftime_now('%d %b %Y') }}" if dated else "{{ messages }}")
    model = replace(MODEL, model=str(template.parent))

    async def greet() -> None:
        async with serving(ScriptedVendor(vendor())) as url, serving(ScriptedVendor(vendor())) as other:
            flags = EngineFlags(engine="server", urls=(url, other), served_name="scripted")
            async with start_engine(model, flags) as engine:
                await engine.ready()

    asyncio.run(greet())
    assert caplog.text.count("prints the day's date") == 2 * dated, "once for each server"


def test_the_name_that_was_asked_is_recorded(tmp_path: Path) -> None:
    asked = Asked(vendor(models={"data": [{"id": "scripted:latest"}]}), tmp_path)
    asked.tally()
    assert list(asked.notes["asked_as"].values()) == ["scripted:latest"]


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


EVENT = b'data: {"choices": [{"delta": {"content": "ab"}, "finish_reason": "stop"}]}\r\n'
STREAMS: dict[str, tuple[list[bytes], str]] = {
    "cut anywhere": ([EVENT[:9], EVENT[9:40], EVENT[40:]], "ab"),
    "no end": ([EVENT.replace(b'"stop"', b"null")], "cut_stream"),
    "done without an end": ([EVENT.replace(b'"stop"', b"null"), b"data: [DONE]\n"], "ab"),
    "no last line break": ([EVENT.rstrip()], "ab"),
    "nothing behind its end": ([EVENT, b"data: [DONE]\n\ndata: nonsense\n"], "ab"),
    "half a surrogate": ([EVENT.replace(b"ab", b"\\ud83d"), EVENT.replace(b"ab", b"\\ude00")], "\ud83d\ude00"),
    "no JSON": ([b"data: {\n"], "invalid_json"),
    "a list": ([b"data: [1]\n"], "invalid_answer"),
    "too much text": ([EVENT] * 60, "too_large"),
    "too much of nothing": ([b": wait\n" * 100] * 30, "too_large"),
    "a line without end": ([b"data: " + b"x" * 2**20, b"x"], "too_large"),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_read_or_refused_in_bounded_memory(name: str) -> None:
    pieces, expected = STREAMS[name]
    held = Held(10**6)
    assembled = Assembled(held, 2**20 if "line" in name else 100)
    try:
        told = asyncio.run(read_events(pieces_of(*pieces), assembled))["choices"][0]["message"]["content"]
    except (Retry, RequestFailed) as failure:
        told = failure.kind
    assert told == expected
    assembled.release()
    assert held.in_memory == 0
