"""What each process of a team runs in `test_parallel`: `team_script.py PLAN` with torchrun's environment variables."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from aloe.keyed import rng
from aloe.models.packed import Tree
from aloe.train.checkpoint_files import merge_parts, read_index, reader, write_index, write_part
from aloe.train.packing import Example, pack
from aloe.train.parallel import Team, trained
from aloe.train.policy import Policy, prepare

STEPS, HALF, BATCH, WIDTH, VOCABULARY = 4, 2, 9, 40, 300
CLIP = 0.5  # below the norms met, so that clipping counts


def load(folder: Path, frozen: str = "") -> Policy:
    """The tiny model in training mode, layers of long rows recomputed; what has `frozen` in its name doesn't train."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prepare(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not frozen or frozen not in name)
    return Policy(model, recompute_above=WIDTH // 2)


def examples(count: int) -> list[Example]:
    """Dialogues of 6 to 30 random tokens, the second half of each scored."""
    made = []
    for i in range(count):
        draw = rng(0, "rows", i)
        length = int(draw.integers(6, 31))
        ids = draw.integers(3, VOCABULARY, length).tolist()
        made.append(Example(str(i), Tree(ids), [j >= length // 2 for j in range(length)]))
    return made


def adamw(policy: torch.nn.Module) -> torch.optim.Optimizer:
    parameters = [p for p in policy.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, eps=1e-6, fused=True)


def train(
    team: Team,
    policy: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    first: int,
    last: int,
    look: Callable[[int], None] = lambda step: None,
) -> list[dict[str, float]]:
    """Steps `first` to `last`; `look(step)` is called between backward and clipping."""
    rows = examples(STEPS * BATCH)
    curve = []
    for step in range(first, last):
        batch = list(range(step * BATCH, (step + 1) * BATCH))
        weight = sum(rows[i].trained for i in batch)
        mine = team.share(pack(rows, batch, WIDTH, pad_id=0))
        total = 0.0
        for i, (row, factor) in enumerate(mine):
            with team.accumulate(policy, last=i == len(mine) - 1):
                loss = -policy(row).double().sum() * factor / weight
                team.backward(loss)
            total += float(loss.detach())
        look(step)
        norm = team.clip(policy, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        curve.append({"loss": team.sum({"loss": total})["loss"], "norm": norm, "rows": len(mine)})
    return curve


def validate(team: Team, policy: torch.nn.Module) -> None:
    """Passes without gradients, as validation during training makes them."""
    rows = examples(3)
    with torch.no_grad():
        for row, _ in team.share(pack(rows, range(3), WIDTH, pad_id=0)):
            policy(row)


def gradients(team: Team, policy: torch.nn.Module, found: dict[str, torch.Tensor], step: int) -> None:
    """Whole gradients of the first step, on every process."""
    for name, parameter in trained(policy):
        if step:
            return
        if team.strategy == "zero3":
            from deepspeed.utils import safe_get_full_grad

            found[name] = safe_get_full_grad(parameter).detach().clone()
        else:
            gradient = parameter.grad
            assert gradient is not None, name
            found[name] = gradient.full_tensor() if team.strategy == "fsdp2" else gradient.detach().clone()


def write(team: Team, folder: Path, policy: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A checkpoint as the trainer's own, files and index."""
    if team.is_main:
        folder.mkdir()
    team.barrier()
    write_part(folder, team.rank, team.shards(policy, optimizer))
    team.barrier()
    if team.is_main:
        write_index(folder, merge_parts(folder, team.world))
    team.barrier()


def restore(team: Team, folder: Path, policy: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    team.restore(policy, optimizer, reader(folder, read_index(folder)["tensors"]))


def check_figures(team: Team) -> None:
    """Sums, gathering and broadcasting."""
    assert team.sum({"b": 0.1 * (team.rank + 1), "a": 2.0**60}) == {"b": 0.1 + 0.2, "a": 2.0**61}
    mine = np.full((team.rank + 1, 2), team.rank, dtype=np.float32)
    gathered = team.gather(mine)
    assert gathered.dtype == np.float32
    assert gathered.tolist() == [[0, 0], [1, 1], [1, 1]]
    assert team.broadcast({"from": team.rank}) == {"from": 0}


def run(strategy: Any, model: Path, one: Path, out: Path) -> None:
    """All checks of a strategy; `one` is a checkpoint that a single process wrote after `HALF` steps."""
    torch.set_num_threads(1)
    team = Team.join(strategy)
    check_figures(team)
    out.mkdir(exist_ok=True)
    found: dict[str, torch.Tensor] = {}
    policy, optimizer = team.prepare(load(model), adamw)
    curve = train(team, policy, optimizer, 0, HALF, partial(gradients, team, policy, found))
    validate(team, policy)
    write(team, out / "checkpoint", policy, optimizer)
    validate(team, policy)
    curve += train(team, policy, optimizer, HALF, STEPS)
    validate(team, policy)
    weights = dict(team.full_parameters(policy))
    assert bool(weights) == team.is_main
    again, optimizer = team.prepare(load(model), adamw)
    restore(team, one, again, optimizer)
    resumed = train(team, again, optimizer, HALF, STEPS)
    continued = dict(team.full_parameters(again))
    # Weights that don't train, as under LoRA, mixed with those that do; layers differ in what trains.
    partly, optimizer = team.prepare(load(model, frozen="mlp"), adamw)
    partial_curve = train(team, partly, optimizer, 0, HALF)
    partial_weights = dict(team.full_parameters(partly))
    pieces = [s.name for s in team.shards(partly, optimizer)]
    assert not [name for name in pieces if "mlp" in name]
    if team.is_main:
        save_file({n: t.contiguous() for n, t in found.items()}, out / "gradients.safetensors")
        for name, tensors in {"weights": weights, "continued": continued, "partial": partial_weights}.items():
            save_file({n: t.contiguous() for n, t in tensors.items()}, out / f"{name}.safetensors")
        curves = {"curve": curve, "resumed": resumed, "partial": partial_curve}
        (out / "curves.json").write_text(json.dumps(curves))
    team.barrier()


if __name__ == "__main__":
    plan = json.loads(Path(sys.argv[1]).read_text())
    for strategy in plan["strategies"]:
        run(strategy, Path(plan["model"]), Path(plan["one"]), Path(plan["out"]) / strategy)
    torch.distributed.destroy_process_group()
