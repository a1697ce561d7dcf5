"""A commit follows the batch and not the pool: its bytes and its memory at ten thousand, a hundred thousand, a million prompts.

Times are noted for the page and decide nothing here: `benchmarks/commit.py` measures them.
"""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import edgewise
from edgewise.directory import RunDirectory
from tests import ledger

B, G = 256, 16
COMMITS = 20


class Cost(NamedTuple):
    """Of one commit behind the first two, which are snapshots."""

    record_bytes: float
    milliseconds: float
    most_megabytes: float


def cost(method: str, prompts: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Cost:
    """Steps of 256 groups of 16, as a trainer makes them."""
    rng = np.random.default_rng(0)
    rates, entropy = rng.beta(0.3, 0.3, prompts), rng.normal(2.0, 0.5, prompts)
    pool = edgewise.PromptPool.from_ids([f"prompt-{i}" for i in range(prompts)])
    selector = edgewise.Selector(method, pool, batch_size=B, group_size=G, directory=folder, on_problem="strict")
    sizes, times, peaks = [], [], []
    commit = RunDirectory.commit

    def measured(*args: object) -> int:
        if len(sizes) % 2:  # every other one, for it takes time
            tracemalloc.start()
        began = time.perf_counter()
        size = commit(*args)  # type: ignore[arg-type]
        if tracemalloc.is_tracing():
            peaks.append(tracemalloc.get_traced_memory()[1] / 1e6)
            tracemalloc.stop()
        else:
            times.append(1e3 * (time.perf_counter() - began))
        sizes.append(size)
        return size

    monkeypatch.setattr(RunDirectory, "commit", measured)
    for version in range(COMMITS):
        with selector.step(policy_version=version) as step:
            for tickets in step.requests({"prompt_entropy": lambda rows: entropy[rows]}):
                passes = rng.random((len(tickets), G)) < rates[[t.row for t in tickets], None]
                step.report([edgewise.Outcome(ticket=t, rewards=p.tolist()) for t, p in zip(tickets, passes, strict=True)])
    monkeypatch.undo()
    selector.close()
    again = edgewise.Selector(method, pool, batch_size=B, group_size=G, directory=folder)
    assert again.step_number == COMMITS
    again.close()
    return Cost(float(np.mean(sizes[2:])), float(np.median(times[1:])), max(peaks[1:]))


@pytest.mark.parametrize("method", ["hive", "mopps"])
def test_a_commit_costs_what_its_batch_touched(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [10_000, 100_000] + [1_000_000] * (ledger.cases(0, chaos=1))
    costs = [cost(method, prompts, tmp_path / str(prompts), monkeypatch) for prompts in sizes]
    for prompts, one in zip(sizes, costs, strict=True):
        assert one.record_bytes < 64_000, "256 groups and what HIVE generates on top of them"
        assert one.record_bytes < 1.5 * costs[0].record_bytes, "it does not follow the pool"
        assert one.most_megabytes < 5, "nor does its memory"
        if prompts == 100_000:
            ledger.note(64, tried=1, held=1, commit_ms=one.milliseconds, journal_bytes_per_step=one.record_bytes)
        else:
            ledger.note(64, tried=1, held=1)
