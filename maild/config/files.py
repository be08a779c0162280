"""Finds the files of a config, reads and judges them, and builds the values."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_IMODE

from pydantic import ValidationError

from maild.config import build, rules, schema, units
from maild.config.locate import Lines
from maild.config.places import account_files, standard_places
from maild.config.problems import Problem, findings
from maild.config.rules import Source
from maild.config.values import Config
from maild.core.errors import ConfigError

_START = 'to begin: "maild account add ADDRESS" sets up an account and writes one'

_HINTS = {
    "invalid value": "; a text needs quotes around it",
    "illegal character '\\n'": "; a text in quotes has to end on its line",
    "cannot overwrite a value": "; this key is there twice",
}


@dataclass(frozen=True, slots=True)
class Report:
    """What there is to say about a config. `config` is None if there are errors; `file` is "" if none was found."""

    file: str
    config: Config | None
    errors: tuple[Problem, ...]
    notes: tuple[Problem, ...]

    @property
    def is_denied(self) -> bool:
        """Whether nothing is known to be wrong but that the user may not read it."""
        return bool(self.errors) and all(problem.is_denied for problem in self.errors)


def load(path: Path | None, environ: Mapping[str, str] = os.environ, *, may_be_empty: bool = False) -> Config:
    """The config at `path`, or the first one of the search order; raises ConfigError with all problems at once.

    One without any account is a problem unless it `may_be_empty`.
    """
    report = examine(path, environ, may_be_empty=may_be_empty)
    if report.config is None:
        raise ConfigError([str(problem) for problem in report.errors], is_denied=report.is_denied)
    return report.config


def examine(path: Path | None, environ: Mapping[str, str] = os.environ, *, may_be_empty: bool = False) -> Report:
    """Like `load`, but tells instead of raising."""
    main = _find(path, environ)
    if isinstance(main, Problem):
        return Report("", None, (main,), ())
    files, errors = _beside(main)
    sources: list[Source] = []
    for file in [main, *files]:
        found = _read(file, is_main=file == main)
        if isinstance(found, Source):
            sources.append(found)
        else:
            errors.append(found)
    if not sources or not sources[0].is_main:
        sources.insert(0, Source(str(main), 0o600, {}, Lines(""), is_main=True))  # the others are judged all the same
    return _judge(main, sources, errors, environ, may_be_empty=may_be_empty)


def _judge(
    main: Path, sources: list[Source], unreadable: list[Problem], environ: Mapping[str, str], *, may_be_empty: bool
) -> Report:
    errors = unreadable.copy()
    models = [_validate(source, environ, errors) for source in sources]
    errors += rules.broken_rules(sources, _default_maildir(sources[0], environ), environ)
    if not unreadable:
        errors += rules.missing_accounts(sources, may_be_empty=may_be_empty)
    notes = _in_order(main, rules.doubts(sources, environ))
    if errors:
        return Report(str(main), None, _in_order(main, errors), notes)
    config = build.config(main, [model for model in models if model], environ, tuple(map(str, notes)))
    return Report(str(main), config, (), notes)


def _in_order(main: Path, problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """The main file first, then the others by name, each from top to bottom."""
    return tuple(sorted(problems, key=lambda problem: (problem.file != str(main), problem.file, problem.line)))


def _find(path: Path | None, environ: Mapping[str, str]) -> Path | Problem:
    """`path`, else `$MAILD_CONFIG`, else the first that is there; what was named has to be there."""
    if path is not None:
        return path
    if named := environ.get("MAILD_CONFIG"):
        return Path(named)
    standard = standard_places(environ)
    for candidate in standard:
        if os.path.lexists(candidate):
            return candidate
    looked = f"looked at --config and $MAILD_CONFIG (neither given), {standard[0]} and {standard[1]}"
    return Problem(str(standard[0]), 0, "", f"there is no config; {looked}; {_START}")


def _beside(main: Path) -> tuple[list[Path], list[Problem]]:
    """The files of `accounts.d`, or why they cannot be listed."""
    try:
        return account_files(main), []
    except OSError as error:
        return [], [_unreadable(main.parent / "accounts.d", "listed", error)]


def _read(file: Path, *, is_main: bool) -> Source | Problem:
    try:
        with file.open("rb") as stream:
            mode = S_IMODE(os.fstat(stream.fileno()).st_mode)
            raw = stream.read()
    except FileNotFoundError:
        return Problem(str(file), 0, "", f"there is no such file; {_START}")
    except OSError as error:
        return _unreadable(file, "read", error)
    return _parse(str(file), mode, raw, is_main=is_main)


def _unreadable(path: Path, what: str, error: OSError) -> Problem:
    text, is_denied = f"cannot be {what}: {error.strerror}", isinstance(error, PermissionError)
    hint = "; give the user who runs maild permission to read it" if is_denied else ""
    return Problem(str(path), 0, "", text + hint, is_denied=is_denied)


def _parse(name: str, mode: int, raw: bytes, *, is_main: bool) -> Source | Problem:
    try:
        text = raw.decode()
        if text.startswith("\ufeff"):
            return Problem(name, 1, "", "begins with a byte order mark: save it as UTF-8 without one")
        table = tomllib.loads(text)
        return Source(name, mode, table, Lines(text), is_main)
    except UnicodeDecodeError as error:
        return Problem(name, raw.count(b"\n", 0, error.start) + 1, "", "is not UTF-8 text")
    except RecursionError:
        return Problem(name, 1, "", "is not usable: lists or tables are nested too deeply")
    except ValueError as error:
        return _syntax_problem(name, raw, str(error))


def _syntax_problem(name: str, raw: bytes, text: str) -> Problem:
    """tomllib's own words, with its place of the error moved to the front."""
    found = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", text, re.DOTALL)
    if found is None:
        return Problem(name, 1, "", f"is not valid TOML: {text}")
    what = found[1][:1].lower() + re.sub(r"\((?:'[^']*',? ?)+\)", _dotted, found[1][1:])
    what += _HINTS.get(what, "") if found[2] else " at the end of the file"
    line = int(found[2]) if found[2] else raw.count(b"\n") + (not raw.endswith(b"\n"))
    where = f" at column {found[3]}" if found[3] else ""
    return Problem(name, line, "", f"is not valid TOML{where}: {what}")


def _dotted(found: re.Match[str]) -> str:
    """`a.b` for the `('a', 'b')` in tomllib's text."""
    return ".".join(re.findall(r"'([^']*)'", found[0]))


def _validate(source: Source, environ: Mapping[str, str], errors: list[Problem]) -> schema.File | None:
    try:
        return schema.File.model_validate(source.table, context=environ)
    except ValidationError as error:
        errors += [source.problem(path, message) for path, message in findings(error)]
        return None


def _default_maildir(main: Source, environ: Mapping[str, str]) -> Path | None:
    """Where accounts live that do not say, None if that is itself wrong."""
    table = rules.as_table(main.table.get("maild")) or {}
    try:
        return units.path(table.get("maildir", "~/Mail"), environ)
    except ValueError:
        return None
