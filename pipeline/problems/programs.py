"""Rows of code problems: how the columns of known data sets become a question and tests for verifier `code`.

`columns.tests` names the column (or columns) that hold the tests, `columns.solution` one with a program that
passes them. What else a form reads stands under the data set's own names:

    answer         tests                                   and                     data sets
    humaneval      check(candidate)                        entry_point             HumanEval
    mbpp           a list of asserts                       test_imports            MBPP, sanitized
    input_output   JSON {inputs, outputs, fn_name}         starter_code            APPS, TACO
    livecodebench  JSON [{input, output, testtype}]        starter_code, metadata  LiveCodeBench
    plain          the gold itself, as JSON (pipeline.verify.code)

Of calls (fn_name, func_name) a program begins with IMPORTS, as in the harnesses that the data sets come with:
the starter's `List[int]`, or a `deque`, is imported by nobody else.

A question says all that the tests ask for: asserts are shown below it, and so is code to go on with. Of an
input_output with more than MAX_CASES cases some are taken, evenly spread, since each one costs every trace a
process. Private cases of LiveCodeBench come as pickle, which runs code when it is loaded: it is never loaded.
The one text inside is read by its opcodes, and anything else there is refused.
"""

import ast
import base64
import binascii
import io
import json
import keyword
import pickletools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.errors import RecipeError

MAX_CASES = 32
MAX_UNPACKED = 512_000_000  # bytes of private cases; more is no test, but a bomb
FENCED = "```python\n{}\n```"
# words of ours between a question and its code would be shared with every other one
STARTED = "\n\n" + FENCED
TESTED = "\n\n" + FENCED.format("# tests\n{}")
# of a pickled text; each of the others could make an object
TEXT_OPCODES = {
    "PROTO",
    "FRAME",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "MEMOIZE",
    "BINPUT",
    "STOP",
}
# What LiveCodeBench's runner puts before each program (lcb_runner/evaluation/testing_util.py, import_string),
# in its order, since `builtins` gives pow and open back; time and fractions as the runner of APPS has them
STARS = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io "
    "sys json builtins typing"
)
MODULES = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io "
    "sys json time fractions"
)
IMPORTS = "".join(
    [
        *(f"from {name} import *\n" for name in STARS.split()),
        *(f"import {name}\n" for name in MODULES.split()),
        "sys.setrecursionlimit(50000)\n",
    ]
)
# JSON knows no tuples, and a call's value may be one
AS_LISTS = """def as_lists(value):
    return [as_lists(item) for item in value] if isinstance(value, (list, tuple)) else value


"""


class NoTests(ValueError):
    """The row holds none, or none that can be read."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A row as a form reads it: its question, the cells with tests, one with a solution, and all cells."""

    question: str
    tests: list[Any]
    solution: Any
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """`gold` is the verifier's; `prompt` is what a response may go on with, `solution` a whole program."""

    question: str
    gold: dict[str, Any]
    prompt: str = ""
    solution: str | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """`columns` must be there beside those that the recipe or the card names."""

    read: Callable[[Cell], Asked]
    columns: tuple[str, ...] = ()


def humaneval(cell: Cell) -> Asked:
    """The question is the beginning of the program, and the solution goes on with it."""
    gold = {"kind": "function", "tests": text_of(cell.tests[0]), "entry_point": cell.values["entry_point"]}
    solution = cell.question + cell.solution if isinstance(cell.solution, str) else None
    return Asked(cell.question, gold, cell.question, solution)


def mbpp(cell: Cell) -> Asked:
    asserts = json_of(cell.tests[0]) if isinstance(cell.tests[0], str) else cell.tests[0]
    imports = cell.values["test_imports"]
    if isinstance(imports, str):
        imports = json_of(imports) if imports.strip() else []
    if not isinstance(imports, list | None) or not all(isinstance(line, str) for line in imports or []):
        raise NoTests("test_imports must be a list of imports")
    if not isinstance(asserts, list) or not asserts or not all(isinstance(line, str) for line in asserts):
        raise NoTests("a list of asserts is needed")
    question = cell.question.rstrip() + TESTED.format("\n".join(asserts))
    lines = [*(imports or []), *asserts]
    gold = {"kind": "function", "tests": "\n".join(lines), "entry_point": None}
    return Asked(question, gold, "", first_program(cell.solution))


def input_output(cell: Cell) -> Asked:
    held = json_of(cell.tests[0])
    inputs, outputs = (held.get(key) if isinstance(held, dict) else None for key in ("inputs", "outputs"))
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not 0 < len(inputs) == len(outputs):
        raise NoTests("inputs and outputs of the same length are needed")
    chosen = spread(len(inputs))
    pairs = [(inputs[place], outputs[place]) for place in chosen]
    starter = cell.values.get("starter_code") or ""
    if name := held.get("fn_name"):
        gold = called(str(name), [(given, one_or_wrapped(wanted)) for given, wanted in pairs], starter)
    else:
        gold = cases_of([(lines_of(given), lines_of(wanted)) for given, wanted in pairs])
    if name and not starter.strip():
        starter = f"def {name}("
    return Asked(begun(cell.question, starter), gold, IMPORTS if name else "", first_program(cell.solution))


def livecodebench(cell: Cell) -> Asked:
    cases = [case for held in cell.tests for case in unpacked(held)]
    starter, facts = cell.values["starter_code"] or "", json_of(cell.values["metadata"])
    try:
        pairs = [(text_of(case["input"]), text_of(case["output"])) for case in cases]
        by_call = {case["testtype"] == "functional" for case in cases}
    except (TypeError, KeyError) as error:
        raise NoTests(f"each case has input, output and testtype ({error})") from None
    if len(by_call) != 1:
        raise NoTests("the cases must be all functional, or all of standard input")
    if by_call == {True}:
        name = facts.get("func_name") if isinstance(facts, dict) else None
        if not isinstance(name, str):
            raise NoTests("metadata must hold func_name")
        rows = [(arguments_of(given), [json_of(wanted)]) for given, wanted in pairs]
        gold = called(name, rows, starter)
    else:
        gold = cases_of(pairs)
    opening = IMPORTS if by_call == {True} else ""
    return Asked(begun(cell.question, starter), gold, opening, first_program(cell.solution))


def arguments_of(given: str) -> list[Any]:
    """One a line, as JSON; no argument is an empty line."""
    return [json_of(line) for line in given.split("\n") if line.strip()]


def plain(cell: Cell) -> Asked:
    gold = json_of(cell.tests[0])
    if not isinstance(gold, dict):
        raise NoTests("a JSON object with the kind of the tests is needed")
    return Asked(cell.question, gold, "", first_program(cell.solution))


FORMS = {
    "plain": Form(plain),
    "humaneval": Form(humaneval, ("entry_point",)),
    "mbpp": Form(mbpp, ("test_imports",)),
    "input_output": Form(input_output),
    "livecodebench": Form(livecodebench, ("starter_code", "metadata")),
}


def begun(question: str, starter: str) -> str:
    return question.rstrip() + STARTED.format(starter.strip("\n")) if starter.strip() else question


def spread(number: int) -> list[int]:
    """Up to MAX_CASES places among so many, the first and the last one too."""
    if number <= MAX_CASES:
        return list(range(number))
    return [place * (number - 1) // (MAX_CASES - 1) for place in range(MAX_CASES)]


def cases_of(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    return {"kind": "stdio", "cases": [{"input": given, "output": wanted} for given, wanted in pairs]}


def called(name: str, rows: list[tuple[Any, list[Any]]], starter: str) -> dict[str, Any]:
    """Asserts of calls: arguments, and the values of which one must come. A method where the starter has a
    class Solution, as on LeetCode, else a function."""
    if not name.isidentifier() or keyword.iskeyword(name):
        raise NoTests(f"a function cannot be called {name!r}")
    function = f"Solution().{name}" if "class Solution" in starter else name
    lines = []
    for given, wanted in rows:
        if not isinstance(given, list):
            raise NoTests("the arguments of a call must be a list")
        arguments = ", ".join(map(literal, given))
        values = f"== {literal(wanted[0])}" if len(wanted) == 1 else f"in {literal(wanted)}"
        lines.append(f"assert as_lists({function}({arguments})) {values}\n")
    entry = None if function != name else name
    return {"kind": "function", "tests": AS_LISTS + "".join(lines), "entry_point": entry}


def one_or_wrapped(wanted: Any) -> list[Any]:
    """APPS and TACO put many values into a list of one: both readings count."""
    return [wanted, wanted[0]] if isinstance(wanted, list) and len(wanted) == 1 else [wanted]


def literal(value: Any) -> str:
    """A JSON value as Python. NoTests for infinity and NaN, which have no literal."""
    text = repr(value)
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise NoTests(f"{text[:40]} is no plain value") from None
    return text


def lines_of(held: Any) -> str:
    """A text, or a list of its lines."""
    return "\n".join(map(str, held)) if isinstance(held, list) else text_of(held)


def text_of(held: Any) -> str:
    if not isinstance(held, str):
        raise NoTests(f"a text is needed, found {type(held).__name__}")
    return held


def json_of(held: Any) -> Any:
    """The value of a cell with JSON; a cell that is a value already stays one."""
    if not isinstance(held, str):
        return held
    try:
        return json.loads(held)
    except (ValueError, RecursionError) as error:
        raise NoTests(f"not JSON ({error})") from None


def first_program(solution: Any) -> str | None:
    """The first of one or several programs that today's Python can read; TACO and APPS have a JSON list."""
    try:
        held = json_of(solution) if isinstance(solution, str) and solution[:1] == "[" else solution
    except NoTests:
        held = solution
    return next((text for text in (held if isinstance(held, list) else [held]) if is_python(text)), None)


def is_python(text: Any) -> bool:
    try:
        return isinstance(text, str) and bool(ast.parse(text).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def unpacked(held: Any) -> list[Any]:
    """The cases of a cell: JSON, or the base64 of zlib of a pickled text of JSON."""
    text = held
    if isinstance(held, str) and not held.lstrip().startswith("["):
        try:
            inflate = zlib.decompressobj()
            packed = inflate.decompress(base64.b64decode(held, validate=True), MAX_UNPACKED)
        except (binascii.Error, zlib.error, ValueError):
            raise NoTests("neither JSON nor packed cases") from None
        if not inflate.eof:
            raise NoTests(f"packed cases that are cut, or more than {MAX_UNPACKED:,} bytes")
        text = pickled_text(packed)
    cases = json_of(text)
    if not isinstance(cases, list) or not cases:
        raise NoTests("a list of cases is needed")
    return cases


def pickled_text(packed: bytes) -> str:
    """The text that a pickle holds, read without loading it. RecipeError where it holds anything else."""
    texts = []
    try:
        for opcode, argument, _ in pickletools.genops(io.BytesIO(packed)):
            if opcode.name not in TEXT_OPCODES:
                raise RecipeError(
                    f"the packed cases are a pickle of more than a text (opcode {opcode.name}), and loading "
                    "one runs whatever code it names. Write them as JSON into a copy, and give the task its "
                    "`path:`"
                )
            if isinstance(argument, str):
                texts.append(argument)
    except ValueError as error:
        raise NoTests(f"the packed cases cannot be read ({error})") from None
    if len(texts) != 1:
        raise NoTests("the packed cases are no text")
    return texts[0]
