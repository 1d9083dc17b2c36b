"""Benchmarks as a recipe names them: what is asked, under which protocol, and which rows count.

`likelihood`, `plain` and `generated` ask multiple-choice questions; `pairs` compares two sentences; `problems` wants a
short exact answer; `continuations` goes on from an opening; `over_refusal` (harmless requests that look harmful) and
`attack_success` (harmful ones) are judged, and lower is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationInfo, model_validator

from aloe.contract import Params, Ref, RowsRef
from aloe.errors import AloeError
from aloe.keyed import shuffled
from aloe.prompting.strategies import STRATEGIES, Strategy, StrategyName, strategy
from aloe.records import Row

if TYPE_CHECKING:
    from aloe.evaluate.registry import BenchmarkFile

R = TypeVar("R", bound=Row)
ProtocolName = Literal[
    "likelihood", "plain", "generated", "pairs", "problems", "continuations", "over_refusal", "attack_success"
]
BenchmarkRef = Annotated[str, Ref(("questions", "dialogues", "attacks"), "rows")]
ClassifierRef = Annotated[str, Ref(("model",), "rows")]  # a folder that `aloe.evaluate.toxicity` reads
FIELDS_OF: dict[str, tuple[str, ...]] = {  # beside benchmark, data, protocol, split, limit and metrics
    "likelihood": ("rotations",),
    "plain": ("text", "style", "shots", "shots_from"),
    "generated": ("strategies", "members", "shots", "temperature", "max_new_tokens", "stopping", "error_bound"),
    "pairs": (),
    "problems": ("shots", "shots_from", "max_new_tokens"),
    "continuations": ("draws", "classifier", "temperature", "max_new_tokens"),
    "over_refusal": ("max_new_tokens",),
    "attack_success": ("max_new_tokens",),
}
JUDGED = ("over_refusal", "attack_success")
REPLY_TOKENS = 160  # bound on a judged reply where `max_new_tokens` is not given


class BenchmarkSpec(Params):
    """One benchmark of a recipe. A field that its protocol does not use must stay unset.

    With `benchmark`, the fields that the recipe leaves out are the file's. A file's path is read from the working
    directory, then from the folder `near` of the validation's context.
    """

    benchmark: str | None = None  # a packaged benchmark, or a user's own YAML file: what is unset here comes from it
    benchmark_digest: str | None = None  # of that file's part that decides scores: filled in, and checked where given
    data: BenchmarkRef  # where the rows lie; None with `benchmark`: where its file says
    protocol: ProtocolName = "likelihood"
    metrics: list[str] | None = None  # measures over the item rows beside the protocol's own; None: the file's
    split: str | None = None  # None: every row of a question file, the `test` split of requests
    limit: int | None = Field(default=None, ge=1)  # items at most, drawn by seed: the same for every model
    rotations: int | None = Field(default=None, ge=1)  # orders of the options that are scored; None: all
    strategies: list[StrategyName] | None = None  # None: direct
    members: int | None = Field(default=None, ge=1)  # votes of self_consistency and medprompt; None: 5
    shots: int | None = Field(default=None, ge=0)  # exemplars shown; None: 5 of few_shot, knn_few_shot, medprompt
    temperature: float | None = Field(default=None, ge=0)  # of an ensemble's members; None: the strategy's own
    max_new_tokens: int | None = Field(default=None, ge=1)  # tokens of one reply; None: the strategy's own, or 160
    stopping: Literal["full", "exact", "sequential"] | None = None  # of an ensemble; None: full
    error_bound: float | None = Field(default=None, gt=0, lt=0.5)  # of sequential stopping
    text: str | None = None  # plain: the form of the text (`aloe.evaluate.plain`)
    style: Literal["letters", "options"] | None = None  # plain: what is scored
    shots_from: RowsRef | None = None  # plain, problems: rows that shots are drawn from
    draws: int | None = Field(default=None, ge=1)  # continuations of one opening
    classifier: ClassifierRef | None = None  # what scores continuations

    @model_validator(mode="before")
    @classmethod
    def _from_its_file(cls, values: Any, info: ValidationInfo) -> Any:
        """Fill in what the benchmark's file says. Its fields count while the recipe keeps its protocol."""
        if not isinstance(values, dict) or values.get("benchmark") is None:
            if isinstance(values, dict) and values.get("benchmark_digest") is not None:
                raise ValueError("benchmark_digest is of a benchmark's file: name it in `benchmark`")
            return values
        from aloe.evaluate.registry import load_benchmark

        try:
            file, place = load_benchmark(str(values["benchmark"]), (info.context or {}).get("near"))
        except AloeError as cause:  # with the line of the benchmark's file, beside the recipe's
            raise ValueError(str(cause)) from None
        given = values.get("benchmark_digest")
        if given is not None and given != file.digest:
            raise ValueError(
                f"the benchmark file {values['benchmark']} is not the one that benchmark_digest names; take the "
                "earlier file, or leave benchmark_digest out to score by the file as it is now"
            )
        protocol = values.get("protocol") or file.protocol
        found = values["benchmark"] if place.folder is None else str(place.path)
        filled: dict[str, Any] = {"protocol": protocol, "metrics": list(file.metrics)}
        if protocol == file.protocol:
            filled |= file.fields
        else:
            filled["metrics"] = []
        data = file.data(place.folder)
        if values.get("data") is None:
            if data is None:
                raise ValueError(f"benchmark {file.name} ships no rows: get them from {file.homepage or 'its authors'} "
                                 "and name the file or folder in `data`")  # fmt: skip
            filled["data"] = data
        given_here = {k: v for k, v in values.items() if not (k in ("data", "metrics") and v is None)}
        return {**filled, **given_here, "benchmark": found, "benchmark_digest": file.digest}

    @model_validator(mode="after")
    def _known_metrics(self) -> BenchmarkSpec:
        from aloe.evaluate.measures import MEASURES

        if unknown := [name for name in self.metrics or () if name not in MEASURES]:
            raise ValueError(f"no measure {unknown[0]!r}; the measures are {', '.join(sorted(MEASURES))}")
        return self

    @model_validator(mode="after")
    def _only_its_own_fields(self) -> BenchmarkSpec:
        every = {name for names in FIELDS_OF.values() for name in names}
        for name in sorted(every - set(FIELDS_OF[self.protocol])):
            if getattr(self, name) is not None:
                raise ValueError(f"protocol {self.protocol} does not use {name!r}; leave it out")
        if self.protocol == "plain":
            self._text_form()
        if self.error_bound is not None and self.stopping != "sequential":
            raise ValueError("error_bound is of `stopping: sequential`")
        if self.protocol == "generated" and self.shots == 0:
            raise ValueError("a strategy that shows exemplars shows one or more; for none choose another strategy")
        if self.strategies is not None and len(set(self.strategies)) != max(1, len(self.strategies)):
            raise ValueError("strategies must be named, each once")
        return self

    def _text_form(self) -> None:
        """A text form that can't be asked so is refused with the recipe, not once models are trained."""
        from aloe.evaluate.plain import form_of

        try:
            form_of(self, "")
        except AloeError as cause:
            raise ValueError(f"{cause.what}: {cause.fix}") from None

    @property
    def file(self) -> BenchmarkFile | None:
        """The benchmark's file; None for one that the recipe spells out."""
        from aloe.evaluate.registry import load_benchmark

        if self.benchmark is None:
            return None
        file, _ = load_benchmark(self.benchmark)
        if file.digest != self.benchmark_digest:
            raise AloeError(
                "the benchmark file was changed while the recipe ran", where=self.benchmark, fix="run it again"
            )
        return file

    def chosen(self, seed: int) -> list[Strategy]:
        """The strategies of a generated benchmark, with the overrides that apply to each."""
        found = []
        for name in self.strategies or ["direct"]:
            base, changes = STRATEGIES[name], {"seed": seed}
            wanted = {
                "members": self.members if base.members > 1 else None,
                "shots": self.shots if base.shots else None,
                "temperature": self.temperature if base.members > 1 else None,
                "stopping": self.stopping if base.members > 1 else None,
                "error_bound": self.error_bound if base.members > 1 else None,
                "max_new_tokens": self.max_new_tokens,
            }
            found.append(strategy(name, **changes, **{k: v for k, v in wanted.items() if v is not None}))
        return found

    def needs_exemplars(self) -> bool:
        """Whether one of its strategies shows exemplars."""
        return self.protocol == "generated" and any(s.shots for s in self.chosen(0))


def take(
    rows: Sequence[R], splits: Sequence[str], spec: BenchmarkSpec, seed: int, where: str, *, whole: bool = False
) -> tuple[list[R], list[dict[str, str]]]:
    """The rows of a benchmark, and which were left out: {"id", "reason", "evidence"}.

    A limit takes rows in an order keyed by (seed, row id): the same for every model, and a smaller limit takes a
    subset of a larger one's.

    Args:
        splits: each row's split.
        whole: the limit takes whole clusters (`meta["cluster"]`), for scores of groups that count together.
    """
    wanted = spec.split or ("test" if spec.protocol in JUDGED and spec.benchmark is None else None)
    inside = [row for row, split in zip(rows, splits, strict=True) if wanted in (None, split)]
    if not inside:
        raise AloeError(
            f"no row has split {wanted!r}; the splits are {', '.join(sorted(set(splits))) or 'none'}",
            where=where,
            fix="name one of them in `split`",
        )
    ids = [row.id for row in inside]
    if len(set(ids)) < len(ids):
        raise AloeError(f"id {max(ids, key=ids.count)!r} is used twice", where=where, fix="give every row its own id")
    ordered = shuffled(inside, seed, "benchmark-subset", ids)
    kept = _whole(inside, spec, seed, where) if whole and spec.limit else ordered[: spec.limit]
    taken = {row.id for row in kept}
    dropped = [
        {"id": row.id, "reason": "other split", "evidence": split}
        for row, split in zip(rows, splits, strict=True)
        if wanted not in (None, split)
    ]
    return kept, dropped + [
        {"id": row.id, "reason": "over limit", "evidence": ""} for row in ordered if row.id not in taken
    ]


def _whole(rows: Sequence[R], spec: BenchmarkSpec, seed: int, where: str) -> list[R]:
    """As many clusters as fit into the limit, in an order keyed by (seed, cluster), each with all its rows."""
    groups: dict[str, list[R]] = {}
    for row in rows:
        groups.setdefault(str(row.meta["cluster"]), []).append(row)
    kept: list[R] = []
    for name in shuffled(list(groups), seed, "benchmark-clusters", list(groups)):
        if len(kept) + len(groups[name]) > (spec.limit or 0):
            break
        kept += groups[name]
    if not kept:
        raise AloeError(
            f"limit {spec.limit} holds no whole group of rows that count together; the first has {len(groups[name])}",
            where=where,
            fix=f"set limit to {len(groups[name])} or more",
        )
    return kept
