"""Numbers with their units in a text, in one form: "1,000 mg", "1 g" and "one gram" are the same quantity. Pure.

Numbers that are part of a name (B12, COVID-19, CD4, T3, type 2, 5-HT) are none; nor are the marks of a list. A number
in words counts where a unit follows it. Both ends of a range take the unit that follows the second one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal

from aloe.data.clean import normalise

# unit as written -> (its name, factor to it); only exact conversions
_UNITS: dict[str, tuple[str, str]] = {
    "kg": ("mg", "1000000"), "g": ("mg", "1000"), "gram": ("mg", "1000"), "gm": ("mg", "1000"), "mg": ("mg", "1"),
    "milligram": ("mg", "1"), "mcg": ("mg", "0.001"), "ug": ("mg", "0.001"), "microgram": ("mg", "0.001"),
    "kilogram": ("mg", "1000000"), "kilo": ("mg", "1000000"),
    "ng": ("mg", "0.000001"), "l": ("ml", "1000"), "litre": ("ml", "1000"), "liter": ("ml", "1000"),
    "dl": ("ml", "100"),
    "ml": ("ml", "1"), "millilitre": ("ml", "1"), "milliliter": ("ml", "1"), "cc": ("ml", "1"),
    "mm": ("mm", "1"), "cm": ("mm", "10"), "m": ("mm", "1000"), "metre": ("mm", "1000"), "meter": ("mm", "1000"),
    "millimetre": ("mm", "1"), "millimeter": ("mm", "1"), "centimetre": ("mm", "10"), "centimeter": ("mm", "10"),
    "second": ("s", "1"), "sec": ("s", "1"), "minute": ("s", "60"), "min": ("s", "60"), "hour": ("s", "3600"),
    "hr": ("s", "3600"), "h": ("s", "3600"), "day": ("s", "86400"), "week": ("s", "604800"), "wk": ("s", "604800"),
    "month": ("month", "1"), "year": ("month", "12"), "yr": ("month", "12"),
    "%": ("%", "1"), "percent": ("%", "1"), "per cent": ("%", "1"), "°c": ("°c", "1"), "°f": ("°f", "1"),
    "degree": ("°", "1"), "degrees celsius": ("°c", "1"), "degrees fahrenheit": ("°f", "1"), "°": ("°", "1"),
    "mmhg": ("mmhg", "1"), "mmol/l": ("mmol/l", "1"), "umol/l": ("umol/l", "1"), "mg/dl": ("mg/dl", "1"),
    "g/dl": ("g/dl", "1"), "g/l": ("g/l", "1"), "mmol": ("mmol", "1"), "mol": ("mmol", "1000"), "meq": ("meq", "1"),
    "mg/kg": ("mg/kg", "1"), "mg/day": ("mg/day", "1"), "ml/min": ("ml/min", "1"), "iu": ("iu", "1"),
    "iu/l": ("iu/l", "1"), "unit": ("unit", "1"), "bpm": ("bpm", "1"), "kcal": ("kcal", "1"), "calorie": ("cal", "1"),
    "tablet": ("dose", "1"), "pill": ("dose", "1"), "capsule": ("dose", "1"), "dose": ("dose", "1"),
    "drop": ("drop", "1"), "puff": ("puff", "1"), "time": ("times", "1"),
}  # fmt: skip
_WORDS = {
    word: Decimal(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
         "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty")
    )
} | {"thirty": Decimal(30), "forty": Decimal(40), "fifty": Decimal(50), "sixty": Decimal(60), "ninety": Decimal(90),
     "once": Decimal(1), "twice": Decimal(2)}  # fmt: skip
_UNIT = (
    r"(?:" + "|".join(re.escape(u) + r"(?:s|es)?" for u in sorted(_UNITS, key=lambda u: (-len(u), u)))
    + r")(?:/(?:kg|day|hour|min|l|dl|ml))?(?![\w/])"
)  # fmt: skip
_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_DIGITS = re.compile(
    rf"(?<![\w.,/^-])(?P<a>{_NUMBER})"
    rf"(?:\s*[-/]\s*(?P<b>{_NUMBER})|\s+(?:to|or|and)\s+(?P<c>{_NUMBER})(?=[\s-]*{_UNIT}))?"
    rf"(?:[\s-]*(?P<unit>{_UNIT})|(?!\w|[.,]\d|-[A-Za-z]))",
    re.IGNORECASE,
)
_SPELT = "|".join(sorted(_WORDS, key=lambda w: (-len(w), w)))
_IN_WORDS = re.compile(
    rf"\b(?P<a>{_SPELT})(?:(?:\s*-\s*|\s+(?:to|or|and)\s+)(?P<b>{_SPELT}))?[\s-]+(?P<unit>{_UNIT})"
    r"|\b(?P<times>once|twice)(?=\s+(?:an?|per|every|each|in|daily|weekly|monthly|yearly)\b|[\s-]+(?:daily|weekly))",
    re.IGNORECASE,
)
_LIST_MARK = re.compile(r"(?m)^\s*(?:\(?\d{1,2}[.):]|step\s+\d{1,2}\b[.:]?)\s+", re.IGNORECASE)
_NAMED = re.compile(
    r"\b(?:type|stage|grade|class|phase|group|factor|vitamin|trisomy|chromosome|interleukin|step|part|point|figure|"
    r"table|category|covid|schedule|level)[\s-]+\d+\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, order=True)
class Quantity:
    """A number and the unit it is in (the empty text: none), and how the text writes it, which doesn't count."""

    value: Decimal
    unit: str
    shown: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.shown


def quantities(prose: str) -> list[Quantity]:
    """All quantities of a text, in order, repeated ones too."""
    plain = _plain(prose)
    found: list[tuple[int, Quantity]] = []
    for pattern in (_DIGITS, _IN_WORDS):
        for match in pattern.finditer(plain):
            groups = match.groupdict()
            if groups.get("times"):
                word = groups["times"].lower()
                found.append((match.start(), Quantity(_WORDS[word], "times", word)))
                continue
            unit, factor = _unit_of(groups["unit"])
            for name in ("a", "b", "c"):
                if text := groups.get(name):
                    shown = f"{text} {groups['unit'] or ''}".strip()
                    found.append((match.start(name), Quantity(_value(text) * factor, unit, shown)))
    return [quantity for _, quantity in sorted(found, key=lambda pair: pair[0])]


def _plain(text: str) -> str:
    text = normalise(text).translate(str.maketrans("–—−µμ", "---uu"))
    text = re.sub(r"[*_`]", "", text)
    return _NAMED.sub(" ", _LIST_MARK.sub("\n", text))


def _value(text: str) -> Decimal:
    return _WORDS[text.lower()] if text.lower() in _WORDS else Decimal(text.replace(",", ""))


def _unit_of(text: str | None) -> tuple[str, Decimal]:
    if not text:
        return "", Decimal(1)
    name = text.lower()
    if name in _UNITS:
        return _UNITS[name][0], Decimal(_UNITS[name][1])
    for end in ("es", "s"):
        if name.endswith(end) and name[: -len(end)] in _UNITS:
            return _unit_of(name[: -len(end)])
    base, _, per = name.partition("/")  # "mg/kg" and the like that the table doesn't list whole
    unit, factor = _unit_of(base)
    return f"{unit}/{per}", factor
