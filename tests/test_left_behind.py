"""A branch that was given up stays given up, and what was promised is remembered: whichever single file is lost, and whenever
the writer dies or the disk refuses on the way. Every commit here leaves a number that no other one leaves.
"""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise import state
from edgewise.directory import RunDirectory
from edgewise.errors import StateError
from edgewise.history import History
from edgewise.inspection import inspected
from tests import ledger

MOST = 1 << 20
OLD, BACK = 10, 3
"""Commits of the branch that is given up, and the step to which the run goes back."""


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody cuts the power here."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


class Writer:
    """What a selector does with its directory."""

    def __init__(self, where: Path, at: int | None = None, exactly: bool = True) -> None:
        self.directory = RunDirectory(where, MOST)
        history = self.directory.history()
        found = history.newest() if at is None else history.at_step(at)
        self.values, self.step, self.number = np.zeros((5, 2)), 0, 0
        if found is not None:
            self.values = found.arrays["method/prompts/p"].copy()
            self.step, self.number = int(found.header["step"]), int(found.header["number"])
        self.directory.continue_from(history, found, exactly)
        self.notes = "\n".join(self.directory.notes)
        self.fell_back = found is not None and at is None and found.node != history.nodes()[0]
        """Newer states are mentioned and cannot be read: a selector says so."""

    def commit(self, number: int) -> None:
        row = self.step % 5
        self.step, self.number, self.values[row] = self.step + 1, number, number
        header = {"step": self.step, "number": number}
        self.directory.commit(header, {"method/prompts/p": self.values, "method/shared/x": np.arange(3)}, np.array([row]))

    def go_back(self, step: int) -> None:
        """As `Selector.restore` does."""
        self.step, self.number = step, step
        self.directory.forget_base()

    def close(self) -> None:
        self.directory.close()


def begun(where: Path, commits: int = OLD) -> Writer:
    """Commit k leaves the number k."""
    writer = Writer(where)
    for k in range(1, commits + 1):
        writer.commit(k)
    return writer


def rewound(where: Path, how: str) -> Writer:
    """A run of ten commits, back at step 3."""
    writer = begun(where)
    if how == "restored":
        writer.go_back(BACK)
        return writer
    writer.close()
    return Writer(where, at=BACK, exactly=how == "exactly")


def numbers(where: Path) -> dict[int, int]:
    """The number of each state that can be read, by step."""
    history = History.of(where, MOST)
    found = {node.step: history.reached(node) for node in reversed(history.nodes())}
    return {step: int(one.header["number"]) for step, one in found.items() if one is not None}


HOW = pytest.mark.parametrize("how", ["exactly", "as it is not", "restored"])


@HOW
@pytest.mark.parametrize("commits", [1, 2, 5])
def test_whichever_file_is_deleted_the_branch_given_up_stays_so(tmp_path: Path, how: str, commits: int) -> None:
    writer = rewound(tmp_path / "run", how)
    for k in range(commits):
        writer.commit(100 + k)
    writer.close()
    own = {BACK + 1 + k: 100 + k for k in range(commits)}
    assert numbers(tmp_path / "run")[BACK + commits] == own[BACK + commits]
    tried = 0
    for file in sorted((tmp_path / "run").glob("selector-*")):
        where = tmp_path / "copy"
        shutil.copytree(tmp_path / "run", where)
        (where / file.name).unlink()
        again = Writer(where)
        assert again.number == own.get(again.step, again.step), f"without {file.name}: the branch that was given up is back"
        assert again.step <= BACK or again.step in own
        told = again.fell_back or "the writer before made commit" in again.notes
        assert told == (again.step < BACK + commits)
        again.commit(999)
        assert numbers(where)[again.step] == 999
        again.close()
        shutil.rmtree(where)
        tried += 1
    ledger.note(54, tried=tried, held=tried)


@HOW
def test_a_disk_that_refuses_after_rewinding_does_not_bring_the_other_branch_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    writer = rewound(tmp_path, how)

    def refuse(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr("edgewise.state.write", refuse)
        full.setattr("edgewise.journal.Tail.append", refuse)
        for k in range(4):
            with pytest.raises(OSError, match="No space"):
                writer.commit(100 + k)
    there = numbers(tmp_path)
    assert len(there) == (BACK if how == "exactly" else OLD)  # nothing is given up for a state that is not on disk
    writer.commit(200)
    found = numbers(tmp_path)
    assert found.pop(BACK + 5) == 200
    assert found == {step: step for step in range(1, BACK + 1)}
    writer.close()
    ledger.note(54, tried=1, held=1)


def test_a_journal_that_cannot_be_read_just_then_is_left_behind_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = begun(tmp_path)
    writer.go_back(BACK)
    real = state.read

    def failing(source: Path, *args: Any, **more: Any) -> bytes:
        if str(source).endswith(".journal"):
            raise StateError(f"{source} cannot be read") from OSError(errno.EIO, "Input/output error")
        return real(source, *args, **more)

    with monkeypatch.context() as broken:
        broken.setattr("edgewise.journal.read", failing)
        writer.commit(100)
    writer.close()
    assert {step: number for step, number in numbers(tmp_path).items() if step > BACK} == {BACK + 1: 100}
    ledger.note(54, tried=1, held=1)


@HOW
def test_killed_at_any_operation_of_a_rewind_a_run_is_at_one_of_its_commits(tmp_path: Path, how: str) -> None:
    """The kill is real: a fork that leaves at its n-th call. Nothing is lost, so nothing may be said to be lost."""
    tried = 0
    for n in range(1, 200):
        where = tmp_path / str(n)
        pid = os.fork()
        if pid == 0:
            code = 3
            try:
                writer = rewound(where, how)
                _die_at(n)
                for k in range(3):
                    writer.commit(100 + k)
                code = 0
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code == 0:
            break
        assert code == 7
        again = Writer(where)
        assert (again.step, again.number) in {(OLD, OLD), (BACK, BACK), *((BACK + 1 + k, 100 + k) for k in range(3))}
        assert "the writer before made commit" not in again.notes
        again.commit(999)
        again.close()
        found = numbers(where)
        assert found.pop(again.step) == 999
        assert all(number in (step, 100 + step - BACK - 1) for step, number in found.items())
        shutil.rmtree(where)
        tried += 1
    assert 5 < tried < 190
    ledger.note(1, tried=tried, held=tried)


def _die_at(n: int) -> None:
    """Let this process end at the n-th of the calls that change a directory."""
    calls = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == n:
                os._exit(7)
            return real(*args, **more)

        return call

    for name in ("open", "write", "pwrite", "replace", "rename", "unlink", "truncate"):
        setattr(os, name, dying(getattr(os, name)))


# -- what is promised ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["a start that fails", "a look at an older step"])
def test_what_was_promised_outlives_a_start_without_a_commit(tmp_path: Path, between: str) -> None:
    begun(tmp_path, 6).close()
    if between == "a start that fails":
        RunDirectory(tmp_path, MOST).close()  # such as one with other settings, refused before it goes on
    else:
        Writer(tmp_path, at=2).close()
    sorted(tmp_path.glob("*.journal"))[-1].unlink()
    found = inspected(tmp_path)
    assert "Its writer made commit 6 under lease" in found.problems[0]
    writer = Writer(tmp_path)
    assert writer.step == 2
    assert "made commit 6, the newest found is 2" in writer.notes
    writer.close()
    again = Writer(tmp_path)
    assert again.notes == ""  # said once
    again.close()
    assert not inspected(tmp_path).problems
    ledger.note(13, tried=1, held=1)


def test_a_directory_made_again_and_still_empty_is_no_first_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = begun(tmp_path / "run", 6)
    shutil.rmtree(tmp_path / "run")

    def refuse(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("edgewise.state.write", refuse)
    with pytest.raises(OSError, match="No space"):
        writer.commit(7)
    writer.close()
    again = RunDirectory(tmp_path / "run", MOST)
    assert again.promised == (1, 6)
    again.close()
    ledger.note(8, tried=1, held=1)


def test_a_snapshot_under_the_name_of_a_newer_one_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.directory.RECORDS", 4)
    begun(tmp_path, 13).close()
    oldest = min(tmp_path.glob("*.safetensors"))
    shutil.copy(oldest, tmp_path / "selector-000001-000000099.safetensors")
    for file in tmp_path.glob("*.journal"):
        file.unlink()  # with the record of that state its own number would be known
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        history = History.of(tmp_path, MOST)
    assert "it was renamed or copied" in history.broken[0]
    found = history.newest()
    assert found is not None
    assert found.node.commit < 99
    assert found.header["step"] == max(
        int(file.stem.split("-")[2]) for file in tmp_path.glob("*.safetensors") if file.stem[-2:] != "99"
    )
    ledger.note(13, tried=1, held=1)
