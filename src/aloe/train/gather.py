"""The rows of a training run: read, tokenised into the cache, checked, mixed by weights, and counted beforehand.

One process tokenises; the others of a distributed run wait and open what it made, as a resumed run does.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers

from aloe.contract import Context
from aloe.digests import digest_json
from aloe.errors import AloeError
from aloe.keyed import key64
from aloe.train import tokens
from aloe.train.order import Order, mixed, permuted, quotas
from aloe.train.packing import TextRow, Unfit, grouped
from aloe.train.rendering import Builder
from aloe.train.tokens import CorruptTokens, Dropped, Source, TokenFile, TokenStore, TokenWriter

Overlong = Literal["drop", "left_truncate"]
Read = Callable[[Path, Unfit], Iterator[TextRow]]
BATCH = 512  # rows tokenised at a time
EXACT_ROWS = 20_000  # of a run: up to here every batch is packed to count its padding
SAMPLED = 200  # batches packed of a longer run
TOO_LONG, PROMPT_FILLS, ANSWER_FILLS = "longer than max_tokens", "prompt fills max_tokens", "answer fills max_tokens"
UNFIT = "no pair that can be trained on"
OVER_SHARE, HELD_OUT = "over its share", "held out"
SAID_EVERY = 30.0  # seconds between two lines about how far tokenising is


@dataclass(frozen=True)
class Rows:
    """What a run trains on: `order` holds indices into `examples`; `report` is for the manifest."""

    examples: TokenStore
    order: Order
    report: dict[str, Any]

    def budget(self, batch: int, width: int, multiple: int = 1) -> dict[str, Any]:
        """What the run will take: `rows`, `steps`, `tokens` and `trained_tokens`, exactly; and padding.

        `padding_share` is that of all positions computed, counted on every batch of up to 20,000 rows, else on 200
        batches drawn by key (`padding_batches` says how many). Args as of `pack`.
        """
        order = self.order
        times = order.counts()
        steps = math.ceil(len(order) / batch)
        chosen = np.arange(steps)
        if len(order) > EXACT_ROWS and steps > SAMPLED:
            chosen = np.sort(permuted(np.arange(SAMPLED), steps, key64(0, "padding")))
        used = positions = 0
        for step in chosen.tolist():
            here = order.at(np.arange(step * batch, min(len(order), (step + 1) * batch)))
            lengths = self.examples.tokens[here].tolist()
            sums = [sum(lengths[j] for j in group) for group in grouped(lengths, width)]
            used += sum(sums)
            positions += sum(-(-n // multiple) * multiple for n in sums)
        return {
            "rows": len(order),
            "steps": steps,
            "tokens": int(times @ self.examples.tokens),
            "trained_tokens": int(times @ self.examples.trained),
            "padding_share": 1 - used / positions,
            "padding_batches": len(chosen),
        }


def budget_line(budget: dict[str, Any]) -> str:
    """A budget in one line, for before the first step."""
    b = budget
    share = "" if b["padding_batches"] == b["steps"] else f" (of {b['padding_batches']} sampled batches)"
    return (
        f"{b['rows']:,} rows in {b['steps']:,} steps: {b['tokens']:,} tokens, {b['trained_tokens']:,} "
        f"({b['trained_tokens'] / b['tokens']:.0%}) trained, {b['padding_share']:.1%} padding{share}"
    )


def gather(
    ctx: Context,
    data: dict[str, float],
    read: Read,
    build: Builder,
    *,
    verb: str,
    template_digest: str,
    max_tokens: int,
    max_rows: int | None,
    epochs: float,
    max_dropped: float,
    overlong: Overlong = "drop",
    hold_out: float = 0.0,
    held: bool = False,
    is_main: bool = True,
    barrier: Callable[[], None] = lambda: None,
) -> Rows:
    """Rows of the sources `data` (reference: share of the rows in a pass), tokenised and in order.

    A row whose longest sequence exceeds `max_tokens` is dropped whole or, with `left_truncate`, loses the beginning of
    its prompt (see `Builder.shortened`); a cut answer would teach to stop early. Every row read is in the ledger,
    every row left out in `dropped.parquet`.

    Args:
        epochs: passes over the mixture. What is over a source's share in one pass comes in the next.
        max_dropped: share of the rows read that may be left out as too long, or as unfit.
        hold_out: share of the keys that is not trained on (see `held_out`).
        held: give those rows, all of them and once, instead of the others. Nothing is written then.
        is_main: whether this process tokenises and writes; the others wait at `barrier`, which all call once.

    Raises:
        AloeError: a source without rows; a row that can't be read or trained on; more than the share `max_dropped` too
            long. The first such row is named by file and number.
    """
    paths = {ref: _rows_file(ctx.path(ref)) for ref in data}
    folders = {}
    for ref in data:
        made_from = {
            "version": tokens.VERSION,
            "tokenizers": tokenizers.__version__,
            "rows": ctx.digest(ref),
            "template": template_digest,
            "kind": verb,
            "max_tokens": max_tokens,
            "overlong": overlong,
        }
        folders[ref] = ctx.cache / "tokens" / digest_json(made_from)
    if is_main:
        for ref in data:
            _ensure(folders[ref], paths[ref], read, build, max_tokens, overlong, ctx.log)
    barrier()
    files = {ref: TokenFile(folder, check=False) for ref, folder in folders.items()}
    _refuse(files, paths, max_tokens, overlong, max_dropped)
    aside = [held_out(file.table["hash"], hold_out, ctx.seed) for file in files.values()]
    if held:
        return _held(ctx, files, aside, f"{verb} held out")
    return _mixed(ctx, files, aside, data, verb, max_rows, epochs, hold_out, is_main)


def held_out(hashes: Any, part: float, seed: int) -> npt.NDArray[np.bool_]:
    """Which rows [n] are held out, by the hashes of their keys.

    Each key is drawn by itself, so rows of one key stay together, in whatever source, and a row stays on its side when
    others come and go. The share is met in expectation.
    """
    drawn = mixed(hashes ^ np.uint64(key64(seed, "hold out")))
    return drawn < np.uint64(int(part * 2.0**64))


def _held(ctx: Context, files: dict[str, TokenFile], aside: list[npt.NDArray[np.bool_]], purpose: str) -> Rows:
    sources = [
        Source(file, np.flatnonzero(mask), ctx.licence_of(ref))
        for (ref, file), mask in zip(files.items(), aside, strict=True)
        if mask.any()
    ]
    if not sources:
        raise AloeError(
            f"no row of {sum(map(len, files.values()))} is held out", where="hold_out", fix="hold out a larger share"
        )
    examples, sizes = TokenStore(sources), [len(s) for s in sources]
    return Rows(examples, Order(sizes, sizes, 1, ctx.seed, purpose), {"rows": len(examples)})


def _mixed(
    ctx: Context,
    files: dict[str, TokenFile],
    aside: list[npt.NDArray[np.bool_]],
    data: dict[str, float],
    verb: str,
    max_rows: int | None,
    epochs: float,
    hold_out: float,
    is_main: bool,
) -> Rows:
    """The rows to train on, by their shares, with what is left out written down."""
    free = [np.flatnonzero(~mask) for mask in aside]
    if not all(map(len, free)):
        raise AloeError("nothing is left to train on", where="hold_out", fix="hold out a smaller share")
    quota = quotas([len(rows) for rows in free], list(data.values()), max_rows)
    sources = []
    for s, (ref, file) in enumerate(files.items()):
        used, rows = min(len(free[s]), quota[s] * math.ceil(epochs)), free[s]  # part of a pass may be any part of it
        if used < len(rows):
            rows = rows[np.sort(permuted(np.arange(used), len(rows), key64(ctx.seed, f"{verb} rows", s)))]
        sources.append(Source(file, None if len(rows) == len(file) else rows, ctx.licence_of(ref)))
    examples = TokenStore(sources)
    reasons = Counter(dropped.reason for file in files.values() for dropped in file.dropped)
    too_long = reasons.total()
    reasons[HELD_OUT] = sum(int(mask.sum()) for mask in aside)
    reasons[OVER_SHARE] = sum(map(len, free)) - len(examples)
    if is_main and reasons.total():
        _write_dropped(ctx.out / "dropped.parquet", sources, aside, hold_out)
    ctx.ledger(
        f"{verb} rows",
        rows_in=len(examples) + reasons.total(),
        kept=len(examples),
        dropped={name: count for name, count in reasons.items() if count},
    )
    cut = sum(f.cut for f in files.values())
    if cut:
        ctx.ledger(f"{verb} prompts cut on the left", rows_in=cut, kept=cut, dropped={})
    report = {
        "rows": len(examples),
        "dropped_overlong": too_long,
        "prompts_cut": cut,
        "data": {
            ref: {"rows": len(source), "share": q / sum(quota)}
            for ref, source, q in zip(data, sources, quota, strict=True)
        },
        "licences": examples.licences(),
        "tokens_digest": examples.digest,
    }
    return Rows(examples, Order([len(s) for s in sources], quota, epochs, ctx.seed, f"{verb} order"), report)


def _rows_file(path: Path) -> Path:
    return path / "rows.parquet" if path.is_dir() else path


def _ensure(
    folder: Path,
    path: Path,
    read: Read,
    build: Builder,
    max_tokens: int,
    overlong: Overlong,
    log: Callable[[str], None],
) -> None:
    """Make the token file unless a sound one is there."""
    if folder.exists():
        try:
            TokenFile(folder, check=True)
            return
        except CorruptTokens as cause:
            log(f"the tokens of {path.name} in the cache can't be used ({cause}); tokenising again")
    began = said = time.monotonic()
    with TokenWriter(folder, build.vocabulary) as writer:
        rows = read(path, lambda key, number, what: writer.drop(Dropped(key, number, UNFIT, what)))
        done = 0
        while batch := list(islice(rows, BATCH)):
            for row, example in zip(batch, build.many(batch), strict=True):
                number = int(row.where.rpartition(":")[2])
                if example.longest > max_tokens:
                    shorter = build.shortened(row, max_tokens) if overlong == "left_truncate" else None
                    if shorter is None:
                        writer.drop(_too_long(build, row.key, number, example, max_tokens, overlong))
                        continue
                    example = shorter
                    writer.cut += 1
                writer.put(example, number)
            done += len(batch)
            if time.monotonic() - said > SAID_EVERY:
                said = time.monotonic()
                log(f"{done:,} rows of {path.name} tokenised, {done / (said - began):,.0f} a second")


def _too_long(build: Builder, key: str, number: int, example: Any, max_tokens: int, overlong: Overlong) -> Dropped:
    answer = build.answer(example)
    evidence = f"{example.longest} tokens"
    if overlong == "left_truncate":
        return Dropped(key, number, ANSWER_FILLS, f"{evidence}, of which an answer has {answer}")
    if example.longest - answer >= max_tokens:
        return Dropped(key, number, PROMPT_FILLS, f"{evidence}, {example.longest - answer} of them before the answer")
    return Dropped(key, number, TOO_LONG, evidence)


def _refuse(
    files: dict[str, TokenFile], paths: dict[str, Path], max_tokens: int, overlong: Overlong, max_dropped: float
) -> None:
    """Stop where a source has nothing to train on, or too many rows are too long."""
    for ref, file in files.items():
        if not len(file) + len(file.dropped):
            raise AloeError(
                f"{ref} has no rows to train on",
                where=str(paths[ref]),
                fix="look at the step or file that should have made them, or leave the source out",
            )
    dropped = sum(len(f.dropped) for f in files.values())
    total = dropped + sum(map(len, files.values()))
    empty = any(not len(f) for f in files.values())
    if dropped <= max_dropped * total and not empty:
        return
    ref, first = next((r, f.dropped[0]) for r, f in files.items() if f.dropped and (len(f) == 0 or not empty))
    if first.reason == UNFIT:
        raise AloeError(
            f"{dropped} of {total} rows can't be used, the first is {first.key}: {first.evidence}"
            + (f"; nothing of {ref} is left" if empty else ""),
            where=f"{paths[ref]}:{first.number}",
            fix="mend or delete the row, or allow a share of such rows with max_dropped",
        )
    cut = overlong == "drop"
    raise AloeError(
        f"{dropped} of {total} rows are longer than {max_tokens} tokens, the first is {first.key} with {first.evidence}"
        + ("" if cut else "; an answer is never cut")
        + (f"; nothing of {ref} is left" if empty else ""),
        where=f"{paths[ref]}:{first.number}",
        fix="raise max_tokens (as far as the model's positions go), "
        + ("cut prompts with overlong: left_truncate, " if cut else "")
        + "or allow a share of them with max_dropped",
    )


def _write_dropped(path: Path, sources: list[Source], aside: list[npt.NDArray[np.bool_]], hold_out: float) -> None:
    """Every row left out, with its reason: those too long in the order of their files, those held out, those over
    their share."""
    schema = pa.schema([("key", pa.string()), ("reason", pa.string()), ("evidence", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for source in sources:
            long = source.file.dropped
            columns = [[d.key for d in long], [d.reason for d in long], [d.evidence for d in long]]
            writer.write_table(pa.table(columns, schema=schema))
        for source, mask in zip(sources, aside, strict=True):
            used = np.zeros(len(source.file), dtype=bool)
            used[slice(None) if source.rows is None else source.rows] = True
            drawn = f"{len(source)} of {np.count_nonzero(~mask)} drawn"
            for left, reason, evidence in (
                (mask, HELD_OUT, f"hold_out {hold_out:g}"),
                (~mask & ~used, OVER_SHARE, drawn),
            ):
                for some in np.array_split(np.flatnonzero(left), 1 + len(left) // (1 << 16)):
                    keys = [source.file.key(i) for i in some.tolist()]
                    same = [reason] * len(keys), [evidence] * len(keys)
                    writer.write_table(pa.table([keys, *same], schema=schema))
