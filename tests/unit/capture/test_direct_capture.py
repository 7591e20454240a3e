"""The compiled hook call sends, counts and samples exactly as the general path does."""

from __future__ import annotations

import math
import random
import threading
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asys_bench.backends.cpp_spmc.bus import CppSpmcProducer
from asys_bench.backends.cpp_spmc.hook_class import compiled
from asys_bench.backends.cpp_spmc.native import hook_call, unavailable
from asys_bench.capture.capture import Capture
from asys_bench.capture.sampling import FillController
from asys_bench.contracts.bus import BusError
from asys_bench.contracts.capture_port import (
    BUDGET_CELLS,
    BUDGET_DUE_NS,
    BUDGET_TOP,
    CALLS_BETWEEN_CHECKS,
    CLOCK_CELLS,
    CLOCK_MICROBATCH,
    CLOCK_OWNER,
    CLOCK_STEP,
    CLOCK_TOSSED,
    CLOCK_VERSION,
    PORT_ACCEPTED,
    PORT_NOT_MINE,
    PORT_REFUSED,
    STATE_CALL_INDEX,
    STATE_CELLS,
    STATE_COUNTDOWN,
    STATE_NEXT_RATE,
    STATE_OFF,
    Decision,
)
from asys_bench.contracts.coin import toss

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

COUNTERS = ("calls", "captured", "sampled_out", "dropped", "skipped", "bytes")
EVENTS = st.lists(
    st.sampled_from(
        [
            "row",
            "row",
            "row",
            "block",
            "transposed",
            "list",
            "empty",
            "step",
            "weights",
            "checkpoint",
            "train",
            "eval",
        ]
    ),
    min_size=20,
    max_size=120,
)


class Shown(torch.nn.Module):
    """Returns what it is given: any object can be a module's output."""

    def forward(self, value):
        return value


def play(observed, model, events):
    """The events, and what is left of them: counters and packets without their times."""
    values = {
        "row": torch.arange(6.0).reshape(1, 6),
        "block": torch.arange(48, dtype=torch.float64).reshape(8, 6),
        "transposed": torch.arange(12.0).reshape(3, 4).t(),
        "list": [1.0],
        "empty": torch.zeros(0, 3),
    }
    with torch.no_grad():
        for event in events:
            if event in ("train", "eval"):
                model.train(event == "train")
            elif event == "step":
                observed.clock.step()
            elif event == "weights":
                observed.clock.weights_updated()
            elif event == "checkpoint":
                recompute(model)
            else:
                model(values[event])
    counts = {name: observed.value(name, "shown") for name in COUNTERS}
    return counts, [
        (p._replace(tensor=None, rate=float(f"{p.rate:.3g}")), p.tensor.tolist())
        for p in observed.packets()
    ]


def recompute(model):
    """The model is called within a backward pass."""

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, gradient):
            model(torch.ones(1, 6))
            return gradient

    with torch.enable_grad():
        Again.apply(torch.ones(1, requires_grad=True)).sum().backward()


def shown(rig, max_rate=1.0, packets=256, phase="any", **bus):
    model = torch.nn.Sequential()
    model.add_module("shown", Shown())
    rule = {
        "match": "shown",
        "phase": phase,
        "sampling": {"max_rate": max_rate, "increase_per_s": 0.0},
    }
    return model, rig(model, rule, backend="cpp_spmc", capacity_packets=packets, **bus)


@pytest.mark.rest
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    events=EVENTS,
    max_rate=st.sampled_from([1.0, 0.5, 0.1]),
    packets=st.sampled_from([8, 256]),
    phase=st.sampled_from(["any", "train", "eval"]),
)
def test_both_paths_leave_the_same_packets_and_counts(rig, events, max_rate, packets, phase):
    results = []
    for port in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not port:
                patch.setattr(CppSpmcProducer, "capture_port", lambda *_: None)
            model, observed = shown(rig, max_rate, packets, phase)
            results.append(play(observed, model, events))
            assert observed.is_accounted_for("shown")
            observed.close()
    assert results[0] == results[1]


def test_the_compiled_path_checks_a_calm_bus_by_itself_and_sixteen_times_at_most(rig, monkeypatch):
    checks = count_checks(monkeypatch)
    pushes = []
    monkeypatch.setattr(Capture, "observe", counting(Capture.observe, pushes))
    model, observed = shown(rig, packets=4096)
    for _ in range(2 * 17 * CALLS_BETWEEN_CHECKS):
        model(torch.ones(2, 3))
    assert observed.value("captured", "shown") == 2 * 17 * CALLS_BETWEEN_CHECKS
    assert len(checks) == len(pushes) == 2


def test_a_hook_with_a_phase_takes_the_compiled_path_in_it(rig, monkeypatch):
    checks = count_checks(monkeypatch)
    model, observed = shown(rig, packets=4096, phase="eval")
    for training in (False, True, False):
        model.train(training)
        for _ in range(100):
            model(torch.ones(2, 3))
    assert observed.value("captured", "shown") == 200
    assert observed.value("skipped", "shown") == 100
    assert len(checks) == 1


def test_a_bus_that_fills_up_is_checked_by_the_general_path_again(rig, monkeypatch):
    checks = count_checks(monkeypatch)
    model, observed = shown(rig, packets=256)
    calm = 0.25  # half of the low watermark
    while observed.bus.fill_ratio() <= calm:
        model(torch.ones(2, 3))
    assert len(checks) == 1
    for _ in range(CALLS_BETWEEN_CHECKS):
        if len(checks) == 1:
            model(torch.ones(2, 3))
    assert len(checks) == 2
    for _ in range(12):
        model(torch.ones(2, 3))
    assert len(checks) == 5, "every fourth call of a bus that fills up"


def test_after_a_refusal_no_bus_is_calm(rig, monkeypatch):
    checks = count_checks(monkeypatch)
    model, observed = shown(rig, packets=8, on_full="sample")
    for _ in range(40):
        model(torch.ones(2, 3))
    assert observed.value("dropped", "shown")
    before = len(checks)
    assert observed.packets()  # the bus is empty again, and the rate has yet to recover
    for _ in range(16 * CALLS_BETWEEN_CHECKS):
        model(torch.ones(2, 3))
    assert len(checks) - before >= 4


def count_checks(monkeypatch):
    checks = []
    observe = FillController.observe
    monkeypatch.setattr(FillController, "observe", lambda *args: checks.append(1) or observe(*args))
    return checks


def counting(method, calls):
    def counted(*args):
        calls.append(args)
        method(*args)

    return counted


def own_clock():
    """Cells of a clock whose tags are this thread's."""
    cells = memoryview(bytearray(8 * CLOCK_CELLS)).cast("q")
    cells[CLOCK_OWNER] = threading.get_ident()
    return cells


class Alone:
    """A `DirectCapture` with a port and state of its own."""

    def __init__(self, observed, **changes):
        stream = observed.hooker._streams[0]
        observed.hooker.detach()
        self.state = memoryview(bytearray(8 * STATE_CELLS)).cast("q")
        self.state[STATE_COUNTDOWN] = 1000
        self.set_rate(1.0)
        self.calls = observed.slot.counter("hook_calls", hook="shown")
        self.captured = observed.slot.counter("hook_captured", hook="shown")
        self.sampled_out = observed.slot.counter("hook_sampled_out", hook="shown")
        self.skipped = observed.slot.counter("hook_skipped", hook="shown")
        self.port = observed.hooker._writer.producer.capture_port(stream.meta, stream.port_cells)
        decision = Decision(
            self.state,
            own_clock(),
            stream.sampled_out.cell,
            stream.skipped.cell,
            coin_key=1,
            locked=lambda: False,
            graph_task=lambda: -1,
        )
        self.take = self.port.direct(replace(decision, **changes))

    def set_rate(self, rate):
        self.state.cast("B").cast("d")[STATE_NEXT_RATE] = rate


@pytest.fixture
def alone(rig):
    made = []

    def make(packets=256, **changes):
        made.append(Alone(shown(rig, packets=packets)[1], **changes))
        return made[-1]

    yield make
    for one in made:
        one.port.close()


def test_the_budget_is_kept_in_the_same_cells(alone):
    cells = memoryview(bytearray(8 * BUDGET_CELLS)).cast("d")
    one = alone(budget=cells)
    assert one.take(torch.ones(5, 2, 3)) == PORT_NOT_MINE  # it is to be made up for the first time
    cells[BUDGET_DUE_NS] = 2.0**62
    cells[BUDGET_TOP] = 7
    assert one.take(torch.ones(5, 2, 3)) == PORT_ACCEPTED
    assert one.take(torch.ones(3)) == PORT_ACCEPTED
    assert list(cells)[1:] == [11, 11, 10]
    one.set_rate(1e-9)
    assert one.take(torch.ones(2, 3)) == PORT_ACCEPTED  # sampled out: offered and not sent
    assert list(cells)[1:] == [13, 11, 10]


def test_the_compiled_coin_is_the_contracts_to_the_last_bit(alone):
    numbers, cells = random.Random(5), own_clock()
    for key in (0, 1, 2**64 - 1, numbers.getrandbits(64)):
        one = alone(clock=cells, coin_key=key)
        for _ in range(60):
            call = [numbers.getrandbits(bits) for bits in (62, 31, 16, 40)]
            cells[CLOCK_STEP], cells[CLOCK_VERSION], cells[CLOCK_MICROBATCH], index = call
            cells[CLOCK_TOSSED] = 0
            u = toss(key, *call)
            for rate, counted in ((u, one.sampled_out), (math.nextafter(u, 2), one.captured)):
                one.state[STATE_CALL_INDEX] = index - 1
                one.state[STATE_COUNTDOWN] = 1000
                one.set_rate(rate)
                before = counted.value
                assert one.take(torch.ones(1)) == PORT_ACCEPTED
                assert counted.value == before + 1
            assert cells[CLOCK_TOSSED] == index + 1


def explode():
    raise RuntimeError("asked at a bad time")


@pytest.mark.parametrize(
    "changes",
    [
        {"locked": lambda: True},
        {"locked": explode},
        {"graph_task": lambda: 7},
        {"graph_task": explode},
        {"graph_task": lambda: "none"},
    ],
)
def test_what_speaks_against_it_hands_the_call_back_uncounted(alone, changes):
    one = alone(**changes)
    assert one.take(torch.ones(2, 3)) == PORT_NOT_MINE
    assert one.calls.value == 0


def test_it_is_off_when_the_hook_is_or_the_port_is_closed(alone):
    one = alone()
    assert one.take(torch.ones(2, 3)) == PORT_ACCEPTED
    one.state[STATE_OFF] = 1
    assert one.take(torch.ones(2, 3)) == PORT_NOT_MINE
    one.state[STATE_OFF] = 0
    one.port.close()
    assert one.take(torch.ones(2, 3)) == PORT_NOT_MINE
    with pytest.raises(BusError, match="closed"):
        one.port.direct(None)


def test_the_last_call_before_a_check_of_the_bus_is_handed_back(alone):
    one = alone()
    one.state[STATE_COUNTDOWN] = 3
    outcomes = [one.take(torch.ones(2, 3)) for _ in range(4)]
    assert outcomes == [PORT_ACCEPTED, PORT_ACCEPTED, PORT_NOT_MINE, PORT_NOT_MINE]


def test_a_full_bus_says_so(alone):
    one = alone(packets=4)
    outcomes = [one.take(torch.ones(2, 3)) for _ in range(6)]
    assert outcomes == [PORT_ACCEPTED] * 4 + [PORT_REFUSED] * 2


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"state": memoryview(bytearray(8)).cast("q")}, BusError),
        ({"clock": memoryview(bytearray(8)).cast("q")}, BusError),
        ({"state": memoryview(bytes(8 * STATE_CELLS)).cast("q")}, BufferError),
        ({"budget": memoryview(bytearray(8)).cast("d")}, BusError),
        ({"state": None}, BusError),
        ({"clock": None}, BusError),
        ({"clock": memoryview(bytes(8 * CLOCK_CELLS)).cast("q")}, BufferError),
        ({"coin_key": -1}, OverflowError),
        ({"sampled_out": 1 << 40}, BusError),
        ({"sampled_out": -1}, OverflowError),
        ({"skipped": 1 << 40}, BusError),
    ],
)
def test_memory_that_it_could_not_use_is_refused(alone, changes, error):
    with pytest.raises(error):
        alone(**changes)


class Hook:
    """A `ForwardHook` that tells what reached its Python."""

    def __init__(self, direct, phase=None):
        self.direct, self.phase = direct, phase
        self.seen = []

    def __call__(self, module, args, output):
        self.seen.append("called")

    def otherwise(self, outcome, module, output):
        self.seen.append((outcome, module, output))


def test_a_compiled_hook_runs_no_python_for_what_it_can_do_itself(alone):
    one, module, skipped = alone(), torch.nn.Identity(), alone(graph_task=lambda: 7)
    hook = compiled(Hook)(one.take)
    assert isinstance(hook, Hook)
    assert type(hook) is compiled(Hook)
    assert hook(module, (), torch.ones(2, 3)) is None
    assert hook.seen == []
    assert one.calls.value == 1
    hook(module, (), "no tensor")
    assert hook.seen == [(PORT_NOT_MINE, module, "no tensor")]

    out_of_phase = compiled(Hook)(one.take, False)
    out_of_phase(module, (), torch.ones(2, 3))
    assert out_of_phase.seen == []
    assert one.calls.value == 2
    assert one.skipped.value == 1
    recomputed = compiled(Hook)(skipped.take, False)
    recomputed(module, (), torch.ones(2, 3))
    assert [outcome for outcome, *_ in recomputed.seen] == [PORT_NOT_MINE]
    no_module = compiled(Hook)(one.take, True)
    no_module("no module", (), torch.ones(2, 3))
    assert [outcome for outcome, *_ in no_module.seen] == [PORT_NOT_MINE]


def test_a_compiled_hook_is_its_class_to_whoever_looks_at_it(alone):
    one, module = alone(), torch.nn.Identity()
    hook = compiled(Hook)(one.take)
    assert type(hook).__call__ is Hook.__call__, "which is what torch.compile traces"
    hook.__call__(module, (), torch.ones(2, 3))
    hook(module, (), output=torch.ones(2, 3))  # no module calls it like that
    assert hook.seen == ["called", "called"]
    with pytest.raises(TypeError):
        hook(module)
    gone = weakref.ref(hook)
    del hook
    assert gone() is None


def test_what_cannot_be_compiled_is_refused(alone):
    base = hook_call()
    with pytest.raises(TypeError, match="DirectCapture"):
        compiled(Hook)(lambda output: PORT_ACCEPTED)
    with pytest.raises(TypeError, match="phase"):
        compiled(Hook)(alone().take, 1)
    for wrong in (Hook, base, "HookCall"):
        with pytest.raises(TypeError, match="subclass of HookCall"):
            base.take_calls(wrong)


def test_threads_lose_no_call(rig):
    model, observed = shown(rig, packets=8192, capacity_mib=64)
    small, large = torch.ones(1, 8), torch.ones(300, 1024)  # large: beyond the port, GIL released

    def call(tensor, times):
        with torch.no_grad():
            for _ in range(times):
                model(tensor)

    threads = [threading.Thread(target=call, args=(small, 400)) for _ in range(3)]
    threads.append(threading.Thread(target=call, args=(large, 20)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert observed.value("calls", "shown") == 1220
    assert observed.is_accounted_for("shown")
    assert observed.bus.account().produced == observed.value("captured", "shown")
