"""A folder where wandb (offline), trackio and MLflow (SQLite) keep what they get, and how it is read back."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
HOOK = "layers.3#wide [x]"
SECRETS = ("SECRETARGUMENT", "SECRETHOOK", "SECRETOFTHEENVIRONMENT")


def series_of(hook: str) -> dict[str, tuple[str, str, str]]:
    """The tracker's name of five series -> metric, hook and slot of metrics.csv."""
    names = ("sae_loss", "sae_fvu", "sae_l0", "sae_rows_trained")
    own = {f"{name}/{hook}": (name, hook, "trainer-0") for name in names}
    return {"host/reward_mean": ("host_reward_mean", "", "host"), **own}


def read_csv(path: Path, hook: str) -> dict[str, list[tuple[int, str]]]:
    """The five series of a metrics.csv: (host step, value as written)."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    steps = {
        (row["time_s"], row["attempt"]): int(row["value"])
        for row in rows if row["metric"] == "host_steps"
    }  # fmt: skip
    found: dict[str, list[tuple[int, str]]] = {name: [] for name in series_of(hook)}
    for row in rows:
        for name, (metric, of, slot) in series_of(hook).items():
            if (row["metric"], row["hook"], row["slot"]) == (metric, of, slot):
                found[name].append((steps[row["time_s"], row["attempt"]], row["value"]))
    return found


def environment(folder: Path) -> dict[str, str]:
    """Variables by which all three keep everything in `folder`."""
    return {
        "WANDB_DIR": str(folder),
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_DATA_DIR": str(folder / "data"),
        "WANDB_CONFIG_DIR": str(folder / "config"),
        "TRACKIO_DIR": str(folder / "trackio"),
        "HF_HUB_OFFLINE": "1",
        "SOME_API_TOKEN": SECRETS[2],
        "OMP_NUM_THREADS": "1",
    }


def python(folder: Path, words: Iterable[str], **more: str) -> str:
    """Standard output of a Python that keeps its things in `folder`."""
    kept = {name: value for name, value in os.environ.items() if "WANDB" not in name}
    done = subprocess.run(
        [sys.executable, "-P", *words],
        cwd=folder,
        env=kept | environment(folder) | more,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def read(folder: Path, service: str) -> dict[str, Any]:
    """Series and configuration as the service's own tools read them."""
    if service == "wandb":
        return read_wandb(folder)
    place = f"sqlite:///{folder}/mlflow.db"
    lines = python(folder, (str(HERE / "readers.py"), service, place)).splitlines()
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def read_wandb(folder: Path) -> dict[str, Any]:
    """`wandb leet inspect` of each offline folder, oldest first."""
    series: dict[str, list[tuple[float, float]]] = {}
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    runs: list[dict[str, Any]] = []
    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"), key=lambda p: p.stat().st_mtime)
    for file in files:
        said = python(folder, ("-m", "wandb", "leet", "inspect", "--json", str(file)))
        for record in map(json.loads, said.splitlines()):
            if "history" in record:
                items = record["history"]["item"]
                for name, value in items.items():
                    series.setdefault(name, []).append((items["host_step"], value))
            elif "run" in record:
                runs.append(record["run"])
                config |= record["run"]["config"]["update"]
            elif "summary" in record:
                summary |= record["summary"]["update"]
    return {"runs": runs, "series": series, "config": config, "summary": summary}
