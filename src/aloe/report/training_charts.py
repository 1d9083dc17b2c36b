"""Charts of the training section: a whole cut into parts, and packed rows. Pure, as in `charts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from aloe.report.charts import SERIES, canvas, line, tag, text

STACK, ROW = 400.0, 880.0  # units: widths of a stacked bar and of the longest packed row
LEAST = 15.0  # units: a narrower part carries no number


def stack(parts: Sequence[tuple[str, float, str]], title: str, mark: tuple[float, str] | None = None) -> Markup:
    """One bar cut into parts (name, size, size as text), numbered from 1 as in the table beside it.

    `mark` is a size on the same scale with its name: a line, which may lie beyond the bar.
    """
    total = sum(size for _, size, _ in parts)
    if total <= 0:
        return Markup("")
    scale = (STACK - 2) / max(total, mark[0] if mark else 0.0)
    drawn: list[Markup] = []
    x = 1.0
    for at, (name, size, said) in enumerate(parts):
        width = size * scale
        if not size:
            continue
        hover = tag("title", f"{at + 1}. {name}: {said}")
        colour = f"dot s{at % SERIES}"
        drawn.append(tag("rect", hover, x=x, y=4.0, width=max(width - 1, 0.5), height=24.0, class_=colour))
        if width >= LEAST:
            drawn.append(text(x + width / 2, 20.5, str(at + 1), "on", "middle"))
        x += width
    if mark:
        at_mark = 1 + mark[0] * scale
        drawn += [line(at_mark, a, at_mark, b, "mark") for a, b in ((0.0, 8.0), (24.0, 34.0))]  # beside the numbers
        anchor = "end" if at_mark > STACK / 2 else "start"
        drawn.append(text(at_mark, 46.0, mark[1], "tick", anchor))
    told = "; ".join(f"{at + 1}. {name} {said}" for at, (name, _, said) in enumerate(parts))
    label = f"{title}. {told}" + (f"; {mark[1]}" if mark else "")
    return canvas(STACK, 50.0 if mark else 32.0, label, drawn, "chart stack")


def packed_rows(rows: Sequence[Mapping[str, Any]], title: str) -> Markup:
    """Packed rows, one below the other on one scale: a box an example, filled as far as it is trained on.

    Args:
        rows: `{"length", "padding", "members": [{"key", "tokens", "trained"}]}`.
    """
    longest = max((int(row["length"]) for row in rows), default=0)
    if not longest:
        return Markup("")
    scale, drawn, told = (ROW - 2) / longest, [], []
    for at, row in enumerate(rows):
        x, y = 1.0, 20.0 + 46 * at
        members = row["members"]
        said = f"packed row {at + 1}: {_counted(len(members), 'example')}, {row['length']:,} tokens"
        said += f", {row['padding']:,} padding" if row["padding"] else ", no padding"
        drawn.append(text(1.0, y - 5, said, "tick"))
        for member in members:
            width = int(member["tokens"]) * scale
            share = int(member["trained"]) / max(1, int(member["tokens"]))
            hover = f"{member['key']}: {member['tokens']:,} tokens, {member['trained']:,} trained"
            inside = max(width - 2, 0.6)
            drawn.append(tag("rect", x=x + 0.5, y=y, width=inside * share, height=18.0, class_="fill0"))
            box = {"x": x + 0.5, "y": y, "width": inside, "height": 18.0}
            drawn.append(tag("rect", tag("title", hover), class_="boxed", **box))
            x += width
        if row["padding"]:
            width = max(int(row["padding"]) * scale - 1.5, 0.6)
            hover = f"{row['padding']:,} tokens of padding"
            drawn.append(tag("rect", tag("title", hover), x=x + 0.5, y=y, width=width, height=18.0, class_="padding"))
        told.append(said + ": " + ", ".join(f"{m['tokens']} ({m['trained']} trained)" for m in members))
    return canvas(ROW, 46.0 * len(rows), f"{title}. {'; '.join(told)}", drawn, "chart packing")


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
