"""Faults tried and survived: tests note them here, and docs/reliability.md is made of what they noted.

    from tests import ledger

    def test_a_kill_loses_nothing():
        kills = ledger.cases(20, chaos=200)           # how many cases: in `make test`, and in `make chaos`
        rng = np.random.default_rng(ledger.seed())    # 0 in `make test`; `make chaos` draws one, prints it and keeps it
        ...
        ledger.note(1, tried=kills, held=survived, kills=kills, lost=0, doubled=0)   # fails the test unless all held

A row is one of `FAULTS`, the fault matrix. `make chaos` runs the long version of every test file that imports this module, with
EDGEWISE_LEDGER naming a file of notes, and then `python -m tests.ledger NOTES` makes the page of it. Without that variable
`note` only checks.

Figures have names. Those of the page's first table:

    kills                   processes killed (-9, TERM) at a random time
    flips                   bytes flipped in a saved file
    truncations             files cut at an offset
    resumes                 runs cut and resumed that were compared with an uninterrupted twin
    outcomes                outcomes looked for after a fault
    lost, doubled           of those: missing, counted twice. A note where one of them is not 0 fails the test
    commit_ms               one commit at 100,000 prompts (other sizes: another name)
    journal_bytes_per_step  bytes a step adds to the journal, at 256 prompts x 16 rewards (other shapes: another name)

Counts add up over all notes, so what was tried once is noted in one row only. Measures, whose names end in `_ms`, `_s`, `_mb`,
`_bytes` or hold `_per_`, are kept as least, mean and most.
"""

from __future__ import annotations

import ast
import datetime
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.faults import FAULTS
from tests.reliability_page import with_sections

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"

_MEASURE = re.compile(r"_(ms|s|mb|bytes)$|_per_")
_NEVER = ("lost", "doubled")


def chaos() -> bool:
    """Whether this is `make chaos`: EDGEWISE_CHAOS=1."""
    return os.environ.get("EDGEWISE_CHAOS") == "1"


def cases(ci: int, *, chaos: int) -> int:
    """How many cases to try: `chaos` when EDGEWISE_CHAOS=1 (`make chaos`), else `ci`."""
    return chaos if os.environ.get("EDGEWISE_CHAOS") == "1" else ci


def seed() -> int:
    """The seed of random cases: EDGEWISE_SEED, 0 unless set. A failing note names it; `make chaos SEED=n` repeats a run."""
    return int(os.environ.get("EDGEWISE_SEED") or 0)


def note(row: int, *, tried: int, held: int, **figures: float) -> None:
    """Note that the promise of fault `row` held in `held` of `tried` cases, with figures worth showing. All must hold."""
    assert row in FAULTS, f"there is no fault {row}"
    assert 0 <= held <= tried, f"{held} of {tried} cases cannot hold"
    assert tried > 0, "nothing was tried"
    file = os.environ.get("EDGEWISE_LEDGER")
    if file:
        test = os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0].split("[")[0]
        line = {"row": row, "tried": int(tried), "held": int(held), "test": test, "chaos": chaos(), "seed": seed()}
        line["figures"] = {name: _plain(value) for name, value in figures.items()}
        with open(file, "a", encoding="utf-8") as out:  # one short write: processes of one test may note at the same time
            out.write(json.dumps(line) + "\n")
    where = f"fault {row}, {FAULTS[row].fault} (seed {seed()})"
    assert held == tried, f"{where}: the promise held in {held} of {tried} cases: {FAULTS[row].promise}"
    for name in _NEVER:
        assert not figures.get(name), f"{where}: {figures[name]:g} outcomes {name}"


def _plain(value: float) -> float:
    """A figure as JSON holds it; numpy's numbers too."""
    number = float(value)
    assert math.isfinite(number), f"{value} is no figure"
    return int(number) if number.is_integer() else number


# ------------------------------------------------------------------------------------------------------- the page


def noting(tests: Path = ROOT / "tests") -> list[str]:
    """The test files that note something: those that import this module, themselves or through a helper.

    test_ledger.py is none of them: it tests the ledger, and would fail on the page that is about to be made anew.
    """
    modules = {".".join(p.relative_to(tests.parent).with_suffix("").parts): p for p in sorted(tests.rglob("*.py"))}
    package = tests.name
    reaches = {f"{package}.ledger"}
    imports = {name: _imports(path) & modules.keys() for name, path in modules.items()}
    while more := {name for name, names in imports.items() if names & reaches} - reaches:
        reaches |= more
    return [
        str(modules[name].relative_to(tests.parent))
        for name in sorted(reaches - {f"{package}.test_ledger"})
        if name in modules and modules[name].name.startswith("test_")
    ]


def _imports(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it; `from a import b` may name the module a.b, so both are among them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def merged(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """The notes of all `files`, by row. Raises ValueError for a line that is no note."""
    rows: dict[int, list[dict[str, Any]]] = {}
    for file in files:
        for i, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            line = json.loads(text)
            if line["row"] not in FAULTS:
                raise ValueError(f"{file.name}:{i}: there is no fault {line['row']}")
            rows.setdefault(line["row"], []).append(line)
    return {
        str(row): {
            "tried": sum(line["tried"] for line in lines),
            "held": sum(line["held"] for line in lines),
            "tests": sorted({line["test"] for line in lines}),
            "figures": _figures(lines),
        }
        for row, lines in sorted(rows.items())
    }


def _figures(lines: list[dict[str, Any]]) -> dict[str, Any]:
    values: dict[str, list[float]] = {}
    for line in lines:
        for name, value in line["figures"].items():
            values.setdefault(name, []).append(value)
    return {name: _spread(v) if _MEASURE.search(name) else sum(v) for name, v in sorted(values.items())}


def _spread(values: list[float]) -> dict[str, float]:
    return {"least": min(values), "mean": sum(values) / len(values), "most": max(values), "notes": len(values)}


def results_of(files: list[Path]) -> dict[str, Any]:
    """What docs/results/reliability.json holds: the rows, and where, when and by what command they were made."""
    lines = [json.loads(text) for file in files for text in file.read_text(encoding="utf-8").splitlines()]
    seeds = sorted({line["seed"] for line in lines})
    long = all(line["chaos"] for line in lines)
    return {
        "command": f"make chaos SEED={seeds[0]}" if long and len(seeds) == 1 else "python -m tests.ledger",
        "long": long,
        "seeds": seeds,
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        "revision": _revision(),
        "tests": len({line["test"] for line in lines}),
        "faults": merged(files),
    }


def _revision() -> str:
    """The commit that was tested, with a plus where the sources differ from it."""
    try:
        git = ["git", "-C", str(ROOT)]
        name = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*git, "status", "--porcelain", "src", "tests"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):  # no git, or an export of the tree
        return "unknown"
    return name.strip() + "+" * bool(changed.stdout.strip())


def main(arguments: list[str]) -> int:
    """NOTES, a file or a folder of them: make the page of it. Nothing: of the kept results. --tests: list noting files."""
    if arguments == ["--tests"]:
        print("\n".join(noting()))
        return 0
    if arguments:
        given = Path(arguments[0])
        files = sorted(given.glob("*.jsonl")) if given.is_dir() else [given]
        if not any(file.stat().st_size for file in files):
            print(f"{given} holds no notes; the page stays as it is.", file=sys.stderr)
            return 1
        results = results_of(files)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(with_sections(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    broken = [number for number, row in results["faults"].items() if row["held"] < row["tried"]]
    print(
        f"{PAGE.relative_to(ROOT)}: {len(results['faults'])} of {len(FAULTS)} faults tried, {len(broken)} broken {broken or ''}"
    )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
