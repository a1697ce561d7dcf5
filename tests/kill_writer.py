"""Writers to be killed: forks of one warm process, that commit as fast as they can and tell each commit once it is durable.

    python -m tests.kill_writer        reads a line of JSON for each fork from standard input, and answers on standard output:

    {"started": pid} {"opened": step, "pid": pid} {"step": step, "digest": of the state, "pid": pid} {"ended": pid, "status": s}
    {"refused": why, "after": seconds, "pid": pid} {"lost": [what was said], "pid": pid}

Lines are shorter than a pipe's atomic write, so those of a killed writer are whole, and all of them come before its "ended".
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

import edgewise
from edgewise import directory, lease, saved
from edgewise.errors import StateInUseError
from edgewise.pool import PromptPool
from edgewise.types import Ints
from tests.failing_disk import EVERYTHING, FailingDisk
from tests.test_selector import Counting
from tests.whole_runs import BATCH, GROUP, POOL, answered

METHODS = ("counting", "hive", "gps", "speed", "mopps", "streaming")
"""What is driven: methods in steps, and one as a stream with tickets in flight at each commit."""


def entropy(rows: Ints) -> Any:
    return 1.0 + 0.1 * (rows % 7)


def embedding(rows: Ints) -> Any:
    return np.stack([np.ones(len(rows)), np.cos(rows), np.sin(rows)], axis=1)


SIGNALS = {"prompt_entropy": entropy, "embedding": embedding}


def selector(method: str, where: Path | None, **more: Any) -> edgewise.Selector:
    chosen = Counting() if method == "counting" else "mopps" if method == "streaming" else method
    pool = PromptPool.from_ids([f"p{row}" for row in range(POOL)])
    made = edgewise.Selector(chosen, pool, batch_size=BATCH, group_size=GROUP, seed=3, directory=where, **more)
    made._reissue = []  # the world of a stream outlives the writer: it still answers what is in flight
    return made


def drive(method: str, s: edgewise.Selector) -> list[int]:
    """One step and its commit; the rows asked for."""
    signals = {name: SIGNALS[name] for name in s.method.needs if name in SIGNALS}
    if method == "streaming":
        asked = [ticket.row for ticket in s.take(3, signals=signals, policy_version=s.step_number // 2)]
        for ticket in s.in_flight[:-4]:
            s.report([answered(ticket)])
        s.commit()
        return asked
    asked = []
    with s.step(policy_version=s.step_number) as step:
        for tickets in step.requests(signals):
            asked += [ticket.row for ticket in tickets]
            step.report([answered(ticket) for ticket in tickets])
    return asked


def digest(s: edgewise.Selector) -> str:
    """Of all that a run consists of: what was learned, counts, what is in flight, the place in the stream."""
    header, arrays = saved.content(s)
    kept = {name: header[name] for name in ("identity", "batch_size", "step", "position", "next_seq", "policy_version")}
    kept["totals"] = {name: value for name, value in header["totals"].items() if name != "degraded_total"}
    hasher = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        hasher.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return hasher.hexdigest()


class Twin:
    """An uninterrupted run: before each step the digest of its state and its outcomes, and the rows that step asks for."""

    def __init__(self, method: str, steps: int) -> None:
        s = selector(method, None)
        self.digests, self.outcomes, self.asked = [], [], []
        for _ in range(steps):
            self.digests.append(digest(s))
            self.outcomes.append(outcomes(s))
            self.asked.append(drive(method, s))


def outcomes(s: edgewise.Selector) -> int:
    """Outcomes that counted."""
    return s._next_seq - len(s._open)


class KillingDisk(FailingDisk):
    """Instead of failing, an operation ends the process; a write, after half of it."""

    def refuse(self, path: Any) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")


def main() -> None:
    for line in sys.stdin:
        spec = json.loads(line)
        if "wait" in spec:
            _, status = os.waitpid(spec["wait"], 0)
            say(ended=spec["wait"], status=status)
            continue
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.alarm(120)  # a test that fails leaves nobody behind who commits for ever
            code = 1
            try:
                write(**spec)
                code = 0
            except BaseException as error:
                say(failed=repr(error)[:1000], pid=os.getpid())
            finally:
                os._exit(code)
        say(started=pid)


def say(**what: Any) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def write(
    method: str, where: str, steps: int, records: int = 256, kill_at: int | None = None, meet_at: float | None = None,
    child: str | None = None, kernel: str | None = None, pids: str | None = None, beat: float = 0.01,
) -> None:  # fmt: skip
    """Open and commit until step `steps`; or say that the directory was refused, or that it was lost.

    kill_at: number of the file operation to die in.  meet_at: seconds of the monotonic clock at which to open.  kernel, pids:
    what to call the kernel and the space of process numbers.  child: "fork" leaves one behind, "lock" one that keeps the lock.
    """
    import pytest

    warnings.simplefilter("ignore")
    directory.RECORDS = records
    lease.BEAT_S = beat
    with pytest.MonkeyPatch.context() as patch:
        if kernel is not None:
            patch.setattr(lease, "_kernel", lambda: kernel)
        if pids is not None:
            patch.setattr(lease, "_pids", lambda: pids)
        if kill_at is not None:
            KillingDisk(Path(where), patch, kinds=EVERYTHING, fails=lambda n: n == kill_at)
        if meet_at is not None:
            time.sleep(max(0.0, meet_at - time.monotonic()))
        began = time.monotonic()
        try:
            s = selector(method, Path(where))
        except StateInUseError as error:
            say(refused=str(error), pid=os.getpid(), after=time.monotonic() - began)
            return
        say(opened=s.step_number, pid=os.getpid())
        assert s._durable is not None
        if child == "fork" and os.fork() == 0:
            time.sleep(5)
            os._exit(0)
        if child == "lock":
            say(child=subprocess.Popen(["sleep", "30"], pass_fds=[s._durable.files._lease._file]).pid, pid=os.getpid())
        while s.step_number < steps:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                drive(method, s)
            if s.metrics["journal_degraded"]:
                say(lost=[str(warning.message)[:1500] for warning in said], pid=os.getpid())
                return
            say(step=s.step_number, digest=digest(s), pid=os.getpid())
        if child is not None or kernel is not None:
            time.sleep(30)
    os._exit(0)  # without giving the lease back, as a crash would


class Zygote:
    """The warm process, seen from the test."""

    def __init__(self) -> None:
        self._backlog: list[dict[str, Any]] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kill_writer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parent.parent,
        )  # fmt: skip

    def start(self, **spec: Any) -> Writer:
        self.send(spec)
        while "started" not in (line := self._read()):
            self._backlog.append(line)  # of other forks
        return Writer(self, line["started"])

    def send(self, what: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        return self._backlog.pop(0) if self._backlog else self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the warm process ended"
        return dict(json.loads(line))

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


class Writer:
    """One fork."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self._zygote, self.pid = zygote, pid
        self.told: list[dict[str, Any]] = []

    def lines(self) -> Iterator[dict[str, Any]]:
        """What it says, as it says it, until it ended."""
        self._zygote.send({"wait": self.pid})
        while "ended" not in (line := self._zygote.receive()):
            assert "failed" not in line, line
            self.told.append(line)
            yield line

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    @property
    def step(self) -> int:
        """The last one that it told."""
        return max((line.get("step", line.get("opened", 0)) for line in self.told), default=0)


if __name__ == "__main__":
    main()
