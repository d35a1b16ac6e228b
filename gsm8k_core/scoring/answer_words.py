"""Words around an answer, by language: "the answer is" in those of MGSM, and what stands for thousands and millions.

MGSM: Shi et al., ICLR 2023 (arXiv 2210.03057). How a language writes 1234.5 is beside its words: after German's,
`1.234` is a thousand and `1,5` one and a half; without such a word a comma groups, as in every published rule.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AnswerWords:
    """How a language says that the answer comes now. `noun`: without it in the lower-case text, nothing is searched."""

    noun: str
    mark: re.Pattern[str]
    decimal_comma: bool = False
    dots_group: bool = False


_SOFT = r"[*_\s\"'`)]{0,4}"  # marks of Markdown and JSON between the noun and its verb


def _words(noun: str, mark: str, decimal_comma: bool = False, dots_group: bool = False) -> AnswerWords:
    pattern = mark.replace("~", _SOFT).replace("[;", "[:：").replace(";", "[:：]")
    return AnswerWords(noun, re.compile(pattern, re.IGNORECASE | re.MULTILINE), decimal_comma, dots_group)


_VERB = "is|equals|would be|will be|should be|must be|comes out to|comes to"
LANGUAGES = {
    "en": _words(
        "answer",
        rf"answer~(?:(?:{_VERB})\b|;)|(?<!/)answer~=|answer (?:to|for|of) [^.:\n0-9]{{0,80}}? is\b|answer\**\s[–—]\s"
        r"|^[#*_ ]{0,8}(?:the |my )?(?:final |correct )?answer[*_ ]{0,4}\n",
    ),
    "bn": _words("উত্তর", r"উত্তর(?:টি|টা)?~(?:হলো|হল|হচ্ছে|হবে|[;=ঃ])"),
    "de": _words("antwort", r"antwort~(?:(?:ist|lautet|beträgt|wäre)\b|[;=])", decimal_comma=True, dots_group=True),
    "es": _words(
        "respuesta", r"respuesta(?: final| correcta)?~(?:(?:es|sería)\b|[;=])", decimal_comma=True, dots_group=True
    ),
    "fr": _words("ponse", r"r(?:é|e\u0301|e)ponse(?: finale| correcte)?~(?:(?:est|serait)\b|[;=])", decimal_comma=True),
    "ja": _words("答", r"(?:答え|答|解答|回答)~(?:は|が|[;=])"),
    "ru": _words("ответ", r"ответ(?:ом)?~(?:[—–]|-\s|;|(?:равен|это|будет|является|составляет)\b)", decimal_comma=True),
    "sw": _words("jibu", r"jibu(?: la mwisho| sahihi)?~(?:ni\b|[;=])"),
    "te": _words("సమాధానం", r"సమాధానం(?:[*_\s]{0,4}[;=])?"),
    "th": _words("คำตอบ", r"คำตอบ(?:สุดท้าย|ที่ถูกต้อง)?~(?:คือ|เท่ากับ|[;=])"),
    "zh": _words("答", r"答案~(?:(?:就|应该|應該|应|應)?(?:是|为|為)|等于|等於|[;=])|^\s{0,4}答~;"),
}

_POWERS = {
    2: "hundred 百",
    3: "thousand thousands tausend mille mil тыс тысяча тысячи тысяч พัน হাজার",
    4: "万 萬 หมื่น",
    5: "lakh lakhs লাখ লক্ষ แสน",
    6: "million millions mn mln mio millionen millón millones миллион миллиона миллионов млн ล้าน",
    7: "crore crores কোটি",
    8: "亿 億",
    9: "billion billions bn milliarde milliarden milliard milliards миллиард миллиарда миллиардов млрд",
    12: "trillion trillions",
}
SCALES = {word: power for power, words in _POWERS.items() for word in words.split()}
