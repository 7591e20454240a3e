"""How good an SAE is, beyond its training loss. Nothing here trains or changes anything.

- `reconstruction`: FVU, L0, dead and dense features, feature densities, over a stream of rows.
- `splice`: run a host with a module's output replaced by the SAE's reconstruction of it; what that
  does to a language model (`language`: cross entropy, KL) or an agent (`policy`: KL of the action
  distribution, return).
- `recovery`: how much of a known dictionary was found; `synthetic` makes data that has one.
"""

from asys_bench.sae.evaluation.language import LanguageDamage, language_damage
from asys_bench.sae.evaluation.policy import (
    PolicyDamage,
    action_kl,
    episode_returns,
    policy_damage,
)
from asys_bench.sae.evaluation.reconstruction import (
    DensityHistogram,
    ReconstructionMeter,
    ReconstructionReport,
    density_histogram,
    evaluate,
)
from asys_bench.sae.evaluation.splice import mean_ablation, splice, zero_ablation
from asys_bench.sae.evaluation.synthetic import Recovery, SyntheticFeatures, max_cosines, recovery

__all__ = [
    "DensityHistogram",
    "LanguageDamage",
    "PolicyDamage",
    "ReconstructionMeter",
    "ReconstructionReport",
    "Recovery",
    "SyntheticFeatures",
    "action_kl",
    "density_histogram",
    "episode_returns",
    "evaluate",
    "language_damage",
    "max_cosines",
    "mean_ablation",
    "policy_damage",
    "recovery",
    "splice",
    "zero_ablation",
]
