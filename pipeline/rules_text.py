"""Filter rules that read the text of a trace: repetition, languages, stray markup, refusals, answer keys.

Each rule is (candidate, parameters) -> Hit or None. They are ordered by cost inside: plain substring tests
first, regular expressions only on what those let through.
"""

import re
import zlib

from pipeline.candidate import Candidate, Hit
from pipeline.rule_parameters import NoParameters, NotRepetitive, OneLanguage

MIN_LOOP_LETTERS, MAX_LOOP_LETTERS = 4, 240
# a line this short ("+ 1", "= 12") repeats in honest work
MIN_LINE_LETTERS = 12
MIN_RUN_WORDS = 100
# a text that says half of itself twice compresses better than this, as long as zlib sees all of it
LEAST_REPEATING_RATIO = 2.5
ZLIB_WINDOW = 32_768

SCRIPTS = {
    "Cyrillic": "\u0400-\u052f\u1c80-\u1c8f\u2de0-\u2dff\ua640-\ua69f",
    "Armenian": "\u0530-\u058f",
    "Hebrew": "\u0590-\u05ff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufeff",
    "Indic": "\u0900-\u0dff",
    "Thai and Lao": "\u0e00-\u0eff",
    "Georgian": "\u10a0-\u10ff",
    "Hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "Kana": "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9d",
    "Han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f",
}
SCRIPT_LETTERS = {name: re.compile(f"[{letters}]") for name, letters in SCRIPTS.items()}
ANY_SCRIPT = re.compile(f"[{''.join(SCRIPTS.values())}]")
# Japanese mixes the two, so either in the question allows both
TOGETHER = {"Kana": "Han", "Han": "Kana"}

STRAY_MARKUP = re.compile(
    r"</?(?:think|thinking|thought|reasoning|scratchpad|tool_call|tool_response|s|unk|pad|bos|eos)>"
    r"|<\|[^|<>\s]{1,40}\|>|<｜[^｜<>]{1,40}｜>|</?(?:start|end)_of_turn>"
    r"|\[/?INST\]|<</?SYS>>"
)
ROLE_MARKER = re.compile(
    r"(?:^|\n)[ \t]{0,4}(?:#{2,4} ?)?(?:user|human|assistant|system|instruction|response)"
    r"[ \t]?:[ \t]?(?:\n|\S)"
)
ROLE_WORDS = ("user", "human", "assistant", "system", "instruction", "response")

REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:really |very |so )?sorry|i apologi[sz]e|sorry),? (?:but )?(?:i|as an) "
    r"|\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b"
    r"|\bi (?:can(?:no|')t|cannot|am (?:not able|unable) to|'m (?:not able|unable) to|won't|will not) "
    r"(?:help|assist|answer|provide|comply|fulfil|fulfill|do that|complete this)"
    r"|\b(?:against|violates?) (?:my|our|the) (?:guidelines|policy|policies|programming)"
)
REFUSAL_LETTERS = 400  # a refusal stands at the start of an answer

KEY_WORDS = ("answer", "solution", "ground truth", "ground-truth", "result is given")
GOLD_LEAK = re.compile(
    r"\banswer key\b|\bground[ -]truth\b|\bgold(?:en)? (?:answer|solution|label)"
    r"|\b(?:given|provided|reference|expected|official|stated|target|supplied) (?:final |correct )?"
    r"answer\b(?! (?:choice|option|format))"
    r"|\b(?:reference|official|provided) solution\b"
    r"|\b(?:according to|based on|as per) the (?:answer|solution|official|reference)\b"
    r"|\b(?:answer|solution) (?:is|was) (?:already )?(?:given|provided|known|supplied|stated) "
    r"(?:as|to be|in|to us)\b"
    r"|\b(?:we|i)(?:'ve| have| were| was|'re| are) (?:been )?(?:told|given) (?:that )?"
    r"the (?:final |correct )?answer\b"
    r"|\b(?:correct|final|right) answer (?:that )?(?:is|was|has been) (?:given|provided|supplied)\b"
)


def not_repetitive(candidate: Candidate, parameters: NotRepetitive) -> Hit | None:
    text = candidate.text.rstrip()
    if (loop := closing_loop(text, parameters.max_loops)) is not None:
        return Hit("repetitive", f"ends in {parameters.max_loops + 1} times {loop[:60]!r}")
    if len(text) < parameters.min_letters:
        return None
    data = text.encode("utf-8", "replace")
    ratio = len(data) / len(zlib.compress(data, 1))
    if ratio > parameters.max_compression:
        return Hit("repetitive", f"compresses {ratio:.1f} times")
    lines = [line for line in text.split("\n") if len(line) >= MIN_LINE_LETTERS]
    share = 1 - len(set(lines)) / len(lines) if lines else 0.0
    if len(lines) >= 4 and share > parameters.max_repeated_lines:
        return Hit("repetitive", f"{share:.0%} of its lines repeat an earlier line")
    if len(data) < ZLIB_WINDOW and ratio < LEAST_REPEATING_RATIO:
        return None
    share = repeated_runs(text, parameters.run_words)
    if share > parameters.max_repeated_runs:
        return Hit("repetitive", f"{share:.0%} of its runs of {parameters.run_words} words repeat")
    return None


def closing_loop(text: str, max_loops: int) -> str | None:
    """The span that the text ends in more than `max_loops` times over, if any."""
    key, longest = text[-MIN_LOOP_LETTERS:], min(MAX_LOOP_LETTERS, len(text) // (max_loops + 1))
    end = len(text) - len(key)
    place = text.rfind(key, end - longest, end + len(key) - MIN_LOOP_LETTERS)
    while place >= 0:
        length = end - place
        if text.endswith(text[-length:] * (max_loops + 1)):
            return text[-length:]
        place = text.rfind(key, end - longest, place + len(key) - 1)
    return None


def repeated_runs(text: str, run_words: int) -> float:
    """The share of runs of words that stand earlier in the text already; 0 for short texts."""
    words = text.split()
    num_runs = len(words) - run_words + 1
    if len(words) < MIN_RUN_WORDS:
        return 0.0
    return 1 - len(set(zip(*(words[i:] for i in range(run_words)), strict=False))) / num_runs


def one_language(candidate: Candidate, parameters: OneLanguage) -> Hit | None:
    if candidate.text.isascii() or not ANY_SCRIPT.search(candidate.text):
        return None
    own = scripts_of(candidate.problem.question)
    for name, letters in SCRIPT_LETTERS.items():
        if name in own or TOGETHER.get(name) in own:
            continue
        found = letters.findall(candidate.text)
        if len(found) > parameters.max_letters:
            return Hit("mixed_language", f"{len(found)} letters of {name}: {''.join(found[:20])}")
    return None


def scripts_of(text: str) -> set[str]:
    """The scripts other than Latin and Greek that a text uses."""
    return (
        set()
        if text.isascii()
        else {name for name, letters in SCRIPT_LETTERS.items() if letters.search(text)}
    )


def no_leaked_template(candidate: Candidate, parameters: NoParameters) -> Hit | None:
    text = candidate.text
    if ("<" in text or "[" in text) and (found := STRAY_MARKUP.search(text)):
        return Hit("leaked_template", f"stray {found.group()!r}")
    folded = candidate.folded
    if ":" in folded and any(word in folded for word in ROLE_WORDS) and (found := ROLE_MARKER.search(folded)):
        return Hit("leaked_template", f"role marker {found.group().strip()[:30]!r}")
    return None


def no_refusal(candidate: Candidate, parameters: NoParameters) -> Hit | None:
    found = REFUSAL.search(candidate.trace.answer[:REFUSAL_LETTERS].casefold().replace("\u2019", "'"))
    return Hit("refusal", found.group()) if found else None


def no_gold_leak(candidate: Candidate, parameters: NoParameters) -> Hit | None:
    folded = candidate.folded
    if not any(word in folded for word in KEY_WORDS):
        return None
    found = GOLD_LEAK.search(folded)
    return Hit("gold_leak", found.group()) if found else None
