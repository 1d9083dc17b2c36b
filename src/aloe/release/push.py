"""Giving a release or a data set away: to a hub, or to a folder that others read (a share, a mirror without a network).

What is uploaded is verified first: of a release the folder as it is, of a data step what `push_data` names. What
arrived is compared file by file afterwards. A repository is private unless the user says otherwise: what was public
once can't be called back.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aloe.digests import digest_file, files_in
from aloe.errors import AloeError
from aloe.manifest_file import read_manifest
from aloe.release.lineage import DATA_KINDS
from aloe.release.push_data import check_set, refuse_attacks, set_files
from aloe.release.verify import verify_artifact
from aloe.yaml_text import load_yaml

CHUNK = 1 << 20


@dataclass(frozen=True)
class Sent:
    """Where it went: `place`, the `revision` there (none for a folder), files and bytes."""

    place: str
    revision: str | None
    files: int
    size: int


def repo_type(release: Path) -> Literal["model", "dataset"]:
    """What kind of repository a folder becomes.

    Raises:
        AloeError: it is no artifact, one of a step whose results are given away with a release, or a red team's rows.
    """
    if not (release / "manifest.json").exists():
        fix = "name a folder that `release` or a data step wrote"
        raise AloeError("is no release: no manifest.json", where=str(release), fix=fix)
    manifest = read_manifest(release)
    kind = str(manifest.get("kind"))
    if kind not in ("release", *DATA_KINDS):
        fix = "name a folder that `release` or a data step wrote, for example out/<family>/release"
        raise AloeError(f"is no release: the step made {kind}", where=str(release), fix=fix)
    refuse_attacks(release, manifest)
    return "dataset" if kind in DATA_KINDS else "model"


def contents(release: Path) -> list[tuple[str, int]]:
    """(name, bytes) of every file that a push sends, in order.

    Raises:
        AloeError: no release and no data set, or one that `aloe verify` finds damaged, or without a card that states a
            licence; a data set that may not be given away.
    """
    is_set = repo_type(release) == "dataset"
    broken = [f for f in verify_artifact(release) if f.level == "error"]
    if broken:
        raise AloeError(f"it is damaged: {broken[0].message}", where=str(release), fix="make it again: aloe run")
    card = release / "README.md"
    stated = front_matter(card.read_text(encoding="utf-8") if card.is_file() else "")
    if is_set:
        check_set(release, stated)
        return [(name, (release / name).stat().st_size) for name in set_files(release)]
    if not stated.get("license"):
        fix = "name a folder that `release` wrote, for example out/<family>/release"
        raise AloeError("has no model card that states a licence", where=str(card), fix=fix)
    return [(p.relative_to(release).as_posix(), p.stat().st_size) for p in files_in(release)]


def front_matter(card: str) -> dict[str, Any]:
    """The YAML block at a card's head; empty without one."""
    parts = card.split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    loaded = load_yaml(parts[1], "README.md", repeats=True)
    return loaded if isinstance(loaded, dict) else {}


def push_folder(release: Path, target: Path) -> Sent:
    """Copy a release or a data set to `target`, whole or not at all. One that is there already must be the same.

    Raises:
        AloeError: something else is there, or the copy is not what was sent.
    """
    listed = contents(release)
    if target.exists():
        more = {p.relative_to(target).as_posix() for p in files_in(target)} - {name for name, _ in listed}
        if not more and not _differing(release, target, listed):
            return Sent(str(target), None, len(listed), sum(size for _, size in listed))
        raise AloeError("is there already, with other content", where=str(target), fix="name a folder that isn't there")
    aside = target.with_name(f".{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        for name, _ in listed:
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(release / name, aside / name)
        bad = _differing(release, aside, listed)
        if bad:
            raise AloeError(f"{bad[0]} arrived changed", where=str(target), fix="check the disk and push again")
        os.replace(aside, target)
    except OSError as cause:
        raise AloeError(f"can't be written: {cause.strerror}", where=str(target), fix="choose another folder") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Sent(str(target), None, len(listed), sum(size for _, size in listed))


def _differing(release: Path, target: Path, listed: Iterable[tuple[str, int]]) -> list[str]:
    return [
        name
        for name, _ in listed
        if not (target / name).is_file() or digest_file(release / name) != digest_file(target / name)
    ]


def push_hub(release: Path, repo: str, *, public: bool, message: str, api: Any = None) -> Sent:
    """Upload a release to a model repository of the Hugging Face hub, or a data set to a data set's, in one commit.

    Args:
        repo: `organisation/name`; made where it isn't there yet.
        public: False makes it private, and refuses to add to one that is public already.
        api: a `huggingface_hub.HfApi`; one with the token of this machine when None.

    Raises:
        AloeError: no right to, no network, or what arrived is not what was sent.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalTokenNotFoundError

    listed, kind = contents(release), repo_type(release)
    api = api or HfApi(library_name="aloe-llm")
    try:
        api.create_repo(repo, private=not public, repo_type=kind, exist_ok=True)
        if not public and api.repo_info(repo, repo_type=kind).private is False:
            fix = "name another repository, or say --public"
            raise AloeError("is public already, and --public was not given", where=repo, fix=fix)
        commit = api.upload_folder(
            repo_id=repo, folder_path=str(release), repo_type=kind, commit_message=message,
            allow_patterns=[name for name, _ in listed],
        )  # fmt: skip
        there = {f.path: f for f in api.list_repo_tree(repo, recursive=True, revision=commit.oid, repo_type=kind)}
    except LocalTokenNotFoundError:
        raise AloeError("no token for the hub", where=repo, fix="hf auth login, or set HF_TOKEN") from None
    except HFValidationError as cause:
        raise AloeError(f"is no repository id: {cause}", where=repo, fix="write organisation/name") from None
    except HfHubHTTPError as cause:
        status = getattr(cause.response, "status_code", None)
        fix = "check HF_TOKEN and that it may write there" if status in (401, 403, 404) else "try again"
        raise AloeError(f"the hub said no ({status}): {str(cause).splitlines()[0]}", where=repo, fix=fix) from None
    except (HTTPError, OSError) as cause:
        raise AloeError(
            f"the hub can't be reached: {type(cause).__name__}", where=repo,
            fix="check the network; what was sent is kept there, so the same command goes on. Without a network: "
            "aloe push RELEASE ./folder",
        ) from None  # fmt: skip
    wrong = [name for name, _ in listed if not _same(release / name, there.get(name))]
    if wrong:
        fix = "push again, and do not use that revision"
        raise AloeError(f"{wrong[0]} arrived changed ({len(wrong)} files)", where=f"{repo}@{commit.oid}", fix=fix)
    return Sent(repo, str(commit.oid), len(listed), sum(size for _, size in listed))


def _same(path: Path, remote: Any) -> bool:
    """Whether the hub's digest is this file's: SHA-256 of large files, git's object id of the others."""
    if remote is None or remote.size != path.stat().st_size:
        return False
    if remote.lfs is not None:
        return str(remote.lfs.sha256) == _sha256(path)
    return bool(remote.blob_id == git_blob(path))


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(CHUNK):
            found.update(block)
    return found.hexdigest()


def git_blob(path: Path) -> str:
    """The id that git gives a file's content."""
    found = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as handle:
        while block := handle.read(CHUNK):
            found.update(block)
    return found.hexdigest()
