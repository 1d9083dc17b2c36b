"""The study's section of docs/results.md: tables, a forest plot, and one paragraph a question, all from the figures.

Sentences are chosen by rule: a difference is called one where its interval leaves out 0 and Holm's adjusted p is at
most 5%; otherwise the smallest detectable effect is said beside it. No sentence knows what it hopes for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results_evaluation import place
from results_study_plot import forest

Found = dict[str, Any]
DOCS = Path(__file__).parents[1] / "docs"
PLOT = "study.svg"
ALPHA = 0.05
NAMES = {"nll_byte": "NLL of the right text, nats a byte", "accuracy_norm": "accuracy by option texts"}


def study(data: Found) -> list[str]:
    """All lines of the section; writes the plot beside the page."""
    lines = [
        "## The study: four questions", "",
        f"Machine: {place(data['machine'])}. Command: `{data['command']}`, see [the study](study.md). One seed; "
        f"intervals are over items. {' '.join(sizes(f, b) for f, b in data['budgets'].items())}",
    ]  # fmt: skip
    if data["missing"]:
        lines += ["", f"Not run: {', '.join(data['missing'])}."]
    rows = [c for name in ("rq1", "rq2", "rq2_safety", "rq4") for c in data.get(name, {}).get("comparisons", [])]
    if rows:
        (DOCS / PLOT).write_text(forest([r for r in rows if r["unit"] == "share"]), encoding="utf-8")
        lines += ["", f"![Paired differences with 95% intervals]({PLOT})"]
    for title, name, part in (
        ("RQ1: what do instruction tuning, chain of thought and merging add?", "rq1", rq1),
        ("RQ2: does alignment improve safety without losing accuracy?", "rq2", rq2),
        ("RQ3: do prompting strategies help?", "rq3", rq3),
        ("RQ4: size, accuracy and safety", "rq4", rq4),
    ):
        lines += ["", f"### {title}", "", *(part(data) if name in data or name == "rq3" else ["Not run."])]
    return [*lines, "", "### What it cost", "", *cost(data)]


def sizes(family: str, budget: Found) -> str:
    """How large a recipe was run."""
    told = f"Sizes of {family}: by `--budget` for {budget['budget_seconds'] / 3600:.1f} h"
    by_hand = ", ".join(f"`{field}` {value}" for field, value in budget["set_by_hand"].items())
    return f"{told}; set by hand over it: {by_hand}." if by_hand else f"{told}."


# -- the questions -------------------------------------------------------------------------------------------------


def rq1(data: Found) -> list[str]:
    part = data["rq1"]
    return [paragraph(part["comparisons"]), "", *scores(part["scores"]), "", *differences(part["comparisons"])]


def rq2(data: Found) -> list[str]:
    accuracy = [c for c in data["rq2"]["comparisons"] if c["metric"] in ("accuracy", "accuracy_norm")]
    lines = [f"Accuracy: {paragraph(accuracy)} {margins(accuracy, data['margin'])}"]
    if "rq2_safety" in data:
        lines += ["", f"Bias, toxicity and factuality: {paragraph(data['rq2_safety']['comparisons'])}"]
    if "rq2_red_team" in data:
        lines += ["", f"Attacks: {attacked(data['rq2_red_team'])}", "", *red_team_table(data["rq2_red_team"])]
    lines += ["", *differences(data["rq2"]["comparisons"])]
    if "rq2_safety" in data:
        part = data["rq2_safety"]
        lines += ["", *scores(part["scores"]), "", *differences(part["comparisons"])]
    return lines


def rq3(data: Found) -> list[str]:
    lines = strategies(data["rq3"]) if "rq3" in data else ["Strategies on the largest model: not run."]
    if not data.get("rq3_rotations"):
        return lines
    lines += [
        "", "The options in every order, against the file's order alone (likelihood of letters, mean probability "
        "over the orders):", "", "| model | benchmark | n | file's order | all orders | difference |",
        "|---|---|---:|---:|---:|---|",
    ]  # fmt: skip
    for r in data["rq3_rotations"]:
        lines.append(
            f"| {short(r['model'])} | {r['benchmark']} | {r['n']} | {100 * r['file_order']:.1f} | "
            f"{100 * r['all_orders']:.1f} | {change(r, 'share')} |"
        )
    return lines


def strategies(part: Found) -> list[str]:
    """Each strategy, and what more members bring and cost."""
    lines = [f"Model: {short(part['model'])}. {paragraph(part['comparisons'])}", "", *scores(part["scores"])]
    for strategy, curve in part["curves"].items():
        lines += [
            "", f"Accuracy of {strategy} by the number of members that vote:", "",
            "| members | accuracy [95% interval] | prompt tokens an item | written tokens an item |",
            "|---:|---|---:|---:|",
        ]  # fmt: skip
        lines += [
            f"| {at['n']:.0f} | {cell(at, 'share')} | {at['prompt_tokens']:.0f} | {at['completion_tokens']:.0f} |"
            for at in curve
        ]
    return [*lines, "", *differences(part["comparisons"])]


def rq4(data: Found) -> list[str]:
    part = data["rq4"]
    return [paragraph(part["comparisons"]), "", *scores(part["scores"]), "", *differences(part["comparisons"])]


# -- sentences -----------------------------------------------------------------------------------------------------


def paragraph(comparisons: Sequence[Found]) -> str:
    """What was found, what was not, and what could not have been."""
    if not comparisons:
        return "Nothing was compared."
    found = [c for c in comparisons if is_found(c)]
    rest = [c for c in comparisons if not is_found(c)]
    told = []
    for c in found:
        way = "better" if (c["difference"] > 0) == (c["better"] == "higher") else "worse"
        told.append(f"{question(c)}: {way} by {change(c, c['unit'])} (n {c['n']}, Holm p {p(c['p_holm'])}).")
    if not found:
        told.append("No difference was found.")
    if rest:
        shares = [c for c in rest if c["unit"] == "share"]
        reach = max((max(abs(c["low"]), abs(c["high"])) for c in shares), default=None)
        known = [c["detectable"] for c in shares if c["detectable"]]
        names = "the others" if found else f"{len(rest)} comparisons"
        told.append(f"Of {names}, no interval leaves out 0 after adjustment.")
        if reach is not None:
            told.append(
                f"The intervals of shares among them reach to {100 * reach:.1f} points, so that much isn't excluded."
            )
        if known and len(known) == len(shares):
            told.append(
                f"With 80% power, {100 * min(known):.1f} to {100 * max(known):.1f} points would have been found."
            )
    return " ".join(told)


def is_found(c: Found) -> bool:
    apart = c["low"] > 0 or c["high"] < 0
    return bool(apart and c["p_holm"] <= ALPHA)


def margins(comparisons: Sequence[Found], margin: float) -> str:
    """Which alignment steps are shown to cost no more than the margin."""
    told = [c for c in comparisons if c.get("verdict")]
    if not told:
        return ""
    good = [question(c) for c in told if c["verdict"] == "non-inferior"]
    points = f"{100 * margin:g} point"
    if not good:
        return f"Non-inferiority at {points} is shown for none of {len(told)}."
    return f"Non-inferior at {points}: {'; '.join(good)} ({len(good)} of {len(told)})."


def attacked(part: Found) -> str:
    """Attack success and over-refusal, first against last."""
    told = []
    for pair in part["paired"]:
        if pair["n"]:
            apart = "" if (pair["low"] or 0) > 0 or (pair["high"] or 0) < 0 else ", which may be none"
            rates = f"{100 * pair['rate_before']:.1f} → {100 * pair['rate_after']:.1f}"
            what = f"{pair['metric'].replace('_', ' ')} {short(pair['before'])} → {short(pair['after'])}"
            told.append(f"{what}: {rates}, {change(pair, 'share')} (n {pair['n']}){apart}")
    return "; ".join(told) + "." if told else "nothing was asked."


# -- tables --------------------------------------------------------------------------------------------------------


def scores(records: Sequence[Found]) -> list[str]:
    """What was measured down, models across."""
    normed = {r["benchmark"] for r in records if r["metric"] == "accuracy_norm"}
    left = ("nll_token", "text_accuracy", "accuracy_byte")
    kept = [
        r for r in records if r["metric"] not in left and (r["metric"] != "accuracy" or r["benchmark"] not in normed)
    ]
    measures = list(dict.fromkeys((r["benchmark"], r["strategy"], r["metric"]) for r in kept))
    models = list(dict.fromkeys(r["model"] for r in kept))
    by = {(r["model"], r["benchmark"], r["strategy"], r["metric"]): r for r in kept}
    lines = [f"| measure | {' | '.join(map(short, models))} |", f"|---|{'---|' * len(models)}"]
    for benchmark, strategy, metric in measures:
        how = strategy if strategy not in (None, "", "likelihood", "plain") else ""
        found = [by.get((model, benchmark, strategy, metric)) for model in models]
        shown = [f"{cell(r, r['unit'])} n={r['n']}{lost(r)}" if r else "" for r in found]
        lines.append(
            f"| {' '.join(filter(None, (benchmark, how)))}, {NAMES.get(metric, metric)} | {' | '.join(shown)} |"
        )
    return lines


def lost(record: Found) -> str:
    return f", {record['unparsed']} unparsed" if record.get("unparsed") else ""


def differences(comparisons: Sequence[Found]) -> list[str]:
    lines = [
        "| comparison | measure | n | difference [95% interval] | detectable | p (Holm) |",
        "|---|---|---:|---|---:|---:|",
    ]
    for c in comparisons:
        reach = "" if c["detectable"] is None else figure(c["detectable"], c["unit"])
        verdict = f", {c['verdict']}" if c.get("verdict") else ""
        lines.append(
            f"| {short(c['question'])} | {c['benchmark']}, {NAMES.get(c['metric'], c['metric'])} | {c['n']} | "
            f"{change(c, c['unit'])}{verdict} | {reach} | {p(c['p_holm'])} |"
        )
    return lines


def red_team_table(part: Found) -> list[str]:
    names = ("attack success", "corrected for the judge", "full refusal", "over-refusal", "clinical scenarios passed")
    lines = [f"| model | {' | '.join(names)} | no verdict |", f"|---|{'---|' * len(names)}---:|"]
    for name, m in part["models"].items():
        right = m["attack_success_corrected"] or {}
        fixed = cell(right, "share") if right.get("value") is not None else "not known"
        clinical = (m["clinical"] or {}).get("pass") or {}
        cells = [
            counted(m["attack_success"]),
            fixed,
            counted(m["full_refusal"]),
            counted(m["over_refusal"]),
            counted(clinical),
        ]
        lines.append(f"| {short(name)} | {' | '.join(cells)} | {m['unjudged'] + m['errors']} |")
    styles, judge = ", ".join(part["styles"]), part["judge"]
    about = (
        f"{part['base_requests']} held-out requests in the styles {styles}; judge: {judge['name']} v{judge['version']}."
    )
    return [*lines, "", about]


def counted(rate: Found | None) -> str:
    if not rate or rate.get("value") is None:
        return "not measured"
    return f"{cell(rate, 'share')} n={rate['n']}"


def cost(data: Found) -> list[str]:
    """Steps with seconds, tokens and memory; energy and carbon as far as they are known."""
    lines = ["| recipe | step | verb | seconds | tokens | peak memory |", "|---|---|---|---:|---:|---:|"]
    for family, steps in data["steps"].items():
        for name, s in steps.items():
            lines.append(
                f"| {family} | {name} | {s['verb']} | {s['seconds']:.0f} | {sum(s['tokens'].values()):,} | "
                f"{s['peak_memory_bytes'] / 1e9:.1f} GB |"
            )
    f = data["footprint"]
    lines += ["", data["note"]] if data.get("note") else []
    if f["kwh"] is None:
        return [*lines, "", f"{f['hours']:.2f} hours in all. Energy: no counter on this machine and no power stated."]
    power, grid = f["power_watts"], f["intensity_g_per_kwh"]
    energy = f"{f['hours']:.2f} hours in all, {f['kwh']:.3f} kWh ({power['value']:g} W, {power['source']})"
    return [*lines, "", f"{energy}, {f['grams_co2e']:.0f} g CO2e at {grid['value']:g} g/kWh ({grid['source']})."]


# -- figures -------------------------------------------------------------------------------------------------------


def figure(value: float, unit: str) -> str:
    return f"{100 * value:.1f}" if unit == "share" else f"{value:.3f}"


def cell(rate: Found, unit: str) -> str:
    if rate.get("value") is None:
        return "not measured"
    text = figure(rate["value"], unit)
    if rate.get("low") is None or rate.get("high") is None:
        return text
    return f"{text} [{figure(rate['low'], unit)}, {figure(rate['high'], unit)}]"


def change(c: Found, unit: str) -> str:
    """`+1.2 [-0.4, +2.8]`, in points where the unit is a share."""
    scale, digits = (100, 1) if unit == "share" else (1, 3)
    value, low, high = (c[k] for k in ("difference", "low", "high"))
    ends = "" if low is None or high is None else f" [{scale * low:+.{digits}f}, {scale * high:+.{digits}f}]"
    return f"{scale * value:+.{digits}f}{ends}"


def p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def question(c: Found) -> str:
    return f"{short(c['question'])}, {c['benchmark']} ({NAMES.get(c['metric'], c['metric'])})"


def short(text: str) -> str:
    """Model names without folders and file endings."""
    return " ".join(Path(w).name.removesuffix(".gguf") if "/" in w else w for w in text.split(" "))
