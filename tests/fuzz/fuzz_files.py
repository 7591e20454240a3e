"""Damaged archives and checkpoints: every reader answers or raises its typed error.

`python fuzz_files.py archives|checkpoints COUNT SEED` prints what happened as JSON. Memory is limited, so
that a size that a file only claims does not pass for a reader's answer.
"""

from __future__ import annotations

import json
import logging
import random
import resource
import runpy
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from mutate import damage_bytes, damage_tree

from asys_bench.rundir.live_run import ReadingError
from asys_bench.rundir.open_run import open_run
from asys_bench.rundir.verify import verify_run
from asys_bench.sae import (
    ARCHITECTURES,
    CheckpointError,
    SAEConfig,
    SAETrainer,
    load_sae,
)
from asys_bench.sae.checkpoint.checkpoint_store import MANIFEST_FILE, check_seal, seal
from asys_bench.sae.exchange import ExchangeError, read_saelens
from asys_bench.sinks.archive import (
    ArchiveError,
    open_archive,
    read_shard,
    repair_shard,
    verify_archive,
)

ARCHIVER = Path(__file__).parent.parent / "unit" / "sinks" / "archive" / "conftest.py"
SLOW_S = 20.0
MEMORY_BYTES = 3 << 30
"""Address space on top of what is in use once torch and pyarrow are loaded."""


def make_archives(folder: Path) -> list[Path]:
    """Shards of several widths, dtypes and compressions."""
    rig_class = runpy.run_path(str(ARCHIVER))["Rig"]
    made = []
    for number, (compression, dtype, width, values) in enumerate(
        [("none", torch.float32, 6, "keep"), ("zstd", torch.bfloat16, 33, "keep"),
         ("lz4", torch.int8, 64, "keep"), ("none", torch.bool, 9, "keep"),
         ("none", torch.bfloat16, 33, "encoded"), ("zstd", torch.float32, 6, "encoded")]
    ):  # fmt: skip
        rig = rig_class(folder / f"archive-{number}")
        worker = rig.start(compression=compression, values=values)
        for seq in range(5):
            rows = (torch.randn(4 + seq, width) > 0) if dtype is torch.bool else torch.randn(
                4 + seq, width
            )  # fmt: skip
            rig.feed(worker, rig.packet(rows.to(dtype), seq))
        worker.close()
        made += rig.shards()
        rig.page.close()
    return made


def read_archive(run_dir: Path, path: Path, outcomes: Counter[str]) -> None:
    """Everything that reads an archive, and at last the repair; what it leaves opens with pyarrow."""

    def shard() -> None:
        batches, _ = read_shard(path)
        for batch in batches:
            batch.column("values").flatten().to_numpy(zero_copy_only=False)

    def archive() -> None:
        opened = open_archive(run_dir)
        for hook in opened.hooks:
            for _ in opened.batches(hook):
                pass

    for use in (shard, archive, lambda: verify_archive(run_dir), lambda: verify_run(run_dir)):
        try:
            use()
            outcomes["read"] += 1
        except ArchiveError:
            outcomes["ArchiveError"] += 1
    try:
        repair_shard(path)
        outcomes["repaired"] += 1
    except ArchiveError:
        outcomes["not repairable"] += 1
        return
    if path.exists():
        batches, found = read_shard(path)
        assert sum(batch.num_rows for batch in batches) == found.rows
        assert found.ended


def archives(count: int, seed: str, outcomes: Counter[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="asys-fuzz-") as name:
        folder = Path(name)
        originals = make_archives(folder / "whole")
        whole = [path.read_bytes() for path in originals]
        for case in cases(count):
            draw = random.Random(f"{seed}-{case}")
            chosen = draw.randrange(len(originals))
            run_dir = folder / f"run-{case}"
            path = run_dir / "archive" / "policy.mlp" / "archiver-0-0-0.arrows"
            path.parent.mkdir(parents=True)
            path.write_bytes(damage_bytes(whole[chosen], draw, draw.choice(whole)))
            sidecar = originals[chosen].with_suffix(".json").read_bytes()
            kind = draw.randrange(4)
            if kind == 1:
                sidecar = damage_bytes(sidecar, draw)
            elif kind == 2:
                sidecar = json.dumps(damage_tree(json.loads(sidecar), draw)).encode()
            if kind:
                path.with_suffix(".json").write_bytes(sidecar)
            read_archive(run_dir, path, outcomes)
            shutil.rmtree(run_dir)


def make_checkpoints(folder: Path) -> list[Path]:
    """One store per architecture, of a trainer that has trained."""
    made = []
    for architecture in ARCHITECTURES:
        config = SAEConfig.model_validate(
            {"architecture": architecture, "d_sae": 12, "k": 3, "batch_rows": 16, "buffer_rows": 32,
             "held_out_rows": 16}
        )  # fmt: skip
        trainer = SAETrainer(config, hook_name="h")
        rows = torch.randn(60, 6, generator=torch.Generator().manual_seed(1))
        target = torch.randn(60, 4) if architecture == "skip_transcoder" else None
        widths = (2, 4) if architecture == "crosscoder" else None
        trainer.ingest(rows, (0, 0, 0), target_ND=target, hook_widths=widths)
        trainer.train(max_steps=2, wait_for_fill=False)
        written = trainer.save(folder / architecture, sync=False)
        assert written is not None
        made.append(written)
    return made


def read_checkpoint(run_dir: Path, folder: Path, config: SAEConfig, outcomes: Counter[str]) -> None:
    def resume() -> None:
        SAETrainer(config).load(folder.parent)

    def verify() -> None:
        verify_run(run_dir)

    def use() -> None:
        sae, _ = load_sae(folder)
        sae(torch.zeros(2, sae.d_in))

    uses = (lambda: check_seal(folder), use, resume, lambda: read_saelens(folder), verify)
    for reader in uses:
        try:
            reader()
            outcomes["read"] += 1
        except (CheckpointError, ExchangeError) as error:
            outcomes[type(error).__name__] += 1
    try:
        open_run(run_dir).sae("h")
        outcomes["read"] += 1
    except (CheckpointError, ReadingError) as error:
        outcomes[type(error).__name__] += 1


def checkpoints(count: int, seed: str, outcomes: Counter[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="asys-fuzz-") as name:
        root = Path(name)
        originals = make_checkpoints(root / "whole")
        configs = [config_of(path) for path in originals]
        run = {"schema": "asys.run/1", "run_id": "r", "hooks": ["h"], "host_pid": 1, "result": {}}
        for case in cases(count):
            draw = random.Random(f"{seed}-{case}")
            chosen = draw.randrange(len(originals))
            run_dir = root / f"run-{case}"
            folder = run_dir / "sae" / "h" / originals[chosen].name
            shutil.copytree(originals[chosen], folder)
            (run_dir / "run.json").write_text(json.dumps(run))
            (folder.parent / "latest").symlink_to(folder.name)
            for path in draw.sample(sorted(folder.iterdir()), draw.choice((1, 1, 2))):
                other = draw.choice(originals) / path.name
                if path.suffix == ".json" and draw.random() < 0.75:
                    tree = damage_tree(json.loads(path.read_text()), draw)
                    path.write_text(json.dumps(tree))
                else:
                    path.write_bytes(damage_bytes(path.read_bytes(), draw, other.read_bytes()))
            if draw.random() < 0.7:  # as a writer would have left it: past the checksums
                (folder / MANIFEST_FILE).unlink(missing_ok=True)
                seal(folder)
            read_checkpoint(run_dir, folder, configs[chosen], outcomes)
            shutil.rmtree(run_dir)


def config_of(path: Path) -> SAEConfig:
    return SAEConfig.model_validate(json.loads((path / "trainer_state.json").read_text())["config"])


def cases(count: int) -> Any:
    """Case numbers, said before each, and how long the slowest took."""
    for case in range(count):
        print(case, file=sys.stderr, flush=True)
        begin = time.perf_counter()
        yield case
        if time.perf_counter() - begin > SLOW_S:
            raise SystemExit(f"case {case}: {time.perf_counter() - begin:.1f} s")


def limit_memory() -> None:
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(kind: str, count: int, seed: str) -> dict[str, int]:
    found: Counter[str] = Counter()
    {"archives": archives, "checkpoints": checkpoints}[kind](count, seed, found)
    return {"cases": count, **found}


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    limit_memory()
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
