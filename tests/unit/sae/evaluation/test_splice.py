"""A host runs with the reconstruction in place of a module's output, and is itself again afterwards."""

from collections import OrderedDict, namedtuple

import pytest
import torch

from asys_bench.sae import SAEConfig, build_sae
from asys_bench.sae.evaluation import Place, rows_at, splice, zero_ablation

Pair = namedtuple("Pair", "hidden extra")


class Wraps(torch.nn.Module):
    """A module whose output is `wrap(x)`."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(x)


def double(rows_BD):
    assert rows_BD.ndim == 2
    return rows_BD * 2


@pytest.mark.parametrize(
    ("wrap", "select", "pick"),
    [
        (lambda x: x, None, lambda out: out),
        (lambda x: (x, "kept"), None, lambda out: out[0]),
        (lambda x: ("first", x), 1, lambda out: out[1]),
        (lambda x: ("first", x), -1, lambda out: out[1]),
        (lambda x: [x, 3], 0, lambda out: out[0]),
        (lambda x: Pair(x, 3), None, lambda out: out.hidden),
        (lambda x: {"a": 1, "b": x}, "b", lambda out: out["b"]),
        (lambda x: OrderedDict(b=x), None, lambda out: out["b"]),
    ],
)
def test_the_tensor_is_replaced_wherever_it_sits(wrap, select, pick):
    module, x = Wraps(wrap), torch.randn(2, 3, 4, dtype=torch.float64)
    with splice(module, double, select=select):
        spliced = module(x)
    assert type(spliced) is type(module(x))
    torch.testing.assert_close(pick(spliced), x.float().double() * 2)
    assert torch.equal(pick(module(x)), x)
    assert not module._forward_hooks


def test_what_the_host_holds_is_not_changed():
    held = {"a": torch.ones(2, 3)}
    with splice(module := Wraps(lambda x: held), zero_ablation):
        assert module(None)["a"].sum() == 0
    assert held["a"].sum() == 6


def test_a_transcoder_sees_the_input():
    module = torch.nn.Linear(3, 5)
    with splice(module, lambda x: torch.cat([x, x[:, :2]], 1), source="input"):
        out = module(torch.ones(4, 3))
    assert torch.equal(out, torch.ones(4, 5))


def test_an_sae_of_channels_replaces_an_image_place_by_place():
    image = torch.randn(2, 3, 4, 5)
    seen = []

    def double(rows_BD):
        seen.append(rows_BD)
        return 2 * rows_BD

    module = torch.nn.Identity()
    with splice(module, double, row_dim=1):
        assert torch.equal(module(image), 2 * image)
    assert torch.equal(seen[0], image.permute(0, 2, 3, 1).reshape(40, 3))


def test_the_hook_goes_whatever_happens():
    module = Wraps(lambda x: "no tensor")
    with pytest.raises(ValueError, match="no tensor in a str"), splice(module, double):
        module(torch.ones(2, 2))
    assert not module._forward_hooks
    wrong = Wraps(lambda x: x)
    complaint = r"is \(2, 1\), the module's output \(2, 2\)"
    with pytest.raises(ValueError, match=complaint), splice(wrong, lambda x: x[:, :1]):
        wrong(torch.ones(2, 2))
    assert not wrong._forward_hooks


@pytest.mark.parametrize("architecture", ["topk", "skip_transcoder"])
def test_the_modules_own_output_stays_where_an_sae_leaves_rows_alone(architecture):
    sae = build_sae(SAEConfig(architecture=architecture, d_sae=12, k=2), 6)
    sae.outlier_norm = 5.0
    x_BTD = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0)).clamp(-0.8, 0.8)
    x_BTD[:, 0] *= 100
    module = torch.nn.Linear(6, 6)
    source = "input" if architecture == "skip_transcoder" else "output"
    clean_BTD = module(x_BTD)
    with splice(module, sae, source=source):
        made_BTD = module(x_BTD)
    assert torch.equal(made_BTD[:, 0], clean_BTD[:, 0])
    assert not torch.isclose(made_BTD[:, 1:], clean_BTD[:, 1:]).all(-1).any()


def test_a_modules_first_input_is_replaced_wherever_it_is_given():
    module = torch.nn.Linear(3, 5)
    x = torch.randn(4, 3)
    with splice(Place(module, "input"), zero_ablation):
        assert torch.equal(module(x), module.bias.expand(4, 5))
        assert torch.equal(module(input=x), module.bias.expand(4, 5))
    assert not torch.equal(module(x), module.bias.expand(4, 5))
    assert not module._forward_pre_hooks


def test_rows_that_are_kept_stay_in_an_ablation():
    module, x_BD = torch.nn.Identity(), torch.randn(6, 4)
    with splice(module, zero_ablation, keep=lambda rows_BD: torch.arange(6) % 3 == 0):
        made_BD = module(x_BD)
    assert torch.equal(made_BD[::3], x_BD[::3])
    assert not made_BD[1:3].any()


def test_an_sae_replaces_its_outliers_too_when_it_is_told_to():
    sae = build_sae(SAEConfig(architecture="topk", d_sae=12, k=2), 6)
    sae.outlier_norm = 0.5
    x_BD = torch.randn(3, 6) + 5
    module = torch.nn.Identity()
    with splice(module, sae):
        assert torch.equal(module(x_BD), x_BD)
    with splice(module, lambda rows_BD: sae.decode(sae.activations(rows_BD))):
        assert not torch.isclose(module(x_BD), x_BD).any()


def test_rows_are_told_of_every_call_and_are_memory_of_their_own():
    module, x = Wraps(lambda x: (x, "kept")), torch.randn(2, 3, 4, 5)
    with rows_at({"out": Place(module, row_dim=1), "in": Place(module, "input")}) as found:
        module(x)
        module(2 * x)
        before = x.clone()
        x.zero_()
    assert torch.equal(found["out"][0], before.permute(0, 2, 3, 1))
    assert torch.equal(found["in"][1], 2 * before)
    assert not module._forward_hooks
    assert not module._forward_pre_hooks
