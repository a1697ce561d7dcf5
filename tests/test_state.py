"""Saved states: found damaged wherever a byte changes, never half written, never mixed up in their directory."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgewise
from edgewise import state
from edgewise.directory import History
from edgewise.errors import ConfigError, DegradedWarning, StateError, StateMismatchError, StateVersionError
from edgewise.types import MethodState
from tests.test_selector import Counting, run_step, selector


def content(path: Path) -> tuple[Any, ...]:
    header, arrays = state.load(path)
    return json.dumps(header, sort_keys=True), [(k, a.dtype.str, a.shape, a.tobytes()) for k, a in sorted(arrays.items())]


def saved(tmp_path: Path) -> Path:
    s = selector(n=12)
    s.take(3)
    path = tmp_path / "state"
    s.save(path)
    return path


def test_no_flipped_or_missing_byte_passes_for_a_state(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole, good = path.read_bytes(), content(path)
    found = 0
    for at in range(0, len(whole), 7):
        for change in (0x01, 0x80):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ change]) + whole[at + 1 :])
            try:
                assert content(path) == good  # only where the bytes mean the same, as a blank in JSON does
            except StateError:
                found += 1
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(StateError):
            state.load(path)
    path.write_bytes(b"\0" * len(whole))
    with pytest.raises(StateError):
        state.load(path)
    assert found > 2 * (len(whole) // 7) * 0.95


def test_a_state_that_cannot_be_used_changes_nothing(tmp_path: Path) -> None:
    class Picky(Counting):
        def restore(self, state: MethodState) -> None:
            super().restore(state)
            self.total = self.total + 1
            if self.total > 5 and self.picky:
                raise KeyError("half way")

        picky = False

    s = selector(Picky(), n=12)
    s.report([edgewise.Outcome(ticket=t, rewards=[1, 0, 0, 0]) for t in s.take(4)])
    s.save(tmp_path / "good")
    run_step(s)
    s.method.picky = True  # type: ignore[attr-defined]
    s.method.total[:] = 3
    visits, number, run = s.method.state().prompts["visits"].copy(), s.step_number, s.run_id
    ahead = selector(Picky(), n=12)
    ahead.method.total[:] = 50
    ahead.save(tmp_path / "bad")
    with pytest.raises(StateError, match="lacks something this method keeps: KeyError.'half way'"):
        s.restore(tmp_path / "bad")
    assert (s.method.state().prompts["visits"] == visits).all()
    assert (s.step_number, s.run_id) == (number, run)


@pytest.mark.parametrize(
    "missing",
    ["numpy", "batch_size", "table/in_flight", "next_seq", "totals", "run_id", "metrics", "position", "table/retired"],
)
def test_a_state_that_lacks_something_is_a_state_error(tmp_path: Path, missing: str) -> None:
    header, arrays = state.load(saved(tmp_path))
    (arrays if "/" in missing else header).pop(missing)
    state.save(tmp_path / "x", header, arrays)
    s = selector(n=12)
    with pytest.raises(StateError, match=f"lacks something that a selector keeps.*{missing}"):
        s.restore(tmp_path / "x")
    assert s.in_flight == []


def test_a_ticket_for_no_prompt_is_a_state_error(tmp_path: Path) -> None:
    header, arrays = state.load(saved(tmp_path))
    outside = r"a ticket's row must lie in \[0, 12\)"
    for row, why in ((99, outside), (12, outside), (-1, "a ticket has a negative number")):
        arrays["table/in_flight"][0, 1] = row
        state.save(tmp_path / "x", header, arrays)
        with pytest.raises(StateError, match=why):
            selector(n=12).restore(tmp_path / "x")


def test_restore_inside_a_step_is_refused(tmp_path: Path) -> None:
    path, s = saved(tmp_path), selector(n=12)
    with s.step(policy_version=0), pytest.raises(ConfigError, match="restore between steps"):
        s.restore(path)


def test_a_mismatch_names_the_parameter_and_not_all_the_others(tmp_path: Path) -> None:
    given: dict[str, Any] = {"batch_size": 4, "group_size": 4}
    edgewise.Selector("hive", tmp_pool(), **given, parameters={"p_easy": 0.4}).save(tmp_path / "x")
    with pytest.raises(StateMismatchError) as caught:
        edgewise.Selector("hive", tmp_pool(), **given).restore(tmp_path / "x")
    assert "parameters.p_easy: saved 0.4, this run 0.5" in str(caught.value)
    assert "p_hard" not in str(caught.value)


def tmp_pool() -> edgewise.PromptPool:
    return edgewise.PromptPool.from_ids([f"p{i}" for i in range(40)])


def test_odd_floats_and_ids_survive_the_round_trip(tmp_path: Path) -> None:
    ids = ["new\nline", "\u2028", "é", "e\u0301", "../../x", "nul\0", "\U0001f642" * 50, "x" * 10_000, "con", ""]
    for given in (ids[:-1], [f"{i} {'y' * 3}" for i in range(9)]):
        pool = edgewise.PromptPool.from_ids(given)
        parameters = {"p_step": 0.1 + 0.2, "p_floor": 5e-324, "target_easy": 1 / 3}

        def made(pool: Any = pool, parameters: Any = parameters) -> edgewise.Selector:
            return edgewise.Selector("greso", pool, batch_size=2, group_size=4, parameters=parameters)

        s = made()
        taken = s.take(9, policy_version=np.int64(3))  # type: ignore[arg-type]
        s.save(tmp_path / "x")
        again = made()
        again.restore(tmp_path / "x")
        assert again.in_flight == taken
    assert sorted(f.name for f in tmp_path.iterdir()) == ["x"]  # no id became a file


def test_what_could_not_be_saved_is_refused_before_the_first_step() -> None:
    class Odd(Counting):
        def __init__(self, parameter: Any = 1, array: Any = None) -> None:
            super().__init__()
            self.odd, self.array = parameter, array

        def parameters(self) -> dict[str, Any]:
            return {"odd": self.odd}

        def state(self) -> MethodState:
            held = super().state()
            return held if self.array is None else MethodState(prompts={**held.prompts, "odd": self.array}, shared=held.shared)

    for value in (float("nan"), float("inf"), np.float32(0.5), (1, 2), np.arange(2)):
        with pytest.raises(ConfigError, match=r"counting.parameters\(\) must be finite numbers.*odd="):
            selector(Odd(value))
    with pytest.raises(ConfigError, match=r"counting.state\(\) must hold bool, integer and float arrays, got object for 'odd'"):
        selector(Odd(array=np.array([None] * 40)))
    with pytest.raises(ConfigError, match=r"one entry a prompt, shape \(40, ...\), got \(3,\) for 'odd'"):
        selector(Odd(array=np.zeros(3)))
    with pytest.raises(ConfigError, match="correct_at"):
        selector(correct_at=float("nan"))


@pytest.mark.parametrize("bad", [{"x": float("nan")}, {"x": float("inf")}, {"x": np.float32(3)}])
def test_a_metric_that_is_no_number_stops_no_save(tmp_path: Path, bad: dict[str, Any]) -> None:
    s = selector(directory=tmp_path)
    with s.step(policy_version=np.int64(0)) as step:  # type: ignore[arg-type]
        for batch in step.requests():
            step.report([edgewise.Outcome(ticket=t, rewards=[1, 0, 0, 0]) for t in batch])
        step.note(huge=1.7e308)
        step.note(huge=1.7e308, **bad)
    s.metrics.update(bad)
    s.save(tmp_path / "x")
    assert selector(directory=tmp_path).step_number == 1


def test_a_method_whose_state_breaks_later_degrades_instead_of_stopping_the_run(tmp_path: Path) -> None:
    s = selector(directory=tmp_path)
    run_step(s)
    s.method.state = lambda: MethodState(prompts={}, shared={"total": np.array([None])})  # type: ignore[method-assign]
    with pytest.warns(DegradedWarning, match="could not be written"):
        s.commit()
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_a_header_too_large_to_be_read_back_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s = selector(n=2000, directory=tmp_path)
    s.commit()
    s.take(1500)
    s.save(tmp_path / "large")
    again = selector(n=2000)
    again.restore(tmp_path / "large")
    assert again.in_flight == s.in_flight
    monkeypatch.setattr(state, "_MOST_HEADER", 1_000)
    with pytest.raises(StateError, match="could not be read back"):
        s.save(tmp_path / "larger")
    s._durable.files.forget_base()  # type: ignore[union-attr]  # so that the next commit writes all of it
    with pytest.warns(DegradedWarning, match="could not be read back"):
        s.commit()
    monkeypatch.undo()
    assert selector(n=2000, directory=tmp_path).step_number == 0


# -- the directory -----------------------------------------------------------------------------------------------------


def test_a_rewound_run_is_not_overtaken_by_the_states_it_left_behind(tmp_path: Path) -> None:
    whole = selector(directory=tmp_path / "run")
    expected = []
    for k in range(6):
        expected.append(run_step(whole, k))
        whole.save(tmp_path / f"checkpoint-{k + 1}")
    again = selector(directory=tmp_path / "run")
    assert again.step_number == 6
    again.restore(tmp_path / "checkpoint-2")  # the trainer resumes at an older checkpoint
    assert run_step(again, 2) == expected[2]
    next_day = selector(directory=tmp_path / "run")
    assert next_day.step_number == 3
    assert [run_step(next_day, k) for k in range(3, 6)] == expected[3:]
    assert len(list((tmp_path / "run").glob("*.safetensors"))) == 2


def test_a_second_selector_in_the_same_directory_is_noticed(tmp_path: Path) -> None:
    first = selector(directory=tmp_path)
    run_step(first, 0)
    second = selector(directory=tmp_path)
    run_step(second, 1)
    with pytest.warns(DegradedWarning, match="another writer took over"):
        run_step(first, 1)
    assert first.metrics["journal_degraded"] == 1
    run_step(second, 2)
    assert selector(directory=tmp_path).step_number == 3
    strict = selector(directory=tmp_path, on_problem="strict")
    run_step(selector(directory=tmp_path))
    with pytest.raises(StateError, match="give each run a directory of its own"):
        run_step(strict)


def test_a_directory_that_cannot_be_used_is_refused_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot be used"):
        selector(directory=tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be used"):
        selector(directory=tmp_path / "file" / "below")


def test_symlinks_are_followed_to_the_folder_and_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    outside = tmp_path / "outside"
    outside.write_text("precious")
    (tmp_path / "real" / "selector-000000001.safetensors").symlink_to(outside)
    with pytest.raises(StateError, match="No readable state"):
        selector(directory=tmp_path / "link")
    s = selector(directory=tmp_path / "link", resume="fresh")
    run_step(s)
    run_step(s)
    assert outside.read_text() == "precious"
    assert selector(directory=tmp_path / "real").step_number == 2


def test_half_written_files_of_a_killed_run_are_cleared_and_states_can_be_read_by_others(tmp_path: Path) -> None:
    run_step(selector(directory=tmp_path))
    (tmp_path / ".selector-000000002.safetensors.0123456789ab.tmp").write_bytes(b"half")
    (tmp_path / "mine.txt").write_text("stays")
    again = selector(directory=tmp_path)
    name = "selector-000001-000000001.safetensors"
    assert sorted(f.name for f in tmp_path.iterdir()) == ["mine.txt", name, "writer-000002.json"]
    mode = (tmp_path / name).stat().st_mode & 0o777
    (tmp_path / "plain").touch()
    assert mode == (tmp_path / "plain").stat().st_mode & 0o777  # as the user's umask says
    assert again.step_number == 1


def test_the_directory_may_vanish_under_a_run(tmp_path: Path) -> None:
    import shutil

    s = selector(directory=tmp_path / "run")
    run_step(s)
    shutil.rmtree(tmp_path / "run")
    with pytest.warns(DegradedWarning, match="vanished; it is made again"):
        run_step(s)
    assert selector(directory=tmp_path / "run").step_number == 2


def test_a_newer_state_is_refused_and_not_passed_over_for_an_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s = selector(directory=tmp_path)
    run_step(s)
    monkeypatch.setattr(state, "FORMAT", state.FORMAT + 1)
    run_step(s)
    monkeypatch.undo()
    with pytest.raises(StateVersionError, match=f"state format {state.FORMAT + 1}.*reads up to format {state.FORMAT}"):
        selector(directory=tmp_path)


def test_fresh_starts_anew_and_loses_nothing(tmp_path: Path) -> None:
    for round in range(2):
        s = selector(directory=tmp_path, resume="fresh")
        assert s.step_number == 0
        run_step(s)
        assert len(list(tmp_path.glob("*.superseded"))) == round


def test_disk_full_at_any_write_leaves_the_last_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for call in ("fsync", "replace"):
        for n in range(2):
            folder = tmp_path / f"{call}{n}"
            s = selector(directory=folder)
            run_step(s)
            done, real = [0], getattr(os, call)

            def full(*args: Any, n: int = n, real: Any = real, done: list[int] = done) -> Any:
                done[0] += 1
                if done[0] > n:
                    raise OSError(28, "No space left on device")
                return real(*args)

            monkeypatch.setattr(os, call, full)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DegradedWarning)
                run_step(s)
            monkeypatch.undo()
            held = History.of(folder).newest()
            assert held is not None
            assert held.node.step in (1, 2)
            run_step(s)
            assert selector(directory=folder).step_number == 3
            assert not list(folder.glob(".*"))


def test_each_outage_is_told_once_and_the_next_one_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    s = selector(directory=tmp_path)
    told = []
    for broken in (False, True, True, True, False, False, True, True, False):
        monkeypatch.setattr(os, "fsync", full if broken else os.fsync)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run_step(s)
        monkeypatch.undo()
        told.append(len(caught))
        assert s.metrics["journal_degraded"] == float(broken)
        assert s.metrics["degraded_total"] == s._totals["degraded_total"]
    assert told == [0, 1, 0, 0, 0, 0, 1, 0, 0]
    assert selector(directory=tmp_path).step_number == 9


def test_a_method_whose_state_raises_at_a_commit_stops_no_run(tmp_path: Path) -> None:
    s = selector(directory=tmp_path)
    run_step(s)
    good = s.method.state

    def broken() -> MethodState:
        raise ZeroDivisionError("state")

    s.method.state = broken  # type: ignore[method-assign]
    with pytest.warns(DegradedWarning, match="counting.state failed: ZeroDivisionError: state. Nothing was written"):
        s.commit()
    assert s.metrics["journal_degraded"] == 1
    s.method.state = good  # type: ignore[method-assign]
    s.commit()
    assert s.metrics["journal_degraded"] == 0
