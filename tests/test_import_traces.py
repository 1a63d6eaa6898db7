"""Traces that exist already, taken in place of generate: layouts, token counts, rows that cannot be taken."""

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline.context import Context
from pipeline.errors import RecipeError, StageError
from pipeline.filter.examples import token_counter, tokenizer_file
from pipeline.flags import WorkerFlags
from pipeline.recipe.cards import Tags, student_card
from pipeline.records import Trace
from pipeline.render import Split, split_response
from pipeline.run.contract import Manifest, Usage
from pipeline.sampling import Store
from pipeline.verify.basis import basis_of, tags_digest
from teachers import generate, import_traces
from teachers.layouts import LAYOUTS, Columns, bare_question, bare_solution
from tests.conftest import ROOT
from tests.test_generate import (
    ProblemFile,
    bytes_in,
    context_of,
    forced,
    manifest_of,
    with_card,
    with_problems,
)

TAGS = Tags()  # the embedded teacher's


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("prepared")
    with_problems(directory)
    return directory


def imported(
    prepared: Path, directory: Path, rows: list[dict[str, Any]], layout: str, columns: Columns | None = None
) -> tuple[Manifest, list[Trace]]:
    """Manifest and traces of an import of `rows`."""
    context = context_of(prepared, directory)
    import_into(context, rows_in(directory, rows), layout, columns)
    return manifest_of(context), traces_of(context)


def rows_in(directory: Path, rows: list[dict[str, Any]]) -> Path:
    file = directory / "traces.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def import_into(context: Context, file: Path, layout: str, columns: Columns | None = None) -> None:
    import_traces.run(
        context, import_traces.Imported(file, layout, columns or Columns()), WorkerFlags(workers=1)
    )


def traces_of(context: Context) -> list[Trace]:
    return list(Store(context.directory("generate")).traces())


IMPORTS = {
    "openr1": {
        "problem": "What is 7 + 21?",
        "generations": ["<think>\n7 + 21\n</think>\n\n\\boxed{28}", "<think>\nendless"],
        "finish_reasons": ["stop", "length"],
    },
    "openthoughts": {
        "conversations": [
            {"from": "user", "value": "Return your final response within \\boxed{}. What is 7 + 21?"},
            {
                "from": "assistant",
                "value": "<|begin_of_thought|>\n7 + 21\n<|end_of_thought|>\n\n"
                "<|begin_of_solution|>\n\\boxed{28}\n<|end_of_solution|>",
            },
        ]
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "What is 7 + 21?"},
            {"from": "gpt", "value": "7 + 21\n</think>\n\\boxed{28}"},
        ]
    },
    "columns": {"prompt": "What is 7 + 21?", "text": "<think>7 + 21</think>\\boxed{28}"},
}


@pytest.mark.parametrize("layout", IMPORTS)
def test_each_layout_gives_question_and_split_response(layout: str) -> None:
    read, tags = LAYOUTS[layout]
    row = read(IMPORTS[layout], Columns("prompt", "text"))
    assert bare_question(row.question) == "What is 7 + 21?"
    split = split_response(row.responses[0], tags)
    assert (split.thinking, bare_solution(split.answer)) == ("7 + 21", "\\boxed{28}")


TEACHERS = {
    "opened by the prompt": Tags(),
    "opened by itself": Tags(opened_by_prompt=False),
    "others": Tags(open="[THINK]", close="[/THINK]", opened_by_prompt=False),
    "of many tokens": Tags(
        open="<|channel|>analysis<|message|>", close="<|end|>final", opened_by_prompt=False
    ),
}


@pytest.mark.parametrize("tags", TEACHERS.values(), ids=TEACHERS)
@pytest.mark.parametrize("layout", IMPORTS)
def test_a_response_is_written_in_the_tags_of_the_teacher(
    layout: str, tags: Tags, prepared: Path, tmp_path: Path
) -> None:
    context = with_card(context_of(prepared, tmp_path), thinking=tags)
    import_into(context, rows_in(tmp_path, [IMPORTS[layout]]), layout, Columns("prompt", "text"))
    first, *others = traces_of(context)
    assert split_response(first.response, tags) == Split("7 + 21", "\\boxed{28}", "closed")
    assert first.response.startswith(tags.open) != tags.opened_by_prompt
    assert [split_response(trace.response, tags) for trace in others] == (
        [Split("endless", "", "unclosed")] if layout == "openr1" else []
    )
    verdict = next(Store(context.directory("generate")).verdicts())
    problems = ProblemFile(context.directory("problems") / "problems.jsonl")
    problem = next(problem for problem in problems if problem.id == first.problem_id)
    assert (verdict.status, verdict.basis) == ("correct", basis_of(problem, tags_digest(tags)))


@pytest.mark.parametrize("tags", TEACHERS.values(), ids=TEACHERS)
@pytest.mark.parametrize(
    ("layout", "response", "split"),
    [
        ("openr1", "28", ("", "28")),
        ("openr1", "<think></think>28", ("", "28")),
        ("openr1", "<think>\n\n  a\n\n b \n\n</think>\n\n28\n", ("  a\n\n b ", "28")),
        ("openr1", "  <think>a</think><b>28</b>", ("a", "<b>28</b>")),
        ("openthoughts", "<|begin_of_thought|>a<|end_of_thought|>\n28", ("a", "28")),
    ],
    ids=["no thinking", "empty thinking", "blanks", "blanks before", "no solution tags"],
)
def test_the_split_survives_the_teachers_tags(
    layout: str, response: str, split: tuple[str, str], tags: Tags
) -> None:
    text = import_traces.retagged(response, LAYOUTS[layout][1], tags)
    assert text is not None
    again = split_response(text, tags)
    assert (again.thinking or "", again.answer) == split


def test_a_response_that_holds_a_tag_in_its_text_is_dropped(prepared: Path, tmp_path: Path) -> None:
    """It would be split at that tag. After the closing tag it is a part of the answer."""
    thoughts = "<|begin_of_thought|>\n{}\n<|end_of_thought|>\n\n{}"
    texts = [thoughts.format("a </think> b", "28"), thoughts.format("a", "28 </think>"), "28 </think>"]
    rows = [
        {"messages": [{"role": "user", "content": "What is 7 + 21?"}, {"role": "assistant", "content": text}]}
        for text in texts
    ]
    manifest, traces = imported(prepared, tmp_path, rows, "openthoughts")
    assert manifest.counts.dropped == {"tags_in_text": 1}
    assert [(trace.sample, split_response(trace.response, TAGS)) for trace in traces] == [
        (0, Split("a", "28 </think>", "closed")),
        (1, Split("", "28 </think>", "closed")),
    ]


def test_an_interrupted_import_goes_on_where_it_was(prepared: Path, tmp_path: Path) -> None:
    rows = [
        json.loads(
            json.dumps(IMPORTS["openr1"]).replace("7 + 21", f"{i} + {3 * i}").replace("28", str(4 * i))
        )
        for i in range(40)
    ]
    context, file = context_of(prepared, tmp_path), rows_in(tmp_path, rows)
    import_into(context, file, "openr1")
    directory, whole = context.directory("generate"), traces_of(context)
    finished, verdicts = manifest_of(context), list(Store(directory).verdicts())
    lines = {
        name: (directory / name).read_bytes().splitlines(True)
        for name in ("traces-00000.jsonl", "verdicts.jsonl")
    }

    plan = import_traces.plan_of(
        context, import_traces.Imported(file, "openr1"), context.require("problems", "import-traces")
    )
    (directory / "manifest.json").unlink()
    (directory / "progress.json").write_text(json.dumps({"fingerprint": plan.fingerprint, "carried": {}}))
    (directory / "traces-00000.jsonl").write_bytes(b"".join(lines["traces-00000.jsonl"][:21])[:-9])
    (directory / "verdicts.jsonl").write_bytes(b"".join(lines["verdicts.jsonl"][:12])[:-9])
    import_into(context, file, "openr1")
    assert traces_of(context) == whole
    assert (directory / "traces-00000.jsonl").read_bytes() == b"".join(lines["traces-00000.jsonl"])
    again = manifest_of(context)
    assert (again.counts, again.usage, again.notes) == (finished.counts, finished.usage, finished.notes)
    assert {(v.problem_id, v.sample): v.status for v in Store(directory).verdicts()} == {
        (v.problem_id, v.sample): v.status for v in verdicts
    }
    assert sum(1 for _ in Store(directory).verdicts()) == len(verdicts)


def test_corrected_tags_of_the_teacher_are_another_import(prepared: Path, tmp_path: Path) -> None:
    """Its responses are written with them; generate's are as they were sampled."""
    context, file = context_of(prepared, tmp_path), rows_in(tmp_path, [IMPORTS["openr1"]])
    import_into(context, file, "openr1")
    other = with_card(context, thinking=TEACHERS["others"])
    with pytest.raises(StageError, match=r"(?s)config\.thinking\.close: .*FORCE=1"):
        import_into(other, file, "openr1")
    import_into(forced(other), file, "openr1")
    assert [split_response(trace.response, TEACHERS["others"]).thinking for trace in traces_of(other)] == [
        "7 + 21", "endless",
    ]  # fmt: skip


def test_an_import_that_fails_leaves_the_directory_as_it_was(prepared: Path, tmp_path: Path) -> None:
    context = context_of(prepared, tmp_path)
    import_into(context, rows_in(tmp_path, [IMPORTS["openr1"]]), "openr1")
    before = bytes_in(context.run)
    elsewhere = json.loads(json.dumps(IMPORTS["openr1"]).replace("7 + 21", "8 + 99"))
    with pytest.raises(StageError, match="none of its questions is one of the problems"):
        import_into(forced(context), rows_in(tmp_path, [elsewhere]), "openr1")
    assert bytes_in(context.run) == before


def test_imported_traces_take_the_place_of_generate(prepared: Path, tmp_path: Path) -> None:
    other = json.loads(json.dumps(IMPORTS["openr1"]).replace("7 + 21", "8 + 99"))
    manifest, traces = imported(prepared, tmp_path, [IMPORTS["openr1"], other], "openr1")
    assert manifest.counts.kept == 2
    assert manifest.counts.dropped == {"no_such_problem": 2}
    assert [trace.finish_reason for trace in traces] == ["stop", "length"]
    verdicts = Store(tmp_path / "runs/small/generate").verdicts()
    assert next(verdict.status for verdict in verdicts) == "correct"


def test_tokens_are_counted_as_filter_counts_them(prepared: Path, tmp_path: Path) -> None:
    manifest, traces = imported(prepared, tmp_path, [IMPORTS["openr1"]], "openr1")
    count = token_counter(str(tokenizer_file(student_card("embedded-dense"))))
    assert [trace.output_tokens for trace in traces] == [
        count(text) for text in IMPORTS["openr1"]["generations"]
    ]
    assert manifest.usage == Usage(output_tokens=sum(trace.output_tokens for trace in traces))
    assert manifest.notes["tokens"] == {"counted": 2}


def test_tokens_that_the_file_states_are_taken(prepared: Path, tmp_path: Path) -> None:
    row = {"q": "What is 7 + 21?", "r": ["<think>7</think>28", "28", "29"], "n": [3000, None, 0]}
    manifest, traces = imported(prepared, tmp_path, [row], "columns", Columns("q", "r", "n"))
    assert [trace.output_tokens for trace in traces][::2] == [3000, 0]
    assert traces[1].output_tokens > 0
    assert manifest.notes["tokens"] == {"stated": 2, "counted": 1}


def test_tokens_that_nobody_can_count_are_not_stated(
    prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    context = context_of(prepared, tmp_path, **{"train.student": "llama-3.2-1b"})
    import_into(context, rows_in(tmp_path, [IMPORTS["openr1"]]), "openr1")
    manifest = manifest_of(context)
    assert manifest.usage == Usage()
    assert manifest.notes["tokens"] == {"unknown": 2}
    assert "output tokens are not counted: " in caplog.text


def test_half_a_surrogate_pair_is_stored_as_a_question_mark(prepared: Path, tmp_path: Path) -> None:
    row = {"question": "What is 7 + 21?", "response": "<think>\ud83d</think>28"}
    _, traces = imported(prepared, tmp_path, [row], "columns")
    assert split_response(traces[0].response, TAGS) == Split("?", "28", "closed")


R1 = IMPORTS["openr1"]


@pytest.mark.parametrize(
    ("row", "layout", "columns", "message"),
    [
        ({"a": 1}, "openr1", "", r"traces.jsonl:1: is not a row of layout openr1 \(KeyError: 'generations'\); .* columns a"),
        ({}, "openr", "", "did you mean 'openr1'"),
        ({**R1, "finish_reasons": ["stop"]}, "openr1", "", "2 responses, 1 finish reasons"),
        ({**R1, "generations": "28"}, "openr1", "", "expected a list of texts, found '28'"),
        ({**R1, "generations": [5, None]}, "openr1", "", "expected a text, found 5"),
        ({"messages": []}, "sharegpt", "", r"no turn of human or user in it"),
        ({"messages": [{"role": "user", "content": None}]}, "sharegpt", "", "expected a text, found None"),
        ({"messages": ["hello"]}, "sharegpt", "", "is not a row of layout sharegpt"),
        ({"q": "a", "r": "b", "n": "many"}, "columns", "q,r,n", "expected a number of tokens, found 'many'"),
        ({"q": "a", "r": ["b", "c"], "n": [1]}, "columns", "q,r,n", "2 responses, 1 token counts"),
        ({"q": "a", "r": "b"}, "columns", "q,r,n", "KeyError: 'n'"),
        ({"q": "a"}, "columns", "q", "--columns q: name the column of the question, the one of the response"),
        ({"q": "a"}, "columns", "q,r,n,m", "--columns q,r,n,m: name"),
        ({"q": "a"}, "columns", "q,,n", "--columns q,,n: name"),
        (R1, "openr1", "q,r,n", "--columns n: --layout openr1 reads no columns"),
    ],
    ids=["row", "layout", "reasons", "no list", "number", "no turn", "empty turn", "no turns", "tokens", "counts",
         "no tokens", "one column", "four columns", "an empty column", "columns of a layout"],
)  # fmt: skip
def test_what_cannot_be_imported_is_named(
    row: dict[str, Any], layout: str, columns: str, message: str, prepared: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        imported(prepared, tmp_path, [row], layout, Columns.from_flag(columns) if columns else None)


GUARDED = {
    "restricted": r"the licence of embedded-moe \(Guarded-1.0\) restricts training on its outputs",
    "unstated": r"whether the licence of embedded-moe \(Guarded-1.0\) allows training on its outputs is not known",
}


@pytest.mark.parametrize("outputs", GUARDED)
@pytest.mark.parametrize("accepted", [None, "Apache-2.0", "Guarded-1.0"])
def test_an_import_asks_for_the_licence_as_generate_does(
    outputs: str, accepted: str | None, prepared: Path, tmp_path: Path
) -> None:
    override = {} if accepted is None else {"generate.accept_licence": accepted}
    card = {"licence": "Guarded-1.0", "training_on_outputs": outputs}
    context = with_card(context_of(prepared, tmp_path, **override), **card)
    before, file = bytes_in(context.run), rows_in(tmp_path, [R1])
    if accepted == "Guarded-1.0":
        generate.prepare(context)
        import_into(context, file, "openr1")
        assert traces_of(context)
        return
    message = rf"generate\.teacher: {GUARDED[outputs]}.* set generate\.accept_licence: Guarded-1\.0"
    with pytest.raises(RecipeError, match=message):
        generate.prepare(context)
    with pytest.raises(RecipeError, match=message):
        import_into(context, file, "openr1")
    assert bytes_in(context.run) == before


def test_the_users_own_model_is_not_asked_about_but_warned_of(
    prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where its files state no licence, who brought it knows; a card of ours knows less than its reader."""
    given = f"{{model: {ROOT / 'teachers/embedded'}, licence: unknown, training_on_outputs: unstated}}"
    context = context_of(prepared, tmp_path, **{"generate.teacher": given})
    assert context.teacher_card.training_on_outputs == "unstated"
    with caplog.at_level(logging.WARNING):
        import_into(context, rows_in(tmp_path, [R1]), "openr1")
        generate.prepare(context)
    assert caplog.text.count("the card of embedded does not say whether its licence (unknown) allows") == 2
    assert traces_of(context)


def test_an_import_takes_no_share(prepared: Path, tmp_path: Path) -> None:
    context = context_of(prepared, tmp_path, **{"generate.share": 0.5})
    with pytest.raises(RecipeError, match=r"generate.share: 0.5 is about asking a teacher.*share: 1"):
        import_into(context, rows_in(tmp_path, [R1]), "openr1")


def test_a_file_whose_thinking_is_nowhere_is_refused(prepared: Path, tmp_path: Path) -> None:
    """Sixteen such traces once taught a student to close its thinking at once."""
    rows = [{"question": "What is 7 + 21?", "response": "It is \\boxed{28}.", "trace": "7 + 21"}] * 2
    with pytest.raises(StageError, match=r"none of 2 responses has a thinking block .*--columns .*--tags"):
        imported(prepared, tmp_path, rows, "columns")
    columns = Columns.from_flag("question=question,thinking=trace,response=response")
    manifest, traces = imported(prepared, tmp_path, rows, "columns", columns)
    assert [split_response(trace.response, TAGS).thinking for trace in traces] == ["7 + 21"] * 2
    assert "without_thinking" not in manifest.notes


def test_a_compressed_directory_of_chats_is_imported(prepared: Path, tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "What is 7 + 21?"},
        {"role": "assistant", "content": "\\boxed{28}", "reasoning_content": "7 + 21"},
    ]
    (tmp_path / "traces").mkdir()
    for name, chat in (("a", turns), ("b", [*turns, *turns])):
        text = json.dumps([{"messages": chat}]).encode()
        (tmp_path / f"traces/{name}.json.gz").write_bytes(gzip.compress(text))
    context = context_of(prepared, tmp_path)
    import_into(context, tmp_path / "traces", "sharegpt")
    assert manifest_of(context).counts.dropped == {"several_turns": 1}
    [trace] = traces_of(context)
    assert split_response(trace.response, TAGS) == Split("7 + 21", "\\boxed{28}", "closed")
