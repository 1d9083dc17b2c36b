"""Whether two runs of a recipe left the same: folder by folder, file by file, byte by byte.

What may differ is said here: times and what is computed from them (a manifest's, the energy in a release's texts), the
digests that a release's texts quote of manifests, and the last digits of replies' log-probabilities. Those depend on
which replies were written side by side, and a run that is taken up again has other ones left to write.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

MANIFEST, LOGS = "manifest.json", "logs"
# What a manifest says of when and how long, and digests that such things enter.
TIMES = ("finished", "wall_seconds", "peak_memory_bytes", "energy", "tokens", "manifest_digest")
SUMMARY_TIMES = ("seconds", "resumed_from", "tokens_per_second", "speed", "timing")
CONTENT = ("content_digest", "fingerprint", "inputs")
TIMED = ("README.md", "carbon.json", "lineage.json")  # of a release: they tell how long its steps took
NUMBER = re.compile(rb"\b[0-9a-f]{6,}\b|\d[\d.,:e+T-]*")
DIGEST = re.compile(rb"\b[0-9a-f]{6,}\b")  # whole or shortened
CLOSE = 1e-4  # nats between log-probabilities of one reply
Found = dict[str, Any]


class Compared:
    """Two families. `differences` lists what should be equal and isn't, `close` the largest distance of two
    log-probabilities, `exact` and `files` count."""

    def __init__(self, whole: Path, other: Path) -> None:
        self.differences: list[str] = []
        self.close, self.exact, self.files = 0.0, 0, 0
        self._moved = False  # an artifact that others cite has other digits, so other digests
        steps = sorted({p.name for root in (whole, other) for p in root.iterdir() if p.is_symlink()})
        order = sorted(steps, key=lambda name: (_verb(whole / name) == "release", name))
        for step in order:
            if not (whole / step).exists() or not (other / step).exists():
                self.differences.append(f"{step}: there is one only")
                continue
            self._step(step, whole / step, other / step)
        counts = [len(list((root / ".store").iterdir())) for root in (whole, other)]
        if counts[0] != counts[1]:
            self.differences.append(f".store: {counts[0]} entries and {counts[1]}")
        caches = [sorted(_cached(root)) for root in (whole, other)]
        for name in sorted(set(caches[0]) ^ set(caches[1])):
            self.differences.append(f".cache/{name}: in one of them only")

    def _step(self, step: str, whole: Path, other: Path) -> None:
        sides = [_files(folder) for folder in (whole, other)]
        one, two = sides
        release = _verb(whole) == "release"
        self.differences += [f"{step}/{name}: in one of them only" for name in sorted(one.keys() ^ two.keys())]
        moved: set[str] = set()
        for name in sorted(one.keys() & two.keys()):
            self.files += 1
            if one[name] == two[name]:
                self.exact += 1
            elif name.endswith(".parquet") and (distance := _distance(one[name], two[name])) is not None:
                self.close = max(self.close, distance)
                moved.add(name)
            elif name == MANIFEST or (release and self._same_text(name, one[name], two[name])):
                moved.add(name)
            else:
                self.differences.append(f"{step}/{name}: other bytes{_columns(name, one[name], two[name])}")
        manifests = [json.loads(side[MANIFEST]) for side in sides]
        first, second = (self._lasting(m, moved, release) for m in manifests)
        self.differences += [f"{step}/{MANIFEST}: {key}" for key in first if first[key] != second.get(key)]
        self._moved |= bool(moved - {MANIFEST})

    def _same_text(self, name: str, one: bytes, two: bytes) -> bool:
        if name in TIMED:
            first, second = (_timeless(side) if name.endswith(".json") else side for side in (one, two))
            return NUMBER.sub(b"#", first) == NUMBER.sub(b"#", second)
        return self._moved and DIGEST.sub(b"#", one) == DIGEST.sub(b"#", two)

    def _lasting(self, manifest: Found, moved: set[str], release: bool) -> Found:
        away = (*TIMES, *(CONTENT if release and self._moved else ()), *(CONTENT[:1] if moved - {MANIFEST} else ()))
        kept = {k: v for k, v in manifest.items() if k not in away}
        kept["files"] = {
            n: f["digest"] for n, f in manifest["files"].items() if not n.startswith(f"{LOGS}/") and n not in moved
        }
        return {**kept, "summary": _without(manifest["summary"], SUMMARY_TIMES)}


def _timeless(text: bytes) -> bytes:
    """JSON without times, and without the sizes and digests of logs."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            away = (*TIMES, *SUMMARY_TIMES)
            return {k: kept(v) for k, v in value.items() if k not in away and not k.startswith(f"{LOGS}/")}
        return [kept(v) for v in value] if isinstance(value, list) else value

    return json.dumps(kept(json.loads(text)), sort_keys=True).encode()


def _verb(folder: Path) -> str:
    path = folder / MANIFEST
    return str(json.loads(path.read_text())["verb"]) if path.exists() else ""


def _files(folder: Path) -> dict[str, bytes]:
    root = folder.resolve()
    names = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}
    return {name: path.read_bytes() for name, path in names.items() if LOGS not in name.split("/")}


def _cached(root: Path) -> list[str]:
    """What a cache holds, but for SQLite's own files beside a database and the record of what was read."""
    own = ("-wal", "-shm", "-journal", "stats.json")
    found = (p.relative_to(root / ".cache").as_posix() for p in (root / ".cache").rglob("*") if p.is_file())
    return [name for name in found if not name.endswith(own)]


def _without(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, names) for k, v in value.items() if k not in names}
    return [_without(v, names) for v in value] if isinstance(value, list) else value


def _tables(one: bytes, two: bytes) -> tuple[Any, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    first, second = (pq.read_table(pa.BufferReader(data)) for data in (one, two))
    return first, second


def _distance(one: bytes, two: bytes) -> float | None:
    """The largest distance of two log-probabilities; None where the tables differ in more, or it is above `CLOSE`."""
    first, second = _tables(one, two)
    if first.num_rows != second.num_rows or first.schema != second.schema:
        return None
    found: list[float] = [0.0]

    def equal(a: Any, b: Any, name: str) -> bool:
        if isinstance(a, dict) and isinstance(b, dict):
            return a.keys() == b.keys() and all(equal(a[k], b[k], k) for k in a)
        if isinstance(a, list) and isinstance(b, list):
            return len(a) == len(b) and all(equal(x, y, name) for x, y in zip(a, b, strict=True))
        if name.startswith("logprob") and isinstance(a, float) and isinstance(b, float):
            found.append(abs(a - b))
            return a == b or (math.isfinite(a - b) and abs(a - b) <= CLOSE)
        return bool(a == b)

    for a, b in zip(first.to_pylist(), second.to_pylist(), strict=True):
        if not all(equal(_value(a[name]), _value(b[name]), name) for name in a):
            return None
    return max(found)


def _value(cell: Any) -> Any:
    if isinstance(cell, str) and cell[:1] in ("{", "["):
        try:
            return json.loads(cell)
        except ValueError:
            return cell
    return cell


def _columns(name: str, one: bytes, two: bytes) -> str:
    """The columns of a table that differ, with a pair of cells."""
    if not name.endswith(".parquet"):
        return ""
    first, second = _tables(one, two)
    if first.num_rows != second.num_rows or first.column_names != second.column_names:
        return f": {first.num_rows} rows and {second.num_rows}"
    found = []
    for column in first.column_names:
        pairs = zip(first[column].to_pylist(), second[column].to_pylist(), strict=True)
        if other := [f"{str(a)[:160]} / {str(b)[:160]}" for a, b in pairs if a != b]:
            found.append(f"{column} of {len(other)} rows, such as {other[0]}")
    return ": " + "; ".join(found)
