"""The study: the four research questions as named paired comparisons, from two recipes on real public rows.

    python benchmarks/study.py run --work DIR --data DIR --budget 2h [--set models.large=FILE ...]
    python benchmarks/study.py collect --work DIR [--out FILE]

`run` trains the small toxicity classifier that recipes/study.yaml names, where it isn't there, and runs both recipes,
each sized for half of the time; killed, it goes on where it was. `collect` reads what they left and writes the result:
every comparison with its paired interval, the smallest effect it could have found, Holm's adjustment within its
question, and what it cost. Power is stated with --watts where no counter measures it. No sentence is written here:
`results_study.py` makes those from the figures.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from aloe import __version__
from aloe.evaluate.compare import adjusted, contrast
from aloe.evaluate.sides import Side, pair_up, read_scores
from aloe.recipe_names import seconds_of
from aloe.release.carbon import Stated, footprint
from aloe.safety.table import safety_table

ROOT = Path(__file__).parents[1]
FAMILIES = {"study": "recipes/study.yaml", "study-sizes": "recipes/study-sizes.yaml"}
MARGIN = 0.01  # of medical accuracy that alignment may cost (RQ2)
ACCURACY = ("medmcqa", "mmlu_medical", "letters")
# Question -> (what it is called, before, after); models by the step that made them, `base` for the untouched one.
RQ1 = (
    ("SFT against the base", "base", "sft"),
    ("SFT with chain of thought against the base", "base", "sft_cot"),
    ("chain of thought against none", "sft", "sft_cot"),
    ("merged against SFT with chain of thought", "sft_cot", "merged"),
    ("merged against the base", "base", "merged"),
)
RQ2 = (
    ("stage 1 against merged", "merged", "helpful"),
    ("stage 2 against stage 1", "helpful", "aligned"),
    ("both stages against merged", "merged", "aligned"),
)
INTENSITY = Stated(158.0, "Spain 2023, as in the Aloe Beta paper")
Found = dict[str, Any]


# -- running -------------------------------------------------------------------------------------------------------


def run(work: Path, data: Path, budget: str, sets: Sequence[str]) -> None:
    """Both recipes, as a user would run them."""
    toxicity = work / "toxicity"
    if not toxicity.exists():
        aloe(["-m", "aloe.evaluate.toxicity", str(data / "toxicity/davidson.jsonl.gz"), str(toxicity), "--toxic",
              "hate", "offensive", "--calibrate", str(data / "toxicity/hatecheck.jsonl.gz"), "--calibrate-toxic",
              "hateful"])  # fmt: skip
    half = f"{int(seconds_of(budget) / 2)}s"
    for family, recipe in FAMILIES.items():
        own = [s for s in [f"models.toxicity={toxicity}", *sets] if named(ROOT / recipe, s)]
        given = [part for s in own for part in ("--set", s)]
        aloe(["-m", "aloe", "run", str(ROOT / recipe), "--data", str(data), "--out", str(work / "out"), "--budget",
              half, *given])  # fmt: skip
        print(f"{family}: made", file=sys.stderr)


def named(recipe: Path, assignment: str) -> bool:
    """Whether the recipe has the model that `models.NAME=...` sets; each recipe is given only its own."""
    import yaml

    place, _, _ = assignment.partition("=")
    head, _, name = place.partition(".")
    return head != "models" or name in yaml.safe_load(recipe.read_text(encoding="utf-8")).get("models", {})


def aloe(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=sys.stderr)


# -- collecting ----------------------------------------------------------------------------------------------------


def collect(out: Path, watts: Stated) -> Found:
    """All that the page says, from the artifacts of both recipes. A step that isn't there is named in `missing`."""
    manifests = {
        family: {p.name: read(p / "manifest.json") for p in sorted((out / family).glob("*")) if is_step(p)}
        for family in FAMILIES
    }
    every = [m for steps in manifests.values() for m in steps.values()]
    if not every:
        sys.exit(f"{out}: nothing was made here yet; python benchmarks/study.py run makes it")
    part, sizes = out / "study", out / "study-sizes"
    result: Found = {
        "name": "study", "aloe": __version__, "machine": every[0]["machine"], "versions": every[0]["versions"],
        "commits": sorted({m["code"].get("commit", "") for m in every}),
        "command": "python benchmarks/study.py run, then collect", "margin": MARGIN,
        "budgets": {f: budget(read(out / f / "budget.json"), manifests[f]) for f in FAMILIES if manifests[f]},
        "steps": {family: {name: step(m) for name, m in in_time(steps)} for family, steps in manifests.items()},
        "footprint": footprint_of(every, watts), "missing": [],
    }  # fmt: skip
    for name, made in {
        "rq1": lambda: of_questions(part / "scores", RQ1, ACCURACY, None),
        "rq2": lambda: of_questions(part / "scores", RQ2, ACCURACY, MARGIN),
        "rq2_safety": lambda: of_questions(part / "safety", RQ2, None, None),
        "rq2_red_team": lambda: red_team(part / "red_team"),
        "rq3": lambda: strategies(sizes / "strategies"),
        "rq3_rotations": lambda: rotations(sizes / "sizes"),
        "rq4": lambda: of_sizes(sizes / "sizes"),
    }.items():
        try:
            result[name] = made()
        except (FileNotFoundError, NotADirectoryError):
            result["missing"].append(name)
    return result


def budget(chosen: Found, manifests: dict[str, Found]) -> Found:
    """What --budget chose, and the sizes that were set by hand over it."""
    by_hand = {}
    for field, value in chosen["values"].items():
        name, *rest = field.split(".")
        if name in manifests:
            actual = manifests[name]["parameters"]
            for part in rest:
                actual = actual[part]
            by_hand |= {field: actual} if actual != value else {}
    return {**{k: chosen[k] for k in ("budget_seconds", "estimated_seconds", "values")}, "set_by_hand": by_hand}


def is_step(path: Path) -> bool:
    return not path.name.startswith(".") and (path / "manifest.json").is_file()


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def in_time(manifests: dict[str, Found]) -> list[tuple[str, Found]]:
    """In the order in which they were made."""
    return sorted(manifests.items(), key=lambda item: str(item[1]["finished"]))


def step(manifest: Found) -> Found:
    """What a step took, and what became of its rows."""
    return {
        "verb": manifest["verb"], "seconds": manifest["wall_seconds"], "tokens": manifest["tokens"],
        "peak_memory_bytes": manifest["peak_memory_bytes"], "energy": manifest["energy"],
        "ledger": manifest["ledger"], "summary": brief(manifest["summary"]),
    }  # fmt: skip


def brief(summary: Found) -> Found:
    return {k: v for k, v in summary.items() if isinstance(v, int | float | str | bool)}


def footprint_of(manifests: Sequence[Found], watts: Stated) -> Found:
    """Of all steps together: hours measured, energy by counters where there were any, else by the stated power."""
    names = [f"{m['step']} {i}" for i, m in enumerate(manifests)]
    seconds = {name: m["wall_seconds"] for name, m in zip(names, manifests, strict=True)}
    counted = {name: m["energy"]["kwh"] for name, m in zip(names, manifests, strict=True) if m["energy"]}
    return footprint(seconds, watts, INTENSITY, counted).to_dict()


def sides(folder: Path) -> dict[str, Side]:
    """Model -> side; the model that no step made is `base`."""
    if not folder.exists():
        raise FileNotFoundError(folder)
    return read_scores(folder)


def of_questions(
    folder: Path, wanted: Sequence[tuple[str, str, str]], benchmarks: Sequence[str] | None, margin: float | None
) -> Found:
    """The scores of an evaluation and the named comparisons of its checkpoints, by their own metrics."""
    found = sides(folder)
    made = set(read(folder / "manifest.json")["inputs"]) & {"sft", "sft_cot", "merged", "helpful", "aligned"}
    alone = [name for name in found if name not in made]
    by = {"base" if name in alone[:1] else name: side for name, side in found.items()}
    pairs = [(c, by[a], by[b]) for c, a, b in wanted if a in by and b in by]
    metrics = ("accuracy", "accuracy_norm", "nll_byte") if benchmarks else ()
    every = compared(pairs, benchmarks, margin, metrics=metrics)
    return {"scores": records(folder), "comparisons": every}


def compared(
    pairs: Sequence[tuple[str, Side, Side]], benchmarks: Sequence[str] | None, margin: float | None, *,
    across: Sequence[str] = (), metrics: Sequence[str] = (),
) -> list[Found]:  # fmt: skip
    """Every pair on every benchmark, Holm's adjustment over all of them."""
    named_, all_ = [], []
    for name, before, after in pairs:
        pairings, _ = pair_up(before, after, across, metrics, benchmarks or ())
        normed = {s.benchmark for s in before.series if s.metric == "accuracy_norm"}
        for pairing in pairings:
            if pairing.before.metric == "accuracy" and pairing.before.benchmark in normed and metrics:
                continue  # option texts of unequal length: by lm-eval's acc_norm alone
            all_.append(contrast(before, after, pairing, margin=margin))
            named_.append(name)
    return [{"question": n, **trimmed(c.to_dict())} for n, c in zip(named_, adjusted(all_), strict=True)]


def trimmed(comparison: Found) -> Found:
    return {k: v for k, v in comparison.items() if k not in ("flips", "across")}


def records(folder: Path) -> list[Found]:
    """The score records without their long parts."""
    keep = ("model", "benchmark", "metric", "strategy", "better", "unit", "value", "low", "high", "n")
    keep += ("unparsed", "errored", "parse_rate", "protocol_line")
    return [{k: r.get(k) for k in keep} for r in read(folder / "scores.json")["scores"]]


def red_team(folder: Path) -> Found:
    """Rates by checkpoint, and before and after by the same prompt."""
    found = read(folder / "red_team.json")
    keep = ("attack_success", "attack_success_corrected", "full_refusal", "partial_refusal", "over_refusal",
            "unjudged", "errors", "by_style", "held_out_styles", "held_out_topics", "held_out_both")  # fmt: skip
    models = {
        name: {k: found["models"][name][k] for k in keep} | {"clinical": clinical(found["models"][name])}
        for name in found["order"]
    }
    return {
        "models": models, "paired": found["paired"], "paired_held_out": found["paired_held_out"],
        "judge": found["judge"], "styles": found["styles"], "base_requests": found["base_requests"],
        "table": safety_table([], found),
    }  # fmt: skip


def clinical(entry: Found) -> Found | None:
    told = entry.get("clinical")
    return None if told is None else {k: told[k] for k in ("pass", "bounds") if k in told}


def strategies(folder: Path) -> Found:
    """Each strategy against the first, on the same questions; accuracy at n members and what that cost."""
    found = sides(folder)
    (side,) = found.values()
    names = list(dict.fromkeys(series.strategy for series in side.series))
    parts = {n: Side(n, side.artifact, side.model, tuple(s for s in side.series if s.strategy == n), n) for n in names}
    first, *others = names
    pairs = [(f"{name} against {first}", parts[first], parts[name]) for name in others]
    scores = read(folder / "scores.json")["scores"]
    return {
        "model": side.model, "scores": records(folder),
        "comparisons": compared(pairs, None, None, across=("strategy",)),
        "curves": {r["strategy"]: r["extra"].get("accuracy_at") for r in scores if r["extra"].get("accuracy_at")},
        "tokens_per_item": {
            r["strategy"]: {k: v for k, v in r["extra"].items() if k.endswith("tokens_per_item")} for r in scores
        },
    }  # fmt: skip


def of_sizes(folder: Path) -> Found:
    """Each size against the one before it."""
    found = list(sides(folder).items())
    pairs = [(f"{b} against {a}", x, y) for (a, x), (b, y) in pairwise(found)]
    # Each size brings its own chat template: the same question in the words its model was trained on.
    return {"scores": records(folder), "comparisons": compared(pairs, None, None, across=("template_digest",))}


def rotations(folder: Path) -> list[Found]:
    """What seeing the options in every order gives: per model, accuracy of the file's order alone and of the mean
    probability over all orders, with the paired difference."""
    from aloe.evaluate.paired import paired_difference

    found = []
    for name, side in sides(folder).items():
        for series in side.series:
            if series.metric != "accuracy" or series.protocol.get("kind") != "likelihood":
                continue
            # `shown`: by order, the letter chosen and the letter that was right; the first order is the file's.
            rows = [r for r in series.rows.values() if r.value is not None]
            single = [float(r.meta["shown"][0][0] == r.meta["shown"][0][1]) for r in rows]
            together = [float(r.value) for r in rows if r.value is not None]
            change = paired_difference(single, together)
            found.append({
                "model": name, "benchmark": series.benchmark, "n": len(single), "file_order": sum(single) / len(single),
                "all_orders": sum(together) / len(together), "difference": change.difference, "low": change.low,
                "high": change.high,
            })  # fmt: skip
    return found


def without_places(value: Any) -> Any:
    """The same with paths of model files as names: where they lay is nobody's business, and no result."""
    if isinstance(value, dict):
        return {without_places(k): without_places(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_places(v) for v in value]
    return re.sub(r"/\S*/([^\s/]+?)(?:\.gguf)?(?=[\s,;]|$)", r"\1", value) if isinstance(value, str) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("phase", choices=("run", "collect"))
    parser.add_argument("--work", type=Path, required=True, help="folder of the classifier and of OUT")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the recipes' sets")
    parser.add_argument("--budget", default="2h")
    parser.add_argument("--set", dest="sets", action="append", default=[], help="models.NAME=MODEL; may be repeated")
    parser.add_argument("--watts", type=float, help="power of all devices together, where no counter measures it")
    parser.add_argument("--watts-source", default="stated by whoever ran it")
    parser.add_argument("--note", default="", help="what a reader of the times should know")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.phase == "run":
        run(args.work, args.data, args.budget, args.sets)
        return
    result = without_places(collect(args.work / "out", Stated(args.watts, args.watts_source))) | {"note": args.note}
    if args.out:
        args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    else:
        print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
