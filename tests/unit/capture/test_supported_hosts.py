"""Hosts of reduced precision, offloaded, packed, functional, graphed: what is captured, and what is said."""

from __future__ import annotations

import copy

import pytest
import torch

from asys_bench.capture.host_state import is_graph_captured
from asys_bench.capture.notices import Notices
from asys_bench.capture.points.out_of_reach import out_of_reach
from asys_bench.capture.tags.optimizer_watch import SCALED, OptimizerWatch

from .conftest import usable_bus
from .test_text_inputs import Text

KINDS = ["activation", "input", "gradient", "input_gradient", "parameter_gradient"]


@pytest.fixture(params=["mp_queue", "cpp_spmc"])
def backend(request):
    return usable_bus(request.param)


def mlp():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 4))


class Seen:
    """The outputs of a module and their gradients, by hooks of the test's own."""

    def __init__(self, module):
        self.outputs, self.gradients = [], []
        module.register_forward_hook(self._keep)

    def _keep(self, module, args, output):
        self.outputs.append(output.detach().clone())
        if output.requires_grad:
            output.register_hook(lambda gradient: self.gradients.append(gradient.clone()))


def train(model, steps=3, *, autocast=None, scaler=None, clock=None):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        x = torch.randn(5, 4, generator=generator).to(next(model.parameters()).dtype)
        optimizer.zero_grad()
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            loss = model(x).square().mean()
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        losses.append(loss.item())
        if clock is not None:
            clock.step()
    return losses


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["autocast", "weights"])
def test_reduced_precision_travels_as_it_is_and_changes_nothing(rig, backend, dtype, way):
    model = mlp() if way == "autocast" else mlp().to(dtype)
    autocast = dtype if way == "autocast" else None
    alone = train(copy.deepcopy(model), autocast=autocast)
    observed = rig(model, {"match": "2", "capture": KINDS}, {"match": "0", "preprocess": "int8"},
                   backend=backend)  # fmt: skip
    seen = Seen(model[2])
    assert train(model, autocast=autocast, clock=observed.clock) == alone
    packets = observed.packets()
    assert {p.name: p.tensor.dtype for p in packets}["2"] is dtype
    assert all(
        torch.equal(p.tensor, output)
        for p, output in zip([p for p in packets if p.name == "2"], seen.outputs, strict=True)
    )
    gradients = [p.tensor for p in packets if p.name == "2:gradient"]
    assert all(map(torch.equal, gradients, seen.gradients))
    assert len(gradients) == len(seen.gradients) == 3
    assert len([p for p in packets if p.name == "0"]) == 3
    assert all(observed.is_accounted_for(point.name) for point in observed.points)


def test_a_loss_that_is_scaled_gives_scaled_gradients_and_that_is_said(rig, backend):
    model = mlp()
    observed = rig(model, {"match": "2", "capture": KINDS}, backend=backend)
    notices = Notices()
    watch = OptimizerWatch(model, observed.clock, notices)
    watch.attach()
    try:
        plain = train(copy.deepcopy(model), 1)
        gradient = observed.tensors("2:gradient")
        assert (gradient, notices.messages) == ([], ())
        seen = Seen(model[2])
        scaled = train(model, 1, scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
        assert scaled == plain
        assert notices.messages == (SCALED,)
        (gradient,) = observed.tensors("2:gradient")
        assert torch.equal(gradient, seen.gradients[0])
        assert observed.clock.weights_version == 1
    finally:
        watch.detach()


def test_a_step_that_the_scaler_leaves_out_is_no_version_of_the_weights(rig):
    model = mlp()
    observed = rig(model, {"match": "2"})
    watch = OptimizerWatch(model, observed.clock)
    watch.attach()
    train(model, 2, scaler=torch.amp.GradScaler("cpu", init_scale=float("inf")))
    watch.detach()
    assert observed.clock.weights_version == 0


def text_model():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


LAYER = "model.layers.1"
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
MASK = (IDS != 0).long()


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_a_model_that_accelerate_offloads_has_its_rows_and_tokens(watch, tmp_path, where):
    accelerate = pytest.importorskip("accelerate")
    model = text_model()
    hooks = [LAYER, {"match": "lm_head", "capture": ["activation", "input"]}]
    expected = watch(copy.deepcopy(model), *hooks)
    with torch.no_grad():
        expected.hooker._model(input_ids=IDS, attention_mask=MASK)
    if where == "cpu":
        model = accelerate.cpu_offload(model, execution_device="cpu")
    else:
        model = accelerate.disk_offload(model, str(tmp_path), execution_device="cpu")
    assert next(model.parameters()).is_meta
    observed = watch(model, *hooks)
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=MASK)
    packets, others = observed.packets(), expected.packets()
    assert [p.name for p in packets] == [p.name for p in others]
    assert all(torch.equal(p.tensor, o.tensor) for p, o in zip(packets, others, strict=True))
    assert [p.text for p in packets] == [p.text for p in others]
    assert len(next(p for p in packets if p.name == LAYER).tensor) == 6
    assert observed.hooker.notices.messages == expected.hooker.notices.messages


def test_gradients_of_offloaded_parameters_are_said_not_to_come(rig):
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(mlp(), execution_device="cpu")
    observed = rig(model, {"match": "[02]", "capture": ["activation", "parameter_gradient"]})
    (line,) = observed.hooker.notices.messages
    assert line.startswith(
        "hooks 0.weight:grad, 0.bias:grad, 2.weight:grad, 2.bias:grad: the param"
    )
    model(torch.ones(2, 4)).sum().backward()
    assert [p.name for p in observed.packets()] == ["0", "2"]


def test_what_accelerate_prepares_is_read_as_it_was(watch):
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # of another test
    accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
    model = accelerator.prepare(text_model().train())
    observed = watch(model, LAYER)
    model(input_ids=IDS, attention_mask=MASK)
    packets = observed.packets()
    assert sorted(p.name for p in packets) == [LAYER, "tokens"]
    assert all(p.text == 1 and len(p.tensor) == 6 for p in packets)


PACKED = {
    "input_ids": torch.tensor([[3, 4, 5, 6, 7, 8, 9]]),
    "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2]]),
}


def block_diagonal(sizes, *, additive=False):
    mask = torch.block_diag(*[torch.ones(size, size).tril() for size in sizes]).bool()[None, None]
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(mask.shape).masked_fill(~mask, lowest) if additive else mask


@pytest.mark.parametrize(
    "mask",
    [None, block_diagonal([4, 3]), block_diagonal([4, 3], additive=True),
     torch.tensor([[1, 1, 1, 1, 2, 2, 2]])],
    ids=["none", "boolean", "additive", "segments"],
)  # fmt: skip
def test_packed_sequences_keep_every_row_with_its_own_position(watch, mask):
    observed = watch(model := text_model(), LAYER)
    with torch.no_grad():
        model(**PACKED, attention_mask=mask)
    (tokens,) = [p for p in observed.packets() if p.name == "tokens"]
    assert tokens.tensor.tolist() == [
        [3, 0], [4, 1], [5, 2], [6, 3], [7, 0], [8, 1], [9, 2]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("positions", "mask", "first"),
    [
        (PACKED["position_ids"], None, -1),
        (torch.arange(5, 12)[None], None, 5),
        (None, torch.tensor([[0, 0, 1, 1, 1, 1, 1]]), 0),
        (torch.tensor([[9, 9, 0, 1, 2, 3, 4]]), torch.tensor([[0, 0, 1, 1, 1, 1, 1]]), 0),
    ],
    ids=["packed", "going on", "padded", "padded with positions"],
)
def test_the_position_of_a_first_row_stands_only_for_rows_that_follow_one_by_one(
    watch, positions, mask, first
):
    model = Text()
    observed = watch(model, "mid")
    model(PACKED["input_ids"], attention_mask=mask, position_ids=positions)
    assert {p.name: p.position for p in observed.packets()} == {"mid": first, "tokens": first}


def test_a_text_of_one_dimension_is_captured_without_tokens(watch, caplog):
    model = Text()
    observed = watch(model, "mid")
    model(PACKED["input_ids"][0])
    assert [(p.name, p.text, len(p.tensor)) for p in observed.packets()] == [("mid", 0, 7)]
    assert "hook mid" in caplog.text


def test_functional_calls_and_quantised_modules_are_captured(rig, backend):
    model = mlp()
    observed = rig(model, {"match": "2"}, backend=backend)
    weights = {name: value + 1 for name, value in model.named_parameters()}
    out = torch.func.functional_call(model, weights, (torch.ones(2, 4),))
    (tensor,) = observed.tensors("2")
    assert torch.equal(tensor, out)


class Float8(torch.nn.Module):
    """Weights of one byte, computed with in bfloat16."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(
            torch.ones(4, 4).to(torch.float8_e4m3fn), requires_grad=False
        )

    def forward(self, x):
        return x @ self.weight.to(torch.bfloat16)


def test_weights_of_one_byte_give_rows_of_what_the_host_computes_in(rig, backend):
    observed = rig(torch.nn.Sequential(Float8()), {"match": "0"}, backend=backend)
    observed.hooker._model(torch.ones(2, 4, dtype=torch.bfloat16))
    (tensor,) = observed.tensors()
    assert torch.equal(tensor, torch.full((2, 4), 4.0, dtype=torch.bfloat16))


def graphed(module):
    """As torch.cuda.make_graphed_callables leaves a module."""

    def forward(*args):
        return args[0]

    forward.__module__ = "torch.cuda.graphs"
    module.forward = forward
    return module


def test_hooks_inside_of_a_graphed_module_are_said_at_the_start(rig):
    model = torch.nn.Sequential(graphed(mlp()), torch.nn.Linear(4, 2))
    observed = rig(model, {"match": ["0", "0.*", "1"]})
    (line,) = observed.hooker.notices.messages
    assert line.startswith("hooks 0.0, 0.1, 0.2: inside of a module that torch.cuda.make_graphed")
    model(torch.ones(2, 4))
    assert [p.name for p in observed.packets()] == ["0", "1"]


def test_graphs_of_this_process_are_said_at_the_start(rig, monkeypatch):
    points = rig(mlp(), {"match": "2"}, attach=False).points
    assert list(out_of_reach(points)) == []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", type("CUDAGraph", (), {}))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert list(out_of_reach(points)) == []
    graph = torch.cuda.CUDAGraph()
    (line,) = out_of_reach(points)
    assert line.startswith("this process has captured a CUDA graph")
    del graph


def test_a_graph_that_is_captured_gets_nothing_of_ours(monkeypatch):
    assert not is_graph_captured()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert is_graph_captured()
