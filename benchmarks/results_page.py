"""Write docs/results.md from the files in benchmarks/results. Nothing on that page is typed by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import results_evaluation
import results_plan
import results_reliability
import results_safety
import results_study
import results_supply
from results_evaluation import place, rate

from aloe.evaluate.table import markdown_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OPEN, CLOSE = "<!-- output of the demo: make results -->", "<!-- end of output -->"


def main() -> None:
    parts = ["# Results", "", "Made by `make results` from `benchmarks/results/`. Each section names its machine."]
    for path in sorted(RESULTS.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        render = RENDERERS.get(path.stem, plain)
        parts += ["", *render(data), "", f"Stored in [{path.name}](../benchmarks/results/{path.name})."]
        if path.stem == "demo":
            readme(data)
    (ROOT / "docs" / "results.md").write_text("\n".join(parts) + "\n", encoding="utf-8")


def readme(data: dict[str, Any]) -> None:
    """Put the stored output of the demo into README.md, between its markers."""
    path = ROOT / "README.md"
    before, rest = path.read_text(encoding="utf-8").split(OPEN, 1)
    _, after = rest.split(CLOSE, 1)
    first, second = data["first_run"], data["second_run"]
    about = (
        f"On {place(data['machine'])}, `aloe run recipes/demo.yaml` took {first['seconds'] / 60:.1f} minutes and "
        f"{first['peak_bytes'] / 1e9:.1f} GB at peak; the second time, with all fresh, {second['seconds']:.0f} "
        "seconds. It ends with:"
    )
    printed = "\n".join(line.rstrip() for line in data["printed"]).strip()
    text = f"{before}{OPEN}\n{about}\n\n```text\n{printed}\n```\n{CLOSE}{after}"
    path.write_text(text, encoding="utf-8")


def demo(data: dict[str, Any]) -> list[str]:
    """Times, memory and scores of the demo."""
    lines = [
        "## Demo: `recipes/demo.yaml`",
        "",
        f"Machine: {place(data['machine'])}. Command: `python benchmarks/demo.py`.",
    ]
    lines += ["", "| run | seconds | peak memory |", "|---|---|---|"]
    edited = data["edited_run"]
    names = (("first, weights converted too", data["first_run"]), ("second, all fresh", data["second_run"]))
    for name, run in (*names, (f"after `--set {edited['edit']}`", edited)):
        lines.append(f"| {name} | {run['seconds']:.1f} | {run['peak_bytes'] / 1e9:.2f} GB |")
    if "reproduced" in data:
        steps, weights = data["reproduced"]["steps"], data["reproduced"]["weights"]
        same = sum(step["state"] == "identical" for step in steps)
        lines += ["", f"`aloe reproduce` on the release of the edited run, on the same machine: {same} of {len(steps)} "
                  f"steps identical, {weights['differing']} of {weights['tensors']} tensors differ."]  # fmt: skip
    lines += ["", "| step | verb | seconds | peak memory | tokens |", "|---|---|---|---|---|"]
    for name, step in sorted(data["steps"].items(), key=lambda item: -item[1]["seconds"]):
        tokens = ", ".join(f"{k} {v:,}" for k, v in step["tokens"].items()) or "none"
        lines.append(
            f"| {name} | {step['verb']} | {step['seconds']:.1f} | {step['peak_bytes'] / 1e9:.2f} GB | {tokens} |"
        )
    lines += [
        "",
        "Scores of one run, value [95% interval] n. At 135M parameters letter accuracy is chance; see the intervals.",
        "Over-refusal is on items whose replies the judge's rules were adjusted to ([log](log.md)): no independent "
        "figure.",
        "",
    ]
    return [*lines, markdown_table(data["scores"])]


def tutorial(data: dict[str, Any]) -> list[str]:
    """Times, gates and scores of the tutorial's run."""
    lines = [
        "## Tutorial: `recipes/tutorial/clinic.yaml`",
        "",
        f"Machine: {place(data['machine'])}, one core. Command: `python benchmarks/tutorial.py`. All steps: "
        f"{data['ours']:,.0f} s, {data['peak_bytes'] / 1e9:.1f} GB at peak. The gate stopped the release (exit code "
        f"{data['gate_exit_code']}); `aloe verify` of the one made without it ended with {data['verify_exit_code']}.",
        "",
        "| step | verb | seconds | peak memory |",
        "|---|---|---:|---:|",
    ]
    for name, step in sorted(data["steps"].items(), key=lambda item: -item[1]["seconds"]):
        lines.append(f"| {name} | {step['verb']} | {step['seconds']:.1f} | {step['peak_bytes'] / 1e9:.2f} GB |")
    return [*lines, "", markdown_table(data["scores"])]


def rates(data: dict[str, Any], prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every {value, low, high, n} inside a result, by dotted name."""
    found: list[tuple[str, dict[str, Any]]] = []
    for key, value in data.items():
        if isinstance(value, dict):
            if {"value", "low", "high", "n"} <= set(value):
                found.append((f"{prefix}{key}", value))
            else:
                found += rates(value, f"{prefix}{key}.")
    return found


def plain(data: dict[str, Any]) -> list[str]:
    """A benchmark against a peer."""
    machine = place(data.get("machine", {}))
    return [
        f"## {data['name']}", "", f"Machine: {machine}.", "",
        f"Ours {data['ours']} {data['unit']}, {data['peer']} {data['peer_version']}: ratio {data['ratio']} "
        f"(above 1: ours better), spread {data['spread']}.",
    ]  # fmt: skip


def dedup(data: dict[str, Any]) -> list[str]:
    """Near-duplicates against peers on every set, and how time grows."""
    lines = [
        "## Near-duplicates: `aloe.data.dedup` against datatrove and text-dedup",
        "",
        f"Machine: {place(data['machine'])}, {data['workers']} workers each. Command: `python benchmarks/dedup.py`. "
        "Rows/s from the opened file to the written one; F1 of rows removed against measured exact Jaccard.",
        "",
        "| set | side | rows/s | F1 | peak memory |",
        "|---|---|---|---|---|",
    ]
    for name, found in data["sets"].items():
        for side in ("ours", "datatrove", "text-dedup"):
            if side in found:
                s = found[side]
                version = f" {s['version']}" if "version" in s else ""
                lines.append(
                    f"| {name}, {found['rows']:,} rows | {side}{version} | {s['rows_per_s']:,.0f} | {s['f1']:.4f} | "
                    f"{s['peak_gb']:.2f} GB |"
                )
    large, small = data["scaling"]["large"], data["scaling"]["small"]
    return [
        *lines,
        "",
        f"Smallest ratio over sets and peers {data['ratio']}. {data['rows']:,} rows took ours {large['seconds']:.0f} s "
        f"({large['rows_per_s']:,.0f} rows/s, {large['peak_gb']:.2f} GB, F1 {large['f1']:.4f}); a tenth of them "
        f"{small['seconds']:.1f} s, so the time per row grew by {data['growth']:.3f}. Peers were timed on "
        f"{data['peers_timed_on_made_rows']:,} of the made rows.",
        "",
        "What is timed is `near_duplicates` on given, already normalised texts, for all sides; curation also pays for "
        "`document()`, which makes such a text of a row, so that its own ratio is lower. The benchmark was changed to "
        "leave that out after a first run had been seen, and the code was made faster while looking at these same "
        f"sets: they are no held-out figures. Rounds a side: {data['sets']['real']['rounds']}. See the [log](log.md).",
    ]


def decontaminate(data: dict[str, Any]) -> list[str]:
    """Recall on planted leaks, precision on real rows, time."""
    time = data["time"]["extrapolated"]
    lines = [
        "## Decontamination: planted leaks and real rows",
        "",
        f"Machine: {place(data['machine'])}. Command: `python benchmarks/decontaminate.py`. {data['rows']:,} training "
        f"rows against {data['items']:,} benchmark items. Detector, rewording rules and labels are ours; constants "
        "were set while pairs of the real pool were read, so its precision is in-sample.",
        "",
        "| measure | value [95% interval] | n |",
        "|---|---|---|",
        *(f"| recall, {k} | {rate(v)} | {v['n']} |" for k, v in data["recall"].items()),
        *(f"| false alarms, {k} | {rate(v)} | {v['n']} |" for k, v in data["false_alarms"].items()),
        *(f"| precision, {k} | {rate(v)} | {v['n']} |" for k, v in data["precision"].items()),
    ]
    return [
        *lines,
        "",
        f"A shared word 13-gram alone flags {data['thirteen_grams']['rows']} rows. Extrapolated from the measured "
        f"curve: {time['rows']:,} rows x {time['items']:,} items in {time['cpu_hours']:.2f} processor hours (largest "
        "relative "
        f"residual {data['time']['largest_residual']:.0%}).",
    ]


def phi(data: dict[str, Any]) -> list[str]:
    """Recall by kind, precision, protected names: the unseen first run beside the present one."""
    first = data["first_run"]
    lines = [
        "## Personal health information: planted identifiers in real text",
        "",
        f"Machine: {place(data['machine'])}. Command: `python benchmarks/phi.py`. After the first run over the test "
        "part its misses were read and a few rules changed: the first run is the unseen figure, the present one is "
        "optimistic.",
        "",
        "| recall, wholly covered | first run, unseen | now | n |",
        "|---|---|---|---|",
    ]
    now, was = data["recall"], first["recall"]
    lines.append(f"| overall | {rate(was['overall'])} | {rate(now['overall'])} | {now['overall']['n']} |")
    lines += [
        f"| {kind} | {rate(was['by_kind'][kind])} | {rate(value)} | {value['n']} |"
        for kind, value in now["by_kind"].items()
    ]
    before, after = first["unplanted_text"], data["unplanted_text"]
    names = data["protected_names"]
    return [
        *lines,
        "",
        f"Precision on text without planted identifiers, every finding read: {before['of_its_kind']} of "
        f"{before['findings']} then, {rate(after['of_its_kind'])} of {after['of_its_kind']['n']} now. Of "
        f"{names['names']} names of drugs, diseases and eponyms in {names['texts']:,} texts, {names['redacted']} were "
        "redacted. "
        f"{data['speed']['ours']:,.0f} rows of {data['speed']['mean_bytes']:,.0f} bytes a second on one core.",
    ]


def quality(data: dict[str, Any]) -> list[str]:
    """Area under the curve of the heuristic score, clean against damaged rows."""
    lines = [
        "## Offline quality score: sound rows against damaged copies of themselves",
        "",
        f"Machine: {place(data['machine'])}. Command: `python benchmarks/quality.py`. Area under the ROC curve on "
        "held-out rows; 0.5 sees nothing, and wrong medicine (another number, a reversed finding) is not seen.",
        "",
    ]
    sets = list(data["damage_held_out"])
    kinds = list(dict.fromkeys(k for found in data["damage_held_out"].values() for k in found))
    lines += ["| damage | " + " | ".join(sets) + " |", "|---" * (len(sets) + 1) + "|"]
    for kind in kinds:
        cells = [data["damage_held_out"][s].get(kind, {}).get("score", {}).get("value") for s in sets]
        lines.append(f"| {kind} | " + " | ".join("" if c is None else f"{c:.3f}" for c in cells) + " |")
    return lines


def curation_scale(data: dict[str, Any]) -> list[str]:
    """Stage times of whole curations."""
    lines = [
        "## Whole curation, stage by stage",
        "",
        f"Machine: {place(data['machine'])}. Command: `python benchmarks/curation_scale.py`. No peer does all of it.",
    ]
    for name, run in (("real files", data["real"]), *((m["set"], m) for m in data["made"])):
        lines += [
            "",
            f"{name}: {run['rows_read']:,} rows in {run['seconds']:.0f} s ({run['rows_per_second']:.0f} rows/s), "
            f"{run['peak_bytes'] / 1e9:.2f} GB at peak{with_workers(run)}, {run['rows']:,} kept."
            + (f" Beside it ran: {run['beside']}." if "beside" in run else ""),
            "",
            "| stage | seconds | rows in | kept |",
            "|---|---:|---:|---:|",
            *(
                f"| {n} | {s['seconds']:.1f} | {s['rows_in']:,} | {s['kept']:,} |"
                for n, s in sorted(run["stages"].items(), key=lambda item: STAGES.index(item[0]))
            ),
        ]
    return lines


def with_workers(run: dict[str, Any]) -> str:
    """The memory of a curation's processes together, where it was looked at."""
    own = run.get("all_own_bytes")
    return "" if own is None else f" in the largest process, {own / 1e9:.2f} GB in all without pages of mapped files"


def speed(value: float) -> str:
    """Three figures, or whole numbers from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def training(data: dict[str, Any]) -> list[str]:
    """A trainer against TRL as it comes and at its best: rates, memory, configurations tried, checks."""
    title = {"sft": "Supervised fine-tuning", "dpo": "Preference optimisation"}[data["name"]]
    rows, settings, unit = data["rows"], data["settings"], data["unit"]
    size = settings.get("batch_rows") or settings["batch_pairs"]
    key = "rate" if data["name"] == "sft" else "rate_with_reference"
    asked = f"--rows {rows['count']}" if data["name"] == "sft" else f"--batch {size} --pairs {rows['count']}"
    lines = [
        f"## {title}: `aloe.train` against TRL {data['peer_version']}",
        "",
        f"Machine: {place(data['machine'])}. Command: `python benchmarks/{data['name']}.py --rounds {data['rounds']} "
        f"{asked} --grid ...`. SmolLM2-135M, "
        f"{rows['count']} real rows of {rows['shortest']:.0f} to {rows['longest']:.0f} tokens (median "
        f"{rows['median']:.0f}, {rows['trained_share']:.0%} trained), {size} in a step, {settings['precision']}. "
        f"Rounds a side: {data['rounds']}; the first {data['warm_up_steps_left_out']} steps aren't counted.",
        "",
        f"| side | {unit} | ours / side | peak memory | ours / side |",
        "|---|---:|---:|---:|---:|",
    ]
    ratios = {"ours": ("", ""), "default": (data["ratio"], data["memory_ratio"])}
    ratios["best"] = (data["ratio_best"], data["memory_ratio_best"])
    names = {"ours": "ours", "default": "TRL, default", "best": f"TRL, best of those tried: {data['best']}"}
    lines += [
        f"| {names[s]} | {speed(data['sides'][s][key])} | {rate} | {data['sides'][s]['peak_gb']:.2f} GB | {memory} |"
        for s, (rate, memory) in ratios.items()
    ]
    spread, spread_best = data["spread"], data["spread_best"]
    lines += ["", f"Range over rounds: {spread[0]} to {spread[1]}, best {spread_best[0]} to {spread_best[1]}."]
    if data["name"] == "dpo":
        found = ", ".join(f"{names[s]} {speed(f['rate'])}" for s, f in data["sides"].items())
        lines[-1] += (
            " The reference's log-probabilities are counted for one pass over the pairs; in the steps alone, pairs/s: "
            f"{found}. Rejected answers: {data['rejected']}."
        )
    if not any("torch.compile" in name for name in (*data["grid"], data["best"])):
        lines[-1] += " TRL under `torch_compile` is not among those tried: see the [log](log.md)."
    differences = ", ".join(f"{k} {v['largest_difference']:.1e}" for k, v in data["checks"].items())
    lines += ["", f"Losses of the same batch before and after a step differ by at most: {differences}."]
    if data["grid"]:
        lines += [
            "",
            f"| TRL's configurations, a few steps each | {unit} | peak memory | our loss |",
            "|---|---:|---:|---|",
        ]
        for name, tried in data["grid"].items():
            if "error" in tried:
                lines.append(f"| {name} | fails: {tried['error'][:80].replace('|', '/')} | | |")
            else:
                same = "yes" if tried["same_loss"] else f"no: {tried['losses'][0]:.3f}"
                lines.append(f"| {name} | {speed(tried['rate'])} | {tried['peak_gb']:.2f} GB | {same} |")
    return lines


def stochastic(data: dict[str, Any]) -> list[str]:
    """Learning with bf16 weights, rounded to the nearest and at random, beside float32 weights."""
    names = {
        "float32": "float32 weights, bf16 autocast",
        "plain": "bf16 weights, AdamW",
        "stochastic": "bf16 weights and moments, stochastic rounding (`bf16_stochastic`)",
        "stochastic_float32_moments": "bf16 weights, float32 moments, stochastic rounding",
    }
    lines = [
        "## Pure bf16 training: rounding to the nearest loses updates, rounding at random keeps them",
        "",
        f"Machine: {place(data['machine'])}. Command: `python benchmarks/stochastic_rounding.py --steps "
        f"{data['steps']} --rows {data['batch_rows']}`. SmolLM2-135M on MedQuAD, the same batches for all, lr "
        f"{data['lr']:g}; one run a side. The untrained model's loss on the last ten batches is "
        f"{data['untrained']:.3f}.",
        "",
        "| weights | loss, last ten steps | gain kept | loss on held-out rows | bytes a parameter, all told |",
        "|---|---:|---:|---:|---:|",
    ]
    size = data["state_bytes"]["plain"] / 8  # weights, gradients and two moments in bf16
    lines += [
        f"| {names[n]} | {data['last_mean'][n]:.3f} | {data['kept'][n]:.0%} | {data['held_out'][n]:.3f} | "
        f"{data['state_bytes'][n] / size:.0f} |"
        for n in names
    ]
    return lines


def merge(data: dict[str, Any]) -> list[str]:
    """Merging against mergekit by shape, case and state of the page cache: seconds, memory, distance to ceilings."""
    lines = [f"## Merging: `aloe merge` against mergekit {data['peer_version']}"]
    for part in data["shapes"].values():
        rates, first = part["ceilings"], part["first_run"]
        lines += [
            "",
            f"{part['shape']}'s tensors, {part['layers']} layers, {part['bytes_of_a_model'] / 1e9:.2f} GB a model; "
            f"whole processes, into bf16. Machine: {place(part['machine'])}. Command: `python benchmarks/merge.py "
            f"{re.sub(r' --(out|work) .*', '', part['command'])}`, rounds a side: {part['rounds']}.",
            "",
            "| merge, page cache | side | seconds | then to the disk | peak (anonymous) memory | side / ours [range] |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for case, states in part["cases"].items():
            for state, found in states.items():
                lines += merge_rows(f"{case}, {state}", found)
        over = "; ".join(
            f"{case} {state} {b['ours_over_disk']} and {b['ours_over_memory']} times"
            for case, states in part["cases"].items()
            for state, b in ((s, found["bounds"]) for s, found in states.items())
        )
        lines += [
            "",
            f"First run after installing, kernels compiled in it: {first['seconds']:.1f} s. A bare interpreter peaks "
            f"at {part['interpreter']['bare_gb']:.3f} GB. This machine reads {rates['read_gb_s']:.2f}, writes "
            f"{rates['write_gb_s']:.2f} and passes {rates['triad_gb_s']:.1f} GB/s through memory (triad): of the time "
            f"that reading and writing each byte once would take from and to the disk, and through memory, ours took: "
            f"{over}.",
        ]
        for name, found in part.get("checks", {}).items():
            text = ", ".join(f"{k.replace('_', ' ')} {round(v, 6):,}" for k, v in found.items())
            lines += ["", f"Check, {name}: {text}."]
    return lines


def merge_rows(label: str, found: dict[str, Any]) -> list[str]:
    """A table's rows of one case and state."""
    names = {"ours": "ours", "ours_expectation": "ours, expectation", "default": "mergekit, default"}
    names["fastest"] = f"mergekit, fastest: {found['fastest']}"
    rows = []
    for side, f in found["sides"].items():
        if "error" in f:
            rows.append(f"| {label} | {names[side]} | {f['error']} | | | |")
            continue
        end = {"fastest": "", "default": "_default"}.get(side)
        ratio = "" if end is None else f"{found[f'ratio{end}']} {found[f'spread{end}']}"
        rows.append(
            f"| {label} | {names[side]} | {f['seconds']:.2f} | {f['settle_s']:.2f} | {f['peak_gb']:.2f} "
            f"({f['peak_anonymous_gb']:.2f}) GB | {ratio} |"
        )
    return rows


STAGES = (
    "load", "clean", "phi", "exact_dedup", "near_dedup", "decontaminate", "quality", "diversity", "template", "mix",
)  # fmt: skip
RENDERERS = results_evaluation.RENDERERS | results_safety.RENDERERS | results_reliability.RENDERERS | {
    **results_supply.RENDERERS, "demo": demo, "dedup": dedup, "decontaminate": decontaminate, "phi": phi,
    "quality": quality, "curation_scale": curation_scale, "sft": training, "dpo": training,
    "stochastic_rounding": stochastic, "merge": merge, "study": results_study.study, "plan_accuracy": results_plan.plan,
    "tutorial": tutorial,
}  # fmt: skip


if __name__ == "__main__":
    main()
