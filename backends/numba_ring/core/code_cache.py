"""Where compiled code is kept between processes: a directory that only this user can write.

Loading it runs it, so it is used only if it and every directory above it can be changed by this user
and root alone; otherwise each process compiles afresh. The key covers all sources of this package,
numba's version and the processor.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def unsafe_reason(directory: Path) -> str | None:
    """Why code must not be loaded from `directory`, or None."""
    for path in (directory, *directory.parents):
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            return f"{path} is not a directory"
        if status.st_uid not in (0, os.geteuid()):
            return f"{path} belongs to user {status.st_uid}"
        if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
            return f"{path} can be written by others"
    status = directory.lstat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o077:
        return f"{directory} is not private (0700) to this user"
    return None


@cache
def private_directory() -> Path | None:
    """The folder for compiled code, made 0700; None if none is safe.

    `$XDG_CACHE_HOME/asys-i/numba_ring` (or below `~/.cache`); for a user whose home is missing or
    cannot be written, `asys-i-cache-<uid>/numba_ring` in the folder for temporary files.
    """
    reasons = []
    for directory in _candidates():
        try:
            directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.mkdir(mode=0o700, exist_ok=True)
            reason = unsafe_reason(directory)
        except OSError as error:
            reason = str(error)
        if reason is None:
            return directory
        reasons.append(reason)
    logger.warning(
        "numba_ring compiles in every process, which may take each a minute: no code cache, because "
        "%s. Set XDG_CACHE_HOME to a folder of your own",
        "; ".join(reasons),
    )
    return None


def _candidates() -> Iterator[Path]:
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(
        root
    ):  # a relative one is to be ignored (XDG base directory specification)
        root = os.path.expanduser("~/.cache")
    if os.path.isabs(root):  # else: no HOME, and a user without an entry in /etc/passwd
        yield Path(os.path.realpath(root)) / "asys-i" / "numba_ring"
    temporary = os.environ.get("TMPDIR") or "/tmp"
    if os.path.isabs(temporary):
        folder = f"asys-i-cache-{os.geteuid()}"
        yield Path(os.path.realpath(temporary)) / folder / "numba_ring"


@cache
def source_digest() -> str:
    """Changes with any source of this package; inlined functions live in several of its modules."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def cache_in_private_directory(dispatcher: Any) -> None:
    """Make a numba dispatcher load its code from, and save it to, the private directory."""
    directory = private_directory()
    if directory is None:
        return
    try:
        dispatcher._cache = _make_cache(dispatcher.py_func, directory)
    except (ImportError, AttributeError, TypeError, RuntimeError) as error:
        logger.warning("this numba's cache is unknown (%s): compiling in every process", error)


def _make_cache(function: Any, directory: Path) -> Any:
    from numba.core import caching

    class Locator(caching._CacheLocator):
        def get_cache_path(self) -> str:
            return str(directory)

        def get_source_stamp(self) -> str:
            return source_digest()

        def get_disambiguator(self) -> str:
            return "v1"

        @classmethod
        def from_function(cls, py_func: Any, py_file: str) -> Any:
            return cls()

    class Impl(caching.CompileResultCacheImpl):
        _locator_classes: list[type[object]] = [Locator]  # noqa: RUF012 - numba's own name

    class PrivateCache(caching.FunctionCache):
        _impl_class = Impl

        @contextlib.contextmanager
        def _guard_against_spurious_io_errors(self) -> Iterator[None]:
            try:
                yield
            except Exception as error:  # noqa: BLE001 - a damaged or full cache only costs a compile
                logger.warning("numba_ring's code cache failed (%s): compiling", error)
                with contextlib.suppress(OSError):  # a damaged index would also refuse to be saved
                    os.unlink(self._cache_file._index_path)

    make: Any = PrivateCache
    return make(function)
