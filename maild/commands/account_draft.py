"""An account that is being set up, as far as it is known."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from maild.config import Account, Config, Password
from maild.core.errors import MaildError
from maild.core.providers import Provider
from maild.engine import accounts


class Unanswered(MaildError):
    """Something is not known, and there is nobody to ask: wrong usage."""


@dataclass(slots=True)
class Draft:
    """The account as far as it is known. `secret` is how the config names its source; `password` is one to be kept."""

    name: str
    address: str
    servers: dict[str, dict[str, object]] = field(default_factory=dict)
    secret: dict[str, object] = field(default_factory=dict, repr=False)
    password: str = field(default="", repr=False)
    maildir: str = ""
    provider: Provider | None = None

    def table(self) -> dict[str, object]:
        """As it is written: the secret stands with the server that mail comes from, or with the only one there is."""
        first = next(iter(self.servers))
        sections = {p: {**s, **(self.secret if p == first else {})} for p, s in self.servers.items()}
        return {"address": self.address, **({"maildir": self.maildir} if self.maildir else {}), **sections}

    def account(self, config: Config | None) -> Account:
        """By the rules of the config; logs in with the new password where there is one. Raises ConfigError."""
        account = accounts.judged(self.name, self.table(), config)
        if not self.password:
            return account
        return with_password(account, self.password)


def with_password(account: Account, password: str) -> Account:
    """The account as it logs in with this password everywhere."""
    new = Password(password)
    return replace(
        account,
        imap=account.imap and replace(account.imap, secret=new),
        pop3=account.pop3 and replace(account.pop3, secret=new),
        smtp=account.smtp and replace(account.smtp, secret=new),
    )


def absolute(path: Path) -> Path:
    """No shell expands the ~ of `--maildir=~/Mail`."""
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise Unanswered(f"{path} begins with ~ and the name of a user that this machine does not know") from None
