"""What a sentence says the answer is: its readings, best first."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.verify.cues import has_words
from pipeline.verify.extract import BETWEEN, DISPLAY, FORMULA, Stated, tidy

SENTENCE_END = re.compile(
    r"(?<![.\s][A-Za-z])[.!?][\"”)*_]{0,3}\s(?=[\s*_(\[\"“]{0,4}[A-Z])(?!\s{0,3}(?:Or|Alternatively)\b)"
    r"|[。！？](?!\s{0,3}$)|\n"
)
CONCLUSION = re.compile(
    r"(?:[,;:]\s(?:and\s)?|\s(?=(?:so|hence|thus|therefore)\s(?!that)))"
    r"(?:so|hence|thus|therefore|(?:but|yet)(?!\s(?:it\s|that\s)?(?:could|might|may)\b))[,:]?\s|;\s",
    re.IGNORECASE,
)
SUBORDINATE = re.compile(
    r"^(?:since|because|as|when|if|for|with|from|given|by|after|using)\b[^,]{1,200},\s", re.IGNORECASE
)
CLAUSE_END = re.compile(
    r",?\s(?:because|since|which|so|as|when|if|while|due to)\s|,\s(?:approximately|about|roughly|i\.e\.)\s"
    r"|,?\s(?:where|for\s(?:all|every|each|any))\s|(?<=[\d$)}%]),\s(?=[a-z]{2,})"
    r"|\s\((?=(?:[A-Za-z'’]{1,20},?\s){2})"
    r"|\s\((?:approx|about|≈|roughly|i\.e|since|because|as\s|which|or (?:about|approx))"
    r"|[，,]?(?:因为|因為|由于)"
)
VERB = re.compile(
    r"""(?:\b(?:is|are|equals|equal\ to|was|were|be|gets?|gives|obtain|have|has|makes?|therefore|thus|hence|so
      |at(?!\s(?:least|most)\b)|yields|becomes|ist|sind|beträgt|lautet|ergibt|est|sont|vaut|es|son|vale|são
      |costs?|totals|reach(?:es)?|got|found|find
      |that|(?:(?:con|di)verges?|tends?|amounts?|comes?|sums?|adds\ up)\ to|approaches)\s
      |\b(?:it|that|he|she)['’]s\s|(?<=[a-z]{3}):\s
      |\s(?:é|è|à)\s|是|为|為|等于|равн[оаы]\s|составляет\s|は|[은는]\s)""",
    re.VERBOSE | re.IGNORECASE,
)
# before an answer: it is excluded, or only a bound
DENIED = re.compile(
    r"\b(?:not|cannot|never|neither)\b|n't\b|不是|不能|ではない|ではありません|아니"
    r"|\b(?:greater|less|more|fewer|larger|smaller|bigger|higher|lower)\sthan\b|\bat\s(?:least|most)\b"
    r"|\b(?:anything|everything|all)\sbut\b"
    r"|\b(?:except|unlikely|doubt|other\sthan|no\slonger|wrong|incorrect|impossible)\b",
    re.IGNORECASE,
)
TWO = re.compile(r"[\d\0].{0,200}\band\b")
# what was announced, and more: "6 and the remainder is 5"
AND_MORE = re.compile(r"^\W{0,5}[-\d\0][^A-Za-z]{0,200}(?:\s\w{1,20}){0,2},?\sand\s(?:\w{1,20}\s){1,4}$")
CASES = re.compile(r"\botherwise\b|\b(?:if|when)\b.{1,200}\b(?:if|when)\b", re.IGNORECASE)
WRONG = re.compile(
    r"\b(?:wrong|incorrect|impossible|excluded|(?:is|are|was|were)(?:n't|\snot)|reject(?:ed)?|avoid|too\s(?:small|large|big|high|low|many|few)|extraneous|spurious|inadmissible|discarded|no\slonger|unlikely|(?:anything|everything)\sbut)\b",
    re.IGNORECASE,
)
QUESTION = re.compile(
    r"^(?:is|are|was|could|can|does|do|what|how|why|which|whether|if)\b.*\?$", re.IGNORECASE
)
# words that no answer holds: a line with one of them has words around its answer
PROSE = re.compile(
    r"\b(?:the|so|hence|thus|therefore|we|that|because|since|it|this"
    r"|there|she|he|they|which|as|his|her|I am|I think|I cannot|I get)\b(?!\s?[=<>(])"
    r"|(?:\w\w|[$)])\s(?:is|are|equals)\s",
    re.IGNORECASE,
)
# behind a verb, it points back: "$x = 5$ is our final answer"
EMPTY = re.compile(
    r"^(?:(?:the|our|my|an?)\s)?(?:\w+\s)?(?:answer|solution|result|value|correct|right|true|required|indeed)\b",
    re.IGNORECASE,
)
NUMBER = re.compile(
    r"(?<![\w.,'^{\\(\[])-?\d+\s\d+/\d+(?![\w/])"
    r"|(?<![\w.,'^{\\(\[])[-−]?[$€£¥₹]?\s?\d(?:[\d.,'’_٬٫/:h]*\d)?(?:\s?[%€°])?(?![A-Za-z_^\d])"
    r"|(?<=[\u3000-\u9fff\uac00-\ud7af])[-−]?\d(?:[\d.,/:]*\d)?%?"
)
SCALE = re.compile(
    r"[\s\\%]*(?:\\text\{\s?)?(?:hundred|thousand|million|billion|trillion|dozens?|lakh|crore|half|percent|k\b|M\b|万|亿|억|만"
    r"|of[}\s]+(?!a\b)[A-Za-z0-9]\b|below|inverse|reciprocal|permille|squared|cubed|factorial|choose|mod|times|plus|minus|divided|over|out\sof|or)"
)
# in front of a number, a word that makes another number of it, or a name
CHANGED = re.compile(
    r"""\b(?:(?:half|third|quarter|multiple|square|cube|root|power|log|logarithm|factor|divisor|fraction|reciprocal|inverse
      |out|percent|instead)\sof|divi(?:ded|sible)\sby|by|minus|negative|over|twice|times|plus|under|base|mod|up\sto|than
      |far\sfrom|close\sto|near|before|after|step|problem|question|case|part|figure|example|equation|exercise|page|section|(?-i:[A-Z]{2,}))\s$""",
    re.VERBOSE | re.IGNORECASE,
)
EQUATION = re.compile(r"[A-Za-z].{0,40}[-+*/^\d]|[-+*/^\d].{0,40}[A-Za-z]")
CALCULATION = re.compile(r"<<[^<>\n]{0,200}>>")
BOLD = re.compile(r"\*\*([^*\n]{1,200})\*\*")
UNIT_BEHIND = re.compile(r"^\s?(?:[a-zµμ%°/^²³0-9]{1,20}(?:\s(?:of\s)?[a-z]{1,20}){0,2})(?=[\s.,;]{0,3}$)")


@dataclass(frozen=True, slots=True)
class Reading:
    """`decides`: the answer is wrong if this is. `partial`: words were left out, which may be its unit."""

    text: str
    decides: bool = True
    partial: bool = False


def sentence_of(stated: Stated) -> str:
    """The first sentence of what was announced, the last one of a line that only stands last; several lines
    that are no display as they stand."""
    if "\n" in stated.text:
        return stated.text
    parts = [part for part in SENTENCE_END.split(stated.text) if part.strip()] or [stated.text]
    return tidy(parts[0] if stated.cued else CONCLUSION.split(parts[-1])[-1])


def is_prose(text: str) -> bool:
    return PROSE.search(FORMULA.sub("$$", text)) is not None


def readings(sentence: str) -> Iterator[Reading]:
    if not has_words(sentence):
        yield Reading(sentence)
        return
    if "\n" in sentence and DISPLAY.search(sentence.partition("\n")[0]) is None:
        yield Reading(sentence)  # several lines are no sentence
        return
    if CASES.search(sentence):
        yield Reading(sentence)
        return
    clause = tidy(CLAUSE_END.split(SUBORDINATE.sub("", sentence), maxsplit=1)[0])
    yield Reading(sentence, decides=not clause or clause == sentence)
    if clause and clause != sentence:
        yield Reading(clause)
    masked = FORMULA.sub(lambda formula: "\0" * len(formula.group()), clause)
    verbs = list(VERB.finditer(masked))
    start = verbs[-1].end() if verbs else 0
    if len(verbs) > 1 and TWO.search(masked, verbs[-2].end(), verbs[-1].start()):
        return  # "x is 7 and y is 8"
    if verbs and AND_MORE.match(masked[:start]):
        return
    if DENIED.search(masked[:start]) or WRONG.search(masked) or QUESTION.match(sentence):
        return
    tail = tidy(clause[start:])
    if EMPTY.match(tail):
        tail = clause
    elif verbs and tail:
        yield Reading(tail)
    yield from formulas_of(tail)
    if word := re.match(r"(?:yes|no|true|false)(?=,\s)", sentence, re.IGNORECASE):  # "Yes, it is"
        yield Reading(word.group())
    for said in BOLD.findall(clause)[-1:]:
        yield Reading(said)
    if (
        not DENIED.search(clause)
        and not CASES.search(sentence)
        and (number := only_number(tail) or only_number(clause))
    ):
        yield Reading(number, decides=False, partial=True)


def formulas_of(text: str) -> Iterator[Reading]:
    """The formula of a text that has one or begins with one, together with those that only "and", "or" or a
    comma separates from it, and with a unit behind. Of several in one sentence, none can be told to be it."""
    found = list(FORMULA.finditer(text))
    groups: list[tuple[int, int]] = []
    for match in found:
        if groups and BETWEEN.match(text[groups[-1][1] : match.start()]):
            groups[-1] = (groups[-1][0], match.end())
        else:
            groups.append(match.span())
    if not groups or (len(groups) > 1 and groups[0][0] > 0):
        return
    start, end = groups[0]
    whole, rest = text[start:end], text[end:]
    if unit := UNIT_BEHIND.match(rest):
        yield Reading(whole + unit.group())
    partial = bool(rest.strip(" .,;!"))
    yield Reading(whole, decides=not partial, partial=partial)


def only_number(text: str) -> str | None:
    """The number of a text that has one, outside its formulas and calculations."""
    text = CALCULATION.sub("", text)
    left, _, text = FORMULA.sub(" ", text).rpartition("=")
    if EQUATION.search(re.split("[A-Za-z]{2,}", left)[-1]):
        return None  # "x + 3 = 10" does not say that something is 10
    found = list(NUMBER.finditer(text))
    numbers = {match.group().strip() for match in found}
    if len(numbers) != 1 or CHANGED.search(text[: found[0].start()]) or SCALE.match(text, found[-1].end()):
        return None
    return numbers.pop()
