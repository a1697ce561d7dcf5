"""What a TRL trainer can tell a method about prompts: measured with its weights, read from its data set, or given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from edgewise.errors import HostError, SignalError
from edgewise.signals.entropy import PromptEntropy
from edgewise.signals.perplexity import PromptPerplexity
from edgewise.types import (
    ANCHOR_RATES,
    CATEGORY,
    DIFFICULTY,
    EMBEDDING,
    PROMPT_ENTROPY,
    PROMPT_PERPLEXITY,
    ROLLOUT_ENTROPY,
    Array,
    Floats,
    Ints,
    Signal,
)

_MEASURED: dict[Signal, Callable[[Any], Any]] = {PROMPT_ENTROPY: PromptEntropy, PROMPT_PERPLEXITY: PromptPerplexity}
"""Signals that need the current weights: what scores them, built on the model."""
_COLUMNS = (DIFFICULTY, CATEGORY, ANCHOR_RATES)
"""Signals that a column of the data set of the same name provides."""


class PromptSignals:
    """Signals about the prompts of a trainer, by name."""

    def __init__(self, trainer: Any, dataset: Any, user: dict[Signal, Callable[[Ints], Any]]) -> None:
        self.trainer = trainer
        self._dataset = dataset
        self._user = user
        self._columns = {name: trainer.train_dataset[name] for name in _COLUMNS if name in _names(trainer.train_dataset)}
        self._scorers: dict[Signal, Any] = {}
        self._scored_model: Any = None
        self._embeddings: Array | None = None

    @property
    def served(self) -> set[Signal]:
        """All names. Weights that are spread over processes cannot be scored yet."""
        measured = set() if self._sharded() else {*_MEASURED, ROLLOUT_ENTROPY}
        embedding = {EMBEDDING} if find_spec("wordllama") is not None else set()
        return measured | embedding | set(self._columns) | set(self._user)

    def _sharded(self) -> bool:
        trainer = self.trainer
        plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
        return bool(getattr(trainer, "is_fsdp_enabled", False)) or (plugin is not None and plugin.zero_stage == 3)

    def functions(self, everywhere: Callable[[Signal, Ints], Floats]) -> dict[Signal, Callable[[Ints], Any]]:
        """Name -> function of rows, for the main process. everywhere: scores rows with the weights of all processes."""
        functions: dict[Signal, Callable[[Ints], Any]] = {}
        for name in self.served - {ROLLOUT_ENTROPY}:
            if name in self._user:
                functions[name] = self._user[name]
            elif name in _MEASURED:
                functions[name] = _bound(everywhere, name)
            elif name == EMBEDDING:
                functions[name] = self._embedded
            else:
                functions[name] = _bound(self._column, name)
        return functions

    def try_out(self, needs: frozenset[Signal]) -> None:
        """Build now what would fail in the first step. Raises SignalError for a model whose prompts cannot be scored."""
        measured = [name for name in needs & {*_MEASURED, ROLLOUT_ENTROPY} if name not in self._user]
        for name in measured:
            self.scorer(PROMPT_ENTROPY if name == ROLLOUT_ENTROPY else name)
        if measured:
            self.tokenized([0])
        for name in needs & set(self._columns):
            if name not in self._user:
                self._column(name, np.arange(len(self._dataset)))

    def scorer(self, name: Signal) -> Any:
        """What scores prompts with the trainer's present model."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        if self._scored_model is not model:
            self._scorers, self._scored_model = {}, model
        if name not in self._scorers:
            self._scorers[name] = _MEASURED[name](model)
        return self._scorers[name]

    def measured(self, name: Signal, rows: Sequence[int]) -> Floats:
        """(n,) values of `rows` with the weights of this process."""
        with self.trainer.accelerator.autocast():
            values: Floats = self.scorer(name)(self.tokenized(rows))
        return values

    def tokenized(self, rows: Sequence[int]) -> list[list[int]]:
        """The prompts' tokens, as the trainer renders them for rollouts."""
        answer = self.trainer._tokenize_prompts([self._dataset[int(r)]["prompt"] for r in rows])
        if not isinstance(answer, tuple) or len(answer) != 3 or len(answer[0]) != len(rows):
            raise HostError(
                "GRPOTrainer._tokenize_prompts no longer answers (prompt_ids, images, fields). Install a tested TRL."
            )
        return list(answer[0])

    def _embedded(self, rows: Ints) -> Array:
        """(n, d) embeddings of the prompts' texts; the whole data set is embedded at the first call."""
        if self._embeddings is None:
            from edgewise.signals.embedding import PromptEmbedding, prompt_texts

            self._embeddings = PromptEmbedding()(prompt_texts(self.trainer.train_dataset["prompt"]))
        values: Array = self._embeddings[rows]
        return values

    def _column(self, name: Signal, rows: Ints) -> Floats:
        """Values of a data set's column; words become whole numbers, by sorted order."""
        values = list(self._columns[name])
        if name == CATEGORY and all(isinstance(value, str) for value in values):
            order = {word: i for i, word in enumerate(sorted(set(values)))}
            values = [order[word] for word in values]
        try:
            table = np.array([[np.nan] if value is None else np.atleast_1d(value) for value in values], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise SignalError(
                f"The column {name!r} of train_dataset must hold numbers (or, for categories, words), as many in each row: "
                f"{error}. Mend the column, or pass attach(..., signals={{{name!r}: function of rows}})."
            ) from error
        found: Floats = (table if name == ANCHOR_RATES else table[:, 0])[rows]
        return found


def _names(dataset: Any) -> list[str]:
    return list(getattr(dataset, "column_names", None) or ())


def _bound(function: Callable[[Signal, Ints], Floats], name: Signal) -> Callable[[Ints], Floats]:
    def of_rows(rows: Ints) -> Floats:
        return function(name, rows)

    return of_rows
