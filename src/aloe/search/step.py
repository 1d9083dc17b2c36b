"""The `merge_search` verb: measure candidate merges, take the best one that keeps the safety bound, and merge it.

The first candidates are the merge as it is written and the same with equal weights, so that a search never takes less
than what one had on the questions it saw; whether it has more is told by the held-out ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, ValidationError, model_validator

from aloe.contract import Context, Kind
from aloe.digests import digest_json
from aloe.errors import AloeError
from aloe.generate.local import LocalEngine
from aloe.merge.step import Merge
from aloe.merge.stream import MergeJob
from aloe.models.load import load_template
from aloe.search import record
from aloe.search.loop import Outcome, Search, checked, mean
from aloe.search.measure import Measure, Safety, Score, Validation, parts_of, protocol_of
from aloe.search.propose import Strategy, check_strategy
from aloe.search.space import SHARED, Space, apply
from aloe.search.trials import Bench, Candidate, Journal
from aloe.search.weights import Weights


class MergeSearch(Merge):
    """A merge whose numbers are searched for. Takes all that `merge` takes: the merge as written is the first trial.

    `space`: what may change. `budget`: candidates measured, the starting ones included. `score`: what is maximised,
    or minimised where lower is better, under the bound of `safety`.
    """

    verb: ClassVar[str] = "merge_search"
    version: ClassVar[int] = 100 * Merge.version + 2  # what merges write is written here, too
    makes: ClassVar[Kind] = "model"
    recipe_fields: ClassVar[tuple[str, ...]] = ("seed", "engine.precision")

    space: Space
    benchmark: Validation
    score: Score = "accuracy"
    safety: Safety | None = Field(default_factory=Safety)
    strategy: Strategy = "bayes"
    budget: int = Field(default=24, ge=2)

    @model_validator(mode="after")
    def _space_fits(self) -> MergeSearch:
        search = self.search(seed=0)
        if not search.dims:
            raise ValueError("nothing to search: give `space` a range, for example density: {'*': [0.2, 1.0]}")
        for dim in search.dims:
            _, dot, ref = dim.name.partition(".")
            if dot and ref != SHARED and ref not in self.models:
                raise ValueError(f"space.{dim.name}: no model {ref!r} in `models` ({', '.join(self.models)}, or '*')")
            for end in dim.choices or (dim.low, dim.high):
                try:
                    checked(apply(search.merge, {dim.name: end}))
                except AloeError as cause:
                    where = f"merge_search.space.{dim.name}"
                    raise AloeError(f"{end} can't be merged with: {cause.what}", where=where, fix=cause.fix) from None
                except ValidationError as cause:
                    raise ValueError(f"space.{dim.name}: {end} can't be merged with: {_first(cause)}") from None
        search.count()  # too many choices for a grid of this budget are an error here
        return self

    def written(self) -> dict[str, Any]:
        """The parameters of the merge as written: those of `merge`, by the names that a recipe has for them."""
        values = self.model_dump(by_alias=True)
        return {key: values[key] for key in (field.alias or name for name, field in Merge.model_fields.items())}

    def search(self, seed: int) -> Search:
        """What is searched, as plain values."""
        return Search(
            self.written(), self.space.dims(), self.score, self.safety, self.strategy, self.budget, seed
        )  # fmt: skip

    def run(self, ctx: Context) -> dict[str, Any]:
        """Write the merge that was chosen, `merge.json`, `search.json`, and the seconds in `logs/timing.jsonl`."""
        check_strategy(self.strategy)
        search = self.search(ctx.seed)
        make_job(ctx, search.merge)  # inputs that can't be merged are found out before a model is loaded
        parts = parts_of(ctx, self.benchmark, self.safety)
        template = load_template(ctx.path(self.base))[1].digest
        protocol = protocol_of(ctx, self.benchmark, self.safety, parts, template)
        inputs = {ref: ctx.digest(ref) for ref in (self.base, *self.models)}
        stem = ctx.cache / "merge-search" / digest_json([protocol, inputs, self.version])
        weights = Weights(ctx.path(self.base), ctx.precision, stem.with_suffix(".model"))

        def put(candidate: Candidate) -> LocalEngine:
            if candidate.merge is None:
                return weights.put_base(candidate.name)
            return weights.put(make_job(ctx, candidate.merge), candidate.name)

        measure = Measure(self.benchmark, self.safety, ctx.digest(self.benchmark.data), ctx.seed)
        bench = Bench(Journal(stem.with_suffix(".jsonl")), parts, put, measure, inputs)
        try:
            with ctx.progress("measuring", 1 + len(self.models) + search.count(), "models") as bar:

                def told(line: str) -> None:
                    ctx.log(line)
                    bar.advance()

                outcome = search.run(bench, told)
        finally:
            weights.close()
        content = record.search_record(search, outcome, parts, protocol) | {"streamed": weights.written == 0}
        if outcome.chosen is None:
            _json(stem.with_suffix(".search.json"), content)
            raise self._none_fits(outcome, stem.with_suffix(".search.json"))
        chosen = outcome.trials[outcome.chosen]
        ctx.log(f"{chosen.name} ({chosen.origin}) is taken; measured now {bench.fresh}, known before {bench.known}")
        summary = Merge.model_validate(chosen.merge).run(ctx)
        _json(ctx.out / "search.json", content)
        record.write_timing(ctx.out / "logs" / "timing.jsonl", outcome)
        return summary | {"merge": chosen.merge, "search": record.summarise(content, outcome)}

    def _none_fits(self, outcome: Outcome, kept: Path) -> AloeError:
        measured = [t.search for t in outcome.trials if t.search is not None]
        if not measured or self.safety is None or outcome.bound is None:
            what = f"none of {len(outcome.trials)} trials could be measured; the last: {outcome.trials[-1].error}"
            return AloeError(what, where="merge_search.space", fix="narrow the ranges: lower weights, higher densities")
        values = [mean(m.items[self.safety.metric]) for m in measured]
        best = max(values) if outcome.bound.better == "higher" else min(values)
        least = "at least" if outcome.bound.better == "higher" else "at most"
        return AloeError(
            f"none of {len(measured)} merges keeps the safety bound: {self.safety.metric} must be {least} "
            f"{outcome.bound.value:.4g}, the best has {best:.4g}",
            where="merge_search.safety",
            fix=f"look at the frontier in {kept}; widen `space` (weights down to 0), raise `margin`, or align first",
        )


def make_job(ctx: Context, merge: Mapping[str, Any]) -> MergeJob:
    """The merge of these parameters, as the `merge` step would run it."""
    return Merge.model_validate(dict(merge)).job(ctx)


def _first(cause: ValidationError) -> str:
    error = cause.errors()[0]
    return f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}"


def _json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
