"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) through peft, put into the plain Hugging Face model in place.

The model stays the causal LM that it was: `model.base_model(...)` and the head's weight are where they were, and what
trains is two small matrices beside each chosen linear layer, W x + scale B A x. Without the adapter it is the base
model to the last bit, which makes it its own reference for DPO. After training the adapter is folded into the
weights, so the result is an ordinary model; training that again is how a LoRA run is continued.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from aloe.contract import Params
from aloe.errors import AloeError
from aloe.keyed import rng

ADAPTER = "default"
BASE, DOWN, UP = ".base_layer.weight", f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"


class Lora(Params):
    """Train low-rank adapters instead of all weights. There is no dropout: the loop trains without."""

    rank: int = Field(default=16, ge=1, le=1024)  # ours
    alpha: float = Field(default=32.0, gt=0)  # the update is scaled by alpha / rank; twice the rank is common
    # All linear layers but the head, or names of modules: `q_proj`, `self_attn.q_proj`, `layers.0.mlp.up_proj`.
    targets: Literal["linear"] | Annotated[list[str], Field(min_length=1)] = "linear"
    rslora: bool = False  # scale by alpha / sqrt(rank) (Kalajdzievski 2023, arXiv 2312.03732): for large ranks

    @property
    def scale(self) -> float:
        """Factor on B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


# -- in and out -----------------------------------------------------------------------------------------------------


def attach(model: Any, lora: Lora, seed: int) -> Any:
    """Add adapters to a transformers causal LM in place, freeze everything else, and return it.

    A is uniform within 1/sqrt(inputs), as peft's and nn.Linear's own, but drawn by (seed, module name): the same
    whatever else is adapted and on every process. B is zero, so the model computes what it did.

    Raises:
        AloeError: a target names no linear layer, or the head or embedding; the model has adapters already.
    """
    from peft import LoraConfig, TaskType, inject_adapter_in_model

    if hasattr(model, "peft_config"):
        raise AloeError("the model has an adapter already", fix="fold it in first (merge_into) and train the result")
    names = sorted(_chosen(model, lora))
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft divides it, so a float is as good
        target_modules=names,
        lora_dropout=0.0,
        use_rslora=lora.rslora,
        init_lora_weights=False,  # drawn below; peft's own would be torch's sequential generator
        bias="none",
        task_type=TaskType.CAUSAL_LM,
    )
    inject_adapter_in_model(config, model, ADAPTER)
    layers = dict(_adapted(model))
    if sorted(layers) != names:
        raise RuntimeError(f"peft adapted {sorted(layers)[:3]}... where {names[:3]}... were asked for")
    with torch.no_grad():
        for name, layer in layers.items():
            # float32 beside weights of any type: an adapter's small updates would vanish in bf16
            down, up = layer.lora_A[ADAPTER].float().weight, layer.lora_B[ADAPTER].float().weight
            bound = 1 / math.sqrt(down.shape[1])
            drawn = rng(seed, "lora A", name).random(tuple(down.shape), dtype="float32")
            down.copy_(torch.from_numpy(drawn).mul_(2 * bound).sub_(bound))
            up.zero_()
    return model


def linear_layers(model: Any) -> dict[str, torch.nn.Linear]:
    """Linear layers that an adapter may sit beside, by name: all but the head, whose weight is read directly."""
    head = model.get_output_embeddings()
    return {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}


def chosen(names: Iterable[str], targets: str | list[str]) -> set[str]:
    """Which of the linear layers `names` are adapted: a target is a name, or the end of names at a dot.

    Raises:
        AloeError: a target fits none.
    """
    names = list(names)
    if isinstance(targets, str):
        return set(names)
    found: set[str] = set()
    for target in targets:
        fits = {n for n in names if n == target or n.endswith(f".{target}")}
        if not fits:
            ends = sorted({n.rpartition(".")[2] for n in names})
            near = get_close_matches(target, [*ends, *names], n=3, cutoff=0.5) or ends
            raise AloeError(
                f"{target!r} names no linear layer of this model that can be adapted",
                where="lora.targets",
                fix=f"the nearest names are {', '.join(near)}; `linear` takes all of {', '.join(ends)}",
            )
        found |= fits
    return found


def _chosen(model: Any, lora: Lora) -> set[str]:
    return chosen(linear_layers(model), lora.targets)


def _adapted(model: Any) -> Iterator[tuple[str, Any]]:
    """(module name, peft's layer) of every adapter."""
    from peft.tuners.lora import LoraLayer

    return ((n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer))


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """Inside, the model is its base to the last bit.

    Sets peft's flag alone. Its `enable_adapters` would also turn `requires_grad` off and on, and FSDP2 keeps the
    value that it finds when it first gathers a layer: an adapter first met in here would then never train.
    """
    layers = [layer for _, layer in _adapted(model)]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, flag in zip(layers, before, strict=True):
            layer._disable_adapters = flag


# -- folding in -----------------------------------------------------------------------------------------------------


def folded(weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """W + scale B A, summed in float32 and rounded once, to `weight`'s type. [out, in], [rank, in], [out, rank]."""
    return torch.addmm(weight.float(), up.float(), down.float(), alpha=scale).to(weight.dtype)


@torch.no_grad()
def merge_into(model: Any) -> Any:
    """Fold every adapter into its base weight in place and take peft's layers out: a plain model again, returned.

    Names, tied weights and types are the base model's; everything is trainable, as after loading.
    """
    for name, layer in list(_adapted(model)):
        parent, _, leaf = name.rpartition(".")
        weight, scale = layer.base_layer.weight, layer.scaling[ADAPTER]
        weight.copy_(folded(weight, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, scale))
        setattr(model.get_submodule(parent), leaf, layer.base_layer)
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model.requires_grad_(True)


def fold(named: Iterable[tuple[str, torch.Tensor]], lora: Lora) -> Iterator[tuple[str, torch.Tensor]]:
    """`merge_into` for weights that arrive one by one, as a sharded run gathers them: plain names, adapters folded in.

    Args:
        named: (name, whole tensor) in any order; of a layer's three tensors the first two are held until the third.

    Raises:
        ValueError: a layer whose three tensors are not all there.
    """
    waiting: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in named:
        kind = next((k for k in (BASE, DOWN, UP) if name.endswith(k)), None)
        if kind is None:
            yield name.replace(".base_layer.", "."), tensor  # a bias beside an adapted weight
            continue
        module = name.removesuffix(kind)
        parts = waiting.setdefault(module, {})
        parts[kind] = tensor
        if len(parts) == 3:
            del waiting[module]
            yield f"{module}.weight", folded(parts[BASE], parts[DOWN], parts[UP], lora.scale)
    if waiting:
        raise ValueError(f"{next(iter(waiting))}: adapter or base weight is missing")


def save_adapter(
    model: Any, folder: Path, base_name: str, named: Iterable[tuple[str, torch.Tensor]] | None = None
) -> None:
    """Write the adapter alone, as `peft.PeftModel.from_pretrained(base, folder)` reads it.

    Args:
        base_name: what the adapter's config names as its base model.
        named: whole tensors by name where the model holds only shards of them; the model's own by default.

    Raises:
        ValueError: the model has no adapter.
    """
    from safetensors.torch import save_file

    if not hasattr(model, "peft_config"):
        raise ValueError("the model has no adapter")
    tensors = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": tensor.detach().cpu().contiguous()
        for name, tensor in (model.named_parameters() if named is None else named)
        if name.endswith((DOWN, UP))
    }
    settings = model.peft_config[ADAPTER].to_dict()
    settings |= {"base_model_name_or_path": base_name, "inference_mode": True}
    # peft writes sets in whatever order they have in this process; the file must be the same on every run
    plain = {k: sorted(v) if isinstance(v, set) else v for k, v in settings.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    text = json.dumps(plain, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
