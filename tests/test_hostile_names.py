"""Names and texts of others never become paths, never break a page or a terminal; loggers that fail never stop a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from edgewise import Outcome, PromptPool, Selector, cli
from edgewise.errors import DegradedWarning, EdgewiseError, PoolError
from edgewise.lab import record
from edgewise.lab.train import _folder
from tests import ledger

IDS = (
    "../../outside", "../" * 40 + "tmp/outside", "/etc/edgewise-was-here", "//server/share", "\\\\server\\share", "C:\\x",
    "con", "nul", "aux.json", ".", "..", "...", "~", "~root", "$HOME", "`touch x`", "$(touch x)", ";touch x", "a" * 300,
    "b" * 100_000, "a/b/c", "a\\b", "-rf", "--help", "*", "?", "a\nb", "a\r\nb", "a\x00b", "a\tb", " ", "", "\u2028",
    "\u202egpj", "e\u0301", "\u00e9", "\U0001f600", "selector-000001-000000001.safetensors", "writer-000001.json", ".lock",
    "%s%n", "{0}", "<script>alert(1)</script>", "' OR 1=1 --", "null", "NaN", "0", "00",
)  # fmt: skip


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of every file in a folder: equal before and after where nobody wrote."""
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in sorted(folder.rglob("*")) if not p.is_dir()}


def run_for(selector: Selector, steps: int) -> list[str]:
    """Train for some steps; the ids that were asked for."""
    asked = []
    for version in range(steps):
        with selector.step(policy_version=selector.step_number) as step:
            for tickets in step.requests():
                asked += [t.prompt_id for t in tickets]
                step.report([Outcome(ticket=t, rewards=[float(i % 2) for i in range(t.rollouts)]) for t in tickets])
        del version
    return asked


def test_ids_never_become_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 56: under a watched folder, only the selector's directory changes, and what is there has names of ours."""
    home = tmp_path / "home"
    (home / "run" / "state").mkdir(parents=True)
    (home / "kept.txt").write_text("kept")
    monkeypatch.chdir(home / "run")
    rows = [{"id": prompt_id, "prompt": f"{number}: {prompt_id}"} for number, prompt_id in enumerate(IDS)]
    before = everything(tmp_path)
    asked: list[str] = []
    for _ in range(2):  # and once more, resumed from what is there
        selector = Selector("hive", rows, batch_size=8, group_size=2, parameters={"stage2": "off"}, directory="state")
        asked += run_for(selector, 6)
        selector.save(Path("state") / "own.safetensors")
        selector.close()
    assert set(asked) <= set(IDS)
    assert len(set(asked)) > 30
    changed = {name for name, value in everything(tmp_path).items() if before.get(name) != value}
    state = home / "run" / "state"
    assert changed
    assert all(Path(name).parent == state for name in changed), changed
    ours = ("selector-", "writer-", "own.")
    assert all(Path(name).name.startswith(ours) and len(Path(name).name) < 60 for name in changed), changed
    assert not Path("/etc/edgewise-was-here").exists()
    ledger.note(56, tried=len(IDS), held=len(IDS))


def test_ids_come_back_as_they_were(tmp_path: Path) -> None:
    """Fault 55: code point for code point, through a saved state."""
    selector = Selector("uniform", PromptPool.from_ids(IDS), batch_size=len(IDS), group_size=2, directory=tmp_path)
    tickets = selector.take(len(IDS))
    selector.commit()
    selector.close()
    again = Selector("uniform", PromptPool.from_ids(IDS), batch_size=len(IDS), group_size=2, directory=tmp_path)
    assert [t.prompt_id for t in again.in_flight] == [t.prompt_id for t in tickets]
    assert sorted(t.prompt_id for t in tickets) == sorted(IDS)
    again.close()
    ledger.note(55, tried=len(IDS), held=len(IDS))


WRONG = ("\ud800", "a\udfffb", 10**5_000, 3.5, None, b"x", ["x"], True, float("nan"))


@pytest.mark.parametrize("wrong", WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_ids_that_are_none_are_refused(wrong: Any) -> None:
    with pytest.raises(PoolError) as refused:
        PromptPool.from_ids(["a", wrong])
    assert len(str(refused.value)) < 500
    ledger.note(55, tried=1, held=1)


@pytest.mark.parametrize("name", [*IDS, "hive:stage2=off", "a" * 5_000], ids=lambda name: ascii(name)[:20])
def test_an_arm_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = _folder(out, record.ArmSpec(method="hive", label=name, seed=3))
    assert folder.parent == out
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in out.iterdir()] == [folder.name]
    assert len(folder.name) < 150
    ledger.note(56, tried=1, held=1)


@pytest.mark.parametrize("file", ["spec.json", "steps.jsonl", "log.txt", "checkpoints", "result.json"])
@pytest.mark.parametrize("there", [True, False], ids=["to something", "to nothing"])
def test_links_out_of_a_run_are_not_written_through(file: str, there: bool, tmp_path: Path) -> None:
    """Fault 59."""
    outside = tmp_path / "outside"
    outside.mkdir()
    target = outside / "precious"
    if there:
        target.write_text("precious")
    arm = tmp_path / "out" / "hive-seed0"
    arm.mkdir(parents=True)
    (arm / file).symlink_to(target)
    with pytest.raises(EdgewiseError, match="symbolic link"):
        record.claim(arm, record.ArmSpec(method="hive"))
    with pytest.raises(OSError, match="symbolic link|file exists" if file != "checkpoints" else "symbolic link"):
        record.append_line(arm / file, {"step": 1})
    assert [p.name for p in outside.iterdir()] == (["precious"] if there else [])
    assert not there or target.read_text() == "precious"
    ledger.note(59, tried=1, held=1)


@pytest.mark.parametrize(
    "what", ["selector-000001-000000001.journal", "selector-000001-000000000.safetensors", "writer-000001.json"]
)
def test_links_out_of_a_selectors_directory_are_not_written_through(what: str, tmp_path: Path) -> None:
    """Fault 59: refused, or passed over; what the link points to stays as it is."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious" * 100)
    state = tmp_path / "state"
    state.mkdir()
    (state / what).symlink_to(precious)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        try:
            selector = Selector("uniform", PromptPool.from_ids(range(20)), batch_size=2, group_size=2, directory=state)
        except EdgewiseError:
            pass
        else:
            run_for(selector, 4)
            selector.close()
    assert precious.read_bytes() == b"precious" * 100
    ledger.note(59, tried=1, held=1)


# -- terminals and loggers -----------------------------------------------------------------------------------------------

HOSTILE_COLUMN = "\x1b[2J\x1b]0;title\x07\u202eevil\ud800\nproblem: none"


def test_a_data_set_moves_no_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of columns, ids and roles are shown, not obeyed."""
    rows = [
        {"id": f"\x1b[31m{i}", "prompt": [{"role": "user\x1b[0m\u202e", "content": "x" * i}], HOSTILE_COLUMN: 1}
        for i in range(4)
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cli.main(["doctor", str(tmp_path / "x.jsonl")])
    said = capsys.readouterr().out
    assert "evil" in said
    assert not [c for c in said if not c.isprintable() and c != "\n"]
    cli.main(["doctor", "--json", str(tmp_path / "x.jsonl")])
    assert HOSTILE_COLUMN in json.loads(capsys.readouterr().out)["columns"]


CLOSED = {
    # how the output ends -> what the shell does with it
    "a reader that has seen enough": "{command} | head -c 10 >/dev/null",
    "a full disk": "{command} >/dev/full",
    "no output": "{command} >&-",
    "no output and no errors": "{command} >&- 2>&-",
    "an alphabet of 128 letters": "PYTHONIOENCODING=ascii {command} >/dev/null",
}


@pytest.mark.parametrize(
    ("how", "verb"), [*((how, "methods") for how in CLOSED), ("a full disk", "simulate --seeds 1 --steps 2 --methods uniform")]
)
def test_an_output_that_fails_is_one_line_at_most(how: str, verb: str, tmp_path: Path) -> None:
    """Fault 63, of the command line."""
    command = f"{sys.executable} -m edgewise {verb}"
    shell = CLOSED[how].format(command=command)
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1
    if how == "a full disk":
        assert done.returncode == 2
        assert "No space left on device" in done.stderr
    ledger.note(63, tried=1, held=1)


class Rejecting:
    """A logger of the user's that fails in its own way each time."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1
        errors = (
            ValueError("key rejected"),
            BrokenPipeError(),
            OSError(28, "No space left on device"),
            KeyError("x"),
            RuntimeError(),
        )
        raise errors[self.calls % len(errors)]


@pytest.mark.parametrize("method", ["uniform", "greso"])
def test_a_logger_that_fails_changes_nothing(method: str, tmp_path: Path) -> None:
    """Fault 63: warned of once, counted, and the run goes on as without it."""

    def made(folder: Path) -> Selector:
        return Selector(method, PromptPool.from_ids(range(40)), batch_size=4, group_size=2, directory=folder)

    quiet, logged = made(tmp_path / "a"), made(tmp_path / "b")
    logger = Rejecting()
    logged.watch(logger)
    with pytest.warns(DegradedWarning) as said:
        asked = run_for(logged, 6)
    assert asked == run_for(quiet, 6)
    assert logger.calls >= 6
    assert logged.metrics["degraded_total"] >= 6
    assert len(said) <= 2
    quiet.close(), logged.close()
    ledger.note(63, tried=logger.calls, held=logger.calls)


@pytest.mark.parametrize("ends", ["2>&-", "2>/dev/full"])
def test_a_stream_of_warnings_that_fails_does_not_stop_a_run(ends: str) -> None:
    """Fault 63: where warnings go may be closed or full."""
    code = (
        "from edgewise import Outcome, Selector, PromptPool\n"
        "s = Selector('uniform', PromptPool.from_ids(range(40)), batch_size=4, group_size=2)\n"
        "s.watch(lambda groups, verdicts: 1 / 0)\n"
        "for version in range(3):\n"
        "    with s.step(policy_version=version) as step:\n"
        "        for tickets in step.requests():\n"
        "            step.report([Outcome(ticket=t, rewards=[0.0, 1.0]) for t in tickets])\n"
        "print(s.step_number, s.metrics['degraded_total'])"
    )
    command = ["bash", "-c", f'"$0" -c "$1" {ends}', sys.executable, code]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert said == "3 3.0\n"
    ledger.note(63, tried=3, held=3)


def test_no_hostile_environment_changes_what_is_chosen(tmp_path: Path) -> None:
    """Nothing of edgewise's own is read from the environment; what it hands on to processes is set by itself."""
    code = (
        "from edgewise import Selector, PromptPool\n"
        "s = Selector('uniform', PromptPool.from_ids(range(50)), batch_size=5, group_size=2, seed=3)\n"
        "print([t.row for t in s.take(5)])"
    )
    hostile = {
        "EDGEWISE": "\x7f" * 1_000,
        "PYTHONHASHSEED": "17",
        "LANG": "xx",
        "LC_ALL": "C",
        "TZ": "Nowhere/9",
        "HOME": "/nowhere",
    }
    said = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **more}, capture_output=True, text=True, check=True
        ).stdout
        for more in ({}, hostile)
    ]
    assert said[0] == said[1]
