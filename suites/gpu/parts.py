"""What is measured, a function each; the order is that of `PARTS`. Each returns plain figures."""

from __future__ import annotations

import importlib.util
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import machine
import torch
from machine import DEVICE, REAL

ROOT = Path(__file__).parents[2]
SIZES = {"16KiB": 1 << 14, "1MiB": 1 << 20, "16MiB": 1 << 24}


def tests() -> dict[str, Any]:
    """tests/gpu; without a GPU all of it is skipped, and the trainer's tests run on the simulated one."""
    if importlib.util.find_spec("pytest") is None or importlib.util.find_spec("hypothesis") is None:
        return {"unavailable": "pytest or hypothesis is not carried"}
    chosen = ["tests/gpu"] + ([] if REAL else ["tests/unit/sae/test_device.py", "-m", "not rest"])
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"exit_code": done.returncode, "last_line": lines[-1] if lines else "", "failed": failed}


def hook_cost() -> dict[str, Any]:
    """What a hook adds to the host's stream, in microseconds a call, by events around fixed work."""
    rounds, calls = (40, 16) if REAL else (2, 2)
    found: dict[str, Any] = {}
    work = torch.ones(1 << 20, device=DEVICE)
    for name, size in SIZES.items():
        with _streamer(size, calls) as (submit, drain):
            tensor = torch.randn(size // 4096, 1024, device=DEVICE)

            def pieces(
                hook: Callable[[torch.Tensor], None] | None, tensor: torch.Tensor = tensor
            ) -> None:
                for _ in range(calls):
                    work.mul_(1.0)
                    if hook is not None:
                        hook(tensor)

            added = []
            for turn in range(rounds + 1):
                order = [None, submit] if turn % 2 else [submit, None]
                took = {hook is not None: _ahead(lambda h=hook: pieces(h)) for hook in order}
                drain()
                if turn:  # the first one compiles and touches memory
                    added.append((took[True] - took[False]) * 1e6 / calls)
        added.sort()
        found[name] = {
            "p50_us": statistics.median(added),
            "p99_us": added[min(len(added) - 1, int(0.99 * len(added)))],
        }
    return found


def ring_fill() -> dict[str, Any]:
    """Bytes a second from the first hook to the last packet on the bus, over those of a bare copy to
    page-locked memory."""
    calls, size = (256, 1 << 20) if REAL else (4, 1 << 14)
    tensor = torch.randn(size // 4096, 1024, device=DEVICE)
    pinned = torch.empty(tensor.shape, pin_memory=REAL)

    def bare() -> None:
        for _ in range(calls):
            pinned.copy_(tensor, non_blocking=True)

    bare()
    machine.finish()
    copies = statistics.median(size * calls / machine.seconds(bare) for _ in range(5))
    with _streamer(size, calls) as (submit, drain):
        rates = []
        for _ in range(5 if REAL else 1):
            machine.finish()
            began = time.perf_counter()
            for _ in range(calls):
                submit(tensor)
            drain()
            rates.append(size * calls / (time.perf_counter() - began))
    ring = statistics.median(rates)
    return {"ring_gbps": ring / 1e9, "pinned_copy_gbps": copies / 1e9, "ratio": ring / copies}


def observed_training() -> dict[str, Any]:
    """A training step of a small transformer with its hooks and without, in blocks by turns."""
    import asys_bench

    model, step = machine.small_transformer()
    blocks, steps = (24, 10) if REAL else (2, 2)
    took: dict[bool, list[float]] = {True: [], False: []}
    with (
        tempfile.TemporaryDirectory() as folder,
        asys_bench.observe(model, hooks=["layers.1"], run={"dir": folder}, quiet=True) as seen,
    ):
        for turn in range(blocks + 2):
            for observed in (True, False) if turn % 2 else (False, True):
                seen.paused = not observed
                machine.finish()
                began = time.perf_counter()
                for _ in range(steps):
                    step()
                machine.finish()
                if turn > 1:
                    took[observed].append((time.perf_counter() - began) / steps)
    ratios = [a / b for a, b in zip(took[True], took[False], strict=True)]
    return {
        "step_ms": 1e3 * statistics.median(took[False]),
        "observed_over_plain": statistics.median(ratios),
        "spread": [min(ratios), max(ratios)],
    }


def sae_step() -> dict[str, Any]:
    """Rows a second of TopK training steps, d 4096, F 65,536, k 64, batches of 4,096; peers beside, and
    ours with an encoder product in float32."""
    width, features, k, rows = (4096, 65_536, 64, 4096) if REAL else (32, 128, 4, 64)
    found: dict[str, Any] = {"width": width, "features": features, "k": k, "batch_rows": rows}
    steps = 30 if REAL else 2
    contenders = {"asys": _asys, "asys float32": partial(_asys, dtype="float32"),
                  "sparsify": _sparsify, "sae_lens": _sae_lens}  # fmt: skip
    for name, make in contenders.items():
        if not name.startswith("asys") and importlib.util.find_spec(name) is None:
            found[name] = {"unavailable": f"{name} is not carried"}
            continue
        try:
            found[name] = make(width, features, k, rows, steps)
        except Exception as error:  # noqa: BLE001 - one contender's fault is not the others'
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
        if REAL:
            torch.cuda.empty_cache()
    return found


def sae_parts() -> dict[str, Any]:
    """Milliseconds of what could be done otherwise in such a step, each way: the encoder's product in
    float32 and in bfloat16, the k largest in one stage and in two, decoding by weights in float32 and in
    bfloat16 (which a float32 master would have to be rounded to in each step)."""
    from asys_bench.sae.kernels import torch_kernels

    width, features, k, rows = (4096, 65_536, 64, 2048) if REAL else (32, 256, 4, 64)
    x_BD, W_FD = (torch.randn(n, width, device=DEVICE) for n in (rows, features))
    short = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
    tables = {dtype: W_FD.to(dtype) for dtype in short}
    b_F = torch.zeros(features, device=DEVICE)
    pre_BF = torch_kernels.product(x_BD, tables[torch.bfloat16], b_F)
    codes = torch_kernels.top_k(x_BD, W_FD, b_F, k, tables[torch.bfloat16])
    found: dict[str, Any] = {"width": width, "features": features, "k": k, "batch_rows": rows}
    for dtype, name in short.items():
        table_FD, value_N = tables[dtype], codes.value_N.to(dtype)
        found[f"product_{name}_ms"] = _ms(lambda t=table_FD: torch_kernels.product(x_BD, t, b_F))
        found[f"decode_{name}_ms"] = _ms(
            lambda t=table_FD, v=value_N: torch_kernels.decode(codes, v, t)
        )
    found["round_weights_ms"] = _ms(lambda: tables[torch.bfloat16].copy_(W_FD))
    for staged, name in ((False, "one_stage"), (True, "two_stages")):
        found[f"largest_{name}_ms"] = _ms(
            lambda s=staged: torch_kernels.largest(pre_BF, k, staged=s)
        )
    return found


def shared_gpu() -> dict[str, Any]:
    """Seconds of a host's step with a trainer on the same GPU over those with the trainer stopped."""
    _, step = machine.small_transformer()
    blocks, steps = (16, 10) if REAL else (2, 2)
    command = [sys.executable, "-P", str(Path(__file__).with_name("measure.py")), "--train"]
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    took: dict[bool, list[float]] = {True: [], False: []}
    try:
        assert trainer.stdout is not None
        if trainer.stdout.readline().strip() != "trains":
            raise RuntimeError("the trainer beside did not begin")
        for turn in range(blocks + 1):
            for shared in (True, False) if turn % 2 else (False, True):
                os.kill(trainer.pid, signal.SIGCONT if shared else signal.SIGSTOP)
                time.sleep(0.2 if REAL else 0.01)  # what it had queued runs out
                began = time.perf_counter()
                for _ in range(steps):
                    step()
                machine.finish()
                if turn:
                    took[shared].append((time.perf_counter() - began) / steps)
    finally:
        os.kill(trainer.pid, signal.SIGCONT)
        trainer.kill()
        trainer.wait()
    ratios = [a / b for a, b in zip(took[True], took[False], strict=True)]
    return {"shared_over_alone": statistics.median(ratios), "spread": [min(ratios), max(ratios)]}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    part.__name__: part
    for part in (tests, hook_cost, ring_fill, observed_training, sae_step, sae_parts, shared_gpu)
}
"""Most important first."""
SECONDS = {"tests": 200, "observed_training": 120, "sae_step": 120, "shared_gpu": 90}
"""What a part may take; others 60."""
NOT_FIGURES = frozenset(
    {"width", "features", "k", "batch_rows", "unavailable", "failed", "exit_code", "last_line"}
)


def train_beside() -> None:
    """Train an SAE until this process is killed: the trainer of `shared_gpu`."""
    width, features, k, rows = (1024, 16_384, 32, 4096) if REAL else (32, 128, 4, 64)
    with machine.training_device() as device:
        trainer = _trainer(device, width, features, k, rows)
        trainer.train(max_steps=1)
        print("trains", flush=True)
        while True:
            _feed(trainer, width, rows)
            trainer.train(max_steps=8)


# Contenders of `sae_step`.


def _trainer(device: Any, width: int, features: int, k: int, rows: int, dtype: Any = "auto") -> Any:
    from asys_bench.sae import SAEConfig, SAETrainer

    config = SAEConfig(
        d_sae=features,
        k=k,
        batch_rows=rows,
        buffer_rows=4 * rows,
        held_out_fraction=0.0,
        passes=1000,
        dtype=dtype,
    )
    trainer = SAETrainer(config, device=device)
    for _ in range(4):
        _feed(trainer, width, rows)
    return trainer


def _feed(trainer: Any, width: int, rows: int) -> None:
    trainer.ingest(torch.randn(rows, width), (0, 0, trainer.metrics.rows_ingested))


def _asys(
    width: int, features: int, k: int, rows: int, steps: int, dtype: str = "auto"
) -> dict[str, Any]:
    with machine.training_device() as device:
        trainer = _trainer(device, width, features, k, rows, dtype)
        trainer.train(max_steps=3)
        machine.finish()
        began = time.perf_counter()
        done = trainer.train(max_steps=steps)
        machine.finish()
        took = time.perf_counter() - began
        kernels = trainer._hook.learner.kernels
        stages = "two" if kernels.staged else "one"
        return {"rows_per_s": done * rows / took, "kernels": kernels.name, "stages": stages}


def _ms(work: Callable[[], object]) -> float:
    work()
    return 1e3 * statistics.median(machine.seconds(work) for _ in range(10 if REAL else 1))


def _autograd(
    parameters: Any, loss: Callable[[], torch.Tensor], rows: int, steps: int
) -> dict[str, Any]:
    optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=REAL)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    for _ in range(3):
        step()
    machine.finish()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    machine.finish()
    return {"rows_per_s": steps * rows / (time.perf_counter() - began)}


def _sparsify(width: int, features: int, k: int, rows: int, steps: int) -> dict[str, Any]:
    if not REAL:
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # its kernels want a GPU; read when imported
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(width, SparseCoderConfig(num_latents=features, k=k), device=DEVICE)
    x = torch.randn(rows, width, device=DEVICE)
    return _autograd(coder.parameters(), lambda: coder(x).fvu, rows, steps)


def _sae_lens(width: int, features: int, k: int, rows: int, steps: int) -> dict[str, Any]:
    import sae_lens

    config = sae_lens.TopKTrainingSAEConfig(
        d_in=width, d_sae=features, k=k, device=str(DEVICE), normalize_activations="none"
    )
    sae = sae_lens.TopKTrainingSAE(config)
    x = torch.randn(rows, width, device=DEVICE)
    return _autograd(sae.parameters(), lambda: (sae(x) - x).square().sum(1).mean(), rows, steps)


# The hook path without a model.


class _streamer:  # noqa: N801 - used as a function
    """Within the block (submit, drain) of a streamer onto a bus that somebody empties."""

    def __init__(self, size: int, calls: int) -> None:
        self._mib = max(64, 4 * calls * size >> 20) if REAL else 4
        self._calls = calls

    def __enter__(self) -> tuple[Callable[[torch.Tensor], None], Callable[[], None]]:
        from asys_bench.capture.gpu.streamer import DeviceStreamer
        from asys_bench.config.assembly import create_data_bus
        from asys_bench.config.sections.bus import BusConfig, DeviceConfig
        from asys_bench.contracts.bus import GroupSpec
        from asys_bench.contracts.packet import DTYPE_CODE, Kind, PacketMeta
        from asys_bench.kernels.identity.kernel import IdentityPreprocessor

        backend = "cpp_spmc" if _compiled() else "mp_queue"
        mib = max(64, self._mib)
        self._bus = create_data_bus(BusConfig(backend=backend, capacity_mib=mib), [GroupSpec("g")])
        self._taker = machine.Drain(self._bus)
        self._taker.start()
        options = DeviceConfig(
            staging_mib=mib, buffer_mib=mib, max_in_flight=max(64, 4 * self._calls)
        )
        self._streamer = streamer = DeviceStreamer(
            machine.capture_runtime(),
            self._bus.producer(0),
            threading.Lock(),
            options,
            devices=(DEVICE,),
        )
        kernel = IdentityPreprocessor("torch")

        def meta(encoded: Any) -> Any:
            shape = tuple(encoded.shape)
            return PacketMeta(0, Kind.ACTIVATION, DTYPE_CODE[encoded.dtype], shape)

        def submit(tensor: torch.Tensor) -> None:
            drop = streamer.submit(tensor, kernel, meta, key="h", timeout_s=0.0)
            if drop is not None:
                raise RuntimeError(f"a packet was dropped ({drop}): the figures would be wrong")

        def drain() -> None:
            if streamer.drain(60):
                raise RuntimeError("packets are stuck")

        return submit, drain

    def __exit__(self, *raised: object) -> None:
        self._streamer.close(60)
        self._taker.end()
        self._bus.close()


def _compiled() -> bool:
    try:
        from asys_bench.backends.cpp_spmc import _spmc  # noqa: F401
    except ImportError:
        return False
    return True


def _ahead(work: Callable[[], None]) -> float:
    """Seconds of the stream alone: the host's thread is ahead of it."""
    machine.finish()
    if REAL:
        torch.cuda._sleep(20_000_000)
    return machine.seconds(work)
