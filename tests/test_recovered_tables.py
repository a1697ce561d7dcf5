"""Tables in a journal: rows by key, where one key may have several rows (the parts of a group that waits)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise import Selector
from edgewise.deltas import Base, applied
from edgewise.pool import PromptPool
from edgewise.saved import content
from edgewise.tickets import Packed, packed
from edgewise.types import Ticket
from tests.fixtures.make_states import CASES, standing

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.integers(0, 2)), max_size=8)


def table(rows: list[tuple[int, ...]]) -> Any:
    """Sorted by the first column; rows of one key stay in the order given."""
    return np.array(sorted(rows, key=lambda row: row[0]), dtype=np.int64).reshape(-1, 3)


@settings(max_examples=300, deadline=None)
@given(before=ROWS, after=ROWS)
def test_a_table_with_several_rows_a_key_comes_back_row_by_row(
    before: list[tuple[int, ...]], after: list[tuple[int, ...]]
) -> None:
    old, new, nothing = table(before), table(after), np.empty(0, dtype=np.int64)
    change, parts = Base({}, {"table/x": old}).difference({}, {"table/x": new}, nothing)
    assert applied({}, {"table/x": old.copy()}, change, parts)[1]["table/x"].tolist() == new.tolist()
    assert parts or old.tolist() == new.tolist()
    _, again = Base({}, {"table/x": new}).difference({}, {"table/x": new.copy()}, nothing)
    assert again == {}, "what did not change does not travel"


DISTINCT = st.dictionaries(st.integers(0, 12), st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=9)


@settings(max_examples=300, deadline=None)
@given(before=DISTINCT, after=DISTINCT)
def test_of_a_table_with_one_row_a_key_only_what_changed_travels(
    before: dict[int, tuple[int, int]], after: dict[int, tuple[int, int]]
) -> None:
    old, new = (table([(key, *row) for key, row in rows.items()]) for rows in (before, after))
    change, parts = Base({}, {"table/x": old}).difference({}, {"table/x": new}, np.empty(0, dtype=np.int64))
    assert applied({}, {"table/x": old.copy()}, change, parts)[1]["table/x"].tolist() == new.tolist()
    assert parts.get("gone/table/x", np.empty(0)).tolist() == sorted(before.keys() - after.keys())
    put = parts.get("put/table/x", np.empty((0, 3))).tolist()
    assert put == [[key, *after[key]] for key in sorted(after) if before.get(key) != after[key]]


def ticket(seq: int, row: int = 0) -> Ticket:
    predicted = None if seq % 3 else 0.25
    return Ticket(
        seq=seq, row=row, prompt_id=f"p{row}", step=seq, round=0, policy_version=7, rollouts=4, predicted_pass_rate=predicted
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 15), max_size=10, unique=True), max_size=6))
def test_tickets_are_packed_once_and_the_table_is_that_of_all(calls: list[list[int]]) -> None:
    kept = Packed()
    for seqs in calls:
        held = {seq: ticket(seq) for seq in seqs}
        made = kept.of(held)
        assert made.tolist() == packed(held.values()).tolist()
        assert kept.of(dict(reversed(held.items()))) is made
        assert not len(made) or not made.flags.writeable


def test_after_a_restore_the_same_numbers_name_other_tickets(tmp_path: Path) -> None:
    selector = Selector("uniform", PromptPool.from_ids([f"p{i}" for i in range(9)]), batch_size=2, group_size=2)
    selector.save(tmp_path / "empty")
    for version in (1, 2):
        tickets = selector.take(3, policy_version=version)
        selector.expire(tickets[:1])
        arrays = content(selector)[1]
        assert arrays["table/in_flight"].tolist() == packed(tickets[1:]).tolist()
        assert arrays["table/expired"].tolist() == packed(tickets[:1]).tolist()
        selector.restore(tmp_path / "empty")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.directory])
def test_every_commit_can_be_read_back_whatever_a_method_keeps(name: str, tmp_path: Path) -> None:
    """A copy of the folder after each commit is what a kill would leave: it says the same as the selector that goes on."""
    case = CASES[name]
    selector = case.selector(directory=tmp_path / "run")
    states = []
    for number in range(7):
        case.drive(selector, 1)
        copied = shutil.copytree(tmp_path / "run", tmp_path / str(number), ignore=shutil.ignore_patterns("writer-*"))
        again = case.selector(directory=copied)
        assert standing(again) == standing(selector), f"commit {number + 1}"
        held, live = again.method.state(), selector.method.state()
        for mine, theirs in ((held.prompts, live.prompts), (held.shared, live.shared)):
            assert mine.keys() == theirs.keys()
            assert all(np.asarray(mine[key]).tobytes() == np.asarray(theirs[key]).tobytes() for key in mine)
        again.close()
        states.append(standing(again))
    selector.close()
    assert len({state["step"] for state in states}) == 7
