"""The folder that is pushed: a SAELens folder per SAE and the card. Nothing else ever lies in it.

README.md                        the card
<sae>/cfg.json                   SAELens's, with named entries of the metadata alone (`facts.METADATA`)
<sae>/sae_weights.safetensors    the weights, which take raw rows
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from asys_bench.hub.card import CARD_FILE, render_card
from asys_bench.hub.facts import HubSAE, RunFacts, public_metadata, public_name
from asys_bench.sae.checkpoint.native_format import CFG_FILE, WEIGHTS_FILE
from asys_bench.sae.exchange.saelens import write_saelens

FILE_MODE = 0o644


def write_folder(
    target: Path,
    repo: str,
    saes: Sequence[HubSAE],
    facts: RunFacts,
    license_: str | None = None,
) -> list[Path]:
    """Fill the existing empty folder `target`; the files, relative to it.

    Raises:
        CheckpointError: a value is not finite, or the disk refuses. OSError: the disk refuses.
    """
    files = []
    for sae in saes:
        model = facts.model or public_name(str(sae.weights.metadata.get("model_name") or ""))
        folder = target / sae.folder
        folder.mkdir()
        weights = replace(sae.weights, metadata=public_metadata(sae.weights, model))
        write_saelens(weights, folder)
        files += [Path(sae.folder, CFG_FILE), Path(sae.folder, WEIGHTS_FILE)]
    card = render_card(repo, saes, facts, license_)
    (target / CARD_FILE).write_text(card, encoding="utf-8")
    files.append(Path(CARD_FILE))
    for file in files:
        (target / file).chmod(FILE_MODE)
    return files
