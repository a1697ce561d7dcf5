"""A step without a selector: a scripted stream, scripted uniforms, and the loop that a selector runs."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgewise.errors import EdgewiseError
from edgewise.method import Method
from edgewise.outcomes import stack
from edgewise.types import Bools, Floats, Groups, Ints, Outcome, Requests, Ticket


class ScriptedUniforms:
    """Hands out the given uniforms, one a call and prompt, and refuses to run out."""

    def __init__(self, values: Sequence[float]) -> None:
        self._left = list(values)

    def random(self, n: int) -> Floats:
        taken, self._left = self._left[:n], self._left[n:]
        assert len(taken) == n, "the script of uniforms is too short"
        return np.array(taken)


class FakeStep:
    """`StepView` over a stream of rows. Every row is offered at most once a step; `shut` rows never are.

    signals: name -> function from rows to numbers.  uniforms: what `rng("accept")` gives, over all rounds.
    """

    def __init__(
        self,
        stream: Sequence[int],
        *,
        signals: dict[str, Callable[[Ints], Any]] | None = None,
        uniforms: Sequence[float] | None = None,
        seed: int = 0,
        number: int = 0,
        policy_version: int = 0,
        streaming: bool = False,
        strict: bool = False,
        shut: Sequence[int] = (),
    ) -> None:
        self.number, self.round, self.policy_version = number, 0, policy_version
        self.streaming, self.strict = streaming, strict
        self.seed = seed
        self.left = [row for row in stream if row not in set(shut)]
        self.offered: list[int] = []
        self.shut = set(shut)
        self.signals = signals or {}
        self.asked: list[tuple[str, list[int]]] = []
        self.draws: list[int] = []
        self.uniforms = ScriptedUniforms(uniforms) if uniforms is not None else None
        self.sums: dict[str, float] = defaultdict(float)
        self.levels: dict[str, float] = {}
        self.problems: list[EdgewiseError] = []

    @property
    def epoch(self) -> float:
        return 0.0

    def rng(self, purpose: str) -> Any:
        if purpose == "accept" and self.uniforms is not None:
            return self.uniforms
        return np.random.default_rng([self.seed, self.number, self.round, zlib.crc32(purpose.encode())])

    def draw(self, n: int) -> Ints:
        assert n > 0
        self.draws.append(n)
        taken, self.left = self.left[:n], self.left[n:]
        self.offered += taken
        return np.array(taken, dtype=np.int64)

    def eligible(self, rows: Ints) -> Bools:
        return ~np.isin(rows, [*self.offered, *self.shut])

    def signal(self, name: str, rows: Ints) -> Floats:
        assert len(rows) > 0
        self.asked.append((name, rows.tolist()))
        return np.asarray(self.signals[name](rows), dtype=np.float64)  # (n,), or (n, d) where the signal is a vector

    def log(self, **values: float) -> None:
        assert all(np.isfinite(v) for v in values.values()), values
        for name, value in values.items():
            self.sums[name] += value

    def gauge(self, **values: float) -> None:
        assert all(np.isfinite(v) for v in values.values()), values
        self.levels.update(values)

    def problem(self, error: EdgewiseError) -> None:
        self.problems.append(error)
        if self.strict:
            raise error


def groups_of(
    rows: Sequence[int],
    rewards: Any,
    *,
    correct: Any = None,
    entropy: Any = None,
    policy_version: int = 0,
) -> Groups:
    """Finished groups from plain lists; None or NaN in `rewards` is a missing rollout. entropy: a group's, or a list."""
    reward = np.array(rewards, dtype=np.float64).reshape(len(rows), -1)
    outcomes = [
        Outcome(
            ticket=Ticket(
                seq=i, row=row, prompt_id=f"p{row}", step=0, round=0, policy_version=policy_version, rollouts=reward.shape[1]
            ),
            rewards=reward[i].tolist(),
            correct=None if correct is None else list(correct[i]),
            rollout_entropy=None if entropy is None else entropy[i],
        )
        for i, row in enumerate(rows)
    ]

    def refuse(error: EdgewiseError) -> None:
        raise error

    return stack(outcomes, refuse)


def passing(rows: Sequence[int], passes: Sequence[int], group_size: int = 4, *, policy_version: int = 0) -> Groups:
    """Groups in which the given number of rollouts pass, with rewards 1 and 0."""
    rewards = [[1.0] * k + [0.0] * (group_size - k) for k in passes]
    return groups_of(rows, np.array(rewards).reshape(len(rows), group_size), policy_version=policy_version)


@dataclass
class Trace:
    """What happened in one step: requested rows per round, kept rows in request order, every observed row."""

    rounds: list[list[int]] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    observed: list[int] = field(default_factory=list)


def run_step(
    method: Method,
    step: FakeStep,
    batch_size: int,
    passes: Callable[[int], int],
    *,
    group_size: int = 4,
    between: Callable[[Method], Method] = lambda method: method,
) -> Trace:
    """One step as a selector drives it; `between` may swap the method before every round (for save and restore)."""
    trace = Trace()
    while len(trace.kept) < batch_size:
        method = between(method)
        requests: Requests = method.propose(batch_size - len(trace.kept), step)
        if len(requests) == 0:
            break
        rows = requests.rows.tolist()
        assert len(set(rows)) == len(rows)
        assert not set(rows) & set(trace.observed), "a prompt was requested twice in one step"
        step.offered += [row for row in rows if row not in step.offered]
        method = between(method)
        groups = passing(rows, [passes(row) for row in rows], group_size, policy_version=step.policy_version)
        verdicts = method.judge(groups, step)
        method.observe(groups, step)
        trace.rounds.append(rows)
        trace.observed += rows
        trace.kept += groups.rows[verdicts.keep].tolist()
        step.round += 1
    return trace
