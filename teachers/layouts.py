"""Layouts of published traces: each turns a row into (question, responses), text as it was generated.

openr1        OpenR1-Math-220k: `problem`, `generations` (a list), `finish_reasons` where known
openthoughts  OpenThoughts: `conversations`, thinking between <|begin_of_thought|> and <|end_of_thought|>
sharegpt      `conversations` of {"from": "human" | "gpt", "value"} or `messages` of {"role", "content"}
columns       a column for the question and one for the response (a text, or a list of them)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.render import PROMPTS, Tags

THINK = Tags(opened_by_prompt=False)
THOUGHT = Tags("<|begin_of_thought|>", "<|end_of_thought|>", opened_by_prompt=False)
SOLUTION = ("<|begin_of_solution|>", "<|end_of_solution|>")
# what data sets put around a question; what remains is compared with the problems
WRAPPERS = [
    "Return your final response within \\boxed{}.",
    *(style.format(question="").strip() for style in PROMPTS.values()),
]


@dataclass(frozen=True, slots=True)
class Row:
    """A question and its responses, each with the finish reason that the row states, or ""."""

    question: str
    responses: list[str]
    reasons: list[str]


@dataclass(frozen=True, slots=True)
class Columns:
    question: str = "question"
    response: str = "response"


def read_openr1(row: dict[str, Any], columns: Columns) -> Row:
    responses = [str(text) for text in row["generations"]]
    stated = row.get("finish_reasons") or []
    reasons = [str(reason or "") for reason in stated] or [""] * len(responses)
    return Row(str(row["problem"]), responses, reasons)


def read_chat(row: dict[str, Any], columns: Columns) -> Row:
    """The first user turn and the answer to it; later turns are not read."""
    turns = row["conversations"] if "conversations" in row else row["messages"]
    said = [(turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))) for turn in turns]
    question = next(str(text) for who, text in said if who in ("human", "user"))
    response = next(str(text) for who, text in said if who in ("gpt", "assistant", "model"))
    return Row(question, [response], [""])


def read_columns(row: dict[str, Any], columns: Columns) -> Row:
    found = row[columns.response]
    responses = [str(text) for text in found] if isinstance(found, list) else [str(found)]
    return Row(str(row[columns.question]), responses, [""] * len(responses))


LAYOUTS: dict[str, tuple[Callable[[dict[str, Any], Columns], Row], Tags]] = {
    "openr1": (read_openr1, THINK),
    "openthoughts": (read_chat, THOUGHT),
    "sharegpt": (read_chat, THINK),
    "columns": (read_columns, THINK),
}


def bare_question(text: str) -> str:
    """A question without the instruction that a data set put before or after it."""
    for wrapper in WRAPPERS:
        text = text.strip().removeprefix(wrapper).removesuffix(wrapper) if wrapper else text
    return text.strip()


def bare_solution(text: str) -> str:
    return text.strip().removeprefix(SOLUTION[0]).removesuffix(SOLUTION[1]).strip()
