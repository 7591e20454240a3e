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
    """`$XDG_CACHE_HOME/asys-i/numba_ring` (or below `~/.cache`), made 0700; None if it is not safe."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(
        root
    ):  # a relative one is to be ignored (XDG base directory specification)
        root = os.path.expanduser("~/.cache")
    if not os.path.isabs(root):  # no HOME, and a user without an entry in /etc/passwd
        logger.warning(
            "numba_ring compiles in every process: HOME and XDG_CACHE_HOME name no folder"
        )
        return None
    directory = Path(os.path.realpath(root)) / "asys-i" / "numba_ring"
    try:
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        reason = unsafe_reason(directory)
    except OSError as error:
        reason = str(error)
    if reason is None:
        return directory
    logger.warning("numba_ring compiles in every process: no code cache, because %s", reason)
    return None


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
