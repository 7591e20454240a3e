"""Our SAE trainer against SAELens's, dictionary_learning's and sparsify's, interleaved.

    python tests/benchmarks/sae/compare.py                       about 30 minutes on two cores
    python tests/benchmarks/sae/compare.py --quick               a minute
    python tests/benchmarks/sae/compare.py --data minilm         real activations (see minilm.py)
    python tests/benchmarks/sae/compare.py --architecture batchtopk

Every trainer gets the same rows in the same order and --threads threads in a process of its own. The
first round trains on --rows rows and tells FVU, L0 and MMCS; the others train on --speed-rows and add
to the speed. The order rotates from round to round; ratios are taken within rounds. A trainer that is
not installed, or fails, is named and left out. Results are Markdown on standard output.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from asys_bench.harness.judging.stats import ratio_span
from asys_bench.harness.scenarios.sae_synthetic import SyntheticOptions, write_synthetic
from asys_bench.harness.scenarios.sae_training import (
    TRAIN_FILE,
    TrainerSpec,
    TrainingError,
    TrainingOutcome,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "suites/peers"))

from trainers import TRAINERS, train, unavailable

CONFIDENCE = 0.95
Outcomes = dict[str, list[TrainingOutcome | None]]
"""Contender -> one outcome per round; None: it failed."""


def contenders(arguments: argparse.Namespace, spec: TrainerSpec) -> dict[str, TrainerSpec]:
    """Name -> what it trains; those that cannot run here are named on standard error."""
    found = {
        "asys": replace(spec, settings=arguments.asys),
        "asys float32": replace(spec, settings={"dtype": "float32", **arguments.asys}),
    }
    for name in TRAINERS:
        if name != "asys":
            found[name] = replace(spec, trainer=name, settings=arguments.peer.get(name, {}))
    wanted = arguments.only.split(",") if arguments.only else list(found)
    for name in list(found):
        reason = unavailable(found[name].trainer)
        if name not in wanted or reason is not None:
            if reason is not None:
                print(f"{name}: {reason}", file=sys.stderr)
            del found[name]
    return found


def measure(arguments: argparse.Namespace, runs: dict[str, TrainerSpec]) -> Outcomes:
    """All rounds."""
    outcomes: Outcomes = defaultdict(list)
    names = list(runs)
    for number in range(arguments.rounds):
        rows = arguments.rows if number == 0 else min(arguments.rows, arguments.speed_rows)
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            spec = replace(runs[name], rows=rows, seed=arguments.seed + number)
            try:
                found = train(spec, arguments.timeout_s)
            except TrainingError as error:
                print(f"round {number}, {name}: {error}", file=sys.stderr, flush=True)
                outcomes[name].append(None)
                continue
            outcomes[name].append(found)
            print(
                f"round {number}, {name}: {found.rows_per_s:,.0f} rows/s, FVU {found.fvu:.4f}, "
                f"L0 {found.l0:.2f}",
                file=sys.stderr,
                flush=True,
            )
    return outcomes


def table(outcomes: Outcomes) -> str:
    """Markdown: speeds over all rounds, quality of the first."""
    lines = [
        "| trainer | rows/s, median | ours is x times as fast | FVU | L0 | dead | MMCS | "
        "recovered |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ours = outcomes.get("asys", [])
    for name, found in outcomes.items():
        speeds = [one.rows_per_s for one in found if one is not None]
        if not speeds:
            lines.append(f"| {name} | failed | | | | | | |")
            continue
        pairs = [
            (mine.rows_per_s, theirs.rows_per_s)
            for mine, theirs in zip(ours, found, strict=False)
            if mine is not None and theirs is not None
        ]
        quality = found[0]
        cells = [
            name,
            f"{sorted(speeds)[len(speeds) // 2]:,.0f}",
            ratio(pairs) if name != "asys" else "",
            *(["", "", ""] if quality is None else [
                f"{quality.fvu:.4f}", f"{quality.l0:.2f}", f"{quality.dead_ratio:.1%}"]),
            "" if quality is None or quality.mmcs is None else f"{quality.mmcs:.3f}",
            "" if quality is None or quality.recovered_ratio is None
            else f"{quality.recovered_ratio:.1%}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio(pairs: list[tuple[float, float]]) -> str:
    """Median of the per-round ratios with its sign-test interval, or the range of a few rounds."""
    if not pairs:
        return ""
    span = ratio_span([a for a, _ in pairs], [b for _, b in pairs], 1 - CONFIDENCE)
    ratios = [a / b for a, b in pairs]
    if math.isfinite(span.low) and math.isfinite(span.high):
        return f"{span.estimate:.2f} ({span.low:.2f}..{span.high:.2f})"
    return f"{span.estimate:.2f} (range {min(ratios):.2f}..{max(ratios):.2f})"


def prepare(arguments: argparse.Namespace, folder: Path) -> None:
    """The rows, as files that every trainer maps."""
    if arguments.data == "synthetic":
        write_synthetic(folder, SyntheticOptions(rows=arguments.rows, data_seed=arguments.seed))
        return
    sys.path.insert(0, os.fspath(Path(__file__).parent))
    from minilm import write_minilm

    write_minilm(folder, arguments.rows, threads=arguments.threads)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=("synthetic", "minilm"), default="synthetic")
    parser.add_argument("--architecture", default="topk")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--speed-rows", type=int, default=150_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-rows", type=int, default=4096)
    parser.add_argument("--d-sae", type=int, help="default: 2048 (minilm: 3072)")
    parser.add_argument("--k", type=int, help="default: 16 (minilm: 32)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="comma-separated trainers")
    parser.add_argument("--asys", type=json.loads, default={}, help="JSON: fields of SAEConfig")
    parser.add_argument(
        "--peer", type=json.loads, default={}, help='JSON: {"sae_lens": {"lr": 1e-3}, ...}'
    )
    parser.add_argument("--timeout-s", type=float, default=1800)
    parser.add_argument("--quick", action="store_true", help="one round of 60,000 rows")
    parser.add_argument(
        "--folder",
        type=Path,
        help="keep the rows there; rows that are there already are used again",
    )
    parser.add_argument("--json", metavar="FILE", help="all outcomes go there too")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rows, arguments.rounds = 60_000, 1
    minilm = arguments.data == "minilm"
    arguments.d_sae = arguments.d_sae or (3072 if minilm else 2048)
    arguments.k = arguments.k or (32 if minilm else 16)
    return arguments


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory(prefix="asys-sae-") as scratch:
        folder = scratch if arguments.folder is None else os.fspath(arguments.folder)
        if not (Path(folder) / TRAIN_FILE).exists():
            print("making the rows ...", file=sys.stderr, flush=True)
            Path(folder).mkdir(parents=True, exist_ok=True)
            prepare(arguments, Path(folder))
        spec = TrainerSpec(
            trainer="asys",
            folder=folder,
            rows=arguments.rows,
            batch_rows=arguments.batch_rows,
            d_sae=arguments.d_sae,
            k=arguments.k,
            architecture=arguments.architecture,
            threads=arguments.threads,
        )
        outcomes = measure(arguments, contenders(arguments, spec))
    print(
        f"\n{arguments.data}, {arguments.architecture}: F = {arguments.d_sae}, k = {arguments.k}, "
        f"batch {arguments.batch_rows}, {arguments.threads} threads; quality after "
        f"{arguments.rows:,} rows; {arguments.rounds} rounds\n"
    )
    print(table(outcomes))
    if arguments.json:
        plain: dict[str, Any] = {
            name: [one and asdict(one) for one in found] for name, found in outcomes.items()
        }
        Path(arguments.json).write_text(json.dumps(plain, indent=1))


if __name__ == "__main__":
    main()
