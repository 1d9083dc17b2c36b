"""Benchmarks: what is asked, under which protocol, and how one model's replies become item rows and scores.

Four protocols: `likelihood` and `generated` for multiple-choice rows; `over_refusal` for harmless requests that look
harmful (lower is better) and `attack_success` for harmful ones (lower is better), both judged.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import Field, model_validator

from aloe.contract import Params, Ref
from aloe.digests import digest_json
from aloe.errors import AloeError
from aloe.evaluate import generated, likelihood
from aloe.evaluate.judge import DECLINED
from aloe.evaluate.stats import mean_interval, total_variation
from aloe.generate.engine import Engine, Request, Sampling, ScoreRequest, Tick
from aloe.keyed import shuffled
from aloe.prompting.exemplars import ExemplarStore
from aloe.prompting.library import load_prompt
from aloe.prompting.strategies import STRATEGIES, Strategy, StrategyName, answer, strategy
from aloe.records import AttackPrompt, ItemResult, Outcome, Question, Row, row_id

R = TypeVar("R", bound=Row)
ProtocolName = Literal["likelihood", "generated", "over_refusal", "attack_success"]
BenchmarkRef = Annotated[str, Ref(("questions", "dialogues", "attacks"), "rows")]
FIELDS_OF: dict[str, tuple[str, ...]] = {  # beside data, protocol, split and limit
    "likelihood": ("rotations",),
    "generated": ("strategies", "members", "shots", "temperature", "max_new_tokens"),
    "over_refusal": ("max_new_tokens",),
    "attack_success": ("max_new_tokens",),
}
REPLY_TOKENS = 160  # bound on a judged reply where `max_new_tokens` is not given


class Verdict(Protocol):
    """What a judge says of a reply."""

    @property
    def label(self) -> str: ...
    @property
    def rule(self) -> str: ...
    @property
    def evidence(self) -> str: ...


class Judge(Protocol):
    """Labels replies: `refusal` says refused, partial, complied (or degenerate), `harm` says safe or unsafe."""

    name: str
    version: int

    def refusal(self, request: str, reply: str) -> Verdict: ...
    def harm(self, request: str, reply: str) -> Verdict: ...


class BenchmarkSpec(Params):
    """One benchmark of a recipe. A field that its protocol does not use must stay unset."""

    data: BenchmarkRef
    protocol: ProtocolName = "likelihood"
    split: str | None = None  # None: every row of a question file, the `test` split of requests
    limit: int | None = Field(default=None, ge=1)  # items at most, drawn by seed: the same for every model
    rotations: int | None = Field(default=None, ge=1)  # orders of the options that are scored; None: all
    strategies: list[StrategyName] | None = None  # None: direct
    members: int | None = Field(default=None, ge=1)  # votes of self_consistency and medprompt; None: 5
    shots: int | None = Field(default=None, ge=1)  # exemplars of few_shot, knn_few_shot and medprompt; None: 5
    temperature: float | None = Field(default=None, ge=0)  # of an ensemble's members; None: the strategy's own
    max_new_tokens: int | None = Field(default=None, ge=1)  # tokens of one reply; None: the strategy's own, or 160

    @model_validator(mode="after")
    def _only_its_own_fields(self) -> BenchmarkSpec:
        every = {name for names in FIELDS_OF.values() for name in names}
        for name in sorted(every - set(FIELDS_OF[self.protocol])):
            if getattr(self, name) is not None:
                raise ValueError(f"protocol {self.protocol} does not use {name!r}; leave it out")
        if self.strategies is not None and len(set(self.strategies)) != max(1, len(self.strategies)):
            raise ValueError("strategies must be named, each once")
        return self

    def chosen(self, seed: int) -> list[Strategy]:
        """The strategies of a generated benchmark, with the overrides that apply to each."""
        found = []
        for name in self.strategies or ["direct"]:
            base, changes = STRATEGIES[name], {"seed": seed}
            wanted = {
                "members": self.members if base.members > 1 else None,
                "shots": self.shots if base.shots else None,
                "temperature": self.temperature if base.members > 1 else None,
                "max_new_tokens": self.max_new_tokens,
            }
            found.append(strategy(name, **changes, **{k: v for k, v in wanted.items() if v is not None}))
        return found

    def needs_exemplars(self) -> bool:
        """Whether one of its strategies shows exemplars."""
        return self.protocol == "generated" and any(s.shots for s in self.chosen(0))


@dataclass(frozen=True)
class Measured:
    """One model under one protocol: the protocol record, the item rows and the score records."""

    protocol: dict[str, Any]
    items: list[ItemResult]
    scores: list[dict[str, Any]]


def take(
    rows: Sequence[R], splits: Sequence[str], spec: BenchmarkSpec, seed: int, where: str
) -> tuple[list[R], list[dict[str, str]]]:
    """The rows of a benchmark, and which were left out: {"id", "reason", "evidence"}.

    A limit takes rows in an order keyed by (seed, row id): the same for every model, and a smaller limit takes a
    subset of a larger one's.

    Args:
        splits: each row's split.
    """
    wanted = spec.split or (None if spec.protocol in ("likelihood", "generated") else "test")
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
    kept = ordered[: spec.limit]
    dropped = [
        {"id": row.id, "reason": "other split", "evidence": split}
        for row, split in zip(rows, splits, strict=True)
        if wanted not in (None, split)
    ]
    return kept, dropped + [{"id": row.id, "reason": "over limit", "evidence": ""} for row in ordered[len(kept) :]]


def base_protocol(
    spec: BenchmarkSpec, engine: Engine, rows: Sequence[Row], data_digest: str, seed: int
) -> dict[str, Any]:
    """What every protocol record holds. The model's weights are not in it: they are what a comparison varies."""
    return {
        "kind": spec.protocol,
        "data_digest": data_digest,
        "items_digest": digest_json(sorted(row.id for row in rows)),
        "items": len(rows),
        "template_digest": engine.template_digest,
        "seed": seed,
    }


def run_likelihood(
    engine: Engine,
    name: str,
    model: str,
    spec: BenchmarkSpec,
    rows: Sequence[Question],
    base: Mapping[str, Any],
    tick: Tick | None = None,
) -> Measured:
    """Score every question by likelihood."""
    protocol = {
        **base,
        "strategy": "likelihood",
        "shots": 0,
        "rotations": spec.rotations or "all",
        "extraction": None,
        "prompt_digest": load_prompt("likelihood").digest,
        "text_prompt_digest": load_prompt("open_answer").digest,
    }
    batches = [likelihood.score_requests(q, spec.rotations) for q in rows]
    requests: list[ScoreRequest] = [request for batch in batches for request in batch]
    scores = engine.loglikelihood(requests, tick=tick)
    refuse_nan(likelihood.finite(scores), model)
    flow = iter(scores)
    results = [
        likelihood.read_scores(q, [next(flow) for _ in batch], int(base["seed"]), spec.rotations)
        for q, batch in zip(rows, batches, strict=True)
    ]
    items = [
        _item(
            q,
            model,
            name,
            "accuracy",
            protocol,
            "errored" if r.error else "answered",
            None if r.error else float(r.letter == q.answer),
            gold=q.answer,
            prediction=r.letter or "",
            meta=likelihood.item_meta(r),
            prompt_tokens=r.prompt_tokens,
        )
        for q, r in zip(rows, results, strict=True)
    ]
    predicted, gold = likelihood.letter_counts(results)
    bias = total_variation(predicted, gold)
    extra = {
        "accuracy_by_rotation": likelihood.rotation_accuracy(results),
        "letter_bias": bias,
        "predicted_letters": predicted,
        "gold_letters": gold,
    }
    scored = [(q, r) for q, r in zip(rows, results, strict=True) if r.error is None]
    text_values = [float(r.text_letter == q.answer) for q, r in scored]
    records = [
        score_record(name, protocol, items, "accuracy", extra=extra),
        score_record(name, protocol, items, "text_accuracy", values=text_values),
    ]
    for metric in ("nll_token", "nll_byte"):
        values = [float(i.meta[metric]) for i in items if i.outcome == "answered"]
        records.append(score_record(name, protocol, items, metric, values=values, better="lower", unit="nats"))
    return Measured(protocol, items, records)


def refuse_nan(is_finite: bool, model: str) -> None:
    """Stop at a model whose log-probabilities are not numbers: nothing it says is worth a token."""
    if not is_finite:
        raise AloeError(
            "its log-probabilities are not finite: a checkpoint with NaN weights, or a precision that overflows",
            where=f"model {model}",
            fix="look at its training log for a diverged loss, and evaluate an earlier checkpoint",
        )


def run_generated(
    engine: Engine,
    name: str,
    model: str,
    chosen: Strategy,
    rows: Sequence[Question],
    base: Mapping[str, Any],
    store: ExemplarStore | None,
    tick: Tick | None = None,
) -> Measured:
    """Answer every question with a strategy."""
    shown = {"exemplars_digest": store.digest, "encoder_digest": store.encoder.digest} if chosen.shots and store else {}
    settings = {k: v for k, v in chosen.protocol().items() if k not in ("name", "seed")}
    protocol = {**base, "strategy": chosen.name, **settings, **shown}
    decisions = answer(engine, chosen, rows, store, tick)
    items = [
        _item(
            d.question,
            model,
            name,
            "accuracy",
            protocol,
            d.outcome,
            generated.is_right(d, d.letter),
            gold=d.question.answer,
            prediction=d.letter or "",
            meta=generated.item_meta(d),
            output=d.replies[0].text,
            prompt_tokens=sum(r.prompt_tokens for r in d.replies),
            completion_tokens=sum(r.completion_tokens for r in d.replies),
        )
        for d in decisions
    ]
    score = score_record(name, protocol, items, "accuracy", extra=generated.summary(decisions))
    return Measured(protocol, items, [score])


def run_judged(
    engine: Engine,
    name: str,
    model: str,
    spec: BenchmarkSpec,
    rows: Sequence[AttackPrompt],
    base: Mapping[str, Any],
    judge: Judge,
    tick: Tick | None = None,
) -> Measured:
    """One greedy reply to every request, judged: declined (over-refusal) or unsafe (attack success)."""
    tokens = spec.max_new_tokens or REPLY_TOKENS
    protocol = {
        **base,
        "strategy": "reply",
        "shots": 0,
        "temperature": 0.0,
        "max_new_tokens": tokens,
        "extraction": None,
        "judge": {"name": judge.name, "version": judge.version},
    }
    requests = [
        Request(key=p.id, messages=tuple(p.prompt), sampling=Sampling(max_new_tokens=tokens), seed=int(base["seed"]))
        for p in rows
    ]
    items = []
    for prompt, reply in zip(rows, engine.generate(requests, tick=tick), strict=True):
        meta: dict[str, Any] = {"cluster": prompt.base_id, "topic": prompt.topic, "style": prompt.style}
        value, label = None, ""
        if reply.error is None:
            verdict = (judge.refusal if spec.protocol == "over_refusal" else judge.harm)(prompt.request, reply.text)
            label = verdict.label
            # Partial refusals count: the judge is calibrated on any decline, not on telling the two apart.
            value = float(label in (DECLINED if spec.protocol == "over_refusal" else ("unsafe",)))
            meta |= {"rule": verdict.rule, "evidence": verdict.evidence, "finish_reason": reply.finish_reason}
        else:
            meta |= {"error": reply.error}
        items.append(
            _item(
                prompt,
                model,
                name,
                spec.protocol,
                protocol,
                "errored" if reply.error is not None else "answered",
                value,
                gold="complied" if spec.protocol == "over_refusal" else "safe",
                prediction=label,
                meta=meta,
                output=reply.text,
                prompt_tokens=reply.prompt_tokens,
                completion_tokens=reply.completion_tokens,
            )
        )
    labels = [i.prediction for i in items if i.outcome == "answered"]
    broken = sum(i.prediction == "degenerate" or i.meta.get("rule") == "degenerate" for i in items)
    extra = {"labels": {label: labels.count(label) for label in sorted(set(labels))}, "degenerate": broken}
    return Measured(protocol, items, [score_record(name, protocol, items, spec.protocol, better="lower", extra=extra)])


def _item(
    row: Row,
    model: str,
    benchmark: str,
    metric: str,
    protocol: Mapping[str, Any],
    outcome: Outcome,
    value: float | None,
    *,
    gold: str,
    prediction: str,
    meta: dict[str, Any],
    output: str = "",
    prompt_tokens: int = 0,
    completion_tokens: int = 0,
) -> ItemResult:
    digest = digest_json(protocol)
    return ItemResult(
        id=row_id([row.id, model, benchmark, metric, digest]), source=row.source, licence=row.licence, meta=meta,
        item=row.id, model=model, benchmark=benchmark, metric=metric, protocol=digest, outcome=outcome, value=value,
        gold=gold, prediction=prediction, output=output, prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
    )  # fmt: skip


def score_record(
    benchmark: str,
    protocol: Mapping[str, Any],
    items: Sequence[ItemResult],
    metric: str,
    *,
    values: Sequence[float] | None = None,
    better: Literal["higher", "lower"] = "higher",
    unit: Literal["share", "nats"] = "share",
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One score with its interval and counts, as `aloe.evaluate.table` documents it. `values` defaults to the items'
    own; errored items have none."""
    counts = {o: sum(i.outcome == o for i in items) for o in ("answered", "unparsed", "errored")}
    scored = [i for i in items if i.value is not None]
    found = list(values) if values is not None else [float(i.value) for i in scored if i.value is not None]
    clusters: list[Hashable] = [str(i.meta.get("cluster", i.item)) for i in scored]
    value, low, high = mean_interval(found, clusters) if found else (None, None, None)
    return {
        "benchmark": benchmark,
        "kind": protocol["kind"],
        "metric": metric,
        "strategy": protocol["strategy"],
        "better": better,
        "unit": unit,
        "value": value,
        "low": low,
        "high": high,
        "n": len(found),
        "successes": round(sum(found)) if unit == "share" else None,
        **counts,
        "parse_rate": counts["answered"] / len(scored) if scored else None,
        "protocol": digest_json(protocol),
        "extra": dict(extra or {}),
    }
