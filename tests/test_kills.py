"""Writers killed at any moment: every commit that was told is there, none counts twice, and the run goes on as before."""

from __future__ import annotations

import shutil
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgewise.history import History
from tests import ledger
from tests.kill_writer import METHODS, Twin, Writer, Zygote, digest, drive, outcomes, selector

STEPS = 60
"""Commits of a directory before the next one is begun."""
RECORDS = 4
"""Commits between two snapshots: most kills meet one."""


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    process = Zygote()
    yield process
    process.close()


class Tally:
    """What was found after the kills of one test."""

    def __init__(self) -> None:
        self.kills = self.outcomes = self.lost = self.doubled = self.orphans = self.resumes = 0

    def check(self, method: str, twin: Twin, where: Path, told: int) -> int:
        """Open what a killed writer left, compare it with the twin, take one step more. Returns the step reached."""
        read = History.of(where).newest() if where.is_dir() else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a takeover and a torn tail are told, as they should be
            s = selector(method, where)
        step = s.step_number
        assert step in (told, told + 1), f"step {told} was told, step {step} is there"
        assert (read.node.step if read else 0) == step, "a reader sees what a writer finds"
        assert digest(s) == twin.digests[step], f"{method}: what is on disk is not the state of step {step}"
        self.outcomes += twin.outcomes[told]
        self.lost += max(0, twin.outcomes[told] - outcomes(s))
        self.doubled += max(0, outcomes(s) - twin.outcomes[step])
        self.orphans += len(list(where.glob(".*")))
        assert drive(method, s) == twin.asked[step], f"{method}: another batch behind step {step}"
        assert s.metrics["journal_degraded"] == 0
        self.resumes += 1
        s.close()
        return s.step_number


@pytest.mark.parametrize(("row", "number"), [(1, signal.SIGKILL), (20, signal.SIGTERM)])
def test_a_kill_at_any_moment_loses_nothing_and_doubles_nothing(
    tmp_path: Path, zygote: Zygote, monkeypatch: pytest.MonkeyPatch, row: int, number: int
) -> None:
    """While opening, while recovering and taking over, and while committing; one directory lives through many of them."""
    monkeypatch.setattr("edgewise.directory.RECORDS", RECORDS)
    rng = np.random.default_rng([ledger.seed(), row])
    rounds = ledger.cases(4 if row == 1 else 1, chaos=30 if row == 1 else 8)
    tally = Tally()
    for method in METHODS:
        twin, where, at = Twin(method, STEPS + 4), tmp_path / f"{method}-0", 0
        for _ in range(rounds):
            if at > STEPS // 2:
                where, at = tmp_path / f"{method}-{tally.kills}", 0
            for _ in range(int(rng.integers(1, 3))):  # some are killed once more before anybody looks
                writer = zygote.start(method=method, where=str(where), steps=STEPS, records=RECORDS)
                killed_after(writer, rng, number)
                tally.kills += 1
                assert all(line["digest"] == twin.digests[line["step"]] for line in writer.told if "digest" in line)
                at = max(at, writer.step)
            at = tally.check(method, twin, where, at)
            shutil.rmtree(where) if at > STEPS // 2 else None
    assert tally.orphans == 0
    ledger.note(
        row, tried=tally.kills, held=tally.kills, kills=tally.kills, outcomes=tally.outcomes, lost=tally.lost,
        doubled=tally.doubled, resumes=tally.resumes,
    )  # fmt: skip


def killed_after(writer: Writer, rng: np.random.Generator, number: int) -> None:
    """Kill after some commits and a moment, or a moment after the start; and hear what it had told until then."""
    if rng.random() < 0.3:
        time.sleep(rng.uniform(0.0, 0.06))
        writer.kill(number)
        for _ in writer.lines():
            pass
        return
    commits = int(rng.integers(0, 14))
    for heard, _ in enumerate(writer.lines()):
        if heard == commits:
            time.sleep(rng.uniform(0.0, 0.006))
            writer.kill(number)


def test_a_kill_in_any_file_operation_loses_nothing(tmp_path: Path, zygote: Zygote, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer takes over from a dead one, cuts its torn tail, commits and compacts; it dies in its n-th operation.

    A write is cut in half by it. Every n in `make chaos`, else every eleventh.
    """
    monkeypatch.setattr("edgewise.directory.RECORDS", 3)
    twin, begun = Twin("counting", 20), tmp_path / "begun"
    writer = zygote.start(method="counting", where=str(begun), steps=4, records=3)
    assert [line.get("step") for line in writer.lines()] == [None, 1, 2, 3, 4]
    (journal,) = sorted(begun.glob("*.journal"))[-1:]
    with journal.open("ab") as file:
        file.write(journal.read_bytes()[:90])
    tally, stride = Tally(), ledger.cases(11, chaos=1)
    nth = ledger.seed() % stride
    while True:
        where = tmp_path / str(nth)
        shutil.copytree(begun, where)
        writer = zygote.start(method="counting", where=str(where), steps=11, records=3, kill_at=nth)
        for _ in writer.lines():
            pass
        if writer.step == 11:
            break
        tally.kills += 1
        tally.check("counting", twin, where, max(4, writer.step))
        shutil.rmtree(where)
        nth += stride
    assert nth > 60, "opening and seven commits do that much"
    assert tally.orphans == 0
    ledger.note(
        2, tried=tally.kills, held=tally.kills, kills=tally.kills, outcomes=tally.outcomes, lost=tally.lost,
        doubled=tally.doubled, resumes=tally.resumes,
    )  # fmt: skip
