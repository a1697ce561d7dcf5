"""Who may write in a directory: one writer at a time, each with a number higher than all before it.

A writer holds `writer-<number>.json`. It keeps a lock on that file, which the kernel drops with the process, and lets a thread
count in it every few seconds. Before it writes anything, and again before it calls that durable, it looks whether a higher
number exists: then it lost the directory, and stops. Whoever comes second learns from lock and count whether the first is
alive, and is refused, or takes the next number:

- the lock is free and the holder ran on this kernel, or its process is gone from it: it is dead, and the directory is free at
  once, also where children outlive their parent and keep the lock (forks made by Python let go of it);
- its process runs and counted within `PATIENCE_S`: it is alive, and the second is refused at once;
- nothing is known (another machine, another container): it is watched. As soon as it counts the second is refused. A count that
  stands still for `PATIENCE_S`, by our own monotonic clock, belongs to a dead or a frozen writer. Clocks of two machines are
  never compared.

Nothing here is needed to read.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
import weakref
from pathlib import Path
from typing import Any

from edgewise.errors import StateError, StateInUseError

BEAT_S = 2.0
"""Seconds between two counts of a living writer."""
PATIENCE_S = 20.0
"""A count that stands still for so long belongs to a writer that is dead or frozen."""

_MOST = 4096  # bytes of a lease file
_PLACES = 6  # digits of a lease number in the names of files
_MINE = uuid.uuid4().hex  # this process, as long as it lives; a fork notices by its pid


def _kernel() -> str:
    """Names the running kernel: locks and monotonic clocks are shared by all that runs on one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"host {socket.gethostname()}"


def _pids() -> str:
    """Names the space of process numbers: containers on one kernel count apart."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def numbers(directory: Path) -> list[int]:
    """Numbers of all leases in `directory`, ascending. Raises OSError."""
    found = []
    for name in os.listdir(directory):
        stem, dot, ending = name.partition(".")
        digits = stem.removeprefix("writer-")
        if dot and ending == "json" and digits != stem and digits.isascii() and digits.isdigit() and len(digits) == _PLACES:
            found.append(int(digits))
    return sorted(found)


def file_of(directory: Path, number: int) -> Path:
    """Where lease `number` is kept."""
    return directory / f"writer-{number:0{_PLACES}d}.json"


def holder(directory: Path) -> dict[str, Any]:
    """What the newest lease says: fence, host, pid, started, released; empty if there is none or it cannot be read."""
    try:
        found = numbers(directory)
        return _said(_content(file_of(directory, found[-1]))) if found else {}
    except OSError:
        return {}


def silent_for(said: dict[str, Any]) -> float | None:
    """Seconds since the writer of a lease counted last; None where that cannot be told: it ran on another kernel."""
    if said.get("kernel") != _kernel() or "counted_ns" not in said:
        return None
    return max(0.0, (time.monotonic_ns() - int(said["counted_ns"])) / 1e9)


class Lease:
    """The right to write in `directory`, from now until `release`, until a higher number appears, or until this process forks.

    `fence` is its number. Raises StateInUseError if a living writer holds the directory, OSError if the disk refuses.
    """

    def __init__(self, directory: Path, least: int = 1) -> None:
        """least: the lowest number to take."""
        self.directory = directory
        self._pid = os.getpid()
        self._kernel = _kernel()
        self.promised = (0, 0)
        """(lease, number) of the last commit before, as far as that was said: an older newest state may mean a lost file."""
        self.took_over = ""
        """Who had it before and may still live, in words; empty if nobody."""
        while True:
            found = numbers(directory)
            if found and not self._is_free(found[-1]):
                continue
            self.fence = max(least, found[-1] + 1 if found else 1)
            if self.fence >= 10**_PLACES:  # names of files would no longer be in order
                raise StateError(f"{directory} has no lease numbers left after {found[-1:]}. Use a new directory.")
            self.path = file_of(directory, self.fence)
            try:
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
                break
            except FileExistsError:
                continue  # another was faster; it is alive
        self._said = b""
        try:
            self._lock()
            self._said = self._write()
            self._give_way_to(numbers(directory))
            for number in found:
                file_of(directory, number).unlink(missing_ok=True)
        except BaseException:
            with contextlib.suppress(OSError):  # nobody holds it: nobody need watch it
                self.path.unlink(missing_ok=True)
            os.close(self._file)
            raise
        self._heart = heart = _Heart(self._file, len(self._said), self._pid, self.promised)
        self._end = weakref.finalize(self, heart.end)
        threading.Thread(target=heart.beat, name="edgewise-lease", daemon=True).start()

    def require_own_process(self) -> None:
        """Raise StateError in a fork of the process that took the lease."""
        if os.getpid() != self._pid:
            raise StateError(
                f"this process ({os.getpid()}) is a fork of the writer of {self.directory} ({self._pid}) and may only read. "
                "Commit in the process that made the Selector."
            )
        if not self._end.alive:
            raise StateError(f"the lease on {self.directory} was given back (Selector.close()); nothing more is written there.")

    def is_there(self) -> bool:
        """Whether the file of the lease is still in its place, and the one that was made. Raises OSError."""
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return False
        mine = os.fstat(self._file)
        return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)

    def require(self) -> None:
        """Raise StateError unless this may still write; OSError if the directory cannot be read."""
        self.require_own_process()
        self._give_way_to(numbers(self.directory))

    def promise(self, fence: int, commit: int) -> None:
        """Say that `commit` of lease `fence` is on disk and the newest, for whoever comes next; until then what the writer
        before said stands. Not waited for: it is a hint, the files are what counts.
        """
        self._heart.promise((fence, commit))

    def said(self) -> tuple[int, int]:
        """What was promised last, by this writer or one before."""
        return self._heart.made

    def release(self) -> None:
        """Give it back, so that the next writer need not ask whether this one is alive."""
        if os.getpid() == self._pid:
            self._end()

    def _give_way_to(self, found: list[int]) -> None:
        if found and found[-1] > self.fence:
            said = holder(self.directory)
            raise StateInUseError(
                f"another writer took over {self.directory}: {words(said)}. This one (lease {self.fence}) writes no more; "
                "give each run a directory of its own."
            )

    # -- whether the one before us is alive ----------------------------------------------------------------------------

    def _is_free(self, number: int) -> bool:
        """Whether lease `number` may be followed; False: it changed hands meanwhile. Raises StateInUseError."""
        file = file_of(self.directory, number)
        try:
            content = _whole_content(file)
        except FileNotFoundError:
            return False
        said = _said(content)
        self.promised = said.get("made", (0, 0))
        if said.get("released") or said.get("process") == _MINE and said.get("pid") == self._pid:
            return True  # given back; or ours: a notebook that makes its selector once more
        here = said.get("kernel") == self._kernel
        shared = here and _pids() and said.get("pids") == _pids()  # whether process numbers mean the same to both
        running = exists(said.get("pid")) if shared else None
        unlocked = _is_locked(file) is False if here or not said else False  # nothing said: killed as it was made
        if unlocked or running is False:
            self.took_over = "" if "counted_ns" in said else words(said)  # known and dead: a restart, nothing to tell
            return True
        age = silent_for(said) or 0.0  # the clock of another machine says nothing
        if running and age < PATIENCE_S:
            raise self._in_use(said, age)
        now = self._moved(file, content, PATIENCE_S - age, said)
        if now is None:
            self.took_over = words(said)
            return True
        if not now or _said(now).get("released"):
            return False
        raise self._in_use(_said(now), 0.0)

    def _in_use(self, said: dict[str, Any], age: float) -> StateInUseError:
        return StateInUseError(
            f"{self.directory} is in use by {words(said)}, last heard of {age:.0f} s ago. Stop that run, or give this one a "
            "directory of its own."
        )

    def _moved(self, file: Path, content: bytes, patience: float, said: dict[str, Any]) -> bytes | None:
        """What the file says as soon as it says something else, nothing if it is gone; None: nobody counts there."""
        if patience > 1:
            text = f"edgewise: {self.directory} may still be in use by {words(said)}; watching it for {patience:.0f} s."
            print(text, file=sys.stderr, flush=True)
        until = time.monotonic() + patience
        while time.monotonic() < until:
            time.sleep(max(0.0, min(0.2, until - time.monotonic())))
            try:
                now = _content(file)  # opened anew each time, as network file systems ask for
            except FileNotFoundError:
                return b""
            if now != content:
                return now
        return None

    # -- our own file --------------------------------------------------------------------------------------------------

    def _lock(self) -> None:
        for _ in range(100):
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.01)  # somebody just tries whether we are alive
            except OSError:
                return  # a file system without locks: the count alone says that we live

    def _write(self) -> bytes:
        said = {
            "fence": self.fence, "host": socket.gethostname(), "pid": self._pid, "process": _MINE, "kernel": self._kernel,
            "pids": _pids(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        }  # fmt: skip
        line = json.dumps(said).encode() + b"\n"
        os.pwrite(self._file, line + _count(0, self.promised), 0)
        os.fsync(self._file)
        return line


def _count(beats: int, made: tuple[int, int]) -> bytes:
    return f"{beats:012d} {time.monotonic_ns():020d} {made[0]:09d} {made[1]:012d}\n".encode()


def _released(made: tuple[int, int]) -> bytes:
    return f"{'released':33} {made[0]:09d} {made[1]:012d}\n".encode()


class _Heart:
    """Counts in a lease file from a thread of its own. It does not know its lease, which can so become garbage."""

    def __init__(self, file: int, at: int, pid: int, made: tuple[int, int]) -> None:
        """file: open, written at byte `at` by process `pid` only, closed by `end`.  made: the newest commit, see `promise`."""
        self._file, self._at, self._pid = file, at, pid
        self._is = _identity(file)
        self._stop = threading.Event()
        # or the count could land in another file, opened under the number of a closed one; a signal's handler may close it, too
        self._writing = threading.RLock()
        self._thread, self._ended_by_itself = 0, False
        self._beats, self.made = 0, made
        _hearts.add(self)

    def beat(self) -> None:
        """Until `end`. A count that cannot be written changes nothing here: others will draw their conclusions."""
        self._thread = threading.get_ident()
        while not self._stop.wait(BEAT_S):
            with self._writing:  # with what is promised by then
                self._beats += 1
                self._tell()
        if self._ended_by_itself:
            self._finish()

    def promise(self, made: tuple[int, int]) -> None:
        """Count, and say which commit is the newest on disk: (lease, number)."""
        with self._writing:
            self.made = made
            self._tell()

    def _tell(self) -> None:
        if not self._stop.is_set():
            self._write(_count(self._beats, self.made))

    def end(self) -> None:
        """Say that the lease was given back: at `release`, when its owner is garbage, or when the interpreter exits."""
        if os.getpid() != self._pid:
            return
        self._stop.set()
        if threading.get_ident() == self._thread:  # garbage that was collected by this thread, perhaps in the midst of a count
            self._ended_by_itself = True
            return
        with self._writing:
            self._finish()

    def forked(self) -> None:
        """In a child: let go of the file, or the lock would live as long as the child."""
        if not self._stop.is_set():
            self._stop.set()
            with contextlib.suppress(OSError):
                os.close(self._file)

    def _finish(self) -> None:
        self._write(_released(self.made))
        if self._is_ours():
            os.close(self._file)

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            if self._is_ours():
                os.pwrite(self._file, data, self._at)

    def _is_ours(self) -> bool:
        """Whether the descriptor is still that of the lease: daemons close all, and open others under the same numbers."""
        return _identity(self._file) == self._is


_hearts: weakref.WeakSet[_Heart] = weakref.WeakSet()


def _let_go_in_a_child() -> None:
    for heart in list(_hearts):
        heart.forked()


os.register_at_fork(after_in_child=_let_go_in_a_child)


def _identity(file: int) -> tuple[int, int]:
    try:
        found = os.fstat(file)
    except OSError:
        return (0, 0)
    return found.st_dev, found.st_ino


def _whole_content(file: Path) -> bytes:
    """What a lease file says, once it says anything: whoever makes it writes at once. Raises OSError."""
    until = time.monotonic() + 1
    while b"\n" not in (content := _content(file)) and time.monotonic() < until:
        time.sleep(0.01)
    return content


def _content(file: Path) -> bytes:
    opened = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(opened, _MOST)
    except OSError as error:  # a folder, a failing disk: say which file
        raise OSError(error.errno, error.strerror, str(file)) from None
    finally:
        os.close(opened)


def _said(content: bytes) -> dict[str, Any]:
    """What a lease file says; empty for one that cannot be read, such as one that is just being made."""
    line, _, count = content.partition(b"\n")
    try:
        said = json.loads(line)
        if not isinstance(said, dict):
            return {}
        first, *more = count.split()
        if first == b"released":
            return said | {"released": True, "made": _made(more)}
        return said | {"counted_ns": int(more[0][:20]), "made": _made(more[1:])}
    except (ValueError, IndexError, RecursionError):
        return {}


def _made(words: list[bytes]) -> tuple[int, int]:
    return (int(words[0][:9]), int(words[1][:12])) if len(words) > 1 else (0, 0)


def words(said: dict[str, Any]) -> str:
    """Whom a lease names, for a message."""
    if not said:
        return "an unknown writer"
    return f"process {said.get('pid')} on host {said.get('host')!r} (lease {said.get('fence')}, since {said.get('started')})"


def exists(pid: Any) -> bool:
    """Whether a process of this number runs, as far as this one may know (not across containers)."""
    try:
        os.kill(int(pid), 0)
        with contextlib.suppress(OSError):  # no /proc: then a process that ended and was not waited for counts as running
            return Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except PermissionError:
        return True
    except (OSError, TypeError, ValueError, OverflowError):
        return False
    return True


def _is_locked(file: Path) -> bool | None:
    """Whether a process of this kernel (or of any, on file systems that share locks) holds it; None where that is not known."""
    try:
        opened = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who try do not take each other for the owner
        return False
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(opened)
