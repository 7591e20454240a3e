"""A host with SAEs for the eyepiece's checks: `eye_host.py FOLDER FEATURES PAUSE_S`. Ends at SIGTERM.

A small text model runs, with a pause after each step. An SAE of 1,152 features learns at `mid`; at `late` a
frozen one of FEATURES features is indexed. Its feature `RARE` fires on one token alone, which the next step
has after a SIGUSR1; `fired.jsonl` says at which step and when (CLOCK_MONOTONIC, before the forward pass),
`first` when the first pass began.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import torch

import asys_bench
from asys_bench.sae import SAEConfig, build_sae, save_sae
from asys_bench.sae.architectures.scaling import InputScaling

WIDTH, TOKENS, BATCH, LENGTH = 64, 4096, 4, 50
SPECIAL, RARE = TOKENS - 1, 7


class Text(torch.nn.Module):
    """Rows of `late` lie in all dimensions but the last, which is the special token's own."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = torch.nn.Embedding(TOKENS, WIDTH)
        self.mid = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 256), torch.nn.ReLU(), torch.nn.Linear(256, WIDTH)
        )
        self.late = torch.nn.Identity()
        with torch.no_grad():
            self.emb.weight[:, -1] = 0.0
            self.emb.weight[SPECIAL] = 0.0
            self.emb.weight[SPECIAL, -1] = 8.0

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        rows = self.emb(input_ids)
        self.mid(rows)
        return self.late(rows)


def write_known(folder: Path, features: int) -> None:
    """The frozen SAE."""
    sae = build_sae(SAEConfig(architecture="topk", d_sae=features, k=8, seed=1), WIDTH)
    with torch.no_grad():
        sae.W_enc[-1] = 0.0
        sae.W_enc[:, RARE] = 0.0
        sae.W_enc[-1, RARE] = 1.0
        sae.b_enc[:] = 0.0
        sae.b_enc[RARE] = -1.0
        sae.b_dec[:] = 0.0
    folder.mkdir(parents=True)
    save_sae(folder, sae, InputScaling.identity(WIDTH), {"hook_name": "late"})


def main(folder: Path, features: int, pause_s: float) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    known = folder / "known"
    share = 1.0 if pause_s else 0.25  # a firing in a call that is left out is seen by nobody
    write_known(known, features)
    ending, rare = [], []
    signal.signal(signal.SIGTERM, lambda *_: ending.append(True))
    signal.signal(signal.SIGUSR1, lambda *_: rare.append(True))
    model = Text()
    observation = asys_bench.observe(
        model,
        hooks=["mid", "late"],
        run={"dir": str(folder / "runs"), "drain_timeout_s": 60},
        sinks={
            "trainer": {
                "hooks": ["mid"],
                "options": {"sae": {"architecture": "topk", "k": 16, "d_sae": 1152}},
            },
            "archive": {"options": {"max_gib": 0.2}},
            "index": {
                "kind": "feature_index",
                "options": {"saes": {"*": "run", "late": str(known)}, "cpu_share": share},
            },
        },
        quiet=True,
    )
    with observation, torch.no_grad(), open(folder / "fired.jsonl", "w") as fired:
        print(json.dumps({"run": str(observation.run_dir)}), flush=True)
        (Path(observation.run_dir) / "vocabulary.json").write_text(
            json.dumps({"tokens": [f"\u0120word{n}" for n in range(TOKENS)]})
        )
        step = 0
        (folder / "first").write_text(str(time.monotonic()))
        while not ending:
            ids = torch.randint(0, SPECIAL, (BATCH, LENGTH))
            if rare:
                rare.clear()
                ids[0, LENGTH // 2] = SPECIAL
                fired.write(json.dumps({"step": step, "at": time.monotonic()}) + "\n")
                fired.flush()
            model(ids)
            observation.step()
            step += 1
            if pause_s:
                time.sleep(pause_s)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
