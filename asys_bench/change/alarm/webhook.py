"""A document per alarm to a URL, from a thread of its own: nothing waits for the network."""

from __future__ import annotations

import json
import logging
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from asys_bench.contracts.stats import Counter

log = logging.getLogger(__name__)
TRIES = 4
FIRST_PAUSE_S = 1.0
WAITING = 64
"""Documents that wait to be sent; more are counted as failed."""
_OVER = object()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """A redirect is an answer like any other that is no success."""
        return


class Webhook:
    """POSTs JSON. An answer other than 2xx, or none within `timeout_s`, is tried again, `TRIES` times in all
    and with pauses that double.

    sent, failed: count documents.
    """

    def __init__(self, url: str, timeout_s: float, sent: Counter, failed: Counter) -> None:
        self._url, self._timeout_s = url, timeout_s
        self._sent, self._failed = sent, failed
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="alarm-webhook", daemon=True)
        self._thread.start()

    def send(self, document: Mapping[str, Any]) -> None:
        """Soon; never waits."""
        if self._queue.qsize() >= WAITING:
            self._failed.add()
            log.error("webhook: %d documents wait already, this one is left out", WAITING)
            return
        self._queue.put(json.dumps(document).encode())

    def close(self, within_s: float) -> None:
        """Send what waits, once each and no longer than that; the rest is lost with the process."""
        self._closing.set()
        self._queue.put(_OVER)
        self._thread.join(within_s)

    def _work(self) -> None:
        while (data := self._queue.get()) is not _OVER:
            self._deliver(data)

    def _deliver(self, data: bytes) -> None:
        why = ""
        for attempt in range(TRIES):
            if attempt and self._closing.wait(FIRST_PAUSE_S * 2 ** (attempt - 1)):
                break
            try:
                self._post(data)
            except (OSError, HTTPException, ValueError) as error:
                why = f"{type(error).__name__}: {error}"
                continue
            self._sent.add()
            return
        self._failed.add()
        log.error("webhook: not delivered: %s", why)

    def _post(self, data: bytes) -> None:
        request = urllib.request.Request(
            self._url, data, {"Content-Type": "application/json", "User-Agent": "asys-i"}
        )
        until = time.monotonic() + self._timeout_s
        with self._opener.open(request, timeout=self._timeout_s) as answer:
            # The answer is not needed; one that never ends is let go of.
            answer.read(1 << 16) if time.monotonic() < until else None
