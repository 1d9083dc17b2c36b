"""What a model was made from: its chain of steps, every input from outside, and every licence that binds it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aloe.errors import AloeError
from aloe.licence import Source
from aloe.rows import read_parquet

DATA_KINDS = ("questions", "dialogues", "preferences", "attacks")
Manifests = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Input:
    """Something the recipe took from outside. `in_model`: the model derives from it (else it only measured it)."""

    name: str
    kind: str
    origin: str
    licence: str
    digest: str
    used_by: tuple[str, ...]
    in_model: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return {**vars(self), "used_by": list(self.used_by)}


def ancestry(model: str, manifests: Manifests) -> list[str]:
    """The model's own step and every step it derives from, inputs first."""
    order: list[str] = []

    def visit(name: str) -> None:
        for ref, entry in sorted(manifests[name].get("inputs", {}).items()):
            parent = entry.get("step", ref)
            if parent in manifests and parent not in order:
                visit(parent)
        if name not in order:
            order.append(name)

    if model in manifests:
        visit(model)
    return order


def outside_inputs(model: str, manifests: Manifests) -> list[Input]:
    """Every input that is no step, each once, by name."""
    chain = set(ancestry(model, manifests))
    users: dict[str, list[str]] = {}
    entries: dict[str, Mapping[str, Any]] = {}
    for step in sorted(manifests):
        for ref, entry in manifests[step].get("inputs", {}).items():
            if entry.get("step", ref) not in manifests:
                users.setdefault(ref, []).append(step)
                entries[ref] = entry
    return [
        Input(
            name=ref,
            kind=str(entries[ref].get("kind", "unknown")),
            origin=str(entries[ref].get("origin", entries[ref].get("source", "unknown"))),
            licence=str(entries[ref].get("licence") or "unknown"),
            digest=str(entries[ref].get("digest", "")),
            used_by=tuple(users[ref]),
            in_model=any(step in chain and not _only_excludes(ref, manifests[step]) for step in users[ref]),
        )
        for ref in sorted(users)
    ]


def _only_excludes(ref: str, manifest: Mapping[str, Any]) -> bool:
    """Whether a step read this input only to keep its rows out: a benchmark to decontaminate against."""
    against = (manifest.get("parameters", {}).get("decontaminate") or {}).get("against", [])
    return ref in against  # a source that is also a benchmark is refused by curate


def row_licences(folder: Path) -> dict[str, dict[str, int]]:
    """{source: {licence: rows}} of a data artifact's kept rows."""
    counts: dict[str, Counter[str]] = {}
    for row in read_parquet(folder / "rows.parquet"):
        counts.setdefault(str(row.get("source", "unknown")), Counter())[str(row.get("licence") or "unknown")] += 1
    return {source: dict(sorted(found.items())) for source, found in sorted(counts.items())}


def binding_sources(inputs: Iterable[Input], data: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[Source]:
    """The licences the release must honour.

    Models and row sets with a stated licence bind by it. A row set that states none is judged by its rows: the data
    steps it went into carry each row's own licence, and those bind instead.

    Args:
        inputs: from `outside_inputs`.
        data: {data step in the model's ancestry: `row_licences` of its folder}.
    """
    sources = []
    for item in inputs:
        covered = item.kind == "rows" and all(step in data for step in item.used_by)
        if item.in_model and not (item.licence == "unknown" and covered):
            sources.append(Source(item.name, item.licence))
    for step, by_source in data.items():
        for source, licences in by_source.items():
            sources += [Source(f"{source} (rows of {step})", licence) for licence in licences]
    return sources


def check_known(names: Iterable[str], manifests: Manifests) -> None:
    """Every evidence step must have a manifest."""
    for name in names:
        if name not in manifests:
            raise AloeError(
                f"no step {name!r} to take evidence from",
                where="release.evidence",
                fix=f"name steps of the recipe: {', '.join(sorted(manifests)) or 'none is upstream'}",
            )
