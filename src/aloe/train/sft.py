"""`sft`: supervised fine-tuning on dialogues. Loss on the assistant's tokens only, packed rows, one loop."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator

from aloe.contract import Context, DialoguesRef, Kind, ModelRef, Step
from aloe.models.load import load
from aloe.train.logprobs import prove_exact
from aloe.train.loop import Precision, Settings, gather, positions_of, save, train, width_on
from aloe.train.masks import dialogue_example, preview
from aloe.train.packing import Example, PackedRow, read_dialogues
from aloe.train.schedule import ScheduleName, stream

Weight = Annotated[float, Field(gt=0)]


class TokenLoss:
    """Mean negative log-likelihood over the trained tokens of the global batch, in nats."""

    def weigh(self, batch: Sequence[Example]) -> int:
        """Trained tokens."""
        return sum(e.trained for e in batch)

    def loss(self, row: PackedRow, logprobs: torch.Tensor) -> torch.Tensor:
        """Sum over the row's trained tokens."""
        return -logprobs.double().sum()

    def figures(self) -> dict[str, float]:
        """Nothing beyond the loss."""
        return {}


class Sft(Step):
    """Fine-tune a base model on dialogues.

    Defaults are those of Aloe Beta (Garcia-Gasulla et al. 2025, arXiv 2505.04388, training section, Llama 3.1 8B);
    what the paper leaves open is said to be ours.
    """

    verb: ClassVar[str] = "sft"
    version: ClassVar[int] = 1
    makes: ClassVar[Kind] = "model"

    base: ModelRef
    template: ModelRef | None = None  # a model whose chat template and tokenizer are used, for a base that has none
    # Share of each source among the rows trained on; one name alone means all of its rows. Without `max_rows` the
    # shares are kept exactly with as many rows as the scarcest source allows; no row is drawn twice.
    data: dict[DialoguesRef, Weight] = Field(min_length=1)
    max_rows: int | None = Field(None, ge=1)
    epochs: float = Field(4, gt=0)  # a fraction trains on that part of a shuffled epoch
    batch_rows: int = Field(128, ge=1)  # dialogues in a global batch
    lr: float = Field(2e-5, gt=0)  # 1e-5 for Qwen 2.5 in the paper
    schedule: ScheduleName = "cosine"
    warmup_steps: int | None = Field(None, ge=0)  # none: 100 as in the paper, a tenth of runs shorter than 1,000 steps
    weight_decay: float = Field(0.0, ge=0)  # ours: a few epochs from a trained model need none; on matrices only
    betas: tuple[float, float] = (0.9, 0.999)  # ours: AdamW's own
    clip: float = Field(1.0, gt=0)  # largest gradient norm; ours
    max_tokens: int = Field(16384, ge=8)  # sequence length; longer rows are dropped whole, never cut
    max_dropped: float = Field(0.0, ge=0, le=1)  # share of rows that may be too long before the run stops
    # float32 master weights either way. Pure bf16 weights lose small updates, so it isn't offered.
    precision: Precision = "bf16_autocast"
    # float32, because rounding to bf16 (8 bits of mantissa) would swallow later updates that are small beside the
    # weight, as those of DPO and of a merge's deltas are.
    dtype_out: Literal["float32", "bfloat16"] = "float32"

    @field_validator("data", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return {value: 1.0} if isinstance(value, str) else value

    def run(self, ctx: Context) -> dict[str, Any]:
        template_from = ctx.path(self.template) if self.template else None
        loaded = load(ctx.path(self.base), dtype="float32", template_from=template_from)
        limit = positions_of(loaded.model, self.max_tokens)
        examples, report = gather(
            ctx,
            self.data,
            read_dialogues,
            partial(dialogue_example, loaded.template),
            verb=self.verb,
            max_tokens=limit,
            max_rows=self.max_rows,
            max_dropped=self.max_dropped,
        )
        exact = prove_exact(loaded.model, examples, where=self.base)
        ctx.log(f"packed rows agree with separate rows to {exact:.1e} nats")
        first = stream([e.key for e in examples], self.epochs, ctx.seed, f"{self.verb} order")[:3]
        text = preview(loaded.tokenizer, [examples[i] for i in first])
        (ctx.out / "preview.txt").write_text(text, encoding="utf-8")
        ctx.log(preview(loaded.tokenizer, [examples[first[0]]]) + "  two more: preview.txt")
        settings = Settings(
            epochs=self.epochs,
            batch=self.batch_rows,
            lr=self.lr,
            schedule=self.schedule,
            warmup_steps=self.warmup_steps,
            weight_decay=self.weight_decay,
            betas=self.betas,
            clip=self.clip,
            precision=self.precision,
            width=width_on(loaded.device, limit),
        )
        outcome = train(ctx, self.verb, loaded.model, examples, TokenLoss(), settings)
        save(loaded, ctx.out, self.dtype_out)
        return {**report, **outcome.summary(), "template": loaded.template.digest, "parameters": loaded.parameters}
