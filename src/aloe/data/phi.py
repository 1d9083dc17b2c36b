"""Personal health information: find it, and put a typed placeholder in its place.

What is looked for are the identifiers of the HIPAA safe-harbour list (45 CFR 164.514(b)(2)) as far as they occur in
text, by rules and word lists alone: no model, no network, the same answer everywhere. What the rules cover and what
they leave alone is said at the head of `phi_names`, `phi_dates`, `phi_ids` and `phi_contact`; how often they are right
is measured by `benchmarks/phi.py`. Rules miss things: a release of patient text needs more than this pass.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

from aloe.data.phi_contact import addresses, emails, ip_addresses, phones, spelt_emails, urls
from aloe.data.phi_dates import SPOKEN_GATE, ages, dates, months, spoken_ages, spoken_dates
from aloe.data.phi_ids import GATE, ids_by_cue, ids_by_form, usernames
from aloe.data.phi_names import names
from aloe.data.phi_words import Lexicon, lexicon
from aloe.records import Dialogue, Preference, Question, Row

KINDS: tuple[str, ...] = (
    "NAME",
    "DATE",
    "AGE",
    "PHONE",
    "EMAIL",
    "URL",
    "IP",
    "ADDRESS",
    "MRN",
    "NATIONAL_ID",
    "ACCOUNT",
    "DEVICE",
)
EXTRA_KINDS: tuple[str, ...] = ("MONTH",)  # a month with its year: an element of a date to HIPAA, not the default
# Where two findings overlap, the longer stays; of two of one length, the kind that stands first here.
_RANK = {
    k: i
    for i, k in enumerate(
        (
            "EMAIL",
            "URL",
            "NATIONAL_ID",
            "MRN",
            "ACCOUNT",
            "DEVICE",
            "ADDRESS",
            "IP",
            "DATE",
            "PHONE",
            "AGE",
            "NAME",
            "MONTH",
        )
    )
}
PLACEHOLDER = re.compile(r"\[(?:" + "|".join((*KINDS, *EXTRA_KINDS)) + r")(?: \d{1,4})?\]")
_MASK = "\ue000"  # private use: no letter, digit, space or sign of any pattern
_SENTENCE_START = re.compile(r"(?:\A|[.!?]\s|\n)\s{0,20}([^\W\d_])")
_NUMBERED = frozenset(("MRN", "NATIONAL_ID", "ACCOUNT", "DEVICE"))
_DIGIT = re.compile(r"\d")
_FOUR_DIGITS = re.compile(r"\d\D{0,4}\d\D{0,4}\d\D{0,4}\d")
_CAPITAL = re.compile(r"[A-ZÀ-ÖØ-Þ]")
_MAX_PASSES = 12

R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Finding:
    """One identifier: `text` is `source[start:end]`, `kind` one of `KINDS`, `rule` what recognised it."""

    kind: str
    start: int
    end: int
    text: str
    rule: str


def find(text: str, kinds: Collection[str] = KINDS, allow: Collection[str] = ()) -> list[Finding]:
    """Identifiers in a text, in its order, none overlapping.

    Replacing them by `redact` leaves nothing further to find: the search is repeated on the redacted text until it
    finds nothing, so that a name beside a removed number, say, is found too.

    Args:
        kinds: which kinds to look for, of `KINDS` and `EXTRA_KINDS`.
        allow: further words (or phrases, taken word by word) that are never part of a name.

    Raises:
        ValueError: an unknown kind.
    """
    unknown = sorted(set(kinds) - set(KINDS) - set(EXTRA_KINDS))
    if unknown:
        raise ValueError(f"unknown kind {unknown[0]!r}; the kinds are {', '.join((*KINDS, *EXTRA_KINDS))}")
    wanted, words = frozenset(kinds), lexicon(frozenset(allow))
    found = _one_pass(text, wanted, words)
    for _ in range(_MAX_PASSES if found else 0):
        more = _one_pass(redact(text, found), wanted, words)
        if not more:
            break
        found = _mapped_back(text, found, more)
    return found


def redact(text: str, findings: Iterable[Finding]) -> str:
    """`text` with each finding replaced by its kind in brackets, such as [NAME]."""
    parts, at = [], 0
    for f in sorted(findings, key=lambda f: f.start):
        parts += [text[at : f.start], f"[{f.kind}]"]
        at = f.end
    return "".join([*parts, text[at:]])


def _one_pass(text: str, wanted: frozenset[str], words: Lexicon) -> list[Finding]:
    """Findings of one search, overlaps settled. Placeholders already in the text are invisible to every rule."""
    plain = PLACEHOLDER.sub(lambda m: _MASK * len(m[0]), text) if "[" in text else text
    spans = [s for s in _candidates(plain, wanted, words) if s[0] in wanted and s[1] < s[2]]
    if not spans:
        return []
    spans.sort(key=lambda s: (s[1] - s[2], _RANK[s[0]], s[1]))
    taken: list[tuple[int, int, str, str]] = []
    for kind, start, end, rule in spans:
        at = bisect(taken, (start,))
        if (at == 0 or taken[at - 1][1] <= start) and (at == len(taken) or taken[at][0] >= end):
            taken.insert(at, (start, end, kind, rule))
    return [Finding(kind, start, end, text[start:end], rule) for start, end, kind, rule in taken]


def _candidates(text: str, wanted: frozenset[str], words: Lexicon) -> Iterator[tuple[str, int, int, str]]:
    """What each rule proposes. The cheap tests come first: most texts lack the digit, sign or word a rule needs."""
    low = text.lower()
    ways = ways_to_read(text)
    if "NAME" in wanted:
        for cased in ways:
            yield from names(text, words, cased)
    digits = _FOUR_DIGITS.search(text) is not None
    if _DIGIT.search(text):
        if "DATE" in wanted:
            yield from dates(text)
        if "MONTH" in wanted:
            yield from months(text)
        if "AGE" in wanted:
            yield from ages(text)
        if "PHONE" in wanted and digits:
            yield from phones(text)
        if "ADDRESS" in wanted:
            for cased in ways:
                yield from addresses(text, words, cased)
        if digits and not wanted.isdisjoint(_NUMBERED):
            yield from ids_by_form(text)
            if any(part in low for part in GATE):
                yield from ids_by_cue(text)
        if "IP" in wanted and digits:
            yield from ip_addresses(text)
    elif "DATE" in wanted and any(part in low for part in SPOKEN_GATE):
        yield from spoken_dates(text)
    if "AGE" in wanted and ("ninety" in low or "hundred" in low):
        yield from spoken_ages(text)
    if "ACCOUNT" in wanted and any(
        part in low for part in ("user", "login", "handle", "screen n", "skype", "gram", "twitter", "book")
    ):
        yield from usernames(text)
    if "EMAIL" in wanted:
        yield from emails(text)
        if " dot " in low or "[dot]" in low or "(dot)" in low:
            yield from spelt_emails(text)
    if "URL" in wanted and ("//" in low or "www." in low or ".com/" in low or ".me/" in low):
        yield from urls(text)


def ways_to_read(text: str) -> list[bool]:
    """Whether capitals tell something here: [True] in ordinary prose, [False] in a text without them, both in a text
    that begins sentences with small letters and yet has capitals: there a capital is all the more telling."""
    if not _CAPITAL.search(text):
        return [False]
    starts = [m[1] for m in islice(_SENTENCE_START.finditer(text), 60)]
    return [True] if sum(c.isupper() for c in starts) >= 0.8 * len(starts) else [True, False]


def _mapped_back(text: str, found: Sequence[Finding], more: Sequence[Finding]) -> list[Finding]:
    """`found`, and what was found `more` in the redacted text, at its place in `text`. A later finding that reaches
    over placeholders (an address that goes on behind one) takes in what they stand for."""
    starts: list[int] = []  # of each placeholder in the redacted text
    shifts = [0]  # redacted minus original position, before the first placeholder and after each
    for f in found:
        starts.append(f.start + shifts[-1])
        shifts.append(shifts[-1] + len(f.kind) + 2 - (f.end - f.start))

    def back(place: int, last: bool) -> int:
        """Original position of the character at `place`; of a placeholder's, the end of what it stands for."""
        n = bisect(starts, place) - 1
        if n >= 0 and place < starts[n] + len(found[n].kind) + 2:
            return found[n].end - 1 if last else found[n].start
        return place - shifts[n + 1]

    added = []
    for m in more:
        start, end = back(m.start, False), back(m.end - 1, True) + 1
        added.append(Finding(m.kind, start, end, text[start:end], m.rule))
    froms = [m.start for m in added]  # in order and apart, as the findings of one pass are
    kept = []
    for f in found:
        n = bisect(froms, f.start) - 1
        if n < 0 or added[n].end < f.end:
            kept.append(f)
    return sorted([*kept, *added], key=lambda f: f.start)


# ---------------------------------------------------------------------------------------------- records


def text_fields(record: Row) -> dict[str, str]:
    """The free text of a record by field path: `question`, `options.A`, `messages.0.content`, `meta.question` ..."""
    fields: dict[str, str] = {}
    if isinstance(record, Question):
        fields["question"] = record.question
        fields |= {f"options.{letter}": text for letter, text in record.options.items()}
        fields |= {"context": record.context, "explanation": record.explanation}
    elif isinstance(record, Dialogue):
        fields = {f"messages.{i}.content": m["content"] for i, m in enumerate(record.messages)}
    elif isinstance(record, Preference):
        fields = {f"prompt.{i}.content": m["content"] for i, m in enumerate(record.prompt)}
        fields |= {"chosen": record.chosen, "rejected": record.rejected}
    else:
        raise TypeError(f"no text fields are known of a {type(record).__name__}")
    if isinstance(record.meta.get("question"), str):
        fields["meta.question"] = record.meta["question"]
    return fields


def find_in_record(
    record: Row, kinds: Collection[str] = KINDS, allow: Collection[str] = ()
) -> dict[str, list[Finding]]:
    """Findings by field path; fields without any are left out.

    Raises:
        TypeError: the record is no Question, Dialogue or Preference.
    """
    found = {path: find(text, kinds, allow) for path, text in text_fields(record).items()}
    return {path: findings for path, findings in found.items() if findings}


def redact_record(
    record: R,
    findings: dict[str, list[Finding]] | None = None,
    kinds: Collection[str] = KINDS,
    allow: Collection[str] = (),
) -> R:
    """The record with its findings (searched for, if not given) replaced by placeholders; its id stays.

    Options that would read the same afterwards, or a chosen and a rejected answer, have their placeholders numbered
    ("Dr. [NAME 1]", "Dr. [NAME 2]"): an option set keeps as many different options as it had.
    """
    if findings is None:
        findings = find_in_record(record, kinds, allow)
    if not findings:
        return record
    new = {p: redact(t, findings.get(p, ())) for p, t in text_fields(record).items()}
    changes: dict[str, Any] = {}
    if isinstance(record, Question):
        options = _kept_apart(record.options, {k: new[f"options.{k}"] for k in record.options})
        changes = {
            "question": new["question"],
            "options": options,
            "context": new["context"],
            "explanation": new["explanation"],
        }
    elif isinstance(record, Dialogue):
        changes = {"messages": [{**m, "content": new[f"messages.{i}.content"]} for i, m in enumerate(record.messages)]}
    elif isinstance(record, Preference):
        pair = _kept_apart(
            {"chosen": record.chosen, "rejected": record.rejected},
            {"chosen": new["chosen"], "rejected": new["rejected"]},
        )
        prompt = [{**m, "content": new[f"prompt.{i}.content"]} for i, m in enumerate(record.prompt)]
        changes = {"prompt": prompt, **pair}
    if "meta.question" in new:
        changes["meta"] = {**record.meta, "question": new["meta.question"]}
    return replace(record, **changes)


def _kept_apart(before: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    """`after`, with placeholders numbered where texts that differed before would be the same."""
    result, number = dict(after), 0
    for key in result:
        same = [
            k for k in result if result[k].strip() == result[key].strip() and before[k].strip() != before[key].strip()
        ]
        if not same:
            continue
        for k in sorted({key, *same}):
            while True:
                number += 1
                numbered = PLACEHOLDER.sub(lambda m, n=number: f"{m[0][:-1].split(' ')[0]} {n}]", after[k], count=1)  # type: ignore[misc]
                if numbered not in result.values():
                    break
            result[k] = numbered
    return result
