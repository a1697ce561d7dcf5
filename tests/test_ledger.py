"""The ledger counts what was noted and nothing else, and docs/reliability.md shows what the kept results hold."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from tests import ledger
from tests.faults import FAULTS
from tests.reliability_page import NOT_TRIED, with_sections

EMPTY = """# Page
<!-- summary: made by `python -m tests.ledger` -->
<!-- end of summary -->

By hand.

<!-- matrix: made by `python -m tests.ledger` -->
<!-- end of matrix -->
The end.
"""


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where notes of this test go, also inside `make chaos`."""
    monkeypatch.setenv("EDGEWISE_LEDGER", str(tmp_path / "notes.jsonl"))
    monkeypatch.setenv("EDGEWISE_SEED", "7")
    monkeypatch.delenv("EDGEWISE_CHAOS", raising=False)
    return tmp_path / "notes.jsonl"


def row_of(page: str, number: int) -> str:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {number} |")]
    return line


def test_the_matrix_has_64_faults_each_with_a_part_and_a_promise() -> None:
    assert list(FAULTS) == list(range(1, 65))
    for number, (part, fault, promise) in FAULTS.items():
        assert part.strip(), number
        assert fault.strip(), number
        assert promise.endswith("."), number
    assert len({fault.part for fault in FAULTS.values()}) == 5


def test_the_page_is_what_the_kept_results_make() -> None:
    """After a change of words: `python -m tests.ledger`. After a change of tests: `make chaos`."""
    page = ledger.PAGE.read_text(encoding="utf-8")
    results = json.loads(ledger.RESULTS.read_text(encoding="utf-8"))
    assert with_sections(page, results) == page, "docs/reliability.md is stale: run `python -m tests.ledger`"


def test_the_kept_results_hold_no_broken_promise() -> None:
    results = json.loads(ledger.RESULTS.read_text(encoding="utf-8"))
    assert results["faults"].keys() <= {str(number) for number in FAULTS}
    for number, row in results["faults"].items():
        assert row["held"] == row["tried"] > 0, number
        assert row["tests"], number
        for test in row["tests"]:
            file, *_ = test.split("::")
            assert (ledger.ROOT / file).is_file(), f"fault {number} was noted by {test}, which is gone: run `make chaos`"


def test_the_messages_that_the_page_explains_are_those_of_the_code() -> None:
    """Of each message in the table for the night the words between the gaps stand in one literal of the sources."""
    literals = {
        node.value
        for file in (ledger.ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    _, _, rest = ledger.PAGE.read_text(encoding="utf-8").partition("| what you read |")
    rows = [line.split("|")[1] for line in rest.split("\n\n")[0].splitlines()[2:]]
    assert len(rows) > 10
    for message in [quoted for row in rows for quoted in re.findall("`([^`]+)`", row)]:
        for words in message.split("…"):
            assert any(words.strip(" ,:") in literal for literal in literals), f"no message says {words!r}"


def test_a_promise_that_did_not_hold_fails_the_test_and_stays_visible(notes: Path) -> None:
    with pytest.raises(AssertionError, match=r"fault 4, a flipped bit \(seed 7\): the promise held in 9 of 10 cases"):
        ledger.note(4, tried=10, held=9, flips=10)
    results = ledger.results_of([notes])
    page = with_sections(EMPTY, results)
    assert "**broken: 9 of 10**" in row_of(page, 4)
    assert "**9 of 10**" in page.split("By hand.")[0]
    assert "1 broken" in page


def test_a_lost_outcome_fails_the_test_whatever_held(notes: Path) -> None:
    with pytest.raises(AssertionError, match="2 outcomes lost"):
        ledger.note(1, tried=3, held=3, lost=2, doubled=0)
    with pytest.raises(AssertionError, match="1 outcomes doubled"):
        ledger.note(1, tried=3, held=3, lost=0, doubled=1)


@pytest.mark.parametrize(("row", "tried", "held"), [(0, 1, 1), (65, 1, 1), (1, 0, 0), (1, 1, 2), (1, 1, -1)])
def test_what_cannot_be_is_refused(notes: Path, row: int, tried: int, held: int) -> None:
    with pytest.raises(AssertionError):
        ledger.note(row, tried=tried, held=held)
    assert not notes.exists()


def test_a_figure_that_is_no_number_is_refused(notes: Path) -> None:
    with pytest.raises(AssertionError, match="no figure"):
        ledger.note(1, tried=1, held=1, commit_ms=float("nan"))


def test_notes_of_a_fault_add_up_and_measures_keep_their_range(notes: Path) -> None:
    ledger.note(1, tried=200, held=200, kills=200, outcomes=4_000, lost=0, doubled=0)
    ledger.note(20, tried=50, held=50, kills=50, outcomes=1_000, lost=0, doubled=0)
    ledger.note(1, tried=3, held=3, retries=2)
    for milliseconds in (1.0, 2.0, 6.0):
        ledger.note(64, tried=1, held=1, commit_ms=milliseconds, journal_bytes_per_step=9_000)
    rows = ledger.merged([notes])
    assert (rows["1"]["tried"], rows["1"]["held"]) == (203, 203)
    assert rows["1"]["figures"] == {"doubled": 0, "kills": 200, "lost": 0, "outcomes": 4_000, "retries": 2}
    assert rows["64"]["figures"]["commit_ms"] == {"least": 1, "mean": 3, "most": 6, "notes": 3}
    assert rows["1"]["tests"] == [
        "tests/test_ledger.py::test_notes_of_a_fault_add_up_and_measures_keep_their_range"  # this one, without its phase
    ]
    top, _, matrix = with_sections(EMPTY, ledger.results_of([notes])).partition("By hand.")
    assert "**250 of 250**" in top
    assert top.count("**0** of 5,000 looked for") == 2
    assert "3 ms (1 to 6)" in top
    assert "9,000 bytes" in top
    assert "**3 of 64**" in top
    assert "the short cases" in top
    assert "203 of 203; retries 2 | [test_ledger.py](../tests/test_ledger.py) |" in row_of(matrix, 1)


def test_what_nobody_noted_is_not_tried(notes: Path) -> None:
    ledger.note(23, tried=5, held=5)
    page = with_sections(EMPTY, ledger.results_of([notes]))
    untried = [number for number in FAULTS if number != 23]
    assert all(row_of(page, number).endswith(f"| {NOT_TRIED} | |") for number in untried)
    assert page.count(NOT_TRIED) == len(untried) + 8  # and the eight first lines of the summary
    nothing = with_sections(EMPTY, {"faults": {}})
    assert nothing.count(NOT_TRIED) == 64 + 8
    assert "**0 of 64**" in nothing


def test_what_stands_between_the_sections_stays(notes: Path) -> None:
    ledger.note(23, tried=5, held=5)
    results = ledger.results_of([notes])
    page = with_sections(EMPTY, results)
    assert "\n\nBy hand.\n\n" in page
    assert page.endswith("\nThe end.\n")
    assert with_sections(page, results) == page
    with pytest.raises(ValueError, match="once"):
        with_sections(page + EMPTY, results)
    with pytest.raises(ValueError, match="once"):
        with_sections("no marks", results)


def test_a_note_of_an_unknown_fault_makes_no_page(notes: Path) -> None:
    ledger.note(1, tried=1, held=1)
    notes.write_text(notes.read_text() + notes.read_text().replace('"row": 1', '"row": 99'))
    with pytest.raises(ValueError, match="2: there is no fault 99"):
        ledger.results_of([notes])


def test_the_command_writes_both_files_and_says_by_its_status_what_broke(
    notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ledger, "ROOT", tmp_path)
    monkeypatch.setattr(ledger, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(ledger, "RESULTS", tmp_path / "results.json")
    ledger.PAGE.write_text(EMPTY)
    notes.write_text("")
    assert ledger.main([str(notes)]) == 1
    assert "holds no notes" in capsys.readouterr().err
    assert ledger.PAGE.read_text() == EMPTY
    ledger.note(1, tried=1, held=1)
    assert ledger.main([str(notes)]) == 0
    written = ledger.PAGE.read_text()
    assert "1 of 1" in row_of(written, 1)
    assert json.loads(ledger.RESULTS.read_text())["revision"] == "unknown"  # tmp_path is no repository
    ledger.PAGE.write_text(EMPTY)
    assert ledger.main([]) == 0
    assert ledger.PAGE.read_text() == written
    with pytest.raises(AssertionError):
        ledger.note(2, tried=2, held=1)
    assert ledger.main([str(tmp_path)]) == 1  # a folder: all *.jsonl in it
    assert "**broken: 1 of 2**" in ledger.PAGE.read_text()


def test_every_file_that_notes_is_found_through_helpers_too(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    (tests / "hosts").mkdir(parents=True)
    for name, text in {
        "ledger.py": "import os",
        "killing.py": "from tests.ledger import note",
        "test_ledger.py": "from tests import ledger",
        "test_direct.py": "from tests import fakes, ledger",
        "test_helped.py": "def f():\n    from tests.killing import kill",
        "hosts/test_deep.py": "import tests.killing",
        "test_other.py": "from tests import fakes\nimport os",
        "fakes.py": "x = 1",
    }.items():
        (tests / name).write_text(text)
    assert ledger.noting(tests) == ["tests/hosts/test_deep.py", "tests/test_direct.py", "tests/test_helped.py"]


def test_cases_and_the_seed_follow_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGEWISE_CHAOS", raising=False)
    monkeypatch.delenv("EDGEWISE_SEED", raising=False)
    assert (ledger.cases(20, chaos=200), ledger.seed()) == (20, 0)
    monkeypatch.setenv("EDGEWISE_CHAOS", "1")
    monkeypatch.setenv("EDGEWISE_SEED", "12")
    assert (ledger.cases(20, chaos=200), ledger.seed()) == (200, 12)
