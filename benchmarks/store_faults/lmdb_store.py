"""LMDB, where it is installed: `pip install lmdb` into an environment of its own. edgewise does not depend on it."""

from __future__ import annotations

from pathlib import Path

import lmdb
from benchmarks.store_faults.store import Recovered, Store

_MAP = 1 << 30  # bytes of address space; the file grows as needed


class Lmdb(Store):
    """Defaults, that is sync and metasync on: durable at every commit."""

    name = "lmdb"

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.env = lmdb.open(str(directory), map_size=_MAP)

    def commit(self, k: int, payload: bytes) -> None:
        with self.env.begin(write=True) as change:
            change.put(k.to_bytes(8, "big"), payload)

    def close(self) -> None:
        self.env.close()

    @classmethod
    def recover(cls, directory: Path) -> Recovered:
        return cls._read(lmdb.open(str(directory), map_size=_MAP))

    @classmethod
    def look(cls, directory: Path) -> Recovered:
        try:
            env = lmdb.open(str(directory), map_size=_MAP, readonly=True)
        except (
            lmdb.ReadonlyError
        ):  # without its lock file, which a viewer must write: what it reads may be overwritten under it
            env = lmdb.open(str(directory), map_size=_MAP, readonly=True, lock=False)
        return cls._read(env)

    @classmethod
    def stall(cls, directory: Path) -> object:
        env = lmdb.open(str(directory), map_size=_MAP, readonly=True)
        view = env.begin()
        return env, view, next(iter(view.cursor()), None)

    @classmethod
    def _read(cls, env: lmdb.Environment) -> Recovered:
        try:
            with env.begin() as view:
                return Recovered([(int.from_bytes(key, "big"), bytes(data)) for key, data in view.cursor()])
        finally:
            env.close()
