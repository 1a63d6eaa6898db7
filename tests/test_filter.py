"""The filter stage: conservation counted from its files, joins, faults, selection, determinism."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cards import FOLDERS, student_card
from pipeline.errors import RecipeError, StageError
from pipeline.examples import tokenizer_file
from pipeline.filter import run
from pipeline.lookup import VerdictReader
from pipeline.mix import chat_of, mix_lines
from pipeline.recipe import MixSource, Recipe
from pipeline.records import to_json
from pipeline.stage import Context, read_manifest
from tests.conftest import ROOT
from tests.filter_fixtures import (
    Stages,
    context_of,
    make_problem,
    make_recipe,
    make_trace,
    make_verdict,
    ordinary_stages,
    read_rows,
    write_stages,
)
from tests.students_fixtures import POINTER

__all__ = ["context_of"]

MakeContext = Callable[[Recipe], Context]


def filtered(context: Context, stages: Stages) -> Path:
    """Write the stages before, run filter in this process, check that its files add up."""
    write_stages(context.runs, stages)
    run(context, workers=0)
    directory = context.directory("filter")
    conserve(directory, len([line for line in stages.traces if line.strip()]))
    return directory


def conserve(directory: Path, num_in: int) -> None:
    """in == kept + dropped + failed, and each file has the rows that the manifest states."""
    rows = {name: read_rows(directory / name) for name in ("kept.jsonl", "dropped.jsonl", "failed.jsonl")}
    assert sum(map(len, rows.values())) == num_in
    manifest = read_manifest(directory)
    assert manifest is not None
    counts = manifest["counts"]
    assert counts["in"] == num_in
    assert counts["kept"] == len(rows["kept.jsonl"])
    assert counts["dropped"] == Counter(row["reason"] for row in rows["dropped.jsonl"])
    assert counts["failed"] == Counter(row["kind"] for row in rows["failed.jsonl"])
    keys = [
        (row["problem_id"], row["sample"])
        for name in ("kept.jsonl", "dropped.jsonl")
        for row in rows[name]
        if row["kind"] == "trace" or name == "kept.jsonl"  # a dropped row of the mix is named by its line
    ]
    assert len(set(keys)) == len(keys)


def test_every_trace_is_kept_or_dropped_for_one_reason(context_of: MakeContext) -> None:
    directory = filtered(context_of(make_recipe()), ordinary_stages())
    dropped = read_rows(directory / "dropped.jsonl")
    assert Counter((row["rule"], row["reason"]) for row in dropped) == {
        ("correct", "wrong"): 6,
        ("finished", "truncated"): 6,
    }
    kept = read_rows(directory / "kept.jsonl")
    assert {row["sample"] for row in kept} == {0, 2}
    assert all(row["verdict"]["status"] == "correct" and row["licence"] == "MIT" for row in kept)
    assert all(row["verdict"] and row["question"] and row["gold"] for row in dropped)


def test_examples_hold_the_thinking_once_in_the_students_tags(context_of: MakeContext) -> None:
    import datasets

    directory = filtered(context_of(make_recipe()), ordinary_stages())
    rows = datasets.load_dataset("parquet", data_files=str(directory / "examples.parquet"), split="train")
    assert len(rows) == 12
    row = next(row for row in rows if row["sample"] == 2 and row["source"] == "sums")
    user, assistant = row["messages"]
    assert user["role"] == "user"
    assert user["content"].endswith("within \\boxed{}.")
    assert assistant["content"].startswith("<think>\nword word word \n</think>\n\n\\boxed{")
    assert row["kind"] == "trace"
    # the embedded student reads characters, so tokens are about as many as characters
    assert len(assistant["content"]) * 0.5 < row["trained_tokens"] <= len(assistant["content"])
    assert row["num_tokens"] > row["trained_tokens"]


def test_a_second_run_does_nothing_and_a_changed_recipe_is_refused(
    context_of: MakeContext, caplog: pytest.LogCaptureFixture
) -> None:
    context = context_of(make_recipe())
    directory = filtered(context, ordinary_stages())
    before = (directory / "manifest.json").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        run(context)
    assert "filter: up to date" in caplog.text
    assert (directory / "manifest.json").stat().st_mtime_ns == before
    changed = make_recipe(filter={"select": {"per_problem": 1}})
    with pytest.raises(StageError, match=r"config\.filter\.select\.per_problem: 2 -> 1"):
        run(Context(changed, context.runs, context.start))


def test_worker_processes_change_nothing(tmp_path: Path, context_of: MakeContext) -> None:
    recipe, digests = make_recipe(), []
    for workers in (0, 2):
        context = Context(recipe, tmp_path / str(workers), context_of(recipe).start)
        write_stages(context.runs, ordinary_stages(200))
        run(context, workers=workers)
        conserve(context.directory("filter"), 800)
        digests.append(hashlib.sha256((context.directory("filter") / "examples.parquet").read_bytes()))
    assert digests[0].hexdigest() == digests[1].hexdigest()


def test_the_order_of_traces_does_not_change_the_examples(tmp_path: Path, context_of: MakeContext) -> None:
    recipe = make_recipe(filter={"select": {"per_problem": 1, "prefer": "random"}})
    stages = ordinary_stages(20)
    digests = set()
    for number, order in enumerate((1, -1)):
        context = Context(recipe, tmp_path / str(number), context_of(recipe).start)
        directory = filtered(context, Stages(stages.problems, stages.traces[::order], stages.verdicts))
        digests.add(hashlib.sha256((directory / "examples.parquet").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_faulty_lines_are_counted_by_kind_and_named(
    context_of: MakeContext, caplog: pytest.LogCaptureFixture
) -> None:
    stages = ordinary_stages()
    stranger = to_json(make_trace(make_problem(999), 0))
    values = json.loads(stages.traces[0])
    faults = [
        stages.traces[5][:40],
        stranger,
        stages.traces[0],
        json.dumps({**values, "sample": 9, "answer": None}),
        json.dumps({**values, "sample": -1}),
        "[1, 2]",
        "",
    ]
    directory = filtered(
        context_of(make_recipe()), Stages(stages.problems, [*stages.traces, *faults], stages.verdicts)
    )
    failed = read_rows(directory / "failed.jsonl")
    assert {(row["line"] - 24, row["kind"]) for row in failed} == {
        (1, "broken_line"),
        (2, "no_problem"),
        (3, "duplicate_key"),
        (4, "broken_line"),
        (5, "broken_line"),
        (6, "broken_line"),
    }
    assert "traces-00000.jsonl:26: no_problem" in caplog.text
    assert "$.answer" in next(row["detail"] for row in failed if row["line"] == 28)


@pytest.mark.parametrize(
    ("thinking", "kind"),
    [("\udcff", "broken_line"), ("a\x00b", "broken_line"), ("\\ud800", "broken_line"), ("\\u0000", "kept")],
    ids=["bad UTF-8", "raw NUL", "half a pair", "escaped NUL"],
)
@pytest.mark.parametrize("with_verdict", [True, False], ids=["verdict", "none"])
def test_no_byte_of_a_trace_ends_the_run(
    context_of: MakeContext, thinking: str, kind: str, with_verdict: bool
) -> None:
    stages = ordinary_stages(1)
    trace = make_trace(stages.problems[0], 9, thinking="HERE")
    verdicts = [*stages.verdicts, *([to_json(make_verdict(trace))] if with_verdict else [])]
    traces = [*stages.traces, to_json(trace).replace("HERE", thinking)]
    recipe = make_recipe(filter={"select": {"per_problem": 4}})
    directory = filtered(context_of(recipe), Stages(stages.problems, traces, verdicts))
    failed = read_rows(directory / "failed.jsonl")
    assert [(row["kind"], row["line"]) for row in failed] == ([] if kind == "kept" else [(kind, 5)])


@pytest.mark.parametrize("value", ['"\udcff"', "1e999", "1"])
def test_a_field_that_no_trace_has_is_a_broken_line(context_of: MakeContext, value: str) -> None:
    stages = ordinary_stages(1)
    trace = to_json(make_trace(stages.problems[0], 9))[:-1] + f', "more": {value}}}'
    directory = filtered(
        context_of(make_recipe()), Stages(stages.problems, [*stages.traces, trace], stages.verdicts)
    )
    [failed] = read_rows(directory / "failed.jsonl")
    assert (failed["kind"], failed["line"]) == ("broken_line", 5)
    assert "unknown field `more`" in failed["detail"]


def test_a_verdict_of_bad_utf8_is_made_again(context_of: MakeContext) -> None:
    stages = ordinary_stages(1)
    verdicts = [stages.verdicts[0].replace("equal", "\udcff"), *stages.verdicts[1:]]
    directory = filtered(context_of(make_recipe()), Stages(stages.problems, stages.traces, verdicts))
    manifest = read_manifest(directory)
    assert manifest is not None
    assert manifest["usage"]["verified_again"] == 1


@pytest.mark.parametrize("form", ["{}", "0x{}", " {}", "{}_", "-1", "", "f{}", "UPPER"])
def test_the_id_of_a_problem_has_one_spelling(context_of: MakeContext, form: str) -> None:
    stages = ordinary_stages(1)
    held = stages.problems[0].id
    wanted = held.upper() if form == "UPPER" else form.format(held)
    trace = to_json(make_trace(stages.problems[0], 9)).replace(held, wanted)
    assert held != held.upper()
    directory = filtered(
        context_of(make_recipe()), Stages(stages.problems, [*stages.traces, trace], stages.verdicts)
    )
    kinds = [row["kind"] for row in read_rows(directory / "failed.jsonl")]
    assert kinds == ([] if form == "{}" else ["no_problem"])


def test_a_student_whose_id_the_hub_cannot_have_is_named() -> None:
    card = student_card("qwen3-0.6b-base").model_copy(update={"model": "not a hub id!"})
    with pytest.raises(
        RecipeError, match=r"not a hub id!: its tokenizer\.json cannot be fetched \(Repo id must"
    ):
        tokenizer_file(card)


@pytest.mark.parametrize("text", [POINTER, '{"version": "1.0", "tru', "", "[1]", "{}"])
def test_a_tokenizer_that_cannot_be_read_is_named_before_a_worker_starts(
    context_of: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    cards, student = tmp_path / "cards", tmp_path / "student"
    cards.mkdir()
    student.mkdir()
    whole = (ROOT / student_card("embedded-dense").model / "tokenizer.json").read_text()
    (student / "tokenizer.json").write_text(text)
    (student / "model.safetensors").write_bytes(b"")
    values = {**student_card("embedded-dense").model_dump(), "model": str(student)}
    (cards / "mine.yaml").write_text(json.dumps(values))
    monkeypatch.setitem(FOLDERS, "student", cards)
    context = context_of(make_recipe(train={"student": "mine"}))
    write_stages(context.runs, ordinary_stages())
    with pytest.raises(
        RecipeError, match=r"student/tokenizer\.json: cannot be read as a tokenizer \(.*git lfs"
    ):
        run(context, workers=2)
    (student / "tokenizer.json").write_text(whole)
    run(context, workers=0)  # once mended, the same command is enough
    conserve(context.directory("filter"), 24)


def test_missing_and_outdated_verdicts_are_made_again(context_of: MakeContext) -> None:
    stages = ordinary_stages(3)
    outdated = [
        line.replace('"version": "', '"version": "0.') if number == 1 else line
        for number, line in enumerate(stages.verdicts)
    ]
    verdicts = [*outdated[:4], "{broken", *outdated[6:]]
    directory = filtered(context_of(make_recipe()), Stages(stages.problems, stages.traces, verdicts))
    manifest = read_manifest(directory)
    assert manifest is not None
    assert manifest["usage"]["verified_again"] == 3
    again = [row for row in read_rows(directory / "dropped.jsonl") if row["sample"] == 1]
    assert {row["verdict"]["status"] for row in again} == {"wrong"}


def test_verdicts_may_stand_in_another_order(tmp_path: Path) -> None:
    traces = [make_trace(make_problem(n), 0) for n in range(5)]
    path = tmp_path / "verdicts.jsonl"
    path.write_text("".join(to_json(make_verdict(trace)) + "\n" for trace in reversed(traces)))
    reader = VerdictReader(path)
    for trace in traces:
        line = reader.get((trace.problem_id, 0))
        assert line is not None
        assert json.loads(line)["problem_id"] == trace.problem_id
    assert reader.get((traces[0].problem_id, 0)) is None


def test_nothing_left_is_an_error_that_says_why(context_of: MakeContext) -> None:
    context = context_of(make_recipe(filter={"rules": [{"max_tokens": {"limit": 1}}]}))
    write_stages(context.runs, ordinary_stages())
    with pytest.raises(StageError, match=r"none of 24 traces is left \(dropped: {'too_long': 24}"):
        run(context, workers=0)


def test_unfinished_stages_before_are_named(context_of: MakeContext) -> None:
    with pytest.raises(
        StageError, match=r"problems has not run\. Run: make problems RECIPE=recipes/small\.yaml"
    ):
        run(context_of(make_recipe()))


def test_an_eval_question_inside_a_trace_drops_it(context_of: MakeContext) -> None:
    stages = ordinary_stages(2)
    question = "How many of the blue marbles that Ann holds are left when she has given two to Bob?"
    protected = [{"task": "t", "id": "1", "question": question, "procedural": False}]
    leaking = to_json(make_trace(stages.problems[0], 8, thinking=f"As in: {question}"))
    recipe = make_recipe(filter={"rules": ["not_contaminated", "correct"]})
    directory = filtered(
        context_of(recipe), Stages(stages.problems, [*stages.traces, leaking], stages.verdicts, protected)
    )
    [row] = [row for row in read_rows(directory / "dropped.jsonl") if row["reason"] == "contaminated"]
    assert row["sample"] == 8
    assert row["detail"] == "t: how many of the blue marbles that ann"


def test_a_mix_is_drawn_by_weight_and_marked(context_of: MakeContext, tmp_path: Path) -> None:
    chats = [
        {"conversations": [{"from": "human", "value": f"Hi {n}"}, {"from": "gpt", "value": f"Hello {n}"}]}
        for n in range(30)
    ]
    lines = [
        *map(json.dumps, chats),
        "{torn",
        json.dumps({"conversations": [{"from": "human", "value": "x"}]}),
    ]
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(lines))
    entry = {
        "name": "chat",
        "path": str(path),
        "messages": "conversations",
        "weight": 0.5,
        "licence": "CC0-1.0",
    }
    context = context_of(make_recipe(filter={"mix": [entry]}))
    write_stages(context.runs, ordinary_stages())
    run(context, workers=0)
    directory = context.directory("filter")
    manifest = read_manifest(directory)
    assert manifest is not None
    assert manifest["counts"]["in"] == 24 + 32
    assert manifest["counts"]["dropped"]["mix_not_drawn"] == 24
    assert manifest["counts"]["dropped"]["mix_no_chat"] == 1
    assert manifest["counts"]["failed"] == {"broken_line": 1}
    assert manifest["notes"]["mix"] == {"chat": 6}
    kept = read_rows(directory / "kept.jsonl")
    assert len(kept) == 18
    mixed = [row for row in kept if row["kind"] == "mix"]
    assert len(mixed) == 6
    assert {row["licence"] for row in mixed} == {"CC0-1.0"}
    assert [turn["role"] for turn in mixed[0]["messages"]] == ["user", "assistant"]
    num_rows = sum(len(read_rows(directory / f"{name}.jsonl")) for name in ("kept", "dropped", "failed"))
    assert num_rows == manifest["counts"]["in"]


def test_no_chat_is_mixed_in_twice(context_of: MakeContext, tmp_path: Path) -> None:
    """The second of two equal ones is a counted drop, in one source and across sources."""
    chats = [[{"role": "user", "content": text}, ANSWER] for text in ("a", "b", "a", "c", "b")]
    mix = []
    for name, rows in (("first", chats), ("second", [*chats[:2], [USER, ANSWER]])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"messages": r}) + "\n" for r in rows))
        path = str(tmp_path / f"{name}.jsonl")
        mix.append({"name": name, "path": path, "weight": 1.0, "licence": "CC0-1.0"})
    context = context_of(make_recipe(filter={"mix": mix}))
    write_stages(context.runs, ordinary_stages())
    run(context, workers=0)
    directory = context.directory("filter")
    conserve(directory, 24 + 5 + 3)
    manifest = read_manifest(directory)
    assert manifest is not None
    assert manifest["notes"]["mix"] == {"first": 3, "second": 1}
    repeated = [row for row in read_rows(directory / "dropped.jsonl") if row["reason"] == "mix_duplicate"]
    assert [(row["source"], row["line"]) for row in repeated] == [
        ("first", 3),
        ("first", 5),
        ("second", 1),
        ("second", 2),
    ]


USER, ANSWER, SYSTEM = ({"role": role, "content": "Hello."} for role in ("user", "assistant", "system"))


@pytest.mark.parametrize(
    "chat",
    [
        [USER],
        [USER, ANSWER, USER],
        [USER, USER, ANSWER],
        [USER, ANSWER, ANSWER],
        [SYSTEM, ANSWER],
        [ANSWER, USER, ANSWER],
        [USER, ANSWER, SYSTEM, USER, ANSWER],
        [SYSTEM, SYSTEM, USER, ANSWER],
        [USER, {"role": "assistant", "content": " "}],
        [USER, {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]}],
        [{"role": ["user"], "content": "Hello."}, ANSWER],
        [{"role": "user", "content": "\ud800"}, ANSWER],
        [],
        None,
        5,
        "Hello.",
        {"user": "Hello."},
    ],
    ids=str,
)
def test_what_no_trainer_takes_is_no_chat(tmp_path: Path, chat: object) -> None:
    path = tmp_path / "chat.jsonl"
    good = [[USER, ANSWER], [SYSTEM, USER, ANSWER, USER, ANSWER]]
    path.write_text("".join(json.dumps({"messages": c}) + "\n" for c in (chat, *good)))
    source = MixSource(name="chat", path=str(path), weight=1.0, licence="CC0-1.0")
    assert [chat_of(source, line) for line in mix_lines(source)] == [None, *good]


@pytest.mark.parametrize("name", ["", "a b", "../chat", "chat (mix)", "a" * 101])
def test_the_name_of_a_mix_is_as_safe_as_that_of_a_source(name: str) -> None:
    mix = [{"name": name, "path": "chat.jsonl", "weight": 1.0, "licence": "CC0-1.0"}]
    with pytest.raises(RecipeError, match=r"mix\[0\]\.name: "):
        make_recipe(filter={"mix": mix})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": "chat"}, r"chat.jsonl:1: mix chat: there is no column 'chat'"),
        ({"path": "nowhere/chat.jsonl"}, r"nowhere/chat.jsonl: there is no such file"),
    ],
    ids=["column", "file"],
)
def test_a_mix_that_cannot_be_read_is_an_error(
    context_of: MakeContext, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text('{"messages": []}\n')
    entry = {"name": "chat", "path": str(path), "weight": 1.0, "licence": "CC0-1.0", **change}
    context = context_of(make_recipe(filter={"mix": [entry]}))
    write_stages(context.runs, ordinary_stages())
    with pytest.raises(RecipeError, match=message):
        run(context, workers=0)
