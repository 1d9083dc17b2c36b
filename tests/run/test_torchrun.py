"""A step in several processes: what it returns, how it fails, and that nothing of it is left behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import rank_toys

from aloe import recipe as recipe_module
from aloe.errors import AloeError
from aloe.recipe import Launch, Recipe
from aloe.run import torchrun
from aloe.run.execute import RunResult, run_recipe
from aloe.run.plan import open_resources, plan_step
from aloe.run.progress import Console
from aloe.run.store import Store
from aloe.train import parallel

HERE = Path(__file__).parent
PARENT = """
import sys
sys.path.insert(0, {here!r})
import rank_toys
from aloe import recipe as module
from aloe.recipe import Recipe
from aloe.run import torchrun
from aloe.run.execute import run_recipe
module.VERBS = {{"share": rank_toys.Share}}
torchrun.WORKER = "rank_toys"
try:
    run_recipe(Recipe.load({recipe!r}), out={out!r})
except KeyboardInterrupt:
    sys.exit(130)
"""
JOIN = """
from pathlib import Path
from aloe.run import nodes, torchrun
torchrun.WORKER = "rank_toys"
print(nodes.join(Path({out!r}) / "toy"))
"""
OTHER = """
from pathlib import Path
from aloe.run import nodes
here = nodes.software()
nodes.software = lambda: {{**here, "torch": "1.0"}}
nodes.join(Path({out!r}) / "toy")
"""


class Bar:
    """Adds up what it is told."""

    def __init__(self) -> None:
        self.done, self.figures, self.ended = 0, dict[str, Any](), False

    def advance(self, count: int = 1, **figures: Any) -> None:
        self.done += count
        self.figures |= figures


class Lines(Console):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.bars: dict[str, Bar] = {}

    def line(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def progress(self, label: str, total: int, unit: str) -> Iterator[Any]:
        self.bars[label] = bar = Bar()
        yield bar
        bar.ended = True


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for one run of `rank_toys`; environment and verbs are set."""
    monkeypatch.setattr(recipe_module, "VERBS", {"share": rank_toys.Share})
    monkeypatch.setattr(torchrun, "WORKER", "rank_toys")
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "rows.jsonl").write_text("three rows")
    (tmp_path / "pids").mkdir()
    return tmp_path


def write_recipe(folder: Path, act: str, launch: str = "{processes: 2, strategy: ddp}") -> Path:
    values = {"rows": folder / "rows.jsonl", "pids": folder / "pids", "act": act, "launch": launch}
    path = folder / "recipe.yaml"
    path.write_text(rank_toys.RECIPE.format(**values))
    return path


def run(folder: Path, act: str, console: Console | None = None) -> RunResult:
    return run_recipe(
        Recipe.load(write_recipe(folder, act)), out=folder / "out", console=console or Console(quiet=True)
    )


def start(script: str, folder: Path) -> subprocess.Popen[str]:
    """`aloe run` or `aloe join` as a process of its own."""
    values = {"here": str(HERE), "recipe": str(folder / "recipe.yaml"), "out": str(folder / "out")}
    command = [sys.executable, "-c", script.format(**values)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ranks_of(folder: Path) -> list[int]:
    """Process ids of the ranks that have started."""
    return [int(p.name) for p in (folder / "pids").iterdir()]


def wait_until(condition: Any, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def nothing_is_left(folder: Path) -> bool:
    return not any(psutil.pid_exists(pid) for pid in ranks_of(folder))


# -- real processes ---------------------------------------------------------------------------------------------------


def test_two_ranks_make_one_artifact(toy: Path) -> None:
    console = Lines()
    artifact = run(toy, "work", console).artifacts["shared"]
    manifest = artifact.manifest
    about = {"strategy": "ddp", "seed": 3, "name": "shared", "family": "toy", "attention": "auto"}
    threads = str(max(1, torchrun._cores() // 2))
    digest = manifest["inputs"][str(toy / "rows.jsonl")]["digest"]
    assert manifest["summary"] == {"ranks": 3.0, "threads": threads, "digest": digest, **about}
    assert (artifact.path / "rows.txt").read_text() == "by rank 0: three rows"
    assert manifest["ledger"] == [{"stage": "share", "in": 3, "kept": 2, "dropped": {"empty": 1}}]
    assert manifest["tokens"] == {"trained": 10}
    ranks = manifest["ranks"]
    assert (ranks["processes"], ranks["nodes"], ranks["strategy"]) == (2, 1, "ddp")
    assert len(ranks["peak_memory_bytes"]) == 2
    assert manifest["peak_memory_bytes"] >= max(ranks["peak_memory_bytes"]) > 50e6
    assert [line for line in console.lines if "speaks" in line] == ["  rank 0 speaks"]
    assert console.bars.keys() == {"shared: work"}
    bar = console.bars["shared: work"]
    assert (bar.done, bar.figures, bar.ended) == (2, {"loss": 0.25}, True)
    assert not (toy / "out" / "toy" / ".cache" / "half").exists()  # the step was done with it
    assert len(ranks_of(toy)) == 2
    assert nothing_is_left(toy)
    assert not list((toy / "out" / "toy" / ".store").glob("tmp-*"))


def test_an_error_in_one_rank_reaches_the_user_as_it_was_raised(toy: Path) -> None:
    began = time.monotonic()
    with pytest.raises(AloeError) as caught:
        run(toy, "refuse")
    assert (caught.value.what, caught.value.where) == ("row 3 has no answer", "rows.jsonl:3")
    assert caught.value.fix == "give it one"
    assert time.monotonic() - began < 60  # the rank that hung was not waited for
    assert nothing_is_left(toy)
    assert not list((toy / "out" / "toy" / ".store").glob("tmp-*"))


def test_a_killed_rank_ends_all_and_is_named(toy: Path) -> None:
    with pytest.raises(AloeError, match=r"process 1 of 2 was ended by signal 9 \(SIGKILL\)"):
        run(toy, "die")
    assert nothing_is_left(toy)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ending_the_run_leaves_no_process(toy: Path, number: signal.Signals) -> None:
    """Ctrl-C, and kill -9 of the process that started it all."""
    write_recipe(toy, "hang")
    process = start(PARENT, toy)
    wait_until(lambda: len(ranks_of(toy)) == 2 or process.poll() is not None)
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) == 3, process.communicate()[1]
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else -9)
    wait_until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in below), 30)


def test_two_nodes_meet(toy: Path) -> None:
    """Two agents with a process each, here on one machine: what passes between them are the files and the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = f"{{processes: 1, nodes: 2, strategy: ddp, rendezvous: '127.0.0.1:{port}'}}"
    console = Lines()
    other = start(JOIN, toy)
    try:
        recipe = Recipe.load(write_recipe(toy, "work", launch))
        manifest = run_recipe(recipe, out=toy / "out", console=console).artifacts["shared"].manifest
        said, wrong = other.communicate(timeout=60)
    finally:
        other.kill()
    assert other.returncode == 0, wrong
    assert said.splitlines()[-1] == "1"  # the one step was joined, then the run was over
    assert any(line.endswith(f"aloe join {toy / 'out' / 'toy'}") for line in console.lines)
    assert manifest["summary"]["ranks"] == 3.0
    assert (manifest["ranks"]["nodes"], manifest["ranks"]["processes"]) == (2, 1)
    assert nothing_is_left(toy)


def test_a_node_of_other_software_is_refused_on_both_sides(toy: Path) -> None:
    """At once, and not after the hour that the leading node would wait for it."""
    launch = "{processes: 1, nodes: 2, strategy: ddp, rendezvous: '127.0.0.1:9'}"
    other = start(OTHER, toy)
    try:
        with pytest.raises(AloeError, match=r"node .* has torch 1\.0, the leading node \d+\.\d+") as told:
            run_recipe(Recipe.load(write_recipe(toy, "work", launch)), out=toy / "out", console=Lines())
        _, wrong = other.communicate(timeout=60)
    finally:
        other.kill()
    assert "same versions on every node" in told.value.fix
    assert other.returncode == 1
    assert "has torch 1.0" in wrong
    assert nothing_is_left(toy)


# -- which cause is told ----------------------------------------------------------------------------------------------

LAUNCH = Launch(processes=2)
AGENT = """
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  host      : node
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 5)
"""


def left_behind(folder: Path, *errors: dict[str, Any], agent: str = "") -> Path:
    blank = {"what": None, "where": None, "fix": None, "errno": None, "message": "", "traceback": ""}
    for rank, error in enumerate(errors):
        (folder / f"error-{rank}.json").write_text(json.dumps({**blank, "rank": rank, "time": rank, **error}))
    (folder / "agent-node-1").mkdir()
    (folder / "agent-node-1" / "agent.log").write_text(agent)
    return folder


def test_what_a_user_can_mend_comes_before_lost_partners(tmp_path: Path) -> None:
    lost = {"traceback": "connection closed", "time": 0}
    folder = left_behind(tmp_path, lost, {"what": "no rows", "fix": "add some"}, agent=AGENT.format(code=1))
    found = torchrun._failure(folder, 1, LAUNCH)
    assert isinstance(found, AloeError)
    assert found.what == "no rows"


def test_a_killed_rank_comes_before_those_that_lost_it(tmp_path: Path) -> None:
    found = torchrun._failure(left_behind(tmp_path, {"traceback": "lost"}, agent=AGENT.format(code=-9)), 1, LAUNCH)
    assert isinstance(found, AloeError)
    assert "SIGKILL" in found.what


def test_a_bug_keeps_its_traceback_and_the_first_one_is_told(tmp_path: Path) -> None:
    folder = left_behind(tmp_path, {"traceback": "lost", "time": 9}, {"traceback": "ZeroDivisionError", "time": 8})
    found = torchrun._failure(folder, 1, LAUNCH)
    assert isinstance(found, torchrun.RankFailed)
    assert str(found) == "in rank 1:\nZeroDivisionError"


def test_a_full_disk_stays_one(tmp_path: Path) -> None:
    found = torchrun._failure(left_behind(tmp_path, {"errno": errno.ENOSPC, "message": "full"}), 1, LAUNCH)
    assert isinstance(found, OSError)
    assert found.errno == errno.ENOSPC


def test_an_agent_that_never_started_a_rank_shows_its_own_words(tmp_path: Path) -> None:
    found = torchrun._failure(left_behind(tmp_path, agent="no such option"), 2, LAUNCH)
    assert isinstance(found, torchrun.RankFailed)
    assert "no such option" in str(found)
    nodes = Launch(nodes=2, rendezvous="host:1")
    assert "didn't meet at host:1" in str(torchrun._failure(tmp_path, 1, nodes))


# -- settings ---------------------------------------------------------------------------------------------------------


def test_launch_is_checked_with_the_recipe(toy: Path) -> None:
    with pytest.raises(AloeError, match=r"recipe\.yaml:4: .*need a rendezvous"):
        Recipe.load(write_recipe(toy, "work", "{nodes: 2}"))
    with pytest.raises(AloeError, match=r"and via: here"):
        Recipe.load(write_recipe(toy, "work", "{nodes: 2, via: process, rendezvous: 'a:1'}"))
    with pytest.raises(AloeError, match=r"launch\.rendezvous"):
        Recipe.load(write_recipe(toy, "work", "{rendezvous: here}"))
    with pytest.raises(AloeError, match=r"launch\.processes"):
        Recipe.load(write_recipe(toy, "work", "{processes: 0}"))
    with pytest.raises(AloeError, match=r"launch\.strategy"):
        Recipe.load(write_recipe(toy, "work", "{strategy: fsdp1}"))


def test_launch_enters_no_fingerprint(toy: Path) -> None:
    found = set()
    for launch in ("{via: here}", "{processes: 8, nodes: 2, strategy: zero3, rendezvous: 'a:1'}"):
        recipe = Recipe.load(write_recipe(toy, "work", launch))
        resources = open_resources(recipe, recipe.order)
        found.add(plan_step(recipe, Store(toy / "out"), "shared", resources, {}).fingerprint)
    assert len(found) == 1
    assert None not in found


def test_threads_are_shared_out_unless_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "_cores", lambda: 16)
    call = torchrun.Call("job.json", "id", 1, 3, "fsdp2", None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert call.environment()["OMP_NUM_THREADS"] == "5"
    assert call.environment()[parallel.STRATEGY] == "fsdp2"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert call.environment()["OMP_NUM_THREADS"] == "2"
