"""A table as rows of text, and text as Markdown: it is escaped, so that nothing renders as anything else."""

import re
import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    head: list[str]
    rows: list[list[str]]


def table_lines(table: Table) -> list[str]:
    """A pipe table; what would end a cell or open a tag is escaped."""
    rule = "|" + "---|" * len(table.head)
    return [row_line(table.head), rule, *[row_line(row) for row in table.rows]]


def row_line(cells: list[str]) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"


# what opens code, emphasis, a link, an image, a strike-out, a formula or a cell; _ only at the edge of a
# word. An interval such as [0.1, 0.2] is no link while nothing follows that could make it one
INLINE = re.compile(r"(?P<interval>\[[-+\d., %]*\](?![(\[:]))|[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
# what at the beginning of a line opens a heading, a quotation, a list, a rule or a definition of a link
BLOCK = re.compile(r"[#>+=-]|\d+(?=[.)])")
TAG = re.compile(r"<(?=[A-Za-z/!?])")  # what may open a tag or an address; "p < 0.01" is none
ENTITY = re.compile(r"&(?=[#A-Za-z])")
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls (ESC), signs that turn the direction of writing, line ends


def escape(text: str) -> str:
    """Text for a cell, a heading, or any place in a line."""
    seen = "".join(_shown(character) for character in text)
    marked = INLINE.sub(lambda found: found["interval"] or f"\\{found[0]}", seen)
    return TAG.sub("&lt;", ENTITY.sub("&amp;", marked))


def paragraph(text: str) -> str:
    """Text that stands at the beginning of a line."""
    escaped = escape(text).lstrip()
    found = BLOCK.match(escaped)
    if found is None:
        return escaped
    digits = found[0].isdecimal()
    return f"{found[0]}\\{escaped[found.end() :]}" if digits else f"\\{escaped}"


def _shown(character: str) -> str:
    if character.isspace():
        return " "
    return "\N{REPLACEMENT CHARACTER}" if unicodedata.category(character) in HIDDEN else character
