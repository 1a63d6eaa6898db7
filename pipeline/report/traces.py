"""What the trace browser shows: kept and dropped traces with reasons, and all models on the same question.

Reads filter's kept.jsonl and dropped.jsonl and eval's problems, samples and verdicts, each as a stream. A run
with more than fits is sampled, the same traces every time, and the page says how many there were.
"""

import hashlib
import heapq
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.recipe.cards import Tags
from pipeline.records import Filtered, Problem, is_correct, read_filtered, read_lines
from pipeline.render import Split, split_response
from pipeline.report.gather import Findings, ModelFacts
from pipeline.sampling.store import Store

MAX_TRACES = 1_000
MAX_ANSWERS = 1_000
MAX_SAMPLES = 4  # of one model on one question
MAX_CHARACTERS = 6_000  # of one trace; the files hold it whole
KEPT = "kept"

Draw = list[tuple[int, int, dict[str, Any]]]  # (-place, -line, entry): a heap gives up what comes last


@dataclass(slots=True)
class FilteredTraces:
    """What became of the traces: how many by reason ("kept" is one) and by length, and some to read."""

    counts: Counter[str] = field(default_factory=Counter)
    lengths: dict[str, Counter[int]] = field(default_factory=dict)
    shown: list[dict[str, Any]] = field(default_factory=list)


def filtered_traces(directory: Path, tags: Tags) -> FilteredTraces:
    """Kept and dropped traces of a filter directory; each reason has its share of what is shown."""
    found, number = FilteredTraces(), 0
    draws: dict[str, Draw] = {}
    for group in (KEPT, "dropped"):
        for row in read_filtered(directory / f"{group}.jsonl"):
            number += 1
            reason = KEPT if group == KEPT else row.reason
            found.counts[reason] += 1
            if row.kind == "trace" and row.output_tokens is not None:
                found.lengths.setdefault(group, Counter())[row.output_tokens] += 1
            draw = draws.setdefault(reason, [])
            place = -place_of(f"{row.source} {row.problem_id or number} {row.sample}")
            if len(draw) < MAX_TRACES:
                heapq.heappush(draw, (place, -number, trace_entry(row, reason, tags)))
            elif place > draw[0][0]:
                heapq.heapreplace(draw, (place, -number, trace_entry(row, reason, tags)))
    chosen: Draw = []
    for reason, share in shares(found.counts, MAX_TRACES).items():
        chosen += heapq.nlargest(share, draws[reason])
    found.shown = [entry for _, _, entry in sorted(chosen, reverse=True)]
    return found


def place_of(key: str) -> int:
    """A place in a draw that depends on the key alone."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def shares(counts: Counter[str], limit: int) -> dict[str, int]:
    """How many of each reason are shown: all where they fit, else half kept, the rest shared evenly."""
    if counts.total() <= limit:
        return dict(counts)
    left, given = limit, {}
    groups = sorted(counts, key=lambda reason: (reason == KEPT, counts[reason]))
    for place, reason in enumerate(groups):
        others = len(groups) - place
        fair = left // 2 if reason == KEPT and others > 1 else left // others
        given[reason] = min(counts[reason], fair)
        left -= given[reason]
    return given


def trace_entry(row: Filtered, reason: str, tags: Tags) -> dict[str, Any]:
    verdict, question, split = row.verdict, row.question, split_response(row.response, tags)
    if row.messages:  # of a mix: a chat as it is trained on
        *turns, last = row.messages
        question = "\n\n".join(turn["content"] for turn in turns)
        split = Split(last.get("reasoning_content"), last["content"], "none")
    return {
        "reason": reason,
        "rule": row.rule,
        "detail": clipped(row.detail),
        "source": row.source,
        "question": clipped(question),
        "gold": clipped(row.gold),
        "extracted": verdict and clipped(verdict.extracted),
        "status": verdict.status if verdict else "",
        "why": verdict.reason if verdict else "",
        "finish": row.finish_reason,
        "tokens": row.output_tokens,
        **split_entry(split),
    }


def split_entry(split: Split) -> dict[str, Any]:
    return {"thinking": clipped(split.thinking), "answer": clipped(split.answer)}


def clipped(text: str | None) -> str | None:
    """The start and the end of a long text, with a word on what is left out between them."""
    if text is None or len(text) <= MAX_CHARACTERS:
        return text
    half = MAX_CHARACTERS // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out here ...]\n{text[-half:]}"


@dataclass(frozen=True, slots=True)
class Answered:
    """Questions with the first `samples` responses of every model; there were `total` questions."""

    shown: list[dict[str, Any]]
    total: int
    samples: int


def answered_questions(findings: Findings) -> Answered:
    """Some questions of each task with up to four samples of every model."""
    directory, models = findings.context.directory("eval"), findings.models
    files = {task: f"{task}.problems.jsonl" for task in findings.results.task_names}
    rows = Counter({task: findings.manifests["eval"].outputs[name].rows or 0 for task, name in files.items()})
    room = max(1, MAX_ANSWERS // len(models))
    chosen = shares(rows, room)
    samples = max(1, min(MAX_SAMPLES, room // max(1, sum(chosen.values()))))
    shown: list[dict[str, Any]] = []
    for task, name in files.items():
        problems = read_lines(Problem, directory / name)
        drawn = heapq.nsmallest(chosen[task], problems, key=lambda problem: place_of(problem.id))
        entries: dict[str, dict[str, Any]] = {
            problem.id: {
                "task": task,
                "question": clipped(problem.question),
                "gold": clipped(problem.gold),
                "models": {model: [] for model in models},
                "right": {model: [0, 0] for model in models},  # correct ones of all its samples
            }
            for problem in drawn
        }
        for facts in models.values():
            add_samples(Store(directory, f"{task}.{facts.name}.samples"), facts, entries, samples)
        shown += entries.values()
    return Answered(shown, rows.total(), samples)


def add_samples(store: Store, model: ModelFacts, entries: dict[str, dict[str, Any]], samples: int) -> None:
    """Fill in the first `samples` responses of one model, and how many of all its samples are correct."""
    verdicts = {(v.problem_id, v.sample): v for v in store.verdicts() if v.problem_id in entries}
    for trace in store.traces():
        verdict = verdicts.get((trace.problem_id, trace.sample))
        if verdict is None:
            continue
        entry, correct = entries[trace.problem_id], is_correct(verdict.status, trace.finish_reason)
        entry["right"][model.name][0] += correct
        entry["right"][model.name][1] += 1
        if trace.sample < samples:
            entry["models"][model.name].append(
                {
                    "sample": trace.sample,
                    "correct": correct,
                    "status": verdict.status,
                    "why": verdict.reason,
                    "extracted": clipped(verdict.extracted),
                    "finish": trace.finish_reason,
                    "tokens": trace.output_tokens,
                    **split_entry(split_response(trace.response, model.tags)),
                }
            )
    for entry in entries.values():
        entry["models"][model.name].sort(key=lambda response: response["sample"])
