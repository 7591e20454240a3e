"""What comes out of the archive is what a live trainer got."""

import json

import pytest
import torch

from asys_bench.contracts.run_files import RUN_FILE, RUN_SCHEMA
from asys_bench.offline import archive_packets, archived_rows
from asys_bench.offline.archive_packets import joint_packets
from asys_bench.sinks.archive import open_archive

HOOK = "policy.mlp"


def test_packets_come_back_with_rows_key_and_weight(archive):
    packets = list(archive_packets(archive, HOOK))
    rows_ND = torch.cat([packet.rows_ND for packet in packets])
    assert archived_rows(archive, HOOK) == len(rows_ND) == 12_000
    assert rows_ND.dtype == torch.float32
    assert float(rows_ND.mean()) > 90
    assert {packet.weight for packet in packets} == {2.0}
    assert [packet.key for packet in packets[:3]] == [(7, 0, 0), (7, 0, 1), (7, 0, 2)]
    assert {len(packet.rows_ND) for packet in packets[:-1]} == {7}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int8, torch.bool])
def test_every_dtype_becomes_float32(tmp_path, rig_class, dtype):
    rig = rig_class(tmp_path / "typed")
    values = torch.tensor([[1, 0, 2], [0, 3, 0]]).to(dtype)
    worker = rig.start()
    rig.feed(worker, rig.packet(values, 0))
    worker.close()
    rig.page.close()
    (packet,) = archive_packets(open_archive(tmp_path / "typed"), HOOK)
    assert torch.equal(packet.rows_ND, values.to(torch.float32))


def test_an_unknown_hook_lists_those_there_are(archive):
    with pytest.raises(KeyError, match=r"no hook 'x'; the archive has \['policy.mlp'\]"):
        next(archive_packets(archive, "x"))


def test_pairs_of_a_run_before_the_shared_coin_keep_the_weight_of_two_coins(make_run):
    run = make_run(rows=70, hooks=(1, 3))  # both at a rate of 0.5
    assert {pair.weight for pair in joint_packets(open_archive(run), (HOOK, "encoder"))} == {4.0}
    streams = [{"name": name, "coin": "shared"} for name in (HOOK, "encoder")]
    known = {"schema": RUN_SCHEMA, "run_id": "r", "hooks": [], "host_pid": 1, "streams": streams}
    (run / RUN_FILE).write_text(json.dumps(known))
    pairs = list(joint_packets(open_archive(run), (HOOK, "encoder")))
    assert {pair.weight for pair in pairs} == {2.0}
    assert len(pairs) == 10
