"""Rows of files, as streams: what a path means, the formats, what a cell holds, and chats."""

from pipeline.rows.files import digest_of_all, digests_of, files_of, require_file
from pipeline.rows.lines import Line, json_lines, parse_line, write_rows
from pipeline.rows.tables import count_rows, read_rows, table_lines

__all__ = [
    "Line",
    "count_rows",
    "digest_of_all",
    "digests_of",
    "files_of",
    "json_lines",
    "parse_line",
    "read_rows",
    "require_file",
    "table_lines",
    "write_rows",
]
