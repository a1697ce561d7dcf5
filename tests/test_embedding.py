"""Prompt embeddings: WordLlama as installed, the question of a prompt, and warnings about embeddings that tell nothing."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from edgewise.errors import ConfigError, DegradedWarning
from edgewise.signals.embedding import PromptEmbedding, embedding_signal, median_cosine, prompt_texts


@pytest.fixture(scope="module")
def wordllama() -> PromptEmbedding:
    pytest.importorskip("wordllama")
    return PromptEmbedding()


def test_golden(wordllama: PromptEmbedding) -> None:
    """Of wordllama 0.4.0.post1, tolerance 1e-4."""
    (vector,) = wordllama.embed(["What is 2+2?"])
    assert (vector.dtype, vector.shape) == (np.float32, (256,))
    np.testing.assert_allclose(vector[:4], [0.1000, -0.1725, 0.1156, 0.1808], atol=1e-4)
    assert np.linalg.norm(vector) == pytest.approx(2.3263, abs=1e-4)


def test_a_text_has_one_vector_whoever_stands_beside_it(wordllama: PromptEmbedding) -> None:
    texts = ["a triangle with sides 3, 4 and 5", "", "prove that there are infinitely many primes", "x" * 3000]
    together = wordllama.embed(texts)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_allclose(wordllama.embed([text])[0], vector, atol=1e-5)
    assert not together[1].any()  # an empty text
    assert wordllama.embed([]).shape == (0, 256)


def test_it_sees_topics(wordllama: PromptEmbedding) -> None:
    a, b, c = wordllama.embed(
        ["Find the area of a circle of radius 3.", "What is the area of a circle?", "Translate into French."]
    )

    def cosine(x: np.ndarray, y: np.ndarray) -> float:
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    assert cosine(a, b) > cosine(a, c) + 0.2


def test_what_is_no_text_is_refused(wordllama: PromptEmbedding) -> None:
    with pytest.raises(ConfigError, match="takes texts, got list at position 1. prompt_texts"):
        wordllama.embed(["a", [{"role": "user", "content": "b"}]])  # type: ignore[list-item]


def test_the_text_of_a_prompt_is_what_the_user_says() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2="}]
    longer = [*chat, {"role": "assistant", "content": "5"}, {"role": "user", "content": "Sure?"}]
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "image"}, {"type": "text", "text": "here"}]}
    ]
    bare = [{"role": "system", "content": "no user"}]
    assert prompt_texts(["1+1=", chat, longer, parts, bare, []]) == [
        "1+1=",
        "2+2=",
        "2+2=\n\nSure?",
        "look here",
        "no user",
        "",
    ]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [(3, "row 1 is int"), (["a"], "row 1 is list"), ([{"role": "user", "content": 4}], "content of type int")],
)
def test_prompts_of_other_shapes_are_named(prompt: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prompt_texts(["fine", prompt])


def test_vectors_nearly_alike_are_warned_of() -> None:
    rng = np.random.default_rng(0)
    spread = rng.standard_normal((50, 8))
    alike = np.ones((50, 8)) + 0.05 * spread
    with pytest.warns(DegradedWarning, match=re.escape("nearly alike (median cosine 1.00, above 0.9)")):
        embedding_signal(["t"] * 50, lambda texts: alike)(np.arange(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedding_signal(["t"] * 50, lambda texts: spread)(np.arange(3))
    unit = spread / np.linalg.norm(spread, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in range(50) for j in range(i)]
    assert median_cosine(spread) == pytest.approx(np.median(pairs))
    assert np.isnan(median_cosine(np.zeros((5, 2))))


def test_a_signal_embeds_the_pool_once_by_any_function() -> None:
    calls = []

    def embed(texts):
        calls.append(texts)
        return np.array([[len(text), 1.0] for text in texts])

    serve = embedding_signal(["a", "bbb", "cc"], embed)
    assert serve(np.array([2, 0])).tolist() == [[2, 1], [1, 1]]
    assert serve(np.array([1])).tolist() == [[3, 1]]
    assert calls == [["a", "bbb", "cc"]]
    with pytest.raises(ConfigError, match=r"one vector a text, shape \(2, d\), got \(2,\)"):
        embedding_signal(["a", "b"], lambda texts: np.zeros(2))(np.array([0]))


def test_without_wordllama_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(ConfigError, match=r"needs wordllama, which is not installed. pip install 'edgewise\[gps\]'"):
        PromptEmbedding()


def test_weights_that_are_not_there_are_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wordllama = pytest.importorskip("wordllama")
    monkeypatch.setattr(wordllama, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ConfigError, match="its weights were not found"):
        PromptEmbedding()


def test_embedding_needs_no_torch_and_the_core_no_wordllama() -> None:
    heavy = ["torch", "scipy", "wordllama"]
    program = f"import sys, edgewise, edgewise.signals.embedding; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_signals_that_need_torch_say_so_and_the_others_load() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from edgewise.signals import prompt_texts\n"
        "try: from edgewise.signals import PromptEntropy\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == (
        "edgewise.signals.PromptEntropy measures the policy with torch, which is not installed. "
        "Install it with: pip install 'edgewise[trl]'\n"
    )
    import edgewise.signals

    assert all(getattr(edgewise.signals, name) is not None for name in edgewise.signals.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = edgewise.signals.nothing
