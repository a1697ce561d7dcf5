"""The command line as people and machines meet it. Where it matters, in a real process."""

import json
import os
import signal
import subprocess
import sys
import types

import pytest

import edgewise.cli
from edgewise._version import __version__
from edgewise.cli import VERBS, main
from edgewise.methods import METHODS

HEAVY = ("torch", "trl", "transformers", "datasets", "pyarrow", "scipy", "pandas", "matplotlib")


def run(*words, code=0):
    """The verb in this process; returns nothing and checks the exit code."""
    found = None
    try:
        found = main(list(words))
    except SystemExit as leave:
        found = leave.code
    assert found == code


def fresh(code):
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


# ----------------------------------------------------------------------------------------------------------- wrong usage


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["simulat"], "Did you mean 'simulate'?"),
        (["qqq"], "argument VERB: invalid choice: 'qqq'"),
        (["simulate", "--sedes", "3"], "`edgewise simulate` does not know --sedes 3. Did you mean '--seeds'?"),
        (["doctor", "x", "--jsn"], "`edgewise doctor` does not know --jsn. Did you mean '--json'?"),
        (["doctor", "x", "--id_column=a"], "`edgewise doctor` does not know --id_column=a. Did you mean '--id-column'?"),
        (["methods", "hive", "greso"], "`edgewise methods` does not know greso."),
        (["simulate", "--pool", "wastful"], "Did you mean 'wasteful'?"),
        (["simulate", "--seeds", "many"], "argument --seeds: invalid int value: 'many'"),
        (["doctor"], "the following arguments are required: DATA"),
        (["--verson"], "`edgewise` does not know --verson. Did you mean '--version'?"),
    ],
)
def test_wrong_usage_is_exit_code_2_with_the_nearest_word(words, message, capsys):
    run(*words, code=2)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.startswith("edgewise: ")
    assert printed.err.rstrip().endswith("--help")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["methods", "hvie"], "There is no method 'hvie'. Did you mean 'hive'? Methods: hive, "),
        (["simulate", "--methods", "hvie"], "must be a known name, got 'hvie'. Did you mean 'hive'?"),
        (["simulate", "--methods", " , "], "--methods names no method. `edgewise methods` lists them."),
        (["simulate", "--steps", "0"], "simulate: steps must be at least 1, got 0."),
        (["simulate", "--prompts", "8"], "simulate: prompts must be at least 32, got 8."),
        (["simulate", "--entropy-difficulty", "2"], "SimulatedLearner(entropy_difficulty=...) must be in [-1, 1], got 2.0."),
    ],
)
def test_errors_of_edgewise_are_one_message_without_a_traceback(words, message, capsys):
    run(*words, code=2)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("edgewise: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


def test_no_verb_prints_the_help(capsys):
    run(code=2)
    printed = capsys.readouterr().out
    for name, verb in VERBS.items():
        assert f"{name} " in printed
        assert verb.summary.split(",")[0][:40] in printed


def test_help_and_version(capsys):
    run("--version")
    assert capsys.readouterr().out == f"edgewise {__version__}\n"
    run("doctor", "--help")
    assert "save_to_disk" in capsys.readouterr().out


# --------------------------------------------------------------------------------------------------- methods


def test_the_choosing_table_has_every_method(capsys):
    run("methods")
    printed = capsys.readouterr().out
    starts = [line.split(" ")[0] for line in printed.splitlines()]
    assert [name for name in METHODS if name in starts] == list(METHODS)
    assert max(map(len, printed.splitlines())) <= 140
    assert printed.endswith("next: edgewise methods hive\n")


@pytest.mark.parametrize("name", METHODS)
def test_one_method_prints_parameters_with_defaults_and_departures(name, capsys):
    run("methods", name)
    printed = capsys.readouterr().out
    entry = METHODS[name]
    assert printed.startswith(f"{name}: ")
    for parameter, value in entry.parameters.items():
        assert any(parameter in line.split() and repr(value) in line for line in printed.splitlines()), parameter
    run("methods", name, "--json")
    found = json.loads(capsys.readouterr().out)
    assert {key: facts["default"] for key, facts in found["parameters"].items()} == entry.parameters
    assert all(facts["meaning"] for facts in found["parameters"].values())
    assert found["differs_from_the_paper"].startswith("Differs from the paper in") or name == "uniform"


def test_what_a_preset_changes_is_marked(capsys):
    run("methods", "greso", "--json")
    parameters = json.loads(capsys.readouterr().out)["parameters"]
    assert {name for name, facts in parameters.items() if facts["own"]} >= {"stage2"}
    assert not parameters["p_easy"]["own"]
    run("methods", "greso")
    assert "* stage2 " in capsys.readouterr().out


def test_all_methods_as_json(capsys):
    run("methods", "--json")
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == list(METHODS)


# ------------------------------------------------------------------------------------------------ what is imported when


def test_importing_edgewise_and_its_command_line_loads_nothing_heavy():
    code = f"import sys, edgewise, edgewise.cli; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert fresh(code) == "[]\n"


@pytest.mark.parametrize("words", [["methods"], ["methods", "hive"], ["--help"]])
def test_light_verbs_load_nothing_heavy(words):
    code = (
        "import sys, contextlib, io\nfrom edgewise.cli import main\n"
        f"with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main({words!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert fresh(code) == "[]\n"


def test_simulate_and_doctor_run_without_the_packages_of_the_laboratory(tmp_path):
    """With core dependencies only: the import of any other package is refused."""
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    blocked = [name for name in HEAVY if name != "scipy"]
    code = (
        "import sys, importlib.abc\n"
        "class Refuse(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name.split('.')[0] in {blocked!r}: raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from edgewise.cli import main\n"
        f"print(main(['doctor', {str(path)!r}]), main(['simulate', '--steps', '2', '--seeds', '1', '--prompts', '200']))"
    )
    assert fresh(code).endswith("0 0\n")


@pytest.mark.parametrize("package", ["torch", "trl"])
def test_train_without_its_packages_says_what_to_install(package, monkeypatch, capsys):
    def missing(name):
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)

    monkeypatch.setattr(edgewise.cli.importlib, "import_module", missing)
    run("train", code=2)
    assert (
        capsys.readouterr().err
        == f"edgewise: `edgewise train` needs {package}, which is not installed. pip install 'edgewise[lab]'\n"
    )


def test_a_fault_of_our_own_is_not_dressed_up_as_a_missing_package(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'edgewise.lab.train'", name="edgewise.lab.train")

    monkeypatch.setattr(edgewise.cli.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError):
        main(["train"])


def test_the_exit_code_of_a_verb_is_handed_on(monkeypatch):
    verb = types.SimpleNamespace(
        add_arguments=lambda parser: parser.add_argument("--steps", type=int), run=lambda args: args.steps
    )
    monkeypatch.setattr(edgewise.cli.importlib, "import_module", lambda name: verb)
    assert main(["train", "--steps", "1"]) == 1


def test_degraded_warnings_are_one_clean_line(monkeypatch, capsys):
    import warnings

    from edgewise.errors import DegradedWarning

    def complain(args):
        warnings.warn("edgewise: stage 2 will be relaxed", DegradedWarning, stacklevel=1)
        return 0

    verb = types.SimpleNamespace(add_arguments=lambda parser: None, run=complain)
    monkeypatch.setattr(edgewise.cli.importlib, "import_module", lambda name: verb)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        run("train")
    assert capsys.readouterr().err == "edgewise: stage 2 will be relaxed\n"


# --------------------------------------------------------------------------------------------------- in a real process


def test_ctrl_c_is_one_line_and_exit_code_130():
    words = [sys.executable, "-m", "edgewise", "simulate", "--steps", "100000", "--seeds", "1"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "edgewise: interrupted\n")


def test_a_reader_that_closes_early_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "edgewise", "methods", "--json"], stdout=writing, stderr=subprocess.PIPE, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
