"""A disk that fails on purpose: what Python asks of the operating system under one folder is counted, and some of it fails.

Patched are `open` and the functions of `os` that change files or list them: for paths under the folder and for descriptors that
were opened there, in the thread that made the disk (a lease counts in another). `fsync` does not reach the real disk: nobody
cuts the power here, and a run makes thousands.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

CHANGES = frozenset({"create", "write", "fsync", "replace", "mkdir", "link"})
"""What a full disk refuses. Reading, listing and removing still work there."""
EVERYTHING = CHANGES | {"open", "listdir", "unlink", "truncate"}
"""What a broken disk refuses."""


class FailingDisk:
    """Counts operations under `folder`; `fails(n)` says whether the n-th, from 0, of a kind in `kinds` fails with `error`.

    A write that fails writes half of what it was given first. count: operations of `kinds` so far.  failed: kinds that failed.
    """

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        kinds: frozenset[str] = CHANGES,
        error: int = errno.ENOSPC,
        fails: Callable[[int], bool] = lambda n: False,
    ) -> None:
        self.folder = os.path.abspath(folder)
        self.kinds, self.error, self.fails = kinds, error, fails
        self.short = False
        """Whether plain writes write half and say so, as the system may, instead of failing."""
        self.count = 0
        self.failed: list[str] = []
        self._thread = threading.get_ident()
        self._files: dict[int, str] = {}
        self._real = {name: getattr(os, name) for name in ("open", "close", "write", "pwrite", "fsync", "mkdir", "fdopen")}
        self._io_open = io.open
        for name in ("open", "close", "write", "pwrite", "fsync", "mkdir"):
            monkeypatch.setattr(os, name, getattr(self, f"_{name}"))
        for name, kind in (
            ("replace", "replace"), ("rename", "replace"), ("link", "link"), ("unlink", "unlink"), ("remove", "unlink"),
            ("listdir", "listdir"), ("scandir", "listdir"), ("truncate", "truncate"), ("ftruncate", "truncate"),
        ):  # fmt: skip
            monkeypatch.setattr(os, name, self._guarded(getattr(os, name), kind))
        monkeypatch.setattr(builtins, "open", self._opened)
        monkeypatch.setattr(io, "open", self._opened)

    def ask(self, kind: str) -> bool:
        """Count one operation; whether it shall fail."""
        if kind not in self.kinds or threading.get_ident() != self._thread:
            return False
        self.count += 1
        if not self.fails(self.count - 1):
            return False
        self.failed.append(kind)
        return True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is counted and nothing fails: for what the test itself does in the folder."""
        thread, self._thread = self._thread, -1
        try:
            yield
        finally:
            self._thread = thread

    def ours(self, path: Any) -> bool:
        """Whether a path or descriptor belongs to the folder."""
        if isinstance(path, int):
            return path in self._files
        try:
            text = os.path.abspath(os.fsdecode(path))
        except TypeError:
            return False
        return text == self.folder or text.startswith(self.folder + os.sep)

    def refuse(self, path: Any) -> NoReturn:
        """Raise the error."""
        raise OSError(self.error, os.strerror(self.error), None if isinstance(path, int) else os.fspath(path))

    def _guarded(self, real: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(path: Any = ".", *more: Any, **named: Any) -> Any:
            if self.ours(path) and self.ask(kind):
                self.refuse(path)
            return real(path, *more, **named)

        return call

    def _mkdir(self, path: Any, *more: Any, **named: Any) -> None:
        if self.ours(path) and not os.path.isdir(path) and self.ask("mkdir"):
            self.refuse(path)
        self._real["mkdir"](path, *more, **named)

    def _open(self, path: Any, flags: int, *more: Any, **named: Any) -> int:
        ours = self.ours(path)
        if ours and self.ask("create" if flags & os.O_CREAT else "open"):
            self.refuse(path)
        file: int = self._real["open"](path, flags, *more, **named)
        if ours:
            self._files[file] = os.fsdecode(path)
        return file

    def _close(self, file: int) -> None:
        self._files.pop(file, None)
        self._real["close"](file)

    def _write(self, file: int, data: Any) -> int:
        if not self.ours(file) or not self.ask("write"):
            return int(self._real["write"](file, data))
        half = bytes(data)[: max(1, len(data) // 2)]
        written = int(self._real["write"](file, half))
        if self.short:
            return written
        self.refuse(file)

    def _pwrite(self, file: int, data: Any, offset: int) -> int:
        if self.ours(file) and not self.short and self.ask("write"):
            self.refuse(file)
        return int(self._real["pwrite"](file, data, offset))

    def _fsync(self, file: int) -> None:
        if not self.ours(file):
            self._real["fsync"](file)
        elif self.ask("fsync"):
            self.refuse(file)

    def _opened(self, path: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        writes = any(letter in mode for letter in "wxa+")
        if not self.ours(path) or (isinstance(path, int) and not writes):
            return self._io_open(path, mode, *more, **named)
        if not isinstance(path, int) and self.ask("create" if any(letter in mode for letter in "wxa") else "open"):
            self.refuse(path)
        file = self._io_open(path, mode, *more, **named)
        return _Written(self, file) if writes else file


class _Written:
    """A file that was opened for writing; its writes may fail after half of them."""

    def __init__(self, disk: FailingDisk, file: Any) -> None:
        self._disk, self._file = disk, file

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def fileno(self) -> int:
        file: int = self._file.fileno()
        self._disk._files[file] = str(self._file.name)
        return file

    def close(self) -> None:
        self._disk._files.pop(self._file.fileno(), None)
        self._file.close()

    def write(self, data: Any) -> int:
        if not self._disk.short and self._disk.ask("write"):  # a buffered file finishes short writes by itself
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            self._disk.refuse(self._file.name)
        return int(self._file.write(data))
