"""SQLite, one row a commit, at its best: synchronous=FULL, cell_size_check; at recovery integrity_check and salvage by row."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import ClassVar

from benchmarks.store_faults.store import Recovered, Store, digest

TIMEOUT = 0.5
"""Seconds to wait for a lock; Python's default is 5. Part of what is measured when a viewer holds one."""
_MISSES = 64  # so many missing numbers in a row end the salvage


class Sqlite(Store):
    """WAL, synchronous=FULL: durable at every commit [sqlite.org/pragma.html#pragma_synchronous]."""

    name = "sqlite wal"
    journal: ClassVar[str] = "wal"

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.db = _connected(f"file:{directory / 'store.db'}")
        (mode,) = self.db.execute(f"PRAGMA journal_mode={self.journal}").fetchone()
        if mode != self.journal:
            raise RuntimeError(f"SQLite took journal_mode={mode}, asked for {self.journal}")
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.execute("CREATE TABLE IF NOT EXISTS records (k INTEGER PRIMARY KEY, payload BLOB NOT NULL)")

    def commit(self, k: int, payload: bytes) -> None:
        self.db.execute("INSERT INTO records VALUES (?, ?)", (k, payload))

    def close(self) -> None:
        self.db.close()

    @classmethod
    def recover(cls, directory: Path) -> Recovered:
        return cls._read(f"file:{directory / 'store.db'}")

    @classmethod
    def look(cls, directory: Path) -> Recovered:
        return cls._read(f"file:{directory / 'store.db'}?mode=ro")

    @classmethod
    def stall(cls, directory: Path) -> object:
        db = _connected(f"file:{directory / 'store.db'}?mode=ro")
        rows = db.execute("SELECT k, payload FROM records ORDER BY k")
        rows.fetchone()
        return db, rows

    @classmethod
    def _read(cls, uri: str) -> Recovered:
        db = _connected(uri)
        try:
            complaints: list[str] = []
            try:
                verdict = [row[0] for row in db.execute("PRAGMA integrity_check")]
                complaints += [] if verdict == ["ok"] else [str(line) for line in verdict]
                rows = db.execute("SELECT k, payload FROM records ORDER BY k").fetchall()
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise  # somebody writes: nothing is damaged
                rows = _salvaged(uri)
                if not rows:
                    raise
                complaints.append(str(error))
        finally:
            db.close()
        return cls._checked([(k, data) for k, data in rows if isinstance(data, bytes)], complaints)

    @classmethod
    def _checked(cls, rows: list[tuple[int, bytes]], complaints: list[str]) -> Recovered:
        return Recovered(rows, complaints)


class SqliteGuarded(Sqlite):
    """With what one would have to add: a chained checksum in each row, a fence that each commit checks in its transaction."""

    name = "sqlite wal + ours"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.db.execute("CREATE TABLE IF NOT EXISTS fence (id INTEGER PRIMARY KEY, n INTEGER NOT NULL)")
        sql = "INSERT INTO fence VALUES (1, 1) ON CONFLICT DO UPDATE SET n = n + 1 RETURNING n"
        ((self.fence,),) = self.db.execute(sql).fetchall()
        row = self.db.execute("SELECT payload FROM records ORDER BY k DESC LIMIT 1").fetchone()
        self.before: bytes = row[0][:16] if row else b""

    def commit(self, k: int, payload: bytes) -> None:
        stamp = digest(self.before, k, payload)
        sql = "INSERT INTO records SELECT ?, ? WHERE (SELECT n FROM fence) = ?"
        if self.db.execute(sql, (k, stamp + payload, self.fence)).rowcount != 1:
            raise RuntimeError(f"another writer took over: the fence is no longer {self.fence}")
        self.before = stamp

    @classmethod
    def _checked(cls, rows: list[tuple[int, bytes]], complaints: list[str]) -> Recovered:
        records, before = [], b""
        for k, data in rows:
            if data[:16] == digest(before, k, data[16:]):
                records.append((k, data[16:]))
            else:
                complaints.append(f"record {k} does not match its checksum")
            before = data[:16]
        return Recovered(records, complaints)


class SqliteDelete(Sqlite):
    """Rollback journal: the mode for network file systems, where WAL does not work [sqlite.org/wal.html]."""

    name = "sqlite delete"
    journal = "delete"


class SqliteDeleteGuarded(SqliteGuarded):
    """Rollback journal, checksum and fence."""

    name = "sqlite delete + ours"
    journal = "delete"


class SqliteImmutable(Sqlite):
    """A viewer that opens with immutable=1: what is left where the directory may not be written."""

    name = "sqlite wal, immutable=1"

    @classmethod
    def look(cls, directory: Path) -> Recovered:
        return cls._read(f"file:{directory / 'store.db'}?immutable=1")


def _connected(uri: str) -> sqlite3.Connection:
    db = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=TIMEOUT)
    db.execute("PRAGMA cell_size_check=ON")
    return db


def _salvaged(uri: str) -> list[tuple[int, bytes]]:
    """Row by row, from a file that SQLite refuses as a whole, too (writable_schema: as the shell's `.recover` opens it)."""
    rows, misses, k = [], 0, 0
    db = _connected(uri)
    try:
        db.execute("PRAGMA writable_schema=ON")
        while misses < _MISSES:
            k += 1
            try:
                row = db.execute("SELECT payload FROM records WHERE k = ?", (k,)).fetchone()
            except sqlite3.DatabaseError:
                row = None
            misses = misses + 1 if row is None else 0
            if row is not None:
                rows.append((k, row[0]))
    except sqlite3.DatabaseError:
        pass
    finally:
        db.close()
    return rows
