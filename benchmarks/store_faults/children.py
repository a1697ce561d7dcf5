"""Work in processes of its own, so that a store may crash, hang or be killed and the benchmark goes on."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HANG = 60.0
"""Seconds without an answer after which a child is killed and its case counted as hung."""


def fork(work: Callable[[int], None]) -> tuple[int, int]:
    """Run `work(fd)` in a child that ends by itself; returns (pid, the end of a pipe that `fd` writes to)."""
    out, into = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of threads: a lease has one, and forking beside it is part of what is tried
        pid = os.fork()
    if pid:
        os.close(into)
        return pid, out
    code = 1
    try:
        os.close(out)
        work(into)
        code = 0
    except BaseException:
        if os.environ.get("STORES_TRACE"):
            traceback.print_exc()
    finally:
        os._exit(code)


def read_all(out: int, patience: float = HANG) -> tuple[bytes, bool]:
    """Everything that comes through the pipe until it is closed, and whether it fell silent for `patience` seconds instead."""
    data = b""
    while True:
        if not select.select([out], [], [], patience)[0]:
            return data, True
        part = os.read(out, 1 << 16)
        if not part:
            return data, False
        data += part


def ended(pid: int, kill: bool = False) -> int:
    """The exit code of a child, negative for a signal."""
    if kill:
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ask(work: Callable[[], dict[str, Any]], patience: float = HANG) -> dict[str, Any]:
    """What `work` returns in a child, or {"error": text}, {"crashed": signal}, {"hung": True}."""

    def answer(into: int) -> None:
        try:
            said = work()
        except Exception as error:
            said = {"error": short(error)}
        os.write(into, json.dumps(said).encode())

    pid, out = fork(answer)
    data, hung = read_all(out, patience)
    os.close(out)
    code = ended(pid, kill=hung)
    if hung:
        return {"hung": True}
    return json.loads(data) if data else {"crashed": -code}


def ask_each(cases: list[Any], work: Callable[[Any], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """`work(case)` for each case in order, many in one child. After one that crashes or hangs it, the next gets a new child."""
    done = 0
    while done < len(cases):

        def answer(into: int, first: int = done) -> None:
            for case in cases[first:]:
                try:
                    said = work(case)
                except Exception as error:
                    said = {"error": short(error)}
                os.write(into, json.dumps(said).encode() + b"\n")

        pid, out = fork(answer)
        rest = b""
        hung = False
        while True:
            if not select.select([out], [], [], HANG)[0]:
                hung = True
                break
            part = os.read(out, 1 << 16)
            if not part:
                break
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                done += 1
                yield json.loads(line)
        os.close(out)
        code = ended(pid, kill=hung)
        if done < len(cases):
            done += 1
            yield {"hung": True} if hung else {"crashed": -code}


def wait_for(out: int, lines: int, patience: float = HANG) -> bytes:
    """Read until `lines` newlines have come, or the pipe ends."""
    data, until = b"", time.monotonic() + patience
    while data.count(b"\n") < lines and select.select([out], [], [], max(0.0, until - time.monotonic()))[0]:
        part = os.read(out, 1 << 16)
        if not part:
            break
        data += part
    return data


def short(error: BaseException) -> str:
    """One line of an error."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = re.sub(r"/[^\s'\"]*/", "", text)  # names of files, not of folders of this machine
    return text if len(text) <= 160 else text[:157] + "..."


def size_of(directory: Path) -> int:
    """Bytes allocated on disk below a directory (sparse files by what they hold)."""
    return sum(file.stat().st_blocks * 512 for file in directory.rglob("*") if file.is_file())
