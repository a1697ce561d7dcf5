"""Files in a run directory that claim what is not so: passed over within a second and 200 MB, the state beside them loads."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise import journal, state
from edgewise.directory import History
from edgewise.errors import DegradedWarning, StateError
from tests import ledger
from tests.twins import Run, content, on_disk, one_step, selector, twin


def lying_states() -> dict[str, bytes]:
    """By name: what somebody might put in the place of the newest state, small enough to be kept here."""
    good = state.encode({"step": 99}, {"x": np.arange(4)})
    length = int.from_bytes(good[:8], "little")
    outer = json.loads(good[8 : 8 + length])

    def with_header(text: str, **tensors: Any) -> bytes:
        metadata = outer["__metadata__"] | {"edgewise": text}
        head = json.dumps({"__metadata__": metadata, **(tensors or {"x": outer["x"]})}).encode()
        return len(head).to_bytes(8, "little") + head + good[8 + length :]

    return {
        "no bytes": b"",
        "zip": b"PK\3\4" + bytes(300),
        "header of 2^63 bytes": (1 << 63).to_bytes(8, "little") + good[8:],
        "header of 3 MB of brackets": with_header("[" * 3_000_000),
        "header with a number of 5,000 digits": with_header(f'{{"format": {"9" * 5_000}}}'),
        "header with a name twice": with_header('{"format": 2, "step": 99, "step": 100}'),
        "header with NaN": with_header('{"format": 2, "step": NaN}'),
        "shape of 2^50": with_header('{"format": 2}', x={"dtype": "I64", "shape": [1 << 50], "data_offsets": [0, 32]}),
        "shape times shape": with_header('{"format": 2}', x={"dtype": "I64", "shape": [1 << 32] * 4, "data_offsets": [0, 32]}),
        "offsets behind the end": with_header('{"format": 2}', x={"dtype": "I64", "shape": [4], "data_offsets": [0, 1 << 40]}),
    }


def lying_records(prev: bytes, commit: int) -> dict[str, bytes]:
    """Records with a sound hash, chained to the newest state, whose change does not fit it."""
    header = {"set": {}, "drop": [], "without": []}

    def record(change: dict[str, Any], parts: dict[str, Any]) -> bytes:
        return journal.frame(9, commit, 99, prev, state.encode(change, parts))[0]

    some = {"index/selector/x": np.array([1 << 40]), "some/selector/x": np.zeros(1)}

    def two(whole: Any, part: Any) -> bytes:
        """An array, and a record that puts `part` at 400 places of it."""
        first, then = journal.frame(9, commit, 99, prev, state.encode(header, {"whole/selector/x": whole}))
        parts = {"index/selector/x": np.arange(400), "some/selector/x": part}
        return first + journal.frame(9, commit + 1, 99, then, state.encode(header, parts))[0]

    return {
        "one number for 400 entries of 8 MB": two(np.zeros((1, 1_000_000)), np.zeros((1, 1))),
        "one number for 400 entries of an empty array": two(np.zeros((0, 1_000_000)), np.zeros((1, 1))),
        "another type": record(header, {"rows": np.array([0]), "at/method/prompts/evidence": np.ones((1, 2), dtype=np.int8)}),
        "rows of rows": record(header, {"rows": np.zeros((9, 9), dtype=np.int64), "at/method/prompts/evidence": np.ones(1)}),
        "a table in three dimensions": record(header, {"put/table/in_flight": np.zeros((3, 3, 3), dtype=np.int64)}),
        "a format that is a list": record({**header, "set": {"format": []}}, {}),
        "a format that is another": record({**header, "set": {"format": 1}}, {}),
        "no format": record({**header, "drop": ["format"]}, {}),
        "commit 2^62": journal.frame(9, 1 << 62, 99, prev, state.encode(header, {}))[0],
        "commit 0": journal.frame(9, 0, 99, prev, state.encode(header, {}))[0],
        "the number of another lease": journal.frame(2**32 - 1, commit, 99, prev, state.encode(header, {}))[0],
        "rows outside": record(header, {"rows": np.array([10**9]), "at/method/prompts/evidence": np.zeros((1, 2))}),
        "growth to 2^40": record(header, {"whole/selector/x": np.zeros(1)} | some),
        "no such array": record(header, {"gone/table/nothing": np.zeros(1, dtype=np.int64)}),
        "nonsense for a header": record({"set": [], "drop": 3, "without": None}, {}),
        "a length of 2^60": journal.MAGIC + (1 << 60).to_bytes(8, "little") + bytes(80),
    }


def open_what_lies(directory: Path) -> None:
    """In a process of its own: one line of JSON a file that lies, with what it cost to open a run beside it."""
    warnings.simplefilter("ignore")
    begun = Run(directory / "begun")
    for _ in range(3):
        begun.commit()
    begun.selector.close()
    (newest,) = History.of(begun.directory).nodes()[:1]
    Run(directory / "begun").selector.close()  # all is imported

    def cost_of(name: str, lie: Callable[[Path], None], file: str) -> None:
        where = directory / name.replace(" ", "-").replace("^", "").replace(",", "")
        shutil.copytree(begun.directory, where)
        lie(where / file)
        memory, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        try:
            opened = selector(where)
            seconds = time.monotonic() - started
            same = content(opened) == twin()[3]
            one_step(opened)
            same &= content(opened) == twin()[4] == on_disk(where)[1]
        except Exception as error:
            seconds, same = time.monotonic() - started, repr(error)
        grew = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
        print(json.dumps({"name": name, "seconds": seconds, "mb": grew, "same": same}), flush=True)

    snapshot, records = "selector-000009-000000099.safetensors", f"selector-000009-{newest.commit:09d}.journal"
    for name, data in lying_states().items():
        cost_of(name, lambda file, data=data: file.write_bytes(data), snapshot)
    for name, data in lying_records(newest.id, newest.commit + 1).items():
        cost_of(name, lambda file, data=data: file.write_bytes(data), records)

    def sparse(size: int) -> Callable[[Path], None]:
        def make(file: Path) -> None:
            with file.open("wb") as opened:
                opened.truncate(size)

        return make

    for kind in (snapshot, records):
        cost_of(f"a file of 1 TB {kind[-8:]}", sparse(1 << 40), kind)
        cost_of(f"a pipe {kind[-8:]}", os.mkfifo, kind)
        cost_of(f"a link to zeros {kind[-8:]}", lambda file: file.symlink_to("/dev/zero"), kind)


def test_files_that_lie_cost_neither_time_nor_memory_nor_state(tmp_path: Path) -> None:
    """Beside a run of three commits: it opens within a second and 200 MB, at its own third commit, and goes on."""
    code = f"from pathlib import Path; from tests.test_lying_files import *; open_what_lies(Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ledger.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(lying_states()) + len(lying_records(b"0" * 16, 4)) + 6
    for case in found:
        assert case["same"] is True, case
        assert case["seconds"] < 1, case
        assert case["mb"] < 200, case
    seconds, grew = max(case["seconds"] for case in found), max(case["mb"] for case in found)
    ledger.note(58, tried=len(found), held=len(found), slowest_s=seconds, growth_mb=grew)


@pytest.mark.parametrize("kind", ["safetensors", "journal"])
def test_a_folder_in_the_place_of_a_file_is_passed_over(tmp_path: Path, kind: str) -> None:
    run = Run(tmp_path / "run")
    run.commit()
    run.selector.close()
    (run.directory / f"selector-000009-000000099.{kind}").mkdir()
    with pytest.warns(DegradedWarning) as said:
        again = selector(run.directory)
    assert any("is no regular file" in str(warning.message) for warning in said)
    assert content(again) == twin()[1]
    again.close()
    ledger.note(58, tried=1, held=1)


@pytest.mark.parametrize("name", ["header with a name twice", "shape of 2^50", "zip"])
def test_a_directory_of_nothing_but_lies_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "selector-000001-000000001.safetensors").write_bytes(lying_states()[name])
    with pytest.raises(StateError, match="No readable state among those in") as refused:
        selector(tmp_path)
    assert "resume='fresh'" in str(refused.value)
    ledger.note(58, tried=1, held=1)
