"""What a recipe says of Slurm (`launch.slurm`), and what submitit is told for a step's job.

submitit writes the sbatch script, pickles what runs in it and sends the job; `aloe.run.jobs` waits for it. One task a
node: torchrun starts the processes of a node, not Slurm.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from aloe.errors import AloeError

TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d{1,3})(?::(?P<second>\d{2}))?(?::(?P<third>\d{2}))?")
WHERE = "recipe.launch.slurm"  # as the recipe names it in errors of its own checks
# What sbatch is told by fields of their own, or by us: never by `parameters`.
OURS = frozenset(
    (
        "partition", "time", "gpus-per-node", "cpus-per-task", "mem", "account", "qos", "constraint", "nodes",
        "ntasks-per-node", "ntasks", "output", "error", "open-mode", "signal", "job-name", "array", "requeue",
        "no-requeue", "wckey", "wrap",
    )
)  # fmt: skip
FIELDS_OF = {"mem": "memory", "gpus-per-node": "gpus", "cpus-per-task": "cpus"}


class Resources(BaseModel):
    """What a job asks of Slurm. Amounts are for each node."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    partition: str | None = None
    time: str | None = None
    gpus: int | None = Field(default=None, ge=0)
    cpus: int | None = Field(default=None, ge=1)
    memory: str | None = Field(default=None, pattern=r"^(all|\d+(MB|GB|TB))$")
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    parameters: dict[str, str | int | bool] = Field(default_factory=dict)  # further ones of sbatch, by long name

    @field_validator("time", mode="before")
    @classmethod
    def _time(cls, value: Any) -> Any:
        if value is not None and (not isinstance(value, str) or not TIME.fullmatch(value)):
            # YAML reads 24:00:00 as 86400; days would come out of what was meant as hours.
            raise ValueError('write hours:minutes:seconds or days-hours:minutes:seconds in quotes, like "24:00:00"')
        return value

    @field_validator("partition", "account", "qos", "constraint")
    @classmethod
    def _one_word(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[^\s\x00-\x1f]+", value):
            raise ValueError("a name without spaces")
        return value

    @field_validator("parameters")
    @classmethod
    def _of_sbatch(cls, value: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        for name, text in value.items():
            if not re.fullmatch(r"[a-z][a-z-]+", name):
                raise ValueError(f"{name!r} is no long option of sbatch (write mail-type, not -t or mail_type)")
            if name in OURS:
                field = FIELDS_OF.get(name, name)
                own = field in Resources.model_fields
                raise ValueError(f"{name} is {f'the field {field}' if own else 'set by aloe'}")
            if not str(text).isprintable():
                raise ValueError(f"{name} holds control characters")
        return value


class Slurm(Resources):
    """How steps are run as Slurm jobs. `steps` says what differs for a step, by its name."""

    steps: dict[str, Resources] = Field(default_factory=dict)
    setup: list[str] = Field(default_factory=list)  # shell lines before the step, on the first node
    requeues: int = Field(default=3, ge=0)  # times that a job goes back to the queue when its time is up
    notice: int = Field(default=120, ge=30)  # seconds before its end that a job is told
    interrupt: Literal["cancel", "leave"] = "cancel"  # the job, when ctrl-C ends the waiting
    workers: int = Field(default=0, ge=0)  # further jobs that share a curation
    executor: Literal["slurm", "local"] = "slurm"  # local: submitit's own, processes on this machine

    @field_validator("setup")
    @classmethod
    def _lines(cls, value: list[str]) -> list[str]:
        for line in value:
            if "\n" in line or line.lstrip().startswith("#SBATCH"):
                raise ValueError("one shell command a line; options of sbatch go under parameters")
        return value

    def of(self, step: str) -> Resources:
        """What the job of a step asks: its own fields over the common ones, `parameters` put together."""
        own = self.steps.get(step, Resources())
        common = self.model_dump(include=set(Resources.model_fields))
        more = {name: getattr(own, name) for name in own.model_fields_set}
        return Resources(**{**common, **more, "parameters": {**self.parameters, **own.parameters}})


def check_launch(launch: Any) -> None:
    """Refuse an `aloe.recipe.Launch` that can't be meant.

    Raises:
        AloeError: with the field.
    """
    if launch.via != "slurm":
        if launch.nodes > 1 and (launch.rendezvous is None or launch.via == "process"):
            raise AloeError(
                "several nodes need a rendezvous, and via: here", where="recipe.launch.nodes",
                fix="add rendezvous: host:port (an address of one node that all of them can reach) and leave out via",
            )  # fmt: skip
        return
    slurm = launch.slurm
    if slurm is None or slurm.time is None:
        raise AloeError(
            "via: slurm needs to know how long a step may take",
            where=f"{WHERE}.time" if slurm is not None else "recipe.launch.via",
            fix='add slurm: {time: "24:00:00"}, and partition or account where your cluster asks for them',
        )
    if launch.rendezvous is not None:
        raise AloeError(
            "with via: slurm the nodes meet on the first one that Slurm gives", where="recipe.launch.rendezvous",
            fix="leave out rendezvous",
        )  # fmt: skip
    for name in (None, *slurm.steps):
        time = slurm.time if name is None else slurm.of(name).time
        if time is not None and minutes(time) * 60 <= slurm.notice:
            raise AloeError(
                f"a job of {minutes(time)} min can't be told of its end {slurm.notice} s before it",
                where=f"{WHERE}.notice" if name is None else f"{WHERE}.steps.{name}.time",
                fix="give it more time, or a shorter notice (30 at least)",
            )
    if slurm.executor == "local" and launch.nodes > 1:
        raise AloeError("executor: local has one node", where="recipe.launch.nodes", fix="leave out nodes, or executor")


def check_steps(launch: Any, steps: Mapping[str, Any], line: Callable[..., str]) -> None:
    """Refuse settings of steps that the recipe hasn't, and more processes than GPUs. `line` tells a place in the file.

    Raises:
        AloeError: with the field.
    """
    if launch.slurm is None:
        return
    for name in launch.slurm.steps:
        if name not in steps:
            raise AloeError(
                f"launch.slurm.steps: the recipe has no step {name!r}",
                where=line("launch", "slurm", "steps", name),
                fix=f"steps: {', '.join(steps)}",
            )
    for name, step in steps.items():
        gpus = launch.slurm.of(name).gpus
        if launch.via == "slurm" and step.parallel and gpus and launch.processes > gpus:
            raise AloeError(
                f"step {name}: {launch.processes} processes a node share {gpus} GPUs",
                where=line("launch", "processes"),
                fix="start one process for each GPU, or ask for more of them with slurm.gpus",
            )


def require_slurm(slurm: Slurm) -> None:
    """Refuse before anything runs where jobs can't be sent from here.

    Raises:
        AloeError: submitit isn't installed, or there is no sbatch.
    """
    require_submitit()
    for program in ("sbatch", "srun", "scancel") if slurm.executor == "slurm" else ():
        if shutil.which(program) is None:
            raise AloeError(
                f"via: slurm sends jobs with {program}, which is not to be found here", where="launch.via",
                fix="run this on a machine of the cluster from which jobs are sent, with Slurm's commands on PATH; "
                "--set launch.via=here runs the steps on this machine",
            )  # fmt: skip


def require_submitit() -> None:
    """Raises AloeError where submitit isn't installed."""
    if importlib.util.find_spec("submitit") is None:
        raise AloeError("via: slurm needs submitit", where="launch.via", fix="pip install 'aloe-llm[slurm]'")


def minutes(time: str) -> int:
    """Slurm's notation of a time limit, in whole minutes (seconds round up, as Slurm does): `30` and `30:00` are
    minutes, `2:30:00` hours, `1-12` and `1-12:30` days and hours."""
    found = TIME.fullmatch(time)
    assert found is not None
    first, second, third = (int(found[n]) if found[n] else None for n in ("first", "second", "third"))
    assert first is not None
    if found["days"]:
        seconds = int(found["days"]) * 86400 + first * 3600 + (second or 0) * 60 + (third or 0)
    elif third is not None:
        seconds = first * 3600 + (second or 0) * 60 + third
    else:
        seconds = first * 60 + (second or 0)
    return max(1, -(-seconds // 60))


def executor(folder: Path, name: str, launch: Any, step: Any, *, workers: bool = False, dry: bool = False) -> Any:
    """submitit's executor for the job of a step, or for the workers that help it.

    Args:
        folder: for scripts, pickles and logs; every node must see it.
        dry: only scripts are wanted, so that Slurm's commands need not be there.
    """
    import submitit

    slurm: Slurm = launch.slurm
    asked = slurm.of(name)
    assert asked.time is not None
    if slurm.executor == "local" and not dry:
        local = submitit.LocalExecutor(folder, max_num_timeout=slurm.requeues)
        local.update_parameters(
            timeout_min=minutes(asked.time),
            signal_delay_s=slurm.notice,
            setup=slurm.setup,
            gpus_per_node=asked.gpus or 0,
        )
        return local
    made = (_dry() if dry else submitit.SlurmExecutor)(folder, max_num_timeout=slurm.requeues)
    gpus = 0 if workers else asked.gpus
    values = {
        "job_name": f"aloe-{name}-workers" if workers else f"aloe-{name}",
        "time": minutes(asked.time),
        "nodes": launch.nodes if step.parallel else 1,
        "ntasks_per_node": 1,
        "partition": asked.partition, "account": asked.account, "qos": asked.qos, "constraint": asked.constraint,
        "gpus_per_node": gpus or None,
        "cpus_per_task": asked.cpus,
        "mem": "0" if asked.memory == "all" else asked.memory,
        "signal_delay_s": slurm.notice,
        "setup": slurm.setup or None,
        # A node that is lost must not leave the others waiting for it.
        "srun_args": ["--kill-on-bad-exit=1", *(["--cpus-per-task", str(asked.cpus)] if asked.cpus else [])],
        "additional_parameters": {"requeue": True, **asked.parameters},
        "wckey": None,
    }  # fmt: skip
    made.parameters = {key: value for key, value in values.items() if value is not None or key == "wckey"}
    return made


def script(folder: Path, name: str, launch: Any, step: Any, *, workers: bool = False) -> str:
    """The sbatch script that would be sent for a step, word for word but for the folder."""
    made = executor(folder, name, launch, step, workers=workers, dry=True)
    if workers:
        made.parameters["map_count"] = launch.slurm.workers
    return str(made._make_submission_file_text(made._submitit_command_str, ""))


def _dry() -> Any:
    import submitit

    class Dry(submitit.SlurmExecutor):  # type: ignore[misc]
        """Writes scripts where there is no Slurm."""

        @classmethod
        def affinity(cls) -> int:
            return 2

    return Dry
