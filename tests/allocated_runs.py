"""Real runs of methods whose groups differ in size: what was asked of whom, with ragged, missing and lost groups."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import edgewise
from edgewise.method import Method
from edgewise.types import EMBEDDING, Groups, Ints, Outcome, Ticket

POOL, BATCH, GROUP = 90, 12, 6
VECTORS = np.random.default_rng(5).normal(size=(POOL, 5))
RATES = 1.0 / (1.0 + np.exp(-3.0 * VECTORS[:, 0]))

Asked = list[list[tuple[int, int]]]
Make = Callable[[], Method]


def served() -> dict[str, Any]:
    def vectors(rows: Ints) -> Any:
        return VECTORS[rows]

    def deviations(rows: Ints) -> Any:
        return np.where(rows % 4 == 0, np.nan, 3.0 * np.sqrt(RATES[rows] * (1.0 - RATES[rows])))

    return {EMBEDDING: vectors, "gradient_deviation": deviations}


def answered(ticket: Ticket) -> Outcome:
    """Rewards by the prompt's rate; some rollouts missing, some groups short, some with one rollout, some lost whole."""
    rng = np.random.default_rng([7, ticket.seq])
    rewards: list[float | None] = (rng.random(ticket.rollouts) < RATES[ticket.row]).astype(float).tolist()
    if ticket.seq % 5 == 0:
        rewards[0] = None
    if ticket.seq % 7 == 0:
        rewards = rewards[:2]
    if ticket.seq % 11 == 0:
        rewards = [None] * ticket.rollouts
    if ticket.seq % 13 == 0:
        rewards = rewards[:1]
    return Outcome(ticket=ticket, rewards=rewards)


def whole(ticket: Ticket) -> Outcome:
    """The same without a failure."""
    rng = np.random.default_rng([7, ticket.seq])
    return Outcome(ticket=ticket, rewards=(rng.random(ticket.rollouts) < RATES[ticket.row]).astype(float).tolist())


def selector_of(make: Make, group_size: int = GROUP) -> edgewise.Selector:
    pool = edgewise.PromptPool.from_ids([f"p{row}" for row in range(POOL)])
    return edgewise.Selector(make(), pool, batch_size=BATCH, group_size=group_size, seed=3, on_problem="strict")


def asked_in_steps(selector: edgewise.Selector, steps: range, answer: Callable[[Ticket], Outcome] = answered) -> Asked:
    """(row, rollouts) of each ticket of each round."""
    return [round_ for step in batches(selector, steps, answer) for round_ in step[0]]


def batches(
    selector: edgewise.Selector, steps: range, answer: Callable[[Ticket], Outcome] = answered
) -> list[tuple[Asked, Groups]]:
    """Of each step: what its rounds asked for, and the training batch."""
    seen = []
    for number in steps:
        rounds: Asked = []
        with selector.step(policy_version=number) as step:
            for tickets in step.requests(served()):
                rounds.append([(ticket.row, ticket.rollouts) for ticket in tickets])
                step.report([answer(ticket) for ticket in tickets])
            seen.append((rounds, step.training_batch))
    return seen


def asked_in_stream(selector: edgewise.Selector, takes: range) -> Asked:
    """The same of each take of three; reports come one by one, two takes late."""
    asked = []
    for number in takes:
        tickets = selector.take(3, signals=served(), policy_version=number // 2)
        asked.append([(ticket.row, ticket.rollouts) for ticket in tickets])
        for ticket in selector.in_flight[:-6]:
            selector.report([answered(ticket)])
    return asked


def assert_resumes_exactly(make: Make, folder: Path) -> None:
    """Synchronous and streaming: saved after half and restored into a fresh selector, it asks the same of the same prompts."""
    for drive, length in ((asked_in_steps, 14), (asked_in_stream, 40)):
        expected = drive(selector_of(make), range(length))
        assert len({n for round_ in expected for _, n in round_}) > 1, "nothing was allocated"
        first = selector_of(make)
        begun = drive(first, range(length // 2))
        first.save(folder / drive.__name__)
        second = selector_of(make)
        second.restore(folder / drive.__name__)
        if drive is asked_in_stream:  # what was in flight is handed out again first: report it as the first run would have
            second._reissue = []
        assert begun + drive(second, range(length // 2, length)) == expected


def assert_budgets_hold(make: Make, least: int, most: int) -> None:
    """Every first round asks for batch · group rollouts, every take for its groups' share; each group for 2 at least."""
    for rounds, _ in batches(selector_of(make), range(9), whole):
        assert len(rounds) == 1
        assert sum(n for _, n in rounds[0]) == BATCH * GROUP
        assert all(least <= n <= most for _, n in rounds[0])
    for round_ in asked_in_stream(selector_of(make), range(15)):
        assert sum(n for _, n in round_) == GROUP * len(round_)
    pairs = asked_in_steps(selector_of(make, group_size=2), range(6))
    assert {n for round_ in pairs for _, n in round_} == {2}


def assert_top_ups_fill_the_batch(make: Make) -> int:
    """With rounds to spare, lost groups are made up for: the trained batch has its exact size. Returns how often they were."""
    topped_up = 0
    for rounds, batch in batches(selector_of(make), range(12)):
        topped_up += len(rounds) > 1
        assert len(batch) == BATCH
        assert batch.asked.sum() == BATCH * GROUP
    return topped_up


class Stop(Exception):
    """Leaves a step, which rolls it back."""


def assert_proposing_is_a_read(make: Make) -> None:
    """Asking changes nothing per prompt, and the same is asked again after a step that was rolled back."""
    selector = selector_of(make)
    asked_in_steps(selector, range(4))
    before = {name: array.copy() for name, array in selector.method.state().prompts.items()}
    twice = []
    for _ in range(2):
        with contextlib.suppress(Stop), selector.step(policy_version=9) as step:
            twice.append([(ticket.row, ticket.rollouts) for ticket in next(iter(step.requests(served())))])
            raise Stop
    assert twice[0] == twice[1]
    assert {name: array.tolist() for name, array in selector.method.state().prompts.items()} == {
        name: array.tolist() for name, array in before.items()
    }
