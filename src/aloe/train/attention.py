"""Attention over packed trees: every backend keeps trees and branches apart, none looks at a whole row's square.

A model is given one attention function, `PACKED`, which reads how the row is laid out from the `packed` argument that
transformers hands through to every layer. Backends:

- `sdpa`: PyTorch's scaled dot-product attention on each segment (a prefix, or a branch behind its prefix) alone;
- `flex`: one FlexAttention kernel with a block mask (CUDA; on a CPU it has no backward pass and serves tests);
- `flash`: FlashAttention's variable-length kernel, for rows without branches (CUDA).

Without `packed` the function is ordinary SDPA, so that the same model still generates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.functional import scaled_dot_product_attention

from aloe.errors import AloeError
from aloe.models.packed import Layout

Backend = Literal["sdpa", "flex", "flash"]
PACKED = "aloe_packed"
CPU_BF16 = 400  # keys from which bf16 attention is faster than float32 on a CPU with bf16 instructions


@dataclass(frozen=True)
class Segment:
    """A run of tokens that attends to itself, causally, and to all of the segment `prefix` (none: -1)."""

    length: int
    prefix: int


def segments(layout: Layout) -> list[Segment]:
    """The row cut into prefixes and branches, in order; padding at the end is a segment of its own."""
    found: list[Segment] = []
    total = len(layout.ids)
    used = total - int((layout.tree < 0).sum())
    starts = [(start, b == 0) for tree in layout.starts for b, start in enumerate(tree)]
    prefix = -1
    for (start, is_prefix), end in zip(starts, [*(s for s, _ in starts[1:]), used], strict=True):
        if is_prefix:
            prefix = len(found)
        found.append(Segment(end - start, -1 if is_prefix else prefix))
    if used < total:
        found.append(Segment(total - used, -1))
    return found


@dataclass(frozen=True)
class Packed:
    """What the attention function needs of a row. One object serves all layers."""

    backend: Backend
    segments: tuple[Segment, ...]
    tree: torch.Tensor  # [tokens], -1 for padding
    branch: torch.Tensor  # [tokens]
    positions: torch.Tensor  # [tokens]
    cache: dict[Any, Any]  # masks by window, made by the first layer that asks

    @classmethod
    def of(cls, layout: Layout, backend: Backend, device: torch.device) -> Packed:
        """Raises AloeError for a row with branches under `flash`, whose kernel knows no prefixes."""
        found = tuple(segments(layout))
        if backend == "flash" and any(s.prefix >= 0 for s in found):
            raise AloeError("flash attention can't share a prompt between answers", fix="set attention to flex or auto")
        tree, branch, positions = (
            torch.from_numpy(a).to(device) for a in (layout.tree, layout.branch, layout.positions)
        )
        return cls(backend, found, tree, branch, positions, {})


def pick(device: torch.device, *, branches: bool, bf16: bool, asked: Backend | Literal["auto"] = "auto") -> Backend:
    """The backend for a device: on CUDA `flash`, or `flex` where rows have branches or float32; `sdpa` elsewhere.

    Raises:
        AloeError: a backend was asked for where its kernel doesn't serve.
    """
    cause = None
    if asked == "flash" and (branches or not bf16):
        cause = "shares no prompt between answers" if branches else "needs bf16"
    if asked in ("flash", "flex") and device.type != "cuda":
        cause = f"doesn't train on {device.type}"
    if cause:
        fix = "set hardware.attention to auto"
        raise AloeError(f"{asked} attention {cause}", where="hardware.attention", fix=fix)
    if asked != "auto":
        return asked
    if device.type != "cuda":
        return "sdpa"
    return "flash" if bf16 and not branches else "flex"


def install(model: Any) -> None:
    """Give the model the packed attention function. Its mask is never built: a row's square can be gigabytes."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(PACKED, _attention)
    AttentionMaskInterface.register(PACKED, sdpa_mask)
    model.set_attn_implementation(PACKED)


def arguments(packed: Packed) -> dict[str, Any]:
    """What to call the model with. A mask with four dimensions is taken as it is, and this one is read by no one."""
    return {"attention_mask": torch.zeros(1, 1, 1, 1, device=packed.tree.device), "packed": packed}


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed: Packed | None = None,
    sliding_window: int | None = None,
    **extra: Any,
) -> tuple[torch.Tensor, None]:
    """[1, heads, tokens, head size] -> [1, tokens, heads, head size], as transformers' own attention functions."""
    if packed is None:
        if attention_mask is not None and attention_mask.shape[-1] < key.shape[-2]:
            raise AloeError(
                "a layer of this model doesn't hand on how its row is packed", fix="use another architecture"
            )
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        found, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **extra)
        return found, None
    if extra.get("softcap") is not None or extra.get("s_aux") is not None or extra.get("position_bias") is not None:
        raise AloeError(
            "this architecture's attention caps, shifts or biases its scores, which packed rows don't do yet",
            fix="use a model of the Llama, Mistral, Qwen2, Qwen3 or SmolLM families",
        )
    window = None if sliding_window is None or int(packed.positions.max()) < sliding_window else sliding_window
    kernels: dict[str, Callable[..., torch.Tensor]] = {"sdpa": _by_segment, "flex": _flex, "flash": _flash}
    return kernels[packed.backend](query, key, value, packed, scaling, window).transpose(1, 2), None


def _by_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packed: Packed,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Each segment alone. `split` has a backward pass that concatenates, where slices would each fill a whole row."""
    lengths = [s.length for s in packed.segments]
    queries, keys, values = (t.split(lengths, dim=2) for t in (query, key, value))
    found = []
    with torch.autocast(query.device.type, enabled=False):  # it would cast to bf16 what is float32 on purpose
        for at, segment in enumerate(packed.segments):
            k, v = keys[at], values[at]
            if segment.prefix >= 0:
                k, v = torch.cat([keys[segment.prefix], k], dim=2), torch.cat([values[segment.prefix], v], dim=2)
            plain = segment.prefix < 0 and window is None
            mask = None if plain else _mask(packed, at, k.shape[2], window)
            found.append(_attend(queries[at], k, v, mask, scaling).to(value.dtype))
    return torch.cat(found, dim=2) if len(found) > 1 else found[0]


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """SDPA, causal without a mask; rotary embeddings leave float32 queries and keys behind under autocast."""
    dtype = torch.float32 if q.device.type == "cpu" and k.shape[2] < CPU_BF16 else v.dtype
    gqa = q.shape[1] != k.shape[1]
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=gqa)


def _mask(packed: Packed, at: int, keys: int, window: int | None) -> torch.Tensor:
    """[queries, keys] True where a token of the segment may look: back to the prefix's start, within the window."""
    name = (at, window)
    if name not in packed.cache:
        length = packed.segments[at].length
        q = torch.arange(keys - length, keys, device=packed.tree.device)[:, None]
        k = torch.arange(keys, device=packed.tree.device)[None, :]
        packed.cache[name] = (k <= q) if window is None else (k <= q) & (q - k < window)
    mask: torch.Tensor = packed.cache[name]
    return mask


def _flex(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packed: Packed,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    name = ("flex", window)
    if name not in packed.cache:
        tree, branch, positions = packed.tree, packed.branch, packed.positions

        def visible(b: Any, h: Any, q: Any, k: Any) -> Any:
            seen = (tree[q] == tree[k]) & ((branch[k] == 0) | (branch[q] == branch[k])) & (k <= q)
            return seen if window is None else seen & (positions[q] - positions[k] < window)

        size = query.shape[2]
        packed.cache[name] = create_block_mask(visible, None, None, size, size, device=str(query.device))
    kernel: Any = _compiled_flex() if query.is_cuda else flex_attention
    query, key = query.to(value.dtype), key.to(value.dtype)
    gqa = query.shape[1] != key.shape[1]
    found: torch.Tensor = kernel(query, key, value, block_mask=packed.cache[name], scale=scaling, enable_gqa=gqa)
    return found


_FLEX: list[Callable[..., torch.Tensor]] = []


def _compiled_flex() -> Callable[..., torch.Tensor]:
    """FlexAttention is fast only compiled; once for all shapes."""
    if not _FLEX:
        from torch.nn.attention.flex_attention import flex_attention

        _FLEX.append(torch.compile(flex_attention, dynamic=True))
    return _FLEX[0]


def _flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packed: Packed,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """FlashAttention's variable-length kernel as PyTorch carries it; [tokens, heads, head size] inside."""
    from torch.nn.attention.varlen import varlen_attn

    if "ends" not in packed.cache:
        lengths = [s.length for s in packed.segments]
        ends = torch.tensor([0, *lengths], device=query.device).cumsum(0).to(torch.int32)
        packed.cache["ends"] = (ends, max(lengths))
    ends, longest = packed.cache["ends"]
    q, k, v = (t[0].transpose(0, 1).to(value.dtype).contiguous() for t in (query, key, value))
    left = -1 if window is None else window - 1
    found: Any = varlen_attn(
        q, k, v, ends, ends, longest, longest, scale=scaling, window_size=(left, 0), enable_gqa=q.shape[1] != k.shape[1]
    )
    attended: torch.Tensor = found.transpose(0, 1)[None]
    return attended
