"""InSight: the published rule, what it does in the first pass over a pool, and the two ways out."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgewise
from edgewise.beliefs.beta import PASS_RATE_PRIOR
from edgewise.errors import ConfigError, DegradedWarning
from edgewise.methods.insight import Insight, InsightRevisit, decided_by_key
from edgewise.prediction import Prediction
from edgewise.scores import WeightedInformation, prob_mixed
from edgewise.types import Setting
from tests.fakes import FakeStep, passing
from tests.whole_runs import assert_resumes_exactly

N, B, K = 400, 4, 8


def started(kind: type[Insight] = Insight, pool_size: int = N, **parameters: Any) -> Insight:
    method = kind(**parameters)
    method.start(Setting(pool_size=pool_size, batch_size=B, group_size=K))
    return method


def at(number: int, **given: Any) -> FakeStep:
    return FakeStep([], number=number, **given)


def score(alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    return WeightedInformation()(Prediction.of_beta(alpha, beta), K)


# -- the rule ----------------------------------------------------------------------------------------------------------


def test_it_takes_the_highest_of_a_uniform_draw_from_the_pool() -> None:
    """All are seen once, row i with i % 9 passes. Of the nine beliefs (4, 6) scores highest, then (5, 5), then (3, 7)."""
    by_passes = score(1.0 + np.arange(9), 9.0 - np.arange(9))
    assert np.argsort(-by_passes)[:3].tolist() == [3, 4, 2]
    method = started()
    method.observe(passing(list(range(N)), [row % 9 for row in range(N)], K), at(0))
    for number in range(30):
        step = at(number)
        rows = method.propose(B, step).rows
        candidates = method.candidate_rows(B, at(number))
        assert set(rows.tolist()) < set(candidates.tolist())
        assert by_passes[rows % 9].tolist() == sorted(by_passes[candidates % 9], reverse=True)[:B]
        assert step.draws == []  # nothing of the stream is consumed
        assert step.levels["unseen_share"] == 0.0


def test_candidates_are_sixteen_a_group_and_uniform() -> None:
    """All tie, so each of 40 prompts is asked for in a tenth of 600 steps: 60, sigma 7.3. The worst of 40 is outside 6 sigma
    about once in 1e7 runs."""
    few = started(pool_size=40, spread=2.0)
    counted = np.bincount(np.concatenate([few.propose(B, at(number)).rows for number in range(600)]), minlength=40)
    assert np.abs(counted - 60).max() < 44
    method = started()
    assert len(method.candidate_rows(B, at(0))) == 16 * B


def test_a_small_pool_is_scored_whole() -> None:
    method = started(pool_size=30)
    assert sorted(method.candidate_rows(B, at(0)).tolist()) == list(range(30))


# -- the finding -------------------------------------------------------------------------------------------------------


@given(st.floats(0.0, 1.0), st.integers(0, 60), st.floats(0.0, 1.0))
def test_no_belief_with_a_group_behind_it_scores_as_an_unseen_prompt(decay: float, visits: int, share: float) -> None:
    """An unseen prompt scores .1699; after a visit n₀ >= 10 whatever is forgotten, and no such belief scores above .0683."""
    evidence = 8.0 * sum(decay**visit for visit in range(visits + 1))
    belief = score(np.array([1.0 + share * evidence]), np.array([1.0 + (1.0 - share) * evidence]))
    assert belief[0] <= 0.06835 < 0.1699 < score(np.array([1.0]), np.array([1.0]))[0]


def test_the_best_belief_of_ten_outcomes() -> None:
    """n₀ = 10 at m = .418 is the maximum over n₀ >= 10: 0.0683."""
    means = np.linspace(0.001, 0.999, 999)
    by_evidence = [score(means * n, (1 - means) * n) for n in (10.0, 10.5, 12.0, 18.0, 82.0)]
    assert [values.max() for values in by_evidence] == sorted([values.max() for values in by_evidence], reverse=True)
    assert by_evidence[0].max() == pytest.approx(0.0683, abs=5e-5)
    assert means[by_evidence[0].argmax()] == pytest.approx(0.418, abs=1e-3)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_within_the_first_pass_it_is_uniform_without_replacement(decay: float) -> None:
    """As long as 64 candidates hold 4 unseen prompts no seen one is asked for, and the key alone decides who is."""
    method = started(decay=decay)
    seen: set[int] = set()
    for number in range(15):
        step = at(number)
        rows = method.propose(B, step).rows.tolist()
        assert not seen & set(rows)
        assert (step.levels["unseen_share"], step.levels["tie_share"]) == (1.0, 1.0)
        method.observe(passing(rows, [row % 9 for row in rows], K), step)
        seen |= set(rows)


def test_a_weak_prior_mean_lets_a_seen_prompt_win() -> None:
    """At κ = 2 an unseen prompt loses to a once-seen (4, 6) as soon as its prior mean is outside [.142, .759]."""
    rival = score(np.array([4.0]), np.array([6.0]))[0]
    means = np.linspace(0.02, 0.98, 9601)
    wins = means[score(2 * means, 2 * (1 - means)) > rival]
    assert (wins.min(), wins.max()) == pytest.approx((0.142, 0.759), abs=1e-3)


# -- the two ways out --------------------------------------------------------------------------------------------------


def test_prior_rates_from_outside_choose_among_the_unseen() -> None:
    method = started(prior="signal", pool_size=60)
    step = at(0, signals={PASS_RATE_PRIOR: lambda rows: rows / 59})
    rows = method.propose(B, step).rows
    expected = np.clip(np.arange(60) / 59, 0.02, 0.98)
    best = np.argsort(-score(2 * expected, 2 * (1 - expected)))[:B]
    assert set(rows.tolist()) == set(best.tolist())


def test_at_most_the_given_share_is_unseen_while_there_are_others() -> None:
    method = started(InsightRevisit)
    method.observe(passing(list(range(200)), [row % 9 for row in range(200)], K), at(0))
    for number in range(30):
        step = at(number)
        rows = method.propose(B, step).rows
        assert (rows >= 200).sum() == 1
        assert step.levels["unseen_share"] == 0.25
        assert len(set(rows.tolist())) == B


@pytest.mark.parametrize(("wanted", "mean"), [(1, 0.25), (2, 0.5), (6, 1.5)])
def test_a_share_that_is_no_whole_number_is_rounded_by_chance(wanted: int, mean: float) -> None:
    """Rounded down, a request of three or fewer would never see a new prompt. 800 requests: sigma of the mean at most .018,
    ±.11 is 6 sigma: about once in 5e8 runs."""
    method = started(InsightRevisit, candidates="pool")
    method.observe(passing(list(range(200)), [row % 9 for row in range(200)], K), at(0))
    unseen = [int((method.propose(wanted, at(number, streaming=True)).rows >= 200).sum()) for number in range(1, 801)]
    assert set(unseen) <= {math.floor(mean), math.ceil(mean)}
    assert abs(np.mean(unseen) - mean) < 0.11


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_with_small_batches_the_revisiting_preset_still_sees_the_pool(batch_size: int) -> None:
    method, seen = InsightRevisit(), set()
    method.start(Setting(pool_size=16, batch_size=batch_size, group_size=K))
    for number in range(200):
        rows = method.propose(batch_size, at(number)).rows.tolist()
        method.observe(passing(rows, [4] * len(rows), K), at(number))
        seen |= set(rows)
    assert seen == set(range(16))


@pytest.mark.parametrize("method", ["insight", "mopps-mean"])
def test_prompts_whose_rollouts_always_fail_do_not_take_the_place_of_all_others(method: str) -> None:
    """Nothing is learned of them, so they look unseen for ever, and unseen prompts win: 4 of 32 would make up every batch of 4.
    Given back once a pass instead, they take at most one batch of eight, besides where a pass ends."""
    selector = edgewise.Selector(method, [{"prompt": str(i)} for i in range(32)], batch_size=4, group_size=4)
    kept = []
    for version in range(48):
        with selector.step(policy_version=version) as step:
            for tickets in step.requests():
                answers = [[None] * 4 if t.row < 4 else [1.0, 0.0, 1.0, 0.0] for t in tickets]
                step.report([edgewise.Outcome(ticket=t, rewards=a) for t, a in zip(tickets, answers, strict=True)])
            kept.append(4 - step.missing)
    assert np.mean(kept[8:]) > 0.75 * 4


def test_the_share_yields_where_there_are_no_others() -> None:
    """Two seen prompts of 64 candidates: both, and the rest unseen; with none seen all are."""
    method = started(max_unseen=0.0, candidates="pool")
    assert len(method.propose(B, at(0))) == B
    method.observe(passing([7, 9], [8, 0], K), at(0))
    rows = method.propose(B, at(1)).rows.tolist()
    assert {7, 9} < set(rows)
    assert len(set(rows)) == B


def test_a_limit_that_never_binds_changes_nothing() -> None:
    free, limited = started(), started(max_unseen=1.0)
    for method in (free, limited):
        method.observe(passing(list(range(100)), [row % 9 for row in range(100)], K), at(0))
    for number in range(10):
        assert free.propose(B, at(number)).rows.tolist() == limited.propose(B, at(number)).rows.tolist()


def mixed_shares(method: Insight, rates: np.ndarray, steps: int) -> np.ndarray:
    """(steps,) share of mixed groups when outcomes are drawn at fixed pass rates."""
    world = np.random.default_rng(5)
    shares = []
    for number in range(steps):
        rows = method.propose(32, at(number)).rows
        passes = world.binomial(K, rates[rows])
        shares.append(float(((passes > 0) & (passes < K)).mean()))
        method.observe(passing(rows.tolist(), passes.tolist(), K), at(number))
    return np.array(shares)


def test_in_a_pool_larger_than_the_run_only_the_revisiting_preset_selects() -> None:
    """Logit pass rates ~ N(-.3, 2.5²), 3,000 prompts, 60 steps of 32. As published the share of mixed groups is the pool's
    own (1,920 groups, sigma .011, 6 sigma .066); the preset is a tenth above that in its second half."""
    rates = 1.0 / (1.0 + np.exp(-np.random.default_rng(4).normal(-0.3, 2.5, 3000)))
    of_pool = prob_mixed(rates, K).mean()
    setting = Setting(pool_size=3000, batch_size=32, group_size=K)
    published, revisiting = Insight(), InsightRevisit()
    for method in (published, revisiting):
        method.start(setting)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        assert abs(mixed_shares(published, rates, 60).mean() - of_pool) < 0.066
    assert mixed_shares(revisiting, rates, 60)[30:].mean() > of_pool + 0.1


# -- what it says ------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 12))
def test_who_was_decided_by_the_key(values: list[int], most: int) -> None:
    """Taken by rank, someone was decided by the key exactly where another order of equals could have left him out."""
    scores = np.array(values, dtype=np.float64)
    taken = np.zeros(len(values), dtype=bool)
    taken[np.argsort(-scores, kind="stable")[:most]] = True
    could_be_left = sum(
        int(taken[i] and int((scores > scores[i]).sum()) + int((scores == scores[i]).sum()) > min(most, len(values)))
        for i in range(len(values))
    )
    assert decided_by_key(scores, taken) == could_be_left


def warned_at(method: Insight, steps: int, start: int = 0) -> list[int]:
    """Steps that warned, when each asks for and learns from unseen prompts only."""
    told = []
    for number in range(start, start + steps):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rows = method.propose(B, at(number)).rows.tolist()
        method.observe(passing(rows, [4] * len(rows), K), at(number))
        told += [number] * len(caught)
        for warning in caught:
            assert issubclass(warning.category, DegradedWarning)
            assert "20 steps in a row asked only for prompts never visited" in str(warning.message)
    return told


def test_it_says_once_that_nothing_is_selected_yet() -> None:
    """Step 0 has no seen prompt to pass over, and the candidates of a step may miss the few seen ones at first."""
    told = warned_at(started(candidates="pool"), 60)
    assert told == [20]


def test_the_warning_survives_a_restart() -> None:
    method, other = started(candidates="pool"), started(candidates="pool")
    assert warned_at(method, 12) == []
    other.restore(method.state())
    assert warned_at(other, 30, start=12) == [20]


def test_a_limit_keeps_it_quiet() -> None:
    assert warned_at(started(InsightRevisit, candidates="pool"), 40) == []


# -- options -----------------------------------------------------------------------------------------------------------


def test_the_draw_weighs_and_the_belief_informs() -> None:
    """Thompson as in the ablation: w at a draw, I_K of the belief; another step draws anew."""
    method = started(thompson=True)
    method.observe(passing(list(range(N)), [row % 9 for row in range(N)], K), at(0))
    rows = np.arange(N)
    prediction = method.counts.predict(rows, at(1))
    draw = method.counts.sample(rows, prediction, at(1).rng("thompson"))
    drawn = Prediction(mean=draw, variance=prediction.variance, alpha=prediction.alpha, beta=prediction.beta)
    assert method.scores(rows, prediction, at(1)).tolist() == WeightedInformation()(drawn, K).tolist()
    assert method.scores(rows, prediction, at(1)).tolist() != method.scores(rows, prediction, at(2)).tolist()


@pytest.mark.parametrize("score_name", ["information", "variance_reduction"])
def test_scores_without_a_preference_are_symmetric(score_name: Any) -> None:
    """3 and 5 passes of 8 tie; with the published weight 3 comes first."""
    method = started(score=score_name, pool_size=8)
    method.observe(passing(list(range(8)), [3, 5] * 4, K), at(0))
    prediction = method.counts.predict(np.arange(8), at(1))
    scores = method.scores(np.arange(8), prediction, at(1))
    assert scores[0] == pytest.approx(scores[1], rel=1e-12)


def test_proposing_is_a_read_of_every_belief() -> None:
    method = started(InsightRevisit)
    method.observe(passing([0, 1], [4, 3], K), at(0))
    before = {name: array.copy() for name, array in method.state().prompts.items()}
    rows = method.propose(B, at(1)).rows.tolist()
    np.testing.assert_equal(method.state().prompts, before)
    assert method.propose(B, at(1)).rows.tolist() == rows


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("insight", {}), ("insight", {"prior": "signal", "thompson": True, "gate": "reward", "max_rounds": 4}),
        ("insight-revisit", {}),
    ],
)  # fmt: skip
def test_a_real_run_resumes_exactly(method: str, parameters: dict[str, Any], tmp_path: Path) -> None:
    """12 steps and 40 takes under a strict selector, with ragged, missing and lost groups."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        assert_resumes_exactly(method, tmp_path, {PASS_RATE_PRIOR: lambda rows: (rows + 1) / 42}, parameters)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"mu": 3.0}, "Insight(mu=...) must be a number of at least 0 and at most 1, got 3.0. It is a pass rate; the 3.0 in"),
        ({"eta": -1}, "Insight(eta=...) must be a number of at least 0, got -1."),
        ({"max_unseen": 1.5}, "Insight(max_unseen=...) must be a number of at least 0 and at most 1, got 1.5."),
        ({"score": "entropy"}, "Insight(score=...) must be one of 'weighted_information', 'information', 'variance_reduction'"),
        ({"score": "information", "thompson": True}, "Insight(thompson=...) must be False with score='information', got True"),
    ],
)
def test_what_cannot_be_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        Insight(**parameters)
