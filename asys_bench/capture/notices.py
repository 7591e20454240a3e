"""What a run has to tell a person while it goes on: logged once each, and kept for its summary."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger(__name__)

MOST = 50
"""Messages kept; later ones are counted."""


class Notices:
    """Any thread may add to it. Nothing here raises: it is called from the host's hooks."""

    def __init__(self) -> None:
        self._said: dict[str, None] = {}
        self._left_out = 0
        self.listener: Callable[[str], None] | None = None
        """Called with each new message."""

    def say(self, message: str) -> None:
        """Log `message` as a warning and keep it, unless it was said before."""
        if message in self._said:
            return
        if len(self._said) >= MOST:
            self._left_out += 1
            return
        self._said[message] = None
        try:
            log.warning("%s", message)
            if self.listener is not None:
                self.listener(message)
        except Exception:  # noqa: BLE001 - a broken logging handler of the host's, no more
            return

    @property
    def messages(self) -> tuple[str, ...]:
        """In the order in which they were said."""
        more = (f"{self._left_out} more warnings are only in the log",) if self._left_out else ()
        return (*self._said, *more)
