"""DEPO online: explorability by hand, who is rolled out, that nobody is forgotten, and a whole run under the selector."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise import Outcome, PromptPool, Selector
from edgewise.errors import ConfigError, SignalError, StateMismatchError
from edgewise.methods import make
from edgewise.methods.depo import Depo, explorability
from edgewise.types import ROLLOUT_ENTROPY, Groups, Setting
from tests.fakes import FakeStep, groups_of

REWARDS = [1, 0, 0, 1, 0, 0, 0, 0]
ENTROPIES = [0.4, 0.5, 0.6, 0.3, 0.2, 2.0, 0.5, 0.7]


class Step(FakeStep):
    """A step whose epoch is set by hand."""

    def __init__(self, stream: Any = range(100), *, epoch: float = 0.0, **given: Any) -> None:
        super().__init__(stream, **given)
        self._epoch = epoch

    @property
    def epoch(self) -> float:
        return self._epoch


def started(batch_size: int = 6, pool_size: int = 100, group_size: int = 4, **parameters: Any) -> Depo:
    method = Depo(**parameters)
    method.start(Setting(pool_size=pool_size, batch_size=batch_size, group_size=group_size))
    return method


def seen(method: Depo, entropy_of_row: dict[int, float], *, number: int = 0, epoch: int = 0) -> None:
    """One half-passing group of two a row, so that E is that row's entropy (|Â| = 1)."""
    method._now = epoch
    rows = list(entropy_of_row)
    groups = groups_of(rows, [[1, 0]] * len(rows), entropy=[[e, e] for e in entropy_of_row.values()])
    method.observe(groups, Step(number=number, epoch=epoch))


def one(rewards: Any, entropies: Any, limit: float = math.inf) -> float:
    r, e = np.array([rewards], dtype=float), np.array([entropies], dtype=float)
    return float(explorability(r, np.isfinite(r), e, r > 0.5, limit=limit)[0])


# -- explorability -----------------------------------------------------------------------------------------------------


def test_golden_explorability_with_and_without_the_mask() -> None:
    assert one(REWARDS, ENTROPIES, 1.5 * 0.6) == pytest.approx(0.3319764048, abs=5e-11)
    assert one(REWARDS, ENTROPIES) == pytest.approx(0.4763139721, abs=5e-11)


def test_only_wrong_responses_are_masked() -> None:
    """Â = (√3, -1/√3 three times): a confused correct one counts, a confused wrong one does not, the limit itself does."""
    assert one([1, 0, 0, 0], [9.0, 1.0, 1.0, 1.0], 2.0) == pytest.approx((9 * math.sqrt(3) + 3 / math.sqrt(3)) / 4)
    assert one([1, 0, 0, 0], [1.0, 9.0, 1.0, 1.0], 2.0) == pytest.approx((math.sqrt(3) + 2 / math.sqrt(3)) / 4)
    assert one([1, 0, 0, 0], [1.0, 2.0, 1.0, 1.0], 2.0) == pytest.approx((math.sqrt(3) + 4 / math.sqrt(3)) / 4)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 1.0, math.nan]),
                          st.sampled_from([0.0, 0.2, 1.0, 3.0, math.nan, -1.0])),
                min_size=1, max_size=8), st.sampled_from([0.5, 1.5, math.inf, math.nan]))  # fmt: skip
def test_it_is_the_loop_over_scored_responses(pairs: list[tuple[float, float]], limit: float) -> None:
    scored = [r for r, _ in pairs if not math.isnan(r)]
    counted = [(r, e) for r, e in pairs if not math.isnan(r) and e >= 0]
    got = one([r for r, _ in pairs], [e for _, e in pairs], limit)
    if not counted:
        assert math.isnan(got)
        return
    if max(scored) == min(scored):
        return  # zero variance is told apart by the method, not here
    mean = math.fsum(scored) / len(scored)
    deviation = math.sqrt(math.fsum((r - mean) ** 2 for r in scored) / len(scored))
    parts = [0.0 if r <= 0.5 and e > limit else abs(r - mean) / deviation * e for r, e in counted]
    assert got == pytest.approx(math.fsum(parts) / len(counted), rel=1e-12)


@pytest.mark.parametrize("rewards", [[0.1, 0.1, 0.1], [1, 1, 1], [0, 0, 0]])
def test_zero_variance_is_exactly_zero_whatever_the_entropies(rewards: list[float]) -> None:
    """The standard deviation of three 0.1 is 1.4e-17 in floating point."""
    assert started().values_of(groups_of([0], [rewards], entropy=[[1.0, 5.0, 9.0]])).tolist() == [0.0]
    assert started().values_of(groups_of([0], [rewards])).tolist() == [0.0]


def test_what_is_not_known_is_not_zero() -> None:
    nan = math.nan
    groups = groups_of([0, 1, 2, 3], [[1, nan, nan], [1, 0, nan], [1, 0, 0], [nan, 1, 0]],
                       entropy=[[1, 1, 1], [nan, nan, 7], [nan, 0.5, nan], [7, 0.25, 0.75]])  # fmt: skip
    np.testing.assert_allclose(started().values_of(groups), [nan, nan, 0.5 / math.sqrt(2), 0.5])


def test_a_verdict_says_what_is_wrong_before_the_reward_does() -> None:
    method = started()
    method._level = 1.0
    shaped = groups_of([0], [[0.2, 0.1]], correct=[[True, False]], entropy=[[9.0, 9.0]])
    assert method.values_of(shaped).tolist() == pytest.approx([4.5])  # by reward both were wrong and masked


# -- the level ---------------------------------------------------------------------------------------------------------


def test_the_level_is_a_running_mean_over_steps_however_they_are_reported() -> None:
    """Step means 1 (of .5, .5, 2), then 4: nothing, then 1, then .9 + .4 = 1.3."""
    whole, parts = started(), started()
    whole.observe(groups_of([0, 1, 2], [[1, 0]] * 3, entropy=[[0.5, 0.5], [0.5, 0.5], [2, 2]]), Step(number=0))
    for row, entropy in enumerate((0.5, 0.5, 2.0)):
        parts.observe(groups_of([row], [[1, 0]], entropy=[[entropy] * 2]), Step(number=0))
    for method in (whole, parts):
        assert math.isnan(method._level)
        method.observe(groups_of([3], [[1, 0]], entropy=[[4.0, 4.0]]), Step(number=1))
        assert method._level == 1.0
        method.observe(groups_of([4], [[1, 0]], entropy=[[9.0, 9.0]]), Step(number=7))
        assert method._level == pytest.approx(1.3)
    np.testing.assert_array_equal(whole._explored, parts._explored)


def test_in_a_stream_the_level_moves_with_the_policy_version_and_not_with_each_call() -> None:
    method = started()
    for number, (version, entropy) in enumerate(((0, 0.5), (0, 1.5), (1, 4.0), (1, 4.0), (2, 9.0))):
        groups = groups_of([number], [[1, 0]], entropy=[[entropy, entropy]])
        method.observe(groups, Step(number=number, policy_version=version, streaming=True))
    assert method._level == pytest.approx(0.9 * 1.0 + 0.1 * 4.0)


def test_the_mask_uses_the_level_of_earlier_steps() -> None:
    method = started()
    method.observe(groups_of([0], [[1, 0]], entropy=[[1.0, 50.0]]), Step(number=0))
    assert method._explored[0, 0] == 25.5  # no level yet: nothing is masked
    method.observe(groups_of([1], [[1, 0]], entropy=[[1.0, 1.0]]), Step(number=1))  # level 25.5
    method.observe(groups_of([2], [[1, 0]], entropy=[[1.0, 40.0]]), Step(number=2))  # level .9·25.5 + .1 = 23.05, limit 34.6
    assert method._explored[2, 0] == 0.5


# -- the ring ----------------------------------------------------------------------------------------------------------


def test_the_score_is_the_mean_of_the_last_epochs_means() -> None:
    method = started(window=2, entropy_limit=1e9)
    rows = np.array([5])
    assert method._mean(rows).tolist() == [math.inf]
    seen(method, {5: 1.0}, number=0, epoch=0)
    seen(method, {5: 3.0}, number=1, epoch=0)
    assert method._mean(rows).tolist() == [2.0]
    seen(method, {5: 6.0}, number=2, epoch=1)
    assert method._mean(rows).tolist() == [4.0]  # (2 + 6) / 2: epochs weigh alike, not groups
    seen(method, {5: 0.0}, number=3, epoch=9)
    assert method._mean(rows).tolist() == [3.0]  # (6 + 0) / 2: epochs without a rollout do not count
    assert method._visits[5] == 4


def test_groups_without_entropies_count_as_visits_only() -> None:
    method, step = started(), Step()
    method.observe(groups_of([3, 4], [[1, 0], [1, 1]]), step)
    assert method._mean(np.array([3, 4])).tolist() == [math.inf, 0.0]
    assert method._visits[[3, 4]].tolist() == [1, 1]
    assert step.sums["explorability_missing"] == 1
    assert "not one of 4 responses came with its own mean token entropy" in str(step.problems[0])
    with pytest.raises(SignalError):
        started().observe(groups_of([3], [[1, 0]], entropy=[0.5]), Step(strict=True))  # one number for the group is not enough


# -- propose -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epoch", "candidates", "replayed"), [(0.0, 10, 1), (0.99, 10, 1), (1.0, 11, 2), (4.0, 15, 2),
                                                              (6.0, 20, 2), (99.0, 20, 2)])  # fmt: skip
def test_candidates_are_as_many_as_leave_a_batch(epoch: float, candidates: int, replayed: int) -> None:
    """B = 6 of 6/(.5+.1) = 10; 6/.55 -> 11; 6/.4 = 15; 6/.3 = 20. Replay: a tenth of them, rounded up."""
    step = Step(epoch=epoch)
    assert len(started().propose(6, step)) == 6
    assert step.draws == [candidates]
    assert step.sums["replayed"] == replayed


def test_the_most_explored_and_the_least_visited_are_rolled_out() -> None:
    method = started(batch_size=6, entropy_limit=1e9)
    for number in range(3):
        seen(method, {row: 1.0 + row for row in range(10)}, number=number)
    seen(method, {row: 1.0 + row for row in range(10) if row != 2}, number=3)  # row 2 was visited least
    assert method.propose(6, Step()).rows.tolist() == [2, 5, 6, 7, 8, 9]


def test_zero_variance_prompts_come_back_by_replay_only() -> None:
    method = started(entropy_limit=1e9)
    seen(method, {row: 1.0 for row in range(8)})
    method.observe(groups_of([8, 9], [[1, 1], [0, 0]], entropy=[[5, 5], [5, 5]]), Step())
    seen(method, {row: 1.0 for row in range(8)})
    rows = method.propose(6, Step()).rows.tolist()
    assert len({8, 9} & set(rows)) == 1


def test_unseen_prompts_are_explored_first_and_keep_the_stream_order() -> None:
    method = started(entropy_limit=1e9)
    seen(method, {row: 100.0 for row in range(0, 8, 2)})
    rows = method.propose(6, Step([9, 0, 7, 2, 5, 4, 3, 6, 1, 8])).rows.tolist()
    assert rows == [9, 7, 5, 3, 1, 8]


def test_prompts_never_visited_come_before_those_that_were_visited_without_an_entropy() -> None:
    for seed in range(5):
        method = started(batch_size=6)
        method.observe(groups_of(list(range(4)), [[1, 0]] * 4), Step())
        assert sorted(method.propose(6, Step(range(10), seed=seed)).rows.tolist()) == [4, 5, 6, 7, 8, 9]


def test_ties_are_drawn_and_not_taken_by_position() -> None:
    """6 of 10 unseen prompts: each 1,200 times in 2,000 steps, sigma 21.9; a cell is off by 6 sigma about once in 5e7 runs."""
    counts = np.zeros(10)
    method = started()
    for number in range(2000):
        counts[method.propose(6, Step(range(10), number=number)).rows] += 1
    assert np.abs(counts - 1200).max() < 132


@pytest.mark.parametrize("stream", [range(8), range(6), range(3), []])
def test_a_pool_that_runs_dry_gives_what_there_is(stream: Any) -> None:
    assert len(started().propose(6, Step(stream))) == min(6, len(stream))


@pytest.mark.parametrize(("candidates", "parameters"), [
    (10, {"explore_fall": 0.0}),  # the share stays .6
    (20, {"explore_share": 0.2}),  # the floor from the start: .3
])  # fmt: skip
@pytest.mark.parametrize("seed", range(4))
def test_every_prompt_is_visited_within_the_bound(candidates: int, parameters: dict[str, Any], seed: int) -> None:
    """N = 120, B = 6: at most N(1-s)^k unvisited after k passes, all visited one pass after at most B are left.

    That is within the ⌈N / (ρ·M)⌉ candidate batches of the specification. Explorability is adverse: only row 0 varies.
    """
    selector = Selector("depo", PromptPool.from_ids(range(120)), batch_size=6, group_size=2, seed=seed, parameters=parameters,
                        on_problem="strict")  # fmt: skip
    share, passes = 6 / candidates, 120 // candidates
    visited: set[int] = set()
    done_at = None
    for number in range(math.ceil(120 / (0.1 * candidates))):
        with selector.step(policy_version=number) as step:
            for tickets in step.requests():
                visited |= {t.row for t in tickets}
                step.report([Outcome(ticket=t, rewards=[float(t.row == 0), 0.0], rollout_entropy=[1.0, 1.0]) for t in tickets])
        if len(visited) == 120 and done_at is None:
            done_at = number + 1
        if (number + 1) % passes == 0:
            assert 120 - len(visited) <= 120 * (1 - share) ** ((number + 1) // passes)
    assert done_at is not None
    assert done_at <= passes * (1 + math.ceil(math.log(120 / 6) / -math.log(1 - share)))


# -- settings and state ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "message"), [
    ({"replay_share": 0.0}, "replay_share=...\\) must be a number above 0"),
    ({"explore_floor": 0.6}, "explore_floor=...\\) must be a number of at least 0 and at most 0.5"),
    ({"window": 0}, "window=...\\) must be a whole number of at least 1"),
    ({"entropy_limit": 0}, "entropy_limit=...\\) must be a number above 0"),
    ({"level_memory": 1.5}, "level_memory=...\\) must be a number of at least 0 and at most 1"),
])  # fmt: skip
def test_bad_hyper_parameters_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Depo(**wrong)


def test_placeholders_are_called_placeholders() -> None:
    from edgewise.catalogue import describe

    found = describe("depo")["parameters"]
    names = {name for name, facts in found.items() if "not the paper's" in facts["meaning"]}
    assert names == {"explore_share", "explore_fall", "explore_floor", "replay_share", "window"}
    assert make("depo").needs == {ROLLOUT_ENTROPY}


def test_a_state_of_another_window_is_refused_and_changes_nothing() -> None:
    method = started(window=2)
    seen(method, {5: 1.0})
    with pytest.raises(StateMismatchError, match=r"'explorability' must have shape \(100, 2\), got \(100, 3\)"):
        method.restore(started(window=3).state())
    assert method._visits[5] == 1


def test_proposing_is_a_read_of_what_is_kept_per_prompt() -> None:
    method = started()
    seen(method, {row: float(row) for row in range(50)})
    before = {name: array.copy() for name, array in method.state().prompts.items()}
    first = method.propose(6, Step(epoch=3.0)).rows.tolist()
    assert method.propose(6, Step(epoch=3.0)).rows.tolist() == first
    for name, array in method.state().prompts.items():
        np.testing.assert_array_equal(array, before[name])


def run_of(selector: Selector, steps: int) -> Iterator[tuple[list[int], Groups]]:
    """Steps with ragged, missing and zero-variance groups."""
    for _ in range(steps):
        number = selector.step_number
        draw = np.random.default_rng([3, number])
        with selector.step(policy_version=number) as step:
            for tickets in step.requests():
                outcomes = []
                for i, ticket in enumerate(tickets):
                    rewards = [float(draw.random() < (ticket.row % 5) / 4) for _ in range(ticket.rollouts - i % 2)]
                    rewards[0] = math.nan if i == 3 else rewards[0]
                    entropies = draw.exponential(size=len(rewards)).tolist()
                    entropies[-1] = math.nan if i == 4 else entropies[-1]
                    outcomes.append(Outcome(ticket=ticket, rewards=rewards, rollout_entropy=entropies))
                for outcome in outcomes:  # one by one
                    step.report([outcome])
            yield [t.row for t in tickets], step.training_batch


def selector_of() -> Selector:
    return Selector("depo", PromptPool.from_ids(range(40)), batch_size=6, group_size=4, seed=5, on_problem="strict")


def test_a_run_cut_in_the_middle_goes_on_with_the_same_prompts(tmp_path: Any) -> None:
    through = [rows for rows, _ in run_of(selector_of(), 20)]
    assert len(through[0]) == 6
    first = selector_of()
    begun = [rows for rows, _ in run_of(first, 11)]
    first.save(tmp_path / "state")
    second = selector_of()
    second.restore(tmp_path / "state")
    assert begun + [rows for rows, _ in run_of(second, 9)] == through


def test_a_run_prefers_what_explores() -> None:
    """Rows with pass rates 0 and 1 explore nothing: 60 steps roll out less than their fair 2 in 5 (one fixed run)."""
    selector = selector_of()
    rows = [row for batch, _ in run_of(selector, 60) for row in batch]
    flat = np.mean([row % 5 in (0, 4) for row in rows[120:]])
    assert flat < 0.36
    assert set(rows) == set(range(40))


def test_a_failed_step_is_forgotten() -> None:
    selector = selector_of()
    list(run_of(selector, 3))
    before = {name: array.copy() for name, array in (selector.method.state().prompts | selector.method.state().shared).items()}

    def fail() -> None:
        with selector.step(policy_version=3) as step:
            for tickets in step.requests():
                step.report([Outcome(ticket=t, rewards=[1, 0, 0, 0], rollout_entropy=[1.0] * 4) for t in tickets])
                raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    for name, array in (selector.method.state().prompts | selector.method.state().shared).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
