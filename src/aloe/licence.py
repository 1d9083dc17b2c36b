"""Licence algebra: may a release under licence L be made from these inputs?

A licence is read as the duties it puts on whoever passes the work on. A release may add duties, never lose one, so L
must carry every duty of every input (a model is treated as derived from its base and from every row it was trained
on, the careful reading). Share-alike goes further: the result must be under that licence, or one its text names as
compatible. Two licences are stated together as `a AND b`. This is arithmetic over well-known licences, not legal
advice; an unknown licence is an error, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aloe.errors import AloeError

ATTRIBUTION = "attribution"
NON_COMMERCIAL = "non-commercial use only"
NO_DERIVATIVES = "no derivatives"


@dataclass(frozen=True)
class Licence:
    """`duties` pass on to derivatives; `share_alike` lists the ids a derivative may be under (empty: any)."""

    id: str
    duties: frozenset[str] = frozenset()
    share_alike: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Source:
    """An input of a release: its name in the recipe and what it states as its licence."""

    name: str
    licence: str


@dataclass(frozen=True)
class Conflict:
    """Why a source can't go into the release."""

    source: Source
    reason: str


def _vendor(name: str, *more: str) -> Licence:
    """A model vendor's own licence: its use policy and notice travel with every derivative."""
    return Licence(name, frozenset({ATTRIBUTION, f"the {name} terms of use", *more}))


_BY_SA = frozenset({"cc-by-sa-4.0", "gpl-3.0"})
_BY_NC_SA = frozenset({"cc-by-nc-sa-4.0"})
_ALL = (
    *(Licence(name) for name in ("cc0-1.0", "pddl", "unlicense", "public-domain")),
    *(
        Licence(name, frozenset({ATTRIBUTION}))
        for name in ("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-3.0", "cc-by-4.0", "odc-by")
    ),
    Licence("cdla-permissive-2.0", frozenset({ATTRIBUTION})),
    Licence("cc-by-sa-3.0", frozenset({ATTRIBUTION}), _BY_SA | {"cc-by-sa-3.0"}),
    Licence("cc-by-sa-4.0", frozenset({ATTRIBUTION}), _BY_SA),
    Licence("gpl-3.0", frozenset({ATTRIBUTION}), frozenset({"gpl-3.0"})),
    Licence("cc-by-nc-3.0", frozenset({ATTRIBUTION, NON_COMMERCIAL})),
    Licence("cc-by-nc-4.0", frozenset({ATTRIBUTION, NON_COMMERCIAL})),
    Licence("cc-by-nc-sa-3.0", frozenset({ATTRIBUTION, NON_COMMERCIAL}), _BY_NC_SA | {"cc-by-nc-sa-3.0"}),
    Licence("cc-by-nc-sa-4.0", frozenset({ATTRIBUTION, NON_COMMERCIAL}), _BY_NC_SA),
    Licence("cc-by-nd-4.0", frozenset({ATTRIBUTION, NO_DERIVATIVES})),
    Licence("cc-by-nc-nd-4.0", frozenset({ATTRIBUTION, NON_COMMERCIAL, NO_DERIVATIVES})),
    *(_vendor(name) for name in ("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "gemma", "qwen")),
    _vendor("qwen-research", NON_COMMERCIAL),
)
LICENCES: dict[str, Licence] = {licence.id: licence for licence in _ALL}


def normalise(text: str) -> str:
    """`CC BY-NC 4.0`, `Apache 2.0` and the like as this module's ids; what isn't known comes back lower-cased."""
    name = re.sub(r"[\s_]+", "-", text.strip().lower())
    name = re.sub(r"^cc-?0(-1\.0)?$", "cc0-1.0", name)
    name = re.sub(r"^apache(-license)?-?(2|2\.0)$", "apache-2.0", name)
    return {"mit-license": "mit", "tongyi-qianwen": "qwen", "llama-3": "llama3", "llama-3.1": "llama3.1"}.get(
        name, name
    )


def parts(expression: str) -> list[str]:
    """The ids of `a AND b`, normalised, sorted, each once."""
    return sorted({normalise(p) for p in re.split(r"\s+AND\s+", expression.strip(), flags=re.IGNORECASE) if p})


def known(expression: str) -> bool:
    """Whether every part of `a AND b` is a licence this module can reason about."""
    return bool(parts(expression)) and all(p in LICENCES for p in parts(expression))


def conflicts(release: str, inputs: Iterable[Source]) -> list[Conflict]:
    """Every input that a release under `release` may not be made from, in order; empty means it may be."""
    mine = parts(release)
    unknown = [p for p in mine if p not in LICENCES]
    if unknown or not mine:
        raise AloeError(
            f"the release licence {release!r} is not known here",
            where="licence",
            fix=f"use one of {', '.join(sorted(LICENCES))}, or several joined by AND",
        )
    held = frozenset[str]().union(*(LICENCES[p].duties for p in mine))
    found = []
    for source in inputs:
        found += [
            Conflict(source, reason) for p in parts(source.licence) or ["unknown"] for reason in _lost(p, mine, held)
        ]
    return found


def _lost(theirs: str, mine: Sequence[str], held: frozenset[str]) -> list[str]:
    """What a release under `mine` (duties `held`) would lose of an input under `theirs`."""
    if theirs not in LICENCES:
        return [f"its licence {theirs!r} is not known, so nobody can say what it allows"]
    licence = LICENCES[theirs]
    if NO_DERIVATIVES in licence.duties:
        return [f"{theirs} allows no derivatives"]
    reasons = [f"{theirs} requires: {duty}" for duty in sorted(licence.duties - held)]
    outside = [p for p in mine if p not in licence.share_alike]
    if licence.share_alike and outside:
        reasons.append(f"{theirs} is share-alike: derivatives must be under {' or '.join(sorted(licence.share_alike))}")
    return reasons


def check(release: str, inputs: Sequence[Source]) -> None:
    """Raise AloeError naming every offending source unless the release may be made; say which licence would do."""
    found = conflicts(release, inputs)
    if not found:
        return
    named = "; ".join(f"{c.source.name}: {c.reason}" for c in found)
    try:
        fix = f"release under {strictest([s.licence for s in inputs])!r}, or remove the source"
    except AloeError:
        fix = "remove or replace the source, or state its licence where it is declared: no licence fits all inputs"
    raise AloeError(f"a release under {release!r} is looser than its inputs allow: {named}", where="licence", fix=fix)


def strictest(licences: Sequence[str]) -> str:
    """The loosest licence (or `a AND b`) that a work made from all of these may be under.

    Raises:
        AloeError: there is none, as two share-alike licences clash or one is unknown or forbids derivatives.
    """
    inputs = [Source(name, name) for name in licences]
    ids = sorted({p for name in licences for p in parts(name)})
    singles = [p for p in ids if p in LICENCES] or (["cc0-1.0"] if not ids else [])
    singles.sort(key=lambda p: (len(LICENCES[p].duties), bool(LICENCES[p].share_alike), p))
    demanding = [p for p in singles if LICENCES[p].duties - {ATTRIBUTION}]
    for candidate in [*singles, " AND ".join(demanding)]:
        if candidate and not conflicts(candidate, inputs):
            return candidate
    raise AloeError(
        f"no licence satisfies all of {', '.join(ids)}",
        where="licence",
        fix="replace the input whose share-alike, no-derivatives or unknown licence clashes with the others",
    )
