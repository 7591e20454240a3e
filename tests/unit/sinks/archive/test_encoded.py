"""`values: encoded`: packets are stored as they travelled, and read as the rows that a trainer saw."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from asys_bench.config.assembly import build_preprocessor
from asys_bench.config.sections.hooks import HookConfig
from asys_bench.contracts.packet import ActivationPacket, PacketError, tensor_bytes
from asys_bench.offline.archive_packets import archive_packets, archived_rows
from asys_bench.reports.run_report.archive_rows import newest_rows
from asys_bench.rundir.archive_view import COLUMNS, ArchiveView
from asys_bench.rundir.verify import State
from asys_bench.rundir.verify.archive import ArchiveCheck
from asys_bench.sinks import decoding
from asys_bench.sinks.archive import ArchiveError, open_archive, repair_shard, verify_archive
from asys_bench.sinks.archive import read as reading
from asys_bench.sinks.archive import shard as writing
from asys_bench.sinks.archive.encoded import DECODED_BYTES
from asys_bench.sinks.archive.sidecar import Sidecar, UnknownEncodingError
from asys_bench.sinks.decoding import Decoder, decoder_of

HOOK = "policy.mlp"
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
OTHERS = (
    torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.complex64,
)  # fmt: skip


class Names:
    """Interned encodings, as a bus has them; the hook is number 0."""

    def __init__(self) -> None:
        self._names = [HOOK]

    def number(self, name: str) -> int:
        if name not in self._names:
            self._names.append(name)
        return self._names.index(name)

    def __call__(self, number: int) -> str:
        return self._names[number]


@pytest.fixture
def names() -> Names:
    return Names()


@pytest.fixture
def start(rig: Any, names: Names) -> Callable[..., Any]:
    def begin(incarnation: int = 0, **options: Any) -> Any:
        worker = rig.start(incarnation, **{"values": "encoded", "fsync": "never", **options})
        decoder = Decoder(names)
        worker._context = replace(
            worker._context, name_of=names, decode=decoder, rows=decoder.rows, grid=decoder.grid
        )
        return worker

    return begin


def sent(rig: Any, names: Names, chain: list[Any], tensor: torch.Tensor, seq: int, **more: Any):
    """The packet that a hook with these preprocessors sends."""
    kernel = build_preprocessor(HookConfig.model_validate({"match": HOOK, "preprocess": chain}))
    memory = bytearray(kernel.encoded_bytes(tensor))
    encoded = kernel.encode(tensor, memoryview(memory))
    return rig.packet(
        torch.zeros(1), seq, 0, encoding_id=names.number(kernel.encoding), dtype=encoded.dtype,
        shape=tuple(encoded.shape), params=encoded.params.ljust(16, b"\0"),
        payload=memoryview(bytes(memory[: encoded.nbytes])), **more,
    )  # fmt: skip


def padded(names: Names, packet: ActivationPacket, real: list[bool]) -> ActivationPacket:
    """The same from a device, with a mask."""
    mask = bytes(real) + struct.pack("<I", len(real))
    name = f"padded+{names(packet.encoding_id)}"
    return replace(
        packet,
        payload=memoryview(bytes(packet.payload) + mask),
        encoding_id=names.number(name),
    )


def columns_of(run_dir: Path) -> dict[str, Any]:
    return ArchiveView(run_dir).numpy(HOOK)


def raw(path: Path) -> pa.Table:
    with path.open("rb") as file:
        return pa.ipc.open_stream(file).read_all()


def finding(rig: Any, *, repair: bool = False) -> Any:
    check = ArchiveCheck(rig.run_dir, "run-1", repair=repair, keep_torn=True)
    (one,) = [found for found in check.findings() if found.path.endswith(".arrows")]
    return one


def odd_rows(dtype: torch.dtype) -> torch.Tensor:
    """[2, 3, 8] with what does not compare equal to itself, and signed zeros."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 3, 8, generator=generator) * 3
    values[0, 0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])
    if dtype.is_complex:
        return torch.complex(values, values.flip(0))
    if not dtype.is_floating_point:
        values = values.nan_to_num(0, 1, -1)
    return values.to(dtype)


CHAINS = [
    *(pytest.param(["identity"], dtype, id=f"identity-{dtype}") for dtype in (*FLOATS, *OTHERS)),
    *(
        pytest.param([kernel], dtype, id=f"{kernel}-{dtype}")
        for kernel in ("int8", "fp8", {"topk": {"k": 3}}, {"cast": {"dtype": "bfloat16"}})
        for dtype in FLOATS
    ),
    pytest.param([{"token_sample": {"every": 2}}], torch.bfloat16, id="sample"),
    pytest.param([{"token_sample": {"rows": 2}}, "int8"], torch.float32, id="sample-int8"),
    pytest.param([{"random_projection": {"d_out": 4}}, "fp8"], torch.float32, id="project-fp8"),
]


@pytest.mark.parametrize(("chain", "dtype"), CHAINS)
def test_rows_are_those_of_an_archive_of_rows_bit_by_bit(rig, names, start, tmp_path, chain, dtype):
    tensors = [odd_rows(dtype), odd_rows(dtype)[0], odd_rows(dtype)[1, 2]]
    packets = [
        sent(rig, names, chain, tensor, seq, token_position=7 * seq, text=seq)
        for seq, tensor in enumerate(tensors)
    ]
    if "int8" in chain or chain == ["identity"]:
        packets.append(padded(names, replace(packets[0], seq=9), [True, False, True] * 2))
    found = []
    for values in ("keep", "encoded"):
        rig.run_dir = tmp_path / values
        worker = start(values=values)
        rig.feed(worker, *packets)
        worker.close()
        found.append(columns_of(rig.run_dir))
        assert finding_states(rig) == {State.OK}
    rows, packets_ = found
    assert list(rows) == list(packets_) == list(COLUMNS)
    order = [np.lexsort((part["row"], part["seq"])) for part in found]
    for name in COLUMNS:
        ours, theirs = packets_[name][order[1]], rows[name][order[0]]
        assert (ours.dtype, ours.shape, ours.tobytes()) == (
            theirs.dtype, theirs.shape, theirs.tobytes(),
        ), name  # fmt: skip


def finding_states(rig: Any) -> set[State]:
    check = ArchiveCheck(rig.run_dir, "run-1", repair=False, keep_torn=True)
    return {found.state for found in check.findings()}


@pytest.mark.parametrize("chain", [["int8"], ["fp8"], [{"topk": {"k": 8}}], ["identity"]])
def test_values_are_those_that_a_trainer_saw_bit_by_bit(rig, names, start, chain):
    live: list[torch.Tensor] = []
    worker = start()
    for seq in range(5):
        tensor = torch.randn(7, 48, generator=torch.Generator().manual_seed(seq)).bfloat16()
        packet = sent(rig, names, chain, tensor, seq)
        live.append(decoder_of(names(packet.encoding_id)).decode(packet).float().clone())
        rig.feed(worker, packet)
    worker.close()
    offline = [one.rows_ND for one in archive_packets(open_archive(rig.run_dir), HOOK)]
    assert len(offline) == 5
    for seen, trained in zip(live, offline, strict=True):
        assert torch.equal(seen.view(torch.int32), trained.view(torch.int32))


@pytest.mark.parametrize("rows", [64, pytest.param(512, marks=pytest.mark.rest)])
def test_int8_takes_a_quarter_of_float32(rig, names, start, rows):
    for width, most in ((384, 0.26), (576, 0.26), (4096, 0.26)):
        packet = sent(rig, names, ["int8"], torch.randn(rows, width), 0)
        parameters = len(packet.params)
        assert (packet.payload.nbytes + parameters) / (4 * rows * width) <= most
    worker = start()
    packets = [sent(rig, names, ["int8"], torch.randn(rows, 576), seq) for seq in range(16)]
    rig.feed(worker, *packets)
    worker.close()
    (path,) = rig.shards()
    share = path.stat().st_size / (16 * rows * 576 * 4)
    assert share <= 0.30
    header = path.stat().st_size - sum(one.payload.nbytes for one in packets)
    assert header / 16 < 400, "bytes beside the payload, a packet"


def test_the_file_shows_the_packets_with_their_metadata_once(rig, names, start):
    worker = start()
    acts = torch.randn(2, 3, 8).bfloat16()
    rig.feed(worker, sent(rig, names, ["identity"], acts, 5), sent(rig, names, ["int8"], acts, 6))
    worker.close()
    identity, int8 = sorted((raw(path) for path in rig.shards()), key=lambda t: t["seq"][0].as_py())
    assert identity.num_rows == int8.num_rows == 1
    assert identity.schema.field("payload").type == pa.large_list(pa.uint16())
    bits = np.array(identity["payload"][0].as_py(), np.uint16).view(np.int16)
    assert torch.equal(torch.from_numpy(bits), acts.view(torch.int16).reshape(-1))
    about = identity.schema.metadata
    assert about[b"format"] == b"asys.archive.packets/1"
    assert (about[b"dtype"], about[b"row_shape"], about[b"encoding"]) == (
        b"bfloat16", b"8", b"identity",
    )  # fmt: skip
    assert identity["shape"].to_pylist() == [[2, 3, 8]]
    assert identity["rows"].to_pylist() == [6]
    assert identity["params"].to_pylist() == [b""]
    assert int8.schema.field("payload").type == pa.large_binary()
    assert int8["payload"][0].as_py() == bytes(sent(rig, names, ["int8"], acts, 6).payload)


def test_hugging_face_datasets_opens_the_packets_and_the_view_gives_it_rows(rig, names, start):
    datasets = pytest.importorskip("datasets")
    worker = start()
    acts = torch.randn(4, 8).bfloat16()
    rig.feed(worker, sent(rig, names, ["identity"], acts, 0))
    worker.close()
    assert len(datasets.Dataset.from_file(str(rig.shards()[0]))) == 1
    made = ArchiveView(rig.run_dir).datasets(HOOK)
    assert len(made) == 4
    assert made["values"][:] == acts.float().tolist()


def test_rows_are_counted_from_headers_sidecar_and_metrics_alike(rig, names, start):
    worker = start(rows_per_batch=2)
    for seq in range(4):
        rig.feed(worker, sent(rig, names, ["int8"], torch.randn(10 + seq, 8), seq))
    assert archived_rows(open_archive(rig.run_dir), HOOK) == 46, "also while it is open"
    worker.close()
    (path,) = rig.shards()
    sidecar = Sidecar.read(path)
    assert (sidecar.rows, sidecar.packets, sidecar.batches, sidecar.encoded) == (46, 4, 4, True)
    assert (sidecar.first_step, sidecar.last_step, sidecar.last_ns) == (0, 30, 1_001_003)
    assert rig.count("archive_rows") == 46
    (report,) = verify_archive(rig.run_dir)
    assert (report.rows, report.batches, report.ok) == (46, 4, True)


def test_a_killed_writers_packets_are_there_once(rig, names, start):
    worker = start()
    packets = [sent(rig, names, ["int8"], torch.randn(6, 8), seq) for seq in range(6)]
    rig.feed(worker, *packets[:4])
    for shard in worker._shards.values():
        shard.abandon()
    worker = start(1)
    rig.feed(worker, *packets[2:])
    worker.close()
    assert columns_of(rig.run_dir)["seq"].tolist() == [seq for seq in range(6) for _ in range(6)]
    assert rig.count("archive_duplicates_skipped") == 2


def test_shards_of_rows_and_of_packets_lie_side_by_side(rig, names, start):
    for attempt, values in enumerate(("keep", "encoded", "keep")):
        worker = rig.start(attempt=attempt, values=values, fsync="never")
        decoder = Decoder(names)
        worker._context = replace(
            worker._context, name_of=names, decode=decoder, rows=decoder.rows, grid=decoder.grid
        )
        rig.feed(worker, sent(rig, names, ["int8"], torch.full((3, 4), float(attempt)), 0))
        worker.close()
    columns = columns_of(rig.run_dir)
    assert columns["attempt"].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert columns["values"][:, 0].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert finding_states(rig) == {State.OK}
    blocks = list(newest_rows(open_archive(rig.run_dir), HOOK, 100))
    assert [block.values[0, 0] for block in blocks] == [0, 1, 2]


@pytest.mark.rest
@pytest.mark.rest
def test_a_large_batch_is_read_in_parts(rig, names, start):
    worker = start()
    rows, width = 64, 1024
    count = 2 * DECODED_BYTES // (4 * rows * width) + 1
    rig.feed(
        worker, *(sent(rig, names, ["int8"], torch.randn(rows, width), n) for n in range(count))
    )
    worker.close()
    batches = list(open_archive(rig.run_dir).batches(HOOK))
    assert [batch.num_rows for batch in batches] == [64 * 64, 64 * 64, 64]
    assert Sidecar.read(rig.shards()[0]).batches == 1


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_packets_come_back_and_a_huge_one_is_no_bomb(
    rig, names, start, monkeypatch, compression
):
    for module in (reading, writing):
        monkeypatch.setattr(module, "MOST_UNPACKED_BYTES", 1 << 16)
    worker = start(compression=compression)
    rig.feed(worker, sent(rig, names, ["identity"], torch.zeros(10, 256), 0))
    rig.feed(worker, sent(rig, names, ["identity"], torch.zeros(1000, 256), 1))
    worker.close()
    assert not columns_of(rig.run_dir)["values"].any()
    assert finding(rig).state is State.OK


# Damage


def test_bytes_that_changed_are_found_and_a_repair_keeps_what_comes_before(rig, names, start):
    worker = start()
    for seq in range(3):
        rig.feed(worker, sent(rig, names, ["int8"], torch.randn(6, 8), seq))
    worker.close()
    (path,) = rig.shards()
    data = bytearray(path.read_bytes())
    # The third packet's shape: (7, 8) of 6 rows.
    rows_at = bytes(data).rindex(struct.pack("<I", 6))
    data[rows_at : rows_at + 4] = struct.pack("<I", 7)
    path.write_bytes(data)
    assert finding(rig).state is State.DAMAGED
    with pytest.raises(ArchiveError, match="does not decode"):
        columns_of(rig.run_dir)
    repair_shard(path)
    assert columns_of(rig.run_dir)["seq"].tolist() == [0] * 6 + [1] * 6


def test_a_payload_that_does_not_decode_is_damage(rig, names, start):
    worker = start()
    packet = sent(rig, names, [{"topk": {"k": 2}}], torch.randn(4, 8), 0)
    rig.feed(worker, packet)
    worker.close()
    (path,) = rig.shards()
    data = path.read_bytes()
    payload = bytes(packet.payload)
    broken = payload[:-2] + b"\xff\xff"  # an index past the row
    assert data.count(payload) == 1
    path.write_bytes(data.replace(payload, broken))
    found = finding(rig)
    assert found.state is State.DAMAGED
    assert "does not decode" in found.detail


def test_a_torn_tail_is_cut(rig, names, start):
    worker = start()
    for seq in range(3):
        rig.feed(worker, sent(rig, names, ["int8"], torch.randn(6, 8), seq))
    (shard,) = worker._shards.values()
    shard.abandon()
    (path,) = rig.shards()
    path.write_bytes(path.read_bytes()[:-100])
    found = finding(rig)
    assert (found.state, found.rows, found.lost_rows) == (State.TORN, 12, 6)
    assert finding(rig, repair=True).rows == 12
    assert columns_of(rig.run_dir)["seq"].tolist() == [0] * 6 + [1] * 6


def test_packets_of_a_kernel_that_is_not_installed_are_kept_and_said(
    rig, names, start, monkeypatch
):
    worker = start()
    rig.feed(worker, sent(rig, names, ["int8"], torch.randn(6, 8), 0))
    (shard,) = worker._shards.values()
    shard.abandon()
    (path,) = rig.shards()
    before = path.read_bytes()

    def nobody(encoding: str) -> Any:
        raise PacketError(f"no kernel decodes {encoding!r}")

    monkeypatch.setattr(decoding, "_find", nobody)
    with pytest.raises(UnknownEncodingError, match="no kernel decodes 'int8'"):
        columns_of(rig.run_dir)
    found = finding(rig)
    assert (found.state, found.rows) == (State.OK, 6)
    assert "cannot be read here" in found.detail
    assert finding(rig, repair=True).state is State.OK
    assert path.read_bytes().startswith(before), "a repair cuts nothing"


def test_a_packet_that_does_not_decode_is_not_archived(rig, names, start):
    worker = start()
    good = sent(rig, names, ["int8"], torch.randn(6, 8), 0)
    rig.feed(worker, replace(good, seq=1, payload=good.payload[:-1]), good)
    worker.close()
    assert columns_of(rig.run_dir)["seq"].tolist() == [0] * 6
    assert rig.count("archive_damaged_packets") == 1


def test_the_pairing_of_two_hooks_reads_packets(rig, names, start):
    worker = start()
    packet = sent(rig, names, ["int8"], torch.arange(32.0).reshape(4, 8), 3)
    rig.feed(worker, packet)
    worker.close()
    (one,) = archive_packets(open_archive(rig.run_dir), HOOK)
    assert one.key == (7, 0, 3)
    moment = one.moment
    assert (one.weight, moment.host_step, moment.microbatch, moment.call_index) == (2.0, 30, 2, 3)
    assert one.places.tolist() == [0, 1, 2, 3]
    assert tensor_bytes(one.rows_ND).nbytes == 4 * 8 * 4
