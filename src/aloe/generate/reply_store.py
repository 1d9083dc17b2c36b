"""The ledger's file: SQLite, finished replies by key, and who is computing what just now.

A reply is committed as soon as it is finished, so kill -9 loses none. On a local disk the file is in WAL mode (with
`synchronous=NORMAL` a power cut may lose the last few replies, never the file). On another machine's disk WAL would
damage it, so there it has a rollback journal, which works wherever file locks do. Processes may share it: a key that
another living process has claimed is left to it. A claim lives as long as its owner does: the owner's heartbeat is
fresh and, on the same machine, its process is there.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from aloe.errors import AloeError
from aloe.generate.network_folder import network_kind
from aloe.schema import LATEST, check

BUSY_S = 60.0  # how long a lock of another process is waited for
BEAT_S = 10.0  # seconds between heartbeats
EXPIRY_S = 60.0  # an owner silent for longer is taken for dead
PART = 500  # keys in one statement
TABLES = """
CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS owners (
    owner TEXT PRIMARY KEY, place TEXT NOT NULL, pid INTEGER NOT NULL, born REAL NOT NULL, beat REAL NOT NULL
);
"""


class ReplyStore:
    """Replies and claims in the file at `path`. One thread uses it; the heartbeat has its own connection.

    Raises:
        AloeError: the file is damaged, no ledger, locked for too long, or the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.owner = path, uuid.uuid4().hex
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._told():
            self._db = _connect(path)
        self._held: set[str] = set()
        self._registered = False
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None

    def close(self) -> None:
        """Give back every claim and close the file."""
        self._stop.set()
        if self._beating is not None:
            self._beating.join()
        with self._told():
            if self._registered:
                self.release(list(self._held))
                self._db.execute("DELETE FROM owners WHERE owner = ?", (self.owner,))
            self._db.close()

    # -- replies ------------------------------------------------------------------------------------------------

    def get(self, keys: Sequence[str]) -> dict[str, str]:
        """Stored values of those keys that are finished."""
        with self._told():
            return {k: v for part in _parts(keys) for k, v in self._select("key, value FROM replies", "key", part)}

    def put(self, rows: Sequence[tuple[str, str]]) -> None:
        """Store finished values and give back their claims, in one commit."""
        with self._told(), self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?)", rows)
            self._unclaim([key for key, _ in rows])

    # -- claims -------------------------------------------------------------------------------------------------

    def take(self, keys: Sequence[str]) -> tuple[set[str], dict[str, str]]:
        """(keys that are this store's to compute now, values that were finished meanwhile).

        The rest are claimed by a living process. Looking and claiming are one transaction, so of two processes that
        ask together one gets a key and the other doesn't.
        """
        with self._told():
            self._register()
        with self._told(), self._transaction():
            finished: dict[str, str] = {}
            theirs: dict[str, str] = {}
            for part in _parts(keys):
                finished |= dict(self._select("key, value FROM replies", "key", part))
                theirs |= dict(self._select("key, owner FROM claims", "key", part))
            dead = self._dead(set(theirs.values()) - {self.owner})
            mine = {k for k in keys if k not in finished and theirs.get(k, self.owner) in dead | {self.owner}}
            self._db.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?)", [(k, self.owner) for k in mine])
            for owner in dead:
                self._db.execute("DELETE FROM claims WHERE owner = ?", (owner,))
                self._db.execute("DELETE FROM owners WHERE owner = ?", (owner,))
            self._held |= mine
        return mine, finished

    def release(self, keys: Sequence[str]) -> None:
        """Give claims back without a reply: another process may try."""
        held = [k for k in keys if k in self._held]
        if held:
            with self._told(), self._transaction():
                self._unclaim(held)

    def _unclaim(self, keys: Sequence[str]) -> None:
        mine = [k for k in keys if k in self._held]
        self._db.executemany("DELETE FROM claims WHERE key = ? AND owner = ?", [(k, self.owner) for k in mine])
        self._held -= set(mine)

    def _register(self) -> None:
        """Become known as an owner, and beat from then on."""
        if self._registered:
            return
        self._say_alive(self._db)
        self._registered = True
        self._beating = threading.Thread(target=self._beat, name="ledger-heartbeat", daemon=True)
        self._beating.start()

    def _say_alive(self, db: sqlite3.Connection) -> None:
        """The whole row each time: after a long pause of this process another one may have taken it out."""
        db.execute(
            "INSERT OR REPLACE INTO owners VALUES (?, ?, ?, ?, ?)",
            (self.owner, place(), os.getpid(), _born(os.getpid()), time.time()),
        )

    def _beat(self) -> None:
        """Long batches hold the main thread, so the heartbeat has its own."""
        db: sqlite3.Connection | None = None
        while not self._stop.wait(BEAT_S):
            try:
                db = db or sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)
                self._say_alive(db)
            except sqlite3.Error:  # the next reply that is stored says what is wrong; a missed beat alone harms nobody
                continue
        if db is not None:
            db.close()

    def _dead(self, owners: Iterable[str]) -> set[str]:
        rows = {o: self._db.execute("SELECT place, pid, born, beat FROM owners WHERE owner = ?", (o,)) for o in owners}
        return {owner for owner, found in rows.items() if not _lives(found.fetchone())}

    # -- SQLite -------------------------------------------------------------------------------------------------

    def _select(self, what: str, column: str, keys: Sequence[str]) -> sqlite3.Cursor:
        marks = ",".join("?" * len(keys))
        return self._db.execute(f"SELECT {what} WHERE {column} IN ({marks})", keys)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """BEGIN IMMEDIATE: a transaction that reads first and writes later could not wait for another's lock."""
        if self._db.in_transaction:
            yield
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as one clear error each."""
        try:
            yield
        except sqlite3.DatabaseError as cause:
            said = str(cause)
            if "locked" in said or "busy" in said:
                raise AloeError(
                    f"the request ledger was locked by another process for more than {BUSY_S:g} s",
                    where=str(self.path),
                    fix="wait for the other process, or end it",
                ) from None
            if "full" in said:
                raise AloeError(
                    "the disk is full: the request ledger can't keep another reply",
                    where=str(self.path),
                    fix="free some space and run the same command: finished replies are kept",
                ) from None
            if "readonly" in said or "unable to open" in said:
                raise AloeError(
                    f"the request ledger can't be written: {said}",
                    where=str(self.path),
                    fix="give this user the right to write to the file and its folder, or choose another --out",
                ) from None
            if "I/O" in said and not network_kind(self.path.parent):  # SQLite's word for a full disk, too, at times
                raise AloeError(
                    f"the request ledger can't be written: {said}",
                    where=str(self.path),
                    fix="see whether the disk is full or fails, then run the same command: finished replies are kept",
                ) from None
            kind = network_kind(self.path.parent)
            if kind and ("locking protocol" in said or "I/O" in said):
                raise AloeError(
                    f"the request ledger can't be kept on this {kind} folder: {said}",
                    where=str(self.path),
                    fix="choose an --out on a local disk, or mount the folder with working file locks",
                ) from None
            raise AloeError(
                f"the request ledger is damaged: {said}",
                where=str(self.path),
                fix="move the file (and those of its name that end in -wal and -shm) away: replies are asked for again",
            ) from None


def place() -> str:
    """This machine and process namespace: where a process id means something."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}".strip()


def _lives(row: tuple[str, int, float, float] | None) -> bool:
    """Whether an owner is at work: a fresh heartbeat and, where its process can be looked at, the same process."""
    if row is None:
        return False
    where, pid, born, beat = row
    if abs(time.time() - beat) > EXPIRY_S:  # a beat far ahead is of a clock that was set back since
        return False
    if where != place():
        return True
    try:
        return _born(pid) == born and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _born(pid: int) -> float:
    """When a process began: on Linux in ticks since the machine did (proc(5)), which setting the clock doesn't move."""
    try:
        return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return psutil.Process(pid).create_time()


def _connect(path: Path) -> sqlite3.Connection:
    """Open, choose the journal and make the tables; two processes may do so at once."""
    journal, synchronous = ("DELETE", "FULL") if network_kind(path.parent) else ("WAL", "NORMAL")
    deadline = time.monotonic() + BUSY_S
    while True:
        db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        try:
            # SQLite doesn't wait for the lock that this switch needs, so the waiting is done here.
            db.execute(f"PRAGMA journal_mode={journal}")
            db.execute(f"PRAGMA synchronous={synchronous}")
            _check_schema(db, path)
            db.executescript(TABLES)
            return db
        except sqlite3.OperationalError as cause:
            db.close()
            if "locked" not in str(cause) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        except BaseException:
            db.close()
            raise


def _check_schema(db: sqlite3.Connection, path: Path) -> None:
    """Refuse a newer aloe's file; write the number into one that states none (which SQLite calls 0)."""
    stated = int(db.execute("PRAGMA user_version").fetchone()[0])
    check("request ledger", stated or None, path)
    if not stated:
        try:
            db.execute(f"PRAGMA user_version={LATEST['request ledger']}")
        except sqlite3.OperationalError as cause:  # an older one may lie where only reading is allowed
            if "readonly" not in str(cause):
                raise


def _parts(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(keys), PART):
        yield keys[start : start + PART]
