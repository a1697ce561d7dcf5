"""Samples per test prompt: the golden table, brute force, calibration, and the verb from file to file."""

from __future__ import annotations

import csv
import itertools
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.allocation import Allocation, allocate, believed_gains, budget_to_match, pass_gains, uniform
from edgewise.calibration import Calibration, calibration_error, isotonic
from edgewise.cli import main
from edgewise.errors import ConfigError

GOLDEN = np.array([0.9, 0.5, 0.1, 0.02])


def solved(rates: np.ndarray, samples: list[int]) -> float:
    """Mean pass@k by its closed form."""
    return float(np.mean(1 - (1 - rates) ** np.array(samples)))


# -- pure ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "samples", "value"), [(1, [2, 4, 5, 1], 0.58925), (0, [2, 4, 6, 0], 0.59901)])
def test_golden(low: int, samples: list[int], value: float) -> None:
    found = allocate(pass_gains(GOLDEN, 12), 12, low, 12)
    assert found.samples.tolist() == samples
    assert found.solved.mean() == pytest.approx(value, abs=5e-6)
    assert found.solved.mean() == pytest.approx(solved(GOLDEN, samples))
    assert uniform(pass_gains(GOLDEN, 12), 12, 12).solved.mean() == pytest.approx(0.55095, abs=5e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.integers(0, 12), st.integers(0, 1))
@settings(max_examples=60, deadline=None)
def test_nothing_beats_it(rates: list[float], budget: int, low: int) -> None:
    """Against every allocation with at most 5 samples a prompt."""
    p, high = np.array(rates), 5
    fits = [s for s in itertools.product(range(low, high + 1), repeat=len(p)) if sum(s) == budget]
    if not fits:
        with pytest.raises(ConfigError, match="budget"):
            allocate(pass_gains(p, high), budget, low, high)
        return
    found = allocate(pass_gains(p, high), budget, low, high)
    assert found.solved.mean() == pytest.approx(max(solved(p, list(s)) for s in fits), abs=1e-12)
    assert int(found.samples.sum()) == budget


def test_gains_under_a_belief_are_exact() -> None:
    """E[p(1-p)^c] under Beta(2, 3) in fractions: B(3, 3+c)/B(2, 3)."""

    def beta(a: int, b: int) -> Fraction:
        return Fraction(
            int(np.prod(range(1, a), dtype=object)) * int(np.prod(range(1, b), dtype=object)),
            int(np.prod(range(1, a + b), dtype=object)),
        )

    expected = [float(beta(3, 3 + c) / beta(2, 3)) for c in range(8)]
    np.testing.assert_allclose(believed_gains(np.array([2.0]), np.array([3.0]), 8)[0], expected, rtol=1e-12)
    sharp = believed_gains(np.array([3e8]), np.array([7e8]), 8)[0]
    np.testing.assert_allclose(sharp, pass_gains(np.array([0.3]), 8)[0], rtol=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_matching_budget_is_the_smallest_that_solves_as_much(rates: list[float], each: int) -> None:
    gains = pass_gains(np.array(rates), 8)
    goal = uniform(gains, each * len(rates), 8).solved.sum()
    budget = budget_to_match(gains, each, 1, 8)
    assert len(rates) <= budget <= each * len(rates)
    assert allocate(gains, budget, 1, 8).solved.sum() >= goal - 1e-9
    if budget > len(rates):
        assert allocate(gains, budget - 1, 1, 8).solved.sum() < goal
    with pytest.raises(ConfigError, match="between the fewest and the most"):
        budget_to_match(gains, 9, 1, 8)


def test_uniform_spends_the_budget_up_to_the_cap() -> None:
    assert uniform(pass_gains(GOLDEN, 4), 10, 4).samples.tolist() == [3, 3, 2, 2]
    assert uniform(pass_gains(GOLDEN, 4), 99, 4).samples.tolist() == [4] * 4
    assert isinstance(uniform(pass_gains(GOLDEN, 4), 0, 4), Allocation)


# -- calibration --------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 5)), min_size=1, max_size=7))
@settings(max_examples=60, deadline=None)
def test_isotonic_regression_is_the_max_min_formula(pairs: list[tuple[int, int]]) -> None:
    """max over starts <= i of min over ends >= i of the weighted mean: an independent characterisation."""
    v, w = (np.array(x, dtype=np.float64) for x in zip(*pairs, strict=True))
    n = len(v)
    direct = [
        max(min(float(v[a : b + 1] @ w[a : b + 1] / w[a : b + 1].sum()) for b in range(i, n)) for a in range(i + 1))
        for i in range(n)
    ]
    np.testing.assert_allclose(isotonic(v, w), direct, atol=1e-12)


def test_bins_hold_like_numbers_of_predictions_and_rise() -> None:
    predicted = np.linspace(0, 1, 100)
    successes = np.where(predicted < 0.5, 1.0, 6.0)
    fit = Calibration.fit(predicted, successes, np.full(100, 8), bins=4)
    np.testing.assert_allclose(fit.edges, [0.25, 0.5, 0.75], atol=0.01)
    np.testing.assert_allclose(fit.rates, [1 / 8, 1 / 8, 6 / 8, 6 / 8])
    np.testing.assert_allclose(fit(np.array([0.0, 0.3, 0.6, 1.0])), [1 / 8, 1 / 8, 6 / 8, 6 / 8])


def test_a_bin_is_weighed_by_rollouts_and_a_fall_is_pooled() -> None:
    fit = Calibration.fit(np.array([0.1, 0.9]), np.array([6.0, 0.0]), np.array([8, 4]), bins=2)
    assert fit.rates.tolist() == [0.5, 0.5]  # 6 of 12


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=30), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_ties_and_empty_bins_do_no_harm(predicted: list[float], bins: int, seed: int) -> None:
    g = np.array(predicted)
    k = np.random.default_rng(seed).integers(0, 5, len(g)).astype(float)
    fit = Calibration.fit(g, k, np.full(len(g), 4), bins)
    assert len(fit.rates) == len(fit.edges) + 1 <= bins
    assert (np.diff(fit.rates) >= -1e-12).all()
    assert (np.diff(fit.edges) > 0).all()
    assert fit(g).mean() == pytest.approx(k.mean() / 4)  # pooling keeps the mean
    with pytest.raises(ConfigError, match="at least one group"):
        Calibration.fit(g[:0], k[:0], k[:0], bins)


def test_calibration_error_by_hand() -> None:
    """Bin .2-.3: mean prediction .25 of 8 rollouts, 4 passed; bin .9-1: 1.0 of 4, all passed. (8·.25 + 0)/12."""
    error = calibration_error(np.array([0.2, 0.299999, 1.0]), np.array([2.0, 2.0, 4.0]), np.array([4, 4, 4]))
    assert error == pytest.approx(8 * 0.25 / 12, abs=1e-6)


# -- the verb -----------------------------------------------------------------------------------------------------------


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def predicted(tmp_path: Path) -> str:
    return write(tmp_path / "test.jsonl", [{"id": f"q{i}", "pass_rate": float(p)} for i, p in enumerate(GOLDEN)])


def test_from_file_to_file(predicted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["allocate", predicted, "--budget", "12"]) == 0
    out = tmp_path / "test.samples.jsonl"
    assert [line["samples"] for line in lines(out)] == [2, 4, 5, 1]
    assert lines(out)[0] == {"id": "q0", "samples": 2, "pass_rate": 0.9, "solved": 0.99}
    said = capsys.readouterr().out
    assert "0.5893 expected, 0.5510 if spread evenly" in said
    assert f"file: {out}" in said
    assert f"next: edgewise allocate {predicted} --budget 12 --calibration" in said


def test_json_and_other_formats_say_the_same(predicted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = lines(Path(predicted))
    table = tmp_path / "t.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "pass_rate"])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    found = []
    for path in (predicted, str(table), str(tmp_path / "t.parquet")):
        assert main(["allocate", path, "--each", "3", "--json", "--min", "0", "--out", str(tmp_path / "o.jsonl")]) == 0
        report = json.loads(capsys.readouterr().out)
        report.pop("next")
        found.append((report, lines(tmp_path / "o.jsonl")))
    assert found[0] == found[1] == found[2]
    assert found[0][0]["samples"] == [0, 3, 6]
    assert found[0][0]["unsampled"] == 1
    assert found[0][0]["solved"] == pytest.approx(0.59901, abs=5e-6)


def test_matching_what_even_sampling_solves_takes_fewer(predicted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["allocate", predicted, "--match", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["budget"] < 12
    assert report["solved"] >= solved(GOLDEN, [3] * 4)


def test_counts_are_beliefs_and_unsampled_prompts_are_kept_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 of 8 and nothing known: the plug-in rate 0/8 would get nothing; the belief Beta(1, 9) still has a chance."""
    path = write(tmp_path / "c.jsonl", [{"successes": 0, "trials": 8}, {"successes": 8, "trials": 8}, {"other": 1}])
    assert main(["allocate", path, "--budget", "9", "--out", str(tmp_path / "o.jsonl")]) == 0
    found = lines(tmp_path / "o.jsonl")
    assert [line["pass_rate"] for line in found] == [0.1, 0.9, 0.5]
    gains = believed_gains(np.array([1.0, 9.0, 1.0]), np.array([9.0, 1.0, 1.0]), 64)
    assert [line["samples"] for line in found] == allocate(gains, 9, 1, 64).samples.tolist()
    assert [line["id"] for line in found] == [0, 1, 2]
    capsys.readouterr()


def test_embeddings_speak_for_prompts_that_were_never_sampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(120):
        easy = bool(i % 2)
        row: dict[str, Any] = {"id": i, "vector": [1.0 if easy else -1.0, *rng.standard_normal(2).tolist()]}
        if i < 80:
            row |= {"k": 8 if easy else 0, "n": 8}
        rows.append(row)
    path = write(tmp_path / "e.jsonl", rows)
    args = ["allocate", path, "--each", "4", "--successes", "k", "--trials", "n", "--embedding", "vector"]
    assert main([*args, "--out", str(tmp_path / "o.jsonl")]) == 0
    found = lines(tmp_path / "o.jsonl")[80:]
    assert min(line["pass_rate"] for line in found[1::2]) > max(line["pass_rate"] for line in found[::2]) + 0.3
    assert "a regression on 'vector' and counts" in capsys.readouterr().out


def test_calibration_corrects_boasting_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Predictions of .9 come true one time in ten."""
    measured = [{"pass_rate": 0.9, "successes": 1, "trials": 10}] * 5 + [{"pass_rate": 0.2, "successes": 0, "trials": 10}] * 5
    calibration = write(tmp_path / "measured.jsonl", measured)
    path = write(tmp_path / "test.jsonl", [{"pass_rate": 0.9}, {"pass_rate": 0.2}])
    assert main(["allocate", path, "--budget", "9", "--calibration", calibration, "--bins", "2", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [line["samples"] for line in lines(tmp_path / "test.samples.jsonl")] == [8, 1]
    assert [b["pass_rate"] for b in report["calibration"]] == [0.0, 0.1]
    assert report["known"] == "column 'pass_rate', calibrated on 10 prompts"
    assert report["next"].startswith("head -n 3 ")


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([{"prompt": "a"}], [], "nothing is known of these prompts"),
        ([{"pass_rate": 1.5}], [], "column 'pass_rate' must hold numbers of at least 0 and at most 1; row 0 holds 1.5"),
        ([{"pass_rate": 0.5}, {"pass_rate": None}], [], "row 1 holds None (1 of 2 rows)"),
        ([{"pass_rate": 0.5}], ["--rate", "pas_rate"], "there is no column 'pas_rate' (--rate). Did you mean 'pass_rate'?"),
        ([{"successes": 3, "trials": 2}], [], "row 0 has more successes (3) than trials (2)"),
        ([{"successes": 3}], ["--successes", "successes"], "successes and trials belong together"),
        ([{"pass_rate": 0.5}], ["--max", "0"], "--max must be at least 1, got 0"),
        ([{"pass_rate": 0.5}], ["--budget", "100"], "budget of 100"),
        ([{"successes": 1, "trials": 2, "v": "x"}], ["--embedding", "v"], "must hold lists of finite numbers"),
        ([{"successes": 1, "trials": 2}], ["--calibration", "x.jsonl"], "--calibration corrects predicted pass rates"),
    ],
)  # fmt: skip
def test_errors_name_what_and_the_remedy(rows, arguments: list[str], message: str, tmp_path: Path, capsys) -> None:
    path = write(tmp_path / "t.jsonl", rows)
    budget = [] if "--budget" in arguments else ["--budget", "2"]
    assert main(["allocate", path, *budget, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "t.samples.jsonl").exists()


def test_it_never_writes_over_what_it_reads(predicted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["allocate", predicted, "--budget", "4", "--out", predicted]) == 2
    assert "that is a file it reads" in capsys.readouterr().err
    assert len(lines(Path(predicted))) == 4
    with pytest.raises(SystemExit):
        main(["allocate", predicted])
