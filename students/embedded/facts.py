"""What the embedded base knows before it is distilled: single steps of arithmetic, never a chain of them.

A document is a run of unrelated facts, each complete in itself: one column of a sum with its carry, one
product of digits, one small difference, a number halved, a number copied or read from its units.
"""

import random
from collections.abc import Callable


def column_sum(rng: random.Random) -> str:
    p, q, carry = rng.randrange(10), rng.randrange(10), rng.randrange(2)
    return f"{p}+{q}{'+1' if carry else ''}={p + q + carry}"


def column_difference(rng: random.Random) -> str:
    p, q, borrow = rng.randrange(10), rng.randrange(10), rng.randrange(2)
    top = p if p >= q + borrow else p + 10
    return f"{top}-{q}{'-1' if borrow else ''}={top - q - borrow}"


def digit_product(rng: random.Random) -> str:
    p, q, carry = rng.randrange(10), rng.randrange(10), rng.choice([0, rng.randrange(9)])
    return f"{p}*{q}{f'+{carry}' if carry else ''}={p * q + carry}"


def small_multiple(rng: random.Random) -> str:
    p = rng.randrange(1, 10 ** rng.randint(1, 2))
    q = rng.randrange(1, 100 // p + 1)
    return f"{p}*{q}={p * q}"


def small_difference(rng: random.Random) -> str:
    q, p = sorted((rng.randrange(101), rng.randrange(101)))
    return f"{p}-{q}={p - q}"


def quotient(rng: random.Random) -> str:
    divisor = rng.choice([2, 2, 2, 3, 3, 5, 7, 11])
    value = rng.randrange(1, 1 + 360 // divisor)
    return f"{value * divisor}/{divisor}={value}"


def cancelled(rng: random.Random) -> str:
    """One factor taken out of a fraction."""
    factor = rng.choice([2, 2, 2, 3, 3, 5, 7, 11])
    below = rng.randrange(2, 1 + 360 // factor)
    above = rng.randrange(1, below)
    return f"{above * factor}/{below * factor}\n{factor}:{above}/{below}"


def half(rng: random.Random) -> str:
    """An odd number loses its one."""
    value = rng.randrange(1, 10 ** rng.randint(1, 4))
    return f"{value},{value // 2}"


def copied(rng: random.Random) -> str:
    value = rng.randrange(10 ** rng.randint(1, 4))
    return f"{value}={value}"


def digits_from_units(rng: random.Random) -> str:
    value = rng.randrange(10 ** rng.randint(1, 4))
    return f"{value}:{','.join(reversed(str(value)))};{value}"


FACTS: tuple[Callable[[random.Random], str], ...] = (
    column_sum,
    column_difference,
    digit_product,
    small_multiple,
    small_difference,
    quotient,
    cancelled,
    half,
    copied,
    digits_from_units,
)


def document(rng: random.Random) -> str:
    """Some 90 tokens of facts, a line each."""
    return "\n".join(rng.choice(FACTS)(rng) for _ in range(12))
