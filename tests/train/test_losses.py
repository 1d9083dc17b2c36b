"""Every preference loss against golden values worked out by hand, and their limits."""

from __future__ import annotations

import math

import pytest
import torch

from aloe.errors import AloeError
from aloe.train.losses import LogRatios, check_smoothing, preference_loss

CHOSEN_LOGP = torch.tensor([-12.0], dtype=torch.float64)


def ratios(policy: tuple[float, float] = (-12, -15.5), reference: tuple[float, float] = (-13, -14.5)) -> LogRatios:
    chosen, rejected = (torch.tensor([p - r], dtype=torch.float64) for p, r in zip(policy, reference, strict=True))
    return LogRatios(chosen, rejected, torch.tensor([6.0]).double(), torch.tensor([10.0]).double())


@pytest.mark.parametrize(
    ("name", "options", "golden"),
    [
        ("sigmoid", {}, 0.5981388694),
        ("cdpo", {"label_smoothing": 0.1}, 0.6181388694),
        ("robust", {"label_smoothing": 0.1}, 0.5731388694),
        ("hinge", {}, 0.8),
        ("ipo", {}, 22.4044444444),
        ("length_normalised", {}, 0.6799027335),
        ("length_normalised", {"beta": 5.0}, 0.2339625251),
        ("sigmoid", {"alpha_nll": 1.0}, 2.5981388694),
        ("cdpo", {"label_smoothing": 0.1, "alpha_nll": 0.5}, 1.6181388694),
    ],
)
def test_golden_values(name: str, options: dict[str, float], golden: float) -> None:
    loss = preference_loss(name, ratios(), **{"beta": 0.1, "chosen_logp": CHOSEN_LOGP, **options})  # type: ignore[arg-type]
    assert loss.shape == (1,)
    assert float(loss) == pytest.approx(golden, abs=5e-10)


@pytest.mark.parametrize("name", ["sigmoid", "cdpo", "robust", "length_normalised"])
def test_policy_equal_to_reference_gives_ln_2(name: str) -> None:
    smoothing = 0.1 if name in ("cdpo", "robust") else 0.0
    same = ratios((-13, -14.5))
    assert float(preference_loss(name, same, beta=0.1, label_smoothing=smoothing)) == pytest.approx(math.log(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["cdpo", "robust"])
def test_no_smoothing_is_plain_dpo(name: str) -> None:
    assert torch.equal(preference_loss(name, ratios(), beta=0.1), preference_loss("sigmoid", ratios(), beta=0.1))  # type: ignore[arg-type]


def test_label_smoothing_is_never_ignored_in_silence() -> None:
    for name in ("sigmoid", "ipo", "length_normalised", "hinge"):
        with pytest.raises(AloeError, match="would be ignored"):
            preference_loss(name, ratios(), beta=0.1, label_smoothing=0.1)  # type: ignore[arg-type]
    with pytest.raises(AloeError, match="rate of wrong labels"):
        check_smoothing("robust", 0.5)


def test_nll_term_without_the_policys_logp_is_an_error() -> None:
    with pytest.raises(ValueError, match="chosen_logp"):
        preference_loss("sigmoid", ratios(), beta=0.1, alpha_nll=1.0)


def test_ipo_is_zero_at_its_target_margin() -> None:
    r = LogRatios(*(torch.tensor([v]) for v in (30.0, 0.0, 6.0, 10.0)))
    assert float(preference_loss("ipo", r, beta=0.1)) == pytest.approx(0.0, abs=1e-9)


def test_hinge_stops_where_the_margin_is_wide_enough() -> None:
    r = LogRatios(*(torch.tensor([v]) for v in (20.0, 0.0, 6.0, 10.0)))
    assert float(preference_loss("hinge", r, beta=0.1)) == 0.0
