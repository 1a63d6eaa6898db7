"""choice: the options of a question by letter, or by the text or the formula of an option.

Reads metadata {"options": [text, ...]} or {"options": {letter: text}} where options may be named by text. A
gold of several letters ("ACD", "A, C") wants just those. Only what is stated counts, in this order: what
`pipeline.verify.extract` finds announced, what a sentence chooses ("I would pick B", "B is correct"), a first
or last line that begins with a letter. A capital in running text is no answer, nor is a letter that goes with
the text of another option. Formulas are compared as they were written; only letters are read without markup.
"""

import re
import string
import unicodedata
from collections.abc import Iterator
from typing import Any

from pipeline.verify.cues import OR, alternatives, has_words, settle
from pipeline.verify.extract import MAX_CUES, Stated, answer_part, is_undone, statements, tidy
from pipeline.verify.outcome import Outcome, correct, unverifiable, wrong
from pipeline.verify.sentences import readings, sentence_of
from pipeline.verify.table import function_of
from pipeline.verify.text import normalise_text, same_text

USUAL = string.ascii_uppercase[:10]  # the options of a question where nobody says which it has
SHORT = 100  # a response of at most this many characters may be the formula of an option
TAIL = 2_000  # characters at the end of a response in which a sentence may choose
MARKUP = re.compile(
    r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|boldsymbol|bf|rm)\b\s{0,5}|\\(?:[()\[\] ,;!]|q?quad)"
    r"|[*_`$\"“”{}~✅✓✔☑→]"
)
EMPHASIS = re.compile(r"\*\*|__|[`“”~✅✓✔☑→]")  # what can go without harm to a formula
LABEL = (
    r"(?:(?:the\s)?(?:correct\s)?(?:options?|choices?|answers?|letters?|statements?)\b|选项|選項|答案|opci[oó]n"
    r"|op[cç][aã]o|letra|lettre|alternativa|вариант)"
)
BEFORE = re.compile(
    rf"^(?:(?:{LABEL}\s?[:：]?|both\b|either\b|between\b|only\b|just\b|is\b|选|選)\s{{0,3}}){{1,3}}", re.I
)
# a letter in brackets, or a capital that begins no word
LETTER = re.compile(r"[(（\[]\s?([A-Za-z])\s?[)）\]]|([A-Z])(?![A-Za-z0-9]|['’]\w)")
LOWER = re.compile(r"([a-z])(?=\s{0,3}$|[.):](?:\s|$)|\s(?:because|since)\b)")
RUN = re.compile(r"[(\[]?([A-Z](?: ?[A-Z]){1,25})[)\]]?(?![A-Za-z0-9'’])")
SEPARATOR = re.compile(
    r"\s{0,3}(?:[,、;；&/+]\s?|\b(?:and|or|y|et|und)\b|和|与|及|或|还是){1,2}\s{0,3}(?:(?:option|choice)\s)?"
    r"|\s?(?=[(\[][A-Z][)\]])",
    re.I,
)
# behind a letter: its end or a reason. "A plane" and "I computed" are words, "A is wrong" is no choice
BOUNDARY = re.compile(
    r"""\s{0,3}(?:\??\s{0,3}$|[.:,;!)\]\n。，：；、！(（—–]|-\s)
    |\s(?:because|since|as|due|for|given|which|where|with|by|based|not|but|rather|instead|however|holds|follows|fits|works|satisfies|remains
      |(?:is|are)\s(?:therefore\s|the\s|our\s|my\s)?(?:only\s|best\s)?(?:correct|right|true|answer|best))\b
    |\s?(?:因为|因為|です|だ|である|입니다|이다|项|項|正确|正確|是正确|是对|が|가|이)""",
    re.VERBOSE | re.IGNORECASE,
)
# "C) is tempting"
SPOKEN_OF = re.compile(
    r"[)\]]?\s(?!(?:is|are)\s(?:therefore\s|the\s|our\s|my\s)?(?:only\s|best\s)?"
    r"(?:correct|right|true|answer|best)\b)(?:is|are|was|were|can|could|would|does|seems?|looks?|fails?)\b"
    r"|\s?[项項]?(?:是|均|都)?[不错錯]"
)
WORD_END = re.compile(
    r"\s{0,3}(?:\??\s{0,3}$|[.:,;!)\]\n。，：；、！(（—–]|-\s)|\s(?:because|since|due|which)\b|\s?(?:[项項对]|选项|是?正[确確]|是对|因[为為]|で)"
)
# behind a letter: it is refused
REFUSED = re.compile(
    r"[)\]]?(?:\s?[,(—–-]\s?|\s)(?:which\s(?:is|was)\s)?"
    r"(?-i:no)\b(?!\sdoubt)|[)\]]?\s?[,(—–:-]?\s?(?:which\s(?:is|was)\s)?"
    r"(?:wrong|incorrect|false|excluded|rejected|eliminated|ruled\sout|not\s(?:correct|right|true))\b"
    r"|[.…?!,]{1,5}\s?or\b|,\snot\W{0,3}$",
    re.I,
)
# a letter that names an option, and a text behind it
NAMED = re.compile(r"^[(\[]?[A-Z](?:\s?[)\].:,]|\s(?=[\d$\\(]))")
GENUS = re.compile(r"^\W{0,3}[A-Z]\.\s[a-z]")  # E. coli
# in front of the option that a sentence chooses
CHOOSING = re.compile(
    rf"""\b(?:choose|chose|choosing|pick(?:ed|ing)?|select(?:ed|ing)?|go(?:ing)?\ (?:with|for)
        |opt(?:ing)?\ for|settle\ on|vote\ for|say|lean(?:ing)?\ towards?|points?\ to
        |leav(?:es|ing)(?:\ only)?
        |(?:it|this|that)\ is|it's|must\ be)\s
      |\b(?:hence|thus|so|therefore|conclude)[,:]?\s(?:that\s)?(?:it\ is\s)?
      |\bonly\s(?=(?:option|choice)\s)
      |\b(?:is|matches|corresponds\ to|means|with)\s(?=(?:the\ )?(?:option|choice|answer)\ )
      |(?:^|(?<=[\s，。：]))(?:选择|選擇|选|選)|正[确確]的是|对的是
      |(?:应该|應該|应|應|故|只能|我|本题|因此|所以)[,，]?\s?(?:选择|選擇|选|選)[:：]?\s?
      |(?:只有|因此|所以|综上所述|綜上所述|故)[,，]?\s?(?={LABEL})""",
    re.VERBOSE | re.IGNORECASE,
)
# in front of both: "if A is true", "neither A nor B is correct", "I would not choose B"
UNSAID = re.compile(
    r"\b(?:neither|nor|if|suppose|assum\w{1,4}|whether|not|unless|never|why|cannot|were)\b[^.\n,;]{0,40}$"
    r"|n['’]t\b[^.\n]{0,40}$"
    r"|[不没][^。，\n]{0,6}$",
    re.IGNORECASE,
)
LISTED = re.compile(r"\W{0,3}[A-Z]\s?[).:]\s?\S")
# letters, and behind them that they are right
RIGHT = re.compile(
    r"""(?P<letters>(?:[(（\[][A-Za-z][)）\]]|(?<![A-Za-z0-9'’])[A-Z](?![A-Za-z0-9'’]))
      (?:\s{0,3}(?:[,、]\s?(?:and\b)?|\band\b|和|与)\s{0,3}
          (?:[(（\[][A-Za-z][)）\]]|[A-Z](?![A-Za-z0-9'’]))){0,25}+)
    (?:\)?\s(?:is\s(?:what|the\ one|left)\b|remains\b)
      |\)?\s(?:is|are|must\ be)\s(?:therefore\s|thus\s|clearly\s|indeed\s|both\s|all\s)?
        (?:the\s|our\s|my\s)?(?:only\s|most\s|best\s)?
        (?:correct|right|true|answer|best|valid|appropriate)\b
      |\s?(?:项|項)?(?:都|均|才)?(?:是|为|為)?(?:对|正确|正確)|\s?が正|\s?[이가]\s(?:정답|맞)
      |\s(?:es|est|ist|é)\s(?:la\s|die\s|a\s)?(?:correct|corret|richtig|right))""",
    re.VERBOSE,
)


def verify_choice(response: str, gold: str, metadata: dict[str, Any]) -> Outcome:
    texts = read_options(metadata.get("options"))
    known = frozenset(texts)
    if not texts and (named := re.match(r"^\W?([A-Z])\W{1,3}(\S.{0,500})$", plain(gold), re.DOTALL)):
        texts = {named.group(1): named.group(2)}  # the gold repeats its option
    wanted = gold_letters(gold, known, texts)
    if not wanted:
        return unverifiable("bad_gold")
    known = known or frozenset(USUAL + "".join(map(chr, range(ord("A"), ord(max(wanted)) + 1))))
    part = answer_part(response)
    if is_undone(part):
        return unverifiable("unparsable_answer")
    unread: str | None = None
    taken_back = False
    for stated in choices(part, texts, several=len(wanted) > 1):
        said, text = settle(stated.text), settle(plain(stated.text))
        if said is None or text is None:
            taken_back = True
            continue
        letters, is_open = options_of(said, texts, several=len(wanted) > 1)
        if not letters and (stated.cued or (part.strip() == stated.text and len(part) <= SHORT)):
            letters, is_open = options_named(said, texts)
        if letters and letters <= known:
            if is_open:
                return wrong(text, "", "no_answer")
            return (correct if letters == wanted else wrong)(text, "string")
        unread = unread or (text if stated.cued else None)
    if unread is None and (taken_back or LETTER.search(part[-TAIL:]) is None):
        return wrong(None, "", "no_answer")
    return unverifiable("unparsable_answer", unread)


def gold_letters(gold: str, known: frozenset[str], texts: dict[str, str]) -> frozenset[str]:
    """None where the gold names no option."""
    letters, _ = options_of(gold, texts, several=is_sorted(plain(gold)))
    return letters if letters and (not known or letters <= known) else frozenset()


def is_sorted(text: str) -> bool:
    """Whether a gold without separators may be a row of letters, as ACD, and is no word."""
    letters = text.replace(" ", "")
    return letters == "".join(sorted(set(letters)))


def read_options(options: object) -> dict[str, str]:
    """Letter -> text."""
    if isinstance(options, list):
        options = dict(zip(string.ascii_uppercase, options, strict=False))
    if not isinstance(options, dict):
        return {}
    return {str(letter).upper(): str(text) for letter, text in options.items()}


def plain(text: str) -> str:
    text = tidy(MARKUP.sub("", unicodedata.normalize("NFKC", text))).strip("'")
    return text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text


def choices(part: str, texts: dict[str, str], *, several: bool) -> Iterator[Stated]:
    """What may name the option, the one that counts first."""
    cued = [stated for stated in statements(part) if stated.cued]
    yield from cued
    tail = EMPHASIS.sub("", unicodedata.normalize("NFKC", part[-TAIL:]))
    bare = MARKUP.sub("", tail)
    found = [(match.end() - len(bare), match.group("letters")) for match in said_in(bare, RIGHT)]
    for match in said_in(tail, CHOOSING):
        text = tail[match.end() :].partition("\n")[0]
        if not text.rstrip().endswith("?"):
            found.append((match.end() - len(tail), text))
    found.sort(reverse=True)
    yield from (Stated(text, cued=False) for _, text in found[:MAX_CUES])
    if any(settle(stated.text) is None for stated in cued):
        return  # the answer is only said not to be one of them
    lines = [line for line in tail.strip().splitlines() if line.strip()]
    if len({line.strip()[:2] for line in lines if LISTED.match(line)}) > 1:
        return  # the options are listed
    edges = list(dict.fromkeys([*lines[:1], *lines[-1:]]))
    edges = [
        line
        for line in edges
        if not GENUS.match(line) or by_text(line, texts) or by_text(line.partition(". ")[2], texts)
    ]
    named = {letters for line in edges if (letters := options_of(line, texts, several=several)[0])}
    if len(named) == 1 or len(edges) == 1:  # a first and a last line that name two options decide nothing
        yield from (Stated(line, cued=False) for line in edges)


def said_in(text: str, pattern: re.Pattern[str]) -> list[re.Match[str]]:
    """Where a pattern holds, but not behind "if", "neither" or "not"."""
    return [
        match
        for match in pattern.finditer(text)
        if not UNSAID.search(text, max(0, match.start() - 60), match.start())
    ]


def options_of(text: str, texts: dict[str, str], *, several: bool) -> tuple[frozenset[str], bool]:
    """The option whose text or formula a statement is, as it stands; else the letters that it begins with."""
    if letter := by_text(text, texts):
        return frozenset(letter), False
    return letters_of(plain(text), texts, several=several)


def letters_of(text: str, texts: dict[str, str], *, several: bool) -> tuple[frozenset[str], bool]:
    """The letters that a text begins with, and whether it leaves open which of them. Empty where it begins
    with none, with one that it refuses, or with a letter and the text of another option."""
    text = BEFORE.sub("", text)
    if several and (run := RUN.match(text)):
        letters = run.group(1).replace(" ", "")
        if len(set(letters)) == len(letters):
            return frozenset(letters), False
    match = LETTER.match(text) or LOWER.match(text)
    if match is None:
        return frozenset(), False
    found, is_open = [letter_in(match)], False
    end = match.end()
    while (gap := OR.match(text, end) or SEPARATOR.match(text, end)) and (
        following := LETTER.match(text, gap.end())
    ):
        if not (BOUNDARY.match(text, following.end()) or SEPARATOR.match(text, following.end())):
            break
        is_open = is_open or OR.match(text, end) is not None
        found.append(letter_in(following))
        end = following.end()
    rest = text[end:]
    if SPOKEN_OF.match(rest) or (REFUSED.match(rest) and not by_text(rest, texts)):
        return frozenset(), False
    bare = match.lastindex == 2 and found[-1] in "AI"
    if not (WORD_END.match(rest) or (not bare and (match.lastindex == 1 or BOUNDARY.match(rest)))):
        return frozenset(), False
    other = by_text(rest, texts) or ("" if has_words(rest) else by_formula(rest.strip(" .:,)]"), texts))
    return frozenset() if other and other != found[-1] else frozenset(found), is_open


def letter_in(match: re.Match[str]) -> str:
    return match.group(match.lastindex or 0).upper()


def by_text(text: str, texts: dict[str, str]) -> str:
    """The one letter whose option has this text, or ""."""
    wanted = normalise_text(text)
    alike = {
        letter: option for letter, option in texts.items() if wanted and normalise_text(option) == wanted
    }
    named = [letter for letter, option in alike.items() if same_text(option, text.strip(" .:,)]$"))]
    return named[0] if len(named) == 1 else ""


def options_named(text: str, texts: dict[str, str]) -> tuple[frozenset[str], bool]:
    """The letters of options whose text or formula is stated, and whether several are left open."""
    if not texts or NAMED.match(BEFORE.sub("", text)):
        return frozenset(), False  # a letter that goes with another option's text
    parts = alternatives(sentence_of(Stated(text)))
    named = [letter for part in parts if (letter := by_reading(part, texts))]
    return frozenset(named), len(set(named)) > 1


def by_reading(text: str, texts: dict[str, str]) -> str:
    for reading in readings(text):
        if letter := by_text(reading.text, texts):
            return letter
    return by_formula(text, texts)


def by_formula(text: str, texts: dict[str, str]) -> str:
    """The one letter whose option is equal to this formula, or ""."""
    if not re.search(r"[\dA-Za-z]", text):
        return ""
    same = function_of("math")
    formulas = {letter: option for letter, option in texts.items() if re.search(r"[\d=]", option)}
    equal = [
        letter
        for letter, option in formulas.items()
        if same(f"\\boxed{{{text}}}", option, {}).status == "correct"
    ]
    return equal[0] if len(equal) == 1 else ""
