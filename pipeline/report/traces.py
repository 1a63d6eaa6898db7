"""What the trace browser shows: kept and dropped traces with reasons, and all models on the same question.

Reads filter's kept.jsonl and dropped.jsonl and eval's problems, samples and verdicts, each as a stream. A run
with more than fits is sampled, the same traces every time, and the page says how many there were.
"""

import hashlib
import heapq
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.sampling.store import Store

MAX_TRACES = 1_000
MAX_ANSWERS = 1_000
MAX_SAMPLES = 4  # of one model on one question
MAX_CHARACTERS = 6_000  # of one trace; the files hold it whole
REASON = re.compile(rb'"reason": "([^"\\]*)", "detail": ')
TOKENS = re.compile(rb'"output_tokens": (\d+), "teacher": ')


@dataclass(slots=True)
class Sifted:
    """What became of the traces: how many by reason ("kept" is one) and by length, and some to read."""

    counts: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, Counter[int]] = field(default_factory=dict)
    shown: list[dict[str, Any]] = field(default_factory=list)


def sifted_traces(directory: Path) -> Sifted:
    """Kept and dropped traces of a filter directory; each reason has its share of what is shown."""
    found = Sifted()
    chosen: dict[str, list[tuple[bytes, bytes]]] = {}
    for name in ("kept.jsonl", "dropped.jsonl"):
        for line in lines_of(directory / name):
            reason = "kept" if name == "kept.jsonl" else reason_of(line)
            found.counts[reason] += 1
            length = TOKENS.search(line)
            group = "kept" if reason == "kept" else "dropped"
            found.lengths.setdefault(group, Counter())[int(length[1]) if length else 0] += 1
            keep_some(chosen.setdefault(reason, []), line, MAX_TRACES)
    for reason, number in shares(found.counts, MAX_TRACES).items():
        for _, line in heapq.nsmallest(number, ((order_of(line), line) for _, line in chosen[reason])):
            found.shown.append(trace_entry(json.loads(line), reason))
    found.shown.sort(key=lambda entry: order_of(repr(entry).encode()))
    return found


def lines_of(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with path.open("rb") as file:
            yield from file


def reason_of(line: bytes) -> str:
    """The reason of a dropped row: the last such field, as the row's own fields stand behind its trace."""
    reasons = REASON.findall(line)
    return reasons[-1].decode() if reasons else str(json.loads(line).get("reason", "unknown"))


def order_of(line: bytes) -> bytes:
    """A place in a draw that depends on the line alone."""
    return hashlib.blake2b(line, digest_size=8).digest()


def keep_some(heap: list[tuple[bytes, bytes]], line: bytes, limit: int) -> None:
    """Keep the `limit` lines that come first in the draw (keys are inverted: the heap drops the last)."""
    key = bytes(255 - byte for byte in order_of(line))
    if len(heap) < limit:
        heapq.heappush(heap, (key, line))
    elif key > heap[0][0]:
        heapq.heapreplace(heap, (key, line))


def shares(counts: Counter[str], limit: int) -> dict[str, int]:
    """How many of each reason are shown: all where they fit, else half kept, the rest shared evenly."""
    if counts.total() <= limit:
        return dict(counts)
    left, given = limit, {}
    groups = sorted(counts, key=lambda reason: (reason == "kept", counts[reason]))
    for place, reason in enumerate(groups):
        others = len(groups) - place
        fair = left // 2 if reason == "kept" and others > 1 else left // others
        given[reason] = min(counts[reason], fair)
        left -= given[reason]
    return given


def trace_entry(row: dict[str, Any], reason: str) -> dict[str, Any]:
    verdict = row.get("verdict") or {}
    return {
        "reason": reason,
        "rule": row.get("rule", ""),
        "detail": clipped(row.get("detail") or ""),
        "source": row.get("source", ""),
        "question": clipped(row.get("question") or ""),
        "gold": clipped(row.get("gold") or ""),
        "extracted": verdict.get("extracted"),
        "status": verdict.get("status", ""),
        "why": verdict.get("reason", ""),
        "finish": row.get("finish_reason", ""),
        "tokens": row.get("output_tokens", 0),
        "thinking": clipped(row.get("thinking")),
        "answer": clipped(row.get("answer") or ""),
    }


def clipped(text: Any) -> Any:
    """The start and the end of a long text, with a word on what is left out between them."""
    if text is None:
        return None
    text = str(text)
    if len(text) <= MAX_CHARACTERS:
        return text
    half = MAX_CHARACTERS // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out here ...]\n{text[-half:]}"


@dataclass(frozen=True, slots=True)
class Answered:
    """Questions with the first `samples` responses of every model; there were `total` questions."""

    shown: list[dict[str, Any]]
    total: int
    samples: int


def answered_questions(directory: Path, models: list[str], tasks: list[str]) -> Answered:
    """Some questions of each task with up to four samples of every model."""
    lines = {task: list(lines_of(directory / f"{task}.problems.jsonl")) for task in tasks}
    room = max(1, MAX_ANSWERS // len(models))
    chosen = shares(Counter({task: len(held) for task, held in lines.items()}), room)
    samples = max(1, min(MAX_SAMPLES, room // max(1, sum(chosen.values()))))
    shown: list[dict[str, Any]] = []
    for task, held in lines.items():
        entries = {}
        for row in map(json.loads, sorted(held, key=order_of)[: chosen[task]]):
            texts = {"question": clipped(row["question"]), "gold": clipped(row["gold"])}
            entries[row["id"]] = {"task": task, **texts, "models": {model: [] for model in models}}
        for model in models:
            add_samples(Store(directory, f"{task}.{model}.samples"), model, entries, samples)
        shown += entries.values()
    return Answered(shown, sum(map(len, lines.values())), samples)


def add_samples(store: Store, model: str, entries: dict[str, dict[str, Any]], samples: int) -> None:
    """Fill in the first `samples` responses of one model, and how many of all its samples are correct."""
    verdicts = {(v.problem_id, v.sample): v for v in store.verdicts() if v.problem_id in entries}
    right: Counter[str] = Counter()
    drawn: Counter[str] = Counter()
    for trace in store.traces():
        entry = entries.get(trace.problem_id)
        verdict = verdicts.get((trace.problem_id, trace.sample))
        if entry is None or verdict is None:
            continue
        correct = verdict.status == "correct" and trace.finish_reason == "stop"
        right[trace.problem_id] += correct
        drawn[trace.problem_id] += 1
        if trace.sample < samples:
            entry["models"][model].append(
                {
                    "sample": trace.sample,
                    "correct": correct,
                    "status": verdict.status,
                    "why": verdict.reason,
                    "extracted": clipped(verdict.extracted),
                    "finish": trace.finish_reason,
                    "tokens": trace.output_tokens,
                    "thinking": clipped(trace.thinking),
                    "answer": clipped(trace.answer),
                }
            )
    for problem_id, entry in entries.items():
        entry.setdefault("right", {})[model] = [right[problem_id], drawn[problem_id]]
        entry["models"][model].sort(key=lambda response: response["sample"])
