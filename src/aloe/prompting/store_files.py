"""Exemplar stores on disk: a folder of rows, vectors and a manifest that says what they came from.

    store.json            counts, content digest, encoder, prompt, licences, what was left out, digest of every file
    rows.parquet          the exemplars: question rows, with the `reasoning` that is shown
    vectors.safetensors   embeddings of the stems, dense or in compressed sparse rows
    dropped.parquet       rows that are no exemplars: id, reason, evidence
    tfidf.json            vocabulary and frequencies, of a TF-IDF store

The folder is written aside and renamed. A file that is not the one the manifest names is refused; vectors of another
encoder than the one at hand are computed anew, and that is said.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aloe.digests import digest_file
from aloe.errors import AloeError
from aloe.generate.embed import Encoder
from aloe.generate.encoders import PACKAGED, TFIDF, FolderEncoder, TfidfEncoder, open_encoder
from aloe.generate.rerank import Reranker
from aloe.prompting.exemplars import RERANKED, Exemplar, ExemplarStore
from aloe.prompting.library import load_prompt
from aloe.records import Question
from aloe.rows import read_parquet, write_parquet
from aloe.schema import LATEST, check_object

KIND = "aloe exemplar store"
MANIFEST, ROWS, VECTORS, DROPPED, FITTED = (
    "store.json", "rows.parquet", "vectors.safetensors", "dropped.parquet", "tfidf.json",
)  # fmt: skip
PROMPT = "cot"  # the prompt of the strategies that show exemplars
Dropped = Sequence[Mapping[str, str]]  # rows of id, reason, evidence
Say = Callable[[str], None]


def to_stderr(note: str) -> None:
    """Where notes go unless a caller wants them."""
    print(f"note: {note}", file=sys.stderr)


@dataclass(frozen=True)
class StoreRecord:
    """What `store.json` says. `encoder` has `name` (as it was opened), `kind`, `digest` and, where they apply,
    `pooling`, `max_length`; `dropped` counts by reason; `excluded` names the benchmarks the leak guard looked at, with
    their questions and how many exemplars each cost."""

    digest: str
    count: int
    encoder: Mapping[str, Any]
    prompt: Mapping[str, str]
    licences: Mapping[str, int]
    sources: Mapping[str, int]
    dropped: Mapping[str, int]
    excluded: Sequence[Mapping[str, Any]]
    made_from: Sequence[str]
    files: Mapping[str, str]


def is_store(path: str | Path) -> bool:
    """Whether a folder is an exemplar store."""
    manifest = Path(path) / MANIFEST
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("kind") == KIND


def read_record(path: str | Path) -> StoreRecord:
    """The manifest of a store.

    Raises:
        AloeError: no store, or one of another format.
    """
    folder = Path(path)
    if not is_store(folder):
        fix = "build one: aloe exemplars build ROWS OUT"
        raise AloeError(f"no exemplar store (no {MANIFEST} that says so)", where=str(folder), fix=fix)
    values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    check_object("exemplar store", values, folder / MANIFEST, "format")
    try:
        return StoreRecord(**{key: value for key, value in values.items() if key not in ("kind", "format")})
    except TypeError as cause:
        raise AloeError(f"a damaged manifest ({cause})", where=str(folder / MANIFEST), fix="build it anew") from None


# -------------------------------------------------------------------------------------------------------- writing


def encoder_record(encoder: Encoder, name: str) -> dict[str, Any]:
    """What a manifest says of an encoder."""
    record: dict[str, Any] = {"name": name, "kind": type(encoder).__name__, "digest": encoder.digest}
    if isinstance(encoder, FolderEncoder):
        record |= {"pooling": encoder.pooling, "max_length": encoder.max_length}
    return record


def write_store(
    out: str | Path,
    store: ExemplarStore,
    *,
    encoder_name: str,
    dropped: Dropped = (),
    excluded: Sequence[Mapping[str, Any]] = (),
    made_from: Sequence[str] = (),
) -> StoreRecord:
    """Write a store as a folder, whole or not at all.

    Args:
        out: a folder that isn't there yet.
        store: what is written, in the order of its ids.
        encoder_name: what `open_encoder` opens its encoder by.
        dropped: rows that were left out.
        excluded: benchmarks the leak guard looked at: {rows, digest, questions, left_out}.
        made_from: the rows or stores it came from, as they were named.
    """
    out = Path(out)
    refuse_existing(out)
    if not len(store):
        raise AloeError("no exemplar is left to store", where=str(out), fix="see the reasons above; name other rows")
    order = sorted(range(len(store)), key=lambda i: store.ids[i])
    exemplars = [store.exemplars[i] for i in order]
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        write_parquet(aside / ROWS, [{**e.question.to_dict(), "reasoning": e.reasoning} for e in exemplars])
        write_parquet(aside / DROPPED, [dict(row) for row in dropped], columns=["id", "reason", "evidence"])
        _save_vectors(aside / VECTORS, store.vectors[np.asarray(order)])
        if isinstance(store.encoder, TfidfEncoder):
            store.encoder.save(aside / FITTED)
        record = StoreRecord(
            digest=store.digest,
            count=len(store),
            encoder=encoder_record(store.encoder, encoder_name),
            prompt={"name": PROMPT, "digest": load_prompt(PROMPT).digest},
            licences=_counts(e.question.licence for e in exemplars),
            sources=_counts(e.question.source for e in exemplars),
            dropped=_counts(row["reason"] for row in dropped),
            excluded=list(excluded),
            made_from=list(made_from),
            files={p.name: digest_file(p) for p in sorted(aside.iterdir())},
        )
        text = json.dumps(
            {"kind": KIND, "format": LATEST["exemplar store"], **vars(record)}, indent=1, ensure_ascii=False
        )
        (aside / MANIFEST).write_text(text + "\n", encoding="utf-8")
        os.chmod(aside, 0o755)  # mkdtemp and safetensors write for their owner alone
        os.chmod(aside / VECTORS, 0o644)
        os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return record


def refuse_existing(out: Path) -> None:
    """A store is written to a place where nothing is."""
    if out.exists():
        raise AloeError("there is something already", where=str(out), fix="name another folder, or remove this one")


def _counts(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _save_vectors(path: Path, vectors: Any) -> None:
    from safetensors.numpy import save_file

    if isinstance(vectors, np.ndarray):
        save_file({"vectors": np.ascontiguousarray(vectors, dtype=np.float32)}, path)
        return
    parts = {name: np.ascontiguousarray(getattr(vectors, name)) for name in ("data", "indices", "indptr")}
    save_file({**parts, "shape": np.asarray(vectors.shape, dtype=np.int64)}, path)


def _load_vectors(path: Path) -> Any:
    from safetensors.numpy import load_file

    found = load_file(path)
    if "vectors" in found:
        return found["vectors"]
    from scipy.sparse import csr_matrix

    return csr_matrix((found["data"], found["indices"], found["indptr"]), shape=tuple(found["shape"].tolist()))


# -------------------------------------------------------------------------------------------------------- reading


def open_store(
    path: str | Path,
    encoder: Encoder | None = None,
    *,
    reranker: Reranker | None = None,
    rerank_top: int = RERANKED,
    say: Say = to_stderr,
) -> ExemplarStore:
    """Open a store that `write_store` wrote.

    Args:
        path: its folder.
        encoder: embeds the questions; the one the manifest names when None.
        reranker: puts the nearest in another order, as of `ExemplarStore`.
        rerank_top: neighbours that it is shown.
        say: told when vectors are computed anew, or when the prompt that shows exemplars has changed since.

    Raises:
        AloeError: no store, a file that is not the one it was, or an encoder that can't be opened.
    """
    folder, record = Path(path), read_record(path)
    for name, digest in record.files.items():
        if not (folder / name).is_file() or digest_file(folder / name) != digest:
            what = f"{name} is not the file that {MANIFEST} names"
            raise AloeError(what, where=str(folder), fix="copy the store again, or build it anew")
    found = encoder or _encoder_of(folder, record)
    vectors = _load_vectors(folder / VECTORS) if found.digest == record.encoder["digest"] else None
    if vectors is None:
        say(
            f"{folder}: embedded with {record.encoder['name']} (digest {record.encoder['digest']}), "
            f"the encoder at hand is {found.digest}: {record.count} vectors are computed anew"
        )
    if load_prompt(record.prompt["name"]).digest != record.prompt["digest"]:
        say(f"{folder}: the prompt {record.prompt['name']!r} has changed since; exemplars are shown with today's")
    exemplars = []
    for row in read_parquet(folder / ROWS):
        reasoning = row.pop("reasoning")
        exemplars.append(Exemplar.checked(Question.from_dict(row), reasoning))
    return ExemplarStore(exemplars, found, vectors=vectors, reranker=reranker, rerank_top=rerank_top)


def _encoder_of(folder: Path, record: StoreRecord) -> Encoder:
    name = record.encoder["name"]
    if name == TFIDF:
        return TfidfEncoder.load(folder / FITTED)
    # The packaged model and sentence-transformers folders state pooling and length themselves.
    plain = {key: record.encoder[key] for key in ("pooling", "max_length") if key in record.encoder}
    try:
        return open_encoder(name, **plain)
    except AloeError as cause:
        fix = f"name the encoder that is here with --embedder; {cause.fix or ''}".rstrip("; ")
        raise AloeError(f"its encoder can't be opened: {cause.what}", where=str(folder), fix=fix) from None


# -------------------------------------------------------------------------------------------------------- merging


def merge_stores(first: str | Path, second: str | Path, out: str | Path, say: Say = to_stderr) -> StoreRecord:
    """Merge two stores into a third. An exemplar that both have enters once.

    Two TF-IDF stores are fitted anew on all rows; other encoders must be the same one.

    Raises:
        AloeError: different encoders (both are named), or one id with two contents.
    """
    refuse_existing(Path(out))
    paths = [Path(first), Path(second)]
    records = [read_record(path) for path in paths]
    names = [str(record.encoder["name"]) for record in records]
    fitted = names == [TFIDF, TFIDF]
    digests = [record.encoder["digest"] for record in records]
    if digests[0] != digests[1] and not fitted:
        told = " and ".join(f"{n} ({d})" for n, d in zip(names, digests, strict=True))
        raise AloeError(
            f"the stores were embedded with different encoders: {told}",
            where=f"{paths[0]}, {paths[1]}",
            fix="build one of them anew with the other's encoder (--embedder)",
        )
    opened = [open_store(path, say=say) for path in paths]
    place = {i: n for n, i in enumerate(opened[0].ids)}
    new = []
    for n, exemplar in enumerate(opened[1].exemplars):
        i = exemplar.question.id
        if i not in place:
            new.append(n)
        elif opened[0].exemplars[place[i]] != exemplar:
            fix = "give one of the rows another id, and build its store anew"
            raise AloeError(f"{paths[0]} and {paths[1]} have different exemplars of this id", where=i, fix=fix)
    exemplars = [*opened[0].exemplars, *(opened[1].exemplars[n] for n in new)]
    store = _joined(exemplars, opened, new, fitted, say)
    dropped = {row["id"]: row for path in paths for row in read_parquet(path / DROPPED)}
    return write_store(
        out,
        store,
        encoder_name=names[0],
        dropped=[row for i, row in sorted(dropped.items()) if i not in set(store.ids)],
        excluded=_guarded(paths, records, say),
        made_from=[str(path) for path in paths],
    )


def _guarded(paths: Sequence[Path], records: Sequence[StoreRecord], say: Say) -> list[dict[str, Any]]:
    """The benchmarks that both stores were checked against; one that only one was is marked, and said."""
    found: dict[str, dict[str, Any]] = {}
    checked: dict[str, list[Path]] = {}
    for path, record in zip(paths, records, strict=True):
        for entry in record.excluded:
            key = str(entry["digest"])
            cost = found.get(key, {"left_out": 0})["left_out"] + entry["left_out"]
            found[key] = {**entry, "left_out": cost}
            checked.setdefault(key, []).append(path)
    for key, entry in found.items():
        if len(checked[key]) < len(paths):
            entry["only"] = str(checked[key][0])
            say(f"{entry['rows']}: only {entry['only']} was checked against it; the leak guard still acts when asking")
    return list(found.values())


def _joined(
    exemplars: Sequence[Exemplar], opened: Sequence[ExemplarStore], new: Sequence[int], fitted: bool, say: Say
) -> ExemplarStore:
    if fitted:
        say(f"TF-IDF is fitted anew on {len(exemplars)} exemplars")
        return ExemplarStore(exemplars, TfidfEncoder.fit([e.question.question for e in exemplars]))
    first, second = opened[0].vectors, opened[1].vectors[np.asarray(new, dtype=np.intp)]
    if isinstance(first, np.ndarray):
        vectors = np.concatenate([first, second])
    else:
        from scipy.sparse import vstack

        vectors = vstack([first, second]).tocsr()
    return ExemplarStore(exemplars, opened[0].encoder, vectors=vectors)


__all__ = ["KIND", "PACKAGED", "StoreRecord", "encoder_record", "is_store", "merge_stores", "open_store", "read_record",
           "refuse_existing", "to_stderr", "write_store"]  # fmt: skip
