"""What somebody else wrote, read with suspicion: files that may be pipes, devices or endless, JSON that may be anything.

Everything here is bounded before it is allocated, and never waits: a named pipe, a device or a folder in the place of a file is
an OSError with a sentence for its `strerror`, JSON that is none is a ValueError. The callers make their own errors of both.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import reprlib
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

MOST_LINE = 1 << 24
"""Bytes of one line, or of one item of a JSON list. Parsed, a line of nothing but brackets takes some twenty times as much."""

_CHUNK = 1 << 16
_UNLINKED = getattr(os, "O_NOFOLLOW", 0)
_AT_ONCE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""A pipe without another end does not hold us up."""


# -- files ---------------------------------------------------------------------------------------------------------------


def opened(path: str | os.PathLike[str], *, links: bool = True) -> BinaryIO:
    """A regular file for reading; nothing else, and without waiting. Raises OSError.

    links: whether `path` may be a symbolic link: so for a file that the user names, not for one in a folder of ours.
    """
    return os.fdopen(_regular(path, os.O_RDONLY | (0 if links else _UNLINKED)), "rb")


def contents(path: str | os.PathLike[str], most: int, *, links: bool = True) -> bytes:
    """All bytes of a regular file that has `most` at most. Raises OSError."""
    with opened(path, links=links) as file:
        size = os.fstat(file.fileno()).st_size
        data = b"" if size > most else file.read(most + 1)
    if size > most or len(data) > most:
        raise OSError(errno.EFBIG, f"it has {max(size, len(data)):,} bytes, and at most {most:,} are read", str(path))
    return data


def replace(path: Path, text: str) -> None:
    """Put `text` at `path`, whole or not at all; a link there is replaced, not written through. Raises OSError."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        made = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _UNLINKED, 0o666)
        with os.fdopen(made, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def append(path: Path, text: str) -> None:
    """Add `text` to the end of a regular file, which is made if need be; not through a link. Raises OSError."""
    with os.fdopen(_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _UNLINKED), "a", encoding="utf-8") as file:
        file.write(text)


def links_out(folder: Path) -> list[Path]:
    """Symbolic links in `folder` (and `folder` itself) that lead out of the folder in which it stands."""
    home = folder.parent.resolve()
    try:
        entries = [folder, *folder.iterdir()] if folder.is_dir() else [folder]
    except OSError:
        entries = [folder]
    return sorted(entry for entry in entries if entry.is_symlink() and not _leads_to(entry, home))


def _leads_to(link: Path, home: Path) -> bool:
    try:
        return link.resolve().is_relative_to(home)
    except (OSError, RuntimeError):  # to itself
        return False


def _regular(path: str | os.PathLike[str], flags: int) -> int:
    try:
        file = os.open(path, flags | _AT_ONCE, 0o666)
    except ValueError as error:  # a NUL or half a surrogate pair in the name
        raise OSError(errno.EINVAL, f"that is no file name ({error})", shown(os.fspath(path))) from error
    except OSError as error:
        if error.errno == errno.ELOOP and os.path.islink(path):
            raise OSError(errno.ELOOP, "it is a symbolic link, which is not followed here", str(path)) from error
        raise
    mode = os.fstat(file).st_mode
    if not stat.S_ISREG(mode):
        os.close(file)
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise OSError(errno.EINVAL, f"it is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file", str(path))
    return file


# -- JSON ----------------------------------------------------------------------------------------------------------------


def loads(raw: bytes, *, nan: bool = False) -> Any:
    """JSON in which no object has a key twice; in UTF-8, with or without a byte order mark.

    nan: whether NaN and Infinity, which Python and pandas write, are numbers. Raises ValueError, also for too deep a nesting.
    """
    text = raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    try:
        return json.loads(text, strict=False, object_pairs_hook=_once, parse_constant=None if nan else _refused)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def lines(file: BinaryIO, most: int = MOST_LINE) -> Iterator[bytes]:
    """The lines of a file, which end at ``\\n`` and nowhere else. Raises OSError for one that is longer than `most` bytes."""
    number = 0
    while line := file.readline(most + 1):
        number += 1
        if len(line) > most:
            raise OSError(errno.EFBIG, f"line {number} has more than {most:,} bytes")
        yield line


def items(file: BinaryIO, most: int = MOST_LINE) -> Iterator[Any]:
    """The items of a file that holds one JSON list, one after the other: no more than one is in memory. Raises ValueError.

    Yields nothing before the list has begun; a file with another value raises TypeError, with its type.
    """
    scan = _Scan(file, most)
    if scan.peek() != "[":
        value = scan.value()
        if scan.peek():
            raise ValueError(f"Extra data: character {scan.place}")
        raise TypeError(type(value).__name__)
    scan.take()
    if scan.peek() == "]":
        scan.take()
    else:
        while True:
            yield scan.value()
            mark = scan.peek()
            if mark not in (",", "]"):
                raise ValueError(f"Expecting ',' delimiter: character {scan.place}")
            scan.take()
            if mark == "]":
                break
    if scan.peek():
        raise ValueError(f"Extra data: character {scan.place}")


_ENDS = frozenset(" \t\r\n,]")


class _Scan:
    """A window on the text of a file, from the place that is read next."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file, self._most = file, most
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._start, self._passed, self._ended = "", 0, 0, False
        self._json = json.JSONDecoder(object_pairs_hook=_once, strict=False)

    @property
    def place(self) -> int:
        """Characters before the next one."""
        return self._passed + self._start

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            while self._start < len(self._text):
                if self._text[self._start] not in " \t\r\n":
                    return self._text[self._start]
                self._start += 1
            if not self._more(_CHUNK):
                return ""

    def take(self) -> None:
        self._start += 1

    def value(self) -> Any:
        """The next value. One that seems wrong is tried again with more of the file, up to the longest allowed."""
        self.peek()
        size = _CHUNK
        while True:
            left = len(self._text) - self._start
            try:
                value, end = self._json.raw_decode(self._text, self._start)
                # "1." of "1.5" reads as 1: a value is whole where something stands behind it that ends values
                if self._text[end : end + 1] in _ENDS or left > self._most or not self._more(size):
                    self._start = end
                    return value
            except RecursionError as error:
                raise ValueError("nested too deep") from error
            except json.JSONDecodeError as error:
                if left > self._most:
                    long = f"an item of more than {self._most:,} characters begins at character {self.place}"
                    raise ValueError(long) from error
                if not self._more(size):
                    raise ValueError(f"{error.msg}: character {self._passed + error.pos}") from error
            size = max(_CHUNK, left)

    def _more(self, size: int) -> bool:
        """Read on; what was passed is let go. False at the end of the file."""
        raw = b"" if self._ended else self._file.read(size)
        if not raw:
            self._decoder.decode(b"", final=True)  # half a character at the end is an error
            self._ended = True
            return False
        self._passed += self._start
        self._text, self._start = self._text[self._start :] + self._decoder.decode(raw), 0
        return True


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1) if len(names) < 1_000 else "?"
        raise ValueError(f"the key {shown(twice)} stands twice in one object")
    return found


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


# -- words ---------------------------------------------------------------------------------------------------------------


def named(path: str | os.PathLike[str]) -> str:
    """A path as it stands, unless that would break a line of text or fill the screen."""
    text = os.fsdecode(path)
    return text if text.isprintable() and len(text) <= 400 else shown(text)


def shown(value: object) -> str:
    """A value as messages show it: one line, short, whatever it is. A list of itself a billion times over is short, too.

    >>> shown("a" * 1_000)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'"
    >>> shown(10**5_000)
    'a number of 5,001 digits'
    """
    if isinstance(value, int) and abs(value) >= _LONG:
        return f"a number of {int(value.bit_length() * _DIGITS_PER_BIT) + 1:,} digits"
    try:
        return _repr.repr(value)
    except Exception:  # a class of the user's, or a list of such numbers
        return f"a {type(value).__name__}"


_LONG = 10**60
_DIGITS_PER_BIT = 0.30102999566398120


class _Short(reprlib.Repr):
    """Long numbers inside of lists and mappings, too: as text they would fill the screen, or be refused by Python."""

    def repr_int(self, x: int, level: int) -> str:
        return shown(x) if abs(x) >= _LONG else repr(x)


_repr = _Short()
_repr.maxlevel, _repr.maxstring, _repr.maxother = 3, 82, 82
