"""GPS: whole-pool choice by a shared model, the anchor, rests, warm-up, top-ups; linear and Transformer models alike."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import edgewise
from edgewise.errors import ConfigError
from edgewise.methods import make
from edgewise.methods.gps import Gps, GpsPpm
from edgewise.types import EMBEDDING, Groups, MethodState, Setting
from tests.fakes import FakeStep, groups_of, passing, run_step

N, B, G = 60, 6, 4
VECTORS = np.random.default_rng(0).standard_normal((N, 5))


def started(name: str = "gps", pool: int = N, batch: int = B, **parameters: Any):
    method = make(name, **parameters)
    method.start(Setting(pool_size=pool, batch_size=batch, group_size=G))
    return method


def at(number: int, vectors: np.ndarray = VECTORS, **given: Any) -> FakeStep:
    return FakeStep(range(len(vectors)), signals={EMBEDDING: lambda rows: vectors[rows]}, number=number, **given)


def one_step(method, number: int, passes=lambda row: row % (G + 1), **given: Any) -> list[int]:
    requests = method.propose(B, at(number, **given))
    rows = requests.rows.tolist()
    method.observe(passing(rows, [passes(row) for row in rows], G), at(number, **given))
    return rows


def ticketed(groups: Groups, requests: edgewise.Requests, first: int = 0) -> Groups:
    """The groups with the predictions that their requests carried."""
    rates = requests.predicted_pass_rate
    tickets = tuple(
        replace(t, seq=first + i, predicted_pass_rate=None if rates is None else float(rates[i]))
        for i, t in enumerate(groups.tickets)
    )
    return replace(groups, tickets=tickets)


def copied(state: MethodState) -> MethodState:
    return MethodState({k: v.copy() for k, v in state.prompts.items()}, {k: np.array(v) for k, v in state.shared.items()})


def test_the_first_batch_is_uniform_and_without_predictions() -> None:
    seen = np.zeros(N)
    for seed in range(300):
        requests = started().propose(B, at(0, seed=seed))
        assert requests.predicted_pass_rate is None
        seen[requests.rows] += 1
    assert len(requests) == B
    assert requests.rollouts.tolist() == [G] * B
    # 300 draws of 6 of 60: 30 each, sigma 5.2; beyond 6 sigma (31) some prompt lies once in 1e7 runs
    assert np.abs(seen - 30).max() < 31


def test_before_the_model_has_learned_anything_batches_are_spread_out() -> None:
    """No warm-up and g = 1/2 everywhere: only diversity decides. Two tight clusters are met half and half."""
    rng = np.random.default_rng(1)
    vectors = np.repeat([[1.0, 0.0], [-1.0, 0.0]], [50, 10], axis=0) + 0.01 * rng.standard_normal((60, 2))
    method = started(warmup_steps=0, random_share=0.0)
    rows = method.propose(B, at(0, vectors)).rows
    assert (rows < 50).sum() == 3


def test_it_asks_near_one_half_once_it_has_learned() -> None:
    """Pass rate by the sign of the first number: 1, 0, or 1/2 in between. Without diversity the half-way prompts are asked."""
    rng = np.random.default_rng(2)
    vectors = np.stack([np.repeat([-1.0, 0.0, 1.0], 200), rng.standard_normal(600) * 0.2, np.ones(600)], axis=1)

    def passes(row: int) -> int:
        return (0, 2, 4)[row // 200]

    method = started(pool=600, batch=60, diversity=0.0, novelty=0.0, random_share=0.0, ridge=1.0)
    middle = []
    for number in range(4):
        step = at(number, vectors)
        rows = method.propose(60, step).rows
        middle.append(np.mean((rows >= 200) & (rows < 400)))
        method.observe(passing(rows.tolist(), [passes(r) for r in rows.tolist()], G), step)
    assert middle[0] < 0.6  # 20 expected of 60, sigma 3.5
    assert middle[-1] == 1.0


def test_own_counts_decide_with_beta_and_are_absent_without() -> None:
    both = {c: started(combine=c) for c in ("beta", "none")}
    for method in both.values():
        for number in range(3):
            one_step(method, number)
    assert sorted(both["beta"].state().prompts) == ["failed", "passed"]
    assert both["none"].state().prompts == {}
    step = at(3)
    believed = both["beta"]._belief.predict(np.arange(N), step)
    g = both["beta"]._belief._rates(np.arange(N), both["beta"]._belief.features(step), step)[0]
    state = both["beta"].state()
    a, b = state.prompts["passed"], state.prompts["failed"]
    np.testing.assert_allclose(believed.mean, (4 * g + a) / (4 + a + b))
    assert (a + b > 0).sum() == 18


def test_a_prompt_rests_for_one_step() -> None:
    method = started(random_share=0.5)
    batches = [set(one_step(method, number)) for number in range(8)]
    assert all(not now & before for before, now in zip(batches, batches[1:], strict=False))
    tireless = started(cooldown=0, pool=8, random_share=0.5)
    vectors = VECTORS[:8]
    batches = [set(one_step(tireless, number, vectors=vectors)) for number in range(2)]
    assert batches[0] & batches[1]


def test_the_rest_is_given_up_where_too_few_prompts_are_left() -> None:
    method = started(pool=8)
    for number in range(3):
        assert len(set(one_step(method, number, vectors=VECTORS[:8]))) == B


def test_the_anchor_turns_the_next_batch_away() -> None:
    """Two clusters, all prompts alike in pass rate; the last batch lay in one: novelty alone sends the next to the other."""
    vectors = np.repeat([[1.0, 0.0], [0.0, 1.0]], 30, axis=0)

    def next_batch(novelty: float) -> np.ndarray:
        method = started(
            novelty=novelty, diversity=0.0, cooldown=0, warmup_steps=0, random_share=0.0, combine="none", ridge=1e9
        )
        step = at(0, vectors)
        method.propose(B, step)
        method.observe(passing(list(range(B)), [2] * B, G), step)
        return method.propose(B, at(1, vectors)).rows

    assert (next_batch(0.1) >= 30).all()
    assert (next_batch(0.0) < 30).any()


def test_a_top_up_keeps_the_batch_in_the_diversity_sum() -> None:
    """Three clusters; the first round of the step took two of them, so the top-up goes to the third."""
    vectors = np.repeat(np.eye(3), 20, axis=0)
    method = started(
        gate=True, max_rounds=4, novelty=0.0, diversity=1.0, warmup_steps=0, random_share=0.0, ridge=1e9, cooldown=0
    )
    step = at(0, vectors)
    method.propose(B, step)
    rows = [0, 1, 20, 21]
    step.offered += rows
    method.observe(passing(rows, [2] * 4, G), step)
    step.round = 1
    assert (method.propose(2, step).rows >= 40).all()


def test_part_of_each_batch_is_random() -> None:
    """random_share .5: each time 3 of 6 are drawn uniformly from 60; chosen ones come from the 6 that stand out."""
    vectors = np.concatenate([np.eye(6), np.zeros((54, 6))])  # z-scored, nothing but diversity tells them apart
    drawn = np.zeros(N)
    method = started(warmup_steps=0, random_share=0.5, cooldown=0, novelty=0.0)
    for seed in range(200):
        rows = method.propose(B, at(0, vectors, seed=seed)).rows
        drawn[rows[3:]] += 1
    assert drawn.sum() == 600
    assert (drawn > 0).sum() == N  # a prompt is missed 200 times with odds .95^200 = 4e-5; 60 of them: 2e-3 at a fixed seed


def test_above_the_limit_the_best_by_score_are_looked_at() -> None:
    method = started(whole_pool=20, prefilter=2.0, random_share=0.0)
    one_step(method, 0)
    step = at(1)
    method.propose(B, step)
    assert step.levels["greedy_candidates"] == 12
    whole = started(random_share=0.0)
    one_step(whole, 0)
    step = at(1)
    whole.propose(B, step)
    assert step.levels["greedy_candidates"] == N - B  # all that do not rest


def test_predictions_ride_on_requests_and_their_error_is_logged() -> None:
    method = started()
    one_step(method, 0)
    step = at(1)
    requests = method.propose(B, step)
    assert requests.predicted_pass_rate is not None
    assert ((requests.predicted_pass_rate > 0) & (requests.predicted_pass_rate < 1)).all()
    groups = ticketed(passing(requests.rows.tolist(), [2] * B, G), requests)
    method.observe(groups, step)
    gaps = np.bincount((requests.predicted_pass_rate * 10).astype(int), requests.predicted_pass_rate - 0.5, 10)
    assert step.levels["predicted_ece"] == pytest.approx(np.abs(gaps).sum() / B)


def test_stale_groups_teach_the_model_nothing() -> None:
    for stale_after, learned in ((None, 2), (3, 2), (2, 1)):
        method = started(stale_after=stale_after)
        step = at(0, policy_version=5)
        method.propose(B, step)
        method.observe(passing([1], [2], G, policy_version=2), step)
        method.observe(passing([2], [2], G, policy_version=5), step)
        assert len(method._belief._pending) == learned
        assert method.state().prompts["passed"][1] == 2


def test_missing_and_ragged_groups() -> None:
    method = started()
    step = at(0)
    method.propose(B, step)
    method.observe(groups_of([1, 2, 3], [[1, 0, None, None], [1, None, None, None], [None] * 4]), step)
    state = method.state()
    assert state.prompts["passed"][:4].tolist() == [0, 1, 1, 0]
    assert state.prompts["failed"][:4].tolist() == [0, 1, 0, 0]
    assert method._belief._pending[:, 2:].tolist() == [[1, 1, 2], [2, 1, 1]]
    verdicts = method.judge(groups_of([1, 2], [[1, 1, 1, 1], [1, None, None, None]]), step)
    assert verdicts.keep.tolist() == [True, False]  # no gate


@pytest.mark.parametrize("name", ["gps", "gps-ppm"])
@pytest.mark.parametrize("streaming", [False, True])
def test_it_resumes_exactly(name: str, streaming: bool) -> None:
    method, other = started(name), started(name)
    for number in range(3):
        one_step(method, number, streaming=streaming, policy_version=number)
    other.restore(copied(method.state()))
    for number in range(3, 6):
        rows = [one_step(m, number, streaming=streaming, policy_version=number) for m in (method, other)]
        assert rows[0] == rows[1]
    np.testing.assert_equal(method.state().shared, other.state().shared)
    np.testing.assert_equal(method.state().prompts, other.state().prompts)


@pytest.mark.parametrize("name", ["gps", "gps-ppm"])
def test_save_and_restore_before_every_round_changes_nothing(name: str) -> None:
    def again(method):
        fresh = started(name, gate=True, max_rounds=3)
        fresh.restore(copied(method.state()))
        return fresh

    plain, swapped = started(name, gate=True, max_rounds=3), started(name, gate=True, max_rounds=3)
    for number in range(4):
        held = [swapped]

        def between(method, held=held):
            held[0] = again(method)
            return held[0]

        traces = [
            run_step(plain, at(number), B, lambda row: row % 5, group_size=G),
            run_step(swapped, at(number), B, lambda row: row % 5, group_size=G, between=between),
        ]
        assert traces[0] == traces[1]
        swapped = held[0]


def test_proposing_changes_no_belief_and_no_input() -> None:
    method = started()
    one_step(method, 0)
    before = copied(method.state()).prompts
    given = VECTORS.copy()
    given.flags.writeable = False
    method.propose(B, at(1, given))
    np.testing.assert_equal(method.state().prompts, before)


POOL = [{"id": str(i), "prompt": f"{i}"} for i in range(160)]


@pytest.mark.parametrize("name", ["gps", "gps-ppm"])
def test_a_real_run_in_strict_mode(name: str) -> None:
    """Ten steps with missing and ragged rewards; prompts 0 to 79 always pass: the model learns to ask for the others. A
    seventh of the groups fails whole, and their prompts rest for the pass: the pool is large enough to spare them."""
    vectors = np.concatenate([np.ones((160, 1)), np.repeat([[1.0], [-1.0]], 80, axis=0)], axis=1)
    vectors = np.concatenate([vectors, np.random.default_rng(0).standard_normal((160, 3))], axis=1)
    selector = edgewise.Selector(name, POOL, batch_size=8, group_size=4, seed=1, on_problem="strict")
    rng, asked = np.random.default_rng(2), []
    for number in range(10):
        with selector.step(policy_version=number) as step:
            for tickets in step.requests({EMBEDDING: lambda rows: vectors[rows]}):
                outcomes = []
                for ticket in tickets:
                    rewards: list[Any] = (rng.random(4) < (1.0 if ticket.row < 80 else 0.5)).astype(float).tolist()
                    if ticket.seq % 5 == 0:
                        rewards[0] = None
                    if ticket.seq % 7 == 0:
                        rewards = [None] * 4
                    outcomes.append(edgewise.Outcome(ticket=ticket, rewards=rewards))
                asked.append([ticket.row for ticket in tickets])
                step.report(outcomes)
    assert all(len(set(rows)) == 8 for rows in asked)
    assert np.mean(np.array(asked[5:]) >= 80) > 0.75
    assert {"predicted_ece", "predicted_brier", "greedy_candidates"} <= set(selector.metrics)


def test_simulated_it_meets_more_mixed_groups_than_uniform() -> None:
    """3,000 prompts, embedding explains 30 % of the logit's variance, B 64, 25 steps of 8 rollouts.

    Mean share of mixed groups over the last 15 steps, 960 groups each: sigma of the difference .022; uniform is met by .1 less.
    """
    rng = np.random.default_rng(7)
    vectors = rng.standard_normal((3_000, 16))
    direction = rng.standard_normal(16) / 4
    logits = -0.8 + 2.5 * (np.sqrt(0.3) * (vectors @ direction) + np.sqrt(0.7) * rng.standard_normal(3_000))
    rates = 1 / (1 + np.exp(-logits))
    share = {}
    for name in ("uniform", "gps"):
        method = make(name)
        method.start(Setting(pool_size=3_000, batch_size=64, group_size=8))
        mixed = []
        draws, order = np.random.default_rng(11), np.random.default_rng(12)
        for number in range(25):
            step = at(number, vectors)
            step.left = order.permutation(3_000).tolist()
            rows = method.propose(64, step).rows
            rewards = (draws.random((len(rows), 8)) < rates[rows, None]).astype(float)
            method.observe(groups_of(rows.tolist(), rewards), step)
            mixed.append(np.mean(rewards.min(axis=1) < rewards.max(axis=1)))
        share[name] = float(np.mean(mixed[10:]))
    print(share)
    assert share["gps"] > share["uniform"] + 0.06


def test_hyper_parameters_are_checked() -> None:
    for parameters, message in (
        ({"prior_strength": "four"}, r"Gps\(prior_strength=...\) must be a number above 0, got 'four'"),
        ({"decay": None}, r"Gps\(decay=...\) must be a number of at least 0 and at most 1, got None"),
        ({"rule": "best"}, r"Gps\(rule=...\) must be one of 'marginal', 'potential'"),
        ({"random_share": 1.5}, r"Gps\(random_share=...\) must be a number"),
        ({"cooldown": -1}, r"Gps\(cooldown=...\) must be a whole number"),
        ({"forget": 0.0}, r"Gps\(forget=...\) must be a number above 0"),
        ({"stale_after": 1.5}, r"Gps\(stale_after=...\) must be a whole number"),
    ):
        with pytest.raises(ConfigError, match=message):
            Gps(**parameters)
    with pytest.raises(ConfigError, match=r"GpsPpm\(size=...\) must be one of 'ppm-small', 'ppm'"):
        GpsPpm(size="tiny")
    with pytest.raises(ConfigError, match=r"GpsPpm\(device=...\) must be a name torch knows, got 0"):
        GpsPpm(device=0)  # type: ignore[arg-type]
    assert make("gps-ppm-20m").size == "ppm"


def test_torch_is_asked_for_when_a_run_starts_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import sys, edgewise; m = [edgewise.make(n) for n in ('gps', 'gps-ppm', 'gps-ppm-20m', 'pcl')]; "
        "m[0].start(edgewise.types.Setting(pool_size=9, batch_size=2, group_size=2)); print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "False\n"
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "edgewise.beliefs.ppm", raising=False)
    with pytest.raises(ConfigError, match=r"gps-ppm needs torch, which is not installed. pip install 'edgewise\[trl\]'"):
        started("gps-ppm")
