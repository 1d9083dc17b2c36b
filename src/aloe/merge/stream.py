"""Merge model folders tensor by tensor, chunk by chunk: memory is O(workers x chunk x models), whatever the models'
size. The bytes written depend on the inputs, the numbers of the recipe and the seed alone: not on chunk size, on
worker count, nor on the order in which the recipe lists the models (they are taken in the order of their digests).
"""

from __future__ import annotations

import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from aloe.errors import AloeError
from aloe.merge.methods import (
    BLOCK,
    Facts,
    Merged,
    arc_facts,
    block_sums,
    choose_mask,
    merge_block,
    settings,
    sparse_facts,
)
from aloe.merge.sparsify import Blocks
from aloe.merge.tensors import (
    EMBEDDINGS,
    FLOATS,
    HEADS,
    Checkpoint,
    CheckpointWriter,
    all_finite,
    check_same_tokens,
    copy_surroundings,
    encode,
    head_is_copy,
    open_checkpoint,
)

F32 = npt.NDArray[np.float32]
Dtype = Literal["float32", "bfloat16"]
STORED: dict[str, str] = {"float32": "F32", "bfloat16": "BF16"}
CHUNK = 1 << 16  # entries per step: a few float32 arrays of this length stay in a core's cache
SAME_IN_CONFIG = ("model_type", "num_attention_heads", "num_key_value_heads", "head_dim")
CLASSES = (
    ("head", (*HEADS, "embed_out.weight")),
    ("embedding", (*EMBEDDINGS, "wpe.weight", "embed_positions.weight")),
    ("norm", ("norm", "ln_")),
    ("attention", ("attn", "attention")),
    ("mlp", ("mlp", "feed_forward", "experts", "moe")),
)


def tensor_class(name: str) -> str:
    """head, embedding, norm, attention, mlp or other: the groups that statistics are reported by."""
    return next((label for label, marks in CLASSES if any(mark in name for mark in marks)), "other")


@dataclass(frozen=True)
class Tally:
    """Counts and squared norms of one tensor (or a sum of several); lists are per model."""

    entries: int
    kept: tuple[int, ...]
    standing: int
    agreeing: int
    task_squares: tuple[float, ...]
    merged_square: float


class MergeJob:
    """A merge of folders that has been checked and may be run, whole or by one tensor.

    Args:
        params: the merge step's parameters: `method`, `models` {ref: {weight, density}}, `normalize`, `rescale`,
            `lambda_` (or `lambda`), `t`, `dtype`.
        base_folder: the base model; tokenizer, template and configuration come from here.
        model_folders: {ref: folder}.
        digests: {ref: content digest}; they key the random masks.
        chunk: entries worked on at a time, rounded up to whole blocks of 16,384.

    Raises:
        AloeError: parameters out of range; missing, extra or misshapen tensors; other architectures.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        base_folder: Path,
        model_folders: Mapping[str, Path],
        digests: Mapping[str, str],
        seed: int,
        chunk: int = CHUNK,
    ) -> None:
        parts = {ref: (float(m["weight"]), float(m["density"])) for ref, m in params["models"].items()}
        self.refs = sorted(parts, key=lambda ref: (digests[ref], parts[ref], ref))
        self.plan = settings(
            params["method"],
            {ref: parts[ref] for ref in self.refs},
            digests,
            normalize=params.get("normalize"),
            rescale=params.get("rescale"),
            lambda_=float(params.get("lambda_", params.get("lambda", 1.0))),
            t=params.get("t"),
        )
        self.seed, self.dtype = seed, str(params.get("dtype", "float32"))
        self.stored = STORED[self.dtype]
        self.chunk = max(1, -(-chunk // BLOCK)) * BLOCK
        self.base = open_checkpoint(base_folder)
        self.models = [open_checkpoint(model_folders[ref]) for ref in self.refs]
        self.layout = {
            name: (self.stored if tensor.dtype in FLOATS else tensor.dtype, tensor.shape)
            for name, tensor in sorted(self.base.tensors.items())
        }
        for model in self.models:
            check_same_tensors(self.base, model)

    @property
    def total_bytes(self) -> int:
        """Bytes of tensor data that the merged model will have."""
        width = FLOATS[self.stored]
        return sum(t.size * (width if t.dtype in FLOATS else t.itemsize) for t in self.base.tensors.values())

    def facts(self, name: str) -> Facts:
        """One or more passes over a tensor, where the method needs to know it whole."""
        size = self.base.tensors[name].size
        if self.plan.row.space == "arc":
            pairs = [(0, 0), (1, 1), (0, 1)]
            sums: list[list[float]] = [[], [], []]
            for start, stop in self._spans(size):
                sides = (self.base.read(name, start, stop), self.models[0].read(name, start, stop))
                for total, (left, right) in zip(sums, pairs, strict=True):
                    total += block_sums(sides[left], sides[right])
            return arc_facts(self.plan.t or 0.0, *(math.fsum(s) for s in sums))
        deltas = [self._deltas(name, model) for model in self.models]
        masks = [
            choose_mask(self.plan, member, self.seed, name, size, blocks)
            for member, blocks in zip(self.plan.members, deltas, strict=True)
        ]
        return sparse_facts(self.plan, masks, deltas)

    def _spans(self, size: int) -> Iterator[tuple[int, int]]:
        return ((start, min(start + self.chunk, size)) for start in range(0, size, self.chunk))

    def _deltas(self, name: str, model: Checkpoint) -> Blocks:
        size = self.base.tensors[name].size

        def blocks() -> Iterator[tuple[int, F32]]:
            for start, stop in self._spans(size):
                yield start, model.read(name, start, stop) - self.base.read(name, start, stop)

        return blocks

    def merged(self, name: str) -> Iterator[tuple[int, Merged]]:
        """The merged tensor as (flat start, block), in order."""
        facts = self.facts(name)
        for start, stop in self._spans(self.base.tensors[name].size):
            base = self.base.read(name, start, stop)
            yield start, merge_block(self.plan, facts, start, base, [m.read(name, start, stop) for m in self.models])

    def encoded(self, name: str, merged: Merged) -> npt.NDArray[np.uint8]:
        """A block's bytes in the output's dtype; an overflow is an error."""
        raw = encode(merged.values, self.stored)
        if not all_finite(raw, self.stored):
            fix = "lower the weights or lambda, or raise the densities"
            raise AloeError(f"the merged tensor {name!r} overflows {self.stored}", where="merge", fix=fix)
        return raw

    def copied(self, name: str) -> npt.NDArray[np.uint8]:
        """A tensor of whole numbers, which must be the same in all models."""
        raw = self.base.raw(name)
        for model in self.models:
            if not np.array_equal(raw, model.raw(name)):
                what = f"tensor {name!r} holds whole numbers that differ from the base's"
                raise AloeError(what, where=str(model.folder), fix="merge models that share this tensor")
        return raw

    def tensor(self, name: str) -> bytes:
        """The bytes of one merged tensor, as stored."""
        if name not in self.base.tensors:
            raise AloeError(f"no tensor {name!r}", where=str(self.base.folder), fix="name a tensor of the base model")
        if self.base.tensors[name].dtype not in FLOATS:
            return self.copied(name).tobytes()
        with np.errstate(over="ignore", invalid="ignore"):
            return b"".join(self.encoded(name, merged).tobytes() for _, merged in self.merged(name))

    def write(self, out: Path, workers: int = 1, advance: Callable[[int], None] | None = None) -> dict[str, Any]:
        """Write the merged model as a plain Hugging Face folder and return the statistics.

        Args:
            out: an existing folder, written into.
            workers: threads, each on its own tensor.
            advance: called with bytes done, by one thread at a time.
        """
        for model in self.models:
            check_same_tokens(self.base.folder, model.folder)
        copy_surroundings(self.base, out, self.dtype)
        lock = threading.Lock()
        writer = CheckpointWriter(out, self.layout)

        def one(name: str) -> tuple[str, Tally | None]:
            return name, self._write_tensor(writer, name, lock, advance)

        by_size = sorted(self.layout, key=lambda n: (-self.base.tensors[n].size, n))
        try:
            if workers <= 1:
                done = dict(map(one, by_size))
            else:
                with ThreadPoolExecutor(workers) as pool:
                    try:
                        done = dict(pool.map(one, by_size))
                    except BaseException:
                        pool.shutdown(cancel_futures=True)
                        raise
        finally:
            writer.close()
        return self.report({name: tally for name, tally in done.items() if tally})

    def _write_tensor(
        self, writer: CheckpointWriter, name: str, lock: threading.Lock, advance: Callable[[int], None] | None
    ) -> Tally | None:
        tensor = self.base.tensors[name]
        if tensor.dtype not in FLOATS:
            writer.write(name, 0, self.copied(name))
            return None
        tallies = []
        with np.errstate(over="ignore", invalid="ignore"):
            for start, merged in self.merged(name):
                raw = self.encoded(name, merged)
                writer.write(name, start, raw)
                tallies.append(count(merged))
                if advance is not None:
                    with lock:
                        advance(raw.size)
        return add_up(tallies, len(self.models))

    def report(self, tallies: Mapping[str, Tally]) -> dict[str, Any]:
        """Statistics by tensor class and in total, the row that ran and the digests that keyed it."""
        groups: defaultdict[str, list[Tally]] = defaultdict(list)
        for name in sorted(tallies):
            groups[tensor_class(name)].append(tallies[name])
        count_models = len(self.models)
        return {
            "row": asdict(self.plan.row),
            "lambda": self.plan.lambda_,
            "t": self.plan.t,
            "seed": self.seed,
            "dtype": self.dtype,
            "tied_head": self.base.tied,
            "tensors": len(self.layout),
            "models": {ref: asdict(member) for ref, member in zip(self.refs, self.plan.members, strict=True)},
            "classes": {label: self._shares(add_up(group, count_models)) for label, group in sorted(groups.items())},
            "total": self._shares(add_up(list(tallies.values()), count_models)),
        }

    def _shares(self, tally: Tally) -> dict[str, Any]:
        return {
            "entries": tally.entries,
            "models": {
                ref: {"kept": _six(kept / max(tally.entries, 1)), "task_vector_norm": _six(math.sqrt(square))}
                for ref, kept, square in zip(self.refs, tally.kept, tally.task_squares, strict=True)
            },
            "sign_disagreement": _six(1 - tally.agreeing / tally.standing) if tally.standing else None,
            "merged_delta_norm": _six(math.sqrt(tally.merged_square)),
        }


def _six(value: float) -> float:
    """Six significant digits: the last bits of a float64 sum may differ between processors."""
    return float(f"{value:.6g}")


def count(merged: Merged) -> Tally:
    """The tally of one merged block."""
    squares = tuple(math.fsum(block_sums(delta, delta)) for delta in merged.deltas)
    merged_square = math.fsum(block_sums(merged.delta, merged.delta))
    return Tally(merged.values.size, merged.kept, merged.standing, merged.agreeing, squares, merged_square)


def add_up(tallies: Sequence[Tally], models: int) -> Tally:
    """The sum of tallies over `models` models."""
    return Tally(
        sum(t.entries for t in tallies),
        tuple(sum(t.kept[i] for t in tallies) for i in range(models)),
        sum(t.standing for t in tallies),
        sum(t.agreeing for t in tallies),
        tuple(math.fsum(t.task_squares[i] for t in tallies) for i in range(models)),
        math.fsum(t.merged_square for t in tallies),
    )


def recompute_tensor(
    params: Mapping[str, Any],
    base_folder: Path,
    model_folders: Mapping[str, Path],
    digests: Mapping[str, str],
    seed: int,
    name: str,
) -> bytes:
    """The stored bytes of one tensor of a merge, made again from its inputs; arguments as for `MergeJob`."""
    return MergeJob(params, base_folder, model_folders, digests, seed).tensor(name)


def check_same_tensors(base: Checkpoint, model: Checkpoint) -> None:
    """Refuse a model whose architecture, tensor names, shapes or tied head differ from the base's."""

    def unlike(what: str, fix: str = "merge models trained from one base, saved whole") -> AloeError:
        return AloeError(what, where=str(model.folder), fix=fix)

    for key in SAME_IN_CONFIG:
        ours, theirs = base.config.get(key), model.config.get(key)
        if ours is not None and theirs is not None and ours != theirs:
            raise unlike(f"{key} in config.json is {theirs!r}, the base has {ours!r}")
    for name, tensor in base.tensors.items():
        if name not in model.tensors:
            raise unlike(f"tensor {name!r} of the base is missing")
        other = model.tensors[name]
        if other.shape != tensor.shape:
            what = f"tensor {name!r} has shape {list(other.shape)}, the base {list(tensor.shape)}"
            raise unlike(what, "merge models of one architecture and vocabulary size")
        if other.dtype != tensor.dtype and not (other.dtype in FLOATS and tensor.dtype in FLOATS):
            raise unlike(f"tensor {name!r} has dtype {other.dtype}, the base {tensor.dtype}")
    for name in model.tensors:
        if name not in base.tensors and not (base.tied and name in HEADS and head_is_copy(model, name)):
            fix = "merge models trained from one base, with the same tying of the output head"
            raise unlike(f"tensor {name!r} is not in the base", fix)
