"""Runs of a selector in a `World`, as a synchronous and as an asynchronous host make them."""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from edgewise.errors import DegradedWarning, ShortfallError
from edgewise.method import Method
from edgewise.selector import Selector
from edgewise.testing.world import World
from edgewise.types import Outcome, Ticket

Asked: TypeAlias = list[list[list[tuple[int, int]]]]
"""What was asked for: (row, rollouts), request by request, in rounds, in steps or calls."""


class Size(NamedTuple):
    """How big a run is: groups a training batch, rollouts a group, steps the run is said to take."""

    batch_size: int = 6
    group_size: int = 4
    total_steps: int = 40


def selector_of(
    method: Method, world: World, size: Size, *, seed: int = 0, on_problem: Literal["degrade", "strict"] = "strict"
) -> Selector:
    """A selector that, unless told otherwise, raises at the first problem."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)  # a small pool is a reason to warn, and we know
        return Selector(
            method, world.pool, batch_size=size.batch_size, group_size=size.group_size, total_steps=size.total_steps, seed=seed,
            on_problem=on_problem,
        )  # fmt: skip


def steps(selector: Selector, world: World, n: int) -> Asked:
    """`n` training steps; nothing is trained."""
    made = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        for _ in range(n):
            rounds = []
            try:
                with selector.step(policy_version=selector.step_number) as step:
                    for tickets in step.requests(world.signals):
                        rounds.append([(t.row, t.rollouts) for t in tickets])
                        step.report(world.rollout(tickets))
            except ShortfallError:
                pass  # a method may be told to end a short step so
            made.append(rounds)
    return made


def stream(selector: Selector, world: World, calls: int, *, n: int = 4, most: int = 12) -> Asked:
    """`calls` times: take `n` tickets, then report some that are in flight, out of order, until fewer than `most` are.

    Which ones are reported follows from the number of the call and from what is in flight, so that a resumed stream does the
    same. Tickets that a restored selector hands out again are not part of the answer.
    """
    made = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        again = selector.in_flight
        if again and selector._reissue:  # exactly these, and nothing new
            selector.take(len(again), signals=world.signals, policy_version=selector.step_number)
        for _ in range(calls):
            number = selector.step_number
            tickets = selector.take(n, signals=world.signals, policy_version=number)
            made.append([[(t.row, t.rollouts) for t in tickets]])
            selector.report(world.rollout(_some(selector.in_flight, number, len(selector.in_flight) - most + n)))
    return made


def settled(selector: Selector, world: World, order: np.random.Generator | None, *, streaming: bool) -> Selector:
    """A run in which every outcome is reported, some of them late; `order`: of arrival and of the split into calls.

    None: in the order of tickets, one call for all that come between two decisions. When streaming, one ticket in eight
    expires, and its outcome comes two calls of `take` later.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        if not streaming:
            for _ in range(4):
                try:
                    with selector.step(policy_version=selector.step_number) as step:
                        for tickets in step.requests(world.signals):
                            for part in _parts(world.rollout(tickets), order):
                                step.report(part)
                except ShortfallError:
                    pass
            return selector
        waiting: list[tuple[int, Ticket]] = []
        for number in range(14):
            if number < 10:
                tickets = selector.take(5, signals=world.signals, policy_version=number)
                lost = [t for t in tickets if t.seq % 8 == 3 and t.continues is None]
                selector.expire(lost)
                waiting += [(number + (2 if t in lost else t.seq % 3), t) for t in tickets]
            due = [t for when, t in waiting if when <= number]
            waiting = [(when, t) for when, t in waiting if when > number]
            for part in _parts(world.rollout(due), order):
                selector.report(part)
        selector.commit()
        return selector


def _parts(outcomes: list[Outcome], order: np.random.Generator | None) -> list[list[Outcome]]:
    if order is None:
        return [outcomes]
    shuffled = [outcomes[i] for i in order.permutation(len(outcomes))]
    cuts = np.sort(order.integers(0, len(outcomes) + 1, size=int(order.integers(0, 5)))).tolist()
    return [shuffled[a:b] for a, b in zip([0, *cuts], [*cuts, len(outcomes)], strict=True)]


def _some(tickets: list[Ticket], number: int, n: int) -> list[Ticket]:
    order = np.random.default_rng([12, number]).permutation(len(tickets))
    return [tickets[i] for i in order[: max(0, n)]]


def mixed_share(selector: Selector, world: World, groups: int) -> tuple[float, int]:
    """Share of the responses that lie in groups of mixed rewards, over at least `groups` groups; and the distinct prompts.

    By responses and not by groups, so that a pilot of two rollouts counts as two.
    """
    seen: dict[int, tuple[float, float, int]] = {}  # first ticket of a group -> lowest and highest reward, rollouts
    rows: set[int] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        while len(seen) < groups:
            before = len(seen)
            try:
                with selector.step(policy_version=selector.step_number) as step:
                    for tickets in step.requests(world.signals):
                        outcomes = world.rollout(tickets)
                        for outcome in outcomes:
                            ticket, rewards = outcome.ticket, outcome.rewards
                            first = ticket.seq if ticket.continues is None else ticket.continues
                            low, high, n = seen.get(first, (np.inf, -np.inf, 0))
                            seen[first] = (min(low, *rewards), max(high, *rewards), n + ticket.rollouts)
                        step.report(outcomes)
                        rows |= {ticket.row for ticket in tickets}
            except ShortfallError:
                pass
            if len(seen) == before:
                break
    responses = sum(n for _, _, n in seen.values())
    return sum(n for low, high, n in seen.values() if low < high) / max(1, responses), len(rows)
