"""What a report may speak of: an artifact's own files, and for a release or a whole run those of all its steps.

Every file is checked against the digest that its manifest states before a figure is read from it, so a page never
shows a number that was edited afterwards. A release carries the manifests of all its steps (`lineage.json`) and the
results named as its evidence; the files of its other steps are read from the store it still lies in
(`.store/<verb>-<fingerprint>`), where there is one, and only if fingerprint and content digest are the lineage's.

A run is the folder that its steps' artifacts lie in (`out/<family>`): the page then speaks of the artifact that every
step's name stands for now.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aloe.digests import digest_file, digest_json
from aloe.errors import AloeError
from aloe.schema import Newer, check_object

MANIFEST, STORE = "manifest.json", ".store"
RUN, RELEASE = "run", "release"  # kinds of which a page shows every step
Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class Shelf:
    """Files below `folder`/`prefix` with the digests that a manifest lists for them (paths from `folder`); what it
    lacks is looked for `behind` it."""

    folder: Path
    prefix: str
    listed: Mapping[str, Mapping[str, Any]]
    behind: Shelf | None = None

    def names(self) -> list[str]:
        """Paths relative to the prefix, sorted."""
        return sorted(n.removeprefix(self.prefix) for n in self.listed if n.startswith(self.prefix))

    def path(self, name: str) -> Path | None:
        """The file, checked; None when the manifest lists none of that name.

        Raises:
            AloeError: it is listed and missing, or its digest is another.
        """
        entry = self.listed.get(self.prefix + name)
        if entry is None:
            return self.behind.path(name) if self.behind is not None else None
        path = self.folder / (self.prefix + name)
        if not path.is_file():
            raise _unsound(path, "listed in the manifest, missing here")
        if digest_file(path) != entry["digest"]:
            raise _unsound(path, "changed after it was written: its digest is not the manifest's")
        return path

    def enclosed(self, name: str, folder: Path) -> Path | None:
        """The file, checked, if it lies in `folder` itself and not in the store beside or behind it."""
        return self.path(name) if self.folder == folder and self.prefix + name in self.listed else None

    def text(self, name: str) -> str | None:
        """A text file's content."""
        path = self.path(name)
        return None if path is None else path.read_text(encoding="utf-8", errors="replace")

    def json(self, name: str) -> Any:
        """A JSON file's value; None when there is no such file."""
        text = self.text(name)
        return None if text is None else _parse(text, self.folder / (self.prefix + name))

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The objects of a JSON Lines file; none when there is no such file."""
        where = self.folder / (self.prefix + name)
        return [_parse(line, where) for line in (self.text(name) or "").splitlines() if line.strip()]


@dataclass(frozen=True)
class Made:
    """One step: its manifest ({} when only its digest is known), its files if they are at hand, and `state`:
    what this page knows it by."""

    name: str
    manifest: Manifest
    shelf: Shelf | None
    state: str

    @property
    def verb(self) -> str:
        return str(self.manifest.get("verb", ""))


@dataclass(frozen=True)
class Evidence:
    """The artifact in `folder` and every step it came from, inputs first; `own` is the artifact's own step.

    Of a run, `own` is no step: its manifest says no more than the family's name."""

    folder: Path
    own: Made
    steps: dict[str, Made]

    @property
    def manifest(self) -> Manifest:
        return self.own.manifest

    @property
    def whole(self) -> bool:
        """Whether the page is about all steps: of a release, or of a run."""
        return self.manifest.get("kind") in (RUN, RELEASE)

    @property
    def root(self) -> Made:
        """The step whose files speak for the whole: the artifact itself; of a run its last release, if it has one."""
        releases = [s for s in self.steps.values() if s.manifest.get("kind") == RELEASE]
        return releases[-1] if self.manifest.get("kind") == RUN and releases else self.own

    def about(self) -> list[Made]:
        """Steps that the page is about, at hand or not: all of a release's or a run's, else the artifact's own."""
        return list(self.steps.values()) if self.whole else [self.own]

    def speaking(self) -> Iterator[Made]:
        """Those of them whose files are at hand, to fill sections from."""
        yield from (step for step in self.about() if step.shelf is not None)


def gather(folder: Path) -> Evidence:
    """Read the artifact in `folder`, or the run whose steps' artifacts lie in it.

    Raises:
        AloeError: no manifest, a torn or edited one, or a listed file that was edited.
    """
    if (folder / STORE).is_dir() and not (folder / MANIFEST).exists():
        return _gather_run(folder)
    manifest = read_manifest(folder)
    listed: dict[str, dict[str, Any]] = manifest["files"]
    own = Made(str(manifest["step"]), manifest, Shelf(folder, "", listed), "this artifact")
    lineage = own.shelf.json("lineage.json") if own.shelf else None
    known: dict[str, Made] = {}
    for name, upstream in (lineage or {}).items():
        known[name] = _of_lineage(folder, listed, name, upstream)
    if lineage is None:
        _walk_store(folder, manifest, known)
    known.pop(own.name, None)
    return Evidence(folder, own, _ordered({own.name: own, **known}))


def _gather_run(folder: Path) -> Evidence:
    """The artifacts that the names in a family's folder stand for now."""
    steps = {}
    for place in sorted(folder.iterdir()):
        if place.name.startswith(".") or not (place / MANIFEST).is_file():
            continue
        manifest = read_manifest(place)
        steps[str(manifest["step"])] = Made(
            str(manifest["step"]), manifest, Shelf(place.resolve(), "", manifest["files"]), "artifact in the store"
        )
    if not steps:
        fix = "run its recipe, or name a folder that a recipe's step wrote (out/<family>/<step>)"
        raise AloeError("a run without a finished step", where=str(folder), fix=fix)
    times = [str(s.manifest[k]) for s in steps.values() for k in ("started", "finished") if s.manifest.get(k)]
    own: dict[str, Any] = {"step": folder.resolve().name, "kind": RUN, "verb": "", "files": {}, "inputs": {}}
    own |= {"started": min(times), "finished": max(times)} if times else {}
    return Evidence(folder, Made(own["step"], own, None, "this run"), _ordered(steps))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact folder, refused when torn or edited."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        check_object("artifact", manifest, path, "format")
        stated = manifest["manifest_digest"]
        missing = sorted({"step", "verb", "kind", "files", "inputs"} - manifest.keys())
    except FileNotFoundError:
        raise AloeError(
            "no manifest.json: not an artifact",
            where=str(folder),
            fix="name a folder that a recipe's step wrote (out/<family>/<step>)",
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, NotADirectoryError):
        fix = "restore it, or make the artifact anew"
        raise AloeError("the manifest can't be read", where=str(path), fix=fix) from None
    if missing:
        raise AloeError(f"the manifest lacks {missing[0]!r}", where=str(path), fix="make the artifact anew")
    if digest_json({k: v for k, v in manifest.items() if k != "manifest_digest"}) != stated:
        raise _unsound(path, "changed after it was written: its own digest does not hold")
    return dict(manifest)


def _of_lineage(folder: Path, listed: Mapping[str, Any], name: str, manifest: Manifest) -> Made:
    check_object("artifact", manifest, f"{folder / 'lineage.json'}: {name}", "format")
    prefix = f"evidence/{name}/"
    beside = _beside(folder, manifest.get("fingerprint"), manifest.get("content_digest"))
    stored = Shelf(beside, "", manifest["files"]) if beside is not None else None
    if any(n.startswith(prefix) for n in listed):
        return Made(name, manifest, Shelf(folder, prefix, listed, stored), "evidence enclosed")
    return Made(name, manifest, stored, "artifact in the store" if stored else "manifest only")


def _walk_store(folder: Path, manifest: Manifest, known: dict[str, Made]) -> None:
    """Steps upstream of an artifact that carries no lineage, as far as the store it lies in still has them."""
    for entry in manifest["inputs"].values():
        if "step" not in entry or entry["step"] in known:
            continue
        name = str(entry["step"])
        beside = _beside(folder, entry.get("fingerprint"), entry.get("digest"))
        if beside is None:
            known[name] = Made(
                name, {"kind": entry.get("kind", ""), "content_digest": entry.get("digest")}, None, "digest only"
            )
            continue
        upstream = read_manifest(beside)
        known[name] = Made(name, upstream, Shelf(beside, "", upstream["files"]), "artifact in the store")
        _walk_store(folder, upstream, known)


def _beside(folder: Path, fingerprint: Any, content: Any) -> Path | None:
    """The artifact with this fingerprint and content in the store that `folder` lies in."""
    store = folder.resolve().parent
    if store.name != ".store" or not isinstance(fingerprint, str) or not fingerprint:
        return None
    for path in sorted(store.glob(f"*-{fingerprint[:16]}")):
        try:
            manifest = read_manifest(path)
        except Newer:
            raise
        except AloeError:
            continue  # torn or edited: as good as absent, the lineage's own figures stand
        if manifest.get("fingerprint") == fingerprint and manifest.get("content_digest") == content:
            return path
    return None


def _ordered(steps: Mapping[str, Made]) -> dict[str, Made]:
    """Inputs before the steps that use them, along the way from the first step named."""
    done: dict[str, Made] = {}

    def visit(name: str, open_: tuple[str, ...]) -> None:
        for parent in parents(steps[name].manifest):
            if parent in steps and parent not in done and parent not in open_:
                visit(parent, (*open_, name))
        done.setdefault(name, steps[name])

    for name in steps:
        visit(name, ())
    return done


def parents(manifest: Manifest) -> list[str]:
    """Names of the steps that a manifest's inputs came from."""
    return [str(e["step"]) for e in manifest.get("inputs", {}).values() if "step" in e]


def superseded(step: Made, steps: Mapping[str, Made]) -> list[str]:
    """Inputs of a step that were made anew since: the name now stands for another artifact than the one it used."""
    found = []
    for entry in step.manifest.get("inputs", {}).values():
        now = steps.get(str(entry.get("step", "")))
        content = now.manifest.get("content_digest") if now is not None else None
        if content and entry.get("digest") and content != entry["digest"]:
            found.append(str(entry["step"]))
    return sorted(set(found))


def outside(manifest: Manifest) -> dict[str, Mapping[str, Any]]:
    """Inputs that no step made, by reference."""
    return {ref: e for ref, e in manifest.get("inputs", {}).items() if "step" not in e}


def _parse(text: str, where: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError as cause:
        raise AloeError(f"not valid JSON ({cause})", where=str(where), fix="make the artifact anew") from None


def _unsound(path: Path, what: str) -> AloeError:
    return AloeError(what, where=str(path), fix="run `aloe verify` on the folder; restore it or make it anew")
