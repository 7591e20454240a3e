"""`manifest.json` of a copy: which files of the run are there, whole, and under which keys.

    <uri>/manifest.json              written last; what it does not name is not there for a reader
    <uri>/archive/..., <uri>/sae/... shards and checkpoints under their own names: they never change
    <uri>/versions/<hex>.<name>      files that change (run.json, metrics.csv), each version by itself

A writer puts the objects, reads each one back, and only then replaces the manifest. What an earlier
manifest named and this one does not is deleted after the next one, so that a reader of the earlier one
still finds it (`gone`).

A manifest is input: names and keys are relative, without `..`, and so many.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from asys_bench.system.files.below import MAX_ENTRIES, MAX_TREE_DEPTH, parse_json

MANIFEST, SCHEMA = "manifest.json", "asys.store/1"
VERSIONS = "versions"
MAX_MANIFEST_BYTES = 64 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestError(ValueError):
    """It is no manifest of a copy; says why."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of the run as it lies in the store.

    object: its key below the copy's. modified_ns: of the local file, by which it is known again.
    stored_ns: wall time at which it was read back.
    """

    object: str
    bytes: int
    sha256: str
    modified_ns: int
    stored_ns: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """began_unix_ns: start of the run's first attempt, which tells two runs of one id apart. writer:
    the process that wrote it, for a folder whose claim is of `term` (`store.claims`; 0: of an earlier
    version). complete: the run had ended, and every file of it was there."""

    run_id: str
    began_unix_ns: int
    generation: int = 0
    writer: str = ""
    complete: bool = False
    term: int = 0
    files: Mapping[str, Stored] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    """`latest` of a folder of checkpoints -> the one that it names."""
    gone: tuple[str, ...] = ()
    covered: str = ""
    """The checkpoint of the host from which a run goes on without a hole in its archive
    (`monitors.upload.covered`); "": none is known."""

    def following(
        self,
        writer: str,
        files: Mapping[str, Stored],
        term: int,
        complete: bool,
        links: Mapping[str, str] | None = None,
        covered: str = "",
    ) -> Manifest:
        """The next one."""
        kept = {stored.object for stored in files.values()}
        gone = {stored.object for stored in self.files.values()} - kept
        return replace(
            self,
            generation=self.generation + 1,
            writer=writer,
            term=term,
            complete=complete,
            files=dict(files),
            links=dict(links or {}),
            gone=tuple(sorted(gone)),
            covered=covered,
        )

    def to_bytes(self) -> bytes:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, separators=(",", ":")).encode()


def read_manifest(data: bytes) -> Manifest:
    """Raises ManifestError."""
    try:
        document = parse_json(data)
    except ValueError as error:
        raise ManifestError(f"is no JSON: {error}") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise ManifestError(f"is not of the schema {SCHEMA}")
    files, gone = document.get("files"), document.get("gone", [])
    if not isinstance(files, dict) or not isinstance(gone, list) or len(files) > MAX_ENTRIES:
        raise ManifestError("names no files, or too many")
    links = document.get("links", {})
    if not isinstance(links, dict) or len(links) > MAX_ENTRIES:
        raise ManifestError("names no links, or too many")
    for name in (*files, *gone, *links, *links.values()):
        if not _is_name(name):
            raise ManifestError(f"names {str(name)[:80]!r}, which is no file of a run")
    stored = {name: _stored(name, one) for name, one in files.items()}
    if any("/" in target or "/" not in name for name, target in links.items()):
        raise ManifestError("has a link that leads out of its folder")
    if problem := _clash([*stored, *links]):
        raise ManifestError(problem)
    covered = document.get("covered", "")
    if covered != "" and not _is_name(covered):
        raise ManifestError("covers no checkpoint")
    run_id, writer = document.get("run_id"), document.get("writer")
    if not isinstance(run_id, str) or not _is_name(run_id) or "/" in run_id:
        raise ManifestError("says of no run")
    if not isinstance(writer, str):
        raise ManifestError("has no writer")
    return Manifest(
        run_id, _count(document, "began_unix_ns"), _count(document, "generation"), writer,
        document.get("complete") is True, _count({"term": 0, **document}, "term"), stored, links,
        tuple(gone), covered,
    )  # fmt: skip


def _stored(name: str, one: Any) -> Stored:
    if not isinstance(one, dict) or not _is_name(one.get("object")):
        raise ManifestError(f"says nothing of {name!r}")
    digest = one.get("sha256")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ManifestError(f"has no sha256 of {name!r}")
    times = (_count(one, "modified_ns"), _count(one, "stored_ns"))
    return Stored(one["object"], _count(one, "bytes"), digest, *times)


def _count(document: Mapping[str, Any], name: str) -> int:
    value = document.get(name)
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ManifestError(f"{name} is {str(value)[:40]!r}")
    return value


def _is_name(name: Any) -> bool:
    """A relative path below the run, without hidden parts: locks and half-written files are never
    uploaded."""
    if not isinstance(name, str) or not 0 < len(name.encode("utf-8", "replace")) <= 900:
        return False
    parts = name.split("/")
    return len(parts) <= MAX_TREE_DEPTH and all(
        part and not part.startswith(".") and len(part.encode("utf-8", "replace")) <= 255
        and all(ord(letter) >= 32 and not 0xD800 <= ord(letter) < 0xE000 for letter in part)
        for part in parts
    )  # fmt: skip


def _clash(files: Sequence[str]) -> str | None:
    """Why these cannot all be names in one folder."""
    folders = {
        name.rsplit("/", depth)[0] for name in files for depth in range(1, name.count("/") + 1)
    }
    both = folders & set(files)
    if both:
        return f"names {min(both)!r} as a file and as a folder"
    return "names a file and a link alike" if len(set(files)) < len(files) else None
