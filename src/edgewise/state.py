"""One saved state in one file: named arrays in safetensors, a JSON header, a hash over both. No pickle, never half written.

Written to a temporary file in the same folder, flushed to disk, then renamed: a reader finds the old file or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.errors import StateError, StateMismatchError, StateVersionError
from edgewise.types import Array

FORMAT = 1
"""Number of the file format written here. A reader refuses a larger one."""


def _digest(header: str, arrays: dict[str, Array]) -> str:
    hasher = hashlib.sha256(header.encode())
    for name in sorted(arrays):
        array = arrays[name]
        hasher.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        hasher.update(array.reshape(-1).view(np.uint8).data)
    return hasher.hexdigest()


def save(path: str | os.PathLike[str], header: dict[str, Any], arrays: dict[str, Array]) -> int:
    """Write a state atomically and return its size in bytes.

    header: JSON-able.  arrays: bool, integer or float arrays by name.
    Raises OSError if the disk refuses; whatever stood at `path` before is then untouched.
    """
    from safetensors.numpy import save as to_bytes

    target = Path(path)
    plain = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    text = json.dumps({"format": FORMAT, **header}, sort_keys=True, allow_nan=False)
    data = to_bytes(plain, metadata={"edgewise": text, "sha256": _digest(text, plain)})
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
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
    from safetensors import SafetensorError, safe_open

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
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise StateError(f"{source} cannot be read as a saved state: {error}. Use an older state.") from error
    if _digest(text, arrays) != metadata["sha256"]:
        raise StateError(f"{source} is damaged: its SHA-256 does not match its content. Use an older state.")
    return header, arrays


def require_same(saved: dict[str, Any], live: dict[str, Any], where: str) -> None:
    """Raise StateMismatchError listing every field of `live` that the saved header contradicts."""
    wrong = [f"  {key}: saved {saved.get(key)!r}, this run {value!r}" for key, value in live.items() if saved.get(key) != value]
    if wrong:
        raise StateMismatchError(
            f"{where} belongs to another run; nothing was loaded:\n"
            + "\n".join(wrong)
            + "\nUse the settings it was saved with, or start with a new directory (resume='fresh')."
        )
