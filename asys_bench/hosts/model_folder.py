"""Where a model's weights lie on this machine, and which ones they are: a digest of their files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from asys_bench.contracts.host import HostError
from asys_bench.hosts.pretrained import OPTION, PACKAGE, model_source, unpacked_gguf

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_DIGITS = 12
"""Of a digest that people read."""


def model_folder(model: str, gguf_file: str | None) -> Path | None:
    """The folder that a host's options `model` and `gguf_file` stand for; None: it is not here, or not
    unpacked yet. Nothing is loaded or fetched.

    Raises:
        HostError: there is no such package or file.
    """
    source = Path(model_source(model, gguf_file)).expanduser()
    folder = unpacked_gguf(source, gguf_file) if gguf_file else source
    return folder.resolve() if folder is not None and folder.is_dir() else None


def weight_files(folder: Path) -> list[Path]:
    """Its safetensors files, in order; none where there are none."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    try:
        listed = json.loads((folder / INDEX).read_text())["weight_map"].values()
        names = sorted({str(name) for name in listed if "/" not in str(name)})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []
    return [folder / name for name in names if (folder / name).is_file()]


def weights_digest(folder: Path) -> str | None:
    """SHA-256, in hex, of its safetensors file, as model hubs list it; of several files, of their digests one
    after another. None: it has none, or they cannot be read. Reads them whole."""
    digests = []
    try:
        for path in weight_files(folder):
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    except OSError:
        return None
    if len(digests) < 2:
        return digests[0] if digests else None
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def model_name(model: str, gguf_file: str | None) -> str:
    """What people call it: the last part of a folder's or a hub's name, without the way there."""
    named = Path(gguf_file).stem if gguf_file else Path(model.removeprefix(PACKAGE)).name
    return named or model


def digest_told(digest: str | None) -> str:
    """Its beginning, as it follows a model's name; "" where there is none."""
    return f" (sha256 {digest[:_DIGITS]})" if digest else ""


def described(model: str, gguf_file: str | None) -> str:
    """Its name and, where its files are here, the beginning of their digest."""
    try:
        folder = model_folder(model, gguf_file)
    except HostError:
        folder = None
    digest = weights_digest(folder) if folder is not None else None
    return model_name(model, gguf_file) + digest_told(digest)


def as_arguments(error: HostError) -> str:
    """What a loading error says, of a command's `--model` and `--gguf-file` instead of a host's options."""
    text = str(error)
    for option, argument in (("model", "--model"), ("gguf_file", "--gguf-file")):
        text = text.replace(f"{OPTION}.{option}", argument)
    return text.replace("set gguf_file: ", "add --gguf-file ")
