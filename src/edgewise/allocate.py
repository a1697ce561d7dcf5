"""`edgewise allocate DATA`: how many samples each test prompt should get, so that most are solved within a budget.

What is known of a prompt comes from columns of the file: a predicted pass rate, or successes and trials of earlier samples, or
an embedding beside them (a regression then speaks for the prompts that were never sampled). With measured prompts at hand,
`--calibration` puts predicted rates right by bins.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgewise import allocation, data, foreign
from edgewise.allocation import Allocation, believed_gains, pass_gains
from edgewise.beliefs.features import PromptFeatures
from edgewise.beliefs.ridge import Ridge
from edgewise.beliefs.shared import Batch
from edgewise.calibration import Calibration
from edgewise.errors import ConfigError, PoolError, nearest
from edgewise.foreign import shown
from edgewise.lab.table import format_table
from edgewise.pool import ID_COLUMNS
from edgewise.rows import Table, open_table
from edgewise.types import Floats

RATE_COLUMNS = ("predicted_pass_rate", "pass_rate", "predicted")
"""Columns taken for a predicted pass rate, in this order, when none is named."""

_WORTH = 4.0  # samples that the regression's word is worth beside a prompt's own counts, as in the method gps
_CELLS = 200_000_000
_LONGEST = 1 << 24


@dataclass(kw_only=True)
class Report:
    """What was allocated. Means are over prompts; `solved` is the expected share solved at least once."""

    prompts: int
    known: str
    """What was known of the prompts, in words."""
    budget: int
    fewest: int
    most: int
    solved: float
    solved_uniform: float
    """The same budget, spread evenly."""
    samples: list[int]
    """Smallest, median and largest number of samples."""
    unsampled: int
    calibration: list[dict[str, float]]
    """One entry a bin: from which prediction on, and its measured pass rate."""
    file: str
    next: str


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of n prompts: rates taken for certain, or Beta beliefs."""

    words: str
    rates: Floats
    alpha: Floats | None = None
    beta: Floats | None = None
    from_predictions: bool = False

    def gains(self, most: int) -> Floats:
        """(n, most) marginal gains in pass@k."""
        if self.alpha is None or self.beta is None:
            return pass_gains(self.rates, most)
        return believed_gains(self.alpha, self.beta, most)


def read(path: str) -> Table:
    """A table of .jsonl, .json, .parquet, .csv or a saved data set. Numbers and lists in a .csv are read as such."""
    if Path(path).suffix != ".csv":
        return open_table(data.read(path))
    try:
        with foreign.opened(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            lines = iter(lambda: text.readline(_LONGEST), "")  # the longest that a field may be, and then csv refuses
            rows = [{str(name): _value(value) for name, value in row.items()} for row in csv.DictReader(lines)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise ConfigError(f"{path}: cannot be read as CSV ({why or error}).") from error
    return open_table(rows)


def _value(text: Any) -> Any:
    try:
        return json.loads(text) if text else None
    except (TypeError, ValueError, RecursionError):
        return text


def numbers(table: Table, column: str, path: str, *, low: float, high: float = math.inf, absent: float | None = None) -> Floats:
    """(n,) of a column. Raises PoolError for a value that is no number in range; a missing one becomes `absent`, or raises."""
    values = np.full(len(table), np.nan)
    wrong: list[tuple[int, Any]] = []
    for row, (value,) in enumerate(table.values(column)):
        value = absent if value is None else value
        if isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= min(high, 1e300):
            values[row] = value
        else:
            wrong.append((row, value))
    if wrong:
        upper = f" and at most {high:g}" if high < math.inf else ""
        raise PoolError(
            f"{path}: column {column!r} must hold numbers of at least {low:g}{upper}; row {wrong[0][0]} holds "
            f"{shown(wrong[0][1])} ({len(wrong):,} of {len(table):,} rows). Repair them, or name another column."
        )
    return values


def what_is_known(table: Table, args: argparse.Namespace) -> Known:
    """The best that the columns say. Raises ConfigError where they say nothing."""
    for option in ("rate", "successes", "trials", "embedding"):
        named = getattr(args, option)
        if named is not None:
            _require_column(table, named, f"--{option}", args.data)
    successes, trials = args.successes or "successes", args.trials or "trials"
    counted = {successes, trials} <= set(table.columns)
    if (args.successes or args.trials or args.embedding) and not counted:
        raise ConfigError(
            f"{args.data}: successes and trials belong together, and an embedding needs both to learn from; of the columns "
            f"{successes!r} and {trials!r} not both are there. Name them with --successes and --trials."
        )
    rate = args.rate or next((name for name in RATE_COLUMNS if name in table.columns), None)
    if counted and not args.rate:
        n = numbers(table, trials, args.data, low=0.0, absent=0.0)
        k = numbers(table, successes, args.data, low=0.0, absent=0.0)
        if (k > n).any():
            row = int(np.flatnonzero(k > n)[0])
            raise PoolError(f"{args.data}: row {row} has more successes ({k[row]:g}) than trials ({n[row]:g}).")
        prior, words = np.full(len(table), 0.5), "counts"
        worth = 2.0  # Beta(1, 1)
        if args.embedding:
            prior, worth = _regression(_vectors(table, args.embedding, args.data), k, n), _WORTH
            words = f"a regression on {args.embedding!r} and counts"
        alpha, beta = worth * prior + k, worth * (1.0 - prior) + n - k
        return Known(words=words, rates=alpha / (alpha + beta), alpha=alpha, beta=beta)
    if rate is None:
        raise ConfigError(
            f"{args.data}: nothing is known of these prompts. Give a column of predicted rates ({', '.join(RATE_COLUMNS)}, "
            f"or --rate NAME), or of successes and trials. It has: {', '.join(table.columns) or 'none'}."
        )
    return Known(words=f"column {rate!r}", rates=numbers(table, rate, args.data, low=0.0, high=1.0), from_predictions=True)


def _require_column(table: Table, name: str, option: str, path: str) -> None:
    if name not in table.columns:
        raise ConfigError(f"{path}: there is no column {name!r} ({option}).{nearest(name, table.columns)}")


def _vectors(table: Table, column: str, path: str) -> Floats:
    rows = [value for (value,) in table.values(column)]
    try:
        vectors = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        vectors = np.empty(0)
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise PoolError(f"{path}: column {column!r} must hold lists of finite numbers, all of one length, one a row.")
    return vectors


def _regression(vectors: Floats, successes: Floats, trials: Floats) -> Floats:
    """(n,) pass rates of a ridge regression on z-scored embeddings, learned from the rows that were sampled."""
    features = PromptFeatures.of(vectors)
    seen = np.flatnonzero(trials > 0)
    if len(seen) == 0:
        return np.full(len(vectors), 0.5)
    model = Ridge()
    model.start(vectors.shape[1], np.random.default_rng(0))
    rates = successes[seen] / trials[seen]
    model.add(Batch(features=features.scored(seen), rates=rates, weights=trials[seen] / trials.max()))
    return model.predict(features.scored(slice(None)))[0]


def calibrated(known: Known, args: argparse.Namespace) -> tuple[Known, list[dict[str, float]]]:
    """Predicted rates put right by the measured prompts of --calibration, and the bins."""
    if not args.calibration:
        return known, []
    if not known.from_predictions:
        raise ConfigError(
            f"--calibration corrects predicted pass rates, and here {known.words} are used. Leave it out, or name --rate."
        )
    path, table = args.calibration, read(args.calibration)
    rate = args.rate or next((name for name in RATE_COLUMNS if name in table.columns), RATE_COLUMNS[0])
    successes, trials = args.successes or "successes", args.trials or "trials"
    for name, option in ((rate, "--rate"), (successes, "--successes"), (trials, "--trials")):
        _require_column(table, name, option, path)
    n = numbers(table, trials, path, low=0.0, absent=0.0)
    k, g = numbers(table, successes, path, low=0.0, absent=0.0), numbers(table, rate, path, low=0.0, high=1.0)
    some = n > 0
    fit = Calibration.fit(g[some], k[some], n[some], args.bins)
    bins = [{"from": float(edge), "pass_rate": float(p)} for edge, p in zip([0.0, *fit.edges.tolist()], fit.rates, strict=True)]
    words = f"{known.words}, calibrated on {int(some.sum()):,} prompts"
    return Known(words=words, rates=fit(known.rates), from_predictions=True), bins


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edgewise allocate`."""
    parser.add_argument("data", metavar="DATA", help="a .jsonl, .json, .csv or .parquet file, one test prompt a row")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--budget", type=int, metavar="N", help="samples in all")
    size.add_argument("--each", type=int, metavar="K", help="samples per prompt on average")
    size.add_argument("--match", type=int, metavar="K", help="as few samples as solve what K of every prompt would")
    parser.add_argument("--min", type=int, default=1, metavar="N", help="fewest samples of a prompt (default: 1)")
    parser.add_argument("--max", type=int, default=64, metavar="N", help="most samples of a prompt (default: 64)")
    parser.add_argument("--rate", metavar="COLUMN", help=f"predicted pass rates (default: {', '.join(RATE_COLUMNS)})")
    parser.add_argument("--successes", metavar="COLUMN", help="successes of earlier samples (default: successes)")
    parser.add_argument("--trials", metavar="COLUMN", help="earlier samples (default: trials)")
    parser.add_argument("--embedding", metavar="COLUMN", help="vectors from which to predict prompts without samples")
    parser.add_argument("--calibration", metavar="FILE", help="prompts with predicted rates, successes and trials")
    parser.add_argument("--bins", type=int, default=8, metavar="N", help="bins of the calibration (default: 8)")
    parser.add_argument("--out", metavar="FILE", help="where to write (default: DATA with .samples.jsonl)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Allocate, write, and print. Returns 0."""
    for name, least in (("min", 0), ("max", max(1, args.min)), ("bins", 1), ("budget", 0), ("each", 0), ("match", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f"edgewise allocate --{name} must be at least {least}, got {value}.")
    out = Path(args.out) if args.out else Path(args.data).with_suffix(".samples.jsonl")
    if out.exists() and out.resolve() in {Path(p).resolve() for p in (args.data, args.calibration) if p}:
        raise ConfigError(f"edgewise allocate --out {out}: that is a file it reads. Name another.")
    table = read(args.data)
    if len(table) == 0:
        raise PoolError(f"{args.data} holds no prompts.")
    if len(table) * args.max > _CELLS:
        raise ConfigError(
            f"edgewise allocate --max {args.max}: too many for {len(table):,} prompts. Lower it, or split the file."
        )
    known, bins = calibrated(what_is_known(table, args), args)
    gains = known.gains(args.max)
    budget = args.budget if args.budget is not None else len(table) * args.each if args.each is not None else None
    if budget is None:
        budget = allocation.budget_to_match(gains, args.match, args.min, args.max)
    found = allocation.allocate(gains, budget, args.min, args.max)
    even = allocation.uniform(gains, budget, args.max)
    _write(out, table, known, found)
    quoted = shlex.quote(args.data)
    following = f"head -n 3 {shlex.quote(str(out))}"
    if known.from_predictions and not bins:
        following = f"edgewise allocate {quoted} --budget {budget} --calibration MEASURED.jsonl   (do the rates come true?)"
    report = Report(
        prompts=len(table), known=known.words, budget=budget, fewest=args.min, most=args.max,
        solved=float(found.solved.mean()), solved_uniform=float(even.solved.mean()),
        samples=[int(found.samples.min()), int(np.median(found.samples)), int(found.samples.max())],
        unsampled=int((found.samples == 0).sum()), calibration=bins, file=str(out), next=following,
    )  # fmt: skip
    print(json.dumps(asdict(report), indent=2) if args.json else render(report))
    return 0


def _write(out: Path, table: Table, known: Known, found: Allocation) -> None:
    """One line a prompt, in the order of the file."""
    names = [name for name in ID_COLUMNS if name in table.columns][:1]
    ids: Sequence[Any] = [value for (value,) in table.values(*names)] if names else range(len(table))
    try:
        with out.open("w", encoding="utf-8") as file:
            for row, prompt_id in enumerate(ids):
                line = {
                    "id": prompt_id,
                    "samples": int(found.samples[row]),
                    "pass_rate": round(float(known.rates[row]), 6),
                    "solved": round(float(found.solved[row]), 6),
                }
                file.write(json.dumps(line, default=str) + "\n")
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror or error}). Name another file with --out.") from error


def render(report: Report) -> str:
    """The report as aligned text."""
    smallest, median, largest = report.samples
    lines = [
        ["prompts", f"{report.prompts:,}"],
        ["known", report.known],
        ["budget", f"{report.budget:,} samples, {report.budget / report.prompts:.2f} a prompt"],
        ["samples", f"{smallest:,} to {largest:,}, median {median:,}; allowed {report.fewest:,} to {report.most:,}"],
        ["solved", f"{report.solved:.4f} expected, {report.solved_uniform:.4f} if spread evenly"],
    ]
    if report.unsampled:
        lines.append(["left out", f"{report.unsampled:,} prompts get no sample"])
    lines += [["bin", f"predicted from {b['from']:.3f}: measured {b['pass_rate']:.3f}"] for b in report.calibration]
    return "\n".join([format_table(["", ""], lines).lstrip("\n"), f"file: {report.file}", f"next: {report.next}"])
