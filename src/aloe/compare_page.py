"""A comparison as one self-contained HTML page: the report's style sheet, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from aloe.evaluate.compare import Comparison
from aloe.evaluate.compare_text import change, name_of, notes, number, p_text, signed, span, unit_name
from aloe.report.charts import CHAR, canvas, clip, line, short, tag, text, ticks
from aloe.terminal import neutral

WIDTH, STEP, TOP = 900.0, 26.0, 10.0
LABEL_CHAR = 7.2  # width of a character of a label, in the widest of the system's fonts
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ title }}</title>
{% include "style.html.j2" %}
<style>svg.forest { width: 100%; height: auto; max-width: 900px; min-width: 620px; }</style>
</head>
<body>
<header><p class="kind">comparison</p><h1>{{ title }}</h1>
<dl class="facts">
{% for label, value in facts %}  <div><dt>{{ label }}</dt><dd>{{ value }}</dd></div>
{% endfor %}</dl></header>
<main>
{% for unit, chart in charts %}
<section><h2>Differences, {{ unit }}</h2>
<p class="note">After minus before on the same items, with 95% intervals. An interval that holds 0 is consistent with no difference.{% if margin %} The dashed line is the margin.{% endif %}</p>
<div class="scroll">{{ chart }}</div></section>
{% endfor %}
{% for pair in pairs %}
<section><h2>{{ pair.after }} against {{ pair.before }}</h2>
<div class="scroll"><table>
<thead><tr><th>benchmark</th><th class="n">n</th><th class="n">before</th><th class="n">after</th><th class="n">difference</th><th class="n">better : worse</th><th class="n">p</th><th class="n">Holm p</th><th class="n">detectable</th>{% if margin %}<th>within {{ margin }}</th>{% endif %}</tr></thead>
<tbody>
{% for row in pair.rows %}
<tr><th scope="row">{{ row.name }}<small>{{ row.better }} is better</small>{% for note in row.notes %}<small>{{ note }}</small>{% endfor %}</th>
<td class="n">{{ row.n }}</td>{% for v in row["values"] %}<td class="n">{{ v[0] }}<small>[{{ v[1] }}, {{ v[2] }}]</small></td>{% endfor %}
<td class="n">{{ row.change }}</td><td class="n">{{ row.improved }} : {{ row.worsened }}</td><td class="n">{{ row.p }}<small>{{ row.test }}</small></td><td class="n">{{ row.holm }}</td><td class="n">{{ row.detectable }}</td>{% if margin %}<td>{{ row.verdict }}{% if row.p_worse %}<small>p {{ row.p_worse }}</small>{% endif %}</td>{% endif %}</tr>
{% endfor %}
</tbody></table></div>
{% for mean in pair.means %}<p class="note">{{ mean }}</p>
{% endfor %}
{% for row in pair.rows if row.flips %}
<details><summary>{{ row.name }}: items that changed</summary>
<div class="scroll"><table><thead><tr><th>item</th><th></th><th>before</th><th>after</th><th>right</th></tr></thead><tbody>
{% for f in row.flips %}<tr><th scope="row">{{ f.item }}</th><td>{{ "worse" if f.worse else "better" }}</td><td class="text">{{ f.before }}</td><td class="text">{{ f.after }}</td><td class="text">{{ f.gold }}</td></tr>
{% endfor %}</tbody></table></div></details>
{% endfor %}
</section>
{% endfor %}
{% if missing %}
<section><h2>Not compared</h2><ul>{% for note in missing %}<li>{{ note }}</li>{% endfor %}</ul></section>
{% endif %}
</main>
<footer><p>{{ method }}</p></footer>
</body>
</html>
"""  # noqa: E501


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("aloe.report", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def comparison_page(
    comparisons: Sequence[Comparison],
    means: Sequence[str],
    missing: Sequence[str],
    facts: Mapping[str, str],
    method: str,
) -> str:
    """The page. `means` and `missing` are lines under the tables, `facts` head the page, `method` its foot."""
    names = list(dict.fromkeys(c.before for c in comparisons)), list(dict.fromkeys(c.after for c in comparisons))
    title = f"{', '.join(names[1])} against {', '.join(names[0])}"
    units = dict.fromkeys(c.unit for c in comparisons)
    margin = next((c for c in comparisons if c.margin is not None), None)
    pairs = [
        {
            "before": before,
            "after": after,
            "rows": [_row(c) for c in comparisons if (c.before, c.after) == (before, after)],
            "means": [m for m in means if m.startswith(f"{after} against {before}:")],
        }
        for before, after in dict.fromkeys((c.before, c.after) for c in comparisons)
    ]
    page = _environment().from_string(PAGE).render(
        title=title, facts=list(facts.items()), pairs=pairs, missing=list(missing), method=method,
        charts=[(unit_name(u), forest_chart([c for c in comparisons if c.unit == u])) for u in units],
        margin=number(margin.margin, margin.unit) if margin and margin.margin is not None else "",
    )  # fmt: skip
    return neutral(page).encode("utf-8", "replace").decode("utf-8")


def _row(c: Comparison) -> dict[str, Any]:
    return {
        "name": name_of(c), "better": c.better, "notes": notes(c), "n": c.n,
        "values": [[number(v, c.unit) for v in triple] for triple in c.values], "change": change(c),
        "improved": c.improved, "worsened": c.worsened, "p": p_text(c.p_value), "holm": p_text(c.p_holm),
        "test": c.test, "detectable": "none" if c.detectable is None else number(c.detectable, c.unit),
        "verdict": c.verdict or "", "p_worse": "" if c.p_worse is None else p_text(c.p_worse), "flips": c.flips,
    }  # fmt: skip


def forest_chart(comparisons: Sequence[Comparison]) -> Markup:
    """Differences with their intervals, one line each, on one axis; the zero line is solid, the margin dashed."""
    several = len({(c.before, c.after) for c in comparisons}) > 1
    names = [f"{name_of(c)}, {c.after}" if several else name_of(c) for c in comparisons]
    left = min(320.0, max(LABEL_CHAR * len(name) for name in names) + 12)
    right, unit = WIDTH - 170.0, comparisons[0].unit
    low, high = span(comparisons)
    scale = 100.0 if unit == "share" else 1.0
    marks = [m for m in ticks(low * scale, high * scale, 6) if low * scale <= m <= high * scale]
    bottom = TOP + STEP * len(comparisons)

    def across(value: float) -> float:
        return left + (value - low) / (high - low) * (right - left)

    parts: list[Markup] = []
    for mark in marks:
        x = across(mark / scale)
        parts += [line(x, TOP, x, bottom, "grid"), text(x, bottom + 15, short(mark), "tick", "middle")]
    parts.append(line(across(0), TOP, across(0), bottom, "level"))
    for at, (c, name) in enumerate(zip(comparisons, names, strict=True)):
        y = TOP + STEP * (at + 0.5)
        parts.append(text(left - 8, y + 4, clip(name, (left - 10) * CHAR / LABEL_CHAR), "label", "end", title=name))
        if c.margin is not None:
            edge = across(-c.margin if c.better == "higher" else c.margin)
            parts.append(line(edge, y - STEP / 2, edge, y + STEP / 2, "event"))
        parts.append(line(across(c.low), y, across(c.high), y, "interval s0"))
        parts += [line(across(end), y - 5, across(end), y + 5, "interval s0") for end in (c.low, c.high)]
        said = f"{name}: {change(c)} {unit_name(unit)}"
        parts.append(tag("circle", tag("title", said), cx=across(c.difference), cy=y, r=4.5, class_="dot s0"))
        parts.append(text(WIDTH - 2, y + 4, change(c), "value", "end"))
    told = "; ".join(f"{name}: {change(c)}" for c, name in zip(comparisons, names, strict=True))
    label = f"Differences with 95% intervals, {unit_name(unit)}. {told}"
    return canvas(WIDTH, bottom + 22, label, parts, "chart forest")


def mean_line(mean: Mapping[str, Any]) -> str:
    """A mean over benchmarks as a sentence."""
    low, value, high = (signed(mean[k], mean["unit"]) for k in ("low", "difference", "high"))
    how = "each benchmark alike" if mean["weighting"] == "macro" else "each item alike"
    return (
        f"{mean['after']} against {mean['before']}: mean {mean['metric']} difference over {mean['benchmarks']} "
        f"benchmarks, {how}: {value} [{low}, {high}] {unit_name(mean['unit'])}"
    )
