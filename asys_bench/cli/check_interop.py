"""Load a run's SAEs in other tools and its archive in Hugging Face datasets, and compare with ours.

``python -m asys_bench.cli.check_interop runs/<run>``; without an argument the run that RUN names, else the
newest one under runs/.
SAELens opens the checkpoints as they are; sparsify and dictionary_learning, where installed, open
exports of them. Exit code 0 when everything opens and every reconstruction differs by less than
1e-5 of the rows' size.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import torch

from asys_bench.rundir.attach import RunGoneError, find_run
from asys_bench.sae import load_sae
from asys_bench.sae.exchange import FORMATS, ExchangeError, export
from asys_bench.sae.exchange.export import find_saes
from asys_bench.sinks.archive import open_archive

TOLERANCE = 1e-5


def _saelens(folder: Path, rows_BD: torch.Tensor) -> torch.Tensor:
    from sae_lens import SAE

    out_BD: torch.Tensor = SAE.load_from_disk(str(folder), device="cpu")(rows_BD)
    return out_BD


def _sparsify(folder: Path, rows_BD: torch.Tensor) -> torch.Tensor:
    if not torch.cuda.is_available():
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # read when it is imported
    from sparsify import SparseCoder

    out_BD: torch.Tensor = SparseCoder.load_from_disk(folder)(rows_BD).sae_out
    return out_BD


def _dictionary_learning(folder: Path, rows_BD: torch.Tensor) -> torch.Tensor:
    from dictionary_learning.utils import load_dictionary

    theirs, _ = load_dictionary(str(folder / "trainer_0"), "cpu")
    out_BD: torch.Tensor = theirs.decode(theirs.encode(rows_BD))
    return out_BD


READERS: Mapping[str, Callable[[Path, torch.Tensor], torch.Tensor]] = {
    "saelens": _saelens,
    "sparsify": _sparsify,
    "dictionary_learning": _dictionary_learning,
}
"""Format -> its own package's reconstruction of raw rows from an exported folder."""
PACKAGES = {"saelens": "sae_lens"}


@torch.no_grad()
def differences(folder: Path, rows_BD: torch.Tensor) -> dict[str, float | str]:
    """Format -> largest difference from our reconstruction over the rows' largest entry, or why
    there is none."""
    ours_BD = load_sae(folder)[0](rows_BD)
    size = max(1.0, float(rows_BD.abs().max()))
    found: dict[str, float | str] = {}
    for name, read in READERS.items():
        package = PACKAGES.get(name, name)
        if find_spec(package) is None:
            found[name] = f"{package} is not installed"
            continue
        with tempfile.TemporaryDirectory() as out, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                made = export(folder, FORMATS[name], Path(out)).folder
            except ExchangeError as error:
                found[name] = error.reason
                continue
            theirs_BD = read(folder if name == "saelens" else made, rows_BD)
        found[name] = float((theirs_BD - ours_BD).abs().max()) / size
    return found


def archived_rows(run: Path, hook: str, most: int) -> tuple[int, torch.Tensor]:
    """(rows in all shards of a hook as `datasets` sees them, up to `most` of them as float32)."""
    from datasets import Dataset

    total, rows = 0, []
    for shard in open_archive(run).shards(hook):
        dataset = Dataset.from_file(str(shard))
        total += len(dataset)
        part = dataset.select_columns(["values"]).with_format("torch")[:most]["values"]
        rows.append(part.to(torch.float32))
    return total, torch.cat(rows)[:most]


def saes_of(run: Path) -> list[tuple[str, str, Path]]:
    """(name, hook whose rows it takes, folder) of each SAE: what its metadata says, not its folder's name.

    The name is the hook's, with the folder's where several SAEs (variants) share a hook.
    """
    folders = [folder.resolve() for folder in find_saes(run)]
    hooks = [str(load_sae(folder)[1].get("hook_name") or "") for folder in folders]
    return [
        (hook if hooks.count(hook) == 1 else f"{hook} ({folder.parent.name})", hook, folder)
        for hook, folder in zip(hooks, folders, strict=True)
    ]


def main(argv: list[str] | None = None) -> int:
    """Entry point; prints one line per SAE."""
    arguments = sys.argv[1:] if argv is None else argv
    named = arguments[0] if arguments else os.environ.get("RUN")
    worst, compared = 0.0, 0
    try:
        run = Path(named) if named else find_run(None)
        saes = saes_of(run)
    except (ExchangeError, RunGoneError) as error:
        print(error)
        return 1
    for name, hook, folder in saes:
        total, rows_BD = archived_rows(run, hook, 4096)
        found = differences(folder, rows_BD)
        compared += sum(isinstance(value, float) for value in found.values())
        worst = max([worst, *(value for value in found.values() if isinstance(value, float))])
        said = ", ".join(
            f"{tool} differs by {value:.1e}" if isinstance(value, float) else f"{tool}: {value}"
            for tool, value in found.items()
        )
        print(f"{name}: {total} rows in datasets; {said}")
    return 0 if compared and worst < TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
