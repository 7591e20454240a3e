"""How good an SAE is, beyond its training loss. Nothing here trains or changes anything.

- `reconstruction`: FVU, cosine, L2 ratio, L0, dead and dense features, feature densities, FVU by
  position, over a stream of rows.
- `splice`: run a host with a module's output replaced by the SAE's reconstruction of it. `subjects`: an
  SAE at its place, and what it is compared with. What that does to a language model is in `language`
  (cross entropy, KL), to an agent in `policy` (KL of the action distribution, value error, return).
- `recovery`: how much of a known dictionary was found; `synthetic` makes data that has one.
"""

from asys_bench.sae.evaluation.language import LanguageDamage, language_damage, language_rows
from asys_bench.sae.evaluation.policy import (
    Agent,
    AgentDamage,
    action_kl,
    agent_damage,
    episode_returns,
)
from asys_bench.sae.evaluation.reconstruction import (
    DensityHistogram,
    PositionMeter,
    ReconstructionMeter,
    ReconstructionReport,
    density_histogram,
    evaluate,
)
from asys_bench.sae.evaluation.splice import Place, mean_ablation, rows_at, splice, zero_ablation
from asys_bench.sae.evaluation.subjects import RowsFound, Subject
from asys_bench.sae.evaluation.synthetic import Recovery, SyntheticFeatures, max_cosines, recovery

__all__ = [
    "Agent",
    "AgentDamage",
    "DensityHistogram",
    "LanguageDamage",
    "Place",
    "PositionMeter",
    "ReconstructionMeter",
    "ReconstructionReport",
    "Recovery",
    "RowsFound",
    "Subject",
    "SyntheticFeatures",
    "action_kl",
    "agent_damage",
    "density_histogram",
    "episode_returns",
    "evaluate",
    "language_damage",
    "language_rows",
    "max_cosines",
    "mean_ablation",
    "recovery",
    "rows_at",
    "splice",
    "zero_ablation",
]
