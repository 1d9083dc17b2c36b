"""`dpo`: direct preference optimisation on pairs. The prompt is computed once for both answers, the reference once
for the whole run."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator

from aloe.contract import Context, Kind, ModelRef, PreferencesRef, Step
from aloe.errors import AloeError
from aloe.models.load import Loaded, load
from aloe.models.sources import digest_model
from aloe.train.logprobs import prove_exact, sequence_sums
from aloe.train.loop import Outcome, Precision, Settings, gather, positions_of, save, train, width_on
from aloe.train.losses import LogRatios, LossName, check_smoothing, preference_loss
from aloe.train.masks import preference_example, preview
from aloe.train.packing import Example, PackedRow, read_preferences
from aloe.train.reference import Floats, cached_logprobs, pair_logprobs
from aloe.train.schedule import ScheduleName, stream

Weight = Annotated[float, Field(gt=0)]
TIE = 1e-3  # nats: a smaller difference is rounding, as all are at the first step, and counts half in accuracy
CHOSEN_FALL = 0.01  # nats a token by which the chosen answers may fall before it is worth a warning
WINDOW = 10  # steps averaged for that warning: a single batch says little


class PairLoss:
    """Mean preference loss over the pairs of the global batch, and the health of the run."""

    def __init__(
        self,
        pairs: Sequence[Example],
        reference: Floats,
        loss: Callable[[LogRatios, torch.Tensor], torch.Tensor],
        beta: float,
        log: Callable[[str], None],
    ) -> None:
        """Args: `reference` [pairs, 2] summed log-probabilities; `loss` of the ratios and the chosen answers' own."""
        self._reference, self._loss, self._beta, self._log = reference, loss, beta, log
        self._lengths = np.array([[len(b) for b in p.tree.branches] for p in pairs], dtype=np.float64)
        self._step: list[Floats] = []
        self._drifts: list[float] = []
        self._margins: list[Floats] = []  # [n, 2]: reward margin and difference in length, of every pair seen
        self.warnings: list[str] = []

    def weigh(self, batch: Sequence[Example]) -> int:
        """Pairs."""
        return len(batch)

    def loss(self, row: PackedRow, logprobs: torch.Tensor) -> torch.Tensor:
        """Sum over the row's pairs."""
        sums = sequence_sums(row, logprobs).view(-1, 2)
        reference = torch.from_numpy(self._reference[row.members]).to(sums.device)
        tokens = torch.from_numpy(self._lengths[row.members]).to(sums.device)
        ratio = sums - reference
        ratios = LogRatios(ratio[:, 0], ratio[:, 1], tokens[:, 0], tokens[:, 1])
        self._step.append(torch.cat([ratio, sums, tokens], dim=1).detach().cpu().numpy())
        return self._loss(ratios, sums[:, 0]).sum()

    def figures(self) -> dict[str, float]:
        """Means over the step's pairs: rewards are beta times log-ratios; drift and chosen_logp are nats a token."""
        seen = np.concatenate(self._step)
        self._step = []
        r_w, r_l, logp_w, _, n_w, n_l = seen.T
        self._margins.append(np.stack([self._beta * (r_w - r_l), n_w - n_l], axis=1))
        figures = {
            "reward_chosen": float(self._beta * r_w.mean()),
            "reward_rejected": float(self._beta * r_l.mean()),
            "margin": float(self._beta * (r_w - r_l).mean()),
            "accuracy": float(np.where(np.abs(r_w - r_l) < TIE, 0.5, r_w > r_l).mean()),
            "chosen_logp": float((logp_w / n_w).mean()),
            "chosen_drift": float((r_w / n_w).mean()),
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

    def lengths(self) -> dict[str, float | None]:
        """Whether preference is a matter of length: in the pairs, and in what the policy learnt (Pearson's r)."""
        chosen, rejected = self._lengths.T
        margin, longer = np.concatenate(self._margins).T
        varied = len(margin) > 2 and margin.std() > 0 and longer.std() > 0
        return {
            "chosen_tokens": float(chosen.mean()),
            "rejected_tokens": float(rejected.mean()),
            "chosen_longer": float((chosen > rejected).mean()),
            "margin_length_correlation": float(np.corrcoef(margin, longer)[0, 1]) if varied else None,
        }


class Dpo(Step):
    """Align a model on preference pairs.

    Defaults are stage 1 of Aloe Beta (arXiv 2505.04388): lr 2e-7, beta 0.1, sequence 4,096, batch 128, one epoch.
    Stage 2, on red-team pairs, has lr 1e-7 and starts from stage 1's output, which is then its reference too.
    """

    verb: ClassVar[str] = "dpo"
    version: ClassVar[int] = 1
    makes: ClassVar[Kind] = "model"

    model: ModelRef
    # One name, or the share of each source among the pairs (see `sft`).
    pairs: dict[PreferencesRef, Weight] = Field(min_length=1)
    reference: ModelRef | None = None  # none: the model as this stage starts
    max_pairs: int | None = Field(None, ge=1)
    loss: LossName = "sigmoid"
    beta: float = Field(0.1, gt=0)  # strength of the pull to the reference; 5 or so for length_normalised
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)  # rate of wrong labels, for cdpo and robust
    alpha_nll: float = Field(0.0, ge=0)  # weight of the chosen answer's mean negative log-likelihood
    epochs: float = Field(1, gt=0)
    batch_pairs: int = Field(128, ge=1)  # pairs in a global batch
    lr: float = Field(2e-7, gt=0)
    schedule: ScheduleName = "cosine"
    warmup_steps: int | None = Field(None, ge=0)  # none: 100, a tenth of runs shorter than 1,000 steps
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = Field(1.0, gt=0)
    max_tokens: int = Field(4096, ge=8)  # prompt and one answer; pairs with a longer one are dropped whole
    max_dropped: float = Field(0.0, ge=0, le=1)
    # Steps this small vanish in bf16's rounding, or are blown up by it: 8% of the packaged model's weights lie on
    # rounding ties. Larger models that were trained in bf16 may use autocast.
    precision: Precision = "float32"
    dtype_out: Literal["float32", "bfloat16"] = "float32"

    @field_validator("pairs", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return {value: 1.0} if isinstance(value, str) else value

    def run(self, ctx: Context) -> dict[str, Any]:
        check_smoothing(self.loss, self.label_smoothing)
        loaded = load(ctx.path(self.model), dtype="float32")
        limit = positions_of(loaded.model, self.max_tokens)
        pairs, report = gather(
            ctx,
            self.pairs,
            read_preferences,
            partial(preference_example, loaded.template),
            verb=self.verb,
            max_tokens=limit,
            max_rows=self.max_pairs,
            max_dropped=self.max_dropped,
        )
        exact = prove_exact(loaded.model, pairs, where=self.model)
        ctx.log(f"packed rows agree with separate rows to {exact:.1e} nats")
        first = stream([p.key for p in pairs], self.epochs, ctx.seed, f"{self.verb} order")[:3]
        text = preview(loaded.tokenizer, [pairs[i] for i in first])
        (ctx.out / "preview.txt").write_text(text, encoding="utf-8")
        ctx.log("three rendered pairs with their masks: preview.txt")  # not here: a stage may train on unsafe texts
        width = width_on(loaded.device, limit)
        reference, used = self._reference(ctx, loaded, pairs, width)
        objective = PairLoss(pairs, reference, self._loss, self.beta, ctx.log)
        settings = Settings(
            epochs=self.epochs,
            batch=self.batch_pairs,
            lr=self.lr,
            schedule=self.schedule,
            warmup_steps=self.warmup_steps,
            weight_decay=self.weight_decay,
            betas=self.betas,
            clip=self.clip,
            precision=self.precision,
            width=width,
        )
        outcome = train(ctx, self.verb, loaded.model, pairs, objective, settings)
        save(loaded, ctx.out, self.dtype_out)
        health = {"health": _health(outcome), "warnings": objective.warnings, "length": objective.lengths()}
        return {
            **report,
            **outcome.summary(),
            "reference": used,
            **health,
            "template": loaded.template.digest,
            "parameters": loaded.parameters,
        }

    def _loss(self, ratios: LogRatios, chosen_logp: torch.Tensor) -> torch.Tensor:
        return preference_loss(
            self.loss,
            ratios,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            alpha_nll=self.alpha_nll,
            chosen_logp=chosen_logp,
        )

    def _reference(
        self, ctx: Context, policy: Loaded, pairs: Sequence[Example], width: int
    ) -> tuple[Floats, dict[str, str]]:
        """Log-probabilities [pairs, 2] of the reference, and which model that is. Runs before the policy changes."""
        name = self.reference or self.model
        folder = ctx.path(name)
        judge = policy if folder == policy.folder else load(folder, dtype="float32")
        if judge.template.digest != policy.template.digest:
            raise AloeError(
                f"the reference {name} has another tokenizer or chat template than {self.model}",
                where="reference",
                fix="name a reference of the same family, or leave it out: the model's start is the usual one",
            )
        weights = digest_model(folder)
        with ctx.progress("reference", len(pairs), "pairs") as bar:
            compute = partial(pair_logprobs, judge.model, precision=self.precision, width=width)
            values, reused = cached_logprobs(
                ctx.cache, weights, pairs, self.precision, compute, advance=bar.advance, log=ctx.log
            )
        ctx.log(f"reference {name}: {reused} of {len(pairs)} pairs from the cache")
        del judge, compute
        gc.collect()
        return values, {"model": name, "weights": weights}


def _health(outcome: Outcome) -> dict[str, dict[str, float]]:
    """First and last step's figures."""
    names = ("reward_chosen", "reward_rejected", "margin", "accuracy", "chosen_logp", "chosen_drift")
    steps = {"first": outcome.metrics[0], "last": outcome.metrics[-1]}
    return {when: {name: figures[name] for name in names} for when, figures in steps.items()}
