"""Saved states of every format there has been: read, gone on with as their own writer would, never mistaken for another.

The states stand in tests/fixtures/, written by the code of their time, each with what that code did next; `make_states.py`
there made them and holds the script of every run.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors import safe_open

from edgewise import PromptPool, Selector, saved, state
from edgewise.errors import DegradedWarning, StateError, StateMismatchError, StateVersionError
from edgewise.migrations import MIGRATIONS
from tests import ledger
from tests.fixtures.make_states import CASES, FOLDER, IDS, NEXT, WRITERS, Case, standing, taken_up

UNKNOWABLE = {("28f801c", "patient-stream")}
"""Their writer did not save which tickets the rollouts of a group that waits came from, and one there has those of two."""

WRITTEN = sorted(path for path in FOLDER.glob("format-*/*") if path.is_dir())
"""One folder a format and writer."""


def named(folder: Path) -> str:
    return f"{folder.parent.name}-{folder.name}"


class Kept(NamedTuple):
    """A state that is kept here. at: its file, or the folder of the run.  answer: what its writer did next."""

    name: str
    case: Case
    at: Path
    answer: dict[str, Any]

    @property
    def files(self) -> list[Path]:
        """The states in it, oldest first."""
        return sorted(self.at.glob("*.safetensors")) if self.at.is_dir() else [self.at]


def kept(folder: Path) -> list[Kept]:
    """All states of one writer."""
    found = []
    for answer in sorted(folder.glob("*.json")):
        at = folder / answer.stem if (folder / answer.stem).is_dir() else folder / f"{answer.stem}.safetensors"
        found.append(Kept(answer.stem, CASES[answer.stem], at, json.loads(answer.read_text(encoding="ascii"))))
    return found


def readable(folder: Path) -> list[Kept]:
    """Those that can be brought to today's format."""
    return [one for one in kept(folder) if (folder.name, one.name) not in UNKNOWABLE]


def plainly(value: Any) -> Any:
    """As JSON would have it."""
    return json.loads(json.dumps(value))


def alike(one: Any, other: Any) -> bool:
    """Equal, but for the last digits of a float (another processor may sum in another order)."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)


def as_it_was(selector: Selector, then: dict[str, Any]) -> bool:
    """Whether a selector stands where its writer says it stood; `waiting` and later totals count where the writer knew them."""
    now = plainly(standing(selector))
    now["totals"] = {name: value for name, value in now["totals"].items() if name in then["totals"]}
    return alike(now | ({"waiting": None} if then["waiting"] is None else {}), then)


def raw(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and arrays of a state, read by nothing of ours."""
    with safe_open(file, framework="numpy") as opened:
        return json.loads(opened.metadata()["edgewise"]), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def content(data: bytes) -> tuple[Any, ...]:
    """What `state` makes of bytes, in a form that can be compared."""
    header, arrays = state.decode(data, "a copy")
    return json.dumps(header, sort_keys=True), [(k, a.dtype.str, a.shape, a.tobytes()) for k, a in sorted(arrays.items())]


# ------------------------------------------------------------------------------------------------- what is kept here


def test_there_are_states_of_every_format_and_a_way_from_each_to_the_next() -> None:
    formats = {folder.parent.name for folder in WRITTEN}
    assert formats == {f"format-{number}" for number in range(1, state.FORMAT + 1)}, (
        "a state of every format stays in the tests: run tests/fixtures/make_states.py with the code that writes the new one"
    )
    assert set(MIGRATIONS) == set(range(1, state.FORMAT)), "each format below today's needs a way to the next"
    for folder in WRITTEN:
        found = kept(folder)
        assert {one.name for one in found} == set(WRITERS.get(folder.name, CASES))
        for file in [file for one in found for file in one.files]:
            assert raw(file)[0]["format"] == int(folder.parent.name.removeprefix("format-")), file


def test_the_states_kept_here_hold_what_can_be_lost() -> None:
    for folder in WRITTEN:
        for one in kept(folder):
            if one.case.streaming:
                assert len(one.answer["at"]["in_flight"]) >= 3
            header, arrays = raw(one.files[-1])
            if one.case.method in ("speed", "patient"):
                assert len(header.get("waiting", arrays.get("table/waiting", []))) >= 2
            if one.case.expires:
                assert len(arrays["table/expired"]) >= 1
                assert header["last_take"] == f"take {one.case.steps - 1}"
                assert one.answer["next"][0]["rounds"][0], "the last call, made again"
                assert one.answer["then"]["totals"]["late_outcomes"] > one.answer["at"]["totals"]["late_outcomes"]
            if one.case.parks:
                assert len(arrays["parked/ids"]) == len(IDS[::6])
                assert len(arrays["pool/ids"]) == len(IDS) - len(IDS[::6])
            if one.name == "resting":
                assert len(arrays.get("selector/retired", arrays.get("table/retired"))) >= 1
            if one.name == "directory":
                assert len(one.files) == 2


# ---------------------------------------------------------------------------------------------------- read, gone on with


@pytest.mark.parametrize("folder", WRITTEN, ids=named)
def test_a_kept_state_goes_on_as_the_code_that_wrote_it_did(folder: Path, tmp_path: Path) -> None:
    tried = held = 0
    for name, case, at, answer in readable(folder):
        selector = taken_up(case, at, tmp_path)
        good = as_it_was(selector, answer["at"])
        good &= alike(plainly(case.drive(selector, NEXT)), answer["next"])
        good &= as_it_was(selector, answer["then"])
        selector.close()
        tried, held = tried + 1, held + good
        assert good, f"{folder.name}/{name} went on another way"
    ledger.note(12, tried=tried, held=held)


@pytest.mark.parametrize("folder", WRITTEN, ids=named)
def test_a_kept_state_says_the_same_when_it_is_written_anew(folder: Path, tmp_path: Path) -> None:
    tried = held = 0
    for name, case, at, answer in readable(folder):
        first = taken_up(case, at, tmp_path)
        first.save(tmp_path / f"{name}.again")
        first.close()
        assert raw(tmp_path / f"{name}.again")[0]["format"] == state.FORMAT
        again = taken_up(case, tmp_path / f"{name}.again", tmp_path)
        good = as_it_was(again, answer["at"]) and alike(plainly(case.drive(again, NEXT)), answer["next"])
        tried, held = tried + 1, held + good
    ledger.note(12, tried=tried, held=held)


def test_what_a_method_kept_comes_back_bit_by_bit() -> None:
    compared = 0
    for folder in WRITTEN:
        for one in readable(folder):
            if one.case.parks:  # its prompts are in other rows now
                continue
            selector = taken_up(one.case, one.files[-1], Path())
            held, arrays = selector.method.state(), raw(one.files[-1])[1]
            for prefix, mine in (("method/prompts/", held.prompts), ("method/shared/", held.shared)):
                theirs = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
                assert theirs.keys() == mine.keys(), one.at
                for key, array in theirs.items():
                    assert np.asarray(mine[key]).tobytes() == array.tobytes(), f"{one.at}: {key}"
                    compared += 1
    assert compared > 100


def test_a_group_whose_tickets_were_never_saved_is_refused_in_words() -> None:
    for writer, name in UNKNOWABLE:
        selector = CASES[name].selector()
        with pytest.raises(StateError, match=r"state format 1 and cannot be brought to format 2.*3 rollouts, known are .*3, 2"):
            selector.restore(FOLDER / "format-1" / writer / f"{name}.safetensors")
        assert (selector.step_number, selector.in_flight, selector.waiting) == (0, [], {})


def test_an_old_state_is_not_taken_for_that_of_an_edited_data_set() -> None:
    """Format 1 kept no ids: what belongs to which prompt could only be guessed."""
    folder = FOLDER / "format-1" / "2c925c5"
    for edited in (PromptPool.from_ids(IDS), PromptPool.from_ids([*IDS[1:], "new"]), PromptPool.from_ids(IDS[::-1])):
        for one in kept(folder):
            if one.case.method == "patient":
                continue
            selector = Selector(
                one.case.method, edited, batch_size=one.case.batch_size, group_size=one.case.group_size, seed=11
            )
            with pytest.raises(StateMismatchError, match="pool_digest"):
                selector.restore(one.files[-1])


# --------------------------------------------------------------------------------------------------------- directories

OLD_RUNS = [folder / "directory" for folder in WRITTEN if folder.parent.name == "format-1" and (folder / "directory").is_dir()]


@pytest.fixture(params=OLD_RUNS, ids=lambda path: path.parent.name)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A copy of the folder of a run of format 1, and what its writer did next."""
    answer = json.loads(request.param.with_suffix(".json").read_text(encoding="ascii"))
    return shutil.copytree(request.param, tmp_path / "run"), answer


def old_files(folder: Path) -> dict[str, bytes]:
    """The states of format 1 in a folder, as they are or kept as backups, by their first name."""
    return {
        file.name.removesuffix(".backup"): file.read_bytes()
        for file in folder.iterdir()
        if re.fullmatch(r"selector-\d{9}\.safetensors(\.backup)?", file.name)
    }


def test_the_older_states_of_a_folder_stay_beside_the_new_ones(run: tuple[Path, dict[str, Any]]) -> None:
    folder, answer = run
    case, before = CASES["directory"], old_files(folder)
    assert sorted(before) == ["selector-000000011.safetensors", "selector-000000012.safetensors"]
    untouched = case.selector(directory=folder)
    untouched.close()
    assert old_files(folder) == before, "opening a folder changes nothing in it"
    selector = case.selector(directory=folder)
    assert as_it_was(selector, answer["at"])
    assert alike(plainly(case.drive(selector, NEXT)), answer["next"])
    selector.close()
    again = case.selector(directory=folder)
    assert as_it_was(again, answer["then"])
    case.drive(again, 3)
    again.close()
    assert old_files(folder) == before
    backups = sorted(folder.glob("*.backup"))
    assert [file.name.removesuffix(".backup") for file in backups] == sorted(before), "an older edgewise is not to read them"
    old = case.selector()
    old.restore(backups[-1])
    assert as_it_was(old, answer["at"])
    ledger.note(12, tried=len(before), held=len(backups))


def test_every_old_step_that_was_kept_can_be_gone_back_to(run: tuple[Path, dict[str, Any]]) -> None:
    folder, answer = run
    case = CASES["directory"]
    selector = case.selector(directory=folder, resume=11)
    assert selector.step_number == 11
    case.drive(selector, 1)
    now = plainly(standing(selector))
    assert alike({k: now[k] for k in ("step", "in_flight")}, {k: answer["at"][k] for k in ("step", "in_flight")})
    assert alike(plainly(case.drive(selector, NEXT)), answer["next"])
    selector.close()
    again = case.selector(directory=folder)
    assert as_it_was(again, answer["then"])
    again.close()
    ledger.note(12, tried=1, held=1)


def test_a_damaged_newest_state_of_an_old_folder_costs_the_steps_after_the_one_before(run: tuple[Path, dict[str, Any]]) -> None:
    folder, answer = run
    case, newest = CASES["directory"], folder / "selector-000000012.safetensors"
    data = bytearray(newest.read_bytes())
    data[-9] ^= 1
    newest.write_bytes(data)
    with pytest.warns(DegradedWarning) as warned:
        selector = case.selector(directory=folder)
    assert any("selector-000000012.safetensors is damaged" in str(warning.message) for warning in warned)
    assert selector.step_number == 11
    case.drive(selector, 1)
    assert alike(plainly(case.drive(selector, NEXT)), answer["next"])
    selector.close()
    ledger.note(12, tried=1, held=1)


def test_a_newest_state_that_cannot_be_migrated_is_not_passed_over_unless_asked(tmp_path: Path) -> None:
    case, written = CASES["patient"], FOLDER / "format-1" / "28f801c"
    shutil.copy(written / "patient.safetensors", tmp_path / "selector-000000005.safetensors")
    shutil.copy(written / "patient-stream.safetensors", tmp_path / "selector-000000006.safetensors")
    before = all_bytes(tmp_path)
    with pytest.raises(StateError, match=r"selector-000000006\.safetensors has state format 1 and cannot be brought"):
        case.selector(directory=tmp_path)
    assert all_bytes(tmp_path) == before
    selector = case.selector(directory=tmp_path, resume=5)
    answer = json.loads((written / "patient.json").read_text(encoding="ascii"))
    assert as_it_was(selector, answer["at"])
    assert alike(plainly(case.drive(selector, NEXT)), answer["next"])
    selector.close()


def test_a_folder_of_todays_goes_on_in_the_next_format_and_is_kept_as_a_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What whoever raises FORMAT relies on: journals are read in their own format, and then brought to the next."""
    case, folder = CASES["directory"], tmp_path / "run"
    twin = case.selector()
    case.drive(twin, 7)
    following = case.drive(twin, NEXT)
    for steps in (5, 2):  # two writers, so that what the second wrote lies behind a snapshot of the first
        selector = case.selector(directory=folder)
        case.drive(selector, steps)
        selector.close()
    before = all_bytes(folder)
    assert len([name for name in before if name.endswith(".journal")]) >= 2
    monkeypatch.setitem(MIGRATIONS, state.FORMAT, lambda header, arrays: ({**header, "format": state.FORMAT}, arrays))
    with next_version(monkeypatch):
        selector = case.selector(directory=folder)
        assert selector.step_number == 7
        assert all_bytes(folder) == before, "opening a folder changes nothing in it"
        assert case.drive(selector, 1) == following[:1]
        selector.close()
        selector = case.selector(directory=folder)
        assert case.drive(selector, 2) == following[1:]
        selector.close()
        now = {file.name: file.read_bytes() for file in folder.glob("selector-*")}
    assert {name.removesuffix(".backup"): data for name, data in now.items() if name.endswith(".backup")} == before
    assert all(raw(file)[0]["format"] == state.FORMAT + 1 for file in folder.glob("selector-*.safetensors"))
    backup = tmp_path / "again"
    backup.mkdir()
    for name in before:
        shutil.copy(folder / f"{name}.backup", backup / name)
    old = case.selector(directory=backup)
    assert case.drive(old, NEXT) == following
    old.close()
    ledger.note(12, tried=len(before), held=len(before))


# ------------------------------------------------------------------------------------------------------------- newer

NEWER = rf"has state format {state.FORMAT + 1}, written by edgewise 99\.5; .*Install edgewise>=99\.5"


@contextmanager
def next_version(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is saved inside is of the next format, by the edgewise that writes it."""
    with monkeypatch.context() as patched:
        patched.setattr(state, "FORMAT", state.FORMAT + 1)
        patched.setattr(saved, "__version__", "99.5")
        patched.setattr(state, "__version__", "99.5")
        yield


def in_next_version(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a state anew, as the next edgewise would."""
    header, arrays = state.load(file)
    with next_version(monkeypatch):
        file.write_bytes(state.encode({**header, "edgewise": "99.5", "format": state.FORMAT}, arrays))


def all_bytes(folder: Path) -> dict[str, bytes]:
    """What is in a folder, but for the note of who may write."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.startswith("selector-")}


def test_a_newer_format_is_refused_and_the_version_that_reads_it_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried = held = 0
    for folder in WRITTEN:
        for one in readable(folder):
            path = Path(shutil.copy(one.files[-1], tmp_path / "state"))
            in_next_version(path, monkeypatch)
            selector = one.case.selector()
            tried += 1
            with pytest.raises(StateVersionError, match=NEWER):
                selector.restore(path)
            held += (selector.step_number, selector.in_flight) == (0, [])
    ledger.note(11, tried=tried, held=held)


def test_a_newer_state_is_not_passed_over_for_an_older_one(
    run: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = run
    in_next_version(folder / "selector-000000012.safetensors", monkeypatch)
    before = all_bytes(folder)
    for _ in range(2):
        with pytest.raises(StateVersionError, match=rf"selector-000000012\.safetensors {NEWER}"):
            CASES["directory"].selector(directory=folder)
    assert all_bytes(folder) == before
    ledger.note(11, tried=2, held=2)


@pytest.mark.parametrize("reopened", [False, True], ids=["a record", "a writer"])
def test_what_a_newer_edgewise_added_to_a_folder_of_todays_is_not_passed_over(
    reopened: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, folder = CASES["directory"], tmp_path / "run"
    selector = case.selector(directory=folder)
    case.drive(selector, 5)
    if reopened:
        selector.close()
        selector = case.selector(directory=folder)
    with next_version(monkeypatch):
        case.drive(selector, 1)
    selector.close()
    before = all_bytes(folder)
    with pytest.raises(StateVersionError, match=NEWER):
        case.selector(directory=folder)
    assert all_bytes(folder) == before
    back = case.selector(directory=folder, resume=5)  # on purpose
    assert back.step_number == 5
    back.close()
    ledger.note(11, tried=1, held=1)


# ------------------------------------------------------------------------------------------------------------- damage


def test_a_flipped_byte_of_a_kept_state_is_found_or_means_nothing() -> None:
    flips = different = 0
    rng = np.random.default_rng(ledger.seed())
    for file in [file for folder in WRITTEN for one in readable(folder) for file in one.files]:
        data = file.read_bytes()
        good = content(data)
        many = min(ledger.cases(40, chaos=len(data)), len(data))
        for at in rng.choice(len(data), size=many, replace=False).tolist():
            bad = data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]
            flips += 1
            try:
                different += content(bad) != good  # the same where one blank of the padding became another
            except StateError:
                continue
    ledger.note(12, tried=flips, held=flips - different, flips=flips)


def test_a_part_of_a_kept_state_is_no_state() -> None:
    cuts = held = 0
    for file in [file for folder in WRITTEN for one in kept(folder) for file in one.files]:
        data = file.read_bytes()
        for length in range(0, len(data), max(1, len(data) // ledger.cases(25, chaos=len(data)))):
            cuts += 1
            try:
                state.decode(data[:length], file.name)
            except StateError:
                held += 1
    ledger.note(12, tried=cuts, held=held, truncations=cuts)
