"""The flow of rows through the stages of curation: what goes in, what stays, what leaves and why.

Each stage is kept on disk when it is done, under a key of all that led to it. A run that dies in stage six goes on
there, and a changed threshold runs only the stages after it; what is kept is let go when the artifact is written.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from aloe.data import crew
from aloe.data.parquet_out import ParquetRows
from aloe.data.sources import Dropped
from aloe.data.spool import BATCH, Item, Spool, SpoolWriter, View, encoded
from aloe.digests import digest_json
from aloe.records import Dialogue, Question, Row

T = TypeVar("T")
LEDGER_COLUMNS = ("id", "source", "stage", "reason", "where", "detail", "evidence", "row")
LEDGER_NESTED = ("evidence", "row")
EXAMPLES = 5  # rows shown for each reason in the report
EXAMPLE_CHARS = 600
PARALLEL_ROWS = 20_000  # below this, starting workers costs more than it saves


@dataclass
class StageRecord:
    """What a finished stage tells: counts that add up, examples of what it dropped, and facts of its own."""

    stage: str
    rows_in: int
    kept: int
    dropped: dict[str, int]
    by_source: dict[str, int]
    seconds: float
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class StageOut:
    """Where a stage puts its decisions: rows it drops, rows it rewrites, facts it found.

    A stage that only drops rows calls `drop`; one that changes rows calls `put` for each that stays; one that sets an
    order calls `arrange`.
    """

    def __init__(
        self, folder: Path, name: str, view: View | None, hide: Callable[[Any], Any] | None, hidden: bool = False
    ) -> None:
        self.name, self.facts = name, dict[str, Any]()
        self.scratch = folder  # for files that a stage needs only while it runs
        self._folder, self._view, self._hide, self._hidden = folder, view, hide, hidden
        self._ledger = ParquetRows(folder / "dropped.parquet", LEDGER_COLUMNS, LEDGER_NESTED)
        self._writer: SpoolWriter | None = None
        self._gone: list[int] = []
        self._order: np.ndarray[Any, np.dtype[np.int64]] | None = None
        self._reasons: Counter[str] = Counter()
        self._examples: dict[str, list[dict[str, Any]]] = {}

    def drop(
        self,
        place: int,
        item: Item,
        reason: str,
        detail: str = "",
        evidence: Mapping[str, Any] | None = None,
        content: bool = True,
    ) -> None:
        """Drop the row at `place` of the stage's view. `content` keeps the row itself in the ledger."""
        self._gone.append(place)
        r = item.record
        row = r.to_dict() if content else {}
        dropped = Dropped(r.id, r.source, self.name, reason, item.origin, detail, dict(evidence or {}), row)
        self.refuse(dropped, r if content else None)

    def refuse(self, dropped: Dropped, record: Row | None = None) -> None:
        """Write a row to the ledger that never was in a view (a misfit of a source)."""
        if self._hide is not None:
            row = dropped.row if self._hidden else self._hide(dropped.row)
            dropped = replace(
                dropped, detail=self._hide(dropped.detail), evidence=self._hide(dropped.evidence), row=row
            )
        self._reasons[dropped.reason] += 1
        self._ledger.put({**vars(dropped), "stage": self.name})
        examples = self._examples.setdefault(dropped.reason, [])
        if len(examples) < EXAMPLES:
            kept = json.dumps(dropped.row, ensure_ascii=False) if dropped.row else ""
            text = shown_text(record) if record is not None else kept
            text = self._hide(text) if self._hide is not None else text
            examples.append(
                {
                    "id": dropped.id, "source": dropped.source, "where": dropped.where, "detail": dropped.detail,
                    "evidence": dropped.evidence, "text": text[:EXAMPLE_CHARS],
                }
            )  # fmt: skip

    def put(self, item: Item) -> None:
        """Keep a row in this, its changed form. Rows are put in the order of the view."""
        self._spool().put(item)

    def put_encoded(self, batch: pa.RecordBatch) -> None:
        """`put` for rows that another process has encoded."""
        self._spool().put_encoded(batch)

    def _spool(self) -> SpoolWriter:
        if self._writer is None:
            self._writer = SpoolWriter(self._folder / "rows.arrow")
        return self._writer

    def arrange(self, places: Any) -> None:
        """Keep the rows at these places of the view, in this order."""
        self._order = np.asarray(places, dtype=np.int64)

    def finish(self, seconds: float, spool: Spool | None) -> tuple[StageRecord, View]:
        """Close the files; returns the record and what the next stage takes in."""
        self._ledger.close()
        if self._view is None or self._writer is not None:
            (self._writer or SpoolWriter(self._folder / "rows.arrow")).close()
            view = View(Spool(self._folder / "rows.arrow"))
        else:
            assert spool is not None
            places = self._order if self._order is not None else _without(len(self._view), self._gone)
            view = self._view.only(places)
            np.save(self._folder / "numbers.npy", view.numbers)
        rows_in = len(view) + sum(self._reasons.values()) if self._view is None else len(self._view)
        record = StageRecord(
            self.name, rows_in, len(view), dict(sorted(self._reasons.items())),
            dict(sorted(Counter(view.column("source")).items())), round(seconds, 3), self._examples, self.facts,
        )  # fmt: skip
        if record.rows_in != record.kept + sum(record.dropped.values()):
            raise AssertionError(f"{self.name}: {rows_in} rows in, {record.kept} kept and {record.dropped} dropped")
        (self._folder / "stage.json").write_text(
            json.dumps(asdict(record), ensure_ascii=False, sort_keys=True), encoding="utf-8"
        )
        return record, view


@dataclass(frozen=True)
class Stage:
    """One stage: `settings` is all that its outcome depends on beside the rows; `run` decides (`view` is None for the
    stage that loads); `hides` says that what personal data it finds it takes out of the rows."""

    name: str
    settings: Any
    run: Callable[[Any, StageOut], None]
    hides: bool = False


class Flow:
    """Runs stages one after another in a folder of its own, `root`.

    Args:
        root: folder for the stages' files; may hold those of an earlier, unfinished run.
        key: digest of what the first stage reads and of the code.
        hide: applied to all that goes to the ledger (redaction); None writes it as it is.
        told: called with each stage's record when it is done, and whether it was found finished.
    """

    def __init__(
        self,
        root: Path,
        key: str,
        hide: Callable[[Any], Any] | None = None,
        told: Callable[[StageRecord, bool], None] = lambda record, found: None,
    ) -> None:
        self.root, self.key, self.hide, self.told = root, key, hide, told
        self.records: list[StageRecord] = []
        self.folders: list[Path] = []
        self.view: View | None = None
        self._hidden = False  # whether a stage has taken personal data out of the rows

    def step(self, stage: Stage) -> StageRecord:
        """Run a stage, or take up what it left when it was run before."""
        self.key = digest_json([self.key, stage.name, stage.settings])
        folder = self.root / f"{len(self.records):02d}-{stage.name}-{self.key[:16]}"
        found = (folder / "stage.json").exists()
        if found:
            record = StageRecord(**json.loads((folder / "stage.json").read_text("utf-8")))
            self.view = _reopen(folder, self.view)
        else:
            record = self._run(stage, folder)
        self.records.append(record)
        self.folders.append(folder)
        self._hidden |= stage.hides
        self.told(record, found)
        return record

    def _run(self, stage: Stage, folder: Path) -> StageRecord:
        aside = folder.with_name(f"{folder.name}.part-{os.getpid()}")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        out = StageOut(aside, stage.name, self.view, self.hide, self._hidden)
        begin = time.monotonic()
        try:
            stage.run(self.view, out)
            record, _ = out.finish(time.monotonic() - begin, self.view.spool if self.view is not None else None)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        aside.replace(folder)
        self.view = _reopen(folder, self.view)
        return record

    def dropped(self) -> Iterator[dict[str, Any]]:
        """Every ledger row so far, in order, a batch in memory at a time."""
        import pyarrow.parquet as pq

        for folder in self.folders:
            for batch in pq.ParquetFile(folder / "dropped.parquet").iter_batches(BATCH):
                for row in batch.to_pylist():
                    yield {c: json.loads(row[c]) if c in LEDGER_NESTED else row[c] for c in LEDGER_COLUMNS}

    def forget(self) -> None:
        """Remove the stages' files."""
        self.view = None
        shutil.rmtree(self.root, ignore_errors=True)


def _reopen(folder: Path, before: View | None) -> View:
    if (folder / "rows.arrow").exists():
        return View(Spool(folder / "rows.arrow"))
    assert before is not None
    return View(before.spool, np.load(folder / "numbers.npy"))


def _without(size: int, gone: list[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    kept = np.ones(size, dtype=bool)
    kept[gone] = False
    return np.flatnonzero(kept)


def shown_text(record: Row) -> str:
    """A row as a reader of the report sees it."""
    if isinstance(record, Question):
        options = "\n".join(f"{k}. {v}" for k, v in sorted(record.options.items()))
        return f"{record.question}\n{options}\nAnswer: {record.answer}"
    if isinstance(record, Dialogue):
        return "\n".join(f"{m['role']}: {m['content']}" for m in record.messages)
    return json.dumps(record.to_dict(), ensure_ascii=False)


# ---------------------------------------------------------------------------------------------- many workers


def alone(view: View, workers: int | None = None) -> bool:
    """Whether the rows are looked at by this process only: a small set, one core and no crew."""
    if len(view) < PARALLEL_ROWS:
        return True
    return crew.of_environment() is None and (_cores() if workers is None else workers) < 2


def spread(function: Callable[[list[Item]], T], view: View, workers: int | None = None) -> Iterator[T]:
    """function(rows) for every `BATCH` rows, in order: by this process, by several of this machine, or by a crew.

    `function` must be picklable, it is sent once; what it gives for a row may not depend on the other rows.
    """
    if alone(view, workers):
        yield from map(function, view.batches(BATCH))
    elif (others := crew.of_environment()) is not None:
        yield from others.map(function, view)
    else:
        from joblib import Parallel, delayed  # its workers don't import the user's main module, as standard ones do

        # A worker that has built a large index is taken for one that leaks and replaced: nothing is lost by it.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given", category=UserWarning)
        workers = min(_cores(), 16) if workers is None else workers
        with tempfile.TemporaryDirectory(dir=view.spool.path.parent) as folder:
            crew.write_work(Path(folder), function, view)
            run = Parallel(n_jobs=workers, return_as="generator", batch_size=1, pre_dispatch=2 * workers)
            yield from run(delayed(_batch)(Path(folder), n) for n in range(-(-len(view) // BATCH)))


def _batch(folder: Path, number: int) -> Any:
    return crew.opened(folder)(number)


class Outcome(NamedTuple):
    """What a stage that looks at one row at a time makes of it: the row in its new form, or None and the reason why it
    goes. `note` is for the stage's own counts."""

    record: Row | None
    reason: str = ""
    detail: str = ""
    evidence: dict[str, Any] | None = None
    note: Any = None


def rewritten(
    function: Callable[[Item], Outcome], view: View, out: StageOut, *, changes: bool = True, content: bool = True
) -> Iterator[tuple[str, Any]]:
    """Decide on every row by itself, in several processes where the view is large (see `spread`), and put or drop it.

    Rows are decoded and encoded where they are looked at: with many workers the process that leads would be what all
    wait for. `changes=False` leaves the rows that stay as they are. `content` keeps dropped rows in the ledger.

    Yields:
        (source, note) of each row with a note, in order.
    """
    start = 0
    for batch, lost, notes, size in spread(partial(_decided, function=function, changes=changes), view):
        for place, reason, detail, evidence in lost:
            out.drop(start + place, view[start + place], reason, detail, evidence, content=content)
        if batch is not None:
            out.put_encoded(batch)
        yield from notes
        start += size
        if start // BATCH % 16 == 0:
            view.spool.forget()


def _decided(items: list[Item], function: Callable[[Item], Outcome], changes: bool) -> Any:
    kept, lost, notes = list[Item](), [], []
    for place, item in enumerate(items):
        found = function(item)
        if found.note:
            notes.append((item.record.source, found.note))
        if found.record is None:
            lost.append((place, found.reason, found.detail, found.evidence))
        elif changes:
            kept.append(Item(found.record, item.origin, item.rank))
    return (encoded(kept) if changes else None), lost, notes, len(items)


def _cores() -> int:
    """Cores that this process may use: a container or `taskset` may leave it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
