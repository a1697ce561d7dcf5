"""What every store in the comparison offers, and the records they are all given."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar


def payload(k: int, size: int, seed: int = 0) -> bytes:
    """The bytes of record `k`: incompressible, and the same in every process that asks."""
    return hashlib.shake_128(f"{seed}-{k}".encode()).digest(size)


@dataclass
class Recovered:
    """What a store gave back: records in order, and everything it said was wrong. An exception says that nothing was read."""

    records: list[tuple[int, bytes]]
    complaints: list[str] = field(default_factory=list)


class Store(ABC):
    """A directory of records, open for writing. One object is one writer."""

    name: ClassVar[str]
    keeps: ClassVar[str] = "all"
    """`all`: recovery gives every record. `newest`: a record is the whole state, and recovery gives those still kept."""

    @abstractmethod
    def __init__(self, directory: Path) -> None:
        """Open, make what is missing, repair what a killed writer left. Raises whatever the store raises."""

    @abstractmethod
    def commit(self, k: int, payload: bytes) -> None:
        """Return when record `k` would survive a loss of power. `k` grows by one a commit."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the directory."""

    @classmethod
    @abstractmethod
    def recover(cls, directory: Path) -> Recovered:
        """Everything that can be read, as the next writer would read it. May repair."""

    @classmethod
    def look(cls, directory: Path) -> Recovered:
        """Everything that can be read by a viewer, which must not write."""
        return cls.recover(directory)

    @classmethod
    def steps(cls, directory: Path) -> int:
        """To how many commits one can go back."""
        return len(cls.recover(directory).records)

    @classmethod
    def hurry(cls) -> None:
        """Wait only shortly for a writer of whom nothing is known, in this process: a sweep has many such cases."""
        return

    @classmethod
    @abstractmethod
    def stall(cls, directory: Path) -> object:
        """A viewer in the middle of reading: what has to be kept alive for it to stay there."""


def digest(before: bytes, k: int, payload: bytes) -> bytes:
    """The checksum that a store without one of its own is given: 16 bytes over the record and the checksum before it."""
    return hashlib.blake2b(before + k.to_bytes(8, "little") + payload, digest_size=16).digest()


def gaps(records: list[tuple[int, bytes]]) -> list[str]:
    """A complaint for numbers that are missing before one that is there: any reader of numbered records sees those."""
    found = [k for k, _ in records]
    return [] if found == list(range(1, len(found) + 1)) else [f"numbers are missing or double: {found[:8]}"]


Content = Callable[[int], bytes]
"""The payload of a record by its number."""


@dataclass(frozen=True)
class Verdict:
    """What a damaged store gave back, against what had been committed."""

    lost: int
    """Committed records that are gone, or changed with or without a complaint."""
    steps: int
    """How far the run falls back: commits after the last state that can still be made. Deltas need all before them."""
    different: bool
    """Some record has another content, or was never written."""
    said: bool
    """The store complained."""


def judge(kind: type[Store], found: Recovered, committed: int, content: Content) -> Verdict:
    """Hold what was recovered against records 1..committed; one more, in flight when the writer died, may be there."""
    good = {k for k, data in found.records if data == content(k)}
    strange = [k for k, data in found.records if data != content(k) or not 1 <= k <= committed + 1]
    through = 0
    if kind.keeps == "newest":
        through = max(good, default=0)
        lost = max(0, committed - through)
    else:
        while through + 1 in good:
            through += 1
        lost = sum(k not in good for k in range(1, committed + 1))
    said = bool(found.complaints or (kind.keeps == "all" and gaps(found.records)))
    return Verdict(lost=lost, steps=max(0, committed - through), different=bool(strange), said=said)
