"""The sides of a comparison: models of scores artifacts, and which of their scores may stand against each other.

Scores pair by benchmark, metric and protocol. Two protocols are never compared unless the caller names the field that
may differ, because then the difference is of protocols, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from aloe.errors import AloeError
from aloe.evaluate.scored import Scored, read_runs
from aloe.manifest_file import check_beside
from aloe.records import ItemResult
from aloe.schema import check_object

Better = Literal["higher", "lower"]
# A field that decides others: allowing it to differ allows those.
DECIDES: dict[str, tuple[str, ...]] = {
    "strategy": (
        "prompt", "prompt_digest", "exemplars", "exemplars_digest", "encoder_digest", "reranker_digest",
        "rerank_top", "shots", "members", "shuffle",
        "temperature", "top_p", "max_new_tokens", "leak_cosine", "stopping", "error_bound",
    ),
    "data_digest": ("items", "items_digest"),
    "items": ("items_digest",),
    "prompt": ("prompt_digest",),
    "exemplars": ("exemplars_digest", "encoder_digest", "reranker_digest", "rerank_top", "leak_cosine"),
}  # fmt: skip
# Fields in the order in which a difference is told: what decides others first.
FIRST = ("kind", "data_digest", "items", "items_digest", "strategy", "prompt", "shots", "template_digest")
LOWER = ("over_refusal", "attack_success", "nll_token", "nll_byte")  # where no scores.json says it
NATS = ("nll_token", "nll_byte")


@dataclass(frozen=True)
class Series:
    """One model's values of one metric on one benchmark under one protocol, by item; errored items have none."""

    benchmark: str
    metric: str
    digest: str
    protocol: Mapping[str, Any]
    better: Better
    unit: str
    values: Mapping[str, float]
    rows: Mapping[str, Scored]

    @property
    def strategy(self) -> str:
        return str(self.protocol.get("strategy") or "")


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a model of an artifact, perhaps with one strategy only."""

    label: str
    artifact: str
    model: str
    series: tuple[Series, ...]
    strategy: str | None = None

    def only(self, strategy: str) -> Side:
        """This side with what one strategy measured."""
        kept = tuple(s for s in self.series if s.strategy == strategy)
        return replace(self, label=f"{self.label}@{strategy}", series=kept, strategy=strategy)

    def strategies(self) -> list[str]:
        return list(dict.fromkeys(s.strategy for s in self.series))

    def rivals(self) -> list[str]:
        """Strategies of the benchmarks that were asked by several."""
        by_score: dict[tuple[str, str], list[str]] = {}
        for s in self.series:
            by_score.setdefault((s.benchmark, s.metric), []).append(s.strategy)
        return list(dict.fromkeys(name for found in by_score.values() if len(found) > 1 for name in found))


# -- reading -----------------------------------------------------------------------------------------------------------


def read_scores(folder: Path) -> dict[str, Side]:
    """Model -> side of a scores artifact, in the order of its rows. Reads `items.parquet`, `protocols.json` and, for
    the metrics and which way is better, `scores.json` where there is one.

    Raises:
        AloeError: a file is missing, an item stands twice, a value is not finite, a protocol isn't described.
    """
    fix = "name a folder that `evaluate` or `import` wrote (out/<family>/<step>)"
    if not folder.is_dir():
        raise AloeError("no such folder", where=str(folder), fix=fix)
    for name in ("items.parquet", "protocols.json"):
        if not (folder / name).is_file():
            raise AloeError(f"no {name}: not a scores artifact", where=str(folder), fix=fix)
    check_beside(folder)
    protocols = _json(folder / "protocols.json")
    table = _json(folder / "scores.json") if (folder / "scores.json").is_file() else {}
    check_object("scores", table, folder / "scores.json")
    told = {(r["benchmark"], r["protocol"], r["metric"]): r for r in table.get("scores", [])}
    groups = _grouped(folder, protocols, sorted({str(metric) for _, _, metric in told}))
    found: dict[str, list[Series]] = {}
    for (model, benchmark, digest, own), group in groups.items():
        names = [own, *(m for b, d, m in told if (b, d) == (benchmark, digest) and m != own)]
        for metric in names:
            values = group.values.get(metric, {})
            if metric != own and not values:
                continue  # a figure of all items together, such as a bias score: it has no value by item
            record = told.get((benchmark, digest, metric), {})
            better: Better = record.get("better", "lower" if metric in LOWER else "higher")
            unit = str(record.get("unit", "nats" if metric in NATS else "share"))
            one = Series(benchmark, metric, digest, protocols[digest], better, unit, values, group.rows)
            found.setdefault(model, []).append(one)
    return {model: Side(model, str(folder), model, tuple(series)) for model, series in found.items()}


@dataclass
class _Group:
    """Rows of one model, benchmark, protocol and metric, by item; values by metric and item."""

    rows: dict[str, Scored] = field(default_factory=dict)
    values: dict[str, dict[str, float]] = field(default_factory=dict)


def _grouped(
    folder: Path, protocols: Mapping[str, Any], by_products: Sequence[str]
) -> dict[tuple[str, str, str, str], _Group]:
    where = str(folder / "items.parquet")
    groups: dict[tuple[str, str, str, str], _Group] = {}
    for run in read_runs(folder / "items.parquet", by_products):
        model, benchmark, digest, _ = run.key
        if digest not in protocols:
            what = f"item {run.items[0]} names a protocol that isn't in protocols.json"
            fix = "restore protocols.json: without the protocol, nothing says what the score is comparable to"
            raise AloeError(what, where=str(folder), fix=fix)
        group = groups.setdefault(run.key, _Group())
        own = dict(zip(run.items, run.rows, strict=True))
        if len(own) < len(run.items) or own.keys() & group.rows.keys():
            seen = set(group.rows)
            twice = next(item for item in run.items if item in seen or seen.add(item))  # type: ignore[func-returns-value]
            what = f"item {twice} of {benchmark} stands twice for model {model} under one protocol"
            fix = "evaluate again: an item that counts twice would make the interval too short"
            raise AloeError(what, where=where, fix=fix)
        group.rows.update(own)
        for metric, values in run.values.items():
            mine = {item: value for item, value in zip(run.items, values, strict=True) if value is not None}
            group.values.setdefault(metric, {}).update(mine)
    if not groups:
        fix = "name a folder that `evaluate` or `import` wrote (out/<family>/<step>)"
        raise AloeError("no items: nothing was scored here", where=where, fix=fix)
    return groups


def value_of(row: ItemResult, metric: str) -> float | None:
    """An item's value of a metric: its own, or what its `meta` holds; None where it has none (errored)."""
    if row.value is None:
        return None
    if metric == row.metric:
        return float(row.value)
    if metric == "text_accuracy" and "text_letter" in row.meta:
        return float(row.meta["text_letter"] == row.gold)
    stated = row.meta.get(metric)
    return float(stated) if isinstance(stated, int | float) and not isinstance(stated, bool) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as cause:
        raise AloeError(f"not valid JSON ({cause})", where=str(path), fix="restore it, or evaluate again") from None
    if not isinstance(found, dict):
        raise AloeError("expected an object", where=str(path), fix="restore it, or evaluate again")
    return found


# -- pairing -----------------------------------------------------------------------------------------------------------


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Fields in which two protocol records differ, those that decide others first."""
    fields = [f for f in {**a, **b} if a.get(f) != b.get(f)]
    return sorted(fields, key=lambda f: (FIRST.index(f) if f in FIRST else len(FIRST), f))


def allowed(across: Iterable[str]) -> set[str]:
    """The fields named, and those that they decide."""
    return {f for name in across for f in (name, *DECIDES.get(name, ()))}


@dataclass(frozen=True)
class Pairing:
    """Two series to compare, and the protocol fields in which they differ (with leave)."""

    before: Series
    after: Series
    across: dict[str, tuple[Any, Any]] = field(default_factory=dict)


def pair_up(
    a: Side, b: Side, across: Sequence[str] = (), metrics: Sequence[str] = (), benchmarks: Sequence[str] = ()
) -> tuple[list[Pairing], list[str]]:
    """(pairings, what could not be paired and why).

    Args:
        across: protocol fields that may differ.
        metrics: which; none: each protocol's own (accuracy, not its by-products).
        benchmarks: which; none: all that both have.

    Raises:
        AloeError: no benchmark in common; or one that both have under no common protocol, naming the first field.
    """
    mine, theirs = _chosen(a, metrics, benchmarks), _chosen(b, metrics, benchmarks)
    common = [key for key in mine if key in theirs]
    if not common:
        have = [", ".join(dict.fromkeys(f"{x} ({m})" for x, m in side)) or "nothing" for side in (mine, theirs)]
        raise AloeError(
            f"no benchmark and metric in common: {a.label} has {have[0]}; {b.label} has {have[1]}",
            fix="evaluate both on one benchmark, under one name",
        )
    pairs: list[Pairing] = []
    notes = [f"{x} ({m}): only {s.label} was scored" for s, own, other in ((a, mine, theirs), (b, theirs, mine))
             for x, m in own if (x, m) not in other]  # fmt: skip
    for key in common:
        found, left = _match(a, b, mine[key], theirs[key], allowed(across))
        pairs += found
        notes += [f"{key[0]} ({key[1]}), {series.strategy}: only {side.label} was scored so" for side, series in left]
    return pairs, notes


def _chosen(side: Side, metrics: Sequence[str], benchmarks: Sequence[str]) -> dict[tuple[str, str], list[Series]]:
    found: dict[tuple[str, str], list[Series]] = {}
    for series in side.series:
        own = next(iter(series.rows.values())).metric
        wanted = series.metric in metrics or "all" in metrics if metrics else series.metric == own
        if wanted and (not benchmarks or series.benchmark in benchmarks):
            found.setdefault((series.benchmark, series.metric), []).append(series)
    return found


def _match(
    a: Side, b: Side, mine: list[Series], theirs: list[Series], free: set[str]
) -> tuple[list[Pairing], list[tuple[Side, Series]]]:
    """Series under one protocol; then, of the others, those that differ in free fields only."""
    same = {s.digest for s in mine} & {s.digest for s in theirs}
    pairs = [Pairing(s, t) for s in mine for t in theirs if s.digest == t.digest]
    rest, other = [s for s in mine if s.digest not in same], [t for t in theirs if t.digest not in same]
    for s in list(rest):
        close = [t for t in other if set(differing(s.protocol, t.protocol)) <= free]
        if len(close) > 1:
            close = [t for t in close if t.strategy == s.strategy] or close
        if len(close) > 1:
            choices = ", ".join(f"{b.model}@{t.strategy}" for t in close)
            raise AloeError(
                f"{s.benchmark} of {a.label} could be compared with several protocols of {b.label}: {choices}",
                fix="name the strategy on both sides: ARTIFACT#MODEL@STRATEGY",
            )
        if close:
            fields = differing(s.protocol, close[0].protocol)
            told = {f: (s.protocol.get(f), close[0].protocol.get(f)) for f in fields}
            pairs.append(Pairing(s, close[0], told))
            rest.remove(s)
            other.remove(close[0])
    if not pairs:
        raise _refusal(a, b, mine, theirs, free)
    return pairs, [(a, s) for s in rest] + [(b, t) for t in other]


def _refusal(a: Side, b: Side, mine: list[Series], theirs: list[Series], free: set[str]) -> AloeError:
    s, t = min(((s, t) for s in mine for t in theirs), key=lambda p: len(differing(p[0].protocol, p[1].protocol)))
    fields = [f for f in differing(s.protocol, t.protocol) if f not in free]
    first = fields[0]
    more = f" ({len(fields) - 1} more: {', '.join(fields[1:])})" if len(fields) > 1 else ""
    return AloeError(
        f"{s.benchmark} ({s.metric}) was scored under different protocols: {first} is "
        f"{told(s.protocol, first)} for {a.label} and {told(t.protocol, first)} for {b.label}{more}",
        where=f"{a.artifact} against {b.artifact}",
        fix=f"evaluate both alike; or, if that difference is what you want to see, --across-protocols {first}",
    )


def told(protocol: Mapping[str, Any], name: str) -> str:
    """A protocol field's value in a message; long ones (digests) cut."""
    text = json.dumps(protocol[name], ensure_ascii=False) if name in protocol else "not stated"
    return text if len(text) <= 40 else text[:37] + "…"
