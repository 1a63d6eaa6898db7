"""What two programs have in common when their names are changed: the bodies of functions as runs of tokens.

A program is parsed, without imports, docstrings, annotations and the heads of its functions, and written out
by ast in one style; in its tokens every name of its own becomes one mark. Keywords, built-in names, methods,
numbers and strings stay: they are what the program does. Two rules:

  body   at least 0.8 of the runs of an eval question's own solution, which has at least 16, are a program's
  name   at least 0.5 of them are, whatever their number, and the two share the name of a function

A name alone is no match: every second helper is called solve, and one is_palindrome may be of words, another
of numbers. Among the 591 solutions of HumanEval and MBPP the rules find 19 of 348,690 ordered pairs, which
were read: 12 are the same task in other words or near it (the ends of a list swapped, lists counted in a
list), 7 have a part in common (a test for primes, the search for the first even and odd number).
"""

import ast
import builtins
import io
import keyword
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, TypeVar

RUN_TOKENS = 8
SAME_BODY, SAME_NAME = 0.8, 0.5
MIN_RUNS = 16
MARK = "_"
KEPT = frozenset(keyword.kwlist) | frozenset(dir(builtins))
UNREAD = {
    tokenize.NEWLINE,
    tokenize.NL,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.COMMENT,
    tokenize.ENDMARKER,
}

Run = tuple[str, ...]
Owner = TypeVar("Owner")


@dataclass(frozen=True, slots=True)
class Body:
    """`names` are of the functions at the outermost level and of methods; `runs` are of 8 tokens."""

    names: frozenset[str] = field(default_factory=frozenset)
    runs: frozenset[Run] = field(default_factory=frozenset)


def body_of(program: str) -> Body:
    """Of what is no Python nothing."""
    try:
        tree = ast.parse(program)
        names = frozenset(_names(tree))
        tokens = list(_tokens(ast.unparse(_Bare().visit(tree))))
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):
        return Body()
    return Body(names, frozenset(zip(*(tokens[start:] for start in range(RUN_TOKENS)), strict=False)))


def _names(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (inner.name for inner in node.body if isinstance(inner, ast.FunctionDef))


class _Bare(ast.NodeTransformer):
    """Without what a copy changes first, and what any two programs share."""

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt | None:
        self.generic_visit(node)
        return ast.Assign([node.target], node.value, lineno=0) if node.value else None

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        bare = ast.arguments([], [], None, [], [], None, [])
        return ast.FunctionDef(node.name, bare, _without_docstring(node.body), [], lineno=0)


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    kept = [
        node for node in body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    return kept or [ast.Pass()]


def _tokens(text: str) -> Iterator[str]:
    """The tokens of a program's text; the head of a function is left out."""
    read = tokenize.generate_tokens(io.StringIO(text).readline)
    tokens = [token for token in read if token.type not in UNREAD]
    head = False
    for before, token in pairwise([None, *tokens]):
        assert token is not None
        if head:
            head = token.string != ":"
            continue
        if token.string == "def" and token.type == tokenize.NAME:
            head = True
            continue
        own = (
            token.type == tokenize.NAME
            and token.string not in KEPT
            and (before is None or before.string != ".")
        )
        yield MARK if own else token.string


class BodyIndex(Generic[Owner]):
    """The solutions of eval questions, found by what a program has of them."""

    def __init__(self, solutions: Iterable[tuple[Owner, str]]) -> None:
        self.held = [(owner, body) for owner, text in solutions if (body := body_of(text)).runs]
        self.by_run: dict[Run, list[int]] = defaultdict(list)
        for place, (_, body) in enumerate(self.held):
            for run in body.runs:
                self.by_run[run].append(place)

    def matches(self, program: str) -> Iterator[tuple[str, Owner, str]]:
        """Rule, owner and detail of every solution that the program has."""
        found = body_of(program)
        shared = Counter(place for run in found.runs for place in self.by_run.get(run, ()))
        for place in sorted(shared):
            owner, body = self.held[place]
            share, names = shared[place] / len(body.runs), body.names & found.names
            if share >= SAME_BODY and len(body.runs) >= MIN_RUNS:
                yield "body", owner, f"{share:.2f} of its solution"
            elif share >= SAME_NAME and names:
                yield "name", owner, f"{min(names)}, with {share:.2f} of its solution"
