"""The split of a response into thinking and answer, and the one way in which the two are put together again.

A trace holds its response as it was sampled. Whoever reads it splits it with the tags of the model that wrote
it; an example is joined once, with the student's own tags, where it becomes token ids.
"""

from dataclasses import dataclass
from typing import Literal

from pipeline.recipe.cards import Tags

Closing = Literal["closed", "unclosed", "none"]


@dataclass(frozen=True, slots=True)
class Split:
    """`thinking` is None where the response has no thinking block."""

    thinking: str | None
    answer: str
    closing: Closing

    @property
    def text(self) -> str:
        """Thinking and answer, one after the other, without tags."""
        return f"{self.thinking}\n{self.answer}" if self.thinking else self.answer


def split_response(text: str, tags: Tags) -> Split:
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


def join_response(split: Split, tags: Tags, opening: str = "") -> str:
    """The turn of an assistant: the thinking between `tags`, an empty line, the answer.

    `opening` is what the prompt wrote already: "" or the opening tag and the white space after it. A prompt
    that opens a block gets it closed, so without thinking the block is empty.
    """
    if split.thinking is None and not opening:
        return split.answer
    end = "" if split.closing == "unclosed" else f"\n{tags.close}\n\n{split.answer}"
    block = f"{tags.open}\n{split.thinking or ''}{end}"
    if not opening:
        return block
    body, written = block[len(tags.open) :], opening[len(tags.open) :]
    return body[len(written) :] if written and body.startswith(written) else body
