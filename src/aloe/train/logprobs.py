"""Log-probabilities of chosen tokens, without ever holding logits for a whole row.

The head is applied in chunks of scored tokens only (as in Wijmans et al. 2024, arXiv 2411.09009, without the kernel).
Two ways lead back: where every token's gradient is the same number, as in the mean of a fine-tuning loss, gradients are
made in the forward pass while a chunk's logits are there (as Liger does, Hsu et al. 2024, arXiv 2410.10989); else the
backward pass computes each chunk's logits again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from aloe.errors import AloeError
from aloe.train.packing import Example, PackedRow, lengths_of, pack

LOGITS_AT_ONCE = 1 << 23  # 32 MiB of float32 logits, a few of which live at a time
BF16_TOLERANCE = 0.25  # nats a token between two kernels in bf16; a wrong mask is off by more on some token
TOLERANCE = 1e-3  # nats; float32 rounding stays below 1e-4, a wrong mask or head is off by tenths


class _TokenLogprobs(torch.autograd.Function):
    """Forward keeps one log-sum-exp a token; backward computes each chunk's logits again."""

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
                slope = _slope(_logits(states, head), norm[part], targets[part])
                slope = slope.mul_(grads[0][part, None]).to(ctx.dtype)
                grad_hidden[part] = (slope @ head).to(hidden.dtype)
                if grad_weight is not None:
                    _add_product(grad_weight, slope, states)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None


class _EvenTokenLogprobs(torch.autograd.Function):
    """As `_TokenLogprobs` for gradients that are one number for all tokens; that number is a factor in the end."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype, chunk: int
    ) -> torch.Tensor:
        out = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(dtype)
            for part in _chunks(len(hidden), chunk):
                states = hidden[part].to(dtype)
                logits = _logits(states, head)
                norm = logits.logsumexp(-1)
                out[part] = logits.gather(1, targets[part, None])[:, 0] - norm
                slope = _slope(logits, norm, targets[part]).to(dtype)
                grad_hidden[part] = (slope @ head).to(hidden.dtype)
                if grad_weight is not None:
                    _add_product(grad_weight, slope, states)
        ctx.grads = grad_hidden, grad_weight
        ctx.weight_dtype = weight.dtype
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.grads
        del ctx.grads  # a second backward pass would scale them again
        if not len(grads[0]):
            factor = torch.zeros((), device=grads[0].device)
        else:
            factor = grads[0][0]
            # Not asked on CUDA, where it would be a wait; NaN, which equals nothing, is the loop's to report.
            if not grads[0].is_cuda and not bool((grads[0] == factor).all() | factor.isnan()):
                raise RuntimeError("the gradients of the tokens differ: call token_logprobs without even=True")
        grad_hidden.mul_(factor)
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(factor).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None


def _chunks(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, start + size)


def _logits(states: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    """[tokens, vocabulary] in float32; on CUDA a bf16 product is written in float32 straight from the accumulator."""
    if states.is_cuda and states.dtype != torch.float32:
        return torch.mm(states, head.T, out_dtype=torch.float32)
    return (states @ head.T).float()


def _slope(logits: torch.Tensor, norm: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """d logp / d logits = onehot - p, in the place of `logits`."""
    slope = logits.sub_(norm[:, None]).exp_().neg_()
    return slope.scatter_add_(1, targets[:, None], torch.ones_like(norm[:, None]))


def _add_product(total: torch.Tensor, slope: torch.Tensor, states: torch.Tensor) -> None:
    """total += slope^T states; without a product beside it where the types agree."""
    if total.dtype == slope.dtype:
        total.addmm_(slope.T, states)
    else:
        total += slope.T @ states


def token_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    chunk: int | None = None,
    even: bool = False,
) -> torch.Tensor:
    """log p(target) for every row of `hidden`; differentiable in `hidden` and `weight`.

    Args:
        hidden: [tokens, hidden size], the states that predict; no rows is fine and gives zero gradients.
        weight: [vocabulary, hidden size] of the language-model head.
        targets: [tokens], ids.
        dtype: of the matrix products (float32, or bfloat16 under autocast); all sums are float32.
        chunk: tokens at once; by default what makes 32 MiB of logits.
        even: promise that all tokens will get the same gradient, which saves a quarter of the head's work. A broken
            promise is a RuntimeError on the CPU.

    Returns:
        [tokens] float32, in nats.
    """
    size = chunk or max(16, LOGITS_AT_ONCE // weight.shape[0])
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    function = _EvenTokenLogprobs if even and wanted else _TokenLogprobs
    result: torch.Tensor = function.apply(hidden, weight, targets, dtype, size)  # type: ignore[no-untyped-call]
    return result


def row_logprobs(model: Any, row: PackedRow, bf16: bool = False) -> torch.Tensor:
    """Log-probabilities [scored tokens] of a packed row, from one forward pass of a transformers causal LM.

    The row's whole square is computed under its mask: `Policy` is tested against this, and does it faster."""
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
def prove_exact(
    policy: Callable[[PackedRow], torch.Tensor], model: Any, examples: Sequence[Example], where: str
) -> float:
    """Compare the packed log-probabilities of the two shortest examples with the model's own logits on separate rows.

    Args:
        policy: gives a row's log-probabilities as training will compute them, but in float32.
        model: the causal LM inside it, called as any other program would.

    Returns:
        The largest difference in nats.

    Raises:
        AloeError: an attention backend that ignores the mask or positions, or a head that is more than a product.
    """
    row = shortest_row(examples)
    ours = policy(row).cpu()
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


def shortest_row(examples: Sequence[Example]) -> PackedRow:
    """The two shortest examples in one row."""
    tokens = lengths_of(examples)
    shortest = sorted(range(len(examples)), key=lambda i: (int(tokens[i]), i))[:2]
    (row,) = pack(examples, shortest, sum(int(tokens[i]) for i in shortest), pad_id=0)
    return row


@torch.no_grad()
def shortest_logprobs(policy: Callable[[PackedRow], torch.Tensor], examples: Sequence[Example]) -> torch.Tensor:
    """Log-probabilities [scored] of that row."""
    return policy(shortest_row(examples))


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
