"""Layouts of published traces: each turns a row into (question, responses), text as it was generated.

openr1        OpenR1-Math-220k: `problem`, `generations` (a list), `finish_reasons` where known
openthoughts  OpenThoughts: `conversations`, thinking between <|begin_of_thought|> and <|end_of_thought|>
sharegpt      a chat in `conversations` or `messages` (pipeline.rows.chats): the question of the user and the
              answer to it, with its thinking in a field or a part of its own, or between tags
columns       columns or paths of the question and of the response (a text, a list of them, or a chat; of
              several columns a+b), and where there are such, of its thinking and its output tokens

A chat of several turns is no answer to one question: it is refused, or with --first-turn cut after the first.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from pipeline.errors import RecipeError
from pipeline.recipe.cards import Tags
from pipeline.recipe.prompts import PROMPTS
from pipeline.recipe.strict_yaml import nearest
from pipeline.render import Split, split_response
from pipeline.rows.cells import cell_of, unpacked
from pipeline.rows.chats import Turn, chat_in

THINK = Tags(opened_by_prompt=False)
THOUGHT = Tags(open="<|begin_of_thought|>", close="<|end_of_thought|>", opened_by_prompt=False)
# tags by name, for files whose thinking stands in others than their layout's
TAGS = {
    "think": THINK,
    "thought": THOUGHT,
    "thinking": Tags(open="<thinking>", close="</thinking>", opened_by_prompt=False),
    "reasoning": Tags(open="<reasoning>", close="</reasoning>", opened_by_prompt=False),
    "mistral": Tags(open="[THINK]", close="[/THINK]", opened_by_prompt=False),
    "seed": Tags(open="<seed:think>", close="</seed:think>", opened_by_prompt=False),
}
SOLUTION = ("<|begin_of_solution|>", "<|end_of_solution|>")
# what data sets put around a question; what remains is compared with the problems
WRAPPERS = [
    "Return your final response within \\boxed{}.",
    *(prompt.user.format(question="").strip() for prompt in PROMPTS.values()),
]


@dataclass(frozen=True, slots=True)
class Refused:
    """A response that cannot be taken: the reason that it is counted under."""

    reason: str


# as it was generated; or where the thinking stands apart, both
Response = str | Split | Refused


@dataclass(frozen=True, slots=True)
class Row:
    """A question and its responses, each with the finish reason ("" unstated) and the output tokens (None
    unstated) that the row states. ValueError where the lists are of different lengths."""

    question: str
    responses: list[Response]
    reasons: list[str]
    tokens: list[int | None]

    def __post_init__(self) -> None:
        stated = {"finish reasons": len(self.reasons), "token counts": len(self.tokens)}
        for name, number in stated.items():
            if number != len(self.responses):
                raise ValueError(f"{len(self.responses)} responses, {number} {name}")


@dataclass(frozen=True, slots=True)
class Columns:
    """`response` may be several, joined by +. `first_turn`: a chat is cut after its first answer."""

    question: str = "question"
    response: str = "response"
    tokens: str = ""
    thinking: str = ""
    first_turn: bool = False

    @classmethod
    def from_flag(cls, flag: str, first_turn: bool = False) -> "Columns":
        """`question,response`, `question,response,tokens`, or pairs as `thinking=a,response=b`. RecipeError
        on anything else."""
        names = [name.strip() for name in flag.split(",")]
        known = [field.name for field in fields(cls) if field.name != "first_turn"]
        if all("=" in name for name in names):
            pairs: dict[str, Any] = dict(name.split("=", 1) for name in names)
            for key, value in pairs.items():
                if key not in known or not value:
                    raise RecipeError(f"--columns {flag}: '{key}': {nearest(key, known)}")
            return cls(**pairs, first_turn=first_turn)
        if len(names) not in (2, 3) or not all(names):
            raise RecipeError(
                f"--columns {flag}: name the column of the question, the one of the response and, where "
                "there is one, the one of the output tokens, for example --columns problem,solution; or "
                "name=column pairs, for example --columns question=problem,thinking=trace,response=attempt"
            )
        return cls(names[0], names[1], "".join(names[2:]), first_turn=first_turn)


def tags_named(flag: str) -> Tags:
    """The tags of a name, or of `OPEN,CLOSE`. RecipeError on anything else."""
    if flag in TAGS:
        return TAGS[flag]
    opening, comma, closing = flag.partition(",")
    if not (opening and comma and closing):
        raise RecipeError(f"--tags {flag}: give OPEN,CLOSE or a name; {nearest(flag, list(TAGS))}")
    return Tags(open=opening, close=closing, opened_by_prompt=False)


def read_openr1(row: dict[str, Any], columns: Columns, tags: Tags = THINK) -> Row:
    held = unpacked(row["generations"])
    if not isinstance(held, list):
        raise TypeError(f"expected a list of texts, found {held!r:.40}")
    responses = [response_of(one, None, tags) for one in held]
    stated = unpacked(row.get("finish_reasons")) or []
    reasons = [str(reason or "") for reason in stated] or [""] * len(responses)
    return Row(text(row["problem"]), responses, reasons, [None] * len(responses))


def read_chat(row: dict[str, Any], columns: Columns, tags: Tags = THINK) -> Row:
    held = row.get("conversations")
    if is_missing(held):
        held = row["messages"] if "messages" in row else row["conversations"]
    if isinstance(held, list) and not all(isinstance(turn, dict) for turn in held):
        raise TypeError(f"expected messages, found {held!r:.40}")
    question, response = first_exchange(chat_in(held) or [], columns, tags)
    return Row(question, [response], [""], [None])


def first_exchange(turns: list[Turn], columns: Columns, tags: Tags) -> tuple[str, Response]:
    """The first question of the user and the answer to it."""
    start = next((place for place, turn in enumerate(turns) if turn.role == "user"), None)
    if start is None:
        raise ValueError("there is no turn of human or user in it")
    question = text(turns[start].text)
    later = turns[start + 1 :]
    if not later or later[0].role != "assistant":
        raise ValueError("there is no turn of gpt or assistant after the question")
    if len(later) > 1 and not columns.first_turn:
        return question, Refused("several_turns")
    return question, response_of(later[0].text, later[0].thinking, tags)


def response_of(answer: Any, thinking: Any, tags: Tags) -> Response:
    """A response whose thinking may stand apart; where it is in the answer too, it counts once."""
    answer = None if is_missing(answer) else answer
    if is_missing(thinking) or (isinstance(thinking, str) and not thinking.strip()):
        return Refused("no_response") if answer is None else text(answer)
    thought, said = text(thinking), text(answer or "")
    inside = split_response(said, tags) if tags.close in said else None
    if inside is not None and inside.thinking:
        if inside.thinking.strip() != thought.strip():
            return Refused("two_thinkings")
        said = inside.answer
    return Split(thought.strip("\n"), said.strip(), "closed" if said.strip() else "unclosed")


def read_columns(row: dict[str, Any], columns: Columns, tags: Tags = THINK) -> Row:
    question = held_in(row, columns.question)
    asked = chat_in(question)
    if asked is not None:
        question = next((turn.text for turn in asked if turn.role == "user"), None)
    found = [
        one for name in columns.response.split("+") for one in several(held_in(row, name), columns, tags)
    ]
    thoughts: list[Any] = [None] * len(found)
    if columns.thinking:
        named = [listed(held_in(row, name)) for name in columns.thinking.split("+")]
        thoughts = [one for held in named for one in (held if isinstance(held, list) else [held])]
        if len(thoughts) != len(found):
            raise ValueError(f"{len(found)} responses, {len(thoughts)} texts of thinking")
    responses = [
        one if isinstance(one, Split | Refused) else response_of(one, thought, tags)
        for one, thought in zip(found, thoughts, strict=True)
    ]
    tokens: list[int | None] = [None] * len(responses)
    if columns.tokens:
        counts = unpacked(held_in(row, columns.tokens))
        tokens = [whole(count) for count in (counts if isinstance(counts, list) else [counts])]
    return Row(text(question), responses, [""] * len(responses), tokens)


def held_in(row: dict[str, Any], column: str) -> Any:
    """A column or a path; KeyError where there is no such column."""
    if column in row or not any(sign in column for sign in ".[{"):
        return row[column]
    return cell_of("the row", row, column)


def several(cell: Any, columns: Columns, tags: Tags) -> list[Any]:
    """The responses in a cell: one, a list of them, or of a chat the answer."""
    turns = chat_in(cell)
    if turns is None:
        cell = listed(cell)
        return cell if isinstance(cell, list) else [cell]
    if turns[0].role == "assistant" and len(turns) == 1:
        return [response_of(turns[0].text, turns[0].thinking, tags)]
    return [first_exchange(turns, columns, tags)[1]]


def listed(cell: Any) -> Any:
    """The list of texts that a cell of CSV holds as JSON; any other cell as it is, for a response may be JSON
    itself."""
    held = unpacked(cell)
    are_texts = isinstance(held, list) and held and all(isinstance(one, str | None) for one in held)
    return held if are_texts else cell


def is_missing(value: Any) -> bool:
    """NaN is how tables write what they do not have."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text(value: Any) -> str:
    """A text that any file can hold: JSON may have half of a surrogate pair. TypeError on anything else."""
    if not isinstance(value, str):
        raise TypeError(f"expected a text, found {value!r:.40}")
    return value.encode(errors="replace").decode()


def whole(value: Any) -> int | None:
    """A number of tokens, also as a float, which tables with holes make of it; None stays None. TypeError on
    anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if is_missing(value) or value == "":
        return None
    if isinstance(value, str) and value.strip().isdecimal():  # as all cells of CSV are
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise TypeError(f"expected a number of tokens, found {value!r:.40}")


LAYOUTS: dict[str, tuple[Callable[[dict[str, Any], Columns, Tags], Row], Tags]] = {
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
