"""The filter stage: conservation counted from its files, joins, faults, selection, determinism."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.context import Context
from pipeline.errors import RecipeError, StageError
from pipeline.filter.examples import tokenizer_file
from pipeline.filter.joins import VerdictReader
from pipeline.filter.mix import chat_of, mix_lines
from pipeline.filter.stage import run
from pipeline.flags import WorkerFlags
from pipeline.recipe.cards import NO_THINKING, Cards, Tags, student_card
from pipeline.recipe.schema import Recipe
from pipeline.recipe.sources import MixSource
from pipeline.records import Problem, Verdict, problem_id, read_examples, to_json
from pipeline.render import Split, join_response
from pipeline.run.contract import Manifest, read_manifest
from pipeline.verify import table
from pipeline.verify.basis import basis_of, tags_digest
from tests.conftest import ROOT
from tests.filter_fixtures import (
    Stages,
    context_of,
    filtered_run,
    make_context,
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

ONE = WorkerFlags(workers=1)


def filtered(context: Context, stages: Stages) -> Path:
    """Write the stages before, run filter in this process, check that its files add up."""
    write_stages(context.runs, stages, context.recipe.name)
    run(context, ONE)
    directory = context.directory("filter")
    conserve(directory, len([line for line in stages.traces if line.strip()]))
    return directory


def manifest_of(directory: Path) -> Manifest:
    manifest = read_manifest(directory)
    assert manifest is not None
    return manifest


def conserve(directory: Path, num_in: int) -> None:
    """in == kept + dropped + failed, and each file has the rows that the manifest states."""
    rows = {name: read_rows(directory / name) for name in ("kept.jsonl", "dropped.jsonl", "failed.jsonl")}
    assert sum(map(len, rows.values())) == num_in
    manifest = manifest_of(directory)
    counts = manifest.counts
    assert counts.num_in == num_in
    assert counts.kept == len(rows["kept.jsonl"])
    assert counts.dropped == Counter(row["reason"] for row in rows["dropped.jsonl"])
    assert counts.failed == Counter(row["kind"] for row in rows["failed.jsonl"])
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


def test_what_train_would_refuse_is_not_kept(context_of: MakeContext, tmp_path: Path) -> None:
    """A thinking tag, the student's end of turn or another special token as text, in a trace and in a chat of
    the mix, also in its thinking; train drops nothing of what is kept."""
    from students.examples import build
    from students.format import load_format

    problems = [make_problem(number) for number in range(16)]
    marks = {1: "<think>", 2: "</think>", 3: "<|im_end|>", 6: "<|im_start|>"}
    answers = {4: "\\boxed{5}</think>", 5: "\\boxed{6}<|im_end|>", 7: "\\boxed{8}<|endoftext|>"}
    traces = [
        to_json(
            replace(
                make_trace(problem, 0, thinking=f"One {marks.get(number, '')} more."),
                response=f"One {marks.get(number, '')} more.\n</think>\n\n"
                + answers.get(number, f"\\boxed{{{problem.gold}}}"),
            )
        )
        for number, problem in enumerate(problems)
    ]
    verdicts = [to_json(make_verdict(problem, 0)) for problem in problems]
    said = [("", "a <think> b"), ("", "a <|endoftext|> b"), ("a </think> b", "c"), ("", "fine")]
    chats = [{"prompt": f"Say {n}.", "thinking": a, "response": b} for n, (a, b) in enumerate(said)]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    mix = {"name": "chat", "path": str(path), "messages": None, "weight": 0.1, "licence": "MIT"}
    mix["thinking"] = "thinking"
    context = context_of(make_recipe(filter={"rules": ["finished", "correct"], "mix": [mix]}))
    write_stages(context.runs, Stages(problems, traces, verdicts))
    run(context, ONE)
    manifest = manifest_of(context.directory("filter"))
    strays = {"stray_thinking_tag": 3, "stray_end_of_turn": 2, "stray_special_token": 2}
    assert manifest.counts.dropped == {**strays, "mix_stray": 3}
    assert manifest.notes["dropped_by_rule"] == {"student": 7, "mix": 3}
    style = load_format(context.student_card, context.base)
    examples = read_examples(context.directory("filter") / "examples.parquet")
    data = build(examples, style, context.recipe.train, 0)
    assert (data.num_in, data.dropped) == (10, {})


def test_examples_hold_thinking_and_answer_apart(context_of: MakeContext) -> None:
    directory = filtered(context_of(make_recipe()), ordinary_stages())
    examples = list(read_examples(directory / "examples.parquet"))
    assert len(examples) == 12
    example = next(e for e in examples if e.sample == 2 and e.source == "sums")
    user, assistant = example.messages
    assert user["role"] == "user"
    assert user["content"].endswith("within \\boxed{}.")
    assert assistant["content"].startswith("\\boxed{")
    assert assistant["reasoning_content"] == "word word word "
    assert example.kind == "trace"
    # the embedded student reads characters, so tokens are about as many as characters
    text = join_response(Split(assistant["reasoning_content"], assistant["content"], "closed"), Tags())
    assert len(text) * 0.5 < example.trained_tokens <= len(text)
    assert example.num_tokens > example.trained_tokens


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ("<think>\nHm.\n</think>\n\nIt is 1.", {"content": "It is 1.", "reasoning_content": "Hm."}),
        ("Hm.</think>It is 1.", {"content": "It is 1.", "reasoning_content": "Hm."}),
        ("Hm, and so on", {"content": "", "reasoning_content": "Hm, and so on"}),
        ("</think>It is 1.", {"content": "It is 1.", "reasoning_content": ""}),
    ],
    ids=["tags", "tag in the prompt", "unclosed", "empty"],
)
def test_a_response_becomes_an_example(
    context_of: MakeContext, response: str, message: dict[str, str]
) -> None:
    problem = make_problem(0)
    trace = make_trace(problem, 0, response=response)
    context = context_of(make_recipe(filter={"rules": ["finished"]}))
    directory = filtered(context, Stages([problem], [to_json(trace)], [to_json(make_verdict(problem, 0))]))
    [example] = read_examples(directory / "examples.parquet")
    assert example.messages[-1] == {"role": "assistant", **message}


def test_a_teacher_without_thinking_gives_examples_without_thinking(context_of: MakeContext) -> None:
    problem, tags = make_problem(0), Tags(opened_by_prompt=False)
    context = with_tags(context_of(make_recipe(filter={"rules": ["finished", "correct"]})), tags)
    trace = make_trace(problem, 0, response="So \\boxed{1}.")
    directory = filtered(context, Stages([problem], [to_json(trace)]))
    [example] = read_examples(directory / "examples.parquet")
    assert example.messages[-1] == {"role": "assistant", "content": "So \\boxed{1}."}


def test_a_teacher_that_writes_no_block_teaches_a_student_that_thinks(context_of: MakeContext) -> None:
    problem = make_problem(0)
    context = with_tags(context_of(make_recipe()), NO_THINKING)  # closed_thinking is among the rules
    trace = make_trace(problem, 0, response="0 + 1 is 1.\n\nSo \\boxed{1}.")
    directory = filtered(context, Stages([problem], [to_json(trace)]))
    [example] = read_examples(directory / "examples.parquet")
    said = {"content": "So \\boxed{1}.", "reasoning_content": "0 + 1 is 1."}
    assert example.messages[-1] == {"role": "assistant", **said}
    assert example.trained_tokens > 10


def with_tags(context: Context, tags: Tags) -> Context:
    """The context with another card of the teacher."""
    cards, name = context.cards, context.recipe.generate.teacher
    card = cards.teachers[name].model_copy(update={"thinking": tags})
    return replace(context, cards=Cards({name: card}, cards.students, cards.tasks))


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
    changed = make_recipe(filter={"select": {"per_problem": 3}})
    with pytest.raises(StageError, match=r"config\.filter\.select\.per_problem: 2 -> 3"):
        run(replace(context, recipe=changed))


def test_worker_processes_change_nothing(tmp_path: Path) -> None:
    recipe, digests = make_recipe(), []
    for workers in (1, 2):
        context = filtered_run(recipe, tmp_path / str(workers), ordinary_stages(200), workers)
        conserve(context.directory("filter"), 800)
        digests.append(hashlib.sha256((context.directory("filter") / "examples.parquet").read_bytes()))
    assert digests[0].hexdigest() == digests[1].hexdigest()


def test_the_order_of_traces_does_not_change_the_examples(tmp_path: Path) -> None:
    recipe = make_recipe(filter={"select": {"per_problem": 1, "prefer": "random"}})
    stages = ordinary_stages(20)
    digests = set()
    for number, order in enumerate((1, -1)):
        context = make_context(recipe, tmp_path / str(number))
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
        json.dumps({**values, "sample": 9, "response": None}),
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
    assert "$.response" in next(row["detail"] for row in failed if row["line"] == 28)


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
    verdicts = [*stages.verdicts, *([to_json(make_verdict(stages.problems[0], 9))] if with_verdict else [])]
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
    manifest = manifest_of(directory)
    assert manifest.usage.verified_again == 1


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
    context_of: MakeContext, tmp_path: Path, text: str
) -> None:
    student = tmp_path / "student"
    student.mkdir()
    context = context_of(make_recipe())
    card = context.student_card
    whole = (ROOT / card.model / "tokenizer.json").read_text()
    (student / "tokenizer.json").write_text(text)
    (student / "model.safetensors").write_bytes(b"")
    mine = {context.recipe.train.student: card.model_copy(update={"model": str(student)})}
    context = replace(context, cards=Cards(context.cards.teachers, mine, {}))
    write_stages(context.runs, ordinary_stages())
    with pytest.raises(
        RecipeError, match=r"student/tokenizer\.json: cannot be read as a tokenizer \(.*git lfs"
    ):
        run(context, WorkerFlags(workers=2))
    (student / "tokenizer.json").write_text(whole)
    run(context, ONE)  # once the file is whole, the same command is enough
    conserve(context.directory("filter"), 24)


def test_missing_and_outdated_verdicts_are_made_again(context_of: MakeContext) -> None:
    stages = ordinary_stages(3)
    outdated = [
        line.replace('"version": "', '"version": "0.') if number == 1 else line
        for number, line in enumerate(stages.verdicts)
    ]
    verdicts = [*outdated[:4], "{broken", *outdated[6:]]
    directory = filtered(context_of(make_recipe()), Stages(stages.problems, stages.traces, verdicts))
    manifest = manifest_of(directory)
    assert manifest.usage.verified_again == 3
    again = [row for row in read_rows(directory / "dropped.jsonl") if row["sample"] == 1]
    assert {row["verdict"]["status"] for row in again} == {"wrong"}


@pytest.mark.parametrize("tags", ["0" * 8, tags_digest(Tags(close="</thought>"))], ids=["unknown", "before"])
def test_verdicts_of_other_thinking_tags_are_made_again(context_of: MakeContext, tags: str) -> None:
    stages = ordinary_stages(3)
    today = tags_digest(Tags())
    verdicts = [line.replace(f"-{today}", f"-{tags}") for line in stages.verdicts]
    directory = filtered(context_of(make_recipe()), Stages(stages.problems, stages.traces, verdicts[:5]))
    assert manifest_of(directory).usage.verified_again == 12
    rows = [row for name in ("kept", "dropped") for row in read_rows(directory / f"{name}.jsonl")]
    bases = {problem.id: basis_of(problem, today) for problem in stages.problems}
    assert all(row["verdict"]["basis"] == bases[row["problem_id"]] for row in rows)


def test_verdicts_on_a_gold_that_was_corrected_since_are_made_again(context_of: MakeContext) -> None:
    stages = ordinary_stages(3)
    corrected = [replace(problem, gold=f"{problem.gold}000") for problem in stages.problems]
    context = context_of(make_recipe())
    write_stages(context.runs, Stages(corrected, stages.traces, stages.verdicts))
    with pytest.raises(
        StageError, match=r"none of 12 traces is left \(dropped: \{'wrong': 9, 'truncated': 3\}"
    ):
        run(context, ONE)


def test_a_corrected_tag_is_what_a_new_filter_splits_by(context_of: MakeContext) -> None:
    """Traces sampled between other tags, with verdicts of the card's wrong ones."""
    problem = make_problem(0)
    traces = [to_json(make_trace(problem, n, response=f"Hm{n}.</thought>\\boxed{{1}}")) for n in range(2)]
    wrong = [to_json(make_verdict(problem, n, "unverifiable")) for n in range(2)]
    context = with_tags(context_of(make_recipe()), Tags(open="<thought>", close="</thought>"))
    directory = filtered(context, Stages([problem], traces, wrong))
    assert manifest_of(directory).usage.verified_again == 2
    examples = list(read_examples(directory / "examples.parquet"))
    assert {example.messages[-1]["reasoning_content"] for example in examples} == {"Hm0.", "Hm1."}


def test_a_verdict_of_any_rests_on_the_verifier_that_compares(
    context_of: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    question, gold = "Name a root of x^2 = 4!", '["2", "-2"]'
    problem = Problem(problem_id(question), question, gold, "any", "roots", "MIT", {})
    basis = basis_of(problem, tags_digest(Tags()))
    version = table.VERSIONS["any"]
    verdict = Verdict(problem.id, 0, "correct", basis, "equal", "2", "string", "any", version, 0.001)
    trace = make_trace(problem, 0, "-2")
    stages = Stages([problem], [to_json(trace)], [to_json(verdict)])
    directory = filtered(context_of(make_recipe(name="same")), stages)
    assert manifest_of(directory).usage.verified_again == 0
    monkeypatch.setitem(table.VERSIONS, "math", "999")
    directory = filtered(context_of(make_recipe(name="newer")), stages)
    assert manifest_of(directory).usage.verified_again == 1


def test_what_is_no_part_of_the_experiment_leaves_it_up_to_date(
    context_of: MakeContext, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rules = ["finished", "closed_thinking", "correct"]
    context = context_of(make_recipe())
    filtered(context, ordinary_stages())
    spelled = make_recipe(
        filter={
            "rules": [{rules[0]: {}}, {rules[1]: {"required": True}}, rules[2]],
            "select": {"per_problem": 2, "prefer": "shortest", "difficulty": []},
            "mix": [],
        }
    )
    monkeypatch.setitem(table.VERSIONS, "newest", "1")
    corrected = with_tags(replace(context, recipe=spelled), Tags(close="</thought>"))
    with caplog.at_level("INFO"):
        run(corrected)
    assert "filter: up to date" in caplog.text


def test_a_new_version_of_the_verifier_in_use_is_another_experiment(
    context_of: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(make_recipe())
    filtered(context, ordinary_stages())
    monkeypatch.setitem(table.VERSIONS, "reasoning_gym", "999")
    with pytest.raises(StageError, match=r'config\.verifiers\.reasoning_gym: "\d+" -> "999"'):
        run(context)


def test_verdicts_may_stand_in_another_order(tmp_path: Path) -> None:
    problems = [make_problem(n) for n in range(5)]
    path = tmp_path / "verdicts.jsonl"
    path.write_text("".join(to_json(make_verdict(problem, 0)) + "\n" for problem in reversed(problems)))
    reader = VerdictReader(path, lambda verdict: verdict.problem_id != problems[3].id)
    for problem in problems:
        line = reader.get((problem.id, 0))
        assert (json.loads(line)["problem_id"] if line else None) == (
            None if problem is problems[3] else problem.id
        )
    assert reader.get((problems[0].id, 0)) == b""


def test_nothing_left_says_why_and_a_changed_filter_is_run_as_it_advises(context_of: MakeContext) -> None:
    context = context_of(make_recipe(filter={"rules": [{"max_tokens": {"limit": 1}}]}))
    write_stages(context.runs, ordinary_stages())
    with pytest.raises(
        StageError,
        match=r"none of 24 traces is left \(dropped: {'too_long': 24}.*then run make filter again",
    ):
        run(context, ONE)
    assert len(read_rows(context.directory("filter") / "dropped.jsonl")) == 24  # which the message names
    run(replace(context, recipe=make_recipe()), ONE)
    conserve(context.directory("filter"), 24)


def test_an_unknown_rule_is_named_before_anything_is_written(context_of: MakeContext) -> None:
    context = context_of(make_recipe(filter={"rules": ["corect", {"min_tokens": {}}]}))
    write_stages(context.runs, ordinary_stages())
    with pytest.raises(
        RecipeError, match=r"^recipes/small\.yaml: filter\.rules\[0\]: .*'correct'\?.*; filter\.rules\[1\]: "
    ):
        run(context, ONE)
    assert not context.directory("filter").exists()


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
    run(context, ONE)
    directory = context.directory("filter")
    manifest = manifest_of(directory)
    assert manifest.counts.num_in == 24 + 32
    assert manifest.counts.dropped["mix_not_drawn"] == 24
    assert manifest.counts.dropped["mix_no_chat"] == 1
    assert manifest.counts.failed == {"broken_line": 1}
    assert manifest.notes["mix"] == {"chat": 6}
    kept = read_rows(directory / "kept.jsonl")
    assert len(kept) == 18
    mixed = [row for row in kept if row["kind"] == "mix"]
    assert len(mixed) == 6
    assert {row["licence"] for row in mixed} == {"CC0-1.0"}
    assert [turn["role"] for turn in mixed[0]["messages"]] == ["user", "assistant"]
    num_rows = sum(len(read_rows(directory / f"{name}.jsonl")) for name in ("kept", "dropped", "failed"))
    assert num_rows == manifest.counts.num_in


def test_a_mix_of_which_nothing_can_be_used_is_an_error(context_of: MakeContext, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text('{"messages": []}\n{"messages": []}\nno JSON\n')
    entry = {"name": "chat", "path": str(path), "weight": 1, "licence": "MIT"}
    context = context_of(make_recipe(filter={"mix": [entry]}))
    write_stages(context.runs, ordinary_stages())
    with pytest.raises(
        RecipeError, match=r"filter.mix: chat: none of its rows can be used .2 mix_no_chat, 1 broken_line"
    ):
        run(context)


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
    run(context, ONE)
    directory = context.directory("filter")
    conserve(directory, 24 + 5 + 3)
    manifest = manifest_of(directory)
    assert manifest.notes["mix"] == {"first": 3, "second": 1}
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
        [USER, {"role": "assistant", "content": [{"type": "image_url", "image_url": "a.png"}]}],
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
        run(context, ONE)
