"""HORA: the budget is met exactly, and spent where the first success is likeliest."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.errors import ConfigError
from edgewise.methods.hora import Hora
from edgewise.outcomes import continued, joined
from edgewise.pool import PromptPool
from edgewise.selector import Selector
from edgewise.types import Outcome, Setting
from tests.fakes import FakeStep, groups_of, passing
from tests.whole_runs import answered, selector_of


def started(group_size: int = 4, batch_size: int = 4, **parameters: Any) -> Hora:
    method = Hora(**parameters)
    method.start(Setting(pool_size=100, batch_size=batch_size, group_size=group_size))
    return method


def hit_utility(alpha: int, beta: int, n: int) -> Fraction:
    """1 - B(α, β+n)/B(α, β) = 1 - Π (β+j)/(α+β+j), exactly."""
    missed = Fraction(1)
    for j in range(n):
        missed *= Fraction(beta + j, alpha + beta + j)
    return 1 - missed


@pytest.mark.parametrize(("group_size", "pilot"), [(2, 2), (3, 2), (4, 2), (8, 4), (16, 8)])
def test_the_pilot_is_half_of_the_group(group_size: int, pilot: int) -> None:
    step = FakeStep(range(100))
    method = started(group_size)
    requests = method.propose(4, step)
    assert (len(requests), set(requests.rollouts.tolist())) == (4, {pilot})
    step.round = 1
    assert len(method.propose(1, step)) == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=4))
def test_the_allocation_is_the_best_of_all(passes: list[int]) -> None:
    """Against every way to share 2 rollouts a prompt, in exact fractions."""
    pilots = passing(list(range(len(passes))), passes, 4)
    more = started(6, pilot=4).judge(pilots, FakeStep([])).more
    assert more is not None
    budget = 2 * len(passes)
    assert int(more.sum()) == budget

    def value(shares: Any) -> Fraction:
        return sum((hit_utility(1 + k, 5 - k, n) for k, n in zip(passes, shares, strict=True)), Fraction(0))

    best = max(value(s) for s in product(range(budget + 1), repeat=len(passes)) if sum(s) == budget)
    assert float(value(more.tolist())) == pytest.approx(float(best), abs=1e-12)


def test_the_golden_allocation() -> None:
    """Pilots of 8 with 0, 1, 2, 4, 8 passes are Beta(1, 9), (2, 8), (3, 7), (5, 5), (9, 1); 20 more to share."""
    verdicts = started(12, batch_size=5, pilot=8).judge(passing([0, 1, 2, 3, 4], [0, 1, 2, 4, 8], 8), FakeStep([]))
    assert verdicts.more is not None
    assert verdicts.more.tolist() == [4, 5, 5, 4, 2]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(2, 12), st.integers(0, 10**6))
def test_all_rollouts_together_are_the_budget_and_each_group_has_two(count: int, group_size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    method = started(group_size, batch_size=count)
    pilot = method.pilot_size
    pilots = passing(list(range(count)), rng.integers(0, pilot + 1, count).tolist(), pilot)
    more = method.judge(pilots, FakeStep([])).more
    assert more is not None
    assert int((pilot + more).sum()) == count * group_size
    assert (pilot + more).min() >= 2
    assert (pilot + more).max() <= 8 * group_size


def test_missing_rollouts_are_no_failures() -> None:
    """Two scored, both passed: Beta(3, 1), whose second gain 3/20 is below that of Beta(3, 3), 9/42: it gets fewer."""
    nan = np.nan
    mixed = groups_of([0, 1, 2], [[1, 1, nan, nan], [1, 1, 0, 0], [0, 0, 0, 0]])
    more = started(8, pilot=4).judge(mixed, FakeStep([])).more
    assert more is not None
    assert more[0] < more[1] < more[2]


def test_a_pilot_without_two_outcomes_is_dropped_and_its_budget_with_it() -> None:
    nan = np.nan
    verdicts = started(4).judge(groups_of([0, 1], [[1, nan], [1, 0]]), FakeStep([]))
    assert verdicts.more is not None
    assert (verdicts.keep.tolist(), verdicts.more.tolist(), verdicts.reasons) == ([False, True], [0, 2], ("incomplete", ""))


def test_a_continued_group_is_kept_and_gets_no_more() -> None:
    whole = joined([continued(passing([0], [0], 2), passing([0], [0], 5)), passing([1], [2], 2)])
    verdicts = started(4).judge(whole, FakeStep([]))
    assert verdicts.more is not None
    assert (verdicts.keep.tolist(), verdicts.more.tolist()) == ([True, True], [0, 2])


def test_who_gets_the_odd_rollout_is_chance() -> None:
    """Pilots of 4 with 1, 0, 0, 0 passes and 4 rollouts to share. Gains: 1/3, 4/21, 5/42 for the first, 1/6 for the others.

    So the first gets two and two of the three others one each. 600 steps, each 400 times, sigma 11.5; ±70 is 6 sigma.
    """
    method = started(5, pilot=4)
    wins: Counter[int] = Counter()
    for n in range(600):
        more = method.judge(passing([0, 1, 2, 3], [1, 0, 0, 0], 4), FakeStep([], number=n)).more
        assert more is not None
        assert more[0] == 2
        assert sorted(more[1:].tolist()) == [0, 1, 1]
        wins.update(np.flatnonzero(more).tolist())
    assert all(abs(wins[i] - 400) < 70 for i in (1, 2, 3))


def test_whole_runs_train_exactly_the_budget() -> None:
    pool = PromptPool.from_ids([f"p{i}" for i in range(40)])
    selector = Selector("hora", pool, batch_size=8, group_size=6, on_problem="strict")
    sizes = set()
    for number in range(10):
        with selector.step(policy_version=number) as step:
            for tickets in step.requests({}):
                outcomes = []
                for ticket in tickets:
                    rng = np.random.default_rng([3, ticket.seq])
                    rewards = (rng.random(ticket.rollouts) < ticket.row / 40).astype(float).tolist()
                    outcomes.append(Outcome(ticket=ticket, rewards=rewards))
                step.report(outcomes)
            batch = step.training_batch
        assert len(batch) == 8
        assert int(batch.trained.sum()) == int(batch.asked.sum()) == 48
        sizes |= set(batch.asked.tolist())
    assert selector.metrics["rollouts_total"] == 480
    assert len(sizes) > 2


def test_whole_runs_with_missing_rollouts_never_exceed_the_budget() -> None:
    selector = selector_of("hora")
    for number in range(10):
        with selector.step(policy_version=number) as step:
            for tickets in step.requests({}):
                step.report([answered(ticket) for ticket in tickets])
            if step.missing < 4:
                assert int(step.training_batch.trained.sum()) == 4 * len(step.training_batch)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Hora\(pilot=...\) must be at most group_size = 4, got 5"):
        started(4, pilot=5)
    with pytest.raises(ConfigError, match=r"Hora\(most=...\) must be a number of at least 1, got 0.5"):
        Hora(most=0.5)
