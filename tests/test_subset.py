"""The static subset: graph, PageRank, the diverse choice against direct determinants, the draw by difficulty, and the verb."""

from __future__ import annotations

import csv
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise import diverse, subset
from edgewise.cli import main
from edgewise.errors import ConfigError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def points(count: int, width: int = 3, seed: int = 0) -> Any:
    return diverse.unit_rows(rng(seed).normal(size=(count, width)))


# -- graph -------------------------------------------------------------------------------------------------------------


def test_similarities_are_those_of_a_double_loop() -> None:
    units = points(7)
    expected = [[math.exp(-sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / (2 * 0.7**2)) for y in units] for x in units]
    np.testing.assert_allclose(diverse.similarity(units, units, 0.7), expected, rtol=1e-12)


def test_the_median_distance_is_that_of_all_pairs() -> None:
    units = points(31)
    pairs = [math.dist(a, b) for a, b in itertools.combinations(units, 2)]
    assert diverse.median_distance(units, rng()) == pytest.approx(float(np.median(pairs)), rel=1e-9)


def test_repeated_prompts_do_not_make_the_bandwidth_zero() -> None:
    units = points(3)[[0] * 20 + [1, 2]]
    assert diverse.median_distance(units, rng()) > 0.1
    assert diverse.median_distance(units[:5], rng()) == 1.0


def test_a_sparse_graph_holds_the_nearest_of_each_and_is_symmetric() -> None:
    units = points(150, 4)
    full = diverse.similarity_graph(units, 0.8)
    sparse = diverse.similarity_graph(units, 0.8, dense=0, neighbours=5).toarray()
    assert (np.diag(full) == 0).all()
    assert (np.diag(sparse) == 0).all()
    np.testing.assert_array_equal(full, full.T)
    np.testing.assert_array_equal(sparse, sparse.T)
    nearest = np.argsort(-full, axis=1)[:, :5]
    expected = np.zeros((150, 150), dtype=bool)
    np.put_along_axis(expected, nearest, True, axis=1)
    np.testing.assert_array_equal(sparse > 0, expected | expected.T)
    np.testing.assert_allclose(sparse[sparse > 0], full[sparse > 0], rtol=1e-12)


def test_a_sparse_graph_is_built_in_blocks() -> None:
    units = points(1100, 3)  # three blocks of 512
    sparse = diverse.similarity_graph(units, 0.8, dense=0, neighbours=4)
    assert (sparse.diagonal() == 0).all()
    row = diverse.similarity(units[1050:1051], units, 0.8)[0]
    row[1050] = 0
    assert set(np.argsort(-row)[:4]) <= set(sparse[[1050]].indices.tolist())


# -- PageRank ----------------------------------------------------------------------------------------------------------


def by_linear_algebra(weights: Any, damping: float = 0.85) -> Any:
    """(I - d·Pᵀ) x = (1 - d), solved directly; rows without edges jump anywhere."""
    n = len(weights)
    out = weights.sum(axis=1, keepdims=True)
    p = np.where(out > 0, weights / np.where(out > 0, out, 1.0), 1.0 / n)
    return np.linalg.solve(np.eye(n) - damping * p.T, np.full(n, 1.0 - damping))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**31), st.floats(0, 1))
def test_page_rank_sums_to_n_and_solves_its_linear_system(n: int, seed: int, density: float) -> None:
    weights = rng(seed).random((n, n)) * (rng(seed + 1).random((n, n)) < density)
    np.fill_diagonal(weights, 0.0)
    got = diverse.page_rank(weights)
    assert got.sum() == pytest.approx(n, rel=1e-12)
    np.testing.assert_allclose(got, by_linear_algebra(weights), rtol=1e-8)


def test_page_rank_of_a_sparse_matrix_and_of_isolated_rows() -> None:
    from scipy import sparse

    weights = rng().random((40, 40)) * (rng(1).random((40, 40)) < 0.2)
    weights[7] = 0.0
    np.testing.assert_allclose(diverse.page_rank(sparse.csr_array(weights)), diverse.page_rank(weights), rtol=1e-9)
    assert diverse.page_rank(np.zeros((5, 5))).tolist() == pytest.approx([1.0] * 5)


# -- the diverse choice ------------------------------------------------------------------------------------------------


def kernel_of(units: Any, influence: Any, bandwidth: float) -> Any:
    root = np.sqrt(influence)
    return root[:, None] * (diverse.similarity(units, units, bandwidth) + 1e-6 * np.eye(len(units))) * root


@pytest.mark.parametrize("seed", range(6))
def test_every_pick_is_the_one_of_largest_determinant(seed: int) -> None:
    """Against the determinants of all submatrices, computed directly."""
    units, influence = points(9, 3, seed), rng(seed + 100).uniform(0.3, 2.0, 9)
    full = kernel_of(units, influence, 0.9)
    picked = diverse.pick_diverse(units, influence, 6, 0.9, rng(seed))
    assert picked.filled == 0
    for t in range(6):
        before = picked.positions[:t].tolist()
        volumes = {i: np.linalg.det(full[np.ix_([*before, i], [*before, i])]) for i in range(9) if i not in before}
        assert volumes[int(picked.positions[t])] == pytest.approx(max(volumes.values()), rel=1e-6)


def test_the_greedy_choice_is_the_best_of_all_where_one_is_clear() -> None:
    """Three tight pairs far apart: of all 20 sets of three, the best takes the heavier one of each pair."""
    corners = np.repeat(np.eye(3), 2, axis=0)
    units = diverse.unit_rows(corners + 0.01 * rng().normal(size=(6, 3)))
    influence = np.array([1.0, 1.1, 1.2, 1.0, 1.0, 1.3])
    full = kernel_of(units, influence, 0.5)
    best = max(itertools.combinations(range(6), 3), key=lambda s: float(np.linalg.det(full[np.ix_(s, s)])))
    assert sorted(diverse.pick_diverse(units, influence, 3, 0.5, rng()).positions.tolist()) == list(best) == [1, 2, 5]


def test_a_common_factor_of_the_influence_changes_nothing() -> None:
    units, influence = points(30), rng(1).uniform(0.5, 2.0, 30)
    once, twice = (diverse.pick_diverse(units, f * influence, 12, 0.9, rng()).positions for f in (1.0, 7.0))
    np.testing.assert_array_equal(once, twice)


def test_more_picks_than_the_embedding_is_wide_still_add_something() -> None:
    """The trap of the inner product: its matrix has rank 2 here, and every determinant of three is 0."""
    units = points(40, 2)
    assert np.linalg.matrix_rank(units @ units.T) == 2
    picked = diverse.pick_diverse(units, np.ones(40), 10, 0.9, rng())
    assert (len(set(picked.positions.tolist())), picked.filled) == (10, 0)


def test_what_adds_nothing_is_filled_by_influence() -> None:
    """Influence 1e-8: what is left of a repeated prompt is 2e-14, below 1e-12."""
    units = np.repeat(np.eye(2), 5, axis=0)
    influence = 1e-8 * np.array([1, 2, 3, 4, 9, 5, 6, 7, 8, 1.0])
    picked = diverse.pick_diverse(units, influence, 5, 0.5, rng())
    assert (picked.positions.tolist(), picked.filled) == ([4, 8, 7, 6, 5], 3)


def test_ties_are_drawn() -> None:
    first = {int(diverse.pick_diverse(np.eye(4), np.ones(4), 1, 1.0, rng(seed)).positions[0]) for seed in range(60)}
    assert first == {0, 1, 2, 3}  # one is missing about once in 7e6 runs: 4 · .75^60


def test_memory_is_refused_before_it_is_taken_and_names_the_limit() -> None:
    with pytest.raises(ConfigError, match=r"500 of 1,000 prompts needs 0\.0 GB, and the limit is 0\.0 GB, or 125 of these"):
        diverse.pick_diverse(points(1000), np.ones(1000), 500, 1.0, rng(), most_bytes=1e6)
    with pytest.raises(ConfigError, match="at most 100,000 prompts, got 100,001"):
        diverse.unit_rows(np.ones((100_001, 1), dtype=np.float32))


@pytest.mark.parametrize(("bad", "message"), [
    (np.zeros((3, 2)), "row 0 has no direction: its length is 0.0 \\(3 of 3 rows\\)"),
    (np.array([[1.0, 0], [math.nan, 1]]), "row 1 has no direction: its length is nan"),
    (np.ones(3), "must be a table of numbers"),
    (np.empty((0, 3)), "must be a table of numbers"),
    (np.array([["a"]]), "must be a table of numbers"),
], ids=["zero", "nan", "flat", "empty", "text"])  # fmt: skip
def test_embeddings_that_cannot_be_used_are_refused(bad: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        diverse.unit_rows(bad)


# -- difficulty --------------------------------------------------------------------------------------------------------


def test_golden_odds_of_difficulty() -> None:
    odds = diverse.difficulty_odds(np.array([0, 0.25, 0.5, 0.75, 1]), 0.5, 0.25)
    np.testing.assert_allclose(odds, [0.05448868, 0.24420134, 0.40261995, 0.24420134, 0.05448868], atol=5e-9)
    assert diverse.difficulty_odds(np.array([math.nan, 0.5]), 0.5, 0.25).tolist() == [0.0, 1.0]
    assert diverse.difficulty_odds(np.array([math.nan]), 0.5, 0.25).tolist() == [0.0]
    np.testing.assert_allclose(diverse.difficulty_odds(np.array([0.0, 0.01]), 1.0, 0.01)[1], 1.0)  # e^-5000 apart from 0


def test_the_draw_is_one_after_the_other_without_replacement() -> None:
    """Ordered pairs of 3 against p_i · p_j / (1 - p_i); 20,000 draws, a cell is off by 6 sigma about once in 5e8 runs."""
    accuracies = np.array([0.1, 0.5, 0.9])
    p = diverse.difficulty_odds(accuracies, 0.6, 0.3)
    counts = np.zeros((3, 3))
    generator = rng(3)
    for _ in range(20_000):
        first, second = diverse.draw_by_difficulty(accuracies, 2, 0.6, 0.3, generator)
        counts[first, second] += 1
    expected = 20_000 * p[:, None] * p[None, :] / (1 - p[:, None])
    np.fill_diagonal(expected, 0.0)
    assert (np.abs(counts - expected) <= 6 * np.sqrt(expected)).all()


def test_prompts_without_accuracy_are_never_drawn() -> None:
    accuracies = np.array([math.nan, 0.0, math.nan, 1.0])
    assert sorted(diverse.draw_by_difficulty(accuracies, 4, 0.5, 0.001, rng()).tolist()) == [1, 3]


# -- the whole ---------------------------------------------------------------------------------------------------------


def test_the_whole_choice_is_seeded_counts_rollouts_and_stays_within_the_diverse_half() -> None:
    vectors = rng().normal(size=(200, 8))
    accuracies = rng(1).random(200)
    accuracies[:20] = math.nan
    found = subset.choose(vectors, accuracies=accuracies, rollouts_per_prompt=8, seed=3)
    assert (found.prompts, found.diverse, found.chosen) == (200, 100, 40)
    assert found.influence.sum() == pytest.approx(200)
    assert found.rollouts == 180 * 8
    half = subset.choose(vectors, seed=3)
    assert set(found.rows) <= set(half.rows)
    assert found.rollouts_needed == int(np.isfinite(accuracies[half.rows]).sum()) * 8
    assert (half.rollouts, half.mean_accuracy) == (0, None)
    assert np.isfinite(accuracies[found.rows]).all()
    assert found.mean_accuracy == accuracies[found.rows].mean()
    np.testing.assert_array_equal(found.rows, subset.choose(vectors, accuracies=accuracies, seed=3).rows)
    assert found.rows.tolist() != subset.choose(vectors, accuracies=accuracies, seed=4).rows.tolist()


def test_diversity_keeps_one_of_each_repeated_prompt_before_a_second() -> None:
    vectors = np.repeat(rng().normal(size=(30, 16)), 2, axis=0)
    rows = subset.choose(vectors, keep=0.5).rows
    assert sorted({int(row) // 2 for row in rows}) == list(range(30))


@pytest.mark.parametrize(("wrong", "message"), [
    ({"keep": 0.0}, "keep=...\\) must be above 0 and at most 1, got 0.0"),
    ({"share": 1.5}, "share=...\\) must be above 0 and at most 1, got 1.5"),
    ({"spread": 0.0}, "spread=...\\) must be above 0, got 0.0"),
    ({"difficulty": math.nan}, "difficulty=...\\) must be finite"),
    ({"seed": -1}, "seed=...\\) must be at least 0"),
    ({"share": 0.9}, "wants 9 prompts, and 5 of the 5 diverse ones have an accuracy"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        subset.choose(rng().normal(size=(10, 3)), accuracies=np.full(10, 0.5), **wrong)


# -- the verb ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Path:
    rows = [{"id": f"q{i}", "prompt": f"{i}+{i}=", "acc": None if i == 4 else (i % 5) / 4} for i in range(20)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    np.save(tmp_path / "e.npy", rng().normal(size=(20, 4)).astype(np.float32))
    return tmp_path


def call(files: Path, *more: str, out: str = "ids.jsonl") -> int:
    return main(["subset", str(files / "d.jsonl"), "--out", str(files / out), "--embeddings", str(files / "e.npy"), *more])


def test_the_verb_writes_ids_and_a_summary(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(files) == 0
    lines = [json.loads(line) for line in (files / "ids.jsonl").read_text().splitlines()]
    assert len(lines) == 10
    assert all(line["prompt_id"] == f"q{line['row']}" and line["influence"] > 0 for line in lines)
    assert [line["row"] for line in lines] == sorted({line["row"] for line in lines})
    printed = capsys.readouterr().out
    assert "10 kept (0 of them by influence alone)" in printed
    assert "rollouts" not in printed
    assert not list(files.glob("*.partial"))


def test_the_verb_draws_by_difficulty_and_counts_its_rollouts(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        call(files, "--accuracy-column", "acc", "--rollouts-per-prompt", "8", "--share", "0.25", "--json", out="ids.csv") == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert (found["chosen"], found["rollouts"]) == (5, 19 * 8)
    with (files / "ids.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 5
    assert all(float(line["accuracy"]) == (int(line["row"]) % 5) / 4 for line in lines)
    assert found["mean_accuracy"] == pytest.approx(np.mean([float(line["accuracy"]) for line in lines]))
    assert call(files, "--accuracy-column", "acc", "--rollouts-per-prompt", "8") == 0
    assert "152 behind the accuracies" in capsys.readouterr().out


@pytest.mark.parametrize(("more", "out", "message"), [
    ([], "ids.txt", "--out must end in .jsonl or .csv"),
    (["--accuracy-column", "acc"], "ids.csv", "needs --rollouts-per-prompt G"),
    (["--accuracy-column", "accu", "--rollouts-per-prompt", "8"], "ids.csv", "There is no column 'accu'"),
    (["--accuracy-column", "prompt", "--rollouts-per-prompt", "8"], "ids.csv", "must hold accuracies in [0, 1], got '0+0='"),
    (["--memory", "0.000001"], "ids.csv", "and the limit is 0.0 GB"),
    (["--seed", "-1"], "ids.csv", "must be at least 0"),
    ([], "none/ids.csv", "cannot be written: No such file or directory"),
])  # fmt: skip
def test_the_verb_says_what_is_wrong(
    files: Path, more: list[str], out: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(files, *more, out=out) == 2
    assert message in capsys.readouterr().err
    assert not (files / out).exists()


@pytest.mark.parametrize(("content", "message"), [
    (np.ones((19, 4)), "must hold one embedding a prompt, shape (20, width), got (19, 4)"),
    (np.array([{}] * 20), "not a readable .npy file"),
    (None, "not a readable .npy file"),
], ids=["too few", "objects", "not there"])  # fmt: skip
def test_embedding_files_that_do_not_fit_are_refused(
    files: Path, content: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (files / "e.npy").unlink()
    if content is not None:
        np.save(files / "e.npy", content, allow_pickle=True)
    assert call(files) == 2
    assert message in capsys.readouterr().err
    np.savez(files / "a.npz", x=np.ones((20, 4)))
    with pytest.raises(ConfigError, match="is an archive of arrays"):
        subset.read_embeddings(str(files / "a.npz"), 20)


def test_without_a_file_the_prompts_are_embedded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two questions asked twice, in other words, as text and as a conversation: one of each is kept."""
    pytest.importorskip("wordllama")
    texts = ["How many apples are left in the basket?", "The sum of the angles of a triangle in degrees",
             "How many apples are left in that basket?", "The sum of the angles of triangles in degrees"]  # fmt: skip
    rows = [{"id": i, "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": t}]}
            for i, t in enumerate(texts)]  # fmt: skip
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["subset", str(tmp_path / "d.jsonl"), "--out", str(tmp_path / "ids.csv")]) == 0
    with (tmp_path / "ids.csv").open(newline="") as file:
        kept = [int(line["row"]) for line in csv.DictReader(file)]
    assert sorted(row % 2 for row in kept) == [0, 1]
    assert "embeddings of width 256" in capsys.readouterr().out
