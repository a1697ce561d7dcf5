"""The command line. A verb is a module with `add_arguments(parser)` and `run(args) -> exit code`, imported when asked for.

Exit codes: 0 fine, 1 a problem was found, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import io
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from edgewise._version import __version__
from edgewise.errors import ConfigError, DegradedWarning, EdgewiseError, nearest
from edgewise.foreign import shown


class Verb(NamedTuple):
    """Where a verb lives, and its line in ``edgewise --help``."""

    module: str
    summary: str


VERBS = {
    "train": Verb("edgewise.lab.train", "GRPO on a small real policy with a chosen method, beside its baselines"),
    "simulate": Verb("edgewise.lab.simulate", "the same comparison in seconds, on a simulated learner"),
    "methods": Verb("edgewise.catalogue", "which methods there are, and when to choose which"),
    "doctor": Verb("edgewise.doctor", "what edgewise sees in a data set, and what it would refuse"),
    "inspect": Verb("edgewise.inspection", "what a run keeps of its selector: steps, files, who writes, counts"),
    "verify": Verb("edgewise.inspection", "the same, with every byte checked; exit code 1 if one is wrong"),
    "allocate": Verb("edgewise.allocate", "how many samples each test prompt should get within a budget"),
    "subset": Verb("edgewise.subset", "a static subset of a data set, by diversity and difficulty (DEPO, offline)"),
}

_LARGEST = 2**53
_LONGEST = 2_000
"""Characters of a message."""
_INVALID_CHOICE = re.compile(r"invalid choice: '([^']*)'")


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that suggests the nearest word and takes no abbreviations."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        wrong = _INVALID_CHOICE.search(message)
        if wrong:
            choices = [choice for action in self._actions for choice in (action.choices or ())]
            message += f".{nearest(wrong.group(1), choices)}"
        self.exit(2, f"edgewise: {_readable(message)}\nUsage and options: {self.prog} --help\n")

    def require_sane(self, args: argparse.Namespace) -> None:
        """End where an option has a number that no machine counts to, or none at all."""
        for action in self._actions:
            value = getattr(args, action.dest, None)
            name = "/".join(action.option_strings) or action.dest
            if isinstance(value, float) and not math.isfinite(value):
                self.error(f"argument {name}: must be a finite number, got {value}")
            if isinstance(value, int) and abs(value) > _LARGEST:
                self.error(f"argument {name}: must be at most {_LARGEST:,} in size, got {shown(value)}")

    @property
    def options(self) -> list[str]:
        """Every option of this parser."""
        return [option for action in self._actions for option in action.option_strings]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code. Usage errors exit as argparse does, with code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a letter shows its number
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning(warnings.showwarning)
            code = _run(words)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except EdgewiseError as error:
        print(f"edgewise: {_readable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("edgewise: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough, as `head` does
        _silence(sys.stdout)
        return 0
    except OSError as error:  # of a file or of our output: the disk is full, a folder is in the place of a file
        where = f"{error.filename}: " if error.filename is not None else ""
        _silence(sys.stdout)
        message = f"{where}{error.strerror or error}. Check the path, permissions and space."
        print(f"edgewise: {_readable(message)}", file=sys.stderr)
        return 2
    except (MemoryError, RecursionError) as error:
        what = "the memory does not suffice" if isinstance(error, MemoryError) else "something in it is nested too deep"
        print(f"edgewise: {what}. Give a smaller or simpler input.", file=sys.stderr)
        return 2


def _is_word(word: str) -> bool:
    try:
        return b"\0" not in os.fsencode(word)
    except UnicodeEncodeError:
        return False


def _readable(message: str) -> str:
    """A message that fits a screen and moves no cursor, whatever it quotes."""
    cut = message if len(message) <= _LONGEST else f"{message[: _LONGEST // 2]} [...] {message[-_LONGEST // 4 :]}"
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in cut)


def _silence(stream: Any) -> None:
    """What is still to be written goes nowhere: else the interpreter complains when it ends."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError, AttributeError):
        pass


def _show_warning(usual: Callable[..., None]) -> Callable[..., None]:
    """Our own warnings as one clean line; everybody else's as usual."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, DegradedWarning):
            print(f"edgewise: {str(message).removeprefix('edgewise: ')}", file=sys.stderr)
        else:
            usual(message, category, *where, **more)

    return show


def _run(words: list[str]) -> int:
    parser = _Parser(prog="edgewise", description="Choose which prompts get rollouts next.")
    parser.add_argument("--version", action="version", version=f"edgewise {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", dest="verb", parser_class=_Parser)
    asked = next((word for word in words if not word.startswith("-")), None)
    module: Any = None
    parsers: dict[str, _Parser] = {}
    for name, verb in VERBS.items():
        parsers[name] = verbs.add_parser(name, help=verb.summary, description=f"{verb.summary[0].upper()}{verb.summary[1:]}.")
        if name == asked:
            module = _import(name)
            module.add_arguments(parsers[name])
    for word in words:
        if not _is_word(word):
            raise ConfigError(f"{shown(word)} is broken text. Write it again, in UTF-8 and without a NUL.")
    args, unknown = parser.parse_known_args(words)
    active = parsers.get(args.verb, parser)
    if unknown:
        active.error(f"`{active.prog}` does not know {' '.join(unknown)}.{nearest(unknown[0].split('=')[0], active.options)}")
    if args.verb is None:
        parser.print_help()
        return 2
    parsers[args.verb].require_sane(args)
    code: int = module.run(args)
    return code


def _import(name: str) -> Any:
    """The module of a verb. A package that only this verb needs is named if it is missing."""
    try:
        return importlib.import_module(VERBS[name].module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "edgewise":
            raise
        raise ConfigError(
            f"`edgewise {name}` needs {error.name}, which is not installed. pip install 'edgewise[lab]'"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
