"""What a commit costs, all stores interleaved in one run, and how long it takes to open 256 of them."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.store_faults.children import ask, size_of
from benchmarks.store_faults.store import Store, judge, payload


def measure(
    stores: list[type[Store]], folder: Path, size: int, commits: int, seed: int, against: str
) -> dict[str, dict[str, Any]]:
    """Commit records of `size` bytes to every store in turns, in a new random order each time; then open each again.

    ratio: median over commits of this store's time over that of `against` in the same turn.
    """
    rows = ask(lambda: _measured(stores, folder, size, commits, seed, against), patience=3600.0)
    if against not in rows:
        raise RuntimeError(f"the stores could not be measured without any fault: {rows}")
    return rows


def _measured(
    stores: list[type[Store]], folder: Path, size: int, commits: int, seed: int, against: str
) -> dict[str, dict[str, Any]]:
    order = random.Random(seed)
    opened = {kind.name: kind(folder / str(n)) for n, kind in enumerate(stores)}
    spent: dict[str, list[float]] = {name: [] for name in opened}
    written = dict.fromkeys(opened, 0)
    for k in range(1, commits + 1):
        data = payload(k, size, seed)
        for name in order.sample(list(opened), len(opened)):
            before = _write_bytes()
            started = time.perf_counter()
            opened[name].commit(k, data)
            spent[name].append(1e3 * (time.perf_counter() - started))
            written[name] += _write_bytes() - before
    rows: dict[str, dict[str, Any]] = {}
    base = np.array(spent[against][_WARM:])
    for n, kind in enumerate(stores):
        times, held = np.array(spent[kind.name][_WARM:]), size_of(folder / str(n))
        opened[kind.name].close()
        closed = size_of(folder / str(n))
        reading = []
        for _ in range(3):
            started = time.perf_counter()
            found = kind.recover(folder / str(n))
            reading.append(1e3 * (time.perf_counter() - started))
        verdict = judge(kind, found, commits, lambda k: payload(k, size, seed))
        if verdict.lost or verdict.different or verdict.said:
            raise RuntimeError(f"{kind.name} did not give back what was committed, without any fault: {verdict}")
        rows[kind.name] = {
            "commit_ms_p50": float(np.median(times)),
            "commit_ms_mean": float(np.mean(times)),
            "commit_ms_p99": float(np.quantile(times, 0.99)),
            "ratio": float(np.median(times / base)),
            "disk_bytes_a_commit": held / commits,
            "disk_bytes_a_commit_closed": closed / commits,
            "write_amplification": written[kind.name] / (commits * size),
            "recover_ms": float(np.median(reading)),
            "steps_back": kind.steps(folder / str(n)),
            "commits": commits,
        }
    return rows


_WARM = 4  # first commits make tables and files; they are not in the times


def _write_bytes() -> int:
    """Bytes this process has caused to be written to the storage layer [man 5 proc: /proc/pid/io]."""
    with open(f"/proc/{os.getpid()}/io", encoding="ascii") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("write_bytes")), 0)
