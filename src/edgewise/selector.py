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
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgewise import state
from edgewise._version import __version__
from edgewise.errors import (
    ConfigError,
    DegradedWarning,
    EdgewiseError,
    HostError,
    StateError,
    StateMismatchError,
)
from edgewise.method import Method
from edgewise.methods import make, methods_without
from edgewise.metrics import EntropyPremise
from edgewise.pool import PromptPool
from edgewise.stage import Judged, Signals, Stage
from edgewise.step import Step
from edgewise.stream import PromptStream
from edgewise.types import (
    ROLLOUT_SIGNALS,
    Array,
    Bools,
    MethodState,
    Outcome,
    Setting,
    Signal,
    Ticket,
)

_STATE_FILE = "selector-{step:09d}.safetensors"


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
        self._streaming = Stage(self, streaming=True)
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
                f"The method {self.method.name!r} needs the signal{'s' * (len(missing) > 1)} {', '.join(missing)}, which this "
                f"host does not serve. Serve it, or use a method that does without: {without}."
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
            tickets = [Ticket(**t) for t in header["in_flight"]]
            premise = EntropyPremise()
            premise.restore(_below("selector/", arrays))
            self.method.restore(MethodState(prompts=_below("method/prompts/", arrays), shared=_below("method/shared/", arrays)))
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"{path} lacks something this method keeps: {error!r}. Use a state that it wrote.") from error
        self._premise = premise
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
            except StateMismatchError:
                raise
            except StateError as error:
                broken.append(str(error))
                continue
            for message in broken:
                self._warn(f"{message} Continuing from {file.name} instead: the steps after {self._number} are lost.")
            return
        if broken:
            listed = "\n  ".join(broken)
            raise StateError(f"No readable state among the saved ones:\n  {listed}\nresume='fresh' starts anew.")

    def _autosave(self) -> None:
        """Write the state of this commit; a disk that refuses degrades the run, it never stops it."""
        assert self.directory is not None
        try:
            self.save(self.directory / _STATE_FILE.format(step=self._number))
            for old in sorted(self.directory.glob("selector-*.safetensors"))[:-2]:
                old.unlink(missing_ok=True)
        except OSError as error:
            self.problem(
                StateError(
                    f"Selector(directory={str(self.directory)!r}): the state of step {self._number} could not be written: "
                    f"{error}. The run goes on; the last written state stands."
                )
            )

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


def _below(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays whose name begins with `prefix`, named without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _require_count(name: str, value: int, where: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ConfigError(f"Selector{'.' + where if where else ''}({name}=...) must be a whole number >= 1, got {value!r}.")
