"""The `merge` verb: several models trained from one base become one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import ConfigDict, Field, model_validator

from aloe.contract import Context, Kind, ModelRef, Params, Step
from aloe.merge.methods import Method, settings
from aloe.merge.sparsify import Rescale
from aloe.merge.stream import Dtype, MergeJob


class MergeModel(Params):
    """One model's part. `weight` multiplies its task vector; `density`, in (0, 1], is the share of entries kept."""

    weight: float = Field(default=1.0, allow_inf_nan=False)
    density: float = Field(default=1.0, gt=0, le=1)


class Merge(Step):
    """Merge models into their base, tensor by tensor.

    `method`: a row of `aloe.merge.methods.ROWS`. `normalize` and `rescale`: None takes the method's own. `lambda_`
    (in YAML `lambda`) scales the merged delta. `t`: slerp's place between base (0) and model (1). `dtype` is float32
    because rounding to bfloat16 is the largest error of a merge, and later small updates vanish in it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    verb: ClassVar[str] = "merge"
    version: ClassVar[int] = 1
    makes: ClassVar[Kind] = "model"

    method: Method
    base: ModelRef
    models: dict[ModelRef, MergeModel]
    normalize: bool | None = None
    rescale: Rescale | None = None
    lambda_: float = Field(default=1.0, alias="lambda", allow_inf_nan=False)
    t: float | None = Field(default=None, ge=0, le=1)
    dtype: Dtype = "float32"

    @model_validator(mode="after")
    def _check(self) -> Merge:
        settings(
            self.method,
            {ref: (model.weight, model.density) for ref, model in self.models.items()},
            normalize=self.normalize,
            rescale=self.rescale,
            lambda_=self.lambda_,
            t=self.t,
        )
        return self

    def run(self, ctx: Context) -> dict[str, Any]:
        """Write the merged model and `merge.json` (statistics by tensor class, the row that ran)."""
        params = {
            "method": self.method,
            "models": {ref: model.model_dump() for ref, model in self.models.items()},
            "normalize": self.normalize,
            "rescale": self.rescale,
            "lambda_": self.lambda_,
            "t": self.t,
            "dtype": self.dtype,
        }
        digests = {ref: ctx.digest(ref) for ref in self.models}
        folders = {ref: ctx.path(ref) for ref in self.models}
        job = MergeJob(params, ctx.path(self.base), folders, digests, ctx.seed)
        with ctx.progress("merging", job.total_bytes, "B") as bar:
            report = job.write(ctx.out, _workers(), bar.advance)
        report = {"method": self.method, "base": {"ref": self.base, "digest": ctx.digest(self.base)}, **report}
        text = json.dumps(report, indent=2, sort_keys=True, allow_nan=False)
        (ctx.out / "merge.json").write_text(text + "\n", encoding="utf-8")
        return summarise(report)


def _workers() -> int:
    """Threads to merge with: one per processor, at most eight (beyond that, storage is the limit)."""
    return max(1, min(8, os.cpu_count() or 1))


def summarise(report: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of `merge.json` that belong into the manifest."""
    total = report["total"]
    summary = {
        "method": report["method"],
        "row": report["row"],
        "dtype": report["dtype"],
        "tensors": report["tensors"],
        "parameters": total["entries"],
        "merged_delta_norm": total["merged_delta_norm"],
        "models": total["models"],
    }
    if total["sign_disagreement"] is not None:
        summary["sign_disagreement"] = total["sign_disagreement"]
    return summary
