"""`aloe verify`: is this artifact still what its manifest says, and do its tables follow from its rows?

Every file's digest is computed again; files that are missing, changed or extra are named. Result tables are computed
again from the per-item rows beside them, and a release's risk register and gates from its evidence. For a merge whose
inputs can be reached, one sampled tensor is merged again and compared bit for bit. The verifier only reads; what it
finds comes back as findings, worst first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aloe.digests import digest_file, digest_json, digest_tree, files_in, leads_out
from aloe.errors import AloeError
from aloe.evaluate.scored import read_runs
from aloe.evaluate.stats import wilson
from aloe.keyed import key64
from aloe.manifest_file import MALFORMED, malformed, read_manifest
from aloe.merge.step import Merge
from aloe.merge.stream import recompute_tensor
from aloe.merge.tensors import open_checkpoint
from aloe.records import ItemResult
from aloe.release.merges import is_merge, parameters_of, stale
from aloe.release.verify_safety import red_team_again, register_again
from aloe.rows import read_records
from aloe.schema import check_object

MANIFEST = "manifest.json"
TOLERANCE = 1e-9  # recomputed shares come from the same integers; only summation order may differ
Resolve = Callable[[str], Path | None]  # a reference of the recipe -> its folder here, or None


@dataclass(frozen=True)
class Finding:
    """One thing checked. `error`: it doesn't hold. `note`: it couldn't be checked, and why. `ok`: it holds."""

    level: Literal["ok", "note", "error"]
    check: str
    where: str
    message: str


def verify_artifact(folder: Path, resolve: Resolve | None = None) -> list[Finding]:
    """Check an artifact folder against its manifest.

    Args:
        folder: what a step wrote (`out/<family>/<step>` or a copy of it).
        resolve: finds the folder of an input by its reference, for re-running a merge; without it that is noted.

    Returns:
        Findings, errors first. The artifact is sound when none is an error.

    Raises:
        AloeError: there is no readable manifest, so there is nothing to verify against.
    """
    manifest = read_manifest(folder)
    found = list(_links(folder))
    if found:  # nothing is read through them, nor counted with them
        return found
    found = [*_files(folder, manifest), *_held("manifest", MANIFEST, _digests(manifest))]
    for place in _places(folder, "red_team.json"):
        found += _held("tables", f"{place.relative_to(folder)}/red_team.json", _red_team(folder, place))
    for place in _places(folder, "scores.json"):
        found += _held("tables", f"{place.relative_to(folder)}/scores.json", _scores(folder, place))
    if manifest.get("kind") == "release":
        found += _held("risks", "risk_assessment.json", (Finding(*told) for told in register_again(folder)))  # type: ignore[arg-type]
    if is_merge(manifest):
        found += _held("merge", MANIFEST, _merge(folder, manifest, resolve))
    found += _held("merge", "lineage.json", _lineage_merges(folder, resolve))
    rank = {"error": 0, "note": 1, "ok": 2}
    return sorted(found, key=lambda f: rank[f.level])


def _held(check: str, where: str, findings: Iterator[Finding]) -> list[Finding]:
    """Findings of one check; a file of a shape that no step writes is one, too."""
    found: list[Finding] = []
    try:
        for finding in findings:
            found.append(finding)
    except (AloeError, *MALFORMED) as cause:
        found.append(Finding("error", check, where.removeprefix("./"), f"can't be read: {malformed(cause)}"))
    return found


def _links(folder: Path) -> Iterator[Finding]:
    """Links out of the folder, and what is no file: another's file would pass for one of the artifact's."""
    root = folder.resolve()
    for path in sorted(root.rglob("*")):
        if leads_out(path, root):
            yield Finding("error", "files", path.relative_to(root).as_posix(), "a link that leads out of the folder")
        elif not path.is_file() and not path.is_dir():
            yield Finding("error", "files", path.relative_to(root).as_posix(), "no regular file")


def _places(folder: Path, table: str) -> list[Path]:
    return sorted({folder, *(p.parent for p in folder.rglob(table))})


def _files(folder: Path, manifest: Mapping[str, Any]) -> Iterator[Finding]:
    listed: dict[str, dict[str, Any]] = manifest["files"]
    present = {p.relative_to(folder).as_posix(): p for p in files_in(folder)}
    good = 0
    for name, entry in sorted(listed.items()):
        if name not in present:
            yield Finding("error", "files", name, "listed in the manifest, missing here")
        elif present[name].stat().st_size != entry.get("bytes"):
            size = present[name].stat().st_size
            yield Finding("error", "files", name, f"changed: {size} bytes, the manifest says {entry.get('bytes')}")
        elif digest_file(present[name]) != entry["digest"]:
            yield Finding("error", "files", name, "changed: its digest is not the manifest's")
        else:
            good += 1
    for name in sorted(set(present) - set(listed) - {MANIFEST}):
        yield Finding("error", "files", name, "extra: not in the manifest")
    yield Finding("ok", "files", ".", f"{good} of {len(listed)} files have the digest the manifest states")


def _digests(manifest: Mapping[str, Any]) -> Iterator[Finding]:
    """The manifest's own digests: of its files together, and of itself."""
    files = {name: str(e["digest"]) for name, e in manifest["files"].items() if not name.startswith("logs/")}
    if "content_digest" in manifest and digest_tree(files) != manifest["content_digest"]:
        yield Finding("error", "manifest", MANIFEST, "the content digest does not follow from the listed files")
    rest = {k: v for k, v in manifest.items() if k != "manifest_digest"}
    if "manifest_digest" in manifest and digest_json(rest) != manifest["manifest_digest"]:
        yield Finding("error", "manifest", MANIFEST, "changed: its own digest does not hold")


def _red_team(root: Path, place: Path) -> Iterator[Finding]:
    """A red team's tables again from `items.parquet`; of an earlier version's, attack success and over-refusal."""
    table, rows = place / "red_team.json", place / "items.parquet"
    if not table.exists() or not rows.exists():
        return
    where = table.relative_to(root).as_posix()
    stated = json.loads(table.read_text(encoding="utf-8"))
    if "order" in stated:
        yield from (Finding(*told) for told in red_team_again(root, place))  # type: ignore[arg-type]
        return
    items = read_records(rows, ItemResult)
    wrong = 0
    for model, entry in stated["models"].items():
        for metric in ("attack_success", "over_refusal"):
            mine = [i.value for i in items if i.model == model and i.metric == metric and i.value is not None]
            for field, value in _rate(mine).items():
                said = (entry[metric] or {}).get(field)
                if not _same(said, value) and (mine or entry[metric]):
                    wrong += 1
                    yield Finding(
                        "error", "tables", where, f"{model} {metric} {field}: states {said}, the rows give {value}"
                    )
    if not wrong:
        yield Finding("ok", "tables", where, f"rates of {len(stated['models'])} models follow from {len(items)} rows")


def _scores(root: Path, place: Path) -> Iterator[Finding]:
    """Every score that has its own item rows again: their mean and count."""
    table, rows = place / "scores.json", place / "items.parquet"
    if not table.exists() or not rows.exists():
        return
    where = table.relative_to(root).as_posix()
    scores = json.loads(table.read_text(encoding="utf-8"))["scores"]
    groups: dict[tuple[str, ...], list[float]] = {}
    for run in read_runs(rows, sorted({str(score["metric"]) for score in scores})):
        for metric, values in run.values.items():
            groups.setdefault((*run.key[:3], metric), []).extend(v for v in values if v is not None)
    checked = wrong = 0
    for score in scores:
        mine = groups.get((score["model"], score["benchmark"], score["protocol"], score["metric"]), [])
        if not mine:
            name = f"{score['model']} {score['benchmark']} {score['metric']}"
            yield Finding("note", "tables", where, f"{name}: not computed again, its items state no such value")
            continue
        checked += 1
        for field, value in (("value", math.fsum(mine) / len(mine)), ("n", len(mine))):
            if not _same(score[field], value):
                wrong += 1
                name = f"{score['model']} {score['benchmark']} {score['metric']} {field}"
                yield Finding("error", "tables", where, f"{name}: states {score[field]}, the rows give {value}")
    if not wrong:
        yield Finding("ok", "tables", where, f"{checked} scores follow from their item rows")


def _rate(values: list[float]) -> dict[str, float | int | None]:
    if not values:
        return {"value": None, "low": None, "high": None, "n": 0}
    hits = round(sum(values))
    low, high = wilson(hits, len(values))
    return {"value": hits / len(values), "low": low, "high": high, "n": len(values)}


def _same(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(float(a), float(b), rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _lineage_merges(folder: Path, resolve: Resolve | None) -> Iterator[Finding]:
    """The merges a release came through: each is merged again where its own folder can be reached."""
    lineage = folder / "lineage.json"
    if not lineage.exists():
        return
    for step, manifest in json.loads(lineage.read_text(encoding="utf-8")).items():
        check_object("artifact", manifest, f"{lineage}: {step}", "format")
        if not is_merge(manifest):
            continue
        place = resolve(step) if resolve else None
        if place is None:
            yield Finding("note", "merge", step, "not merged again: its artifact can't be reached from here")
        else:
            yield from _merge(place, manifest, resolve)


def _merge(folder: Path, manifest: Mapping[str, Any], resolve: Resolve | None) -> Iterator[Finding]:
    """One tensor, chosen by the fingerprint, merged again from the inputs and compared bit for bit."""
    parameters, inputs = parameters_of(manifest), manifest["inputs"]
    refs = list(dict.fromkeys([parameters["base"], *parameters["models"]]))  # `linear` may average the base in
    folders = {ref: resolve(ref) if resolve else None for ref in refs}
    missing = [ref for ref, place in folders.items() if place is None or not place.is_dir()]
    if missing:
        yield Finding("note", "merge", MANIFEST, f"not merged again: {', '.join(missing)} can't be reached from here")
        return
    if (made := stale(manifest)) is not None:
        what = f"not merged again: made by version {made} of `merge`, this is version {Merge.version}"
        yield Finding("note", "merge", MANIFEST, what)
        return
    found = {ref: place for ref, place in folders.items() if place is not None}
    name = "."
    try:
        ours = open_checkpoint(folder)
        names = sorted(ours.tensors)
        name = names[key64(0, "verify.merge", str(manifest.get("fingerprint"))) % len(names)]
        again = recompute_tensor(
            parameters,
            found[parameters["base"]],
            {ref: found[ref] for ref in parameters["models"]},
            {ref: str(inputs[ref]["digest"]) for ref in parameters["models"]},
            int(manifest.get("seed", 0)),
            name,
        )
        same = again == ours.raw(name).tobytes()
    except AloeError as cause:
        yield Finding("error", "merge", name, f"could not be merged again: {cause.what}")
        return
    if same:
        yield Finding("ok", "merge", name, f"merged again from {len(refs)} inputs: the same {len(again)} bytes")
    else:
        yield Finding("error", "merge", name, "merging its inputs again gives other bytes")
