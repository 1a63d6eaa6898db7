"""Words that stand for mathematics: numbers, infinity, the empty set, all reals."""

import re

UNITS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SMALL = {word: value for value, word in enumerate(UNITS)} | {word: 10 * i for i, word in enumerate(TENS, 2)}
SMALL["a"] = 1
MULTIPLES = {"dozen": 12, "hundred": 100}
LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
DENOMINATORS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7,
                "eighth": 8, "ninth": 9, "tenth": 10}  # fmt: skip
# texts of one line have the same meaning
SYNONYMS = (
    ("no solution", "no solutions", "none", "empty set", "no real solution", "no real solutions",
     "there is no solution", "there are no solutions", "no real roots", "no solution exists"),
    ("undefined", "does not exist", "dne", "not defined", "it does not exist"),
    ("all real numbers", "all reals", "real numbers", "any real number"),
    ("infinitely many", "infinitely many solutions", "infinite solutions"),
    ("yes", "true"), ("no", "false"),
)  # fmt: skip
MEANING = {text: line[0] for line in SYNONYMS for text in line}
KNOWN_MEANINGS = frozenset(MEANING.values())


def number_in_words(text: str) -> tuple[int, int] | None:
    """(numerator, denominator) of "twenty-one", "three quarters", "one hundred and five"."""
    words = [word for word in re.split(r"[\s-]+", text.strip().casefold()) if word not in ("and", "")]
    if not words or len(words) > 12:
        return None
    bottom = DENOMINATORS.get(words[-1].removesuffix("s"), 1)
    value = cardinal(words[:-1] or ["one"] * (words == ["half"])) if bottom > 1 else cardinal(words)
    return None if value is None or value >= bottom > 1 else (value, bottom)


def cardinal(words: list[str]) -> int | None:
    """The integer that the words name; None if one of them is not a number word."""
    if not words:
        return None
    total = current = 0
    for word in words:
        if word in SMALL:
            current += SMALL[word]
        elif word in MULTIPLES:
            current = max(current, 1) * MULTIPLES[word]
        elif word in LARGE:
            total += max(current, 1) * LARGE[word]
            current = 0
        else:
            return None
    return total + current


MARKS = re.compile(r"[\s.,;:!?'\"*-]+")
LITTLE = frozenset("a an of is in to or no on it the at by as he she be are not for and".split())  # noqa: SIM905
FUNCTION_NAMES = frozenset("sin cos tan cot sec csc log exp mod max min lim gcd lcm det arg".split())  # noqa: SIM905


def is_wording(text: str) -> bool:
    """Whether a text is words alone: no digit, operator or command, nothing that could be a variable."""
    words = [word.casefold() for word in MARKS.split(text) if word]
    if " ".join(words) in MEANING:
        return True
    long = [word for word in words if word not in LITTLE]
    return bool(long) and all(
        word.isalpha() and len(word) > 2 and word not in FUNCTION_NAMES for word in long
    )


def meaning(text: str) -> str:
    """Casefolded words without end marks and markup, synonyms replaced by one of them."""
    text = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text.casefold())
    text = " ".join(text.split()).strip(" .,;:!?'\"*_$")
    text = re.sub(r"^(?:the answer is|it is|it's|it) ", "", text)
    text = re.sub(r"^(?:the|an|a) (?=\w)", "", text) if text not in MEANING else text
    return MEANING.get(text, text)
