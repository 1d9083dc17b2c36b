"""Every input that fuzzing once stumbled over, every seed, and mutations of both: nothing escapes but `AloeError`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "fuzz"))
from seeds import seeds
from targets import TARGETS, check

KEPT = Path(__file__).parent / "corpus"
SEEDS = seeds()
FAST = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
TOKENS = [
    b"null", b"[]", b"{}", b"1e999", b"-1", b'""', b"\0", b"\xff", b"9" * 20, b"[[[[[[", b"NaN", b'"\\ud800"', b"..",
    b"/etc/passwd", b"\n", b"&a ", b"*a", b"<<: ", b"!!int ", b"{{", b"{%",
]  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_what_was_once_a_finding_is_none(target: str) -> None:
    for path in sorted((KEPT / target).glob("*")):
        check(target, path.read_bytes())
    for seed in SEEDS[target]:
        check(target, seed)


def test_every_target_has_seeds_and_every_kept_input_a_target() -> None:
    assert set(SEEDS) == set(TARGETS)
    assert {p.name for p in KEPT.iterdir()} <= set(TARGETS)
    assert all(p.stat().st_size < 1 << 16 for p in KEPT.rglob("*") if p.is_file())


@pytest.mark.parametrize("target", TARGETS)
def test_changed_inputs_raise_nothing_else(target: str) -> None:
    @FAST
    @given(
        st.sampled_from(SEEDS[target]),
        st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(TOKENS) | st.binary(max_size=6)),
                 max_size=4),
    )  # fmt: skip
    def changed(seed: bytes, edits: list[tuple[float, int, bytes]]) -> None:
        for where, removed, put in edits:
            at = int(where * len(seed))
            seed = seed[:at] + put + seed[at + removed :]
        check(target, seed)

    changed()


@FAST
@given(st.text(max_size=400), st.lists(st.text(max_size=20), min_size=1, max_size=6), st.booleans())
def test_an_answer_is_read_out_of_any_text(reply: str, options: list[str], truncated: bool) -> None:
    from aloe.prompting.extract import extract

    shown = dict(zip("ABCDEF", options, strict=False))
    assert extract(reply, shown, truncated=truncated).letter in (None, *shown)
