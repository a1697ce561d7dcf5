"""What the directory of a run holds, read without a lock, beside a writer that goes on, and without changing anything.

The files are those that `directory.py` describes. Every state has an identity of 16 bytes; a record of a journal leads from one
to the next. So the files form a tree, and any snapshot that can be read leads, with the records behind it, to the newest state.

Files are named `<fence>-<commit>`, and the first file of each writer says by its name where that writer went on. What a writer
before it committed later than that is left behind, and never read again: the branch that a run gave up when it was rewound, and
whatever a writer that had been frozen still appends when it wakes up. Names are enough for that; the files may be damaged.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from edgewise import journal, state
from edgewise.deltas import applied
from edgewise.errors import StateError, StateVersionError
from edgewise.migrations import migrated
from edgewise.types import Array

_NAME = re.compile(r"selector-(?:(\d{6,9})-)?(\d{9,12})\.(safetensors|journal)\Z")
"""Format 1 had no fence: `selector-<step>.safetensors`."""

_MOST_COMMITS = 10**12
"""As many as a name has digits for."""

UNKNOWN = 1 << 62
"""Step of a snapshot whose header cannot be read."""

_NO_FILE_OF_OURS = (errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.ENOTDIR, errno.EISDIR)
"""Errors of links, sockets and devices: somebody put them there."""

_TRIES = 200
"""Times that files are listed anew because one was compacted away between listing and reading."""

_T = TypeVar("_T")


class Found(NamedTuple):
    """A file of a directory."""

    fence: int
    commit: int
    path: Path


class Node(NamedTuple):
    """A state that a record or a snapshot says there was. Ordered: the newest is the largest."""

    fence: int
    commit: int
    step: int
    id: bytes


@dataclass(frozen=True, slots=True)
class Recovered:
    """A state read back.

    node: which one.  snapshots: those on the way to it that can be read, newest first.  exact: whether it was of the present
    format, so that records can be put behind it.  records, record_bytes: how much had to be replayed behind the newest of them.
    """

    node: Node
    header: dict[str, Any]
    arrays: dict[str, Array]
    snapshots: tuple[Found, ...]
    exact: bool
    records: int
    record_bytes: int


class _Vanished(Exception):
    """A file that was listed is not there any longer: the writer compacted it away."""


@dataclass
class History:
    """What a directory holds, but for what was left behind. Made by `of`; if files vanish as they are read it looks anew.

    journals: each with its scan.  broken: what could not be read, in words, newest first.  refused: files among these that the
    disk or a permission keeps from us: what they hold may be sound.
    """

    directory: Path
    most: int
    snapshots: list[Found] = field(default_factory=list)
    journals: list[tuple[Found, journal.Scan]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    refused: list[Found] = field(default_factory=list)
    _begun: dict[int, int] = field(default_factory=dict)
    """Of each writer: the commit behind which it went on."""
    _heads: dict[Path, Node] = field(default_factory=dict)
    _sound: dict[Path, bool] = field(default_factory=dict)
    _loaded: dict[Path, tuple[dict[str, Any], dict[str, Array]]] = field(default_factory=dict)  # the last one read, at most

    @classmethod
    def of(cls, directory: Path, most: int = state.MOST_BYTES) -> History:
        """most: bytes that a snapshot may have, and half of what a journal may.

        Raises OSError if it cannot be listed; here and in all that reads, StateError if files vanish as fast as they are read.
        """
        history = cls(directory, most)
        history._steadily(history._look)
        return history

    def nodes(self) -> list[Node]:
        """All states that are mentioned and not left behind, newest first, each once."""
        found = {head.id: head for head in self._heads.values()}
        found |= {r.digest: Node(r.fence, r.commit, r.step, r.digest) for _, scan in self.journals for r in scan.records}
        return sorted((node for node in found.values() if node.commit <= self._bound(node.fence)), reverse=True)

    def newest(self) -> Recovered | None:
        """The newest state that can be reached; None if there is none. What stood in the way is in `broken`.

        Raises StateVersionError if it is of a newer format: that one is sound, and not to be passed over.
        """
        return self._steadily(lambda: self._first(self.nodes()))

    def at_step(self, step: int) -> Recovered | None:
        """The last state that was committed as `step`; None if it cannot be reached."""
        return self._steadily(lambda: self._first([node for node in self.nodes() if node.step == step]))

    def steps(self) -> list[int]:
        """Steps whose state can be reached, ascending."""
        return self._steadily(lambda: sorted({node.step for node in self.nodes() if self._way(node) is not None}))

    def reached(self, node: Node) -> Recovered | None:
        """The state of `node`: the nearest snapshot before it that can be read, and the records from there."""
        return self._steadily(lambda: self._reached(node))

    def replayed(self, node: Node, snapshots: int) -> Recovered | None:
        """The same with at most so many `snapshots`: older ones are not even read."""
        return self._steadily(lambda: self._reached(node, snapshots))

    def node_of(self, snapshot: Found) -> Node:
        """Which state a snapshot says it is."""
        return self._heads[snapshot.path]

    def readable(self, snapshot: Found) -> bool:
        """Whether a snapshot is whole and sound."""
        return self._is_sound(snapshot)

    def without(self, snapshot: Found) -> History:
        """The same as if that snapshot were not there."""
        rest = [other for other in self.snapshots if other != snapshot]
        return replace(self, snapshots=rest)

    # -- reading -------------------------------------------------------------------------------------------------------

    def _steadily(self, read: Callable[[], _T]) -> _T:
        """What `read` gives once nothing vanished meanwhile."""
        stale = False
        for _ in range(_TRIES):
            try:
                if stale:
                    self._look()
                stale = False
                return read()
            except _Vanished:
                stale = True  # never read from a look that was interrupted: it holds half of what is there
        raise StateError(f"{self.directory}: files vanished {_TRIES} times while they were read. Try again.")

    def _look(self) -> None:
        snapshots, journals = files(self.directory, "safetensors"), files(self.directory, "journal")
        self._begun = {}
        for fence, commit in (*((f.fence, f.commit - 1) for f in snapshots), *((f.fence, f.commit) for f in journals)):
            self._begun[fence] = min(commit, self._begun.get(fence, commit))
        self.snapshots = [found for found in snapshots if found.commit <= self._bound(found.fence)]
        self.journals, self.broken, self.refused, self._sound, self._loaded = [], [], [], {}, {}
        for found in journals:
            if found.commit > self._bound(found.fence):
                continue
            try:
                scan = _named(found, journal.scan(found.path, 2 * self.most))
            except StateError as error:
                self._unreadable(found, error)
                scan = journal.Scan(b"", (), 0, 0, False)
            self.journals.append((found, scan))
            if scan.bad and not scan.torn:
                self.broken.append(
                    f"{found.path} is damaged at byte {scan.good:,}: the {scan.bad:,} bytes from there on cannot be used."
                )
        self._heads = {found.path: self._peek(found) for found in self.snapshots}

    def _bound(self, fence: int) -> int:
        """The highest commit of writer `fence` that a later writer did not leave behind."""
        return min((commit for later, commit in self._begun.items() if later > fence), default=UNKNOWN)

    def _peek(self, found: Found) -> Node:
        """Which state a snapshot says it is, unchecked: `_load` checks."""
        try:
            header = state.header_of(found.path)
        except StateError as error:
            self._unreadable(found, error)
            self._sound[found.path] = False
            header = {}
        if (header.get("fence", found.fence), header.get("commit", found.commit)) != found[:2]:
            text = f"{found.path} holds another commit than its name says: it was renamed or copied."
            self._unreadable(found, StateError(text))
            self._sound[found.path] = False
            header = {}
        given, step = header.get("state"), header.get("step")
        own = bytes.fromhex(given) if isinstance(given, str) and re.fullmatch("[0-9a-f]{32}", given) else None
        return Node(found.fence, found.commit, step if type(step) is int else UNKNOWN, own or str(found.path).encode())

    def _first(self, nodes: list[Node]) -> Recovered | None:
        return next((found for node in nodes if (found := self._reached(node)) is not None), None)

    def _reached(self, node: Node, snapshots: int | None = None) -> Recovered | None:
        way = self._way(node)
        if way is None:
            return None
        snapshot, records = way
        header, arrays = self._content(snapshot)
        number = header["format"]
        for data, record, path in records:
            try:
                change, parts = state.decode(data[record.payload], f"{path}, byte {record.at:,}", as_is=True)
                header, arrays = applied(header, arrays, change, parts)
                if header.get("format") != number:
                    raise ValueError("it changes the number of the format")
            except StateVersionError:
                raise
            except (StateError, KeyError, ValueError, TypeError, IndexError, AttributeError, MemoryError) as error:
                message = f"{path}: the record at byte {record.at:,} cannot be applied: {repr(error)[:300]}."
                self.broken += [message] if message not in self.broken else []
                return None
        exact = number == state.FORMAT
        if not exact:
            header, arrays = migrated(header, arrays, str(snapshot.path))
        size = sum(journal.FRAME + record.payload.stop - record.payload.start for _, record, _ in records)
        lineage = tuple(itertools.islice(self._lineage(node.id), snapshots))
        self._loaded.clear()
        return Recovered(node, header, arrays, lineage, exact, len(records), size)

    def _way(self, node: Node) -> tuple[Found, list[tuple[bytes, journal.Record, Path]]] | None:
        """A snapshot that can be read and the records from it to `node`; None if there is no such way."""
        records = {r.digest: (scan.data, r, found.path) for found, scan in self.journals for r in scan.records}
        by_id = {self._heads[found.path].id: found for found in self.snapshots}
        at = node.id
        steps: list[tuple[bytes, journal.Record, Path]] = []
        while True:
            if at in by_id and self._is_sound(by_id[at]):
                return by_id[at], steps[::-1]
            if at not in records:
                return None
            steps.append(records.pop(at))
            at = steps[-1][1].prev

    def _lineage(self, at: bytes) -> Iterator[Found]:
        """Snapshots on the way back from a state, newest first, that can be read."""
        before = {r.digest: r.prev for _, scan in self.journals for r in scan.records}
        by_id = {self._heads[found.path].id: found for found in self.snapshots}
        while True:
            if at in by_id and self._is_sound(by_id[at]):
                yield by_id[at]
            if at not in before:
                return
            at = before.pop(at)

    def _is_sound(self, found: Found) -> bool:
        if found.path not in self._sound:
            self._sound[found.path] = self._load(found)
        return self._sound[found.path]

    def _load(self, found: Found) -> bool:
        """Read a snapshot and keep it for `_content`. One at a time: they may be as large as the memory allows."""
        self._loaded.clear()
        try:
            self._loaded[found.path] = state.decode(state.read(found.path, self.most), str(found.path), as_is=True)
        except StateVersionError:
            raise
        except StateError as error:
            self._unreadable(found, error)
            return False
        return True

    def _unreadable(self, found: Found, error: StateError) -> None:
        """Take note of it; raises _Vanished if the file is not there any longer."""
        self.broken.append(_unless_vanished(found.path, error))
        cause = error.__cause__
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno not in _NO_FILE_OF_OURS):
            self.refused.append(found)

    def may_hide(self, recovered: Recovered | None) -> Found | None:
        """A file that is kept from us and may hold a newer state than the one found; None if there is none."""
        for found in self.refused:
            if recovered is None or found[:2] > recovered.node[:2]:
                return found
            if found.path.suffix == ".journal" and found[:2] == recovered.node[:2]:  # it begins where that state stands
                return found
        return None

    def _content(self, found: Found) -> tuple[dict[str, Any], dict[str, Array]]:
        """Header and arrays of a sound snapshot, to be changed by the caller."""
        if found.path not in self._loaded and not self._load(found):
            raise _Vanished  # damaged or deleted since it was found sound: look anew
        return self._loaded.pop(found.path)


def files(directory: Path, kind: str) -> list[Found]:
    """Snapshots ("safetensors") or journals ("journal") by name, oldest first. Raises OSError."""
    found = []
    for name in os.listdir(directory):
        match = _NAME.match(name)
        if match is not None and match[3] == kind:
            found.append(Found(int(match[1] or 0), int(match[2]), directory / name))
    return sorted(found)


def _named(found: Found, scan: journal.Scan) -> journal.Scan:
    """The records as far as they are of the writer that the name says, each behind the one before it."""
    last = found.commit
    for i, record in enumerate(scan.records):
        if record.fence != found.fence or not last < record.commit < _MOST_COMMITS:
            return journal.Scan(scan.data, scan.records[:i], record.at, len(scan.data) - record.at, False)
        last = record.commit
    return scan


def _unless_vanished(path: Path, error: StateError) -> str:
    """What `error` says; raises _Vanished instead if the file is not there any longer."""
    if not os.path.lexists(path):
        raise _Vanished from None
    return str(error)
