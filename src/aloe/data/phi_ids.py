"""Numbers that name a person, an account or a device: by check digit, by form, or by the word before them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

Span = tuple[str, int, int, str]  # kind, start, end, rule

# ---------------------------------------------------------------------------------------------- check digits


def _digits(text: str) -> list[int]:
    return [int(c) for c in text if "0" <= c <= "9"]


def luhn(text: str) -> bool:
    """ISO/IEC 7812-1, Annex B: cards, Canadian SIN, IMEI, Swedish personnummer."""
    total = sum(d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(reversed(_digits(text))))
    return total % 10 == 0


def nhs(text: str) -> bool:
    """NHS number, modulus 11 (NHS Data Dictionary)."""
    d = _digits(text)
    if len(d) != 10 or len(set(d)) == 1:
        return False
    check = 11 - sum(x * w for x, w in zip(d, range(10, 1, -1))) % 11
    return (0 if check == 11 else check) == d[9]


def dni(text: str) -> bool:
    """Spanish DNI and NIE: the letter is the number modulo 23."""
    body = re.sub(r"[ .-]", "", text).upper()
    body = {"X": "0", "Y": "1", "Z": "2"}.get(body[0], body[0]) + body[1:]
    return len(body) == 9 and body[:8].isdigit() and "TRWAGMYFPDXBNJZSQVHLCKE"[int(body[:8]) % 23] == body[8]


def ssn(text: str) -> bool:
    """US social security number: area, group and serial that are ever issued."""
    d = "".join(c for c in text if c.isdigit())
    return len(d) == 9 and d[:3] not in ("000", "666") and d[0] != "9" and d[3:5] != "00" and d[5:] != "0000"


def cpf(text: str) -> bool:
    """Brazilian CPF: two check digits modulo 11."""
    d = _digits(text)
    if len(d) != 11 or len(set(d)) == 1:
        return False
    return all(sum(x * w for x, w in zip(d[:n], range(n + 1, 1, -1))) * 10 % 11 % 10 == d[n] for n in (9, 10))


def nir(text: str) -> bool:
    """French NIR: the last two digits are 97 minus the rest modulo 97 (Corsican 2A and 2B become 19 and 18)."""
    body = re.sub(r"[ .-]", "", text).upper().replace("2A", "19").replace("2B", "18")
    return len(body) == 15 and body.isdigit() and 97 - int(body[:13]) % 97 == int(body[13:])


_D = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    [1, 2, 3, 4, 0, 6, 7, 8, 9, 5],
    [2, 3, 4, 0, 1, 7, 8, 9, 5, 6],
    [3, 4, 0, 1, 2, 8, 9, 5, 6, 7],
    [4, 0, 1, 2, 3, 9, 5, 6, 7, 8],
    [5, 9, 8, 7, 6, 0, 4, 3, 2, 1],
    [6, 5, 9, 8, 7, 1, 0, 4, 3, 2],
    [7, 6, 5, 9, 8, 2, 1, 0, 4, 3],
    [8, 7, 6, 5, 9, 3, 2, 1, 0, 4],
    [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
]
_P = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
    [1, 5, 7, 6, 2, 8, 3, 0, 9, 4],
    [5, 8, 0, 3, 7, 9, 6, 1, 4, 2],
    [8, 9, 1, 6, 0, 4, 3, 5, 2, 7],
    [9, 4, 5, 3, 1, 2, 6, 8, 7, 0],
    [4, 2, 8, 6, 5, 7, 3, 9, 0, 1],
    [2, 7, 9, 3, 8, 0, 6, 4, 1, 5],
    [7, 0, 4, 6, 9, 1, 3, 2, 5, 8],
]


def verhoeff(text: str) -> bool:
    """Verhoeff (1969), as Aadhaar uses it."""
    c = 0
    for i, d in enumerate(reversed(_digits(text))):
        c = _D[c][_P[i % 8][d]]
    return c == 0


def iban(text: str) -> bool:
    """ISO 13616: modulo 97 is 1."""
    body = text.replace(" ", "").upper()
    return 15 <= len(body) <= 34 and int("".join(str(int(c, 36)) for c in body[4:] + body[:4])) % 97 == 1


def card(text: str) -> bool:
    """A payment card: 13 to 19 digits, a known first digit, Luhn."""
    d = _digits(text)
    return 13 <= len(d) <= 19 and d[0] in (3, 4, 5, 6) and len(set(d)) > 1 and luhn(text)


# ---------------------------------------------------------------------------------------------- forms

# Each begins with a plain set of characters (no look-behind first): that is what lets the search skip quickly.
FORMS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool] | None, str], ...] = (
    ("NATIONAL_ID", re.compile(r"\d{3}[-‐–]\d\d[-‐–]\d{4}"), ssn, "us_ssn"),
    (
        "NATIONAL_ID",
        re.compile(r"[\dXYZxyz]\d{7}[ -]?[A-Za-z]|\d{2}\.\d{3}\.\d{3}[ -]?[A-Za-z]|[XYZ]-\d{7}-[A-Z]"),
        dni,
        "es_dni",
    ),
    ("NATIONAL_ID", re.compile(r"\d{3} \d{3} \d{4}"), nhs, "uk_nhs"),
    ("NATIONAL_ID", re.compile(r"\d{3}\.\d{3}\.\d{3}-\d\d"), cpf, "br_cpf"),
    ("NATIONAL_ID", re.compile(r"[2-9]\d{3}[ -]\d{4}[ -]\d{4}"), verhoeff, "in_aadhaar"),
    (
        "NATIONAL_ID",
        re.compile(r"[12] ?\d\d ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d"),
        nir,
        "fr_nir",
    ),
    ("NATIONAL_ID", re.compile(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d\d ?\d\d ?\d\d ?[A-D]"), None, "uk_nino"),
    ("NATIONAL_ID", re.compile(r"[A-Z]{6}\d\d[A-EHLMPR-T]\d\d[A-Z]\d{3}[A-Z]"), None, "it_codice_fiscale"),
    ("NATIONAL_ID", re.compile(r"[A-Z]{3}[ABCFGHLJPTK][A-Z]\d{4}[A-Z]"), None, "in_pan"),
    (
        "NATIONAL_ID",
        re.compile(
            r"[1-9][AC-HJKMNP-RT-Y][AC-HJKMNP-RT-Y\d]\d-?[AC-HJKMNP-RT-Y][AC-HJKMNP-RT-Y\d]\d-?[AC-HJKMNP-RT"
            r"-Y]{2}\d\d"
        ),
        None,
        "us_mbi",
    ),
    (
        "NATIONAL_ID",
        re.compile(r"(?:19|20)?\d\d(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])[-+]\d{4}"),
        lambda t: luhn(re.sub(r"\D", "", t)[-10:]),
        "se_personnummer",
    ),
    ("ACCOUNT", re.compile(r"[A-Z]{2}\d\d(?: ?[A-Z\d]{4}){2,7}(?: ?[A-Z\d]{1,3})?"), iban, "iban"),
    (
        "ACCOUNT",
        re.compile(r"[3-6]\d{3}[ -]?\d{4}[ -]?\d{4}[ -]?\d{1,7}|3[47]\d\d[ -]?\d{6}[ -]?\d{5}"),
        card,
        "payment_card",
    ),
    ("DEVICE", re.compile(r"[\dA-Fa-f]{2}(?::[\dA-Fa-f]{2}){5}|[\dA-Fa-f]{2}(?:-[\dA-Fa-f]{2}){5}"), None, "mac"),
)

# ---------------------------------------------------------------------------------------------- a word before

_VALUE = r"((?:[A-Za-z]{1,5}[-/]?)?\d[\dA-Za-z]*(?:[-/.](?=\w)[\dA-Za-z]+){0,4}(?:\s\d{2,4}(?!\w)){0,3})"
_LINK = (
    r"(?:\s?\((?:mrn|id|no)\))?\s?(?:numbers?|nos?\.|no\b|num\b|nr\.?|code|identifier|id\b|#"
    r"|№)?(?:\s(?:on|in|at|from|for|of)\s(?:the|my|his|her|your|our|this|that|their)\s\w{2,15})?"
    r"\s?(?:is|was|of|reads?|says)?\s?[:#=№-]?\s?#?\s?"
)
_CUES = (
    (
        "MRN",
        r"m\.?r\.?n\.?|m\.?r\.? ?(?:#|no\.?|number)|medical record|med rec|health record|hospital "
        r"(?:number|no\.?|id|#)|hosp\.? (?:no\.?|number|#)|"
        r"chart (?:number|no\.?|#|id)|patient (?:id|number|no\.?|identifier|#)|pt\.? (?:id|no\.?|#)"
        r"|unit (?:number|no\.)|uhid|ur number|ehr (?:id|number)|"
        r"case (?:number|no\.|#)|file (?:number|no\.|#)|record (?:number|no\.|#)|registration "
        r"(?:number|no\.)|encounter (?:number|no\.?|id|#)|"
        r"visit (?:number|id)|accession(?: number| no\.?| #)?|specimen (?:id|number)|ip no|op no"
        r"|historia cl[ií]nica|n[ºo°]\.? de historia|nhc",
    ),
    (
        "NATIONAL_ID",
        r"ssn|s\.s\.n\.|social security(?: (?:number|no\.?|#))?|social insurance|sin(?= ?(?:number|no|#"
        r"|:))|nhs|chi number|dni|nie|nif|"
        r"national id(?:entity|entification)?(?: card)?|passport|aadhaar|aadhar|pan card|nric"
        r"|cpf|curp|rut(?= ?[:#n])|personnummer|medicare|medicaid|"
        r"tax id|steuer-?id|tfn|national insurance|driver'?s? licen[sc]e|driving licen[sc]e"
        r"|licen[sc]e (?:number|no\.?|#)|dl(?= ?[#:])|cip|tarjeta sanitaria",
    ),
    (
        "ACCOUNT",
        r"(?:bank |patient )?account (?:number|no\.?|#|id)|account(?= ?[:#])|acct\.?(?: (?:number|no\.?"
        r"|#))?|policy (?:number|no\.?|#|id)|"
        r"insurance (?:id|number|no\.?|#|policy)|member(?:ship)? (?:id|number|no\.?|#)|subscriber "
        r"(?:id|number)|group (?:number|no\.)|health plan(?: (?:id|number|beneficiary))?|"
        r"beneficiary (?:id|number|no\.)|invoice (?:number|no\.?|#)|claim (?:number|no\.?|id|#)"
        r"|certificate (?:number|no\.)|npi|dea(?= ?(?:number|no|#|:))|"
        r"credit card|card (?:number|no\.?)|user ?(?:name|id)|login id|customer (?:id|number)"
        r"|licen[sc]e plate|plate (?:number|no\.)|registration plate|vin(?= ?(?:number|no|#|:|is))",
    ),
    (
        "DEVICE",
        r"serial (?:number|no\.?|#)|serial(?= ?[:#])|s/n|device (?:id|identifier|number|serial(?: "
        r"number)?)|imei|udi|implant (?:id|number|serial)|pacemaker (?:id|serial|number)|"
        r"(?:pump|cgm|meter|icd) (?:serial|id)(?: number)?|lot (?:number|no\.?|#)|model (?:number|no\.?)",
    ),
)
CUED = tuple((kind, re.compile(rf"(?<![\w-])(?:{cue}){_LINK}{_VALUE}(?!\w)", re.IGNORECASE)) for kind, cue in _CUES)
USERNAME = re.compile(
    r"\b(?:user ?name|login|handle|screen name|skype(?: id)?|instagram|twitter|facebook)\s?(?:is|:"
    r"|=)\s?(@?[\w.-]{3,30})",
    re.IGNORECASE,
)
# Substrings (folded) of which one must occur before the cue patterns are tried at all.
GATE = (
    "mrn",
    "m.r",
    "mr#",
    "mr #",
    "mr no",
    "record",
    "hosp",
    "chart",
    "patient id",
    "patient n",
    "patient #",
    "pt id",
    "pt. id",
    "pt no",
    "pt #",
    "unit n",
    "uhid",
    "ur number",
    "ehr",
    "case n",
    "case #",
    "file n",
    "file #",
    "registration",
    "encounter",
    "visit n",
    "visit id",
    "accession",
    "specimen",
    "ip no",
    "op no",
    "histori",
    "nhc",
    "ssn",
    "s.s.n",
    "social",
    "sin",
    "nhs",
    "chi n",
    "dni",
    "nie",
    "nif",
    "national",
    "passport",
    "aadha",
    "pan card",
    "nric",
    "cpf",
    "curp",
    "rut",
    "personn",
    "medica",
    "tax id",
    "steuer",
    "tfn",
    "licen",
    "dl",
    "cip",
    "tarjeta",
    "account",
    "acct",
    "policy",
    "insurance",
    "member",
    "subscriber",
    "group n",
    "health plan",
    "beneficiary",
    "invoice",
    "claim",
    "certificate",
    "npi",
    "dea",
    "card n",
    "credit card",
    "user",
    "login",
    "customer",
    "plate",
    "vin",
    "serial",
    "s/n",
    "device",
    "imei",
    "udi",
    "implant",
    "pacemaker",
    "pump",
    "cgm",
    "meter",
    "icd",
    "lot n",
    "model n",
)
_NOT_A_NUMBER = re.compile(
    r"(?:19|20)\d\d$|\d{1,3}$|\d+(?:mg|ml|mcg|g|kg|cm|mm|st|nd|rd|th|am|pm|%)$|\d{1,3}[-/.]\d{1,3}$|\d+\.\d{1,2}$",
    re.IGNORECASE,
)


def _joined(text: str, start: int, end: int) -> bool:
    """Whether the span is part of a longer word, number or code."""
    before, after = text[start - 1 : start], text[end : end + 2]
    return bool(
        (before and (before.isalnum() or before in "._/-+"))
        or after[:1].isalnum()
        or (after[:1] in ("-", "/", "_") and after[1:].isalnum())
    )


def ids_by_form(text: str) -> Iterator[Span]:
    """Numbers that their own form or check digit gives away."""
    for kind, pattern, check, rule in FORMS:
        for m in pattern.finditer(text):
            if not _joined(text, m.start(), m.end()) and (check is None or check(m[0])):
                yield kind, m.start(), m.end(), rule


def ids_by_cue(text: str) -> Iterator[Span]:
    """Numbers that the word before gives away ("MRN: 00482913"). A year, a dose or a short count is none."""
    for kind, pattern in CUED:
        for m in pattern.finditer(text):
            value = m[1]
            digits = sum(c.isdigit() for c in value)
            if digits >= 4 and digits >= sum(c.isalpha() for c in value) and not _NOT_A_NUMBER.match(value):
                yield kind, m.start(1), m.end(1), "after_cue"


def usernames(text: str) -> Iterator[Span]:
    """Login names and handles after their word."""
    for m in USERNAME.finditer(text):
        if any(c.isdigit() or c in "@._" for c in m[1]):
            yield "ACCOUNT", m.start(1), m.end(1), "user_name"
