"""Every byte of a run's files, cut off or flipped: the states read back are committed ones, and never silently others."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgewise import journal, state
from edgewise.deltas import Base, applied
from edgewise.directory import RunDirectory
from edgewise.errors import DegradedWarning, StateError
from edgewise.history import History
from tests import ledger
from tests.test_selector import run_step, selector

MOST = 1 << 20
ROWS = 12


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody cuts the power here."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


class Toy:
    """States of a made-up run: `step(k)` is what it looks like after k commits."""

    def __init__(self) -> None:
        self.committed: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.values = np.zeros((ROWS, 2))
        self.table = np.empty((0, 2), dtype=np.int64)

    def commit(self, directory: RunDirectory) -> None:
        step = len(self.committed) + 1
        rng = np.random.default_rng(step)
        rows = rng.choice(ROWS, 2, replace=False)
        self.values[rows] = rng.normal(size=(2, 2))
        keys = np.unique(np.append(rng.choice(self.table[:, 0], min(3, len(self.table)), replace=False), step)).astype(np.int64)
        self.table = np.stack([keys, keys % 3], axis=1)
        header = {"step": step, "numbers": {"a": step / 2}}
        arrays = {
            "method/prompts/values": self.values,
            "method/shared/growing": np.arange(step, dtype=np.int64),
            "table/t": self.table,
        }
        directory.commit(header, arrays, rows)
        self.committed[step] = (header, {name: array.copy() for name, array in arrays.items()})

    def holds(self, recovered: Any) -> bool:
        """Whether a state read back is, bit for bit, the one that was committed as its step."""
        header, arrays = self.committed[recovered.header["step"]]
        same = recovered.arrays.keys() == arrays.keys() and all(
            recovered.arrays[name].tobytes() == array.tobytes() and recovered.arrays[name].shape == array.shape
            for name, array in arrays.items()
        )
        return same and all(recovered.header[name] == value for name, value in header.items())


def begun(path: Path, commits: int) -> Toy:
    """A closed run of so many commits: a snapshot, one more behind a journal of one record, and a journal of the rest."""
    toy, directory = Toy(), RunDirectory(path, MOST)
    for _ in range(commits):
        toy.commit(directory)
    directory.close()
    return toy


def test_a_journal_cut_at_any_offset_leaves_the_states_of_its_whole_records(tmp_path: Path) -> None:
    toy = begun(tmp_path, 52)
    (file,) = sorted(tmp_path.glob("*.journal"))[-1:]
    whole = journal.scan(file, MOST)
    ends = np.array([record.payload.stop for record in whole.records])
    assert len(ends) == 50
    cuts = np.arange(len(whole.data) + 1)[:: ledger.cases(17, chaos=1)]
    held = 0
    for cut in cuts[::-1].tolist():
        os.truncate(file, cut)
        records = int((ends <= cut).sum())
        history = History.of(tmp_path, MOST)
        (scan,) = (scan for found, scan in history.journals if found.path == file)
        sound = len(scan.records) == records and scan.bad == cut - (ends[records - 1] if records else 0)
        sound &= scan.torn or not scan.bad
        sound &= history.nodes()[0].step == 2 + records
        if cut % 8 == 0:
            recovered = history.newest()
            sound &= recovered is not None and recovered.node.step == 2 + records and toy.holds(recovered)
        assert not history.broken, "a torn tail is no damage"
        held += sound
    ledger.note(2, tried=len(cuts), held=held, truncations=len(cuts))


def test_a_run_goes_on_behind_a_journal_cut_anywhere(tmp_path: Path) -> None:
    """Reopened, the tail is kept and its bytes are said; the next commit and the next opening are sound."""
    twin = selector()
    expected = [run_step(twin, k) for k in range(12)]
    first = selector(directory=tmp_path / "run")
    for k in range(9):
        run_step(first, k)
    first.close()
    (file,) = sorted((tmp_path / "run").glob("*.journal"))[-1:]
    scan = journal.scan(file, MOST)
    starts = [record.at for record in scan.records] + [scan.good]
    cuts = {start + near for start in starts for near in (-1, 0, 1, journal.FRAME) if 0 <= start + near <= scan.good}
    cuts |= set(np.random.default_rng(ledger.seed()).integers(0, scan.good, ledger.cases(6, chaos=300)).tolist())
    for cut in sorted(cuts):
        copy = tmp_path / str(cut)
        shutil.copytree(tmp_path / "run", copy)
        os.truncate(copy / file.name, cut)
        whole = max(start for start in starts if start <= cut)
        step = 2 + starts.index(whole)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            second = selector(directory=copy)
        kept = list(copy.glob("*.torn"))
        messages = [str(warning.message) for warning in said]
        lost = step < 9  # even where it is cut between two records: the writer before said how far it was
        assert [f"made commit 9, the newest found is {step}" in message for message in messages].count(True) == lost
        if cut == whole:
            assert len(messages) == lost
            assert not kept
        else:
            assert f"{cut - whole:,} bytes from byte {whole:,} on" in str(said[0].message)
            assert [torn.read_bytes() for torn in kept] == [scan.data[whole:cut]]
        assert second.step_number == step
        assert [run_step(second, k) for k in range(step, 10)] == expected[step:10]
        second.close()
        third = selector(directory=copy)
        assert [run_step(third, k) for k in range(10, 12)] == expected[10:12]
        third.close()
        shutil.rmtree(copy)
    ledger.note(2, tried=len(cuts), held=len(cuts), truncations=len(cuts))


def test_a_flipped_bit_anywhere_never_gives_another_state(tmp_path: Path) -> None:
    """What comes back is the newest state, or an older one and a word on which file is damaged and where, or an error."""
    toy = begun(tmp_path, 8)
    newest, tried, older, held = 8, 0, 0, 0
    stride = ledger.cases(8, chaos=1)
    for file in sorted(tmp_path.glob("selector-*")):
        data = file.read_bytes()
        for at in range(0, len(data), stride):
            for mask in (0x01, 0x80):
                flipped = bytearray(data)
                flipped[at] ^= mask
                file.write_bytes(flipped)
                history = History.of(tmp_path, MOST)
                recovered = history.newest()
                tried += 1
                assert recovered is not None, "there is another snapshot"
                assert toy.holds(recovered), f"byte {at} of {file.name}: another state"
                if recovered.node.step < newest:
                    older += 1
                    torn = [scan.good for found, scan in history.journals if found.path == file and scan.bad]
                    held += any(file.name in text and "byte" in text for text in history.broken) or bool(torn)
                else:
                    held += 1
        file.write_bytes(data)
    assert older, "flips in the newest journal cost its later records"
    ledger.note(4, tried=tried, held=held, flips=tried)


def test_a_flipped_bit_is_told_by_the_selector_that_opens(tmp_path: Path) -> None:
    twin = selector()
    expected = [run_step(twin, k) for k in range(8)]
    first = selector(directory=tmp_path / "run")
    for k in range(6):
        run_step(first, k)
    first.close()
    rng = np.random.default_rng(ledger.seed())
    tried = 0
    for file in sorted((tmp_path / "run").glob("selector-*")):
        size = file.stat().st_size
        for at in rng.integers(0, size, ledger.cases(5, chaos=150)).tolist():
            copy = tmp_path / f"{file.name}-{at}-{tried}"
            shutil.copytree(tmp_path / "run", copy)
            data = bytearray(file.read_bytes())
            data[at] ^= 1 << int(rng.integers(8))
            (copy / file.name).write_bytes(data)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                second = selector(directory=copy)
            step = second.step_number
            newest_journal = file.suffix == ".journal" and "000000002" in file.name
            assert step == 6 or newest_journal and 2 <= step < 6
            assert step == 6 or any(file.name in str(warning.message) for warning in said)
            assert [run_step(second, k) for k in range(step, 8)] == expected[step:]
            second.close()
            shutil.rmtree(copy)
            tried += 1
    ledger.note(4, tried=tried, held=tried, flips=tried)


def emptied(data: bytes) -> bytes:
    return b""


def zeroed(data: bytes) -> bytes:
    return bytes(len(data))


def half_zeroed(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def with_a_tail_of_zeros(data: bytes) -> bytes:
    return data + bytes(4096)


def with_noise_behind(data: bytes) -> bytes:
    return data + np.random.default_rng(0).bytes(100)


@pytest.mark.parametrize("harm", [emptied, zeroed, half_zeroed, with_a_tail_of_zeros, with_noise_behind])
def test_a_power_cut_in_any_file_leaves_a_committed_state(tmp_path: Path, harm: Any) -> None:
    toy = begun(tmp_path / "run", 8)
    tried = 0
    for file in sorted((tmp_path / "run").glob("selector-*")):
        data = file.read_bytes()
        file.write_bytes(harm(data))
        recovered = History.of(tmp_path / "run", MOST).newest()
        assert recovered is not None
        assert toy.holds(recovered)
        behind = file.suffix == ".journal" and "000000002" in file.name
        added = harm in (with_a_tail_of_zeros, with_noise_behind)
        assert (recovered.node.step == 8) == (added or not behind)
        file.write_bytes(data)
        tried += 1
    assert tried == 4
    ledger.note(3, tried=tried, held=tried)


def test_every_state_damaged_is_an_error_and_no_fresh_start(tmp_path: Path) -> None:
    first = selector(directory=tmp_path)
    for k in range(4):
        run_step(first, k)
    first.close()
    kept = {file: file.read_bytes() for file in tmp_path.glob("selector-*")}
    tried = 0
    for harm in (emptied, zeroed, half_zeroed):
        for file, data in kept.items():
            file.write_bytes(harm(data))
        with pytest.raises(StateError, match="resume='fresh' starts anew"):
            selector(directory=tmp_path)
        tried += 1
    for file in kept:  # only journals are left, and nothing in them
        if file.suffix == ".safetensors":
            file.unlink()
        else:
            file.write_bytes(b"")
    with pytest.raises(StateError, match="resume='fresh' starts anew"):
        selector(directory=tmp_path)
    ledger.note(3, tried=tried + 1, held=tried + 1)


def test_the_newest_of_two_generations_damaged_in_any_way_costs_nothing(tmp_path: Path) -> None:
    toy = begun(tmp_path, 9)
    older, newer = sorted(tmp_path.glob("*.safetensors"))
    data = newer.read_bytes()
    tried = 0
    for cut in range(0, len(data), ledger.cases(23, chaos=1)):
        newer.write_bytes(data[:cut])
        history = History.of(tmp_path, MOST)
        recovered = history.newest()
        assert recovered is not None
        assert recovered.node.step == 9
        assert [found.path for found in recovered.snapshots] == [older]
        assert toy.holds(recovered)
        assert any(newer.name in text for text in history.broken)
        tried += 1
    ledger.note(13, tried=tried, held=tried, truncations=tried)


def test_a_generation_lost_with_its_journal_is_said_with_the_step_that_stands(tmp_path: Path) -> None:
    first = selector(directory=tmp_path)
    for k in range(6):
        run_step(first, k)
    first.close()
    twin = selector()
    expected = [run_step(twin, k) for k in range(4)]
    (newer,) = sorted(tmp_path.glob("*.safetensors"))[-1:]
    newer.write_bytes(b"")
    sorted(tmp_path.glob("*.journal"))[0].write_bytes(b"\0" * 50)  # the way from the older one to the newer one
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        second = selector(directory=tmp_path)
    text = " ".join(str(warning.message) for warning in said)
    assert newer.name in text
    assert "continuing from step 1 instead of 6: what was committed later cannot be read" in text
    assert [run_step(second, k) for k in range(1, 4)] == expected[1:]
    second.close()
    third = selector(directory=tmp_path)  # what cannot be read is left behind for good
    assert third.step_number == 4
    third.close()
    ledger.note(13, tried=1, held=1)


def test_records_behind_damage_are_never_applied_to_another_state(tmp_path: Path) -> None:
    """A record cut out of the middle: those behind it are whole, but were made from a state that is not there any more."""
    toy = begun(tmp_path, 12)
    (file,) = sorted(tmp_path.glob("*.journal"))[-1:]
    whole = journal.scan(file, MOST)
    for out, record in enumerate(whole.records[:-1]):
        file.write_bytes(whole.data[: record.at] + whole.data[record.payload.stop :])
        recovered = History.of(tmp_path, MOST).newest()
        assert recovered is not None
        assert recovered.node.step == 2 + out
        assert toy.holds(recovered)
    ledger.note(4, tried=len(whole.records) - 1, held=len(whole.records) - 1)


# -- differences ---------------------------------------------------------------------------------------------------------

DTYPES = [np.bool_, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint64, np.float16, np.float32, np.float64]
SHAPES = [(), (0,), (3, 0), (1,), (7,), (4, 3), (2, 3, 2), (9,), (6, 3), (7, 0)]
NAMES = ["method/shared/a", "selector/b", "pool/c"]


@st.composite
def arrays_of(draw: Any) -> Any:
    """Any bits at all: NaNs with payloads, -0.0. Sometimes big-endian, sometimes every other entry of a larger array."""
    dtype, shape = np.dtype(draw(st.sampled_from(DTYPES))), draw(st.sampled_from(SHAPES))
    if dtype == np.bool_:
        array = draw(hnp.arrays(dtype, shape))
    else:
        array = draw(hnp.arrays(np.uint8, (*shape, dtype.itemsize))).view(dtype).reshape(shape)
    if draw(st.booleans()):
        array = array.astype(dtype.newbyteorder(">"))
    if array.ndim and draw(st.booleans()):
        array = np.repeat(array, 2, axis=0)[::2]
    return array


STATES = st.dictionaries(st.sampled_from(NAMES), arrays_of(), max_size=3)


def through_disk(parts: dict[str, Any]) -> dict[str, Any]:
    return state.decode(state.encode({}, parts), "test")[1]


def bits(array: Any) -> tuple[Any, ...]:
    return array.dtype.newbyteorder("<"), array.shape, np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


@settings(max_examples=ledger.cases(250, chaos=4000), deadline=None)
@given(old=STATES, new=STATES, data=st.data())
def test_a_difference_put_on_its_base_is_the_new_state_bit_for_bit(old: Any, new: Any, data: Any) -> None:
    for name in old.keys() & new.keys():  # as often as not, the new one is the old one with entries changed, added or gone
        if old[name].ndim and data.draw(st.booleans()):
            changed = np.array(old[name])
            if changed.size:
                bytes_ = changed.reshape(-1).view(np.uint8 if changed.dtype != np.bool_ else np.bool_)
                bytes_[data.draw(st.integers(0, len(bytes_) - 1))] ^= 1
            length = data.draw(st.integers(0, 2 * len(changed)))
            new[name] = np.concatenate([changed, changed])[:length]
    change, parts = Base({"x": 1, "gone": 2}, old).difference({"x": 1, "y": [3]}, new, np.empty(0, dtype=np.int64))
    header, after = applied({"x": 1, "gone": 2}, through_disk(old), change, through_disk(parts))
    assert header == {"x": 1, "y": [3]}
    assert after.keys() == new.keys()
    assert {name: bits(array) for name, array in after.items()} == {name: bits(array) for name, array in new.items()}


@settings(max_examples=ledger.cases(150, chaos=2000), deadline=None)
@given(
    before=hnp.arrays(np.uint64, st.tuples(st.integers(1, 9), st.integers(1, 3))),
    rows=st.sets(st.integers(0, 8), max_size=6),
    kind=st.sampled_from([np.uint64, np.float64, np.float32, np.int16, np.bool_]),
    data=st.data(),
)
def test_per_prompt_arrays_travel_at_the_rows_that_were_touched(before: Any, rows: set[int], kind: Any, data: Any) -> None:
    old = (before % 2 == 0) if kind == np.bool_ else before.view(kind)
    index = np.array(sorted(row for row in rows if row < len(old)), dtype=np.int64)
    new = old.copy()
    if len(index):
        drawn = data.draw(hnp.arrays(np.uint64, (len(index), before.shape[1])))
        new[index] = (drawn % 2 == 0) if kind == np.bool_ else drawn.view(kind)
    name = "method/prompts/p"
    change, parts = Base({}, {name: old}).difference({}, {name: new}, index)
    assert sum(array.nbytes for array in parts.values()) <= len(index) * (8 + new[:1].nbytes)
    _, after = applied({}, through_disk({name: old}), change, through_disk(parts))
    assert bits(after[name]) == bits(new)


TABLES = st.dictionaries(st.integers(-3, 9), st.tuples(st.integers(-(2**62), 2**62), st.integers(0, 2)), max_size=8)


@settings(max_examples=ledger.cases(150, chaos=2000), deadline=None)
@given(before=TABLES, after=TABLES)
def test_tables_travel_as_the_rows_gone_changed_and_new(before: Any, after: Any) -> None:
    old, new = (
        np.array([(key, *row) for key, row in sorted(table.items())], dtype=np.int64).reshape(-1, 3)
        for table in (before, after)
    )
    change, parts = Base({}, {"table/t": old}).difference({}, {"table/t": new}, np.empty(0, dtype=np.int64))
    _, found = applied({}, through_disk({"table/t": old}), change, through_disk(parts))
    assert bits(found["table/t"]) == bits(new)
    assert "whole/table/t" not in parts


def test_a_read_only_view_of_an_array_that_changes_is_no_constant() -> None:
    """A method may hand out views that nobody else can write to, and write itself."""
    live = np.zeros(10)
    view = live.view()
    view.flags.writeable = False
    base = Base({}, {"method/shared/x": view})
    live[3] = 1.0
    change, parts = base.difference({}, {"method/shared/x": view}, np.empty(0, dtype=np.int64))
    assert applied({}, {"method/shared/x": np.zeros(10)}, change, parts)[1]["method/shared/x"][3] == 1.0


def test_what_nobody_can_write_to_is_neither_copied_nor_compared() -> None:
    constant = np.arange(10)
    constant.flags.writeable = False
    base = Base({}, {"pool/ids": constant})
    assert base._kept["pool/ids"] is constant
    _, parts = base.difference({}, {"pool/ids": constant}, np.empty(0, dtype=np.int64))
    assert parts == {}


# -- the end of a journal ------------------------------------------------------------------------------------------------


def test_nothing_is_appended_behind_bytes_of_somebody_else(tmp_path: Path) -> None:
    toy, directory = Toy(), RunDirectory(tmp_path, MOST)
    for _ in range(4):
        toy.commit(directory)
    harms = [b"noise", b"\0" * 100, b"EDGEWJ1\n"]
    for harm in harms:
        (file,) = sorted(tmp_path.glob("*.journal"))[-1:]
        with file.open("ab") as opened:
            opened.write(harm)
        before = file.read_bytes()
        toy.commit(directory)
        toy.commit(directory)
        toy.commit(directory)
        assert not file.exists() or file.read_bytes() == before
        assert any("somebody else changed the journal" in note for note in directory.notes)
        directory.notes.clear()
        recovered = History.of(tmp_path, MOST).newest()
        assert recovered is not None
        assert recovered.node.step == len(toy.committed)
        assert toy.holds(recovered)
    directory.close()
    ledger.note(2, tried=len(harms), held=len(harms))


def test_a_warning_names_file_and_offset(tmp_path: Path) -> None:
    first = selector(directory=tmp_path)
    for k in range(8):
        run_step(first, k)
    first.close()
    (file,) = sorted(tmp_path.glob("*.journal"))[-1:]
    scan = journal.scan(file, MOST)
    third = scan.records[2]
    data = bytearray(scan.data)
    data[third.payload.start + 5] ^= 4
    file.write_bytes(data)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        second = selector(directory=tmp_path)
    assert second.step_number == 4
    assert {warning.category for warning in said} == {DegradedWarning}
    damaged, cut, lost = (str(warning.message) for warning in said)
    assert "made commit 8, the newest found is 4" in lost
    assert f"{file.name} is damaged at byte {third.at:,}" in damaged
    assert "cut off and kept as" in cut
    second.close()
    ledger.note(4, tried=1, held=1)
