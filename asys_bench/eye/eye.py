"""`Eye`: what the pages can ask about one run. Everything here reads, but for `mark`.

Two threads answer: one for figures of the run, one for features (torch), so that a table that takes seconds
to make holds no figure up. Neither is the server's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from asys_bench.config.document import run_config_data
from asys_bench.contracts.run_files import RunFileError, read_run_file
from asys_bench.eye.archive_features import ArchiveFeatures
from asys_bench.eye.births import births_document
from asys_bench.eye.curves import Curves
from asys_bench.eye.features import Document, Features
from asys_bench.eye.index_features import IndexFeatures, open_index
from asys_bench.eye.logits import NoLogitsError, Unembedding, read_unembedding
from asys_bench.eye.marks import Change, Mark, Marks, MarksError
from asys_bench.eye.sae_view import SaeView, lives_in
from asys_bench.eye.watch import RunWatch
from asys_bench.reports.run_report.analysis import NothingToLookAtError
from asys_bench.reports.run_report.inputs import read_vocabulary
from asys_bench.sae.architectures.base import SparseAutoencoder
from asys_bench.sae.checkpoint.checkpoint_files import CheckpointError
from asys_bench.sae.checkpoint.checkpoint_store import latest_checkpoint
from asys_bench.sae.checkpoint.lives import Lives
from asys_bench.sae.checkpoint.native_format import load_sae
from asys_bench.sinks.archive.sidecar import ArchiveError
from asys_bench.system.files.below import is_folder

FRESH_S = {"index": 5.0, "archive": 30.0}
"""A table is made anew for a newer checkpoint, or index, at most this often."""
VIEWS = 2
"""SAEs whose features are in memory."""
FEATURE_S = 30.0
TRIES = 4


class NotThereError(LookupError):
    """There is no such SAE or feature in this run; says so."""


class Eye:
    """Of the run in `run_dir`. `figures`, `curves` and `births` in one thread, the others in another."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._watch, self._curves = RunWatch(run_dir), Curves(run_dir)
        self._marks = Marks(run_dir)
        self._views: dict[str, tuple[float, SaeView]] = {}

    def close(self) -> None:
        self._watch.close()

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
        kept = self._views.get(label)
        features = kept[1].features if kept is not None else None
        words = features.words() if features is not None else ()
        found = births_document(self.run_dir, label, lives_in(checkpoint), words)
        return {**found, "curves": self._curves.over_steps(), "alarms": self._watch.alarms()}

    def _checkpoints(self, told: list[str]) -> dict[str, str]:
        """SAE -> its newest checkpoint."""
        try:
            hooks = list(map(str, read_run_file(self.run_dir)["hooks"]))
        except RunFileError:
            hooks = []
        found = {}
        for label in dict.fromkeys([*hooks, *told, *self._curves.saes()]):
            try:
                checkpoint = latest_checkpoint(self.run_dir, label)
            except OSError:
                continue
            if checkpoint is not None:
                found[label] = checkpoint.name
        return found

    def _checkpoint(self, label: str) -> Path:
        """Raises NotThereError."""
        try:
            found = latest_checkpoint(self.run_dir, label)
        except (OSError, ValueError):
            found = None
        if found is None:
            raise NotThereError("this run has no SAE of that name, or no checkpoint of it yet")
        return found

    # ---- its features

    def table(self, label: str) -> Document:
        view = self._view(label)
        marks, problem = self._marks_of(label)
        return {**view.table(marks), "marks_problem": problem}

    def decoder_map(self, label: str) -> Document:
        """Raises NotThereError."""
        return self._view(label, FEATURE_S).decoder_map()

    def feature(self, label: str, number: int) -> Document:
        """Raises NotThereError; ArchiveError: the archive cannot be read any more."""
        view = self._view(label, FEATURE_S)
        if not 0 <= number < view.sae.d_sae:
            raise NotThereError(f"this SAE has features 0 to {view.sae.d_sae - 1:,}")
        marks, problem = self._marks_of(label)
        mark = marks.get(number, Mark())
        found = view.feature(number, mark, self._unembedding, self._vocabulary)
        return {**found, "marks_problem": problem}

    def search(self, text: str) -> Document:
        """Over the SAEs of the run whose features are in memory; of others the first `VIEWS`."""
        labels = list(self._checkpoints([]))
        known = [label for label in labels if label in self._views]
        chosen = [*known, *(label for label in labels if label not in known)][:VIEWS]
        views = [self._view(label, FEATURE_S) for label in chosen]
        begun = time.perf_counter()
        found = [one for view in views for one in view.find(text, self._marks_of(view.label)[0])]
        return {
            "found": found,
            "features": sum(view.sae.d_sae for view in views),
            "saes": chosen,
            "left_out": [label for label in labels if label not in chosen],
            "took_ms": round(1e3 * (time.perf_counter() - begun), 1),
            "problem": "; ".join(view.problem for view in views if view.problem),
        }

    def mark(self, change: Change) -> Document:
        """Raises NotThereError; MarksError: it is not kept."""
        view = self._view(change.sae, FEATURE_S)
        if change.feature >= view.sae.d_sae:
            raise NotThereError(f"this SAE has features 0 to {view.sae.d_sae - 1:,}")
        return self._marks.change(change).model_dump()

    def _marks_of(self, label: str) -> tuple[Mapping[int, Mark], str]:
        try:
            return self._marks.of(label), ""
        except MarksError as error:
            return {}, str(error)

    def _view(self, label: str, fresh_s: float = 0.0) -> SaeView:
        """fresh_s: one that is no older will do. Raises NotThereError."""
        checkpoint = self._checkpoint(label)
        known = self._views.get(label)
        if known is not None:
            made_at, view = known
            kind = view.features.kind if view.features is not None else "archive"
            age_s = time.monotonic() - made_at
            if age_s < max(fresh_s, FRESH_S[kind]):
                return view
            if view.checkpoint == checkpoint and not self._has_more(view):
                self._views[label] = (time.monotonic(), view)
                return view
        view = self._read_view(label, checkpoint)
        self._views.pop(label, None)
        self._views[label] = (time.monotonic(), view)
        while len(self._views) > VIEWS:
            del self._views[next(iter(self._views))]
        return view

    def _has_more(self, view: SaeView) -> bool:
        """Whether there is more to see of the same checkpoint: the index was written anew, or rows came."""
        index = open_index(self.run_dir, view.label)
        if isinstance(view.features, IndexFeatures):
            return index is not None and not view.features.is_of(index)
        return index is not None or bool(view.problem)

    def _read_view(self, label: str, checkpoint: Path) -> SaeView:
        checkpoint, sae, lives, metadata = self._load(label, checkpoint)
        features: Features | None = None
        problem = ""
        index = open_index(self.run_dir, label)
        if index is not None and index.d_sae == sae.d_sae:
            features = IndexFeatures(index, self._vocabulary)
        else:
            try:
                hook = str(metadata.get("hook_name") or label)
                features = ArchiveFeatures.open(
                    self.run_dir, hook, sae, self._vocabulary, self._environment_id
                )
            except (NothingToLookAtError, ArchiveError, CheckpointError, OSError) as error:
                problem = str(error)
        return SaeView(label, checkpoint, sae, lives, features, problem)

    def _load(
        self, label: str, checkpoint: Path
    ) -> tuple[Path, SparseAutoencoder, Lives | None, Mapping[str, Any]]:
        """A whole checkpoint: a trainer may remove one while it is read, as it has a newer one then."""
        for last in range(TRIES - 1, -1, -1):
            try:
                sae, metadata = load_sae(checkpoint)
                lives = lives_in(checkpoint)
            except (CheckpointError, OSError) as error:
                if not last:
                    message = f"its newest checkpoint cannot be read: {error}"
                    raise NotThereError(message) from error
            else:
                if not last or is_folder(checkpoint, below=self.run_dir):
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
        host = self._config.get("host")
        options = host.get("options", {}) if isinstance(host, dict) else {}
        mine = options.get(host.get("kind"), {}) if isinstance(host, dict) else {}
        return str(mine.get("env_id", "")) if isinstance(mine, dict) else ""

    @cached_property
    def _unembedding(self) -> Unembedding | str:
        try:
            return read_unembedding(self.run_dir, self._config)
        except NoLogitsError as error:
            return str(error)
