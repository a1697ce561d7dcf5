"""SEC and the bandit it shares with DUMP: advantages as GRPO has them, arms drawn by value, prompts in turn."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.beliefs.arms import STRAY, Arms, absolute_advantages, boltzmann
from edgewise.errors import ConfigError, SignalError, StateMismatchError
from edgewise.methods.sec import Sec
from edgewise.testing.drive import Size, selector_of, steps, stream
from edgewise.testing.world import World
from edgewise.types import CATEGORY, Setting
from tests.fakes import FakeStep, groups_of, passing

SIXES = np.arange(18) % 3  # three categories of six prompts


def started(pool_size: int = 18, batch_size: int = 4, **parameters: Any) -> Sec:
    method = Sec(**parameters)
    method.start(Setting(pool_size=pool_size, batch_size=batch_size, group_size=4))
    return method


def of(categories: Any = SIXES, **given: Any) -> FakeStep:
    values = np.asarray(categories, dtype=np.float64)
    return FakeStep(range(len(values)), signals={CATEGORY: lambda rows: values[rows]}, **given)


# -- advantages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_mean_advantage_of_a_binary_group_is_that_of_a_coin(k: int) -> None:
    """k of n = 4: p = k/4, population deviation √(pq), sample deviation √(pq·4/3): mean |A| = 2pq / √(4pq/3) = √(3pq)."""
    p = k / 4
    got = absolute_advantages(passing([0], [k]))
    assert got.mean() == pytest.approx(math.sqrt(3 * p * (1 - p)), rel=1e-12)


@given(st.lists(st.lists(st.one_of(st.none(), st.floats(-5, 5, width=32)), min_size=5, max_size=5), min_size=1, max_size=6))
@settings(max_examples=60)
def test_advantages_agree_with_the_plain_formula_over_the_rollouts_that_have_a_reward(
    rewards: list[list[float | None]],
) -> None:
    got = absolute_advantages(groups_of(list(range(len(rewards))), rewards))
    for row, values in zip(got, rewards, strict=True):
        known = [v for v in values if v is not None]
        assert np.isnan(row).tolist() == [v is None or len(known) < 2 for v in values]
        if len(known) >= 2:
            deviation = float(np.std(known, ddof=1))
            plain = [0.0 if max(known) == min(known) else abs(v - np.mean(known)) / deviation for v in known]
            assert row[~np.isnan(row)] == pytest.approx(plain, rel=1e-6, abs=1e-9)


def test_a_constant_group_has_no_advantage_at_any_size() -> None:
    """Three rewards 0.1 have a computed deviation of 1.7e-17, which would make advantages of order 1."""
    assert absolute_advantages(groups_of([0, 1], [[0.1, 0.1, 0.1], [0.3, 0.3, None]])).tolist()[0] == [0.0, 0.0, 0.0]


# -- arms --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), st.floats(1e-3, 1e3))
def test_chances_are_a_distribution_that_follows_the_values(values: list[float], temperature: float) -> None:
    chances = boltzmann(np.array(values), temperature)
    assert chances.sum() == pytest.approx(1.0)
    assert (np.diff(chances[np.argsort(values)]) >= 0.0).all()


def test_arms_are_drawn_in_proportion_and_prompts_of_an_arm_in_turn() -> None:
    """Values 0, ln 3 at τ = 1: chances 1/4, 3/4. 4,000 draws: 3,000 expected, sigma 27.4; ±165 is 6 sigma, twice in 1e9."""
    arms, cursors = Arms(np.arange(40) % 2), np.zeros(2, dtype=np.int64)
    drawn = Counter()
    seen: list[int] = []
    for number in range(4000):
        rows = arms.draw(np.array([0.0, math.log(3)]), 1.0, 1, cursors, 7, FakeStep(range(40), number=number))
        drawn[int(rows[0]) % 2] += 1
        seen += rows.tolist()
    assert abs(drawn[1] - 3000) < 165
    evens = [row for row in seen if row % 2 == 0]
    passes = [evens[i : i + 20] for i in range(0, len(evens) - 19, 20)]
    assert all(sorted(one) == list(range(0, 40, 2)) for one in passes)  # everyone once before anyone twice
    assert passes[0] != passes[1]  # and each pass in an order of its own


def test_an_arm_that_runs_dry_leaves_the_draw_to_the_others() -> None:
    """A value that beats the other by 1,000 takes its whole arm first; then the chances of the rest do not vanish."""
    arms, cursors = Arms(np.array([0, 0, 1, 1, 1])), np.zeros(2, dtype=np.int64)
    rows = arms.draw(np.array([1000.0, 0.0]), 1.0, 4, cursors, 0, FakeStep(range(5)))
    assert sorted(rows[:2].tolist()) == [0, 1]
    assert set(rows[2:].tolist()) < {2, 3, 4}
    everything = arms.draw(np.array([1000.0, 0.0]), 1.0, 9, cursors, 0, FakeStep(range(5), number=1))
    assert sorted(everything.tolist()) == [0, 1, 2, 3, 4]


def test_drawing_again_is_the_rule_of_one_slot_at_a_time() -> None:
    """Two alike arms, one of a single prompt; two slots. One at a time it comes with chance 1/2 + 1/2 · 1/2 = 3/4.

    4,000 draws: 3,000 expected, sigma 27.4; ±165 is 6 sigma, about twice in 1e9.
    """
    arms, cursors = Arms(np.array([0, 1, 1, 1])), np.zeros(2, dtype=np.int64)
    with_it = sum(0 in arms.draw(np.zeros(2), 1.0, 2, cursors, 0, FakeStep(range(4), number=n)).tolist() for n in range(4000))
    assert abs(with_it - 3000) < 165


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=200),
    st.integers(1, 60),
    st.sets(st.integers(0, 199)),
    st.lists(st.integers(0, 500), min_size=4, max_size=4),
)
@settings(max_examples=80)
def test_a_draw_is_full_or_everything_and_holds_no_blocked_row(
    labels: list[int], n: int, shut: set[int], positions: list[int]
) -> None:
    arms = Arms(np.array(labels))
    shut = {row for row in shut if row < len(labels)}
    step = FakeStep(range(len(labels)), shut=sorted(shut))
    cursors = np.array(positions[: len(arms)], dtype=np.int64)
    rows = arms.draw(np.zeros(len(arms)), 1.0, n, cursors, 3, step).tolist()
    assert len(rows) == len(set(rows)) == min(n, len(labels) - len(shut))
    assert not shut & set(rows)


# -- SEC ---------------------------------------------------------------------------------------------------------------


def test_golden_update_of_q() -> None:
    """Two groups of category 0 (2 of 4: |A| = √(3/4); 4 of 4: 0), one of category 1 (1 of 4: √(9/16)); lr 1/2; then again."""
    method, step = started(), of()
    method.propose(4, step)
    method.observe(passing([0, 3, 1], [2, 4, 1]), step)
    assert method.values().tolist() == [0.0, 0.0, 0.0]
    method.propose(4, of(number=1, policy_version=1))
    first = np.array([math.sqrt(3 / 4) / 2 / 2, 0.75 / 2, 0.0])
    assert method.values() == pytest.approx(first)
    method.observe(passing([0], [2]), step)
    method.propose(4, of(number=2, policy_version=2))
    assert method.values() == pytest.approx([first[0] + 0.5 * (math.sqrt(3 / 4) - first[0]), first[1], 0.0])


def test_the_value_of_a_category_that_is_not_drawn_does_not_decay() -> None:
    """The authors' code gives it r = 0: after two batches without it, 0.375 would be 0.09375."""
    method, step = started(), of()
    method.propose(4, step)
    method.observe(passing([1], [1]), step)
    for version in (1, 2, 3):
        method.propose(4, of(number=version, policy_version=version))
        method.observe(passing([0], [4]), of(number=version, policy_version=version))
    assert method.values()[1] == pytest.approx(0.375)


def test_reports_of_one_policy_version_are_one_batch_however_they_come() -> None:
    whole, parts = started(), started()
    for method in (whole, parts):
        method.propose(4, of())
    whole.observe(passing([0, 3, 1], [2, 4, 1]), of())
    for row, k in ((0, 2), (3, 4), (1, 1)):
        parts.observe(passing([row], [k]), of())
        parts.propose(1, of(number=1))
    for method in (whole, parts):
        method.propose(4, of(number=2, policy_version=1))
    assert whole.values() == pytest.approx(parts.values())


def test_a_small_temperature_draws_the_category_that_teaches() -> None:
    method = started(temperature=0.01)
    method.propose(4, of())
    method.observe(passing([0, 1, 2], [4, 2, 0]), of())
    rows = method.propose(4, of(number=1, policy_version=1)).rows
    assert set(SIXES[rows].tolist()) == {1}


def test_prompts_without_a_usable_category_form_an_arm_of_their_own_and_are_reported() -> None:
    step = of([0, np.nan, -1, 0.5, 1, np.inf, 1, 0])
    method = started(pool_size=8)
    method.propose(4, step)
    assert step.levels["arms"] == 3
    assert method.state().shared["labels"].tolist() == [STRAY, 0, 1]
    assert [str(p) for p in step.problems] == [
        "signal('category') of prompt row 1 must be a whole number of at least 0, got nan (4 of 8 prompts). "
        "These prompts form an arm of their own."
    ]
    method.propose(4, step)
    assert step.asked == [(CATEGORY, list(range(8)))]
    with pytest.raises(SignalError):
        started(pool_size=8).propose(4, of([0, np.nan, 1, 1, 1, 1, 1, 1], strict=True))


def test_a_category_for_every_prompt_is_refused() -> None:
    with pytest.raises(SignalError, match="at most 4096 categories apart, got 5000"):
        started(pool_size=5000).propose(4, of(np.arange(5000)))


def test_reports_before_the_first_request_after_a_resume_are_not_lost() -> None:
    method = started()
    method.propose(4, of())
    resumed = started()
    resumed.restore(method.state())
    for one in (method, resumed):
        one.observe(passing([0, 1], [2, 1]), of())
        assert sorted(one.propose(4, of(number=1, policy_version=1)).rows.tolist())
    assert method.values().tolist() == resumed.values().tolist() != [0.0] * 3


def test_other_categories_after_a_resume_start_anew_and_say_so() -> None:
    method = started()
    method.propose(4, of())
    other = started()
    other.restore(method.state())
    step = of(np.arange(18) % 5)
    assert len(other.propose(4, step)) == 4
    assert "the saved state knows 3 categories and the host serves 5 others" in str(step.problems[0])
    strict = started()
    strict.restore(method.state())
    with pytest.raises(StateMismatchError):
        strict.propose(4, of(np.arange(18) % 5, strict=True))


@pytest.mark.parametrize("run", [steps, stream])
def test_a_selector_runs_it_over_missing_rewards_and_goes_on_alike_after_a_restore(run: Any, tmp_path: Any) -> None:
    world = World(60, missing=0.2)
    size = Size(batch_size=6, group_size=2)
    one, other = (selector_of(Sec(), world, size) for _ in range(2))
    run(one, world, 8)
    one.save(tmp_path / "state")
    other.restore(tmp_path / "state")
    assert run(one, world, 8) == run(other, world, 8)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temperature": 0.0}, r"Sec\(temperature=...\) must be a number above 0"),
        ({"learning_rate": 1.5}, r"Sec\(learning_rate=...\) must be a number above 0 and at most 1"),
    ],
)
def test_what_cannot_work_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sec(**parameters)
