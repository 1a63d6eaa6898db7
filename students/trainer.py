"""The work of the train stage: examples in, exported checkpoint out, by TRL's SFTTrainer in our own order.

TRL prepares nothing: rows are micro-batches that students.batching cut. Its padding-free collator lays the
examples end to end with position ids that start again, and attention keeps them apart; where the student
cannot do that (students.layout), the examples of a micro-batch are padded to the longest. The loss of a step
is the sum over its trained tokens divided by their number, over all processes, so how a global batch is cut
changes nothing but rounding.
"""

import functools
import json
import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.parallelism_config import ParallelismConfig
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from transformers.integrations import TensorBoardCallback
from trl import SFTConfig, SFTTrainer

from pipeline.context import THINKING, Context
from pipeline.errors import RecipeError, StageError
from pipeline.flags import TrainFlags
from pipeline.recipe.cards import SampledModel, in_mode_of
from pipeline.recipe.schema import TopkLoss, Train
from pipeline.records import read_examples
from pipeline.run.contract import Counts, StageRun, Usage
from students.batching import balanced, cut, cut_padded, num_padded, ordered_batches, similar
from students.context_parallel import SharedRows, check_sharing, possible_sizes, sharing
from students.examples import TrainingSet, build
from students.export import export
from students.format import IGNORED, Encoded, load_format
from students.in_vllm import check_answers
from students.layout import PaddedRows, choose_layout
from students.memory import (
    KEPT_CHECKPOINTS,
    TRAIN_ADVICE,
    device_gib,
    explaining_lack_of_memory,
    say_disk,
    settle,
)
from students.model import adapter_config, load_student, pick_device, quiet_libraries
from students.pass_rate import measured
from students.preflight import Subject, preflight
from students.progress import Progress, Stopper
from students.rehearsal import rehearse
from students.topk import StoredTops, TopsCollator, check_share, topk_loss
from students.train import EXAMPLES, METRICS, STEPS, TRACES

log = logging.getLogger(__name__)

PASS_RATE = "eval_pass_rate"  # in the log, and what early stopping compares
# what TRL calls that by which `train.stop_on` compares
STOPS_ON = {"loss": "eval_loss", "token_accuracy": "eval_mean_token_accuracy", "pass_rate": PASS_RATE}
WSD_DECAY_SHARE = 0.2  # the last fifth decays; MiniCPM (arXiv 2404.06395) finds a tenth or more enough
# the share of the learning rate, by the share of the steps after the warm-up that is done
SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
    "wsd": lambda done: min(1.0, (1 - done) / WSD_DECAY_SHARE),
}


@dataclass(frozen=True, slots=True)
class Job:
    """One training run: what it is called, what the recipe says, how it runs, and the stage's directory.

    `padded`: the student cannot keep packed examples apart.
    """

    name: str
    recipe: Train
    seed: int
    flags: TrainFlags
    device: str
    directory: Path
    padded: bool = False

    @property
    def steps(self) -> Path:
        """The checkpoints to resume from; removed once the stage has finished."""
        return self.directory / STEPS

    @property
    def metrics(self) -> Path:
        return self.directory / METRICS

    @property
    def sharers(self) -> int:
        """Processes that have a run of each row."""
        return self.flags.context_parallel or 1

    @property
    def row_tokens(self) -> int:
        """Tokens of a micro-batch, of which each sharer has an equal run."""
        return self.flags.tokens_per_device * self.sharers

    def filled(self, tokens: int) -> int:
        """Tokens of a row whose sharers have equal runs of it."""
        return math.ceil(tokens / self.sharers) * self.sharers

    def shared(self, parts: list[list[int]]) -> list[list[int]]:
        """Micro-batches in the order in which processes take them: each of them to all of its sharers."""
        return [part for part in parts for _ in range(self.sharers)]


class OrderedTrainer(SFTTrainer):
    """SFTTrainer with the recipe's schedule. The report stage writes the model card, not TRL.

    `step_tokens` holds the number of tokens of each optimizer step, over all processes.
    """

    recipe: Train
    step_tokens: list[int]
    padding: float  # the share of all tokens that are computed
    pass_rate: Callable[[int], float] | None = None
    max_logits = 2**24  # held at once by compute_loss on a CPU: 64 MB in fp32
    most_trained: int  # tokens of one micro-batch

    def count_from(self, step: int) -> None:
        """Go on counting tokens where the run stopped: TRL counts those of one process's life."""
        self._total_train_tokens = sum(self.step_tokens[:step])

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        share = functools.partial(learning_rate_share, num_steps=num_training_steps, recipe=self.recipe)
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, share)  # type: ignore[arg-type]
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, *given: Any, **options: Any) -> torch.Tensor:
        """StageError at the first loss that is no number: transformers would log 0 and train on."""
        loss = super().training_step(*given, **options)
        if not torch.isfinite(loss):
            raise self._no_number("loss", self.state.global_step + 1, float(loss))
        return loss

    def log(self, logs: dict[str, float], *given: Any, **options: Any) -> None:
        """StageError where a figure is no number, as a gradient behind a loss that still was one."""
        for name, value in logs.items():
            if not math.isfinite(value):
                raise self._no_number(name, self.state.global_step, value)
        super().log(logs, *given, **options)

    def evaluation_loop(self, *given: Any, **options: Any) -> Any:
        """Loss and accuracy over all held-out tokens, however they are cut into micro-batches; the library
        takes the mean of the micro-batches' means."""
        self._held_out: list[tuple[float, float]] = []
        output = super().evaluation_loop(*given, **options)
        assert output.metrics is not None
        numbers = [number for number, _ in self._held_out]
        output.metrics["eval_loss"] = sum(total for _, total in self._held_out) / sum(numbers)
        rates = self._metrics["eval"].get("mean_token_accuracy")
        if rates:
            right = sum(rate * number for rate, number in zip(rates, numbers, strict=True))
            self._metrics["eval"]["mean_token_accuracy"] = [right / sum(numbers)]
        if self.pass_rate is not None:
            output.metrics[PASS_RATE] = self.pass_rate(self.state.global_step)
        return output

    def prediction_step(self, model: Any, inputs: dict[str, Any], *given: Any, **options: Any) -> Any:
        found = super().prediction_step(model, inputs, *given, **options)
        number = (following(inputs) != IGNORED).sum().float()
        loss: Any = found[0]
        both = torch.stack([number, loss.float() * number])
        self._held_out.append(tuple(self.accelerator.gather_for_metrics(both[None]).sum(0).tolist()))
        return found

    def _no_number(self, name: str, step: int, value: float) -> StageError:
        return StageError(
            f"train: the {name} of step {step} is {value}, and every weight would be no number after it. "
            f"train.learning_rate is {self.recipe.learning_rate:g}: lower it, or raise train.warmup_ratio, "
            "and run again with FORCE=1"
        )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """On a CPU, of a small vocabulary, from the model's own head on the trained positions alone.

        Elsewhere TRL's, whose tiles score every position where there is no Triton, and again in backward;
        from stored distributions where the batch holds any, scaled alike.
        """
        if "top_ids" in inputs:
            return self._from_stored(model, inputs, num_items_in_batch)
        labels = inputs["labels"]
        wanted = following(inputs)[0]
        trained = (wanted != IGNORED).nonzero()[:, 0]
        # what several processes gather differs between the two ways, so all of them have to go the same
        alone = self.accelerator.num_processes == 1
        most = trained.numel() if alone else self.most_trained
        padded = len(labels) > 1 if alone else isinstance(self.data_collator, PaddedRows)
        size = most * self.model.config.get_text_config().vocab_size  # type: ignore[union-attr, operator]
        if labels.device.type != "cpu" or padded or return_outputs or not 0 < size <= self.max_logits:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        num_trained = trained.numel()
        if not num_trained:  # of a shared row; the others wait for this process's part of their attention
            trained = torch.zeros(1, dtype=torch.long)
        given = {name: value for name, value in inputs.items() if name not in ("labels", "shift_labels")}
        logits = model(**given, logits_to_keep=trained, use_cache=False).logits[0].float()
        wanted = wanted[trained]
        loss = torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
        right = (logits.argmax(-1) == wanted).sum()
        counts = torch.stack([right, torch.tensor(num_trained), torch.tensor(labels.shape[1])])
        totals = self.accelerator.gather_for_metrics(counts[None]).sum(0).tolist()
        mode = "train" if self.model.training else "eval"  # type: ignore[union-attr]
        self._metrics[mode]["mean_token_accuracy"].append(totals[0] / totals[1])
        if mode == "train":
            self._total_train_tokens += totals[2]
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        if num_items_in_batch is None:
            return loss / max(num_trained, 1)
        return loss / num_items_in_batch * self.accelerator.num_processes

    def _from_stored(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> torch.Tensor:
        total, number = topk_loss(model, inputs)
        loss = total / (number if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None:  # it counts those of all processes, whose gradients are averaged
            loss = loss * self.accelerator.num_processes
        mode = "train" if model.training else "eval"
        if mode == "train":
            read = self.accelerator.gather_for_metrics(inputs["labels"].new_tensor(inputs["labels"].numel()))
            self._total_train_tokens += int(read.sum())
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        return loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Nobody reads the count, and it walks over all parameters in each step."""
        return 0

    def create_model_card(self, *_: Any, **__: Any) -> None:
        return None


def following(inputs: dict[str, Any]) -> torch.Tensor:
    """The label that each position predicts, [rows, tokens]; one fewer where they were not yet shifted."""
    shifted: torch.Tensor = inputs["shift_labels"] if "shift_labels" in inputs else inputs["labels"][:, 1:]
    return shifted


@explaining_lack_of_memory("train", TRAIN_ADVICE)
def fit(context: Context, model: SampledModel, flags: TrainFlags, stage: StageRun | None) -> None:
    """Train, export and finish the stage. KeyboardInterrupt leaves a run to go on with.

    `stage` is None on every process but the first. Nothing is written before every check has passed, so that
    a fault leaves the stage's directory as it was.
    """
    quiet_libraries()
    recipe, card = context.recipe, context.student_card
    device = pick_device(flags.device)
    style = load_format(card, model)
    data = build(read_examples(context.directory("filter") / EXAMPLES), style, recipe.train, recipe.seed)
    student = load_student(card, model, recipe.train, device)
    checks = preflight(Subject(recipe, card, model, style, student, data.shown, data.largest_id))
    begun = last_checkpoint(context.directory("train") / STEPS) is not None  # and so was asked before
    if flags.processes == 1 and not flags.without_vllm and not begun:
        check_answers(model, student, data.shown[0].encoded.prompt)
    if student.device.type != device and flags.processes == 1:
        student.to(device)  # type: ignore[arg-type]  # its kernels are asked there
    layout = choose_layout(student, [one.encoded.ids for one in data.shown], recipe.train.max_length)
    log.info("preflight: %d checks passed", len(checks))
    asked = in_mode_of(data.thinking, model)
    if asked is not model:
        log.info("train: no example has thinking, so eval, chat, serve and polish will ask for none")
    check_sharing(student, layout, flags)
    sizes = possible_sizes(student, layout, recipe.train)
    flags = settle(student, recipe.train, flags, device_gib(device), sizes, layout.attention)
    directory = context.directory("train")
    job = Job(recipe.name, recipe.train, recipe.train_seed, flags, device, directory, not layout.packed)
    trainer = build_trainer(job, data, student, style.tokenizer, card.lora_targets)
    if stage is not None:
        say_disk(student, getattr(torch, card.dtype), recipe.train.method, job.steps)
    with (
        measured(context, asked, style, student, trainer.model) as trainer.pass_rate,
        sharing(student, job.sharers),
    ):
        seconds = train(trainer, job)
    trained = job.steps / "trained"
    trainer.save_model(str(trained))
    if stage is None:
        return
    files = export(trained, job.directory, card, model, style, recipe.generate.sampling)
    num_rows = len(job.metrics.read_text(encoding="utf-8").splitlines())
    stage.finish(
        Counts(data.num_in, len(data.train) + len(data.held_out), data.dropped),
        {METRICS: num_rows, **dict.fromkeys(files)},
        Usage(
            train_seconds=round(seconds, 1),
            steps=trainer.state.global_step,
            tokens_per_epoch=sum(len(example.ids) for example in data.train),
        ),
        {
            "held_out": len(data.held_out),
            "device": str(trainer.args.device),
            "processes": trainer.args.world_size,
            **layout.to_notes(),
            **({"context_parallel": job.sharers} if job.sharers > 1 else {}),
            "padding": round(trainer.padding, 4),
            **({THINKING: data.thinking} if model.without_thinking else {}),
            **({} if recipe.train.early_stopping is None else {"kept_step": trainer.state.best_global_step}),
        },
    )


def train(trainer: OrderedTrainer, job: Job) -> float:
    """Run to the last step, from the last whole checkpoint if there is one; the seconds it took."""
    last = last_checkpoint(job.steps)
    if last is not None:
        log.info("train: going on from %s", last.name)
        trainer.count_from(step_of(last))
    started = time.monotonic()
    trainer.add_callback(Progress(job.metrics))
    with Stopper() as stopper:
        trainer.add_callback(stopper)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    if stopper.asked:
        raise KeyboardInterrupt
    return time.monotonic() - started


def last_checkpoint(directory: Path) -> Path | None:
    """The newest checkpoint that was written to its end: trainer_state.json is its last file.

    What a kill cut short is removed, so that it can never be taken for a checkpoint, and so is one of which a
    machine that lost its power left a file empty.
    """
    whole = []
    for path in directory.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            tensors = [file for end in ("pt", "pth", "safetensors") for file in path.glob(f"*.{end}")]
            is_whole = all(file.stat().st_size for file in tensors)
        except (FileNotFoundError, ValueError):
            is_whole = False
        if not is_whole:
            shutil.rmtree(path, ignore_errors=True)  # another process may be at it
        else:
            whole.append(path)
    return max(whole, key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def build_trainer(
    job: Job,
    data: TrainingSet,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lora_targets: str | list[str],
) -> OrderedTrainer:
    """The trainer of one run, its global batches decided."""
    require_extras(job.flags)
    recipe, flags = job.recipe, job.flags
    steps = plan_steps(job, data.train, flags.processes // job.sharers)
    stored = stored_tops(job, data)
    if recipe.early_stopping is not None and not data.held_out:
        raise StageError(
            f"train.early_stopping: no example of {len(data.train):,} is held out by train.held_out_share "
            f"{recipe.held_out_share:g}, so no loss can say when to stop. Raise it, or leave both out"
        )
    lengths = [len(example.ids) for example in data.train]
    train_parts = job.shared([part for step in steps for part in step])
    full = recipe.method == "full"
    try:
        trainer = OrderedTrainer(
            model=model,
            args=config_of(job, len(steps), len(steps[0]) * job.sharers, bool(data.held_out)),
            data_collator=PaddedRows(tokenizer.pad_token_id or 0) if job.padded else None,
            train_dataset=rows(data.train, train_parts, job.padded, stored),
            eval_dataset=held_out_rows(job, data.held_out, stored) if data.held_out else None,
            processing_class=tokenizer,
            peft_config=None if full else adapter_config(recipe, lora_targets, model, tokenizer),
        )
    except ValueError as error:  # what TRL and PEFT refuse, each in its own words
        raise StageError(f"train: {recipe.student} cannot be trained by {recipe.method} ({error})") from None
    check_parallelism(trainer.accelerator.parallelism_config)
    if stored is not None:  # the library takes no collator where there is no padding
        trainer.data_collator = TopsCollator(pad_token_id=0, padding_free=True)  # of what it never pads
    if job.sharers > 1:
        trainer.data_collator = SharedRows(flags.rank % job.sharers, job.sharers)
    built: Any = trainer.model
    if not full and recipe.lora.tokens:
        head = built.get_base_model().get_output_embeddings()
        # TRL's loss reads it past PEFT's wrapper, which lets the weight through alone
        object.__setattr__(head, "bias", getattr(head.original_module, "bias", None))
    trainer.recipe = recipe
    trainer.step_tokens = [sum(job.filled(sum(lengths[i] for i in part)) for part in step) for step in steps]
    num_trained = [len(example.ids) - example.num_prompt for example in data.train]
    trainer.most_trained = max(sum(num_trained[i] for i in part) for part in train_parts)
    laid_out = num_padded(train_parts, lengths) if job.padded else sum(trainer.step_tokens)
    trainer.padding = 1 - sum(trainer.step_tokens) / laid_out
    if job.padded:
        log.info("train: %.1f%% of the tokens are padding", 100 * trainer.padding)
    trainer.remove_callback(PrinterCallback)
    if flags.tracker == "tensorboard" and flags.rank == 0:
        from torch.utils.tensorboard import SummaryWriter

        # the library's own place is among the checkpoints, which go at the end
        writer = SummaryWriter(log_dir=str(job.directory / "tensorboard"))
        trainer.add_callback(TensorBoardCallback(writer))
    if recipe.early_stopping is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.early_stopping))
    rehearse(built, data.train[0])
    return trainer


def stored_tops(job: Job, data: TrainingSet) -> StoredTops | None:
    """The teacher's distributions that the recipe's loss learns from; None where it asks for none."""
    if not isinstance(job.recipe.loss, TopkLoss):
        return None
    if job.padded:
        raise StageError(
            "train.loss: topk_kl reads packed examples, and this student's are padded (see the line above); "
            "leave train.loss out"
        )
    examples = [*data.train, *data.held_out]
    stored = StoredTops(job.directory.parent / "filter" / TRACES, job.recipe.loss.topk_kl, examples)
    check_share(stored, examples, job.recipe.max_dropped_share)
    log.info("train: the teacher's distributions are stored of %d of %d examples", len(stored), len(examples))
    return stored


def config_of(job: Job, num_steps: int, num_parts: int, measured: bool) -> SFTConfig:
    """TRL's configuration for steps of `num_parts` micro-batches; `measured`: examples are held out.

    With early stopping the checkpoints are the evaluations, to keep the best one.
    """
    recipe, flags, on_cpu = job.recipe, job.flags, job.device == "cpu"
    stops_early = recipe.early_stopping is not None
    between = max(1, num_steps // recipe.evaluations)
    return SFTConfig(
        output_dir=str(job.steps),
        seed=job.seed,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        max_steps=num_steps,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        gradient_accumulation_steps=num_parts // flags.processes,
        train_sampling_strategy="sequential",
        padding_free=not job.padded,
        max_length=None,
        # a router's balancing term would make a step's loss depend on how the step is cut
        router_aux_loss_coef=0.0,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        use_cpu=on_cpu,
        bf16=not on_cpu,
        ddp_find_unused_parameters=False if flags.processes > 1 else None,
        ddp_backend="gloo" if on_cpu and flags.processes > 1 else None,
        dataloader_pin_memory=not on_cpu,
        gradient_checkpointing=bool(flags.gradient_checkpointing),
        use_liger_kernel=flags.liger,
        logging_steps=flags.log_every,
        logging_first_step=True,
        save_strategy="steps",
        save_steps=between if stops_early else flags.save_every or max(1, num_steps // 10),
        save_total_limit=KEPT_CHECKPOINTS,
        load_best_model_at_end=stops_early,
        # else a resumed run forgets how many evaluations brought no better loss
        restore_callback_states_from_checkpoint=stops_early,
        metric_for_best_model=STOPS_ON[recipe.stop_on] if stops_early else None,
        greater_is_better=recipe.stop_on != "loss" if stops_early else None,
        eval_strategy="steps" if measured else "no",
        eval_steps=between if measured else None,
        report_to=flags.tracker if flags.tracker in ("trackio", "wandb") else "none",
        project="retort",
        run_name=job.name,
        disable_tqdm=True,
    )


def check_parallelism(config: ParallelismConfig | None) -> None:
    """RecipeError where a launch configuration cuts rows over devices: their attention is one causal block,
    and what lies end to end in a row would see each other without a word."""
    if config is not None and (config.cp_enabled or config.sp_enabled):
        raise RecipeError(
            f"train: the launch configuration cuts each row over {config.cp_size * config.sp_size} devices "
            "(context or sequence parallelism), and examples of one row would not be kept apart. Take "
            "students/launch/fsdp2.yaml with --context-parallel N, which keeps them apart"
        )


def require_extras(flags: TrainFlags) -> None:
    """RecipeError where a flag asks for a library that is not installed."""
    wanted = {"--liger": "liger_kernel"} if flags.liger else {}
    if flags.tracker != "none":
        wanted[f"--tracker {flags.tracker}"] = flags.tracker
    for flag, module in wanted.items():
        if find_spec(module) is None:
            name = module.replace("_", "-")
            raise RecipeError(
                f"{flag}: {name} is not installed here; run: pip install {name}, or leave it out"
            )


def plan_steps(job: Job, train: list[Encoded], processes: int) -> list[list[list[int]]]:
    """All optimizer steps of the run, each cut into equally many micro-batches for every process, or group of
    those that share rows."""
    recipe = job.recipe
    if processes > recipe.batch_size:
        group = "" if job.sharers == 1 else f" groups of {job.sharers}"
        raise RecipeError(
            f"train.batch_size: {recipe.batch_size} examples cannot be shared by {processes}{group} "
            "processes, each needs at least one; start fewer, let more of them share a row "
            "(--context-parallel), or raise batch_size (another run: it changes the result)"
        )
    lengths = [len(example.ids) for example in train]
    batches = ordered_batches(lengths, recipe.batch_size, recipe.epochs, job.seed, recipe.order)
    cutting = cut_padded if job.padded else cut
    return cutting(batches, lengths, processes, job.row_tokens)


def held_out_rows(job: Job, examples: list[Encoded], stored: StoredTops | None = None) -> Dataset:
    lengths, most = [len(example.ids) for example in examples], job.row_tokens
    every = [*range(len(lengths))]
    if job.padded:
        return rows(examples, similar(every, lengths, most), padded=True)
    parts = balanced(every, lengths, min(len(lengths), 1 + sum(lengths) // most))
    return rows(examples, job.shared(parts), stored=stored)


def rows(
    examples: list[Encoded], parts: list[list[int]], padded: bool = False, stored: StoredTops | None = None
) -> Dataset:
    """A data set with one row a micro-batch, laid out only when it is read; `padded`: a list of examples."""

    def lay_out(batch: dict[str, list[list[int]]]) -> dict[str, list[Any]]:
        chosen = [[examples[index] for index in part] for part in batch["part"]]
        if padded:
            return {
                "input_ids": [[example.ids for example in part] for part in chosen],
                "labels": [[example.labels for example in part] for part in chosen],
            }
        found = {
            "input_ids": [[token for example in part for token in example.ids] for part in chosen],
            "labels": [[label for example in part for label in example.labels] for part in chosen],
            "seq_lengths": [[len(example.ids) for example in part] for part in chosen],
        }
        held = [stored.columns(part) for part in chosen] if stored is not None else []
        return found | {name: [columns[name] for columns in held] for name in (held[0] if held else ())}

    return Dataset.from_dict({"part": parts}).with_transform(lay_out)


def learning_rate_share(step: int, num_steps: int, recipe: Train) -> float:
    """Warm-up to 1, then the recipe's schedule down to `min_learning_rate_ratio` at the last step.

    Pure, so that a resumed run gets the same one.
    """
    warmup = math.ceil(recipe.warmup_ratio * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    floor = recipe.min_learning_rate_ratio
    return floor + (1 - floor) * SHAPES[recipe.schedule](done)
