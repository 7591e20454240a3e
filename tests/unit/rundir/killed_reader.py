"""A training loop over an archive, for a test to kill: `killed_reader.py RUN STATE WORKERS`.

After each batch it writes the loader's state and the keys of all rows so far to STATE, in one file and
atomically; it begins with what STATE has, and leaves when the epoch is over.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from torch.utils.data import DataLoader

from asys_bench.rundir.archive_view import ArchiveView

HOOK = "policy.mlp"


def main(run: str, state: str, workers: str) -> None:
    dataset = ArchiveView(Path(run)).torch(HOOK, batch_rows=16, shuffle_window=128, seed=7)
    path, seen = Path(state), []
    if int(workers):
        from torchdata.stateful_dataloader import StatefulDataLoader

        loader = holder = StatefulDataLoader(dataset, batch_size=None, num_workers=int(workers))
    else:
        loader, holder = DataLoader(dataset, batch_size=None), dataset
    if path.exists():
        saved = json.loads(path.read_text())
        seen = saved["seen"]
        holder.load_state_dict(saved["state"])
    for batch in loader:
        seen += [[int(packet), int(row)] for packet, row in batch[:, :2].tolist()]
        draft = path.with_suffix(".draft")
        draft.write_text(json.dumps({"seen": seen, "state": holder.state_dict()}))
        draft.rename(path)
        time.sleep(0.02)
    path.with_suffix(".ended").touch()


if __name__ == "__main__":
    main(*sys.argv[1:])
