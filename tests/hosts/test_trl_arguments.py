"""Wrong arguments of `attach` are refused by name, and the trainer stays as it was (fault 60)."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from edgewise.hosts.trl import attach
from tests import ledger
from tests.hosts import tiny
from tests.test_arguments import ALWAYS_WRONG, tried


@pytest.mark.parametrize("name", [name for name in inspect.signature(attach).parameters if name != "trainer"])
def test_arguments_of_attach(name: str, tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path)
    cls = type(trainer)

    def call(**given: object) -> None:
        try:
            attach(trainer, **given)
        finally:
            as_it_was = type(trainer) is cls
            trainer.__class__ = cls
        assert not as_it_was

    n, wrong, said = tried(call, name)
    wrong += [f"{name} = {label} was accepted" for label in ALWAYS_WRONG if label not in said]
    wrong += [f"{name} = {label}: {text[:200]}" for label, text in said.items() if name.rstrip("s") not in text]
    assert not wrong, "\n".join(wrong)
    ledger.note(60, tried=n, held=n)
