"""Log-probabilities of chosen tokens, without ever holding logits for a whole row.

The head is applied in chunks of scored tokens only; the forward pass keeps one log-sum-exp a token and the backward
pass computes each chunk's logits again (as in Wijmans et al. 2024, arXiv 2411.09009, without the kernel).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from aloe.errors import AloeError
from aloe.train.packing import Example, PackedRow, pack

LOGITS_AT_ONCE = 1 << 23  # 32 MiB of float32 logits, a few of which live at a time
TOLERANCE = 1e-3  # nats; float32 rounding stays below 1e-4, a wrong mask or head is off by tenths


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype, chunk: int
    ) -> torch.Tensor:
        out = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        norm = torch.empty_like(out)
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(dtype)
            for part in _chunks(len(hidden), chunk):
                logits = _logits(hidden[part].to(dtype), head)
                norm[part] = logits.logsumexp(-1)
                out[part] = logits.gather(1, targets[part, None])[:, 0] - norm[part]
        ctx.save_for_backward(hidden, weight, targets, norm)
        ctx.dtype, ctx.chunk = dtype, chunk
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, targets, norm = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(ctx.dtype)
            for part in _chunks(len(hidden), ctx.chunk):
                states = hidden[part].to(ctx.dtype)
                slope = _logits(states, head).sub_(norm[part, None]).exp_().neg_()  # d logp / d logits: onehot - p
                slope.scatter_add_(1, targets[part, None], torch.ones_like(norm[part, None]))
                slope = slope.mul_(grads[0][part, None]).to(ctx.dtype)
                grad_hidden[part] = (slope @ head).to(hidden.dtype)
                if grad_weight is not None:
                    grad_weight += slope.T @ states
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None


def _chunks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, start + size)


def _logits(states: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """[tokens, vocabulary] in float32; on CUDA a bf16 product is written in float32 straight from the accumulator."""
    if states.is_cuda and states.dtype != torch.float32:
        return torch.mm(states, head.T, out_dtype=torch.float32)
    return (states @ head.T).float()


def token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    chunk: int | None = None,
) -> torch.Tensor:
    """log p(target) for every row of `hidden`; differentiable in `hidden` and `weight`.

    Args:
        hidden: [tokens, hidden size], the states that predict; no rows is fine and gives zero gradients.
        weight: [vocabulary, hidden size] of the language-model head.
        targets: [tokens], ids.
        dtype: of the matrix products (float32, or bfloat16 under autocast); all sums are float32.
        chunk: tokens at once; by default what makes 32 MiB of logits.

    Returns:
        [tokens] float32, in nats.
    """
    size = chunk or max(16, LOGITS_AT_ONCE // weight.shape[0])
    result: torch.Tensor = _TokenLogprobs.apply(hidden, weight, targets, dtype, size)  # type: ignore[no-untyped-call]
    return result


def row_logprobs(model: Any, row: PackedRow, bf16: bool = False) -> torch.Tensor:
    """Log-probabilities [scored tokens] of a packed row, from one forward pass of a transformers causal LM."""
    device = model.device
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        hidden = model.base_model(
            input_ids=torch.from_numpy(row.layout.ids).to(device)[None],
            position_ids=torch.from_numpy(row.layout.positions).to(device)[None],
            attention_mask=torch.from_numpy(row.layout.mask()).to(device)[None, None],
            use_cache=False,
        ).last_hidden_state[0]
    # index_select, whose gradient sums in a fixed order where indexing adds from several threads at once
    states = hidden.index_select(0, torch.from_numpy(row.sources).to(device))
    head = model.get_output_embeddings().weight
    targets = torch.from_numpy(row.targets).to(device)
    return token_logprobs(states, head, targets, torch.bfloat16 if bf16 else torch.float32)


def sequence_sums(row: PackedRow, values: torch.Tensor) -> torch.Tensor:
    """Sum per-token `values` over each of the row's answers: [sequences] float64.

    Double, because a preference is a small difference of sums that run to hundreds of nats."""
    index = torch.from_numpy(row.sequence).to(values.device)
    return torch.zeros(row.sequences, dtype=torch.float64, device=values.device).index_add(0, index, values.double())


@torch.no_grad()
def prove_exact(model: Any, examples: Sequence[Example], where: str) -> float:
    """Compare the packed log-probabilities of the two shortest examples with the model's own logits on separate rows.

    Returns the largest difference in nats.

    Raises:
        AloeError: an attention backend that ignores the mask or positions, or a head that is more than a product.
    """
    shortest = sorted(range(len(examples)), key=lambda i: (examples[i].tokens, i))[:2]
    (row,) = pack(examples, shortest, sum(examples[i].tokens for i in shortest), pad_id=0)
    ours = row_logprobs(model, row).cpu()
    theirs = torch.cat([_plain_logprobs(model, examples[i]) for i in row.members])
    worst = float((ours - theirs).abs().max())
    if not worst <= TOLERANCE:
        raise AloeError(
            f"packed rows give log-probabilities up to {worst:.3g} nats from the model's own on separate rows",
            where=where,
            fix="this architecture can't be trained here: its attention doesn't keep packed rows apart, or its head "
            "scales, caps or shifts the logits",
        )
    return worst


def _plain_logprobs(model: Any, example: Example) -> torch.Tensor:
    """The example's scored log-probabilities from the model's full logits, one ordinary row for each answer."""
    tree, at, found = example.tree, 0, []
    prompt_flags = list(example.scored[: len(tree.prefix)])
    for branch in tree.branches or [[]]:
        ids = [*tree.prefix, *branch]
        at_branch = len(tree.prefix) + at
        flags = prompt_flags + list(example.scored[at_branch : at_branch + len(branch)])
        at += len(branch)
        logits = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
        logp = logits.float().log_softmax(-1).cpu()
        found.append(torch.stack([logp[i - 1, ids[i]] for i, flag in enumerate(flags) if flag]))
    return torch.cat(found)
