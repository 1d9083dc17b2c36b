"""Preference losses by name. Pure functions of log-ratios: tensors [pairs] in, losses [pairs] out, all in nats.

`chosen` and `rejected` are r_w and r_l: the sum over the answer's tokens (end of turn included) of policy minus
reference log-probability. Delta = r_w - r_l. `s` is the logistic function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import logsigmoid

from aloe.errors import AloeError

TIE = 1e-3  # nats: a smaller difference is rounding, as all are at the first step, and counts half in accuracy
LossName = Literal["sigmoid", "cdpo", "robust", "ipo", "length_normalised", "hinge"]


@dataclass(frozen=True)
class LogRatios:
    """Policy minus reference log-probability of both answers and their lengths in tokens; each a tensor [pairs]."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor

    @property
    def delta(self) -> torch.Tensor:
        """r_w - r_l: how much more the policy prefers the chosen answer than the reference does."""
        return self.chosen - self.rejected

    @property
    def delta_per_token(self) -> torch.Tensor:
        """r_w / n_w - r_l / n_l: the same with each answer averaged over its own tokens."""
        return self.chosen / self.chosen_tokens - self.rejected / self.rejected_tokens


def sigmoid(r: LogRatios, beta: float) -> torch.Tensor:
    """DPO: -log s(beta Delta). Rafailov et al. 2023, arXiv 2305.18290, eq. 7."""
    return -logsigmoid(beta * r.delta)


def cdpo(r: LogRatios, beta: float, label_smoothing: float) -> torch.Tensor:
    """Conservative DPO, labels wrong with probability e: -(1-e) log s(beta Delta) - e log s(-beta Delta).

    Mitchell 2023, "A note on DPO with noisy preferences"."""
    e, z = label_smoothing, beta * r.delta
    return -(1 - e) * logsigmoid(z) - e * logsigmoid(-z)


def robust(r: LogRatios, beta: float, label_smoothing: float) -> torch.Tensor:
    """Unbiased under labels flipped with rate e: (-(1-e) log s(beta Delta) + e log s(-beta Delta)) / (1-2e).

    Chowdhury et al. 2024, arXiv 2403.00409, eq. 12. It may be negative."""
    e, z = label_smoothing, beta * r.delta
    return (-(1 - e) * logsigmoid(z) + e * logsigmoid(-z)) / (1 - 2 * e)


def ipo(r: LogRatios, beta: float) -> torch.Tensor:
    """Squared distance to a target margin: (r_w/n_w - r_l/n_l - 1/(2 beta))^2.

    Azar et al. 2023, arXiv 2310.12036, eq. 17, averaged over tokens as its authors advise and TRL does."""
    return (r.delta_per_token - 1 / (2 * beta)) ** 2


def length_normalised(r: LogRatios, beta: float) -> torch.Tensor:
    """-log s(beta (r_w/n_w - r_l/n_l)): length is no advantage. Lambert et al. 2024, arXiv 2411.15124 (Tulu 3), eq. 6.

    Its beta is larger (Tulu 3 uses 5), as per-token ratios are small."""
    return -logsigmoid(beta * r.delta_per_token)


def hinge(r: LogRatios, beta: float) -> torch.Tensor:
    """max(0, 1 - beta Delta). Zhao et al. 2023, arXiv 2305.10425 (SLiC), on DPO's reward."""
    return torch.relu(1 - beta * r.delta)


def preference_loss(
    name: LossName,
    r: LogRatios,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    alpha_nll: float = 0.0,
    chosen_logp: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss called `name`, plus `alpha_nll` times the chosen answer's mean negative log-likelihood a token.

    Args:
        chosen_logp: the policy's own summed log-probability of the chosen answer [pairs]; needed with `alpha_nll`.

    The NLL term (Pang et al. 2024, arXiv 2404.19733) holds the chosen answer up where DPO alone lowers both.
    """
    check_smoothing(name, label_smoothing)
    if name == "cdpo":
        loss = cdpo(r, beta, label_smoothing)
    elif name == "robust":
        loss = robust(r, beta, label_smoothing)
    else:
        plain = {"sigmoid": sigmoid, "ipo": ipo, "length_normalised": length_normalised, "hinge": hinge}
        loss = plain[name](r, beta)
    if alpha_nll:
        if chosen_logp is None:
            raise ValueError("alpha_nll needs chosen_logp")
        loss = loss - alpha_nll * chosen_logp / r.chosen_tokens
    return loss


def check_smoothing(name: LossName, label_smoothing: float) -> None:
    """Refuse a label smoothing that the named loss would ignore, or that makes `robust` divide by zero or less."""
    smooths = name in ("cdpo", "robust")
    if label_smoothing and not smooths:
        raise AloeError(
            f"the loss {name!r} has no label smoothing, so {label_smoothing:g} would be ignored",
            where="label_smoothing",
            fix="set loss to cdpo or robust, or label_smoothing to 0",
        )
    if not 0 <= label_smoothing < 0.5:
        raise AloeError(
            f"{label_smoothing:g} is no rate of wrong labels", where="label_smoothing", fix="choose from 0 to below 0.5"
        )
