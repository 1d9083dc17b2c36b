"""Checkpoints: the whole state of a run, written so that a kill at any moment leaves a complete one behind.

A checkpoint is a folder `step-00000040`: each rank's tensors in its own safetensors files, `state.json`, and
`index.json` with the run's identity and a digest of every file. All is written and fsynced in a folder of another name
which is then renamed. Nothing here changes a result: time decides when state is saved, never what it is.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aloe.digests import canonical_json
from aloe.errors import AloeError
from aloe.schema import LATEST, check_object
from aloe.train.checkpoint_files import (
    SPARE_BYTES,
    STATE,
    Damaged,
    Read,
    Shard,
    check_files,
    merge_parts,
    read_index,
    reader,
    sync_folder,
    write_file,
    write_index,
    write_part,
)

__all__ = ["Checkpoints", "Found", "Read", "Shard", "random_states", "restore_random_states"]

NUMBER = "checkpoint format"  # in the identity: a run goes on from its own number only
PARTIAL = ".partial-"  # a folder being written or removed
NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Found:
    """A complete checkpoint. `read(name, first, end)` gives rows of a tensor, whatever ranks wrote them."""

    step: int
    state: dict[str, Any]
    read: Read
    shapes: dict[str, tuple[int, ...]]


class Checkpoints:
    """The checkpoints of one run in `folder`, which all ranks see.

    All ranks call every method, `latest` first: `write` removes what it can't go on from.

    Args:
        identity: what must be equal for a run to go on from here: parameters, digests of inputs, seed. Plain JSON
            values; neither paths nor the number of processes.
        keep: complete checkpoints that stay.
        every_steps: save at multiples of it; None: by `every_minutes` of wall time.
        barrier: waits for all ranks.
        broadcast: gives every rank what rank 0 passed.
        log: told of what was damaged, given up or could not be written.
    """

    def __init__(
        self,
        folder: Path,
        identity: Mapping[str, Any],
        *,
        keep: int = 2,
        every_steps: int | None = None,
        every_minutes: float = 15.0,
        rank: int = 0,
        world: int = 1,
        barrier: Callable[[], None] = lambda: None,
        broadcast: Callable[[Any], Any] = lambda value: value,
        log: Callable[[str], None],
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep is {keep}: one checkpoint at least must stay")
        self._folder = folder
        self._identity = json.loads(canonical_json({**identity, NUMBER: LATEST["checkpoint"]}))
        self._keep, self._every_steps, self._every_minutes = keep, every_steps, every_minutes
        self._rank, self._world, self._barrier, self._broadcast, self._log = rank, world, barrier, broadcast, log
        self._since = time.monotonic()
        self._saved = -1  # step of the last one written or found
        self._bytes = 0  # size of the last one, which the next will have too
        self._sound: set[int] = set()  # steps whose files are known to be as written
        self._damaged: set[int] = set()

    def due(self, step: int, last: bool = False) -> bool:
        """Whether the state after `step` steps should be saved; the same on every rank.

        The last state is always due, unless it is saved already: what follows (the artifact's files, their digests) may
        take long for a large model.
        """
        if step == self._saved:
            return False
        if last or self._every_steps is not None:
            return last or step % (self._every_steps or 1) == 0
        return bool(self._broadcast(time.monotonic() - self._since >= 60 * self._every_minutes))

    # -- writing

    def write(self, step: int, shards: Iterable[Shard], state: Mapping[str, Any], *, size: int | None = None) -> bool:
        """Save the state after `step` steps. False, with a warning, if there was no room: that must not end a run.

        Args:
            shards: this rank's; taken one at a time, so a generator that copies from a device needs room for one. Ranks
                may hold equal rows: all are kept, one is read.
            state: plain JSON values (floats come back exactly); rank 0's is kept.
            size: bytes to expect, where it is known; else that of the checkpoint before.

        Raises:
            TypeError: `state` isn't plain JSON.
        """
        text = json.dumps(state).encode()
        partial = self._folder / f"{PARTIAL}{step:08d}"
        problem = self._broadcast(self._begin(step, partial, size or self._bytes) if self._rank == 0 else None)
        if problem is None:
            try:
                write_part(partial, self._rank, shards)
            except OSError as cause:
                self._log(f"warning: rank {self._rank} can't write its part of a checkpoint: {cause}")
            self._barrier()
            problem = self._broadcast(self._finish(step, partial, text) if self._rank == 0 else None)
        self._since = time.monotonic()
        if problem:
            if self._rank == 0:
                self._log(f"warning: no checkpoint at step {step}: {problem}. Training goes on; what is saved stays")
            return False
        self._saved = step
        return True

    def _begin(self, step: int, partial: Path, size: int) -> str | None:
        """Make the folder to write in. None: go on; "": this step is saved already; else what stands in the way."""
        try:
            if not self._folder.exists():
                self._folder.mkdir(parents=True)
                sync_folder(self._folder.parent)
            self._sweep()
            if step in self._steps() and self._is_sound(step):
                self._prune(step)
                return ""
            while (free := shutil.disk_usage(self._folder).free) < size + SPARE_BYTES:
                spare = self._expendable()
                if free + len(spare) * self._bytes < size + SPARE_BYTES:
                    return f"it needs {size / 1e9:.2f} GB and {self._folder} has {free / 1e9:.2f} GB free"
                self._log(f"removing checkpoint {self._path(spare[0]).name} early: the disk is nearly full")
                self._remove(spare[0])
            partial.mkdir()
        except (OSError, AloeError) as cause:
            return str(cause)
        return None

    def _expendable(self) -> list[int]:
        """Steps that may go to make room: damaged ones, then those before the newest that is known to be whole."""
        steps = self._steps()
        newest = max((s for s in steps if s in self._sound), default=-1)
        return sorted((s for s in steps if s in self._damaged or s < newest), key=lambda s: (s not in self._damaged, s))

    def _is_sound(self, step: int) -> bool:
        """Whether the checkpoint of that step is whole; one that isn't is removed, as its place is needed."""
        if step not in self._sound:
            try:
                self._inspect(step)
            except Damaged:
                self._remove(step)
                return False
        return True

    def _finish(self, step: int, partial: Path, state: bytes) -> str | None:
        """Complete what the ranks wrote and rename it. None if that went well, else what stands in the way."""
        try:
            index = merge_parts(partial, self._world)
            index["files"][STATE] = write_file(partial / STATE, state)
            write_index(partial, {"identity": self._identity, "step": step, "world": self._world, **index})
            sync_folder(partial)
            os.replace(partial, self._path(step))
            sync_folder(self._folder)
        except (OSError, Damaged) as cause:
            shutil.rmtree(partial, ignore_errors=True)
            return str(cause)
        self._sound.add(step)
        self._bytes = sum(f["bytes"] for f in index["files"].values())
        self._prune(step)
        return None

    def _prune(self, newest: int) -> None:
        """Keep `newest` and those before it, up to `keep`. Later ones are damaged, or of a run that began anew."""
        whole = [s for s in self._steps() if s <= newest and s not in self._damaged]
        try:
            for step in set(self._steps()) - set(whole[-self._keep :]):
                self._remove(step)
        except OSError as cause:
            self._log(f"warning: an old checkpoint can't be removed: {cause}")

    # -- reading

    def latest(self) -> Found | None:
        """The newest checkpoint whose files are as they were written; None if there is none. Damaged ones are logged.

        Raises:
            AloeError: the checkpoint is of another recipe, data or code; the fields are named.
        """
        choice = self._broadcast(self._choose() if self._rank == 0 else None)
        if isinstance(choice, dict):
            raise AloeError(choice["what"], where=choice["where"], fix=choice["fix"])
        self._since = time.monotonic()
        if choice is None:
            return None
        self._saved = choice
        path = self._path(choice)
        try:
            index = read_index(path)
            state = json.loads((path / STATE).read_text())
        except (OSError, Damaged) as cause:
            raise AloeError(
                f"rank {self._rank} doesn't see the checkpoint that rank 0 has found ({cause})",
                where=str(path),
                fix="put the output folder on a disk that all nodes share",
            ) from None
        shapes = {name: tuple(tensor["shape"]) for name, tensor in index["tensors"].items()}
        return Found(choice, state, reader(path, index["tensors"]), shapes)

    def _choose(self) -> int | dict[str, str] | None:
        """The step to go on from, None, or an error for all ranks to raise."""
        self._sweep()
        steps = self._steps()
        for step in reversed(steps):
            try:
                self._inspect(step)
                return step
            except Damaged as cause:
                self._damaged.add(step)
                self._log(f"checkpoint {self._path(step).name} is damaged and not used: {cause}")
            except AloeError as cause:
                return {"what": cause.what, "where": cause.where or "", "fix": cause.fix or ""}
        if steps:
            self._log(f"none of {len(steps)} checkpoints in {self._folder} is whole: training starts anew")
        return None

    def _inspect(self, step: int) -> None:
        """Check one checkpoint; raises Damaged, or AloeError if it is another run's."""
        path = self._path(step)
        index = read_index(path)
        check_object("checkpoint", index["identity"], path, NUMBER)
        if index["identity"] != self._identity:
            fields = _differences(index["identity"], self._identity)
            raise AloeError(
                f"this checkpoint is of another run: {'; '.join(fields)}",
                where=str(path),
                fix=f"go on with what it was made with, or delete {self._folder} to start anew",
            )
        check_files(path, index["files"])
        self._sound.add(step)
        self._bytes = sum(f["bytes"] for f in index["files"].values())

    def clear(self) -> None:
        """Remove all checkpoints, once what they were for is complete. Other files in the folder stay."""
        self._barrier()
        if self._rank == 0 and self._folder.exists():
            try:
                for step in self._steps():
                    self._remove(step)
                self._sweep()
                if not any(self._folder.iterdir()):
                    self._folder.rmdir()
            except OSError as cause:
                self._log(f"warning: checkpoints in {self._folder} can't be removed: {cause}")

    # -- folders

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"

    def _steps(self) -> list[int]:
        """Steps of the checkpoints that are there, whole or not, ascending."""
        names = (NAME.fullmatch(p.name) for p in self._folder.glob("step-*"))
        return sorted(int(name[1]) for name in names if name)

    def _remove(self, step: int) -> None:
        """Renamed first: half a checkpoint must never stand under its name."""
        self._sound.discard(step)
        self._damaged.discard(step)
        aside = self._folder / f"{PARTIAL}removed-{step:08d}"
        os.replace(self._path(step), aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _sweep(self) -> None:
        """What a killed run was writing or removing."""
        for left in self._folder.glob(f"{PARTIAL}*"):
            shutil.rmtree(left, ignore_errors=True)


def _differences(then: Any, now: Any, name: str = "") -> list[str]:
    """Fields by which two identities differ: "lr: 1e-05 then, 2e-05 now"."""
    if isinstance(then, dict) and isinstance(now, dict):
        found = []
        for key in sorted(then.keys() | now.keys()):
            inner = f"{name}.{key}" if name else key
            found += _differences(then.get(key, "nothing"), now.get(key, "nothing"), inner)
        return found
    return [] if then == now else [f"{name}: {_short(then)} then, {_short(now)} now"]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# -- random number generators ---------------------------------------------------------------------------------------


def random_states() -> dict[str, Any]:
    """The states of torch's, numpy's and Python's global generators, as plain JSON.

    Training itself draws by key (`aloe.keyed`); this is for libraries that draw from global generators.
    """
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)],
        "torch": _packed(torch.get_rng_state()),
        "cuda": [_packed(state) for state in cuda],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Set the generators to what `random_states` gave; devices that aren't here any more are left out."""
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_unpacked(states["torch"]))
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, state in enumerate(states["cuda"][:devices]):
        torch.cuda.set_rng_state(_unpacked(state), device)


def _packed(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _unpacked(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype=np.uint8).copy())
