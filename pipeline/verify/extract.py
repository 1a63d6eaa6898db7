"""Find the answer in a response: the last \\boxed, then a stated final answer, then the last number or formula.

Every step is linear in the length of the text and looks at its end only, so megabytes cost milliseconds.
"""

import re

TAIL = 20_000  # characters at the end of a response in which an unboxed answer is looked for
MAX_BOX = 20_000  # characters of one box
MAX_BOXES = 20  # boxes looked at, from the last one backwards
WHOLE = 200  # a response of at most this many characters may be an answer as it stands

BOX = re.compile(r"\\(?:boxed|fbox)\s{0,20}(?=\{|[0-9A-Za-z])")
BETWEEN = re.compile(
    r"^(?:[\s$,;.&]|\\[()\[\] ,;]|\\q?quad|\band\b|\bor\b|\\text\{\s*(?:and|or)\s*\}){0,40}$"
)

STATED = re.compile(
    r"""
    (?: ^[ \t]{0,20} \#{4} [ \t]{0,20}
      | <answer>
      | ^[ \t*_#>-]{0,20} (?:the\ )? (?:final\ |correct\ )? (?:answer|ans|result|solution|A)
        \ {0,5} [*_]{0,3} \ {0,5} [:=] \ {0,5} [*_]{0,3}
      | \b(?:final\ |correct\ )?(?:answer|result|solution)s?
        (?:\ (?:to|of|for)\ [^.\n$]{1,80}?)?
        \ {0,5} [*_]{0,3} \ {0,5} (?: (?:is|are|equals)\b(?:\ (?:therefore|thus|then|simply|just|exactly))? | : ) :? \ {0,5} [*_]{0,3}
    )
    [ \t]{0,20} \n{0,2} [ \t]{0,20}
    (?P<answer>[^\n]{1,2000})
    """,
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
FORMULA = re.compile(
    r"\$\$([^$]{1,2000})\$\$|\$([^$\n]{1,2000})\$|\\\[(.{1,2000}?)\\\]|\\\((.{1,2000}?)\\\)", re.DOTALL
)
NUMBER = re.compile(r"(?<![\w.])-?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?")


def last_boxed(text: str) -> str | None:
    """The content of the last non-empty \\boxed, joined by commas with boxes that stand right before it."""
    found: list[str] = []
    start_of_next = len(text)
    for match in reversed(list(BOX.finditer(text[-200_000:]))[-MAX_BOXES:]):
        shift = max(0, len(text) - 200_000)
        content, end = box_content(text, match.end() + shift)
        if not content.strip():
            continue
        if found and not BETWEEN.match(text[end:start_of_next][:200]):
            break
        found.append(content.strip())
        start_of_next = match.start() + shift
    return ", ".join(dict.fromkeys(reversed(found))) if found else None


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
    return "", stop


def stated_answer(text: str) -> str | None:
    """What follows the last "####", "A:", "Answer:", "the answer is" or <answer>, to the end of its line."""
    answer = None
    for match in STATED.finditer(text[-TAIL:]):
        answer = match.group("answer")
    return answer if answer is None else tidy(answer.split("</answer>")[0])


def tidy(text: str) -> str:
    """Without markdown emphasis, closing full stop and blanks."""
    text = text.strip().strip("*_`").strip()
    if text.endswith(".") and not text.endswith((".m.", "\\.", "..")):
        text = text[:-1].rstrip()
    return text.strip("*_`").strip()


def last_formula(text: str) -> str | None:
    formula = None
    for match in FORMULA.finditer(text[-TAIL:]):
        formula = next(group for group in match.groups() if group is not None)
    return formula


def last_number(text: str) -> str | None:
    number = None
    for match in NUMBER.finditer(text[-TAIL:]):
        number = match.group()
    return number


def find_answer(response: str) -> str | None:
    """The answer as text, for verifiers that compare text: boxed, else stated, else the last line if short."""
    answer = last_boxed(response) or stated_answer(response)
    if answer is None:
        lines = response[-TAIL:].strip().splitlines()
        answer = tidy(lines[-1]) if lines and len(lines[-1]) <= WHOLE else None
    return answer or None
