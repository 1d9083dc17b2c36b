"""Inputs from outside a recipe, finding inputs again, launching in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toys import Source

from aloe.contract import Ref
from aloe.errors import AloeError
from aloe.licence import parts
from aloe.recipe import Recipe
from aloe.release.verify import verify_artifact
from aloe.run.execute import run_recipe
from aloe.run.inputs import fetch_rows, open_resource
from aloe.run.launch import launch
from aloe.run.plan import fingerprint
from aloe.run.progress import Console
from aloe.run.reach import reach

ROWS, MODEL = Ref(("dialogues",), "rows"), Ref(("model",), "model")
QUIET = Console(quiet=True)


def test_a_files_licence_stands_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}")
    assert open_resource(str(path), ROWS, None).licence == "unknown"
    (tmp_path / "rows.jsonl.license").write_text("SPDX-FileCopyrightText: us\n\nSPDX-License-Identifier: CC-BY-4.0\n")
    assert open_resource(str(path), ROWS, None).licence == "cc-by-4.0"


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("SPDX-License-Identifier: MIT OR Apache-2.0\n", "mit or apache-2.0"),
        ("# SPDX-License-Identifier: CC-BY-4.0\n# SPDX-License-Identifier: MIT OR ISC\n", "cc-by-4.0 and (mit or isc)"),
        ("CC-BY-4.0 AND CC-BY-SA-4.0\n", "cc-by-4.0 and cc-by-sa-4.0"),
        ("\n", "unknown"),
    ],
)
def test_a_sidecar_holds_a_whole_expression(tmp_path: Path, text: str, licence: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}")
    (tmp_path / "rows.jsonl.license").write_text(text)
    found = open_resource(str(path), ROWS, None).licence
    assert found == licence
    assert set(parts(found)) == set(parts(licence))


def test_relative_files_start_from_the_recipe_too(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    assert open_resource("rows.jsonl", ROWS, tmp_path).path == tmp_path / "rows.jsonl"


@pytest.mark.parametrize("ref", ["org/name", "org/name@v1", "org/name@main::test", "org/name@main:config:test"])
def test_hub_data_sets_are_recognised_and_not_fetched(ref: str) -> None:
    resource = open_resource(ref, ROWS, None)
    assert (resource.origin, resource.digest) == ("hub", None)


@pytest.mark.parametrize("ref", ["nothing here", "folder/rows.jsonl", "a/b/c"])
def test_what_names_nothing_is_an_error(ref: str) -> None:
    with pytest.raises(AloeError, match="no rows"):
        open_resource(ref, ROWS, None)


def test_a_hub_data_set_becomes_a_parquet_file_with_its_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same call on a local folder in the hub's layout: data files and a card."""
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text(json.dumps({"question": "What?", "answer": "That."}) + "\n")
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALOE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("aloe.run.inputs._stated_licence", lambda name: (folder / "README.md").read_text().split()[2])
    resource = fetch_rows("org/name::test")
    assert resource.path is not None
    assert resource.path.suffix == ".parquet"
    assert resource.licence == "cc-by-4.0"
    assert fetch_rows("org/name::test").digest == resource.digest


def test_an_absent_hub_data_set_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALOE_HOME", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(AloeError, match="can't fetch the data set org/none"):
        fetch_rows("org/none")


def test_two_files_of_one_name_stay_two() -> None:
    step = Source(files=["a/rows.jsonl", "b/rows.jsonl"])

    def of(a: str, b: str) -> str:
        return fingerprint(step, {}, {"a/rows.jsonl": a, "b/rows.jsonl": b}, ["a/rows.jsonl", "b/rows.jsonl"])

    assert len({of("x", "x"), of("x", "y"), of("y", "x")}) == 3
    moved = Source(files=["c/rows.jsonl", "d/rows.jsonl"])
    paths = ["c/rows.jsonl", "d/rows.jsonl"]
    assert fingerprint(moved, {}, dict(zip(paths, "xy", strict=True)), paths) == of("x", "y")


@pytest.fixture
def merged(tmp_path: Path, tiny_model_folder: Path) -> tuple[Recipe, Path]:
    """A recipe of one training step and a merge of it with its base, already run."""
    rows = [{"id": str(i), "question": f"What about symptom {i}?", "answer": f"Rest helps {i}."} for i in range(3)]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe: dict[str, Any] = {
        "family": "tiny",
        "licence": "cc-by-nc-4.0",
        "steps": {
            "corpus": {"curate": {"sources": [str(tmp_path / "qa.jsonl")]}},
            "sft": {"sft": {"base": str(tiny_model_folder), "data": "corpus", "epochs": 1, "lr": 1e-3}},
            "merged": {
                "merge": {"method": "dare_ties", "base": str(tiny_model_folder), "models": {"sft": {"density": 0.5}}}
            },
        },
    }
    parsed = Recipe.parse(recipe)
    run_recipe(parsed, out=tmp_path / "out", console=QUIET)
    return parsed, tmp_path / "out" / "tiny"


def test_verify_merges_a_sampled_tensor_again(merged: tuple[Recipe, Path]) -> None:
    folder = (merged[1] / "merged").resolve()
    findings = verify_artifact(folder, reach(folder))
    assert [f.level for f in findings if f.check == "merge"] == ["ok"]
    assert not [f for f in findings if f.level == "error"]


def test_inputs_with_other_content_are_not_reached(merged: tuple[Recipe, Path], tmp_path: Path) -> None:
    import shutil

    folder = (merged[1] / "merged").resolve()
    elsewhere = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert reach(folder)("sft") == (merged[1] / "sft").resolve()
    assert reach(elsewhere)("sft") is None
    assert reach(folder)("no such") is None


def test_steps_in_processes_of_their_own_make_the_same_artifacts(merged: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, root = merged
    path = tmp_path / "again.yaml"
    path.write_text(recipe.dump(recipe.order).replace("via: here", "via: process"))
    result = launch(Recipe.load(path), out=tmp_path / "other", console=QUIET)
    assert result.made == ["corpus", "sft", "merged"]
    for name in recipe.order:
        before = json.loads((root / name / "manifest.json").read_text())
        after = result.artifacts[name].manifest
        assert after["content_digest"] == before["content_digest"], name
        assert after["fingerprint"] == before["fingerprint"], name
    assert launch(Recipe.load(path), out=tmp_path / "other", console=QUIET).made == []
