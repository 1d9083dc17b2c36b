"""The diversity filter: exact, greedy by score, the same for every block size, and none of the peers' mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe.data.diversity import by_score, diverse, similarity
from aloe.errors import AloeError
from aloe.keyed import rng

Floats = npt.NDArray[np.float32]


def unit(rows: npt.ArrayLike) -> Floats:
    values = np.asarray(rows, dtype=np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def clustered(count: int, dimension: int, seed: int) -> Floats:
    """Rows around a few centres, near and far, some of them exact twins: similarities of all kinds."""
    draw = rng(seed, "test-vectors", f"{count}|{dimension}")
    centres = draw.standard_normal((max(1, count // 6), dimension))
    rows = centres[draw.integers(len(centres), size=count)]
    rows = rows + draw.choice([0.0, 0.1, 0.5, 1.0], size=(count, 1)) * draw.standard_normal((count, dimension))
    return unit(rows)


def plain(vectors: Floats, order: Sequence[int], threshold: float) -> tuple[list[int], list[tuple[int, int, float]]]:
    """The definition, pair by pair."""
    kept: list[int] = []
    dropped = []
    for i in order:
        near = max(((similarity(vectors[i], vectors[k]), -n) for n, k in enumerate(kept)), default=(-2.0, 0))
        if near[0] > threshold:
            dropped.append((i, kept[-near[1]], near[0]))
        else:
            kept.append(i)
    return kept, dropped


ROWS = st.tuples(st.integers(1, 60), st.integers(2, 12), st.integers(0, 1000))


@settings(deadline=None)
@given(ROWS, st.sampled_from([0.3, 0.7, 0.9, 0.99]), st.sampled_from([1, 3, 16, 1024]), st.integers(0, 8))
def test_equal_to_the_definition_for_every_block_and_screen(
    shape: tuple[int, int, int], threshold: float, block: int, screen: int
) -> None:
    vectors = clustered(*shape)
    order = [int(i) for i in rng(shape[2], "test-order").permutation(len(vectors))]
    found = diverse(vectors, order, threshold, block=block, screen=min(screen, vectors.shape[1] - 1))
    assert (found.kept, found.dropped) == plain(vectors, order, threshold)


@pytest.mark.parametrize("screen", [0, 32])
def test_properties_at_size(screen: int) -> None:
    """1,500 rows of 96 dimensions: kept pairs at most at the threshold; each dropped row has a kept one that precedes
    it above the threshold; every row is one or the other; block size changes nothing."""
    vectors = clustered(1500, 96, 5)
    order = [int(i) for i in rng(1, "test-order").permutation(1500)]
    found = diverse(vectors, order, 0.9, block=256, screen=screen)
    assert sorted([*found.kept, *(i for i, _, _ in found.dropped)]) == list(range(1500))
    assert 200 < len(found.dropped) < 1300
    place = {row: n for n, row in enumerate(order)}
    kept = set(found.kept)
    for row, near, value in found.dropped:
        assert near in kept
        assert place[near] < place[row]
        assert value == similarity(vectors[row], vectors[near]) > 0.9
    rows = vectors[found.kept].astype(np.float64)
    assert np.triu(rows @ rows.T, 1).max() <= 0.9 + 1e-12
    assert [place[i] for i in found.kept] == sorted(place[i] for i in found.kept)
    for block in (1, 100, 4096):
        assert diverse(vectors, order, 0.9, block=block, screen=screen) == found


@pytest.mark.parametrize(("decay", "chosen"), [(0.05, True), (0.0, False)])
def test_the_sample_decides_on_a_screen_and_the_result_stays(
    decay: float, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows whose variance lies in few directions are screened, isotropic ones at a low threshold are not."""
    from aloe.data import diversity as module

    monkeypatch.setattr(module, "SCREEN_FROM", 1000)
    draw = rng(4, "test-decay", str(decay))
    vectors = unit(draw.standard_normal((1500, 96)) * np.exp(-decay * np.arange(96)))
    threshold = 0.9 if decay else 0.4
    assert bool(module._choose_screen(vectors, np.arange(1500), threshold)) == chosen
    assert diverse(vectors, range(1500), threshold) == diverse(vectors, range(1500), threshold, screen=0)


def test_the_better_of_two_stays() -> None:
    vectors = unit([[1, 0], [0.99, 0.1], [0, 1]])
    scores = [0.2, 0.9, 0.5]
    order = by_score(scores, ["a", "b", "c"])
    assert order == [1, 2, 0]
    found = diverse(vectors, order, 0.9)
    assert found.kept == [1, 2]
    assert [d[:2] for d in found.dropped] == [(0, 1)]


def test_equal_scores_go_by_id() -> None:
    assert by_score([1.0, 1.0, 2.0], ["b", "a", "c"]) == [2, 1, 0]


def test_peer_distilabel_threshold_is_a_similarity_not_a_distance() -> None:
    """DeitaFiltering keeps a row when the cosine *distance* to its nearest row is 0.9 or more: of these three, at
    similarities .5 and .87, it keeps none. A similarity of at most 0.9 keeps all three."""
    vectors = unit([[1, 0], [math.cos(math.pi / 3), math.sin(math.pi / 3)], [math.cos(math.pi / 6), 0.5]])
    assert float((vectors @ vectors.T)[~np.eye(3, dtype=bool)].max()) == pytest.approx(0.866, abs=1e-3)
    assert diverse(vectors, [0, 1, 2], 0.9).kept == [0, 1, 2]


def test_peer_distilabel_near_rows_are_the_ones_that_go() -> None:
    """The inverse reading (keep what is near to something) must not pass: outliers stay, the near copy goes."""
    vectors = unit([[1, 0, 0], [0.999, 0.01, 0], [0, 1, 0], [0, 0, 1]])
    found = diverse(vectors, [0, 1, 2, 3], 0.9)
    assert found.kept == [0, 2, 3]


@pytest.mark.parametrize("copies", [2, 3, 7])
@pytest.mark.parametrize("screen", [0, 2])
def test_peer_embedding_dedup_exactly_one_twin_survives(copies: int, screen: int) -> None:
    """EmbeddingDedup lists each twin as the other's neighbour and removes both; DeitaFiltering measures each against
    the whole set, with the same end."""
    vectors = unit([[0.3, 0.5, 0.2]] * copies + [[-1, 0.2, 0]])
    found = diverse(vectors, range(copies + 1), 0.9, screen=screen)
    assert found.kept == [0, copies]
    assert [d[:2] for d in found.dropped] == [(i, 0) for i in range(1, copies)]
    last_first = diverse(vectors, range(copies, -1, -1), 0.9, screen=screen)
    assert last_first.kept == [copies, copies - 1]


@pytest.mark.parametrize("block", [1, 2, 3, 64])
def test_peer_deita_a_dropped_row_drops_nobody(block: int) -> None:
    """A chain: b is like a, c is like b but not like a. b goes, so c stays. DEITA's batched filter compares within a
    batch before it knows who stays, and loses c there."""
    angle = math.acos(0.92)
    vectors = unit([[math.cos(i * angle), math.sin(i * angle)] for i in range(3)])
    assert float(vectors[0] @ vectors[2]) < 0.9 < float(vectors[1] @ vectors[2])
    found = diverse(vectors, [0, 1, 2], 0.9, block=block)
    assert found.kept == [0, 2]
    assert [d[:2] for d in found.dropped] == [(1, 0)]


def test_exactly_at_the_threshold_is_kept() -> None:
    vectors = np.array([[1, 0], [0.5, 0.8660254]], dtype=np.float32)
    at = similarity(vectors[0], vectors[1])
    assert diverse(vectors, [0, 1], at).kept == [0, 1]
    assert diverse(vectors, [0, 1], math.nextafter(at, 0)).kept == [0]


def test_a_threshold_of_one_drops_nothing() -> None:
    vectors = unit([[1 / 3, 2 / 3, 0.1]] * 4)
    assert diverse(vectors, range(4), 1.0).kept == [0, 1, 2, 3]


def test_similarity_is_exact() -> None:
    """Rounded once: the same for every order of summation, which float32 products are not."""
    draw = rng(3, "test-exact")
    a, b = unit(draw.standard_normal((2, 384)))
    turn = draw.permutation(384)
    assert similarity(a, b) == similarity(b, a) == similarity(a[turn], b[turn])
    assert similarity(a, b) == pytest.approx(float(a.astype(np.float64) @ b.astype(np.float64)), abs=1e-14)


def test_rows_without_a_direction_and_rows_left_out() -> None:
    vectors = unit([[0, 0], [1, 0], [0, 0], [1, 0]])
    assert diverse(vectors, [0, 1, 2], 0.9).kept == [0, 1, 2]
    assert diverse(vectors, [3], 0.9).kept == [3]
    assert diverse(vectors, [], 0.9).kept == []
    assert diverse(np.zeros((0, 4), dtype=np.float32), []).kept == []


def test_bad_vectors_are_named() -> None:
    vectors = unit([[1, 0], [0, 1], [1, 1]])
    for bad in (math.nan, math.inf, 3.0):
        broken = vectors.copy()
        broken[1, 0] = bad
        with pytest.raises(AloeError, match="row 1's vector"):
            diverse(broken, [0, 1, 2])


def test_arguments_that_make_no_sense() -> None:
    vectors = unit([[1, 0], [0, 1]])
    wrong = (
        {"order": [0, 0]}, {"order": [2]}, {"order": [-1]}, {"max_similarity": 0.0}, {"max_similarity": 1.1},
        {"block": 0}, {"screen": 2}, {"screen": -1}, {"vectors": vectors.astype(np.float64)}, {"vectors": vectors[0]},
    )  # fmt: skip
    for change in wrong:
        with pytest.raises(ValueError):
            diverse(**{"vectors": vectors, "order": [0, 1], **change})
