"""The split of a response into thinking and answer, and the one way in which the two are put together again.

A trace holds its response as it was sampled. Whoever reads it splits it with the tags of the model that wrote
it; an example is joined once, with the student's own tags, where it becomes token ids.

A model whose card says `thinking: none` writes no block. Where it teaches a student that thinks, the end of
its response is the answer and what stands before it the thinking (`told_apart`). A student without thinking
learns from one who thinks to write the thinking, an empty line and the answer, as one text.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from pipeline.recipe.cards import Tags

STRAY_TAG, STRAY_END, STRAY_SPECIAL = "stray_thinking_tag", "stray_end_of_turn", "stray_special_token"
# "unmarked": of a model that writes no thinking block, so that none is missing; "hidden": of one whose
# thinking nobody sees
Closing = Literal["closed", "unclosed", "none", "unmarked", "hidden"]


ENDS_WITH_BLOCK = re.compile(r"(?:\A|\n)(```(?:(?!\n```).)*\n```)\s*\Z", re.DOTALL)


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
    tag. A block that is not closed leaves an empty answer and closing "unclosed". Of a model without thinking
    all is answer.
    """
    if not tags:
        return Split(None, text.strip(), "hidden" if tags.hidden else "unmarked")
    head, found, tail = text.partition(tags.close)
    opened = head.lstrip().startswith(tags.open)
    if opened:
        head = head.lstrip()[len(tags.open) :]
    if found:
        return Split(head.strip("\n"), tail.strip(), "closed")
    if opened or tags.opened_by_prompt:
        return Split(head.strip("\n"), "", "unclosed")
    return Split(None, text.strip(), "none")


def split_message(message: dict[str, str], tags: Tags) -> Split:
    """Thinking and answer of a trained message: apart, or (chats of a mix) in the student's own tags."""
    thinking = message.get("reasoning_content")
    if thinking is not None:
        return Split(thinking.strip("\n"), message["content"].strip(), "closed")
    return split_response(message["content"], tags.model_copy(update={"opened_by_prompt": False}))


def stray_mark(
    split: Split, tags: Tags, end: str | None, special: frozenset[str] = frozenset()
) -> str | None:
    """Why a turn would teach the student to open or close its thinking, to end, or to write another token of
    control, where it must not; as the reason that filter and train count, or None. `end` is the token that
    ends the student's turn, `special` are all that its tokenizer reads as such wherever they stand in text.
    """
    text = f"{split.thinking or ''}{split.answer}"
    if split.closing == "unclosed" or (tags and (tags.open in text or tags.close in text)):
        return STRAY_TAG
    if end and end in text:
        return STRAY_END
    return STRAY_SPECIAL if special and any_of(special).search(text) else None


@lru_cache(maxsize=4)
def any_of(texts: frozenset[str]) -> re.Pattern[str]:
    """One pattern, as some tokenizers name thousands."""
    return re.compile("|".join(map(re.escape, sorted(texts))))


def join_response(split: Split, tags: Tags, opening: str = "") -> str:
    """The turn of an assistant: the thinking between `tags`, an empty line, the answer.

    `opening` is what the prompt wrote already: "" or the opening tag and the white space after it. A prompt
    that opens a block gets it closed, so without thinking the block is empty. Without tags the thinking is
    text like the answer.
    """
    if not tags:
        return f"{split.thinking}\n\n{split.answer}" if split.thinking else split.answer
    if split.thinking is None and not opening:
        return split.answer
    end = "" if split.closing == "unclosed" else f"\n{tags.close}\n\n{split.answer}"
    block = f"{tags.open}\n{split.thinking or ''}{end}"
    if not opening:
        return block
    body, written = block[len(tags.open) :], opening[len(tags.open) :]
    return body[len(written) :] if written and body.startswith(written) else body


def taught(split: Split, student: Tags) -> Split:
    """What a student of these tags is to learn from a response: see the rule above."""
    if split.closing != "unmarked" or not student:
        return split
    thinking, answer = told_apart(split.answer)
    return Split(thinking.strip("\n") or None, answer.strip(), "closed")


def told_apart(text: str) -> tuple[str, str]:
    """What stands before the answer of a response without tags, and the answer: the fenced block that it ends
    with, else all from the last paragraph with a box on, else the last paragraph. Of a single paragraph the
    last line."""
    if fenced := ENDS_WITH_BLOCK.search(text):
        return text[: fenced.start(1)], fenced[1]
    paragraphs = text.split("\n\n")
    boxed = [place for place, paragraph in enumerate(paragraphs) if "\\boxed" in paragraph]
    place = boxed[-1] if boxed else len(paragraphs) - 1
    if len(paragraphs) == 1:
        head, _, tail = text.rpartition("\n")
        return head, tail
    return "\n\n".join(paragraphs[:place]), "\n\n".join(paragraphs[place:])
