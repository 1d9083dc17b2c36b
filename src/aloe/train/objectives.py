"""What the loop minimises: the mean loss of tokens (`sft`), or of preference pairs (`dpo`), with a run's health."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from aloe.train.logprobs import sequence_sums
from aloe.train.losses import TIE, LogRatios
from aloe.train.packing import Example, PackedRow

Gather = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
Floats = npt.NDArray[np.float64]
CHOSEN_FALL = 0.01  # nats a token by which the chosen answers may fall before it is worth a warning
WINDOW = 10  # steps averaged for warnings: a single batch says little
LOST = 2.0  # nats a token above guessing uniformly at which a run has diverged for good


class TokenLoss:
    """Mean negative log-likelihood over the trained tokens of the global batch, in nats.

    Args:
        vocabulary: of the model; a loss well above that of a uniform guess over it ends the run.
    """

    def __init__(self, vocabulary: int | None = None) -> None:
        self._worst = math.log(vocabulary) + LOST if vocabulary else math.inf

    def weigh(self, batch: Sequence[Example]) -> int:
        """Trained tokens."""
        return sum(e.trained for e in batch)

    def loss(self, row: PackedRow, logprobs: torch.Tensor, counted: bool = True) -> torch.Tensor:
        """Sum over the row's trained tokens."""
        return -logprobs.double().sum()

    def figures(self, gather: Gather) -> dict[str, float]:
        """Nothing beyond the loss."""
        return {}

    def hopeless(self, metrics: Sequence[dict[str, float]]) -> str | None:
        """A loss that stays above a uniform guess, and began below it, has diverged without becoming NaN."""
        recent = [m["loss"] for m in metrics[-WINDOW:]]
        if len(recent) < WINDOW or min(recent) <= self._worst or metrics[0]["loss"] > self._worst:
            return None
        return (
            f"training has diverged: the loss was {min(recent):.1f} or more for {WINDOW} steps, guessing would give "
            f"{self._worst - LOST:.1f} and the first step had {metrics[0]['loss']:.2f}"
        )

    def state(self) -> dict[str, Any]:
        """Nothing to keep."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""


class PairLoss:
    """Mean preference loss over the pairs of the global batch, and the health of the run.

    Args:
        reference: [pairs, 2] summed log-probabilities of the reference; may be replaced between chunks.
        loss: [pairs] of the ratios and the chosen answers' own log-probabilities.
        log: told once when the chosen answers fall.
    """

    def __init__(
        self,
        reference: Floats,
        loss: Callable[[LogRatios, torch.Tensor], torch.Tensor],
        beta: float,
        log: Callable[[str], None],
        *,
        keeps_reference: bool = False,
    ) -> None:
        self.reference, self._loss, self._beta, self._log = reference, loss, beta, log
        self._keeps = keeps_reference
        self._step: list[Floats] = []
        self._drifts: list[float] = []
        self._sums = np.zeros(9)  # of pairs seen: n, n_w, n_l, longer, x, y, x^2, y^2, x y (see `lengths`)
        self.warnings: list[str] = []

    def weigh(self, batch: Sequence[Example]) -> int:
        """Pairs."""
        return len(batch)

    def loss(self, row: PackedRow, logprobs: torch.Tensor, counted: bool = True) -> torch.Tensor:
        """Sum over the row's pairs."""
        sums = sequence_sums(row, logprobs).view(-1, 2)
        counts = np.bincount(row.sequence, minlength=row.sequences).reshape(-1, 2).astype(np.float64)
        tokens = torch.from_numpy(counts).to(sums.device)
        ratio = sums - torch.from_numpy(self.reference[row.members]).to(sums.device)
        if counted:
            members = torch.tensor(row.members, dtype=torch.float64, device=sums.device)[:, None]
            self._step.append(torch.cat([members, ratio, sums, tokens], dim=1).detach().cpu().numpy())
        return self._loss(LogRatios(ratio[:, 0], ratio[:, 1], tokens[:, 0], tokens[:, 1]), sums[:, 0]).sum()

    def figures(self, gather: Gather) -> dict[str, float]:
        """Means over the step's pairs: rewards are beta times log-ratios; drift and chosen_logp are nats a token."""
        mine = np.concatenate(self._step) if self._step else np.empty((0, 7))
        self._step = []
        seen = gather(mine)
        seen = seen[np.argsort(seen[:, 0], kind="stable")]  # so that sums don't depend on who computed what
        _, r_w, r_l, logp_w, _, n_w, n_l = seen.T
        self._count(r_w, r_l, n_w, n_l)
        figures = {
            "reward_chosen": float(self._beta * r_w.mean()),
            "reward_rejected": float(self._beta * r_l.mean()),
            "margin": float(self._beta * (r_w - r_l).mean()),
            "accuracy": float(np.where(np.abs(r_w - r_l) < TIE, 0.5, r_w > r_l).mean()),
            "chosen_logp": float((logp_w / n_w).mean()),
            "chosen_drift": float((r_w / n_w).mean()),
            # The mean log-ratio of answers that the reference itself would have given is KL(reference || policy) with
            # its sign turned; on the pairs' answers it is an estimate (k1, Schulman 2020), of either sign.
            "kl": float(-np.concatenate([r_w / n_w, r_l / n_l]).mean()),
        }
        self._watch(figures["chosen_drift"])
        return figures

    def _watch(self, drift: float) -> None:
        self._drifts.append(drift)
        recent = float(np.mean(self._drifts[-WINDOW:]))
        if recent < -CHOSEN_FALL and not self.warnings:
            warning = (
                f"chosen answers have lost {-recent:.3f} nats a token against the reference by step "
                f"{len(self._drifts) - 1}: the loss is pushing both answers down; alpha_nll: 1 or a lower lr holds them"
            )
            self.warnings.append(warning)
            self._log(f"warning: {warning}")

    def _count(self, r_w: Floats, r_l: Floats, n_w: Floats, n_l: Floats) -> None:
        x, y = self._beta * (r_w - r_l), n_w - n_l
        ones = np.ones_like(x)
        self._sums += np.stack([ones, n_w, n_l, n_w > n_l, x, y, x * x, y * y, x * y]).sum(axis=1)

    def lengths(self) -> dict[str, float | None]:
        """Whether preference is a matter of length: in the pairs, and in what the policy learnt (Pearson's r of
        reward margin and difference in tokens, over every pair seen)."""
        n, n_w, n_l, longer, x, y, xx, yy, xy = self._sums.tolist()
        spread_x, spread_y = xx / n - (x / n) ** 2, yy / n - (y / n) ** 2
        varied = n > 2 and spread_x > 1e-12 * max(1.0, xx / n) and spread_y > 1e-12 * max(1.0, yy / n)
        return {
            "chosen_tokens": n_w / n,
            "rejected_tokens": n_l / n,
            "chosen_longer": longer / n,
            "margin_length_correlation": (xy / n - x * y / n**2) / math.sqrt(spread_x * spread_y) if varied else None,
        }

    def hopeless(self, metrics: Sequence[dict[str, float]]) -> str | None:
        """Answers that the policy gives less than a uniform guess would: it has diverged without becoming NaN."""
        recent = [m["chosen_logp"] for m in metrics[-WINDOW:]]
        first = metrics[0]["chosen_logp"]
        if len(recent) < WINDOW or max(recent) > min(4 * first, first - 10):
            return None
        return (
            f"training has diverged: chosen answers were at {max(recent):.1f} nats a token or less for {WINDOW} steps, "
            f"at the first step at {first:.2f}"
        )

    def state(self) -> dict[str, Any]:
        """Sums and warnings; the reference itself only where no cache file has it."""
        kept = {"reference": self.reference.tolist()} if self._keeps else {}
        return {"sums": self._sums.tolist(), "drifts": self._drifts, "warnings": self.warnings, **kept}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint holds."""
        self._sums, self._drifts = np.array(state["sums"]), list(state["drifts"])
        self.warnings = list(state["warnings"])
        if "reference" in state:
            self.reference = np.array(state["reference"])
