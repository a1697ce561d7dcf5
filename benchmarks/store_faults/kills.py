"""kill -9 at random moments, in the same directory again and again."""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from pathlib import Path
from typing import Any

from benchmarks.store_faults.children import ask, ended, fork, read_all
from benchmarks.store_faults.store import Store, judge, payload

ROUNDS_A_DIRECTORY = 10


def kills(kind: type[Store], folder: Path, rounds: int, size: int, seed: int, longest: float = 0.25) -> dict[str, Any]:
    """Start a writer, kill it, reopen, check, go on from there.

    The writer says each number through a pipe after its commit returned: from then on the record must never be lost.
    longest: seconds that a writer lives at most, uniformly drawn. Opening takes part of it, so openings are killed, too.
    """
    luck = random.Random(seed)
    total = dict.fromkeys(("kills", "commits", "lost", "different", "unreadable", "cannot_go_on", "complained"), 0)
    left: set[str] = set()
    rounds_with_leftovers, slowest = 0, 0.0
    for number in range(rounds):
        directory = folder / f"kills-{number // ROUNDS_A_DIRECTORY}"
        if number % ROUNDS_A_DIRECTORY == 0:
            committed = 0
            if not _made(kind, directory, size, seed):
                total["cannot_go_on"] += 1
                continue
            committed = 1
        committed, wrote = _one(kind, directory, committed, size, seed, luck.uniform(0.002, longest))
        total["kills"] += 1
        total["commits"] += wrote
        started = time.monotonic()
        said = ask(lambda: _checked(kind, directory, committed, size, seed))  # noqa: B023 (asked before the loop goes on)
        slowest = max(slowest, time.monotonic() - started)
        if "lost" not in said:
            total["unreadable"] += 1
            left |= set(said.get("left", ()))
            shutil.rmtree(directory)
            committed = int(_made(kind, directory, size, seed))
            continue
        total["lost"] += said["lost"]
        total["different"] += said["different"]
        total["complained"] += said["said"]
        total["cannot_go_on"] += not said["goes_on"]
        rounds_with_leftovers += bool(said["left"])
        left |= set(said["left"])
        if said["lost"] or not said["goes_on"]:
            shutil.rmtree(directory)
            committed = int(_made(kind, directory, size, seed))
        else:
            committed = said["through"]
    return {**total, "rounds_with_leftovers": rounds_with_leftovers, "slowest_s": round(slowest, 1), "leftovers": sorted(left)}


def _made(kind: type[Store], directory: Path, size: int, seed: int) -> bool:
    def work() -> dict[str, Any]:
        store = kind(directory)
        store.commit(1, payload(1, size, seed))
        store.close()
        return {"made": True}

    return "made" in ask(work)


def _one(kind: type[Store], directory: Path, committed: int, size: int, seed: int, life: float) -> tuple[int, int]:
    """One writer's life: (the last number it said, how many it said)."""

    def work(into: int) -> None:
        store = kind(directory)
        k = committed
        while True:
            k += 1
            store.commit(k, payload(k, size, seed))
            os.write(into, k.to_bytes(8, "little"))

    pid, out = fork(work)
    time.sleep(life)
    ended(pid, kill=True)
    data, _ = read_all(out)
    os.close(out)
    return (int.from_bytes(data[-8:], "little") if data else committed), len(data) // 8


def _checked(kind: type[Store], directory: Path, committed: int, size: int, seed: int) -> dict[str, Any]:
    """What the next start finds: everything committed, perhaps one more; and that one more can be written behind it."""

    def content(k: int) -> bytes:
        return payload(k, size, seed)

    found = kind.recover(directory)
    verdict = judge(kind, found, committed, content)
    through = max((k for k, _ in found.records), default=0)
    goes_on, left = False, []
    try:
        store = kind(directory)
        store.commit(through + 1, content(through + 1))
        store.close()
        again = judge(kind, kind.recover(directory), through + 1, content)
        goes_on = verdict.lost > 0 or not (again.lost or again.different)
    finally:
        left = strangers(kind, directory)
    return {
        "lost": verdict.lost,
        "different": verdict.different,
        "said": verdict.said,
        "through": through + 1,
        "goes_on": goes_on,
        "left": left,
    }


def strangers(kind: type[Store], directory: Path) -> list[str]:
    """Names, digits as #, that a store closed in peace does not leave behind."""
    return sorted({_shape(file.name) for file in directory.iterdir()} - _OWN[kind.name])


_OWN: dict[str, set[str]] = {}


def learn_names(kind: type[Store], directory: Path) -> None:
    """Note which names a store leaves behind in peace."""

    def work() -> dict[str, Any]:
        for first in (1, 4):  # two sessions: what the second leaves of the first is no leftover
            store = kind(directory)
            for k in range(first, first + 3):
                store.commit(k, payload(k, 1024))
            store.close()
        return {"names": [file.name for file in directory.iterdir()]}

    said = ask(work)
    if "names" not in said:
        raise RuntimeError(f"{kind.name} failed without any fault: {said}")
    _OWN[kind.name] = {_shape(name) for name in said["names"]}


def _shape(name: str) -> str:
    return re.sub(r"[0-9a-f]*\d[0-9a-f]*", "#", name)
