"""`edgewise.compose`: a method from TOML, YAML or a mapping; every error names file, key, rule, value and remedy."""

from __future__ import annotations

import importlib
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

import edgewise
from edgewise.compose import BELIEFS, SECTIONS, compose
from edgewise.errors import ConfigError
from edgewise.methods.user import Composed

TOML = """
candidates = "random"
spread = 8
gate = true

[belief]
kind = "beta"
decay = 0.5
[score]
kind = "weighted_information"
eta = 2
[chooser]
kind = "softmax"
temperature = 0.5
[allocator]
kind = "greedy"
objective = "expected_mixed"
"""
YAML = """
candidates: random
spread: 8
gate: true
belief: {kind: beta, decay: 0.5}
score: {kind: weighted_information, eta: 2}
chooser: {kind: softmax, temperature: 0.5}
allocator: {kind: greedy, objective: expected_mixed}
"""
SAME = {
    "candidates": "random",
    "spread": 8,
    "gate": True,
    "belief": {"kind": "beta", "decay": 0.5},
    "score": {"kind": "weighted_information", "eta": 2},
    "chooser": {"kind": "softmax", "temperature": 0.5},
    "allocator": {"kind": "greedy", "objective": "expected_mixed"},
}
LEAST = {"belief": "beta", "score": "expected_mixed"}


def written(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    return file


def test_toml_yaml_and_a_mapping_say_the_same(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    toml, yaml = written(tmp_path, "m.toml", TOML), written(tmp_path, "m.yaml", YAML)
    expected = compose(SAME).parameters()
    assert compose(toml).parameters() == compose(str(yaml)).parameters() == expected
    assert (expected["belief.decay"], expected["score.eta"], expected["allocator.objective"]) == (0.5, 2, "expected_mixed")
    assert (expected["candidates"], expected["gate"]) == ("random", "reward")


def test_the_example_in_the_module_works(tmp_path: Path) -> None:
    example = (compose.__globals__["__doc__"] or "").split("\n\n", 1)[1].split("`edgewise.compose(")[0]
    method = compose(written(tmp_path, "m.toml", example))
    assert isinstance(method, Composed)
    assert method.parameters()["allocator"] == "greedy"


def test_the_source_is_not_changed() -> None:
    before = json.dumps(SAME)
    compose(SAME)
    assert json.dumps(SAME) == before


def test_a_kind_alone_is_a_section_and_defaults_are_the_best_and_one_group_each() -> None:
    found = compose(LEAST).parameters()
    assert (found["belief"], found["score"], found["chooser"], found["allocator"]) == ("beta", "expected_mixed", "top_k", None)
    assert compose({**LEAST, "allocator": None}).parameters() == found


@pytest.mark.parametrize("belief", BELIEFS)
def test_its_own_parameters_build_a_method_again(belief: str) -> None:
    method = compose({**SAME, "belief": belief, "thompson": True})
    found = method.parameters()
    assert compose(json.loads(json.dumps(found))).parameters() == found
    assert compose(dict(reversed(found.items()))).parameters() == found


def test_every_kind_of_every_section_is_known_by_the_name_its_part_has() -> None:
    for section, kinds in SECTIONS.items():
        for kind in kinds:
            if (section, kind) != ("allocator", "greedy"):  # which cannot do without an objective
                assert compose({**LEAST, section: kind}).parameters()[section] == kind


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({**LEAST, "sprad": 8}, "compose: there is no key 'sprad'. Did you mean 'spread'? It may have: allocator, belief, "),
        ({**LEAST, "beleif.decay": 1}, "compose: there is no section 'beleif'. Did you mean 'belief'?"),
        ({"score": "variance"}, "compose: [belief] is missing. Give it a kind: beta, last, "),
        ({"belief": "beta"}, "compose: [score] is missing. Give it a kind: "),
        ({**LEAST, "score": {}}, "compose: [score] must say its kind, got []. Kinds: "),
        ({**LEAST, "belief.decay": 0.5, "belief": {"decay": 1}}, "compose: [belief] must say its kind"),
        ({**LEAST, "score": "expected_mix"}, "got 'expected_mix'. Did you mean 'expected_mixed'?"),
        ({**LEAST, "score": {"kind": 3}}, "compose: [score] kind must be one of 'prob_mixed', "),
        ({**LEAST, "score": 3}, "compose: [score] must be a section with a kind, or the kind as text, got 3."),
        (
            {**LEAST, "belief": {"kind": "beta", "deacy": 1}},
            "compose: [belief] deacy is no hyper-parameter. Did you mean 'decay'? It takes: decay, prior, prior_alpha, ",
        ),
        (
            {**LEAST, "score": {"kind": "variance", "eta": 1}},
            "[score] eta is no hyper-parameter. It takes: nothing but a kind.",
        ),
        (
            {**LEAST, "belief": {"kind": "beta", "decay": "half"}},
            "compose: [belief] decay must be a number, got 'half'. Leave it out for 1.0.",
        ),
        ({**LEAST, "belief": {"kind": "beta", "decay": True}}, "[belief] decay must be a number, got True."),
        ({**LEAST, "belief": {"kind": "beta", "decay": float("nan")}}, "[belief] decay must be a number, got nan."),
        (
            {**LEAST, "belief": {"kind": "beta", "reset_every": 1.5}},
            "[belief] reset_every must be a whole number or none, got 1.5. Leave it out for None.",
        ),
        (
            {**LEAST, "belief": {"kind": "beta", "prior": "flatt"}},
            "[belief] prior must be one of 'flat', 'signal', got 'flatt'. Did you mean 'flat'? Leave it out for 'flat'.",
        ),
        (
            {**LEAST, "belief": {"kind": "beta", "decay": 2}},
            "compose: [belief]: BetaBelief(decay=...) must be a number of at least 0 and at most 1, got 2.",
        ),
        ({**LEAST, "allocator": "greedy"}, "compose: [allocator] objective is missing, which 'greedy' cannot do without."),
        (
            {**LEAST, "allocator": {"kind": "greedy", "objective": "mixed"}},
            "compose: [allocator]: Greedy(objective=...) must be one of ",
        ),
        ({**LEAST, "thompson": "yes"}, "compose: thompson must be true or false, got 'yes'. Leave it out for False."),
        (
            {**LEAST, "gate": "rewards"},
            "one of 'reward', 'correct', 'off' or true or false, got 'rewards'. Did you mean 'reward'?",
        ),
        ({**LEAST, "spread": 0.5}, "compose: Composed(spread=...) must be a number of at least 1, got 0.5."),
        ({**LEAST, "batch_size": 3}, "compose: there is no key 'batch_size'."),
        ({**LEAST, 3: 4}, "compose: keys must be text, got 3."),
        (
            {"belief": "beta", "score": "near_target", "chooser": "proportional"},
            "compose: Composed(chooser=...) (with score 'near_target') failed",
        ),
    ],
)
def test_what_cannot_be_used_is_named(given: dict[Any, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        compose(given)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.toml", "[belief\n", "is no valid TOML: "),
        ("m.yaml", "belief: [\n", "is no valid YAML: "),
        ("m.yaml", "", "must hold keys and sections, got None. Begin with [belief]."),
        ("m.json", "{}", "the name must end in .toml, .yaml or .yml, got '.json'."),
        ("m.toml", '[belief]\nkind = "bta"\n[score]\nkind = "variance"', "[belief] kind must be one of "),
    ],
)
def test_errors_of_a_file_name_the_file(tmp_path: Path, name: str, text: str, message: str) -> None:
    if name.endswith("yaml"):
        pytest.importorskip("yaml")
    file = written(tmp_path, name, text)
    with pytest.raises(ConfigError, match=re.escape(f"{file}: {message}")):
        compose(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read: .*Give the path of a \.toml or \.yaml file"):
        edgewise.compose(tmp_path / "none.toml")


def test_without_pyyaml_yaml_is_refused_and_toml_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.import_module

    def without(name: str, *rest: Any) -> Any:
        if name == "yaml":
            raise ModuleNotFoundError("No module named 'yaml'", name="yaml")
        return found(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(
        ConfigError, match=r"m\.yaml: YAML needs pyyaml, which is not installed\. pip install pyyaml, or write TOML"
    ):
        compose(written(tmp_path, "m.yaml", YAML))
    assert compose(written(tmp_path, "m.toml", TOML)).parameters()["spread"] == 8


def test_yaml_that_would_build_objects_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    with pytest.raises(ConfigError, match="is no valid YAML"):
        compose(written(tmp_path, "m.yaml", "belief: !!python/object/apply:os.getcwd []\n"))


def test_a_file_is_a_method_wherever_a_name_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('spread = 4\n[belief]\nkind = "beta"\ndecay = 0.5\n[score]\nkind = "expected_mixed"\n', encoding="utf-8")
    pool = edgewise.PromptPool.from_ids(range(20))
    selector = edgewise.Selector(str(file), pool, batch_size=4, group_size=4)
    assert selector.method.parameters()["belief.decay"] == 0.5
    with pytest.raises(ConfigError, match="takes its parameters from its file"):
        edgewise.Selector(str(file), pool, batch_size=4, group_size=4, parameters={"spread": 8})
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        edgewise.Selector(str(tmp_path / "nowhere.toml"), pool, batch_size=4, group_size=4)
