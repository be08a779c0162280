"""What the config may already say and this version does not do yet, told to the user key by key.

One config serves all versions; this list shrinks as they come, and in the end this file goes.
"""

from __future__ import annotations

from collections.abc import Iterator

from maild.config.problems import Problem, one_of
from maild.config.rules import OFFERED_SECRETS, Place, Source, as_table, places

_IGNORED_IN_ACCOUNT = ("aliases", "pop3", "smtp")
_IGNORED_IN_IMAP = ("push", "idle_mailboxes", "poll", "remote_delete")
_UNUSABLE_SECRETS = ("password_keyring", "oauth2", "token_command")
_UNUSABLE_AUTH = ("scram-sha-256", "oauthbearer", "xoauth2", "external")
_NO_EFFECT = "has no effect in this version"


def without_effect(sources: list[Source]) -> Iterator[Problem]:
    """The keys that are set and change nothing."""
    main = sources[0]
    if "default_account" in (as_table(main.table.get("maild")) or {}):
        yield main.problem(("maild", "default_account"), _NO_EFFECT)
    if "hooks" in main.table:
        yield main.problem(("hooks",), _NO_EFFECT)
    for place in places(sources):
        yield from _without_effect_in(place)


def _without_effect_in(place: Place) -> Iterator[Problem]:
    for key in _IGNORED_IN_ACCOUNT:
        if key in place.table:
            yield place.problem((key,), _NO_EFFECT)
    imap = place.section("imap") or {}
    for key in _IGNORED_IN_IMAP:
        if key in imap:
            yield place.problem(("imap", key), _NO_EFFECT)
    if imap.get("compress") == "on":
        yield place.problem(("imap", "compress"), _NO_EFFECT)
    if imap.get("deletions") in ("both", "to_remote"):
        yield place.problem(("imap", "deletions"), f"towards the server it {_NO_EFFECT}")


def without_login(sources: list[Source]) -> Iterator[Problem]:
    """IMAP accounts that could not log in, because their secret or mechanism is one that this version lacks."""
    for place in places(sources):
        imap = place.section("imap") or {}
        for key in _UNUSABLE_SECRETS:
            if key in imap:
                instead = one_of(OFFERED_SECRETS)
                yield place.problem(("imap", key), f"cannot be used in this version; use {instead}")
        if imap.get("auth") in _UNUSABLE_AUTH:
            yield place.problem(("imap", "auth"), 'this version can only do "auto", "plain" and "login"')
