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
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from edgewise.errors import DegradedWarning, StateError
from edgewise.hosts.trl_made import Store
from edgewise.selector import Selector

_FOLDER = "edgewise"
_STATE = "selector.safetensors"


def _waiting(process: int) -> str:
    return f"waiting-{process}.json"


def save(trainer: Any, selector: Selector, checkpoint: Path, store: Store) -> None:
    """Write our part of a checkpoint. A disk that refuses never stops the training: it costs the exact resume, and says so."""
    accelerator = trainer.accelerator
    folder = checkpoint / _FOLDER
    mine, waiting = folder / f"buffer-{accelerator.process_index}.safetensors", folder / _waiting(accelerator.process_index)
    own = [mine, waiting, folder / _STATE] if accelerator.is_main_process else [mine, waiting]
    failed = None
    try:
        for file in own:  # of an earlier run into the same folder: never to be taken for this one's
            file.unlink(missing_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        _save_cycle(trainer, mine)
        store.save(waiting)
        if accelerator.is_main_process:
            selector.save(folder / _STATE)
    except (OSError, SafetensorError, StateError, TypeError, ValueError) as error:
        failed = str(error)
    if failures := [failure for failure in gather_object([failed]) if failure is not None]:
        selector.problem(
            StateError(
                f"The selector's part of {checkpoint} could not be written: {failures[0]}. Training goes on, but not from this "
                "checkpoint: resume from an older one, or with attach(..., resume='fresh')."
            )
        )


def restore(trainer: Any, selector: Selector, checkpoint: Path, resume: str, take_up: Callable[[Path], None]) -> None:
    """Continue exactly from `checkpoint`: the selector, the place in the generation cycle, the buffered batch, and what waits.

    take_up: reads this process' rollouts of groups that wait.

    Raises StateError and its children on every process, unless resume="fresh" and there is nothing to restore.
    """
    accelerator = trainer.accelerator
    found: list[Any] = [None]
    failure: Exception | None = None
    if accelerator.is_main_process:
        try:
            found = [_restore_selector(selector, checkpoint, resume)]
        except Exception as error:
            failure = error
            found = [error.args]
    broadcast_object_list(found, from_process=0)
    if failure is not None:
        raise failure
    if isinstance(found[0], tuple):
        raise StateError(*found[0])
    if found[0]:
        take_up(checkpoint / _FOLDER / _waiting(accelerator.process_index))
        _restore_cycle(trainer, selector, checkpoint / _FOLDER / f"buffer-{accelerator.process_index}.safetensors")


def _restore_selector(selector: Selector, checkpoint: Path, resume: str) -> bool:
    """Whether there was a state; False starts from priors."""
    file = checkpoint / _FOLDER / _STATE
    if file.is_file():
        selector.restore(file)
        return True
    message = f"The checkpoint {checkpoint} has no selector state ({_FOLDER}/{_STATE})."
    if resume != "fresh":
        raise StateError(f"{message} Pass attach(trainer, ..., resume='fresh') to start from priors.")
    warnings.warn(f"edgewise: {message} Starting from priors.", DegradedWarning, stacklevel=4)
    return False


def _shape(trainer: Any) -> dict[str, str]:
    """What a cycle must have in common with the trainer that continues it."""
    args = trainer.args
    return {
        "processes": str(trainer.accelerator.num_processes),
        "rows": str(args.per_device_train_batch_size),
        "parts": str(args.steps_per_generation),
        "iterations": str(trainer.num_iterations),
    }


def _save_cycle(trainer: Any, file: Path) -> None:
    tensors: dict[str, torch.Tensor] = {"step": torch.tensor(trainer._step)}
    every = trainer.args.steps_per_generation * trainer.num_iterations
    if trainer._step % every and trainer._buffered_inputs is not None:
        for i, part in enumerate(trainer._buffered_inputs):
            held = {name: value for name, value in part.items() if isinstance(value, torch.Tensor)}
            tensors |= {f"{i}/{name}": value.detach().cpu().contiguous().clone() for name, value in held.items()}
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        save_file(tensors, temporary, metadata=_shape(trainer) | {"sha256": _digest(tensors)})
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _restore_cycle(trainer: Any, selector: Selector, file: Path) -> None:
    """Take up the cycle where every process can; else TRL starts a new one, on all of them."""
    tensors, failed = None, None
    try:
        tensors = _load_cycle(trainer, file)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        failed = f"{file} cannot be read: {error!r}"
    told = gather_object([(tensors is not None, failed)])  # first of all: in strict mode all raise, or the rest would wait
    if failures := [failure for _, failure in told if failure is not None]:
        selector.problem(StateError(f"{failures[0]}. A new generation starts at once; the rest is as it was."))
    if not all(taken for taken, _ in told) or tensors is None:
        return
    trainer._step = int(tensors.pop("step"))
    parts: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition("/")
        parts.setdefault(int(number), {})[key] = tensor.to(trainer.accelerator.device)
    if parts:
        trainer._buffered_inputs = [parts[i] for i in sorted(parts)]


def _load_cycle(trainer: Any, file: Path) -> dict[str, torch.Tensor] | None:
    """None if there is none, or one of another number of processes or batch shape."""
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as opened:
        said = dict(opened.metadata() or {})
        digest = said.pop("sha256", None)
        if said != _shape(trainer):
            return None
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (safe_open is no mapping)
    if _digest(tensors) != digest:
        raise ValueError("its SHA-256 does not match its content")
    tensors["step"].item()
    return tensors


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    """safetensors does not notice a flipped bit by itself."""
    hasher = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
