"""Exact solvers: the worked steps that the embedded teacher is trained on, one function a family.

Each takes the metadata of a reasoning-gym problem and returns the thinking and the content of the final box.
Steps are compact (a trace is 30 to 100 tokens, since digits are one token each) but skip nothing: sums go
column by column from the units, a carry is written as a further `+1`, a borrow as `1` before the digit.
"""

from collections.abc import Callable
from typing import Any

PRIMES = (2, 3, 5, 7, 11, 13, 17, 19)

Metadata = dict[str, Any]


def add(a: int, b: int) -> str:
    """`47+85:7+5=12,4+8+1=13;132`."""
    columns, carry = [], 0
    for p, q in _columns(a, b):
        total = p + q + carry
        columns.append(f"{p}+{q}{'+1' if carry else ''}={total}")
        carry = total // 10
    return f"{a}+{b}:{','.join(columns)};{a + b}"


def subtract(a: int, b: int) -> str:
    """`85-47:15-7=8,8-4-1=3;38`, for a >= b."""
    columns, borrow = [], 0
    for p, q in _columns(a, b):
        owed = int(p - borrow < q)
        columns.append(f"{p + 10 * owed}-{q}{'-1' if borrow else ''}={p + 10 * owed - q - borrow}")
        borrow = owed
    return f"{a}-{b}:{','.join(columns)};{a - b}"


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    """The digit pairs of two numbers from the units, the shorter one filled with zeros."""
    width = max(len(str(a)), len(str(b)))
    return list(zip(map(int, reversed(f"{a:0{width}}")), map(int, reversed(f"{b:0{width}}")), strict=True))


def signed_sum(a: int, b: int) -> str:
    """The step for a + b of any signs; a negative result is marked first, so its size can be worked out."""
    same_sign = (a < 0) == (b < 0)
    larger, smaller = sorted((abs(a), abs(b)), reverse=True)
    step = add(abs(a), abs(b)) if same_sign else subtract(larger, smaller)
    if a + b >= 0:
        return step
    head, _, columns = step.partition(":")
    columns, _, result = columns.rpartition(";")
    return f"-({head}):{columns};-{result}"


def multiply_by_digit(a: int, digit: int) -> str:
    """`47*6:7*6=42,4*6+4=28;282`."""
    columns, carry = [], 0
    for p in map(int, reversed(str(a))):
        total = p * digit + carry
        columns.append(f"{p}*{digit}{f'+{carry}' if carry else ''}={total}")
        carry = total // 10
    return f"{a}*{digit}:{','.join(columns)};{a * digit}"


def chain_sum(metadata: Metadata) -> tuple[str, str]:
    tokens = metadata["expression"].split()
    total, steps = int(tokens[0]), []
    for operator, term in zip(tokens[1::2], tokens[2::2], strict=True):
        value = int(term) if operator == "+" else -int(term)
        steps.append(signed_sum(total, value))
        total += value
    return "\n".join(steps), str(total)


def products(metadata: Metadata) -> tuple[str, str]:
    """Long multiplication: one line a digit of the second factor, then the shifted lines are added up."""
    a, b = map(int, metadata["expression"].split(" * "))
    steps, total = [], 0
    for place, digit in enumerate(map(int, reversed(str(b)))):
        steps.append(multiply_by_digit(a, digit))
        part = a * digit * 10**place
        if place:
            steps.append(add(part, total))
        total += part
    return "\n".join(steps), str(total)


def count_bits(metadata: Metadata) -> tuple[str, str]:
    """Halve down to one; after each number stands how many odd ones there were so far."""
    number, ones, steps = metadata["number"], 0, []
    while number:
        ones += number % 2
        steps.append(f"{number}:{ones}")
        number //= 2
    return ",".join(steps), str(ones)


def gcd(metadata: Metadata) -> tuple[str, str]:
    """Euclid: the multiple of the smaller number, then what is left of the larger one."""
    a, b = sorted(metadata["numbers"], reverse=True)
    steps = []
    while b:
        multiple = a // b * b
        steps.append(f"{b}*{a // b}={multiple},{a}-{multiple}={a - multiple}")
        a, b = b, a % b
    return "\n".join(steps), str(a)


def fraction_simplification(metadata: Metadata) -> tuple[str, str]:
    """Divide above and below by the smallest prime that goes into both, until none does."""
    above, below = metadata["numerator"], metadata["denominator"]
    steps = [f"{above}/{below}"]
    for prime in PRIMES:
        while above % prime == 0 and below % prime == 0:
            above, below = above // prime, below // prime
            steps.append(f"{prime}:{above}/{below}")
    return "\n".join(steps), f"{above}/{below}"


SOLVERS: dict[str, Callable[[Metadata], tuple[str, str]]] = {
    "chain_sum": chain_sum,
    "products": products,
    "count_bits": count_bits,
    "gcd": gcd,
    "fraction_simplification": fraction_simplification,
}
