"""Hugging Face datasets opens every shard as it is, without code of ours."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path

import pytest
import torch

from asys_bench.sinks.archive import repair_shard

pytestmark = [pytest.mark.interop, pytest.mark.rest]
RIG = Path(__file__).parent.parent / "unit" / "sinks" / "archive" / "conftest.py"


@pytest.fixture(scope="module")
def from_file():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_file


@pytest.fixture
def rig(tmp_path):
    made = runpy.run_path(str(RIG))["Rig"](tmp_path)
    yield made
    made.page.close()


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_a_closed_shard_loads_with_its_values_and_keys(rig, from_file, compression, dtype):
    acts_ND = torch.randn(6, 5).mul(4).to(dtype)
    worker = rig.start(compression=compression)
    rig.feed(worker, rig.packet(acts_ND, 0), rig.packet(acts_ND, 1))
    worker.close()
    loaded = from_file(str(rig.shards()[0]))
    assert loaded.num_rows == 12
    assert loaded[:6]["values"] == acts_ND.double().tolist()
    assert loaded[7]["seq"] == 1
    assert loaded[7]["row"] == 1
    assert loaded[0]["hook"] == "policy.mlp"
    assert loaded.with_format("torch", columns=["values"])[3]["values"].shape == (5,)


def test_an_open_shard_and_a_repaired_torn_one_load(rig, from_file):
    worker = rig.start()
    for seq in range(3):
        rig.feed(worker, rig.packet(torch.ones(4, 5), seq))
    (path,) = rig.shards()
    assert from_file(str(path)).num_rows == 12
    torn = rig.run_dir / "torn.arrows"
    torn.write_bytes(path.read_bytes()[:-9])
    repair_shard(torn)
    assert from_file(str(torn)).num_rows == 8
    worker.close()
