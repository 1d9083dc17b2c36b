"""How fast this machine multiplies matrices: what training and estimates are measured against."""

from __future__ import annotations

import time

import torch


def matmul_flops(
    seconds: float = 1.0, dtype: torch.dtype = torch.float32, device: torch.device | None = None, size: int = 0
) -> float:
    """Floating-point operations a second of a plain square matrix product, measured for about `seconds`.

    `size` rows and columns; by default 1,024 on a CPU and 8,192 elsewhere, from which the speed no longer grows.
    """
    device = device or torch.device("cpu")
    size = size or (1024 if device.type == "cpu" else 8192)
    a = torch.randn(size, size, device=device).to(dtype)
    for _ in range(3):
        a @ a
    _wait(device)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        a @ a
        _wait(device)
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - begin)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
