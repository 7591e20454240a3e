"""SAEs on the Hugging Face hub, by name: `hf://org/name`, `hf://org/name/folder`, `hf://org/name@revision`.

`from_hub` brings them into the hub's own cache (HF_HOME; with HF_HUB_OFFLINE only what is there already) and
gives a folder of plain files: the cache's are links, which no reader of SAEs follows. Fetched are JSON,
safetensors and dictionary_learning's `ae.pt`; no code and no rows.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from asys_bench.sae.exchange.weights import ExchangeError
from asys_bench.system.files.atomic import FOLDER_MODE

SCHEME = "hf://"
FILES = ("*.json", "*.safetensors", "*ae.pt")
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REPO = re.compile(rf"{_PART}/{_PART}")
MISSING = "huggingface_hub is not installed; pip install 'asys-i[hub]'"


@dataclass(frozen=True, slots=True)
class HubPlace:
    """A repository, a branch, tag or commit of it (None: main), and a folder in it ("": all of it)."""

    repo: str
    revision: str | None = None
    inside: str = ""


def is_hub(place: str) -> bool:
    """Whether `place` is meant as a place on the hub, right or wrong."""
    return place.startswith(SCHEME)


def is_repo(name: str) -> bool:
    """`org/name`, in letters that the hub takes."""
    return _REPO.fullmatch(name) is not None and ".." not in name and "--" not in name


def said(error: Exception) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def parse_place(place: str) -> HubPlace:
    """Raises ExchangeError: it is none, or leads upwards."""
    head, _, inside = place.removeprefix(SCHEME).partition("@")
    repo, revision = head, None
    if "@" in place:
        revision, _, inside = inside.partition("/")
    else:
        parts = head.split("/")
        repo, inside = "/".join(parts[:2]), "/".join(parts[2:])
    inside = inside.strip("/")
    fits = (
        is_hub(place) and is_repo(repo) and (revision is None or re.fullmatch(r"[\w.-]+", revision))
    )
    if not fits or any(part in ("", ".", "..") for part in inside.split("/") if inside):
        raise ExchangeError(
            place,
            "names no place on the hub",
            "write hf://org/name, or hf://org/name@revision/folder",
        )
    return HubPlace(repo, revision, inside)


@functools.cache
def from_hub(place: str) -> Path:
    """The folder with the files of `place`, fetched once; within a process the same for the same place.

    Raises:
        ExchangeError: it is not there, cannot be had, or huggingface_hub is missing.
    """
    wanted = parse_place(place)
    try:
        from huggingface_hub import cached_assets_path, snapshot_download
    except ImportError:
        raise ExchangeError(place, MISSING, "or name a folder of this machine") from None
    inside = f"{wanted.inside}/" if wanted.inside else ""
    try:
        snapshot = Path(
            snapshot_download(
                wanted.repo,
                revision=wanted.revision,
                allow_patterns=[f"{inside}{pattern}" for pattern in FILES],
                library_name="asys-i",
            )
        )
        assets = cached_assets_path("asys-i", wanted.repo, snapshot.name)
    except Exception as error:  # noqa: BLE001 - of many kinds: HTTP, offline, cache, validation
        raise ExchangeError(
            place,
            f"cannot be had: {said(error)}",
            "check the name and HF_TOKEN; with HF_HUB_OFFLINE only what the cache has is there",
        ) from None
    try:
        found = _plain(snapshot, Path(assets), wanted.inside)
    except OSError as error:
        raise ExchangeError(
            place, f"cannot be put on this machine: {error}", "HF_HOME names another folder"
        ) from None
    if found is None:
        raise ExchangeError(place, "no SAE is there", "name the folder that holds the SAE's files")
    return found


def _plain(snapshot: Path, assets: Path, inside: str) -> Path | None:
    """Hard links in `assets` to what the snapshot's links mean; None where there is nothing."""
    source = snapshot / inside if inside else snapshot
    if not source.is_dir():
        return None
    for folder, _, names in os.walk(source):
        for name in names:
            path = Path(folder, name)
            target = assets / path.relative_to(snapshot)
            if (
                not name.endswith(tuple(pattern.lstrip("*") for pattern in FILES))
                or target.exists()
            ):
                continue
            target.parent.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
            _link(path.resolve(strict=True), target)
    return (assets / inside) if inside else assets


def _link(source: Path, target: Path) -> None:
    """A file of its own where the two are on different disks; whole or not there, whoever else does it."""
    with suppress(FileExistsError):
        try:
            os.link(source, target)
        except FileExistsError:
            raise
        except OSError:
            temporary = target.with_name(f".{target.name}.{os.getpid()}")
            shutil.copyfile(source, temporary)
            os.replace(temporary, target)
