"""Runs arms side by side, each in a process of its own: starts them, tells what they do, stops them, names what failed.

Nothing is left behind however the run ends. Ctrl-C or SIGTERM: every arm is asked to save and stop. kill -9: the arms hold a
pipe to this process, see its end, save and stop. Meanwhile they still hold the lock of the run's folder, so the same command,
given again at once, waits for them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgewise import foreign
from edgewise.errors import ConfigError
from edgewise.lab.record import STOPPED, ArmSpec, Tail, last_checkpoint, require_numbers, rewind

Say = Callable[[str], None]

LONGEST_NAME = 32
_POLL_S = 0.25
_PATIENCE_S = 120.0
_TAIL = 1 << 16
"""Bytes at the end of a log from which its last lines are taken."""


@dataclass(slots=True)
class Ran:
    """How a run ended: told to stop, and which arms failed, as indices."""

    stopped: bool = False
    failed: list[int] = field(default_factory=list)


def run_arms(specs: Sequence[ArmSpec], folders: Sequence[Path], *, jobs: int, every: int, say: Say, warn: Say) -> Ran:
    """Run all arms that are not finished, `jobs` at a time; print every `every`th of their steps.

    A failed arm does not stop the others, unless no arm has come as far as a step: then nothing else is started.
    """
    with _stop_on_sigterm(), _lock(folders[0].parent, warn) as lock:
        return _Runner(specs, folders, every, say, warn, lock).run(jobs)


def launch(folder: Path, lock: int | None) -> subprocess.Popen[bytes]:
    """Start the arm of a folder, one thread, its output in `log.txt`, on a leash, with a share in the run's lock."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", "edgewise.lab.arm", str(folder / "spec.json"), "--leash"]
    foreign.replace(folder / "log.txt", "")  # a new file: what a link points to is left alone
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            pass_fds=[] if lock is None else [lock],
            start_new_session=True,  # a terminal's Ctrl-C reaches this process only, which then asks every arm
        )


class _Runner:
    def __init__(
        self, specs: Sequence[ArmSpec], folders: Sequence[Path], every: int, say: Say, warn: Say, lock: int | None
    ) -> None:
        self.specs, self.folders, self.every, self.say, self.warn, self.lock = specs, folders, every, say, warn, lock
        self.names = arm_names(specs)
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.ran = Ran()
        self.width = max(map(len, self.names))
        self.reached: list[int] = []
        self.waiting: list[int] = []
        self.latest: dict[int, dict[str, Any]] = {}  # the last step of each arm that made one in this session
        begun = []
        for i, (spec, folder) in enumerate(zip(specs, folders, strict=True)):
            finished = (folder / "result.json").is_file()
            if finished:
                lines = rewind(folder, sys.maxsize)
            else:
                self.waiting.append(i)
                lines = rewind(folder, last_checkpoint(folder)[1] // spec.updates)
                if lines:
                    begun.append(f"{self.names[i]} after step {lines[-1]['step']}")
            require_numbers(lines, ("responses", "held_out"), folder / "steps.jsonl")
            self.reached.append(min(lines[-1]["responses"], spec.responses) if lines else 0)
        self.tails = [Tail(folder / "steps.jsonl") for folder in folders]
        for tail in self.tails:
            tail.read()
        if len(self.waiting) < len(specs):
            say(f"{len(specs) - len(self.waiting)} of {len(specs)} arms are finished already.")
        if begun:
            say(f"resuming {', '.join(begun)}")
        self.bar = _Bar(sum(spec.responses for spec in specs), sum(self.reached), say)

    def run(self, jobs: int) -> Ran:
        try:
            while self.waiting or self.running:
                try:
                    while self.waiting and len(self.running) < jobs:
                        self.running[self.waiting[0]] = launch(self.folders[self.waiting[0]], self.lock)
                        del self.waiting[0]
                    time.sleep(_POLL_S)
                    for i in list(self.running):
                        self._look_at(i)
                except KeyboardInterrupt:
                    if self.ran.stopped:
                        raise
                    self._stop()
        finally:
            for process in self.running.values():
                process.kill()
            self.bar.close()
        return self.ran

    def _stop(self) -> None:
        self.ran.stopped = True
        self.waiting = []
        n = len(self.running)
        arms = "1 arm finishes its step and saves" if n == 1 else f"{n} arms finish their step and save"
        self.bar.write(f"\nedgewise: {arms}; a second Ctrl-C does not wait.", self.warn)
        for process in self.running.values():
            process.send_signal(signal.SIGINT)

    def _look_at(self, i: int) -> None:
        """Tell what the arm did since the last look, and take note if it has ended."""
        code = self.running[i].poll()  # before reading, so that its last lines are read too
        for line in self.tails[i].read():
            self.latest[i] = line
            if line["step"] % self.every == 0:
                self.bar.write(step_line(self.names[i], self.specs[i], line, self.width))
        if i in self.latest:
            reached = min(self.latest[i]["responses"], self.specs[i].responses)
            self.bar.update(reached - self.reached[i])
            self.reached[i] = reached
        if code is None:
            return
        del self.running[i]
        if code == 0 and i in self.latest:
            self.bar.write(done_line(self.names[i], self.latest[i], self.width))
        if code == STOPPED or (self.ran.stopped and code != 0 and i not in self.latest):  # the latter: still loading
            if not self.ran.stopped:  # somebody stopped this arm alone
                self._stop()
        elif code != 0:
            self.ran.failed.append(i)
            self.bar.write(f"edgewise: {self._failure(i, code)}", self.warn)
            if not self.latest and self.waiting:
                self.bar.write("edgewise: no arm has come as far as a first step, so no other is started.", self.warn)
                self.waiting = []

    def _failure(self, i: int, code: int) -> str:
        log = self.folders[i] / "log.txt"
        lines = _end_of(log).rstrip().splitlines()
        how = f"failed (exit code {code})"
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
        tail = "\n".join(f"  | {line}" for line in lines[-8:])
        return f"the arm {self.names[i]} {how}." + (f" Its log, {log}, ends:\n{tail}" if lines else "")


def _end_of(log: Path) -> str:
    """The last of a file that programs wrote to; nothing where it cannot be read."""
    try:
        with foreign.opened(log, links=False) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in file.read(_TAIL).decode(errors="replace"))
    except OSError:
        return ""


def arm_names(specs: Sequence[ArmSpec]) -> list[str]:
    """What a person calls each arm: its label, shortened, with the seed where there are several."""
    several = len({spec.seed for spec in specs}) > 1
    labels = [spec.name if len(spec.name) <= LONGEST_NAME else f"{spec.name[: LONGEST_NAME - 3]}..." for spec in specs]
    return [f"{label} seed {spec.seed}" if several else label for label, spec in zip(labels, specs, strict=True)]


def step_line(name: str, spec: ArmSpec, line: dict[str, Any], width: int) -> str:
    """One aligned line: what was decided in this step and what came of it."""
    m = line["metrics"]
    rounds = f"{m['rounds']:.0f} round{'s' if m['rounds'] > 1 else ' '}"
    return (
        f"{name:<{width}} | step {line['step']:>4} | {m['rolled_out']:>3.0f} groups x{spec.group_size} in {rounds} | "
        f"mixed {100 * m.get('mixed_frac', 0):>3.0f}% all-pass {100 * m.get('all_pass_frac', 0):>3.0f}% "
        f"all-fail {100 * m.get('all_fail_frac', 0):>3.0f}% | {line['responses']:>7,} responses | "
        f"held-out {line['held_out']:.3f} | select {1e3 * m.get('select_s', 0):>5.1f} ms "
        f"verify {1e3 * m.get('signal_s', 0):>5.1f} ms"
    )


def done_line(name: str, line: dict[str, Any], width: int) -> str:
    """What a finished arm came to."""
    return (
        f"{name:<{width}} | done after {line['step']} steps, {line['responses']:,} responses: held-out {line['held_out']:.3f}"
    )


class _Bar:
    """Progress over all arms in responses: a bar on a terminal, silence elsewhere."""

    def __init__(self, total: int, reached: int, say: Say) -> None:
        self.say = say
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            form = "{percentage:3.0f}% |{bar:24}| {n:,.0f} of {total:,.0f} responses | {elapsed} gone, {remaining} to go "
            self._bar = tqdm(total=total, initial=reached, smoothing=0.05, bar_format=form, leave=False, dynamic_ncols=True)

    def update(self, more: int) -> None:
        if self._bar is not None:
            self._bar.update(more)

    def write(self, text: str, say: Say | None = None) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.clear()
        (say or self.say)(text)
        if self._bar is not None:
            self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


# -- one run a folder, and its end -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _lock(out: Path, warn: Say) -> Iterator[int | None]:
    """Hold the run's folder. The arms inherit the lock: it is free when the last of them has gone, however this one went."""
    try:
        import fcntl
    except ImportError:  # not on this system
        yield None
        return
    try:
        file = os.open(out / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise OSError(errno.EINVAL, "it is not a file")
    except OSError as error:
        raise ConfigError(f"{out / '.lock'} cannot be used: {error.strerror}. Remove it, or give another --out.") from error
    begun, told = time.monotonic(), False
    try:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                written = os.pread(file, 20, 0)
                owner = int(written) if written.isdigit() else 0
                if _alive(owner) or time.monotonic() - begun > _PATIENCE_S:
                    raise ConfigError(
                        f"another edgewise train{f' (process {owner})' if _alive(owner) else ''} is at work in {out}. "
                        "Wait for it, stop it, or give another --out."
                    ) from None
                if not told:
                    warn(f"edgewise: arms of an earlier run in {out} are still saving; waiting for them.")
                told = True
                time.sleep(0.2)
            except OSError:  # a file system without locks
                break
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        yield file
    finally:
        os.close(file)


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """SIGTERM, which batch systems send, counts as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
