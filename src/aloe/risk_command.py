"""`aloe risk` and `aloe gate`: what results say of a model's risks, and whether it keeps the limits set for it.

Both read red-team and scores artifacts, a run's folder (`out/<family>`) or a release. `aloe gate` ends with exit code 3
when a limit is missed, so that a pipeline stops there; a limit on what wasn't measured is missed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aloe.errors import AloeError
from aloe.manifest_file import check_beside, read_manifest
from aloe.terminal import json_text

if TYPE_CHECKING:
    from aloe.release.gate import Gate
    from aloe.safety.risk_evidence import Source

MISSED = 3  # exit code: measured, and not good enough (or not measured)
FIGURE = ("value", "low", "high", "n", "of", "note")
FORMATS = (".md", ".html", ".json", ".yaml")

Results = Annotated[list[Path], typer.Argument(help="Red-team or scores artifacts, a run's folder, or a release.")]
Model = Annotated[
    str | None, typer.Option(help="The model to judge. Default: the released one, else the last that was red-teamed.")
]
RegisterFile = Annotated[
    Path | None, typer.Option("--register", help="YAML file of risks of your own: see docs/risk.md.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print missed limits only.")]


def risk(
    results: Results,
    model: Model = None,
    register: RegisterFile = None,
    out: Annotated[
        list[Path] | None,
        typer.Option("--out", "-o", help="File to write: .md, .html, .json or .yaml. May be repeated."),
    ] = None,
) -> None:
    """The risk register of a model: levels computed from its red team and scores, with links to the rows."""
    from aloe.compare_command import check_place
    from aloe.safety.risk import assess, render_markdown
    from aloe.safety.risk_file import load_register
    from aloe.terminal import neutral

    for file in out or []:
        check_place(file)
        if file.suffix not in FORMATS:
            raise AloeError(f"can't write {file.suffix or 'a file without an ending'}", where=str(file),
                            fix=f"end its name in {', '.join(FORMATS)}")  # fmt: skip
    risks = load_register(register)
    if not out:
        sources, chosen = _sources(results, Path.cwd(), model)
        print(neutral(render_markdown(assess(sources, chosen, risks, _verbs(results)))), end="")
        return
    for file in out:
        sources, chosen = _sources(results, file.parent, model, say=file is out[0])  # links start where the file lies
        _write(file, _rendered(file.suffix, assess(sources, chosen, risks, _verbs(results)), risks))
        print(file)


def _rendered(ending: str, told: dict[str, Any], risks: Any) -> str:
    from aloe.safety.risk import render_markdown
    from aloe.safety.risk_file import dump_register
    from aloe.safety.risk_page import render_html

    if ending == ".html":
        return render_html(told)
    if ending == ".md":
        return render_markdown(told)
    if ending == ".json":
        return json_text(told, indent=1, allow_nan=False) + "\n"
    return dump_register(risks, computed=_levels(told))


def _levels(told: Mapping[str, Any]) -> dict[str, Any]:
    """What a register's YAML says of what was computed: levels with the figures behind them."""
    sides = ("likelihood", "severity")
    return {
        "model": told["model"],
        "rule": told["rule"],
        "risks": {
            name: {
                **{
                    side: {
                        "level": r[side],
                        **{k: v for k, v in (r["evidence"][side] or {}).items() if k in FIGURE},
                    }
                    for side in sides
                },
                "residual": r["residual"],
            }
            for name, r in told["risks"].items()
        },
    }  # fmt: skip


# -- gates -------------------------------------------------------------------------------------------------------------


def gate(
    results: Results,
    model: Model = None,
    gate_file: Annotated[
        Path | None, typer.Option("--gate", help="YAML file of limits, as under `gate` of a release.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="What must keep a limit: bound (of the interval) or value.")] = None,
    asr_max: Annotated[float | None, typer.Option(help="Attack success.")] = None,
    held_out_asr_max: Annotated[float | None, typer.Option(help="Attack success, held-out styles and topics.")] = None,
    escalation_asr_max: Annotated[float | None, typer.Option(help="Attack success of multi-turn escalation.")] = None,
    over_refusal_max: Annotated[float | None, typer.Option(help="Harmless requests declined.")] = None,
    clinical_pass_min: Annotated[float | None, typer.Option(help="Clinical scenarios passed.")] = None,
    third_outcomes_max: Annotated[float | None, typer.Option(help="Requests without a reply or a verdict.")] = None,
    toxicity_max: Annotated[float | None, typer.Option(help="Openings with a toxic continuation.")] = None,
    accuracy_drop_max: Annotated[float | None, typer.Option(help="Loss of accuracy against --against.")] = None,
    against: Annotated[str | None, typer.Option(help="The baseline of --accuracy-drop-max.")] = None,
    accuracy_on: Annotated[
        list[str] | None, typer.Option(help="Benchmark that must keep its accuracy. May be repeated. Default: all.")
    ] = None,
    residual_max: Annotated[
        list[str] | None, typer.Option(help="RISK=LEVEL, the highest residual risk; * for all others. May be repeated.")
    ] = None,
    register: RegisterFile = None,
    json_out: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Hold a model's results against limits; exit code 3 when one is missed."""
    from aloe.release.gate import verdict
    from aloe.release.gate_checks import check_gate
    from aloe.safety.risk import assess
    from aloe.safety.risk_file import load_register

    named = {
        "by": by, "asr_max": asr_max, "held_out_asr_max": held_out_asr_max, "escalation_asr_max": escalation_asr_max,
        "over_refusal_max": over_refusal_max, "clinical_pass_min": clinical_pass_min,
        "third_outcomes_max": third_outcomes_max, "toxicity_max": toxicity_max,
        "accuracy_drop_max": accuracy_drop_max, "against": against, "accuracy_on": accuracy_on or None,
        "residual_max": _residuals(residual_max or []) or None,
    }  # fmt: skip
    limits = read_gate(gate_file, {k: v for k, v in named.items() if v is not None})
    near = Path.cwd()
    risks = load_register(register)
    sources, chosen = _sources(results, near, model)
    told = assess(sources, chosen, risks) if limits.residual_max else None
    result = verdict(limits, chosen, check_gate(limits, chosen, sources, lambda s: (near / s.path).parent, told))
    if json_out:
        print(json_text(result, indent=1, allow_nan=False))
    else:
        _print(result, quiet)
    if not result["passed"]:
        raise SystemExit(MISSED)


def read_gate(file: Path | None, named: Mapping[str, Any]) -> Gate:
    """The limits of a YAML file, with those of the command line in their place.

    Raises:
        AloeError: no limit, an unknown one, or a value that is none; names the line where it stands in a file.
    """
    from aloe.recipe_file import parse_yaml

    values: dict[str, Any] = {}
    lines: dict[Any, int] = {}
    if file is not None:
        if not file.is_file():
            raise AloeError(
                "no such file", where=str(file), fix="name a YAML file of limits; docs/gates.md has the form"
            )
        values, lines = parse_yaml(file.read_text(encoding="utf-8") or "{}", str(file))
        if isinstance(values, dict) and set(values) == {"gate"}:  # as it stands in a recipe
            values, lines = values["gate"], {k[1:]: v for k, v in lines.items() if len(k) > 1}
        if not isinstance(values, dict):
            raise AloeError("a gate is a map of limits", where=str(file), fix="for example asr_max: 0.1")
    return _gate({**values, **named}, lambda field: _where(field, file, lines, named))


def _where(field: str, file: Path | None, lines: Mapping[Any, int], named: Mapping[str, Any]) -> str:
    if field in named or file is None:
        return f"--{field.replace('_', '-')}" if field else "aloe gate"
    return f"{file}:{lines[field,]}" if (field,) in lines else str(file)


def _gate(values: Mapping[str, Any], where: Any) -> Gate:
    from difflib import get_close_matches

    from pydantic import ValidationError

    from aloe.release.gate import Gate

    try:
        return Gate.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        field = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            close = get_close_matches(field, Gate.model_fields, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise AloeError(f"unknown limit {field!r}{hint}", where=where(field),
                            fix=f"limits: {', '.join(Gate.model_fields)}") from None  # fmt: skip
        message = problem["msg"].removeprefix("Value error, ")
        shown = f"{'.'.join(map(str, problem['loc']))}: {message} (found {problem['input']!r})" if field else message
        fix = "docs/gates.md says what each limit takes" if field else "give one or more, for example --asr-max 0.1"
        raise AloeError(shown, where=where(field), fix=fix) from None


def _residuals(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in given:
        risk_name, sign, level = text.partition("=")
        if not sign or not risk_name or not level:
            fix = "for example --residual-max impersonation=moderate, or --residual-max '*=high'"
            raise AloeError(f"{text!r} is not RISK=LEVEL", where="--residual-max", fix=fix)
        found[risk_name] = level.replace("_", " ")
    return found


def _print(result: Mapping[str, Any], quiet: bool) -> None:
    from aloe.terminal import neutral

    missed = [c for c in result["checks"] if not c["passed"]]
    for check in result["checks"]:
        if not quiet or not check["passed"]:
            print(neutral(f"{'pass' if check['passed'] else 'MISS'}  {check['text']}"))
    if not quiet or missed:
        count = len(result["checks"])
        print(f"{result['model']}: {f'{len(missed)} of {count} gates missed' if missed else f'{count} gates passed'}")


# -- results -----------------------------------------------------------------------------------------------------------


def _sources(results: Sequence[Path], near: Path, model: str | None, say: bool = True) -> tuple[list[Source], str]:
    """(sources, the model): the one named, the released one, or the last that was red-teamed or scored."""
    from aloe.safety.risk import check_model, model_of
    from aloe.safety.risk_sources import read_sources, released_model

    sources = read_sources(results, near)
    chosen = model or released_model(results) or model_of(sources)
    check_model(chosen, sources, "--model" if model else str(results[0]))
    if model is None and say:
        print(f"model: {chosen}", file=sys.stderr)
    return sources, chosen


def _verbs(results: Sequence[Path]) -> dict[str, str]:
    """The verbs of the steps that lie among the results: of a run's folder, or of a release's lineage."""
    found: dict[str, str] = {}
    for place in results:
        lineage = place / "lineage.json"
        if lineage.is_file():
            check_beside(place)
            found |= {step: str(m.get("verb")) for step, m in json.loads(lineage.read_text(encoding="utf-8")).items()}
        elif place.is_dir():
            for path in sorted(place.glob("*/manifest.json")):
                manifest = read_manifest(path.parent)
                found[str(manifest.get("step"))] = str(manifest.get("verb"))
    return found


def _write(file: Path, text: str) -> None:
    from aloe.run.store import write_aside

    write_aside(file, text)
    file.chmod(0o644)  # a temporary file's 0600 would keep colleagues out
