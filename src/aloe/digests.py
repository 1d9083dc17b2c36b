"""Content digests: canonical JSON, files and folders. All BLAKE2b with 16 bytes, written as 32 hex digits."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aloe.errors import AloeError


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces, UTF-8 as is. NaN and infinities are refused."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} has no canonical form")
    return value


def digest_json(value: Any) -> str:
    """Digest of `canonical_json(value)`."""
    return hashlib.blake2b(canonical_json(value).encode(), digest_size=16).hexdigest()


def digest_text(text: str) -> str:
    """Digest of a text's UTF-8 bytes."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digest_file(path: Path) -> str:
    """Digest of a file's bytes, read in 4 MiB pieces."""
    state = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as handle:
        while piece := handle.read(1 << 22):
            state.update(piece)
    return state.hexdigest()


_WRITTEN: dict[tuple[int, ...], str] = {}  # (device, inode, size, time) -> digest of what this process wrote


def _stamp(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def note_written(path: Path, digest: str) -> None:
    """Remember the digest of a file that this process has just finished, and digested while it wrote it."""
    _WRITTEN[_stamp(path)] = digest


def digest_written(files: Mapping[str, Path]) -> dict[str, str]:
    """`digest_files` for an artifact that this process has just written: what was noted then isn't read again."""
    known = {name: _WRITTEN[stamp] for name, path in files.items() if (stamp := _stamp(path)) in _WRITTEN}
    rest = digest_files({name: path for name, path in files.items() if name not in known})
    return {name: known.get(name) or rest[name] for name in files}


def digest_files(files: Mapping[str, Path]) -> dict[str, str]:
    """Digests of several files by name, computed side by side: hashing leaves the interpreter's lock alone."""
    if len(files) < 2:
        return {name: digest_file(path) for name, path in files.items()}
    largest_first = sorted(files, key=lambda name: -files[name].stat().st_size)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = dict(zip(largest_first, pool.map(lambda name: digest_file(files[name]), largest_first), strict=True))
    return {name: found[name] for name in files}


def files_in(folder: Path) -> list[Path]:
    """Every file below `folder`, sorted by its relative path; symbolic links are followed."""
    return sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.relative_to(folder).as_posix())


def leads_out(file: Path, folder: Path) -> bool:
    """Whether a file of a folder is a link out of it. Of a snapshot in the hub's cache, the blobs beside the snapshots
    are inside."""
    root = folder.resolve()
    home = next((place.parents[1] for place in (root, *root.parents) if place.parent.name == "snapshots"), root)
    return not file.resolve().is_relative_to(home)


def check_links(files: Iterable[Path], folder: Path) -> None:
    """Refuse files of a folder of rows that are links out of it: what they lead to would be read, and released.

    Raises:
        AloeError: with the first.
    """
    for file in files:
        if leads_out(file, folder):
            what = f"{file.relative_to(folder).as_posix()} is a link that leads out of the folder"
            fix = "put the file itself into the folder, or name the file that it leads to"
            raise AloeError(what, where=str(folder), fix=fix)


def digest_tree(files: Mapping[str, str]) -> str:
    """Digest of {relative path: file digest}: the content digest of a folder."""
    return digest_json(dict(files))
