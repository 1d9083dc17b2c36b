"""The parameter groups of `curate`: closed, typed, with the source of every default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from aloe.contract import ModelRef, Params, RowsRef


def listed(value: Any) -> Any:
    """A reference, a list of them, or a map from reference to options, as the list of groups that it stands for."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, Mapping):
        value = [{"rows": ref, **(options or {})} for ref, options in value.items()]
    return [{"rows": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value


class Source(Params):
    """One input of `curate`."""

    rows: RowsRef
    weight: float | None = Field(default=None, gt=0)  # relative share in the mix; give it to all sources or to none
    limit: int | None = Field(default=None, ge=1)  # read at most this many rows, from the start of the file
    ids: Literal["own", "content"] = "own"  # `content` makes ids from the rows, for sets whose own ids repeat
    preset: str | None = None  # a public set's published schema (docs/sources.md); None recognises the shape
    columns: dict[str, str] = Field(default_factory=dict)  # our name of a column -> the file's
    split: str | None = None  # of a datasets folder with several


class Phi(Params):
    """Personal health information: the identifiers of HIPAA's safe harbour, as far as they stand in text."""

    mode: Literal["off", "report", "redact", "drop"] = "report"
    kinds: list[str] | None = None  # of aloe.data.phi.KINDS; None looks for all
    allow: list[str] = Field(default_factory=list)  # words never taken for a name: a clinic's own products, say


class Semantic(Params):
    """Near-duplicates by meaning: cosine of sentence embeddings, on top of MinHash."""

    threshold: float | None = Field(default=None, gt=0, le=1)  # None calibrates it on random pairs of these rows
    embedder: str = "packaged"  # or a local sentence-transformers folder


class Dedup(Params):
    """Jaccard thresholds of near-duplicates: Aloe Beta (arXiv 2505.04388)."""

    qa: float = Field(default=0.72, gt=0, le=1)
    dialogue: float = Field(default=0.77, gt=0, le=1)
    semantic: Semantic | None = None


class Rephrased(Params):
    """The third tier: items that say the same in other words (Yang et al. 2023, arXiv 2311.04850)."""

    embedder: str = "packaged"
    top_k: int = Field(default=3, ge=1)  # nearest items looked at for each row
    floor: float = Field(default=0.8, gt=0, le=1)  # cosine below which a row is not suspected
    judge: ModelRef | None = None  # confirms; without one, suspects are listed and kept


class Benchmark(Params):
    """Rows that must not be trained on."""

    rows: RowsRef
    preset: str | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    split: str | None = None


class Decontaminate(Params):
    """Benchmarks that must not be trained on."""

    # A list of references, or a map from reference to its options.
    against: list[Benchmark] = Field(default_factory=list)
    min_similarity: float = Field(default=0.6, gt=0, le=1)  # of stem and options of two questions with one answer; ours
    rephrased: Rephrased | None = None

    @field_validator("against", mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        return listed(value)


class Quality(Params):
    """Score every row and drop the lowest (DEITA: Liu et al. 2024, arXiv 2312.15685)."""

    scorer: Literal["heuristics", "deita", "rubric"] = "heuristics"
    model: ModelRef | None = None  # the model that scores (deita) or judges (rubric)
    drop_share: float = Field(default=0.1, ge=0, lt=1)  # Aloe Beta
    within: Literal["all", "source"] = "all"  # the lowest of all rows, as the papers did, or of each source
    form: Literal["chat", "raw"] = "chat"  # deita: `raw` sends the published prompt without chat markup
    min_mass: float = Field(default=0, ge=0, lt=1)  # deita: probability on the six grades below which a row is unscored

    @model_validator(mode="after")
    def _model_where_needed(self) -> Quality:
        if (self.scorer == "heuristics") != (self.model is None):
            raise ValueError("quality.model goes with scorer deita or rubric: give both, or heuristics without one")
        return self


class Diversity(Params):
    """By score descending, keep a row whose cosine similarity to every kept row is small (DEITA)."""

    max_similarity: float = Field(default=0.9, gt=0, lt=1)  # DEITA
    embedder: str = "packaged"
