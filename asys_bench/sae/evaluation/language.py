"""What an SAE's error does to a language model: cross entropy and KL with the SAE spliced in.

    CE           mean negative log likelihood of the next token, nats
    KL           mean over positions of KL(p_clean || p_spliced), nats
    recovered    (CE_ablated - CE_spliced) / (CE_ablated - CE_clean)

"Loss recovered" is of Bricken et al. 2023 and Gao et al. 2024, section 4.1; 1 means no damage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.nn import functional

from asys_bench.sae.evaluation.splice import Reconstruct, splice, zero_ablation

Logits = Callable[[torch.Tensor], torch.Tensor]
"""Token ids int64[B, T] -> logits float[B, T, V]; `lambda ids: model(ids).logits`."""


@dataclass(frozen=True, slots=True)
class LanguageDamage:
    """Means over `tokens` predicted tokens, in nats."""

    tokens: int
    ce_clean: float
    ce_spliced: float
    ce_ablated: float
    kl: float

    @property
    def loss_recovered(self) -> float:
        """1: as good as the model itself; 0: as bad as without the module; NaN: it does nothing."""
        lost = self.ce_ablated - self.ce_clean
        return (self.ce_ablated - self.ce_spliced) / lost if lost else float("nan")


@torch.no_grad()
def language_damage(
    logits: Logits,
    batches: Iterable[torch.Tensor],
    module: torch.nn.Module,
    reconstruct: Reconstruct,
    *,
    ablation: Reconstruct = zero_ablation,
    select: int | str | None = None,
) -> LanguageDamage:
    """Run every batch of ids int64[B, T], T >= 2, clean, spliced and ablated.

    Raises:
        ValueError: no batch with a next token.
    """
    tokens, sums = 0, torch.zeros(4, dtype=torch.float64)
    for ids_BT in batches:
        target_N = ids_BT[:, 1:].reshape(-1)
        if not len(target_N):
            continue
        clean_NV = _next_token(logits(ids_BT))
        with splice(module, reconstruct, select=select):
            spliced_NV = _next_token(logits(ids_BT))
        with splice(module, ablation, select=select):
            ablated_NV = _next_token(logits(ids_BT))
        kl_NV = functional.kl_div(spliced_NV, clean_NV, reduction="none", log_target=True)
        found = [functional.nll_loss(p, target_N, reduction="sum")
                 for p in (clean_NV, spliced_NV, ablated_NV)]  # fmt: skip
        sums += torch.stack([*found, kl_NV.sum()]).double().cpu()
        tokens += len(target_N)
    if not tokens:
        raise ValueError("no batch of ids has two tokens or more")
    ce_clean, ce_spliced, ce_ablated, kl = (sums / tokens).tolist()
    return LanguageDamage(tokens, ce_clean, ce_spliced, ce_ablated, kl)


def _next_token(logits_BTV: torch.Tensor) -> torch.Tensor:
    """Log probabilities float32[B (T-1), V] of the tokens that follow."""
    return functional.log_softmax(logits_BTV[:, :-1].float(), dim=-1).flatten(0, 1)
