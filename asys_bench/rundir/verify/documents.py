"""Small documents that are written whole: run.json, summary.json, config.yaml and their like."""

from __future__ import annotations

from pathlib import Path

from asys_bench.config.document import RUN_CONFIG, read_run_config
from asys_bench.config.problems import ConfigError
from asys_bench.rundir.live_run import RUN_FILE, LiveRunError, read_run_file
from asys_bench.rundir.verify.finding import Finding, State
from asys_bench.system.files.below import read_json

REQUIRED = (RUN_FILE, RUN_CONFIG)


def check_document(path: Path, name: str, run_dir: Path) -> Finding:
    """A JSON file of the run, or its config.yaml: it parses, and run.json says what a run is."""
    detail = ""
    try:
        if path.name == RUN_CONFIG:
            read_run_config(run_dir)
        elif path == run_dir / RUN_FILE:
            if read_run_file(run_dir).get("result") is None:
                detail = "no result: it goes on, or it was killed"
        else:
            read_json(path, below=run_dir)
    except ConfigError as error:
        return Finding(name, "document", State.DAMAGED, error.problems[0].message)
    except (OSError, ValueError, LiveRunError) as error:
        return Finding(name, "document", State.DAMAGED, str(error).splitlines()[0])
    return Finding(name, "document", State.OK, detail)
