"""The allow-list of reasoning-gym families: the source of every scorer of the installed library, and a probe of what
each allowed family accepts."""

import ast
import contextlib
import inspect
import io
import json
import re
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import pytest
from reasoning_gym import create_dataset
from reasoning_gym.factory import DATASETS

from pipeline.verify.families import ALLOWED, REFUSED, SEVERAL
from pipeline.verify.gym import verify_reasoning_gym
from tests.conftest import ROOT

RUNS_TEXT = {"eval", "exec", "parse_expr", "sympify"}
NUM_ITEMS = 20
NUM_DIGITS = 10  # of a gold that are changed, one at a time
JUNK = [
    "xyzzy plugh",
    "nan",
    "inf",
    "-inf",
    "NaN",
    "None",
    "",
    "   ",
    ".",
    "...",
    "?",
    "{}",
    "[]",
    "()",
    "\\boxed{}",
]
SHORT = ["0", "1", "True", "False", "yes", "no"]  # junk unless it is the gold
# the same families with smaller items: their default ones take seconds to make
SMALLER = {"futoshiki": {"max_board_size": 4}, "zebra_puzzles": {"num_people": 3, "num_characteristics": 3}}


def names_in(function: Callable[..., object]) -> set[str]:
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except OSError:  # made by dataclass: no source, no calls
        return set()
    nodes = list(ast.walk(ast.parse(source)))
    return {n.id for n in nodes if isinstance(n, ast.Name)} | {
        n.attr for n in nodes if isinstance(n, ast.Attribute)
    }


def scorer_names(family: type) -> set[str]:
    """All names in the scorer and in the functions of the library that it may call, base classes included."""
    waiting: list[Callable[..., object]] = [family.score_answer]
    seen: set[Callable[..., object]] = set()
    found: set[str] = set()
    while waiting:
        function = waiting.pop()
        if function in seen:
            continue
        seen.add(function)
        names = names_in(function)
        found |= names
        for name in names:
            called = getattr(family, name, None) or getattr(sys.modules[function.__module__], name, None)
            if isinstance(called, FunctionType) and called.__module__.startswith("reasoning_gym"):
                waiting.append(called)
            elif inspect.isclass(called) and called.__module__.startswith("reasoning_gym"):
                waiting += [member for member in vars(called).values() if isinstance(member, FunctionType)]
    return found


@pytest.mark.parametrize("name", sorted(ALLOWED))
def test_allowed_scorers_run_no_text(name: str) -> None:
    assert not scorer_names(DATASETS[name][0]) & RUNS_TEXT


@pytest.mark.parametrize(
    "name", sorted(name for name, why in REFUSED.items() if re.search("eval|parse_expr", why))
)
def test_refused_scorers_do(name: str) -> None:
    assert scorer_names(DATASETS[name][0]) & RUNS_TEXT


@pytest.mark.parametrize("name", sorted(name for name, why in REFUSED.items() if "no gold" in why))
def test_refused_items_have_no_gold(name: str) -> None:
    assert all(item["answer"] is None for item in items_of(name))


def test_every_family_is_on_one_of_the_lists() -> None:
    assert set(DATASETS) == ALLOWED | set(REFUSED)
    assert not ALLOWED & set(REFUSED)
    assert set(SEVERAL) < ALLOWED
    assert f"{len(ALLOWED)} families are verified" in (ROOT / "README.md").read_text("utf-8")


def items_of(name: str) -> list[dict[str, Any]]:
    with contextlib.redirect_stdout(io.StringIO()):  # some families print while they make an item
        dataset = create_dataset(name, size=NUM_ITEMS, seed=7, **SMALLER.get(name, {}))
        return [json.loads(json.dumps(dataset[index])) for index in range(NUM_ITEMS)]


def accepts(name: str, answer: str, item: dict[str, Any]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy on text that is no matrix
        outcome = verify_reasoning_gym(
            f"\\boxed{{{answer}}}", item["answer"], {"family": name, "entry": item}
        )
    return outcome.status == "correct"


def wrong_answers(item: dict[str, Any], others: list[str]) -> Iterator[str]:
    """What is wrong for an item, whatever its family: junk, more than one answer, the gold but for a digit."""
    gold = item["answer"]
    yield from JUNK
    yield from (short for short in SHORT if short.casefold() != gold.casefold() and not is_zero(short, gold))
    yield item["question"].replace("{", "(").replace("}", ")")
    yield from (
        f"not {gold}",
        f"{gold}!",
        f"{gold} and not {gold}",
        f"xyzzy {gold}",
        f"{gold} xyzzy",
        f"{gold} ?",
    )
    for other in others[:3]:
        yield from (f"{gold} or {other}", f"{other} or {gold}", f"{gold} = {other}", f"{gold}\n{other}")
        yield from (f"{gold}, {other}", f"{other}, {gold}", f"{gold} and {other}")
    for place in [match.start() for match in re.finditer(r"[0-9]", gold)][:NUM_DIGITS]:
        yield gold[:place] + str((int(gold[place]) + 3) % 10) + gold[place + 1 :]


def is_zero(short: str, gold: str) -> bool:
    return short in ("0", "1") and re.fullmatch(rf"-?{short}(?:\.0+)?", gold) is not None


def pours(capacities: list[int], target: int, moves: list[str]) -> bool:
    """Whether moves between jugs leave the target in one of them: the rules of the question, played."""
    filled = [0] * len(capacities)
    for move in moves:
        verb, names = move.split(" ")
        jugs = ["ABCDEFGH".index(name) for name in names.split("->")]
        if verb == "pour":
            poured = min(filled[jugs[0]], capacities[jugs[1]] - filled[jugs[1]])
            filled[jugs[0]] -= poured
            filled[jugs[1]] += poured
        else:
            filled[jugs[0]] = capacities[jugs[0]] if verb == "fill" else 0
    return target in filled


def is_right(name: str, answer: str, item: dict[str, Any]) -> bool:
    """Whether the gold of another item happens to be right here, too."""
    if name != "jugs":
        return False
    puzzle = item["metadata"]["puzzle"]
    return pours(puzzle["jug_capacities"], puzzle["target"], json.loads(answer))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "knight_swap" else [])
        for name in sorted(ALLOWED)
    ],
)
def test_the_gold_is_accepted_and_junk_is_not(name: str) -> None:
    items = items_of(name)
    for item in items:
        gold = item["answer"]
        others = [other for other in dict.fromkeys(one["answer"] for one in items) if other != gold]
        assert accepts(name, gold, item) is bool(gold), gold  # an item without a gold is dropped
        found = [
            answer for answer in wrong_answers(item, others) if answer != gold and accepts(name, answer, item)
        ]
        found += [other for other in others if accepts(name, other, item) and not is_right(name, other, item)]
        assert found == [], gold


@pytest.mark.parametrize(
    ("name", "gold", "answer", "right"),
    [
        ("lcm", "1234", "1,234", True),
        ("lcm", "1234", "1234.0", True),
        ("lcm", "1234", "1,235", False),
        ("lcm", "-7", "−7", True),
        ("lcm", "1234", "1e999999999", False),
        ("coin_flip", "0.109375", "7/64", True),
        ("coin_flip", "0.109375", "0.1094", False),
        ("coin_flip", "0.9375", "0.9", False),
        ("coin_flip", "0.9375", "\\frac{15}{16}", True),
        ("game_of_life_halting", "True", "true", True),
        ("game_of_life_halting", "True", "False", False),
    ],
)
def test_other_forms_of_one_answer(name: str, gold: str, answer: str, right: bool) -> None:
    assert accepts(name, answer, {"question": "", "answer": gold, "metadata": {}}) is right
