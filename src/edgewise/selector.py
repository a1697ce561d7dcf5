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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgewise import arguments, saved, state
from edgewise.compose import method_of
from edgewise.decided import Judged, together
from edgewise.durable import Durable
from edgewise.errors import (
    ConfigError,
    DegradedWarning,
    EdgewiseError,
    HostError,
    OutcomeError,
)
from edgewise.method import Method
from edgewise.methods import methods_with
from edgewise.metrics import EntropyPremise
from edgewise.pool import PromptPool
from edgewise.stage import Stage
from edgewise.step import Step
from edgewise.stream import PromptStream
from edgewise.tickets import Packed
from edgewise.types import (
    ROLLOUT_SIGNALS,
    Array,
    Bools,
    Groups,
    Ints,
    Outcome,
    Setting,
    Signal,
    Ticket,
    Verdicts,
)
from edgewise.view import Signals
from edgewise.waiting import Retired, Waiting

_NAMED = 8
"""Names of other methods that an error lists."""
_STILL = 64
"""Batches of tickets at one policy version after which a warning asks whether it was forgotten."""


class Selector:
    """Chooses prompts for one run and keeps what was learned. One writer; not thread-safe.

    Args:
        method: a name that `edgewise methods` lists, a file that `edgewise.compose` reads (.toml, .yaml), or a `Method`.
        pool: the prompts, as a `PromptPool`, or anything `PromptPool.from_dataset` takes.
        batch_size: groups in one training batch, >= 1.
        group_size: rollouts a group, >= 1.
        seed: of the prompt order and of every draw, >= 0.
        parameters: hyper-parameters for a method given by name.
        directory: where to keep the state; every commit is durable there before it returns, at a cost that follows the batch.
            One selector a directory. None: nothing is written unless `save` is called (a trainer's own checkpoints carry the
            state in `edgewise.hosts`).
        resume: "auto" continues from the newest readable state in `directory`; a number from the state as it was committed at
            that selector step, for a trainer that resumes an older checkpoint; "fresh" sets all states there aside. "adapt" as
            "auto", and takes up, here and in `restore`, a state of another group_size, seed or hyper-parameters too, or one of
            which less than half of the prompts are still in the data set.
        generations: whole snapshots to keep in `directory`, >= 2; more reach further back.
        on_problem: "degrade" (a failing method falls back to uniform for the round, one warning, a metric) or "strict" (raise).
        correct_at: a reward from here on counts as correct where the host reports no `correct`; only for metrics.
        total_steps: selector steps the whole run will make, for methods that follow a schedule (prepo); None: not known.
        expire_after: when streaming, tickets whose policy version is more than this behind that of a `take` expire, see
            `expire`; >= 0. None: only when the host says so.

    Raises:
        ConfigError, PoolError: before anything ran; also for a `directory` that cannot be written to and for a method whose
            parameters or state could not be saved.
        StateError: `directory` holds states but none can be used, or they belong to another run, or none is of the step asked
            for, or another process writes there.
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
        resume: Literal["auto", "adapt", "fresh"] | int = "auto",
        generations: int = 2,
        on_problem: Literal["degrade", "strict"] = "degrade",
        correct_at: float = 0.5,
        total_steps: int | None = None,
        expire_after: int | None = None,
    ) -> None:
        arguments.require(
            batch_size=batch_size, group_size=group_size, seed=seed, parameters=parameters, directory=directory, resume=resume,
            generations=generations, on_problem=on_problem, correct_at=correct_at, total_steps=total_steps,
            expire_after=expire_after,
        )  # fmt: skip
        self.method = method_of(method, parameters)
        self.pool = pool if isinstance(pool, PromptPool) else PromptPool.from_dataset(pool)
        self.batch_size = int(batch_size)
        self.group_size = int(group_size)
        self.seed = int(seed)
        self.strict = on_problem == "strict"
        self.correct_at = correct_at
        self.expire_after = None if expire_after is None else int(expire_after)
        self.directory = Path(directory) if directory is not None else None
        self.run_id = uuid.uuid4().hex
        self.metrics: dict[str, float] = {}
        """Numbers of the last committed step (when streaming: of all calls since the last `commit`)."""

        self._adapt = resume == "adapt"
        self._warned: set[str] = set()
        size = len(self.pool)
        self._setting = Setting(
            pool_size=size, batch_size=self._most_groups(size), group_size=self.group_size, total_steps=total_steps
        )
        try:
            self.method.start(self._setting)
        except MemoryError as error:
            raise ConfigError(f"{self.method.name} needs more memory for {size:,} prompts than there is: {error}.") from error
        self._most_bytes = saved.most_bytes(self)
        self._stream = PromptStream(size, self.seed)
        self._blocked: Bools = np.zeros(size, dtype=np.bool_)  # in flight, or offered in the open step
        self._open: dict[int, Ticket] = {}
        self._expired: dict[int, Ticket] = {}  # not waited for any longer; what comes of them is late, and still teaches
        self._last_take: tuple[str, list[int]] | None = None  # the host's name of the last call, and its tickets
        self._last_report: tuple[str, Judged] | None = None
        self._reissue: list[Ticket] = []
        self._waiting = Waiting()
        self._retired = Retired()
        self._parked: dict[str, Array] = {}  # what was learned of prompts that left the data set (`edited`)
        self._version = (-1, 0)  # the policy version last told, and the ticket at which it was new
        self._watchers: list[Callable[[Groups, Verdicts], None]] = []
        self._next_seq = 0
        self._number = 0
        self._totals = {"rollouts_total": 0.0, "tokens_total": 0.0, "dup_outcomes": 0.0, "degraded_total": 0.0}
        self._totals["late_outcomes"] = 0.0
        self._premise = EntropyPremise()
        self._current: Step | None = None
        self._streaming = Stage(self, streaming=True)
        self._durable: Durable | None = None
        self._tables = {"table/in_flight": Packed(), "table/expired": Packed()}
        saved.require_savable(self)
        if self.directory is not None:
            self._durable = Durable(self, self.directory, generations)
            self._durable.begin(resume if isinstance(resume, str) else int(resume))

    # -- synchronous hosts ---------------------------------------------------------------------------------------------

    def step(self, *, policy_version: int) -> Step:
        """One training step as a context manager. Leaving it commits; an exception rolls it back."""
        if self._current is not None:
            raise ConfigError("Selector.step(): the previous step is still open; leave its `with` block first.")
        arguments.require_version(policy_version, "step")
        self._watch_version(int(policy_version))
        return Step(self, policy_version)

    @property
    def step_number(self) -> int:
        """Steps committed so far (streaming: calls of `take`)."""
        return self._number

    @property
    def in_flight(self) -> list[Ticket]:
        """Tickets issued and not yet reported, oldest first."""
        return [self._open[seq] for seq in sorted(self._open)]

    @property
    def waiting(self) -> dict[int, list[tuple[int, int]]]:
        """Groups that wait for more rollouts in a later step: first ticket -> (ticket, rollouts) so far, oldest first.

        A host that trains on whole groups must keep these rollouts until then.
        """
        return {seq: list(self._waiting[seq].parts) for seq in self._waiting.seqs}

    def give_up_waiting(self, why: str) -> None:
        """Forget groups that wait, because the host lost their rollouts. Counted and warned of; raises in strict mode."""
        if self._current is not None:
            raise ConfigError("Selector.give_up_waiting(): a step is open; call it between steps.")
        self.problem(
            HostError(f"{len(self._waiting)} groups that were begun are given up: {why}. Their prompts are free again.")
        )
        self._blocked[self._waiting.rows] = False
        self._waiting = Waiting()  # what still comes of their tickets is a repeat: the pilot it would belong to is gone
        self._open = {seq: ticket for seq, ticket in self._open.items() if ticket.continues is None}

    def check_signals(self, served: Iterable[Signal]) -> None:
        """Raise HostError unless every signal the method needs is among those served."""
        served = set(served)
        missing = sorted(self.method.needs - served)
        if missing:
            able = methods_with(served)
            more = f" and {len(able) - _NAMED} more (`edgewise methods` lists all)" if len(able) > _NAMED else ""
            raise HostError(
                f"The method {self.method.name!r} needs the signal{'s' * (len(missing) > 1)} {', '.join(missing)}, which this "
                f"host does not serve. Serve it, or use a method that does without: {', '.join(able[:_NAMED]) or 'none'}{more}."
            )

    # -- streaming hosts -----------------------------------------------------------------------------------------------

    def take(self, n: int, *, signals: Signals | None = None, policy_version: int = 0, call: str | None = None) -> list[Ticket]:
        """At most `n` tickets for an asynchronous host. After a resume, tickets that were in flight come first.

        Shorter than `n` (down to empty) only if every prompt is in flight or the method proposes fewer. A prompt stays in
        flight until its ticket is reported (report failed rollouts too, with rewards of None) or expires.

        Args:
            n: how many, >= 1.
            signals: what the method may ask for, by name, for the current policy.
            policy_version: version of the weights that will generate. It must grow as training goes on (the optimizer step will
                do): methods that steer themselves, such as HIVE's two probabilities, move once for each new version.
            call: a name of this call, such as a uuid, for hosts that retry calls whose answer was lost. With the name of the
                call before it, nothing changes and its tickets come back, but for those reported or expired meanwhile.

        An exception leaves everything as it was. Raises HostError if a signal is missing, others only in strict mode: also
        what the method raises as it learns from the outcomes reported before, which are then still to be learned.
        """
        if self._current is not None:
            raise ConfigError("Selector.take(): a step is open; a run uses either `step` or `take`, not both at once.")
        arguments.require_count("n", n, "take")
        call = arguments.call_name(call, "take")
        if self._last_take is not None and call is not None and call == self._last_take[0]:
            again = [self._open[seq] for seq in self._last_take[1] if seq in self._open]
            self._reissue = [ticket for ticket in self._reissue if ticket not in again]
            return again
        arguments.require_version(policy_version, "take")
        self._watch_version(int(policy_version))
        # one that is about to expire is not handed out: its prompt may be issued again by this very call
        oldest = None if self.expire_after is None else int(policy_version) - self.expire_after
        waiting = [t for t in self._reissue if t.seq in self._open and (oldest is None or t.policy_version >= oldest)]
        tickets, waiting = waiting[:n], waiting[n:]
        stage = self._streaming
        if len(tickets) < n:
            self.check_signals({*(signals or {}), *ROLLOUT_SIGNALS})
            stage.mark()
            try:
                self._learn(signals)
                stage.view.aim(self._number, int(policy_version), signals or {})
                stage.begin()
                tickets += stage.go_on(n - len(tickets))
                if len(tickets) < n:
                    tickets += stage.issue(stage.propose(n - len(tickets)))
                stage.metrics.add(rounds=1)
                stage.release_unissued()
                named = None if call is None else (call, [ticket.seq for ticket in tickets])
                self._number, self._reissue, self._last_take = self._number + 1, waiting, named
            except BaseException:
                stage.roll_back()
                stage.release_unissued()
                raise
            return tickets
        if signals:  # their reports may have to ask, before a further call
            stage.view.aim(stage.view.number, stage.view.policy_version, signals)
        self._reissue = waiting
        self._last_take = None if call is None else (call, [ticket.seq for ticket in tickets])
        return tickets

    def report(self, reported: Sequence[Outcome], *, signals: Signals | None = None, call: str | None = None) -> Judged:
        """Outcomes of tickets from `take`, in any order, in any number of calls. Each counts once.

        The verdicts come at once. The method learns at the next decision (`take`, `commit`, `save`, or `settle`), from all that
        was reported until then in the order of its tickets, so the order of arrival does not matter: see `settle`. Outcomes of
        expired tickets teach too; their verdict is "late", and they must not be trained on.

        Args:
            reported: outcomes; one bad entry does not spoil the others.
            signals: what the method may ask for, by name; default those of the last `take`. A host that reports before it
                takes, after a restore, gives them here: methods that look up an embedding or anchors do so as they learn.
            call: a name of this call, such as a uuid, for hosts that retry calls whose answer was lost. With the name of the
                call before it, nothing changes and its answer comes back. Without, or when the selector was built again in
                between, the retried outcomes are repeats: counted in `dup_outcomes`, and the answer is empty.

        Returns the groups that counted and the verdicts on them; repeated and unknown tickets are counted, nothing more. An
        exception (in strict mode) teaches nothing, and the tickets stay open.
        """
        if self._current is not None:
            raise ConfigError("Selector.report(): a step is open; report to the step instead.")
        call = arguments.call_name(call, "report")
        if self._last_report is not None and call is not None and call == self._last_report[0]:
            return self._last_report[1]
        stage = self._streaming
        if signals is not None:
            stage.view.aim(stage.view.number, stage.view.policy_version, signals)
        stage.mark()
        try:
            good, late = stage.accept(reported)
            judged = together(stage.settle(good), stage.settle_late(late))
        except BaseException:
            stage.roll_back()
            raise
        self.metrics = stage.numbers()
        self._last_report = None if call is None else (call, judged)
        return judged

    def settle(self, *, signals: Signals | None = None) -> None:
        """Let the method learn now from what was reported; without this it learns at the next decision.

        Steps, `take`, `commit` and `save` call it. Call it to look at what the method believes. Outcomes reported between two
        calls of it are learned from in the order of their tickets, whatever order they came in.

        signals: as in `report`. An exception (in strict mode) leaves everything as it was, and all of it still to be learned.
        """
        if self._current is not None:
            raise ConfigError("Selector.settle(): a step is open; it settles each of its rounds by itself.")
        if self._streaming.to_learn == 0:
            return
        self._streaming.mark()
        try:
            self._learn(signals)
        except BaseException:
            self._streaming.roll_back()
            raise

    def _learn(self, signals: Signals | None) -> None:
        stage = self._streaming
        if signals is not None:
            stage.view.aim(stage.view.number, stage.view.policy_version, signals)
        stage.learn()

    def expire(self, tickets: Iterable[Ticket]) -> None:
        """Wait no longer for these tickets of `take`: their prompts may be issued again. A later outcome still teaches, once.

        The verdict on such an outcome is "late": it is never trained on, it is counted in `late_outcomes`, and the method
        learns from it. The newest 65,536 expired tickets are remembered; what comes of older ones is a repeat. A ticket that
        continues a group does not expire but settles it: the group is judged on the rollouts it has, and an outcome that comes
        after that changes nothing.

        Tickets that are not open are passed over, so that calling this twice is calling it once; one that was issued for
        another prompt is a problem (an OutcomeError in strict mode). An exception leaves everything as it was.
        """
        if self._current is not None:
            raise ConfigError("Selector.expire(): a step is open; its own tickets expire with their round. Call it afterwards.")
        stage = self._streaming
        given = {ticket.seq: ticket for ticket in tickets}
        stage.mark()
        try:
            for ticket in given.values():
                issued = self._open.get(ticket.seq)
                if issued is not None and issued.prompt_id != ticket.prompt_id:
                    self.problem(
                        OutcomeError(
                            f"Selector.expire(): ticket {ticket.seq} was issued for prompt {issued.prompt_id!r}, not for "
                            f"{ticket.prompt_id!r}. It stays open."
                        )
                    )
            open_ = (self._open.get(seq) for seq in sorted(given))
            stage.give_up([issued for issued in open_ if issued and issued.prompt_id == given[issued.seq].prompt_id])
        except BaseException:
            stage.roll_back()
            raise
        self.metrics = stage.numbers()

    def commit(self) -> None:
        """For streaming hosts; steps commit by themselves. Closes the period of `metrics` and writes to `directory`.

        Called again with nothing in between, it leaves the metrics of the period as they are.
        """
        self.settle()
        stage = self._streaming
        if stage.metrics.as_dict():
            stage.metrics.set(**self._premise.correlations())
            self.metrics = stage.numbers()
            stage.accounts.new_period()
        self._autosave()

    # -- state ---------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write everything to one file, atomically. Returns its bytes.

        Raises OSError if the disk refuses, StateError if the method's state cannot be written, ConfigError inside a step.
        """
        if self._current is None:
            self.settle()
        return state.save(path, *saved.content(self), most=self._most_bytes)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Become exactly the selector that wrote `path`. Nothing changes if it cannot be used.

        Where the data set was edited since: prompts are known by their ids, whatever row they are in now. Those still there
        keep what was learned of them and their turn in the stream, added and changed ones start from the prior, what was
        learned of removed ones comes back if they do. One line says how many; StateMismatchError if less than half are there.

        Tickets that were in flight are handed out again first by `take`; a synchronous step that was cut off is simply
        done again, with the same prompts. Raises StateError and its children, and ConfigError inside a step.
        """
        saved.restore(self, path, adapt=self._adapt)

    def _become(self, kept: saved.Kept) -> None:
        """The last act of a restore: all that is ours, at once. Nothing here fails."""
        self.run_id = kept.run_id
        self._number = kept.number
        self._stream.become(kept.position, kept.slots)
        self._parked = kept.parked
        self._next_seq = kept.next_seq
        self._open = {t.seq: t for t in kept.in_flight}
        self._expired = {t.seq: t for t in kept.expired}
        self._last_take, self._last_report = kept.last_take, None
        self._reissue = list(kept.in_flight)
        self._blocked[:] = False
        self._waiting, self._retired = kept.waiting, kept.retired
        for rows in ([t.row for t in kept.in_flight], kept.waiting.rows, kept.retired.rows):
            self._blocked[rows] = True
        self._totals |= kept.totals
        self.metrics = kept.metrics
        self._premise = kept.premise
        self._streaming = Stage(self, streaming=True)
        self._streaming.view.aim(max(0, kept.number - 1), kept.version, {})
        self._tables = {name: Packed() for name in self._tables}  # the same numbers may name other tickets now
        if self._durable is not None:
            self._durable.became()

    def _packed_tickets(self) -> dict[str, Ints]:
        """The tickets in flight and the expired ones, as they are saved."""
        held = {"table/in_flight": self._open, "table/expired": self._expired}
        return {name: self._tables[name].of(tickets) for name, tickets in held.items()}

    def close(self) -> None:
        """Give `directory` back at once, for another process to write in. Not needed: so does the end of this one."""
        if self._durable is not None:
            self._durable.close()

    def _autosave(self) -> None:
        """Make this commit durable, if there is a `directory`."""
        if self._durable is not None:
            self._durable.commit()

    def watch(self, function: Callable[[Groups, Verdicts], None]) -> None:
        """Call `function(groups, verdicts)` with all decided groups, dropped ones too: for logs. A failure is a problem."""
        self._watchers.append(function)

    def _most_groups(self, size: int) -> int:
        """Groups that a batch can hold: no prompt is in it twice. A pool of fewer is said, and refused in strict mode."""
        if size >= self.batch_size or self.strict:
            return self.batch_size
        self._warn(
            f"the pool holds {size} prompts for batch_size {self.batch_size}: every batch will be short by "
            f"{self.batch_size - size} groups. Add prompts or lower batch_size."
        )
        return size

    def _watch_version(self, version: int) -> None:
        """Say once that the policy version stands still: methods that move once a version would stand still with it."""
        if version != self._version[0]:
            self._version = (version, self._next_seq)
        elif self._next_seq - self._version[1] >= _STILL * self.batch_size and "policy_version" not in self._warned:
            self._totals["degraded_total"] += 1
            self._warn(
                f"policy_version has been {version} for {self._next_seq - self._version[1]} tickets. It must grow with "
                "training (the optimizer step will do): methods that learn or steer once a version, such as hive, greso and "
                "sec, stand still with it.",
                once="policy_version",
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
