"""Verification: digests, tables from rows, and a merge made again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from aloe.errors import AloeError
from aloe.merge.step import Merge
from aloe.merge.stream import MergeJob
from aloe.release.verify import Finding, verify_artifact


def errors(folder: Path, **more: Any) -> list[Finding]:
    return [f for f in verify_artifact(folder, **more) if f.level == "error"]


def test_an_untouched_artifact_is_sound(recipe: Any) -> None:
    for name in recipe.steps:
        assert errors(recipe.folder(name)) == [], name
    assert any("4 of 4" in f.message or "of" in f.message for f in verify_artifact(recipe.folder("corpus")))


def test_missing_changed_and_extra_files_are_named(recipe: Any) -> None:
    folder = recipe.folder("scores")
    (folder / "items.parquet").unlink()
    text = (folder / "scores.json").read_text()
    (folder / "scores.json").write_text(text.replace("0.375", "0.475"))
    (folder / "new.txt").write_text("x")
    found = {f.where: f.message for f in errors(folder)}
    assert set(found) == {"items.parquet", "scores.json", "new.txt"}
    assert "missing" in found["items.parquet"]
    assert "digest" in found["scores.json"]
    assert "extra" in found["new.txt"]


def test_a_changed_size_is_reported_without_reading_the_file(recipe: Any) -> None:
    with open(recipe.folder("corpus") / "rows.parquet", "ab") as handle:
        handle.write(b"x")
    assert "bytes" in errors(recipe.folder("corpus"))[0].message


def test_an_edited_manifest_is_noticed(recipe: Any) -> None:
    path = recipe.folder("sft") / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["parameters"]["lr"] = 1.0
    path.write_text(json.dumps(manifest))
    assert [f.where for f in errors(recipe.folder("sft"))] == ["manifest.json"]


def test_scores_that_do_not_follow_from_their_rows_are_errors(recipe: Any) -> None:
    folder = recipe.folder("scores")
    scores = json.loads((folder / "scores.json").read_text())
    scores["scores"][0]["value"] = 0.9
    (folder / "scores.json").write_text(json.dumps(scores))
    recipe.add("scores", "evaluate", "scores")  # digests agree again: only the table is wrong now
    (finding,) = errors(folder)
    assert finding.check == "tables"
    assert "states 0.9, the rows give 0.375" in finding.message


def test_red_team_rates_are_computed_again(recipe: Any) -> None:
    folder = recipe.folder("red_team")
    assert any(f.check == "tables" and f.level == "ok" for f in verify_artifact(folder))
    result = json.loads((folder / "red_team.json").read_text())
    result["models"]["aligned"]["attack_success"]["high"] = 0.3
    result["models"]["aligned"]["over_refusal"] = None
    (folder / "red_team.json").write_text(json.dumps(result))
    recipe.add("red_team", "red_team", "red_team")
    messages = " ".join(f.message for f in errors(folder))
    assert "attack_success high: states 0.3" in messages
    assert "over_refusal value: states None" in messages


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AloeError, match=r"no manifest\.json"):
        verify_artifact(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(AloeError, match="can't be read"):
        verify_artifact(tmp_path)


def merged(recipe: Any, tiny_model_folder: Path) -> tuple[Path, dict[str, Path]]:
    """A real merge of two variants of the tiny model, with its manifest."""
    folders = {"base": tiny_model_folder, "tuned": recipe.root / "tuned"}
    shutil.copytree(tiny_model_folder, folders["tuned"])
    weights = load_file(folders["tuned"] / "model.safetensors")
    tuned = {name: value * 1.25 + 0.01 for name, value in weights.items()}
    save_file(tuned, folders["tuned"] / "model.safetensors", metadata={"format": "pt"})
    models = {"tuned": {"weight": 0.7, "density": 0.5}}
    step = Merge(method="dare_ties", base="base", models=models)  # type: ignore[arg-type]
    params = step.model_dump(mode="json", by_alias=True)
    (recipe.root / "merged").mkdir()
    MergeJob(params, folders["base"], {"tuned": folders["tuned"]}, {"tuned": "d1"}, 7).write(recipe.root / "merged")
    inputs = {"base": {"digest": "d0", "kind": "model"}, "tuned": {"digest": "d1", "kind": "model"}}
    recipe.add("merged", "merge", "model", parameters=params, inputs=inputs)
    return recipe.root / "merged", folders


def test_a_merge_is_made_again_bit_for_bit(recipe: Any, tiny_model_folder: Path) -> None:
    folder, folders = merged(recipe, tiny_model_folder)
    found = [f for f in verify_artifact(folder, resolve=folders.get) if f.check == "merge"]
    assert [f.level for f in found] == ["ok"]
    assert "same" in found[0].message


def test_a_merge_whose_weights_were_swapped_is_caught(recipe: Any, tiny_model_folder: Path) -> None:
    folder, folders = merged(recipe, tiny_model_folder)
    shutil.copyfile(folders["tuned"] / "model.safetensors", folder / "model.safetensors")
    manifest = recipe.steps["merged"]
    recipe.add("merged", "merge", "model", parameters=manifest["parameters"], inputs=manifest["inputs"])
    assert [f.check for f in errors(folder, resolve=folders.get)] == ["merge"]


def test_unreachable_inputs_are_a_note_not_a_pass(recipe: Any, tiny_model_folder: Path) -> None:
    folder, _ = merged(recipe, tiny_model_folder)
    (note,) = [f for f in verify_artifact(folder) if f.check == "merge"]
    assert note.level == "note"
    assert "base, tuned" in note.message
