"""A fork with an open store, and a second writer at the same directory."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from benchmarks.store_faults.children import ask, ended, fork, read_all, short, wait_for
from benchmarks.store_faults.store import Store, payload


def forked(kind: type[Store], folder: Path, rounds: int, size: int, seed: int) -> dict[str, Any]:
    """Fork with an open store: both commit at the same time, the child closes. What the parent committed is read."""
    total: dict[str, Any] = {
        "rounds": 0,
        "lost": 0,
        "different": 0,
        "unreadable": 0,
        "parent_errors": 0,
        "parent_died": 0,
        "child_wrote": 0,
    }
    errors: set[str] = set()
    for number in range(rounds):
        directory = folder / f"fork-{number}"
        said = ask(lambda: _parent(kind, directory, size, seed + number))  # noqa: B023 (asked at once)
        total["rounds"] += 1
        if "committed" not in said:
            total["parent_died"] += 1
            errors.add(str(said.get("error") or said))
            continue
        total["parent_errors"] += said["errors"]
        total["child_wrote"] += said["child_wrote"]
        errors |= {said["error"], said["child_error"]} - {""}
        after = ask(lambda: _held(kind, directory, said["committed"], size, seed + number))  # noqa: B023
        total["unreadable"] += "lost" not in after
        total["lost"] += after.get("lost", 0)
        total["different"] += bool(after.get("different"))
        if "lost" not in after:
            errors.add(str(after.get("error") or after))
    return {**total, "errors": sorted(errors)}


_CHILD = 1_000  # numbers the child writes under


def _parent(kind: type[Store], directory: Path, size: int, seed: int) -> dict[str, Any]:
    store = kind(directory)
    for k in range(1, 4):
        store.commit(k, payload(k, size, seed))

    def child(into: int) -> None:
        wrote, error = 0, ""
        for k in range(_CHILD, _CHILD + 8):
            try:
                store.commit(k, payload(k, size, seed))
                wrote += 1
            except Exception as problem:
                error = short(problem)
        try:
            store.close()
        except Exception as problem:
            error = error or short(problem)
        os.write(into, json.dumps((wrote, error)).encode())

    pid, out = fork(child)
    committed, errors, error = [1, 2, 3], 0, ""
    for k in range(4, 12):
        try:
            store.commit(k, payload(k, size, seed))
            committed.append(k)
        except Exception as problem:
            errors += 1
            error = short(problem)
    data, _ = read_all(out)
    os.close(out)
    ended(pid)
    for k in range(12, 15):  # after the child has closed what it inherited
        try:
            store.commit(k, payload(k, size, seed))
            committed.append(k)
        except Exception as problem:
            errors += 1
            error = short(problem)
    wrote, child_error = json.loads(data) if data else (0, "the child died")
    return {"committed": committed, "errors": errors, "error": error, "child_wrote": wrote, "child_error": child_error}


def _held(kind: type[Store], directory: Path, committed: list[int], size: int, seed: int) -> dict[str, Any]:
    found = dict(kind.recover(directory).records)
    wanted = committed if kind.keeps == "all" else committed[-1:]
    return {
        "lost": sum(k not in found for k in wanted),
        "different": any(data != payload(k, size, seed) for k, data in found.items()),
    }


def two_writers(kind: type[Store], folder: Path, size: int, seed: int) -> dict[str, Any]:
    """A writes, B opens the same directory while A lives; then A is stopped, B takes over and writes, A wakes up and writes."""
    directory = folder / "two"

    def write(into: int, first: int) -> None:
        """Commit `first` and the next; at SIGUSR1 one more, of a number that nobody else uses. Say + or the error of each."""
        woken: list[int] = []
        signal.signal(signal.SIGUSR1, lambda *_: woken.append(1))
        try:
            store = kind(directory)
        except Exception as problem:
            os.write(into, f"refused {short(problem)}\n".encode())
            return
        for k in (first, first + 1):
            os.write(into, _tried(store, k, size, seed))
        while not woken:
            time.sleep(0.005)
        os.write(into, _tried(store, first + 100, size, seed))

    a, from_a = fork(lambda into: write(into, 1))
    wait_for(from_a, 2)
    b, from_b = fork(lambda into: write(into, 3))
    second = wait_for(from_b, 2, patience=5.0).decode()
    os.kill(b, signal.SIGKILL)
    ended(b)
    os.close(from_b)
    os.kill(a, signal.SIGSTOP)
    taken = _taken_over(kind, directory, size, seed)
    os.kill(a, signal.SIGUSR1)
    os.kill(a, signal.SIGCONT)
    woke = wait_for(from_a, 1, patience=5.0).decode()
    os.close(from_a)
    ended(a, kill=True)
    return {
        "second_writer": "refused"
        if second.startswith("refused")
        else f"both write ({second.split()[0] if second else 'hung'})",
        "second_said": second.split("\n")[0][:200],
        "takes_over_a_stopped_one": taken,
        "stopped_one_wakes": "its write is refused" if not woke.startswith("+") else "its write is taken",
        "woke_said": woke.strip()[:200],
    }


def _taken_over(kind: type[Store], directory: Path, size: int, seed: int, patience: float = 60.0) -> str:
    """Whether another writer can take over from a stopped one, and how long it has to try."""
    started = time.monotonic()

    def work() -> dict[str, Any]:
        k = max((k for k, _ in kind.recover(directory).records), default=0) + 1
        store = kind(directory)
        store.commit(k, payload(k, size, seed))
        store.close()
        return {"k": k}

    while True:
        said = ask(work, patience=60.0)
        if "k" in said:
            return f"after {time.monotonic() - started:.1f} s"
        if time.monotonic() - started > patience:
            return str(said.get("error") or said)
        time.sleep(0.2)


def _tried(store: Store, k: int, size: int, seed: int) -> bytes:
    try:
        store.commit(k, payload(k, size, seed))
    except Exception as problem:
        return f"- {short(problem)}\n".encode()
    return b"+\n"
