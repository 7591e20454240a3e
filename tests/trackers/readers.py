"""What trackers kept, read by their own means: {series: [(host step, value), ...]} and the configuration.

`python readers.py SERVICE PLACE`: a process of its own, as trackers read their place when they are imported.
"""

from __future__ import annotations

import json
import sys
from typing import Any

STEP = "host_step"


def read_trackio(_: str) -> dict[str, Any]:
    from trackio.sqlite_storage import SQLiteStorage

    (project,) = SQLiteStorage.get_projects()
    (run,) = SQLiteStorage.get_runs(project)
    series: dict[str, list[tuple[float, float]]] = {}
    for row in SQLiteStorage.get_logs(project, run):
        for name, value in row.items():
            if isinstance(value, int | float):
                series.setdefault(name, []).append((row[STEP], value))
    return {"runs": 1, "series": series, "config": SQLiteStorage.get_run_config(project, run)}


def read_mlflow(uri: str) -> dict[str, Any]:
    import mlflow
    from mlflow import MlflowClient

    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("asys-i")
    runs = client.search_runs([experiment.experiment_id])
    run = runs[0]
    series = {
        name: [
            (one.step, one.value)
            for one in sorted(
                client.get_metric_history(run.info.run_id, name), key=lambda m: m.timestamp
            )
        ]
        for name in run.data.metrics
    }
    artifacts = sorted(one.path for one in client.list_artifacts(run.info.run_id))
    config = mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/config.json")
    return {
        "runs": len(runs),
        "series": series,
        "config": config,
        "artifacts": artifacts,
        "status": run.info.status,
        "tags": run.data.tags,
    }


def main() -> None:
    read = {"trackio": read_trackio, "mlflow": read_mlflow}[sys.argv[1]]
    print(json.dumps(read(sys.argv[2]), default=str))


if __name__ == "__main__":
    main()
    sys.stdout.flush()
