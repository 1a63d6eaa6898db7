"""Launch files: each parses, holds what was asked for, and its commands run with the scheduler's variables set."""

import os
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.context import Context, load_context
from pipeline.errors import RecipeError
from pipeline.flags import RunFlags
from pipeline.launch import FILES, launch_file
from pipeline.run.contract import Start
from tests.conftest import ROOT

RECIPE = ROOT / "recipes/demo.yaml"
FOLDER = ROOT / "pipeline/launch"


def filled(kind: str) -> str:
    return launch_file(kind, context_of("recipes/demo.yaml"), RunFlags(recipe=RECIPE), (16, 2), gpus=4)


def context_of(recipe: str, *override: str) -> Context:
    return load_context(RECIPE, Path("runs"), Start(recipe=recipe), list(override))


@pytest.mark.parametrize("kind", FILES)
def test_a_launch_file_is_short_and_holds_no_open_place(kind: str) -> None:
    text = filled(kind)
    assert len(text.splitlines()) <= 40
    assert "$$" not in text
    for open_place in ("${recipe}", "${shards}", "${last}", "${nodes}", "${gpus}", "${name}", "${stage}"):
        assert open_place not in text
    assert "recipes/demo.yaml" in text


@pytest.mark.parametrize("kind", ["slurm", "slurm-train"])
def test_a_batch_file_is_a_shell_script_whose_directives_come_first(kind: str, tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    script.write_text(filled(kind))
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, check=False).returncode == 0
    lines = script.read_text().splitlines()
    first_command = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert directives
    assert max(directives) < first_command, "sbatch reads none behind the first command"


def in_a_checkout(tmp_path: Path) -> Path:
    """A directory whose .venv/bin/python says what it was asked to run."""
    checkout = tmp_path / "checkout"
    (checkout / ".venv/bin").mkdir(parents=True)
    for name in ("python", "accelerate"):
        tool = checkout / ".venv/bin" / name
        tool.write_text(f'#!/bin/bash\necho {name} "$@" >> "$SAID"\n')
        tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    return checkout


def run_script(script: str, checkout: Path, tmp_path: Path, **environment: str) -> str:
    said = tmp_path / "said"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=checkout,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "SAID": str(said), "SLURM_SUBMIT_DIR": str(checkout), **environment},
    )
    assert done.returncode == 0, done.stderr
    return said.read_text()


def test_the_slurm_array_runs_one_shard_a_task(tmp_path: Path) -> None:
    assert "#SBATCH --array=0-15\n" in filled("slurm")
    assert "#SBATCH --gpus-per-node=4\n" in filled("slurm")
    said = run_script(filled("slurm"), in_a_checkout(tmp_path), tmp_path, SLURM_ARRAY_TASK_ID="3")
    assert said == (
        "python -m pipeline generate --recipe recipes/demo.yaml --shard 3/16 --tensor-parallel 1 --data-parallel 1\n"
    )


def test_the_slurm_array_of_eval_leaves_each_model_to_its_card(tmp_path: Path) -> None:
    flags = RunFlags(recipe=RECIPE)
    text = launch_file("slurm", context_of("r.yaml"), flags, (4, 1), stage="eval")
    assert "#SBATCH --gpus-per-node=1\n" in text
    assert "python -m pipeline eval --recipe r.yaml --merge" in text
    assert "generate" not in text
    checkout = in_a_checkout(tmp_path)
    said = run_script(text, checkout, tmp_path, SLURM_ARRAY_TASK_ID="3")
    assert said == "python -m pipeline eval --recipe r.yaml --shard 3/4\n"
    big = context_of("r.yaml", "eval.extra=[{name: big, teacher: deepseek-r1-0528}]")
    assert "#SBATCH --gpus-per-node=8\n" in launch_file("slurm", big, flags, (4, 1), stage="eval")
    with pytest.raises(RecipeError, match=r"--stage eval: is for launch slurm"):
        launch_file("sky", context_of("r.yaml"), flags, (4, 1), stage="eval")


def test_the_engine_can_be_a_server(tmp_path: Path) -> None:
    engine = "--engine server --url http://127.0.0.1:8000/v1"
    said = run_script(
        filled("slurm"), in_a_checkout(tmp_path), tmp_path, SLURM_ARRAY_TASK_ID="0", ENGINE=engine
    )
    assert said.endswith(f"--shard 0/16 {engine}\n")


def test_training_over_nodes_gives_each_node_its_rank(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("scontrol", "echo node-a; echo node-b"), ("srun", 'SLURM_NODEID=1 "$@"')):
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    said = run_script(
        filled("slurm-train"),
        in_a_checkout(tmp_path),
        tmp_path,
        PATH=f"{tools}:{os.environ['PATH']}",
        SLURM_JOB_NODELIST="node-[a-b]",
    )
    assert said.endswith(" train --recipe recipes/demo.yaml\n")
    for words in ("--num_machines 2 --num_processes 8 --machine_rank 1", "--main_process_ip node-a "):
        assert words in said


def test_the_sky_file_resumes_from_the_bucket_and_keeps_what_it_made(tmp_path: Path) -> None:
    task = yaml.safe_load(filled("sky"))
    assert task["resources"] == {"accelerators": {"H100": 4}, "use_spot": True}
    assert task["file_mounts"]["/bucket"]["source"] == "${BUCKET}"
    bucket, checkout = tmp_path / "bucket", in_a_checkout(tmp_path)
    (bucket / "runs/demo/problems").mkdir(parents=True)
    (bucket / "runs/demo/problems/problems.jsonl").write_text("{}\n")
    shard = "runs/demo/generate/shards/002-of-016"
    (bucket / shard).mkdir(parents=True)
    (bucket / shard / "traces-00000.jsonl").write_text("bought before\n")
    (checkout / ".venv/bin/python").write_text(
        f'#!/bin/bash\necho "$@" > "$SAID"\necho bought now >> {shard}/traces-00000.jsonl\n'
    )
    said = run_script(
        task["run"], checkout, tmp_path, MOUNT=str(bucket), SKYPILOT_JOB_RANK="2", SKYPILOT_NUM_JOBS="16"
    )
    assert said.endswith("--recipe recipes/demo.yaml --shard 2/16 --tensor-parallel 1 --data-parallel 1\n")
    assert (bucket / shard / "traces-00000.jsonl").read_text() == "bought before\nbought now\n"


def test_the_command_prints_the_file(retort: object) -> None:
    done = retort("launch", "slurm", "--recipe", RECIPE, "--shards", 4)  # type: ignore[operator]
    assert done.returncode == 0
    assert "#SBATCH --array=0-3\n" in done.stdout
    refused = retort("launch", "slurm", "--recipe", RECIPE, "--shards", 0)  # type: ignore[operator]
    assert refused.returncode == 2
    assert "--shards 0: must be at least 1" in refused.stderr


@pytest.mark.parametrize("kind", ["slurm", "slurm-train"])
def test_what_the_command_was_given_reaches_the_job(kind: str, tmp_path: Path) -> None:
    flags = RunFlags(recipe=RECIPE, runs=Path("/data/my runs"), override=("generate.share=0.5", "name=other"))
    context = context_of("my recipes/demo.yaml", "name=other")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("scontrol", "echo node-a"), ("srun", 'SLURM_NODEID=0 "$@"')):
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    checkout = in_a_checkout(tmp_path)
    for name in ("python", "accelerate"):
        (checkout / ".venv/bin" / name).write_text('#!/bin/bash\nprintf "[%s]" "$@" > "$SAID"\n')
    said = run_script(
        launch_file(kind, context, flags, (4, 1), gpus=2),
        checkout,
        tmp_path,
        PATH=f"{tools}:{os.environ['PATH']}",
        SLURM_ARRAY_TASK_ID="3",
        SLURM_JOB_NODELIST="node-a",
    )
    wanted = "[--recipe][my recipes/demo.yaml][--set][generate.share=0.5][--set][name=other][--runs][/data/my runs]"
    assert wanted in said


def test_what_no_shard_would_run_is_not_printed() -> None:
    flags = RunFlags(recipe=RECIPE)
    with pytest.raises(RecipeError, match=r"--shard 0/20000"):
        launch_file("slurm", context_of("r.yaml"), flags, (20000, 1))
    cut = context_of("r.yaml", "generate.samples.redistribute=true", "generate.samples.cap=9")
    with pytest.raises(RecipeError, match="redistribute"):
        launch_file("sky", cut, flags, (4, 1))
