"""`aloe push`: a release or a data set to a hub or a folder, with a dry run that shows what would be sent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from aloe.errors import AloeError

SHOWN = 12  # files listed by a dry run, the largest first


def push(
    release: Annotated[Path, typer.Argument(help="What `release` or a data step wrote.")],
    target: Annotated[str, typer.Argument(help="organisation/name on the hub, or a folder: ./shared/model.")],
    public: Annotated[bool, typer.Option("--public", help="Make the repository public; else it is private.")] = False,
    message: Annotated[str, typer.Option(help="Of the commit.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent; send nothing.")] = False,
) -> None:
    """Give a release or a data set away: verified first, compared file by file after it arrived."""
    from aloe.release.push import contents, push_folder, push_hub, repo_type
    from aloe.release.push_data import left_here

    folder = release.resolve()
    place = folder_of(target)
    if dry_run:
        is_set, visible = repo_type(folder) == "dataset", "public" if public else "private"
        kind = "folder" if place is not None else f"{visible} {'dataset ' if is_set else ''}repository"
        for line in told(contents(folder), f"{kind} {target}", left_here(folder) if is_set else []):
            print(line)
        return
    if place is not None:
        if public:
            raise AloeError("a folder is neither public nor private", where="--public", fix="leave it out")
        sent = push_folder(folder, place)
    else:
        sent = push_hub(folder, target, public=public, message=message or f"Release {folder.name}")
    at = f" at revision {sent.revision}" if sent.revision else ""
    print(f"{sent.files} files, {sent.size / 1e6:.1f} MB, are at {sent.place}{at}; each was compared after it arrived")


def folder_of(target: str) -> Path | None:
    """The folder that a target means, or None for an id on the hub."""
    if target.startswith(("./", "../", "/", "~", "file://")):
        return Path(target.removeprefix("file://")).expanduser().resolve()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", target):
        fix = "write organisation/name for the hub, or a folder that begins with ./ or /"
        raise AloeError("is neither an id on the hub nor a folder", where=target, fix=fix)
    return None


def told(listed: list[tuple[str, int]], place: str, left: list[str]) -> list[str]:
    """A dry run's lines: what would go to `place`, and what would be `left` here."""
    total = sum(size for _, size in listed)
    lines = [f"would send {len(listed)} files, {total / 1e6:.1f} MB, to the {place}:"]
    largest = sorted(listed, key=lambda f: (-f[1], f[0]))
    lines += [f"  {size / 1e6:10.3f} MB  {name}" for name, size in largest[:SHOWN]]
    rest = largest[SHOWN:]
    lines += [f"  {sum(s for _, s in rest) / 1e6:10.3f} MB  in {len(rest)} more"] if rest else []
    lines += [f"stays here: {', '.join(left)}"] if left else []
    return [*lines, "nothing was sent"]
