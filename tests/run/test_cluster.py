"""Steps as jobs, run for real by submitit's local executor: what comes out, what a kill or ctrl-C leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from aloe.errors import AloeError
from aloe.keyed import rng
from aloe.recipe import Recipe
from aloe.rows import write_jsonl
from aloe.run import jobs
from aloe.run.execute import run_recipe
from aloe.run.launch import launch
from aloe.run.progress import Console
from aloe.run.store import Store

pytest.importorskip("submitit", reason="submitit is not installed (extra `slurm`)")

WORDS = ("rest", "water", "a stiff neck", "fever", "the doctor", "Yes.", "No.", "urgent care", "which option", "time")
SFT = "base: model, data: sft.jsonl, batch_rows: 6, lr: 1e-3, max_tokens: 512, warmup_steps: 2, precision: float32"
RECIPE = f"""\
family: tiny
seed: 7
licence: cc-by-nc-4.0
hardware: {{row_tokens: 64, checkpoint_steps: 3}}
steps:
  tuned:
    sft: {{{SFT}, epochs: 1}}
  long:
    sft: {{{SFT}, epochs: 60}}
  unreadable:
    sft: {{base: model, data: unreadable.jsonl, batch_rows: 6}}
  corpus:
    curate: {{sources: [rows.jsonl], max_dropped_share: 0.9}}
"""
LOCAL = (
    "launch={{via: slurm, processes: {processes}, strategy: fsdp2, slurm: {{time: '1:00:00', executor: local{more}}}}}"
)


class Lines(Console):
    """Keeps what it is told; presses ctrl-C when a line holds `stop`."""

    def __init__(self, stop: str = "\x00") -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []
        self.stop = stop

    def line(self, text: str) -> None:
        self.lines.append(text)
        if self.stop in text:
            raise KeyboardInterrupt


@pytest.fixture(scope="module", autouse=True)
def _surroundings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="module")
def root(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    shutil.copytree(tiny_model_folder, folder / "model")
    (folder / "recipe.yaml").write_text(RECIPE)
    dialogues = []
    for i in range(40):
        draw = rng(1, "rows", i)
        question, answer = (" ".join(draw.choice(WORDS, int(draw.integers(1, 8)))) for _ in range(2))
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        dialogues.append({"id": f"d{i}", "messages": turns})
    write_jsonl(folder / "sft.jsonl", dialogues)
    write_jsonl(folder / "rows.jsonl", [{**d, "id": f"r{n}{d['id']}"} for n in range(3) for d in dialogues])
    dialogues[11] = dialogues[11] | {"messages": dialogues[11]["messages"][:1]}
    write_jsonl(folder / "unreadable.jsonl", dialogues)
    return folder


def setting(processes: int = 1, more: str = "") -> str:
    return LOCAL.format(processes=processes, more=more)


def run(root: Path, out: str, step: str, console: Console | None = None, launch_as: str = "") -> Any:
    sets = [launch_as or setting()]
    recipe = Recipe.load(root / "recipe.yaml", sets)
    return launch(recipe, out=root / out, steps=[step], overrides=sets, console=console or Lines())


def manifest(artifact: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact / "manifest.json").read_text())
    return found


def nothing_is_left(root: Path, out: str) -> None:
    store = root / out / "tiny" / ".store"
    assert not list(store.glob("tmp-*"))
    assert not list((store / "jobs").iterdir())


def test_training_in_two_processes_of_a_job_is_training_here(root: Path) -> None:
    console = Lines()
    made = run(root, "job", "tuned", console, setting(2))
    assert made.made == ["tuned"]
    recipe = Recipe.load(root / "recipe.yaml", ["launch={processes: 2, strategy: fsdp2}"])
    here = run_recipe(recipe, out=root / "here", steps=["tuned"], console=Lines()).artifacts["tuned"]
    job = made.artifacts["tuned"]
    assert job.content_digest == here.content_digest
    assert job.manifest["ranks"]["processes"] == 2
    said = "\n".join(console.lines)
    assert "sent as local job" in said
    assert "2 processes, fsdp2" in said
    assert "  done in" in said
    assert "submitit" not in said.replace(str(root), "")
    nothing_is_left(root, "job")
    again = run(root, "job", "tuned", launch_as=setting(1))  # fresh: no job is sent
    assert again.made == []


def test_a_killed_run_leaves_the_job_which_is_requeued_and_taken_up(root: Path) -> None:
    """kill -9 of the run that waits; then the job is told to go, as Slurm does before it takes the node away."""
    command = [sys.executable, "-m", "aloe", "run", str(root / "recipe.yaml"), "long", "--out", str(root / "killed")]
    store = root / "killed" / "tiny" / ".store"
    waiting = subprocess.Popen([*command, "--set", setting()], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until(lambda: list((root / "killed" / "tiny" / ".cache" / "train").glob("*/step-*")), waiting)
    waiting.send_signal(signal.SIGKILL)
    waiting.wait()
    sent = jobs.running(store, "long")
    assert sent is not None
    sets = [setting(), "long.lr=2e-3"]
    other = Recipe.load(root / "recipe.yaml", sets)
    with pytest.raises(AloeError, match=r"still makes it from other parameters") as caught:
        launch(other, out=root / "killed", steps=["long"], overrides=sets)
    assert f"kill -INT {sent.id}" in str(caught.value.fix)
    (task,) = psutil.Process(int(sent.id)).children()
    task.send_signal(signal.SIGUSR2)
    console = Lines()
    artifact = run(root, "killed", "long", console).artifacts["long"]
    assert any(f"{sent.named} makes it, sent" in line for line in console.lines)
    assert not any("sent as" in line for line in console.lines)
    assert not psutil.pid_exists(task.pid)  # it was ended and another one went on
    assert manifest(artifact.path)["summary"]["resumed_from"][0] % 3 == 0
    nothing_is_left(root, "killed")


def test_an_error_in_the_job_is_told_with_its_log(root: Path) -> None:
    console = Lines()
    with pytest.raises(AloeError, match=r"step unreadable: local job \d+ ended with exit code 2") as caught:
        run(root, "bad", "unreadable", console)
    assert str(caught.value.where).startswith(str(root / "recipe.yaml"))
    assert any("unreadable.jsonl" in line for line in console.lines)  # the cause itself
    log = str(caught.value.fix).partition("its log is ")[2].partition(";")[0]
    assert "unreadable.jsonl" in Path(log).read_text()


@pytest.mark.parametrize("policy", ["cancel", "leave"])
def test_ctrl_c(root: Path, policy: str) -> None:
    out = f"ctrl-{policy}"
    console = Lines(stop="steps:")
    with pytest.raises(KeyboardInterrupt):
        run(root, out, "long", console, setting(1, f", interrupt: {policy}"))
    store = root / out / "tiny" / ".store"
    if policy == "leave":
        sent = jobs.running(store, "long")
        assert sent is not None
        assert "runs on: the same command waits for it again" in console.lines[-1]
        jobs.cancel(sent)
    else:
        assert "is cancelled" in console.lines[-1]
    until(lambda: jobs.running(store, "long") is None)
    with Store(root / out / "tiny").lock():  # the step itself is gone too, and its lock with it
        pass


def test_a_curation_with_workers_of_its_own(root: Path) -> None:
    made = run(root, "crew", "corpus", None, setting(1, ", workers: 1")).artifacts["corpus"]
    recipe = Recipe.load(root / "recipe.yaml")
    here = run_recipe(recipe, out=root / "alone", steps=["corpus"], console=Lines()).artifacts["corpus"]
    assert made.content_digest == here.content_digest
    nothing_is_left(root, "crew")


def until(condition: Any, process: subprocess.Popen[Any] | None = None, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, "it ended early"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_no_environment_of_a_job_leaks_into_the_next(root: Path) -> None:
    assert not {jobs.CREW, "SUBMITIT_FOLDER", "SUBMITIT_EXECUTOR"} & set(os.environ)
