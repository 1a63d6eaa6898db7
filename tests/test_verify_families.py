"""The allow-list of reasoning-gym families against the source of every scorer of the installed library."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable
from types import FunctionType

import pytest
from reasoning_gym.factory import DATASETS

from pipeline.verify.families import ALLOWED, REFUSED

RUNS_TEXT = {"eval", "exec", "parse_expr", "sympify"}


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


@pytest.mark.parametrize("name", sorted(set(REFUSED) - {"composite"}))
def test_refused_scorers_do(name: str) -> None:
    assert scorer_names(DATASETS[name][0]) & RUNS_TEXT


def test_every_family_is_on_one_of_the_lists() -> None:
    assert set(DATASETS) == ALLOWED | set(REFUSED)
    assert not ALLOWED & set(REFUSED)
