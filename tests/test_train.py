"""Training for real on tiny students: packing, masks in the loss, adapters, resume, processes, export."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from accelerate.parallelism_config import ParallelismConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from pipeline.context import CHECKPOINT, Context
from pipeline.errors import RecipeError, StageError
from pipeline.flags import TrainFlags
from pipeline.recipe.cards import StudentCard
from pipeline.recipe.schema import Sampling, Train
from pipeline.records import read_examples
from pipeline.run.contract import Manifest, begin
from pipeline.sampling.prompts import ChatPrompts
from students.attention import register
from students.batching import global_batches
from students.examples import build
from students.export import ADAPTER, check_finite, export
from students.format import load_format
from students.model import load_base, load_student
from students.train import EXAMPLES, STEPS, plan_of, run
from students.trainer import (
    Job,
    OrderedTrainer,
    build_trainer,
    check_parallelism,
    last_checkpoint,
    plan_steps,
    rows,
    train,
)
from tests.conftest import ROOT
from tests.students_fixtures import (
    CHATML_THINK,
    build_student,
    build_tokenizer,
    card_of,
    context_of,
    example_of,
    finished_filter,
    sampled,
    sums,
)

CPU = TrainFlags(device="cpu", log_every=1)


@pytest.fixture(scope="module")
def base(student_directory: Path) -> StudentCard:
    return card_of(student_directory)


def prepared(root: Path, card: StudentCard, *overrides: str, num: int = 32) -> Context:
    return finished_filter(root, sums(num), "train.learning_rate=3.0e-3", *overrides, card=card)


def trained(
    root: Path, card: StudentCard, *overrides: str, flags: TrainFlags = CPU, num: int = 32
) -> tuple[Context, Manifest]:
    context = prepared(root, card, *overrides, num=num)
    run(context, flags)
    return context, context.require("train", "the test")


def trainer_of(context: Context) -> tuple[OrderedTrainer, Job]:
    """The trainer of a prepared run, as `fit` makes it."""
    recipe, card = context.recipe, context.student_card
    style = load_format(card, context.base)
    data = build(read_examples(context.directory("filter") / EXAMPLES), style, recipe.train, recipe.seed)
    student = load_student(card, context.base, recipe.train, "cpu")
    job = Job(recipe.name, recipe.train, recipe.seed, CPU, "cpu", context.directory("train"))
    return build_trainer(job, data, student, style.tokenizer, card.lora_targets), job


def metrics(context: Context) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (context.directory("train") / "metrics.jsonl").open()]


def weights(context: Context) -> dict[str, torch.Tensor]:
    return load_file(context.directory("train") / CHECKPOINT / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 24], ids=["full attention", "sliding window"])
def test_packed_examples_do_not_see_each_other(tmp_path: Path, window: int | None) -> None:
    """Logits and gradients of examples laid end to end equal those of each example alone."""
    changes: dict[str, Any] = (
        {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1} if window else {}
    )
    card = card_of(build_student(tmp_path, **changes))
    alone = AutoModelForCausalLM.from_pretrained(card.model, attn_implementation="eager", dtype=torch.float32)
    packed = AutoModelForCausalLM.from_pretrained(
        card.model, attn_implementation=register(), dtype=torch.float32
    )
    style = load_format(card, sampled(card))
    encoded = [style.encode(one.messages) for one in sums(4)]
    batch = DataCollatorForLanguageModeling(0, padding_free=True)([rows(encoded, [[0, 1, 2, 3]])[0]])
    batch.pop("labels")
    together = packed(**batch).logits[0]
    apart = torch.cat([alone(torch.tensor([one.ids])).logits[0] for one in encoded])
    assert torch.allclose(together, apart, atol=1e-5)
    together.square().sum().backward()
    apart.square().sum().backward()
    for ours, theirs in zip(packed.parameters(), alone.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_loss_of_a_step_is_that_of_a_plain_padded_batch(tmp_path: Path, base: StudentCard) -> None:
    """Whatever the micro-batches, the first loss is the mean over the trained tokens of the global batch."""
    losses = []
    for number, budget in enumerate((8192, 200)):
        (tmp_path / str(number)).mkdir()
        context, _ = trained(tmp_path / str(number), base, flags=replace(CPU, tokens_per_device=budget))
        losses.append(metrics(context)[0]["loss"])
    student = load_base(base, sampled(base))
    style = load_format(base, sampled(base))
    total = torch.zeros(())
    count = 0
    for index in global_batches(32, 8, 1, seed=0)[0]:
        one = style.encode(sums(32)[index].messages)
        logits = student(torch.tensor([one.ids])).logits[0, :-1]
        labels = torch.tensor(one.labels[1:])
        total = total + torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        count += int((labels != -100).sum())
    assert losses == pytest.approx([total.item() / count] * 2, rel=1e-4)


def test_full_fine_tuning_learns_and_exports_what_was_trained(tmp_path: Path, base: StudentCard) -> None:
    context, manifest = trained(tmp_path, base, "train.epochs=4")
    losses = [row["loss"] for row in metrics(context)]
    assert losses[-1] < 0.8 * losses[0]
    assert (manifest.counts.num_in, manifest.counts.kept) == (32, 32)
    assert (manifest.outputs["metrics.jsonl"].rows, manifest.usage.steps) == (len(losses), 16)
    assert (manifest.usage.tokens_per_epoch or 0) > 32 * 50
    assert manifest.notes["device"] == "cpu"
    before = load_file(Path(base.model) / "model.safetensors")
    assert all(not torch.equal(weights(context)[name], before[name]) for name in before)
    checkpoint = context.directory("train") / CHECKPOINT
    generation = json.loads((checkpoint / "generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert (
        generation["eos_token_id"] == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    )
    stated = {name: generation[name] for name in ("temperature", "top_p", "top_k", "min_p", "max_new_tokens")}
    assert stated == {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "max_new_tokens": 256}
    asked = tokenizer.apply_chat_template(
        sums(1)[0].messages[:1], add_generation_prompt=True, return_dict=False
    )
    assert asked == load_format(base, sampled(base)).prompts.ids(sums(1)[0].messages[:1])
    assert not (context.directory("train") / STEPS).exists()


@pytest.mark.slow
def test_in_a_log_progress_is_a_plain_line(
    tmp_path: Path, base: StudentCard, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level("INFO"):
        trained(tmp_path, base)
    lines = [line for line in caplog.messages if line.startswith("train: ")]
    assert len(lines) == 1
    assert re.fullmatch(r"train: step 4/4 loss \d+\.\d{3}, [\d,]+ tok/s", lines[0])
    assert "\r" not in capsys.readouterr().err


def test_labels_are_the_completions_even_where_padding_is_the_end_token(tmp_path: Path) -> None:
    """What reaches the model, decoded: each completion whole, with its end of turn, and nothing else."""
    tokenizer = build_tokenizer(CHATML_THINK, eos_token="<|im_end|>", pad_token="<|im_end|>")
    card = card_of(build_student(tmp_path / "base", tokenizer))
    trainer, _ = trainer_of(prepared(tmp_path, card, num=16))
    given = []
    for batch in trainer.get_train_dataloader():
        for labels in torch.tensor_split(batch["labels"][0], batch["cu_seq_lens_q"][1:-1].tolist()):
            given.append(tokenizer.decode(labels[labels != -100]))
    turns = [one.messages[-1] for one in sums(16)]
    wanted = [f"{turn['reasoning_content']}\n</think>\n\n{turn['content']}<|im_end|>" for turn in turns]
    assert sorted(given) == sorted(wanted)


VARIANTS = ["plain", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rslora", "dora"))]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_changes_the_student_and_never_the_base(
    tmp_path: Path, base: StudentCard, variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel

    before = {p.name: p.read_bytes() for p in Path(base.model).iterdir()}
    context, _ = trained(tmp_path, base, "train.method=lora", f"train.lora.variant={variant}")
    assert {p.name: p.read_bytes() for p in Path(base.model).iterdir()} == before
    directory = context.directory("train")
    style = load_format(base, sampled(base))
    prompts = [torch.tensor([style.encode(one.messages).ids]) for one in sums(20)]
    plain = load_base(base, sampled(base))
    with torch.no_grad():
        original = [plain(ids).logits for ids in prompts]
        with_adapter = PeftModel.from_pretrained(plain, str(directory / ADAPTER))
        adapted = [with_adapter(ids).logits for ids in prompts]
        merged = AutoModelForCausalLM.from_pretrained(directory / CHECKPOINT)
        apart = max((merged(i).logits - a).abs().max().item() for i, a in zip(prompts, adapted, strict=True))
    with capsys.disabled():
        print(f"\nmerged against adapter ({variant}), 20 prompts: largest logit difference {apart:.1e}")
    assert max((a - o).abs().max().item() for a, o in zip(adapted, original, strict=True)) > 1e-3
    assert apart < 1e-4
    assert (
        json.loads((directory / ADAPTER / "adapter_config.json").read_text())["base_model_name_or_path"]
        == base.model
    )


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["tied", "untied"])
def test_named_tokens_are_trained_and_no_other_row_is(tmp_path: Path, tied: bool) -> None:
    """In the merged checkpoint, which is the base with the adapter."""
    from peft import PeftModel

    card = card_of(build_student(tmp_path / "base", tie_word_embeddings=tied))
    named = ["<|im_end|>", "<think>"]
    context, _ = trained(tmp_path, card, "train.method=lora", f"train.lora.tokens={json.dumps(named)}")
    directory = context.directory("train")
    base, merged = (
        load_base(card, sampled(card)),
        AutoModelForCausalLM.from_pretrained(directory / CHECKPOINT),
    )
    tokenizer = load_format(card, sampled(card)).tokenizer
    for before, after in (
        (base.get_input_embeddings(), merged.get_input_embeddings()),
        (base.get_output_embeddings(), merged.get_output_embeddings()),
    ):
        changed = (before.weight != after.weight).any(dim=1).nonzero()[:, 0].tolist()
        assert changed == sorted(tokenizer.convert_tokens_to_ids(named))
    ids = torch.tensor([load_format(card, sampled(card)).encode(sums(1)[0].messages).ids])
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(base, str(directory / ADAPTER))(ids).logits
        assert (merged(ids).logits - adapted).abs().max() < 1e-4


def test_a_token_that_is_not_there_cannot_be_named(tmp_path: Path, base: StudentCard) -> None:
    with pytest.raises(RecipeError, match=r"no token '<\|no\|>', which train.lora.tokens names"):
        trained(tmp_path, base, "train.method=lora", 'train.lora.tokens=["<|no|>"]')


@pytest.mark.parametrize("method", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path, base: StudentCard, method: str) -> None:
    """And leaves no manifest, on the first run as on the next."""
    context = prepared(tmp_path, base, f"train.method={method}", "train.learning_rate=1.0e30")
    for _ in range(2):
        with pytest.raises(StageError, match=r"the (loss|grad_norm) of step \d is nan.*is 1e\+30: lower it"):
            run(context, CPU)
    assert context.manifest("train") is None
    assert all("NaN" not in row for row in (context.directory("train") / "metrics.jsonl").open())


def test_a_checkpoint_with_a_weight_that_is_no_number_is_never_written(base: StudentCard) -> None:
    student = load_base(base, sampled(base))
    check_finite(student)
    with torch.no_grad():
        student.model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf
    with pytest.raises(StageError, match=r"1 weights hold .*\(model.layers.1.mlp.up_proj.weight\)"):
        check_finite(student)


def test_weights_that_only_fp32_holds_are_no_checkpoint_in_float16(tmp_path: Path, base: StudentCard) -> None:
    """What was trained is finite, and what would be written is not."""
    student = load_base(base, sampled(base))
    with torch.no_grad():
        student.model.layers[1].mlp.up_proj.weight[0, 0] = 1e5
    student.save_pretrained(tmp_path / "trained")
    card, model = base.model_copy(update={"dtype": "float16"}), sampled(base)
    style, sampling = load_format(card, model), Sampling(temperature=1.0, max_tokens=8)
    with pytest.raises(StageError, match=r"no numbers in torch.float16 \(model.layers.1.*wider dtype in the"):
        export(tmp_path / "trained", tmp_path, card, model, style, sampling)
    assert not (tmp_path / CHECKPOINT).exists()
    export(tmp_path / "trained", tmp_path, base, model, style, sampling)
    assert (tmp_path / CHECKPOINT / "model.safetensors").is_file()


def test_a_launch_that_cuts_rows_over_devices_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"cuts each row over 2 devices .*would not be kept apart"):
        check_parallelism(ParallelismConfig(cp_size=2))
    check_parallelism(ParallelismConfig(dp_shard_size=2))
    check_parallelism(None)


@pytest.mark.slow
def test_a_student_that_never_thought_is_asked_for_no_thinking(tmp_path: Path) -> None:
    """chat, eval and serve send the very prompt that its examples have; the manifest says why."""
    template = (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text(encoding="utf-8")
    card = card_of(
        build_student(tmp_path / "base", build_tokenizer(template)),
        thinking={"opened_by_prompt": False},
        without_thinking={"enable_thinking": False},
    )
    examples = [example_of(f"What is {i} + 1?", None, str(i + 1), i) for i in range(16)]
    context = finished_filter(tmp_path, examples, card=card)
    run(context, CPU)
    assert context.require("train", "the test").notes["thinking"] == "never"
    asked, trained_on = context.finished_student("chat"), load_format(card, context.base).encode
    prompt = ChatPrompts(AutoTokenizer.from_pretrained(asked.model), asked).ids(examples[0].messages[:1])
    assert prompt == trained_on(examples[0].messages).prompt


@pytest.mark.slow
def test_the_frozen_base_stays_bit_identical_while_the_adapter_trains(
    tmp_path: Path, base: StudentCard
) -> None:
    trainer, _ = trainer_of(prepared(tmp_path, base, "train.method=lora"))
    frozen = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    tuned = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert frozen
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert any(not torch.equal(after[name], value) for name, value in tuned.items())
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert {name.split(".")[-4] for name in tuned} == linear


@pytest.mark.slow
def test_a_held_out_slice_is_measured_and_can_stop_the_run(tmp_path: Path, base: StudentCard) -> None:
    overrides = ["train.epochs=6", "train.held_out_share=0.3", "train.learning_rate=1.0e-12"]
    overrides += ["train.early_stopping=2", "train.evaluations=8"]
    context, manifest = trained(tmp_path, base, *overrides)
    measured = [row["eval_loss"] for row in metrics(context) if "eval_loss" in row]
    assert manifest.notes["held_out"] > 0
    assert manifest.counts.kept == 32
    assert 2 <= len(measured) < 8


class Interrupt(TrainerCallback):
    """A Ctrl-C at the end of a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._step:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_an_interrupted_run_keeps_its_patience(tmp_path: Path, base: StudentCard) -> None:
    """Evaluations without a better loss count on after a resume, so that it stops at the same step."""
    overrides = ["train.epochs=6", "train.held_out_share=0.3", "train.learning_rate=1.0e-12"]
    overrides += ["train.early_stopping=4", "train.evaluations=8"]
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole, manifest = trained(tmp_path / "whole", base, *overrides)
    context = prepared(tmp_path / "cut", base, *overrides)
    trainer, job = trainer_of(context)
    trainer.add_callback(Interrupt(6))
    plan = plan_of(context, context.base, context.require("filter", "the test"))
    stage = begin(context.directory("train"), plan, context.start)
    assert stage is not None
    with pytest.raises(KeyboardInterrupt), stage:
        train(trainer, job)
    run(context, CPU)
    assert context.require("train", "the test").usage.steps == manifest.usage.steps == 10
    assert metrics(context) == metrics(whole)


@pytest.mark.parametrize(
    ("num", "overrides", "message"),
    [
        (0, [], r"no example is left to train on \(0 read, 0 dropped, 0 held out\)"),
        (
            3,
            ["train.held_out_share=0.9999"],
            r"\(3 read, 0 dropped, 3 held out\)\. Lower train.held_out_share 0.9999, or generate more",
        ),
    ],
    ids=["none at all", "all held out"],
)
def test_nothing_to_train_on_stops_the_stage(
    tmp_path: Path, base: StudentCard, num: int, overrides: list[str], message: str
) -> None:
    context = finished_filter(tmp_path, sums(num), *overrides, card=base)
    with pytest.raises(StageError, match=message):
        run(context, CPU)


@pytest.mark.slow
def test_one_example_is_enough(tmp_path: Path, base: StudentCard) -> None:
    _, manifest = trained(tmp_path, base, "train.schedule=wsd", "train.epochs=3", num=1)
    assert (manifest.counts.kept, manifest.usage.steps) == (1, 1)


def test_more_processes_than_examples_of_a_batch_are_refused(tmp_path: Path, base: StudentCard) -> None:
    recipe = context_of(tmp_path, "train.batch_size=2").recipe
    style = load_format(base, sampled(base))
    job = Job(recipe.name, recipe.train, 0, CPU, "cpu", tmp_path)
    encoded = [style.encode(one.messages) for one in sums(4)]
    with pytest.raises(RecipeError, match=r"batch_size: 2 examples cannot be shared by 3 processes"):
        plan_steps(job, encoded, 3)
    assert all(part for step in plan_steps(job, encoded, 2) for part in step)


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing_but_memory(tmp_path: Path, base: StudentCard) -> None:
    curves = []
    for wanted in (False, True):
        (tmp_path / str(wanted)).mkdir()
        flags = replace(CPU, gradient_checkpointing=wanted)
        curves.append([row["loss"] for row in metrics(trained(tmp_path / str(wanted), base, flags=flags)[0])])
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)


@pytest.mark.slow
def test_examples_that_are_too_long_are_dropped_and_counted(tmp_path: Path, base: StudentCard) -> None:
    _, manifest = trained(tmp_path, base, "train.max_length=85", "train.max_dropped_share=0.5")
    assert manifest.counts.dropped["longer_than_max_length"] > 0
    assert manifest.counts.kept + manifest.counts.dropped["longer_than_max_length"] == 32


FAULTS = {
    "too short": ("train.max_length=75", r"would be dropped .*Raise train.max_length"),
    "preflight": ("train.max_length=1024", r"positions: train.max_length is 1024, .* 512 positions"),
    "after preflight": ("train.early_stopping=2", r"early_stopping: no example of 32 is held out .*Raise it"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(FAULTS))
def test_a_fault_leaves_nothing_behind_and_the_repaired_recipe_trains(
    tmp_path: Path, base: StudentCard, name: str
) -> None:
    """Under the same name of the run, and without FORCE."""
    override, message = FAULTS[name]
    context = prepared(tmp_path, base, "train.held_out_share=1.0e-9", override)
    with pytest.raises(StageError, match=message):
        run(context, CPU)
    assert not context.directory("train").exists()
    _, manifest = trained(tmp_path, base, "train.max_length=512")
    assert manifest.counts.kept == 32


def test_qlora_without_a_gpu_names_the_way_out(tmp_path: Path, base: StudentCard) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(RecipeError, match=r"qlora quantises with bitsandbytes .*Use method: lora"):
        trained(tmp_path, base, "train.method=qlora")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"liger": True}, "--liger: liger-kernel is not installed here; run: pip install liger-kernel"),
        *(
            ({"tracker": name}, f"--tracker {name}: {name} is not installed here; run: pip install {name}")
            for name in ("wandb", "trackio", "tensorboard")
        ),
    ],
    ids=["liger", "wandb", "trackio", "tensorboard"],
)
def test_a_flag_that_needs_a_missing_library_says_so(
    tmp_path: Path, base: StudentCard, flags: dict[str, Any], message: str
) -> None:
    library = str(flags.get("tracker", "liger_kernel"))
    if find_spec(library) is not None:
        pytest.skip(f"{library} is installed here")
    with pytest.raises(RecipeError, match=message):
        trained(tmp_path, base, flags=replace(CPU, **flags))


def test_what_tensorboard_is_told_outlives_the_checkpoints(tmp_path: Path, base: StudentCard) -> None:
    pytest.importorskip("tensorboard")
    context, _ = trained(tmp_path, base, flags=replace(CPU, tracker="tensorboard"))
    (events,) = (context.directory("train") / "tensorboard").iterdir()
    assert events.stat().st_size > 1000


def test_a_checkpoint_that_a_kill_cut_short_is_never_resumed_from(tmp_path: Path) -> None:
    for step, state in ((10, '{"global_step": 10}'), (20, '{"global'), (30, None)):
        directory = tmp_path / f"checkpoint-{step}"
        directory.mkdir()
        if state is not None:
            (directory / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "model.safetensors"])
def test_a_checkpoint_of_which_a_file_is_empty_is_never_resumed_from(tmp_path: Path, name: str) -> None:
    """As a machine leaves it that loses its power while the file waits in its memory."""
    for step in (10, 20):
        directory = tmp_path / f"checkpoint-{step}"
        directory.mkdir()
        (directory / "trainer_state.json").write_text("{}")
        (directory / name).write_text("weights" if step == 10 else "")
        (directory / "merges.txt").touch()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


@pytest.mark.slow
def test_a_run_that_cannot_write_its_manifest_goes_on_from_its_last_step(
    tmp_path: Path, base: StudentCard, caplog: pytest.LogCaptureFixture
) -> None:
    context = prepared(tmp_path, base)
    in_the_way = context.directory("train") / ".manifest.json.tmp"
    in_the_way.mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        run(context, CPU)
    assert last_checkpoint(context.directory("train") / STEPS) is not None
    in_the_way.rmdir()
    with caplog.at_level("INFO"):
        run(context, CPU)
    assert "train: going on from checkpoint-4" in caplog.messages
    assert context.manifest("train") is not None
    assert not (context.directory("train") / STEPS).exists()


@pytest.mark.slow
def test_a_second_run_is_up_to_date_and_imports_nothing_heavy(tmp_path: Path) -> None:
    context = finished_filter(tmp_path, sums(16))
    run(context, CPU)
    directory = context.directory("train")
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert directory / "manifest.json" in before
    (directory / STEPS / "checkpoint-1").mkdir(parents=True)  # as a kill between manifest and removal leaves
    code = (
        "import sys; from pathlib import Path; from pipeline.context import load_context;"
        "from students.train import run;"
        f"run(load_context(Path({context.start.recipe!r}), Path({str(context.runs)!r}), None, "
        "['train.batch_size=8'])); print(sorted({'torch', 'transformers', 'trl'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
    assert not (directory / STEPS).exists()


DEFAULTS = {
    name: field.default
    for name, field in Train.model_fields.items()
    if isinstance(field.default, (int, float, str))
}


def fingerprint(root: Path, *overrides: str, card: StudentCard | None = None) -> str:
    context = finished_filter(root, sums(2), *overrides, card=card)
    return plan_of(context, context.base, context.require("filter", "train")).fingerprint


def test_what_a_recipe_leaves_to_its_defaults_is_in_no_fingerprint(tmp_path: Path) -> None:
    """So a new key with a default leaves finished runs up to date."""
    stated = [f"train.{name}={value}" for name, value in DEFAULTS.items() if name != "batch_size"]
    assert len(stated) > 6
    nested = ["train.lora.rank=16", "generate.sampling.top_k=0", "generate.sampling.min_p=0.0"]
    assert fingerprint(tmp_path, *stated, *nested) == fingerprint(tmp_path)


@pytest.mark.parametrize(
    ("override", "changes", "same"),
    [
        ("train.epochs=2", {}, False),
        ("generate.sampling.temperature=0.5", {}, False),
        ("seed=1", {}, False),
        ("train.epochs=1", {"eos": "<|endoftext|>"}, False),
        ("train.epochs=1", {"thinking": {"close": "</thought>"}}, False),
        ("train.epochs=1", {"thinking": {"opened_by_prompt": False}}, True),
        ("train.epochs=1", {"licence": "MIT", "lora_targets": ["q_proj"]}, True),
        ("eval.samples=4", {}, True),
    ],
    ids=["epochs", "sampling", "seed", "end token", "tags", "how tags are read", "not read", "eval"],
)
def test_a_fingerprint_holds_what_decides_the_checkpoint(
    tmp_path: Path, base: StudentCard, override: str, changes: dict[str, Any], same: bool
) -> None:
    before = fingerprint(tmp_path, card=base)
    card = StudentCard.model_validate({**base.model_dump(), **changes})
    assert (fingerprint(tmp_path, override, card=card) == before) is same


def test_lora_targets_are_in_the_fingerprint_of_an_adapter(tmp_path: Path, base: StudentCard) -> None:
    other = base.model_copy(update={"lora_targets": ["q_proj"]})
    found = {fingerprint(tmp_path, "train.method=lora", card=card) for card in (base, other)}
    assert len(found) == 2


def command(context: Context, *arguments: str) -> list[str]:
    values = ["--recipe", context.start.recipe, "--runs", str(context.runs), "--set", "train.batch_size=8"]
    return ["-m", "pipeline", "train", *values, "--device", "cpu", "--log-every", "1", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def steps_done(context: Context) -> int:
    path = context.directory("train") / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def interrupted(context: Context, number: int, after: int, *arguments: str) -> int:
    """Start training, send a signal once `after` steps are logged; the exit code."""
    process = subprocess.Popen(
        [sys.executable, *command(context, *arguments)],
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    while steps_done(context) < after and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    return process.wait(timeout=120)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """kill -9 in the middle, Ctrl-C later, and the weights of a run that nobody disturbed."""
    num = 160
    (tmp_path / "killed").mkdir()
    (tmp_path / "whole").mkdir()
    killed = finished_filter(tmp_path / "killed", sums(num))
    whole = finished_filter(tmp_path / "whole", sums(num))
    assert interrupted(killed, signal.SIGKILL, 7, "--save-every", "3") == -signal.SIGKILL
    assert steps_done(killed) < 20
    assert interrupted(killed, signal.SIGINT, 12, "--save-every", "3") == 130
    assert steps_done(killed) < 20
    for context in (killed, whole):
        subprocess.run([sys.executable, *command(context)], cwd=ROOT, env=environment(), check=True)
    assert [row["step"] for row in metrics(killed)] == list(range(1, 21))
    for name in ("loss", "learning_rate", "num_tokens"):
        assert [row[name] for row in metrics(killed)] == [row[name] for row in metrics(whole)]
    assert not (killed.directory("train") / STEPS).exists()
    ours, theirs = weights(killed), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one(tmp_path: Path) -> None:
    curves = []
    for processes in (1, 2):
        (tmp_path / str(processes)).mkdir()
        context = finished_filter(tmp_path / str(processes), sums(80))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        call = command(context) if processes == 1 else [*launcher, *command(context)]
        subprocess.run([sys.executable, *call], cwd=ROOT, env=environment(), check=True)
        manifest = context.require("train", "the test")
        assert manifest.notes["processes"] == processes
        curves.append([row["loss"] for row in metrics(context)])
    assert len(curves[0]) == 10
    assert curves[0] == pytest.approx(curves[1], rel=0.01)
