"""The import rule of `maild/__init__.py`, kept; and the rules of style that an import or a handler can break.

`violations(root)` reads every module of a package tree with `ast` and imports none of them. Imports inside functions
and under TYPE_CHECKING count like all others: they are knowledge of the other module just the same.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "maild"

# From left to right; a module may import its own layer and those right of it. Layers in one tuple never see each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("daemon",),
    ("control", "log"),
    ("engine",),
    ("local", "remote"),
    ("config",),
    ("core",),
)
SAME_LAYER = {"commands": "cli", "demo": "cli", "__main__": "cli"}
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}

WIRE_LIBRARIES = ("aioimaplib", "aiosmtplib")
MAY_IMPORT_TESTING = ("testing", "demo")
MAY_CATCH_EVERYTHING = "maild.engine.supervise"

# The parts of the standard library that reach outside the process, start threads, tell the time or throw dice.
# `datetime` is a value type and allowed; asking it for the time is found as a call.
_IMPURE_STDLIB = """
    _thread asyncio atexit codeop concurrent contextvars ctypes curses dbm email.generator fcntl fileinput
    ftplib getpass gettext glob grp http imaplib importlib inspect io linecache locale logging mailbox mmap
    multiprocessing netrc os pathlib pickle pkgutil platform poplib posix pty pwd queue random readline resource
    runpy sched secrets select selectors shelve shutil signal site smtplib socket socketserver sqlite3 ssl
    subprocess sys syslog tempfile termios threading time tomllib tty urllib.request uuid warnings webbrowser
    xmlrpc zipfile zipimport
"""
IMPURE_STDLIB = frozenset(_IMPURE_STDLIB.split())
PURE_NAMES = frozenset({("pathlib", "PurePath"), ("pathlib", "PurePosixPath")})  # path values that touch no disk
IMPURE_CALLS = frozenset({"open", "print", "input", "breakpoint", "exec", "eval", "__import__"})
CLOCK_CALLS = frozenset({"now", "utcnow", "today"})


def violations(root: Path) -> list[str]:
    """Everything in the package at `root` that breaks a rule, each as `module:line: what`."""
    found: list[str] = []
    importers: dict[str, set[str]] = {library: set() for library in WIRE_LIBRARIES}
    for path in sorted(root.rglob("*.py")):
        module = _module_name(root, path)
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        for line, target, name in _imports(tree, module, is_package=path.name == "__init__.py"):
            found += [f"{module}:{line}: {text}" for text in _judge_import(module, target, name)]
            if (library := target.partition(".")[0]) in importers:
                importers[library].add(module)
        found += [f"{module}:{line}: {text}" for line, text in _broad_handlers(tree) if module != MAY_CATCH_EVERYTHING]
        if _is_pure(module):
            found += [f"{module}:{line}: {text}" for line, text in _impurities(tree)]
    for library, modules in importers.items():
        if len(modules) > 1:
            found.append(f"{library} has more than one importer: {', '.join(sorted(modules))}")
    return found


def _module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join((root.name, *parts)).removesuffix(".__init__")


def _imports(tree: ast.Module, module: str, *, is_package: bool) -> Iterator[tuple[int, str, str]]:
    """(line, module imported from, name imported from it or ""), with relative imports made absolute."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join([*above, node.module] if node.module else above)
            yield from ((node.lineno, target, alias.name) for alias in node.names)


def _judge_import(module: str, target: str, name: str) -> Iterator[str]:
    if module == "maild":
        yield f"imports {target}; it must import nothing, every start of the program pays for it"
    elif target.partition(".")[0] == "maild":
        # `from maild import core` and `from maild.core import model` both name what they want last
        yield from _judge_own_import(module, f"{target}.{name}" if target == "maild" else target)
    elif _is_pure(module):
        if target.partition(".")[0] not in sys.stdlib_module_names:
            yield f"imports {target}, which is not of the standard library"
        elif _is_impure(target, name) and (target, name) not in PURE_NAMES:
            yield f"imports {target}, which is not free of I/O, clock or chance"


def _judge_own_import(module: str, target: str) -> Iterator[str]:
    own, other = _part(module), _part(target)
    if other in ("", "__version__"):
        return
    if "testing" in (own, other):
        if other == "testing" and own not in MAY_IMPORT_TESTING:
            yield f"imports {target}; only demo/ and the tests may"
        elif own == "testing" and other not in ("testing", "core"):
            yield f"imports {target}; a test server must not share what it is there to test"
        return
    unknown = [part for part in (own, other) if _layer(part) not in RANK]
    if unknown:
        yield f"{' and '.join(unknown)}: in no layer; say where it belongs, in LAYERS here and in maild/__init__.py"
    elif _is_pure(module) and other != "core":
        yield f"imports {target}; core and every parse.py import nothing of maild but core"
    elif RANK[_layer(own)] > RANK[_layer(other)]:
        yield f"imports {target}, which is left of it"
    elif RANK[_layer(own)] == RANK[_layer(other)] and _layer(own) != _layer(other):
        yield f"imports {target}, which it must never see"


def _part(module: str) -> str:
    """`local` of `maild.local.maildir`."""
    return module.split(".")[1]


def _layer(part: str) -> str:
    return SAME_LAYER.get(part, part)


def _is_pure(module: str) -> bool:
    parts = module.split(".")
    return parts[1:2] == ["core"] or parts[-1] == "parse"


def _is_impure(target: str, name: str) -> bool:
    parts = [*target.split("."), name]
    return any(".".join(parts[:length]) in IMPURE_STDLIB for length in range(1, len(parts) + 1))


def _impurities(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Awaiting, and calls that reach outside without an import."""
    for node in ast.walk(tree):
        match node:
            case ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                yield node.lineno, "awaits; pure code decides, others wait"
            case ast.Call(func=ast.Name(id=called)) if called in IMPURE_CALLS:
                yield node.lineno, f"calls {called}()"
            case ast.Call(func=ast.Attribute(attr=called)) if called in CLOCK_CALLS:
                yield node.lineno, f"calls {called}(): the time is passed in"


def _broad_handlers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Handlers that take every exception. Cleaning up and raising on (a bare `raise` as the last word) is none."""
    for node in ast.walk(tree):
        match node:
            case ast.ExceptHandler(body=[*_, ast.Raise(exc=None)]):
                pass
            case ast.ExceptHandler(type=None):
                yield node.lineno, "catches everything; name what can happen"
            case ast.ExceptHandler(type=ast.expr() as caught) if _names_everything(caught):
                yield node.lineno, f"catches {ast.unparse(caught)}; name what can happen"
            case ast.Call(func=ast.Name(id="suppress") | ast.Attribute(attr="suppress"), args=args):
                if any(_names_everything(arg) for arg in args):
                    yield node.lineno, "suppresses everything; name what can happen"


def _names_everything(caught: ast.expr) -> bool:
    return any(isinstance(n, ast.Name) and n.id in ("Exception", "BaseException") for n in ast.walk(caught))


def test_maild_keeps_the_import_rule() -> None:
    found = violations(PACKAGE)
    assert not found, "\n".join(found)


def test_maild_is_read_at_all() -> None:
    modules = {_module_name(PACKAGE, path) for path in PACKAGE.rglob("*.py")}
    assert {"maild", "maild.core", "maild.core.model", "maild.core.errors"} <= modules


LEGAL = {
    "__init__.py": '__version__ = "0"',
    "cli.py": "def main():\n    from maild import demo\n    from maild.commands import sync\n    import maild.config",
    "commands/__init__.py": "",
    "commands/sync.py": "from maild.engine import account\nfrom maild.log import configure\nfrom ..core import ports",
    "demo.py": "from maild.testing.imap import Server\nfrom maild.commands.sync import run",
    "engine/account.py": "import maild\nfrom maild import __version__\nfrom maild.local import state",
    "engine/sync.py": "try:\n    pass\nexcept BaseException:\n    print('clean up')\n    raise",
    "engine/supervise.py": "try:\n    pass\nexcept Exception:\n    pass",
    "local/maildir.py": "import os\nfrom maild.core.errors import LocalError\nfrom maild.config import Account",
    "remote/imap/parse.py": "import re\nfrom collections.abc import Iterator\nfrom maild.core import errors",
    "remote/imap/session.py": "import aioimaplib\nfrom maild.remote.imap import parse\nfrom . import parse",
    "core/model.py": "import datetime\nfrom pathlib import PurePosixPath\nfrom maild.core.errors import MaildError",
    "core/errors.py": "import enum",
    "testing/imap.py": "import asyncio\nfrom maild.core.names import encode",
}


def _write_tree(parent: Path, sources: dict[str, str]) -> Path:
    root = parent / "maild"
    for name, source in sources.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source + "\n")
    return root


def test_a_tree_that_keeps_the_rule_has_no_violation(tmp_path: Path) -> None:
    assert violations(_write_tree(tmp_path, LEGAL)) == []


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("__init__.py", "import sys", "maild:1: imports sys; it must import nothing"),
        ("core/a.py", "from maild.config import Account", "maild.core.a:1: imports maild.config; core and every"),
        ("core/a.py", "import structlog", "imports structlog, which is not of the standard library"),
        ("core/a.py", "import os.path", "imports os.path, which is not free"),
        ("core/a.py", "from os import path", "imports os, which is not free"),
        ("core/a.py", "from urllib import request", "imports urllib, which is not free"),
        ("core/a.py", "from pathlib import Path", "imports pathlib, which is not free"),
        ("core/a.py", "def f():\n    import random", "maild.core.a:2: imports random"),
        ("core/a.py", "from datetime import datetime\nX = datetime.now()", "maild.core.a:2: calls now()"),
        ("core/a.py", "open('x')", "calls open()"),
        ("core/a.py", "async def f(x):\n    await x", "maild.core.a:2: awaits"),
        ("remote/imap/parse.py", "import asyncio", "maild.remote.imap.parse:1: imports asyncio"),
        ("remote/imap/parse.py", "from maild.remote import net", "imports maild.remote; core and every parse.py"),
        (
            "local/a.py",
            "from maild.remote import net",
            "maild.local.a:1: imports maild.remote, which it must never see",
        ),
        (
            "remote/a.py",
            "from ..local import maildir",
            "maild.remote.a:1: imports maild.local, which it must never see",
        ),
        ("remote/__init__.py", "from ..local import x", "maild.remote:1: imports maild.local, which it must never see"),
        ("log.py", "import maild.control", "maild.log:1: imports maild.control, which it must never see"),
        ("engine/a.py", "from maild.log import log", "maild.engine.a:1: imports maild.log, which is left of it"),
        ("engine/a.py", "from maild import cli", "imports maild.cli, which is left of it"),
        ("config.py", "if TYPE_CHECKING:\n    import maild.local.state", "maild.config:2: imports maild.local.state"),
        ("log.py", "from maild.commands import sync", "imports maild.commands, which is left of it"),
        ("extra.py", "from maild.core import model", "extra: in no layer"),
        ("engine/a.py", "from maild.helpers import x", "helpers: in no layer"),
        ("engine/a.py", "from maild.testing import imap", "imports maild.testing; only demo/"),
        ("cli.py", "def main():\n    from maild import testing", "maild.cli:2: imports maild.testing; only demo/"),
        ("testing/a.py", "from maild.remote.imap import parse", "a test server must not share"),
        ("remote/imap/other.py", "from aioimaplib import aioimaplib", "aioimaplib has more than one importer"),
        ("engine/a.py", "try:\n    pass\nexcept Exception:\n    pass", "maild.engine.a:3: catches Exception"),
        (
            "engine/a.py",
            "try:\n    pass\nexcept (OSError, BaseException) as e:\n    log(e)",
            "(OSError, BaseException)",
        ),
        ("engine/a.py", "try:\n    pass\nexcept:\n    pass", "catches everything"),
        ("engine/a.py", "with contextlib.suppress(Exception):\n    pass", "suppresses everything"),
    ],
)
def test_one_file_that_breaks_a_rule_is_found(tmp_path: Path, name: str, source: str, expected: str) -> None:
    found = violations(_write_tree(tmp_path, {**LEGAL, name: source}))
    assert len(found) == 1, found
    assert expected in found[0]


def test_a_tree_with_several_wire_libraries_needs_one_importer_each(tmp_path: Path) -> None:
    root = _write_tree(tmp_path, {**LEGAL, "remote/smtp.py": "import aiosmtplib"})
    assert violations(root) == []
