"""Write the examples of a run in the layouts that other trainers read.

trl       {"prompt": [turns], "completion": [turn]}: TRL's conversational prompt-completion layout, whose loss
          is on the completion
sharegpt  {"conversations": [{"from", "value"}]}, a system turn first where there is one: LLaMA-Factory
          (formatting: sharegpt), axolotl (type: chat_template)
alpaca    {"instruction", "input", "output", "history", "system"}: LLaMA-Factory (formatting: alpaca), axolotl
          (type: alpaca, which reads the first three alone: take sharegpt where a mix has more than those)
In all of them thinking and answer are one text, with the student's tags around the thinking.
Reads runs/<name>/filter/examples.parquet. Writes runs/<name>/export/<format>.jsonl and beside it what says
how to read it: README.md, which load_dataset reads; dataset_info.json, which LLaMA-Factory looks for;
axolotl.yaml, the datasets of its config.

    python -m pipeline export --recipe recipes/demo.yaml --format sharegpt
"""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pipeline.context import Context
from pipeline.filter.examples import trained_text
from pipeline.recipe.cards import Tags
from pipeline.recipe.strict_yaml import dump
from pipeline.records import read_examples
from pipeline.render import Split
from pipeline.rows import write_rows
from pipeline.run.contract import check_outputs, held

log = logging.getLogger(__name__)

ExportFormat = Literal["trl", "sharegpt", "alpaca"]
SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}
# LLaMA-Factory looks up every column that is named here in every row, so each must be in all of them
FACTORY_COLUMNS = {
    "sharegpt": {"messages": "conversations"},
    "alpaca": {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "system": "system",
        "history": "history",
    },
}
AXOLOTL_KEYS: dict[str, dict[str, Any]] = {
    "sharegpt": {
        "type": "chat_template",
        "field_messages": "conversations",
        "message_property_mappings": {"role": "from", "content": "value"},
    },
    "alpaca": {"type": "alpaca"},
}

Chat = list[dict[str, str]]


def export(context: Context, kind: ExportFormat) -> Path:
    """Write the examples in one layout; the path of the file. StageError where filter has not finished."""
    directory = context.directory("filter")
    context.require("filter", "export")
    check_outputs(directory, ["examples.parquet"])
    out = context.directory("export")
    path, part = out / f"{kind}.jsonl", out / f"{kind}.jsonl.part"
    with held(out):
        chats = longest_first(directory / "examples.parquet", context.student_card.thinking)
        num_rows = write_rows(part, map(LAYOUTS[kind], chats))
        os.replace(part, path)  # a file by this name is whole, whenever the command is stopped
        describe(out, context.recipe.name)
    log.info("export: %s examples as %s in %s", f"{num_rows:,}", kind, path)
    return path


def longest_first(examples: Path, tags: Tags) -> Iterator[Chat]:
    """Chats of several turns, then the others: readers take the type of `history` from the first rows, and
    an empty list tells none."""
    for several in (True, False):
        for example in read_examples(examples):
            if (len(split_system(example.messages)[1]) > 2) is several:
                yield [joined(turn, tags) for turn in example.messages]


def joined(turn: dict[str, str], tags: Tags) -> dict[str, str]:
    """The turn with its thinking, where it has some, put in front of its content."""
    split = Split(turn.get("reasoning_content"), turn["content"], "closed")
    return {"role": turn["role"], "content": trained_text(split, tags)}


def split_system(chat: Chat) -> tuple[str, Chat]:
    """The text of a leading system turn, else nothing, and the turns after it."""
    return (chat[0]["content"], chat[1:]) if chat[0]["role"] == "system" else ("", chat)


def as_trl(chat: Chat) -> dict[str, Any]:
    return {"prompt": chat[:-1], "completion": chat[-1:]}


def as_sharegpt(chat: Chat) -> dict[str, Any]:
    """The system text is a turn: as a column axolotl would make an empty turn of it in all other rows."""
    return {"conversations": [{"from": SPEAKERS[turn["role"]], "value": turn["content"]} for turn in chat]}


def as_alpaca(chat: Chat) -> dict[str, Any]:
    """The last question and answer; earlier pairs are history."""
    system, turns = split_system(chat)
    texts = [turn["content"] for turn in turns]
    history = [list(pair) for pair in zip(texts[:-2:2], texts[1:-2:2], strict=True)]
    return {"instruction": texts[-2], "input": "", "output": texts[-1], "history": history, "system": system}


LAYOUTS = {"trl": as_trl, "sharegpt": as_sharegpt, "alpaca": as_alpaca}


def describe(out: Path, name: str) -> None:
    """Say how to read the layouts that are there; LLaMA-Factory calls them <run>_<format>, load_dataset by
    their format. It reads the first of them where none is named, and none of what else lies here."""
    layouts = [kind for kind in LAYOUTS if (out / f"{kind}.jsonl").is_file()]
    configs: list[dict[str, Any]] = [{"config_name": kind, "data_files": f"{kind}.jsonl"} for kind in layouts]
    configs[0]["default"] = True
    text = f"---\n{dump({'configs': configs})}---\n\nExamples of {name}, one configuration for each layout.\n"
    (out / "README.md").write_text(text, encoding="utf-8")
    there = [kind for kind in FACTORY_COLUMNS if kind in layouts]
    known = {
        f"{name}_{kind}": {
            "file_name": f"{kind}.jsonl",
            "formatting": kind,
            "columns": FACTORY_COLUMNS[kind],
        }
        for kind in there
    }
    (out / "dataset_info.json").write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    # axolotl takes a path from where it is started: from here, as this command was
    datasets = [{"path": f"{out}/{kind}.jsonl", "ds_type": "json", **AXOLOTL_KEYS[kind]} for kind in there]
    text = dump({"datasets": datasets})
    (out / "axolotl.yaml").write_text(text, encoding="utf-8")
