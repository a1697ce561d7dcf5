"""Records appended to a file, each found damaged by its own digest, each chained to the state that it was made from.

A record names the state before it (`prev`) and the one after it: its own digest. So a change is never applied to another state
than the one it was computed from, whatever became of the files; and the states of a run form a tree that any reader can walk
(`directory.py`). A tail that a crash left behind is recognised, and nothing is ever appended to it.

    magic 8 | payload bytes u64 | fence u32 | zero u32 | commit u64 | step u64 | prev 16 | digest 16 | payload
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from edgewise.state import read, sync_folder

MAGIC = b"EDGEWJ1\n"
_HEAD = struct.Struct("<8sQIIQQ16s")
_DIGEST = 16
FRAME = _HEAD.size + _DIGEST
"""Bytes of a record beside its payload."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record. `digest` (16 bytes) identifies the state after it, `prev` the one before it.

    fence: number of the writer's lease.  commit: how manieth state of the run this is.  step: selector steps committed.
    at: where it starts in its file.  payload: where its payload lies in that file.
    """

    fence: int
    commit: int
    step: int
    prev: bytes
    digest: bytes
    at: int
    payload: slice


@dataclass(frozen=True, slots=True)
class Scan:
    """What a journal holds: its whole records up to the first byte that cannot be read.

    good: bytes up to there.  bad: bytes from there on, 0 for a sound file.  torn: that tail is what a crash leaves (an
    unfinished last record, or zeros), not damage in the middle.
    """

    data: bytes
    records: tuple[Record, ...]
    good: int
    bad: int
    torn: bool


def frame(fence: int, commit: int, step: int, prev: bytes, payload: bytes) -> tuple[bytes, bytes]:
    """(the bytes of one record, its digest)."""
    head = _HEAD.pack(MAGIC, len(payload), fence, 0, commit, step, prev)
    digest = hashlib.blake2b(head + payload, digest_size=_DIGEST).digest()
    return head + digest + payload, digest


def scan(path: Path, most: int) -> Scan:
    """Read a journal of at most `most` bytes. Raises StateError if the file cannot be read at all."""
    data = read(path, most)
    records: list[Record] = []
    at = 0
    while (record := _record(data, at)) is not None:
        records.append(record)
        at = record.payload.stop
    tail = data[at:]
    torn = not tail.strip(b"\0") or _unfinished(tail)
    return Scan(data, tuple(records), at, len(tail), torn)


def _record(data: bytes, at: int) -> Record | None:
    """The record that starts at `at`; None if there is no whole and sound one."""
    if len(data) - at < FRAME:
        return None
    magic, length, fence, zero, commit, step, prev = _HEAD.unpack_from(data, at)
    start = at + FRAME
    if magic != MAGIC or zero or length > len(data) - start:
        return None
    digest = data[at + _HEAD.size : start]
    head = data[at : at + _HEAD.size]
    if hashlib.blake2b(head + data[start : start + length], digest_size=_DIGEST).digest() != digest:
        return None
    return Record(fence, commit, step, prev, digest, at, slice(start, start + length))


def _unfinished(tail: bytes) -> bool:
    """Whether the tail is the beginning of one record that was never finished: zeros may stand where nothing was written."""
    if not MAGIC.startswith(tail[: len(MAGIC)].rstrip(b"\0")):
        return False
    if len(tail) >= FRAME and tail[-1] and _HEAD.unpack_from(tail)[1] <= len(tail) - FRAME:
        return False  # all of it is there, and wrong
    return tail.find(MAGIC, 1) < 0  # a whole record behind it: no crash of a writer leaves that


class Tail:
    """The end of a journal of ours. Opened for each record: no descriptor outlives a commit or goes to a fork."""

    def __init__(self, path: Path) -> None:
        """Make the file, durably. Raises OSError, also where there is one."""
        self.path = path
        self.size = 0
        """Bytes of the records in it."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(path, flags, 0o644)
        try:
            self._file = _identity(os.fstat(file))
        finally:
            os.close(file)
        sync_folder(path.parent)

    def is_ours(self) -> bool:
        """Whether it is the file that we made, as long as we left it. Raises OSError."""
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return False
        return _identity(found) == self._file and found.st_size == self.size

    def append(self, data: bytes) -> None:
        """Append a record and wait until it is on disk. Raises OSError: what the file ends with is then unknown."""
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(file)
            if _identity(found) != self._file or found.st_size != self.size:
                raise OSError(errno.ESTALE, "somebody else changed the journal", str(self.path))
            view = memoryview(data)
            while view:
                view = view[os.write(file, view) :]
            os.fsync(file)
        finally:
            os.close(file)
        self.size += len(data)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
