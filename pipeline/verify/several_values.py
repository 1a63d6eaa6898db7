"""Answers that are several values: lists, sets, tuples, vectors, named components.

A tuple keeps its order, a set has none, and a plain list takes its order from the other side.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.verify.evaluate import TooBig, Undefined, exact
from pipeline.verify.labels import assignment
from pipeline.verify.tree import Constant, Group, Matrix, Node, Relation, Text, Variable

MAX_PAIRS = 60  # values of a set that are matched pair by pair; larger ones must be rational

Same = Callable[[Node, Node], bool | None]


@dataclass(frozen=True, slots=True)
class Collection:
    """`order`: ordered, set or free. `labels`: the distinct names of the values, if they have names."""

    items: tuple[Node, ...]
    order: str
    labels: tuple[str, ...] = ()


def collect(node: Node) -> Collection | None:
    """None for a single value."""
    match node:
        case Group("bracket", items):
            return None if len(items) == 1 else named(items, "ordered")
        case Group("set", items):
            return Collection(items, "set")
        case Group(_, items):
            return named(items, "free")
        case Constant("empty"):
            return Collection((), "set")
        case Matrix(rows) if len(rows) == 1 or len(rows[0]) == 1:
            return Collection(tuple(item for row in rows for item in row), "ordered")
        case Relation((_, Group(_, _) as group), ("in",)):
            return collect(group)
        case Relation(_, _):
            found = assignment(node)
            inner = collect(found.value) if found is not None else None
            return inner
    return None


def named(items: tuple[Node, ...], order: str) -> Collection:
    """Names in front of the values are taken off: all the same (x = 1, x = 2), or one for each."""
    found = [assignment(item) for item in items]
    labels = tuple(one.label for one in found if one is not None)
    values = tuple(item if one is None else one.value for item, one in zip(items, found, strict=True))
    if not labels:
        return Collection(values, order)
    if len(labels) < len(items):  # x = 1 or 2
        return (
            Collection(values, order)
            if found[0] is not None and len(labels) == 1
            else Collection(items, order)
        )
    distinct = tuple(dict.fromkeys(labels))
    if len(distinct) == 1:
        return Collection(values, "set" if len(values) > 1 else order)
    if len(distinct) == len(values):
        return Collection(values, order, labels)
    size = len(distinct)
    if len(values) % size == 0 and labels == distinct * (len(values) // size):
        tuples = [Group("bracket", values[k : k + size], "(", ")") for k in range(0, len(values), size)]
        return Collection(tuple(tuples), "set")
    return Collection(items, order)


def same_collection(
    gold: Collection | None, answer: Collection | None, nodes: tuple[Node, Node], same: Same
) -> bool | None:
    """At least one of the two is a collection; `nodes` are the originals."""
    if gold is None or answer is None:
        only, other = (answer, nodes[0]) if gold is None else (gold, nodes[1])
        if only is None or isinstance(other, Text | Matrix):
            return None
        if len(only.items) == 1:
            pair = (nodes[0], only.items[0]) if gold is None else (only.items[0], nodes[1])
            return same(*pair)
        return None if isinstance(other, Relation) and assignment(other) is None else False
    if gold.labels and answer.labels:
        return same_named(gold, answer, same)
    if gold.labels or answer.labels:
        return same_half_named(gold, answer, same)
    orders = {gold.order, answer.order}
    if orders == {"ordered", "set"}:
        return False if len(gold.items) > 1 else same_unordered(gold.items, answer.items, same)
    if "ordered" in orders:
        square = isinstance(nodes[1], Group) and nodes[1].left == "[" and gold.order == "free"
        return (same_unordered if square else same_ordered)(gold.items, answer.items, same)
    verdict = same_unordered(gold.items, answer.items, same)
    if verdict and orders == {"free"} and len(gold.items) <= MAX_PAIRS:
        return same_repeats(gold.items, answer.items, same)
    return verdict


def same_repeats(gold: tuple[Node, ...], answer: tuple[Node, ...], same: Same) -> bool:
    """In a plain list what is written twice counts twice."""
    return all(
        sum(bool(same(item, other)) for other in gold) == sum(bool(same(item, other)) for other in answer)
        for item in gold
    )


def same_named(gold: Collection, answer: Collection, same: Same) -> bool | None:
    if set(gold.labels) != set(answer.labels):
        return roots(gold) and roots(answer) and same_unordered(gold.items, answer.items, same)
    by_label = dict(zip(answer.labels, answer.items, strict=True))
    verdict = same_ordered(gold.items, tuple(by_label[label] for label in gold.labels), same)
    if not verdict and roots(gold):
        return same_unordered(gold.items, answer.items, same)
    return verdict


def same_half_named(gold: Collection, answer: Collection, same: Same) -> bool | None:
    """Names on one side: the values in the order in which they stand, or in that of the names."""
    labelled = gold if gold.labels else answer
    bare = replace(labelled, labels=())
    in_order = tuple(
        item for _, item in sorted(zip(labelled.labels, labelled.items, strict=True), key=label_key)
    )
    other = answer if gold.labels else gold
    if other.order != "ordered" and (roots(labelled) or other.order == "set"):
        pair = (bare, other) if gold.labels else (other, bare)
        return same_unordered(pair[0].items, pair[1].items, same)
    verdicts = []
    for items in (bare.items, in_order):
        pair_items = (items, other.items) if gold.labels else (other.items, items)
        verdicts.append(same_ordered(*pair_items, same))
    if any(verdicts):
        return True
    return None if None in verdicts else False


def label_key(pair: tuple[str, Node]) -> str:
    return pair[0]


def roots(collection: Collection) -> bool:
    """x_1 and x_2 number the solutions of one unknown."""
    return len({label.partition("_")[0] for label in collection.labels}) == 1


def same_ordered(gold: tuple[Node, ...], answer: tuple[Node, ...], same: Same) -> bool | None:
    if len(gold) != len(answer):
        return False
    verdict: bool | None = True
    for left, right in zip(gold, answer, strict=True):
        one = same(left, right)
        if one is False:
            return False
        verdict = None if one is None else verdict
    return verdict


def same_unordered(gold: tuple[Node, ...], answer: tuple[Node, ...], same: Same) -> bool | None:
    """Every value of one side has its match on the other; what is written twice counts once."""
    rational = rational_values(gold), rational_values(answer)
    if rational[0] is not None and rational[1] is not None and rational[0] == rational[1]:
        return True
    if max(len(gold), len(answer)) > MAX_PAIRS:
        return False if None not in rational else None
    table = [[same(left, right) for right in answer] for left in gold]
    rows = table
    columns = [list(column) for column in zip(*table, strict=True)] if table else [[] for _ in answer]
    if all(any(row) for row in rows) and all(any(column) for column in columns):
        return True
    lost = any(all(one is False for one in row) for row in [*rows, *columns])
    return False if lost else None


def rational_values(items: tuple[Node, ...]) -> set[object] | None:
    values: set[object] = set()
    for item in items:
        try:
            value = exact(item)
        except (Undefined, TooBig):
            return None
        if value is None:
            return None
        values.add(value)
    return values


__all__ = ["Collection", "Variable", "collect", "same_collection"]
