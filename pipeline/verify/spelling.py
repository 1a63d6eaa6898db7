"""Numbers as other scripts and countries write them, and marks around an answer that are not a part of it.

`respell` brings an answer to what a reader of English LaTeX expects. What has two meanings (1.234, 3,5) is
read by the gold's own form, or left as it is.
"""

import re
import unicodedata
from decimal import Decimal

# what `respell` could change
UNUSUAL = re.compile(
    r"[^\x00-\x7f]|\\(?:tag|color|textcolor|colorbox|checkmark|therefore|because|blacksquare|bigstar|qed|star|begin)"
    r"|^(?:=>|\\Rightarrow|\\implies)|['\"`_]|\d \d{3}|\d[.,]\d|\d\s?[hH]\s?\d"
    r"|[.,;]\s{0,3}(?:\$|\\[\])])|(?i:lakh|crore)"
)
DECORATION = re.compile(
    r"^(?:=>|\\Rightarrow(?![A-Za-z])|\\implies(?![A-Za-z])|⇒|→)"
    r"|\\tag\*?\s?\{[^{}]{0,40}\}|\\color\s?\{[^{}]{0,40}\}|\\(?:checkmark|therefore|because|blacksquare|bigstar|qed|star)"
    r"(?![A-Za-z])|[✅✓✔☑️★🎉∴∵]"
)
COLOURED = re.compile(r"\\(?:textcolor|colorbox)\s?\{[^{}]{0,40}\}\s?(?=\{)")
QUOTED = re.compile(
    r"^(?:\"([^\"]{1,200})\"|'([^']{1,200})'|“([^”]{1,200})”|`([^`]{1,200})`|«([^»]{1,200})»"
    r"|「([^」]{1,200})」)$"
)
PUNCTUATION = str.maketrans("٫，．：％（）－＝／＋", ".,.:%()-=/+", "٬")
SCALES = dict.fromkeys(["lakh", "lakhs"], 10**5) | dict.fromkeys(["crore", "crores"], 10**7)
SCALES |= dict.fromkeys("万萬만", 10**4) | dict.fromkeys("亿億억", 10**8)
SCALED = re.compile(
    r"(?<![\d.,])(\d{1,9}(?:,\d{3})*(?:\.\d{1,9})?)\s?(lakhs?\b|crores?\b|[万萬만亿億억])(?!\d)",
    re.IGNORECASE,
)
EUROPEAN = re.compile(r"(?<![\d.,])(\d{1,3}(?:[. \u00a0\u202f]\d{3})+),(\d+)(?![\d.,]*\d)")
DOTTED = re.compile(r"(?<![\d.,])\d{1,3}(?:\.\d{3}){2,}(?![\d.,]*\d)")
MARKED = re.compile(r"(?<![\d.,'’_])\d{1,3}(?:(?:_\d{3})+|(?:['’]\d{3})+|(?: \d{3})+)(?![\d'’_/ ])")
INDIAN = re.compile(r"(?<![\d.,])\d{1,2}(?:,\d{2})+,\d{3}(?![\d,])")
DECIMAL_COMMA = re.compile(r"(?<![\d.,])(\d+),(?=\d{1,2}(?!\d)|\d{4,}(?!\d))(?![\d]*,)")
PLAIN_NUMBER = re.compile(r"^\W{0,4}(\d[\d,]*)(\.\d+)?\W{0,4}(?:\\?[A-Za-z][^\d]{0,40})?$")
CJK = r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]"
ENDING = re.compile(
    r"\s?(?:です|でした|である|だ|となります|となる|になります|になる|になった"
    r"|입니다|이다|이에요|예요|이 된다|了|है)?[。．.।]?$"
)
TOTAL = re.compile(
    r"^(?:一共|总共|總共|共计|共|合計|총|모두)?\s?有?\s?(?=[\d零一二三四五六七八九十百千万两])"
)
COUNTED = re.compile(
    r"^([-−]?[\d.,/]+%?|[零〇一二三四五六七八九十百千万亿億两兩]{1,20}(?:分之[一二三四五六七八九十百千]{1,9})?)"
    rf"\s?({CJK}{{0,8}})$"
)
# 一百二 is 120 to a speaker and 102 by its signs
SPOKEN_NUMERAL = re.compile(r"[百千万萬亿億][一二三四五六七八九两兩](?:$|分)")
END_MARK = re.compile(r"[.,;]\s{0,3}(\$\$?|\\[\])])$")
LINES = re.compile(
    r"^\$*\s*\\begin\{(aligned|align\*?|cases|gathered|array)\}(?:\{[lcr| ]*\})?(.{1,2000}?)"
    r"\\end\{\1\}[.\s]*\$*$",
    re.DOTALL,
)
CURRENCY = re.compile(r"[₹¥￥£€₩₽]")
MONEY = re.compile(
    r"[₹¥￥£€₩₽]|\\\$|^\$\d|(?i:dollar|euro|pound|yen|yuan|rupee|rs\b|usd|eur|cents?\b)|[元円원]"
)
CLOCK = re.compile(
    r"(?<![\d:])(\d{1,2})(?:\s?[hH]\s?|\s?[点點时時시]\s?|\.(?=\d\d\s?Uhr))(\d\d)\s?(?:分|분|Uhr|min)?(?![\d:])"
)
# counting words say nothing that the question does not say; units say it
COUNTERS = frozenset(
    "个個名人位只隻条條张張本支枝辆輛件颗顆粒块塊棵朵头頭匹次回遍种種套双组袋箱盒瓶杯道题元圆円つ枚台冊通岁歳天日年页間"
    "개명권원장대살번"
) | {"마리", "가지", "자루", "그루"}
UNITS = {
    "毫米": "mm", "厘米": "cm", "公分": "cm", "分米": "dm", "米": "m", "千米": "km", "公里": "km",
    "平方厘米": "cm^2", "平方米": "m^2", "平方公里": "km^2", "立方厘米": "cm^3", "立方米": "m^3",
    "克": "g", "千克": "kg", "公斤": "kg", "毫升": "mL", "升": "L", "度": "degrees",
    "秒": "seconds", "分": "minutes", "分钟": "minutes", "小时": "hours", "分間": "minutes", "時間": "hours",
    "초": "seconds", "분": "minutes", "시간": "hours",
    "メートル": "m", "センチ": "cm", "미터": "m",
}  # fmt: skip
DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}
POWERS = {"十": 10, "百": 100, "千": 1000}


def respell(text: str, gold: str) -> str:
    """An answer without decoration, its numbers in ASCII digits, with a point and without grouping."""
    if UNUSUAL.search(text) is None:
        return text
    text = QUOTED.sub(
        lambda quoted: quoted.group(quoted.lastindex or 0), COLOURED.sub("", DECORATION.sub("", text).strip())
    )
    text = system_as_list(END_MARK.sub(r"\1", text))
    text = SCALED.sub(scaled, text)
    if not text.isascii():
        text = ascii_numbers(text, gold)
    if ":" in gold:
        text = CLOCK.sub(r"\1:\2", text)
    text = EUROPEAN.sub(lambda number: re.sub(r"[.\s]", "", number.group(1)) + "." + number.group(2), text)
    text = DOTTED.sub(lambda number: number.group().replace(".", ""), text)
    text = MARKED.sub(lambda number: re.sub("['’_ ]", "", number.group()), text)
    if plain := PLAIN_NUMBER.match(gold):
        text = INDIAN.sub(lambda number: number.group().replace(",", ""), text)
        if plain.group(2):
            text = DECIMAL_COMMA.sub(r"\1.", text)
    return text


def ascii_numbers(text: str, gold: str) -> str:
    """Digits of other scripts and Chinese numerals as ASCII digits, without counting words behind them."""
    text = "".join(
        str(unicodedata.digit(one)) if one.isdecimal() else one for one in text.translate(PUNCTUATION)
    )
    if re.search(CJK, text):
        text = TOTAL.sub("", ENDING.sub("", text))
        counted = COUNTED.match(text)
        if counted and not is_eastern(gold) and not SPOKEN_NUMERAL.search(counted.group(1)):
            number, word = counted.groups()
            value = eastern_number(number)
            if word in UNITS:
                text = f"{value} {UNITS[word]}"
            elif not word or word[0] in COUNTERS or word[:2] in COUNTERS:
                text = value
    return text if MONEY.search(gold) else CURRENCY.sub("", text)


def scaled(number: re.Match[str]) -> str:
    """2.5 lakh as 250000."""
    value = Decimal(number.group(1).replace(",", "")) * SCALES[number.group(2).casefold()]
    return f"{value.normalize():f}"


def is_eastern(text: str) -> bool:
    return re.search(CJK, text) is not None


def system_as_list(text: str) -> str:
    """Equations below each other, in aligned or cases, as a list of equations; anything else as it is."""
    found = LINES.match(text.strip()) if "\\begin" in text else None
    if found is None:
        return text
    lines = [
        line.replace("&", "").strip(" ,.;") for line in re.split(r"\\\\(?:\[[^\]]{0,10}\])?", found.group(2))
    ]
    lines = [line for line in lines if line]
    simple = all(re.match(r"^[^=<>]{1,100}=[^=<>]+$", line) and "\\text" not in line for line in lines)
    return ", ".join(lines) if simple else text


def eastern_number(text: str) -> str:
    """Digits as they are, a numeral in digits, 五分之三 as 3/5."""
    if text[-1] in "0123456789%":
        return text
    whole, _, part = text.partition("分之")
    return f"{chinese_number(part)}/{chinese_number(whole)}" if part else str(chinese_number(whole))


def chinese_number(text: str) -> int:
    """The value of 二十五 or 一百零三; of digits in a row (二〇二四) what they spell."""
    if not any(one in "十百千万亿億" for one in text):
        return int("".join(str(DIGITS[one]) for one in text))
    total = section = digit = 0
    for one in text:
        if one in DIGITS:
            digit = DIGITS[one]
        elif one in POWERS:
            section, digit = section + (digit or 1) * POWERS[one], 0
        else:
            total = (total + section + digit) * (10**4 if one == "万" else 10**8)
            section = digit = 0
    return total + section + digit


def is_bare(gold: str) -> bool:
    """Whether a gold has no words or units, which a number alone would leave out."""
    return re.search(r"[^\W\d_]", re.sub(r"\\[A-Za-z]+", "", gold)) is None
