"""What the config may already say and this version does not do yet, told to the user key by key.

One config serves all versions; this list shrinks as they come, and in the end this file goes.
"""

from __future__ import annotations

from collections.abc import Iterator

from maild.config.problems import Problem
from maild.config.rules import Place, Source, places

_NO_EFFECT = "has no effect in this version"


def without_effect(sources: list[Source]) -> Iterator[Problem]:
    """The keys that are set and change nothing."""
    for place in places(sources):
        yield from _without_effect_in(place)


def _without_effect_in(place: Place) -> Iterator[Problem]:
    imap = place.section("imap") or {}
    if imap.get("compress") == "on":
        yield place.problem(("imap", "compress"), _NO_EFFECT)
