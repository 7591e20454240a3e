"""Asking a store, in a process of its own, whether a run can be sent there: a client of an object store
starts threads, which a host's process must not have of us.

    python -m asys_bench.store.probe URI

prints what it found as a line of JSON: `problem` (in words, or null), whether it is `lasting`, and of a
copy that is there its `run_id`, `began_unix_ns`, `term` and who has it (`holder`). Nothing is written.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass

from asys_bench.store.claims import claims_in, holder_of
from asys_bench.store.manifest import MANIFEST, MAX_MANIFEST_BYTES, ManifestError, read_manifest
from asys_bench.store.objects import LASTING, ObjectStore, Reason, StoreError
from asys_bench.store.uri import parse_uri

PROBE_S = 30.0


@dataclass(frozen=True, slots=True)
class Found:
    """What there is at a place. lasting: waiting does not mend the problem."""

    problem: str | None = None
    lasting: bool = False
    run_id: str | None = None
    began_unix_ns: int = 0
    term: int = 0
    holder: str = ""


def probe(uri: str) -> Found:
    """Ask in this process."""
    try:
        store = ObjectStore(parse_uri(uri))
        store.check()
        try:
            manifest = read_manifest(store.get(MANIFEST, MAX_MANIFEST_BYTES))
        except StoreError as error:
            if error.reason is not Reason.MISSING:
                raise
            return Found()
        last = next(iter(claims_in(store)), None) if manifest.term else None
        holder = str(holder_of(store, last)) if last is not None else ""
    except StoreError as error:
        return Found(str(error), error.reason in LASTING)
    except (ManifestError, ValueError) as error:
        return Found(f"{uri}: {error}", True)
    return Found(None, False, manifest.run_id, manifest.began_unix_ns, manifest.term, holder)


def ask(uri: str, within_s: float = PROBE_S) -> Found:
    """Ask in a process of its own, which is over within `within_s`."""
    command = [sys.executable, "-P", "-m", "asys_bench.store.probe", uri]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=within_s, check=False
        )
        return Found(**json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return Found(f"{uri}: it could not be asked within {within_s:g} s")


if __name__ == "__main__":
    print(json.dumps(asdict(probe(sys.argv[1]))))
