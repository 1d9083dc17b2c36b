"""The optimisers: AdamW on float32 weights, and AdamW on bf16 weights with stochastic rounding.

A bf16 weight near 1 moves in steps of 2^-7, a learning rate of 1e-5 asks for a thousandth of that: rounded to the
nearest, nearly every update is lost. Rounded up or down at random with the right odds, each update is kept on average
(Gupta et al. 2015, arXiv 1502.02551; for bf16 weights under Adam: Zamirai et al. 2020, arXiv 2010.06192).

Bytes a parameter, for weights, gradients and both moments: 16 with float32 weights, 8 here. An 8B model then takes
64 GB and trains on one accelerator of 80 GB, which is what this optimiser is for; with float32 moments (12 bytes) it
would not fit, and on two accelerators float32 weights fit as well. So moments are bf16 by default, stochastically
rounded too: to the nearest, a second moment with beta2 = 0.999 could not even decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from aloe.keyed import key64

Named = Iterable[tuple[str, torch.nn.Parameter]]
# Elements that share a random stream and are updated at once: what a CPU's cache holds, and enough to fill a GPU.
# Part of what a seed means: another size, other bits.
CPU_BLOCK, BLOCK = 1 << 16, 1 << 22
LARGEST = torch.finfo(torch.bfloat16).max
MOMENTS = ("exp_avg", "exp_avg_sq")


def adamw(
    parameters: Named, *, lr: float, weight_decay: float, betas: tuple[float, float], eps: float = 1e-8
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) on those of the named parameters that are trained.

    Decay is on matrices only: decaying a norm's gain shrinks the signal.
    """
    groups = _groups(parameters, weight_decay)
    for group in groups:
        group["params"] = [parameter for _, parameter in group["params"]]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def _groups(parameters: Named, weight_decay: float) -> list[dict[str, Any]]:
    trained = [(name, p) for name, p in parameters if p.requires_grad]
    matrices = [(name, p) for name, p in trained if _dimensions(p) >= 2]
    vectors = [(name, p) for name, p in trained if _dimensions(p) < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]


def _dimensions(parameter: torch.nn.Parameter) -> int:
    """DeepSpeed's ZeRO-3 leaves an empty vector in place of a parameter and its shape beside it."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def rounding_noise(count: int, generator: torch.Generator) -> torch.Tensor:
    """[count] int16, uniform over all 65,536 values, on the generator's device; four from each 64-bit draw."""
    draws = torch.empty(-(-count // 4), dtype=torch.int64, device=generator.device)
    return draws.random_(-(1 << 63), None, generator=generator).view(torch.int16)[:count]


def stochastic_round(values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """`values` (float32) as bf16, each rounded to one of its two neighbours with odds that keep it in the mean.

    bf16 is the upper half of a float32: a uniform 16-bit number added to the lower half carries into the upper one with
    a probability of lower half / 2^16. Representable values stay as they are, so do infinities and NaN; what is beyond
    the largest bf16 number is rounded to the nearest, since its upper neighbour is no number.

    Args:
        values: [n] float32, contiguous.
        noise: [n] int16 from `rounding_noise`.
    """
    bits = values.view(torch.int32) + noise.int().bitwise_and_(0xFFFF)
    rounded = bits.bitwise_and_(-0x10000).view(torch.float32).bfloat16()
    if values.device.type == "cpu" and values.numel():  # one look is cheaper here; elsewhere it would wait for the GPU
        low, high = torch.aminmax(values)
        if low >= -LARGEST and high <= LARGEST:  # not so if one is NaN
            return rounded
    return torch.where(values.abs() <= LARGEST, rounded, values.bfloat16())


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW whose bf16 weights have no float32 copy: updates are computed in float32 and rounded stochastically.

    Every rounding is keyed by (seed, step, parameter's name, block of its elements), so a resumed run goes on bit for
    bit, and neither the order of parameters nor, for rows sharded along dimension 0 (FSDP2), the number of processes
    changes a rounding. CPU and CUDA draw different bits. Float32 parameters are updated as AdamW does.

    The gradients of an accumulated batch are added up in bf16, by torch, before they come here: few large micro-batches
    lose less than many small ones.

    Args:
        parameters: (name, parameter) pairs; those that aren't trained are left out.
        lr, betas, eps, weight_decay: as in AdamW; decay on matrices only. `lr` may be changed in the groups.
        seed: of the run.
        moments: dtype of both moments, bfloat16 (4 bytes a parameter) or float32 (8 bytes).

    Raises:
        ValueError: a dtype other than bfloat16 and float32, or a parameter sharded along another dimension.
    """

    def __init__(
        self,
        parameters: Named,
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
        seed: int,
        moments: torch.dtype = torch.bfloat16,
    ) -> None:
        groups = _groups(parameters, weight_decay)
        for name, dtype in [("moments", moments), *((n, p.dtype) for g in groups for n, p in g["params"])]:
            if dtype not in (torch.bfloat16, torch.float32):
                raise ValueError(f"{name}: {dtype}; stochastic rounding is for bfloat16, beside it float32 may stand")
        self._seed, self._moments = seed, moments
        self._generators: dict[torch.device, torch.Generator] = {}
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                if parameter.grad is not None:
                    self._update(name, parameter, group)
        return loss

    def _update(self, name: str, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            for key in MOMENTS:
                state[key] = torch.zeros_like(parameter, dtype=self._moments, memory_format=torch.contiguous_format)
        state["step"] += 1
        step = int(state["step"])
        weights, mean, square = (_local(t).view(-1) for t in (parameter, *(state[key] for key in MOMENTS)))
        gradient = _local(parameter.grad).reshape(-1)
        whole, size = parameter.numel(), CPU_BLOCK if weights.device.type == "cpu" else BLOCK
        for block, mine, inside in _blocks(_first_element(parameter), len(weights), size):
            stream = key64(self._seed, f"rounding at step {step}", f"{name}/{block}")
            generator = self._generator(weights.device, stream)
            count = min(size, whole - block * size)
            new = _adamw(weights[mine], gradient[mine], mean[mine], square[mine], step, group)
            for place, values in zip((weights, mean, square), new, strict=True):
                if place.dtype == torch.bfloat16:
                    values = stochastic_round(values, rounding_noise(count, generator)[inside])
                place[mine] = values

    def _generator(self, device: torch.device, key: int) -> torch.Generator:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        return self._generators[device].manual_seed(key)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; moments keep their own dtype, where torch would cast them to the weights'."""
        super().load_state_dict(state_dict)
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        here = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in zip(saved, here, strict=True):
            for key in MOMENTS:
                if index in state_dict["state"]:
                    moment = state_dict["state"][index][key]
                    self.state[parameter][key] = moment.to(parameter.device, self._moments, copy=True)


def _adamw(
    weights: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    square: torch.Tensor,
    step: int,
    group: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """New weights and moments [n] in float32, from the old ones of any dtype. `step` counts from 1."""
    (beta1, beta2), lr = group["betas"], float(group["lr"])
    gradient = gradient.float()
    mean = mean.float().lerp(gradient, 1 - beta1)
    square = (square.float() * beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
    new = weights.float() * (1 - lr * group["weight_decay"])
    return new.addcdiv_(mean, root, value=-lr / (1 - beta1**step)), mean, square


def _blocks(first: int, count: int, size: int) -> Iterator[tuple[int, slice, slice]]:
    """Blocks of a whole tensor that its elements `first` to `first + count`, held here, lie in: (number, slice of what
    is held, slice of the block)."""
    for block in range(first // size, -(-(first + count) // size) if count else 0):
        start = block * size
        low, high = max(first, start), min(first + count, start + size)
        yield block, slice(low - first, high - first), slice(low - start, high - start)


def _local(tensor: Any) -> torch.Tensor:
    """What this process holds of it."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _first_element(parameter: Any) -> int:
    """Where this process' rows begin in the whole parameter, counted in elements.

    Sharded rows are equal parts, rounded up, for one dimension of the mesh after the other, as `torch.chunk` cuts.
    """
    if not hasattr(parameter, "placements"):
        return 0
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor import Shard as Along

    mesh, first, rows = parameter.device_mesh, 0, parameter.shape[0] if parameter.ndim else 1
    for place, parts, placement in zip(mesh.get_coordinate(), mesh.shape, parameter.placements, strict=True):
        if isinstance(placement, Replicate):
            continue
        if placement != Along(0):
            raise ValueError(f"stochastic rounding needs whole rows; this parameter is placed by {placement}")
        part = -(-rows // parts)
        begin = min(place * part, rows)
        first, rows = first + begin, min(part, rows - begin)
    return int(first * math.prod(parameter.shape[1:]))
