"""The bounded memory of prompts: what it keeps, what it forgets, whom it gives first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.errors import StateMismatchError
from edgewise.methods.memory import PromptMemory, draw_beside
from tests.fakes import FakeStep


def put(memory: PromptMemory, priority: dict[int, float], *, last: int = 0, seed: int = 0) -> None:
    rows = np.array(list(priority), dtype=np.int64)
    values = np.array(list(priority.values()), dtype=np.float64)
    memory.put(rows, values, np.zeros(len(rows), dtype=np.int64), last, np.random.default_rng(seed))


@settings(max_examples=60)
@given(st.lists(st.dictionaries(st.integers(0, 30), st.integers(0, 9), max_size=6), max_size=8), st.integers(1, 12))
def test_it_is_a_table_that_forgets_the_lowest(batches: list[dict[int, int]], capacity: int) -> None:
    """Against a dictionary: the same priorities survive (which of equal ones is chance)."""
    memory, table = PromptMemory(capacity), dict[int, int]()
    for batch in batches:
        put(memory, {row: float(value) for row, value in batch.items()})
        table |= batch
        keep = sorted(table.values(), reverse=True)[:capacity]
        assert sorted(memory.priority.tolist(), reverse=True) == keep
        assert (np.diff(memory.rows) > 0).all()
        held = dict(zip(memory.rows.tolist(), memory.priority.tolist(), strict=True))
        assert all(table[row] == value for row, value in held.items())
        table = {row: int(value) for row, value in held.items()}


def test_the_best_of_those_that_are_ready() -> None:
    memory = PromptMemory(10)
    put(memory, {4: 0.5, 2: 0.9, 7: 0.1, 1: 0.7})
    ready = memory.rows != 2
    assert memory.best(2, ready, np.random.default_rng(0)).tolist() == [1, 4]
    assert memory.best(9, np.zeros(4, dtype=bool), np.random.default_rng(0)).tolist() == []


def test_find_remove_ask() -> None:
    memory = PromptMemory(10)
    assert memory.find(np.array([3])).tolist() == [-1]
    put(memory, {4: 0.5, 2: 0.9, 7: 0.1})
    assert memory.find(np.array([7, 3, 2, 9, 0])).tolist() == [2, -1, 0, -1, -1]
    memory.ask(np.array([7, 2]))
    assert memory.asked.tolist() == [True, False, True]
    memory.remove(np.array([2, 5]))
    assert (memory.rows.tolist(), memory.asked.tolist()) == ([4, 7], [False, True])
    memory.remove_unanswered()
    assert (memory.rows.tolist(), memory.asked.tolist()) == ([4], [False])


def test_it_is_saved_whole() -> None:
    memory, other = PromptMemory(10), PromptMemory(10)
    put(memory, {4: 0.5, 2: 0.9}, last=6)
    memory.ask(np.array([4]))
    other.restore(memory.state())
    for name, array in memory.state().items():
        np.testing.assert_array_equal(other.state()[name], array)
    with pytest.raises(StateMismatchError, match="lacks memory_rows, memory_priority"):
        other.restore({})


def test_what_was_picked_past_the_stream_is_not_drawn_again() -> None:
    step = FakeStep(range(6))
    assert draw_beside(step, 3, np.array([0, 2])).tolist() == [1, 3, 4]
    assert draw_beside(step, 3, np.array([0, 2])).tolist() == [5]
    assert draw_beside(step, 0, np.array([0, 2])).tolist() == []
