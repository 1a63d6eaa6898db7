"""text: is the stated answer the same text as the gold?

Words are compared after Unicode normalisation, without markup, case, articles and end marks; where the gold
has capitals inside a word (pH, US), one that differs by case only is unverifiable; a text that holds anything
else (an operator, a lone letter) keeps all but its markup. Dates and chemical formulas are
read, yes and true are one answer, and a reason behind the answer does not count. An answer that only holds
the gold, or a gold that is a sentence, is unverifiable unless equal. Dates are read by strptime in forms of
one meaning: dateutil fills in what a text does not say, and would make a date of any number.
"""

import re
import unicodedata
from datetime import datetime
from typing import Any

from pipeline.verify.cues import alternatives, settle
from pipeline.verify.extract import Stated, answer_part, is_undone, statements, tidy
from pipeline.verify.outcome import Outcome, correct, unverifiable, wrong
from pipeline.verify.sentences import DENIED, readings, sentence_of

COMMAND = re.compile(
    r"\\(?:text|textbf|textit|texttt|mathrm|mbox|textnormal|mathbf|emph)\s{0,5}\{([^{}]{0,2000})\}"
)
DASHES = str.maketrans(
    dict.fromkeys("‐‑‒–—−", "-") | dict.fromkeys("‘’ʼ`´", "'") | dict.fromkeys("“”„«»", '"')
)
SUPERSCRIPTS = str.maketrans({mark: f"^{digit}" for digit, mark in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")})
EDGES = " \t\n.,;:!?\"'*_$"
# nothing but words and numbers: only here do case, articles, hyphens and end marks not matter
WORDS = re.compile(
    r"[^\W\d_]{2,}|\b[aI]\b|[A-Z](?=['.])|(?<=')[sdmt]\b|\d+(?:st|nd|rd|th|s)?\b|[\s.,;:?\"'()-]|(?<=[^\W\d_]{2})!"
)
LETTERS = re.compile(
    r"(?<![^\W_])(?!st\b|nd\b|rd\b|th\b|tv\b|mrs?\b|dr\b)[b-df-hj-np-tv-xz]{2,}(?![^\W_])"
)  # no word
CAPITALS = re.compile(r"\w[A-Z]")  # pH is not Ph, and US not us; Paris is paris
FORMULA = re.compile(r"^(?:\d{0,3}(?:[A-Z][a-z]?|[()\[\]])\d{0,3}|->|[+.·])+[+-]?$")  # of chemistry
FORMULA_MARKUP = re.compile(r"\\(?:ce|mathrm|text|rm|mathbf)\b|\\[,;! ]|[\\${}_^\s]")
REASON = re.compile(
    r"(?:,\s|\s)(?:because|since|due to|which|as\s(?:it|the|they))\b|,\s(?:the|an?|in|it|as|so)\s"
    r"|\s[—–-]\s|\s?[(（]"
    r"|[。！]|\.\s|[;；]|[，,]?因为",
    re.IGNORECASE,
)
TRUTH = re.compile(r"\bis\s(true|false)\W{0,3}$", re.IGNORECASE)
POLAR = re.compile(
    r"^(yes|no|true|false)(?=$|[.,;:!—–-]|\s(?:because|since|as|it|the|he|she|they|this|that|we)\b)", re.I
)
POLARITY = {"yes": True, "true": True, "no": False, "false": False}
PASSIVE = re.compile(
    r"\b(?:(?:happened|occurred|began|started|ended|died|took\splace)\s(?:on|in|at)"
    r"|(?:is|are|was|were|been)\s\w{1,20}(?:ed|en|wn|nd|ght|lt)\s(?:by|in|on|at|as)"
    r"|has\sthe\s(?:\w{1,20}\s)?formula)\s(?!.*\b(?:by|in|on|at|as)\b)"
)
LIST = re.compile(r"\s?[,;]\s?(?:and\s)?|\sand\s")
MAX_TEXT = 5_000  # characters of an answer that is compared other than as it stands
SENTENCE = 8  # words that make a gold a sentence
WEEKDAY = re.compile(
    r"\b(?:mon|tues?|wed(?:nes)?|thur?s?|fri|sat(?:ur)?|sun)(?:day)?\b[,.]?\s?", re.IGNORECASE
)
NUMERIC_DATE = re.compile(r"^(\d{1,2})[/.-](\d{1,2})[/.-](\d{4})$")
EASTERN_DATE = re.compile(r"^(\d{4})\s?[年년]\s?(\d{1,2})\s?[月월]\s?(\d{1,2})\s?[日일号]$")
FORMATS = (
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%Y.%m.%d",
    "%d %B %Y",
    "%d %b %Y",
    "%B %d %Y",
    "%b %d %Y",
    "%Y %B %d",
    "%Y %b %d",
)
Date = tuple[int | None, int, int]  # year, month and day
AMBIGUOUS: Date = (None, 0, 0)


def verify_text(response: str, gold: str, metadata: dict[str, Any]) -> Outcome:
    if not normalise_text(gold):
        return unverifiable("bad_gold")
    part = answer_part(response)
    if is_undone(part):
        return unverifiable("unparsable_answer")
    stated = statements(part)
    if not stated:
        return wrong(None, "", "no_answer")
    first: Outcome | None = None
    for one in stated:
        outcome = compare_stated(gold, one)
        if outcome.status == "correct":
            return outcome
        first = first or outcome
    return first or wrong(None, "", "no_answer")


def compare_stated(gold: str, stated: Stated) -> Outcome:
    if len(stated.text) > MAX_TEXT:
        equal = stated.text == gold
        return correct(stated.text, "string") if equal else unverifiable("too_long", stated.text)
    if same_text(gold, stated.text):
        return correct(stated.text, "string")
    settled = settle(stated.text)
    if settled is None:
        return wrong(None, "", "no_answer")
    parts = alternatives(REASON.split(settled, maxsplit=1)[0])
    if len(parts) > 1 and len(alternatives(gold)) == 1:
        same = all(same_text(gold, part) for part in parts)
        return correct(settled, "string") if same else wrong(settled, "", "no_answer")
    verdicts = [same_text(gold, said) for said in said_by(Stated(settled, stated.cued))]
    if True in verdicts:
        return correct(settled, "string")
    words = normalise_text(gold).split()
    holds = set(words) <= set(normalise_text(settled).split())
    if None in verdicts or holds or len(words) >= SENTENCE:
        return unverifiable("unparsable_answer", settled)
    return wrong(settled, "string")


def said_by(stated: Stated) -> list[str]:
    """A statement, the same without its reason, and what a sentence says."""
    said = [stated.text, REASON.split(stated.text, maxsplit=1)[0]]
    if (passive := PASSIVE.search(stated.text)) and not DENIED.search(stated.text):
        said.append(stated.text[passive.end() :])  # "The novel was written by ..."
    return [*said, *(reading.text for reading in readings(sentence_of(stated)) if not reading.partial)]


def same_text(gold: str, answer: str) -> bool | None:
    """None where it cannot be told: a date of two meanings, or a difference of case in what is no word."""
    wanted = POLARITY.get(normalise_text(gold))
    if wanted is not None:
        polar = POLAR.match(normalise_text(answer)) or (
            None if DENIED.search(answer) else TRUTH.search(answer)
        )
        return polar is not None and POLARITY[polar.group(1).casefold()] == wanted
    if exact(gold) == exact(answer):
        return True
    if (day := date_of(gold)) and (other := date_of(answer)):
        return None if AMBIGUOUS in (day, other) or (day[0] is None) != (other[0] is None) else day == other
    left, right = formula_of(gold), formula_of(answer)
    if FORMULA.match(left) and left == right:
        return True
    if LIST.search(gold) and [*map(normalise_text, LIST.split(gold))] == [
        *map(normalise_text, LIST.split(answer))
    ]:
        return True
    if normalise_text(gold) != normalise_text(answer):
        return False
    # capitals of a formula mean something: CO is not Co
    words = not any(WORDS.sub("", exact(text)) or LETTERS.search(text) for text in (gold, answer))
    capitals = left != right and FORMULA.match(left) and FORMULA.match(right)
    return True if words and not capitals and not CAPITALS.search(exact(gold)) else None


def formula_of(text: str) -> str:
    """A chemical formula without markup: H2O of \\ce{H2O}, H_2O and H₂O."""
    text = re.sub(r"\\(?:right|long)?(?:right)?arrow\b|\\to\b|→|⟶", "->", text.replace("\\cdot", "·"))
    return FORMULA_MARKUP.sub("", exact(FORMULA_MARKUP.sub("", text)))


def exact(text: str) -> str:
    """NFKC, without markup, quotes and full stop; white space collapsed. x² stays apart from x2."""
    text = unicodedata.normalize("NFKC", text.translate(SUPERSCRIPTS)).translate(DASHES)
    text = re.sub(r"\\[ ,;]|~", " ", COMMAND.sub(r"\1", text)).replace("\\", "")
    return tidy(" ".join(text.split()).strip(" $\"'"))


def normalise_text(text: str) -> str:
    """NFKC, case folded, markup and quotes removed, white space collapsed, hyphens as blanks."""
    text = unicodedata.normalize("NFKC", text).translate(DASHES).casefold().replace("**", "")
    text = COMMAND.sub(r"\1", text)
    text = re.sub(r"\\[ ,;!]|~|(?<=[^\W\d_])-(?=[^\W\d_])", " ", text).replace("\\", "")
    return re.sub(r"^(?:the|a|an) ", "", " ".join(text.split()).strip(EDGES))


def date_of(text: str) -> Date | None:
    """The date that a text names; AMBIGUOUS for 03/04/2024, None for anything else."""
    text = WEEKDAY.sub("", exact(text))
    text = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b|\bof\b|\bthe\b|[,.](?=\s)", " ", text)
    text = " ".join(text.split())
    if not 5 <= len(text) <= 30:
        return None
    if found := EASTERN_DATE.match(text):
        text = "-".join(found.groups())
    if found := NUMERIC_DATE.match(text):
        one, two, year = map(int, found.groups())
        if one <= 12 and two <= 12 and one != two:
            return AMBIGUOUS
        text = f"{year}-{min(one, two) if max(one, two) > 12 else one}-{max(one, two)}"
    text = text.replace("Sept ", "Sep ")
    for form, said in [
        *((form, text) for form in FORMATS),
        *((form, f"{text} 2000") for form in FORMATS[3:7]),
    ]:
        try:
            day = datetime.strptime(said, form).date()
        except ValueError:
            continue
        return (day.year if said == text else None, day.month, day.day)
    return None
