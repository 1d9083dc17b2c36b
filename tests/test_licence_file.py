"""The table of licences: the packaged one is sound, and mistakes in a user's own name file, entry and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from aloe.errors import AloeError
from aloe.licence import LICENCES, normalise, packaged
from aloe.licence_file import as_values, build_table, own_entries, parse_table, read_table


def test_spdx_identifiers_are_spelled_as_spdx_does() -> None:
    spdx = pytest.importorskip("packaging.licenses._spdx")
    official = {entry["id"] for entry in spdx.LICENSES.values()}
    for one in LICENCES.values():
        assert one.spdx in official or one.spdx.startswith("LicenseRef-"), one.spdx
        assert not one.spdx.startswith("LicenseRef-") or one.id not in spdx.LICENSES, one.id


def test_every_spelling_leads_home() -> None:
    for name, one in LICENCES.items():
        for text in (name, one.spdx, one.hub or name, *one.aliases):
            assert normalise(text) == name
    assert normalise("tongyi-qianwen") == "qwen"
    assert normalise("Llama 3.1") == "llama3.1"
    assert normalise("GPL-3.0-or-later") == "gpl-3.0"


def test_a_table_as_values_is_the_same_table() -> None:
    again = build_table(as_values(packaged().licences.values()))
    assert again == packaged()


def test_entries_are_added_and_replaced(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(
        "clinic: {spdx: LicenseRef-Clinic, duties: [a visit], share_alike: [clinic, gpl-3.0]}\n"
        "mit: {spdx: MIT, outputs: [a postcard]}\n"
    )
    found = read_table(file, packaged())
    assert [one.id for one in own_entries(found, packaged())] == ["mit", "clinic"]
    assert found.licences["mit"].duties == frozenset()
    assert found.licences["mit"].outputs == frozenset({"a postcard"})
    assert found.spellings["licenseref-clinic"] == "clinic"
    assert parse_table("", "empty.yaml", packaged()) == packaged()


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("clinic: {duties: [a]}", 1, "clinic: no spdx"),
        ("clinic: {spdx: X, dutys: [a]}", 1, "clinic: unknown field 'dutys'"),
        ("\nclinic: {spdx: X, duties: a}", 2, "clinic: duties is a list of texts, found 'a'"),
        ("clinic: {spdx: X, url: elsewhere}", 1, "clinic: url 'elsewhere' is no address"),
        ("clinic: {spdx: X Y}", 1, "clinic: spdx 'X Y' is no identifier"),
        ("clinic: {spdx: 3}", 1, "clinic: spdx is a text, found 3"),
        ("clinic: free", 1, "clinic: an entry is a map"),
        ("Clinic A: {spdx: X}", 1, "'Clinic A' is no licence id"),
        ("clinic: {spdx: X, share_alike: [clinic, nowhere]}", 1, "clinic: share_alike names 'nowhere'"),
        ("clinic: {spdx: X, share_alike: [mit]}", 1, "clinic: share_alike lacks 'clinic' itself"),
        ("clinic: {spdx: X, aliases: [Apache 2]}", 1, "'apache-2' is a spelling of apache-2.0, too"),
        ("clinic: {spdx: X, aliases: [mit]}", 1, "clinic: alias 'mit' is the id of another entry"),
        ("clinic: {spdx: MIT}", 1, None),
        ("a: {spdx: X}\na: {spdx: Y}", 2, "'a' stands twice"),
        ("a: {spdx: X, spdx: Y}", 1, "'spdx' stands twice"),
        ("a: {spdx: [", None, "node content"),
        ("[a, b]", None, "a table of licences is a map"),
    ],
)
def test_mistakes_name_file_entry_and_field(tmp_path: Path, text: str, line: int | None, message: str | None) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    if message is None:  # an SPDX identifier that is the id of another entry leads to that one
        assert read_table(file, packaged()).spellings["mit"] == "mit"
        return
    with pytest.raises(AloeError, match=message) as caught:
        read_table(file, packaged())
    assert str(caught.value.where).startswith(f"{file}:{line}" if line else str(file))
    assert caught.value.fix
