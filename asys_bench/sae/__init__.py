"""Sparse autoencoders trained online: architectures, trainer, metrics and checkpoint formats.

Read in this order: `config` (what can be set), `architectures/` (what one is, and each of them), `kernels/`
(where the time goes), `training/` (one hook's training), `group/` (by several processes), `checkpoint/`
(what is written), `metrics` and `evaluation/` (how good it is), `exchange/` (other tools' formats).

A new architecture is one file in `architectures/` with one subclass of `SparseAutoencoder`, and one line in
`architectures/by_name.py`.
"""

from asys_bench.sae.architectures.base import SparseAutoencoder, StepContext, StepResult
from asys_bench.sae.architectures.by_name import ARCHITECTURES, AUTOENCODERS, build_sae
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError
from asys_bench.sae.checkpoint.checkpoint_store import CheckpointStore, latest_checkpoint
from asys_bench.sae.checkpoint.native_format import load_sae, save_sae
from asys_bench.sae.config import SAEConfig
from asys_bench.sae.kernels.sparse_kernels import SparseKernels
from asys_bench.sae.metrics import SAEMetrics
from asys_bench.sae.training.running_metrics import RunningMetrics
from asys_bench.sae.training.trainer import SAETrainer

__all__ = [
    "ARCHITECTURES",
    "AUTOENCODERS",
    "CheckpointError",
    "CheckpointStore",
    "RunningMetrics",
    "SAEConfig",
    "SAEMetrics",
    "SAETrainer",
    "SparseAutoencoder",
    "SparseKernels",
    "StepContext",
    "StepResult",
    "build_sae",
    "latest_checkpoint",
    "load_sae",
    "save_sae",
]
