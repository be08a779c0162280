"""What a server has taught about push: how long a silent connection lives, and which extensions come to nothing.

One failure may be the network's; `STRIKES` of a kind without a success between them are the server's, and it is
believed for `REFUSED_S`, then tried again: servers get repaired, and a daemon runs for years.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

RENEW_S = 540.0  # many routers forget a connection after 10 minutes
SHORTEST_RENEW_S = 60.0
GROW_AFTER = 20  # renewals that went well, before a shorter interval is made longer again
STRIKES = 2
REFUSED_S = 86_400.0
LOST_S = 600.0  # the same of what connections were lost at, for that may have been the network all the same


@dataclass(slots=True)
class Experience:
    """Of one account, for as long as it runs. `clock` gives seconds of any origin."""

    interval_s: float = RENEW_S
    clock: Callable[[], float] = time.monotonic
    _renewals: int = 0
    _strikes: dict[tuple[str, str], int] = field(default_factory=dict)
    _refused: dict[str, tuple[str, float]] = field(default_factory=dict)  # extension → why, until when

    def died_silently(self) -> None:
        """A session was found dead: the next ones are asked for a sign of life sooner."""
        self.interval_s = max(SHORTEST_RENEW_S, self.interval_s / 2)
        self._renewals = 0

    def renewed(self) -> None:
        """A session was still alive after the interval, which slowly grows back."""
        self._renewals += 1
        if self._renewals >= GROW_AFTER:
            self.interval_s, self._renewals = min(RENEW_S, self.interval_s * 1.25), 0

    def strike(self, extension: str, why: str, for_s: float = REFUSED_S) -> bool:
        """It came to nothing, in this way; whether it counts as not offered from now on, for so long."""
        count = self._strikes[extension, why] = self._strikes.get((extension, why), 0) + 1
        if count >= STRIKES:
            self.refuse(extension, why, for_s)
        return count >= STRIKES

    def proved(self, extension: str, why: str) -> None:
        """It did what it failed to do in this way before."""
        self._strikes.pop((extension, why), None)

    def refuse(self, extension: str, why: str, for_s: float = REFUSED_S) -> None:
        """It counts as not offered for a while."""
        self._refused[extension] = why, self.clock() + for_s
        self._strikes.pop((extension, why), None)

    def refusal(self, extension: str) -> str:
        """Why it counts as not offered, or "" where it does not."""
        why, until_s = self._refused.get(extension, ("", 0.0))
        if why and self.clock() >= until_s:
            del self._refused[extension]
            why = ""
        return why

    def again_s(self) -> float | None:
        """After how many seconds something that counts as not offered is tried again."""
        now_s = self.clock()
        return min((until_s - now_s for _, until_s in self._refused.values()), default=None)
