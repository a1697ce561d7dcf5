"""TRL's generation cycle in a checkpoint: the place in it, and the generated batch of which a part is still to be trained on.

TRL itself loses both. One file a process, in safetensors, read with suspicion: its size, its header, and the name, type and
shape of every tensor are held against the trainer before a byte of them is used; then a SHA-256, then the values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from edgewise import foreign, state
from edgewise.foreign import shown

_MOST_HEADER = 1 << 20
_ALWAYS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")
"""What TRL puts into every batch."""
_TYPES = {
    "BOOL": torch.bool, "I64": torch.int64, "I32": torch.int32, "F64": torch.float64, "F32": torch.float32,
    "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip
_FACTS = ("processes", "rows", "parts", "iterations")
"""What a cycle must have in common with the trainer that continues it; where it has not, TRL starts a new one."""


class AnotherShape(Exception):
    """The cycle is of another number of processes, or another shape of the batch: sound, but of no use here.

    lost: whether a batch was to be trained on still.
    """

    def __init__(self, said: Mapping[str, str], wanted: Mapping[str, str], lost: bool) -> None:
        changed = [name for name in _FACTS if said.get(name) != wanted[name]]
        super().__init__(", ".join(f"{name} {said.get(name)}, now {wanted[name]}" for name in changed))
        self.lost = lost


def shape(trainer: Any) -> dict[str, str]:
    """See `_FACTS`."""
    args = trainer.args
    values = (
        trainer.accelerator.num_processes, args.per_device_train_batch_size, args.steps_per_generation, trainer.num_iterations,
    )  # fmt: skip
    return dict(zip(_FACTS, map(str, values), strict=True))


def positions(trainer: Any) -> int:
    """Tokens that one sequence of this model may have at most: four times what its configuration says, a million if nothing."""
    config = getattr(trainer.accelerator.unwrap_model(trainer.model), "config", None)
    config = getattr(config, "text_config", None) or config
    most = getattr(config, "max_position_embeddings", None)
    return max(4096, 4 * most) if isinstance(most, int) and most > 0 else 1 << 20


def vocabulary(trainer: Any) -> int:
    """Tokens that the model knows; the largest number of all where it does not say."""
    known = getattr(trainer.accelerator.unwrap_model(trainer.model).get_input_embeddings(), "num_embeddings", None)
    return known if isinstance(known, int) and known > 0 else 1 << 62


def save(trainer: Any, file: Path, of: str) -> None:
    """Write it durably. `of` names the selector's state to which it belongs. Raises OSError, SafetensorError, ValueError."""
    tensors: dict[str, torch.Tensor] = {"step": torch.tensor(trainer._step)}
    if trainer._step % _every(trainer) and trainer._buffered_inputs is not None:
        for i, part in enumerate(trainer._buffered_inputs):
            held = {name: value for name, value in part.items() if isinstance(value, torch.Tensor)}
            tensors |= {f"{i}/{name}": value.detach().cpu().contiguous().clone() for name, value in held.items()}
    said = shape(trainer) | {"selector": of, "trained": str(trainer.state.global_step)}
    state.write(file, to_bytes(tensors, metadata=said | {"sha256": _digest(said, tensors)}))


def facts(trainer: Any, file: Path) -> dict[str, str]:
    """What the header of a file says, all of it text. Raises OSError and ValueError."""
    return _opened(trainer, file)[1]


def load(trainer: Any, file: Path, of: str) -> tuple[int, list[dict[str, torch.Tensor]]]:
    """(the trainer's `_step`, the parts of the buffered batch, none between two cycles), as `save` got them.

    Raises AnotherShape; and FileNotFoundError, OSError, SafetensorError, ValueError for what cannot be used at all.
    """
    data, said, entries = _opened(trainer, file)
    wanted = shape(trainer)
    if {name: said.get(name) for name in _FACTS} != wanted:
        raise AnotherShape(said, wanted, lost=len(entries) > 1)
    if "selector" in said and said["selector"] != of:  # a file of format 1 does not say
        raise ValueError("it belongs to another state of the selector than the one beside it")
    parts = int(wanted["parts"])
    _require_entries(entries, parts, int(wanted["rows"]), positions(trainer))
    tensors = from_bytes(data)
    digest = said.pop("sha256", None)
    if _digest(said if "selector" in said else {}, tensors) != digest:
        raise ValueError("its SHA-256 does not match its content")
    step = int(tensors.pop("step").item())
    if step < 0 or bool(tensors) != bool(step % _every(trainer)):
        raise ValueError(f"its place {step} in the cycle does not go with {len(tensors)} tensors")
    batch: list[dict[str, torch.Tensor]] = [{} for _ in range(parts)] if tensors else []
    for name, tensor in tensors.items():
        number, _, key = name.partition("/")
        batch[int(number)][key] = tensor
    for part in batch:
        _require_values(part, vocabulary(trainer))
    return step, batch


def _every(trainer: Any) -> int:
    """Steps of a cycle."""
    return int(trainer.args.steps_per_generation * trainer.num_iterations)


def _opened(trainer: Any, file: Path) -> tuple[bytes, dict[str, str], dict[str, tuple[str, list[int]]]]:
    """(bytes, metadata, (type, shape) of each tensor). Raises OSError and ValueError."""
    args = trainer.args
    tokens = args.per_device_train_batch_size * args.steps_per_generation * positions(trainer)
    data = foreign.contents(file, _MOST_HEADER + 8 * 16 * tokens, links=False)  # at most 16 tensors of 8 bytes a token
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(_MOST_HEADER, len(data) - 8):
        raise ValueError(f"its header would have {length:,} bytes")
    header = foreign.loads(data[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    said = header.pop("__metadata__", None)
    if not isinstance(said, dict) or not all(isinstance(value, str) for value in said.values()):
        raise ValueError("it is no file of edgewise")
    try:
        entries = {name: (str(entry["dtype"]), [int(n) for n in entry["shape"]]) for name, entry in header.items()}
    except (KeyError, TypeError) as error:
        raise ValueError("its header is not that of a safetensors file") from error
    return data, said, entries


def _require_entries(entries: Mapping[str, tuple[str, list[int]]], parts: int, rows: int, most: int) -> None:
    """Raise ValueError unless these can be the tensors of a batch that this trainer generated."""
    if entries.get("step") != ("I64", []):
        raise ValueError("it does not say the place in the cycle")
    names = {name.partition("/")[2] for name in entries if name != "step"}
    wanted = {"step"} | {f"{i}/{name}" for i in range(parts) for name in names}
    if (names and not set(_ALWAYS) <= names) or wanted != entries.keys():
        raise ValueError(f"it does not hold {parts} parts of a batch, each with {', '.join(_ALWAYS)}")
    for i in range(parts if names else 0):
        width = [entries[f"{i}/{name}"][1][-1:] for name in ("prompt_ids", "completion_ids")]
        if [] in width or width[0][0] + width[1][0] > most:
            raise ValueError(f"its sequences are longer than the {most:,} tokens that this model may read")
        prompt, completion = (rows, width[0][0]), (rows, width[1][0])
        shapes = {(), (rows,), (rows, 1), prompt, completion, (rows, prompt[1] + completion[1])}
        exact = dict(zip(_ALWAYS, (prompt, prompt, completion, completion, (rows,)), strict=True))
        for name in names:
            kind, found = entries[f"{i}/{name}"]
            theirs = not name.endswith(("_ids", "_mask", "_logps", "_ratio"))  # of a subclass of the trainer: one entry a row
            fits = tuple(found) == exact[name] if name in exact else tuple(found) in shapes or (theirs and found[0] == rows)
            if kind not in _TYPES or not fits:
                raise ValueError(f"{i}/{name} is {kind} {shown(found)}, not what this trainer generates")
            whole = name.endswith(("_ids", "_mask"))
            real = name == "advantages" or name.endswith(("_logps", "_ratio"))
            if whole if _TYPES[kind].is_floating_point else real:
                raise ValueError(f"{i}/{name} is {kind}, which this trainer does not use for it")


def _require_values(part: Mapping[str, torch.Tensor], tokens: int) -> None:
    """Raise ValueError for numbers that no trainer holds."""
    for name, tensor in part.items():
        if name.endswith("_ids") and tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) < tokens:
            raise ValueError(f"{name} has tokens outside of 0 to {tokens - 1}")
        if name.endswith("_mask") and not bool(((tensor == 0) | (tensor == 1)).all()):
            raise ValueError(f"{name} has other values than 0 and 1")
    if not bool(torch.isfinite(part["advantages"]).all()):
        raise ValueError("its advantages are not finite")


def _digest(said: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> str:
    """safetensors does not notice a flipped bit by itself. Format 1 left the metadata out."""
    hasher = hashlib.sha256(json.dumps(dict(said), sort_keys=True).encode() if said else b"")
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
