"""What a server has taught about push: intervals that adapt, extensions that come to nothing."""

from __future__ import annotations

from maild.remote.imap.experience import GROW_AFTER, REFUSED_S, RENEW_S, SHORTEST_RENEW_S, Experience
from maild.remote.imap.push import foreign_of


def test_the_interval_halves_and_grows_back_slowly() -> None:
    experience = Experience()
    for _ in range(10):
        experience.died_silently()
    assert experience.interval_s == SHORTEST_RENEW_S
    for _ in range(GROW_AFTER - 1):
        experience.renewed()
    assert experience.interval_s == SHORTEST_RENEW_S
    experience.renewed()
    assert experience.interval_s == 1.25 * SHORTEST_RENEW_S
    for _ in range(100 * GROW_AFTER):
        experience.renewed()
    assert experience.interval_s == RENEW_S


def test_one_failure_is_no_refusal_and_a_success_forgives_it() -> None:
    clock = [0.0]
    experience = Experience(clock=lambda: clock[0])
    assert not experience.strike("IDLE", "mute")
    experience.proved("IDLE", "mute")
    assert not experience.strike("IDLE", "mute")
    assert not experience.strike("IDLE", "lost")  # another way to fail
    assert (experience.refusal("IDLE"), experience.again_s()) == ("", None)
    assert experience.strike("IDLE", "mute")
    assert (experience.refusal("IDLE"), experience.again_s()) == ("mute", REFUSED_S)
    clock[0] = REFUSED_S
    assert (experience.refusal("IDLE"), experience.again_s()) == ("", None)


def test_foreign_mailboxes_are_those_below_a_foreign_prefix() -> None:
    assert foreign_of(["INBOX", "shared/a", "user/b"], ("shared/", "user/")) == ("shared/a", "user/b")
