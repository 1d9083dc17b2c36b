"""A folder's `manifest.json`, whoever wrote it: read in bounds, of the shape that readers count on, naming no file
outside the folder.

Its digests say whether something changed since it was written. They say nothing of who wrote it: whoever makes a
release for others to open can compute them. So what is counted on is checked, and a reader of a release that others
wrote holds on to `MALFORMED` for the shapes of all the other files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from aloe.errors import AloeError
from aloe.json_file import read_object
from aloe.schema import check_object

MANIFEST = "manifest.json"
# What reading a file of another shape than expected raises, beside AloeError.
MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError, OSError)
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("kind", "verb", "step", "fingerprint", "content_digest"), (str,)),
    **dict.fromkeys(("files", "inputs", "parameters", "settings", "summary", "tokens", "code", "versions"), (dict,)),
    **dict.fromkeys(("wall_seconds", "peak_memory_bytes"), (int, float)),
    "machine": (dict,), "ledger": (list,), "version": (int,), "seed": (int,),
}  # fmt: skip


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact.

    Raises:
        AloeError: there is none, it can't be read, or it hasn't the shape of one.
    """
    path = folder / MANIFEST
    if not path.exists():
        fix = "name a folder that a recipe's step wrote, for example out/<family>/<step>"
        raise AloeError("no manifest.json: not an artifact", where=str(folder), fix=fix)
    manifest = read_object(path, fix="restore the manifest, or make the artifact anew")
    check_manifest(manifest, str(path))
    return manifest


def check_manifest(manifest: Mapping[str, Any], where: str) -> None:
    """Refuse a manifest of a newer aloe, one that hasn't the shape of one, or one that lists a file outside its folder.

    Raises:
        AloeError: with the field.
    """
    check_object("artifact", manifest, where, "format")
    for name, kinds in _KINDS.items():
        if name in manifest and not isinstance(manifest[name], kinds) and manifest[name] is not None:
            raise _damaged(f"{name} is {type(manifest[name]).__name__}, not {kinds[0].__name__}", where)
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise _damaged("it lists no files", where)
    for name, entry in files.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("digest"), str):
            raise _damaged(f"the entry of {name[:80]!r} states no digest", where)
        if not isinstance(entry.get("bytes", 0), int):
            raise _damaged(f"the entry of {name[:80]!r} states no size", where)
        check_name(name, where)
    for name in ("inputs", "ledger"):
        entries = manifest.get(name) or {}
        if not all(isinstance(e, dict) for e in (entries.values() if isinstance(entries, dict) else entries)):
            raise _damaged(f"an entry of {name} is no map", where)


def check_beside(folder: Path) -> None:
    """Refuse a folder that an artifact's manifest of a newer aloe stands in. One without a manifest, or with another
    tool's, passes: what is in it is read for what it is.

    Raises:
        Newer: says so.
    """
    path = folder / MANIFEST
    try:
        found = read_object(path) if path.is_file() else {}
    except AloeError:
        return
    if "manifest_digest" in found:
        check_object("artifact", found, path, "format")


def check_name(name: str, where: str) -> None:
    """Refuse a relative path that leads out of its folder."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise _damaged(f"the file {name[:80]!r} lies outside the folder", where)


def malformed(cause: BaseException) -> str:
    """What was wrong with a file's shape, in a line."""
    told = cause.what if isinstance(cause, AloeError) else f"{type(cause).__name__}: {cause}"
    return " ".join(told.split())[:300]


def _damaged(what: str, where: str) -> AloeError:
    return AloeError(
        f"the manifest is damaged and can't be read: {what}", where=where, fix="restore it, or make the artifact anew"
    )  # fmt: skip
