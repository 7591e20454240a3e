"""Which rows of which packets were seen, so that a redelivered packet is read (or written) once.

A packet's rows are archived in order, so per packet one number tells all: the rows seen so far. They
lie in small pages per (run, source, shard), because sequence numbers are dense there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_PAGE = 1 << 12


class SeenRows:
    """Rows seen per packet; 4 bytes per packet."""

    def __init__(self) -> None:
        self._pages: dict[tuple[str, int, int, int], Any] = {}

    def fresh(self, run_id: str, source: Any, shard: Any, seq: Any, row: Any) -> Any:
        """Mark the rows of one record batch (1-D key columns) as seen.

        Returns a boolean array: True where the row was not seen in an earlier call.
        """
        result = np.zeros(len(seq), dtype=bool)
        page_of = seq // _PAGE
        where = np.stack([source.astype(np.uint64), shard.astype(np.uint64), page_of], axis=1)
        keys, inverse = np.unique(where, axis=0, return_inverse=True)
        inverse = inverse.reshape(-1)
        for index, (its_source, its_shard, its_page) in enumerate(keys.tolist()):
            mine = inverse == index
            key = (run_id, its_source, its_shard, its_page)
            page = self._pages.get(key)
            if page is None:
                page = self._pages[key] = np.zeros(_PAGE, dtype=np.uint64)
            place = (seq[mine] % _PAGE).astype(np.int64)
            result[mine] = row[mine] >= page[place]
            np.maximum.at(page, place, row[mine].astype(np.uint64) + np.uint64(1))
        return result
