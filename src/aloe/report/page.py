"""The page: sections of an artifact, filled into templates that escape everything.

The page needs nothing beyond itself: style sheet and charts are inline, and its content security policy forbids the
network and every script but one. That one, the browser of transcripts, is allowed by its digest and stands only in a
page that has transcripts; so even text that slipped through could neither run nor call anywhere.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError

from aloe.errors import AloeError
from aloe.manifest_file import MALFORMED, malformed
from aloe.report import making, safety, sections, transcripts
from aloe.report.curation import curations
from aloe.report.ensembles import ensembles
from aloe.report.evidence import MANIFEST, gather
from aloe.report.hardening import loops
from aloe.report.merging import merges
from aloe.report.risks import risks
from aloe.report.searching import searches
from aloe.report.training import previews, trainings
from aloe.terminal import neutral

NOT_MEASURED = "not measured"


def build_report(
    folder: Path, transcript_bytes: int | None = transcripts.BYTES, finder: transcripts.Finder | None = None
) -> str:
    """The report of the artifact, or of the run, in `folder` as one HTML page.

    Args:
        folder: what a step wrote, `out/<family>/<step>` or a copy of it, or a run's folder, `out/<family>`. Of a
            release and of a run the page shows the whole recipe, of any other artifact what its own files give.
        transcript_bytes: what transcripts may add to the page; what is left out for it is counted there. None shows
            all, in full.
        finder: finds the questions that scores name by id: (folder, manifest) of a scores artifact -> benchmark ->
            rows by id. Without it, items are shown by their ids.

    Raises:
        AloeError: it is no artifact, or a file that a figure would come from was changed after it was written.
    """
    evidence = gather(folder)
    colours = sections.palette(evidence)
    curated = curations(evidence)
    told = {c["step"] for c in curated}  # in full, so the section on data needn't
    page = (
        _environment()
        .get_template("page.html.j2")
        .render(
            head=sections.header(evidence),
            graph=making.graph(evidence),
            scores=sections.scores(evidence, colours),
            ensembles=ensembles(evidence, colours),
            protocols=sections.protocols(evidence),
            red_teams=safety.red_teams(evidence, colours),
            safety=safety.table(evidence),
            transcripts=transcripts.transcripts(evidence, transcript_bytes, finder),
            script=transcripts.script(),
            script_hash=transcripts.script_hash(),
            training=trainings(evidence),
            curations=curated,
            data_flow=[d for d in making.data_flow(evidence) if d["step"] not in told],
            merges=merges(evidence),
            searches=searches(evidence),
            previews=previews(evidence),
            loops=loops(evidence),
            risks=risks(evidence),
            inputs=sections.inputs(evidence),
            ledger=sections.ledger(evidence),
            digests=sections.digests(evidence),
            model=evidence.root.manifest.get("parameters", {}).get("model"),
        )
    )
    return neutral(page).encode("utf-8", "replace").decode("utf-8")


def write_report(
    folder: Path,
    out: Path,
    transcript_bytes: int | None = transcripts.BYTES,
    finder: transcripts.Finder | None = None,
) -> Path:
    """Write the report of `folder` to the file `out`, whole or not at all; returns `out`. Arguments as `build_report`.

    Raises:
        AloeError: as `build_report`; a file isn't of the shape that a step gives it; or `out` is a folder, or lies
            inside the artifact, whose files are all in its manifest.
    """
    if out.is_dir():
        raise AloeError("is a folder", where=str(out), fix="name the HTML file to write")
    if (folder / MANIFEST).exists() and folder.resolve() in out.resolve().parents:
        fix = "write it beside the folder: a file that the manifest doesn't list makes `aloe verify` fail"
        raise AloeError("lies inside the artifact", where=str(out), fix=fix)
    try:
        page = build_report(folder, transcript_bytes, finder)
    except (*MALFORMED, TemplateError) as cause:  # an artifact of others may have files of any shape
        fix = "get the artifact again; if you made it, please report this with the traceback"
        raise AloeError(f"it can't be shown ({malformed(cause)})", where=str(folder), fix=fix) from cause
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(prefix=f".{out.name}-", dir=out.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(page)
        os.chmod(aside, 0o644)  # mkstemp's 0600 would keep colleagues out
        os.replace(aside, out)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return out


@cache
def _environment() -> Environment:
    env = Environment(
        loader=PackageLoader("aloe.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "share": share,
        "points": points,
        "bounds": bounds,
        "figure": figure,
        "seconds": making.duration,
        "size": size,
        "count": count,
        "p_value": p_value,
        "words": words,
        "plain": sections.plain,
    }
    return env


# -- figures as text ------------------------------------------------------------------------------------------------


def share(value: float | None) -> str:
    """`31.2%`."""
    return NOT_MEASURED if value is None else f"{value:.1%}"


def bounds(rate: Mapping[str, Any] | None, unit: str = "share") -> str:
    """`24.1 to 39.2` in per cent, or in nats; empty where there is no interval."""
    if not rate or rate.get("low") is None or rate.get("high") is None:
        return ""
    scale, digits = (100.0, 1) if unit == "share" else (1.0, 3)
    return f"{rate['low'] * scale:.{digits}f} to {rate['high'] * scale:.{digits}f}"


def points(value: float | None, unit: str = "share") -> str:
    """A difference with its sign: percentage points, or nats."""
    if value is None:
        return NOT_MEASURED
    return f"{value * 100:+.1f}" if unit == "share" else f"{value:+.3f}"


def figure(value: Any, digits: int = 4) -> str:
    """A number to `digits` significant digits; None is unknown."""
    if value is None:
        return "unknown"
    return f"{value:,.{digits}g}" if isinstance(value, float) and abs(value) < 10**digits else f"{value:,.0f}"


def p_value(value: float | None) -> str:
    """A p-value, never rounded to zero."""
    return "" if value is None else "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def size(value: int | None) -> str:
    """Bytes in the unit a person would use."""
    if value is None:
        return "unknown"
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return f"{value} bytes"


def count(value: int | None) -> str:
    """A whole number with thousands separated."""
    return "unknown" if value is None else f"{value:,}"


def words(name: str) -> str:
    """A field's name as words."""
    return str(name).replace("_", " ")
