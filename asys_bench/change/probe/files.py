"""The files of a hook's probes, as `rundir.probes` reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

from asys_bench.change.probe.probes import Probe
from asys_bench.contracts.names import file_slug
from asys_bench.contracts.run_files import PROBES_DIR, PROBES_SCHEMA
from asys_bench.system.files.atomic import replace_file
from asys_bench.system.files.below import make_folders


def write_probes(
    run_dir: Path,
    hook: str,
    about: Mapping[str, Any],
    probes: list[Probe],
    texts: Mapping[int, str],
) -> None:
    """Replace both files, the tensors first. Raises OSError."""
    folder = run_dir / PROBES_DIR
    make_folders(folder, below=run_dir)
    tensors = {}
    for probe in probes:
        if probe.linear is not None:
            tensors[f"{probe.label}.weight"] = probe.linear.weight.contiguous()
            tensors[f"{probe.label}.bias"] = probe.linear.bias.contiguous()
    document = {
        "schema": PROBES_SCHEMA,
        "hook": hook,
        **about,
        "probes": [_described(probe, about, texts) for probe in probes],
    }
    slug = file_slug(hook)
    raw = json.dumps(document, indent=1, allow_nan=False).encode()
    replace_file(folder / f"{slug}.safetensors", save(tensors, {"hook": hook}), sync=False)
    replace_file(folder / f"{slug}.json", raw + b"\n", sync=False)


def _described(probe: Probe, about: Mapping[str, Any], texts: Mapping[int, str]) -> dict[str, Any]:
    classes = probe.classes
    return {
        "label": probe.label,
        "kind": probe.kind,
        "metric": probe.metric,
        "classes": None if classes is None else [_named(c, texts) for c in classes],
        "shares": None if probe.shares is None else [*probe.shares.values()],
        "value": _finite(probe.score.value),
        "low": _finite(probe.score.low),
        "high": _finite(probe.score.high),
        "rows": probe.rows,
        "held_out_rows": probe.held_out_rows,
        "held_out_blocks": probe.score.blocks,
        "block": about.get("block"),
        "history": [[step, *map(_finite, rest)] for step, *rest in probe.history],
    }


def _named(value: float, texts: Mapping[int, str]) -> float | str:
    return texts.get(int(value), value) if value == int(value) else value


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
