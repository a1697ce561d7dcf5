"""PCL: the nearest to 1/2 of 4B candidates, as long as predictions rank better than chance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import edgewise
from edgewise.errors import ConfigError
from edgewise.methods.pcl import Pcl
from edgewise.types import EMBEDDING, Setting
from tests.fakes import FakeStep, groups_of

N, B, G = 200, 8, 8
RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((N, 4))
RATES = 1 / (1 + np.exp(-3 * VECTORS[:, 0] / np.linalg.norm(VECTORS, axis=1)))


def started(**parameters: Any) -> Pcl:
    method = Pcl(**parameters)
    method.start(Setting(pool_size=N, batch_size=B, group_size=G))
    return method


def at(number: int, **given: Any) -> FakeStep:
    stream = np.random.default_rng([number, 5]).permutation(N).tolist()
    return FakeStep(stream, signals={EMBEDDING: lambda rows: VECTORS[rows]}, number=number, **given)


def one_step(method: Pcl, number: int, rates: np.ndarray = RATES, **given: Any):
    """Propose, roll out with as many passes as the rate says, observe with the predictions on the tickets."""
    step = at(number, **given)
    requests = method.propose(B, step)
    passes = np.round(rates[requests.rows] * G).astype(int)
    groups = groups_of(requests.rows.tolist(), [[1.0] * k + [0.0] * (G - k) for k in passes.tolist()])
    told = requests.predicted_pass_rate
    tickets = [
        replace(t, seq=100 * number + i, predicted_pass_rate=None if told is None else float(told[i]))
        for i, t in enumerate(groups.tickets)
    ]
    method.observe(replace(groups, tickets=tuple(tickets)), step)
    return step, requests


def test_until_predictions_rank_the_stream_is_followed() -> None:
    method = started()
    for number in range(3):
        step, requests = one_step(method, number)
        assert step.draws == [4 * B]
        assert requests.rows.tolist() == step.offered[:B]
        assert (requests.predicted_pass_rate is None) == (number == 0)
        assert step.levels["pcl_uniform"] == 1.0
    step, requests = one_step(method, 3)  # 16 groups with predictions are in
    assert method.correlation() > 0.5
    assert step.levels["pcl_uniform"] == 0.0
    believed = method._belief.predict(np.array(step.offered), step).mean
    nearest = np.sort(np.abs(believed - 0.5))[:B]
    np.testing.assert_allclose(np.abs(requests.predicted_pass_rate - 0.5), nearest)


def test_it_goes_back_to_uniform_when_predictions_turn_wrong() -> None:
    method = started(window=16)
    for number in range(5):
        one_step(method, number)
    for number in range(5, 7):
        one_step(method, number, rates=1 - RATES)  # the world turns round
    assert method.correlation() <= 0
    step, requests = one_step(method, 7, rates=1 - RATES)
    assert step.levels["pcl_uniform"] == 1.0
    assert step.levels["pcl_corr"] <= 0
    assert requests.rows.tolist() == step.offered[:B]
    assert requests.predicted_pass_rate is not None  # it goes on predicting, to earn its way back


@pytest.mark.parametrize("model", ["ridge", "logistic"])
def test_chosen_prompts_come_nearer_to_one_half(model) -> None:
    method = started(model=model)
    distances = [np.abs(RATES[one_step(method, number)[1].rows] - 0.5).mean() for number in range(25)]
    assert np.mean(distances[10:]) < 0.75 * np.abs(RATES - 0.5).mean()


@pytest.mark.parametrize("streaming", [False, True])
def test_it_resumes_exactly(streaming: bool) -> None:
    method, other = started(), started()
    for number in range(4):
        one_step(method, number, streaming=streaming, policy_version=number)
    other.restore(method.state())
    for number in range(4, 7):
        rows = [one_step(m, number, streaming=streaming, policy_version=number)[1].rows.tolist() for m in (method, other)]
        assert rows[0] == rows[1]
    np.testing.assert_equal(method.state().shared, other.state().shared)
    assert method.state().prompts == {}
    assert len(method.state().shared["pairs"]) <= 256


def test_a_real_run_in_strict_mode() -> None:
    pool = [{"id": str(i), "prompt": f"{i}"} for i in range(N)]
    selector = edgewise.Selector("pcl", pool, batch_size=B, group_size=G, seed=1, on_problem="strict")
    rng = np.random.default_rng(2)
    for number in range(10):
        with selector.step(policy_version=number) as step:
            for tickets in step.requests({EMBEDDING: lambda rows: VECTORS[rows]}):
                outcomes = []
                for ticket in tickets:
                    rewards: list[Any] = (rng.random(G) < RATES[ticket.row]).astype(float).tolist()
                    rewards[: ticket.seq % 3] = [None] * (ticket.seq % 3)
                    outcomes.append(edgewise.Outcome(ticket=ticket, rewards=[None] * G if ticket.seq % 7 == 0 else rewards))
                step.report(outcomes)
    assert selector.metrics["pcl_uniform"] == 0.0
    assert selector.metrics["pcl_corr"] > 0


def test_hyper_parameters_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"Pcl\(model=...\) must be one of 'ridge', 'logistic'"):
        Pcl(model="forest")
    with pytest.raises(ConfigError, match=r"Pcl\(window=...\) must be a whole number of at least 16"):
        Pcl(window=3)
