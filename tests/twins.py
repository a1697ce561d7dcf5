"""Runs over a directory that are held against an undisturbed twin, commit by commit.

The twin keeps nothing on disk. After each commit the live selector must equal it; what can be read from the directory must
equal it as it was at some commit, and at the latest one as soon as a commit met no failure.
"""

from __future__ import annotations

import functools
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

import edgewise
from edgewise import saved
from edgewise.directory import History
from edgewise.errors import DegradedWarning
from edgewise.pool import PromptPool
from tests.failing_disk import FailingDisk
from tests.whole_runs import BATCH, GROUP, POOL, answered

COMMITS = 12
"""Of a run. The twin makes three more."""

Content = tuple[dict[str, Any], dict[str, bytes]]


def selector(directory: Path | None, **more: Any) -> edgewise.Selector:
    pool = PromptPool.from_ids([f"p{row}" for row in range(POOL)])
    return edgewise.Selector("mopps", pool, batch_size=BATCH, group_size=GROUP, seed=3, directory=directory, **more)


def one_step(s: edgewise.Selector) -> None:
    with s.step(policy_version=s.step_number) as step:
        for tickets in step.requests():
            step.report([answered(ticket) for ticket in tickets])


def comparable(header: dict[str, Any], arrays: dict[str, Any]) -> Content:
    """All that two selectors of one history must share: no names of the run, no count of its troubles."""
    kept = {name: header[name] for name in ("identity", "batch_size", "step", "position", "next_seq", "policy_version")}
    kept["totals"] = {name: value for name, value in header["totals"].items() if name != "degraded_total"}
    return kept, {name: f"{array.dtype} {array.shape} ".encode() + array.tobytes() for name, array in arrays.items()}


def content(s: edgewise.Selector) -> Content:
    header, arrays = saved.content(s)
    return comparable(header, {name: np.asarray(array) for name, array in arrays.items()})


def on_disk(directory: Path) -> tuple[int, Content | None]:
    """(step, content) of the newest state that can be read there; (0, None) if there is none."""
    if not directory.is_dir():
        return 0, None
    found = History.of(directory).newest()
    return (0, None) if found is None else (found.header["step"], comparable(found.header, found.arrays))


@functools.cache
def twin() -> list[Content]:
    """Content of an undisturbed run before its first commit and after each."""
    s = selector(None)
    contents = [content(s)]
    for _ in range(COMMITS + 3):
        one_step(s)
        contents.append(content(s))
    return contents


class Run:
    """One run over a disk that may fail, checked after each commit."""

    def __init__(self, directory: Path, disk: FailingDisk | None = None, **more: Any) -> None:
        self.directory, self.disk = directory, disk
        self.selector = selector(directory, **more)
        self.durable = 0
        """Step of the newest state that was seen on disk."""

    def commit(self, *, may_fail: bool = False) -> None:
        """One step. The run must not be changed by the disk; what is on disk must be a state of it, and none older than before.

        may_fail: this commit need not be on disk although the disk counted no failure.
        """
        failures = len(self.disk.failed) if self.disk else 0
        one_step(self.selector)
        with self.disk.paused() if self.disk else nullcontext():
            step = self.selector.step_number
            assert content(self.selector) == twin()[step], "the disk changed what the run does"
            found, kept = on_disk(self.directory)
            assert found >= self.durable or may_fail, f"step {self.durable} was on disk, now it is {found}"
            assert kept is None or kept == twin()[found], f"what is on disk is not the state of step {found}"
            if not may_fail and (self.disk is None or len(self.disk.failed) == failures):
                assert found == step, f"no failure in step {step}, but on disk is {found}"
            self.durable = found

    def end(self) -> None:
        """Close, and resume in a new selector: nothing of the trouble is left."""
        self.selector.close()
        resumed = Run(self.directory)
        assert resumed.selector.step_number == self.selector.step_number == self.durable
        assert content(resumed.selector) == twin()[self.durable]
        resumed.commit()
        resumed.selector.close()


def loud(said: list[warnings.WarningMessage]) -> list[str]:
    return [str(warning.message) for warning in said if issubclass(warning.category, DegradedWarning)]
