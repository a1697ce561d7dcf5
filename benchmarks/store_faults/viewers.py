"""A viewer at a directory that is written: one that reads all the time, one stopped in the middle, one that may not write."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.store_faults.children import ask, ended, fork, read_all, short, size_of, wait_for
from benchmarks.store_faults.damage import made
from benchmarks.store_faults.store import Store, judge, payload

NOBODY = 65534


def busy(kind: type[Store], folder: Path, commits: int, size: int, seed: int) -> dict[str, Any]:
    """Latency of commits without a viewer and with one that reads everything over and over; errors on either side."""
    alone = ask(lambda: _written(kind, folder / "alone", commits, size, seed))
    directory = folder / "watched"
    made(kind, directory, 2, size, seed, killed=False)

    def look(into: int) -> None:
        looks = errors = wrong = 0
        seen = 2
        last = ""
        stop: list[int] = []
        signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
        os.write(into, b"\n")
        while not stop:
            looks += 1
            try:
                found = kind.look(directory)
                now = max((k for k, _ in found.records), default=0)
                verdict = judge(kind, found, now, lambda k: payload(k, size, seed))
                wrong += verdict.different or verdict.lost > 0 or now < seen
                seen = max(seen, now)
            except Exception as error:
                errors += 1
                last = short(error)
        os.write(into, json.dumps((looks, errors, wrong, last)).encode())

    pid, out = fork(look)
    wait_for(out, 1)
    watched = ask(lambda: _written(kind, directory, commits, size, seed, first=3))
    os.kill(pid, signal.SIGTERM)
    looked, _ = read_all(out)
    os.close(out)
    ended(pid)
    looks, errors, wrong, last = json.loads(looked) if looked else (0, 0, 0, "the viewer died")
    return {
        "writer_errors": watched.get("errors", commits),
        "writer_error": watched.get("error", ""),
        "commit_ms_p50": watched.get("p50"),
        "commit_ms_max": watched.get("max"),
        "alone_ms_p50": alone.get("p50"),
        "alone_ms_max": alone.get("max"),
        "looks": looks,
        "viewer_errors": errors,
        "viewer_error": last,
        "viewer_saw_wrong": wrong,
    }


def stopped(kind: type[Store], folder: Path, commits: int, size: int, seed: int) -> dict[str, Any]:
    """A viewer stopped (SIGSTOP) in the middle of reading: does the writer go on, and does the store grow?"""
    free, directory = folder / "free", folder / "stalled"
    for where in (free, directory):
        made(kind, where, 2, size, seed, killed=False)

    def stand(into: int) -> None:
        held = kind.stall(directory)
        os.write(into, b"\n")
        signal.pause()
        del held

    pid, out = fork(stand)
    ready = wait_for(out, 1)
    os.kill(pid, signal.SIGSTOP)
    with_it = ask(lambda: _written(kind, directory, commits, size, seed, first=3), patience=120.0)
    without = ask(lambda: _written(kind, free, commits, size, seed, first=3))
    ended(pid, kill=True)
    os.close(out)
    return {
        "viewer_stood": bool(ready),
        "writer_errors": with_it.get("errors", commits),
        "of": commits,
        "writer_error": with_it.get("error", ""),
        "bytes_with": with_it.get("bytes"),
        "bytes_without": without.get("bytes"),
    }


def read_only(kind: type[Store], folder: Path, records: int, size: int, seed: int) -> dict[str, Any]:
    """A viewer that may not write the directory: after a peaceful end, after a killed writer, and beside a live one."""
    if os.geteuid() != 0:
        return {"skipped": "needs root, to become a user that may not write"}
    rows: dict[str, Any] = {}
    for name, killed in (("closed", False), ("killed", True)):
        directory = folder / name
        made(kind, directory, records, size, seed, killed)
        rows[name] = _seen_by_nobody(kind, directory, records, size, seed)
    directory = folder / "live"

    def write(into: int) -> None:
        store = kind(directory)
        for k in range(1, records + 1):
            store.commit(k, payload(k, size, seed))
        os.write(into, b"\n")
        signal.pause()

    pid, out = fork(write)
    wait_for(out, 1)
    rows["live"] = _seen_by_nobody(kind, directory, records, size, seed)
    ended(pid, kill=True)
    os.close(out)
    return rows


def _seen_by_nobody(kind: type[Store], directory: Path, records: int, size: int, seed: int) -> str:
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)

    def work() -> dict[str, Any]:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return vars(judge(kind, kind.look(directory), records, lambda k: payload(k, size, seed)))

    said = ask(work)
    if "lost" not in said:
        return str(said.get("error") or said)
    return (
        "all"
        if not said["lost"]
        else f"{said['lost']} of {records} records missing, " + ("said so" if said["said"] else "in silence")
    )


def _written(kind: type[Store], directory: Path, commits: int, size: int, seed: int, first: int = 1) -> dict[str, Any]:
    store = kind(directory)
    spent, errors, error = [], 0, ""
    for k in range(first, first + commits):
        started = time.perf_counter()
        try:
            store.commit(k, payload(k, size, seed))
        except Exception as problem:
            errors += 1
            error = short(problem)
        spent.append(1e3 * (time.perf_counter() - started))
        if errors >= 10:  # blocked: each one waits for a lock
            break
    held = size_of(directory)
    try:
        store.close()
    except Exception as problem:
        error = error or short(problem)
    return {"p50": float(np.median(spent)), "max": max(spent), "errors": errors, "error": error, "bytes": held}
