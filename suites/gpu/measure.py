"""Every figure that needs a GPU, the most important first; what `make gpu` runs.

    python -P suites/gpu/measure.py --out FOLDER [--parts tests,sae_step] [--seconds 450]

Each part runs in a process of its own with a time limit, and FOLDER/gpu.json is written anew after each:
part -> seconds and figures, or why there are none. Without a GPU every part runs on a simulated one, small,
to show that it runs; its figures are named unmeasured and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
UNMEASURED = "unmeasured: no GPU here"


def without_figures(found: Any) -> Any:
    """What a simulated part returns, with every figure named as none."""
    import parts

    if isinstance(found, dict):
        return {
            name: value if name in parts.NOT_FIGURES else without_figures(value)
            for name, value in found.items()
        }
    return found if isinstance(found, str) or found == [] else UNMEASURED


def run_part(name: str, limit_s: float) -> dict[str, Any]:
    """One part in a process of its own."""
    began = time.monotonic()
    command = [sys.executable, "-P", str(Path(__file__)), "--part", name]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        return {"failed": f"took longer than {limit_s:.0f} s", "stderr": err[-2000:]}
    took = round(time.monotonic() - began, 1)
    if process.returncode:
        return {"failed": f"exit code {process.returncode}", "seconds": took, "stderr": err[-2000:]}
    figures = json.loads(out.splitlines()[-1])
    return {"seconds": took, "figures": figures}


def main() -> int:
    """Exit code 0: every part ran; 1: one failed, the others are in the file."""
    import machine
    import parts

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--parts", default=",".join(parts.PARTS))
    parser.add_argument("--seconds", type=float, default=450.0, help="for everything together")
    parser.add_argument("--part", choices=parts.PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        parts.train_beside()
    if arguments.part:
        found = parts.PARTS[arguments.part]()
        print(json.dumps(found if machine.REAL else without_figures(found)))
        return 0
    chosen = arguments.parts.split(",")
    if unknown := [name for name in chosen if name not in parts.PARTS]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(parts.PARTS)}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"machine": machine.described(), "parts": {}}
    deadline = time.monotonic() + arguments.seconds
    for name in chosen:
        left = deadline - time.monotonic()
        if left < 5:
            document["parts"][name] = {"failed": "no time was left for it"}
        else:
            print(f"{name} ...", flush=True)
            document["parts"][name] = run_part(name, min(left, parts.SECONDS.get(name, 60)))
        partial = arguments.out / "gpu.json.part"
        partial.write_text(json.dumps(document, indent=1) + "\n")
        os.replace(partial, arguments.out / "gpu.json")
        print(json.dumps(document["parts"][name])[:600], flush=True)
    print(f"{arguments.out / 'gpu.json'}")
    return int(any("failed" in found for found in document["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
