"""The models that curation may ask: scorers of quality, and embedders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from aloe.data.quality import Scorer
from aloe.data.settings import Quality


def scorer(settings: Quality, engine: Callable[[str], Any]) -> Scorer:
    """The scorer that the settings name; `engine` opens the model where it needs one."""
    if settings.scorer == "heuristics":
        from aloe.data.heuristics import HeuristicScorer

        return HeuristicScorer()
    assert settings.model is not None
    if settings.scorer == "rubric":
        from aloe.data.rubric import RubricJudge

        return RubricJudge(engine(settings.model))
    from aloe.data.deita import DeitaScorer

    return DeitaScorer(engine(settings.model), form=settings.form, min_mass=settings.min_mass)


def encoder(name: str) -> Any:
    """An embedder: `packaged`, or a local sentence-transformers folder."""
    from aloe.generate.embed import Embedder

    return Embedder(None if name == "packaged" else name)
