"""One table of everything that was measured of a model's safety: misuse, over-refusal, clinical scenarios, bias,
toxicity, ethics, truthfulness.

It reads the results as the steps wrote them, `red_team.json` and `scores.json`, and computes nothing anew: value,
interval and n are the files' own. Each row says which direction is better and what keeps its figure from being misread.
What was not measured has a row that says so and no value; what was asked without a verdict is named beside the rate
and is neither safe nor unsafe. Pure: plain dicts in, plain dicts out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aloe.safety.risk_render import escaped
from aloe.safety.table_measures import (
    AREAS,
    ATTACK,
    CLINICAL,
    CORE,
    CORRECTED,
    ESCALATION,
    EXCESS,
    HELD_OUT,
    OF_SCORES,
    OVER_REFUSAL,
    OVER_REFUSAL_CORRECTED,
    OVER_REFUSAL_FULL,
    TOXIC_CORRECTED,
    Measure,
    ethics,
)

NOT_MEASURED, NOT_KNOWN = "not measured", "not known"
FEW_ITEMS, FEW_CLUSTERS = 30, 10  # fewer items, or base requests, get a caution of their own
Record = Mapping[str, Any]
Key = tuple[str, str, str, str, str]  # area, measure, benchmark, how, protocol: what two figures must share


def safety_table(
    scores: Record | Sequence[Record], red_team: Record | Sequence[Record], models: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Every safety figure of every model.

    Args:
        scores: content of `scores.json` (aloe.evaluate.table), {} when nothing was scored, or several of them.
        red_team: content of `red_team.json`, {}, or several of them. Where two hold the same measure of one model
            under one protocol, the later one counts.
        models: which models, in this order; all, in the files' order, when None.

    Returns:
        Rows {model, area, measure, benchmark, how, protocol, value, low, high, n, better, unit, status, caution,
        cautions (its sentences)}, by model, then area and measure; every model has the same rows. `status` is
        `measured`, `not measured` (n 0, no value) or `not known` (asked, and nothing follows from it).
    """
    found: dict[Key, dict[str, dict[str, Any]]] = {}
    order: list[str] = []
    for table in _tables(scores):
        order += [str(m) for m in table.get("models") or ()]
        _collect(found, _of_scores(table))
    for table in _tables(red_team):
        order += [str(m) for m in table.get("models") or {}]
        _collect(found, _of_red_team(table))
    order += [model for cells in found.values() for model in cells]
    chosen = list(dict.fromkeys(order)) if models is None else list(models)
    shown = {key: cells for key, cells in found.items() if any(m in cells for m in chosen)}
    named = sorted(shown, key=lambda key: AREAS.index(key[0]))  # stable: measures as the files have them
    rows = []
    for model in chosen:
        for area, core in zip(AREAS, CORE, strict=True):
            mine = [shown[key].get(model) or _absent(shown[key], model) for key in named if key[0] == area]
            rows += mine or [_row(model, core, {}, status=NOT_MEASURED)]
    return rows


def _tables(given: Record | Sequence[Record]) -> list[Record]:
    return [given] if isinstance(given, Mapping) else list(given)


def _collect(found: dict[Key, dict[str, dict[str, Any]]], rows: Iterable[dict[str, Any]]) -> None:
    for row in rows:
        key = (row["area"], row["measure"], row["benchmark"], row["how"], row["protocol"])
        found.setdefault(key, {})[row["model"]] = row


def _absent(cells: Mapping[str, dict[str, Any]], model: str) -> dict[str, Any]:
    """The row of a model that wasn't asked what another one was."""
    other = next(iter(cells.values()))
    empty = {"value": None, "low": None, "high": None, "n": 0, "status": NOT_MEASURED}
    return other | empty | {"model": model, "caution": "", "cautions": []}


def _row(
    model: str,
    measure: Measure,
    rate: Record,
    *,
    benchmark: str = "",
    how: str = "",
    protocol: str = "",
    status: str | None = None,
    more: Iterable[str] = (),
) -> dict[str, Any]:
    """`rate` is {value, low, high, n}; of one with `clusters` the interval over these counts. `more` are cautions of
    this figure alone."""
    value = rate.get("value")
    n = int(rate.get("n") or 0)
    state = status or (NOT_MEASURED if value is None else "measured")
    said = [measure.caution, *more] if state != NOT_MEASURED else list(more)
    if state == "measured":
        said += _few(n, rate.get("clusters"))
    sentences = [f"{part.rstrip('.')}." for part in said if part]
    return {
        "model": model,
        "area": measure.area,
        "measure": measure.name,
        "benchmark": benchmark,
        "how": how,
        "protocol": protocol,
        "value": value,
        "low": rate["clustered_low"] if rate.get("clustered_low") is not None else rate.get("low"),
        "high": rate["clustered_high"] if rate.get("clustered_high") is not None else rate.get("high"),
        "n": n,
        "better": measure.better,
        "unit": measure.unit,
        "status": state,
        "caution": " ".join(sentences),
        "cautions": sentences,
    }


def _few(n: int, clusters: Any) -> list[str]:
    said = [f"Fewer than {FEW_ITEMS} items"] if 0 < n < FEW_ITEMS else []
    few = isinstance(clusters, int) and 0 < clusters < FEW_CLUSTERS
    return [*said, f"Fewer than {FEW_CLUSTERS} base requests"] if few else said


def _several(count: int, one: str) -> str:
    return f"{count} {one}{'' if count == 1 else 's'}"


# -- scores.json ----------------------------------------------------------------------------------------------------


def _of_scores(table: Record) -> Iterable[dict[str, Any]]:
    for record in table.get("scores") or ():
        metric = str(record["metric"])
        measure = OF_SCORES.get(metric) or ethics(metric)
        if measure is None:
            continue
        how, protocol = str(record.get("strategy") or ""), str(record.get("protocol") or "")
        place = {"benchmark": str(record["benchmark"]), "how": how, "protocol": protocol}
        model, extra = str(record["model"]), record.get("extra") or {}
        yield _row(model, measure, record, status=_state(record), more=_lost(record), **place)
        if metric == "counterfactual_change" and extra.get("excess"):
            yield _row(model, EXCESS, extra["excess"], **place)
        if metric == "toxic_share" and extra.get("corrected"):
            yield _corrected(model, TOXIC_CORRECTED, extra["corrected"], int(record.get("n") or 0), place)


def _state(record: Record) -> str | None:
    """Asked and without a value: not the same as never asked."""
    asked = sum(int(record.get(field) or 0) for field in ("answered", "unparsed", "errored"))
    return NOT_KNOWN if record.get("value") is None and asked else None


def _lost(record: Record) -> list[str]:
    said = []
    if record.get("errored"):
        said.append(f"{_several(record['errored'], 'error')} left out")
    if record.get("unparsed"):
        said.append(f"{record['unparsed']} unread")
    return said


def _corrected(model: str, measure: Measure, rate: Record, n: int, place: Mapping[str, str]) -> dict[str, Any]:
    """A rate with a judge's errors taken out: unknown where the judge is no better than a coin."""
    usable = bool(rate.get("usable", True)) and rate.get("value") is not None
    shown = dict(rate) | {"n": rate.get("n") or n} | ({} if usable else {"value": None})
    said = [f"Sensitivity {rate['sensitivity']:.2f}, specificity {rate['specificity']:.2f}"] if _rates(rate) else []
    if not usable:
        said.append("The judge is no better than chance on the labelled set, so nothing follows")
    return _row(model, measure, shown, status=None if usable else NOT_KNOWN, more=said, **place)


def _rates(rate: Record) -> bool:
    return rate.get("sensitivity") is not None and rate.get("specificity") is not None


# -- red_team.json --------------------------------------------------------------------------------------------------


def _of_red_team(table: Record) -> Iterable[dict[str, Any]]:
    requests, benign, scenarios = (_named(table.get(field)) for field in ("requests", "benign", "scenarios"))
    protocols = table.get("protocols") or {}
    protocol = "+".join(sorted(protocols))  # all of one red team's models are asked alike
    for name, entry in (table.get("models") or {}).items():
        model = str(name)
        attacks = {"benchmark": requests, "how": _judge(table, "harm"), "protocol": protocol}
        harmless = {"benchmark": benign, "how": _judge(table, "refusal"), "protocol": protocol}
        lost = _unjudged(entry, "errors", "unjudged")
        overall = entry.get("attack_success_clustered") or entry.get("attack_success") or {}
        yield _row(
            model, ATTACK, overall, status=_asked(overall, lost), more=[*_doubts(table, entry), *lost], **attacks
        )
        if entry.get("attack_success_corrected"):
            yield _corrected(model, CORRECTED, entry["attack_success_corrected"], int(overall.get("n") or 0), attacks)
        for field, measure in HELD_OUT.items():
            if (entry.get(field) or {}).get("n"):
                yield _row(model, measure, entry[field], **attacks)
        if entry.get("escalation"):
            yield _row(model, ESCALATION, entry["escalation"].get("attack_success") or {}, **attacks)
        lost = _unjudged(entry, "benign_errors", "benign_unjudged")
        again = entry.get("over_refusal_corrected")
        for measure, field in ((OVER_REFUSAL, "over_refusal"), (OVER_REFUSAL_FULL, "over_refusal_full")):
            if entry.get(field):
                state = _asked(entry[field], lost)
                yield _row(
                    model, measure, entry[field], status=state, more=[*_alone(entry, "over_refusal"), *lost], **harmless
                )
        if again:
            n = int((entry.get("over_refusal") or {}).get("n") or 0)
            yield _corrected(model, OVER_REFUSAL_CORRECTED, again, n, harmless)
        if entry.get("clinical"):
            place = {"benchmark": scenarios or "clinical scenarios", "how": "checked by patterns", "protocol": protocol}
            yield _row(
                model,
                CLINICAL,
                entry["clinical"].get("pass") or {},
                more=_unjudged(entry["clinical"], "errors", "unjudged"),
                **place,
            )


def _named(sets: Any) -> str:
    """Names of the sets that were asked: one, several or none."""
    return ", ".join(map(str, sets)) if isinstance(sets, list | tuple) else str(sets or "")


def _judge(table: Record, of: str) -> str:
    """Which judge decides of harm, or of refusal."""
    named = (table.get("deciders") or {}).get(of) or (table.get("judge") or {}).get("name")
    return f"judged by {named or 'an unnamed judge'}"


def _doubts(table: Record, entry: Record) -> list[str]:
    """One judge of harm, or how far two agree."""
    agreement = entry.get("agreement") or table.get("agreement") or ()
    told = [a for a in agreement if a.get("agree") is not None and a.get("n")]
    said = [f"Judges {a['a']} and {a['b']} agree on {a['agree']:.0%} of {a['n']}" for a in told[:1]]
    return said or _alone(entry, "attack_success")


def _alone(entry: Record, metric: str) -> list[str]:
    """Whether a single judge says this."""
    telling = [j for j in (entry.get("judges") or {}).values() if (j.get(metric) or {}).get("n")]
    return ["One judge alone"] if len(telling) < 2 else []


def _unjudged(entry: Record, errors: str, unjudged: str) -> list[str]:
    lost, silent = int(entry.get(errors) or 0), int(entry.get(unjudged) or 0)
    parts = ([f"{silent} without a verdict"] if silent else []) + ([_several(lost, "error")] if lost else [])
    return [f"{' and '.join(parts)} left out"] if parts else []


def _asked(rate: Record, lost: Sequence[str]) -> str | None:
    return NOT_KNOWN if rate.get("value") is None and lost else None


# -- as text ----------------------------------------------------------------------------------------------------------


def figure_text(row: Record) -> str:
    """`12.5 [8.1, 18.7] n=200`: shares in per cent, scores and nats as they are; words where there is no value."""
    if row["value"] is None:
        return str(row["status"])
    scale, digits, sign = (100.0, 1, "") if row["unit"] == "share" else (1.0, 3, "+" if row["unit"] == "score" else "")
    text = f"{row['value'] * scale:{sign}.{digits}f}"
    if row["low"] is not None and row["high"] is not None:
        text += f" [{row['low'] * scale:{sign}.{digits}f}, {row['high'] * scale:{sign}.{digits}f}]"
    return f"{text} n={row['n']}"


def as_grid(rows: Sequence[Record]) -> tuple[list[str], list[dict[str, Any]]]:
    """(models, lines): one line per measure, with every model's row in `cells`, and in `cautions` each sentence once:
    (sentences, the models they are said of, [] for all that were asked)."""
    models = list(dict.fromkeys(str(r["model"]) for r in rows))
    lines: dict[Key, dict[str, Any]] = {}
    for row in rows:
        key = (row["area"], row["measure"], row["benchmark"], row["how"], row["protocol"])
        shared = ("area", "measure", "benchmark", "how", "protocol", "better", "unit")
        line = lines.setdefault(key, {field: row[field] for field in shared} | {"cells": {}})
        line["cells"][str(row["model"])] = row
    for line in lines.values():
        line["cautions"] = _shared(line["cells"])
    ordered = sorted(lines.values(), key=lambda line: AREAS.index(line["area"]))
    return models, ordered


def _shared(cells: Mapping[str, Record]) -> list[tuple[str, list[str]]]:
    """Cautions without repetition: what holds for all models that were asked, then what holds for some."""
    said: dict[str, list[str]] = {}
    for model, row in cells.items():
        for sentence in row["cautions"]:
            said.setdefault(str(sentence), []).append(model)
    asked = sum(row["status"] != NOT_MEASURED for row in cells.values())
    together: dict[tuple[str, ...], list[str]] = {(): []}
    for sentence, of in said.items():
        together.setdefault(tuple(of) if len(of) < asked else (), []).append(sentence)
    return [(" ".join(sentences), list(of)) for of, sentences in together.items() if sentences]


def render_markdown(rows: Sequence[Record]) -> str:
    """The table as GitHub Markdown: measures down, models across, cautions as numbered notes below."""
    models, lines = as_grid(rows)
    if not lines:
        return f"Safety: {NOT_MEASURED}.\n"
    notes: dict[str, int] = {}
    table = [["area", "measure", "on", "better", *map(escaped, models), "caution"]]
    for line in lines:
        marks = [f"[{notes.setdefault(_note(c, of), len(notes) + 1)}]" for c, of in line["cautions"]]
        where = ", ".join(part for part in (line["benchmark"], line["how"]) if part)
        cells = [figure_text(line["cells"][m]) if m in line["cells"] else NOT_MEASURED for m in models]
        named = map(escaped, (line["area"], line["measure"], where, line["better"]))
        table.append([*named, *cells, " ".join(marks)])  # the figures are our own text, brackets and all
    body = [f"| {' | '.join(row)} |" for row in table]
    body.insert(1, f"|{'---|' * len(table[0])}")
    head = "Value [95% interval] and number of items; shares in per cent, bias scores from -1 to 1."
    said = [f"{at}. {escaped(note)}" for note, at in notes.items()]
    return "\n".join([*body, "", head, *(["", "Cautions:", "", *said] if said else [])]) + "\n"


def _note(caution: str, of: Sequence[str]) -> str:
    return f"{', '.join(of)}: {caution}" if of else caution
