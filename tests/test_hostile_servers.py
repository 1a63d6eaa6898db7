"""Servers that send what no server should: each ends as a failure of a named kind, in bounded memory."""

import asyncio
import json
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pipeline.errors import EngineError
from pipeline.flags import EngineFlags
from pipeline.sampling import Store, Tally, collect, start_engine
from pipeline.sampling.engines.faults import Retry, asked_seconds
from tests.collect_child import MODEL, make_problems
from tests.conftest import ROOT
from tests.hostile_server import FAULTS, MODELS, start
from tests.served import served_by
from tests.test_sampling import make_job


async def collect_from(behaviour: str, directory: Path, seconds: float = 20.0) -> Tally:
    """One problem, for which a request may take so many seconds."""
    server, port = await start(behaviour)
    urls = (f"http://127.0.0.1:{port}/v1",)
    flags = EngineFlags(engine="server", urls=urls, request_timeout_seconds=seconds, outage_seconds=10.0)
    async with server:
        with Store(directory) as store:
            async with start_engine(MODEL, flags) as engine:
                return await collect(make_job(1, 1), make_problems(1), engine, store, None)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked again is asked again soon."""
    monkeypatch.setattr("pipeline.sampling.engines.server.MAX_BACKOFF_SECONDS", 0.01)


@pytest.mark.parametrize("behaviour", FAULTS)
def test_each_fault_is_a_failure_of_a_named_kind(
    behaviour: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind = FAULTS[behaviour][1]
    tally = asyncio.run(collect_from(behaviour, tmp_path, 0.5 if kind == "timeout" else 20.0))
    assert tally.failed == ({kind: 1} if kind else {})
    assert tally.sampled == (not kind)
    for line in (tmp_path / "failures.jsonl").read_text().splitlines():
        assert json.loads(line)["detail"].isprintable()
        assert len(line) < 600
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("behaviour", sorted(set(MODELS) - {"models_length"}))
def test_a_list_of_models_that_is_none_is_one_error(behaviour: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        asyncio.run(collect_from(behaviour, tmp_path))
    assert len(str(caught.value)) < 800
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("2", 2), ("0.5", 0.5), ("-3", 0), ("1e308", 300), ("inf", None), ("nan", None), ("Wed, 21 Oct", None), ("", None),
     (f"Fri, 31 Dec 2027 {'9' * 20}:59:59 GMT", None), ("Wed, 21 Oct 2015 07:28:30 GMT", 30)],
)  # fmt: skip
def test_a_server_cannot_make_this_side_wait_for_ever(said: str, seconds: float | None) -> None:
    """A time of day is one of the server's clock."""
    asked = asked_seconds(said, "Wed, 21 Oct 2015 07:28:00 GMT")
    assert Retry("http_429", "", asked).wait_seconds == seconds


def hostile_server(behaviour: str) -> AbstractContextManager[str]:
    """The URL of a hostile server in a process of its own, which ends by itself after ten minutes."""
    return served_by("hostile_server", "--behaviour", behaviour, "--seconds", 600)


LARGE = ["giant_body", "gzip_bomb", "endless_body", "many_lists", "endless_fault", "nested_json", "drip"]
LARGE += ["endless_headers", "lists_of_4_mb", "models_giant", "models_bomb", "models_nested"]


@pytest.mark.slow
@pytest.mark.parametrize("behaviour", LARGE)
def test_hostile_bodies_take_bounded_memory(behaviour: str) -> None:
    """256 requests at a time for 32,768 tokens each."""
    with hostile_server(behaviour) as url:
        command = [sys.executable, "-m", "tests.hostile_child", "32768", url]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout)
    grown = measured["peak_mb"] - measured["start_mb"]
    print(f"{behaviour}: {grown:.0f} MB above {measured['start_mb']:.0f}, {measured['failed']}")
    assert grown < 300
    assert "Traceback" not in done.stderr
