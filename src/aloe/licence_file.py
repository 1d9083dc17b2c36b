"""Reading a table of licences: the packaged one (licences.yaml), and a user's own over it.

A table decides what may be released, so it is read strictly: an unknown field, an entry that stands twice, a compatible
licence that doesn't exist or a spelling that two entries claim is an error with file, entry and field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aloe.errors import AloeError
from aloe.json_file import read_bounded
from aloe.yaml_text import MAX_BYTES, parse

ATTRIBUTION = "attribution"
NON_COMMERCIAL = "non-commercial use only"
NO_DERIVATIVES = "no derivatives"
NO_REDISTRIBUTION = "no redistribution"
ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
SPDX = re.compile(r"[A-Za-z0-9.-]+")  # section 10.1 of the SPDX specification: idstring
TEXTS, LISTS = ("spdx", "hub", "url", "note"), ("duties", "share_alike", "never_under", "outputs_into", "aliases")
FIELDS = (*TEXTS, *LISTS, "outputs")


@dataclass(frozen=True)
class Licence:
    """`duties` pass on to derivatives; `share_alike` lists the ids a derivative may be under (empty: any), and
    `never_under` those it can't be under. `outputs` are the duties on what a model under it writes (None: as if
    derived), which may improve only models under `outputs_into` (empty: any)."""

    id: str
    duties: frozenset[str] = frozenset()
    share_alike: frozenset[str] = frozenset()
    spdx: str = ""
    never_under: frozenset[str] = frozenset()
    outputs: frozenset[str] | None = None
    outputs_into: frozenset[str] = frozenset()
    hub: str = ""
    aliases: frozenset[str] = frozenset()
    url: str = ""
    note: str = ""

    @property
    def forbids(self) -> bool:
        """Whether nothing that is made from it may be released at all."""
        return bool(self.duties & {NO_DERIVATIVES, NO_REDISTRIBUTION})


@dataclass(frozen=True)
class Table:
    """Licences by id, and every spelling that leads to one."""

    licences: Mapping[str, Licence]
    spellings: Mapping[str, str] = field(default_factory=dict)


def spelled(text: str) -> str:
    """`CC BY-NC 4.0` as `cc-by-nc-4.0`: lower case, spaces and underscores as hyphens."""
    return re.sub(r"[\s_]+", "-", text.strip().lower())


def read_table(path: Path, under: Table | None = None) -> Table:
    """A YAML file of licences, over those of `under`: an entry replaces the one of its id.

    Raises:
        AloeError: no such file, or a mistake in it, with file, line, entry and field.
    """
    return parse_table(read_bounded(path, MAX_BYTES, "name a YAML file of licences"), str(path), under)


def parse_table(text: str, where: str, under: Table | None = None) -> Table:
    """As `read_table`, of a file's text; `where` names it in errors."""
    values, lines = parse(text, where)
    if values is None:
        return under or Table({})
    if not isinstance(values, dict):
        raise AloeError("a table of licences is a map from ids to entries", where=where, fix="see docs/licences.md")
    at = {str(path[0]): line for path, line in lines.items() if len(path) == 1}
    return build_table(values, under, lambda entry: f"{where}:{at.get(entry, 1)}")


def build_table(values: Any, under: Table | None = None, place: Any = None) -> Table:
    """A table from plain values ({id: {field: value}}), over those of `under`. `place` says where an entry stands.

    Raises:
        AloeError: with the entry and the field.
    """
    at = place or (lambda entry: f"licences.{entry}")
    values = {} if values is None else values
    if not isinstance(values, Mapping):
        raise AloeError(
            "a table of licences is a map from ids to entries", where="licences", fix="see docs/licences.md"
        )
    own = {str(name): _entry(str(name), body, at(str(name))) for name, body in values.items()}
    licences = {**(under.licences if under else {}), **own}
    for name in own:
        _check_ids(licences[name], licences, at(name))
    return Table(licences, _spellings(licences, own, at))


def own_entries(found: Table, under: Table) -> list[Licence]:
    """The entries of a table that are not those of the one below it."""
    return [one for name, one in found.licences.items() if under.licences.get(name) is not one]


def find_table(value: str, near: Path | None) -> Path:
    """The file of a table, from the working directory or, where it isn't there, from `near` (the recipe's folder).

    Raises:
        AloeError: there is no such file.
    """
    for base in (Path.cwd(), near):
        if base is not None and (base / value).is_file():
            return base / value
    raise AloeError("no such table of licences", where=value, fix="name a YAML file; docs/licences.md has the form")


def as_values(licences: Iterable[Licence]) -> dict[str, dict[str, Any]]:
    """The plain values of entries, as a file holds them: what is empty is left out."""
    return {
        one.id: {
            k: sorted(v) if isinstance(v, frozenset) else v
            for k, v in ((k, getattr(one, k)) for k in FIELDS)
            if v or (k == "outputs" and v is not None)
        }
        for one in licences
    }


def _entry(name: str, body: Any, where: str) -> Licence:
    if not ID.fullmatch(name):
        fix = "use lower-case letters, digits, '.', '-' and '+'"
        raise AloeError(f"{name!r} is no licence id", where=where, fix=fix)
    if not isinstance(body, Mapping):
        raise AloeError(f"{name}: an entry is a map of fields", where=where, fix=f"fields: {', '.join(FIELDS)}")
    if unknown := sorted(str(k) for k in body if k not in FIELDS):
        raise AloeError(f"{name}: unknown field {unknown[0]!r}", where=where, fix=f"fields: {', '.join(FIELDS)}")
    if not body.get("spdx"):
        fix = "give the SPDX identifier, or one of your own that begins with LicenseRef-"
        raise AloeError(f"{name}: no spdx", where=where, fix=fix)
    values: dict[str, Any] = {k: _text(name, k, body[k], where) for k in TEXTS if k in body}
    values |= {k: _texts(name, k, body[k], where) for k in (*LISTS, "outputs") if k in body}
    found = Licence(name, **values)
    if not SPDX.fullmatch(found.spdx):
        fix = "one identifier of letters, digits, '.' and '-'; expressions are written where a licence is stated"
        raise AloeError(f"{name}: spdx {found.spdx!r} is no identifier", where=where, fix=fix)
    if found.url and not re.fullmatch(r"https?://\S+", found.url):
        raise AloeError(f"{name}: url {found.url!r} is no address", where=where, fix="begin it with https://")
    return replace(found, aliases=frozenset(spelled(a) for a in found.aliases))


def _text(name: str, key: str, value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise AloeError(f"{name}: {key} is a text, found {value!r}", where=where, fix="quote it")
    return value.strip()


def _texts(name: str, key: str, value: Any, where: str) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
        raise AloeError(f"{name}: {key} is a list of texts, found {value!r}", where=where, fix=f"{key}: [a, b]")
    return frozenset(v.strip() for v in value)


def _check_ids(one: Licence, licences: Mapping[str, Licence], where: str) -> None:
    """Compatible licences must be entries, and a share-alike licence is compatible with itself."""
    for key in ("share_alike", "never_under", "outputs_into"):
        if missing := sorted(getattr(one, key) - licences.keys()):
            what = f"{one.id}: {key} names {missing[0]!r}, which is no entry"
            raise AloeError(what, where=where, fix="add an entry for it, or leave it out")
    if one.share_alike and one.id not in one.share_alike:
        raise AloeError(f"{one.id}: share_alike lacks {one.id!r} itself", where=where, fix="add it")


def _spellings(licences: Mapping[str, Licence], own: Mapping[str, Licence], at: Any) -> dict[str, str]:
    """Every spelling of every entry. Ids come first; two entries may not claim one spelling besides."""
    found = {name: name for name in licences}
    for name, one in licences.items():
        for text in {spelled(one.spdx), spelled(one.hub), *one.aliases} - {""}:
            if found.setdefault(text, name) != name and text not in licences:
                other = found[text]
                entry = name if name in own else other
                what = f"{entry}: {text!r} is a spelling of {other if entry == name else name}, too"
                raise AloeError(what, where=at(entry), fix="leave it out of one of them")
            if text in licences and text != name and text in one.aliases:
                what = f"{name}: alias {text!r} is the id of another entry"
                raise AloeError(what, where=at(name), fix="leave it out")
    return found
