"""A disk that fills up under the writer, and gets room again."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.store_faults.children import ask, ended, fork, short, wait_for
from benchmarks.store_faults.store import Store, judge, payload

_FIRST = 5  # commits before room runs out
_TRIES = 12  # commits tried without room: some may still fit


def limited(kind: type[Store], directory: Path, size: int, seed: int, short_write: bool) -> dict[str, Any]:
    """RLIMIT_FSIZE: a write that crosses the limit is cut short, the next one fails with EFBIG (SIGXFSZ is ignored by Python).

    short_write: the limit lies a record and a half above the largest file after five commits; else half a record above nothing.
    Then it is taken away again.
    """

    def fill() -> None:
        largest = max((file.stat().st_size for file in directory.rglob("*") if file.is_file()), default=0)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest + size * 3 // 2 if short_write else size // 2, hard))

    def free() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    return _filled(kind, directory, size, seed, fill, free)


def filled(kind: type[Store], mount: Path, size: int, seed: int) -> dict[str, Any]:
    """A small file system of its own, filled by another file but for half a record, which is then removed."""
    directory, ballast = mount / "store", mount / "ballast"

    def fill() -> None:
        left = os.statvfs(mount).f_bavail * os.statvfs(mount).f_frsize
        with ballast.open("wb") as file:
            for start in range(0, max(0, left - size // 2), 4096):
                del start
                file.write(bytes(4096))

    def free() -> None:
        ballast.unlink()

    try:
        return _filled(kind, directory, size, seed, fill, free)
    finally:
        for file in sorted(mount.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()


def _filled(
    kind: type[Store], directory: Path, size: int, seed: int, fill: Callable[[], None], free: Callable[[], None]
) -> dict[str, Any]:
    """The writer is one child; whoever looks is another, forked from here, where no store is open."""

    def content(k: int) -> bytes:
        return payload(k, size, seed)

    held, go = os.pipe()

    def work(into: int) -> None:
        os.close(go)
        said: dict[str, Any] = {"refusals": 0, "error": "", "continued": False, "reopened": False}
        store, k = kind(directory), 0
        for _ in range(_FIRST):
            k += 1
            store.commit(k, content(k))
        fill()
        for _ in range(_TRIES):
            try:
                store.commit(k + 1, content(k + 1))
                k += 1
            except Exception as error:
                said["refusals"] += 1
                said["error"] = said["error"] or short(error)
        os.write(into, f"{k}\n".encode())
        os.read(held, 1)
        free()
        for _ in range(3):
            try:
                store.commit(k + 1, content(k + 1))
                k += 1
                said["continued"] = True
            except Exception as error:
                said["error_after"] = short(error)
        with contextlib.suppress(Exception):
            store.close()
        if not said["continued"]:
            with contextlib.suppress(Exception):
                k = max((number for number, _ in kind.recover(directory).records), default=0)
                store = kind(directory)
                store.commit(k + 1, content(k + 1))
                k += 1
                said["reopened"] = True
                store.close()
        os.write(into, json.dumps({**said, "committed": k}).encode() + b"\n")

    pid, out = fork(work)
    os.close(held)
    first = wait_for(out, 1).strip()
    if not first:
        ended(pid, kill=True)
        raise RuntimeError(f"{kind.name} could not write {_FIRST} records without any fault")
    full = ask(lambda: vars(judge(kind, kind.look(directory), int(first), content)))
    with contextlib.suppress(BrokenPipeError):
        os.write(go, b"+")
    last = wait_for(out, 1).strip()
    os.close(go)
    os.close(out)
    code = ended(pid, kill=not last)
    said: dict[str, Any] = json.loads(last) if last else {"error": f"the writer ended with {code}"}
    committed = int(said.get("committed", first))
    end = ask(lambda: vars(judge(kind, kind.recover(directory), committed, content)))
    return {
        "writer_survives": bool(last),
        "refusals": said.get("refusals", 0),
        "error": said.get("error", ""),
        "readable_while_full": full.get("lost") == 0 and not full.get("different"),
        "viewer_error_while_full": full.get("error", ""),
        "goes_on_by_itself": bool(said.get("continued")),
        "goes_on_after_reopening": bool(said.get("continued") or said.get("reopened")),
        "error_after": said.get("error_after", ""),
        "lost": end.get("lost", committed),
        "different": bool(end.get("different", False)),
    }


@contextlib.contextmanager
def small_disk(mount: Path, size: int) -> Iterator[Path | None]:
    """A tmpfs of `size` bytes at `mount`; None where this process may not mount one."""
    mount.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount)], capture_output=True).returncode:
        yield None
        return
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True, capture_output=True)
