"""Recipes: one clear error each, with file, line and what would have been valid."""

from __future__ import annotations

from pathlib import Path

import pytest
from toys import RECIPE, toys  # noqa: F401

from aloe.errors import AloeError
from aloe.recipe import Recipe
from aloe.run.plan import open_resources

pytestmark = pytest.mark.usefixtures("toys")


def refuse(tmp_path: Path, old: str, new: str) -> str:
    assert old in RECIPE
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace(old, new, 1))
    with pytest.raises(AloeError) as caught:
        open_resources(Recipe.load(path))
    return str(caught.value)


def test_a_good_recipe_is_ordered_by_its_references(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    recipe = Recipe.load(path)
    assert recipe.order == ["rows", "first", "second", "done"]
    assert recipe.ancestors("second") == ["rows", "first"]


def test_misspelled_key(tmp_path: Path) -> None:
    text = refuse(tmp_path, "knobs: {beta: 0.1}", "knobs: {betta: 0.1}")
    assert "recipe.yaml:10" in text
    assert "did you mean 'beta'" in text
    assert "valid keys: beta, names" in text


def test_misspelled_parameter(tmp_path: Path) -> None:
    assert "did you mean 'start'" in refuse(tmp_path, "start: first", "strat: first")


def test_unknown_top_level_key(tmp_path: Path) -> None:
    text = refuse(tmp_path, "seed: 3", "sead: 3")
    assert "recipe.yaml:2" in text
    assert "did you mean 'seed'" in text


def test_wrong_type_names_line_and_value(tmp_path: Path) -> None:
    text = refuse(tmp_path, "        beta: 0.5", "        beta: strong")
    assert "recipe.yaml:16" in text
    assert "'strong'" in text


def test_unknown_verb(tmp_path: Path) -> None:
    assert "did you mean 'train'" in refuse(tmp_path, "train:", "trian:")


def test_unknown_step_name_suggests_the_nearest(tmp_path: Path) -> None:
    text = refuse(tmp_path, "start: first", "start: frist")
    assert "did you mean the step 'first'" in text
    assert "recipe.yaml:14" in text


def test_evidence_must_be_a_step(tmp_path: Path) -> None:
    assert "did you mean 'rows'" in refuse(tmp_path, "evidence: [rows", "evidence: [rowz")


def test_reference_to_a_step_of_the_wrong_kind(tmp_path: Path) -> None:
    text = refuse(tmp_path, "start: first", "start: rows")
    assert "makes dialogues" in text
    assert "steps that fit: first" in text


def test_cycle_is_spelled_out(tmp_path: Path) -> None:
    text = refuse(tmp_path, "      knobs: {beta: 0.1}", "      start: second")
    assert "first -> second -> first" in text


def test_missing_file(tmp_path: Path) -> None:
    text = refuse(tmp_path, "{text: abc}", "{text: abc, files: [data/none.jsonl]}")
    assert "data/none.jsonl" in text
    assert "recipe.yaml:6" in text


def test_unknown_starter_set_lists_them(tmp_path: Path) -> None:
    text = refuse(tmp_path, "{text: abc}", "{text: abc, files: [starter/exams]}")
    assert "starter/exam," in text


def test_missing_required_parameter(tmp_path: Path) -> None:
    assert "lacks 'data'" in refuse(tmp_path, "      data: {rows: 1.0}\n      knobs", "      knobs")


def test_key_twice(tmp_path: Path) -> None:
    assert "stands twice" in refuse(tmp_path, "seed: 3", "seed: 3\nseed: 4")


def test_two_verbs_in_a_step(tmp_path: Path) -> None:
    assert "exactly one verb" in refuse(tmp_path, "source: {text: abc}", "source: {text: abc}\n    train: {}")


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    assert "recipe.yaml:" in refuse(tmp_path, "source: {text: abc}", "source: {text: abc")


def test_unknown_licence(tmp_path: Path) -> None:
    assert "did you mean 'cc-by-nc-4.0'" in refuse(tmp_path, "cc-by-nc-4.0", "cc-by-nc-40")


def test_scientific_notation_without_a_dot_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("beta: 0.1", "beta: 2e-5"))
    assert Recipe.load(path).steps["first"].knobs.beta == 2e-5  # type: ignore[attr-defined]


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    recipe = Recipe.load(path, ["second.knobs.beta=1e-3", "seed=9"])
    assert recipe.steps["second"].knobs.beta == 1e-3  # type: ignore[attr-defined]
    assert recipe.head.seed == 9
    with pytest.raises(AloeError, match="did you mean 'second'"):
        Recipe.load(path, ["secnd.knobs.beta=1"])
    with pytest.raises(AloeError, match=r"step\.field=value"):
        Recipe.load(path, ["second"])
