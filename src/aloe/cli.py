"""The commands. No logic lives here: each one reads its arguments, calls a room, prints."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from aloe.commands import AloeGroup
from aloe.errors import AloeError
from aloe.terminal import guard_streams, json_text

app = typer.Typer(
    cls=AloeGroup,  # with the commands of `commands.WIRED`
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="From an open base model to an aligned, evaluated, red-teamed healthcare LLM: one recipe, one command.",
)

Out = Annotated[Path, typer.Option("--out", help="Folder for artifacts: OUT/<family>/<step>.")]
Sets = Annotated[list[str], typer.Option("--set", help="Override a field: step.field=value. May be repeated.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]
Seed = Annotated[int | None, typer.Option("--seed", help="The recipe's seed.")]
Data = Annotated[Path | None, typer.Option("--data", help="Folder of the recipe's named sets, instead of the hub.")]
Budget = Annotated[
    str | None,
    typer.Option("--budget", help="Time to fit into, such as 2h: sizes the fields of the recipe's `budget`."),
]


def main() -> None:
    """Entry point: user errors become one message and exit code 2, an interrupt 130; our bugs keep their traceback."""
    guard_streams()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # libraries' own bars: ours show what matters
    try:
        app()
    except AloeError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\ninterrupted: finished steps are kept; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None
    except BaseException as cause:
        if type(cause).__name__ != "PanicException":  # Rust's, in a library: no Exception, and no mistake of ours
            raise
        from aloe.models.tokenizer_files import panicked

        print(f"error: {panicked(cause)}", file=sys.stderr)
        raise SystemExit(2) from None


def _load(recipe: Path, sets: list[str], seed: int | None) -> Any:
    from aloe.recipe import Recipe

    return Recipe.load(recipe, [*sets, *([f"seed={seed}"] if seed is not None else [])])


def _overrides(
    recipe: Path, sets: list[str], data: Path | None, budget: str | None, out: Path, keep: bool
) -> list[str]:
    if data is None and budget is None:
        return sets
    from aloe.recipe_sizes import assignments
    from aloe.run.summary import print_sizes

    given, told = assignments(recipe, sets, data, budget, out, keep=keep)
    if told is not None:
        print_sizes(told)
    return given


@app.command()
def run(
    recipe: Path,
    steps: Annotated[list[str] | None, typer.Argument(help="Steps to make, with what they need. Default: all.")] = None,
    out: Out = Path("out"),
    set_: Sets = [],
    seed: Seed = None,
    redo: Annotated[list[str], typer.Option("--redo", help="Make this step anew though it is fresh.")] = [],
    data: Data = None,
    budget: Budget = None,
    quiet: Quiet = False,
) -> None:
    """Run a recipe: what is fresh is kept, the rest is made."""
    from aloe.run.launch import launch
    from aloe.run.progress import Console
    from aloe.run.summary import print_result

    sets = _overrides(recipe, set_, data, budget, out, keep=True)
    loaded = _load(recipe, sets, seed)
    overrides = [*sets, *([f"seed={seed}"] if seed is not None else [])]
    result = launch(loaded, out=out, steps=steps or (), redo=redo, overrides=overrides, console=Console(quiet))
    if not quiet:
        print_result(loaded, result)


@app.command()
def plan(
    recipe: Path,
    out: Out = Path("out"),
    set_: Sets = [],
    seed: Seed = None,
    full: Annotated[bool, typer.Option("--full", help="Write out the recipe with every default.")] = False,
    data: Data = None,
    budget: Budget = None,
    scripts: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the jobs' sbatch scripts (launch.via: slurm), send none.")
    ] = None,
) -> None:
    """What would run, what is fresh, and why; tokens, memory and time where they can be estimated."""
    from aloe.run.summary import print_plan

    loaded = _load(recipe, _overrides(recipe, set_, data, budget, out, keep=False), seed)
    if full:
        print(loaded.dump(loaded.order), end="")
        return
    if scripts is not None:
        from aloe.run.cluster import write_scripts

        for path in write_scripts(loaded, out, scripts):
            print(path)
        return
    print_plan(loaded, out)


@app.command()
def show(
    artifact: Path, full: Annotated[bool, typer.Option("--full", help="The whole manifest as JSON.")] = False
) -> None:
    """Show an artifact: what it is, what made it from what, its rows and results."""
    from aloe.json_file import read_object
    from aloe.manifest_file import MALFORMED, malformed
    from aloe.run.store import read_artifact
    from aloe.run.summary import print_artifact

    found = read_artifact(artifact.resolve())
    if full:
        print(json_text(found.manifest, indent=1))
        return
    record = found.path / "merge.json"
    told = read_object(record).get("diagnostics") if record.exists() else None
    if told:
        from aloe.merge.diagnostics import table

        try:
            shown = table(told)
        except MALFORMED as cause:
            raise AloeError(f"can't be read ({malformed(cause)})", where=str(record), fix="make it anew") from cause
        print_artifact(found, shown)
    else:
        print_artifact(found)


@app.command()
def verify(artifact: Path) -> None:
    """Recompute digests, summary tables and a sampled merged tensor; exit code 1 when anything differs."""
    from aloe.release.verify import verify_artifact
    from aloe.run.reach import reach
    from aloe.run.summary import print_findings

    folder = artifact.resolve()
    resolve = reach(folder) if (folder / "manifest.json").exists() else None
    if not print_findings(artifact, verify_artifact(folder, resolve)):
        raise SystemExit(1)


@app.command()
def join(root: Path) -> None:
    """Take part in the training steps of a run that another node leads below OUT/FAMILY."""
    from aloe.run.nodes import join as take_part

    print(f"{take_part(root)} steps joined", file=sys.stderr)


@app.command()
def doctor(
    recipe: Annotated[Path | None, typer.Argument(help="Ask this recipe's servers, too, whether they answer.")] = None,
) -> None:
    """Versions, device, memory, disk, packaged models and a check of their chat templates."""
    from aloe.run.doctor import print_doctor

    servers = _load(recipe, [], None).head.servers if recipe is not None else {}
    if not print_doctor(servers):
        raise SystemExit(1)


@app.command()
def models() -> None:
    """Models that are available without a network."""
    from aloe.run.doctor import packaged_models

    for line in packaged_models():
        print(line)


@app.command()
def report(
    artifact: Path,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="HTML file to write.")] = None,
    all_transcripts: Annotated[
        bool, typer.Option("--all-transcripts", help="Show every transcript, however large the page gets.")
    ] = False,
) -> None:
    """Write one self-contained HTML page about an artifact, or about a whole run (OUT/<family>)."""
    from aloe.report.page import write_report
    from aloe.scores_command import rows_finder

    name = artifact.name if artifact.name else artifact.resolve().name
    limit: dict[str, Any] = {"transcript_bytes": None} if all_transcripts else {}
    print(write_report(artifact.resolve(), out or Path(f"{name}.html"), finder=rows_finder, **limit))


Parameters = Annotated[list[str] | None, typer.Argument(help="A YAML file, or key=value (YAML values).")]
Licence = Annotated[str, typer.Option(help="Licence of what is made.")]


def _verb_command(verb: str) -> None:
    """`aloe VERB`: a one-step recipe, built and run. There is one path through the code."""
    name = verb.replace("_", "-")

    @app.command(name=name, help=f"Run `{verb}` alone: parameters from a YAML file and key=value pairs.")
    def alone(
        parameters: Parameters = None,
        out: Out = Path("out"),
        licence: Licence = "cc-by-nc-4.0",
        seed: int = 0,
        family: Annotated[str, typer.Option(help="Names the folder below OUT.")] = name,
        quiet: Quiet = False,
    ) -> None:
        _one_step(verb, parameters, out, licence, seed, family, quiet)


def _one_step(
    verb: str, parameters: list[str] | None, out: Path, licence: str, seed: int, family: str, quiet: bool
) -> None:
    print(_run_one(verb, _values(parameters or []), out, licence, seed, family, quiet))


def _run_one(verb: str, values: dict[str, Any], out: Path, licence: str, seed: int, family: str, quiet: bool) -> Path:
    """The place of the artifact that a one-step recipe makes."""
    from aloe.recipe import Recipe
    from aloe.run.execute import run_recipe
    from aloe.run.progress import Console

    name = verb.replace("_", "-")
    recipe = Recipe.parse({"family": family, "licence": licence, "seed": seed, "steps": {name: {verb: values}}})
    result = run_recipe(recipe, out=out, console=Console(quiet))
    return result.root / name


@app.command()
def merge(
    parameters: Annotated[
        list[str] | None,
        typer.Argument(help="CONFIG (our YAML or mergekit's), OUT (a folder), key=value (YAML values); each may lack."),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print what each tensor will get, and stop.")] = False,
    search: Annotated[
        Path | None, typer.Option(help="YAML of a search over weights and densities: see docs/merge-search.md.")
    ] = None,
    out: Out = Path("out"),
    licence: Licence = "cc-by-nc-4.0",
    seed: int = 0,
    family: Annotated[str, typer.Option(help="Names the folder below --out, where no OUT is given.")] = "merge",
    quiet: Quiet = False,
) -> None:
    """Merge models: `aloe merge CONFIG OUT` writes a model folder; without OUT, an artifact below --out."""
    from aloe.merge_command import check_target, explanation, put_in_place, read_config, split, workshop

    config, target, settings = split(parameters or [])
    values = read_config(config) if config is not None else {}
    _into(values, _values(settings))
    if explain:
        print(explanation(values, seed))
        return
    verb = "merge"
    if search is not None:
        from aloe.search.config import search_parameters

        verb, values = "merge_search", search_parameters(values, _parameters(str(search)))
    if target is None:
        print(_run_one(verb, values, out, licence, seed, family, quiet))
        return
    check_target(target)
    made = _run_one(verb, values, workshop(target), licence, seed, family, quiet)
    put_in_place(made.resolve(), target)
    print(target)


@app.command()
def curate(
    parameters: Annotated[
        list[str] | None,
        typer.Argument(help="A YAML file, or key=value (YAML values). With --only: INPUT OUTPUT [key=value ...]."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="One stage on a plain file: clean, phi, dedup, decontaminate, quality, diversity, template, mix."
        ),
    ] = None,
    out: Out = Path("out"),
    licence: Licence = "cc-by-nc-4.0",
    seed: int = 0,
    family: Annotated[str, typer.Option(help="Names the folder below OUT.")] = "curate",
    quiet: Quiet = False,
) -> None:
    """Run `curate` alone: parameters from a YAML file and key=value pairs. `--only STAGE INPUT OUTPUT` runs one stage
    on a plain file."""
    if only is None:
        _one_step("curate", parameters, out, licence, seed, family, quiet)
        return
    from aloe.run.stage import curate_stage

    files, settings = (parameters or [])[:2], (parameters or [])[2:]
    if len(files) < 2 or any("=" in f for f in files):
        raise AloeError(
            "--only takes an input and an output file first",
            fix=f"aloe curate --only {only} in.jsonl out.parquet [key=value ...]",
        )
    curate_stage(only, Path(files[0]), Path(files[1]), _values(settings), seed, quiet)


def _values(parameters: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for part in parameters:
        _into(values, _parameters(part))
    return values


def _into(values: dict[str, Any], more: dict[str, Any]) -> None:
    """Merge nested parameters: `dedup.qa=0.7 dedup.dialogue=0.8` sets both."""
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            _into(values[key], value)
        else:
            values[key] = value


def _parameters(part: str) -> dict[str, Any]:
    from aloe.recipe_file import read_value, read_yaml

    key, sign, text = part.partition("=")
    if not sign:
        path = Path(part)
        if not path.exists():
            raise AloeError(f"{part!r} is neither key=value nor a YAML file", fix="for example lr=2e-5 or merge.yaml")
        loaded = read_yaml(path)
        if not isinstance(loaded, dict):
            raise AloeError("expected a map of parameters", where=str(path))
        return loaded
    value = read_value(text)
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)


for _verb in (
    "synthesize", "rewrite", "preference_pairs", "sft", "merge_search", "dpo", "red_team_pairs", "red_team_loop",
    "evaluate",
):  # fmt: skip
    _verb_command(_verb)
