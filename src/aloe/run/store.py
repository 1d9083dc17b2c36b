"""Artifacts on disk: written aside, fsynced, renamed; found by fingerprint; refused when half-written or edited.

    out/<family>/<step>                 symbolic link: the current artifact of that step, in words
    out/<family>/.store/<verb>-<fp>/    every artifact ever made, addressed by its fingerprint
    out/<family>/.store/tmp-*           being written; never read, swept by the next run
    out/<family>/.store/spent-*         what served to make an artifact and may go once that stands
    out/<family>/.store/old-*           an artifact whose successor is just being put in its place
    out/<family>/.cache/                request ledger and reference caches

A folder without a valid manifest is not an artifact.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from aloe.digests import digest_file, digest_json, digest_tree, digest_written, files_in
from aloe.errors import AloeError
from aloe.json_file import read_object
from aloe.manifest_file import check_manifest
from aloe.schema import LATEST, check_object

MANIFEST = "manifest.json"
SPENT = "spent-"  # before the name of an artifact: a list of folders
OLD = "old-"  # before the name of an artifact that is being replaced


@dataclass(frozen=True)
class Artifact:
    """A finished folder and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def content_digest(self) -> str:
        return str(self.manifest["content_digest"])


class Store:
    """The artifacts of one family below `root` (`out/<family>`)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / ".store"
        self.cache = root / ".cache"

    # -- reading ------------------------------------------------------------------------------------------------

    def path_of(self, verb: str, fingerprint: str) -> Path:
        return self.folder / f"{verb}-{fingerprint[:16]}"

    def find(self, verb: str, fingerprint: str) -> Artifact | None:
        """The artifact with this fingerprint, or None. Its files are checked, by size and time or by digest.

        Raises:
            AloeError: it exists and a file was edited, or is missing, since it was written.
        """
        path = self.path_of(verb, fingerprint)
        if not (path / MANIFEST).exists():
            return None
        artifact = read_artifact(path)
        if artifact.fingerprint != fingerprint:
            raise AloeError(
                "the manifest states another fingerprint than the folder's name",
                where=str(path),
                fix="delete the folder; the next run makes it anew",
            )
        self.check(artifact)
        return artifact

    def current(self, step: str) -> Artifact | None:
        """What `out/<family>/<step>` points to, unchecked; None when there is nothing (valid)."""
        path = self.root / step
        return read_artifact(path.resolve()) if (path / MANIFEST).exists() else None

    def check(self, artifact: Artifact) -> None:
        """Every file as the manifest says. A file whose size, time and inode were seen before isn't read again."""
        seen = self._read_stats()
        fresh = dict(seen)
        for name, entry in artifact.manifest["files"].items():
            path = artifact.path / name
            if not path.exists():
                raise _edited(artifact, f"file {name} is missing")
            stat = path.stat()
            key = f"{stat.st_dev}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}"
            digest = seen.get(key) or digest_file(path)
            fresh[key] = digest
            if digest != entry["digest"]:
                raise _edited(artifact, f"file {name} was changed after it was written")
        if fresh != seen:
            self._write_stats(fresh)

    def _read_stats(self) -> dict[str, str]:
        path = self.cache / "stats.json"
        try:
            return dict(json.loads(path.read_text()))
        except (OSError, ValueError):
            return {}

    def _write_stats(self, stats: dict[str, str]) -> None:
        # It only saves time: `aloe plan` works on a folder that it may not write to, or on a full disk.
        with suppress(OSError):
            self.cache.mkdir(parents=True, exist_ok=True)
            write_aside(self.cache / "stats.json", json.dumps(stats))

    # -- writing ------------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One run at a time per family; a kill releases it.

        Raises:
            AloeError: another run has it (its process and machine are named), or the file system has no locks.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as cause:
                raise _not_locked(self.root, handle, cause) from None
            _sign(handle, mine=True)
            self._sweep()
            yield
            _sign(handle, mine=False)

    def _sweep(self) -> None:
        """Remove what a killed run was writing; put back what it was about to replace."""
        for old in self.folder.glob(f"{OLD}*"):
            target = self.folder / old.name.removeprefix(OLD)
            if not target.exists():
                os.replace(old, target)
            shutil.rmtree(old, ignore_errors=True)
        for left in self.folder.glob("tmp-*"):
            shutil.rmtree(left, ignore_errors=True)
        for note in self.folder.glob(f"{SPENT}*"):
            self._remove_spent(note)
        # Small files written aside (`write_aside`, `point`) whose turn never came.
        marks = ((self.cache, ".stats.json-*"), (self.folder, ".nodes.json-*"), (self.folder, f".{SPENT}*"))
        for folder, mark in (*marks, (self.root, ".*.new")):
            for left in folder.glob(mark):
                with suppress(OSError):
                    left.unlink()

    def begin(self, step: str) -> Path:
        """A temporary folder for a step's output."""
        return Path(tempfile.mkdtemp(prefix=f"tmp-{step}-", dir=self.folder))

    def finish(
        self, folder: Path, verb: str, step: str, manifest: dict[str, Any], spent: Sequence[Path] = ()
    ) -> Artifact:
        """Digest, write the manifest, fsync all, rename into place, point the step's name to it, remove `spent`: what
        only served to make it. A kill in between leaves that to the next run."""
        paths = {p.relative_to(folder).as_posix(): p for p in files_in(folder)}
        with ThreadPoolExecutor(1) as pool:  # the disk writes what the processors digest
            on_disk = [pool.submit(_fsync, path) for path in paths.values()]
            digests = digest_written(paths)
            for synced in on_disk:
                synced.result()
        files = {name: {"digest": digests[name], "bytes": path.stat().st_size} for name, path in paths.items()}
        content = {name: str(f["digest"]) for name, f in files.items() if not name.startswith("logs/")}
        manifest = {**manifest, "format": LATEST["artifact"], "files": files, "content_digest": digest_tree(content)}
        manifest["manifest_digest"] = digest_json(manifest)
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"  # fields in the order they are declared in
        (folder / MANIFEST).write_text(text)
        manifest = json.loads(text)  # what a later run reads: what follows must not see whether it was made in this one
        for path in files_in(folder):
            # Some writers leave 0600 behind, which would keep colleagues out. A hard link shares its mode.
            os.chmod(path, 0o644)
        _fsync(folder / MANIFEST)
        target = self.path_of(verb, manifest["fingerprint"])
        note = self.folder / f"{SPENT}{target.name}"
        if spent:
            whose = {"manifest": manifest["manifest_digest"], "paths": [os.path.abspath(p) for p in spent]}
            write_aside(note, json.dumps(whose))
        os.chmod(folder, 0o755)  # mkdtemp's 0700 would keep colleagues out
        for inner in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
            _fsync(inner)  # the names of the files, too
        old = self.folder / f"{OLD}{target.name}"
        if target.exists():  # made anew on request, edited, or without a valid manifest
            shutil.rmtree(old, ignore_errors=True)
            os.replace(target, old)
        try:
            os.replace(folder, target)
        except OSError:
            if old.exists():
                os.replace(old, target)
            raise
        _fsync(self.folder)
        shutil.rmtree(old, ignore_errors=True)
        artifact = Artifact(target, manifest)
        self.point(step, artifact)
        self._remove_spent(note)
        return artifact

    def _remove_spent(self, note: Path) -> None:
        """Remove what served to make the artifact that `note` is about, if that stands; the note in any case."""
        if not note.exists():
            return
        try:
            whose = json.loads(note.read_text())
            made = read_artifact(self.folder / note.name.removeprefix(SPENT))
            if made.manifest["manifest_digest"] == whose["manifest"]:
                for path in map(Path, whose["paths"]):
                    if path.is_relative_to(os.path.abspath(self.root)):
                        shutil.rmtree(path, ignore_errors=True)
        except (AloeError, ValueError, KeyError, TypeError):
            pass  # the artifact never came, so what it was being made from is still of use
        note.unlink(missing_ok=True)

    def point(self, step: str, artifact: Artifact) -> None:
        """Make `out/<family>/<step>` name this artifact, atomically."""
        link = self.root / step
        if link.is_symlink() and link.resolve() == artifact.path.resolve():
            return
        aside = self.root / f".{step}.new"
        aside.unlink(missing_ok=True)
        aside.symlink_to(artifact.path.relative_to(self.root), target_is_directory=True)
        os.replace(aside, link)


def read_artifact(path: Path) -> Artifact:
    """Read a folder's manifest; refuse one that is torn or was edited. Files aren't checked here."""
    where = path / MANIFEST
    try:
        if not where.exists():
            raise FileNotFoundError
        manifest = read_object(where, fix="restore it, or delete the folder and run the recipe again")
        check_object("artifact", manifest, where, "format")  # a newer one's digest may be taken otherwise
        stated = manifest.pop("manifest_digest")
        if digest_json(manifest) != stated:
            raise AloeError(
                "the manifest was changed after it was written",
                where=str(where),
                fix="restore it, or delete the folder and run the recipe again",
            )
        manifest["manifest_digest"] = stated
        check_manifest(manifest, str(where))
    except FileNotFoundError:
        raise AloeError(
            "no manifest.json: not an artifact",
            where=str(path),
            fix="name a folder that a recipe's step wrote (out/<family>/<step>)",
        ) from None
    except (ValueError, KeyError, RecursionError):
        raise AloeError(
            "the manifest is damaged", where=str(where), fix="restore it, or delete the folder and run the recipe again"
        ) from None
    return Artifact(path, manifest)


def write_aside(path: Path, text: str) -> None:
    """Replace a small file in one step: a reader sees the old text or the new one."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise


def _sign(lock: IO[str], mine: bool) -> None:
    """Say in the lock's file who has it. For people: the lock itself is the kernel's."""
    about = {"process": os.getpid(), "machine": socket.gethostname()}
    with suppress(OSError):  # a full disk must not keep a run from removing what fills it
        lock.seek(0)
        lock.truncate()
        lock.write(json.dumps(about) if mine else "")
        lock.flush()


def _not_locked(root: Path, lock: IO[str], cause: OSError) -> AloeError:
    if cause.errno not in (errno.EWOULDBLOCK, errno.EACCES):
        return AloeError(
            f"the file system can't lock files ({cause.strerror}), so two runs could write here at once",
            where=str(root),
            fix="choose an --out on a local disk, or mount this one with working file locks",
        )
    try:
        lock.seek(0)
        about = json.loads(lock.read())
        who = f" (process {int(about['process'])} on {about['machine']})"
    except (OSError, ValueError, KeyError, TypeError):
        who = ""
    return AloeError(
        f"another run is writing here{who}", where=str(root), fix="wait for it, or give this one its own --out"
    )


def _edited(artifact: Artifact, what: str) -> AloeError:
    step = artifact.manifest.get("step", "?")
    return AloeError(
        what,
        where=str(artifact.path),
        fix=f"restore the file, or make the artifact anew with: aloe run RECIPE --redo {step}",
    )


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
