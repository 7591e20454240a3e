"""Whatever a hooked module returns, the hook reads what is there and counts the call."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch

from asys_bench.capture.tags.text_inputs import TextInputs
from asys_bench.config.sections.hooks import HookConfig
from asys_bench.contracts.packet import PacketError, PacketMeta
from asys_bench.contracts.tensor_memory import FREED, memory_fault
from tests.conformance.odd_tensors import (
    BACKENDS,
    KINDS,
    Emits,
    Odd,
    PlainText,
    Text,
    Through,
    meet,
    readable_value,
)
from tests.unit.capture.conftest import Rig, usable_bus

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return usable_bus(request.param)


@pytest.fixture
def observe():
    rigs = []

    def make(model, backend, **rule):
        hook = HookConfig.model_validate({"match": "0", **rule})
        rigs.append(Rig(model, [hook], backend=backend))
        return rigs[-1], rigs[-1].hooker._streams[0]

    yield make
    for rig in rigs:
        rig.close()


@pytest.mark.rest
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kernel", ["identity", {"cast": {"dtype": "float16"}}])
def test_every_call_with_an_odd_tensor_is_counted_and_what_arrives_is_right(
    observe, backend, kind, kernel
):
    model = torch.nn.Sequential(Through() if kind == "input_gradient" else Emits())
    rig, stream = observe(model, backend, capture=kind, preprocess=[kernel])
    odd = Odd(0)
    met = 0
    for name in [*odd.kinds, *(odd.one()[0] for _ in range(20))]:
        tensor = odd.kinds[name]()
        captured, calls = stream.captured.value, stream.calls.value
        if not meet(kind, model, tensor):
            continue
        met += 1
        assert stream.calls.value == calls + 1, name
        packets = rig.packets()
        assert len(packets) == stream.captured.value - captured, name
        if packets and kernel == "identity":
            expected = readable_value(tensor)
            assert expected is None or torch.equal(packets[0].tensor, expected), name
    assert met > 20
    assert stream.failures.value == 0
    assert rig.is_accounted_for(stream.name)
    model[0](torch.ones(2, 3))
    assert not stream.off


@pytest.mark.parametrize("kind", ["freed", "freed_view", "shrunken", "shrunken_alias"])
def test_no_bus_reads_memory_that_is_not_there(observe, backend, kind):
    rig, stream = observe(torch.nn.Sequential(Emits()), backend)
    tensor = Odd(1).kinds[kind]()
    meta = PacketMeta(stream.hook_id, 0, 0, tuple(tensor.shape))
    with pytest.raises(PacketError, match="storage"):
        rig.hooker._writer.producer.try_push(meta, tensor)
    assert rig.packets() == []


def test_a_storage_of_any_device_can_be_freed():
    """FSDP frees those of a GPU; a tensor without values stands for one here."""
    tensor = torch.ones(3, 4, device="meta")
    assert memory_fault(tensor) is None
    tensor.untyped_storage().resize_(0)
    assert memory_fault(tensor) == FREED


@pytest.mark.rest
@pytest.mark.parametrize("on_full", ["drop", "block"])
def test_what_can_never_fit_is_refused_before_anything_is_made_of_it(backend, on_full):
    """A tensor that looks like 1 GiB and is 4 KiB; in a process of its own, for its peak of memory."""
    code = """
        import resource, sys, torch
        from asys_bench.config.sections.hooks import HookConfig
        from tests.conformance.odd_tensors import Emits
        from tests.unit.capture.conftest import Rig

        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        model = torch.nn.Sequential(Emits())
        hooks = [HookConfig.model_validate({"match": "0", "preprocess": [step]})
                 for step in ("identity", "int8")]
        for hook in hooks:
            rig = Rig(model, [hook], backend=sys.argv[1], on_full=sys.argv[2])
            model(torch.ones(2, 1024))
            before = peak()
            model(torch.ones(1, 1024).expand(1 << 18, 1024))
            assert peak() - before < 16, (before, peak())
            assert rig.value("dropped", "0") == 1 and rig.is_accounted_for("0")
            assert sum(rig.bus.account().dropped.values()) == 1
            rig.close()
        """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), backend, on_full],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def freed(tensor):
    tensor.untyped_storage().resize_(0)
    return tensor


MATRICES = {
    "freed ids": lambda: freed(torch.ones(2, 3, dtype=torch.int64)),
    "freed pages of ids": lambda: freed(torch.ones(2, 5000, dtype=torch.int64)),
    "freed mask": lambda: freed(torch.ones(2, 3)),
    "freed mask of queries": lambda: freed(torch.ones(2, 1, 3, 3, dtype=torch.bool)),
    "freed positions": lambda: freed(torch.arange(5000)),
    "freed states": lambda: freed(torch.ones(2, 3, 4)),
    "sparse ids": lambda: torch.ones(2, 3, dtype=torch.int64).to_sparse(),
    "other integers": lambda: torch.ones(2, 3).to(torch.uint32),
}
"""Of the dimensions that these arguments have."""
ARGUMENTS = (
    "input_ids", "attention_mask", "position_ids", "cache_position", "encoder_hidden_states",
    "pixel_values", "ids", "beside",
)  # fmt: skip


@pytest.mark.rest
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_no_odd_argument_of_a_text_model_is_read_or_ends_the_reading_of_text(argument):
    """A mask whose memory is gone ended the host, and another odd one the tokens of all later calls."""
    model = PlainText() if argument in ("ids", "beside") else Text()
    ids = torch.tensor([[3, 2, 1], [6, 5, 4]])
    hook = HookConfig.model_validate({"match": "block", "capture": list(KINDS[:4])})
    rig = Rig(model, [hook], text=TextInputs.of(model), capacity_packets=1024)

    def call(*arguments, **named):
        model(*arguments, **named).sum().backward()
        rig.clock.step()

    kinds = {**Odd(0).kinds, **MATRICES}
    try:
        for make in kinds.values():
            odd = make()
            match argument:
                case "ids":
                    call(odd)
                case "beside":
                    call(ids, odd)
                case "input_ids":
                    call(odd, attention_mask=torch.ones(2, 3))
                case _:
                    call(ids, **{argument: odd})
            call(ids)
        found = rig.packets()
        for step, name in enumerate(kinds):
            plain = [packet for packet in found if packet.step == 2 * step + 1]
            assert {packet.name for packet in plain} == {point.name for point in rig.points}, name
            assert {packet.text for packet in plain} == {1}, name
        for point in rig.points[:4]:
            counts = [rig.value(what, point.name) for what in ("calls", "captured")]
            assert counts == [2 * len(kinds)] * 2, point.name
    finally:
        rig.close()
