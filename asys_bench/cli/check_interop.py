"""Load a run's SAEs in SAELens and its archive in Hugging Face datasets, and compare with ours.

``RUN=runs/<run> python -m asys_bench.cli.check_interop`` (or the run directory as an argument).
Exit code 0 when everything opens and every reconstruction differs by less than 1e-5.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from asys_bench.sae import load_sae

TOLERANCE = 1e-5


def compare_sae(folder: Path, rows_BD: torch.Tensor) -> float:
    """The largest difference between SAELens's reconstruction of raw rows and ours."""
    from sae_lens import SAE

    theirs = SAE.load_from_disk(str(folder), device="cpu")
    ours, _ = load_sae(folder)
    with torch.no_grad():
        return float((theirs(rows_BD) - ours(rows_BD)).abs().max())


def archived_rows(run: Path, hook: str, most: int) -> tuple[int, torch.Tensor]:
    """(rows in all shards of a hook as `datasets` sees them, up to `most` of them as float32)."""
    from datasets import Dataset

    total, rows = 0, []
    for path in sorted((run / "archive" / hook).glob("*.arrows")):
        dataset = Dataset.from_file(str(path))
        total += len(dataset)
        part = dataset.select_columns(["values"]).with_format("torch")[:most]["values"]
        rows.append(part.to(torch.float32))
    return total, torch.cat(rows)[:most]


def main(argv: list[str] | None = None) -> int:
    """Entry point; prints one line per SAE."""
    arguments = sys.argv[1:] if argv is None else argv
    run = Path(arguments[0] if arguments else os.environ["RUN"])
    worst = 0.0
    folders = sorted(path for path in (run / "sae").iterdir() if (path / "latest").exists())
    for folder in folders:
        total, rows_BD = archived_rows(run, folder.name, 4096)
        difference = compare_sae(folder / "latest", rows_BD)
        worst = max(worst, difference)
        print(f"{folder.name}: {total} rows in datasets, SAELens differs by {difference:.1e}")
    if not folders:
        print(f"no SAEs in {run}/sae")
        return 1
    return 0 if worst < TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
