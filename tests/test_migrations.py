"""Saved states of every format there has been: read, gone on with as their own writer would, never mistaken for another.

The states stand in tests/fixtures/, written by the code of their time, each with what that code did next; `make_states.py`
there made them and holds the script of every run.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from edgewise import Selector, state
from edgewise.errors import StateError, StateVersionError
from edgewise.migrations import MIGRATIONS
from tests import ledger
from tests.fixtures.make_states import CASES, FOLDER, IDS, NEXT, WRITERS, Case, standing

UNKNOWABLE = {("28f801c", "patient-stream")}
"""Their writer did not save which tickets the rollouts of a group that waits came from, and one there has those of two."""

WRITTEN = sorted(path for path in FOLDER.glob("format-*/*") if path.is_dir())
"""One folder a format and writer."""


def named(folder: Path) -> str:
    return f"{folder.parent.name}-{folder.name}"


def cases_of(folder: Path) -> list[tuple[str, Case, Path, dict[str, Any]]]:
    """Name, script, newest state and what its writer did next, of all cases in a folder."""
    found = []
    for answer in sorted(folder.glob("*.json")):
        case = CASES[answer.stem]
        inside = sorted((folder / answer.stem).glob("*.safetensors")) if case.directory else []
        file = inside[-1] if inside else folder / f"{answer.stem}.safetensors"
        found.append((answer.stem, case, file, json.loads(answer.read_text(encoding="ascii"))))
    return found


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
    """Whether a selector stands where its writer says it stood; `waiting` counts where the writer could tell."""
    now = plainly(standing(selector))
    told = {name: value for name, value in then.items() if value is not None}
    return alike({name: now[name] for name in told}, told)


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
    kept = {folder.parent.name for folder in WRITTEN}
    assert kept == {f"format-{number}" for number in range(1, state.FORMAT + 1)}, (
        "a state of every format stays in the tests: run tests/fixtures/make_states.py with the code that writes the new one"
    )
    assert set(MIGRATIONS) == set(range(1, state.FORMAT)), "each format below today's needs a way to the next"
    for folder in WRITTEN:
        found = cases_of(folder)
        wanted = set(WRITERS.get(folder.name, CASES)) if folder.parent.name != f"format-{state.FORMAT}" else set(CASES)
        assert {name for name, *_ in found} == wanted
        for _, _, file, _ in found:
            assert raw(file)[0]["format"] == int(folder.parent.name.removeprefix("format-")), file


def test_the_states_kept_here_hold_what_can_be_lost() -> None:
    for folder in WRITTEN:
        answers = {name: answer["at"] for name, _, _, answer in cases_of(folder)}
        headers = {name: raw(file) for name, _, file, _ in cases_of(folder)}
        for name in answers.keys() & {"uniform-stream", "hive-stream", "speed-stream", "patient-stream"}:
            assert len(answers[name]["in_flight"]) >= 3
        for name in answers.keys() & {"speed", "speed-stream", "patient", "patient-stream"}:
            header, arrays = headers[name]
            assert len(header.get("waiting", arrays.get("table/waiting", []))) >= 2
        if "resting" in answers:
            arrays = headers["resting"][1]
            assert len(arrays.get("selector/retired", arrays.get("table/retired"))) >= 1


# ---------------------------------------------------------------------------------------------------- read, gone on with


@pytest.mark.parametrize("folder", WRITTEN, ids=named)
def test_a_kept_state_goes_on_as_the_code_that_wrote_it_did(folder: Path) -> None:
    tried = held = 0
    for name, case, file, answer in cases_of(folder):
        if (folder.name, name) in UNKNOWABLE:
            continue
        selector = case.selector(on_problem="strict") if not case.streaming else case.selector()
        selector.restore(file)
        good = as_it_was(selector, answer["at"])
        good &= alike(plainly(case.drive(selector, NEXT)), answer["next"])
        good &= as_it_was(selector, answer["then"])
        tried, held = tried + 1, held + good
        assert good, f"{folder.name}/{name} went on another way"
    ledger.note(12, tried=tried, held=held)


@pytest.mark.parametrize("folder", WRITTEN, ids=named)
def test_a_kept_state_says_the_same_when_it_is_written_anew(folder: Path, tmp_path: Path) -> None:
    tried = held = 0
    for name, case, file, answer in cases_of(folder):
        if (folder.name, name) in UNKNOWABLE:
            continue
        first = case.selector()
        first.restore(file)
        first.save(tmp_path / name)
        assert raw(tmp_path / name)[0]["format"] == state.FORMAT
        again = case.selector()
        again.restore(tmp_path / name)
        good = as_it_was(again, answer["at"]) and alike(plainly(case.drive(again, NEXT)), answer["next"])
        tried, held = tried + 1, held + good
    ledger.note(12, tried=tried, held=held)


def test_what_a_method_kept_comes_back_bit_by_bit() -> None:
    compared = 0
    for folder in WRITTEN:
        for name, case, file, _ in cases_of(folder):
            if (folder.name, name) in UNKNOWABLE:
                continue
            selector = case.selector()
            selector.restore(file)
            held, arrays = selector.method.state(), raw(file)[1]
            for prefix, mine in (("method/prompts/", held.prompts), ("method/shared/", held.shared)):
                theirs = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
                assert theirs.keys() == mine.keys(), f"{folder.name}/{name}"
                for key, array in theirs.items():
                    assert np.asarray(mine[key]).tobytes() == array.tobytes(), f"{folder.name}/{name}: {key}"
                    compared += 1
    assert compared > 100


def test_a_group_whose_tickets_were_never_saved_is_refused_in_words() -> None:
    for writer, name in UNKNOWABLE:
        selector = CASES[name].selector()
        with pytest.raises(StateError, match=r"state format 1 and cannot be brought to format 2.*3 rollouts, known are .*3, 2"):
            selector.restore(FOLDER / "format-1" / writer / f"{name}.safetensors")
        assert (selector.step_number, selector.in_flight, selector.waiting) == (0, [], {})


# --------------------------------------------------------------------------------------------------------- directories


def old_directories() -> list[Path]:
    return [folder / "directory" for folder in WRITTEN if folder.parent.name == "format-1" and (folder / "directory").is_dir()]


@pytest.fixture(params=old_directories(), ids=lambda path: path.parent.name)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A copy of the folder of an old run, and what its writer did next."""
    copied = tmp_path / "run"
    shutil.copytree(request.param, copied)
    return copied, json.loads(request.param.with_suffix(".json").read_text(encoding="ascii"))


def test_a_run_goes_on_in_the_folder_that_an_older_edgewise_left(run: tuple[Path, dict[str, Any]]) -> None:
    folder, answer = run
    case = CASES["directory"]
    selector = case.selector(directory=folder)
    assert as_it_was(selector, answer["at"])
    assert alike(plainly(case.drive(selector, NEXT)), answer["next"])
    assert as_it_was(selector, answer["then"])
    ledger.note(12, tried=1, held=1)


def test_the_older_states_of_a_folder_are_kept_beside_the_new_one(run: tuple[Path, dict[str, Any]]) -> None:
    folder, answer = run
    case = CASES["directory"]
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    selector = case.selector(directory=folder)
    selector.close()
    again = case.selector(directory=folder)
    case.drive(again, NEXT)
    again.close()
    kept = {file.name.removesuffix(".backup"): file.read_bytes() for file in folder.glob("*.backup")}
    assert kept == before
    third = case.selector(directory=folder)
    assert as_it_was(third, answer["then"])
    third.close()
    assert {file.name.removesuffix(".backup"): file.read_bytes() for file in folder.glob("*.backup")} == before
    fresh = case.selector()
    fresh.restore(folder / "selector-000000012.safetensors.backup")
    assert as_it_was(fresh, answer["at"])
    ledger.note(12, tried=len(before), held=len(kept))


def test_a_damaged_newest_state_of_an_old_folder_costs_the_steps_after_the_one_before(run: tuple[Path, dict[str, Any]]) -> None:
    folder, answer = run
    case, newest = CASES["directory"], folder / "selector-000000012.safetensors"
    data = bytearray(newest.read_bytes())
    data[-9] ^= 1
    newest.write_bytes(data)
    with pytest.warns(UserWarning, match="damaged"):
        selector = case.selector(directory=folder)
    assert selector.step_number == 11
    case.drive(selector, 1)
    assert alike(plainly(case.drive(selector, NEXT)), answer["next"])
    ledger.note(12, tried=1, held=1)


# ------------------------------------------------------------------------------------------------------------- newer


def newer(data: bytes, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The same state as an edgewise of the next format would write it."""
    header, arrays = state.decode(data, "a copy")
    with monkeypatch.context() as patched:
        patched.setattr(state, "FORMAT", state.FORMAT + 1)
        return state.encode({**header, "edgewise": "99.5", "format": state.FORMAT}, arrays)


def test_a_newer_format_is_refused_and_the_version_that_reads_it_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried = held = 0
    wanted = rf"has state format {state.FORMAT + 1}, written by edgewise 99\.5; .*Install edgewise>=99\.5"
    for folder in WRITTEN:
        for name, case, file, _ in cases_of(folder):
            if (folder.name, name) in UNKNOWABLE:
                continue
            path = tmp_path / "state"
            path.write_bytes(newer(file.read_bytes(), monkeypatch))
            selector = case.selector()
            tried += 1
            with pytest.raises(StateVersionError, match=wanted):
                selector.restore(path)
            held += (selector.step_number, selector.in_flight) == (0, [])
    ledger.note(11, tried=tried, held=held)


def test_a_newer_state_is_not_passed_over_for_an_older_one(
    run: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = run
    newest = folder / "selector-000000012.safetensors"
    newest.write_bytes(newer(newest.read_bytes(), monkeypatch))
    before = {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}
    with pytest.raises(StateVersionError, match=r"selector-000000012\.safetensors has .* Install edgewise>=99\.5"):
        CASES["directory"].selector(directory=folder)
    assert {file.name: file.read_bytes() for file in folder.glob("*.safetensors")} == before
    ledger.note(11, tried=1, held=1)


def test_a_newer_state_among_todays_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, folder = CASES["directory"], tmp_path / "run"
    selector = case.selector(directory=folder)
    case.drive(selector, 3)
    selector.close()
    newest = sorted(folder.glob("selector-*.safetensors"))[-1]
    newest.write_bytes(newer(newest.read_bytes(), monkeypatch))
    before = {file.name: file.read_bytes() for file in folder.glob("selector-*")}
    with pytest.raises(StateVersionError, match=r"Install edgewise>=99\.5"):
        case.selector(directory=folder)
    assert {file.name: file.read_bytes() for file in folder.glob("selector-*")} == before
    ledger.note(11, tried=1, held=1)


# ------------------------------------------------------------------------------------------------------------- damage


def test_a_flipped_byte_of_a_kept_state_is_found_or_means_nothing() -> None:
    flips = held = different = 0
    rng = np.random.default_rng(ledger.seed())
    for folder in WRITTEN:
        for name, _, file, _ in cases_of(folder):
            if (folder.name, name) in UNKNOWABLE:
                continue
            data = file.read_bytes()
            good = content(data)
            many = ledger.cases(40, chaos=len(data))
            for at in rng.choice(len(data), size=min(many, len(data)), replace=False).tolist():
                bad = data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]
                flips += 1
                try:
                    same = content(bad) == good  # as where a blank of the padding became another
                    held += same
                    different += not same
                except StateError:
                    held += 1
    assert different == 0
    ledger.note(12, tried=flips, held=held, flips=flips)


def test_a_part_of_a_kept_state_is_no_state() -> None:
    cuts = held = 0
    for folder in WRITTEN:
        for name, _, file, _ in cases_of(folder):
            data = file.read_bytes()
            step = max(1, len(data) // ledger.cases(25, chaos=len(data)))
            for length in range(0, len(data), step):
                cuts += 1
                try:
                    state.decode(data[:length], name)
                except StateError:
                    held += 1
    ledger.note(12, tried=cuts, held=held, truncations=cuts)


def test_the_pool_of_the_script_is_what_its_ids_say() -> None:
    assert len(set(IDS)) == len(IDS) == 20
    assert max(map(len, IDS)) == 300
