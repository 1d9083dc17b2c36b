"""Objectives: what a step reports, what a checkpoint keeps of it, and when going on is hopeless."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from aloe.train.losses import sigmoid
from aloe.train.objectives import PairLoss, TokenLoss


def alone(values: Any) -> Any:
    return values


def pair_loss(log: list[str]) -> PairLoss:
    return PairLoss(np.zeros((4, 2)), lambda r, _: sigmoid(r, 0.1), 0.1, log.append)


class Row:
    """Two pairs, four answers; the first chosen answer has two scored tokens, the others one."""

    members = [0, 3]  # noqa: RUF012
    sequence = np.array([0, 0, 1, 2, 3])
    sequences = 4


def test_health_figures_by_hand() -> None:
    objective = pair_loss([])
    loss = objective.loss(Row(), torch.tensor([1.5, 0.5, 1.0, -4.0, 1.0]))  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-0.1)) + math.log(1 + math.exp(0.5)), abs=1e-6)
    assert objective.figures(alone) == pytest.approx(
        {
            "reward_chosen": -0.1,
            "reward_rejected": 0.1,
            "margin": -0.2,
            "accuracy": 0.5,
            "chosen_logp": -1.5,
            "chosen_drift": -1.5,
            "kl": 0.25,
        }
    )
    lengths = objective.lengths()
    assert (lengths["chosen_tokens"], lengths["rejected_tokens"], lengths["chosen_longer"]) == (1.5, 1.0, 0.5)
    assert lengths["margin_length_correlation"] is None  # two pairs show nothing


def test_a_row_that_only_keeps_company_adds_to_no_figure() -> None:
    objective = pair_loss([])
    for counted in (True, False):
        objective.loss(Row(), torch.tensor([1.5, 0.5, 1.0, -4.0, 1.0]) * (1 + counted), counted)  # type: ignore[arg-type]
    assert objective.figures(alone)["margin"] == pytest.approx(-0.4)


def test_figures_do_not_depend_on_who_computed_what() -> None:
    rng = np.random.default_rng(0)
    rows, found = rng.normal(size=(40, 7)), []
    rows[:, 0], rows[:, 5:] = np.arange(40), rng.integers(1, 9, (40, 2))
    for order in (np.arange(40), rng.permutation(40)):
        objective = pair_loss([])
        objective._step = [rows[order[:13]]]
        found.append(
            (objective.figures(lambda mine, o=order: np.concatenate([mine, rows[o[13:]]])), objective.lengths())
        )
    assert found[0] == found[1]


def test_length_correlation_is_pearsons_over_all_steps() -> None:
    rng, objective, seen = np.random.default_rng(1), pair_loss([]), []
    for _ in range(5):
        rows = rng.normal(size=(8, 7))
        rows[:, 5:] = rng.integers(1, 60, (8, 2))
        seen.append(rows)
        objective._step = [rows]
        objective.figures(alone)
    _, r_w, r_l, _, _, n_w, n_l = np.concatenate(seen).T
    expected = np.corrcoef(0.1 * (r_w - r_l), n_w - n_l)[0, 1]
    assert objective.lengths()["margin_length_correlation"] == pytest.approx(expected, abs=1e-9)


def test_falling_chosen_answers_are_said_once_also_after_a_resume() -> None:
    log: list[str] = []
    objective = pair_loss(log)
    for step in range(6):
        values = torch.tensor([0.1 - 0.1 * step, 0, -9.0, 0.1 - 0.1 * step, -9.0])
        objective.loss(Row(), values)  # type: ignore[arg-type]
        objective.figures(alone)
        state = json.loads(json.dumps(objective.state()))
        objective = pair_loss(log)
        objective.restore(state)
    assert len(log) == len(objective.warnings) == 1
    assert "chosen answers have lost" in log[0]
    assert objective.lengths()["chosen_tokens"] == 1.5


def test_a_moving_reference_travels_with_the_checkpoint() -> None:
    keeper = PairLoss(np.ones((2, 2)) / 3, lambda r, _: sigmoid(r, 0.1), 0.1, print, keeps_reference=True)
    other = PairLoss(np.zeros((2, 2)), lambda r, _: sigmoid(r, 0.1), 0.1, print, keeps_reference=True)
    other.restore(json.loads(json.dumps(keeper.state())))
    assert np.array_equal(other.reference, keeper.reference)
    assert "reference" not in pair_loss([]).state()


def test_a_loss_above_guessing_for_ten_steps_is_hopeless() -> None:
    objective = TokenLoss(vocabulary=100)
    bad, good = math.log(100) + 2.1, 2.0
    assert objective.hopeless([{"loss": good}] + [{"loss": bad}] * 9) is None
    assert "diverged" in str(objective.hopeless([{"loss": good}] + [{"loss": bad}] * 10))
    assert objective.hopeless([{"loss": bad}] * 30) is None  # a random model starts there, and may come down
    assert TokenLoss().hopeless([{"loss": 1e9}] * 30) is None


def test_answers_far_below_where_they_began_are_hopeless() -> None:
    objective = pair_loss([])
    assert objective.hopeless([{"chosen_logp": -1.0}] + [{"chosen_logp": -8.0}] * 30) is None
    assert "diverged" in str(objective.hopeless([{"chosen_logp": -1.0}] + [{"chosen_logp": -12.0}] * 10))
