"""Which folder of a run may write to its copy: claims, of which the one of the latest term counts.

    <uri>/claims/<term>.<token>   of a folder that has, or had, the copy; written again while it is at work
    <run>/.copy.json              the folder's own: term and token, by the copy's place

A run's folder takes its copy when it sends for the first time, and keeps it. A run that goes on from the
copy alone gets a new folder, which takes the copy over with the next term.

TAKE OVER
1. PUT the claim of the next term, then LIST. Whoever lists another claim of this term or a later one
   withdraws its own: of two that begin at once, one at most goes on, and perhaps none.
2. Is the last holder at work? It is not when it has given the copy back (`released`), or when its claim
   is older than its `lease_s`. A younger one is waited for: a claim that is written again meanwhile is that
   of a live process, and this one withdraws.
3. MANIFEST. The next manifest has the new term. Whoever finds a later term than its own there sends
   nothing more.

Ages are differences of times that the store gives, of objects that it has taken: no clock of a machine
counts. A store without conditional writes is enough, if a listing has what was put before (S3, GCS and
file systems do).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asys_bench.contracts.run_files import COPY_FILE
from asys_bench.store.objects import ObjectStore, StoreError
from asys_bench.system.files import replace_file
from asys_bench.system.files.below import MAX_DOCUMENT_BYTES, parse_json, read_json

CLAIMS, SCHEMA = "claims", "asys.copy/1"
BEAT_S, LEASE_S = 10.0, 30.0
"""A holder at work writes its claim so often; one that has not for so long is gone."""
START_LEASE_S = 300.0
"""Of a folder that was brought back, until its run sends: a host may take minutes to be built."""
WAIT_S = 60.0
"""A claim that has longer to go is not waited for."""
_MOST_BYTES = 4096
_NAME = re.compile(rf"{CLAIMS}/(\d{{8,12}})\.([0-9a-f]{{16}})")


class CopyInUseError(RuntimeError):
    """Another folder of the run has its copy, and its process is at work; says where."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Of one folder on the copy."""

    term: int
    token: str

    @property
    def key(self) -> str:
        return f"{CLAIMS}/{self.term:08d}.{self.token}"


@dataclass(frozen=True, slots=True)
class Holder:
    """What a claim says of its process. All of it is for people but lease_s and released."""

    machine: str = "a machine"
    pid: int = 0
    since: str = "some time ago"
    lease_s: float = LEASE_S
    released: bool = False

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.machine}, since {self.since}"


def claims_in(store: ObjectStore) -> dict[Claim, int]:
    """Every claim, the latest first, with the store's time of its last writing. Raises StoreError."""
    found = {}
    for key, modified_ns in store.times(CLAIMS).items():
        if match := _NAME.fullmatch(key):
            found[Claim(int(match[1]), match[2])] = modified_ns
    return dict(sorted(found.items(), key=lambda one: (-one[0].term, one[0].token)))


def holder_of(store: ObjectStore, claim: Claim) -> Holder:
    """Who has it, as far as it can be read. Raises StoreError."""
    said: Any = None
    with suppress(ValueError):
        said = parse_json(store.get(claim.key, _MOST_BYTES))
    if not isinstance(said, dict):
        return Holder()
    lease_s = said.get("lease_s")
    if not isinstance(lease_s, int | float) or not 0 <= lease_s <= START_LEASE_S:
        lease_s = LEASE_S
    return Holder(
        str(said.get("machine"))[:80],
        said["pid"] if type(said.get("pid")) is int else 0,
        str(said.get("since"))[:40],
        float(lease_s),
        said.get("released") is True,
    )


def write_claim(
    store: ObjectStore, claim: Claim, lease_s: float = LEASE_S, *, released: bool = False
) -> None:
    """Write it, or write it again. Raises StoreError."""
    said = {
        "machine": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "lease_s": lease_s,
        "released": released,
    }
    store.put(claim.key, [json.dumps(said).encode()])


def next_claim(store: ObjectStore, after_term: int = 0) -> Claim:
    """A claim of a later term than any, and than `after_term`; nobody knows of it yet. Raises StoreError."""
    last = next((claim.term for claim in claims_in(store)), 0)
    return Claim(max(last, after_term) + 1, secrets.token_hex(8))


def take_over(store: ObjectStore, mine: Claim, pause: Callable[[float], None] = time.sleep) -> None:
    """Have the copy with the claim `mine`, when the last holder is gone. Asked again, it is the same.

    Raises:
        CopyInUseError: it is not, or another process takes the copy over just now; says who.
        StoreError.
    """
    before = claims_in(store)
    last = next((claim for claim in before if claim.term < mine.term), None)
    write_claim(store, mine)
    try:
        _wait_for_last(store, mine, last, before, pause)
    except BaseException:
        with suppress(StoreError):
            store.delete(mine.key)
        raise


def _wait_for_last(
    store: ObjectStore,
    mine: Claim,
    last: Claim | None,
    before: dict[Claim, int],
    pause: Callable[[float], None],
) -> None:
    """Step 1 and 2 of the module."""
    while True:
        found = claims_in(store)
        for rival in found:
            if rival.term >= mine.term and rival != mine:
                who = holder_of(store, rival)
                raise CopyInUseError(f"another process takes it over just now ({who})")
        if last is None or last not in found:
            return
        holder = holder_of(store, last)
        silent_s = (found[mine] - found[last]) / 1e9
        if holder.released or silent_s >= holder.lease_s:
            return
        if found[last] != before[last] or holder.lease_s - silent_s > WAIT_S:
            raise CopyInUseError(f"the run is at work elsewhere ({holder})")
        pause(min(BEAT_S / 5, holder.lease_s - silent_s))
        write_claim(store, mine)


def forget_earlier(store: ObjectStore, claim: Claim) -> None:
    """Remove claims of earlier terms: the manifest has this one. Raises StoreError."""
    for other in claims_in(store):
        if other.term < claim.term:
            store.delete(other.key)


@dataclass(frozen=True, slots=True)
class Hold:
    """What a run's folder has of the copy at one place.

    left: files of the copy that were not brought here when the folder was made from it; they stay there
    until the run has its own of that name.
    """

    claim: Claim
    left: frozenset[str] = field(default_factory=frozenset)


def hold_of(run_dir: Path, place: str) -> Hold | None:
    """Of the folder on the copy at `place`; None: it has never sent there."""
    said = _places(run_dir).get(place)
    if not isinstance(said, dict):
        return None
    term, token, left = said.get("term"), said.get("token"), said.get("left", [])
    if type(term) is not int or not isinstance(token, str) or not isinstance(left, list):
        return None
    if not _NAME.fullmatch(Claim(term, token).key):
        return None
    return Hold(Claim(term, token), frozenset(name for name in left if isinstance(name, str)))


def write_hold(run_dir: Path, place: str, hold: Hold) -> None:
    """Raises OSError."""
    entry = {"term": hold.claim.term, "token": hold.claim.token, "left": sorted(hold.left)}
    places = {**_places(run_dir), place: entry}
    data = json.dumps({"schema": SCHEMA, "places": places}).encode()
    replace_file(run_dir / COPY_FILE, data, sync=False)


def _places(run_dir: Path) -> dict[str, Any]:
    try:
        document = read_json(run_dir / COPY_FILE, MAX_DOCUMENT_BYTES, below=run_dir)
    except (OSError, ValueError):
        return {}
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        return {}
    places = document.get("places")
    return places if isinstance(places, dict) else {}
