"""A forest plot of paired differences, as an SVG file that reads in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aloe.report.charts import canvas, line, tag, text

Found = dict[str, Any]
ROW, LEFT, RIGHT, WIDTH, TOP = 18, 400, 700, 720, 30
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#555}.zero{stroke:#888;stroke-dasharray:3 3}.grid{stroke:#8883}"
    ".ci{stroke:#777;stroke-width:2}.dot{fill:#777}.good{stroke:#0a7f6f;fill:#0a7f6f}.bad{stroke:#b3432b;fill:#b3432b}"
    "@media(prefers-color-scheme:dark){text{fill:#bbb}.good{stroke:#4fc3b0;fill:#4fc3b0}.bad{stroke:#ef8a6f;fill:#ef8a6f}}"
)


def forest(rows: Sequence[Found]) -> str:
    """One line a comparison: the difference in points with its 95% interval; coloured where it leaves out 0."""
    reach = max((abs(v) for r in rows for v in (r["low"], r["high"], r["difference"])), default=0.1) or 0.1
    height = TOP + ROW * len(rows) + 24
    middle, unit = (LEFT + RIGHT) / 2, (RIGHT - LEFT) / 2 / reach
    parts = [tag("style", STYLE), line(middle, TOP - 8, middle, height - 20, "zero")]
    for tick in (-reach, -reach / 2, reach / 2, reach):
        x = middle + tick * unit
        parts += [line(x, TOP - 8, x, height - 20, "grid"), text(x, height - 6, f"{100 * tick:+.0f}", anchor="middle")]
    parts += [text(middle, height - 6, "0", anchor="middle"), text(4, 14, "difference in points, 95% interval")]
    for i, r in enumerate(rows):
        y = TOP + ROW * i + 4
        class_ = colour(r)
        parts.append(text(4, y + 4, f"{plain(r['question'])}, {r['benchmark']}"))
        parts.append(line(middle + r["low"] * unit, y, middle + r["high"] * unit, y, f"ci {class_}"))
        parts.append(tag("circle", cx=middle + r["difference"] * unit, cy=float(y), r=3.5, class_=f"dot {class_}"))
    svg = canvas(WIDTH, height, f"{len(rows)} paired differences with intervals; the tables below hold them", parts)
    return str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def colour(r: Found) -> str:
    """By the interval alone: Holm's adjustment is in the table."""
    if r["low"] <= 0 <= r["high"]:
        return ""
    return "good" if (r["difference"] > 0) == (r["better"] == "higher") else "bad"


def plain(question: str) -> str:
    return " ".join(Path(w).name.removesuffix(".gguf") if "/" in w else w for w in question.split(" "))
