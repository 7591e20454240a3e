"""A text model on a device: ids, mask and activations leave without anybody waiting, and readers get what a
host on the CPU would have sent."""

from __future__ import annotations

import threading
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from asys_bench.capture import host_state
from asys_bench.capture.gpu.streamer import DeviceStreamer
from asys_bench.capture.offload import GRAPHED, Offload
from asys_bench.capture.tags import text_inputs, token_places
from asys_bench.capture.tags.text_inputs import TextInputs
from asys_bench.config.sections.bus import DeviceConfig
from asys_bench.config.sections.hooks import HookConfig

from ..conftest import Rig
from ..test_text_inputs import Cache, Text, causal, random_batch
from .simulated_device import SimulatedDevice

DEVICE = torch.device("cuda:0")
ASKS = {
    "item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "nonzero",
    "masked_select", "equal", "allclose", "unique", "__contains__", "argwhere",
}  # fmt: skip
FLAGS = (torch.bool, torch.uint8)


class OnDevice(torch.Tensor):
    """A CPU tensor that says it is on a GPU, and notes what would make the host's thread wait for one."""

    noted: ClassVar[list[str]] = []
    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        given = [*args[1:], *(kwargs or {}).values()]
        if threading.current_thread() is threading.main_thread() and (
            name in ASKS
            or (name == "to" and "cpu" in map(str, given))
            or (name == "copy_" and not isinstance(args[0], cls))
            or (name == "__getitem__" and picks(args[1]))
            # A number becomes a tensor that is copied to the device, and waited for.
            or (name == "where" and any(not isinstance(value, torch.Tensor) for value in args))
        ):
            cls.noted.append(name)
        if name == "to" and OnSecond.device.fget(None) in given:
            return args[0].as_subclass(OnSecond)
        return super().__torch_function__(function, types, args, kwargs or {})


class OnSecond(OnDevice):
    """On another GPU."""

    device = property(lambda self: torch.device("cuda:1"))  # type: ignore[assignment]


def picks(index):
    """Whether an index is, or holds, flags."""
    parts = index if isinstance(index, (tuple, list)) else [index]
    return any(isinstance(part, torch.Tensor) and part.dtype in FLAGS for part in parts)


class Forbid(TorchDispatchMode):
    """Notes operators of this thread that wait for a device."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").partition(".")[0]
        moves = name == "_to_copy" and str((kwargs or {}).get("device")) == "cpu"
        if name in self.NAMES or moves or (name == "index" and picks(args[1])):
            OnDevice.noted.append(name)
        return function(*args, **(kwargs or {}))


def there(tensor):
    """The tensor on the simulated device."""
    return tensor.clone().as_subclass(OnDevice)


@pytest.fixture(autouse=True)
def _nothing_noted():
    OnDevice.noted.clear()
    yield
    OnDevice.noted.clear()


class Observed(Rig):
    """A text model whose hooks reach a simulated device; on_cpu: a host that has none."""

    def __init__(self, model, *rules, on_cpu=False, refuses_to_pin=None):
        hooks = [HookConfig.model_validate(rule) for rule in rules]
        text = TextInputs.of(model)
        super().__init__(model, hooks, attach=False, text=text, capacity_packets=1024)
        self.device = SimulatedDevice(refuses_to_pin=refuses_to_pin)
        self.streamer = None
        hooker = self.hooker
        if not on_cpu:
            config = DeviceConfig(staging_mib=4, buffer_mib=4, max_in_flight=256)
            hooker._offload = Offload(hooker._writer, self.slot, config, self.start, hooker.notices)
        hooker.attach()

    def start(self, writer, slot, devices, config):
        self.streamer = DeviceStreamer(
            self.device, writer.producer, writer.lock, config, devices=devices, slot=slot
        )
        return self.streamer

    def arrived(self):
        """(hook, step, microbatch, text, rows) of everything that was captured, sorted."""
        if self.streamer is not None:
            assert self.streamer.drain(20) == 0
            self.hooker._offload.settle()
        found = [
            (
                p.name,
                p.step,
                p.microbatch,
                p.text,
                p.tensor.reshape(-1, p.tensor.shape[-1]).tolist(),
            )
            for p in self.packets()
        ]
        return sorted(found)


@pytest.fixture
def observe():
    """observe(model, *rules, on_cpu=...)"""
    made = []

    def make(model, *rules, **more):
        made.append(Observed(model, *rules, **more))
        return made[-1]

    yield make
    for one in made:
        one.close()
        assert one.device.violations == []


class Layers(Text):
    """Two layers behind the embedding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(8, 6), torch.nn.Linear(6, 4)

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None,
                cache_position=None):  # fmt: skip
        return self.second(self.first(self.mid(self.embed(input_ids))))


RULES = (
    {"match": "mid"},
    {"match": "first", "preprocess": "int8"},
    {"match": "second", "capture": ["activation", "input"], "preprocess": "fp8"},
)


def both(observe, calls, rules=RULES, model=Layers):
    """What a host on the CPU and one on the device captured of the same calls."""
    found = []
    for move in (lambda tensor: tensor, there):
        torch.manual_seed(1)
        made = model()
        observed = observe(made, *rules, on_cpu=move is not there)
        with torch.no_grad():
            for call in calls:
                made(**{
                    name: move(value) if isinstance(value, torch.Tensor) else value(move)
                    for name, value in call.items()
                })  # fmt: skip
                observed.clock.step()
        found.append(observed.arrived())
    return found


@pytest.mark.parametrize(
    ("act", "name"),
    [
        (lambda t: t[0, 0].item(), "item"),
        (lambda t: bool(t.any()), "__bool__"),
        (lambda t: t.nonzero(), "nonzero"),
        (lambda t: t[t > 3], "__getitem__"),
        (lambda t: torch.masked_select(t, t > 3), "masked_select"),
        (lambda t: t.cpu(), "cpu"),
        (lambda t: torch.empty(2, 3).copy_(t), "copy_"),
        (lambda t: torch.equal(t, t + 1), "equal"),
        (lambda t: t.numpy(), "numpy"),
        (lambda t: torch.where(t > 3, 1, 0), "where"),
    ],
)
def test_whatever_waits_is_noted(act, name):
    """The test below can fail."""
    act(there(torch.arange(6).reshape(2, 3)))
    assert name in OnDevice.noted


@pytest.mark.parametrize("steps", [60, pytest.param(1000, marks=pytest.mark.rest)])
def test_steps_with_tokens_and_mask_never_wait_and_give_what_a_cpu_host_gives(
    observe, monkeypatch, steps
):
    for hides in ("dispatch_modes", "function_modes"):  # from the host's modes: here they shall see
        monkeypatch.setattr(host_state, hides, lambda: ())
    torch.manual_seed(7)
    batches = [random_batch(4, 6, padded=step % 3 > 0) for step in range(steps)]
    rules = ({"match": "mid"}, {"match": "second"})
    model = Layers()
    there_rig, here = observe(model, *rules), Layers()
    here.load_state_dict(model.state_dict())
    cpu = observe(here, *rules, on_cpu=True)
    found = []
    with torch.no_grad():
        for step, (ids, mask) in enumerate(batches):
            here(ids, mask)
            ids, mask = there(ids), there(mask)
            if step == 0:
                model(ids, mask)  # starts the path: a measurement
            else:
                with Forbid():
                    model(ids, mask)
            assert OnDevice.noted == [], f"step {step}"
            cpu.clock.step()
            there_rig.clock.step()
            if step % 50 == 49 or step == steps - 1:
                found += [(cpu.arrived(), there_rig.arrived())]
                OnDevice.noted.clear()
    assert all(on_cpu == on_device for on_cpu, on_device in found)
    assert sum(len(on_device) for _, on_device in found) == 3 * steps
    assert all(there_rig.is_accounted_for(name) for name in ("mid", "second", "tokens"))


def forms_of(mask):
    """The mask in the forms that it comes in."""
    square = causal(mask, 0)
    lowest = torch.finfo(torch.float32).min
    yield from (mask, mask.bool(), mask.float(), square)
    yield torch.zeros(mask.shape).masked_fill(mask == 0, lowest)
    yield torch.zeros(square.shape).masked_fill(~square, lowest)
    yield torch.full(mask.shape, 0.5)  # no mask at all
    yield torch.ones(2, 2)  # of another call


def test_every_form_of_mask_and_every_encoding_says_the_same_as_on_the_cpu(observe):
    ids, mask = random_batch(4, 12)
    calls = [{"input_ids": ids, "attention_mask": form} for form in forms_of(mask)]
    calls.append({"input_ids": ids})
    calls.append({"input_ids": ids, "attention_mask": torch.zeros_like(mask)})
    calls.append({"input_ids": ids, "attention_mask": torch.ones_like(mask)})
    on_cpu, on_device = both(observe, calls)
    assert on_cpu == on_device
    assert len(on_device) == 5 * len(calls)
    assert OnDevice.noted == []


def test_positions_go_on_behind_a_cache_whose_length_a_device_knows(observe):
    ids, mask = random_batch(4, 3)
    long = torch.cat([torch.ones_like(mask), mask], 1)

    def cache(length):
        return lambda move: Cache(move(torch.tensor(length)))

    calls = [
        {"input_ids": ids, "past_key_values": cache(5)},
        {"input_ids": ids, "past_key_values": cache(0)},
        {"input_ids": ids, "attention_mask": long, "past_key_values": cache(3)},
        {
            "input_ids": ids,
            "attention_mask": causal(long, 4)[:, :, 3:],
            "past_key_values": cache(3),
        },
        {"input_ids": ids, "cache_position": torch.arange(2, 5)},
        {"input_ids": ids, "position_ids": torch.arange(7, 10)[None]},
        {"input_ids": ids, "attention_mask": mask.float(), "past_key_values": cache(0)},
    ]
    on_cpu, on_device = both(observe, calls, RULES[:1])
    assert on_cpu == on_device
    assert len(on_device) == 2 * len(calls)
    assert OnDevice.noted == []


class Plain(torch.nn.Module):
    """No parameter is called `input_ids`."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(1000, 8, padding_idx=0)
        self.places = torch.nn.Embedding(64, 8)
        self.mid = torch.nn.Identity()

    def forward(self, idx):
        return self.mid(self.embed(idx) + self.places(torch.arange(idx.shape[1])))


def test_a_plain_model_on_a_device_is_read_by_its_embedding(observe):
    calls = [{"idx": random_batch(4, 9)[0]} for _ in range(3)]
    on_cpu, on_device = both(observe, calls, [{"match": "mid"}], Plain)
    assert on_cpu == on_device
    assert {name for name, *_ in on_device} == {"mid", "tokens"}
    assert OnDevice.noted == []


def test_activations_on_a_device_behind_ids_on_the_cpu_lose_their_padding_too(observe):
    class Moves(Layers):
        def forward(self, input_ids=None, attention_mask=None):
            return self.mid(there(self.embed(input_ids)))

    ids, mask = random_batch(4, 12)
    model = Moves()
    observed = observe(model, {"match": "mid"})
    with torch.no_grad():
        model(ids, mask)
    (hook, *_, number, rows), (tokens, *_, its_number, its_rows) = observed.arrived()
    assert (hook, tokens) == ("mid", "tokens")
    assert number == its_number == 1
    assert [row[0] for row in rows] == [row[0] for row in its_rows]
    assert len(rows) == int(mask.sum())


class OverTwo(Layers):
    """Its second layer is on another device, as `device_map` spreads a model."""

    def forward(self, input_ids=None, attention_mask=None):
        x = self.first(self.mid(self.embed(input_ids)))
        if not x.is_cpu:
            x = x.as_subclass(OnSecond)
        return self.second(x)


def test_a_model_over_two_devices_has_its_tokens_and_no_padding_on_both(observe):
    ids, mask = random_batch(5, 12)
    on_cpu, on_device = both(
        observe, [{"input_ids": ids, "attention_mask": mask}] * 2, model=OverTwo
    )
    assert on_cpu == on_device
    assert len(on_device) == 5 * 2
    assert OnDevice.noted == []


def test_a_layer_on_the_cpu_behind_a_text_on_a_device_is_said_to_carry_no_tokens(observe, caplog):
    class Back(Layers):
        def forward(self, input_ids=None, attention_mask=None):
            return self.second(self.first(self.embed(input_ids)).as_subclass(torch.Tensor))

    ids, mask = random_batch(5, 12)
    observed = observe(model := Back(), {"match": "second"})
    with torch.no_grad():
        model(there(ids), there(mask))
    (_, *_, number, rows), (name, *_) = observed.arrived()
    assert (number, len(rows), name) == (0, 60, "tokens")
    assert "hook second: computes on the CPU behind a text on a device" in caplog.text
    assert OnDevice.noted == []


def test_a_graph_that_the_host_captures_gets_nothing_and_lowers_no_rate(observe, monkeypatch):
    ids, mask = random_batch(5, 12)
    observed = observe(model := Layers(), {"match": "mid"}, {"match": "second"})
    with torch.no_grad():
        model(there(ids), there(mask))
        observed.device.is_capturing = True
        for module in (text_inputs, token_places):
            monkeypatch.setattr(module, "is_graph_captured", lambda: True)
        model(there(ids), there(mask))
    assert len(observed.arrived()) == 3
    assert [observed.value("dropped", name) for name in ("mid", "second", "tokens")] == [1, 1, 0]
    assert observed.hooker.notices.messages == (GRAPHED,)
    assert observed.value("sampling_rate", "mid") == 1.0


def test_one_parameter_on_a_device_costs_no_call_its_tokens(observe):
    model = Layers()
    model.extra = torch.nn.Parameter(torch.zeros(1, device="meta"))
    observed = observe(model, {"match": "mid"})
    ids, mask = random_batch(4, 12)
    with torch.no_grad():
        model(ids, mask)
    assert [name for name, *_ in observed.arrived()] == ["mid", "tokens"]


class Elsewhere(OnDevice):
    """On a device that nobody carries packets from."""

    device = property(lambda self: torch.device("mps:0"))  # type: ignore[assignment]


def test_text_on_a_device_that_is_not_served_is_not_read_and_that_is_said(observe, caplog):
    model = Layers()
    observed = observe(model, {"match": "mid"})
    ids, mask = random_batch(4, 12)
    with torch.no_grad():
        model(ids.as_subclass(Elsewhere), mask.as_subclass(Elsewhere))
    assert "text on mps is not read" in caplog.text
    assert all(name != "tokens" and number == 0 for name, _, _, number, _ in observed.arrived())


def test_memory_that_the_driver_does_not_pin_changes_no_row(observe):
    ids, mask = random_batch(4, 12)
    model = Layers()
    observed = observe(model, *RULES, refuses_to_pin="not today")
    on_cpu = observe(model, *RULES, on_cpu=True)
    with torch.no_grad():
        model(there(ids), there(mask))
    of_device = observed.arrived()
    on_cpu.packets()
    observed.hooker.detach()
    with torch.no_grad():
        model(ids, mask)
    assert of_device == [
        (name, 0, 0, number, rows) for name, _, _, number, rows in on_cpu.arrived()
    ]


def test_heads_are_split_in_host_memory_and_padding_is_left_out_of_each(observe, caplog):
    ids, mask = random_batch(4, 12)
    calls = [{"input_ids": ids, "attention_mask": form} for form in (mask, torch.zeros_like(mask))]
    calls.append({"input_ids": ids})
    rules = (
        {"match": "first", "preprocess": {"heads": {"count": 3}}},
        {"match": "second", "preprocess": [{"heads": {"count": 2, "keep": [1]}}, "int8"]},
    )
    on_cpu, on_device = both(observe, calls, rules)
    assert on_cpu == on_device
    assert len(on_device) == 3 * len(calls)
    assert "heads.3 cannot be encoded on the device" in caplog.text
    assert OnDevice.noted == []
