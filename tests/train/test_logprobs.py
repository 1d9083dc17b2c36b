"""Chunked log-probabilities equal the naive ones, values and gradients; packed rows equal separate rows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from aloe.errors import AloeError
from aloe.models.load import load
from aloe.models.packed import Tree
from aloe.train.logprobs import prove_exact, row_logprobs, sequence_sums, token_logprobs
from aloe.train.packing import Example, pack


def naive(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None])[:, 0]


def tensors(tokens: int, hidden: int = 16, vocabulary: int = 50) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    states = torch.randn(tokens, hidden, generator=g, requires_grad=True)
    weight = torch.randn(vocabulary, hidden, generator=g, requires_grad=True)
    return states, weight, torch.randint(0, vocabulary, (tokens,), generator=g)


@pytest.mark.parametrize("chunk", [1, 7, 23, 100, None])
def test_values_and_gradients_equal_the_naive_ones(chunk: int | None) -> None:
    states, weight, targets = tensors(23)
    upstream = torch.linspace(-1, 1, 23)  # another slope for every token, as DPO has for every answer
    expected = naive(states, weight, targets)
    wanted = torch.autograd.grad(expected, (states, weight), upstream)
    found = token_logprobs(states, weight, targets, chunk=chunk)
    grads = torch.autograd.grad(found, (states, weight), upstream)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)


def test_all_masked_micro_batch_has_loss_zero_and_gradients_zero() -> None:
    states, weight, targets = tensors(0)
    loss = -token_logprobs(states, weight, targets).sum()
    loss.backward()
    assert loss.item() == 0.0
    assert states.grad is not None
    assert states.grad.shape == states.shape
    assert weight.grad is not None
    assert not weight.grad.any()


def test_frozen_head_gets_no_gradient() -> None:
    states, weight, targets = tensors(5)
    token_logprobs(states, weight.detach(), targets).sum().backward()
    assert states.grad is not None
    assert weight.grad is None


def test_bf16_products_come_close_and_stay_float32_outside() -> None:
    states, weight, targets = tensors(23)
    with torch.autocast("cpu", torch.bfloat16):
        found = token_logprobs(states, weight, targets, torch.bfloat16)
        exact = token_logprobs(states, weight, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(exact, naive(states, weight, targets), atol=1e-6, rtol=1e-6)  # autocast doesn't leak in
    torch.testing.assert_close(found, exact, atol=0.1, rtol=0.02)
    found.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


@pytest.fixture(scope="module")
def model(tiny_model_folder: Path) -> Any:
    return load(tiny_model_folder).model


def examples() -> list[Example]:
    g = torch.Generator().manual_seed(2)

    def ids(count: int) -> list[int]:
        return torch.randint(3, 384, (count,), generator=g).tolist()

    dialogues = [Example(f"d{n}", Tree(ids(n)), [False] * 2 + [True] * (n - 2)) for n in (5, 9, 14, 30)]
    pairs = [
        Example(f"p{n}", Tree(ids(n), [ids(3), ids(n + 1)]), [False] * n + [True] * (n + 4)) for n in (1, 4, 11, 20)
    ]
    return dialogues + pairs


def alone(model: Any, example: Example) -> list[float]:
    """Summed log-probability of each answer from ordinary rows and full logits."""
    sums = []
    at = len(example.tree.prefix)
    for branch in example.tree.branches or [[]]:
        ids = [*example.tree.prefix, *branch]
        flags = [*example.scored[: len(example.tree.prefix)], *example.scored[at : at + len(branch)]]
        at += len(branch)
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        sums.append(sum(float(logp[i - 1, ids[i]]) for i, flag in enumerate(flags) if flag))
    return sums


@pytest.mark.parametrize("multiple", [1, 8])
def test_packed_rows_equal_separate_rows(model: Any, multiple: int) -> None:
    rows = examples()
    with torch.no_grad():
        packed = pack(rows, range(len(rows)), width=80, pad_id=0, multiple=multiple)
        assert len(packed) < len(rows)
        for row in packed:
            sums = sequence_sums(row, row_logprobs(model, row)).tolist()
            expected = [s for i in row.members for s in alone(model, rows[i])]
            assert sums == pytest.approx(expected, abs=1e-5 * max(1, len(row.targets)))
            assert sums == pytest.approx(expected, rel=1e-6)


def test_packed_tokens_equal_separate_tokens_to_1e_5(model: Any) -> None:
    plain = partial(row_logprobs, model)
    assert prove_exact(plain, model, examples(), where="tiny") < 1e-5
    assert prove_exact(plain, model, examples()[4:], where="tiny") < 1e-5


def test_an_attention_backend_that_ignores_the_mask_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base = model.base_model
    forward = base.forward
    monkeypatch.setattr(base, "forward", lambda **kw: forward(**{**kw, "attention_mask": None}))
    with pytest.raises(AloeError, match="keep packed rows apart"):
        prove_exact(partial(row_logprobs, model), model, examples()[4:], where="tiny")


def test_a_head_that_scales_its_logits_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    head = model.lm_head
    forward = head.forward
    monkeypatch.setattr(head, "forward", lambda states: forward(states) * 0.5)
    with pytest.raises(AloeError, match="scales, caps or shifts"):
        prove_exact(partial(row_logprobs, model), model, examples(), where="tiny")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_gradients_made_in_the_forward_pass_are_those_made_later(dtype: torch.dtype, chunk: int) -> None:
    found = []
    for even in (True, False):
        states, weight, targets = tensors(23)
        logp = token_logprobs(states, weight, targets, dtype, chunk, even=even)
        (logp.sum() * -0.37).backward()
        found.append((logp.detach(), states.grad, weight.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6 if dtype == torch.float32 else 5e-3, rtol=1e-2)


def test_even_gradients_that_are_not_even_are_refused() -> None:
    states, weight, targets = tensors(5)
    with pytest.raises(RuntimeError, match="differ"):
        (token_logprobs(states, weight, targets, even=True) * torch.arange(5)).sum().backward()


def test_even_gradients_of_an_all_masked_row_are_zero() -> None:
    states, weight, targets = tensors(0)
    token_logprobs(states, weight, targets, even=True).sum().backward()
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) == 0.0
