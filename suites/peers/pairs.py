"""One contender's processes as the comparisons hold them: started once, asked for many figures."""

from __future__ import annotations

import select
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

SERVE = Path(__file__).with_name("serve.py")
FIRST_BYTES = 128 << 20
"""Moved before anything counts: the arena's pages are there afterwards, in both processes."""
LEAST_PACKETS = 16


class PairError(Exception):
    """A contender did not start, failed or took too long; says which and what it printed."""


class MissingPeerError(PairError):
    """A contender's library is not installed."""


class Pair:
    """Producer and consumer of contender `name` for payloads of `nbytes`, on two CPUs."""

    def __init__(
        self, name: str, nbytes: int, cpus: tuple[int, int], timeout_s: float = 120.0
    ) -> None:
        self.name, self.nbytes, self._timeout_s = name, nbytes, timeout_s
        self._bytes_per_s = 0.0
        command = [sys.executable, "-P", str(SERVE), name, str(nbytes), *map(str, cpus)]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, pool_bytes: int) -> None:
        """Wait until both processes are there, and move the first bytes.

        Raises:
            MissingPeerError: its library is not installed.
            PairError: it failed or took too long.
        """
        said = self._answer()
        if said.startswith("missing"):
            raise MissingPeerError(f"{self.name}: {said.partition(' ')[2]}")
        if said != "ready":
            raise PairError(f"{self.name}: said {said!r} instead of 'ready'")
        self._move(max(LEAST_PACKETS, FIRST_BYTES // self.nbytes), pool_bytes)

    def gbps(self, seconds: float, pool_bytes: int) -> float:
        """GB/s over about `seconds`, with payloads out of `pool_bytes` random ones."""
        packets = max(LEAST_PACKETS, int(self._bytes_per_s * seconds) // self.nbytes)
        return self._move(packets, pool_bytes) / 1e9

    def close(self) -> None:
        """End both processes."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(self._timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def _move(self, packets: int, pool_bytes: int) -> float:
        """Bytes per second."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the answer says why
            print(packets, pool_bytes, file=self._process.stdin, flush=True)
        self._bytes_per_s = self.nbytes * packets / float(self._answer())
        return self._bytes_per_s

    def _answer(self) -> str:
        output = self._process.stdout
        assert output is not None
        if not select.select([output], [], [], self._timeout_s)[0]:
            self._process.kill()
            raise PairError(
                f"{self.name}: no answer for {self._timeout_s:g} s with packets of "
                f"{self.nbytes} bytes; measure for a shorter time"
            )
        if line := output.readline().strip():
            return line
        code = self._process.wait()
        self._log.seek(0)
        raise PairError(f"{self.name}: exit {code}: {self._log.read().strip()[-1000:]}")
