"""A run's SAEs put back into its model; what is found is a document of `evaluation_documents`.

The model is made anew from the run's configuration, in the process that evaluates; the run's host is not
asked and not touched. Weights of a host that trains are those that it kept in `<run>/host/`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asys_bench.config.document import run_config_data
from asys_bench.config.sections.sinks import HostConfig
from asys_bench.contracts.host import Evaluated, EvaluatedText, HostError, HostOptions
from asys_bench.contracts.names import file_slug
from asys_bench.contracts.run_files import (
    EVALUATION_SCHEMA,
    HOST_DIR,
    SAE_DIR,
    WEIGHTS_FILE,
    RunFileError,
    read_run_file,
)
from asys_bench.rundir.evaluation_documents import language_found, policy_found, rows_found
from asys_bench.system.files.below import EntryKind, is_file, read_json, scan_if_there
from asys_bench.system.files.sources import bring

if TYPE_CHECKING:
    from asys_bench.sae import SparseAutoencoder
    from asys_bench.sae.evaluation import LanguageDamage, Subject

TOKENS, EPISODES = 8192, 20
"""Evaluated by default."""
ATTEMPTS = 3
"""A host that still trains deletes the weights that are being loaded when it has kept newer ones."""


class EvaluationError(ValueError):
    """It cannot be evaluated; says why and what to do."""


@dataclass(frozen=True)
class Target:
    """An SAE and the hook that it was trained at."""

    label: str
    hook: str
    folder: Path
    """Of one checkpoint."""
    module: str
    """Its name in the model."""
    at: str = "activation"
    """What of the module: `activation` or `input`."""
    select: int | str | None = None
    row_dim: int = -1


@dataclass(frozen=True)
class Weights:
    """What the host kept of its model. folder None: the weights that it began with and never changes."""

    folder: Path | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


# What there is in a run.

SEVERAL = (
    "is an SAE of several hooks (a transcoder or crosscoder); evaluate puts back SAEs of one hook. Its FVU "
    "is in the summary and, live, in metrics.csv"
)


def run_targets(
    run_dir: Path, label: str | None = None, checkpoint: str | None = None
) -> list[Target]:
    """The newest checkpoint of each SAE of a run that sits at one hook.

    label: this one alone. checkpoint: name of the folder, such as `step_000001234`, instead of the newest.

    Raises:
        EvaluationError: there is none, or it is of a hook that cannot be replaced.
    """
    from asys_bench.sae.checkpoint.checkpoint_store import CheckpointStore

    try:
        document = read_run_file(run_dir)
    except RunFileError as error:
        raise EvaluationError(str(error)) from None
    config = run_config_data(run_dir)
    streams = {s["name"]: s for s in document.get("streams", ()) if isinstance(s, dict)}
    found, why = [], ""
    for name, hook in _labels(config, document["hooks"]).items():
        store = run_dir / SAE_DIR / file_slug(name)
        folder = CheckpointStore(store).latest() if checkpoint is None else store / checkpoint
        if label not in (None, name) or folder is None or not folder.is_dir():
            continue
        stream = streams.get(hook, {"module": hook, "kind": "activation"})
        if stream.get("kind") not in ("activation", "input"):
            why = f"{name}: {stream.get('kind')} is no part of a forward pass that can be replaced"
            continue
        channels = stream.get("rows") == "channels"
        found.append(
            Target(
                name, hook, folder, str(stream["module"]), str(stream["kind"]),
                _select(stream), 1 if channels else -1,
            )
        )  # fmt: skip
    if not found and label is not None and file_slug(label) in of_several_hooks(run_dir):
        raise EvaluationError(f"{run_dir}: {label!r} {SEVERAL}")
    if not found:
        which = f"no SAE {label!r}" if label is not None else "no SAE of a single hook"
        raise EvaluationError(f"{run_dir}: {why or which + ' has a checkpoint there'}")
    return found


def of_several_hooks(run_dir: Path) -> list[str]:
    """Folders of the run's transcoders and crosscoders, which `run_targets` leaves out.

    Raises:
        EvaluationError: it is no run.
    """
    try:
        hooks = read_run_file(run_dir)["hooks"]
    except RunFileError as error:
        raise EvaluationError(str(error)) from None
    single = {file_slug(name) for name in _labels(run_config_data(run_dir), hooks)}
    folders = [path for path, kind in scan_if_there(run_dir / SAE_DIR, below=run_dir)
               if kind is EntryKind.FOLDER]  # fmt: skip
    return sorted(path.name for path in folders if path.name not in single)


def _labels(config: Mapping[str, Any], hooks: Sequence[str]) -> dict[str, str]:
    """Label of an SAE -> its hook."""
    sinks = config.get("sinks")
    variants = {
        str(variant)
        for sink in (sinks.values() if isinstance(sinks, dict) else ())
        if isinstance(sink, dict) and isinstance(sink.get("options"), dict)
        for variant in sink["options"].get("variants") or ()
    }
    return {
        name: hook for hook in hooks for name in (hook, *(f"{hook}#{v}" for v in sorted(variants)))
    }


def _select(stream: Mapping[str, Any]) -> int | str | None:
    found = stream.get("select")
    return found if isinstance(found, int | str) else None


def kept_weights(run_dir: Path) -> Weights | None:
    """The newest weights that the run's host kept."""
    from asys_bench.sae.checkpoint.checkpoint_store import CheckpointStore

    found = CheckpointStore(run_dir / HOST_DIR, below=run_dir).checkpoints()
    for folder in [*found, *_earlier_weights(run_dir)]:
        if is_file(folder / WEIGHTS_FILE, below=run_dir):
            with suppress(OSError):  # of a copy; the host's plugin says what is missing
                bring(folder)
            return Weights(folder, read_json(folder / WEIGHTS_FILE, below=run_dir))
    return None


def _earlier_weights(run_dir: Path) -> list[Path]:
    """Folders as versions before checksums named them, the newest first."""
    entries = scan_if_there(run_dir / HOST_DIR, below=run_dir)
    found = [
        entry.path for entry in entries
        if entry.kind is EntryKind.FOLDER and re.fullmatch(r"weights_\d{9,}", entry.path.name)
    ]  # fmt: skip
    return sorted(found, key=lambda path: int(path.name.removeprefix("weights_")), reverse=True)


def run_model(run_dir: Path, options: Mapping[str, Any]) -> tuple[Evaluated, Weights]:
    """The model of a run, with the newest weights that its host kept.

    options: of the host, instead of the run's own; with another `model` its weights are taken.

    Raises:
        EvaluationError: its host's model is known to the host alone, or it trained and kept no weights.
        HostError: it cannot be loaded.
    """
    from asys_bench.registry import PluginError

    config = run_config_data(run_dir)
    try:
        host = HostConfig.model_validate(config.get("host", {}))
        plugin = host.plugin()
        given = host.plugin_options()
    except (ValueError, PluginError) as error:
        raise EvaluationError(f"{run_dir}: its host is not known here: {error}") from None
    if plugin.evaluated is None:
        raise EvaluationError(
            f"{run_dir}: the model of a host {plugin.name!r} is known to the host alone; name one of "
            "its SAEs and, for a language model, --model, --hook and --text"
        )
    given = _changed(given, options)
    seed = int(config.get("run", {}).get("seed", 0))
    if not given.trains or "model" in options:
        return plugin.evaluated(given, seed, None), Weights()
    for _ in range(ATTEMPTS):
        kept = kept_weights(run_dir)
        if kept is None:
            break
        try:
            return plugin.evaluated(given, seed, kept.folder), kept
        except HostError as error:
            problem = error
            if kept.folder is None or kept.folder.is_dir():
                raise
    else:
        raise problem
    raise EvaluationError(
        f"{run_dir}: its host trained the model and kept no weights; set host.keep_weights: true for the "
        "next run, or name trained weights with --model"
    )


def _changed(options: HostOptions, changes: Mapping[str, Any]) -> HostOptions:
    unknown = [name for name in changes if name not in type(options).model_fields]
    if unknown:
        raise EvaluationError(f"the host of this run has no option {unknown[0]!r}")
    return type(options).model_validate(options.model_dump(exclude_unset=True) | dict(changes))


# Measuring.


@dataclass(frozen=True)
class TargetSAE:
    """A target that was read: its folder may be gone by the time that the model is there."""

    target: Target
    sae: SparseAutoencoder
    about: Mapping[str, Any]


def read_targets(targets: Sequence[Target]) -> list[TargetSAE]:
    """Their SAEs.

    Raises:
        EvaluationError: one cannot be read, or is of two hooks.
    """
    from asys_bench.sae import CheckpointError
    from asys_bench.sae.exchange import ExchangeError, import_sae

    found = []
    for target in targets:
        try:
            folder = target.folder.resolve()
            sae, metadata = import_sae(folder)
            written_ns = folder.stat().st_mtime_ns
        except (CheckpointError, ExchangeError, OSError) as error:
            raise EvaluationError(str(error)) from None
        if sae.name == "skip_transcoder":  # a crosscoder is refused by whoever reads it
            raise EvaluationError(
                f"{target.label}: a {sae.name} is of several hooks; SAEs of one hook can be evaluated"
            )
        about = {
            "schema": EVALUATION_SCHEMA,
            "sae": target.label,
            "hook": target.hook,
            "checkpoint": str(folder),
            "architecture": sae.name,
            "d_sae": sae.d_sae,
            "steps": metadata.get("training_steps"),
            "checkpoint_unix_ns": written_ns,
        }
        found.append(TargetSAE(target, sae.eval(), about))
    return found


def evaluate_targets(
    evaluated: Evaluated,
    targets: Sequence[TargetSAE],
    weights: Weights | None = None,
    *,
    tokens: int = TOKENS,
    episodes: int = EPISODES,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """A document per SAE (schema `asys.evaluation/1`).

    Raises:
        EvaluationError: an SAE does not fit its module.
    """
    from asys_bench.sae.evaluation import Subject

    subjects = {
        one.target.label: Subject(_place(evaluated, one.target), one.sae) for one in targets
    }
    try:
        if isinstance(evaluated, EvaluatedText):
            found = _of_text(evaluated, subjects, tokens)
        else:
            found = _of_agent(evaluated, subjects, episodes, seed)
    except ValueError as error:
        raise EvaluationError(str(error)) from None
    shared = {
        "evaluated_unix_ns": time.time_ns(),
        "weights": dict(weights.about) if weights is not None else {},
        "model": dict(evaluated.about),
    }
    return [{**one.about, **shared, **found[one.target.label]} for one in targets]


def _place(evaluated: Evaluated, target: Target) -> Any:
    from asys_bench.sae.evaluation import Place

    modules = dict(evaluated.model.named_modules())
    module = modules.get(target.module)
    if module is None:
        from difflib import get_close_matches

        close = get_close_matches(target.module, [name for name in modules if name], n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise EvaluationError(f"the model has no module {target.module!r}{hint}")
    at = "input" if target.at == "input" else "output"
    return Place(module, at, target.select, target.row_dim)  # type: ignore[arg-type]


def _of_text(
    evaluated: EvaluatedText, subjects: Mapping[str, Subject], tokens: int
) -> dict[str, dict[str, Any]]:
    from asys_bench.sae.evaluation import language_damage, language_rows

    batches = list(evaluated.batches(tokens))
    rows = language_rows(evaluated.run, batches, subjects)
    damage: Mapping[str, LanguageDamage] = {}
    if evaluated.logits is not None:
        means = {name: found.mean_D for name, found in rows.items()}
        damage = language_damage(evaluated.logits, batches, subjects, means)
    return {
        name: {
            "rows": rows_found(rows[name]),
            "language": language_found(damage[name]) if name in damage else None,
        }
        for name in subjects
    }


def _of_agent(
    evaluated: Any, subjects: Mapping[str, Subject], episodes: int, seed: int
) -> dict[str, dict[str, Any]]:
    from asys_bench.sae.evaluation import agent_damage

    found = agent_damage(
        evaluated.agent, evaluated.environment, subjects, episodes=episodes, seed=seed
    )
    return {
        name: {"rows": rows_found(one.rows), "policy": policy_found(one)}
        for name, one in found.items()
    }
