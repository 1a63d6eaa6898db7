"""The filter's rules: name -> check. Their examples, which are their tests, are in pipeline.rule_examples.

A rule is (candidate, parameters) -> Hit or None. The recipe's order is the order of checking, and the first
hit names the drop. Parameters and their ranges are in pipeline.rule_parameters.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from pipeline.candidate import Candidate, Hit
from pipeline.contamination import TraceIndex
from pipeline.rule_parameters import ClosedThinking, Limit, NoParameters, NotContaminated, parse_rule
from pipeline.rules_text import (
    no_gold_leak,
    no_leaked_template,
    no_refusal,
    not_repetitive,
    one_language,
)
from pipeline.verify.extract import BETWEEN, BOX, box_content

BoundRule = Callable[[Candidate], Hit | None]


def finished(candidate: Candidate, parameters: NoParameters) -> Hit | None:
    reason = candidate.trace.finish_reason
    if reason in ("stop", "unclosed"):
        return None
    return Hit("truncated" if reason == "length" else "unfinished", f"finish_reason {reason}")


def closed_thinking(candidate: Candidate, parameters: ClosedThinking) -> Hit | None:
    trace = candidate.trace
    if trace.finish_reason == "unclosed" or not trace.answer.strip():
        return Hit("unclosed_thinking", "no answer after the thinking")
    if parameters.required and not (trace.thinking or "").strip():
        return Hit("no_thinking", "the response has no thinking block")
    return None


def one_answer(candidate: Candidate, parameters: NoParameters) -> Hit | None:
    answers = boxed_answers(candidate.trace.answer)
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


def correct(candidate: Candidate, parameters: NoParameters) -> Hit | None:
    verdict = candidate.verdict
    if verdict.status == "correct":
        return None
    return Hit(verdict.status, f"{verdict.reason}: {verdict.extracted}"[:200])


def min_tokens(candidate: Candidate, parameters: Limit) -> Hit | None:
    count = candidate.num_tokens
    return Hit("too_short", f"{count} tokens") if count < parameters.limit else None


def max_tokens(candidate: Candidate, parameters: Limit) -> Hit | None:
    count = candidate.num_tokens
    return Hit("too_long", f"{count} tokens") if count > parameters.limit else None


def not_contaminated(candidate: Candidate, parameters: NotContaminated, index: TraceIndex) -> Hit | None:
    found = index.find(candidate, parameters.min_letters)
    return Hit("contaminated", f"{found[0]}: {found[1]}"[:300]) if found else None


RULES: dict[str, Callable[..., Hit | None]] = {
    "finished": finished,
    "closed_thinking": closed_thinking,
    "one_answer": one_answer,
    "correct": correct,
    "min_tokens": min_tokens,
    "max_tokens": max_tokens,
    "not_repetitive": not_repetitive,
    "one_language": one_language,
    "no_leaked_template": no_leaked_template,
    "no_refusal": no_refusal,
    "no_gold_leak": no_gold_leak,
    "not_contaminated": not_contaminated,
}


def bind_rules(
    entries: list[str | dict[str, dict[str, Any]]], index: TraceIndex
) -> list[tuple[str, BoundRule]]:
    """The rules of a recipe in order, each with its parameters."""
    bound: list[tuple[str, BoundRule]] = []
    for entry in entries:
        name, parameters = parse_rule(entry)
        extra = {"index": index} if name == "not_contaminated" else {}
        bound.append((name, partial(RULES[name], parameters=parameters, **extra)))
    return bound
