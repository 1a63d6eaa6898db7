"""One row over several processes: the same training as by one, and where it cannot be, one clear error."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed
from transformers import AutoModelForCausalLM, Mamba2Config

from pipeline.context import Context
from pipeline.errors import RecipeError, StageError
from pipeline.flags import TrainFlags
from pipeline.recipe.schema import TopkLoss, Train
from students.attention import FLASH, NAME, attend_apart
from students.context_parallel import SharedRows, attend_shared, check_sharing, possible_sizes
from students.format import IGNORED
from students.layout import Layout, choose_layout
from students.memory import settle
from students.train import check_flags
from students.trainer import OrderedTrainer
from tests.conftest import ROOT
from tests.students_fixtures import build_student, finished_filter, sums
from tests.test_train import command, environment, metrics, weights

HELD_OUT = "train.held_out_share=0.1"
PACKED = Layout(packed=True, attention=NAME)
RECIPE = Train(student="s", max_length=64, method="full", epochs=1, learning_rate=1e-3)
TOPK = RECIPE.model_copy(update={"loss": TopkLoss(topk_kl=4)})


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_the_runs_of_a_row_are_the_row(size: int) -> None:
    """What each process predicts after its last token is what the next one begins with."""
    ids = list(range(10, 23))
    row = {"input_ids": ids, "labels": [IGNORED, IGNORED, *ids[2:]], "seq_lengths": [6, 7]}
    runs = [SharedRows(index, size)([row]) for index in range(size)]
    assert {run["input_ids"].shape for run in runs} == {torch.Size([1, -(-13 // size)])}
    whole = {name: torch.cat([run[name] for run in runs], dim=1)[0].tolist() for name in runs[0] if name in
             ("input_ids", "shift_labels", "position_ids")}  # fmt: skip
    padding = -len(ids) % size
    assert whole["input_ids"] == ids + [0] * padding
    assert whole["position_ids"] == [*range(6), *range(7), *range(padding)]
    # the first token of an example is nobody's to predict
    assert whole["shift_labels"] == [IGNORED, *ids[2:6], IGNORED, *ids[7:], IGNORED] + [IGNORED] * padding
    borders = [0, 6, 13] + ([13 + padding] if padding else [])
    assert all(run["cu_seq_lens_q"].tolist() == borders for run in runs)


def tiny(tmp_path: Path, **changes: Any) -> Any:
    path = build_student(tmp_path, num_attention_heads=6, num_key_value_heads=2, **changes)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def test_what_cannot_be_shared_is_refused_with_its_reason(tmp_path: Path) -> None:
    student, flags = tiny(tmp_path), TrainFlags(context_parallel=2, processes=4)
    assert possible_sizes(student, PACKED, RECIPE) == [2, 6]
    assert possible_sizes(student, PACKED, TOPK) == []
    check_sharing(student, PACKED, flags)
    check_sharing(student, Layout(packed=False, attention="sdpa"), TrainFlags(context_parallel=1))
    with pytest.raises(StageError, match=r"4 does not share out its 6 heads and 2 heads of keys"):
        check_sharing(student, PACKED, replace(flags, context_parallel=4))
    with pytest.raises(StageError, match=r"its examples are padded, with attention eager"):
        check_sharing(student, Layout(packed=False, attention="eager"), flags)
    check_sharing(student, Layout(packed=True, attention=FLASH), flags)
    student.model.layers[0].mixer = torch.nn.Conv1d(1, 1, 1)  # as where kernels keep its examples apart
    with pytest.raises(StageError, match=r"some of its layers carry a state along the row"):
        check_sharing(student, PACKED, flags)


def test_a_student_without_attention_has_its_rows_whole() -> None:
    """Of a model of mixers alone no head is asked for, whatever its layout."""
    config = Mamba2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_heads=4, head_dim=16, state_size=8, n_groups=1
    )
    student = AutoModelForCausalLM.from_config(config)
    layout = choose_layout(student, [list(range(40)), list(range(20, 60))], longest=64)
    assert not layout.packed
    for given in (layout, PACKED):
        assert possible_sizes(student, given, RECIPE) == []
    for attention in (layout.attention, "eager"):
        settle(student, RECIPE, TrainFlags(), 80.0, attention=attention)


def test_what_was_not_launched_is_refused_before_the_student_is_loaded() -> None:
    flags = TrainFlags(context_parallel=2, processes=4)
    check_flags(RECIPE, flags)
    with pytest.raises(RecipeError, match=r"--context-parallel 2: 3 processes were launched"):
        check_flags(RECIPE, replace(flags, processes=3))
    with pytest.raises(RecipeError, match=r"--context-parallel 2: 1 process was launched"):
        check_flags(RECIPE, replace(flags, processes=1))
    with pytest.raises(RecipeError, match=r"topk_kl reads whole rows"):
        check_flags(TOPK, flags)
    with pytest.raises(RecipeError, match=r"--context-parallel 0: must be at least 1"):
        TrainFlags(context_parallel=0)


def compared(rank: int, size: int, keys: int, window: int | None, meeting: Path) -> None:
    """In one of `size` processes: attention of a shared row, and its gradients, against the whole row's."""
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    torch.manual_seed(0)
    heads, tokens, module = 6, 24, torch.nn.Module()
    whole = [torch.randn(1, number, tokens, 8, requires_grad=True) for number in (heads, keys, keys)]
    borders = torch.tensor([0, 5, 7, 24], dtype=torch.int32)
    options: dict[str, Any] = {"cu_seq_lens_q": borders, "sliding_window": window}
    theirs, _ = attend_apart(module, *whole, None, **options)
    weight = torch.randn_like(theirs)
    (theirs * weight).sum().backward()
    own = [part.detach().chunk(size, dim=2)[rank].clone().requires_grad_() for part in whole]
    ours, _ = attend_shared(module, *own, None, group=distributed.group.WORLD, **options)
    assert torch.allclose(ours, theirs.chunk(size, dim=1)[rank], atol=1e-6)
    (ours * weight.chunk(size, dim=1)[rank]).sum().backward()
    for one, other in zip(own, whole, strict=True):
        assert torch.allclose(one.grad, other.grad.chunk(size, dim=2)[rank], atol=1e-5)
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "keys", "window"), [(2, 2, None), (3, 1, 4)], ids=["keys apart", "keys copied"]
)
def test_attention_and_gradients_of_a_shared_row_are_those_of_the_whole(
    size: int, keys: int, window: int | None, tmp_path: Path
) -> None:
    torch.multiprocessing.spawn(compared, (size, keys, window, tmp_path / "meeting"), nprocs=size)


def trained(root: Path, processes: int, *arguments: str) -> Context:
    root.mkdir(exist_ok=True)
    context = finished_filter(root, sums(48), HELD_OUT)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    called = command(context, "--set", HELD_OUT, *arguments)
    if processes > 1:
        called = [*launcher, *called]
    subprocess.run([sys.executable, *called], cwd=ROOT, env=environment(), check=True)
    return context


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return trained(tmp_path_factory.mktemp("shared") / "alone", 1, "--tokens-per-device", "200")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4], ids=["one row at a time", "two rows at a time"])
def test_processes_that_share_rows_train_the_student_that_one_trains(
    tmp_path: Path, alone: Context, processes: int
) -> None:
    """Runs of 50 tokens cut examples in the middle, where their attention has to reach across. What is held
    out is cut into other micro-batches by 100 tokens than by 200, and its loss is the same."""
    both = trained(tmp_path / "shared", processes, "--context-parallel", "2", "--tokens-per-device", "50")
    notes = both.require("train", "the test").notes
    assert (notes["processes"], notes["context_parallel"]) == (processes, 2)
    for name in ("loss", "eval_loss", "eval_mean_token_accuracy"):
        ours, theirs = ([row[name] for row in metrics(each) if name in row] for each in (both, alone))
        assert len(theirs) > 1
        assert ours == pytest.approx(theirs, rel=1e-4), name
    found, wanted, begun = (
        weights(both),
        weights(alone),
        load_file(ROOT / "students/embedded/model.safetensors"),
    )
    moved, apart = (
        sum(float((one[name].float() - wanted[name].float()).square().sum()) for name in begun)
        for one in (begun, found)
    )
    # the weights are written in 16 bits, which alone sets them 0.0005 apart
    assert apart**0.5 < 0.002 * moved**0.5


@pytest.mark.slow
def test_of_a_large_vocabulary_the_library_takes_the_loss_of_a_shared_row(tmp_path: Path) -> None:
    """So large that a CPU does not take it by itself: every GPU goes this way."""
    student = build_student(
        tmp_path / "student", num_key_value_heads=2, vocab_size=OrderedTrainer.max_logits // 50
    )
    card = {
        "model": str(student),
        "max_positions": 512,
        "dtype": "float32",
        "eos": "<|im_end|>",
        "licence": "none",
    }
    given = ["--set", f"train.student={json.dumps(card)}", "--set", "train.epochs=0.5", "--without-vllm"]
    alone = trained(tmp_path / "alone", 1, "--tokens-per-device", "200", *given)
    both = trained(tmp_path / "shared", 2, "--context-parallel", "2", "--tokens-per-device", "50", *given)
    for name in ("loss", "eval_loss", "eval_mean_token_accuracy"):
        ours, theirs = ([row[name] for row in metrics(each) if name in row] for each in (both, alone))
        assert len(theirs) > 1
        assert ours == pytest.approx(theirs, rel=1e-4), name
