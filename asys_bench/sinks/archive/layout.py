"""What a row of the archive is: its columns, how tensors become rows, and the shard's schema.

One row is one token, sample or place of an image: the last dimension of a tensor is the row, every
leading dimension is flattened in C order. `row` is its number in the captured tensor, and `grid` those
dimensions, such as 8x20x24: numpy.unravel_index(row, (8, 20, 24)) says which sample and which place it is
(`ArchiveView.places`). `grid` is empty where only some rows of a tensor were sent and the sender did not
say of which. A 1-D tensor is one row; a 0-dimensional one is one row of width 1. A tensor
without elements has no rows.

With `values: encoded` a row of the file is a packet: `encoded`.

Arrow lacks some dtypes; their values are widened without loss and the schema names the original:

- bfloat16, float8: float32
- complex64: float32 pairs (real, imaginary), so a row is twice as wide

`narrow` (the `values` option) converts floating-point values only; float16 overflows to infinity.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from asys_bench.contracts.packet import Kind
from asys_bench.contracts.run_files import SHARD_SUFFIX
from asys_bench.sinks.archive.sidecar import ArchiveError

FORMAT = "asys.archive/3"
OLD_FORMATS = {"asys.archive/2": 1, "asys.archive/1": 3}
"""Earlier formats -> how many of the last columns they lack."""
ENCODED_FORMAT = "asys.archive.packets/1"
"""Of shards whose rows are packets (`encoded`)."""
MAX_NAME_BYTES = 4096
"""Of a hook or an encoding."""
KEY_COLUMNS = ("source", "shard", "seq", "row")
"""With the run id of the schema and the attempt they identify a row; a packet is (source, shard, seq) of
an attempt."""

_WIDENED = {
    torch.bfloat16: torch.float32,
    torch.float8_e4m3fn: torch.float32,
    torch.float8_e5m2: torch.float32,
    torch.complex64: torch.float32,
}
ARROW_OF: dict[torch.dtype, Any] = {
    torch.float32: pa.float32(),
    torch.float64: pa.float64(),
    torch.float16: pa.float16(),
    torch.int8: pa.int8(),
    torch.uint8: pa.uint8(),
    torch.int16: pa.int16(),
    torch.int32: pa.int32(),
    torch.int64: pa.int64(),
    torch.bool: pa.bool_(),
}
METADATA_COLUMNS: tuple[tuple[str, Any], ...] = (
    ("source", pa.uint32()),
    ("shard", pa.uint16()),
    ("hook", pa.string()),
    ("seq", pa.uint64()),
    ("row", pa.uint32()),
    ("kind", pa.uint8()),
    ("host_step", pa.uint64()),
    ("weights_version", pa.uint64()),
    ("timestamp", pa.timestamp("ns")),
    ("sampling_rate", pa.float32()),
    ("call_index", pa.uint32()),
    ("microbatch", pa.uint16()),
    ("token_position", pa.int32()),
    ("encoding", pa.string()),
    ("grid", pa.string()),
    ("text", pa.uint8()),
    ("attempt", pa.uint16()),
)


@dataclass(frozen=True)
class RowLayout:
    """What all rows of one shard share.

    width: values per row (of `stored` dtype); dtype: the packet's own dtype.
    """

    hook: str
    width: int
    dtype: torch.dtype
    stored: torch.dtype

    @property
    def value_bytes(self) -> int:
        """Bytes of one row's values, before packing of booleans and compression."""
        return self.width * self.stored.itemsize

    def schema(self, run_id: str) -> Any:
        """The pyarrow schema, with the constants of the shard in its metadata."""
        values = pa.list_(ARROW_OF[self.stored], self.width)
        fields = [pa.field("values", values)]
        fields += [pa.field(name, kind) for name, kind in METADATA_COLUMNS]
        about = about_shard(FORMAT, run_id, self.hook, self.dtype, self.width)
        return pa.schema(fields, metadata=about)


def about_shard(
    format: str, run_id: str, hook: str, dtype: torch.dtype, width: int
) -> dict[str, str]:
    """The metadata of a shard's schema."""
    return {
        "format": format,
        "run_id": run_id,
        "hook": hook,
        "dtype": str(dtype).removeprefix("torch."),
        "row_shape": str(width),
        "kinds": ",".join(f"{kind.value}={kind.name.lower()}" for kind in Kind),
    }


@dataclass(frozen=True, slots=True)
class ShardName:
    """A shard's file name, `<worker>-<incarnation>-<n>.arrows`, of a run that went on
    `<worker>-<attempt>.<incarnation>-<n>.arrows`; orders as it was written."""

    worker: str
    incarnation: int
    number: int
    attempt: int = 0

    @classmethod
    def parse(cls, name: str) -> ShardName | None:
        found = re.fullmatch(r"(.+)-(?:(\d{1,5})\.)?(\d{1,9})-(\d{1,9})\.arrows", name)
        if found is None:
            return None
        return cls(found[1], int(found[3]), int(found[4]), int(found[2] or 0))

    def __str__(self) -> str:
        return f"{self.worker}-{self.life}-{self.number}{SHARD_SUFFIX}"

    @property
    def life(self) -> str:
        """Attempt and incarnation, as the name has them."""
        return f"{self.attempt}.{self.incarnation}" if self.attempt else str(self.incarnation)

    def sort_key(self) -> tuple[str, int, int, int]:
        return self.worker, self.attempt, self.incarnation, self.number


def rows_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """`tensor` as [rows, width], a view where its strides allow; None when it has no elements."""
    if tensor.numel() == 0:
        return None
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj()).flatten(-2)
    return tensor.reshape(-1, tensor.shape[-1] if tensor.ndim else 1)


def stored_dtype(dtype: torch.dtype, narrow: torch.dtype | None) -> torch.dtype:
    """The dtype that `dtype` is archived in; `narrow` replaces real floating-point dtypes."""
    if narrow is not None and dtype.is_floating_point:
        return narrow
    return _WIDENED.get(dtype, dtype)


def check_schema(schema: Any, path: Path) -> None:
    """Raises ArchiveError: the schema is not one that `RowLayout.schema` makes."""
    said = described(schema, path)
    found = said["format"]
    actual = [(field.name, field.type) for field in schema]
    columns = len(METADATA_COLUMNS) - OLD_FORMATS.get(found, 0)
    expected = list(METADATA_COLUMNS[:columns])
    values = actual[0][1] if actual and actual[0][0] == "values" else None
    if values is None or not pa.types.is_fixed_size_list(values):
        raise ArchiveError(path, 0, "first column is not a fixed-size list called 'values'")
    if values.value_type not in ARROW_OF.values() or values.list_size < 1:
        raise ArchiveError(path, 0, f"values of type {values} are not of this format")
    if said["row_shape"] != str(values.list_size) or actual[1:] != expected:
        raise ArchiveError(path, 0, f"columns are not those of {found}: {actual}")


def described(schema: Any, path: Path, *more: str) -> dict[str, str]:
    """The metadata of a shard's schema, in which `more` is needed as well.

    Raises:
        ArchiveError: it is of no format that is known here, or lacks something.
    """
    try:
        said = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}
    except UnicodeDecodeError as error:
        raise ArchiveError(path, 0, f"schema metadata is not UTF-8 ({error})") from None
    known = (FORMAT, *OLD_FORMATS, ENCODED_FORMAT)
    if said.get("format") not in known:
        names = ", ".join(map(repr, known))
        raise ArchiveError(path, 0, f"format {said.get('format')!r}; this reader knows {names}")
    missing = {"hook", "run_id", "dtype", "row_shape", *more} - said.keys()
    if missing:
        raise ArchiveError(path, 0, f"schema metadata lacks {', '.join(sorted(missing))}")
    return said
