"""Which text of a response is its answer: one policy, for every verifier.

1. Only what follows the thinking counts: nothing inside <think> or before </think> is an answer, and a
   response whose thinking never ends has none. Special tokens at the end are dropped.
2. The last \\boxed that holds something. Boxes that only "and", "or" or a comma separates are one answer.
   A last box that never closes was cut off: then nothing is read.
3. What is announced behind that box ("Final answer: ...", "the answer is ...") is a later word: it counts
   first, and the box where that word cannot be read.
4. Without a box: the last title, field, tag or phrase that announces something, in ten languages
   (`pipeline.verify.cues`): its line, or the next one, or the display that begins there.
5. Without those: the last line that is not a remark ("I hope this helps!"), or the whole of a short text.
6. What a statement takes back does not count: "not 7 but 5" is 5, "12, not 13" is 12. One that only takes
   back states nothing, and one that leaves open ("7 or 8") is no answer unless the gold is several values.
7. What is announced as another's answer, a first or a wrong one is not the answer; and where the last word on
   an answer is that it is wrong ("Wait, no, it is 6", "which is incorrect"), nothing can be told.
8. Of a sentence: what follows its last verb, then a formula in that place, then its only number.

Every step is linear in the length of the text and looks at its end only, so megabytes cost milliseconds.
"""

import re
from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from pipeline.verify.cues import CUE, NOT_ONLY, settle

TAIL = 20_000  # characters at the end of a response in which an unboxed answer is looked for
BOX_TAIL = 200_000  # characters at the end of a response in which a box is looked for
MAX_BOX = 150_000  # characters of one box
MAX_BOXES = 10  # boxes looked at, from the last one backwards
MAX_CUES = 10  # statements looked at, from the last one backwards
MAX_LINE = 2_000  # characters of one statement
WHOLE = 200  # a response of at most this many characters may be an answer as it stands

THINKING = re.compile(
    r"<(?P<end>/?)(?:\w{1,10}:)?(?:think|thinking|thought|thoughts|reasoning|scratchpad)>"
    r"|◁(?P<end2>/?)think▷|\[(?P<end3>/?)THINK\]|<\|channel\|>(?:analysis|(?P<end4>final))<\|message\|>"
)
NEXT_QUESTION = re.compile(r"\n\s{0,5}(?:Question|Problem|Q)(?: ?\d{1,3})? ?:")
SPECIAL = re.compile(
    r"(?:\s{0,20}(?:<[|｜][^<>\n]{1,40}[|｜]>|</?s>|<eos>|<(?:end|start)_of_turn>)){1,10}\s{0,20}$"
)
# the last form is what is left of "\\boxed" where a program took "\\b" for a backspace
BOXED = r"(?:\\(?:boxed|fbox|framebox)|(?<![A-Za-z\\])\x08?b?oxed(?=\{))\s{0,20}"
BOX = re.compile(BOXED + r"(?=\{|[0-9A-Za-z])")
BETWEEN = re.compile(
    r"^(?:[\s$,;.&]|\\[()\[\] ,;]|\\q?quad|\band\b|\bor\b|\\text\{\s*(?:and|or)\s*\}){0,40}$"
)
LETTER = re.compile(r"[^\W\d_]|#")
EMPTY_BOX = re.compile(BOXED + r"\{\s{0,20}\}")
# before "the answer is": then it is not stated
DOUBT = re.compile(
    r"\b(?:doubt|(?:do|does|did)(?:n't|\snot)\s(?:think|believe)|if|suppose|assume|assuming"
    r"|whether|thought|guessed|initially|at\sfirst|some\s(?:say|may|might)|unlikely)\b",
    re.IGNORECASE,
)
# before "answer is": it is another's answer, or one that the response does not give
QUALIFIED = re.compile(
    r"(?:\b(?:wrong|incorrect|false|mistaken|flawed|tempting|first|initial|earlier|previous|original|old|prior"
    r"|second|alternative|alternate|another|other|given|provided|submitted|proposed|suggested|claimed"
    r"|naive|least|worst|intermediate|example|sample|his|her|their"
    r"|(?:student|user|friend|teacher|author|classmate|book|model|assistant)['’]s)"
    r"(?:\s(?:possible|plausible|likely|best|common|tempting|wrong|incorrect|accurate|final|model))?\s"
    r"|(?<!\bwe)\s(?:might|may|could)\s(?:\w{1,12}\s)?(?:guess|think|say|expect|suspect|assume|believe|conclude|argue)\b.{0,30}"
    r"|\b(?:some|many|most|people|students|others)\b.{0,30}\b(?:say|think|believe|claim|argue|guess|answer)\b.{0,30}"
    r"|\bsays\b.{0,30}|\bno\s|\bcommon\s(?:error|mistake)\b.{0,40})$"
    r"|错误的?$|錯誤的?$",
    re.IGNORECASE,
)
MISLABELLED = re.compile(
    r"\b(?:wrong|incorrect|attempt|mistake|error|guess)(?:\s\w{1,12}){0,2}:\s{1,3}(?:the\s)?$", re.IGNORECASE
)
# behind an answer: the response takes it back, or begins anew
UNDONE = re.compile(
    r"""(?:^(?!\w{1,12}\W{0,3}$)|[\n.,;:!?…—–)}$*-])\s{0,3}(?:(?:oh|no|but|actually|h+m+)[,.!…]{0,3}\s){0,2}
        (?:wait|h+m+|oops|hold\ on|scratch\ that|correction|never\ ?mind|on\ second\ thoughts?)\b
        (?!\s(?:for|until|times?)\b)
      |\b(?:that|this|it|which)(?:['’]s|\s(?:is|was|seems|must\ be|looks))\s(?:\w{1,12}\s)?
        (?:wrong|incorrect|not\ (?:right|correct)|mistaken|an?\ (?:error|mistake))\b
      |(?:[.,!…—–]\s|\n\s{0,3})(?:actually|sorry|edit|update|no(?=[,:]))[,:]?\s
        (?:it|that|the\ (?:answer|correct)|I|we|[$\\\d]|(?-i:[A-Z]\b))
      |\?[\s*$]{0,4}no\b
      |\b(?:that|this|it|which)\s(?:fails|contradicts|violates|(?:does|do)(?:n['’]t|\snot)\s(?:work|hold|satisfy))\b
      |\b(?:that|this|it|which)\sis(?:n['’]t|\snot)\s(?:right|correct)\b
      |\b(?:that|this|which)\sis(?:n['’]t|\snot)\s(?:an?\s|the\s)?(?:valid|integer|answer|solution)\b
      |\bI\s(?:have\s|had\s|must\shave\s|may\shave\s)?
        (?:made\ (?:an?\ |some\ )?(?:\w{1,12}\s)?(?:error|mistake|slip)|messed|miscalculated|misread
          |was\ wrong|take\ (?:it|that)\ back)
      |\((?:incorrect|wrong|not\ (?:correct|right))\)|\s[-–—]\s?(?:incorrect|wrong)\b
      |\b(?:alternative|another(?:\ possible)?|other\ possible)\ answers?\b
      |等等|不对|不對|算错""",
    re.VERBOSE | re.IGNORECASE,
)
REJECTED = re.compile(r"[\s$*)\]\\]{0,8}(?:is|was)(?:\s(?:wrong|incorrect|not|too)\b|n['’]t)")
HYPOTHETICAL = re.compile(r"[^.\n]{0,60}\sif\s")
ERROR_BOX = re.compile(
    r"\b(?:error|mistake|wrong|wrongly|incorrect|incorrectly|trap|tempting|instead\sof|rather\sthan)\b"
    r"|(?:\b(?:not|never|cannot(?:\sbe)?)|n['’]t(?:\sbe)?)[\s$*\\(\[]{0,6}$",
    re.IGNORECASE,
)
DOUBT_REACH = 60
SENTENCE_START = re.compile(r"[.!?,;:]\s|\n")
OTHER_LINE = re.compile(r"\s{1,5}(or\b[^\n]{1,200})", re.IGNORECASE)
LEAD = re.compile(r"[\s*_:：}]*")
DISPLAY = re.compile(r"\\\[|\$\$|\\begin\{")
DISPLAY_END = {"\\[": "\\]", "$$": "$$", "\\begin{": "\\end{"}
FORMULA = re.compile(
    r"\$\$([^$]{1,2000})\$\$|\$([^$\n]{1,2000})\$|\\\[(.{1,2000}?)\\\]|\\\((.{1,2000}?)\\\)", re.DOTALL
)
DISPLAY_CLOSED = re.compile(r"(\\\]|\$\$|\\end(?=\{\w{1,20}\*?\}$))\S{0,24}$")
DISPLAY_START = {"\\]": "\\[", "$$": "$$", "\\end": "\\begin"}
REMARK = re.compile(
    r"""^[\W_]{0,20}(?:let\ me\ know|I\ hope|hope\ (?:this|that|it)|feel\ free
    |if\ you\ (?:have|need|want|would)|good\ luck|confidence|check\b|verification|note\b|explanation
    |great|thank|happy\ to|is\ there|would\ you
    |please\ (?:let|note)|希望|如果你|如有)|^[\W_]{1,200}$""",
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Box:
    """Where a box stands; `content` is None for one that never closes."""

    start: int
    end: int
    content: str | None


@dataclass(frozen=True, slots=True)
class Stated:
    """A text that is the answer, with or without words around it. `cued`: announced, not only last.
    `last_box`: the last of several boxes, which counts alone unless an "or" leaves the answer open."""

    text: str
    cued: bool = True
    boxed: bool = False
    last_box: str = ""


def answer_part(response: str) -> str:
    """What follows the thinking, without special tokens; "" where the thinking never ends. A model that was
    not stopped may go on with another question, which has an answer of its own."""
    start, open_at = 0, None
    for tag in THINKING.finditer(response):
        closes = any(tag.group(name) for name in ("end", "end2", "end3", "end4"))
        start, open_at = (tag.end(), None) if closes else (start, tag.start() if open_at is None else open_at)
    part = response[start:open_at]
    part = part[:-TAIL] + SPECIAL.sub("", part[-TAIL:])
    if end := NEXT_QUESTION.search(part):
        before = part[: end.start()]
        return before if last_boxes(before) or cued_statements(before, 0) else part
    return part


def statements(part: str) -> list[Stated]:
    """What an answer part states, the one that counts first; the next one only where that cannot be read."""
    boxes = last_boxes(part)
    if is_cut_off(boxes):
        return []
    cued = cued_statements(part, boxes[-1].end if boxes else 0)
    if boxes:
        last = boxes[-1].content or "" if len(boxes) > 1 else ""
        return [*cued[:1], Stated(joined(part, boxes), boxed=True, last_box=last)]
    return cued or [Stated(line, cued=False) for line in last_lines(part)]


def is_undone(part: str) -> bool:
    """Whether what is stated last is taken back without a clear new statement, or announced only as another's
    answer, as a first one, as a wrong one. Nothing can be told then."""
    text = part[-TAIL:]
    boxes = last_boxes(text)
    start = boxes[-1].end if boxes else 0
    if boxes and (ERROR_BOX.search(sentence_before(text, boxes[0].start)) or REJECTED.match(text, start)):
        return True
    if boxes and LETTER.search(text, start) is None:
        return False  # nothing is said behind the box
    cues = deque(CUE.finditer(text, start), maxlen=MAX_CUES)
    own = [cue.end() for cue in cues if not is_qualified(text, cue)]
    if cues and not own and not boxes:
        return True
    if not boxes and not own:
        start = max(text.rstrip().rfind("\n"), 0)
    return UNDONE.search(text, max(own, default=start)) is not None


def is_qualified(text: str, cue: re.Match[str]) -> bool:
    """Whether an announcement is of an answer that is not the response's own, or not its last word."""
    if "would" in cue.group() and HYPOTHETICAL.match(text, cue.end()):
        return True
    if MISLABELLED.search(text, max(0, cue.start() - DOUBT_REACH), cue.start()):
        return True
    return QUALIFIED.search(before_cue(text, cue)) is not None


def before_cue(text: str, cue: re.Match[str]) -> str:
    """What of its sentence stands in front of a cue."""
    return sentence_before(text, cue.start() + len(cue.group()) - len(cue.group().lstrip(" \t*_#>")))


def sentence_before(text: str, end: int) -> str:
    return SENTENCE_START.split(text[max(0, end - DOUBT_REACH) : end])[-1]


def is_cut_off(boxes: list[Box]) -> bool:
    """Whether the last box never closes: something was meant as the answer, and it is not all there."""
    return bool(boxes) and boxes[-1].content is None


@lru_cache(maxsize=4)
def last_boxes(text: str) -> list[Box]:
    """The last box that holds something, behind those which only "and", "or" or blanks separate from it."""
    found: list[Box] = []
    for box in reversed(outermost_boxes(text)):
        if found and (box.content is None or not BETWEEN.match(text[box.end : found[-1].start][:200])):
            break
        found.append(box)
        if box.content is None:
            break
    return found[::-1]


def outermost_boxes(text: str) -> list[Box]:
    """The last boxes that hold something. One inside another is a part of that:
    \\boxed{\\boxed{3} + 1} says 3 + 1, not 3."""
    found: list[Box] = []
    inside = 0  # where the content of the last outermost box ends
    for match in list(BOX.finditer(text, max(0, len(text) - BOX_TAIL)))[-MAX_BOXES:]:
        content, end = box_content(text, match.end())
        if end > inside and (held := unboxed(content)):
            inside = match.end() + 1 + len(content)
            found.append(Box(match.start(), end, held))
        elif end > inside and not content and text[end - 1 : end] != "}":
            found.append(Box(match.start(), end, None))
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
    return boxes[-1].content if boxes else None


def joined(text: str, boxes: list[Box]) -> str:
    """Boxes side by side as one answer: with "or" between them where the text has it, else commas."""
    parts = [boxes[0].content or ""]
    for left, right in pairwise(boxes):
        between = text[left.end : right.start]
        parts += [" or " if re.search(r"\bor\b", between) else ", ", right.content or ""]
    return "".join(parts)


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


def cued_statements(part: str, start: int) -> list[Stated]:
    """What the cues behind `start` announce, the last one first, without what a later one takes back."""
    found: list[str] = []
    denied: list[str] = []
    text = part[max(start, len(part) - TAIL) :]
    if not LETTER.search(text):
        return []
    until = len(text)  # what a cue announces ends where the next one begins
    for cue in reversed(deque(CUE.finditer(text), maxlen=MAX_CUES)):
        said = tidy(EMPTY_BOX.sub("", announced(text[:until], cue)))
        until = cue.start()
        if is_qualified(text, cue):
            continue
        if said and (cue.group("negated") or DOUBT.search(before_cue(text, cue))):
            said = f"not {said}"
        if said and settle(said) is None:
            denied.append(said)
        elif said and not any(is_denied(said, one) for one in denied):
            found.append(said)
    return [Stated(said) for said in dict.fromkeys(found or denied[:1])]


def is_denied(said: str, denial: str) -> bool:
    """Whether "not 7" speaks of the statement "7" or "7 because ..."."""
    core = NOT_ONLY.sub("", denial)
    return said.startswith(core) and not said[len(core) : len(core) + 1].isalnum()


def announced(text: str, cue: re.Match[str]) -> str:
    """What stands behind a cue: a tag's content, a display, else a line; after blank lines, if need be."""
    if cue.group().endswith(">"):
        return text[cue.end() :].partition("</answer>")[0][:MAX_LINE].strip()
    lead = LEAD.match(text, cue.end())
    start = lead.end() if lead else cue.end()
    if opened := DISPLAY.match(text, start):
        end = text.find(DISPLAY_END[opened.group()], opened.end(), start + MAX_LINE)
        if end >= 0:
            return text[start:end] + text[end : end + MAX_LINE].partition("\n")[0]
    line = text[start : start + MAX_LINE].partition("\n")[0].partition("</answer>")[0]
    if other := OTHER_LINE.match(text, start + len(line)):
        return line + " " + other.group(1)
    end = text.find("$", start + len(line), start + len(line) + WHOLE) if line.count("$") % 2 else -1
    return text[start : end + 1] if end >= 0 else line  # a formula may go on in the next line


def last_lines(part: str) -> list[str]:
    """The whole of a short text; the last line that is not a remark, or the display that ends there."""
    text = part[-TAIL:].strip()
    lines = text.splitlines()
    while len(lines) > 1 and REMARK.match(lines[-1]) and lines[-1].strip() not in ("\\]", "$$"):
        lines.pop()
    rest = "\n".join(lines).rstrip()
    start = rest.rfind("\n") + 1
    if closed := DISPLAY_CLOSED.search(rest[-40:]):
        opening = rest.rfind(DISPLAY_START[closed.group(1)], 0, len(rest) - len(closed.group()))
        start = rest.rfind("\n", 0, max(opening, 0)) + 1 if opening >= 0 else start
    found = [text] if len(text) <= WHOLE else []
    last = rest[start:]
    return [
        line
        for line in dict.fromkeys(map(tidy, [*found, *([last] if len(last) <= MAX_LINE else [])]))
        if line
    ]


def tidy(text: str) -> str:
    """Without markdown emphasis, closing full stop and blanks."""
    text = text.strip().strip("*_`").strip()
    if text.endswith(("。", "．")) or (text.endswith(".") and not text.endswith((".m.", "\\.", ".."))):
        text = text[:-1].rstrip()
    return text.strip("*_`").strip()


def find_answer(response: str) -> str | None:
    """The answer of verifiers that compare text: without what it takes back; None where nothing is stated."""
    part = answer_part(response)
    found = statements(part)
    if not found or is_undone(part):
        return None
    return found[0].text if found[0].boxed else settle(found[0].text)
