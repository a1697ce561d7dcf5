"""What edgewise adds to the trainer's checkpoints: the selector's state, and the generation cycle that TRL itself would lose.

    checkpoint-N/edgewise/selector.safetensors     the selector, written by the main process
    checkpoint-N/edgewise/buffer-R.safetensors     process R: its place in the generation cycle and the batch it still trains on
    checkpoint-N/edgewise/waiting-R.json           process R: its rollouts of groups that wait for more, if there are any

All processes take the same decisions: what the main one finds is broadcast, and the cycle is continued by all or by none.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError

from edgewise import state
from edgewise.errors import DegradedWarning, StateError
from edgewise.hosts import trl_cycle
from edgewise.hosts.trl_made import Store
from edgewise.selector import Selector

_FOLDER = "edgewise"
_STATE = "selector.safetensors"
_LAST = "trainer_state.json"
"""What TRL writes last: a checkpoint that has it is complete."""


class Kept(NamedTuple):
    """What the main process found, told to all.

    of: hash of the selector's state, which our other files name.  processes: of the run that saved it.
    waiting: ticket -> (pool row, rollouts), of groups that wait.  tokens, positions: what the model can have generated.
    """

    of: str
    processes: int
    waiting: dict[int, tuple[int, int]]
    tokens: int
    positions: int


def save(trainer: Any, selector: Selector, checkpoint: Path, store: Store) -> None:
    """Write our part of a checkpoint, durably. A disk that refuses never stops the training: it costs the exact resume, and
    says so.

    Where there was a checkpoint already (the run went back to an older one), TRL's `trainer_state.json` is removed first: if it
    is killed now, the folder would else be taken for complete, with weights of one run and a selector of another.
    """
    accelerator = trainer.accelerator
    folder, main, rank = checkpoint / _FOLDER, accelerator.is_main_process, accelerator.process_index
    failed: str | None = None
    of: list[str | None] = [None]
    try:
        if folder.is_symlink():
            raise StateError(f"{folder} is a symbolic link, through which nothing is written")
        if main and (checkpoint / _LAST).exists():
            (checkpoint / _LAST).unlink()
            state.sync_folder(checkpoint)  # also if the power is cut: before anything else is another
        for file in _former(folder, None if main else rank):
            file.unlink(missing_ok=True)
        if main:
            selector.save(folder / _STATE)
            of = [_hash(folder / _STATE)]
    except (OSError, StateError, TypeError, ValueError) as error:
        failed = str(error)
    broadcast_object_list(of, from_process=0)  # nobody writes before the main one has cleared the folder
    if of[0] is not None and failed is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            trl_cycle.save(trainer, folder / _buffer(rank), of[0])
            store.save(folder / _waiting(rank), of[0], trl_cycle.positions(trainer))
            for above in (checkpoint, checkpoint.parent) if main else ():
                state.sync_folder(above)
        except (OSError, SafetensorError, StateError, TypeError, ValueError) as error:
            failed = str(error)
    if failures := [failure for failure in gather_object([failed]) if failure is not None]:
        selector.problem(
            StateError(
                f"The selector's part of {checkpoint} could not be written: {failures[0]}. Training goes on, but not from this "
                "checkpoint: resume from an older one, or with attach(..., resume='fresh')."
            )
        )


def _buffer(process: int | str) -> str:
    return f"buffer-{process}.safetensors"


def _waiting(process: int | str) -> str:
    return f"waiting-{process}.json"


def waiting_files(folder: Path, kept: Kept, process: int, processes: int) -> list[Path]:
    """The files of rollouts that this process takes up: its own, and those of processes that are no more."""
    found = {file.name: file for file in folder.glob(_waiting("*"))}
    ranks = range(process, kept.processes, processes)
    return [found[name] for name in map(_waiting, ranks[: len(found) + 1]) if name in found]


def _former(folder: Path, process: int | None) -> list[Path]:
    """Files of an earlier run into the same folder, and of a killed one, never to be taken for this one's: of one process, or
    of all and the selector.
    """
    if not folder.is_dir():
        return []
    if process is not None:
        return [folder / _buffer(process), folder / _waiting(process)]
    patterns = (_STATE, _buffer("*"), _waiting("*"), ".*.tmp")
    return sorted(file for pattern in patterns for file in folder.glob(pattern))


def restore(trainer: Any, selector: Selector, checkpoint: Path, resume: str, take_up: Callable[[Path, Kept], None]) -> None:
    """Continue exactly from `checkpoint`: the selector, the place in the generation cycle, the buffered batch, and what waits.

    take_up: reads the rollouts of groups that wait from this folder.

    Raises StateError and its children on every process, unless resume="fresh" and there is nothing to restore.
    """
    accelerator = trainer.accelerator
    found: list[Any] = [None]
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            kept = _restore_selector(trainer, selector, checkpoint, resume)
            found = [None if kept is None else tuple(kept)]
        except Exception as error:
            failure = error
            found = [[str(error)]]
    broadcast_object_list(found, from_process=0)
    if failure is not None:
        raise failure
    if isinstance(found[0], list):
        raise StateError(*found[0])
    if found[0]:
        kept = Kept(*found[0])
        take_up(checkpoint / _FOLDER, kept)
        _restore_cycle(trainer, selector, checkpoint / _FOLDER, kept)
        _warn_of_random_states(trainer, checkpoint, kept)


def _restore_selector(trainer: Any, selector: Selector, checkpoint: Path, resume: str) -> Kept | None:
    """What the others must know; None starts from priors."""
    folder = checkpoint / _FOLDER
    file = folder / _STATE
    if not os.path.lexists(file) and not folder.is_symlink():
        message = f"The checkpoint {checkpoint} has no selector state ({_FOLDER}/{_STATE})."
        if resume != "fresh":
            raise StateError(f"{message} Pass attach(trainer, ..., resume='fresh') to start from priors.")
        warnings.warn(f"edgewise: {message} Starting from priors.", DegradedWarning, stacklevel=4)
        return None
    if folder.is_symlink() or file.is_symlink():
        raise StateError(f"{file} is reached by a symbolic link, which is not followed. Put the file itself there.")
    processes = _require_this_step(trainer, folder, checkpoint)
    selector.restore(file)
    waiting = {
        seq: (selector._waiting[first].first.row, rollouts)
        for first, parts in selector.waiting.items()
        for seq, rollouts in parts
    }
    return Kept(_hash(file), processes, waiting, trl_cycle.vocabulary(trainer), trl_cycle.positions(trainer))


def _require_this_step(trainer: Any, folder: Path, checkpoint: Path) -> int:
    """Refuse a selector of another step than that of the weights. Returns the processes that saved it, where that is known."""
    accelerator = trainer.accelerator
    try:
        said = trl_cycle.facts(trainer, folder / _buffer(0))
        trained, processes = int(said.get("trained", trainer.state.global_step)), int(said["processes"])
    except (OSError, ValueError, KeyError):  # told later, when the file is read
        return int(accelerator.num_processes)
    if trained != trainer.state.global_step:
        raise StateError(
            f"{folder} was saved after step {trained}, and {checkpoint} is of step {trainer.state.global_step}: these weights "
            "and this selector do not belong together. Resume from a checkpoint that nobody put together by hand."
        )
    return processes if 0 < processes <= 1 << 20 else int(accelerator.num_processes)


def _restore_cycle(trainer: Any, selector: Selector, folder: Path, kept: Kept) -> None:
    """Take up the cycle where every process can; else TRL starts a new one, on all of them."""
    file = folder / _buffer(trainer.accelerator.process_index)
    loaded, failed, other = None, None, None
    try:
        loaded = trl_cycle.load(trainer, file, kept.of)
    except trl_cycle.AnotherShape as error:
        other = f"{error}" if error.lost else ""
    except (OSError, SafetensorError, ValueError, ArithmeticError, RuntimeError) as error:
        failed = f"{file} cannot be read: {error!r}"
    told = gather_object([(loaded is not None, failed, other)])  # first: in strict mode all raise, or the rest would wait
    others = [other for _, _, other in told if other is not None]
    if others:  # of another number of processes there need not be a file for each
        if trainer.accelerator.is_main_process and any(others):
            warnings.warn(
                f"edgewise: {folder} was saved in the middle of a generation cycle with another batch or number of processes "
                f"({max(others)}). What was generated is not trained on further; a new generation starts at once.",
                DegradedWarning,
                stacklevel=4,
            )
        return
    if failures := [failure for _, failure, _ in told if failure is not None]:
        selector.problem(StateError(f"{failures[0]}. A new generation starts at once; the rest is as it was."))
    if loaded is None or not all(taken for taken, _, _ in told):
        return
    trainer._step, batch = loaded
    if batch:
        device = trainer.accelerator.device
        trainer._buffered_inputs = [{name: tensor.to(device) for name, tensor in part.items()} for part in batch]


def _warn_of_random_states(trainer: Any, checkpoint: Path, kept: Kept) -> None:
    """TRL's main process completes a checkpoint without waiting for the random states of the others, and a resumed run goes on
    without those that a kill has cost, all but silently: the prompts are the same, what is generated is not.
    """
    accelerator = trainer.accelerator
    alone = accelerator.num_processes == 1
    file = checkpoint / ("rng_state.pth" if alone else f"rng_state_{accelerator.process_index}.pth")
    if kept.processes != accelerator.num_processes:  # announced by transformers, and meant
        return
    missing = [name for name in gather_object([None if file.is_file() else file.name]) if name is not None]
    if missing and accelerator.is_main_process:
        warnings.warn(
            f"edgewise: {checkpoint} lacks {', '.join(missing)}: it was not written to its end. Rollouts will differ from "
            "those of the uninterrupted run. Resume from an older checkpoint for the same run.",
            DegradedWarning,
            stacklevel=4,
        )


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
