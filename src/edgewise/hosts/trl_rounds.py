"""What happens inside one generation step of TRL: rounds of picks, rollouts and rewards, on every process in step.

The selector lives on the main process. It leads: it broadcasts what is to be done (score these prompts, roll out those),
and all processes do their share with the trainer's own functions. At the end the rollouts of the training batch are fetched
from whichever process made them, and the trainer builds its batch from them (`Replay`).
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object

from edgewise.errors import HostError, ShortfallError, SignalError, StateError
from edgewise.hosts import trl_checkpoint
from edgewise.hosts.trl_advantage import group_advantages
from edgewise.hosts.trl_checkpoint import Kept
from edgewise.hosts.trl_made import Asked, Place, Store, complete
from edgewise.hosts.trl_replay import Replay, Rollouts, joined
from edgewise.hosts.trl_signals import PromptSignals
from edgewise.selector import Selector
from edgewise.signals.entropy import response_entropy
from edgewise.step import Step
from edgewise.types import PROMPT_ENTROPY, ROLLOUT_ENTROPY, Floats, Groups, Ints, Outcome, Signal, Ticket

_LEVELS = frozenset({
    "step", "rollouts_total", "tokens_total", "degraded_total", "dup_outcomes", "late_outcomes", "epoch", "in_flight", "p_easy",
    "p_hard",
})  # fmt: skip
"""Metrics that are logged as they stand; all others are averaged over the steps since the last log line."""


class Batch(NamedTuple):
    """What all processes must know to build the training batch.

    rows: one (ticket, number) a row of the batch.  factors: what each row's advantage is multiplied with; 0 for fillers.
    groups: for groups whose advantages TRL cannot compute, the tickets of each; empty where it can.
    of_group: (group, number in it) of each row, where `groups` says something; (-1, 0) for fillers.
    waiting: tickets of groups that go on in a later step.
    """

    rows: list[Place]
    factors: list[float]
    groups: list[list[int]]
    of_group: list[tuple[int, int]]
    waiting: list[int]


class Rounds:
    """The bridge: runs rounds on every process, drives the selector on the main one."""

    def __init__(
        self,
        trainer: Any,
        selector: Selector,
        outcome: str | None,
        correct_at: float,
        signals: dict[Signal, Callable[[Ints], Any]],
        resume: str,
        generate_rows: int | None,
    ) -> None:
        self.trainer = trainer
        self.selector = selector
        self.outcome = outcome
        self.correct_at = correct_at
        self.resume = resume
        self.generate_rows = generate_rows
        self.replay: Replay | None = None
        # what the trainer's own loader would have shown the reward functions
        self._dataset = trainer._remove_unused_columns(trainer.train_dataset, description="training")
        self.signals = PromptSignals(trainer, self._dataset, signals)
        self.store = Store()
        """Rollouts that are not trained on yet, by ticket."""
        self._chains: dict[int, list[tuple[int, int]]] = {}  # (ticket, rollouts) of each group so far, by its first ticket
        self._in_order = False
        self._version = self._versions_before = 0
        self._pending_logs: list[dict[str, float]] = []

    def check_signals(self) -> None:
        """Refuse now what would fail in the first step: a signal that is not served, a model that cannot be scored."""
        self.selector.check_signals(self.signals.served)
        self.signals.try_out(self.selector.method.needs)

    # -- one generation step -------------------------------------------------------------------------------------------

    def choose(self, local_rows: int) -> tuple[list[dict[str, Any]], Replay]:
        """Run the rounds of one step on all processes. Returns this process' rows and the replay for TRL."""
        trainer, accelerator = self.trainer, self.trainer.accelerator
        started = time.perf_counter()
        expected = self.selector.batch_size * trainer.num_generations
        if local_rows * accelerator.num_processes != expected:
            raise HostError(
                f"The trainer asks for {local_rows} rollouts on each of {accelerator.num_processes} processes; the selector "
                f"was made for {expected} in all (generation_batch_size). Something changed the batch size after `attach`."
            )
        self._in_order = False
        self._local_rows = local_rows
        trainer._pending_extra_logs.clear()  # of a generation that failed half way
        trainer._pending_metrics.clear()
        if accelerator.is_main_process:
            try:
                batch = self._lead()
            except BaseException as error:
                if not self._in_order:  # the others are waiting for an order; in the middle of one they would not hear this
                    self._send(("abort", f"{type(error).__name__}: {error}"))
                raise
            self._send(("final", batch))
        else:
            batch = self._follow()
        mine = slice(accelerator.process_index * local_rows, (accelerator.process_index + 1) * local_rows)
        rewards = torch.stack([self.store.reward(place) for place in batch.rows])
        records = self._fetch(batch.rows)[mine]
        factors = torch.tensor(batch.factors, dtype=torch.float32)
        advantages = self._advantages(batch) if batch.groups else None
        self.store.keep_only(batch.waiting)
        for name in sorted({name for record in records for name in record["extra_logs"]}):
            trainer._pending_extra_logs[name] = [record["extra_logs"].get(name) for record in records]
        if accelerator.is_main_process:
            metrics = self.selector.metrics
            elsewhere = sum(metrics.get(name, 0.0) for name in ("rollout_s", "reward_s", "signal_s"))
            metrics["select_s"] = max(0.0, time.perf_counter() - started - elsewhere)  # choosing and all bookkeeping
            self._pending_logs.append(dict(metrics))
        return self._examples([record["row"] for record in records]), Replay(records, rewards, factors, advantages, mine)

    def _advantages(self, batch: Batch) -> torch.Tensor:
        """(rows of all processes,) advantages on whole groups, whatever their size and whichever of their rollouts train."""
        trainer = self.trainer
        of_groups = group_advantages(
            [self.store.rewards(seqs) for seqs in batch.groups],
            trainer.reward_weights,
            scale=trainer.scale_rewards,
            aggregation=trainer.multi_objective_aggregation,
        )
        zero = self.store.reward(batch.rows[0]).new_zeros(())
        return torch.stack([zero if group < 0 else of_groups[group][number] for group, number in batch.of_group])

    def _examples(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """One row of the dataset a rollout, each its own: what a reward function writes into one is in no other."""
        read = {row: self._dataset[row] for row in dict.fromkeys(rows)}
        return [copy.deepcopy(dict(read[row])) for row in rows]

    def _policy_version(self) -> int:
        """Optimizer steps so far. The trainer counts anew with each `train()`; the weights go on, and so does this."""
        step = self.trainer.state.global_step
        if step + self._versions_before < self._version:
            self._versions_before = self._version - step + 1
        self._version = step + self._versions_before
        return self._version

    def _lead(self) -> Batch:
        """The main process: drive the selector, and say what the training batch is."""
        selector = self.selector
        self._chains = selector.waiting  # not what a step that failed half way left here
        if any(seq not in self.store for first in selector.waiting for seq in self._tickets_of(first)):
            selector.give_up_waiting("their rollouts are not in the checkpoint")
        with selector.step(policy_version=self._policy_version()) as step:
            for tickets in step.requests(self.signals.functions(self._score_everywhere)):
                for ticket in tickets:
                    first = ticket.seq if ticket.continues is None else ticket.continues
                    self._chains.setdefault(first, []).append((ticket.seq, ticket.rollouts))
                step.report(self._roll_out(step, tickets))
            batch = self._batch(step)
        waiting = set(selector.waiting)
        self._chains = {first: chain for first, chain in self._chains.items() if first in waiting}
        return batch._replace(waiting=[seq for first in selector.waiting for seq in self._tickets_of(first)])

    def _tickets_of(self, first: int) -> list[int]:
        """The tickets of the group that `first` began, as they were asked for."""
        return [seq for seq, _ in self._chains.get(first, [(first, 0)])]

    def _batch(self, step: Step) -> Batch:
        """The batch TRL expects, exactly: kept groups, then rows of dropped ones whose advantages are 0."""
        size = self.selector.batch_size * self.selector.group_size
        try:
            kept: Groups | None = step.training_batch
        except ShortfallError as error:
            kept = None
            if not self.selector.waiting:  # else the first step of a method that finishes its groups in the next one
                self.selector.problem(error)
        places: list[list[Place]] = []
        factors: list[list[float]] = []
        for i, ticket in enumerate(kept.tickets if kept is not None else ()):
            assert kept is not None
            trained = kept.trained[i]
            places.append([place for place, use in zip(self._places(ticket), trained, strict=False) if use])
            factors.append(kept.weights[i, trained].tolist())
        spare = [self._places(ticket) for ticket in step.fillers.tickets] if step.fillers is not None else []
        missing = size - sum(map(len, places))
        begun = [[(seq, j) for seq, n in parts for j in range(n)] for parts in self.selector.waiting.values()]
        filling = [place for group in (spare or places or begun) for place in group]
        if missing and not filling:
            raise ShortfallError("This step rolled out no group at all; there is nothing to train on.")
        fillers = [filling[i % len(filling)] for i in range(missing)]
        rows = [place for group in places for place in group] + fillers
        every = [factor for group in factors for factor in group] + [0.0] * missing
        whole = {self.selector.group_size}
        if kept is None or (set(map(len, places)) == whole == set(kept.asked.tolist()) and missing % max(whole) == 0):
            return Batch(rows, every, [], [], [])
        of_group = [(i, j) for i in range(len(kept)) for j in np.flatnonzero(kept.trained[i]).tolist()]
        groups = [self._tickets_of(ticket.seq) for ticket in kept.tickets]
        return Batch(rows, every, groups, of_group + [(-1, 0)] * missing, [])

    def _places(self, first: Ticket) -> list[Place]:
        """Where the rollouts of a group are, in the order of the columns of `Groups`."""
        return [(seq, j) for seq, rollouts in self._chains[first.seq] for j in range(rollouts)]

    def _roll_out(self, step: Step, tickets: list[Ticket]) -> list[Outcome]:
        started = time.perf_counter()
        asked: list[Asked] = [(t.seq, t.row, t.rollouts) for t in tickets]
        rewards, entropies, lengths, truncated, reward_s = self._everywhere("roll", asked)
        step.note(rollout_s=time.perf_counter() - started - reward_s, reward_s=reward_s)
        total = self._total(rewards).double().cpu().numpy()
        correct = None
        if self.outcome is not None:
            verdict = rewards[:, self.trainer.reward_func_names.index(self.outcome)].double().cpu().numpy()
            correct = np.where(np.isnan(verdict), np.nan, verdict >= self.correct_at)
        tokens, cut = lengths.cpu().numpy(), truncated.cpu().numpy().astype(np.bool_)
        entropy = None if entropies is None else entropies.cpu().numpy()
        outcomes, at = [], 0
        for ticket in tickets:
            own = slice(at, at + ticket.rollouts)
            at += ticket.rollouts
            outcomes.append(
                Outcome(
                    ticket=ticket,
                    rewards=total[own].tolist(),
                    correct=None if correct is None else correct[own].tolist(),
                    statuses=["truncated" if t else "ok" for t in cut[own]] if cut[own].any() else None,
                    rollout_entropy=None if entropy is None else entropy[own].tolist(),
                    response_tokens=int(tokens[own].sum()),
                )
            )
        return outcomes

    def _total(self, rewards: torch.Tensor) -> torch.Tensor:
        """(n,) weighted sum over the reward functions, as TRL forms it; NaN where every one of them said None."""
        total: torch.Tensor = (rewards * self.trainer.reward_weights.to(rewards)).nansum(dim=1)
        total[rewards.isnan().all(dim=1)] = torch.nan
        return total

    # -- resuming ------------------------------------------------------------------------------------------------------

    def take_up(self, folder: Path, kept: Kept) -> None:
        """After the selector was restored: the rollouts of groups that wait, whichever process saved them. They are of use only
        if all of them are there; else all processes forget them, and the selector gives their groups up.
        """
        trainer, failed = self.trainer, None
        accelerator, device = trainer.accelerator, trainer.accelerator.device
        files = trl_checkpoint.waiting_files(folder, kept, accelerator.process_index, accelerator.num_processes)
        try:
            self.store.load(files, len(trainer.reward_weights), device, kept)
        except (OSError, ValueError) as error:
            failed = f"{folder}: rollouts of groups that wait cannot be read: {error!r}"
        if failures := [failure for failure in gather_object([failed]) if failure is not None]:
            self.store.keep_only([])
            self.selector.problem(StateError(f"{failures[0]}. Groups that were begun are given up."))
            return
        if accelerator.num_processes > 1:
            for known in gather_object([self.store.known()]):
                self.store.learn(known, device)
        if not complete(gather_object([self.store.held()])):
            self.store.keep_only([])

    # -- all processes in step -----------------------------------------------------------------------------------------

    def _send(self, message: tuple[str, Any]) -> None:
        if self.trainer.accelerator.num_processes > 1:
            broadcast_object_list([message], from_process=0)

    def _follow(self) -> Batch:
        """Every other process: do what the main one says until the batch is decided."""
        while True:
            box: list[Any] = [None]
            broadcast_object_list(box, from_process=0)
            order, argument = box[0]
            if order == "abort":
                raise HostError(f"The main process stopped this step: {argument}")
            if order == "final":
                return Batch(*argument)
            self._do(order, argument)

    def _everywhere(self, order: str, argument: Any) -> Any:
        self._send((order, argument))
        self._in_order = True
        answer = self._do(order, argument)
        self._in_order = False
        return answer

    def _score_everywhere(self, name: Signal, rows: Ints) -> Floats:
        """A signal of prompts; where a process could not score its share, an error here and nowhere else."""
        values, errors = self._everywhere("score", (name, rows))
        if errors:
            raise SignalError(f"signal({name!r}) failed: {errors[0]}.")
        scored: Floats = values
        return scored

    def _do(self, order: str, argument: Any) -> Any:
        return self._do_roll(argument) if order == "roll" else self._do_score(*argument)

    def _share(self, n: int) -> tuple[int, int]:
        """(rows of each process, rows of padding) when `n` rows are split evenly."""
        processes = self.trainer.accelerator.num_processes
        each = -(-n // processes)
        return each, each * processes - n

    def _do_roll(self, asked: Sequence[Asked]) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, float]:
        """Generate and score one round.

        Returns, for all its rollouts: rewards (n, functions), entropies, token counts, cut off or not; and reward seconds.
        """
        trainer, accelerator, group = self.trainer, self.trainer.accelerator, self.trainer.num_generations
        rows = [row for _, row, n in asked for _ in range(n)]
        real, last = len(rows), rows[-1]
        even = all(n == group for _, _, n in asked)
        while len(rows) % accelerator.num_processes:  # so that every process has the same number; whole groups where it is even
            rows += [last] * (group if even else 1)
        each = len(rows) // accelerator.num_processes
        flat = rows[accelerator.process_index * each : (accelerator.process_index + 1) * each]
        inputs = self._examples(flat)
        prompts = [example["prompt"] for example in inputs]

        limit = self.generate_rows or (each if getattr(trainer, "use_vllm", False) else self._local_rows)
        whole = even and (each <= limit or each % group == limit % group == 0)  # groups in each call, over all processes
        with contextlib.nullcontext() if whole else self._one_by_one():
            parts = [trainer._generate(prompts[i : i + limit]) for i in range(0, each, limit)]
        generated = joined(parts)
        for name, values in generated[5].items():  # extra fields of a rollout_func belong to the reward functions
            for i, example in enumerate(inputs):
                example[name] = values[i] if isinstance(values, list) else values
        started = time.perf_counter()
        rewards = trainer._calculate_rewards(inputs, prompts, generated[3], generated[1])
        reward_s = time.perf_counter() - started
        # TRL would read short columns of log_extra row by row, too
        extra = {name: [*values, *[None] * each][:each] for name, values in trainer._pending_extra_logs.items()}
        trainer._pending_extra_logs.clear()
        usable = rewards.clone()
        usable[~self._total(rewards).isfinite()] = torch.nan  # what counts as missing here is unscored for TRL
        self.store.add_round(asked, Rollouts(flat, generated, extra), usable, accelerator.process_index)

        counts = accelerator.gather(torch.tensor(self._counted(generated), device=accelerator.device))[:real]
        entropies = None
        if ROLLOUT_ENTROPY in self.selector.method.needs:
            with accelerator.autocast():
                values = response_entropy(self.signals.scorer(PROMPT_ENTROPY).tokens, generated[0], generated[1])
            entropies = accelerator.gather(torch.as_tensor(values, device=accelerator.device, dtype=torch.float64))[:real]
        return rewards[:real], entropies, counts[:, 0], counts[:, 1], reward_s

    @contextlib.contextmanager
    def _one_by_one(self) -> Iterator[None]:
        """Where a call does not hold whole groups of one size: vLLM gets each prompt as often as it is to be answered, one
        answer each. Else it would take the first of every `num_generations` prompts for all of them.
        """
        trainer = self.trainer
        group, trainer.num_generations = trainer.num_generations, 1
        try:
            yield
        finally:
            trainer.num_generations = group

    def _counted(self, generated: tuple[Any, ...]) -> list[tuple[int, bool]]:
        """For each rollout of this process: tokens that the model generated, and whether it was cut off (as TRL says)."""
        trainer = self.trainer
        ends = {*trainer.eos_token_ids, trainer._tokenizer.pad_token_id}
        masks = generated[2] or [None] * len(generated[1])
        return [
            (len(ids) if mask is None else int(sum(mask)), len(ids) > 0 and ids[-1] not in ends)
            for ids, mask in zip(generated[1], masks, strict=True)
        ]

    def _do_score(self, name: Signal, rows: Ints) -> tuple[Floats, list[str]]:
        """A signal of `rows`, each process scoring its share with the weights it holds; and what went wrong, anywhere."""
        accelerator = self.trainer.accelerator
        each, padding = self._share(len(rows))
        padded = np.concatenate([rows, np.repeat(rows[-1:], padding)])
        mine = padded[accelerator.process_index * each : (accelerator.process_index + 1) * each]
        values, errors = np.full(each, np.nan), []
        try:
            values = self.signals.measured(name, mine.tolist())
        except Exception as error:  # the others are about to gather: tell them, do not leave them
            errors = [f"{type(error).__name__}: {error}"]
        gathered: Floats = (
            accelerator.gather(torch.as_tensor(values, device=accelerator.device, dtype=torch.float64)).cpu().numpy()
        )
        return gathered[: len(rows)], gather_object(errors)

    def _fetch(self, places: list[Place]) -> list[dict[str, Any]]:
        """The records of the training batch, from whichever process generated them."""
        held = {at: record for at, place in enumerate(places) if (record := self.store.record(place)) is not None}
        if self.trainer.accelerator.num_processes > 1:
            held = {at: record for part in gather_object([held]) for at, record in part.items()}
        return [held[at] for at in range(len(places))]

    # -- logging ---------------------------------------------------------------------------------------

    def take_logs(self) -> dict[str, float]:
        """`edgewise/...` values since the last call: totals and levels as they stand, everything else averaged over steps."""
        pending, self._pending_logs = self._pending_logs, []
        if not pending:
            return {}
        names = {name for metrics in pending for name in metrics}
        values = {}
        for name in sorted(names):
            series = [metrics[name] for metrics in pending if name in metrics]
            values[f"edgewise/{name}"] = series[-1] if name in _LEVELS else sum(series) / len(series)
        return values
