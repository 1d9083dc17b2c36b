"""The recipes that ship: valid, planned without a network, with the papers' figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aloe.cli import app
from aloe.recipe import Recipe
from aloe.recipe_file import read_yaml
from aloe.run.plan import plan
from aloe.run.store import Store
from aloe.steps import VERBS

SHIPPED = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
RECIPES = [p for p in SHIPPED if not p.stem.startswith("study")]
STUDY = [p for p in SHIPPED if p.stem.startswith("study")]


def test_there_are_the_demo_and_three_of_the_papers_bases() -> None:
    names = {p.stem for p in RECIPES}
    assert {"demo", "aloe-mistral-7b", "aloe-llama3-8b", "aloe-qwen2.5-7b"} <= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_can_be_planned_offline(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = Recipe.load(path)
    planned = plan(recipe, Store(tmp_path / recipe.head.family))
    assert [p.name for p in planned] == recipe.order
    assert all(p.state in ("runs", "after") for p in planned)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipe_goes_through_every_chapter(path: Path) -> None:
    verbs = [s.verb for s in Recipe.load(path).steps.values()]
    assert set(VERBS) - {"rewrite", "preference_pairs", "merge_search", "red_team_loop"} <= set(
        verbs
    )  # no chapters of the papers
    assert verbs.count("dpo") >= 2


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem != "demo"], ids=lambda p: p.stem)
def test_paper_recipes_carry_the_papers_alignment_figures(path: Path) -> None:
    steps = Recipe.load(path).steps
    stages: list[Any] = [s for s in steps.values() if s.verb == "dpo"]
    assert [(s.lr, s.beta) for s in stages] == [(2e-7, 0.1), (1e-7, 0.1)]
    assert all(s.batch_pairs == 128 for s in stages[:1])
    [sft] = [s for s in steps.values() if s.verb == "sft"]
    values: Any = sft
    assert values.epochs == 4
    assert values.warmup_steps == 100
    text = path.read_text()
    assert "ours" in text
    assert "paper" in text


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_plan_command_prints_every_step(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = CliRunner().invoke(app, ["plan", str(path), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    for name in Recipe.load(path).order:
        assert name in result.output


# -- the study: rows from a folder, named once -----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Empty files by the names that the study's recipes give, and a classifier's folder."""
    for path in STUDY:
        for spec in read_yaml(path)["data"]["sets"].values():
            file = tmp_path / "rows" / spec["file"]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    (tmp_path / "toxicity").mkdir()
    return tmp_path


@pytest.mark.parametrize("path", STUDY, ids=lambda p: p.stem)
def test_the_study_is_planned_from_a_folder(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sets = [f"data.folder={folder / 'rows'}"]
    sets += [f"models.toxicity={folder / 'toxicity'}"] if path.stem == "study" else []
    recipe = Recipe.load(path, sets)
    planned = plan(recipe, Store(folder / "out"))
    assert [p.name for p in planned] == recipe.order


def test_the_study_of_sizes_needs_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    [path] = [p for p in STUDY if p.stem == "study-sizes"]
    assert Recipe.load(path).order == ["sizes", "strategies"]


@pytest.mark.parametrize("path", STUDY, ids=lambda p: p.stem)
def test_what_a_budget_may_shrink_exists_and_is_written_at_its_least(path: Path, folder: Path) -> None:
    """Every range names a field that the recipe has; without --budget the recipe is the small one."""
    raw = read_yaml(path)
    recipe = Recipe.load(path, [f"data.folder={folder / 'rows'}"])
    assert raw["budget"]
    for dotted, (least, most) in raw["budget"].items():
        step, *rest = dotted.split(".")
        value: Any = recipe.steps[step]
        for part in rest:
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        assert 1 <= value <= least <= most, dotted
