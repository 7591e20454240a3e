"""`manifest.json` in a checkpoint: the size and CRC-32C of its files, so that bit rot is found.

A safetensors file has no checksum of its own: a flipped weight loads as a slightly wrong SAE. This guards
against accidents, not against people: who can change a file can change its checksum.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError, read_json, write_json
from asys_bench.system.files import file_crc32c
from asys_bench.system.files.below import MAX_MODEL_BYTES, is_file

MANIFEST_FILE = "manifest.json"
FORMAT = "asys.checkpoint/1"


class SealedFile(BaseModel, extra="forbid", frozen=True):
    """One file as it was written."""

    bytes: int = Field(ge=0)
    crc32c: int = Field(ge=0, lt=1 << 32)


class Manifest(BaseModel, extra="forbid", frozen=True):
    """The file as a model: name -> what it held."""

    format: str = Field(FORMAT, pattern=f"^{FORMAT}$")
    files: dict[str, SealedFile]


def seal(folder: Path) -> None:
    """Write the manifest of the files in `folder`.

    Raises:
        OSError: the disk refused.
    """
    files = {
        path.name: SealedFile(bytes=path.stat().st_size, crc32c=file_crc32c(path))
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST_FILE
    }
    write_json(folder / MANIFEST_FILE, Manifest(files=files).model_dump())


def check_seal(folder: Path) -> bool:
    """Whether there is a manifest. Then every file that it names is as it was written.

    Raises:
        CheckpointError: a file is missing or differs, or the manifest is damaged.
    """
    path = folder / MANIFEST_FILE
    if not os.path.lexists(path):
        return False
    try:
        manifest = Manifest.model_validate(read_json(path, MAX_MODEL_BYTES))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise CheckpointError(path, f"{first['loc']}: {first['msg']}") from None
    for name, sealed in manifest.files.items():
        file = folder / name
        if "/" in name or not is_file(file):
            raise CheckpointError(file, "is missing; the manifest names it")
        try:
            size = file.stat().st_size
            if size != sealed.bytes:
                raise CheckpointError(file, f"has {size} bytes, was written with {sealed.bytes}")
            checksum = file_crc32c(file)
        except OSError as error:
            raise CheckpointError(file, f"cannot be read: {error}") from error
        if checksum != sealed.crc32c:
            raise CheckpointError(file, "its bytes do not match the crc32c of the manifest")
    return True
