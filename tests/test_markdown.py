"""Text of a run in Markdown: whatever it holds, it renders as the text that it is."""

import re

import pytest
from markdown_it import MarkdownIt

from pipeline.report.table import Table, escape, paragraph, table_lines

NASTY = [
    "[a](http://x)", "![a](http://x)", "[a][b]", "[a]: http://x", "<img src=x>", "<http://x>", "*a*", "**a**", "_a_", "__a__",
    "`a`", "``a``", "~~a~~", "a|b", "\\", "\\|", "\\[a](x)", "&lt;b&gt;", "&amp;", "# a", "> a", "- a", "+ a", "* a", "1. a",
    "1) a", "---", "===", "```\na", "    a", "a\n\n# b", "a\r\n- b", "[[1]](http://x)", "![[1, 2]](x)", "snake_case_name",
    "[0.1, 0.2]", "a\\\n", "|", "a\u2028# b",
]  # fmt: skip
MARKUP = re.compile(r"<(?!/?(p|table|thead|tbody|tr|th|td)\b)")


def rendered(text: str) -> str:
    return MarkdownIt("gfm-like", {"linkify": False}).render(text)


def words(html: str) -> str:
    """What a reader sees."""
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        html = re.sub(r"</?(p|td)>", "", html).replace(entity, character)
    return " ".join(html.split())


@pytest.mark.parametrize("text", NASTY, ids=repr)
def test_a_paragraph_is_its_own_text(text: str) -> None:
    html = rendered(paragraph(text))
    assert not MARKUP.search(html), html
    assert words(html) == " ".join(text.split())


@pytest.mark.parametrize("text", NASTY, ids=repr)
def test_a_cell_is_one_cell_and_its_own_text(text: str) -> None:
    html = rendered("\n".join(table_lines(Table(["a", "b"], [[text, "last"]]))))
    assert not MARKUP.search(html), html
    assert [words(cell) for cell in re.findall(r"<td>.*?</td>", html)] == [" ".join(text.split()), "last"]


@pytest.mark.parametrize(
    "text", ["\x1b[31mred", "\x00", "a\x7fb", "\u202eabc", "\u200bx", "\ud800"], ids=repr
)
def test_what_cannot_be_seen_is_shown(text: str) -> None:
    assert "\N{REPLACEMENT CHARACTER}" in escape(text)
    assert not re.search(r"[\x00-\x1f\x7f\u200b\u202e\ud800]", escape(text))


def test_an_interval_stays_readable() -> None:
    assert escape("81.6% [75.9, 86.9]") == "81.6% [75.9, 86.9]"
