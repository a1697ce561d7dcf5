"""The loop every host drives: tickets out, outcomes in, one transaction a step.

    selector = edgewise.Selector("hive", pool, batch_size=256, group_size=8, seed=0, directory="run/selector")
    with selector.step(policy_version=k) as step:
        for batch in step.requests(signals):          # ends when the training batch is full; top-ups included
            step.report(rollout(batch))               # rewards per ticket; ragged and failed rollouts allowed
        train(step.training_batch)                    # leaving the block commits; an exception rolls the step back

Streaming hosts call `take` and `report` on the same state. All randomness is derived from (seed, step, round, purpose);
what is saved is arrays and a header (`state.py`).
"""

from __future__ import annotations

import os
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np

from edgewise import kinds, outcomes, state
from edgewise._version import __version__
from edgewise.errors import (
    ConfigError,
    DegradedWarning,
    EdgewiseError,
    HostError,
    MethodError,
    OutcomeError,
    ShortfallError,
    SignalError,
    StateError,
)
from edgewise.method import Method
from edgewise.methods import make, methods_without
from edgewise.metrics import EntropyPremise, StepMetrics
from edgewise.pool import PromptPool
from edgewise.stream import PromptStream, derived_rng
from edgewise.types import (
    PROMPT_ENTROPY,
    ROLLOUT_SIGNALS,
    Array,
    Bools,
    Floats,
    Groups,
    Ints,
    MethodState,
    Outcome,
    Requests,
    Setting,
    Signal,
    Ticket,
    Verdicts,
)

Signals = Mapping[Signal, Callable[[Ints], Any]]
"""Name -> function from (n,) pool rows to (n,) numbers, computed with the current policy."""

_STATE_FILE = "selector-{step:09d}.safetensors"


class Judged(NamedTuple):
    """What became of reported groups: the checked groups and the method's verdicts on them, one each."""

    groups: Groups
    verdicts: Verdicts


class Selector:
    """Chooses prompts for one run and keeps what was learned. One writer; not thread-safe.

    Args:
        method: a name that `edgewise methods` lists, or a `Method`.
        pool: the prompts, as a `PromptPool`, or anything `PromptPool.from_dataset` takes.
        batch_size: groups in one training batch, >= 1.
        group_size: rollouts a group, >= 1.
        seed: of the prompt order and of every draw, >= 0.
        parameters: hyper-parameters for a method given by name.
        directory: where to keep the state; every commit writes it, and the two newest are kept. None: nothing is written
            unless `save` is called (a trainer's own checkpoints carry the state in `edgewise.hosts`).
        resume: "auto" continues from the newest readable state in `directory`; "fresh" sets older ones aside.
        on_problem: "degrade" (a failing method falls back to uniform for the round, one warning, a metric) or "strict" (raise).
        correct_at: a reward from here on counts as correct where the host reports no `correct`; only for metrics.

    Raises:
        ConfigError, PoolError: before anything ran.
        StateError: `directory` holds states but none can be used.
    """

    def __init__(
        self,
        method: str | Method,
        pool: PromptPool | Iterable[Mapping[str, Any]],
        *,
        batch_size: int,
        group_size: int,
        seed: int = 0,
        parameters: Mapping[str, Any] | None = None,
        directory: str | os.PathLike[str] | None = None,
        resume: Literal["auto", "fresh"] = "auto",
        on_problem: Literal["degrade", "strict"] = "degrade",
        correct_at: float = 0.5,
    ) -> None:
        _require_count("batch_size", batch_size)
        _require_count("group_size", group_size)
        if not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ConfigError(f"Selector(seed=...) must be a whole number >= 0, got {seed!r}.")
        if on_problem not in ("degrade", "strict"):
            raise ConfigError(f"Selector(on_problem=...) must be 'degrade' or 'strict', got {on_problem!r}.")
        if resume not in ("auto", "fresh"):
            raise ConfigError(f"Selector(resume=...) must be 'auto' or 'fresh', got {resume!r}.")
        self.method = make(method, **dict(parameters or {}))
        self.pool = pool if isinstance(pool, PromptPool) else PromptPool.from_dataset(pool)
        self.batch_size = int(batch_size)
        self.group_size = int(group_size)
        self.seed = int(seed)
        self.strict = on_problem == "strict"
        self.correct_at = correct_at
        self.directory = Path(directory) if directory is not None else None
        self.run_id = uuid.uuid4().hex
        self.metrics: dict[str, float] = {}
        """Numbers of the last committed step (or of the calls since the last `commit`, when streaming)."""

        size = len(self.pool)
        self.method.start(Setting(pool_size=size, batch_size=self.batch_size, group_size=self.group_size))
        self._stream = PromptStream(size, self.seed)
        self._blocked: Bools = np.zeros(size, dtype=np.bool_)  # in flight, or offered in the open step
        self._open: dict[int, Ticket] = {}
        self._reissue: list[Ticket] = []
        self._next_seq = 0
        self._number = 0
        self._totals = {"rollouts_total": 0.0, "tokens_total": 0.0, "dup_outcomes": 0.0, "degraded_total": 0.0}
        self._premise = EntropyPremise()
        self._current: Step | None = None
        self._streaming = _Stage(self, streaming=True)
        self._warned: set[str] = set()
        if self.directory is not None:
            self._open_directory(self.directory, resume)

    # -- synchronous hosts ---------------------------------------------------------------------------------------------

    def step(self, *, policy_version: int) -> Step:
        """One training step as a context manager. Leaving it commits; an exception rolls it back."""
        if self._current is not None:
            raise ConfigError("Selector.step(): the previous step is still open; leave its `with` block first.")
        return Step(self, policy_version)

    @property
    def step_number(self) -> int:
        """Steps committed so far (streaming: calls of `take`)."""
        return self._number

    @property
    def in_flight(self) -> list[Ticket]:
        """Tickets issued and not yet reported, oldest first."""
        return [self._open[seq] for seq in sorted(self._open)]

    def check_signals(self, served: Iterable[Signal]) -> None:
        """Raise HostError unless every signal the method needs is among those served."""
        missing = sorted(self.method.needs - set(served))
        if missing:
            without = ", ".join(methods_without(missing)) or "none"
            raise HostError(
                f"The method {self.method.name!r} needs the signal{'s' * (len(missing) > 1)} {', '.join(missing)}, which this host "
                f"does not serve. Serve it, or use a method that does without: {without}."
            )

    # -- streaming hosts -----------------------------------------------------------------------------------------------

    def take(self, n: int, *, signals: Signals | None = None, policy_version: int = 0) -> list[Ticket]:
        """At most `n` new tickets for an asynchronous host. After a resume, tickets that were in flight come first.

        Shorter than `n` (down to empty) only if every prompt is in flight or the method proposes fewer.
        """
        if self._current is not None:
            raise ConfigError("Selector.take(): a step is open; a run uses either `step` or `take`, not both at once.")
        _require_count("n", n, "take")
        again, self._reissue = self._reissue[:n], self._reissue[n:]
        tickets = [t for t in again if t.seq in self._open]
        if len(tickets) < n:
            self.check_signals({*(signals or {}), *ROLLOUT_SIGNALS})
            stage = self._streaming
            stage.begin(self._number, policy_version, signals or {})
            tickets += stage.issue(stage.propose(n - len(tickets), shortfall=n - len(tickets)))
            stage.release_unissued()
            self._number += 1
        return tickets

    def report(self, reported: Sequence[Outcome]) -> Judged:
        """Outcomes of tickets from `take`, in any order, in any number of calls. Each counts once.

        Returns the groups that counted and the verdicts on them; repeated and unknown tickets are counted, nothing more.
        """
        if self._current is not None:
            raise ConfigError("Selector.report(): a step is open; report to the step instead.")
        stage = self._streaming
        judged = stage.settle(stage.accept(reported))
        self.metrics = stage.close()
        return judged

    def commit(self) -> None:
        """Write the state to `directory`, for streaming hosts; steps commit by themselves."""
        if self.directory is not None:
            self._autosave()

    # -- state ---------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write everything to one file, atomically. Returns its bytes. Raises OSError, and ConfigError inside a step."""
        if self._current is not None:
            raise ConfigError("Selector.save(): a step is open; save between steps (a step commits when its block ends).")
        held = self.method.state()
        arrays: dict[str, Array] = {f"method/prompts/{k}": v for k, v in held.prompts.items()}
        arrays |= {f"method/shared/{k}": np.asarray(v) for k, v in held.shared.items()}
        arrays |= {f"selector/{k}": v for k, v in self._premise.arrays().items()}
        header = {
            "edgewise": __version__,
            "numpy": np.__version__,
            "run_id": self.run_id,
            "identity": self._identity(),
            "batch_size": self.batch_size,
            "step": self._number,
            "position": self._stream.position,
            "next_seq": self._next_seq,
            "totals": self._totals,
            "metrics": self.metrics,
            "in_flight": [asdict(t) for t in self.in_flight],
        }
        return state.save(path, header, arrays)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Become exactly the selector that wrote `path`. Nothing changes if it cannot be used.

        Tickets that were in flight are handed out again first by `take`; a synchronous step that was cut off is simply
        done again, with the same prompts. Raises StateError and its children.
        """
        header, arrays = state.load(path)
        state.require_same(header.get("identity", {}), self._identity(), f"The saved state {path}")
        if header["numpy"].split(".")[0] != np.__version__.split(".")[0]:
            self._warn(f"The state was saved under numpy {header['numpy']}, this is {np.__version__}: draws may differ.")
        if header["batch_size"] != self.batch_size:
            self._warn(f"batch_size was {header['batch_size']} and is {self.batch_size} now: the next batches will differ.")
        try:
            self.method.restore(
                MethodState(
                    prompts={k.removeprefix("method/prompts/"): v for k, v in arrays.items() if k.startswith("method/prompts/")},
                    shared={k.removeprefix("method/shared/"): v for k, v in arrays.items() if k.startswith("method/shared/")},
                )
            )
            self._premise.restore({k.removeprefix("selector/"): v for k, v in arrays.items() if k.startswith("selector/")})
            tickets = [Ticket(**t) for t in header["in_flight"]]
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"{path} lacks something this method keeps: {error!r}. Use a state that it wrote.") from error
        self.run_id = header["run_id"]
        self._number = header["step"]
        self._stream.position = header["position"]
        self._next_seq = header["next_seq"]
        self._totals = dict(header["totals"])
        self.metrics = dict(header["metrics"])
        self._open = {t.seq: t for t in tickets}
        self._reissue = list(tickets)
        self._blocked[:] = False
        self._blocked[[t.row for t in tickets]] = True

    def _identity(self) -> dict[str, Any]:
        """What must be equal between a saved state and this run."""
        return {
            "method": self.method.name,
            "parameters": self.method.parameters(),
            "pool_digest": self.pool.digest,
            "pool_size": len(self.pool),
            "group_size": self.group_size,
            "seed": self.seed,
        }

    def _open_directory(self, directory: Path, resume: str) -> None:
        found = sorted(directory.glob("selector-*.safetensors"), reverse=True) if directory.is_dir() else []
        if resume == "fresh":
            for file in found:
                file.rename(file.with_suffix(".superseded"))
            return
        broken: list[str] = []
        for file in found:
            try:
                self.restore(file)
            except state.StateMismatchError:
                raise
            except StateError as error:
                broken.append(str(error))
                continue
            for message in broken:
                self._warn(f"{message} Continuing from {file.name} instead: the steps after {self._number} are lost.")
            return
        if broken:
            raise StateError("No readable state among the saved ones:\n  " + "\n  ".join(broken) + "\nresume='fresh' starts anew.")

    def _autosave(self) -> None:
        """Write the state of this commit; a disk that refuses degrades the run, it never stops it."""
        assert self.directory is not None
        try:
            self.save(self.directory / _STATE_FILE.format(step=self._number))
            for old in sorted(self.directory.glob("selector-*.safetensors"))[:-2]:
                old.unlink(missing_ok=True)
        except OSError as error:
            self.problem(StateError(f"Selector(directory={str(self.directory)!r}): the state of step {self._number} could not be "
                                    f"written: {error}. The run goes on; the last written state stands."))  # fmt: skip

    # -- problems ------------------------------------------------------------------------------------------------------

    def problem(self, error: EdgewiseError) -> None:
        """Raise in strict mode; otherwise count it and warn once per kind of error."""
        if self.strict:
            raise error
        self._totals["degraded_total"] += 1
        self._warn(str(error), once=type(error).__name__)

    def _warn(self, message: str, once: str | None = None) -> None:
        if once is not None:
            if once in self._warned:
                return
            self._warned.add(once)
            message += " (Said once; counted in the metric degraded_total.)"
        warnings.warn(f"edgewise: {message}", DegradedWarning, stacklevel=3)


class Step:
    """One training step of a synchronous host. Made by `Selector.step`; use it as a context manager."""

    def __init__(self, selector: Selector, policy_version: int) -> None:
        self._selector = selector
        self._stage = _Stage(selector, streaming=False)
        self._policy_version = int(policy_version)
        self._kept: list[Groups] = []
        self._dropped: list[Groups] = []
        self._issued = 0
        self._entered = False

    def __enter__(self) -> Step:
        selector = self._selector
        if self._entered or selector._current is not None:
            raise ConfigError("Selector.step(): a step is entered once, and one at a time.")
        self._entered = True
        selector._current = self
        if selector._reissue:  # a synchronous step that was cut off is done again as a whole
            for ticket in selector._reissue:
                selector._open.pop(ticket.seq, None)
                selector._blocked[ticket.row] = False
            selector._reissue = []
        self._stage.begin(selector._number, self._policy_version, {})
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        selector = self._selector
        started = time.perf_counter()
        selector._current = None
        if kind is not None:
            self._stage.roll_back()
            return
        try:
            self._stage.cancel_unreported()
        except EdgewiseError:  # strict mode
            self._stage.roll_back()
            raise
        self._stage.release_offered()
        metrics = self._stage.metrics
        metrics.set(step=selector._number, **selector._totals)
        metrics.set(**self.accounts())
        selector._number += 1
        selector.metrics = metrics.as_dict()
        if selector.directory is not None:
            selector._autosave()
        selector.metrics["commit_ms"] = 1e3 * (time.perf_counter() - started)

    @property
    def missing(self) -> int:
        """Groups that the training batch still lacks."""
        return max(0, self._selector.batch_size - sum(len(g) for g in self._kept))

    def requests(self, signals: Signals | None = None) -> Iterator[list[Ticket]]:
        """Rounds of tickets until the training batch is full or the method cannot fill it.

        signals: what the method may ask for, by name, for the current policy.
        Raises HostError if the method needs one that is not there; SignalError, MethodError and the method's own errors only
        in strict mode.
        """
        selector, stage = self._selector, self._stage
        selector.check_signals({*(signals or {}), *ROLLOUT_SIGNALS})
        stage.begin(selector._number, self._policy_version, signals or {})
        while self.missing > 0:
            tickets = stage.issue(stage.propose(self.missing, shortfall=self.missing))
            if not tickets:
                break
            yield tickets
            self._take_in(stage.cancel_unreported())
            stage.round += 1
        stage.metrics.set(shortfall=self.missing)

    def report(self, reported: Sequence[Outcome]) -> Judged:
        """Outcomes of this step's tickets, in any order and any number of calls before the next round is asked for."""
        judged = self._stage.settle(self._stage.accept(reported))
        self._take_in(judged)
        return judged

    def note(self, **values: float) -> None:
        """Add a host's own counts to this step's metrics, such as `rollout_s`."""
        self._stage.metrics.add(**values)

    def _take_in(self, judged: Judged) -> None:
        if len(judged.groups):
            self._kept.append(judged.groups.select(judged.verdicts.keep))
            self._dropped.append(judged.groups.select(~judged.verdicts.keep))

    @property
    def training_batch(self) -> Groups:
        """The first `batch_size` kept groups in the order in which they were requested; fewer if the step ended short.

        Raises ShortfallError if not one group was kept.
        """
        kept = _in_request_order(self._kept)
        if kept is None or len(kept) == 0:
            raise ShortfallError(
                f"Step {self._selector._number} has no group to train on: {self._counts()}. Lower the bar (another gate, more "
                "rounds), add prompts of other difficulty, or train on a zero-variance batch on purpose."
            )
        return kept.select(np.arange(min(len(kept), self._selector.batch_size)))

    @property
    def fillers(self) -> Groups | None:
        """Groups that were rolled out and dropped, in request order; a host may fill a short batch with them."""
        return _in_request_order(self._dropped)

    def _counts(self) -> str:
        m = self._stage.metrics
        return (
            f"{m.get('rolled_out'):.0f} groups rolled out in {m.get('rounds'):.0f} rounds, {m.get('mixed'):.0f} mixed, "
            f"{m.get('all_pass'):.0f} all passing, {m.get('all_fail'):.0f} all failing"
        )

    def accounts(self) -> dict[str, float]:
        """Shares and totals of the step so far, as they will be logged."""
        m = self._stage.metrics
        kept = sum(len(g) for g in self._kept)
        rolled = m.get("rolled_out")
        values = {
            "in_flight": float(len(self._selector._open)),
            "short_groups": float(max(0, self._selector.batch_size - kept)),
            "surplus": float(max(0, kept - self._selector.batch_size)),
            "topup_rounds": max(0.0, m.get("rounds") - 1),
            "epoch": self._selector._stream.position / len(self._selector.pool),
        }
        if rolled:
            values |= {f"{name}_frac": m.get(name) / rolled for name in ("mixed", "all_pass", "all_fail")}
        return values | self._selector._premise.correlations()


class _Stage:
    """The machinery under `Step` and streaming: the method's view of the step, issuing, settling, rolling back."""

    def __init__(self, selector: Selector, *, streaming: bool) -> None:
        self._selector = selector
        self.streaming = streaming
        self.metrics = StepMetrics()
        self.number = 0
        self.round = 0
        self.policy_version = 0
        self._signals: Signals = {}
        self._offered: list[Ints] = []
        self._round_tickets: dict[int, Ticket] = {}
        self._waiting: list[Outcome] = []
        self._entropies: dict[int, float] = {}
        self._fallen_back = False
        self._undo_rows: list[tuple[Ints, dict[str, Array]]] = []
        self._undo_shared: dict[str, Array] = {}
        self._undo_position = 0

    # -- what a method sees (StepView) ---------------------------------------------------------------------------------

    @property
    def strict(self) -> bool:
        return self._selector.strict

    def rng(self, purpose: str) -> np.random.Generator:
        return derived_rng(self._selector.seed, self.number, self.round, purpose=purpose)

    def draw(self, n: int) -> Ints:
        blocked = self._selector._blocked
        rows = self._selector._stream.draw(min(n, self._free()), blocked)
        self._offered.append(rows)
        self.metrics.add(offered=len(rows))
        return rows

    def eligible(self, rows: Ints) -> Bools:
        return ~self._selector._blocked[rows]

    def signal(self, name: Signal, rows: Ints) -> Floats:
        serve = self._signals.get(name)
        if serve is None:
            raise SignalError(f"signal({name!r}): this host serves {sorted(self._signals) or 'no signals'}; it cannot be asked for.")
        asked = np.array(rows, dtype=np.int64)
        started = time.perf_counter()
        values = np.asarray(serve(asked), dtype=np.float64)
        self.metrics.add(signal_s=time.perf_counter() - started)
        if values.shape != asked.shape:
            raise SignalError(f"signal({name!r}) must answer with one number a row, shape {asked.shape}, got {values.shape}.")
        if name == PROMPT_ENTROPY:
            self._entropies.update(zip(asked.tolist(), values.tolist(), strict=True))
        return values

    def log(self, **values: float) -> None:
        self.metrics.add(**values)

    def gauge(self, **values: float) -> None:
        self.metrics.set(**values)

    def problem(self, error: EdgewiseError) -> None:
        self._selector.problem(error)

    # -- one round -----------------------------------------------------------------------------------------------------

    def begin(self, number: int, policy_version: int, signals: Signals) -> None:
        """Point the view at a step. The first call of a step also remembers what a rollback needs."""
        self.number, self.policy_version, self._signals = number, policy_version, signals
        if not self.streaming and not self._undo_shared:
            self._undo_shared = _copies(self._selector.method.state().shared)
            self._undo_position = self._selector._stream.position

    def propose(self, room: int, shortfall: int) -> Requests:
        """Ask the method; in degrade mode a failing method is replaced by uniform, for one round a step."""
        selector = self._selector
        before = _copies(selector.method.state().shared)
        started, signal_before = time.perf_counter(), self.metrics.get("signal_s")
        try:
            requests = selector.method.propose(room, self)
            self._check(requests)
        except ShortfallError:
            raise
        except Exception as error:
            if selector.strict:
                raise
            self._restore_shared(before)
            requests = self._fall_back(shortfall, error)
        spent = time.perf_counter() - started - (self.metrics.get("signal_s") - signal_before)
        self.metrics.add(propose_ms=1e3 * spent)
        return requests

    def _check(self, requests: Requests) -> None:
        """Refuse what would break the contract: rows out of range, doubled, or never offered by this step."""
        rows, rollouts, name = requests.rows, requests.rollouts, self._selector.method.name
        size = len(self._selector.pool)
        if rows.ndim != 1 or rollouts.shape != rows.shape or rows.dtype.kind != "i" or rollouts.dtype.kind != "i":
            raise MethodError(f"{name}.propose must give integer rows (n,) and rollouts (n,), got {rows.shape}, {rollouts.shape}.")
        if len(rows) and (rows.min() < 0 or rows.max() >= size):
            raise MethodError(f"{name}.propose must give rows in [0, {size}), got {int(rows.min())} … {int(rows.max())}.")
        if len(np.unique(rows)) != len(rows):
            raise MethodError(f"{name}.propose must give distinct rows, got {len(rows) - len(np.unique(rows))} repeats.")
        if len(rollouts) and rollouts.min() < 1:
            raise MethodError(f"{name}.propose must ask for at least one rollout a prompt, got {int(rollouts.min())}.")
        busy = [t.row for t in self._selector._open.values()]
        if len(np.intersect1d(rows, np.array(busy, dtype=np.int64))):
            raise MethodError(f"{name}.propose asked for a prompt that is already in flight.")

    def _fall_back(self, shortfall: int, error: Exception) -> Requests:
        selector = self._selector
        if not isinstance(error, EdgewiseError) and type(error).__name__ not in selector._warned:
            traceback.print_exception(error)
        selector.problem(
            MethodError(
                f"{selector.method.name}.propose failed in step {self.number}: {type(error).__name__}: {error}. "
                "Prompts of this round are drawn uniformly instead."
            )
        )
        self.metrics.set(degraded=1.0)
        if self._fallen_back and not self.streaming:
            return Requests.of([], selector.group_size)
        self._fallen_back = True
        return Requests.of(self.draw(shortfall), selector.group_size)

    def issue(self, requests: Requests) -> list[Ticket]:
        """Turn requests into tickets in flight."""
        selector = self._selector
        predicted = requests.predicted_pass_rate
        tickets = []
        for i, (row, rollouts) in enumerate(zip(requests.rows.tolist(), requests.rollouts.tolist(), strict=True)):
            p = None if predicted is None or not np.isfinite(predicted[i]) else float(predicted[i])
            ticket = Ticket(
                seq=selector._next_seq, row=row, prompt_id=selector.pool.ids[row], step=self.number, round=self.round,
                policy_version=self.policy_version, rollouts=rollouts, predicted_pass_rate=p,
            )  # fmt: skip
            selector._next_seq += 1
            selector._open[ticket.seq] = ticket
            self._round_tickets[ticket.seq] = ticket
            tickets.append(ticket)
        fresh = requests.rows[~selector._blocked[requests.rows]]  # methods that pick from the whole pool do not draw
        selector._blocked[fresh] = True
        self._offered.append(fresh)
        if tickets:
            self.metrics.add(rounds=1)
        return tickets

    def accept(self, reported: Sequence[Outcome]) -> list[Outcome]:
        """Those outcomes whose ticket is open and agrees with what was issued; the rest are counted, once each."""
        selector = self._selector
        good: list[Outcome] = []
        seen: set[int] = set()
        for outcome in reported:
            issued = selector._open.get(outcome.ticket.seq)
            if issued is None or outcome.ticket.seq in seen:
                known = outcome.ticket.seq < selector._next_seq
                selector._totals["dup_outcomes"] += 1
                if selector.strict:
                    raise OutcomeError(
                        f"Outcome for ticket {outcome.ticket.seq} of prompt {outcome.ticket.prompt_id!r}: "
                        + ("it was already reported or cancelled." if known else "no such ticket was issued.")
                    )
                continue
            if replace(outcome.ticket, predicted_pass_rate=None) != replace(issued, predicted_pass_rate=None):
                selector.problem(
                    OutcomeError(
                        f"Outcome for ticket {issued.seq}: it was issued for prompt {issued.prompt_id!r} and is reported for "
                        f"{outcome.ticket.prompt_id!r}. The outcome is refused whole."
                    )
                )
                continue
            seen.add(outcome.ticket.seq)
            good.append(outcome if outcome.ticket is issued else replace(outcome, ticket=issued))
        return good

    def settle(self, reported: Sequence[Outcome]) -> Judged:
        """Judge and observe. A method of scope "batch" waits until the round is complete."""
        selector = self._selector
        if selector.method.scope == "batch" and not self.streaming:
            self._waiting.extend(reported)
            done = {o.ticket.seq for o in self._waiting}
            if any(seq not in done for seq in self._round_tickets):
                return _nothing(selector.group_size)
            reported, self._waiting = self._waiting, []
        if not reported:
            return _nothing(selector.group_size)
        ordered = sorted(reported, key=lambda o: o.ticket.seq)
        groups = outcomes.stack(ordered, selector.problem)
        for ticket in groups.tickets:
            selector._open.pop(ticket.seq, None)
            self._round_tickets.pop(ticket.seq, None)
        if self.streaming:
            selector._blocked[groups.rows] = False
        self._count(groups)
        verdicts = self._judge(groups)
        self._observe(groups.select(groups.valid.any(axis=1)))
        for reason in set(verdicts.reasons) - {""}:
            self.metrics.add(**{f"dropped_{reason}": verdicts.reasons.count(reason)})
        return Judged(groups, verdicts)

    def _judge(self, groups: Groups) -> Verdicts:
        selector = self._selector
        try:
            verdicts = selector.method.judge(groups, self)
            if verdicts.keep.shape != (len(groups),) or len(verdicts.reasons) != len(groups):
                raise MethodError(f"{selector.method.name}.judge must answer for {len(groups)} groups, got {verdicts.keep.shape}.")
            return verdicts
        except Exception as error:
            if selector.strict:
                raise
            selector.problem(MethodError(f"{selector.method.name}.judge failed: {type(error).__name__}: {error}. All whole groups are kept."))
            self.metrics.set(degraded=1.0)
            return Verdicts.of(groups.valid.sum(axis=1) >= 2, "incomplete")

    def _observe(self, groups: Groups) -> None:
        if len(groups) == 0:
            return
        selector = self._selector
        rows = np.unique(groups.rows)
        held = selector.method.state()
        if not self.streaming or not selector.strict:
            self._undo_rows.append((rows, {k: v[rows].copy() for k, v in held.prompts.items()}))
        before = _copies(held.shared)
        try:
            selector.method.observe(groups, self)
        except Exception as error:
            if selector.strict:
                raise
            self._restore_shared(before, [self._undo_rows.pop()])
            selector.problem(MethodError(f"{selector.method.name}.observe failed: {type(error).__name__}: {error}. These groups teach nothing."))
            self.metrics.set(degraded=1.0)
        if self.streaming:
            self._undo_rows.clear()

    def _count(self, groups: Groups) -> None:
        """The counts that every method shares: before any gate, dropped groups included."""
        selector = self._selector
        kind = kinds.group_kinds(groups.rewards, groups.valid, groups.correct, correct_at=selector.correct_at)
        complete = groups.valid.sum(axis=1) >= 2
        responses = float(sum(t.rollouts for t in groups.tickets))
        self.metrics.add(
            rolled_out=len(groups),
            responses=responses,
            response_tokens=float(groups.response_tokens.sum()),
            missing_rollouts=responses - float(groups.valid.sum()),
            truncated=float(groups.truncated.sum()),
            incomplete=float((~complete).sum()),
            mixed=float(((kind == kinds.MIXED) & complete).sum()),
            all_pass=float(((kind == kinds.EASY) & complete).sum()),
            all_fail=float(((kind == kinds.HARD) & complete).sum()),
        )
        selector._totals["rollouts_total"] += responses
        selector._totals["tokens_total"] += float(groups.response_tokens.sum())
        entropy = np.array([self._entropies.get(r, np.nan) for r in groups.rows.tolist()])
        if np.isfinite(entropy).any():
            passed = np.where(np.isnan(groups.correct), groups.rewards >= selector.correct_at, groups.correct > 0.5)
            rate = np.divide((passed & groups.valid).sum(axis=1), groups.valid.sum(axis=1), where=complete, out=np.full(len(groups), np.nan))
            selector._premise.add(entropy, (kind == kinds.MIXED).astype(np.float64), rate)

    # -- ends ----------------------------------------------------------------------------------------------------------

    def cancel_unreported(self) -> Judged:
        """Tickets of the round that the host never reported are cancelled: not outcomes, and free to be chosen again."""
        selector = self._selector
        left = [t for seq, t in self._round_tickets.items() if seq not in {o.ticket.seq for o in self._waiting}]
        for ticket in left:
            selector._open.pop(ticket.seq, None)
            self._round_tickets.pop(ticket.seq, None)
        if left:
            self.metrics.add(unreported=len(left))
            selector.problem(
                OutcomeError(
                    f"Step {self.number}, round {self.round}: {len(left)} of the round's tickets were never reported (first: prompt "
                    f"{left[0].prompt_id!r}). They are cancelled; report failed rollouts with rewards of None."
                )
            )
        return self.settle([])

    def release_offered(self) -> None:
        """Make everything this step offered choosable again."""
        for rows in self._offered:
            self._selector._blocked[rows] = False
        self._offered = []

    def release_unissued(self) -> None:
        """Streaming: what was drawn and not issued is free again; issued prompts stay in flight."""
        self.release_offered()
        busy = {ticket.row for ticket in self._selector._open.values()}
        self._selector._blocked[list(busy)] = True
        self._entropies = {row: value for row, value in self._entropies.items() if row in busy}
        self._round_tickets = {}

    def close(self) -> dict[str, float]:
        """Streaming: the numbers since the last call."""
        selector = self._selector
        self.metrics.set(step=selector._number, in_flight=float(len(selector._open)), **selector._totals)
        self.metrics.set(**selector._premise.correlations())
        values, self.metrics = self.metrics.as_dict(), StepMetrics()
        return values

    def roll_back(self) -> None:
        """Undo everything the step changed, except the count of rollouts that were really generated."""
        selector = self._selector
        for seq in self._round_tickets:
            selector._open.pop(seq, None)
        self._round_tickets = {}
        self.release_offered()
        self._restore_shared(self._undo_shared, self._undo_rows)
        self._undo_rows = []
        selector._stream.position = self._undo_position

    def _restore_shared(self, shared: dict[str, Array], rows: Sequence[tuple[Ints, dict[str, Array]]] = ()) -> None:
        held = self._selector.method.state()
        prompts = _copies(held.prompts)
        for at, values in reversed(rows):
            for name, old in values.items():
                prompts[name][at] = old
        self._selector.method.restore(MethodState(prompts=prompts, shared=_copies(shared)))

    def _free(self) -> int:
        return len(self._selector.pool) - int(np.count_nonzero(self._selector._blocked))


def _copies(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.array(array) for name, array in arrays.items()}


def _in_request_order(parts: Sequence[Groups]) -> Groups | None:
    """One `Groups` of all parts, by ticket; None if there are no parts."""
    if not parts:
        return None
    width = max(g.rewards.shape[1] for g in parts)

    def wide(array: Array, fill: Any) -> Array:
        return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=fill)

    joined = Groups(
        tickets=tuple(t for g in parts for t in g.tickets),
        rows=np.concatenate([g.rows for g in parts]),
        rewards=np.concatenate([wide(g.rewards, np.nan) for g in parts]),
        correct=np.concatenate([wide(g.correct, np.nan) for g in parts]),
        valid=np.concatenate([wide(g.valid, False) for g in parts]),
        truncated=np.concatenate([g.truncated for g in parts]),
        rollout_entropy=np.concatenate([g.rollout_entropy for g in parts]),
        response_tokens=np.concatenate([g.response_tokens for g in parts]),
    )
    return joined.select(np.argsort([t.seq for t in joined.tickets], kind="stable"))


def _nothing(group_size: int) -> Judged:
    empty = np.empty(0, dtype=np.int64)
    none = np.empty((0, group_size))
    groups = Groups(
        tickets=(), rows=empty, rewards=none, correct=none, valid=none.astype(np.bool_), truncated=empty,
        rollout_entropy=np.empty(0), response_tokens=empty,
    )  # fmt: skip
    return Judged(groups, Verdicts(np.empty(0, dtype=np.bool_), ()))


def _require_count(name: str, value: int, where: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ConfigError(f"Selector{'.' + where if where else ''}({name}=...) must be a whole number >= 1, got {value!r}.")
