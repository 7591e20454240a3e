"""What to type next, found from the files that are there. Every command can be pasted in a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from asys_bench.reports.run_summary.summary import FileEntry, NextStep

SAE_CONFIG, SAE_WEIGHTS = "cfg.json", "sae_weights.safetensors"
"""The two files of a folder that SAELens loads."""
SHARD_SUFFIXES = (".arrow", ".arrows")
"""Arrow IPC streams."""


def next_steps(run_dir: Path, files: Sequence[FileEntry]) -> tuple[NextStep, ...]:
    """Commands for what this run has written, by packages that are installed; maybe none."""
    written = [PurePosixPath(entry.path) for entry in files if entry.nbytes]
    paths = [path for path in written if not any(part.startswith(".") for part in path.parts)]
    steps = []
    if _installed("tensorboard") and any(path.parts[0] == "tensorboard" for path in paths):
        command = f"tensorboard --logdir {shlex.quote(str(run_dir / 'tensorboard'))}"
        steps.append(NextStep("watch the curves", command))
    if _installed("sae_lens") and (sae := _newest_sae(paths)) is not None:
        code = (
            f"from sae_lens import SAE; sae = SAE.load_from_disk({str(run_dir / sae)!r}); "
            "print(sae.cfg)"
        )
        steps.append(NextStep("load an SAE with SAELens", _python(code)))
    shards = [path for path in paths if path.suffix in SHARD_SUFFIXES]
    if shards and _installed("datasets"):
        code = (
            f"from datasets import Dataset; d = Dataset.from_file({str(run_dir / shards[0])!r}); "
            "print(d)"
        )
        steps.append(NextStep("open the archive with datasets", _python(code)))
    if _installed("pandas") and any(str(path) == "metrics.csv" for path in paths):
        code = (
            f"import pandas; d = pandas.read_csv({str(run_dir / 'metrics.csv')!r}); "
            "print(d[d.metric == 'sae_fvu'].pivot_table('value', 'time_s', 'hook'))"
        )
        steps.append(NextStep("read the metrics with pandas", _python(code)))
    return tuple(steps)


def _installed(package: str) -> bool:
    return find_spec(package) is not None


def _python(code: str) -> str:
    # Double quotes outside keep the code's own quotes as they are; only these characters are
    # special between them, and `!` (history) must not appear at all.
    if any(c in code for c in '"$`\\!'):
        return f"python -c {shlex.quote(code)}"
    return f'python -c "{code}"'


def _newest_sae(paths: Sequence[PurePosixPath]) -> PurePosixPath | None:
    """The last folder, by name, with both SAELens files (checkpoints are numbered)."""
    configs = {path.parent for path in paths if path.name == SAE_CONFIG}
    weights = {path.parent for path in paths if path.name == SAE_WEIGHTS}
    return max(configs & weights, default=None)
