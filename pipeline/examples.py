"""Examples: the chat that the student is trained on, its tokens, and the Parquet file that holds them.

The assistant's turn holds the thinking once, in the student's own tags, whatever tags the teacher used.
Tokens are counted with the student's tokenizer.json, without torch or transformers.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cards import StudentCard, model_location
from pipeline.errors import RecipeError
from pipeline.render import Tags, messages

if TYPE_CHECKING:
    import pyarrow

ROWS_PER_GROUP = 2_000


@dataclass(frozen=True, slots=True)
class Format:
    """What turns a problem and a trace into an example: prompt style, the student's tags, its tokenizer.

    `tokenizer` None counts nothing: sizes are then the teacher's own output tokens.
    """

    prompt: str
    tags: Tags
    tokenizer: str | None


def response_text(thinking: str | None, answer: str, tags: Tags) -> str:
    """The assistant's turn: thinking in the student's tags, an empty line, the answer."""
    if thinking is None:
        return answer
    return f"{tags.open}\n{thinking}\n{tags.close}\n\n{answer}"


def example_messages(question: str, response: str, prompt: str) -> list[dict[str, str]]:
    return [*messages(question, prompt), {"role": "assistant", "content": response}]


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
        said = " ".join(str(error).split())[:200]
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
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:  # noqa: BLE001  # the library raises nothing narrower
        raise RecipeError(
            f"{path}: cannot be read as a tokenizer ({' '.join(str(error).split())[:200]}); filter counts "
            "tokens with it. Fetch the whole file (a Git LFS pointer is not enough: git lfs pull)"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def schema() -> "pyarrow.Schema":
    """num_tokens is of the whole chat's contents, trained_tokens of the assistant's; kind is trace or mix."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.schema(
        [
            ("problem_id", pa.string()),
            ("sample", pa.int64()),
            ("messages", pa.list_(message)),
            ("num_tokens", pa.int64()),
            ("trained_tokens", pa.int64()),
            ("source", pa.string()),
            ("licence", pa.string()),
            ("kind", pa.string()),
        ]
    )


def write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write examples as they come, a row group at a time; how many there were."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns, count = schema(), 0
    with pq.ParquetWriter(path, columns, compression="zstd") as writer:
        group: list[dict[str, Any]] = []
        for row in rows:
            group.append(row)
            count += 1
            if len(group) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(group, columns))
                group = []
        if group:
            writer.write_table(pa.Table.from_pylist(group, columns))
    return count


def example_row(kept: dict[str, Any], form: Format) -> dict[str, Any]:
    """The example of a row of kept.jsonl."""
    if kept["kind"] == "mix":
        chat = kept["messages"]
    else:
        response = response_text(kept["thinking"], kept["answer"], form.tags)
        chat = example_messages(kept["question"], response, form.prompt)
    names = ("problem_id", "sample", "num_tokens", "trained_tokens", "source", "licence", "kind")
    return {"messages": chat, **{name: kept[name] for name in names}}


def canonical(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
