"""One saved state in one file: named arrays in safetensors, a JSON header, a hash over both. No pickle, never half written.

Written to a temporary file in the same folder, flushed to disk, then renamed: a reader finds the old file or the new one.
`Snapshots` keeps the newest ones of a run in one directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.errors import ConfigError, StateError, StateMismatchError, StateVersionError
from edgewise.types import Array

FORMAT = 1
"""Number of the file format written here. A reader refuses a larger one."""

_MOST_HEADER = 40_000_000  # characters; safetensors reads headers up to 100 MB, and ours stands in one with its quotes escaped


def _digest(header: str, arrays: dict[str, Array]) -> str:
    hasher = hashlib.sha256(header.encode())
    for name in sorted(arrays):
        array = arrays[name]
        hasher.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        hasher.update(array.reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()


def save(path: str | os.PathLike[str], header: dict[str, Any], arrays: dict[str, Array]) -> int:
    """Write a state atomically and return its size in bytes.

    header: JSON-able, without NaN.  arrays: bool, integer or float arrays by name.
    Raises OSError if the disk refuses, StateError if the content cannot be written; what stood at `path` is then untouched.
    """
    from safetensors.numpy import save as to_bytes

    target = Path(path)
    wrong = sorted(name for name, array in arrays.items() if array.dtype.kind not in "biuf")
    if wrong:
        raise StateError(
            f"{target}: a state holds bool, integer and float arrays, got {arrays[wrong[0]].dtype} for {wrong[0]!r}."
        )
    plain = {
        name: np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
        for name, array in arrays.items()
    }
    try:
        text = json.dumps({"format": FORMAT, **header}, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StateError(f"{target}: the header of the state is no JSON: {error}.") from error
    if len(text) > _MOST_HEADER:
        raise StateError(f"{target}: the header of the state has {len(text):,} characters and could not be read back.")
    data = to_bytes(plain, metadata={"edgewise": text, "sha256": _digest(text, plain)})
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return len(data)


def load(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read a state and check it. Returns (header, arrays).

    Raises StateError if the file is missing, torn, flipped or no state at all; StateVersionError if it is newer than FORMAT.
    """
    from safetensors import safe_open

    source = Path(path)
    if not source.is_file():
        raise StateError(f"No saved state at {source}: there is no such file.")
    try:
        with safe_open(source, framework="numpy") as file:
            metadata = file.metadata() or {}
            if "edgewise" not in metadata or "sha256" not in metadata:
                raise StateError(f"{source} is a safetensors file but no edgewise state: it has no edgewise header.")
            text = metadata["edgewise"]
            header = json.loads(text)
            if not isinstance(header, dict) or not isinstance(header.get("format"), int):
                raise StateError(f"{source}: the header is not an edgewise header.")
            if header["format"] > FORMAT:
                raise StateVersionError(
                    f"{source} has state format {header['format']}, written by edgewise {header.get('edgewise', '?')}; this "
                    f"edgewise reads up to format {FORMAT}. Install edgewise>={header.get('edgewise', '?')}."
                )
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
    except StateError:
        raise
    except Exception as error:  # whatever a reader makes of foreign bytes
        raise StateError(f"{source} cannot be read as a saved state: {error}. Use an older state.") from error
    if _digest(text, arrays) != metadata["sha256"]:
        raise StateError(f"{source} is damaged: its SHA-256 does not match its content. Use an older state.")
    return header, arrays


def require_same(saved: dict[str, Any], live: dict[str, Any], where: str) -> None:
    """Raise StateMismatchError listing every field of `live` that the saved header contradicts, fields of fields by name."""
    wrong = _differences(saved, live)
    if wrong:
        raise StateMismatchError(
            f"{where} belongs to another run; nothing was loaded:\n  "
            + "\n  ".join(wrong)
            + "\nUse the settings it was saved with, or start with a new directory (resume='fresh')."
        )


def _differences(saved: dict[str, Any], live: dict[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key in [*live, *(k for k in saved if k not in live and prefix)]:
        old, new = saved.get(key), live.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: saved {old!r}, this run {new!r}")
    return found


class Snapshots:
    """The states that one run keeps in one directory: a file per committed step, of which the two newest stay.

    There is one writer. Another one is noticed by its mark in the newest file, and this one then refuses to write: two runs
    in one directory would delete each other's states.
    """

    _PATTERN = "selector-*.safetensors"

    def __init__(self, directory: Path) -> None:
        """Make the directory and clear away what a killed writer left half written. Raises ConfigError."""
        self.directory = directory
        self.writer = uuid.uuid4().hex
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for orphan in directory.glob(f".{self._PATTERN}.*.tmp"):
                orphan.unlink(missing_ok=True)
        except OSError as error:
            raise ConfigError(
                f"Selector(directory={str(directory)!r}) cannot be used: {error}. Name a folder to write to."
            ) from error
        self._known = {self.writer, *(self._writer_of(file) for file in self.found())}

    def found(self) -> list[Path]:
        """The states that are there, newest first."""
        return sorted(self.directory.glob(self._PATTERN), reverse=True)

    def set_aside(self, files: Sequence[Path]) -> None:
        """Keep `files` under a name that is never read again."""
        for file in files:
            try:
                file.rename(file.with_suffix(f".{self.writer[:8]}.superseded"))
            except FileNotFoundError:  # another process of this run was faster
                continue

    def write(self, step: int, header: dict[str, Any], arrays: dict[str, Array]) -> None:
        """Write the state of a commit; states of later steps, which a rewound run left behind, are set aside.

        Raises OSError as `save` does, StateError if another selector writes here.
        """
        newest = self.found()[:1]
        if newest and self._writer_of(newest[0]) not in self._known:
            raise StateError(
                f"Selector(directory={str(self.directory)!r}): another selector writes there too ({newest[0].name} is not "
                "ours). This one no longer does; give each run a directory of its own."
            )
        target = self.directory / f"selector-{step:09d}.safetensors"
        save(target, {**header, "writer": self.writer}, arrays)
        states = self.found()
        self.set_aside([file for file in states if file.name > target.name])
        for old in [file for file in states if file.name <= target.name][2:]:
            old.unlink(missing_ok=True)

    def _writer_of(self, file: Path) -> str | None:
        """The mark of who wrote a state; our own for a file that cannot be read, for then nobody else's is known."""
        from safetensors import safe_open

        try:
            with safe_open(file, framework="numpy") as opened:
                header = json.loads((opened.metadata() or {})["edgewise"])
            return str(header.get("writer"))
        except Exception:
            return self.writer
