"""The controls: a line of JSON a commit, as many tools do; a whole snapshot a commit, as edgewise did before its journal."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import ClassVar

import numpy as np
from benchmarks.store_faults.store import Recovered, Store

from edgewise import state
from edgewise.errors import StateError


class JsonLines(Store):
    """Append a line, flush, fsync; read by parsing every line."""

    name = "json lines"

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.file = (directory / "store.jsonl").open("a", encoding="utf-8")

    def commit(self, k: int, payload: bytes) -> None:
        self.file.write(json.dumps({"k": k, "payload": base64.b64encode(payload).decode()}) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()

    @classmethod
    def recover(cls, directory: Path) -> Recovered:
        with (directory / "store.jsonl").open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return Recovered([(row["k"], base64.b64decode(row["payload"])) for row in rows])

    @classmethod
    def stall(cls, directory: Path) -> object:
        file = (directory / "store.jsonl").open(encoding="utf-8")
        file.readline()
        return file


class Snapshots(Store):
    """`state.save` of everything at every commit; the two newest files stay."""

    name = "snapshot a commit"
    keeps = "newest"
    rest: ClassVar[int] = 0
    """Bytes of the state beside the record."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for orphan in directory.glob(".*.tmp"):
            orphan.unlink()
        self.directory = directory
        self.others = np.frombuffer(os.urandom(self.rest), np.uint8)

    def commit(self, k: int, payload: bytes) -> None:
        arrays = {"payload": np.frombuffer(payload, np.uint8), "rest": self.others}
        state.save(self.directory / f"selector-{k:09d}.safetensors", {"k": k}, arrays)
        for old in sorted(self.directory.glob("selector-*.safetensors"))[:-2]:
            old.unlink()

    def close(self) -> None:
        pass

    @classmethod
    def recover(cls, directory: Path) -> Recovered:
        found = Recovered([])
        files = sorted(directory.glob("selector-*.safetensors"))
        for file in files:
            try:
                header, arrays = state.load(file)
            except StateError as error:
                found.complaints.append(str(error))
                continue
            found.records.append((header["k"], arrays["payload"].tobytes()))
        if files and not found.records:
            raise StateError("; ".join(found.complaints))
        return found

    @classmethod
    def stall(cls, directory: Path) -> object:
        file = sorted(directory.glob("selector-*.safetensors"))[-1].open("rb")
        file.read(8)
        return file


class Snapshots100k(Snapshots):
    """The same at 100,000 prompts and 40 bytes a prompt: what it costs there."""

    name = "snapshot a commit, 100k prompts"
    rest = 4_000_000
