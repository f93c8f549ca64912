"""FlatBuffers, read with nothing but the standard library: every offset is checked before it is followed.

The work is bounded by the file's size, so a damaged or hostile file is an error and nothing else.
"""

from __future__ import annotations

import struct

__all__ = ["Damaged", "Reader", "Table"]


class Damaged(ValueError):
    """What is wrong with a file, without its name."""


class Reader:
    """Bounds-checked little-endian numbers of a FlatBuffer."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._left = len(data) + 4096  # shared vectors could make a small file describe a huge model

    def spend(self, count: int) -> None:
        """Count what is read.

        Raises:
            Damaged: It is more than the file has.
        """
        self._left -= count
        if self._left < 0:
            raise Damaged("it describes more than its size can hold")

    def number(self, kind: str, at: int) -> int:
        """One number of a kind that :mod:`struct` knows."""
        if not 0 <= at <= len(self.data) - struct.calcsize(kind):
            raise Damaged(f"truncated, or an offset leads to byte {at:,} of {len(self.data):,}")
        value: int = struct.unpack_from("<" + kind, self.data, at)[0]
        return value

    def target(self, at: int) -> int:
        """Where an offset leads."""
        return at + self.number("I", at)

    def vector(self, at: int, item: int) -> tuple[int, int]:
        """Where a vector's items start, and how many there are."""
        count = self.number("I", at)
        if at + 4 + count * item > len(self.data):
            raise Damaged(f"truncated: {count:,} items of {item} bytes at byte {at:,} of {len(self.data):,}")
        return at + 4, count


class Table:
    """One table: its fields by slot, absent ones as their defaults."""

    def __init__(self, reader: Reader, at: int) -> None:
        self._reader = reader
        self.at = at
        vtable = at - reader.number("i", at)
        size, self._size = reader.number("H", vtable), reader.number("H", vtable + 2)
        if size < 4 or size % 2 or self._size < 4:
            raise Damaged(f"no table at byte {at:,}")
        reader.number("B", at + self._size - 1)
        self.slots = [reader.number("H", vtable + 4 + 2 * slot) for slot in range((size - 4) // 2)]
        reader.spend(1 + len(self.slots))

    def field(self, slot: int) -> int | None:
        """Where a field is, or None."""
        offset = self.slots[slot] if slot < len(self.slots) else 0
        if offset and not 4 <= offset < self._size:
            raise Damaged(f"no field {slot} in the table at byte {self.at:,}")
        return self.at + offset if offset else None

    def number(self, slot: int, kind: str, default: int = 0) -> int:
        """One number."""
        at = self.field(slot)
        return default if at is None else self._reader.number(kind, at)

    def vector(self, slot: int, item: int) -> tuple[int, int]:
        """Where a vector's items start, and how many there are."""
        at = self.field(slot)
        return (0, 0) if at is None else self._reader.vector(self._reader.target(at), item)

    def integers(self, slot: int) -> tuple[int, ...]:
        """A vector of int32."""
        start, count = self.vector(slot, 4)
        self._reader.spend(count)
        return struct.unpack_from(f"<{count}i", self._reader.data, start)

    def content(self, slot: int) -> bytes:
        """A vector of bytes."""
        start, count = self.vector(slot, 1)
        self._reader.spend(count // 4)
        return self._reader.data[start : start + count]

    def text(self, slot: int) -> str:
        """A string."""
        try:
            return self.content(slot).decode("utf-8")
        except UnicodeDecodeError:
            raise Damaged(f"a name that is no UTF-8 text in the table at byte {self.at:,}") from None

    def targets(self, slot: int) -> list[int]:
        """Where the tables of a vector are."""
        start, count = self.vector(slot, 4)
        self._reader.spend(count)
        return [self._reader.target(start + 4 * i) for i in range(count)]

    def tables(self, slot: int) -> list[Table]:
        """A vector of tables."""
        return [Table(self._reader, at) for at in self.targets(slot)]

    def table(self, slot: int) -> Table | None:
        """One table, or None."""
        at = self.field(slot)
        return None if at is None else Table(self._reader, self._reader.target(at))
