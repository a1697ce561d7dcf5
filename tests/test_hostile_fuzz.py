"""Any bytes, and sound files with something changed: every reader says an EdgewiseError or gives what was written.

Files with a digest (states, journals) give exactly what was written or nothing. Files without one (data, compositions, specs,
lines) may give something else that follows the format's rules: a changed letter of a prompt is a prompt.
"""

from __future__ import annotations

import io
import json
import os
import resource
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgewise import Outcome, PromptPool, Selector, allocate, data, journal, lease, state, subset
from edgewise.compose import compose
from edgewise.doctor import examine, render
from edgewise.errors import EdgewiseError
from edgewise.lab import record, runner
from edgewise.lab.compare import Comparison
from tests import ledger

CASES = ledger.cases(20, chaos=1_000)
fuzzed = settings(
    max_examples=CASES, deadline=None, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip

PIECES = (
    b"{", b"}", b"[", b"]", b":", b",", b'"', b"'", b"\\", b"\n", b"\r\n", b"\x00", b"\xff", b"\xed\xa0\x80",
    b"\xef\xbb\xbf", b"NaN", b"1e999", b"-1", b"0", b"9" * 30, b"9" * 5_000, b"null", b"true", b"prompt", b"id", b"step",
    b"method", b"belief", b"kind", b"score", b"\\ud800", b"&a ", b"*a", b"!!python/name:os.system", b"<<", b"? ", b"- ",
    b"=", b"[[", b"]]", b"#", b"PAR1", b"EDGEWJ1\n", b"\x93NUMPY\x01\x00", b"\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x80\x04\x95", b"PK\x03\x04", b"<script>", b"../",
)  # fmt: skip
anything = st.one_of(st.binary(max_size=300), st.lists(st.sampled_from(PIECES), max_size=60).map(b"".join))
places = st.floats(0, 1, exclude_max=True)
kinds = st.sampled_from(("flip", "put", "cut", "repeat", "end", "zeros"))
changes = st.lists(st.tuples(kinds, places, st.one_of(st.binary(max_size=8), st.sampled_from(PIECES))), min_size=1, max_size=4)


def changed(sound: bytes, how: list[tuple[str, float, bytes]]) -> bytes:
    """A sound file with these changes: what a disk, an editor or an enemy makes of it."""
    for what, place, more in how:
        at = int(place * len(sound))
        width = 1 + len(more)
        if what == "flip" and sound:
            sound = sound[:at] + bytes([sound[at] ^ (1 + (more or b"\0")[0] % 255)]) + sound[at + 1 :]
        elif what == "put":
            sound = sound[:at] + more + sound[at:]
        elif what == "cut":
            sound = sound[:at] + sound[at + width :]
        elif what == "repeat":
            sound = sound[:at] + sound[at : at + 8 * width] * 2 + sound[at + 8 * width :]
        elif what == "end":
            sound = sound[:at]
        else:
            sound = sound[:at] + bytes(width) + sound[at + width :]
    return sound


@pytest.fixture(scope="module", autouse=True)
def _limits() -> Iterator[None]:
    """A reader that allocates without end fails here, not on the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def refused_at_most() -> Iterator[None]:
    """An EdgewiseError of a bearable length is as good as a value."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except EdgewiseError as error:
        if len(str(error)) > 5_000:
            raise AssertionError(f"a message of {len(str(error))} characters: {error!s:.500}") from error


def doctor(path: Path) -> None:
    found = examine(data.read(path))
    for text in (render(found), json.dumps(found.problems)):
        assert not [c for c in text if not c.isprintable() and c != "\n"]


def summary(path: Path) -> None:
    for name in ("spec.json", "steps.jsonl", "evals.jsonl"):
        if not (path.parent / name).exists():
            (path.parent / name).write_bytes(SOUND[f"arm/{name}"])
    found = Comparison.read([path.parent], "hive")
    found.as_json(), found.table(), found.notes()


STEP = {
    "step": 1, "responses": 64, "held_out": 0.25, "metrics": {"rolled_out": 8, "mixed": 3, "rounds": 1},
    "spent": dict.fromkeys((*record.PARTS, "wall_s", "cpu_s"), 1.5),
}  # fmt: skip
EVAL = {"step": 0, "responses": 0, "held_out": 0.25, "tokens": 0, "wall_s": 0.0, "cpu_s": 0.0}


def _parquet() -> bytes:
    out = io.BytesIO()
    table = pyarrow.table(
        {"prompt": [f"p{i}" for i in range(50)], "id": list(range(50)), "pass_rate": [i / 50 for i in range(50)]}
    )
    pyarrow.parquet.write_table(table, out)
    return out.getvalue()


def _npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.arange(12.0).reshape(4, 3))
    return out.getvalue()


SOUND: dict[str, bytes] = {
    "x.jsonl": b"".join(json.dumps({"prompt": f"p{i} \u2028", "id": i, "pass_rate": 0.5}).encode() + b"\n" for i in range(5)),
    "x.json": json.dumps([{"prompt": [{"role": "user", "content": f"p{i}"}], "id": f"é{i}"} for i in range(5)]).encode(),
    "x.parquet": _parquet(),
    "x.csv": b"prompt,pass_rate,successes,trials\na,0.5,1,2\nb,0.25,1,4\n",
    "x.npy": _npy(),
    "x.toml": b'candidates = "random"\nspread = 8\n[belief]\nkind = "beta"\ndecay = 0.5\n[score]\nkind = "expected_mixed"\n',
    "x.yaml": b"candidates: random\nspread: 8\nbelief: {kind: beta, decay: 0.5}\nscore: expected_mixed\n",
    "arm/spec.json": json.dumps({"method": "hive", "label": "", "seed": 0, "parameters": {}}).encode(),
    "arm/steps.jsonl": b"".join(json.dumps(STEP | {"step": i}).encode() + b"\n" for i in (1, 2, 3)),
    "arm/evals.jsonl": b"".join(json.dumps(EVAL | {"step": i, "responses": 64 * i}).encode() + b"\n" for i in (0, 1, 2, 3)),
    "arm/checkpoints/checkpoint-5/trainer_state.json": json.dumps({"global_step": 5, "log_history": [{"loss": 0.5}]}).encode(),
    "arm/.lock": b"12345",
    "arm/log.txt": b"some line\nTraceback\n",
}


def _locked(path: Path) -> None:
    with runner._lock(path.parent, print):
        pass


READERS: dict[str, Callable[[Path], object]] = {
    "x.jsonl": doctor,
    "x.json": doctor,
    "x.parquet": doctor,
    "x.csv": lambda path: allocate.numbers(allocate.read(str(path)), "pass_rate", str(path), low=0.0, high=1.0),
    "x.npy": lambda path: subset.read_embeddings(str(path), 4),
    "x.toml": compose,
    "x.yaml": compose,
    "arm/spec.json": lambda path: (
        summary(path),
        record.read_spec(path),
        record.claim(path.parent, record.ArmSpec(method="hive")),
    ),
    "arm/steps.jsonl": summary,
    "arm/evals.jsonl": summary,
    "arm/checkpoints/checkpoint-5/trainer_state.json": lambda path: record.last_checkpoint(path.parents[2]),
    "arm/.lock": _locked,
    "arm/log.txt": runner._end_of,
}


@pytest.mark.parametrize("name", READERS)
def test_readers_of_files_without_a_digest(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    tried = 0

    def read(content: bytes) -> None:
        nonlocal tried
        tried += 1
        path.write_bytes(content)
        with refused_at_most():
            READERS[name](path)

    @fuzzed
    @given(anything)
    def any_bytes(content: bytes) -> None:
        read(content)

    @fuzzed
    @given(changes)
    def changed_file(how: list[tuple[str, float, bytes]]) -> None:
        read(changed(SOUND[name], how))

    path.write_bytes(SOUND[name])
    READERS[name](path)  # sound, it is read
    any_bytes()
    changed_file()
    ledger.note(58, tried=tried, held=tried)


# -- with a digest -------------------------------------------------------------------------------------------------------

HEADER = {"step": 3, "text": "\ud800\u2028", "list": [1, 2.5, None]}
ARRAYS = {"a": np.arange(5), "b": np.ones((2, 3), dtype=np.float32), "c": np.zeros(0, dtype=np.bool_)}


def same(header: dict[str, Any], arrays: dict[str, Any]) -> bool:
    kept = {name: header.get(name) for name in HEADER} == HEADER
    return kept and arrays.keys() == ARRAYS.keys() and all(np.array_equal(arrays[n], ARRAYS[n]) for n in ARRAYS)


@fuzzed
@given(st.one_of(anything, changes))
def test_a_state_is_what_was_written_or_none(how: bytes | list[tuple[str, float, bytes]]) -> None:
    sound = state.encode(HEADER, ARRAYS)
    content = how if isinstance(how, bytes) else changed(sound, how)
    with refused_at_most():
        assert same(*state.decode(content, "it"))
    ledger.note(58, tried=1, held=1)


def test_a_journal_gives_records_that_were_written_in_order(tmp_path: Path) -> None:
    written, prev, sound = [], bytes(16), b""
    for commit in range(1, 6):
        frame, digest = journal.frame(1, commit, commit, prev, state.encode({"n": commit}, {"a": np.arange(commit)}))
        written.append(digest)
        sound, prev = sound + frame, digest
    path, tried = tmp_path / "selector-000001-000000001.journal", 0

    @fuzzed
    @given(st.one_of(anything, changes))
    def scanned(how: bytes | list[tuple[str, float, bytes]]) -> None:
        nonlocal tried
        tried += 1
        content = how if isinstance(how, bytes) else changed(sound, how)
        path.write_bytes(content)
        with refused_at_most():
            found = journal.scan(path, 1 << 20)
            assert all(r.digest in written for r in found.records)
            assert found.good + found.bad == len(content)
            for r in found.records:
                header, arrays = state.decode(found.data[r.payload], "it")
                assert header["n"] == r.commit == len(arrays["a"])

    scanned()
    ledger.note(4, tried=tried, held=tried)


POOL = PromptPool.from_ids(range(12))


def made(directory: Path) -> Selector:
    return Selector("greso", POOL, batch_size=3, group_size=2, directory=directory)


def trained(selector: Selector, steps: int) -> Iterator[dict[str, Any]]:
    """The selector's belief after each of these steps."""
    yield told(selector)
    for _ in range(steps):
        with selector.step(policy_version=selector.step_number) as step:
            for tickets in step.requests():
                step.report([Outcome(ticket=t, rewards=[float(i % 2) for i in range(t.rollouts)]) for t in tickets])
        yield told(selector)


def told(selector: Selector) -> dict[str, Any]:
    selector.settle()  # a method learns when it is asked next
    held = selector.method.state()
    arrays = {**held.prompts, **held.shared}
    return {"step": selector.step_number, **{name: repr(np.asarray(array).tolist()) for name, array in arrays.items()}}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """The files of a selector's directory after eight steps, and what it believed after each."""
    folder = tmp_path_factory.mktemp("kept")
    selector = made(folder)
    beliefs = list(trained(selector, 8))
    selector.close()
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}, beliefs


def test_a_directory_gives_a_state_that_was_committed_or_an_error(
    kept: tuple[dict[str, bytes], list[dict[str, Any]]],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any file of it changed, or full of anything: the belief is one that there was, and training goes on from it."""
    monkeypatch.setattr(lease, "PATIENCE_S", 0.01)
    monkeypatch.setattr(os, "fsync", lambda file: None)  # nothing here is about power
    files, beliefs = kept
    tried = 0

    @settings(parent=fuzzed, max_examples=max(CASES // 2, 10))
    @given(st.sampled_from(sorted(files)), st.one_of(anything, changes))
    def opened(name: str, how: bytes | list[tuple[str, float, bytes]]) -> None:
        nonlocal tried
        tried += 1
        folder = tmp_path_factory.mktemp("changed")
        for other, content in files.items():
            (folder / other).write_bytes(content)
        (folder / name).write_bytes(how if isinstance(how, bytes) else changed(files[name], how))
        with refused_at_most():
            selector = made(folder)
            try:
                assert told(selector) in beliefs
                at = selector.step_number
                assert [belief["step"] for belief in trained(selector, 1)] == [at, at + 1]
            finally:
                selector.close()

    opened()
    ledger.note(4, tried=tried, held=tried)


def test_a_lease_says_something_or_nothing(tmp_path: Path) -> None:
    @fuzzed
    @given(anything)
    def told_by(content: bytes) -> None:
        (tmp_path / "writer-000001.json").write_bytes(content)
        assert isinstance(lease.holder(tmp_path), dict)

    told_by()
    ledger.note(58, tried=CASES, held=CASES)
