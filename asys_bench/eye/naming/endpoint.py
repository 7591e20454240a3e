"""A model behind an OpenAI-compatible endpoint: `POST <url>/chat/completions`.

What is sent: the model's name, and the texts of `prompts`. The key comes from the environment variable
`KEY_VARIABLE` alone; it is in one header of each request, and in no message, log or file. Redirects are not
followed, as they would carry it elsewhere.

Every try ends after `TRY_S`, whatever the endpoint does meanwhile; what may pass (429, 5xx, no answer) is
tried `TRIES` times, with pauses that double or last as long as the endpoint asks for, at most
`MOST_PAUSE_S`.
"""

from __future__ import annotations

import ipaddress
import json
import math
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from email.message import Message
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from asys_bench.contracts.names import printable
from asys_bench.eye.naming.models import (
    MOST_ANSWER_TOKENS,
    Chat,
    GarbageError,
    NamingError,
    RefusedError,
    UnreachableError,
)
from asys_bench.eye.naming.prompts import yes_or_no

KEY_VARIABLE = "ASYS_NAMES_KEY"
TRIES, TRY_S = 4, 60.0
FIRST_PAUSE_S, MOST_PAUSE_S = 1.0, 60.0
AT_ONCE = 4
LOOK_S = 0.25
MOST_BYTES = 1 << 20
YES_NO_TOKENS, ALTERNATIVES = 4, 10
PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_KEY = re.compile(r"[\x21-\x7e]{1,4096}")


class Endpoint:
    """A `NamingModel`. Several threads may ask at once."""

    def __init__(self, url: str, model: str, key: str | None) -> None:
        """
        Raises:
            NamingError: the URL is none, holds credentials, or would carry the key in the clear.
        """
        self._url, self._model, self._key = checked_url(url, key), model, key
        self._opener = urllib.request.build_opener(_NoRedirects)
        self._graded = True
        self._leaving = threading.Event()

    def __repr__(self) -> str:
        return f"<{self.about} at {self._url}>"

    @property
    def about(self) -> str:
        return self._model

    @property
    def graded(self) -> bool:
        return self._graded

    def answer(self, chat: Chat) -> str:
        found = self._ask({"messages": list(chat), "max_tokens": MOST_ANSWER_TOKENS})
        return _text_of(found)

    def chances(self, chats: Sequence[Chat]) -> list[float | None]:
        if not chats:
            return []
        first = self._first_chance(chats[0])  # alone: it tells whether log probabilities are given
        threads = ThreadPoolExecutor(AT_ONCE, "asys-names")
        try:
            asked = [threads.submit(self._chance, chat) for chat in chats[1:]]
            for one in as_completed(asked):
                one.result()  # the first failure ends it, Ctrl-C too: nobody wants the other answers
            return [first, *(one.result() for one in asked)]
        finally:
            self._leaving.set()
            threads.shutdown(cancel_futures=True)
            self._leaving.clear()

    def _first_chance(self, chat: Chat) -> float | None:
        try:
            return self._chance(chat)
        except _BadRequestError:
            if not self._graded:
                raise
            self._graded = False
            return self._chance(chat)

    def _chance(self, chat: Chat) -> float | None:
        asked: dict[str, Any] = {"messages": list(chat), "max_tokens": YES_NO_TOKENS}
        if self._graded:
            asked |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
        found = self._ask(asked)
        if self._graded and _alternatives(found) is None:
            self._graded = False
        return chance_in(found) if self._graded else yes_or_no(_text_of(found))

    def _ask(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        body = json.dumps({"model": self._model, "temperature": 0, **asked}).encode()
        pause = FIRST_PAUSE_S
        for last in range(TRIES - 1, -1, -1):
            try:
                return _choice(self._within(TRY_S, lambda: self._post(body)))
            except _PassingError as error:
                if not last or self._leaving.is_set():
                    raise error.named from None
                self._pause(min(MOST_PAUSE_S, error.after_s or pause))
                pause *= 2
        raise AssertionError

    def _pause(self, seconds: float) -> None:
        self._leaving.wait(seconds)

    def _within(self, seconds: float, call: Callable[[], bytes]) -> bytes:
        """What `call` returns or raises; _PassingError after so long, also where a server sends a byte at a
        time. The thread that is left ends with its connection, or with the process."""
        done: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()

        def work() -> None:
            try:
                done.put(call())
            except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
                done.put(error)

        threading.Thread(target=work, name="asys-names-try", daemon=True).start()
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0 and not self._leaving.is_set():
            try:
                found = done.get(timeout=min(LOOK_S, left_s))
            except queue.Empty:
                continue
            if isinstance(found, BaseException):
                raise found
            return found
        raise _PassingError(UnreachableError(f"{self._url} gives no answer within {seconds:g} s"))

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "User-Agent": "asys-i"}
        request = urllib.request.Request(f"{self._url}/chat/completions", body, headers)
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        try:
            with self._opener.open(request, timeout=TRY_S) as answer:
                data: bytes = answer.read(MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from None
        except (OSError, HTTPException) as error:
            why = self._without_key(str(getattr(error, "reason", error)) or type(error).__name__)
            raise _PassingError(UnreachableError(f"{self._url} cannot be reached: {why}")) from None
        if len(data) > MOST_BYTES:
            raise GarbageError(f"{self._url} answers with more than {MOST_BYTES:,} bytes")
        return data

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        try:
            said = _said(error.read(MOST_BYTES))
        except (OSError, HTTPException):
            said = ""
        message = (
            f"{self._url} answers {error.code}{': ' + self._without_key(said) if said else ''}"
        )
        if error.code in PASSING:
            return _PassingError(RefusedError(message), _after_s(error.headers))
        if error.code in (401, 403):
            message += f"; the key is taken from {KEY_VARIABLE}"
        return _BadRequestError(message) if error.code in (400, 422) else RefusedError(message)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """A redirect is an answer like any other that is no success."""
        return


class _BadRequestError(RefusedError):
    """Something in the request is not understood."""


class _PassingError(Exception):
    """It may work another time. named: what is raised otherwise."""

    def __init__(self, named: NamingError, after_s: float | None = None) -> None:
        super().__init__(str(named))
        self.named, self.after_s = named, after_s


def checked_url(url: str, key: str | None) -> str:
    """The URL without a slash at its end. Raises NamingError; never shows what may be a secret."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise NamingError("--url is no URL") from None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise NamingError(
            "--url must begin with http:// or https:// and name a host, as in https://host/v1"
        )
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise NamingError(
            f"--url holds credentials or parameters; a key is taken from {KEY_VARIABLE}"
        )
    if key is not None and not _KEY.fullmatch(key):
        raise NamingError(f"{KEY_VARIABLE} is no key: it is empty, or holds a space or a line end")
    if key and parts.scheme == "http" and not _is_here(host):
        raise NamingError(f"http:// would carry the key to {host} in the clear: take https://")
    return url.rstrip("/")


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _choice(data: bytes) -> Mapping[str, Any]:
    """Raises GarbageError."""
    try:
        found = json.loads(data)["choices"][0]
    except (ValueError, LookupError, TypeError, RecursionError):
        found = None
    if not isinstance(found, Mapping) or not isinstance(found.get("message"), Mapping):
        raise GarbageError(
            "the endpoint's answer has no choices[0].message; is the URL one of /v1?"
        )
    return found


def _text_of(choice: Mapping[str, Any]) -> str:
    text = choice["message"].get("content")
    return text if isinstance(text, str) else ""


def chance_in(choice: Mapping[str, Any]) -> float | None:
    """P(yes) / (P(yes) + P(no)) of the first token's alternatives; None: neither is among them."""
    chances = {"yes": 0.0, "no": 0.0}
    for word, chance in _alternatives(choice) or ():
        if word in chances:
            chances[word] += chance
    both = sum(chances.values())
    return chances["yes"] / both if both > 0 else None


def _alternatives(choice: Mapping[str, Any]) -> list[tuple[str, float]] | None:
    """(word, probability) of the first token; None: the endpoint gives none."""
    try:
        told = choice["logprobs"]["content"][0]["top_logprobs"]
        pairs = [(str(one["token"]), float(one["logprob"])) for one in told]
    except (LookupError, TypeError, ValueError):
        return None
    known = [(word.strip().casefold(), min(0.0, log)) for word, log in pairs if log == log]
    return [(word, math.exp(log)) for word, log in known]


def _said(body: bytes) -> str:
    """The message in the answer of an error."""
    try:
        found = json.loads(body)
        error = found.get("error", found)
        text = error.get("message", "") if isinstance(error, Mapping) else error
    except (ValueError, AttributeError, RecursionError):
        text = ""
    return printable(str(text))[:200]


def _after_s(headers: Message) -> float | None:
    try:
        found = float(headers.get("Retry-After", ""))
    except ValueError:
        return None
    return found if 0 <= found < math.inf else None
