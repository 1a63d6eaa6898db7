"""Sample a student that is being trained, in the process that trains it: one batch over transformers' cache.

What vLLM is to a finished model: an engine's weights cannot be exchanged on every machine, and an engine
start for each round costs more than the round. Rows leave the batch as they end, so the time is that of the
tokens and not of the longest response: 128 responses of 52 tokens of a 0.8M Qwen3 take 0.6 s on two cores.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel

# of one batch, prompts and responses: a cache of some GiB for a model of 2B on a GPU
BATCH_TOKENS = {"cpu": 2**15, "cuda": 2**17}
LEAVE_SHARE = 0.85  # compact the batch when fewer of its rows are alive: a copy of the cache


@dataclass(frozen=True, slots=True)
class Draw:
    """One response that is asked for: the ids of its prompt and the seed of its own random numbers."""

    prompt: list[int]
    seed: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """The response's ids, the one that ended it among them where it ended, and their log-probabilities."""

    ids: list[int]
    logprobs: list[float]


def batch_of(device: str, longest: int) -> int:
    """How many rows a batch has, of at most `longest` tokens each."""
    return max(1, BATCH_TOKENS[device] // longest)


@torch.no_grad()
def draw(
    model: PreTrainedModel, draws: Sequence[Draw], end: int, max_tokens: int, temperature: float, batch: int
) -> list[Drawn]:
    """A response to each of `draws`, in their order, of at most `max_tokens` tokens.

    Batches of `batch` rows are cut from the list in its order, and each row has random numbers of its own, so
    the same list gives the same responses. Temperature 0 is greedy. Log-probabilities are at temperature 1.
    """
    training = model.training
    model.eval()
    try:
        drawn: list[Drawn] = []
        # in bf16 on a GPU, as it is trained there
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
            for start in range(0, len(draws), batch):
                drawn += _draw_batch(model, draws[start : start + batch], end, max_tokens, temperature)
        return drawn
    finally:
        model.train(training)


def _draw_batch(
    model: PreTrainedModel, draws: Sequence[Draw], end: int, max_tokens: int, temperature: float
) -> list[Drawn]:
    device, longest = model.device, max(len(row.prompt) for row in draws)
    ids = torch.zeros(len(draws), longest, dtype=torch.long)
    mask = torch.zeros(len(draws), longest + max_tokens, dtype=torch.long)
    for row, asked in enumerate(draws):
        ids[row, longest - len(asked.prompt) :] = torch.tensor(asked.prompt)
        mask[row, longest - len(asked.prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    positions = (mask[:, :longest].cumsum(1) - 1).clamp(min=0)
    chances = [random.Random(asked.seed) for asked in draws]
    cache = DynamicCache(config=model.config)
    drawn = [Drawn([], []) for _ in draws]
    alive = list(range(len(draws)))  # which of `draws` each row of the batch is
    over = torch.zeros(len(draws), dtype=torch.bool)
    for length in range(longest, longest + max_tokens):
        logits = model(
            input_ids=ids,
            attention_mask=mask[:, :length],
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        tokens, logprobs = _pick(logits, [chances[row].random() for row in alive], temperature)
        for place, (row, token, logprob) in enumerate(zip(alive, tokens, logprobs, strict=True)):
            if not over[place]:
                drawn[row].ids.append(token)
                drawn[row].logprobs.append(logprob)
                over[place] = token == end
        if over.all():
            break
        ids, positions = torch.tensor(tokens, device=device)[:, None], positions[:, -1:] + 1
        if (~over).sum() < LEAVE_SHARE * len(alive):
            places = (~over).nonzero()[:, 0]
            alive, over = [alive[place] for place in places.tolist()], over[places]
            places = places.to(device)
            cache.batch_select_indices(places)
            ids, positions, mask = ids[places], positions[places], mask[places]
    return drawn


def _pick(logits: torch.Tensor, chances: list[float], temperature: float) -> tuple[list[int], list[float]]:
    """A token for each row of [rows, vocabulary] by its chance in [0, 1), and its log-probability."""
    logprobs = logits.float().log_softmax(-1)
    if temperature == 0:
        chosen = logprobs.argmax(-1)
    else:
        shares = (logprobs / temperature).softmax(-1).cumsum(-1)
        # the last sum is 1 but for rounding, and a chance beyond it would be no token
        wanted = torch.tensor(chances, device=shares.device)[:, None] * shares[:, -1:]
        chosen = torch.searchsorted(shares, wanted, right=True)[:, 0].clamp(max=shares.shape[-1] - 1)
    picked = logprobs.gather(1, chosen[:, None])[:, 0]
    return chosen.tolist(), picked.tolist()
