"""A scores artifact as what was measured: one model under one protocol on one benchmark, with its rows and records."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from aloe.digests import digest_file
from aloe.errors import AloeError
from aloe.evaluate.sides import value_of
from aloe.records import ItemResult, Row
from aloe.rows import read_records
from aloe.schema import check_object

TABLES = ("items.parquet", "scores.json", "protocols.json")
# Rows of a benchmark by id, to show what was asked; empty where they can't be found again.
RowsOf = Callable[[str], Mapping[str, Row]]


@dataclass(frozen=True)
class Scored:
    """One model x benchmark x protocol. `scores` are score records (`aloe.evaluate.table`), `items` their rows.

    `name` is the benchmark's, followed by the strategy where a benchmark was run under several protocols."""

    model: str
    benchmark: str
    name: str
    digest: str
    protocol: Mapping[str, Any]
    items: tuple[ItemResult, ...]
    scores: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Stored:
    """A scores artifact: its manifest and all that was measured, in the order of its table."""

    manifest: Mapping[str, Any]
    scored: tuple[Scored, ...]

    @property
    def finished(self) -> datetime:
        """When the artifact was finished; nothing else about times is recorded."""
        return datetime.fromisoformat(self.manifest["finished"])


def read_stored(folder: Path, manifest: Mapping[str, Any]) -> Stored:
    """Read the tables of a scores artifact. Each file is compared with the digest that the manifest states.

    Raises:
        AloeError: another kind of artifact; a table that is missing, changed or damaged.
    """
    if manifest.get("kind") != "scores":
        raise AloeError(
            f"this artifact is {manifest.get('kind')!r}, not scores",
            where=str(folder),
            fix="name the artifact of an `evaluate` or `import` step (out/<family>/<step>)",
        )
    for name in TABLES:
        _check(folder, name, manifest)
    items = read_records(folder / "items.parquet", ItemResult)
    table, protocols = (json.loads((folder / name).read_text(encoding="utf-8")) for name in TABLES[1:])
    check_object("scores", table, folder / "scores.json")
    by_key: dict[tuple[str, str, str], list[ItemResult]] = {}
    for item in items:
        by_key.setdefault((item.model, item.benchmark, item.protocol), []).append(item)
    records: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for record in table["scores"]:
        records.setdefault((record["model"], record["benchmark"], record["protocol"]), []).append(record)
    shown = _model_names(manifest, [key[0] for key in records])
    names = _names({(benchmark, digest): protocols[digest] for _, benchmark, digest in records})
    scored = []
    for key, found in records.items():
        model, benchmark, digest = key
        rows = tuple(by_key.get(key, ()))
        name = names[benchmark, digest]
        scored.append(Scored(shown[model], benchmark, name, digest, protocols[digest], rows, tuple(found)))
    return Stored(manifest, tuple(scored))


def _check(folder: Path, name: str, manifest: Mapping[str, Any]) -> None:
    path = folder / name
    if not path.is_file():
        fix = "restore it, or make the artifact anew"
        raise AloeError(f"{name} is missing", where=str(folder), fix=fix)
    if digest_file(path) != manifest["files"].get(name, {}).get("digest"):
        fix = "restore it, or make the artifact anew; what is exported must be what was measured"
        raise AloeError(f"{name} was changed after it was written", where=str(folder), fix=fix)


def _model_names(manifest: Mapping[str, Any], models: list[str]) -> dict[str, str]:
    """Models as they are called outside: a folder by its name alone, since where it lies is nobody's business."""
    inputs = manifest.get("inputs", {})
    short = {m: Path(m).name if inputs.get(m, {}).get("origin") in ("folder", "GGUF file") else m for m in models}
    return {m: name if list(short.values()).count(name) == 1 else m for m, name in short.items()}


def _names(protocols: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """A name for every (benchmark, protocol digest): no two alike."""
    per_benchmark: dict[str, list[tuple[str, str]]] = {}
    for key in protocols:
        per_benchmark.setdefault(key[0], []).append(key)
    found: dict[tuple[str, str], str] = {}
    for benchmark, keys in per_benchmark.items():
        plain = [f"{benchmark}_{protocols[key].get('strategy')}" if len(keys) > 1 else benchmark for key in keys]
        for key, name in zip(keys, plain, strict=True):
            found[key] = f"{name}_{key[1][:8]}" if plain.count(name) > 1 else name
    return found


def standard_error(scored: Scored, record: Mapping[str, Any]) -> float | None:
    """Clustered standard error of a score that is the mean of its items' values; None where it is another figure
    (a bias score, say) or of fewer than two clusters."""
    import math

    from aloe.evaluate.stats import clustered_se

    pairs = [(value_of(i, record["metric"]), i) for i in scored.items]
    found = [(value, i) for value, i in pairs if value is not None]
    if record["value"] is None or len(found) != record["n"] or not found:
        return None
    values = [value for value, _ in found]
    if not math.isclose(math.fsum(values) / len(values), record["value"], rel_tol=1e-9, abs_tol=1e-9):
        return None
    return clustered_se(values, [str(i.meta.get("cluster", i.item)) for _, i in found]) or None
