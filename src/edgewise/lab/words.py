"""Prompts from the generators of a task library (reasoning-gym), with its scorers behind a process boundary.

The library's scorers are other people's code: one raises on text that is no integer, a hostile answer can cost minutes, and a
wrong answer may still score above 0. So they run in a worker process with a time limit. Only full marks are a pass; a scorer
that raises, dies or takes too long gives no verdict (None, which a trainer counts as missing), never a zero.

    task = make_task("gsm_symbolic", n_train=1000)
    task.reward(["The answer is 288."], [task.train[0]])        # -> [1.0], [0.0] or [None]
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any

from edgewise.errors import ConfigError, nearest
from edgewise.lab.task import Row

TIMEOUT_S = 2.0
"""Longest time one answer may take to score."""
START_S = 60.0
"""Longest time a worker may take to import the library."""


class WordTask:
    """Prompts of one generator; its scorer decides who passes. Made by `make_task`."""

    exact = False

    def __init__(
        self, name: str, *, n_train: int, n_held_out: int, seed: int, max_completion_tokens: int, timeout_s: float
    ) -> None:
        n = n_train + n_held_out
        # Generators repeat themselves: ask for more than needed, twice as much each time, until enough are distinct.
        for size in (2 * n, 4 * n, 8 * n):
            entries = _distinct_entries(name, size, seed)
            if len(entries) >= n:
                break
        else:
            raise ConfigError(
                f"make_task({name!r}): only {len(entries)} distinct questions among {size}, {n} are needed. "
                "Ask for a smaller n_train or n_held_out."
            )
        rows = [_row(name, entry) for _, entry in entries[:n]]
        self.name = name
        self.max_completion_tokens = max_completion_tokens
        self.train, self.held_out = rows[:n_train], rows[n_train:]
        self._index = {row["prompt_id"]: index for row, (index, _) in zip(rows, entries, strict=False)}
        self._scorer = Scorer(name, size=size, seed=seed, timeout_s=timeout_s)

    def reward(self, completions: Sequence[str], rows: Sequence[Row]) -> list[float | None]:
        """1.0 where the answer found in the completion gets full marks, 0.0 below, None without a verdict."""
        verdicts: dict[tuple[int, str], float | None] = {}
        rewards = []
        for completion, row in zip(completions, rows, strict=True):
            key = self._index[row["prompt_id"]], final_answer(completion, row["answer"])
            if key not in verdicts:  # rollouts of a group often agree
                score = self._scorer.score(*key)
                verdicts[key] = None if score is None else float(score >= 1.0)
            rewards.append(verdicts[key])
        return rewards

    def close(self) -> None:
        """End the scorer's process; a later `reward` starts another."""
        self._scorer.close()


def make_task(
    name: str = "gsm_symbolic",
    *,
    n_train: int = 1000,
    n_held_out: int = 100,
    seed: int = 0,
    max_completion_tokens: int = 256,
    timeout_s: float = TIMEOUT_S,
) -> WordTask:
    """A task from a reasoning-gym generator, questions distinct, training and held-out disjoint.

    name: a generator of reasoning-gym, or ``module:factory`` where ``factory(size=..., seed=...)`` gives an object like one:
        ``len``, ``[index] -> {"question": str, "answer": str, ...}`` and ``score_answer(answer, entry) -> float``.
    timeout_s: longest time one answer may take to score, in seconds.
    """
    return WordTask(
        name,
        n_train=n_train,
        n_held_out=n_held_out,
        seed=seed,
        max_completion_tokens=max_completion_tokens,
        timeout_s=timeout_s,
    )


_MARKED = re.compile(
    r"<answer>(.*?)</answer>|\\boxed\{([^{}]*)\}|####\s*([^\n]+)|answer(?: is|:)\s*\**\s*([^\n]+)",
    re.IGNORECASE | re.DOTALL,
)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def final_answer(completion: str, answer: str) -> str:
    r"""The part of a completion that is meant as its answer.

    The last marked answer (``<answer>``, ``\boxed{}``, ``####``, "the answer is"), else the whole text. Where the right
    `answer` is a number, the last number of that; thousands commas and a trailing ".0" are not held against it.

    >>> final_answer("3 apples and 4 pears make 1,007 fruits.", "1007")
    '1007'
    >>> final_answer("So... <answer> yes </answer>", "no")
    'yes'
    """
    marked = [next(part for part in match.groups() if part is not None) for match in _MARKED.finditer(completion)]
    text = (marked[-1] if marked else completion).strip()
    if not _NUMBER.fullmatch(answer):
        return text
    numbers = _NUMBER.findall(text) or _NUMBER.findall(completion)
    return re.sub(r"\.0+$", "", numbers[-1].replace(",", "")) if numbers else text


class Scorer:
    """A generator's `score_answer` in a process of its own. One question at a time; not for several threads."""

    def __init__(self, name: str, *, size: int, seed: int, timeout_s: float = TIMEOUT_S) -> None:
        self._arguments = json.dumps({"name": name, "size": size, "seed": seed})
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def score(self, index: int, answer: str) -> float | None:
        """Score of an answer to question `index`; None if the scorer raised, died or took too long."""
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"index": index, "answer": answer}) + "\n")
            process.stdin.flush()
            line = self._lines.get(timeout=self._timeout_s)
        except (OSError, queue.Empty):
            line = ""
        if not line:
            self.close()
            return None
        try:
            score = json.loads(line)
            return None if score is None else float(score)
        except (ValueError, TypeError, RecursionError):  # the scorer wrote into the answers, past Python
            self.close()
            return None

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            # A process of its own with plain text between, not multiprocessing: no pickle, and nothing of the caller's
            # main module is run again. It ends with the pipe, so also when the caller is killed.
            command = [sys.executable, "-m", "edgewise.lab.words", self._arguments]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self._lines = queue.SimpleQueue()
            threading.Thread(target=_pass_on, args=(self._process.stdout, self._lines), daemon=True).start()
            try:
                ready = self._lines.get(timeout=START_S)
            except queue.Empty:
                ready = ""
            if not ready:
                self.close()
                raise ConfigError(f"The scorer's process did not start: {' '.join(command)!r} says why on its own.")
        return self._process

    def __del__(self) -> None:
        self.close()


_LONGEST = 1 << 16
"""Characters of an answer; a scorer that prints without end is not kept in memory."""


def _pass_on(stream: IO[str], lines: queue.SimpleQueue[str]) -> None:
    """Hand every line of the worker to the queue, and an empty one when it has died."""
    with contextlib.suppress(ValueError, OSError):  # closed by `close`
        while line := stream.readline(_LONGEST):
            lines.put(line)
    lines.put("")


def _generator(name: str, size: int, seed: int) -> Any:
    """The generator object, from reasoning-gym or from ``module:factory``."""
    module, _, factory = name.partition(":")
    if factory:
        try:
            return getattr(importlib.import_module(module), factory)(size=size, seed=seed)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"make_task({name!r}): there is no such generator ({error}). Give module:factory.") from error
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ConfigError("Word problems come from reasoning-gym, which is not installed. pip install reasoning-gym") from error
    if name not in DATASETS:
        raise ConfigError(
            f"make_task(name=...) must be `arithmetic`, a generator of reasoning-gym (gsm_symbolic, chain_sum, ...) or "
            f"module:factory, got {name!r}.{nearest(name, DATASETS)}"
        )
    return reasoning_gym.create_dataset(name, size=size, seed=seed)


def _distinct_entries(name: str, size: int, seed: int) -> list[tuple[int, dict[str, Any]]]:
    """(index, entry) of the first occurrence of every question that has one right answer as text."""
    generator = _generator(name, size, seed)
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    for index in range(size):
        entry = generator[index]
        if isinstance(entry.get("answer"), str):
            found.setdefault(entry["question"], (index, entry))
    if not found:
        raise ConfigError(f"make_task({name!r}): its questions have no single answer as text. Choose another generator.")
    return list(found.values())


def _row(name: str, entry: dict[str, Any]) -> dict[str, str]:
    fingerprint = hashlib.sha256(entry["question"].encode()).hexdigest()[:12]
    return {"prompt": entry["question"], "prompt_id": f"{name}-{fingerprint}", "answer": entry["answer"], "kind": name}


def _serve() -> None:
    """The worker: one JSON question a line in, one score or null a line out, until the pipe closes."""
    answers, sys.stdout = sys.stdout, sys.stderr  # a scorer that prints must not write into the answers
    generator = _generator(**json.loads(sys.argv[1]))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        score: float | None
        try:
            score = float(generator.score_answer(question["answer"], generator[question["index"]]))
        except Exception:
            score = None
        print(json.dumps(score), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
