"""`aloe licences`: the table that releases are checked against, and a check of licences by name.

The same arithmetic as `release`, without a recipe: to find out whether a base model and data go together before
anything is trained. Not legal advice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aloe.errors import AloeError
from aloe.licence import Source, Table, conflicts, fitting, known, packaged, table
from aloe.licence_file import as_values, own_entries, read_table
from aloe.terminal import json_text

TableFile = Annotated[Path | None, typer.Option("--table", help="YAML file of licences of your own, over the others.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
UNFIT = 1  # exit code: nothing fits, or the release named doesn't


def list_licences(
    spdx: Annotated[bool, typer.Option("--spdx", help="Print SPDX identifiers, too.")] = False,
    table_file: TableFile = None,
    json_out: AsJson = False,
) -> None:
    """List the licences with their duties."""
    using = _using(table_file)
    if json_out:
        print(json_text(as_values(using.licences.values()), indent=1))
        return
    own = {one.id for one in own_entries(using, packaged())}
    ids = max(len(name) for name in using.licences)
    codes = max(len(one.spdx) for one in using.licences.values()) if spdx else 0
    for name, one in using.licences.items():
        told = [", ".join(sorted(one.duties)) or "no duties"]
        told += [f"derivatives under {' or '.join(sorted(one.share_alike))}"] if one.share_alike else []
        told += ["your own"] if name in own else []
        code = f"{one.spdx:<{codes}}  " if spdx else ""
        print(f"{name:<{ids}}  {code}{'; '.join(told)}")


def check_licences(
    licences: Annotated[list[str], typer.Argument(help="Licences of base models and data, or expressions of them.")],
    release: Annotated[str | None, typer.Option(help="The licence to release under. Default: look for one.")] = None,
    writer: Annotated[
        list[str] | None, typer.Option(help="Licence of a model that wrote rows. May be repeated.")
    ] = None,
    table_file: TableFile = None,
    json_out: AsJson = False,
) -> None:
    """What a work made from all of these may be released under; exit code 1 where nothing fits."""
    using = _using(table_file)
    sources = [Source(name, name) for name in licences]
    sources += [Source(f"{name} (writer)", name, "writer") for name in writer or []]
    why: list[str] = []
    fits: str | None = release
    if release is not None:
        why = [f"{c.source.name}: {c.reason}" for c in conflicts(release, sources, using)]
    else:
        try:
            fits = fitting(sources, using)
        except AloeError:
            fits, why = None, _clashes(sources, using)
    ok = fits is not None and not why
    if json_out:
        told: dict[str, Any] = {"allowed": ok, "release": fits, "conflicts": why}
        print(json_text(told, indent=1))
    elif ok:
        print(fits if release is None else f"a release under {release} may be made from these")
    else:
        head = f"a release under {release} may not be made from these" if release else "no licence fits all of these"
        print("\n".join([head, *(f"  {line}" for line in why)]))
    if not ok:
        raise SystemExit(UNFIT)


def _clashes(sources: list[Source], using: Table) -> list[str]:
    """Why each of the licences named can't be the release's."""
    names = dict.fromkeys(s.licence for s in sources)
    found = {n: conflicts(n, sources, using) for n in names if known(n, using)}
    lines = [f"under {n}: {c.source.name}: {c.reason}" for n, cs in found.items() for c in cs]
    return lines + [f"{n}: is not known here" for n in names if n not in found]


def _using(file: Path | None) -> Table:
    return table() if file is None else read_table(file, table())
