"""The streak belief, the entropy range and the share controller: golden values of the specification."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.beliefs.controller import ShareController, moved
from edgewise.beliefs.entropy_range import EntropyRange
from edgewise.beliefs.streak import StreakBelief, streak_score
from edgewise.errors import StateMismatchError
from edgewise.kinds import EASY, HARD, MIXED

NAN = float("nan")


def see(belief: StreakBelief, row: int, *kinds: int, entropy: float = NAN, version: int = 0) -> None:
    for kind in kinds:
        belief.observe(np.array([row]), np.array([kind], dtype=np.int8), np.array([entropy]), np.array([version]))


@pytest.mark.parametrize(
    ("history", "streak", "kind"),
    [
        ([], 0, MIXED),
        ([MIXED], 0, MIXED),
        ([EASY], 1, EASY),
        ([HARD, HARD], 2, HARD),
        ([EASY, EASY, MIXED], 0, MIXED),
        ([HARD, HARD, EASY], 1, EASY),
        ([EASY, MIXED, EASY], 1, EASY),
    ],
)
def test_streak_golden(history: list[int], streak: int, kind: int) -> None:
    belief = StreakBelief(3)
    see(belief, 1, *history)
    assert belief.streak.tolist() == [0, streak, 0]
    assert belief.kind.tolist() == [MIXED, kind, MIXED]
    assert belief.visits.tolist() == [0, len(history), 0]
    assert belief.never_visited == (3 if not history else 2)


def score(streaks: list[int], kind: int, p: float, floor: float = 0.01) -> list[float]:
    kinds = np.full(len(streaks), kind, dtype=np.int8)
    return streak_score(np.array(streaks), kinds, p if kind == EASY else 0.9, p if kind == HARD else 0.9, floor).tolist()


@pytest.mark.parametrize("kind", [EASY, HARD])
def test_streak_score_golden(kind: int) -> None:
    assert score(list(range(8)), kind, 0.5) == [1, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.01]


def test_streak_score_meets_the_floor_where_the_specification_says() -> None:
    low = score([0, 1, 2], EASY, 0.05)
    assert low[1] == pytest.approx(0.05)
    assert low[2] == 0.01
    high = score([89, 90], EASY, 0.95)
    assert high[0] > 0.01
    assert high[1] == 0.01


def test_a_belief_costs_at_most_twenty_bytes_a_prompt() -> None:
    assert sum(array.nbytes for array in StreakBelief(1000).state().values()) <= 20 * 1000


def measured(*entropies: float, tail: float = 0.0) -> StreakBelief:
    belief = StreakBelief(len(entropies), entropy_tail=tail)
    for row, entropy in enumerate(entropies):
        see(belief, row, EASY, entropy=entropy)
    return belief


def accept(belief: StreakBelief, row: int, weight: float, p: float = 0.5) -> float:
    return float(belief.acceptance(np.array([row]), p_easy=p, p_hard=p, floor=0.01, reward_weight=weight)[0])


def test_entropy_score_and_blend_golden() -> None:
    belief = measured(0.4, 0.6, 1.0)
    assert belief.entropy_score(np.array([1]))[0] == pytest.approx(0.333333, abs=1e-6)
    assert accept(belief, 1, 0.5) == pytest.approx(0.416667, abs=1e-6)
    assert accept(belief, 0, 0.0) == 0.01  # the lowest entropy is not lost
    assert accept(belief, 2, 0.0) == pytest.approx(1.0)
    assert accept(belief, 0, 1.0) == 0.5


def test_unseen_and_unmeasured_prompts_are_not_given_an_invented_entropy() -> None:
    belief = StreakBelief(4)
    see(belief, 0, EASY, entropy=0.4)
    see(belief, 1, EASY, entropy=0.9)
    see(belief, 2, EASY)
    assert accept(belief, 2, 0.25) == 0.5  # seen without H: s_rew
    assert accept(belief, 3, 0.25) == 1.0  # never seen
    see(belief, 0, EASY)  # no entropy this time: the last known one stays
    assert belief.entropy[0] == np.float32(0.4)


def test_a_flat_range_ranks_nobody() -> None:
    belief = measured(0.7, 0.7)
    assert belief.entropy_score(np.array([0, 1])).tolist() == [1.0, 1.0]
    assert np.isnan(StreakBelief(1).entropy_score(np.array([0]))).all()


def test_negative_and_infinite_entropies_are_not_measurements() -> None:
    belief = measured(-0.5, float("inf"))
    assert np.isnan(belief.entropy).all()


def test_a_row_that_comes_twice_counts_twice_in_order() -> None:
    belief = StreakBelief(3)
    rows, kinds = np.array([2, 0, 2, 2]), np.array([HARD, EASY, EASY, EASY], dtype=np.int8)
    belief.observe(rows, kinds, np.array([0.1, 0.2, 0.3, NAN]), np.array([5, 5, 6, 7]))
    assert belief.visits.tolist() == [1, 0, 3]
    assert belief.streak.tolist() == [1, 0, 2]
    assert belief.kind.tolist() == [EASY, MIXED, EASY]
    assert belief.version.tolist() == [5, -1, 7]
    assert belief.entropy[2] == np.float32(0.3)
    assert belief.never_visited == 1


def test_a_streak_never_overflows() -> None:
    belief = StreakBelief(1)
    belief.streak[0] = np.iinfo(np.uint16).max
    belief.kind[0] = EASY
    see(belief, 0, EASY)
    assert belief.streak[0] == np.iinfo(np.uint16).max


def test_restore_gives_the_same_belief_and_refuses_another_pool() -> None:
    belief = measured(0.4, 0.6, 1.0)
    copy = StreakBelief(3)
    copy.restore({name: array.copy() for name, array in belief.state().items()})
    assert copy.never_visited == 0
    assert copy.entropy_score(np.array([1])) == belief.entropy_score(np.array([1]))
    with pytest.raises(StateMismatchError, match=r"StreakBelief.restore: 'visits' must have shape \(2,\), got \(3,\)"):
        StreakBelief(2).restore(belief.state())
    with pytest.raises(StateMismatchError, match="'visits' must have shape .*, got nothing"):
        StreakBelief(2).restore({})


@given(st.lists(st.lists(st.tuples(st.integers(0, 7), st.floats(0.0, 12.0, width=32)), min_size=1, max_size=6), max_size=12))
def test_the_range_kept_batch_by_batch_is_that_of_the_array(batches: list[list[tuple[int, float]]]) -> None:
    """Extremes exactly; quantiles to a bin, against the sorted array."""
    entropies = np.full(8, np.nan, dtype=np.float32)
    extremes, tails = EntropyRange(entropies), EntropyRange(entropies, 0.2)
    for batch in batches:
        latest = dict(batch)
        rows, new = np.array(list(latest)), np.array(list(latest.values()), dtype=np.float32)
        old = entropies[rows].copy()
        entropies[rows] = new
        for kept in (extremes, tails):
            kept.replaced(old, new)
        known = np.sort(entropies[np.isfinite(entropies)].astype(np.float64))
        assert extremes.bounds() == (known[0], known[-1])
        bounds = tails.bounds()
        assert bounds is not None
        low, high = bounds
        assert low == pytest.approx(known[int(0.2 * (len(known) - 1))], abs=1 / 256)
        assert high == pytest.approx(known[int(0.8 * (len(known) - 1))], abs=1 / 256)


def test_an_unmeasured_pool_has_no_range() -> None:
    nothing = np.full(3, np.nan, dtype=np.float32)
    assert EntropyRange(nothing).bounds() is None
    assert EntropyRange(nothing, 0.05).bounds() is None


# -- the controller ----------------------------------------------------------------------------------------------------

EASY_TARGET, HARD_TARGET = 0.25 / 3, 0.25 * 2 / 3


@pytest.mark.parametrize(("share", "p"), [(0.10, 0.49), (0.05, 0.51), (2 / 24, 0.50)])
def test_controller_golden(share: float, p: float) -> None:
    assert moved(0.5, EASY_TARGET, share, by=0.01, low=0.05, high=0.95) == pytest.approx(p, abs=1e-12)


def test_targets_are_met_exactly_in_floating_point() -> None:
    assert EASY_TARGET == 2 / 24
    assert HARD_TARGET == 4 / 24


def test_forty_five_steps_down_reach_the_lower_end_and_stay() -> None:
    p, path = 0.5, []
    for _ in range(50):
        p = moved(p, EASY_TARGET, 0.10, by=0.01, low=0.05, high=0.95)
        path.append(p)
    assert path[43] == pytest.approx(0.06)
    assert path[44] == pytest.approx(0.05)
    assert path[45:] == [0.05] * 5


def fold(controller: ShareController, version: int, arm_at: float = 0.5) -> None:
    controller.fold(version, target_easy=EASY_TARGET, target_hard=HARD_TARGET, arm_at=arm_at, by=0.01, low=0.05, high=0.95)


def tallied(seen: list[bool], kinds: list[int]) -> ShareController:
    controller = ShareController(0.5, 0.5)
    fold(controller, 0)
    controller.offer(np.array(seen))
    controller.learn(np.array(kinds, dtype=np.int8))
    return controller


def test_the_tally_is_folded_once_when_a_new_policy_version_asks() -> None:
    controller = tallied([True, False], [EASY, MIXED, HARD, HARD])
    fold(controller, 0)
    assert (controller.p_easy, controller.p_hard) == (0.5, 0.5)
    fold(controller, 1)
    fold(controller, 1)
    assert (controller.p_easy, controller.p_hard) == (0.49, 0.49)
    assert controller.shares is None
    assert controller.seen_share is None
    fold(controller, 2)
    assert (controller.p_easy, controller.p_hard) == (0.49, 0.49)


def test_the_controller_rests_until_enough_was_seen() -> None:
    controller = tallied([True, False, False], [EASY, EASY])
    fold(controller, 1)
    assert controller.p_easy == 0.5
    assert controller.shares is None  # counted anew all the same


def test_without_a_finished_group_the_tallies_wait() -> None:
    controller = tallied([True, True], [])
    fold(controller, 1)
    assert controller.seen_share == 1.0
    controller.learn(np.array([EASY], dtype=np.int8))
    fold(controller, 2)
    assert controller.p_easy == 0.49


def test_controller_state_is_exact_and_a_wrong_one_is_refused() -> None:
    controller = tallied([True, False], [EASY, MIXED, HARD, HARD])
    copy = ShareController(0.1, 0.1)
    copy.restore(controller.state())
    fold(copy, 1)
    fold(controller, 1)
    np.testing.assert_equal(copy.state(), controller.state())
    with pytest.raises(StateMismatchError, match=r"ShareController.restore: needs p \(2,\) and tally \(6,\), got \['p'\]"):
        copy.restore({"p": np.zeros(2)})
