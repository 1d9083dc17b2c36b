"""What of a data step is given away as a data set, and whether it may be.

The rows with their card and counts. What a stage dropped stays here, as its texts were dropped for a reason (a person's
data among them), and so do manifest and logs, which name places of this machine. Rows made to provoke or to show unsafe
replies are no data set to spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aloe.digests import files_in
from aloe.errors import AloeError
from aloe.licence import Source, conflicts, fitting, known
from aloe.release.lineage import row_licences, writer_licences

SET_FILES = ("README.md", "rows.parquet", "stats.json", "contamination.json")


def set_files(folder: Path) -> list[str]:
    """Names of the files that a push of this data step sends, in order."""
    return [name for name in SET_FILES if (folder / name).is_file()]


def left_here(folder: Path) -> list[str]:
    """Names of the files that it doesn't."""
    sent = set_files(folder)
    return [name for name in (p.relative_to(folder).as_posix() for p in files_in(folder)) if name not in sent]


def set_sources(folder: Path) -> list[Source]:
    """Whose licences bind the set: each source's rows, and the models that wrote rows."""
    rows = [Source(name, one, "rows") for name, found in row_licences(folder).items() for one in found]
    return rows + [Source("the writer of rows", one, "writer") for one in writer_licences(folder)]


def refuse_attacks(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise AloeError for rows that were made to provoke unsafe replies, or that hold them."""
    if manifest.get("kind") == "attacks" or manifest.get("verb") in ("red_team_pairs", "red_team_loop"):
        fix = "a release says what was trained on, and how often attacks succeed, without them"
        raise AloeError("rows of a red team hold attacks and unsafe replies: not pushed", where=str(folder), fix=fix)


def check_set(folder: Path, stated: Mapping[str, Any]) -> str:
    """The licence that the set is given away under, by its card's front matter `stated`.

    Raises:
        AloeError: no card, an unknown licence, or one that rows or their writer don't allow.
    """
    if not stated:
        raise AloeError("has no dataset card", where=str(folder / "README.md"), fix="make it again: aloe run")
    sources = set_sources(folder)
    named = str(stated.get("license", ""))
    # A hub has no id for several licences at once: the card then says `other`, and what they are together is here.
    licence = named if known(named) else fitting(sources)
    if found := conflicts(licence, sources):
        told = "; ".join(f"{c.source.name}: {c.reason}" for c in found)
        fix = "leave those rows out, or use another writer"
        raise AloeError(
            f"the card says {licence!r}, which is looser than its rows allow: {told}", where=str(folder), fix=fix
        )
    return licence
