"""The compact set of what a store holds: four bits a trace, read from the shards and the verdicts.

Rows are recognised by their first and last fields (records.to_json writes fields in order), so a resume
over millions of long traces parses no JSON; a row of another layout is parsed.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import StageError

# CUT: the finish_reason is not "stop", so the trace never counts as correct
DONE, VERIFIED, CORRECT, CUT = 1, 2, 4, 8

TRACE_HEAD = re.compile(
    rb'\{"problem_id": "([^"\\]*)", "sample": (\d+), "seed": \d+, "request": "([^"\\]*)", '
)
TRACE_TAIL = re.compile(
    rb', "finish_reason": "([^"\\]*)", "prompt_tokens": (\d+), "output_tokens": (\d+), '
    rb'"teacher": "[^"\\]*"\}\n?$'
)
VERDICT_HEAD = re.compile(rb'\{"problem_id": "([^"\\]*)", "sample": (\d+), "status": "(\w+)", ')


@dataclass(frozen=True, slots=True)
class Place:
    """Where a trace's line stands: shard and byte offset."""

    path: Path
    offset: int


class Keys:
    """Bits of each (problem, sample), and the tokens of all traces."""

    def __init__(self) -> None:
        self._bits: dict[int, int] = {}
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.num_traces = 0

    def __len__(self) -> int:
        """How many problems have something."""
        return len(self._bits)

    def bits(self, problem_id: str, sample: int) -> int:
        return self._bits.get(compact(problem_id), 0) >> 4 * sample & 15

    def all_bits(self, problem_id: str) -> int:
        """Four bits a sample, sample 0 lowest; 0 where nothing is known of the problem."""
        return self._bits.get(compact(problem_id), 0)

    def most_samples(self) -> int:
        """The largest number of samples that a problem has, gaps counted."""
        return max(((bits.bit_length() + 3) // 4 for bits in self._bits.values()), default=0)

    def mark(self, row: "Row") -> int:
        """Count a trace that the store holds; the bits that its key had before."""
        self.num_traces += 1
        self.prompt_tokens += row.prompt_tokens
        self.output_tokens += row.output_tokens
        key, shift = compact(row.problem_id), 4 * row.sample
        known = self._bits.get(key, 0)
        self._bits[key] = known | (DONE | CUT if row.cut else DONE) << shift
        return known >> shift & 15

    def add(self, problem_id: str, sample: int, bits: int) -> None:
        key = compact(problem_id)
        self._bits[key] = self._bits.get(key, 0) | bits << 4 * sample


def counts(bits: int, max_samples: int) -> tuple[int, int]:
    """Traces and correct traces among the first `max_samples` samples of a problem with these bits."""
    tries = correct = 0
    for sample in range(max_samples):
        four = bits >> 4 * sample & 15
        tries += four & DONE
        correct += bool(four & CORRECT) and not four & CUT
    return tries, correct


def compact(problem_id: str) -> int:
    """64 bits of a problem id: the id itself where it is 16 hex digits, else a hash of it."""
    if len(problem_id) == 16:
        try:
            return int(problem_id, 16)
        except ValueError:
            pass
    return int.from_bytes(hashlib.blake2b(problem_id.encode(), digest_size=8).digest(), "big")


def scan_verdicts(path: Path, keys: Keys) -> None:
    """Mark what is verified, and what of it is correct."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            match = VERDICT_HEAD.match(line)
            if match is None:
                raise StageError(f"{path}:{number}: is no verdict: {line[:80]!r}. Move the directory aside")
            bits = VERIFIED | CORRECT if match[3] == b"correct" else VERIFIED
            keys.add(match[1].decode(), int(match[2]), bits)


def scan_traces(path: Path, request: str, keys: Keys) -> Iterator[tuple[str, int, Place]]:
    """Mark what is done; yield the key and the place of each trace without a verdict.

    StageError where a row is of another request, is no trace, or repeats a key.
    """
    wanted = request.encode()
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            row = _read_row(line) or _parse_row(line, path, number)
            if row.request != wanted:
                raise StageError(
                    f"{path}:{number}: this trace is of request {row.request.decode()}, and this run has "
                    f"{request} (another model, prompt, sampling or seed). Traces of two requests are never "
                    "mixed; give the recipe a new `name:`"
                )
            known = keys.mark(row)
            if known & DONE:
                raise StageError(
                    f"{path}:{number}: a second trace of problem {row.problem_id}, sample {row.sample}; each "
                    "key stands once in a store. Were shards of two runs put together? Use --adopt for that"
                )
            if not known & VERIFIED:
                yield row.problem_id, row.sample, Place(path, offset)
            offset += len(line)


class Row(NamedTuple):
    """What a resume needs of a trace."""

    problem_id: str
    sample: int
    request: bytes
    cut: bool
    prompt_tokens: int
    output_tokens: int


def _read_row(line: bytes) -> Row | None:
    """The fields of a line as records.to_json writes it; None for any other line."""
    head = TRACE_HEAD.match(line)
    tail = TRACE_TAIL.match(line, line.rfind(b', "finish_reason": "'))
    if head is None or tail is None:
        return None
    problem_id, sample, request = head.groups()
    reason, prompt_tokens, output_tokens = tail.groups()
    return Row(
        problem_id.decode(), int(sample), request, reason != b"stop", int(prompt_tokens), int(output_tokens)
    )


def _parse_row(line: bytes, path: Path, number: int) -> Row:
    try:
        row = json.loads(line)
        cut = row["finish_reason"] != "stop"
        tokens = (int(row["prompt_tokens"]), int(row["output_tokens"]))
        return Row(str(row["problem_id"]), int(row["sample"]), row["request"].encode(), cut, *tokens)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(
            f"{path}:{number}: is no trace ({type(error).__name__}: {error}): {line[:80]!r}. "
            "Move the directory aside"
        ) from None
