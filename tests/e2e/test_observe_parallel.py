"""FSDP, tensor parallelism, a mesh of both and a pipeline on gloo ranks: rows are the unsharded model's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import asys_bench
from asys_bench.contracts.encodings.parts import part_decoder
from asys_bench.sinks.decoding import decoder_of
from tests.e2e.ports import free_port

SCRIPT = Path(__file__).with_name("parallel_script.py")
PATIENCE_S = 500.0
"""DeepSpeed compiles an operator at its first use, which takes a busy machine minutes."""
STEPS = 24
"""So many that ranks whose packets come in leases of their own at first are still compared."""
LAYERS = ("layers.0", "layers.1", "layers.2", "layers.3")
DTYPES = [
    "float64",
    pytest.param("float32", marks=pytest.mark.soak("a further dtype")),
]
pytestmark = [pytest.mark.timeout(600), pytest.mark.rest]


def torchrun(ranks):
    return (
        *("torch.distributed.run", "--nproc-per-node", str(ranks)),
        *("--master-addr", "127.0.0.1", "--master-port", str(free_port())),
    )


def accelerate_launch(ranks):
    """`accelerate launch`; without --multi_gpu it starts one process on a machine without GPUs."""
    return (
        *("accelerate.commands.launch", "--multi_gpu", "--num_processes", str(ranks)),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *("--main_process_ip", "127.0.0.1", "--main_process_port", str(free_port())),
    )


def trained(tmp_path, case, dtype, ranks=2, launcher=torchrun):
    """The run of all ranks, and what each saw of the unsharded model."""
    command = [sys.executable, "-m", *launcher(ranks)]
    command += [str(SCRIPT), case, str(tmp_path), dtype, str(STEPS)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "DS_ACCELERATOR": "cpu",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # DeepSpeed calls ninja
    }
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, env=environment
    )
    assert done.returncode == 0, done.stderr
    folders = [path.parent for path in tmp_path.glob("*/run.json")]
    assert len(folders) == 1, "one run for the node"
    references = [torch.load(tmp_path / f"reference-{rank}.pt") for rank in range(ranks)]
    return asys_bench.open_run(folders[0]), references


def is_close(values_ND, expected_ND, dtype, whole_ND=None):
    """float64: within 1e-12. float32: within 1e-5 of the row's norm.

    whole_ND: gradients, of which some rows are sums that cancel: 1e-5 of their longest row's norm.
    """
    values_ND, expected_ND = np.float64(values_ND), np.float64(expected_ND)
    tolerance = 1e-12
    if dtype == "float32":
        norm_N1 = np.linalg.norm(
            expected_ND if whole_ND is None else whole_ND, axis=-1, keepdims=True
        )
        tolerance = 1e-5 * (norm_N1 if whole_ND is None else norm_N1.max())
    return bool((np.abs(values_ND - expected_ND) <= tolerance).all())


def rows_of(run, hook, source):
    """Rows of one rank: (step, microbatch, row) -> values."""
    found = {}
    names = ("values", "row", "host_step", "source", "microbatch")
    for batch in run.archive.batches(hook, names):
        for at in np.flatnonzero(batch["source"] == source).tolist():
            key = int(batch["host_step"][at]), int(batch["microbatch"][at]), int(batch["row"][at])
            assert key not in found
            found[key] = batch["values"][at]
    return found


def check_activations(run, hook, source, expected_SND, dtype="float64"):
    """Every row of every step of one rank."""
    found = rows_of(run, hook, source)
    assert len(found) == expected_SND.shape[0] * expected_SND.shape[1]
    values = np.stack([found[key] for key in sorted(found)])
    assert is_close(values, expected_SND.reshape(values.shape).numpy(), dtype)


def check_accounts(run, ranks=2):
    """Per rank and hook: every call ended in one way; on the bus: every packet."""
    produced = 0
    for rank in range(ranks):
        slot = "host" if rank == 0 else f"host-{rank}"
        series = {
            name: run.metrics(f"hook_{name}", slot=slot)
            for name in ("calls", "captured", "sampled_out", "dropped", "skipped")
        }
        last = {
            name: {
                str(hook): float(value)
                for hook, value in zip(found["hook"], found["value"], strict=True)
            }
            for name, found in series.items()
        }
        for hook, calls in last["calls"].items():
            ended = sum(last[name].get(hook, 0) for name in last if name != "calls")
            assert calls == ended, (slot, hook, last)
        produced += sum(last["captured"].values())
    bus = run.summary["bus"]
    assert bus["produced"] == produced
    for group in bus["groups"]:
        assert (group["delivered"], group["ready"], group["imbalance"]) == (produced, 0, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_under_fully_shard_rows_and_gradients_are_the_unsharded_models(tmp_path, dtype):
    run, references = trained(tmp_path, "fsdp2", dtype)
    for rank in range(2):
        for name in LAYERS:
            check_activations(run, name, rank, references[rank][name], dtype)
    for name in ("layers.0.weight:grad", "layers.2.weight:grad"):
        whole_SND = references[0][name].numpy()
        found = rows_of(run, name, 0) | rows_of(run, name, 1)
        assert len(found) == whole_SND.shape[0] * whole_SND.shape[1], "each row from one rank"
        for (step, _, row), values in found.items():
            expected_1D = whole_SND[step, row][None]
            assert is_close(values[None], expected_1D, dtype, whole_SND[step]), (name, step, row)
        places = run.archive.places(name)
        assert places[:, 0].max() == whole_SND.shape[1] - 1
    for name in ("layers.0.weight:value", "layers.2.weight:value"):
        whole_SND = references[0][name].numpy()
        found = rows_of(run, name, 0) | rows_of(run, name, 1)
        assert {step for step, _, _ in found} == {*range(0, STEPS + 1, 2)}
        assert len(found) == (STEPS // 2 + 1) * whole_SND.shape[1], "each row from one rank"
        for (step, _, row), values in found.items():
            expected_1D = whole_SND[step, row][None]
            assert is_close(values[None], expected_1D, dtype), (name, step, row)
    bias_SD = references[0]["layers.2.bias:grad"].numpy()
    seen = set()
    for batch in run.archive.batches("layers.2.bias:grad", ("values", "encoding", "host_step")):
        for encoding, step, values in zip(
            batch["encoding"], batch["host_step"], batch["values"], strict=True
        ):
            first, end, width = part_decoder(str(encoding), decoder_of).columns
            assert width == 7
            expected_1D = bias_SD[int(step), None]
            assert is_close(values[None], expected_1D[:, first:end], dtype, expected_1D)
            seen.add((int(step), first, end))
    assert seen == {(step, *part) for step in range(STEPS) for part in ((0, 4), (4, 7))}
    check_accounts(run)


def test_fsdp1_is_looked_through(tmp_path):
    run, references = trained(tmp_path, "fsdp1", "float64")
    for rank in range(2):
        for name in LAYERS:
            check_activations(run, name, rank, references[rank][name])
    check_accounts(run)


@pytest.mark.parametrize("launcher", [torchrun, accelerate_launch])
def test_what_accelerate_prepares_on_two_ranks_is_looked_through(tmp_path, launcher):
    pytest.importorskip("accelerate")
    run, references = trained(tmp_path, "accelerate", "float64", launcher=launcher)
    for rank in range(2):
        for name in LAYERS:
            check_activations(run, name, rank, references[rank][name])
    check_accounts(run)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_deepspeeds_engine_is_looked_through(tmp_path, stage):
    if find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed (make test-deepspeed)")
    run, references = trained(tmp_path, f"deepspeed{stage}", "float32")
    for rank in range(2):
        for name in LAYERS:
            check_activations(run, name, rank, references[rank][name], "float32")
    check_accounts(run)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensor_parallel_ranks_send_their_columns_and_what_is_the_same_once(tmp_path, dtype):
    run, references = trained(tmp_path, "tensor_parallel", dtype)
    for rank in range(2):
        whole_SND = references[rank]["layers.0"]
        mine = slice(16 * rank, 16 * rank + 16)
        check_activations(run, "layers.0", rank, whole_SND[..., mine], dtype)
    check_activations(run, "layers.2", 0, references[0]["layers.2"], dtype)
    assert not rows_of(run, "layers.2", 1), "the second rank of the mesh's dimension sends nothing"
    said = " ".join(run.summary["warnings"])
    assert "layers.3: ranks 0, 1 send the same rows" in said
    assert "layers.2: " not in said
    assert "layers.0" not in said
    weight_SND = references[0]["layers.0.weight:grad"].numpy()
    found = rows_of(run, "layers.0.weight:grad", 0) | rows_of(run, "layers.0.weight:grad", 1)
    assert len(found) == STEPS * 32
    for (step, _, row), values in found.items():
        assert is_close(values[None], weight_SND[step, row][None], dtype, weight_SND[step])
    columns = set()
    weight_SND = references[0]["layers.2.weight:grad"].numpy()
    names = ("values", "encoding", "host_step", "row")
    for batch in run.archive.batches("layers.2.weight:grad", names):
        for encoding, step, row, values in zip(
            batch["encoding"], batch["host_step"], batch["row"], batch["values"], strict=True
        ):
            first, end, _ = part_decoder(str(encoding), decoder_of).columns
            whole_ND = weight_SND[int(step)]
            assert is_close(values[None], whole_ND[int(row), None, first:end], dtype, whole_ND)
            columns.add((first, end))
    assert columns == {(0, 16), (16, 32)}
    check_accounts(run)


def check_shards(run, hook, whole_SND, steps):
    """Every element of the whole parameter of every step is in the shard of one rank, with its value."""
    covered_SND = np.zeros((len(steps), *whole_SND.shape[1:]), int)
    names = ("values", "encoding", "host_step", "row")
    for batch in run.archive.batches(hook, names):
        columns = (batch[name] for name in names)
        for values, encoding, step, row in zip(*columns, strict=True):
            part = part_decoder(str(encoding), decoder_of)
            first, end, _ = part.columns if part.columns else (0, len(values), 0)
            expected_1D = whole_SND[int(step), int(row), None, first:end].numpy()
            assert is_close(values[None], expected_1D, "float64"), (hook, step, row)
            covered_SND[steps.index(int(step)), int(row), first:end] += 1
    assert (covered_SND == 1).all(), hook


def test_on_a_mesh_of_fsdp_and_tensor_parallel_ranks_rows_are_the_unsharded_models(tmp_path):
    """Ranks 0 and 1 share a batch, 2 and 3 another; 0 and 2 have the first half of the columns."""
    run, references = trained(tmp_path, "mesh", "float64", ranks=4)
    for rank in range(4):
        mine = slice(16 * (rank % 2), 16 * (rank % 2) + 16)
        check_activations(run, "layers.0", rank, references[rank]["layers.0"][..., mine])
        check_activations(run, "layers.3", rank, references[rank]["layers.3"])
        if rank % 2 == 0:
            check_activations(run, "layers.2", rank, references[rank]["layers.2"])
        else:
            assert not rows_of(run, "layers.2", rank), "not the first of its dimension `tp`"
    same = "layers.3: ranks (0, 1|2, 3|0, 1 and 2, 3) send the same rows"
    assert re.search(same, " ".join(run.summary["warnings"]))
    for name in ("layers.0.weight", "layers.2.weight"):
        check_shards(run, f"{name}:grad", references[0][f"{name}:grad"], [*range(STEPS)])
        check_shards(
            run, f"{name}:value", references[0][f"{name}:value"], [*range(0, STEPS + 1, 2)]
        )
    check_accounts(run, ranks=4)


def test_of_outputs_that_are_dtensors_each_rank_sends_its_own_rows(tmp_path):
    run, references = trained(tmp_path, "distributed_outputs", "float64")
    for rank in range(2):
        mine = slice(3 * rank, 3 * rank + 3)
        for name in ("layers.2", "layers.3"):
            check_activations(run, name, rank, references[rank][name][:, mine])
        gradient_SND = 2 / 42 * references[rank]["layers.3"]  # of the mean of 6 x 7 squares
        check_activations(run, "layers.3:gradient", rank, gradient_SND[:, mine])
    assert "layers.0" not in run.archive.hooks, "no rank has a whole row"
    said = " ".join(run.summary["warnings"])
    assert "split along its last dimension" in said
    assert "send the same rows" not in said
    check_accounts(run)


def test_each_rank_of_a_pipeline_has_the_hooks_of_its_stage(tmp_path):
    run, references = trained(tmp_path, "pipeline", "float64")
    assert run.archive.hooks == ["layers.0", "layers.1", "layers.2", "layers.3"]
    for name in run.archive.hooks:
        source = 0 if name in ("layers.0", "layers.1") else 1
        expected_SND = references[source][name]
        check_activations(run, name, source, expected_SND)
        assert not rows_of(run, name, 1 - source)
    check_accounts(run)
