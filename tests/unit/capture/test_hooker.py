"""The hooker copies, samples, fails open, and leaves no trace."""

from __future__ import annotations

import copy
import io
import logging
import os
import pickle
import subprocess
import sys
import threading
import time

import pytest
import torch

from asys_bench.capture import hook_stream
from asys_bench.contracts.packet import Kind

from .conftest import usable_bus

BACKENDS = ["mp_queue", "cpp_spmc"]
KINDS = ["activation", "input", "gradient", "input_gradient", "parameter_gradient"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    return usable_bus(request.param)


def mlp():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))


def test_the_output_arrives_as_it_was_even_if_the_host_then_overwrites_it(rig, backend):
    model = mlp()
    observed = rig(model, {"match": "0"}, backend=backend)
    x = torch.randn(3, 4)
    with torch.no_grad():
        expected = torch.nn.functional.linear(x, model[0].weight, model[0].bias)
        model[0](x).zero_()
    (packet,) = observed.packets()
    assert (packet.name, packet.kind) == ("0", Kind.ACTIVATION)
    assert torch.equal(packet.tensor, expected)


def test_every_kind_arrives_as_autograd_saw_it(rig, backend):
    model = mlp()
    observed = rig(model, {"match": "0", "capture": KINDS}, backend=backend)
    x = torch.randn(3, 4, requires_grad=True)
    out = model[0](x)
    out.retain_grad()
    out.square().sum().backward()
    found = {(p.name, p.kind): p.tensor for p in observed.packets()}
    assert torch.equal(found.pop(("0", Kind.ACTIVATION)), out.detach())
    assert torch.equal(found.pop(("0:input", Kind.INPUT)), x.detach())
    assert torch.equal(found.pop(("0:gradient", Kind.GRADIENT)), out.grad)
    assert torch.equal(found.pop(("0:input_gradient", Kind.INPUT_GRADIENT)), x.grad)
    weight = found.pop(("0.weight:grad", Kind.PARAMETER_GRADIENT))
    assert torch.equal(weight, model[0].weight.grad)
    bias = found.pop(("0.bias:grad", Kind.PARAMETER_GRADIENT))
    assert torch.equal(bias, model[0].bias.grad)
    assert not found


def hook_dictionaries(model):
    """Every dictionary of hooks that a model has, with its keys."""
    found = {}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if "hook" in attribute:
                found[name, attribute] = list(value) if hasattr(value, "__iter__") else value
    for name, parameter in model.named_parameters():
        for attribute in ("_backward_hooks", "_post_accumulate_grad_hooks"):
            found[name, attribute] = getattr(parameter, attribute)
    return found


def test_detach_leaves_every_dictionary_of_hooks_as_it_was(rig):
    class ReturnsItsParameter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.weight

    model = torch.nn.Sequential(*mlp(), ReturnsItsParameter())
    model[0].register_forward_hook(lambda *_: None)
    before = hook_dictionaries(model)
    observed = rig(model, {"match": "*", "capture": KINDS})
    assert hook_dictionaries(model) != before
    observed.hooker.attach()
    for _ in range(3):
        model(torch.randn(1, 4, requires_grad=True)).sum().backward()
    assert len(model[3].weight._backward_hooks) == 1, "one hook per leaf, however many calls"
    left_over = model(torch.randn(1, 4, requires_grad=True)).sum()
    observed.hooker.detach()
    observed.hooker.detach()
    assert not observed.hooker.attached
    after = hook_dictionaries(model)
    leaf = after.pop(("3.weight", "_backward_hooks"))
    before.pop(("3.weight", "_backward_hooks"))
    assert not leaf
    assert after == before
    observed.packets()
    left_over.backward()
    model(torch.randn(1, 4)).sum().backward()
    assert observed.packets() == []


def test_hooks_can_be_attached_again(rig, backend):
    model = mlp()
    observed = rig(model, {"match": "0"}, backend=backend)
    model(torch.randn(1, 4))
    observed.hooker.detach()
    model(torch.randn(1, 4))
    observed.hooker.attach()
    model(torch.randn(1, 4))
    assert len(observed.packets()) == 2
    assert observed.value("calls", "0") == 2


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_a_hook_whose_calls_all_fail_switches_itself_off_and_logs_once(rig, caplog):
    model = mlp()
    observed = rig(model, {"match": "0", "preprocess": [{"cast": {"dtype": "float16"}}]})
    model[0].to(torch.complex64)
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            out = model[0](torch.randn(2, 4, dtype=torch.complex64))
    assert out.shape == (2, 8)
    assert observed.value("failed", "0") == 1
    assert observed.value("skipped", "0") == 16, "from then on it is off"
    assert observed.is_accounted_for("0")
    messages = [record.message for record in caplog.records]
    assert ["a call failed" in m for m in messages] == [True, False]
    assert "switched itself off" in messages[1]
    assert observed.packets() == []


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_a_tensor_that_fails_now_and_then_switches_nothing_off(rig, backend):
    model = torch.nn.Sequential(torch.nn.Identity())
    observed = rig(
        model, {"match": "0", "preprocess": [{"cast": {"dtype": "float16"}}]}, backend=backend
    )
    for _ in range(20):
        for dtype in (torch.complex64, torch.complex64, torch.float32):
            model(torch.ones(2, 4, dtype=dtype))
    assert len(observed.packets()) == observed.value("captured", "0") == 20
    assert observed.value("skipped", "0") == 40
    assert observed.value("failed", "0") == 0


def test_a_bus_that_is_gone_does_not_reach_the_host(rig, backend):
    model = mlp()
    observed = rig(model, {"match": "*", "capture": KINDS}, backend=backend)
    observed.bus.close()
    out = model(torch.randn(2, 4, requires_grad=True))
    out.sum().backward()
    assert out.shape == (2, 2)


def test_a_full_bus_lowers_the_rate_and_it_recovers_once_drained(rig, backend):
    model = mlp()
    sampling = {"increase_per_s": 50.0, "decrease_factor": 0.5}
    observed = rig(
        model, {"match": "0", "sampling": sampling}, capacity_packets=32, backend=backend
    )
    x = torch.randn(1, 4)
    deadline = time.monotonic() + 60
    while observed.value("sampling_rate", "0") > 0.3 and time.monotonic() < deadline:
        model[0](x)
    assert observed.value("sampling_rate", "0") <= 0.3
    lowest = observed.value("sampling_rate", "0")
    rates = []
    while observed.value("sampling_rate", "0") < 1.0 and time.monotonic() < deadline:
        rates += [packet.rate for packet in observed.packets()]
        for _ in range(12):
            model[0](x)
    assert observed.value("sampling_rate", "0") == 1.0
    assert 0 < min(rates) <= 1
    assert lowest > 0
    observed.packets()
    account = observed.bus.account()
    assert account.imbalance(account.group("g")) == 0
    assert observed.is_accounted_for("0")
    assert observed.value("sampled_out", "0") > 0


def test_on_full_drop_counts_and_never_lowers_the_rate(rig, backend):
    model = mlp()
    observed = rig(model, {"match": "0"}, capacity_packets=8, on_full="drop", backend=backend)
    for _ in range(50):
        model[0](torch.randn(1, 4))
    account = observed.bus.account()
    assert observed.value("sampling_rate", "0") == 1.0
    assert observed.value("dropped", "0") == account.dropped["full"] > 0
    assert account.produced == 50
    assert observed.is_accounted_for("0")


def test_on_full_block_gives_up_after_its_timeout_and_counts_it(rig, backend):
    model = mlp()
    observed = rig(
        model,
        {"match": "0"},
        capacity_packets=4,
        on_full="block",
        block_timeout_s=0.05,
        backend=backend,
    )
    for _ in range(8):
        model[0](torch.randn(1, 4))
    assert observed.bus.account().dropped["timeout"] == observed.value("dropped", "0") > 0
    assert observed.is_accounted_for("0")


def test_on_full_block_loses_nothing_while_somebody_reads(rig, backend):
    model = mlp()
    observed = rig(
        model,
        {"match": "0", "preprocess": [{"cast": {"dtype": "bfloat16"}}]},
        capacity_packets=4,
        on_full="block",
        block_timeout_s=60,
        backend=backend,
    )
    found, over = [], threading.Event()

    def read():
        while not over.is_set():
            found.extend(observed.packets())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(50):
            model[0](torch.randn(1, 4))
    finally:
        over.set()
        reader.join(60)
    found += observed.packets()
    assert len(found) == 50 == observed.value("captured", "0")


def test_phase_selects_training_or_evaluation_calls(rig):
    model = mlp()
    observed = rig(model, {"match": "0", "phase": "eval", "capture": ["activation", "input"]})
    model.train()
    model(torch.randn(1, 4))
    model.eval()
    model(torch.randn(2, 4))
    assert {tuple(p.tensor.shape) for p in observed.packets()} == {(2, 8), (2, 4)}
    assert observed.value("skipped", "0") == 1
    assert observed.is_accounted_for("0")


def conjugate(x):
    """Lazily: the bytes are those of the number that is conjugated."""
    return torch.view_as_complex(x.view(-1, 2)).conj()


class Returns(torch.nn.Module):
    """Applies a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (torch.t, torch.t),
        (lambda x: x[:, ::2], lambda x: x[:, ::2]),
        (lambda x: x[:1].expand(3, 4), lambda x: x[:1].expand(3, 4)),
        (lambda x: x.new_empty(0, 4), lambda x: x.new_empty(0, 4)),
        (lambda x: x.sum(), lambda x: x.sum()),
        (lambda x: torch.nn.Parameter(x), lambda x: x),
        (lambda x: conjugate(x), lambda x: conjugate(x).resolve_conj()),
        (lambda x: conjugate(x).imag[:2], lambda x: -x.view(-1, 2)[:2, 1]),
    ],
    ids=["transposed", "strided", "expanded", "empty", "scalar", "parameter", "conj", "negated"],
)  # fmt: skip
def test_unusual_outputs_arrive_in_logical_order(rig, backend, function, expected):
    model = torch.nn.Sequential(Returns(function))
    observed = rig(model, {"match": "0"}, backend=backend)
    x = torch.arange(12.0).reshape(3, 4)
    model(x)
    (tensor,) = observed.tensors()
    assert torch.equal(tensor, expected(x))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: x.to_sparse(), "sparse"),
        (lambda x: x.to("meta"), "meta device"),
        (lambda x: x.to(torch.complex128), "complex128"),
        (lambda x: torch.nested.nested_tensor([x[0], x[1, :2]]), "nested"),
    ],
    ids=["sparse", "meta", "complex128", "nested"],
)
def test_tensors_without_bytes_are_skipped_and_explained_once(rig, backend, caplog, function, why):
    model = torch.nn.Sequential(Returns(function))
    observed = rig(model, {"match": "0"}, backend=backend)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            model(torch.randn(3, 4))
    assert observed.value("skipped", "0") == 3
    assert observed.value("failed", "0") == 0
    assert sum(why in record.message for record in caplog.records) == 1
    assert observed.packets() == []


def test_tensors_of_a_tracer_or_a_transform_are_skipped(rig, backend):
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = torch.nn.Sequential(torch.nn.Identity())
    observed = rig(model, {"match": "0"}, backend=backend)
    with FakeTensorMode():
        model(torch.randn(3, 4))
    torch.vmap(model)(torch.randn(3, 4))
    torch.func.grad(lambda x: model(x).sum())(torch.randn(4))
    assert observed.value("skipped", "0") == 3
    assert observed.value("failed", "0") == 0
    assert observed.packets() == []


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("kernel", ["identity", {"cast": {"dtype": "bfloat16"}}])
def test_captures_in_every_mode_of_autograd(rig, backend, mode, kernel):
    model = mlp()
    observed = rig(model, {"match": "*", "preprocess": [kernel]}, backend=backend)
    x = torch.randn(3, 4)
    for _ in range(2):
        with mode():
            expected = model(x)
    found = observed.tensors("2")
    assert len(found) == 2
    atol = 0 if kernel == "identity" else 0.01
    torch.testing.assert_close(found[1], expected.detach(), atol=atol, rtol=atol)


@pytest.mark.parametrize("kernel", ["identity", {"cast": {"dtype": "bfloat16"}}])
def test_autocast_and_bfloat16_hosts_send_what_they_compute(rig, backend, kernel):
    model = mlp()
    observed = rig(
        model,
        {"match": "0", "capture": ["activation", "gradient"], "preprocess": [kernel]},
        backend=backend,
    )
    x = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = model[0](x)
    out.float().sum().backward()
    model.to(torch.bfloat16)(x.to(torch.bfloat16))
    under_autocast, gradient, converted = observed.tensors()
    assert under_autocast.dtype == gradient.dtype == converted.dtype == torch.bfloat16
    assert torch.equal(under_autocast, out.detach())
    assert torch.equal(gradient, torch.ones_like(gradient))


def test_threads_that_share_the_model_lose_no_packet(rig, backend, monkeypatch):
    # A thread that waits longer for another one's copy drops its packet; a busy machine makes it wait.
    monkeypatch.setattr(hook_stream, "_CONTENTION_S", 30.0)
    model = mlp()
    hooks = {"match": ["0", "2"], "capture": ["activation", "gradient"]}
    observed = rig(model, hooks, backend=backend, capacity_packets=4096, on_full="drop")
    errors = []

    def work():
        try:
            for _ in range(100):
                model(torch.randn(3, 4)).sum().backward()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    for hook in ("0", "2", "0:gradient", "2:gradient"):
        assert observed.value("calls", hook) == observed.value("captured", hook) == 400
        assert observed.value("failed", hook) == 0
    assert len(observed.packets()) == 1600


def test_replicas_of_data_parallel_capture_and_are_one_forward_pass(rig, backend):
    model = mlp()
    observed = rig(model, {"match": "0"}, backend=backend)

    def replica(module):
        twin = module._replicate_for_data_parallel()
        twin._is_replica = True
        for name, child in module._modules.items():
            twin._modules[name] = replica(child)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                setattr(twin, name, parameter.detach().clone())
        return twin

    twins = [replica(model) for _ in range(2)]
    inputs = [torch.full((2, 4), float(i)) for i in range(2)]
    threads = [threading.Thread(target=twins[i], args=(inputs[i],)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    packets = observed.packets()
    assert len({p.call for p in packets}) == 2
    assert {p.microbatch for p in packets} == {0}
    expected = {tuple(model[0](x).flatten().tolist()) for x in inputs}
    assert {tuple(p.tensor.flatten().tolist()) for p in packets} == expected


@pytest.mark.parametrize("kinds", [KINDS])
def test_copies_of_the_model_work_and_capture_nothing(rig, kinds):
    model = mlp()
    observed = rig(model, {"match": "*", "capture": kinds})
    x = torch.randn(3, 4)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    copies = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),  # noqa: S301 - a model of our own
        torch.load(saved, weights_only=False),
        copy.deepcopy(copy.deepcopy(model)),
    ]
    for twin in copies:
        out = twin(x.clone().requires_grad_())
        out.sum().backward()
    assert observed.packets() == []
    assert torch.equal(copies[0](x), model(x))
    assert len(observed.packets()) == 6, "the original is still observed"


@pytest.mark.rest
def test_a_saved_model_loads_without_this_package(rig, tmp_path):
    model = mlp()
    rig(model, {"match": "*", "capture": KINDS})
    path = tmp_path / "model.pt"
    torch.save(model, path)
    script = (
        "import sys, torch\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'asys_bench': raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        f"model = torch.load({str(path)!r}, weights_only=False)\n"
        "model(torch.ones(1, 4)).sum().backward()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=240
    )
    assert ran.returncode == 0, ran.stderr


def test_a_forked_child_captures_nothing_and_counts_nothing(rig, backend):
    model = mlp()
    observed = rig(model, {"match": "0", "capture": KINDS}, backend=backend)
    model(torch.randn(1, 4))
    before = observed.value("calls", "0"), observed.value("failed", "0")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with torch.no_grad():
                model(torch.randn(1, 4))
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (observed.value("calls", "0"), observed.value("failed", "0")) == before
    model(torch.randn(1, 4))
    assert observed.value("calls", "0") == before[0] + 1


def test_a_call_in_the_middle_of_a_capture_is_dropped_and_not_waited_for_ever(rig):
    """A signal handler may run the model between any two of our instructions."""
    model = mlp()
    observed = rig(model, {"match": "0", "preprocess": [{"cast": {"dtype": "float16"}}]})
    kernel = observed.hooker._streams[0].kernel
    encode = kernel.encode
    nested = []

    def interrupted(tensor, out):
        if not nested:
            nested.append(True)
            model[0](torch.randn(1, 4))
        return encode(tensor, out)

    kernel.encode = interrupted
    model[0](torch.randn(2, 4))
    model[0](torch.randn(3, 4))
    assert [len(t) for t in observed.tensors()] == [2, 3]
    assert observed.value("failed", "0") == 0


def test_a_row_budget_lowers_the_rate_that_packets_carry(rig, backend):
    model = torch.nn.Sequential(torch.nn.Identity())
    hook = {"match": "0", "sampling": {"max_rows_per_s": 1000}}
    observed = rig(model, hook, backend=backend, on_full="drop", capacity_packets=4096)
    x = torch.zeros(64, 2)
    deadline = time.monotonic() + 60
    while observed.value("sampling_rate", "0") > 0.4 and time.monotonic() < deadline:
        model(x)
    lowest = observed.value("sampling_rate", "0")
    for _ in range(200):
        model(x)
    rates = [packet.rate for packet in observed.packets()]
    assert rates[0] == 1.0
    assert lowest <= 0.4
    assert observed.value("sampled_out", "0") > 0
    assert observed.is_accounted_for("0")
