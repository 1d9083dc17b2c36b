"""The token store: every row comes back as it was, damage is found, and nothing depends on the file's order."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aloe.models.packed import Tree
from aloe.train import tokens
from aloe.train.packing import Example, lengths_of, pack
from aloe.train.tokens import CorruptTokens, Source, TokenFile, TokenStore, TokenWriter, store_of


@st.composite
def example(draw: st.DrawFn) -> Example:
    ids = st.lists(st.integers(0, 70_000), min_size=1, max_size=12)
    tree = Tree(draw(ids), draw(st.lists(ids, max_size=3)))
    scored = [False, *draw(st.lists(st.booleans(), min_size=len(tree) - 1, max_size=len(tree) - 1))]
    if not any(scored):
        tree, scored = Tree([*tree.prefix, 5], tree.branches), [False] * len(tree) + [True]
        scored = [False] * len(tree.prefix) + [True] * (len(tree) - len(tree.prefix)) if tree.branches else scored
    licence = draw(st.sampled_from(["unknown", "mit", "cc0-1.0"]))
    return Example(draw(st.text(min_size=1, max_size=8)), tree, scored, licence)


def plain(e: Example) -> tuple[Any, ...]:
    parts = [list(map(int, part)) for part in (e.tree.prefix, *e.tree.branches)]
    return e.key, parts, [bool(flag) for flag in e.scored], e.licence


def content(e: Example) -> str:
    return repr(plain(e))


def dialogues(count: int) -> list[Example]:
    return [Example(f"d/{n}", Tree(list(range(2, 8 + n))), [False] * 3 + [True] * (n + 3), "mit") for n in range(count)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(example(), max_size=12))
def test_what_goes_in_comes_out(tmp_path: Path, rows: list[Example]) -> None:
    store = store_of(rows, tmp_path / "t", 70_001)
    assert sorted(map(content, store)) == sorted(map(content, rows))
    assert len(store) == len(rows)
    for i, e in enumerate(store):
        assert (e.tokens, e.trained, e.longest) == (store.tokens[i], store.trained[i], store.longest[i])
        assert (store.key(i), plain(store[i - len(store)])) == (e.key, plain(e))
        assert e.tree.prefix.dtype == np.int64  # type: ignore[attr-defined]
    assert lengths_of(store).tolist() == [e.tokens for e in store] == lengths_of(list(store)).tolist()
    assert sum(store.licences().values()) == len(rows)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(example(), min_size=1, max_size=8), seed=st.integers(0, 9))
def test_the_order_of_the_file_changes_nothing(tmp_path: Path, rows: list[Example], seed: int) -> None:
    """Also with keys that come twice, whose rows are told apart by what they hold."""
    rows = [*rows, Example(rows[0].key, Tree([1, 2, 3]), [False, True, True], "mit"), rows[0]]
    mixed = random.Random(seed).sample(rows, len(rows))
    a, b = store_of(rows, tmp_path / "a", 70_001), store_of(mixed, tmp_path / "b", 70_001)
    without_licence = [content(Example(e.key, e.tree, e.scored)) for e in a]
    assert without_licence == [content(Example(e.key, e.tree, e.scored)) for e in b]
    assert a.digest == b.digest


def test_the_digest_is_that_of_tokens_branches_and_flags_and_of_nothing_else(tmp_path: Path) -> None:
    def digest(*rows: Example) -> str:
        return store_of(rows, tmp_path / "t", 100).digest

    pair = Example("p", Tree([1, 2], [[3, 4], [5]]), [False, False, True, True, True], "mit")
    first = digest(pair)
    assert digest(Example("p", pair.tree, pair.scored, "cc0-1.0")) == first
    assert digest(Example("other", pair.tree, pair.scored, "mit")) == first
    changed = [
        Example("p", Tree([1, 2], [[3], [4, 5]]), pair.scored),
        Example("p", Tree([1, 2], [[3, 4], [6]]), pair.scored),
        Example("p", pair.tree, [False, False, True, True, False]),
    ]
    assert len({first, digest(pair, pair), *(digest(e) for e in changed)}) == 5


def test_several_sources_and_some_of_their_rows_are_one_sequence(tmp_path: Path) -> None:
    first = store_of(dialogues(5), tmp_path / "a", 100).sources[0]
    bare = [Example(f"x/{n}", Tree([1, 2 + n]), [False, True]) for n in range(4)]
    second = store_of(bare, tmp_path / "b", 100).sources[0]
    store = TokenStore([Source(first.file, np.array([1, 3]), "mit"), Source(second.file, None, "cc-by-4.0")])
    expected = [first.file.key(1), first.file.key(3), *(second.file.key(i) for i in range(4))]
    assert [e.key for e in store] == expected == [store.key(i) for i in range(6)]
    assert [e.key for e in store[1:4]] == expected[1:4]
    assert store.tokens.tolist() == [e.tokens for e in store]
    assert store.licences() == {"cc-by-4.0": 4, "mit": 2}
    assert store[2].licence == "cc-by-4.0"
    with pytest.raises(IndexError):
        store[6]


def test_packs_as_lists_do(tmp_path: Path) -> None:
    pair = Example("p", Tree([10, 11, 12], [[20, 21], [30]]), [False] * 3 + [True] * 3)
    store = store_of([*dialogues(6), pair], tmp_path / "t", 100)
    lists = [Example(*(lambda k, p, s, li: (k, Tree(p[0], p[1:]), s, li))(*plain(e))) for e in store]
    for ours, theirs in zip(pack(store, range(7), 30, 0), pack(lists, range(7), 30, 0), strict=True):
        assert ours.members == theirs.members
        for name in ("sources", "targets", "sequence"):
            assert np.array_equal(getattr(ours, name), getattr(theirs, name))
        assert np.array_equal(ours.layout.ids, theirs.layout.ids)
        assert np.array_equal(ours.layout.mask(), theirs.layout.mask())


@pytest.mark.parametrize(("vocabulary", "size"), [(65_536, 2), (65_537, 4)])
def test_an_id_takes_two_bytes_where_that_is_enough(tmp_path: Path, vocabulary: int, size: int) -> None:
    top = vocabulary - 1
    store = store_of([Example("a", Tree([0, top]), [False, True])], tmp_path / "t", vocabulary)
    assert list(store[0].tree.prefix) == [0, top]
    assert (tmp_path / "t" / "tokens.bin").stat().st_size == 2 * size
    with pytest.raises(ValueError, match=f"the id {vocabulary}"):
        store_of([Example("a", Tree([0, vocabulary]), [False, True])], tmp_path / "u", vocabulary)
    assert [p.name for p in tmp_path.iterdir()] == ["t"]  # a failure leaves nothing behind


FILES = ["rows.bin", "tokens.bin", "parts.bin", "spans.bin", "keys.bin", "dropped.json"]


@pytest.mark.parametrize("name", [*FILES, "meta.json"])
@pytest.mark.parametrize("how", ["cut", "gone", "bit"])
def test_damage_is_found(tmp_path: Path, name: str, how: str) -> None:
    store_of(dialogues(8), tmp_path / "t", 100)
    TokenFile(tmp_path / "t", check=True)
    path = tmp_path / "t" / name
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[:-1])
    else:
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    with pytest.raises(CorruptTokens):
        TokenFile(tmp_path / "t", check=True)


def test_another_version_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_of(dialogues(1), tmp_path / "t", 100)
    monkeypatch.setattr(tokens, "VERSION", 99)
    with pytest.raises(CorruptTokens, match="not 99"):
        TokenFile(tmp_path / "t", check=False)


def test_a_failure_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    before = store_of(dialogues(3), tmp_path / "t", 100).digest

    def fail() -> None:
        with TokenWriter(tmp_path / "t", 100) as writer:
            writer.put(dialogues(1)[0], 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert TokenStore([Source(TokenFile(tmp_path / "t", check=True), None, "mit")]).digest == before
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """Written from a generator and read at random; tokens never stand in memory together."""

    def rows(count: int) -> Any:
        for n in range(count):
            yield Example(f"r/{n}", Tree(np.full(2000, n % 97)), np.arange(2000) > 10)  # type: ignore[arg-type]

    tracemalloc.start()
    store = store_of(rows(3000), tmp_path / "t", 100)  # 12 MB of tokens, 48 MB as int64
    for i in range(0, 3000, 7):
        assert store[i].trained == 1989
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000
    assert json.loads((tmp_path / "t" / "meta.json").read_text())["rows"] == 3000


def test_what_a_killed_writer_left_is_removed_and_a_living_one_is_let_be(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()  # a process id that was, and is no more
    dead, alive = tmp_path / f".rows-{child.pid}-abc", tmp_path / f".rows-{os.getpid()}-abc"
    other = tmp_path / f".others-{child.pid}-abc"
    for folder in (dead, alive, other):
        folder.mkdir()
        (folder / "tokens.bin").write_bytes(b"0")
    TokenWriter(tmp_path / "rows", 10)
    assert not dead.exists()
    assert alive.exists()
    assert other.exists()
