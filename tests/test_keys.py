"""The API key of servers, searched for in everything that is written, and who is given it."""

import asyncio
import base64
import json
import os
import random
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from pipeline.errors import EngineError, RecipeError
from pipeline.run.secrets import API_KEY, ApiKey, is_secret, read_key, runs, without_secrets
from pipeline.sampling import Store
from pipeline.verify import VerifierPool
from tests.conftest import ROOT, command_line
from tests.hostile_server import ECHOES, MODELS
from tests.test_generate import RECIPE, write_sums
from tests.test_hostile_servers import at_once, collect_from, hostile_server
from tests.test_verify_pool import descendants

assert at_once  # a fixture of these tests, too

KEY = "sk-7f3Kq9Zx/Wb2+LmT8vRc5Yd1=Hn4Gj6Ps0Aq"
KEYS = [KEY, "9fE4kq2W", "a.b-" + "Zk3v9QxT7m" * 20, 'q"u\\o%te5f7h9j1l3']
FORMS = {
    "plain": str,
    "upper": str.upper,
    "json": lambda key: json.dumps(key)[1:-1],
    "percent": lambda key: quote(key, safe=""),
    "lower_percent": lambda key: quote(key, safe="").lower(),
    "base64": lambda key: base64.b64encode(f"user:{key}".encode()).decode(),
}


def pieces_of(key: str) -> set[bytes]:
    """All 8 bytes in a row of the key, and of what it is in a URL, in JSON and in base64."""
    written = {key, quote(key, safe=""), json.dumps(key)[1:-1]}
    written |= {
        base64.b64encode(f"{start}{key}".encode()).decode()[4:-4] for start in ("Bearer ", "user:", " ")
    }
    return {piece.encode() for text in written for piece in runs(text, 8)}


def assert_nowhere(key: str, *texts: str | bytes) -> None:
    for text in texts:
        data = text if isinstance(text, bytes) else text.encode(errors="replace")
        found = [piece for piece in pieces_of(key) if piece in data]
        assert not found, (found[:3], data[max(data.find(found[0]) - 100, 0) :][:300])


def files_in(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", KEYS, ids=["usual", "short", "long", "odd"])
def test_a_key_is_masked_before_text_is_cut(key: str, form: str) -> None:
    masking, written = ApiKey(key), FORMS[form](key)
    carrying = written[8:].lower() if form == "base64" else written.lower()  # before it stands the user
    for place in [*range(0, 20), *range(240, 320)]:
        for end in (len(written), len(written) - 5, len(written) // 2 + 4):
            text = "x" * place + " " + written[:end] + " and more"
            for shown in (masking.shown(text), masking.shown(text.encode())):
                found = {piece for piece in runs(shown.lower(), 8) if piece in carrying}
                assert not found
                assert len(shown) <= 300
                assert shown.startswith("x" * min(place, 300))


def test_what_is_no_key_is_shown() -> None:
    assert ApiKey(KEY).shown("no such\nmodel: \x1b[31mabc\ud800") == "no such model: [31mabc"
    assert ApiKey("").shown("no\x00key" + "y" * 400) == "no key" + "y" * 294
    assert ApiKey(KEY).shown(b"\xff\xfe is no text") == "\ufffd\ufffd is no text"


def test_a_response_quotes_a_key_or_does_not() -> None:
    held = ApiKey(KEY)
    assert held.stands_in(f"it is {KEY}")
    assert held.stands_in(f"it is {KEY[5:25]}")
    assert held.stands_in(quote(KEY, safe=""))
    assert not held.stands_in("sk-7f3Kq is a prefix that many keys have")
    assert not ApiKey("EMPTY").stands_in("the set is EMPTY")
    assert not ApiKey("").stands_in("nothing")
    rng = random.Random(0)
    for _ in range(300):
        start = rng.randrange(len(KEY) - 16)
        assert held.stands_in("a" * rng.randrange(9) + KEY[start : start + rng.randrange(16, 30)])


@pytest.mark.parametrize("inside", ["\n", " ", "\t", "\r\n", "\x00", "\u00e9", "\u2028", "\x7f"])
def test_a_key_that_cannot_stand_in_a_header_is_one_error(inside: str) -> None:
    with pytest.raises(RecipeError, match=r"RETORT_API_KEY: a key is one word of ASCII") as caught:
        read_key({API_KEY: KEY + inside + KEY})
    assert_nowhere(KEY, str(caught.value))
    assert "\n" not in str(caught.value)
    assert read_key({API_KEY: f" {KEY}\r\n"}).headers == {"Authorization": f"Bearer {KEY}"}
    assert read_key({}).headers == read_key({API_KEY: "\n"}).headers == {}


@pytest.mark.parametrize("echo", ECHOES)
def test_an_echoed_key_is_recorded_nowhere(
    echo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv(API_KEY, KEY)
    tally = asyncio.run(collect_from(echo, tmp_path))
    if echo != "cookie":
        assert sum(tally.failed.values()) == 1
        assert not list(Store(tmp_path).traces())
    assert_nowhere(KEY, caplog.text, *files_in(tmp_path).values())


@pytest.mark.parametrize("behaviour", MODELS)
def test_a_key_in_a_list_of_models_is_shown_to_nobody(
    behaviour: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv(API_KEY, KEY)
    said = ""
    try:
        asyncio.run(collect_from(behaviour, tmp_path))
    except EngineError as error:
        said = str(error)
    assert bool(said) == (behaviour != "models_length")
    assert_nowhere(KEY, said, caplog.text, *files_in(tmp_path).values())


def test_workers_are_given_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (API_KEY, "HF_TOKEN", "MY_SECRET", "ANYTHING_ELSE"):
        monkeypatch.setenv(name, KEY)
    before = set(descendants(os.getpid()))
    with VerifierPool(workers=2) as pool:
        assert {v.status for v in pool.map(((str(k), 0), "text", "1", "1", {}) for k in range(200))} == {
            "correct"
        }
        children = set(descendants(os.getpid())) - before
        assert len(children) >= 2
        for child in children:
            assert_nowhere(KEY, Path(f"/proc/{child}/environ").read_bytes())


def test_a_secret_is_known_by_its_name() -> None:
    secret = [
        "RETORT_API_KEY",
        "HF_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "WANDB_API_KEY",
        "github_token",
        "PASSWORD",
    ]
    plain = ["PATH", "HOME", "TOKENIZERS_PARALLELISM", "KEYBOARD", "VLLM_LOGGING_LEVEL"]
    assert [name for name in secret + plain if is_secret(name)] == secret
    assert list(without_secrets(dict.fromkeys(secret + plain, "x"))) == plain


ASK_IN_EVAL = (
    "eval --url teacher={url} --served-name teacher=scripted --concurrency 4 --request-timeout-seconds 5"
)
COMMANDS = [  # in their order: each reads what the ones before have written
    "problems", "plan --pilot 5 {server}", "generate {server}", "filter", "funnel --show kept", ASK_IN_EVAL,
]  # fmt: skip


def run_command(line: str, recipe: Path, url: str) -> subprocess.CompletedProcess[str]:
    server = f"--engine server --url {url} --served-name scripted --concurrency 4 --request-timeout-seconds 5"
    words = line.format(url=url, server=server + " --outage-seconds 5").split()
    command = command_line(*words, "--recipe", recipe, "--runs", recipe.parent / "runs")
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, API_KEY: KEY, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write_sums(tmp_path, 0)
    text = RECIPE.format(name="small", path=tmp_path / "sums.jsonl")
    text = text.replace("samples: {keep: 2, max: 6}", "samples: {keep: 2, max: 2}\n  max_failure_rate: 1.0")
    text = text.rstrip() + "\n  samples: 5\n  compare: [teacher]\n"
    (tmp_path / "small.yaml").write_text(text)
    return tmp_path / "small.yaml"


@pytest.mark.slow
def test_no_command_writes_an_echoed_key(recipe: Path) -> None:
    with hostile_server("echoes") as url:
        for line in COMMANDS:
            done = run_command(line, recipe, url)
            assert_nowhere(KEY, done.stdout, done.stderr)
            assert done.returncode == 0, (line, done.stderr[-1500:])
            assert "Traceback" not in done.stderr
    with hostile_server("models_at_the_border") as url:
        done = run_command(f"{ASK_IN_EVAL} --force", recipe, url)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert_nowhere(KEY, done.stdout, done.stderr)
    written = files_in(recipe.parent)
    assert len(written) > 15
    assert any("failures.jsonl" in name and b"***" in data for name, data in written.items())
    assert_nowhere(KEY, *written.values())


def test_a_broken_key_is_found_before_any_work_and_by_who_needs_it(recipe_file: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = command_line(*words)
        broken = {**os.environ, API_KEY: f"{KEY}\n{KEY}"}
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=broken)

    for stage in ("generate", "eval", "plan"):
        done = run(stage, "--recipe", str(recipe_file), "--runs", str(recipe_file.parent / "runs"))
        assert done.returncode == 2
        assert done.stderr.startswith("error: RETORT_API_KEY: a key is one word")
        assert done.stderr.count("\n") == 1
        assert_nowhere(KEY, done.stderr, done.stdout)
    rows = recipe_file.with_name("rows.jsonl")
    rows.write_text('{"gold": "1", "response": "1", "verifier": "text"}\n')
    assert run("verify", str(rows)).returncode == 0
