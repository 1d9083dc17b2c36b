"""The licence algebra: duties add up, are never lost, and conflicts name the source."""

from __future__ import annotations

import pytest

from aloe.errors import AloeError
from aloe.licence import LICENCES, Source, check, conflicts, known, normalise, parts, strictest


def sources(*licences: str) -> list[Source]:
    return [Source(f"set-{i}", licence) for i, licence in enumerate(licences)]


@pytest.mark.parametrize(
    ("release", "inputs"),
    [
        ("cc0-1.0", ["cc0-1.0"]),
        ("cc0-1.0", []),
        ("apache-2.0", ["cc0-1.0", "mit", "cc-by-4.0", "apache-2.0"]),
        ("cc-by-nc-4.0", ["apache-2.0", "cc-by-nc-4.0", "cc0-1.0"]),
        ("cc-by-sa-4.0", ["cc-by-sa-4.0", "cc-by-4.0", "apache-2.0"]),
        ("gpl-3.0", ["cc-by-sa-4.0"]),
        ("cc-by-nc-sa-4.0", ["cc-by-nc-4.0", "cc-by-nc-sa-4.0"]),
        ("llama3.1", ["llama3.1", "apache-2.0"]),
        ("cc-by-nc-4.0 AND llama3.1", ["llama3.1", "cc-by-nc-4.0"]),
        ("CC BY-NC 4.0", ["Apache 2.0"]),
    ],
)
def test_allowed(release: str, inputs: list[str]) -> None:
    assert conflicts(release, sources(*inputs)) == []
    check(release, sources(*inputs))


@pytest.mark.parametrize(
    ("release", "bad", "reason"),
    [
        ("cc0-1.0", "cc-by-4.0", "attribution"),
        ("apache-2.0", "cc-by-nc-4.0", "non-commercial"),
        ("mit", "llama3", "llama3 terms of use"),
        ("cc-by-nc-4.0", "llama3.1", "llama3.1 terms of use"),
        ("llama3", "llama3.1", "llama3.1 terms of use"),
        ("apache-2.0", "cc-by-sa-4.0", "share-alike"),
        ("cc-by-nc-sa-4.0", "cc-by-sa-4.0", "share-alike"),
        ("cc-by-sa-4.0 AND llama3", "cc-by-sa-4.0", "share-alike"),
        ("cc-by-nc-4.0", "cc-by-nc-nd-4.0", "no derivatives"),
        ("cc-by-nc-4.0", "unknown", "not known"),
        ("cc-by-nc-4.0", "", "not known"),
    ],
)
def test_conflicts_name_the_source_and_the_reason(release: str, bad: str, reason: str) -> None:
    with pytest.raises(AloeError, match="culprit") as caught:
        check(release, [Source("innocent", "cc0-1.0"), Source("culprit", bad)])
    assert reason in str(caught.value)
    assert "innocent" not in str(caught.value)


def test_every_conflict_is_named_at_once_with_a_licence_that_would_do() -> None:
    with pytest.raises(AloeError, match="base") as caught:
        check("mit", [Source("base", "llama3"), Source("rows", "cc-by-nc-4.0")])
    assert "rows" in str(caught.value)
    assert "'cc-by-nc-4.0 AND llama3'" in str(caught.value.fix)


def test_an_unknown_release_licence_lists_the_known_ones() -> None:
    with pytest.raises(AloeError, match="not known") as caught:
        check("beerware", [])
    assert "apache-2.0" in str(caught.value.fix)


def test_strictest() -> None:
    assert strictest([]) == "cc0-1.0"
    assert strictest(["cc0-1.0", "apache-2.0"]) == "apache-2.0"
    assert strictest(["apache-2.0", "cc-by-nc-4.0"]) == "cc-by-nc-4.0"
    assert strictest(["mit", "cc-by-sa-4.0"]) == "cc-by-sa-4.0"
    assert strictest(["llama3", "gemma"]) == "gemma AND llama3"
    for clash in (["cc-by-sa-4.0", "cc-by-nc-4.0"], ["unknown"], ["cc-by-nd-4.0"]):
        with pytest.raises(AloeError, match="no licence satisfies"):
            strictest(clash)


@pytest.mark.parametrize("name", sorted(LICENCES))
def test_a_licence_allows_its_own_derivatives_unless_it_forbids_them_or_moves_on(name: str) -> None:
    own = conflicts(name, sources(name))
    if "-nd-" in name:
        assert own
    else:
        assert own == []


@pytest.mark.parametrize("name", sorted(n for n in LICENCES if "-nd-" not in n))
def test_strictest_is_always_allowed(name: str) -> None:
    inputs = [name, "apache-2.0", "cc0-1.0"]
    assert conflicts(strictest(inputs), sources(*inputs)) == []


def test_names() -> None:
    assert normalise("CC BY-NC 4.0") == "cc-by-nc-4.0"
    assert normalise("CC0") == "cc0-1.0"
    assert normalise("Apache 2.0") == normalise("apache-license-2.0") == "apache-2.0"
    assert parts("llama3 AND cc-by-nc-4.0") == ["cc-by-nc-4.0", "llama3"]
    assert known("cc-by-nc-4.0 AND llama3")
    assert not known("cc-by-nc-4.0 AND mystery")
    assert not known("")
