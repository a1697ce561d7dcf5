"""Verifiable arithmetic of graded difficulty: a task so small that every pass rate can be known exactly.

A problem is a short line such as ``037+485=`` with the answer ``2250`` (522, padded to four digits and written from the last
digit on, the order in which a person carries). Operands are zero-padded to the width of their kind. The answer string of a
prompt is unique, so the pass probability of a policy is the product of a few token probabilities (`edgewise.lab.exact`) and
nothing on this bed has to be estimated.

Difficulty is graded. Some digits of a sum or difference are *tricky*: a fixed table gives each column a grade from 0 to 3 by
its upper digit, the teacher of the warm-up slips there accordingly, and a prompt is about as hard as its trickiest column.
What RL removes are those slips, digit by digit: a prompt that never passes today may be at the edge tomorrow. A share of each
pool (``mul22``, ``mod43``, ``addmod3``) is beyond so small a policy for good.

Pools are mixtures of kinds with fixed shares; no prompt is chosen by how the policy fares on it. Whether a prompt is held out
is a property of its text (`held_out`), the same for every seed, pool and size: a policy warmed up on one side has never seen a
prompt of the other.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgewise.errors import ConfigError, nearest
from edgewise.types import Ints

CHARACTERS = "0123456789+-*%()="
MAX_COMPLETION_TOKENS = 8
"""Six answer digits, the end token, and one more: an answer that has not ended by then is wrong anyway."""

Operation = Literal["add", "sub", "mul", "mod", "addmod"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One prompt with its only right answer.

    prompt: ends with "=".  answer: digits from the last to the first.  kind: name of the `Kind` that made it, and for sums and
    differences the worst grade among its columns, as in "add3/2".  grades: one a column, last digit first; empty elsewhere.
    """

    prompt: str
    answer: str
    kind: str
    grades: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A family of problems of about one difficulty: an operation on operands of given widths.

    widths: digits of each operand; leading zeros included.  answer_digits: width to which the answer is padded, <= 6.
    """

    operation: Operation
    widths: tuple[int, ...]
    answer_digits: int

    def draw(self, rng: np.random.Generator, n: int) -> Ints:
        """Operands of n problems, uniform over the values of their widths. Returns (n, len(widths)); rows may repeat."""
        operands = np.stack([rng.integers(0, 10**width, size=n) for width in self.widths], axis=1)
        if self.operation == "sub":
            operands = -np.sort(-operands, axis=1)  # larger first: no negative answers
        if self.operation in ("mod", "addmod"):
            operands[:, -1] = 2 + operands[:, -1] % (10 ** self.widths[-1] - 2)  # moduli 0 and 1 teach nothing
        return operands

    def prompt(self, operands: Ints) -> str:
        """The line that ends with "=".

        >>> Kind(operation="addmod", widths=(2, 2, 1), answer_digits=1).prompt(np.array([7, 35, 8]))
        '(07+35)%8='
        """
        a, *rest = (str(value).zfill(width) for value, width in zip(operands.tolist(), self.widths, strict=True))
        if self.operation == "addmod":
            return f"({a}+{rest[0]})%{rest[1]}="
        sign = {"add": "+", "sub": "-", "mul": "*", "mod": "%"}[self.operation]
        return f"{a}{sign}{rest[0]}="

    def answer(self, operands: Ints) -> str:
        """The padded answer, last digit first.

        >>> Kind(operation="add", widths=(3, 3), answer_digits=4).answer(np.array([37, 485]))
        '2250'
        """
        a, b, *rest = operands.tolist()
        results = {"add": a + b, "sub": a - b, "mul": a * b, "mod": a % max(b, 1), "addmod": (a + b) % max([*rest, 1])}
        return str(results[self.operation]).zfill(self.answer_digits)[::-1]

    def grades(self, operands: Ints) -> tuple[int, ...]:
        """How tricky each column of a sum or difference is, last digit first; empty for other operations."""
        if self.operation not in ("add", "sub"):
            return ()
        return tuple(grade(self.operation, digit) for digit in str(operands[0]).zfill(self.widths[0])[::-1])

    def problems(self, name: str, rng: np.random.Generator) -> Iterator[Problem]:
        """An endless stream of problems, repeats included."""
        while True:
            for operands in self.draw(rng, 64):
                grades = self.grades(operands)
                kind = f"{name}/{max(grades)}" if grades else name
                yield Problem(self.prompt(operands), self.answer(operands), kind, grades)


TRICKY = {"add": "0000112233", "sub": "3201003102"}
"""Grade of a column by its upper digit 0 to 9, for sums and differences."""


def grade(operation: str, upper: str) -> int:
    """How tricky a column is, from 0 (plain) to 3, by the digit of its first operand.

    >>> [grade("add", str(digit)) for digit in range(10)]
    [0, 0, 0, 0, 1, 1, 2, 2, 3, 3]
    """
    return int(TRICKY[operation][int(upper)])


KINDS: dict[str, Kind] = {
    "add1": Kind(operation="add", widths=(1, 1), answer_digits=2),
    "add2": Kind(operation="add", widths=(2, 2), answer_digits=3),
    "add3": Kind(operation="add", widths=(3, 3), answer_digits=4),
    "sub1": Kind(operation="sub", widths=(1, 1), answer_digits=1),
    "sub2": Kind(operation="sub", widths=(2, 2), answer_digits=2),
    "sub3": Kind(operation="sub", widths=(3, 3), answer_digits=3),
    "mul11": Kind(operation="mul", widths=(1, 1), answer_digits=2),
    "mul21": Kind(operation="mul", widths=(2, 1), answer_digits=3),
    "mul22": Kind(operation="mul", widths=(2, 2), answer_digits=4),
    "mod21": Kind(operation="mod", widths=(2, 1), answer_digits=1),
    "mod43": Kind(operation="mod", widths=(4, 3), answer_digits=3),
    "addmod1": Kind(operation="addmod", widths=(1, 1, 1), answer_digits=1),
    "addmod3": Kind(operation="addmod", widths=(3, 3, 3), answer_digits=3),
}
"""Every kind by name: operation, then digits (``mul21`` is a two-digit number times a one-digit number)."""

POOLS: dict[str, dict[str, float]] = {
    "wasteful": {
        "add2/0": 0.09, "sub2/0": 0.09, "add3/0": 0.08, "sub3/0": 0.08, "mul11": 0.02,
        "add2/1": 0.02, "sub2/1": 0.02, "add3/1": 0.03, "sub3/1": 0.03,
        "add2/2": 0.03, "sub2/2": 0.03, "add3/2": 0.03, "sub3/2": 0.03, "mul21": 0.02, "mod21": 0.01, "addmod1": 0.01,
        "add2/3": 0.05, "sub2/3": 0.05, "add3/3": 0.08, "sub3/3": 0.08,
        "mul22": 0.04, "mod43": 0.04, "addmod3": 0.04,
    },
    "balanced": {
        "add2/0": 0.03, "sub2/0": 0.03, "add3/0": 0.02, "sub3/0": 0.02, "mul11": 0.02,
        "add2/1": 0.08, "sub2/1": 0.08, "add3/1": 0.14, "sub3/1": 0.14,
        "add2/2": 0.07, "sub2/2": 0.07, "add3/2": 0.07, "sub3/2": 0.07, "mul21": 0.02, "mod21": 0.02, "addmod1": 0.02,
        "add2/3": 0.02, "sub2/3": 0.02, "add3/3": 0.02, "sub3/3": 0.02,
        "mul22": 0.01, "mod43": 0.005, "addmod3": 0.005,
    },
}  # fmt: skip
"""Share of each kind in each pool."""


def held_out(prompt: str) -> bool:
    """Whether a prompt is kept from all training: one in five, by its text alone."""
    return zlib.crc32(prompt.encode()) % 5 == 0


def make_pool(
    name: str = "wasteful", n_train: int = 2400, n_held_out: int = 480, seed: int = 0
) -> tuple[list[Problem], list[Problem]]:
    """Distinct training and held-out problems in the shares of `POOLS[name]`, in shuffled order.

    The same arguments give the same problems everywhere. Raises ConfigError for an unknown pool, or when a kind has not enough
    distinct problems for its share.
    """
    if name not in POOLS:
        raise ConfigError(f"make_pool(name=...) must be one of {', '.join(POOLS)}, got {name!r}.{nearest(name, POOLS)}")
    train: list[Problem] = []
    held: list[Problem] = []
    shares = POOLS[name]
    for kind, n_kind, n_kind_held in zip(shares, _split(n_train, shares), _split(n_held_out, shares), strict=True):
        rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
        left = {False: n_kind, True: n_kind_held}
        seen: set[str] = set()
        base = kind.partition("/")[0]
        for attempt, problem in enumerate(KINDS[base].problems(base, rng)):
            if not any(left.values()):
                break
            if attempt >= 200 * (n_kind + n_kind_held) + 10_000:
                raise ConfigError(
                    f"make_pool({name!r}): {kind} has too few distinct problems for {n_kind} training and {n_kind_held} "
                    "held-out prompts. Ask for a smaller n_train or n_held_out."
                )
            side = held_out(problem.prompt)
            if left[side] and problem.kind == kind and problem.prompt not in seen:
                seen.add(problem.prompt)
                left[side] -= 1
                (held if side else train).append(problem)
    order = np.random.default_rng([seed, zlib.crc32(b"order")])
    return [train[i] for i in order.permutation(len(train))], [held[i] for i in order.permutation(len(held))]


def _split(total: int, shares: dict[str, float]) -> list[int]:
    """Whole numbers in proportion to `shares` that add up to `total` (largest remainders get the rest)."""
    weights = np.array(list(shares.values())) / sum(shares.values())
    counts = np.floor(weights * total).astype(int)
    remainders = weights * total - counts
    counts[np.argsort(-remainders, kind="stable")[: total - counts.sum()]] += 1
    return [int(count) for count in counts]
