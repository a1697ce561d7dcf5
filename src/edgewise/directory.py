"""The states of one run in one directory: snapshots, and journals of what each commit changed.

    selector-<fence>-<commit>.safetensors    a whole state
    selector-<fence>-<commit>.journal        what later commits changed, a record each
    writer-<fence>.json                      who may write (`lease.py`)
    *.torn  *.superseded  *.backup           cut off, set aside by resume="fresh", or of an older format; never read again

`fence` is the number of the writer's lease, `commit` counts the commits of the run. Every state has an identity of 16 bytes; a
record leads from one to the next (`journal.py`). So the files form a tree, and *any* snapshot that can be read, with the
records behind it, leads to the newest state: a damaged snapshot costs nothing as long as the one before it is there. The
newest state is the one with the highest (fence, commit) that can be reached.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from edgewise import journal, state
from edgewise.deltas import PER_PROMPT, Base, applied
from edgewise.errors import MethodError, StateError, StateVersionError
from edgewise.lease import Lease
from edgewise.migrations import migrated
from edgewise.types import Array, Ints

RECORDS = 256
"""Records after which a new snapshot is written, whatever their size: replaying them takes well under a second."""
BYTES = 1 << 20
"""Bytes of a journal after which a new snapshot is written, if the last snapshot is not larger still."""

_NAME = re.compile(r"selector-(?:(\d{6})-)?(\d{9,12})\.(safetensors|journal)\Z")
"""Format 1 had no fence: `selector-<step>.safetensors`."""


_UNKNOWN = 1 << 62
"""Step of a snapshot whose header cannot be read."""


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
    format, so that records can be put behind it.
    """

    node: Node
    header: dict[str, Any]
    arrays: dict[str, Array]
    snapshots: tuple[Found, ...]
    exact: bool


@dataclass
class History:
    """What a directory holds, read without a lock and without changing anything.

    journals: each with its scan.  broken: what could not be read, in words, newest first.
    """

    directory: Path
    most: int
    snapshots: list[Found] = field(default_factory=list)
    journals: list[tuple[Found, journal.Scan]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, directory: Path, most: int = state.MOST_BYTES) -> History:
        """most: bytes that a snapshot may have, and half of what a journal may. Raises OSError if it cannot be listed."""
        history = cls(directory, most)
        history.snapshots = files(directory, "safetensors")
        for found in files(directory, "journal"):
            try:
                scan = journal.scan(found.path, 2 * most)
            except StateError as error:
                history.broken.append(str(error))
                continue
            history.journals.append((found, scan))
            if scan.bad and not scan.torn:
                history.broken.append(
                    f"{found.path} is damaged at byte {scan.good:,}: the {scan.bad:,} bytes from there on cannot be used."
                )
        history._heads = {found.path: _peek(found) for found in history.snapshots}
        return history

    _heads: dict[Path, Node] = field(default_factory=dict)
    _loaded: dict[Path, tuple[dict[str, Any], dict[str, Array]] | None] = field(default_factory=dict)

    def nodes(self) -> list[Node]:
        """All states that are mentioned, newest first, each once."""
        found = {head.id: head for head in self._heads.values()}
        found |= {r.digest: Node(r.fence, r.commit, r.step, r.digest) for _, scan in self.journals for r in scan.records}
        return sorted(found.values(), reverse=True)

    def newest(self) -> Recovered | None:
        """The newest state that can be reached; None if there is none. What stood in the way is in `broken`.

        Raises StateVersionError if it is of a newer format: that one is sound, and not to be passed over.
        """
        nodes = self.nodes()
        for node in nodes:
            if node.step > nodes[0].step:
                continue  # left behind when the run was rewound
            if (recovered := self.reached(node)) is not None:
                return recovered
        return None

    def at_step(self, step: int) -> Recovered | None:
        """The last state that was committed as `step`; None if it cannot be reached."""
        reached = (self.reached(node) for node in self.nodes() if node.step == step)
        return next((recovered for recovered in reached if recovered is not None), None)

    def steps(self) -> list[int]:
        """Steps whose state can be reached, ascending."""
        return sorted({node.step for node in self.nodes() if self._way(node) is not None})

    def reached(self, node: Node) -> Recovered | None:
        """The state of `node`: the nearest snapshot before it that can be read, and the records from there."""
        way = self._way(node)
        if way is None:
            return None
        snapshot, records = way
        loaded = self._load(snapshot)
        assert loaded is not None
        header, arrays = loaded
        header, arrays = dict(header), {name: array.copy() for name, array in arrays.items()}
        for data, record, path in records:
            try:
                change, parts = state.decode(data[record.payload], f"{path}, byte {record.at:,}", as_is=True)
                header, arrays = applied(header, arrays, change, parts)
            except StateVersionError:
                raise
            except (StateError, KeyError, ValueError, TypeError, IndexError, AttributeError, MemoryError) as error:
                self.broken.append(f"{path}: the record at byte {record.at:,} cannot be applied: {error!r}.")
                return None
        exact = header["format"] == state.FORMAT
        if not exact:
            header, arrays = migrated(header, arrays, str(snapshot.path))
        return Recovered(node, header, arrays, tuple(self._lineage(node.id)), exact)

    def node_of(self, snapshot: Found) -> Node:
        """Which state a snapshot says it is."""
        return self._heads[snapshot.path]

    def readable(self, snapshot: Found) -> bool:
        """Whether a snapshot is whole and sound."""
        return self._load(snapshot) is not None

    def without(self, snapshot: Found) -> History:
        """The same as if that snapshot were not there."""
        rest = [other for other in self.snapshots if other != snapshot]
        return replace(self, snapshots=rest)

    def _way(self, node: Node) -> tuple[Found, list[tuple[bytes, journal.Record, Path]]] | None:
        """A snapshot that can be read and the records from it to `node`; None if there is no such way."""
        records = {r.digest: (scan.data, r, found.path) for found, scan in self.journals for r in scan.records}
        by_id = {self._heads[found.path].id: found for found in self.snapshots}
        at = node.id
        steps: list[tuple[bytes, journal.Record, Path]] = []
        while True:
            if at in by_id and self._load(by_id[at]) is not None:
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
            if at in by_id and self._load(by_id[at]) is not None:
                yield by_id[at]
            if at not in before:
                return
            at = before.pop(at)

    def _load(self, found: Found) -> tuple[dict[str, Any], dict[str, Array]] | None:
        if found.path not in self._loaded:
            try:
                self._loaded[found.path] = state.decode(state.read(found.path, self.most), str(found.path), as_is=True)
            except StateVersionError:
                raise
            except StateError as error:
                self.broken.append(str(error))
                self._loaded[found.path] = None
        return self._loaded[found.path]


def files(directory: Path, kind: str) -> list[Found]:
    """Snapshots ("safetensors") or journals ("journal") by name, oldest first. Raises OSError."""
    found = []
    for name in os.listdir(directory):
        match = _NAME.match(name)
        if match is not None and match[3] == kind:
            found.append(Found(int(match[1] or 0), int(match[2]), directory / name))
    return sorted(found)


def _peek(found: Found) -> Node:
    """Which state a snapshot says it is, unchecked: `_load` checks."""
    try:
        header = state.header_of(found.path)
    except StateError:
        header = {}  # `_load` will say so
    given, step = header.get("state"), header.get("step")
    own = bytes.fromhex(given) if isinstance(given, str) and re.fullmatch("[0-9a-f]{32}", given) else None
    return Node(found.fence, found.commit, step if type(step) is int else _UNKNOWN, own or str(found.path).encode())


class RunDirectory:
    """The writer's end of a directory: one commit after another, each durable before `commit` returns.

    A disk that refuses raises OSError from `commit` and costs nothing else: the state lives on in memory, and the next commit
    that succeeds writes all of it.
    """

    def __init__(self, path: Path, most: int, generations: int = 2) -> None:
        """Make the folder, take the lease, clear away what a killed writer left half written.

        most: bytes that a state may have.  generations: snapshots to keep, >= 2.
        Raises OSError, and StateInUseError if a living writer holds the folder.
        """
        path.mkdir(parents=True, exist_ok=True)
        self.path = path.resolve()
        self.generations = generations
        self.most = most
        self.notes: list[str] = []
        """What the user should be told, in words; whoever tells it empties the list."""
        self._lease = Lease(self.path)
        if self._lease.took_over:
            self.notes.append(f"{self.path} was taken over from {self._lease.took_over}, which is dead or frozen.")
        for orphan in self.path.glob(".selector-*.tmp"):
            orphan.unlink(missing_ok=True)
        self._commit = 0
        self._base: Base | None = None
        self._prev = b""
        self._lineage: list[Found] = []
        self._stem = ""
        self._file: int | None = None
        self._size = self._records = self._snapshot_size = 0
        self._whole = False

    # -- at start ------------------------------------------------------------------------------------------------------

    def history(self) -> History:
        """What is there. Raises OSError."""
        return History.of(self.path, self.most)

    def continue_from(self, history: History, recovered: Recovered | None, exactly: bool) -> None:
        """Go on behind a state that was read back: with records if it was taken up `exactly` as it is, else with a snapshot.

        Tails that cannot be read are cut off and kept. Raises OSError.
        """
        self._commit = max((node.commit for node in history.nodes()), default=0)
        for found, scan in history.journals:
            if scan.bad:
                self._cut(found, scan)
        if recovered is not None and exactly:
            extra = ("format", "state", "fence", "commit")
            header = {name: value for name, value in recovered.header.items() if name not in extra}
            self._base, self._prev = Base(header, recovered.arrays), recovered.node.id
            self._lineage = list(recovered.snapshots)
            self._snapshot_size = self._lineage[0].path.stat().st_size
            self._stem = f"selector-{self._lease.fence:06d}-{recovered.node.commit:09d}"

    def set_aside(self) -> None:
        """Keep all that is there under names that are never read again. Raises OSError."""
        for found in (*files(self.path, "safetensors"), *files(self.path, "journal")):
            found.path.rename(found.path.with_name(f"{found.path.name}.{self._lease.fence:06d}.superseded"))

    def _cut(self, found: Found, scan: journal.Scan) -> None:
        kept = found.path.with_name(f"{found.path.name}.{self._lease.fence:06d}.torn")
        state.write(kept, scan.data[scan.good :])
        os.truncate(found.path, scan.good)
        what = "an unfinished tail, as a crash leaves it" if scan.torn else "a damaged part"
        self.notes.append(f"{found.path.name}: {what}, of {scan.bad:,} bytes, was cut off and kept as {kept.name}.")

    # -- commits -------------------------------------------------------------------------------------------------------

    def commit(self, header: Mapping[str, Any], arrays: Mapping[str, Array], rows: Ints) -> int:
        """Make a state durable. Returns the bytes written.

        rows: (k,) distinct rows of per-prompt arrays that may have changed since the last commit that succeeded.

        Raises OSError if the disk refuses; StateError if another writer took over, or this is a fork; MethodError if the state
        changed at other rows than those (it was written as a whole then, and will be from here on). Only OSError means that
        this commit is not durable.
        """
        self._lease.require_own_process()
        self._be_there()
        self._commit += 1
        step = int(header["step"])
        if self._base is None or self._whole:
            return self._snapshot(header, arrays, uuid.uuid4().bytes)
        change, parts = self._base.difference(header, arrays, rows)
        data, digest = journal.frame(self._lease.fence, self._commit, step, self._prev, state.encode(change, parts))
        try:
            if self._file is None:
                self._file = self._new_journal()
            journal.append(self._file, data)
        except BaseException:  # what stands at its end is unknown: never append to this file again
            self.forget_base()
            raise
        self._base, self._prev = Base(header, arrays), digest
        self._size, self._records = self._size + len(data), self._records + 1
        written = len(data)
        full = self._records >= RECORDS or self._size >= max(BYTES, self._snapshot_size)
        if full or len(self._lineage) < self.generations:
            written += self._compact(header, arrays, digest)
        return written

    def forget_base(self) -> None:
        """The next commit cannot be a change of the last one: write all of it, twice, so that there are two generations."""
        self._close_journal()
        self._base, self._lineage = None, []

    def close(self) -> None:
        """Give the lease back. Nothing can be committed afterwards."""
        self._close_journal()
        self._lease.release()

    def _compact(self, header: Mapping[str, Any], arrays: Mapping[str, Array], digest: bytes) -> int:
        """A new snapshot of the state just committed, once its records are known to lead to it."""
        history = self.history()
        node = next((node for node in history.nodes() if node.id == digest), None)
        replayed = history.reached(node) if node is not None else None
        if replayed is None:
            self.notes += history.broken or [f"{self.path}: the journal of this run cannot be read back."]
            self._lineage = []
            return self._snapshot(header, arrays, uuid.uuid4().bytes)
        wrong = sorted(name for name in {*arrays, *replayed.arrays} if not _same(arrays.get(name), replayed.arrays.get(name)))
        if wrong:
            self._whole = True
            self._snapshot(header, arrays, uuid.uuid4().bytes)
            raise MethodError(
                f"the saved arrays {', '.join(repr(name.removeprefix(PER_PROMPT)) for name in wrong)} changed at rows of "
                "prompts whose groups were not observed. A method may write per-prompt arrays only in `observe`, and only at "
                "the rows that it is given; until it does, each commit writes the whole state."
            )
        return self._snapshot(header, arrays, digest)

    def _snapshot(self, header: Mapping[str, Any], arrays: Mapping[str, Array], identity: bytes) -> int:
        found = Found(
            self._lease.fence,
            self._commit,
            self.path / f"selector-{self._lease.fence:06d}-{self._commit:09d}.safetensors",
        )
        own = {"state": identity.hex(), "fence": self._lease.fence, "commit": self._commit}
        size = state.save(found.path, {**header, **own}, dict(arrays))
        state.load(found.path, max(size, self.most))  # read back and verified, before anything older goes
        self._close_journal()
        self._base, self._prev = Base(header, arrays), identity
        self._stem, self._snapshot_size = found.path.stem, size
        self._lineage = [found, *self._lineage][: self.generations]
        if len(self._lineage) == self.generations:
            self._forget_before(self._lineage[-1])
        return size

    def _forget_before(self, oldest: Found) -> None:
        """Files that no kept snapshot needs. That one cannot be deleted is no reason to stop."""
        first = self._first_of_this_format()
        for kind in ("safetensors", "journal"):
            for found in files(self.path, kind):
                if found[:2] < oldest[:2]:
                    try:
                        if found.fence >= first:
                            found.path.unlink(missing_ok=True)
                        else:  # written by an older edgewise, which could not read ours
                            found.path.rename(found.path.with_name(f"{found.path.name}.backup"))
                    except OSError as error:
                        self.notes.append(f"{found.path} could not be removed: {error}.")

    def _first_of_this_format(self) -> int:
        """Fence of the first writer of the present format while snapshots of an older one are there; else 1: format 1 had none.

        That tells the journals apart, too: behind a state of an older format a writer begins with a snapshot.
        """
        formats: list[tuple[int, Any]] = []
        for found in files(self.path, "safetensors"):
            try:
                formats.append((found.fence, state.header_of(found.path).get("format")))
            except StateError:
                continue
        if not any(type(number) is int and number < state.FORMAT for _, number in formats):
            return 1
        return min((fence for fence, number in formats if number == state.FORMAT), default=1)

    def _new_journal(self) -> int:
        path = self.path / f"{self._stem}.journal"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            state.sync_folder(self.path)
        except BaseException:
            os.close(file)
            raise
        self._size = self._records = 0
        return file

    def _close_journal(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = None
        self._size = self._records = 0

    def _be_there(self) -> None:
        """Find out whether this may still write, and whether the folder or a file of ours vanished: then write all anew."""
        if self.path.is_symlink():
            raise StateError(f"{self.path} was replaced by a symbolic link, which is not written through.")
        gone = not self.path.is_dir()
        if not gone:
            self._lease.require()  # before anything else: what another writer cleared away did not vanish
            gone = not self._lease.path.exists()
        if gone:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lease.release()
            self._lease = Lease(self.path, least=self._lease.fence + 1)
        if self._file is not None:
            try:
                there = (self.path / f"{self._stem}.journal").lstat()
                gone |= (there.st_ino, there.st_dev) != (os.fstat(self._file).st_ino, os.fstat(self._file).st_dev)
            except FileNotFoundError:
                gone = True
        gone |= any(not found.path.exists() for found in self._lineage)
        if gone:
            self.notes.append(f"{self.path} or a file in it vanished; it is made again, with the whole state.")
            self.forget_base()


def _same(a: Array | None, b: Array | None) -> bool:
    """Whether two arrays hold the same bytes."""
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a is b or a.tobytes() == b.tobytes()
