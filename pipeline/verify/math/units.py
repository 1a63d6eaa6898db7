"""Units of measure: what dimension a unit phrase has and how it converts.

A table of our own rather than pint (with flexparser and flexcache): pint reads 1,000 names, of which a, h, d
or C are years, Planck constants, days and coulombs where an answer has variables, and its import costs each
worker half a second; the table needs only what answers are written in.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

# dimension -> unit words and their size in its base unit; plurals and metric prefixes are found by rule
TABLE = {
    "length": "m meter metre 1, in inch 0.0254, ft foot feet 0.3048, yd yard 0.9144, mi mile 1609.344",
    "time": "s sec second 1, min minute 60, h hr hour 3600, day 86400, week 604800, "
    "month 2629800, year yr 31557600",
    "mass": "g gram 1, lb pound 453.59237, oz ounce 28.349523125, ton 907185, tonne 1000000",
    "volume": "l L liter litre 0.001",
    "speed": "mph 0.44704",
    "force": "N newton 1000",  # with the gram as the unit of mass
    "energy": "J joule 1000, cal calorie 4184, Wh 3600000, eV 1602176634e-25",
    "power": "W watt 1000",
    "pressure": "Pa pascal 1000, bar 1e8, atm 101325000",
    "frequency": "Hz hertz 1",
    "voltage": "V volt 1",
    "current": "A amp ampere 1",
    "resistance": "ohm Ω 1",
    "charge": "C coulomb 1",
    "capacity": "farad 1",
    "amount": "mol mole 1",
    "data": "bit 1, byte 8",
    "angle": "degree deg ° 1, arcminute 1/60, arcsecond 1/3600",
    "radian": "radian rad 1",
    "money": "dollar $ usd buck 1, cent ¢ penny pennies 0.01",
    "euro": "euro € eur 1",
    "sterling": "£ gbp 1",
    "yen": "円 yen jpy ¥ 1",
    "yuan": "元 yuan rmb cny 块 1",
    "rupee": "rupee ₹ rs inr 1",
    "percent": "% percent pct percentage 1",
    "celsius": "celsius °c 1",
    "fahrenheit": "fahrenheit °f 1",
    "kelvin": "kelvin K °k 1",
}
TEMPERATURES = frozenset({"celsius", "fahrenheit", "kelvin"})  # which are not converted
PREFIXES = {"kilo": 3, "mega": 6, "giga": 9, "tera": 12, "centi": -2, "milli": -3, "micro": -6, "nano": -9,
            "pico": -12, "deci": -1, "hecto": 2}  # fmt: skip
SHORT = {"k": 3, "M": 6, "G": 9, "T": 12, "c": -2, "m": -3, "μ": -6, "n": -9, "d": -1}  # p: 3 pm is a time
METRIC = (
    "meter", "metre", "gram", "second", "liter", "litre", "newton", "joule", "watt", "pascal", "hertz",
    "volt", "ampere", "amp", "ohm", "coulomb", "mole", "calorie", "byte", "bit", "farad",
)  # fmt: skip
METRIC_SHORT = ("m", "g", "s", "l", "L", "N", "J", "W", "Pa", "Hz", "V", "A", "mol", "cal", "Wh", "eV", "Ω")
BASE = {
    word: (dimension, Fraction(size))
    for dimension, line in TABLE.items()
    for *words, size in map(str.split, line.split(","))
    for word in words
}
KNOWN = BASE | {
    prefix + word: (BASE[word][0], BASE[word][1] * Fraction(10) ** power)
    for words, prefixes in ((METRIC, PREFIXES), (METRIC_SHORT, SHORT))
    for word in words
    for prefix, power in prefixes.items()
}
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cube": 3, "cu": 3}
BEHIND = re.compile(r"(\w+) (square|cube)d\b")  # "meters squared" are square meters
NAMED = {
    (("length", 2),): "area",
    (("length", 3),): "volume",
    (("length", 1), ("time", -1)): "speed",
    (("length", 1), ("mass", 1), ("time", -2)): "force",
    (("force", 1), ("length", 1)): "energy",
    (("power", 1), ("time", 1)): "energy",
    (("energy", 1), ("time", -1)): "power",
    (("force", 1), ("length", -2)): "pressure",
}
# single letters are units only where they stand in \text or when the other answer has no variables
LETTERS = frozenset("mghslNJWVAK")
PART = re.compile(r"(?:per\b|/)|([^\W\d_]+|[°%$€£¢])\s*(?:\^\s*\{?\s*(-?\d)\s*\}?)?")
WORDS = re.compile(r"[^\W\d_]+")


@dataclass(frozen=True, slots=True)
class Unit:
    """`dimension` is "" for words that are no known unit (apples); `size` converts to its base unit."""

    dimension: str
    size: Fraction
    words: str = ""


BARE = Unit("", Fraction(1))  # of a value without a unit


def read_unit(phrase: str) -> Unit:
    """The unit of "square centimeters", "cm^2", "miles per hour", "m/s", "degrees", "apples"."""
    words = " ".join(phrase.replace(".", " ").strip(" ()").split())
    if plain := known_unit(words):
        return Unit(*plain, words)
    dimensions: dict[str, int] = {}
    size, sign, power = Fraction(1), 1, 1
    for match in PART.finditer(BEHIND.sub(r"\2 \1", words)):
        word = match.group(1)
        if word is None:
            sign = -1
        elif word.casefold() in POWERS:
            power = POWERS[word.casefold()]
        elif (known := known_unit(word)) is not None:
            exponent = sign * (int(match.group(2)) if match.group(2) else power)
            dimensions[known[0]] = dimensions.get(known[0], 0) + exponent
            size *= known[1] ** exponent
            power = 1
        elif word in ("unit", "units") and (exponent := int(match.group(2) or power)) in (1, 2, 3):
            return Unit(NAMED.get((("length", exponent),), ""), Fraction(0), words)
        elif word.casefold() not in ("a", "an", "the", "of"):
            return Unit("", Fraction(1), words)
    return Unit(name_dimensions(dimensions), size, words)


def known_unit(word: str) -> tuple[str, Fraction] | None:
    for text in (word, word.casefold()) if len(word) > 1 else (word,):
        for candidate in (text, text.removesuffix("s"), text.removesuffix("es")):
            if candidate in KNOWN:
                return KNOWN[candidate]
    return None


def name_dimensions(dimensions: dict[str, int]) -> str:
    """A name for a product of powers: length, area, volume, speed, "length^1 time^-2", "" for none."""
    powers = tuple(sorted((dimension, exponent) for dimension, exponent in dimensions.items() if exponent))
    if len(powers) == 1 and powers[0][1] == 1:
        return powers[0][0]
    return NAMED.get(powers) or " ".join(f"{dimension}^{exponent}" for dimension, exponent in powers)


def same_thing(left: Unit, right: Unit) -> bool:
    """Whether two unknown units name the same: one has all words of the other ("red balls" are balls)."""
    first, second = (
        {word.casefold().removesuffix("s") for word in WORDS.findall(unit.words)} for unit in (left, right)
    )
    return first <= second or second <= first
