"""What every method promises to the selector and to whoever runs it, as tests. Inherit from `Conformance`; give it `make`.

Each test makes methods of its own, runs them through a real `Selector` in a `World` that serves every signal edgewise names,
and says in its failure what was seen and what to do. Strict mode throughout: whatever a method raises fails the test.
"""

from __future__ import annotations

import json
import math
import tempfile
from abc import abstractmethod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from edgewise.method import Method
from edgewise.selector import Selector
from edgewise.testing.drive import Asked, Size, selector_of, settled, steps, stream
from edgewise.testing.elsewhere import asked_elsewhere
from edgewise.testing.waste import share_of, uniform_share
from edgewise.testing.watch import Rule, Watched, held_bytes
from edgewise.testing.world import World
from edgewise.types import Array

_PROMPTS = 96
_SLACK = 4
"""Bytes a report by which what is held may differ: half of one number, so that keeping one number a report is found."""


class Conformance:
    """Inherit, name the class `Test...`, define `make`. Declare what a method does otherwise on purpose, with the reason."""

    deterministic: str = ""
    """Why another seed may give the same batches, for a method that uses neither the stream nor a draw."""
    may_waste: str = ""
    """Why the method may waste more rollouts than uniform, such as "a control"."""
    may_prefer_unmeasured: str = ""
    """Why prompts whose signals are NaN may be asked for before others."""
    may_ask_for_less: str = ""
    """Why it may propose fewer prompts than there is room for while there are enough."""
    size: Size = Size()
    long_run: int = 1_000
    """Reports after which nothing may have grown."""
    orders: int = 10
    """Orders of arrival that are tried."""
    waste_groups: int = 400
    """Groups of each of the two comparisons with uniform."""

    @abstractmethod
    def make(self) -> Method:
        """A new method, not started; every call gives an equal one."""

    # -- what it asks for ----------------------------------------------------------------------------------------------

    def test_asked_for_n_it_gives_n_distinct_prompts(self) -> None:
        world = World(_PROMPTS)
        watched, asked = self._run(world, 6)
        for number, rounds in enumerate(asked):
            for batch in rounds:
                rows = [row for row, _ in batch]
                _require(len(set(rows)) == len(rows), f"step {number} asked twice for one prompt: {rows}")
            if not self.may_ask_for_less:
                first = len(watched.asked[0][0]) if number == 0 else len(rounds[0]) if rounds else 0
                _require(
                    first >= self.size.batch_size,
                    f"step {number} asked for {first} prompts with room for {self.size.batch_size} and {_PROMPTS} to choose "
                    "from. Fill up with the least bad ones, or declare `may_ask_for_less`",
                )
        taken = stream(self._selector(world), world, 5)
        if not self.may_ask_for_less:
            found = [len(batch) for (batch,) in taken]
            _require(found == [4] * 5, f"five times asked for 4 prompts of {_PROMPTS}, `take` gave {found}")

    def test_a_prompt_in_flight_is_not_asked_for(self) -> None:
        world = World(_PROMPTS)
        selector = self._selector(world)
        flying: set[int] = set()
        for _ in range(12):
            (batch,) = stream(selector, world, 1, n=6, most=30)[0]
            asked = {row for row, _ in batch}
            _require(
                not asked & flying, f"asked for prompts in flight: {sorted(asked & flying)}. Use step.draw or step.eligible"
            )
            flying = {ticket.row for ticket in selector.in_flight}

    def test_the_same_seed_asks_for_the_same(self) -> None:
        world = World(_PROMPTS)
        self._same(self._run(world, 6)[1], self._run(world, 6)[1], "two runs of one seed")
        self._same(
            stream(self._selector(world), world, 12), stream(self._selector(world), world, 12), "two streams of one seed"
        )

    def test_another_process_asks_for_the_same(self) -> None:
        try:
            there = asked_elsewhere(self.make(), _PROMPTS, self.size, 6)
        except ValueError as error:
            _skip(str(error))
        _require(not isinstance(there, str), f"the method could not be run in another process:\n{there}")
        self._same(self._run(World(_PROMPTS), 6)[1], there, "this process and one with other hashes")  # type: ignore[arg-type]

    def test_another_seed_asks_otherwise(self) -> None:
        if self.deterministic:
            _skip(f"declared deterministic: {self.deterministic}")
        world = World(_PROMPTS)
        runs = [steps(self._selector(world, seed=seed), world, 3) for seed in (0, 1, 2)]
        _require(
            runs[0] != runs[1] or runs[0] != runs[2],
            "three seeds asked for the same prompts. Draw from step.draw or step.rng, or declare `deterministic`",
        )

    # -- what it remembers ---------------------------------------------------------------------------------------------

    def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(self) -> None:
        for missing in (0.0, 0.2):
            world = World(_PROMPTS, missing=missing)
            selector = self._selector(world)
            steps(selector, world, 5)
            resumed = self._resumed(selector, world)
            self._same(steps(selector, world, 5), steps(resumed, world, 5), "a run and the same run resumed after 5 steps")
            self._same_state(selector, resumed, *_RESUMED)

    def test_a_resumed_stream_goes_on_as_if_it_had_never_stopped(self) -> None:
        world = World(_PROMPTS)
        selector = self._selector(world)
        stream(selector, world, 10)
        resumed = self._resumed(selector, world)
        self._same(stream(selector, world, 10), stream(resumed, world, 10), "a stream and the same stream resumed in flight")
        self._same_state(selector, resumed, *_RESUMED)

    def test_parameters_build_the_same_method(self) -> None:
        method = self.make()
        parameters = method.parameters()
        try:
            read = json.loads(json.dumps(parameters, allow_nan=False))
        except (TypeError, ValueError) as error:
            _fail(f"parameters() must be finite numbers, text, True, False or None: {error}")
        _require(read == parameters, f"parameters() do not survive JSON: {parameters} became {read}")
        again = type(method)(**read)
        _require(
            again.parameters() == parameters, f"built from its own parameters it has others: {parameters}, {again.parameters()}"
        )

    def test_the_state_is_plain_arrays(self) -> None:
        self._unbroken("plain")

    def test_nothing_grows_with_the_steps(self) -> None:
        world = World(32)
        size = Size(2, 2, self.long_run)
        method = self.make()
        selector = selector_of(method, world, size)
        held = []
        for _ in range(2):
            stream(selector, world, self.long_run // 2, n=2, most=2)
            state = method.state()
            kept = sum(np.asarray(array).nbytes for array in (*state.prompts.values(), *state.shared.values()))
            held.append((kept, held_bytes(method)))
        for what, before, after in zip(("state()", "the method"), *held, strict=True):
            _require(
                after <= 1.01 * before + _SLACK * (self.long_run // 2),
                f"{what} held {before:,} bytes after {self.long_run // 2:,} reports and {after:,} after {self.long_run:,}. "
                "Bound what is kept",
            )

    # -- what it leaves alone ------------------------------------------------------------------------------------------

    def test_what_it_is_given_stays_as_it_was(self) -> None:
        self._unbroken("input")

    def test_proposing_and_judging_change_no_belief(self) -> None:
        self._unbroken("belief")

    def test_observing_writes_only_at_the_visited_rows(self) -> None:
        self._unbroken("visited")

    # -- what outcomes may do ------------------------------------------------------------------------------------------

    def test_the_order_in_which_outcomes_arrive_does_not_matter(self) -> None:
        """Orders drawn at random, cut into other calls each, some outcomes late: the state of ticket order, bit for bit."""
        for streaming in (True, False):
            if streaming and self.make().arrival_order_matters:
                continue
            world = World(_PROMPTS, missing=0.1)
            expected = settled(self._selector(world), world, None, streaming=streaming)
            for seed in range(self.orders):
                order = np.random.default_rng([15, seed])
                other = settled(self._selector(world), world, order, streaming=streaming)
                what = "a run, and the same whose outcomes came in another order and other calls,"
                advice = "Declare `arrival_order_matters` where that is meant"
                self._same_state(expected, other, what, advice)
                self._same_books(expected, other, what, advice)

    def test_it_learns_from_late_outcomes(self) -> None:
        """Outcomes of expired tickets, of prompts that are in flight again, come and come twice: each teaches once."""
        for missing in (0.0, 0.2):
            world = World(24, missing=missing)
            watched = Watched(self.make())
            selector = selector_of(watched, world, self.size)
            settled(selector, world, np.random.default_rng(16), streaming=True)
            first = {ticket.seq for ticket in watched.learned}
            _require(len(first) == len(watched.learned), "it was given the same group twice")
            _require(selector._totals["late_outcomes"] > 0, "no outcome was late: the world is too small")
            self._report(watched)

    # -- what it survives ----------------------------------------------------------------------------------------------

    def test_signals_that_are_missing_never_win(self) -> None:
        """Half of the prompts have no signal. Of 8 pools, with prompts unmeasured at random in each, at most 80 % of the asked.

        If a method does not care, the share in one pool has a deviation of at most .5, however few prompts it sticks to, and
        the mean of 8 one of .18. The usual deviation, over more than 15 prompts a pool, is below .05: .8 is 6 of these away.
        """
        watched = Watched(self.make())
        if not watched.needs:
            _skip("it needs no signal")
        asked = unmeasured = 0
        for seed in range(8):
            lost = np.random.default_rng([seed, 13]).permutation(_PROMPTS) < _PROMPTS // 2
            world = World(_PROMPTS, seed=seed, unmeasured=lost)
            for rounds in self._survives(world, 3):
                for batch in rounds:
                    asked += len(batch)
                    unmeasured += sum(bool(lost[row]) for row, _ in batch)
        self._survives(World(_PROMPTS, unmeasured=np.ones(_PROMPTS, dtype=np.bool_)), 3)
        _require(
            bool(self.may_prefer_unmeasured) or unmeasured <= 0.8 * asked,
            f"{unmeasured} of {asked} prompts asked for had no signal, where half of the pool has none. Rank NaN last",
        )

    def test_it_survives_a_pool_that_always_passes_or_never(self) -> None:
        for rate in (1.0, 0.0):
            world = World(_PROMPTS, pass_rates=np.full(_PROMPTS, rate))
            self._run(world, 5)
            stream(self._selector(world), world, 8)

    def test_it_survives_a_pool_of_one_batch_and_of_one_prompt(self) -> None:
        for prompts in (self.size.batch_size, 1):
            world = World(prompts)
            size = Size(prompts, self.size.group_size)
            steps(selector_of(self.make(), world, size), world, 6)
            stream(selector_of(self.make(), world, size), world, 6, n=2, most=2)

    def test_it_survives_groups_of_two(self) -> None:
        world = World(_PROMPTS)
        size = Size(self.size.batch_size, 2)
        steps(selector_of(self.make(), world, size), world, 6)
        stream(selector_of(self.make(), world, size), world, 8)

    def test_it_survives_missing_and_ragged_rollouts(self) -> None:
        for missing in (0.3, 1.0):
            world = World(_PROMPTS, missing=missing)
            watched, _ = self._run(world, 6)
            self._report(watched)
            stream(self._selector(world), world, 12)

    # -- what it is for ------------------------------------------------------------------------------------------------

    def test_it_wastes_no_more_than_uniform(self) -> None:
        """Share of responses in mixed groups on frozen policies, prompt entropy being high for hard prompts, or for easy ones.

        Four pools each. The bar lies four deviations below uniform's share: 4 · .5 · sqrt(1/m + 1/u) for m and u distinct
        prompts, more than the chances of two choices and their rollouts come to, however few prompts a method sticks to.
        A method exactly as wasteful as uniform fails once in 3e4 pairs of runs; the seeds are fixed, so it does not flicker.
        """
        if self.may_waste:
            _skip(f"it may waste: {self.may_waste}")
        for entropy_difficulty in (0.75, -0.75):
            share, prompts = share_of(self.make, entropy_difficulty, self.waste_groups)
            uniform, others = uniform_share(entropy_difficulty, self.waste_groups)
            bar = uniform - 4.0 * 0.5 * math.sqrt(1.0 / max(1, prompts) + 1.0 / others)
            _require(
                share >= bar,
                f"{share:.0%} of its responses lay in mixed groups ({prompts} prompts), of uniform's {uniform:.0%}: below "
                f"{bar:.0%}, which chance reaches once in 3e4. Declare `may_waste` where that is meant",
            )

    # -- runs ----------------------------------------------------------------------------------------------------------

    def _selector(self, world: World, *, seed: int = 0) -> Selector:
        return selector_of(self.make(), world, self.size, seed=seed)

    def _run(self, world: World, n: int) -> tuple[Watched, Asked]:
        watched = Watched(self.make())
        return watched, steps(selector_of(watched, world, self.size), world, n)

    def _survives(self, world: World, n: int) -> Asked:
        """A run in which problems are lived with; the method itself must not fail."""
        selector = selector_of(self.make(), world, self.size, on_problem="degrade")
        made: Asked = []
        for _ in range(n):
            made += steps(selector, world, 1)
            _require(
                not selector.metrics.get("degraded"),
                "the method failed where prompts have no signal (NaN) and was replaced by uniform. Report what cannot be used "
                "by step.problem and go on without",
            )
        return made

    def _resumed(self, selector: Selector, world: World) -> Selector:
        other = self._selector(world)
        with tempfile.TemporaryDirectory() as folder:
            selector.save(Path(folder) / "state")
            other.restore(Path(folder) / "state")
        return other

    def _unbroken(self, rule: Rule) -> None:
        """No breach of one rule in steps, in a stream, and where rollouts are missing."""
        for missing in (0.0, 0.2):
            world = World(_PROMPTS, missing=missing)
            for drive in (steps, stream):
                watched = Watched(self.make())
                drive(selector_of(watched, world, self.size), world, 6)
                self._report(watched, rule)

    def _report(self, watched: Watched, *rules: Rule) -> None:
        for rule in rules:
            found = watched.broken[rule]
            _require(not found, f"{len(found)} times, first: {found[0] if found else ''}")

    def _same(self, one: Asked, other: Asked, what: str) -> None:
        for number, (here, there) in enumerate(zip(one, other, strict=True)):
            _require(here == there, f"{what} differ first in step {number}:\n  {here}\n  {there}")

    def _same_state(self, one: Selector, other: Selector, what: str, advice: str) -> None:
        one.settle()
        other.settle()
        here, there = one.method.state(), other.method.state()
        for part in ("prompts", "shared"):
            arrays: dict[str, Array] = getattr(here, part)
            others: dict[str, Array] = getattr(there, part)
            _require(
                arrays.keys() == others.keys(),
                f"state().{part} of {what} holds other names: {sorted(arrays)}, {sorted(others)}",
            )
            for name, array in arrays.items():
                _require(
                    np.array_equal(array, others[name], equal_nan=np.asarray(array).dtype.kind == "f"),
                    f"{what} differ in the method's state().{part}[{name!r}]. {advice}",
                )

    def _same_books(self, one: Selector, other: Selector, what: str, advice: str) -> None:
        """The selector's own part: groups that wait, retired prompts, what is free, what was measured of the premise."""
        mine, others = ({**s._premise.arrays(), **_begun(s)} for s in (one, other))
        _require(mine.keys() == others.keys(), f"{what} differ in the groups that wait. {advice}")
        for name, array in mine.items():
            same = np.array_equal(array, others[name], equal_nan=np.asarray(array).dtype.kind == "f")
            _require(same, f"{what} differ in the selector's {name}. {advice}")


_RESUMED = ("the method and the resumed one", "Keep in state() all that later steps depend on")


def _begun(selector: Selector) -> dict[str, Array]:
    """What the selector keeps of groups that wait, of retired prompts, and of prompts that cannot be asked for, as arrays."""
    waiting = [selector._waiting[seq] for seq in selector._waiting.seqs]
    kept: dict[str, Array] = {
        "waiting": np.array([(b.first.seq, b.wanted, b.not_before, -1 if b.asked is None else b.asked) for b in waiting]),
        "retired": np.sort(selector._retired.rows),
        "blocked": selector._blocked,
        "next ticket": np.array(selector._next_seq),
        "rollouts asked for": np.array(selector._totals["rollouts_total"]),
    }
    for begun in waiting:
        kept[f"rewards of the group of ticket {begun.first.seq}"] = begun.group.rewards
    return kept


def _require(condition: Any, otherwise: str) -> None:
    if not condition:
        _fail(otherwise)


def _fail(message: str) -> NoReturn:
    raise AssertionError(message + "." * (not message.endswith((".", "\n"))))


def _skip(why: str) -> NoReturn:
    import pytest

    pytest.skip(why)
