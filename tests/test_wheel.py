"""The wheel: the same bytes from the same commit, wherever and whenever it is built, and what is in it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDED = ("pyproject.toml", "README.md", "LICENSE", ".gitignore")
EPOCH = "1700000000"


def build(tree: Path, epoch: str = EPOCH) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tree / "dist")]
    told = subprocess.run(
        command, cwd=tree, capture_output=True, text=True, env={**os.environ, "SOURCE_DATE_EPOCH": epoch}
    )
    assert told.returncode == 0, told.stderr
    [wheel] = (tree / "dist").glob("*.whl")
    return wheel


def copy_of_the_tree(to: Path) -> Path:
    to.mkdir()
    for name in NEEDED:
        shutil.copy(ROOT / name, to / name)
    shutil.copytree(ROOT / "src", to / "src")  # with the caches that lie there
    return to


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Built from two copies that differ in place, times, rights, caches and the order of their making."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("wheels")
    first = copy_of_the_tree(folder / "first")
    second = copy_of_the_tree(folder / "a-second-place")
    for path in sorted((second / "src").rglob("*"), reverse=True):
        if "__pycache__" in path.parts:
            continue
        path.chmod(0o700 if path.is_dir() else 0o600)
        os.utime(path, (1, 1))
    (second / "src" / "aloe" / "__pycache__").mkdir(exist_ok=True)
    (second / "src" / "aloe" / "__pycache__" / "left.cpython-311.pyc").write_bytes(b"left behind")
    return build(first), build(second)


def test_two_builds_give_the_same_bytes(wheels: tuple[Path, Path]) -> None:
    first, second = wheels
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()


def test_its_time_is_the_commits(wheels: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(wheels[0]) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(2023, 11, 14, 22, 13, 20)}


def test_it_holds_the_package_whole_and_nothing_else(wheels: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(wheels[0]) as archive:
        names = set(archive.namelist())
    package = {n for n in names if ".dist-info/" not in n}
    source = ROOT / "src"
    mine = {p.relative_to(source).as_posix() for p in (source / "aloe").rglob("*") if p.is_file()}
    assert package == {n for n in mine if "__pycache__" not in n}
    assert not [n for n in names if n.endswith(".pyc") or "tests/" in n or "benchmarks/" in n]
    assert any("/starter/" in n and n.endswith(".jsonl") for n in package)
    assert {"aloe/licences.yaml", "aloe/safety/register.yaml", "aloe/safety/calibrations.json"} <= package
    assert "aloe/safety/weights/weights.safetensors" in package
    assert [n for n in names if n.endswith(".dist-info/licenses/LICENSE")]


def test_its_commands_and_dependencies_are_those_stated(wheels: tuple[Path, Path]) -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(wheels[0]) as archive:
        [metadata] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
        [commands] = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        assert "aloe = aloe.cli:main" in archive.read(commands).decode()
    required = [line.split(": ", 1)[1] for line in text.splitlines() if line.startswith("Requires-Dist: ")]
    asked = {r.replace("-", "_") for r in required if "extra ==" not in r}
    assert asked == {d.replace("-", "_") for d in project["dependencies"]}
    assert f"Requires-Python: {project['requires-python']}" in text
