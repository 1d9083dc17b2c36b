"""Dates and ages. A date is found when it tells the day: day and month, with or without a year.

In scope: 14/03/2019, 3-14-19, 2019-03-14, 14.03.2019, March 14(th)(, 2019), 14 (de) marzo (de) 2019, July twenty-first,
and 3/14 after a word such as "admitted on". `MONTH` (March 2019, 03/2019) is an extra kind for those who read HIPAA's
"all elements of dates except year" to the letter. Out of scope: years and decades alone, a month alone, ranges such as
"3-5 days", fractions, pressures and doses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

Span = tuple[str, int, int, str]  # kind, start, end, rule

_MONTHS = (
    r"(?:jan(?:uary|\.)?|feb(?:ruary|\.)?|mar(?:ch|\.)?|apr(?:il|\.)?|may|june?\.?|july?\.?"
    r"|aug(?:ust|\.)?|sept?(?:ember|\.)?|"
    r"oct(?:ober|\.)?|nov(?:ember|\.)?|dec(?:ember|\.)?|enero|febrero|marzo|abril|mayo|junio|julio"
    r"|agosto|septiembre|octubre|"
    r"noviembre|diciembre|janvier|février|mars|avril|juin|juillet|août|septembre|octobre|novembre|décembre|"
    r"januar|februar|märz|juni|juli|oktober|dezember)"
)
_ORDINAL = (
    r"(?:(?:twenty|thirty)[ -]?)?(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth)"
    r"|tenth|eleventh|twelfth|"
    r"thirteenth|fourteenth|fifteenth|sixteenth|seventeenth|eighteenth|nineteenth|twentieth|thirtieth"
)
_YEAR = r"(?:,?\s{0,2}(?:of |de |del )?(?:1[89]|20)\d\d(?!\d)|,?\s?['’]\d\d(?!\d))"
_UNIT = (
    r"(?! ?(?:mg|ml|mcg|µg|ug|g|kg|lbs?|mm|cm|km|miles?|%|percent|times?|x(?!-)|days?|weeks?"
    r"|months?|years?|yrs?|hours?|hrs?|"
    r"minutes?|mins?|doses?|tablets?|pills?|units?|people|patients|women|men|children|points?|or \d|to \d)\b)"
)
NUMERIC = re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}")
DAY_MONTH = re.compile(
    rf"\d{{1,2}}(?:st|nd|rd|th|º|°)?(?:\s{{0,2}}[-–]\s?\d{{1,2}}(?:st|nd|rd|th)?)?(?:[ ./-]|\s(?:of"
    rf"|de|day of)\s)?\s?({_MONTHS})(?![a-z])(?:[ ./-]?{_YEAR}|-\d\d(?!\d))?",
    re.IGNORECASE,
)
# The first character is a plain set, which lets the search skip quickly; the look-behinds then tell the months apart.
MONTH_DAY = re.compile(
    r"[jfmasond](?<!\w\w)(?:(?<=j)an(?:uary|\.)?|(?<=f)eb(?:ruary|\.)?|(?<=m)ar(?:ch|\.)?"
    r"|(?<=a)pr(?:il|\.)?|(?<=m)ay|(?<=j)une?\.?|"
    r"(?<=j)uly?\.?|(?<=a)ug(?:ust|\.)?|(?<=s)ept?(?:ember|\.)?|(?<=o)ct(?:ober|\.)?"
    r"|(?<=n)ov(?:ember|\.)?|(?<=d)ec(?:ember|\.)?)"
    rf"[\s-]{{1,2}}(?:the )?(?:(\d{{1,2}})(?![\d:.,]\d|\d|[/%])(st|nd|rd"
    rf"|th)?(?:\s?[-–]\s?\d{{1,2}}(?!\d)(?:st|nd|rd|th)?)?|({_ORDINAL})(?!\w))"
    rf"({_YEAR}|-(?:\d{{4}}|\d\d)(?!\d))?{_UNIT}",
    re.IGNORECASE,
)
MONTH_YEAR = re.compile(rf"(?<!\w){_MONTHS}(?:,|\sof|\sde)?\s{{1,2}}(?:1[89]|20)\d\d(?!\d)", re.IGNORECASE)
SLASH_MONTH_YEAR = re.compile(r"\d{1,2}/(?:19|20)\d\d")
SHORT_NUMERIC = re.compile(
    r"\b(?:admi(?:tted|ssion)|discharged?|seen|scheduled|dated?|performed|done|taken|drawn|born|dob"
    r"|appointment|visit(?:ed)?|"
    r"surgery|started|returned|due|died|expired|scan|mri|ct|x-?ray|labs?|biopsy|lmp|edd|edc|since"
    r"|appt|follow[- ]?up|arrived|transferred)"
    r"(?: back)?(?: date)?(?: (?:on|for|of|is|was|until))?:?\s{1,2}(\d{1,2}/\d{1,2})(?![\w/%-]|\.\d"
    r"|\s?(?:mg|days?|weeks?|mm|pain|scale|times))",
    re.IGNORECASE,
)
ON_SHORT = re.compile(r"\bon (\d{1,2})/(\d{1,2})(?![\w/%-]|\.\d)", re.IGNORECASE)
COMPACT = re.compile(
    r"\b(?:d\.?o\.?b\.?|date of birth|born|birth ?date)\W{1,4}((?:19|20)\d{6}|\d{6}(?!\d))", re.IGNORECASE
)

_AGE_AFTER = (
    r"(?:[- ]{0,2}(?:years?|yrs?)[- ]{0,2}(?:old|of age)\b|\s?[- ]?(?:y\.?/?o\.?|yo[mf]?)(?![a-z])|[- "
    r"]year[- ]old|[- ]yr[- ]old|\s?años(?: de edad)?\b)"
)
AGE_DIGITS = re.compile(rf"(?:9\d|1[01]\d|12[0-5])({_AGE_AFTER})", re.IGNORECASE)
AGE_CUE = re.compile(
    r"\b(?:aged?|age is|age was|turn(?:ed|ing|s)?|age of)\s?[:=]?\s{0,2}((?:9\d|1[01]\d"
    r"|12[0-5]))(?![\w%/]|[.-]\w|\s?(?:and|or|years) (?:over|older|above|up|more)|\+| to \d)",
    re.IGNORECASE,
)
_ELDER = (
    r"(?:(?:great[- ]?)?grand(?:mother|father|ma|pa|mom|dad|parent)|gran|granny|nana|nan|oma|opa|mother|mum|mom|mommy"
    r"|mummy|father|dad|daddy|aunt|auntie|aunty|uncle|husband|wife|spouse|partner|brother|sister|parent|neighbou?r"
    r"|friend|patient|pt|resident|client|lady|gentleman|woman|man)(?:[- ]in[- ]law)?"
)
# Who is that old: a relative or a patient, between commas and in brackets too, or a pronoun.
_KIN = rf"\b(?:my|his|her|our|their|your|the|this|an?)\s(?:[a-z]{{2,12}}\s){{0,2}}?{_ELDER}"
_IS = r"(?:\s(?:is|was|will be)|['’]s|\s(?:has |have |had )?(?:just |already )?turned)"
_NOW = r"\s(?:(?:now|just|already|only|almost|nearly|about|around|currently|age|aged)\s){0,2}"
KIN_IS = re.compile(rf"{_KIN}{_IS}{_NOW}$", re.IGNORECASE)
ONE_IS = re.compile(rf"\b(?:(?:s?he|i){_IS}|i am|i['’]m){_NOW}$", re.IGNORECASE)
BESIDE_KIN = re.compile(rf"{_KIN}(,\s(?:aged? )?|,?\s\()$", re.IGNORECASE)
DIED_AT = re.compile(r"\b(?:died|passed away|passed|lived to(?: be)?)(?: at)?\s$", re.IGNORECASE)
# What each of the four ends with: tried first, as most numbers have something else before them.
_LEAD = re.compile(
    r"(?:\b(?:is|was|be|turned|now|just|already|only|almost|nearly|about|around|currently|aged?|am|died|away|passed|to|at)"
    r"|['’][sm]|,)\s$|\($",
    re.IGNORECASE,
)
# What may follow, so that neither a weight nor a temperature nor a share is meant.
OLD_END = re.compile(
    r"\s?(?:[;!?)]|[,.](?!\d)|$|\n|years?\b(?! (?:ago|after|later|before|since|from|into|on))|yrs?\b)"
    r"|\s(?:and|but|with|who|now|when|so|lives?|has|had|this|next|in|at the time)\b",
    re.IGNORECASE,
)
BIRTHDAY = re.compile(r"(?:st|nd|rd|th) birthday\b", re.IGNORECASE)
OVER_89 = re.compile(r"9\d(?!\d)|1[01]\d(?!\d)|12[0-5](?!\d)")
NINETY_WORD = re.compile(r"ninety(?:[- ](?:one|two|three|four|five|six|seven|eight|nine))?(?!\w)", re.IGNORECASE)
AGE_WORDS = re.compile(
    r"(ninety(?:[- ](?:one|two|three|four|five|six|seven|eight|nine))?|(?:a |one )hundred(?: "
    r"and)?(?: (?:one|two|three|four|five|six|seven|eight|nine|ten))?)"
    r"[- ](?:years?|yrs?)[- ](?:old|of age)\b",
    re.IGNORECASE,
)
_GENERAL_BEFORE = re.compile(
    r"(?:over|under|above|below|than|until|till|least|most|by|to|between|and|after|before|through"
    r"|beyond)(?: the)?(?: age)?(?: of)?\s$"
)
_GENERAL_AFTER = re.compile(r"\s?(?:and|or) (?:over|older|above|up|more|beyond)")
_NUMBER = re.compile(r"\d{1,2}(?!\d)")
_SLASH = re.compile(r"\d/\d")
_EIGHT = re.compile(r"\d{6}")
_NINETY = re.compile(r"9\d(?!\d)|1[012]\d(?!\d)")
SPOKEN_GATE = (
    "january ",
    "february ",
    "march ",
    "april ",
    "june ",
    "july ",
    "august ",
    "september ",
    "october ",
    "november ",
    "december ",
)
LOWER_MAY = ("may", "mar", "march", "dec", "sep")


def _bounded(text: str, start: int, end: int) -> bool:
    """No letter, digit or joining sign on either side: part of a longer number or code is no date."""
    if start and (text[start - 1].isalnum() or text[start - 1] in "/.-_"):
        return False
    tail = text[end : end + 2]
    return not (tail[:1].isalnum() or tail[:1] in ("/", "_") or (tail[:1] in (".", "-") and tail[1:].isdigit()))


def _numeric_date(groups: list[str], sep: str) -> bool:
    """Whether three numbers can be a calendar date, day or month first, or year first."""
    a, b, c = (int(g) for g in groups)
    if len(groups[0]) == 4:  # 2019-03-14
        return 1800 <= a <= 2100 and 1 <= b <= 12 and 1 <= c <= 31 and len(groups[2]) <= 2
    if len(groups[0]) > 2 or len(groups[2]) not in (2, 4) or (len(groups[2]) == 4 and not 1800 <= c <= 2100):
        return False
    if len(groups[2]) == 2 and (sep == "." or (sep == "-" and not len(groups[0]) == len(groups[1]) == 2)):
        return False  # 1.2.10 is a section, 3-5-10 a series
    return (1 <= a <= 12 and 1 <= b <= 31) or (1 <= b <= 12 and 1 <= a <= 31)


def dates(text: str) -> Iterator[Span]:
    """Dates with a day, in no particular order; they may overlap."""
    for m in NUMERIC.finditer(text):
        if _bounded(text, m.start(), m.end()) and _numeric_date(re.split(r"[-/.]", m[0]), m[1]):
            yield "DATE", m.start(), m.end(), "numeric"
    for m in DAY_MONTH.finditer(text):
        day = int(re.match(r"\d+", m[0])[0])  # type: ignore[index]  # the pattern begins with a digit
        plain = m[1].lower()
        short = m.end() == m.end(1)
        if (plain == "may" and m[1].islower() and short) or (plain == "mars" and short):
            continue  # "on day 3 may be", "2 mars": no date without more
        if 1 <= day <= 31 and _bounded(text, m.start(), m.end()):
            yield "DATE", m.start(), m.end(), "day_month"
    for m in _month_days(text):
        word = re.match(r"\w+", m[0])[0]  # type: ignore[index]
        if word in LOWER_MAY and not (m[2] or m[4] or (m[3] and word == "march")):
            continue  # "may 2", "march 5" in lower case are verbs more often than dates
        if (m[3] or 1 <= int(m[1]) <= 31) and not text[m.end() : m.end() + 1].isalnum():
            if m[3] and word.lower() == "may" and not m[4]:
                continue  # "may first", "May second-line": a verb
            yield "DATE", m.start(), m.end(), "month_day"
    slash = _SLASH.search(text)
    for m in SHORT_NUMERIC.finditer(text) if slash else ():
        a, b = (int(x) for x in m[1].split("/"))
        if (1 <= a <= 12 and 1 <= b <= 31) or (1 <= b <= 12 and 1 <= a <= 31):
            yield "DATE", m.start(1), m.end(1), "day_month_after_cue"
    for m in ON_SHORT.finditer(text) if slash else ():
        a, b = int(m[1]), int(m[2])
        if (1 <= a <= 12 and 12 < b <= 31) or (1 <= b <= 12 and 12 < a <= 31):
            yield "DATE", m.start(1), m.end(2), "day_month_after_on"
    for m in COMPACT.finditer(text) if _EIGHT.search(text) else ():
        yield "DATE", m.start(1), m.end(1), "birth_compact"


def _month_days(text: str) -> Iterator[re.Match[str]]:
    """Matches of MONTH_DAY. Looked for just before each number: a digit is found sooner than a name."""
    for d in _NUMBER.finditer(text):
        before = text[max(0, d.start() - 2) : d.start()]
        if before[1:] not in (" ", "-", "\u00a0", "\n") or not (before[0].isalpha() or before[0] in ". "):
            continue
        for m in MONTH_DAY.finditer(text, max(0, d.start() - 16), min(len(text), d.end() + 32)):
            if m.start(1) == d.start():
                yield m
    if any(part in text.lower() for part in SPOKEN_GATE):
        yield from (m for m in MONTH_DAY.finditer(text) if m[3])


def spoken_dates(text: str) -> Iterator[Span]:
    """Dates in words ("April nineteenth"), for texts without a digit."""
    for m in MONTH_DAY.finditer(text):
        if m[3] and m[0][:3].lower() != "may":
            yield "DATE", m.start(), m.end(), "month_day"


def months(text: str) -> Iterator[Span]:
    """A month with its year and no day."""
    for m in MONTH_YEAR.finditer(text):
        yield "MONTH", m.start(), m.end(), "month_year"
    for m in SLASH_MONTH_YEAR.finditer(text):
        if _bounded(text, m.start(), m.end()) and 1 <= int(m[0].split("/")[0]) <= 12:
            yield "MONTH", m.start(), m.end(), "month_year"


def ages(text: str) -> Iterator[Span]:
    """Ages over 89 of one person; "90 years and older" speaks of many and is left."""
    if not _NINETY.search(text):
        return
    for m in AGE_DIGITS.finditer(text):
        if m.start() and (text[m.start() - 1].isalnum() or text[m.start() - 1] in ".,/-"):
            continue
        if not _GENERAL_BEFORE.search(text, max(0, m.start() - 24), m.start()) and not _GENERAL_AFTER.match(
            text, m.end()
        ):
            yield "AGE", m.start(), m.end(), "age"
    for m in AGE_CUE.finditer(text):
        if not re.search(
            r"\b(?:over|under|above|below|until|before|after|beyond|by|to)(?: the)? $",
            text[max(0, m.start() - 12) : m.start()],
        ):
            yield "AGE", m.start(1), m.end(1), "age_after_cue"
    for m in OVER_89.finditer(text):
        if m.start() and (text[m.start() - 1].isalnum() or text[m.start() - 1] in ".,/-"):
            continue
        if BIRTHDAY.match(text, m.end()):
            yield "AGE", m.start(), m.end(), "birthday"
        elif _persons(text, m.start(), m.end(), m.end() - m.start() == 3):
            yield "AGE", m.start(), m.end(), "age_of_person"


def _persons(text: str, start: int, end: int, hundred: bool) -> bool:
    """Whether the number at `start` is said to be somebody's age. Of a pronoun 103 may be a temperature."""
    low = max(0, start - 72)
    if not _LEAD.search(text, max(0, start - 12), start):
        return False
    if beside := BESIDE_KIN.search(text, low, start):
        return text[end : end + 1] == (")" if beside[1].endswith("(") else ",")
    if not OLD_END.match(text, end):
        return False
    ways = (KIN_IS, DIED_AT) if hundred else (KIN_IS, DIED_AT, ONE_IS)
    return any(way.search(text, low, start) for way in ways)


def spoken_ages(text: str) -> Iterator[Span]:
    """Ages over 89 in words."""
    for m in AGE_WORDS.finditer(text):
        if not _GENERAL_AFTER.match(text, m.end()):
            yield "AGE", m.start(), m.end(), "age_in_words"
    for m in NINETY_WORD.finditer(text):
        if _persons(text, m.start(), m.end(), False):
            yield "AGE", m.start(), m.end(), "age_of_person"
