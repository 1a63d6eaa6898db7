"""`verify` on a file, and the audit of a run."""

import json
from collections import Counter
from pathlib import Path

import pytest

from pipeline.errors import RecipeError, StageError, VerifyError
from pipeline.records import Problem, Trace, Verdict, to_json
from pipeline.stage import Context, Start
from pipeline.verify.audit import audit_run, choose
from pipeline.verify.command import run_verify
from pipeline.verify.confusion import confusion_table, wilson_interval
from tests.filter_fixtures import make_recipe

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
    {"gold": "4", "response": "\\boxed{\\sum_{k=1}^{1000000000} k^{k}}", "correct": False},
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


def verdict(problem_id: str, status: str, layer: str) -> Verdict:
    return Verdict(problem_id, 0, status, "equal", "0.5", layer, "math", "1", 0.001)  # type: ignore[arg-type]


def trace(problem_id: str, answer: str) -> Trace:
    return Trace(problem_id, 0, 1, "r", "", answer, "stop", 5, 5, "t")


def context_in(runs: Path) -> Context:
    return Context(make_recipe(), runs, Start(recipe="my/own.yaml"))


def test_audit_finds_both_kinds_of_error_and_changes_nothing(tmp_path: Path) -> None:
    context = context_in(tmp_path)
    context.directory("problems").mkdir(parents=True)
    context.directory("generate").mkdir()
    rows = [("right", "correct", "\\boxed{0.5}"), ("accepted", "correct", "\\boxed{0.7}"),
            ("rejected", "wrong", "\\boxed{0.5}"), ("wrong", "wrong", "\\boxed{3}")]  # fmt: skip
    files = {
        "problems/problems.jsonl": [Problem(name, name, "1/2", "math", "s", "MIT") for name, _, _ in rows],
        "generate/traces-00000.jsonl": [trace(name, answer) for name, _, answer in rows],
        "generate/verdicts.jsonl": [verdict(name, status, "numeric") for name, status, _ in rows],
    }
    for name, records in files.items():
        (context.run / name).write_text("".join(to_json(record) + "\n" for record in records))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    report = audit_run(context, sample=10, workers=1)
    assert "(false accepts): 1 of 2 = 50.00%" in report
    assert "(false rejects): 1 of 2 = 50.00%" in report
    assert "accepted sample 0: gold '1/2', answer '0.5': correct by numeric, wrong by math_verify" in report
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.jsonl")} == before


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
    problem = Problem("p", "1/2?", "1/2", "math", "s", "MIT")
    context = context_in(tmp_path)
    context.directory("problems").mkdir(parents=True)
    (context.directory("problems") / "problems.jsonl").write_text(to_json(problem) + "\n")
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
