"""What a training step writes when it is done: the model's folder, and how fast it went."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from aloe.contract import Context
from aloe.models.load import Loaded
from aloe.models.sources import save_tokenizer
from aloe.models.speed import matmul_flops
from aloe.train.parallel import Team

SPEEDS = ("tokens_s", "trained_tokens_s")
PARTS = ("data_s", "forward_s", "backward_s", "optimizer_s")


def write_model(loaded: Loaded, weights: dict[str, torch.Tensor], out: Path, dtype: torch.dtype) -> None:
    """The folder that any tool loads."""
    config = loaded.model.config
    config._name_or_path = ""  # a path of this machine otherwise
    config.dtype = dtype
    loaded.model.save_pretrained(out, state_dict={name: tensor.to(dtype) for name, tensor in weights.items()})
    save_tokenizer(loaded.tokenizer, out)
    if (loaded.folder / "generation_config.json").exists():
        shutil.copyfile(loaded.folder / "generation_config.json", out / "generation_config.json")


def performance(timing: list[dict[str, float]], team: Team, precision: str, ctx: Context) -> None:
    """Write and say how fast it went: `logs/performance.json`. The first step, which warms up, isn't counted.

    MFU is the share of the device's matrix speed, measured now in the precision of the products, that training
    reached: products and attention of the forward and backward pass, head included, recomputation not.
    """
    counted = timing[1:] or timing
    seconds, flops = (sum(line[name] for line in counted) for name in ("seconds", "flops"))
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    ceiling = matmul_flops(0.3, dtype, team.device) * team.world
    found: dict[str, Any] = {
        "steps": len(counted),
        "seconds": seconds,
        **{name: sum(line[name] * line["seconds"] for line in counted) / seconds for name in SPEEDS},
        **{name: sum(line[name] for line in counted) for name in PARTS},
        "flops_s": flops / seconds,
        "matmul_flops_s": ceiling,
        "mfu": flops / seconds / ceiling,
        "processes": team.world,
        "device": team.device.type,
    }
    if team.device.type == "cuda":
        found["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(team.device)
    (ctx.out / "logs" / "performance.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    ctx.log(
        f"{found['tokens_s']:,.0f} tokens/s, {found['trained_tokens_s']:,.0f} of them trained; {found['mfu']:.0%} of "
        f"the {ceiling / 1e9:,.0f} GFLOP/s of a plain matrix product"
    )
