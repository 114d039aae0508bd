"""A replica: one server of a policy, its state, and its circuit breaker."""

import threading
import time
from dataclasses import dataclass, field

from stateset_agents.policy.transport import Unanswered

MAX_PAUSE = 5.0
"""The most seconds between two health checks of an unreachable replica."""
FAILURES_TO_OPEN = 3
"""Failures in a row after which nothing is sent to a replica, until a health check succeeds."""


@dataclass(slots=True)
class Replica:
    """One server at a base URL that ends in `/v1`."""

    url: str
    running: int = 0
    """Calls under way."""
    failures: int = 0
    """Failures in a row."""
    retry_at: float = 0.0
    """The breaker: no call is sent before this time (`time.monotonic`), and then a health check comes first; 0 if it is
    healthy."""
    last_error: str = ""
    checking: bool = False
    """Whether a health check is under way."""
    loading: threading.Lock = field(default_factory=threading.Lock)
    """Held while weights are loaded; one load at a time, across event loops."""

    def record_failure(self, error: Unanswered) -> None:
        """Count a failure; the breaker opens if the connection is refused, or after `FAILURES_TO_OPEN`."""
        self.failures += 1
        self.last_error = str(error)
        if error.refused or self.failures >= FAILURES_TO_OPEN:
            pause = min(MAX_PAUSE, 0.25 * 2.0 ** min(self.failures, 8))
            self.retry_at = time.monotonic() + pause

    def mark_healthy(self) -> None:
        self.failures, self.retry_at = 0, 0.0

    @property
    def is_healthy(self) -> bool:
        """Whether the breaker is closed."""
        return not self.retry_at

    def is_due(self) -> bool:
        """Whether a health check is due, and none is under way."""
        return 0 < self.retry_at <= time.monotonic() and not self.checking
