"""Launch files: each parses, holds what was asked for, and its commands run with the scheduler's variables set."""

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline.context import Context, load_context
from pipeline.errors import RecipeError
from pipeline.flags import RunFlags
from pipeline.launch import FILES, launch_file
from pipeline.recipe.cards import FOLDERS as CARDS
from pipeline.run.contract import Start
from students.train import STEPS
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
    for open_place in (
        "recipe",
        "shards",
        "last",
        "nodes",
        "gpus",
        "name",
        "stage",
        "merge",
        "parallel",
        "served",
        "train",
    ):
        assert f"${{{open_place}}}" not in text
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


def with_tools(tmp_path: Path, **tools: str) -> str:
    """A PATH on which these commands come first, each a line of bash."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name, text in tools.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def pasted(text: str) -> str:
    """The commands of a file's header, as somebody pastes them into a shell."""
    return "".join(line.removeprefix("#   ") for line in text.splitlines(True) if line.startswith("#   "))


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
    for name, text in (("scontrol", "echo node-a; seq -f node-%g 99999"), ("srun", 'SLURM_NODEID=1 "$@"')):
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


def at_the_limit(kind: str, checkout: Path, tmp_path: Path, signalled: bool) -> tuple[int, list[str]]:
    """The exit code of a batch script whose work says `began`, and what was said, where Slurm sends it the signal
    that the file asks for."""
    text, said = filled(kind), tmp_path / "said"
    asked = re.search(r"^#SBATCH --signal=B:(\w+)@\d+$", text, re.MULTILINE)
    assert asked
    running = subprocess.Popen(
        ["bash", "-c", text],
        cwd=checkout,
        env=os.environ
        | {
            "PATH": with_tools(
                tmp_path, scontrol='echo scontrol "$@" >> "$SAID"; echo node-a', srun='SLURM_NODEID=0 "$@"'
            ),
            **{"SAID": str(said), "SLURM_SUBMIT_DIR": str(checkout), "SLURM_JOB_NODELIST": "node-a"},
            **{"SLURM_JOB_ID": "80", "SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3"},
        },
    )
    try:
        deadline = time.monotonic() + 60
        while not (said.exists() and "began" in said.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        if signalled:
            running.send_signal(getattr(signal, f"SIG{asked[1]}"))
        (tmp_path / "sent").touch()
        return running.wait(timeout=60), said.read_text().splitlines()
    finally:
        running.kill()


@pytest.mark.parametrize(
    ("signalled", "ends_with", "code", "said"),
    [
        (True, 130, 130, ["began", "saved", "scontrol requeue 77_3"]),
        (True, 0, 0, ["began", "saved"]),
        (False, 1, 1, ["began", "not asked"]),
        (False, 0, 0, ["began", "not asked"]),
    ],
)
def test_a_shard_that_meets_its_time_limit_saves_and_is_queued_again(
    signalled: bool, ends_with: int, code: int, said: list[str], tmp_path: Path
) -> None:
    checkout = in_a_checkout(tmp_path)
    # nothing here is said about SIGINT: Python raises KeyboardInterrupt unless it was started deaf to it
    (checkout / ".venv/bin/python").write_text(
        f"""#!{sys.executable} -S
import os, sys, time
def say(word):
    with open(os.environ["SAID"], "a") as file:
        file.write(word + "\\n")
try:
    say("began")
    time.sleep({30 if signalled else 0})
    say("not asked")
except KeyboardInterrupt:
    time.sleep(0.3)
    say("saved")
sys.exit({ends_with})
"""
    )
    assert at_the_limit("slurm", checkout, tmp_path, signalled) == (code, said)


@pytest.mark.parametrize(
    ("before", "saves"),
    [((), True), ((10,), True), ((), False), ((10,), False)],
    ids=["first", "next", "none yet", "none since"],
)
def test_a_training_that_meets_its_time_limit_is_queued_again_where_it_saved_a_step(
    before: tuple[int, ...], saves: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Else it would begin at the same step for ever; a checkpoint that is being written is none yet."""
    checkout = in_a_checkout(tmp_path)
    steps = checkout / "runs/demo/train" / STEPS
    for step in before:
        (steps / f"checkpoint-{step}").mkdir(parents=True)
        (steps / f"checkpoint-{step}/trainer_state.json").touch()
    save = f"touch {steps}/checkpoint-99/trainer_state.json" if saves else ":"
    (checkout / ".venv/bin/accelerate").write_text(
        f'#!/bin/bash\nmkdir -p {steps}/checkpoint-99\n{save}\necho began >> "$SAID"\n'
        f"for _ in {{1..600}}; do [ ! -e {tmp_path}/sent ] || break; sleep 0.05; done\nexit 3\n"
    )
    code, said = at_the_limit("slurm-train", checkout, tmp_path, True)
    assert said == ["scontrol show hostnames node-a", "began"] + ["scontrol requeue 80"] * saves
    assert code == 3
    assert ("error: train saved no step" in capfd.readouterr().err) is not saves


def test_the_merge_in_the_header_takes_any_path_of_a_recipe(tmp_path: Path) -> None:
    recipe = """my recipes/it's "$HOME" `id`.yaml"""
    text = launch_file("slurm", context_of(recipe), RunFlags(recipe=RECIPE), (4, 1))
    checkout = in_a_checkout(tmp_path)
    (checkout / ".venv/bin/python").write_text('#!/bin/bash\nprintf "[%s]" "$@" > "$SAID"\n')
    path = with_tools(
        tmp_path,
        sbatch='[ "$1" = --parsable ] && echo 77 && exit\n'
        '[ "$#" = 3 ] && [ "$1" = --dependency=afterok:77 ] && [ "$2" = --wrap ] && sh -c "$3"',
    )
    said = run_script(pasted(text), checkout, tmp_path, PATH=path)
    assert said == f"[-m][pipeline][generate][--recipe][{recipe}][--merge]"


def test_the_sky_file_is_a_managed_job_for_each_shard(tmp_path: Path) -> None:
    text = filled("sky")
    task = yaml.safe_load(text)
    # a pool may have no run, and a job on one no setup, workdir or file_mounts: this is neither
    assert task.keys() == {"name", "workdir", "resources", "envs", "file_mounts", "setup", "run"}
    assert task["envs"]["SHARD"] is None, "SkyPilot refuses a launch that leaves it out"
    path = with_tools(tmp_path, sky='echo "$@" >> "$SAID"', python="true")
    said = run_script(pasted(text), in_a_checkout(tmp_path), tmp_path, PATH=path).splitlines()
    assert said == [
        f"jobs launch -y -d -n generate-{number} --env SHARD={number} generate.sky.yaml"
        for number in range(16)
    ]


# cp into a bucket: what is read is read at once, what is written is there half a second later and has no times
UPLOADS = """dest="${!#}"
for ((i = 1; i < $#; i++)); do next=$((i + 1)); [ "${!i}" != -t ] || dest="${!next}"; done
case "$dest" in "$MOUNT"*/shards/*) ;; *) exec /bin/cp "$@" ;; esac
before=$(mktemp -d -p "$TMPDIR") after=$(mktemp -d -p "$TMPDIR")
/bin/cp -a "$dest/." "$before"
/bin/cp -a "$dest/." "$after"
/bin/cp "${@/#"$dest"/"$after"}" || exit
echo begins >> "$TMPDIR/uploads"
sleep 0.5
cd "$after"
for file in *; do
  cmp -s "$file" "$before/$file" || { cat "$file" > "$dest/$file"; echo "$file" >> "$TMPDIR/uploads"; }
done
echo ends >> "$TMPDIR/uploads"
"""


def test_the_last_copy_to_a_bucket_has_all_that_was_made(tmp_path: Path) -> None:
    bucket, checkout, shard = (
        tmp_path / "bucket",
        in_a_checkout(tmp_path),
        "runs/demo/generate/shards/002-of-016",
    )
    (bucket / "runs/demo/problems").mkdir(parents=True)
    work = f"""#!/bin/bash
echo "$@" > "$SAID"
begun() {{ cat "$TMPDIR/uploads" 2> /dev/null | grep -c begins; }}
another() {{
  local held=$(begun)
  for _ in {{1..600}}; do [ "$(begun)" -le "$held" ] || return 0; sleep 0.05; done
  exit 1
}}
for number in 1 2 3 4 5 6; do echo "$number" >> {shard}/traces-00000.jsonl; sleep 0.2; done
another
echo finished > {shard}/manifest.json
another
"""
    (checkout / ".venv/bin/python").write_text(work)
    script = yaml.safe_load(filled("sky"))["run"].replace("sleep 60", "sleep 0.1")
    run_script(
        script,
        checkout,
        tmp_path,
        PATH=with_tools(tmp_path, cp=UPLOADS),
        TMPDIR=str(tmp_path),
        MOUNT=str(bucket),
        SHARD="2",
    )
    made = {path.name: path.read_text() for path in (bucket / shard).iterdir()}
    assert made == {"traces-00000.jsonl": "1\n2\n3\n4\n5\n6\n", "manifest.json": "finished\n"}
    uploads = (tmp_path / "uploads").read_text().split()
    assert uploads[-2:] == ["manifest.json", "ends"]
    assert uploads.count("manifest.json") == 1, "what a manifest speaks of is there before it"
    assert uploads.count("begins") > 2
    marks = [word for word in uploads if word in ("begins", "ends")]
    assert marks == ["begins", "ends"] * (len(marks) // 2), "two copies at once: the older may end last"


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
    said = run_script(task["run"], checkout, tmp_path, MOUNT=str(bucket), SHARD="2")
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


def card_of(tmp_path: Path, tensor_parallel: int, parts: object) -> str:
    values = yaml.safe_load((CARDS["teacher"] / "qwen3-30b-a3b-thinking-2507.yaml").read_text())
    arguments = {"pipeline_parallel_size": parts}
    values["engine"] |= {"tensor_parallel": tensor_parallel, "arguments": arguments}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.mark.parametrize("stage", ["generate", "eval"])
def test_the_parts_of_a_model_s_layers_count_among_its_gpus(stage: str, tmp_path: Path) -> None:
    flags = RunFlags(recipe=RECIPE)
    called = {"generate": "mine", "eval": "teacher"}[stage]  # eval has its own names, which --url takes

    def printed(tensor_parallel: int, parts: object, kind: str = "slurm", gpus: int | None = None) -> str:
        context = context_of("r.yaml", f"generate.teacher={card_of(tmp_path, tensor_parallel, parts)}")
        return launch_file(kind, context, flags, (4, 1), gpus=gpus, stage=stage)

    assert "#SBATCH --gpus-per-node=8\n" in printed(4, 2)
    if stage == "generate":
        assert "accelerators: {H100: 8}" in printed(4, 2, "sky")
    over_nodes = (
        r"one copy takes 16 GPUs.* of 8\. Give --gpus 16 where .* serve-teacher .*--gpus 1 .*ENGINE='--"
    )
    with pytest.raises(RecipeError, match=f"^{called}: {over_nodes}"):
        printed(8, 2)
    if stage == "eval":
        extra = f"eval.extra=[{{name: big, teacher: {card_of(tmp_path, 8, 2)}}}]"
        with pytest.raises(RecipeError, match=f"^big: {over_nodes}url big=http"):
            launch_file("slurm", context_of("r.yaml", extra), flags, (4, 1), stage=stage)
    assert "#SBATCH --gpus-per-node=16\n" in printed(8, 2, gpus=16)
    with pytest.raises(
        RecipeError, match=rf"^{called}: the card's engine.arguments: pipeline_parallel_size: .* 'two'"
    ):
        printed(4, "two")
