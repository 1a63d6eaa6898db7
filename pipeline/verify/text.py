"""text: equality of two texts after Unicode normalisation, without markup, case, articles and end marks."""

import re
import unicodedata
from typing import Any

from pipeline.verify.extract import find_answer
from pipeline.verify.outcome import Outcome, correct, unverifiable, wrong

COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox|textnormal|mathbf|emph)\s{0,5}\{([^{}]{0,2000})\}")
DASHES = str.maketrans(
    dict.fromkeys("‐‑‒–—−", "-") | dict.fromkeys("‘’ʼ`´", "'") | dict.fromkeys("“”„«»", '"')
)
EDGES = " \t\n.,;:!?\"'*_$"


def normalise_text(text: str) -> str:
    """NFKC, case folded, markup and quotes removed, white space collapsed."""
    text = unicodedata.normalize("NFKC", text).translate(DASHES).casefold()
    text = COMMAND.sub(r"\1", text)
    text = re.sub(r"\\[ ,;!]|~", " ", text).replace("\\", "")
    return re.sub(r"^(?:the|a|an) ", "", " ".join(text.split()).strip(EDGES))


def verify_text(response: str, gold: str, metadata: dict[str, Any]) -> Outcome:
    wanted = normalise_text(gold)
    if not wanted:
        return unverifiable("bad_gold")
    answer = find_answer(response)
    if answer is None:
        return wrong(None, "", "no_answer")
    return (correct if normalise_text(answer) == wanted else wrong)(answer, "string")
