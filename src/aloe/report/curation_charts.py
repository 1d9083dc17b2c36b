"""Charts of the curation section: rows through the stages as a flow, lengths before and after, counts as bars.

Pure, as in `charts`: numbers and labels in, escaped markup out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from aloe.report.charts import CHAR, WIDTH, canvas, clip, line, tag, text, ticks

FLOW_WIDTH, BAND_LEFT, BAND, BEND, LABEL = 488.0, 118.0, 100.0, 244.0, 251.0
LEAST = 1.6  # units: a single row of two million can still be seen
REASONS = 8  # of one stage drawn apart; the rest are drawn as one
LINE, ROOM = 19.0, 46.0  # heights: a label's line, the least for a stage


@dataclass(frozen=True)
class Passage:
    """One stage: rows in, rows kept, rows dropped by reason."""

    stage: str
    rows_in: int
    kept: int
    dropped: Mapping[str, int]


# -- rows through the stages --------------------------------------------------------------------------------------


def rows_flow(passages: Sequence[Passage]) -> Markup:
    """A flow from top to bottom: the band is as wide as its rows are many, what is dropped bends off to the right.

    Widths are in proportion to rows, but none is narrower than `LEAST`.
    """
    if not passages or not passages[0].rows_in:
        return Markup("")
    total = passages[0].rows_in
    parts: list[Markup] = []
    y = 8.0
    for passage in passages:
        below = y + _height(passage, total)
        parts += _ribbons(passage, y, total)
        if passage.kept:
            width = _thick(passage.kept, total)
            title = tag("title", f"{_words(passage.stage)}: {passage.kept:,} kept")
            parts.append(tag("rect", title, x=BAND_LEFT, y=y, width=width, height=below - y, class_="stream"))
        parts += _station(_words(passage.stage), passage.rows_in, "in", y, total)
        y = below
    last = passages[-1].kept
    parts += _station("curated set", last, f"· {_part(last, total)}", y, total)
    return canvas(FLOW_WIDTH, y + 34, "Rows through the stages. " + _said(passages), parts, "chart rows")


def _thick(rows: int, total: int) -> float:
    return max(BAND * rows / total, LEAST) if rows else 0.0


def _shown(passage: Passage) -> list[tuple[str, int]]:
    """Reasons by count, the commonest first; beyond `REASONS` as one."""
    reasons = sorted(((_words(r), n) for r, n in passage.dropped.items() if n), key=lambda entry: (-entry[1], entry[0]))
    if len(reasons) <= REASONS:
        return reasons
    rest = reasons[REASONS - 1 :]
    return [*reasons[: REASONS - 1], (f"{len(rest)} other reasons", sum(n for _, n in rest))]


def _height(passage: Passage, total: int) -> float:
    ends = sum(max(_thick(n, total), LINE) + 4 for _, n in _shown(passage))
    return max(ROOM, ends + 30)


def _ribbons(passage: Passage, top: float, total: int) -> list[Markup]:
    """What leaves the band: the rightmost first, so that no ribbon crosses another."""
    parts: list[Markup] = []
    inner = BAND_LEFT + _thick(passage.kept, total)  # a ribbon drawn wider than its rows may not cover what is kept
    right, y = BAND_LEFT + _thick(passage.rows_in, total), top + 12.0
    for at, (reason, rows) in enumerate(_shown(passage)):
        thick = _thick(rows, total)
        room = max(thick, LINE)
        left = max(right - thick, inner)
        upper = y + (room - thick) / 2
        said = f"{_words(passage.stage)}, {reason}: {rows:,} dropped"
        parts.append(
            tag("path", tag("title", said), d=_bent(left, left + thick, top, upper, thick), class_=f"leak lost{at % 2}")
        )
        count = f"{rows:,} · {_part(rows, total)}"
        name = clip(reason, FLOW_WIDTH - LABEL - CHAR * (len(count) + 2))
        label = [tag("tspan", name), tag("tspan", count, dx=8, class_="tick"), tag("title", said)]
        parts.append(tag("text", *label, x=LABEL, y=y + room / 2 + 4))
        right, y = left, y + room + 4
    return parts


def _bent(left: float, right: float, top: float, upper: float, thick: float) -> str:
    """A ribbon that falls from `top` between `left` and `right`, then turns right and runs below `upper` to its end."""
    lower, round_ = upper + thick, min(upper - top, BEND - right, 16.0)
    inner = round_ + thick
    corners = (
        ("M", right, top), ("L", right, upper - round_), ("Q", right, upper), ("", right + round_, upper),
        ("L", BEND, upper), ("L", BEND, lower),
        ("L", left + inner, lower), ("Q", left, lower), ("", left, lower - inner), ("L", left, top),
    )  # fmt: skip
    return " ".join(f"{command}{x:.1f} {y:.1f}" for command, x, y in corners) + " Z"


def _station(name: str, rows: int, what: str, y: float, total: int) -> list[Markup]:
    bar = tag("rect", x=BAND_LEFT - 2, y=y - 1.5, width=_thick(rows, total) + 4, height=3.0, class_="station")
    label = text(BAND_LEFT - 8, y + 13, clip(name, (BAND_LEFT - 8) * 0.8), "name", "end", title=name)
    return [bar, label, text(BAND_LEFT - 8, y + 28, f"{rows:,} {what}", "tick", "end")]


def _said(passages: Sequence[Passage]) -> str:
    told = [f"{passages[0].rows_in:,} rows read"]
    for p in passages:
        reasons = ", ".join(f"{_words(r)} {n:,}" for r, n in sorted(p.dropped.items()) if n)
        told.append(f"{_words(p.stage)}: {p.kept:,} kept" + (f", dropped {reasons}" if reasons else ""))
    return "; ".join(told)


def _part(rows: int, total: int) -> str:
    share = rows / total
    return "< 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def _words(name: str) -> str:
    return name.replace("_", " ")


# -- distributions ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bin:
    """A step of a histogram: [`low`, `high`), rows `after` as a bar, `before` (where known) as an outline."""

    low: float
    high: float
    after: int
    before: int | None = None


def histogram(bins: Sequence[Bin], title: str, x_label: str, below: float | None = None) -> Markup:
    """Bars of equal width, one a bin, whatever the bins' own widths; those that end at or `below` are marked."""
    top_value = max((max(b.after, b.before or 0) for b in bins), default=0)
    if not top_value:
        return Markup("")
    left, right, top, bottom = 46.0, WIDTH - 8.0, 8.0, 138.0
    marks = ticks(0.0, float(top_value))
    step = (right - left) / len(bins)
    every = -(-len(bins) * 30 // int(right - left))  # labels at least 30 units apart
    parts = []
    for mark in marks:
        y = bottom - mark / marks[-1] * (bottom - top)
        parts += [line(left, y, right, y, "grid"), text(left - 5, y + 4, compact(mark), "tick", "end")]
    outline = f"M{left:.1f} {bottom:.1f}"
    for at, one in enumerate(bins):
        x = left + at * step
        span = f"{compact(one.low)} to {compact(one.high)}"
        known = "" if one.before is None else f", {one.before:,} before"
        tall = one.after / marks[-1] * (bottom - top)
        mark_ = "lost1" if below is not None and one.high <= below + 1e-12 else "fill0"
        bar = tag("title", f"{span}: {one.after:,} rows{known}")
        parts.append(tag("rect", bar, x=x + 1, y=bottom - tall, width=max(step - 2, 1), height=tall, class_=mark_))
        high = bottom - (one.before or 0) / marks[-1] * (bottom - top)
        outline += f" L{x:.1f} {high:.1f} L{x + step:.1f} {high:.1f}"
        if at % every == 0:
            parts.append(text(x, bottom + 14, compact(one.low), "tick", "middle"))
    if any(b.before is not None for b in bins):
        parts.append(tag("path", d=f"{outline} L{right:.1f} {bottom:.1f}", class_="outline"))
    parts.append(text(right, bottom + 29, x_label, "tick", "end"))
    said = "; ".join(f"{compact(b.low)} to {compact(b.high)} {b.after:,}" for b in bins if b.after)
    return canvas(WIDTH, bottom + 34, f"{title}, rows by {x_label}. {said}", parts)


@dataclass(frozen=True)
class Bar:
    """A count with its label; `mark` is a share that it was meant to have."""

    label: str
    rows: int
    mark: float | None = None


def bars(rows: Sequence[Bar], title: str) -> Markup:
    """Horizontal bars with counts and shares of their sum; a mark stands where a share was meant to end."""
    total = sum(r.rows for r in rows)
    if not total:
        return Markup("")
    top_share = max([r.rows / total for r in rows] + [r.mark or 0.0 for r in rows])
    width = min(164.0, max(CHAR * len(r.label) for r in rows))
    notes = [f"{r.rows:,} · {_part(r.rows, total)}" for r in rows]
    left = width + 8
    right = WIDTH - 1.2 * CHAR * max(len(n) for n in notes) - 10  # figures are bold
    parts = []
    for at, (row, note) in enumerate(zip(rows, notes, strict=True)):
        y = 4.0 + 22 * at
        across = (right - left) / top_share
        long = max(row.rows / total * across, LEAST) if row.rows else 0.0
        said = f"{row.label}: {note}" + ("" if row.mark is None else f", meant to be {row.mark:.1%}")
        parts.append(text(width, y + 13, clip(row.label, width), "label", "end", title=row.label))
        parts.append(tag("rect", tag("title", said), x=left, y=y + 2, width=long, height=14.0, class_="fill0"))
        if row.mark is not None:
            parts.append(line(left + row.mark * across, y, left + row.mark * across, y + 18, "mark"))
        parts.append(text(WIDTH - 2.0, y + 13, note, "value", "end"))
    said = "; ".join(f"{r.label} {n}" for r, n in zip(rows, notes, strict=True))
    return canvas(WIDTH, 8.0 + 22 * len(rows), f"{title}. {said}", parts)


def compact(value: float) -> str:
    """A number for an axis: `950`, `1.5k`, `2M`, to two digits."""
    for scale, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.2g}{unit}" if abs(value) < 100 * scale else f"{value / scale:.0f}{unit}"
    return f"{value:.3g}"
