"""Reinforce-Ada: when a prompt exits, and which of its rollouts are trained on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.errors import ConfigError
from edgewise.methods.reinforce_ada import ReinforceAda
from edgewise.types import Setting
from tests.fakes import FakeStep, groups_of, passing
from tests.whole_runs import answered, selector_of


def started(group_size: int = 4, **parameters: Any) -> ReinforceAda:
    method = ReinforceAda(**parameters)
    method.start(Setting(pool_size=100, batch_size=4, group_size=group_size))
    return method


def test_a_round_asks_for_eight_rollouts_of_the_batch() -> None:
    step = FakeStep(range(100))
    requests = started().propose(4, step)
    assert (len(requests), set(requests.rollouts.tolist())) == (4, {8})
    step.round = 1
    assert len(started().propose(4, step)) == 0


@pytest.mark.parametrize(
    ("exit_", "group_size", "asked", "passes", "more"),
    [
        ("balanced", 4, 8, [0, 1, 2, 4, 6, 7, 8], [8, 8, 0, 0, 0, 8, 8]),
        ("balanced", 5, 8, [1, 2, 5, 6], [8, 0, 0, 8]),  # two positives and three negatives
        ("balanced", 8, 8, [3, 4, 5], [8, 0, 8]),
        ("balanced", 4, 24, [0, 1, 2], [8, 8, 0]),
        ("balanced", 4, 32, [0, 1, 32], [0, 0, 0]),  # the rounds are used up
        ("positive", 4, 8, [0, 1, 8], [8, 0, 0]),
        ("positive", 4, 32, [0, 1], [0, 0]),
    ],
)
def test_a_prompt_goes_on_until_it_exits(exit_: Any, group_size: int, asked: int, passes: list[int], more: list[int]) -> None:
    groups = passing(list(range(len(passes))), passes, asked)
    verdicts = started(group_size, exit=exit_).judge(groups, FakeStep([]))
    assert verdicts.more is not None
    assert verdicts.more.tolist() == more
    assert verdicts.keep.tolist() == [wanted == 0 for wanted in more]


def by_hand(positive: int, negative: int, n: int, *, all_positive: bool) -> tuple[int, int]:
    """(positives, negatives) trained: as many of each as an equal split allows, then whatever there is."""
    best = None
    for p in range(min(positive, n) + 1):
        q = min(n, positive + negative) - p
        if 0 <= q <= negative:
            badness = -p if all_positive else abs(p - min(n, positive + negative) // 2)
            if best is None or badness < best[0]:
                best = (badness, p, q)
    assert best is not None
    return best[1], best[2]


@settings(max_examples=80)
@given(st.integers(0, 32), st.integers(2, 9), st.booleans(), st.integers(0, 3))
def test_what_is_trained_is_as_balanced_as_there_is(passes: int, n: int, all_positive: bool, missing: int) -> None:
    """Against a search over all splits, at the end of the rounds."""
    rewards = np.array([1.0] * passes + [0.0] * (32 - passes))
    rewards[:missing] = np.nan
    groups = groups_of([3], [rewards.tolist()])
    verdicts = started(n, exit="positive" if all_positive else "balanced").judge(groups, FakeStep([]))
    assert verdicts.trained is not None
    trained = verdicts.trained[0]
    assert not (trained & ~groups.valid[0]).any()
    positive, negative = int(np.nansum(rewards)), int((rewards == 0).sum())
    expected = by_hand(positive, negative, n, all_positive=all_positive)
    assert (int(rewards[trained].sum()), int((rewards[trained] == 0).sum())) == expected
    assert sum(expected) == n


def test_each_of_the_positives_is_trained_as_often() -> None:
    """2 of 5 positives, 4,000 prompts: each 1,600 times, sigma 31; one outside ±186 (6 sigma) about once in 1e8 runs."""
    method, counts = started(), Counter[int]()
    for start in range(0, 4000, 500):
        rows = list(range(start, start + 500))
        trained = method.judge(passing(rows, [5] * 500, 8), FakeStep([])).trained
        assert trained is not None
        for j in range(8):
            counts[j] += int(trained[:, j].sum())
    assert all(abs(counts[j] - 1600) < 186 for j in range(5))
    assert sum(counts[j] for j in range(5, 8)) == 8000


def test_what_is_trained_does_not_depend_on_who_else_is_reported() -> None:
    method, step = started(), FakeStep([])
    together = method.judge(passing([7, 8, 9], [3, 4, 5], 8), step).trained
    alone = method.judge(passing([8], [4], 8), step).trained
    assert together is not None
    assert alone is not None
    assert together[1].tolist() == alone[0].tolist()


def test_a_positive_is_a_verdict_or_a_reward_above_the_threshold() -> None:
    """Rewards of .7 are not above .7; the verifier overrules where it judged all."""
    rewards = [[0.7] * 4 + [0.71] * 2 + [0.0] * 2, [0.7] * 7 + [0.0]]
    counted = started(2).judge(groups_of([0, 1], rewards), FakeStep([]))
    assert counted.keep.tolist() == [True, False]
    judged = started(2).judge(groups_of([0, 1], rewards, correct=[[0] * 8, [1] + [0] * 7]), FakeStep([]))
    assert judged.keep.tolist() == [False, True]


def test_a_prompt_that_never_exits_is_trained_all_the_same_unless_gated() -> None:
    groups = passing([0], [0], 32)
    verdicts = started().judge(groups, FakeStep([]))
    assert verdicts.trained is not None
    assert (verdicts.keep.tolist(), int(verdicts.trained.sum())) == ([True], 4)
    assert started(gate="correct").judge(groups, FakeStep([])).keep.tolist() == [False]


def test_a_group_that_never_came_back_is_asked_for_again_and_then_dropped() -> None:
    nan = np.nan
    first = started().judge(groups_of([0], [[nan] * 8]), FakeStep([]))
    assert first.more is not None
    assert first.more.tolist() == [8]
    last = started().judge(groups_of([0], [[nan] * 32]), FakeStep([]))
    assert (last.keep.tolist(), last.reasons) == ([False], ("incomplete",))


def test_whole_runs_train_exactly_the_batch_from_at_most_four_rounds() -> None:
    selector = selector_of("reinforce-ada")
    lengths = set()
    for number in range(10):
        with selector.step(policy_version=number) as step:
            rounds = 0
            for tickets in step.requests({}):
                rounds += 1
                step.report([answered(ticket) for ticket in tickets])
            batch = step.training_batch
        assert 1 <= rounds <= 4
        assert batch.trained.sum(axis=1).tolist() == [4] * len(batch)
        assert (batch.trained <= batch.valid).all()
        lengths |= set(batch.asked.tolist())
    assert {8, 16, 32} <= lengths <= {8, 16, 24, 32}


def test_rounds_that_cannot_hold_a_group_are_refused() -> None:
    with pytest.raises(ConfigError, match="samples at most 16 rollouts a prompt, fewer than group_size = 32"):
        started(32, rounds=2)
    with pytest.raises(ConfigError, match=r"ReinforceAda\(exit=...\) must be one of 'balanced', 'positive', got 'ballanced'"):
        ReinforceAda(exit="ballanced")  # type: ignore[arg-type]
