"""The same run in another process, whose hashes of text differ: `python -m edgewise.testing.elsewhere` answers line by line.

One process serves all questions of a test session, so that numpy and the like are imported once. A question is one line of
JSON, and so is its answer: {"asked": ...} or {"error": ...}.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
import traceback
from operator import attrgetter
from typing import Any

from edgewise.method import Method
from edgewise.testing.drive import Asked, Size, selector_of, steps
from edgewise.testing.world import World


def asked_elsewhere(method: Method, prompts: int, size: Size, n: int, *, seed: int = 0) -> Asked | str:
    """What `steps` gives in another process for a method of the same class and parameters, or why that process failed.

    Raises ValueError for a class that another process cannot find: one defined inside a function.
    """
    kind = type(method)
    if "<locals>" in kind.__qualname__:
        raise ValueError(f"{kind.__qualname__} is defined inside a function; another process cannot find it.")
    question = {
        "path": sys.path, "module": kind.__module__, "file": inspect.getsourcefile(kind), "name": kind.__qualname__,
        "parameters": method.parameters(), "prompts": prompts, "size": size, "n": n, "seed": seed,
    }  # fmt: skip
    process = _process()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(question) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        _process.cache_clear()
        return f"the process ended with status {process.wait()}"
    answer = json.loads(line)
    if "error" in answer:
        return str(answer["error"])
    return [[[(row, rollouts) for row, rollouts in batch] for batch in rounds] for rounds in answer["asked"]]


@functools.cache
def _process() -> subprocess.Popen[str]:
    here = os.environ.get("PYTHONHASHSEED", "")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "edgewise.testing.elsewhere"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONHASHSEED": "1" if here != "1" else "2"},
    )  # fmt: skip
    atexit.register(_end, process)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    with process:  # closes its input, which ends it, and waits
        pass


def _answer(question: dict[str, Any]) -> Asked:
    for folder in question["path"]:
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        module = importlib.import_module(question["module"])
    except ImportError:  # a test module that is known by its file only
        spec = importlib.util.spec_from_file_location(question["module"], question["file"])
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[question["module"]] = module
        spec.loader.exec_module(module)
    method = attrgetter(question["name"])(module)(**question["parameters"])
    world = World(question["prompts"])
    selector = selector_of(method, world, Size(*question["size"]), seed=question["seed"])
    return steps(selector, world, question["n"])


def main() -> None:
    """Answer until the input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a method prints is no answer
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"asked": _answer(json.loads(line))}
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
