"""Ways to reach a person: telephone, e-mail, URL, IP address, street and postal address.

Left alone on purpose: toll-free and crisis lines (nobody's own number, and medical content worth keeping), pages of
public bodies and reference works (`lists/organisations.txt`, hosts), a town or hospital without street or code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from aloe.data.phi_words import Lexicon, fold, public_hosts, states

Span = tuple[str, int, int, str]  # kind, start, end, rule

# ---------------------------------------------------------------------------------------------- telephone

_SEP = r"[ .\-–‑]"
NANP = re.compile(
    rf"(?:\+?1{_SEP}?)?(?:\(\s?[2-9]\d\d\s?\){_SEP}{{0,2}}"
    rf"|[2-9]\d\d{_SEP}{{1,2}})[2-9]\d\d{_SEP}?\d{{4}}(?:,?\s?(?:x|ext\.?|extension)\s?\d{{1,6}})?"
)
OTHER_PHONES = (
    (
        "international",
        re.compile(r"(?:\+|00)[1-9]\d{0,2}[ .\-]?(?:\(\d{1,4}\)[ .\-]?)?\d{1,5}(?:[ .\-]?\d{2,5}){1,4}(?!\d)"),
    ),
    ("uk", re.compile(r"\(?0(?:7\d{3}|1\d{2,4}|2\d|3\d\d|\d{3}|8\d\d)\)?[ \-]\d{3,4}[ \-]?\d{3,4}|07\d{9}|0[12]\d{9}")),
    ("fr", re.compile(r"0[1-9](?:[ .\-]\d\d){4}")),
    ("es", re.compile(r"[6789]\d\d[ .]\d{3}[ .]\d{3}|[6789]\d\d(?:[ .]\d\d){3}")),
    ("in", re.compile(r"(?:0|91[ -])?[6-9]\d{4}[ -]\d{5}")),
    ("au", re.compile(r"0[2-478][ -]?\d{4}[ -]\d{4}|04\d\d[ -]\d{3}[ -]\d{3}")),
    ("de", re.compile(r"0\d{2,4}[/ -]\d{6,8}")),
    # A trunk 0 with an area code, and groups of digits: 030 1234 5678, (0911) 12 34 56, 0911 / 123 45 67.
    ("trunk", re.compile(r"\(?0[1-9]\d{1,3}\)?(?: ?[/-] ?| )\d{2,5}(?:[ -]\d{2,5}){1,3}")),
    ("ten_digits", re.compile(r"1?[2-9]\d{2}[2-9]\d{6}|[6-9]\d{9}")),
)
PHONE_CUE = re.compile(
    r"\b(?:tele)?(?:phones?|ph|tel|mobiles?|cell(?:ular|phone)?|fax|call(?: or text)?(?: (?:me|us"
    r"|him|her|them))?(?: back)?|whats ?app|contact(?: (?:me|us|him|her))?|text(?: (?:me|us))?|"
    r"reach(?:ed)? (?:me|us|him|her)?|dial|ring|pager|beeper|landline|extension|móvil|teléfono|telefon)\b"
    r"(?:\s?(?:numbers?|nos?|is|on|at|#|to|number is))?(?:\s(?:is|on|at))?[.:# ]{0,4}(\(?\+?\d[\d "
    r"().\-/]{4,18}\d)(?!\d)",
    re.IGNORECASE,
)
_TOLL_FREE = re.compile(r"\D{0,3}(?:1\D{0,3})?8(?:00|33|44|55|66|77|88)(?!\d\d\d\D\d\d\d$)")
_CITED = re.compile(
    r"(?:doi|pmid|pmc|isbn|issn|nct|omim|mim|entrez|grant|ref|version|\bec|id|lot"
    r"|cas)\W{0,3}(?:number|no\.?|is)?\W{0,3}$",
    re.IGNORECASE,
)
_QUANTITY = re.compile(
    r"\s?(?:mg|ml|mcg|µg|g\b|kg|iu|units?|cells?|copies|people|patients|cases|deaths|dollars|euros"
    r"|years?|persons|individuals|births|women|men|children|%)",
    re.IGNORECASE,
)


def _alone(text: str, start: int, end: int) -> bool:
    """Whether no letter, digit or joining sign touches the span."""
    before, after = text[start - 1 : start], text[end : end + 2]
    if before and (before.isalnum() or before in "_/-.$€£#"):
        return before == "." and not text[max(0, start - 2) : start - 1].isdigit()
    return not (
        after[:1].isalnum() or after[:1] in ("_", "%") or (after[:1] in ("-", "/", ".") and after[1:].isdigit())
    )


def phones(text: str) -> Iterator[Span]:
    """Telephone and fax numbers."""
    found: list[tuple[int, int, str]] = [(m.start(), m.end(), "nanp") for m in NANP.finditer(text)]
    for rule, pattern in OTHER_PHONES:
        found += [(m.start(), m.end(), rule) for m in pattern.finditer(text)]
    for m in PHONE_CUE.finditer(text):
        value = m[1].rstrip(" .-/(")
        if 7 <= sum(c.isdigit() for c in value) <= 15:
            found.append((m.start(1), m.start(1) + len(value), "after_cue"))
    for start, end, rule in found:
        value = text[start:end]
        numbers = [c for c in value if c.isdigit()]
        if (
            _alone(text, start, end)
            and len(set(numbers)) > 2
            and not (rule == "trunk" and not 8 <= len(numbers) <= 12)
            and not _toll_free(value)
            and not _CITED.search(text, max(0, start - 16), start)
            and not _QUANTITY.match(text, end)
        ):
            yield "PHONE", start, end, rule


def _toll_free(value: str) -> bool:
    """North American toll-free: nobody's own number."""
    numbers = "".join(c for c in value if c.isdigit())
    area = numbers[1:4] if numbers.startswith("1") else numbers[:3]
    return (
        len(numbers) >= 10
        and len(numbers.lstrip("1")) <= 16
        and area in ("800", "833", "844", "855", "866", "877", "888")
        and bool(_TOLL_FREE.match(value))
    )


# ---------------------------------------------------------------------------------------------- network

EMAIL_TAIL = re.compile(r"@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}")
EMAIL_HEAD = re.compile(r"[\w.+%'-]{1,64}$")
EMAIL_SPELT = re.compile(
    r"[\w.+-]{2,64}\s?[\[(]?\s?\bat\b\s?[\])]?\s?[\w-]{2,63}\s?[\[(]?\s?\bdot\b\s?[\])]?\s?(?:com|org"
    r"|net|edu|co|gov|in|uk|es|de|fr)\b",
    re.IGNORECASE,
)
URL = re.compile(r"(?:h(?<!\wh)ttps?://|f(?<!\wf)tp://|w(?<![\w@.]w)ww\.)[^\s<>\"'\[\]{}|\\^`]{3,2000}", re.IGNORECASE)
BARE_HOST = re.compile(
    r"(?:facebook|instagram|twitter|linkedin|tiktok|youtube|x|t)\.(?:com|me)/[\w./@?=&%-]{2,200}", re.IGNORECASE
)
IPV4 = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}")
IPV6 = re.compile(
    r"[\dA-Fa-f]{1,4}(?::[\dA-Fa-f]{1,4}){7}|[\dA-Fa-f]{1,4}(?::[\dA-Fa-f]{1,4}){1,6}::(?:[\dA-Fa-f]{1"
    r",4}(?::[\dA-Fa-f]{1,4}){0,5})?"
)
_VERSION = re.compile(r"(?:\bec|version|\bv\.?|section|release|firmware|chapter)\s?$", re.IGNORECASE)


def emails(text: str) -> Iterator[Span]:
    """E-mail addresses. The search starts at each @ and looks back, so a long run of word characters costs nothing."""
    if "@" in text:
        for m in EMAIL_TAIL.finditer(text):
            head = EMAIL_HEAD.search(text[max(0, m.start() - 64) : m.start()])
            if head and head[0].strip(".'-"):
                lead = len(head[0]) - len(head[0].lstrip(".'-"))
                yield "EMAIL", m.start() - len(head[0]) + lead, m.end() - len(m[0]) + len(m[0].rstrip("-_")), "email"


def spelt_emails(text: str) -> Iterator[Span]:
    """E-mail addresses with "at" and "dot" in words."""
    for m in EMAIL_SPELT.finditer(text):
        yield "EMAIL", m.start(), m.end(), "email_in_words"


def urls(text: str) -> Iterator[Span]:
    """URLs other than those of public bodies and reference works."""
    for pattern in (URL, BARE_HOST):
        for m in pattern.finditer(text):
            value = m[0].rstrip(".,;:!?)'*_")
            host = re.sub(r"^\w+://|^www\.", "", value.lower()).split("/")[0].split(":")[0]
            if host and not host.endswith(public_hosts()) and (m.start() == 0 or not text[m.start() - 1].isalnum()):
                yield "URL", m.start(), m.start() + len(value), "url"


def ip_addresses(text: str) -> Iterator[Span]:
    """IPv4 and IPv6. Small dotted numbers are versions, sections and enzyme classes."""
    for m in IPV4.finditer(text):
        octets = [int(x) for x in m[0].split(".")]
        plausible = max(octets) <= 255 and (sum(o > 9 for o in octets) >= 2)
        if (
            plausible
            and _alone(text, m.start(), m.end())
            and not _VERSION.search(text, max(0, m.start() - 10), m.start())
        ):
            yield "IP", m.start(), m.end(), "ipv4"
    if text.count(":") > 2:
        for m in IPV6.finditer(text):
            if _alone(text, m.start(), m.end()) and text[m.end() : m.end() + 1] != ":":
                yield "IP", m.start(), m.end(), "ipv6"


# ---------------------------------------------------------------------------------------------- addresses

_CAP = r"[A-ZÀ-ÖØ-ÞŁŚŞŠŽİ]"
_WORD = rf"(?:{_CAP}[\w'’.-]{{0,24}}|de|del|la|las|los|of|the|\d{{1,3}}(?:st|nd|rd|th))"
_SUFFIX = (
    r"(?:Street|St|Avenue|Ave|Av|Road|Rd|Boulevard|Blvd|Drive|Dr|Lane|Ln|Court|Ct|Circle|Cir|Place"
    r"|Pl|Square|Sq|Terrace|Ter|Way|Parkway|Pkwy|Highway|Hwy|"
    r"Crescent|Cres|Close|Gardens|Grove|Row|Mews|Trail|Trl|Turnpike|Alley|Loop|Plaza|Walk|Hill|Quay"
    r"|Marg|Nagar|Colony)"
)
_UNIT_PART = (
    r"(?:,?\s{1,2}(?:Apt|Apartment|Suite|Ste|Unit|Flat|Floor|Fl|Room|Rm|Bldg|Building"
    r"|#)\.?\s?#?\s?[\dA-Za-z-]{1,6}\b|,?\s#\s?\d{1,5})?"
)
_CITY = rf"(?:,\s{{1,2}}{_CAP}[\w'’.-]{{1,24}}(?:\s(?:{_CAP}[\w'’.-]{{1,24}}|de|la|upon|of)){{0,3}}?)"
_REGION = r"(?:,?\s{1,2}(?:[A-Z]{2,3}|[A-Z][a-z]{3,12}(?:\s[A-Z][a-z]{3,9})?))"
_CODE = (
    r"(?:,?\s{1,3}(?:\d{5}(?:-\d{4})?|[A-Z]{1,2}\d[A-Z\d]?\s\d[A-Z]{2}|[A-Z]\d[A-Z]\s?\d[A-Z]\d"
    r"|\d{4}\s?[A-Z]{2}|\d{4}|\d{6})(?!\d))"
)
_TAIL = rf"(?:{_CITY}{_REGION}?{_CODE}|{_CITY}(?:,\s[A-Z]{{2}}\b)?|{_CODE}(?:\s{_CAP}[a-zà-ÿ]{{2,20}})?)?"
STREET = re.compile(
    rf"\d{{1,6}}[A-Za-z]?(?:[-/]\d{{1,4}}[A-Za-z]?)?,?\s(?:[NSEW]\.?[EW]?\.?\s)?(?:{_WORD}\s){{0,3}}"
    rf"{_WORD}\s{_SUFFIX}\b\.?(?:\s[NSEW]{{1,2}}\b\.?)?{_UNIT_PART}{_TAIL}"
)
LOWER_STREET = re.compile(
    r"\d{1,6}[a-z]?\s(?:[nsew]\.?\s)?(?:([a-z][a-z'’-]{1,20})\s)?([a-z][a-z'’-]{1,20}"
    r"|\d{1,3}(?:st|nd|rd|th))\s(?:street|st|avenue|ave|road|rd|boulevard|blvd|lane|ln|court"
    r"|terrace|crescent|drive|close)\b\.?"
    r"(?:,?\s(?:apt|apartment|suite|unit|flat)\.?\s?#?\s?[\da-z-]{1,6}\b)?(?:,\s[a-z][a-z'’-]{2,20}("
    r"?:\s[a-z][a-z'’-]{2,20})?,?\s[a-z]{2}\s\d{5})?"
)
FOREIGN = re.compile(
    r"(?:C/|Calle|Carrer|Avenida|Avinguda|Avda\.?|Av\.|Plaza|Plaça|Pza\.|Paseo|Passeig|Ronda|Rua"
    r"|Rue|Boulevard|Via|Viale|Piazza|Corso|Rambla|ul\.|ulica)\s?"
    r"(?:(?:de la|de los|de las|de les|de|del|d'|della|di|du|des|do"
    rf"|da)\s?)?{_CAP}[\w'’-]{{1,24}}(?:\s(?:de|del|la|i|y|e|{_CAP}[\w'’-]{{1,24}})){{0,4}}"
    rf",?\s(?:n[ºo°.]{{1,2}}\s?|nº\s?)?\d{{1,5}}[A-Za-z]?\b(?:,\s?\d{{1,2}}(?!\d)[ºª°]?\s?[\dA-Za-z]"
    rf"{{0,2}}(?!\w)[ºª°]?)?(?:,?\s\d{{4,5}}(?:-\d{{3}})?\s{_CAP}[a-zà-ÿ]{{2,24}})?"
)
FRENCH = re.compile(
    rf"\d{{1,4}}(?:\s?(?:bis|ter))?,?\s(?:rue|avenue|boulevard|place|chemin|impasse|allée|quai"
    rf"|cours)\s(?:de la |de l'|des |du |de |d')?{_CAP}[\w'’-]{{1,24}}(?:[ "
    rf"-]{_CAP}?[\w'’-]{{1,24}}){{0,3}}?(?:,?\s\d{{5}}\s{_CAP}[\w-]{{2,24}}|(?=[,.\n]|$))"
)
GERMAN = re.compile(
    rf"{_CAP}[a-zäöüß-]{{2,30}}(?:straße|strasse|str\.|weg|platz|allee|gasse|straat|laan|gatan|vägen"
    rf"|veien|gade)\s\d{{1,4}}[a-z]?\b(?:,?\s(?:[A-Z]-?)?\d{{4,5}}(?:\s[A-Z]{{2}})?\s{_CAP}[a-zäöüß-]{{"
    rf"2,24}})?"
)
PO_BOX = re.compile(
    r"\b(?:P\.?\s?O\.?\s?Box|Post Office Box|Apartado(?: de correos)?|Postfach|GPO "
    r"Box)\s#?\d{1,7}(?:,\s[A-Z][\w .'-]{2,30},?\s[A-Z]{2}\s\d{5}(?:-\d{4})?)?",
    re.IGNORECASE,
)
ZIP = re.compile(r"\d{5}(?:-\d{4})?(?![\w-])")
_BEFORE_ZIP = re.compile(
    r"((?:[A-ZÀ-Þ][\w'’.-]{1,20}\s){0,2}[A-ZÀ-Þ][\w'’.-]{1,20},?\s{1,2})?\b([A-Z][A-Za-z]{1,12})[.,]?"
    r"\s{1,3}$"
)
LOWER_ZIP = re.compile(r"[a-z]{3,20},\s([a-z]{2})\s\d{5}(?:-\d{4})?(?![\w-])")
UK_POSTCODE = re.compile(r"[A-Z](?<!\w[A-Z])[A-Z]?\d[A-Z\d]?\s\d[ABD-HJLNP-UW-Z]{2}(?!\w)")
CANADIAN = re.compile(r"[ABCEGHJ-NPRSTVXY](?<!\w.)\d[ABCEGHJ-NPRSTV-Z][ -]?\d[ABCEGHJ-NPRSTV-Z]\d(?!\w)")
ADDRESS_CUE = re.compile(
    r"\b(?:home |mailing |postal |street |permanent |current |residential )?(?:address|domicilio"
    r"|dirección|adresse|residence)\s?(?:is|was)?\s?[:=]?\s{0,2}"
    r"((?:flat|house|plot|door|apt|h\.?\s?no|block|unit"
    r"|no)?\.?\s?(?:no\.?)?\s?#?\s?\d[^\n;]{4,100}?)(?=\.\s|\n|;|$|\.$|\s\()",
    re.IGNORECASE,
)
LIVE_CUE = re.compile(
    r"(?:\b(?:live[sd]?|living|reside[sd]?|residing|stay(?:ing|s|ed)?|home|house|moved|relocated"
    r"|addressed|send|sent|mail|mailed|post|deliver|delivered|came|come|went|go|visit(?:ed)?|letter"
    r"|parcel|located|picked up)\s(?:\w{2,8}\s){0,2}?(?:at|to|on|in)"
    r"|\b(?:address|domicilio|residence)(?:\s(?:is|was))?:?)\s{1,2}(?=[\w/]{1,20}\W)",
    re.IGNORECASE,
)
_ANY_CASE = tuple(
    (rule, re.compile(p.pattern, re.IGNORECASE))
    for rule, p in (("street", STREET), ("street_first", FOREIGN), ("french", FRENCH), ("german", GERMAN))
)
_LINE_START = re.compile(r"\n(?=[\da-zß-ÿ])")
_UNITS = frozenset(
    [
        "day",
        "days",
        "week",
        "weeks",
        "month",
        "months",
        "year",
        "years",
        "hour",
        "hours",
        "minute",
        "minutes",
        "min",
        "mins",
        "mile",
        "miles",
        "km",
        "feet",
        "ft",
        "metre",
        "metres",
        "meter",
        "meters",
        "foot",
        "step",
        "steps",
    ]
)


def addresses(text: str, words: Lexicon, cased: bool) -> Iterator[Span]:
    """Street addresses in the common American and European orders, post boxes, postal codes that say so."""
    low = text.lower()
    if "box" in low or "apartado" in low or "postfach" in low:
        for m in PO_BOX.finditer(text):
            yield "ADDRESS", m.start(), m.end(), "post_box"
    if "address" in low or "domicilio" in low or "dirección" in low or "adresse" in low or "residence" in low:
        for m in ADDRESS_CUE.finditer(text):
            if any(c.isalpha() for c in m[1]):
                yield "ADDRESS", m.start(1), m.end(1), "after_cue"
    if not cased:
        for m in (*LIVE_CUE.finditer(text), *_LINE_START.finditer(text)):
            for rule, pattern in _ANY_CASE:
                if there := pattern.match(text, m.end()):
                    yield "ADDRESS", m.end(), there.end(), rule
        for m in LOWER_STREET.finditer(text):
            middle = [w for w in (m[1], m[2]) if w]
            if _joined_before(text, m.start()) or any(w in words.stop or w in _UNITS for w in middle):
                continue
            if (
                not all(w in words.common and not words.is_known(w) for w in middle)
                or text[m.end() - 6 : m.end()].isdigit()
            ):
                yield "ADDRESS", m.start(), m.end(), "street"
        for m in LOWER_ZIP.finditer(text):
            if m[1] in states():
                yield "ADDRESS", m.start(), m.end(), "zip_after_state"
        return
    for rule, pattern in (("street", STREET), ("street_first", FOREIGN), ("french", FRENCH), ("german", GERMAN)):
        for m in pattern.finditer(text):
            if not _joined_before(text, m.start()):
                yield "ADDRESS", m.start(), m.end(), rule
    for m in ZIP.finditer(text):
        before = _BEFORE_ZIP.search(text, max(0, m.start() - 70), m.start())
        if before and fold(before[2]) in states() and (before[1] or len(before[2]) == 2):
            yield "ADDRESS", before.start(), m.end(), "zip_after_state"
    for rule, pattern in (("uk_postcode", UK_POSTCODE), ("canadian_postcode", CANADIAN)):
        for m in pattern.finditer(text):
            yield "ADDRESS", m.start(), m.end(), rule


def _joined_before(text: str, start: int) -> bool:
    return bool(start and (text[start - 1].isalnum() or text[start - 1] in "./-_$"))
