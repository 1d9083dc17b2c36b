"""What autograd keeps and what arithmetic costs, against autograd and PyTorch's own counter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from aloe.models.packed import Tree, lay_out
from aloe.train.dimensions import (
    Dims,
    Precision,
    activations,
    attention_pairs,
    flops,
    recompute_above,
    should_recompute,
)
from aloe.train.lora import Lora, attach
from aloe.train.packing import Example, PackedRow, pack
from aloe.train.policy import Policy, prepare

TOKENS = 160


def built(kind: str, dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    sizes = {"vocab_size": 300, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **more), dtype=dtype)
    prepare(model)
    return model


def row(tokens: int = TOKENS) -> PackedRow:
    ids = [3 + (7 * j) % 290 for j in range(tokens)]
    halves = [ids[: tokens // 2], ids[tokens // 2 :]]
    examples = [Example(str(i), Tree(h), [False] + [True] * (len(h) - 1)) for i, h in enumerate(halves)]
    return pack(examples, [0, 1], tokens, 0)[0]


def kept(policy: Policy) -> int:
    """Bytes that a forward pass leaves for the backward pass, each storage once, parameters apart."""
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    held: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor  # holding it, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy(row())
    return sum(t.untyped_storage().nbytes() for t in held.values())


@pytest.mark.parametrize("precision", ["float32", "bf16_autocast", "bf16_stochastic"])
@pytest.mark.parametrize(
    ("kind", "more"), [("llama", {}), ("qwen2", {}), ("mistral", {}), ("smollm3", {}), ("qwen3", {"head_dim": 32})]
)
def test_activations_are_what_autograd_keeps(kind: str, more: dict[str, Any], precision: Precision) -> None:
    dtype = torch.bfloat16 if precision == "bf16_stochastic" else torch.float32
    model = built(kind, dtype, **more)
    expected = activations(Dims.of(model.config), TOKENS, precision)
    if precision == "bf16_autocast":  # autocast's copies of the weights are a part of their own in the plan
        expected += 2 * sum(p.numel() for n, p in model.model.layers.named_parameters() if p.ndim == 2)
    assert kept(Policy(model, precision=precision)) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("targets", ["linear", ["q_proj", "v_proj"]])
@pytest.mark.parametrize("precision", ["float32", "bf16_autocast"])
def test_activations_under_lora(targets: Any, precision: Precision) -> None:
    lora = Lora(rank=8, targets=targets)
    model = built("llama")
    weights = sum(p.numel() for p in model.model.layers.parameters() if p.ndim == 2)
    attach(model, lora, 7)
    expected = activations(Dims.of(model.config), TOKENS, precision, lora=lora)
    expected += 2 * weights if precision == "bf16_autocast" else 0
    assert kept(Policy(model, precision=precision)) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("precision", ["float32", "bf16_autocast"])
def test_recomputing_keeps_the_layers_inputs(precision: Precision) -> None:
    model = built("llama")
    d = Dims.of(model.config)
    left = activations(d, TOKENS, precision, recompute=True) - activations_of_one_layer(d, precision)
    rotary = 2 * TOKENS * d.head_size * 4  # kept by the layers' closures, where no hook sees it
    assert kept(Policy(model, precision=precision, recompute_above=0)) + rotary == pytest.approx(left, rel=0.02)


def activations_of_one_layer(d: Dims, precision: Precision) -> int:
    deeper = Dims(**{**vars(d), "layers": d.layers + 1})
    return activations(deeper, TOKENS, precision) - activations(d, TOKENS, precision)


def test_scores_are_counted_where_they_are_kept() -> None:
    model = built("llama")
    policy = Policy(model)
    one = row()
    with sdpa_kernel(SDPBackend.MATH):
        more = kept(policy)
    lengths = [TOKENS // 2] * 2
    square = 4 * 4 * 4 * sum(n * n for n in lengths)  # layers, heads, bytes
    assert more - kept(policy) == pytest.approx(square, rel=0.35)  # and copies of keys and values for grouped heads
    d = Dims.of(model.config)
    whole = activations(d, TOKENS, attention="math") - activations(d, TOKENS)
    assert whole == 4 * 4 * 4 * TOKENS**2
    assert len(one.layout.ids) == TOKENS


@settings(deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 4096))
def test_the_row_from_which_layers_are_recomputed(budget: int, tokens: int) -> None:
    config = AutoConfig.for_model("llama")
    above = recompute_above(config, budget)
    assert activations(Dims.of(config), above) <= budget < activations(Dims.of(config), above + 1)
    assert should_recompute(config, tokens, budget) == (activations(Dims.of(config), tokens) > budget)


# -- arithmetic ---------------------------------------------------------------------------------------------------


def test_flops_are_those_of_pytorchs_counter(tiny_model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32, attn_implementation="eager")
    tokens = 48
    ids = torch.arange(3, 3 + tokens)[None]
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=ids, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[0], ids[0]).backward()
    rotary = 2 * 4 * tokens  # the angles: positions times 4 frequencies, as a product of matrices, forward only
    assert flops(model.config, tokens, tokens, tokens * tokens) == pytest.approx(counter.get_total_flops(), abs=rotary)


def test_flops_of_a_packed_row_and_of_lora(tiny_model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.float32)
    prepare(model)
    one = row(64)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        Policy(model, even=True)(one).sum().backward()
    squares = 2 * 32 * 32  # what the plain kernel computes; one that skips what is masked does about half
    in_place = 2 * 384 * 32 * len(one.targets)  # the head's gradient, a product that the counter doesn't know
    ours = flops(model.config, 64, len(one.targets), squares)
    assert ours == pytest.approx(counter.get_total_flops() + in_place, rel=0.001)
    attach(model, Lora(rank=1), 7)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        Policy(model, even=True)(one).sum().backward()
    ours = flops(model.config, 64, len(one.targets), squares, Lora(rank=1))
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.12)  # rank 1 of 32, and the first layer's input


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 6), st.lists(st.integers(1, 5), max_size=3)), min_size=1, max_size=4))
def test_attention_pairs_are_those_of_the_mask(shape: list[tuple[int, list[int]]]) -> None:
    trees = [Tree([1] * prefix, [[1] * n for n in branches]) for prefix, branches in shape]
    used = sum(len(t) for t in trees)
    layout = lay_out(trees, used + 3, 0)
    assert attention_pairs(layout) == int(np.tril(layout.mask())[:used].sum())
