"""How processes share a training step: one process, copies of the model (ddp), or its shards (`sharded.py`).

A step is the same whatever the number of processes: the packed rows of a global batch are dealt out, each process runs
its own, and gradients are *summed* over processes, never averaged, because the loss is already divided by what the
whole batch trains on. What one process would have computed comes out up to the order of float additions.

The processes are started by torchrun (`aloe.run.torchrun`); accelerate's `PartialState` joins them over nccl on GPUs
and gloo on CPUs. Wrapping is done here rather than by `Accelerator.prepare`: that one moves the head into a shard group
of its own, whose weight isn't there when the loss reads it without calling the head, and averages gradients.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from aloe.errors import AloeError
from aloe.models.load import pick_device
from aloe.train.checkpoints import Read, Shard
from aloe.train.packing import PackedRow

Strategy = Literal["single", "ddp", "fsdp2", "zero3"]
MakeOptimizer = Callable[[torch.nn.Module], torch.optim.Optimizer]
MOMENTS = ("exp_avg", "exp_avg_sq")
STRATEGY = "ALOE_STRATEGY"  # set for every process of a team by whoever starts it
PATIENCE = timedelta(hours=6)  # one process may tokenise or write for long while the others wait for it
LINEAR = 12288  # tokens from which a row's attention costs more than its matrix products: 6 x a hidden size of 2,048
WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")

T = TypeVar("T")


class Team:
    """The processes of a run, as one of them sees it. This class is a team of one; `join` gives the fitting kind."""

    strategy: Strategy = "single"

    def __init__(self, rank: int = 0, world: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.world = rank, world
        self.device = device or pick_device()

    @classmethod
    def join(cls, strategy: Strategy | None = None) -> Team:
        """The team of this process. All processes call it once, before they load a model.

        Args:
            strategy: by default what the process was started with, `single` if nothing is said.

        Raises:
            AloeError: an unknown strategy, several processes without one, more processes than GPUs, or no DeepSpeed.
        """
        name = strategy or os.environ.get(STRATEGY) or "single"
        if name not in get_args(Strategy):
            raise AloeError(f"unknown strategy {name!r}", where="launch.strategy", fix="ddp, fsdp2 or zero3")
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if name == "single":
            if world > 1:
                raise AloeError(
                    f"{world} processes were started without a strategy: each would train by itself",
                    where="launch.strategy",
                    fix="start them through the recipe's launch: {processes, strategy}",
                )
            return Team()
        if "RANK" not in os.environ:
            raise AloeError(
                f"strategy {name} needs processes that torchrun started",
                where="launch.strategy",
                fix="set launch: {processes: N} in the recipe, which starts them",
            )
        from aloe.train.sharded import Fsdp2, Zero3

        kind = {"ddp": Ddp, "fsdp2": Fsdp2, "zero3": Zero3}[name]
        kind.require()
        return kind(*_connect())

    @classmethod
    def require(cls) -> None:
        """Raise an AloeError where a library is missing."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    # -- a step -------------------------------------------------------------------------------------------------------

    def prepare(
        self, policy: torch.nn.Module, make_optimizer: MakeOptimizer
    ) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """The policy (an nn.Module whose `.model` is the causal LM) ready to be called by this team, and its optimiser.

        Weights must be the same on every process: they are, when all loaded the same folder.
        """
        return policy, make_optimizer(policy)

    def share(self, rows: Sequence[PackedRow]) -> list[tuple[PackedRow, float]]:
        """This process's rows, each with the factor (1 or 0) its loss is multiplied with.

        Every process gets the same number, since each pass is a meeting of all of them; a filler with factor 0 goes
        to those that would have one fewer. See `deal`.
        """
        if self.world == 1:
            return [(row, 1.0) for row in rows]
        dealt = deal([cost(len(row.layout.ids)) for row in rows], self.world)[self.rank]
        return [(rows[i], factor) for i, factor in dealt]

    def accumulate(self, policy: torch.nn.Module, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of one row; gradients are only complete after the one that is `last`."""
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of `loss`, summed over processes, to the parameters' `.grad`."""
        loss.backward()  # type: ignore[no-untyped-call]

    def clip(self, policy: torch.nn.Module, max_norm: float) -> float:
        """Scale the gradients down to the norm `max_norm` where theirs is larger; returns theirs, over all shards."""
        return float(clip_gradients(trainable(policy), max_norm))

    # -- figures ------------------------------------------------------------------------------------------------------

    def sum(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Each figure summed over processes in float64. The names are the same everywhere."""
        return {name: float(value) for name, value in figures.items()}

    def gather(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """`values` [n, ...] of all processes, n may differ, one after the other in the order of ranks; for everyone."""
        return values

    def broadcast(self, value: T) -> T:
        """Rank 0's `value`, for everyone; it must pickle."""
        return value

    def barrier(self) -> None:
        """Wait until everyone is here."""

    # -- weights ------------------------------------------------------------------------------------------------------

    def shards(self, policy: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Shard]:
        """What a checkpoint must hold of trainable parameters, each piece by exactly one process.

        `param/<name>`, `exp_avg/<name>`, `exp_avg_sq/<name>` and `step/<name>` (one number: how often AdamW has
        updated it; where it is 0 there are no moments). The pieces don't depend on the number of processes, apart from
        how they are cut. All processes must exhaust the iterator.
        """
        for name, parameter in trained(policy):
            if not self.is_main:
                continue
            state = optimizer.state.get(parameter, {})
            yield whole(f"param/{name}", parameter.detach())
            yield whole(f"step/{name}", steps_done(state))
            if state:
                yield from (whole(f"{moment}/{name}", state[moment]) for moment in MOMENTS)

    @torch.no_grad()
    def restore(self, policy: torch.nn.Module, optimizer: torch.optim.Optimizer, read: Read) -> None:
        """Take weights and optimiser state from a checkpoint that any number of processes wrote."""
        for name, parameter in trained(policy):
            parameter.copy_(read(f"param/{name}", 0, None))
            step = read(f"step/{name}", 0, None)
            if float(step) > 0:
                moments = {m: read(f"{m}/{name}", 0, None).to(parameter.device) for m in MOMENTS}
                optimizer.state[parameter] = {"step": step_tensor(optimizer, parameter, step), **moments}

    def full_parameters(self, policy: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """All parameters of the causal LM, (name, whole tensor on the CPU), one at a time; on rank 0 alone.

        All processes must exhaust the iterator, which yields nothing on the others.
        """
        for name, parameter in named(policy):
            if self.is_main:
                yield name, parameter.detach().cpu()


class _Several(Team):
    """What every team of several processes does alike."""

    def sum(self, figures: Mapping[str, float]) -> dict[str, float]:
        names = sorted(figures)
        values = torch.tensor([figures[n] for n in names], dtype=torch.float64, device=self.device)
        dist.all_reduce(values)
        total = dict(zip(names, values.tolist(), strict=True))
        return {name: total[name] for name in figures}

    def gather(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, values)
        return np.concatenate(parts)

    def broadcast(self, value: T) -> T:
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def barrier(self) -> None:
        dist.barrier()


class Ddp(_Several):
    """A whole copy of model and optimiser in every process."""

    strategy: Strategy = "ddp"

    def prepare(
        self, policy: torch.nn.Module, make_optimizer: MakeOptimizer
    ) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        from torch.nn.parallel import DistributedDataParallel

        policy.to(self.device)
        wrapped = DistributedDataParallel(policy, forward_sync_buffers=False, gradient_as_bucket_view=True)
        wrapped.register_comm_hook(None, _sum_bucket)
        return wrapped, make_optimizer(policy)

    def accumulate(self, policy: torch.nn.Module, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last else policy.no_sync()  # type: ignore[operator]


def _sum_bucket(_, bucket):  # type: ignore[no-untyped-def]  # DDP refuses annotations that are text
    """DDP's own hook without its division by the number of processes."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])


def _connect() -> tuple[int, int, torch.device]:
    """Join the process group. Returns rank, number of processes and this process's device."""
    from accelerate import PartialState

    gpus, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if gpus and local >= gpus:
        raise AloeError(
            f"process {local} of this machine has no GPU of its own: there are {gpus}",
            where="launch.processes",
            fix=f"set launch.processes to {gpus}",
        )
    state = PartialState(cpu=not gpus, timeout=PATIENCE)
    return state.process_index, state.num_processes, state.device


# -- dealing out rows -------------------------------------------------------------------------------------------------


def cost(tokens: int) -> int:
    """Relative time of a row: matrix products grow with its tokens, attention with their square."""
    return tokens * (tokens + LINEAR)


def deal(costs: Sequence[int], ranks: int) -> list[list[tuple[int, float]]]:
    """(index, factor) of the rows that each rank runs, in running order; depends on `costs` and `ranks` alone.

    Rows are taken by falling cost, ties by index, and each round of `ranks` rows is run side by side, so that no rank
    waits long in a pass; within a round the longer rows go to the ranks that have had less. A last round with too few
    rows is filled up by the cheapest row with factor 0, whose gradient is zero.
    """
    order = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    dealt: list[list[tuple[int, float]]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for start in range(0, len(order), ranks):
        rows = [(i, 1.0) for i in order[start : start + ranks]]
        rows += [(order[-1], 0.0)] * (ranks - len(rows))
        for (i, factor), rank in zip(rows, sorted(range(ranks), key=lambda r: (load[r], r)), strict=True):
            dealt[rank].append((i, factor))
            load[rank] += costs[i]
    return dealt


# -- parameters and their state ---------------------------------------------------------------------------------------


def bare(policy: Any) -> Any:
    """The causal LM inside a policy, whatever a team wrapped it in."""
    return policy.model if hasattr(policy, "model") else policy.module.model


def named(policy: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Parameters under the causal LM's own names; tied ones once."""
    for name, parameter in bare(policy).named_parameters():
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, "")
        yield name, parameter


def trained(policy: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Those of `named` that require a gradient."""
    return ((name, parameter) for name, parameter in named(policy) if parameter.requires_grad)


def trainable(policy: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters of `trained`."""
    return [parameter for _, parameter in trained(policy)]


def clip_gradients(parameters: Sequence[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
    """`torch.nn.utils.clip_grad_norm_`, with the norm in float32 for bf16 gradients too, whose own has three digits."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch._foreach_norm(gradients, 2.0, dtype=torch.float32)
    norm = torch.linalg.vector_norm(torch.stack(norms))
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def whole(name: str, tensor: torch.Tensor) -> Shard:
    """A tensor that this process holds alone."""
    return Shard(name, tensor, tuple(tensor.shape), 0)


def steps_done(state: Mapping[str, Any]) -> torch.Tensor:
    """AdamW's step count as a tensor [1]; zero for a parameter that has not been updated yet."""
    return torch.tensor([float(state.get("step", 0.0))], dtype=torch.float32)


def step_tensor(
    optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, step: torch.Tensor | float
) -> torch.Tensor:
    """The step count as AdamW itself keeps it: beside the weights where its kernel reads it, else on the CPU."""
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    beside = group.get("fused") or group.get("capturable")
    return torch.tensor(float(step), dtype=torch.float32, device=parameter.device if beside else "cpu")
