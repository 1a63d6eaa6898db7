"""From the text of an answer to tokens: one spelling for Unicode, LaTeX spacing, fonts, numbers and phrases.

Every pattern is linear (no nested repeats), and the length of an answer is bounded before it gets here.
"""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from pipeline.verify.math.words import number_in_words

MAX_DIGITS = 4_000  # of one number; conversion is quadratic, and Python refuses more than 4,300

SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
VULGAR = {"½": "12", "⅓": "13", "⅔": "23", "¼": "14", "¾": "34", "⅕": "15", "⅖": "25", "⅗": "35", "⅘": "45",
          "⅙": "16", "⅚": "56", "⅛": "18", "⅜": "38", "⅝": "58", "⅞": "78"}  # fmt: skip
SYMBOLS = {
    **dict.fromkeys("‐‑‒–—−﹣－", "-"), **dict.fromkeys("×·⋅∙•✕∗", "*"), **dict.fromkeys("÷∕⁄", "/"),
    **dict.fromkeys("“”„″", '"'), **dict.fromkeys("‘’′`", "'"),
    "√": r"\sqrt ", "∛": r"\sqrt[3]", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ",
    "∖": r"\setminus ",
    "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "∈": r"\in ", "≡": r"\equiv ",
    "≈": r"\approx ", "≅": r"\approx ", "±": r"\pm ", "∓": r"\mp ", "∅": r"\emptyset ", "Ø": r"\emptyset ",
    "ℝ": r"\reals ", "ℤ": r"\integers ", "ℕ": r"\naturals ", "ℚ": r"\rationals ", "ℂ": r"\complexes ",
    "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "φ": r"\phi ",
    "ω": r"\omega ",
    "μ": r"\mu ", "ρ": r"\rho ", "σ": r"\sigma ", "Δ": r"\Delta ", "⟨": r"\langle ", "⟩": r"\rangle ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "∧": r"\land ", "∨": r"\lor ", "…": r"\ldots ",
    "∣": "|",
    "º": "°", "˚": "°", "∘": "°", "⇒": r"\to ", "→": r"\to ", "⟹": r"\to ",
}  # fmt: skip
TRANSLATE = str.maketrans(
    SYMBOLS
    | {mark: rf"\frac{{{pair[0]}}}{{{pair[1]}}}" for mark, pair in VULGAR.items()}
    | dict.fromkeys(
        "\u200b\u200c\u200d\u2060\ufeff\u00ad\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069", ""
    )
)
SUPER_RUN = re.compile(f"[{''.join(SUPERSCRIPTS)}]+")
SUB_RUN = re.compile(f"[{''.join(SUBSCRIPTS)}]+")

SPACING = re.compile(
    r"\\(?:left|right|middle|displaystyle|textstyle|limits|bigg?[lrm]?|Bigg?[lrm]?|small|large|Large|hspace\{[^{}]{0,20}\}"
    r"|rm|bf|it|cal|boldsymbol|phantom\{[^{}]{0,20}\}|nolimits|strut|null)(?![A-Za-z])"
)
SPACES = re.compile(
    r"\\(?:[,;:> \n]|quad(?![A-Za-z])|qquad(?![A-Za-z])|enspace|thinspace|newline|hfill)|~|\s+"
)
# \! pulls together, {,} is a comma without space: both only occur inside numbers that have separators
TIGHT = re.compile(r"\s?\\!\s?")
TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|texttt|textsf|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathtt|operatorname\*?|emph"
    r"|bold|pmb|bm|underline|mathcal)\s?\{([^{}]{0,500})\}"
)
RENAME = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\dbinom": r"\binom",
    r"\tbinom": r"\binom",
    r"\leq": r"\le", r"\leqslant": r"\le", r"\geq": r"\ge", r"\geqslant": r"\ge", r"\neq": r"\ne",
    r"\lt": "<", r"\gt": ">",
    r"\cdot": "*", r"\times": "*", r"\ast": "*", r"\div": "/", r"\lbrace": r"\{", r"\rbrace": r"\}",
    r"\lbrack": "[",
    r"\rbrack": "]", r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\mid": "|", r"\colon": ":",
    r"\varnothing": r"\emptyset",
    r"\R": r"\reals", r"\Z": r"\integers", r"\N": r"\naturals", r"\Q": r"\rationals", r"\C": r"\complexes",
    r"\infin": r"\infty", r"\bullet": "*", r"\degree": "°", r"\textdegree": "°", r"\varphi": r"\phi",
    r"\varepsilon": r"\epsilon", r"\vartheta": r"\theta", r"\backslash": r"\setminus",
    r"\smallsetminus": r"\setminus",
    r"\wedge": r"\land", r"\vee": r"\lor", r"\dots": r"\ldots", r"\cdots": r"\ldots", r"\simeq": r"\approx",
    r"\cong": r"\approx", r"\implies": r"\to", r"\Rightarrow": r"\to", r"\rightarrow": r"\to",
    r"\dollar": "$",
    r"\imath": "i", r"\lgroup": "(", r"\rgroup": ")", r"\lparen": "(", r"\rparen": ")",
}  # fmt: skip
COMMAND = re.compile(r"\\[A-Za-z]+")
BLACKBOARD = re.compile(r"\\(?:mathbb|mathbf|Bbb|mathds)\s?\{?\s?([RZNQC])\s?\}?(?![A-Za-z])")
SET_NAMES = {"R": "reals", "Z": "integers", "N": "naturals", "Q": "rationals", "C": "complexes"}
DEGREE = re.compile(r"\^\s?\{?\s?(?:\\circ|°|\\prime\\prime)\s?\}?(?![A-Za-z])|\\circ(?![A-Za-z])")
THIN_THOUSANDS = re.compile(r"(?<=\d)(?:\\[, ]|\{,\}|\{ \}|\\;|\\:|~)\s?(?=\d{3}(?!\d))")
SPACED_THOUSANDS = re.compile(r"^(\D{0,3}\d{1,3})((?: \d{3}){1,6})(?![\d ]*\d)(.*)$", re.DOTALL)
TIMES_TEN = re.compile(r"(?<=\d)\s?[xX]\s?(?=10\s?(?:\^|\*\*))")
DOLLAR = "\ue000"  # an escaped dollar sign, kept apart from those that delimit formulas
NEW_ROW = "\ue001"  # the double backslash between rows
ROW = re.compile(
    r"\\\\(?=[A-Za-z])"
)  # before a letter it is a command that was escaped twice, except in a matrix
REPEATING = re.compile(
    r"(?<![\d.])(\d{0,30})\.(\d{0,30})(?:\\overline\s?\{(\d{1,30})\}|\\dot\s?\{?(\d)\}?|\((\d{1,30})\))"
)
COMMA_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,]*\d)")


@lru_cache(maxsize=1024)
def clean(text: str) -> str:
    """One spelling for what looks the same. Words from \\text{...} come out between « and »."""
    text = text.replace("«", "").replace("»", "").replace(r"\$", DOLLAR)
    text = ROW.sub("\\\\" if "matrix" not in text and "array" not in text else NEW_ROW, text).replace(
        "\\\\", NEW_ROW
    )
    text = SUPER_RUN.sub(lambda run: "^{" + "".join(SUPERSCRIPTS[c] for c in run.group()) + "}", text)
    text = SUB_RUN.sub(lambda run: "_{" + "".join(SUBSCRIPTS[c] for c in run.group()) + "}", text)
    text = unicodedata.normalize("NFKC", text.translate(TRANSLATE))
    text = TIGHT.sub("", text)
    text = THIN_THOUSANDS.sub(",", text)
    text = BLACKBOARD.sub(lambda match: f"\\{SET_NAMES[match.group(1)]} ", text)
    text = SPACING.sub(" ", text)
    text = DEGREE.sub("°", text)
    text = COMMAND.sub(lambda match: RENAME.get(match.group(), match.group()), text)
    for _ in range(3):  # \textbf{\text{...}}
        text = TEXT.sub(flatten_text, text)
    text = REPEATING.sub(repeating_decimal, text)
    if text.count("$") != 1:  # one alone is a currency sign, otherwise they delimit formulas
        text = text.replace("$", " ")
    text = text.replace(DOLLAR, "$").replace(r"\%", "%").replace(r"\#", "#").replace(r"\&", "&")
    text = SPACES.sub(" ", text)
    text = TIMES_TEN.sub("*", text).strip()
    if match := SPACED_THOUSANDS.match(text):
        text = match.group(1) + match.group(2).replace(" ", "") + match.group(3)
    return text.replace(NEW_ROW, " \\\\ ")


def flatten_text(match: re.Match[str]) -> str:
    """Words are kept apart from variables; a single letter or something with digits is mathematics."""
    content = match.group(1).replace("\\", "").strip()
    mathematics = len(content) <= 1 or re.search(r"[\d$]", content) or number_in_words(content) is not None
    if mathematics or not re.search(r"[^\W\d_]", content):
        return f" {content} "
    return f" «{content.strip('«»')}» "


def repeating_decimal(match: re.Match[str]) -> str:
    """0.1\\overline{6} as (16-1)/90."""
    whole, fixed = match.group(1), match.group(2)
    period = next(group for group in match.groups()[2:] if group)
    top = int(whole + fixed + period) - int((whole + fixed) or 0)
    return f"({top}/{(10 ** len(period) - 1) * 10 ** len(fixed)})"


def plain(text: str) -> str:
    """The cleaned text as a person would read it aloud: no marks around words, no dollar signs."""
    return " ".join(text.replace("«", "").replace("»", "").replace("$", "").split())


@dataclass(frozen=True, slots=True)
class Token:
    """kind: number, letter (a variable), command, word (plain text), text (from \\text), symbol, end.
    `spaced`: white space stands before it."""

    kind: str
    text: str
    spaced: bool = False


TOKENS = re.compile(
    r"""(?P<space>\s+)
    |(?P<number>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,6}(?![\w.]))?)
    |(?P<command>\\[A-Za-z]+|\\[{}|\\])
    |(?P<text>«[^»]*»)
    |(?P<word>[^\W\d_]{2,})
    |(?P<letter>[^\W\d_])
    |(?P<symbol>\*\*|<=|>=|!=|=<|==|:=|\.\.\.|\.\.|->|=>|[-+*/^_=<>!|()\[\]{},;:%°$€£¢'"&?.])
    """,
    re.VERBOSE,
)
SYMBOL_NAMES = {
    "**": "^",
    "=<": "<=",
    "==": "=",
    ":=": "=",
    "...": r"\ldots",
    "..": r"\ldots",
    "=>": r"\to",
    "->": r"\to",
}


def tokenize(text: str) -> list[Token] | None:
    """None where a character has no meaning here."""
    tokens: list[Token] = []
    position, spaced = 0, False
    while position < len(text):
        match = TOKENS.match(text, position)
        if match is None:
            return None
        position = match.end()
        kind = match.lastgroup or ""
        if kind == "space":
            spaced = True
            continue
        content = match.group()
        if kind == "text":
            content = content[1:-1].strip()
        elif kind == "symbol" and content in SYMBOL_NAMES:
            content = SYMBOL_NAMES[content]
            kind = "command" if content.startswith("\\") else kind
        tokens.append(Token(kind, content, spaced))
        spaced = False
    tokens.append(Token("end", "", spaced))
    return tokens


def read_decimal(text: str) -> tuple[Fraction, int | None] | None:
    """The exact value of a decimal literal and the places it states; None for one that is too long."""
    mantissa, _, exponent = text.casefold().partition("e")
    if len(mantissa) > MAX_DIGITS or abs(int(exponent or 0)) > MAX_DIGITS:
        return None
    whole, point, places = mantissa.partition(".")
    value = Fraction(int(whole + places or 0), 10 ** len(places)) * Fraction(10) ** int(exponent or 0)
    if not point and not exponent:
        return value, None
    return value, len(places) - int(exponent or 0)


# words and brackets that stand for notation: "at least", "million", "for any integer k", ]0, 1[
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
        unmarked = " ".join(re.sub(r"[«»]", " ", text).split())
    for pattern, replacement in PHRASES:
        unmarked = pattern.sub(replacement, unmarked)
    return unmarked
