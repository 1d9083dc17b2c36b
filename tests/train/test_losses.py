"""Every preference loss against golden values worked out by hand, and their limits."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


# -- properties -----------------------------------------------------------------------------------------------------

LOSSES = [("sigmoid", 0.0), ("cdpo", 0.1), ("robust", 0.1), ("ipo", 0.0), ("length_normalised", 0.0), ("hinge", 0.0)]
every_loss = pytest.mark.parametrize(("name", "smoothing"), LOSSES)
logp = st.floats(-500, 500)
tokens = st.integers(1, 400).map(float)
betas = st.sampled_from([0.01, 0.1, 0.5, 5.0])


def of(name: str, values: torch.Tensor, *, beta: float, smoothing: float, alpha: float = 0.0) -> torch.Tensor:
    """The loss of rows (r_w, r_l, n_w, n_l, log pi_w); `values` [5, pairs]."""
    return preference_loss(
        name,  # type: ignore[arg-type]
        LogRatios(*values[:4]),
        beta=beta,
        label_smoothing=smoothing,
        alpha_nll=alpha,
        chosen_logp=values[4],
    )


def rows(*columns: float) -> torch.Tensor:
    return torch.tensor(columns, dtype=torch.float64)[:, None]


@every_loss
@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_gradients_are_those_of_the_formula(name: str, smoothing: float, alpha: float) -> None:
    draw = torch.Generator().manual_seed(3)
    ratio = 6 * torch.randn(2, 9, generator=draw, dtype=torch.float64)
    logps = -60 * torch.rand(9, generator=draw, dtype=torch.float64)
    counts = torch.randint(1, 30, (2, 9), generator=draw).double()

    def loss(ratio: torch.Tensor, logps: torch.Tensor) -> torch.Tensor:
        return of(name, torch.cat([ratio, counts, logps[None]]), beta=0.7, smoothing=smoothing, alpha=alpha)

    assert torch.autograd.gradcheck(loss, (ratio.requires_grad_(), logps.requires_grad_()))


@every_loss
@pytest.mark.parametrize("beta", [0.1, 5.0])
def test_extreme_ratios_stay_finite_in_float32(name: str, smoothing: float, beta: float) -> None:
    for chosen, rejected in itertools.product((-1e4, -1e3, -100.0, 0.0, 100.0, 1e3, 1e4), repeat=2):
        values = torch.tensor([[chosen], [rejected], [7.0], [11.0], [-1e4]], requires_grad=True)
        loss = of(name, values, beta=beta, smoothing=smoothing, alpha=1.0)
        (slope,) = torch.autograd.grad(loss.sum(), values)
        assert torch.isfinite(loss).all(), (chosen, rejected)
        assert torch.isfinite(slope).all(), (chosen, rejected)
        # far on the wrong side the slope must not vanish: these are the pairs that there is most to learn from
        wrong = chosen / 7 - rejected / 11 if name in ("ipo", "length_normalised") else chosen - rejected
        if wrong < -100:
            assert float(slope[0]) < 0 < float(slope[1])


@settings(max_examples=60, deadline=None)
@given(a=logp, b=logp, n=tokens, m=tokens, beta=betas)
def test_exchanging_the_answers_mirrors_the_losses(a: float, b: float, n: float, m: float, beta: float) -> None:
    """With z the (scaled) margin: sigmoid(-z) = sigmoid(z) + z; cDPO of e with answers exchanged is cDPO of 1-e."""
    for name in ("sigmoid", "length_normalised"):
        z = beta * ((a / n - b / m) if name == "length_normalised" else (a - b))
        there = float(of(name, rows(a, b, n, m, 0), beta=beta, smoothing=0))
        back = float(of(name, rows(b, a, m, n, 0), beta=beta, smoothing=0))
        assert back == pytest.approx(there + z, abs=1e-9)
    plain = float(of("sigmoid", rows(a, b, n, m, 0), beta=beta, smoothing=0))
    turned = float(of("sigmoid", rows(b, a, m, n, 0), beta=beta, smoothing=0))
    for e in (0.05, 0.3, 0.49):
        smooth = float(of("cdpo", rows(a, b, n, m, 0), beta=beta, smoothing=e))
        assert smooth == pytest.approx((1 - e) * plain + e * turned, rel=1e-9, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(a=logp, b=logp, beta=betas, e=st.sampled_from([0.01, 0.1, 0.25, 0.4]))
def test_robust_is_unbiased_under_flipped_labels(a: float, b: float, beta: float, e: float) -> None:
    """Labels flipped with rate e: the expectation is the loss on true labels, which cDPO's is not."""
    true, flipped = rows(a, b, 3, 4, 0), rows(b, a, 4, 3, 0)
    clean = float(of("sigmoid", true, beta=beta, smoothing=0))

    def expected(name: str) -> float:
        kept, turned = (float(of(name, v, beta=beta, smoothing=e)) for v in (true, flipped))
        return (1 - e) * kept + e * turned

    assert expected("robust") == pytest.approx(clean, rel=1e-8, abs=1e-8)
    if abs(beta * (a - b)) > 1:
        assert expected("cdpo") != pytest.approx(clean, rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(a=logp, b=logp, n=tokens, m=tokens, more=st.floats(0.01, 50), beta=betas)
def test_a_wider_margin_is_never_worse_where_the_loss_says_so(
    a: float, b: float, n: float, m: float, more: float, beta: float
) -> None:
    for name in ("sigmoid", "hinge", "length_normalised"):
        narrow = of(name, rows(a, b, n, m, 0), beta=beta, smoothing=0)
        for wider in (rows(a + more, b, n, m, 0), rows(a, b - more, n, m, 0)):
            assert float(of(name, wider, beta=beta, smoothing=0)) <= float(narrow)
    goal = 1 / (2 * beta)  # ipo wants one margin, and more is as bad as less
    near, far = (LogRatios(*rows(n * (goal + d), 0.0, n, m)) for d in (more, 2 * more))
    assert float(preference_loss("ipo", near, beta=beta)) < float(preference_loss("ipo", far, beta=beta))


@every_loss
def test_only_log_ratios_count(name: str, smoothing: float) -> None:
    """A prompt's own likelihood, or a reference shifted with the policy, changes nothing; pairs don't mix."""
    draw = torch.Generator().manual_seed(5)
    values = torch.cat(
        [torch.randn(2, 6, generator=draw) * 9, torch.rand(2, 6, generator=draw) * 40 + 1, torch.zeros(1, 6)]
    )
    values = values.double()
    together = of(name, values, beta=0.3, smoothing=smoothing)
    apart = torch.cat([of(name, values[:, i : i + 1], beta=0.3, smoothing=smoothing) for i in range(6)])
    torch.testing.assert_close(together, apart)
    assert together.shape == (6,)


def test_the_nll_term_is_the_chosen_answers_mean() -> None:
    values = rows(1.0, -1.0, 6.0, 10.0, -12.0)
    plain = of("sigmoid", values, beta=0.1, smoothing=0)
    assert float(of("sigmoid", values, beta=0.1, smoothing=0, alpha=0.25) - plain) == pytest.approx(0.25 * 12 / 6)
