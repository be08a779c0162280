"""Where the demo is shown: plain text, and on a terminal with colours, where rich obeys NO_COLOR."""

from __future__ import annotations

import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

from maild.commands import printable

if TYPE_CHECKING:
    from rich.console import Console

WIDEST = 100  # lines of text that are longer are hard to read
NARROWEST = 40
_MARGIN, _INSET = " " * 3, " " * 7
_TIME_COLUMNS = 9

Part = tuple[str, str]  # a text and its style


class Screen:
    """Every line is out as soon as it is told, so that who watches sees it happen."""

    def __init__(self) -> None:
        is_terminal = sys.stdout.isatty()
        self._console = _console() if is_terminal else None
        columns = shutil.get_terminal_size((80, 24)).columns
        self.width = max(NARROWEST, min(columns, WIDEST))

    @property
    def inner_width(self) -> int:
        """Of what is shown with `show`."""
        return self.width - len(_INSET)

    def title(self, text: str) -> None:
        self._line()
        for line in self._wrapped(printable(text), ""):
            self._line((line, "bold"))

    def say(self, text: str, style: str = "") -> None:
        """A paragraph, wrapped."""
        for line in self._wrapped(printable(text), _MARGIN):
            self._line((_MARGIN + line, style))

    def time(self, duration_ms: float, text: str) -> None:
        """How long something took, and behind it what that was."""
        indent = " " * (len(_MARGIN) + _TIME_COLUMNS + 2)
        head = f"{_MARGIN}{f'{duration_ms:,.0f} ms':>{_TIME_COLUMNS}}  "
        for line in self._wrapped(printable(text), indent):
            self._line((head, "bold green"), (line, ""))
            head = indent

    def command(self, text: str) -> None:
        """What would be typed, never wrapped: it can be copied."""
        self._line((f"{_MARGIN}$ {printable(text)}", "bold cyan"))

    def show(self, text: str) -> None:
        """Lines as they stand in a file or come from a command, never wrapped."""
        for line in text.splitlines():
            self._line((f"{_INSET}{printable(line)}".rstrip(), "cyan"))

    def _wrapped(self, text: str, indent: str) -> list[str]:
        return textwrap.wrap(text, self.width - len(indent), break_long_words=False, break_on_hyphens=False)

    def _line(self, *parts: Part) -> None:
        if self._console is None:
            print("".join(text for text, _ in parts), flush=True)
            return
        from rich.text import Text

        self._console.print(Text.assemble(*parts))
        sys.stdout.flush()


def _console() -> Console:
    """Imported here: who writes into a file or a pipe need not wait for rich."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
