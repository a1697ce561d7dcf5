"""LZE: the energy, what it ranks, what it remembers, and prompts that rest."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.errors import ConfigError
from edgewise.methods.lze import Lze, energy
from edgewise.methods.skipping import draw_wanted
from edgewise.types import Setting
from tests.fakes import FakeStep, groups_of, passing
from tests.whole_runs import answered, selector_of


def started(batch_size: int = 2, group_size: int = 4, pool_size: int = 100, **parameters: Any) -> Lze:
    method = Lze(**parameters)
    method.start(Setting(pool_size=pool_size, batch_size=batch_size, group_size=group_size))
    return method


def asked(batch_size: int = 2, group_size: int = 4, **parameters: Any) -> Lze:
    """A method that asked for its round."""
    method = started(batch_size, group_size, **parameters)
    method.propose(batch_size, FakeStep(range(100)))
    return method


def test_the_golden_value_of_the_energy() -> None:
    """D = 0.75, 4pq = 1, 1 + 0.3 · 0.5 = 1.15: 0.8625."""
    assert energy(np.array([0.5]), np.array([0.25]), np.array([0.25]))[0] == pytest.approx(0.8625, abs=1e-15)


@given(st.integers(0, 8), st.integers(0, 8), st.integers(0, 8))
def test_the_energy_is_that_of_exact_fractions(now: int, first: int, usual: int) -> None:
    p, p0, mean = Fraction(now, 8), Fraction(first, 8), Fraction(usual, 8)
    change = min(2 * abs(p - mean), Fraction(1))
    exact = max(1 - p0, Fraction(1, 20)) * 4 * p * (1 - p) * (1 + Fraction(3, 10) * change)
    found = energy(np.array([now / 8]), np.array([first / 8]), np.array([usual / 8]))[0]
    assert found == pytest.approx(float(exact), abs=1e-14)
    assert (found == 0.0) == (now in (0, 8))


def test_it_rolls_out_two_and_a_half_batches_and_trains_the_best_forty_percent() -> None:
    """All first visits, so E = (1 - p) · 4p(1-p): at p = 1/4, 1/2, 3/4 it is .5625, .5, .1875. Noise off."""
    method = started(batch_size=2, noise=0.0)
    assert len(method.propose(2, FakeStep(range(100)))) == 5
    verdicts = method.judge(passing([0, 1, 2, 3, 4], [3, 2, 1, 0, 4]), FakeStep([]))
    assert verdicts.keep.tolist() == [False, True, True, False, False]
    assert verdicts.reasons[0] == "less_energy"


def test_groups_without_variance_never_take_a_place() -> None:
    verdicts = asked(batch_size=2).judge(passing([0, 1, 2, 3, 4], [0, 4, 0, 4, 2]), FakeStep([]))
    assert np.flatnonzero(verdicts.keep).tolist() == [4]
    assert not asked().judge(passing([0, 1, 2, 3, 4], [0, 4, 0, 4, 0]), FakeStep([])).keep.any()


def test_a_round_cut_short_still_trains_its_share_of_it() -> None:
    """3 finished groups: floor(0.4 · 3) = 1; 2: floor(0.8) = 0, but at least one."""
    method = asked(batch_size=2)
    assert method.judge(passing([0, 1, 2], [1, 2, 3]), FakeStep([])).keep.sum() == 1
    assert method.judge(passing([0, 1], [1, 2]), FakeStep([])).keep.sum() == 1


def test_a_rising_pass_rate_counts_by_the_mean_before_the_visit() -> None:
    """Row 0 was 1/4 at first and stays there; row 1 was 1/4 and is now 1/2: D = .75 for both.

    E = .75 · .75 = .5625 and .75 · 1 · (1 + .3 · .5) = .8625; row 2, new at 1/2: .5.
    """
    method = asked(batch_size=2, keep_share=1.0, noise=0.0)
    method.observe(passing([0, 1], [1, 1]), FakeStep([]))
    worth = method.worth(passing([0, 1, 2], [1, 2, 2]), FakeStep([]))
    assert worth.tolist() == pytest.approx([0.5625, 0.8625, 0.5], abs=1e-6)
    method.observe(passing([1], [2]), FakeStep([]))
    assert method.worth(passing([1], [2]), FakeStep([]))[0] == pytest.approx(0.75 * (1 + 0.3 * 2 * (0.5 - 0.275)), abs=1e-6)


def test_noise_lets_the_lower_of_two_win_as_often_as_two_gumbels_do() -> None:
    """Two groups a spread apart and noise of one spread: the lower wins with P(logistic > 1) = 1/(1 + e) = .2689.

    4,000 steps, sigma 28: outside ±168 (6 sigma) about twice in 1e9 runs. At the default .05 it is e^-20.
    """
    groups = passing([0, 1], [1, 3])  # E = .5625 and .1875
    loud, usual = asked(batch_size=1, noise=1.0), asked(batch_size=1)
    upsets = sum(bool(loud.judge(groups, FakeStep([], number=n)).keep[1]) for n in range(4000))
    assert abs(upsets - 4000 / (1 + np.e)) < 168
    assert not any(usual.judge(groups, FakeStep([], number=n)).keep[1] for n in range(200))


def test_a_prompt_rests_after_two_solved_visits_and_comes_back_when_it_errs() -> None:
    method, rows = started(pool_size=3), np.arange(3)
    method.observe(passing([0, 1, 2], [4, 4, 3]), FakeStep([]))
    assert method.resting(rows).tolist() == [False, False, False]
    method.observe(passing([0, 1, 2], [4, 3, 4]), FakeStep([]))
    assert method.resting(rows).tolist() == [True, False, False]
    method.observe(passing([0], [4]), FakeStep([]))
    assert method.resting(rows).tolist() == [True, False, False]
    method.observe(passing([0], [3]), FakeStep([]))
    assert not method.resting(rows).any()


def test_a_missing_rollout_is_no_failure_and_an_empty_group_teaches_nothing() -> None:
    method, nan = started(pool_size=3), np.nan
    for _ in range(2):
        method.observe(groups_of([0, 1], [[1, nan, 1, nan], [nan] * 4]), FakeStep([]))
    assert method.resting(np.arange(3)).tolist() == [True, False, False]
    assert np.isnan(method.state().prompts["first"][1:]).all()


def test_resting_prompts_are_passed_over_but_for_a_tenth() -> None:
    """2,000 resting prompts and as many others; 1,000 wanted. Of the resting ones looked at a tenth is taken.

    The others make up 10 of 11 taken: expectation 90.9 of 1,000 resting ones, sigma 9.1; outside ±55 (6 sigma) 2 in 1e9 runs.
    """
    method = started(batch_size=400, pool_size=4000)
    resting = np.arange(0, 4000, 2)
    for _ in range(2):
        method.observe(passing(resting.tolist(), [4] * 2000), FakeStep([]))
    step = FakeStep(range(4000))
    rows = method.propose(400, step).rows
    assert len(np.unique(rows)) == 1000
    assert abs(int((rows % 2 == 0).sum()) - 1000 / 11) < 55
    assert step.sums["relaxed"] == 0


def test_a_pool_that_rests_is_asked_for_all_the_same() -> None:
    method = started(pool_size=8, retest=0.0)
    for _ in range(2):
        method.observe(passing(range(8), [4] * 8), FakeStep([]))
    step = FakeStep(range(8))
    assert len(method.propose(2, step)) == 5
    assert step.sums["relaxed"] == 5


def test_draw_wanted_skips_and_then_relaxes() -> None:
    step = FakeStep(range(10))
    assert draw_wanted(step, 3, lambda rows: rows % 3 == 0).tolist() == [0, 3, 6]
    assert step.sums["skipped"] == 4
    assert draw_wanted(step, 3, lambda rows: rows % 3 == 0).tolist() == [9, 7, 8]
    assert draw_wanted(step, 3, lambda rows: rows % 3 == 0).tolist() == []


def test_a_saved_method_goes_on_as_it_was() -> None:
    method = started(pool_size=60)
    for number in range(3):
        method.observe(passing(range(0, 60, 2), [4, 2] * 15), FakeStep([], number=number))
    other = started(pool_size=60)
    other.restore(method.state())
    assert other.propose(4, FakeStep(range(60))).rows.tolist() == method.propose(4, FakeStep(range(60))).rows.tolist()
    groups = passing([0, 1, 2, 3], [1, 2, 3, 2])
    np.testing.assert_array_equal(other.worth(groups, FakeStep([])), method.worth(groups, FakeStep([])))


def test_whole_runs_train_on_groups_that_vary() -> None:
    selector = selector_of("lze")
    trained = 0
    for number in range(10):
        with selector.step(policy_version=number) as step:
            for tickets in step.requests({}):
                assert len(tickets) == 10
                step.report([answered(ticket) for ticket in tickets])
            if step.missing < 4:
                trained += len(step.training_batch)
                assert (np.nanmax(step.training_batch.rewards, axis=1) > np.nanmin(step.training_batch.rewards, axis=1)).all()
    assert trained > 25


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Lze\(keep_share=...\) must be a number above 0 and at most 1, got 0"):
        Lze(keep_share=0)
    with pytest.raises(ConfigError, match=r"Lze\(prune_after=...\) must be a whole number of at least 1, got 0"):
        Lze(prune_after=0)
