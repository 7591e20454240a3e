"""`start_from`: SAEs that exist as the beginning of a training."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from asys_bench.contracts.names import file_slug, matches
from asys_bench.contracts.run_files import SAE_DIR
from asys_bench.contracts.sink import Misfit
from asys_bench.sae import CheckpointError, SAEConfig, SAETrainer, SparseAutoencoder
from asys_bench.sae.checkpoint.checkpoint_store import CheckpointStore
from asys_bench.sae.config import OF_SEVERAL_HOOKS
from asys_bench.sae.exchange import (
    ExchangeError,
    adopt_when_filled,
    format_of,
    import_sae,
    own_outliers,
)
from asys_bench.sae.exchange.export import shelf
from asys_bench.sae.exchange.hub import from_hub, is_hub

log = logging.getLogger(__name__)
_BECOMES = {"jumprelu": ("jumprelu", "batchtopk", "matryoshka")}
"""Architecture of a checkpoint -> those that can go on from it, where it is not only itself."""


def place_of(path: str) -> Path:
    """A folder of this machine; what is on the hub is fetched.

    Raises:
        ExchangeError: the hub does not give it.
    """
    return from_hub(path) if is_hub(path) else Path(path).expanduser()


def missing(saes: Mapping[str, str], fix: str) -> Iterator[Misfit]:
    """The entries of an option `saes` (glob -> folder, or place on the hub) whose folder is not there."""
    for glob, folder in saes.items():
        found = missing_at(("options", "saes", glob), folder, fix)
        if found is not None:
            yield found


def missing_at(path: tuple[str | int, ...], folder: str, fix: str) -> Misfit | None:
    """What is wrong with `folder`, which stands at `path` of a sink's section; None: it is there."""
    try:
        if folder and place_of(folder).is_dir():
            return None
    except ExchangeError as error:
        return Misfit(path, error.reason, folder, error.alternative)
    return Misfit(path, "no such folder", folder, fix)


class StartFrom(BaseModel, extra="forbid", frozen=True):
    """An SAE on disk, or on the Hugging Face hub."""

    path: str = Field(
        min_length=1,
        description="folder of an SAE; or a run, or a folder of SAEs, of which the one named after "
        "the hook is taken; `hf://org/name` and `hf://org/name/folder` are fetched from the Hugging Face hub",
    )
    format: Literal["auto", "saelens", "sparsify", "dictionary_learning"] = Field(
        "auto", description="who wrote it; auto tells by the files"
    )

    @property
    def place(self) -> Path:
        """`place_of` the path."""
        return place_of(self.path)

    def folder_for(self, label: str) -> Path:
        """The folder of the SAE for `label` (a hook, `<hook>#<variant>` or `<input>-><output>`).

        Raises:
            ExchangeError: there is none.
        """
        path, slug = self.place, file_slug(label)
        for folder in (path / SAE_DIR / slug, path / slug, path):
            if folder.is_dir():
                found = _sae_in(folder)
                if found is not None:
                    return found
        held = shelf(path)
        if not held.is_dir():
            raise ExchangeError(self.path, "no such folder", "name the folder of an SAE, or a run")
        names = sorted(entry.name for entry in held.iterdir() if entry.is_dir())
        raise ExchangeError(
            self.path,
            f"no SAE is there, and none of {label!r} among {names}",
            "name the folder that holds the SAE's files",
        )

    def read(self, label: str) -> SparseAutoencoder:
        """The SAE for `label`, of raw rows.

        Raises:
            ExchangeError, CheckpointError: it is not there, damaged, or cannot be taken over.
        """
        return import_sae(self.folder_for(label), self.format)[0]


def read_of_one_hook(folder: str, hook: str) -> SparseAutoencoder:
    """The SAE for `hook` in a folder, as `StartFrom.read`, for who has the rows of this hook alone.

    Raises:
        ExchangeError, CheckpointError: as `StartFrom.read`; or it takes the rows of several hooks.
    """
    sae = StartFrom(path=folder).read(hook)
    if sae.name in OF_SEVERAL_HOOKS:
        raise ExchangeError(
            folder,
            f"a {sae.name} needs the rows of other hooks too",
            f"name an SAE of {hook} alone",
        )
    return sae


def _by_hook(value: object) -> object:
    """`{path, format}` alone is for every hook, and a text is a path."""
    if isinstance(value, str):
        return {"*": {"path": value}}
    if not isinstance(value, Mapping):
        return value
    if "path" in value and set(value) <= set(StartFrom.model_fields):
        value = {"*": value}
    return {k: {"path": v} if isinstance(v, str) else v for k, v in value.items()}


_ONE: dict[str, Any] = StartFrom.model_json_schema()
StartsByHook = Annotated[
    dict[str, StartFrom],
    BeforeValidator(_by_hook),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                _ONE,
                {"type": "object", "additionalProperties": {"anyOf": [{"type": "string"}, _ONE]}},
            ]
        }
    ),
]
"""fnmatch glob over hooks -> where to start from."""


def start_for(starts: Mapping[str, StartFrom], label: str, hook: str) -> StartFrom | None:
    """The last entry whose glob matches the SAE's label or its hook."""
    found = [start for glob, start in starts.items() if _matches(glob, label, hook)]
    return found[-1] if found else None


def _matches(glob: str, *names: str) -> bool:
    return any(matches(name, glob) for name in names)


def fitted(config: SAEConfig, sae: SparseAutoencoder, what: str) -> SAEConfig:
    """`config` with the number of features of `sae` and its rule for outliers, where it does not ask
    for one itself.

    Raises:
        ExchangeError: it asks for another architecture or number of features.
    """
    if config.architecture not in _BECOMES.get(sae.name, (sae.name,)):
        valid = " or ".join(_BECOMES.get(sae.name, (sae.name,)))
        raise ExchangeError(
            what,
            f"it is {sae.name}, and sae.architecture is {config.architecture}",
            f"set sae.architecture: {valid}",
        )
    asked = SAEConfig.model_fields["expansion_factor"].default != config.expansion_factor
    wanted = config.d_sae or (config.features(sae.d_in) if asked else sae.d_sae)
    if wanted != sae.d_sae:
        raise ExchangeError(
            what,
            f"it has {sae.d_sae} features, and sae.{'d_sae' if config.d_sae else 'expansion_factor'} "
            f"asks for {wanted}",
            f"set sae.d_sae: {sae.d_sae}, or leave both out",
        )
    try:
        sized = SAEConfig.model_validate(config.model_dump() | {"d_sae": sae.d_sae})
    except ValueError as error:
        raise ExchangeError(what, str(error), f"set sae.k to at most {sae.d_sae}") from None
    return own_outliers(sized, sae)


def unusable(
    starts: Mapping[str, StartFrom], configs: Mapping[str, Mapping[str, SAEConfig]]
) -> Iterator[tuple[str, StartFrom, ExchangeError | CheckpointError]]:
    """The entries whose SAE cannot be read, or fits none of what is configured, and why.

    configs: glob of an entry -> label -> configuration of the SAEs that it may be for.
    """
    for glob, start in starts.items():
        place: Path | None = None  # looked for once: a hub that does not answer is waited for
        for label, config in configs[glob].items():
            try:
                place = place or start.place
                fitted(config, start.read(label), start.path)
            except (ExchangeError, CheckpointError) as error:
                if place is not None and _is_pattern(glob) and _holds_many(place):
                    continue  # which of them is for which hook is known when the model is there
                yield glob, start, error
                break


def _is_pattern(glob: str) -> bool:
    return any(letter in glob for letter in "*?[")


def _holds_many(place: Path) -> bool:
    """It is a run or a folder of SAEs, not one of them."""
    held = shelf(place)
    if not held.is_dir() or _sae_in(held) is not None:
        return False
    return any(entry.is_dir() and _sae_in(entry) is not None for entry in held.iterdir())


def _sae_in(folder: Path) -> Path | None:
    """This folder, if it is an SAE, or the newest checkpoint in it."""
    return folder if format_of(folder) else CheckpointStore(folder).latest()


class Beginning:
    """An SAE that waits for a trainer's first rows, which give the input scale."""

    def __init__(self, start: StartFrom, label: str, config: SAEConfig) -> None:
        """`config` is what the trainer is to be made with.

        Raises:
            ExchangeError, CheckpointError: it cannot be read or does not fit.
        """
        self._path, self._sae = start.path, start.read(label)
        self.config = fitted(config, self._sae, start.path)
        theirs = self._sae.config.k
        if self._sae.name == "topk" and theirs != self.config.k:
            log.warning("%s: trained with k %d, goes on with %d", label, theirs, self.config.k)

    def begin(self, trainer: SAETrainer, fill_ratio: float) -> bool:
        """Hand it over once the reservoir is that full; whether it was.

        Raises:
            ExchangeError: rows of another width.
        """
        if not adopt_when_filled(trainer, self._sae, fill_ratio):
            return False
        log.info("%s: goes on from %s", trainer.hook_name, self._path)
        return True
