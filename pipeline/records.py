"""The records that stages pass on, and the only place that knows their bytes: write, read, stream, index.

A problem is asked, a trace is one sampled response to it, a verdict says whether the trace's answer is right,
an example is what the student is trained on. The first three are JSON lines, examples are Parquet.

    problems.jsonl   Problem                  kept.jsonl, dropped.jsonl   a trace's own line with more fields
    traces-*.jsonl   Trace                    examples.parquet            Example
    verdicts.jsonl   Verdict
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import msgspec

from pipeline.errors import StageError, in_one_line
from pipeline.rows import write_rows

if TYPE_CHECKING:
    import pyarrow

Status = Literal["correct", "wrong", "unverifiable"]
STOP = "stop"  # the finish reason of a response that came to its own end
MAX_CACHED_PROBLEMS = 2_000
ROWS_PER_GROUP = 2_000

# msgspec's own error comes for broken JSON and wrong types, UnicodeDecodeError (a ValueError) for bad UTF-8
UNREADABLE = (msgspec.DecodeError, ValueError)

Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Problem:
    """`id` is `problem_id(question)`; `metadata` is the rest that its verifier needs."""

    id: str
    question: str
    gold: str
    verifier: str
    source: str
    licence: str
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def lot(self) -> str:
        """16 hex digits that seeds and the order of selection go by, of question, gold and verifier.

        Not the id: seeds are what they were when an id held all three, and so are the scores.
        """
        return lot_of(self.question, self.gold, self.verifier)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a response, the one that ended it among them, and the natural logarithm of each one's
    probability. Passed on whole, from the engine to whoever reads the trace.

    `top_ids` and `top_logprobs` hold at each place the most likely tokens, the likeliest first, where asked.
    """

    ids: list[int]
    logprobs: list[float]
    top_ids: list[list[int]] = field(default_factory=list)
    top_logprobs: list[list[float]] = field(default_factory=list)

    @property
    def num_top(self) -> int:
        """How many of the most likely tokens every place holds."""
        return min(map(len, self.top_ids), default=0) if len(self.top_ids) == len(self.ids) else 0


@dataclass(frozen=True, slots=True)
class Trace:
    """One sampled response, as it was sampled: text, thinking tags and blanks included.

    (`problem_id`, `sample`, `request`) is its key; `request` is the fingerprint of model, prompt and
    sampling. `finish_reason` is the engine's word ("stop", "length", ...). `tokens` are there where the
    recipe keeps them. Numbers of tokens are None where nobody has counted them.
    """

    problem_id: str
    sample: int
    seed: int
    request: str
    response: str
    finish_reason: str
    prompt_tokens: int | None
    output_tokens: int | None
    teacher: str
    tokens: Tokens | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`layer` names what decided (string, numeric, ...); `extracted` is the answer that was read.

    `basis` is what it rests on beside the response (pipeline.verify.basis): gold, verifier, metadata and,
    after a dash, the thinking tags. Where any of them changed, the verdict is asked for again.
    """

    problem_id: str
    sample: int
    status: Status
    basis: str
    reason: str
    extracted: str | None
    layer: str
    verifier: str
    version: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Example:
    """`messages` is a chat in the layout of chat templates; the last message is the one that is trained on,
    its thinking apart as `reasoning_content`.

    `num_tokens` is of the whole chat's contents, `trained_tokens` of the last one's; `kind` is trace or mix.
    `gold_from` says where the answer that it was verified against came from: "" the source, or "majority".
    """

    problem_id: str
    sample: int
    messages: list[dict[str, str]]
    num_tokens: int
    trained_tokens: int = 0
    source: str = ""
    licence: str = ""
    kind: str = "trace"
    gold_from: str = ""


Record = TypeVar("Record", Problem, Trace, Verdict)
Read = TypeVar("Read")


def problem_id(question: str) -> str:
    """The first 16 hex digits (64 bits) of sha256 over the question: what a trace is an answer to."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def lot_of(question: str, gold: str, verifier: str) -> str:
    """See Problem.lot: the first 16 hex digits of sha256 over the three parts, each with its length."""
    parts = [question, gold, verifier]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:16]


def is_correct(status: str, finish_reason: str) -> bool:
    """A right answer in a response that came to its own end: a cut response is never correct."""
    return status == "correct" and finish_reason == STOP


def values_of(record: Problem | Trace | Verdict | Example) -> dict[str, Any]:
    """The fields by name, in order; their values are not copied."""
    return {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}


def to_json(record: Problem | Trace | Verdict) -> str:
    """One line of JSON, keys in field order; what a trace does not have is left out."""
    values = values_of(record)
    if isinstance(record, Trace):
        del values["tokens"]
        if record.tokens is not None:
            held = dataclasses.asdict(record.tokens)
            values["tokens"] = {
                name: kept for name, kept in held.items() if kept or not name.startswith("top_")
            }
    return json.dumps(values, ensure_ascii=False)


def from_json(kind: type[Record], line: str | bytes) -> Record:
    """Read back what `to_json` wrote. Raises ValueError on broken JSON, missing or unknown fields."""
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError(f"expected an object, found {type(values).__name__}")
    try:
        if values.get("tokens") is not None:
            values["tokens"] = Tokens(**values["tokens"])
        return kind(**values)
    except TypeError as error:
        raise ValueError(str(error).replace(f"{kind.__name__}.__init__()", kind.__name__)) from None


PROBLEM = msgspec.json.Decoder(Problem)


def line_decoder(kind: type[Record]) -> Callable[[bytes], Record]:
    """Reads a trace or a verdict, fast. A field that it does not have is a fault: filter writes lines on as
    they are, and msgspec skips what it was not asked for, bad UTF-8 included."""
    fields: list[Any] = [
        (f.name, f.type, msgspec.NODEFAULT if f.default is dataclasses.MISSING else f.default)
        for f in dataclasses.fields(kind)
    ]
    decoder: Any = msgspec.json.Decoder(
        msgspec.defstruct(kind.__name__, fields, frozen=True, forbid_unknown_fields=True)
    )
    return decoder.decode


def read_as(decode: Callable[[bytes], Read], what: str, path: Path) -> Iterator[Read]:
    """What `decode` makes of each line, streamed. StageError names file and line of what is not `what`."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield decode(line)
            except UNREADABLE as error:
                raise StageError(f"{path}:{number}: is not {what} ({error})") from None


def read_lines(kind: type[Record], path: Path) -> Iterator[Record]:
    """The records of a file, streamed. StageError names the file and the line that is not one."""
    return read_as(partial(from_json, kind), f"a {kind.__name__.lower()}", path)


def write_lines(path: Path, records: Iterable[Problem]) -> int:
    """Write one record a line; how many there were."""
    return write_rows(path, map(values_of, records))


TRACE_HEAD = re.compile(
    rb'\{"problem_id": "([^"\\]*)", "sample": (\d+), "seed": \d+, "request": "([^"\\]*)", '
)
TRACE_TAIL = re.compile(
    rb', "finish_reason": "([^"\\]*)", "prompt_tokens": (\d+|null), "output_tokens": (\d+|null), '
    rb'"teacher": "[^"\\]*"(?:, "tokens": \{[^}]*\})?\}\n?$'
)


class TraceRow(NamedTuple):
    """What a resume needs of a trace."""

    problem_id: str
    sample: int
    request: str
    finish_reason: str
    prompt_tokens: int | None
    output_tokens: int | None


class VerdictRow(msgspec.Struct):
    """What a resume needs of a verdict."""

    problem_id: str
    sample: int
    status: str
    basis: str


VERDICT_ROW = msgspec.json.Decoder(VerdictRow)


def trace_row(line: bytes) -> TraceRow:
    """Recognised by its first and last fields, so that a resume over millions of long traces parses no JSON;
    a line of another layout is parsed. ValueError where it is not a trace."""
    head = TRACE_HEAD.match(line)
    tail = TRACE_TAIL.match(line, line.rfind(b', "finish_reason": "'))
    if head is None or tail is None:
        trace = from_json(Trace, line)
        return TraceRow(
            trace.problem_id,
            int(trace.sample),
            trace.request,
            trace.finish_reason,
            trace.prompt_tokens,
            trace.output_tokens,
        )
    return TraceRow(
        head[1].decode(), int(head[2]), head[3].decode(), tail[1].decode(), _count(tail[2]), _count(tail[3])
    )


def _count(number: bytes) -> int | None:
    return None if number == b"null" else int(number)


def trace_key(line: bytes) -> tuple[str, int, str] | None:
    """Problem, sample and request of a trace's line; None where it is of another layout."""
    head = TRACE_HEAD.match(line)
    return None if head is None else (head[1].decode(), int(head[2]), head[3].decode())


def verdict_row(line: bytes) -> VerdictRow | None:
    """What a resume needs of a verdict's line; None where it is not a verdict."""
    try:
        return VERDICT_ROW.decode(line)
    except UNREADABLE:
        return None


class KeyOf(msgspec.Struct):
    """The key of a trace's line; the rest of the line is skipped, not built."""

    problem_id: str
    sample: int


class FilteredVerdict(msgspec.Struct):
    status: str
    reason: str = ""
    extracted: str | None = None
    verifier: str = ""


class Filtered(msgspec.Struct):
    """A row of kept.jsonl or dropped.jsonl: a trace with its verdict and its fate, or a row of a mix.

    `rule` and `reason` are empty where it was kept. Of a mix `messages` is the chat. `unsolved`: a wrong
    trace that is kept since no trace of its problem is right.
    """

    source: str = ""
    kind: str = "trace"
    problem_id: str = ""
    sample: int = 0
    response: str = ""
    finish_reason: str = ""
    output_tokens: int | None = None
    verdict: FilteredVerdict | None = None
    question: str = ""
    gold: str = ""
    gold_from: str = ""
    licence: str = ""
    unsolved: bool = False
    rule: str = ""
    reason: str = ""
    detail: str = ""
    num_tokens: int = 0
    trained_tokens: int = 0
    messages: list[dict[str, str]] | None = None

    @property
    def is_correct(self) -> bool:
        return self.verdict is not None and is_correct(self.verdict.status, self.finish_reason)


FILTERED = msgspec.json.Decoder(Filtered)


def filtered_line(trace: bytes, verdict: bytes, more: dict[str, Any]) -> bytes:
    """A trace's own line with its verdict and more fields; the trace is not written anew."""
    return b'%b, "verdict": %b, %b\n' % (trace.rstrip()[:-1], verdict.strip(), msgspec.json.encode(more)[1:])


def with_outcome(line: bytes, rule: str, reason: str, detail: str = "") -> bytes:
    """A filtered line with the rule that dropped it."""
    more = json.dumps({"rule": rule, "reason": reason, "detail": detail}, ensure_ascii=False).encode()
    return b"%b, %b\n" % (line.rstrip()[:-1], more[1:])


def marked_unsolved(line: bytes) -> bytes:
    """A filtered line without the rule that would have dropped it, marked. In JSON no text holds a bare
    quote, so the last key of that name is the one that `with_outcome` wrote."""
    return b'%b, "unsolved": true}\n' % line[: line.rindex(b', "rule": "')]


def read_filtered(path: Path) -> Iterator[Filtered]:
    """The rows of kept.jsonl or dropped.jsonl, streamed; nothing where there is no such file."""
    return read_as(FILTERED.decode, "a row of filter", path) if path.is_file() else iter(())


@dataclass(frozen=True, slots=True)
class ProblemFile:
    """The problems of a file, streamed anew at each iteration."""

    path: Path

    def __iter__(self) -> Iterator[Problem]:
        return read_lines(Problem, self.path)


def _numbers_of(line: bytes) -> tuple[int, int, int]:
    """The id, the lot and the bytes of a problem's line."""
    problem = PROBLEM.decode(line)
    return int(problem.id, 16), int(problem.lot, 16), len(line)


class ProblemIndex:
    """problems.jsonl by id: 24 bytes a problem in memory, the rest read when it is asked for.

    `ids` are sorted, `lots` (see Problem) stand in the same order.
    """

    def __init__(self, path: Path) -> None:
        import numpy

        columns = [("id", "u8"), ("lot", "u8"), ("size", "i8")]
        held = numpy.fromiter(read_as(_numbers_of, "a problem", path), dtype=columns)
        order = numpy.argsort(held["id"])
        self.ids, self.lots = held["id"][order], held["lot"][order]
        self._offsets = (numpy.cumsum(held["size"]) - held["size"])[order]
        self._file = path.open("rb")
        self.line = lru_cache(MAX_CACHED_PROBLEMS)(self._line)

    def __len__(self) -> int:
        return len(self.ids)

    def position(self, problem_id: str) -> int | None:
        """The problem's place in `ids`, which are sorted; None where there is no such problem."""
        try:
            number = int(problem_id, 16)
            place = int(self.ids.searchsorted(self.ids.dtype.type(number)))
        except (ValueError, OverflowError):
            return None
        known = place < len(self.ids) and int(self.ids[place]) == number
        return place if known and problem_id == f"{number:016x}" else None

    def _line(self, position: int) -> bytes:
        """The problem's line of JSON."""
        self._file.seek(int(self._offsets[position]))
        return self._file.readline()

    def close(self) -> None:
        self._file.close()


def example_schema() -> "pyarrow.Schema":
    import pyarrow as pa

    message = pa.struct([(name, pa.string()) for name in ("role", "content", "reasoning_content")])
    kinds = {str: pa.string(), int: pa.int64()}
    return pa.schema(
        [
            (f.name, pa.list_(message) if f.name == "messages" else kinds[f.type])  # type: ignore[index]
            for f in dataclasses.fields(Example)
        ]
    )


def write_examples(path: Path, examples: Iterable[Example]) -> int:
    """Write examples as they come, a row group at a time; how many there were."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns, rows, count = example_schema(), map(values_of, examples), 0
    with pq.ParquetWriter(path, columns, compression="zstd") as writer:
        while group := list(islice(rows, ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, columns))
            count += len(group)
            group.clear()  # not held while the next one is made
    return count


def read_examples(path: Path) -> Iterator[Example]:
    """The examples of a file, streamed in its order. StageError where it cannot be read as examples."""
    import pyarrow
    import pyarrow.parquet as pq

    names = [f.name for f in dataclasses.fields(Example)]
    try:
        with pq.ParquetFile(path) as file:
            held = file.schema_arrow.names
            optional = {f.name for f in dataclasses.fields(Example) if f.default is not dataclasses.MISSING}
            names = [name for name in names if name in held or name not in optional]
            for batch in file.iter_batches(batch_size=1024, columns=names):
                for row in batch.to_pylist():
                    row["messages"] = [
                        {key: value for key, value in turn.items() if value is not None}
                        for turn in row["messages"]
                    ]
                    yield Example(**row)
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        said = in_one_line(error, 200)
        raise StageError(f"{path}: cannot be read as examples ({said}). Run: make filter") from None
