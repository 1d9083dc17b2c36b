"""`aloe clean`: unfinished work of runs that nobody took up again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from aloe.errors import AloeError

UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def clean(
    out: Annotated[Path, typer.Argument(help="OUT of `aloe run`, or one family's folder in it.")] = Path("out"),
    older_than: Annotated[str, typer.Option(help="Since a file in it was last written: 12h, 7d, 2w.")] = "7d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed; remove nothing.")] = False,
) -> None:
    """Remove checkpoints and other unfinished work of runs that were given up."""
    from aloe.run.clean import families, left_over, remove

    seconds = seconds_of(older_than)
    found = [left for f in families(out) for left in (left_over if dry_run else remove)(f, seconds)]
    for left in found:
        print(f"{left.size / 1e6:10.1f} MB  {left.age / UNITS['d']:5.1f} days  {left.path}")
    total = sum(left.size for left in found)
    said = f"{len(found)} folders of unfinished work, {total / 1e6:.1f} MB"
    print(f"would remove {said}; nothing was removed" if dry_run else f"removed {said}")


def seconds_of(text: str) -> float:
    """`7d` in seconds.

    Raises:
        AloeError: not a number with one of `UNITS`.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mhdw])", text.strip())
    if match is None:
        raise AloeError(f"{text!r} is no length of time", where="--older-than", fix="for example 12h, 7d or 2w")
    return float(match[1]) * UNITS[match[2]]
