"""From format 1 to format 2: tickets number by number, nothing of a header taken on trust.

What the code that wrote these states did next is tests/test_migrations.py; here stands what the tables must hold.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise import saved, state
from edgewise.errors import StateError
from edgewise.migrations import migrated
from tests.fixtures.make_states import CASES, FOLDER, standing
from tests.test_migrations import WRITTEN, raw, readable


def test_a_migration_changes_nothing_that_it_is_given() -> None:
    for folder in WRITTEN:
        for one in readable(folder):
            header, arrays = raw(one.files[-1])
            before = copy.deepcopy((header, {key: array.tobytes() for key, array in arrays.items()}))
            once = migrated(header, arrays, "a state")
            assert (header, {key: array.tobytes() for key, array in arrays.items()}) == before
            assert once[0]["format"] == state.FORMAT
            twice = migrated(*once, "a state")
            assert twice[0] == once[0]
            assert {key: array.tobytes() for key, array in twice[1].items()} == {
                key: array.tobytes() for key, array in once[1].items()
            }


def test_tickets_become_rows_of_a_table_number_by_number() -> None:
    header, arrays = raw(FOLDER / "format-1" / "2c925c5" / "patient-stream.safetensors")
    new_header, new = migrated(header, arrays, "a state")
    bits = [int(np.float64(t["predicted_pass_rate"]).view(np.int64)) for t in header["in_flight"]]
    assert new["table/in_flight"].tolist() == [
        [t["seq"], t["row"], t["step"], t["round"], t["policy_version"], t["rollouts"], bit, -1 if t["continues"] is None else
         t["continues"]]
        for t, bit in zip(header["in_flight"], bits, strict=True)
    ]  # fmt: skip
    assert all(array.dtype == np.int64 for name, array in new.items() if name.startswith("table/"))
    assert new["table/waiting"][:, 8:].tolist() == [
        [w["wanted"], w["not_before"], -1 if w["asked"] is None else w["asked"], len(w["parts"])] for w in header["waiting"]
    ]
    assert new["table/waiting_parts"].tolist() == [
        [w["ticket"]["seq"], *part] for w in header["waiting"] for part in w["parts"]
    ]
    assert len(new["table/waiting_parts"]) > len(header["waiting"]), "one group was continued twice"
    same = {name: value for name, value in header.items() if name not in ("in_flight", "waiting", "writer", "format")}
    assert {name: new_header[name] for name in same} == same


def test_no_prediction_stays_no_prediction_and_a_missing_version_is_that_of_the_newest_ticket() -> None:
    header, arrays = raw(FOLDER / "format-1" / "ae53ee6" / "hive-stream.safetensors")
    assert "policy_version" not in header
    assert all(ticket["predicted_pass_rate"] is None for ticket in header["in_flight"])
    new_header, new = migrated(header, arrays, "a state")
    assert new["table/in_flight"][:, 6].view(np.float64).tolist() == [-1.0] * len(header["in_flight"])
    assert new_header["policy_version"] == max(ticket["policy_version"] for ticket in header["in_flight"]) == 51
    empty, arrays = raw(FOLDER / "format-1" / "ae53ee6" / "empty.safetensors")
    assert migrated(empty, arrays, "a state")[0]["policy_version"] == 0


HOSTILE = (
    math.inf,
    None,
    True,
    1.5,
    -1,
    -(2**63) - 1,
    2**63,
    10**400,
    "1",
    "\ud800",
    [],
    [[]],
    {},
    {"seq": 1},
    [None],
    [0, 0, 0],
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in JSON: everywhere but at the top."""
    if path:
        yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield from places(item, (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy of `value` with something else at `path`."""
    changed = copy.deepcopy(value)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = new
    return changed


def test_whatever_stands_in_an_old_header_is_read_or_refused_as_a_state() -> None:
    header, arrays = raw(FOLDER / "format-1" / "2c925c5" / "patient-stream.safetensors")
    parts = [path for path in places(header) if path[0] in ("in_flight", "waiting", "policy_version")]
    refused = 0
    deep: Any = []
    for _ in range(2000):
        deep = [deep]
    for path in parts:
        for value in (*HOSTILE, deep):
            bad = {k: v for k, v in header.items() if k != path[0]} | {path[0]: header[path[0]]}
            bad = put(bad, path, value) if value is not deep else {**bad, path[0]: deep}
            try:
                new = migrated(bad, arrays, "a state")[1]
            except StateError:
                refused += 1
                continue
            assert all(new[name].dtype == np.int64 for name in new if name.startswith("table/"))
            given = header[path[0]]
            for key in path[1:]:
                given = given[key]
            if path[0] == "in_flight" and path[-1] not in ("prompt_id", "in_flight") and value != given:
                assert new["table/in_flight"].tolist() != migrated(header, arrays, "")[1]["table/in_flight"].tolist(), (
                    path,
                    value,
                )
    assert refused > 0.7 * len(parts) * len(HOSTILE)


def test_old_tickets_are_refused_where_they_stand_twice_or_groups_out_of_order() -> None:
    header, arrays = raw(FOLDER / "format-1" / "2c925c5" / "patient-stream.safetensors")
    for bad in (
        {"in_flight": header["in_flight"] + header["in_flight"][:1]},
        {"waiting": [header["waiting"][i] for i in (0, 2, 1, 3)]},  # their rollouts stand in arrays, in the order of the header
        {"waiting": header["waiting"][:1] * len(header["waiting"])},
        {"waiting": header["waiting"][:-1]},
    ):
        with pytest.raises(StateError, match="cannot be brought to format 2") as caught:
            migrated({**header, **bad}, arrays, "a state")
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize("predicted", [math.inf, math.nan, True, "0.5", [0.5]])
def test_an_old_prediction_that_is_none_is_refused(predicted: Any) -> None:
    header, arrays = raw(FOLDER / "format-1" / "2c925c5" / "hive-stream.safetensors")
    ticket = {**header["in_flight"][0], "predicted_pass_rate": predicted}
    with pytest.raises(StateError, match="a predicted pass rate is"):
        migrated({**header, "in_flight": [ticket]}, arrays, "a state")


def test_resting_prompts_come_out_by_row() -> None:
    header, arrays = raw(FOLDER / "format-1" / "2c925c5" / "resting.safetensors")
    resting = np.array([[7, 3], [2, 5], [11, 3]])
    assert migrated(header, {**arrays, "selector/retired": resting}, "")[1]["table/retired"].tolist() == [
        [2, 5],
        [7, 3],
        [11, 3],
    ]


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("selector/retired", np.zeros((2, 2), dtype=np.int64)),
        ("selector/retired", np.zeros((2, 3), dtype=np.int64)),
        ("selector/retired", np.zeros((1, 2))),
        ("selector/retired", np.array(3)),
        ("selector/waiting_asked", np.array(3)),
        ("selector/waiting_asked", np.array([np.nan, np.nan])),
        ("selector/waiting_asked", np.array([3, 1])),
        ("selector/waiting_asked", np.array([], dtype=np.int64)),
    ],
)
def test_whatever_stands_in_old_arrays_is_refused_as_a_state(name: str, array: Any) -> None:
    header, arrays = raw(FOLDER / "format-1" / "2c925c5" / "patient-stream.safetensors")
    with pytest.raises(StateError, match="cannot be brought to format 2"):
        migrated(header, {**arrays, name: array}, "a state")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("selector/premise_seen", np.array(2**63 - 1)),
        ("selector/premise_seen", np.array(-1)),
        ("selector/premise_seen", np.array(7)),
        ("selector/premise_seen", np.array(0.0)),
        ("selector/premise_seen", np.array([])),
        ("selector/premise", np.zeros((2, 3))),
        ("selector/premise", np.zeros((0, 2))),
        ("selector/premise", np.zeros((0, 3), dtype=np.int64)),
        ("selector/last_take", np.zeros((1, 1), dtype=np.int64)),
        ("table/in_flight", np.zeros((1, 8))),
        ("table/expired", np.zeros((1, 7), dtype=np.int64)),
        ("table/retired", np.array([[20, 0]])),
    ],
)
def test_arrays_that_no_selector_writes_are_refused_before_anything_changes(name: str, array: Any, tmp_path: Path) -> None:
    case = CASES["uniform-stream"]
    selector = case.selector()
    header, arrays = saved.content(selector)
    assert name in arrays
    state.save(tmp_path / "state", header, arrays | {name: array})
    case.drive(selector, 1)
    before = standing(selector)
    with pytest.raises(StateError, match="lacks something that a selector keeps"):
        selector.restore(tmp_path / "state")
    assert standing(selector) == before
    assert case.drive(selector, 1)[0]["rounds"][0], "it goes on"
