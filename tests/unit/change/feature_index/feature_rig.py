"""A `feature_index` worker that is fed by hand, and SAEs whose features are the rows' own numbers."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import torch

from asys_bench.change.feature_index.options import FeatureIndexOptions
from asys_bench.change.feature_index.sink import FeatureIndexWorker
from asys_bench.contracts.names import file_slug
from asys_bench.contracts.packet import ActivationPacket
from asys_bench.contracts.sink import SinkContext
from asys_bench.contracts.stats import StatsPage
from asys_bench.rundir.feature_index import FeatureIndex
from asys_bench.sae import CheckpointStore, SAEConfig, SparseAutoencoder, build_sae, save_sae
from asys_bench.sae.architectures.scaling import InputScaling
from asys_bench.sae.checkpoint.lives import lives_now, write_lives
from asys_bench.sae.training.lives import FeatureLives

RIG = runpy.run_path(str(Path(__file__).parents[2] / "sinks" / "sae" / "conftest.py"))
FakeLease, packet = RIG["FakeLease"], RIG["packet"]
NAMES = ("identity", "layer.0", "tokens", "layer.1")
HOOK = "layer.0"


def identity_sae(width: int, gain: float = 1.0) -> SparseAutoencoder:
    """Feature n fires with `gain` times the row's n-th number, where that is above 0."""
    sae = build_sae(SAEConfig(architecture="relu", d_sae=width), width)
    with torch.no_grad():
        sae.W_enc.copy_(gain * torch.eye(width))
        sae.W_dec.copy_(torch.eye(width))
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


def write_sae(folder: Path, sae: SparseAutoencoder, generation: Any = None) -> None:
    """One checkpoint's files; generation: of each feature."""
    folder.mkdir(parents=True, exist_ok=True)
    save_sae(folder, sae, InputScaling.identity(sae.d_in), {"hook_name": HOOK})
    if generation is not None:
        lives = FeatureLives(sae.W_dec.detach())
        lives.generation_F += torch.as_tensor(generation)
        write_lives(folder, lives_now(lives, sae.W_dec.detach()))


def checkpoint(run_dir: Path, step: int, sae: SparseAutoencoder, generation: Any = None) -> None:
    """A checkpoint of the run's own SAE."""
    store = CheckpointStore(run_dir / "sae" / file_slug(HOOK), sync=False)
    store.write(step, lambda folder: write_sae(folder, sae, generation))


class Fed:
    """Workers of one run, one after another."""

    def __init__(self, run_dir: Path, **options: Any) -> None:
        self.run_dir, self.options = run_dir, {"cpu_share": 1.0, **options}
        self.page = StatsPage.create(["index-0"])
        self.names: tuple[str, ...] = NAMES
        self.seq = 0
        self.worker = self.start()

    def start(self, incarnation: int = 0) -> FeatureIndexWorker:
        worker = FeatureIndexWorker(FeatureIndexOptions(**self.options))
        worker.open(
            SinkContext(
                name="index-0", run_dir=self.run_dir, run_id="run-1", seed=5,
                slot=self.page.slot("index-0"), wall_offset_ns=0, incarnation=incarnation,
                name_of=lambda number: self.names[number], names=lambda: self.names,
                decode=ActivationPacket.raw_tensor, heartbeat=lambda: None,
                time_left_s=lambda: float("inf"),
            )
        )  # fmt: skip
        return worker

    def feed(self, x: torch.Tensor, hook: int = 1, **fields: Any) -> None:
        made = packet(x, self.seq, hook, **{"host_step": self.seq, **fields})
        self.seq += 1
        with FakeLease([made]) as lease:
            self.worker.consume(lease)
        del made

    def text(self, ids: torch.Tensor, positions: torch.Tensor, step: int, text: int = 1) -> None:
        """The stream of tokens."""
        both = torch.stack([ids, positions], 1).to(torch.int32)
        self.feed(both, NAMES.index("tokens"), host_step=step, text=text)

    def look_again(self) -> None:
        """The next packet looks for a newer checkpoint."""
        for hook in self.worker._known():
            hook._look_at_s = -float("inf")

    def write(self) -> FeatureIndex:
        for hook in self.worker._known():
            hook.settle()
            hook.write()
        return FeatureIndex.open(self.run_dir, HOOK)

    def count(self, name: str) -> int:
        return self.page.slot("index-0").metrics()[f"{name}{{hook={HOOK}}}"].value
