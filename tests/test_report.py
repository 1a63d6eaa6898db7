"""The report of a finished run: three files that agree with results.json, and nothing that runs."""

import html
import json
import re
from pathlib import Path

import pytest

from pipeline.errors import StageError
from pipeline.report import run as write_report
from pipeline.report.page import inert_json, policy, source_hash
from pipeline.report.traces import clipped, shares
from pipeline.stage import Context
from tests.finished_run import HOSTILE, Run, write_run


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """A run of which the report is written."""
    context = write_run(Run(tmp_path_factory.mktemp("report"), questions=25, traces=80))
    write_report(context)
    return context


def text_of(context: Context, name: str) -> str:
    return (context.directory("report") / name).read_text(encoding="utf-8")


def results_of(context: Context) -> dict:
    return json.loads((context.directory("eval") / "results.json").read_text())


def test_the_path_of_the_page_is_all_that_is_printed(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (context.directory("report") / "report.html").stat().st_mtime_ns
    write_report(context)
    assert capsys.readouterr().out == f"{context.directory('report') / 'report.html'}\n"
    assert (context.directory("report") / "report.html").stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["report.html", "report.md", "README.md"])
def test_every_file_has_every_score_with_its_interval(context: Context, name: str) -> None:
    text = text_of(context, name)
    for entry in results_of(context)["tasks"].values():
        for model in ("base", "student", "teacher"):
            low, high = entry[model]["ci95"]
            assert f"{100 * entry[model]['pass@1']:.1f}% [{100 * low:.1f}, {100 * high:.1f}]" in text


@pytest.mark.parametrize("name", ["report.html", "report.md", "README.md"])
def test_no_score_stands_without_an_interval(context: Context, name: str) -> None:
    """A percentage in a table cell is followed by its interval, or is one."""
    for cell in re.findall(r"(?:\| |<td>)([^|<]*%[^|<]*?)(?: \||</td>)", text_of(context, name)):
        assert re.search(r"%.*\[.*\]", cell), cell


def test_the_card_names_licences_provenance_and_limits(context: Context) -> None:
    card = text_of(context, "README.md")
    assert card.startswith("---\nlicense:")
    for part in (
        "Apache-2.0",
        "embedded-moe",
        "embedded-dense",
        "chain_sum",
        "## Limits",
        "## Funnel",
        "allowed",
    ):
        assert part in card


def test_the_ledger_has_tokens_money_and_the_forecast(context: Context) -> None:
    text = text_of(context, "report.md")
    assert re.search(r"teacher output tokens per kept trace \| \d+", text)
    assert re.search(r"tokens per point gained \| [\d,]+ \[[\d,]+, [\d,]+\]", text)
    assert "0.5 USD an hour" in text
    assert re.search(r"output tokens \| [\d,]+ \[[\d,]+, [\d,]+\] \| [\d,]+ \| 0\.92", text)


def test_the_funnel_names_every_reason(context: Context) -> None:
    text = text_of(context, "report.md")
    for reason in ("duplicate 5", "contaminated 2", "failed: timeout 1", "wrong", "cut"):
        assert reason in text


def test_no_text_of_a_model_reaches_the_page_as_markup(context: Context) -> None:
    page = text_of(context, "report.html")
    assert HOSTILE not in page
    assert "<img src=x" not in page
    assert page.count("<script") == 2
    assert page.count("</script") == 2
    held = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert held is not None
    assert not set(held[1]) & set("<>&")
    traces = json.loads(held[1])["traces"]
    assert any(HOSTILE in trace["thinking"] for trace in traces)


def test_the_page_asks_for_nothing_outside(context: Context) -> None:
    page = html.unescape(text_of(context, "report.html"))
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href|srcset)=\"(?!data:|#)", page)
    assert "@import" not in page
    assert "unsafe" not in page


def test_the_policy_holds_the_hashes_of_what_is_embedded(context: Context) -> None:
    page = html.unescape(text_of(context, "report.html"))
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert style is not None
    assert script is not None
    for part in (style[1], script[1]):
        assert f"'{source_hash(part)}'" in page


def test_json_that_goes_into_a_page_cannot_end_its_element() -> None:
    text = inert_json({"key": HOSTILE})
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == {"key": HOSTILE}
    assert "'none'" in policy("", "")


def test_a_larger_run_is_sampled_and_every_reason_is_there() -> None:
    from collections import Counter

    counts = Counter({"kept": 100_000, "wrong": 40_000, "cut": 3, "looping": 500})
    shown = shares(counts, 1_000)
    assert sum(shown.values()) == 1_000
    assert shown["cut"] == 3
    assert shown["kept"] >= 300
    assert min(shown["wrong"], shown["looping"]) >= 200


def test_a_long_text_is_cut_in_the_middle_and_says_so() -> None:
    text = "a" * 5_000 + "b" * 5_000
    cut = clipped(text)
    assert len(cut) < 6_100
    assert "4,000 characters left out" in cut
    assert cut.endswith("b")


def test_without_an_evaluation_there_is_no_report(tmp_path: Path) -> None:
    context = Run(tmp_path).context
    with pytest.raises(StageError, match=r"report needs .*eval/manifest.json.*make eval"):
        write_report(context)


def test_a_results_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    context = write_run(Run(tmp_path, questions=4, traces=8))
    (context.directory("eval") / "results.json").write_text("{")
    with pytest.raises(StageError, match=r"results.json: cannot be read"):
        write_report(context)
