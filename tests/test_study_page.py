"""The sentences of the study's page follow from the figures, whatever those say; collecting reads real artifacts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("results_study", "results_study_plot", "study"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def compared(**changes: Any) -> dict[str, Any]:
    return {
        "question": "stage 2 against stage 1", "benchmark": "exam", "metric": "accuracy", "unit": "share",
        "better": "higher", "difference": 0.02, "low": -0.01, "high": 0.05, "n": 400, "detectable": 0.043,
        "p_holm": 0.4, "verdict": None, **changes,
    }  # fmt: skip


def test_no_difference_is_said_with_what_could_have_been_found() -> None:
    from results_study import paragraph

    known = [compared(), compared(detectable=0.06, low=-0.09)]
    said = paragraph(known)
    assert said.startswith("No difference was found.")
    assert "reach to 9.0 points, so that much isn't excluded" in said
    assert "With 80% power, 4.3 to 6.0 points would have been found." in said
    assert "80% power" not in paragraph([*known, compared(detectable=None)])  # of all, or of none


@pytest.mark.parametrize(
    ("better", "difference", "word"),
    [("higher", 0.1, "better"), ("higher", -0.1, "worse"), ("lower", -0.1, "better"), ("lower", 0.1, "worse")],
)
def test_a_difference_is_better_or_worse_by_the_measures_own_direction(
    better: str, difference: float, word: str
) -> None:
    from results_study import paragraph

    said = paragraph([
        compared(better=better, difference=difference, low=difference - 0.05, high=difference + 0.05, p_holm=0.001)
    ])  # fmt: skip
    assert f"exam (accuracy): {word} by {100 * difference:+.1f}" in said
    assert "No difference" not in said


@pytest.mark.parametrize("p_holm", [0.051, 0.9])
def test_an_interval_apart_from_0_is_no_finding_before_adjustment_allows_it(p_holm: float) -> None:
    from results_study import paragraph

    assert paragraph([compared(low=0.001, p_holm=p_holm)]).startswith("No difference was found.")


def test_non_inferiority_is_claimed_only_where_it_is_shown() -> None:
    from results_study import margins

    shown, not_shown = compared(verdict="non-inferior"), compared(verdict="not shown", question="both stages")
    assert margins([shown, not_shown], 0.01).startswith("Non-inferior at 1 point: stage 2 against stage 1, exam")
    assert "both stages" not in margins([shown, not_shown], 0.01)
    assert margins([not_shown], 0.01) == "Non-inferiority at 1 point is shown for none of 1."


def test_names_lose_folders_and_nothing_else() -> None:
    from results_study import short

    assert short("/home/a/qwen-1.5b-q4.gguf against /home/a/small") == "qwen-1.5b-q4 against small"
    assert short("chain of thought against none") == "chain of thought against none"


def test_the_plot_is_an_image_with_every_comparison() -> None:
    from results_study_plot import forest

    rows = [compared(), compared(low=0.01, question="<b>bold</b>"), compared(difference=-0.1, low=-0.2, high=-0.05)]
    root = ElementTree.fromstring(forest(rows))
    assert sum(e.tag.endswith("circle") for e in root.iter()) == 3
    classes = [e.get("class") for e in root.iter() if e.tag.endswith("circle")]
    assert classes == ["dot ", "dot good", "dot bad"]
    ElementTree.fromstring(forest([]))


def test_a_recipe_is_given_only_the_models_it_names() -> None:
    from study import ROOT, named

    assert named(ROOT / "recipes/study.yaml", "models.base=x")
    assert not named(ROOT / "recipes/study.yaml", "models.large=x")
    assert named(ROOT / "recipes/study-sizes.yaml", "models.large=x")
    assert named(ROOT / "recipes/study-sizes.yaml", "sizes.benchmarks.medmcqa.limit=3")
