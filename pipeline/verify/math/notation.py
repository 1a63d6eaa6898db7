"""From the text of an answer to tokens: one spelling for Unicode, LaTeX spacing, fonts, numbers and phrases.

Every pattern is linear (no nested repeats), and the length of an answer is bounded before it gets here.
"""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from pipeline.verify.math.units import LETTERS, read_unit
from pipeline.verify.math.words import LARGE, MULTIPLES, number_in_words

MAX_DIGITS = 4_000  # of one number; conversion is quadratic, and Python refuses more than 4,300

SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n", strict=True))
SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
VULGAR = {"½": "12", "⅓": "13", "⅔": "23", "¼": "14", "¾": "34", "⅕": "15", "⅖": "25", "⅗": "35", "⅘": "45",
          "⅙": "16", "⅚": "56", "⅛": "18", "⅜": "38", "⅝": "58", "⅞": "78"}  # fmt: skip
SYMBOLS = {
    **dict.fromkeys("‐‑‒–—−﹣－", "-"), **dict.fromkeys("×·⋅∙•✕∗", "*"), **dict.fromkeys("÷∕⁄", "/"),
    **dict.fromkeys("“”„″", '"'), **dict.fromkeys("‘’′`", "'"), "√": r"\sqrt ", "∛": r"\sqrt[3]",
    "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∖": r"\setminus ", "≤": r"\le ",
    "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "∈": r"\in ", "≡": r"\equiv ", "≈": r"\approx ",
    "≅": r"\approx ", "±": r"\pm ", "∓": r"\mp ", "∅": r"\emptyset ", "Ø": r"\emptyset ", "ℝ": r"\reals ",
    "ℤ": r"\integers ", "ℕ": r"\naturals ", "ℚ": r"\rationals ", "ℂ": r"\complexes ", "θ": r"\theta ",
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "φ": r"\phi ", "ω": r"\omega ",
    "μ": r"\mu ", "ρ": r"\rho ", "σ": r"\sigma ", "Δ": r"\Delta ", "⟨": r"\langle ", "⟩": r"\rangle ",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "∧": r"\land ", "∨": r"\lor ",
    "…": r"\ldots ", "∣": "|", "∥": "|", "º": "°", "˚": "°", "∘": "°", "⇒": r"\to ", "→": r"\to ",
    "⟹": r"\to ", "∠": r"\angle ", "٫": ".", "٬": ",", "،": ",", "、": ", ", "，": ", ",
    **dict.fromkeys("∴✓✔✅", ""),
}  # fmt: skip
# marks of our own; nobody may write them
DOLLAR = "\ue000"  # an escaped dollar sign, kept apart from those that delimit formulas
REPEATED = "\ue002"  # between numerator and denominator of a decimal that repeats
NEW_ROW = "\ue001"  # the double backslash between rows
TRANSLATE = str.maketrans(
    SYMBOLS
    | {mark: rf"\frac{{{pair[0]}}}{{{pair[1]}}}" for mark, pair in VULGAR.items()}
    | dict.fromkeys(
        DOLLAR
        + NEW_ROW
        + REPEATED
        + "\u200b\u200c\u200d\u2060\ufeff\u00ad\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
        "",
    )
)
SUPER_RUN = re.compile(f"[{''.join(SUPERSCRIPTS)}]+")
SUB_RUN = re.compile(f"[{''.join(SUBSCRIPTS)}]+")

SPACING = re.compile(
    r"\\(?:left|right|middle|displaystyle|textstyle|limits|bigg?[lrm]?|Bigg?[lrm]?|small|large|Large|hspace\{[^{}]{0,20}\}"
    r"|rm|bf|it|cal|boldsymbol|phantom\{[^{}]{0,20}\}|nolimits|strut|null"
    r"|therefore|checkmark|(?:tag|label|color)\*?\s?\{[^{}]{0,40}\}|textcolor\s?\{[^{}]{0,40}\})(?![A-Za-z])"
)
SPACES = re.compile(
    r"\\(?:[,;:> \n()\[\]]|quad(?![A-Za-z])|qquad(?![A-Za-z])|enspace|thinspace|newline|hfill)|~|\s+"
)
# \! pulls together, {,} is a comma without space: both only occur inside numbers that have separators
TIGHT = re.compile(r"\s?\\!\s?")
TIGHT_THOUSANDS = re.compile(r"(?<=\d),\s?\\!\s?(?=\d{3}(?!\d))|(?<=\d)\{,\}(?=\d{3}(?!\d))")
TEXT = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|texttt|textsf|mbox|hbox|mathrm|mathbf|mathit|mathsf|mathtt|emph"
    r"|bold|pmb|bm|underline|mathcal)\s?\{((?:[^{}]|\{[^{}]{0,20}\}){0,500})\}"
)
RENAME = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\dbinom": r"\binom",
    r"\tbinom": r"\binom", r"\leq": r"\le", r"\leqslant": r"\le", r"\geq": r"\ge", r"\geqslant": r"\ge",
    r"\neq": r"\ne", r"\lt": "<", r"\gt": ">", r"\cdot": "*", r"\times": "*", r"\ast": "*", r"\div": "/",
    r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lbrack": "[", r"\lVert": "|", r"\rVert": "|", r"\rbrack": "]",
    r"\lvert": "|", r"\rvert": "|", r"\vert": "|", r"\mid": "|", r"\colon": ":",
    r"\varnothing": r"\emptyset", r"\R": r"\reals", r"\Z": r"\integers", r"\N": r"\naturals",
    r"\Q": r"\rationals", r"\C": r"\complexes", r"\infin": r"\infty", r"\bullet": "*", r"\degree": "°",
    r"\textdegree": "°", r"\varphi": r"\phi", r"\varepsilon": r"\epsilon", r"\vartheta": r"\theta",
    r"\backslash": r"\setminus", r"\smallsetminus": r"\setminus", r"\wedge": r"\land", r"\vee": r"\lor",
    r"\dots": r"\ldots", r"\cdots": r"\ldots", r"\simeq": r"\approx", r"\cong": r"\approx",
    r"\implies": r"\to", r"\Rightarrow": r"\to", r"\rightarrow": r"\to", r"\dollar": "$", r"\imath": "i",
    r"\lgroup": "(", r"\rgroup": ")", r"\lparen": "(", r"\rparen": ")",
}  # fmt: skip
COMMAND = re.compile(r"\\[A-Za-z]+")
BLACKBOARD = re.compile(r"\\(?:mathbb|mathbf|Bbb|mathds)\s?\{?\s?([RZNQC])\s?\}?(?![A-Za-z])")
SET_NAMES = {"R": "reals", "Z": "integers", "N": "naturals", "Q": "rationals", "C": "complexes"}
DEGREE = re.compile(r"\^\s?\{?\s?(?:\\circ|°)\s?\}?(?![A-Za-z])|\\circ(?![A-Za-z])")
PRIMES = re.compile(r"\^\s?\{?\s?((?:\\prime\s?)+)\}?(?![A-Za-z])")
OPERATOR = re.compile(
    r"\\(?:operatorname\*?|mathrm|text)\s?\{\s?(cis|lcm|arcsin|arccos|arctan|arccot|sinh|cosh|tanh|ln|log|sgn|det)\s?\}"
)
UNIT_POWERS = re.compile(r"^[A-Za-zμΩ]{1,3}(?:\^\{?-?\d\}?)?(?:[ /*]+[A-Za-zμΩ]{1,3}(?:\^\{?-?\d\}?)?){0,3}$")
GAP = re.compile(r"(?:\\[,;: ]|~|\s)+$")
MONEY = re.compile(r"([$€£¥₹]) ?(\d[\d.,]*) ?(k|K|M|m|mn|B|b|bn)(?![A-Za-z^/])")
POWERS = {"k": 3, "m": 6, "b": 9}
THIN_THOUSANDS = re.compile(r"(?<=\d)(?:\\[, ]|\{,\}|\{ \}|\\;|\\:|~)\s?(?=\d{3}(?!\d))")
VECTOR = re.compile(r"\\(?:vec|mathbf|boldsymbol|overrightarrow|hat)(?![A-Za-z])")
CROSS = re.compile(r"×|\\times(?![A-Za-z])")
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
    written = text.isascii()
    if not written:
        text = without_scripts(text)
    if "\\" in text:
        text = without_commands(text)
    if "." in text:
        text = REPEATING.sub(repeating_decimal, text)
    if text.count("$") != 1:  # one alone is a currency sign, otherwise they delimit formulas
        text = text.replace("$", " ")
    text = text.replace(DOLLAR, "$")
    text = SPACES.sub(" ", text)
    text = text.strip()
    text = MONEY.sub(lambda match: f"{match[1]}{match[2]}*10^{POWERS[match[3][0].casefold()]}", text)
    return text.replace(NEW_ROW, " \\\\ ")


def without_scripts(text: str) -> str:
    """Digits of other scripts, and characters that stand for commands."""
    text = text.replace("«", "").replace("»", "")
    if VECTOR.search(text):
        text = text.replace("×", r"\times ")
    text = SUPER_RUN.sub(lambda run: "^{" + "".join(SUPERSCRIPTS[c] for c in run.group()) + "}", text)
    text = SUB_RUN.sub(lambda run: "_{" + "".join(SUBSCRIPTS[c] for c in run.group()) + "}", text)
    return unicodedata.normalize("NFKC", text.translate(TRANSLATE))


def without_commands(text: str) -> str:
    """Without those that only set the type, the others under one name."""
    text = text.replace(r"\$", DOLLAR)
    if "\\begin" not in text:
        text = ROW.sub("\\\\", text)
    text = text.replace("\\\\", NEW_ROW).replace(r"\|", "|")
    if VECTOR.search(text):
        text = CROSS.sub(r"\\crossproduct ", text)  # which no reader knows
    text = TIGHT_THOUSANDS.sub("", text)
    text = TIGHT.sub("", text)
    text = THIN_THOUSANDS.sub(",", text)
    text = BLACKBOARD.sub(lambda match: f"\\{SET_NAMES[match.group(1)]} ", text)
    text = SPACING.sub(" ", text)
    text = DEGREE.sub("°", text)
    text = PRIMES.sub(lambda match: "'" * match.group(1).count("prime"), text)
    text = OPERATOR.sub(r"\\\1 ", text)
    text = COMMAND.sub(lambda match: RENAME.get(match.group(), match.group()), text)
    for _ in range(3):  # \textbf{\text{...}}
        text, found = TEXT.subn(flatten_text, text)
        if not found:
            break
    return text.replace(r"\%", "%").replace(r"\#", "#").replace(r"\&", "&")


def flatten_text(match: re.Match[str]) -> str:
    """Words are kept apart from variables; a single letter or something with digits is mathematics."""
    content = re.sub(r"\\(?:[,;: ]|quad)|~", " ", match.group(1)).replace("\\", "").strip()
    mathematics = len(content) <= 1 or re.search(r"[\d$]", content) or number_in_words(content) is not None
    before = GAP.sub("", match.string[: match.start()])[-1:]
    measured = content in LETTERS or (UNIT_POWERS.match(content) and read_unit(content).dimension)
    if measured and before and before in "0123456789)}*»":
        return f" «{content}» "
    if mathematics or not re.search(r"[^\W\d_]", content):
        return f" {content} "
    return f" «{content.strip('«»')}» "


def repeating_decimal(match: re.Match[str]) -> str:
    """0.1\\overline{6} as (16-1)/90."""
    whole, fixed = match.group(1), match.group(2)
    period = next(group for group in match.groups()[2:] if group)
    top = int(whole + fixed + period) - int((whole + fixed) or 0)
    return f"{top}{REPEATED}{(10 ** len(period) - 1) * 10 ** len(fixed)}"


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
    |(?P<number>\d+\ue002\d+|(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,6}(?![\w.]))?)
    |(?P<command>\\[A-Za-z]+|\\[{}|\\])
    |(?P<text>«[^»]*»)
    |(?P<word>[^\W\d_]{2,}|[^\W\d_\x00-\u03ff])
    |(?P<letter>[^\W\d_])
    |(?P<symbol>\*\*|<=|>=|!=|=<|==|:=|\.\.\.|\.\.|->|=>|[-+*/^_=<>!|()\[\]{},;:%°$€£¥₹¢'"&?.])
    """,
    re.VERBOSE,
)
SYMBOL_NAMES = {
    "**": "^", "=<": "<=", "==": "=", ":=": "=", "...": r"\ldots", "..": r"\ldots", "=>": r"\to",
    "->": r"\to",
}  # fmt: skip


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
    if REPEATED in text:
        top, _, bottom = text.partition(REPEATED)
        return Fraction(int(top), int(bottom)), None
    mantissa, _, exponent = text.casefold().partition("e")
    if len(mantissa) > MAX_DIGITS or abs(int(exponent or 0)) > MAX_DIGITS:
        return None
    whole, point, places = mantissa.partition(".")
    value = Fraction(int(whole + places or 0), 10 ** len(places)) if point else Fraction(int(whole or 0))
    if exponent:
        return value * Fraction(10) ** int(exponent), len(places) - int(exponent)
    return value, len(places) if point else None


# words and brackets that stand for notation: "at least", "million", "for any integer k", ]0, 1[
MARKED = re.compile(r"[\]<]|\\(?:mu|Omega)|(?:st|nd|rd|th)\b|\dm| m")  # what BRACKETS change
WORD = re.compile("[A-Za-z]{3}")
WORDED = re.compile(r"«[^»]*\b(?:infinity|percent|degree|for|where|real|million|billion|thousand)\b")
BRACKETS = (  # ]0, 1[ is (0, 1)
    (re.compile(r"\]([^\[\]()]+[,;][^\[\]()]+)\["), r"(\1)"),
    (re.compile(r"\[([^\[\]()]+[,;][^\[\]()]+)\["), r"[\1)"),
    (re.compile(r"^\]([^\[\]()]+[,;][^\[\]()]+)\]"), r"(\1]"),
    (re.compile(r"^<([^<>=]+,[^<>=]+)>$"), r"\\langle \1 \\rangle"),
    (re.compile(r"(?<=\d) ?\\Omega$"), " «Ω»"),
    (re.compile(r"(?<=\d) ?\^? ?\{? ?«?(?:st|nd|rd|th)»?\b ?\}?$"), ""),
    (re.compile(r"(?<=\d) ?\\mu ?«?([mgsAFL])»?$"), r" «μ\1»"),
    (re.compile(r"(?<=\d) (m(?:/s(?:\^\{?2\}?)?|\^\{?[23]\}?))$"), r" «\1»"),
)
SCALE_WORDS = re.compile(r"(?<=\d) ?(dozen|hundred|thousand|million|billion|trillion)\b", re.IGNORECASE)
SCALES = LARGE | MULTIPLES
PHRASES = (
    (re.compile(r"(?<=\d) ?squared\b"), "^2"), (re.compile(r"(?<=\d) ?cubed\b"), "^3"),
    (re.compile(r"^(?:USD|US\$|EUR|Rs\.?) ?(?=\d)", re.I), "$"),
    (re.compile(r"\b(?:positive|plus) infinity\b", re.I), r" \\infty "),
    (re.compile(r"\b(?:negative|minus) infinity\b", re.I), r" -\\infty "),
    (re.compile(r"^(?:negative|minus) (?=\w)", re.I), "-"),
    (re.compile(r"\b(?:percentage points?|per cent|percentage|percent)\b", re.I), "%"),
    (re.compile(r"\bdegrees (celsius|fahrenheit)\b", re.I), r" «°\1» "),
    (re.compile(r"\bdegrees?\b|\bdeg\b(?!\.\w)", re.I), "°"),
    (re.compile(r"^(?:all |any |every |the set of (?:all )?)?(?:real numbers?|reals)$", re.I), r"\\reals"),
    (re.compile(r",? ?\b(?:where|with|for(?: any| all| some| every)?) (?=[a-zA-Z] ?\\in )", re.I), ", "),
)  # fmt: skip


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


@lru_cache(maxsize=4096)
def spelled(text: str) -> str:
    """An answer as it is compared: in one spelling, without marks around it."""
    return strip_marks(clean(text))


def rephrase(text: str) -> str:
    """Words that stand for operators and sets become those."""
    if MARKED.search(text):
        for pattern, replacement in BRACKETS:
            text = pattern.sub(replacement, text)
    if WORD.search(text) is None:
        return text
    unmarked = text
    if WORDED.search(text):
        unmarked = " ".join(re.sub(r"[«»]", " ", text).split())
    unmarked = SCALE_WORDS.sub(lambda word: f"*{SCALES[word[1].casefold()]}", unmarked)
    for phrase, meant in PHRASES:
        unmarked = phrase.sub(meant, unmarked)
    return unmarked
