"""What a feature index is made of: its columns, what they take, and the file that they lie in.

    feature_index/<hook>/index.json               what the index is of; names its columns' file
    feature_index/<hook>/columns-<n>.safetensors  the columns; a new file at each write
    feature_index/<hook>/before-<n>.json          an index that was set aside, as its SAE had another size
    feature_index/<hook>/.latest                  when each feature fired last, while the sink is at work

The columns' file is written first, then index.json is replaced, then the columns before are removed: a
reader that has opened one keeps it, and a kill between two of these loses nothing.

F features, S slots for examples of each (the first half the strongest, the others random ones of five
quantile bins), T tokens around an example's own. `safetensors.torch.load_file` reads the file too.
"""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from asys_bench.contracts.names import file_slug
from asys_bench.contracts.run_files import FEATURE_INDEX_DIR
from asys_bench.system.files.below import open_file, parse_json

DOCUMENT = "index.json"
LATEST_FILE = ".latest"
QUANTILE_BINS = 5
"""Of a feature's activations: fifths of its firings, the weakest first."""
MOST_PER_BIN = 4
BEFORE, AFTER = 20, 11
TOKENS_AROUND = BEFORE + 1 + AFTER
"""T: an example's own token and its neighbours in the same sequence."""
HISTOGRAM_BINS, BINS_PER_OCTAVE = 64, 4
WINDOWS = 64
HEAT_WINDOWS, HEAT_OCTAVES, HEAT_BELOW = 16, 7, 7
"""A histogram of each feature over time: so many parts of the run, four windows each, times octaves of the
histogram, from `HEAT_BELOW` octaves above its lower end on; what is outside is in the first or the last."""
BYTE_COUNTS: npt.NDArray[np.float64] = 16.0 * (np.power(17 / 16, np.arange(256)) - 1)
"""What a byte of that histogram stands for (`change.feature_index.byte_counts`)."""
PARTNERS = 32
"""Other features that are counted beside each."""
NO_BASE = -(1 << 15)
"""`base` of a feature that never fired."""
LEVELS, UNKNOWN = 254, 255
"""Activations around an example are multiples of its `scale` / LEVELS; UNKNOWN: the row did not come."""
MAX_HEADER_BYTES = 1 << 20
MAX_FEATURES = 1 << 24
MAX_FILE_BYTES = 1 << 40

Columns = dict[str, npt.NDArray[Any]]
Column = tuple[np.dtype[Any], tuple[int, ...]]
"""Its type and its shape."""
_DTYPES = {
    "float64": "F64", "float32": "F32", "int64": "I64", "int32": "I32", "int16": "I16", "uint32": "U32",
    "uint16": "U16", "uint8": "U8",
}  # fmt: skip
LATEST: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "latest_step": ("int64", ()),
    "latest_activation": ("float32", ()),
    "latest_token": ("int32", ()),
}
"""The row in which each feature fired last; its token is -1 where it has
none, its step where it never did."""
_PER_FEATURE: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "fires": ("float64", ()),
    "rows": ("float64", ()),
    "sum": ("float64", ()),
    "largest": ("float32", ()),
    "generation": ("int32", ()),
    "base": ("int16", ()),
    "histogram": ("float32", (HISTOGRAM_BINS,)),
    "window_fires": ("float32", (WINDOWS,)),
    "window_octaves": ("uint8", (HEAT_WINDOWS, HEAT_OCTAVES)),
    **LATEST,
    "partner": ("int32", (PARTNERS,)),
    "together": ("float32", (PARTNERS,)),
}
_PER_EXAMPLE: Mapping[str, str] = {
    "host_step": "int64",
    "weights_version": "int64",
    "activation": "float32",
    "sae_step": "int32",
    "source": "uint32",
    "call": "uint32",
    "row": "int32",
    "microbatch": "uint16",
    "attempt": "uint16",
    "text": "uint8",
}
_PER_TEXT_EXAMPLE: Mapping[str, str] = {
    "scale": "float32",
    "token_position": "int32",
    "at": "uint8",
    "length": "uint8",
}


def index_folder(run_dir: Path, hook: str) -> Path:
    """Where the index of a hook is."""
    return run_dir / FEATURE_INDEX_DIR / file_slug(hook)


@dataclass(frozen=True)
class Sizes:
    """per_bin: random examples of each quantile bin; as many top examples as random ones. text: examples
    have tokens around them."""

    d_sae: int
    per_bin: int
    text: bool

    @property
    def top(self) -> int:
        return QUANTILE_BINS * self.per_bin

    @property
    def slots(self) -> int:
        return 2 * self.top

    def columns(self) -> dict[str, Column]:
        """Name -> type and shape, those of eight bytes first."""
        F, S = self.d_sae, self.slots
        found = {name: (dtype, (F, *rest)) for name, (dtype, rest) in _PER_FEATURE.items()}
        found["window_rows"] = ("float64", (WINDOWS,))
        found["top_key"] = ("float32", (F, self.top))
        found["random_key"] = ("float32", (F, QUANTILE_BINS, self.per_bin))
        found |= {name: (dtype, (F, S)) for name, dtype in _PER_EXAMPLE.items()}
        if self.text:
            found |= {name: (dtype, (F, S)) for name, dtype in _PER_TEXT_EXAMPLE.items()}
            found["tokens"] = ("int32", (F, S, TOKENS_AROUND))
            found["levels"] = ("uint8", (F, S, TOKENS_AROUND))
        typed = {name: (np.dtype(dtype), shape) for name, (dtype, shape) in found.items()}
        return dict(sorted(typed.items(), key=lambda one: (-one[1][0].itemsize, one[0])))

    @property
    def nbytes(self) -> int:
        """Of all columns."""
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.columns().values())

    def empty(self) -> Columns:
        """Columns without any example; memory is taken when it is written to."""
        columns = {name: np.zeros(shape, dtype) for name, (dtype, shape) in self.columns().items()}
        columns["top_key"].fill(-np.inf)
        columns["random_key"].fill(-np.inf)
        columns["base"].fill(NO_BASE)
        columns["partner"].fill(-1)
        columns["latest_step"].fill(-1)
        columns["latest_token"].fill(-1)
        return columns

    @classmethod
    def fitting(cls, d_sae: int, text: bool, most_bytes: int) -> Sizes | None:
        """The most examples for that many bytes; None: not one of each bin."""
        made = (cls(d_sae, per_bin, text) for per_bin in range(MOST_PER_BIN, 0, -1))
        return next((sizes for sizes in made if sizes.nbytes <= most_bytes), None)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Sizes:
        """As index.json says.

        Raises:
            ValueError: it says no sizes, or such as no index has.
        """
        found = document.get("d_sae"), document.get("examples_per_bin"), document.get("text")
        d_sae, per_bin, text = found
        if type(d_sae) is not int or type(per_bin) is not int or type(text) is not bool:
            raise ValueError(f"d_sae, examples_per_bin and text are {found}")
        if not (2 <= d_sae <= MAX_FEATURES and 1 <= per_bin <= MOST_PER_BIN):
            raise ValueError(f"d_sae {d_sae} or examples_per_bin {per_bin} is out of range")
        return cls(d_sae, per_bin, text)


def file_parts(columns: Columns) -> list[bytes | memoryview]:
    """The safetensors file as buffers that follow each other; no copy of a column is made."""
    entries, at = {}, 0
    for name, column in columns.items():
        entries[name] = {
            "dtype": _DTYPES[column.dtype.name],
            "shape": [*column.shape],
            "data_offsets": [at, at + column.nbytes],
        }
        at += column.nbytes
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    parts: list[bytes | memoryview] = [len(header).to_bytes(8, "little"), header]
    return parts + [column.reshape(-1).data.cast("B") for column in columns.values()]


class ColumnFile:
    """A columns' file, of which parts are read when they are asked for. It stays whole under its reader when
    the sink has replaced it; nothing is mapped, so that a file cut short is an error and no signal."""

    def __init__(self, path: Path, columns: Mapping[str, Column], below: Path) -> None:
        """
        Raises:
            OSError: it cannot be opened. ValueError: it does not have these columns.
        """
        self.path = path
        self._fd = open_file(path, below=below)
        weakref.finalize(self, os.close, self._fd)
        size = os.fstat(self._fd).st_size
        length = int.from_bytes(os.pread(self._fd, 8, 0), "little")
        if length > min(MAX_HEADER_BYTES, max(0, size - 8)):
            raise ValueError(f"its header has {length} bytes")
        entries = parse_json(os.pread(self._fd, length, 8))
        self._where: dict[str, tuple[np.dtype[Any], tuple[int, ...], int]] = {}
        for name, (dtype, shape) in columns.items():
            entry = entries.get(name) if isinstance(entries, dict) else None
            nbytes = dtype.itemsize * math.prod(shape)
            if not isinstance(entry, dict):
                raise ValueError(f"has no column {name!r}")
            begin, end = _offsets(entry)
            fits = entry.get("dtype") == _DTYPES[dtype.name] and entry.get("shape") == [*shape]
            if not fits or end - begin != nbytes or 8 + length + end > size:
                raise ValueError(f"column {name!r} is not {dtype}{[*shape]} inside the file")
            self._where[name] = dtype, shape, 8 + length + begin

    def column(self, name: str) -> npt.NDArray[Any]:
        """A whole column, which may be written to. Raises OSError, ValueError."""
        dtype, shape, start = self._where[name]
        return self._read(dtype, shape, start)

    def of_features(self, name: str, first: int, count: int) -> npt.NDArray[Any]:
        """The entries of some features, side by side in a column. Raises OSError, ValueError."""
        dtype, shape, start = self._where[name]
        step = dtype.itemsize * math.prod(shape[1:])
        return self._read(dtype, (count, *shape[1:]), start + first * step)

    def _read(self, dtype: np.dtype[Any], shape: tuple[int, ...], start: int) -> npt.NDArray[Any]:
        found = np.empty(shape, dtype)
        left = found.reshape(-1).data.cast("B")
        while left:
            got = os.preadv(self._fd, [left], start)
            if not got:
                raise ValueError("is shorter than it was")
            left, start = left[got:], start + got
        return found


def _offsets(entry: Mapping[str, Any]) -> tuple[int, int]:
    offsets = entry.get("data_offsets")
    if isinstance(offsets, list) and len(offsets) == 2:
        begin, end = offsets
        if type(begin) is int and type(end) is int and 0 <= begin <= end <= MAX_FILE_BYTES:
            return begin, end
    raise ValueError(f"data_offsets are {str(offsets)[:80]}")
