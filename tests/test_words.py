"""Task-library prompts, and scorers that misbehave."""

from pathlib import Path

import pytest

from edgewise.errors import ConfigError
from edgewise.lab.words import WordTask, final_answer, make_task

BAD_SCORERS = """
import os, time

class Bad:
    def __init__(self, size, seed):
        self.size, self.seed = size, seed
    def __len__(self):
        return self.size
    def __getitem__(self, index):
        return {"question": f"{self.seed}: what is {index % 7}?", "answer": str(index % 7)}
    def score_answer(self, answer, entry):
        if answer == "hang":
            time.sleep(60)
        if answer == "die":
            os._exit(1)
        if answer == "raise":
            raise ValueError(answer)
        if answer == "print":
            print("1.0")
        return 1.0 if answer == entry["answer"] else 0.5
"""


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WordTask:
    (tmp_path / "bad_scorers.py").write_text(BAD_SCORERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return make_task("bad_scorers:Bad", n_train=4, n_held_out=2, timeout_s=0.5)


def test_a_scorer_that_hangs_dies_or_raises_gives_no_verdict_and_the_next_answer_is_scored(bad: WordTask) -> None:
    row = bad.train[0]
    answers = ["hang", row["answer"], "die", row["answer"], "raise", row["answer"], "wrong"]
    # final_answer looks for numbers where the answer is one, so misbehaving words travel whole
    assert bad.reward(answers, [row] * 7) == [None, 1.0, None, 1.0, None, 1.0, 0.0]
    bad.close()


def test_half_marks_are_a_fail_and_printing_is_no_score(bad: WordTask) -> None:
    rows = bad.train[:2]
    assert bad.reward(["99", "print"], rows) == [0.0, 0.0]
    bad.close()


def test_repeated_questions_are_asked_once_and_too_few_are_refused(bad: WordTask) -> None:
    prompts = [row["prompt"] for row in bad.train + bad.held_out]
    assert len(set(prompts)) == 6
    with pytest.raises(ConfigError, match="only 7 distinct questions"):
        make_task("bad_scorers:Bad", n_train=10, n_held_out=2)


def test_word_problems_have_distinct_prompts_and_a_scorer_that_knows_the_answer() -> None:
    task = make_task("gsm_symbolic", n_train=30, n_held_out=10, seed=4)
    rows = task.train + task.held_out
    assert len({row["prompt_id"] for row in rows}) == len({row["prompt"] for row in rows}) == 40
    assert rows == [*(again := make_task("gsm_symbolic", n_train=30, n_held_out=10, seed=4)).train, *again.held_out]
    right = [f"Let us think. 12 and 7. The answer is {row['answer']}." for row in rows]
    assert task.reward(right, rows) == [1.0] * 40
    assert task.reward(["I do not know", "", "<answer>-1</answer>"], rows[:3]) == [0.0] * 3
    assert not task.exact
    task.close()


def test_a_library_scorer_that_raises_gives_no_verdict() -> None:
    """reasoning-gym's prime_factorization raises on text that is no integer."""
    task = make_task("prime_factorization", n_train=3, n_held_out=1)
    assert task.reward(["two times three", task.train[1]["answer"]], task.train[:2]) == [None, 1.0]
    task.close()


@pytest.mark.parametrize(
    ("name", "hint"), [("gsm_symbolc", "Did you mean 'gsm_symbolic'"), ("no_module_here:x", "module:factory")]
)
def test_an_unknown_generator_is_refused(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        make_task(name, n_train=3, n_held_out=1)


@pytest.mark.parametrize(
    ("completion", "answer", "found"),
    [
        ("12 + 3 = 15", "15", "15"),
        ("It costs $1,250.00 in all, not 7.\nThe answer is 1,250.00.", "1250", "1250"),
        ("#### -4", "7", "-4"),
        (r"first \boxed{1} then \boxed{22}", "22", "22"),
        ("no digits at all", "3", "no digits at all"),
        ("  Paris ", "Paris", "Paris"),
        ("Answer: Paris", "Paris", "Paris"),
    ],
)
def test_the_final_answer_is_found(completion: str, answer: str, found: str) -> None:
    assert final_answer(completion, answer) == found
