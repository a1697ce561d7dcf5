"""TRL's `GRPOTrainer`: one line turns it into a trainer that selects prompts.

    from edgewise.hosts.trl import attach

    trainer = GRPOTrainer(model=..., reward_funcs=..., args=..., train_dataset=...)
    attach(trainer, "hive")
    trainer.train()                         # resume_from_checkpoint=True works as ever

How it plugs in. TRL offers no seam for rolling out more groups than it trains on. Here each generation step first runs
*rounds*: rows that the selector chose go through the trainer's own `_generate` and `_calculate_rewards`, until enough
groups are kept. Then TRL's `_generate_and_score_completions` is called once, on exactly the rows of the training batch,
while `_generate` and `_calculate_rewards` *replay* what the rounds produced. So padding, advantages, old and reference
log-probabilities, and logging stay TRL's own code, run once, on a batch of exactly the shape the optimizer expects;
nothing is merged or metered twice.

Selection sees every earlier reward (no lag): it happens inside generation, and the rows that TRL's data loader fetched are
ignored. Several processes: the selector lives on the main one; picks, signals and rounds are carried out by all in step.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import trl
from datasets import IterableDataset

from edgewise.errors import ConfigError, DegradedWarning, HostError, nearest
from edgewise.foreign import shown
from edgewise.hosts import trl_checkpoint
from edgewise.hosts.trl_rounds import Rounds
from edgewise.method import Method
from edgewise.pool import PromptPool
from edgewise.selector import Selector
from edgewise.types import Ints, Signal

TESTED = "1.16.0"
"""The TRL release that the tests run against."""

_SEAM: dict[str, tuple[str, ...]] = {
    "_generate_and_score_completions": ("inputs",),
    "_generate": ("prompts",),
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_tokenize_prompts": ("prompts",),
    "_remove_unused_columns": ("dataset", "description"),
    "_prepare_inputs": ("generation_batch",),
    "_save_checkpoint": ("model", "trial"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_get_output_dir": ("trial",),
    "log": ("logs", "start_time"),
}
_ATTRIBUTES = (
    "accelerator",
    "model",
    "num_generations",
    "num_iterations",
    "reward_weights",
    "reward_func_names",
    "scale_rewards",
    "multi_objective_aggregation",
    "train_dataset",
    "state",
    "eos_token_ids",
    "_tokenizer",
    "_step",
    "_buffered_inputs",
    "_pending_extra_logs",
    "_pending_metrics",
    "_logs",
    "_metrics",
)
_ARGUMENTS = (
    "generation_batch_size", "steps_per_generation", "per_device_train_batch_size", "seed", "max_steps",
    "gradient_accumulation_steps",
)  # fmt: skip


def attach(
    trainer: Any,
    method: str | Method | Selector = "hive",
    *,
    parameters: Mapping[str, Any] | None = None,
    outcome: str | None = None,
    correct_at: float = 0.5,
    id_column: str | None = None,
    seed: int | None = None,
    signals: Mapping[Signal, Callable[[Ints], Any]] | None = None,
    on_problem: Literal["degrade", "strict"] = "degrade",
    resume: Literal["exact", "adapt", "fresh"] = "exact",
    generate_rows: int | None = None,
    total_steps: int | None = None,
) -> Selector:
    """Let edgewise choose the prompts of a `trl.GRPOTrainer`. Call it before `trainer.train()`; every process must.

    Args:
        trainer: a GRPOTrainer (or a subclass of one) with a map-style train_dataset.
        method: a name that `edgewise methods` lists, a composition's file, a `Method`, or a `Selector` over the same dataset.
        parameters: hyper-parameters for a method given by name.
        outcome: name of the reward function that is the verifier. Its value from `correct_at` on means "correct", apart from
            the shaped reward. Name it when there are several; without it groups are judged on the weighted sum.
        correct_at: see `outcome`.
        id_column: column with stable prompt ids; by default found as `PromptPool.from_dataset` says.
        seed: of prompt order and draws; default the trainer's own.
        signals: extra signals, name -> function of (n,) dataset rows, run on the main process.
        on_problem: "degrade" or "strict", as in `Selector`.
        resume: what to do when the trainer resumes. "exact" needs the selector state in the checkpoint; "fresh" starts from
            priors if it has none. "adapt" as "exact", and takes up a state of other settings, see `Selector`; a `Selector` that
            is given must have been made with it.
        generate_rows: rollouts a process generates in one call, at most. Default: TRL's own local generation batch, so memory
            stays what the user sized; with vLLM the whole round.
        total_steps: generation batches that the run will make, for methods that follow a schedule; default from `max_steps`.

    Returns the selector; on processes other than the main one it stands idle. Raises HostError (seam moved, feature not
    carried, signal not served), ConfigError, PoolError, and SignalError for a model whose prompts cannot be scored.

    A step that ends short is filled up with groups that were dropped; their advantages are 0. With `scale_rewards="batch"`
    their rewards are still part of the batch's standard deviation. A checkpoint whose selector state cannot be written (a
    full disk) does not stop the training unless `on_problem="strict"`; resuming from it is refused.
    """
    _check_seam(trainer)
    if isinstance(trainer, _SelectingMixin):
        raise HostError("attach(trainer): edgewise is attached to this trainer already; attach once.")
    _refuse_what_is_not_carried(trainer)
    _refuse_wrong_arguments(outcome, signals, resume, generate_rows, total_steps)
    groups, rest = divmod(trainer.args.generation_batch_size, trainer.num_generations)
    if rest:
        raise HostError(
            f"generation_batch_size {trainer.args.generation_batch_size} is no multiple of num_generations "
            f"{trainer.num_generations}. Change one of them."
        )
    if len(trainer.train_dataset) < groups:
        raise ConfigError(
            f"attach(trainer): the pool holds {len(trainer.train_dataset)} prompts, and this trainer generates {groups} groups "
            "at a time (generation_batch_size / num_generations): TRL's own data loader would give not one batch, and the "
            "training would end at once. Add prompts or lower generation_batch_size."
        )
    names = list(trainer.reward_func_names)
    if outcome is not None and outcome not in names:
        hint = nearest(outcome, names)
        raise ConfigError(f"attach(outcome={shown(outcome)}): no reward function has that name; there are {names}.{hint}")
    if outcome is None and len(names) > 1:
        warnings.warn(
            f"edgewise: {len(names)} reward functions {names} and no attach(outcome=...): groups are judged on the weighted "
            "sum. Name the verifier to keep shaping rewards out of the decision.",
            DegradedWarning,
            stacklevel=2,
        )
    if isinstance(method, Selector):
        selector = method
        theirs = {"parameters": parameters or None, "seed": seed, "id_column": id_column, "total_steps": total_steps}
        given = [name for name, value in theirs.items() if value is not None] + ["on_problem"] * (on_problem != "degrade")
        if given:
            raise ConfigError(f"attach(trainer, Selector): {', '.join(given)} belong to the Selector; give them there.")
        if (selector.batch_size, selector.group_size) != (groups, trainer.num_generations):
            raise HostError(
                f"The Selector has batch_size {selector.batch_size} x group_size {selector.group_size}; this trainer generates "
                f"{groups} groups of {trainer.num_generations} (generation_batch_size / num_generations)."
            )
        if len(selector.pool) != len(trainer.train_dataset):
            raise HostError(
                f"The Selector's pool has {len(selector.pool)} prompts, train_dataset {len(trainer.train_dataset)}. Make both "
                "from the same dataset; merge duplicates before the trainer sees it."
            )
    else:
        pool = PromptPool.from_dataset(trainer.train_dataset, id_column=id_column)
        selector = Selector(
            method,
            pool,
            batch_size=groups,
            group_size=trainer.num_generations,
            seed=trainer.args.seed if seed is None else seed,
            parameters=parameters,
            on_problem=on_problem,
            correct_at=correct_at,
            total_steps=total_steps or _generations(trainer),
            resume="adapt" if resume == "adapt" else "auto",
        )
    host = Rounds(trainer, selector, outcome, correct_at, dict(signals or {}), resume, generate_rows)
    host.check_signals()
    cls = type(trainer)
    trainer.__class__ = type(f"Selecting{cls.__name__}", (_SelectingMixin, cls), {})
    trainer._edgewise = host
    return selector


_RESUMES = ("exact", "adapt", "fresh")
_MOST_ROWS = 2**31


def _refuse_wrong_arguments(
    outcome: object, signals: object, resume: object, generate_rows: object, total_steps: object
) -> None:
    """Raise ConfigError for those that `Selector` does not look at."""
    if outcome is not None and not isinstance(outcome, str):
        raise ConfigError(f"attach(outcome=...) must be the name of a reward function, or None, got {shown(outcome)}.")
    plain = isinstance(signals, Mapping) and all(isinstance(k, str) and callable(f) for k, f in signals.items())
    if signals is not None and not plain:
        raise ConfigError(f"attach(signals=...) must be a mapping of names to functions, or None, got {shown(signals)}.")
    if not isinstance(resume, str) or resume not in _RESUMES:
        hint = nearest(resume, _RESUMES) if isinstance(resume, str) else ""
        raise ConfigError(f"attach(resume=...) must be {' or '.join(map(repr, _RESUMES))}, got {shown(resume)}.{hint}")
    for name, value in (("generate_rows", generate_rows), ("total_steps", total_steps)):
        whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_ROWS
        if value is not None and not whole:
            raise ConfigError(f"attach({name}=...) must be a whole number >= 1 or None, got {shown(value)}.")


def _generations(trainer: Any) -> int | None:
    """Generation batches that the whole run will make; None where only epochs are given, which mean nothing here."""
    args = trainer.args
    if args.max_steps <= 0:
        return None
    each = args.steps_per_generation * trainer.num_iterations
    return max(1, -(-int(args.max_steps) * int(args.gradient_accumulation_steps) // int(each)))


def _check_seam(trainer: Any) -> None:
    """Every name this host leans on, checked before anything runs."""
    problems = _missing(trainer)
    if problems:
        raise HostError(
            f"edgewise.hosts.trl is tested with TRL {TESTED}; this is TRL {trl.__version__} with {type(trainer).__name__}, "
            "which has "
            + "; ".join(problems)
            + ". Install a tested TRL, or drive the Selector yourself: `step.requests` before rollouts, `step.report` after."
        )


def _missing(trainer: Any) -> list[str]:
    """What the trainer lacks, in words."""
    problems = []
    for name, arguments in _SEAM.items():
        function = getattr(type(trainer), name, None)
        if function is None:
            problems.append(f"no method `{name}`")
            continue
        found = tuple(inspect.signature(function).parameters)[1 : 1 + len(arguments)]
        if found != arguments:
            problems.append(f"`{name}{arguments}` now takes {found}")
    problems += [f"no attribute `{name}`" for name in _ATTRIBUTES if not hasattr(trainer, name)]
    args = getattr(trainer, "args", None)
    return problems + [f"no `args.{name}`" for name in _ARGUMENTS if not hasattr(args, name)]


def _refuse_what_is_not_carried(trainer: Any) -> None:
    refused = {
        "an iterable train_dataset (prompts cannot be chosen from a stream)": isinstance(
            trainer.train_dataset, (IterableDataset, torch.utils.data.IterableDataset)
        ),
        "tools": bool(getattr(trainer, "tools", None)),
        "environment_factory": getattr(trainer, "environment_factories", None) is not None,
        "images": bool({"image", "images"} & set(getattr(trainer.train_dataset, "column_names", None) or ())),
    }
    for what, present in refused.items():
        if present:
            raise HostError(f"edgewise.hosts.trl does not carry {what} yet. Train without it, or drive the Selector yourself.")


class _SelectingMixin:
    """Put in front of the trainer's class by `attach`. Thin: the work is in `Rounds`."""

    _edgewise: Rounds

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        host = self._edgewise
        if not self.model.training:  # type: ignore[attr-defined]
            return super()._generate_and_score_completions(inputs)  # type: ignore[misc, no-any-return]
        rows, replay = host.choose(len(inputs))
        host.replay = replay
        try:
            batch = super()._generate_and_score_completions(rows)  # type: ignore[misc]
        finally:
            host.replay = None
        batch["advantages"] = replay.of(batch["advantages"])
        if replay.advantages is not None:  # TRL cut them into groups of one size for its log
            logged, every = self._logs["advantages"], (replay.advantages.cpu() * replay.factors).tolist()  # type: ignore[attr-defined]
            for _ in range(min(len(logged), len(every))):
                logged.pop()
            logged.extend(every)
            zero = float((replay.advantages == 0).float().mean())  # before weights: fillers, and groups that are all alike
            self._metrics["train"]["frac_reward_zero_std"][-1] = zero  # type: ignore[attr-defined]
        return batch  # type: ignore[no-any-return]

    def _generate(self, prompts: list[Any]) -> Any:
        replay = self._edgewise.replay
        return super()._generate(prompts) if replay is None else replay.generated()  # type: ignore[misc]

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        replay = self._edgewise.replay
        if replay is None:
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)  # type: ignore[misc]
        return replay.rewards

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:  # type: ignore[attr-defined]
            logs.update(self._edgewise.take_logs())
        super().log(logs, start_time)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Before the weights: a checkpoint that TRL finished is then never without its selector state.
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"  # type: ignore[attr-defined]
        trl_checkpoint.save(self, self._edgewise.selector, folder, self._edgewise.store)
        super()._save_checkpoint(model, trial)  # type: ignore[misc]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None:
            host = self._edgewise
            trl_checkpoint.restore(self, host.selector, Path(checkpoint), host.resume, host.take_up)
