"""`sft`: supervised fine-tuning on dialogues. Loss on the assistant's tokens only, packed rows, one loop."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from pydantic import Field, field_validator

from aloe.contract import Context, DialoguesRef, ModelRef
from aloe.train.objectives import TokenLoss
from aloe.train.packing import read_dialogues
from aloe.train.policy import Precision
from aloe.train.rendering import DialogueBuilder
from aloe.train.settings import Training, Weight
from aloe.train.stage import Stage
from aloe.train.watch import TokenFigures, validation_loss


class Sft(Training):
    """Fine-tune a base model on dialogues.

    Defaults are those of Aloe Beta (Garcia-Gasulla et al. 2025, arXiv 2505.04388, training section, Llama 3.1 8B);
    what the paper leaves open is said to be ours.
    """

    verb: ClassVar[str] = "sft"
    version: ClassVar[int] = 2

    base: ModelRef
    template: ModelRef | None = None  # a model whose chat template and tokenizer are used, for a base that has none
    # Share of each source among the rows trained on; one name alone means all of its rows. A pass keeps the shares
    # exactly, with as many rows as the scarcest source allows; what is over a share comes in the next pass.
    data: dict[DialoguesRef, Weight] = Field(min_length=1)
    max_rows: int | None = Field(None, ge=1)  # of a pass
    batch_rows: int = Field(128, ge=1)  # dialogues in a global batch
    epochs: float = Field(4, gt=0)
    lr: float = Field(2e-5, gt=0)  # 1e-5 for Qwen 2.5 in the paper
    max_tokens: int = Field(16384, ge=8)
    precision: Precision = "bf16_autocast"

    @field_validator("data", mode="before")
    @classmethod
    def _one_source(cls, value: Any) -> Any:
        return {value: 1.0} if isinstance(value, str) else value

    def run(self, ctx: Context) -> dict[str, Any]:
        stage = Stage(
            ctx,
            self,
            model=self.base,
            template=self.template,
            data=self.data,
            max_rows=self.max_rows,
            read=read_dialogues,
            builder=DialogueBuilder,
            batch=self.batch_rows,
            branches=False,
        )
        stage.open()
        policy, optimizer = stage.prepare()
        evaluate = None
        if stage.held is not None:
            evaluate = partial(validation_loss, policy, stage.held.examples, TokenFigures(), **stage.sharing())
        objective = TokenLoss(stage.loaded.model.config.vocab_size)
        outcome = stage.train(policy, optimizer, objective, evaluate)
        return {**stage.report(), **outcome.summary(), **stage.save(policy)}
