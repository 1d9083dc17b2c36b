"""Duplicates by meaning: the calibrated threshold, who meets whom, and that blocks change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from aloe.data import semantic
from aloe.data.documents import Document
from aloe.data.semantic import semantic_duplicates
from aloe.errors import AloeError
from aloe.keyed import rng


def doc(name: str, family: str = "qa", gold: str = "", scope: str = "", length: int = 0) -> Document:
    return Document(name, family, name, {"full": name}, gold=gold, scope=scope, length=length)


def vectors(n: int, dimension: int = 48) -> np.ndarray:
    """Random directions with a common part, as embeddings have."""
    draw = rng(5, "semantic-test").standard_normal((n, dimension)) + 0.5
    return draw.astype(np.float32)


def planted(n: int = 300) -> tuple[np.ndarray, list[Document]]:
    """Rows n - 1 ... n - 20 lie close to rows 0 ... 19."""
    found = vectors(n)
    found[-20:] = found[:20][::-1] + 0.05 * vectors(n)[100:120]
    return found, [doc(f"r{k:03}") for k in range(n)]


def test_planted_pairs_are_found_at_the_calibrated_threshold() -> None:
    found, docs = planted()
    near = semantic_duplicates(found, docs)
    assert [(d.index, d.survivor) for d in near.duplicates] == [(280 + k, 19 - k) for k in range(20)]
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    for d in near.duplicates:
        assert d.similarity == pytest.approx(float(unit[d.index] @ unit[d.match]), abs=1e-6)
        assert (d.by, d.to_survivor) == ("meaning", d.similarity)


def test_threshold_is_calibrated_on_random_pairs_and_told() -> None:
    found, docs = planted()
    facts = semantic_duplicates(found, docs).scheme
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(300, 1)]
    assert facts["random_mean"] == pytest.approx(cosines.mean(), abs=0.005)
    assert facts["random_sd"] == pytest.approx(cosines.std(), abs=0.005)
    expected = facts["random_mean"] + semantic.Z * facts["random_sd"]
    assert facts["threshold"] == pytest.approx(min(max(expected, facts["random_quantile"]), semantic.CEILING))
    assert facts["random_share_over"] < 0.001
    stated = semantic_duplicates(found, docs, 0.9).scheme
    assert (stated["threshold"], stated["calibrated"]) == (0.9, 0)


def test_same_conditions_as_near_duplicates() -> None:
    same = np.ones((2, 4), dtype=np.float32)
    mcq = [("mcq", "aspirin", ""), ("mcq", "aspirin", "")]
    for a, b, met in (
        (*mcq, True),
        (("qa", "", ""), ("qa", "", ""), True),
        (("mcq", "aspirin", ""), ("mcq", "warfarin", ""), False),
        (("mcq", "aspirin", "one abstract"), ("mcq", "aspirin", "another"), False),
        (("mcq", "all of the above", ""), ("mcq", "all of the above", ""), False),
        (("qa", "", ""), ("dialogue", "", ""), False),
    ):
        found = semantic_duplicates(same, [doc("x", *a), doc("y", *b)], 0.9)
        assert bool(found.duplicates) is met, (a, b)


def test_the_better_row_survives() -> None:
    same = np.ones((3, 4), dtype=np.float32)
    found = semantic_duplicates(same, [doc("a", length=1), doc("b", length=3), doc("c", length=2)], 0.9)
    assert [(d.index, d.survivor) for d in found.duplicates] == [(0, 1), (2, 1)]


def test_blocks_and_order_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found, docs = planted()
    docs = [doc(d.id, gold=f"g{k % 20 % 3}") for k, d in enumerate(docs)]
    whole = semantic_duplicates(found, docs, 0.8)
    assert len(whole.duplicates) > 3
    names = {(docs[d.index].id, docs[d.survivor].id, docs[d.match].id) for d in whole.duplicates}
    monkeypatch.setattr(semantic, "BLOCK", 7)
    assert semantic_duplicates(found, docs, 0.8).duplicates == whole.duplicates
    order = rng(1, "order").permutation(len(docs))
    again = semantic_duplicates(found[order], [docs[i] for i in order], 0.8)
    assert {tuple(docs[order[k]].id for k in (d.index, d.survivor, d.match)) for d in again.duplicates} == names


def test_calibration_does_not_depend_on_order() -> None:
    found, docs = planted()
    order = rng(2, "order").permutation(len(docs))
    one, two = semantic_duplicates(found, docs), semantic_duplicates(found[order], [docs[i] for i in order])
    assert one.scheme == pytest.approx(two.scheme)


def test_unusable_embeddings_are_refused() -> None:
    with pytest.raises(AloeError, match="embedding 1 has length 0"):
        semantic_duplicates(np.array([[1.0, 0], [0, 0]], dtype=np.float32), [doc("a"), doc("b")])
    with pytest.raises(AloeError, match="1 embeddings for 2 rows"):
        semantic_duplicates(np.ones((1, 2), dtype=np.float32), [doc("a"), doc("b")])
    assert semantic_duplicates(np.empty((0, 2), dtype=np.float32), []).duplicates == []
