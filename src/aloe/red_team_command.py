"""`aloe red-team MODEL [MODEL...] [key=value...]`: run `red_team` alone and print what it found.

What has no `=` and is no YAML file is a model. With models alone the starter requests are asked. The whole of what was
found stands in the artifact; here are the rates, the worst styles and topics, and what changed from model to model.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from aloe.errors import AloeError

WORST = 5  # styles and topics that are named
Parameters = Annotated[
    list[str] | None, typer.Argument(help="MODEL, one or more; key=value (YAML values); a YAML file of parameters.")
]


def red_team(
    parameters: Parameters = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for artifacts: OUT/<family>/<step>.")] = Path("out"),
    licence: Annotated[str, typer.Option(help="Licence of what is made.")] = "cc-by-nc-4.0",
    seed: int = 0,
    family: Annotated[str, typer.Option(help="Names the folder below OUT.")] = "red-team",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the artifact's path and errors only.")] = False,
) -> None:
    """Attack models in many styles, judge the replies, and count what gets through."""
    from aloe.cli import _run_one
    from aloe.terminal import neutral

    place = _run_one("red_team", values_of(parameters or []), out, licence, seed, family, quiet)
    if not quiet:
        result = json.loads((place / "red_team.json").read_text(encoding="utf-8"))
        columns = shutil.get_terminal_size((100, 24)).columns
        print(neutral("\n".join([*summary(result, columns), ""])))  # topics and styles are called as a set calls them
        print(f"What was said, and every table: aloe report {place}")
    print(place)


def values_of(parameters: Sequence[str]) -> dict[str, Any]:
    """The step's parameters. A model named by itself is added to `models=[...]`; without `requests` the starter set is
    asked.

    Raises:
        AloeError: no model, a model that looks like a file that isn't there, or a broken parameter.
    """
    from aloe.cli import _values

    named = [p for p in parameters if not _is_parameter(p)]
    for name in named:
        if name.endswith((".yaml", ".yml")):
            raise AloeError(
                "there is no such file of parameters", where=name, fix="check the path, or name a model, for example "
                "smollm2-135m-instruct",
            )  # fmt: skip
    values = _values([p for p in parameters if _is_parameter(p)])
    listed = values.get("models", [])
    models = [*named, *(listed if isinstance(listed, list) else [listed])]
    if not models:
        raise AloeError("no model is named", fix="aloe red-team MODEL [MODEL...] [key=value...]; see docs/red-team.md")
    return {"requests": "starter/harmful", **values, "models": models}


def _is_parameter(text: str) -> bool:
    key, sign, _ = text.partition("=")
    if sign and "/" not in key and "#" not in key:  # a server's address may hold an equals sign, a key no slash
        return True
    return text.endswith((".yaml", ".yml")) and Path(text).is_file()


# -- what is printed ---------------------------------------------------------------------------------------------------


def summary(result: Mapping[str, Any], columns: int = 100) -> list[str]:
    """The lines after a run: a table of models, the worst styles and topics of the last one, pairs, cautions."""
    models = result["models"]
    order = [m for m in result["order"] if m in models]
    lines = _table([_row(name, models[name]) for name in order], columns)
    last = order[-1]
    for title, field in (("styles", "by_style"), ("topics", "by_topic")):
        worst = _worst(models[last][field])
        if worst:
            lines += _wrapped(f"Worst {title} of {last}: {', '.join(worst)}", columns)
    for pair in result["paired"]:
        lines += _wrapped(_pair(pair), columns)
    for name in order:
        lines += _wrapped(_several(name, models[name]["attempts"]), columns)
        lines += _wrapped(_third(name, models[name]), columns)
    if result["not_asked"]:
        left = result["not_asked"]
        lines += _wrapped(f"Not asked for want of budget: {left['attempts']} attempts at {left['prompts']} prompts "
                          "of each model.", columns)  # fmt: skip
    lines += ["", "[95% interval over base requests]"]
    for caution in result["cautions"]:
        lines += _wrapped(f"Note: {caution}", columns)
    return lines


def _row(name: str, entry: Mapping[str, Any]) -> dict[str, str]:
    clinical = entry["clinical"]["pass"] if entry["clinical"] else None
    escalation = entry["escalation"]["attack_success"] if entry["escalation"] else None
    correct = entry["attack_success_corrected"]
    beside = [entry[part] for part in ("clinical", "escalation") if entry[part]]
    return {
        "model": name,
        "attack success": _share(entry["attack_success"]),
        "corrected": "-"
        if correct is None
        else _interval(correct["value"], correct["low"], correct["high"])
        if correct["usable"]
        else "unusable",
        "refused": _percent(entry["full_refusal"]["value"]),
        "in part": _percent(entry["partial_refusal"]["value"]),
        "over-refusal": _share(entry["over_refusal"]),
        **({"clinical pass": _share(clinical)} if clinical else {}),
        **({"escalation": _share(escalation)} if escalation else {}),
        "no verdict": str(entry["unjudged"] + entry["benign_unjudged"] + sum(part["unjudged"] for part in beside)),
        "errors": str(entry["errors"] + entry["benign_errors"] + sum(part["errors"] for part in beside)),
    }


def _table(rows: Sequence[Mapping[str, str]], columns: int) -> list[str]:
    """Aligned columns; one block a model where they don't fit."""
    heads = list(dict.fromkeys(head for row in rows for head in row))
    widths = [max(len(head), *(len(row.get(head, "-")) for row in rows)) for head in heads]
    if sum(widths) + 2 * (len(widths) - 1) <= columns:
        made = [heads, *([row.get(head, "-") for head in heads] for row in rows)]
        return ["  ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)).rstrip() for cells in made]
    width = max(map(len, heads[1:]))
    lines = []
    for row in rows:
        lines += [row["model"], *(f"  {head.ljust(width)}  {row[head]}" for head in heads[1:] if head in row)]
    return lines


def _worst(rates: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The highest rates above zero, ties by how much is known and by name."""
    known = [(name, r) for name, r in rates.items() if r["n"] and r["value"] > 0]
    known.sort(key=lambda x: (-x[1]["value"], -x[1]["n"], x[0]))
    return [f"{name} {_percent(r['value'])} (n = {r['n']})" for name, r in known[:WORST]]


def _pair(pair: Mapping[str, Any]) -> str:
    what = pair["metric"].replace("_", " ")
    difference = 100 * pair["difference"]
    low, high = 100 * pair["low"], 100 * pair["high"]
    rates = " -> ".join(_percent(pair[k]) for k in ("rate_before", "rate_after"))
    return (
        f"{pair['before']} -> {pair['after']}: {what} {rates}, "
        f"{difference:+.1f} points [{low:+.1f}, {high:+.1f}] on the same {pair['n']} items, p = {pair['p_holm']:.3g} "
        "(clustered, Holm)"
    )


def _third(name: str, entry: Mapping[str, Any]) -> str:
    """What the unknown would make of the rate."""
    found = entry["attack_success_bounds"]
    if not found["unknown"]:
        return ""
    return (
        f"{name}: {found['unknown']} of {found['n']} attacks have no verdict; attack success is between "
        f"{_percent(found['low'])} and {_percent(found['high'])} whatever they were."
    )


def _several(name: str, attempts: Mapping[str, Any] | None) -> str:
    """The chance that one of the replies drawn to a prompt is unsafe."""
    if attempts is None or attempts["at"][str(attempts["k"])]["value"] is None:
        return ""
    found = attempts["at"][str(attempts["k"])]
    told = _interval(found["value"], found["low"], found["high"])
    return f"{name}: at least one of {attempts['k']} replies to a prompt is unsafe: {told}, n = {found['n']}"


def _share(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return "-"
    return _interval(found["value"], found["clustered_low"], found["clustered_high"])


def _interval(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _wrapped(text: str, columns: int) -> list[str]:
    return textwrap.wrap(text, columns, subsequent_indent="  ", break_long_words=False)
