"""`edgewise inspect` and `edgewise verify`: what they say of sound, damaged and hostile directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgewise import state
from edgewise.cli import main
from tests.test_selector import run_step, selector


def run(folder: Path, steps: int = 7) -> Path:
    s = selector(directory=folder)
    for k in range(steps):
        run_step(s, k)
    s.close()
    return folder


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(bytes(data))


def said(capsys: Any, *words: str) -> tuple[int, str]:
    code = main(list(words))
    return code, capsys.readouterr().out


def test_a_sound_directory(tmp_path: Path, capsys: Any) -> None:
    folder = run(tmp_path / "run")
    before = {file: file.read_bytes() for file in folder.iterdir()}
    code, text = said(capsys, "inspect", str(folder))
    assert code == 0
    assert "counting, 40 prompts, step 7" in text
    assert "nobody now; last was process" in text
    assert "7, of steps 1 to 7" in text
    code, text = said(capsys, "verify", str(folder))
    assert code == 0
    assert "2 of 2 snapshots by their SHA-256" in text
    assert "7 of 7 states reached" in text
    assert "1 snapshots once more" in text
    assert text.rstrip().splitlines()[-1].startswith("sound")
    assert {file: file.read_bytes() for file in folder.iterdir()} == before  # looking changes nothing


def test_every_damaged_file_is_named_and_what_is_lost(tmp_path: Path, capsys: Any) -> None:
    names = sorted(file.name for file in run(tmp_path / "x").iterdir() if not file.name.startswith("writer"))
    assert len(names) == 4
    for name in names:
        folder = run(tmp_path / name)
        flip(folder / name, (folder / name).stat().st_size // 2)
        code, text = said(capsys, "verify", str(folder), "--json")
        found = json.loads(text)
        assert code == 1
        assert any(name in problem for problem in found["problems"]), name
        assert found["step"] == (7 if not name.endswith("2.journal") else found["steps"][1])


def test_looking_at_a_run_that_goes_on_disturbs_nobody(tmp_path: Path, capsys: Any) -> None:
    s = selector(directory=tmp_path)
    for k in range(5):
        run_step(s, k)
        assert said(capsys, "verify", str(tmp_path))[0] == 0
    assert s.metrics["journal_degraded"] == 0
    assert "last heard of 0 s ago" in said(capsys, "inspect", str(tmp_path))[1]


def test_one_saved_state(tmp_path: Path, capsys: Any) -> None:
    s = selector()
    s.take(3)
    s.save(tmp_path / "state")
    code, text = said(capsys, "verify", str(tmp_path / "state"))
    assert code == 0
    assert "in_flight 3" in text
    flip(tmp_path / "state", -5)
    code, text = said(capsys, "verify", str(tmp_path / "state"))
    assert code == 1
    assert "is damaged" in text


def test_a_snapshot_that_disagrees_with_the_records_is_found(tmp_path: Path, capsys: Any) -> None:
    """Both are sound by themselves: only going both ways shows it."""
    folder = run(tmp_path / "run")
    newest = sorted(folder.glob("*.safetensors"))[-1]
    header, arrays = state.load(newest)
    arrays["method/prompts/visits"][0] += 1
    state.save(newest, header, arrays)
    code, text = said(capsys, "verify", str(folder))
    assert code == 1
    assert "lead to another state" in text


@pytest.mark.parametrize("what", ["nothing", "an empty folder", "a foreign file"])
def test_what_is_no_state_is_refused_in_a_line(tmp_path: Path, capsys: Any, what: str) -> None:
    path = tmp_path / "x"
    if what == "an empty folder":
        path.mkdir()
    if what == "a foreign file":
        path.write_text("hello")
    code = main(["inspect", str(path)])
    out = capsys.readouterr()
    assert code in (1, 2)
    assert "Traceback" not in out.err
    assert (out.out + out.err).count("\n") <= 5


def test_a_method_name_cannot_command_the_terminal(tmp_path: Path, capsys: Any) -> None:
    folder = run(tmp_path / "run")
    file = sorted(folder.glob("*.safetensors"))[-1]
    header, arrays = state.load(file)
    header["identity"]["method"] = "\x1b]0;owned\x07evil\u202e"
    state.save(tmp_path / "one", header, arrays)
    text = said(capsys, "inspect", str(tmp_path / "one"))[1]
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "evil" in text
