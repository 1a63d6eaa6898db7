"""A table as rows of text, and its Markdown: cells are escaped, so that no text renders as anything else."""

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


def escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
