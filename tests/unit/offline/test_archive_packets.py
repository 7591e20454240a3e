"""What comes out of the archive is what a live trainer got."""

import pytest
import torch

from asys_bench.offline import archive_packets, archived_rows
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
