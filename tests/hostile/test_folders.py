"""Model folders and releases of strangers: nothing outside them is read, nothing in them is run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_recipe import SmallRecipe, small_recipe, write_manifest
from typer.testing import CliRunner

from aloe.cli import app
from aloe.errors import AloeError
from aloe.models.load import load, load_template
from aloe.models.sources import check_folder, resolve
from aloe.release.verify import verify_artifact


@pytest.fixture
def recipe(tmp_path: Path) -> SmallRecipe:
    return small_recipe(tmp_path / "recipe")


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def link_out(folder: Path) -> None:
    (folder.parent / "secret.txt").write_text("s")
    (folder / "merges.txt").symlink_to(folder.parent / "secret.txt")


def split(shard: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        shutil.copy(folder / "model.safetensors", folder.parent / "other.safetensors")
        index = {"weight_map": {"model.embed_tokens.weight": shard}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return apply


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "remote code": (lambda f: change(f / "config.json", auto_map={"AutoModel": "x.Y"}), "its own code"),
    "remote code of the tokenizer": (lambda f: change(f / "tokenizer_config.json", auto_map={}), "its own code"),
    "pickle": (pickled, "pickled"),
    "link": (link_out, "leads out of the folder"),
    "pipe": (lambda f: os.mkfifo(f / "merges.txt"), "no regular file"),
    "shard above": (split("../other.safetensors"), "leads out of the folder"),
    "absolute shard": (split("/etc/hostname"), "leads out of the folder"),
    "shard that is a folder": (split(".."), "leads out|is missing"),
    "index of another shape": (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": [1]}'), "map"),
    "a million layers": (lambda f: change(f / "config.json", num_hidden_layers=10**6), "the folder holds"),
    "a vocabulary of 2^40": (lambda f: change(f / "config.json", vocab_size=1 << 39), "the folder holds"),
    "a size that is none": (lambda f: change(f / "config.json", hidden_size="x"), "not a size"),
    "a size below zero": (lambda f: change(f / "config.json", hidden_size=-1), "not a size"),
    "config of 100,000 brackets": (lambda f: (f / "config.json").write_text("[" * 10**5), "not valid JSON"),
    "header of 2^60 bytes": (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 7 + b"\x10{}"), "safetensors"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_model_folder_is_refused_before_it_is_loaded(name: str, folder: Path) -> None:
    make, what = HOSTILE[name]
    make(folder)
    for read in (check_folder, load, lambda f: resolve(str(f))):
        with pytest.raises(AloeError, match=what):
            read(folder)


def test_an_adapter_beside_the_weights_would_name_another_model(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/etc"}))
    with pytest.raises(AloeError, match="a model and an adapter"):
        load(folder)


def test_what_transformers_can_not_load_is_an_error_of_ours(folder: Path) -> None:
    change(folder / "config.json", model_type="no-such-architecture")
    with pytest.raises(AloeError, match="transformers can't load it"):
        load(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(AloeError, match="can't"):
        load_template(folder)


def test_the_hubs_cache_is_one_place(tiny_model_folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "main"
    shutil.copytree(tiny_model_folder, blobs)
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    check_folder(snapshot)


# -- artifacts and releases -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../etc/hostname", "/etc/hostname", "a/../../b", "", "a\\..\\b"])
def test_a_manifest_that_lists_a_file_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    from aloe.run.store import read_artifact

    manifest = write_manifest(tmp_path, step="s", verb="v", kind="k", version=1)
    from aloe.digests import digest_json

    del manifest["manifest_digest"]
    manifest["files"] = {name: {"digest": "0", "bytes": 0}}
    manifest["manifest_digest"] = digest_json(manifest)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for read in (verify_artifact, read_artifact):
        with pytest.raises(AloeError, match="lies outside the folder"):
            read(tmp_path)


def test_links_in_a_release_are_neither_followed_nor_sent(recipe: SmallRecipe, tmp_path: Path) -> None:
    place = recipe.folder("scores")
    (tmp_path / "elsewhere").mkdir()
    (place / "evidence").symlink_to(tmp_path / "elsewhere")
    [found] = verify_artifact(place)
    assert (found.level, found.where) == ("error", "evidence")
    result = CliRunner().invoke(app, ["push", str(place), str(tmp_path / "target")])
    assert isinstance(result.exception, AloeError)
    assert not (tmp_path / "target").exists()


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def replaced(value: Any, path: list[float], new: Any) -> Any:
    """`value` with what lies at a random path replaced."""
    if not path or not isinstance(value, dict | list) or not value:
        return new
    at = int(path[0] * len(value)) % len(value)
    if isinstance(value, list):
        return [replaced(v, path[1:], new) if i == at else v for i, v in enumerate(value)]
    key = list(value)[at]
    return {k: replaced(v, path[1:], new) if k == key else v for k, v in value.items()}


@pytest.mark.parametrize(("step", "name"), [("scores", "scores.json"), ("red_team", "red_team.json")])
def test_tables_of_any_shape_are_findings(step: str, name: str, recipe: SmallRecipe) -> None:
    place = recipe.folder(step)
    good = json.loads((place / name).read_text())

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.floats(0, 0.999), max_size=4), VALUES)
    def changed(path: list[float], new: Any) -> None:
        (place / name).write_text(json.dumps(replaced(good, path, new)))
        fields = json.loads((place / "manifest.json").read_text())
        write_manifest(
            place, **{k: v for k, v in fields.items() if k not in ("files", "content_digest", "manifest_digest")}
        )
        verify_artifact(place)
        for command in (["show", str(place)], ["report", str(place), "--out", str(place.parent / "page.html")]):
            result = CliRunner().invoke(app, command)
            assert result.exception is None or isinstance(result.exception, AloeError), result.exception

    changed()


def test_a_strangers_recipe_sends_no_key_unless_told(recipe: SmallRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    from aloe.recipe import Recipe
    from aloe.reproduce_command import _check_servers

    monkeypatch.setenv("MY_BANK_PASSWORD", "sesame")
    raw = {
        "family": "f", "licence": "apache-2.0",
        "servers": {"big": {"endpoints": ["http://127.0.0.1:9/v1"], "model": "m", "key_env": "MY_BANK_PASSWORD"}},
        "steps": {"s": {"synthesize": {"questions": "starter/medical_mcq", "writer": "big"}}},
    }  # fmt: skip
    with pytest.raises(AloeError, match="MY_BANK_PASSWORD") as caught:
        _check_servers(Recipe.parse(raw), recipe.root)
    assert "sesame" not in str(caught.value)


# -- data folders ---------------------------------------------------------------------------------------------------


def rows_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"question": "Which?", "options": {"A": "one", "B": "two"}, "answer": "A"}\n')
    return path


def linked(folder: Path, secret: Path) -> None:
    (folder / "train-more.jsonl").symlink_to(secret)


def linked_folder(folder: Path, secret: Path) -> None:
    (folder / "README.md").write_text("---\nconfigs:\n- {config_name: a, data_files: 'more/*.jsonl'}\n---\n")
    (folder / "more").symlink_to(secret.parent)


def linked_arrow(folder: Path, secret: Path) -> None:
    (folder / "state.json").write_text('{"_data_files": [{"filename": "a.arrow"}]}')
    (folder / "a.arrow").symlink_to(secret)


def linked_artifact(folder: Path, secret: Path) -> None:
    (folder / "rows.parquet").symlink_to(secret)


@pytest.mark.parametrize("make", [linked, linked_folder, linked_arrow, linked_artifact])
def test_a_data_folder_leads_nowhere_else(make: Callable[[Path, Path], None], tmp_path: Path) -> None:
    from aloe.data.folders import files_of

    secret = rows_file(tmp_path / "elsewhere" / "secret.jsonl")
    folder = rows_file(tmp_path / "set" / "train.jsonl").parent
    assert [p.name for p in files_of(folder)] == ["train.jsonl"]
    make(folder, secret)
    with pytest.raises(AloeError, match="is a link that leads out of the folder"):
        files_of(folder)


def test_a_data_folder_that_leads_out_is_refused_before_it_is_digested(tmp_path: Path) -> None:
    from aloe.contract import Ref
    from aloe.run.inputs import open_resource

    folder = rows_file(tmp_path / "set" / "train.jsonl").parent
    mark = Ref(("questions",), "rows")
    assert open_resource(str(folder), mark, None).path == folder
    linked(folder, rows_file(tmp_path / "elsewhere.jsonl"))
    with pytest.raises(AloeError, match=r"train-more\.jsonl is a link that leads out"):
        open_resource(str(folder), mark, None)


def test_a_link_that_a_recipe_names_is_followed(tmp_path: Path) -> None:
    """The recipe is the user's own word, and a link beside it, too; what lies in a folder may be a stranger's."""
    from aloe.data.folders import files_of

    kept = rows_file(tmp_path / "disk" / "train.jsonl")
    (tmp_path / "here.jsonl").symlink_to(kept)
    (tmp_path / "set").symlink_to(kept.parent)
    assert files_of(tmp_path / "here.jsonl") == [tmp_path / "here.jsonl"]
    assert [p.name for p in files_of(tmp_path / "set")] == ["train.jsonl"]


def test_a_snapshot_of_a_data_set_in_the_hubs_cache_is_one_place(tmp_path: Path) -> None:
    from aloe.data.folders import files_of

    blob = rows_file(tmp_path / "datasets--a--b" / "blobs" / "0123")
    data = tmp_path / "datasets--a--b" / "snapshots" / "main" / "data"
    data.mkdir(parents=True)
    (data / "train.jsonl").symlink_to(Path("../../../blobs") / blob.name)
    for folder in (data.parent, data):
        assert [p.name for p in files_of(folder)] == ["train.jsonl"]
