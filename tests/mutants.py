"""Mutants of programs that are correct: a verifier of programs must refuse them.

`python -m tests.mutants DIRECTORY` reads DIRECTORY/humaneval.jsonl and mbpp_sanitized.jsonl, checks that every
solution is correct, asks for NUM_MUTANTS mutants of each, and prints the shares refused and each accepted one that
nobody has read yet. Those that were read stand in tests/data/code/accepted_mutants.jsonl: equivalent to the
solution, or let through by weak tests (each of them passes the tests in one process, too). Three minutes on two
cores.
"""

import ast
import difflib
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.records import Verdict
from pipeline.verify import VerifierPool

REVIEWED = Path(__file__).parent / "data" / "code" / "accepted_mutants.jsonl"
NUM_MUTANTS = 4
SECONDS = 5  # many mutants never end


class Problem(NamedTuple):
    name: str
    program: str
    gold: dict[str, Any]
    metadata: dict[str, Any]


class Mutant(NamedTuple):
    problem: Problem
    kind: str
    program: str


def problems(directory: Path) -> Iterator[Problem]:
    for line in (directory / "humaneval.jsonl").read_text().splitlines():
        row = json.loads(line)
        gold = {"kind": "function", "tests": row["test"], "entry_point": row["entry_point"]}
        program = row["prompt"] + row["canonical_solution"]
        yield Problem(row["task_id"], program, gold, {"prompt": row["prompt"]})
    for line in (directory / "mbpp_sanitized.jsonl").read_text().splitlines():
        row = json.loads(line)
        tests = "\n".join([*row["test_imports"], *row["test_list"]])
        gold = {"kind": "function", "tests": tests, "entry_point": None}
        yield Problem(f"MBPP/{row['task_id']}", row["code"], gold, {})


OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitXor: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
COMPARISONS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


def changes(tree: ast.Module, entry: str | None) -> Iterator[tuple[str, Callable[[], None]]]:
    """Each place where one change makes a mutant: its kind, and a function that makes it. Of the entry point
    alone, where there is one: the helpers beside it are the prompt's."""
    own = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == entry]
    nodes = [node for root in own or [tree] for node in ast.walk(root)]
    texts = {
        id(node.value)
        for node in nodes
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in nodes:
        if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in OPERATORS:
            yield "operator", lambda n=node: setattr(n, "op", OPERATORS[type(n.op)]())
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
            yield "comparison", lambda n=node: n.ops.__setitem__(0, COMPARISONS[type(n.ops[0])]())
        elif isinstance(node, ast.Constant) and id(node) not in texts and node.value not in (None, ...):
            yield "constant", lambda n=node: setattr(n, "value", other(n.value))
        elif isinstance(node, ast.Return) and node.value is not None:
            yield "return", lambda n=node: setattr(n, "value", ast.Constant(None))
            yield "wrapped", lambda n=node: setattr(n, "value", ast.Tuple([n.value], ast.Load()))
            yield "doubled", lambda n=node: setattr(n, "value", ast.List([n.value, n.value], ast.Load()))
        elif isinstance(node, ast.If | ast.IfExp | ast.While):
            yield "condition", lambda n=node: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test))
        elif isinstance(node, ast.Call) and node.args:
            yield "argument", lambda n=node: n.args.__setitem__(0, ast.Constant(None))


def other(value: object) -> object:
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float | complex) else value + type(value)(value[:1] or "x")  # type: ignore[index, operator]


def mutants(problem: Problem, num: int = NUM_MUTANTS) -> Iterator[Mutant]:
    """One of each of the four kinds first, then of any kind; the same each time."""
    draw = random.Random(problem.name)
    entry = problem.gold["entry_point"]
    places = list(enumerate(kind for kind, _ in changes(ast.parse(problem.program), entry)))
    draw.shuffle(places)
    order = ["operator", "constant", "comparison", "return"]
    first = [next((place for place in places if place[1] == kind), None) for kind in order]
    usual = [place for place in places if place[1] not in ("wrapped", "doubled")]
    chosen = list(dict.fromkeys([*filter(None, first), *usual, *places]))
    whole = ast.unparse(ast.parse(problem.program))
    seen = {whole}
    for place, kind in chosen:
        if len(seen) > num:
            return
        tree = ast.parse(problem.program)
        list(changes(tree, entry))[place][1]()
        program = ast.unparse(ast.fix_missing_locations(tree))
        if program not in seen:
            seen.add(program)
            yield Mutant(problem, kind, program)


def change(before: str, after: str) -> str:
    """What a mutant changes, in a line."""
    first, second = (ast.unparse(ast.parse(text)).splitlines() for text in (before, after))
    lines = [
        line for line in difflib.unified_diff(first, second, n=0, lineterm="") if line[:2] not in ("--", "++")
    ]
    return " ".join(f"{line[0]} {line[1:].strip()}" for line in lines if line[0] in "+-")


def answer(program: str) -> str:
    return f"Here is the program.\n\n```python\n{program}\n```\n"


def asked(problem: Problem, program: str, number: int, seconds: float = SECONDS) -> tuple[Any, ...]:
    gold = json.dumps({**problem.gold, "seconds": seconds})
    return (problem.name, number), "code", gold, answer(program), problem.metadata


def not_correct(pool: VerifierPool, solved: list[Problem]) -> list[str]:
    """Solutions that are not called correct, and why."""
    verdicts = pool.map(asked(problem, problem.program, 0, 20) for problem in solved)
    return [
        f"{problem.name}: {verdict.status}, {verdict.reason}: {verdict.extracted}"
        for problem, verdict in zip(solved, verdicts, strict=True)
        if verdict.status != "correct"
    ]


def verdicts_of(pool: VerifierPool, made: list[Mutant]) -> Iterator[tuple[Mutant, Verdict]]:
    rows = (asked(mutant.problem, mutant.program, number) for number, mutant in enumerate(made, 1))
    return zip(made, pool.map(rows), strict=True)


def reviewed() -> dict[tuple[str, str], str]:
    """(problem, change) of each accepted mutant that was read -> equivalent, or weak tests."""
    rows = map(json.loads, REVIEWED.read_text().splitlines())
    return {(row["name"], row["change"]): row["read"] for row in rows}


def main() -> None:
    solved = list(problems(Path(sys.argv[1])))
    made = [mutant for problem in solved for mutant in mutants(problem)]
    counts: Counter[tuple[str, str]] = Counter()
    read: Counter[str] = Counter()
    known = reviewed()
    with VerifierPool() as pool:
        for line in not_correct(pool, solved):
            print(line)
        for mutant, verdict in verdicts_of(pool, made):
            counts[mutant.kind, verdict.status] += 1
            counts["all", verdict.status] += 1
            if verdict.status != "wrong":
                line = change(mutant.problem.program, mutant.program)
                judged = known.get((mutant.problem.name, line), "to be read")
                read[judged] += 1
                if judged == "to be read":
                    print(f"{mutant.problem.name}: {verdict.status} {verdict.extracted}: {line}")
    for kind in sorted({kind for kind, _ in counts}):
        total = sum(counts[kind, status] for status in ("wrong", "correct", "unverifiable"))
        print(f"{kind}: {counts[kind, 'wrong']:,} of {total:,} refused, {counts[kind, 'wrong'] / total:.1%}")
    print(json.dumps({"solutions": len(solved), "mutants": len(made), "accepted": dict(read)}))


if __name__ == "__main__":
    main()
