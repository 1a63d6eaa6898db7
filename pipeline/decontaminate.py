"""Decontamination: training questions that are, or nearly are, questions of the recipe's eval tasks.

Four rules, the first hit names the drop and the eval question that it matched:
  exact    the same question after Unicode, case and white space are normalised, numbers kept
  whole    the same question without punctuation, dollar signs and blanks; covers the short questions that
           an 8-gram can never flag (32 of MATH-500 have fewer than 8 words)
  ngram    a run of 8 words in common. A run that stands in more than 1% of a source's questions (and in at
           least 5) is that source's template and is ignored
  fuzzy    rapidfuzz similarity of at least 0.9 with all numbers masked
Procedural sources and tasks know only `exact`: whole families share their template, and the reservation
(pipeline.sources) keeps their questions apart.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.records import Problem
from pipeline.sources import normalise_question
from pipeline.tasks import TaskProblems

if TYPE_CHECKING:
    import numpy

NGRAM_WORDS = 8
TEMPLATE_SHARE = 0.01
TEMPLATE_MIN_QUESTIONS = 5
FUZZY_SIMILARITY = 0.9
RULES = ("exact", "whole", "ngram", "fuzzy")

EDGE_MARKS = "\"'`.,;:!?()[]{}$*_"
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
UNREAD_MARKS = re.compile(r"\\(?:left|right|[,;! ])|[\s$.,;:!?\"'`]+")

Ngram = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EvalQuestion:
    task: str
    id: str
    question: str
    procedural: bool


@dataclass(frozen=True, slots=True)
class Match:
    """Which rule hit which eval question; `detail` is the shared run of words, or the similarity."""

    rule: str
    matched: EvalQuestion
    detail: str


def eval_questions(tasks: Iterable[TaskProblems]) -> list[EvalQuestion]:
    return [
        EvalQuestion(task.name, problem.id, problem.question, task.procedural)
        for task in tasks
        for problem in task.problems
    ]


def words_of(text: str) -> list[str]:
    """Words by white space, normalised, without marks at their edges."""
    return split_words(normalise_question(text))


def split_words(normalised: str) -> list[str]:
    """The same for a text that is normalised already."""
    words = [word.strip(EDGE_MARKS) for word in normalised.split(" ")]
    return list(filter(None, words))


def ngrams_of(words: list[str]) -> Iterator[Ngram]:
    """All runs of 8 words."""
    return zip(*(words[start:] for start in range(NGRAM_WORDS)), strict=False)


def squash(text: str) -> str:
    """The question without what a copy may lose: blanks, punctuation, dollar signs, LaTeX spacing."""
    return UNREAD_MARKS.sub("", normalise_question(text))


def mask_numbers(text: str) -> str:
    return NUMBER.sub("#", normalise_question(text))


class EvalIndex:
    """The eval questions of a recipe, looked up by each rule."""

    def __init__(self, questions: list[EvalQuestion]) -> None:
        written = [question for question in questions if not question.procedural]
        self.exact = {normalise_question(q.question): q for q in reversed(questions)}
        self.whole = {squash(q.question): q for q in reversed(written)}
        self.ngrams = {run: q for q in reversed(written) for run in ngrams_of(words_of(q.question))}
        self.written = written

    def same_question(self, problem: Problem, procedural: bool) -> Match | None:
        found = self.exact.get(normalise_question(problem.question))
        if found is not None:
            return Match("exact", found, "")
        if procedural:
            return None
        text = squash(problem.question)
        found = self.whole.get(text)
        return Match("whole", found, "") if found is not None and text else None

    def shared_run(self, problem: Problem, templates: set[Ngram]) -> Match | None:
        for run in ngrams_of(words_of(problem.question)):
            if run in self.ngrams and run not in templates:
                return Match("ngram", self.ngrams[run], " ".join(run))
        return None

    def templates(self, questions: Iterable[str]) -> set[Ngram]:
        """The runs of eval questions that are this source's template: in more than 1% of its questions."""
        num_questions, counts = 0, Counter[Ngram]()
        for question in questions:
            num_questions += 1
            counts.update({run for run in ngrams_of(words_of(question)) if run in self.ngrams})
        least = max(TEMPLATE_MIN_QUESTIONS, TEMPLATE_SHARE * num_questions)
        return {
            run for run, count in counts.items() if count > TEMPLATE_SHARE * num_questions and count >= least
        }


def find_matches(
    problems: list[Problem], procedural: set[str], index: EvalIndex
) -> tuple[dict[str, Match], dict[str, set[Ngram]]]:
    """Problem id -> its match, and each source's template. `procedural` names the procedural sources."""
    matches: dict[str, Match] = {}
    templates: dict[str, set[Ngram]] = {}
    for source in {problem.source: None for problem in problems}:
        if source not in procedural:
            templates[source] = index.templates(p.question for p in problems if p.source == source)
    for problem in problems:
        match = index.same_question(problem, problem.source in procedural)
        if match is None and problem.source not in procedural:
            match = index.shared_run(problem, templates[problem.source])
        if match is not None:
            matches[problem.id] = match
    rest = [p for p in problems if p.id not in matches and p.source not in procedural]
    matches.update(similar_questions(rest, index.written))
    return matches, templates


def similar_questions(problems: list[Problem], questions: list[EvalQuestion]) -> dict[str, Match]:
    """Problem id -> its most similar eval question, where that is similar enough for the fuzzy rule."""
    import numpy
    from rapidfuzz import fuzz

    if not problems or not questions:
        return {}
    targets = [mask_numbers(question.question) for question in questions]
    target_letters = letter_counts(targets)
    found: dict[str, Match] = {}
    for start in range(0, len(problems), 64):
        block = [mask_numbers(problem.question) for problem in problems[start : start + 64]]
        letters = letter_counts(block)
        # insertions and deletions can mend no more than their number of letters: a bound that loses nothing
        apart = numpy.abs(letters[:, None, :] - target_letters[None, :, :]).sum(axis=2)
        lengths = letters.sum(axis=1)[:, None] + target_letters.sum(axis=1)[None, :]
        for row, column in numpy.argwhere(apart <= (1 - FUZZY_SIMILARITY) * lengths + 1e-6):
            score = fuzz.ratio(block[row], targets[column], score_cutoff=100 * FUZZY_SIMILARITY) / 100
            problem = problems[start + int(row)]
            if score >= FUZZY_SIMILARITY and score > _similarity(found.get(problem.id)):
                found[problem.id] = Match("fuzzy", questions[int(column)], f"{score:.3f}")
    return found


def _similarity(match: Match | None) -> float:
    return float(match.detail) if match else 0.0


def letter_counts(texts: list[str]) -> "numpy.ndarray[Any, Any]":
    """How often each of 32 classes of characters stands in each text: one row a text, int32."""
    import numpy

    rows = numpy.zeros((len(texts), 32), dtype=numpy.int32)
    for row, text in enumerate(texts):
        codes = numpy.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=numpy.uint32) % 32
        rows[row] = numpy.bincount(codes, minlength=32)
    return rows
