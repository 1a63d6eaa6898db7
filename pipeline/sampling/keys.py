"""The compact set of what a store holds: four bits a trace, read from the shards and the verdicts.

A resume over millions of long traces parses no JSON: pipeline.records reads what it needs of a line.
"""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import StageError
from pipeline.records import STOP, TraceRow, trace_row, verdict_row

# CUT: the finish_reason is not "stop", so the trace never counts as correct
DONE, VERIFIED, CORRECT, CUT = 1, 2, 4, 8


@dataclass(frozen=True, slots=True)
class Place:
    """Where a trace's line stands: shard and byte offset."""

    path: Path
    offset: int


class Keys:
    """Bits of each (problem, sample), and the tokens of all traces but the `uncounted` ones."""

    def __init__(self) -> None:
        self._bits: dict[int, int] = {}
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.num_traces = 0
        self.uncounted = 0

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

    def count(self, prompt_tokens: int | None, output_tokens: int | None) -> None:
        """Add the tokens of a trace."""
        self.uncounted += prompt_tokens is None or output_tokens is None
        self.prompt_tokens += prompt_tokens or 0
        self.output_tokens += output_tokens or 0

    def mark(self, row: TraceRow) -> int:
        """Count a trace that the store holds; the bits that its key had before."""
        self.num_traces += 1
        self.count(row.prompt_tokens, row.output_tokens)
        key, shift = compact(row.problem_id), 4 * row.sample
        known = self._bits.get(key, 0)
        self._bits[key] = known | (DONE if row.finish_reason == STOP else DONE | CUT) << shift
        return known >> shift & 15

    def add(self, problem_id: str, sample: int, bits: int) -> None:
        key = compact(problem_id)
        self._bits[key] = self._bits.get(key, 0) | bits << 4 * sample

    def put(self, problem_id: str, sample: int, bits: int) -> None:
        """Let the sample have these bits and no others."""
        key, shift = compact(problem_id), 4 * sample
        self._bits[key] = self._bits.get(key, 0) & ~(15 << shift) | bits << shift


def counts(bits: int, max_samples: int) -> tuple[int, int]:
    """Traces and correct traces among the first `max_samples` samples of a problem with these bits."""
    tries = correct = 0
    for sample in range(max_samples):
        four = bits >> 4 * sample & 15
        tries += four & DONE
        correct += counts_as_correct(four)
    return tries, correct


def compact(problem_id: str) -> int:
    """64 bits of a problem id: the id itself where it is 16 hex digits, else a hash of it."""
    if len(problem_id) == 16:
        try:
            return int(problem_id, 16)
        except ValueError:
            pass
    return int.from_bytes(hashlib.blake2b(problem_id.encode(), digest_size=8).digest(), "big")


def counts_as_correct(bits: int) -> bool:
    """What records.is_correct is for a verdict and its trace."""
    return bool(bits & CORRECT) and not bits & CUT


def verdict_bits(status: str) -> int:
    return VERIFIED | CORRECT if status == "correct" else VERIFIED


def scan_verdicts(path: Path, tags: str, keys: Keys) -> None:
    """Mark what is verified, and what of it is correct, before the traces are marked.

    The last verdict of a key is its verdict; it says nothing where the response was split by other tags than
    those of digest `tags`.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            row = verdict_row(line)
            if row is None:
                raise StageError(
                    f"{path}:{number}: is not a verdict: {line[:80]!r}. Move the directory aside"
                )
            bits = verdict_bits(row.status) if row.basis.endswith(tags) else 0
            keys.put(row.problem_id, row.sample, bits)


def scan_traces(path: Path, requests: Collection[str], keys: Keys) -> Iterator[tuple[str, int, Place]]:
    """Mark what is done; yield the key and the place of each trace without a verdict.

    StageError where a row is of no request of these, is not a trace, or repeats a key.
    """
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = trace_row(line)
            except (ValueError, TypeError) as error:
                raise StageError(
                    f"{path}:{number}: is not a trace ({error}): {line[:80]!r}. Move the directory aside"
                ) from None
            if row.request not in requests:
                ours = ", ".join(sorted(requests))
                raise StageError(
                    f"{path}:{number}: this trace is of request {row.request}, and this run has {ours} "
                    "(another model, prompt, sampling or seed). Traces of two requests are never mixed; give "
                    "the recipe a new `name:`"
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
