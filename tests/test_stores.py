"""The comparison of stores (`benchmarks/stores.py`) runs, finds the faults it is there to find, and finds none in ours."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks import stores
from benchmarks.store_faults import damage, full, kills, viewers, writers
from benchmarks.store_faults.children import ask, ask_each
from benchmarks.store_faults.files import JsonLines, Snapshots
from benchmarks.store_faults.ours import Directory, Frames
from benchmarks.store_faults.sqlite import Sqlite, SqliteDelete, SqliteDeleteGuarded, SqliteGuarded
from benchmarks.store_faults.store import Recovered, Store, Verdict, judge, payload
from benchmarks.store_faults.tables import shown, summed

from edgewise import directory, history, state

SIZE = 1024


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: thousands of fsyncs on a busy disk take a minute and show nothing more."""
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


def content(k: int) -> bytes:
    return payload(k, SIZE)


@pytest.mark.parametrize("kind", [Directory, Sqlite, SqliteGuarded, SqliteDeleteGuarded, JsonLines, Snapshots])
def test_every_store_gives_back_two_sessions(kind: type[Store], tmp_path: Path) -> None:
    for first in (1, 6):
        store = kind(tmp_path)
        for k in range(first, first + 5):
            store.commit(k, content(k))
        store.close()
    found = kind.recover(tmp_path)
    assert judge(kind, found, 10, content) == Verdict(lost=0, steps=0, different=False, said=False)
    assert dict(found.records)[10] == content(10)


def test_verdicts_by_hand() -> None:
    """Ten committed: 1 to 4 and 6 to 9 are there, 9 with another content; then a state of commit 8 as all there is."""
    records = [(k, content(k)) for k in (1, 2, 3, 4, 6, 7, 8)] + [(9, b"other")]
    assert judge(Frames, Recovered(records), 10, content) == Verdict(lost=3, steps=6, different=True, said=True)  # 5 is missing
    assert judge(Frames, Recovered(records[:4]), 10, content) == Verdict(lost=6, steps=6, different=False, said=False)
    assert judge(Snapshots, Recovered([(8, content(8))], ["x"]), 10, content) == Verdict(2, 2, different=False, said=True)
    assert judge(Frames, Recovered([(1, content(1)), (2, content(2))]), 1, content).different is False  # 2 was in flight
    assert judge(Frames, Recovered([(k, content(k)) for k in (1, 2, 3)]), 1, content).different is True  # 3 was never written


def test_killed_writers_of_ours_lose_nothing(tmp_path: Path) -> None:
    kills.learn_names(Directory, tmp_path / "names")
    found = kills.kills(Directory, tmp_path, rounds=4, size=SIZE, seed=1, longest=0.1)
    assert found["kills"] == 4
    assert {found[name] for name in ("lost", "different", "unreadable", "cannot_go_on")} == {0}


def swept(kind: type[Store], folder: Path, fault: str, killed: bool, every: int = 4001) -> dict[str, int]:
    rows = damage.sweep(kind, folder, 6, SIZE, every, 0, killed, [fault], least=6)
    assert f"{fault}: {kind.name}" in shown("d", {kind.name: rows})
    return summed(rows.values())


def test_flips_are_found_in_ours_and_the_controls_show_that_the_sweep_bites(memory: Path) -> None:
    ours = swept(Directory, memory / "ours", "flip", killed=True)
    assert ours["cases"] >= 24
    assert (ours["silently_different"], ours["silently_lost"], ours["unreadable"]) == (0, 0, 0)
    assert ours["goes_on"] == ours["cases"]
    assert swept(JsonLines, memory / "lines", "flip", killed=True)["silently_different"] > 0
    assert swept(Sqlite, memory / "plain", "flip", killed=False)["silently_different"] > 0
    assert swept(SqliteGuarded, memory / "guarded", "flip", killed=False)["silently_different"] == 0
    assert swept(Sqlite, memory / "wal", "flip", killed=True)["silently_lost"] > 0


def test_a_full_disk_costs_ours_nothing_and_the_lines_their_file(tmp_path: Path) -> None:
    for short_write in (True, False):
        ours = full.limited(Directory, tmp_path / f"ours {short_write}", SIZE, 0, short_write)
        assert ours["refusals"] > 0
        assert (ours["lost"], ours["different"]) == (0, False)
        assert ours["readable_while_full"]
        assert ours["goes_on_by_itself"]
        assert "File too large" in shown("f", {"ours": ours})
    assert full.limited(JsonLines, tmp_path / "lines", 10_240, 0, short_write=True)["lost"] > 0


def test_a_fork_and_a_second_writer_are_told_from_the_first(tmp_path: Path) -> None:
    ours, theirs = (writers.forked(kind, tmp_path / kind.name, 1, SIZE, 0) for kind in (Directory, Sqlite))
    two = {kind: writers.two_writers(kind, tmp_path / f"two {kind.name}", SIZE, 0) for kind in (Sqlite, SqliteGuarded)}
    assert (ours["lost"], ours["parent_errors"], ours["child_wrote"]) == (0, 0, 0)
    assert theirs["child_wrote"] > 0
    assert two[SqliteGuarded]["stopped_one_wakes"] == "its write is refused"
    assert two[Sqlite]["stopped_one_wakes"] == "its write is taken"
    assert "its write is taken" in shown("h", {"theirs": {"fork": theirs, "two writers": two[Sqlite]}})


def test_viewers_of_ours_disturb_nobody(tmp_path: Path) -> None:
    looked = viewers.busy(Directory, tmp_path, 40, SIZE, 0)
    stopped = viewers.stopped(Directory, tmp_path, 5, SIZE, 0)
    assert looked["looks"] > 0
    assert {looked[name] for name in ("writer_errors", "viewer_errors", "viewer_saw_wrong")} == {0}
    assert (stopped["writer_errors"], stopped["viewer_stood"]) == (0, True)
    assert viewers.stopped(SqliteDelete, tmp_path / "delete", 1, SIZE, 0)["writer_errors"] == 1
    read_only = viewers.read_only(Directory, tmp_path, 4, SIZE, 0)
    assert "viewer stopped" in shown("g", {"ours": {"busy": looked, "stopped": stopped, "read only": read_only}})


def test_a_viewer_whose_second_look_is_interrupted_looks_a_third_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the busy viewer of part g with a compaction every 8 commits: 3 of 833 looks ended in a KeyError."""
    store = Directory(tmp_path)
    for k in range(1, 4):
        store.commit(k, content(k))
    seen = history.History.of(tmp_path)
    monkeypatch.setattr(directory, "RECORDS", 1)
    for k in range(4, 10):
        store.commit(k, content(k))  # what was seen is gone
    store.close()
    looked_at, header_of = [], state.header_of

    def interrupted(path: Path) -> dict[str, Any]:
        if not looked_at:
            path.unlink()  # the oldest: as another compaction would, between listing it and reading it
        looked_at.append(path)
        return header_of(path)

    monkeypatch.setattr(state, "header_of", interrupted)
    newest = seen.newest()
    assert newest is not None
    assert newest.node.step == 9
    assert len(looked_at) == 2  # one that vanished; then the one that is left


def test_a_store_that_crashes_or_raises_is_one_case() -> None:
    def work(case: str) -> dict[str, str]:
        if case == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if case == "raise":
            raise OSError("no")
        return {"fine": case}

    said = list(ask_each(["a", "die", "raise", "b", "die"], work))
    assert said == [{"fine": "a"}, {"crashed": 9}, {"error": "OSError: no"}, {"fine": "b"}, {"crashed": 9}]
    assert ask(lambda: work("die")) == {"crashed": 9}


def test_the_command_prints_tables_and_keeps_what_it_was_not_asked_for(
    tmp_path: Path, memory: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "LARGE", 20_480)  # a megabyte takes seconds on a busy disk
    out = tmp_path / "out.json"
    few = ["--commits", "8", "--kills", "2", "--out", str(out), "--folder", str(memory)]
    stores.main(["--parts", "a", "--stores", "edgewise,sqlite wal", *few])
    stores.main(["--parts", "b", "--stores", "edgewise", *few])
    printed = capsys.readouterr().out
    assert "x edgewise, 100k prompts" in printed
    assert "kill -9" in printed
    result = json.loads(out.read_text())
    assert sorted(result["parts"]) == ["a", "b"]
    assert result["parts"]["a"]["rows"]["10240 bytes"]["sqlite wal"]["commit_ms_p50"] > 0
    assert str(memory) not in out.read_text()
