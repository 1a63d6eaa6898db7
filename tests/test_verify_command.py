"""`verify` on a file, and the audit of a run."""

import json
from collections import Counter
from pathlib import Path

import pytest

from pipeline.context import Context, load_context
from pipeline.errors import RecipeError, StageError, VerifyError
from pipeline.records import Problem, Trace, Verdict, to_json
from pipeline.run.contract import Start
from pipeline.verify.audit import audit_run, choose, second_row
from pipeline.verify.basis import basis_of, tags_digest
from pipeline.verify.command import run_verify
from pipeline.verify.confusion import confusion_table, rates_table, wilson_interval
from pipeline.verify.table import VERIFIERS
from tests.conftest import ROOT

ROWS = [
    {
        "gold": "1/2",
        "response": "<think>maybe \\boxed{1}</think> so \\boxed{0.5}",
        "correct": True,
        "id": "a",
    },
    {
        "gold": "4",
        "response": "thinking without an opening tag \\boxed{4}</think>\\boxed{5}",
        "correct": False,
    },
    {"gold": ["7", "8"], "response": "\\boxed{8}", "correct": True},
    {"gold": "B", "response": "(B)", "verifier": "choice", "note": "é"},
    {"gold": 3, "response": "\\boxed{\ud800}", "correct": False},
    {
        "gold": "4",
        "response": "\\boxed{\\int_0^{\\infty} \\frac{\\sin(x^{x^x})}{x^5+\\ln x} dx}",
        "correct": False,
    },
]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_come_back_in_order_with_all_their_fields(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "rows.jsonl", ROWS)
    run_verify(file, "math", 2, 2.0, tmp_path / "out.jsonl")
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [{key: row[key] for key in given} for given, row in zip(ROWS, found, strict=True)] == ROWS
    assert [row["verdict"] for row in found][:4] == ["correct", "wrong", "correct", "correct"]
    assert found[4]["verdict"] != "correct"
    assert (found[5]["verdict"], found[5]["reason"]) == ("unverifiable", "timeout")
    assert found[0].keys() == {*ROWS[0], "verdict", "reason", "extracted", "layer"}
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "6 rows: 3 correct" in printed.err
    assert "accepted of the correct: 2 of 2" in printed.err
    assert not list(tmp_path.glob("*.unfinished"))


def test_rows_go_to_stdout_without_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_verify(write(tmp_path / "rows.jsonl", ROWS[3:4]), "math", 1, 2.0, None)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["verdict"] == "correct"
    assert "label" not in printed.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"gold": "1", "response": "1"}\n{"gold"\n', "rows.jsonl:2"),
        ("[1]\n", "rows.jsonl:1"),
        ('{"gold": "1", "answer": "1"}\n', "rows.jsonl:1: no 'response'; the row has: gold, answer"),
        ('{"gold": "1", "response": "1", "verifier": "maths"}\n', "rows.jsonl:1: unknown verifier 'maths'"),
        ('{"gold": "1", "response": "1", "verifier": 7}\n', "rows.jsonl:1: unknown verifier 7"),
        (
            '{"gold": "1", "response": "1", "metadata": [1]}\n',
            r"rows.jsonl:1: 'metadata' must be a JSON object, found \[1\]",
        ),
    ],
)
def test_faulty_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    with pytest.raises((RecipeError, VerifyError), match=message):
        run_verify(file, "math", 1, 2.0, tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("nowhere/out.jsonl", "there is no directory .*nowhere; make it"),
        ("folder", "is a directory; name a file, for example .*folder/verdicts.jsonl"),
        ("rows.jsonl", "is the file that is read; name another"),
        ("folder/../rows.jsonl", "is the file that is read; name another"),
        ("link.jsonl", "is the file that is read; name another"),
    ],
    ids=["no directory", "a directory", "its input", "its input by another path", "a link to its input"],
)
def test_an_out_that_cannot_be_written_is_refused(tmp_path: Path, out: str, message: str) -> None:
    file = write(tmp_path / "rows.jsonl", ROWS[:1])
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.jsonl").symlink_to(file)
    before = (file.read_bytes(), sorted(tmp_path.iterdir()))
    with pytest.raises(RecipeError, match=f"^--out .*{message}"):
        run_verify(file, "math", 1, 2.0, tmp_path / out)
    assert (file.read_bytes(), sorted(tmp_path.iterdir())) == before


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        run_verify(tmp_path / "none.jsonl", "math", 1, 2.0, None)


@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(0, 0, 0.0, 1.0), (0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0)],
)
def test_wilson_interval(successes: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(successes, total) == pytest.approx((low, high), abs=1e-4)


def test_confusion_table_counts_unverifiable_as_rejected() -> None:
    table = confusion_table(
        Counter({(True, "correct"): 9, (True, "unverifiable"): 1, (False, "unverifiable"): 4})
    )
    assert "accepted of the correct: 9 of 10 = 90.00%" in table
    assert "rejected of the wrong: 4 of 4 = 100.00%" in table


def test_rates_are_told_by_group() -> None:
    counts = Counter(
        {("math", True, "correct"): 3, ("math", True, "wrong"): 1, ("text", False, "unverifiable"): 2}
    )
    table = rates_table(counts).splitlines()
    assert [" ".join(line.split()) for line in table[1:]] == [
        "math | 3/4 75.0% | 0/0 -",
        "text | 0/0 - | 2/2 100.0%",
        "all | 3/4 75.0% | 2/2 100.0%",
    ]


def test_rows_with_a_kind_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "kind": "half"} for row in ROWS[:2]] + [{**ROWS[3], "kind": "letter", "correct": True}]
    run_verify(write(tmp_path / "rows.jsonl", rows), "math", 1, 2.0, tmp_path / "out.jsonl")
    printed = " ".join(capsys.readouterr().err.split())
    assert "math half | 1/1 100.0% | 1/1 100.0% choice letter | 1/1 100.0%" in printed


def verdict(
    problem_id: str, status: str, layer: str, verifier: str = "math", basis: str = "0123456789abcdef-0"
) -> Verdict:
    return Verdict(
        problem_id=problem_id,
        sample=0,
        status=status,  # type: ignore[arg-type]
        basis=basis,
        reason="equal",
        extracted="0.5",
        layer=layer,
        verifier=verifier,
        version="1",
        seconds=0.001,
    )


def trace(problem_id: str, answer: str) -> Trace:
    return Trace(
        problem_id=problem_id,
        sample=0,
        seed=1,
        request="r",
        response=f"<think>Is it \\boxed{{9}}?</think>\n\n{answer}",
        finish_reason="stop",
        prompt_tokens=5,
        output_tokens=5,
        teacher="t",
    )


def problem(
    name: str, gold: str = "1/2", verifier: str = "math", metadata: dict[str, object] | None = None
) -> Problem:
    return Problem(name, f"{name}?", gold, verifier, "s", "MIT", metadata or {})


def context_in(runs: Path) -> Context:
    return load_context(ROOT / "recipes/demo.yaml", runs, Start(recipe="my/own.yaml"))


def write_run(context: Context, rows: list[tuple[Problem, str, str, str]]) -> None:
    """Problems, and of each a trace and a verdict: (problem, status, layer, answer)."""
    tags = tags_digest(context.teacher.tags)
    files = {
        "problems/problems.jsonl": [one for one, _, _, _ in rows],
        "generate/traces-00000.jsonl": [trace(one.id, answer) for one, _, _, answer in rows],
        "generate/verdicts.jsonl": [
            verdict(one.id, status, layer, one.verifier, basis_of(one, tags))
            for one, status, layer, _ in rows
        ],
    }
    for name, records in files.items():
        (context.run / name).parent.mkdir(parents=True, exist_ok=True)
        (context.run / name).write_text("".join(to_json(record) + "\n" for record in records))


def test_audit_finds_both_kinds_of_error_and_changes_nothing(tmp_path: Path) -> None:
    context = context_in(tmp_path)
    rows = [("right", "correct", "\\boxed{0.5}"), ("accepted", "correct", "\\boxed{0.7}"),
            ("rejected", "wrong", "\\boxed{0.5}"), ("wrong", "wrong", "\\boxed{3}")]  # fmt: skip
    write_run(context, [(problem(name), status, "numeric", answer) for name, status, answer in rows])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    report = audit_run(context, sample=10, workers=1)
    assert "(false accepts): 1 of 2 = 50.00%" in report
    assert "(false rejects): 1 of 2 = 50.00%" in report
    assert "accepted sample 0: gold '1/2', answer '0.5': correct by numeric, wrong by math_verify" in report
    assert "no second opinion" not in report
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == before


def test_audit_has_no_second_opinion_on_what_is_not_mathematics(tmp_path: Path) -> None:
    """Read as mathematics, "B" is a variable and {"a": 1} a set: math would call these answers wrong."""
    context = context_in(tmp_path)
    family = {"family": "chain_sum", "entry": {}}
    write_run(
        context,
        [
            (problem("letter", "B", "choice"), "correct", "string", "(B) 1/2"),
            (problem("word", "cat", "text"), "correct", "string", "\\boxed{The cat}"),
            (problem("object", '{"a": 1}', "json"), "correct", "json", '{"a": 1.0}'),
            (problem("texts", '["cat"]', "any", {"verifier": "text"}), "correct", "string", "cat"),
            (problem("grid", "1 2\n2 1", "reasoning_gym", family), "correct", "reasoning_gym", "1 2\n2 1"),
            (problem("sum", "-1,003", "reasoning_gym", family), "correct", "reasoning_gym", "-1003"),
            (problem("other sum", "7", "reasoning_gym", family), "correct", "reasoning_gym", "8"),
            (problem("golds", '["1/2", "2"]', "any"), "wrong", "numeric", "\\boxed{0.5}"),
        ],
    )
    report = audit_run(context, sample=20, workers=1)
    assert "no second opinion: 5 verdicts, which are in no rate" in report
    assert "(any 1, choice 1, json 1, reasoning_gym 1, text 1)" in report
    table = [line.split() for line in report.splitlines()]
    assert ["correct", "string", "|", "no", "second", "opinion", "3"] in table
    assert ["correct", "reasoning_gym", "|", "correct", "1"] in table
    assert "(false accepts): 1 of 2 = 50.00%" in report
    assert "(false rejects): 1 of 1 = 100.00%" in report
    assert "  other sum sample 0: gold '7'" in report


def test_each_verifier_has_its_second_opinion_or_none() -> None:
    opinions = {
        name: second_row(verdict("p", "correct", "string", name), problem("p", "7", name), "7")
        for name in VERIFIERS
    }
    assert {name for name, row in opinions.items() if row is not None} == {"math", "reasoning_gym", "any"}


def test_audit_asks_about_verdicts_of_todays_tags_only(tmp_path: Path) -> None:
    context = context_in(tmp_path)
    write_run(context, [(problem("p"), "correct", "numeric", "\\boxed{0.5}")])
    stale = verdict("p", "wrong", "", basis="0123456789abcdef-00000000")
    file = context.run / "generate/verdicts.jsonl"
    file.write_text(to_json(stale) + "\n" + file.read_text() + '{"problem_id": "cut')
    report = audit_run(context, workers=1)
    assert "(false accepts): 0 of 1" in report
    assert "(false rejects): no rows" in report


def test_audit_names_the_line_that_is_not_a_verdict(tmp_path: Path) -> None:
    context = context_in(tmp_path)
    write_run(context, [(problem("p"), "correct", "numeric", "\\boxed{0.5}")])
    with (context.run / "generate/verdicts.jsonl").open("a") as file:
        file.write('{"problem_id": "p"}\n')
    with pytest.raises(StageError, match=r"verdicts.jsonl:2: is not a verdict \(.* missing "):
        audit_run(context, workers=1)


def test_audit_of_nothing_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(
        StageError, match=r"problems.jsonl does not exist: .* make generate RECIPE=my/own.yaml"
    ):
        audit_run(context_in(tmp_path))


@pytest.mark.parametrize(
    ("verdicts", "message"),
    [(None, "verdicts.jsonl does not exist: generate has not run"), ("", "verdicts.jsonl holds no verdict")],
    ids=["no generate", "no verdict yet"],
)
def test_audit_before_generate_says_so(tmp_path: Path, verdicts: str | None, message: str) -> None:
    context = context_in(tmp_path)
    context.directory("problems").mkdir(parents=True)
    (context.directory("problems") / "problems.jsonl").write_text(to_json(problem("p")) + "\n")
    if verdicts is not None:
        context.directory("generate").mkdir()
        (context.directory("generate") / "verdicts.jsonl").write_text(verdicts)
    with pytest.raises(StageError, match=rf"{message}.* Run: make generate RECIPE=my/own.yaml"):
        audit_run(context, workers=1)


@pytest.mark.parametrize("sample", [0, -5])
def test_audit_of_a_sample_of_none_is_refused(tmp_path: Path, sample: int) -> None:
    with pytest.raises(RecipeError, match=f"--sample {sample}: at least 1 verdict"):
        audit_run(context_in(tmp_path), sample)


def test_the_sample_is_seeded_and_half_accepted() -> None:
    verdicts = [verdict(f"p{k}", "correct" if k % 10 else "wrong", "string") for k in range(5_000)]
    chosen = choose(verdicts, 100, 3)
    assert {one.problem_id for one in chosen} == {one.problem_id for one in choose(verdicts[::-1], 100, 3)}
    assert Counter(one.status for one in chosen) == {"correct": 50, "wrong": 50}
    assert choose(verdicts, 100, 4) != chosen
    assert len(choose(verdicts[:7], 100, 3)) == 7
