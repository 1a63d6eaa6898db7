"""Which eval questions also stand in what the student was trained on, measured again when it is evaluated.

The rules are those of pipeline.decontaminate, asked the other way round: every eval question that any
training problem or kept trace holds is flagged, not only the first that a drop names.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pipeline.contamination import TraceIndex
from pipeline.decontaminate import (
    EvalIndex,
    EvalQuestion,
    Ngram,
    ngrams_of,
    similar_questions,
    squash,
    words_of,
)
from pipeline.records import Problem, from_json
from pipeline.rows import json_lines
from pipeline.sources import normalise_question

MIN_LETTERS = 30  # questions shorter than this are mere phrases: not looked for inside a trace
PROCEDURAL = "reasoning_gym"

# task -> question id -> the rule that flagged it first
Flags = dict[str, dict[str, str]]


def flagged_questions(tasks: Mapping[str, Sequence[Problem]], problems: Path, kept: Path) -> Flags:
    """Flags of every task, from problems.jsonl and the traces of kept.jsonl."""
    questions = [
        EvalQuestion(task, problem.id, problem.question, problem.verifier == PROCEDURAL)
        for task, held in tasks.items()
        for problem in held
    ]
    with problems.open(encoding="utf-8") as file:
        training = [from_json(Problem, line) for line in file]
    finder = Finder(questions)
    finder.match_problems(training)
    finder.match_traces(kept)
    return {task: finder.flags.get(task, {}) for task in tasks}


class Finder:
    """The eval questions under every key that a rule compares, and what has been flagged so far."""

    def __init__(self, questions: list[EvalQuestion]) -> None:
        self.flags: Flags = defaultdict(dict)
        self.questions = questions
        self.written = [question for question in questions if not question.procedural]
        self.exact = grouped((normalise_question(q.question), q) for q in questions)
        self.whole = grouped((squash(q.question), q) for q in self.written)
        self.runs = grouped((run, q) for q in self.written for run in ngrams_of(words_of(q.question)))
        self.templates: dict[str, set[Ngram]] = {}

    def flag(self, questions: Iterable[EvalQuestion], rule: str) -> None:
        for question in questions:
            self.flags[question.task].setdefault(question.id, rule)

    def match_problems(self, problems: Sequence[Problem]) -> None:
        """The four rules of decontamination; procedural problems know only `exact`."""
        written = [problem for problem in problems if problem.verifier != PROCEDURAL]
        index = EvalIndex(self.questions)
        for source in {problem.source for problem in written}:
            self.templates[source] = index.templates(p.question for p in written if p.source == source)
        for problem in problems:
            self.flag(self.exact.get(normalise_question(problem.question), []), "exact")
        for problem in written:
            self.flag(self.whole.get(squash(problem.question), []), "whole")
            self._match_runs(problem.question, problem.source, "ngram")
        if written and self.written:
            self._match_similar(written)

    def _match_runs(self, text: str, source: str, rule: str) -> None:
        template = self.templates.get(source, set())
        for run in ngrams_of(words_of(text)):
            if run in self.runs and run not in template:
                self.flag(self.runs[run], rule)

    def _match_similar(self, written: Sequence[Problem]) -> None:
        """Each eval question against all training problems: the roles of the rule are exchanged."""
        asked = [Problem(f"{q.task}\0{q.id}", q.question, "", "", "", "") for q in self.written]
        known = [EvalQuestion("", problem.id, problem.question, False) for problem in written]
        for key in similar_questions(asked, known):
            task, _, question_id = key.partition("\0")
            self.flags[task].setdefault(question_id, "fuzzy")

    def match_traces(self, kept: Path) -> None:
        """Eval questions inside kept traces: whole, or for written ones by a run of 8 words."""
        index = TraceIndex(self.questions, self.templates)
        for line in json_lines(kept):
            row = line.values or {}
            text = f"{row.get('thinking') or ''}\n{row.get('answer') or ''}"
            read = normalise_question(text)
            for word in index.anchors.keys() & set(read.split()):
                for question in index.anchors[word]:
                    if len(question) >= MIN_LETTERS and question in read:
                        self.flag(self.exact[question], "in a trace")
            if (row.get("verdict") or {}).get("verifier") != PROCEDURAL and self.runs:
                self._match_runs(text, row.get("source", ""), "ngram in a trace")


def grouped(pairs: Iterable[tuple[object, EvalQuestion]]) -> dict[object, list[EvalQuestion]]:
    groups: dict[object, list[EvalQuestion]] = defaultdict(list)
    for key, question in pairs:
        groups[key].append(question)
    return dict(groups)


@dataclasses.dataclass(frozen=True, slots=True)
class Overlap:
    """The flagged rows of one task (positions of its questions), with the rule of each."""

    rules: dict[int, str]
    questions: int


def overlap_of(flags: dict[str, str], problems: Sequence[Problem]) -> Overlap:
    rules = {row: flags[problem.id] for row, problem in enumerate(problems) if problem.id in flags}
    return Overlap(rules, len(problems))
