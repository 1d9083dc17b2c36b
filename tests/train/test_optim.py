"""Stochastic rounding keeps what it rounds in the mean, and bf16 weights learn where plain bf16 stands still."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aloe.train import optim
from aloe.train.optim import LARGEST, StochasticAdamW, adamw, rounding_noise, stochastic_round

OPTIONS: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.999)}
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]


def generator(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=generator(seed))


def from_bits(bits: list[int]) -> torch.Tensor:
    signed = [b - (1 << 32) if b >= 1 << 31 else b for b in bits]
    return torch.tensor(signed, dtype=torch.int32).view(torch.float32)


# -- rounding -------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@example(bits=[0x7F7F8000, 0x00000001, 0x80000001, 0x3F80FFFF], seed=3)
@example(bits=[0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800000, 0xFF800000, 0x7F7FFFFF], seed=3)
@given(bits=st.lists(st.integers(0, (1 << 32) - 1), max_size=40), seed=st.integers(0, 1000))
def test_every_bit_pattern_goes_to_a_neighbour(bits: list[int], seed: int) -> None:
    values = from_bits(bits)
    rounded = stochastic_round(values, rounding_noise(len(bits), generator(seed)))
    assert rounded.dtype == torch.bfloat16
    below = from_bits([b & 0xFFFF0000 for b in bits])  # towards zero
    above = from_bits([min((b & 0x7FFF0000) + 0x10000, 0x7F800000) | (b & 0x80000000) for b in bits])
    for value, got, low, high in zip(values, rounded.float(), below, above, strict=True):
        if torch.isnan(value):
            assert torch.isnan(got)
        elif abs(value) > LARGEST:  # infinities, and what has no upper neighbour
            assert got == value.bfloat16()
        elif value == low:
            assert got == value
            assert torch.signbit(got) == torch.signbit(value)
        else:
            assert got in (low, high)


def test_all_bf16_numbers_stay_as_they_are() -> None:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    for seed in range(5):
        rounded = stochastic_round(every.float(), rounding_noise(len(every), generator(seed)))
        numbers = ~every.isnan()
        assert torch.equal(rounded[numbers].view(torch.int16), every[numbers].view(torch.int16))
        assert rounded[~numbers].isnan().all()


@pytest.mark.parametrize("device", DEVICES)
def test_the_mean_of_many_roundings_is_the_value(device: str) -> None:
    """z of the mean over 4,000 roundings, for 256 values: none above 4.5, and their spread is that of a normal law."""
    values = torch.cat([normal(128, seed=1), normal(64, seed=2, scale=1e-30), normal(64, seed=3, scale=1e30)])
    count = 4000
    many = values.repeat(count, 1).to(device)
    noise = rounding_noise(many.numel(), generator(7, device))
    rounded = stochastic_round(many.view(-1), noise).view_as(many).double().cpu()
    low = torch.where(values < 0, rounded.max(0).values, rounded.min(0).values)  # towards zero
    spacing = (rounded.max(0).values - rounded.min(0).values).clamp_min(1e-300)
    share = (values.double() - low).abs() / spacing
    z = (rounded.mean(0) - values) / (spacing * (share * (1 - share) / count).sqrt())
    assert z.abs().max() < 4.5
    assert 0.8 < z.std() < 1.2
    nearest = values.bfloat16().double()
    assert ((nearest - values).abs() / spacing).mean() > 0.2  # what rounding to the nearest would be off by


def test_noise_is_uniform() -> None:
    noise = rounding_noise(1 << 20, generator(1)).int() & 0xFFFF
    for part in (noise >> 8, noise & 0xFF):
        counts = torch.bincount(part, minlength=256).double()
        chi2 = ((counts - 4096) ** 2 / 4096).sum().item()
        assert abs(chi2 - 255) < 5 * math.sqrt(2 * 255)
    pairs = noise.double().view(-1, 4)
    assert torch.corrcoef(pairs.T).fill_diagonal_(0).abs().max() < 5 / math.sqrt(len(pairs))
    assert torch.equal(rounding_noise(7, generator(2)), rounding_noise(8, generator(2))[:7])


# -- groups ---------------------------------------------------------------------------------------------------------


def test_decay_is_on_matrices_only_and_frozen_parameters_are_left_out() -> None:
    matrix, vector, frozen = (torch.nn.Parameter(torch.ones(s)) for s in ((2, 3), (3,), (2, 2)))
    frozen.requires_grad_(False)
    gathered = torch.nn.Parameter(torch.ones(0))
    gathered.ds_shape = (4, 4)
    named = [("m", matrix), ("v", vector), ("f", frozen), ("g", gathered)]
    for optimizer in (adamw(iter(named), **OPTIONS), StochasticAdamW(iter(named), seed=1, **OPTIONS)):
        decayed, plain = optimizer.param_groups
        assert [id(p) for p in decayed["params"]] == [id(matrix), id(gathered)]
        assert [id(p) for p in plain["params"]] == [id(vector)]
        assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert len(adamw([("v", vector)], **OPTIONS).param_groups) == 1


# -- the optimiser --------------------------------------------------------------------------------------------------


def model(dtype: torch.dtype, seed: int = 0) -> list[tuple[str, torch.nn.Parameter]]:
    shapes = {"a": (40, 30), "b": (30,), "c": (7, 5, 3)}
    return [(n, torch.nn.Parameter(normal(*s, seed=seed + i).to(dtype))) for i, (n, s) in enumerate(shapes.items())]


def train(optimizer: torch.optim.Optimizer, named: list[tuple[str, torch.nn.Parameter]], first: int, end: int) -> None:
    """Gradients that depend on the step and the parameter's name only."""
    for step in range(first, end):
        for name, p in named:
            p.grad = normal(*p.shape, seed=100 * step + ord(name), scale=0.1).to(p.dtype)
        optimizer.step()


def test_in_float32_it_is_torchs_adamw() -> None:
    ours, theirs = model(torch.float32), model(torch.float32)
    train(StochasticAdamW(ours, seed=1, moments=torch.float32, **OPTIONS), ours, 0, 20)
    train(adamw(theirs, **OPTIONS), theirs, 0, 20)
    for (name, mine), (_, other) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
def test_an_update_is_kept_in_the_mean(moments: torch.dtype) -> None:
    """Three steps of 1e-3 on weights near 1.25, whose bf16 neighbours lie 8e-3 apart: mean over 800 seeds."""
    start = 1.25 + normal(64, seed=5, scale=0.05)
    start = start.bfloat16().float()
    exact = torch.nn.Parameter(start.clone())
    gradient = normal(64, seed=6).bfloat16()
    options = {"lr": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.999)}
    reference = StochasticAdamW([("w", exact)], seed=0, moments=torch.float32, **options)
    for _ in range(3):
        exact.grad = gradient.float()
        reference.step()
    found = []
    for seed in range(800):
        w = torch.nn.Parameter(start.bfloat16())
        optimizer = StochasticAdamW([("w", w)], seed=seed, moments=moments, **options)
        for _ in range(3):
            w.grad = gradient
            optimizer.step()
        found.append(w.detach().double())
    runs = torch.stack(found)
    z = (runs.mean(0) - exact.detach()) / (runs.std(0) / math.sqrt(len(runs)))
    assert z.abs().max() < 4.5
    assert (exact.detach() - start).abs().min() > 2e-3
    assert torch.equal(exact.detach().bfloat16(), start.bfloat16())  # to the nearest, nothing would have moved


def test_where_plain_bf16_stands_still_stochastic_rounding_follows_float32() -> None:
    """Least squares with weights near 1 that must move by 0.05, at a learning rate of 1e-4."""
    inputs = normal(512, 256, seed=1, scale=1 / 16)
    start = (1 + normal(256, seed=2, scale=0.5)).bfloat16().float()
    labels = inputs @ (start + normal(256, seed=3, scale=0.05))

    def losses(dtype: torch.dtype, make: Callable[..., torch.optim.Optimizer], **options: Any) -> list[float]:
        w = torch.nn.Parameter(start.clone().to(dtype))
        optimizer = make([("w", w)], lr=1e-4, weight_decay=0.0, betas=(0.9, 0.999), **options)
        found = []
        for _ in range(600):
            loss = (inputs @ w.float() - labels).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        return found

    exact = losses(torch.float32, adamw)
    plain = losses(torch.bfloat16, adamw)
    assert exact[-1] < 0.2 * exact[0]
    assert plain[-1] > 0.9 * plain[0]
    for moments in (torch.float32, torch.bfloat16):
        ours = losses(torch.bfloat16, StochasticAdamW, seed=1, moments=moments)
        assert ours[0] == exact[0]
        gain = (ours[0] - ours[-1]) / (exact[0] - exact[-1])
        assert 0.93 < gain < 1.02
        assert max(abs(a - b) for a, b in zip(ours, exact, strict=True)) < 0.08 * exact[0]


def test_bf16_moments_decay() -> None:
    """After one large gradient beta2 = 0.999 must halve the second moment in 693 steps; the nearest bf16 number to
    0.999 v is v itself, for ever."""
    w = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = StochasticAdamW([("w", w)], lr=0.0, weight_decay=0.0, betas=(0.9, 0.999), seed=1)
    w.grad = torch.ones_like(w)
    optimizer.step()
    start = optimizer.state[w]["exp_avg_sq"].double().mean().item()
    for _ in range(693):
        w.grad = torch.zeros_like(w)
        optimizer.step()
    left = optimizer.state[w]["exp_avg_sq"]
    assert left.dtype == torch.bfloat16
    assert left.double().mean().item() / start == pytest.approx(0.999**693, rel=0.01)
    assert (start * torch.tensor(0.999)).bfloat16() == torch.tensor(start).bfloat16()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
def test_a_resumed_run_goes_on_bit_for_bit(moments: torch.dtype, device: str) -> None:
    def on_device() -> list[tuple[str, torch.nn.Parameter]]:
        return [(n, torch.nn.Parameter(p.detach().to(device))) for n, p in model(torch.bfloat16)]

    options = {**OPTIONS, "seed": 3, "moments": moments}
    straight = on_device()
    optimizer = StochasticAdamW(straight, **options)
    train(optimizer, straight, 0, 5)
    resumed = [(n, torch.nn.Parameter(p.detach().clone())) for n, p in straight]
    state = copy.deepcopy(optimizer.state_dict())
    torch.rand(5, device=device)  # the global generator is nobody's business
    train(optimizer, straight, 5, 10)
    again = StochasticAdamW(resumed, **options)
    again.load_state_dict(state)
    assert all(again.state[p][key].dtype == moments for _, p in resumed for key in optim.MOMENTS)
    train(again, resumed, 5, 10)
    for (name, a), (_, b) in zip(straight, resumed, strict=True):
        assert torch.equal(a, b), name
        for key in optim.MOMENTS:
            assert torch.equal(optimizer.state[a][key], again.state[b][key])


def test_the_order_of_parameters_and_others_beside_change_nothing() -> None:
    one, other = model(torch.bfloat16), model(torch.bfloat16)
    train(StochasticAdamW(one, seed=3, **OPTIONS), one, 0, 5)
    backwards = [*reversed(other), ("z", torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)))]
    train(StochasticAdamW(backwards, seed=3, **OPTIONS), backwards, 0, 5)
    for (name, a), (_, b) in zip(one, other, strict=True):
        assert torch.equal(a, b), name


def test_seed_step_and_name_each_give_other_roundings() -> None:
    def moved(seed: int, name: str, steps_before: int) -> torch.Tensor:
        w = torch.nn.Parameter(torch.ones(2000, dtype=torch.bfloat16))
        optimizer = StochasticAdamW([(name, w)], lr=2e-3, weight_decay=0.0, betas=(0.0, 0.0), seed=seed)
        for _ in range(steps_before + 1):
            with torch.no_grad():
                w.fill_(1)
            w.grad = torch.full_like(w, -1)  # up, where a step is 2^-7
            optimizer.step()
        return w.detach() > 1

    runs = [moved(1, "w", 0), moved(2, "w", 0), moved(1, "v", 0), moved(1, "w", 1)]
    assert torch.equal(runs[0], moved(1, "w", 0))
    for run in runs:
        assert run.double().mean().item() == pytest.approx(2e-3 * 128, abs=0.05)
    for i, a in enumerate(runs):
        for b in runs[:i]:
            agreement = (a == b).double().mean().item()  # two independent coins of .256: .62
            assert agreement == pytest.approx(0.256**2 + 0.744**2, abs=0.06)


@pytest.fixture
def mesh_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, int], Any]]:
    """`mesh_of(rank, world)`: a device mesh in which this process is that rank and nobody else is there."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def make(rank: int, world: int) -> Any:
        if dist.is_initialized():
            dist.destroy_process_group()
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
        # Named after the rank: torch keeps results by mesh, and would give one rank what it computed as another.
        return init_device_mesh("cpu", (world,), mesh_dim_names=(f"rank_{rank}_of_{world}",))

    yield make
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_sharded_rows_round_as_the_whole_parameter_does(
    world: int, mesh_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With FSDP2's parameters: each process holds rows, and blocks of random numbers lie across the cuts."""
    from torch.distributed.tensor import DTensor, Shard

    monkeypatch.setattr(optim, "CPU_BLOCK", 32)
    start, gradients = normal(7, 11, seed=1).bfloat16(), [normal(7, 11, seed=s).bfloat16() for s in range(2, 5)]
    whole = torch.nn.Parameter(start.clone())
    optimizer = StochasticAdamW([("w", whole)], seed=1, **OPTIONS)
    for gradient in gradients:
        whole.grad = gradient
        optimizer.step()
    rows = []
    for rank in range(world):
        mesh = mesh_of(rank, world)
        cuts = torch.chunk(torch.arange(7), world)
        mine = cuts[rank] if rank < len(cuts) else torch.arange(0)

        def shard(tensor: torch.Tensor, mine: Any = mine, mesh: Any = mesh) -> Any:
            return DTensor.from_local(tensor[mine].clone(), mesh, [Shard(0)], shape=(7, 11), stride=(11, 1))

        parameter = torch.nn.Parameter(shard(start))
        sharded = StochasticAdamW([("w", parameter)], seed=1, **OPTIONS)
        for gradient in gradients:
            parameter.grad = shard(gradient)
            sharded.step()
        rows.append(parameter.detach().to_local())
    assert torch.equal(torch.cat(rows), whole.detach())
    assert not torch.equal(whole.detach(), start)


def test_columns_sharded_are_refused(mesh_of: Any) -> None:
    from torch.distributed.tensor import DTensor, Shard

    columns = DTensor.from_local(torch.ones(4, 3, dtype=torch.bfloat16), mesh_of(0, 2), [Shard(1)])
    parameter = torch.nn.Parameter(columns)
    parameter.grad = columns.detach()
    with pytest.raises(ValueError, match="whole rows"):
        StochasticAdamW([("w", parameter)], seed=1, **OPTIONS).step()


def test_other_dtypes_are_refused() -> None:
    half = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"w: torch.float16"):
        StochasticAdamW([("w", half)], seed=1, **OPTIONS)
    with pytest.raises(ValueError, match=r"moments: torch.float64"):
        StochasticAdamW(model(torch.bfloat16), seed=1, moments=torch.float64, **OPTIONS)
