"""`edgewise` and the arms it starts as forks of one process that has torch loaded already: seconds less for each of them.

What is replaced is `edgewise.lab.runner.launch`, by one that forks instead of starting Python anew; nothing else.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["edgewise.lab.arm", "edgewise.lab.train", "edgewise.report.page", "matplotlib.figure"])


class Command:
    """`edgewise WORDS` in a process of its own; what it prints goes to files beside `folder`."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.folder = folder
        self._printed = [folder.parent / f"{folder.name}.{name}" for name in ("out", "err")]
        self.process: ForkServerProcess = _context.Process(target=_command, args=(words, *map(str, self._printed)))
        self.process.start()

    @property
    def out(self) -> str:
        return self._printed[0].read_text()

    @property
    def err(self) -> str:
        return self._printed[1].read_text()

    def wait(self) -> int:
        self.process.join(120)
        assert self.process.exitcode is not None, self.out + self.err
        return self.process.exitcode

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait_for_steps(self, arm: str, more_than: int) -> None:
        """Until an arm has written a step past `more_than`."""
        file = self.folder / arm / "steps.jsonl"
        wait_until(lambda: last_step(file) > more_than or not self.process.is_alive(), f"a step past {more_than} of {arm}")
        assert self.process.is_alive(), self.out + self.err


def last_step(file: Path) -> int:
    lines = file.read_text().splitlines() if file.is_file() else []
    try:
        return json.loads(lines[-1])["step"] if lines else 0
    except ValueError:  # half written
        return json.loads(lines[-2])["step"] if len(lines) > 1 else 0


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, f"waited 60 s for {what}"
        time.sleep(0.01)


def arm_pid(folder: Path) -> int:
    return int((folder / "pid").read_text())


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _command(words: list[str], out: str, err: str) -> None:
    from edgewise.cli import main
    from edgewise.lab import runner

    _redirect(out, err)
    runner.launch = _ForkedArm
    sys.exit(main(words))


def _redirect(out: str, err: str) -> None:
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)


class _ForkedArm:
    """As much of `subprocess.Popen` as the runner uses."""

    leashes: list[int] = []  # noqa: RUF012

    def __init__(self, folder: Path, lock: int | None) -> None:
        held, leash = os.pipe()
        self.leashes.append(leash)
        self.code: int | None = None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._child(folder, held)
        os.close(held)
        (folder / "pid").write_text(str(self.pid))

    def _child(self, folder: Path, held: int) -> None:
        code = 1
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            for leash in self.leashes:  # a leash has one holder
                os.close(leash)
            os.dup2(held, 0)
            os.close(held)
            _redirect(str(folder / "log.txt"), str(folder / "log.txt"))
            from edgewise.lab import arm

            code = arm.main([str(folder / "spec.json"), "--leash"])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
