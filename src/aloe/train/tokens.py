"""Training rows as tokens on disk, memory-mapped: two million rows take disk, not memory.

A token file is a folder made once from one set of rows and shared by resumed runs and by every process of a
distributed one. Its rows stand in an order of their own, by a digest of their keys, so that nothing downstream depends
on the order of the file they came from. A token store is some of the rows of some token files, as a sequence of
examples; lengths and digests are known without reading a token.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import psutil

from aloe.digests import digest_json
from aloe.keyed import key64
from aloe.models.packed import Tree
from aloe.train.packing import Example

VERSION = 1  # bump when a file's content changes meaning, or tokens are made another way
Integers = npt.NDArray[np.int64]
# `*_at` is where a row's values begin in the file of that name, the plain name how many they are.
ROW = np.dtype(
    [
        *[(name, "<i8") for name in ("tokens_at", "parts_at", "spans_at", "keys_at")],
        *[(name, "<i4") for name in ("tokens", "parts", "spans", "keys", "trained", "longest", "number", "licence")],
        ("hash", "<u8"),
        ("digest_high", "<u8"),
        ("digest_low", "<u8"),
    ]
)
NAMES = ("tokens", "parts", "spans", "keys")


@dataclass(frozen=True)
class Dropped:
    """A row that is in no token file: `number` of the row in its file, from 1, and why."""

    key: str
    number: int
    reason: str
    evidence: str


class CorruptTokens(Exception):
    """A token file that is incomplete, damaged or of another version."""


# -- writing --------------------------------------------------------------------------------------------------------


def _remove_abandoned(folder: Path) -> None:
    """Remove what writers of this token file left that were killed: it is as large as the file itself. A writer's
    process is in the name of its folder; the run's lock sees to it that no other machine writes here."""
    for left in folder.parent.glob(f".{folder.name}-*-*"):
        owner = left.name.removeprefix(f".{folder.name}-").partition("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


class TokenWriter:
    """Writes a token file beside its place; leaving the `with` without an error puts it there.

    Args:
        folder: where it is to stand. A folder that is there already is replaced.
        vocabulary: no id is this large; up to 65,536 an id takes two bytes, else four.

    Raises:
        ValueError: an id outside the vocabulary.
    """

    def __init__(self, folder: Path, vocabulary: int) -> None:
        self.folder, self.vocabulary, self.rows, self.cut = folder, vocabulary, 0, 0
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        self._aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-{os.getpid()}-"))
        self._dtype = "<u2" if vocabulary <= 1 << 16 else "<u4"
        self._licences: dict[str, int] = {}
        self._dropped: list[Dropped] = []
        self._handles = {name: open(self._aside / f"{name}.bin", "wb") for name in (*NAMES, "rows")}  # noqa: SIM115
        self._at = dict.fromkeys(NAMES, 0)

    def put(self, example: Example, number: int) -> None:
        """Append an example made from row `number` of its file."""
        parts = [np.asarray(p, dtype="<u4") for p in (example.tree.prefix, *example.tree.branches)]
        tokens = np.concatenate(parts)
        if tokens.max() >= self.vocabulary:
            raise ValueError(f"{example.key}: the id {tokens.max()} in a vocabulary of {self.vocabulary}")
        lengths = np.array([len(p) for p in parts], dtype="<u4")
        flags = np.concatenate([[False], np.asarray(example.scored, dtype=bool), [False]])
        spans = np.flatnonzero(flags[1:] != flags[:-1]).astype("<u4")  # start, end, start, end, ...
        content = hashlib.blake2b(digest_size=16)
        for values in (lengths, tokens, spans):
            content.update(len(values).to_bytes(8, "big") + values.tobytes())
        digest = np.frombuffer(content.digest(), dtype="<u8")
        row = np.zeros(1, dtype=ROW)
        key = np.frombuffer(example.key.encode("utf-8", "surrogatepass"), dtype=np.uint8)
        for name, values in zip(NAMES, (tokens.astype(self._dtype), lengths, spans, key), strict=True):
            self._handles[name].write(values.tobytes())
            row[f"{name}_at"], row[name] = self._at[name], len(values)
            self._at[name] += len(values)
        row["trained"], row["number"] = np.count_nonzero(flags), number
        row["longest"] = lengths[0] + (lengths[1:].max() if len(lengths) > 1 else 0)
        row["licence"] = self._licences.setdefault(example.licence, len(self._licences))
        row["hash"] = key64(0, "row", example.key)
        row["digest_high"], row["digest_low"] = digest
        self._handles["rows"].write(row.tobytes())
        self.rows += 1

    def drop(self, row: Dropped) -> None:
        """Record a row that is left out."""
        self._dropped.append(row)

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            for handle in self._handles.values():
                handle.close()
            if error is None:
                self._finish()
        finally:
            shutil.rmtree(self._aside, ignore_errors=True)

    def _finish(self) -> None:
        """Sort the table of rows, describe the files, put the folder in its place."""
        table = np.fromfile(self._aside / "rows.bin", dtype=ROW)
        # Equal keys by content; rows equal in both are the same row twice.
        table = table[np.lexsort((table["digest_low"], table["digest_high"], table["hash"]))]
        table.tofile(self._aside / "rows.bin")
        (self._aside / "dropped.json").write_text(json.dumps([vars(d) for d in self._dropped]), encoding="utf-8")
        files = {p.name: [p.stat().st_size, _checksum(p)] for p in sorted(self._aside.iterdir())}
        meta = {
            "version": VERSION,
            "dtype": self._dtype,
            "rows": self.rows,
            "cut": self.cut,
            "licences": list(self._licences),
            "files": files,
        }
        (self._aside / "meta.json").write_text(json.dumps({**meta, "digest": digest_json(meta)}), encoding="utf-8")
        for path in self._aside.iterdir():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
        if self.folder.exists():
            shutil.rmtree(self.folder)
        try:
            os.rename(self._aside, self.folder)
        except OSError:
            if not self.folder.exists():  # else another run put the same there in this moment
                raise


def _checksum(path: Path) -> int:
    """CRC-32 of a file; it finds damage, and a store of gigabytes is checked in seconds."""
    found = 0
    with open(path, "rb") as handle:
        while piece := handle.read(1 << 20):
            found = zlib.crc32(piece, found)
    return found


# -- reading --------------------------------------------------------------------------------------------------------


class TokenFile:
    """A token file, memory-mapped.

    Args:
        folder: as `TokenWriter` left it.
        check: read everything once and compare checksums; else sizes alone are compared.

    Attributes:
        table: [rows] of `ROW`, sorted by key digest.
        dropped: rows left out, in the order of the rows' file.
        cut: rows whose prompt was cut to fit.

    Raises:
        CorruptTokens: missing, cut off, damaged or of another version.
    """

    def __init__(self, folder: Path, *, check: bool) -> None:
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            if meta.pop("digest") != digest_json(meta):
                raise CorruptTokens("meta.json is damaged")
            if meta["version"] != VERSION:
                raise CorruptTokens(f"version {meta['version']}, not {VERSION}")
            for name, (size, checksum) in meta["files"].items():
                path = folder / name
                if path.stat().st_size != size or (check and _checksum(path) != checksum):
                    raise CorruptTokens(f"{name} is damaged")
            self.table: npt.NDArray[np.void] = _mapped(folder / "rows.bin", ROW)
            self._tokens = _mapped(folder / "tokens.bin", np.dtype(meta["dtype"]))
            self._parts, self._spans = (_mapped(folder / f"{n}.bin", np.dtype("<u4")) for n in ("parts", "spans"))
            self._keys = _mapped(folder / "keys.bin", np.dtype(np.uint8))
            self.licences: list[str] = meta["licences"]
            self.cut: int = meta["cut"]
            dropped = json.loads((folder / "dropped.json").read_text(encoding="utf-8"))
            self.dropped = [Dropped(**row) for row in dropped]
        except (OSError, ValueError, KeyError, TypeError) as cause:
            raise CorruptTokens(f"{type(cause).__name__}: {cause}") from None

    def __len__(self) -> int:
        return len(self.table)

    def example(self, row: int, licence: str) -> Example:
        """Example `row`; `licence` is the file's, for rows that state none."""
        at = self.table[row]
        tokens = self._tokens[at["tokens_at"] : at["tokens_at"] + at["tokens"]].astype(np.int64)
        parts = self._parts[at["parts_at"] : at["parts_at"] + at["parts"]]
        spans = self._spans[at["spans_at"] : at["spans_at"] + at["spans"]]
        scored = np.zeros(len(tokens), dtype=bool)
        for start, end in zip(spans[::2].tolist(), spans[1::2].tolist(), strict=True):
            scored[start:end] = True
        prefix, *branches = np.split(tokens, np.cumsum(parts[:-1])) if len(parts) > 1 else [tokens]
        own = self.licences[at["licence"]]
        return Example(self.key(row), Tree(prefix, branches), scored, licence if own == "unknown" else own)  # type: ignore[arg-type]

    def key(self, row: int) -> str:
        """The key of example `row`."""
        at = self.table[row]
        return bytes(self._keys[at["keys_at"] : at["keys_at"] + at["keys"]]).decode("utf-8", "surrogatepass")


def _mapped(path: Path, dtype: np.dtype[Any]) -> Any:
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype=dtype)


@dataclass(frozen=True)
class Source:
    """Rows of one token file: `rows` are numbers into it (None: all), `licence` is for rows that state none."""

    file: TokenFile
    rows: Integers | None
    licence: str

    def __len__(self) -> int:
        return len(self.file) if self.rows is None else len(self.rows)

    def column(self, name: str) -> Any:
        """A column of the file's table for these rows."""
        values = self.file.table[name]
        return values if self.rows is None else values[self.rows]


class TokenStore(Sequence[Example]):
    """Examples of several sources in one numbering, read when asked for.

    Attributes:
        tokens, trained, longest: [rows], as of `Example`, without reading a token.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self._first = np.cumsum([0, *map(len, sources)])
        self.tokens, self.trained, self.longest = (self._column(n) for n in ("tokens", "trained", "longest"))

    def __len__(self) -> int:
        return int(self._first[-1])

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        source, row = self._find(index)
        return source.file.example(row, source.licence)

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def key(self, index: int) -> str:
        """The key of an example, without its tokens."""
        source, row = self._find(index)
        return source.file.key(row)

    @property
    def digest(self) -> str:
        """Of all tokens, their branches and what is scored, in this order: 32 hex digits."""
        state = hashlib.blake2b(digest_size=16)
        for name in ("digest_high", "digest_low"):
            state.update(np.concatenate([np.zeros(0, "<u8"), *(s.column(name) for s in self.sources)]).tobytes())
        return state.hexdigest()

    def licences(self) -> dict[str, int]:
        """Rows under each licence, by name."""
        found: dict[str, int] = {}
        for source in self.sources:
            counts = np.bincount(source.column("licence"), minlength=len(source.file.licences)).tolist()
            for own, count in zip(source.file.licences, counts, strict=True):
                name = source.licence if own == "unknown" else own
                found[name] = found.get(name, 0) + count
        return {name: found[name] for name in sorted(found) if found[name]}

    def _find(self, index: int) -> tuple[Source, int]:
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        s = int(np.searchsorted(self._first, at, side="right")) - 1
        source, row = self.sources[s], int(at - self._first[s])
        return source, row if source.rows is None else int(source.rows[row])

    def _column(self, name: str) -> Integers:
        return np.concatenate([np.zeros(0, np.int64), *(s.column(name).astype(np.int64) for s in self.sources)])


def store_of(examples: Iterable[Example], folder: Path, vocabulary: int) -> TokenStore:
    """Examples at hand, written to a token file in `folder` and opened: rows in the file's own order."""
    with TokenWriter(folder, vocabulary) as writer:
        for number, example in enumerate(examples, 1):
            writer.put(example, number)
    return TokenStore([Source(TokenFile(folder, check=False), None, "unknown")])
