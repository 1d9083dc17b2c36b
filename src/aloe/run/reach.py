"""Find the inputs of an artifact again, by content: what `aloe verify` merges anew from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from aloe.errors import AloeError
from aloe.json_file import read_object
from aloe.manifest_file import MALFORMED, malformed, read_manifest
from aloe.models.sources import cached_model_folder, resolve
from aloe.models.weights_digest import digest_model
from aloe.run.store import MANIFEST, read_artifact


def reach(folder: Path) -> Callable[[str], Path | None]:
    """A function from a reference (step name, packaged model, hub id) to a folder here with the recorded content.

    Names are looked up in the artifact's manifest and, for a release, in its lineage; folders in the `.store` the
    artifact lies in and among the models of this machine. A folder whose content differs is not returned.
    """
    digests = _recorded(folder)
    stored = _stored(folder.resolve().parent)

    def find(ref: str) -> Path | None:
        digest = digests.get(ref)
        if digest is None:
            return None
        return stored.get(digest) or _outside(ref, digest)

    return find


def _recorded(folder: Path) -> dict[str, str]:
    """Reference -> content digest, of the artifact's inputs and of everything upstream that it states."""
    manifest = read_manifest(folder)
    manifests: list[Any] = [manifest]
    lineage = folder / "lineage.json"
    try:
        upstream = read_object(lineage) if lineage.exists() else {}
        manifests += upstream.values()
        found = {ref: str(entry["digest"]) for m in manifests for ref, entry in m["inputs"].items()}
        return found | {name: str(m["content_digest"]) for name, m in upstream.items()}
    except MALFORMED as cause:
        fix = "get the artifact again: what it was made from can't be told"
        raise AloeError(f"the lineage can't be read ({malformed(cause)})", where=str(lineage), fix=fix) from None


def _stored(store: Path) -> dict[str, Path]:
    if store.name != ".store":
        return {}
    found = {}
    for place in store.glob(f"*/{MANIFEST}"):
        try:
            found[read_artifact(place.parent).content_digest] = place.parent
        except AloeError:  # a damaged neighbour is no input; its own verification says what is wrong with it
            continue
    return found


def _outside(ref: str, digest: str) -> Path | None:
    try:
        folder = cached_model_folder(resolve(ref, adapters=True))
    except AloeError:
        return None
    return folder if folder is not None and digest_model(folder, fresh=True) == digest else None
