"""Units of measure: what dimension a unit phrase has and how it converts."""

import re
from dataclasses import dataclass
from fractions import Fraction

# dimension -> {unit word: size in the dimension's base unit}; plurals are found by rule
TABLE: dict[str, dict[str, Fraction | int]] = {
    "length": {
        "mm": Fraction(1, 1000), "millimeter": Fraction(1, 1000), "millimetre": Fraction(1, 1000),
        "cm": Fraction(1, 100), "centimeter": Fraction(1, 100), "centimetre": Fraction(1, 100),
        "dm": Fraction(1, 10), "decimeter": Fraction(1, 10),
        "m": 1, "meter": 1, "metre": 1, "km": 1000, "kilometer": 1000, "kilometre": 1000,
        "in": Fraction(254, 10000), "inch": Fraction(254, 10000), "ft": Fraction(3048, 10000),
        "foot": Fraction(3048, 10000), "feet": Fraction(3048, 10000), "yd": Fraction(9144, 10000),
        "yard": Fraction(9144, 10000), "mi": Fraction(1609344, 1000), "mile": Fraction(1609344, 1000),
    },
    "time": {
        "ms": Fraction(1, 1000), "millisecond": Fraction(1, 1000), "s": 1, "sec": 1, "second": 1,
        "min": 60, "minute": 60, "h": 3600, "hr": 3600, "hour": 3600, "day": 86400, "week": 604800,
        "month": 2629800, "year": 31557600, "yr": 31557600,
    },
    "mass": {
        "mg": Fraction(1, 1000), "milligram": Fraction(1, 1000), "g": 1, "gram": 1, "kg": 1000,
        "kilogram": 1000, "lb": Fraction(45359237, 100000), "pound": Fraction(45359237, 100000),
        "oz": Fraction(45359237, 1600000), "ounce": Fraction(45359237, 1600000),
        "ton": 907185, "tonne": 1000000,
    },
    "volume": {
        "ml": Fraction(1, 1000000), "milliliter": Fraction(1, 1000000), "millilitre": Fraction(1, 1000000),
        "cc": Fraction(1, 1000000), "l": Fraction(1, 1000), "liter": Fraction(1, 1000),
        "litre": Fraction(1, 1000), "gallon": Fraction(3785411784, 10**12),
        "quart": Fraction(946352946, 10**12),
        "pint": Fraction(473176473, 10**12), "cup": Fraction(2365882365, 10**13),
    },
    "area": {"acre": Fraction(40468564224, 10**7), "hectare": 10000},
    "speed": {
        "mph": Fraction(44704, 100000), "kmh": Fraction(5, 18), "kph": Fraction(5, 18),
        "kmph": Fraction(5, 18), "mps": 1,
    },
    "angle": {"degree": 1, "deg": 1, "°": 1, "arcminute": Fraction(1, 60)},
    "radian": {"radian": 1, "rad": 1},
    "money": {
        "dollar": 1, "$": 1, "usd": 1, "buck": 1, "cent": Fraction(1, 100), "¢": Fraction(1, 100),
        "penny": Fraction(1, 100), "pennies": Fraction(1, 100),
    },
    "euro": {"euro": 1, "€": 1, "eur": 1},
    "sterling": {"£": 1, "gbp": 1},
    "percent": {"%": 1, "percent": 1, "pct": 1, "percentage": 1},
    "temperature_c": {"celsius": 1, "°c": 1},
    "temperature_f": {"fahrenheit": 1, "°f": 1},
}  # fmt: skip
KNOWN = {
    word: (dimension, Fraction(size)) for dimension, units in TABLE.items() for word, size in units.items()
}
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cube": 3, "cu": 3}
BEHIND = re.compile(r"(\w+) (square|cube)d\b")  # "meters squared" are square meters
NAMED = {
    (("length", 2),): "area",
    (("length", 3),): "volume",
    (("length", 1), ("time", -1)): "speed",
}
# single letters are units only where they stand in \text or when the other answer has no variables
LETTERS = frozenset("mghsl")
PART = re.compile(r"(?:per\b|/)|([^\W\d_]+|[°%$€£¢])\s*(?:\^\s*\{?\s*(-?\d)\s*\}?)?")


@dataclass(frozen=True, slots=True)
class Unit:
    """`dimension` is "" for words that are no known unit (apples); `size` converts to its base unit."""

    dimension: str
    size: Fraction
    words: str = ""


def read_unit(phrase: str) -> Unit:
    """The unit of "square centimeters", "cm^2", "miles per hour", "m/s", "degrees", "apples"."""
    phrase = phrase.casefold().replace(".", " ").strip(" ()")
    words = " ".join(phrase.split())
    if plain := known_unit(words):
        return Unit(*plain, words)
    dimensions: dict[str, int] = {}
    size, sign, power = Fraction(1), 1, 1
    for match in PART.finditer(BEHIND.sub(r"\2 \1", words)):
        word = match.group(1)
        if word is None:
            sign = -1
        elif word in POWERS:
            power = POWERS[word]
        elif (known := known_unit(word)) is not None:
            exponent = sign * (int(match.group(2)) if match.group(2) else power)
            dimensions[known[0]] = dimensions.get(known[0], 0) + exponent
            size *= known[1] ** exponent
            power = 1
        elif word in ("unit", "units") and (exponent := int(match.group(2) or power)) in (1, 2, 3):
            return Unit(NAMED.get((("length", exponent),), ""), Fraction(0), words)
        elif word not in ("a", "an", "the", "of"):
            return Unit("", Fraction(1), words)
    return Unit(name_dimensions(dimensions), size, words)


def known_unit(word: str) -> tuple[str, Fraction] | None:
    for candidate in (word, word.removesuffix("s"), word.removesuffix("es")):
        if candidate in KNOWN:
            return KNOWN[candidate]
    return None


def name_dimensions(dimensions: dict[str, int]) -> str:
    """A name for a product of powers: length, area, volume, speed, "length^1 time^-2", "" for none."""
    powers = tuple(sorted((dimension, exponent) for dimension, exponent in dimensions.items() if exponent))
    if len(powers) == 1 and powers[0][1] == 1:
        return powers[0][0]
    return NAMED.get(powers) or " ".join(f"{dimension}^{exponent}" for dimension, exponent in powers)
