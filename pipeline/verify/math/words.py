"""Words that stand for mathematics: numbers, ordinals, infinity, the empty set, all reals."""

import re

UNITS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SMALL = {word: value for value, word in enumerate(UNITS)} | {word: 10 * i for i, word in enumerate(TENS, 2)}
LARGE = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
ORDINALS = {
    "first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "eleventh": 11, "twelfth": 12, "thirteenth": 13, "fourteenth": 14,
    "fifteenth": 15, "sixteenth": 16, "seventeenth": 17, "eighteenth": 18, "nineteenth": 19,
    "twentieth": 20, "thirtieth": 30, "fortieth": 40, "fiftieth": 50, "sixtieth": 60, "seventieth": 70,
    "eightieth": 80, "ninetieth": 90, "hundredth": 100,
}  # fmt: skip
DENOMINATORS = {word: value for word, value in ORDINALS.items() if value > 2} | {
    "half": 2,
    "quarter": 4,
}
# texts of one line have the same meaning
SYNONYMS = (
    ("no solution", "no solutions", "none", "empty set", "the empty set", "no real solution",
    "no real solutions",
     "there is no solution", "there are no solutions", "no real roots", "no roots", "null set",
     "no solution exists",
     "no solutions exist", "no such solution", "has no solution", "there are no real solutions"),
    ("undefined", "does not exist", "dne", "not defined", "indeterminate", "doesn't exist",
    "it does not exist"),
    ("all real numbers", "all reals", "every real number", "any real number", "the set of all real numbers",
     "the real numbers", "real numbers", "all real numbers x", "all real values", "all real values of x"),
    ("infinitely many", "infinitely many solutions", "infinite solutions", "an infinite number",
     "infinite number of solutions", "infinite number"),
    ("yes", "true"),
    ("no", "false"),
)  # fmt: skip
MEANING = {text: line[0] for line in SYNONYMS for text in line}
ORDINAL = re.compile(r"^(\d[\d,]*)\s?\^?\s?\{?\s?(?:st|nd|rd|th)\b")


def number_in_words(text: str) -> tuple[int, int] | None:
    """(numerator, denominator) of "twenty-one", "three quarters", "one hundred and five", "fifth"."""
    words = [word for word in re.split(r"[\s-]+", text.strip().casefold()) if word not in ("and", "the", "")]
    if not words or len(words) > 12:
        return None
    if len(words) > 1 and words[-1].removesuffix("s") in DENOMINATORS:
        top = cardinal(words[:-1])
        bottom = DENOMINATORS[words[-1].removesuffix("s")]
        return (top, bottom) if top is not None and top < bottom else None
    if words == ["half"]:
        return (1, 2)
    if words[-1] in ORDINALS:
        head = cardinal(words[:-1]) if len(words) > 1 else 0
        return None if head is None else (head + ORDINALS[words[-1]], 1)
    value = cardinal(words)
    return None if value is None else (value, 1)


def cardinal(words: list[str]) -> int | None:
    """The integer that the words name; None if one of them is not a number word."""
    total = current = 0
    for word in words:
        if word in SMALL:
            current += SMALL[word]
        elif word == "a":
            current += 1
        elif word == "hundred":
            current = max(current, 1) * 100
        elif word in LARGE:
            total += max(current, 1) * LARGE[word]
            current = 0
        elif word == "dozen":
            current = max(current, 1) * 12
        else:
            return None
    return total + current


def meaning(text: str) -> str:
    """Casefolded words without end marks and markup, synonyms replaced by one of them."""
    text = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text.casefold())
    text = " ".join(text.split()).strip(" .,;:!?'\"*_$")
    text = re.sub(r"^(?:the answer is|it is|it's|it) ", "", text)
    text = re.sub(r"^(?:the|an|a) (?=\w)", "", text) if text not in MEANING else text
    return MEANING.get(text, text)
