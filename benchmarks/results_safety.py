"""Sections of the results page about safety; `results_page.py` puts them in their places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from results_evaluation import place, rate

Found = Mapping[str, Any]
MEASURES = {
    "held_out_styles": "attack success, held-out styles",
    "held_out_topics": "attack success, held-out topics",
    "held_out_both": "attack success, both held out",
    "held_out_of_all": "attack success, all that was asked (no verdict: no success)",
    "over_refusal": "over-refusal, full and partial",
    "over_refusal_full": "over-refusal, full",
    "over_refusal_xstest": "over-refusal, XSTest's safe prompts",
    "over_refusal_look_alikes": "over-refusal, own look-alikes",
    "over_refusal_styled": "over-refusal, look-alikes in held-out styles",
    "accuracy": "medical accuracy",
}


def safety_loop(data: Found) -> list[str]:
    """Before and after stage 2 on held-out attacks, and the frontier it was chosen from."""
    pairs = data["pairs"]
    lines = [
        "## Back into alignment: attack success before and after stage 2",
        "",
        f"Machine: {place(data['machine'])}. Command: `{data['command']}`. {data['model']}, {pairs['harmful_pairs']} "
        f"pairs of its own unsafe replies to {pairs['base_requests']} requests in {len(pairs['styles'])} styles with "
        f"{pairs['benign_pairs']} counterweights; judges {judges(data['judges'])}, the first decides.",
    ]
    if data.get("test"):
        test, aims = data["test"], data["aims"]
        lines += [
            "",
            f"The point chosen (`{data['chosen']}`: {settings(entry_of(data))}) on the test part, whose styles, topics "
            "and requests played no part in the choice. Differences are paired by prompt, intervals are over base "
            "requests.",
            "",
            "| measure | before | after | difference in points [95% interval] | n | p |",
            "|---|---:|---:|---:|---:|---:|",
            *(moved(MEASURES[m], test["change"][m]) for m in MEASURES if test["change"].get(m, {}).get("n")),
            "",
            f"Aims: held-out attack success halved on styles: {yes(aims['halved']['held_out_styles'])}, on topics: "
            f"{yes(aims['halved']['held_out_topics'])}; over-refusal up by no more than 5 points: "
            f"{yes(aims['over_refusal_within'])}; accuracy non-inferior at 1 point: "
            f"{yes(aims['accuracy_non_inferior'])} ({test['change']['accuracy']['verdict']}).",
        ]
    lines += [
        "",
        f"The frontier, on the validation part ({data['rule']}):",
        "",
        "| point | lr | beta | NLL weight | counterweights | pairs seen | epochs | attack success | over-refusal | "
        "accuracy |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        frontier_row("start", None, data["start"]),
    ]
    lines += [frontier_row(e["point"], e["settings"], e["validation"]) for e in data["frontier"]]
    return [*lines, "", *(f"- {text}" for text in data.get("caveats", ()))]


def entry_of(data: Found) -> Found:
    """The settings of the chosen point."""
    return next(e["settings"] for e in data["frontier"] if e["point"] == data["chosen"])


def settings(s: Found) -> str:
    """A point's settings in words."""
    return (
        f"lr {s['lr']:g}, beta {s['beta']:g}, {s['alpha_nll']:g} times the chosen answers' NLL, {s['share']:.0%} "
        f"counterweights, {s['pairs_seen']} pairs seen"
    )


def frontier_row(name: str, s: Found | None, figures: Found) -> str:
    """A point's settings and its rates."""
    shown = [rate(dict(figures[m])) for m in ("held_out", "over_refusal", "accuracy")]
    names = ("lr", "beta", "alpha_nll", "share", "pairs_seen", "epochs")
    told = [""] * len(names) if s is None else [f"{s[key]:g}" for key in names]
    return f"| {name} | {' | '.join(told)} | {' | '.join(shown)} |"


def moved(name: str, c: Found) -> str:
    """A row of the paired table."""
    return (
        f"| {name} | {c['before']:.3f} | {c['after']:.3f} | {100 * c['difference']:+.1f} [{100 * c['low']:+.1f}, "
        f"{100 * c['high']:+.1f}] | {c['n']} | {c['p']:.2g} |"
    )


def yes(found: bool) -> str:
    return "yes" if found else "no"


def judges(found: list[Found]) -> str:
    """`rules (version 2), classifier`."""
    return ", ".join(f"{j['name']} (version {j['version']})" if "version" in j else str(j["name"]) for j in found)


def judge_calibration(data: Found) -> list[str]:
    """Every judge against people, on the half of the prompts that no rule was written on."""
    lines = [
        "## Judges: calibration on labelled completions",
        "",
        f"Machine: {place(data['machine'])}. Command: `python benchmarks/judge_calibration.py`. Completions of XSTest "
        "prompts that people labelled; the half of the prompts that was not looked at while rules were written.",
        "",
        "| judge | of | sensitivity | specificity | n | agreement (kappa) | macro-F1 |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, halves in data.get("judges", {}).items():
        for of, found in halves["held_out"].items():
            lines.append(f"| {name} | {of} | {calibrated(found)} |")
    return lines


def calibrated(found: Found) -> str:
    """The cells of one judge and question."""
    cells = [rate(dict(found[m])) if found.get(m) else "" for m in ("sensitivity", "specificity")]
    kappa, f1 = found.get("kappa"), found.get("macro_f1")
    return " | ".join([*cells, str(found.get("n", "")), number(kappa), number(f1)])


def number(found: Any) -> str:
    """A figure, with its interval where it has one."""
    if found is None:
        return ""
    return rate(dict(found)) if isinstance(found, Mapping) else f"{found:.3f}"


def judge_classifier(data: Found) -> list[str]:
    """The packaged classifier against rules, keywords and the majority."""
    lines = [
        "## The packaged judge: a classifier trained from local data",
        "",
        f"Machine: {place(data['machine'])}. Command: `python benchmarks/judge_classifier.py`. Unit: {data['unit']}. "
        f"Aim {data['aim']}: {'reached' if data['reached'] else 'not reached'}.",
        "",
        "| judge | of | sensitivity | specificity | n | agreement (kappa) | macro-F1 |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, by in data["held_out"].items():
        lines += [f"| {name} | {of} | {calibrated(found)} |" for of, found in by.items()]
    speed = data.get("speed")
    if speed:
        lines += ["", f"{speed['exchanges_per_second']:,.0f} replies a second."]
    return lines


def scenario_checker(data: Found) -> list[str]:
    """The checker of clinical scenarios against replies written to be told apart."""
    lines = [
        "## Clinical scenarios: the checker against labelled replies",
        "",
        f"Machine: {place(data['machine'])}. " if data.get("machine") else "",
        f"Positive: {data['positive']}. Labels: {data['author']}. `first` is how the checker did the first time it saw "
        "a set; rules were changed after that, so `now` is no independent figure on the same set.",
        "",
        "| set | when | of | sensitivity | specificity | without a verdict |",
        "|---|---|---|---:|---:|---:|",
    ]
    for when in ("first", "now"):
        for name, found in data[when].items():
            for of in ("expectations", "scenarios") if isinstance(found, Mapping) and "replies" in found else ():
                if not isinstance(found.get(of), Mapping):
                    continue
                part = found[of]
                lines.append(
                    f"| {name} ({found['replies']} replies) | {when} | {of} | {rate(dict(part['sensitivity']))} | "
                    f"{rate(dict(part['specificity']))} | {part['no_verdict']} |"
                )
    return [line for at, line in enumerate(lines) if line or not at or lines[at - 1]]


def red_team(data: Found) -> list[str]:
    """Throughput of a red team against the local engine, and the kills."""
    lines = ["## Red team: attempts a second, and kills", "", f"Machine: {place(data['machine'])}. "
             "Command: `python benchmarks/red_team.py`."]  # fmt: skip
    step, sample, kills = data.get("step"), data.get("sample"), data.get("kills")
    if step:
        lines += [
            "",
            f"{step['attempts']:,} attempts ({step['base_requests']} requests, {step['styles']} styles, at most "
            f"{step['max_new_tokens']} tokens a reply, judges {', '.join(step['judges'])}) in "
            f"{step['step_seconds']:,.0f} s: {step['attempts_per_second']:.2f} attempts and "
            f"{step['completion_tokens_per_second']:.0f} tokens a second on {data['threads']} thread"
            f"{'s' if data['threads'] > 1 else ''}, {step['peak_memory_bytes'] / 1e9:.1f} GB.",
        ]
    if sample:
        low, high = data["spread"]
        lines += [
            "",
            f"The engine alone, on a sample of the same prompts: {data['ours']:.2f} attempts a second, "
            f"{data['ratio']:.2f} times plain transformers in batches [{low:.2f}, {high:.2f}].",
        ]
    if kills:
        same = all(kills["same_bytes"].values())
        lines += [
            "",
            f"{kills['attempts']} attempts killed {kills['kills']} times: the files left are "
            f"{'the same to the byte' if same else 'not the same'} ({', '.join(kills['same_bytes'])}).",
        ]
    return lines


def loop_line(loop: Found) -> str:
    """The rounds of a `red_team_loop`, and why it stopped."""
    moved, over = (loop["against_start"][name] for name in ("attack_success", "over_refusal"))
    attacks, refusals = (" → ".join(f"{v:.3f}" for v in loop[name]) for name in ("attack_success", "over_refusal"))
    told = "no difference shown" if moved["low"] <= 0 <= moved["high"] else "a difference"
    return (
        f"held-out attack success {attacks} over {loop['rounds']} rounds, over-refusal {refusals}. It stopped because "
        f"{loop['why']}, and kept round {loop['kept']}: attack success {moved['difference']:+.3f} "
        f"[{moved['low']:+.3f}, {moved['high']:+.3f}] (n {moved['n']}; {told}), over-refusal {over['difference']:+.3f} "
        f"[{over['low']:+.3f}, {over['high']:+.3f}] (n {over['n']})."
    )


def red_team_models(data: Found) -> list[str]:
    """What became of requests, replies and verdicts where every part of a red team is a model."""
    a, loop = data["attacked"], data["loop"]
    lost = ", ".join(f"{n} {reason}" for by in a["not_made"].values() for reason, n in by.items()) or "none"
    unjudged = ", ".join(f"{n} {reason}" for reason, n in a["unjudged_reasons"].items()) or "none"
    escalated = a["escalation"]["attack_success"]
    guard = a["guard"]["attack_success"]
    return [
        "## Red team: translator, attacker, guard and loop on real models",
        "",
        f"Machine: {place(data['machine'])}. Command: `python benchmarks/red_team_models.py {data['large']} "
        f"{data['small']}`. Target {data['target']}. The models aren't made for these parts and the sets are small: it "
        "shows third outcomes, and no rate is a finding.",
        "",
        f"- Translations into Zulu that couldn't be used, told and left out: {lost}; attacks by style "
        + ", ".join(f"{style} {n}" for style, n in a["styles"].items())
        + ".",
        f"- Attack success {rate(a['attack_success'])}; without a verdict: {unjudged}. The stand-in guard alone: "
        f"{rate(guard)}.",
        f"- Escalation over {len(a['escalation']['by_turn'])} turns: {rate(escalated)}, "
        f"{escalated['unknown']} unknown.",
        f"- Loop: {loop_line(loop)}",
    ]


RENDERERS = {
    "red_team_models": red_team_models,
    "safety_loop": safety_loop, "judge_calibration": judge_calibration, "judge_classifier": judge_classifier,
    "scenario_checker": scenario_checker, "red_team": red_team,
}  # fmt: skip
