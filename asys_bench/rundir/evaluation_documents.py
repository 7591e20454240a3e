"""What an evaluation found, as `<run>/evaluation/<sae>/step_<n>.json` (schema `asys.evaluation/1`)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asys_bench.contracts.names import file_slug
from asys_bench.contracts.run_files import EVALUATION_DIR, EVALUATION_SCHEMA
from asys_bench.system.files import make_private_folder, replace_file
from asys_bench.system.files.below import EntryKind, read_json, walk

if TYPE_CHECKING:
    from asys_bench.sae.evaluation import LanguageDamage, RowsFound
    from asys_bench.sae.evaluation.policy import AgentDamage


def rows_found(found: RowsFound) -> dict[str, Any]:
    """The section `rows`."""
    report = found.report
    return _plain(
        {
            "rows": report.rows,
            "fvu": report.fvu,
            "fvu_all": report.fvu_all,
            "cosine": report.cosine,
            "l2_ratio": report.l2_ratio,
            "l0": report.l0,
            "dead_share": report.dead_fraction,
            "dense_share": report.dense_fraction,
            "outlier_share": report.outlier_share,
            "fvu_by_position": found.fvu_by_position,
        }
    )


def language_found(found: LanguageDamage) -> dict[str, Any]:
    """The section `language`."""
    modes: dict[str, Any] = {}
    for mode, one in (("passed", found.passed), ("replaced", found.replaced)):
        modes[mode] = one and {
            "ce_recovered": one.ce_recovered,
            "ce_recovered_from_mean": one.ce_recovered_from_mean,
            "kl_recovered": one.kl_recovered,
            **{kind: asdict(getattr(one, kind)) for kind in ("spliced", "zero", "mean")},
        }
    return _plain(
        {"tokens": found.tokens, "predicted": found.predicted, "ce": found.ce_clean, **modes}
    )


def policy_found(found: AgentDamage) -> dict[str, Any]:
    """The section `policy`."""
    modes: dict[str, Any] = {}
    for mode, one in (("passed", found.passed), ("replaced", found.replaced)):
        modes[mode] = one and {
            "return_recovered": one.return_recovered,
            **{kind: asdict(getattr(one, kind)) for kind in ("spliced", "zero", "mean")},
        }
    return _plain(
        {
            "states": found.states,
            "episodes": found.episodes,
            "return_mean": found.return_clean,
            **modes,
        }
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no infinity and no NaN: null."""
    return {key: _finite(value) for key, value in values.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _plain(value)
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# The files.


def write_evaluation(run_dir: Path, document: Mapping[str, Any]) -> Path:
    """Put a document where the report finds it, named after its checkpoint.

    Raises:
        OSError: the disk refused.
    """
    folder = run_dir / EVALUATION_DIR / file_slug(str(document["sae"]))
    make_private_folder(folder)
    path = folder / f"{Path(str(document['checkpoint'])).name}.json"
    replace_file(path, (json.dumps(document, indent=2) + "\n").encode(), sync=False)
    return path


def read_evaluations(run_dir: Path) -> list[dict[str, Any]]:
    """Every evaluation of a run that can be read, by SAE and age of the checkpoint."""
    found = list(_documents(run_dir))
    return sorted(found, key=lambda one: (str(one["sae"]), one["checkpoint_unix_ns"]))


def _files(run_dir: Path) -> list[Path]:
    """Those that lie where evaluations do; a folder that cannot be listed has none."""
    try:
        return [
            path for path, kind in walk(run_dir / EVALUATION_DIR, below=run_dir)
            if kind is EntryKind.FILE and path.suffix == ".json"
        ]  # fmt: skip
    except OSError:
        return []


def _documents(run_dir: Path) -> Iterator[dict[str, Any]]:
    for path in _files(run_dir):
        try:
            document = read_json(path, below=run_dir)
        except (OSError, ValueError):
            continue
        if (
            isinstance(document, dict)
            and document.get("schema") == EVALUATION_SCHEMA
            and isinstance(document.get("sae"), str)
            and isinstance(document.get("rows"), dict)
            and isinstance(document.get("checkpoint_unix_ns"), int)
            and 0 <= document["checkpoint_unix_ns"] < 1 << 63
        ):
            yield document
