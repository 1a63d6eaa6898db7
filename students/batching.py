"""What the student sees when: seeded global batches, and their cut into micro-batches of whole examples.

One seeded order decides the global batches of the whole run before it starts, so neither a resume nor the
number of processes changes it. A micro-batch lies end to end without padding where the student keeps examples
apart (students/layout.py); elsewhere it holds examples of similar length, padded. How a batch is cut changes
nothing but rounding. Whole batches of similar length would need fewer cuts, and sorted ones ruin a small
student: 6.8% instead of 99.2% on the same 8,000 traces.
"""

import math
import random
from collections.abc import Callable

from pipeline.recipe.schema import Order

MAX_PADDING = 0.04  # the share of a padded micro-batch; one of a single example has none


def global_batches(
    num_examples: int,
    batch_size: int,
    epochs: float,
    seed: int,
    first: Callable[[int], int] | None = None,
) -> list[list[int]]:
    """Example indices of each optimizer step: one random permutation after the other, each sorted by `first`.

    The last batch is filled from a further permutation, so every batch is full.
    """
    num_steps = max(1, math.ceil(round(num_examples * epochs) / batch_size))
    stream: list[int] = []
    epoch = 0
    while len(stream) < num_steps * batch_size:
        permutation = list(range(num_examples))
        random.Random(f"{seed}-{epoch}").shuffle(permutation)
        stream.extend(sorted(permutation, key=first) if first else permutation)
        epoch += 1
    return [stream[start : start + batch_size] for start in range(0, num_steps * batch_size, batch_size)]


def ordered_batches(
    lengths: list[int], batch_size: int, epochs: float, seed: int, order: Order
) -> list[list[int]]:
    """The global batches in the recipe's order. `short_first`: each epoch from short to long.

    `bucketed`: stages by length, each with all its epochs in random order before the next longer one
    (Nemotron-Math, arXiv 2512.15489).
    """
    if order != "bucketed":
        first = lengths.__getitem__ if order == "short_first" else None
        return global_batches(len(lengths), batch_size, epochs, seed, first)
    found = buckets(lengths, batch_size)
    stages = [(bucket, global_batches(len(bucket), batch_size, epochs, seed)) for bucket in found]
    return [[bucket[i] for i in batch] for bucket, batches in stages for batch in batches]


def buckets(lengths: list[int], smallest: int) -> list[list[int]]:
    """Indices by length, up to twice, four times, ... the shortest; each holds at least `smallest` of them,
    where there are as many, as it takes in the next."""
    found: list[list[int]] = [[]]
    limit = 2 * min(lengths)
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if lengths[index] > limit and len(found[-1]) >= smallest:
            found.append([])
        while lengths[index] > limit:
            limit *= 2
        found[-1].append(index)
    if len(found) > 1 and len(found[-1]) < smallest:
        last = found.pop()
        found[-1].extend(last)
    return found


def cut(
    batches: list[list[int]], lengths: list[int], processes: int, max_tokens: int
) -> list[list[list[int]]]:
    """Cut each global batch into `processes` x k micro-batches of at most `max_tokens` tokens, k smallest.

    Returns example indices by step and micro-batch; all steps have equally many. Where even one example a
    part is too few parts, k is the largest that leaves no part empty.
    """
    batch_size = min(len(batch) for batch in batches)
    largest = max(1, batch_size // processes)
    fewest = max(sum(lengths[i] for i in batch) for batch in batches) / (max_tokens * processes)
    for rounds in range(min(max(1, math.ceil(fewest)), largest), largest + 1):
        steps = [balanced(batch, lengths, rounds * processes) for batch in batches]
        if rounds == largest or max(sum(lengths[i] for i in p) for step in steps for p in step) <= max_tokens:
            break
    return steps


def balanced(batch: list[int], lengths: list[int], num_parts: int) -> list[list[int]]:
    """Longest first, each into the part with the fewest tokens so far: parts of nearly equal work."""
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    totals = [0] * num_parts
    for index in sorted(batch, key=lambda i: (-lengths[i], i)):
        smallest = min(range(num_parts), key=lambda part: (totals[part], part))
        parts[smallest].append(index)
        totals[smallest] += lengths[index]
    return parts


def cut_padded(
    batches: list[list[int]], lengths: list[int], processes: int, max_tokens: int
) -> list[list[list[int]]]:
    """Cut each global batch as `cut` does, into micro-batches of similar length: padded to their longest they
    hold at most `max_tokens` tokens and, where there are enough parts, a share of MAX_PADDING.
    """
    most = max(1, min(len(batch) for batch in batches) // processes) * processes
    steps = [similar(batch, lengths, max_tokens) for batch in batches]
    num_parts = min(most, math.ceil(max(map(len, steps)) / processes) * processes)
    return [with_parts(parts, lengths, num_parts) for parts in steps]


def similar(batch: list[int], lengths: list[int], max_tokens: int) -> list[list[int]]:
    """As few parts as the limits allow, longest first."""
    parts: list[list[int]] = []
    for index in sorted(batch, key=lambda i: (-lengths[i], i)):
        if parts:
            longest, together = lengths[parts[-1][0]], [*parts[-1], index]
            size = longest * len(together)
            if size <= max_tokens and size - sum(lengths[i] for i in together) <= MAX_PADDING * size:
                parts[-1] = together
                continue
        parts.append([index])
    return parts


def with_parts(parts: list[list[int]], lengths: list[int], wanted: int) -> list[list[int]]:
    """Exactly `wanted` parts: the largest is halved, or the two join that are the smallest together, so that
    none grows beyond the limit while others are small."""
    parts = list(parts)
    while len(parts) < wanted:
        at = max(
            (n for n, part in enumerate(parts) if len(part) > 1),
            key=lambda n: num_padded([parts[n]], lengths),
        )
        half = (len(parts[at]) + 1) // 2
        parts[at : at + 1] = [parts[at][:half], parts[at][half:]]
    while len(parts) > wanted:
        at, other = smallest_pair(parts, lengths)
        parts[at] = parts[at] + parts.pop(other)
    return parts


def smallest_pair(parts: list[list[int]], lengths: list[int]) -> tuple[int, int]:
    """The places, in order, of the two parts that padded to their longest have the fewest tokens together.

    Parts stand longest first, so the first of a pair names the length; the second is the one of the fewest
    examples behind it, and of those the nearest in length.
    """
    fewest = len(parts) - 1
    best, found = math.inf, (fewest - 1, fewest)
    for at in range(fewest - 1, -1, -1):
        size = lengths[parts[at][0]] * (len(parts[at]) + len(parts[fewest]))
        if size < best:
            best, found = size, (at, fewest)
        if len(parts[at]) <= len(parts[fewest]):
            fewest = at
    return found


def num_padded(parts: list[list[int]], lengths: list[int]) -> int:
    """Tokens of micro-batches that are padded to their longest example."""
    return sum(max(lengths[i] for i in part) * len(part) for part in parts)
