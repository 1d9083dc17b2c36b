"""How a set was curated: the record that `curate` writes (`curation.json`), as charts and tables with their evidence.

Texts come from the rows and are only ever handed to templates that escape them. Of personal health information there
are counts and nothing else: a row that was dropped for it is named, its text is not shown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from aloe.report.curation_charts import Bar, Bin, Passage, bars, histogram, rows_flow
from aloe.report.evidence import Evidence
from aloe.report.making import cut

RECORD = "curation.json"
PERSONAL = "phi"  # the stage that looks for personal health information
RUN = 3  # words in a row that both texts have: marked as matching
LONGEST, WINDOW, LEAD = 20_000, 900, 140  # characters compared, shown, and shown before the first match
_LETTER = re.compile(r"^[^\S\n]*\(?([A-Za-z])[.):]\s", re.MULTILINE)  # of an option, at a line's beginning
Record = Mapping[str, Any]
Pieces = list[tuple[str, bool]]


def curations(evidence: Evidence) -> list[dict[str, Any]]:
    """One entry per curation that the page may speak of: the artifact's own, or all of a release's."""
    found = []
    for step in evidence.speaking():
        record = step.shelf.json(RECORD) if step.shelf else None
        if record:
            found.append({"step": step.name, **curation(record)})
    return found


def curation(record: Record) -> dict[str, Any]:
    """Charts and rows of one record; a part that it lacks is None or empty, and isn't shown."""
    stages = list(record.get("stages") or ())
    passages = [Passage(str(s["stage"]), s["rows_in"], s["kept"], s.get("dropped") or {}) for s in stages]
    return {
        "facts": _facts(record, stages),
        "flow": rows_flow(passages),
        "stages": [{**s, "seconds": s.get("seconds"), "dropped": _sorted(s.get("dropped"))} for s in stages],
        "by_source": _by_source(stages),
        "examples": _examples(record.get("examples") or {}, [p.stage for p in passages]),
        "words": _words(record),
        "lengths": _lengths(record),
        "licences": _licences(record),
        "clusters": _clusters(record.get("clusters")),
        "contamination": _contamination(record.get("contamination")),
        "personal": _personal(record.get("phi")),
        "quality": _quality(record.get("quality")),
        "diversity": record.get("diversity") or None,
        "tasks": bars([Bar(str(t).replace("_", " "), n) for t, n in _ranked(record.get("tasks"))], "rows by task"),
        "templates": _shares(record.get("templates")),
        "mix": _mix(record.get("mix") or ()),
    }


def _sorted(counts: Mapping[str, int] | None) -> list[tuple[str, int]]:
    return sorted((counts or {}).items())


def _ranked(counts: Mapping[str, int] | None) -> list[tuple[str, int]]:
    """By count, the greatest first."""
    return sorted((counts or {}).items(), key=lambda entry: (-entry[1], entry[0]))


def _shares(counts: Mapping[str, int] | None) -> list[tuple[str, int, float]]:
    total = sum((counts or {}).values())
    return [(name, n, n / total) for name, n in _ranked(counts) if total]


# -- the whole ----------------------------------------------------------------------------------------------------


def _facts(record: Record, stages: Sequence[Record]) -> list[tuple[str, str]]:
    facts: list[tuple[str, str | None]] = []
    if stages:
        read, kept = stages[0]["rows_in"], stages[-1]["kept"]
        share = f" ({kept / read:.1%})" if read else ""
        facts += [("rows read", f"{read:,}"), ("rows in the set", f"{kept:,}{share}")]
    facts.append(("strictest licence", record.get("licence")))
    after = (record.get("after") or {}).get("words") or {}
    median = [f"{w['median']:,} ({role})" for role, w in after.items() if w.get("median") is not None]
    facts.append(("median words of a turn", ", ".join(median)))
    if table := (record.get("contamination") or {}).get("table"):
        for tier in ("contaminated", "suspected"):
            n = sum(int(cell.get(tier) or 0) for row in table.values() for cell in row.values())
            facts.append((f"{tier}, over benchmarks", f"{n:,}"))
    if (phi := record.get("phi") or {}) and phi.get("mode") != "off":
        facts.append(("rows with personal data", f"{phi.get('rows_with') or 0:,} ({phi.get('mode')})"))
    facts.append(("templates used", f"{len(record['templates'])}" if record.get("templates") else None))
    return [(label, str(value)) for label, value in facts if value]


def _by_source(stages: Sequence[Record]) -> dict[str, Any] | None:
    """Rows kept at every stage, by source."""
    told = [s for s in stages if s.get("by_source")]
    names = sorted({name for s in told for name in s["by_source"]})
    if not names:
        return None
    rows = [(name, [s["by_source"].get(name, 0) for s in told]) for name in names]
    return {"stages": [str(s["stage"]) for s in told], "rows": rows}


def _examples(examples: Mapping[str, Mapping[str, Sequence[Record]]], order: Sequence[str]) -> list[dict[str, Any]]:
    """By stage, in the stages' order, and reason: id, place, what shows it, the beginning of the text."""
    found = []
    for stage in dict.fromkeys([*(s for s in order if s in examples), *examples]):
        by_reason = examples[stage]
        reasons = [
            (reason, [_example(row, withheld=PERSONAL in (stage, reason)) for row in rows])
            for reason, rows in sorted(by_reason.items())
            if rows
        ]
        if reasons:
            found.append({"stage": stage, "reasons": reasons})
    return found


def _example(row: Record, withheld: bool) -> dict[str, str]:
    where = {"id": str(row.get("id") or ""), "where": str(row.get("where") or row.get("source") or "")}
    if withheld:
        return {**where, "shows": "", "text": "withheld: it holds personal data"}
    evidence = row.get("evidence") or {}
    told = [
        f"{k.replace('_', ' ')} {v}"
        for k, v in evidence.items()
        if not isinstance(v, Mapping | list) and not k.endswith("_text")
    ]
    shows = "; ".join(str(x) for x in (row.get("detail"), ", ".join(told)) if x)
    return {**where, "shows": cut(shows), "text": cut(str(row.get("text") or ""))}


# -- lengths and licences -----------------------------------------------------------------------------------------


def _words(record: Record) -> list[dict[str, Any]]:
    """Words of a turn by role: what it was before, what it is after."""
    before, after = (((record.get(side) or {}).get("words") or {}) for side in ("before", "after"))
    fields = ("mean", "median", "p95", "max")
    return [
        {
            "role": role,
            "figures": [(f, (before.get(role) or {}).get(f), (after.get(role) or {}).get(f)) for f in fields],
        }
        for role in sorted({*before, *after}, reverse=True)
    ]


def _lengths(record: Record) -> list[tuple[str, Any]]:
    """A histogram of words a turn for each role, over the bins of both sides."""
    before, after = (((record.get(side) or {}).get("histogram") or {}) for side in ("before", "after"))
    charts = []
    for role in sorted({*before, *after}, reverse=True):
        was, now = (
            {(float(b["from"]), float(b["to"])): int(b["rows"]) for b in side.get(role) or ()}
            for side in (before, after)
        )
        known = role in before
        bins = [Bin(*k, now.get(k, 0), was.get(k, 0) if known else None) for k in sorted({*was, *now})]
        charts.append((role, histogram(bins, f"words of the {role}'s turns", "words")))
    return [(role, chart) for role, chart in charts if chart]


def _licences(record: Record) -> dict[str, Any] | None:
    before, after = (((record.get(side) or {}).get("licences") or {}) for side in ("before", "after"))
    counted = [(s, lic, n) for s, by in sorted((record.get("licences") or {}).items()) for lic, n in _ranked(by)]
    total = sum(after.values())
    rows = [
        (name, before.get(name), after.get(name, 0), after.get(name, 0) / total if total else None)
        for name in sorted({*before, *after}, key=lambda name: (-after.get(name, 0), name))
    ]
    return {"rows": rows, "by_source": counted, "strictest": record.get("licence")} if rows or counted else None


# -- duplicates and contamination ---------------------------------------------------------------------------------


def _clusters(clusters: Record | None) -> dict[str, Any] | None:
    if not clusters or not clusters.get("count"):
        return None
    sizes: dict[str, int] = {}
    for size, n in sorted((clusters.get("sizes") or {}).items(), key=lambda entry: int(entry[0])):
        label = next(name for least, name in _SIZES if int(size) >= least)
        sizes[label] = sizes.get(label, 0) + int(n)
    return {
        "count": clusters["count"],
        "rows": clusters.get("rows"),
        "sizes": bars([Bar(label, n) for label, n in sizes.items()], "near-duplicate clusters by size"),
        "largest": [
            {
                "survivor": str(c.get("survivor") or ""),
                "size": c.get("size"),
                "text": cut(str(c.get("text") or "")),
                "members": [
                    {
                        "id": str(m.get("id") or ""),
                        "similarity": m.get("similarity"),
                        "text": cut(str(m.get("text") or "")),
                    }
                    for m in c.get("members") or ()
                ],
            }
            for c in clusters.get("largest") or ()
        ],
    }


_SIZES = ((101, "over 100 rows"), (21, "21 to 100"), (11, "11 to 20"), (6, "6 to 10"), (5, "5"), (4, "4"), (3, "3"),
          (0, "2 rows"))  # fmt: skip


def _contamination(found: Record | None) -> dict[str, Any] | None:
    table = (found or {}).get("table") or {}
    hits = (found or {}).get("hits") or ()
    if not table and not hits:
        return None
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for hit in hits:
        row, item = matching(str(hit.get("row_text") or ""), str(hit.get("item_text") or ""))
        key = (str(hit.get("source") or ""), str(hit.get("benchmark") or ""))
        groups.setdefault(key, []).append(
            {**{k: hit.get(k) for k in ("row_id", "item_id", "tier", "similarity")}, "row": row, "item": item}
        )
    return {
        "benchmarks": sorted({b for cells in table.values() for b in cells}),
        "rows": sorted(table.items()),
        "groups": sorted(groups.items()),
        "shown": len(hits),
        "total": (found or {}).get("total_hits") or len(hits),
    }


def matching(first: str, second: str) -> tuple[Pieces, Pieces]:
    """Both texts in pieces of (text, whether it matches), cut to a window that begins shortly before the first match.

    A word matches when it lies in a run of `RUN` words that the other text has too, wherever it has it, or in a line
    that the other text has too but for an option's letter: re-ordered options still match.
    """
    texts = first[:LONGEST], second[:LONGEST]
    tokens = [_tokens(text) for text in texts]
    run = min(RUN, *(len(found) for found in tokens))
    sides = []
    for at, own in enumerate(tokens):
        others = tokens[1 - at]
        known = {tuple(w for _, _, w in others[n : n + run]) for n in range(len(others) - run + 1)} if run else set()
        lines = {_option(line) for line in texts[1 - at].splitlines()} - {""}
        marked = [False] * len(own)
        for n in range(len(own) - run + 1 if run else 0):
            if tuple(w for _, _, w in own[n : n + run]) in known:
                marked[n : n + run] = [True] * run
        spans = [(m.start(), m.end()) for m in re.finditer(r"[^\n\r]+", texts[at]) if _option(m[0]) in lines]
        for n, (start, end, _) in enumerate(own):
            marked[n] = marked[n] or any(a <= start and end <= b for a, b in spans)
        sides.append(_window(_pieces(texts[at], own, marked)))
    return sides[0], sides[1]


def _tokens(text: str) -> list[tuple[int, int, str]]:
    """(start, end, word) of the words of a text, options' letters left out."""
    letters = {m.start(1) for m in _LETTER.finditer(text)}
    words = ((m.start(), m.end(), m[0].casefold()) for m in re.finditer(r"\w+", text))
    return [word for word in words if word[0] not in letters]


def _option(line: str) -> str:
    """A line without an option's letter, for comparison."""
    return " ".join(word for _, _, word in _tokens(line))


def _pieces(text: str, tokens: Sequence[tuple[int, int, str]], marked: Sequence[bool]) -> Pieces:
    """Neighbouring marked words are one piece, with what stands between them."""
    pieces: Pieces = []
    done, at = 0, 0
    while at < len(tokens):
        if not marked[at]:
            at += 1
            continue
        last = at
        while last + 1 < len(tokens) and marked[last + 1]:
            last += 1
        start, end = tokens[at][0], tokens[last][1]
        pieces += [(text[done:start], False), (text[start:end], True)]
        done, at = end, last + 1
    return [piece for piece in [*pieces, (text[done:], False)] if piece[0]]


def _window(pieces: Pieces) -> Pieces:
    """`WINDOW` characters, from a little before the first match on."""
    first = next((n for n, piece in enumerate(pieces) if piece[1]), 0)
    before = sum(len(text) for text, _ in pieces[:first])
    skip, room = max(before - LEAD, 0), WINDOW
    shown: Pieces = [("… ", False)] if skip else []
    for text, matches in pieces:
        part = text[skip:][:room]
        skip, room = max(skip - len(text), 0), room - len(part)
        if part:
            shown.append((part, matches))
    whole = sum(len(text) for text, _ in pieces) - max(before - LEAD, 0)
    return [*shown, (" …", False)] if whole > WINDOW else shown


# -- personal data, quality, mix ----------------------------------------------------------------------------------


def _personal(phi: Record | None) -> dict[str, Any] | None:
    """Counts alone."""
    if not phi:
        return None
    by_source = phi.get("by_source") or {}
    total: Mapping[str, int] = phi.get("by_kind") or {}
    kinds = [kind for kind, _ in _ranked(total)]
    return {
        "mode": str(phi.get("mode") or "unknown"),
        "rows_with": phi.get("rows_with") or 0,
        "kinds": kinds,
        "total": [int(total[k]) for k in kinds],
        "by_source": [(s, [int(by.get(k) or 0) for k in kinds]) for s, by in sorted(by_source.items())],
    }


def _quality(quality: Record | None) -> dict[str, Any] | None:
    if not quality:
        return None
    threshold = quality.get("threshold")
    bins = [Bin(float(b["from"]), float(b["to"]), int(b["rows"])) for b in quality.get("histogram") or ()]
    fields = ("scorer", "drop_share", "threshold", "unscored")
    return {
        "facts": [(f, quality[f]) for f in fields if quality.get(f) is not None],
        "chart": histogram(bins, "quality scores", "score", threshold),
        "by_source": [(s, v.get("mean"), v.get("median")) for s, v in sorted((quality.get("by_source") or {}).items())],
    }


def _mix(mix: Sequence[Record]) -> dict[str, Any] | None:
    weights = [float(m["weight"]) for m in mix if m.get("weight") is not None]
    if not mix:
        return None
    total = sum(weights)
    rows = [Bar(str(m["source"]), int(m["rows"]), _wanted(m.get("weight"), total)) for m in mix]
    return {"chart": bars(rows, "rows by source in the mix"), "weighted": bool(weights)}


def _wanted(weight: float | None, total: float) -> float | None:
    """The share that a weight asks for."""
    return float(weight) / total if weight is not None and total else None
