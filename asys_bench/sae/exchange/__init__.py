"""SAEs in and out: other tools' checkpoint formats, and known SAEs as the start of a training.

    native checkpoint (a SAELens folder) -> saelens.read_saelens -> SAEWeights -> a Format's writer

`SAEWeights` is what every format is written from: tensors of an SAE of raw rows under SAELens's
names, whoever trained it. A new format is one file with one `Format` and one line in `formats`.
"""

from asys_bench.sae.exchange.adoption import adopt, adopt_when_filled, own_outliers, rebased
from asys_bench.sae.exchange.export import ExportedSAE, export, find_saes
from asys_bench.sae.exchange.formats import FORMATS, Format, format_of, import_sae
from asys_bench.sae.exchange.saelens import import_saelens, read_saelens
from asys_bench.sae.exchange.weights import ExchangeError, SAEWeights

__all__ = [
    "FORMATS",
    "ExchangeError",
    "ExportedSAE",
    "Format",
    "SAEWeights",
    "adopt",
    "adopt_when_filled",
    "export",
    "find_saes",
    "format_of",
    "import_sae",
    "import_saelens",
    "own_outliers",
    "read_saelens",
    "rebased",
]
