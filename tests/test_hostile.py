"""Broken and hostile input: every reader refuses it in one line, soon, in little memory, and runs nothing that it holds."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgewise import foreign
from tests import hostile, ledger

ROOT = Path(__file__).resolve().parents[1]
MOST_CPU_S = 1.0
MOST_GROWN = 200 << 20
TORN = {case for case, raw in hostile.TEXTS.items() if b"\n" not in raw and len(raw) <= foreign.MOST_LINE}
"""Without the end of a line: still being written, as far as a reader of lines knows."""

NUMBERS = {"json line: number of 4,000 digits", "json line: NaN", "json line: Infinity", "json line: wrong types"}
FINE: dict[str, set[str]] = {
    # what ends without an error, and rightly so
    "jsonl": {"empty", *NUMBERS},  # the pool says that it is empty; the other columns may hold anything
    "json": NUMBERS,  # a .json file of one object a line
    "spec": {"missing"},
    "lines": {"missing", *TORN},
    "rewound lines": {"missing", *TORN},
    "runner": {"missing", *TORN},
    "trainer's state": {*hostile.TEXTS, *hostile.KINDS},  # such a checkpoint is not complete: the one before it is taken
    "log": {*hostile.TEXTS, *hostile.KINDS},  # only shown, its last lines, beside the failure of an arm
    "lock": {*hostile.TEXTS, "missing", "8 GB of nothing"},  # only who holds it is written there
    "state of a run": {"missing"},
    "state of format 1": {"missing"},
    "journal": set(hostile.TEXTS),  # read up to the first byte that is no record: none here
    "journal of a run": {"missing", "empty", "nul"},  # what a crash leaves: cut off, and kept
    "lease": {*hostile.TEXTS, "missing", "8 GB of nothing", "a named pipe"},  # says nothing, and does not change: nobody's
    "lease beyond counting": {"missing"},
}
HEADS_ALONE = {case for case, raw in hostile.TEXTS.items() if raw.count(b"\n") <= 1 and not case.startswith("csv")}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What every reader made of every hostile file, in a process of its own."""
    command = [sys.executable, "-m", "tests.hostile", "all", str(tmp_path_factory.mktemp("hostile"))]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert answer.returncode == 0, answer.stderr[-3_000:]
    found: dict[str, list[dict[str, Any]]] = {}
    for line in answer.stdout.splitlines():
        case = json.loads(line)
        found.setdefault(case["reader"], []).append(case)
    return found


READERS = (
    "jsonl", "json", "parquet", "data set: state", "data set: info", "data set: arrow", "toml", "yaml", "spec",
    "spec of a process", "lines", "rewound lines", "arm", "runner", "trainer's state", "log", "lock", "csv", "npy", "markdown",
    "state", "state of a run", "state of format 1", "journal", "journal of a run", "lease", "lease beyond counting",
)  # fmt: skip


def test_every_reader_is_tried(outcomes: dict[str, list[dict[str, Any]]]) -> None:
    assert set(outcomes) == set(READERS)
    assert all(len(found) == len(hostile.cases_of(reader)) for reader, found in outcomes.items())


@pytest.mark.parametrize("reader", READERS)
def test_hostile_files_are_refused_soon_in_little_memory(reader: str, outcomes: dict[str, list[dict[str, Any]]]) -> None:
    wrong = []
    for case in outcomes[reader]:
        name, message = case["case"], case["message"]
        fine = name in FINE.get(reader, set()) or (reader == "csv" and name in HEADS_ALONE | {"csv: more fields than names"})
        if case["error"] is None:
            if not fine:
                wrong.append(f"{name}: accepted as {case['value']}")
        elif not case["edgewise"]:
            wrong.append(f"{name}: {case['error']}: {message[:200]}")
        elif "." not in message or len(message) > 2_000 or not any(c in message for c in ("/", "x.")):
            wrong.append(f"{name}: names no file or no remedy, or is long: {message[:200]}")
        if case["cpu_s"] > MOST_CPU_S or case["grown"] > MOST_GROWN:
            wrong.append(f"{name}: took {case['cpu_s']:.1f} s and {case['grown'] >> 20} MB")
        if case["executed"]:
            wrong.append(f"{name}: executed")
    assert not wrong, "\n".join(wrong)
    ledger.note(58, tried=len(outcomes[reader]), held=len(outcomes[reader]) - len(wrong))


def test_pickle_bombs_never_go_off(outcomes: dict[str, list[dict[str, Any]]], tmp_path: Path) -> None:
    """As every file that is read; and the bomb is one: unpickled, it goes off."""
    import os
    import pickle

    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        pickle.loads(hostile.bomb()).close()
    finally:
        os.chdir(here)
    assert (tmp_path / hostile.SENTINEL).exists()
    bombs = [
        case
        for found in outcomes.values()
        for case in found
        if case["case"] in ("a pickle", "npy: objects", "yaml: python object")
    ]
    ledger.note(57, tried=len(bombs), held=sum(not case["executed"] for case in bombs))


# -- the package's own code ----------------------------------------------------------------------------------------------

NEVER = {
    ("os", "system"), ("os", "popen"), ("tempfile", "mktemp"), ("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"),
    ("yaml", "full_load"), ("yaml", "load_all"), ("pickle", "loads"), ("pickle", "load"), ("np", "save_object"),
    ("pd", "read_pickle"), ("pandas", "read_pickle"), ("subprocess", "getoutput"), ("subprocess", "getstatusoutput"),
    ("tarfile", "open"), ("shutil", "unpack_archive"), ("joblib", "load"),
}  # fmt: skip
NEVER_NAMED = {
    "eval", "exec", "compile", "__import__", "mktemp", "unsafe_load", "full_load", "UnsafeLoader", "FullLoader", "Unpickler",
    "extractall",
}  # fmt: skip
METHODS_TOO = {"eval", "compile"}
NEVER_IMPORTED = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "shelve",
    "marshal",
    "jsonpickle",
    "dbm",
    "code",
    "codeop",
}
TRUE_NEVER = {"shell", "allow_pickle", "trust_remote_code"}


def unsafe(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, what) of everything that runs what it is given, or makes a file under a name that is guessed."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, f"import {a.name}") for a in node.names if a.name.split(".")[0] in NEVER_IMPORTED]
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")[0]
            found += [(node.lineno, f"from {module}")] if module in NEVER_IMPORTED else []
            found += [
                (node.lineno, f"{module}.{a.name}") for a in node.names if (module, a.name) in NEVER or a.name in NEVER_NAMED
            ]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            ours = node.value.id != "builtins" and node.attr in METHODS_TOO  # model.eval(), re.compile()
            if (node.value.id, node.attr) in NEVER or (node.attr in NEVER_NAMED and not ours):
                found.append((node.lineno, f"{node.value.id}.{node.attr}"))
        elif isinstance(node, ast.Name) and node.id in NEVER_NAMED:
            found.append((node.lineno, node.id))
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = {k.arg: k.value for k in node.keywords}
            for name in TRUE_NEVER & given.keys():
                if not (isinstance(given[name], ast.Constant) and given[name].value is False):
                    found.append((node.lineno, f"{called}({name}=...)"))
            of = node.func.value.id if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) else ""
            if of in ("np", "numpy") and called == "load" and "allow_pickle" not in given:
                found.append((node.lineno, "np.load without allow_pickle=False"))
            if called == "from_pretrained" and "Model" in of and not {"use_safetensors", "gguf_file"} & given.keys():
                found.append((node.lineno, f"{of}.from_pretrained without use_safetensors"))
    return found


def test_the_package_runs_nothing_that_it_reads() -> None:
    files = sorted((ROOT / "src" / "edgewise").rglob("*.py"))
    assert len(files) > 100
    wrong = [
        f"{file.relative_to(ROOT)}:{line}: {what}"
        for file in files
        for line, what in unsafe(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert not wrong, "\n".join(wrong)
    ledger.note(57, tried=len(files), held=len(files))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import marshal as m", "import os\nos.system('x')", "eval('1')",
        "f = exec", "import tempfile\ntempfile.mktemp()", "from tempfile import mktemp", "import torch\ntorch.load('x')",
        "import numpy as np\nnp.load('x')", "import numpy as np\nnp.load('x', allow_pickle=True)", "yaml.load(text)",
        "subprocess.run('x', shell=True)", "subprocess.run('x', shell=flag)", "AutoModel.from_pretrained('x')",
        "yaml.load(t, Loader=yaml.UnsafeLoader)",
    ],
)  # fmt: skip
def test_the_walk_finds_what_it_looks_for(source: str) -> None:
    assert unsafe(ast.parse(source))
