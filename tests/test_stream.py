"""The shuffled stream of prompts: as it always was, and when the data set is edited in the middle of a pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.stream import PromptStream, Slots, derived_rng
from tests import ledger


def test_without_an_edit_the_stream_is_that_of_before() -> None:
    """The order as the first version computed it, position by position."""
    size, seed = 37, 5
    stream = PromptStream(size, seed)
    orders = [derived_rng(seed, epoch, purpose="stream").permutation(size) for epoch in range(4)]
    drawn = [int(stream.draw(1, np.zeros(size, dtype=np.bool_))[0]) for _ in range(4 * size)]
    assert drawn == np.concatenate(orders).tolist()
    assert stream.slots.arrays() == {}
    assert (stream.position, stream.epoch, stream.passes(0), stream.passes(200)) == (148, 4, 4.0, 200 / 37)


class Passes:
    """A stream of prompts by name, through edits, beside a plain model of who had their turn in which pass."""

    def __init__(self, names: list[str], seed: int) -> None:
        self.names, self.seed, self.stream = names, seed, PromptStream(len(names), seed)
        self.parked: dict[str, int] = {}
        self.turns: dict[int, list[str]] = {}
        self.there: dict[int, list[set[str]]] = {0: [set(names)]}

    def draw(self, n: int) -> list[str]:
        drawn = []
        for _ in range(n):
            row = int(self.stream.draw(1, np.zeros(len(self.names), dtype=np.bool_))[0])
            epoch = self.stream.slots.where(self.stream.position - 1, len(self.names))[0]
            self.there.setdefault(epoch, [set(self.names)])
            self.turns.setdefault(epoch, []).append(self.names[row])
            drawn.append(self.names[row])
        return drawn

    def edit(self, names: list[str], seed: int | None = None) -> None:
        before, position = self.stream, self.stream.position
        then = {name: row for row, name in enumerate(self.names)}
        at = np.array([then.get(name, -1) for name in names])
        offered = np.array([self.parked.get(name, -1) for name in names])
        offered[at >= 0] = -1
        now = self.seed if seed is None else seed
        after = before.slots.edited(at, offered, position=position, offers=position, seeds=(self.seed, now))
        if not after.same_pass:
            self.parked = dict.fromkeys(self.parked, -1)
        self.parked |= {name: int(after.turns[row]) for name, row in then.items() if name not in names}
        self.parked = {name: slot for name, slot in self.parked.items() if name not in names}
        passes = before.passes(0)
        self.names, self.seed, self.stream = list(names), now, PromptStream(len(names), now)
        arrays = {name: np.array(array) for name, array in after.slots.arrays().items()}
        self.stream.become(position, Slots.restored(arrays, len(names), position))
        assert self.stream.passes(0) == pytest.approx(passes)
        self.there.setdefault(self.stream.epoch, []).append(set(names))

    def require_sound(self) -> None:
        """Nobody twice in a pass, nobody who was there all through a finished pass without a turn."""
        for epoch, turns in self.turns.items():
            assert len(set(turns)) == len(turns), f"pass {epoch}: somebody twice"
            if epoch < self.stream.epoch:
                stayed = self.there[epoch][-1]  # whoever was there when it ended, since whenever
                assert stayed <= set(turns), f"pass {epoch}: {stayed - set(turns)} skipped"


names = st.sets(st.integers(0, 25), min_size=1, max_size=20)


@settings(max_examples=ledger.cases(120, chaos=3000), deadline=None)
@given(
    first=names, seed=st.integers(0, 3),
    rounds=st.lists(st.tuples(st.integers(0, 30), names, st.integers(0, 5), st.booleans()), max_size=6),
)  # fmt: skip
def test_in_every_pass_everybody_has_one_turn(
    first: set[int], seed: int, rounds: list[tuple[int, set[int], int, bool]]
) -> None:
    """Any edits at any time: added prompts are in the pass under way, removed ones are not, nobody twice, nobody skipped."""
    run = Passes([str(i) for i in sorted(first)], seed)
    for drawn, then, shuffle, reseed in rounds:
        run.draw(drawn)
        order = np.random.default_rng(shuffle).permutation(sorted(then))
        run.edit([str(i) for i in order], seed=shuffle if reseed else None)
        run.require_sound()
    run.draw(3 * len(run.names))
    run.require_sound()


@settings(max_examples=ledger.cases(60, chaos=1000), deadline=None)
@given(size=st.integers(1, 20), offers=st.lists(st.integers(0, 45), min_size=1, max_size=4), shuffles=st.randoms())
def test_another_order_of_the_data_set_changes_nothing(size: int, offers: list[int], shuffles: Any) -> None:
    """The sequence of prompts of this and all later passes, and the count of passes to the last bit."""
    moved, still = Passes([str(i) for i in range(size)], 3), Passes([str(i) for i in range(size)], 3)
    for n in offers:
        assert moved.draw(n) == still.draw(n)
        moved.edit(shuffles.sample(moved.names, size))
        assert moved.stream.passes(0) == still.stream.passes(0)
    assert moved.draw(3 * size) == still.draw(3 * size)


def test_the_slots_do_not_grow_with_the_number_of_edits() -> None:
    """In every pass a fifth of the prompts is replaced; of those that left, nothing stays behind when the pass is over."""
    run = Passes([f"0-{i}" for i in range(50)], 0)
    for number in range(1, 200):
        run.draw(30)
        run.edit(run.names[10:] + [f"{number}-{i}" for i in range(10)])
        assert run.stream.slots.size <= 50 + 2 * 10 * 2
        run.turns = {}


def test_slots_that_no_stream_writes_are_refused() -> None:
    run = Passes([str(i) for i in range(9)], 0)
    run.draw(4)
    run.edit([str(i) for i in range(3, 12)])
    sound = run.stream.slots.arrays()
    Slots.restored(sound, 9, 4)
    wrong: list[dict[str, Any]] = [
        {"stream_slots": np.zeros_like(sound["stream_slots"])},
        {"stream_slots": sound["stream_slots"].astype(np.int64)},
        {"stream_edit": sound["stream_edit"][:4]},
        {"stream_edit": np.array([0, 5, 9, -1, 4])},
        {"stream_edit": np.array([0, 0, 99, -1, 4])},
        {"stream_edit": np.array([-1, 0, 9, -1, 4])},
        {"stream_passed": np.array([np.nan])},
        {"stream_passed": np.array([-1.0])},
    ]
    for change in wrong:
        with pytest.raises(ValueError, match=r"slots|numbers|position|passes"):
            Slots.restored({**sound, **change}, 9, 4)
    with pytest.raises(KeyError):
        Slots.restored({"stream_slots": sound["stream_slots"]}, 9, 4)
