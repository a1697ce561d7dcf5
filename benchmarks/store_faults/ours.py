"""edgewise's own: the run directory as `Selector(directory=...)` uses it, and its journal's frames alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import numpy as np
from benchmarks.store_faults.store import Recovered, Store

from edgewise import journal, lease, state
from edgewise.directory import History, RunDirectory
from edgewise.errors import StateError

_ROWS = 256
"""Prompts that a commit touches."""
_MOST = 1 << 28


class Directory(Store):
    """A state of `prompts` rows, of which commit k overwrites the 256 of block k: the record is what a commit changes.

    So the newest state holds the newest `prompts` / 256 records, and each of them can be told from what should be there.
    """

    name = "edgewise"
    keeps = "newest"
    prompts: ClassVar[int] = 4 * _ROWS

    def __init__(self, directory: Path) -> None:
        self.run = RunDirectory(directory, _MOST)
        history = self.run.history()
        found = history.newest()
        if found is None and history.nodes():
            raise StateError("; ".join(history.broken))
        self.run.continue_from(history, found, exactly=found is not None)
        self.data = found.arrays["method/prompts/data"] if found is not None else np.zeros((self.prompts, 0), np.uint8)

    def commit(self, k: int, payload: bytes) -> None:
        part = np.frombuffer(payload, np.uint8).reshape(_ROWS, -1)
        if part.shape[1] != self.data.shape[1]:
            self.data = np.zeros((self.prompts, part.shape[1]), np.uint8)
        rows = _rows(k, self.prompts)
        self.data[rows] = part
        self.run.commit({"step": k}, {"method/prompts/data": self.data}, rows)

    def close(self) -> None:
        self.run.close()

    @classmethod
    def recover(cls, directory: Path) -> Recovered:
        history = History.of(directory, _MOST)
        found = history.newest()
        said = list(history.broken)
        said += [f"{at.path.name}: {scan.bad} bytes at its end cannot be used" for at, scan in history.journals if scan.bad]
        if found is None:
            if said or history.nodes():
                raise StateError("; ".join(said))
            return Recovered([])
        data, newest = found.arrays["method/prompts/data"], found.header["step"]
        first = max(1, newest - len(data) // _ROWS + 1)
        return Recovered([(k, data[_rows(k, len(data))].tobytes()) for k in range(first, newest + 1)], said)

    @classmethod
    def steps(cls, directory: Path) -> int:
        return len(History.of(directory, _MOST).steps())

    @classmethod
    def hurry(cls) -> None:
        lease.PATIENCE_S = 0.02

    @classmethod
    def stall(cls, directory: Path) -> object:
        file = sorted(directory.glob("*.safetensors"))[-1].open("rb")
        file.read(8)
        return file


class Directory100k(Directory):
    """The same with the state of 100,000 prompts behind it."""

    name = "edgewise, 100k prompts"
    prompts = 100_000


class Frames(Store):
    """`journal.frame`, a write and an fsync: what the format costs without differences, lease and snapshots."""

    name = "edgewise, frames alone"

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.file = os.open(directory / "store.journal", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        state.sync_folder(directory)
        self.before = bytes(16)

    def commit(self, k: int, payload: bytes) -> None:
        data, self.before = journal.frame(1, k, k, self.before, payload)
        if os.write(self.file, data) != len(data):
            raise OSError("a short write")
        os.fsync(self.file)

    def close(self) -> None:
        os.close(self.file)

    @classmethod
    def recover(cls, directory: Path) -> Recovered:
        scan = journal.scan(directory / "store.journal", _MOST)
        return Recovered(
            [(record.commit, scan.data[record.payload]) for record in scan.records], ["a damaged tail"] if scan.bad else []
        )

    @classmethod
    def stall(cls, directory: Path) -> object:
        return (directory / "store.journal").open("rb")


def _rows(k: int, prompts: int) -> np.ndarray:
    blocks = prompts // _ROWS
    return np.arange(k % blocks, k % blocks + _ROWS * blocks, blocks)
