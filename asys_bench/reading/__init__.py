"""Reading what a run has written (`open_run`), and listening to one that goes on (`subscribe`)."""

from asys_bench.reading.archive_view import ArchiveView, RowDataset
from asys_bench.reading.error import ReadingError
from asys_bench.reading.live import LiveSample, LiveSubscription, subscribe
from asys_bench.reading.metrics_table import Table
from asys_bench.reading.run import Run, open_run
from asys_bench.reading.token_rows import TokenRows, Vocabulary, token_rows
from asys_bench.reading.top_tokens import FeatureTokens, TopToken, top_tokens

__all__ = [
    "ArchiveView",
    "FeatureTokens",
    "LiveSample",
    "LiveSubscription",
    "ReadingError",
    "RowDataset",
    "Run",
    "Table",
    "TokenRows",
    "TopToken",
    "Vocabulary",
    "open_run",
    "subscribe",
    "token_rows",
    "top_tokens",
]
