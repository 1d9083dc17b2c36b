"""Result files on disk as the sources of a register or a gate: where they lie, checked against their manifest.

A place is a scores or red-team artifact, a run's folder (`out/<family>`, every step of which is looked at), a release
(its `evidence/`), or a result file itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from aloe.digests import digest_file
from aloe.errors import AloeError
from aloe.safety.risk_evidence import Source, SourceKind
from aloe.schema import check_object

FILES: dict[str, SourceKind] = {
    "red_team.json": "red_team",
    "scores.json": "scores",
    "comparisons.json": "comparisons",
}
RESULTS = ("red_team.json", "scores.json")
FIX = "name a scores or red-team artifact, a run's folder (out/<family>) or a release"


def read_sources(places: Sequence[Path], near: Path) -> list[Source]:
    """All result files of these places. Their paths are relative to the folder `near`, as a page there links to them.

    Raises:
        AloeError: a place holds no results, or a file is not what its manifest says.
    """
    found: dict[Path, Source] = {}
    for place in places:
        folders = list(result_folders(place))
        if not folders:
            raise AloeError("no red_team.json and no scores.json here", where=str(place), fix=FIX)
        for folder, names in folders:
            for name in names:
                path = (folder / name).resolve()
                if path not in found:
                    found[path] = _read(folder / name, near)
    return list(found.values())


def result_folders(place: Path) -> Iterator[tuple[Path, list[str]]]:
    """(folder, names of its result files), in the order of names.

    Raises:
        AloeError: there is no such place, or it is a file of another name.
    """
    if place.is_file():
        if place.name not in RESULTS:
            raise AloeError("not a result file", where=str(place), fix=FIX)
        yield place.parent, [place.name]
        return
    if not place.is_dir():
        raise AloeError("no such folder", where=str(place), fix=FIX)
    if any((place / name).is_file() for name in RESULTS):
        yield place, [name for name in FILES if (place / name).is_file()]
        return
    inner = place / "evidence" if (place / "evidence").is_dir() else place
    for folder in sorted(inner.iterdir()):
        if folder.is_dir() and not folder.name.startswith(".") and any((folder / n).is_file() for n in RESULTS):
            yield folder, [name for name in FILES if (folder / name).is_file()]


def released_model(places: Sequence[Path]) -> str | None:
    """The model that a release among the places, or in a run's folder, was made of."""
    for place in places:
        for path in [place / "manifest.json", *sorted(place.glob("*/manifest.json"))] if place.is_dir() else []:
            manifest = _manifest(path)
            if manifest.get("kind") == "release":
                return str(manifest.get("parameters", {}).get("model"))
    return None


def _read(path: Path, near: Path) -> Source:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as cause:
        raise AloeError(f"not valid JSON ({cause})", where=str(path), fix="restore it, or make it anew") from None
    kind = FILES[path.name]
    if not isinstance(data, list if kind == "comparisons" else dict):
        raise AloeError(f"holds no {kind.replace('_', ' ')}", where=str(path), fix="restore it, or make it anew")
    check_object("scores" if kind == "scores" else "red team", data, path)
    digest = digest_file(path)
    stated = _stated(path)
    if stated is not None and stated != digest:
        fix = "restore it, or make the artifact anew; `aloe verify` lists all that differs"
        raise AloeError("changed after it was written: its digest is not the manifest's", where=str(path), fix=fix)
    return Source(
        kind, data, Path(os.path.relpath(path.parent.absolute(), near.absolute()), path.name).as_posix(), digest
    )


def _stated(path: Path) -> str | None:
    """The digest that the nearest manifest states of a file; None where no manifest lists it."""
    path = path.parent.resolve() / path.name
    for folder in list(path.parents)[:3]:  # the artifact itself, or release/evidence/<step>
        manifest = _manifest(folder / "manifest.json")
        if manifest:
            entry = (manifest.get("files") or {}).get(path.relative_to(folder).as_posix())
            return str(entry["digest"]) if entry else None
    return None


def _manifest(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if isinstance(found, dict) and "manifest_digest" in found:
        check_object("artifact", found, path, "format")
    return found if isinstance(found, dict) else {}
