"""Every preprocessor leaves the device with the bytes that its own `encode` writes."""

from __future__ import annotations

import pytest
import torch

from asys_bench.capture.gpu.outcome import DeviceDrop
from asys_bench.capture.gpu.route import compile_problem, route_of
from asys_bench.config.sections.bus import DeviceConfig
from asys_bench.contracts.chain import link
from asys_bench.contracts.packet import PacketError
from asys_bench.contracts.preprocessor import Encoded, Preprocessor, rows_and_width
from asys_bench.kernels.int8.kernel import Int8Preprocessor
from asys_bench.kernels.token_sample.kernel import Rule, TokenSamplePreprocessor
from asys_bench.registry import Registry

from .rig import CPU, Rig, bytes_of


def sampler():
    return TokenSamplePreprocessor(Rule(seed=3, count=4), "torch")


class Halve:
    """A device encoder in plain torch: half of every element, float32."""

    def plan(self, shape, dtype):
        rows, width = rows_and_width(shape)
        return Encoded(rows * width * 4, torch.float32, shape)

    def launch(self, tensor, out, positions):
        rows = tensor.reshape(rows_and_width(tensor.shape))
        if positions is not None:
            rows = rows[torch.from_numpy(positions)]
        out.view(torch.float32).copy_(rows.reshape(-1).float() / 2)

    def warm_up(self, device, dtypes):
        self.warmed = (device, tuple(dtypes))


class Plugin:
    """Builds `part` for the encoding `name`."""

    def __init__(self, name, part, reason=None):
        self.name, self.summary, self.part, self.reason = name, "for tests", part, reason

    def unavailable(self):
        return self.reason

    def build(self, encoding):
        return self.part if encoding.partition(".")[0] == self.name else None


class Named(Preprocessor):
    """A preprocessor that only has a name."""

    def __init__(self, encoding):
        self.encoding = encoding

    def payload_bytes(self, shape, dtype):
        raise AssertionError("the device encodes this")

    def encode(self, tensor, out):
        raise AssertionError("the device encodes this")

    def decode(self, packet):
        raise AssertionError("not decoded here")


def registry_of(*plugins):
    registry = Registry("device_encoder_of_a_test")
    for plugin in plugins:
        registry.register(plugin)
    return registry


@pytest.mark.parametrize("pins", [True, False])
@pytest.mark.parametrize("timeout_s", [0.0, 1.0])
def test_without_an_encoder_on_the_device_the_committer_encodes(pins, timeout_s, caplog):
    from .simulated_device import SimulatedDevice

    rig = Rig(device=SimulatedDevice(refuses_to_pin=None if pins else "no"), encoders=registry_of())
    caplog.clear()
    kernel = link([sampler(), Int8Preprocessor("torch")])
    reference = link([sampler(), Int8Preprocessor("torch")])
    tensors = [torch.randn(8, 6).t(), torch.randn(2, 5, 6), torch.randn(7)]
    for tensor in tensors:
        rig.submit(tensor, kernel, timeout_s=timeout_s)
    rig.settle_all()
    for tensor, (meta, payload) in zip(tensors, rig.producer.packets, strict=True):
        out = bytearray(reference.encoded_bytes(tensor))
        encoded = reference.encode(tensor.contiguous(), memoryview(out))
        assert payload == bytes(out[: encoded.nbytes])
        assert (meta.shape, meta.params) == (tuple(encoded.shape), encoded.params)
    assert len(caplog.records) == 1, "said once per preprocessor"
    assert "encoded by the commit thread" in caplog.text
    rig.streamer.close()


def test_an_encoding_that_fails_in_the_committer_gives_its_reservation_back():
    rig = Rig(encoders=registry_of())
    rig.submit(torch.ones(3, dtype=torch.int64), Int8Preprocessor("torch"), key="a")
    rig.submit(torch.ones(3), rig.identity, key="a")
    rig.settle_all()
    assert rig.numbers == [1]
    failed, committed = rig.streamer.collect()
    assert (failed.drop, committed.drop) == (DeviceDrop.DELIVERY_FAILED, None)
    assert "int8 carries" in failed.error
    rig.streamer.close()


def test_the_devices_encoder_writes_the_payload():
    rig = Rig(
        encoders=registry_of(Plugin("halve", Halve())),
        options=DeviceConfig(staging_mib=1, buffer_mib=1),
    )
    tensor = torch.arange(12.0).reshape(3, 4).t()
    rig.submit(tensor, Named("halve"))
    rig.submit(torch.zeros(0, 4), Named("halve"))
    rig.settle_all()
    assert rig.payloads() == [bytes_of(tensor / 2), b""]
    assert rig.device.violations == []
    rig.streamer.close()


def test_a_chain_passes_tensors_on_and_a_sampler_is_fused_with_the_step_behind_it():
    rig = Rig(encoders=registry_of(Plugin("token_sample", sampler()), Plugin("halve", Halve())))
    tensor = torch.randn(10, 3)
    rule = sampler()
    rig.submit(tensor, Named(f"{rule.encoding}+halve+halve"))
    rig.settle_all()
    ((meta, payload),) = rig.producer.packets
    selection = rule.select((10, 3))
    assert payload == bytes_of(tensor[torch.from_numpy(selection.positions)] / 4)
    assert (meta.shape, meta.params) == ((4, 3), selection.params)
    rig.streamer.close()


def test_a_chain_that_ends_with_a_sampler_sends_the_rows_themselves():
    class Same(Halve):
        def launch(self, tensor, out, positions):
            super().launch(tensor * 2, out, positions)

    encoders = registry_of(Plugin("token_sample", sampler()), Plugin("identity", Same()))
    rig = Rig(encoders=encoders)
    tensor = torch.randn(10, 3)
    rule = sampler()
    rig.submit(tensor, rule)
    rig.submit(torch.arange(5.0), rule)
    rig.settle_all()
    positions = sampler().select((10, 3)).positions
    assert rig.payloads() == [
        bytes_of(tensor[torch.from_numpy(positions)]),
        bytes_of(torch.arange(5.0)),
    ]
    rig.streamer.close()


@pytest.mark.parametrize(
    ("encoders", "reason"),
    [
        (registry_of(), "no kernel has a device encoder"),
        (registry_of(Plugin("int8", Halve(), "no CUDA device")), "no CUDA device"),
    ],
)
def test_an_encoder_that_is_missing_is_named_with_its_reason(encoders, reason, caplog):
    route = route_of(Int8Preprocessor("torch"), encoders)
    assert route.encode_on_host
    assert reason in caplog.text


def test_preparing_compiles_for_the_streamers_devices():
    halve = Halve()
    rig = Rig(encoders=registry_of(Plugin("halve", halve)))
    rig.streamer.prepare(Named("halve"), [torch.bfloat16])
    rig.device.finish()
    assert halve.warmed == (CPU, (torch.bfloat16,))
    rig.streamer.close()


class Uncompilable(Halve):
    def __init__(self, error):
        self.error = error

    def warm_up(self, device, dtypes):
        raise self.error


def prepare_at_once(rig, kernel, monkeypatch):
    """As on CUDA: the Python that issues work runs at once, and only the work waits."""
    with monkeypatch.context() as patch:
        patch.setattr(rig.device, "run", lambda stream, work, *operands: work(*operands))
        rig.streamer.prepare(kernel, [torch.float32])


def test_what_cannot_be_compiled_is_encoded_by_the_committer_and_the_fix_is_named(
    caplog, monkeypatch, tmp_path
):
    """Triton without a C compiler: the run goes on, with the same bytes."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    failing = Uncompilable(RuntimeError("Failed to find C compiler."))
    rig = Rig(encoders=registry_of(Plugin("int8", failing)))
    kernel, tensor = Int8Preprocessor("torch"), torch.randn(5, 8)
    prepare_at_once(rig, kernel, monkeypatch)
    rig.submit(tensor, kernel)
    rig.settle_all()
    out = bytearray(kernel.encoded_bytes(tensor))
    kernel.encode(tensor, memoryview(out))
    assert rig.payloads() == [bytes(out)]
    assert "Failed to find C compiler.; Triton builds its launchers" in caplog.text
    assert "install gcc" in caplog.text
    rig.streamer.close()


def test_a_compiler_that_is_there_and_fails_is_not_called_missing(monkeypatch):
    monkeypatch.setenv("CC", "/usr/bin/cc")
    assert compile_problem(ValueError("no such tile")) == "ValueError: no such tile"


def test_preparing_raises_what_the_device_itself_raises(monkeypatch):
    failing = Uncompilable(torch.OutOfMemoryError("nothing left"))
    rig = Rig(encoders=registry_of(Plugin("halve", failing)))
    with pytest.raises(torch.OutOfMemoryError, match="nothing left"):
        prepare_at_once(rig, Named("halve"), monkeypatch)
    rig.streamer.close()


def test_a_plan_that_is_refused_is_an_error_at_the_hook():
    class Picky(Halve):
        def plan(self, shape, dtype):
            raise PacketError(f"not {dtype}")

    rig = Rig(encoders=registry_of(Plugin("halve", Picky())))
    with pytest.raises(PacketError, match=r"not torch\.int64"):
        rig.submit(torch.ones(2, dtype=torch.int64), Named("halve"))
    assert rig.streamer.account().imbalance == 0
    rig.streamer.close()
