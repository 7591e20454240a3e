"""Bringing a run back from its copy, so that it goes on here: all that an attempt needs, and no shard.

    python -m asys_bench.monitors.upload.bringing URI [--dir DIR] [--strict] [--id ID]

in a process of its own, because a client of an object store starts threads, which a host's process must
not have of us. It prints one line of JSON: `Brought`, or `error` with its `cause`.

1. The copy is taken over (`store.claims`), so that nobody else sends to it or brings it back.
2. Documents, logs, metrics and TensorBoard files, of each SAE the newest two checkpoints, and the host's
   last covered one (`covered`) come into a hidden folder beside the run's place, each compared with the
   manifest. Older checkpoints of SAEs and kept weights of the host stay in the copy.
3. Shards stay there as well. They are on record here as deleted because the store has them
   (`archive/storage.deleted.jsonl`), as if `storage.delete_local_after_s` had deleted them: readers of the
   copy have them.
4. The next manifest is of this folder's term, and the folder gets its name.

A kill at any point leaves no folder of that name, and the copy whole.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from asys_bench.config import ConfigError
from asys_bench.config.document import enabled_sinks, read_run_config
from asys_bench.config.plugin_access import trains_saes
from asys_bench.contracts.run_files import (
    ARCHIVE_DIR,
    CONFIG_FILE,
    DELETED_SUFFIX,
    HOST_DIR,
    LATEST,
    RUN_FILE,
    SAE_DIR,
    STATE_DIR,
    RunFileError,
    attempts_in,
    began_unix_ns,
    checkpoint_order,
    read_run_file,
)
from asys_bench.monitors.upload.covered import is_state, order_of
from asys_bench.monitors.upload.ready import is_shard, sidecar_of
from asys_bench.store.claims import (
    BEAT_S,
    START_LEASE_S,
    Claim,
    CopyInUseError,
    Hold,
    forget_earlier,
    hold_of,
    next_claim,
    take_over,
    write_claim,
    write_hold,
)
from asys_bench.store.manifest import MANIFEST, Manifest, ManifestError
from asys_bench.store.mirror import PATIENCE_S, download, manifest_of
from asys_bench.store.objects import ObjectStore, StoreError, patiently
from asys_bench.store.objects import Reason as StoreReason
from asys_bench.store.uri import parse_uri, without_secrets
from asys_bench.system.files.atomic import FOLDER_MODE, replace_file
from asys_bench.system.files.below import MAX_MODEL_BYTES, make_folders, open_or_create
from asys_bench.system.files.locks import remove_unheld, take_lock

if TYPE_CHECKING:
    from asys_bench.sinks.archive.deletions import Deletion

pause = time.sleep
NEWEST = 2
"""Checkpoints of a folder that are brought: the one to go on from, and one more where that is damaged."""
AT_ONCE = 8
"""Sidecars that are asked for side by side; each is half a KiB."""
_PARTIAL, _LOCK = ".asys-bringing-", ".lock"


class Cause(StrEnum):
    """Why a run is not brought back."""

    NO_COPY = "no_copy"
    """Nothing is there."""
    IN_USE = "in_use"
    LACKING = "lacking"
    """The copy has not what the run would go on from."""
    REFUSED = "refused"
    """The store cannot be asked, the copy is damaged, or the disk refuses."""


class BringError(RuntimeError):
    """The run is not brought back; says why and what to do."""

    def __init__(self, cause: Cause, message: str) -> None:
        super().__init__(message)
        self.cause = cause


@dataclass(frozen=True, slots=True)
class Brought:
    """A run that is here. shards: those that stay in the store. new: the folder was not there before."""

    path: str
    files: int = 0
    bytes: int = 0
    shards: int = 0
    new: bool = True
    notes: tuple[str, ...] = field(default_factory=tuple)


def bring_back(
    uri: str, parent: Path | None = None, *, strict: bool = False, id: str | None = None
) -> Brought:
    """The run of the copy at `uri` as a folder below `parent` (by default the run's own `run.dir`).

    strict: a copy without what its run would go on from is refused; otherwise that begins anew, and the
        notes say so. id: of the run that is wanted; another one is refused.

    Raises:
        BringError.
    """
    said = without_secrets(uri)
    try:
        store = ObjectStore(parse_uri(uri))
        store.check()
        manifest = manifest_of(store)
    except StoreError as error:
        missing = error.reason is StoreReason.MISSING
        cause = Cause.NO_COPY if missing else Cause.REFUSED
        why = f"no {MANIFEST} there: no run has been sent to it" if missing else str(error)
        raise BringError(cause, f"{said}: {why}" if missing else why) from None
    except (ManifestError, ValueError) as error:
        raise BringError(Cause.REFUSED, f"{said}: {error}") from None
    if id not in (None, manifest.run_id):
        raise BringError(
            Cause.REFUSED,
            f"{store.location} holds the run {manifest.run_id!r}, and {id!r} is wanted: one place holds one "
            "run; write {run_id} in storage.uri",
        )
    try:
        return _Bringing(store, manifest, parent, strict).bring()
    except CopyInUseError as error:
        raise BringError(Cause.IN_USE, f"{store.location}: {error}; end it first") from None
    except (StoreError, RunFileError) as error:
        raise BringError(Cause.REFUSED, str(error)) from None
    except OSError as error:
        raise BringError(
            Cause.REFUSED, f"{store.location} cannot be brought here: {error}"
        ) from None


class _Bringing:
    """Of one run."""

    def __init__(
        self, store: ObjectStore, manifest: Manifest, parent: Path | None, strict: bool
    ) -> None:
        self._store, self._manifest, self._parent = store, manifest, parent
        self._strict = strict
        self._files = self._bytes = 0
        self._claim: Claim | None = None
        self._beat_at = 0.0

    def bring(self) -> Brought:
        for name in (RUN_FILE, CONFIG_FILE):
            if name not in self._manifest.files:
                raise BringError(Cause.REFUSED, f"{self._store.location}: the copy has no {name}")
        with tempfile.TemporaryDirectory(prefix="asys-copy-") as folder:
            self._fetch(RUN_FILE, Path(folder))
            self._fetch(CONFIG_FILE, Path(folder))
            began = began_unix_ns(read_run_file(Path(folder)))
            config = _config_in(Path(folder))
            parent = self._parent or _run_dir_of(config)
        self._files = self._bytes = 0
        target = parent / self._manifest.run_id
        if os.path.lexists(target):
            return self._is_here(target, began)
        notes = tuple(self._lacking(config))
        import asys_bench.sinks.archive  # noqa: F401 - seconds of torch, before the claim's lease begins

        parent.mkdir(parents=True, exist_ok=True)
        remove_unheld(parent.glob(f"{_PARTIAL}*"), _LOCK, below=parent)
        claim = next_claim(self._store, self._manifest.term)
        take_over(self._store, claim, pause)
        self._claim = claim
        partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=parent))
        lock = open_or_create(partial / _LOCK, below=partial)
        try:
            take_lock(lock)
            self._manifest = manifest_of(self._store)  # whoever had it may have sent more meanwhile
            shards, hold = self._fill(partial), Hold(claim, self._left())
            write_hold(partial, str(self._store.location), hold)
            self._commit(claim.term)
            forget_earlier(self._store, claim)
            write_claim(self._store, claim, START_LEASE_S)
            (partial / _LOCK).unlink()
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            with suppress(StoreError):
                self._store.delete(claim.key)
            raise
        finally:
            os.close(lock)
        return Brought(str(target), self._files, self._bytes, shards, notes=notes)

    def _is_here(self, target: Path, began: int | None) -> Brought:
        """A folder of that name is here: it is this run, and has the copy."""
        place = self._store.location
        try:
            document = read_run_file(target)
        except RunFileError as error:
            raise BringError(
                Cause.REFUSED, f"{target} is in the way of the run {place}: {error}"
            ) from None
        if (document["run_id"], began_unix_ns(document)) != (self._manifest.run_id, began):
            raise BringError(
                Cause.REFUSED,
                f"{target} is another run than {place}: name another folder, run.dir=...",
            )
        hold = hold_of(target, str(place))
        if (hold.claim.term if hold is not None else 0) < self._manifest.term:
            raise BringError(
                Cause.REFUSED,
                f"{target} is behind {place}, where the run went on without it; move it away (what of it "
                "was not sent is there alone) and start again",
            )
        return Brought(str(target), new=False)

    def _lacking(self, config: Any) -> Iterator[str]:
        """What the run's configuration promises to go on from and the copy has not. Raises BringError:
        with `strict`."""
        place, files = self._store.location, self._manifest.files
        every = config.get("host", {}).get("checkpoint_every_steps")
        found = []
        if every is not None and not any(name.startswith(f"{STATE_DIR}/") for name in files):
            found.append(f"checkpoint of the host (host.checkpoint_every_steps: {every})")
        trains = any(trains_saes(sink.get("kind")) for sink in enabled_sinks(config).values())
        if trains and not any(name.startswith(f"{SAE_DIR}/") for name in files):
            found.append("checkpoint of an SAE")
        for what in found:
            message = f"{place} has no {what}: none was whole and sent before the run was gone"
            if self._strict:
                raise BringError(
                    Cause.LACKING, f"{message}; with run.resume=auto that part begins anew"
                )
            yield f"{message}; that part begins anew"

    def _fill(self, folder: Path) -> int:
        """What an attempt needs; returns how many shards stay in the store."""
        from asys_bench.monitors.upload.deleting import RECORD_WORKER

        manifest = self._manifest
        for name in sorted(_wanted(manifest)):
            path = folder / name
            make_folders(path.parent, below=folder)
            self._fetch(name, folder)
        for name in _checkpoints(manifest):
            here = [path.name for path in (folder / name).glob("step_*")]
            if here:
                named = manifest.links.get(f"{name}/{LATEST}")
                newest = named if named in here else max(here, key=order_of)
                (folder / name / LATEST).symlink_to(newest)
        shards = sorted(name for name in manifest.files if is_shard(name))
        lines = self._records(shards, len(attempts_in(folder)))
        if shards:
            archive = folder / ARCHIVE_DIR
            archive.mkdir(FOLDER_MODE, exist_ok=True)
            data = "".join(json.dumps(asdict(line)) + "\n" for line in lines)
            replace_file(archive / f"{RECORD_WORKER}{DELETED_SUFFIX}", data.encode(), sync=False)
        return len(shards)

    def _records(self, shards: list[str], attempt: int) -> Iterator[Deletion]:
        """Of shards that this folder does not have, as its record says it."""
        from asys_bench.sinks.archive.deletions import Deletion, Reason
        from asys_bench.sinks.archive.sidecar import Sidecar

        def record(name: str) -> Deletion:
            stored = self._manifest.files[sidecar_of(name)].object
            said = patiently(lambda: self._store.get(stored, MAX_MODEL_BYTES), PATIENCE_S)
            shard, size = name.removeprefix(f"{ARCHIVE_DIR}/"), self._manifest.files[name].bytes
            try:
                of = Sidecar.model_validate_json(said)
            except ValidationError:
                return Deletion(shard, "", 0, 0, size, Reason.STORED, attempt)
            return Deletion(shard, of.hook, of.rows, of.packets, size, Reason.STORED, attempt)

        known = [name for name in shards if sidecar_of(name) in self._manifest.files]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for line in pool.map(record, known):
                patiently(self._alive, PATIENCE_S)
                yield line

    def _fetch(self, name: str, folder: Path) -> None:
        stored, path = self._manifest.files[name], folder / name
        patiently(lambda: download(self._store, stored, path, self._alive), PATIENCE_S)
        os.utime(path, ns=(stored.modified_ns, stored.modified_ns))
        self._files += 1
        self._bytes += stored.bytes

    def _alive(self) -> None:
        """Something has come; now and then the claim says so."""
        if self._claim is not None and time.monotonic() - self._beat_at > BEAT_S:
            self._beat_at = time.monotonic()
            write_claim(self._store, self._claim)

    def _left(self) -> frozenset[str]:
        """Files of the copy that stay there though this folder has none: old checkpoints, and weights of
        the host but those of steps that it makes again."""
        manifest = self._manifest
        brought = _wanted(manifest)
        last = max(
            (order_of(n.rpartition("/")[0])[0] for n in brought if is_state(n)), default=None
        )
        left = set()
        for name in manifest.files.keys() - brought - _shards(manifest):
            folder, _, rest = name.partition("/")
            order = checkpoint_order(rest.partition("/")[0]) if folder == HOST_DIR else None
            if not is_state(name) and (order is None or last is None or order[0] <= last):
                left.add(name)
        return frozenset(left)

    def _commit(self, term: int) -> None:
        """The manifest as it is, of this folder's term. Raises CopyInUseError: another folder has the copy
        by now."""
        manifest = self._manifest
        if (now := manifest_of(self._store)).term >= term:
            raise CopyInUseError(f"the run goes on elsewhere (its copy is of term {now.term})")
        writer = f"bringing-{os.getpid()}"
        following = manifest.following(
            writer, manifest.files, term, False, manifest.links, manifest.covered
        )
        self._store.put(MANIFEST, [following.to_bytes()])


def _config_in(folder: Path) -> Any:
    try:
        data: Any = read_run_config(folder).to_data()
    except ConfigError as error:
        raise BringError(Cause.REFUSED, f"the copy's {CONFIG_FILE}: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("host", {}), dict):
        raise BringError(Cause.REFUSED, f"the copy's {CONFIG_FILE} is no configuration")
    return data


def _run_dir_of(config: Any) -> Path:
    run = config.get("run")
    found = run.get("dir") if isinstance(run, dict) else None
    return Path(found) if isinstance(found, str) else Path("runs")


def _checkpoints(manifest: Manifest) -> dict[str, list[tuple[int, int, str]]]:
    """Folder of checkpoints -> (step, how often it was written again, name of the checkpoint's folder)."""
    found: dict[str, set[tuple[int, int, str]]] = {}
    for name in manifest.files:
        parts = name.split("/")
        for at, part in enumerate(parts[1:-1], 1):
            if (order := checkpoint_order(part)) is not None:
                found.setdefault("/".join(parts[:at]), set()).add((*order, part))
                break
    return {folder: sorted(entries, reverse=True) for folder, entries in found.items()}


def _wanted(manifest: Manifest) -> frozenset[str]:
    """Names of the files that an attempt needs here."""
    old = []
    for folder, entries in _checkpoints(manifest).items():
        latest = manifest.links.get(f"{folder}/{LATEST}")
        kept = {name for _, _, name in entries[:NEWEST]} | {latest}
        if folder == HOST_DIR:
            kept = set()
        elif folder == STATE_DIR and any(f"{folder}/{e[2]}" == manifest.covered for e in entries):
            kept = {manifest.covered.rpartition("/")[2]}
        old += [f"{folder}/{name}/" for _, _, name in entries if name not in kept]
    left = re.compile("|".join((rf"{ARCHIVE_DIR}/[^/]+/", *map(re.escape, old))))
    return frozenset(name for name in manifest.files if not left.match(name))


def _shards(manifest: Manifest) -> set[str]:
    shards = {name for name in manifest.files if is_shard(name)}
    return shards | {sidecar_of(name) for name in shards}


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("uri")
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--strict", action="store_true")
    parser.add_argument("--id")
    given = parser.parse_args()
    try:
        found = asdict(bring_back(given.uri, given.dir, strict=given.strict, id=given.id))
    except BringError as error:
        found = {"error": str(error), "cause": error.cause}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
