"""Kinds of finished groups and the zero-variance gate: the table of the specification, and its traps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.kinds import EASY, HARD, MIXED, group_kinds, verdict_known, zero_variance
from edgewise.methods import make
from edgewise.types import Setting
from tests.fakes import FakeStep, groups_of

TABLE = [
    # rewards, correct, kept by the reward gate, kept by the correct gate, kind
    ([1, 1, 1, 1], [1, 1, 1, 1], False, False, EASY),
    ([0.1, 0.1, 0.1, 0.1], [0, 0, 0, 0], False, False, HARD),
    ([0, 0, 0, 0], [0, 0, 0, 0], False, False, HARD),
    ([0, 0.1, 0.1, 0], [0, 0, 0, 0], True, False, HARD),
    ([1, 0.1, 0, 0.1], [1, 0, 0, 0], True, True, MIXED),
    ([1] + [0] * 15, [1] + [0] * 15, True, True, MIXED),
    ([1] * 49 + [0], [1] * 49 + [0], True, True, MIXED),
]


@pytest.mark.parametrize(("rewards", "correct", "by_reward", "by_correct", "kind"), TABLE)
def test_kind_and_gate_follow_the_table(
    rewards: list[float], correct: list[int], by_reward: bool, by_correct: bool, kind: int
) -> None:
    groups = groups_of([0], [rewards], correct=[correct])
    assert group_kinds(groups.rewards, groups.valid, groups.correct).tolist() == [kind]
    for gate, keep in (("reward", by_reward), ("correct", by_correct)):
        method = make("greso", gate=gate)
        method.start(Setting(pool_size=4, batch_size=1, group_size=len(rewards)))
        verdicts = method.judge(groups, FakeStep([]))
        assert verdicts.keep.tolist() == [keep]
        assert verdicts.reasons == (("",) if keep else ("zero_variance",))


def kind_of(rewards: Any, correct: Any = None, **settings: float) -> int:
    groups = groups_of([0], [rewards], correct=None if correct is None else [correct])
    return int(group_kinds(groups.rewards, groups.valid, groups.correct, **settings)[0])


def test_without_a_verdict_the_reward_decides_against_correct_at() -> None:
    assert kind_of([0.5, 0.5]) == EASY
    assert kind_of([0.4, 0.4]) == HARD
    assert kind_of([0.4, 0.4], correct_at=0.3) == EASY
    assert kind_of([0.4, 0.5]) == MIXED
    assert kind_of([-1.0, -1.0]) == HARD


def test_rewards_within_the_tolerance_are_constant() -> None:
    assert kind_of([1.0, 1.0 + 1e-9]) == MIXED
    assert kind_of([1.0, 1.0 + 1e-9], tolerance=1e-8) == EASY


def test_a_verdict_that_is_not_known_for_every_rollout_is_not_used() -> None:
    """Two rollouts judged right and a third unjudged with reward 0: calling that easy would be a guess."""
    assert kind_of([1.0, 1.0, 0.0], [1, 1, np.nan]) == MIXED
    assert verdict_known(
        np.array([[True, True], [True, False], [False, False]]), np.array([[1, np.nan], [1, np.nan], [1, 1]])
    ).tolist() == [
        False,
        True,
        False,
    ]


def test_missing_rollouts_do_not_count() -> None:
    assert kind_of([1.0, np.nan, 1.0]) == EASY
    assert kind_of([0.0, np.nan, 0.0], [0, np.nan, 0]) == HARD
    assert kind_of([np.nan, np.nan]) == MIXED


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("size", [2, 3, 6, 7, 12, 13, 15, 18, 31])
def test_a_constant_group_has_zero_variance_whatever_its_standard_deviation(value: float, size: int) -> None:
    """np.std of three rewards 0.1 is 1.4e-17: a gate on std > 0 trains on such groups."""
    assert zero_variance(np.full((1, size), value), np.ones((1, size), dtype=np.bool_)).tolist() == [True]


def test_zero_variance_of_ragged_groups() -> None:
    nan = np.nan
    rewards = np.array([[1.0, nan, 1.0], [1.0, nan, 0.0], [nan, nan, nan], [nan, 0.2, nan]])
    assert zero_variance(rewards, np.isfinite(rewards)).tolist() == [True, False, False, True]
    assert zero_variance(np.empty((0, 4)), np.empty((0, 4), dtype=np.bool_)).tolist() == []
    assert zero_variance(np.empty((2, 0)), np.empty((2, 0), dtype=np.bool_)).tolist() == [False, False]


@given(st.lists(st.lists(st.sampled_from([0.0, 0.1, 1.0, np.nan]), min_size=3, max_size=3), min_size=1, max_size=20))
def test_kind_and_variance_agree_for_every_group_without_verdicts(rewards: list[list[float]]) -> None:
    """Reward only: a group is mixed exactly if its valid rewards vary; rollout order means nothing."""
    groups = groups_of(range(len(rewards)), rewards)
    kinds = group_kinds(groups.rewards, groups.valid, groups.correct)
    known = groups.valid.any(axis=1)
    np.testing.assert_array_equal((kinds != MIXED)[known], zero_variance(groups.rewards, groups.valid)[known])
    turned = group_kinds(groups.rewards[:, ::-1], groups.valid[:, ::-1], groups.correct)
    np.testing.assert_array_equal(kinds, turned)
