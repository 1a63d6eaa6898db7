"""Rows that start the command line: accelerate with FSDP2 on one process, and the demo's recipes as make runs them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.context import CHECKPOINT
from pipeline.run.stages import NAMES
from tests.conftest import ROOT
from tests.gpu.setting import Setting, require_gpus

DATA = ROOT / "tests/data"
MODELS = ("base", "student", "teacher")


def output_of(command: list[str]) -> str:
    """What it printed; AssertionError with its end where it failed."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def fsdp2(number: str) -> Callable[[Setting], dict[str, Any]]:
    """The row's function: students/launch/fsdp2.yaml with so many processes, which share each row, trains,
    gathers and exports a checkpoint."""

    def run(setting: Setting) -> dict[str, Any]:
        from tests.gpu.training import prepared, rows_of  # TRL and all, which the scores need not wait for

        require_gpus(setting, int(number))
        context = prepared(setting, "train.epochs=0.25")
        recipe, runs = setting.directory / "small.yaml", setting.directory / "runs"
        # the fixture's own change of the recipe, which the command line must repeat to find the run up to date
        sets = ["train.batch_size=32", "train.max_length=256", "train.learning_rate=2.0e-3"]
        sets.append("train.epochs=0.25")
        launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
        launch += ["--config_file", str(ROOT / "students/launch/fsdp2.yaml"), "--num_processes", number]
        command = [
            "-m",
            "pipeline",
            "train",
            "--recipe",
            str(recipe),
            "--runs",
            str(runs),
            "--log-every",
            "1",
        ]
        command += ["--context-parallel", number]
        output_of([*launch, *command, *(word for pair in sets for word in ("--set", pair))])
        losses = [row["loss"] for row in rows_of(context)]
        assert (context.directory("train") / CHECKPOINT / "model.safetensors").is_file()
        assert losses[-1] < losses[0], losses
        if number != "1":
            (alone := setting.directory / "alone").mkdir()
            theirs = fsdp2("1")(replace(setting, directory=alone))["losses"]
            assert abs(losses[0] - theirs[0]) < 0.02 * theirs[0], (losses[0], theirs[0])
        return {"losses": [round(losses[0], 4), round(losses[-1], 4)], "steps": len(losses)}

    return run


def recipe(name: str, *adopted: str) -> Callable[[Setting], dict[str, Any]]:
    """The row's function: a recipe of ours from its first stage to its report; pass@1 of all models here and on the authors' CPU."""

    def run(setting: Setting) -> dict[str, Any]:
        require_gpus(setting)
        runs = setting.directory / "runs"
        for which in (*adopted, name):
            for stage in NAMES:
                output_of(
                    [
                        sys.executable,
                        "-m",
                        "pipeline",
                        stage,
                        "--recipe",
                        f"recipes/{which}.yaml",
                        "--runs",
                        str(runs),
                    ]
                )
        return against_the_cpu(runs / name / "eval/results.json", name)

    return run


def against_the_cpu(path: Path, name: str) -> dict[str, Any]:
    """AssertionError where a score lies outside the CPU's interval, widened by its own half width.

    A recipe whose results are not committed is held to those of the demo, whose base and teacher it shares;
    its student may be better.
    """
    own = DATA / f"{name}-results.json"
    stated = name if own.is_file() else "demo"
    there = json.loads((DATA / f"{stated}-results.json").read_text())["tasks"]["all"]
    here = json.loads(path.read_text())["tasks"]["all"]
    found = {model: [round(side[model]["pass@1"], 4) for side in (here, there)] for model in MODELS}
    for model in MODELS:
        low, high = there[model]["ci95"]
        most = 1 if model == "student" and stated != name else 1.5 * high - 0.5 * low
        assert 1.5 * low - 0.5 * high <= here[model]["pass@1"] <= most, found
    return {f"{model}, here and {stated} on a CPU": pair for model, pair in found.items()}
