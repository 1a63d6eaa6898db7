"""The two halves of a test of functions: the program in one sandbox, its tests in another. Imports nothing
of ours.

Runs as main.py of both sandboxes; the first frame says which half it is. The tests' half is the only one
that gives a verdict, on a channel that the program never had; the program's half only answers calls. Plain
data alone crosses, as JSON: None, numbers, texts, bytes, the containers of the standard library, dates,
paths and the like. Any other object stays where it is, and the tests get a handle (Remote). What a handle is
asked for is asked of the program: attributes, methods, len, str, items, arithmetic between two handles. What
the program could answer to please the tests is not: a handle is never equal to data, and where its class has
an equality or order of its own, two handles are not compared at all, nor computed with data: no verdict,
cannot_cross. Of a class made from a plain one (a namedtuple, an IntEnum) the plain value crosses, with a
handle for the rest (Shadow). Iterators are drawn as the tests want them. A list, dict, set, deque or
bytearray that a call changed in place is changed in the tests, too.
"""

from __future__ import annotations

import builtins
import importlib
import json
import os
import struct
import sys
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

TYPE_CHECKING = False  # importing typing costs each half 4 ms, and ast that of the program as much
if TYPE_CHECKING:
    from typing import Any

HEADER = struct.Struct("!Q")
CALL, VERDICT = b"C", b"V"  # what a frame of the tests' half is, its first byte
MAX_ITEMS = 1_000_000  # of an iterator, or a range
MAX_BATCH = 4096  # items of an iterator that are drawn at once; the first draw is of one
MAX_DIGITS = 10_000  # before the point of a Decimal: written out they would fill the memory
MAX_MESSAGE = 10_000  # characters of an exception's
MAX_SHOWN = 200  # characters of a value, or of a test, in a verdict
MAX_DETAIL = 600
BIG = 2**63
ITERATORS: Any = (Iterator, type({}.values()))
EXACT: dict[str, tuple[str, Callable[[Any], list[Any]]]] = {  # a constructor's name, and its arguments
    "complex": ("builtins", lambda value: [value.real, value.imag]),
    "range": ("builtins", lambda value: [value.start, value.stop, value.step]),
    "Fraction": ("fractions", lambda value: [value.numerator, value.denominator]),
    "Decimal": ("decimal", lambda value: [str(value)]),
    "datetime": ("datetime", lambda value: [value.isoformat()]),
    "date": ("datetime", lambda value: [value.isoformat()]),
    "time": ("datetime", lambda value: [value.isoformat()]),
    "timedelta": ("datetime", lambda value: [value.days, value.seconds, value.microseconds]),
    "UUID": ("uuid", lambda value: [str(value)]),
    "PosixPath": ("pathlib", lambda value: [str(value)]),
    "PurePosixPath": ("pathlib", lambda value: [str(value)]),
    "array": ("array", lambda value: [value.typecode, list(value)]),
}
OF_TEXT = {"Decimal", "datetime", "date", "time", "UUID", "PosixPath", "PurePosixPath", "array"}
ISO = {"datetime", "date", "time"}
SEVERAL: dict[str, Any] = {
    "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque, "keys": type({}.keys()),
}  # fmt: skip
PAIRS: Any = type({}.items())
HELD: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque, "iterator": iter}
DICTS: dict[str, Any] = {"dict": dict, "Counter": Counter, "OrderedDict": OrderedDict}
FACTORIES: dict[str, Any] = {kind.__name__: kind for kind in (int, float, str, bool, list, dict, set, tuple)}
BASES = (int, float, str, bytes, bytearray, tuple, list, dict, set, frozenset, deque)
IN_PLACE = (list, dict, set, deque, bytearray)
# special methods, as words: ASKED of the program, whatever they are given
ASKED = """len str repr bool iter reversed getitem setitem delitem missing call int float complex index abs
neg pos invert round trunc floor ceil format bytes enter exit"""
ARITHMETIC = "add sub mul truediv floordiv mod divmod pow matmul and or xor lshift rshift"
BETWEEN = [side + name for name in ARITHMETIC.split() for side in ("", "r", "i")]
COMPARED = ["eq", "ne", "hash", "lt", "le", "gt", "ge", "contains"]
UNDECIDED = [*COMPARED, "fspath", "aiter", "anext", "aenter", "aexit", "copy", "deepcopy"]
METHODS = [f"__{name}__" for name in (*ASKED.split(), *BETWEEN, *UNDECIDED)]
OPEN_NAMES = {"__name__", "__qualname__", "__members__", "__dict__"}


class Channel:
    """Frames on descriptors that the code of the other half, or of the tests, is not told of."""

    def __init__(self) -> None:
        self._read, self._write = os.dup(0), os.dup(1)
        silence = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(silence, descriptor)

    def receive(self) -> Any:
        (size,) = HEADER.unpack(self._exactly(HEADER.size))
        return json.loads(self._exactly(size))

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = os.read(self._read, min(size - len(data), 1 << 20))
            if not part:
                os._exit(0)  # nobody listens any more
            data += part
        return bytes(data)

    def send(self, value: Any, kind: bytes = b"") -> None:
        body = kind + json.dumps(value).encode()
        rest = memoryview(HEADER.pack(len(body)) + body)
        while rest:
            rest = rest[os.write(self._write, rest) :]


class Objects:
    """What stays in the program's half, by number."""

    def __init__(self) -> None:
        self.kept: list[object] = []
        self._numbers: dict[int, int] = {}  # by identity, which lasts because the object is kept

    def number(self, value: object) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.kept)
            self.kept.append(value)
        return self._numbers[id(value)]


def encode(value: object, objects: Objects | None) -> Any:
    """As JSON. Objects that are no data are kept in `objects`; without it, TypeError."""
    if isinstance(value, (Remote, Shadow)):
        return sent_back(value)
    plain = encode_data(value, objects)
    if objects is None or type(value) in BASES or "object" in tags(plain):
        return plain
    base = next((base for base in BASES if isinstance(value, base)), None)
    if base is None or type(value) in (bool, *DICTS.values()) or "defaultdict" in tags(plain):
        return plain
    return {"shadow": plain, **handle_of(value, base, objects)}


def tags(plain: Any) -> Any:
    return plain if isinstance(plain, dict) else ()


def handle_of(value: object, base: type, objects: Objects) -> dict[str, Any]:
    """`has`: the special methods of its class that `base` does not have."""
    kind = type(value)
    own = [name for name in METHODS if getattr(kind, name, None) not in (None, getattr(base, name, None))]
    return {"object": objects.number(value), "class": kind.__name__, "has": own}


def sent_back(value: Remote | Shadow) -> Any:
    """What the program gave, as its own object; TypeError where that is not what the tests have now: a
    container that they changed, an iterator drawn ahead of them."""
    handle = value.__handle__
    if handle.ahead or (isinstance(value, IN_PLACE) and encode_data(value, None) != handle.plain):
        raise TypeError(f"what {handle.name} gave has changed, and cannot be given to the program")
    return {"object": handle.number}


def encode_data(value: object, objects: Objects | None) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        whole = int.__index__(value)
        return whole if -BIG < whole < BIG else {"int": hex(whole)}
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (bytes, bytearray)):
        return {"bytearray" if isinstance(value, bytearray) else "bytes": bytes(value).hex()}
    if isinstance(value, dict):
        pairs = [[encode(k, objects), encode(v, objects)] for k, v in dict.items(value)]
        factory: Any = value.default_factory if type(value) is defaultdict else None
        if any(factory is kind for kind in FACTORIES.values()):
            return {"defaultdict": [factory.__name__, pairs]}
        return {next((name for name, kind in DICTS.items() if type(value) is kind), "dict"): pairs}
    if isinstance(value, list):
        return [encode(item, objects) for item in list.__iter__(value)]
    for name, (home, parts) in EXACT.items():
        # whoever has such a value has imported its module; importing them all would cost 6 ms
        if home in sys.modules and isinstance(value, getattr(sys.modules[home], name)):
            return {name: parts(value)}
    return encode_other(value, objects)


def encode_other(value: Any, objects: Objects | None) -> Any:
    """Tuples, sets, views, iterators; and what is no data."""
    for name, kind in SEVERAL.items():
        if isinstance(value, kind):
            return {name: [encode(item, objects) for item in value]}
    if isinstance(value, PAIRS):
        return {"items": [[encode(k, objects), encode(v, objects)] for k, v in value]}
    if value is NotImplemented:
        return {"not_implemented": []}
    if objects is not None:
        held = handle_of(value, object, objects)
        if isinstance(value, Iterator) and not isinstance(value, type):
            return {**held, "draws": "iterator"}
        return {**held, "draws": "coroutine"} if isinstance(value, types.CoroutineType) else held
    if isinstance(value, ITERATORS) and not isinstance(value, type):
        return {"iterator": [encode(item, objects) for item in islice(iter(value), MAX_ITEMS)]}
    raise TypeError(f"a {type(value).__name__} of the tests cannot be given to the program")


def decode(value: Any, far: Any) -> Any:
    """The inverse; `far` makes of a handle what stands for it here. ValueError, TypeError, KeyError,
    OverflowError, MemoryError or RecursionError where it is not what `encode` writes."""
    if isinstance(value, list):
        return [decode(item, far) for item in value]
    if not isinstance(value, dict):
        return value
    if "object" in value:
        return far(value)
    ((name, held),) = value.items()
    if name == "int":
        return int(held, 16)
    if name == "not_implemented":
        return NotImplemented
    if name in ("bytes", "bytearray"):
        return (bytes if name == "bytes" else bytearray).fromhex(held)
    if name == "defaultdict":
        return defaultdict(FACTORIES[held[0]], {decode(k, far): decode(v, far) for k, v in held[1]})
    if name in DICTS or name == "items":
        made = {decode(k, far): decode(v, far) for k, v in held}
        return made.items() if name == "items" else made if name == "dict" else DICTS[name](made)
    if name == "keys":
        return dict.fromkeys(decode(item, far) for item in held).keys()
    if name in HELD:
        return HELD[name]([decode(item, far) for item in held])
    return decode_exact(name, held)


def decode_exact(name: str, held: list[Any]) -> Any:
    """Never what a few bytes make large: Fraction("1e999999999") would take for ever."""
    if name not in OF_TEXT and not all(isinstance(part, int | float) for part in held):
        raise ValueError("a number that is a text")
    kind = getattr(importlib.import_module(EXACT[name][0]), name)
    value = kind.fromisoformat(*held) if name in ISO else kind(*held)
    if name == "range" and not -MAX_ITEMS <= (value.stop - value.start) // value.step <= MAX_ITEMS:
        raise ValueError(f"a range of more than {MAX_ITEMS:,} numbers")
    if name == "Decimal" and value.is_finite() and abs(value.adjusted()) > MAX_DIGITS:
        raise ValueError(f"a Decimal of more than {MAX_DIGITS:,} digits")
    return value


# The program's half.


def serve_program(channel: Channel, asked: dict[str, Any]) -> None:
    """Load the program, then answer calls until the other end closes."""
    module = types.ModuleType(
        "program"
    )  # not __main__: what a program does when run alone is no part of a test
    sys.modules["program"] = module
    objects = Objects()
    try:
        source = asked["source"]
        # not with the __future__ of this file: a program's annotations are evaluated
        exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:  # noqa: BLE001  a program raises what it likes
        channel.send(raised(error))
        return
    held = module.__dict__
    try:
        channel.send(
            {"names": {name: encode(held[name], objects) for name in asked["names"] if name in held}}
        )
    except BaseException as error:  # noqa: BLE001  a program raises what it likes
        channel.send(raised(error))
        return
    while True:
        channel.send(answer(channel.receive(), objects))


def answer(asked: dict[str, Any], objects: Objects) -> dict[str, Any]:
    number = asked["number"]
    try:
        return {"number": number, **done(asked, objects.kept[asked["object"]], objects)}
    except BaseException as error:  # noqa: BLE001
        return {"number": number, **raised(error)}


def done(asked: dict[str, Any], target: Any, objects: Objects) -> dict[str, Any]:
    def near(held: dict[str, Any]) -> object:
        return objects.kept[held["object"]]

    if "draw" in asked:
        return drawn(target, asked["draw"], objects)
    if asked.get("await"):
        asyncio = importlib.import_module("asyncio")
        return {"value": encode(asyncio.run(target), objects)}
    if "attribute" in asked:
        name = asked["attribute"]
        if asked.get("delete"):
            delattr(target, name)
        elif "set" in asked:
            setattr(target, name, decode(asked["set"], near))
        else:
            return {"value": encode(getattr(target, name), objects)}
        return {"value": None}
    positional, named = decode(asked["positional"], near), decode(asked["named"], near)
    given = [*positional, *named.values()]
    before = [json.dumps(encode(one, objects)) if isinstance(one, IN_PLACE) else "" for one in given]
    if method := asked.get("method"):
        positional, target = [target, *positional], getattr(type(target), method)
    value = encode(target(*positional, **named), objects)
    changed = {}
    for place, (one, old) in enumerate(zip(given, before, strict=True)):
        if old and json.dumps(new := encode(one, objects)) != old:
            changed[place] = new
    return {"value": value, "changed": changed}


def drawn(target: Any, number: int, objects: Objects) -> dict[str, Any]:
    """Up to so many items of an iterator, and what it raised after them."""
    items: list[Any] = []
    try:
        items += (encode(item, objects) for item in islice(target, number))
    except BaseException as error:  # noqa: BLE001
        return {"value": items, "after": raised(error)}
    return {"value": items}


def raised(error: BaseException) -> dict[str, Any]:
    """An exception crosses as the nearest class of Python's own, and its message."""
    names = [kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind]
    try:
        message = str(error)[:MAX_MESSAGE]
        arguments = encode(list(error.args), None)
    except BaseException:  # noqa: BLE001
        message, arguments = "", []
    module = error.name if isinstance(error, ModuleNotFoundError) else None
    told = {"class": type(error).__name__, "message": message, "arguments": arguments}
    return {"raised": names[0], "module": module, **told}


# The tests' half.


class Decided(BaseException):
    """The verdict is known before the tests have ended."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class Program:
    """The other half, as the tests see it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.calls = 0
        self.last = ""  # the last call and what came of it
        self._handles: dict[int, Any] = {}  # one object is one handle, however often it comes
        self._kinds: dict[tuple[Any, ...], type] = {}
        self.showing = False  # a value is written down for people: the program is not asked how

    def load(self, names: list[str], called: list[str]) -> dict[str, Any]:
        """What of these names the program defines: all, and those that the tests call as functions."""
        with reading("the program"):
            reply = self._channel.receive()
            if "raised" in reply:
                module = reply["module"]
                if module and module.split(".")[0] not in sys.stdlib_module_names:
                    raise Decided("no_module", f"the program imports {module}, which is not there")
                raise Decided(kind_of(exception_of(reply)), f"the program ends with {described(reply)}")
            held = reply["names"]
            found = {name: decode(held[name], self._handle(name)) for name in names if name in held}
        for name in names:
            if name not in found:
                raise Decided("undefined", f"the program defines no {name}")
            if name in called and not callable(found[name]):
                what = self.shown(found[name])
                raise Decided("undefined", f"{name} of the program is no function, but {what}")
        return found

    def _handle(self, name: str) -> Callable[[dict[str, Any]], Any]:
        return lambda held: self._stand_in(held, name)

    def _stand_in(self, held: dict[str, Any], name: str) -> Any:
        """For an object of the program. What `held` says of its class is the program's word, and decides
        only what is asked of the program, or is not decided at all."""
        number, draws = held["object"], held.get("draws")
        if not isinstance(number, int):
            raise ValueError("a handle that is no number")
        if number in self._handles and "shadow" not in held:
            return self._handles[number]
        handle = Handle(self, number, name, draws)
        if draws == "coroutine":
            return awaited(handle)
        base: type = Remote
        if "shadow" in held:
            plain = decode(held["shadow"], self._handle("object"))
            base = type(plain)
        made = self._kind(base, str(held["class"]), held["has"], draws)
        value = made() if base is Remote else made(plain)
        object.__setattr__(value, "__handle__", handle)
        if isinstance(value, IN_PLACE):
            handle.plain = encode_data(value, None)
        if base is Remote:
            self._handles[number] = value
        return value

    def _kind(self, base: type, name: str, has: list[str], draws: str | None) -> type:
        """A class with just those special methods that the program's has: len() of others is an error."""
        special = [method for method in METHODS if method in has]
        key = (base, name, draws, *special)
        if key not in self._kinds:
            held: dict[str, Any] = {
                name: special_method(name, base) for name in special if name[2:-2] not in COMPARED
            }
            if draws == "iterator":
                held |= {
                    "__iter__": lambda handle: handle,
                    "__next__": lambda far: far.__handle__.following(),
                }
            if base is Remote:  # a Shadow is compared as the plain value that it is
                held |= {"__slots__": (), "__compared__": bool({"__eq__", "__ne__", "__hash__"} & {*special})}
                held |= {name: special_method(name, base) for name in special if name[2:-2] in COMPARED[3:]}
            self._kinds[key] = type(name, (base,) if base is Remote else (Shadow, base), held)
        return self._kinds[key]

    def shown(self, value: object) -> str:
        self.showing = True
        try:
            return shown(value)
        finally:
            self.showing = False

    def ask(self, title: str, request: dict[str, Any], given: list[Any]) -> Any:
        self.calls += 1
        self.last = title
        self._channel.send({"number": self.calls, **request}, CALL)
        failed = value = None
        with reading(title):
            reply = self._channel.receive()
            if reply["number"] != self.calls:
                raise ValueError("an answer to no call")
            if "raised" in reply:
                failed = exception_of(reply)
                self.last = f"{title} raised {described(reply)}"
            else:
                value = decode(reply["value"], self._handle("object"))
                if "after" in reply:
                    value.append(exception_of(reply["after"]))
                for place, new in reply.get("changed", {}).items():
                    replace(given[int(place)], decode(new, self._handle("object")))
        if failed is not None:
            self.throw(failed)
        if "draw" not in request:
            self.last = f"{title} gave {self.shown(value)}"
        return value

    def throw(self, failed: BaseException) -> None:
        # a StopIteration would end the loop of a test that goes through map(f, ...), and pass it
        if kind_of(failed) != "exception" or isinstance(failed, StopIteration | StopAsyncIteration):
            raise Decided(kind_of(failed), self.last)
        raise failed  # the tests may expect it


@contextmanager
def reading(title: str) -> Iterator[None]:
    """What the program sent is whatever it likes: a frame that cannot be read decides against it."""
    try:
        yield
    except (
        ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError,
    ) as error:  # fmt: skip
        raise Decided("bad_value", f"{title} gave what cannot be read: {error}"[:MAX_DETAIL]) from None


class Handle:
    """Which object of the program, and what of an iterator was drawn ahead of the tests."""

    def __init__(self, program: Program, number: int, name: str, draws: str | None) -> None:
        self.program, self.number, self.name, self.draws = program, number, name, draws
        self.plain: Any = None  # of a container: as the program gave it
        self.ahead: deque[Any] = deque()
        self.batch, self.drawn = 1, 0

    def ask(self, title: str, **request: Any) -> Any:
        given = request.pop("given", [])
        return self.program.ask(title[:MAX_SHOWN], {"object": self.number, **request}, given)

    def call(self, positional: tuple[Any, ...], named: dict[str, Any], method: str | None = None) -> Any:
        given = [*positional, *named.values()]
        text = f"{self.name}{'.' + method if method else ''}({', '.join(map(self.program.shown, given))})"
        held = {"positional": encode(list(positional), None), "named": encode(named, None)}
        return self.ask(text, **held, method=method, given=given)

    def following(self) -> Any:
        if not self.ahead:
            items = self.ask(f"the items of {self.name}", draw=self.batch)
            self.ahead.extend(items)
            self.drawn += len(items)
            self.batch = min(2 * self.batch, MAX_BATCH)
            if self.drawn > MAX_ITEMS:
                raise Decided("output", f"{self.name} gave more than {MAX_ITEMS:,} items")
            if not items:
                raise StopIteration
        item = self.ahead.popleft()
        if isinstance(item, BaseException):
            self.program.last = f"the items of {self.name} raised {type(item).__name__}: {item}"[:MAX_SHOWN]
            self.program.throw(item)
        return item


def no_verdict(handle: Handle, what: str) -> Decided:
    return Decided("cannot_cross", f"{what} of {handle.name}, an object of the program, is the program's own")


class Far:
    """Of what the program keeps. The names that are in use here are none that a program may use."""

    __slots__ = ()
    __handle__: Handle

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in OPEN_NAMES:
            raise AttributeError(name)
        handle = self.__handle__
        title = f"{handle.name}.{name}"
        value = handle.ask(title, attribute=name)
        if isinstance(value, Remote):
            if isinstance(self, IN_PLACE) or handle.ahead:  # it may change what is here as a copy
                raise no_verdict(handle, f"the method {name}")
            value.__handle__.name = title
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        handle = self.__handle__
        handle.ask(
            f"{handle.name}.{name} = {handle.program.shown(value)}", attribute=name, set=encode(value, None)
        )

    def __delattr__(self, name: str) -> None:
        self.__handle__.ask(f"del {self.__handle__.name}.{name}", attribute=name, delete=True)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise no_verdict(self.__handle__, "a copy")

    def __instancecheck__(self, value: object) -> bool:
        raise no_verdict(self.__handle__, "isinstance")

    def __subclasscheck__(self, value: object) -> bool:
        raise no_verdict(self.__handle__, "issubclass")


class Remote(Far):
    """An object of the program: a function, a class, an instance. Equal to itself alone."""

    __slots__ = ("__handle__",)
    __compared__ = False

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if isinstance(other, Remote):
            if self.__compared__ or other.__compared__:
                raise no_verdict(self.__handle__, "the equality")
            return False
        try:
            encode(other, None)
        except TypeError:  # an object of the tests
            raise no_verdict(self.__handle__, "the equality") from None
        return False

    def __hash__(self) -> int:
        if self.__compared__:
            raise no_verdict(self.__handle__, "the hash")
        return self.__handle__.number

    def __repr__(self) -> str:
        return f"<{self.__handle__.name} of the program>"


class Shadow(Far):
    """The plain value of an object whose class is made from a plain one: as that it is compared."""

    def __missing__(self, key: Any) -> Any:
        raise KeyError(key)


def special_method(name: str, base: Any) -> Callable[..., Any]:
    """What stands for a special method of the program's class."""
    short = name.strip("_")

    def method(self: Any, *given: Any, **named: Any) -> Any:
        handle = self.__handle__
        if handle.program.showing and name in ("__repr__", "__str__", "__format__"):
            return base.__repr__(self)
        if short in UNDECIDED or (short in BETWEEN and not all(isinstance(one, Far) for one in given)):
            raise no_verdict(handle, name)
        if name == "__call__":
            return handle.call(given, named)
        return handle.call(given, named, name)

    return method


async def awaited(handle: Handle) -> Any:
    """A coroutine of the program: it runs there."""
    return handle.ask(f"await {handle.name}", **{"await": True})


def replace(value: Any, new: Any) -> None:
    """Make a container equal to `new` in place."""
    base = next((base for base in IN_PLACE if isinstance(value, base) and isinstance(new, base)), None)
    if base is None:
        raise ValueError("an argument changed its type")
    base.clear(value)
    (value.update if isinstance(value, (dict, set)) else value.extend)(new)
    if isinstance(value, Shadow):
        value.__handle__.plain = encode_data(value, None)


def exception_of(reply: dict[str, Any]) -> BaseException:
    """As Python's own, under the name that it had; what else the program gave it stays there."""
    kind = getattr(builtins, reply["raised"], None)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        raise ValueError("an exception that Python does not have")

    def attribute(self: object, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise Decided("cannot_cross", f"{name} of an exception of the program is the program's own")

    if reply["class"] != kind.__name__:
        kind = type(str(reply["class"]), (kind,), {"__getattr__": attribute})
    try:
        error = kind(*decode(reply["arguments"], None))
        if str(error) != reply["message"]:
            error = kind(reply["message"])
    except TypeError:  # UnicodeDecodeError and its like want more arguments
        error = ValueError(reply["message"])
    object.__setattr__(error, "of_the_program", True)
    return error


def kind_of(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "memory"
    return "exception" if isinstance(error, Exception) else "exit"


def described(reply: dict[str, Any]) -> str:
    return f"{reply['class']}: {reply['message']}".rstrip(": ")[:MAX_SHOWN]


def shown(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def run_tests(channel: Channel, asked: dict[str, Any]) -> dict[str, Any]:
    """The verdict: passed, failed or broken (a fault of the tests themselves), with a reason and a detail."""
    import ast

    program = Program(channel)
    source = asked["tests"]
    try:
        steps = ast.parse(source, "tests").body
        names = program.load(asked["names"], asked["called"])
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        module.__dict__.update(names | {name: importlib.import_module(name) for name in asked["modules"]})
        entry = asked["entry_point"]
        if entry is not None:
            module.__dict__.setdefault("candidate", names[entry])
        for step in steps:
            exec(compile(ast.Module([step], []), "tests", "exec", dont_inherit=True), module.__dict__)
        if entry is not None and entry != "check" and callable(module.__dict__.get("check")):
            module.__dict__["check"](names[entry])
    except Decided as decided:
        status = "broken" if decided.reason == "cannot_cross" else "failed"
        return {"status": status, "reason": decided.reason, "detail": decided.detail}
    except MemoryError:
        raise  # of this half: no verdict
    except BaseException as error:  # noqa: BLE001  so do tests
        return judged(error, program, source)
    if not program.calls:
        return {"status": "broken", "reason": "bad_gold", "detail": "the tests never call the program"}
    return {"status": "passed", "reason": "equal", "detail": ""}


OUR_LIMITS = ("cannot be given to the program", "catching classes that do not inherit from BaseException")


def judged(error: BaseException, program: Program, source: str) -> dict[str, Any]:
    """Of tests that raised: the program's fault where it was called and did not give what was asked for."""
    of_program = getattr(error, "of_the_program", False)
    program.showing = True
    text = f"{type(error).__name__}: {error}".rstrip(": ")[:MAX_SHOWN]
    if isinstance(error, TypeError) and not of_program and any(limit in str(error) for limit in OUR_LIMITS):
        return {"status": "broken", "reason": "cannot_cross", "detail": text}
    if not program.calls or not (of_program or isinstance(error, Exception)):  # sys.exit, unittest.main
        return {"status": "broken", "reason": "bad_gold", "detail": f"the tests end with {text}"}
    where = failed_test(error, source)
    reason = "different" if not of_program else "exception"
    what = "" if isinstance(error, AssertionError) and not of_program else f"; {text}"
    if of_program:
        what = ""  # it stands behind the call
    return {"status": "failed", "reason": reason, "detail": f"{where}: {program.last}{what}"[:MAX_DETAIL]}


def failed_test(error: BaseException, source: str) -> str:
    """The number among the tests' asserts, and the text, of the one that was running."""
    import ast

    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "tests":
            line = trace.tb_lineno
        trace = trace.tb_next
    asserts = sorted(
        (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)), key=lambda n: n.lineno
    )
    for number, node in enumerate(asserts, 1):
        if node.lineno <= line <= (node.end_lineno or node.lineno):
            text = " ".join((ast.get_source_segment(source, node) or "").split())
            return f"test {number} of {len(asserts)}, {text[:MAX_SHOWN]}"
    return f"line {line} of the tests"


def main() -> None:
    channel = Channel()
    asked = channel.receive()
    if "source" in asked:
        serve_program(channel, asked)
    else:
        channel.send(run_tests(channel, asked), VERDICT)
    os._exit(0)


if __name__ == "__main__":
    main()
