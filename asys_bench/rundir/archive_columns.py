"""Columns of record batches as numpy arrays and torch tensors, whatever an archive's version has of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from asys_bench.rundir.live_run import ReadingError
from asys_bench.sinks.archive.layout import METADATA_COLUMNS

COLUMNS = ("values", *(name for name, _ in METADATA_COLUMNS))
LABEL_PREFIX = "label."
"""Of the columns that are joined from the stream of labels (`row_labels`): `label.reward`."""
TEXT_NOT_RECORDED = 255
"""The column `text` of archives that were written without it."""
Columns = dict[str, npt.NDArray[Any]]


def check_columns(columns: Sequence[str], labels: Sequence[str] = ()) -> None:
    """Raises ReadingError: an archive with these labels has no such column, or none is asked for."""
    known = (*COLUMNS, *(LABEL_PREFIX + name for name in labels))
    unknown = [name for name in columns if name not in known]
    if unknown or not columns:
        raise ReadingError(f"no columns {unknown} in an archive; it has {', '.join(known)}")


def labels_among(columns: Sequence[str]) -> list[str]:
    """Names of the labels that are asked for."""
    return [name.removeprefix(LABEL_PREFIX) for name in columns if name.startswith(LABEL_PREFIX)]


def column_array(batch: Any, name: str) -> npt.NDArray[Any]:
    """[n] of the column's dtype, text as str; of `values` [n, D]. It may view the batch."""
    if name == "grid" and name not in batch.schema.names:  # asys.archive/1
        return np.full(batch.num_rows, "", dtype=np.str_)
    if name == "text" and name not in batch.schema.names:
        return np.full(batch.num_rows, TEXT_NOT_RECORDED, dtype=np.uint8)
    if name == "attempt" and name not in batch.schema.names:
        return np.zeros(batch.num_rows, dtype=np.uint16)
    column = batch.column(name)
    if name != "values":
        array: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
        return array.astype(np.str_) if array.dtype == object else array
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat).reshape(batch.num_rows, column.type.list_size)


def column_tensor(array: npt.NDArray[Any]) -> torch.Tensor | list[str]:
    """A copy: Arrow's memory is read-only. Unsigned columns and timestamps come as int64, text as str."""
    if array.dtype.kind in "UO":
        return [str(text) for text in array]
    if array.dtype.kind in "uM" and array.dtype != np.uint8:
        array = array.astype("datetime64[ns]" if array.dtype.kind == "M" else np.int64)
        array = array.view(np.int64)
    return torch.from_numpy(np.array(array))
