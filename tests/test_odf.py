"""Online difficulty filtering: which counts survive the band, and that the batch is refilled for it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.errors import ConfigError
from edgewise.methods.odf import OnlineDifficultyFiltering, band_of
from edgewise.types import Setting
from tests.fakes import FakeStep, groups_of, passing
from tests.whole_runs import answered, selector_of


def started(group_size: int = 8, batch_size: int = 8, **parameters: Any) -> OnlineDifficultyFiltering:
    method = OnlineDifficultyFiltering(**parameters)
    method.start(Setting(pool_size=200, batch_size=batch_size, group_size=group_size))
    return method


@pytest.mark.parametrize(
    ("group_size", "fewest", "most"),
    [(2, 1, 1), (3, 1, 2), (4, 1, 3), (5, 1, 4), (6, 2, 4), (7, 2, 5), (8, 2, 6), (10, 2, 8), (16, 4, 12)],
)
def test_the_counts_that_survive_are_those_of_the_table(group_size: int, fewest: int, most: int) -> None:
    counts = range(group_size + 1)
    verdicts = started(group_size).judge(passing(list(counts), list(counts), group_size), FakeStep([]))
    assert np.flatnonzero(verdicts.keep).tolist() == list(range(fewest, most + 1))
    assert band_of(group_size, 0.2, 0.8) == (fewest, most)
    assert set(verdicts.reasons[:fewest]) == {"too_hard"}
    assert set(verdicts.reasons[most + 1 :]) == {"too_easy"}


@given(st.integers(2, 64), st.integers(0, 100), st.integers(0, 100))
def test_the_band_is_that_of_exact_fractions(group_size: int, one: int, other: int) -> None:
    low, high = sorted((Fraction(one, 100), Fraction(other, 100)))
    survive = [k for k in range(group_size + 1) if low <= Fraction(k, group_size) <= high]
    fewest, most = band_of(group_size, float(low), float(high))
    assert list(range(fewest, most + 1)) == survive
    if survive:
        method = started(group_size, low=float(low), high=float(high))
        counts = list(range(group_size + 1))
        kept = method.judge(passing(counts, counts, group_size), FakeStep([])).keep
        assert np.flatnonzero(kept).tolist() == survive


def test_the_share_is_of_rollouts_that_came_back() -> None:
    """1 of 2 scored is one half, though 6 are missing; 1 of 8 scored is not; one scored rollout says nothing."""
    nan = np.nan
    rewards = [[1, 0] + [nan] * 6, [1] + [0] * 7, [1] + [nan] * 7, [nan] * 8]
    verdicts = started().judge(groups_of([0, 1, 2, 3], rewards), FakeStep([]))
    assert verdicts.keep.tolist() == [True, False, False, False]
    assert verdicts.reasons == ("", "too_hard", "incomplete", "incomplete")


def test_passes_go_by_the_verifier_where_it_judged_all() -> None:
    groups = groups_of([0], [[0.1] * 4], correct=[[1, 0, 1, 0]])
    assert started(4).judge(groups, FakeStep([])).keep.tolist() == [True]


def test_groups_outside_the_band_count_for_the_top_up() -> None:
    """Of 8 groups 2 have a single pass: mixed, but dropped. ρ̂ = (2 + 1)/(8 + 2); 1.25 · 2 / 0.7 = 3.6 -> 4."""
    method, step = started(), FakeStep(range(100))
    rows = method.propose(8, step).rows.tolist()
    assert len(rows) == 8
    method.observe(passing(rows, [1, 1] + [4] * 6, 8), step)
    step.round = 1
    assert len(method.propose(2, step)) == 4


def test_without_a_gate_every_complete_group_is_kept() -> None:
    groups = groups_of([0, 1], [[0] * 8, [1] + [np.nan] * 7])
    assert started(gate="off").judge(groups, FakeStep([])).keep.tolist() == [True, False]


def test_whole_runs_train_on_the_band_only() -> None:
    selector = selector_of("odf")
    sizes = []
    for number in range(10):
        with selector.step(policy_version=number) as step:
            for tickets in step.requests({}):
                step.report([answered(ticket) for ticket in tickets])
            batch = step.training_batch
        rates = np.nansum(batch.rewards, axis=1) / batch.valid.sum(axis=1)
        assert ((rates >= 0.2) & (rates <= 0.8)).all()
        sizes.append(len(batch))
    assert sizes == [4] * 10


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"low": 0.9}, r"\(low=...\) must be a number of at least 0 and at most 0.8, got 0.9"),
        ({"high": 1.5}, r"\(high=...\) must be"),
        ({"gate": "reward"}, "must be 'correct' or 'off', got 'reward'"),
        ({"low": 0.45, "high": 0.48}, "lets no group of 8 rollouts survive"),
    ],
)
def test_a_band_that_cannot_work_is_refused(parameters: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        started(**parameters)
