"""What README, CONTRIBUTING and docs/ show is run.

- A ```` ```python ```` block runs; the blocks of one file run in order, in one namespace, in an empty folder, with warnings as
  errors. A block with `>>>` prompts is checked as a doctest.
- A block that cannot run here says why where it opens: ```` ```python not-run: needs a GPU ````.
- What the reader need not see stands in an HTML comment that begins with `<!-- python` and runs where it stands.
- Of other blocks, lines that call `edgewise` or `make` are checked: the verb, its options and the target exist.
"""

from __future__ import annotations

import argparse
import doctest
import importlib
import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

from edgewise.cli import VERBS
from edgewise.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)(`{3,})(\w*) *([^\n]*)\n(.*?)^\1\2 *$|^<!-- python\n(.*?)^-->", re.MULTILINE | re.DOTALL)
WHY = re.compile(r"not-run: \S.{5,}")

by_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))


class Block(NamedTuple):
    """A fenced block, or a hidden one (which counts as Python). `line` is that of its first line of code."""

    language: str
    remark: str
    code: str
    line: int


def blocks(text: str) -> Iterator[Block]:
    for found in BLOCK.finditer(text):
        indent, _, language, remark, code, hidden = found.groups()
        line = text.count("\n", 0, found.start()) + 2
        if hidden is not None:
            yield Block("python", "", hidden, line)
        else:
            yield Block(language, remark.strip(), re.sub(rf"^{indent}", "", code, flags=re.MULTILINE), line)


@by_file
def test_python_blocks_run(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("documented")  # a real module: dataclasses look theirs up
    monkeypatch.setitem(sys.modules, "documented", module)
    monkeypatch.chdir(tmp_path)
    for block in blocks(file.read_text(encoding="utf-8")):
        if block.language not in ("python", "pycon", "py") or WHY.fullmatch(block.remark):
            continue
        assert not block.remark, f"{file.name}:{block.line - 1} {block.remark!r}: write `not-run:` and the reason, or nothing"
        if block.code.lstrip().startswith(">>>"):
            examples = doctest.DocTestParser().get_doctest(block.code, vars(module), file.name, str(file), block.line - 1)
            said: list[str] = []
            failed = doctest.DocTestRunner(verbose=False).run(examples, out=said.append, clear_globs=False).failed
            vars(module).update(examples.globs)
            assert not failed, "".join(said)
        else:
            code = compile("\n" * (block.line - 1) + block.code, str(file), "exec")
            exec(code, vars(module))


def commands(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Every documented call of `edgewise` or `make`, as (where, words), from blocks and from `code` in the text."""
    text = file.read_text(encoding="utf-8")
    lines = [
        (block.line + i, line)
        for block in blocks(text)
        if block.language in ("", "sh", "bash", "console", "shell")
        for i, line in enumerate(block.code.replace("\\\n", "  ").splitlines())
    ]
    prose = BLOCK.sub(lambda found: "\n" * found[0].count("\n"), text)
    lines += [(i, code) for i, line in enumerate(prose.splitlines(), 1) for code in re.findall(r"`([^`]+)`", line)]
    for number, line in lines:
        command = re.sub(r"^\s*(\$ |\w+=\S+ )*", "", re.split(r" (?:\||>|&&|;)", line)[0])
        if re.match(r"(\.venv/bin/)?(edgewise|make) [a-z]", command):
            words = shlex.split(command, comments=True)
            yield f"{file.name}:{number}: {line.strip()}", [Path(words[0]).name, *words[1:]]


class Asserting(argparse.ArgumentParser):
    """A parser whose refusal is a failed test."""

    def error(self, message: str) -> NoReturn:
        raise AssertionError(f"{self.prog}\n{message}")


@by_file
def test_commands_exist(file: Path) -> None:
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for where, (program, verb, *options) in commands(file):
        if program == "make":
            unknown = [word for word in (verb, *options) if "=" not in word and word not in targets]
            assert not unknown, f"{where}: the Makefile has no target {unknown}"
            continue
        assert verb in VERBS, f"{where}: edgewise has no verb {verb!r}"
        parser = Asserting(prog=where, allow_abbrev=False)
        importlib.import_module(VERBS[verb].module).add_arguments(parser)
        if options and "--help" not in options:  # a sentence may name the verb alone, without what it requires
            parser.parse_args(options)


@by_file
def test_links_to_files_lead_somewhere(file: Path) -> None:
    prose = BLOCK.sub("", file.read_text(encoding="utf-8"))
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", prose)]
    broken = [link for link in links if "://" not in link and not (file.parent / link).exists()]
    assert not broken, f"{file.name} links to {broken}"


def test_every_method_has_a_row_in_the_choosing_table() -> None:
    rows = [line for line in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    missing = [name for name in METHODS if not any(re.search(rf"`{re.escape(name)}`", row) for row in rows)]
    assert not missing, f"docs/methods.md has no row for {missing}"


def test_the_checks_fail_where_they_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    good = "<!-- python\nx = 1\n-->\n```python\nx += 1\n```\n```pycon\n>>> x\n2\n```\n```python not-run: a reason\n1 / 0\n```\n"
    page.write_text(good)
    test_python_blocks_run(page, tmp_path, monkeypatch)
    for bad in ("```python\nassert x == 3\n```\n", "```pycon\n>>> x\n3\n```\n", "```python not-run\nx\n```\n"):
        page.write_text(good + bad)
        with pytest.raises(AssertionError):
            test_python_blocks_run(page, tmp_path, monkeypatch)
    for bad in ("`make trian`", "```sh\n$ edgewise trian\n```\n", "```\nedgewise doctor --nope x\n```\n"):
        page.write_text(bad)
        with pytest.raises(AssertionError):
            test_commands_exist(page)
    page.write_text("[there](page.md#top), [nowhere](nowhere.md)")
    with pytest.raises(AssertionError, match=re.escape("nowhere.md")):
        test_links_to_files_lead_somewhere(page)
