"""Artifacts, fingerprints and planning, with toy steps."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import RECIPE, Knobs, Source, Train, toys  # noqa: F401

from aloe.errors import AloeError
from aloe.recipe import Recipe
from aloe.run.execute import run_recipe
from aloe.run.plan import fingerprint, plan
from aloe.run.progress import Console
from aloe.run.store import Store, read_artifact

QUIET = Console(quiet=True)


def write(tmp_path: Path, text: str = RECIPE) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def run(tmp_path: Path, *overrides: str, **options: object) -> list[str]:
    recipe = Recipe.load(write(tmp_path), overrides)
    return run_recipe(recipe, out=tmp_path / "out", console=QUIET, **options).made  # type: ignore[arg-type]


def states(tmp_path: Path, *overrides: str) -> dict[str, str]:
    recipe = Recipe.load(write(tmp_path), overrides)
    return {p.name: p.state for p in plan(recipe, Store(tmp_path / "out" / "toy"))}


@pytest.mark.usefixtures("toys")
class TestFreshness:
    def test_a_second_run_makes_nothing(self, tmp_path: Path) -> None:
        assert run(tmp_path) == ["rows", "first", "second", "done"]
        assert run(tmp_path) == []
        assert set(states(tmp_path).values()) == {"fresh"}

    def test_a_changed_field_re_makes_only_what_depends_on_it_and_plan_names_it(self, tmp_path: Path) -> None:
        run(tmp_path)
        recipe = Recipe.load(write(tmp_path), ["second.knobs.beta=0.7"])
        planned = {p.name: p for p in plan(recipe, Store(tmp_path / "out" / "toy"))}
        assert [planned[n].state for n in ("rows", "first", "second", "done")] == ["fresh", "fresh", "runs", "after"]
        assert planned["second"].reasons == ["knobs.beta 0.5 -> 0.7"]
        assert run(tmp_path, "second.knobs.beta=0.7") == ["second", "done"]

    def test_returning_to_old_parameters_reuses_the_old_artifacts(self, tmp_path: Path) -> None:
        run(tmp_path)
        run(tmp_path, "second.knobs.beta=0.7")
        assert states(tmp_path)["second"] == "stored"
        assert run(tmp_path) == []
        assert "0.5" in (tmp_path / "out" / "toy" / "second" / "weights.txt").read_text()

    def test_an_input_that_comes_out_equal_leaves_the_rest_fresh(self, tmp_path: Path) -> None:
        run(tmp_path)
        assert run(tmp_path, "rows.text=axx") == ["rows"]

    def test_logs_do_not_count_towards_content(self, tmp_path: Path) -> None:
        run(tmp_path)
        assert run(tmp_path, redo=["rows"]) == ["rows"]

    def test_a_moved_file_changes_nothing_and_an_edited_one_does(self, tmp_path: Path) -> None:
        here, there = tmp_path / "here", tmp_path / "there"
        for folder in (here, there):
            folder.mkdir()
            (folder / "x.jsonl").write_text("same")
        assert "rows" in run(tmp_path, f"rows.files=['{here}/x.jsonl']")
        assert run(tmp_path, f"rows.files=['{there}/x.jsonl']") == []
        (there / "x.jsonl").write_text("other")
        assert "rows" in run(tmp_path, f"rows.files=['{there}/x.jsonl']")

    def test_only_named_steps_and_what_they_need(self, tmp_path: Path) -> None:
        assert run(tmp_path, steps=["first"]) == ["rows", "first"]


@pytest.mark.usefixtures("toys")
class TestKilled:
    def test_an_interrupt_keeps_finished_steps_and_the_same_command_goes_on(self, tmp_path: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, "second.fail=true")
        assert states(tmp_path)["first"] == "fresh"
        assert not list((tmp_path / "out" / "toy" / ".store").glob("tmp-*"))
        assert run(tmp_path) == ["second", "done"]

    def test_leftovers_of_a_kill_are_swept_and_never_read(self, tmp_path: Path) -> None:
        run(tmp_path)
        left = tmp_path / "out" / "toy" / ".store" / "tmp-second-x"
        left.mkdir()
        (left / "weights.txt").write_text("half")
        assert run(tmp_path) == []
        assert not left.exists()

    def test_a_folder_without_manifest_is_no_artifact(self, tmp_path: Path) -> None:
        run(tmp_path)
        folder = (tmp_path / "out" / "toy" / "second").resolve()
        (folder / "manifest.json").unlink()
        with pytest.raises(AloeError, match="not an artifact"):
            read_artifact(folder)
        assert run(tmp_path) == ["second"]

    def test_a_full_disk_is_one_clear_error_and_finished_steps_stay(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = Train.run

        def full(self: Train, ctx: object) -> dict[str, object]:
            if self.start:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(self, ctx)  # type: ignore[arg-type]

        monkeypatch.setattr(Train, "run", full)
        with pytest.raises(AloeError, match="disk is full") as caught:
            run(tmp_path)
        assert "finished steps are kept" in str(caught.value)
        assert states(tmp_path)["first"] == "fresh"

    def test_two_runs_at_once_are_refused(self, tmp_path: Path) -> None:
        store = Store(tmp_path / "out" / "toy")
        with store.lock(), pytest.raises(AloeError, match="another run"):
            run(tmp_path)


@pytest.mark.usefixtures("toys")
class TestTampering:
    def test_an_edited_artifact_is_refused(self, tmp_path: Path) -> None:
        run(tmp_path)
        path = tmp_path / "out" / "toy" / "first" / "weights.txt"
        path.write_text(path.read_text() + " ")
        with pytest.raises(AloeError, match=r"weights\.txt was changed") as caught:
            run(tmp_path)
        assert "--redo first" in str(caught.value)

    def test_a_removed_file_is_refused(self, tmp_path: Path) -> None:
        run(tmp_path)
        (tmp_path / "out" / "toy" / "first" / "weights.txt").unlink()
        with pytest.raises(AloeError, match="missing"):
            run(tmp_path)

    def test_an_edited_manifest_is_refused(self, tmp_path: Path) -> None:
        run(tmp_path)
        path = tmp_path / "out" / "toy" / "first" / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["summary"] = {"texts": ["better"]}
        path.write_text(json.dumps(manifest))
        with pytest.raises(AloeError, match="manifest was changed"):
            run(tmp_path)

    def test_redo_mends_it(self, tmp_path: Path) -> None:
        run(tmp_path)
        (tmp_path / "out" / "toy" / "first" / "weights.txt").write_text("edited")
        assert run(tmp_path, redo=["first"])[0] == "first"
        assert run(tmp_path) == []


@pytest.mark.usefixtures("toys")
def test_manifest_says_what_made_it_from_what(tmp_path: Path) -> None:
    run(tmp_path)
    first = read_artifact((tmp_path / "out" / "toy" / "first").resolve()).manifest
    rows = read_artifact((tmp_path / "out" / "toy" / "rows").resolve()).manifest
    assert first["parameters"]["knobs"] == {"beta": 0.1, "names": []}
    assert first["inputs"]["rows"]["digest"] == rows["content_digest"]
    assert rows["ledger"] == [{"stage": "read", "in": 3, "kept": 2, "dropped": {"empty": 1}}]
    assert rows["tokens"] == {"processed": 10}
    assert first["versions"]["torch"]
    assert first["peak_memory_bytes"] > 0
    assert set(first["files"]) == {"weights.txt"}


@pytest.mark.usefixtures("toys")
def test_a_recipe_that_went_through_dump_makes_the_same_fingerprints(tmp_path: Path) -> None:
    run(tmp_path)
    text = Recipe.load(write(tmp_path)).dump(["rows", "first", "second", "done"])
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = Recipe.load(tmp_path / "recipe.yaml")
    assert {p.state for p in plan(recipe, Store(tmp_path / "out" / "toy"))} == {"fresh"}


# -- the fingerprint property -------------------------------------------------------------------------------------

parameters = st.fixed_dictionaries(
    {"text": st.text("ab", min_size=1, max_size=2), "seed": st.integers(0, 1), "digest": st.sampled_from(["x", "y"])}
)


@settings(max_examples=60, deadline=None)
@given(a=parameters, b=parameters)
def test_fingerprints_are_equal_exactly_when_all_they_cover_is(a: dict[str, object], b: dict[str, object]) -> None:
    def of(p: dict[str, object]) -> str:
        return fingerprint(Source(text=str(p["text"])), {"seed": p["seed"]}, {"starter/exam": str(p["digest"])})

    assert (of(a) == of(b)) == (a == b)


def test_version_verb_and_nested_parameters_change_the_fingerprint() -> None:
    class Newer(Source):
        version = 2

    base = fingerprint(Source(), {}, {})
    assert fingerprint(Newer(), {}, {}) != base
    one = fingerprint(Train(data={"rows": 1.0}), {}, {})
    other = fingerprint(Train(data={"rows": 1.0}, knobs=Knobs(names=["x"])), {}, {})
    assert base != one != other


def test_hardware_and_working_directory_do_not_enter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(Source(), {"seed": 1}, {"starter/exam": "x"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert fingerprint(Source(), {"seed": 1}, {"starter/exam": "x"}) == before
