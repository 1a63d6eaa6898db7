"""Servers, or the replicas of a Ray cluster: which one takes the next request, and which ones rest.

A server that cannot be reached is down until it answers again. Of one that refuses requests (429, 503) the
share of refusals decides. What is refused now and then is asked again, each request after a wait of its own,
and nobody else waits for it; a server that refuses many takes fewer requests at a time, then gradually more;
one that refuses most of them rests. The cut goes by the share, as in DCTCP (Alizadeh et al., 2010).
"""

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import EngineError

log = logging.getLogger(__name__)

# the share of refusals that says nothing of the load, and the one from which on a server rests
TOLERATED, MOST = 0.15, 0.5
MIN_WINDOW = 20  # outcomes from which a share can be told
FIRST_REST_SECONDS, MAX_REST_SECONDS = 0.25, 30.0


@dataclass(slots=True, eq=False)
class Replica:
    """One server. `limit` is how many requests it may have at a time, `counts` go into the manifest.

    `root` and `positions` are where a vLLM has its weights from and how many tokens it takes, as far as it
    says so, and `unfit_for` is why it answers and is not used.

    Refusals are weighed over windows of about as many outcomes as requests are in flight. `left_out` and
    `renamed` are parameters as it was learnt that it wants them, `rests_for` is why it rests for long and
    `has_answered` whether it did since it last asked for that, `generated` the tokens of its answers and
    `generated_before` those that its own counter had before them.
    """

    url: str
    limit: float
    most: int
    model: str = ""
    root: str = ""
    positions: int | None = None
    unfit_for: str = ""
    is_vllm: bool = False
    left_out: set[str] = field(default_factory=set)
    renamed: dict[str, str] = field(default_factory=dict)
    rests_for: str = ""
    generated: int = 0
    generated_before: int | None = None
    in_flight: int = 0
    down: bool = False
    has_answered: bool = False
    paused_until: float = 0.0
    failed_in_a_row: int = 0
    num_answered: int = 0
    num_refused: int = 0
    rests_in_a_row: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def cuts(self) -> int:
        """How often the limit was cut. What was sent before the last cut and is refused now is old news."""
        return self.counts["slowed_down"]

    def came_back_as(self, root: str, positions: int | None) -> str:
        """What a server is now that it was not: other weights, or fewer positions; nothing where it is the
        same, or does not say."""
        if self.root and root and root != self.root:
            return f"serves {root} now, under the name under which it served {self.root}"
        if self.positions and positions and positions < self.positions:
            return f"takes {positions:,} tokens now (max_model_len), and took {self.positions:,}"
        return ""

    def is_free(self, now: float) -> bool:
        return not self.down and self.paused_until <= now and self.in_flight < max(int(self.limit), 1)

    def succeeded(self) -> None:
        """One more place for each round of successes, as TCP does it."""
        self.counts["answered"] += 1
        self.failed_in_a_row = 0
        self.has_answered = True
        if self.rests_for:  # it answers all the same
            self.rests_for, self.paused_until = "", 0.0
        self.limit = min(self.limit + 1 / max(self.limit, 1.0), float(self.most))
        self.num_answered += 1
        self._weigh(0.0)

    def refused(self, cuts: int, asked_seconds: float) -> None:
        """A request was refused that was sent after so many cuts; the server asked for so long a wait."""
        if cuts == self.cuts:
            self.num_refused += 1
            self._weigh(asked_seconds)

    def _weigh(self, asked_seconds: float) -> None:
        """At the end of a window: fewer at a time where many were refused, a rest where most were."""
        total, size = self.num_answered + self.num_refused, max(int(self.limit), 1)
        if total < size or (self.num_answered and total < MIN_WINDOW):
            return
        share = self.num_refused / total
        self.num_answered = self.num_refused = 0
        if share < MOST:
            self.rests_in_a_row = 0
        if share <= TOLERATED:
            return
        self.counts["slowed_down"] += 1
        self.limit = max(self.limit * (1 - share / 2), 1.0)
        if share >= MOST:
            seconds = min(FIRST_REST_SECONDS * 2**self.rests_in_a_row, MAX_REST_SECONDS)
            self.rests_in_a_row = min(self.rests_in_a_row + 1, 10)
            self.paused_until = time.monotonic() + max(seconds, asked_seconds)


class Replicas:
    """Servers of one model. `take` waits for a place at the least busy one."""

    def __init__(
        self,
        urls: tuple[str, ...],
        concurrency: int,
        outage_seconds: float,
        advice: str = "start one (make serve-teacher)",
    ) -> None:
        # each may take all, so that one that is left alone keeps the whole concurrency
        self.all = [Replica(url.rstrip("/"), float(concurrency), concurrency) for url in urls]
        self._outage_seconds = outage_seconds
        self._advice = advice
        self._last_sign = time.monotonic()
        self._changed = asyncio.Event()

    async def take(self, avoid: Replica | None = None) -> Replica:
        """A place at a server, not at `avoid` where there is another. EngineError after an outage."""
        while True:
            now = time.monotonic()
            free = [replica for replica in self.all if replica.is_free(now)]
            others = [replica for replica in free if replica is not avoid]
            if free:
                chosen = min(others or free, key=lambda replica: replica.in_flight / replica.limit)
                chosen.in_flight += 1
                chosen.counts["requests"] += 1
                return chosen
            silent = now - self._last_sign > self._outage_seconds
            if silent and all(replica.down for replica in self.all):
                what, which = "has answered", ", ".join(self.urls())
                if any(replica.unfit_for for replica in self.all):
                    what = "could be used"
                    which = "; ".join(one.unfit_for or f"{one.url} is down" for one in self.all)
                raise EngineError(
                    f"no server {what} for {self._outage_seconds:.0f} s ({which}). "
                    f"What was finished is kept: {self._advice} and run the same command again"
                )
            self._changed.clear()
            up = [replica for replica in self.all if not replica.down]
            pauses = [replica.paused_until - now for replica in up if replica.paused_until > now]
            # what is on its way may yet be answered, and end a rest; a server that is down may come back
            idle = not any(replica.in_flight for replica in self.all)
            alone = silent or len(up) == len(self.all)
            if idle and alone and len(pauses) == len(up) > 0 and min(pauses) > self._outage_seconds:
                said = "; ".join(f"{replica.url}: {replica.rests_for}" for replica in up)
                raise EngineError(
                    f"told to wait {min(pauses):,.0f} s ({said}). What was finished is kept: run the same "
                    "command again then, or wait so long with --outage-seconds"
                )
            await _wait(self._changed, min([*pauses, 1.0]))

    def rest(self, replica: Replica, seconds: float, why: str) -> None:
        """Send nothing to a server for so long, which it asked for."""
        replica.counts["rested"] += 1
        replica.paused_until = max(replica.paused_until, time.monotonic() + seconds)
        replica.rests_for = why
        self._changed.set()

    def give_back(self, replica: Replica) -> None:
        replica.in_flight -= 1
        self._changed.set()

    def sign_of_life(self) -> None:
        self._last_sign = time.monotonic()

    def idle_for(self, seconds: float) -> bool:
        """Whether nothing is on its way and nothing has been for so long."""
        idle = not any(replica.in_flight for replica in self.all)
        return idle and time.monotonic() - self._last_sign > seconds

    def fell(self, replica: Replica, why: str) -> bool:
        """Mark a server as down; True where it was up until now."""
        if replica.down:
            return False
        replica.down = True
        replica.counts["down"] += 1
        rest = [other.url for other in self.all if not other.down]
        log.warning(
            "%s is down (%s); %s", replica.url, why, f"going on with {', '.join(rest)}" if rest else "waiting"
        )
        return True

    def rose(self, replica: Replica) -> None:
        replica.down, replica.unfit_for = False, ""
        replica.failed_in_a_row = 0
        replica.limit = float(replica.most)
        self.sign_of_life()
        self._changed.set()
        if replica.counts["down"]:
            log.warning("%s answers again", replica.url)

    def urls(self) -> list[str]:
        return [replica.url for replica in self.all]

    def notes(self) -> dict[str, Any]:
        return {replica.url: dict(replica.counts) for replica in self.all}


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), max(seconds, 0.001))
    except TimeoutError:
        return
