"""MLflow: a server, or a database on this machine (SQLite; its plain files are off by default).

The configuration is the artifact `config.json`, and its leaves are parameters of the first attempt: MLflow
lets no parameter change. Names that it does not take are changed, with a digest.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, field_validator

from asys_bench.monitors.tracker.tracker import PROJECT, STEP, About, Point, TrackedRun, Tracker
from asys_bench.store.uri import without_secrets

LOCAL = "sqlite:///mlflow.db"
RUN_TAG = "asys.run_id"
MOST_METRICS, MOST_PARAMS, MOST_PARAM_LETTERS = 1000, 100, 500
"""Of one call; and of a value, which longer ones are cut to."""
MOST_NAME = 250


class MLflowOptions(BaseModel, extra="forbid", frozen=True):
    """Section `mlflow` of the tracker's options."""

    experiment: str = Field(PROJECT, min_length=1, max_length=200, description="made where missing")
    tracking_uri: str | None = Field(
        None,
        description="a server (http://host:5000) or a database (sqlite:////folder/mlflow.db); null: "
        f"MLFLOW_TRACKING_URI, else `{LOCAL}` in the working directory",
    )

    @field_validator("tracking_uri")
    @classmethod
    def _holds_no_secret(cls, uri: str | None) -> str | None:
        if uri is not None and without_secrets(uri) != uri:
            raise ValueError(
                "holds credentials, and would be written into the run's files; give them in the environment "
                "(MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_URI)"
            )
        return uri


class MLflowTracker(Tracker):
    """See the module."""

    service = "mlflow"

    def __init__(self, options: MLflowOptions) -> None:
        self._options = options
        self._client: Any = None
        self._id = ""

    def open(self, about: About) -> TrackedRun:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
        for noisy in ("alembic", "mlflow"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        from mlflow import MlflowClient

        uri = self._options.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or LOCAL
        self._client = client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(self._options.experiment)
        experiment_id = (
            experiment.experiment_id if experiment is not None
            else client.create_experiment(self._options.experiment)
        )  # fmt: skip
        known = about.known
        found = client.search_runs(
            [experiment_id], f"tags.`{RUN_TAG}` = '{about.own_id}'", max_results=1
        )
        if found:
            self._id = found[0].info.run_id
            client.update_run(self._id, status="RUNNING")
        else:
            tags = {RUN_TAG: about.own_id, "asys.step_unit": about.step_unit}
            made = client.create_run(experiment_id, run_name=about.run_id, tags=tags)
            self._id = made.info.run_id
            _log_params(client, self._id, about.config)
        if known is None or known.id != self._id:
            client.log_dict(self._id, dict(about.config), "config.json")
        web = uri.startswith("http")
        shown = without_secrets(uri).rstrip("/")
        url = f"{shown}/#/experiments/{experiment_id}/runs/{self._id}" if web else ""
        return TrackedRun(self.service, self._id, self._options.experiment, shown, url)

    def log(self, points: Sequence[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(metric_key(name), value, round(point.unix_s * 1000), point.step)
            for point in points
            for name, value in {**point.values, STEP: float(point.step)}.items()
        ]
        for first in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self._id, metrics=metrics[first : first + MOST_METRICS])

    def attach(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        for name, value in summary.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._client.log_metric(self._id, metric_key(f"summary/{name}"), float(value))
            else:
                self._client.set_tag(self._id, f"asys.{name}", str(value))
        for file in files:
            self._client.log_artifact(self._id, str(file))

    def finish(self) -> None:
        self._client.set_terminated(self._id, "FINISHED")


def metric_key(name: str) -> str:
    """`name` as MLflow takes it: letters, digits and `_-. :/`, no path that leads elsewhere."""
    key = re.sub(r"[^\w\-./ :]", "_", name)
    if posixpath.normpath(key) != key or key.startswith(("/", "..")):
        key = "/".join(part if part.strip(".") else f"_{part}" for part in key.split("/"))
    if key == name and len(name) <= MOST_NAME:
        return name
    return f"{key[: MOST_NAME - 9]}.{zlib.crc32(name.encode()):08x}"


def _log_params(client: Any, run_id: str, config: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    params = [
        Param(metric_key(name), str(value)[:MOST_PARAM_LETTERS]) for name, value in _leaves(config)
    ]
    for first in range(0, len(params), MOST_PARAMS):
        client.log_batch(run_id, params=params[first : first + MOST_PARAMS])


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Values of a configuration by dotted path; lists are values."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif value is not None:
        yield path, value
