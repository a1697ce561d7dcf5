"""`edgewise train` from end to end, real arms on budgets of seconds: what it prints and writes, how it stops and resumes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgewise.cli import main
from edgewise.lab import train
from edgewise.lab.record import PARTS, read_lines
from tests.forks import Command, alive, arm_pid, last_step, wait_until

SIZES = [
    "--responses", "480", "--prompts", "120", "--held-out", "40", "--batch-size", "4", "--group-size", "4", "--updates", "2",
]  # fmt: skip
ARMS = ("hive", "dapo", "uniform", "oracle")


def command(folder: Path, *words: str) -> Command:
    return Command(["train", *SIZES, "--out", str(folder), *words], folder)


def curve(folder: Path) -> list[tuple]:
    """Everything of an arm's evaluations that is no time."""
    return [tuple(v for k, v in line.items() if k not in ("wall_s", "cpu_s")) for line in read_lines(folder / "evals.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One uninterrupted run of four arms."""
    folder = tmp_path_factory.mktemp("train") / "whole"
    run = command(folder, "--method", "hive", "--baseline", "dapo,uniform,oracle", "--jobs", "1", "--every", "5")
    assert run.wait() == 0, run.out + run.err
    return run


# -- what it prints and writes ------------------------------------------------------------------------------------------------


def test_it_prints_an_aligned_line_a_step_then_the_table_and_its_legend(whole):
    lines = whole.out.splitlines()
    steps = [line for line in lines if " | step " in line]
    assert {line.split()[0] for line in steps} == set(ARMS)
    assert all(
        re.fullmatch(
            r"\w+ +\| step +\d+ \| +\d+ groups x4 in \d rounds? +\| mixed +\d+% all-pass +\d+% all-fail +\d+% \| "
            r"+\d+ responses \| held-out 0\.\d{3} \| select +\d+\.\d ms verify +\d+\.\d ms",
            line,
        )
        for line in steps
    ), steps
    assert len({tuple(i for i, char in enumerate(line) if char == "|") for line in steps}) == 1
    numbers = [int(re.search(r"step +(\d+)", line).group(1)) for line in steps if line.startswith("uniform")]
    assert numbers == list(range(5, 5 * len(numbers) + 1, 5))
    done = [line.split()[0] for line in lines if "| done after" in line]
    assert done == list(ARMS)
    table = {line.split()[0]: line for line in lines if re.match(r"(hive|dapo|uniform|oracle) +\d+ +\d", line)}
    assert set(table) == set(ARMS)
    assert " 1.00x " in table["dapo"]
    assert max(map(len, lines[:2])) <= 120
    for word in ("steps ", "mixed groups ", "held-out ", "fewer ", "oracle ", "hive's premise "):
        assert any(line.startswith(word) for line in lines), word
    assert whole.err == ""
    assert "\r" not in whole.out
    assert "nan" not in whole.out


def test_it_writes_the_numbers_and_pictures_and_says_where(whole):
    for name in ("comparison.json", "accuracy.png", "waste.png", "report.html"):
        assert (whole.folder / name).stat().st_size > 1_000, name
        assert name in whole.out
    found = json.loads((whole.folder / "comparison.json").read_text())
    assert [row["method"] for row in found["summary"]] == list(ARMS)
    assert found["reference"] == "dapo"
    assert found["exact"] is True
    assert found["settings"]["responses"] == 480
    assert found["command"] == "edgewise train " + " ".join(SIZES)
    assert -1.0 <= found["premise"]["v_mixed_corr"] <= 1.0


@pytest.mark.parametrize("arm", ARMS)
def test_every_response_is_counted_once_and_every_second_has_a_name(whole, arm):
    steps, evals = (read_lines(whole.folder / f"{arm}-seed0" / name) for name in ("steps.jsonl", "evals.jsonl"))
    generated = 0
    for number, line in enumerate(steps, 1):
        generated += 4 * int(line["metrics"]["rolled_out"])
        assert (line["step"], line["responses"]) == (number, generated)
        parts = [line["spent"][name] for name in PARTS]
        assert sum(parts) == pytest.approx(line["spent"]["wall_s"])
        assert min(parts) >= 0
    by_step = {line["step"]: line for line in steps}
    assert [line["step"] for line in evals] == sorted({line["step"] for line in evals})
    assert (evals[0]["step"], evals[0]["responses"], evals[0]["wall_s"]) == (0, 0, 0.0)
    for line in evals[1:]:
        step = by_step[line["step"]]
        assert (line["responses"], line["held_out"]) == (step["responses"], step["held_out"])
        assert line["wall_s"] == step["spent"]["wall_s"]
    assert steps[-2]["responses"] < 480 <= steps[-1]["responses"]
    assert evals[-1]["step"] == steps[-1]["step"]


def test_all_arms_start_from_the_same_policy(whole):
    starts = {curve(whole.folder / f"{arm}-seed0")[0] for arm in ARMS}
    assert len(starts) == 1


def test_finished_arms_are_not_run_again_and_json_is_all_that_is_printed(whole, capsys, monkeypatch):
    monkeypatch.setattr("edgewise.lab.runner.launch", None)
    words = ["train", *SIZES, "--out", str(whole.folder)]
    assert main([*words, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads((whole.folder / "comparison.json").read_text())
    assert printed.err == ""
    assert main([*words, "--baseline", "uniform"]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 arms are finished already." in printed
    assert "to uniform's final" in printed
    assert "oracle" not in printed


# -- how it stops and goes on -------------------------------------------------------------------------------------------------


def test_interrupted_and_killed_in_every_way_it_ends_with_the_numbers_of_an_uninterrupted_run(whole, tmp_path):
    folder, words = tmp_path / "run", ("--method", "hive", "--baseline", "uniform", "--jobs", "2")
    file = folder / "uniform-seed0" / "steps.jsonl"

    run = command(folder, *words)
    run.wait_for_steps("uniform-seed0", 2)
    run.wait_for_steps("hive-seed0", 0)
    run.send(signal.SIGINT)
    assert run.wait() == 130
    assert "2 arms finish their step and save" in run.err
    resume = run.err.splitlines()[-1].strip()
    assert resume == f"edgewise train --baseline uniform {' '.join(SIZES)} --jobs 2 --out {folder}"
    saved = last_step(file)
    assert list((folder / "uniform-seed0" / "checkpoints").glob(f"checkpoint-{2 * saved}"))
    assert not (folder / "comparison.json").exists()

    run = command(folder, *words)  # an arm dies: the other goes on
    run.wait_for_steps("uniform-seed0", saved + 2)
    assert f"uniform after step {saved}" in run.out
    assert alive(arm_pid(folder / "uniform-seed0"))
    killed = last_step(file)
    os.kill(arm_pid(folder / "uniform-seed0"), signal.SIGKILL)
    assert run.wait() == 1
    assert "the arm uniform was killed by SIGKILL (out of memory?)" in run.err
    assert "not finished: uniform-seed0." in run.err
    assert "uniform did not finish, so there is no accuracy to reach" in run.out
    assert (folder / "hive-seed0" / "result.json").is_file()
    assert killed > saved

    run = command(folder, *words)  # the run itself is killed: its arms save and go
    run.wait_for_steps("uniform-seed0", saved + 4)
    assert f"uniform after step {saved}" in run.out
    pid = arm_pid(folder / "uniform-seed0")
    run.send(signal.SIGKILL)
    run.wait()
    again = command(folder, *words)  # at once
    assert again.wait() == 0, again.out + again.err
    assert not alive(pid)
    assert saved < int(re.search(r"uniform after step (\d+)", again.out).group(1)) < 30

    for arm in ("hive-seed0", "uniform-seed0"):
        assert curve(folder / arm) == curve(whole.folder / arm)
        steps = [[line["step"], line["responses"], line["held_out"]] for line in read_lines(folder / arm / "steps.jsonl")]
        expected = [[x["step"], x["responses"], x["held_out"]] for x in read_lines(whole.folder / arm / "steps.jsonl")]
        assert steps == expected
        assert not (folder / arm / "checkpoints").exists()


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_is_at_work(whole, tmp_path):
    folder = tmp_path / "run"
    first = command(folder, "--method", "uniform", "--baseline", "none")
    first.wait_for_steps("uniform-seed0", 0)
    second = Command(["train", *SIZES, "--method", "uniform", "--baseline", "none", "--out", str(folder)], folder)
    first_pid = first.process.pid
    assert second.wait() == 2
    assert second.err == (
        f"edgewise: another edgewise train (process {first_pid}) is at work in {folder}. Wait for it, stop it, or give another "
        "--out.\n"
    )
    first.send(signal.SIGTERM)  # as a batch system does
    assert first.wait() == 130


def test_an_arm_that_fails_is_named_with_its_log_and_the_others_are_kept(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    broken = folder / "greso-seed0" / "checkpoints" / "checkpoint-2"
    broken.mkdir(parents=True)
    (broken / "trainer_state.json").write_text('{"global_step": 2}')
    run = command(folder, "--baseline", "dapo,greso")
    assert run.wait() == 1
    assert "edgewise: the arm greso failed (exit code 1). Its log, " in run.err
    assert "Error" in run.err
    assert re.search(r"^hive +\d+ ", run.out, re.MULTILINE)
    assert "not finished: greso-seed0. This takes them up again and keeps the others:\n  edgewise train " in run.err
    assert (folder / "report.html").is_file()


def test_when_the_first_arm_fails_at_once_the_others_are_not_tried(tmp_path):
    """A policy that cannot be loaded."""
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "config.json").write_text("{}")
    run = command(tmp_path / "run", "--policy", str(policy), "--baseline", "uniform", "--jobs", "1", "--json")
    assert run.wait() == 1
    assert run.out == ""
    assert "edgewise: the arm hive failed (exit code 1). Its log, " in run.err
    assert "no arm has come as far as a first step, so no other is started" in run.err
    assert "not finished: hive-seed0, uniform-seed0." in run.err


@pytest.mark.slow
def test_arms_of_a_run_that_was_killed_save_and_go(tmp_path):
    """With real processes: the pipe that `launch` leaves to each arm."""
    words = ["--method", "uniform", "--baseline", "none", "--out", str(tmp_path)]
    run = subprocess.Popen([sys.executable, "-m", "edgewise", "train", *SIZES, *words], stdout=subprocess.DEVNULL)
    file = tmp_path / "uniform-seed0" / "steps.jsonl"
    wait_until(lambda: last_step(file) > 3, "the first steps")
    run.kill()
    run.wait()
    again = subprocess.run(
        [sys.executable, "-m", "edgewise", "train", *SIZES, *words], capture_output=True, text=True, check=False
    )
    assert again.returncode == 0
    assert re.search(r"resuming uniform after step \d+", again.stdout)


# -- what it refuses ----------------------------------------------------------------------------------------------------------


def test_another_spec_in_the_same_folder_is_refused_with_the_fields_that_differ(whole, capsys):
    words = ["train", *SIZES, "--out", str(whole.folder), "--learning-rate", "1e-3", "--method", "hive:stage2=off"]
    assert main([*words, "--baseline", "dapo"]) == 2
    assert capsys.readouterr().err == (
        f"edgewise: {whole.folder / 'dapo-seed0'} holds another run:\n  learning_rate: there 0.0001, now 0.001\n"
        "Give another --out, or delete that folder.\n"
    )


REFUSED = {
    "--method hvie": "got 'hvie'. Did you mean 'hive'?",
    "--method hive:stgae1=off": "hive(stgae1=...) is no hyper-parameter. Did you mean 'stage1'?",
    "--method hive:stage1": "parameters are written key=value, separated by commas; got 'stage1'.",
    "--baseline dapo,unifrom": "got 'unifrom'. Did you mean 'uniform'?",
    "--baseline dapo --reference uniform": "--reference must be one of the arms hive, dapo, got 'uniform'.",
    "--pool wastefull": "Did you mean 'wasteful'?",
    "--prompts 3": "the pool must hold at least one batch, got 3 prompts for batch_size 32.",
    "--prompts 300000": "would need more than the 100 problems there are of kind mul11. Ask for at most 5,000 prompts in all.",
    "--prompts 0": "--prompts must be at least 1, got 0.",
    "--group-size 1": "--group-size must be at least 2",
    "--updates 3": "--updates must divide the 256 rollouts of a training batch",
    "--seeds 0": "--seeds must be at least 1",
    "--policy smolm2": "(with a config.json), got 'smolm2'. Did you mean 'smollm2'?",
    "--policy smollm2": "oracle needs exact pass rates, which only --task arithmetic with a character policy has. Leave it out",
    "--max-tokens 9": "--max-tokens is for --task other than arithmetic",
    "--task gsm_symbolc --baseline none": "Did you mean 'gsm_symbolic'?",
    "--respones 5": "Did you mean '--responses'?",
    "--out /dev/null/x": "--out /dev/null/x: cannot be written",
}


def test_what_cannot_work_is_refused_before_torch_is_imported():
    script = """if True:
        import json, sys, time
        from edgewise.cli import main
        for words in json.loads(sys.argv[1]):
            begun = time.process_time()
            try:
                code = main(["train", *words.split()])
            except SystemExit as stop:
                code = stop.code
            print(json.dumps([words, code, time.process_time() - begun, "torch" in sys.modules]))
            print("--", file=sys.stderr)
    """
    out = subprocess.run([sys.executable, "-c", script, json.dumps(list(REFUSED))], capture_output=True, text=True, check=True)
    said = re.split(r"^--$", out.stderr, flags=re.MULTILINE)[:-1]
    for line, text in zip(out.stdout.splitlines(), said, strict=True):
        words, code, seconds, torch = json.loads(line)
        assert code == 2, (words, text)
        assert REFUSED[words] in text, (words, text)
        assert not torch, words
        assert seconds < 2, words
    assert len(out.stdout.splitlines()) == len(REFUSED)


# -- small parts --------------------------------------------------------------------------------------------------------------


def test_methods_are_parsed_with_their_parameters():
    assert train._split_methods("dapo,hive:stage2=off,bypass=0.1, uniform") == ["dapo", "hive:stage2=off,bypass=0.1", "uniform"]
    assert train._parse("hive:stage2=off,bypass=0.1,stage1=False") == (
        "hive",
        {"stage2": "off", "bypass": 0.1, "stage1": False},
    )
    assert train._parse("oracle") == ("oracle", {"gate": "off"})


def test_a_method_whose_signal_the_laboratory_lacks_is_refused_before_anything_starts(tmp_path, capsys):
    assert main(["train", "--method", "bots", "--baseline", "none", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "bots needs the signal anchor_rates, which the laboratory does not have" in said
    assert not (tmp_path / "run").exists()
