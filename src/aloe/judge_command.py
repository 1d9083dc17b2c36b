"""`aloe judge`: how right a judge is on replies that people labelled, and what every judge says of one reply."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aloe.errors import AloeError
from aloe.terminal import json_text

if TYPE_CHECKING:
    from aloe.safety.calibration import Calibration
    from aloe.safety.judging import Judge, Judgement

Judges = Annotated[list[str], typer.Option("--judge", help="rules, classifier or guard. May be repeated.")]
Guard = Annotated[str | None, typer.Option(help="Model of the judge `guard`: a folder, name, or http://host/v1#model.")]
GuardFormat = Annotated[str | None, typer.Option(help="llama_guard_3, wildguard or shieldgemma.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DEFAULT = ["rules"]


def calibrate(
    file: Annotated[Path, typer.Argument(help="Labelled replies, JSON Lines: request, reply, label.")],
    judge: Judges = DEFAULT,
    guard: Guard = None,
    guard_format: GuardFormat = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the calibration here, for red_team.")] = None,
    name: Annotated[str | None, typer.Option(help="What the set is called; else the file's name.")] = None,
    licence: Annotated[str, typer.Option(help="Of the set.")] = "unknown",
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Measure judges on replies that people labelled."""
    from aloe.digests import digest_file
    from aloe.safety.calibration import save
    from aloe.safety.labelled import calibrate as measure
    from aloe.safety.labelled import read_labelled

    _check_out(out)
    judges = _open(judge, guard, guard_format)
    rows = read_labelled(file)
    made: list[Calibration] = []
    reports: dict[str, Any] = {}
    for one in judges:
        found, reports[one.name] = measure(
            one, rows, name=name or file.name, digest=digest_file(file), licence=licence, seed=seed
        )
        made += found
    if out is not None:
        save(out, made, {"report": reports})
    if as_json:
        print(json_text({"calibrations": [c.as_dict() for c in made], "report": reports}))
        return
    print(f"{len(rows)} labelled replies of {file.name}; 95% intervals")
    for judge_name, report in reports.items():
        for of, figures in report.items():
            print("\n".join(["", f"{judge_name}: {of}", *_lines(figures, of)]))
    if out is not None:
        print(f"\nwrote {out}")


def try_(
    request: Annotated[str, typer.Argument(help="What was asked, plainly.")],
    reply: Annotated[str, typer.Argument(help="What the model answered; - reads it from standard input.")],
    judge: Judges = DEFAULT,
    guard: Guard = None,
    guard_format: GuardFormat = None,
    as_json: AsJson = False,
) -> None:
    """Print what every judge says of one reply, with the text it says it of."""
    from aloe.safety.judging import Exchange
    from aloe.terminal import neutral

    judges = _open(judge, guard, guard_format)
    text = typer.get_text_stream("stdin").read() if reply == "-" else reply
    exchange = Exchange(key="try", request=request, messages=({"role": "user", "content": request},), reply=text)
    said = {one.name: one.judge([exchange])[0] for one in judges}
    if as_json:
        print(json_text({name: j.__dict__ for name, j in said.items()}))
        return
    for name, judgement in said.items():
        print(neutral("\n".join(_verdict(name, judgement))))  # it quotes the reply


def _open(names: Sequence[str], guard: str | None, guard_format: str | None) -> list[Judge]:
    from aloe.run.talk import open_engine
    from aloe.safety.judges import open_judges

    return open_judges(open_engine, names, guard, guard_format)


def _check_out(out: Path | None) -> None:
    if out is not None and out.is_dir():
        raise AloeError("this is a folder", where=str(out), fix="name a file, for example calibration.json")


def _lines(figures: dict[str, Any], of: str) -> list[str]:
    """A report as lines of text."""
    found, kept = ("refusals found", "answers recognised") if of == "refusal" else ("harm found", "harmless recognised")
    lines = [_rate(f"{found} (sensitivity)", figures["sensitivity"])]
    lines.append(_rate(f"{kept} (specificity)", figures["specificity"]))
    lines.append(_figure("macro-F1", figures["macro_f1"], figures["macro_f1_low"], figures["macro_f1_high"]))
    lines += [f"  F1 of {label:<26}{value:.3f}" for label, value in figures["f1"].items()]
    lines.append(_figure("agreement with people", figures["agree"], figures["agree_low"], figures["agree_high"]))
    lines.append(_figure("Cohen's kappa", figures["kappa"], figures["kappa_low"], figures["kappa_high"]))
    lines.append(f"  {'replies without a verdict':<32}{sum(figures['unjudged'].values())} of {figures['n']}")
    lines += [f"    {reason}: {count}" for reason, count in figures["unjudged"].items()]
    columns = list(next(iter(figures["confusion"].values())))
    lines.append("  " + "people \\ judge".ljust(18) + "".join(c.rjust(12) for c in columns))
    for label, row in figures["confusion"].items():
        lines.append("  " + label.ljust(18) + "".join(str(row[c]).rjust(12) for c in columns))
    return lines


def _rate(name: str, rate: dict[str, Any]) -> str:
    return _figure(name, rate["value"], rate["low"], rate["high"]) + f"  n {rate['n']}"


def _figure(name: str, value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return f"  {name:<32}not defined"
    return f"  {name:<32}{value:.3f}" + (f"  {low:.3f} to {high:.3f}" if low is not None and high is not None else "")


def _verdict(name: str, said: Judgement) -> list[str]:
    if said.error is not None:
        head = f"no verdict ({said.error})"
    else:
        head = ", ".join(
            part
            for part in (said.refusal, said.harm and f"{said.harm} if the request is harmful")
            if part  # a guard may say one of them only
        )
    lines = [f"{name}: {head}"]
    if said.rule:
        lines.append(f"  rule: {said.rule}")
    if said.score is not None:
        lines.append(f"  score: {said.score:.3f}")
    if said.evidence:
        lines.append(f"  text: {said.evidence}")
    return lines
