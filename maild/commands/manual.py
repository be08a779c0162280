"""The manual pages and shell completions, written from what the program itself goes by.

`python -m maild.commands.manual DIR` (`make man`) writes man/maild.1 from the options, man/maild.toml.5 from the schema
that `maild check` goes by and the commented example beside it, and completions/ for bash, zsh and fish. A test
compares.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from maild import __version__
from maild.commands.options import all_options
from maild.commands.sendmail import HELP
from maild.config.schema import SECTIONS, Section

_STATUS = (
    ("0", "all well"),
    ("1", "at least one account or mailbox failed; the others were done"),
    ("64", "wrong usage"),
    ("69", "no daemon runs where one is needed"),
    ("75", "try again later: the outbox could not be written"),
    ("77", "no permission"),
    ("78", "the config is bad"),
)
_ENVIRONMENT = (
    ("MAILD_CONFIG", "the config, where --config does not name one"),
    ("XDG_CONFIG_HOME, XDG_STATE_HOME", "where config and state are, instead of ~/.config and ~/.local/state"),
    ("STATE_DIRECTORY, CREDENTIALS_DIRECTORY", "the same and passwords, as systemd gives them to a service"),
    ("NO_COLOR", "if it is not empty, nothing is coloured"),
)
_FILES = (
    ("~/.config/maild/maild.toml", "the config; else /etc/maild/maild.toml, or what $MAILD_CONFIG or --config names"),
    ("~/.config/maild/accounts.d/*.toml", "accounts, as maild account add writes them"),
    (
        "~/.local/state/maild",
        "what is known of accounts, the outbox, the control socket; $STATE_DIRECTORY under systemd",
    ),
    ("~/Mail/ACCOUNT", "the mail, as Maildirs"),
)


@dataclass(frozen=True, slots=True)
class Word:
    """A command as it is typed, with its parser."""

    path: tuple[str, ...]
    help: str
    parser: argparse.ArgumentParser


def main(argv: list[str]) -> int:
    """Write all pages below the directory that is named; returns the exit status."""
    root = Path(argv[0])
    for name, text in pages((root / "maild.toml").read_text()).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


def pages(example: str) -> dict[str, str]:
    """Every page by its name; `example` is the commented config."""
    words = list(_words(all_options(), ()))
    return {
        "man/maild.1": "".join(f"{line}\n" for line in _maild_1(words)),
        "man/maild.toml.5": "".join(f"{line}\n" for line in _maild_toml_5(example)),
        "completions/maild.bash": _bash(words),
        "completions/_maild": _zsh(words),
        "completions/maild.fish": _fish(words),
    }


def _words(parser: argparse.ArgumentParser, path: tuple[str, ...]) -> Iterator[Word]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, below in action.choices.items():
                yield Word((*path, name), helps.get(name, ""), below)
                yield from _words(below, (*path, name))


def _options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [a for a in parser._actions if not isinstance(a, argparse._SubParsersAction) and a.help != argparse.SUPPRESS]


# -- manual pages


def _escaped(text: str) -> str:
    """Text as roff wants it; a line must not begin with a control character."""
    return "\n".join(
        "\\&" + line if line[:1] in (".", "'") else line
        for line in text.replace("\\", "\\e").replace("-", "\\-").split("\n")
    )


def _head(name: str, section: int, about: str) -> Iterator[str]:
    yield f'.TH "{name.upper()}" {section} "" "maild {__version__}" "maild"'
    yield from (".SH NAME", f"{_escaped(name)} \\- {_escaped(about)}")


def _maild_1(words: list[Word]) -> Iterator[str]:
    parser = all_options()
    yield from _head("maild", 1, "keeps the mail of IMAP and POP3 accounts in Maildirs, and sends")
    yield from (".SH SYNOPSIS", ".B maild", "[\\-c PATH] [\\-v] COMMAND [ARGUMENT ...]", ".SH DESCRIPTION")
    yield _escaped(parser.description or "")
    yield ".SH OPTIONS"
    yield from _option_lines(parser)
    yield ".SH COMMANDS"
    for word in words:
        yield f".SS maild {_escaped(' '.join(word.path))}"
        yield _escaped(word.parser.description or f"{word.help[:1].upper()}{word.help[1:]}.")
        yield from _option_lines(word.parser)
        if word.path == ("sendmail",):
            yield from (".PP", ".nf", _escaped(HELP.rstrip()), ".fi")
    yield ".SH EXIT STATUS"
    yield from _rows(_STATUS)
    yield ".SH ENVIRONMENT"
    yield from _rows(_ENVIRONMENT)
    yield ".SH FILES"
    yield from _rows(_FILES)
    yield from (".SH SEE ALSO", ".BR maild.toml (5)")


def _rows(rows: tuple[tuple[str, str], ...]) -> Iterator[str]:
    for name, text in rows:
        yield from (".TP", f".B {_escaped(name)}", _escaped(text))


def _option_lines(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in _options(parser):
        yield ".TP"
        yield f".B {_escaped(_spelled(action))}"
        yield _escaped(action.help or "")


def _spelled(action: argparse.Action) -> str:
    """`-c, --config PATH`, or the name of what stands alone."""
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    shown = value if isinstance(value, str) else " ".join(value)
    if not action.option_strings:
        return shown
    names = ", ".join(action.option_strings)
    return names if action.nargs == 0 else f"{names} {shown}"


def _maild_toml_5(example: str) -> Iterator[str]:
    yield from _head("maild.toml", 5, "the config of maild")
    yield ".SH DESCRIPTION"
    yield "TOML. Every file of accounts.d beside it is read too, in the order of their names. Unknown keys are errors;"
    yield ".B maild check"
    yield "tells all of them at once, with file, line and key."
    yield ".SH KEYS"
    for place, section in SECTIONS.items():
        if place:
            yield f".SS [{_escaped('.'.join('NAME' if part == '*' else part for part in place))}]"
            yield from _keys(section)
    yield from (".SH EXAMPLE", "Every key with its default; what is different from it is marked.", ".nf")
    yield _escaped(example.rstrip("\n"))
    yield from (".fi", ".SH SEE ALSO", ".BR maild (1)")


def _keys(section: type[Section]) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if not _is_table(field):
            yield from (".TP", f".B {_escaped(name)}", _escaped(_described(field)))


def _is_table(field: FieldInfo) -> bool:
    kinds = (field.annotation, *get_args(field.annotation))
    return any(isinstance(kind, type) and issubclass(kind, Section) for kind in kinds)


def _described(field: FieldInfo) -> str:
    """What it may be and what it is when it is left out."""
    choices = [one for kind in (field.annotation, *get_args(field.annotation)) for one in _choices(kind)]
    said = [" | ".join(dict.fromkeys(choices))] if choices else []
    if field.is_required():
        said.append("required")
    elif field.default not in (None, PydanticUndefined):
        said.append(f"default: {_value(field.default)}")
    return "; ".join(said) or "optional"


def _choices(kind: Any) -> list[str]:
    return [_value(one) for one in get_args(kind) if isinstance(one, str | bool)]


def _value(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case list():
            return "[" + ", ".join(_value(one) for one in value) + "]"
        case str():
            return f'"{value}"'
        case _:
            return str(value)


# -- completions


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    return [name for action in _options(parser) for name in action.option_strings if name.startswith("--")]


def _next(words: list[Word], path: tuple[str, ...]) -> list[Word]:
    return [word for word in words if word.path[:-1] == path]


def _choices_of(parser: argparse.ArgumentParser) -> list[str]:
    """Words that an argument may be, such as the actions of `maild outbox`."""
    return [str(c) for a in _options(parser) if not a.option_strings and a.choices is not None for c in a.choices]


def _takes_accounts(word: Word) -> bool:
    metavars = [str(action.metavar) for action in _options(word.parser) if not action.option_strings]
    return any(name.startswith("ACCOUNT") for name in metavars) or (word.path[0] == "account" and "NAME" in metavars)


def _bash(words: list[Word]) -> str:
    paths: list[tuple[tuple[str, ...], argparse.ArgumentParser]] = [((), all_options())]
    paths += [(word.path, word.parser) for word in words]
    cases = []
    for path, parser in paths:
        known = [w.path[-1] for w in _next(words, path)] + _choices_of(parser) + _flags(parser)
        cases.append(f"        '{' '.join(path)}') known='{' '.join(known)}' ;;")
    names = "|".join(f"'{' '.join(word.path)}'" for word in words)
    with_accounts = "|".join(f"'{' '.join(word.path)}'" for word in words if _takes_accounts(word))
    return f"""\
# bash completion for maild; written by `make man`
_maild_accounts() {{
    maild status --json 2>/dev/null | sed -n 's/^  "\\([^"\\]*\\)": {{.*/\\1/p'
}}
_maild() {{
    local path='' word known=''
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "${{path:+$path }}$word" in
            {names}) path="${{path:+$path }}$word" ;;
        esac
    done
    case "$path" in
{chr(10).join(cases)}
    esac
    case "$path" in
        {with_accounts}) known="$known $(_maild_accounts)" ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$known" -- "${{COMP_WORDS[COMP_CWORD]}}")
}}
complete -o default -F _maild maild
"""


def _zsh(words: list[Word]) -> str:
    return (
        "#compdef maild\n# zsh completion for maild; written by `make man`\n"
        "autoload -U +X bashcompinit && bashcompinit\n"
        'source "${${(%):-%x}:A:h}/maild.bash"\n'
    )


_FISH_ACCOUNTS = """\
function __maild_accounts
    maild status --json 2>/dev/null | string match -rg '^  "([^"]*)": \\{'
end"""


def _fish(words: list[Word]) -> str:
    lines = ["# fish completion for maild; written by `make man`", _FISH_ACCOUNTS]
    for word in words:
        *before, name = word.path
        lines.append(f"complete -c maild {_seen(before)} -f -a {name} -d {_quoted(word.help)}")
        lines += [
            f"complete -c maild {_seen(list(word.path))} -l {flag[2:]} -d {_quoted(action.help or '')}"
            for action in _options(word.parser)
            for flag in action.option_strings
            if flag.startswith("--")
        ]
        if choices := _choices_of(word.parser):
            lines.append(f"complete -c maild {_seen(list(word.path))} -f -a '{' '.join(choices)}'")
        if _takes_accounts(word):
            lines.append(f"complete -c maild {_seen(list(word.path))} -f -a '(__maild_accounts)'")
    return "\n".join(lines) + "\n"


def _seen(path: list[str]) -> str:
    if not path:
        return "-n __fish_use_subcommand"
    return f"-n '{'; and '.join(f'__fish_seen_subcommand_from {name}' for name in path)}'"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
