"""PREPO: the window over perplexities, the weights of mean 1, and a whole run under the selector."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise import Outcome, PromptPool, Selector
from edgewise.choosers.window import window, window_start
from edgewise.errors import ConfigError, SignalError
from edgewise.methods import make
from edgewise.methods.prepo import Prepo, relative_entropies
from edgewise.types import PROMPT_PERPLEXITY, ROLLOUT_ENTROPY, Groups, Setting
from tests.fakes import FakeStep, groups_of


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def started(batch_size: int = 4, pool_size: int = 100, group_size: int = 4, **parameters: Any) -> Prepo:
    method = Prepo(**{"total_steps": 10, **parameters})
    method.start(Setting(pool_size=pool_size, batch_size=batch_size, group_size=group_size))
    return method


def serving(stream: Any = range(100), number: int = 0, **given: Any) -> FakeStep:
    """Perplexity of row r: 1 + r."""
    return FakeStep(stream, number=number, signals={PROMPT_PERPLEXITY: lambda rows: 1.0 + rows}, **given)


# -- the window --------------------------------------------------------------------------------------------------------


def test_golden_window_of_the_specification() -> None:
    assert [window_start(rho, 1280, 256) for rho in (0, 0.25, 0.5, 1)] == [0, 256, 512, 1024]
    values = rng().permutation(1280).astype(float)
    for rho, start in ((0, 0), (0.25, 256), (0.5, 512), (1, 1024)):
        assert values[window(values, 256, rho, rng())].tolist() == list(range(start, start + 256))


def test_the_start_of_the_window_is_the_exact_floor() -> None:
    """Against whole-number arithmetic, for every step of runs whose ρ is no binary fraction."""
    for steps, candidates in product((3, 7, 10, 100, 300), (0, 1, 5, 101, 1281)):
        for number in range(steps + 1):
            exact = math.floor(Fraction(number, steps) * max(0, candidates - 1))
            assert window_start(number / steps, candidates, 1) == exact


@settings(max_examples=80)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 5.0, math.nan, math.inf, -math.inf]), max_size=12), st.integers(0, 14),
       st.floats(0, 1))  # fmt: skip
def test_the_window_is_full_and_values_without_a_rank_only_fill_it(values: list[float], size: int, progress: float) -> None:
    array = np.array(values, dtype=float)
    before = array.copy()
    at = window(array, size, progress, rng())
    np.testing.assert_array_equal(array, before)
    finite = sorted(v for v in values if math.isfinite(v))
    assert len(at) == len(set(at.tolist())) == min(size, len(values))
    start = max(0, math.floor(progress * (len(finite) - size) + 1e-9))
    inside = finite[start : start + size]
    assert array[at].tolist()[: len(inside)] == inside
    assert not np.isfinite(array[at][len(inside) :]).any()


def test_ties_are_drawn_and_not_taken_by_position() -> None:
    """4 of 8 equal values: each position 1,000 times in 2,000, sigma 22.4; a cell is off by 6 sigma about once in 6e7 runs."""
    seen = Counter(int(i) for seed in range(2000) for i in window(np.ones(8), 4, 0.0, rng(seed)))
    assert all(abs(seen[i] - 1000) < 135 for i in range(8))


# -- propose -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "rows"), [(0, [0, 1, 2, 3]), (5, [8, 9, 10, 11]), (10, [16, 17, 18, 19]),
                                              (25, [16, 17, 18, 19])])  # fmt: skip
def test_five_candidates_a_group_and_the_window_at_the_runs_progress(number: int, rows: list[int]) -> None:
    step = serving(number=number)
    assert started().propose(4, step).rows.tolist() == rows
    assert step.draws == [20]
    assert step.levels["progress"] == min(1.0, number / 10)


def test_requests_keep_the_order_of_the_stream() -> None:
    stream = [7, 3, 19, 0, 1, 18, 2, 5, 4, 6, *range(8, 18)]
    assert started().propose(4, serving(stream)).rows.tolist() == [3, 0, 1, 2]


def test_a_second_round_draws_anew_at_the_same_progress() -> None:
    method, step = started(max_rounds=3), serving(number=5)
    method.propose(4, step)
    step.round = 1
    assert method.propose(2, step).rows.tolist() == [24, 25]  # candidates 20..29, l(0.5) = 4
    assert step.draws == [20, 10]
    assert len(started().propose(4, serving())) == 4
    single = started()
    late = serving()
    late.round = 1
    assert len(single.propose(2, late)) == 0  # as the paper: one round


def test_a_pool_that_runs_dry_gives_what_there_is() -> None:
    assert started().propose(4, serving(range(6), number=5)).rows.tolist() == [1, 2, 3, 4]
    assert started().propose(4, serving(range(3), number=5)).rows.tolist() == [0, 1, 2]
    assert len(started().propose(4, serving([]))) == 0


def test_prompts_without_a_perplexity_are_never_the_hardest() -> None:
    def serve(rows: np.ndarray) -> np.ndarray:
        return np.where(rows % 2 == 0, [math.nan, math.inf] * (len(rows) // 2), 1.0 + rows)

    step = FakeStep(range(100), number=10, signals={PROMPT_PERPLEXITY: serve})
    assert started().propose(4, step).rows.tolist() == [13, 15, 17, 19]
    assert step.sums["perplexity_missing"] == 10
    assert "row 0 must be finite, got nan (10 of 20 prompts). They are taken last" in str(step.problems[0])
    nothing = FakeStep(range(100), signals={PROMPT_PERPLEXITY: lambda rows: np.full(len(rows), math.nan)})
    assert len(started().propose(4, nothing)) == 4
    with pytest.raises(SignalError):
        started().propose(4, FakeStep(range(100), number=10, signals={PROMPT_PERPLEXITY: serve}, strict=True))


def test_the_switches_say_what_is_needed() -> None:
    assert make("prepo").needs == {PROMPT_PERPLEXITY, ROLLOUT_ENTROPY}
    assert make("prepo", schedule=False).needs == {ROLLOUT_ENTROPY}
    assert make("prepo", entropy_weight=False).needs == {PROMPT_PERPLEXITY}
    assert make("prepo").scope == "batch"
    step = FakeStep(range(100))
    assert started(schedule=False, total_steps=None).propose(4, step).rows.tolist() == [0, 1, 2, 3]
    assert (step.draws, step.asked) == ([4], [])


def test_a_run_of_unknown_length_is_refused_at_start() -> None:
    with pytest.raises(ConfigError, match=r"Prepo\(total_steps=...\) is needed"):
        started(total_steps=None)
    method = Prepo()
    method.start(Setting(pool_size=100, batch_size=4, group_size=4, total_steps=20))
    assert method.progress(serving(number=5)) == 0.25
    method = Prepo(total_steps=10)  # the user's word stands before the host's
    method.start(Setting(pool_size=100, batch_size=4, group_size=4, total_steps=20))
    assert method.progress(serving(number=5)) == 0.5


@pytest.mark.parametrize(("wrong", "message"), [
    ({"spread": 0.5}, "spread=...\\) must be a number of at least 1"),
    ({"total_steps": 0}, "total_steps=...\\) must be a whole number of at least 1"),
    ({"weight_cap": 0.9}, "weight_cap=...\\) must be a number of at least 1"),
    ({"schedule": 1}, "schedule=...\\) must be True or False"),
])  # fmt: skip
def test_bad_hyper_parameters_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Prepo(**wrong)


# -- weights -----------------------------------------------------------------------------------------------------------


def test_golden_weights() -> None:
    assert relative_entropies(np.array([1.0, 1.0, 2.0])).tolist() == [0.75, 0.75, 1.5]
    assert relative_entropies(np.zeros(3)).tolist() == [1.0, 1.0, 1.0]
    assert relative_entropies(np.empty(0)).tolist() == []
    assert relative_entropies(np.array([1e308, 1e308])).tolist() == [1.0, 1.0]


@settings(max_examples=150)
@given(st.lists(st.floats(0, 1e3).map(lambda x: x if x > 1e-6 else 0.0), min_size=1, max_size=20), st.floats(1.0, 6.0))
def test_capped_weights_keep_their_mean_their_order_and_their_ratios(entropies: list[float], cap: float) -> None:
    h = np.array(entropies)
    free, capped = relative_entropies(h), relative_entropies(h, cap)
    assert free.mean() == pytest.approx(1.0, rel=1e-12)
    assert (capped >= 0).all()
    assert capped.max() <= max(cap, 1.0) + 1e-9
    if h.max() == 0 or (h > 0).sum() * cap >= len(h) * (1 + 1e-9):
        assert capped.mean() == pytest.approx(1.0, rel=1e-9)
    else:  # even with every response of some entropy at the cap
        np.testing.assert_allclose(capped, np.where(h > 0, cap, 0.0), rtol=1e-8)
    assert (np.diff(capped[np.argsort(h, kind="stable")]) >= -1e-9).all()
    below = (capped < cap * (1 - 1e-9)) & (h > 0)
    if below.any():
        ratios = capped[below] / free[below]
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-6)
        assert ratios[0] >= 1 - 1e-9


def test_the_capped_weights_are_those_of_a_bisection() -> None:
    """The factor c with mean(min(c·h, cap)) = 1, found a second way."""
    for seed in range(20):
        h = rng(seed).exponential(size=9) ** 3
        low, high = 0.0, 1e9
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if np.minimum(middle * h, 1.7).mean() < 1 else (low, middle)
        np.testing.assert_allclose(relative_entropies(h, 1.7), np.minimum(low * h, 1.7), rtol=1e-9)


def judged(groups: Groups, **parameters: Any) -> tuple[Any, FakeStep]:
    step = serving()
    return started(**parameters).judge(groups, step), step


def test_weights_are_relative_to_the_mean_over_the_batch_and_not_over_the_group() -> None:
    groups = groups_of([0, 1], [[1, 0], [1, 1]], entropy=[[1.0, 1.0], [2.0, 4.0]])
    verdicts, _ = judged(groups)
    assert verdicts.keep.tolist() == [True, True]  # the second has no variance, and is kept
    assert verdicts.weights.tolist() == [[0.5, 0.5], [1.0, 2.0]]


def test_missing_rollouts_and_entropies_weigh_one_and_the_mean_is_one_exactly() -> None:
    nan = math.nan
    groups = groups_of(
        [0, 1, 2],
        [[1, 0, nan], [1, nan, nan], [0, 1, 1]],
        entropy=[[1.0, 3.0, 50.0], [9.0, 9.0, 9.0], [nan, 2.0, -1.0]],
    )
    verdicts, step = judged(groups)
    assert verdicts.keep.tolist() == [True, False, True]
    assert verdicts.weights.tolist() == [[0.5, 1.5, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    trained = groups.valid & verdicts.keep[:, None]
    assert verdicts.weights[trained].mean() == 1.0
    assert step.sums["weight_missing"] == 2
    assert step.problems == []


def test_entropies_of_the_group_only_are_reported_once_and_change_nothing() -> None:
    verdicts, step = judged(groups_of([0, 1], [[1, 0], [1, 1]], entropy=[1.0, 2.0]))
    assert (verdicts.weights == 1).all()
    assert "not one of 4 responses came with its own mean token entropy" in str(step.problems[0])


def test_without_the_switch_there_are_no_weights_and_a_cap_holds() -> None:
    groups = groups_of([0], [[1, 0, 0, 0]], entropy=[[9.0, 1.0, 1.0, 1.0]])
    assert judged(groups, entropy_weight=False)[0].weights is None
    np.testing.assert_allclose(judged(groups)[0].weights, [[3.0, 1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(judged(groups, weight_cap=2.5)[0].weights, [[2.5, 0.5, 0.5, 0.5]])


def test_no_group_at_all_is_judged() -> None:
    verdicts, _ = judged(groups_of([0], [[1, 0]], entropy=[[1.0, 1.0]]).select(np.empty(0, dtype=np.int64)))
    assert len(verdicts.keep) == 0


# -- under the selector ------------------------------------------------------------------------------------------------


def run_of(selector: Selector, steps: int, reward_seed: int = 1) -> Iterator[tuple[list[int], Groups]]:
    """Steps with ragged and missing rollouts."""
    signals = {PROMPT_PERPLEXITY: lambda rows: 1.0 + (7 * rows) % 60}
    for _ in range(steps):
        number = selector.step_number
        with selector.step(policy_version=number) as step:
            for tickets in step.requests(signals):
                draw = np.random.default_rng([reward_seed, number])
                outcomes = []
                for i, ticket in enumerate(tickets):
                    rewards = [float(draw.random() < 0.5) for _ in range(ticket.rollouts - i % 2)]
                    rewards[0] = math.nan if i == 3 else rewards[0]
                    outcomes.append(
                        Outcome(ticket=ticket, rewards=rewards, rollout_entropy=draw.exponential(size=len(rewards)).tolist())
                    )
                step.report(outcomes)
            yield [t.row for t in tickets], step.training_batch


def selector_of(**more: Any) -> Selector:
    return Selector(
        "prepo", PromptPool.from_ids(range(60)), batch_size=4, group_size=3, seed=5, on_problem="strict",
        parameters={"total_steps": 12}, **more,
    )  # fmt: skip


def test_a_run_moves_from_low_to_high_perplexity_with_weights_of_mean_one() -> None:
    medians = []
    for rows, batch in run_of(selector_of(), 12):
        assert len(rows) == 4
        scored = batch.valid & batch.trained
        assert batch.weights[scored].mean() == pytest.approx(1.0, rel=1e-12)
        assert len(np.unique(batch.weights[scored])) > 3
        medians.append(np.median(1 + (7 * np.array(rows)) % 60))
    assert np.mean(medians[:3]) < 15
    assert np.mean(medians[-3:]) > 42


def test_a_run_cut_in_the_middle_goes_on_with_the_same_windows(tmp_path: Any) -> None:
    through = [rows for rows, _ in run_of(selector_of(), 10)]
    first = selector_of()
    begun = [rows for rows, _ in run_of(first, 6)]
    first.save(tmp_path / "state")
    second = selector_of()
    second.restore(tmp_path / "state")
    assert begun + [rows for rows, _ in run_of(second, 4)] == through


def test_proposing_is_a_read_and_state_restores() -> None:
    method = started()
    first = method.propose(4, serving(number=3)).rows.tolist()
    other = started()
    other.restore(method.state())
    assert method.propose(4, serving(number=3)).rows.tolist() == first == other.propose(4, serving(number=3)).rows.tolist()
    assert method.state().prompts == {}


def test_streaming_asks_for_no_more_than_there_is_room() -> None:
    step = serving(number=5, streaming=True)
    assert len(started().propose(2, step)) == 2
    assert step.draws == [10]
