"""The commits of one selector in its `directory`: each durable before it returns, or loudly not; neither stops the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgewise import saved
from edgewise.directory import RunDirectory
from edgewise.errors import ConfigError, EdgewiseError, MethodError, StateError
from edgewise.types import Ints

if TYPE_CHECKING:
    from pathlib import Path

    from edgewise.selector import Selector

_PARTS = 256
"""Lists of touched rows that are kept apart until the next commit."""


class Durable:
    """What stands between a selector and the files of its directory."""

    def __init__(self, selector: Selector, directory: Path, generations: int) -> None:
        """Open `directory` for writing. Raises ConfigError if it cannot be used, StateInUseError if another writer lives."""
        self._selector = selector
        self._where = f"Selector(directory={str(directory)!r})"
        try:
            self.files = RunDirectory(directory, selector._most_bytes, generations)
        except OSError as error:
            raise ConfigError(f"{self._where} cannot be used: {error}. Name a folder to write to.") from error
        self._touched: list[Ints] = []
        self._behind = False  # the last commit did not reach the disk

    def begin(self, resume: str | int) -> None:
        """Let the selector become what the directory holds; see `saved.continue_from`."""
        try:
            saved.continue_from(self._selector, self.files, resume)
        except BaseException:
            self.files.close()
            raise
        self._tell()

    def touch(self, rows: Ints) -> None:
        """Per-prompt state may change at these distinct `rows`."""
        self._touched.append(rows)
        if len(self._touched) > _PARTS:  # a stream that never commits
            self._touched = [np.unique(np.concatenate(self._touched))]

    def became(self) -> None:
        """The selector is another one now: the next commit writes all of it."""
        self._touched = []
        self.files.forget_base()

    def commit(self) -> None:
        """Write the present state. A disk that refuses, or a method that cannot be saved, is a problem and no more."""
        selector = self._selector
        rows = np.unique(np.concatenate(self._touched)) if self._touched else np.empty(0, dtype=np.int64)
        self._touched = [rows]
        try:
            content = saved.content(selector)
        except Exception as error:  # the method's own
            what = f"{selector.method.name}.state failed: {type(error).__name__}: {error}. Nothing was written."
            self._is_behind(MethodError(what))
            return
        try:
            selector.metrics["commit_bytes"] = float(self.files.commit(*content, rows))
        except MethodError as error:  # it is on disk all the same
            self._touched = []
            selector.problem(MethodError(f"{selector.method.name}: {error}"))
            return
        except (OSError, StateError) as error:
            self._is_behind(
                StateError(
                    f"{self._where}: the state of step {selector.step_number} could not be written: "
                    f"{str(error).rstrip('.')}. The run goes on, and each commit tries again; until then the last written "
                    "state stands."
                )
            )
            return
        self._touched = []
        if self._behind:
            self._behind = False
            selector._warned -= {StateError.__name__, MethodError.__name__}  # the next failure is news again
        selector.metrics["journal_degraded"] = 0.0
        self._tell()

    def close(self) -> None:
        """Give the directory back."""
        self.files.close()

    def _is_behind(self, error: EdgewiseError) -> None:
        """This commit did not reach the disk."""
        selector = self._selector
        self._behind = True
        selector.metrics["journal_degraded"] = 1.0
        selector.problem(error)
        selector.metrics["degraded_total"] = selector._totals["degraded_total"]

    def _tell(self) -> None:
        """Say what became of the directory that the user should know."""
        notes, self.files.notes = self.files.notes, []
        for note in notes:
            self._selector._warn(note)
