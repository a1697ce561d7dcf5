"""`Composed`: any belief with any score, chooser and allocator, in a real selector; and what is refused."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

import edgewise
from edgewise.allocators import OBJECTIVES, Greedy
from edgewise.allocators import Uniform as Evenly
from edgewise.beliefs.beta import BetaBelief
from edgewise.beliefs.last import LastRate
from edgewise.choosers.rank import InOrder, Proportional, Softmax, TopK
from edgewise.compose import BELIEFS, SECTIONS
from edgewise.errors import ConfigError, StateMismatchError
from edgewise.methods.user import Composed
from edgewise.scores import ExpectedMixed, NearTarget, SqrtVariance, WeightedInformation
from edgewise.testing import Conformance
from edgewise.testing.drive import Size, selector_of, steps, stream
from edgewise.testing.world import World

WORLD = World(24)
SMALL = Size(batch_size=3, group_size=2)
NEGATIVE = {("near_target", "proportional")}
"""Pairs that cannot work: chances in proportion to a score that is never above 0."""
ALLOCATIONS: list[Any] = [None, "uniform", {"kind": "greedy", "objective": "expected_mixed"}]


# -- any with any ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("belief", BELIEFS)
def test_every_belief_runs_with_every_score_chooser_and_allocator(belief: str) -> None:
    """Strict: the first problem raises. Two steps, the second of which has something to believe."""
    for score, chooser, allocator in itertools.product(SECTIONS["score"], SECTIONS["chooser"], ALLOCATIONS):
        parts = {"belief": belief, "score": score, "chooser": chooser, "allocator": allocator}
        if (score, chooser) in NEGATIVE:
            with pytest.raises(ConfigError, match="every score must be at least 0"):
                edgewise.compose(parts)
            continue
        selector = selector_of(edgewise.compose({**parts, "candidates": "pool"}), WORLD, SMALL)
        made = steps(selector, WORLD, 2)
        assert all(sum(n for _, n in rounds[0]) == 6 and len(rounds[0]) == 3 for rounds in made), parts


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("belief", BELIEFS)
def test_every_belief_runs_with_every_objective(belief: str, objective: str) -> None:
    allocator = {"kind": "greedy", "objective": objective}
    method = edgewise.compose({"belief": belief, "score": "expected_mixed", "allocator": allocator, "candidates": "random"})
    made = steps(selector_of(method, WORLD, Size(batch_size=4, group_size=3)), WORLD, 3)
    assert [sum(n for _, n in rounds[0]) for rounds in made] == [12, 12, 12]


def test_later_rounds_share_out_what_the_batch_lacks_so_that_no_kept_group_is_cut_off() -> None:
    """Half of the prompts never pass, the others do by a coin. Groups that are dropped get few rollouts; were those that take
    their places given the mean, the batch would hold more rollouts than are trained, and lose groups that were paid for."""
    method = Composed(belief=BetaBelief(), score=SqrtVariance(), chooser=InOrder(), allocator=Greedy(objective="cures"),
                      spread=1.0, gate="reward", max_rounds=6)  # fmt: skip
    selector = edgewise.Selector(method, [{"prompt": str(i)} for i in range(128)], batch_size=16, group_size=8)
    coin, full = np.random.default_rng(0), 0
    for number in range(30):
        with selector.step(policy_version=number) as step:
            for tickets in step.requests():
                passed = [(coin.random(t.rollouts) < 0.5) & (t.row % 2 == 1) for t in tickets]
                step.report([edgewise.Outcome(ticket=t, rewards=p.tolist()) for t, p in zip(tickets, passed, strict=True)])
            assert len(step.training_batch) == 16 - step.missing
            assert step.training_batch.trained.sum() <= 128
            full += step.missing == 0
    assert full > 5


@pytest.mark.parametrize("run", [steps, stream])
@pytest.mark.parametrize("belief", BELIEFS)
def test_every_belief_goes_on_alike_after_a_restore(belief: str, run: Any, tmp_path: Any) -> None:
    world = World(40, missing=0.2)

    def selector() -> edgewise.Selector:
        method = edgewise.compose({"belief": belief, "score": "expected_mixed", "chooser": "softmax", "thompson": True})
        return selector_of(method, world, Size(batch_size=5, group_size=3))

    one, other = selector(), selector()
    run(one, world, 5)
    one.save(tmp_path / "state")
    other.restore(tmp_path / "state")
    assert run(one, world, 5) == run(other, world, 5)


class FromParameters(Composed):
    """A composition built from its own flat parameters, so that the suite can build it again, here and in another process."""

    def __init__(self, **parameters: Any) -> None:
        vars(self).update(vars(edgewise.compose(parameters)))


class TestConformance(Conformance):
    """The promises that every method keeps."""

    long_run = 100

    def make(self) -> Composed:
        method = Composed(
            belief=BetaBelief(decay=0.5),
            score=ExpectedMixed(),
            chooser=Proportional(),
            allocator=Greedy(objective="expected_mixed"),
            candidates="random",
            gate="reward",
            oversample=1.5,
            max_rounds=4,
        )
        return FromParameters(**method.parameters())


def test_it_chooses_as_the_paper_made_of_the_same_parts() -> None:
    """MoPPS without its draw is Beta(½) × nearest to ½ × the best of 8 candidates of the stream."""
    parts = {"belief": BetaBelief(decay=0.5), "score": NearTarget(), "chooser": TopK(), "spread": 8.0}
    world, size = World(80), Size(batch_size=6, group_size=4)
    composed, paper = (selector_of(m, world, size) for m in (Composed(**parts), edgewise.make("mopps-mean")))
    assert steps(composed, world, 12) == steps(paper, world, 12)


# -- what is saved -----------------------------------------------------------------------------------------------------


def test_parameters_are_flat_and_name_every_part() -> None:
    method = Composed(belief=BetaBelief(decay=0.5), score=WeightedInformation(eta=2.0), allocator=Evenly(), spread=4)
    found = method.parameters()
    parts = {key: value for key, value in found.items() if key.split(".")[0] in SECTIONS and not key.startswith("belief.")}
    assert parts == {
        "belief": "beta",
        "score": "weighted_information",
        "score.eta": 2.0,
        "score.mu": 0.3,
        "chooser": "top_k",
        "allocator": "uniform",
    }
    assert (found["belief.decay"], found["spread"], found["gate"]) == (0.5, 4, "off")


def test_a_state_of_other_parts_is_refused_by_name(tmp_path: Any) -> None:
    def selector(eta: float) -> edgewise.Selector:
        return selector_of(Composed(belief=BetaBelief(), score=WeightedInformation(eta=eta)), WORLD, SMALL)

    selector(3.0).save(tmp_path / "state")
    with pytest.raises(StateMismatchError, match=r"score\.eta"):
        selector(2.0).restore(tmp_path / "state")


def test_a_belief_given_to_two_methods_is_two_beliefs() -> None:
    belief = BetaBelief()
    one, other = (selector_of(Composed(belief=belief, score=ExpectedMixed()), WORLD, SMALL) for _ in range(2))
    steps(one, WORLD, 2)
    assert one.method.belief.visits.sum() == 6
    assert other.method.belief.visits.sum() == 0
    assert not hasattr(belief, "visits")


def test_needs_are_those_of_the_belief() -> None:
    assert Composed(belief=BetaBelief(prior="signal"), score=ExpectedMixed()).needs == {"pass_rate_prior"}
    assert Composed(belief=LastRate(), score=ExpectedMixed()).needs == frozenset()


# -- parts of one's own ------------------------------------------------------------------------------------------------


def shortfall(prediction: Any, rollouts: int) -> Any:
    """A score of one's own: how far a prompt is from solved."""
    del rollouts
    return 1.0 - prediction.mean


@dataclass(frozen=True)
class Cubed:
    """A score with a hyper-parameter."""

    name: ClassVar[str] = "cubed"
    power: float = 3.0

    def __call__(self, prediction: Any, rollouts: int) -> Any:
        del rollouts
        return prediction.mean**self.power


def test_functions_and_dataclasses_are_parts() -> None:
    method = Composed(belief=BetaBelief(), score=shortfall, chooser=Softmax(temperature=0.1))
    assert method.parameters()["score"] == f"{__name__}.shortfall"
    assert len(steps(selector_of(method, WORLD, SMALL), WORLD, 3)) == 3
    own = Composed(belief=BetaBelief(), score=Cubed(power=2.0)).parameters()
    assert (own["score"], own["score.power"]) == ("cubed", 2.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"belief": "beta"}, "Composed(belief=...) must be a Belief, got 'beta'. Names are for edgewise.compose("),
        ({"belief": BetaBelief}, "Build it: BetaBelief(...)."),
        ({"score": ExpectedMixed}, "Composed(score=...) must be a function or an object that can be called"),
        ({"chooser": None}, "Composed(chooser=...) must be a function or an object that can be called, got None."),
        ({"score": lambda prediction: prediction.mean}, "Composed(score=...) failed when it was tried"),
        ({"score": lambda prediction, n: prediction.mean[:2]}, "it must give (6,) floats"),
        ({"score": lambda prediction, n: prediction.mean * np.nan}, "it must be finite"),
        ({"score": NearTarget(), "chooser": Proportional()}, "Composed(chooser=...) (with score 'near_target') failed"),
        ({"chooser": lambda scores, most, rng: np.zeros(most, dtype=np.int64)}, "at most 4 distinct positions of 6"),
        ({"chooser": lambda scores, most, rng: scores}, "must give whole positions (m,)"),
        ({"allocator": lambda believed, budget, size: np.full(len(believed), size + 1)}, "sum to the budget of 16"),
        ({"allocator": lambda believed, budget, size: np.array([budget])}, "it must give (4,) whole numbers"),
        ({"allocator": lambda believed, budget, size: np.array([0, 8, 4, 4])}, "must give at least one rollout"),
        ({"score": Cubed(power=np.ones(2))}, "power of cubed must be a finite number, text, True, False or None"),  # type: ignore[arg-type]
        ({"spread": 0.5}, "Composed(spread=...) must be a number of at least 1"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_built(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Composed(**{"belief": BetaBelief(), "score": ExpectedMixed(), **given})
