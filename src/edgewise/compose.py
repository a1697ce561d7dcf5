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

from edgewise import foreign
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
from edgewise.foreign import named, shown
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
_MOST = 1 << 16
"""Bytes of a file: a composition has some hundred, and parsers take time and memory in proportion to more than its length."""


def compose(source: str | os.PathLike[str] | Mapping[str, Any]) -> Composed:
    """The method that a file or a mapping describes.

    source: a path that ends in .toml, .yaml or .yml, or what such a file holds.
    Raises ConfigError, naming the file and the key, for anything that cannot be used; nothing was started then.

    >>> method = compose({"belief": {"kind": "beta", "decay": 0.5}, "score": "expected_mixed", "spread": 8})
    >>> method.parameters()["belief.decay"], method.parameters()["chooser"]
    (0.5, 'top_k')
    """
    if isinstance(source, Mapping):
        where, content = "compose", source
    elif isinstance(source, (str, os.PathLike)) and isinstance(os.fspath(source), str):
        where, content = _read(Path(source))
    else:
        raise ConfigError(f"compose(source) must be the path of a .toml or .yaml file, or a mapping, got {shown(source)}.")
    given = _sections(content, where)
    known = {**_settings(Composed), **dict.fromkeys(SECTIONS)}
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{where}: there is no key {shown(key)}.{nearest(key, known)} It may have: {', '.join(sorted(known))}."
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


def _read(path: Path) -> tuple[str, Mapping[str, Any]]:
    """What to call the file, and what it holds. Raises ConfigError."""
    where = named(path)
    kind = path.suffix.lower()
    if kind not in _ENDINGS:
        raise ConfigError(f"{where}: the name must end in .toml, .yaml or .yml, got {shown(path.suffix)}. Rename the file.")
    try:
        text = foreign.contents(path, _MOST).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{where}: cannot be read: {why}. Give the path of a .toml or .yaml file.") from error
    try:
        if kind == ".toml" and text.count(".") > _MOST_DOTS:
            raise ConfigError(f"{where}: has {text.count('.'):,} dots: keys are nested too deep. Write keys and sections.")
        content = tomllib.loads(text) if kind == ".toml" else _yaml(where, text)
    except ConfigError:
        raise
    except Exception as error:  # yaml has errors of its own
        why = " ".join(str(error).split()) or type(error).__name__
        short = why if len(why) <= 300 else f"{why[:297]}..."
        raise ConfigError(f"{where}: is no valid {'TOML' if kind == '.toml' else 'YAML'}: {short}") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: must hold keys and sections, got {shown(content)}. Begin with [belief].")
    return where, content


def _yaml(where: str, text: str) -> Any:
    """The plain values that the text says. Aliases, which make a little text mean a lot, and keys given twice are refused."""
    try:
        yaml = importlib.import_module("yaml")
    except ModuleNotFoundError as error:
        raise ConfigError(f"{where}: YAML needs pyyaml, which is not installed. pip install pyyaml, or write TOML.") from error
    loader = yaml.SafeLoader(text)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(f"{where}: has the alias *{shown(event.anchor)}. Write its value in its place.")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise ConfigError(f"{where}: is nested more than {_DEEPEST} deep. Write keys and sections, nothing below.")
        node = loader.get_single_node()
        _refuse_twins(node, yaml, where)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _refuse_twins(node: Any, yaml: Any, where: str) -> None:
    """Raise ConfigError for a key that a mapping has twice, of which YAML would take the last."""
    if isinstance(node, yaml.SequenceNode):
        for inner in node.value:
            _refuse_twins(inner, yaml, where)
    elif isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"{where}: the key {shown(twice[0])} stands twice. Keep one.")
        for key, value in node.value:
            _refuse_twins(key, yaml, where)
            _refuse_twins(value, yaml, where)


_DEEPEST = 20
_MOST_DOTS = 1_000
"""A dotted key costs time and memory by the square of its parts: 30,000 of them took 12 s and 3.6 GB."""


def _sections(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Keys as they stand, with dotted keys and bare kinds made sections. Copies: the source is not changed."""
    given: dict[str, Any] = {}
    for key, value in content.items():
        if not isinstance(key, str):
            raise ConfigError(f"{where}: keys must be text, got {shown(key)}. Put it in quotation marks.")
        section, dot, name = key.partition(".")
        if dot and section not in SECTIONS:
            raise ConfigError(f"{where}: there is no section {shown(section)}.{nearest(section, SECTIONS)} See {shown(key)}.")
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
    raise ConfigError(f"{where}: [{section}] must be a section with a kind, or the kind as text, got {shown(value)}.")


def _part(section: str, given: Mapping[str, Any], where: str) -> Any:
    """The part that a section describes."""
    kinds = SECTIONS[section]
    if "kind" not in given:
        raise ConfigError(
            f"{where}: [{section}] must say its kind, got {shown(sorted(map(str, given)))}. Kinds: {', '.join(kinds)}."
        )
    kind = given["kind"]
    if not isinstance(kind, str) or kind not in kinds:
        hint = nearest(kind, kinds) if isinstance(kind, str) else ""
        raise ConfigError(f"{where}: [{section}] kind must be one of {', '.join(map(repr, kinds))}, got {shown(kind)}.{hint}")
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
            named = key if isinstance(key, str) and len(key) <= 80 and key.isprintable() else shown(key)
            raise ConfigError(f"{where}: {section}{named} is no hyper-parameter.{nearest(str(key), known)} It takes: {names}.")
        hint, required, default = known[key]
        if not _fits(value, hint):
            close = nearest(value, _choices(hint)) if isinstance(value, str) else ""
            remedy = "" if required else f" Leave it out for {default!r}."
            raise ConfigError(
                f"{where}: {section}{key} must be {' or '.join(_words(hint))}, got {shown(value)}.{close}{remedy}"
            )


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


_LARGEST = 2**63 - 1
"""Whole numbers end up in arrays of 64 bits."""


def _fits(value: Any, hint: Any) -> bool:
    for option in _options(hint):
        if typing.get_origin(option) is Literal:
            good = isinstance(value, str) and value in typing.get_args(option)
        elif option is float:
            good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
        else:
            good = isinstance(value, option) and (option is bool or not isinstance(value, bool))
            good = good and not (option is int and abs(value) > _LARGEST)
        if good:
            return True
    return False
