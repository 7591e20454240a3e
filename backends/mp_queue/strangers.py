"""Connections that are not our consumers': any user of the machine can make them, at any rate."""

from __future__ import annotations

import logging
import time

log = logging.getLogger(__name__)

BURST = 64
"""Refused connections within a second before no more are accepted for a while."""
PAUSE_S = 0.1
SAY_EVERY_S = 60.0
_MOST_USERS = 64


class Strangers:
    """Counts who was refused, says so once a minute, and tells when to accept nobody for a moment."""

    def __init__(self) -> None:
        self._since = 0.0
        self._burst = 0
        self._paused_until = 0.0
        self._by_user: dict[int, int] = {}
        self._said: dict[object, float] = {}

    def refused(self, pid: int, uid: int) -> None:
        """Process `pid` of another user `uid` was hung up on."""
        now = time.monotonic()
        if now - self._since > 1.0:
            self._since, self._burst = now, 0
        self._burst += 1
        if uid not in self._by_user and len(self._by_user) >= _MOST_USERS:
            uid = -1  # all the others
        self._by_user[uid] = self._by_user.get(uid, 0) + 1
        if self._due(uid, now):
            log.warning(
                "refused process %d of user %d (%d connections so far)",
                pid,
                uid,
                self._by_user[uid],
            )

    def say(self, message: str, *arguments: object) -> None:
        """A warning that a peer can provoke: one a minute of each kind."""
        if self._due(message, time.monotonic()):
            log.warning(message, *arguments)

    def too_many(self) -> bool:
        """Whether to accept nobody until `over`."""
        if self._burst < BURST:
            return False
        self._burst = 0
        self._paused_until = time.monotonic() + PAUSE_S
        return True

    def pause_s(self, otherwise: float) -> float:
        """How long to wait for what comes, at most."""
        if not self._paused_until:
            return otherwise
        return min(otherwise, max(0.0, self._paused_until - time.monotonic()))

    def over(self) -> bool:
        """Once, after a pause: accept again."""
        if not self._paused_until or time.monotonic() < self._paused_until:
            return False
        self._paused_until = 0.0
        return True

    def _due(self, what: object, now: float) -> bool:
        last = self._said.get(what)
        if last is not None and now - last < SAY_EVERY_S:
            return False
        self._said[what] = now
        return True
