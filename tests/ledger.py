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

import json
import os
import re
from pathlib import Path

from tests.faults import FAULTS

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
        test = os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0]
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
    return int(number) if number.is_integer() else number
