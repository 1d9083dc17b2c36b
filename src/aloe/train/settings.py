"""The parameters that both training steps have."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from aloe.contract import Kind, Step
from aloe.errors import AloeError
from aloe.train.gather import Overlong
from aloe.train.lora import Lora
from aloe.train.policy import Precision
from aloe.train.schedule import ScheduleName

Weight = Annotated[float, Field(gt=0)]


class Training(Step):
    """How a model is trained, whatever for. What the papers leave open is said to be ours."""

    makes: ClassVar[Kind] = "model"
    parallel: ClassVar[bool] = True

    epochs: float = Field(1, gt=0)  # a fraction trains on that part of a shuffled pass
    lr: float = Field(2e-5, gt=0)
    schedule: ScheduleName = "cosine"
    warmup_steps: int | None = Field(None, ge=0)  # none: 100 as in the paper, a tenth of runs shorter than 1,000 steps
    weight_decay: float = Field(0.0, ge=0)  # ours: a few epochs from a trained model need none; on matrices only
    betas: tuple[float, float] = (0.9, 0.999)  # ours: AdamW's own
    clip: float = Field(1.0, gt=0)  # largest gradient norm; ours
    max_tokens: int = Field(4096, ge=8)  # sequence length; an answer is never cut
    overlong: Overlong = "drop"  # rows beyond max_tokens; `left_truncate` cuts the beginning of their prompts
    max_dropped: float = Field(0.0, ge=0, le=1)  # share of rows too long or unfit before the run stops
    # Weights are float32 but for bf16_stochastic, which halves memory and rounds updates at random: to the nearest,
    # small ones are lost.
    precision: Precision = "float32"
    lora: Lora | None = None  # none: all weights are trained
    hold_out: float = Field(0.0, ge=0, lt=1)  # share of the rows, by key, that is never trained on but measured
    evaluate_every: int | None = Field(None, ge=1)  # steps between two looks; none: before and after
    samples: int = Field(0, ge=0)  # replies to held-out prompts at each look
    sample_tokens: int = Field(64, ge=1)  # longest such reply
    # float32, because rounding to bf16 (8 bits of mantissa) would swallow later updates that are small beside the
    # weight, as those of DPO and of a merge's deltas are.
    dtype_out: Literal["float32", "bfloat16"] = "float32"

    def check(self) -> None:
        """Refuse what can't be together, before anything is read.

        Raises:
            AloeError: the two parameters are named.
        """
        if self.samples and not self.hold_out:
            raise AloeError(
                "samples are replies to held-out prompts, and nothing is held out", where="samples", fix="set hold_out"
            )
        if self.evaluate_every and not self.hold_out:
            raise AloeError("there is nothing to evaluate on", where="evaluate_every", fix="set hold_out: 0.02, say")
        if self.lora is not None and self.precision == "bf16_stochastic":
            raise AloeError(
                "adapters are trained in float32 beside the weights, so there is nothing to round",
                where="precision",
                fix="use bf16_autocast with lora",
            )

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree in: every parameter of the step."""
        return {"verb": self.verb, "version": self.version, **self.model_dump(mode="json")}
