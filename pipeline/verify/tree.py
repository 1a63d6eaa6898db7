"""The trees that `grammar` reads answers into: plain data, nothing is computed when one is built."""

from dataclasses import dataclass
from fractions import Fraction

from pipeline.verify.units import Unit


@dataclass(frozen=True, slots=True)
class Number:
    """`decimals`: places stated after the point, None for an integer. `ellipsis`: "0.333..." goes on."""

    value: Fraction
    decimals: int | None = None
    ellipsis: bool = False


@dataclass(frozen=True, slots=True)
class Constant:
    """pi, e, i, infinity, or one of the sets reals, integers, naturals, rationals, complexes, empty."""

    name: str


@dataclass(frozen=True, slots=True)
class Variable:
    name: str


@dataclass(frozen=True, slots=True)
class Apply:
    """An operation or function: add mul div pow neg pm mp fact root abs sin ... cup cap setminus."""

    name: str
    args: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Quantity:
    value: "Node"
    unit: Unit


@dataclass(frozen=True, slots=True)
class Group:
    """Several items. `kind`: bracket (left, right are its brackets), set, comma, or, and."""

    kind: str
    items: tuple["Node", ...]
    left: str = ""
    right: str = ""


@dataclass(frozen=True, slots=True)
class Relation:
    """sides[0] operators[0] sides[1] ...; operators are = != < <= > >= in equiv approx."""

    sides: tuple["Node", ...]
    operators: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Builder:
    """{element | condition}"""

    element: "Node"
    condition: "Node"


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple["Node", ...], ...]


@dataclass(frozen=True, slots=True)
class Modular:
    value: "Node"
    modulus: "Node"


@dataclass(frozen=True, slots=True)
class Ratio:
    parts: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Definition:
    """name(parameters) = body"""

    name: str
    parameters: tuple[str, ...]
    body: "Node"


@dataclass(frozen=True, slots=True)
class Text:
    words: str


@dataclass(frozen=True, slots=True)
class Based:
    """Digits in a stated base."""

    digits: str
    base: int


Node = (
    Number
    | Constant
    | Variable
    | Apply
    | Quantity
    | Group
    | Relation
    | Builder
    | Matrix
    | Modular
    | Ratio
    | Definition
    | Text
    | Based
)
