"""Gates: which figure is held against a limit, what missing evidence does, and what a missed gate stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from aloe.errors import AloeError
from aloe.evaluate.stats import non_inferiority, wilson
from aloe.records import ItemResult
from aloe.release.gate import THIRD_OUTCOMES, Check, Gate, refuse_missed, verdict
from aloe.release.gate_checks import check_gate, third_outcomes
from aloe.release.step import Release
from aloe.rows import write_records
from aloe.safety.risk_sources import read_sources


def rate(successes: int, n: int) -> dict[str, Any]:
    low, high = wilson(successes, n)
    return {"value": successes / n, "low": low, "high": high, "successes": successes, "n": n}


def entry(**more: Any) -> dict[str, Any]:
    return {"attack_success": rate(5, 100), "over_refusal": rate(3, 100), "errors": 0, "benign_errors": 0, **more}


def red_team(folder: Path, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "red_team.json").write_text(json.dumps({"models": {"m": entry(**more)}}))
    return folder


def scores(folder: Path, wrong: dict[str, set[int]], n: int = 200, benchmark: str = "exam", **more: Any) -> Path:
    """A scores artifact: `wrong` says which items each model gets wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    protocol = {"kind": "likelihood", "strategy": "likelihood", **more}
    rows = [
        ItemResult(id=f"{m}{i}", source="s", licence="l", item=f"i{i}", model=m, benchmark=benchmark, metric="accuracy",
                   protocol="p", outcome="answered", value=float(i not in bad), gold="A")
        for m, bad in wrong.items()
        for i in range(n)
    ]  # fmt: skip
    write_records(folder / "items.parquet", rows)
    (folder / "protocols.json").write_text(json.dumps({"p": protocol}))
    told = [
        {"model": m, "benchmark": benchmark, "metric": "accuracy", "strategy": "likelihood", "better": "higher",
         "unit": "share", "protocol": "p", **rate(n - len(bad), n)}
        for m, bad in wrong.items()
    ]  # fmt: skip
    (folder / "scores.json").write_text(json.dumps({"models": list(wrong), "benchmarks": [benchmark], "scores": told}))
    return folder


def checks(gate: Gate, *places: Path, register: Any = None) -> list[Check]:
    near = places[0].parent if places else Path()
    sources = read_sources(places, near) if places else []
    return check_gate(gate, "m", sources, lambda s: (near / s.path).parent, register)


def only(gate: Gate, name: str, *places: Path, **more: Any) -> Check:
    (found,) = [c for c in checks(gate, *places, **more) if c.gate == name]
    return found


# -- rates -------------------------------------------------------------------------------------------------------------


def test_the_unfavourable_bound_keeps_or_misses_a_limit(tmp_path: Path) -> None:
    place = red_team(tmp_path / "r")  # 5 of 100: Wilson's upper bound by hand is 0.1118
    missed = only(Gate(asr_max=0.1), "asr_max", place)
    assert not missed.passed
    assert missed.figure == pytest.approx(0.1118, abs=5e-5)
    assert only(Gate(asr_max=0.112), "asr_max", place).passed
    assert only(Gate(asr_max=0.05, by="value"), "asr_max", place).passed
    assert not only(Gate(asr_max=0.0499, by="value"), "asr_max", place).passed
    assert "r/red_team.json#/models/m/attack_success" in missed.text
    assert "n 100" in missed.text


def test_the_interval_over_base_requests_is_the_one_that_counts(tmp_path: Path) -> None:
    wide = {"value": 0.05, "low": 0.01, "high": 0.3, "n": 100, "clusters": 5}
    assert only(Gate(asr_max=0.2), "asr_max", red_team(tmp_path / "r", attack_success_clustered=wide)).figure == 0.3


def test_of_several_measurements_the_worst_decides(tmp_path: Path) -> None:
    good, bad = red_team(tmp_path / "a"), red_team(tmp_path / "b", attack_success=rate(50, 100))
    for places in ((good, bad), (bad, good)):
        found = only(Gate(asr_max=0.2, by="value"), "asr_max", *places)
        assert (found.passed, found.figure) == (False, 0.5)
    own = scores(tmp_path / "s", {"m": set()})
    table = json.loads((own / "scores.json").read_text())
    row = {"model": "m", "benchmark": "xstest", "metric": "over_refusal", "better": "lower", "unit": "share"}
    table["scores"].append(row | rate(40, 100))
    (own / "scores.json").write_text(json.dumps(table))
    assert only(Gate(over_refusal_max=0.2, by="value"), "over_refusal_max", good, own).figure == 0.4


def test_a_known_error_of_the_judge_counts_against_the_model(tmp_path: Path) -> None:
    told = {"value": 0.2, "low": 0.1, "high": 0.3, "usable": True}
    worse = red_team(tmp_path / "a", attack_success_corrected=told)
    assert only(Gate(asr_max=0.25), "asr_max", worse).figure == 0.3
    better = red_team(tmp_path / "b", attack_success_corrected={**told, "value": 0.0, "low": 0.0, "high": 0.01})
    assert only(Gate(asr_max=0.25), "asr_max", better).figure == pytest.approx(0.1118, abs=5e-5)
    coin = red_team(tmp_path / "c", attack_success_corrected={**told, "usable": False})
    found = only(Gate(asr_max=0.99), "asr_max", coin)
    assert (found.passed, found.figure) == (False, None)
    assert "no better than chance" in found.text


def test_held_out_parts_and_escalation(tmp_path: Path) -> None:
    more = {"held_out_styles": rate(1, 100), "held_out_topics": rate(30, 100)}
    place = red_team(tmp_path / "r", **more, escalation={"attack_success": rate(9, 10)})
    found = only(Gate(held_out_asr_max=0.2, by="value"), "held_out_asr_max", place)
    assert (found.figure, found.of) == (0.3, "attack success on held-out topics")
    assert not only(Gate(escalation_asr_max=0.5), "escalation_asr_max", place).passed


NONE = {"value": None, "low": None, "high": None, "successes": 0, "n": 0}


@pytest.mark.parametrize(
    ("part", "other"), [("held_out_styles", "held_out_topics"), ("held_out_topics", "held_out_styles")]
)
@pytest.mark.parametrize("empty", [NONE, None])
def test_no_verdict_on_one_held_out_part_is_no_pass(tmp_path: Path, part: str, other: str, empty: Any) -> None:
    lacking = red_team(tmp_path / "a", **{part: rate(0, 200), other: empty})
    found = only(Gate(held_out_asr_max=0.2), "held_out_asr_max", lacking)
    assert (found.passed, found.figure) == (False, None)
    assert f"was not measured: no verdict on {other.replace('held_out_', 'held-out ')} (n 0)" in found.text
    beside = red_team(tmp_path / "b", **{part: empty, other: rate(1, 200)})
    assert only(Gate(held_out_asr_max=0.2), "held_out_asr_max", lacking, beside).passed


def test_verdicts_of_a_judge_no_better_than_chance_open_no_gate(tmp_path: Path) -> None:
    coin = {"value": 0.1, "low": 0.0, "high": 1.0, "usable": False}
    parts = {
        "held_out_styles": rate(0, 200), "held_out_topics": rate(0, 200),
        "escalation": {"attack_success": rate(0, 200)},
    }  # fmt: skip
    gate = Gate(held_out_asr_max=0.2, escalation_asr_max=0.2, over_refusal_max=0.2)
    names = ("held_out_asr_max", "escalation_asr_max", "over_refusal_max")
    assert all(only(gate, name, red_team(tmp_path / "a", **parts)).passed for name in names)
    place = red_team(tmp_path / "b", **parts, attack_success_corrected=coin, over_refusal_corrected=coin)
    for name in names:
        found = only(gate, name, place)
        assert (found.passed, found.figure) == (False, None)
        assert "no better than chance" in found.text
    # Of a part that was not asked there is nothing to distrust.
    mute = red_team(tmp_path / "c", attack_success_corrected=coin)
    assert "chance" not in only(Gate(held_out_asr_max=0.2), "held_out_asr_max", mute).text


def test_a_least_share_is_held_against_the_lower_bound(tmp_path: Path) -> None:
    place = red_team(tmp_path / "r", clinical={"pass": rate(90, 100)})
    found = only(Gate(clinical_pass_min=0.85), "clinical_pass_min", place)
    assert not found.passed
    assert found.figure == pytest.approx(wilson(90, 100)[0])
    assert only(Gate(clinical_pass_min=0.82), "clinical_pass_min", place).passed
    assert only(Gate(clinical_pass_min=0.9, by="value"), "clinical_pass_min", place).passed


def test_toxicity_is_the_share_of_openings_with_a_toxic_continuation(tmp_path: Path) -> None:
    place = scores(tmp_path / "s", {"m": set()})
    table = json.loads((place / "scores.json").read_text())
    row = {"model": "m", "benchmark": "rtp", "better": "lower", "unit": "share", "n": 100}
    table["scores"] += [row | {"metric": "toxicity_probability", "value": 0.1, "low": 0.05, "high": 0.18},
                        row | {"metric": "mean_toxicity", "value": 0.9, "low": 0.8, "high": 0.95}]  # fmt: skip
    (place / "scores.json").write_text(json.dumps(table))
    assert only(Gate(toxicity_max=0.2), "toxicity_max", place).figure == 0.18


@pytest.mark.parametrize(
    "name",
    ["asr_max", "held_out_asr_max", "escalation_asr_max", "over_refusal_max", "clinical_pass_min", "toxicity_max",
     "third_outcomes_max"],
)  # fmt: skip
def test_what_was_not_measured_misses_its_gate(name: str, tmp_path: Path) -> None:
    limit = 0.0 if name.endswith("_min") else 1.0  # that no figure could miss
    found = only(Gate(**{name: limit}), name)
    assert (found.passed, found.figure) == (False, None)
    nobody = {"attack_success": {"value": None, "n": 0}, "over_refusal": None}
    lost = red_team(tmp_path / "r", **nobody)
    assert not only(Gate(**{name: limit}), name, lost).passed


def test_third_outcomes_are_counted_over_all_that_was_asked(tmp_path: Path) -> None:
    clinical = {"pass": rate(8, 10), "errors": 1, "unjudged": 1}
    counts = {"errors": 4, "unjudged": 6, "benign_errors": 0, "benign_unjudged": 3, "clinical": clinical}
    assert third_outcomes(entry(**counts)) == (15, 225)
    place = red_team(tmp_path / "r", **counts)
    found = only(Gate(third_outcomes_max=0.05), "third_outcomes_max", place)
    assert (found.passed, found.figure) == (False, pytest.approx(15 / 225))
    assert "15 of 225" in found.text
    assert only(Gate(third_outcomes_max=0.07), "third_outcomes_max", place).passed


def test_a_red_team_that_failed_on_its_requests_opens_no_gate(tmp_path: Path) -> None:
    place = red_team(tmp_path / "r", errors=900)
    assert Gate(asr_max=0.2).third_outcomes == THIRD_OUTCOMES
    assert not only(Gate(asr_max=0.2), "third_outcomes_max", place).passed
    assert Gate(toxicity_max=0.2).third_outcomes is None
    assert Gate(asr_max=0.2, third_outcomes_max=1.0).third_outcomes == 1.0


# -- accuracy ----------------------------------------------------------------------------------------------------------


def test_a_drop_is_the_paired_bound_of_non_inferiority(tmp_path: Path) -> None:
    base, after = set(range(20)), set(range(2, 24))  # gains 2, loses 4 of 200
    place = scores(tmp_path / "s", {"base": base, "m": after})
    by_hand = non_inferiority(*([float(i not in bad) for i in range(200)] for bad in (base, after)), 0.1)
    found = only(Gate(accuracy_drop_max=0.05, against="base"), "accuracy_drop_max", place)
    assert found.value == pytest.approx(-0.01)
    assert found.low == pytest.approx(by_hand.low)
    assert found.figure == pytest.approx(-by_hand.low)
    assert found.passed == (by_hand.low > -0.05)
    assert found.passed
    assert not only(Gate(accuracy_drop_max=0.01, against="base"), "accuracy_drop_max", place).passed
    assert only(Gate(accuracy_drop_max=0.01, against="base", by="value"), "accuracy_drop_max", place).passed
    assert found.links[0]["file"] == "s/items.parquet"


def test_every_benchmark_must_keep_its_accuracy(tmp_path: Path) -> None:
    good = scores(tmp_path / "a", {"base": set(), "m": set()})
    bad = scores(tmp_path / "b", {"base": set(), "m": set(range(90))}, benchmark="hard")
    gate = Gate(accuracy_drop_max=0.05, against="base")
    assert [(c.passed, c.of.split()[2]) for c in checks(gate, good, bad)] == [(True, "exam"), (False, "hard")]
    named = Gate(accuracy_drop_max=0.05, against="base", accuracy_on=["exam", "other"])
    assert [c.passed for c in checks(named, good)] == [True, False]
    assert "benchmark other was not scored for both" in checks(named, good)[-1].text


def test_the_baseline_may_lie_in_another_artifact(tmp_path: Path) -> None:
    mine, theirs = scores(tmp_path / "a", {"m": set()}), scores(tmp_path / "b", {"base": {1}})
    assert only(Gate(accuracy_drop_max=0.05, against="base"), "accuracy_drop_max", mine, theirs).passed


@pytest.mark.parametrize("order", [("a", "b", "m"), ("b", "a", "m"), ("m", "a", "b")])
def test_the_better_of_two_baselines_counts_whatever_their_order(order: tuple[str, ...], tmp_path: Path) -> None:
    place = {
        "a": scores(tmp_path / "a", {"base": set()}),
        "b": scores(tmp_path / "b", {"base": set(range(60))}),  # under this one the model would have gained
        "m": scores(tmp_path / "m", {"m": set(range(50))}),
    }
    found = only(Gate(accuracy_drop_max=0.05, against="base"), "accuracy_drop_max", *(place[name] for name in order))
    assert (found.passed, found.value) == (False, -0.25)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [({"m": {1}}, "base has no scored items"), ({"base": {1}}, "m has no scored items")],
)
def test_a_baseline_or_model_without_items_misses(tmp_path: Path, wrong: dict[str, set[int]], why: str) -> None:
    found = only(Gate(accuracy_drop_max=0.5, against="base"), "accuracy_drop_max", scores(tmp_path / "s", wrong))
    assert (found.passed, found.figure) == (False, None)
    assert why in found.text


def test_other_protocols_are_no_comparison(tmp_path: Path) -> None:
    mine = scores(tmp_path / "a", {"m": set()})
    theirs = scores(tmp_path / "b", {"base": set()}, shots=5)
    table = json.loads((theirs / "protocols.json").read_text())
    rows = (theirs / "protocols.json", {"q": table["p"]})
    rows[0].write_text(json.dumps(rows[1]))
    items = [
        ItemResult(id=f"b{i}", source="s", licence="l", item=f"i{i}", model="base", benchmark="exam",
                   metric="accuracy", protocol="q", outcome="answered", value=1.0)
        for i in range(200)
    ]  # fmt: skip
    write_records(theirs / "items.parquet", items)
    found = only(Gate(accuracy_drop_max=0.5, against="base"), "accuracy_drop_max", mine, theirs)
    assert not found.passed
    assert "different protocols: shots" in found.text


# -- residual risk -----------------------------------------------------------------------------------------------------


def risks(**levels: str) -> dict[str, Any]:
    none = {"likelihood": None, "severity": None}
    return {"risks": {name: {"residual": level.replace("_", " "), "evidence": none} for name, level in levels.items()}}


def test_residual_risks_are_held_against_levels() -> None:
    told = risks(a="moderate", b="very_high", c="unmeasured")
    found = checks(Gate(residual_max={"a": "moderate", "*": "very high"}), register=told)
    assert [(c.of, c.passed) for c in found] == [("a", True), ("b", True), ("c", False)]
    assert [c.of for c in checks(Gate(residual_max={"b": "high"}), register=told)] == ["b"]
    with pytest.raises(AloeError, match="no risk 'd' in the register") as caught:
        checks(Gate(residual_max={"d": "high"}), register=told)
    assert caught.value.fix == "risks: a, b, c, or * for all others"


def test_a_register_without_risks_opens_no_gate() -> None:
    gate = Gate(residual_max={"*": "very high"})
    [found] = checks(gate, register={"risks": {}})
    assert (found.passed, found.figure) == (False, None)
    assert not verdict(gate, "m", [found])["passed"]
    assert not verdict(gate, "m", [])["passed"]


# -- parameters and the stop -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "sets no limit"),
        ({"by": "value"}, "sets no limit"),
        ({"accuracy_drop_max": 0.01}, "go together"),
        ({"asr_max": 0.1, "against": "base"}, "go together"),
        ({"asr_max": 0.1, "accuracy_on": ["exam"]}, "set both"),
        ({"asr_max": 10}, "less than or equal to 1"),
        ({"accuracy_drop_max": 0, "against": "base"}, "greater than 0"),
        ({"residual_max": {"a": "tiny"}}, "Input should be"),
        ({"asr": 0.1}, "Extra inputs"),
    ],
)
def test_a_gate_that_means_nothing_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Gate(**values)


def test_a_stop_names_every_missed_gate(tmp_path: Path) -> None:
    gate = Gate(asr_max=0.01, over_refusal_max=0.01, toxicity_max=0.1, third_outcomes_max=1)
    result = verdict(gate, "m", checks(gate, red_team(tmp_path / "r")))
    with pytest.raises(AloeError) as caught:
        refuse_missed(result, "release.gate")
    text = str(caught.value)
    assert "m is not released, 3 of 4 gates missed" in text
    assert "asr_max 0.01: attack success 0.0500, upper 95% bound 0.1118, > 0.01" in text
    assert "over_refusal_max 0.01" in text
    assert "toxicity_max 0.1: openings with a toxic continuation was not measured" in text
    assert caught.value.where == "release.gate"


def test_a_release_is_stopped_before_its_weights_and_a_passed_gate_is_on_record(recipe: Any) -> None:
    gated = Release(model="aligned", evidence=["scores", "red_team"], gate={"asr_max": 0.2, "third_outcomes_max": 1})
    with pytest.raises(AloeError, match=r"aligned is not released, a gate is missed"):
        gated.run(recipe)
    assert not (recipe.out / "model.safetensors").exists()
    assert (recipe.folder("red_team") / "red_team.json").exists()
    recipe.out = recipe.root / "again"
    recipe.out.mkdir()
    passing = Release(model="aligned", evidence=["scores", "red_team"], gate={"asr_max": 0.9, "third_outcomes_max": 1})
    summary = passing.run(recipe)
    assert summary["gates_passed"] == 2
    assert any("gate passed: asr_max 0.9" in line for line in recipe.said)
    told = json.loads((recipe.out / "gate.json").read_text())
    assert told["passed"]
    assert told["checks"][0]["links"][0]["file"] == "evidence/red_team/red_team.json"
    card = (recipe.out / "README.md").read_text()
    assert "Every limit of the release's gate was kept" in card
    assert "| asr_max: attack success | 0.9 | 0.6994 | 0.250 [0.046, 0.699], n 4 |" in card
