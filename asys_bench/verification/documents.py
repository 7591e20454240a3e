"""Small documents that are written whole: run.json, summary.json, config.yaml and their like."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from asys_bench.pipeline.live_run import RUN_FILE, LiveRunError, read_run_file
from asys_bench.verification.finding import Finding, State

REQUIRED = (RUN_FILE, "config.yaml")
MAX_BYTES = 256 << 20


def check_document(path: Path, name: str) -> Finding:
    """A JSON or YAML file: it parses, and run.json says what a run is."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return Finding(name, "document", State.FOREIGN, "too large for a document")
        text = path.read_text(encoding="utf-8")
        found = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        return Finding(name, "document", State.DAMAGED, str(error).splitlines()[0])
    if path.name == RUN_FILE:
        try:
            document = read_run_file(path.parent)
        except LiveRunError as error:
            return Finding(name, "document", State.DAMAGED, str(error))
        missing = {"run_id", "hooks", "host_pid"} - document.keys()
        if missing:
            return Finding(name, "document", State.DAMAGED, f"lacks {', '.join(sorted(missing))}")
        if document.get("result") is None:
            return Finding(name, "document", State.OK, "no result: it goes on, or it was killed")
    if path.suffix == ".yaml" and not isinstance(found, dict):
        return Finding(name, "document", State.DAMAGED, "holds no mapping")
    return Finding(name, "document", State.OK)
