"""`FeatureIndex`: what a `feature_index` sink found of each feature of a hook's SAE: examples, histogram,
density over time, partners. Files and columns are those of `feature_index_layout`.

    index = asys_bench.open_run("runs").features("transformer.h.5")
    for example in index.examples(17):
        print(example.activation, example.tokens, example.activations)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from asys_bench.contracts.run_files import FEATURE_INDEX_DIR, FEATURE_INDEX_SCHEMA
from asys_bench.rundir.feature_index_layout import (
    BINS_PER_OCTAVE,
    BYTE_COUNTS,
    DOCUMENT,
    HEAT_BELOW,
    HEAT_OCTAVES,
    HEAT_WINDOWS,
    HISTOGRAM_BINS,
    LEVELS,
    NO_BASE,
    QUANTILE_BINS,
    TOKENS_AROUND,
    UNKNOWN,
    WINDOWS,
    ColumnFile,
    Sizes,
    index_folder,
)
from asys_bench.rundir.live_run import ReadingError
from asys_bench.system.files.below import EntryKind, read_json, scan_if_there

_TRIES = 4
"""A sink may replace the columns between the reading of index.json and their opening."""
_STEPS = ("first", "width", "used")
_FEATURES_AT_ONCE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A row in which a feature fired.

    source, host_step, microbatch, call, row, attempt: which row of which call; the archive's columns of
    these names have the same. text: the number of its text in the call; 0: its rows are no tokens.
    weights_version: of the host. sae_step: the step of the SAE's checkpoint that the activation is of.
    quantile_bin: 0 to 4, the fifth of the feature's firings (of those until then) that it is among.
    tokens, activations: int32[n] and float32[n], the tokens around it in its sequence and the feature's
    activations there (to 1 / 254 of the largest of them; NaN where the row did not come); None without
    tokens. position: its own place among these, -1 without. token_position: its place in the sequence.
    """

    source: int
    host_step: int
    microbatch: int
    call: int
    row: int
    attempt: int
    text: int
    weights_version: int
    sae_step: int
    activation: float
    quantile_bin: int
    tokens: npt.NDArray[np.int32] | None
    activations: npt.NDArray[np.float32] | None
    position: int
    token_position: int


class FeatureIndex:
    """One hook's index as it was written last; open it anew to see what came since.

    rows: that were read. weights_step: of the SAE's newest checkpoint that was used; 0 where its name does
    not say. generation_F: which life of each feature it is of (0: since the start).
    density_F: share of rows in which a feature fires; mean_F: its mean activation there; max_F: the largest
    among its top examples. Where the SAE moves, rows of its earlier weights count less: for a feature by the
    fourth power of the cosine of its encoder before and after.
    """

    def __init__(self, document: Mapping[str, Any], file: ColumnFile, sizes: Sizes) -> None:
        self._file, self.sizes = file, sizes
        self.hook, self.d_sae = str(document["hook"]), sizes.d_sae
        self.rows, self.weights_step = _count(document, "rows"), _count(document, "sae_step")
        self.host_step, self.unix_ns = _count(document, "host_step"), _count(document, "unix_ns")
        self.sae = str(document["sae"])
        """Where the SAE came from; a checkpoint of the run below its folder."""
        first, width, used = (_count(document["windows"], name) for name in _STEPS)
        if width < 1 or used > WINDOWS:
            raise ValueError(f"windows of {width} steps, {used} used")
        self.windows = first, width, used
        """Host steps: where the first begins, how many each has; and how many there are."""
        self._steps = first + width * np.arange(used, dtype=np.int64)

    @classmethod
    def open(cls, run_dir: Path | str, hook: str) -> FeatureIndex:
        """
        Raises:
            ReadingError: the hook has no index (yet), or it is damaged.
        """
        return cls.of_file(index_folder(Path(run_dir), hook) / DOCUMENT, Path(run_dir))

    @classmethod
    def of_file(cls, path: Path, run_dir: Path) -> FeatureIndex:
        """The index that the document `path` is of. Raises ReadingError."""
        for last in range(_TRIES - 1, -1, -1):
            try:
                document = read_json(path, below=run_dir)
            except FileNotFoundError:
                raise ReadingError(
                    f"{path}: no feature index (yet); a sink `feature_index` writes it"
                ) from None
            except (OSError, ValueError) as error:
                raise ReadingError(f"{path} cannot be read: {error}") from error
            try:
                sizes, name = _told(document)
                return cls(
                    document, ColumnFile(path.with_name(name), sizes.columns(), run_dir), sizes
                )
            except FileNotFoundError as error:
                if not last:
                    raise ReadingError(f"{path}: its columns are gone: {error}") from error
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ReadingError(f"{path}: its index cannot be read: {error}") from error
        raise AssertionError

    def __repr__(self) -> str:
        return f"<feature index of {self.hook}: {self.d_sae} features, {self.rows} rows>"

    @cached_property
    def density_F(self) -> npt.NDArray[np.float32]:
        return _share(self.column("fires"), self.column("rows")).astype(np.float32)

    @cached_property
    def mean_F(self) -> npt.NDArray[np.float32]:
        return _share(self.column("sum"), self.column("fires")).astype(np.float32)

    @cached_property
    def max_F(self) -> npt.NDArray[np.float32]:
        return self.column("largest")

    @cached_property
    def generation_F(self) -> npt.NDArray[np.int32]:
        return self.column("generation")

    def examples(self, feature: int, kind: Literal["top", "random"] = "top") -> list[Example]:
        """top: the strongest first; random: of each quantile bin, the weakest bin first, in the order of
        host steps.

        Raises:
            ReadingError: the file was damaged. IndexError: no such feature. ValueError: no such kind.
        """
        if kind not in ("top", "random"):
            raise ValueError(f"kind is {kind!r}; top or random")
        row = {
            name: self._of(name, feature) for name in self.sizes.columns() if name != "window_rows"
        }
        if kind == "top":
            slots = np.arange(self.sizes.top)[row["top_key"] > -np.inf]
            slots = slots[np.argsort(-row["activation"][slots], kind="stable")]
            bin_S = self._bins(row, row["activation"][: self.sizes.top])
            return [self._example(row, slot, int(bin_S[slot])) for slot in slots.tolist()]
        bins, places = np.nonzero(row["random_key"] > -np.inf)
        slots = self.sizes.top + bins * self.sizes.per_bin + places
        order = np.lexsort((row["row"][slots], row["host_step"][slots], bins)).tolist()
        return [self._example(row, int(slots[one]), int(bins[one])) for one in order]

    def histogram(self, feature: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(edges [n + 1], counts [n]) of its activations, four bins an octave; n is 0 before it fired. What
        is outside of 16 octaves is in the first or the last bin."""
        base, counts = int(self._of("base", feature)), self._of("histogram", feature)
        there = np.flatnonzero(counts > 0)
        if base == NO_BASE or not len(there):
            return np.zeros(1), np.zeros(0)
        low, high = int(there[0]), int(there[-1]) + 1
        edges = np.exp2(base + np.arange(low, high + 1) / BINS_PER_OCTAVE)
        return edges, counts[low:high].astype(np.float64)

    def density_over_time(
        self, feature: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """(host steps at which windows begin, share of the rows of each in which it fired); windows without
        rows are left out. Of a feature that was resampled, its present life alone."""
        used = len(self._steps)
        rows_W = self._window_rows[:used]
        fires_W = self._of("window_fires", feature)[:used].astype(np.float64)
        there = rows_W > 0
        return self._steps[there], np.minimum(1.0, fires_W[there] / rows_W[there])

    def activations_over_time(
        self, feature: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(host steps at which parts of the run begin [n], edges of octaves [m + 1], counts [n, m]): how
        strongly it fired when. Counts are estimates, to 18 %; n is 0 before it fired. What is outside of
        the octaves is in the first or the last."""
        base, codes_WB = int(self._of("base", feature)), self._of("window_octaves", feature)
        used = -(-len(self._steps) * HEAT_WINDOWS // WINDOWS)
        if base == NO_BASE or not codes_WB.any():
            return np.zeros(0, np.int64), np.zeros(1), np.zeros((0, 0))
        edges = np.exp2(base + HEAT_BELOW + np.arange(HEAT_OCTAVES + 1.0))
        steps = self._steps[:: WINDOWS // HEAT_WINDOWS]
        return steps, edges, BYTE_COUNTS[codes_WB[:used]]

    def cofiring(self, feature: int) -> list[tuple[int, float, float]]:
        """(other feature, rows in which both fired, lift), the most frequent first. Counts are estimates of a
        sketch (`change.feature_index.cofiring`); lift is the other's density where this one fires, over its
        density anywhere."""
        partner, together = self._of("partner", feature), self._of("together", feature)
        fires = float(self._of("fires", feature))
        found = []
        for slot in np.argsort(-together, kind="stable").tolist():
            other, count = int(partner[slot]), float(together[slot])
            if count > 0 and 0 <= other < self.d_sae and fires > 0:
                density = float(self.density_F[other])
                found.append((other, count, count / fires / density if density > 0 else math.nan))
        return found

    def top_tokens(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """(int32[d_sae, n], float32[d_sae, n]): the tokens that each feature's top examples are of, and its
        activations there, the strongest first; -1 and 0 where there is none. One pass over the file, for who
        wants them of all features.

        Raises:
            ReadingError: the file was damaged.
        """
        top = self.sizes.top
        there_FT = self.column("top_key") > -np.inf
        token_FT = np.where(there_FT, self._own_tokens[:, :top], np.int32(-1))
        activation_FT = np.where(there_FT, self.column("activation")[:, :top], np.float32(0))
        order_FT = np.argsort(-activation_FT, axis=1, kind="stable")
        ordered = np.take_along_axis(token_FT, order_FT, 1)
        return ordered, np.take_along_axis(activation_FT, order_FT, 1)

    def random_tokens(self) -> npt.NDArray[np.int32]:
        """int32[d_sae, n]: the tokens that each feature's random examples are of, as many of each fifth of
        its firings where it has them; -1 where there is none. Raises ReadingError: the file was damaged."""
        there_FT = self.column("random_key").reshape(self.d_sae, -1) > -np.inf
        return np.where(there_FT, self._own_tokens[:, self.sizes.top :], np.int32(-1))

    @cached_property
    def _own_tokens(self) -> npt.NDArray[np.int32]:
        """int32[d_sae, slots]: the token that the example of each slot is of; -1 where it has none."""
        token_FS = np.full((self.d_sae, self.sizes.slots), -1, np.int32)
        if self.sizes.text:
            at_FS = np.minimum(self.column("at"), TOKENS_AROUND - 1)
            for first in range(0, self.d_sae, _FEATURES_AT_ONCE):
                count = min(_FEATURES_AT_ONCE, self.d_sae - first)
                tokens_NT = self._some("tokens", first, count).reshape(-1, TOKENS_AROUND)
                at_N = at_FS[first : first + count].reshape(-1)
                own_N = tokens_NT[np.arange(len(at_N)), at_N]
                token_FS[first : first + count] = own_N.reshape(count, -1)
            token_FS[self.column("length") == 0] = -1
        return token_FS

    # ---- the columns

    def column(self, name: str) -> npt.NDArray[Any]:
        """A whole column of `feature_index_layout`. Raises ReadingError."""
        try:
            return self._file.column(name)
        except (OSError, ValueError) as error:
            raise ReadingError(f"{self._file.path} {error}") from error

    @cached_property
    def _window_rows(self) -> npt.NDArray[np.float64]:
        return self.column("window_rows")

    def _of(self, name: str, feature: int) -> npt.NDArray[Any]:
        if not 0 <= feature < self.d_sae:
            raise IndexError(f"feature {feature}; there are {self.d_sae}")
        return np.asarray(self._some(name, feature, 1)[0])

    def _some(self, name: str, first: int, count: int) -> npt.NDArray[Any]:
        try:
            return self._file.of_features(name, first, count)
        except (OSError, ValueError) as error:
            raise ReadingError(f"{self._file.path} {error}") from error

    def _bins(
        self, row: Mapping[str, npt.NDArray[Any]], values: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.int64]:
        return quantile_bins(
            row["histogram"][None], row["base"], np.zeros(len(values), int), values
        )

    def _example(self, row: Mapping[str, npt.NDArray[Any]], slot: int, its_bin: int) -> Example:
        tokens = activations = None
        position = token_position = -1
        activation = float(row["activation"][slot])
        if self.sizes.text and 0 < row["length"][slot] <= TOKENS_AROUND:
            length = int(row["length"][slot])
            position = min(int(row["at"][slot]), length - 1)
            token_position = int(row["token_position"][slot])
            tokens = row["tokens"][slot, :length].copy()
            level = row["levels"][slot, :length]
            activations = level.astype(np.float32) * (row["scale"][slot] / LEVELS)
            activations[level == UNKNOWN] = np.nan
            activations[position] = activation
        names = ("source", "host_step", "microbatch", "call", "row", "attempt", "text",
                 "weights_version", "sae_step")  # fmt: skip
        return Example(
            **{name: int(row[name][slot]) for name in names},
            activation=activation,
            quantile_bin=its_bin,
            tokens=tokens,
            activations=activations,
            position=position,
            token_position=token_position,
        )


def indexed_hooks(run_dir: Path) -> list[str]:
    """Hooks that have an index, in order; those that cannot be read are left out.

    Raises:
        ReadingError: the folder cannot be listed.
    """
    found = []
    try:
        entries = scan_if_there(run_dir / FEATURE_INDEX_DIR, below=run_dir)
    except OSError as error:
        raise ReadingError(f"{run_dir / FEATURE_INDEX_DIR} cannot be listed: {error}") from error
    for path, kind in entries:
        if kind is EntryKind.FOLDER:
            try:
                document = read_json(path / DOCUMENT, below=run_dir)
                _told(document)
                found.append(str(document["hook"]))
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return sorted(found)


def quantile_bins(
    histogram_MB: npt.NDArray[np.float32],
    base_N: npt.NDArray[Any],
    owner_N: npt.NDArray[np.int64],
    value_N: npt.NDArray[np.float32],
) -> npt.NDArray[np.int64]:
    """Which fifth of a feature's firings each value is among, by its histogram.

    owner_N: the line of the histograms that each value is of. base_N: of each value's feature.
    """
    place_N, share_N = histogram_places(base_N, value_N)
    upto_MB = np.cumsum(histogram_MB, axis=1)
    here_N = histogram_MB[owner_N, place_N]
    below_N = upto_MB[owner_N, place_N] - here_N * (1 - share_N)
    share_N = below_N / np.maximum(upto_MB[owner_N, -1], np.float32(1e-30))
    return _clipped(QUANTILE_BINS * share_N, QUANTILE_BINS - 1).astype(np.int64)


def histogram_places(
    base_N: npt.NDArray[Any], value_N: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """(the bin of each activation > 0, which share of the bin is below it)."""
    octave_N = np.log2(np.maximum(value_N, np.float32(1e-37))) - base_N
    exact_N = _clipped(octave_N.astype(np.float64) * BINS_PER_OCTAVE, HISTOGRAM_BINS - 1e-9)
    place_N = exact_N.astype(np.int64)
    return place_N, exact_N - place_N


def _clipped(value_N: npt.NDArray[Any], most: float) -> npt.NDArray[Any]:
    """Between 0 and `most`; 0 for what is no number."""
    return np.asarray(np.clip(np.nan_to_num(value_N), 0, most))


def _told(document: Any) -> tuple[Sizes, str]:
    """What a document says of its columns and their file. Raises ValueError, KeyError."""
    if not isinstance(document, dict) or document.get("schema") != FEATURE_INDEX_SCHEMA:
        raise ValueError(f"not an {FEATURE_INDEX_SCHEMA} document")
    name = document["columns"]
    if not isinstance(name, str) or name != Path(name).name or name in ("", ".", ".."):
        raise ValueError(f"its columns are in {str(name)[:80]!r}")
    return Sizes.of(document), name


def _count(document: Mapping[str, Any], name: str) -> int:
    found = document[name]
    if type(found) is not int or not 0 <= found < 1 << 62:
        raise ValueError(f"{name} is {str(found)[:80]}")
    return found


def _share(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(np.divide(part, whole, out=np.zeros_like(part), where=whole > 0))
