"""Rows that start the command line: accelerate with FSDP2 on one process, and the demo's recipes as make runs them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.context import CHECKPOINT
from pipeline.run.stages import NAMES
from tests.conftest import ROOT
from tests.gpu.setting import NotHere, Setting, require_gpus
from tests.gpu.training import prepared, rows_of

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


def fsdp2(setting: Setting) -> dict[str, Any]:
    """students/launch/fsdp2.yaml with one process: trains, gathers and exports a checkpoint."""
    require_gpus(setting)
    context = prepared(setting, "train.epochs=0.25")
    recipe, runs = setting.directory / "small.yaml", setting.directory / "runs"
    sets = ["train.batch_size=32", "train.max_length=256", "train.learning_rate=2.0e-3", "train.epochs=0.25"]
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    launch += ["--config_file", str(ROOT / "students/launch/fsdp2.yaml"), "--num_processes", "1"]
    command = ["-m", "pipeline", "train", "--recipe", str(recipe), "--runs", str(runs), "--log-every", "1"]
    # the fixture's own change of the recipe, which the command line must repeat to find the run up to date
    output_of([*launch, *command, *(word for pair in sets for word in ("--set", pair))])
    losses = [row["loss"] for row in rows_of(context)]
    assert (context.directory("train") / CHECKPOINT / "model.safetensors").is_file()
    assert losses[-1] < losses[0], losses
    return {"losses": [round(losses[0], 4), round(losses[-1], 4)], "steps": len(losses)}


def recipe(name: str, *adopted: str) -> Callable[[Setting], dict[str, Any]]:
    """The row's function: a recipe of ours from its first stage to its report; pass@1 of all models here and on the authors' CPU."""

    def run(setting: Setting) -> dict[str, Any]:
        require_gpus(setting)
        if not (ROOT / f"recipes/{name}.yaml").is_file():
            raise NotHere(f"there is no recipes/{name}.yaml")
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
        return against_the_cpu(runs / name / "eval/results.json", ROOT / f"tests/data/{name}-results.json")

    return run


def against_the_cpu(path: Path, committed: Path) -> dict[str, Any]:
    """AssertionError where a score lies outside the CPU's interval, widened by its own half width."""
    here = json.loads(path.read_text())["tasks"]["all"]
    if not committed.is_file():
        return {model: here[model]["pass@1"] for model in MODELS}
    there = json.loads(committed.read_text())["tasks"]["all"]
    found = {model: [round(side[model]["pass@1"], 4) for side in (here, there)] for model in MODELS}
    for model in MODELS:
        low, high = there[model]["ci95"]
        assert 1.5 * low - 0.5 * high <= here[model]["pass@1"] <= 1.5 * high - 0.5 * low, found
    return {f"{model}, here and on a CPU": pair for model, pair in found.items()}
