"""JSON files from anyone: bounded in size, and every fault an error that names the file.

A model folder, an artifact or a release holds small JSON files: configuration, manifests, tables. One of them may have
been made to fill the memory, to nest a million brackets, or to be no file at all but a pipe that never ends.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aloe.errors import AloeError
from aloe.rows import json_fault

MAX_BYTES = 256 << 20  # a manifest lists files by digest, a tokenizer its merges: tens of megabytes at most


def read_bounded(path: Path, limit: int = MAX_BYTES, fix: str = "finish the download or copy") -> str:
    """The text of a regular file.

    Raises:
        AloeError: there is none, it is over `limit` bytes, not UTF-8, or can't be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise AloeError("is no regular file", where=str(path), fix="name the file itself")
        if path.stat().st_size > limit:
            raise AloeError(f"the file is over {limit >> 20} MiB", where=str(path), fix=fix)
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as cause:
        raise AloeError(f"not UTF-8 (byte {cause.start})", where=str(path), fix=fix) from None
    except OSError as cause:
        raise AloeError(f"can't be read ({cause.strerror or cause})", where=str(path), fix=fix) from None


def read_json(path: Path, limit: int = MAX_BYTES, fix: str = "finish the download or copy") -> Any:
    """The value of a JSON file.

    Raises:
        AloeError: as `read_bounded`; or it is no JSON, or nested too deeply.
    """
    text = read_bounded(path, limit, fix)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise AloeError(f"not valid JSON ({json_fault(cause)})", where=str(path), fix=fix) from None


def read_object(path: Path, limit: int = MAX_BYTES, fix: str = "finish the download or copy") -> dict[str, Any]:
    """`read_json` of a file that holds one object."""
    value = read_json(path, limit, fix)
    if not isinstance(value, dict):
        raise AloeError(f"expected a JSON object, found {type(value).__name__}", where=str(path), fix=fix)
    return value
