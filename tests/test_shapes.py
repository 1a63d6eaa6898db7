"""A table of the shapes in which people keep problems and traces: each is read right, or is one clear error."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from pipeline.errors import RecipeError
from pipeline.filter.mix import chat_of, mix_lines
from pipeline.problems.look import look
from pipeline.problems.sources import row_problems
from pipeline.recipe.cards import Tags
from pipeline.recipe.schema import Recipe
from pipeline.recipe.sources import FileSource, HubSource, MixSource, Problems, preset_names, read_preset
from pipeline.recipe.strict_yaml import read_mapping, validate
from pipeline.records import Problem
from pipeline.render import Split, split_response
from pipeline.rows import count_rows, digests_of, files_of
from teachers.import_traces import retagged
from teachers.layouts import LAYOUTS, THINK, Columns, Refused, tags_named
from tests.conftest import ROOT
from tests.filter_fixtures import make_recipe

Q, A = "What is 1 + 1?", "2"
ROW = {"question": Q, "answer": A}
LINE = json.dumps(ROW)
CSV = f'question,answer\r\n"{Q}",{A}\r\n'
CHAT = [{"role": "user", "content": Q}, {"role": "assistant", "content": "So \\boxed{2}"}]
SHAREGPT = [{"from": "human", "value": Q}, {"from": "gpt", "value": "So \\boxed{2}"}]
BOTH = [{"role": None, "content": None, **turn} for turn in SHAREGPT]


def zstd(text: str) -> bytes:
    return pyarrow.compress(text.encode(), codec="zstd", asbytes=True)


def table(*rows: dict[str, Any]) -> pyarrow.Table:
    return pyarrow.Table.from_pylist(list(rows) or [ROW])


def parquet(path: Path) -> None:
    pyarrow.parquet.write_table(table(), path)


def packed_parquet(path: Path) -> None:
    parquet(path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def stream(path: Path) -> None:
    with pyarrow.ipc.new_stream(path, table().schema) as file:
        file.write_table(table())


def saved(path: Path) -> None:
    """What Dataset.save_to_disk writes."""
    path.mkdir()
    stream(path / "data-00000-of-00001.arrow")
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (path / "dataset_info.json").write_text("{}")


def saved_splits(path: Path) -> None:
    path.mkdir()
    (path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')


def directory(*names: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        for name in names:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(LINE + "\n")

    return write


def pretty(value: Any) -> str:
    return json.dumps(value, indent=1)


def rows(*values: dict[str, Any]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


Written = str | bytes | Callable[[Path], None]

# fmt: off
# name: (file, what is written, keys of the source, gold or the error)
SHAPES: dict[str, tuple[str, Written, dict[str, Any], str]] = {
    "lines of JSON": ("a.jsonl", LINE, {}, A),
    "lines with CRLF and blank ones": ("a.jsonl", f"\r\n{LINE}\r\n\r\n", {}, A),
    "a byte order mark": ("a.jsonl", f"\ufeff{LINE}\n", {}, A),
    "UTF-16": ("a.jsonl", f"{LINE}\n".encode("utf-16"), {}, A),
    "UTF-16 that is cut": ("a.jsonl", f"{LINE}\n".encode("utf-16")[:-5], {}, r"a\.jsonl.* (cannot be read as|is not valid) JSON"),
    "Latin-1": ("a.jsonl", '{"question": "\xe9"}'.encode("latin-1"), {}, r"a\.jsonl:1: is not valid JSON \('utf-8' codec"),
    "ndjson": ("a.ndjson", LINE, {}, A),
    "an array": ("a.json", pretty([ROW]), {}, A),
    "an array on one line": ("a.jsonl", json.dumps([ROW]), {}, A),
    "an array that is cut": ("a.json", pretty([ROW])[:-3], {}, r"a\.json: cannot be read as an array of JSON"),
    "an array of texts": ("a.json", '["a"]', {}, r"a\.json:1: holds str, not an object"),
    "an array inside of an object": ("a.json", pretty({"version": 1, "data": [ROW]}), {}, A),
    "an array with NaN, as json.dump writes": ("a.json", json.dumps([{**ROW, "score": float("nan")}]), {}, A),
    "the same inside of an object": ("a.json", pretty({"data": [{**ROW, "score": float("nan")}]}), {}, A),
    "columns of an object": ("a.json", pretty({"question": [Q], "answer": [A]}), {}, r"is one object with the keys question, answer"),
    "objects over several lines": ("a.json", pretty(ROW) + pretty(ROW), {}, r"neither one object a line .*jq -c"),
    "gzip": ("a.jsonl.gz", gzip.compress(LINE.encode()), {}, A),
    "zstd": ("a.json.zst", zstd(LINE), {}, A),
    "no gzip at all": ("a.jsonl.gz", LINE, {}, r"a\.jsonl\.gz: cannot be read as JSON: zlib inflate failed"),
    "nothing": ("a.jsonl", "", {}, ""),
    "CSV": ("a.csv", CSV, {}, A),
    "CSV with a mark, as Excel writes it": ("a.csv", f"\ufeff{CSV}", {}, A),
    "CSV in UTF-16": ("a.csv", CSV.encode("utf-16"), {}, A),
    "CSV of semicolons": ("a.csv", CSV.replace(",", ";"), {}, A),
    "TSV": ("a.tsv", CSV.replace(",", "\t"), {}, A),
    "CSV compressed": ("a.csv.gz", gzip.compress(CSV.encode()), {}, A),
    "CSV keeps zeros": ("a.csv", CSV.replace(",2", ",0.50"), {}, "0.50"),
    "CSV with lines in a cell": ("a.csv", CSV.replace("1 + 1?", "1\n+ 1?"), {}, A),
    "CSV of Latin-1": ("a.csv", CSV.replace("is", "\xe9").encode("latin-1"), {}, r"a\.csv: is not UTF-8 .*iconv"),
    "CSV with a cell too many": ("a.csv", CSV + "a,b,c\n", {}, r"a\.csv:3: has 3 cells, the first line names 2"),
    "CSV with an open quote": ("a.csv", CSV + '"a,b\n', {}, r"a\.csv:3: cannot be read as CSV: unexpected end"),
    "CSV with a name twice": ("a.csv", "a,a\n1,2\n", {}, "two columns are called 'a'"),
    "Parquet": ("a.parquet", parquet, {}, A),
    "Parquet compressed": ("a.parquet.gz", packed_parquet, {}, A),
    "Arrow": ("a.arrow", stream, {}, A),
    "Feather": ("a.feather", lambda path: pyarrow.feather.write_feather(table(), path), {}, A),
    "save_to_disk": ("saved", saved, {}, A),
    "save_to_disk of splits": ("saved", saved_splits, {}, r"holds the splits train, test; name one of .*saved/train"),
    "a directory": ("data", directory("README.md", "x/a.jsonl", ".cache/a.jsonl"), {}, A),
    "a directory of splits": ("data", directory("train-0.jsonl", "test-0.jsonl"), {}, r"the splits test, train; name the files of one"),
    "a directory of kinds": ("data", directory("a.jsonl", "a.csv"), {}, r"files of several kinds \(csv, json\)"),
    "a directory without rows": ("data", directory("a.txt"), {}, r"no file in it holds rows .*holds: a\.txt"),
    "a spreadsheet": ("a.xlsx", "PK", {}, r"files of rows are .*found '\.xlsx'\. Save it as"),
    "a nested question": ("a.jsonl", rows({"messages": CHAT, "answer": A}), {"columns": {"question": "messages[0].content"}}, A),
    "a chat as the question": ("a.jsonl", rows({"messages": CHAT, "answer": A}), {"columns": {"question": "messages"}}, A),
    "a chat in CSV": ("a.csv", 'm\r\n"' + json.dumps(CHAT).replace('"', '""') + '"\r\n', {"columns": {"question": "m", "gold": "m"}, "answer": "boxed"}, A),
    "from and value": ("a.jsonl", rows({"conversations": SHAREGPT, "answer": A}), {"columns": {"question": "conversations"}}, A),
    "both ways in one table": ("a.jsonl", rows({"m": BOTH}), {"columns": {"question": "m", "gold": "m"}, "answer": "boxed"}, A),
    "a picture in a chat": ("a.jsonl", rows({"m": [{"role": "user", "content": [{"type": "image_url"}]}], "answer": A}), {"columns": {"question": "m"}}, "'m': a message has a part of type image_url"),
    "a gold inside of an object": ("a.jsonl", rows({"question": Q, "reward_model": {"ground_truth": A}}), {"columns": {"gold": "reward_model.ground_truth"}}, A),
    "the same as text of JSON": ("a.jsonl", rows({"question": Q, "extra": '{"gt": ["2"]}'}), {"columns": {"gold": "extra.gt[0]"}}, A),
    "a mistyped key of a path": ("a.jsonl", rows({"question": Q, "r": {"truth": A}}), {"columns": {"gold": "r.trut"}}, r"a\.jsonl:1: 'r' has no 'trut'; did you mean 'truth'"),
    "a path without its place": ("a.jsonl", rows({"m": CHAT}), {"columns": {"question": "m.content"}}, r"'m' holds list, not an object; name a place of it, as m\[0\]\.content"),
    "a name with a dot in it": ("a.jsonl", rows({"question": Q, "a.b": A}), {"columns": {"gold": "a.b"}}, A),
    "a template of columns": ("a.jsonl", rows({"question": Q, "n": 1, "d": 2}), {"columns": {"gold": "{n}/{d}"}}, "1/2"),
    "a number": ("a.jsonl", rows({"question": Q, "answer": 2}), {}, A),
    "a list": ("a.jsonl", rows({"question": Q, "answer": ["2", "two"]}), {}, r"holds a list, which verifier math .* any \(one of several is right\) and json, .*`gold: answer\[0\]`"),
    "a list for any": ("a.jsonl", rows({"question": Q, "answer": ["2", "two"]}), {"verifier": "any"}, '["2", "two"]'),
    "an object for json": ("a.jsonl", rows({"question": Q, "answer": {"x": 2}}), {"verifier": "json"}, '{"x": 2}'),
    "an object": ("a.jsonl", rows({"question": Q, "answer": {"value": 2}}), {}, "no_answer: it holds an object; name one of its keys, as `gold: answer.value`"),
    "behind a mark": ("a.jsonl", rows({"question": Q, "answer": "1 + 1 is 2\nThe answer is: 2\n"}), {"answer": {"after": "answer is:"}}, A),
    "by an expression": ("a.jsonl", rows({"question": Q, "answer": "x=1, x=2"}), {"answer": {"regex": r"x=(\d)"}}, A),
    "options as a list": ("a.jsonl", rows({**ROW, "options": ["x", "y"], "answer": 1}), {"columns": {"options": "options"}, "verifier": "choice"}, "B"),
    "options as an object": ("a.jsonl", rows({**ROW, "options": {"A": "1", "B": "2"}, "answer": "B"}), {"columns": {"options": "options"}, "verifier": "choice"}, "B"),
    "options with their labels": ("a.jsonl", rows({**ROW, "options": {"text": ["1", "2"], "label": ["x", "y"]}, "answer": "y"}), {"columns": {"options": "options"}, "verifier": "choice"}, "B"),
    "options as objects": ("a.jsonl", rows({**ROW, "options": [{"label": "1", "text": "x"}, {"label": "2", "text": "y"}]}), {"columns": {"options": "options"}, "verifier": "choice"}, "B"),
    "options as text": ("a.jsonl", rows({**ROW, "options": "A) 1  B) 2", "answer": "B"}), {"columns": {"options": "options"}, "verifier": "choice"}, "B"),
    "options as pandas writes them": ("a.csv", 'question,answer,options\nWhich?,1,"[\'1\', \'x\']"\n', {"columns": {"options": "options"}, "verifier": "choice"}, "1"),
    "eleven options": ("a.jsonl", rows({**ROW, "options": [str(n) for n in range(50, 61)], "answer": 10}), {"columns": {"options": "options"}, "verifier": "choice"}, "K"),
    "more options than letters": ("a.jsonl", rows({**ROW, "options": [str(n) for n in range(27)]}), {"columns": {"options": "options"}, "verifier": "choice"}, "27 options are more than there are letters"),
    "options that are none": ("a.jsonl", rows({**ROW, "options": "1 or 2"}), {"columns": {"options": "options"}, "verifier": "choice"}, "'options' holds str, not a list"),
    "no gold at all": ("a.jsonl", rows({"question": Q}), {"columns": {"gold": None}, "verifier": "none"}, ""),
    "a preset and a local copy": ("a.jsonl", rows({"problem": Q, "answer": "proof"}, {"problem": Q, "answer": A}), {"preset": "numinamath"}, A),
}
# fmt: on


def written(path: Path, content: Written) -> str:
    if callable(content):
        content(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_bytes(content.encode())
    return str(path)


def outcome(source: FileSource) -> str:
    """The gold of the one problem of a source, why it has none, or the error; "" of no row and of no gold."""
    try:
        items = list(row_problems(source, "mine"))
    except RecipeError as error:
        return str(error)
    problems = [item for item in items if isinstance(item, Problem)]
    assert len(problems) <= 1
    assert count_rows(source.path) == len(items)
    for problem in problems:
        assert " ".join(problem.question.split()).startswith(("What is 1 + 1?", "Which?"))
        return problem.gold
    return "".join(f"{item.reason}: {item.detail}" for item in items if not isinstance(item, Problem))


@pytest.mark.parametrize(("name", "content", "keys", "expected"), SHAPES.values(), ids=SHAPES)
def test_a_shape_is_read_right_or_is_one_error(
    tmp_path: Path, name: str, content: Written, keys: dict[str, Any], expected: str
) -> None:
    entry = {"path": written(tmp_path / name, content), **keys}
    [source] = Problems.model_validate({"sources": [entry]}).sources
    assert isinstance(source, FileSource)
    found = outcome(source)
    is_error = " " in expected and not expected.startswith(("[", "{"))  # golds are short
    assert re.search(expected, found) if is_error else found == expected, found


def test_the_table_has_enough_shapes() -> None:
    assert len(SHAPES) >= 60


def test_files_by_list_and_glob(tmp_path: Path) -> None:
    for name in ("b-1.jsonl", "b-0.jsonl", "c.jsonl"):
        (tmp_path / name).write_text(LINE)
    glob, last = f"{tmp_path}/b-*.jsonl", f"{tmp_path}/c.jsonl"
    assert [Path(file).name for file in files_of([last, glob])] == ["c.jsonl", "b-0.jsonl", "b-1.jsonl"]
    with pytest.raises(RecipeError, match=r"b-0\.jsonl: is named twice by"):
        files_of([glob, f"{tmp_path}/b-0.jsonl"])
    with pytest.raises(RecipeError, match=r"x\*\.jsonl: no file is called so; .* holds: b-0\.jsonl"):
        files_of([f"{tmp_path}/x*.jsonl"])
    source = FileSource(path=[last, glob])
    assert len(list(row_problems(source, "mine"))) == 3
    assert FileSource(path=last).model_dump(exclude_defaults=True) == {"path": last}


def test_the_digest_of_many_files_is_that_of_their_names_and_contents(tmp_path: Path) -> None:
    for place in ("one", "two"):
        directory("train/a.jsonl", "train/b.jsonl")(tmp_path / place)
    one, two = (digests_of([str(tmp_path / place)]) for place in ("one", "two"))
    assert list(one.values()) == list(two.values())
    (tmp_path / "two/train/b.jsonl").write_text("{}")
    assert list(digests_of([str(tmp_path / "two")]).values()) != list(one.values())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"preset": "openr2-math"}, r"there is no preset 'openr2-math'; did you mean 'openr1-math'"),
        ({"preset": None}, r"preset is a name .*limo.*, found None"),
        ({"preset": 5}, r"preset is a name .*limo.*, found 5"),
        ({"preset": "limo", "limits": 5}, r"limits: unknown key; did you mean 'limit'"),
        ({"path": "a", "columns": {"gold": None}}, r"columns\.gold: null: .*majority.*verifier: none"),
        (
            {"path": "a", "verifier": "none"},
            r"source a: verifier: none calls no trace correct, and the rule correct",
        ),
        ({"path": "a", "answer": {"regex": "("}}, r"answer\.regex: '\(' is no regular expression"),
        ({"path": "a", "answer": {}}, r"answer: give either `after` or `regex`"),
        ({"path": []}, r"sources\[0\]\.path: value should have at least 1 item"),
        ({"path": 5}, r"sources\[0\]\.path: input should be a valid list, found 5"),
    ],
    ids=str,
)
def test_a_source_that_cannot_be_is_refused(entry: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_recipe(problems={"sources": [entry]})


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_source_with_its_facts(name: str) -> None:
    preset = read_preset(name)
    assert preset.facts
    [source] = Problems.model_validate({"sources": [{"preset": name, "limit": 5}]}).sources
    assert isinstance(source, HubSource)
    assert (source.hub, source.limit, source.columns) == (preset.hub, 5, preset.columns)
    assert f"  {name} " in look(None)


def thinking(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": "2", **fields}]}


HALF = "<think>\nhm\n</think>\n\n2"
S1K = {"question": Q, "deepseek_thinking_trajectory": "hm", "deepseek_attempt": "2"}
THOUGHT_OF = Columns.from_flag(
    "question=question,thinking=deepseek_thinking_trajectory,response=deepseek_attempt"
)
# fmt: off
# name: (row, layout, columns, tags, the response or why it is refused)
TRACES: dict[str, tuple[dict[str, Any], str, Columns, Tags, Any]] = {
    "reasoning_content": (thinking(reasoning_content="hm"), "sharegpt", Columns(), THINK, ("hm", "2")),
    "thinking": (thinking(thinking="hm"), "sharegpt", Columns(), THINK, ("hm", "2")),
    "reasoning": (thinking(reasoning="hm", thinking=None), "sharegpt", Columns(), THINK, ("hm", "2")),
    "parts": (
        thinking(content=[{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "2"}]),
        "sharegpt",
        Columns(),
        THINK,
        ("hm", "2"),
    ),
    "an empty field beside tags": (
        thinking(reasoning_content="", content=HALF),
        "sharegpt",
        Columns(),
        THINK,
        ("hm", "2"),
    ),
    "twice the same": (
        thinking(reasoning_content="hm", content=HALF),
        "sharegpt",
        Columns(),
        THINK,
        ("hm", "2"),
    ),
    "twice, different": (
        thinking(reasoning_content="ah", content=HALF),
        "sharegpt",
        Columns(),
        THINK,
        "two_thinkings",
    ),
    "from and value with nulls": (
        {"conversations": [{"role": None, "content": None, **t} for t in SHAREGPT]},
        "sharegpt",
        Columns(),
        THINK,
        ("", "So \\boxed{2}"),
    ),
    "several turns": ({"messages": [*CHAT, *CHAT]}, "sharegpt", Columns(), THINK, "several_turns"),
    "several turns, cut": (
        {"messages": [*CHAT, *CHAT]},
        "sharegpt",
        Columns(first_turn=True),
        THINK,
        ("", "So \\boxed{2}"),
    ),
    "no answer": (thinking(content=None), "sharegpt", Columns(), THINK, "no_response"),
    "two columns of s1K": (S1K, "columns", THOUGHT_OF, THINK, ("hm", "2")),
    "two columns, one a list": (
        {**S1K, "deepseek_thinking_trajectory": ["hm"]},
        "columns",
        THOUGHT_OF,
        THINK,
        ("hm", "2"),
    ),
    "a chat in a column": (
        {"q": Q, "r": thinking(thinking="hm")["messages"]},
        "columns",
        Columns("q", "r"),
        THINK,
        ("hm", "2"),
    ),
    "tokens as a float": (
        {"q": Q, "r": HALF, "n": 12.0},
        "columns",
        Columns("q", "r", "n"),
        THINK,
        ("hm", "2"),
    ),
    "tags by name": (
        {"q": Q, "r": "[THINK]hm[/THINK]2"},
        "columns",
        Columns("q", "r"),
        tags_named("mistral"),
        ("hm", "2"),
    ),
    "tags by hand": (
        {"q": Q, "r": "<a>hm</a>2"},
        "columns",
        Columns("q", "r"),
        tags_named("<a>,</a>"),
        ("hm", "2"),
    ),
}
# fmt: on


@pytest.mark.parametrize(("row", "layout", "columns", "tags", "expected"), TRACES.values(), ids=TRACES)
def test_the_thinking_of_a_trace_is_never_lost(
    row: dict[str, Any], layout: str, columns: Columns, tags: Tags, expected: Any
) -> None:
    read, _ = LAYOUTS[layout]
    found = read(row, columns, tags)
    assert found.question == Q
    [response] = found.responses
    if isinstance(response, Refused):
        assert response.reason == expected
        return
    text = retagged(response, tags, Tags())
    assert text is not None
    assert split_response(text, Tags()) == Split(*expected, "closed")
    assert found.tokens == [12 if columns.tokens else None]


NAN = float("nan")
# name: (row, layout, flag of the columns, thinking and answer of each response or why it is refused, tokens)
SEVERAL: dict[str, tuple[dict[str, Any], str, str, list[Any], list[int | None]]] = {
    "a null among them": ({"problem": Q, "generations": [HALF, None]}, "openr1", "", [("hm", "2"), "no_response"], [None] * 2),
    "a list as text of JSON": ({"problem": Q, "generations": json.dumps([HALF])}, "openr1", "", [("hm", "2")], [None]),
    "no conversations but messages": ({"conversations": None, **thinking(thinking="hm")}, "sharegpt", "", [("hm", "2")], [None]),
    "a chat in a cell of CSV": ({"q": json.dumps(CHAT[:1]), "r": json.dumps(thinking(thinking="hm")["messages"])}, "columns", "q,r", [("hm", "2")], [None]),
    "lists in cells of CSV": ({"q": Q, "r": '["2", "3"]', "t": '["hm", "ah"]', "n": "[7, 8]"}, "columns", "question=q,response=r,thinking=t,tokens=n", [("hm", "2"), ("ah", "3")], [7, 8]),
    "a number in a cell of CSV": ({"q": Q, "r": HALF, "n": "12"}, "columns", "q,r,n", [("hm", "2")], [12]),
    "a response that is JSON": ({"q": Q, "r": '{"a": 1}', "t": "hm"}, "columns", "question=q,response=r,thinking=t", [("hm", '{"a": 1}')], [None]),
    "no thinking in a table": ({"q": Q, "r": HALF, "t": NAN}, "columns", "question=q,response=r,thinking=t", [("hm", "2")], [None]),
    "no response in a table": ({"q": Q, "r": NAN, "t": NAN}, "columns", "question=q,response=r,thinking=t", ["no_response"], [None]),
}  # fmt: skip


@pytest.mark.parametrize(("row", "layout", "flag", "expected", "tokens"), SEVERAL.values(), ids=SEVERAL)
def test_cells_of_tables_are_read_as_those_of_json(
    row: dict[str, Any], layout: str, flag: str, expected: list[Any], tokens: list[int | None]
) -> None:
    read, tags = LAYOUTS[layout]
    found = read(row, Columns.from_flag(flag) if flag else Columns(), tags)
    texts = [
        one.reason if isinstance(one, Refused) else retagged(one, tags, Tags()) for one in found.responses
    ]
    splits = [text if text == "no_response" else split_response(text or "", Tags()) for text in texts]
    assert splits == [one if isinstance(one, str) else Split(*one, "closed") for one in expected]
    assert (found.question, found.tokens) == (Q, tokens)


def test_several_columns_of_responses_are_several_traces() -> None:
    read, tags = LAYOUTS["columns"]
    row = {"question": Q, "r1": "1", "r2": "2"}
    assert read(row, Columns.from_flag("question=question,response=r1+r2"), tags).responses == ["1", "2"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [("think=a", "'think': did you mean 'thinking'"), ("thinking=", "'thinking': ")],
)
def test_a_mistyped_pair_of_columns_is_named(flag: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"--columns {flag}: {message}"):
        Columns.from_flag(flag)
    with pytest.raises(RecipeError, match="--tags thin: give OPEN,CLOSE or a name; did you mean 'think'"):
        tags_named("thin")


# fmt: off
MIXES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "an array": (pretty([{"messages": CHAT}]), {}, None),
    "thinking of its own": (rows(thinking(reasoning_content="hm")), {}, "hm"),
    "thinking in parts": (
        rows(thinking(content=[{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "2"}])), {}, "hm",
    ),
    "three columns": (rows({"p": Q, "r": "2", "t": "hm"}), {"messages": None, "prompt": "p", "response": "r", "thinking": "t"}, "hm"),
    "nulls of both ways": (rows({"messages": BOTH}), {}, None),
    "a nested chat": (rows({"row": {"chat": CHAT}}), {"messages": "row.chat"}, None),
}
# fmt: on


@pytest.mark.parametrize(("content", "keys", "thought"), MIXES.values(), ids=MIXES)
def test_a_mix_reads_the_same_shapes(
    tmp_path: Path, content: str, keys: dict[str, Any], thought: str | None
) -> None:
    path = written(tmp_path / "chat.json", content)
    source = MixSource(name="chat", path=[path], weight=1.0, licence="MIT", **keys)
    [line] = mix_lines(source)
    chat = chat_of(source, line)
    assert chat is not None
    assert [turn["role"] for turn in chat] == ["user", "assistant"]
    assert chat[0]["content"] == Q
    assert chat[-1].get("reasoning_content") == thought


# fmt: off
LOOKS: dict[str, tuple[str, Written, list[str]]] = {
    "CSV": ("a.csv", CSV.replace("answer", "final_answer"), ["gold: final_answer", "of the first 1 rows 1 become problems"]),
    "GSM8K": ("a.jsonl", rows({**ROW, "answer": "so\n#### 2"}), ["answer: hashes"]),
    "MATH": ("a.jsonl", rows({"problem": Q, "solution": "\\boxed{2}"}), ["question: problem", "gold: solution", "answer: boxed"]),
    "ARC": ("a.jsonl", rows({"question": Q, "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}), ["gold: answerKey", "options: choices", "verifier: choice"]),
    "APPS": ("a.jsonl", rows({"question": Q, "input_output": '{"inputs": ["1"], "outputs": ["2"]}'}), ["verifier: code", "answer: input_output"]),
    "chats": ("a.jsonl", rows({"messages": CHAT}), ["question: messages", "majority:", "import-traces --layout sharegpt"]),
    "nested": ("a.jsonl", rows({"prompt": CHAT[:1], "reward_model": {"ground_truth": "2"}}), ["gold: reward_model.ground_truth"]),
    "lists": ("a.jsonl", rows({**ROW, "answer": ["2"]}), ["verifier: any"]),
    "sentences": ("a.jsonl", rows({**ROW, "answer": "Because it was always so, they say"}), ["verifier: judge"]),
    "s1K": ("a.jsonl", rows({**S1K, "solution": "2"}), ["gold: solution", "thinking=deepseek_thinking_trajectory"]),
}
# fmt: on


@pytest.mark.parametrize(("name", "content", "said"), LOOKS.values(), ids=LOOKS)
def test_look_writes_an_entry_that_reads_the_file(
    tmp_path: Path, name: str, content: Written, said: list[str]
) -> None:
    text = look(written(tmp_path / name, content))
    for part in said:
        assert part in text
    entry = text.partition("as one of problems.sources:\n")[2].partition("\nof the first")[0]
    lines = [line for line in entry.splitlines() if line.startswith("  ")]
    (tmp_path / "entry.yaml").write_text(
        "\n".join(["problems:", "  sources:", *("  " + line for line in lines)])
    )
    values = read_mapping(tmp_path / "entry.yaml", "entry")
    validate(Problems, values["problems"], "entry")


def test_look_at_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"a\.jsonl: holds no row"):
        look(written(tmp_path / "a.jsonl", ""))


def test_the_recipe_of_one_path_is_what_it_was() -> None:
    """A list of one is recorded as the text that earlier versions had."""
    recipe: Recipe = make_recipe(problems={"sources": [{"path": "a.jsonl", "columns": {"options": ["x"]}}]})
    section = recipe.problems.model_dump(exclude_defaults=True)
    assert section == {"sources": [{"path": "a.jsonl", "columns": {"options": ["x"]}}]}
    assert (ROOT / "pipeline/problems/presets").is_dir()
