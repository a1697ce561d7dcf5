"""A disk that is full, broken or lying: the run goes on and says so, the last good state loads, and the next commit heals."""

from __future__ import annotations

import errno
import io
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest

from edgewise.errors import ConfigError, StateError
from tests import ledger
from tests.failing_disk import CHANGES, EVERYTHING, FailingDisk
from tests.twins import COMMITS, Run, content, loud, on_disk, one_step, selector, twin

FULL, BROKEN, QUOTA, READ_ONLY, FORBIDDEN = errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EACCES


def run_over_failures(directory: Path, nth: int, *, error: int, kinds: frozenset[str], lasting: bool) -> bool:
    """A run in which the `nth` operation fails, if there are so many; lasting: with all that follow, for three commits.

    Three commits after the first failure it ends. Returns whether anything failed.
    """
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        patch.setattr("edgewise.directory.RECORDS", 3)  # several snapshots in a short run
        disk = FailingDisk(directory, patch, kinds=kinds, error=error)
        run = Run(directory, disk)
        disk.count = 0
        disk.fails = lambda n: n == nth or (lasting and bool(disk.failed))
        left, ever, behind = COMMITS, False, False
        while left:
            run.commit()
            if run.durable < run.selector.step_number:
                behind = True
                assert run.selector.metrics["journal_degraded"] == 1
                assert loud(said), f"{disk.failed} failed, step {run.durable} is on disk, and nothing was said"
            left = left - 1 if ever or not disk.failed else min(left - 1, 3)
            ever = bool(disk.failed)
        disk.fails = lambda n: False
        run.commit()  # whatever failed last, this one is whole
        assert run.selector.metrics["journal_degraded"] == 0
        assert run.selector.metrics["degraded_total"] >= behind
        messages = loud(said)
        assert sum("could not be written" in message for message in messages) <= 1, "a failing disk is said once"
        assert len(set(messages)) == len(messages)
        run.end()
    return ever


@pytest.mark.parametrize(
    ("row", "error", "kinds", "lasting"),
    [
        pytest.param(6, FULL, CHANGES, False, id="a moment without space"),
        pytest.param(5, FULL, CHANGES, True, id="disk full"),
        pytest.param(7, QUOTA, CHANGES, True, id="quota"),
        pytest.param(7, READ_ONLY, CHANGES | {"unlink"}, True, id="read-only"),
        pytest.param(7, FORBIDDEN, EVERYTHING - {"write", "fsync"}, True, id="permission lost"),
        pytest.param(7, BROKEN, EVERYTHING, False, id="one I/O error"),
        pytest.param(7, BROKEN, EVERYTHING, True, id="I/O errors"),
    ],
)
def test_the_run_outlives_a_failure_of_any_operation(
    tmp_path: Path, row: int, error: int, kinds: frozenset[str], lasting: bool
) -> None:
    """The n-th operation fails, for n until a run has no n-th: every n in `make chaos`, else every tenth."""
    tried, nth = 0, 0 if ledger.chaos() else error % 10
    while run_over_failures(tmp_path / str(nth), nth, error=error, kinds=kinds, lasting=lasting):
        shutil.rmtree(tmp_path / str(nth))
        tried += 1
        nth += 1 if ledger.chaos() else 10
    assert nth > 2 * COMMITS, "each commit writes and flushes at least"
    ledger.note(row, tried=tried, held=tried)


def test_writes_that_write_half_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FailingDisk(tmp_path / "run", monkeypatch, kinds=frozenset({"write"}), fails=lambda n: True)
    disk.short = True
    run = Run(tmp_path / "run")  # without leave to fail
    for _ in range(COMMITS):
        run.commit()
    assert len(disk.failed) > COMMITS
    run.end()
    ledger.note(6, tried=len(disk.failed), held=len(disk.failed))


def test_a_real_full_device_is_outlived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written goes to /dev/full, and the kernel refuses it: at the write, or of a buffered file at its flush."""
    run = Run(tmp_path / "run")
    run.commit()
    os_write, io_open, full = os.write, io.open, os.open("/dev/full", os.O_WRONLY)

    def create_file(path: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        return io_open("/dev/full", mode.replace("x", "w")) if "x" in mode else io_open(path, mode, *more, **named)

    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        patch.setattr(os, "write", lambda file, data: os_write(full, data))
        patch.setattr(io, "open", create_file)
        for _ in range(3):
            run.commit(may_fail=True)
            assert run.durable == 1
    os.close(full)
    (message,) = loud(said)
    assert "No space left on device" in message
    run.commit()
    run.end()
    ledger.note(5, tried=3, held=3)


def run_with_a_limit(directory: Path) -> None:
    """In a process of its own: for three commits no file may grow beyond some bytes, for several numbers of bytes."""
    warnings.simplefilter("ignore")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in LIMITS:
        run = Run(directory / str(limit))
        run.commit()
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        behind = 0
        for _ in range(3):
            run.commit(may_fail=True)
            behind += run.durable < run.selector.step_number
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, hard))
        assert behind, f"a limit of {limit} bytes has refused nothing"
        assert run.durable >= 1
        run.commit()
        run.end()
        print("held", limit)


LIMITS = (1, 40, 500, 2_000)


def test_a_limit_on_the_size_of_files_is_outlived(tmp_path: Path) -> None:
    """RLIMIT_FSIZE: the kernel writes what fits, then refuses."""
    code = f"from pathlib import Path; from tests.test_storage_faults import *; run_with_a_limit(Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ledger.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    held = done.stdout.count("held")
    ledger.note(5, tried=len(LIMITS), held=held)


def test_a_strict_run_raises_at_the_commit_and_can_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = 0
    for error in (FULL, BROKEN, READ_ONLY):
        disk = FailingDisk(tmp_path / str(error), monkeypatch, error=error)
        run = Run(tmp_path / str(error), disk, on_problem="strict")
        run.commit()
        disk.fails = lambda n: True
        for _ in range(2):
            with pytest.raises(StateError, match=re.escape(os.strerror(error))):
                one_step(run.selector)
            with disk.paused():
                assert on_disk(run.directory)[0] == 1
                assert content(run.selector) == twin()[run.selector.step_number]
        disk.fails = lambda n: False
        run.commit()
        assert run.durable == 4
        run.end()
        tried += 2
    ledger.note(7, tried=tried, held=tried)


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> list[Exception | None]:
    """What became of starting with the n-th operation failing, for every n; the next attempt always finds all that was there.

    Over a directory with a torn tail, so that starting writes too.
    """
    folder = tmp_path_factory.mktemp("starts")
    begun = directory_with_a_torn_tail(folder)
    became: list[Exception | None] = []
    for kinds, error in ((CHANGES, FULL), (EVERYTHING, BROKEN)):
        nth = 0
        while True:
            directory = folder / f"{error}-{nth}"
            shutil.copytree(begun, directory)
            with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                patch.setattr("edgewise.lease.PATIENCE_S", 0.3)
                disk = FailingDisk(directory, patch, kinds=kinds, error=error, fails=lambda n, nth=nth: n == nth)
                try:
                    selector(directory).close()
                    became.append(None)
                except Exception as refused:
                    became.append(refused)
            if nth >= disk.count:
                break
            with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                patch.setattr("edgewise.lease.PATIENCE_S", 0.3)
                again = selector(directory)
            assert content(again) == twin()[3], f"after a failing {disk.failed}"
            again.close()
            nth += 1
    return became


def test_a_disk_that_fails_at_the_start_takes_nothing_away(starts: list[Exception | None]) -> None:
    assert sum(error is not None for error in starts) > 10
    ledger.note(7, tried=len(starts), held=len(starts))


def test_a_disk_that_fails_at_the_start_is_refused_in_words(starts: list[Exception | None]) -> None:
    for error in starts:
        assert error is None or isinstance(error, (ConfigError, StateError)), repr(error)


def test_an_attempt_that_failed_is_not_in_the_way_of_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.lease.PATIENCE_S", 2.0)
    disk = FailingDisk(tmp_path / "run", monkeypatch)
    for nth in range(100):
        disk.count, disk.failed, disk.fails = 0, [], lambda n, nth=nth: n == nth
        try:
            selector(tmp_path / "run").close()
        except ConfigError:
            disk.fails = lambda n: False
            started = time.monotonic()
            selector(tmp_path / "run").close()
            assert time.monotonic() - started < 1.5
        if not disk.failed:
            break
    ledger.note(5, tried=nth, held=nth)


def directory_with_a_torn_tail(tmp_path: Path) -> Path:
    """Of a run of three commits."""
    begun = Run(tmp_path / "begun")
    for _ in range(3):
        begun.commit()
    begun.selector.close()
    journal_file = sorted(begun.directory.glob("*.journal"))[-1]
    with journal_file.open("ab") as file:
        file.write(journal_file.read_bytes()[:100])
    return begun.directory


def test_what_cannot_be_removed_is_said_once_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.directory.RECORDS", 2)
    disk = FailingDisk(tmp_path / "run", monkeypatch, kinds=frozenset({"unlink"}), error=errno.EPERM)
    run = Run(tmp_path / "run", disk)
    disk.fails = lambda n: True
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(COMMITS):
            run.commit()
            assert run.durable == run.selector.step_number or run.selector.metrics["journal_degraded"] == 1
    messages = loud(said)
    assert len(set(messages)) == len(messages)
    disk.fails = lambda n: False
    run.end()
    ledger.note(7, tried=len(disk.failed), held=len(disk.failed))


@pytest.mark.parametrize("how", ["copies all", "copies half and says so", "copies half and says nothing"])
def test_a_rename_that_copies_costs_no_state(tmp_path: Path, how: str) -> None:
    """As a mounted object store does: not atomic, and what it leaves may be half. The n-th rename, for every n."""
    tried = 0
    while True:
        renames = 0
        with warnings.catch_warnings(record=True) as said, pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("always")
            patch.setattr("edgewise.directory.RECORDS", 3)

            def copying(source: Any, target: Any, nth: int = tried) -> None:
                nonlocal renames
                data = Path(source).read_bytes()
                wrong = how != "copies all" and renames == nth
                renames += 1
                Path(target).write_bytes(data[: len(data) // 2] if wrong else data)
                if wrong and how == "copies half and says so":
                    raise OSError(BROKEN, os.strerror(BROKEN), str(target))
                Path(source).unlink()

            patch.setattr(os, "replace", copying)
            run = Run(tmp_path / str(tried))
            for commit in range(COMMITS):
                before = renames
                run.commit(may_fail=before <= tried < renames or how != "copies all" and renames == tried)
                if run.durable < run.selector.step_number:
                    assert commit + 1 - run.durable == 1, "the next commit writes it again"
                    assert loud(said)
            run.commit()
            run.end()
        tried += 1
        if how == "copies all" or renames <= tried:
            break
    assert how == "copies all" or tried > 3
    ledger.note(14, tried=tried, held=tried)


def test_a_logger_that_fails_stops_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    calls = []

    def down(groups: Any, verdicts: Any) -> None:
        calls.append(len(groups))
        raise ConnectionError("the logger is down")

    run.selector.watch(down)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(COMMITS):
            run.commit()
    (message,) = loud(said)
    assert "the logger is down" in message
    assert len(calls) >= COMMITS
    run.end()
    ledger.note(63, tried=len(calls), held=len(calls))
