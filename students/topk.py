"""Learn the teacher's distribution from what generate stored of it, and not its sampled tokens alone.

Reads runs/<name>/filter/kept.jsonl: the traces with their tokens and, at each place, the log-probabilities
of the teacher's most likely ones (generate.top_logprobs). The loss of a token is the forward divergence
(Hinton et al., arXiv 1503.02531), the sum of p log(p / q), over k of them and all others as one, so that
what the teacher leaves to the others is learnt too. Where the student is trained on other tokens than the
teacher sampled (a chat of the mix, a response that its template writes differently) nothing is known but
the token, and the loss is the usual one: the divergence from all on that token.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from pipeline.errors import StageError
from pipeline.records import UNREADABLE, Key, Tokens
from students.format import Encoded

SMALLEST_REST = 1e-6  # of probability: less is what float32 leaves of 1, and no tail
NOTHING = -9999.0  # the log-probability of what has none


class Kept(msgspec.Struct):
    """What is read of a line of kept.jsonl."""

    kind: str = "trace"
    problem_id: str = ""
    sample: int = 0
    tokens: Tokens | None = None


KEPT = msgspec.json.Decoder(Kept)


class StoredTops:
    """The stored distributions by example: offsets in memory, the rest is read when a batch asks for it."""

    def __init__(self, path: Path, num_top: int, examples: Sequence[Encoded]) -> None:
        self.num_top = num_top
        self._path = path
        self._offsets: dict[Key, int] = {}
        wanted, offset = {example.key: example for example in examples}, 0
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = KEPT.decode(line)
                except UNREADABLE as error:
                    fault = f"{path}:{number}: is not a trace ({error}). Run: make filter again"
                    raise StageError(fault) from None
                key = (row.problem_id, row.sample)
                if row.kind == "trace" and key in wanted and fits(row.tokens, wanted[key], num_top):
                    self._offsets[key] = offset
                offset += len(line)

    def __len__(self) -> int:
        return len(self._offsets)

    def of(self, example: Encoded) -> tuple[list[list[int]], list[list[float]]]:
        """Ids and log-probabilities of the likeliest tokens at each trained token."""
        offset, num_top = self._offsets.get(example.key) if example.key else None, self.num_top
        if offset is None:
            sure = [0.0, *[NOTHING] * (num_top - 1)]
            return [[token] * num_top for token in example.trained], [sure for _ in example.trained]
        with self._path.open("rb") as lines:  # no open file is held: the library hashes what reads its rows
            lines.seek(offset)
            tokens = KEPT.decode(lines.readline()).tokens
        assert tokens is not None, "only those that have them are indexed"
        held = zip(tokens.top_ids, tokens.top_logprobs, strict=True)
        rows = [(ids[:num_top], logprobs[:num_top]) for ids, logprobs in held]
        return [ids for ids, _ in rows], [logprobs for _, logprobs in rows]

    def columns(self, examples: Sequence[Encoded]) -> dict[str, Any]:
        """The columns of a micro-batch: a row for each of its trained tokens, in their order."""
        found = [self.of(example) for example in examples]
        return {
            "top_ids": [row for ids, _ in found for row in ids],
            "top_logprobs": [row for _, held in found for row in held],
        }


def fits(tokens: Tokens | None, example: Encoded, num_top: int) -> bool:
    """Whether the student is trained on the very tokens that the teacher sampled."""
    return tokens is not None and tokens.ids == example.trained and tokens.num_top >= num_top


def check_share(stored: StoredTops, examples: Sequence[Encoded], max_missing_share: float) -> None:
    """StageError where the stored distributions are of too few of the examples."""
    missing = len(examples) - len(stored)
    if missing > max_missing_share * len(examples):
        raise StageError(
            f"train.loss: of {missing:,} of {len(examples):,} examples no {stored.num_top} likeliest tokens "
            "are stored at the tokens that the student is trained on, more than train.max_dropped_share "
            f"({max_missing_share:g}) allows. The student needs the teacher's tokenizer, template and end of "
            "turn, and generate both keep_tokens and top_logprobs; else leave train.loss out"
        )


class TopsCollator(DataCollatorForLanguageModeling):
    """TRL's collator, with the stored distributions beside."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super().torch_call(examples)
        batch["top_ids"] = torch.tensor([row for example in examples for row in example["top_ids"]])
        batch["top_logprobs"] = torch.tensor([row for example in examples for row in example["top_logprobs"]])
        return batch


def topk_loss(model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, int]:
    """The sum over the trained tokens of a batch of one row, and their number."""
    given = {
        name: value for name, value in inputs.items() if name not in ("labels", "top_ids", "top_logprobs")
    }
    places = (inputs["labels"][0, 1:] >= 0).nonzero()[:, 0]  # whose logits say the next token
    logits = model(**given, use_cache=False, logits_to_keep=places).logits[0]
    return divergence(logits, inputs["top_ids"], inputs["top_logprobs"]).sum(), len(places)


def divergence(logits: torch.Tensor, top_ids: torch.Tensor, top_logprobs: torch.Tensor) -> torch.Tensor:
    """Forward divergence in nats at each of n places, from [n, vocabulary] logits of the student and [n, k]
    likeliest tokens of the teacher. What is beyond them is one bucket of both."""
    found: torch.Tensor = Divergence.apply(logits, top_ids, top_logprobs)
    return found


class Divergence(torch.autograd.Function):
    """The divergence and its slope, at no more memory than a softmax and its own slope take.

    The student's share of the bucket is the sum over the other tokens: as 1 less the likeliest ones it would
    be lost in rounding where the student is sure, and its slope with it.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, top_ids: torch.Tensor, top_logprobs: torch.Tensor
    ) -> torch.Tensor:
        theirs, logprobs = top_logprobs.float(), logits.float().log_softmax(-1)
        shares = theirs.exp()
        rest = 1 - shares.sum(-1)
        rest = torch.where(rest > SMALLEST_REST, rest, torch.zeros_like(rest))
        our_rest = logprobs.scatter(-1, top_ids, NOTHING).logsumexp(-1)
        ctx.save_for_backward(logprobs, top_ids, shares, rest, our_rest)
        ctx.dtype = logits.dtype
        known = (shares * (theirs - logprobs.gather(-1, top_ids))).sum(-1)
        return known + torch.xlogy(rest, rest) - rest * our_rest

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logprobs, top_ids, shares, rest, our_rest = ctx.saved_tensors
        # each token's share at the student, less what the teacher gives it; of the bucket each has its part
        found = (logprobs - our_rest[:, None]).exp_().mul_(-rest[:, None])
        found.scatter_(-1, top_ids, 0.0).scatter_add_(-1, top_ids, -shares)
        found += logprobs.exp().mul_((shares.sum(-1) + rest)[:, None])
        return found.mul_(slope[:, None]).to(ctx.dtype), None, None
