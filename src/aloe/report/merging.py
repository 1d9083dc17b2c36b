"""How models were merged: what ran, with which numbers, and what the task vectors look like by layer and kind.

The figures are those of `merge.json`: `diagnostics` has one row a tensor, which is pooled here over classes, layers and
kinds (norms in squares, cosines through dot products, shares through counts). Merges from before there were
diagnostics show their statistics by class.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from aloe.report.evidence import Evidence
from aloe.report.merging_charts import Spot, diverging, heat, sequential
from aloe.report.merging_pools import Figure, Pool, Row, kind_order, kinds, outside, pool, rank

VERBS = ("merge", "merge_search")
ROW = ("space", "sparsify", "rescale", "consensus", "normalize")  # parts of a method, as they are applied
NUMBERS = ("weight", "density", "gamma", "epsilon")
APART = 3  # models whose pairs have maps of their own; of more, a map shows the mean over pairs
ENTRIES = 6  # of a dial, before it is cut short
CLOSE = 0.1  # a cosine this close to 0 is near independence
NEAR = 0.005  # a kept share this close to the density is what was asked for


def merges(evidence: Evidence) -> list[dict[str, Any]]:
    """Every merge: the method as it ran, the models with their numbers, tables and maps."""
    found = []
    for step in evidence.about():
        if step.verb not in VERBS:
            continue
        report = (step.shelf.json("merge.json") if step.shelf else None) or {}
        summary = step.manifest.get("summary") or {}
        parameters = summary.get("merge") or step.manifest.get("parameters") or {}  # of a search: what it chose
        row = {**(report.get("row") or summary.get("row") or {})}
        models = parameters.get("models") or {}
        diagnostics = _diagnostics(step.name, report.get("diagnostics"), models)
        classes = [] if diagnostics else _classes(report, summary)
        found.append(
            {
                "step": step.name,
                "settings": _settings(report, summary, parameters, row),
                "models": [(ref, _numbers(part or {}, row)) for ref, part in models.items()],
                "names": list(dict.fromkeys(ref for _, c in classes for ref in c.get("models") or {})),
                "classes": classes,
                "diagnostics": diagnostics,
            }
        )
    return found


def _classes(report: Row, summary: Row) -> list[tuple[str, Row]]:
    """Statistics by class, as merges without diagnostics state them; of a manifest alone, the total."""
    kept = ("models", "sign_disagreement", "merged_delta_norm")
    total = report.get("total") or {"entries": summary.get("parameters"), **{k: summary.get(k) for k in kept}}
    return [*(report.get("classes") or {}).items(), ("all tensors", total)]


# -- what ran -----------------------------------------------------------------------------------------------------


def _settings(report: Row, summary: Row, parameters: Row, row: Row) -> list[tuple[str, str]]:
    found = {"base": parameters.get("base"), "method": summary.get("method", parameters.get("method"))}
    found |= {k: row[k] for k in sorted(row, key=lambda k: _place(k, ROW))}
    numbers = {**parameters, "lambda": parameters.get("lambda", parameters.get("lambda_")), **report}
    found |= {k: numbers.get(k) for k in ("lambda", "t")}
    if row.get("sparsify") == "magnitude":
        found["trim_scope"] = parameters.get("trim_scope")
    found |= {k: parameters.get(k) or None for k in ("filter_wise", "missing")}
    found |= {"tokenizer": parameters.get("tokenizer")}
    found |= {k: numbers.get(k) for k in ("dtype", "seed")}
    return [(k, dial(v)) for k, v in found.items() if v is not None]


def _numbers(part: Row, row: Row) -> str:
    """A model's weight, density and so on, as far as the method has a use for them."""
    unused = {
        "weight": row.get("space") == "arc",
        "density": "sparsify" in row and row["sparsify"] is None,
        "gamma": row.get("sparsify") != "outliers",
        "epsilon": row.get("sparsify") != "magprune",
    }
    known = [name for name, value in part.items() if value is not None and not unused.get(name)]
    return ", ".join(f"{name} {dial(part[name])}" for name in sorted(known, key=lambda name: _place(name, NUMBERS)))


def _place(name: str, order: Sequence[str]) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order), name)


def dial(value: Any) -> str:
    """A parameter as text: a number, a gradient over the layers, or the list of what applies where."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        said = [_where(v, first=at == 0) for at, v in enumerate(value[:ENTRIES])]
        return "; ".join(said) + (f"; {len(value) - ENTRIES} more" if len(value) > ENTRIES else "")
    if isinstance(value, list) and value and all(_number(v) for v in value):
        return f"{_gradient(value)}{' over the layers' if len(value) > 1 else ''}"
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return ", ".join(value[:ENTRIES]) + (f", {len(value) - ENTRIES} more" if len(value) > ENTRIES else "")
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _gradient(values: Sequence[float]) -> str:
    shown = values if len(values) <= ENTRIES else [*values[: ENTRIES - 1], values[-1]]
    said = [f"{v:g}" for v in shown]
    if len(values) > ENTRIES:
        said.insert(-1, "…")
    return " → ".join(said)


def _where(entry: Row, first: bool) -> str:
    """`0.7 for self_attn in layers 0 to 11`."""
    value, name, layers = entry.get("value"), entry.get("filter"), entry.get("layers")
    told = _gradient(value) if isinstance(value, list) and all(_number(v) for v in value) else dial(value)
    names = f" for {name}" if name and name != "*" else ""
    span = ""
    if isinstance(layers, list) and len(layers) == 2 and all(_number(v) for v in layers):
        span = f" in layers {layers[0]} to {layers[1] - 1}" if layers[1] - layers[0] > 1 else f" in layer {layers[0]}"
    return told + (names + span or ("" if first else " elsewhere"))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# -- diagnostics --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """One quantity over all cells. A panel is (caption, value of a pool, its text on hover)."""

    name: str
    note: str
    say: Callable[[float], str]
    panels: Sequence[tuple[str, Callable[[Pool], Figure], Callable[[Pool], str]]]
    least: float  # width of the narrowest scale; 0 starts it at zero
    top: float = 1.0
    signed: bool = False


def _diagnostics(step: str, told: Any, parts: Row) -> dict[str, Any] | None:
    """Tables, sentences and maps of a merge's diagnostics; None where it has none. `parts` are the models' numbers."""
    if not isinstance(told, Mapping) or not told.get("models"):
        return None
    models = [str(m) for m in told["models"]]
    pairs = [(int(i), int(j)) for i, j in told.get("pairs") or ()]
    rows = [r for r in told.get("tensors") or () if r["entries"] and len(r["task_norms"]) == len(models)]
    if not rows:
        return None

    def pooled(groups: Mapping[Any, Sequence[Row]]) -> dict[Any, Pool]:
        return {key: pool(group, pairs) for key, group in groups.items()}

    names = kinds(rows)
    inside = [r for r in rows if r["name"] in names]
    order = {names[r["name"]]: kind_order(names[r["name"]], r["class"]) for r in inside}
    cells = pooled(_by(inside, lambda r: (names[r["name"]], r["layer"])))
    grid = {
        k: {layer: p for (kind, layer), p in cells.items() if kind == k} for k in sorted(order, key=order.__getitem__)
    }
    beside, whole = pooled(outside(rows)), pool(rows, pairs)
    classes, layers = pooled(_by(rows, lambda r: r["class"])), pooled(_by(inside, lambda r: r["layer"]))
    named = {f"layer {layer}, {kind}": p for (kind, layer), p in cells.items()} | beside
    views = [v for v in _views(models, pairs) if _worth_a_map(v, list(named.values()))]
    return {
        "models": models,
        "pairs": len(pairs),
        "elected": whole.agreeing is not None,
        "classes": [*(_line(c, classes[c]) for c in sorted(classes, key=rank)), _line("all tensors", whole)],
        "layers": [_line(f"layer {n}", layers[n]) for n in sorted(layers)],
        "sentences": _sentences(models, pairs, whole, named, parts),
        "views": [(v.name, v.note, _maps(step, v, grid, beside)) for v in views],
    }


def _line(label: str, p: Pool) -> dict[str, Any]:
    """A line of the tables, as text."""
    known = [c for c in p.cosines if c is not None]
    ends = list(dict.fromkeys(cosine(c) for c in (min(known), max(known)))) if known else ["undefined"]
    models = zip(p.sizes, p.norms, p.kept, strict=True)
    return {
        "label": label,
        "tensors": p.tensors,
        "entries": p.entries,
        "models": [(told(size, percent), ratio(norm), told(kept, percent)) for size, norm, kept in models],
        "cosine": " to ".join(ends),
        "conflict": told(p.conflict, percent),
        "agreeing": told(p.agreeing, percent),
        "merged": told(p.merged, ratio),
        "merged_norm": ratio(p.merged_norm),
    }


def _by(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def _views(models: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[View]:
    """What there is to be drawn, of any merge."""
    couples = [f"{models[i]} and {models[j]}" for i, j in pairs]

    def each(field: str, names: Sequence[str], say: Callable[[float], str]) -> list[Any]:
        def panel(at: int) -> tuple[str, Callable[[Pool], Figure], Callable[[Pool], str]]:
            return names[at], lambda p: getattr(p, field)[at], lambda p: told(getattr(p, field)[at], say)

        return [panel(at) for at in range(len(names))]

    def one(field: str, say: Callable[[float], str]) -> list[Any]:
        return [("", lambda p: getattr(p, field), lambda p: told(getattr(p, field), say))]

    def spread(p: Pool) -> str:
        known = sorted((c, name) for c, name in zip(p.cosines, couples, strict=True) if c is not None)
        if not known:
            return told(None, cosine)
        ends = f", from {cosine(known[0][0])} ({known[0][1]}) to {cosine(known[-1][0])} ({known[-1][1]})"
        return f"mean {told(_mean_of(p), cosine)}{ends}"

    angles = each("cosines", couples, cosine)
    if len(models) > APART:
        angles = [(f"mean over {len(pairs)} pairs", _mean_of, spread)] if pairs else []
    return [
        View("size of the changes", "Norm of a model's task vector (its weights minus the base's) over the norm of the "
             "base's weights; one scale for all models.", percent, each("sizes", models, percent), 0.0, math.inf),
        View("cosine", "Cosine between two task vectors: near 0 they are independent, towards 1 the models learned the "
             "same, below 0 they pull against each other.", cosine, angles, 0.1, signed=True),
        View("conflicts", "Share of entries where two task vectors have opposite signs. "
             f"Signs drawn at random would conflict in up to {_by_chance(models)}.",
             percent, one("conflict", percent) if pairs else [], 0.1),
        View("agreement", "Share of the entries left after sparsifying that agree with the elected sign; the others "
             "are dropped.", percent, one("agreeing", percent), 0.1),
        View("kept", "Share of a task vector's entries that sparsifying kept.", percent, each("kept", models, percent),
             0.1),
        View("size of the merged change", "Norm of the merged change (the merged weights minus the base's) over the "
             "mean norm of the task vectors.", ratio, one("merged", ratio), 0.2, math.inf),
    ]  # fmt: skip


def _by_chance(models: Sequence[str]) -> str:
    """The share of entries in which random signs, none zero, aren't all alike."""
    return percent(1 - 2.0 ** (1 - len(models)))


def _mean_of(p: Pool) -> Figure:
    known = [c for c in p.cosines if c is not None]
    return sum(known) / len(known) if known else None


def _worth_a_map(view: View, cells: Sequence[Pool]) -> bool:
    """Whether a quantity is defined somewhere; what keeps everything needs no map."""
    values = [value(p) for _, value, _ in view.panels for p in cells]
    known = [v for v in values if v is not None]
    return bool(known) and not (view.name == "kept" and min(known) == 1)


def _maps(
    step: str, view: View, grid: Mapping[str, Mapping[int, Pool]], beside: Mapping[str, Pool]
) -> list[tuple[str, Markup]]:
    """(caption, map) of every panel of a view, all on one scale."""
    layers = sorted({layer for by_layer in grid.values() for layer in by_layer})
    pools = [p for by_layer in grid.values() for p in by_layer.values()] + list(beside.values())
    known = [v for _, value, _ in view.panels for p in pools if (v := value(p)) is not None]
    scale = diverging(known, view.say, view.least) if view.signed else sequential(known, view.say, view.least, view.top)
    maps = []
    for caption, value, said in view.panels:

        def spot(p: Pool, name: str, value: Any = value, said: Any = said) -> Spot:
            of = f"{p.tensors:,} tensor{'s' if p.tensors > 1 else ''}, {p.entries:,} entries"
            return Spot(value(p), f"{name}: {said(p)} ({of})")

        drawn = [(k, {n: spot(p, f"layer {n}, {k}") for n, p in by_layer.items()}) for k, by_layer in grid.items()]
        strip = [(name, spot(p, name)) for name, p in beside.items()]
        title = f"{step}: {view.name}{f', {caption}' if caption else ''}"
        maps.append((caption, heat(drawn, layers, strip, scale, title)))
    return maps


# -- sentences ----------------------------------------------------------------------------------------------------


def _sentences(
    models: Sequence[str], pairs: Sequence[tuple[int, int]], whole: Pool, cells: Mapping[str, Pool], parts: Row
) -> list[tuple[str, str]]:
    """What a reader should look at: (of what, what the figures say)."""

    def most(value: Callable[[Pool], Figure], say: Callable[[float], str]) -> str:
        known = [(v, name) for name, p in cells.items() if (v := value(p)) is not None]
        if len(known) < 2:
            return ""
        top = max(known, key=lambda k: k[0])
        return f" The most is {say(top[0])}, in {top[1]}."

    said = f"Measured by the norm of the base's weights, {_listed(models, whole.sizes, percent)}."
    if len(models) > 1:
        said += " A model that moved further weighs more in the sum, unless its weight makes up for it."
    found = [("Size of the changes", said)]
    if known := [c for c in whole.cosines if c is not None]:
        if len(known) == 1:
            said = f"The two task vectors have a cosine of {cosine(known[0])}: "
        else:
            said = f"Pairs of task vectors have cosines of {cosine(min(known))} to {cosine(max(known))}: "
        found.append(("Cosine", said + _meaning(min(known), max(known))))
    if whole.conflict is not None and pairs:
        said = f"Models have opposite signs in {percent(whole.conflict)} of the entries"
        said += f"; signs drawn at random would in up to {_by_chance(models)}."
        found.append(("Conflicts", said + most(lambda p: p.conflict, percent)))
    if whole.agreeing is not None:
        said = f"Of the entries left after sparsifying, {percent(whole.agreeing)} agree with the elected sign"
        found.append(("Agreement", f"{said}; the other {percent(1 - whole.agreeing)} were dropped."))
    kept = [(m, k) for m, k in zip(models, whole.kept, strict=True) if k is not None]
    if kept and min(k for _, k in kept) == 1:
        found.append(("Kept", "Every entry of the task vectors was kept."))
    elif kept:
        shares = {m: _kept(k, (parts.get(m) or {}).get("density")) for m, k in kept}
        alike = len(kept) == len(models) > 1 and len(set(shares.values())) == 1
        each = [f"Every model {next(iter(shares.values()))}"] if alike else [f"{m} {how}" for m, how in shares.items()]
        found.append(("Kept", "; ".join(each) + "."))
    if whole.merged is not None:
        size = f"Its norm is {ratio(whole.merged)} of the {'task vector' if len(models) == 1 else 'mean task vector'}'s"
        found.append(("Merged change", f"{size}: {_grown(whole.merged)}."))
    return found


def _listed(models: Sequence[str], sizes: Sequence[Figure], say: Callable[[float], str]) -> str:
    said = [f"{m} moved by {told(v, say)}" for m, v in zip(models, sizes, strict=True)]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"


def _meaning(low: float, high: float) -> str:
    if low < -CLOSE:
        return "below 0, models pull against each other, and part of what each learned is lost."
    if high <= CLOSE:
        return "near 0, the models changed in independent directions, neither reinforcing nor undoing each other."
    return "above 0, models learned some of the same, which counts for each of them where it is added up."


def _kept(kept: float, density: Any) -> str:
    said = f"keeps {percent(kept)} of its task vector's entries"
    if not _number(density):
        return said
    return said + (", as its density asks" if abs(kept - density) <= NEAR else f"; its density is {density:g}")


def _grown(merged: float) -> str:
    if abs(merged - 1) <= NEAR:
        return "about as much as a model changed"
    if merged > 1:
        return "above 1, the changes were added up or scaled up"
    return "below 1, changes were averaged, scaled down, or cancelled each other"


# -- figures as text ----------------------------------------------------------------------------------------------


def told(value: Figure, say: Callable[[float], str]) -> str:
    """A figure as text, also where it is undefined."""
    return "undefined" if value is None else say(value)


def percent(value: float) -> str:
    """A share with three digits that count."""
    return f"{_digits(100 * value)}%"


def cosine(value: float) -> str:
    """A number between -1 and 1 with three decimals."""
    return f"{value:.3f}"


def ratio(value: float) -> str:
    """A number with three digits that count."""
    return _digits(value)


def _digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") if value else "0"
