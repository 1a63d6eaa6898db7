"""The filter's rules, and how a recipe names them.

A rule is a function of this module whose first parameter is `candidate`; it returns None to let the trace
pass, or a Hit that says why it is dropped. Its name is its name in a recipe; its parameters behind the `*`
are what a recipe may set, with their ranges and defaults; a parameter `index` before the `*` is given the
eval questions. To add a rule, write its function and its examples in tests/rule_examples.py, its tests.

The recipe's order is the order of checking, and the first hit names the drop. Rules that read text do what is
cheap first: plain substring tests, and regular expressions only on what those let through.
"""

import inspect
import re
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, NamedTuple

from pydantic import Field, create_model

from pipeline.errors import RecipeError
from pipeline.problems.overlap import MIN_LETTERS, PROCEDURAL, EvalIndex
from pipeline.recipe.rule_entry import RuleEntry, rule_name, rule_values
from pipeline.recipe.strict_yaml import Strict, nearest, validate
from pipeline.records import Problem, Trace, Verdict
from pipeline.render import Split
from pipeline.verify.extract import BETWEEN, BOX, box_content
from pipeline.verify.majority import NO_MAJORITY, TOO_FEW

# a number of tokens of the trace, thinking and answer with their tags, by the student's tokenizer
Limit = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]

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


class Hit(NamedTuple):
    """Why a trace is dropped: the reason that is counted, and what a reader should see."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Candidate:
    """What a rule looks at: a trace with its problem, its verdict and its two parts.

    `count` gives the tokens of the trace as the student will read it; it is called at most once.
    """

    problem: Problem
    trace: Trace
    verdict: Verdict
    split: Split
    count: Callable[["Candidate"], int]

    @cached_property
    def text(self) -> str:
        return self.split.text

    @cached_property
    def folded(self) -> str:
        return self.text.casefold()

    @cached_property
    def num_tokens(self) -> int:
        return self.count(self)


Rule = Callable[..., Hit | None]
BoundRule = Callable[[Candidate], Hit | None]


def finished(candidate: Candidate) -> Hit | None:
    """The response ended by itself."""
    reason = candidate.trace.finish_reason
    if reason == "stop":
        return None
    return Hit("truncated" if reason == "length" else "unfinished", f"finish_reason {reason}")


def closed_thinking(candidate: Candidate, *, required: bool = True) -> Hit | None:
    """An answer follows the thinking. `required: false` lets responses without any thinking pass, too, as do
    those of a teacher that writes none or hides it (`thinking: none`, `thinking: hidden`)."""
    split = candidate.split
    if split.closing == "unclosed" or not split.answer.strip():
        return Hit("unclosed_thinking", "no answer after the thinking")
    if required and split.closing not in ("unmarked", "hidden") and not (split.thinking or "").strip():
        return Hit("no_thinking", "the response has no thinking block")
    return None


def one_answer(candidate: Candidate) -> Hit | None:
    """The answer part does not box two different answers."""
    answers = boxed_answers(candidate.split.answer)
    return Hit("differing_answers", " | ".join(answers)[:200]) if len(answers) > 1 else None


def boxed_answers(text: str) -> list[str]:
    """The different answers that stand in boxes; boxes in one row ("\\boxed{1} and \\boxed{2}") are one."""
    answers: list[list[str]] = []
    end = -1
    for match in BOX.finditer(text):
        content, closing = box_content(text, match.end())
        content = (
            "".join(content.split()).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").rstrip(".")
        )
        if not content:
            continue
        if end >= 0 and len(between := text[end : match.start()]) <= 200 and BETWEEN.match(between):
            answers[-1].append(content)
        else:
            answers.append([content])
        end = closing
    return list(dict.fromkeys(",".join(dict.fromkeys(group)) for group in answers))


def correct(candidate: Candidate) -> Hit | None:
    """The verifier says that the answer is right."""
    verdict = candidate.verdict
    if verdict.status == "correct":
        return None
    if verdict.reason in (NO_MAJORITY, TOO_FEW):
        return Hit(verdict.reason, f"{candidate.problem.metadata.get('votes')} samples say the same")
    return Hit(verdict.status, f"{verdict.reason}: {verdict.extracted}"[:200])


def min_tokens(candidate: Candidate, *, limit: Limit) -> Hit | None:
    """The trace has at least `limit` tokens."""
    count = candidate.num_tokens
    return Hit("too_short", f"{count} tokens") if count < limit else None


def max_tokens(candidate: Candidate, *, limit: Limit) -> Hit | None:
    """The trace has at most `limit` tokens."""
    count = candidate.num_tokens
    return Hit("too_long", f"{count} tokens") if count > limit else None


def not_contaminated(
    candidate: Candidate, index: EvalIndex, *, min_letters: Annotated[int, Field(ge=10)] = MIN_LETTERS
) -> Hit | None:
    """The trace holds no eval question. Those of fewer than `min_letters` are not looked for as a whole."""
    problem = candidate.problem
    procedural = problem.verifier == PROCEDURAL
    matches = index.inside(candidate.text, problem.source, procedural=procedural, min_letters=min_letters)
    found = next(matches, None)
    return Hit("contaminated", f"{found.matched.task}: {found.detail}"[:300]) if found else None


def not_repetitive(
    candidate: Candidate,
    *,
    max_loops: Annotated[int, Field(ge=2)] = 6,
    max_repeated_lines: Share = 0.5,
    max_repeated_runs: Share = 0.5,
    run_words: Annotated[int, Field(ge=2, le=20)] = 8,
    max_compression: Annotated[float, Field(ge=2)] = 8.0,
    min_letters: Annotated[int, Field(ge=1)] = 600,
) -> Hit | None:
    """The trace does not say the same thing over and over.

    `max_loops`: times that a span may stand right behind itself at the end. The two shares are of repeated
    lines and of repeated runs of `run_words` words; `max_compression` is text over zlib. All but the loops
    are measured on texts of at least `min_letters` characters, since short worked steps repeat by nature.
    """
    text = candidate.text.rstrip()
    if (loop := closing_loop(text, max_loops)) is not None:
        return Hit("repetitive", f"ends in {max_loops + 1} times {loop[:60]!r}")
    if len(text) < min_letters:
        return None
    data = text.encode("utf-8", "replace")
    ratio = len(data) / len(zlib.compress(data, 1))
    if ratio > max_compression:
        return Hit("repetitive", f"compresses {ratio:.1f} times")
    lines = [line for line in text.split("\n") if len(line) >= MIN_LINE_LETTERS]
    share = 1 - len(set(lines)) / len(lines) if lines else 0.0
    if len(lines) >= 4 and share > max_repeated_lines:
        return Hit("repetitive", f"{share:.0%} of its lines repeat an earlier line")
    if len(data) < ZLIB_WINDOW and ratio < LEAST_REPEATING_RATIO:
        return None
    share = repeated_runs(text, run_words)
    if share > max_repeated_runs:
        return Hit("repetitive", f"{share:.0%} of its runs of {run_words} words repeat")
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


def one_language(candidate: Candidate, *, max_letters: Annotated[int, Field(ge=0)] = 2) -> Hit | None:
    """At most `max_letters` are of a script that the question does not use.

    Latin and Greek stand in all mathematics and are not counted.
    """
    if candidate.text.isascii() or not ANY_SCRIPT.search(candidate.text):
        return None
    own = scripts_of(candidate.problem.question)
    for name, letters in SCRIPT_LETTERS.items():
        if name in own or TOGETHER.get(name) in own:
            continue
        found = letters.findall(candidate.text)
        if len(found) > max_letters:
            return Hit("mixed_language", f"{len(found)} letters of {name}: {''.join(found[:20])}")
    return None


def scripts_of(text: str) -> set[str]:
    """The scripts other than Latin and Greek that a text uses."""
    return {name for name, letters in SCRIPT_LETTERS.items() if letters.search(text)}


def no_leaked_template(candidate: Candidate) -> Hit | None:
    """No chat markup or role marker stands in the trace."""
    text = candidate.text
    if ("<" in text or "[" in text) and (found := STRAY_MARKUP.search(text)):
        return Hit("leaked_template", f"stray {found.group()!r}")
    folded = candidate.folded
    if ":" in folded and any(word in folded for word in ROLE_WORDS) and (found := ROLE_MARKER.search(folded)):
        return Hit("leaked_template", f"role marker {found.group().strip()[:30]!r}")
    return None


def no_refusal(candidate: Candidate) -> Hit | None:
    """The answer does not start by refusing."""
    found = REFUSAL.search(candidate.split.answer[:REFUSAL_LETTERS].casefold().replace("\u2019", "'"))
    return Hit("refusal", found.group()) if found else None


def no_gold_leak(candidate: Candidate) -> Hit | None:
    """The trace does not mention an answer key, or an answer that was given to it."""
    folded = candidate.folded
    if not any(word in folded for word in KEY_WORDS):
        return None
    found = GOLD_LEAK.search(folded)
    return Hit("gold_leak", found.group()) if found else None


RULES: dict[str, Rule] = {
    name: function
    for name, function in sorted(globals().items())
    if inspect.isfunction(function)
    and function.__module__ == __name__
    and next(iter(inspect.signature(function).parameters), None) == "candidate"
}


def parameters_of(name: str) -> type[Strict]:
    """What a recipe may set for a rule: a strict model made from the signature of its function."""
    signature = inspect.signature(RULES[name])
    fields: dict[str, Any] = {
        parameter.name: (
            parameter.annotation,
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for parameter in signature.parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    return create_model(name, __base__=Strict, __doc__=RULES[name].__doc__, **fields)


def check_rules(entries: Iterable[RuleEntry]) -> None:
    """RecipeError that lists the entries of `filter.rules` with an unknown rule or a wrong parameter."""
    faults = []
    for position, entry in enumerate(entries):
        try:
            read_rule(entry)
        except RecipeError as error:
            faults.append(f"filter.rules[{position}]: {error}")
    if faults:
        raise RecipeError("; ".join(faults))


def read_rule(entry: RuleEntry) -> tuple[str, Strict]:
    """Name and parameters of one entry, defaults filled in. RecipeError says what is wrong with it."""
    try:
        name, values = rule_name(entry), rule_values(entry)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    if name not in RULES:
        raise RecipeError(f"unknown rule '{name}'; {nearest(name, list(RULES))}")
    return name, validate(parameters_of(name), values, f"rule {name}")


def bind_rules(entries: Iterable[RuleEntry], index: EvalIndex) -> list[tuple[str, BoundRule]]:
    """The rules of a recipe in order, each with its parameters."""
    bound: list[tuple[str, BoundRule]] = []
    for entry in entries:
        name, parameters = read_rule(entry)
        own = {"index": index} if "index" in inspect.signature(RULES[name]).parameters else {}
        bound.append((name, partial(RULES[name], **parameters.model_dump(), **own)))
    return bound
