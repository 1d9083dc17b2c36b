"""Which ids were used before, and where: a compact table, 16 bytes a slot, for millions of rows."""

from __future__ import annotations

from array import array
from hashlib import blake2b

_EMPTY = 0
_FILE_BITS = 40  # of a place: row numbers below, files above


class Seen:
    """Ids by 64-bit digest (BLAKE2b) with the place of their first use; open addressing, at most two thirds full.

    Two million ids take 64 MiB, however long they are. Two of two million ids share a digest with a chance of 1 in ten
    million; then an id that is new counts as used.
    """

    def __init__(self, slots: int = 1 << 10) -> None:
        self._keys, self._places = array("Q", bytes(8 * slots)), array("Q", bytes(8 * slots))
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, name: str) -> bool:
        return self._keys[self._slot(_digest(name))] != _EMPTY

    def add(self, name: str, file: int, number: int) -> None:
        """Note that `name` is used in row `number` of the file with index `file`; the first use stays."""
        key = _digest(name)
        slot = self._slot(key)
        if self._keys[slot] != _EMPTY:
            return
        self._keys[slot], self._places[slot] = key, file << _FILE_BITS | number
        self._count += 1
        if 3 * self._count > 2 * len(self._keys):
            self._grow()

    def place(self, name: str) -> tuple[int, int]:
        """(index of the file, row number) of the first use of a name that was added."""
        place = self._places[self._slot(_digest(name))]
        return place >> _FILE_BITS, place & ((1 << _FILE_BITS) - 1)

    def _slot(self, key: int) -> int:
        """Where `key` stands, or the empty slot where it would."""
        keys, mask = self._keys, len(self._keys) - 1
        slot = key & mask
        while keys[slot] != _EMPTY and keys[slot] != key:
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        keys, places = self._keys, self._places
        slots = 2 * len(keys)
        self._keys, self._places = array("Q", bytes(8 * slots)), array("Q", bytes(8 * slots))
        for key, place in zip(keys, places, strict=True):
            if key != _EMPTY:
                slot = self._slot(key)
                self._keys[slot], self._places[slot] = key, place


def _digest(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little") or 1
