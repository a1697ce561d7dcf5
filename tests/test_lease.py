"""One writer at a time: who is refused, who takes over, and what becomes of the writer that was taken over from."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise import journal, lease, state
from edgewise.directory import RunDirectory
from edgewise.errors import ConfigError, DegradedWarning, StateError, StateInUseError
from edgewise.history import History
from edgewise.lease import Lease
from tests import ledger
from tests.kill_writer import Twin, Writer, Zygote, digest, drive, selector

MOST = 1 << 20


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    process = Zygote()
    yield process
    process.close()


@pytest.fixture(scope="module")
def twin() -> Twin:
    return Twin("counting", 60)


def until(writer: Writer, what: str, zygote: Zygote) -> dict[str, Any]:
    """The next line of that kind from a writer that goes on."""
    while True:
        line = zygote.receive()
        assert "failed" not in line, line
        if what in line and line.get("pid") == writer.pid:
            return line


def ended(writer: Writer) -> None:
    writer.kill()
    for _ in writer.lines():
        pass


def quietly(where: Path, **more: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return selector("counting", where, **more)


# -- who is refused ------------------------------------------------------------------------------------------------------


def test_of_two_writers_that_start_at_once_exactly_one_wins(tmp_path: Path, zygote: Zygote) -> None:
    """On a new directory, and on that of a writer that was just killed: both see the same dead lease."""
    rounds, held, slowest = ledger.cases(10, chaos=100), 0, 0.0
    for number in range(rounds):
        where = tmp_path / str(number // 4)
        meet_at = time.monotonic() + 0.05
        pair = [
            zygote.start(method="counting", where=str(where), steps=10**6, meet_at=meet_at, records=8, beat=0.1)
            for _ in range(2)
        ]
        said: dict[int, dict[str, Any]] = {}
        while len(said) < 2:
            line = zygote.receive()
            assert not {"failed", "lost"} & line.keys(), line
            if "opened" in line or "refused" in line:
                said[line["pid"]] = line
        (winner,) = (writer for writer in pair if "opened" in said[writer.pid])
        (loser,) = (writer for writer in pair if writer is not winner)
        text = said[loser.pid]["refused"]
        held += f"process {winner.pid} on host" in text and "last heard of 0 s ago" in text and str(where) in text
        slowest = max(slowest, said[loser.pid]["after"])
        for _ in loser.lines():
            pass
        ended(winner)
        assert len(lease.numbers(where)) == 1
    assert slowest < 3
    ledger.note(15, tried=rounds, held=held, refused_within_s=slowest)


def test_a_successor_of_a_killed_writer_starts_at_once(tmp_path: Path, zygote: Zygote, twin: Twin) -> None:
    rounds = ledger.cases(3, chaos=30)
    for number in range(rounds):
        where = tmp_path / str(number)
        writer = zygote.start(method="counting", where=str(where), steps=40, child="fork" if number % 2 else None)
        until(writer, "step", zygote)
        with pytest.raises(StateInUseError, match=f"process {writer.pid} on host .* last heard of 0 s ago"):
            selector("counting", where)
        ended(writer)
        began = time.monotonic()
        s = quietly(where)
        assert time.monotonic() - began < 1
        assert digest(s) == twin.digests[s.step_number]
        s.close()
    ledger.note(15, tried=rounds, held=rounds)


@pytest.mark.parametrize("pids", [None, "of another container"])
def test_a_child_that_keeps_the_lock_of_a_dead_writer_delays_at_most_by_the_patience(
    tmp_path: Path, zygote: Zygote, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], pids: str | None
) -> None:
    monkeypatch.setattr(lease, "PATIENCE_S", 1.5)
    writer = zygote.start(method="counting", where=str(tmp_path), steps=3, child="lock", pids=pids)
    child = until(writer, "child", zygote)["child"]
    until(writer, "step", zygote)
    ended(writer)
    assert lease._is_locked(lease.file_of(tmp_path, 1)), "the child should keep it"
    began = time.monotonic()
    s = quietly(tmp_path)
    spent = time.monotonic() - began
    s.close()
    os.kill(child, signal.SIGKILL)
    if pids is None:
        assert spent < 1, "a process of our own numbers that is gone is dead"
    else:
        assert 0.5 < spent < 3
        assert f"may still be in use by process {writer.pid}" in capfd.readouterr().err
    ledger.note(15, tried=1, held=1)


def test_a_writer_on_another_machine_is_known_by_its_count(
    tmp_path: Path, zygote: Zygote, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Alive it is refused within 3 s; dead, once its count stood still, though its lock is free and its number unknown here."""
    monkeypatch.setattr(lease, "PATIENCE_S", 2.0)
    tried = 0
    for clock in ("other kernel",):
        where = tmp_path / clock
        writer = zygote.start(method="counting", where=str(where), steps=3, kernel=clock, beat=0.3)
        until(writer, "step", zygote)
        began = time.monotonic()
        with pytest.raises(StateInUseError, match=f"process {writer.pid} on host"):
            selector("counting", where)
        assert time.monotonic() - began < 3
        ended(writer)
        began = time.monotonic()
        s = quietly(where)
        assert 1.9 < time.monotonic() - began < 4
        assert s.step_number in (1, 2, 3)
        s.close()
        tried += 2
    assert "watching it for 2 s" in capfd.readouterr().err
    ledger.note(17, tried=tried, held=tried)


def test_a_lease_of_another_machine_that_is_given_back_meanwhile_is_free_at_once(tmp_path: Path) -> None:
    said = {"fence": 1, "host": "far", "pid": 1, "kernel": "other", "process": "x"}
    file = lease.file_of(tmp_path, 1)
    file.write_bytes(json.dumps(said).encode() + b"\n" + lease._count(3, (1, 7)))

    def release() -> None:
        time.sleep(0.3)
        file.write_bytes(json.dumps(said).encode() + b"\nreleased\n")

    thread = threading.Thread(target=release)
    began = time.monotonic()
    thread.start()
    Lease(tmp_path).release()
    assert time.monotonic() - began < 2
    thread.join()
    ledger.note(17, tried=1, held=1)


# -- a writer that was taken over from -------------------------------------------------------------------------------------


def test_a_writer_that_was_frozen_is_fenced_when_it_wakes_up(
    tmp_path: Path, zygote: Zygote, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PATIENCE_S", 0.4)
    rng = np.random.default_rng(ledger.seed())
    rounds = ledger.cases(3, chaos=40)
    for number in range(rounds):
        where = tmp_path / str(number)
        writer = zygote.start(method="counting", where=str(where), steps=10**6, records=4)
        told = 0
        for _ in range(int(rng.integers(1, 9))):
            told = until(writer, "step", zygote)["step"]
        writer.kill(signal.SIGSTOP)
        began = time.monotonic()
        while True:
            try:
                s = quietly(where)
                break
            except StateInUseError:
                assert time.monotonic() - began < 5
                time.sleep(0.05)
        step = s.step_number
        assert step >= told
        assert digest(s) == twin.digests[step]
        asked = [drive("counting", s) for _ in range(2)]
        writer.kill(signal.SIGCONT)
        lost = " ".join(until(writer, "lost", zygote)["lost"])
        assert "could not be written" in lost
        asked += [drive("counting", s) for _ in range(2)]
        assert asked == twin.asked[step : step + 4]
        recovered = History.of(where).newest()
        assert recovered is not None
        assert (recovered.node.step, recovered.node.fence) == (step + 4, 2)
        assert s.metrics["journal_degraded"] == 0
        s.close()
        for _ in writer.lines():
            pass
        again = quietly(where)
        assert digest(again) == twin.digests[step + 4]
        again.close()
    ledger.note(16, tried=rounds, held=rounds)


@pytest.mark.parametrize("commits", [0, 1, 3])
@pytest.mark.parametrize("writes", ["a record", "a snapshot"])
def test_what_a_writer_writes_after_its_last_look_is_never_the_newest_state(
    tmp_path: Path, twin: Twin, monkeypatch: pytest.MonkeyPatch, writes: str, commits: int
) -> None:
    """Frozen between the look at its lease and the write, taken over, woken up."""
    old = selector("counting", tmp_path)
    for _ in range(5):
        drive("counting", old)
    taken: list[Any] = []
    real_append, real_write = journal.Tail.append, state.write

    def takeover() -> None:
        if not taken:
            taken.append(quietly(tmp_path))
            for _ in range(commits):
                drive("counting", taken[0])

    def append(tail: journal.Tail, data: bytes) -> None:
        takeover()
        real_append(tail, data)

    def save(path: Path, data: bytes) -> None:
        takeover()
        real_write(path, data)

    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if writes == "a record":
            patch.setattr(journal.Tail, "append", append)
        else:
            old._durable.files._start_over()
            patch.setattr(state, "write", save)
        drive("counting", old)
    assert old.metrics["journal_degraded"] == 1, "it was told that this commit is durable, and nobody will read it"
    assert "another writer took over" in str(said[-1].message)
    new = taken[0]
    assert new.step_number == 5 + commits
    if commits:
        recovered = History.of(tmp_path).newest()
        assert recovered is not None
        assert (recovered.node.fence, recovered.node.step) == (2, 5 + commits)
    drive("counting", new)
    recovered = History.of(tmp_path).newest()
    assert recovered is not None
    assert (recovered.node.fence, recovered.node.step) == (2, 6 + commits)
    for file in tmp_path.glob("selector-000002-*"):  # not even where all that the new one wrote is damaged
        file.write_bytes(b"damaged")
    recovered = History.of(tmp_path).newest()
    assert recovered is not None
    assert recovered.node.step == 5
    new.close()
    old.close()
    ledger.note(16, tried=1, held=1)


def test_making_the_selector_again_in_a_notebook_takes_over_from_the_old_one(tmp_path: Path, twin: Twin) -> None:
    old = selector("counting", tmp_path)
    drive("counting", old)
    drive("counting", old)
    began = time.monotonic()
    new = selector("counting", tmp_path)
    assert time.monotonic() - began < 1
    with pytest.warns(DegradedWarning, match="another writer took over"):
        drive("counting", old)
    assert [drive("counting", new) for _ in range(2)] == twin.asked[2:4]
    assert new.metrics["journal_degraded"] == 0
    new.close()
    old.close()
    assert quietly(tmp_path).step_number == 4
    ledger.note(16, tried=1, held=1)


# -- clocks ----------------------------------------------------------------------------------------------------------------


def test_no_clock_decides_which_state_is_newest(tmp_path: Path, twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(ledger.seed())
    monkeypatch.setattr("edgewise.directory.RECORDS", 3)
    monkeypatch.setattr(time, "time", lambda: float(rng.uniform(0, 4e9)))
    real = time.gmtime
    monkeypatch.setattr(time, "gmtime", lambda *given: real(float(rng.uniform(0, 4e9))))
    openings = ledger.cases(8, chaos=40)
    step = 0
    for _ in range(openings):
        for file in tmp_path.iterdir():
            moment = float(rng.uniform(0, 4e9))
            os.utime(file, (moment, moment))
        s = selector("counting", tmp_path)
        assert s.step_number == step % 50
        assert digest(s) == twin.digests[s.step_number]
        for _ in range(int(rng.integers(1, 4))):
            assert drive("counting", s) == twin.asked[s.step_number - 1]
            step = s.step_number
        s.close()
        if step > 45:
            for file in tmp_path.iterdir():
                file.unlink()
            step = 0
    ledger.note(18, tried=openings, held=openings)


# -- forks -----------------------------------------------------------------------------------------------------------------


def test_a_fork_may_not_write_and_does_not_disturb_the_writer(tmp_path: Path, twin: Twin) -> None:
    s = selector("counting", tmp_path)
    drive("counting", s)
    drive("counting", s)
    before = {file.name: file.read_bytes() for file in tmp_path.glob("selector-*")}

    def in_a_child(results: Any) -> None:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            asked = drive("counting", s)
        s.close()
        results.send((asked, s.metrics["journal_degraded"], [str(warning.message) for warning in said]))

    for way in ("os.fork", "multiprocessing"):
        receive, send = multiprocessing.Pipe(duplex=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            if way == "os.fork":
                child = os.fork()
                if child == 0:
                    try:
                        in_a_child(send)
                    finally:
                        os._exit(0)
                asked, degraded, said = receive.recv()
                os.waitpid(child, 0)
            else:
                process = multiprocessing.get_context("fork").Process(target=in_a_child, args=(send,))
                process.start()
                asked, degraded, said = receive.recv()
                process.join()
        assert asked == twin.asked[2]
        assert degraded == 1
        assert f"is a fork of the writer of {tmp_path} ({os.getpid()}) and may only read" in said[0]
        assert {file.name: file.read_bytes() for file in tmp_path.glob("selector-*")} == before
        assert lease._is_locked(lease.file_of(tmp_path, 1)), "the child gave the parent's lease back"
    assert drive("counting", s) == twin.asked[2]
    assert s.metrics["journal_degraded"] == 0
    s.close()
    ledger.note(19, tried=2, held=2)


def test_a_child_does_not_keep_the_lock_of_its_parent(tmp_path: Path) -> None:
    """Else the workers of a loader that outlive a killed run would look like its life."""
    taken = Lease(tmp_path)
    receive, send = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.read(receive, 1)
        os._exit(0)
    deadline = time.monotonic() + 5
    os.close(taken._file)  # what the kernel does to a killed process
    while lease._is_locked(taken.path) and time.monotonic() < deadline:  # the child may not have got to it yet
        time.sleep(0.01)
    locked = lease._is_locked(taken.path)
    os.write(send, b".")
    os.waitpid(child, 0)
    for file in (receive, send):
        os.close(file)
    taken.release()
    assert locked is False


PROGRAM = """
import os, sys, json
from pathlib import Path
from tests.kill_writer import drive, selector
where = Path(sys.argv[1])
s = selector("counting", where)
drive("counting", s)
child = os.fork()
if child == 0:
    sys.exit(0)  # all that an interpreter does when it ends
os.waitpid(child, 0)
assert b"released" not in next(where.glob("writer-*")).read_bytes(), "the child gave it back"
drive("counting", s)
assert s.metrics["journal_degraded"] == 0
"""


def test_an_interpreter_that_ends_gives_the_lease_back_and_a_fork_of_it_does_not(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path)], cwd=ledger.ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert done.stderr == b""
    assert b"\nreleased" in lease.file_of(tmp_path, 1).read_bytes()
    again = selector("counting", tmp_path)  # without a warning of a takeover
    assert again.step_number == 2
    again.close()
    ledger.note(19, tried=1, held=1)


# -- lease files that are not as they should be ------------------------------------------------------------------------------


def counting(**fields: Any) -> bytes:
    return json.dumps({"fence": 1, "host": "h", "pid": 1, "process": "x", "kernel": lease._kernel()} | fields).encode() + b"\n"


UNREADABLE = {
    "empty": b"",
    "torn": counting()[:30],
    "garbage": bytes(range(256)) * 4,
    "huge": b"{" * 100_000,
    "no object": b"[1, 2]\n",
    "a long number": counting() + b"000 " + b"9" * 4000 + b"\n",
    "no count": counting(pid=10**30, pids="x"),
    "wrong types": b'{"pid": [1], "kernel": {}, "host": 3, "fence": null, "released": 0}\nx',
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_a_lease_file_that_says_nothing_is_watched_and_then_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(lease, "PATIENCE_S", 0.3)
    lease.file_of(tmp_path, 4).write_bytes(content)
    began = time.monotonic()
    taken = Lease(tmp_path)
    assert time.monotonic() - began < 2.5
    assert taken.fence == 5
    known = content == UNREADABLE["a long number"]  # it names its writer, whose lock is free: dead, and nothing to tell
    assert bool(taken.took_over) != known
    assert lease.numbers(tmp_path) == [5]
    taken.release()


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_a_lease_that_is_no_file_is_passed_or_refused_but_never_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(lease, "PATIENCE_S", 0.3)
    (tmp_path / "run").mkdir()
    file = lease.file_of(tmp_path / "run", 1)
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    if kind == "link":
        file.symlink_to(target)
    elif kind == "folder":
        file.mkdir()
    else:
        os.mkfifo(file)
    try:
        quietly(tmp_path / "run").close()
        assert kind == "pipe"
    except ConfigError as error:
        assert str(file) in str(error)  # noqa: PT017
    assert target.read_bytes() == b"precious"


def test_a_lease_file_that_vanishes_under_its_writer_is_made_again(tmp_path: Path, twin: Twin) -> None:
    s = selector("counting", tmp_path)
    drive("counting", s)
    drive("counting", s)
    lease.file_of(tmp_path, 1).unlink()
    with pytest.warns(DegradedWarning, match="vanished"):
        drive("counting", s)
    assert lease.numbers(tmp_path) == [2]
    assert lease._is_locked(lease.file_of(tmp_path, 2))
    s.close()
    for file in tmp_path.glob("writer-*"):
        file.unlink()
    again = selector("counting", tmp_path)  # its number is above that of every state, or these would be the newer ones
    assert again._durable.files._lease.fence == 3
    assert drive("counting", again) == twin.asked[3]
    again.close()
    newest = History.of(tmp_path).newest()
    assert newest is not None
    assert newest.node.step == 4


def test_without_locks_the_count_tells_the_living_from_the_dead(
    tmp_path: Path, zygote: Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(file: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(lease, "PATIENCE_S", 1.0)
    writer = zygote.start(method="counting", where=str(tmp_path), steps=3, child="fork")
    until(writer, "step", zygote)
    with pytest.raises(StateInUseError, match=f"process {writer.pid} on host"):
        selector("counting", tmp_path)
    ended(writer)
    began = time.monotonic()
    s = quietly(tmp_path)  # without a lock of its own
    assert time.monotonic() - began < 1
    drive("counting", s)
    assert s.metrics["journal_degraded"] == 0
    s.close()
    ledger.note(15, tried=1, held=1)


# -- what a lease leaves behind ----------------------------------------------------------------------------------------------


def test_two_hundred_openings_leave_no_file_and_no_thread_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda file: None)

    def used() -> tuple[int, int]:
        gc.collect()
        deadline = time.monotonic() + 5
        while any(thread.name == "edgewise-lease" for thread in threading.enumerate()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    before = used()
    for number in range(200):
        directory = RunDirectory(tmp_path, MOST)
        for step in range(3):
            directory.commit({"step": step}, {"method/prompts/x": np.zeros(3)}, np.arange(0))
        if number % 2:
            directory.close()
        del directory
    assert used() == before


def test_a_count_never_lands_in_a_file_opened_under_the_same_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Daemons close all descriptors, whoever opened them."""
    monkeypatch.setattr(lease, "BEAT_S", 0.005)
    taken = Lease(tmp_path)
    os.close(taken._file)
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    os.dup2(other, taken._file)
    time.sleep(0.1)
    number = taken._file
    taken.release()
    assert (tmp_path / "other").read_bytes() == b""
    os.fstat(number)  # and it was not closed
    os.close(number)
    if other != number:
        os.close(other)


def test_a_lease_that_becomes_garbage_in_its_own_thread_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The collector runs wherever it likes; in the thread that counts, a lock that this thread holds would hold it for ever."""
    monkeypatch.setattr(lease, "BEAT_S", 0.005)
    taken = Lease(tmp_path)
    real, count = taken, lease._count

    def collected(beats: int, commit: int) -> bytes:
        if threading.current_thread().name == "edgewise-lease":
            real.release()
        return count(beats, commit)

    monkeypatch.setattr(lease, "_count", collected)
    deadline = time.monotonic() + 5
    while b"released" not in taken.path.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert b"released" in taken.path.read_bytes()
    assert lease._is_locked(taken.path) is False
    with pytest.raises(StateError, match="was given back"):
        taken.require()


def test_a_restart_after_a_kill_warns_of_nothing(tmp_path: Path) -> None:
    """Warnings may be errors where it runs, and a restart is no news."""
    for k in range(3):
        code = (
            "import os, warnings; warnings.simplefilter('error')\n"
            "from tests.test_selector import run_step, selector\n"
            f"s = selector(directory={str(tmp_path)!r}); assert s.step_number == {k}; run_step(s, {k}); os.kill(os.getpid(), 9)"
        )
        assert subprocess.run([sys.executable, "-c", code], cwd=ledger.ROOT).returncode == -9
    ledger.note(20, tried=3, held=3)
