"""polish for real on the embedded pair: killed and resumed, LoRA, a teacher that is served."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eval.scores import wilson
from pipeline.context import Context
from pipeline.errors import RecipeError, StageError
from pipeline.flags import EngineFlags
from pipeline.recipe.cards import hash_checkpoint
from pipeline.records import ProblemFile
from pipeline.run.contract import read_manifest
from pipeline.sampling import Store
from pipeline.sampling.engines.serving import serve_command
from students.polish import run
from students.scoring import digest_of, read_scores
from tests.conftest import ROOT, command_line
from tests.polish_run import CHANGES, context_in, embedded_teacher, polish_recipe, train_student
from tests.scoring_server import ScoringServer, serving
from tests.served import free_port, wait_until_served
from tests.students_fixtures import build_student

pytestmark = pytest.mark.slow
IN_FLIGHT = 2  # requests at the scoring server
NUM_TRIED = 16  # chats that teacher and student answer before the first round
# polish that is killed while it writes this checkpoint: by itself, as from outside the moment is soon missed
WRITTEN = "checkpoint-4"
DIES = f"""
import os, runpy, signal
from transformers import TrainerState

save = TrainerState.save_to_json

def save_or_die(state, path):
    if {WRITTEN!r} in path:
        os.kill(os.getpid(), signal.SIGKILL)
    save(state, path)

TrainerState.save_to_json = save_or_die
runpy.run_module("pipeline", run_name="__main__", alter_sys=True)
"""
SAMPLED = ("polish.divergence=sampled", "polish.evaluate_every=1")
LOCAL = ("polish.divergence=reverse_kl", "polish.evaluate_every=1")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of runs that holds one with a trained student."""
    directory = tmp_path_factory.mktemp("polish")
    polish_recipe(directory)
    train_student(context_in(directory / "runs"))
    return directory / "runs"


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copy(trained.parent / "small.yaml", tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "runs"))


@pytest.fixture(scope="session")
def teacher(trained: Path) -> Any:
    return embedded_teacher(context_in(trained))


def server_of(teacher: Any, **options: Any) -> ScoringServer:
    return ScoringServer("embedded-moe", teacher.model, teacher.prompts, teacher.end, **options)


def start(runs: Path, url: str | None = None, dies: bool = False) -> "subprocess.Popen[str]":
    """polish with the teacher's weights here, or with the server at `url` that scores."""
    overrides = [word for value in (*CHANGES, *(SAMPLED if url else LOCAL)) for word in ("--set", value)]
    served = ["--concurrency", IN_FLIGHT, "--engine", "server", "--url", url] if url else []
    recipe = runs.parent / "small.yaml"
    command = command_line("polish", "--recipe", recipe, "--runs", runs, *served, *overrides)
    if dies:
        command[1:3] = ["-c", DIES]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def kill_when(process: "subprocess.Popen[str]", reached: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 240
    while not reached():
        assert process.poll() is None, f"{what}: {process.communicate()[1]}"
        assert time.monotonic() < end, what
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kept_bytes(rounds: Path) -> dict[str, bytes]:
    """What was sampled and scored so far, less what a kill may have torn."""
    return {
        str(path.relative_to(rounds)): path.read_bytes().rpartition(b"\n")[0]
        for path in rounds.rglob("*.jsonl")
        if "failures" not in path.name
    }


def copy_of(runs: Path) -> Path:
    whole = Path(shutil.copytree(runs, runs.parent / "whole" / "runs"))
    shutil.copy(runs.parent / "small.yaml", whole.parent)
    return whole


def killed_while_writing(process: "subprocess.Popen[str]", polish: Path) -> None:
    try:
        _, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGKILL, errors
    path = polish / "steps" / WRITTEN
    assert path.exists()
    assert not (path / "trainer_state.json").exists()


def test_a_run_with_the_teacher_here_that_is_killed_ends_in_the_same_weights(runs: Path) -> None:
    """At sampling, an update, and writing a checkpoint: no response is sampled twice, and no figure differs."""
    whole = copy_of(runs)
    process = start(whole)
    assert process.wait(timeout=400) == 0, process.communicate()[1]

    polish = runs / "small" / "polish"
    rounds = polish / "rounds"
    points: list[tuple[str, Callable[[], bool]]] = [
        ("sampling", lambda: (rounds / "00000" / "traces-00000.jsonl").exists()),
        ("updating", lambda: lines_of(rounds / "00001" / "traces-00000.jsonl") == 32),
    ]
    for what, reached in points:
        kill_when(start(runs), reached, what)
        assert not (polish / "manifest.json").exists(), what
    assert not (polish / "steps" / WRITTEN / "trainer_state.json").exists()
    killed_while_writing(start(runs, dies=True), polish)
    held = kept_bytes(rounds)
    process = start(runs)
    assert process.wait(timeout=400) == 0, process.communicate()[1]
    found = kept_bytes(rounds)
    assert all(found[name].startswith(text) for name, text in held.items())
    for number in range(3):
        keys = [(trace.problem_id, trace.sample) for trace in Store(rounds / f"{number:05}").traces()]
        assert len(keys) == len(set(keys)) == 32, number
    assert hash_checkpoint(polish / "checkpoint") == hash_checkpoint(
        whole / "small" / "polish" / "checkpoint"
    )
    assert figures(polish) == figures(whole / "small" / "polish")


def test_a_run_that_is_killed_four_times_ends_in_the_same_weights(runs: Path, teacher: Any) -> None:
    """At sampling, scoring, an update, and writing a checkpoint: nothing is bought twice, nothing is lost."""
    whole = copy_of(runs)
    with serving(server_of(teacher)) as url:
        process = start(whole, url)
        assert process.wait(timeout=400) == 0, process.communicate()[1]

    polish = runs / "small" / "polish"
    rounds, steps = polish / "rounds", polish / "steps"

    points: list[tuple[str, Callable[[], bool]]] = [
        ("sampling", lambda: (rounds / "00000" / "traces-00000.jsonl").exists()),
        ("scoring", lambda: lines_of(rounds / "00001" / "scores.jsonl") >= 5),
        ("updating", lambda: lines_of(rounds / "00001" / "scores.jsonl") == 32),
    ]
    server = server_of(teacher, delay_seconds=0.02)
    with serving(server) as url:
        for what, reached in points:
            kill_when(start(runs, url), reached, what)
            assert not (polish / "manifest.json").exists(), what
            if what == "sampling":
                assert lines_of(rounds / "00000" / "traces-00000.jsonl") < 32
            if what == "updating":
                assert not (steps / WRITTEN / "trainer_state.json").exists()
        killed_while_writing(start(runs, url, dies=True), polish)
        held = kept_bytes(rounds)
        process = start(runs, url)
        assert process.wait(timeout=400) == 0, process.communicate()[1]
    found = kept_bytes(rounds)
    assert all(found[name].startswith(text) for name, text in held.items())
    # each response once, what the checks ask at each of five starts, and what was in flight at a kill
    once = sum(lines_of(path) for path in rounds.glob("*/scores.jsonl")) + 5 * (NUM_TRIED + 1)
    assert once <= server.scored.total() <= once + 2 * IN_FLIGHT
    assert hash_checkpoint(polish / "checkpoint") == hash_checkpoint(
        whole / "small" / "polish" / "checkpoint"
    )
    assert figures(polish) == figures(whole / "small" / "polish")


def test_a_server_of_too_few_positions_is_refused_before_the_first_round(runs: Path, teacher: Any) -> None:
    """The card has 1,024; the server was started with less."""
    server = server_of(teacher, positions=125)
    with serving(server) as url:
        flags = EngineFlags(engine="server", urls=(url,))
        with pytest.raises(RecipeError, match=r"positions where it is served: .* 125 positions"):
            run(context_in(runs, *SAMPLED), None, flags)
    assert server.scored.total() == 0
    assert not (runs / "small" / "polish").exists()


def figures(polish: Path) -> list[dict[str, Any]]:
    """metrics.jsonl less what depends on the clock."""
    rows = [json.loads(line) for line in (polish / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.endswith("_seconds")} for row in rows]


def test_the_loss_of_sampled_tokens_is_a_clipped_policy_gradient(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from students.polisher import CLIP, PolishTrainer
    from students.scoring import score_here

    student: Any = AutoModelForCausalLM.from_pretrained(build_student(tmp_path), dtype=torch.float32)
    torch.manual_seed(0)
    prompt, ids = torch.randint(0, 250, (2, 5)), torch.randint(0, 250, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    rows = [(prompt[row].tolist(), ids[row].tolist()) for row in range(2)]
    old = torch.tensor(score_here(student, rows))
    teacher = old + torch.randn_like(old)
    batch = {"prompt_ids": prompt, "prompt_mask": torch.ones_like(prompt), "completion_ids": ids}
    batch |= {"completion_mask": mask, "teacher_logprobs": teacher, "student_logprobs": old}
    metrics: dict[str, Any] = {"train": defaultdict(list)}

    def gradient_of(**changes: torch.Tensor) -> torch.Tensor:
        loss, _, num_tokens = PolishTrainer._compute_loss(
            SimpleNamespace(_metrics=metrics),  # type: ignore[arg-type]
            student,
            batch | changes,
            torch.tensor(11.0),
        )
        assert num_tokens == 11
        (found,) = torch.autograd.grad(loss, [student.model.embed_tokens.weight])
        return found

    logits = student(torch.cat([prompt, ids], 1)).logits[:, 4:-1].log_softmax(-1)
    logprobs = logits.gather(-1, ids[..., None])[..., 0]
    wanted = torch.autograd.grad(
        -((teacher - old) * logprobs * mask).sum() / 11, [student.model.embed_tokens.weight]
    )[0]
    assert (gradient_of() - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert metrics["train"]["importance_ratio"] == [pytest.approx(1, abs=1e-4)]
    assert metrics["train"]["divergence"] == [
        pytest.approx(float(((old - teacher) * mask).sum() / 11), abs=1e-5)
    ]
    # the student left a token behind that the teacher likes better still: no pull beyond the clip
    long_ago = old - 2 * CLIP
    assert gradient_of(student_logprobs=long_ago, teacher_logprobs=long_ago + 1).abs().max() == 0


def test_the_loss_of_sampled_tokens_takes_what_the_plan_says() -> None:
    """Bytes at the peak of a head of many rows, in bf16 as on a GPU; its own weights are the rest."""
    import torch

    from pipeline.plan.memory import SAMPLED_BYTES
    from students.polisher import PolishTrainer

    num_tokens, num_rows = 256, 20_000
    torch.manual_seed(0)
    head = torch.nn.Linear(8, num_rows, bias=False)
    head.weight.grad = torch.zeros_like(head.weight)
    hidden = torch.randn(1, num_tokens + 1, 8)

    def student(**given: Any) -> Any:
        return SimpleNamespace(logits=head(hidden))

    ids = torch.randint(0, num_rows, (1, num_tokens))
    batch = {"prompt_ids": ids[:, :1], "prompt_mask": torch.ones(1, 1), "completion_ids": ids}
    batch |= {"completion_mask": torch.ones_like(ids), "student_logprobs": torch.full(ids.shape, -3.0)}
    batch |= {"teacher_logprobs": torch.full(ids.shape, -2.0)}
    metrics: dict[str, Any] = {"train": defaultdict(list)}
    with torch.profiler.profile(profile_memory=True) as profiler:
        with torch.autocast("cpu", torch.bfloat16):
            trainer: Any = SimpleNamespace(_metrics=metrics)
            loss, _, _ = PolishTrainer._compute_loss(trainer, student, batch, torch.tensor(256.0))  # type: ignore[arg-type]
        loss.backward()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert SAMPLED_BYTES * 0.8 < peak / (num_tokens * num_rows) < SAMPLED_BYTES * 1.1


def test_a_trl_without_the_seam_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from trl import DistillationTrainer

    from students.polisher import check_seams

    check_seams()
    monkeypatch.delattr(DistillationTrainer, "_tokenize_prompts")
    with pytest.raises(StageError, match=r"no DistillationTrainer._tokenize_prompts .*make setup"):
        check_seams()


def test_a_student_is_polished_with_an_adapter(runs: Path) -> None:
    """The adapter is one of the trained student, its merge is the checkpoint, and the base stays as it was.
    Without held-out problems the last round's weights are kept."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    changes = ("polish.method=lora", "polish.rounds=2", "polish.learning_rate=2e-3", "polish.held_out=0")
    context = context_in(runs, *changes)
    before = hash_checkpoint(context.directory("train") / "checkpoint")
    run(context)
    polish = context.directory("polish")
    assert hash_checkpoint(context.directory("train") / "checkpoint") == before
    values = json.loads((polish / "adapter" / "adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == "../../train/checkpoint"
    load: Any = AutoModelForCausalLM.from_pretrained
    merged = load(polish / "checkpoint", dtype=torch.float32)
    base = load(context.directory("train") / "checkpoint", dtype=torch.float32)
    ids = torch.tensor([list(range(40, 60))])
    with torch.no_grad():
        ours, theirs = merged(ids).logits, base(ids).logits
        adapted = PeftModel.from_pretrained(base, str(polish / "adapter"))(ids).logits
    assert (ours - adapted).abs().max() < 0.1  # the checkpoint is in the card's bf16
    assert (ours - theirs).abs().max() > 0.01
    assert read_manifest(polish).usage.scored_tokens > 0  # type: ignore[union-attr, operator]


def test_a_teacher_that_is_served_is_as_good_as_one_that_is_here(
    runs: Path, teacher: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real `vllm serve` scores the student's tokens as the weights here do, and equal rounds of the same
    loss end alike."""
    here = Path(shutil.copytree(runs, runs.parent / "here" / "runs"))
    shutil.copy(runs.parent / "small.yaml", here.parent)
    changes = (
        "polish.rounds=6",
        "polish.held_out=48",
        "polish.evaluate_every=6",
        "polish.divergence=sampled",
    )
    with serving(server_of(teacher)) as url:
        run(context_in(here, *changes), None, EngineFlags(engine="server", urls=(url,)))

    context, port = context_in(runs, *changes), free_port()
    log = runs.parent / "server.log"
    with log.open("wb") as file:
        command = serve_command(context.teacher, EngineFlags(), port=port, host="127.0.0.1")
        server = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        wait_until_served(port, server, log)
        url = f"http://127.0.0.1:{port}/v1"
        flags = EngineFlags(engine="server", urls=(url,), served_name=context.teacher.model)
        run(context, None, flags)
    finally:
        server.terminate()
        server.wait(60)

    gaps = score_gaps(context, teacher)
    ends = [figures(path / "small" / "polish")[-1]["held_out"] for path in (here, runs)]
    with capsys.disabled():
        print(
            f"\nserved scores less those of the weights here, nats a token: mean {sum(gaps) / len(gaps):.4f}, "
            f"largest {max(gaps):.3f}; held out after equal rounds: here {ends[0]:.1%}, served {ends[1]:.1%}"
        )
    assert sum(gaps) / len(gaps) < 0.02  # bf16 there, fp32 here
    low, high = zip(*(wilson(rate, 48) for rate in ends), strict=True)
    assert max(low) <= min(high)


def score_gaps(context: Context, teacher: Any) -> list[float]:
    """How far the served scores of the first round are from those of the weights here, token by token."""
    directory = context.directory("polish") / "rounds" / "00000"
    served = read_scores(directory / "scores.jsonl")
    problems = ProblemFile(context.directory("problems") / "problems.jsonl")
    prompts = {p.id: teacher.prompts.ids(context.prompt.messages(p.question)) for p in problems}
    rows = [
        (prompts[trace.problem_id], trace.tokens.ids) for trace in Store(directory).traces() if trace.tokens
    ]
    return [
        abs(there - here)
        for row, ours in zip(rows, teacher.score(rows), strict=True)
        for there, here in zip(served[digest_of(*row)], ours, strict=True)
    ]
