"""What is left of runs that were given up, and what `aloe clean` must not touch."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aloe.clean_command import seconds_of
from aloe.cli import app
from aloe.errors import AloeError
from aloe.run.clean import families, left_over
from aloe.run.store import Store

DAY = 86400.0


def put(path: Path, days: float, size: int = 1000) -> Path:
    """A file that was last written so many days ago; its folders are as old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    then = time.time() - days * DAY
    for place in (path, *path.parents[:3]):
        os.utime(place, (then, then))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    cache = tmp_path / "out" / "tiny" / ".cache"
    put(cache / "train" / "sft-old" / "step-30" / "shard.safetensors", 9, 5000)
    put(cache / "train" / "sft-mixed" / "step-10" / "shard.safetensors", 9)
    put(cache / "train" / "sft-mixed" / "step-20" / "shard.safetensors", 2)
    put(cache / "curate" / "key" / "load" / "rows.arrow", 8)
    put(cache / "tokens" / "key" / "tokens.bin", 90)
    put(cache / "requests.sqlite", 90)
    put(tmp_path / "out" / "tiny" / ".store" / "sft-1" / "model.safetensors", 90)
    return tmp_path / "out"


def clean(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["clean", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


def test_only_work_that_nobody_wrote_to_goes(out: Path) -> None:
    before = names(out)
    said = clean(str(out), "--dry-run")
    assert names(out) == before
    assert "would remove 2 folders of unfinished work, 0.0 MB; nothing was removed" in said
    assert "sft-old" in said
    assert "sft-mixed" not in said
    assert "removed 2 folders" in clean(str(out / "tiny"))
    gone = {"tiny/.cache/train/sft-old/step-30/shard.safetensors", "tiny/.cache/curate/key/load/rows.arrow"}
    assert before - names(out) == gone
    assert "removed 0 folders" in clean(str(out))
    assert "removed 1 folders" in clean(str(out), "--older-than", "36h")


def test_a_link_is_not_followed(out: Path, tmp_path: Path) -> None:
    elsewhere = put(tmp_path / "elsewhere" / "a" / "b" / "file", 90)
    (out / "tiny" / ".cache" / "train" / "linked").symlink_to(tmp_path / "elsewhere")
    (out / "tiny" / ".cache" / "train" / "sft-old" / "step-30" / "inside").symlink_to(elsewhere)
    clean(str(out), "--older-than", "0m")
    assert elsewhere.exists()
    assert not (out / "tiny" / ".cache" / "train" / "sft-old").exists()


def test_a_family_that_a_run_has_is_left_alone(out: Path) -> None:
    before = names(out)
    with Store(out / "tiny").lock(), pytest.raises(AloeError, match="run"):
        clean(str(out))
    assert names(out) == before


def test_ages_and_places(out: Path, tmp_path: Path) -> None:
    assert families(out) == families(out / "tiny") == [out / "tiny"]
    (old, *_) = [left for left in left_over(out / "tiny", 0) if left.path.name == "sft-old"]
    assert (old.size, old.age // DAY) == (5000, 9)
    assert [seconds_of(t) for t in ("30m", "12h", "7d", "1.5w")] == [1800, 43200, 7 * DAY, 10.5 * DAY]
    for wrong in ("7", "d", "-1d", "7 days", ""):
        with pytest.raises(AloeError, match="no length of time"):
            seconds_of(wrong)
    for nowhere in (tmp_path / "none", tmp_path):
        with pytest.raises(AloeError, match="no run was ever here"):
            families(nowhere)
