"""A run's directory over its life: readers beside the writer, rewinding, what is kept and what is cleared away."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise import deltas, state
from edgewise.directory import RunDirectory
from edgewise.errors import DegradedWarning, MethodError, StateError
from edgewise.history import History, files
from edgewise.method import StepView
from edgewise.types import Groups
from tests import ledger
from tests.kill_writer import digest
from tests.test_selector import Counting, run_step, selector

MOST = 1 << 20
STEPS = 24


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody cuts the power here."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


class Twin:
    """An uninterrupted run: before each step the digest of its state, and the rounds that step asks for."""

    def __init__(self) -> None:
        s = selector()
        self.digests, self.asked = [digest(s)], []
        for k in range(STEPS):
            self.asked.append(run_step(s, k))
            self.digests.append(digest(s))


@pytest.fixture(scope="module")
def twin() -> Twin:
    return Twin()


def committed(where: Path, steps: int, **more: Any) -> Any:
    s = selector(directory=where, **more)
    for k in range(s.step_number, steps):
        run_step(s, k)
    return s


def quietly(where: Path, **more: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return selector(directory=where, **more)


# -- readers ---------------------------------------------------------------------------------------------------------------


def read_on(where: Path, stop: Any, results: Any) -> None:
    """Read the newest state over and over; send (reads, the steps seen, what went wrong)."""
    reads, seen, wrong = 0, [], []
    while not stop.is_set():
        try:
            history = History.of(where)
            found = history.newest()
            reads += 1
            if found is not None:
                seen.append(
                    (found.header["step"], int(found.arrays["method/shared/x"][0]), float(found.arrays["table/t"].sum()))
                )
            wrong += history.broken
        except Exception as error:
            wrong.append(repr(error))
    results.send((reads, seen, wrong[:5]))


def test_a_reader_beside_a_thousand_commits_always_finds_a_whole_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new snapshot, and old files gone, with every third commit. What is read never grows older, and is never torn."""
    monkeypatch.setattr("edgewise.directory.RECORDS", 3)
    context = multiprocessing.get_context("fork")
    commits, readers = ledger.cases(400, chaos=3000), 2
    directory, stop = RunDirectory(tmp_path, MOST), context.Event()
    pipes, processes = [], []
    for _ in range(readers):
        receive, send = context.Pipe(duplex=False)
        processes.append(context.Process(target=read_on, args=(tmp_path, stop, send), daemon=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            processes[-1].start()
        pipes.append(receive)
    rows = np.arange(50)
    for step in range(1, commits + 1):
        arrays = {
            "method/prompts/p": np.full((50, 3), float(step)),
            "method/shared/x": np.full(4, step, dtype=np.int64),
            "table/t": np.stack([np.arange(step % 7), np.full(step % 7, step)], axis=1).astype(np.int64),
        }
        directory.commit({"step": step}, arrays, rows)
    stop.set()
    reads = 0
    for receive, process in zip(pipes, processes, strict=True):
        some, seen, wrong = receive.recv()
        process.join(20)
        assert not wrong
        steps = [step for step, _, _ in seen]
        assert steps == sorted(steps), "an older state after a newer one"
        assert all(x == step and total == step % 7 * step + sum(range(step % 7)) for step, x, total in seen)
        assert len(set(steps)) > 10
        reads += some
    assert directory.notes == []
    newest = History.of(tmp_path).newest()
    assert newest is not None
    assert newest.header["step"] == commits
    directory.close()
    ledger.note(22, tried=reads, held=reads)


def test_files_that_vanish_while_they_are_read_are_looked_for_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each single read, the writer compacts once more; a directory that never holds still ends in a word."""
    monkeypatch.setattr("edgewise.directory.RECORDS", 1)
    s = committed(tmp_path, 5)
    real, left = state.read, [0]

    def read(source: Path, *more: Any, **named: Any) -> bytes:
        if left[0]:
            left[0] -= 1
            with monkeypatch.context() as patch:
                patch.setattr(state, "read", real)
                patch.setattr("edgewise.journal.read", real)
                for _ in range(3):
                    run_step(s, s.step_number)
        return real(source, *more, **named)

    monkeypatch.setattr(state, "read", read)
    monkeypatch.setattr("edgewise.journal.read", read)
    for times in range(1, 12):
        left[0] = times
        history = History.of(tmp_path)
        found = history.newest()
        assert history.broken == []
        assert found is not None
        assert s.step_number - 3 <= found.header["step"] <= s.step_number
    left[0] = 10**9
    monkeypatch.setattr("edgewise.history._TRIES", 4)
    with pytest.raises(StateError, match="files vanished 4 times while they were read. Try again."):
        History.of(tmp_path).newest()
    left[0] = 0
    s.close()
    ledger.note(22, tried=12, held=12)


# -- rewinding ---------------------------------------------------------------------------------------------------------------


def test_a_run_rewound_to_any_step_equals_the_uninterrupted_one_and_twice(
    tmp_path: Path, twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewise.directory.RECORDS", 5)
    committed(tmp_path / "run", 16, generations=3).close()
    reachable = History.of(tmp_path / "run").steps()
    assert reachable[-1] == 16
    assert len(reachable) >= 10
    for step in reachable:
        where = tmp_path / str(step)
        shutil.copytree(tmp_path / "run", where)
        for _ in range(2):
            s = selector(directory=where, resume=step, generations=3)
            assert s.step_number == step
            assert digest(s) == twin.digests[step]
            assert [run_step(s, k) for k in range(step, step + 3)] == twin.asked[step : step + 3]
            s.close()
        again = selector(directory=where)
        assert again.step_number == step + 3
        assert digest(again) == twin.digests[step + 3]
        again.close()
        if step < 16:
            with pytest.raises(StateError, match=r"has no state of step 20: it reaches back to step \d+, and on to"):
                selector(directory=where, resume=20)
    ledger.note(54, tried=2 * len(reachable), held=2 * len(reachable), resumes=2 * len(reachable))


def other_world(ticket: Any) -> Any:
    """Another outcome for every prompt: a branch that can be told from the one before."""
    from edgewise.types import Outcome

    return Outcome(ticket=ticket, rewards=[1.0, 0.0, 0.0, 0.0])


@pytest.mark.parametrize("commits", [1, 2, 7])
@pytest.mark.parametrize(("begun", "back"), [(14, 9), (18, 15)], ids=["behind a snapshot", "behind two"])
def test_a_branch_that_was_given_up_is_never_followed_whatever_file_is_damaged(
    tmp_path: Path, twin: Twin, monkeypatch: pytest.MonkeyPatch, begun: int, back: int, commits: int
) -> None:
    """Rewound, with other outcomes from there on; then every file is damaged in turn."""
    monkeypatch.setattr("edgewise.directory.RECORDS", 6)
    committed(tmp_path / "run", begun).close()
    old = {step: twin.digests[step] for step in range(begun + 1)}
    s = selector(directory=tmp_path / "run", resume=back)
    new = {}
    for k in range(back, back + commits):
        run_step(s, k, other_world)
        new[k + 1] = digest(s)
    s.close()
    tried = 0
    for file in sorted((tmp_path / "run").glob("selector-*")):
        data = file.read_bytes()
        for harmed in (b"", bytes(len(data)), data[: len(data) // 2], data[:-1], b"x" + data[1:]):
            where = tmp_path / f"{tried}"
            shutil.copytree(tmp_path / "run", where)
            (where / file.name).write_bytes(harmed)
            again = quietly(where)
            step, found = again.step_number, digest(again)
            if step > back:
                assert found == new[step], f"{file.name} damaged: the branch that was given up is back, at step {step}"
            else:
                assert found == old[step]
            run_step(again, step)
            assert again.metrics["journal_degraded"] == 0
            again.close()
            assert quietly(where).step_number == step + 1
            shutil.rmtree(where)
            tried += 1
    whole = selector(directory=tmp_path / "run")
    assert digest(whole) == new[back + commits]
    whole.close()
    ledger.note(54, tried=tried, held=tried)


def test_looking_at_an_older_step_gives_up_nothing_before_the_first_commit(tmp_path: Path, twin: Twin) -> None:
    committed(tmp_path, 8).close()
    for step in (4, 8, 6):
        s = selector(directory=tmp_path, resume=step)
        assert digest(s) == twin.digests[step]
        s.close()
    s = selector(directory=tmp_path)
    assert s.step_number == 8
    s.close()
    ledger.note(54, tried=4, held=4)


def test_a_selector_restored_from_a_file_leaves_later_steps_of_its_directory_behind(tmp_path: Path, twin: Twin) -> None:
    s = committed(tmp_path / "run", 5)
    s.save(tmp_path / "checkpoint")
    for k in range(5, 9):
        run_step(s, k)
    s.restore(tmp_path / "checkpoint")
    new = {}
    for k in (5, 6, 7):
        run_step(s, k, other_world)
        new[k + 1] = digest(s)
    assert s.metrics["journal_degraded"] == 0
    s.close()
    for file in sorted((tmp_path / "run").glob("selector-*")):
        where = tmp_path / file.name
        shutil.copytree(tmp_path / "run", where)
        (where / file.name).write_bytes(b"damaged")
        again = quietly(where)
        assert digest(again) == (new[again.step_number] if again.step_number > 5 else twin.digests[again.step_number])
        again.close()
    with pytest.raises(StateError, match="has no state of step 9"):
        selector(directory=tmp_path / "run", resume=9)
    again = selector(directory=tmp_path / "run")
    assert digest(again) == new[8]
    again.close()
    ledger.note(54, tried=1, held=1)


@pytest.mark.parametrize("generations", [2, 3, 6])
def test_generations_reach_as_far_back_as_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, generations: int) -> None:
    monkeypatch.setattr("edgewise.directory.RECORDS", 2)
    s = selector(directory=tmp_path, generations=generations)
    for k in range(20):
        run_step(s, k)
        if k >= 3 * generations:
            snapshots = files(tmp_path, "safetensors")
            assert len(snapshots) == generations
            steps = History.of(tmp_path).steps()
            assert steps == list(range(steps[0], k + 2))
            assert len(steps) >= 2 * (generations - 1) + 1
    s.close()


class Branch:
    """The oracle: the run as it is, by step. Each commit leaves a number that no other commit ever leaves."""

    def __init__(self, where: Path, rng: np.random.Generator) -> None:
        self.where, self.rng = where, rng
        self.kept: dict[int, int] = {0: 0}
        self.values, self.step, self.token = np.zeros((7, 2)), 0, 0
        self.directory: RunDirectory | None = None
        self.found = 0
        self.newest: int | None = 0

    def open(self, at: int | None = None) -> bool:
        """As a selector does: the newest state, or that of step `at`. False if nothing can be read."""
        self.directory = RunDirectory(self.where, MOST, int(self.rng.integers(2, 5)))
        history = self.directory.history()
        recovered = history.newest() if at is None else history.at_step(at)
        if recovered is None and (history.nodes() or history.journals):
            return False
        if recovered is not None:
            step = int(recovered.header["step"])
            values = recovered.arrays["method/prompts/p"]
            assert int(recovered.header["token"]) == int(values.max()) == self.kept[step], "a state that this branch never had"
            assert at is None or step == at
            self.values, self.step = values.copy(), step
            self.newest = step if at is None else self.newest
        self.directory.continue_from(history, recovered, exactly=bool(self.rng.random() < 0.8))
        self.found += 1
        return True

    def commit(self) -> None:
        assert self.directory is not None
        self.kept = {k: token for k, token in self.kept.items() if k <= self.step}  # from here on the rest is given up
        self.step, self.token = self.step + 1, self.token + 1
        row = int(self.rng.integers(7))
        self.values[row] = self.token
        arrays = {"method/prompts/p": self.values, "method/shared/x": np.arange(self.step % 4)}
        self.directory.commit({"step": self.step, "token": self.token}, arrays, np.array([row]))
        self.kept[self.step], self.newest = self.token, self.step

    def end(self) -> None:
        """As a kill does, every other time."""
        assert self.directory is not None
        if self.rng.random() < 0.5:
            self.directory.close()
        self.directory = None

    def damage(self) -> None:
        """Cut, flip, empty or lengthen one file."""
        found = sorted(self.where.glob("selector-*"))
        file = found[int(self.rng.integers(len(found)))]
        data = file.read_bytes()
        at = int(self.rng.integers(len(data) + 1))
        flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if at < len(data) else b""
        file.write_bytes([data[:at], flipped, b"", bytes(len(data)), data + b"EDGEWJ1\n"][int(self.rng.integers(5))])


def test_in_any_storm_a_run_finds_states_of_its_own_branch_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits, kills, rewinding, damage upon damage: what is opened is the present branch, at its newest step if unharmed."""
    monkeypatch.setattr("edgewise.directory.RECORDS", 4)
    rng, opened, unreadable = np.random.default_rng([ledger.seed(), 54]), 0, 0
    storms = ledger.cases(25, chaos=500)
    for number in range(storms):
        branch = Branch(tmp_path / str(number), rng)
        assert branch.open()
        for _ in range(12):
            for _ in range(int(rng.integers(0, 9))):
                branch.commit()
            newest, harmed = branch.newest, False
            branch.end()
            if rng.random() < 0.35 and list(branch.where.glob("selector-*")):
                branch.damage()
                harmed = True
            reachable = [step for step in History.of(branch.where, MOST).steps() if step]
            at = int(rng.choice(reachable)) if reachable and rng.random() < 0.3 else None
            if not branch.open(at):
                unreadable += 1
                assert harmed
                break
            assert harmed or newest is None or branch.step == (newest if at is None else at)
            if harmed and at is not None:
                branch.newest = None  # what was harmed was not looked at
        opened += branch.found
        shutil.rmtree(branch.where)
    assert unreadable < storms / 2
    ledger.note(54, tried=opened, held=opened, resumes=opened)


# -- a state that is missing ---------------------------------------------------------------------------------------------------


def test_a_step_asked_for_in_an_empty_directory_is_an_error_in_words(tmp_path: Path) -> None:
    tried = 0
    for where in (tmp_path / "never", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(StateError, match=r"has no state of step 50: it has no state at all\.") as error:
            selector(directory=where, resume=50)
        assert str(where) in str(error.value)
        assert "pass resume='fresh' to start from priors" in str(error.value)
        tried += 1
    assert selector(directory=tmp_path / "never", resume="fresh").step_number == 0
    ledger.note(9, tried=tried, held=tried)


def test_a_directory_whose_snapshots_were_deleted_is_no_first_start(tmp_path: Path) -> None:
    committed(tmp_path, 5).close()
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(StateError, match="No readable state among those in"):
        selector(directory=tmp_path)
    ledger.note(9, tried=1, held=1)


# -- what a method must not do -------------------------------------------------------------------------------------------


class Elsewhere(Counting):
    """Writes at a row that was not observed."""

    def __init__(self, since: int) -> None:
        super().__init__()
        self.since = since

    def observe(self, groups: Groups, step: StepView) -> None:
        super().observe(groups, step)
        if self.total[0] > self.since:
            self.visits[(groups.rows[0] + 1) % len(self.visits)] += 100


@pytest.mark.parametrize("since", [0, 50])
def test_a_method_that_writes_elsewhere_is_found_and_its_states_are_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, since: int
) -> None:
    monkeypatch.setattr("edgewise.directory.RECORDS", 4)
    s = selector(Elsewhere(since), directory=tmp_path)
    said: list[str] = []
    for k in range(20):
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            run_step(s, k)
        said += [str(warning.message) for warning in heard]
        if said:
            read = History.of(tmp_path).newest()
            assert read is not None
            assert read.header["step"] == k + 1
            assert (read.arrays["method/prompts/visits"] == s.method.state().prompts["visits"]).all()
    (message,) = said
    assert "'visits'" in message
    assert "changed at rows of prompts whose groups were not observed" in message
    again = selector(Elsewhere(since), directory=tmp_path)
    assert again.step_number == 20
    assert (again.method.state().prompts["visits"] == s.method.state().prompts["visits"]).all()


def test_a_method_that_writes_elsewhere_raises_in_strict_mode(tmp_path: Path) -> None:
    s = selector(Elsewhere(0), directory=tmp_path, on_problem="strict")
    run_step(s, 0)
    with pytest.raises(MethodError, match="counting: the saved arrays 'visits' are not what the journal makes of them"):
        run_step(s, 1)
    run_step(s, 2)


class Rounding(Counting):
    """Comes back with other values than it saved."""

    def restore(self, state: Any) -> None:
        super().restore(state)
        self.visits = self.visits // 2 * 2


def test_a_method_that_restores_other_values_is_saved_as_it_is_now(tmp_path: Path) -> None:
    first = selector(Rounding(), directory=tmp_path)
    for k in range(9):
        run_step(first, k)
    first.close()
    second = selector(Rounding(), directory=tmp_path)
    run_step(second, 9)
    found = History.of(tmp_path).newest()
    assert found is not None
    assert (found.arrays["method/prompts/visits"] == second.method.state().prompts["visits"]).all()
    second.close()


# -- what is kept --------------------------------------------------------------------------------------------------------


def test_two_thousand_commits_leave_two_generations_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many openings and kills, too: what is on disk is bounded, and each time two snapshots can be read."""
    monkeypatch.setattr("edgewise.directory.RECORDS", 8)
    commits, sizes, names = ledger.cases(250, chaos=2000), [], []
    s = selector(directory=tmp_path)
    for k in range(commits):
        if k % 5 == 4:  # more often than snapshots come by themselves; every other time its end is torn
            s.close()
            if k % 10 == 9:
                with sorted(tmp_path.glob("*.journal"))[-1].open("ab") as file:
                    file.write(b"EDGEWJ1\nunfinished")
            s = quietly(tmp_path)
        run_step(s, k)
        sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir() if not file.name.endswith(".torn")))
        names.append(len(list(tmp_path.iterdir())))
        if k >= 1:
            newest = History.of(tmp_path).newest()
            assert newest is not None
            assert newest.header["step"] == k + 1
            assert len(newest.snapshots) >= 2
            assert newest.records <= 8
    s.close()
    assert max(names) <= 2 + 16 + 1 + 8
    assert max(sizes[commits // 2 :]) <= 1.2 * max(sizes[: commits // 2])
    ledger.note(64, tried=commits, held=commits)


def test_a_snapshot_that_turned_out_damaged_does_not_count_as_a_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before it stays until there are two sound ones again."""
    monkeypatch.setattr("edgewise.directory.RECORDS", 4)
    s = committed(tmp_path, 6)
    for k in range(6, 24):
        snapshots = files(tmp_path, "safetensors")
        if k % 6 == 0:
            snapshots[-1].path.write_bytes(b"damaged")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run_step(s, k)
        found = History.of(tmp_path).newest()
        assert found is not None
        assert found.header["step"] == k + 1
        if files(tmp_path, "safetensors") != snapshots:
            assert len(found.snapshots) >= 2
    s.close()
    ledger.note(13, tried=3, held=3)


def test_a_snapshot_that_cannot_be_written_costs_no_commit(tmp_path: Path, twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal goes on, it is said once, and the snapshot is tried again, less and less often; once it works all is well."""
    monkeypatch.setattr("edgewise.directory.RECORDS", 3)
    s = committed(tmp_path, 3)
    attempts = []

    def save(path: Path, data: bytes) -> None:
        attempts.append(path)
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        patch.setattr(state, "write", save)
        for k in range(3, 15):
            assert run_step(s, k) == twin.asked[k]
            assert s.metrics["journal_degraded"] == 0
            found = History.of(tmp_path).newest()
            assert found is not None
            assert found.header["step"] == k + 1
    (message,) = said
    assert "no new snapshot" in str(message.message)
    assert 2 <= len(attempts) < 6
    for k in range(15, 24):
        run_step(s, k)
    found = History.of(tmp_path).newest()
    assert found is not None
    assert found.records <= 3
    assert len(files(tmp_path, "safetensors")) == 2
    s.close()
    ledger.note(5, tried=12, held=12)


def test_a_journal_does_not_outgrow_what_a_reader_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While no snapshot can be written, new journals are begun."""
    most = 20_000
    directory = RunDirectory(tmp_path, most)
    directory.commit({"step": 0}, {"method/prompts/p": np.zeros((100, 8))}, np.arange(0))

    def save(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(state, "write", save)
    values = np.zeros((100, 8))
    for step in range(1, 60):
        values[:30] = step
        directory.commit({"step": step}, {"method/prompts/p": values}, np.arange(30))
    assert max(file.stat().st_size for file in tmp_path.glob("*.journal")) <= most
    found = History.of(tmp_path, most).newest()
    assert found is not None
    assert found.header["step"] == 59
    assert (found.arrays["method/prompts/p"][:30] == 59).all()
    directory.close()


def test_files_that_cannot_be_removed_are_survived(tmp_path: Path, twin: Twin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.directory.RECORDS", 2)
    s = committed(tmp_path, 4)
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("selector-"):
            raise PermissionError(1, "Operation not permitted", str(path))
        real(path, missing_ok)

    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        patch.setattr(Path, "unlink", unlink)
        for k in range(4, 12):
            assert run_step(s, k) == twin.asked[k]
            assert s.metrics["journal_degraded"] == 0
    messages = [str(warning.message) for warning in said]
    assert messages
    assert len(set(messages)) == len(messages)
    for k in range(12, 17):
        run_step(s, k)
    assert len(files(tmp_path, "safetensors")) == 2
    s.close()
    assert selector(directory=tmp_path).step_number == 17


def test_what_was_left_behind_is_cleared_away_with_the_next_generations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewise.directory.RECORDS", 3)
    committed(tmp_path, 12).close()
    s = selector(directory=tmp_path, resume=9)
    for k in range(9, 17):
        run_step(s, k)
    assert {found.fence for found in (*files(tmp_path, "safetensors"), *files(tmp_path, "journal"))} == {2}
    s.close()


class Interrupt:
    """Ctrl-C at the `at`-th line that is run of directory.py and journal.py."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0

    def __call__(self, frame: Any, event: str, value: Any) -> Any:
        if not frame.f_code.co_filename.endswith(("directory.py", "journal.py")):
            return None
        if event == "line":
            self.count += 1
            if self.count == self.at:
                raise KeyboardInterrupt
        return self


def test_an_interrupt_in_any_line_of_a_commit_leaves_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C as a notebook has it: the object lives on, and whatever it commits next is what will be read."""
    monkeypatch.setattr("edgewise.directory.RECORDS", 3)
    directory, values = RunDirectory(tmp_path, MOST), np.zeros((9, 2))

    def commit(step: int, rows: list[int]) -> None:
        arrays = {"method/prompts/p": values, "method/shared/x": np.arange(step % 5)}
        directory.commit({"step": step}, arrays, np.unique(rows))

    interrupted, step = 0, 0
    for at in range(1, 400, ledger.cases(3, chaos=1)):
        step += 1
        row = step % 9
        values[row] += step
        before = sys.gettrace()
        sys.settrace(Interrupt(at))
        try:
            commit(step, [row])
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            sys.settrace(before)
        step += 1
        values[(row + 4) % 9] -= step
        commit(step, [row, (row + 4) % 9])
        found = History.of(tmp_path).newest()
        assert found is not None
        assert found.header["step"] == step, f"line {at}"
        assert (found.arrays["method/prompts/p"] == values).all(), f"line {at}"
    assert interrupted > 30
    directory.close()


def test_what_nobody_writes_to_reaches_the_difference_as_the_same_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the keys of a million prompts would be compared at each commit."""
    keys = np.arange(10, dtype=np.uint64)
    keys.flags.writeable = False
    directory, compared = RunDirectory(tmp_path, MOST), []
    real = deltas._some
    monkeypatch.setattr(deltas, "_some", lambda name, *more: compared.append(name) or real(name, *more))
    for step in range(4):
        directory.commit({"step": step}, {"pool/ids": keys, "method/shared/x": np.zeros(2)}, np.arange(0))
    assert set(compared) == {"method/shared/x"}
    directory.close()


def test_memory_follows_the_state_and_not_the_bound_on_it(tmp_path: Path) -> None:
    """A file is bounded by what a state of this run may have; that much must not be allocated to read one."""
    directory, values = RunDirectory(tmp_path, 1 << 33), np.zeros((50_000, 4))
    tracemalloc.start()
    try:
        for step in range(3):
            directory.commit({"step": step}, {"method/prompts/p": values}, np.arange(5))
        directory.close()
        assert len(files(tmp_path, "safetensors")) == 2
        assert History.of(tmp_path).newest() is not None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 * values.nbytes
    ledger.note(64, tried=1, held=1)


def test_what_is_promised_is_flushed_before_it_is_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file before its name, the name before anything is built on it, and nothing older goes before both."""
    monkeypatch.setattr("edgewise.directory.RECORDS", 3)
    events: list[tuple[str, str]] = []

    def named(file: int) -> str:
        return os.path.basename(os.readlink(f"/proc/self/fd/{file}"))

    real_write, real_replace, real_unlink = os.write, os.replace, Path.unlink
    monkeypatch.setattr(os, "fsync", lambda file: events.append(("flush", named(file))))
    monkeypatch.setattr(os, "write", lambda file, data: events.append(("write", named(file))) or real_write(file, data))
    monkeypatch.setattr(os, "replace", lambda a, b: events.append(("name", os.path.basename(b))) or real_replace(a, b))
    monkeypatch.setattr(Path, "unlink", lambda f, **more: events.append(("unlink", f.name)) or real_unlink(f, **more))
    directory, values = RunDirectory(tmp_path, MOST), np.zeros((9, 2))
    records = snapshots = removals = 0
    for step in range(1, 20):
        events.clear()
        known = {file.name for file in tmp_path.iterdir()}
        directory.commit({"step": step}, {"method/prompts/p": values, "method/shared/x": np.arange(step)}, np.arange(1))
        written = [name for kind, name in events if kind == "write" and name.endswith(".journal")]
        for name in written:
            at = events.index(("write", name))
            assert ("flush", name) in events[at:], "a record is on disk before the commit returns"
            assert name in known or ("flush", tmp_path.name) in events[:at], "and so was the name of its file"
            records += 1
        for kind, name in list(events):
            if kind == "name":
                at = events.index((kind, name))
                assert events[at - 1][0] == "flush"
                assert events[at - 1][1].startswith(f".{name}.")
                assert events[at + 1] == ("flush", tmp_path.name)
                snapshots += 1
        gone = [at for at, (kind, name) in enumerate(events) if kind == "unlink" and not name.startswith(".")]
        if gone:
            assert ("flush", tmp_path.name) in events[events.index(next(e for e in events if e[0] == "name")) : min(gone)]
            removals += 1
    assert min(records, snapshots, removals) > 3
    directory.close()
    ledger.note(3, tried=records + snapshots, held=records + snapshots)


def test_big_endian_arrays_are_saved_without_a_complaint(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, MOST)
    values = np.zeros((6, 2), dtype=">f8")
    for step in range(1, 6):
        values[step] = step
        arrays = {"method/prompts/p": values, "method/shared/x": np.arange(step, dtype=">i4")}
        directory.commit({"step": step}, arrays, np.array([step]))
    directory.close()
    found = History.of(tmp_path).newest()
    assert found is not None
    assert (found.arrays["method/prompts/p"] == values).all()
    assert found.arrays["method/shared/x"].tolist() == [0, 1, 2, 3, 4]


def test_a_state_with_numbers_that_cannot_be_written_degrades(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, MOST)
    with pytest.raises(StateError, match="bool, integer and float arrays"):
        directory.commit({"step": 1}, {"method/shared/x": np.zeros(2, dtype=np.longdouble)}, np.arange(0))
    directory.close()


def test_a_job_that_is_restarted_before_it_compacts_does_compact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records behind a snapshot count across restarts: the chain to be replayed, and the files, stay few."""
    monkeypatch.setattr("edgewise.directory.RECORDS", 10)
    committed(tmp_path, 2).close()
    for k in range(2, 40):
        s = selector(directory=tmp_path)
        run_step(s, k)
        s.close()
        found = History.of(tmp_path).newest()
        assert found is not None
        assert found.records <= 10
    assert len(list(tmp_path.iterdir())) < 30


def test_a_degraded_warning_is_all_that_a_closed_directory_gives(tmp_path: Path) -> None:
    s = committed(tmp_path, 3)
    s.close()
    s.close()
    with pytest.warns(DegradedWarning, match="was given back"):
        run_step(s, 3)
    assert s.metrics["journal_degraded"] == 1


class Growing(Counting):
    """Begins with nothing, and keeps 40 MB once it saw a group: the size of a network or a matrix may follow a signal."""

    held = np.empty(0)

    def observe(self, groups: Groups, step: StepView) -> None:
        super().observe(groups, step)
        self.held = np.full(5_000_000, float(np.sum(self.total)))

    def state(self) -> Any:
        held = super().state()
        return type(held)(held.prompts, {**held.shared, "held": self.held})

    def restore(self, state: Any) -> None:
        super().restore(state)
        self.held = np.array(state.shared["held"])


def test_a_state_may_grow_far_beyond_what_the_method_began_with(tmp_path: Path) -> None:
    s = selector(Growing(), directory=tmp_path / "run")
    for k in range(3):
        run_step(s, k)
    s.save(tmp_path / "state")
    s.close()
    for again in (selector(Growing(), directory=tmp_path / "run"), selector(Growing())):
        if again.directory is None:
            again.restore(tmp_path / "state")
        assert again.step_number == 3
        assert digest(again) == digest(s)
        again.close()


def test_what_would_not_be_read_back_is_not_written_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewise.saved._GROWTH", 1 << 20)
    s = selector(Growing(), directory=tmp_path / "run")
    with pytest.warns(DegradedWarning, match=r"the state has 40,\d{3},\d{3} bytes, and would not be read back: more than"):
        run_step(s)
    assert s.metrics["journal_degraded"] == 1
    with pytest.raises(StateError, match="would not be read back"):
        s.save(tmp_path / "state")
    assert not (tmp_path / "state").exists()
    assert not list((tmp_path / "run").glob("*.safetensors"))


# -- what the directory itself cannot show ---------------------------------------------------------------------------------


def test_a_journal_that_is_gone_is_told_and_a_directory_emptied_is_no_first_start(tmp_path: Path) -> None:
    s = selector(directory=tmp_path / "run")
    for k in range(6):
        run_step(s, k)
    s.close()
    for what in ("newest journal", "emptied journal", "all states"):
        copy = tmp_path / what
        shutil.copytree(tmp_path / "run", copy)
        newest = sorted(copy.glob("*.journal"))[-1]
        if what == "emptied journal":
            os.truncate(newest, 0)
        else:
            newest.unlink()
        if what == "all states":
            for file in copy.glob("selector-*"):
                file.unlink()
            with pytest.raises(StateError, match="has no state any longer, though the writer before made commit 6"):
                selector(directory=copy)
            selector(directory=copy, resume="fresh").close()
            assert selector(directory=copy).step_number == 0  # nothing was promised since
        else:
            with pytest.warns(DegradedWarning, match="made commit 6, the newest found is 2"):
                again = selector(directory=copy)
            assert again.step_number == 2
            again.close()
            selector(directory=copy).close()  # told once
    ledger.note(13, tried=3, held=3)


@pytest.mark.parametrize("kind", ["journal", "safetensors"])
def test_a_disk_that_fails_at_start_is_no_reason_to_go_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A newer state may be in the file that cannot be read just now: refused, unless the others lead to the same state."""
    s = selector(directory=tmp_path)
    for k in range(6):
        run_step(s, k)
    s.close()
    newest, real = sorted(tmp_path.glob(f"*.{kind}"))[-1], state.read

    def failing(source: Path, *args: Any, **more: Any) -> bytes:
        if Path(source) == newest:
            raise StateError(f"{source} cannot be read: [Errno 5] Input/output error") from OSError(5, "Input/output error")
        return real(source, *args, **more)

    monkeypatch.setattr("edgewise.state.read", failing)
    monkeypatch.setattr("edgewise.journal.read", failing)
    if kind == "journal":
        with pytest.raises(StateError, match="may hold the newest state"):
            selector(directory=tmp_path)
    else:
        with pytest.warns(DegradedWarning, match="cannot be read"):
            again = selector(directory=tmp_path)
        assert again.step_number == 6
        again.close()
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        assert selector(directory=tmp_path).step_number == 6
    ledger.note(7, tried=1, held=1)
