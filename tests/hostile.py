"""Files that nobody should have to read, and every reader of edgewise that might: tried in a process of its own.

    python -m tests.hostile READER|all FOLDER      one line of JSON a file: what came of it, CPU seconds, growth of memory

The process has a limit on its address space and an alarm, so that a reader that allocates or waits without end is found out.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

SPARSE = 8 << 30
SENTINEL = "executed"
"""Name of the file that a pickle bomb makes where it goes off."""

ALARM_S = 30
ADDRESS_SPACE = 4 << 30
"""Beyond what the process has when its imports are done."""


class Bomb:
    """Unpickled, it makes a file: in FOLDER, or where the reader works."""

    def __reduce__(self) -> Any:
        return open, (SENTINEL, "w")


def bomb() -> bytes:
    return pickle.dumps(Bomb())


DEEP = 100_000
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{c}: &{c} [{', '.join([f'*{b}'] * 10)}]\n" for b, c in zip("abcdefgh", "bcdefghi", strict=True)
)

TEXTS: dict[str, bytes] = {
    # whatever the format
    "empty": b"",
    "nul": bytes(4096),
    "no utf-8": b"\xff\xfe\xfa{}\xc3(" * 20,
    "half a character": b'{"prompt": "a"}'[:-3] + b"\xe2\x82",
    "byte order mark": b"\xef\xbb\xbf",
    "utf-16": '[{"prompt": "a"}]'.encode("utf-16"),
    "one word": b"edgewise",
    "a pickle": bomb(),
    "a zip": b"PK\x03\x04" + bytes(200),
    "deep list": b"[" * DEEP,
    "deep list, closed": b"[" * DEEP + b"]" * DEEP,
    "deep mapping": b'{"prompt":' * DEEP,
    "deep mapping, closed": b'{"prompt":' * DEEP + b"1" + b"}" * DEEP,
    "endless text": b'"' + b"a" * 300_000,
    "long line": b'{"prompt": "' + b"a" * (1 << 25),
    # JSON
    "json: number of 5,000 digits": b'[{"prompt": "a", "id": 1' + b"0" * 4_999 + b"}]\n",
    "json line: number of 5,000 digits": b'{"prompt": "a", "step": 1' + b"0" * 4_999 + b"}\n",
    "json line: number of 4,000 digits": b'{"prompt": "a", "step": 1' + b"0" * 3_999 + b"}\n",
    "json: key twice": b'[{"prompt": "a", "prompt": "b"}]\n',
    "json line: key twice": b'{"method": "hive", "step": 1, "prompt": "a", "method": "dapo", "step": 2, "prompt": "b"}\n',
    "json line: NaN": b'{"method": "hive", "step": NaN, "seed": NaN, "prompt": NaN, "global_step": NaN}\n',
    "json line: Infinity": b'{"method": "hive", "step": Infinity, "seed": -Infinity, "prompt": 1e999, "global_step": 1e999}\n',
    "json line: wrong types": b'{"method": 3, "step": "x", "seed": [], "prompt": {}, "global_step": [], "label": {}}\n',
    # TOML
    "toml: number of 5,000 digits": b'score = "expected_mixed"\nspread = 1' + b"0" * 4_999 + b'\n[belief]\nkind = "beta"\n',
    "toml: number of 400 digits": b'score = "expected_mixed"\nspread = 1' + b"0" * 399 + b'\n[belief]\nkind = "beta"\n',
    "toml: key twice": b'score = "expected_mixed"\nscore = "expected_mixed"\n[belief]\nkind = "beta"\n',
    "toml: nan": b'score = "expected_mixed"\n[belief]\nkind = "beta"\ndecay = nan\n',
    "toml: inf": b'score = "expected_mixed"\n[belief]\nkind = "beta"\ndecay = inf\n',
    "toml: deep key": b".".join([b"a"] * 30_000) + b" = 1\n",
    "toml: a long word": b'score = "' + b"expected_mixed" * 4_000 + b'"\n[belief]\nkind = "beta"\n',
    # YAML
    "yaml: a billion laughs": LAUGHS.encode() + b"belief: *i\nscore: expected_mixed\n",
    "yaml: laughs alone": LAUGHS.encode(),
    "yaml: alias of itself": b"&a [*a]\n",
    "yaml: merge": b"belief: &b {kind: beta}\nscore: {<<: *b, kind: expected_mixed}\n",
    "yaml: python object": f"!!python/object/apply:builtins.open ['{SENTINEL}', 'w']\n".encode(),
    "yaml: python module": b"belief: !!python/module:os\nscore: expected_mixed\n",
    "yaml: key twice": b"belief: beta\nbelief: beta\nscore: expected_mixed\n",
    "yaml: nan": b"belief: {kind: beta, decay: .nan}\nscore: expected_mixed\n",
    "yaml: number of 5,000 digits": b"belief: {kind: beta, decay: 1" + b"0" * 4_999 + b"}\nscore: expected_mixed\n",
    "yaml: number of 400 digits": b"spread: 1" + b"0" * 399 + b"\nbelief: beta\nscore: expected_mixed\n",
    "yaml: a key that is a list": b"? [a, b]\n: 1\n",
    "yaml: two documents": b"belief: beta\n---\nscore: expected_mixed\n",
    "yaml: a date": b"belief: 2020-01-01\nscore: expected_mixed\n",
    # tables
    "csv: a NUL": b"prompt,pass_rate\n\x00,\x00\n",
    "csv: a field without end": b'prompt,pass_rate\n"' + b"a" * 2_000_000,
    "csv: number of 5,000 digits": b"prompt,pass_rate\na,1" + b"0" * 4_999 + b"\n",
    "csv: number of 400 digits": b"prompt,pass_rate\na,1" + b"0" * 399 + b"\n",
    "csv: NaN": b"prompt,pass_rate\na,NaN\n",
    "csv: more fields than names": b"prompt,pass_rate\na,0.5,3,4\n",
    "csv: names twice": b"pass_rate,pass_rate\n0.5,x\n",
    "parquet: head and tail": b"PAR1" + bytes(100) + b"\x64\x00\x00\x00PAR1",
    "parquet: a foot longer than the file": b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1",
    "npy: a shape that lies": b"\x93NUMPY\x01\x00\x76\x00"
    + b"{'descr': '<f8', 'fortran_order': False, 'shape': (4, 100000000000), }".ljust(0x75) + b"\n",
    "npy: a shape beyond counting": b"\x93NUMPY\x01\x00\x76\x00"
    + b"{'descr': '<f8', 'fortran_order': False, 'shape': (4, 10000000000000000000000), }".ljust(0x75) + b"\n",
    "npy: objects": b"\x93NUMPY\x01\x00\x76\x00"
    + b"{'descr': '|O', 'fortran_order': False, 'shape': (4, 4), }".ljust(0x75) + b"\n" + bomb(),
    "npy: a head without end": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b"(" * 200_000,
}  # fmt: skip


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(SPARSE)


def _socket(path: Path) -> None:
    made = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket may be a hundred characters long
    try:
        made.bind(path.name)
    finally:
        os.chdir(here)


KINDS: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: None,
    "8 GB of nothing": _sparse,
    "a named pipe": _fifo,
    "a folder": lambda path: path.mkdir(),
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a full device": lambda path: path.symlink_to("/dev/full"),
    "a socket": _socket,
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link out": lambda path: path.symlink_to("/etc/passwd"),
}


def cases_of(reader: str) -> list[str]:
    """What a reader is tried with: everything; but a lease file of whom nothing is known is watched for a while each time."""
    few = ("empty", "nul", "no utf-8", "deep mapping, closed", "json line: number of 5,000 digits", "json line: wrong types")
    if reader == "lease beyond counting":
        return [*few[:3], "missing"]
    return [*(few if reader == "lease" else TEXTS), *KINDS]


def make(name: str, path: Path) -> None:
    """Put the hostile thing `name` at `path`."""
    if name in TEXTS:
        path.write_bytes(TEXTS[name])
    else:
        KINDS[name](path)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def readers() -> dict[str, tuple[str, Callable[[Path], object]]]:
    """Name -> (file name, what reads it)."""
    from edgewise import allocate, catalogue, data, journal, lease, state, subset
    from edgewise.compose import compose
    from edgewise.doctor import examine
    from edgewise.lab import record, runner
    from edgewise.lab.compare import Comparison
    from edgewise.selector import Selector

    def spec_claimed(path: Path) -> object:
        return record.claim(path.parent, record.ArmSpec(method="hive"))

    def begun(path: Path) -> object:
        return runner._Runner([record.ArmSpec(method="hive")], [path.parent], 1, print, print, None)

    def checkpoint(path: Path) -> object:
        return record.last_checkpoint(path.parents[2])

    def folder(path: Path) -> object:
        for name in ("state.json", "dataset_info.json", "data-00000-of-00001.arrow"):
            beside = path.parent / name
            if beside != path and not beside.exists():
                files = [{"filename": "data-00000-of-00001.arrow"}]
                beside.write_text(json.dumps({"_data_files": files, "features": {}}))
        return data.read(path.parent)

    def selector(path: Path) -> object:
        began = Selector("uniform", [{"prompt": f"{i}"} for i in range(20)], batch_size=2, group_size=2, directory=path.parent)
        began.close()
        made = sorted(p for p in path.parent.iterdir() if p != path)
        for file in made:
            file.unlink()
        return began.step_number

    lease.PATIENCE_S = 0.02  # a writer of whom nothing is known is watched for so long

    def lock(path: Path) -> object:
        with runner._lock(path.parent, print) as held:
            return held

    return {
        "jsonl": ("x.jsonl", lambda path: examine(data.read(path)) and data.read(path)),
        "json": ("x.json", lambda path: examine(data.read(path)) and data.read(path)),
        "parquet": ("x.parquet", data.read),
        "data set: state": ("set/state.json", folder),
        "data set: info": ("set/dataset_info.json", folder),
        "data set: arrow": ("set/data-00000-of-00001.arrow", folder),
        "toml": ("x.toml", compose),
        "yaml": ("x.yaml", compose),
        "spec": ("arm/spec.json", spec_claimed),
        "spec of a process": ("arm/spec.json", record.read_spec),
        "lines": ("arm/steps.jsonl", record.read_lines),
        "rewound lines": ("arm/evals.jsonl", lambda path: record.rewind(path.parent, 5)),
        "arm": ("arm/spec.json", lambda path: Comparison.read([path.parent], "dapo")),
        "runner": ("arm/steps.jsonl", begun),
        "trainer's state": ("arm/checkpoints/checkpoint-5/trainer_state.json", checkpoint),
        "log": ("arm/log.txt", runner._end_of),
        "lock": ("arm/.lock", lock),
        "csv": ("x.csv", lambda path: allocate.numbers(allocate.read(str(path)), "pass_rate", str(path), low=0.0, high=1.0)),
        "npy": ("x.npy", lambda path: subset.read_embeddings(str(path), 4)),
        "markdown": ("x.md", catalogue.update),
        "state": ("x.safetensors", state.load),
        "state of a run": ("run/selector-000001-000000003.safetensors", selector),
        "state of format 1": ("run/selector-000000003.safetensors", selector),
        "journal": ("x.journal", lambda path: journal.scan(path, 1 << 26)),
        "journal of a run": ("run/selector-000001-000000003.journal", selector),
        "lease": ("run/writer-000001.json", selector),
        "lease beyond counting": ("run/writer-999999.json", selector),
    }


def warm() -> None:
    """Import what readers import when they are called, so that it is not counted as theirs."""
    import datasets
    import pyarrow.parquet
    import yaml

    from edgewise.methods import make as made

    made("hive")
    del datasets, pyarrow, yaml


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


class Waited(BaseException):
    """The alarm went off: no `except Exception` of a reader takes it for its own."""


def measured(call: Callable[[], object]) -> dict[str, Any]:
    """What came of the call: its error or its value, CPU seconds, and by how many bytes memory grew."""

    def late(*_: object) -> None:
        raise Waited

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark of memory begins anew
    before, began = _status("VmRSS"), time.process_time()
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, ALARM_S)
    found: dict[str, Any] = {"error": None, "edgewise": False, "message": ""}
    try:
        found["value"] = repr(call())[:200]
    except BaseException as error:
        from edgewise.errors import EdgewiseError

        found |= {"error": type(error).__name__, "edgewise": isinstance(error, EdgewiseError), "message": str(error)[:3_000]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return found | {"cpu_s": time.process_time() - began, "grown": _status("VmHWM") - before}


def main(words: list[str]) -> int:
    only, folder = words
    warm()
    limit = _status("VmSize") + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number, (reader, (name, read)) in enumerate(readers().items()):
        if only not in (reader, "all"):
            continue
        path = Path(folder) / str(number) / name
        path.parent.mkdir(parents=True)
        os.chdir(path.parent)
        for case in cases_of(reader):
            make(case, path)
            try:
                found = measured(partial(read, path))
            finally:
                remove(path)
            print(json.dumps({"reader": reader, "case": case, **found, "executed": Path(SENTINEL).exists()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
