"""The mix: ready examples from other sources, drawn by weight and marked as such in every count.

DeepSeek-R1 was distilled with 200k rows of general chat beside 600k reasoning traces; `filter.mix` states
such a part as `weight` rows for each selected trace. Rows that hold an eval question are dropped like traces.
"""

import hashlib
import json
import logging
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipeline.errors import RecipeError
from pipeline.filter.apply import RuleSet
from pipeline.filter.examples import token_counter
from pipeline.filter.ledger import Ledger
from pipeline.problems.overlap import EvalIndex
from pipeline.problems.sources import hub_rows
from pipeline.problems.tasks import draw_key
from pipeline.recipe.sources import HubSource, MixSource
from pipeline.rows import Line, table_lines
from pipeline.rows.cells import cell_of
from pipeline.rows.chats import Turn, chat_in

log = logging.getLogger(__name__)

REASONS = (
    "mix_not_drawn",
    "broken_line",
    "mix_no_chat",
    "mix_contaminated",
    "mix_duplicate",
    "mix_stray",
)
# the first one is what a usable row has that is not drawn
USABLE, BROKEN, NO_CHAT, CONTAMINATED, DUPLICATE, STRAY = range(len(REASONS))
SURROGATE = re.compile("[\ud800-\udfff]")

Chat = list[dict[str, str]]


class Mixer:
    """Draws from the mix sources; what it counted is complete once `rows` is exhausted."""

    def __init__(
        self, sources: list[MixSource], rule_set: RuleSet, num_selected: int, seed: int, ledger: Ledger
    ) -> None:
        self.sources = sources
        self.num_selected = num_selected
        self.seed = seed
        self.ledger = ledger
        self.kept: Counter[str] = Counter()  # by source
        self.num_tokens = 0
        self._drawn: set[str] = set()  # ids, of all sources: no chat is taken twice
        self._index = EvalIndex(rule_set.questions, rule_set.templates)
        self._form = rule_set.form
        path = rule_set.form.tokenizer
        self._count = token_counter(path) if path else len

    def rows(self) -> Iterator[dict[str, Any]]:
        """The drawn rows in the order of their files; what is not drawn goes to the ledger."""
        for source in self.sources:
            states, drawn = self._survey(source)
            for number, (line, state) in enumerate(zip(mix_lines(source), states, strict=True), 1):
                self.ledger.num_in += 1
                reason = REASONS[state]
                if state == BROKEN:
                    self.ledger.fail(reason, line.file, line.number, line.fault)
                elif number in drawn:
                    self.kept[source.name] += 1
                    yield self._row(source, line)
                else:
                    row = {"kind": "mix", "source": source.name, "file": line.file, "line": line.number}
                    text = json.dumps({**row, "rule": "mix", "reason": reason}) + "\n"
                    self.ledger.drop(text.encode(), "mix", reason, source.name)

    def _survey(self, source: MixSource) -> tuple["array[int]", set[int]]:
        """The state of every row, and the numbers of those drawn: those whose hash comes first."""
        states = array("B")
        keys: list[tuple[bytes, int, str]] = []
        seen = set(self._drawn)
        for number, line in enumerate(mix_lines(source), 1):
            chat = None if line.values is None else chat_of(source, line)
            if line.values is None:
                states.append(BROKEN)
            elif chat is None:
                states.append(NO_CHAT)
            elif self._form.stray_in(chat[-1]) is not None:
                states.append(STRAY)
            elif any(self._index.inside("\n".join(text for turn in chat for text in texts_of(turn)))):
                states.append(CONTAMINATED)
            elif (chat_id := id_of(chat)) in seen:
                states.append(DUPLICATE)
            else:
                states.append(USABLE)
                seen.add(chat_id)
                keys.append((draw_key(self.seed, source.name, *map(json.dumps, chat)), number, chat_id))
        wanted = round(source.weight * self.num_selected)
        if wanted and not keys:
            counts = Counter(REASONS[state] for state in states)
            why = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common()) or "it has none"
            raise RecipeError(
                f"filter.mix: {source.name}: none of its rows can be used ({why}); correct its columns or "
                "its file, or leave it out"
            )
        if wanted > len(keys):
            log.warning(
                "mix %s: weight %g asks for %s rows, it has %s usable ones: all are taken",
                source.name,
                source.weight,
                f"{wanted:,}",
                f"{len(keys):,}",
            )
        drawn = sorted(keys)[:wanted]
        self._drawn.update(chat_id for _, _, chat_id in drawn)
        return states, {number for _, number, _ in drawn}

    def _row(self, source: MixSource, line: Line) -> dict[str, Any]:
        chat = chat_of(source, line) or []
        sizes = [sum(map(self._count, texts_of(turn))) for turn in chat]
        self.num_tokens += sizes[-1]
        return {
            "problem_id": id_of(chat),
            "sample": 0,
            "messages": chat,
            "verdict": None,
            "source": source.name,
            "licence": source.licence,
            "kind": "mix",
            "num_tokens": sum(sizes),
            "trained_tokens": sizes[-1],
        }


def mix_lines(source: MixSource) -> Iterator[Line]:
    """The rows of a mix source; broken lines of a JSONL file are counted, not fatal."""
    if source.hub is not None:
        place = source.model_dump(include={"hub", "revision", "subset", "split"})
        return hub_rows(HubSource(**place))
    return table_lines(source.path or [])


def chat_of(source: MixSource, line: Line) -> Chat | None:
    """The chat of a row: its messages column, or prompt and response. Of the last turn the thinking stands
    apart; of the others it is left out, as chat templates do.

    None where it cannot be trained on (`in_turn`, `is_text`); RecipeError where a column is missing.
    """
    names = [source.messages] if source.messages else [source.prompt, source.response]
    names += [source.thinking] if source.thinking and not source.messages else []
    where = f"{line.where}: mix {source.name}"
    cells = [cell_of(where, line.values or {}, name) for name in names]
    if source.messages is None:
        prompt, response, thinking = [*cells, None][:3]
        turns = [Turn("user", prompt), Turn("assistant", response, thinking)]
    else:
        try:
            turns = chat_in(cells[0]) or []
        except ValueError:  # a picture, or what is no message at all
            return None
    chat = [{"role": turn.role, "content": turn.text or ""} for turn in turns]
    if not in_turn(chat) or not all(is_text(turn["content"]) for turn in chat):
        return None
    if is_text(turns[-1].thinking):
        chat[-1]["reasoning_content"] = str(turns[-1].thinking)
    return chat


def texts_of(turn: dict[str, str]) -> list[str]:
    """What a model reads or is trained on of a turn: its thinking, if it has any, and its content."""
    return [text for key, text in turn.items() if key != "role"][::-1]


def id_of(chat: Chat) -> str:
    """The same for the same chat, whichever source it is from."""
    return f"mix-{hashlib.sha256(json.dumps(chat, ensure_ascii=False).encode()).hexdigest()[:16]}"


def in_turn(chat: Chat) -> bool:
    """Whether user and assistant take turns, after a system turn at most, and the assistant has the last
    word: templates refuse other chats, and so do other trainers."""
    roles = [turn["role"] for turn in chat]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    return bool(spoken) and spoken == ["user", "assistant"] * (len(spoken) // 2)


def is_text(content: Any) -> bool:
    """Not so half a surrogate pair, which JSON can escape: no tokenizer and no file can hold it."""
    return isinstance(content, str) and bool(content.strip()) and not SURROGATE.search(content)
