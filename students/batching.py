"""What the student sees when: seeded global batches, and their cut into micro-batches without padding.

One seeded order decides the global batches of the whole run before it starts, so neither a resume nor the
number of processes changes it. A micro-batch is a set of whole examples laid end to end; attention keeps them
apart (students/attention.py). Batches of similar length would save padding too, but sorted batches ruin a
small student: 6.8% instead of 99.2% on the same 8,000 traces.
"""

import math
import random


def global_batches(num_examples: int, batch_size: int, epochs: float, seed: int) -> list[list[int]]:
    """Example indices of each optimizer step: one random permutation after the other.

    The last batch is filled from a further permutation, so every batch is full.
    """
    num_steps = max(1, math.ceil(round(num_examples * epochs) / batch_size))
    stream: list[int] = []
    epoch = 0
    while len(stream) < num_steps * batch_size:
        permutation = list(range(num_examples))
        random.Random(f"{seed}-{epoch}").shuffle(permutation)
        stream.extend(permutation)
        epoch += 1
    return [stream[start : start + batch_size] for start in range(0, num_steps * batch_size, batch_size)]


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
