"""What bounds the FVU of a TopK SAE on given rows: rows seen, passes over them, and the encoder.

    python tests/benchmarks/sae/limits.py FOLDER --epochs 4 --save sae.pt
    python tests/benchmarks/sae/limits.py FOLDER --epochs 4 --trainer sae_lens

FOLDER has train.npy and held_out.npy (`smollm2_rows.py`). Rows of more than ten times the median norm are
left out, the others are centred and scaled to a mean squared norm of D, for both trainers. SAELens has
batches of 1,024 and a rate of 3e-3, the best of three (docs/benchmarks.md); ours its defaults
and batches of 512. One thread. Prints a line of JSON: CPU seconds, FVU of rows that were trained on and of
the held-out ones, and FVU of some of these rows when orthogonal matching pursuit (Pati,
Rezaiifar and Krishnaprasad 1993) encodes them with the same decoder and k.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from asys_bench.harness.scenarios.sae_training import (
    HELD_OUT_FILE,
    TRAIN_FILE,
    Stopwatch,
    Trained,
    TrainerSpec,
)

sys.path.insert(0, os.fspath(Path(__file__).resolve().parents[3] / "suites/peers"))

from trainers import TRAINERS

OUTLIER_RATIO = 10.0
BATCH_ROWS = {"asys": 512, "sae_lens": 1024}
SETTINGS = {"asys": {"outliers": "keep"}, "sae_lens": {"lr": 3e-3}}
CHUNK = 256


def usual_rows(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows to train on, others) without outliers, in the units of the former."""
    train_ND, held_out_MD = (
        torch.from_numpy(np.load(folder / name)) for name in (TRAIN_FILE, HELD_OUT_FILE)
    )
    limit = OUTLIER_RATIO * torch.linalg.vector_norm(train_ND, dim=1).median()
    usual = [
        rows[torch.linalg.vector_norm(rows, dim=1) <= limit] for rows in (train_ND, held_out_MD)
    ]
    center_D = usual[0].mean(0)
    scale = (usual[0] - center_D).square().mean().rsqrt()
    first, second = ((rows - center_D) * scale for rows in usual)
    return first, second


def epochs_of(
    rows_ND: torch.Tensor, batch_rows: int, rows: int, seed: int
) -> Iterator[torch.Tensor]:
    """Whole batches of `rows` rows in all, each pass in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(rows // batch_rows):
        while len(order) < batch_rows:
            order = torch.cat([order, torch.randperm(len(rows_ND), generator=generator)])
        yield rows_ND[order[:batch_rows]]
        order = order[batch_rows:]


@torch.no_grad()
def pursuit(x_ND: torch.Tensor, W_FD: torch.Tensor, k: int) -> torch.Tensor:
    """What orthogonal matching pursuit makes of rows float32[N, D] with k of the directions [F, D] each.

    In each of k rounds a row takes the direction that its residual points along most, and all that it has
    are fitted anew by least squares. Activations that end negative are allowed.
    """
    atoms_FD = W_FD / torch.linalg.vector_norm(W_FD, dim=1, keepdim=True).clamp_min(1e-12)
    return torch.cat([_pursued(part, atoms_FD, k) for part in x_ND.split(CHUNK)])


def _pursued(x_ND: torch.Tensor, atoms_FD: torch.Tensor, k: int) -> torch.Tensor:
    chosen_NK = torch.empty(len(x_ND), 0, dtype=torch.int64)
    made_ND = torch.zeros_like(x_ND)
    ridge_KK = 1e-6 * torch.eye(k)
    for count in range(1, k + 1):
        along_NF = (x_ND - made_ND) @ atoms_FD.t()
        along_NF.scatter_(1, chosen_NK, -torch.inf)
        chosen_NK = torch.cat([chosen_NK, along_NF.argmax(1, keepdim=True)], 1)
        own_NKD = atoms_FD[chosen_NK]
        gram_NKK = own_NKD @ own_NKD.mT + ridge_KK[:count, :count]
        value_NK = torch.linalg.solve(gram_NKK, own_NKD @ x_ND.unsqueeze(-1)).squeeze(-1)
        made_ND = (value_NK.unsqueeze(1) @ own_NKD).squeeze(1)
    return made_ND


def fvu(x_ND: torch.Tensor, made_ND: torch.Tensor) -> float:
    spread = (x_ND - x_ND.mean(0)).double().square().sum()
    return float((x_ND - made_ND).double().square().sum() / spread)


@torch.no_grad()
def reconstructed(trained: Trained, x_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(x_hat_ND, how often each feature was active)."""
    made, fired_F = [], torch.zeros(len(trained.directions_FD), dtype=torch.int64)
    for part in x_ND.split(2048):
        x_hat_BD, acts_BF = trained.reconstruct(part)
        made.append(x_hat_BD)
        fired_F += (acts_BF > 0).sum(0)
    return torch.cat(made), fired_F


def measured(trained: Trained, x_ND: torch.Tensor, k: int, pursued: int) -> dict[str, float]:
    made_ND, fired_F = reconstructed(trained, x_ND)
    found = {"fvu": fvu(x_ND, made_ND), "never_active": float((fired_F == 0).float().mean())}
    if pursued:
        some = x_ND[torch.randperm(len(x_ND), generator=torch.Generator().manual_seed(1))[:pursued]]
        x_hat_BD, acts_BF = trained.reconstruct(some)
        bias_D = (x_hat_BD - acts_BF @ trained.directions_FD).mean(0)
        best_ND = bias_D + pursuit(some - bias_D, trained.directions_FD, k)
        found |= {"encoder_on_some": fvu(some, x_hat_BD), "pursuit_on_some": fvu(some, best_ND)}
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trainer", choices=tuple(BATCH_ROWS), default="asys")
    parser.add_argument("--rows", type=int, help="of train.npy, without outliers; default: all")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--d-sae", type=int, default=4608)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON: the trainer's own")
    parser.add_argument("--pursued", type=int, default=0, help="rows for matching pursuit")
    parser.add_argument("--save", type=Path, help="directions and figures, for torch.load")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    train_ND, held_out_MD = usual_rows(arguments.folder)
    train_ND = train_ND[: arguments.rows]
    batch_rows = BATCH_ROWS[arguments.trainer]
    spec = TrainerSpec(
        trainer=arguments.trainer,
        folder=os.fspath(arguments.folder),
        rows=round(arguments.epochs * len(train_ND)) // batch_rows * batch_rows,
        batch_rows=batch_rows,
        d_sae=arguments.d_sae,
        k=arguments.k,
        threads=1,
        seed=arguments.seed,
        settings={**SETTINGS[arguments.trainer], **arguments.settings},
    )
    rows = epochs_of(train_ND, batch_rows, spec.rows, arguments.seed)
    begin = time.process_time()
    trained = TRAINERS[arguments.trainer](spec, rows, Stopwatch(0))
    seconds = time.process_time() - begin
    with torch.no_grad():
        result = {
            "folder": arguments.folder.name,
            "trainer": arguments.trainer,
            "settings": arguments.settings,
            "rows": len(train_ND),
            "epochs": arguments.epochs,
            "seed": arguments.seed,
            "cpu_s": round(seconds, 2),
            "rows_per_cpu_s": round(spec.rows / seconds),
            "trained_on": measured(trained, train_ND[:8192], arguments.k, arguments.pursued),
            "held_out": measured(trained, held_out_MD, arguments.k, arguments.pursued),
        }
    print(json.dumps(result), flush=True)
    if arguments.save:
        torch.save({"directions": trained.directions_FD, **result}, arguments.save)


if __name__ == "__main__":
    main()
