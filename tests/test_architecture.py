"""The rules that hold over the whole package: who may import whom, what is never used, and what is promised in two places."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import edgewise
from edgewise import errors

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "edgewise"

LEVELS = {
    # a room is a file or a folder of src/edgewise; it imports itself and rooms of lower levels, nothing else
    "errors": 0,
    "_version": 0,
    "types": 1,
    "foreign": 1,  # files and JSON that somebody else wrote
    "method": 2,
    "tickets": 2,
    "kinds": 2,
    "rows": 2,
    "prediction": 3,
    "pool": 3,
    "data": 3,
    "stream": 3,
    "outcomes": 3,
    "deltas": 3,
    "lease": 3,
    "migrations": 3,
    "state": 4,
    "journal": 5,
    "directory": 6,
    "metrics": 3,
    "beliefs": 4,
    "scores": 4,
    "diverse": 4,
    "choosers": 4,
    "allocators": 4,
    "signals": 4,
    "calibration": 4,
    "decided": 4,
    "edited": 4,
    "synthetic": 4,  # made-up signals, for the laboratory and the conformance suite
    "methods": 5,
    "allocation": 5,
    "selector": 7,
    "compose": 6,
    "__init__": 8,  # the front door; nobody inside the package goes through it
    "hosts": 8,
    "testing": 8,
    "report": 8,  # draws plain records; it knows no lab
    "lab": 9,
    "inspection": 10,
    "doctor": 10,  # these three are verbs of the command line that need no lab but its table
    "catalogue": 10,
    "subset": 10,
    "allocate": 10,
    "cli": 11,
    "__main__": 12,
}
SPLIT_OFF = ("arguments", "stage", "view", "step", "saved", "durable", "waiting", "accounts", "contract", "accepted", "undo")
SAME_ROOM = dict.fromkeys(SPLIT_OFF, "selector")
SAME_ROOM["history"] = "directory"
"""Files that were split off another and share its room."""

WITH_TORCH = {"signals", "hosts", "lab", "report"}
FILES_WITH_TORCH = {"beliefs/ppm.py"}
"""Files outside those rooms: a model that is imported when a method that runs it is started, and by nobody else."""
WITH_TRAINERS = {"hosts", "lab"}
TORCH = ("torch", "transformers", "accelerate", "peft", "safetensors.torch")
TRAINERS = ("trl", "verl", "ray", "openrlhf", "skyrl", "trinity", "tinker_cookbook", "prime_rl", "nemo_rl", "slime")
UNSAFE_MODULES = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
UNSAFE_CALLS = ("eval", "exec", "compile", "__import__")
UNSAFE_ARGUMENTS = {"allow_pickle": True, "weights_only": False, "trust_remote_code": True}
EXPORTED = {
    "METHODS", "Composed", "EdgewiseError", "Groups", "Method", "Outcome", "PromptPool", "Requests", "Selector", "Step",
    "Ticket", "Verdicts", "__version__", "compose", "make",
}  # fmt: skip


class Import(NamedTuple):
    """One import: where it stands, and the module it names."""

    file: str
    line: int
    room: str
    module: str


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a file or module, given as its path below the package: ("lab", "table.py") or ("lab", "table")."""
    name = parts[0].removesuffix(".py")
    return SAME_ROOM.get(name, name)


@cache
def trees() -> dict[Path, ast.Module]:
    """Every source file of the package, parsed."""
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 20, f"no package under {PACKAGE}"
    return {file.relative_to(PACKAGE): ast.parse(file.read_text(encoding="utf-8"), str(file)) for file in files}


def imports() -> Iterator[Import]:
    """Every import anywhere in a file: inside functions and under TYPE_CHECKING too."""
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [f"{'.' * node.level}{node.module or ''}"]
                if modules == ["edgewise"]:  # `from edgewise import kinds` imports edgewise.kinds
                    modules = [f"edgewise.{alias.name}" for alias in node.names]
                elif modules == ["safetensors"]:
                    modules = [f"safetensors.{alias.name}" for alias in node.names]
            else:
                continue
            for module in modules:
                yield Import(str(file), node.lineno, room_of(file.parts), module)


def belongs(found: Import, families: tuple[str, ...]) -> bool:
    """Whether the imported module is one of these or below one of them."""
    return any(found.module == family or found.module.startswith(f"{family}.") for family in families)


def listed(wrong: list[str]) -> str:
    return "\n  ".join(["", *wrong])


# -- imports -----------------------------------------------------------------------------------------------------------


def test_every_room_has_a_level() -> None:
    rooms = {room_of(file.parts) for file in trees()}
    missing = sorted(rooms - set(LEVELS))
    assert not missing, f"give these rooms of src/edgewise a level in LEVELS, or move them into a room: {missing}"


def test_imports_run_one_way() -> None:
    wrong = []
    for file, line, room, module in imports():
        if module == "edgewise":
            wrong.append(f"{file}:{line} imports the front door; import the module that defines what you need")
        if not module.startswith("edgewise."):
            continue
        target = room_of(tuple(module.split(".")[1:]))
        if target not in LEVELS:
            wrong.append(f"{file}:{line} imports {module}: no such room (or a name of the front door)")
        elif target != room and LEVELS[target] >= LEVELS.get(room, 99):
            wrong.append(f"{file}:{line} imports {module}, which is not on a level below its own")
    assert not wrong, listed(wrong)


def test_imports_are_absolute() -> None:
    wrong = [f"{i.file}:{i.line} imports {i.module}" for i in imports() if i.module.startswith(".")]
    assert not wrong, listed(wrong)


def test_torch_stays_in_the_rooms_that_measure_train_or_draw() -> None:
    wrong = [
        f"{i.file}:{i.line} imports {i.module}"
        for i in imports()
        if belongs(i, TORCH) and not {i.room, i.file} & {*WITH_TORCH, *FILES_WITH_TORCH}
    ]
    assert not wrong, listed(wrong)


def test_trainers_stay_in_hosts_and_lab() -> None:
    wrong = [f"{i.file}:{i.line} imports {i.module}" for i in imports() if belongs(i, TRAINERS) and i.room not in WITH_TRAINERS]
    assert not wrong, listed(wrong)


def test_no_file_is_named_after_nothing() -> None:
    vague = {"utils", "util", "helpers", "helper", "misc", "common"}
    wrong = [str(file) for file in trees() if vague & {part.removesuffix(".py") for part in file.parts}]
    assert not wrong, f"name these after what they hold: {wrong}"


@pytest.mark.parametrize("modules", ["edgewise", "edgewise.cli", "edgewise.catalogue, edgewise.doctor"])
def test_the_core_imports_light_in_a_fresh_process(modules: str) -> None:
    heavy = ["torch", "scipy", "pandas", "transformers", "datasets", "pyarrow", "matplotlib", "trl", "safetensors", "sympy"]
    program = (
        f"import sys, time; start = time.perf_counter(); import {modules}; spent = time.perf_counter() - start; "
        f"print(*[name for name in {heavy} if name in sys.modules]); print(spent)"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.splitlines()
    print(f"import {modules}: {float(answer[1]):.2f} s")  # pytest -rP shows it; time on a busy machine is nothing to assert on
    assert answer[0] == "", f"import {modules} loads {answer[0]}; import it inside the function that needs it"


# -- never -------------------------------------------------------------------------------------------------------------


def test_nothing_is_pickled_or_evaluated() -> None:
    wrong = [f"{i.file}:{i.line} imports {i.module}" for i in imports() if belongs(i, UNSAFE_MODULES)]
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Name) and node.func.id in UNSAFE_CALLS:
                wrong.append(f"{file}:{node.lineno} calls {node.func.id}")
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg in UNSAFE_ARGUMENTS and value is UNSAFE_ARGUMENTS[keyword.arg]:
                    wrong.append(f"{file}:{node.lineno} passes {keyword.arg}={value}")
    assert not wrong, listed(wrong)


def test_no_tracked_file_names_a_machine_or_an_index() -> None:
    """Spelt in pieces, so that this file does not find itself."""
    folders = "|".join(["wo" + "rk", "ro" + "ot", "fa" + "rm", "home/[a-z]+", "Users/[A-Za-z]+", "opt/(whe" + "els|py" + "pi)"])
    hosts = ["py" + r"pi\.org", "python" + "hosted", "py" + r"torch\.org/whl", "index" + "-url", "arti" + "factory"]
    wanted = re.compile(rf"(?<![\w.)\]}}-])/(?:{folders})/|{'|'.join(hosts)}".encode())
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = ["git", "-c", "safe.directory=*", "ls-files", "-z"]  # also where CI checks out as another user
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    wrong = []
    for name in filter(None, names):
        file = ROOT / name
        found = wanted.search(file.read_bytes()) if file.is_file() and not file.is_symlink() else None
        if found:
            wrong.append(f"{name}: {found[0].decode(errors='replace')}")
    assert not wrong, listed(wrong)


# -- said in two places ------------------------------------------------------------------------------------------------


def test_all_is_exactly_what_imports() -> None:
    assert len(edgewise.__all__) == len(set(edgewise.__all__))
    assert set(edgewise.__all__) == EXPORTED
    values = {name: value for name, value in vars(edgewise).items() if not name.startswith("_")}
    public = {name for name, value in values.items() if not isinstance(value, types.ModuleType)}
    assert public | {"__version__"} == EXPORTED


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == edgewise.__version__


def test_constraints_hold_names_and_exact_versions_only() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    wrong = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)]
    assert not wrong, f"constraints.txt takes name==version, without URL, build suffix or hash: {wrong}"
    names = [re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines]
    assert len(names) == len(set(names))


def test_every_error_is_in_the_tree_drawn_in_errors() -> None:
    drawn: dict[str, tuple[str, ...]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.fullmatch(r"( +)(\w+Error)(?:\((\w+)\))?(?:  .*)?", line)
        if found:
            indent, name, also = found.groups()
            path = [*path[: len(indent) // 2 - 2], name]
            drawn[name] = (*path[-2:-1], *([also] if also else []))
    real = {
        name: tuple(base.__name__ for base in value.__bases__)
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.EdgewiseError)
    }
    assert drawn | {"EdgewiseError": ("Exception",)} == real


def test_errors_are_defined_in_errors() -> None:
    wrong = [
        f"{file}:{node.lineno} {node.name}"
        for file, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Error", "Warning")) and str(file) != "errors.py"
    ]
    assert not wrong, listed(wrong)


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> set[str]:
    """What a docstring may describe: the arguments of a function; the fields of a class and the arguments of its __init__."""
    if not isinstance(node, ast.ClassDef):
        a = node.args
        return {x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg)))}
    names: set[str] = set()
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names.add(statement.target.id)
        elif isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            names |= parameters(statement)
    return names


def described(doc: str) -> Iterator[str]:
    """Names that a docstring describes our way, `rows: (n,) pool rows.  room: groups missing.`; `Args:` blocks are ruff's."""
    start = re.compile(r"(?:^|\.  )([a-z_]\w*(?:, [a-z_]\w*)*): ")
    for paragraph in re.split(r"\n\s*\n", doc):
        begun, before = False, "."
        for line in map(str.strip, paragraph.splitlines()):
            if line.startswith((">>>", "Args:")):
                break
            begun = begun or (before.endswith(".") and start.match(line) is not None)  # else a sentence that holds a colon
            before = line
            for found in start.finditer(line) if begun else ():
                yield from found[1].split(", ")


def test_docstrings_describe_arguments_that_exist() -> None:
    wrong, seen = [], 0
    for file, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                for name in described(ast.get_docstring(node) or ""):
                    seen += 1
                    if name not in parameters(node):
                        wrong.append(f"{file}:{node.lineno} {node.name} describes {name!r}, which it does not take")
    assert seen > 50, f"only {seen} descriptions found: does the pattern still fit how docstrings are written?"
    assert not wrong, listed(wrong)
