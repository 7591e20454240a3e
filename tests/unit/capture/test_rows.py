"""What a row is: channels-first modules give a row of C per place, whatever encodes it."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from asys_bench.capture.points.hookpoints import resolve
from asys_bench.capture.points.rows import LAST, RowFinder, axis_of_type
from asys_bench.config.sections.hooks import HookConfig, RowsOf
from asys_bench.contracts.capture_port import OFF_DIRECT


def _rows(model, path, setting=RowsOf.AUTO):
    return RowFinder(model).of_module(model.get_submodule(path), setting)


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        return x + self.act(self.norm(self.conv(x)))


@pytest.mark.parametrize(
    ("module", "shape", "axis"),
    [
        (nn.Conv1d(3, 5, 3), (2, 5, 9), 1),
        (nn.Conv1d(3, 5, 3), (5, 9), 0),
        (nn.Conv2d(3, 5, 3), (2, 5, 9, 7), 1),
        (nn.Conv2d(3, 5, 3), (5, 9, 7), 0),
        (nn.Conv3d(3, 5, 3), (2, 5, 4, 9, 7), 1),
        (nn.ConvTranspose2d(3, 5, 3), (2, 5, 9, 7), 1),
        (nn.BatchNorm1d(5), (2, 5), 1),
        (nn.BatchNorm1d(5), (2, 5, 9), 1),
        (nn.BatchNorm2d(5), (2, 5, 9, 7), 1),
        (nn.BatchNorm3d(5), (2, 5, 4, 9, 7), 1),
        (nn.GroupNorm(1, 5), (2, 5, 9, 7), 1),
        (nn.InstanceNorm2d(5), (5, 9, 7), 0),
        (nn.AdaptiveAvgPool2d(1), (2, 5, 1, 1), 1),
        (nn.MaxPool1d(2), (2, 5, 9), 1),
        (nn.PixelShuffle(2), (2, 5, 9, 7), 1),
        (nn.Linear(7, 5), (2, 9, 7, 5), 3),
        (nn.LayerNorm(5), (2, 5, 7, 5), 3),
        (nn.Embedding(9, 5), (2, 5, 5), 2),
    ],
)
def test_the_type_of_a_module_says_where_its_rows_are(module, shape, axis):
    model = nn.ModuleDict({"m": module})
    assert _rows(model, "m").axis_of(shape) % len(shape) == axis
    assert _rows(model, "m", RowsOf.LAST).axis_of(shape) == LAST


def test_a_container_goes_by_what_is_in_it_and_an_activation_by_what_is_around_it():
    model = nn.Sequential(Residual(4), nn.Sequential(nn.Linear(4, 6), nn.GELU()))
    for path in ("0", "0.act"):
        assert _rows(model, path).axis_of((2, 4, 4, 4)) == 1, "a square image of as many places"
        assert _rows(model, path).described == "channels"
        assert _rows(model, path).axis_of((2, 4)) == LAST, "pooled and flattened"
        assert _rows(model, path).axis_of((4, 5, 7)) == 0, "one image without a batch dimension"
    for path in ("1", "1.1"):
        assert _rows(model, path).always_last


def test_where_both_kinds_of_module_are_inside_the_sizes_of_the_first_tensor_decide():
    conv, linear = nn.Conv1d(6, 6, 3), nn.Linear(8, 6)
    model = nn.ModuleDict({"mamba": nn.ModuleList([conv, linear])})
    last, first = _rows(model, "mamba"), _rows(model, "mamba")
    assert last.described == "by size"
    assert last.axis_of((2, 9, 8)) == LAST
    assert last.axis_of((2, 6, 8)) == LAST, "as long as there are channels, but it was decided"
    assert first.axis_of((2, 6, 9)) == 1
    assert first.axis_of((2, 6, 8)) == 1
    undecided = _rows(model, "mamba")
    assert undecided.axis_of((2, 6, 8)) == LAST
    assert "hooks[].rows" in undecided.warning((2, 6, 8))


def test_an_image_model_of_tokens_keeps_rows_of_the_last_dimension():
    embeddings = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4))  # and flattened: [B, T, D]
    rows = _rows(nn.ModuleDict({"embeddings": embeddings}), "embeddings")
    assert rows.axis_of((2, 16, 5, 5)) == 1
    assert rows.axis_of((3, 25, 16)) == LAST


def test_an_unknown_tensor_of_four_dimensions_is_said_once_and_a_known_one_never():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q = nn.Linear(64, 64)

    model = nn.ModuleDict({"attention": Attention()})
    rows = _rows(model, "attention")
    assert rows.always_last
    why = rows.warning((2, 8, 10, 16))
    assert "[2, 8, 10, 16]" in why
    assert "hooks[].rows" in why
    assert rows.warning((2, 8, 10, 16)) is None
    assert _rows(model, "attention").warning((2, 8, 10, 64)) is None, "a linear layer's width"
    assert _rows(model, "attention").warning((2, 10, 16)) is None
    assert _rows(model, "attention.q").warning((2, 8, 10, 16)) is None
    assert _rows(model, "attention", RowsOf.LAST).warning((2, 8, 10, 16)) is None
    assert _rows(model, "attention", RowsOf.CHANNELS).axis_of((2, 8, 10, 16)) == 1


def test_the_gradient_of_a_convolution_s_weight_has_rows_of_input_channels():
    model = nn.Sequential(nn.Conv2d(3, 5, 2), nn.Linear(4, 4))
    hooks = [HookConfig.model_validate({"match": "*", "capture": "parameter_gradient"})]
    axes = {p.name: p.rows.axis_of(tuple(p.parameter.shape)) for p in resolve(model, hooks)}
    assert axes == {
        "0.weight:grad": 1,
        "0.bias:grad": LAST,
        "1.weight:grad": LAST,
        "1.bias:grad": LAST,
    }


def test_a_layer_norm_of_its_own_kind_is_judged_by_size():
    class ChannelsFirst(nn.LayerNorm):
        def forward(self, x):
            return x

    model = nn.ModuleDict({"norm": ChannelsFirst(6)})
    assert axis_of_type(model["norm"]) is None
    assert _rows(model, "norm").axis_of((2, 6, 5, 5)) == 1
    assert _rows(model, "norm").axis_of((2, 5, 5, 6)) == LAST


def _numbered(*shape):
    """Each element says where it is: an index a digit, the last one in the units."""
    grids = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in shape), indexing="ij")
    return sum(grid * 10.0**k for k, grid in enumerate(reversed(grids))) + 1


class Emit(nn.Conv2d):
    """A convolution whose output is given to it."""

    def forward(self, x):
        return x


@pytest.mark.parametrize("backend", ["mp_queue", "cpp_spmc"])
@pytest.mark.parametrize(
    ("preprocess", "tolerance"),
    [(["identity"], 0.0), (["int8"], 1 / 254), (["fp8"], 1 / 16), ([{"topk": {"k": 3}}], 1.0)],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_each_row_is_one_place_whatever_encodes_it(
    rig, backend, preprocess, tolerance, memory_format
):
    model = nn.Sequential(Emit(1, 1, 1))
    bench = rig(model, {"match": "0", "preprocess": preprocess}, backend=backend)
    image = _numbered(2, 5, 3, 4).to(memory_format=memory_format)
    for _ in range(2):
        model(image)
    for tensor in bench.tensors("0"):
        assert tensor.shape == (2, 3, 4, 5)
        error = (tensor - image.permute(0, 2, 3, 1)).abs() / tensor.abs().amax(-1, keepdim=True)
        assert float(error.max()) <= tolerance
        assert tensor[1, 2, 3, 4] != 0
    assert bench.value("bytes", "0") > 0
    assert bench.is_accounted_for("0")


def test_rows_of_a_sampled_image_are_those_at_their_places(rig):
    model = nn.Sequential(Emit(1, 1, 1))
    rule = {"match": "0", "preprocess": [{"token_sample": {"every": 5}}]}
    bench = rig(model, rule)
    image = _numbered(2, 5, 3, 4)
    model(image)
    (rows,) = bench.tensors("0")
    assert torch.equal(rows, image.permute(0, 2, 3, 1).reshape(24, 5)[::5])


def test_gradients_and_inputs_of_a_convolution_have_rows_of_channels_too(rig):
    model = nn.Sequential(nn.Conv1d(3, 5, 3, padding=1), nn.Conv3d(1, 2, 1))
    capture = ["activation", "input", "gradient", "input_gradient", "parameter_gradient"]
    bench = rig(model, {"match": "0", "capture": capture})
    signal = torch.randn(2, 3, 9, requires_grad=True)
    out = model[0](signal)
    out.retain_grad()
    (out * torch.randn(2, 5, 9)).sum().backward()
    got = {p.name: p.tensor for p in bench.packets()}
    wanted = {
        "0": out, "0:input": signal, "0:gradient": out.grad, "0:input_gradient": signal.grad,
        "0.weight:grad": model[0].weight.grad,
    }  # fmt: skip
    for name, tensor in wanted.items():
        assert torch.equal(got[name], tensor.detach().movedim(1, -1)), name
    assert torch.equal(got["0.bias:grad"], model[0].bias.grad)


def test_a_resnet_block_of_transformers_gives_a_row_per_place(rig):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    model = transformers.ResNetModel(config).eval()
    truth = {}
    names = ["encoder.stages.0", "encoder.stages.1.layers.0", "embedder", "pooler"]
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: truth.update({name: out.detach()})
        )
    bench = rig(model, {"match": names})
    with torch.no_grad():
        model(torch.randn(2, 3, 40, 48))
    got = {p.name: p.tensor for p in bench.packets()}
    assert {name: tuple(t.shape) for name, t in got.items()} == {
        "embedder": (2, 10, 12, 8), "encoder.stages.0": (2, 10, 12, 8),
        "encoder.stages.1.layers.0": (2, 5, 6, 16), "pooler": (2, 1, 1, 16),
    }  # fmt: skip
    for name, tensor in got.items():
        assert torch.equal(tensor, truth[name].permute(0, 2, 3, 1)), name


def test_rows_that_are_last_after_all_go_to_the_compiled_path(rig):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv1d(6, 6, 3), nn.Linear(8, 8)

        def forward(self, x):
            return x

    model = nn.ModuleDict({"a": Mixed(), "b": Mixed()})
    bench = rig(model, {"match": ["a", "b"]}, backend="cpp_spmc")
    states = {s.name: s.state for s in bench.hooker._streams}
    assert {int(state[0]) for state in states.values()} == {OFF_DIRECT}
    for _ in range(3):
        model["a"](torch.zeros(2, 9, 8))
        model["b"](torch.zeros(2, 6, 9))
    assert (int(states["a"][0]), int(states["b"][0])) == (0, OFF_DIRECT)
    shapes = {p.name: tuple(p.tensor.shape) for p in bench.packets()}
    assert shapes == {"a": (2, 9, 8), "b": (2, 9, 6)}
    assert bench.is_accounted_for("a")
    assert bench.is_accounted_for("b")


def test_the_budget_counts_places_as_rows(rig):
    model = nn.Sequential(Emit(1, 1, 1))
    bench = rig(model, {"match": "0", "sampling": {"max_rows_per_s": 1e9}})
    model(torch.zeros(2, 5, 3, 4))
    (stream,) = bench.hooker._streams
    assert stream.budget.cells[2] == 24, "rows sent: samples times places, not times channels"


def test_a_doubtful_shape_is_one_line_in_the_log(rig, caplog):
    model = nn.Sequential(nn.Identity())
    bench = rig(model, {"match": "0"}, backend="cpp_spmc")
    with caplog.at_level(logging.WARNING):
        for _ in range(40):
            model(torch.zeros(2, 3, 4, 5))
    assert [r.message for r in caplog.records if "hooks[].rows" in r.message] == [
        r.message for r in caplog.records
    ]
    assert len(caplog.records) == 1
    assert "hook 0: a tensor of shape [2, 3, 4, 5]" in caplog.text
    assert bench.tensors("0")[0].shape == (2, 3, 4, 5)


def test_the_host_s_modes_and_graph_are_left_alone(rig):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    rig(model, {"match": "*"})
    x = torch.randn(2, 3, 5, 5)
    with torch.inference_mode():
        model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    assert out.dtype is torch.bfloat16
    loss = model(x).sum()
    assert "MovedimBackward" not in str(loss.grad_fn.next_functions)
    loss.backward()
    vmapped = torch.func.vmap(lambda sample: model[0](sample))(x)
    assert vmapped.shape == (2, 4, 5, 5)
