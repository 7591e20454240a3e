"""What may be said of a run's SAEs to everybody: named fields, taken one by one.

Nothing is copied as a whole, neither configuration nor summary: they hold paths, machine names and arguments.
A model is named by its name on the hub, its package or its environment; of a folder, its last part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from asys_bench.config.document import host_options, run_config_data
from asys_bench.contracts.names import file_slug, printable
from asys_bench.contracts.reporter import ReportError
from asys_bench.contracts.run_files import (
    HISTOGRAMS_FILE,
    SUMMARY_FILE,
    RunFileError,
    is_run,
    read_run_file,
)
from asys_bench.monitors.snapshot import parse_key
from asys_bench.reports.run_summary.document import from_dict
from asys_bench.reports.run_summary.summary import RunSummary
from asys_bench.rundir.evaluation_documents import read_evaluations
from asys_bench.sae.exchange import SAEWeights, find_saes, read_saelens
from asys_bench.sae.exchange.export import stored_name
from asys_bench.sae.exchange.weights import ExchangeError
from asys_bench.system.files.below import read_json

METADATA = (
    *("hook_name", "hook_names", "training_architecture", "training_architecture_details"),
    *("outlier_norm", "training_steps", "training_rows", "feature_survival"),
    *("held_out_fvu", "held_out_l0", "held_out_fvu_all"),
    *("context_size", "prepend_bos", "sae_lens_training_version"),
)
"""Entries of an SAE's metadata that are sent; `model_name` comes from the run's configuration."""


@dataclass(frozen=True)
class HubSAE:
    """An SAE as it is sent. metrics: by the names of `card.DEFINITIONS`; what is not known is left out."""

    folder: str
    source: Path
    weights: SAEWeights
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def hook(self) -> str:
        return printable(self.weights.hook_name or self.folder)


@dataclass(frozen=True, slots=True)
class HookCost:
    """What observing cost the host at one hook. share: time in the hook over the host's; None: not known."""

    hook: str
    captured: int
    calls: int
    p50_us: float | None
    p99_us: float | None
    share: float | None


@dataclass(frozen=True)
class RunFacts:
    """What is said of the run that the SAEs come from."""

    model: str = ""
    host: str = ""
    step_unit: str = "step"
    steps: int = 0
    steps_per_s: float | None = None
    trains: bool | None = None
    """Whether the host trained the model meanwhile; None: not known."""
    versions: Mapping[str, str] = field(default_factory=dict)
    costs: tuple[HookCost, ...] = ()


def read_saes(source: Path, run_dir: Path) -> tuple[list[HubSAE], list[ExchangeError]]:
    """The SAEs that `source` means (a run, a folder of SAEs, or one), and those that cannot be sent.

    run_dir: the run that they are of; where it is none, nothing more is known of them.

    Raises:
        ExchangeError: there is none. CheckpointError: one is damaged.
    """
    run = is_run(run_dir)
    summary = _summary(run_dir) if run else None
    evaluations = read_evaluations(run_dir) if run else []
    found, refused = [], []
    for path in find_saes(source):
        try:
            weights = read_saelens(path)
        except ExchangeError as error:
            refused.append(error)
            continue
        name = stored_name(path, weights)
        metrics = (
            _held_out(weights) | _of_summary(summary, name) | _of_evaluation(evaluations, name)
        )
        found.append(HubSAE(name, path, weights, metrics))
    return found, refused


def read_facts(run_dir: Path) -> RunFacts:
    """Of the run in `run_dir`; nothing where it is none."""
    try:
        document = read_run_file(run_dir)
    except RunFileError:
        return RunFacts()
    config, summary = run_config_data(run_dir), _summary(run_dir)
    environment = document.get("environment")
    versions = environment if isinstance(environment, dict) else {}
    host = summary.host if summary is not None else None
    return RunFacts(
        model=model_of(config),
        host=printable(str(_section(config, "host").get("kind", "")))[:64],
        step_unit=printable(str(document.get("step_unit", "step")))[:32],
        steps=host.steps if host is not None else 0,
        steps_per_s=host.steps_per_s if host is not None else None,
        trains=_trains(config),
        versions={
            name: str(versions[name])[:40] for name in ("asys_i", "torch") if name in versions
        },
        costs=tuple(_costs(run_dir, summary)),
    )


def model_of(config: Mapping[str, Any]) -> str:
    """How the observed model is called: its name on the hub, its package or its environment; "" where the
    configuration does not say."""
    kind, options = host_options(config)
    if options.get("env_id"):
        return f"{kind}/{public_name(str(options['env_id']))}"
    return public_name(str(options.get("model") or options.get("entry") or ""))


def public_name(name: str) -> str:
    """`name`, or the last part of what is a path of this machine."""
    if name.startswith(("/", "~", ".")) or "\\" in name or Path(name).expanduser().exists():
        name = PurePath(name.replace("\\", "/")).name
    return printable(name)[:128]


def public_metadata(weights: SAEWeights, model: str) -> dict[str, Any]:
    """The metadata that is sent with an SAE."""
    known = {name: weights.metadata[name] for name in METADATA if name in weights.metadata}
    return {"model_name": model, **known}


def _trains(config: Mapping[str, Any]) -> bool | None:
    kind, options = host_options(config)
    if kind == "transformers":
        return bool(options.get("task") == "train")
    return True if kind == "ppo" else None


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}


def _summary(run_dir: Path) -> RunSummary | None:
    try:
        return from_dict(read_json(run_dir / SUMMARY_FILE, below=run_dir))
    except (OSError, ValueError, ReportError):
        return None


def _held_out(weights: SAEWeights) -> dict[str, float]:
    """What a training from an archive has left in the metadata."""
    names = {"fvu": "held_out_fvu", "fvu_all": "held_out_fvu_all", "l0": "held_out_l0"}
    names["rows_trained"] = "training_rows"
    return _numbers({name: weights.metadata.get(entry) for name, entry in names.items()})


def _of_summary(summary: RunSummary | None, name: str) -> dict[str, float]:
    for sae in summary.saes if summary is not None else ():
        if file_slug(sae.hook) == name:
            return _numbers(
                {
                    "rows_trained": sae.rows_trained,
                    "fvu": sae.fvu,
                    "fvu_all": sae.fvu_all,
                    "l0": sae.l0,
                    "dead_ratio": sae.dead_ratio,
                    "dense_ratio": sae.dense_ratio,
                }
            )
    return {}


def _of_evaluation(evaluations: list[dict[str, Any]], name: str) -> dict[str, float]:
    """Of the newest evaluation of the SAE."""
    found: dict[str, float] = {}
    for one in evaluations:
        if file_slug(str(one["sae"])) != name:
            continue
        for section, value in (("language", "ce_recovered"), ("policy", "return_recovered")):
            modes = one.get(section)
            passed = modes.get("passed") if isinstance(modes, dict) else None
            if isinstance(passed, dict):
                found |= _numbers({value: passed.get(value)})
    return found


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }  # fmt: skip


def _costs(run_dir: Path, summary: RunSummary | None) -> list[HookCost]:
    if summary is None:
        return []
    spent_ns, seconds = _spent_ns(run_dir), summary.host.seconds
    return [
        HookCost(
            printable(hook.hook),
            hook.captured,
            hook.calls,
            hook.latency_p50_us,
            hook.latency_p99_us,
            spent_ns[hook.hook] / 1e9 / seconds if hook.hook in spent_ns and seconds > 0 else None,
        )
        for hook in summary.hooks
    ]


def _spent_ns(run_dir: Path) -> dict[str, int]:
    """Hook -> the time that its captures held up the host."""
    try:
        data = read_json(run_dir / HISTOGRAMS_FILE, below=run_dir)
        found = {}
        for name, one in data["host"].items():
            key = parse_key(name)
            if key.name == "hook_latency_ns":
                found[key.label("hook")] = int(one["sum"])
        return found
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
