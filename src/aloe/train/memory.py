"""What training needs in memory, worked out from a model's config and tensor headers before anything is loaded.

The figures are those of one device at the worst moment of a step: the backward pass of a row of `width` tokens, with
weights, gradients and AdamW's moments there already. Activations are those of `dimensions`; an architecture that isn't
of the Llama shape is counted as if it were, and the plan says so. Not counted: rows in memory (they are mapped from
disk). `MARGIN` is kept free for what no formula knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from aloe.errors import AloeError
from aloe.models.headers import safetensors_header
from aloe.train.dimensions import Attention, Dims, Precision, activations
from aloe.train.logprobs import LOGITS_AT_ONCE
from aloe.train.lora import Lora, chosen

Strategy = Literal["single", "ddp", "fsdp2", "zero3"]
LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "ministral", "granite", "gemma", "phi3")
MARGIN = 0.05  # of what the device has; allocators round up
LEAST_WIDTH = 256  # shorter rows are not suggested: few examples would be left
WAYS = 6  # suggestions in one message
KINDS = ("recompute", "width", "precision", "lora", "launch")  # of changes that are suggested, the mildest first
LIBRARIES = {
    "cpu": 500 << 20,
    "cuda": 0,
}  # interpreter and torch; CUDA's context isn't in its free memory
# Of what a row allocates and frees. glibc hands blocks below 32 MiB back late: 28% (SmolLM2-135M, width 384) to 110%
# (LoRA on a small model, width 1,024) were measured. CUDA's caching allocator is left to the margin.
HELD_BACK = {"cpu": 0.6}
ZERO3_LIVE, ZERO3_BUCKET = 1_000_000_000, 500_000_000  # DeepSpeed's defaults: elements kept whole, and reduced at once
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


# -- the model's file -----------------------------------------------------------------------------------------------


def headers(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in a folder's safetensors files, read from their headers alone.

    Raises:
        AloeError: there are none, or one is cut short.
    """
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= {name: entry.shape for name, entry in safetensors_header(path).items()}
    if not found:
        raise AloeError("no *.safetensors weights", where=str(folder), fix="finish the download, or check the path")
    return found


@dataclass(frozen=True)
class Weights:
    """Numbers of parameters: all, of the largest layer, outside the layers, in the layers' matrices, in adapters."""

    total: int
    layer: int
    root: int
    matrices: int
    adapters: int

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]], tied: bool, lora: Lora | None) -> Weights:
        """Count `shapes`; of tied weights the file may hold the head once more, the model doesn't."""
        counts = {n: prod(s) for n, s in shapes.items() if not (tied and n.endswith("lm_head.weight"))}
        layers: dict[int, int] = {}
        for name, count in counts.items():
            if match := _LAYER.search(name):
                layers[int(match[1])] = layers.get(int(match[1]), 0) + count
        inside = sum(layers.values())
        pairs = {
            n.removesuffix(".weight"): shapes[n]
            for n in counts
            if _LAYER.search(n) and n.endswith(".weight") and len(shapes[n]) == 2
        }
        adapted = chosen(pairs, lora.targets) if lora else ()
        return cls(
            sum(counts.values()),
            max(layers.values(), default=0),
            sum(counts.values()) - inside,
            sum(prod(s) for s in pairs.values()),
            lora.rank * sum(sum(pairs[n]) for n in adapted) if lora else 0,
        )


# -- the plan -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryPlan:
    """One way to train, and what each of `processes` devices then needs at most. `parts` and `total` are bytes."""

    dims: Dims
    shapes: Mapping[str, tuple[int, ...]] = field(repr=False)
    tied: bool
    model_type: str
    width: int
    precision: Precision
    lora: Lora | None
    strategy: Strategy
    processes: int
    attention: Attention
    device: str
    budget: int | None  # bytes of activations from which layers are recomputed; None: never
    whole_gradients: int  # bytes of gradients up to which FSDP2 keeps them unsharded between the rows of a step

    @cached_property
    def weights(self) -> Weights:
        return Weights.of(self.shapes, self.tied, self.lora)

    @property
    def parameters(self) -> int:
        """The base model's."""
        return self.weights.total

    @property
    def trainable(self) -> int:
        return self.weights.adapters if self.lora else self.weights.total

    @cached_property
    def recompute(self) -> bool:
        """Whether layers are computed again in the backward pass."""
        return self.budget is not None and self._activations(False) > self.budget

    def _activations(self, recompute: bool) -> int:
        return activations(
            self.dims,
            self.width,
            self.precision,
            recompute=recompute,
            lora=self.lora,
            attention=self.attention,
        )

    @cached_property
    def parts(self) -> dict[str, int]:
        """Bytes on each device, by what they are for."""
        w, d = self.weights, self.dims
        size = 2 if self.precision == "bf16_stochastic" else 4
        shards = self.processes if self.strategy in ("fsdp2", "zero3") else 1
        masters = 2 if self.strategy == "zero3" else 1  # DeepSpeed keeps weights and gradients of its own for AdamW
        kept = w.total * size + w.adapters * 4
        slopes = w.adapters * 4 if self.lora else w.total * size
        whole = self.strategy == "fsdp2" and slopes <= self.whole_gradients
        parts = {
            "weights": masters * kept // shards,
            "gradients": slopes if whole else masters * slopes // shards,
            "AdamW's moments": 2 * self.trainable * (4 if self.lora else size) // shards,
            "activations": self._activations(self.recompute),
        }
        if self.precision == "bf16_autocast":
            once = self.recompute and self.lora is not None  # autocast keeps copies of weights that train to the end
            parts["bf16 copies of weights"] = 2 * (w.matrices // d.layers if once else w.matrices)
        parts["logits chunk"] = self._logits()
        parts["gradients in flight"] = max(0, self._in_flight() - parts["logits chunk"])
        passing = parts["activations"] + parts["logits chunk"] + parts["gradients in flight"]
        if self.device in HELD_BACK:
            parts["kept by the allocator"] = int(HELD_BACK[self.device] * passing)
        if shards > 1:
            parts["gathered weights"] = size * min(w.total, w.root + 2 * w.layer)
            if self.strategy == "zero3":
                parts["gathered weights"] = size * min(w.total, ZERO3_LIVE)
            moved = min(slopes, 4 * ZERO3_BUCKET) if self.strategy == "zero3" else size * (w.root + 2 * w.layer)
            parts["communication"] = min(moved, slopes) if self.lora else moved
        if LIBRARIES.get(self.device, 0):
            parts["libraries"] = LIBRARIES[self.device]
        return parts

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def _logits(self) -> int:
        """Logits of one chunk of scored tokens, their exponentials, and the slope in the products' own type."""
        d = self.dims
        scored = min(self.width, max(16, LOGITS_AT_ONCE // d.vocabulary))
        return scored * d.vocabulary * (4 + 4 + (2 if self.precision != "float32" else 0))

    def _in_flight(self) -> int:
        """The larger of what is alive beside the saved activations: at the head, in a layer, or at the embedding."""
        d, size = self.dims, 2 if self.precision == "bf16_stochastic" else 4
        a = 4 if self.precision == "float32" else 2
        head = d.vocabulary * d.hidden
        lowered = head * 2 if self.precision == "bf16_autocast" else 0
        if self.lora:
            largest = self.lora.rank * d.intermediate * 8
            return max(self._logits() + lowered, self.width * a * (3 * d.intermediate + 3 * d.hidden) + largest)
        kept = head * size if self.tied else 0  # a tied head's gradient waits for the embedding's
        matrix = d.hidden * max(d.intermediate, d.queries) * (a + size)
        in_layer = kept + self.width * a * (3 * d.intermediate + 3 * d.hidden) + matrix
        in_head = self._logits() + lowered + head * (4 if self.precision == "float32" else 6)
        gone = self._activations(self.recompute)  # the embedding's gradient comes when these are free again
        return max(in_head, in_layer, kept + head * size - gone)

    def room(self, available: int) -> int:
        """Bytes of activations that `available` bytes have room for beside all else, layers kept."""
        kept = replace(self, budget=None)
        grows = 1 + HELD_BACK.get(self.device, 0.0)
        rest = kept.total - grows * kept.parts["activations"]
        return max(0, int((available * (1 - MARGIN) - rest) / grows))

    # -- what it says -------------------------------------------------------------------------------------------------

    def headline(self) -> str:
        """The way to train in words."""
        how = f"LoRA of rank {self.lora.rank}" if self.lora else "all weights"
        ways = [f"{self.parameters:,} parameters, {self.trainable:,} trained ({how})", self.precision]
        ways.append(f"rows of {self.width:,} tokens")
        ways.append(f"{self.processes} processes under {self.strategy}" if self.processes > 1 else "one process")
        if self.recompute:
            ways.append("layers recomputed")
        return ", ".join(ways)

    def table(self, available: int | None = None) -> str:
        """Gigabytes (10^9 bytes) by part, for the log; `available` is what a device has."""
        rows = [*self.parts.items(), ("together, at most", self.total)]
        rows += [("there is", available)] if available is not None else []
        wide = max(len(name) for name, _ in rows)
        lines = [f"  {name:<{wide}}  {count / 1e9:9.3f} GB" for name, count in rows]
        notes = [] if self.model_type in LLAMA_LIKE else [f"  {self.model_type}: activations counted as a Llama's"]
        return "\n".join([f"memory plan for each device: {self.headline()}", *lines, *notes])

    def summary(self) -> dict[str, Any]:
        """For the manifest and the report."""
        return {"plan": dict(self.parts), "planned": self.total, "way": self.headline()}

    def fits(self, available: int) -> bool:
        return self.total <= available * (1 - MARGIN)

    def refuse(self, available: int) -> None:
        """Stop before anything is loaded if the plan doesn't fit into `available` bytes.

        Raises:
            AloeError: with the parts, what is missing, and changes that were planned again and do fit.
        """
        if self.fits(available):
            return
        ways = self._ways(available)
        largest = sorted(self.parts.items(), key=lambda part: -part[1])[:3]
        told = ", ".join(f"{name} {count / 1e9:.2f} GB" for name, count in largest)
        missing = self.total - available * (1 - MARGIN)
        raise AloeError(
            f"training needs {self.total / 1e9:.2f} GB on each device where {available / 1e9:.2f} GB can be had: "
            f"{missing / 1e9:.2f} GB too much with a margin of {MARGIN:.0%} (most of it {told})",
            where=self.headline(),
            fix="what does fit: " + "; or ".join(f"{c.how} ({c.plan.total / 1e9:.2f} GB)" for c in ways)
            if ways
            else "no change of rows, precision, recomputing, LoRA or up to 64 processes fits: take a smaller model or "
            "a larger device",
        )

    def _ways(self, available: int) -> list[Change]:
        """Changes that fit, of each kind the mildest: single ones, then pairs of which neither does alone."""
        single = list(self._changes())
        found = {c.kind: c for c in reversed(single) if c.plan.fits(available)}
        enough = set(found)
        for one in (c for c in single if c.kind not in enough):
            for two in (c for c in one.plan._changes() if c.kind not in enough):
                pair = Change(f"{one.kind}, {two.kind}", f"{one.how} with {two.how}", two.plan)
                if KINDS.index(one.kind) < KINDS.index(two.kind) and pair.plan.fits(available):
                    found.setdefault(pair.kind, pair)
        return list(found.values())[:WAYS]

    def _changes(self) -> Iterator[Change]:
        if not self.recompute:
            yield Change("recompute", "hardware: {recompute: always}", replace(self, budget=0))
        for width in (self.width // 2, self.width // 4, self.width // 8):
            if width >= LEAST_WIDTH:
                how = f"hardware: {{row_tokens: {width}}} with max_tokens: {width} at most"
                yield Change("width", how, replace(self, width=width))
        for precision in get_args(Precision)[get_args(Precision).index(self.precision) + 1 :]:
            if self.lora is None or precision != "bf16_stochastic":  # adapters are float32, and small
                yield Change("precision", f"precision: {precision}", replace(self, precision=precision))
        if self.lora is None and self.precision != "bf16_stochastic":
            yield Change("lora", "lora: {rank: 16}", replace(self, lora=Lora()))
        for processes in (2, 4, 8, 16, 32, 64):
            if processes > self.processes or (processes == self.processes and self.strategy == "ddp"):
                how = f"launch: {{strategy: fsdp2, processes: {processes}}}, each on a device of its own"
                yield Change("launch", how, replace(self, strategy="fsdp2", processes=processes))


@dataclass(frozen=True)
class Change:
    """Another way to train: what differs, how to say it in the recipe, and its plan."""

    kind: str
    how: str
    plan: MemoryPlan


def plan(
    folder: Path,
    *,
    width: int,
    precision: Precision = "float32",
    lora: Lora | None = None,
    strategy: Strategy = "single",
    processes: int = 1,
    attention: Attention = "sdpa",
    device: str = "cpu",
    budget: int | None = None,
    whole_gradients: int = 0,
) -> MemoryPlan:
    """Plan the training of the model in `folder`, from its config and tensor headers.

    Args:
        width: tokens of the longest packed row; a single example may be longer than the rows it is packed into.
        precision: as `Policy`'s; with bf16 weights AdamW's moments are bf16 too (`optim`).
        attention: what computes it; `math` keeps all scores.
        budget: bytes of activations from which the loop recomputes layers; None: it never does.
        whole_gradients: bytes of gradients up to which FSDP2 doesn't shard them between the rows of a step.

    Raises:
        AloeError: no config or weights, or a LoRA target that fits no layer.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    tied = bool(config.get_text_config(decoder=True).tie_word_embeddings)
    return MemoryPlan(
        Dims.of(config),
        headers(folder),
        tied,
        str(config.model_type),
        width,
        precision,
        lora,
        strategy,
        processes,
        attention,
        device,
        budget,
        whole_gradients,
    )


# -- what there is --------------------------------------------------------------------------------------------------


def available_memory(device: torch.device, local_processes: int = 1, root: Path = Path("/")) -> int:
    """Bytes that this process may hold, what it holds already included.

    On CUDA what the device has free (each process has a device of its own). On a CPU what the machine, or the
    container's limit if that is tighter, has free, shared by the `local_processes` of this machine.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device)
    import psutil

    free = min([psutil.virtual_memory().available, *_container_rooms(root)])
    return max(0, free) // local_processes + psutil.Process().memory_info().rss


def _container_rooms(root: Path) -> Iterator[int]:
    """Bytes free under each memory limit of this process's control groups, version 2 or 1; none without a limit."""
    listed = root / "proc/self/cgroup"
    if not listed.exists():
        return
    for line in listed.read_text().splitlines():
        _, controllers, inside = line.split(":", 2)
        if controllers == "":
            base, limit, usage = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit, usage = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        at = base / inside.lstrip("/")
        # inside a container the path may be the host's, and its own group is mounted at the base
        for group in dict.fromkeys([at, *(p for p in at.parents if p.is_relative_to(base)), base]):
            try:
                most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
                cached = re.search(r"^(?:total_)?inactive_file (\d+)$", (group / "memory.stat").read_text(), re.M)
            except (OSError, ValueError):
                continue
            if most.isdigit() and int(most) < 1 << 60:  # version 1 says "no limit" with a number near 2^63
                yield int(most) - used + (int(cached[1]) if cached else 0)
