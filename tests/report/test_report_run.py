"""The report of a whole run: what every step's name stands for now, and what is older than its inputs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_release import FakeRun, make_release
from fake_transcripts import row
from test_report_page import Page

from aloe.errors import AloeError
from aloe.report import build_report, write_report
from aloe.report.evidence import gather, superseded


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FakeRun:
    return make_release(tmp_path_factory.mktemp("out"))


def test_a_run_has_every_section_of_its_release(run: FakeRun) -> None:
    whole = Page(build_report(run.store.root))
    release = Page(build_report(run.store.root / "release"))
    assert whole.open == []
    assert release.sections() <= whole.sections()
    assert "run report" in " ".join(whole.text[""].split())
    assert "Aloe-Fake-demo" in whole.text[""]
    targets = {a["id"] for _, a in whole.tags if "id" in a}
    assert {a["href"].removeprefix("#") for t, a in whole.tags if t == "a"} <= targets


def test_every_step_stands_there_once_inputs_first(run: FakeRun) -> None:
    steps = list(gather(run.store.root).steps)
    assert sorted(steps) == sorted(run.made)
    for name, artifact in run.made.items():
        for entry in artifact.manifest["inputs"].values():
            assert "step" not in entry or steps.index(entry["step"]) < steps.index(name)


def test_a_step_older_than_its_input_is_stale(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    run.step("corpus", "curate", "dialogues", {"rows.txt": "one"})
    run.step("sft", "sft", "model", {"w.txt": "x"}, inputs=("corpus",))
    assert "No step was made from an artifact that another has replaced" in text_of(run)
    run.step("corpus", "curate", "dialogues", {"rows.txt": "two"}, fingerprint="0" * 32)
    for name, artifact in run.made.items():
        run.store.point(name, artifact)
    found = gather(run.store.root)
    assert superseded(found.steps["sft"], found.steps) == ["corpus"]
    assert superseded(found.steps["corpus"], found.steps) == []
    assert "1 stale" in text_of(run)
    assert "stale: corpus made anew" in text_of(run)


def text_of(run: FakeRun) -> str:
    for name, artifact in run.made.items():
        run.store.point(name, artifact)
    return " ".join(Page(build_report(run.store.root)).text["recipe"].split())


def test_a_run_shows_the_transcripts_that_its_release_withholds(tmp_path: Path) -> None:
    run = FakeRun(tmp_path)
    said = [row("a", "m", "attack", "A-HARMFUL-REPLY", 1.0)]
    run.step("red_team", "red_team", "red_team", {"red_team.json": {"models": {}}, "transcripts.parquet": said})
    lineage = {name: a.manifest for name, a in run.made.items()}
    run.step("release", "release", "release", {"lineage.json": lineage}, inputs=("red_team",))
    for name, artifact in run.made.items():
        run.store.point(name, artifact)
    assert "A-HARMFUL-REPLY" in build_report(run.store.root)
    assert "A-HARMFUL-REPLY" not in build_report(run.store.root / "release")


def test_an_edited_artifact_is_refused_and_an_empty_run_says_what_to_do(run: FakeRun, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run.store.root, copy, symlinks=True)
    (copy / "scores" / "scores.json").write_text("{}")
    with pytest.raises(AloeError, match="changed after it was written"):
        build_report(copy)
    (tmp_path / "empty" / ".store").mkdir(parents=True)
    with pytest.raises(AloeError, match="without a finished step"):
        build_report(tmp_path / "empty")


def test_its_page_may_lie_in_the_runs_folder(run: FakeRun) -> None:
    out = write_report(run.store.root, run.store.root / "report.html")
    assert Page(out.read_text(encoding="utf-8")).open == []
    assert "report.html" not in build_report(run.store.root)
