"""How likely the base finds a trace, for filter.select.prefer: likely and surprising.

    likely      the mean log-probability that the base gives to the tokens that it would be trained on
    surprising  how much more probable the teacher found them, a token: the gap of DASD (arXiv 2601.09088).
                Both sums are of one text, so that two tokenizers may differ

Run by filter, over the traces that passed its rules; the weights are loaded where it begins.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from pipeline.context import Context
from pipeline.errors import StageError
from pipeline.filter.examples import Format as ExampleFormat
from pipeline.filter.examples import example_of
from pipeline.filter.weighing import Weigh
from pipeline.records import Filtered, Tokens
from pipeline.run.revisions import pinned
from students.format import load_format
from students.model import load_base, pick_device, quiet_libraries
from students.scoring import score_here


class Weighed(Filtered):
    """A row of filter with the tokens that the teacher sampled, where they are kept."""

    tokens: Tokens | None = None


def weigher(context: Context) -> Weigh:
    """The recipe's base, loaded, as what says how likely each of some traces is."""
    quiet_libraries()
    card, model = context.student_card, pinned(context.run, context.base)
    style, base = load_format(card, model), on_device(load_base(card, model), pick_device("auto"))
    form = ExampleFormat(context.prompt, context.teacher_card.thinking, card.thinking, None)
    against_teacher = context.recipe.filter.select.prefer == "surprising"
    decode = msgspec.json.Decoder(Weighed).decode

    def weigh(lines: Sequence[bytes]) -> list[float]:
        rows = [decode(line) for line in lines]
        encoded = [style.encode(example_of(row, form).messages) for row in rows]
        scores = score_here(base, [(example.prompt, example.trained) for example in encoded])
        means = [sum(found) / len(found) for found in scores]
        if not against_teacher:
            return means
        given = [teacher_sum(row) / len(found) for row, found in zip(rows, scores, strict=True)]
        return [theirs - ours for theirs, ours in zip(given, means, strict=True)]

    return weigh


def on_device(model: Any, device: str) -> Any:
    return model.to(device).eval()


def teacher_sum(row: Weighed) -> float:
    """The log-probability that the teacher gave to all that it sampled."""
    if row.tokens is None:
        raise StageError(
            f"filter.select.prefer: surprising: the trace {row.problem_id}/{row.sample} holds no "
            "log-probabilities of its teacher (imported traces have none). Choose another preference"
        )
    return sum(row.tokens.logprobs)
