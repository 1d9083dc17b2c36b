"""Which files make up a set of rows: one file, a folder of files, an artifact, or a `datasets` folder with splits.

Layouts read (as the `datasets` library writes and the hub holds them):

- `save_to_disk`: `state.json`, `dataset_info.json` and `*.arrow`; of several splits, `dataset_dict.json` above them;
- a hub repository: `README.md` with `configs` in its YAML head, or files and folders named by split
  (`data/train-00000-of-00001.parquet`, `validation.jsonl`).

Training and test rows are never put together silently: of several splits one must be named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aloe.data.files import SUFFIXES, holds_rows
from aloe.digests import check_links
from aloe.errors import AloeError
from aloe.json_file import read_json
from aloe.manifest_file import check_beside
from aloe.yaml_text import load_yaml

# The keywords by which `datasets` finds splits in file names; https://huggingface.co/docs/datasets/repository_structure
_KEYWORDS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "validation": "validation", "valid": "validation", "dev": "validation", "val": "validation",
}  # fmt: skip
_IGNORED = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "manifest.json"})
Splits = dict[str, list[Path]]


def files_of(path: Path, split: str | None = None) -> list[Path]:
    """The files to read, in order, for a file or folder and (of a folder with splits) one split of it.

    `split` is a split's name, `config/split` where a hub repository has several configurations, or `config` where
    that has one split.

    Raises:
        AloeError: nothing to read, a split that isn't there, or several of which none is named.
    """
    if not path.is_dir():
        if split is not None:
            raise AloeError(
                f"a single file has no split {split!r}", where=str(path), fix="leave `split` out, or name the folder"
            )
        return [path]
    check_beside(path)
    if (path / "rows.parquet").exists():
        splits: Splits = {"": [path / "rows.parquet"]}
    elif (path / "manifest.json").exists():
        raise AloeError("this artifact holds no rows", where=str(path), fix="name a step that makes rows")
    else:
        splits = _splits(path)
    found = _chosen(splits, split, path)
    check_links(found, path)
    return found


def split_names(path: Path) -> list[str]:
    """Names of the splits of a folder; none for a file, an artifact and a folder of files without splits."""
    if not path.is_dir() or (path / "rows.parquet").exists() or (path / "manifest.json").exists():
        return []
    return sorted(name for name in _splits(path) if name)


def _splits(path: Path) -> Splits:
    return _saved(path) or _configured(path) or _by_name(path)


def _chosen(splits: Splits, split: str | None, path: Path) -> list[Path]:
    names = sorted(n for n in splits if n)
    if split is None and len(splits) == 1:
        found = next(iter(splits.values()))
    elif split is None:
        there = ", ".join(names) + (", and files without a split in their name" if "" in splits else "")
        raise AloeError(
            f"this folder has several splits and none is named: {there}",
            where=str(path),
            fix=f"name one (split: {'train' if 'train' in names else names[0]}), or a file of the folder",
        )
    else:
        matches = [n for n in names if split in (n, n.split("/")[0], n.split("/")[-1])]
        matches = [split] if split in names else matches or [n for n in names if n == _KEYWORDS.get(split)]
        if len(matches) != 1:
            what = f"split {split!r} is in several configurations" if matches else f"no split {split!r} in this folder"
            raise AloeError(
                what, where=str(path), fix=f"use one of {', '.join(matches or names) or 'its files by name'}"
            )
        found = splits[matches[0]]
    if not found:
        raise AloeError("the split's files are not here", where=str(path), fix="fetch the whole repository")
    return found


# ---------------------------------------------------------------------------------------------- save_to_disk


def _saved(path: Path) -> Splits:
    listed = path / "dataset_dict.json"
    if listed.exists():
        names = _read_json(listed).get("splits")
        if not isinstance(names, list):
            raise AloeError("no list of splits", where=str(listed), fix="save the data set again")
        return {str(n): _arrow_files(path / _inside(str(n), listed)) for n in names}
    return {"": _arrow_files(path)} if (path / "state.json").exists() else {}


def _arrow_files(path: Path) -> list[Path]:
    state = _read_json(path / "state.json")
    stated = state.get("_data_files")
    named = [e.get("filename") for e in stated if isinstance(e, Mapping)] if isinstance(stated, list) else []
    files = [path / _inside(str(n), path / "state.json") for n in named] or sorted(path.glob("*.arrow"))
    for file in files:
        if not file.exists():
            raise AloeError("a file of the saved data set is missing", where=str(file), fix="save or copy it again")
    return files


def _inside(name: str, where: Path) -> str:
    """A name that stays in its folder."""
    if name in ("", ".", "..") or name != Path(name).name:
        raise AloeError(f"{name!r} leads out of the folder", where=str(where), fix="save the data set again")
    return name


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise AloeError("a file of the saved data set is missing", where=str(path), fix="save it again")
    value = read_json(path, fix="save the data set again")
    return value if isinstance(value, dict) else {}


# ---------------------------------------------------------------------------------------------- hub repositories


def _configured(path: Path) -> Splits:
    """Splits by the `configs` of a repository's README; empty when it has none."""
    configs = _card(path).get("configs")
    if not isinstance(configs, list) or not configs:
        return {}
    several = len(configs) > 1
    splits: Splits = {}
    for config in configs:
        if not isinstance(config, Mapping) or not config.get("data_files"):
            continue
        name = str(config.get("config_name", "default"))
        for split, patterns in _data_files(config["data_files"]):
            files = sorted({f for p in patterns for f in _matching(path, p, config.get("data_dir")) if f.is_file()})
            splits[f"{name}/{split}" if several else split] = files
    return splits


def _card(path: Path) -> Mapping[str, Any]:
    """The YAML head of `README.md`."""
    readme = path / "README.md"
    if not readme.is_file():
        return {}
    head = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---", readme.read_text("utf-8", errors="replace"), re.DOTALL)
    try:
        value = load_yaml(head[1], str(readme), repeats=True) if head else {}
    except AloeError as cause:
        what, fix = f"the head is not valid YAML ({cause.what})", "repair it, or name a file of the folder"
        raise AloeError(what, where=cause.where, fix=fix) from None
    return value if isinstance(value, Mapping) else {}


def _data_files(value: Any) -> Iterable[tuple[str, list[str]]]:
    """(split, patterns) of a `data_files` entry: one pattern, a list of them, a map, or a list of split and path."""
    if isinstance(value, str):
        return [("train", [value])]
    if isinstance(value, Mapping):
        return [(str(k), _patterns(v)) for k, v in value.items()]
    if not isinstance(value, list):
        return []
    if all(isinstance(v, Mapping) for v in value):
        return [(str(v.get("split", "train")), _patterns(v["path"])) for v in value if v.get("path")]
    return [("train", _patterns(value))]


def _patterns(value: Any) -> list[str]:
    return [str(p) for p in value] if isinstance(value, list) else [str(value)]


def _matching(path: Path, pattern: str, data_dir: Any) -> Iterable[Path]:
    base = path / str(data_dir) if isinstance(data_dir, str) else path
    inside = pattern.strip().removeprefix("./")
    below = Path(str(data_dir or ""))
    if not inside or Path(inside).is_absolute() or below.is_absolute() or ".." in (*Path(inside).parts, *below.parts):
        raise AloeError(f"the pattern {pattern!r} leaves the folder", where=str(path / "README.md"), fix="repair it")
    try:
        return list(base.glob(inside))
    except (ValueError, NotImplementedError) as cause:
        where = str(path / "README.md")
        raise AloeError(f"the pattern {pattern!r} can't be read ({cause})", where=where, fix="repair it") from None


# ---------------------------------------------------------------------------------------------- files by name


def _by_name(path: Path) -> Splits:
    found = sorted(p for p in path.rglob("*") if p.is_file() and holds_rows(p) and p.name not in _IGNORED)
    if not found:
        raise AloeError("no data files in this folder", where=str(path), fix="put one of " + ", ".join(SUFFIXES))
    splits: Splits = {}
    for file in found:
        splits.setdefault(split_of(file.relative_to(path)), []).append(file)
    return splits


def split_of(file: Path) -> str:
    """The split that a file's name says (`data/train-00000-of-00001.parquet`), else a folder's on the way to it; ""
    for none."""
    stem = next((file.name.removesuffix(s) for s in SUFFIXES if file.name.endswith(s)), file.name)
    for part in (stem, *reversed(file.parts[:-1])):
        words = [w for w in re.split(r"[-._ 0-9]+", part.lower()) if w]
        named = list(dict.fromkeys(_KEYWORDS[w] for w in words if w in _KEYWORDS))
        if len(named) == 1:
            return named[0]
    return ""
