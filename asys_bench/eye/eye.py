"""`Eye`: what the pages can ask about one run. Everything here reads, but for `mark`.

One thread answers about the run, others about features, and none of them is the server's. What takes seconds,
the reading of an SAE's features, has a thread of its own (`views`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from asys_bench.config.document import host_options, run_config_data
from asys_bench.contracts.run_files import RunFileError, read_run_file
from asys_bench.eye.archive_features import ArchiveFeatures
from asys_bench.eye.births import births_document
from asys_bench.eye.curves import Curves
from asys_bench.eye.features import MOST_EXAMPLES, Document
from asys_bench.eye.index_features import IndexFeatures, open_index
from asys_bench.eye.logits import NoLogitsError, Unembedding, read_unembedding
from asys_bench.eye.marks import Change, Mark, Marks, MarksError
from asys_bench.eye.probe_links import probe_links
from asys_bench.eye.proposed import Names, ProposedNames
from asys_bench.eye.sae_view import SaeView, lives_in
from asys_bench.eye.views import VIEWS, WAIT_S, NotYetError, Told, Views
from asys_bench.eye.watch import RunWatch
from asys_bench.reports.run_report.analysis import NothingToLookAtError
from asys_bench.reports.run_report.inputs import read_vocabulary
from asys_bench.rundir.feature_index import FeatureIndex, indexed_hooks
from asys_bench.rundir.live_run import ReadingError
from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError
from asys_bench.sae.checkpoint.checkpoint_store import latest_checkpoint
from asys_bench.sae.checkpoint.lives import Lives
from asys_bench.sae.checkpoint.native_format import load_sae
from asys_bench.sae.exchange import ExchangeError, import_sae
from asys_bench.sinks.archive.sidecar import ArchiveError
from asys_bench.system.files.below import is_folder

TRIES = 4
CHECKPOINTS_S = 2.0
"""How old the names of the newest checkpoints may be."""


class NotThereError(LookupError):
    """There is no such SAE or feature in this run; says so."""


class Eye:
    """Of the run in `run_dir`. `figures`, `curves` and `births` in one thread, the others in any."""

    def __init__(self, run_dir: Path, wait_s: float = WAIT_S) -> None:
        """wait_s: how long a question waits for features that are being read."""
        self.run_dir = run_dir
        self._watch, self._curves = RunWatch(run_dir), Curves(run_dir)
        self._marks, self._names = Marks(run_dir), ProposedNames(run_dir)
        self._views, self._wait_s = Views(self._read), wait_s
        self._named: dict[str, None] = {}
        """SAEs that the run's figures have named."""
        self._newest: tuple[float, dict[str, str]] = -math.inf, {}
        """When checkpoints were looked for, and what there was."""

    def close(self) -> None:
        self._watch.close()
        self._views.close()

    def begin(self) -> None:
        """Somebody looks: read the features of the first SAE, if none are there."""
        for label in list(self._checkpoints([]))[:1]:
            if self._views.there(label) is None:
                with suppress(NotYetError, NotThereError):
                    self._view(label, 0.0)

    # ---- the run

    def figures(self) -> Document:
        """The run now, and its SAEs with the names of their newest checkpoints."""
        found = self._watch.document()
        told = [str(one["sae"]) for one in found.get("saes", ())]
        return {**found, "checkpoints": self._checkpoints(told)}

    def curves(self) -> list[Document]:
        self._curves.read_on()
        return self._curves.charts()

    def births(self, label: str) -> Document:
        """The timeline of an SAE beside the host's curves and the alarms."""
        checkpoint = self._checkpoint(label)
        self._curves.read_on()
        view = self._views.there(label)
        features = view.features if view is not None else None
        words = features.words() if features is not None else ()
        found = births_document(self.run_dir, label, lives_in(checkpoint), words)
        return {**found, "curves": self._curves.over_steps(), "alarms": self._watch.alarms()}

    def _checkpoints(self, told: list[str]) -> dict[str, str]:
        """SAE -> its newest checkpoint. Once there is one, they are looked for every `CHECKPOINTS_S`.

        told: SAEs that the run's figures name.
        """
        now_s = time.monotonic()
        is_new = any(one not in self._named for one in told)
        self._named.update(dict.fromkeys(told))
        looked_s, found = self._newest
        if is_new or not found or now_s - looked_s >= CHECKPOINTS_S:
            found = self._look_for_checkpoints()
            self._newest = now_s, found
        return dict(found)

    def _look_for_checkpoints(self) -> dict[str, str]:
        try:
            hooks = list(map(str, read_run_file(self.run_dir)["hooks"]))
        except RunFileError:
            hooks = []
        found = {}
        for label in dict.fromkeys([*hooks, *list(self._named), *self._curves.saes()]):
            try:
                checkpoint = latest_checkpoint(self.run_dir, label)
            except OSError:
                continue
            if checkpoint is not None:
                found[label] = checkpoint.name
        with suppress(ReadingError):
            for hook in indexed_hooks(self.run_dir):
                folder = self._indexed_sae(hook) if hook not in found else None
                if folder is not None:
                    found[hook] = folder.name
        return found

    def _indexed_sae(self, label: str) -> Path | None:
        """The folder of an SAE that this run did not train, and has an index of its features."""
        index = open_index(self.run_dir, label)
        folder = Path(index.sae) if index is not None else None
        return folder if folder is not None and folder.is_absolute() and folder.is_dir() else None

    def _checkpoint(self, label: str) -> Path:
        """Raises NotThereError."""
        try:
            found = latest_checkpoint(self.run_dir, label)
        except (OSError, ValueError):
            found = None
        found = found or self._indexed_sae(label)
        if found is None:
            raise NotThereError("this run has no SAE of that name, or no checkpoint of it yet")
        return found

    # ---- its features

    def table(self, label: str) -> Document:
        view = self._view(label)
        marks, names, problem = self._called(view)
        return {**view.table(marks, names), "marks_problem": problem}

    def table_text(self, label: str) -> str:
        """The same as JSON."""
        view = self._view(label)
        marks, names, problem = self._called(view)
        return view.table_text(marks, problem, names)

    def decoder_map_text(self, label: str) -> str:
        """As JSON. Raises NotThereError; NotYetError."""
        return self._view(label, 0.0).decoder_map_text()

    def view(self, label: str) -> SaeView:
        """An SAE with its features. Raises NotThereError; NotYetError."""
        return self._view(label)

    def marks(self, label: str) -> Mapping[int, Mark]:
        """What people say of its features. Raises MarksError."""
        return self._marks.of(label)

    def labels(self) -> list[str]:
        """SAEs that have a checkpoint; in the thread of `curves`."""
        self._curves.read_on()
        return list(self._checkpoints([]))

    def some_features(
        self, view: SaeView, numbers: Sequence[int], most: tuple[int, int]
    ) -> Iterator[Document]:
        """`feature` of each of these, with so many top and random examples at the most."""
        marks, names, problem = self._called(view)
        told = view.some_features(numbers, marks, self._unembedding, self._vocabulary, most, names)
        return ({**one, "marks_problem": problem} for one in told)

    def latest(self, label: str, number: int) -> Document:
        """When a feature fired last, as the index says twice a second. Raises as `feature`."""
        view = self._views.there(label) or self._view(label, 0.0)
        self._must_have(view, number)
        features = view.features
        if not isinstance(features, IndexFeatures):
            return {"latest": None}
        return {"latest": features.latest(self.run_dir, number)}

    def feature(self, label: str, number: int) -> Document:
        """Raises NotThereError; ArchiveError: the archive cannot be read any more."""
        view = self._view(label)
        self._must_have(view, number)
        most = (MOST_EXAMPLES, MOST_EXAMPLES)
        (found,) = self.some_features(view, [number], most)
        return found

    def search(self, text: str) -> Document:
        """Over the SAEs of the run whose features are in memory; of others the first `VIEWS`. Those that are
        being read are under `waiting`, and are searched when they are asked for again."""
        labels = list(self._checkpoints([]))
        known = [label for label in labels if self._views.there(label) is not None]
        chosen = [*known, *(label for label in labels if label not in known)][:VIEWS]
        views, waiting = [], []
        for label in chosen:
            try:
                views.append(self._view(label, 0.0))
            except NotYetError as error:
                waiting.append(f"{label}: {error}")
        begun = time.perf_counter()
        found = [one for view in views for one in view.find(text, *self._called(view)[:2])]
        return {
            "found": found,
            "features": sum(view.sae.d_sae for view in views),
            "saes": chosen,
            "waiting": waiting,
            "left_out": [label for label in labels if label not in chosen],
            "took_ms": round(1e3 * (time.perf_counter() - begun), 1),
            "problem": "; ".join(view.problem for view in views if view.problem),
        }

    def typed(self, label: str, found: Document) -> Document:
        """What `typed.process` says of a text, with what each feature is called. Raises NotThereError."""
        view = self._view(label)
        marks, names, problem = self._called(view)
        finder = view.finder()
        features = [
            {**one, **finder.told(one["feature"], marks, names)} for one in found["features"]
        ]
        return {**found, "sae": label, "features": features, "marks_problem": problem}

    def mark(self, change: Change) -> Document:
        """Raises NotThereError; MarksError: it is not kept."""
        self._must_have(self._view(change.sae), change.feature)
        return self._marks.change(change).model_dump()

    @staticmethod
    def _must_have(view: SaeView, number: int) -> None:
        if not 0 <= number < view.sae.d_sae:
            raise NotThereError(f"this SAE has features 0 to {view.sae.d_sae - 1:,}")

    def _called(self, view: SaeView) -> tuple[Mapping[int, Mark], Names, str]:
        """(marks, proposed names, what cannot be read of them)."""
        names, problem = self._names.of(view.label, view.generation)
        try:
            return self._marks.of(view.label), names, problem
        except MarksError as error:
            return {}, names, "; ".join(filter(None, (str(error), problem)))

    def _view(self, label: str, wait_s: float | None = None) -> SaeView:
        """The newest one that is read in time. Raises NotThereError; NotYetError."""
        self._checkpoint(label)
        return self._views.get(label, self._wait_s if wait_s is None else wait_s)

    def _read(self, label: str, before: SaeView | None, told: Told) -> SaeView:
        """The newest view of an SAE; `before`, where there is nothing new."""
        told("its newest checkpoint")
        checkpoint = self._checkpoint(label)
        index = open_index(self.run_dir, label)
        if before is not None and before.checkpoint == checkpoint:
            if not _has_more(before, index):
                return before
            view = replace(
                before,
                features=None,
                problem="",
                _finder=None,
                _table=None,
            )
        else:
            checkpoint, sae, lives, metadata = self._load(label, checkpoint)
            hook = str(metadata.get("hook_name") or label)
            view = SaeView(label, checkpoint, sae, lives, None, hook=hook)
        self._add_features(view, index, told)
        told("what probes read in them")
        if view.features is not None:
            view.probes = probe_links(self.run_dir, view.hook, view.sae, view.features.mean_F)
        view.prepare()
        return view

    def _add_features(self, view: SaeView, index: FeatureIndex | None, told: Told) -> None:
        if index is not None and index.d_sae == view.sae.d_sae:
            told("the feature index")
            view.features = IndexFeatures(index, self._vocabulary)
            return
        told("archived rows")
        try:
            view.features = ArchiveFeatures.open(
                self.run_dir, view.hook, view.sae, self._vocabulary, self._environment_id, told
            )
        except (NothingToLookAtError, ArchiveError, CheckpointError, OSError) as error:
            view.problem = str(error)

    def _load(
        self, label: str, checkpoint: Path
    ) -> tuple[Path, SparseAutoencoder, Lives | None, Mapping[str, Any]]:
        """A whole checkpoint: a trainer may remove one while it is read, as it has a newer one then."""
        for last in range(TRIES - 1, -1, -1):
            try:
                own = checkpoint.is_relative_to(self.run_dir)
                sae, metadata = load_sae(checkpoint) if own else (import_sae(checkpoint)[0], {})
                lives = lives_in(checkpoint)
            except (CheckpointError, ExchangeError, OSError) as error:
                if not last:
                    message = f"its newest checkpoint cannot be read: {error}"
                    raise NotThereError(message) from error
            else:
                if not last or not own or is_folder(checkpoint, below=self.run_dir):
                    fits = lives is not None and lives.features == sae.d_sae
                    sae = sae.eval().requires_grad_(False)
                    return checkpoint, sae, lives if fits else None, metadata
            checkpoint = self._checkpoint(label)
        raise AssertionError

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        return run_config_data(self.run_dir)

    @cached_property
    def _vocabulary(self) -> Mapping[int, str]:
        return read_vocabulary(self.run_dir)

    @property
    def _environment_id(self) -> str:
        """The gymnasium environment of an RL host, or an empty string."""
        return str(host_options(self._config)[1].get("env_id", ""))

    @cached_property
    def _unembedding(self) -> Unembedding | str:
        try:
            return read_unembedding(self.run_dir, self._config)
        except NoLogitsError as error:
            return str(error)


def _has_more(view: SaeView, index: FeatureIndex | None) -> bool:
    """Whether there is more to see of the same checkpoint: the index was written anew, or rows came."""
    if isinstance(view.features, IndexFeatures):
        return index is not None and not view.features.is_of(index)
    fits = index is not None and index.d_sae == view.sae.d_sae
    return fits or bool(view.problem)
