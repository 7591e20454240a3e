"""Every architecture by its name in the config."""

from __future__ import annotations

from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.architectures.batchtopk import BatchTopKSAE
from asys_bench.sae.architectures.crosscoder import Crosscoder
from asys_bench.sae.architectures.gated import GatedSAE
from asys_bench.sae.architectures.jumprelu import JumpReLUSAE
from asys_bench.sae.architectures.matryoshka import MatryoshkaSAE
from asys_bench.sae.architectures.relu import ReLUSAE
from asys_bench.sae.architectures.topk import TopKSAE
from asys_bench.sae.architectures.transcoder import SkipTranscoder
from asys_bench.sae.config import SAEConfig

AUTOENCODERS: dict[str, type[SparseAutoencoder]] = {
    sae.name: sae for sae in (TopKSAE, BatchTopKSAE, MatryoshkaSAE, JumpReLUSAE, GatedSAE, ReLUSAE)
}
"""Those that reconstruct their own input."""
ARCHITECTURES: dict[str, type[SparseAutoencoder]] = {
    **AUTOENCODERS,
    SkipTranscoder.name: SkipTranscoder,
    Crosscoder.name: Crosscoder,
}
BY_SAELENS_NAME: dict[str, type[SparseAutoencoder]] = {
    sae.saelens_name: sae for sae in ARCHITECTURES.values() if sae.reads_saelens
}
"""Who opens a checkpoint. BatchTopK and Matryoshka SAEs are JumpReLU SAEs once trained."""


def build_sae(config: SAEConfig, d_in: int, d_out: int | None = None) -> SparseAutoencoder:
    """A freshly initialised SAE for rows of width `d_in`; d_out: width of a transcoder's target.

    Raises:
        ValueError: the config does not fit `d_in`, or d_out is given and it is no transcoder.
    """
    if config.architecture == SkipTranscoder.name:
        return SkipTranscoder(d_in, config, d_out)
    if d_out is not None:
        raise ValueError(
            f"architecture {config.architecture!r} reconstructs its input; only "
            f"{SkipTranscoder.name!r} has targets of another hook"
        )
    return ARCHITECTURES[config.architecture](d_in, config)
