"""Hostile run directories: every command that reads one ends, says what is wrong, and stays inside it.

`python fuzz_run_dirs.py BASE COUNT SEED` takes a finished run in the folder BASE, makes COUNT copies hostile
(links, FIFOs, devices, holes, bombs, depth, truncation, wrong values) and lets verify, repair, report, train,
export, top and `open_run` loose on each, in a child forked from this process. Prints as JSON what happened.

A case fails when a command raises what is not its own error, dies by a signal, hangs, takes over 10 s of
CPU or grows by over 256 MiB, or when anything outside of the directory has changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from mutate import damage_bytes, damage_tree

import asys_bench.offline
import asys_bench.reports.run_report.analysis
import asys_bench.rundir.verify  # noqa: F401 - imported once, before the forks
from asys_bench.cli.run import main as asys_run
from asys_bench.rundir.live_run import ReadingError
from asys_bench.rundir.open_run import open_run
from asys_bench.sae import CheckpointError
from asys_bench.sinks.archive import ArchiveError

LIMIT_S, HANG_S, LIMIT_GROWTH_BYTES = 10.0, 60, 256 << 20
"""Seconds of CPU, seconds until a command counts as hung, and memory."""
Mutation = Callable[[Path, random.Random, Path], None]
"""(the run's folder, what to draw from, the canary outside of it)."""


def plant_canary(folder: Path) -> None:
    """Files that a careless repair would remove, cut or make private."""
    (folder / "projX" / ".tmp-work").mkdir(parents=True)
    (folder / "projX" / ".tmp-work" / "data").write_text("precious\n")
    (folder / "projX" / "step_000000001").mkdir()
    (folder / "projX" / "step_000000001" / "cfg.json").write_text("{}")
    (folder / ".notes.tmp").write_text("precious\n")
    (folder / "mine.jsonl").write_text('{"event":"a"}\nnot a whole line')
    (folder / "mine.csv").write_text("time_s,value\n1,2\n3")
    (folder / "mine.arrows").write_bytes(struct.pack("<Ii", 0xFFFFFFFF, 64) + b"torn")
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def fingerprint(folder: Path) -> str:
    """Names, modes, sizes, times and bytes of a tree."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        row = (str(path), status.st_mode, status.st_size, status.st_mtime_ns)
        found.update(repr(row).encode())
        if path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()


def _files(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.is_file() and not path.is_symlink())


def _folders(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.is_dir() and not path.is_symlink())


def _away(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


# What takes the place of a file.


def special_file(run: Path, draw: random.Random, canary: Path) -> None:
    path = draw.choice(_files(run))
    _away(path)
    kind = draw.choice(("fifo", "zero", "canary", "loop", "folder", "socket", "device", "dangling"))
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "zero":
        path.symlink_to("/dev/zero")
    elif kind == "canary":
        path.symlink_to(draw.choice(_files(canary)))
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's name may have 107 bytes
        with suppress(OSError):
            os.mknod(path.name, 0o140600)
        os.chdir(here)
    elif kind == "device":
        with suppress(OSError):
            os.mknod(path, 0o020600, os.makedev(1, 5))
    else:
        path.symlink_to("nowhere")


def linked_folder(run: Path, draw: random.Random, canary: Path) -> None:
    path = draw.choice(_folders(run))
    _away(path)
    path.symlink_to(draw.choice([canary, canary / "projX", run, Path("/proc"), Path(".")]))


def leftovers(run: Path, draw: random.Random, canary: Path) -> None:
    """Names that a repair, a writer or a report takes for its own."""
    target = draw.choice([canary, canary / "projX", *_files(canary)])
    name = draw.choice((
        ".tmp-work", ".tmp-latest", "step_999999999", "latest", "x.json.tmp", "report.html.partial",
        "report.html", "monitor.log.torn", "metrics.csv.torn", "sae-offline", ".readers",
        ".archive-0-0-9.tmp", "archive-0-0-9.arrows", "archive-0-0-9.json", "archive-0-0-0.arrows.torn",
    ))  # fmt: skip
    path = draw.choice([run, *_folders(run)]) / name
    if os.path.lexists(path):
        _away(path)
    path.symlink_to(target)


def crowd(run: Path, draw: random.Random, canary: Path) -> None:
    folder = draw.choice([run, *_folders(run)])
    if draw.random() < 0.5:
        deep = folder.joinpath(*["d"] * draw.choice((18, 200)))
        deep.mkdir(parents=True)
        return
    for number in range(draw.choice((50, 3000))):
        (folder / f"{draw.choice(('a', '.tmp-', 'step_00000', '.'))}{number:05d}").touch()


def odd_names(run: Path, draw: random.Random, canary: Path) -> None:
    folder = draw.choice([run, *_folders(run)])
    for name in ("[/red]", "\x1b[2J\x1b]0;owned\x07", "a\nb", "[bold", "\udcff", "-rf", "é" * 100):
        with suppress(OSError):
            (folder / name).write_bytes(b"x")


# What a file says.


def damaged(run: Path, draw: random.Random, canary: Path) -> None:
    path = draw.choice(_files(run))
    path.write_bytes(damage_bytes(path.read_bytes(), draw))


def wrong_values(run: Path, draw: random.Random, canary: Path) -> None:
    path = draw.choice([path for path in _files(run) if path.suffix == ".json"])
    with suppress(ValueError):
        tree = damage_tree(json.loads(path.read_text()), draw, changes=6)
        path.write_text(json.dumps(tree))
    for manifest in path.parent.glob("manifest.json"):
        manifest.unlink()  # past the checksums


def bombs(run: Path, draw: random.Random, canary: Path) -> None:
    path = draw.choice([path for path in _files(run) if path.suffix in (".json", ".yaml")])
    kind = draw.randrange(6)
    if kind == 0:
        depth = draw.choice((70, 900, 200_000))
        path.write_text("[" * depth + "]" * depth * draw.randrange(2))
    elif kind == 1:
        path.write_text("[" + "[]," * 2_500_000 + "1]")
    elif kind == 2:
        path.write_text("{" + ",".join(f'"{n}":{{}}' for n in range(400_000)) + "}")
    elif kind == 3:
        path.write_text('{"schema":"asys.run/1","run_id":' + "9" * 100_000 + "}")
    elif kind == 4:
        path.write_text("&a [" + "*a," * 1000 + "]\n" + "- " * 5000)
    else:
        text = "a0: &a0 {x0: 1, y0: 2, z0: 3}\n"
        for n in range(1, 12):
            text += f"a{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 9)}]}}\n"
        path.write_text(text)


def holes(run: Path, draw: random.Random, canary: Path) -> None:
    path = draw.choice(_files(run))
    size = draw.choice((300 << 20, 30 << 30))
    os.truncate(path, size)
    if path.suffix == ".safetensors" and draw.random() < 0.7:
        rows = (size - 4096) // 4
        header = json.dumps(
            {"W_enc": {"dtype": "F32", "shape": [1, rows], "data_offsets": [0, 4 * rows]}}
        )
        with path.open("r+b") as file:
            file.write(struct.pack("<Q", len(header)) + header.encode())


def safetensors_header(run: Path, draw: random.Random, canary: Path) -> None:
    path = draw.choice([path for path in _files(run) if path.suffix == ".safetensors"])
    body = path.read_bytes()
    length = draw.choice((1 << 63, 99 << 20, 50 << 20, len(body) * 2, 0))
    if draw.random() < 0.5:
        pad = b" " * draw.choice((2 << 20, 60 << 20))
        body = struct.pack("<Q", len(pad)) + pad
    else:
        body = struct.pack("<Q", length) + body[8:]
    path.write_bytes(body)


def shard(run: Path, draw: random.Random, canary: Path) -> None:
    """A shard whose stream is whole and whose content is not to be believed."""
    path = draw.choice([path for path in _files(run) if path.suffix == ".arrows"])
    with pa.ipc.open_stream(path.read_bytes()) as stream:
        schema, batch = stream.schema, stream.read_next_batch()
    columns = {name: batch.column(name) for name in schema.names}
    rows, width, kind = batch.num_rows, schema.field("values").type.list_size, draw.randrange(7)
    compression = None
    if kind < 3:
        value = (0.0, float("nan"), -1.0)[kind]
        columns["sampling_rate"] = pa.array(np.full(rows, value, dtype=np.float32))
    elif kind == 3:
        names = [draw.choice(("a" * 1_000_000, "../../x", "[/red]", "\x1b[2J"))] * rows
        columns["hook" if draw.random() < 0.5 else "encoding"] = pa.array(names)
    elif kind == 4:
        compression = "zstd"
        rows = (400 << 20) // (4 * width)
        values = pa.array(np.zeros(rows * width, dtype=np.float32))
        one = {name: column.slice(0, 1) for name, column in columns.items()}
        columns = {
            name: pa.concat_arrays([one[name]] * 1).take(pa.array(np.zeros(rows, dtype=np.int32)))
            for name in schema.names
            if name != "values"
        }
        columns["values"] = pa.FixedSizeListArray.from_arrays(values, width)
    elif kind == 5:
        columns["host_step"] = pa.array(np.full(rows, (1 << 64) - 1, dtype=np.uint64))
        columns["seq"] = columns["host_step"]
    else:
        described = dict(schema.metadata)
        described[draw.choice((b"hook", b"run_id"))] = draw.choice(
            (b"../../../x", b"[/red]\x1b[2J", b"a" * 100_000, b"", b"\xff\xfe")
        )
        schema = schema.with_metadata(described)
    fields = [columns[name] for name in schema.names]
    made = pa.record_batch(fields, schema=pa.schema(
        [pa.field(name, column.type) for name, column in zip(schema.names, fields, strict=True)],
        metadata=schema.metadata,
    ))  # fmt: skip
    with pa.ipc.new_stream(
        path, made.schema, options=pa.ipc.IpcWriteOptions(compression=compression)
    ) as out:
        out.write_batch(made)
    path.with_suffix(".json").unlink(missing_ok=True)


def tables(run: Path, draw: random.Random, canary: Path) -> None:
    path = run / draw.choice(("metrics.csv", "monitor.log"))
    if not path.is_file() or path.is_symlink():
        return
    with path.open("ab") as file:
        kind = draw.randrange(5)
        if kind == 0:
            file.write(b"x" * (200 << 20))
        elif kind == 1:
            file.write(b'"' + b"y" * 200_000 + b'"\n')
        elif kind == 2:
            file.write(b"[" * 5000 + b"\n" + b'{"event":' * 2000 + b"\n")
        elif kind == 3:
            file.write(b"\0\0\0,,,\n" + b"nan,inf,1e999,,,,,,,\n" * 1000)
        else:
            file.write(b'{"event":"[/red]\\u001b[2J","time_s":1e999,"level":{}}\n')


def events(run: Path, draw: random.Random, canary: Path) -> None:
    for path in run.glob("tensorboard/*"):
        if path.is_file() and not path.is_symlink():
            with path.open("ab") as file:
                file.write(struct.pack("<QI", draw.choice((1 << 40, (1 << 64) - 1, 0)), 0))


def pointers(run: Path, draw: random.Random, canary: Path) -> None:
    """A run.json that leads a reader to other places."""
    path = run / "run.json"
    with suppress(OSError, ValueError, MemoryError):
        document = json.loads(path.read_text())
        with open(f"/proc/{os.getppid()}/stat", "rb") as file:
            started = int(file.read().rpartition(b")")[2].split()[19])
        places = [str(canary / "mine.jsonl"), "/dev/zero", "/dev/tty", f"/proc/{os.getppid()}/fd/0", 7,
                  "/proc/self/fd/0", f"/proc/{os.getppid()}/fd/../cwd"]  # fmt: skip
        document |= {
            "result": None, "host_pid": os.getppid(), "host_start": started,
            "stats_page": draw.choice(places),
            "bus": draw.choice((None, {}, {"handle": {"backend": "cpp_spmc"}, "fds": [draw.choice(places)]})),
        }  # fmt: skip
        path.write_text(json.dumps(document))


MUTATIONS: tuple[Mutation, ...] = (
    special_file, special_file, linked_folder, linked_folder, leftovers, leftovers, crowd, odd_names,
    damaged, wrong_values, wrong_values, bombs, bombs, holes, safetensors_header, shard, shard, tables,
    events, pointers,
)  # fmt: skip


def commands(run: Path, out: Path) -> dict[str, Callable[[], int | None]]:
    """Every reader of a run's folder, the repair after those that only read."""

    def opened() -> None:
        found = open_run(run)
        repr(found)
        uses: list[Callable[[], Any]] = [
            lambda: found.summary, lambda: found.vocabulary, lambda: found.metrics("sae_fvu"),
            lambda: found.metrics(),
            lambda: [sae(torch.zeros(1, sae.d_in)) for sae in map(found.sae, found.hooks)],
            lambda: [
                next(iter(found.archive.batches(hook, ("values", "row"))), None)
                for hook in found.archive.hooks
            ],
        ]  # fmt: skip
        for use in uses:
            with suppress(ReadingError, ArchiveError, CheckpointError, KeyError):
                use()

    return {
        "open_run": opened,
        "verify": lambda: asys_run(["verify", str(run)]),
        "verify --json": lambda: asys_run(["verify", "--json", str(run)]),
        "top": lambda: asys_run(["top", str(run), "--once"]),
        "export": lambda: asys_run(
            ["export", str(run), "--format", "saelens", "--out", str(out / "e")]
        ),
        "report": lambda: asys_run(["report", str(run)]),
        "train": lambda: asys_run(["train", "--archive", str(run), "--set", "epochs=1"]),
        "repair": lambda: asys_run(["verify", "--repair", str(run)]),
        "repair again": lambda: asys_run(["verify", "--repair", "--discard-torn", str(run)]),
    }


def _peak_bytes() -> tuple[int, int]:
    """(resident now, resident at most since the last reset)."""
    found = {}
    with open("/proc/self/status") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name in ("VmRSS", "VmHWM"):
                found[name] = int(value.split()[0]) << 10
    return found["VmRSS"], found["VmHWM"]


def run_command(name: str, call: Callable[[], int | None]) -> str:
    """What became of it; a text that begins with FAILED is a finding."""
    expected = (ReadingError, ArchiveError, CheckpointError)
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before, _ = _peak_bytes()
    began = time.process_time()
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            code = call()
        outcome = f"exit {code}" if isinstance(code, int) else "answered"
        if "Traceback" in said.getvalue():
            outcome = f"FAILED: a traceback: {said.getvalue()[-600:]}"
        elif "\x1b" in said.getvalue():
            outcome = f"FAILED: escapes on the terminal: {said.getvalue()[-200:]!r}"
    except expected as error:
        outcome = type(error).__name__ if name == "open_run" else f"FAILED: {error!r}"
    except SystemExit as end:
        outcome = f"exit {end.code}"
    except BaseException:  # noqa: BLE001 - whatever it is, it is the finding
        outcome = f"FAILED: {traceback.format_exc()[-1500:]}"
    took, (_, peak_bytes) = time.process_time() - began, _peak_bytes()
    if took > LIMIT_S:
        outcome = f"FAILED: {took:.1f} s of CPU; {outcome}"
    if peak_bytes - before > LIMIT_GROWTH_BYTES:
        outcome = f"FAILED: grew by {(peak_bytes - before) >> 20} MiB; {outcome}"
    return outcome


def in_child(name: str, call: Callable[[], int | None]) -> str:
    """`run_command` in a forked child, which is ended when it hangs."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        try:
            text = run_command(name, call)
            os.write(writer, text.encode(errors="replace")[:60_000])
        finally:
            os._exit(0)
    os.close(writer)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(pid, signal.SIGKILL))
    signal.alarm(HANG_S)
    with os.fdopen(reader, "rb") as answers:
        text = answers.read().decode(errors="replace")
    _, status = os.waitpid(pid, 0)
    signal.alarm(0)
    if not text:
        code = os.waitstatus_to_exitcode(status)
        return f"FAILED: ended by itself with {code} (-9: after {HANG_S} s)"
    return text


def one_case(base: Path, root: Path, case: int, seed: str, outcomes: Counter[str]) -> list[str]:
    """Failures of one hostile directory."""
    draw = random.Random(f"{seed}-{case}")
    run, canary, out = root / "run", root / "canary", root / "out"
    for folder in (canary, out):
        folder.mkdir()
    shutil.copytree(base, run, symlinks=True)
    plant_canary(canary)
    chosen = [draw.choice(MUTATIONS) for _ in range(draw.choice((1, 1, 2, 3)))]
    for mutation in chosen:
        with suppress(IndexError, OSError, pa.ArrowInvalid, StopIteration):  # nothing of it is left
            mutation(run, draw, canary)
    before = fingerprint(canary)
    failed = []
    for name, call in commands(run, out).items():
        outcome = in_child(name, call)
        outcomes[f"{name}: {outcome if len(outcome) < 40 else outcome[:6]}"] += 1
        if outcome.startswith("FAILED"):
            failed.append(f"{name}: {outcome}")
        if fingerprint(canary) != before:
            failed.append(f"{name}: something outside of the run has changed")
            before = fingerprint(canary)
    return [f"case {case} ({', '.join(m.__name__ for m in chosen)}): {what}" for what in failed]


def warm_up(base: Path) -> None:
    """Use everything once on the whole run, so that no child has to import it; all of it must succeed."""
    with tempfile.TemporaryDirectory(prefix="asys-fuzz-") as folder:
        run, out = Path(folder) / "run", Path(folder) / "out"
        shutil.copytree(base, run, symlinks=True)
        out.mkdir()
        for name, call in commands(run, out).items():
            said = run_command(name, call)
            wanted = "exit 2" if name == "top" else "answered" if name == "open_run" else "exit 0"
            if not said.endswith(wanted):  # also after "FAILED: grew by": it has imported much
                raise SystemExit(f"{name} on the run as it was: {said}")


def main(base: str, count: int, seed: str) -> dict[str, Any]:
    """Counts of what happened; `failures` lists what must not."""
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    torch.set_num_threads(1)
    warm_up(Path(base))
    for case in range(count):
        print(case, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="asys-fuzz-") as folder:
            found = one_case(Path(base), Path(folder), case, seed, outcomes)
        print(*found, sep="\n", file=sys.stderr, flush=True)
        failures += found
    return {"cases": count, "failures": failures, **outcomes}


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
