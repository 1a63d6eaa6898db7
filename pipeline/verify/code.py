"""code: the answer is a program, run in a sandbox against tests that it cannot reach.

`gold` is JSON: {"kind": "function", "tests": asserts, or a function check(candidate); "entry_point": a
name, for which `candidate` stands in the tests, or null: then the program may define whatever name the tests
use and do not define}, or {"kind": "stdio", "cases": [{"input": text,
"output": text}]}; in both, "seconds" may state the time of one case, or of all tests of a function (10
where it is absent). Metadata may hold `prompt` (the beginning of a program that the response goes on with:
its imports and helpers come before the answer) and `language`.

The answer is the last fenced block, in the language or in none, that can be read and defines the functions
that are tested; where none does, the last that can be read, since usage examples often follow the program;
else the box; else the whole response, where it is a program. A fence that is never closed ends with the
response. What the block uses and does not define is taken from the blocks before it.

function: the tests run in one sandbox, the program in another (pipeline/verify/exchange.py); this process
carries frames between them and believes the tests' half alone. stdio: the program runs once for each case,
and the words of its output must be those of the case; where the case has a number with a point or an
exponent, any number within TOLERANCE, relative or absolute; for an integer also an equal decimal (4.0). A
case whose output is empty says that nothing may be printed, and is met by a program that prints nothing: a
problem with no other cases is dropped with its gold. The first failing test decides.

The verdict's `extracted` is the program where it is correct, else which test failed and how. Reasons of
wrong: different, exception, exit, timeout, memory, output, crash, undefined, bad_value, no_answer:
all are the program's own. Of unverifiable: bad_gold (the tests are broken, or end by sys.exit), cannot_cross
(they hand over a function or object of their own, or ask what only objects of the program could answer),
no_module (an import that is not of the standard library),
no_interpreter, sandbox, tests (they ran out of time or memory themselves).
"""

import ast
import builtins
import json
import math
import re
import shutil
import sys
import time
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from pipeline.errors import VerifyError
from pipeline.verify.extract import last_boxed
from pipeline.verify.outcome import Outcome, correct, unverifiable, wrong
from pipeline.verify.sandbox import (
    PATH,
    Ended,
    Limits,
    Program,
    SandboxFault,
    Stopped,
    adopt_orphans,
    run_program,
    way,
)

SECONDS = 10.0
MAX_SECONDS = 60.0
ALL_SECONDS = 90.0  # of all cases together; the row of the table allows for more than that
TOLERANCE = 1e-6
MAX_FRAME = 16_000_000  # bytes of one call's arguments or value
MAX_SHOWN = 200
MAX_ANSWER = 500_000  # characters at the end of a response
CALL = b"C"
HALVES = Path(__file__).with_name("exchange.py").read_text(encoding="utf-8")
FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})[ \t]*\{?\.?([\w+#.-]*)[^`]*")
NUMBER = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][+-]?\d{1,4})?\Z", re.ASCII)
INTEGER = re.compile(r"[+-]?\d+\Z", re.ASCII)
NO_MODULE = "the program imports {}, which is not there"

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Language:
    """`command` runs `file`; none is needed for Python, which the sandbox runs itself."""

    file: str
    command: tuple[str, ...]
    fences: tuple[str, ...]


LANGUAGES = {
    "python": Language("main.py", (), ("python", "python3", "py", "py3")),
    "bash": Language("main.sh", ("bash", "main.sh"), ("bash", "sh", "shell")),
    "perl": Language("main.pl", ("perl", "main.pl"), ("perl", "pl")),
    "ruby": Language("main.rb", ("ruby", "main.rb"), ("ruby", "rb")),
    "lua": Language("main.lua", ("lua", "main.lua"), ("lua",)),
    "awk": Language("main.awk", ("awk", "-f", "main.awk"), ("awk",)),
}


@dataclass(frozen=True, slots=True)
class Tests:
    """Of a function. `names` are those that the program must define, `called` which of them are called,
    `modules` those of the standard library that the tests use without importing them."""

    source: str
    entry_point: str | None
    seconds: float
    names: Names
    called: Names
    modules: Names


@dataclass(frozen=True, slots=True)
class Cases:
    pairs: tuple[tuple[str, str], ...]
    seconds: float


FORMS = (
    '{"kind": "function", "tests": "assert f(1) == 2", "entry_point": "f"} or '
    '{"kind": "stdio", "cases": [{"input": "1 2", "output": "3"}]}'
)


def check_code(metadata: dict[str, Any]) -> None:
    """VerifyError unless programs in the language that the metadata names can be run on this machine."""
    language = metadata.get("language", "python")
    if not isinstance(language, str) or language not in LANGUAGES:
        raise VerifyError(
            f"verifier 'code': `language` must be one of {', '.join(LANGUAGES)}, found {str(language)[:40]!r}"
        )
    prompt = metadata.get("prompt")
    if not isinstance(prompt, str | None):
        raise VerifyError(
            "verifier 'code': `prompt` in its metadata must be the text that the program begins with, found "
            f"{json.dumps(prompt, default=repr)[:40]}; leave it out where there is none"
        )
    way()


def check_gold(gold: str) -> None:
    """VerifyError, with what was found and what a gold looks like, unless `gold` holds tests."""
    read_gold(gold)


def read_gold(gold: str) -> Tests | Cases:
    try:
        held = json.loads(gold)
    except (ValueError, RecursionError):
        raise fault("it must be a JSON object", gold) from None
    if not isinstance(held, dict):
        raise fault("it must be a JSON object", held)
    seconds = held.get("seconds", SECONDS)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= MAX_SECONDS:
        raise fault(f"`seconds` must be a number above 0 and at most {MAX_SECONDS:g}", seconds)
    kind = held.get("kind")
    allowed = {"function": {"tests", "entry_point"}, "stdio": {"cases"}}
    if not isinstance(kind, str) or kind not in allowed:
        raise fault("`kind` must be function or stdio", kind)
    if unknown := held.keys() - allowed[kind] - {"kind", "seconds"}:
        raise fault(f"{kind} has no such key", min(unknown))
    if kind == "function":
        return read_tests(held, float(seconds))
    cases = held.get("cases")
    if not isinstance(cases, list) or not cases:
        raise fault("`cases` must be a list of at least one {input, output}", cases)
    for case in cases:
        if (
            not isinstance(case, dict)
            or case.keys() != {"input", "output"}
            or not all(isinstance(text, str) for text in case.values())
        ):
            raise fault("a case must be {input, output}, both texts", case)
    return Cases(tuple((case["input"], case["output"]) for case in cases), float(seconds))


def fault(what: str, found: object) -> VerifyError:
    shown = found if isinstance(found, str) else json.dumps(found)
    return VerifyError(f"gold of verifier 'code': {what}, found {shown[:80]!r}. Give {FORMS}")


def read_tests(held: dict[str, Any], seconds: float) -> Tests:
    tests, entry = held.get("tests"), held.get("entry_point")
    if isinstance(tests, list) and tests and all(isinstance(line, str) for line in tests):
        tests = "\n".join(tests)
    if not isinstance(tests, str) or not tests.strip():
        raise fault("`tests` must be Python asserts", tests)
    if entry is not None and not (isinstance(entry, str) and entry.isidentifier()):
        raise fault("`entry_point` must be a function's name or null", entry)
    try:
        names, called, modules = used_names(ast.parse(tests), entry)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise fault(f"`tests` must be Python ({error})", tests) from None
    if not names:
        raise fault("`tests` use no name that a program could define", tests)
    return Tests(tests, entry, seconds, names, called, modules)


def with_helpers(tests: Tests, prompt: str) -> Tests:
    """The tests with those functions of the prompt before them that they use: of the prompt's own, so that a
    program cannot redefine what it is checked with."""
    entries = {tests.entry_point} if tests.entry_point else hollow_names(prompt)
    helpers = without(prompt, {name for name in entries if name})
    if not (defined(helpers) or set()) & set(tests.names):
        return tests
    source = f"{helpers}\n{tests.source}"
    names, called, modules = used_names(ast.parse(source), tests.entry_point)
    return replace(tests, source=source, names=names, called=called, modules=modules)


def strangers(tests: Tests) -> str:
    """What tests with an entry point use that only the program could give: it would be its own judge."""
    own = [name for name in tests.names if name != tests.entry_point]
    if not own or tests.entry_point is None:
        return ""
    return (
        f"gold of verifier 'code': the tests of {tests.entry_point} use {', '.join(own)}, which neither they "
        "nor the prompt define: define it in `tests`, or leave out `entry_point` where the program is to"
    )


def hollow_names(source: str) -> set[str]:
    tree = parsed(source)
    return {n.name for n in (tree.body if tree else []) if isinstance(n, ast.FunctionDef) and is_hollow(n)}


def used_names(tree: ast.Module, entry: str | None) -> tuple[Names, Names, Names]:
    """The names that the tests use and do not define: those for the program, of these the called ones, and
    modules of the standard library. What Python has built in is Python's own, so that a program cannot put
    its `set` or `len` in the place of that which the tests mean; unless it is the entry point, or the
    tests use no other name that a program could define (the function is to be called `sum`): then it is
    the one innermost call. ValueError where there are several."""
    nodes = list(ast.walk(tree))
    bound = bound_names(nodes) | ({"candidate"} if entry else set())
    used = dict.fromkeys(node.id for node in nodes if isinstance(node, ast.Name)).keys()
    loose = [name for name in used if name not in bound]
    dotted = {n.value.id for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    calls = [node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    standard = sys.stdlib_module_names & dotted - {*calls, entry}
    modules = [name for name in loose if name in standard]
    own = [n for n in loose if n == entry or not (n in modules or hasattr(builtins, n))]
    if entry is not None and entry not in own and entry not in bound:
        own.append(entry)
    if not own:
        own = innermost(tree, {name for name in loose if name in calls})
    called = [name for name in own if name in calls or name == entry]
    return tuple(own), tuple(called), tuple(modules)


def bound_names(nodes: list[ast.AST]) -> set[str]:
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    bound |= {
        (alias.asname or alias.name).split(".")[0]
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    bound |= {node.name for node in nodes if isinstance(node, ast.ExceptHandler) and node.name}
    return bound | {"__name__", "__file__"}


def innermost(tree: ast.AST, names: set[str]) -> list[str]:
    """Of the calls of these names the one in whose arguments there is none."""

    def calls_in(node: ast.AST) -> list[ast.Call]:
        inside = (one for one in ast.walk(node) if isinstance(one, ast.Call))
        return [one for one in inside if isinstance(one.func, ast.Name) and one.func.id in names]

    found = {
        call.func.id
        for call in calls_in(tree)
        if isinstance(call.func, ast.Name) and calls_in(call) == [call]
    }
    if len(found) > 1:
        raise ValueError(f"which of {', '.join(sorted(found))} is to be the program's? state entry_point")
    return [*found]


def verify_code(response: str, gold: str, metadata: dict[str, Any]) -> Outcome:
    try:
        tests = read_gold(gold)
    except VerifyError as error:
        return unverifiable("bad_gold", str(error))
    name = metadata.get("language", "python")
    language = LANGUAGES[name]
    if isinstance(tests, Tests) and name != "python":
        return unverifiable("bad_gold", f"tests of a function are Python; {name} can have stdio alone")
    if language.command and shutil.which(language.command[0], path=PATH) is None:
        return unverifiable("no_interpreter", f"{language.command[0]} is not in {PATH}: install it")
    prompt = metadata.get("prompt") or ""
    if isinstance(tests, Tests):
        try:
            tests = with_helpers(tests, prompt)
        except ValueError as error:
            return unverifiable("bad_gold", f"gold of verifier 'code': {error}")
        if fault := strangers(tests):
            return unverifiable("bad_gold", fault)
    names = tests.names if isinstance(tests, Tests) else ()
    program = find_program(response[-MAX_ANSWER:], name, names, prompt)
    if program is None:
        return wrong(None, "", "no_answer")
    adopt_orphans()
    try:
        if isinstance(tests, Tests):
            return run_function(program, tests)
        return run_cases(program, language, tests)
    except SandboxFault as error:
        return unverifiable("sandbox", str(error))


# The program of a response.


def find_program(response: str, language: str, names: Names, prompt: str) -> str | None:
    """The program, with what it needs of the prompt before it; None where there is none."""
    response = response.replace("\r\n", "\n").replace("\ufeff", "")
    labels = LANGUAGES[language].fences
    blocks = [body for label, body in fenced(response) if label in ("", *labels)]
    if language != "python":
        return blocks[-1] if blocks else last_boxed(response)
    if not blocks:
        boxed = last_boxed(response)
        whole = boxed if boxed is not None else response
        found = begun(whole, names, prompt)
        return whole if found is None and (boxed is not None or is_program(whole)) else found
    for number in reversed(range(len(blocks))):
        if (found := begun(blocks[number], names, prompt)) is not None:
            return with_earlier(found, blocks[:number], ())
    readable = [block for block in blocks if defined(block) is not None]
    parts = [block for block in readable if (defined(block) or set()) & set(names)]
    chosen = (parts or readable or blocks)[-1]
    return with_earlier(chosen, blocks[: blocks.index(chosen)], names)


def fenced(text: str) -> list[tuple[str, str]]:
    """Label and body of each fenced block (CommonMark), as deep as it may stand in a list; of a block of
    Markdown, those in it. The library is no parser of Markdown: they need whole documents, and a response
    often ends in the middle of one."""
    found: list[tuple[str, str]] = []
    opened: re.Match[str] | None = None
    lines: list[str] = []
    for line in [*text.splitlines(keepends=True), None]:
        mark = FENCE.fullmatch((line or "").rstrip("\n"))
        if opened is None:
            opened, lines = mark, []
        elif line is None or (mark and closes(mark, opened)):
            is_deep = all(line.startswith(opened[1]) for line in lines if line.strip())
            body = "".join(line.removeprefix(opened[1]) if is_deep else line for line in lines)
            label = opened[3].lower().rstrip("0123456789.")
            found += fenced(body) if label in ("markdown", "md") else [(label, body)]
            opened = None
        else:
            lines.append(line)
    return found


def closes(mark: re.Match[str], opened: re.Match[str]) -> bool:
    is_bare = mark[0].strip() == mark[2]
    return is_bare and mark[2].startswith(opened[2]) and len(mark[1]) <= len(opened[1]) + 3


def with_earlier(program: str, blocks: list[str], names: Names) -> str:
    """The program behind those imports, functions, classes and constants of the blocks before it that it uses
    and does not define, or that are tested."""
    tree = parsed(program)
    if tree is None:
        return program
    wanted = unbound(tree) | set(names) - (defined(program) or set())
    taken: list[str] = []
    kinds = (
        ast.Import,
        ast.ImportFrom,
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.ClassDef,
        ast.Assign,
        ast.AnnAssign,
    )
    for block in reversed(blocks):
        earlier = parsed(block)
        for node in reversed(earlier.body if earlier else []):
            given = node_names(node)
            if (
                isinstance(node, kinds)
                and not is_hollow(node)
                and wanted & (given | ({*wanted} if "*" in given else set()))
            ):
                taken.insert(0, ast.unparse(node))
                wanted = wanted - given | unbound(node)
    return behind("\n".join(taken), program)


def unbound(tree: ast.AST) -> set[str]:
    """The names that it uses, and binds nowhere in it."""
    nodes = list(ast.walk(tree))
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    return {name for name in used - bound_names(nodes) if not hasattr(builtins, name)}


def behind(opening: str, program: str) -> str:
    """Both, as one program: imports from __future__ must come first."""
    if not opening:
        return program
    tree = parsed(program)
    lines = program.splitlines(keepends=True)
    first: list[str] = []
    for node in reversed(tree.body if tree else []):
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            first.insert(0, ast.unparse(node) + "\n")
            del lines[node.lineno - 1 : node.end_lineno]
    return f"{''.join(first)}{opening}\n{''.join(lines)}"


def begun(block: str, names: Names, prompt: str) -> str | None:
    """The block behind the imports and helpers of the prompt, where it defines all `names` itself or with
    these; behind the whole prompt, where it goes on with that; None where neither defines them."""
    own = defined(block)
    if own is not None and (own & set(names) if names else is_program(block)):
        opening = without(prompt, own)
        if set(names) <= own | (defined(opening) or set()):
            return behind(opening, block)
    for joined in (f"{prompt}{block}", f"{prompt.rstrip()}\n{indented(block)}") if prompt else ():
        if (own := defined(joined)) is not None and set(names) <= own and not is_stub(joined, names):
            return joined
    return None


def indented(block: str) -> str:
    return "\n".join(f"    {line}" for line in block.splitlines())


def parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def defined(source: str) -> set[str] | None:
    """The names that a program's outermost level binds; None where it cannot be read."""
    tree = parsed(source)
    if tree is None:
        return None
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif not isinstance(node, ast.Expr):
            inner = ast.walk(node)
            found |= {n.id for n in inner if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            found |= {n.name for n in ast.walk(node) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    return found


def without(prompt: str, own: set[str]) -> str:
    """The statements of a prompt that define nothing of the program's own, as text."""
    tree = parsed(prompt)
    kept = [] if tree is None else [node for node in tree.body if not (node_names(node) & own - {"*"})]
    return "\n".join(ast.unparse(node) for node in kept if not is_hollow(node))


def node_names(node: ast.stmt) -> set[str]:
    return defined(ast.unparse(node)) or set()


def is_hollow(node: ast.stmt) -> bool:
    """A function of nothing but its docstring: what the response was asked to write. Nor is a text or an
    example anything to begin with; a call of a module, as sys.setrecursionlimit, is."""
    if isinstance(node, ast.Expr):
        function = node.value.func if isinstance(node.value, ast.Call) else None
        return not (isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name))
    if not isinstance(node, ast.FunctionDef):
        return False
    return all(isinstance(inner, ast.Expr | ast.Pass) for inner in node.body)


def is_stub(source: str, names: Names) -> bool:
    """Whether one of the functions asked for was left as the prompt has it."""
    tree = parsed(source)
    last = {node.name: node for node in (tree.body if tree else []) if isinstance(node, ast.FunctionDef)}
    return any(is_hollow(last[name]) for name in names if name in last)


def is_program(text: str) -> bool:
    """Whether a text is a program, and not words or an output that happen to be Python."""
    tree = parsed(text)
    return tree is not None and any(
        isinstance(node.value, ast.Call) if isinstance(node, ast.Expr) else not is_label(node)
        for node in tree.body
    )


def is_label(node: ast.stmt) -> bool:
    """`Output: 42`, an annotation without a value."""
    return isinstance(node, ast.AnnAssign) and node.value is None


# Tests of functions.


def run_function(program: str, tests: Tests) -> Outcome:
    limits = Limits(seconds=tests.seconds, output_bytes=MAX_FRAME)
    own = replace(limits, seconds=2 * tests.seconds + 2)  # the tests' half waits for the program's
    files = {"main.py": HALVES}
    with Program(files, [], limits) as candidate, Program(files, [], own) as checker:
        checker.start()
        candidate.start()
        try:
            said = candidate.answer(frame({"source": program, "names": tests.names}))
        except (Stopped, EOFError) as end:
            return ended(end, candidate, "the program, before any test")
        question = {
            "tests": tests.source,
            "names": tests.names,
            "called": tests.called,
            "modules": tests.modules,
            "entry_point": tests.entry_point,
        }
        verdict = relay(checker, candidate, frame(question), said)
    if isinstance(verdict, Outcome):
        return verdict
    if verdict["status"] == "passed":
        return correct(program, "tests")
    if verdict["reason"] == "no_module" and not imports(program, verdict["detail"]):
        verdict["reason"] = "exception"
    undecided = verdict["status"] == "broken" or verdict["reason"] == "no_module"
    return (unverifiable if undecided else wrong)(*fields(verdict, undecided))


def imports(program: str, detail: str) -> bool:
    """Whether the program has an import of the module that it says is missing: it could say so of any."""
    nodes = list(ast.walk(parsed(program) or ast.Module([], [])))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return any(
        detail.startswith(NO_MODULE.format(name)) for one in found for name in (one, one.split(".")[0])
    )


def fields(verdict: dict[str, str], undecided: bool) -> tuple[str, ...]:
    """The arguments of `unverifiable` or of `wrong`, which take them in another order."""
    reason, detail = verdict["reason"], verdict["detail"]
    return (reason, detail, "tests") if undecided else (detail, "tests", reason)


def frame(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode()


def relay(checker: Program, candidate: Program, question: bytes, said: bytes) -> dict[str, Any] | Outcome:
    """Carry calls to the program and values back, until the tests' half has its verdict."""
    try:
        checker.send(question)
        asked = checker.answer(said)
        while asked[:1] == CALL:
            call = asked[1:]
            try:
                value = candidate.answer(call)
            except (Stopped, EOFError) as end:
                return ended(end, candidate, title_of(call))
            asked_at = time.monotonic()
            asked = checker.answer(value)
            candidate.allow(time.monotonic() - asked_at)
        verdict: dict[str, Any] = json.loads(asked[1:])
    except (Stopped, EOFError) as end:
        cause = end.cause if isinstance(end, Stopped) else "crash"
        said_last = bytes(checker.errors[-MAX_SHOWN:]).decode(errors="replace")
        return unverifiable("tests", f"the tests themselves ended by {cause} {said_last}".rstrip(), "tests")
    return verdict


def title_of(call: bytes) -> str:
    """A call as the tests' half writes it, for people."""
    asked = json.loads(call)
    positional = json.dumps(asked.get("positional", []))[1:-1]
    return f"call {asked['number']}, with ({positional[:MAX_SHOWN]})"


def ended(end: Stopped | EOFError, candidate: Program, where: str) -> Outcome:
    """The verdict on a program that gave no answer."""
    if isinstance(end, Stopped):
        return wrong(f"{where}: {explained(end.cause, candidate.limits)}", "tests", end.cause)
    try:
        status = candidate.wait()
    except Stopped:
        status = 0
    reason, detail = told(status)
    return wrong(f"{where}: {detail}", "tests", reason)


def told(status: int) -> tuple[str, str]:
    """Reason and words for an exit status in the way of shells."""
    if status == 128 + 24:  # SIGXCPU
        return "timeout", "its CPU time was used up"
    if status > 128:
        return "crash", f"it was ended by signal {status - 128}"
    return "exit", f"it ended by itself, with status {status}"


def explained(cause: str, limits: Limits) -> str:
    return {
        "timeout": f"not done in {limits.seconds:g} s",
        "memory": f"more than {limits.memory_mb} MB",
        "output": f"more than {limits.output_bytes:,} bytes written",
    }[cause]


# Input and output.


def run_cases(program: str, language: Language, tests: Cases) -> Outcome:
    end = time.monotonic() + ALL_SECONDS
    for number, (given, wanted) in enumerate(tests.pairs, 1):
        where = f"case {number} of {len(tests.pairs)}"
        left = end - time.monotonic()
        if left <= 0:
            return wrong(f"{where}: not done in {ALL_SECONDS:g} s, all cases together", "cases", "timeout")
        limits = Limits(seconds=min(tests.seconds, left), output_bytes=1_000_000 + 2 * len(wanted))
        data = given.encode(errors="surrogatepass")
        done = run_program({language.file: program}, data, limits, list(language.command))
        reason, detail = case_fault(done, wanted, limits)
        if reason == "no_module" and imports(program, detail):
            return unverifiable(reason, f"{where}: {detail}", "cases")
        if reason:
            return wrong(f"{where}, input {given[:MAX_SHOWN]!r}: {detail}", "cases", reason)
    return correct(program, "cases")


def case_fault(done: Ended, wanted: str, limits: Limits) -> tuple[str, str]:
    """Reason and detail; ("", "") where the output is as it should be."""
    if done.cause != "exit":
        return done.cause, explained(done.cause, limits)
    if done.status:
        last = (done.errors.decode(errors="replace").strip().splitlines() or [""])[-1][:MAX_SHOWN]
        missing = re.match(r"ModuleNotFoundError: No module named '(\w+)", last)
        if missing and missing[1] not in sys.stdlib_module_names:
            return "no_module", NO_MODULE.format(missing[1])
        if last.startswith("MemoryError"):
            return "memory", last
        reason, detail = told(done.status)
        return ("exception", last) if reason == "exit" and last else (reason, detail)
    output = done.output.decode(errors="replace")
    difference = first_difference(output.split(), wanted.split())
    return ("different", difference) if difference else ("", "")


def first_difference(found: list[str], wanted: list[str]) -> str:
    """Between the words of two outputs; "" where there is none."""
    for number, (one, other) in enumerate(zip(found, wanted, strict=False), 1):
        if not same_word(one, other):
            return f"word {number} is {one[:MAX_SHOWN]!r}, expected {other[:MAX_SHOWN]!r}"
    if len(found) == len(wanted):
        return ""
    more = " ".join(found[len(wanted) :] or wanted[len(found) :])[:MAX_SHOWN]
    what = "too much" if len(found) > len(wanted) else "missing"
    return f"{len(found)} words, expected {len(wanted)}; {what}: {more!r}"


def same_word(found: str, wanted: str) -> bool:
    """Also numbers as numbers, where one has a point or an exponent: 4.0 is the 4 of LiveCodeBench."""
    if found == wanted:
        return True
    if INTEGER.match(wanted):
        return NUMBER.match(found) is not None and Decimal(found) == Decimal(wanted)
    if NUMBER.match(wanted) is None or not (NUMBER.match(found) or INTEGER.match(found)):
        return False
    one, other = float(found), float(wanted)
    if math.isinf(one) or math.isinf(other):  # of both, what they are is beyond float
        return Decimal(found) == Decimal(wanted)
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
