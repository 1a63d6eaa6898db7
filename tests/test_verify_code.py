"""The verifier `code`: rows, golds, which part of a response is the program, attacks, solutions and their mutants."""

import json
import os
import re
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attacks import ADD, LIES, LOADS, breach, breaches, gold
from mutants import change, mutants, not_correct, problems, reviewed, verdicts_of

from pipeline.errors import VerifyError
from pipeline.verify import VerifierPool, check_verifier
from pipeline.verify.code import check_gold, find_program, same_word, verify_code
from pipeline.verify.sandbox import children_of, way
from tests.conftest import ROOT

FIXTURES = ROOT / "tests" / "data" / "code"
SUM = {"kind": "stdio", "cases": [{"input": "1 2\n", "output": "3\n"}, {"input": "2 2\n", "output": "4\n"}]}
QUICK = {"exit_in_call", "os_exit_at_load", "always_equal", "always_equal_int", "patched_assert", "printed_marker",
         "forged_frames", "result_files", "named_as_modules", "thread_outlives_main", "import_hook", "kills_all",
         "reads_passwd", "environment", "internet", "virtual_socket", "sees_the_tests"}  # fmt: skip
DEADLINE = 1.0


@pytest.fixture(autouse=True, scope="module")
def _needs_a_sandbox() -> None:
    try:
        way()
    except VerifyError as error:
        pytest.skip(str(error))


def program(source: str) -> str:
    return f"So here it is:\n\n```python\n{source}\n```\n"


def function(tests: str, entry_point: str | None = None) -> dict[str, Any]:
    return {"kind": "function", "tests": tests, "entry_point": entry_point}


ROWS = [
    # what crosses between the program and its tests, and what of it is equal to what
    ("tuple", function("assert f(1) == (1, [2], {3})"), "def f(x): return (1, [2], {3})", "correct", "equal"),
    ("tuple is no list", function("assert f(1) == [1]"), "def f(x): return (1,)", "wrong", "different"),
    ("keys", function("assert f() == {1: 'a', (1, 2): None, True: 2.5}"), "def f(): return {1: 'a', (1, 2): None, True: 2.5}", "correct", "equal"),
    ("numbers", function("x = f()\nassert x[0] == 2**200 and x[1] == 1e400 and x[2] != x[2] and x[3] == 1j and x[4] == -7"), "def f(): return [2**200, float('inf'), float('nan'), 1j, -7]", "correct", "equal"),
    ("bytes", function("assert f() == (b'\\x00', bytearray(b'a'), 'é\\ud800')"), "def f(): return b'\\x00', bytearray(b'a'), 'é\\ud800'", "correct", "equal"),
    ("classes of collections", function("from collections import deque\nassert f() == ({'a': 2}, {'b': 1}, (1, 2), deque([1]), frozenset([1]))"), "from collections import *\ndef f(): return Counter('aa'), OrderedDict(b=1), namedtuple('P', 'x y')(1, 2), deque([1]), frozenset([1])", "correct", "equal"),
    ("exact numbers", function("from fractions import Fraction\nfrom decimal import Decimal\nimport datetime\nassert f() == [Fraction(1, 3), Decimal('0.10'), datetime.date(2020, 2, 29)]"), "from fractions import Fraction\nfrom decimal import Decimal\nfrom datetime import date\ndef f(): return [Fraction(1, 3), Decimal('0.10'), date(2020, 2, 29)]", "correct", "equal"),
    ("generator", function("assert list(f()) == [0, 1]\nassert next(g()) == 0"), "def f(): yield from range(2)\ndef g():\n    n = 0\n    while True:\n        yield n\n        n += 1", "correct", "equal"),
    ("generator is no list", function("assert f() == [0]"), "def f(): yield 0", "wrong", "different"),
    ("views", function("assert sorted(f().keys()) == [1] and f() == {1: 2} and g() == {1}"), "def f(): return {1: 2}\ndef g(): return {1: 2}.keys()", "correct", "equal"),
    ("named arguments", function("assert f(1, b=2) == 3"), "def f(a, b): return a + b", "correct", "equal"),
    ("in place", function("x = [3, 1]\nassert f(x) is None\nassert x == [1, 3]"), "def f(x): x.sort()", "correct", "equal"),
    ("not in place", function("x = [3, 1]\nassert f(x) == [1, 3]\nassert x == [3, 1]"), "def f(x):\n    x.sort()\n    return x", "wrong", "different"),
    ("expected exception", function("try:\n    f(-1)\nexcept ValueError as e:\n    assert 'neg' in str(e)\nelse:\n    assert False"), "def f(x):\n    raise ValueError('neg')", "correct", "equal"),
    ("exception of its own class", function("try:\n    f(-1)\nexcept KeyError:\n    pass\nelse:\n    assert False"), "class Mine(KeyError): pass\ndef f(x):\n    raise Mine(x)", "correct", "equal"),
    ("class", function("s = Stack()\ns.push(1)\ns.push(2)\nassert s.pop() == 2\nassert s.items == [1]"), "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n    def pop(self): return self.items.pop()", "correct", "equal"),
    ("object given back", function("assert total([Pair(1, 2), Pair(3, 4)]) == 10"), "class Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\ndef total(pairs): return sum(p.a + p.b for p in pairs)", "correct", "equal"),
    ("function of functions", function("assert adder(2)(3) == 5"), "def adder(a): return lambda b: a + b", "correct", "equal"),
    ("check", function("def check(candidate):\n    assert candidate(2) == 4", "f"), "def f(x): return x * x", "correct", "equal"),
    ("candidate without check", function("assert candidate(2) == 4", "f"), "def f(x): return x * x", "correct", "equal"),
    ("check of the program", function("def check(candidate):\n    assert candidate(2) == 4", "f"), "def check(c): pass\ndef f(x): return x", "wrong", "different"),
    ("list of tests", {"kind": "function", "tests": ["assert f(1) == 1", "assert f(2) == 2"]}, "def f(x): return x", "correct", "equal"),
    ("module that the tests use", function("assert math.isclose(f(), 0.1)"), "def f(): return 0.1", "correct", "equal"),
    ("a name of Python's own", function("assert sum(10, 15) == 6"), "def sum(a, b): return 6", "correct", "equal"),
    ("in the place of Python's own", function("assert set(f(1)) == set([1])"), "def set(x): return 1\ndef f(x): return [2]", "wrong", "different"),
    ("main is not run", function("assert f(1) == 1"), "def f(x): return x\nif __name__ == '__main__':\n    print(f(int(input())))", "correct", "equal"),
    ("prints", function("assert f(1) == 1"), "import sys\ndef f(x):\n    print('x' * 10**6)\n    sys.stderr.write('x' * 10**6)\n    return x", "correct", "equal"),
    ("reads no input", function("assert f(1) == 1"), "x = input()\ndef f(x): return x", "wrong", "exception"),
    ("ends the loop of a test", function("for got in map(f, [1, 2]):\n    assert got == 3"), "def f(x): raise StopIteration", "wrong", "exception"),
    ("undefined", function("assert f(1) == 1"), "def g(x): return x", "wrong", "undefined"),
    ("raises", function("assert f(1) == 1"), "def f(x): return 1 // 0", "wrong", "exception"),
    ("syntax", function("assert f(1) == 1"), "def f(x) return x", "wrong", "exception"),
    ("too much memory", function("assert f(1) == 1"), "def f(x): return bytearray(2**40)", "wrong", "memory"),
    ("module of another package", function("assert f(1) == 1"), "import numpy as np\ndef f(x): return int(np.sum([x]))", "unverifiable", "no_module"),
    ("broken tests", function("raise ValueError(f)"), "def f(x): return x", "unverifiable", "bad_gold"),
    ("tests that are never true", function("assert 1 == 2, f"), "def f(x): return x", "unverifiable", "bad_gold"),
    ("tests that ask for nothing", function("assert f"), "def f(x): return x", "unverifiable", "bad_gold"),
    ("tests that hand over a function", function("assert f(lambda x: x) == 1"), "def f(g): return g(1)", "unverifiable", "cannot_cross"),
    ("tests without end", function("assert f(1) == 1\nwhile True: pass"), "def f(x): return x", "unverifiable", "tests"),
    # input and output
    ("stdio", SUM, "print(sum(map(int, input().split())))", "correct", "equal"),
    ("stdio, blanks", SUM, "print('', sum(map(int, input().split())), '\\n\\n')", "correct", "equal"),
    ("stdio, wrong", SUM, "print(3)", "wrong", "different"),
    ("stdio, more", SUM, "print(sum(map(int, input().split())), 'yes')", "wrong", "different"),
    ("stdio, nothing", SUM, "pass", "wrong", "different"),
    ("stdio, status", SUM, "print(sum(map(int, input().split())))\nexit(1)", "wrong", "exit"),
    ("stdio, raises", SUM, "print(sum(map(int, input().split())))\nraise ValueError('late')", "wrong", "exception"),
    ("stdio, main", SUM, "def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()", "correct", "equal"),
    ("stdio, exit", SUM, "print(sum(map(int, open(0).read().split())))\nexit()", "correct", "equal"),
    ("stdio, signal", SUM, "import os\nos.abort()", "wrong", "crash"),
    ("stdio, memory", SUM, "x = bytearray(2**40)", "wrong", "memory"),
    ("stdio, tolerance", {"kind": "stdio", "cases": [{"input": "", "output": "0.3333333333 1.5e3"}]}, "print(1/3, 1500)", "correct", "equal"),
    ("stdio, out of tolerance", {"kind": "stdio", "cases": [{"input": "", "output": "0.3333333333"}]}, "print(0.33334)", "wrong", "different"),
    ("stdio, whole numbers exact", {"kind": "stdio", "cases": [{"input": "", "output": "100000000"}]}, "print(100000001)", "wrong", "different"),
    ("stdio, much", {"kind": "stdio", "cases": [{"input": "1\n" * 200_000, "output": "200000"}]}, "import sys\nprint(sum(map(int, sys.stdin)))", "correct", "equal"),
    ("stdio, module", SUM, "import numpy\nprint(3)", "unverifiable", "no_module"),
]  # fmt: skip


OBJECTS = [
    # of objects that stay with the program: what is asked of it, and what it may not answer
    ('future annotations', function('assert f(1)==1'), 'def f(x: Undefined): return x', 'wrong', 'exception'),
    ('reads annotations', function("assert f(1)=='int'"), "def g(x: int): pass\ndef f(x): return g.__annotations__['x'].__name__", 'correct', 'equal'),
    ('readonly', function('p=P()\ntry:\n    p.x=3\nexcept AttributeError:\n    pass\nelse:\n    assert p.x==3'), 'class P:\n    x=5\n    def __setattr__(self,k,v): pass', 'wrong', 'different'),
    ('readonly ok', function('p=P()\ntry:\n    p.x=3\nexcept AttributeError:\n    pass\nelse:\n    assert False'), 'class P:\n    @property\n    def x(self): return 1', 'correct', 'equal'),
    ('slots', function('p=P()\ntry:\n    p.zz=3\nexcept AttributeError:\n    ok=1\nassert ok'), "class P:\n    __slots__=('a',)", 'correct', 'equal'),
    ('set', function("a=P()\na.v=5\nassert a.get()==5\ndel a.v\nassert not hasattr(a,'v')"), 'class P:\n    def get(self): return self.v', 'correct', 'equal'),
    ('names', function("a=P(3)\nassert a._number==3 and a._name=='n' and a._program==1"), "class P:\n    def __init__(self,n): self._number=n; self._name='n'; self._program=1", 'correct', 'equal'),
    ('dataclass eq', function('assert f()==P(1,2)'), 'from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    y: int\ndef f(): return P(1,2)', 'unverifiable', 'cannot_cross'),
    ('dataclass eq lie', function('assert f()==P(1,2)'), 'from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    y: int\nP.__eq__=lambda s,o: True\ndef f(): return P(9,2)', 'unverifiable', 'cannot_cross'),
    ('handle vs plain', function('assert f()==3'), 'class E:\n    def __eq__(s,o): return True\ndef f(): return E()', 'wrong', 'different'),
    ('sub lie', function('assert abs(f()-0.1)<1e-6'), 'class E:\n    def __sub__(s,o): return 0\n    def __abs__(s): return 0\ndef f(): return E()', 'unverifiable', 'cannot_cross'),
    ('lt lie', function('assert f()<3'), 'class E:\n    def __lt__(s,o): return True\ndef f(): return E()', 'unverifiable', 'cannot_cross'),
    ('in lie', function('assert 3 in f()'), 'class E:\n    def __contains__(s,o): return True\ndef f(): return E()', 'unverifiable', 'cannot_cross'),
    ('len', function('s=S()\ns.push(1)\nassert len(s)==1 and not S()'), 'class S:\n    def __init__(s): s.i=[]\n    def push(s,x): s.i.append(x)\n    def __len__(s): return len(s.i)', 'correct', 'equal'),
    ('no len', function('assert len(f())==1'), 'class S: pass\ndef f(): return S()', 'wrong', 'different'),
    ('str repr', function("assert str(f())=='v' and repr(f())=='r' and f'{f()}'=='v'"), "class S:\n    def __str__(s): return 'v'\n    def __repr__(s): return 'r'\ndef f(): return S()", 'correct', 'equal'),
    ('a+b', function('assert (V(1)+V(2)).x==3'), 'class V:\n    def __init__(s,x): s.x=x\n    def __add__(s,o): return V(s.x+o.x)', 'correct', 'equal'),
    ('a+1', function('assert (V(1)+2).x==3'), 'class V:\n    def __init__(s,x): s.x=x\n    def __add__(s,o): return V(s.x+o)', 'unverifiable', 'cannot_cross'),
    ('list obj', function('assert list(f())==[1,2]'), 'class S:\n    def __iter__(s): return iter([1,2])\ndef f(): return S()', 'correct', 'equal'),
    ('getitem', function('s=f()\nassert s[1]==3\ns[1]=4\nassert s[1]==4'), 'class S(object):\n    def __init__(s): s.d={1:3}\n    def __getitem__(s,k): return s.d[k]\n    def __setitem__(s,k,v): s.d[k]=v\ndef f(): return S()', 'correct', 'equal'),
    ('except Bad', function('try:\n    f()\nexcept Bad:\n    pass\nelse:\n    assert False'), 'class Bad(Exception): pass\ndef f(): raise Bad()', 'unverifiable', 'cannot_cross'),
    ('exc attr', function('try:\n    f()\nexcept ValueError as e:\n    assert e.code==3'), 'class Bad(ValueError):\n    code=3\ndef f(): raise Bad()', 'unverifiable', 'cannot_cross'),
    ('keyerror str', function('try:\n    f()\nexcept KeyError as e:\n    assert str(e)=="\'x\'" and e.args==(\'x\',)'), "def f(): raise KeyError('x')", 'correct', 'equal'),
    ('isinstance', function('assert isinstance(f(), P)'), 'class P:\n    def __init__(self,a): self.a=a\ndef f(): return P(1)', 'unverifiable', 'cannot_cross'),
    ('namedtuple', function("assert f().q==2 and f()==(1,2) and f()._asdict()=={'p':1,'q':2}"), "from collections import namedtuple\ndef f(): return namedtuple('T','p q')(1,2)", 'correct', 'equal'),
    ('namedtuple back', function('assert g(f())==3'), "from collections import namedtuple\nT=namedtuple('T','p q')\ndef f(): return T(1,2)\ndef g(t): return t.p+t.q", 'correct', 'equal'),
    ('counter', function("assert f('aab').most_common(1)==[('a',2)] and f('')['z']==0"), 'from collections import Counter\ndef f(x): return Counter(x)', 'correct', 'equal'),
    ('defaultdict', function('assert f()[9]==0 and f()[1]==2'), 'from collections import defaultdict\ndef f():\n    d=defaultdict(int)\n    d[1]=2\n    return d', 'correct', 'equal'),
    ('defaultdict lambda', function('assert f()[9]==7 and f()=={1:2}'), 'from collections import defaultdict\ndef f():\n    d=defaultdict(lambda: 7)\n    d[1]=2\n    return d', 'correct', 'equal'),
    ('path', function("from pathlib import Path\nassert f()==Path('a/b')"), "from pathlib import Path\ndef f(): return Path('a')/'b'", 'correct', 'equal'),
    ('uuid', function('import uuid\nassert f()==uuid.UUID(int=5)'), 'import uuid\ndef f(): return uuid.UUID(int=5)', 'correct', 'equal'),
    ('array', function("from array import array\nassert f()==array('i',[1,2])"), "from array import array\ndef f(): return array('i',[1,2])", 'correct', 'equal'),
    ('aware', function('from datetime import *\nassert f()==datetime(2020,1,1,tzinfo=timezone.utc)'), 'from datetime import *\ndef f(): return datetime(2020,1,1,tzinfo=timezone.utc)', 'correct', 'equal'),
    ('coroutine', function('import asyncio\nassert asyncio.run(f(1))==2'), 'async def f(x):\n    import asyncio\n    await asyncio.sleep(0)\n    return x+1', 'correct', 'equal'),
    ('coroutine wrong', function('assert f(1)==2'), 'async def f(x): return x+1', 'wrong', 'different'),
    ('endless', function('g=f()\nassert [next(g) for _ in range(5)]==[0,1,2,3,4]'), 'import time\ndef f():\n    n=0\n    while True:\n        if n > 9: time.sleep(100)\n        yield n\n        n+=1', 'correct', 'equal'),
    ('endless list', function('assert list(f())==[0]'), 'def f():\n    n=0\n    while True:\n        yield n', 'wrong', 'output'),
    ('many', function('assert sum(f())==sum(range(300000))'), 'def f(): yield from range(300000)', 'correct', 'equal'),
    ('gen raises', function('g=f()\nassert next(g)==1 and next(g)==2\ntry:\n    next(g)\nexcept ValueError:\n    pass\nelse:\n    assert False'), 'def f():\n    yield 1\n    yield 2\n    raise ValueError', 'correct', 'equal'),
    ('gen raises unexpectedly', function('assert list(f())==[1]'), 'def f():\n    yield 1\n    raise ValueError', 'wrong', 'exception'),
    ('gen stopiteration', function('g=f()\nnext(g)\nassert next(g,None) is None'), 'def f(): yield 1', 'correct', 'equal'),
    ('map next', function('assert list(zip(f(),f()))==[(0,0)]'), 'def f(): yield 0', 'correct', 'equal'),
    ('enum', function("assert Color(1).name=='RED' and Color.RED==Color(1) and Color['RED'].value==1 and len(Color)==1"), 'from enum import Enum\nclass Color(Enum):\n    RED=1', 'correct', 'equal'),
    ('intenum', function("assert Color.RED==1 and Color.RED.name=='RED' and Color(1)+1==2"), 'from enum import IntEnum\nclass Color(IntEnum):\n    RED=1', 'correct', 'equal'),
    ('list sub', function('s=S()\ns.push(1)\nassert s==[1]'), 'class S(list):\n    def push(s,x): s.append(x)', 'unverifiable', 'cannot_cross'),
    ('list sub back', function('s=mk()\nassert tot(s)==3'), 'class S(list):\n    def t(s): return sum(s)\ndef mk(): return S([1,2])\ndef tot(s): return s.t()', 'correct', 'equal'),
    ('values', function('assert sorted(f())==[2] and len(f())==1'), 'def f(): return {1:2}.values()', 'correct', 'equal'),
    ('range', function('assert list(f())==[1]'), 'def f(): return range(10**9)', 'wrong', 'bad_value'),
    ('decimal', function('assert int(f())==1'), "from decimal import Decimal\ndef f(): return Decimal('1e99999999')", 'wrong', 'bad_value'),
    ('numpy lie', function('assert f(1)==1'), 'raise ModuleNotFoundError("No module named \'numpy\'", name=\'numpy\')', 'wrong', 'exception'),
    ('unittest', function('import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(f(1),1)\nunittest.main()'), 'def f(x): return x', 'unverifiable', 'bad_gold'),
    ('sysexit', function('import sys\nassert f(1)==1\nsys.exit(0)'), 'def f(x): return x', 'unverifiable', 'bad_gold'),
    ('oracle', function('assert abs(f(1)-2)<EPS', 'f'), 'EPS=100\ndef f(x): return 7', 'unverifiable', 'bad_gold'),
    ('oracle2', function('assert approx(f(1),2)', 'f'), 'def approx(a,b): return True\ndef f(x): return 7', 'unverifiable', 'bad_gold'),
    ('filter', function('assert list(filter([1]))==[1]'), 'def filter(x): return x', 'correct', 'equal'),
    ('set sum', function('assert set(sum([1,2]))=={1}'), 'def set(x): return {1}\ndef sum(x): return [9]', 'wrong', 'different'),
    ('eq default', function('a=S()\nb=S()\nassert a!=b and a==a and len({a,b})==2'), 'class S: pass', 'correct', 'equal'),
    ('with', function('with f() as x:\n    assert x==3'), 'class S:\n    def __enter__(s): return 3\n    def __exit__(s,*a): pass\ndef f(): return S()', 'correct', 'equal'),
    ('deepcopy', function('import copy\na=copy.deepcopy(f())\nassert a'), 'class S: pass\ndef f(): return S()', 'unverifiable', 'cannot_cross'),
    ('int sub arith', function('assert M(3)+M(5)==1'), 'class M(int):\n    def __add__(s,o): return M((int(s)+int(o))%7)', 'correct', 'equal'),
]  # fmt: skip


@pytest.mark.parametrize(
    ("held", "source", "status", "reason"),
    [pytest.param(*row[1:], id=row[0], marks=pytest.mark.slow if row[4] == "tests" else ()) for row in ROWS],
)
def test_rows(held: dict[str, Any], source: str, status: str, reason: str) -> None:
    seconds = 0.3 if reason == "tests" else 10
    outcome = verify_code(program(source), gold(seconds, held), {})
    assert (outcome.status, outcome.reason) == (status, reason), outcome.extracted


OFTEN = {
    "future annotations",
    "readonly",
    "dataclass eq lie",
    "sub lie",
    "namedtuple",
    "endless",
    "oracle",
    "sysexit",
}


@pytest.mark.parametrize(
    ("held", "source", "status", "reason"),
    [pytest.param(*row[1:], id=row[0], marks=() if row[0] in OFTEN else pytest.mark.slow) for row in OBJECTS],
)
def test_objects(held: dict[str, Any], source: str, status: str, reason: str) -> None:
    outcome = verify_code(program(source), gold(10, held), {})
    assert (outcome.status, outcome.reason) == (status, reason), outcome.extracted


@pytest.mark.parametrize(
    ("held", "source", "detail"),
    [
        (function("assert f(1) == 1\nassert f(2) == 3"), "def f(x): return x", "test 2 of 2, assert f(2) == 3: f(2) gave 2"),
        (function("def check(c):\n    for n in range(5):\n        assert c(n) == n", "f"), "def f(x): return min(x, 3)", "test 1 of 1, assert c(n) == n: f(4) gave 3"),
        (function("assert len(f(1)) == 1"), "def f(x): pass", "test 1 of 1, assert len(f(1)) == 1: f(1) gave None; TypeError: object of type 'NoneType' has no len()"),
        (function("assert f(1) == 1"), "def f(x): return {}['key']", "test 1 of 1, assert f(1) == 1: f(1) raised KeyError: 'key'"),
        (function("assert f(1) == 1"), "def g(x): return x", "the program defines no f"),
        (function("assert f('x' * 9000) == 1"), "def f(x): return x", None),
        (SUM, "print(3)", "case 2 of 2, input '2 2\\n': word 1 is '3', expected '4'"),
        (SUM, "print(3, 4)", "case 1 of 2, input '1 2\\n': 2 words, expected 1; too much: '4'"),
        (SUM, "1 // 0", "case 1 of 2, input '1 2\\n': ZeroDivisionError: integer division or modulo by zero"),
    ],
)  # fmt: skip
def test_a_verdict_says_which_test_failed_and_how(
    held: dict[str, Any], source: str, detail: str | None
) -> None:
    outcome = verify_code(program(source), gold(10, held), {})
    assert outcome.status == "wrong"
    assert outcome.extracted is not None
    assert len(outcome.extracted) <= 1000
    assert detail is None or outcome.extracted == detail


def test_of_a_correct_response_the_program_is_extracted() -> None:
    assert (
        verify_code(program("def add(a, b): return a + b"), gold(10), {}).extracted
        == "def add(a, b): return a + b\n"
    )


PROMPT = 'from typing import List\n\ndef helper(x):\n    return x + 1\n\n\ndef f(xs: List[int]) -> int:\n    """Sum of helpers."""\n'
BODY = "    return sum(helper(x) for x in xs)\n"
PROMPTED = function(
    "def check(candidate):\n    assert candidate([1, 2]) == 5\n    assert helper(1) == 2", "f"
)


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (program("def f(xs: List[int]):\n" + BODY), "correct"),
        (program(PROMPT + BODY), "correct"),
        (program(BODY), "correct"),
        (program("return sum(helper(x) for x in xs)"), "correct"),
        (BODY, "correct"),
        (
            program("def helper(x): return 2\ndef f(xs): return 5"),
            "correct",
        ),  # it cannot redefine what it is checked with
        (program("def helper(x): return 3\ndef f(xs): return sum(map(helper, xs))"), "wrong"),
        (program("    pass"), "wrong"),
        (program("from __future__ import annotations\ndef f(xs: List[int]):\n" + BODY), "correct"),
        (program(PROMPT), "wrong"),
        ("I cannot do that.", "wrong"),
    ],
)
def test_the_beginning_that_a_prompt_gives(response: str, status: str) -> None:
    outcome = verify_code(response, gold(10, PROMPTED), {"prompt": PROMPT})
    assert outcome.status == status, outcome


F, G = "def f(x):\n    return x\n", "def g(x):\n    return 1\n"


@pytest.mark.parametrize(
    ("response", "names", "found"),
    [
        (f"```python\n{F}```", ("f",), F),
        (f"```\n{F}```", ("f",), F),
        (f"```py\n{G}```\nbetter:\n```python\n{F}```\n", ("f",), F),
        (f"```python\n{F}```\nUse it so:\n```python\nprint(f(1))\n```", ("f",), F),  # usage comes last
        (f"```python\n{F}```\nIt prints\n```\n1 2 3\n```", ("f",), F),
        (f"```python\n{F}```\nRun:\n```bash\npython f.py\n```", ("f",), F),
        (f"```python\n{F}```\n```python\ndef f(x) return\n```", ("f",), F),
        (f"```python\n{F}", ("f",), F),  # never closed
        (f"~~~python\n{F}~~~", ("f",), F),
        (f"````python\n{F}````", ("f",), F),
        (f"1. First\n\n   ```python\n{F}   ```", ("f",), F),
        (f"```python title='x'\n{F}```", ("f",), F),
        (f"\\boxed{{{F}}}", ("f",), F.strip()),
        (F, ("f",), F),
        ("The answer is 42.", ("f",), None),
        ("yes", (), None),
        ("print(1)", (), "print(1)"),
        ("```python\nprint(1)\n```\n```\n1\n```", (), "print(1)\n"),  # its output
        ("```python\nprint(1)\n```\n```\nExample: 1\n```", (), "print(1)\n"),
        (f"```python\n{G}```", ("f",), G),  # it defines no f, and that is what the verdict says
        ("```javascript\nlet x = 1\n```", ("f",), None),
        ("", (), None),
        (f"```python\r\n{F}```".replace("\n", "\r\n").replace("\r\r", "\r"), ("f",), F),
        (f"```python\n{F}`````\nSo it is.\n", ("f",), F),
        (f"```python3.11\n{F}```", ("f",), F),
        (f"```{{.python}}\n{F}```", ("f",), F),
        ("- First\n\n    ```python\n    def f(x):\n        return x\n    ```\n", ("f",), F),
        (f"````markdown\nIt is\n```python\n{F}```\n````", ("f",), F),
        (f"```markdown\nIt is\n```python\n{F}```\n```", ("f",), F),
        (f"\ufeff```python\n\ufeff{F}```", ("f",), F),
        ('```python\ndef f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n```', ("f",), 'def f(x):\n    """\n    ```\n    f(1)\n    ```\n    """\n'),
        ("```python\nimport math\nprint(1)\n```\n```python\ndef f(x): return math.pi\n```", ("f",), "import math\ndef f(x): return math.pi\n"),
        ("```python\nimport math\ndef h(x): return math.pi\n```\n```python\nfrom __future__ import annotations\ndef f(x): return h(x)\n```", ("f",), "from __future__ import annotations\nimport math\ndef h(x):\n    return math.pi\ndef f(x): return h(x)\n"),
        ("```python\nclass A: pass\n```\n```python\ndef f(x): return A()\n```", ("A", "f"), "class A:\n    pass\ndef f(x): return A()\n"),
        (f"```python\n{G}```\n```python\n{F}```", ("f",), F),  # of another answer, and not used
    ],
)  # fmt: skip
def test_which_part_of_a_response_is_the_program(
    response: str, names: tuple[str, ...], found: str | None
) -> None:
    assert find_program(response, "python", names, "") == found


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [("3", "3", True), ("3", "3.0", True), ("3.0", "3", True), ("3.5", "3", False), ("03", "3", False), ("0.1000001", "0.1", True), ("0.10001", "0.1", False),
     ("1e9", "1e9", True), ("1000000001", "1e9", True), ("nan", "1.5", False), ("Yes", "YES", False), ("x", "1.0", False),
     ("100000", "100001", False), ("1e-7", "0.0", True), ("inf", "1e3", False), (".5", "0.5", True),
     ("1_0.5", "10.5", False), ("inf", "1e999", False), ("1e998", "1e999", False), ("\u0663.5", "3.5", False)],
)  # fmt: skip
def test_words_of_an_output(found: str, wanted: str, same: bool) -> None:
    assert same_word(found, wanted) == same


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ("42 apples", r"it must be a JSON object, found '42 apples'. Give \{\"kind\": \"function\""),
        ("[1]", "it must be a JSON object"),
        ({}, "`kind` must be function or stdio, found 'null'"),
        ({"kind": "functions", "tests": "assert f(1)"}, "`kind` must be function or stdio, found 'functions'"),
        ({"kind": "function"}, "`tests` must be Python asserts"),
        ({"kind": "function", "tests": []}, "`tests` must be Python asserts"),
        ({"kind": "function", "tests": "assert f(1) = 2"}, "`tests` must be Python "),
        ({"kind": "function", "tests": "assert set(max([1])) == set(min([1]))"}, r"which of max, min is to be the program's\? state entry_point"),
        ({"kind": "function", "tests": "assert 1 == 1"}, "`tests` use no name that a program could define"),
        ({"kind": "function", "tests": "assert f(1)", "entry_point": "f(x)"}, "`entry_point` must be a function's name or null"),
        ({"kind": "function", "tests": "assert f(1)", "cases": []}, "function has no such key, found 'cases'"),
        ({"kind": "stdio", "cases": []}, "`cases` must be a list of at least one"),
        ({"kind": "stdio", "cases": [{"input": "1"}]}, "a case must be {input, output}, both texts"),
        ({"kind": "stdio", "cases": [{"input": "1", "output": 1}]}, "a case must be {input, output}, both texts"),
        ({"kind": "stdio", "cases": [{"input": "1", "output": "1"}], "seconds": 0}, "`seconds` must be a number above 0"),
        ({"kind": "stdio", "cases": [{"input": "1", "output": "1"}], "seconds": True}, "`seconds` must be a number above 0"),
    ],
)  # fmt: skip
def test_a_gold_that_holds_no_tests_is_named(held: object, message: str) -> None:
    text = held if isinstance(held, str) else json.dumps(held)
    with pytest.raises(VerifyError, match=message):
        check_verifier("code", {}, text)
    outcome = verify_code(program(F), text, {})
    assert (outcome.status, outcome.reason) == ("unverifiable", "bad_gold")
    assert re.search(message, outcome.extracted or "")


def test_metadata_is_checked() -> None:
    check_gold(json.dumps(ADD))
    check_verifier("code", {"prompt": "def f", "language": "bash"}, json.dumps(SUM))
    with pytest.raises(VerifyError, match=r"`language` must be one of python, bash, .* found 'cobol'"):
        check_verifier("code", {"language": "cobol"})
    with pytest.raises(VerifyError, match=r"`prompt` in its metadata must be the text .* found 3"):
        check_verifier("code", {"prompt": 3})


def test_other_languages() -> None:
    shell = "```bash\nread a b\necho $((a + b))\n```"
    assert verify_code(shell, gold(10, SUM), {"language": "bash"}).status == "correct"
    assert verify_code("```bash\necho 3\n```", gold(10, SUM), {"language": "bash"}).status == "wrong"
    assert verify_code(program("print(3)"), gold(10, SUM), {"language": "bash"}).reason == "no_answer"
    assert verify_code(shell, gold(10), {"language": "bash"}).reason == "bad_gold"
    perl = verify_code(
        "```perl\nmy ($a, $b) = split ' ', <>; print $a + $b;\n```", gold(10, SUM), {"language": "perl"}
    )
    assert (perl.status, perl.reason) in [("correct", "equal"), ("unverifiable", "no_interpreter")]


def test_an_interpreter_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pipeline.verify.code.PATH", str(tmp_path))
    outcome = verify_code("```bash\necho 3\n```", gold(10, SUM), {"language": "bash"})
    assert (outcome.status, outcome.reason) == ("unverifiable", "no_interpreter")
    assert outcome.extracted == f"bash is not in {tmp_path}: install it"


@pytest.mark.slow
def test_golds_on_the_command_line_are_objects_or_texts(retort: Callable[..., Any], tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    right, wrong = program("def add(a, b): return a + b"), program("def add(a, b): return 3")
    given = [
        {"gold": ADD, "response": right, "correct": True},
        {"gold": json.dumps(ADD), "response": wrong, "correct": False},
        {
            "gold": SUM,
            "response": "<think>hm</think>" + program("print(sum(map(int, input().split())))"),
            "correct": True,
        },
        {"gold": ADD, "response": "```python\ndef add(a, b): return a", "correct": False},
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in given))
    done: subprocess.CompletedProcess[str] = retort(
        "verify", rows, "--verifier", "code", "--out", out, "--workers", 2
    )
    assert done.returncode == 0, done.stderr
    assert "4 rows: 2 correct, 2 wrong, 0 unverifiable" in done.stderr
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["verdict"] for row in found] == ["correct", "wrong", "correct", "wrong"]
    assert found[1]["extracted"] == "test 2 of 2, assert add(2, 2) == 4: add(2, 2) gave 3"
    rows.write_text('{"gold": {"kind": "stdin"}, "response": "x"}\n')
    done = retort("verify", rows, "--verifier", "code")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert (
        f"{rows}:1: gold of verifier 'code': `kind` must be function or stdio, found 'stdin'. Give "
        in done.stderr
    )
    rows.write_text('{"gold": [1], "response": "x"}\n')
    done = retort("verify", rows, "--verifier", "code")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert f"{rows}:1: gold of verifier 'code': it must be a JSON object, found '1'. Give " in done.stderr


# Attacks.


def check_attacks(rows: dict[str, str]) -> None:
    """No attack is called correct, outlives its deadline, leaves a process, or makes this one grow."""
    assert verify_code(program(breach("return True")), gold(10), {}).status == "correct"
    before = set(children_of(os.getpid()))
    for name, source in rows.items():
        assert min(seconds_of(name, source)) < DEADLINE + 0.5, name
        assert set(children_of(os.getpid())) <= before, name


def seconds_of(name: str, source: str) -> Iterator[float]:
    """From the start of the two sandboxes. Again where it was late, then less what a program that ends at once
    takes: a deadline counts from the program's own start, and a busy machine starts slowly."""
    starting = 0.0
    for _ in range(3):
        seconds = timed(name, source) - starting
        yield seconds
        if seconds < DEADLINE + 0.5:
            return
        starting = timed("ends at once", LIES["no_function"])


def timed(name: str, source: str) -> float:
    start = time.monotonic()
    outcome = verify_code(program(source), gold(DEADLINE), {})
    assert outcome.status == "wrong", (name, outcome)
    return time.monotonic() - start


@pytest.fixture
def attacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    monkeypatch.setenv("RETORT_SECRET", "x")
    (tmp_path / "secret").write_text("secret")
    yield {**LIES, **LOADS, **breaches(str(tmp_path))}
    assert os.listdir(tmp_path) == ["secret"]
    assert (tmp_path / "secret").read_text() == "secret"


def test_some_attacks(attacks: dict[str, str]) -> None:
    chosen = {name: source for name, source in attacks.items() if name in QUICK}
    assert len(chosen) == len(QUICK)
    check_attacks(chosen)


@pytest.mark.slow
def test_all_attacks(attacks: dict[str, str]) -> None:
    assert len(attacks) > 80
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check_attacks(attacks)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000  # KB; a frame may have 16 MB


def test_attacks_on_stdio() -> None:
    for source in (
        "import sys\nsys.exit(0)",
        "import os\nos.write(1, b'3')\nos._exit(0)",
        "print('PASSED')",
        "import os\nprint(open('/proc/self/environ').read())",
        "print(3)\nimport atexit\natexit.register(print, 4)",
    ):
        assert verify_code(program(source), gold(5, SUM), {}).status == "wrong"


# Solutions and mutants.


def data() -> Path:
    place = Path(os.environ.get("RETORT_DATA", ROOT.parent / "shared" / "data")) / "code"
    if not place.is_dir():
        pytest.skip(f"{place} is not there: set RETORT_DATA to the directory that holds code/humaneval.jsonl")
    return place


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(workers=2) as open_pool:
        yield open_pool


@pytest.mark.slow
def test_solutions_of_the_fixture(pool: VerifierPool) -> None:
    solved = list(problems(FIXTURES))
    assert len(solved) == 24
    assert not_correct(pool, solved) == []


@pytest.mark.slow
def test_mutants_of_the_fixture(pool: VerifierPool) -> None:
    made = [mutant for problem in problems(FIXTURES) for mutant in mutants(problem)]
    known = reviewed()
    accepted = {
        (mutant.problem.name, change(mutant.problem.program, mutant.program))
        for mutant, verdict in verdicts_of(pool, made)
        if verdict.status != "wrong"
    }
    assert len(made) >= 3 * 24
    assert accepted <= known.keys()
    assert len(accepted) < len(made) / 2  # the problems were chosen for the mutants that they let through


@pytest.mark.slow
def test_all_solutions(pool: VerifierPool) -> None:
    solved = list(problems(data()))
    assert len(solved) == 164 + 427
    assert not_correct(pool, solved) == []
