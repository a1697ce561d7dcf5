"""Wrong arguments of every public call and of the command line: refused at once, by name, with the rule (fault 60)."""

from __future__ import annotations

import argparse
import importlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise import PromptPool, Selector, cli, compose, make
from edgewise.errors import ConfigError, EdgewiseError
from edgewise.methods import METHODS
from tests import ledger


class Odd:
    """Cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


VALUES: dict[str, Any] = {
    "None": None, "odd": Odd(), "-1": -1, "0": 0, "nan": math.nan, "inf": math.inf, "-inf": -math.inf, "1.5": 1.5, "text": "x",
    "no text": "", "NUL": "a\0b", "half a surrogate": "\ud800", "list": [], "mapping": {}, "unknown name": {"nope": 1},
    "number as a name": {2: 1}, "bytes": b"x", "5,001 digits": 10**5_000, "-5,001 digits": -(10**5_000), "2^63": 2**63,
    "2^31": 2**31, "True": True, "set": {1}, "numpy -3": np.int64(-3), "numpy nan": np.float64("nan"), "array": np.zeros(3),
    "class": int, "function": len, "a million letters": "y" * 1_000_000,
}  # fmt: skip
"""Tried for every argument. Most are wrong for it, some are not."""

ALWAYS_WRONG = ("odd", "nan", "inf", "-inf", "5,001 digits", "-5,001 digits", "array", "class", "function", "numpy nan")
"""Wrong for every argument of a Selector, and for every hyper-parameter."""


def tried(call: Callable[..., Any], name: str) -> tuple[int, list[str], dict[str, str]]:
    """How many values were tried for an argument, what went wrong, and the messages of those that were refused."""
    wrong, said = [], {}
    for label, value in VALUES.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = call(**{name: value})
            if isinstance(made, Selector):
                made.close()
        except EdgewiseError as error:
            said[label] = str(error)
            if len(str(error)) > 1_500 or not str(error).isprintable():
                wrong.append(f"{name} = {label}: {len(str(error))} characters: {str(error)[:200]!r}")
        except BaseException as error:
            wrong.append(f"{name} = {label}: {type(error).__name__}: {str(error)[:200]}")
    return len(VALUES), wrong, said


POOL = PromptPool.from_ids(range(30))
ROWS = [{"prompt": f"{i}", "id": i} for i in range(5)]


def selector(**given: Any) -> Selector:
    return Selector(**{"method": "uniform", "pool": POOL, "batch_size": 4, "group_size": 2, **given})


@pytest.mark.parametrize("name", inspect.signature(Selector).parameters)
def test_arguments_of_a_selector(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # some of the values are paths
    n, wrong, said = tried(selector, name)
    wrong += [f"{name} = {label} was accepted" for label in ALWAYS_WRONG if label not in said]
    named = {"pool": "", "parameters": "parameter"}.get(name, name)  # a pool is told of by its rows
    wrong += [f"{name} = {label}: {text[:200]}" for label, text in said.items() if named not in text]
    assert not wrong, "\n".join(wrong)
    ledger.note(60, tried=n, held=n)


CALLS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "PromptPool": (lambda **k: PromptPool(**{"ids": ["a", "b"], **k}), ["ids", "fingerprints"]),
    "from_ids": (PromptPool.from_ids, ["ids"]),
    "from_dataset": (
        lambda **k: PromptPool.from_dataset(**{"dataset": ROWS, **k}),
        list(inspect.signature(PromptPool.from_dataset).parameters),
    ),
    "compose": (compose, ["source"]),
    "compose a mapping": (
        lambda **k: compose({"belief": "beta", "score": "expected_mixed", **k}),
        ["belief", "score", "chooser", "allocator", "spread", "gate", "candidates", "max_rounds", "correct_at", "nope"],
    ),
    "compose a section": (
        lambda **k: compose({"belief": {"kind": "beta", **k}, "score": "expected_mixed"}), ["kind", "decay", "nope"]
    ),
    "make": (make, ["method"]),
    "take": (lambda **k: selector().take(**{"n": 2, **k}), ["n", "policy_version", "call"]),
    "report": (lambda **k: selector().report(**{"reported": [], **k}), ["call"]),
    "step": (lambda **k: selector().step(**k), ["policy_version"]),
}  # fmt: skip


@pytest.mark.parametrize(("call", "name"), [(call, name) for call, (_, names) in CALLS.items() for name in names])
def test_arguments_of_other_calls(call: str, name: str) -> None:
    n, wrong, said = tried(CALLS[call][0], name)
    assert not wrong, "\n".join(wrong)
    assert len(said) >= 8
    ledger.note(60, tried=n, held=n)


CHOSEN = ("hive", "depo", "dps")
"""In `make test`; with EDGEWISE_CHAOS=1 every method."""


@pytest.mark.parametrize("method", list(METHODS)[: ledger.cases(0, chaos=len(METHODS))] or CHOSEN)
def test_hyper_parameters(method: str) -> None:
    tries = 0
    problems = []
    for name in inspect.signature(METHODS[method].factory).parameters:

        def call(name: str = name, **given: Any) -> Any:
            return selector(method=method, parameters={name: given[name]}, total_steps=10)

        n, wrong, said = tried(call, name)
        wrong += [f"{name} = {label} was accepted" for label in ALWAYS_WRONG if label not in said]
        wrong += [f"{name} = {label}: {text[:200]}" for label, text in said.items() if name not in text]
        tries, problems = tries + n, problems + wrong
    assert not problems, "\n".join(problems)
    ledger.note(60, tried=tries, held=tries)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: selector(method="hvie"), "Did you mean 'hive'?"),
        (lambda: selector(method="hive", parameters={"p_esay": 0.1}), "Did you mean 'p_easy'?"),
        (lambda: selector(on_problem="stict"), "Did you mean 'strict'?"),
        (lambda: selector(resume="atuo"), "Did you mean 'auto'?"),
        (lambda: PromptPool.from_dataset(ROWS, prompt_column="promt"), "Did you mean 'prompt'?"),
        (lambda: PromptPool.from_dataset(ROWS, duplicates="merg"), "Did you mean 'merge'?"),
        (lambda: compose({"belif": "beta", "score": "expected_mixed"}), "Did you mean 'belief'?"),
        (lambda: compose({"belief": {"kind": "beta", "dcay": 1}, "score": "expected_mixed"}), "Did you mean 'decay'?"),
        (lambda: compose({"belief": "bta", "score": "expected_mixed"}), "Did you mean 'beta'?"),
        (lambda: selector(batch_size=0), "must be a whole number >= 1, got 0"),
        (lambda: selector(group_size=2**17), "must be at most 65,536"),
        (lambda: selector(generations=1), "must be at least 2"),
        (lambda: selector().take(1, policy_version=2**62), "below 2^62, such as the optimizer step"),
        (lambda: selector().step(policy_version=2**63), "below 2^62, such as the optimizer step"),
        (lambda: selector().step(policy_version="x"), "got 'x'"),  # type: ignore[arg-type]
        (lambda: make("hive", p_easy=1.5), "at most 0.95"),
    ],
)
def test_what_is_nearly_right_is_told_what_is_right(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(EdgewiseError) as refused:
        call()
    assert said in str(refused.value)
    ledger.note(60, tried=1, held=1)


# -- the command line ----------------------------------------------------------------------------------------------------

WORDS = {
    "nan": "nan", "inf": "inf", "-1": "-1", "0": "0", "x": "x", "nothing": "", "5,000 digits": "9" * 5_000,
    "30 digits": "9" * 30, "half a surrogate": "\ud800", "a byte that is no UTF-8": "\udc80", "NUL": "a\0b",
    "a line break": "a\nb", "1e999": "1e999",
    "-1e999": "-1e999", "0.5": "0.5", "10 billion": "10000000000", "a hundred thousand letters": "y" * 100_000,
    "up": "../../../x", "a dash": "-", "hive:": "hive:", "hive:=": "hive:=", "brackets": "hive:x=[[[[",
    "nan of hive": "hive:p_min=nan",
    "code": "hive:p_min=__import__('os')", "digits of hive": "hive:max_rounds=" + "9" * 5_000,
}  # fmt: skip
BEGIN = {
    # arguments with which each verb would run, quickly; `train` is refused at the last moment, for its folder
    "train": {"--out": "/dev/null/x", "--prompts": "64"},
    "simulate": {"--steps": "1", "--seeds": "1", "--prompts": "64", "--methods": "uniform"},
    "methods": {},
    "doctor": {"": "d.jsonl"},
    "allocate": {"": "d.jsonl", "--budget": "60", "--out": "o.jsonl"},
    "subset": {"": "d.jsonl", "--out": "s.jsonl", "--embeddings": "e.npy"},
}
NO_FLOATS = ("nan", "inf", "1e999", "-1e999", "x", "nothing", "5,000 digits", "a hundred thousand letters", "NUL")
NEVER = {float: NO_FLOATS, int: (*NO_FLOATS, "30 digits", "0.5")}


@contextmanager
def limits() -> Iterator[None]:
    """Our words for what takes too long: nothing here may take ten seconds."""
    import signal

    def late(*_: object) -> None:
        raise AssertionError("took ten seconds")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    try:
        yield
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("verb", BEGIN)
def test_options_of_the_command_line(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.jsonl").write_text("".join(f'{{"prompt": "{i}", "pass_rate": 0.{i % 10}}}\n' for i in range(30)))
    np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(size=(30, 4)))
    parser = argparse.ArgumentParser()
    importlib.import_module(cli.VERBS[verb].module).add_arguments(parser)
    n, wrong = 0, []
    for action in parser._actions:
        if not action.option_strings or action.nargs == 0 or (verb == "train" and action.dest == "out"):
            continue
        option = action.option_strings[-1]
        begun = {
            k: v for k, v in BEGIN[verb].items() if k != option and not (k == "--budget" and option in ("--each", "--match"))
        }
        base = [word for k, v in begun.items() for word in ((k, v) if k else (v,))]
        for label, word in WORDS.items():
            n += 1
            try:
                with limits(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    code: Any = cli.main([verb, *base, f"{option}={word}"])
            except SystemExit as stop:
                code = stop.code
            except BaseException as error:
                code = f"{type(error).__name__}: {str(error)[:200]}"
            said = capsys.readouterr().err
            if code not in (0, 1, 2) or (code == 2) != bool(said):
                wrong.append(f"{verb} {option}={label}: {code} {said[:200]!r}")
            if len(said) > 3_000 or any(not c.isprintable() and c != "\n" for c in said):
                wrong.append(f"{verb} {option}={label}: a message of {len(said)} characters")
            if code == 0 and action.type in (int, float) and label in NEVER[action.type]:
                wrong.append(f"{verb} {option}={label}: accepted")
    assert not wrong, "\n".join(wrong)
    ledger.note(60, tried=n, held=n)


def test_every_verb_is_tried() -> None:
    told = {"inspect", "verify"}  # they take a folder and nothing else
    assert set(BEGIN) == set(cli.VERBS) - told


def test_a_config_error_is_a_value_error() -> None:
    assert issubclass(ConfigError, ValueError)
