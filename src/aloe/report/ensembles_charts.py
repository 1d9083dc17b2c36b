"""Curves with their intervals, as inline SVG: accuracy by ensemble size, and by what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from aloe.report.charts import SERIES, WIDTH, Curve, Mapper, canvas, legend, line, short, tag, text, ticks

BANDS = 2  # series whose intervals are drawn as bands; of more, bars beside one another stay readable
LEFT, RIGHT, TOP, BOTTOM = 50.0, WIDTH - 12.0, 8.0, 178.0


@dataclass(frozen=True)
class Point:
    """A share at `x`, its 95% interval where there is one, and what to say of it."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Series:
    """Points in the order of x; `series` numbers colour and dashes."""

    label: str
    points: Sequence[Point]
    series: int = 0


def shares(series: Sequence[Series], title: str, x_label: str, whole: bool = False) -> Markup:
    """Shares with intervals against x. The vertical axis fits the intervals and never leaves 0 to 100%.

    Args:
        whole: x counts something (members): ticks are whole numbers. Else the axis begins at zero.
    """
    known = [p for s in series for p in s.points if math.isfinite(p.x) and math.isfinite(p.y)]
    if not known:
        return Markup("")
    ends = [e for p in known for e in (p.y, p.low, p.high) if e is not None]
    y_ticks = [y for y in ticks(max(0.0, min(ends)), min(1.0, max(ends))) if -1e-9 <= y <= 1 + 1e-9]
    y_low, y_high = min(y_ticks[0], *ends), max(y_ticks[-1], *ends)
    x_low, x_high = (min(p.x for p in known), max(p.x for p in known)) if whole else (0.0, max(p.x for p in known))
    pad = 14.0 if whole else 6.0

    def across(x: float) -> float:
        inside = RIGHT - LEFT - 2 * pad
        return (LEFT + RIGHT) / 2 if x_high == x_low else LEFT + pad + (x - x_low) / (x_high - x_low) * inside

    def down(y: float) -> float:
        return BOTTOM - (y - y_low) / ((y_high - y_low) or 1.0) * (BOTTOM - TOP)

    parts = []
    for y in y_ticks:
        parts += [
            line(LEFT, down(y), RIGHT, down(y), "grid"),
            text(LEFT - 6, down(y) + 4, f"{100 * y:g}%", "tick", "end"),
        ]
    for x in _whole_ticks(x_low, x_high) if whole else ticks(x_low, x_high):
        if x_low <= x <= x_high:
            parts.append(text(across(x), BOTTOM + 15, short(x), "tick", "middle"))
    parts.append(text(RIGHT, BOTTOM + 29, x_label, "tick", "end"))
    band = len(series) <= BANDS
    shifts = [(at - (len(series) - 1) / 2) * min(5.0, 20.0 / len(series)) if whole and not band else 0.0
              for at in range(len(series))]  # fmt: skip
    for one, shift in zip(series, shifts, strict=True):
        parts += _intervals(one, _moved(across, shift), down, band)
    for one, shift in zip(series, shifts, strict=True):
        parts += _line(one, _moved(across, shift), down)
    named, height = legend([Curve(s.label, (), s.series) for s in series], LEFT, BOTTOM + 34)
    said = "; ".join(f"{s.label}: {_said(s)}" for s in series)
    return canvas(WIDTH, height, f"{title} by {x_label}. {said}", [*parts, *named])


def _whole_ticks(low: float, high: float) -> list[float]:
    step = max(1, math.ceil((high - low) / 8))
    return [float(x) for x in range(math.ceil(low), math.floor(high) + 1) if (x - math.ceil(low)) % step == 0]


def _moved(across: Mapper, shift: float) -> Mapper:
    """Series stand beside one another, so that their bars don't hide each other."""
    return lambda x: across(x) + shift


def _intervals(one: Series, across: Mapper, down: Mapper, band: bool) -> list[Markup]:
    """A band, or, of many series or a single point, bars."""
    known = [(p.x, p.low, p.high) for p in one.points if p.low is not None and p.high is not None]
    colour = f"s{one.series % SERIES}"
    if band and len(known) > 1:
        upper = [f"{across(x):.1f} {down(high):.1f}" for x, _, high in known]
        lower = [f"{across(x):.1f} {down(low):.1f}" for x, low, _ in reversed(known)]
        return [tag("path", d="M" + " L".join([*upper, *lower]) + " Z", class_=f"band {colour}")]
    return [line(across(x), down(low), across(x), down(high), f"whisker {colour}") for x, low, high in known]


def _line(one: Series, across: Mapper, down: Mapper) -> list[Markup]:
    colour = f"s{one.series % SERIES}"
    parts = []
    if len(one.points) > 1:
        path = "M" + " L".join(f"{across(p.x):.1f} {down(p.y):.1f}" for p in one.points)
        parts.append(tag("path", tag("title", one.label), d=path, class_=f"curve {colour}"))
    for p in one.points:
        title = tag("title", f"{one.label}: {_point(p)}")
        parts.append(tag("circle", title, cx=across(p.x), cy=down(p.y), r=3.0, class_=f"dot {colour}"))
    return parts


def _point(p: Point) -> str:
    bounds = "" if p.low is None or p.high is None else f" [{p.low:.1%} to {p.high:.1%}]"
    return f"{p.y:.1%}{bounds} at {short(p.x)}{', ' + p.note if p.note else ''}"


def _said(one: Series) -> str:
    if not one.points:
        return "nothing measured"
    ends = [one.points[0], *([one.points[-1]] if len(one.points) > 1 else [])]
    return ", ".join(_point(p) for p in ends)
