"""The one training loop, for both objectives: rows in, weights changed in place, metrics written.

Batches are global and in the user's units (dialogues or pairs). A batch is packed into rows, each row is one forward
and backward pass, and the loss is divided by what the whole batch trains on, so how it was cut changes nothing
beyond rounding. On the CPU two runs give the same weights bit for bit.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import torch

from aloe.contract import Context
from aloe.errors import AloeError
from aloe.models.load import DTYPES, Loaded
from aloe.models.sources import save_tokenizer
from aloe.rows import write_parquet
from aloe.train.logprobs import row_logprobs
from aloe.train.packing import Example, PackedRow, TextRow, pack
from aloe.train.schedule import ScheduleName, draw, lr_factor, quotas, stream, warmup_of

Precision = Literal["float32", "bf16_autocast"]
CPU_WIDTH = 384  # narrower rows are no faster on two cores, wider ones cost memory and masked attention
CPU_ACTIVATIONS = 640 << 20  # bytes of saved activations from which a row's layers are recomputed instead: a full
# fine-tune of 135M parameters with Adam then stays below 4 GB


@dataclass(frozen=True)
class Settings:
    """How to optimise. `batch` is global, in dialogues or pairs; `lr` absolute; `width` tokens in a packed row."""

    epochs: float
    batch: int
    lr: float
    schedule: ScheduleName
    warmup_steps: int | None
    weight_decay: float
    betas: tuple[float, float]
    clip: float
    precision: Precision
    width: int


class Objective(Protocol):
    """What is minimised. `weigh` says what a batch's loss is divided by; `figures` are means of the step just done."""

    def weigh(self, batch: Sequence[Example]) -> int: ...

    def loss(self, row: PackedRow, logprobs: torch.Tensor) -> torch.Tensor: ...

    def figures(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Outcome:
    """What the loop did: one dict of figures a step, and totals over the run."""

    metrics: list[dict[str, float]]
    rows: int
    tokens: int
    trained: int
    padding: int
    warmup: int

    def summary(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "steps": len(self.metrics),
            "warmup_steps": self.warmup,
            "rows_seen": self.rows,
            "tokens": self.tokens,
            "trained_tokens": self.trained,
            "padding_share": self.padding / (self.tokens + self.padding),
            "first_loss": self.metrics[0]["loss"],
            "last_loss": self.metrics[-1]["loss"],
            "budget": f"{self.rows:,} rows in {len(self.metrics):,} steps: {self.tokens:,} tokens, of which "
            f"{self.trained:,} ({self.trained / self.tokens:.0%}) trained",
        }


def train(
    ctx: Context, verb: str, model: Any, examples: Sequence[Example], objective: Objective, settings: Settings
) -> Outcome:
    """Train `model` (float32 weights) in place.

    Writes `metrics.jsonl` (one line a step, the same on every run) and `logs/timing.jsonl` under `ctx.out`.

    Raises:
        AloeError: the loss or the gradient is NaN or infinite; the step and its rows are named.
    """
    s = settings
    order = stream([e.key for e in examples], s.epochs, ctx.seed, f"{verb} order")
    steps = math.ceil(len(order) / s.batch)
    warmup = warmup_of(steps, s.warmup_steps)
    if warmup >= steps:
        ctx.log(f"warm-up of {warmup} steps covers all {steps}: the learning rate never reaches {s.lr:g}")
    optimizer = adamw(model, s)
    prepare(model)
    metrics: list[dict[str, float]] = []
    rows = tokens = trained = padding = 0
    with (
        _lines(ctx.out / "metrics.jsonl") as curve,
        _lines(ctx.out / "logs" / "timing.jsonl") as timing,
        ctx.progress(verb, len(order), "rows") as bar,
    ):
        for step in range(steps):
            began = time.perf_counter()
            batch = order[step * s.batch : (step + 1) * s.batch]
            lr = s.lr * lr_factor(step, steps, warmup, s.schedule)
            packed = pack(examples, batch, s.width, _pad_id(model), _multiple(model))
            loss = backward(model, examples, packed, objective, s.precision, f"step {step}", bar.advance)
            norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), s.clip))
            if not math.isfinite(norm):
                raise _diverged("gradient", norm, [examples[i].key for i in batch], f"step {step}")
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            done = sum(examples[i].tokens for i in batch)
            scored = sum(examples[i].trained for i in batch)
            figures = {"step": step, "rows": len(batch), "loss": loss, "lr": lr, "grad_norm": norm}
            figures |= {"tokens": done, "trained_tokens": scored, **objective.figures()}
            metrics.append(figures)
            _write(curve, figures)
            seconds = time.perf_counter() - began
            _write(timing, {"step": step, "seconds": seconds, "tokens_s": done / seconds})
            bar.advance(0, loss=round(loss, 4), tokens_s=round(done / seconds, 1))
            rows, tokens, trained = rows + len(batch), tokens + done, trained + scored
            padding += sum(p.padding for p in packed)
    model.eval()
    ctx.count_tokens(trained=trained, processed=tokens)
    return Outcome(metrics, rows, tokens, trained, padding, warmup)


def backward(
    model: Any,
    examples: Sequence[Example],
    packed: Sequence[PackedRow],
    objective: Objective,
    precision: Precision,
    where: str = "batch",
    done: Callable[[int], None] = lambda rows: None,
) -> float:
    """Add the gradient of the mean loss over the batch in `packed` to the weights' `.grad`; returns that loss."""
    weight = objective.weigh([examples[i] for row in packed for i in row.members])
    total = 0.0
    for row in packed:
        _recompute_layers(model, len(row.layout.ids))
        loss = objective.loss(row, row_logprobs(model, row, bf16=precision == "bf16_autocast")) / weight
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _diverged("loss", value, [examples[i].key for i in row.members], where)
        loss.backward()  # type: ignore[no-untyped-call]
        total += value
        done(len(row.members))
    return total


def _diverged(what: str, value: float, keys: Sequence[str], where: str) -> AloeError:
    more = f" and {len(keys) - 8} more" if len(keys) > 8 else ""
    return AloeError(
        f"the {what} is {value} on the rows {', '.join(keys[:8])}{more}",
        where=where,
        fix="look at those rows; if they are sound, lower lr or lengthen the warm-up",
    )


def adamw(model: Any, s: Settings) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) with decay on matrices only: decaying a norm's gain shrinks the signal."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": s.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=s.lr, betas=s.betas, fused=True)


def prepare(model: Any) -> None:
    """Training mode, which recomputing layers needs, but without dropout: it would make every loss a random number."""
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    if model.supports_gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})


def _recompute_layers(model: Any, tokens: int) -> None:
    """Recompute layers in the backward pass of a row whose activations would be too many. It changes no result."""
    config, device = model.config, model.device
    a_token = 4 * config.num_hidden_layers * (12 * config.hidden_size + 4 * getattr(config, "intermediate_size", 0))
    budget = CPU_ACTIVATIONS
    if device.type == "cuda":
        budget = torch.cuda.get_device_properties(device).total_memory // 4
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = tokens * a_token > budget


def width_on(device: torch.device, max_tokens: int) -> int:
    """Tokens in a packed row: all that is allowed on an accelerator, `CPU_WIDTH` at most on a CPU."""
    return max_tokens if device.type != "cpu" else min(CPU_WIDTH, max_tokens)


def _multiple(model: Any) -> int:
    """CUDA's masked attention kernels want the mask's rows aligned to 8."""
    return 8 if model.device.type == "cuda" else 1


def _pad_id(model: Any) -> int:
    pad = model.config.pad_token_id
    return pad if isinstance(pad, int) and pad >= 0 else 0


# -- in and out -----------------------------------------------------------------------------------------------------


def gather(
    ctx: Context,
    data: dict[str, float],
    read: Callable[[Path], Iterator[TextRow]],
    build: Callable[[TextRow], Example],
    *,
    verb: str,
    max_tokens: int,
    max_rows: int | None,
    max_dropped: float,
) -> tuple[list[Example], dict[str, Any]]:
    """Read, tokenise, drop what is too long, draw by weights; returns the examples and a report for the summary.

    A row whose longest sequence exceeds `max_tokens` is dropped whole, since a cut answer teaches to stop early. Every
    row read is in the ledger, every row left out in `dropped.parquet`.

    Raises:
        AloeError: a row can't be read, more than the share `max_dropped` is too long, or nothing is left.
    """
    pools: dict[str, list[Example]] = {}
    dropped: list[dict[str, Any]] = []
    for ref in data:
        path = ctx.path(ref)
        examples = [build(row) for row in read(path / "rows.parquet" if path.is_dir() else path)]
        stated = ctx.licence_of(ref)  # of the file or set; what a row states itself comes first
        examples = [replace(e, licence=stated) if e.licence == "unknown" else e for e in examples]
        pools[ref] = [e for e in examples if e.longest <= max_tokens]
        dropped += [
            {"key": e.key, "reason": "longer than max_tokens", "evidence": f"{e.longest} tokens"}
            for e in examples
            if e.longest > max_tokens
        ]
    read_in = len(dropped) + sum(map(len, pools.values()))
    if len(dropped) > max_dropped * read_in or read_in == len(dropped):
        raise AloeError(
            f"{len(dropped)} of {read_in} rows are longer than {max_tokens} tokens"
            + (f", the first is {dropped[0]['key']} with {dropped[0]['evidence']}" if dropped else ""),
            where=", ".join(data),
            fix="raise max_tokens (as far as the model's positions go), or allow a share of them with max_dropped",
        )
    overlong = len(dropped)
    counts = quotas([len(p) for p in pools.values()], list(data.values()), max_rows)
    chosen: list[Example] = []
    for pool, count in zip(pools.values(), counts, strict=True):
        kept = draw([e.key for e in pool], count, ctx.seed, f"{verb} rows")
        chosen += [pool[i] for i in kept]
        left = sorted(set(range(len(pool))) - set(kept))
        dropped += [{"key": pool[i].key, "reason": "over its share", "evidence": f"{count} drawn"} for i in left]
    if dropped:
        write_parquet(ctx.out / "dropped.parquet", dropped)
    reasons = {"longer than max_tokens": overlong, "over its share": len(dropped) - overlong}
    ctx.ledger(f"{verb} rows", rows_in=read_in, kept=len(chosen), dropped={k: n for k, n in reasons.items() if n})
    licences = sorted({e.licence for e in chosen})
    return chosen, {
        "rows": len(chosen),
        "dropped_overlong": overlong,
        "data": {r: {"rows": n, "share": n / len(chosen)} for r, n in zip(pools, counts, strict=True)},
        "licences": {name: sum(e.licence == name for e in chosen) for name in licences},
    }


def positions_of(model: Any, max_tokens: int) -> int:
    """`max_tokens`, or the model's own number of positions where that is smaller."""
    return min(max_tokens, getattr(model.config, "max_position_embeddings", None) or max_tokens)


def save(loaded: Loaded, out: Path, dtype: str) -> None:
    """Write a plain Hugging Face folder: safetensors, tokenizer, chat template, the base's generation settings.

    Raises:
        AloeError: a weight is NaN or infinite.
    """
    for name, tensor in loaded.model.named_parameters():
        if not torch.isfinite(tensor).all():
            raise AloeError(f"training left NaN or infinite weights in {name}", fix="lower lr or lengthen the warm-up")
    loaded.model.config._name_or_path = ""  # a path of this machine otherwise
    loaded.model.to(DTYPES[dtype]).save_pretrained(out)
    save_tokenizer(loaded.tokenizer, out)
    if (loaded.folder / "generation_config.json").exists():
        shutil.copyfile(loaded.folder / "generation_config.json", out / "generation_config.json")


def _lines(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return open(path, "w", encoding="utf-8")


def _write(handle: IO[str], figures: dict[str, float]) -> None:
    handle.write(json.dumps(figures) + "\n")
    handle.flush()  # a run is watched while it goes on
