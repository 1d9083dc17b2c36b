"""Teams whose processes each hold a part of the model: FSDP2 of PyTorch, ZeRO-3 of DeepSpeed.

FSDP2 shards each parameter by rows; a decoder layer's weights are put together just before it runs. ZeRO-3 (Rajbhandari
et al. 2020, arXiv 1910.02054) does the same on flat buffers. Weights stay in float32: the policy's own autocast lowers
the precision of the arithmetic, nothing here does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from aloe.errors import AloeError
from aloe.train.checkpoints import Read, Shard
from aloe.train.parallel import (
    MOMENTS,
    MakeOptimizer,
    Strategy,
    _Several,
    bare,
    clip_gradients,
    named,
    step_tensor,
    steps_done,
    trainable,
    trained,
    whole,
)

WHOLE_GRADIENTS = 0.1  # share of the device that unsharded gradients may take between the passes of a step


def whole_gradient_bytes(device: torch.device) -> int:
    """Bytes of gradients up to which FSDP2 adds up whole ones over the passes of a step and reduces them once.

    That saves communication and costs the gradient of the whole model on every device; where it is larger, each pass
    reduces its own and only the sharded sum is kept.
    """
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
    else:
        import psutil

        total = psutil.virtual_memory().total
    return int(WHOLE_GRADIENTS * total)


class Fsdp2(_Several):
    """Parameters, gradients and optimiser state sharded by rows; every decoder layer is a group, the rest one more.

    The embedding, the last norm and the head are in the root's group, which stays whole from forward to backward: the
    loss reads the head's weight itself, without calling the head.
    """

    strategy: Strategy = "fsdp2"

    def prepare(
        self, policy: torch.nn.Module, make_optimizer: MakeOptimizer
    ) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = [m for m in policy.modules() if isinstance(m, GradientCheckpointingLayer)]
        if not layers:
            raise AloeError(
                f"{type(bare(policy)).__name__} has no decoder layers that fsdp2 could shard one by one",
                where="launch.strategy",
                fix="use ddp or zero3",
            )
        size = sum(p.numel() * p.element_size() for p in trainable(policy))
        self._whole_gradients = size <= whole_gradient_bytes(self.device)
        mesh = init_device_mesh(self.device.type, (self.world,))
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(policy, mesh=mesh)
        for module in policy.modules():
            if isinstance(module, FSDPModule):
                # A plain sum: neither gloo nor nccl is asked to divide or to multiply on the way.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        return policy, make_optimizer(policy)

    def accumulate(self, policy: torch.nn.Module, last: bool) -> AbstractContextManager[Any]:
        policy.set_requires_gradient_sync(last or not self._whole_gradients)  # type: ignore[operator]
        return nullcontext()

    def clip(self, policy: torch.nn.Module, max_norm: float) -> float:
        _settle(policy)
        norm: Any = clip_gradients(trainable(policy), max_norm)
        return float(norm.full_tensor())

    def shards(self, policy: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Shard]:
        _settle(policy)
        for name, parameter in trained(policy):
            state = optimizer.state.get(parameter, {})
            if self.is_main:
                yield whole(f"step/{name}", steps_done(state))
            tensors = {"param": parameter.detach(), **({m: state[m] for m in MOMENTS} if state else {})}
            for kind, tensor in tensors.items():
                local, offset = _rows(tensor)
                if len(local):
                    yield Shard(f"{kind}/{name}", local, tuple(tensor.shape), offset)

    @torch.no_grad()
    def restore(self, policy: torch.nn.Module, optimizer: torch.optim.Optimizer, read: Read) -> None:
        _settle(policy)
        for name, parameter in trained(policy):
            local, offset = _rows(parameter.detach())
            end = offset + len(local)
            if len(local):
                local.copy_(read(f"param/{name}", offset, end))
            step = read(f"step/{name}", 0, None)
            if float(step) > 0:
                rows = {m: read(f"{m}/{name}", offset, end) if len(local) else None for m in MOMENTS}
                moments = {m: _sharded_like(parameter, value) for m, value in rows.items()}
                optimizer.state[parameter] = {"step": step_tensor(optimizer, parameter, step), **moments}

    def full_parameters(self, policy: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        _settle(policy)
        for name, parameter in named(policy):
            full = parameter.detach().full_tensor()  # type: ignore[attr-defined]
            if self.is_main:
                yield name, full.cpu()


def _settle(policy: torch.nn.Module) -> None:
    """Put the shards back in place: a forward pass without a backward one leaves the root's group whole."""
    from torch.distributed.fsdp import FSDPModule

    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _rows(tensor: Any) -> tuple[torch.Tensor, int]:
    """This process's rows of a sharded tensor and where they start: equal parts, rounded up, so that the last
    processes may have fewer or none."""
    mesh = tensor.device_mesh
    part = -(-tensor.shape[0] // mesh.size())
    start = min(mesh.get_local_rank() * part, tensor.shape[0])
    local = tensor.to_local()
    assert len(local) == min(part, tensor.shape[0] - start), f"{len(local)} rows of {tensor.shape[0]} from {start}"
    return local, start


def _sharded_like(parameter: Any, rows: torch.Tensor | None) -> torch.Tensor:
    """A tensor sharded as `parameter` is, made of this process's rows."""
    from torch.distributed.tensor import DTensor

    local = torch.zeros_like(parameter.to_local()) if rows is None else rows.to(parameter.device)
    return DTensor.from_local(
        local,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


# -- ZeRO-3 -----------------------------------------------------------------------------------------------------------


class Zero3(_Several):
    """DeepSpeed's ZeRO-3, for those who have it. `deepspeed.initialize` is called here and not through accelerate's
    plugin, which takes the optimiser's step inside `backward` and doesn't serve CPUs."""

    strategy: Strategy = "zero3"

    @classmethod
    def require(cls) -> None:
        try:
            import deepspeed  # noqa: F401
        except ImportError as cause:
            raise AloeError(
                f"strategy zero3 needs DeepSpeed, which can't be imported ({cause})",
                where="launch.strategy",
                fix="DS_BUILD_OPS=0 pip install --no-build-isolation deepspeed, or use strategy fsdp2",
            ) from None

    def prepare(
        self, policy: torch.nn.Module, make_optimizer: MakeOptimizer
    ) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        import deepspeed

        deepspeed.init_distributed(dist_init_required=False)
        config = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,  # the loss is scaled and the boundary set here
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": 3},
            "steps_per_print": None,
        }
        if any(p.dtype != torch.float32 for p in trainable(policy)):
            raise AloeError(
                "zero3 trains float32 weights only: DeepSpeed keeps an optimiser copy of its own",
                where="precision",
                fix="use float32 or bf16_autocast, or strategy fsdp2",
            )
        policy.to(self.device)
        self._engine, *_ = deepspeed.initialize(model=policy, optimizer=make_optimizer(policy), config=config)
        # The loss reads the head's weight without calling the head: it stays whole while the policy runs.
        deepspeed.zero.register_external_parameter(policy, bare(policy).get_output_embeddings().weight)
        return self._engine, _EngineOptimizer(self._engine)

    def accumulate(self, policy: torch.nn.Module, last: bool) -> AbstractContextManager[Any]:
        self._engine.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss * self.world)  # DeepSpeed averages

    def clip(self, policy: torch.nn.Module, max_norm: float) -> float:
        """The norm now; DeepSpeed does the scaling inside its step."""
        from deepspeed.runtime.utils import combine_grad_norm_groups

        zero = self._engine.optimizer
        zero.clip_grad = max_norm
        return float(combine_grad_norm_groups(zero._get_norm_groups()))

    def shards(self, policy: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Shard]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        inner = self._engine.optimizer.optimizer
        step = next((steps_done(state) for state in inner.state.values()), steps_done({}))
        for name, parameter in trained(policy):
            tensors = {"param": safe_get_full_fp32_param(parameter)}
            if float(step) > 0:
                tensors |= {m: safe_get_full_optimizer_state(parameter, m) for m in MOMENTS}
            if self.is_main:
                yield whole(f"step/{name}", step)
                yield from (whole(f"{kind}/{name}", tensor) for kind, tensor in tensors.items())

    @torch.no_grad()
    def restore(self, policy: torch.nn.Module, optimizer: torch.optim.Optimizer, read: Read) -> None:
        import deepspeed
        from deepspeed.utils import safe_set_local_optimizer_state

        zero = self._engine.optimizer
        for name, parameter in trained(policy):
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                if self.is_main:
                    parameter.copy_(read(f"param/{name}", 0, None))
            step = read(f"step/{name}", 0, None)
            if float(step) == 0:
                continue
            if not zero.optimizer.state:
                _make_state(zero, float(step))
            for moment in MOMENTS:
                safe_set_local_optimizer_state(
                    parameter, self._mine(parameter, read(f"{moment}/{name}", 0, None)), moment
                )
        zero.refresh_fp32_params()

    def full_parameters(self, policy: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        import deepspeed

        for name, parameter in named(policy):
            with deepspeed.zero.GatheredParameters([parameter]):
                full = parameter.detach().cpu().clone() if self.is_main else None
            if full is not None:
                yield name, full

    def _mine(self, parameter: Any, value: torch.Tensor) -> torch.Tensor:
        """This process's flat partition of a whole tensor; DeepSpeed pads the last with zeros."""
        size = parameter.ds_tensor.numel()
        padded = torch.zeros(size * self.world, dtype=value.dtype)
        padded[: value.numel()] = value.reshape(-1)
        return padded[self.rank * size : (self.rank + 1) * size].to(self.device)


def _make_state(zero: Any, step: float) -> None:
    """AdamW's state over DeepSpeed's flat partitions, as its first step would have made it."""
    for i, flat in enumerate(zero.fp32_partitioned_groups_flat):
        group = zero.optimizer.param_groups[zero.sub_group_to_group_id[i]]
        beside = group.get("fused") or group.get("capturable")
        count = torch.tensor(step, dtype=torch.float32, device=flat.device if beside else "cpu")
        zero.optimizer.state[flat] = {"step": count, **{m: torch.zeros_like(flat) for m in MOMENTS}}


class _EngineOptimizer(torch.optim.Optimizer):
    """The optimiser inside DeepSpeed's engine, with the engine's step."""

    def __init__(self, engine: Any) -> None:  # no super(): groups and state are the inner optimiser's
        self._engine = engine

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self._engine.optimizer.optimizer.param_groups  # type: ignore[no-any-return]

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self._engine.optimizer.optimizer.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self._engine.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._engine.optimizer.zero_grad(set_to_none=set_to_none)
