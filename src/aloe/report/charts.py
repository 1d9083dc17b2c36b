"""Charts as inline SVG, drawn by hand: no script, no font, no picture file, colours from the page's style sheet.

Every function is pure: numbers and labels in, markup out. Elements are built by `tag`, which escapes every attribute
and every text, so a label that came from a model or a data set can't become markup. Series differ by colour *and* by
dash or position, and every chart has a `role="img"` with a text that says what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 380  # units of one panel; panels wrap, so that they stay readable on a phone
CHAR = 6.4  # width of a character at font size 11, on the generous side
SERIES = 6  # colours s0..s5 of the style sheet
Mapper = Callable[[float], float]


def tag(name: str, *children: Markup | str, **attributes: object) -> Markup:
    """One element; `class_` gives class, underscores become hyphens, None attributes are left out."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(escape(child) for child in children)
    return Markup(f"<{name}{text}>{inner}</{name}>")


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def canvas(width: float, height: float, label: str, parts: Iterable[Markup], class_: str = "chart") -> Markup:
    """The SVG element; `label` is what a screen reader says."""
    box = f"0 0 {_number(float(width))} {_number(float(height))}"
    return tag(
        "svg",
        *parts,
        class_=class_,
        viewBox=box,
        width=float(width),
        height=float(height),
        role="img",
        aria_label=label,
    )


def text(x: float, y: float, value: str, class_: str = "", anchor: str = "start", title: str | None = None) -> Markup:
    """A text with its baseline at `y`; `title` shows on hover."""
    children = [escape(value)] if title is None else [escape(value), tag("title", title)]
    return tag("text", *children, x=x, y=y, text_anchor=anchor, class_=class_ or None)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def clip(value: str, width: float) -> str:
    """`value` shortened in the middle to fit `width` units: both ends of a step's name tell most."""
    room = max(4, int(width / CHAR))
    if len(value) <= room:
        return value
    head = (room - 1) // 2
    return f"{value[:head]}…{value[len(value) - (room - 1 - head) :]}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round values that span `low` to `high`, 1, 2 or 5 times a power of ten apart."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        around = abs(low) / 2 if math.isfinite(low) and low else 0.5
        high, low = high + around, low - around
        span = high - low
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw * 0.999)
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(start, stop + 1)]


def short(value: float) -> str:
    """An axis label: few digits, no trailing zeros, thousands as k."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10_000:
        return f"{value / 1000:g}k"
    if size >= 1000:
        return f"{value:,.0f}"
    if size >= 1e-3:
        return f"{value:.3g}"
    digits, _, power = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


# -- dots and intervals -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dot:
    """One measured figure and its interval (None: not measured); `note` follows it where it is read out."""

    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""
    series: int = 0


def dots(rows: Sequence[Dot], title: str, high: float = 1.0, share: bool = True) -> Markup:
    """Dot-and-interval chart, one line per row, on an axis from 0 to `high`.

    The axis starts at zero and, for shares, ends at 100%: a small difference looks small.
    """
    # A sign that isn't a letter of the alphabet (✓) may be twice as wide.
    label_width = min(138.0, max([CHAR * sum(1 + (not c.isascii()) for c in row.label) for row in rows], default=0.0))
    left, right = label_width + 8, WIDTH - 64.0
    step, top = 24.0, 8.0
    bottom = top + step * len(rows)
    parts = []
    for mark in (high * quarter / 4 for quarter in range(5)):
        x = left + mark / high * (right - left)
        parts += [line(x, top, x, bottom, "grid")]
        parts += [text(x, bottom + 14, _figure(mark, share, 0), "tick", "middle")]
    for at, row in enumerate(rows):
        y = top + step * (at + 0.5)
        parts.append(text(label_width, y + 4, clip(row.label, label_width), "label", "end", title=row.label))
        parts += _dot(row, y, lambda v: left + min(max(v / high, 0.0), 1.0) * (right - left), share)
    said = "; ".join(f"{r.label}: {_said(r, share)}" for r in rows)
    return canvas(WIDTH, bottom + 20, f"{title}. {said}", parts)


def _dot(row: Dot, y: float, across: Mapper, share: bool) -> list[Markup]:
    if row.value is None:
        return [text(across(0) + 4, y + 4, "not measured", "tick")]
    series, parts = f"s{row.series % SERIES}", []
    if row.low is not None and row.high is not None:
        ends = [across(row.low), across(row.high)]
        parts.append(line(ends[0], y, ends[1], y, f"interval {series}"))
        parts += [line(x, y - 4, x, y + 4, f"interval {series}") for x in ends]
    title = tag("title", f"{row.label}: {_said(row, share)}")
    parts.append(tag("circle", title, cx=across(row.value), cy=y, r=4.5, class_=f"dot {series}"))
    parts.append(text(WIDTH - 2.0, y + 4, _figure(row.value, share), "value", "end"))
    return parts


def _figure(value: float, share: bool, digits: int = 1) -> str:
    return f"{value:.{digits}%}" if share else short(value)


def _said(row: Dot, share: bool) -> str:
    if row.value is None:
        return "not measured"
    bounds = ""
    if row.low is not None and row.high is not None:
        bounds = f", 95% interval {_figure(row.low, share)} to {_figure(row.high, share)}"
    return f"{_figure(row.value, share)}{bounds}{', ' + row.note if row.note else ''}"


# -- curves -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A series of (x, y); points that aren't finite are gaps. `series` numbers its colour and dashes."""

    label: str
    points: Sequence[tuple[float, float]]
    series: int = 0


def curves(
    series: Sequence[Curve],
    title: str,
    x_label: str,
    levels: Sequence[tuple[float, str]] = (),
    marks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Line chart on axes that fit the values, not from zero. A lone point is a dot, a value that isn't finite a gap.

    `levels` are horizontal lines (value, name) that the axis is made to hold; `marks` vertical ones, where inside it.
    """
    known = [(x, y) for s in series for x, y in s.points if math.isfinite(x) and math.isfinite(y)]
    if not known:
        return Markup("")
    xs, ys = [x for x, _ in known], [y for _, y in known]
    ys += [y for y, _ in levels]
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    x_low, x_high = min(xs), max(xs)
    left, right, top, bottom = 50.0, WIDTH - 12.0, 8.0, 158.0

    def across(x: float) -> float:
        return (left + right) / 2 if x_high == x_low else left + (x - x_low) / (x_high - x_low) * (right - left)

    def down(y: float) -> float:
        return bottom - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (bottom - top)

    parts = []
    for y in y_ticks:
        parts += [line(left, down(y), right, down(y), "grid"), text(left - 6, down(y) + 4, short(y), "tick", "end")]
    parts += [text(across(x), bottom + 15, short(x), "tick", "middle") for x in x_ticks if x_low <= x <= x_high]
    parts.append(text(right, bottom + 29, x_label, "tick", "end"))
    for y, name in levels:
        parts += [line(left, down(y), right, down(y), "level"), text(right, down(y) - 4, name, "tick", "end")]
    inside = [(x, name) for x, name in marks if x_low <= x <= x_high]
    for x, name in inside:
        parts.append(tag("line", tag("title", f"{name} at {short(x)}"), x1=across(x), y1=top, x2=across(x), y2=bottom,
                         class_="event"))  # fmt: skip
        ends = "start" if across(x) + 4 + CHAR * len(name) < right else "end"
        parts.append(text(across(x) + (-4 if ends == "end" else 4), top + 10, name, "tick", ends))
    for one in series:
        parts += _curve(one, across, down)
    height = bottom + 34
    if len(series) > 1:
        named, height = legend(series, left, height)
        parts += named
    said = "; ".join([*(f"{s.label}: {_ends(s)}" for s in series), *(f"{name} at {short(x)}" for x, name in inside)])
    return canvas(WIDTH, height, f"{title} by {x_label}. {said}", parts)


def _curve(one: Curve, across: Mapper, down: Mapper) -> list[Markup]:
    runs: list[list[tuple[float, float]]] = [[]]
    colour = f"s{one.series % SERIES}"
    for x, y in one.points:
        if math.isfinite(x) and math.isfinite(y):
            runs[-1].append((across(x), down(y)))
        elif runs[-1]:
            runs.append([])
    parts = []
    for run in (r for r in runs if r):
        if len(run) == 1:
            parts.append(tag("circle", cx=run[0][0], cy=run[0][1], r=3.5, class_=f"dot {colour}"))
            continue
        path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in run)
        parts.append(tag("path", tag("title", one.label), d=path, class_=f"curve {colour}"))
    return parts


def legend(series: Sequence[Curve], left: float, top: float) -> tuple[list[Markup], float]:
    """Markup, and the y below it; entries wrap."""
    parts, x, y = [], left, top + 4
    for one in series:
        label = clip(one.label, WIDTH - left - 30)
        width = 30 + CHAR * len(label) + 10
        if x + width > WIDTH and x > left:
            x, y = left, y + 17
        parts += [line(x, y, x + 22, y, f"curve s{one.series % SERIES}"), text(x + 27, y + 4, label, "tick")]
        x += width
    return parts, y + 12


def _ends(one: Curve) -> str:
    points = [(x, y) for x, y in one.points if math.isfinite(x) and math.isfinite(y)]
    if not points:
        return "no finite values"
    return f"{short(points[0][1])} at {short(points[0][0])}, {short(points[-1][1])} at {short(points[-1][0])}"


# -- shares -------------------------------------------------------------------------------------------------------


def ledger_bar(kept: int, dropped: Sequence[tuple[str, int]], title: str) -> Markup:
    """One bar of a row ledger: kept, then what was dropped by reason. Widths are exact shares of the rows in."""
    parts_of = [("kept", kept), *dropped]
    total = sum(count for _, count in parts_of)
    if not total:
        return Markup("")
    width, parts, x = 200.0, [], 0.0
    for at, (label, count) in enumerate(parts_of):
        span = width * count / total
        class_ = "kept" if at == 0 else f"lost{(at - 1) % 2}"
        if span:
            parts.append(tag("rect", tag("title", f"{label}: {count}"), x=x, y=1, width=span, height=12, class_=class_))
        x += span
    said = ", ".join(f"{label} {count}" for label, count in parts_of)
    return canvas(width, 14, f"{title}: {said} of {total}", parts, "bar")
