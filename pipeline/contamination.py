"""Eval questions inside traces: the index that the rule not_contaminated asks.

A trace is contaminated by a run of 8 words of an eval question that is not a template of its source, or by
a whole eval question. Procedural problems and tasks know only the whole question, numbers kept, since a
family shares its template (see pipeline.decontaminate).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from pipeline.candidate import Candidate
from pipeline.decontaminate import NGRAM_WORDS, EvalQuestion, Ngram, ngrams_of, split_words, words_of
from pipeline.sources import normalise_question

MIN_LETTERS = 30  # shorter eval questions are mere phrases, and are not looked for inside a text


class TraceIndex:
    """`templates` maps a source to the runs of words that are its template."""

    def __init__(
        self, questions: Iterable[EvalQuestion] = (), templates: dict[str, set[Ngram]] | None = None
    ) -> None:
        questions = list(questions)
        written = [question for question in questions if not question.procedural]
        self.templates = templates or {}
        self.runs = {run: q for q in reversed(written) for run in ngrams_of(words_of(q.question))}
        self.blocks = {run[start : start + 4] for run in self.runs for start in range(5)}
        self.whole = {normalise_question(q.question): q for q in reversed(questions)}
        self.anchors = anchors_of(self.whole)

    def find(self, candidate: Candidate, min_letters: int) -> tuple[str, str] | None:
        """Task and shared text of the first eval question that stands in the trace."""
        if not self.whole:
            return None
        templates = self.templates.get(candidate.problem.source, set())
        return self.find_text(candidate.text, min_letters, candidate.procedural, templates)

    def find_text(
        self,
        text: str,
        min_letters: int = MIN_LETTERS,
        procedural: bool = False,
        templates: AbstractSet[Ngram] = frozenset(),
    ) -> tuple[str, str] | None:
        """The same for any text; `procedural` looks for whole questions only."""
        text = normalise_question(text)
        if (question := self._whole_question(text, min_letters)) is not None:
            return question.task, question.question
        if procedural or not self.runs:
            return None
        words = split_words(text)
        # every run of 8 words holds a whole block of 4 that starts at a multiple of 4: look for those first
        if self.blocks.isdisjoint(zip(words[::4], words[1::4], words[2::4], words[3::4], strict=False)):
            return None
        for run in ngrams_of(words):
            if run in self.runs and run not in templates:
                return self.runs[run].task, " ".join(run)
        return None

    def _whole_question(self, text: str, min_letters: int) -> EvalQuestion | None:
        if not self.anchors:
            return None
        for word in sorted(self.anchors.keys() & set(text.split())):
            for question in self.anchors[word]:
                if len(question) >= min_letters and question in text:
                    return self.whole[question]
        return None


def anchors_of(whole: dict[str, EvalQuestion]) -> dict[str, list[str]]:
    """For each question its rarest inner word, so that a trace is compared with few questions.

    Questions that the runs of 8 words cover are left out, and so is the last word, which may have more
    letters behind it in a trace.
    """
    short = {
        text: text.split()[1:-1] or text.split()
        for text, question in whole.items()
        if question.procedural or len(words_of(text)) < NGRAM_WORDS
    }
    counts = Counter(word for words in short.values() for word in set(words))
    anchors: dict[str, list[str]] = defaultdict(list)
    for text, words in short.items():
        if words:
            anchors[min(words, key=lambda word: (counts[word], word))].append(text)
    return dict(anchors)
