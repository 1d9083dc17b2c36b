"""Holding a model's results against a gate's limits. Reads result files and item rows, decides nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aloe.digests import digest_file
from aloe.errors import AloeError
from aloe.evaluate.sides import Side, pair_up, read_scores
from aloe.evaluate.stats import non_inferiority
from aloe.release.gate import ACCURACY, TOXICITY, Check, Gate
from aloe.safety.risk_evidence import Figure, Source, harm_of, rate_of
from aloe.safety.risk_levels import UNMEASURED, within

Lookup = Callable[[Source], Path]  # a source's folder on disk


def check_gate(
    gate: Gate, model: str, sources: Sequence[Source], folder: Lookup, register: Mapping[str, Any] | None = None
) -> list[Check]:
    """Every limit of the gate, in a fixed order; a limit on several figures has several checks.

    Args:
        sources: result files (`aloe.safety.risk_sources`).
        folder: where a source lies, for the item rows that a drop in accuracy is taken from.
        register: the assessed risk register, which `residual_max` needs.

    Raises:
        AloeError: `residual_max` or `accuracy_on` names what doesn't exist.
    """
    red = [s for s in sources if s.kind == "red_team" and model in (s.data.get("models") or {})]
    found: list[Check] = []
    path = ("escalation", "attack_success")
    several = _entries(red, model, path, "attack success by escalation", "attack_success_corrected")
    clinical = _entries(red, model, ("clinical", "pass"), "clinical scenarios passed")
    rates: list[tuple[str, float | None, Iterable[Named]]] = [
        ("asr_max", gate.asr_max, _attacks(red, sources, model)),
        ("held_out_asr_max", gate.held_out_asr_max, _held_out(red, model)),
        ("escalation_asr_max", gate.escalation_asr_max, several),
        ("over_refusal_max", gate.over_refusal_max, _over_refusal(red, sources, model)),
        ("clinical_pass_min", gate.clinical_pass_min, clinical),
        ("toxicity_max", gate.toxicity_max, _scores(sources, model, TOXICITY)),
    ]
    found += [_rate_check(name, limit, gate.by, list(figures)) for name, limit, figures in rates if limit is not None]
    if gate.third_outcomes is not None:
        found.append(_third(gate.third_outcomes, red, model))
    if gate.accuracy_drop_max is not None:
        found += _drops(gate, model, sources, folder)
    if gate.residual_max is not None:
        found += _residuals(gate.residual_max, register or {"risks": {}})
    return found


# -- rates -------------------------------------------------------------------------------------------------------------

ABOUT = {
    "asr_max": "attack success",
    "held_out_asr_max": "attack success on held-out styles and topics",
    "escalation_asr_max": "attack success by escalation",
    "over_refusal_max": "over-refusal",
    "clinical_pass_min": "clinical scenarios passed",
    "toxicity_max": "openings with a toxic continuation",
}
Named = tuple[str, Figure | None, str]  # what it is, the figure, why there is none


def _rate_check(name: str, limit: float, by: str, measured: Sequence[Named]) -> Check:
    """The worst of the figures against a limit on rates; one that is known to say nothing counts as missing."""
    least = name.endswith("_min")
    absent = next(((what, why) for what, figure, why in measured if figure is None and why), None)
    figures = [(what, figure) for what, figure, _ in measured if figure is not None]
    if absent is not None or not figures:
        reason = f": {absent[1]}" if absent else ""
        return Check(name, ABOUT[name], limit, None, False, f"{name} {limit:g}: {ABOUT[name]} was not measured{reason}")
    compared = [(_compared(figure, by, least), what, figure) for what, figure in figures]
    number, what, figure = (min if least else max)(compared, key=lambda c: c[0])
    passed = number >= limit if least else number <= limit
    return Check(
        name, what, limit, number, passed, _told(name, limit, number, what, figure, by, passed),
        figure.value, figure.low, figure.high, figure.n, figure.links,
    )  # fmt: skip


def _compared(figure: Figure, by: str, least: bool) -> float:
    return figure.value if by == "value" else figure.low if least else figure.high


def _told(name: str, limit: float, number: float, what: str, figure: Figure, by: str, passed: bool) -> str:
    least = name.endswith("_min")
    bound = f", {'lower' if least else 'upper'} 95% bound {number:.4f}," if by == "bound" else ""
    sign = {(True, False): "<=", (False, False): ">", (True, True): ">=", (False, True): "<"}[passed, least]
    note = f" ({figure.note})" if figure.note else ""
    place = f", {figure.links[-1]['file']}#{figure.links[-1]['pointer']}" if figure.links else ""
    return f"{name} {limit:g}: {what} {figure.value:.4f}{bound} {sign} {limit:g}{note} (n {figure.n}{place})"


def _attacks(red: Iterable[Source], sources: Iterable[Source], model: str) -> Iterable[Named]:
    for source in red:
        entry = source.data["models"][model]
        field = "attack_success_clustered" if entry.get("attack_success_clustered") else "attack_success"
        figure = rate_of(entry.get(field), source.link("models", model, field))
        yield "attack success", figure, ""
        told = entry.get("attack_success_corrected")
        if figure is None or not told:
            continue
        link = source.link("models", model, "attack_success_corrected")
        if blind := _blind(entry, "attack_success_corrected"):
            yield "attack success", None, blind
        else:
            yield "attack success, corrected for the judge's errors", rate_of({"n": figure.n, **told}, link), ""
    yield from _scores(sources, model, "attack_success")


def _blind(entry: Mapping[str, Any], corrected: str) -> str:
    """Why the verdicts that a rate counts say nothing; "" where nothing is known against the judge."""
    told = entry.get(corrected) or {}
    return "the judge is no better than chance on its labelled set" if told.get("usable") is False else ""


def _held_out(red: Sequence[Source], model: str) -> Iterable[Named]:
    """Both parts must have been measured, in one red team or in several: low success on new styles says nothing of new
    topics."""
    for part in ("held_out_styles", "held_out_topics"):
        words, measured = part.replace("_", " ").replace("held out", "held-out"), False
        for source in red:
            entry = source.data["models"][model]
            figure = rate_of(entry.get(part), source.link("models", model, part))
            blind = _blind(entry, "attack_success_corrected") if figure is not None else ""
            measured = measured or figure is not None
            yield f"attack success on {words}", None if blind else figure, blind
        if red and not measured:
            yield f"attack success on {words}", None, f"no verdict on {words} (n 0)"


def _over_refusal(red: Iterable[Source], sources: Iterable[Source], model: str) -> Iterable[Named]:
    yield from _entries(red, model, ("over_refusal",), "over-refusal", "over_refusal_corrected")
    yield from _scores(sources, model, "over_refusal")


def _entries(red: Iterable[Source], model: str, path: Sequence[str], what: str, corrected: str = "") -> Iterable[Named]:
    """A rate of each red team; `corrected` is where it is stated without the judge's errors."""
    for source in red:
        entry: Mapping[str, Any] = source.data["models"][model]
        rate: Any = entry
        for part in path:
            rate = (rate or {}).get(part)
        figure, blind = rate_of(rate, source.link("models", model, *path)), _blind(entry, corrected)
        yield (what, None, blind) if figure is not None and blind else (what, figure, "")


def _scores(sources: Iterable[Source], model: str, metric: str) -> Iterable[Named]:
    for source in (s for s in sources if s.kind == "scores"):
        for i, record in enumerate(source.data.get("scores") or []):
            if record["model"] == model and record["metric"] == metric:
                what = f"{metric.replace('_', ' ')} on {record['benchmark']}"
                yield what, harm_of(record, source.link("scores", i)), ""


def _third(limit: float, red: Sequence[Source], model: str) -> Check:
    """Requests without a reply or a verdict, of all that were put to the model. A count of this run, not an estimate:
    it has no interval."""
    name, worst = "third_outcomes_max", None
    for source in red:
        lost, asked = third_outcomes(source.data["models"][model])
        if asked and (worst is None or lost / asked > worst[0] / worst[1]):
            worst = lost, asked, source.link("models", model)
    if worst is None:
        return Check(name, "third outcomes", limit, None, False, f"{name} {limit:g}: no red team asked this model")
    lost, asked, link = worst
    share, passed = lost / asked, lost / asked <= limit
    text = (
        f"{name} {limit:g}: {lost} of {asked} requests had no reply or no verdict, {share:.4f} "
        f"{'<=' if passed else '>'} {limit:g} ({link['file']}#{link['pointer']})"
    )
    return Check(name, "third outcomes", limit, share, passed, text, share, None, None, asked, (link,))


def third_outcomes(entry: Mapping[str, Any]) -> tuple[int, int]:
    """(requests without reply or verdict, all requests) of one model of a red team."""
    parts = [
        (entry.get("attack_success"), entry.get("errors", 0), entry.get("unjudged", 0)),
        (entry.get("over_refusal"), entry.get("benign_errors", 0), entry.get("benign_unjudged", 0)),
    ]
    for name, rate in (("clinical", "pass"), ("escalation", "attack_success")):
        table = entry.get(name) or {}
        parts.append((table.get(rate), table.get("errors", 0), table.get("unjudged", 0)))
    lost = sum(int(errors) + int(unjudged) for _, errors, unjudged in parts)
    return lost, lost + sum(int((rate or {}).get("n") or 0) for rate, _, _ in parts)


# -- accuracy ----------------------------------------------------------------------------------------------------------


@dataclass
class _Compared:
    """What came of pairing two models: checks, the benchmarks they are on, and why others could not be paired."""

    checks: dict[tuple[str, ...], Check] = field(default_factory=dict)
    benchmarks: set[str] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)


def _drops(gate: Gate, model: str, sources: Sequence[Source], folder: Lookup) -> list[Check]:
    """Each benchmark's paired non-inferiority; every one must keep the limit, so that a gain hides no loss."""
    against, margin = str(gate.against), float(gate.accuracy_drop_max or 0)
    before: dict[Path, Side] = {}
    after: dict[Path, tuple[Side, Source]] = {}
    for source in (s for s in sources if s.kind == "scores"):
        place = folder(source)
        sides = read_scores(place) if (place / "items.parquet").is_file() else {}
        if against in sides:
            before[place] = sides[against]
        if model in sides:
            after[place] = sides[model], source
    found = _Compared()
    for place, (mine, source) in after.items():
        for at in [place] if place in before else list(before):
            _compare(gate, margin, before[at], mine, _items_link(source, place), found)
    missing = _absent(gate, model, against, before, after, found)
    if not missing:
        return list(found.checks.values())
    text = f"accuracy_drop_max {margin:g}: the drop in accuracy against {against} was not measured: {missing}"
    absent = Check("accuracy_drop_max", f"accuracy against {against}", margin, None, False, text)
    return [*found.checks.values(), absent]


def _items_link(source: Source, place: Path) -> dict[str, str]:
    """The rows that a paired difference is taken from."""
    name = source.path.rpartition("/")[0]
    file = f"{name}/items.parquet" if name else "items.parquet"
    return {"file": file, "pointer": "", "digest": digest_file(place / "items.parquet")}


def _compare(gate: Gate, margin: float, before: Side, after: Side, link: dict[str, str], found: _Compared) -> None:
    try:
        pairs, _ = pair_up(before, after, metrics=(ACCURACY,), benchmarks=gate.accuracy_on or ())
    except AloeError as cause:  # nothing in common, or under other protocols only: as good as not measured
        found.reasons.append(cause.what)
        return
    for pairing in pairs:
        x, y = pairing.before, pairing.after
        both = sorted(set(x.values) & set(y.values))
        if not both:
            continue
        clusters = [x.rows[i].cluster for i in both]
        told = non_inferiority([x.values[i] for i in both], [y.values[i] for i in both], margin, clusters)
        what = f"accuracy on {' '.join(filter(None, (y.benchmark, y.strategy)))} against {before.model}"
        if gate.by == "bound":
            passed = told.low > -margin
            held = f", lower 95% bound {told.low:+.4f}, {'above' if passed else 'not above'} -{margin:g}"
        else:
            passed = told.difference >= -margin
            held = f", {'at least' if passed else 'below'} -{margin:g}"
        found.benchmarks.add(y.benchmark)
        check = Check(
            "accuracy_drop_max", what, margin, -(told.low if gate.by == "bound" else told.difference), passed,
            f"accuracy_drop_max {margin:g}: {what} {told.difference:+.4f}{held} (n {len(both)}, {link['file']})",
            told.difference, told.low, told.high, len(both), (link,),
        )  # fmt: skip
        key = (y.benchmark, y.digest, link["file"])
        former = found.checks.get(key)  # against the same baseline in another artifact: the worse one counts
        if former is None or _drop(check) > _drop(former):
            found.checks[key] = check


def _drop(check: Check) -> tuple[float, str]:
    """Order of drops, the largest last; the text decides between equal ones, whatever their order."""
    return float(check.figure or 0.0), check.text


def _absent(
    gate: Gate, model: str, against: str, before: Mapping[Path, Any], after: Mapping[Path, Any], found: _Compared
) -> str:
    """Why there is no drop to look at, in whole or for a benchmark that was named; "" where all is there."""
    if not after or not before:
        return f"{against if after else model} has no scored items"
    if not found.checks:
        return "; ".join(dict.fromkeys(found.reasons)) or "the two have no scored item in common"
    lost = [b for b in gate.accuracy_on or () if b not in found.benchmarks]
    return f"benchmark {', '.join(lost)} was not scored for both under one protocol" if lost else ""


# -- residual risk -----------------------------------------------------------------------------------------------------


def _residuals(limits: Mapping[str, str], register: Mapping[str, Any]) -> list[Check]:
    risks = register["risks"]
    unknown = [name for name in limits if name != "*" and name not in risks]
    if unknown:
        fix = f"risks: {', '.join(risks)}, or * for all others"
        raise AloeError(f"no risk {unknown[0]!r} in the register", where="gate.residual_max", fix=fix)
    found = []
    for risk, told in risks.items():
        limit = limits.get(risk, limits.get("*"))
        if limit is None:
            continue
        residual, passed = told["residual"], within(told["residual"], limit)
        text = f"residual_max {limit}: residual risk of {risk} is {residual}"
        links = tuple(x for side in ("likelihood", "severity") for x in (told["evidence"][side] or {}).get("links", ()))
        figure = None if residual == UNMEASURED else residual
        found.append(Check("residual_max", risk, limit, figure, passed, text, links=links))
    if not found:
        limit = limits.get("*", "")
        text = f"residual_max {limit}: the register holds no risk, so none was measured"
        found.append(Check("residual_max", "residual risk", limit, None, False, text))
    return found
