"""Prompt embeddings for GPS, PCL and their kin: WordLlama's static 256 numbers a text, on the CPU, offline. No torch.

    embedding = PromptEmbedding()                                     # pip install 'edgewise[gps]'
    vectors = embedding(prompt_texts(dataset["prompt"]))              # (n, 256) float32
    signals = {"embedding": embedding_signal(texts)}                  # what a selector asks for, embedded at first use

Any other `embed(list[str]) -> (n, d)` does as well. Of a conversation only what the user says is embedded: system prompts and
templates are alike for all and would drown the question. [MPTS code]

A static embedding ignores word order and barely sees numbers: two "Countdown" puzzles are near-duplicates to it. That is
measured, and warned of.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewise.errors import ConfigError, DegradedWarning
from edgewise.types import Array, Floats, Ints

Embed = Callable[[Sequence[str]], Array]
"""(n texts) -> (n, d) numbers."""

_SAMPLE = 1_000
_ALIKE = 0.9
_FEWEST = 32  # prompts below which a median says little


class PromptEmbedding:
    """WordLlama's embedding of texts. Loads its weights from the installed package; nothing is downloaded.

    Raises ConfigError if wordllama is not installed or not as expected.
    """

    dimension = 256

    def __init__(self) -> None:
        try:
            import wordllama
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"PromptEmbedding needs {error.name}, which is not installed. pip install 'edgewise[gps]', or give any "
                "function from texts to vectors instead."
            ) from error
        try:
            # the wheel holds weights and tokenizer; named as the cache they are found, where the default looks elsewhere
            self._model = wordllama.WordLlama.load(
                dim=self.dimension, cache_dir=Path(wordllama.__file__).parent, disable_download=True
            )
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"PromptEmbedding: wordllama is installed, but its weights were not found in {Path(wordllama.__file__).parent} "
                f"({error}). edgewise knows wordllama 0.4.0.post1: pip install --force-reinstall 'edgewise[gps]'"
            ) from error

    def __call__(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """As `embed`, for the prompts of a pool: warns where their vectors are nearly all alike."""
        vectors = self.embed(texts)
        warn_if_alike(vectors)
        return vectors

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """(n, 256) float32, not of unit length; an empty text is a vector of zeros. Raises ConfigError for what is no text."""
        texts = list(texts)
        wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        if wrong is not None:
            raise ConfigError(
                f"PromptEmbedding.embed(texts=...) takes texts, got {type(texts[wrong]).__name__} at position {wrong}. "
                "prompt_texts(column) makes texts of conversations."
            )
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        return np.asarray(self._model.embed(texts), dtype=np.float32)


def embedding_signal(texts: Sequence[str], embed: Embed | None = None) -> Callable[[Ints], Floats]:
    """The signal `embedding` of a pool with these texts, (N,) in the order of its rows: embedded at the first question, once.

    embed: any function from texts to vectors; None: `PromptEmbedding`. Warns (DegradedWarning) where the vectors are nearly all
    alike; raises ConfigError if `embed` does not give one vector a text.
    """
    kept: list[Array] = []

    def serve(rows: Ints) -> Floats:
        if not kept:
            vectors = np.asarray((PromptEmbedding().embed if embed is None else embed)(list(texts)))
            if vectors.ndim != 2 or len(vectors) != len(texts):
                raise ConfigError(
                    f"embedding_signal(embed=...) must give one vector a text, shape ({len(texts)}, d), got {vectors.shape}."
                )
            warn_if_alike(vectors)
            kept.append(vectors)
        return np.asarray(kept[0][rows], dtype=np.float64)

    return serve


def prompt_texts(prompts: Sequence[Any]) -> list[str]:
    """The question of each prompt: a text as it is, of a conversation what the user says, joined by blank lines.

    prompts: a column of a data set. Raises ConfigError for a prompt that is neither.

    >>> prompt_texts(["1+1=", [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2="}]])
    ['1+1=', '2+2=']
    """
    return [_text(prompt, row) for row, prompt in enumerate(prompts)]


def _text(prompt: Any, row: int) -> str:
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence) and all(isinstance(part, Mapping) for part in prompt):
        said = [part for part in prompt if part.get("role") == "user"]
        return "\n\n".join(filter(None, (_content(part.get("content"), row) for part in said or prompt)))
    raise ConfigError(
        f"prompt_texts: row {row} is {type(prompt).__name__}, and a prompt must be a text or a list of messages such as "
        '{"role": "user", "content": "1+1="}.'
    )


def _content(content: Any, row: int) -> str:
    """What a message says: a text, or parts of which the textual ones count."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, Sequence):
        return " ".join(str(part["text"]) for part in content if isinstance(part, Mapping) and part.get("text"))
    raise ConfigError(f"prompt_texts: a message of row {row} has a content of type {type(content).__name__}; expected a text.")


def median_cosine(vectors: Array, seed: int = 0) -> float:
    """Median cosine of pairs among at most 1,000 vectors, in [-1, 1]; NaN for fewer than two that have a length."""
    rows = np.random.default_rng(seed).permutation(len(vectors))[:_SAMPLE]
    sample = np.asarray(vectors[rows], dtype=np.float64)
    norms = np.linalg.norm(sample, axis=1)
    unit = sample[norms > 0.0] / norms[norms > 0.0, None]
    if len(unit) < 2:
        return float("nan")
    return float(np.median((unit @ unit.T)[np.triu_indices(len(unit), k=1)]))


def warn_if_alike(vectors: Array) -> None:
    """Warn where the median cosine is above 0.9: such an embedding tells prompts apart by little. [choice]"""
    found = median_cosine(vectors)
    if len(vectors) >= _FEWEST and found > _ALIKE:
        warnings.warn(
            f"edgewise: the embeddings of these prompts are nearly alike (median cosine {found:.2f}, above {_ALIKE}). What is "
            "learned from one prompt will be believed of all. Serve another embedding, or use a method without, such as "
            "'mopps'.",
            DegradedWarning,
            stacklevel=3,
        )
