"""The bill before anything is bought: what is counted, what is refused, and that it adds up."""

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.context import Context, load_context
from pipeline.errors import RecipeError
from pipeline.plan.command import Part, assumed_from, plan_parts, run
from pipeline.plan.estimate import (
    Assumed,
    digits,
    expected_tries,
    kept_per_problem,
    kv_bytes,
    layout_for,
    replicate,
    size_of,
    solved_share,
    training_hours,
)
from pipeline.plan.forecast import Forecast, write_forecast
from pipeline.recipe.cards import ModelSize, card_names, student_card, task_card, teacher_card
from pipeline.recipe.reading import size_of as size_in
from pipeline.recipe.reading import stored_weights
from pipeline.recipe.schema import Samples
from pipeline.rows import count_rows
from pipeline.run.contract import Counts
from tests.conftest import ROOT
from tests.finished_run import finish

HUB = "{hub: openai/gsm8k, subset: main, columns: {question: question, gold: answer}, answer: hashes}"
GYM = "{reasoning_gym: chain_sum, size: 70}"
TASKS = "{task: gsm8k}, {task: math500, size: 100}, {reasoning_gym: gcd, size: 40}"
BILLION = ModelSize(
    parameters=1e9, active_parameters=1e9, bytes_per_parameter=2, layers=16, kv_values_per_layer=1024
)


def context_of(directory: Path, sources: str, tasks: str = TASKS, **override: Any) -> Context:
    path = directory / "recipe.yaml"
    path.write_text(f"""\
name: bill
problems:
  sources: [{sources}]
generate:
  teacher: qwen3-30b-a3b-thinking-2507
  samples: {{keep: 1, max: 4}}
  sampling: {{temperature: 0.6, max_tokens: 10000}}
filter:
  rules: [finished, correct]
train: {{student: qwen3-0.6b-base, method: full, epochs: 2, learning_rate: 1.0e-5, max_length: 8192}}
eval:
  tasks: [{tasks}]
  compare: [base, student, teacher]
""")
    overrides = [f"{key}={value}" for key, value in override.items()]
    return load_context(path, directory / "runs", overrides=overrides)


def value(parts: list[Part], title: str, name: str) -> str:
    part = next(part for part in parts if part.title == title)
    return next(line.value for line in part.lines if line.name == name)


def number(parts: list[Part], title: str, name: str) -> float:
    return float(value(parts, title, name).split()[0].replace(",", ""))


def test_rows_of_files_are_counted_up_to_their_limit(tmp_path: Path) -> None:
    lines, table = tmp_path / "a.jsonl", tmp_path / "b.parquet"
    lines.write_text('{"question": "1", "answer": "1"}\n\n' * 30)
    pyarrow.parquet.write_table(pyarrow.table({"question": ["1"] * 50, "answer": ["1"] * 50}), table)
    assert (count_rows(lines), count_rows(table)) == (30, 50)
    sources = f"{{path: {lines}}}, {{path: {table}, limit: 20, name: b}}, {GYM}"
    assert value(plan_parts(context_of(tmp_path, sources), Assumed()), "problems", "problems") == "120"
    table.write_bytes(b"PAR1 broken")
    with pytest.raises(RecipeError, match=r"b.parquet: cannot be read as Parquet"):
        plan_parts(context_of(tmp_path, f"{{path: {table}}}"), Assumed())
    with pytest.raises(RecipeError, match=r"c.jsonl: there is no such file"):
        plan_parts(context_of(tmp_path, f"{{path: {tmp_path}/c.jsonl}}"), Assumed())


def test_a_hub_source_that_does_not_say_its_size_is_no_free_lunch(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"openai/gsm8k: .* --assume problems=N"):
        plan_parts(context_of(tmp_path, f"{HUB}, {GYM}"), Assumed())
    stated = plan_parts(context_of(tmp_path, f"{HUB}, {GYM}"), Assumed(problems=7473))
    assert value(stated, "problems", "problems") == "7,473"
    limited = context_of(tmp_path, HUB.replace("subset", "limit: 500, subset"))
    assert value(plan_parts(limited, Assumed()), "problems", "problems") == "500"


def test_a_plan_by_hand(tmp_path: Path) -> None:
    """1,000 problems, half of the samples correct, keep 1 of at most 4: 1.875 tries, 0.9375 solved."""
    assumed = Assumed(pass_rate=0.5, tokens_share=0.5, problems=1000, devices=4, price=3.0)
    parts = plan_parts(context_of(tmp_path, GYM), assumed)
    assert value(parts, "generate", "traces") == "1,875"
    assert value(parts, "generate", "output tokens") == f"{1875 * 5000:,}"
    assert value(parts, "train", "examples") == "938"
    assert value(parts, "train", "tokens seen") == f"{2 * 4_687_500:,}"
    # fp32 weights with autocast's copies (the embedding has none), gradients and AdamW's moments in fp32, 28 layers
    # at 8,192 tokens of what a layer keeps, four vectors around them, and a tile of the head
    embedding, layer = 151936 * 1024, 26 * 1024 + 8 * 3072 + 12.5 * 2048 + 10.25 * 1024
    held = 18 * (0.6e9 - embedding) + 16 * embedding + 8192 * (28 * layer + 4 * 4 * 1024) + 4096 * 32768 * 6
    assert value(parts, "train", "memory of a device") == f"{1.05 * held / 2**30 + 1:.2f} GiB"
    read = 2 * 937.5 * (5000 + 200)
    train = next(part for part in parts if part.title == "train")
    assert train.hours == pytest.approx(6 * 0.6e9 * read / (4 * 989e12 * 0.15) / 3600)
    for model in ("base", "student", "teacher"):  # k of the cards is 1 and 4, and 1 where there is no card
        assert value(parts, "eval", f"samples of {model}") == f"{1319 + 4 * 100 + 40:,}"
    assert value(parts, "eval", "output tokens") == f"{3 * 1759 * 5000:,}"
    total = sum(part.hours for part in parts if part.title != "total")
    assert next(part for part in parts if part.title == "total").hours == pytest.approx(total)
    assert number(parts, "total", "money") == pytest.approx(total * 4 * 3.0, abs=0.006)
    money = sum(number(parts, title, "money") for title in ("teacher", "train", "eval"))
    assert number(parts, "total", "money") == pytest.approx(money, abs=0.02)


def test_the_stages_without_a_device_take_their_own_process_or_all_workers(tmp_path: Path) -> None:
    context = context_of(tmp_path, GYM)
    for cores, microseconds in (
        (1, 115.0),
        (2, 57.5),
        (64, 41.2),
    ):  # of filter; from three cores on it waits for itself
        parts = plan_parts(context, Assumed(problems=10**9, pass_rate=1, cores=cores))
        assert number(parts, "without a device", "hours of filter") == pytest.approx(
            microseconds * 1e9 / 1e6 / 3600, rel=1e-3
        )
        assert number(parts, "without a device", "hours of problems") == pytest.approx(231e3 / 3600, rel=1e-3)
    assert next(part for part in parts if part.title == "without a device").hours == 0, (
        "no device is paid for it"
    )


def test_polish_is_billed_on_one_device_and_a_share_by_what_is_asked(tmp_path: Path) -> None:
    polish = "{rounds: 2, max_tokens: 8192, learning_rate: 1.0e-6, held_out: 0}"
    context = context_of(tmp_path, GYM, **{"polish": polish, "generate.share": 0.25})
    one, eight = (
        plan_parts(context, Assumed(problems=1000, devices=devices, memory=800.0)) for devices in (1, 8)
    )
    assert value(eight, "problems", "asked") == "250"
    assert value(eight, "polish", "hours") == value(one, "polish", "hours")
    assert value(eight, "polish", "money") == value(one, "polish", "money")
    money = sum(number(eight, title, "money") for title in ("teacher", "train", "polish", "eval"))
    assert number(eight, "total", "money") == pytest.approx(money, abs=0.03)


def test_tokens_are_priced_where_the_recipe_says_what_a_vendor_takes(tmp_path: Path) -> None:
    """1,000 problems of 1.875 tries: 1,875 x 5,000 tokens of output and 1,875 x 200 of prompts."""
    assumed = Assumed(pass_rate=0.5, tokens_share=0.5, problems=1000)
    priced = context_of(tmp_path, GYM, **{"report.price": "{input: 0.5, output: 2.0}"})
    assert number(plan_parts(priced, assumed), "generate", "price of the tokens") == pytest.approx(
        18.94, 0.01
    )
    lines = next(
        part.lines for part in plan_parts(context_of(tmp_path, GYM), assumed) if part.title == "generate"
    )
    assert "price of the tokens" not in [line.name for line in lines]


def test_what_the_recipe_states_goes_before_what_the_cards_say(tmp_path: Path) -> None:
    override = {"eval.samples": 8, "eval.sampling": "{temperature: 0.6, max_tokens: 1000}"}
    override |= {"filter.select": "{max_tokens: 400000}"}
    override |= {"eval.extra": "[{name: other, student: qwen3-1.7b-base}]", "train.method": "lora"}
    parts = plan_parts(context_of(tmp_path, GYM, **override), Assumed(problems=1000))
    assert value(parts, "eval", "samples of other") == f"{8 * 1459:,}"
    assert value(parts, "eval", "output tokens") == f"{4 * 8 * 1459 * 1000:,}"
    assert value(parts, "train", "tokens seen") == "800,000"
    assert value(parts, "train", "examples") == "100"
    adapter = 28 * 16 * (2 * (1024 + 2048) + 2 * (1024 + 1024) + 3 * (1024 + 3072))
    layer = 18 * 1024 + 8 * 3072 + 10.5 * 2048 + 8.25 * 1024 + 7 * 16 * 2
    held = 2 * 0.6e9 + 16 * adapter + 8192 * (28 * layer + 4 * 2 * 1024) + 4096 * 32768 * 6
    assert value(parts, "train", "memory of a device") == f"{1.05 * held / 2**30 + 1:.2f} GiB"


def test_examples_longer_than_the_students_positions_are_said_before_traces_are_bought(
    tmp_path: Path,
) -> None:
    for length, said in ((32768, False), (32769, True)):
        parts = plan_parts(context_of(tmp_path, GYM, **{"train.max_length": length}), Assumed())
        lines = next(part.lines for part in parts if part.title == "train")
        refused = [line.source for line in lines if line.name == "train.max_length"]
        assert bool(refused) is said
        assert all("the student has 32,768 positions, as its card says" in note for note in refused)


def test_what_is_not_counted_is_named(tmp_path: Path) -> None:
    context = context_of(tmp_path, GYM, "{task: gsm8k, name: own}, {reasoning_gym: gcd, size: 40}")
    cards = {name: card.model_copy(update={"size": None}) for name, card in context.cards.tasks.items()}
    parts = plan_parts(replace(context, cards=replace(context.cards, tasks=cards)), Assumed())
    assert value(parts, "eval", "other tasks") == "own"
    assert value(parts, "eval", "samples of base") == "40"
    forced = context_of(
        tmp_path, GYM, "{reasoning_gym: gcd, size: 40}", **{"eval.forced_budgets": "[64, 128]"}
    )
    assert value(plan_parts(forced, Assumed()), "eval", "forced budgets") == "64, 128"


def test_wrong_traces_are_examples_where_no_rule_asks(tmp_path: Path) -> None:
    context = context_of(tmp_path, GYM, **{"filter.rules": "[finished]"})
    assert value(plan_parts(context, Assumed(pass_rate=0.01)), "train", "examples") == "70"
    context = context_of(tmp_path, GYM)
    assert value(plan_parts(context, Assumed(pass_rate=0.01)), "train", "examples") == "3"  # 70 (1 - 0.99^4)


def test_a_wrong_trace_of_each_unsolved_problem_is_an_example_where_the_recipe_keeps_one(
    tmp_path: Path,
) -> None:
    kept = {"filter.select.unsolved": "keep_one"}
    context = context_of(tmp_path, GYM, **kept)
    assert value(plan_parts(context, Assumed(pass_rate=0.01)), "train", "examples") == "70"


def test_redistributed_samples_are_on_the_bill(tmp_path: Path) -> None:
    """Half correct, at most 4: 2.125 samples a problem are saved, and 1 of 16 problems can use 12 more each."""
    assumed = Assumed(pass_rate=0.5, problems=1600)
    plain = plan_parts(context_of(tmp_path, GYM), assumed)
    more = {"generate.samples": "{keep: 1, max: 4, redistribute: true, cap: 16}"}
    given = plan_parts(context_of(tmp_path, GYM, **more), assumed)
    assert value(given, "generate", "redistributed traces") == "1,200 at most"
    hours = [next(part.hours for part in parts if part.title == "teacher") for parts in (plain, given)]
    assert hours[1] / hours[0] == pytest.approx((3000 + 1200) / 3000)


def test_a_pilots_rate_paces_every_model(tmp_path: Path) -> None:
    context = context_of(tmp_path, GYM)
    plain = plan_parts(context, Assumed(tokens_share=0.3))
    modelled = number(plain, "teacher", "output tokens a second")
    context.directory("generate").mkdir(parents=True)
    figures = Forecast(20, 70, 0.6, 0.9, 2.0, 3000.0, 420_000, 400_000, 440_000, modelled / 2)
    write_forecast(context.directory("generate"), figures)
    paced = plan_parts(context, Assumed())
    assert number(paced, "eval", "pace") == pytest.approx(0.5, abs=0.001)
    hours = [next(part.hours for part in parts if part.title == "eval") for parts in (plain, paced)]
    assert hours[1] == pytest.approx(2 * hours[0], rel=1e-3)
    assert value(paced, "train", "examples") == "70"  # 2 tries x 0.6 correct, but select takes one a problem


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("pass_rate=1.5", "out of range, expected 0 to 1"),
        ("pass_rate=nan", "out of range"),
        ("bandwidth=0", "out of range"),
        ("memory=inf", "out of range"),
        ("devices=0", "out of range"),
        ("concurrency=1", "out of range, expected 8 to"),
        ("devices=two", "expected a number after '=', found 'two'"),
        ("devices", "expected a number after '=', found ''"),
        ("device=2", "unknown name; did you mean 'devices'"),
    ],
)
def test_what_cannot_be_assumed_is_refused(pair: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"--assume {pair}: {message}"):
        assumed_from([pair])


def test_a_plan_is_printed_with_its_assumptions_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = context_of(tmp_path, GYM)
    run(context, assumed_from(["problems=600", "devices=4"]))
    printed = capsys.readouterr().out
    assert "assumed (pass_rate)" in printed
    assert "stated (--assume problems)" in printed
    assert "4 devices of 80 GiB" in printed
    assert not context.runs.exists()


def test_the_problems_of_a_finished_stage_are_counted(tmp_path: Path) -> None:
    context = context_of(tmp_path, GYM)
    finish(context, "problems", Counts(70, 55, {"duplicate": 15}), {})
    assert value(plan_parts(context, Assumed()), "problems", "problems") == "55"


def test_a_pilot_is_scaled_to_the_problems_that_are_assumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = context_of(tmp_path, GYM)
    context.directory("generate").mkdir(parents=True)
    figures = Forecast(20, 60, 0.6, 0.9, 3.0, 100.0, 18_000, 15_000, 21_000, 1000.0)
    write_forecast(context.directory("generate"), figures)
    run(context, assumed_from(["problems=600"]))
    printed = capsys.readouterr().out
    assert re.search(r"output tokens +180,000 +pilot of 20", printed)
    assert re.search(r"95% interval of them +150,000 to 210,000", printed)


def test_the_means_of_a_budget_are_those_of_all_outcomes() -> None:
    samples, rate = Samples(keep=2, max=5), 0.3
    tries = solved = kept = 0.0
    for outcome in itertools.product([0, 1], repeat=samples.max):
        weight = rate ** sum(outcome) * (1 - rate) ** (samples.max - sum(outcome))
        taken = next((n for n in range(samples.max + 1) if sum(outcome[:n]) == samples.keep), samples.max)
        tries += weight * taken
        solved += weight * (sum(outcome) >= samples.keep)
        kept += weight * min(sum(outcome), samples.keep, 1)
    assert expected_tries(rate, samples) == pytest.approx(tries)
    assert solved_share(rate, samples) == pytest.approx(solved)
    assert kept_per_problem(rate, samples, 1) == pytest.approx(kept)


@pytest.mark.parametrize(
    ("name", "count", "fits"),
    [
        ("qwen3-30b-a3b-thinking-2507", 1, True),
        ("deepseek-r1-0528", 8, False),
        ("deepseek-r1-0528", 16, True),
    ],
)
def test_layouts_hold_the_weights(name: str, count: int, fits: bool) -> None:
    size, _ = size_of(teacher_card(name))
    if not fits:
        with pytest.raises(RecipeError, match="cannot hold"):
            layout_for(size, 8000, Assumed(devices=count))
        return
    layout = layout_for(size, 8000, Assumed(devices=count))
    assert layout.replicas * layout.tensor_parallel <= count
    assert layout.sequences >= 8
    assert layout.tokens_per_second > 0


LATENT = BILLION.model_copy(update={"kv_heads": 1})


@pytest.mark.parametrize(
    ("kv_heads", "parallel", "copies"),
    [(None, 8, 1), (8, 8, 1), (8, 4, 1), (4, 8, 2), (1, 2, 2), (1, 8, 8)],
)
def test_a_device_holds_one_head_of_the_cache_at_least(
    kv_heads: int | None, parallel: int, copies: int
) -> None:
    """By hand: what the weights leave of a device, over the cache that it holds of a sequence."""
    size = BILLION.model_copy(update={"kv_heads": kv_heads})
    assumed = Assumed(devices=8, memory=4, concurrency=100_000)
    room = 4 * 2**30 * 0.9 - 2e9 / parallel
    share = 16 * 1024 * 2 * 1000 * copies / parallel
    assert replicate(size, 1000, parallel, assumed).sequences == int(room / share)
    assert replicate(size, 1000, parallel, assumed, value_bytes=1).sequences == int(room / (share / 2))


def test_latent_attention_gains_no_room_for_a_sequence_from_more_devices() -> None:
    """Before, 16 devices held 16 times the cache of one, and the bill of the largest teachers was too low."""
    assumed = Assumed(devices=16, concurrency=100_000)
    alone, shared = (replicate(LATENT, 8000, parallel, assumed).sequences for parallel in (1, 16))
    assert alone <= shared < 1.1 * alone
    size, _ = size_of(teacher_card("deepseek-r1-0528"))
    spread = size.model_copy(update={"kv_heads": None})
    rates = [layout_for(each, 30_000, assumed).tokens_per_second for each in (size, spread)]
    assert rates[0] < rates[1]


@pytest.mark.parametrize(
    ("arguments", "size"),
    [({}, 2), ({"kv_cache_dtype": "auto"}, 2), ({"kv_cache_dtype": "bfloat16"}, 2)]
    + [({"kv_cache_dtype": name}, 1) for name in ("fp8", "fp8_e4m3", "fp8_ds_mla", "int8_per_token_head")],
)
def test_a_value_of_the_cache_takes_what_the_card_s_engine_says(arguments: dict[str, str], size: int) -> None:
    card = teacher_card("qwen3-30b-a3b-thinking-2507")
    engine = card.engine.model_copy(update={"arguments": arguments})
    assert kv_bytes(card.model_copy(update={"engine": engine})) == size
    assert kv_bytes(student_card("qwen3-0.6b-base")) == 2


@pytest.mark.parametrize(
    ("teacher", "kib", "said"),
    [
        ("qwen3-30b-a3b-thinking-2507", "96.0 KiB", "layers x keys and values, 2 bytes each"),
        (
            "nemotron-3-super-120b-a12b",
            "4.0 KiB",
            r"layers x keys and values, 1 byte each; held 4 times, as 2 heads for KV cannot be spread over 8",
        ),
        ("deepseek-r1-0528", "68.6 KiB", r"2 bytes each; held 16 times, as 1 head for KV .* over 16 devices"),
    ],
)
def test_the_line_of_the_cache_names_its_bytes_and_its_copies(
    tmp_path: Path, teacher: str, kib: str, said: str
) -> None:
    """The layout is chosen by its rate: few devices of little memory leave one that holds the weights."""
    context = context_of(tmp_path, GYM, **{"generate.teacher": teacher})
    devices = 16 if teacher.startswith("deepseek") else 8
    memory = 40 if teacher.startswith("nemotron") else 80
    parts = plan_parts(context, Assumed(devices=devices, memory=memory))
    assert value(parts, "teacher", "cache a token") == kib
    part = next(part for part in parts if part.title == "teacher")
    assert re.search(said, next(line.source for line in part.lines if line.name == "cache a token"))


@pytest.mark.parametrize(
    ("more", "heads", "values"),
    [
        ({}, 4, 2 * 4 * 16),
        ({"num_key_value_heads": 2}, 2, 2 * 2 * 16),
        ({"num_key_value_heads": 4, "kv_lora_rank": 24, "qk_rope_head_dim": 8}, 1, 32),
        ({"kv_lora_rank": None}, 4, 2 * 4 * 16),
    ],
    ids=["as many as for queries", "grouped", "latent", "no rank"],
)
def test_the_heads_of_the_cache_are_read_from_the_configuration(
    tmp_path: Path, more: dict[str, Any], heads: int, values: int
) -> None:
    header = json.dumps({"w": {"shape": [2, 2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, **more}
    found = size_in(str(tmp_path), config)
    assert found is not None
    assert (found["kv_heads"], found["kv_values_per_layer"]) == (heads, values)


def test_training_hours_fall_with_devices_and_frozen_weights() -> None:
    full = training_hours(BILLION, 1e9, "full", Assumed())
    assert full == pytest.approx(6e18 / (8 * 989e12 * 0.15) / 3600)
    assert training_hours(BILLION, 1e9, "full", Assumed(devices=16)) == pytest.approx(full / 2)
    assert training_hours(BILLION, 1e9, "lora", Assumed()) == pytest.approx(full * 4 / 6)


def test_a_small_model_waits_for_its_steps_not_for_its_memory() -> None:
    size, _ = size_of(student_card("embedded-dense"))
    layout = layout_for(size, 300, Assumed(devices=1))
    assert 0.9 * 256 / 0.003 < layout.tokens_per_second < 256 / 0.003


@pytest.mark.parametrize("folder", ["teachers/embedded", "students/embedded"])
def test_the_parameters_of_a_checkpoint_are_those_that_it_holds(folder: str) -> None:
    from safetensors import safe_open

    with safe_open(ROOT / folder / "model.safetensors", "np") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (no mapping)
    count = sum(math.prod(shape) for shape in shapes)
    assert stored_weights(ROOT / folder) == (count, 2 * count)


@pytest.mark.parametrize("name", card_names("student") + card_names("teacher"))
def test_every_models_size_is_known(name: str) -> None:
    card = student_card(name) if name in card_names("student") else teacher_card(name)
    size, source = size_of(card)
    assert size.parameters >= size.active_parameters > 0
    assert source


def test_a_card_without_a_size_is_refused_by_its_model() -> None:
    card = student_card("qwen3-0.6b-base").model_copy(update={"size": None})
    with pytest.raises(RecipeError, match=r"Qwen/Qwen3-0.6B-Base: neither its config.json nor a `size:`"):
        size_of(card)


@pytest.mark.parametrize("name", card_names("task"))
def test_every_tasks_size_is_known_and_bears_no_identity(name: str) -> None:
    card = task_card(name)
    assert card.size is not None
    assert "size" in card.facts
    assert not {"size", "facts"} & set(card.identity)
    assert card.model_copy(update={"version": 99}).identity != card.identity


def test_a_plan_begins_with_this_machine_and_ends_with_all_that_can_be_assumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(context_of(tmp_path, GYM), assumed_from(["devices=2"]))
    printed = capsys.readouterr().out
    assert re.match(r"this machine\n  cores +\d+   .+\n  memory +[\d,]+\.\d GiB   ", printed)
    listed = re.findall(r"^  (\w+) +\S+   ", printed.partition("--assume name=value\n")[2], re.MULTILINE)
    assert listed == list(Assumed.__dataclass_fields__)
    assert re.search(r"^  devices +2   how many devices work", printed, re.MULTILINE)


def test_nothing_that_takes_time_is_called_no_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(context_of(tmp_path, "{reasoning_gym: chain_sum, size: 2}"), Assumed())
    printed = capsys.readouterr().out
    assert re.search(r"hours +0\.0+[1-9]\d ", printed)
    assert not re.search(r"\b0\.00\b", printed)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (0.00000123, "0.0000012"), (0.5, "0.50"), (0.999, "1.00"), (1234.5, "1,234.50")],
)
def test_numbers_below_one_keep_two_digits(value: float, said: str) -> None:
    assert digits(value) == said
