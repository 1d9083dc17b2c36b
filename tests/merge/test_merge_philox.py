import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aloe.merge.philox import PIECE, philox4x32, stream_words, uniform, words

# Random123, tests/kat_vectors, the three lines "philox4x32 10": counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def hexes(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_random123_known_answers(counter: str, key: str, expected: str) -> None:
    out = philox4x32(np.array([hexes(counter)]).T, hexes(key))
    assert out[:, 0].tolist() == hexes(expected)


def test_columns_are_independent_counters() -> None:
    counters = np.array([hexes("0 0 0 0"), hexes("243f6a88 85a308d3 13198a2e 03707344"), hexes("1 2 3 4")]).T
    together = philox4x32(counters, (5, 6))
    for i in range(3):
        assert np.array_equal(together[:, i : i + 1], philox4x32(counters[:, i : i + 1], (5, 6)))


def test_an_entry_owns_the_word_of_its_flat_index() -> None:
    k0, k1, upper0, upper1 = stream_words(7, "digest", "w")
    block = philox4x32([[2], [0], [upper0], [upper1]], (k0, k1))[:, 0]
    assert words(7, "digest", "w", 8, 12).tolist() == block.tolist()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 50_000), st.integers(0, 400), st.integers(1, 97))
def test_any_range_in_any_pieces_gives_the_same_numbers(start: int, length: int, step: int) -> None:
    whole = uniform(3, "m", "t", start, start + length)
    cuts = [uniform(3, "m", "t", at, min(at + step, start + length)) for at in range(start, start + length, step)]
    assert np.array_equal(whole, np.concatenate(cuts) if cuts else np.empty(0, np.float32))


def test_ranges_across_an_internal_piece_and_beyond_32_bits() -> None:
    edge = 4 * PIECE
    assert np.array_equal(words(1, "m", "t", 0, edge + 9)[edge - 3 :], words(1, "m", "t", edge - 3, edge + 9))
    far = 4 * 2**32
    assert not np.array_equal(words(1, "m", "t", 0, 8), words(1, "m", "t", far, far + 8))
    assert np.array_equal(words(1, "m", "t", far - 8, far + 8)[8:], words(1, "m", "t", far, far + 8))


def test_seed_model_and_tensor_each_name_another_stream() -> None:
    streams = [
        uniform(*names, 0, 64).tobytes() for names in ((1, "a", "x"), (2, "a", "x"), (1, "b", "x"), (1, "a", "y"))
    ]
    assert len(set(streams)) == 4


def test_uniform_numbers_are_in_range_and_evenly_spread() -> None:
    drawn = uniform(0, "m", "t", 0, 200_000)
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.histogram(drawn, bins=20, range=(0, 1))[0]
    assert np.sum((counts - 10_000) ** 2 / 10_000) < 50  # chi-square with 19 degrees of freedom: p < 1e-4 beyond
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.01
