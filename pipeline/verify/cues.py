"""The words around an answer, for all verifiers: what announces it, what takes it back, what leaves it open.

English first; Chinese, Japanese, Korean, Spanish, German, French, Russian, Portuguese and Arabic as far as
their words for "the answer is", "not ... but" and "or" go. Every pattern is bounded, so its time is linear.
"""

import re

MARKS = r"[ \t*_]{0,8}"
GRADE = r"(?:(?:final|correct|right|best|true|only|most\ (?:likely|accurate)|calculated|overall|my)\ ){0,3}"
ANSWER = rf"{GRADE}(?:answer|ans\b\.?|(?:final|my)\ (?:result|solution|value|choice|pick|selection|guess))s?"
CHOSEN = (
    r"(?:correct|right|best|true|only\ valid)\ (?:\w{1,12}\ )?"
    r"(?:option|choice|statement|alternative|letter)s?"
)
IS = (
    r"(?:(?:['’]s|is|are|was|equals|(?:must|should|will|would|has\ to)\ be"
    r"|(?:seems|appears|turns\ out|comes\ out|works\ out)\ to(?:\ be)?)\b)"
)
IS_NOT = (
    r"(?:(?:can\ ?not|can't|could\ not|couldn't|must\ not|should\ not)\ be|isn't|is\ not|aren't|are\ not)\b"
)
NOUNS = (
    r"(?:答案|答え|解答|正解|答|정답|답변|답|respuesta|resposta|risposta|r[ée]ponse|antwort|ergebnis|ответ|итого"
    r"|(?:正确|正確)的?(?:选项|選項)|الجواب|الإجابة|الاجابة|đáp\ án|उत्तर|antwoord|cevap|odpowied[źz]"
    r"|(?:opci[óo]n|opção|alternativa|option|richtige|bonne)\ (?:correcta|correta|correcte|option|r[ée]ponse)"
    r"|(?:правильный|верный)\ вариант|richtig)"
)
NOUN_GRADE = (
    r"(?:\ (?:final|finale|correcta?|correta|correcte|corretta|exacta|definitiva"
    r"|الصحيحة|النهائية|النهائي|cuối\ cùng))?"
)
NOUN_IS = (
    r"(?:[:：=】]|(?<=उत्तर|ответ)\s(?=[\d(A-Z०-९$])|\s[-–—―](?=\s)"
    r"|(?:就|应该|應該|应当|应|應|即|只能|肯定|一定|显然)?(?:是|为|為|选|選)|は|が|은|는|이|가"
    r"|\s(?:es|est|é|è|ist|lautet|beträgt|is|هو|هي|là|है|равен|равно)\b"
    r"|\s?(?=不是|(?:no\ es|n'est\ pas|n[ãa]o\ é|не)\b))"
)
ARTICLE = (
    r"(?:\ ?(?:la|le|el|die|der|das|a|o)\ (?:(?:opci[óo]n|opção|letra|lettre|option|alternativa|número)\ )?)?"
)

# where an answer is announced: by a title or a field in front of it, or within a sentence
CUE = re.compile(
    rf"""
    (?: ^[ \t]{{0,20}} \#{{4}} (?!\#)
      | <answer>
      | ^[ \t*_]{{0,5}} (?-i:A) \ ?:
      | ^[^\w\n]{{0,20}} (?:so,?\ |thus,?\ |therefore,?\ )?(?:the\ )?
        (?: {ANSWER}|{CHOSEN}|result|choice|option|correct ) (?:\ ?\([^()\n]{{1,30}}\))? {MARKS}
        (?: [:=：] | \ [-–—](?=\ ) | (?=\n) )
      | ^[^\w\n]{{0,20}} (?:最终|最終|最后|正确|正確|最終的な|최종\ |правильный\ |richtige\ |endgültige\ )?
        {NOUNS} {NOUN_GRADE} {MARKS} (?:[:：=】]|\n)
    )
    | \b(?:{ANSWER}|{CHOSEN}) (?:\ (?:to|of|for|choice|option)\b[^.\n$]{{0,80}}?)? {MARKS}
      (?: (?P<negated>{IS_NOT}(?!\ (?:determined|found|computed|known))) | (?:{IS}|:) )
      (?:\ (?:therefore|thus|then|simply|just|exactly|that|clearly|indeed|also|still|hence))? :? {MARKS}
    | {NOUNS} {NOUN_GRADE} {MARKS} {NOUN_IS} [:：]? {MARKS} {ARTICLE}
    """,
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)

NOT = r"(?:not|nicht|n'est\ pas|pas|n[ãa]o(?:\ é)?|не|不是|并非|並非|no\ es|no(?=[^,]{1,40}\bsino\b))"
# "not 7 but 5", "not A; it is B", "不是A，而是B"
NOT_BUT = re.compile(
    rf"""^(?:(?:[^\n]{{0,100}}\s)?(?:is|are|was|were|it's)\ )?{NOT}\s{{0,3}}(?P<left>[^\n]{{1,200}}?)
    (?:[,;.，；、]?\s{{0,3}}
         \b(?:but(?:\ rather|\ instead)?|rather|instead|sondern|sino(?:\ que)?|mais|mas|а)\s
       |[,;.，；、]\s{{0,3}}(?:it\ is|it's|it\ must\ be|the\ answer\ is)\s|[,，；]?\s?(?:而是|应该是|应是))
    \s{{0,3}}(?P<stated>[^\n]{{1,1000}})$""",
    re.VERBOSE | re.IGNORECASE,
)
NOT_ONLY = re.compile(rf"^(?:is\ |it's\ |it\ is\ )?{NOT}(?:\s|(?<=[是非]))", re.IGNORECASE)
BUT_AFTER = re.compile(
    r"^(?P<left>.{1,60}?)(?:ではなく|でなく|이 아니라|가 아니라|아니라)[、,\s]{0,3}(?P<stated>.{1,1000})$"
)
# "12, not 13", "B (not C)", "5 rather than 7"
AND_NOT = re.compile(
    r"""^(?P<stated>[^\n]{1,1000}?)
    (?:\s{0,3}[,;，；(（—–]\s{0,3}(?:and\s|but\s|und\s|et\s|y\s|e\s|и\s|а\s)?(?:definitely\s|certainly\s)?
         (?:not|nicht|et\ non|non|pas|n[ãa]o|не|而不是|而非|不是|no(?=\s\S{1,12}$))(?:\s|(?<=[是非]))
       |\s(?:and\snot|but\snot|et\snon|und\snicht|y\sno|e\sn[ãa]o)\s
       |\s(?:rather\ than|instead\ of|as\ opposed\ to|statt|en\ lugar\ de|plut[ôo]t\ que)\s
       |，?(?:而不是|而非))
    \s{0,3}(?P<left>[^()\n]{1,80}?)[)）]?[.!。]?$""",
    re.VERBOSE | re.IGNORECASE,
)
# between what the answer may be: "7 or 8", "7 (or 8)", "7, maybe 8", "7, but it could be 8"
OR = re.compile(
    r"""\s{0,3}[,;]?\s{0,3}\\(?:text|mbox|textrm|mathrm)\s?\{\s{0,3}or\s{0,3}\}
    | (?: [,;]?\s{0,3}(?:\(\s?|\s|(?<=\$))(?<!than\s)(?:or|oder|ou|или)
            (?:\s(?:else|maybe|possibly|perhaps|even|rather))?
        | (?:[,;]\s|\s?\()(?:maybe|possibly|perhaps|alternatively) )
      (?:\s(?:equivalently|about|approximately|roughly))?[,:]?(?:\s|(?=[$\\(]))
    | [,;]\s(?:but|though|although|and)?\s?(?:it|that)?\s?(?:could|might|may)\s(?:also\s|even\s)?be\s
    | \s?(?:或者|或是|或|还是|還是|または|もしくは|또는|혹은|أو)\s? | (?<=\d)\so\s(?=\d)""",
    re.VERBOSE | re.IGNORECASE,
)
OPENING = re.compile(r"^(?:(?:either|entweder|soit|o bien|maybe|perhaps|possibly|probably|likely)\s)+", re.I)
WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2}|[^\x00-\x7f]|\\(?:text|mbox|math)|\so\s")
SEVERAL = re.compile(
    r"[,;、]|\b(?:or|and|oder|ou|und|et)\b|\\(?:pm|mp|cup|lor|vee|land|wedge)|±|∪|或|和|\\\\|[<>≤≥]|\\(?:le|ge)"
)


def has_words(text: str) -> bool:
    """Whether anything in a text could be a word around its answer, rather than mathematics only."""
    return WORDS.search(text) is not None


def settle(text: str) -> str | None:
    """What a statement says once what it takes back is gone; None where nothing else is said."""
    text = text.strip()
    if found := NOT_BUT.match(text) or BUT_AFTER.match(text) or AND_NOT.match(text):
        if found.group("left").strip() == found.group("stated").strip():
            return None
        text = found.group("stated").strip()
    return None if NOT_ONLY.match(text) else text


def alternatives(text: str) -> list[str]:
    """The answers between which a statement does not decide; one where it decides."""
    parts, start, depth = [], 0, 0
    position = 0
    for found in OR.finditer(text[:2_000]):
        inside = text[position : found.start()]
        position = found.start()
        depth += inside.count("{") - inside.count("}")
        if depth <= 0:
            parts.append(text[start : found.start()])
            start = found.end()
    if not parts:
        return [OPENING.sub("", text)]
    return [part for part in map(alone, [*parts, text[start:]]) if part] or [text]


def alone(part: str) -> str:
    """One alternative without half a pair of brackets or dollar signs, whose other half is elsewhere."""
    part = OPENING.sub("", part.strip(" ,;"))
    if part.count("(") != part.count(")"):
        part = part.strip("() ")
    return part.strip("$ ") if part.count("$") % 2 else part.strip()


def is_several(gold: str) -> bool:
    """Whether a gold answer may itself consist of several values."""
    return SEVERAL.search(gold) is not None
