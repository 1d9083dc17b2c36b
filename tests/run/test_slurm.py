"""What a recipe says of Slurm, the scripts that come of it, and what Slurm's answers mean."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from aloe.errors import AloeError
from aloe.recipe import Recipe
from aloe.run import jobs, slurm
from aloe.run.cluster import write_scripts
from aloe.run.jobs import Sent, State, state_of
from aloe.run.launch import launch
from aloe.run.plan import open_resources, plan_step
from aloe.run.store import Store

RECIPE = """\
family: tiny
licence: cc-by-nc-4.0
launch: {launch}
steps:
  corpus:
    curate: {{sources: [starter/general]}}
  tuned:
    sft: {{base: smollm2-135m-instruct, data: corpus}}
"""
GPUS = """{via: slurm, nodes: 4, processes: 8, strategy: fsdp2, slurm: {time: "1-00:00:00", partition: gpu, gpus: 8,
  cpus: 64, memory: all, account: med, setup: ["module load cuda", 'export A="b c"'], workers: 6, notice: 300,
  parameters: {mail-type: END, exclusive: true}, steps: {corpus: {partition: cpu, gpus: 0, memory: 32GB,
  time: "2:00:00", parameters: {nice: 10}}}}}"""


def recipe(folder: Path, text: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(launch=text))
    return Recipe.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{via: slurm}", "needs to know how long a step may take"),
        ("{via: slurm, slurm: {partition: gpu}}", "needs to know how long"),
        ("{via: slurm, slurm: {time: 24:00:00}}", r"launch\.slurm\.time: .*in quotes.*86400"),
        ('{via: slurm, slurm: {time: "soon"}}', "in quotes"),
        ('{via: slurm, slurm: {time: "1:00:00", memory: 5 gigs}}', r"launch\.slurm\.memory"),
        ('{via: slurm, slurm: {time: "1:00:00", gpus: -1}}', r"launch\.slurm\.gpus"),
        ('{via: slurm, slurm: {time: "1:00:00", partition: "a b"}}', "without spaces"),
        ('{via: slurm, slurm: {time: "1:00:00", partitions: gpu}}', "unknown key 'launch.slurm.partitions'"),
        ('{via: slurm, slurm: {time: "1:00:00", parameters: {mem: 1}}}', "mem is the field memory"),
        ('{via: slurm, slurm: {time: "1:00:00", parameters: {output: x}}}', "output is set by aloe"),
        ('{via: slurm, slurm: {time: "1:00:00", parameters: {mail_type: x}}}', "no long option"),
        ('{via: slurm, slurm: {time: "1:00:00", parameters: {comment: "a\\nrm"}}}', "control characters"),
        ('{via: slurm, slurm: {time: "1:00:00", setup: ["#SBATCH --x"]}}', "under parameters"),
        ('{via: slurm, slurm: {time: "0:01:00"}}', "can't be told of its end 120 s before"),
        ('{via: slurm, slurm: {time: "1:00:00", steps: {corpse: {gpus: 1}}}}', "no step 'corpse'"),
        ('{via: slurm, processes: 8, slurm: {time: "1:00:00", gpus: 4}}', "8 processes a node share 4 GPUs"),
        ('{via: slurm, nodes: 2, rendezvous: "a:1", slurm: {time: "1:00:00"}}', "leave out rendezvous"),
        ('{via: slurm, nodes: 2, slurm: {time: "1:00:00", executor: local}}', "one node"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AloeError, match=message) as caught:
        recipe(tmp_path, text)
    assert str(caught.value.where).startswith(f"{tmp_path / 'recipe.yaml'}:3")


def test_times_are_those_of_slurm() -> None:
    times = {"30": 30, "10:00": 10, "0:30": 1, "2:30:00": 150, "1-12": 2160, "1-12:30": 2190, "2-00:00:30": 2881}
    assert {text: slurm.minutes(text) for text in times} == times


def test_a_step_of_its_own_overrides_field_by_field(tmp_path: Path) -> None:
    own = recipe(tmp_path, GPUS).head.launch.slurm
    assert own is not None
    corpus, tuned = own.of("corpus"), own.of("tuned")
    assert (corpus.partition, corpus.gpus, corpus.account, corpus.cpus) == ("cpu", 0, "med", 64)
    assert corpus.parameters == {"mail-type": "END", "exclusive": True, "nice": 10}
    assert (tuned.partition, tuned.gpus, tuned.memory) == ("gpu", 8, "all")


def test_none_of_it_enters_a_fingerprint(tmp_path: Path) -> None:
    found = set()
    for text in ("{via: here}", GPUS):
        loaded = recipe(tmp_path, text)
        found.add(plan_step(loaded, Store(tmp_path), "corpus", open_resources(loaded, ["corpus"]), {}).fingerprint)
    assert len(found) == 1
    assert None not in found


def test_nothing_runs_where_there_is_no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = recipe(tmp_path, '{via: slurm, slurm: {time: "1:00:00"}}')
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(AloeError, match="sbatch, which is not to be found here"):
        launch(loaded, out=tmp_path / "out")
    monkeypatch.setattr(slurm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AloeError, match="needs submitit") as caught:
        launch(loaded, out=tmp_path / "out")
    assert "aloe-llm[slurm]" in str(caught.value.fix)
    assert not (tmp_path / "out").exists()


# -- scripts ----------------------------------------------------------------------------------------------------------


def test_scripts_say_what_the_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="submitit is not installed (extra `slurm`)")
    monkeypatch.setenv("PATH", "/usr/bin:/bin" if not Path("/usr/bin/sbatch").exists() else str(tmp_path))
    loaded = recipe(tmp_path, GPUS)
    written = write_scripts(loaded, tmp_path / "out", tmp_path / "scripts")
    assert [p.name for p in written] == ["01-corpus.sh", "01-corpus-workers.sh", "02-tuned.sh"]
    corpus, workers, tuned = (p.read_text().splitlines() for p in written)
    for path in written:
        subprocess.run(["/bin/bash", "-n", str(path)], check=True)
    for line in (
        "#SBATCH --job-name=aloe-tuned", "#SBATCH --nodes=4", "#SBATCH --ntasks-per-node=1", "#SBATCH --time=1440",
        "#SBATCH --gpus-per-node=8", "#SBATCH --cpus-per-task=64", "#SBATCH --mem=0", "#SBATCH --partition=gpu",
        "#SBATCH --account=med", "#SBATCH --signal=USR2@300", "#SBATCH --requeue", "#SBATCH --mail-type=END",
        "#SBATCH --exclusive", "#SBATCH --open-mode=append", "module load cuda", 'export A="b c"',
    ):  # fmt: skip
        assert line in tuned
    assert tuned.index("module load cuda") < next(i for i, line in enumerate(tuned) if line.startswith("srun "))
    command = next(line for line in tuned if line.startswith("srun "))
    assert f"--kill-on-bad-exit=1 --cpus-per-task 64 {sys.executable} -u -m submitit.core._submit" in command
    assert str(tmp_path / "out" / "tiny" / ".store") in command
    assert {"#SBATCH --nodes=1", "#SBATCH --partition=cpu", "#SBATCH --mem=32GB", "#SBATCH --nice=10"} <= set(corpus)
    assert "#SBATCH --array=0-5%6" in workers
    assert not [line for line in (*corpus, *workers) if "gpus" in line]
    assert not (tmp_path / "out").exists()
    with pytest.raises(AloeError, match="says via: here"):
        write_scripts(recipe(tmp_path, "{via: here}"), tmp_path / "out", tmp_path / "scripts")


# -- answers ----------------------------------------------------------------------------------------------------------

SENT = Sent("tuned", "slurm", "17", "/nowhere", "f", "then")
NOT_KNOWN = 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'
DOWN = 'echo "Unable to contact slurm controller" >&2; exit 1'


@pytest.mark.parametrize(
    ("squeue", "sacct", "scontrol", "state"),
    [
        ("echo 'PENDING|Resources|'", "exit 1", "exit 1", State("PENDING", "Resources")),
        ("echo 'PENDING|None|'", "exit 1", "exit 1", State("PENDING")),
        ("echo 'RUNNING|None|node[1-2]'", "exit 1", "exit 1", State("RUNNING", "on node[1-2]")),
        (NOT_KNOWN, "echo 'TIMEOUT|0:0'", "exit 1", State("TIMEOUT")),
        ("true", "echo 'CANCELLED by 0|0:15'", "exit 1", State("CANCELLED")),
        (NOT_KNOWN, "echo 'FAILED|3:0'", "exit 1", State("FAILED", "exit code 3:0")),
        (NOT_KNOWN, "echo 'Slurm accounting storage is disabled' >&2; exit 1",
         "echo 'JobId=17 JobState=OUT_OF_MEMORY Reason=OutOfMemory ExitCode=0:125'",
         State("OUT_OF_MEMORY", "OutOfMemory")),
        (NOT_KNOWN, "true", NOT_KNOWN, State("UNKNOWN", "Slurm knows no such job")),
        (DOWN, DOWN, DOWN, None),
    ],
)  # fmt: skip
def test_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, squeue: str, sacct: str, scontrol: str, state: State | None
) -> None:
    """The words are those that Slurm 22.05 and its manuals use; the fakes print them."""
    for name, body in (("squeue", squeue), ("sacct", sacct), ("scontrol", scontrol)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert state_of(SENT) == state


@pytest.mark.parametrize("state", ["TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED", "CANCELLED"])
def test_an_error_names_job_reason_and_log(state: str) -> None:
    told = jobs._failed(SENT, State(state, "because"))
    assert f"step tuned: Slurm job 17 ended: {state} ({jobs.MEANT[state]}; because)" == told.what
    assert "/nowhere/17_0_log.err" in str(told.fix)
    assert "signal 9 (SIGKILL)" in jobs._failed(SENT, State(""), -9).what


def test_what_a_job_says_is_shown_as_it_comes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    tail = jobs._Tail(log)
    assert tail.more() == []
    log.write_bytes(b"submitit INFO: start\n[1/1] tuned (sft): never made\n  one\n  tw")
    assert tail.more() == ["  one"]
    with log.open("ab") as more:
        more.write(b"o \xff\n")
    assert tail.more() == ["  two �"]
    log.write_bytes(b"anew\n")
    assert tail.more() == ["anew"]
