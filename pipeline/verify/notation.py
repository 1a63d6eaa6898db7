"""From the text of an answer to tokens: Unicode, LaTeX spacing, fonts and number formats are made one.

Every pattern is linear (no nested repeats), and the length of an answer is bounded before it gets here.
"""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

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
    r"\imath": "i", r"\lgroup": "(", r"\rgroup": ")", r"\lparen": "(", r"\rparen": ")", r"\tan": r"\tan",
}  # fmt: skip
COMMAND = re.compile(r"\\[A-Za-z]+")
BLACKBOARD = re.compile(r"\\(?:mathbb|mathbf|Bbb|mathds)\s?\{?\s?([RZNQC])\s?\}?(?![A-Za-z])")
SET_NAMES = {
    "R": r"\reals ",
    "Z": r"\integers ",
    "N": r"\naturals ",
    "Q": r"\rationals ",
    "C": r"\complexes ",
}
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
    text = BLACKBOARD.sub(lambda match: SET_NAMES[match.group(1)], text)
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
    if len(content) <= 1 or any(character.isdigit() for character in content) or "$" in content:
        return f" {content} "
    return f" «{content.strip('«»')}» " if re.search(r"[^\W\d_]", content) else f" {content} "


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
