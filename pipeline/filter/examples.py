"""Examples: the chat that the student is trained on, and its tokens.

The assistant's turn holds thinking and answer apart, as chat templates take them; the student's own template
joins them once, where an example becomes token ids. Tokens are counted here with the student's
tokenizer.json, without torch or transformers.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import RecipeError, in_one_line
from pipeline.recipe.cards import StudentCard, Tags, model_location
from pipeline.recipe.prompts import Prompt
from pipeline.records import Example, Filtered
from pipeline.render import Split, join_response, split_message, split_response, stray_mark, taught


@dataclass(frozen=True, slots=True)
class Format:
    """What turns a problem and a trace into an example, and counts its tokens.

    A response is split with the `teacher`'s tags, its tokens are counted with the `student`'s. `tokenizer`
    None counts nothing: sizes are then the teacher's own output tokens. `end` is what ends the student's
    turn, where that is known, `special` what its tokenizer reads as a control token in any text.
    """

    prompt: Prompt
    teacher: Tags
    student: Tags
    tokenizer: str | None
    end: str | None = None
    special: frozenset[str] = frozenset()

    def stray_mark(self, split: Split) -> str | None:
        """Why train would refuse the example, however the trace passes the recipe's rules."""
        closed = Split(split.thinking, split.answer, "closed")  # as it is written for the student
        return stray_mark(closed, self.student, self.end, self.special)

    def stray_in(self, turn: dict[str, str]) -> str | None:
        """The same of a turn of the mix, which train reads with the student's own tags."""
        return stray_mark(split_message(turn, self.student), self.student, self.end, self.special)


def trained_text(split: Split, tags: Tags) -> str:
    """What the student is trained on: an example's thinking is closed, even where the sampled one was not."""
    split = taught(split, tags)
    return join_response(Split(split.thinking, split.answer, "closed"), tags)


def example_of(row: Filtered, form: Format) -> Example:
    """The example of a row of kept.jsonl; a chat of the mix stays as it is."""
    chat = row.messages or []
    if row.kind == "trace":
        split = taught(split_response(row.response, form.teacher), form.student)
        turn = {"role": "assistant", "content": split.answer}
        if split.thinking is not None:
            turn["reasoning_content"] = split.thinking
        chat = [*form.prompt.messages(row.question, row.source), turn]
    return Example(
        row.problem_id,
        row.sample,
        chat,
        row.num_tokens,
        row.trained_tokens,
        row.source,
        row.licence,
        row.kind,
        row.gold_from,
    )


def tokenizer_file(card: StudentCard, revision: str | None = None) -> Path:
    """The student's tokenizer.json, fetched from the hub where the model is not a directory here."""
    directory = Path(model_location(card.model))
    if directory.is_dir():
        path = directory / "tokenizer.json"
        if not path.is_file():
            held = ", ".join(sorted(p.name for p in directory.iterdir())[:8]) or "nothing"
            raise RecipeError(f"{path}: the student has no tokenizer.json (its directory holds {held})")
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(card.model, "tokenizer.json", revision=revision or card.revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:  # the last: no hub id
        said = in_one_line(error, 200)
        raise RecipeError(
            f"{card.model}: its tokenizer.json cannot be fetched ({said}). filter counts tokens with it: "
            "fetch the student once where there is a network, or name a local directory in its card"
        ) from None


def tokenizer_identity(card: StudentCard) -> dict[str, Any]:
    """What a plan records of the tokenizer: the content of a local file, or hub id and revision."""
    directory = Path(model_location(card.model))
    if not directory.is_dir():
        return {"model": card.model, "revision": card.revision}
    return {"tokenizer": hashlib.sha256(tokenizer_file(card).read_bytes()).hexdigest()}


def token_counter(path: str) -> Callable[[str], int]:
    """Tokens of a text without special tokens added. RecipeError where the file holds no tokenizer."""
    tokenizer = read_tokenizer(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def special_tokens(path: str) -> frozenset[str]:
    """What the tokenizer reads as one control token in any text. RecipeError as of `token_counter`."""
    added = read_tokenizer(path).get_added_tokens_decoder().values()
    return frozenset(token.content for token in added if token.special)


def read_tokenizer(path: str) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(path)
    except Exception as error:  # noqa: BLE001  # the library raises nothing narrower
        raise RecipeError(
            f"{path}: cannot be read as a tokenizer ({in_one_line(error, 200)}); filter counts "
            "tokens with it. Fetch the whole file (a Git LFS pointer is not enough: git lfs pull)"
        ) from None
