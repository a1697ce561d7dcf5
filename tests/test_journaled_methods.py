"""Every method, journaled: what can be read back after a commit is the state that was committed, bit for bit."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from edgewise import directory, saved
from edgewise.errors import DegradedWarning
from edgewise.history import History
from edgewise.methods import METHODS, make
from edgewise.selector import Selector
from edgewise.testing.drive import steps, stream
from edgewise.testing.world import World
from tests import ledger
from tests.test_conformance import SMALLER, TOO_LARGE


@pytest.mark.parametrize("streaming", [False, True], ids=["steps", "stream"])
@pytest.mark.parametrize("name", [name for name in METHODS if name not in TOO_LARGE])
def test_every_commit_of_every_method_is_read_back_as_it_was(
    name: str, streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "RECORDS", 5)  # often enough a new snapshot, and with it the comparison of both ways
    world, commits = World(40, seed=3), ledger.cases(7, chaos=60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        selector = Selector(
            make(name, **SMALLER.get(name, {})), world.pool, batch_size=6, group_size=4, total_steps=commits, seed=1,
            on_problem="strict", directory=tmp_path,
        )  # fmt: skip
    for _ in range(commits):
        if streaming:
            stream(selector, world, 1)
            selector.commit()
        else:
            steps(selector, world, 1)
        assert selector.metrics["journal_degraded"] == 0
        recovered = History.of(tmp_path).newest()
        assert recovered is not None
        header, arrays = saved.content(selector)
        assert recovered.arrays.keys() == arrays.keys()
        for key, array in arrays.items():
            assert (array.dtype, array.shape) == (recovered.arrays[key].dtype, recovered.arrays[key].shape), key
            assert np.ascontiguousarray(array).tobytes() == recovered.arrays[key].tobytes(), key
        assert {k: v for k, v in header.items() if k != "metrics"} == {
            k: v for k, v in recovered.header.items() if k in header and k != "metrics"
        }
    ledger.note(20, tried=commits, held=commits)  # as any end would leave it: nothing was closed
