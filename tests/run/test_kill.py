"""kill -9 in the middle of a step, for real: nothing half-written is read, finished steps are kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = """
import sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
import toys
from aloe import recipe as module
from aloe.recipe import Recipe
from aloe.run.execute import run_recipe
from aloe.run.progress import Console

slow = toys.Train.run

def run(self, ctx):
    if self.start and {wait}:
        (ctx.out / "weights.txt").write_text("half")
        Path({flag!r}).touch()
        time.sleep(600)
    return slow(self, ctx)

toys.Train.run = run
module.VERBS = toys.TOYS
result = run_recipe(Recipe.load({recipe!r}), out={out!r}, console=Console(quiet=True))
print(",".join(result.made))
"""


def command(tmp_path: Path, *, wait: bool) -> list[str]:
    values = {
        "here": str(Path(__file__).parent),
        "wait": wait,
        "flag": str(tmp_path / "half-written"),
        "recipe": str(tmp_path / "recipe.yaml"),
        "out": str(tmp_path / "out"),
    }
    return [sys.executable, "-c", SCRIPT.format(**values)]


def test_kill_9_in_the_middle_of_a_step(tmp_path: Path) -> None:
    from toys import RECIPE

    (tmp_path / "recipe.yaml").write_text(RECIPE)
    process = subprocess.Popen(command(tmp_path, wait=True), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (tmp_path / "half-written").exists():
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    store = tmp_path / "out" / "toy" / ".store"
    assert [p.name.split("-")[1] for p in store.glob("tmp-*")] == ["second"]
    assert not (tmp_path / "out" / "toy" / "second").exists()
    done = subprocess.run(command(tmp_path, wait=False), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "second,done"
    assert "half" not in (tmp_path / "out" / "toy" / "second" / "weights.txt").read_text()
    assert not list(store.glob("tmp-*"))
