"""Words and brackets that stand for notation: "at least", "million", "for any integer k", ]0, 1[."""

import re

BRACKETS = (  # ]0, 1[ is (0, 1)
    (re.compile(r"\]([^\[\]()]+[,;][^\[\]()]+)\["), r"(\1)"),
    (re.compile(r"\[([^\[\]()]+[,;][^\[\]()]+)\["), r"[\1)"),
    (re.compile(r"^\]([^\[\]()]+[,;][^\[\]()]+)\]"), r"(\1]"),
    (re.compile(r"^<([^<>=]+,[^<>=]+)>$"), r"\\langle \1 \\rangle"),
    # the transpose of a row is the column that a tuple may stand for
    (re.compile(r"(?<=[)\]])\s?\^\s?\{?\s?(?:T|\\top)\s?\}?$"), ""),
    (
        re.compile(
            r"^(\\begin\{[a-z]{1,7}atrix\}(?:(?!\\\\|matrix).){1,300}\\end\{[a-z]{1,7}atrix\})"
            r"\s?\^\s?\{?\s?(?:T|\\top)\s?\}?$"
        ),
        r"\1",
    ),
    (re.compile(r"(?<=\d) (m(?:/s(?:\^\{?2\}?)?|\^\{?[23]\}?))$"), r" «\1»"),
)
BASED = re.compile(
    r"^(-?[0-9A-Z]{1,200}(?:\.[0-9A-Z]{1,200})?)\s?"
    r"(?:_\s?\{?\s?(\w{1,9})\s?\}?|\(?\s?(?:in )?base[ -](\w{1,9})\)?)$"
)
PREFIXED = re.compile(r"^-?0(?:[xX][0-9a-fA-F]{1,200}|[bB][01]{1,200}|[oO][0-7]{1,200})$")
PREFIXES = {"0x": 16, "0b": 2, "0o": 8}
BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
         "eleven": 11, "twelve": 12, "sixteen": 16}  # fmt: skip
PHRASES = (
    (re.compile(r"(?<=\d) ?\bthousand\b", re.I), "*10^3"),
    (re.compile(r"(?<=\d) ?\bmillion\b", re.I), "*10^6"),
    (re.compile(r"(?<=\d) ?\bbillion\b", re.I), "*10^9"),
    (re.compile(r"(?<=\d) ?\btrillion\b", re.I), "*10^{12}"),
    (re.compile(r"\b(?:is )?(?:greater|more|larger) than or equal to\b"
                r"|\b(?:is )?at least\b|\bno less than\b", re.I),
     r" \\ge "),
    (re.compile(r"\b(?:is )?(?:less|smaller|fewer) than or equal to\b"
                r"|\b(?:is )?at most\b|\bno more than\b", re.I),
     r" \\le "),
    (re.compile(r"\b(?:is )?(?:greater|more|larger) than\b", re.I), " > "),
    (re.compile(r"\b(?:is )?(?:less|smaller|fewer) than\b", re.I), " < "),
    (re.compile(r"\b(?:is )?not equal to\b|\bdoes not equal\b", re.I), r" \\ne "),
    (re.compile(r"^(?:USD|US\$|EUR|Rs\.?) ?(?=\d)", re.I), "$"),
    (re.compile(r"\b(?:positive|plus) infinity\b", re.I), r" \\infty "),
    (re.compile(r"\b(?:negative|minus) infinity\b", re.I), r" -\\infty "),
    (re.compile(r"^(?:negative|minus) (?=\w)", re.I), "-"),
    (re.compile(r"\bpercentage points?\b|\bper cent\b|\bpercentage\b|\bpercent\b", re.I), "%"),
    (re.compile(r"\bdegrees (celsius|fahrenheit)\b", re.I), r" «°\1» "),
    (re.compile(r"\bdegrees?\b|\bdeg\b(?!\.\w)", re.I), "°"),
    (re.compile(r"^(?:all |the set of all )?(?:real (?:numbers|values)|reals)(?: of)?(?: x)?(?:,)? "
                r"(?:except|but|other than|excluding)(?: for)?(?: x ?=)? (.{1,80})$", re.I),
     r"\\reals \\setminus \\{\1\\}"),
    (re.compile(r"^(?:all |any |every |the set of (?:all )?)?(?:real numbers?|reals)$", re.I), r"\\reals"),
    (re.compile(r",? ?(?:\bwhere\b|\bwith\b|\bfor(?: any| all| some| every)?(?: integers?)?\b)? ?"
                r"\b([a-zA-Z]) (?:is|are|being) (?:an |any |some )?integers?$",
                re.I), r", \1 \\in \\integers"),
    (re.compile(r",? ?\bfor (?:any |all |some |every |an )?integers? ([a-zA-Z])$", re.I),
     r", \1 \\in \\integers"),
    (re.compile(r",? ?\b(?:where|with|for(?: any| all| some| every)?) (?=[a-zA-Z] ?\\in )", re.I), ", "),
)  # fmt: skip


def read_based(text: str) -> tuple[str, int] | None:
    """(digits, base) of 506_7, 506 base 7, 506_{\\text{seven}}; 0x1A keeps its prefix, else 0x10 were 10."""
    if PREFIXED.match(text):
        prefix, digits = text.removeprefix("-")[:2].lower(), text.removeprefix("-")[2:].upper()
        return ("-" if text.startswith("-") else "") + prefix + digits, PREFIXES[prefix]
    match = BASED.match(text)
    if match is None:
        return None
    name = match.group(2) or match.group(3)
    base = int(name) if name.isdigit() else BASES.get(name.casefold(), 0)
    return (match.group(1), base) if base >= 2 else None


def join_thousands(match: re.Match[str]) -> str:
    """Only outside brackets: (1,234) is a pair."""
    before = match.string[: match.start()]
    if before.startswith("{"):
        return match.group()
    depth = before.count("(") + before.count("[") + before.count(r"\{")
    depth -= before.count(")") + before.count("]") + before.count(r"\}")
    return match.group().replace(",", "") if depth <= 0 else match.group()


def strip_marks(text: str) -> str:
    """Without markdown, quotes and a closing full stop."""
    text = text.strip().strip('*`"').strip()
    if text.endswith(".") and not text.endswith((".m.", "..")):
        text = text[:-1].rstrip()
    return text.removesuffix(",").strip()


def rephrase(text: str) -> str:
    """Words that stand for operators and sets become those."""
    for pattern, replacement in BRACKETS:
        text = pattern.sub(replacement, text)
    if re.search(r"[A-Za-z]{3}", text) is None:
        return text
    unmarked = text
    if re.search(
        r"«[^»]*\b(?:than|least|most|infinity|equal|percent|degree|for|where|is|real|and|or|mod)\b",
        text,
    ):
        unmarked = re.sub(r"[«»]", " ", text)
        unmarked = " ".join(unmarked.split())
    for pattern, replacement in PHRASES:
        unmarked = pattern.sub(replacement, unmarked)
    return unmarked
