"""The table of names: every method that `edgewise methods` lists, and `make`, which builds one. Light to import."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import numpy as np

from edgewise.errors import ConfigError, nearest
from edgewise.foreign import shown
from edgewise.method import Method
from edgewise.methods import (
    adarft,
    ads,
    arcus,
    bots,
    cures,
    depo,
    dps,
    dump,
    gain_rl,
    gps,
    hive,
    hora,
    insight,
    kgps,
    knapsack,
    lilo,
    lze,
    mapp,
    mopps,
    odf,
    oracle,
    pcl,
    pilot_commit,
    prepo,
    presets,
    prompt_replay,
    reinforce_ada,
    sec,
    speed,
    vcrl,
    vip,
)
from edgewise.methods.entry import Entry, Scalar
from edgewise.types import Signal

__all__ = ["METHODS", "Entry", "Scalar", "make", "methods_with"]

METHODS: dict[str, Entry] = {
    **hive.ENTRIES,
    **presets.ENTRIES,
    **mopps.ENTRIES,
    **insight.ENTRIES,
    **mapp.ENTRIES,
    **adarft.ENTRIES,
    **sec.ENTRIES,
    **dump.ENTRIES,
    **ads.ENTRIES,
    **dps.ENTRIES,
    **prepo.ENTRIES,
    **odf.ENTRIES,
    **lilo.ENTRIES,
    **vcrl.ENTRIES,
    **speed.ENTRIES,
    **pilot_commit.ENTRIES,
    **reinforce_ada.ENTRIES,
    **hora.ENTRIES,
    **lze.ENTRIES,
    **prompt_replay.ENTRIES,
    **bots.ENTRIES,
    **depo.ENTRIES,
    **gps.ENTRIES,
    **pcl.ENTRIES,
    **knapsack.ENTRIES,
    **vip.ENTRIES,
    **cures.ENTRIES,
    **kgps.ENTRIES,
    **arcus.ENTRIES,
    **gain_rl.ENTRIES,
    **oracle.ENTRIES,
}
"""Every method by the name users write. Each module of this room lists its own in `ENTRIES`."""


def make(method: str | Method, **parameters: Scalar) -> Method:
    """The method of that name with these hyper-parameters; a `Method` object is handed back as it is.

    Raises ConfigError for an unknown name or hyper-parameter (with the nearest known one) and for a value out of range.

    >>> make("greso", p_floor=0.05).parameters()["stage2"]
    'off'
    """
    if isinstance(method, Method):
        if parameters:
            raise ConfigError(
                f"make({type(method).__name__}(...)) takes no parameters for a method that is built already, got "
                f"{', '.join(sorted(parameters))}. Set them where it is built."
            )
        return method
    if not isinstance(method, str):
        names = ", ".join(METHODS)
        raise ConfigError(f"make(method=...) must be a name or a Method object, got {shown(method)}. Names: {names}.")
    if method not in METHODS:
        hint, names = nearest(method, METHODS), ", ".join(METHODS)
        raise ConfigError(f"make(method=...) must be a known name, got {shown(method)}.{hint} Names: {names}.")
    entry = METHODS[method]
    known = inspect.signature(entry.factory).parameters
    for name in parameters:
        if name not in known:
            raise ConfigError(
                f"{method}({_word(name)}=...) is no hyper-parameter.{nearest(name, known)} It has: {', '.join(sorted(known))}."
            )
        _require_plain(method, name, parameters[name])
    return entry.factory(**parameters)


_LARGEST = 2**31 - 1
_LONGEST = 1_000


def _word(name: str) -> str:
    return name if name.isprintable() and len(name) <= 80 else shown(name)


def _require_plain(method: str, name: str, value: object) -> None:
    """Raise ConfigError for what no hyper-parameter is: whether it is one of *this* method, the method says itself."""
    if isinstance(value, (int, np.integer)) and not -_LARGEST <= value <= _LARGEST:
        raise ConfigError(f"{method}({name}=...) must be at most {_LARGEST:,} in size, got {shown(int(value))}.")
    plain = value is None or isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating))
    if not plain and not (isinstance(value, str) and len(value) <= _LONGEST):
        raise ConfigError(f"{method}({name}=...) must be a number, text, True, False or None, got {shown(value)}.")


def methods_with(signals: Iterable[Signal]) -> list[str]:
    """Names of the methods that need no other signals than these.

    >>> methods_with([])[:3], "hive" in methods_with(["prompt_entropy"])
    (['greso', 'dapo', 'uniform'], True)
    """
    served = set(signals)
    return [name for name, entry in METHODS.items() if entry.needs <= served]
