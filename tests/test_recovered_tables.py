"""Tables in a journal: rows by key, where one key may have several rows (the parts of a group that waits)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.deltas import Base, applied
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
