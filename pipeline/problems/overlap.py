"""Overlap of training and evaluation: the eval questions, indexed once, and the searches for them.

Four rules compare questions,
  exact    the same question after Unicode, case and white space are normalised, numbers kept
  whole    the same question without punctuation, dollar signs and blanks; covers the short questions that
           an 8-gram can never flag (32 of MATH-500 have fewer than 8 words)
  ngram    a run of 8 words in common. A run that stands in more than 1% of a source's questions (and in at
           least 5) is that source's template and is ignored
  fuzzy    rapidfuzz similarity of at least 0.9 with all numbers masked
and two compare the solutions of code problems, body and name (pipeline.problems.bodies).
Inside longer texts (traces, chats of the mix) a whole eval question is looked for, or such a run of 8 words.
Procedural sources and tasks know only the whole question with its numbers: a family shares its template, and
the reservation (pipeline.problems.sources) keeps its questions apart.

Three stages ask: problems drops training problems (`find_matches`), filter drops traces and chats
(`EvalIndex.inside`), and eval flags each of its questions that was trained on (`flagged_questions`).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pipeline.problems.bodies import BodyIndex
from pipeline.problems.sources import normalise_question
from pipeline.problems.tasks import TaskProblems
from pipeline.recipe.cards import Tags
from pipeline.records import Filtered, Problem
from pipeline.render import split_response

if TYPE_CHECKING:
    import numpy

NGRAM_WORDS = 8
TEMPLATE_SHARE = 0.01
TEMPLATE_MIN_QUESTIONS = 5
FUZZY_SIMILARITY = 0.9
MIN_LETTERS = 30  # shorter eval questions are mere phrases, and are not looked for inside a text
PROCEDURAL = "reasoning_gym"  # the verifier of procedural problems

FENCE = "```"
EDGE_MARKS = "\"'`.,;:!?()[]{}$*_"
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
UNREAD_MARKS = re.compile(r"\\(?:left|right|[,;! ])|[\s$.,;:!?\"'`]+")

PROBLEMS_AT_ONCE = 1_024
ROWS_AT_ONCE, CELLS_AT_ONCE = 64, 2**20  # of the fuzzy rule; a cell is one pair of texts, 128 bytes

Ngram = tuple[str, ...]
# task -> question id -> the rule that flagged it first
Flags = dict[str, dict[str, str]]
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class EvalQuestion:
    """`program` is the solution of a code problem, where there is one."""

    task: str
    id: str
    question: str
    procedural: bool
    program: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """Which rule found which eval question; `detail` is the shared text, or the similarity."""

    rule: str
    matched: EvalQuestion
    detail: str


class TrainedText(NamedTuple):
    """What the student was trained on: thinking and answer of one trace."""

    text: str
    source: str
    procedural: bool


@dataclass(frozen=True, slots=True)
class Overlap:
    """The flagged rows of one task (positions of its questions), with the rule of each."""

    rules: dict[int, str]
    questions: int


def eval_questions(tasks: Iterable[TaskProblems]) -> list[EvalQuestion]:
    return [
        EvalQuestion(task.name, problem.id, problem.question, task.procedural, program_of(problem))
        for task in tasks
        for problem in task.problems
    ]


def program_of(problem: Problem) -> str:
    """The solution of a code problem that its source gave, or nothing."""
    return str(problem.metadata.get("solution", "")) if problem.verifier == "code" else ""


def words_of(normalised: str) -> list[str]:
    """The words of a normalised text, without marks at their edges."""
    return list(filter(None, (word.strip(EDGE_MARKS) for word in normalised.split(" "))))


def ngrams_of(words: list[str]) -> Iterator[Ngram]:
    """All runs of 8 words."""
    return zip(*(words[start:] for start in range(NGRAM_WORDS)), strict=False)


def runs_of(normalised: str) -> Iterator[Ngram]:
    """All runs of 8 words of a question; none goes from text into code, which sources put below it alike.

    Without a fence these are all runs, as they always were. Of a question with fences a run made before this
    rule had more, so it dropped the same and more: what it kept is free of these too, and no version goes up.
    """
    return chain.from_iterable(ngrams_of(words_of(part)) for part in normalised.split(FENCE))


def squash(normalised: str) -> str:
    """A question without what a copy may lose: blanks, punctuation, dollar signs, LaTeX spacing."""
    return UNREAD_MARKS.sub("", normalised)


def mask_numbers(question: str) -> str:
    return NUMBER.sub("#", normalise_question(question))


class EvalIndex:
    """The eval questions under every key that a rule compares; each key holds all its questions, in order.

    `templates` maps a source to the runs of words that are its template, which no search takes for a match.
    """

    def __init__(
        self, questions: Iterable[EvalQuestion] = (), templates: Mapping[str, set[Ngram]] | None = None
    ) -> None:
        self.questions = list(questions)
        self.written = [question for question in self.questions if not question.procedural]
        self.templates = dict(templates or {})
        self.exact: dict[str, list[EvalQuestion]] = defaultdict(list)
        self.whole: dict[str, list[EvalQuestion]] = defaultdict(list)
        self.runs: dict[Ngram, list[EvalQuestion]] = defaultdict(list)
        for question in self.questions:
            text = normalise_question(question.question)
            self.exact[text].append(question)
            if question.procedural:
                continue
            if squashed := squash(text):
                self.whole[squashed].append(question)
            for run in runs_of(text):
                self.runs[run].append(question)

    @cached_property
    def bodies(self) -> BodyIndex[EvalQuestion]:
        """The solutions of code questions; filter, which looks at texts alone, never builds it."""
        return BodyIndex((question, question.program) for question in self.questions)

    @cached_property
    def blocks(self) -> set[Ngram]:
        """All runs of 4 words within the runs of 8."""
        return {run[start : start + 4] for run in self.runs for start in range(5)}

    @cached_property
    def anchors(self) -> dict[str, list[str]]:
        """For each question its rarest inner word, so that a text is compared with few questions.

        Questions that the runs of 8 words cover are left out, and so is the last word, which may have more
        letters behind it in a text. Of the questions of one word the later ones are looked for first.
        """
        short = {
            text: text.split()[1:-1] or text.split()
            for text in map(normalise_question, (q.question for q in reversed(self.questions)))
            if self.exact[text][0].procedural or next(runs_of(text), None) is None
        }
        counts = Counter(word for words in short.values() for word in set(words))
        anchors: dict[str, list[str]] = defaultdict(list)
        for text, words in short.items():
            if words:
                anchors[min(words, key=lambda word: (counts[word], word))].append(text)
        return anchors

    def learn_templates(self, written: Iterable[Problem]) -> None:
        """From now on ignore the runs that stand in more than 1% of the questions of a problem's source."""
        sizes: Counter[str] = Counter()
        counts: dict[str, Counter[Ngram]] = defaultdict(Counter)
        for problem in written:
            sizes[problem.source] += 1
            runs = set(runs_of(normalise_question(problem.question)))
            counts[problem.source].update(run for run in runs if run in self.runs)
        for source, found in counts.items():
            share = TEMPLATE_SHARE * sizes[source]
            self.templates[source] = {
                run for run, count in found.items() if count > share and count >= TEMPLATE_MIN_QUESTIONS
            }

    def matches(
        self, question: str, source: str = "", *, procedural: bool = False, program: str = ""
    ) -> Iterator[Match]:
        """Every eval question that this one is: by the rule exact or, if not procedural, whole and ngram, and
        by its solution's body and name."""
        text = normalise_question(question)
        for found in self.exact.get(text, ()):
            yield Match("exact", found, "")
        if procedural:
            return
        for found in self.whole.get(squash(text), ()):
            yield Match("whole", found, "")
        yield from self.shared_runs(runs_of(text), source, "ngram")
        for rule, found, detail in self.bodies.matches(program) if program else ():
            yield Match(rule, found, detail)

    def shared_runs(self, runs: Iterable[Ngram], source: str, rule: str) -> Iterator[Match]:
        """Every eval question that has one of these runs of 8 words, by the order of the runs."""
        template: AbstractSet[Ngram] = self.templates.get(source, frozenset())
        for run in runs:
            if run in self.runs and run not in template:
                for question in self.runs[run]:
                    yield Match(rule, question, " ".join(run))

    def inside(
        self, text: str, source: str = "", *, procedural: bool = False, min_letters: int = MIN_LETTERS
    ) -> Iterator[Match]:
        """Every eval question that stands in a text: whole, or, unless it is procedural, by a run of words.

        `source` names the template to ignore; questions of fewer than `min_letters` are not looked for.
        """
        if not self.exact:
            return
        text = normalise_question(text)
        for word in sorted(self.anchors.keys() & set(text.split())) if self.anchors else ():
            for key in self.anchors[word]:
                if len(key) >= min_letters and key in text:
                    for question in self.exact[key]:
                        yield Match("in a trace", question, question.question)
        if procedural or not self.runs:
            return
        words = words_of(text)
        # every run of 8 words holds a whole block of 4 that starts at a multiple of 4: look for those first
        if not self.blocks.isdisjoint(zip(words[::4], words[1::4], words[2::4], words[3::4], strict=False)):
            yield from self.shared_runs(ngrams_of(words), source, "ngram in a trace")


def find_matches(
    problems: Iterable[tuple[int, Problem]], procedural: AbstractSet[str], index: EvalIndex
) -> Iterator[tuple[int, Match]]:
    """Position of a problem, the first rule that found it and the eval question; in order, a block at a time.

    `procedural` names the procedural sources; the index has learnt the templates of the others.
    """
    similar = Similar([question.question for question in index.written])
    for block in blocks_of(problems):
        found: dict[int, Match] = {}
        unfound: list[tuple[int, Problem]] = []
        for position, problem in block:
            alone = problem.source in procedural
            matches = index.matches(
                problem.question, problem.source, procedural=alone, program=program_of(problem)
            )
            if match := next(matches, None):
                found[position] = match
            elif not alone:
                unfound.append((position, problem))
        # of several by the fuzzy rule the most similar, to the three places that are written down
        for row, column, score in similar.pairs([problem.question for _, problem in unfound]):
            position = unfound[row][0]
            held = found.get(position)
            if held is None or score > float(held.detail):
                found[position] = Match("fuzzy", index.written[column], f"{score:.3f}")
        yield from sorted(found.items(), key=lambda item: item[0])


def blocks_of(items: Iterable[Item]) -> Iterator[list[Item]]:
    """As many at once as are compared with the eval questions in one step."""
    rest = iter(items)
    while block := list(islice(rest, PROBLEMS_AT_ONCE)):
        yield block


class Similar:
    """The texts that others are compared with by the fuzzy rule, with their letters counted once."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.targets = [mask_numbers(text) for text in texts]
        self.letters = letter_counts(self.targets)

    def pairs(self, texts: Sequence[str]) -> Iterator[tuple[int, int, float]]:
        """Positions and similarity of all pairs that are similar enough, text by text."""
        import numpy
        from rapidfuzz import fuzz

        if not texts or not self.targets:
            return
        step = max(1, min(ROWS_AT_ONCE, CELLS_AT_ONCE // len(self.targets)))
        for start in range(0, len(texts), step):
            block = [mask_numbers(text) for text in texts[start : start + step]]
            letters = letter_counts(block)
            # one insertion or deletion makes up for one letter at most: a bound that loses nothing, and is
            # three times as fast as rapidfuzz's own cdist over all pairs
            apart = numpy.abs(letters[:, None, :] - self.letters[None, :, :]).sum(axis=2)
            lengths = letters.sum(axis=1)[:, None] + self.letters.sum(axis=1)[None, :]
            for row, column in numpy.argwhere(apart <= (1 - FUZZY_SIMILARITY) * lengths + 1e-6):
                score = (
                    fuzz.ratio(block[row], self.targets[column], score_cutoff=100 * FUZZY_SIMILARITY) / 100
                )
                if score >= FUZZY_SIMILARITY:
                    yield start + int(row), int(column), score


def letter_counts(texts: list[str]) -> "numpy.ndarray[Any, Any]":
    """How often each of 32 classes of characters stands in each text: one row a text, int32."""
    import numpy

    rows = numpy.zeros((len(texts), 32), dtype=numpy.int32)
    for row, text in enumerate(texts):
        codes = numpy.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=numpy.uint32) % 32
        rows[row] = numpy.bincount(codes, minlength=32)
    return rows


def flagged_questions(
    tasks: Mapping[str, Sequence[Problem]], training: Iterable[Problem], traces: Iterable[TrainedText]
) -> Flags:
    """Every eval question that stands in any training problem or kept trace, with the rule that found it.

    `training` is iterated more than once: a list, or an object that streams them anew each time. Rule after
    rule, so that the closest names a question: what is exact in any problem, then what is whole or shares
    words, what is similar, what stands in a trace.
    """
    index = EvalIndex(
        EvalQuestion(task, problem.id, problem.question, problem.verifier == PROCEDURAL, program_of(problem))
        for task, problems in tasks.items()
        for problem in problems
    )

    def written() -> Iterator[Problem]:
        return (problem for problem in training if problem.verifier != PROCEDURAL)

    index.learn_templates(written())
    similar = Similar([question.question for question in index.written])
    found = chain(
        (match for problem in training for match in index.matches(problem.question, procedural=True)),
        (
            match
            for problem in written()
            for match in index.matches(problem.question, problem.source, program=program_of(problem))
        ),
        (
            Match("fuzzy", index.written[column], f"{score:.3f}")
            for block in blocks_of(written())
            for _, column, score in similar.pairs([problem.question for problem in block])
        ),
        (m for trace in traces for m in index.inside(trace.text, trace.source, procedural=trace.procedural)),
    )
    flags: Flags = {task: {} for task in tasks}
    for match in found:
        flags[match.matched.task].setdefault(match.matched.id, match.rule)
    return flags


def trained_texts(kept: Iterable[Filtered], tags: Tags) -> Iterator[TrainedText]:
    """What the traces of kept.jsonl say, read with the teacher's tags; chats of the mix are left out."""
    for row in kept:
        if row.kind == "trace":
            verifier = row.verdict.verifier if row.verdict else ""
            text = split_response(row.response, tags).text
            yield TrainedText(text, row.source, verifier == PROCEDURAL)


def overlap_of(flags: Mapping[str, str], problems: Sequence[Problem]) -> Overlap:
    """The flags of one task by position of its questions."""
    rules = {row: flags[problem.id] for row, problem in enumerate(problems) if problem.id in flags}
    return Overlap(rules, len(problems))
