"""What an arm leaves behind: specs that are checked, lines that are read as they grow, and where it stands."""

import json

import pytest

from edgewise.errors import StateMismatchError
from edgewise.lab.record import ArmSpec, Tail, append_line, claim, last_checkpoint, read_lines, rewind


def test_a_folder_belongs_to_one_spec(tmp_path):
    folder = tmp_path / "runs" / "hive-seed0"
    claim(folder, ArmSpec(method="hive", seed=3, parameters={"bypass": 0.1}))
    claim(folder, ArmSpec(method="hive", seed=3, parameters={"bypass": 0.1}))
    assert ArmSpec(**json.loads((folder / "spec.json").read_text())).seed == 3
    with pytest.raises(StateMismatchError) as error:
        claim(folder, ArmSpec(method="hive", seed=4))
    assert str(error.value) == (
        f"{folder} holds another run:\n  parameters: there {{'bypass': 0.1}}, now {{}}\n  seed: there 3, now 4\n"
        "Give another --out, or delete that folder."
    )


def test_a_spec_that_lacks_a_younger_field_has_its_default(tmp_path):
    claim(tmp_path, ArmSpec(method="hive"))
    file = tmp_path / "spec.json"
    old = json.loads(file.read_text())
    del old["max_tokens"]
    file.write_text(json.dumps(old))
    claim(tmp_path, ArmSpec(method="hive"))
    file.write_text(json.dumps(old | {"field_of_a_later_version": 1}))
    with pytest.raises(StateMismatchError, match="field_of_a_later_version: there 1, now None"):
        claim(tmp_path, ArmSpec(method="hive"))


def test_a_tail_gives_each_whole_line_once(tmp_path):
    tail = Tail(tmp_path / "steps.jsonl")
    assert tail.read() == []
    append_line(tail.path, {"step": 1})
    append_line(tail.path, {"step": 2})
    assert tail.read() == [{"step": 1}, {"step": 2}]
    assert tail.read() == []
    with tail.path.open("a") as file:
        file.write('{"step"')
    assert tail.read() == []
    with tail.path.open("a") as file:
        file.write(': 3}\n{"st')
    assert tail.read() == [{"step": 3}]
    assert read_lines(tail.path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_rewinding_forgets_what_came_after_the_checkpoint(tmp_path):
    for step in (1, 2, 3, 4):
        append_line(tmp_path / "steps.jsonl", {"step": step})
    for step in (0, 2, 4):
        append_line(tmp_path / "evals.jsonl", {"step": step})
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"step": 5')  # killed in mid-line
    assert rewind(tmp_path, 3) == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert (tmp_path / "steps.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    assert read_lines(tmp_path / "evals.jsonl") == [{"step": 0}, {"step": 2}]
    before = (tmp_path / "steps.jsonl").stat()
    assert rewind(tmp_path, 3)[-1] == {"step": 3}
    assert (tmp_path / "steps.jsonl").stat() == before  # nothing to forget: not written
    assert rewind(tmp_path / "new", 0) == []
    assert not (tmp_path / "new").exists()


def test_the_last_complete_checkpoint_counts(tmp_path):
    assert last_checkpoint(tmp_path) == (None, 0)
    for step, state in ((8, '{"global_step": 8}'), (20, '{"global_step": 20}'), (100, '{"global_'), (200, None)):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == (tmp_path / "checkpoints" / "checkpoint-20", 20)
