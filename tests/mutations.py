"""Answers that are nearly the gold: one change of a kind, drawn from a seed, for the fuzz of the verifiers.

A mutation takes a source of chance and the gold's tokens and gives the tokens of a mutant, or None where it does not
apply. A mutant may by chance be equal to its gold (2 + 2 and 2 \\cdot 2): whoever uses it decides that by value.
"""

import itertools
import random
import re
from collections.abc import Callable, Iterator

TOKEN = re.compile(r"\\[A-Za-z]+|\\.|\d+|[A-Za-z]|\s+|.", re.DOTALL)
WORDS = re.compile(r"\\(?:text|mbox|textbf|mathrm|textit|begin|end)\s*\{[^{}]*\}")
OPERATORS = ("+", "-", "\\cdot ", "/")
RELATIONS = {"=": "\\neq ", "<": "\\le ", ">": "\\ge ", "\\le": "<", "\\ge": ">", "\\leq": "<", "\\geq": ">"}
UNITS = ("cm", "m", "kg", "grams", "seconds", "hours", "watts", "newtons", "dollars", "apples", "degrees")
FUNCTIONS = ("\\sin", "\\cos", "\\tan", "\\log", "\\ln", "\\sqrt", "\\arcsin", "\\exp")
MARKS = ("\\overline", "\\bar", "\\hat", "\\vec", "\\tilde")
MAX_DRAWS = 1_000  # golds tried for one mutant of a kind
Tokens = list[str]
Mutation = Callable[[random.Random, Tokens], Tokens | None]


def tokens_of(text: str) -> Tokens:
    """Commands, numbers, letters and marks; words in \\text and the ends of an environment are one token."""
    found: Tokens = []
    position = 0
    for words in WORDS.finditer(text):
        found += [*TOKEN.findall(text, position, words.start()), words.group()]
        position = words.end()
    return found + TOKEN.findall(text, position)


def mutants(seed: int, golds: list[str], count: int) -> Iterator[tuple[str, str, str]]:
    """`count` different triples (kind, gold, mutant), the kinds in turn."""
    draw = random.Random(seed)
    seen: set[tuple[str, str]] = set()
    kinds = list(MUTATIONS)
    while kinds and len(seen) < count:
        kind = kinds[len(seen) % len(kinds)]
        for _ in range(MAX_DRAWS):
            gold = draw.choice(golds)
            mutant = "".join(MUTATIONS[kind](draw, tokens_of(gold)) or [])
            if mutant and mutant.split() != gold.split() and (gold, mutant) not in seen:
                seen.add((gold, mutant))
                yield kind, gold, mutant
                break
        else:
            kinds.remove(kind)  # it applies to too few of these golds


def places(tokens: Tokens, wanted: Callable[[str], object]) -> list[int]:
    return [place for place, token in enumerate(tokens) if wanted(token)]


def put(tokens: Tokens, place: int, *new: str, old: int = 1) -> Tokens:
    """`old` tokens from `place` on are replaced by the new ones."""
    return [*tokens[:place], *new, *tokens[place + old :]]


def chosen(draw: random.Random, found: list[int]) -> int | None:
    return draw.choice(found) if found else None


def is_letter(token: str) -> bool:
    return len(token) == 1 and token.isascii() and token.isalpha()


def is_value(token: str) -> bool:
    return token.isdigit() or is_letter(token) or token in ("\\pi", "\\theta")


def closing(tokens: Tokens, place: int) -> int | None:
    """Where the brace or bracket that opens at `place` closes."""
    pair = {"{": "}", "(": ")", "[": "]"}[tokens[place]]
    depth = 0
    for position in range(place, len(tokens)):
        depth += (tokens[position] == tokens[place]) - (tokens[position] == pair)
        if depth == 0:
            return position
    return None


def commas(tokens: Tokens) -> list[int]:
    """The commas that separate elements: within the outermost pair of brackets at most, between no digits."""
    depth, found, outer = 0, [], 1 if tokens and tokens[0] in ("(", "[", "\\left", "\\{") else 0
    for place, token in enumerate(tokens):
        depth += (token in ("(", "[", "{", "\\{")) - (token in (")", "]", "}", "\\}"))
        around = "".join(tokens[place - 1 : place + 2])
        if token == "," and depth == outer and not re.fullmatch(r"\d+,\d{3}", around):
            found.append(place)
    return found


def operator(draw: random.Random, tokens: Tokens) -> Tokens | None:
    place = chosen(
        draw, [p for p in places(tokens, lambda t: t in ("+", "-", "\\cdot", "\\times", "/")) if p]
    )
    if place is None:
        between = [p for p in range(1, len(tokens)) if is_value(tokens[p]) and is_value(tokens[p - 1])]
        place = chosen(draw, between)
        return None if place is None else put(tokens, place, draw.choice(OPERATORS), old=0)
    return put(tokens, place, draw.choice([o for o in OPERATORS if o.strip() != tokens[place]]))


def sign(draw: random.Random, tokens: Tokens) -> Tokens | None:
    place = chosen(draw, places(tokens, lambda t: t == "-" or is_value(t) or t in ("\\frac", "\\sqrt")))
    if place is None:
        return None
    return put(tokens, place) if tokens[place] == "-" else put(tokens, place, "-", old=0)


def exponent(draw: random.Random, tokens: Tokens) -> Tokens | None:
    powers = [
        p for p in places(tokens, lambda t: t == "^") if p + 1 < len(tokens) and tokens[p + 1].isdigit()
    ]
    place = chosen(draw, powers or places(tokens, is_value))
    if place is None:
        return None
    if powers:
        return put(tokens, place + 1, str(int(tokens[place + 1]) + draw.choice([1, 2, 10])))
    return put(tokens, place + 1, draw.choice(["^2", "^3", "^{-1}", "^{10}", "^n"]), old=0)


def moved_exponent(draw: random.Random, tokens: Tokens) -> Tokens | None:
    """(a+b)^2 as a+b^2, \\sin(x)^2 as \\sin(x^2), x^{2n} as x^2n."""
    ends = [p for p in places(tokens, lambda t: t in ")}") if p + 2 < len(tokens) and tokens[p + 1] == "^"]
    if (place := chosen(draw, ends)) is not None:
        return [*tokens[:place], *tokens[place + 1 : place + 3], tokens[place], *tokens[place + 3 :]]
    powers = [p for p in places(tokens, lambda t: t == "^") if tokens[p + 1 : p + 2] == ["{"]]
    place = chosen(draw, powers)
    end = None if place is None else closing(tokens, place + 1)
    return (
        None
        if place is None or end is None
        else [*tokens[: place + 1], *tokens[place + 2 : end], *tokens[end + 1 :]]
    )


def mark(draw: random.Random, tokens: Tokens) -> Tokens | None:
    """A bar, a hat, an arrow over something; or one less."""
    if (place := chosen(draw, places(tokens, lambda t: t in MARKS))) is not None:
        return put(tokens, place)
    place = chosen(draw, places(tokens, is_value))
    if place is None:
        return None
    return put(tokens, place, draw.choice(MARKS), "{", tokens[place], "}")


def index(draw: random.Random, tokens: Tokens) -> Tokens | None:
    """The index of a root, the base of a number or logarithm, a subscript."""
    if (place := chosen(draw, places(tokens, lambda t: t == "\\sqrt"))) is not None:
        end = closing(tokens, place + 1) if tokens[place + 1 : place + 2] == ["["] else None
        return put(
            tokens, place + 1, draw.choice(["[3]", "[4]", "[5]"]), old=0 if end is None else end - place
        )
    if (place := chosen(draw, places(tokens, lambda t: t == "_"))) is not None:
        return put(tokens, place + 1, draw.choice(["3", "5", "n"]))
    place = chosen(draw, places(tokens, is_value))
    return None if place is None else put(tokens, place + 1, "_", draw.choice(["1", "2", "8", "n"]), old=0)


def digit(draw: random.Random, tokens: Tokens) -> Tokens | None:
    place = chosen(draw, places(tokens, str.isdigit))
    if place is None:
        return None
    number = tokens[place]
    at = draw.randrange(len(number))
    new = draw.choice([d for d in "0123456789" if d != number[at]])
    forms = [number[:at] + new + number[at + 1 :], number[:at] + new + number[at:], number + "0"]
    if len(number) > 1:
        forms += [number[:at] + number[at + 1 :], number[:at] + "." + number[at:] if at else "0." + number]
    return put(tokens, place, draw.choice(forms))


def exchanged(draw: random.Random, tokens: Tokens) -> Tokens | None:
    """The arguments of a fraction or binomial, the sides of a bar, a power's base and exponent."""
    found = places(tokens, lambda t: t in ("\\frac", "\\dfrac", "\\tfrac", "\\binom"))
    if (place := chosen(draw, found)) is not None and tokens[place + 1 : place + 2] == ["{"]:
        middle = closing(tokens, place + 1)
        if (
            middle is None
            or tokens[middle + 1 : middle + 2] != ["{"]
            or (end := closing(tokens, middle + 1)) is None
        ):
            return None
        first, second = tokens[place + 1 : middle + 1], tokens[middle + 1 : end + 1]
        return [*tokens[: place + 1], *second, *first, *tokens[end + 1 :]]
    between = [p for p in places(tokens, lambda t: t in "/^-:") if 0 < p < len(tokens) - 1]
    place = chosen(draw, [p for p in between if is_value(tokens[p - 1]) and is_value(tokens[p + 1])])
    return (
        None
        if place is None
        else put(tokens, place - 1, tokens[place + 1], tokens[place], tokens[place - 1], old=3)
    )


def case(draw: random.Random, tokens: Tokens) -> Tokens | None:
    place = chosen(draw, places(tokens, is_letter))
    return None if place is None else put(tokens, place, tokens[place].swapcase())


def letter(draw: random.Random, tokens: Tokens) -> Tokens | None:
    place = chosen(draw, places(tokens, is_letter))
    if place is None:
        return None
    return put(tokens, place, draw.choice([name for name in "abcknpqrtwxyz" if name != tokens[place]]))


def factorial(draw: random.Random, tokens: Tokens) -> Tokens | None:
    place = chosen(draw, places(tokens, lambda t: is_value(t) or t in (")", "!")))
    if place is None:
        return None
    return put(tokens, place) if tokens[place] == "!" else put(tokens, place + 1, "!", old=0)


def unclosed(draw: random.Random, tokens: Tokens) -> Tokens | None:
    place = chosen(draw, places(tokens, lambda t: t in (")", "]", "}", "\\}", "(", "[", "{", "\\{")))
    if place is None:
        return None
    if place and tokens[place - 1] in ("\\left", "\\right"):
        return put(tokens, place - 1, old=2)
    return put(tokens, place)


def argument(draw: random.Random, tokens: Tokens) -> Tokens | None:
    """Another function, a function of something else, a function less or more."""
    if (place := chosen(draw, places(tokens, lambda t: t in FUNCTIONS))) is not None:
        forms = [[draw.choice([f for f in FUNCTIONS if f != tokens[place]])], []]
        if tokens[place + 1 : place + 2] == ["{"]:
            forms.append([tokens[place], "{", "2", *tokens[place + 2 : place + 3]])
            drawn = draw.choice(forms)
            return put(tokens, place, *drawn, old=3 if len(drawn) > 1 else 1)
        return put(tokens, place, *draw.choice(forms), " ")
    place = chosen(draw, places(tokens, is_value))
    return None if place is None else put(tokens, place, draw.choice(FUNCTIONS), "{", tokens[place], "}")


def plus_minus(draw: random.Random, tokens: Tokens) -> Tokens | None:
    if (place := chosen(draw, places(tokens, lambda t: t in ("\\pm", "\\mp")))) is not None:
        return put(tokens, place, draw.choice(["\\mp" if tokens[place] == "\\pm" else "\\pm", "+", "-"]), " ")
    place = chosen(draw, [p for p in places(tokens, lambda t: t in ("+", "-")) if p])
    place = 0 if place is None else place
    if not tokens:
        return None
    return put(tokens, place, "\\pm ", old=1 if tokens[place] in ("+", "-") else 0)


def interval_end(draw: random.Random, tokens: Tokens) -> Tokens | None:
    swap = {"(": "[", "[": "(", ")": "]", "]": ")"}
    if not commas(tokens):
        return None
    ends = [
        p
        for p in places(tokens, swap.get)
        if p in (0, 1, len(tokens) - 1) or tokens[p - 1] in ("\\left", "\\right")
    ]
    place = chosen(draw, ends)
    return None if place is None else put(tokens, place, swap[tokens[place]])


def elements(tokens: Tokens) -> tuple[Tokens, list[Tokens], Tokens] | None:
    """What opens a list, its elements, what closes it."""
    separators = commas(tokens)
    if not separators:
        return None
    opening = 2 if tokens[0] == "\\left" else int(tokens[0] in ("(", "[", "\\{"))
    end = len(tokens) - (2 if tokens[-2:-1] == ["\\right"] else int(tokens[-1] in (")", "]", "\\}")))
    bounds = [opening - 1, *separators, end]
    parts = [tokens[a + 1 : b] for a, b in itertools.pairwise(bounds)]
    return tokens[:opening], parts, tokens[end:]


def joined(left: Tokens, parts: list[Tokens], right: Tokens) -> Tokens:
    middle = [token for part in parts for token in [*part, ","]][:-1]
    return [*left, *middle, *right]


def order(draw: random.Random, tokens: Tokens) -> Tokens | None:
    if (found := elements(tokens)) is None:
        return None
    left, parts, right = found
    first = draw.randrange(len(parts) - 1)
    parts[first], parts[first + 1] = parts[first + 1], parts[first]
    return joined(left, parts, right)


def missing(draw: random.Random, tokens: Tokens) -> Tokens | None:
    if (found := elements(tokens)) is None:
        return None
    left, parts, right = found
    del parts[draw.randrange(len(parts))]
    return joined(left, parts, right)


def another(draw: random.Random, tokens: Tokens) -> Tokens | None:
    """An element more: of a list, or beside a single value."""
    left, parts, right = elements(tokens) or ([], [tokens], [])
    extra = draw.choice([["7"], ["0"], ["x"], ["-1"]])
    if extra in parts:
        return None
    if len(parts) == 1:
        return [*tokens, draw.choice([", ", " \\text{ or } ", " \\text{ and } "]), *extra]
    return joined(left, [*parts, extra], right)


def unit(draw: random.Random, tokens: Tokens) -> Tokens | None:
    words = places(tokens, lambda t: WORDS.fullmatch(t) or t in ("\\circ", "\\%", "\\$"))
    new = draw.choice(UNITS)
    if (place := chosen(draw, words)) is None or not any(token.isdigit() for token in tokens):
        return None
    if tokens[place] == "\\circ":
        return put(tokens, place, draw.choice(["\\prime", "2"]))
    if tokens[place].startswith(("\\begin", "\\end")) or new in tokens[place]:
        return None
    return put(tokens, place, f"\\text{{ {new}}}")


def relation(draw: random.Random, tokens: Tokens) -> Tokens | None:
    place = chosen(draw, places(tokens, RELATIONS.get))
    return None if place is None else put(tokens, place, RELATIONS[tokens[place]], " ")


def word(draw: random.Random, tokens: Tokens) -> Tokens | None:
    """What text would call punctuation, an article, a hyphen: in mathematics a factor, an operator, a factorial."""
    if not any(is_letter(token) for token in tokens):
        return None
    blank = chosen(draw, [p for p in places(tokens, str.isspace) if 0 < p < len(tokens) - 1])
    forms = [["a ", *tokens], [*tokens, "!"], ["a", *tokens], [*tokens, "'"]]
    if blank is not None and is_letter(tokens[blank - 1]) and is_letter(tokens[blank + 1]):
        forms.append(put(tokens, blank, "-"))
    return draw.choice(forms)


MUTATIONS: dict[str, Mutation] = {
    "operator": operator, "sign": sign, "exponent": exponent, "moved exponent": moved_exponent, "mark": mark,
    "index": index, "digit": digit, "exchanged": exchanged, "case": case, "letter": letter,
    "factorial": factorial, "unclosed": unclosed, "argument": argument, "plus minus": plus_minus,
    "interval end": interval_end, "order": order, "missing": missing, "another": another, "unit": unit,
    "relation": relation, "word": word,
}  # fmt: skip
