"""Find the answer in a response: the last \\boxed, then a stated answer, then the last number or formula.

Every step is linear in the length of the text and looks at its end only, so megabytes cost milliseconds.
"""

import re
from collections import deque

TAIL = 20_000  # characters at the end of a response in which an unboxed answer is looked for
BOX_TAIL = 200_000  # characters at the end of a response in which a box is looked for
MAX_BOX = 150_000  # characters of one box
MAX_BOXES = 10  # boxes looked at, from the last one backwards
WHOLE = 200  # a response of at most this many characters may be an answer as it stands

BOX = re.compile(r"\\(?:boxed|fbox)\s{0,20}(?=\{|[0-9A-Za-z])")
BETWEEN = re.compile(
    r"^(?:[\s$,;.&]|\\[()\[\] ,;]|\\q?quad|\band\b|\bor\b|\\text\{\s*(?:and|or)\s*\}){0,40}$"
)

STATED = re.compile(
    r"""
    (?: ^[ \t]{0,20} \#{4} [ \t]{0,20}
      | <answer>
      | ^[ \t*_]{0,5} (?-i:A) \ ?:
      | ^[ \t*_#>-]{0,20} (?:the\ )? (?:final\ |correct\ )? (?:answer|ans|result|solution)
        \ {0,5} [*_]{0,3} \ {0,5} [:=] \ {0,5} [*_]{0,3}
      | \b(?:final\ |correct\ )?(?:answer|result|solution)s?
        (?:\ (?:to|of|for)\ [^.\n$]{1,80}?)?
        \ {0,5} [*_]{0,3} \ {0,5}
        (?: (?:is|are|equals)\b (?:\ (?:therefore|thus|then|simply|just|exactly))? | : ) :?
        \ {0,5} [*_]{0,3}
    )
    [ \t]{0,20} \n{0,2} [ \t]{0,20}
    (?P<answer>[^\n]{1,2000})
    """,
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
FORMULA = re.compile(
    r"\$\$([^$]{1,2000})\$\$|\$([^$\n]{1,2000})\$|\\\[(.{1,2000}?)\\\]|\\\((.{1,2000}?)\\\)", re.DOTALL
)
CLAUSE_END = re.compile(r"\.\s|,?\s(?:because|since|which|so|as|when|if|while)\s|\n")
VERB = re.compile(
    r"\b(?:is|are|equals|equal to|was|be|get|gives|obtain|have|has|makes?|therefore|thus|hence|so|at)\s",
    re.I,
)
# words that no answer holds: a line with one of them has words around its answer
PROSE = re.compile(
    r"\b(?:the|so|hence|thus|therefore|we|that|because|since|it|this"
    r"|there|she|he|they|which|as|his|her|I am|I think|I cannot|I get)\b(?!\s?[=<>(])",
    re.IGNORECASE,
)
NUMBER = re.compile(r"(?<![\w.])-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")


def last_boxes(text: str) -> list[str]:
    """The content of the last non-empty \\boxed, behind that of boxes which stand right before it."""
    found: list[str] = []
    start_of_next = len(text)
    for start, end, content in reversed(outermost_boxes(text)):
        if found and not BETWEEN.match(text[end:start_of_next][:200]):
            break
        found.append(content)
        start_of_next = start
    return list(dict.fromkeys(reversed(found)))


def outermost_boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of the last boxes that hold something. One inside another is a part of that:
    \\boxed{\\boxed{3} + 1} says 3 + 1, not 3."""
    found: list[tuple[int, int, str]] = []
    inside = 0  # where the content of the last outermost box ends
    for match in list(BOX.finditer(text, max(0, len(text) - BOX_TAIL)))[-MAX_BOXES:]:
        content, end = box_content(text, match.end())
        if end > inside and (held := unboxed(content)):
            inside = match.end() + 1 + len(content)
            found.append((match.start(), end, held))
    return found


def unboxed(content: str) -> str:
    """The content of a box without the commands of the boxes inside it."""
    content = content.strip()
    for _ in range(MAX_BOXES):
        match = BOX.match(content)
        inner, end = box_content(content, match.end()) if match else ("", 0)
        if match is None or end < len(content):
            break
        content = inner.strip()
    return BOX.sub(" ", content).strip()


def last_boxed(text: str) -> str | None:
    """The content of the last non-empty \\boxed."""
    boxes = last_boxes(text)
    return boxes[-1] if boxes else None


def box_content(text: str, start: int) -> tuple[str, int]:
    """The braced group (or single token) at `start`, and where it ends; "" for one that never closes."""
    if text[start] != "{":
        match = re.compile(r"-?[0-9.,]+|\w").match(text, start)
        return (match.group(), match.end()) if match else ("", start)
    depth, position = 0, start
    stop = min(len(text), start + MAX_BOX)
    while position < stop:
        character = text[position]
        if character == "\\":
            position += 1  # an escaped brace opens and closes nothing
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : position], position + 1
        position += 1
    whole = text[start:stop].rstrip()
    if start <= len("\\boxed") and whole.endswith("}") and not BOX.search(whole):
        return whole[1:-1], stop  # the text is one box around something with a brace of its own
    return "", stop


def stated_answer(text: str) -> str | None:
    """What follows the last "####", "A:", "Answer:", "the answer is" or <answer>, to the end of its line."""
    text = text[-TAIL:]
    last = last_match(STATED, text)
    if last is None:
        return None
    answer = last.group("answer").split("</answer>")[0]
    if answer.count("$") % 2 and 0 <= (closing := text.find("$", last.end())) < last.end() + WHOLE:
        answer += " " + text[last.end() : closing + 1]  # the formula goes on in the next line
    return tidy(answer)


def tidy(text: str) -> str:
    """Without markdown emphasis, closing full stop and blanks."""
    text = text.strip().strip("*_`").strip()
    if text.endswith(".") and not text.endswith((".m.", "\\.", "..")):
        text = text[:-1].rstrip()
    return text.strip("*_`").strip()


def last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text[-TAIL:]), maxlen=1)), None)


def last_formula(text: str) -> str | None:
    match = last_match(FORMULA, text)
    return match and match.group(match.lastindex or 0)


def last_number(text: str) -> str | None:
    match = last_match(NUMBER, text)
    return match and match.group()


def answers(response: str) -> list[str]:
    """What may be the answer where nothing is boxed, best first. A later one counts only where those before
    it cannot be read."""
    if stated := stated_answer(response):
        return unique([stated, *shorter(stated)])
    text = response[-TAIL:].strip()
    if not text:
        return []
    last_line = tidy(text.splitlines()[-1])
    found: list[str | None] = [tidy(text)] if len(text) <= WHOLE else []
    if len(last_line) <= 2 * WHOLE:
        found += [last_line, *shorter(last_line)]
    return unique([*found, last_formula(text), last_number(text)])


def unique(found: list[str | None]) -> list[str]:
    return [answer for answer in dict.fromkeys(found) if answer]


def shorter(line: str) -> list[str | None]:
    """Of a line with words around its answer: its formulas, its first clause, what follows a verb."""
    formulas = joined_formulas(line)
    clause = tidy(CLAUSE_END.split(line, maxsplit=1)[0])
    behind = [tidy(part) for part in (VERB.split(line)[-1], VERB.split(clause)[-1])]
    number = last_number(line)
    word = re.match(r"[^\W\d_]{2,20}(?=,\s)", line)  # "Yes, it is"
    return [clause if clause != line else None, *formulas, *behind, word.group() if word else None, number]


def is_prose(text: str) -> bool:
    return PROSE.search(FORMULA.sub(" ", text)) is not None


def joined_formulas(line: str) -> list[str | None]:
    """The last formula, together with those that only "and", "or" or a comma separates from it."""
    found = list(FORMULA.finditer(line))
    if not found:
        return []
    start = found[-1].start()
    for match in reversed(found[:-1]):
        if not BETWEEN.match(line[match.end() : start]):
            break
        start = match.start()
    joined = line[start : found[-1].end()]
    rest = line[found[-1].end() :]
    unit = re.match(r"^\s?(?:[a-z%°]{1,20})(?=[\s.,]|$)", rest)
    return [joined + unit.group() if unit else joined, joined]


def find_answer(response: str) -> str | None:
    """The answer for verifiers that compare text: boxed, else stated, else the last line if short."""
    boxes = last_boxes(response)
    answer = ", ".join(boxes) if boxes else stated_answer(response)
    if answer is None:
        lines = response[-TAIL:].strip().splitlines()
        answer = tidy(lines[-1]) if lines and len(lines[-1]) <= WHOLE else None
    return answer or None
