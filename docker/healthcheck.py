"""Healthy while the newest run's exporter answers /healthz with 200. For the image's HEALTHCHECK."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

TIMEOUT_S = 3.0


def main(runs: Path = Path("runs")) -> int:
    """0 when healthy, else 1 with the reason on standard output."""
    targets = sorted(runs.glob("*/prometheus.json"), key=lambda path: path.stat().st_mtime)
    if not targets:
        print(f"no run in {runs.resolve()} has an exporter (monitor `prometheus`)")
        return 1
    target = json.loads(targets[-1].read_text())[0]["targets"][0]
    port = target.rpartition(":")[2]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=TIMEOUT_S) as reply:
            print(reply.read().decode())
            return 0
    except urllib.error.HTTPError as error:
        print(error.read().decode())
    except OSError as error:
        print(f"{target}: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
