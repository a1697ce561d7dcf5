"""The Beta belief and the last rate: the rule of the papers, only at visited rows, and exactly the prior elsewhere."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.beliefs.beta import PASS_RATE_PRIOR, BetaBelief
from edgewise.beliefs.last import LastRate
from edgewise.errors import ConfigError, SignalError, StateMismatchError
from edgewise.prediction import Visits
from edgewise.types import Ints, MethodState, Setting
from tests.fakes import FakeStep, groups_of

STEP = FakeStep([])
SETTING = Setting(pool_size=6, batch_size=2, group_size=8)
EVERY = np.arange(6)


def beta(**parameters: Any) -> BetaBelief:
    belief = BetaBelief(**parameters)
    belief.start(SETTING)
    return belief


def visits(*told: tuple[int, float, int]) -> Visits:
    """(row, passes, rollouts) each."""
    rows, passes, trials = (np.array(column) for column in zip(*told, strict=True))
    return Visits(rows=rows, successes=passes.astype(np.float64), trials=trials)


def pair(belief: BetaBelief, row: int, step: FakeStep = STEP) -> tuple[float, float]:
    alpha, beta = belief.predict(np.array([row]), step).as_beta()
    return float(alpha[0]), float(beta[0])


def test_three_visits_by_hand() -> None:
    """λ = 0.5 from (1, 1), groups of 8 with 2, 8 and 0 passes. [MoPPS, golden]"""
    belief = beta(decay=0.5)
    seen = []
    for passes in (2, 8, 0):
        belief.observe(visits((3, passes, 8)), STEP)
        seen.append(pair(belief, 3))
    assert seen == [(3.0, 7.0), (10.0, 4.0), (5.5, 10.5)]


group = st.integers(1, 16).flatmap(lambda n: st.tuples(st.floats(0, n), st.just(n)))


@given(st.lists(group, max_size=12), st.floats(0, 1), st.floats(0.05, 20), st.floats(0.05, 20))
def test_it_is_the_rule_of_the_papers(
    told: list[tuple[float, int]], decay: float, prior_alpha: float, prior_beta: float
) -> None:
    """α <- λα + (1-λ)α₀ + k, step by step as the papers write it; ragged groups and fractions of a pass included."""
    belief = beta(decay=decay, prior_alpha=prior_alpha, prior_beta=prior_beta)
    alpha, other = prior_alpha, prior_beta
    for passes, trials in told:
        belief.observe(visits((2, passes, trials)), STEP)
        alpha = decay * alpha + (1 - decay) * prior_alpha + passes
        other = decay * other + (1 - decay) * prior_beta + (trials - passes)
    assert pair(belief, 2) == pytest.approx((alpha, other), rel=1e-12)
    assert min(pair(belief, 2)) > 0.0


@pytest.mark.parametrize(("decay", "evidence"), [(0.0, 10.0), (0.5, 18.0), (0.9, 82.0)])
def test_evidence_tends_to_its_fixed_point(decay: float, evidence: float) -> None:
    """α + β -> 2 + n/(1-λ) at n = 8; without forgetting it grows for ever: 402 after 50 visits."""
    belief, forever = beta(decay=decay), beta()
    for visit in range(400):
        belief.observe(visits((0, visit % 9, 8)), STEP)
        if visit < 50:
            forever.observe(visits((0, visit % 9, 8)), STEP)
    assert sum(pair(belief, 0)) == pytest.approx(evidence, rel=1e-12)
    assert sum(pair(forever, 0)) == 402.0


def test_a_group_of_one_teaches() -> None:
    """Where the released MoPPS sets both counts to 8."""
    belief = beta(decay=0.5)
    belief.observe(visits((0, 1, 1), (1, 0, 1)), STEP)
    assert [pair(belief, row) for row in (0, 1)] == [(2.0, 1.0), (1.0, 2.0)]


def test_a_missing_rollout_counts_neither_way() -> None:
    groups = groups_of([4, 5, 1], [[1, 0, None, None], [None] * 4, [0, 0, 0, 1]])
    belief = beta()
    belief.observe(Visits.of(groups, 0.5), STEP)
    assert [pair(belief, row) for row in (4, 5, 1)] == [(2.0, 2.0), (1.0, 1.0), (2.0, 4.0)]
    assert belief.visits.tolist() == [0, 1, 0, 0, 1, 0]


def test_a_negative_reward_is_a_fail_and_no_more() -> None:
    """Rewards of -1 drive the released MoPPS below zero, and numpy then refuses to draw."""
    belief = beta()
    belief.observe(Visits.of(groups_of([0], [[-1.0, -1.0, -1.0, 1.0]]), 0.5), STEP)
    assert pair(belief, 0) == (2.0, 4.0)


@given(st.floats(0.01, 50), st.floats(0.01, 50), st.floats(0, 1))
def test_a_prompt_never_visited_is_exactly_its_prior(prior_alpha: float, prior_beta: float, decay: float) -> None:
    belief = beta(decay=decay, prior_alpha=prior_alpha, prior_beta=prior_beta)
    belief.observe(visits((0, 3, 8), (1, 8, 8)), STEP)
    rest = belief.predict(np.array([2, 3, 4, 5]), STEP)
    assert set(zip(*[values.tolist() for values in rest.as_beta()], strict=True)) == {(prior_alpha, prior_beta)}
    assert belief.seen(EVERY, STEP).tolist() == [True, True, False, False, False, False]


def test_predicting_is_a_read_and_observing_writes_visited_rows_only() -> None:
    belief = beta(decay=0.5, reset_every=3)
    belief.observe(visits((0, 3, 8), (5, 8, 8)), STEP)
    before = {name: array.copy() for name, array in belief.state().prompts.items()}
    told = visits((5, 1, 8))
    for number in (0, 2, 7):
        belief.predict(EVERY, FakeStep([], number=number))
    np.testing.assert_equal(belief.state().prompts, before)
    belief.observe(told, STEP)
    changed = {row for name, array in belief.state().prompts.items() for row in np.flatnonzero(array != before[name])}
    assert changed == {5}
    assert (told.rows.tolist(), told.successes.tolist(), told.trials.tolist()) == ([5], [1.0], [8])


def test_in_a_stream_counts_start_anew_by_policy_versions_and_not_by_calls() -> None:
    belief = beta(reset_every=3)
    belief.observe(visits((0, 3, 8)), FakeStep([], number=40, policy_version=1, streaming=True))
    seen = [bool(belief.seen(np.array([0]), FakeStep([], number=n, policy_version=v, streaming=True))[0])
            for n, v in ((41, 1), (60, 2), (61, 3))]  # fmt: skip
    assert seen == [True, True, False]


# -- a prior from outside ----------------------------------------------------------------------------------------------


def guessing(*rates: float, **given: Any) -> FakeStep:
    def serve(rows: Ints) -> Any:
        return np.array(rates)[rows]

    return FakeStep([], signals={PASS_RATE_PRIOR: serve}, **given)


def test_a_guess_is_a_prior_mean_worth_kappa_rollouts() -> None:
    """g = 0.25 with κ = 4: Beta(1, 3). Guesses of 0 and 1 are taken for 0.02 and 0.98."""
    belief = beta(prior="signal", prior_strength=4.0)
    step = guessing(0.25, 0.0, 1.0, 0.5, 0.5, 0.5)
    assert belief.needs == {PASS_RATE_PRIOR}
    assert pair(belief, 0, step) == (1.0, 3.0)
    assert pair(belief, 1, step) == pytest.approx((0.08, 3.92))
    assert pair(belief, 2, step) == pytest.approx((3.92, 0.08))
    belief.observe(visits((0, 2, 8)), FakeStep([]))  # learning asks for nothing
    assert pair(belief, 0, step) == (3.0, 9.0)


def test_a_guess_that_is_none_is_reported_by_row_and_starts_flat() -> None:
    belief = beta(prior="signal", prior_alpha=1.0, prior_beta=3.0)
    step = guessing(0.5, float("nan"), 1.5, 0.5, 0.5, 0.5)
    alpha, other = belief.predict(EVERY, step).as_beta()
    assert alpha[[1, 2]].tolist() == [0.5, 0.5]  # κ = 2 at the mean 1/4
    assert other[[1, 2]].tolist() == [1.5, 1.5]
    message = "signal('pass_rate_prior') of prompt row 1 must be in [0, 1], got nan (2 of 6 prompts)."
    assert [str(problem)[: len(message)] for problem in step.problems] == [message]
    with pytest.raises(SignalError, match=re.escape(message)):
        belief.predict(EVERY, guessing(0.5, float("nan"), 1.5, 0.5, 0.5, 0.5, strict=True))


# -- starting anew -----------------------------------------------------------------------------------------------------


def test_counts_start_anew_every_so_many_steps() -> None:
    """With periods of 3: what was learned in step 2 is gone in step 3, for every prompt at once, without touching it."""
    belief = beta(reset_every=3)
    early, later = FakeStep([], number=2), FakeStep([], number=3)
    belief.observe(visits((0, 2, 4), (1, 4, 4)), early)
    assert pair(belief, 0, early) == (3.0, 3.0)
    assert (pair(belief, 0, later), pair(belief, 1, later)) == ((1.0, 1.0), (1.0, 1.0))
    assert not belief.seen(EVERY, later).any()
    belief.observe(visits((0, 1, 4)), later)
    assert (pair(belief, 0, later), pair(belief, 1, later)) == ((2.0, 4.0), (1.0, 1.0))
    belief.observe(visits((0, 1, 4)), FakeStep([], number=5))
    assert pair(belief, 0, FakeStep([], number=5)) == (3.0, 7.0)


# -- state -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [{"decay": 0.5}, {"reset_every": 2}])
def test_it_restores_exactly(parameters: dict[str, Any]) -> None:
    step = FakeStep([], number=5)
    belief, other = beta(**parameters), beta(**parameters)
    belief.observe(visits((0, 3, 8), (5, 8, 8)), step)
    other.restore(belief.state())
    for one in (belief, other):
        one.observe(visits((0, 1, 8)), step)
    np.testing.assert_equal(other.state().prompts, belief.state().prompts)
    assert pair(other, 0, step) == pair(belief, 0, step)
    assert other.state().prompts["passed"] is not belief.state().prompts["passed"]


def test_a_state_of_another_pool_changes_nothing() -> None:
    belief, small = beta(), BetaBelief()
    small.start(Setting(pool_size=5, batch_size=2, group_size=8))
    belief.observe(visits((0, 3, 8)), STEP)
    for state, message in (
        (small.state(), r"BetaBelief.restore: 'passed' must have shape \(6,\), got \(5,\)"),
        (MethodState(prompts={"passed": np.zeros(6)}), r"BetaBelief.restore: 'failed' must have shape \(6,\), got nothing"),
    ):
        with pytest.raises(StateMismatchError, match=message):
            belief.restore(state)
    assert pair(belief, 0) == (4.0, 6.0)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"decay": 1.5}, "BetaBelief(decay=...) must be a number of at least 0 and at most 1, got 1.5. 1 forgets nothing."),
        ({"decay": float("nan")}, "BetaBelief(decay=...) must be a number of at least 0 and at most 1, got nan."),
        ({"prior_alpha": 0.0}, "BetaBelief(prior_alpha=...) must be a number above 0, got 0.0."),
        ({"prior_strength": -1}, "BetaBelief(prior_strength=...) must be a number above 0, got -1."),
        ({"prior": "sharp"}, "BetaBelief(prior=...) must be 'flat' or 'signal', got 'sharp'."),
        ({"reset_every": 0}, "BetaBelief(reset_every=...) must be a whole number >= 1, got 0. None never resets."),
        ({"reset_every": True}, "BetaBelief(reset_every=...) must be a whole number >= 1, got True."),
    ],
)
def test_what_cannot_be_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        BetaBelief(**parameters)


def test_its_parameters_build_it_again() -> None:
    belief = BetaBelief(decay=0.5, reset_every=4)
    assert BetaBelief(**belief.parameters()).parameters() == belief.parameters()  # type: ignore[arg-type]
    assert set(belief.parameters()) == {"decay", "prior_alpha", "prior_beta", "prior", "prior_strength", "reset_every"}


# -- the last rate -----------------------------------------------------------------------------------------------------


def last(**parameters: Any) -> LastRate:
    belief = LastRate(**parameters)
    belief.start(SETTING)
    return belief


def test_only_the_last_group_is_believed() -> None:
    belief = last()
    belief.observe(visits((0, 8, 8), (1, 1, 4)), STEP)
    belief.observe(visits((0, 2, 8)), STEP)
    prediction = belief.predict(EVERY, STEP)
    assert prediction.mean.tolist() == [0.25, 0.25, 0.5, 0.5, 0.5, 0.5]
    assert prediction.variance == pytest.approx(np.array([0, 0, *[1 / 12] * 4]))
    assert belief.known(EVERY).tolist() == [True, True, False, False, False, False]


def test_too_small_a_group_leaves_what_was_known() -> None:
    belief = last(min_trials=4)
    belief.observe(visits((0, 4, 4), (1, 3, 3)), STEP)
    belief.observe(visits((0, 0, 3)), STEP)
    assert belief.predict(np.array([0, 1]), STEP).mean.tolist() == [1.0, 0.5]
    assert belief.known(np.array([0, 1])).tolist() == [True, False]


def test_the_last_rate_restores_exactly() -> None:
    belief, other = last(), last()
    belief.observe(visits((0, 8, 8), (1, 1, 3)), STEP)
    other.restore(belief.state())
    np.testing.assert_equal(other.state().prompts, belief.state().prompts)
    with pytest.raises(StateMismatchError, match=r"LastRate.restore: 'rate' must have shape \(6,\), got nothing"):
        other.restore(MethodState())
    with pytest.raises(ConfigError, match=r"LastRate\(min_trials=...\) must be a whole number >= 1, got 0"):
        LastRate(min_trials=0)
