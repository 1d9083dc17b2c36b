"""How models were trained: the token budget, curves, where time and memory went, what the trainer saw and said.

Every part shows what a training step's own files state and is left out where they state nothing. Texts of pairs that a
red team made are withheld, since they hold replies judged harmful; so are the replies of a model in the midst of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aloe.report.charts import Curve, curves
from aloe.report.evidence import Evidence, Made, parents
from aloe.report.training_charts import packed_rows, stack

POINTS = 300  # of a curve; longer runs are averaged, and the caption says so
PROMPTS, LOOKS = 6, 6  # sample prompts shown, and replies to each over the run
OPEN, CLOSE = "⟦", "⟧"  # the trainer's marks around trained tokens in a plain-text preview
Line = Mapping[str, Any]
PANELS = (  # title, fields of metrics.jsonl, whether zero is drawn: one chart each, where they are there
    ("loss", ("loss",), False),
    ("reward margin", ("margin",), True),
    ("accuracy: chosen above rejected", ("accuracy",), False),
    ("rewards", ("reward_chosen", "reward_rejected"), True),
    ("drift of the chosen answers, nats a token", ("chosen_drift",), True),
    ("log-probability of the chosen answers, nats a token", ("chosen_logp",), False),
    ("estimate of the divergence from the reference, nats a token", ("kl",), True),
    ("gradient norm before clipping", ("grad_norm",), False),
    ("learning rate", ("lr",), False),
)
DRIFT = "chosen_drift"
SPEED = ("tokens a second", ("tokens_s", "trained_tokens_s"))
PHASES = (("data_s", "data"), ("forward_s", "forward"), ("backward_s", "backward"), ("optimizer_s", "optimiser"))


def trainings(evidence: Evidence) -> list[dict[str, Any]]:
    """One entry for each training step with a `metrics.jsonl` that the page may speak of."""
    found = []
    for step in evidence.speaking():
        lines = step.shelf.lines("metrics.jsonl") if step.shelf else []
        if step.shelf is None or not lines:
            continue
        summary = step.manifest.get("summary", {})
        timing = step.shelf.lines("logs/timing.jsonl")
        warnings = [str(w) for w in summary.get("warnings") or ()]
        resumed = [int(s) for s in summary.get("resumed_from") or ()]
        chunks = _chunks(summary.get("chunks"))
        found.append(
            {
                "step": step.name,
                "verb": step.verb,
                "steps": len(lines),
                "averaged": math.ceil(len(lines) / POINTS),
                "budget": _budget(summary, lines),
                "facts": [(k, summary[k]) for k in _SHOWN if summary.get(k) is not None],
                "warnings": warnings,
                "charts": _charts(step.name, lines, step.shelf.lines("evals.jsonl"), timing, warnings, resumed, chunks),
                "resumed": resumed,
                "chunks": chunks,
                "time": _time(step.name, timing),
                "memory": _memory(step),
                "samples": _samples(step, _red_team_pairs(evidence, step)),
            }
        )
    return found


_SHOWN = ("first_loss", "last_loss", "warmup_steps", "reference", "length")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _budget(summary: Line, lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Rows, steps, tokens, trained tokens and padding, from the summary or added up over the steps."""

    def told(name: str, field: str) -> int | None:
        if _number(summary.get(name)):
            return int(summary[name])
        return sum(int(x[field]) for x in lines) if all(_number(x.get(field)) for x in lines) else None

    tokens, trained = told("tokens", "tokens"), told("trained_tokens", "trained_tokens")
    rows, padding = told("rows_seen", "rows"), summary.get("padding_share")
    share = f" ({trained / tokens:.1%})" if trained is not None and tokens else ""
    facts = [
        ("rows", None if rows is None else f"{rows:,}"),
        ("steps", f"{len(lines):,}"),
        ("tokens", None if tokens is None else f"{tokens:,}"),
        ("trained tokens", None if trained is None else f"{trained:,}{share}"),
        ("padding", f"{padding:.1%}" if _number(padding) else None),
    ]
    return [(name, value) for name, value in facts if value is not None]


def _chunks(told: Any) -> list[int]:
    """Steps of each of the run's chunks; none where it had one."""
    steps = [c.get("steps") if isinstance(c, Mapping) else c for c in (told if isinstance(told, list) else ())]
    whole = [int(s) for s in steps if isinstance(s, int)]
    return whole if len(whole) > 1 else []


# -- curves -------------------------------------------------------------------------------------------------------


def _charts(
    name: str,
    lines: Sequence[Line],
    evals: Sequence[Line],
    timing: Sequence[Line],
    warnings: Sequence[str],
    resumed: Sequence[int],
    chunks: Sequence[int],
) -> list[tuple[str, Any]]:
    """(title, chart) of every panel that has values; what was measured on held-out rows is a curve of its own."""
    starts = [sum(chunks[: n + 1]) for n in range(len(chunks) - 1)]
    events = [(float(s), "resumed") for s in resumed] + [(float(s), f"chunk {n + 2}") for n, s in enumerate(starts)]
    charts = []
    for title, fields, zero in PANELS:
        series = _series(lines, fields)
        if not series:
            continue
        held = [
            (float(x["step"]), float(x[fields[0]]))
            for x in evals
            if _number(x.get("step")) and _number(x.get(fields[0]))
        ]
        if held:
            series[0] = Curve("training", series[0].points, 0)
            series.append(Curve("held-out rows", held, 1))
        falls = [(float(s), "warning") for w in warnings if fields == (DRIFT,) for s in re.findall(r"by step (\d+)", w)]
        levels = [(0.0, "")] if zero else []
        chart = curves(series, f"{name}: {title}", "step", levels, events + falls if fields == ("loss",) else falls)
        charts.append((title, chart))
    if speed := _series(timing, SPEED[1]):
        charts.append((SPEED[0], curves(speed, f"{name}: {SPEED[0]}", "step", marks=events)))
    return charts


def _series(lines: Sequence[Line], fields: Sequence[str]) -> list[Curve]:
    width = math.ceil(len(lines) / POINTS)
    there = [f for f in fields if any(_number(x.get(f)) for x in lines)]
    names = {"tokens_s": "tokens", "trained_tokens_s": "trained tokens"}
    return [Curve(names.get(f, f.replace("_", " ")), _averaged(lines, f, width), at) for at, f in enumerate(there)]


def _averaged(lines: Sequence[Line], field: str, width: int) -> list[tuple[float, float]]:
    """(step, value), each the mean of `width` consecutive steps; a group without a finite value is a gap."""
    points = []
    for start in range(0, len(lines), width):
        group = lines[start : start + width]
        values = [float(x[field]) for x in group if _number(x.get(field))]
        at = group[0].get("step", start)
        points.append((float(at), sum(values) / len(values) if values else math.nan))
    return points


# -- time and memory ----------------------------------------------------------------------------------------------


def _time(name: str, timing: Sequence[Line]) -> dict[str, Any] | None:
    """Seconds by phase over the steps that state all of them; `rows` are (phase, seconds, share, seconds a step)."""
    told = [t for t in timing if all(_number(t.get(f)) for f, _ in PHASES)]
    sums = [(phase, sum(max(0.0, float(t[f])) for t in told)) for f, phase in PHASES]
    whole = sum(float(t["seconds"]) for t in told if _number(t.get("seconds")))
    rest = whole - sum(s for _, s in sums)
    if rest > 0.005 * whole:
        sums.append(("other", rest))
    total = sum(s for _, s in sums)
    if not told or total <= 0:
        return None
    rows = [(phase, s, s / total, s / len(told)) for phase, s in sums]
    said = [(phase, s, f"{share:.1%}") for phase, s, share, _ in rows]
    return {"bar": stack(said, f"{name}: where time went"), "rows": rows, "steps": len(told)}


def _memory(step: Made) -> dict[str, Any] | None:
    """The plan by part against the peak that was measured; None where no plan is told."""
    told = step.manifest.get("summary", {}).get("memory")
    if not isinstance(told, Mapping) or not isinstance(told.get("plan"), Mapping):
        return None
    plan = {str(k): int(v) for k, v in told["plan"].items() if _number(v)}
    parts = sorted(plan.items(), key=lambda part: (-part[1], part[0]))
    planned = int(told["planned"]) if _number(told.get("planned")) else sum(v for _, v in parts)
    peak = next((told[k] for k in ("peak", "peak_bytes") if _number(told.get(k))), None)
    if peak is None and _number(step.manifest.get("peak_memory_bytes")):
        peak = step.manifest["peak_memory_bytes"]
    mark = None if peak is None else (float(peak), f"measured peak {peak / 1e9:.2f} GB")
    return {
        "bar": stack([(k, float(v), f"{v / 1e9:.3f} GB") for k, v in parts], f"{step.name}: memory plan", mark),
        "rows": parts,
        "planned": planned,
        "peak": None if peak is None else int(peak),
        "available": int(told["available"]) if _number(told.get("available")) else None,
        "way": str(told.get("way") or ""),
    }


# -- what the trainer saw and said --------------------------------------------------------------------------------


def previews(evidence: Evidence) -> list[dict[str, Any]]:
    """Rows with their masks, and packed rows, of every training step; texts of a red team's pairs are withheld."""
    found = []
    for step in evidence.speaking():
        seen = step.shelf.json("preview.json") if step.shelf else None
        text = step.shelf.text("preview.txt") if step.shelf and not seen else None
        if not seen and not text:
            continue
        harmful = _red_team_pairs(evidence, step)
        packing = list((seen or {}).get("packing") or ())
        found.append(
            {
                "step": step.name,
                "withheld": harmful,
                "rows": [] if harmful else [_row(r) for r in (seen or {}).get("rows") or ()],
                "pieces": _pieces(text) if text and not harmful else [],
                "packing": packed_rows(packing, f"{step.name}: the first packed rows"),
            }
        )
    return found


def _row(row: Line) -> dict[str, Any]:
    """A rendered example: its parts by branch, neighbours of one kind put together."""
    branches: dict[int, list[tuple[str, bool]]] = {}
    for part in row.get("parts") or ():
        branches.setdefault(int(part["branch"]), []).append((str(part["text"]), bool(part["trained"])))
    names = (
        {0: "prompt", 1: "chosen", 2: "rejected"}
        if set(branches) == {0, 1, 2}
        else {0: "" if len(branches) == 1 else "prompt"}
    )
    return {
        "key": str(row.get("key") or ""),
        "tokens": row.get("tokens"),
        "trained": row.get("trained"),
        "branches": [(names.get(b, f"branch {b}"), pieces) for b, pieces in sorted(branches.items())],
    }


def _red_team_pairs(evidence: Evidence, step: Made) -> list[str]:
    """Inputs of a training step that hold, or may hold, harmful replies."""
    sources = [evidence.steps[p] for p in parents(step.manifest) if p in evidence.steps]
    unknown = [s.name for s in sources if not s.verb and s.manifest.get("kind") == "preferences"]
    return [s.name for s in sources if s.verb == "red_team_pairs"] + unknown


def _pieces(text: str) -> list[tuple[str, bool]]:
    """Split at the trainer's marks, from the first row on; a mark inside a row's own text shifts that row's colours."""
    pieces = []
    for at, part in enumerate(text[max(text.find("==="), 0) :].split(OPEN)):
        inside, sign, rest = part.partition(CLOSE)
        if at == 0 or not sign:
            pieces.append((part, False))
        else:
            pieces += [(inside, True), (rest, False)]
    return [(words, trained) for words, trained in pieces if words]


def _samples(step: Made, harmful: Sequence[str]) -> dict[str, Any] | None:
    """Replies over the run by prompt, in the order asked: (step, reply, how it ended)."""
    lines = step.shelf.lines("samples.jsonl") if step.shelf else []
    if not lines:
        return None
    by_prompt: dict[str, list[tuple[int, str, str]]] = {}
    for line in lines:
        reply = str(line.get("reply", line.get("text", "")))
        cut = "cut at the length" if line.get("finish") == "length" else ""
        by_prompt.setdefault(_asked(line.get("prompt")), []).append((int(line.get("step") or 0), reply, cut))
    looks = max(len(replies) for replies in by_prompt.values())
    shown = [(prompt, list(_spread(replies))) for prompt, replies in list(by_prompt.items())[:PROMPTS]]
    return {
        "withheld": list(harmful),
        "prompts": [] if harmful else shown,
        "left_out": not harmful and (len(by_prompt) > PROMPTS or looks > LOOKS),
        "total": len(lines),
    }


def _spread(replies: Sequence[tuple[int, str, str]]) -> Iterator[tuple[int, str, str]]:
    """At most `LOOKS` replies, evenly over the run, the first and the last among them."""
    last = len(replies) - 1
    for at in sorted({round(i * last / max(1, LOOKS - 1)) for i in range(LOOKS)}):
        yield replies[at]


def _asked(prompt: Any) -> str:
    """A prompt as text: as it is, or its turns."""
    if isinstance(prompt, list):
        turns = [m for m in prompt if isinstance(m, Mapping)]
        if len(turns) == 1:
            return str(turns[0].get("content", ""))
        return "\n\n".join(f"{m.get('role', '')}: {m.get('content', '')}" for m in turns)
    return str(prompt if prompt is not None else "")
