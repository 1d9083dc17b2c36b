"""The hardening loop's section: every round with its figures, what was kept, and why it ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import Browser
from fake_hardening import loop_file
from fake_release import FakeRun
from test_report_page import Page

from aloe.hardening.settings import Rails
from aloe.hardening.verdict import judge
from aloe.report import build_report, write_report
from aloe.report.evidence import gather
from aloe.report.hardening import LIMITS, STOPPED, loops


def made(root: Path, accuracy: bool = True) -> Path:
    return FakeRun(root).step("hardened", "red_team_loop", "model", {"loop.json": loop_file(accuracy)}).path


def test_every_round_stands_with_figures_changes_and_verdict(tmp_path: Path) -> None:
    found = loops(gather(made(tmp_path)))[0]
    assert [r["name"] for r in found["rounds"]] == ["start", "round 1", "round 2 ✓", "round 3"]
    assert [r["kept"] for r in found["rounds"]] == [True, True, True, False]
    assert found["kept"] == "round 2"
    assert found["stopped"] == STOPPED["rail"]
    assert found["rounds"][3]["crossed"] == ["over refusal"]
    assert [name for name, _ in found["rails"]] == ["Over-refusal", "Broken replies to look-alikes", "Accuracy"]
    rate = found["rounds"][1]["rates"][0]
    told = loop_file()["rounds"][1]["figures"]["attack_success"]
    assert (rate["low"], rate["high"]) == (told["clustered_low"], told["clustered_high"])  # over base requests
    text = " ".join(Page(build_report(made(tmp_path / "b"))).text["hardening"].split())
    for part in ("Kept: round 2", "a guard rail was crossed", "not kept, beyond the rail of over refusal", "70.0%",
                 "[48.1 to 85.5] n = 60", "40 harmful, 40 benign", "topics held out whole: weapons"):  # fmt: skip
        assert part in text, part


def test_accuracy_is_left_out_where_it_was_not_watched(tmp_path: Path) -> None:
    found = loops(gather(made(tmp_path, accuracy=False)))[0]
    assert [m for m, _ in found["measures"]] == ["attack_success", "unseen_topics", "over_refusal", "broken"]
    assert "Accuracy" not in [name for name, _ in found["rails"]]


def test_its_words_cover_what_the_loop_says() -> None:
    """Rails and reasons are those of the loop's own code."""
    assert set(LIMITS.values()) | {"accuracy", "by"} == set(Rails.model_fields)
    change = {"difference": 0.5, "low": 0.4, "high": 0.6, "after": 0.5, "p_value": 0.5}
    stops = {
        judge(Rails(), {"over_refusal": change}, change, fall_min=0.01, alpha=None).stop,
        judge(Rails(), {}, change, fall_min=0.01, alpha=None).stop,
        judge(Rails(), {}, None, fall_min=0.01, alpha=None).stop,
        judge(Rails(), {}, {**change, "difference": -0.5, "after": 0}, fall_min=0.01, alpha=None).stop,
    }
    assert stops == {"rail", "no_fall", "unjudged", "none_left"}
    assert stops <= set(STOPPED)


def test_an_artifact_without_a_loop_has_no_section(tmp_path: Path) -> None:
    page = Page(build_report(FakeRun(tmp_path).step("m", "dpo", "model", {"loop.json": {"rounds": []}}).path))
    assert "hardening" not in page.sections()


def test_hostile_reasons_are_escaped(tmp_path: Path) -> None:
    html = build_report(made(tmp_path))
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html


@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_laid_out_without_overflow(tmp_path: Path, width: int) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.open(write_report(made(tmp_path), tmp_path / "page.html"), width=width, dark=width == 390)
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.trouble == []
