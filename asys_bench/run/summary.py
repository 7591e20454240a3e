"""`summary.json` of an observation, as `asys-run` writes it for its hosts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from asys_bench.config import MasterConfig
from asys_bench.contracts.bus import BusAccount
from asys_bench.contracts.host import HostResult
from asys_bench.contracts.stats import StatsPage
from asys_bench.reports.run_summary.document import list_files, write_json
from asys_bench.reports.run_summary.summarise import summarise
from asys_bench.reports.run_summary.summary import RunSummary
from asys_bench.sinks.sae_trainer import SAETrainerOptions

log = logging.getLogger(__name__)


def write_summary(
    page: StatsPage,
    account: BusAccount | None,
    config: MasterConfig,
    hooks: Sequence[str],
    run_dir: Path,
    *,
    run_id: str,
    step_unit: str,
    steps: int,
    seconds: float,
    notices: Sequence[str],
    words: Mapping[str, Sequence[str]],
) -> RunSummary:
    """Write it, for a training that ended by itself. A disk that refuses is said, and no error."""
    summary = summarise(
        page,
        account,
        HostResult(steps, seconds),
        list_files(run_dir),
        run_id=run_id,
        run_dir=run_dir,
        step_unit=step_unit,
        elapsed_s=seconds,
        configured_l0=configured_l0(config, hooks),
        notices=notices,
        words=words,
    )
    try:
        write_json(summary, run_dir)
    except OSError as error:
        log.warning("%s: no summary.json: %s", run_dir, error)
    return summary


def configured_l0(config: MasterConfig, hooks: Sequence[str]) -> Mapping[str, float]:
    """Label (hook, variant or transcoder) -> the L0 its SAE was configured for, where one was."""
    targets: dict[str, float] = {}
    for sink in config.enabled_sinks.values():
        options = sink.plugin_options()
        if isinstance(options, SAETrainerOptions):
            saes = {c.label: options.for_transcoder(c) for c in options.transcoders}
            for hook in hooks:
                saes |= options.saes_of(hook)
            targets |= {k: sae.wanted_l0 for k, sae in saes.items() if sae.wanted_l0 is not None}
    return targets
