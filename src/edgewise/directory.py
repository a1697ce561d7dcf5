"""The states of one run in one directory: snapshots, and journals of what each commit changed.

    selector-<fence>-<commit>.safetensors    a whole state
    selector-<fence>-<commit>.journal        what later commits changed, a record each
    writer-<fence>.json                      who may write (`lease.py`)
    *.torn  *.superseded  *.backup           cut off, set aside by resume="fresh", or of an older format; never read again

`fence` is the number of the writer's lease, `commit` counts the commits of the run: a writer goes on counting behind the state
that it took up. How a state is found again is told in `history.py`; here it is written. A writer that leaves states behind
makes a second journal, empty and with one more zero in its name: see `RunDirectory._mark`.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgewise import journal, state
from edgewise.deltas import PER_PROMPT, Base
from edgewise.errors import MethodError, StateError, StateInUseError
from edgewise.history import UNKNOWN, Found, History, Node, Recovered, files
from edgewise.lease import Lease
from edgewise.types import Array, Ints

__all__ = ["UNKNOWN", "Found", "History", "Node", "Recovered", "RunDirectory", "differing", "files"]

RECORDS = 256
"""Records after which a new snapshot is written, whatever their size: replaying them takes well under a second."""
BYTES = 1 << 20
"""Bytes of records after which a new snapshot is written, if the last snapshot is not larger still."""

_MOST_TORN = 16
"""Tails cut off that are kept; the newest."""
_LONGEST_WAIT = 64
"""Commits after which a snapshot that could not be written is tried again, at most."""

_FENCE = re.compile(r"(?:\Aselector-(?=\d+-)|\.)(\d{6,9})(?=[-.])")
"""Numbers of leases in the names of files, those set aside among them."""


class _Tip(NamedTuple):
    """The state written last: what it was, and its identity. One value, so that no interrupt can part them."""

    base: Base
    id: bytes


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
        self._noted: set[str] = set()
        self._lease = Lease(self.path, least=self._highest_fence() + 1)
        self.promised = self._lease.promised
        """(lease, number) of the last commit that the writer before spoke of; (0, 0) if it said nothing."""
        try:
            if self._lease.took_over:
                self.notes.append(f"{self.path} was taken over from {self._lease.took_over}, which is dead or frozen.")
            for orphan in self.path.glob(".selector-*.tmp"):
                orphan.unlink(missing_ok=True)
        except BaseException:
            self._lease.release()
            raise
        self._commit = 0
        self._tip: _Tip | None = None
        self._journal: journal.Tail | None = None
        self._lineage: list[Found] = []
        """Snapshots on the way to the state written last, newest first, readable as far as is known."""
        self._records = self._bytes = 0  # behind the newest of these
        self._snapshot_size = 0
        self._restored = False
        self._behind: tuple[int, int] | None = None
        """(lease, number) of the commit behind which we go on, while what is newer is still to be left behind."""
        self._whole = self._whole_is_told = False
        self._wrong: tuple[str, ...] = ()
        self._try_again_at = self._wait = 0

    def _highest_fence(self) -> int:
        """Of all that was ever written here, also where the lease files were deleted or not copied. Raises OSError."""
        names = (name for name in os.listdir(self.path) if name.startswith("selector-"))
        return max((int(number) for name in names for number in _FENCE.findall(name)), default=0)

    # -- at start ------------------------------------------------------------------------------------------------------

    def history(self) -> History:
        """What is there. Raises OSError."""
        return History.of(self.path, self.most)

    def continue_from(self, history: History, recovered: Recovered | None, exactly: bool) -> None:
        """Go on behind a state that was read back: with records if it was taken up `exactly` as it is, else with a snapshot.

        The first file that is written leaves behind all that is newer than that state. Tails that cannot be read are cut off
        and kept. Raises OSError.
        """
        self._restored = False
        self._commit = recovered.node.commit if recovered is not None else 0
        for found, scan in history.journals:
            if scan.bad:
                self._cut(found, scan)
        if recovered is not None and exactly:
            extra = ("format", "state", "fence", "commit")
            header = {name: value for name, value in recovered.header.items() if name not in extra}
            self._tip = _Tip(Base(header, recovered.arrays), recovered.node.id)
            self._lineage = list(recovered.snapshots)
            self._records, self._bytes = recovered.records, recovered.record_bytes
            self._snapshot_size = self._lineage[0].path.stat().st_size
        nodes = history.nodes()
        newest = nodes[0][:2] if nodes else (0, 0)
        if nodes and (recovered is None or nodes[0].id != recovered.node.id):
            self._behind = (0, 0) if recovered is None else recovered.node[:2]
        if newest < self.promised:
            other = f" (of lease {newest[0]}, not {self.promised[0]})" if newest[0] != self.promised[0] else ""
            self.notes.append(
                f"{self.path}: the writer before made commit {self.promised[1]:,}, the newest found is {newest[1]:,}{other}: a "
                "file was cut, damaged, deleted or not copied."
            )
        self._lease.promise(*newest)  # until we commit nothing is given up

    def set_aside(self) -> None:
        """Keep all that is there under names that are never read again. Raises OSError."""
        self.promised = (0, 0)
        self._lease.promise(0, 0)
        for found in (*files(self.path, "safetensors"), *files(self.path, "journal")):
            found.path.rename(found.path.with_name(f"{found.path.name}.{self._lease.fence:06d}.superseded"))

    def _cut(self, found: Found, scan: journal.Scan) -> None:
        kept = found.path.with_name(f"{found.path.name}.{self._lease.fence:06d}.torn")
        state.write(kept, scan.data[scan.good :])
        os.truncate(found.path, scan.good)
        what = "an unfinished tail, as a crash leaves it" if scan.torn else "a damaged part"
        self.notes.append(
            f"{found.path.name}: {what}, {scan.bad:,} bytes from byte {scan.good:,} on, was cut off and kept as {kept.name}."
        )
        torn = sorted(self.path.glob("selector-*.torn"), key=lambda path: (path.name.split(".")[-2], path.name))
        for old in torn[:-_MOST_TORN]:
            old.unlink(missing_ok=True)

    # -- commits -------------------------------------------------------------------------------------------------------

    def commit(self, header: Mapping[str, Any], arrays: Mapping[str, Array], rows: Ints) -> int:
        """Make a state durable. Returns the bytes written.

        rows: (k,) distinct rows of per-prompt arrays that may have changed since the last commit that succeeded.

        Raises OSError if the disk refuses; StateError if another writer took over, or this is a fork; MethodError if the state
        changed at other rows than those (it was written as a whole then, and will be from here on). MethodError alone means
        that this commit is durable all the same. A record that is durable is not taken back by a snapshot that fails after it:
        that is tried again, and said in `notes`.
        """
        self._lease.require_own_process()
        self._be_there()
        arrays = {name: _plain(array) for name, array in arrays.items()}
        if self._restored:
            self._leave_behind(int(header["step"]))
        if self._behind is not None:
            self._lease.promise(*self._behind)
        if self._tip is None or self._whole:
            size = self._snapshot(header, arrays, uuid.uuid4().bytes)
            self._tell_of_whole_snapshots()
            return size
        change, parts = self._tip.base.difference(header, arrays, rows)
        payload = state.encode(change, parts)
        state.require_readable(payload, self.most)
        number = self._commit + 1
        data, digest = journal.frame(self._lease.fence, number, int(header["step"]), self._tip.id, payload)
        try:
            if self._journal is None or self._journal.size + len(data) > self.most:
                self._journal = journal.Tail(self._file("journal"))
            self._commit = number
            self._journal.append(data)
        except BaseException:  # what stands at its end is unknown: never append to this file again
            self._start_over()
            raise
        self._made()
        self._tip = _Tip(Base(header, arrays), digest)
        self._records, self._bytes = self._records + 1, self._bytes + len(data)
        full = self._records >= RECORDS or self._bytes >= max(BYTES, self._snapshot_size)
        if (full or len(self._lineage) < self.generations) and self._commit >= self._try_again_at:
            return len(data) + self._compact(header, arrays, digest)
        return len(data)

    def forget_base(self) -> None:
        """The next commit is of a state that came from elsewhere: it is written whole, and later steps are left behind."""
        self._restored = True
        self._start_over()

    def close(self) -> None:
        """Give the lease back. Nothing can be committed afterwards."""
        self._journal = None
        self._lease.release()

    def _start_over(self) -> None:
        """The next commit cannot be a change of the last one: write all of it, twice, so that there are two generations."""
        self._tip, self._journal, self._lineage = None, None, []

    def _file(self, kind: str, commit: int | None = None) -> Path:
        return self.path / f"selector-{self._lease.fence:06d}-{self._commit if commit is None else commit:09d}.{kind}"

    def _leave_behind(self, step: int) -> None:
        """Go on counting behind the newest state before `step`, as a new writer, so that none after it is read again."""
        nodes = self.history().nodes()
        last = max((node[:2] for node in nodes if node.step < step), default=(0, 0))
        before = last[1]
        # of files that cannot be read just now no nodes are known: our own count tells, too
        if self._commit > before or any(node.commit > before for node in nodes):
            lease = Lease(self.path, least=self._lease.fence + 1)
            self._lease.release()
            self._lease, self._commit, self._behind = lease, before, last
        self._restored = False

    def _made(self) -> None:
        """The present commit is on disk. Raises StateInUseError unless it is ours to make, OSError."""
        self._lease.require()  # whoever took over since has not read this one; whoever does from here on, will
        self._lease.promise(self._lease.fence, self._commit)
        if self._behind is not None:
            self._mark(self._behind[1])

    def _mark(self, commit: int) -> None:
        """Let a second file say that this writer went on behind `commit`, an empty journal with one more zero in its name: all
        that is newer stays left behind even if the first file that we wrote is lost.
        """
        try:
            journal.Tail(self.path / f"selector-{self._lease.fence:06d}-{commit:010d}.journal")
        except FileExistsError:
            pass
        except OSError:
            return  # what was committed stands all the same; the next commit tries again
        self._behind = None

    def _compact(self, header: Mapping[str, Any], arrays: Mapping[str, Array], digest: bytes) -> int:
        """A new snapshot of the state just committed, once its records are known to lead to it. Returns its bytes, or 0."""
        try:
            lineage, wrong = self._read_back(arrays, digest)
            if lineage is not None and not wrong:
                self._lineage = lineage
                size = self._snapshot(header, arrays, digest)
                self._wait = self._try_again_at = 0
                return size
        except StateInUseError:
            raise
        except (OSError, StateError) as error:  # the record is on disk: this commit stands
            if not self._wait:
                self.notes.append(f"{self.path}: no new snapshot: {error} The journal goes on; the snapshot is tried again.")
            self._wait = min(_LONGEST_WAIT, max(1, 2 * self._wait))
            self._try_again_at = self._commit + self._wait
            return 0
        self._start_over()  # from here on an error means that this commit is not durable
        if lineage is None:
            return self._snapshot(header, arrays, uuid.uuid4().bytes)
        self._whole, self._wrong = True, wrong
        size = self._snapshot(header, arrays, uuid.uuid4().bytes)
        self._tell_of_whole_snapshots()
        return size

    def _read_back(self, arrays: Mapping[str, Array], digest: bytes) -> tuple[list[Found] | None, tuple[str, ...]]:
        """Snapshots on the way to the state just committed, newest first, and names of arrays that came back as others.

        None, and a note, if its records do not lead to it. What was read is gone at the end: it is as large as the state.
        """
        history = self.history()
        node = next((node for node in history.nodes() if node.id == digest), None)
        replayed = history.replayed(node, self.generations - 1) if node is not None else None
        if replayed is None:
            self.notes += history.broken or [f"{self.path}: the journal of this run cannot be read back."]
            return None, ()
        return list(replayed.snapshots), differing(arrays, replayed.arrays)

    def _tell_of_whole_snapshots(self) -> None:
        """Raise MethodError, once, if that is how it goes from here on."""
        if self._whole and not self._whole_is_told:
            self._whole_is_told = True
            raise MethodError(
                f"the saved arrays {', '.join(repr(name.removeprefix(PER_PROMPT)) for name in self._wrong)} are not what the "
                "journal makes of them: they changed at rows of prompts whose groups were not observed. A method may write "
                "per-prompt arrays only in `observe`, and only at the rows that it is given; until it does, each commit writes "
                "the whole state."
            )

    def _snapshot(self, header: Mapping[str, Any], arrays: Mapping[str, Array], identity: bytes) -> int:
        """Write a whole state, as that of the record just appended if there is one. Raises OSError, StateError."""
        number = self._commit + (self._tip is None or self._tip.id != identity)
        found = Found(self._lease.fence, number, self._file("safetensors", number))
        own = {"state": identity.hex(), "fence": self._lease.fence, "commit": number}
        data = state.encode({**header, **own}, dict(arrays))
        state.require_readable(data, self.most)
        state.write(found.path, data)
        self._commit = number  # not before: our first file must say where we went on, however often the disk refuses
        if state.read(found.path, max(len(data), self.most)) != data:  # read back before anything older goes
            raise StateError(
                f"{found.path} was written, and something else is read back: the disk does not keep what it takes."
            )
        size = len(data)
        self._made()
        self._journal = None
        self._tip = _Tip(Base(header, arrays), identity)
        self._records = self._bytes = 0
        self._snapshot_size = size
        self._lineage = [found, *self._lineage][: self.generations]
        if len(self._lineage) == self.generations:
            try:
                self._forget_before(self._lineage[-1])
            except OSError as error:
                self._note_once(f"{self.path}: what is not needed any longer could not be removed: {error}.")
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
                        self._note_once(f"{found.path} could not be removed: {error}.")

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

    def _note_once(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self.notes.append(text)

    def _be_there(self) -> None:
        """Find out whether this may still write, and whether the folder or a file of ours vanished: then write all anew."""
        if self.path.is_symlink():
            raise StateError(f"{self.path} was replaced by a symbolic link, which is not written through.")
        gone = not self.path.is_dir()
        if not gone:
            self._lease.require()  # before anything else: what another writer cleared away did not vanish
            gone = not self._lease.is_there()
        if gone:
            self.path.mkdir(parents=True, exist_ok=True)
            lease = Lease(self.path, least=max(self._lease.fence, self._highest_fence()) + 1)
            lease.promise(*self._lease.said())
            self._lease.release()
            self._lease = lease
        changed = self._journal is not None and not self._journal.is_ours()
        gone |= changed and self._journal is not None and not os.path.lexists(self._journal.path)
        gone |= any(not found.path.exists() for found in self._lineage)
        if gone:
            self.notes.append(f"{self.path} or a file in it vanished; it is made again, with the whole state.")
        elif changed:
            self.notes.append(f"{self.path}: somebody else changed the journal; the whole state is written anew.")
        if gone or changed:
            self._start_over()


def _plain(array: Array) -> Array:
    """As it is read back: little-endian. The same object where it is that already, as `Base` goes by it."""
    little = array.dtype.newbyteorder("<")
    return array if array.dtype == little else array.astype(little)


def differing(a: Mapping[str, Array], b: Mapping[str, Array]) -> tuple[str, ...]:
    """Names of the arrays that do not hold the same bytes in both."""
    return tuple(sorted(name for name in {*a, *b} if not _same(a.get(name), b.get(name))))


def _same(a: Array | None, b: Array | None) -> bool:
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a is b or np.array_equal(np.ravel(a).view(np.uint8), np.ravel(b).view(np.uint8))
