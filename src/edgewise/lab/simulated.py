"""One method on one simulated learner, and the curve of what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edgewise.errors import ShortfallError
from edgewise.lab.learner import SimulatedLearner
from edgewise.selector import Selector


@dataclass
class Run:
    """One method on one seed. Curves have one entry a training step, the start included."""

    method: str
    seed: int
    responses: list[int] = field(default_factory=list)
    pass_rates: list[float] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    mixed: list[int] = field(default_factory=list)
    starved: list[int] = field(default_factory=list)
    """Prompts never rolled out so far, after each training step."""
    selection_s: float = 0.0
    """CPU seconds inside the selector, so that a busy machine does not count."""
    degraded: int = 0
    """Times that the method failed and was replaced, or that something could not be used."""

    @property
    def steps(self) -> int:
        """Training steps made."""
        return len(self.responses) - 1

    def responses_to(self, pass_rate: float) -> float | None:
        """Responses generated when the mean pass rate first reached `pass_rate`, between steps by a straight line."""
        reached = np.flatnonzero(np.asarray(self.pass_rates) >= pass_rate)
        if not len(reached):
            return None
        i = int(reached[0])
        if i == 0:
            return float(self.responses[0])
        return float(np.interp(pass_rate, self.pass_rates[i - 1 : i + 1], self.responses[i - 1 : i + 1]))

    def pass_rate_at(self, responses: float) -> float:
        """Mean pass rate once `responses` were generated."""
        return float(np.interp(responses, self.responses, self.pass_rates))

    def mixed_share(self, responses: float) -> float:
        """Share of mixed groups among those generated up to about `responses`."""
        step = self._step_at(responses)
        return sum(self.mixed[:step]) / max(1, sum(self.groups[:step]))

    def starved_at(self, responses: float) -> int:
        """Prompts never rolled out once about `responses` were generated."""
        return self.starved[min(self._step_at(responses), len(self.starved)) - 1] if self.starved else 0

    def _step_at(self, responses: float) -> int:
        return max(1, int(np.searchsorted(self.responses, responses)))


def simulate(
    method: str,
    learner: SimulatedLearner,
    *,
    batch_size: int,
    group_size: int,
    seed: int,
    until: Callable[[Run], bool],
    total_steps: int | None = None,
) -> Run:
    """Train `learner` with one method until `until(run)` holds, as a trainer would: rollouts, rewards, one update a step.

    total_steps: what a method that follows a schedule is told of the run's length.
    """
    selector = Selector(method, learner.pool, batch_size=batch_size, group_size=group_size, seed=seed, total_steps=total_steps)
    run = Run(method, seed, [learner.responses], [float(learner.pass_rate().mean())])
    visited = np.zeros(len(learner.difficulty), dtype=np.bool_)
    begun: dict[int, tuple[float, float]] = {}  # first ticket of a group -> its lowest and highest reward
    idle = 0
    while not until(run):
        groups = mixed = 0
        elsewhere = 0.0  # seconds that a trainer spends: not selection
        started = time.process_time()
        with selector.step(policy_version=run.steps) as step:
            for tickets in step.requests(learner.signals):
                rolled = time.process_time()
                outcomes = learner.rollout(tickets)
                elsewhere += time.process_time() - rolled
                step.report(outcomes)
                counted = time.process_time()
                for outcome in outcomes:
                    ticket, rewards = outcome.ticket, outcome.rewards
                    first = ticket.seq if ticket.continues is None else ticket.continues
                    groups += first not in begun
                    low, high = begun.get(first, (np.inf, -np.inf))
                    begun[first] = min(low, *rewards), max(high, *rewards)
                    mixed += begun[first][0] < begun[first][1] and not low < high
                    visited[ticket.row] = True
                elsewhere += time.process_time() - counted
            try:
                batch = step.training_batch
            except ShortfallError:
                batch = None  # nothing mixed was found: a step without an update
            trained = time.process_time()
            if batch is not None:
                learner.train(batch)
            elsewhere += time.process_time() - trained
        run.selection_s += time.process_time() - started - elsewhere
        run.groups.append(groups)
        run.mixed.append(mixed)
        run.responses.append(learner.responses)
        run.pass_rates.append(float(learner.pass_rate().mean()))
        run.starved.append(int(np.count_nonzero(~visited)))
        idle = 0 if learner.responses > run.responses[-2] else idle + 1
        if idle == 3:
            break  # the method asks for nothing more
    run.degraded = int(selector.metrics.get("degraded_total", 0))
    return run
