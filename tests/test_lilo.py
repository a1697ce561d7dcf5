"""LILO: four candidates a place, the most learnable stay, ties by chance."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.methods.lilo import Lilo
from edgewise.types import Setting
from tests.fakes import FakeStep, groups_of, passing
from tests.whole_runs import answered, selector_of


def asked(batch_size: int = 2, group_size: int = 8, *, step: FakeStep | None = None, **parameters: Any) -> Lilo:
    """A method that asked for its round."""
    method = Lilo(**parameters)
    method.start(Setting(pool_size=100, batch_size=batch_size, group_size=group_size))
    method.propose(batch_size, step or FakeStep(range(100)))
    return method


def test_it_asks_for_four_candidates_a_place_in_one_round() -> None:
    step = FakeStep(range(100))
    method = Lilo()
    method.start(Setting(pool_size=100, batch_size=3, group_size=8))
    requests = method.propose(3, step)
    assert (len(requests), set(requests.rollouts.tolist())) == (12, {8})
    step.round = 1
    assert len(method.propose(3, step)) == 0


@settings(max_examples=60)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=8), st.integers(1, 4))
def test_what_stays_has_the_greatest_learnability_of_all_choices(passes: list[int], places: int) -> None:
    """Against every subset of that size."""
    groups = passing(list(range(len(passes))), passes, 8)
    kept = np.flatnonzero(asked(places).judge(groups, FakeStep([])).keep).tolist()
    learnable = [k * (8 - k) for k in passes]
    size = min(places, len(passes))
    assert len(kept) == size
    assert sum(learnable[i] for i in kept) == max(sum(chosen) for chosen in combinations(learnable, size))


def test_ties_are_decided_by_chance_and_not_by_position() -> None:
    """k = 3 and k = 5 of 8 are equally learnable: four such groups for one place.

    2,000 steps, expectation 500 each, sigma 19.4: one outside ±120 (6 sigma) about once in 1e8 runs.
    """
    groups = passing([0, 1, 2, 3], [3, 5, 3, 5], 8)
    method = asked(1)
    wins = Counter(int(np.flatnonzero(method.judge(groups, FakeStep([], number=n)).keep)[0]) for n in range(2000))
    assert set(wins) == {0, 1, 2, 3}
    assert all(abs(count - 500) < 120 for count in wins.values())


def test_groups_with_fewer_than_two_rollouts_never_stay() -> None:
    nan = np.nan
    groups = groups_of([0, 1, 2], [[nan] * 4, [1, nan, nan, nan], [1, 1, 1, 1]])
    verdicts = asked(2, 4).judge(groups, FakeStep([]))
    assert verdicts.keep.tolist() == [False, False, True]
    assert verdicts.reasons == ("incomplete", "incomplete", "")


def test_what_is_ranked_too_low_is_dropped_as_less_learnable() -> None:
    verdicts = asked(1).judge(passing([0, 1], [1, 4], 8), FakeStep([]))
    assert verdicts.reasons == ("less_learnable", "")


def test_a_gate_drops_groups_that_teach_nothing_even_where_there_is_a_place() -> None:
    groups = passing([0, 1], [8, 4], 8)
    assert asked(2).judge(groups, FakeStep([])).keep.tolist() == [True, True]
    gated = asked(2, gate="correct").judge(groups, FakeStep([]))
    assert (gated.keep.tolist(), gated.reasons) == ([False, True], ("zero_variance", ""))


def test_a_stream_keeps_a_quarter_of_what_is_reported_at_once() -> None:
    step = FakeStep(range(100), streaming=True)
    method = asked(2, step=step)
    kept = method.judge(passing(list(range(8)), [0, 1, 4, 1, 8, 1, 3, 7], 8), step).keep
    assert np.flatnonzero(kept).tolist() == [2, 6]
    assert method.judge(passing([0, 1], [1, 4], 8), step).keep.tolist() == [False, True]


def test_whole_runs_pay_four_times_the_batch_and_train_on_the_best_of_each_round() -> None:
    selector = selector_of("lilo")
    for number in range(10):
        with selector.step(policy_version=number) as step:
            rounds = list(map(len, _driven(step)))
            batch = step.training_batch
            others = step.fillers
        assert rounds == [16]
        assert others is not None
        assert len(batch) + len(others) == 16

        def learnability(groups: Any) -> np.ndarray:
            rates = np.nansum(groups.rewards, axis=1) / np.maximum(groups.valid.sum(axis=1), 1)
            return np.where(groups.valid.sum(axis=1) >= 2, rates * (1 - rates), -1.0)

        assert len(batch) == 4
        assert learnability(batch).min() >= learnability(others).max()


def _driven(step: Any) -> Any:
    for tickets in step.requests({}):
        step.report([answered(ticket) for ticket in tickets])
        yield tickets
