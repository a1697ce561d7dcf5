"""Files cut, flipped, zeroed: on every file that a store leaves, killed and closed in peace."""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.store_faults.children import ask_each, ended, fork, wait_for
from benchmarks.store_faults.store import Store, judge, payload


@dataclass(frozen=True)
class Case:
    """One fault: `kind` cut, flip, nul tail, zeros, empty or gone; in `file`, at byte `at`."""

    fault: str
    file: str
    at: int = 0
    bit: int = 0


def made(kind: type[Store], directory: Path, records: int, size: int, seed: int, killed: bool) -> None:
    """A store of `records` committed records, whose writer was killed after the last one, or closed it."""

    def work(into: int) -> None:
        store = kind(directory)
        for k in range(1, records + 1):
            store.commit(k, payload(k, size, seed))
        if not killed:
            store.close()
        os.write(into, b"\n")
        while killed:
            signal.pause()

    pid, out = fork(work)
    ready = wait_for(out, 1)
    code = ended(pid, kill=killed)
    os.close(out)
    if not ready or code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{kind.name} could not write {records} records without any fault (exit {code})")


def cases(directory: Path, every: int, seed: int, least: int) -> Iterator[Case]:
    """Faults on every file of a store: cuts and flips at every `every`-th byte, at least `least` a file, and the blunt ones."""
    luck = random.Random(seed)
    for file in sorted(f for f in directory.rglob("*") if f.is_file()):
        name, length = str(file.relative_to(directory)), file.stat().st_size
        step = max(1, min(every, length // least))
        for at in range(0, length, step):
            yield Case("cut", name, at)
            yield Case("flip", name, min(length - 1, at + luck.randrange(step)), luck.randrange(8))
        for tail in (512, 4096):
            yield Case("nul added", name, tail)
            yield Case("nul tail", name, min(tail, length))
        yield Case("zeros", name)
        yield Case("gone", name)


def apply(case: Case, directory: Path) -> None:
    """Do it to the file."""
    path = directory / case.file
    length = path.stat().st_size
    if case.fault == "gone":
        path.unlink()
        return
    with path.open("r+b") as file:
        if case.fault == "cut":
            file.truncate(case.at)
        elif case.fault == "flip":
            file.seek(case.at)
            (byte,) = file.read(1)
            file.seek(case.at)
            file.write(bytes([byte ^ 1 << case.bit]))
        elif case.fault == "nul added":
            file.seek(length)
            file.write(bytes(case.at))
        elif case.fault == "nul tail":
            file.seek(length - case.at)
            file.write(bytes(case.at))
        else:
            file.write(bytes(length))


def sweep(
    kind: type[Store],
    folder: Path,
    records: int,
    size: int,
    every: int,
    seed: int,
    killed: bool,
    faults: Collection[str],
    least: int = 64,
) -> dict[str, Any]:
    """Every case of `faults` on a copy of its own. Returns counts by "fault of file"."""
    whole, copy = folder / "whole", folder / "copy"
    made(kind, whole, records, size, seed, killed)
    todo = [case for case in cases(whole, every, seed, least) if case.fault in faults]

    def content(k: int) -> bytes:
        return payload(k, size, seed)

    def one(case: Case) -> dict[str, Any]:
        kind.hurry()
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        apply(case, copy)
        said: dict[str, Any] = {}
        try:
            found = kind.recover(copy)
        except Exception as error:
            said = {
                "unreadable": f"{type(error).__name__}",
                "lost": records,
                "steps": records,
                "different": False,
                "said": True,
            }
            keep: dict[int, bytes] = {}
        else:
            said = vars(judge(kind, found, records, content)) | {}
            keep = dict(found.records)
        said["goes_on"] = _goes_on(kind, copy, keep, content)
        return said

    counts: dict[str, dict[str, Any]] = {}
    for case, said in zip(todo, ask_each(todo, one), strict=True):
        _count(counts.setdefault(f"{case.fault} | {_plain(case.file)}", _empty()), said, records)
    shutil.rmtree(whole)
    shutil.rmtree(copy, ignore_errors=True)
    return counts


def _goes_on(kind: type[Store], directory: Path, keep: dict[int, bytes], content: Any) -> bool:
    """Whether the damaged store can be written again, and gives back the new record and all that it gave back before."""
    k = max(keep, default=0) + 1
    try:
        store = kind(directory)
        store.commit(k, content(k))
        store.close()
        again = kind.recover(directory)
    except Exception:
        return False
    found = dict(again.records)
    wanted = {k: content(k)} | (keep if kind.keeps == "all" else {})
    return all(found.get(number) == data for number, data in wanted.items())


def _plain(name: str) -> str:
    return "".join("#" if c.isdigit() else c for c in name)


def _empty() -> dict[str, Any]:
    return {
        "cases": 0,
        "harmless": 0,
        "said": 0,
        "silently_different": 0,
        "silently_lost": 0,
        "unreadable": 0,
        "crashed": 0,
        "hung": 0,
        "lost_records": 0,
        "lost_steps": 0,
        "goes_on": 0,
        "of_records": 0,
    }


def _count(row: dict[str, Any], said: dict[str, Any], records: int) -> None:
    row["cases"] += 1
    row["of_records"] += records
    if "crashed" in said or "hung" in said or "error" in said:
        row["crashed"] += "crashed" in said
        row["hung"] += "hung" in said
        row["unreadable"] += 1
        row["lost_records"] += records
        row["lost_steps"] += records
        return
    damaged = said["lost"] or said["different"]
    row["unreadable"] += "unreadable" in said
    row["said"] += bool(said["said"])
    row["harmless"] += not damaged and not said["said"]
    row["silently_different"] += bool(said["different"] and not said["said"])
    row["silently_lost"] += bool(said["lost"] and not said["different"] and not said["said"])
    row["lost_records"] += said["lost"]
    row["lost_steps"] += said["steps"]
    row["goes_on"] += bool(said["goes_on"])
