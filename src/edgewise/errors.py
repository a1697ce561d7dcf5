"""What can go wrong, drawn as one tree.

    EdgewiseError
      ConfigError(ValueError)      an argument, a name, a column or a file that cannot be used; raised before anything runs
      PoolError(ValueError)        the prompts themselves: none, too few, duplicate or missing ids
      OutcomeError(ValueError)     a reported outcome that cannot be used (only raised in strict mode once a run is going)
      SignalError(ValueError)      a signal the host served that cannot be used (not finite, wrong length)
      MethodError                  a method broke its contract (double rows, rows in flight, wrong length)
      ShortfallError               a step ended without one group to train on
      StateError                   a saved state that cannot be read
        StateVersionError          written by a newer edgewise
        StateMismatchError         belongs to another run, method, pool or group size
        StateInUseError            another process, which is alive, writes in the same directory
      HostError                    a trainer lacks the seam that a host needs, or cannot serve what a method needs

Every message says what, where, the rule, the value got, and what to do. Before the first step edgewise refuses; once a run is
going it degrades and counts (`Selector(on_problem="degrade")`), unless `on_problem="strict"`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EdgewiseError(Exception):
    """Base of every error that edgewise raises on purpose."""


class ConfigError(EdgewiseError, ValueError):
    """An argument, name, column or file that cannot be used."""


class PoolError(EdgewiseError, ValueError):
    """The prompts cannot be used: none, too few, duplicate or missing ids."""


class OutcomeError(EdgewiseError, ValueError):
    """A reported outcome cannot be used."""


class SignalError(EdgewiseError, ValueError):
    """A signal served by the host cannot be used."""


class MethodError(EdgewiseError):
    """A method broke its contract."""


class ShortfallError(EdgewiseError):
    """A step ended without a single group to train on."""


class StateError(EdgewiseError):
    """A saved state cannot be read."""


class StateVersionError(StateError):
    """A saved state was written by a newer format than this edgewise reads."""


class StateMismatchError(StateError):
    """A saved state belongs to another run, method, pool or group size."""


class StateInUseError(StateError):
    """Another process, which is alive, writes in the same directory."""


class HostError(EdgewiseError):
    """A trainer lacks the seam that a host needs, or cannot serve what a method needs."""


class DegradedWarning(UserWarning):
    """Something went wrong inside a running step; edgewise fell back and the run goes on."""


_LONGEST = 200


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name nearest to `name`, else an empty string.

    >>> nearest("hvie", ["hive", "greso"])
    " Did you mean 'hive'?"
    >>> nearest("zzzz", ["hive", "greso"])
    ''
    """
    if len(name) > _LONGEST:
        return ""  # compared letter by letter, a page of text would take minutes
    found = difflib.get_close_matches(name, sorted(known), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""
