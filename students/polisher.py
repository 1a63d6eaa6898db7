"""The work of the polish stage: rounds of sampling, the teacher's word on every token, updates, export.

TRL's DistillationTrainer has the loss, the optimizer and the steps to resume from; the completions are ours
(students.rounds). A round is `problems_per_round` x `samples` responses of the student as it is, cut into
updates of `batch_size`, and ends with a checkpoint; its samples and scores are on the disk before the first
update, so a kill buys none again. On a GPU (where this has not been run) the same sampler works in bf16:
TRL's colocated vLLM would be a second way to the same tokens.
"""

import inspect
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PrinterCallback
from transformers.integrations import TensorBoardCallback
from trl import DistillationConfig, DistillationTrainer

from pipeline.context import Context
from pipeline.errors import RecipeError, StageError
from pipeline.flags import EngineFlags, TrainFlags
from pipeline.plan.memory import rows_at_once
from pipeline.recipe.cards import SampledModel
from pipeline.records import ProblemFile
from pipeline.run.contract import Counts, StageRun, Usage
from pipeline.sampling.prompts import load_tokenizer
from pipeline.verify import VerifierPool
from students.export import export
from students.format import Format, load_format
from students.memory import POLISH_ADVICE, explaining_lack_of_memory, polish_checkpoints
from students.model import linear_config, load_padded, load_teacher, pick_device, quiet_libraries
from students.polish_checks import (
    Pair,
    check_pair,
    check_served,
    check_trial,
    scored_tokens,
    some_of_each,
    try_out,
)
from students.polish_watch import Job, Watch
from students.rounds import ROUNDS, Asker, Questions, Response, pick_questions
from students.sampler import batch_of, draw
from students.scoring import Scorer, TeacherEngine, TeacherWeights, in_flight
from students.train import METRICS
from students.trainer import last_checkpoint, learning_rate_share, require_extras, step_of

log = logging.getLogger(__name__)

SAMPLED = "sampled"  # the divergence that needs but the sampled tokens' probabilities
BETAS = {SAMPLED: 1.0, "forward_kl": 0.0, "jsd": 0.5, "reverse_kl": 1.0}  # of TRL's generalised divergence
CLIP = 0.2  # of the importance ratio, as PPO's
MAX_ADVANTAGE = 10.0  # nats: a token that the teacher rules out pulls no harder than this


class PolishTrainer(DistillationTrainer):
    """DistillationTrainer whose rows name places of a round and whose completions come from the round.

    A row is "<round>/<place>"; `watch` begins the round when its first row comes.
    """

    job: Job
    watch: Watch
    _round: int = -1
    _responses: list[Response]
    _scores: list[list[float]]
    _places: list[int]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        share = partial(
            learning_rate_share,
            num_steps=num_training_steps,
            recipe=self.job.recipe,  # type: ignore[arg-type]  # it has the same fields for it as train
        )
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, share)  # type: ignore[arg-type]
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def create_model_card(self, *_: Any, **__: Any) -> None:
        return None

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        number = int(prompts[0].partition("/")[0])
        if number != self._round:
            assert self.model is not None
            self._responses, self._scores = self.watch.begin(number, self.model)
            self._round = number
        self._places = [int(prompt.partition("/")[2]) for prompt in prompts]
        return [self._responses[place].prompt for place in self._places], None, {}

    def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> list[list[int]]:
        return [self._responses[place].ids for place in self._places]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super()._generate_and_score_completions(inputs)
        if self._scores:
            width, device = batch["completion_ids"].shape[1], batch["completion_ids"].device
            for name, rows in (
                ("student_logprobs", [self._responses[place].logprobs for place in self._places]),
                ("teacher_logprobs", [self._scores[place] for place in self._places]),
            ):
                padded = [row + [0.0] * (width - len(row)) for row in rows]
                batch[name] = torch.tensor(padded, device=device)
        return batch

    def _compute_loss(
        self, student: PreTrainedModel, inputs: dict[str, torch.Tensor], num_items: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """TRL's divergence over the vocabulary, or of sampled tokens the policy gradient of the reverse one.

        There the advantage of a token is log p_teacher - log p_student when it was sampled (Thinking
        Machines, On-Policy Distillation, 2025), and the importance ratio is clipped as in PPO (arXiv
        1707.06347).
        """
        if "teacher_logprobs" not in inputs:
            return super()._compute_loss(student, inputs, num_items)
        ids, mask = inputs["completion_ids"], inputs["completion_mask"].float()
        logits = student(
            input_ids=torch.cat([inputs["prompt_ids"], ids], dim=1),
            attention_mask=torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            logits_to_keep=ids.shape[1] + 1,
            use_cache=False,
        ).logits[:, :-1]
        logprobs = logits.float().log_softmax(-1)
        old = inputs["student_logprobs"]
        advantage = (inputs["teacher_logprobs"] - old).clamp(-MAX_ADVANTAGE, MAX_ADVANTAGE)
        ratio = (logprobs.gather(-1, ids[..., None])[..., 0] - old).exp()
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
        with torch.no_grad():  # in place: each copy of the logits is GiB
            entropy = -logprobs.exp().mul_(logprobs).sum(-1)
        num_tokens = mask.sum()
        metrics = self._metrics["train"]
        metrics["divergence"].append(float(-((advantage * mask).sum() / num_tokens)))
        metrics["importance_ratio"].append(float((ratio * mask).sum().detach() / num_tokens))
        loss = -(gain * mask).sum() / (num_tokens if num_items is None else num_items)
        return loss, (entropy * mask).sum(), num_tokens


@explaining_lack_of_memory("polish", POLISH_ADVICE)
def fit(
    context: Context, teacher: SampledModel, flags: TrainFlags, engine: EngineFlags, stage: StageRun
) -> None:
    """Polish, export and finish the stage. KeyboardInterrupt leaves a run to go on with."""
    quiet_libraries()
    require_extras(flags)
    check_seams()
    recipe, card = context.recipe, context.student_card
    polish = recipe.polish
    assert polish is not None, "only recipes with the section have the stage"
    device = pick_device(flags.device)
    if device == "cuda" and torch.cuda.device_count() > 1:
        raise RecipeError(
            f"polish: runs on one GPU, and {torch.cuda.device_count()} are visible. Set "
            "CUDA_VISIBLE_DEVICES=0 for it; a teacher that needs more of them is served (--engine server)"
        )
    model = context.as_trained(context.model("unpolished"), "polish")
    style = load_format(card, model)
    trained, full = context.manifest("train"), polish.method == "full"
    found = trained.notes.get("attention") if trained is not None else None
    student = load_padded(card, model, polish.method, device, found)
    problems = list(ProblemFile(context.directory("problems") / "problems.jsonl"))
    share = recipe.train.held_out_share
    questions = pick_questions(problems, polish, share, recipe.seed, style, context.prompt)
    job = Job(recipe.name, polish, recipe.seed, flags, device, context.directory("polish"))
    longest = max(len(ids) for ids in questions.prompts.values()) + polish.max_tokens
    pair = pair_of(context, style, model, student, teacher, questions, longest)
    check_pair(pair)
    with ExitStack() as stack:
        aside = tuple(path / ROUNDS for path in stage.aside)
        here, scorer = stack.enter_context(teacher_for(pair, student, engine, job, aside))
        trainer = PolishTrainer(
            model=student,
            teacher_model=here,
            args=config_of(job, longest),
            train_dataset=places(job),
            processing_class=style.tokenizer,
            peft_config=None if full else linear_config(polish.lora, card.lora_targets, student),
        )
        trainer.job = job
        batch = batch_of(device, longest)
        policy: Any = trainer.model  # with its adapter, where it has one
        sampler = partial(
            draw,
            policy,
            end=style.turn_end_id,
            max_tokens=polish.max_tokens,
            temperature=1.0,
            batch=batch,
        )
        asker = Asker(
            job.rounds,
            polish.max_tokens,
            recipe.seed,
            model,
            style,
            context.prompt,
            questions,
            sampler,
            batch,
            stack.enter_context(VerifierPool(workers=1)),
            aside,
        )
        trainer.watch = Watch(job, asker, scorer)
        run_rounds(trainer, job)
    watch = trainer.watch
    if watch.stopped:
        log.warning("polish: stopped after %d rounds: %s", watch.num_done, watch.stopped)
    log.info("polish: the student is the one after %d of %d rounds", watch.best, polish.rounds)
    files = export(watch.best_weights, job.directory, card, model, style, recipe.generate.sampling)
    num_responses = polish.problems_per_round * polish.samples * watch.num_done
    stage.finish(
        Counts(num_responses, num_responses),
        {METRICS: watch.write_metrics(), **dict.fromkeys(files)},
        usage_of(watch, job),
        {"rounds": watch.num_done, "kept_round": watch.best, "stopped": watch.stopped, "device": device},
    )


@contextmanager
def teacher_for(
    pair: Pair, student: PreTrainedModel, engine: EngineFlags, job: Job, aside: tuple[Path, ...]
) -> Iterator[tuple[PreTrainedModel | None, Scorer | None]]:
    """The teacher's weights here, or its scores from an engine, once both models have been tried out."""
    max_tokens = job.recipe.max_tokens
    if job.recipe.divergence == SAMPLED:
        if job.device == "cuda" and engine.engine == "vllm":
            log.info(
                "polish: the teacher's vLLM takes %.0f%% of the GPU (--gpu-memory-share), and the student "
                "trains in the rest: python -m pipeline plan says what that has to be",
                100 * engine.gpu_memory_share,
            )
        limit = in_flight(scored_tokens(pair), len(pair.teacher_tokenizer), engine.concurrency)
        with TeacherEngine(pair.teacher, engine, limit) as asked:
            check_served(pair, asked.positions())
            check_trial(try_out(pair, student, asked, max_tokens))
            yield None, partial(asked.score_round, job.rounds, aside)
            return
    here = load_teacher(pair.teacher, job.device)
    weights = TeacherWeights(here, pair.teacher_prompts, pair.style.turn_end_id)
    check_trial(try_out(pair, student, weights, max_tokens))
    yield here, None


def pair_of(
    context: Context,
    style: Format,
    model: SampledModel,
    student: PreTrainedModel,
    teacher: SampledModel,
    questions: Questions,
    longest: int,
) -> Pair:
    """What the checks compare; of a teacher elsewhere its tokenizer alone is read."""
    assert context.recipe.polish is not None
    tokenizer = load_tokenizer(teacher.model, teacher.revision)
    vocabularies, positions = None, teacher.max_model_len
    if context.recipe.polish.divergence != SAMPLED:
        config = AutoConfig.from_pretrained(teacher.model, revision=teacher.revision, trust_remote_code=False)
        vocabularies = (
            student.config.get_text_config().vocab_size,
            config.get_text_config().vocab_size,
        )
        positions = min(positions, positions_of(config))
    chosen = some_of_each([*questions.held_out, *questions.problems])
    chats = [context.prompt.messages(problem.question, problem.source) for problem in chosen]
    return Pair(
        style,
        model,
        teacher,
        tokenizer,
        vocabularies,
        positions,
        min(model.max_model_len, positions_of(student.config)),
        chats,
        longest,
    )


def positions_of(config: PretrainedConfig) -> int:
    """How many a model has by its own configuration; some have no end."""
    return getattr(config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def usage_of(watch: Watch, job: Job) -> Usage:
    """What all rounds took, in earlier processes too: of a round that a kill cut short, the sampling and the
    scoring that had ended, but not its updates. Evaluations are among the sampled tokens."""
    rows = list(watch.rows.values())
    return Usage(
        prompt_tokens=sum(row.prompt_tokens for row in rows),
        output_tokens=sum(row.sampled_tokens + row.held_out_tokens for row in rows),
        engine_seconds=round(sum(row.sampling_seconds + row.held_out_seconds for row in rows), 1),
        scored_tokens=sum(row.scored_tokens for row in rows),
        scoring_seconds=round(sum(row.scoring_seconds for row in rows), 1),
        train_seconds=round(sum(row.training_seconds for row in rows), 1),
        steps=watch.num_done * job.updates,
    )


def run_rounds(trainer: PolishTrainer, job: Job) -> None:
    """Run to the last round, from the last whole one if there is one, unless that said to stop."""
    last = last_checkpoint(job.steps)
    done = 0 if last is None else step_of(last) // job.updates
    trainer.watch.restore(done)
    trainer.watch.check_weights(done)
    if done == job.recipe.rounds or trainer.watch.stopped:
        return
    if last is not None:
        log.info("polish: going on after %d rounds", done)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(trainer.watch)
    if job.flags.tracker == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        # the library's own place is among the checkpoints, which go at the end
        trainer.add_callback(TensorBoardCallback(SummaryWriter(log_dir=str(job.directory / "tensorboard"))))
    with timed(trainer):
        trainer.train(resume_from_checkpoint=str(last) if last else None)


@contextmanager
def timed(trainer: PolishTrainer) -> Iterator[None]:
    """Tell the watch how long the teacher takes whose weights are here. Its head is not in it: TRL's loss
    projects both models at once."""
    teacher, started = trainer.teacher_model, 0.0
    if teacher is None:
        yield
        return

    def clock() -> float:
        if trainer.job.device == "cuda":
            torch.cuda.synchronize()
        return time.monotonic()

    def before(*_: Any) -> None:
        nonlocal started
        started = clock()

    def after(*_: Any) -> None:
        trainer.watch.scored(trainer._round, clock() - started)

    backbone = trainer.accelerator.unwrap_model(teacher).base_model
    handles = backbone.register_forward_pre_hook(before), backbone.register_forward_hook(after)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def places(job: Job) -> Dataset:
    """A row for each response of every round, in order: its place."""
    size = job.recipe.problems_per_round * job.recipe.samples
    return Dataset.from_dict(
        {"prompt": [f"{number}/{place}" for number in range(job.recipe.rounds) for place in range(size)]}
    )


def config_of(job: Job, longest: int) -> DistillationConfig:
    """TRL's configuration; `longest` is the number of tokens that a row may have."""
    recipe, flags, on_cpu = job.recipe, job.flags, job.device == "cpu"
    rows = rows_at_once(recipe.batch_size, flags.tokens_per_device, longest)
    return DistillationConfig(
        output_dir=str(job.steps),
        seed=job.seed,
        beta=BETAS[recipe.divergence],
        temperature=1.0,
        max_completion_length=recipe.max_tokens,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        max_steps=recipe.rounds * job.updates,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=recipe.batch_size // rows,
        shuffle_dataset=False,
        use_cpu=on_cpu,
        bf16=not on_cpu,
        dataloader_pin_memory=not on_cpu,
        gradient_checkpointing=polish_checkpoints(flags, job.device),
        logging_steps=job.updates,
        save_strategy="steps",
        # only between rounds: the weights within one are those of no round's samples
        save_steps=job.updates * max(1, (flags.save_every or 1) // job.updates),
        save_total_limit=2,
        report_to=flags.tracker if flags.tracker in ("trackio", "wandb") else "none",
        project="retort",
        run_name=job.name,
        disable_tqdm=True,
    )


def check_seams() -> None:
    """StageError where this TRL takes its completions from elsewhere than the two methods that are
    replaced."""
    for name, wanted in (("_tokenize_prompts", 2), ("_generate_single_turn", 4)):
        method = getattr(DistillationTrainer, name, None)
        if method is None or len(inspect.signature(method).parameters) < wanted:
            raise StageError(
                f"polish: the installed TRL has no DistillationTrainer.{name} that gives completions to the "
                "loss. Install the locked versions: make setup"
            )
