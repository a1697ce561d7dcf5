"""The table of names: every entry works and is documented; wrong names and keywords are named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgewise.catalogue import departures, update
from edgewise.errors import ConfigError
from edgewise.method import Method
from edgewise.methods import METHODS, make, methods_with

DOCS = Path(__file__).parents[1] / "docs" / "methods.md"


@pytest.mark.parametrize("name", METHODS)
def test_every_entry_builds_the_method_of_its_name(name: str) -> None:
    entry = METHODS[name]
    method = make(name)
    assert isinstance(method, Method)
    assert method.name == name
    assert entry.needs == method.needs
    assert entry.parameters == method.parameters()
    assert method.scope in ("group", "batch")


@pytest.mark.parametrize("name", METHODS)
def test_parameters_are_json_scalars_from_which_the_same_method_is_built(name: str) -> None:
    parameters = make(name).parameters()
    assert make(name, **json.loads(json.dumps(parameters))).parameters() == parameters


@pytest.mark.parametrize("name", METHODS)
def test_every_entry_says_all_that_a_reader_needs(name: str) -> None:
    entry = METHODS[name]
    words = (entry.summary, entry.signal, entry.keeps, entry.extra_rollouts, entry.cost, entry.when, entry.paper)
    assert all(word.strip() for word in words)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_and_hyper_parameter_is_in_the_manual(name: str) -> None:
    manual = DOCS.read_text()
    assert f"`{name}`" in manual
    for parameter in METHODS[name].parameters:
        assert f"`{parameter}`" in manual, parameter


def test_a_built_method_is_handed_back() -> None:
    method = make("greso")
    assert make(method) is method


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"method": "hvie"},
            "make(method=...) must be a known name, got 'hvie'. Did you mean 'hive'? Names: " + ", ".join(METHODS) + ".",
        ),
        ({"method": 3}, "make(method=...) must be a name or a Method object, got 3. Names: " + ", ".join(METHODS) + "."),
        (
            {"method": "greso", "pfloor": 0.1},
            "greso(pfloor=...) is no hyper-parameter. Did you mean 'p_floor'? It has: arm_at, ",
        ),
        ({"method": "hive", "p_floor": 2}, "Hive(p_floor=...) must be a number of at least 0 and at most 1, got 2."),
        (
            {"method": make("greso"), "p_floor": 0.1, "arm_at": 0},
            "make(Greso(...)) takes no parameters for a method that is built already, got arm_at, p_floor. "
            "Set them where it is built.",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(arguments: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        make(**arguments)


def test_a_state_field_is_no_hyper_parameter() -> None:
    with pytest.raises(ConfigError, match=r"hive\(group_size=...\) is no hyper-parameter"):
        make("hive", group_size=8)


def test_methods_with_a_signal_are_those_that_need_no_other() -> None:
    assert methods_with([])[:3] == ["greso", "dapo", "uniform"]
    assert all(not METHODS[name].needs for name in methods_with([]))
    assert set(methods_with(["prompt_entropy"])) - set(methods_with([])) == {"hive", "hive-eq"}
    assert "oracle" not in methods_with(["prompt_entropy", "embedding"])


def test_the_manual_is_what_the_code_says(tmp_path: Path) -> None:
    copy = tmp_path / "methods.md"
    copy.write_text(DOCS.read_text(encoding="utf-8"), encoding="utf-8")
    assert not update(copy), "run `edgewise methods --update docs/methods.md`"
    copy.write_text("no marks here", encoding="utf-8")
    with pytest.raises(ConfigError, match="must hold the lines"):
        update(copy)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_where_it_departs_from_its_paper(name: str) -> None:
    found = departures(METHODS[name].factory)
    assert found.startswith("Differs from the paper in"), f"{name}: its class or module needs that paragraph"
    assert len(found) > 30


def test_the_table_is_light_to_import() -> None:
    code = (
        "import sys, edgewise.methods as m; m.make('hive');"
        "print([n for n in ('torch', 'scipy', 'transformers', 'pandas') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
