"""One tiny run through the real command line: its stages, its snapshots, and when two runs are equal.

A scripted teacher answers over loopback; the student is the embedded one, trained for a few steps. Whatever
happens to a stage, it must end without a traceback, leave no process behind, and come to the same result when
the same command is given again.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet

from tests.conftest import ROOT
from tests.served import num_asked

RECIPE = """\
name: tiny
seed: 0
problems:
  sources: [{{name: sums, path: {problems}, columns: {{question: q, gold: a}}, verifier: text, licence: MIT}}]
generate:
  teacher: embedded-moe
  prompt: boxed
  samples: {{keep: 1, max: 3}}
  sampling: {{temperature: 1.0, max_tokens: 256}}
  max_failure_rate: 0.0
filter:
  rules: [finished, closed_thinking, correct]
train: {{student: embedded-dense, method: full, epochs: 1, learning_rate: 1.0e-3, batch_size: 8, max_length: 256}}
eval:
  tasks: [{{path: {questions}, name: asked, columns: {{question: q, gold: a}}, verifier: text, licence: MIT}}]
  samples: 2
  compare: [base, student, teacher]
"""
STAGES = ("problems", "generate", "filter", "train", "eval", "report")
MODELS = ("base", "student", "teacher")
MARK = "CAMPAIGN_RUN"
STAGE_SECONDS = 180.0
ORPHAN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended. `orphans` are the command lines of what was still there 10 s later."""

    code: int
    stderr: str
    seconds: float
    orphans: list[str]
    litter: list[str]

    @property
    def clean(self) -> bool:
        """Neither a traceback nor anything left behind; one `error:` where it failed by itself."""
        told = self.code in (0, 130, -9, -15) or len(re.findall(r"(?m)(?:^|\r)error: ", self.stderr)) == 1
        return told and "Traceback" not in self.stderr and not self.orphans and not self.litter


def write_recipe(folder: Path) -> Path:
    """The recipe with the files that it reads, below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = {
        "problems": (100, 90, "What is {} + {}?"),
        "questions": (3000, 12, "Please add the numbers {} and {} up."),
    }
    for name, (first, count, text) in asked.items():
        pairs = [(i, 7 * i % 97) for i in range(first, first + count)]
        sums = [{"q": text.format(*pair), "a": str(sum(pair))} for pair in pairs]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    named = {name: json.dumps(str(folder / f"{name}.jsonl")) for name in ("problems", "questions")}
    path = folder / "tiny.yaml"
    path.write_text(RECIPE.format(**named))
    return path


class Work:
    """A place for runs, a server, and the finished run that all others are compared with."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.recipe = write_recipe(folder / "recipe")
        self.finished = folder / "finished"

    @cached_property
    def shim(self) -> Path:
        """The library that is preloaded, compiled at its first use."""
        source, made = Path(__file__).with_name("shim.c"), self.folder / "shim.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", made, source, "-ldl"], check=True)
        return made

    def command(
        self, stage: str, runs: Path, url: str | None = None, recipe: Path | None = None
    ) -> list[str]:
        command = [
            sys.executable,
            "-m",
            "pipeline",
            stage,
            f"--recipe={recipe or self.recipe}",
            f"--runs={runs}",
        ]
        url = url or self.url
        if stage == "generate":
            command += ["--engine", "server", "--url", url, "--served-name", "scripted", "--concurrency", "8"]
            command += ["--outage-seconds", "2", "--request-timeout-seconds", "3"]
        if stage == "eval":
            command += [word for model in MODELS for word in ("--url", f"{model}={url}")]
            command += [word for model in MODELS for word in ("--served-name", f"{model}=scripted")]
            command += ["--outage-seconds", "2", "--request-timeout-seconds", "3"]
        if stage in ("problems", "generate", "filter", "eval"):
            command += ["--workers", "2"]
        return command

    def run(self, command: list[str], kill_after: float | None = None, **environment: str) -> Ended:
        """Run a command in an environment by which its children are known; kill -9 it after a time if told so."""
        token, began = secrets.token_hex(8), time.monotonic()
        system = self.folder / f"tmp-{token}"
        system.mkdir()
        known = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            MARK: token,
            "TMPDIR": str(system),
        }
        with tempfile.TemporaryFile() as said:
            child = subprocess.Popen(
                command,
                cwd=ROOT,
                env=known | environment,
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )
            try:
                child.wait(kill_after or STAGE_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            seconds = time.monotonic() - began
            orphans = left_behind(token, child.pid)
            said.seek(0)
            stderr = said.read().decode(errors="replace")
        if kill_after is None and seconds > STAGE_SECONDS:
            stderr += "\nTraceback: it did not end"
        litter = sorted(path.name for path in system.rglob("*"))
        shutil.rmtree(system)
        return Ended(child.returncode, stderr, seconds, orphans, litter)

    def shimmed(self, mode: str, runs: Path, at: int | None = None) -> dict[str, str]:
        """The environment of a command whose calls to the disk below `runs` are counted, or end at one of them."""
        more = {} if at is None else {"CAMPAIGN_AT": str(at)}
        log = str(self.folder / "events")
        return {
            "LD_PRELOAD": str(self.shim),
            "CAMPAIGN_ROOT": str(runs),
            "CAMPAIGN_MODE": mode,
            **({"CAMPAIGN_LOG": log} if mode == "count" else {}),
            **more,
        }

    def events(self, stage: str) -> str:
        """What the stage asks of the disk, one letter an event, of the process that asks most."""
        runs = self.before(stage, "counted")
        ended = self.run(self.command(stage, runs), **self.shimmed("count", runs))
        assert ended.code == 0, ended.stderr
        logs = list(self.folder.glob("events.*"))
        letters = max((path.read_text() for path in logs), key=len)
        for path in logs:
            path.unlink()
        return letters

    def finish(self, runs: Path, stages: tuple[str, ...] = STAGES) -> Ended:
        """Run the stages in order; how the last one ended, or the first that failed."""
        for stage in stages:
            ended = self.run(self.command(stage, runs))
            if ended.code != 0:
                return ended
        return ended

    def before(self, stage: str, name: str) -> Path:
        """A copy of the finished run up to the stage before `stage`."""
        runs = self.folder / name
        shutil.rmtree(runs, ignore_errors=True)
        runs.mkdir()
        for done in STAGES[: STAGES.index(stage)]:
            shutil.copytree(self.finished / "tiny" / done, runs / "tiny" / done)
        return runs

    def equal(self, stage: str, runs: Path) -> bool:
        """Whether a stage came to what the finished run has."""
        return result_of(stage, runs) == result_of(stage, self.finished)

    def num_asked(self) -> int:
        """How many requests the server has seen."""
        return num_asked(self.url)


def result_of(stage: str, runs: Path) -> Any:
    """What a stage's result is, without what time and order of arrival decide."""
    directory = runs / "tiny" / stage
    if stage == "problems":
        return (directory / "problems.jsonl").read_bytes()
    if stage == "generate":
        return sorted(
            (row["problem_id"], row["sample"], row["response"])
            for row in rows_of(directory, "traces-*.jsonl")
        )
    if stage == "filter":
        return sorted(map(str, pyarrow.parquet.read_table(directory / "examples.parquet").to_pylist()))
    if stage == "train":
        return hashlib.sha256((directory / "checkpoint/model.safetensors").read_bytes()).hexdigest()
    if stage == "eval":
        tasks = json.loads((directory / "results.json").read_text())["tasks"]
        return {name: {model: tasks[name][model]["pass@1"] for model in MODELS} for name in tasks}
    text = (directory / "report.md").read_text()
    return [line for line in text[: text.index("## Cost")].splitlines() if line.strip()]


def rows_of(directory: Path, pattern: str) -> list[dict[str, Any]]:
    return [json.loads(line) for path in directory.glob(pattern) for line in path.read_text().splitlines()]


def left_behind(token: str, session: int) -> list[str]:
    """Command lines of the processes of a session, or with its token, that still run after ten seconds."""
    end = time.monotonic() + ORPHAN_SECONDS
    while (found := belonging(token, session)) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def belonging(token: str, session: int) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, held = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            ours = int(held) == session or token.encode() in (folder / "environ").read_bytes()
            if ours and state != "Z":
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found
