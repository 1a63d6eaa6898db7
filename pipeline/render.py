"""Prompt styles, the messages of a question, and the split of a response into thinking and answer.

The prompt stands beside the splitter that reads what it asked for; both are shared by generate, train and
eval, so the three cannot drift apart.
"""

from dataclasses import dataclass
from typing import Literal

# `boxed` is the instruction that DeepSeek-R1's model card asks for on mathematics.
PROMPTS = {
    "boxed": "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
    "choice": "{question}\n\nPlease reason step by step, and put the letter of your answer in \\boxed{{}}.",
    "plain": "{question}",
}

Closing = Literal["closed", "unclosed", "none"]


@dataclass(frozen=True, slots=True)
class Tags:
    """How a model marks its thinking. `opened_by_prompt`: the opening tag ends the generation prompt, so
    responses hold only the closing one."""

    open: str = "<think>"
    close: str = "</think>"
    opened_by_prompt: bool = True


@dataclass(frozen=True, slots=True)
class Split:
    thinking: str | None
    answer: str
    closing: Closing


def messages(question: str, prompt: str) -> list[dict[str, str]]:
    """The chat of one user turn for `question` in a style of PROMPTS (KeyError where there is none)."""
    return [{"role": "user", "content": PROMPTS[prompt].format(question=question)}]


def split_thinking(text: str, tags: Tags) -> Split:
    """Separate the thinking from the answer; nothing is repaired.

    Whether the opening tag is in the response or was in the prompt, the thinking ends at the first closing
    tag. A block that is not closed leaves an empty answer and closing "unclosed".
    """
    head, found, tail = text.partition(tags.close)
    opened = head.lstrip().startswith(tags.open)
    if opened:
        head = head.lstrip()[len(tags.open) :]
    if found:
        return Split(head.strip("\n"), tail.strip(), "closed")
    if opened or tags.opened_by_prompt:
        return Split(head.strip("\n"), "", "unclosed")
    return Split(None, text.strip(), "none")
