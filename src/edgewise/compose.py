"""A method from a file: belief × score × chooser × allocator, named and checked before anything runs.

    candidates = "random"            # method.toml
    spread = 8

    [belief]
    kind = "beta"
    decay = 0.5

    [score]
    kind = "expected_mixed"

    [chooser]
    kind = "proportional"

    [allocator]
    kind = "greedy"
    objective = "expected_mixed"

`edgewise.compose("method.toml")` reads it; YAML (with pyyaml) and dicts say the same. A section may be its kind alone
(`score = "expected_mixed"`), and dotted keys stand for sections: a method's own `parameters()` build it again. Without a
chooser the best are taken, without an allocator every prompt gets one group.
"""

from __future__ import annotations

import importlib
import os
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal

from edgewise.allocators import ALLOCATORS
from edgewise.beliefs.anchored import AnchoredBeta
from edgewise.beliefs.arcsine_kalman import ArcsineKalman
from edgewise.beliefs.base import Belief
from edgewise.beliefs.beta import BetaBelief
from edgewise.beliefs.gaussian import GaussianBelief
from edgewise.beliefs.last import LastRate
from edgewise.beliefs.logit_kalman import LogitKalman
from edgewise.beliefs.markov import Markov3
from edgewise.beliefs.regressed import LogisticBelief, RidgeBelief
from edgewise.choosers.rank import CHOOSERS
from edgewise.errors import ConfigError, nearest
from edgewise.method import Method
from edgewise.methods import make
from edgewise.methods.user import Composed
from edgewise.scores import SCORES

BELIEFS: dict[str, Callable[..., Belief]] = {
    belief.name: belief
    for belief in (
        BetaBelief, LastRate, AnchoredBeta, Markov3, LogitKalman, ArcsineKalman, GaussianBelief, RidgeBelief, LogisticBelief,
    )
}  # fmt: skip
"""Every belief by the name that compositions write."""

SECTIONS: dict[str, Mapping[str, Callable[..., Any]]] = {
    "belief": BELIEFS,
    "score": SCORES,
    "chooser": CHOOSERS,
    "allocator": ALLOCATORS,
}
"""The sections of a composition, and the kinds each may be of."""

_REQUIRED = ("belief", "score")


def compose(source: str | os.PathLike[str] | Mapping[str, Any]) -> Composed:
    """The method that a file or a mapping describes.

    source: a path that ends in .toml, .yaml or .yml, or what such a file holds.
    Raises ConfigError, naming the file and the key, for anything that cannot be used; nothing was started then.

    >>> method = compose({"belief": {"kind": "beta", "decay": 0.5}, "score": "expected_mixed", "spread": 8})
    >>> method.parameters()["belief.decay"], method.parameters()["chooser"]
    (0.5, 'top_k')
    """
    where, content = ("compose", source) if isinstance(source, Mapping) else (str(source), _read(Path(source)))
    given = _sections(content, where)
    known = {**_settings(Composed), **dict.fromkeys(SECTIONS)}
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{where}: there is no key {key!r}.{nearest(key, known)} It may have: {', '.join(sorted(known))}."
            )
    for section in _REQUIRED:
        if given.get(section) is None:
            raise ConfigError(f"{where}: [{section}] is missing. Give it a kind: {', '.join(SECTIONS[section])}.")
    parts = {name: _part(name, given[name], where) for name in SECTIONS if given.get(name) is not None}
    rest = {key: value for key, value in given.items() if key not in SECTIONS}
    _check(rest, _settings(Composed), "", where)
    method: Composed = _built(Composed, {**parts, **rest}, where)
    return method


def method_of(method: str | Method, parameters: Mapping[str, Any] | None = None) -> Method:
    """A method given as users write it: a name, a file of a composition, or the object itself.

    parameters: for a name only; a composition's stand in its file. Raises ConfigError.
    """
    if isinstance(method, str) and method.endswith(_ENDINGS):
        if parameters:
            raise ConfigError(
                f"{method}: a composition takes its parameters from its file, got {', '.join(parameters)} as well."
            )
        return compose(method)
    return make(method, **dict(parameters or {}))


_ENDINGS = (".toml", ".yaml", ".yml")


def _read(path: Path) -> Mapping[str, Any]:
    """What the file holds. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}. Give the path of a .toml or .yaml file.") from error
    kind = path.suffix.lower()
    if kind not in (".toml", ".yaml", ".yml"):
        raise ConfigError(f"{path}: the name must end in .toml, .yaml or .yml, got {path.suffix!r}. Rename the file.")
    try:
        content = tomllib.loads(text) if kind == ".toml" else _yaml(path).safe_load(text)
    except ConfigError:
        raise
    except Exception as error:  # yaml has errors of its own
        raise ConfigError(f"{path}: is no valid {'TOML' if kind == '.toml' else 'YAML'}: {error}") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path}: must hold keys and sections, got {content!r}. Begin with [belief].")
    return content


def _yaml(path: Path) -> Any:
    try:
        return importlib.import_module("yaml")
    except ModuleNotFoundError as error:
        raise ConfigError(f"{path}: YAML needs pyyaml, which is not installed. pip install pyyaml, or write TOML.") from error


def _sections(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Keys as they stand, with dotted keys and bare kinds made sections. Copies: the source is not changed."""
    given: dict[str, Any] = {}
    for key, value in content.items():
        if not isinstance(key, str):
            raise ConfigError(f"{where}: keys must be text, got {key!r}. Put it in quotation marks.")
        section, dot, name = key.partition(".")
        if dot and section not in SECTIONS:
            raise ConfigError(f"{where}: there is no section {section!r}.{nearest(section, SECTIONS)} See {key!r}.")
        if section not in SECTIONS or value is None and not dot:
            given.setdefault(section, value)
        else:
            more = {name: value} if dot else _section(section, value, where)
            given[section] = {**(given.get(section) or {}), **more}
    return given


def _section(section: str, value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"kind": value}
    if isinstance(value, Mapping):
        return dict(value)
    raise ConfigError(f"{where}: [{section}] must be a section with a kind, or the kind as text, got {value!r}.")


def _part(section: str, given: Mapping[str, Any], where: str) -> Any:
    """The part that a section describes."""
    kinds = SECTIONS[section]
    if "kind" not in given:
        raise ConfigError(f"{where}: [{section}] must say its kind, got {sorted(given)}. Kinds: {', '.join(kinds)}.")
    kind = given["kind"]
    if not isinstance(kind, str) or kind not in kinds:
        hint = nearest(kind, kinds) if isinstance(kind, str) else ""
        raise ConfigError(f"{where}: [{section}] kind must be one of {', '.join(map(repr, kinds))}, got {kind!r}.{hint}")
    builder = kinds[kind]
    values = {key: value for key, value in given.items() if key != "kind"}
    known = _settings(builder)
    _check(values, known, f"[{section}] ", where)
    for name, (_, required, _) in known.items():
        if required and name not in values:
            raise ConfigError(f"{where}: [{section}] {name} is missing, which {kind!r} cannot do without.")
    return _built(builder, values, f"{where}: [{section}]")


Setting = tuple[Any, bool, Any]
"""Of a hyper-parameter: its type, whether it must be given, its default."""


def _settings(builder: Callable[..., Any]) -> dict[str, Setting]:
    """The hyper-parameters of a dataclass that a file can set, by name."""
    hints = typing.get_type_hints(builder)
    return {
        f.name: (hints[f.name], f.default is MISSING and f.default_factory is MISSING, f.default)
        for f in fields(typing.cast(Any, builder))
        if f.init and f.name not in SECTIONS and _words(hints[f.name])
    }


def _check(values: Mapping[str, Any], known: Mapping[str, Setting], section: str, where: str) -> None:
    """Every key known and every value of its type. Raises ConfigError."""
    for key, value in values.items():
        if key not in known:
            names = ", ".join(sorted(known)) or "nothing but a kind"
            raise ConfigError(f"{where}: {section}{key} is no hyper-parameter.{nearest(str(key), known)} It takes: {names}.")
        hint, required, default = known[key]
        if not _fits(value, hint):
            close = nearest(value, _choices(hint)) if isinstance(value, str) else ""
            remedy = "" if required else f" Leave it out for {default!r}."
            raise ConfigError(f"{where}: {section}{key} must be {' or '.join(_words(hint))}, got {value!r}.{close}{remedy}")


def _built(builder: Callable[..., Any], values: Mapping[str, Any], where: str) -> Any:
    try:
        return builder(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


# -- types of hyper-parameters: bool, int, float, str, None, Literal, and unions of them ---------------------------------


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _choices(hint: Any) -> list[str]:
    return [word for option in _options(hint) if typing.get_origin(option) is Literal for word in typing.get_args(option)]


def _words(hint: Any) -> list[str]:
    """What to call values of the type; empty if a file cannot hold them."""
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "none"}
    words: list[str] = []
    for option in _options(hint):
        if typing.get_origin(option) is Literal:
            words.append(f"one of {', '.join(map(repr, typing.get_args(option)))}")
        elif option in plain:
            words.append(plain[option])
        else:
            return []
    return words


def _fits(value: Any, hint: Any) -> bool:
    for option in _options(hint):
        if typing.get_origin(option) is Literal:
            good = isinstance(value, str) and value in typing.get_args(option)
        elif option is float:
            good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        else:
            good = isinstance(value, option) and (option is bool or not isinstance(value, bool))
        if good:
            return True
    return False
