"""What a decoder's dimensions say: bytes of activations kept for the backward pass, and floating-point operations.

Activations are counted tensor by tensor as autograd keeps them in a decoder layer of the Llama shape (RMS norm, rotary
attention, gated MLP), which Mistral, Qwen and SmolLM share. Pure arithmetic: nothing is loaded or measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from aloe.models.packed import Layout
from aloe.train.lora import Lora

# In the order of what they cost in memory: float32 throughout, bf16 products, bf16 weights.
Precision = Literal["float32", "bf16_autocast", "bf16_stochastic"]
Attention = Literal["sdpa", "flex", "flash", "math"]


@dataclass(frozen=True)
class Dims:
    """Sizes of a decoder; `queries` and `keys` are all heads' widths together."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    queries: int
    keys: int
    head_size: int
    vocabulary: int
    head_norms: bool = False  # queries and keys are normed (Qwen 3)

    @classmethod
    def of(cls, config: Any) -> Dims:
        """From a transformers config object."""
        c = config.get_text_config(decoder=True)
        heads = int(c.num_attention_heads)
        size = int(getattr(c, "head_dim", None) or c.hidden_size // heads)
        keys = size * int(getattr(c, "num_key_value_heads", None) or heads)
        inner = int(getattr(c, "intermediate_size", None) or getattr(c, "n_inner", None) or 4 * c.hidden_size)
        normed = c.model_type.startswith("qwen3")
        sizes = (int(c.num_hidden_layers), int(c.hidden_size), inner, heads, heads * size, keys, size)
        return cls(*sizes, int(c.vocab_size), normed)


# -- activations ----------------------------------------------------------------------------------------------------


def layer_activations(
    d: Dims, tokens: int, precision: Precision = "float32", lora: Lora | None = None, attention: Attention = "sdpa"
) -> int:
    """Bytes that autograd keeps of one decoder layer for the backward pass of a row of `tokens`.

    A norm keeps its input in float32 and, where its gain trains, its output; the products keep their inputs (under
    autocast a bf16 copy for each); attention its queries, keys, values and result; the gated MLP four intermediates.
    """
    bf16, auto = precision != "float32", precision == "bf16_autocast"
    a = 2 if bf16 else 4  # bytes of what the matrix products read and write
    stream = 2 if precision == "bf16_stochastic" else 4  # of the residual stream
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    reads = set(names) if lora is None else _kinds(lora, names)  # whose input is needed for a weight's gradient
    into_attention, into_mlp = (len(reads & set(group)) for group in (names[:3], names[4:6]))
    copies = into_attention + into_mlp if auto else bool(into_attention) + bool(into_mlp)
    a_token = 2 * d.hidden * 4 + (0 if lora else 2 * d.hidden * stream) + copies * d.hidden * a
    inside = 4 if attention in ("sdpa", "math") else a  # on a CPU attention is float32 for short segments
    a_token += 2 * (d.queries + d.keys) * inside + ("o_proj" in reads) * d.queries * a + 4 * d.heads + 8
    a_token += (3 + ("down_proj" in reads)) * d.intermediate * a
    a_token += (d.queries + d.keys) * (4 if lora else 4 + a) if d.head_norms else 0
    a_token += lora.rank * a * len(reads) if lora else 0
    scores = d.heads * tokens * tokens * 4 if attention == "math" else 0  # flash, flex and fused SDPA keep none
    return tokens * a_token + scores


def activations(
    d: Dims,
    tokens: int,
    precision: Precision = "float32",
    *,
    recompute: bool = False,
    lora: Lora | None = None,
    attention: Attention = "sdpa",
) -> int:
    """Bytes kept for the backward pass of a row: every layer's, or with `recompute` each layer's input and one layer's.

    To that come the last norm, the states that are scored, and the rotary tables.
    """
    layer = layer_activations(d, tokens, precision, lora, attention)
    stream = 2 if precision == "bf16_stochastic" else 4
    ends = tokens * (d.hidden * (4 + 2 * stream) + 2 * d.head_size * 4)
    layers = d.layers * tokens * d.hidden * stream + layer if recompute else d.layers * layer
    return ends + layers


def _kinds(lora: Lora, names: list[str]) -> set[str]:
    """Which kinds of layer an adapter sits beside; one that sits beside some of a kind counts for all."""
    if isinstance(lora.targets, str):
        return set(names)
    return {t.rpartition(".")[2] for t in lora.targets} & set(names)


def should_recompute(
    config: Any, tokens: int, budget_bytes: int, precision: Precision = "float32", lora: Lora | None = None
) -> bool:
    """Whether a row of `tokens` keeps more than `budget_bytes`, so that its layers are to be computed again instead."""
    return tokens > recompute_above(config, budget_bytes, precision, lora)


def recompute_above(config: Any, budget_bytes: int, precision: Precision = "float32", lora: Lora | None = None) -> int:
    """Tokens of the longest row whose activations stay within `budget_bytes`."""
    return budget_bytes // activations(Dims.of(config), 1, precision, lora=lora)  # they grow with the tokens


# -- arithmetic -----------------------------------------------------------------------------------------------------


def attention_pairs(layout: Layout) -> int:
    """(query, key) pairs that a row's tokens look at: each its tree's prefix and its own branch, up to itself."""
    pairs = 0
    for tree in range(len(layout.starts)):
        prefix, *branches = np.bincount(layout.branch[layout.tree == tree]).tolist()
        pairs += sum(n * (n + 1) // 2 for n in (prefix, *branches)) + prefix * sum(branches)
    return int(pairs)


def flops(config: Any, tokens: int, scored_tokens: int, attention_pairs: int, lora: Lora | None = None) -> float:
    """Floating-point operations of a forward and backward pass, a multiplication and an addition counted as two.

    Matrix products of the layers on all `tokens`, of the head on the scored ones, of attention on `attention_pairs`
    (as a kernel that skips what is masked would do them). The backward pass is twice the forward pass, without what
    is computed a second time; under LoRA the frozen weights need no gradient, so it is once, the adapters' own
    products apart. For a gated MLP of the Llama shape.
    """
    d = Dims.of(config)
    matrices = d.layers * (2 * d.hidden * d.queries + 2 * d.hidden * d.keys + 3 * d.hidden * d.intermediate)
    products = 2.0 * (matrices * tokens + d.vocabulary * d.hidden * scored_tokens)
    scores = 4.0 * d.layers * d.queries * attention_pairs
    return (2 if lora else 3) * products + 3 * scores
