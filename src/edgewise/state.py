"""One saved state in one file: named arrays in safetensors, a JSON header, a hash over both. No pickle, never half written.

Written to a temporary file in the same folder, flushed to disk, then renamed: a reader finds the old file or the new one. Read
with suspicion: sizes are bounded before anything is allocated, and whatever is wrong ends in a `StateError`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from edgewise._version import __version__
from edgewise.errors import StateError, StateMismatchError, StateVersionError
from edgewise.migrations import migrated
from edgewise.types import Array

FORMAT = 2
"""Number of the file format written here. A reader refuses a larger one and migrates a smaller one."""

MOST_BYTES = 1 << 33
"""Of a file that is read where the caller knows no better bound."""

_MOST_HEADER = 1 << 22
"""Bytes of a header. Parsed JSON takes some twenty times its text: this keeps a hostile one within a tenth of a gigabyte."""


def encode(header: dict[str, Any], arrays: dict[str, Array]) -> bytes:
    """The bytes of a state: a safetensors file whose metadata hold the header and a SHA-256 over header and arrays.

    header: JSON-able, without NaN.  arrays: bool, integer or float arrays by name. Raises StateError for anything else.
    """
    from safetensors.numpy import save as to_bytes

    wrong = sorted(name for name, array in arrays.items() if not is_savable(array.dtype))
    if wrong:
        raise StateError(
            f"a state holds bool, integer and float arrays of at most 64 bits, got {arrays[wrong[0]].dtype} for {wrong[0]!r}."
        )
    plain = {
        name: np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(array.shape)
        for name, array in arrays.items()
    }
    try:
        # a record of a journal names its writer, too: who reads only older formats is told what to install
        text = json.dumps({"format": FORMAT, "edgewise": __version__, **header}, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise StateError(f"the header of the state is no JSON: {error}.") from error
    data = to_bytes(plain, metadata={"edgewise": text, "sha256": _digest(text, plain)})
    if int.from_bytes(data[:8], "little") > _MOST_HEADER:
        raise StateError(f"the header of the state has more than {_MOST_HEADER:,} bytes and could not be read back.")
    return data


def is_savable(dtype: np.dtype[Any]) -> bool:
    """Whether arrays of this type can be written."""
    return dtype.kind in "biuf" and dtype.itemsize <= 8


def decode(data: bytes, where: str, *, as_is: bool = False) -> tuple[dict[str, Any], dict[str, Array]]:
    """The inverse of `encode`: (header, arrays), brought to the present format unless they are wanted `as_is`.

    where: names the bytes in messages.

    Raises StateError for what is torn, flipped or no state at all; StateVersionError for what is newer than FORMAT.
    """
    from safetensors.numpy import load as from_bytes

    try:
        text, digest = _metadata(data, where)
        header = _parsed(text)
        if not isinstance(header, dict) or type(header.get("format")) is not int or header["format"] < 1:
            raise StateError(f"{where}: the header is not an edgewise header.")
        found = from_bytes(data)
        arrays = {name: np.array(found.pop(name)) for name in list(found)}  # one at a time: there may be a gigabyte of them
        if _digest(text, arrays) != digest:  # before the format is believed, which is a digit that may have flipped
            raise StateError(f"{where} is damaged: its SHA-256 does not match its content. Use an older state.")
        if header["format"] > FORMAT:
            raise StateVersionError(
                f"{where} has state format {header['format']}, written by edgewise {header.get('edgewise', '?')}; this "
                f"edgewise reads up to format {FORMAT}. Install edgewise>={header.get('edgewise', '?')}."
            )
        return (header, arrays) if as_is or header["format"] == FORMAT else migrated(header, arrays, where)
    except StateError:
        raise
    except Exception as error:  # whatever a reader makes of foreign bytes
        raise StateError(f"{where} cannot be read as a saved state: {_short(error)}. Use an older state.") from error


def _short(error: Exception) -> str:
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= 300 else f"{text[:297]}..."


def _metadata(data: bytes, where: str) -> tuple[str, str]:
    """Header text and digest. Raises StateError where the bytes are no state of ours."""
    (length,) = struct.unpack_from("<Q", data)
    if length > min(_MOST_HEADER, len(data) - 8):
        raise StateError(f"{where} is no saved state, or only part of one: its header would have {length:,} bytes.")
    outer = _parsed(data[8 : 8 + length].decode())
    metadata = outer.get("__metadata__") if isinstance(outer, dict) else None
    if not isinstance(metadata, dict) or not {"edgewise", "sha256"} <= metadata.keys():
        raise StateError(f"{where} is a safetensors file but no edgewise state: it has no edgewise header.")
    return metadata["edgewise"], metadata["sha256"]


def _parsed(text: str) -> Any:
    """JSON in which no name stands twice in one object, and no number is NaN or infinite."""
    return json.loads(text, object_pairs_hook=_once, parse_constant=_refused)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")


def _digest(header: str, arrays: dict[str, Array]) -> str:
    hasher = hashlib.sha256(header.encode())
    for name in sorted(arrays):
        array = arrays[name]
        hasher.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        hasher.update(array.reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()


def save(path: str | os.PathLike[str], header: dict[str, Any], arrays: dict[str, Array], *, most: int = MOST_BYTES) -> int:
    """Write a state atomically and return its size in bytes.

    header and arrays: as `encode` takes them.  most: bytes that a file may have at most, to be read back.
    Raises OSError if the disk refuses, StateError if the content cannot be written; what stood at `path` is then untouched.
    """
    target = Path(path)
    try:
        data = encode(header, arrays)
    except StateError as error:
        raise StateError(f"{target}: {error}") from error
    require_readable(data, most)
    write(target, data)
    return len(data)


def require_readable(data: bytes, most: int) -> None:
    """Raise StateError for what would be refused when it is read, at a time when that helps nobody."""
    if len(data) > most:
        raise StateError(
            f"the state has {len(data):,} bytes, and would not be read back: more than {most:,} are not taken for a state of "
            "this run. Use a method that keeps less."
        )


def write(target: Path, data: bytes) -> None:
    """Put `data` at `target`: all of it or, whatever happens, what was there before. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):  # a failing disk: the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make names in `folder` durable. Raises OSError."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def load(path: str | os.PathLike[str], most: int = MOST_BYTES) -> tuple[dict[str, Any], dict[str, Array]]:
    """Read a state and check it. Returns (header, arrays).

    most: bytes that the file may have at most; larger ones are refused unread.
    Raises StateError if the file is missing, torn, flipped or no state at all; StateVersionError if it is newer than FORMAT.
    """
    source = Path(path)
    header_of(source)  # what is no state is refused by its first bytes, however large it is
    return decode(read(source, most), str(path))


def header_of(path: Path) -> dict[str, Any]:
    """The header of a state, unchecked: quick, and good enough to find out which file to `load`. Raises StateError."""
    data = read(path, MOST_BYTES, first=8 + _MOST_HEADER)
    try:
        header = _parsed(_metadata(data, str(path))[0])
    except StateError:
        raise
    except Exception as error:
        raise StateError(f"{path} cannot be read as a saved state: {_short(error)}. Use an older state.") from error
    if not isinstance(header, dict):
        raise StateError(f"{path}: the header is not an edgewise header.")
    return header


def read(source: Path, most: int, first: int | None = None) -> bytes:
    """The bytes of a regular file of at most `most` bytes, or the `first` of them.

    Raises StateError: for a link, a device and a larger file, too. Read into memory, not mapped: a mapped file that shrinks
    kills the process.
    """
    try:
        file = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise StateError(f"No saved state at {source}: there is no such file.") from None
    except (OSError, ValueError) as error:
        link = " It is a symbolic link, which is not followed." if os.path.islink(source) else ""
        raise StateError(f"{source} cannot be opened: {error}.{link}") from error
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):  # before fdopen, which does not take a folder
        os.close(file)
        raise StateError(f"{source} is no regular file and no saved state.")
    with os.fdopen(file, "rb") as opened:
        if found.st_size > most:
            raise StateError(f"{source} has {found.st_size:,} bytes, more than any state of this run could ({most:,}).")
        try:
            return opened.read(min(found.st_size, most if first is None else first))  # a bound would be allocated whole
        except (OSError, MemoryError) as error:
            raise StateError(f"{source} cannot be read: {error}.") from error


def require_same(saved: dict[str, Any], live: dict[str, Any], where: str) -> None:
    """Raise StateMismatchError listing every field of `live` that the saved header contradicts, fields of fields by name."""
    wrong = differences(saved, live)
    if wrong:
        raise StateMismatchError(
            f"{where} belongs to another run; nothing was loaded:\n  "
            + "\n  ".join(wrong)
            + "\nUse the settings it was saved with, or start anew (resume='fresh'). Where only group_size, seed or "
            "hyper-parameters differ, resume='adapt' goes on under these."
        )


def differences(saved: dict[str, Any], live: dict[str, Any], prefix: str = "") -> list[str]:
    """Fields that differ, as "name: saved x, this run y"."""
    found: list[str] = []
    for key in [*live, *(k for k in saved if k not in live and prefix)]:
        old, new = saved.get(key), live.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: saved {old!r}, this run {new!r}")
    return found
