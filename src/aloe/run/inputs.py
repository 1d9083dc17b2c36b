"""What a reference outside the recipe points to, and its digest: models, starter sets, data files, hub data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from aloe.contract import Ref
from aloe.digests import check_links, digest_file, digest_json, digest_tree, files_in
from aloe.errors import AloeError
from aloe.generate.server_spec import ServerSpec, direct, is_direct
from aloe.licence import joined
from aloe.models.sources import (
    ModelSource,
    cached_model_folder,
    folder_licence,
    materialise,
    model_files,
    resolve,
)
from aloe.models.weights_digest import digest_model, digest_models


@dataclass(frozen=True)
class Resource:
    """An input from outside. `digest` is None while it is not on this machine yet (a hub id before its fetch)."""

    ref: str
    kind: Literal["model", "rows"]
    digest: str | None
    licence: str
    origin: str
    path: Path | None = None
    model: ModelSource | None = None
    server: ServerSpec | None = None
    template: ModelSource | None = None  # whose tokenizer and template a server's prompts are rendered with

    @property
    def is_path(self) -> bool:
        """Whether the reference is a place, a path here or a server's address, which must not enter a fingerprint."""
        return self.origin in ("file", "folder", "GGUF file") or (self.server is not None and is_direct(self.ref))

    def fetch(self) -> Resource:
        """The same input on local disk with its digest; converts or fetches where needed. A server is not contacted:
        of it only the template, where it names one, is fetched; that folder is then `path`."""
        if self.server is not None:
            if self.template is None:
                return self
            folder = materialise(self.template)
            return replace(self, digest=self.server.digest(template_digest(folder)), path=folder)
        if self.kind == "model":
            assert self.model is not None
            folder = materialise(self.model)
            licence = self.licence if self.licence != "unknown" else folder_licence(folder)
            return Resource(self.ref, "model", digest_model(folder), licence, self.origin, folder, self.model)
        if self.path is None:
            return fetch_rows(self.ref)
        return self


def open_resource(ref: str, mark: Ref, near: Path | None) -> Resource:
    """Resolve a reference that names no step. Nothing is fetched, converted or contacted here.

    Raises:
        AloeError: it names nothing; the message lists what it could be.
    """
    if mark.served is not None:
        return _open_server(ref, mark.served, near)
    if mark.resource == "model" and is_direct(ref):
        return _open_server(ref, direct(ref), near)
    if mark.resource == "model":
        source = resolve(ref, near, mark.adapters)
        return Resource(ref, "model", _known_digest(source), source.licence, _origin(source), source.path, source)
    if ref.startswith("starter/"):
        from importlib.resources import files

        folder = Path(str(files("aloe") / "starter"))
        path = folder / f"{ref.removeprefix('starter/')}.jsonl"
        if not path.exists():
            names = ", ".join(f"starter/{p.stem}" for p in sorted(folder.glob("*.jsonl")))
            raise AloeError(f"no starter set {ref!r}", fix=f"starter sets: {names}")
        return Resource(ref, "rows", digest_file(path), "cc0-1.0", "starter data", path)
    for base in (Path.cwd(), near):
        found = (base / ref) if base else None
        if found is not None and found.exists():
            return Resource(ref, "rows", _digest_rows(found), sidecar_licence(found), "file", found)
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?(:[\w.-]*){0,2}", ref) and not re.search(
        r"\.(jsonl|json|parquet|csv|tsv|arrow|gz|zst)$", ref
    ):
        return Resource(ref, "rows", None, "unknown", "hub")
    raise AloeError(
        f"no rows {ref!r}: neither a step of the recipe, a starter set nor a file that exists",
        fix="check the path (read from the working directory, then from the recipe's folder); "
        "a hub data set looks like org/name or org/name@revision",
    )


def _open_server(ref: str, spec: ServerSpec, near: Path | None) -> Resource:
    """A server as an input: its digest is what it states of itself, known without asking it."""
    if spec.template is None:
        return Resource(ref, "model", spec.digest(), spec.licence, spec.origin, server=spec)
    source = resolve(spec.template, near)
    folder = cached_model_folder(source)
    digest = spec.digest(template_digest(folder)) if folder else None
    return Resource(ref, "model", digest, spec.licence, spec.origin, folder, server=spec, template=source)


def template_digest(folder: Path) -> str:
    """Content digest of a model folder's tokenizer and chat template, weights and model settings left out."""
    files = {name: path for name, path in model_files(folder).items() if not name.endswith(".safetensors")}
    skip = {"config.json", "generation_config.json", "model.safetensors.index.json"}
    return digest_tree({name: digest_file(path) for name, path in files.items() if name not in skip})


def fetch_rows(ref: str) -> Resource:
    """Fetch a hub data set (`org/name@revision:config:split`) into a Parquet file in the cache, with its licence. What
    the hub's own cache already holds is taken from there, without the network."""
    from aloe.models.sources import cache_home

    name, *rest = ref.split(":")
    name, _, revision = name.partition("@")
    config, split = [*rest, "", ""][:2]
    target = cache_home() / "rows" / f"{digest_json(ref)[:16]}.parquet"
    about = target.with_suffix(".json")
    if not target.exists():
        from datasets import load_dataset

        here = _snapshot(name, revision)
        try:
            if here is not None:
                data = load_dataset(str(here), config or None, split=split or "train")
            else:
                data = load_dataset(name, config or None, split=split or "train", revision=revision or None)
        except Exception as cause:
            reason = str(cause).splitlines()[0] if str(cause) else ""
            at = f" --revision {revision}" if revision else ""
            raise AloeError(
                f"can't fetch the data set {ref}: {type(cause).__name__}: {reason}",
                fix="check the id, the network and HF_TOKEN; fetch it elsewhere with "
                f"`hf download --repo-type dataset {name}{at}` and copy it into this machine's hub cache; or name a "
                "local JSON Lines or Parquet file instead",
            ) from None
        target.parent.mkdir(parents=True, exist_ok=True)
        card = name if here is None else str(here / "README.md")
        about.write_text(json.dumps({"ref": ref, "licence": _stated_licence(card)}))
        aside = target.with_suffix(".part")
        data.to_parquet(str(aside))
        aside.replace(target)
    return Resource(ref, "rows", digest_file(target), json.loads(about.read_text())["licence"], "hub", target)


def _snapshot(name: str, revision: str) -> Path | None:
    """The folder of a data set's repository in the hub's cache here, at that revision; None where it isn't."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, repo_type="dataset", revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, ValueError):
        return None
    return folder if any(folder.rglob("*.*")) else None


def _stated_licence(name: str) -> str:
    """The licence that a hub data set's card states. `unknown` where it states none: a release then asks for it."""
    from huggingface_hub import DatasetCard

    try:
        stated = DatasetCard.load(name).data.to_dict().get("license", "unknown")
    except Exception:  # no card, or no network for it: the rows are here, only their licence isn't known
        return "unknown"
    return str(stated[0] if isinstance(stated, list) else stated).lower()


def sidecar_licence(path: Path) -> str:
    """Licence of a local file by the REUSE convention (reuse.software): `FILE.license` holds an SPDX expression.

    Several `SPDX-License-Identifier` lines bind together; without any, the first line is the expression.
    """
    sidecar = path.with_name(path.name + ".license")
    if not sidecar.exists():
        return "unknown"
    text = sidecar.read_text(encoding="utf-8")
    stated = re.findall(r"^.*?SPDX-License-Identifier:[ \t]*(\S.*?)[ \t]*$", text, re.MULTILINE)
    return joined(stated or text.strip().split("\n")[:1]).lower() or "unknown"


def _digest_rows(path: Path) -> str:
    if path.is_file():
        return digest_file(path)
    files = files_in(path)
    check_links(files, path)
    return digest_tree({p.relative_to(path).as_posix(): digest_file(p) for p in files})


def read_ahead(refs: Iterable[str], near: Path | None) -> None:
    """Digest the model folders among these side by side, which `open_resource` would do one after the other."""
    folders: list[Path] = []
    for ref in sorted(refs):
        try:
            folder = cached_model_folder(resolve(ref, near, adapters=True))
        except AloeError:
            continue  # a server, or nothing that exists: `open_resource` says so
        folders += [folder] if folder else []
    digest_models(folders)


def _known_digest(source: ModelSource) -> str | None:
    """The digest when the weights are already a folder here, without converting or fetching."""
    folder = cached_model_folder(source)
    return digest_model(folder) if folder else None


def _origin(source: ModelSource) -> str:
    return {
        "packaged": f"packaged model {source.name}",
        "folder": "folder",
        "gguf": "GGUF file",
        "hub": f"hub {source.name}@{source.revision}",
    }[source.kind]
