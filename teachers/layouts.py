"""Layouts of published traces: each turns a row into (question, responses), text as it was generated.

openr1        OpenR1-Math-220k: `problem`, `generations` (a list), `finish_reasons` where known
openthoughts  OpenThoughts: `conversations`, thinking between <|begin_of_thought|> and <|end_of_thought|>
sharegpt      `conversations` of {"from": "human" | "gpt", "value"} or `messages` of {"role", "content"}
columns       a column for the question and one for the response (a text, or a list of them), and
              where there is one, a column for the output tokens (a number, or a list of them)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import RecipeError
from pipeline.recipe.cards import Tags
from pipeline.recipe.prompts import PROMPTS

THINK = Tags(opened_by_prompt=False)
THOUGHT = Tags(open="<|begin_of_thought|>", close="<|end_of_thought|>", opened_by_prompt=False)
SOLUTION = ("<|begin_of_solution|>", "<|end_of_solution|>")
# what data sets put around a question; what remains is compared with the problems
WRAPPERS = [
    "Return your final response within \\boxed{}.",
    *(prompt.user.format(question="").strip() for prompt in PROMPTS.values()),
]


@dataclass(frozen=True, slots=True)
class Row:
    """A question and its responses, each with the finish reason ("" unstated) and the output tokens (None
    unstated) that the row states. ValueError where the lists are of different lengths."""

    question: str
    responses: list[str]
    reasons: list[str]
    tokens: list[int | None]

    def __post_init__(self) -> None:
        stated = {"finish reasons": len(self.reasons), "token counts": len(self.tokens)}
        for name, number in stated.items():
            if number != len(self.responses):
                raise ValueError(f"{len(self.responses)} responses, {number} {name}")


@dataclass(frozen=True, slots=True)
class Columns:
    question: str = "question"
    response: str = "response"
    tokens: str = ""

    @classmethod
    def from_flag(cls, flag: str) -> "Columns":
        """`question,response` or `question,response,tokens`. RecipeError on anything else."""
        names = [name.strip() for name in flag.split(",")]
        if len(names) not in (2, 3) or not all(names):
            raise RecipeError(
                f"--columns {flag}: name the column of the question, the one of the response and, where "
                "there is one, the one of the output tokens, for example --columns problem,solution"
            )
        return cls(*names)


def read_openr1(row: dict[str, Any], columns: Columns) -> Row:
    responses = texts(row["generations"])
    stated = row.get("finish_reasons") or []
    reasons = [str(reason or "") for reason in stated] or [""] * len(responses)
    return Row(text(row["problem"]), responses, reasons, [None] * len(responses))


def read_chat(row: dict[str, Any], columns: Columns) -> Row:
    """The first user turn and the answer to it; later turns are not read."""
    turns = row["conversations"] if "conversations" in row else row["messages"]
    said = [(turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))) for turn in turns]
    question = first_turn(said, ["human", "user"])
    response = first_turn(said, ["gpt", "assistant", "model"])
    return Row(question, [response], [""], [None])


def first_turn(said: list[tuple[Any, Any]], roles: list[str]) -> str:
    for who, value in said:
        if who in roles:
            return text(value)
    raise ValueError(f"there is no turn of {' or '.join(roles)} in it")


def read_columns(row: dict[str, Any], columns: Columns) -> Row:
    found = row[columns.response]
    responses = texts(found if isinstance(found, list) else [found])
    tokens: list[int | None] = [None] * len(responses)
    if columns.tokens:
        counts = row[columns.tokens]
        tokens = [whole(count) for count in (counts if isinstance(counts, list) else [counts])]
    return Row(text(row[columns.question]), responses, [""] * len(responses), tokens)


def text(value: Any) -> str:
    """A text that any file can hold: JSON may have half of a surrogate pair. TypeError on anything else."""
    if not isinstance(value, str):
        raise TypeError(f"expected a text, found {value!r:.40}")
    return value.encode(errors="replace").decode()


def texts(values: Any) -> list[str]:
    if not isinstance(values, list):
        raise TypeError(f"expected a list of texts, found {values!r:.40}")
    return [text(value) for value in values]


def whole(value: Any) -> int | None:
    """A number of tokens; None stays None. TypeError on anything else."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise TypeError(f"expected a number of tokens, found {value!r:.40}")


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
