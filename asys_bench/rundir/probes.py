"""The probes of a run as a `probe` sink wrote them: `<run>/probes/<hook>.json` and `.safetensors`.

The JSON document says what each probe is worth (schema `asys.probes/1`). The safetensors file has
`<label>.weight` float32[C, D] and `<label>.bias` float32[C]; of rows x [N, D] as the hook captured them (or
of the SAE's features), `x @ weight.T + bias` are the logits of the classes, of two classes that of the
second, or the number. Nothing but plain torch is needed::

    probes = safetensors.torch.load_file("runs/<run>/probes/trunk.safetensors")
    logits = x @ probes["done.weight"].T + probes["done.bias"]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

from asys_bench.contracts.run_files import PROBES_DIR, PROBES_SCHEMA
from asys_bench.rundir.live_run import ReadingError
from asys_bench.system.files.below import read_file, read_json, scan_if_there

MOST_BYTES = 1 << 30
ACTIVATIONS = "activations"
"""What `FoundProbe.features` says of a probe of raw rows; else it is the SAE's path."""


@dataclass(frozen=True)
class FoundProbe:
    """A probe of a run.

    kind: "class" or "number"; metric: "auc" or "r2". value, low, high: the held-out figure and its interval;
    NaN where there is none. classes: of its outputs; texts where the labels were. block: what was held out as
    a whole. history: (host step, value, low, high). weight [C, D] and bias [C]: see the module docstring;
    None: it was not fitted yet.
    """

    hook: str
    label: str
    kind: str
    metric: str
    value: float
    low: float
    high: float
    classes: tuple[float | str, ...] | None
    rows: int
    held_out_rows: int
    held_out_blocks: int
    block: str
    features: str
    history: tuple[tuple[int, float, float, float], ...]
    weight: torch.Tensor | None
    bias: torch.Tensor | None


def read_probes(run_dir: Path) -> dict[str, list[FoundProbe]]:
    """Hook -> its probes; empty where the run has none.

    Raises:
        ReadingError: a file is damaged, or is no such file.
    """
    found: dict[str, list[FoundProbe]] = {}
    for path, _ in scan_if_there(run_dir / PROBES_DIR, below=run_dir):
        if path.suffix != ".json" or path.name.startswith("."):
            continue
        try:
            document = read_json(path, below=run_dir)
            if document["schema"] != PROBES_SCHEMA:
                raise ReadingError(f"{path}: not an {PROBES_SCHEMA} document")
            raw = read_file(path.with_suffix(".safetensors"), MOST_BYTES, below=run_dir)
            tensors = load(raw)
            hook = str(document["hook"])
            found[hook] = [_probe(hook, document, one, tensors) for one in document["probes"]]
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ReadingError(f"{path} cannot be read: {error!r}") from error
        except Exception as error:  # SafetensorError derives from nothing else
            if isinstance(error, ReadingError):
                raise
            raise ReadingError(f"{path} cannot be read: {error!r}") from error
    return found


def _probe(
    hook: str,
    document: Mapping[str, Any],
    one: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
) -> FoundProbe:
    label = str(one["label"])
    classes = one["classes"]
    return FoundProbe(
        hook=hook,
        label=label,
        kind=str(one["kind"]),
        metric=str(one["metric"]),
        value=_number(one["value"]),
        low=_number(one["low"]),
        high=_number(one["high"]),
        classes=None
        if classes is None
        else tuple(c if isinstance(c, str) else float(c) for c in classes),
        rows=int(one["rows"]),
        held_out_rows=int(one["held_out_rows"]),
        held_out_blocks=int(one["held_out_blocks"]),
        block=str(one["block"]),
        features=str(document["features"]),
        history=tuple(
            (int(step), _number(value), _number(low), _number(high))
            for step, value, low, high in one["history"]
        ),
        weight=tensors.get(f"{label}.weight"),
        bias=tensors.get(f"{label}.bias"),
    )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
