"""Objects of a store by key, through `pyarrow.fs`; what can go wrong as one typed error.

Every call ends: connecting takes at most CONNECT_S, an answer at most REQUEST_S, and a refused request
is tried TRIES times. Endpoint, region and credentials are those of the environment (`AWS_ENDPOINT_URL`,
`AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID`, ...; for `gs` Google's default ones).
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import Any, TypeVar

from asys_bench.store.uri import Location, without_secrets

T = TypeVar("T")
CONNECT_S, REQUEST_S, TRIES = 5.0, 20.0, 3
CALL_S = TRIES * (CONNECT_S + REQUEST_S) + 15.0
"""No single call takes longer, its own pauses between tries included."""
PIECE_BYTES = 8 << 20
"""Of 4 MiB, an answer costs a tenth more CPU time; of 64 MiB, its memory comes from the kernel each time."""
_PART = ".part"
_CHECK_ANSWERS = "AWS_RESPONSE_CHECKSUM_VALIDATION"


class Reason(StrEnum):
    """Why a store refuses."""

    UNREACHABLE = "unreachable"
    """No answer, or none in time."""
    THROTTLED = "throttled"
    FORBIDDEN = "forbidden"
    """The credentials are not those of somebody who may."""
    NO_BUCKET = "no_bucket"
    FULL = "full"
    MISSING = "missing"
    """No such object."""
    CHANGED = "changed"
    """What was read is not what was written."""
    TOO_LARGE = "too_large"
    """The object has more bytes than such an object may have."""
    OTHER = "other"


WORDS = {
    Reason.UNREACHABLE: "it cannot be reached",
    Reason.THROTTLED: "it asks to slow down",
    Reason.FORBIDDEN: "access is denied: check the credentials in the environment",
    Reason.NO_BUCKET: "there is no such bucket",
    Reason.FULL: "it is full, or over its quota",
    Reason.MISSING: "there is no such object",
    Reason.CHANGED: "it gives back other bytes than it was given",
    Reason.TOO_LARGE: "the object is too large",
    Reason.OTHER: "it reports an error",
}
"""The reasons as people say them."""
LASTING = (Reason.FORBIDDEN, Reason.NO_BUCKET)
"""Reasons that waiting does not mend."""
_SIGNS: tuple[tuple[Reason, str], ...] = (
    (Reason.NO_BUCKET, "NO_SUCH_BUCKET|NoSuchBucket|bucket does not exist"),
    (Reason.THROTTLED, "SLOW_DOWN|SlowDown|THROTTL|Throttl|TooManyRequests|status (429|503)"),
    (
        Reason.FORBIDDEN,
        "ACCESS_DENIED|AccessDenied|Forbidden|INVALID_ACCESS_KEY_ID|InvalidAccessKeyId|EXPIRED_TOKEN|"
        "ExpiredToken|SIGNATURE_DOES_NOT_MATCH|SignatureDoesNotMatch|INVALID_CLIENT_TOKEN_ID|"
        "MISSING_AUTHENTICATION_TOKEN|status (401|403)|PERMISSION_DENIED|Anonymous caller",
    ),
    (
        Reason.FULL,
        "QuotaExceeded|EntityTooLarge|StorageFull|InsufficientCapacity|status 507|No space left|"
        "Disk quota",
    ),
    (
        Reason.UNREACHABLE,
        "NETWORK_CONNECTION|curlCode|timed out|Timeout|REQUEST_TIMEOUT|SERVICE_UNAVAILABLE|"
        "INTERNAL_FAILURE|InternalError|Connection|UNAVAILABLE|status 5[0-9][0-9]",
    ),
    (Reason.MISSING, "NO_SUCH_KEY|RESOURCE_NOT_FOUND|NoSuchKey|Path does not exist"),
)
"""What a client's text says. pyarrow passes on no code, so this is the one place that reads it; what
none of these says is `other`, which is tried again like most."""


class StoreError(RuntimeError):
    """A store refused; `reason` says why, the message also where and in the client's words."""

    def __init__(self, where: str, reason: Reason, detail: str = "") -> None:
        detail = without_secrets(" ".join(detail.split()))[:300]
        super().__init__(f"{where}: {WORDS[reason]}{f' ({detail})' if detail else ''}")
        self.where, self.reason = where, reason

    @classmethod
    def of(cls, where: str, error: BaseException) -> StoreError:
        """What an error of the client means."""
        text = str(error) or type(error).__name__
        if isinstance(error, FileNotFoundError):
            return cls(where, Reason.MISSING, text)
        if isinstance(error, PermissionError):
            return cls(where, Reason.FORBIDDEN, text)
        for reason, signs in _SIGNS:
            if re.search(signs, text):
                return cls(where, reason, text)
        return cls(where, Reason.OTHER, text)


FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0


class Backoff:
    """Pauses between tries: doubled each time, up to a minute, each shortened at random by up to a half."""

    def __init__(self, first_s: float = FIRST_PAUSE_S, longest_s: float = LONGEST_PAUSE_S) -> None:
        self._first_s, self._longest_s, self._tries = first_s, longest_s, 0

    def next_s(self) -> float:
        pause_s = min(self._longest_s, self._first_s * 2.0 ** min(self._tries, 30))
        self._tries += 1
        return pause_s * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        self._tries = 0


def patiently(call: Callable[[], T], patience_s: float) -> T:
    """What `call` gives, tried again for so long where waiting may help. Raises StoreError."""
    backoff, until = Backoff(), time.monotonic() + patience_s
    while True:
        try:
            return call()
        except StoreError as error:
            lasting = error.reason in (*LASTING, Reason.MISSING, Reason.CHANGED, Reason.TOO_LARGE)
            pause_s = backoff.next_s()
            if lasting or time.monotonic() + pause_s > until:
                raise
            time.sleep(pause_s)


class ObjectStore:
    """The objects below one place. Every method raises StoreError."""

    def __init__(self, location: Location) -> None:
        self.location = location
        try:
            self._files: Any = _file_system(location)
        except (OSError, ValueError, ImportError) as error:
            raise StoreError.of(str(location), error) from None

    def check(self) -> None:
        """Whether there is a bucket, as far as somebody who may only put and get can ask."""
        from pyarrow.fs import FileType

        if self.location.scheme == "file":
            return
        root = self.location.root
        try:
            info = self._files.get_file_info(root)
        except OSError as error:
            raise StoreError.of(f"{self.location.scheme}://{root}", error) from None
        if info.type == FileType.NotFound:
            raise StoreError(f"{self.location.scheme}://{root}", Reason.NO_BUCKET)

    def put(self, key: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Write an object; one that is there is replaced, whole and at once."""
        path = self._path(key)
        local = self.location.scheme == "file"
        # An object store shows an object when it is whole; a folder shows a file when it is begun.
        target = f"{path}{_PART}" if local else path
        try:
            if local:
                self._files.create_dir(os.path.dirname(path), recursive=True)
            with self._files.open_output_stream(target) as stream:
                for piece in pieces:
                    stream.write(piece)
            if local:
                self._files.move(target, path)
        except OSError as error:
            if local:
                with suppress(OSError):
                    self._files.delete_file(target)
            raise self._error(key, error) from None

    def pieces(self, key: str) -> Iterator[bytes]:
        """The bytes of an object, some MiB at a time."""
        try:
            with self._files.open_input_stream(self._path(key)) as stream:
                while piece := stream.read(PIECE_BYTES):
                    yield piece
        except OSError as error:
            raise self._error(key, error) from None

    def get(self, key: str, most_bytes: int) -> bytes:
        """A small object; one of more than `most_bytes` is refused as `too_large`."""
        found: list[bytes] = []
        size = 0
        for piece in self.pieces(key):
            found.append(piece)
            size += len(piece)
            if size > most_bytes:
                raise StoreError(
                    f"{self.location}/{key}", Reason.TOO_LARGE, f"more than {most_bytes} bytes"
                )
        return b"".join(found)

    def size(self, key: str) -> int | None:
        """Of an object; None: it is not there."""
        from pyarrow.fs import FileType

        try:
            info = self._files.get_file_info(self._path(key))
        except OSError as error:
            raise self._error(key, error) from None
        return int(info.size) if info.type == FileType.File else None

    def keys(self, below: str) -> list[str]:
        """The keys that begin with `below/`, in their order."""
        return list(self.times(below))

    def times(self, below: str) -> dict[str, int]:
        """The keys that begin with `below/`, in their order, with the store's times in nanoseconds at which
        they were written last."""
        from pyarrow.fs import FileSelector, FileType

        folder = FileSelector(self._path(below), recursive=True, allow_not_found=True)
        try:
            found = self._files.get_file_info(folder)
        except OSError as error:
            raise self._error(below, error) from None
        start = len(self.location.key) + 1
        files = {
            info.path[start:]: info.mtime_ns or 0 for info in found if info.type == FileType.File
        }
        return dict(sorted(files.items()))

    def delete(self, key: str) -> None:
        """One that is gone is fine."""
        try:
            self._files.delete_file(self._path(key))
        except FileNotFoundError:
            return
        except OSError as error:
            found = self._error(key, error)
            if found.reason is not Reason.MISSING:
                raise found from None

    def _path(self, key: str) -> str:
        return f"{self.location.key}/{key}"

    def _error(self, key: str, error: OSError) -> StoreError:
        return StoreError.of(f"{self.location}/{key}", error)


def _file_system(location: Location) -> Any:
    from pyarrow import fs

    if location.scheme == "file":
        return fs.LocalFileSystem()
    if location.scheme == "s3":
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
        scheme, colon, address = endpoint.rpartition("://")
        with _answers_unchecked():
            return fs.S3FileSystem(
                endpoint_override=address.rstrip("/") or None,
                scheme=scheme if colon else "https",
                connect_timeout=CONNECT_S,
                request_timeout=REQUEST_S,
                retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=TRIES),
            )
    from datetime import timedelta

    return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=CALL_S / 2))


@contextmanager
def _answers_unchecked() -> Iterator[None]:
    """The client that is made inside computes no checksum of what it reads: every reader here compares
    bytes or a SHA-256, and the client's own costs half of the CPU time of reading. It takes this from
    the environment alone; a user's own value stays."""
    if _CHECK_ANSWERS in os.environ:
        yield
        return
    os.environ[_CHECK_ANSWERS] = "when_required"
    try:
        yield
    finally:
        del os.environ[_CHECK_ANSWERS]
