"""Accuracy by number of members and its cost: every point of the scores, and none that isn't there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fake_release import FakeRun
from fake_results import EVIL
from fake_scores import SKILL, STRATEGIES, hostile_scores, make_scores
from hypothesis import given
from hypothesis import strategies as st
from test_report_page import Page

from aloe.report import build_report
from aloe.report.ensembles import ensembles
from aloe.report.ensembles_charts import Point, Series, shares
from aloe.report.evidence import gather


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scores(tmp_path_factory.mktemp("scores")).path


def test_a_curve_a_model_and_a_chart_a_protocol(made: Path) -> None:
    entry = ensembles(gather(made), {})[0]
    assert [(c["benchmark"], c["strategy"], c["n"]) for c in entry["by_size"]] == [("exam", "vote", 24)]
    chart = str(entry["by_size"][0]["chart"])
    assert chart.count("<path") == len(SKILL)
    assert chart.count("<circle") == len(SKILL) * 5
    assert chart.count("whisker") == len(SKILL) * 5  # too many models for bands
    assert all(f"{model}:" in chart for model in SKILL)


def test_cost_compares_the_strategies_of_one_model(made: Path) -> None:
    entry = ensembles(gather(made), {})[0]
    assert [c["model"] for c in entry["by_cost"]] == list(SKILL)
    chart = str(entry["by_cost"][0]["chart"])
    assert "direct" in chart
    assert "vote" in chart
    assert chart.count('class="band') == 1  # one reply alone has a bar


def test_every_point_stands_in_the_table_with_its_interval_and_tokens(made: Path) -> None:
    rows = ensembles(gather(made), {})[0]["rows"]
    assert len(rows) == len(SKILL) * (1 + STRATEGIES["vote"].members)
    assert [r["n"] for r in rows if r["model"] == "sft" and r["strategy"] == "vote"] == [1, 2, 3, 4, 5]
    for row in rows:
        assert row["low"] <= row["value"] <= row["high"]
        assert row["tokens"] == row["prompt_tokens"] + row["completion_tokens"]
    page = Page(build_report(made))
    text = " ".join(page.text["ensembles"].split())
    last = next(r for r in rows if r["model"] == "aligned" and r["n"] == 5)
    assert f"{last['value']:.1%}" in text
    assert "members asked" in text
    assert page.open == []


def test_strategies_on_other_items_never_meet_in_a_chart(tmp_path: Path) -> None:
    def record(strategy: str, protocol: str) -> dict[str, object]:
        points = [{"n": n, "value": 0.5, "prompt_tokens": 10.0 * n, "completion_tokens": 1.0} for n in (1, 2)]
        return {"model": "m", "benchmark": "b", "strategy": strategy, "protocol": protocol, "metric": "accuracy",
                "n": 9, "value": 0.5, "extra": {"accuracy_at": points}}  # fmt: skip

    table = {"models": ["m"], "benchmarks": ["b"], "scores": [record("one", "p"), record("two", "q"), record("x", "z")]}
    same = {"items_digest": "1", "data_digest": "2", "template_digest": "3"}
    for protocols, charts in (({"p": same, "q": same}, 2), ({"p": same, "q": {**same, "items_digest": "9"}}, 3)):
        run = FakeRun(tmp_path / str(charts))
        files = {"scores.json": table, "protocols.json": protocols}
        found = ensembles(gather(run.step("scores", "evaluate", "scores", files).path), {})
        assert len(found[0]["by_cost"]) == charts


def test_a_benchmark_without_an_ensemble_has_no_section(tmp_path: Path) -> None:
    points = [{"n": 1, "value": 0.5}, {"n": 2, "value": None}]
    record = {"model": "m", "benchmark": "b", "strategy": "direct", "protocol": "p", "metric": "accuracy", "n": 9,
              "value": 0.5, "unparsed": 0, "errored": 0, "extra": {"accuracy_at": points}}  # fmt: skip
    table = {"models": ["m"], "benchmarks": ["b"], "scores": [record]}
    made = FakeRun(tmp_path).step("scores", "evaluate", "scores", {"scores.json": table})
    assert ensembles(gather(made.path), {}) == []
    assert "ensembles" not in Page(build_report(made.path)).sections()


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    html = build_report(hostile_scores(tmp_path).path)
    assert "<script>window.hit" not in html
    assert "<img" not in html
    chart = shares([Series(EVIL.replace("\ud800", ""), [Point(1.0, 0.5, note=EVIL)])], EVIL, "x")
    assert "<script" not in chart
    assert "<img" not in chart


@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.floats(0, 1), st.floats(0, 0.5), st.floats(0, 0.5)), min_size=1, max_size=12
    ),
    st.booleans(),
    st.integers(1, 4),
)
def test_nothing_is_drawn_outside_the_axes(found: list[tuple[int, float, float, float]], whole: bool, n: int) -> None:
    points = [Point(float(x), y, max(0.0, y - a), min(1.0, y + b)) for x, y, a, b in sorted(found)]
    chart = str(shares([Series(f"m{i}", points, i) for i in range(n)], "t", "x", whole))
    heights = [float(v) for v in re.findall(r'<circle cx="[-\d.]+" cy="([-\d.]+)"', chart)]
    heights += [float(v) for v in re.findall(r'y[12]="([-\d.]+)" class="whisker', chart)]
    assert heights
    assert all(7.9 <= v <= 178.1 for v in heights)
    across = [float(v) for v in re.findall(r'<circle cx="([-\d.]+)"', chart)]
    assert all(49.0 <= v <= 370.0 for v in across)
