"""Compiled hosts: one graph with the captures in it, the same values as without torch.compile."""

from __future__ import annotations

import copy
import logging
import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from asys_bench.capture.hooks import graph_op

KINDS = ["activation", "input", "gradient", "parameter_gradient"]

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(autouse=True)
def fresh_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    counters.clear()
    with torch._inductor.config.patch(compile_threads=1):  # no pool of compiler processes
        yield
    torch._dynamo.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


def breaks():
    return sum(counters["graph_break"].values())


class Block(torch.nn.Module):
    """A residual block, with an output that nobody uses and one that is changed in place."""

    def __init__(self, width=8):
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.up, self.down = torch.nn.Linear(width, 16), torch.nn.Linear(16, width)
        self.unused = torch.nn.Linear(width, 2)
        self.drop = torch.nn.Dropout(0.25)

    def forward(self, x, shift=None):
        h = self.up(self.norm(x))
        h = h + 0.5
        h.mul_(2)
        self.unused(x)
        x = x + self.drop(self.down(torch.tanh(h)))
        return x if shift is None else x + shift


class Net(torch.nn.Module):
    def __init__(self, checkpointed=False):
        super().__init__()
        self.first, self.second = Block(), Block()
        self.checkpointed = checkpointed

    def forward(self, x):
        x = self.first(x)
        if self.checkpointed:
            return checkpoint(self.second, x, use_reentrant=False)
        return self.second(x, shift=x * 0.5)


NET = ["first*", "second*"]


def net(**options):
    torch.manual_seed(0)
    return Net(**options)


def wrapper(model, backend):
    return torch.compile(model, fullgraph=True, backend=backend)


def in_place(model, backend):
    model.compile(fullgraph=True, backend=backend)
    return model


def regional(model, backend):
    for block in (model.first, model.second):
        block.compile(fullgraph=True, backend=backend)
    return model


def function(model, backend):
    @torch.compile(fullgraph=True, backend=backend)
    def call(x):
        return model(x)

    return call


def uncompiled(model, backend):
    return model


def train(model, called, clock=None, steps=3, grad=True):
    """Losses and final weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(1)
    losses = []
    for step in range(steps):
        x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(step))
        with torch.set_grad_enabled(grad):
            loss = called(x).square().mean()
        if grad:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if clock is not None:
            clock.weights_updated()
            clock.step()
        losses.append(loss.detach())
    return losses, [p.detach().clone() for p in model.parameters()], torch.get_rng_state()


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(_flat(one), _flat(other), strict=True))


def _flat(value):
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in _flat(v)]


def place(packet):
    return (packet.name, packet.step, packet.version, packet.microbatch, packet.call)


@pytest.mark.rest
@pytest.mark.parametrize("how", [wrapper, in_place, regional, function])
def test_a_compiled_host_sends_what_an_uncompiled_one_sends(rig, how):
    found = []
    for compiled in (uncompiled, how):
        model = net()
        model.eval()  # no dropout: compiled code draws other numbers
        observed = rig(model, {"match": NET, "capture": KINDS[:3]}, capacity_packets=1024)
        train(model, compiled(model, "aot_eager"), observed.clock)
        found.append({place(p): p.tensor for p in observed.packets()})
        assert observed.value("failed", "first") == 0
    eager, compiled_ones = found
    assert len(eager) > 3 * 3 * 8
    assert compiled_ones.keys() == eager.keys()
    for key, tensor in eager.items():
        torch.testing.assert_close(compiled_ones[key], tensor, msg=str(key))
    assert graphs() == (2 if how is regional else 1)
    assert breaks() == 0


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind == "activation" else pytest.param(kind, marks=pytest.mark.rest)
        for kind in (*KINDS, "input_gradient")
    ],
)
def test_each_kind_leaves_one_graph_and_the_same_weights(rig, kind):
    def run(observe):
        torch._dynamo.reset()
        counters.clear()
        model = net()
        observed = rig(model, {"match": NET[0], "capture": kind}) if observe else None
        result = train(model, wrapper(model, "aot_eager"), observed and observed.clock)
        assert (graphs(), breaks()) == (1, 0)
        return result, observed

    plain, _ = run(False)
    with_hooks, observed = run(True)
    assert same(plain, with_hooks)
    sent = {p.name for p in observed.packets()}
    assert bool(sent) is (kind != "input_gradient")


@pytest.mark.soak("compiles for a minute and more")
@pytest.mark.timeout(900)  # a busy machine takes minutes over the C++ that inductor writes
def test_inductor_keeps_weights_outputs_and_random_numbers_to_the_last_bit(rig):
    def run(observe):
        torch._dynamo.reset()
        counters.clear()
        model = net()
        hook = {"match": NET[0], "capture": KINDS}
        observed = rig(model, hook, capacity_packets=1024) if observe else None
        result = train(model, wrapper(model, "inductor"), observed and observed.clock)
        assert (graphs(), breaks()) == (1, 0)
        return result, observed

    plain, _ = run(False)
    with_hooks, observed = run(True)
    assert same(plain, with_hooks)
    packets = observed.packets()
    assert {p.name for p in packets} >= {"first", "first.up", "first.up:gradient", "first:input"}
    by_place = {place(p): p.tensor for p in packets}
    for step in range(3):
        key = (step, step, 0, 0)
        before, after = by_place["first.up", *key], by_place["first.down:input", *key]
        torch.testing.assert_close(torch.tanh(2 * (before + 0.5)), after)
    assert not any(p.name.startswith("first.unused:g") for p in packets)
    assert sum(p.name == "first.unused" for p in packets) == 3, "unused, but not dead code"


@pytest.mark.rest
@pytest.mark.parametrize("how", [wrapper, regional])
def test_forward_passes_may_come_before_the_backward_pass_of_another(rig, how):
    model = net(checkpointed=how is wrapper)
    observed = rig(model, {"match": NET, "capture": KINDS[:3]}, capacity_packets=1024)
    called = how(model, "aot_eager")
    losses = [called(torch.full((2, 3, 8), float(i))).sum() for i in range(3)]
    for loss in (losses[1], losses[0], losses[2]):
        loss.backward()
    for hook in ("first.up", "first.up:gradient", "second.up", "second.up:gradient"):
        assert observed.value("captured", hook) == 3
    activations = [p.microbatch for p in observed.packets() if p.name == "second.up"]
    assert activations == [0, 1, 2]


@pytest.mark.rest
def test_shapes_may_change(rig):
    model = net()
    observed = rig(model, {"match": "first"})
    called = wrapper(model, "aot_eager")
    for length in (3, 5, 7, 9):
        called(torch.ones(2, length, 8))
    assert [t.shape[1] for t in observed.tensors()] == [3, 5, 7, 9]
    assert graphs() == 2, "one for the first shape, one for all others"


def test_inference_is_captured_too(rig):
    model = net()
    observed = rig(model, {"match": NET[0]})
    train(model, wrapper(model, "aot_eager"), observed.clock, grad=False)
    assert observed.value("captured", "first.unused") == 3
    assert observed.value("captured", "first") == 3
    assert (graphs(), breaks()) == (1, 0)


@pytest.mark.rest
def test_sampling_counters_and_forward_passes_never_compile_anything_again(rig):
    model = net()
    hook = {"match": "first*", "sampling": {"max_rate": 0.5}}
    observed = rig(model, hook, capacity_packets=16)
    called = wrapper(model, "aot_eager")
    for _ in range(40):
        called(torch.ones(2, 3, 8))
        observed.clock.token_position = 3
    assert graphs() == 1
    assert observed.value("sampled_out", "first") > 0
    assert {p.microbatch for p in observed.packets()} > {0}
    assert observed.is_accounted_for("first")


@pytest.mark.rest
def test_the_phase_is_that_of_the_traced_module(rig):
    model = net()
    observed = rig(model, {"match": "first", "phase": "eval", "capture": KINDS[:3]})
    called = wrapper(model, "aot_eager")
    called(torch.ones(2, 3, 8))
    assert observed.packets() == []
    model.eval()
    called(torch.ones(2, 3, 8))
    assert {p.name for p in observed.packets()} == {"first", "first:input"}


@dataclass
class Output:
    hidden: tuple


class Structured(torch.nn.Module):
    def forward(self, x, *, mask=None):
        return {"out": x + 1, "more": Output((x * 2, mask))}


@pytest.mark.parametrize(
    ("kind", "select", "expected"),
    [
        ("activation", None, lambda x: x + 1),
        ("activation", "more.hidden.0", lambda x: x * 2),
        ("input", "mask", lambda x: x + 5),
        ("input", 0, lambda x: x),
    ],
)
def test_selections_are_traced(rig, kind, select, expected):
    class Host(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Structured()

        def forward(self, x):
            return self.inner(x, mask=x + 5)["out"]

    model = Host()
    observed = rig(model, {"match": "inner", "capture": kind, "select": select})
    x = torch.randn(2, 3)
    wrapper(model, "aot_eager")(x)
    (tensor,) = observed.tensors()
    assert torch.equal(tensor, expected(x))
    assert (graphs(), breaks()) == (1, 0)


def test_a_compiled_submodule_is_captured_at_its_border(rig):
    model = net()
    model.second = torch.compile(model.second, fullgraph=True, backend="aot_eager")
    model(torch.ones(2, 3, 8))  # compiled before the hooks come
    observed = rig(model, {"match": ["second", "second.up"]})
    model(torch.ones(2, 3, 8))
    assert [p.name for p in observed.packets()] == ["second"]
    assert [p.name for p in observed.points] == ["second", "second.up"]


@pytest.mark.parametrize("backend", ["aot_eager"])
def test_a_checkpoint_inside_the_graph_is_captured_once(rig, backend):
    model = net(checkpointed=True)
    observed = rig(model, {"match": "second*", "capture": ["activation", "gradient"]})
    train(model, wrapper(model, backend), observed.clock)
    assert observed.value("captured", "second.up") == 3
    assert observed.value("captured", "second.up:gradient") == 3
    assert (graphs(), breaks()) == (1, 0)


def test_hooks_beside_a_graph_break_of_the_host_run_as_they_are(rig):
    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

        def forward(self, x):
            x = self.a(x)
            torch._dynamo.graph_break()
            return self.b(x)

    model = Broken()
    torch.compile(model, backend="aot_eager")(torch.ones(1, 8))
    without = graphs()
    torch._dynamo.reset()
    counters.clear()
    observed = rig(model, {"match": "*", "capture": ["activation", "input"]})
    called = torch.compile(model, backend="aot_eager")
    for _ in range(2):
        called(torch.ones(1, 8))
    assert [p.name for p in observed.packets()] == ["a:input", "a", "b:input", "b"] * 2
    assert graphs() == without


def said(caplog):
    """What this package has logged; torch's own tracing logs a lot."""
    return [r.message for r in caplog.records if r.name.startswith("asys_bench")]


def host_steps(observed, called, steps):
    for _ in range(steps):
        called(torch.ones(2, 3, 8))
        observed.clock.step()


@pytest.mark.rest
@pytest.mark.parametrize("how", [wrapper, in_place, regional, function])
def test_hooks_that_come_after_the_first_compiled_call_are_explained(rig, caplog, how):
    model = net()
    called = how(model, "aot_eager")
    called(torch.ones(2, 3, 8))
    hook = {"match": "first*", "capture": ["activation", "input_gradient"]}
    with caplog.at_level(logging.WARNING, logger="asys_bench"):
        observed = rig(model, hook)
        host_steps(observed, called, 4)
        assert not said(caplog)
        host_steps(observed, called, 200)
    (message,) = said(caplog)
    assert "first.norm, first.norm:input_gradient" in message
    # A part that is compiled by itself is called from outside: its own hooks see that call.
    assert ("first:input_gradient, " in message) is (how is not regional)
    assert "torch.compiler.reset()" in message
    assert "input_gradient is not captured inside compiled code" in message
    torch.compiler.reset()
    called(torch.ones(2, 3, 8))
    assert observed.value("captured", "first.up") == 1, "the advice works"


@pytest.mark.rest
def test_hooks_that_fire_are_not_reported(rig, caplog):
    model = net()
    with caplog.at_level(logging.WARNING, logger="asys_bench"):
        observed = rig(model, {"match": "first*"})
        host_steps(observed, wrapper(model, "aot_eager"), 10)
    assert not said(caplog)


def test_a_module_that_nobody_calls_is_reported_late_and_otherwise(rig, caplog):
    model = net()
    with caplog.at_level(logging.WARNING, logger="asys_bench"):
        observed = rig(model, {"match": "second"})
        observed.clock.step(500)
        assert not said(caplog)
        observed.clock.step(600)
    (message,) = said(caplog)
    assert "hook second: nothing was captured in 1100 host steps" in message
    assert "not called" in message


@pytest.mark.rest
def test_detached_means_gone_for_compiled_hosts_too(rig):
    model = net()
    observed = rig(model, {"match": "first*", "capture": KINDS[:3]})
    called = wrapper(model, "aot_eager")
    called(torch.ones(2, 3, 8)).sum().backward()
    assert len(observed.packets()) > 0
    left_over = called(torch.ones(2, 3, 8)).sum()
    observed.packets()
    observed.hooker.detach()
    left_over.backward()
    called(torch.ones(2, 3, 8)).sum().backward()
    assert observed.packets() == []
    assert not graph_op._receivers.keys() & {s.number for s in observed.hooker._streams}


@pytest.mark.rest
def test_copies_of_an_observed_model_can_be_compiled(rig):
    model = net()
    observed = rig(model, {"match": "first*", "capture": [*KINDS, "input_gradient"]})
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]  # noqa: S301 - our own
    for twin in twins:
        torch._dynamo.reset()
        counters.clear()
        wrapper(twin, "aot_eager")(torch.ones(2, 3, 8)).sum().backward()
        assert (graphs(), breaks()) == (1, 0)
    assert observed.packets() == []


@pytest.mark.rest
@pytest.mark.parametrize("strict", [False, True])
def test_an_observed_model_exports_to_a_program_without_anything_of_ours(rig, tmp_path, strict):
    model = net().eval()
    observed = rig(model, {"match": "first*", "capture": [*KINDS, "input_gradient"]})
    x = torch.ones(2, 3, 8)
    with torch.no_grad():
        program = torch.export.export(model, (x,), strict=strict)
        assert torch.equal(program.module()(x), model(x))
    assert "asys" not in str(program.graph)
    torch.export.save(program, tmp_path / "program.pt2")
    saved = (tmp_path / "program.pt2").read_bytes()
    checkout = str(
        Path(__file__).parents[3]
    ).encode()  # of the model's own lines, in its stack traces
    assert b"asys" not in saved.replace(checkout, b"")
    assert observed.value("failed", "first") == 0


@pytest.mark.rest
@pytest.mark.parametrize("kind", ["activation", "gradient", "input_gradient"])
def test_transforms_and_tracers_take_an_observed_model(rig, kind):
    from torch.fx.experimental.proxy_tensor import make_fx

    model = net().eval()
    observed = rig(model, {"match": "first.*", "capture": kind})
    x = torch.randn(2, 3, 8)
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights, x):
        return torch.func.functional_call(model, weights, (x,)).sum()

    per_sample = torch.func.vmap(torch.func.grad(loss), (None, 0))
    eager = per_sample(weights, x)
    compiled = torch.compile(per_sample, fullgraph=True, backend="aot_eager")(weights, x)
    for name, gradient in eager.items():
        torch.testing.assert_close(compiled[name], gradient)
    torch.func.jvp(model, (x,), (x,))
    torch.func.hessian(lambda x: model(x).sum())(x[:1, :1])
    operators = str(make_fx(model)(x).graph)
    assert "asys" not in operators
    observed.hooker.detach()
    assert operators == str(make_fx(model)(x).graph), "a tracer sees no operator of ours"
    for name in [s.name for s in observed.hooker._streams]:
        assert observed.value("failed", name) == 0
        assert observed.is_accounted_for(name)


def test_reduced_precision_under_inductor_is_explained_once(rig, caplog, monkeypatch):
    import torch._inductor.config  # a process that compiles with inductor has it

    monkeypatch.setattr(graph_op, "_rounding_is_explained", False)
    model = net().to(torch.bfloat16)
    rig(model, {"match": "first*"})
    with caplog.at_level(logging.WARNING, logger="asys_bench"):
        wrapper(model, "aot_eager")(torch.ones(2, 3, 8, dtype=torch.bfloat16))
    (message,) = said(caplog)
    assert "emulate_precision_casts" in message


def test_the_operator_passes_torchs_own_checks():
    checks = torch.library.opcheck(
        torch.ops.asys.capture.default,
        (torch.randn(3, requires_grad=True), 10**9),
        raise_exception=False,
    )
    assert set(checks.values()) == {"SUCCESS"}, checks
