"""What an SAE's error does to a language model: cross entropy and KL with the SAE spliced in.

    CE              mean negative log likelihood of the next token, nats
    KL              KL(p || p_spliced) of a token's prediction, nats: mean and 95th percentile over tokens
    CE recovered    (CE_ablated - CE_spliced) / (CE_ablated - CE)
    KL recovered    (KL_ablated - KL_spliced) / KL_ablated

1 means no damage, 0 means as bad as ablated. "CE recovered" is the loss recovered of Bricken et al. 2023
("Towards Monosemanticity") and the `ce_loss_score` of SAELens, "KL recovered" its `kl_div_score`; both
ablate with zeros. Here the rows' mean is a second ablation. `passed` and `replaced`: see `subjects`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

from asys_bench.sae.evaluation.reconstruction import PositionMeter, ReconstructionMeter
from asys_bench.sae.evaluation.splice import rows_at, splice
from asys_bench.sae.evaluation.subjects import (
    RowsFound,
    Subject,
    add_rows,
    found_rows,
    interventions,
)

Batch = tuple[torch.Tensor, torch.Tensor]
"""Token ids int64[B, T] and their mask, 0 where there is padding."""
Logits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(ids, mask) -> logits float[B, T, V]."""
_KINDS = ("spliced", "zero", "mean")


@dataclass(frozen=True, slots=True)
class Damage:
    """What one intervention does, in nats."""

    ce: float
    kl_mean: float
    kl_p95: float


@dataclass(frozen=True, slots=True)
class Interventions:
    """The same rows replaced by the SAE's, by zeros and by their mean."""

    ce_clean: float
    spliced: Damage
    zero: Damage
    mean: Damage

    @property
    def ce_recovered(self) -> float:
        """Against zeros; NaN where these do no harm."""
        return _recovered(self.ce_clean, self.spliced.ce, self.zero.ce)

    @property
    def ce_recovered_from_mean(self) -> float:
        return _recovered(self.ce_clean, self.spliced.ce, self.mean.ce)

    @property
    def kl_recovered(self) -> float:
        return _recovered(0.0, self.spliced.kl_mean, self.zero.kl_mean)


@dataclass(frozen=True, slots=True)
class LanguageDamage:
    """Over `tokens` tokens, of which `predicted` have a next one."""

    tokens: int
    predicted: int
    ce_clean: float
    replaced: Interventions
    passed: Interventions | None
    """None: the SAE leaves no rows alone."""

    @property
    def own(self) -> Interventions:
        """As the SAE is meant to be used."""
        return self.passed or self.replaced


def _recovered(clean: float, spliced: float, ablated: float) -> float:
    lost = ablated - clean
    return (ablated - spliced) / lost if lost > 0 else math.nan


@torch.no_grad()
def language_rows(
    run: Callable[[torch.Tensor, torch.Tensor], Any],
    batches: Iterable[Batch],
    subjects: Mapping[str, Subject],
) -> dict[str, RowsFound]:
    """The rows of every subject in one pass over the batches; `run` calls the model.

    Raises:
        ValueError: a place gave no rows, or rows of another width than its SAE's.
    """
    places = {name: subject.place for name, subject in subjects.items()}
    meters = {
        name: (ReconstructionMeter(s.sae.d_in, s.sae.d_sae), PositionMeter())
        for name, s in subjects.items()
    }
    for ids_BT, mask_BT in batches:
        with rows_at(places) as found:
            run(ids_BT, mask_BT)
        for name, calls in found.items():
            for rows in calls:
                add_rows(subjects[name].sae, *meters[name], rows, mask_BT)
    return {name: found_rows(name, *both) for name, both in meters.items()}


@dataclass
class _Sums:
    """Of one intervention, as batches come."""

    nll: float = 0.0
    kl_N: list[torch.Tensor] = field(default_factory=list)

    def damage(self, predicted: int) -> Damage:
        kl_N = torch.cat(self.kl_N).double().clamp_min(0.0)
        return Damage(self.nll / predicted, float(kl_N.mean()), _p95(kl_N))


def _p95(values_N: torch.Tensor) -> float:
    return float(torch.quantile(values_N, 0.95)) if len(values_N) <= 1 << 24 else math.nan


@torch.no_grad()
def language_damage(
    logits: Logits,
    batches: Iterable[Batch],
    subjects: Mapping[str, Subject],
    means: Mapping[str, torch.Tensor],
) -> dict[str, LanguageDamage]:
    """Run every batch as it is and, for each subject alone, with each intervention.

    means: float[D] of each subject, what mean ablation puts in.

    Raises:
        ValueError: no sequence has two tokens.
    """
    clean, tokens, predicted = _Sums(), 0, 0
    sums: dict[tuple[str, str, str], _Sums] = {}
    plans = {name: interventions(s.sae, means[name]) for name, s in subjects.items()}
    for ids_BT, mask_BT in batches:
        texts = [ids[mask.bool()] for ids, mask in zip(ids_BT, mask_BT, strict=True)]
        own = _log_probabilities(logits(ids_BT, mask_BT), mask_BT)
        tokens += sum(map(len, texts))
        predicted += sum(max(0, len(text) - 1) for text in texts)
        clean.nll += _nll(own, texts)
        for name, subject in subjects.items():
            for plan in plans[name]:
                with splice(subject.place, plan.reconstruct, keep=plan.keep):
                    changed = _log_probabilities(logits(ids_BT, mask_BT), mask_BT)
                one = sums.setdefault((name, plan.mode, plan.kind), _Sums())
                one.nll += _nll(changed, texts)
                one.kl_N += [_kl(before, after) for before, after in zip(own, changed, strict=True)]
    if not predicted:
        raise ValueError("no sequence of the text has two tokens or more")
    ce_clean = clean.nll / predicted
    found = {}
    for name in subjects:
        modes = {
            mode: Interventions(
                ce_clean, *(sums[name, mode, kind].damage(predicted) for kind in _KINDS)
            )
            for mode in {plan.mode for plan in plans[name]}
        }
        found[name] = LanguageDamage(
            tokens, predicted, ce_clean, modes["replaced"], modes.get("passed")
        )
    return found


def _log_probabilities(logits_BTV: torch.Tensor, mask_BT: torch.Tensor) -> list[torch.Tensor]:
    """Of each sequence float32[tokens, V], padding left out."""
    return [
        functional.log_softmax(logits_TV[mask_T.bool()].float(), dim=-1)
        for logits_TV, mask_T in zip(logits_BTV, mask_BT.to(logits_BTV.device), strict=True)
    ]


def _nll(log_p: list[torch.Tensor], texts: list[torch.Tensor]) -> float:
    return sum(
        float(functional.nll_loss(p_TV[:-1], text_T[1:].to(p_TV.device), reduction="sum"))
        for p_TV, text_T in zip(log_p, texts, strict=True)
        if len(text_T) > 1
    )


def _kl(clean_TV: torch.Tensor, changed_TV: torch.Tensor) -> torch.Tensor:
    """float32[T] on the CPU."""
    kl_TV = functional.kl_div(changed_TV, clean_TV, reduction="none", log_target=True)
    return kl_TV.sum(-1).cpu()
