"""polish: the sampler, the rounds, the checks of a pair, and polishing for real on tiny models."""

import json
import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import TrainerControl, TrainerState

from pipeline.context import Context
from pipeline.errors import EngineError, RecipeError, StageError
from pipeline.flags import EngineFlags, TrainFlags
from pipeline.plan.command import SAMPLER_TOKENS, VLLM_GIB
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.schema import Lora, Polish
from pipeline.records import Problem
from pipeline.run.contract import Counts
from pipeline.verify import VerifierPool
from students.examples import is_held_out
from students.format import Format
from students.memory import POLISH_ADVICE, explaining_lack_of_memory, polish_checkpoints
from students.model import linear_config, load_padded
from students.polish import run
from students.polish_checks import (
    NUM_TRIED,
    Pair,
    Trial,
    check_pair,
    check_served,
    check_trial,
    mean_probability,
    some_of_each,
    try_out,
)
from students.polish_watch import Job, Watch
from students.rounds import Asker, Questions, Response, Row, pick_questions, read_rows, write_row
from students.sampler import BATCH_TOKENS, Draw, Drawn, draw
from students.scoring import SCORING_BYTES, TeacherWeights, score_here
from tests.finished_run import finish
from tests.students_fixtures import (
    CHATML,
    CHATML_THINK,
    build_tokenizer,
    card_of,
    context_of,
    sampled,
)


def draws_of(style: Format, num: int) -> list[Draw]:
    texts = [f"What is {'9' * (1 + 5 * (i % 4))} + {i}?" for i in range(num)]
    return [
        Draw(style.prompts.ids([{"role": "user", "content": text}]), seed) for seed, text in enumerate(texts)
    ]


def test_greedy_draws_are_those_of_the_library(tiny: Any, style: Format) -> None:
    rows = draws_of(style, 6)
    drawn = draw(tiny, rows, style.turn_end_id, max_tokens=12, temperature=0, batch=6)
    for row, found in zip(rows, drawn, strict=True):
        wanted = tiny.generate(
            torch.tensor([row.prompt]), max_new_tokens=12, do_sample=False, eos_token_id=style.turn_end_id
        )
        assert found.ids == wanted[0, len(row.prompt) :].tolist()


@pytest.mark.slow
def test_a_draw_depends_on_its_seed_and_not_on_its_batch(tiny: Any, style: Format) -> None:
    rows = draws_of(style, 9)
    together = draw(tiny, rows, style.turn_end_id, 30, 1.0, batch=9)
    again = draw(tiny, rows, style.turn_end_id, 30, 1.0, batch=9)
    in_parts = draw(tiny, rows, style.turn_end_id, 30, 1.0, batch=4)
    assert together == again
    assert [found.ids for found in in_parts] == [found.ids for found in together]
    other = draw(
        tiny, [replace(row, seed=row.seed + 100) for row in rows], style.turn_end_id, 30, 1.0, batch=9
    )
    assert [found.ids for found in other] != [found.ids for found in together]


@pytest.mark.slow
def test_rows_that_end_leave_and_the_others_go_on(tiny: Any, style: Format) -> None:
    """An end that comes often: the lengths differ, no row goes on after it, and the order is kept."""
    rows = draws_of(style, 40)
    common = draw(tiny, rows, -1, 40, 1.0, batch=40)
    counts = torch.bincount(torch.tensor([token for found in common for token in found.ids]))
    end = int(counts.argmax())
    drawn = draw(tiny, rows, end, 40, 1.0, batch=40)
    assert len({len(found.ids) for found in drawn}) > 3
    for found, unended in zip(drawn, common, strict=True):
        assert end not in found.ids[:-1]
        assert found.ids == unended.ids[: len(found.ids)]


@pytest.mark.slow
def test_log_probabilities_are_those_of_a_forward_pass(tiny: Any, style: Format) -> None:
    rows = draws_of(style, 5)
    drawn = draw(tiny, rows, style.turn_end_id, 20, 1.0, batch=5)
    scores = score_here(
        tiny, [(row.prompt, found.ids) for row, found in zip(rows, drawn, strict=True)], batch=2
    )
    for found, score in zip(drawn, scores, strict=True):
        assert found.logprobs == pytest.approx(score, abs=1e-4)


@pytest.mark.slow
def test_draws_follow_the_distribution(tiny: Any, style: Format) -> None:
    prompt = draws_of(style, 1)[0].prompt
    drawn = draw(tiny, [Draw(prompt, seed) for seed in range(4000)], -1, 1, 1.0, batch=1000)
    found = (
        torch.bincount(torch.tensor([row.ids[0] for row in drawn]), minlength=tiny.config.vocab_size) / 4000
    )
    wanted = tiny(torch.tensor([prompt])).logits[0, -1].detach().softmax(-1)
    assert (found - wanted).abs().max() < 4 * float((wanted.max() * (1 - wanted.max()) / 4000).sqrt())


def problems_of(num: int) -> list[Problem]:
    return [
        Problem(f"{i:016x}", f"What is {i} + {i}?", str(2 * i), "math", "sums", "MIT", {}) for i in range(num)
    ]


POLISH = Polish(rounds=3, problems_per_round=4, max_tokens=8, learning_rate=1e-3, batch_size=4, held_out=2)
SHARE = 0.3  # that train holds out


def test_rounds_walk_through_all_problems_that_train_did_not_hold_out(style: Format) -> None:
    questions = pick_questions(problems_of(12), POLISH, SHARE, 0, style, PROMPTS["boxed"])
    assert len(questions.held_out) == 2
    assert all(is_held_out(problem.id, SHARE, 0) for problem in questions.held_out)
    assert not any(is_held_out(problem.id, SHARE, 0) for problem in questions.problems)
    rounds = [questions.of_round(number, 4, 0) for number in range(5)]
    seen = [problem.id for chosen in rounds for problem in chosen]
    assert all(len({problem.id for problem in chosen}) == 4 for chosen in rounds)
    num = len(questions.problems)
    assert len(set(seen[:num])) == num
    assert rounds == [questions.of_round(number, 4, 0) for number in range(5)]
    assert rounds != [questions.of_round(number, 4, 1) for number in range(5)]


def test_too_few_problems_for_a_round(style: Format) -> None:
    with pytest.raises(StageError, match="a round asks 4 problems, and 3 of 3 are left"):
        pick_questions(problems_of(3), POLISH, 0.0, 0, style, PROMPTS["boxed"])


def test_problems_that_are_decided_later_are_left_out(style: Format) -> None:
    voted = [replace(problem, verifier="majority", metadata={"of": 8}) for problem in problems_of(20)[12:]]
    questions = pick_questions(problems_of(12) + voted, POLISH, SHARE, 0, style, PROMPTS["boxed"])
    assert questions == pick_questions(problems_of(12), POLISH, SHARE, 0, style, PROMPTS["boxed"])


def test_held_out_problems_that_train_did_not_hold_out(style: Format) -> None:
    with pytest.raises(StageError, match=r"none of 12 problems is held out by .*_share 0. Raise it"):
        pick_questions(problems_of(12), POLISH, 0.0, 0, style, PROMPTS["boxed"])


def test_a_round_is_whole_updates() -> None:
    with pytest.raises(ValueError, match="batch_size 32 do not divide"):
        Polish(rounds=1, problems_per_round=100, max_tokens=8, learning_rate=1e-3)


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(workers=1) as workers:
        yield workers


def asker_of(
    directory: Path,
    student: Any,
    style: Format,
    questions: Questions,
    pool: VerifierPool,
    asked: list[Draw],
    **changes: Any,
) -> Asker:
    """Asks `student`; `asked` takes note of what for."""

    def sampler(draws: Sequence[Draw]) -> list[Drawn]:
        asked.extend(draws)
        return draw(student, draws, style.turn_end_id, POLISH.max_tokens, 1.0, batch=4)

    who, prompt = sampled(card_of(Path("x"))), PROMPTS["boxed"]
    asker = Asker(directory, POLISH.max_tokens, 0, who, style, prompt, questions, sampler, 4, pool)
    return replace(asker, **changes)


def test_a_round_of_a_sources_own_prompt_is_asked_once(
    tiny: Any, style: Format, tmp_path: Path, pool: VerifierPool
) -> None:
    """The same answers are found in the directory itself, and where it was moved aside."""
    mine = replace(PROMPTS["plain"], name="mine")
    prompt = replace(PROMPTS["boxed"], by_source={"sums": mine})
    questions = pick_questions(problems_of(12), POLISH, SHARE, 0, style, prompt)
    asked: list[Draw] = []
    asker = asker_of(tmp_path / "rounds", tiny, style, questions, pool, asked, prompt=prompt)
    first = asker.round(0, "weights", 4)
    assert len(asked) == len(first) == 4
    assert asker.round(0, "weights", 4) == first
    (tmp_path / "rounds").rename(tmp_path / "aside")
    assert replace(asker, aside=(tmp_path / "aside",)).round(0, "weights", 4) == first
    assert len(asked) == 4
    asker.round(0, "other weights", 4)
    assert len(asked) == 8


def test_a_fresh_adapter_on_another_student_is_asked_anew(
    tiny: Any, style: Format, tmp_path: Path, pool: VerifierPool
) -> None:
    """After train ran again and polish was forced: what the student before answered is not taken."""
    questions = pick_questions(problems_of(12), POLISH, SHARE, 0, style, PROMPTS["boxed"])
    answers, job = [], Job("small", POLISH, 0, TrainFlags(), "cpu", tmp_path)
    for name, before, scale in (("first", "none", 1.0), ("other", "first", 1.5), ("again", "other", 1.5)):
        torch.manual_seed(0)  # as TRL seeds before it adds an adapter
        student: Any = get_peft_model(deepcopy(tiny), linear_config(Lora(), "all-linear", tiny))
        for part, weight in student.named_parameters():
            weight.data *= 1.0 if "lora" in part else scale
        asked: list[Draw] = []
        train = sampled(card_of(Path("x")), identity={"scale": scale})
        aside = (tmp_path / before,)
        asker = asker_of(tmp_path / name, student, style, questions, pool, asked, model=train, aside=aside)
        found, _ = Watch(job, asker, None).begin(0, student)
        answers.append(([response.ids for response in found], len(asked)))
    assert [number for _, number in answers] == [4, 4, 0]
    assert answers[0][0] != answers[1][0] == answers[2][0]


def test_the_bill_knows_the_batch_of_the_sampler() -> None:
    assert BATCH_TOKENS["cuda"] == SAMPLER_TOKENS


def test_the_bill_has_room_for_what_an_engine_scores() -> None:
    assert VLLM_GIB * 2**30 > SCORING_BYTES


def test_memory_that_runs_out_is_said_with_what_to_do() -> None:
    @explaining_lack_of_memory("polish", POLISH_ADVICE)
    def fit() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 56.00 GiB. GPU 0 has a total")

    with pytest.raises(
        StageError, match=r"polish: the device's memory .*\(CUDA out of memory\).*--engine server"
    ):
        fit()


def test_polish_trains_no_tokens() -> None:
    with pytest.raises(ValueError, match=r"lora.tokens are trained by train.lora alone"):
        Polish(rounds=1, max_tokens=8, learning_rate=1e-3, method="lora", lora={"tokens": ["<think>"]})  # type: ignore[arg-type]


def test_polish_takes_the_attention_of_train(student_directory: Path) -> None:
    card = card_of(student_directory)
    for found, taken in (("eager", "eager"), ("sdpa", "sdpa"), ("flash", "sdpa"), (None, "sdpa")):
        student = load_padded(card, sampled(card), "full", "cpu", found)
        assert student.config._attn_implementation == taken


def test_gradients_are_checkpointed_on_a_gpu_unless_the_flag_says_not_to() -> None:
    assert polish_checkpoints(TrainFlags(), "cuda")
    assert not polish_checkpoints(TrainFlags(), "cpu")
    assert not polish_checkpoints(TrainFlags(gradient_checkpointing=False), "cuda")


def pair_of(style: Format, tokenizer: Any, **changes: Any) -> Pair:
    card = card_of(Path("x"))
    values: dict[str, Any] = {
        "style": style,
        "student": sampled(card),
        "teacher": sampled(card, name="teacher"),
        "teacher_tokenizer": tokenizer,
        "vocabularies": (261, 261),
        "positions": 512,
        "student_positions": 512,
        "chats": [[{"role": "user", "content": "What is 1 + 2?"}]],
        "longest": 300,
    }
    return Pair(**{**values, **changes})


def test_a_pair_that_fits_passes_every_check(style: Format) -> None:
    assert len(check_pair(pair_of(style, build_tokenizer(CHATML_THINK)))) == 7


@pytest.mark.parametrize(
    ("tokenizer", "changes", "said"),
    [
        (
            build_tokenizer(CHATML_THINK, ["<|im_end|>", "<|im_start|>", "<|endoftext|>"]),
            {},
            r"GOLD \(.*arXiv 2402.12030",
        ),
        (build_tokenizer(CHATML_THINK), {"vocabularies": (261, 320)}, "padded vocabulary"),
        (build_tokenizer(CHATML_THINK.replace("<|im_end|>", "<|endoftext|>")), {}, "ends its turn with"),
        (build_tokenizer(CHATML), {}, "rendered differently from token"),
        (build_tokenizer(CHATML_THINK), {"longest": 600}, "the teacher 512 positions"),
        (
            build_tokenizer(CHATML_THINK),
            {"student_positions": 299},
            "300 tokens, and the student 299 positions",
        ),
    ],
    ids=["tokens", "vocabulary", "end-of-turn", "prompt", "positions", "positions-of-the-student"],
)
def test_each_thing_that_breaks_a_pair(
    style: Format, tokenizer: Any, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        check_pair(pair_of(style, tokenizer, **changes))


def test_other_thinking_tags_break_a_pair(style: Format) -> None:
    card = card_of(Path("x"), thinking={"open": "<reason>", "close": "</reason>"})
    with pytest.raises(
        RecipeError, match="thinks between <think> and </think>, the teacher between <reason>"
    ):
        check_pair(pair_of(style, build_tokenizer(CHATML_THINK), teacher=sampled(card, name="teacher")))


def test_a_padded_vocabulary_is_no_matter_where_sampled_tokens_alone_are_compared(style: Format) -> None:
    check_pair(pair_of(style, build_tokenizer(CHATML_THINK), vocabularies=None))


def test_prompts_of_every_source_are_compared(style: Format) -> None:
    """The last problem's prompt is of its source alone, and the teacher's template renders it differently."""
    sums = problems_of(40)
    problems = [*sums, replace(sums[0], id="f" * 16, source="facts")]
    prompt = replace(PROMPTS["boxed"], by_source={"facts": replace(PROMPTS["boxed"], system="State a fact.")})
    chosen = some_of_each(problems)
    assert chosen == [*sums[:NUM_TRIED], problems[-1]]
    chats = [prompt.messages(problem.question, problem.source) for problem in chosen]
    other = CHATML_THINK.replace("message.content", "message.content.replace('fact', 'Fact')")
    with pytest.raises(RecipeError, match="rendered differently from token"):
        check_pair(pair_of(style, build_tokenizer(other), chats=chats))
    check_pair(pair_of(style, build_tokenizer(other), chats=chats[:NUM_TRIED]))


@pytest.mark.slow
def test_positions_are_those_of_the_cards_and_of_the_models(
    tiny: Any, style: Format, student_directory: Path, tmp_path: Path
) -> None:
    from students.polisher import pair_of as pair_here

    whole = tiny.config.max_position_embeddings
    questions = pick_questions(problems_of(12), POLISH, SHARE, 0, style, PROMPTS["boxed"])

    def positions(divergence: str, size: int) -> tuple[int, int]:
        context = context_with(tmp_path, f"polish.divergence={divergence}")
        model = sampled(card_of(student_directory), max_model_len=size)
        pair = pair_here(context, style, model, tiny, model, questions, 99)
        return pair.positions, pair.student_positions

    assert positions("reverse_kl", 100) == (100, 100)
    assert positions("reverse_kl", whole + 1) == (whole, whole)
    assert positions("sampled", whole + 1) == (whole + 1, whole)  # an engine may extend them


def test_a_server_of_fewer_positions_than_the_card_breaks_a_pair(style: Format) -> None:
    """The shortest of the servers counts, and to score is to write a token more."""
    pair = pair_of(style, build_tokenizer(CHATML_THINK), vocabularies=None)
    assert not check_served(pair, {"http://a/v1": 4096})
    assert check_served(pair, {"http://a/v1": 301, "http://b/v1": 4096})
    with pytest.raises(
        RecipeError,
        match=r"has 301 tokens, and the teacher at http://b/v1 300 positions .*Serve it",
    ):
        check_served(pair, {"http://a/v1": 512, "http://b/v1": 300})


TRIAL = Trial(max_tokens=200, cut_share=0.1, own=0.98, by_student=0.9)


def test_a_trial_that_went_well_passes_every_check() -> None:
    assert len(check_trial(TRIAL)) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"own": 0.2},
            "mean probability of 0.200 to the tokens of its own greedy responses.* another template",
        ),
        (
            {"cut_share": 0.75},
            r"75% of the student's greedy responses do not end within polish.max_tokens \(200\)",
        ),
        (
            {"by_student": 0.0015},
            "mean probability of 0.0015 to the tokens of the teacher's.*not a trained one",
        ),
    ],
    ids=["template-drift", "endless", "untrained"],
)
def test_each_thing_that_a_trial_shows(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        check_trial(replace(TRIAL, **changes))


def test_a_trial_measures_both(tiny: Any, style: Format) -> None:
    """A model that is teacher and student gives to its greedy responses what it gave when it wrote them."""
    pair = pair_of(style, style.tokenizer, chats=[[{"role": "user", "content": "What is 1 + 2?"}]] * 2)
    teacher = TeacherWeights(tiny, style.prompts, style.turn_end_id)
    trial = try_out(pair, tiny, teacher, 6)
    drawn = draw(tiny, [Draw(style.prompts.ids(pair.chats[0]), 0)], style.turn_end_id, 6, 0.0, batch=1)[0]
    assert trial.own == trial.by_student == pytest.approx(mean_probability([drawn.logprobs]), rel=1e-3)
    assert trial.cut_share == float(drawn.ids[-1] != style.turn_end_id)


def watch_of(directory: Path, *rows: Row) -> Watch:
    """The watch of a run that was killed after the last of `rows`."""
    for row in rows:
        write_row(directory / "rounds", row)
    job = Job("small", POLISH, 0, TrainFlags(), "cpu", directory)
    watch = Watch(job, None, None)  # type: ignore[arg-type]  # nothing is asked here
    watch.restore(max(row.round for row in rows))
    return watch


def evaluated(*rates: float, length: float = 60) -> list[Row]:
    """Rows of as many rounds; the last one is not trained on yet."""
    rows = [Row(round=n, held_out=rate, mean_length=length, loss=0.1) for n, rate in enumerate(rates)]
    return [*rows[:-1], Row(round=len(rates) - 1, held_out=rates[-1])]


def test_the_best_weights_are_kept_and_of_equal_ones_the_first(tmp_path: Path) -> None:
    watch = watch_of(tmp_path, *evaluated(0.5, 0.7, 0.7, 0.6))
    assert watch.best == 1
    assert watch.stopped == ""
    assert watch.num_done == 3


def test_three_evaluations_without_a_better_one_end_it(tmp_path: Path) -> None:
    watch = watch_of(tmp_path, *evaluated(0.5, 0.7, 0.6, 0.7, 0.6))
    assert watch.stopped == "3 evaluations without a better one than after 1 rounds"
    assert watch.best == 1


@pytest.mark.parametrize(("length", "stops"), [(121, True), (119, False), (31, False), (29, True)])
def test_responses_of_another_length_end_it(tmp_path: Path, length: float, stops: bool) -> None:
    rows = [
        Row(round=0, mean_length=60, loss=0.1),
        Row(round=1, mean_length=length, loss=0.1),
        Row(round=2, held_out=0.5),
    ]
    watch = watch_of(tmp_path, *rows)
    assert watch.stopped == (f"responses of {length} tokens where the first round had 60" if stops else "")


@pytest.mark.parametrize(
    ("first", "last", "stops"),
    [(0.0, 0.91, True), (0.0, 0.9, False), (0.48, 0.95, False), (0.48, 0.97, True)],
)
def test_responses_that_no_longer_end_end_it(tmp_path: Path, first: float, last: float, stops: bool) -> None:
    """Where max_tokens is less than twice the first length, no length says so."""
    rows = evaluated(0.5, 0.6, 0.7)
    rows[0].cut_share, rows[1].cut_share = first, last
    watch = watch_of(tmp_path, *rows)
    assert watch.stopped == (
        f"{last:.0%} of the responses are cut where in the first round {first:.0%} were" * stops
    )
    assert watch.best == (0 if stops else 2)


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9])
def test_a_collapse_keeps_weights_from_before_it(tmp_path: Path, rate: float) -> None:
    """Round 1 is answered by the student after one round: neither that one nor the one after is kept."""
    updates = POLISH.problems_per_round // POLISH.batch_size
    rows = [Row(round=n, held_out=rate, mean_length=60, loss=0.1) for n in (0, 1)]
    rows[0].held_out = 0.5
    steps = tmp_path / "steps"
    for number in (0, 1):
        (steps / f"best-{number:05d}").mkdir(parents=True)
    watch = watch_of(tmp_path, rows[0], Row(round=1, held_out=rate))
    assert watch.best == int(rate > 0.5)
    watch.on_save(None, TrainerState(global_step=updates), TrainerControl())
    assert (steps / "best-00000").is_dir()  # round 1 has not shown yet what the student after it writes
    rows[1].mean_length = 20
    watch = watch_of(tmp_path, *rows, Row(round=2, held_out=rate))
    assert watch.stopped == "responses of 20 tokens where the first round had 60"
    assert watch.best == 0
    watch.on_save(None, TrainerState(global_step=2 * updates), TrainerControl())
    assert (steps / "best-00000").is_dir()


def test_a_collapse_without_held_out_problems_fails(tmp_path: Path) -> None:
    """There are no better weights to keep."""
    watch = watch_of(tmp_path, Row(round=0, mean_length=60, loss=0.1), Row(round=1, held_out=0.5))
    watch._job = replace(watch._job, recipe=POLISH.model_copy(update={"held_out": 0}))
    watch.rows[1] = Row(round=1, mean_length=200, loss=0.1)
    said = r"after 2 rounds responses of 200 tokens .*the student collapses"
    with pytest.raises(StageError, match=said):
        watch.on_step_end(None, TrainerState(global_step=2), TrainerControl())
    write_row(tmp_path / "rounds", watch.rows[1])
    with pytest.raises(StageError, match=said):  # and so when it is run again
        Watch(watch._job, None, None).restore(2)  # type: ignore[arg-type]


def test_a_resumed_run_knows_what_the_killed_one_knew(tmp_path: Path) -> None:
    """Of the round that was not finished only the evaluation before it is kept."""
    torn = Row(round=2, held_out=0.8, held_out_tokens=90, mean_length=50, loss=0.3, sampled_tokens=9)
    watch = watch_of(tmp_path, *evaluated(0.5, 0.6)[:1], Row(round=1, mean_length=55, loss=0.2), torn)
    assert watch.rows[2] == Row(round=2, held_out=0.8, held_out_tokens=90)
    assert watch.num_done == 2
    assert watch.write_metrics() == 3
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1, 2]
    assert "pass_rate" not in rows[2]


@pytest.mark.parametrize("text", ["", "[]", '{"round": "x"}'])
def test_a_row_of_a_round_that_is_damaged_is_named(tmp_path: Path, text: str) -> None:
    """As a machine that loses its power may leave it."""
    write_row(tmp_path, Row(round=0))
    (tmp_path / "00000" / "round.json").write_text(text)
    with pytest.raises(
        StageError, match=r"00000/round.json: is not the row of a round .*Rename the directory polish"
    ):
        read_rows(tmp_path)


def test_best_weights_that_are_gone_are_named(tmp_path: Path) -> None:
    watch = watch_of(tmp_path, *evaluated(0.5, 0.4))
    gone = r"steps/best-00000: the best weights so far are not there.*Rename the directory polish"
    with pytest.raises(StageError, match=gone):
        watch.check_weights(1)
    watch.best_weights.mkdir(parents=True)
    watch.check_weights(1)
    unmeasured = watch_of(tmp_path / "other", Row(round=0, mean_length=60, loss=0.1))
    unmeasured.check_weights(0)
    with pytest.raises(StageError, match="the best weights so far are not there"):
        unmeasured.check_weights(POLISH.rounds)  # its last ones


def test_what_a_round_took_is_the_sum_over_the_processes(
    tiny: Any, style: Format, tmp_path: Path, pool: VerifierPool
) -> None:
    """A server that fails in the midst of scoring, then a kill before the first update."""
    questions = pick_questions(problems_of(12), POLISH, SHARE, 0, style, PROMPTS["boxed"])
    job = Job("small", POLISH, 0, TrainFlags(), "cpu", tmp_path)

    def fails(number: int, responses: list[Response]) -> list[list[float]]:
        raise EngineError("no server answers")

    asker = asker_of(job.rounds, tiny, style, questions, pool, [])
    with pytest.raises(EngineError):
        Watch(job, asker, fails).begin(0, tiny)
    taken = read_rows(job.rounds)
    for _ in range(2):
        watch = Watch(job, asker, lambda number, responses: [one.logprobs for one in responses])
        watch.restore(0)
        watch.begin(0, tiny)
        taken += read_rows(job.rounds)
    for name in ("sampling_seconds", "scoring_seconds"):
        first, second, third = (getattr(row, name) for row in taken)
        assert 0 < first < second < third, name


def test_the_seconds_of_rounds_after_the_last_checkpoint_are_kept(tmp_path: Path) -> None:
    later = Row(round=2, loss=0.3, sampled_tokens=9, sampling_seconds=3.0, training_seconds=5.0)
    write_row(tmp_path / "rounds", later)
    watch = watch_of(tmp_path, *evaluated(0.5, 0.6))
    assert 2 not in watch.rows
    assert watch._row(2) == Row(round=2, sampling_seconds=3.0, training_seconds=5.0)


@pytest.mark.parametrize(
    ("figures", "said"), [({"importance_ratio": 1.0234}, ", importance ratio 1.023"), ({}, "")]
)
def test_the_progress_line_has_the_importance_ratio_where_there_is_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, figures: dict[str, float], said: str
) -> None:
    watch = watch_of(tmp_path, *evaluated(0.5, 0.5, 0.5))
    logs = {"loss": 0.1, "grad_norm": 1.0, "learning_rate": 1e-3, "entropy": 0.4, **figures}
    state = TrainerState(global_step=3 * POLISH.problems_per_round // POLISH.batch_size)
    with caplog.at_level("INFO"):
        watch.on_log(None, state, TrainerControl(), logs=logs)
    assert f"entropy 0.400{said}, held out 50.0% after 2" in caplog.text


def test_a_loss_that_is_no_number_ends_it(tmp_path: Path) -> None:
    watch = watch_of(tmp_path, *evaluated(0.5, 0.5))
    logs = {"loss": math.nan, "grad_norm": 1.0, "learning_rate": 1e-3}
    state = TrainerState(global_step=2 * POLISH.problems_per_round // POLISH.batch_size)
    with pytest.raises(StageError, match=r"the loss is nan .* in round 1, so the student is lost. Lower"):
        watch.on_log(None, state, TrainerControl(), logs=logs)


def context_with(tmp_path: Path, *overrides: str) -> Context:
    section = ("polish.rounds=2", "polish.max_tokens=8", "polish.learning_rate=1e-3", "polish.held_out=0")
    return context_of(tmp_path, *section, *overrides)


def test_a_server_gives_no_whole_distributions(tmp_path: Path) -> None:
    server = EngineFlags(engine="server", urls=("http://127.0.0.1:1/v1",))
    with pytest.raises(RecipeError, match=r"reverse_kl compares whole .*Set polish.divergence: sampled"):
        run(context_with(tmp_path), None, server)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"processes": 2}, "2 processes were launched"),
        ({"liger": True}, "--liger: .* leave it out"),
        ({"context_parallel": 2}, "--context-parallel 2: polish is one process"),
    ],
    ids=["launcher", "liger", "context parallel"],
)
def test_flags_that_are_not_for_polish(tmp_path: Path, flags: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        run(context_with(tmp_path), TrainFlags(**flags))


def test_inputs_that_were_changed_are_refused(tmp_path: Path) -> None:
    context = context_with(tmp_path)
    finish(context, "problems", Counts(0, 0), {"problems.jsonl": b""})
    finish(context, "train", Counts(0, 0), {"checkpoint/model.safetensors": b"as it was"})
    (context.directory("train") / "checkpoint/model.safetensors").write_text("another")
    with pytest.raises(StageError, match=r"model.safetensors: was changed after train finished"):
        run(context)
    assert not (context.directory("polish") / "manifest.json").exists()
