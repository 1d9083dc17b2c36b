"""The loop against naive training: same gradients however a batch is cut, and a clear stop when it diverges."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aloe.errors import AloeError
from aloe.models.load import load
from aloe.models.packed import Tree
from aloe.train.loop import Loop, Outcome, Settings, backward
from aloe.train.losses import sigmoid
from aloe.train.objectives import PairLoss, TokenLoss
from aloe.train.optim import adamw
from aloe.train.packing import Example, pack
from aloe.train.parallel import Team
from aloe.train.policy import Policy, prepare
from aloe.train.reference import pair_logprobs

SETTINGS = Settings(batch=8, lr=1e-3, schedule="cosine", warmup_steps=1, clip=1.0, width=400)


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(3, 384, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


DIALOGUES = [Example(f"d/{n}", Tree(ids(n, n)), [i > n // 2 for i in range(n)]) for n in range(6, 22)]
PAIRS = [
    Example(f"p/{n}", Tree(ids(n, n), [ids(5, 50 + n), ids(n, 90 + n)]), [False] * n + [True] * (n + 5))
    for n in range(4, 16)
]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], atol: float = 1e-6) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=atol, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def pair_loss(model: Any) -> PairLoss:
    reference = pair_logprobs(model, PAIRS, precision="float32", width=64) + 0.5
    return PairLoss(reference, lambda r, _: sigmoid(r, 0.1), 0.1, lambda _: None)


def train(
    ctx: Any, model: Any, rows: list[Example], objective: Any, settings: Settings = SETTINGS, passes: int = 2
) -> Outcome:
    policy = Policy(model, even=isinstance(objective, TokenLoss))
    prepare(model)
    optimizer = adamw(model.named_parameters(), lr=settings.lr, weight_decay=0.1, betas=(0.9, 0.999))
    order = [i for _ in range(passes) for i in range(len(rows))]
    return Loop(ctx, "rows", policy, optimizer, rows, order, objective, settings).run()


def gradient_of(model: Any, rows: list[Example], packed: Any, objective: Any) -> float:
    policy = Policy(model, even=isinstance(objective, TokenLoss))
    return backward(Team(), policy, rows, packed, objective.weigh(rows), objective).loss


def test_sft_gradient_is_that_of_the_mean_token_loss_on_separate_rows(tiny_model_folder: Path) -> None:
    model = load(tiny_model_folder).model
    total = torch.zeros(())
    for e in DIALOGUES:
        logp = model(torch.tensor([e.tree.prefix])).logits[0].log_softmax(-1)
        total = total - sum(logp[i - 1, e.tree.prefix[i]] for i, flag in enumerate(e.scored) if flag)
    expected = total / sum(e.trained for e in DIALOGUES)
    expected.backward()
    naive = gradients(model)
    rows = pack(DIALOGUES, range(len(DIALOGUES)), 64, 0)
    assert gradient_of(model, DIALOGUES, rows, TokenLoss()) == pytest.approx(expected.item(), abs=1e-6)
    close(gradients(model), naive)


def test_dpo_gradient_is_that_of_separate_rows(tiny_model_folder: Path) -> None:
    model = load(tiny_model_folder).model
    objective = pair_loss(model)
    total = torch.zeros((), dtype=torch.float64)
    for pair, reference in zip(PAIRS, objective.reference, strict=True):
        sums = []
        for branch in pair.tree.branches:
            row = [*pair.tree.prefix, *branch]
            logp = model(torch.tensor([row])).logits[0].double().log_softmax(-1)
            sums.append(sum(logp[i - 1, row[i]] for i in range(len(pair.tree.prefix), len(row))))
        delta = (sums[0] - reference[0]) - (sums[1] - reference[1])
        total = total - torch.nn.functional.logsigmoid(0.1 * delta)
    (total / len(PAIRS)).backward()
    naive = gradients(model)
    loss = gradient_of(model, PAIRS, pack(PAIRS, range(len(PAIRS)), 64, 0), objective)
    assert loss == pytest.approx((total / len(PAIRS)).item(), abs=1e-6)
    close(gradients(model), naive)


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_one_micro_batch_and_many_give_equal_gradients_and_weights(
    tiny_model_folder: Path, make_context: Any, kind: str
) -> None:
    rows = DIALOGUES if kind == "sft" else PAIRS
    found: list[tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], int]] = []
    for width in (1000, 60):
        model = load(tiny_model_folder).model
        objective = TokenLoss() if kind == "sft" else pair_loss(model)
        packed = pack(rows, range(len(rows)), width, 0)
        gradient_of(model, rows, packed, objective)
        grads = gradients(model)
        objective.figures(lambda mine: mine)
        train(make_context(f"{width}"), model, rows, objective, replace(SETTINGS, width=width, lr=1e-4))
        found.append((grads, dict(model.named_parameters()), len(packed)))
    assert found[0][2] == 1
    assert found[1][2] >= 4
    close(found[0][0], found[1][0])
    close(found[0][1], found[1][1])


def test_an_all_masked_share_of_a_batch_changes_nothing(tiny_model_folder: Path) -> None:
    """A filler row, as a process gets that would have one fewer: no gradient, no figure."""
    model = load(tiny_model_folder).model
    rows = pack(DIALOGUES, range(len(DIALOGUES)), 64, 0)
    gradient_of(model, DIALOGUES, rows, TokenLoss())
    plain = gradients(model)

    class Filled(Team):
        def share(self, rows: Any) -> Any:
            return [*super().share(rows), (rows[0], 0.0)]

    objective = TokenLoss()
    backward(Filled(), Policy(model, even=True), DIALOGUES, rows, objective.weigh(DIALOGUES), objective)
    close(gradients(model), plain, atol=0)


def test_two_runs_write_the_same_curve_and_weights(tiny_model_folder: Path, make_context: Any) -> None:
    runs = []
    for name in ("a", "b"):
        model, ctx = load(tiny_model_folder).model, make_context(name)
        outcome = train(ctx, model, DIALOGUES, TokenLoss(), replace(SETTINGS, width=50))
        runs.append((model.state_dict(), (ctx.out / "metrics.jsonl").read_bytes(), outcome, ctx))
    assert runs[0][1] == runs[1][1]
    assert all(torch.equal(runs[0][0][name], runs[1][0][name]) for name in runs[0][0])
    metrics = [json.loads(line) for line in runs[0][1].splitlines()]
    assert metrics == runs[0][2].metrics
    assert [m["rows"] for m in metrics] == [8, 8, 8, 8]
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    trained = 2 * sum(e.trained for e in DIALOGUES)
    assert runs[0][3].tokens == {"trained": trained, "processed": 2 * sum(e.tokens for e in DIALOGUES)}
    for line in (runs[0][3].out / "logs" / "timing.jsonl").read_text().splitlines():
        timing = json.loads(line)
        parts = sum(timing[name] for name in ("data_s", "forward_s", "backward_s", "optimizer_s"))
        assert parts == pytest.approx(timing["seconds"])


class Poisoned(TokenLoss):
    def loss(self, row: Any, logprobs: torch.Tensor, counted: bool = True) -> torch.Tensor:
        return super().loss(row, logprobs) * (float("nan") if 3 in row.members else 1.0)


def test_a_nan_loss_names_step_and_rows(tiny_model_folder: Path, make_context: Any) -> None:
    model = load(tiny_model_folder).model
    with pytest.raises(AloeError, match=r"step \d: the loss is nan on the rows d/9\n.*fix: look at those rows"):
        train(make_context(), model, DIALOGUES, Poisoned(), replace(SETTINGS, width=12))


def test_an_infinite_gradient_stops_before_the_update(tiny_model_folder: Path, make_context: Any) -> None:
    model = load(tiny_model_folder).model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.base_model.norm.weight.register_hook(lambda g: g * float("inf"))
    with pytest.raises(AloeError, match=r"the gradient is (nan|inf)"):
        train(make_context(), model, DIALOGUES, TokenLoss())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_rate_that_diverges_without_nan_is_stopped(tiny_model_folder: Path, make_context: Any) -> None:
    model = load(tiny_model_folder).model
    settings = replace(SETTINGS, lr=30.0, schedule="constant", batch=16, clip=1e9)
    with pytest.raises(AloeError, match=r"diverged: the loss was .* fix: lower lr|the (loss|gradient) is"):
        train(make_context(), model, DIALOGUES, TokenLoss(model.config.vocab_size), settings, passes=30)


def test_no_dropout_while_training(tiny_model_folder: Path) -> None:
    model = load(tiny_model_folder).model
    for layer in model.base_model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.add_module("extra", torch.nn.Dropout(0.5))
    prepare(model)
    assert model.training
    assert model.extra.p == 0.0
    assert all(layer.self_attn.attention_dropout == 0.0 for layer in model.base_model.layers)


def test_warmup_longer_than_the_run_is_said(tiny_model_folder: Path, make_context: Any) -> None:
    ctx = make_context()
    train(ctx, load(tiny_model_folder).model, DIALOGUES, TokenLoss(), replace(SETTINGS, warmup_steps=100), passes=1)
    assert "never reaches" in ctx.logs[0]
