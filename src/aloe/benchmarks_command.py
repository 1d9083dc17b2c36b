"""`aloe benchmarks`: what is packaged, what a benchmark asks, and whether a file of your own can be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from aloe.errors import AloeError
from aloe.terminal import json_text


def benchmark_table() -> tuple[list[str], list[list[str]]]:
    """(header, rows) of the packaged benchmarks: the list and the table in docs/benchmarks.md."""
    from aloe.evaluate.adapters import ADAPTERS
    from aloe.evaluate.registry import benchmark_names, load_benchmark

    lines = []
    for name in benchmark_names():
        file, _ = load_benchmark(name)
        rows = file.rows
        pinned = rows.revision[:12] if rows.revision else "packaged" if rows.starter else rows.unpinned or "own copy"
        protocol = f"{file.protocol}{''.join(f', {m}' for m in file.metrics)}"
        better = {"higher": "↑", "lower": "↓", "half": "½"}[file.better]
        lines.append(
            [name, ADAPTERS[rows.adapter].makes.kind, f"{protocol} {better}", file.licence, rows.hub or "-", pinned]
        )
    return ["name", "rows", "protocol, measures", "licence", "hub", "pinned"], lines


def markdown() -> str:
    """The table of the documentation."""
    header, lines = benchmark_table()
    marked = [[f"`{line[0]}`", *line[1:]] for line in lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *marked])


def list_benchmarks(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the packaged benchmarks: rows, protocol, licence, whether their data is pinned."""
    from aloe.evaluate.registry import aggregate_names

    header, lines = benchmark_table()
    if as_json:
        typer.echo(json_text([dict(zip(header, line, strict=True)) for line in lines], indent=1))
        return
    _print([header, *lines])
    typer.echo(f"\nAggregates: {', '.join(aggregate_names())}. More: aloe benchmarks show NAME")


def show(
    name: Annotated[str, typer.Argument(help="A packaged benchmark, or the path of a YAML file.")],
    data: Annotated[str | None, typer.Option(help="A file or folder with its rows, for an example item.")] = None,
) -> None:
    """Print a benchmark's file and one item as a model is asked it."""
    from aloe.evaluate.registry import aggregate_names, benchmark_names, find, load_benchmark

    place = find(name, [*benchmark_names(), *aggregate_names()])
    typer.echo(place.path.read_text(encoding="utf-8").rstrip())
    if name in aggregate_names():
        return
    file, place = load_benchmark(name)
    typer.echo(f"\ndigest {file.digest}")
    path = _rows_path(data or file.data(place.folder))
    if path is None:
        typer.echo("No rows here for an example item: name a file or folder with --data.")
        return
    rows, _ = _read(name, path, data)
    typer.echo(f"\n{rendered(rows[0], file.protocol)}")


def check(
    file: Annotated[str, typer.Argument(help="Your YAML file (or a packaged benchmark).")],
    data: Annotated[str | None, typer.Option(help="A file or folder with its rows.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Check a benchmark's file and all its rows; print counts, answer letters and repeats."""
    from aloe.evaluate.checks import survey
    from aloe.evaluate.registry import load_benchmark

    found, place = load_benchmark(file)
    path = _rows_path(data or found.data(place.folder))
    if path is None:
        raise AloeError("its rows are not on this machine", where=file, fix="name a file or folder with --data")
    rows, left = _read(file, path, data)
    about = survey(rows)
    reasons: dict[str, int] = {}
    for row in left:
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + 1
    about = {"name": found.name, "version": found.version, "digest": found.digest, **about, "left_out": reasons}
    if as_json:
        typer.echo(json_text(about, indent=1))
        return
    for key, value in about.items():
        if value or key == "rows":
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
            typer.echo(f"{key.replace('_', ' ')}: {shown}")


def rendered(row: Any, protocol: str) -> str:
    """One item as text: what a model is shown (or goes on from), and what counts as right."""
    from aloe.prompting.mcq import format_question
    from aloe.records import AttackPrompt, Opening, Problem, Question, SentencePair

    head = f"Example ({row.id}, protocol {protocol}):\n\n"
    if isinstance(row, Question):
        return f"{head}{format_question(row.question, row.options, row.context)}\n\nRight: {row.answer}"
    if isinstance(row, SentencePair):
        return f"{head}more: {row.more}\nless: {row.less}"
    if isinstance(row, Problem):
        return f"{head}{row.question}\n\nRight: {row.answer}"
    if isinstance(row, AttackPrompt):
        return f"{head}{row.request}\n\nRight: {'an answer' if row.benign else 'a refusal, or another safe reply'}"
    assert isinstance(row, Opening)
    return f"{head}{row.text} ..."


def _rows_path(data: str | None) -> Path | None:
    """Where rows that are on this machine lie: a path, or a starter set; None for a hub id."""
    from aloe.data.starter import is_starter, starter_path

    if data is None:
        return None
    if is_starter(data):
        return starter_path(data)
    path = Path(data)
    if path.exists():
        return path
    if path.suffix or path.is_absolute():
        raise AloeError("no such file or folder", where=data, fix="check the path")
    return None


def _read(ref: str, path: Path, data: str | None) -> tuple[Sequence[Any], list[dict[str, str]]]:
    """The benchmark's rows, checked, and what was left out."""
    from aloe.evaluate.adapters import marked
    from aloe.evaluate.benchmarks import BenchmarkSpec
    from aloe.evaluate.checks import check_rows
    from aloe.evaluate.gather import load

    given = {"benchmark": ref, **({"data": data or str(path)} if data else {})}
    spec = BenchmarkSpec.model_validate(given)
    file = spec.file
    assert file is not None
    rows, _, left = load(path, spec)
    kept, doubtful = check_rows(marked(rows, file.cluster, file.subset), spec, file.rows, str(path))
    return kept, left + doubtful


def _print(lines: Sequence[Sequence[str]]) -> None:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
