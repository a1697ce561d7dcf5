"""A run directory that is deleted, moved, replaced or littered with links: made again, and nothing is written outside of it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from edgewise.errors import StateError
from tests import ledger
from tests.twins import Run, loud, selector


def remove(directory: Path) -> None:
    shutil.rmtree(directory)


def move(directory: Path) -> None:
    directory.rename(directory.with_name("elsewhere"))


def empty(directory: Path) -> None:
    for file in directory.iterdir():
        file.unlink()


def remove_journals(directory: Path) -> None:
    for file in directory.glob("*.journal"):
        file.unlink()


def remove_snapshots(directory: Path) -> None:
    for file in directory.glob("*.safetensors"):
        file.unlink()


def remove_lease(directory: Path) -> None:
    for file in directory.glob("writer-*"):
        file.unlink()


def replace_by_a_copy(directory: Path) -> None:
    shutil.copytree(directory, directory.with_name("copy"))
    shutil.rmtree(directory)
    directory.with_name("copy").rename(directory)


@pytest.mark.parametrize(
    "harm", [remove, move, empty, remove_journals, remove_snapshots, remove_lease, replace_by_a_copy], ids=lambda f: f.__name__
)
def test_what_vanishes_is_made_again(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    """After each number of commits: what the directory holds differs."""
    tried = 0
    for commits in range(1, 7) if ledger.chaos() else (1, 2, 5):
        with warnings.catch_warnings(record=True) as said, pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("always")
            patch.setattr("edgewise.directory.RECORDS", 3)
            run = Run(tmp_path / str(commits) / "run")
            for _ in range(commits):
                run.commit()
            harm(run.directory)
            run.durable = 0
            for _ in range(4):
                run.commit()
            assert run.selector.metrics["journal_degraded"] == 0
            assert len(loud(said)) <= 1
            run.end()
        tried += 1
    ledger.note(8, tried=tried, held=tried)


@pytest.mark.parametrize("by", ["file", "link to a folder", "link to nothing"])
def test_a_directory_replaced_by_something_else_is_not_written_through(tmp_path: Path, by: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    run = Run(tmp_path / "run")
    run.commit()
    shutil.rmtree(run.directory)
    if by == "file":
        run.directory.write_text("somebody's notes")
    else:
        run.directory.symlink_to(outside if by == "link to a folder" else tmp_path / "nothing")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            run.commit(may_fail=True)
            assert run.selector.metrics["journal_degraded"] == 1
    (message,) = loud(said)
    assert "could not be written" in message
    assert list(outside.iterdir()) == []
    assert not (tmp_path / "nothing").exists()
    if by == "file":
        assert run.directory.read_text() == "somebody's notes"
    run.directory.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.commit()
    run.end()
    ledger.note(8 if by == "file" else 59, tried=3, held=3)


def test_links_in_the_directory_are_never_followed(tmp_path: Path) -> None:
    """Links that point out, under every name that the next commits could take."""
    outside = tmp_path / "outside"
    outside.mkdir()
    tried = 0
    for commits in range(1, 5):
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("ignore")
            patch.setattr("edgewise.directory.RECORDS", 3)
            run = Run(tmp_path / str(commits))
            for _ in range(commits):
                run.commit()
            links = []
            for kind in ("journal", "safetensors", "journal.000001.torn", "safetensors.000001.superseded"):
                for commit in range(commits, commits + 5):
                    link = run.directory / f"selector-000001-{commit:09d}.{kind}"
                    if not link.exists():
                        target = outside / f"{link.name}-{'is' if commit % 2 else 'is not'}-there"
                        if commit % 2:
                            target.write_text("untouched")
                        link.symlink_to(target)
                        links.append(link)
            before = {file.name: file.read_bytes() for file in outside.iterdir()}
            for _ in range(4):
                run.commit(may_fail=True)
            assert {file.name: file.read_bytes() for file in outside.iterdir()} == before
            for link in links:
                if link.is_symlink():
                    link.unlink()
            run.commit()
            run.commit()
            run.end()
        tried += len(links)
    ledger.note(59, tried=tried, held=tried)


def test_a_state_behind_a_link_is_not_read(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    for _ in range(2):
        run.commit()
    run.selector.close()
    for file in run.directory.glob("selector-*"):
        file.rename(tmp_path / file.name)
        file.symlink_to(tmp_path / file.name)
    with pytest.raises(StateError, match="symbolic link, which is not followed"):
        selector(run.directory)
    ledger.note(59, tried=1, held=1)
