"""Merge methods as rows of sparsifier x rescale x consensus x normalise, on float32 arrays.

For each tensor, with W0 the base and Wi the models: delta_i = Wi - W0 in float32; sparsify and rescale each delta;
times its weight; elect signs and drop what disagrees; sum; divide by the agreeing weights if normalised; times
lambda; plus W0. `linear` averages the models themselves and `slerp` walks the arc from the base to one model.

Sources: task arithmetic (Ilharco et al. 2022, arXiv 2212.04089), TIES (Yadav et al. 2023, arXiv 2306.01708), DARE
(Yu et al. 2023, arXiv 2311.03099), the factorisation into rows from mergekit (Goddard et al. 2024, arXiv 2403.13257).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from aloe.errors import AloeError
from aloe.merge import consensus, sparsify
from aloe.merge.philox import uniform
from aloe.merge.sparsify import Blocks, Mask, Rescale

F32 = npt.NDArray[np.float32]
Method = Literal["linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties"]
BLOCK = 1 << 14  # entries per partial sum: float64 sums over fixed blocks don't depend on how a tensor is cut
NEARLY_PARALLEL = 0.9995  # |cosine| above which slerp becomes lerp, as in mergekit


@dataclass(frozen=True)
class Row:
    """One method. `space` says what is combined: task vectors, the weights themselves, or points on an arc."""

    space: Literal["deltas", "weights", "arc"] = "deltas"
    sparsify: Literal["bernoulli", "magnitude"] | None = None
    rescale: Rescale = "none"
    consensus: bool = False
    normalize: bool = False


ROWS: dict[Method, Row] = {
    "linear": Row(space="weights", normalize=True),
    "slerp": Row(space="arc"),
    "task_arithmetic": Row(),
    "ties": Row(sparsify="magnitude", consensus=True, normalize=True),
    "dare_linear": Row(sparsify="bernoulli", rescale="expectation"),
    "dare_ties": Row(sparsify="bernoulli", rescale="expectation", consensus=True),
}


@dataclass(frozen=True)
class Member:
    """One model's part. `key` is its content digest: it keys the random masks. `density` is in (0, 1]."""

    key: str
    weight: float = 1.0
    density: float = 1.0


@dataclass(frozen=True)
class Settings:
    """A method with everything decided; `lambda_` scales the merged delta, `t` is slerp's place on the arc."""

    row: Row
    members: tuple[Member, ...]
    lambda_: float = 1.0
    t: float | None = None


def settings(
    method: str,
    models: Mapping[str, tuple[float, float]],
    keys: Mapping[str, str] | None = None,
    *,
    normalize: bool | None = None,
    rescale: Rescale | None = None,
    lambda_: float = 1.0,
    t: float | None = None,
) -> Settings:
    """Check the numbers of a merge and fill in the method's defaults.

    Args:
        models: {name: (weight, density)}.
        keys: {name: content digest}; the names themselves when absent.
        normalize, rescale: None takes the method's own.

    Raises:
        AloeError: naming the field that is out of range, or that the method has no use for.
    """
    if method not in ROWS:
        raise _wrong("method", f"no merge method {method!r}", f"choose one of {', '.join(ROWS)}")
    row = ROWS[method]
    _check_count(method, row, len(models))
    _check_unused(method, row, models, normalize, rescale, lambda_, t)
    row = replace(
        row,
        normalize=row.normalize if normalize is None else normalize,
        rescale=row.rescale if rescale is None else rescale,
    )
    for name, (weight, density) in models.items():
        _check_member(f"models.{name}", row, weight, density)
    if row.normalize and sum(weight for weight, _ in models.values()) <= 0:
        what = "all weights are 0, and a normalised merge divides by their sum"
        raise _wrong("models", what, "give at least one model a weight above 0")
    if not math.isfinite(lambda_):
        raise _wrong("lambda", f"lambda is {lambda_}", "use a finite number; 1 is the default")
    keys = keys or {name: name for name in models}
    members = tuple(Member(keys[name], weight, density) for name, (weight, density) in models.items())
    return Settings(row, members, lambda_, t)


def _wrong(field: str, what: str, fix: str) -> AloeError:
    return AloeError(what, where=f"merge.{field}", fix=fix)


def _check_count(method: str, row: Row, count: int) -> None:
    if row.space == "arc" and count != 1:
        what = f"{method} takes exactly one model beside the base, found {count}"
        raise _wrong("models", what, "name one model, or use another method for several")
    if count == 0:
        raise _wrong("models", "no models to merge", "name at least one model with its weight")


def _check_unused(
    method: str,
    row: Row,
    models: Mapping[str, tuple[float, float]],
    normalize: bool | None,
    rescale: Rescale | None,
    lambda_: float,
    t: float | None,
) -> None:
    """Refuse settings that the method would silently ignore; check slerp's `t`."""
    ignored = []
    if row.sparsify is None:
        ignored += [f"models.{name}.density" for name, (_, density) in models.items() if density != 1.0]
        ignored += ["rescale"] if rescale not in (None, "none") else []
    if row.space != "deltas":
        ignored += ["lambda"] if lambda_ != 1.0 else []
    if row.space == "arc":
        ignored += [f"models.{name}.weight" for name, (weight, _) in models.items() if weight != 1.0]
        ignored += ["normalize"] if normalize else []
        if t is None or not 0 <= t <= 1:
            raise _wrong("t", f"slerp needs t in [0, 1], found {t}", "0 is the base, 1 is the model")
    elif t is not None:
        ignored.append("t")
    if ignored:
        fix = "take the setting out, or choose a method that uses it"
        raise _wrong(ignored[0], f"{method} has no use for {ignored[0]}", fix)


def _check_member(field: str, row: Row, weight: float, density: float) -> None:
    if not 0 < density <= 1:
        fix = "density is the share of entries kept: above 0, at most 1"
        raise _wrong(f"{field}.density", f"density is {density}", fix)
    if not math.isfinite(weight):
        raise _wrong(f"{field}.weight", f"weight is {weight}", "use a finite number")
    if row.normalize and weight < 0:
        what = f"weight is {weight}, and a normalised merge divides by the sum of weights"
        fix = "use a weight of 0 or more, or set normalize: false to subtract a model"
        raise _wrong(f"{field}.weight", what, fix)


@dataclass(frozen=True)
class Facts:
    """What a whole tensor must say before any block of it can be merged.

    `masks` and `factors` (weight x rescale) are per model; `arc` holds slerp's coefficients of base and model.
    """

    masks: tuple[Mask | None, ...] = ()
    factors: tuple[np.float32, ...] = ()
    arc: tuple[np.float32, np.float32] | None = None


@dataclass(frozen=True)
class Merged:
    """One merged block. `deltas` are the task vectors, `delta` is merged minus base; counts are over all models."""

    values: F32
    delta: F32
    deltas: tuple[F32, ...]
    kept: tuple[int, ...]
    standing: int  # entries that are not zero after sparsifying
    agreeing: int


def sparse_facts(plan: Settings, masks: Sequence[Mask | None], deltas: Sequence[Blocks]) -> Facts:
    """Facts of every method but slerp; `deltas[i]` gives the blocks of task vector i (read for `l1` only)."""
    factors = (
        member.weight * sparsify.rescale_factor(plan.row.rescale, member.density, blocks, mask)
        for member, mask, blocks in zip(plan.members, masks, deltas, strict=True)
    )
    return Facts(tuple(masks), tuple(np.float32(f) for f in factors))


def choose_mask(plan: Settings, member: Member, seed: int, tensor: str, size: int, blocks: Blocks) -> Mask | None:
    """The mask of one member on one tensor; None keeps everything (density 1, or a method that doesn't sparsify)."""
    if plan.row.sparsify is None or member.density >= 1 or size == 0:
        return None
    if plan.row.sparsify == "magnitude":
        return sparsify.magnitude(blocks, size, member.density)
    return sparsify.bernoulli(lambda start, stop: uniform(seed, member.key, tensor, start, stop), member.density)


def arc_facts(t: float, base_square: float, model_square: float, dot: float) -> Facts:
    """Slerp's coefficients from the two squared norms and the dot product (float64).

    sin((1-t) a) / sin a and sin(t a) / sin a, with a the angle between the tensors taken as vectors (Shoemake 1985);
    nearly parallel or zero tensors are interpolated along the straight line.
    """
    norms = math.sqrt(base_square) * math.sqrt(model_square)
    cosine = max(-1.0, min(1.0, dot / norms)) if norms else 1.0
    if abs(cosine) > NEARLY_PARALLEL:
        return Facts(arc=(np.float32(1 - t), np.float32(t)))
    angle = math.acos(cosine)
    return Facts(
        arc=(np.float32(math.sin((1 - t) * angle) / math.sin(angle)), np.float32(math.sin(t * angle) / math.sin(angle)))
    )


def merge_block(plan: Settings, facts: Facts, start: int, base: F32, models: Sequence[F32]) -> Merged:
    """Merge one block of flat entries that begins at `start`. Every value depends on its own entry and `facts` only."""
    row = plan.row
    deltas = tuple(model - base for model in models)
    everything = tuple(model.size for model in models)
    if row.space == "arc":
        assert facts.arc is not None
        values = base * facts.arc[0] + models[0] * facts.arc[1]
        return Merged(values, values - base, deltas, everything, 0, 0)
    weights = [member.weight for member in plan.members]
    if row.space == "weights":
        values, _ = consensus.masked_sum(
            [m * f for m, f in zip(models, facts.factors, strict=True)], weights, None, row.normalize
        )
        return Merged(values, values - base, deltas, everything, 0, 0)
    kept, weighted = [], []
    for delta, mask, factor in zip(deltas, facts.masks, facts.factors, strict=True):
        part = delta * factor
        keep = None if mask is None else mask(delta, start)
        if keep is not None:
            part *= keep
        kept.append(delta.size if keep is None else int(np.count_nonzero(keep)))
        weighted.append(part)
    positive = consensus.elect(weighted) if row.consensus else None
    merged, agreeing = consensus.masked_sum(weighted, weights, positive, row.normalize)
    standing = sum(int(np.count_nonzero(w)) for w in weighted) if row.consensus else 0
    if plan.lambda_ != 1:
        merged *= np.float32(plan.lambda_)
    values = base + merged
    if len(models) == 1:
        # W0 + (W1 - W0) may round away from W1; where the whole task vector is taken, the model is meant.
        values = np.where(merged == deltas[0], models[0], values)
    return Merged(values, merged, deltas, tuple(kept), standing, agreeing)


def block_sums(left: F32, right: F32) -> list[float]:
    """Float64 sums of left x right over consecutive BLOCKs; add them with `math.fsum`, which no order can change."""
    product = left.astype(np.float64) * right
    return [float(product[at : at + BLOCK].sum()) for at in range(0, product.size, BLOCK)]


def merge_arrays(
    plan: Settings,
    base: npt.ArrayLike,
    models: Sequence[npt.ArrayLike],
    *,
    masks: Sequence[npt.ArrayLike] | None = None,
    seed: int = 0,
    tensor: str = "",
) -> F32:
    """Merge one tensor held in memory: float32 arrays of one shape. `masks` replaces the method's own choice."""
    origin = np.ascontiguousarray(base, dtype=np.float32)
    arrays = [np.ascontiguousarray(model, dtype=np.float32) for model in models]
    for i, array in enumerate(arrays):
        if array.shape != origin.shape:
            what = f"model {i} has shape {array.shape}, the base {origin.shape}"
            raise AloeError(what, where=tensor or "tensor", fix="merge models of one architecture")
    flat, flats = origin.reshape(-1), [array.reshape(-1) for array in arrays]
    if plan.row.space == "arc":
        sums = [math.fsum(block_sums(a, b)) for a, b in ((flat, flat), (flats[0], flats[0]), (flat, flats[0]))]
        facts = arc_facts(plan.t or 0.0, *sums)
    else:
        deltas = [_whole(f - flat) for f in flats]
        chosen = (
            [sparsify.fixed(m) for m in masks]
            if masks is not None
            else [
                choose_mask(plan, member, seed, tensor, flat.size, blocks)
                for member, blocks in zip(plan.members, deltas, strict=True)
            ]
        )
        facts = sparse_facts(plan, chosen, deltas)
    return merge_block(plan, facts, 0, flat, flats).values.reshape(origin.shape)


def _whole(delta: F32) -> Blocks:
    return lambda: [(0, delta)]


def _plan(
    method: Method,
    weights: Sequence[float],
    densities: Sequence[float] | None,
    keys: Sequence[str] | None,
    *,
    normalize: bool | None = None,
    rescale: Rescale | None = None,
    lambda_: float = 1.0,
) -> Settings:
    shares = densities if densities is not None else [1.0] * len(weights)
    names = [str(i) for i in range(len(weights))]
    parts = dict(zip(names, zip(weights, shares, strict=True), strict=True))
    digests = dict(zip(names, keys or names, strict=True))
    return settings(method, parts, digests, normalize=normalize, rescale=rescale, lambda_=lambda_)


def linear(models: Sequence[npt.ArrayLike], weights: Sequence[float], *, normalize: bool = True) -> F32:
    """Weighted average of the models (model soups, Wortsman et al. 2022); a weighted sum with `normalize=False`."""
    return merge_arrays(_plan("linear", weights, None, None, normalize=normalize), models[0], models)


def slerp(base: npt.ArrayLike, model: npt.ArrayLike, t: float) -> F32:
    """The point at `t` in [0, 1] on the arc from `base` (0) to `model` (1), both taken as one vector."""
    return merge_arrays(settings("slerp", {"0": (1.0, 1.0)}, t=t), base, [model])


def task_arithmetic(
    base: npt.ArrayLike,
    models: Sequence[npt.ArrayLike],
    weights: Sequence[float],
    *,
    normalize: bool = False,
    lambda_: float = 1.0,
) -> F32:
    """W0 + lambda x sum of w_i delta_i. Negative weights subtract a task."""
    plan = _plan("task_arithmetic", weights, None, None, normalize=normalize, lambda_=lambda_)
    return merge_arrays(plan, base, models)


def ties(
    base: npt.ArrayLike,
    models: Sequence[npt.ArrayLike],
    weights: Sequence[float],
    densities: Sequence[float],
    *,
    normalize: bool = True,
    rescale: Rescale = "none",
    lambda_: float = 1.0,
) -> F32:
    """Trim by magnitude, elect signs, sum (mean, when normalised) of what agrees."""
    plan = _plan("ties", weights, densities, None, normalize=normalize, rescale=rescale, lambda_=lambda_)
    return merge_arrays(plan, base, models)


def dare_linear(
    base: npt.ArrayLike,
    models: Sequence[npt.ArrayLike],
    weights: Sequence[float],
    densities: Sequence[float],
    *,
    masks: Sequence[npt.ArrayLike] | None = None,
    seed: int = 0,
    keys: Sequence[str] | None = None,
    tensor: str = "",
    normalize: bool = False,
    rescale: Rescale = "expectation",
    lambda_: float = 1.0,
) -> F32:
    """Drop entries at random and rescale, then add. With `expectation` its mean over seeds is `task_arithmetic`.

    Args:
        masks: fixed masks, one per model, in place of random ones.
        seed, keys, tensor: key the random masks; `keys` are the models' digests (their positions when absent).
    """
    plan = _plan("dare_linear", weights, densities, keys, normalize=normalize, rescale=rescale, lambda_=lambda_)
    return merge_arrays(plan, base, models, masks=masks, seed=seed, tensor=tensor)


def dare_ties(
    base: npt.ArrayLike,
    models: Sequence[npt.ArrayLike],
    weights: Sequence[float],
    densities: Sequence[float],
    *,
    masks: Sequence[npt.ArrayLike] | None = None,
    seed: int = 0,
    keys: Sequence[str] | None = None,
    tensor: str = "",
    normalize: bool = False,
    rescale: Rescale = "expectation",
    lambda_: float = 1.0,
) -> F32:
    """As `dare_linear`, with sign election: agreeing deltas add, the others are dropped."""
    plan = _plan("dare_ties", weights, densities, keys, normalize=normalize, rescale=rescale, lambda_=lambda_)
    return merge_arrays(plan, base, models, masks=masks, seed=seed, tensor=tensor)
