"""The register as one self-contained HTML page: no script, nothing fetched, every text escaped, light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from aloe.safety.risk_levels import LEVELS
from aloe.safety.risk_render import HEADINGS, SIDES, href, link_name
from aloe.terminal import neutral


def render_html(register: Mapping[str, Any]) -> str:
    """The page of a register as `aloe.safety.risk.assess` returns it."""
    page = (
        _environment()
        .get_template("risk.html.j2")
        .render(r=register, headings=HEADINGS, sides=SIDES, files=[f for f in register.get("files", ()) if f["digest"]])
    )
    return neutral(page).encode("utf-8", "replace").decode("utf-8")


@cache
def _environment() -> Environment:
    env = Environment(
        loader=PackageLoader("aloe.safety", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    env.filters |= {"words": _words, "href": href, "link_name": link_name, "rank": _rank, "rate": _rate}
    return env


def _words(name: str) -> str:
    return str(name).replace("_", " ")


def _rank(level: str) -> str:
    """The class that colours a level; its name is always written beside."""
    return f"l{LEVELS.index(level)}" if level in LEVELS else "lx"


def _rate(figure: Mapping[str, Any] | None) -> str:
    if not figure:
        return "not measured"
    n = f"n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{figure['n']}"
    return f"{figure['value']:.1%}, 95% interval {figure['low']:.1%} to {figure['high']:.1%}, {n}"
