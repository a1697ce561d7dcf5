"""The arithmetic bed: right answers, distinct prompts, honest hold-out."""

import re

import numpy as np
import pytest

from edgewise.errors import ConfigError
from edgewise.lab.arithmetic import KINDS, MAX_COMPLETION_TOKENS, POOLS, held_out, make_pool
from edgewise.lab.task import ArithmeticTask


def evaluate(prompt: str) -> int:
    """Read a prompt with Python's own integers; leading zeros removed."""
    expression = re.sub(r"\d+", lambda number: str(int(number.group())), prompt.removesuffix("="))
    return int(eval(expression))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_answer_is_right_and_short(pool: str, seed: int) -> None:
    train, held = make_pool(pool, seed=seed)
    for problem in train + held:
        assert int(problem.answer[::-1]) == evaluate(problem.prompt)
        assert len(problem.answer) == KINDS[problem.kind.partition("/")[0]].answer_digits < MAX_COMPLETION_TOKENS


@pytest.mark.parametrize("pool", POOLS)
def test_prompts_are_distinct_and_held_out_ones_are_never_trained_on_under_any_seed(pool: str) -> None:
    train, held = make_pool(pool, seed=0)
    texts = [problem.prompt for problem in train + held]
    assert len(texts) == len(set(texts)) == 2400 + 480
    other_train, _ = make_pool(pool, seed=1)
    assert not {p.prompt for p in held} & {p.prompt for p in other_train}
    assert all(held_out(p.prompt) for p in held)
    assert not any(held_out(p.prompt) for p in train)


@pytest.mark.parametrize("pool", POOLS)
def test_both_sides_have_the_shares_of_the_pool(pool: str) -> None:
    for problems in make_pool(pool):
        for kind, share in POOLS[pool].items():
            assert abs(sum(p.kind == kind for p in problems) - share * len(problems)) <= 1


def test_the_seed_decides_the_pool() -> None:
    assert make_pool(seed=3) == make_pool(seed=3)
    assert make_pool(seed=3) != make_pool(seed=4)


def test_shares_add_up_to_one() -> None:
    for shares in POOLS.values():
        assert sum(shares.values()) == pytest.approx(1.0)
        assert {kind.partition("/")[0] for kind in shares} <= set(KINDS)


def test_a_prompt_is_as_tricky_as_its_worst_column() -> None:
    """By hand, from TRICKY: 047 has the upper digits 7, 4, 0, last first: 2, 1, 0 in a sum and 1, 0, 3 in a difference."""
    add, sub = KINDS["add3"], KINDS["sub3"]
    assert add.grades(np.array([47, 111])) == (2, 1, 0)
    assert sub.grades(np.array([47, 11])) == (1, 0, 3)
    assert KINDS["mul22"].grades(np.array([47, 11])) == ()
    for problem in make_pool("wasteful")[0]:
        name, _, grade = problem.kind.partition("/")
        graded = KINDS[name].operation in ("add", "sub")
        assert grade == (str(max(problem.grades)) if graded else "")


def test_an_unknown_pool_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'wasteful'"):
        make_pool("wastefull")


def test_a_pool_larger_than_its_kinds_is_refused() -> None:
    with pytest.raises(ConfigError, match="too few distinct problems"):
        make_pool("wasteful", n_train=50_000)


def test_the_task_rewards_the_answer_and_nothing_else() -> None:
    task = ArithmeticTask("balanced", n_train=50, n_held_out=10)
    rows = task.train[:4]
    answers = [row["answer"] for row in rows]
    assert task.reward(answers, rows) == [1.0] * 4
    assert task.reward([a + "0" for a in answers], rows) == [0.0] * 4
    assert task.reward(["", " " + answers[1], answers[2][:-1], "x"], rows) == [0.0] * 4
    assert len({row["prompt_id"] for row in task.train + task.held_out}) == 60
