"""The page in headless Chromium: nothing runs that a model wrote, search and filters work on 2,000 traces."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, Browser
from tests.finished_run import Run, write_report, write_run

PAGE = 40  # entries that page.js lists at a time

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian's package: chromium)"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with 1,000 traces, and 1,000 responses to questions."""
    context = write_run(Run(tmp_path_factory.mktemp("page"), questions=200, traces=1_000))
    write_report(context)
    return context.directory("report") / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200], ids=["phone", "desktop"])
def test_it_opens_without_complaint_and_asks_for_nothing(
    page: Path, browser: Browser, width: int, dark: bool
) -> None:
    browser.open(page, width, dark)
    assert browser.requests == [page.as_uri()]
    assert browser.complaints == []
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    shade = browser.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(shade[:3]) < 200) == dark


def test_a_script_inside_a_trace_is_shown_and_does_not_run(page: Path, browser: Browser) -> None:
    browser.open(page)
    opened = browser.run(
        "(() => { document.querySelectorAll('.more').forEach(b => { while (!b.hidden) b.click(); });"
        "const heads = [...document.querySelectorAll('.item > button')]; heads.forEach(h => h.click());"
        "return heads.length; })()"
    )
    assert opened >= 1_000
    assert "document.title='ran'" in browser.run("document.body.textContent")
    assert browser.run("document.title") == "finished: report"
    assert browser.run("document.querySelectorAll('.browser script, .browser img').length") == 0
    assert browser.complaints == []


def test_search_and_filters_find_what_they_say(page: Path, browser: Browser) -> None:
    browser.open(page)
    browser.run("window.root = document.querySelector('[data-view=traces]'); 0")
    state = "root.querySelector('.state').textContent"
    assert browser.run(state).startswith("1,000 of 1,000 match")
    browser.run(
        "(s => { s.value = 'cut'; s.dispatchEvent(new Event('change')); })(root.querySelector('.group'))"
    )
    assert not browser.run(state).startswith("1,000 of")
    assert browser.run("[...root.querySelectorAll('.item .tag')].every(t => t.textContent === 'cut')")
    browser.run(
        "(i => { i.value = 'no such words at all'; i.dispatchEvent(new Event('input')); })"
        "(root.querySelector('input'))"
    )
    browser.run(
        f"new Promise(done => {{ const look = () => {state}.startsWith('0 of 1,000 match')"
        " ? done(0) : setTimeout(look, 20); look(); })"
    )


def test_a_search_over_everything_answers_at_once_and_lists_one_page(page: Path, browser: Browser) -> None:
    browser.open(page)
    found = browser.run(
        """[...document.querySelectorAll('.browser')].map(root => {
          const select = root.querySelector('.group'), input = root.querySelector('input');
          return ['sum', 'ones of', 'zzz', ''].map(text => {
            input.value = text;
            select.dispatchEvent(new Event('change'));
            const listed = root.querySelectorAll('.item').length;
            return [parseInt(root.querySelector('.state').textContent.replace(',', '')), listed];
          });
        })"""
    )
    for view in found:
        assert [matching == 0 for matching, _ in view] == [False, False, True, False]
        assert all(listed == min(matching, PAGE) for matching, listed in view), view
