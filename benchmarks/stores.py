"""Which store holds a run's state: the same faults for SQLite, LMDB, edgewise's own directory and two controls.

`python benchmarks/stores.py` takes some minutes and prints the tables; `--out FILE` also writes them as JSON. Records are
incompressible bytes of the size of a commit (256 prompts). LMDB is compared where it is installed: no dependency of edgewise.

    a  what a commit costs (all stores in turns, in one process), on disk and in time; opening after that many commits
    b  kill -9 of the writer at random moments
    c  every file cut at every n-th byte      d  one bit flipped in every n-th byte      e  tails of NULs, zeros, a file gone
    f  the disk full, and room again (RLIMIT_FSIZE; with --mount also a small tmpfs, which takes root)
    g  a viewer that reads all the time, one stopped in the middle, one that may not write the directory
    h  fork with an open store; a second writer; a stopped writer that wakes up after another took over
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from benchmarks.store_faults import damage, full, kills, speed, tables, viewers, writers
from benchmarks.store_faults.files import JsonLines, Snapshots, Snapshots100k
from benchmarks.store_faults.ours import Directory, Directory100k, Frames
from benchmarks.store_faults.sqlite import Sqlite, SqliteDelete, SqliteDeleteGuarded, SqliteGuarded, SqliteImmutable
from benchmarks.store_faults.store import Store

import edgewise

Rows = dict[str, Any]

PARTS = "abcdefgh"
SMALL, LARGE = 10_240, 1 << 20
"""Bytes of a record: a commit of 256 prompts, and a large one."""
_PAST_A_CHECKPOINT = 300
"""Records of which SQLite has moved 200 from its WAL into the database, at 1,000 pages, and the others not."""


def stores() -> list[type[Store]]:
    """Everything that can be compared here, ours first."""
    found: list[type[Store]] = [Directory, Sqlite, SqliteGuarded, SqliteDelete, SqliteDeleteGuarded]
    if importlib.util.find_spec("lmdb"):
        from benchmarks.store_faults.lmdb_store import Lmdb

        found.append(Lmdb)
    else:
        print("LMDB IS NOT COMPARED: it is not installed (pip install lmdb, in an environment of its own).", file=sys.stderr)
    return [*found, JsonLines, Snapshots]


def main(words: list[str] | None = None) -> None:
    """Print tables; with --out write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", default=PARTS, help="letters of what to do, see the head of the file")
    parser.add_argument("--stores", help="names, separated by commas; default: all")
    parser.add_argument("--commits", type=int, default=512, help="part a: the 258th makes edgewise compact its journal")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--every", type=int, default=509, help="distance in bytes of cuts and flips; 1: every byte")
    parser.add_argument("--records", type=int, default=6, help="records in a store that is damaged")
    parser.add_argument("--looked-at", type=int, default=256, help="commits beside a viewer")
    parser.add_argument("--rounds", type=int, default=20, help="forks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mount", action="store_true", help="fill a small tmpfs, too (mounts and unmounts one; root)")
    parser.add_argument("--folder", type=Path, help="a folder on the disk to measure; default: a temporary one")
    parser.add_argument("--out", type=Path, help="write JSON here; what is in it already and was not asked for stays")
    args = parser.parse_args(words)
    kinds = [kind for kind in stores() if not args.stores or kind.name in args.stores.split(",")]
    parts: Rows = json.loads(args.out.read_text())["parts"] if args.out is not None and args.out.is_file() else {}
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="stores-") as name:
        root = Path(name)
        root.chmod(0o755)  # part g: another user looks
        for kind in kinds:
            kills.learn_names(kind, root / "names" / kind.name)
        for part in args.parts:
            started = time.monotonic()
            rows = _PARTS[part](kinds, root / part, args)
            print(f"\n{part}\n{tables.shown(part, rows)}", flush=True)
            about = {"command": _command(part, args), "seconds": round(time.monotonic() - started), **machine(kinds)}
            text = json.dumps({"runs": [about], "rows": rows}).replace(str(root), "RUN").replace(socket.gethostname(), "HOST")
            new = json.loads(text)
            if args.stores and part != "a" and part in parts:  # one run compares times, the others may be done in pieces
                kept = {name: row for name, row in parts[part]["rows"].items() if name not in new["rows"]}
                new = {"runs": [*parts[part]["runs"], *new["runs"]], "rows": new["rows"] | kept}
            parts[part] = new
            if args.out is not None:
                args.out.write_text(json.dumps({"parts": dict(sorted(parts.items()))}, indent=1) + "\n")


def _command(part: str, args: argparse.Namespace) -> str:
    names = ("commits", "kills", "every", "records", "looked_at", "rounds", "seed")
    given = [f"--{name.replace('_', '-')} {getattr(args, name)}" for name in names] + ["--mount"] * args.mount
    chosen = [f"--stores '{args.stores}'"] if args.stores else []
    return " ".join(["python benchmarks/stores.py --parts", part, *chosen, *given])


def machine(kinds: list[type[Store]]) -> dict[str, Any]:
    """What the numbers depend on."""
    found: dict[str, Any] = {
        "python": platform.python_version(), "sqlite": sqlite3.sqlite_version, "numpy": np.__version__,
        "edgewise": edgewise.__version__, "sources": _sources(), "system": platform.system(), "cores": os.cpu_count(),
    }  # fmt: skip
    if any(kind.name == "lmdb" for kind in kinds):
        import lmdb

        found["lmdb"] = ".".join(map(str, lmdb.version())) + ", py-lmdb " + lmdb.__version__
    return found


def _sources() -> str:
    """Names the code of ours that was measured: a hash over the files that make states durable."""
    folder = Path(edgewise.__file__).parent
    hasher = hashlib.blake2b(digest_size=6)
    for file in (folder / f"{name}.py" for name in ("state", "journal", "deltas", "history", "directory", "lease")):
        hasher.update(file.read_bytes() if file.is_file() else b"")
    return hasher.hexdigest()


def _speed(kinds: list[type[Store]], root: Path, args: argparse.Namespace) -> Rows:
    small = [Directory100k if kind is Directory else Snapshots100k if kind is Snapshots else kind for kind in kinds]
    rows: Rows = {}
    for size, some, commits in ((SMALL, small, args.commits), (LARGE, kinds, max(8, args.commits // 8))):
        if Directory in kinds:
            some = [*some, Frames]
        rows[f"{size} bytes"] = speed.measure(some, root / str(size), size, commits, args.seed, against=some[0].name)
    return rows


def _kills(kinds: list[type[Store]], root: Path, args: argparse.Namespace) -> Rows:
    return {kind.name: kills.kills(kind, root / kind.name, args.kills, SMALL, args.seed) for kind in kinds}


def _damage(faults: str) -> Callable[[list[type[Store]], Path, argparse.Namespace], Rows]:
    def run(kinds: list[type[Store]], root: Path, args: argparse.Namespace) -> Rows:
        rows: Rows = {}
        for kind in kinds:
            for state, killed in (("killed", True), ("closed", False)):
                where = root / kind.name / state
                wanted = [name for name in faults.split(",")]
                found = damage.sweep(kind, where, args.records, SMALL, args.every, args.seed, killed, wanted)
                rows[f"{kind.name}, {state}"] = found
        return rows

    return run


def _full(kinds: list[type[Store]], root: Path, args: argparse.Namespace) -> Rows:
    rows: Rows = {}
    for kind in kinds:
        rows[f"{kind.name}, short write"] = full.limited(kind, root / kind.name / "short", SMALL, args.seed, short_write=True)
        rows[f"{kind.name}, no room"] = full.limited(kind, root / kind.name / "none", SMALL, args.seed, short_write=False)
        with full.small_disk(root / "disk", 4 << 20) if args.mount else contextlib.nullcontext() as disk:
            if disk is not None:
                rows[f"{kind.name}, tmpfs"] = full.filled(kind, disk, SMALL, args.seed)
    if args.mount and not any(name.endswith("tmpfs") for name in rows):
        print("THE DISK WAS NOT FILLED: no tmpfs could be mounted here.", file=sys.stderr)
    return rows


def _viewers(kinds: list[type[Store]], root: Path, args: argparse.Namespace) -> Rows:
    rows: Rows = {}
    for kind in kinds:
        where = root / kind.name
        rows[kind.name] = {
            "busy": viewers.busy(kind, where, args.looked_at, SMALL, args.seed),
            "stopped": viewers.stopped(kind, where, 64, SMALL, args.seed),
            "read only": viewers.read_only(kind, where, _PAST_A_CHECKPOINT, SMALL, args.seed),
        }
    if Sqlite in kinds:
        rows[SqliteImmutable.name] = {
            "read only": viewers.read_only(SqliteImmutable, root / "immutable", _PAST_A_CHECKPOINT, SMALL, args.seed)
        }
    return rows


def _shared(kinds: list[type[Store]], root: Path, args: argparse.Namespace) -> Rows:
    return {
        kind.name: {
            "fork": writers.forked(kind, root / kind.name, args.rounds, SMALL, args.seed),
            "two writers": writers.two_writers(kind, root / kind.name, SMALL, args.seed),
        }
        for kind in kinds
    }


_PARTS: dict[str, Callable[[list[type[Store]], Path, argparse.Namespace], Rows]] = {
    "a": _speed,
    "b": _kills,
    "c": _damage("cut"),
    "d": _damage("flip"),
    "e": _damage("nul added,nul tail,zeros,gone"),
    "f": _full,
    "g": _viewers,
    "h": _shared,
}


if __name__ == "__main__":
    main()
