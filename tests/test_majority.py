"""Problems without a gold answer: how answers are grouped, and what becomes of a run over such problems."""

import asyncio
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pyarrow.parquet
import pytest

from pipeline.context import Context, load_context
from pipeline.errors import RecipeError, StageError
from pipeline.filter import stage as filter_stage
from pipeline.filter.funnel import show_funnel
from pipeline.filter.joins import Inputs
from pipeline.filter.majorities import find_majorities
from pipeline.flags import EngineFlags, WorkerFlags
from pipeline.problems import stage as problems_stage
from pipeline.recipe.sources import Comparing
from pipeline.records import Example, Problem, ProblemFile, read_examples, read_filtered, write_examples
from pipeline.report.tables import majority_note
from pipeline.run.contract import Start
from pipeline.sampling import Store
from pipeline.verify import VerifierPool, verify
from pipeline.verify.majority import Majority, majority_of
from pipeline.verify.table import VOTED
from teachers import generate, import_traces
from teachers.layouts import Columns
from tests.bench.bench_budget import grouped_problems
from tests.bench.bench_majority import OF, agreement, sample, withheld
from tests.served import num_asked, scripted_server
from tests.test_generate import NOWHERE, bytes_in, flags_for

# answers in the order of samples, the share that is needed, and what comes of it: gold, votes, its samples
GROUPS: dict[str, tuple[list[str | None], float, tuple[str | None, int, set[int]]]] = {
    "all alike": (["5", "5", "5", "5"], 0.5, ("5", 4, {0, 1, 2, 3})),
    "by the verifier's own equality": (["1/2", "0.5", "\\frac{1}{2}", "2"], 0.5, ("1/2", 3, {0, 1, 2})),
    "the share is enough": (["5", "5", "6", "7"], 0.5, ("5", 2, {0, 1})),
    "below the share": (["5", "5", "6", "7"], 0.51, (None, 2, set())),
    "of all samples, those without an answer too": (["5", "5", None, None, None], 0.5, (None, 2, set())),
    "a tie is no majority": (["5", "5", "6", "6"], 0.5, (None, 2, set())),
    "a tie that notation hides": (["1/2", "0.5", "0.25", "1/4"], 0.2, (None, 2, set())),
    "a lone answer below a larger group": (["6", "5", "5"], 0.5, ("5", 2, {1, 2})),
    "no answer at all": ([None, None], 0.1, (None, 0, set())),
    "no sample": ([], 0.5, (None, 0, set())),
}


# answers, the share, how many were wanted, and what comes of it: gold, or why there is none
MISSING: dict[str, tuple[list[str | None], float, int, str]] = {
    "one of eight elects nobody": (["5"], 0.5, 8, "too_few_samples"),
    "one of eight without an answer": ([None], 0.5, 8, "too_few_samples"),
    "one of eight, where one is enough": (["5"], 0.125, 8, "5"),
    "four of eight are half": (["5", "5", "5", "5"], 0.5, 8, "5"),
    "three of eight are not": (["5", "5", "5"], 0.5, 8, "too_few_samples"),
    "the missing one would change nothing": (["1", "2", "3", "4", "5", "6", "7"], 0.5, 8, "no_majority"),
    "the missing one could break the tie": (["1", "1", "1", "2", "2", "2", "3"], 0.375, 8, "too_few_samples"),
    "more than were wanted": (["5", "5", "6", "7", "8"], 0.5, 2, "no_majority"),
    "none is there": ([], 0.5, 8, "too_few_samples"),
    # as floats, 0.1 * 30 is more than 3, and 0.7 * 10 less than 7
    "three of thirty are a tenth": (["5"] * 3 + [str(n) for n in range(100, 127)], 0.1, 30, "5"),
    "seven of ten are 0.7": (["5"] * 7 + ["6"] * 3, 0.7, 10, "5"),
    "29 of 50 are 0.58": (["5"] * 29 + ["6"] * 21, 0.58, 50, "5"),
}


@pytest.mark.parametrize(("answers", "share", "of", "expected"), MISSING.values(), ids=MISSING.keys())
def test_a_sample_that_is_missing_is_no_vote(
    answers: list[str | None], share: float, of: int, expected: str
) -> None:
    found = grouped(answers, share, of=of)
    assert (found.gold or found.lacking) == expected
    assert (found.samples, found.missing) == (len(answers), max(of - len(answers), 0))
    assert bool(found.members) is (found.gold is not None)


def test_the_recipe_and_the_verifiers_agree_on_what_can_be_compared() -> None:
    assert get_args(Comparing) == VOTED


def grouped(answers: list[str | None], min_share: float, verifier: str = "math", of: int = 0) -> Majority:
    grouping = majority_of(list(enumerate(answers)), min_share, of)
    try:
        answer, gold = next(grouping)
        while True:
            verdict = verify(f"\\boxed{{{answer}}}", gold, verifier)
            answer, gold = grouping.send(verdict.status == "correct")
    except StopIteration as end:
        return end.value


@pytest.mark.parametrize(("answers", "share", "expected"), GROUPS.values(), ids=GROUPS.keys())
def test_answers_are_grouped(
    answers: list[str | None], share: float, expected: tuple[str | None, int, set[int]]
) -> None:
    found = grouped(answers, share)
    assert (found.gold, found.votes, found.members) == expected
    assert found.samples == len(answers)


def test_the_order_in_which_samples_finished_changes_nothing() -> None:
    answers = [(0, "1/2"), (1, "3"), (2, "0.5"), (3, "3"), (4, "0.50")]

    def driven(pairs: list[tuple[int, str]]) -> tuple[Majority, int]:
        grouping, count = majority_of(pairs, 0.5), 0
        try:
            pair = next(grouping)
            while True:
                count += 1
                pair = grouping.send(len({float(eval_fraction(text)) for text in pair}) == 1)
        except StopIteration as end:
            return end.value, count

    def eval_fraction(text: str) -> float:
        top, _, bottom = text.partition("/")
        return float(top) / float(bottom or 1)

    assert driven(answers) == driven(answers[::-1])
    assert driven(answers)[0] == Majority("1/2", frozenset({0, 2, 4}), 3, 5)
    # the same text is compared once, another with the first of each group, and the first with itself
    assert driven(answers)[1] == 5


def test_an_answer_that_cannot_be_a_gold_is_in_no_group() -> None:
    unreadable = "the set of all those that we found above"
    assert verify(f"\\boxed{{{unreadable}}}", unreadable, "math").status in ("correct", "unverifiable")
    grouping = majority_of([(0, "x"), (1, "x"), (2, "y")], 0.3)
    assert next(grouping) == ("x", "x")
    assert grouping.send(False) == ("y", "y")  # x does not equal itself
    with pytest.raises(StopIteration) as end:
        grouping.send(True)
    assert end.value.value == Majority("y", frozenset({2}), 1, 3)


def test_one_that_cannot_be_a_gold_is_a_sample_all_the_same() -> None:
    grouping = majority_of([(0, "x")], 0.5, 2)
    next(grouping)
    with pytest.raises(StopIteration) as end:
        grouping.send(False)
    assert end.value.value == Majority(None, frozenset(), 0, 1, 1, "too_few_samples")


@pytest.mark.parametrize(
    ("verifier", "response", "extracted"),
    [
        ("math", "So it is \\boxed{12}.", "12"),
        ("choice", "The answer is (B).", "(B)"),
        ("text", "\\boxed{The Thames}", "The Thames"),
        ("json", '```json\n{"a": 1}\n```', '{"a": 1}'),
    ],
)
def test_a_worker_reads_the_answer_of_a_problem_without_gold(
    verifier: str, response: str, extracted: str
) -> None:
    verdict = verify(response, "", "majority", {"verifier": verifier, "of": 8})
    assert (verdict.status, verdict.reason, verdict.extracted) == ("unverifiable", "no_gold", extracted)
    nothing = verify("", "", "majority", {"verifier": verifier, "of": 8})
    assert nothing.status in ("wrong", "unverifiable")
    assert nothing.extracted is None


# --- a run ---

RECIPE = """\
name: {name}
seed: 0
problems:
  sources:
    - {{path: {path}, name: sums, majority: {{min_share: {share}, of: 6}}}}
  decontaminate: false
generate:
  teacher: embedded-moe
  prompt: plain
  samples: {{keep: 1, max: 4}}
  sampling: {{temperature: 1.0, max_tokens: 256}}
filter:
  rules: [finished, correct]
  select: {{per_problem: 2, prefer: first}}
train: {{student: embedded-dense, method: full, epochs: 1, learning_rate: 1.0e-3, max_length: 512}}
eval:
  tasks: [{{reasoning_gym: chain_sum, size: 5}}]
"""
NUM_OPEN, NUM_KNOWN = 40, 10


def context_of(directory: Path, share: float = 0.5, rows: Path | None = None, force: bool = False) -> Context:
    path = directory / "small.yaml"
    path.write_text(RECIPE.format(name="small", path=(rows or directory) / "sums.jsonl", share=share))
    return load_context(path, directory / "runs", Start(force=force, recipe=str(path)))


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over sums, most without a gold answer, with all up to generate finished."""
    directory = tmp_path_factory.mktemp("sampled")
    rows: list[dict[str, Any]] = [{"question": f"What is {n} + {3 * n}?"} for n in range(1, NUM_OPEN + 1)]
    rows += [{"question": f"What is {n} + {2 * n}?", "answer": str(3 * n)} for n in range(1, NUM_KNOWN + 1)]
    rows[1]["answer"] = None
    (directory / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    context = context_of(directory)
    problems_stage.run(context, WorkerFlags(workers=1))
    with scripted_server(0.0) as url:
        generate.run(context, flags_for(url))
    return directory


def copied(sampled: Path, directory: Path) -> Path:
    shutil.copytree(sampled, directory, dirs_exist_ok=True)
    return directory


def problems_of(context: Context) -> dict[str, Problem]:
    return {p.id: p for p in ProblemFile(context.directory("problems") / "problems.jsonl")}


def true_sum(question: str) -> str:
    numbers = [int(word.strip("?")) for word in question.split() if word.strip("?").isdigit()]
    return str(sum(numbers))


def test_all_samples_of_a_problem_without_gold_are_taken(sampled: Path) -> None:
    context = context_of(sampled)
    problems, taken = problems_of(context), Counter(t.problem_id for t in traces_of(context))
    tries = {t["problem_id"]: t for t in read_tries(context)}
    for problem in problems.values():
        if problem.verifier == "majority":
            assert (problem.gold, problem.metadata) == ("", {"verifier": "math", "of": 6})
            assert taken[problem.id] == 6
            assert (tries[problem.id]["tries"], tries[problem.id]["solved"]) == (6, None)
        else:
            assert problem.gold == true_sum(problem.question)
            assert taken[problem.id] <= 4
            assert tries[problem.id]["solved"] is not None
    open_ones = sum(problem.verifier == "majority" for problem in problems.values())
    assert context.require("problems", "a test").notes["without_gold"] == {"sums": open_ones}
    assert context.require("generate", "a test").notes["undecided"] == open_ones


def traces_of(context: Context) -> Any:
    return Store(context.directory("generate")).traces()


def read_tries(context: Context) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (context.directory("generate") / "tries.jsonl").open()]


def test_the_majority_is_the_gold_and_is_marked_as_such(
    sampled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = context_of(copied(sampled, tmp_path))
    problems = problems_of(context)
    answers: dict[str, Counter[str]] = {}
    for trace in traces_of(context):
        answers.setdefault(trace.problem_id, Counter())[trace.response.rpartition("{")[2].strip("}")] += 1
    expected = {}
    for problem_id, counts in answers.items():
        if problems[problem_id].verifier == "majority":
            (first, votes), *others = counts.most_common()
            tied = bool(others) and others[0][1] == votes
            expected[problem_id] = None if tied or votes < 3 else first
    filter_stage.run(context, WorkerFlags(workers=1))
    directory = context.directory("filter")
    kept, dropped = (list(read_filtered(directory / f"{name}.jsonl")) for name in ("kept", "dropped"))
    for row in [*kept, *dropped]:
        if row.problem_id not in expected:
            assert (row.gold_from, row.gold) == ("", problems[row.problem_id].gold)
            continue
        assert row.gold_from == "majority"
        assert row.gold == (expected[row.problem_id] or "")
    no_majority = {row.problem_id for row in dropped if row.reason == "no_majority"}
    assert no_majority == {problem_id for problem_id, gold in expected.items() if gold is None}
    assert no_majority
    assert {row.verdict.status for row in kept if row.verdict} == {"correct"}
    assert any(row.gold_from for row in kept)
    assert any(not row.gold_from for row in kept)
    manifest = context.require("filter", "a test")
    assert manifest.notes["without_gold"] == {
        "sums": {"majority": len(expected) - len(no_majority), "no_majority": len(no_majority)}
    }
    assert manifest.counts.dropped["no_majority"] == 6 * len(no_majority)
    assert manifest.usage.verified_again == 0
    examples = Counter(example.gold_from for example in read_examples(directory / "examples.parquet"))
    assert examples == Counter(row.gold_from for row in kept)
    show_funnel(context)
    printed = capsys.readouterr().out
    assert "sums (majority)" in printed
    assert "- no_majority" in printed
    assert f"without a gold answer {len(expected)}" in " ".join(printed.split())


def test_imported_traces_elect_nobody_by_themselves(
    sampled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One wrong trace of each problem: none is kept, and every count says that there were too few."""
    context = context_of(tmp_path, rows=sampled)
    problems_stage.run(context, WorkerFlags(workers=1))
    problems = problems_of(context)
    open_ones = {problem.id for problem in problems.values() if problem.verifier == "majority"}
    rows = []
    for problem in problems.values():
        answer = "7" if problem.id in open_ones else problem.gold
        turns = {"human": problem.question, "gpt": f"So it is.\n</think>\n\\boxed{{{answer}}}"}
        rows.append({"conversations": [{"from": who, "value": text} for who, text in turns.items()]})
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    imported = import_traces.Imported(tmp_path / "traces.jsonl", "sharegpt", Columns())
    import_traces.run(context, imported, WorkerFlags(workers=1))
    filter_stage.run(context, WorkerFlags(workers=1))
    manifest = context.require("filter", "a test")
    assert len(open_ones) > 20
    assert manifest.counts.dropped == {"too_few_samples": len(open_ones)}
    assert manifest.notes["without_gold"] == {"sums": {"too_few_samples": len(open_ones)}}
    kept, dropped = (
        list(read_filtered(context.directory("filter") / f"{n}.jsonl")) for n in ("kept", "dropped")
    )
    assert {row.problem_id for row in kept} == problems.keys() - open_ones
    assert {row.detail for row in dropped} == {"1 of 1 (5 missing) samples say the same"}
    show_funnel(context)
    assert re.search(rf"- too_few_samples +{len(open_ones)} ", capsys.readouterr().out)
    said = majority_note(SimpleNamespace(manifests={"filter": manifest}))  # type: ignore[arg-type]
    assert said is not None
    assert f"Of these {len(open_ones)} have too few samples" in said


@pytest.mark.parametrize("num_left", [1, 4])
def test_samples_whose_requests_failed_are_no_votes(sampled: Path, tmp_path: Path, num_left: int) -> None:
    """Of six traces of each problem those that failed are not there."""
    context = context_of(tmp_path, rows=sampled)
    shutil.copytree(sampled / "runs/small/problems", context.directory("problems"))
    source = sampled / "runs/small/generate"
    lines = (source / "traces-00000.jsonl").read_text().splitlines(keepends=True)
    left = [line for line in lines if json.loads(line)["sample"] < num_left]
    (tmp_path / "left.jsonl").write_text("".join(left))
    inputs = Inputs(
        context.directory("problems") / "problems.jsonl",
        [tmp_path / "left.jsonl"],
        source / "verdicts.jsonl",
        min_shares={"sums": 0.5},
    )
    found = find_majorities(inputs, context.teacher.tags, 1)
    assert {majority.missing for majority in found.found.values()} == {6 - num_left}
    assert all(majority.votes >= 3 for majority in found.found.values() if majority.gold is not None)
    counts = found.by_source["sums"]
    lone = [majority for majority in found.found.values() if majority.votes + majority.missing < 3]
    assert counts["no_majority"] >= len(lone)
    assert (counts["majority"] > 0) is (num_left >= 3)
    if num_left < 3:
        assert counts.keys() - {"majority", "no_majority"} == {"too_few_samples"}


def test_another_share_asks_no_teacher(sampled: Path, tmp_path: Path) -> None:
    directory = copied(sampled, tmp_path)
    for share in (0.5, 1.0):
        context = context_of(directory, share, sampled)
        before = bytes_in(context.directory("generate"))
        problems_stage.run(context, WorkerFlags(workers=1))
        generate.run(context, flags_for(NOWHERE))
        assert bytes_in(context.directory("generate")) == before
        filter_stage.run(context_of(directory, share, sampled, force=share == 1.0), WorkerFlags(workers=1))
    strict = context.require("filter", "a test").notes["without_gold"]["sums"]
    first = json.loads((directory / "runs/small/filter.1/manifest.json").read_text())
    assert strict["no_majority"] > first["notes"]["without_gold"]["sums"]["no_majority"]


def test_more_samples_buy_only_those_that_are_missing(sampled: Path, tmp_path: Path) -> None:
    directory = copied(sampled, tmp_path)
    path = directory / "small.yaml"
    context_of(directory)
    path.write_text(path.read_text().replace("of: 6", "of: 8"))
    context = load_context(path, directory / "runs", Start(force=True, recipe=str(path)))
    problems_stage.run(context, WorkerFlags(workers=1))
    with scripted_server(0.0) as url:
        generate.run(context, flags_for(url))
        open_ones = sum(p.verifier == "majority" for p in problems_of(context).values())
        assert num_asked(url) == 2 * open_ones
    assert {t["tries"] for t in read_tries(context) if t["solved"] is None} == {8}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("of: 6", "of: 1"), r"majority.of: "),
        (("min_share: 0.5", "min_share: 0"), r"majority.min_share: "),
        (("name: sums,", "name: sums, verifier: judge,"), "a section judge"),
        (("name: sums,", "name: sums, verifier: any,"), r"source sums: a majority is of answers .*'any'"),
        (("name: sums,", "name: sums, verifier: code,"), r"source sums: a majority is of answers .*'code'"),
        (
            ("{reasoning_gym: chain_sum, size: 5}", "{path: a.jsonl, majority: {}}"),
            "scored against gold answers",
        ),
    ],
    ids=["one sample", "no share", "a judge", "any", "code", "a task"],
)
def test_a_fault_of_a_majority_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "faulty.yaml"
    text = RECIPE.format(name="faulty", path=tmp_path / "sums.jsonl", share=0.5)
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(RecipeError, match=message):
        load_context(path, tmp_path / "runs")


def test_a_verifier_whose_answers_cannot_be_compared_is_named(sampled: Path, tmp_path: Path) -> None:
    directory = copied(sampled, tmp_path)
    path = directory / "other.yaml"
    text = RECIPE.format(name="other", path=directory / "sums.jsonl", share=0.5)
    path.write_text(text.replace("name: sums,", "name: sums, verifier: any,"))
    with pytest.raises(
        RecipeError, match="a majority is of answers that verifier choice or json or math or text"
    ):
        problems_stage.run(load_context(path, directory / "runs"), WorkerFlags(workers=1))


def test_greedy_samples_have_no_majority(sampled: Path, tmp_path: Path) -> None:
    directory = copied(sampled, tmp_path)
    path = directory / "small.yaml"
    context_of(directory)
    context = load_context(path, directory / "runs", overrides=["generate.sampling.temperature=0"])
    with pytest.raises(RecipeError, match="which would be of one answer"):
        generate.run(context, flags_for(NOWHERE))


def test_examples_that_were_written_before_there_was_a_majority_are_read(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]
    write_examples(tmp_path / "new.parquet", [Example("0" * 16, 0, turns, 4, 1, "sums", "MIT")])
    table = pyarrow.parquet.read_table(tmp_path / "new.parquet")
    pyarrow.parquet.write_table(table.drop_columns(["gold_from"]), tmp_path / "old.parquet")
    [new], [old] = (list(read_examples(tmp_path / f"{name}.parquet")) for name in ("new", "old"))
    assert old == new
    assert old.gold_from == ""
    pyarrow.parquet.write_table(table.drop_columns(["messages"]), tmp_path / "torn.parquet")
    with pytest.raises(StageError, match="cannot be read as examples"):
        list(read_examples(tmp_path / "torn.parquet"))


# --- for real ---


@pytest.mark.slow
def test_the_majority_of_the_embedded_teacher_is_right_more_often_than_a_sample(tmp_path: Path) -> None:
    """Of families that it was trained on. Of sums longer than those, which it gets wrong nearly always and
    alike, the majority is wrong too: make bench-majority shows both."""
    groups = grouped_problems(24)
    problems = [*groups["chain_sum"], *groups["gcd"]]
    with VerifierPool(workers=1) as pool:
        flags = EngineFlags(concurrency=64, kv_cache_gib=1)
        answers = asyncio.run(sample(list(map(withheld, problems)), tmp_path, flags, pool))
        assert {len(held) for held in answers.values()} == {OF}
        found = agreement(problems, answers, pool)
    print(json.dumps(found.to_json()))
    single = found.right / found.samples
    agreed = {share: found.agreed[share] / found.found[share] for share in (0.5, 0.75)}
    assert found.found[0.25] >= found.found[0.5] >= found.found[0.75] > 0
    assert agreed[0.75] >= agreed[0.5] > single
    assert agreed[0.75] >= 0.8
