"""Write the examples of a run in the layouts that other trainers read.

trl       {"prompt": [turns], "completion": [turn]}: TRL's conversational prompt-completion layout, whose loss
          is on the completion
sharegpt  {"conversations": [{"from", "value"}], "system"?}: LLaMA-Factory (formatting: sharegpt), axolotl
          (type: chat_template with field_messages: conversations)
alpaca    {"instruction", "input", "output", "history"?, "system"?}: LLaMA-Factory (formatting: alpaca),
          axolotl (type: alpaca)
Reads runs/<name>/filter/examples.parquet. Writes runs/<name>/export/<format>.jsonl and the dataset_info.json
that LLaMA-Factory looks for beside it.

    python -m pipeline export --recipe recipes/demo.yaml --format sharegpt
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pipeline.rows import read_rows, write_rows
from pipeline.stage import Context, check_outputs, require

log = logging.getLogger(__name__)

ExportFormat = Literal["trl", "sharegpt", "alpaca"]
SPEAKERS = {"user": "human", "assistant": "gpt"}

Chat = list[dict[str, str]]


def export(context: Context, kind: ExportFormat) -> Path:
    """Write the examples in one layout; the path of the file. StageError where filter has not finished."""
    directory = context.directory("filter")
    require(directory, "export", context.start.recipe)
    check_outputs(directory, ["examples.parquet"])
    out = context.directory("export")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{kind}.jsonl"
    num_rows = write_rows(path, (LAYOUTS[kind](chat) for chat in chats(directory / "examples.parquet")))
    register(out / "dataset_info.json", context.recipe.name, kind)
    log.info("export: %s examples as %s in %s", f"{num_rows:,}", kind, path)
    return path


def chats(path: Path) -> Iterator[Chat]:
    for line in read_rows(path):
        yield (line.values or {})["messages"]


def split_system(chat: Chat) -> tuple[dict[str, str], Chat]:
    """A leading system turn as {"system": text}, and the turns after it."""
    if chat[0]["role"] == "system":
        return {"system": chat[0]["content"]}, chat[1:]
    return {}, chat


def as_trl(chat: Chat) -> dict[str, Any]:
    return {"prompt": chat[:-1], "completion": chat[-1:]}


def as_sharegpt(chat: Chat) -> dict[str, Any]:
    system, turns = split_system(chat)
    spoken = [{"from": SPEAKERS[turn["role"]], "value": turn["content"]} for turn in turns]
    return {"conversations": spoken, **system}


def as_alpaca(chat: Chat) -> dict[str, Any]:
    """The last question and answer; earlier pairs are history."""
    system, turns = split_system(chat)
    texts = [turn["content"] for turn in turns]
    row: dict[str, Any] = {"instruction": texts[-2], "input": "", "output": texts[-1]}
    if history := [list(pair) for pair in zip(texts[:-2:2], texts[1:-2:2], strict=True)]:
        row["history"] = history
    return {**row, **system}


LAYOUTS = {"trl": as_trl, "sharegpt": as_sharegpt, "alpaca": as_alpaca}


def register(path: Path, name: str, kind: ExportFormat) -> None:
    """Add the file to LLaMA-Factory's dataset_info.json; its name there is <run>_<format>."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if kind == "sharegpt":
        columns = {"messages": "conversations", "system": "system"}
        known[f"{name}_{kind}"] = {"file_name": f"{kind}.jsonl", "formatting": kind, "columns": columns}
    elif kind == "alpaca":
        columns = {"prompt": "instruction", "query": "input", "response": "output"}
        columns |= {"system": "system", "history": "history"}
        known[f"{name}_{kind}"] = {"file_name": f"{kind}.jsonl", "formatting": kind, "columns": columns}
    path.write_text(json.dumps(known, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
