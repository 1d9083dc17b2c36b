"""The scripts behind `make audit` and `make test-matrix`: what could not be asked about or run is never called fine."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"of_benchmarks_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


AUDIT, MATRIX = script("audit"), script("test_matrix")
SOUND = {"name": "numpy", "version": "2.4", "vulns": []}
SKIPPED = {"name": "scipy", "skip_reason": "Dependency not found on PyPI and could not be audited: scipy (1.17.1)"}
OWN = {"name": "aloe-llm", "skip_reason": "Dependency not found on PyPI and could not be audited: aloe-llm (0.1.0)"}
FLAWED = {"name": "jinja2", "version": "3.1.3", "vulns": [{"id": "X-1", "fix_versions": ["3.1.6"]}]}


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ([SOUND, OWN], AUDIT.CLEAN),
        ([SOUND, SKIPPED], AUDIT.NOT_ASKED),
        ([SKIPPED, OWN], AUDIT.NOT_ASKED),
        ([], AUDIT.NOT_ASKED),
        ([SOUND, SKIPPED, FLAWED], AUDIT.FOUND),
    ],
)
def test_only_what_was_asked_about_is_clean(said: list[dict[str, Any]], code: int) -> None:
    found = AUDIT.summary({"dependencies": said})
    assert AUDIT.verdict({"environment": found}) == code
    assert found["asked"] + found["not_asked"] == len([d for d in said if d is not OWN])
    assert AUDIT.verdict({"a": found, "b": AUDIT.summary({"dependencies": [SOUND]})}) == code


def test_a_finding_is_named_with_what_mends_it() -> None:
    text = "\n".join(AUDIT.lines("environment", AUDIT.summary({"dependencies": [FLAWED, SKIPPED]})))
    assert "jinja2 3.1.3: X-1, fixed in ['3.1.6']" in text
    assert "1 asked about, 1 findings, 1 not asked about" in text


def test_an_audit_that_says_nothing_is_not_clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "audit" / "bin" / "pip-audit"
    tool.parent.mkdir(parents=True)
    tool.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('no connection')\n")
    tool.chmod(0o755)
    monkeypatch.setattr(AUDIT, "HOME", tmp_path)
    found = AUDIT.ask([], "pypi")
    assert found["reasons"] == ["no connection"]
    assert AUDIT.verdict({"environment": found}) == AUDIT.NOT_ASKED


def test_a_cell_counts_what_needs_torch_apart_from_what_passed(tmp_path: Path) -> None:
    (tmp_path / "torchless.py").write_text(MATRIX.PLUGIN)
    (tmp_path / "test_cases.py").write_text(
        "import pytest\n"
        "def test_passes(): pass\n"
        "def test_fails(): assert 0, 'as it should'\n"
        "def test_skips(): pytest.skip('for a reason of its own')\n"
        "def test_needs_torch(): raise ModuleNotFoundError('x', name='torch.nn')\n"
        "def test_needs_it_below():\n"
        "    try: raise ModuleNotFoundError('x', name='peft')\n"
        "    except ImportError as e: raise RuntimeError('no adapter') from e\n"
        "def test_a_command_needs_it(): assert 1 == 0, \"No module named 'torch'\"\n"
        "def test_of_its_version(): {}['torch']\n"
        "def test_lacks_another(): raise ModuleNotFoundError('x', name='scipy')\n"
    )
    (tmp_path / "test_file.py").write_text("raise ModuleNotFoundError('x', name='torch')\n")
    command = [sys.executable, "-m", "pytest", "-p", "torchless", "-p", "no:cacheprovider", "--junitxml=told.xml", "."]
    subprocess.run(command, cwd=tmp_path, capture_output=True, env={"PYTHONPATH": str(tmp_path)})
    found = MATRIX.counted(tmp_path / "told.xml")
    assert {k: found[k] for k in ("passed", "failed", "skipped", "needs_torch")} == {
        "passed": 1, "failed": 2, "skipped": 1, "needs_torch": 5,
    }  # fmt: skip
    assert "as it should" in found["failures"][0]


def test_a_python_that_is_not_there_is_not_run() -> None:
    assert MATRIX.interpreter("3.99") is None
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert MATRIX.interpreter(here) is not None
