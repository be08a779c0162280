"""A server that repeats what it was sent: the secret is in no error, so neither in status nor on a terminal."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator

import pytest

from maild.config import Imap, Password, Pop3, Smtp
from maild.core.errors import MaildError
from maild.remote import auth
from maild.remote.masking import MASK, masked
from maild.remote.trial import try_login
from maild.testing.faults import Answer
from maild.testing.imap import ImapServer
from maild.testing.pop3 import Pop3Server
from maild.testing.smtp import SmtpServer
from maild.testing.store import Store

USER, SECRET = "me@example.org", "open sesame 1001"
SENT = base64.b64encode(f"\0{USER}\0{SECRET}".encode()).decode()


@pytest.fixture(autouse=True)
def nothing_read_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_read_so_far", set())


@pytest.fixture(params=["imap", "pop3", "smtp"])
async def endpoint(request: pytest.FixtureRequest) -> AsyncIterator[Imap | Pop3 | Smtp]:
    """A server of each kind, that refuses every login and says why with all that it heard."""
    said = f"wrong: {SECRET} ({SENT})"
    users = {USER: "another"}
    common = {"host": "127.0.0.1", "user": USER, "secret": Password(SECRET), "tls": "none", "auth": "plain"}
    match request.param:
        case "imap":
            async with ImapServer(Store(), users) as imap:
                imap.faults.add("AUTHENTICATE", Answer(f"NO {said}"), times=None)
                yield Imap(port=imap.port, **common)  # type: ignore[arg-type]
        case "pop3":
            async with Pop3Server([], users) as pop3:
                pop3.faults.add("AUTH", Answer(f"-ERR {said}"), times=None)
                yield Pop3(port=pop3.port, **common)  # type: ignore[arg-type]
        case _:
            async with SmtpServer(users=users) as smtp:
                smtp.react("auth", f"535 5.7.8 {said}", times=9)
                yield Smtp(port=smtp.port, **common)  # type: ignore[arg-type]


async def test_no_error_repeats_the_secret(endpoint: Imap | Pop3 | Smtp) -> None:
    with pytest.raises(MaildError) as refused:
        await try_login(endpoint, "work")
    text = str(refused.value)
    assert "wrong: ***" in text, text
    assert SECRET not in text
    assert SENT[10:-4] not in text


def test_what_is_no_secret_stays() -> None:
    assert masked(f"it was {SECRET}") == f"it was {SECRET}"
    auth.keep_out_of_log(SECRET)
    assert masked(f"it was {SECRET}, said x") == f"it was {MASK}, said x"
