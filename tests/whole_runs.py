"""Real runs of a method under a strict selector: synchronous or streaming, with ragged and missing rewards, cut and resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.pool import PromptPool
from edgewise.selector import Selector
from edgewise.types import Ints, Outcome, Ticket

POOL, BATCH, GROUP = 40, 4, 4

Signals = Mapping[str, Callable[[Ints], Any]]


def answered(ticket: Ticket) -> Outcome:
    """Rewards that depend on the prompt and the ticket only. Some rollouts are missing, some groups short, some lost whole."""
    rng = np.random.default_rng([7, ticket.seq])
    rewards: list[float | None] = (rng.random(ticket.rollouts) < (ticket.row + 1) / (POOL + 2)).astype(float).tolist()
    if ticket.seq % 5 == 0:
        rewards[0] = None
    if ticket.seq % 7 == 0:
        rewards = rewards[:2]
    if ticket.seq % 11 == 0:
        rewards = [None] * ticket.rollouts
    if ticket.seq % 13 == 0:
        rewards = [rewards[-1]]
    return Outcome(ticket=ticket, rewards=rewards)


def selector_of(method: str, parameters: Mapping[str, Any] | None = None) -> Selector:
    pool = PromptPool.from_ids([f"p{row}" for row in range(POOL)])
    return Selector(
        method, pool, batch_size=BATCH, group_size=GROUP, seed=3, parameters=parameters, on_problem="strict"
    )  # fmt: skip


def rows_of_steps(selector: Selector, signals: Signals, steps: range) -> list[list[int]]:
    """Rows asked for in each round of these steps."""
    asked = []
    for number in steps:
        with selector.step(policy_version=number) as step:
            for tickets in step.requests(signals):
                asked.append([ticket.row for ticket in tickets])
                step.report([answered(ticket) for ticket in tickets])
    return asked


def rows_of_stream(selector: Selector, signals: Signals, takes: range) -> list[list[int]]:
    """Rows of each take of three; reports come one by one, two takes late."""
    asked = []
    for number in takes:
        asked.append([ticket.row for ticket in selector.take(3, signals=signals, policy_version=number // 2)])
        for ticket in selector.in_flight[:-6]:
            selector.report([answered(ticket)])
    return asked


def assert_resumes_exactly(method: str, tmp_path: Path, signals: Signals, parameters: Mapping[str, Any] | None = None) -> None:
    """Synchronous and streaming: a run that is saved after half and restored into a fresh selector asks for the same rows."""
    for drive, length in ((rows_of_steps, 12), (rows_of_stream, 40)):
        whole = drive(selector_of(method, parameters), signals, range(length))
        assert any(whole)
        first = selector_of(method, parameters)
        begun = drive(first, signals, range(length // 2))
        first.save(tmp_path / drive.__name__)
        second = selector_of(method, parameters)
        second.restore(tmp_path / drive.__name__)
        if drive is rows_of_stream:  # what was in flight is handed out again first: report it as the first run would have
            second._reissue = []
        assert begun + drive(second, signals, range(length // 2, length)) == whole
