"""Traces that exist already, taken in place of generate: layouts, token counts, rows that cannot be taken."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.cards import student_card
from pipeline.errors import RecipeError
from pipeline.examples import token_counter, tokenizer_file
from pipeline.records import Trace
from pipeline.sampling import Store
from pipeline.sampling.engine import completion_of
from teachers import import_traces
from teachers.layouts import LAYOUTS, Columns, bare_question, bare_solution
from tests.test_generate import context_of, manifest_of, with_problems


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("prepared")
    with_problems(directory)
    return directory


def imported(
    prepared: Path, directory: Path, rows: list[dict[str, Any]], layout: str, columns: Columns | None = None
) -> tuple[dict[str, Any], list[Trace]]:
    """Manifest and traces of an import of `rows`."""
    context, file = context_of(prepared, directory), directory / "traces.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    import_traces.run(context, import_traces.Imported(file, layout, columns or Columns()))
    return manifest_of(context), list(Store(context.directory("generate")).traces())


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
    done = completion_of(row.responses[0], "stop", (0, 0), tags)
    assert (done.thinking, bare_solution(done.answer)) == ("7 + 21", "\\boxed{28}")


def test_imported_traces_take_the_place_of_generate(prepared: Path, tmp_path: Path) -> None:
    other = json.loads(json.dumps(IMPORTS["openr1"]).replace("7 + 21", "8 + 99"))
    manifest, traces = imported(prepared, tmp_path, [IMPORTS["openr1"], other], "openr1")
    assert manifest["counts"]["kept"] == 2
    assert manifest["counts"]["dropped"] == {"no_such_problem": 2}
    assert [trace.finish_reason for trace in traces] == ["stop", "length"]
    verdicts = Store(tmp_path / "runs/small/generate").verdicts()
    assert next(verdict.status for verdict in verdicts) == "correct"


def test_tokens_are_counted_as_filter_counts_them(prepared: Path, tmp_path: Path) -> None:
    manifest, traces = imported(prepared, tmp_path, [IMPORTS["openr1"]], "openr1")
    count = token_counter(str(tokenizer_file(student_card("embedded-dense"))))
    assert [trace.output_tokens for trace in traces] == [
        count(text) for text in IMPORTS["openr1"]["generations"]
    ]
    assert manifest["usage"] == {"output_tokens": sum(trace.output_tokens for trace in traces)}
    assert manifest["notes"]["tokens"] == {"counted": 2}


def test_tokens_that_the_file_states_are_taken(prepared: Path, tmp_path: Path) -> None:
    row = {"q": "What is 7 + 21?", "r": ["<think>7</think>28", "28", "29"], "n": [3000, None, 0]}
    manifest, traces = imported(prepared, tmp_path, [row], "columns", Columns("q", "r", "n"))
    assert [trace.output_tokens for trace in traces][::2] == [3000, 0]
    assert traces[1].output_tokens > 0
    assert manifest["notes"]["tokens"] == {"stated": 2, "counted": 1}


def test_tokens_that_nobody_can_count_are_not_stated(
    prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    context, file = (
        context_of(prepared, tmp_path, **{"train.student": "llama-3.2-1b"}),
        tmp_path / "traces.jsonl",
    )
    file.write_text(json.dumps(IMPORTS["openr1"]) + "\n")
    import_traces.run(context, import_traces.Imported(file, "openr1"))
    manifest = manifest_of(context)
    assert manifest["usage"] == {}
    assert manifest["notes"]["tokens"] == {"unknown": 2}
    assert "output tokens are not counted: " in caplog.text


def test_half_a_surrogate_pair_is_stored_as_a_question_mark(prepared: Path, tmp_path: Path) -> None:
    row = {"question": "What is 7 + 21?", "response": "<think>\ud83d</think>28"}
    _, traces = imported(prepared, tmp_path, [row], "columns")
    assert (traces[0].thinking, traces[0].answer) == ("?", "28")


R1 = IMPORTS["openr1"]


@pytest.mark.parametrize(
    ("row", "layout", "columns", "message"),
    [
        ({"a": 1}, "openr1", "", r"traces.jsonl:1: is no row of layout openr1 \(KeyError: 'generations'\); .* columns a"),
        ({}, "openr", "", "did you mean 'openr1'"),
        ({**R1, "finish_reasons": ["stop"]}, "openr1", "", "2 responses, 1 finish reasons"),
        ({**R1, "generations": "28"}, "openr1", "", "expected a list of texts, found '28'"),
        ({**R1, "generations": [None]}, "openr1", "", "expected a text, found None"),
        ({"messages": []}, "sharegpt", "", r"no turn of human or user in it"),
        ({"messages": [{"role": "user", "content": None}]}, "sharegpt", "", "expected a text, found None"),
        ({"messages": ["hello"]}, "sharegpt", "", "is no row of layout sharegpt"),
        ({"q": "a", "r": "b", "n": "many"}, "columns", "q,r,n", "expected a number of tokens, found 'many'"),
        ({"q": "a", "r": ["b", "c"], "n": [1]}, "columns", "q,r,n", "2 responses, 1 token counts"),
        ({"q": "a", "r": "b"}, "columns", "q,r,n", "KeyError: 'n'"),
        ({"q": "a"}, "columns", "q", "--columns q: name the column of the question, the one of the response"),
        ({"q": "a"}, "columns", "q,r,n,m", "--columns q,r,n,m: name"),
        ({"q": "a"}, "columns", "q,,n", "--columns q,,n: name"),
        (R1, "openr1", "q,r,n", "--columns n: --layout openr1 reads no columns"),
    ],
    ids=["row", "layout", "reasons", "no list", "null", "no turn", "empty turn", "no turns", "tokens", "counts",
         "no tokens", "one column", "four columns", "an empty column", "columns of a layout"],
)  # fmt: skip
def test_what_cannot_be_imported_is_named(
    row: dict[str, Any], layout: str, columns: str, message: str, prepared: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=message):
        imported(prepared, tmp_path, [row], layout, Columns.from_flag(columns) if columns else None)
