"""What a row of a hooked tensor is: `hooks[].rows`.

A row is what an SAE takes apart: a vector of one token, sample or place. Most modules keep it in their
last dimension. Convolutions and what belongs to them keep channels first ([B, C, H, W]): there a row is
the C channels at one place, and the tensor is captured as [B, H, W, C]. Everything behind the hook
(encoders, bus, sinks, readers) knows rows of the last dimension alone.

Which it is, is chosen from the module's type; for a container or an activation function from the modules
in it, or around it:

- only convolutions and their like: channels first, where the tensor has their dimensions;
- only linear layers and their like: last;
- both (a ConvNeXt block, Mamba, the encoder of Whisper): by size. Dimension 1 as large as a
  convolution's channels and the last one as large as none: channels first, and the other way round. The
  first tensor that tells decides for all that have as many dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from asys_bench.capture.host_state import is_bare, undisturbed, unreadable
from asys_bench.config.sections.hooks import RowsOf
from asys_bench.contracts.torch_internals import AnyBatchNorm, AnyConvolution

_BY_RANK = (
    "AdaptiveAvgPool", "AdaptiveMaxPool", "AvgPool", "CircularPad", "ConstantPad", "Dropout",
    "FractionalMaxPool", "InstanceNorm", "LPPool", "LazyInstanceNorm", "MaxPool", "MaxUnpool",
    "ReflectionPad", "ReplicationPad", "ZeroPad",
)  # fmt: skip
_RANK: dict[type, int] = {
    getattr(nn, f"{name}{rank}d"): rank
    for name in _BY_RANK
    for rank in (1, 2, 3)
    if hasattr(nn, f"{name}{rank}d")
}
"""Spatial dimensions of modules that also take a tensor without a batch dimension."""
_BATCHED = (
    AnyBatchNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.Upsample, nn.ChannelShuffle,
)  # fmt: skip
_IMAGES = (nn.PixelShuffle, nn.PixelUnshuffle, nn.Softmax2d)
_LAST = (
    nn.Linear, nn.Bilinear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.EmbeddingBag,
    nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase,
)  # fmt: skip
LAST = -1


@dataclass(slots=True)
class Sizes:
    """What the modules in a container say about the tensors between them."""

    channels: set[int] = field(default_factory=set)
    """Sizes of dimensions that hold channels, with places behind them."""
    ranks: set[int] = field(default_factory=set)
    """Numbers of dimensions behind those."""
    widths: set[int] = field(default_factory=set)
    """Sizes of last dimensions."""

    def __bool__(self) -> bool:
        return bool(self.channels or self.ranks or self.widths)


class Rows:
    """The rule of one stream, and what it has decided.

    axis: of a module whose type tells; None where the sizes do.
    """

    def __init__(self, setting: RowsOf, axis: int | None, sizes: Sizes) -> None:
        self.setting, self._axis, self._sizes = setting, axis, sizes
        self._decided: dict[int, int] = {}
        self._said = False

    @property
    def always_last(self) -> bool:
        """No tensor is turned, so that the compiled path may take all of them."""
        if self.setting is RowsOf.LAST or self._axis == LAST:
            return True
        return self.setting is RowsOf.AUTO and self._axis is None and not self._sizes.ranks

    @property
    def described(self) -> str:
        """For a person: `last`, `channels` or `by size`."""
        if self.always_last:
            return "last"
        mixed = self._axis is None and self._sizes.widths and self.setting is RowsOf.AUTO
        return "by size" if mixed else "channels"

    def settled(self, ndim: int) -> bool:
        """Tensors of so many dimensions have their rows last, and no other size changes that."""
        return self._decided.get(ndim) == LAST

    def view(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` with its rows in the last dimension: itself, or a view without autograd."""
        if unreadable(tensor) is not None:
            return tensor
        axis = self.axis_of(tuple(tensor.shape))
        if axis in (LAST, tensor.ndim - 1):
            return tensor
        if is_bare():
            return tensor.detach().movedim(axis, LAST)
        with undisturbed():
            return tensor.detach().movedim(axis, LAST)

    def axis_of(self, shape: tuple[int, ...]) -> int:
        """The dimension of a tensor of `shape` that holds its rows."""
        ndim = len(shape)
        if self.always_last:
            return LAST
        if self._axis is not None:
            least = -self._axis if self._axis < 0 else self._axis + 2
            return self._axis if ndim >= least else LAST
        if self.setting is RowsOf.CHANNELS:
            return 1 if ndim > 2 else LAST
        return self._by_size(shape)

    def warning(self, shape: tuple[int, ...]) -> str | None:
        """Why a person should check the rows of `shape`; None if there is no reason, or it was said."""
        ndim = len(shape)
        if self._said or self.setting is not RowsOf.AUTO or self._axis is not None or ndim < 3:
            return None
        if ndim in self._decided or self.axis_of(shape) != LAST:
            return None
        mixed = ndim - 2 in self._sizes.ranks
        if not mixed and (ndim < 4 or shape[-1] in self._sizes.widths):
            return None
        self._said = True
        return (
            f"a tensor of shape {list(shape)} is captured as rows of its last dimension ({shape[-1]}), and "
            "neither the module's type nor what it holds says that it should. Set hooks[].rows: channels "
            "if a row is dimension 1, or rows: last to confirm"
        )

    def _by_size(self, shape: tuple[int, ...]) -> int:
        ndim, sizes = len(shape), self._sizes
        decided = self._decided.get(ndim)
        if decided is not None:
            return decided
        axis = next((a for a in (1, 0) if ndim > 2 and ndim - 1 - a in sizes.ranks), None)
        if axis is None:
            return LAST
        first = shape[axis] in sizes.channels
        final = shape[-1] in sizes.widths or shape[-1] in sizes.channels
        if (
            axis == 0
        ):  # without a batch dimension, or a text of as many dimensions: it must be plain
            return 0 if first and not final and not sizes.widths else LAST
        if first != final:
            self._decided[ndim] = chosen = axis if first else LAST
            return chosen
        return LAST if sizes.widths else axis


class RowFinder:
    """Makes the rules of a model's modules."""

    def __init__(self, model: nn.Module) -> None:
        self._parents: dict[nn.Module, nn.Module] = {}
        for parent in model.modules():
            for child in parent.children():
                self._parents.setdefault(child, parent)
        self._known: dict[nn.Module, Sizes] = {}

    def of_module(self, module: nn.Module, setting: RowsOf) -> Rows:
        """For what `module` takes and returns, and the gradients of both."""
        axis = axis_of_type(module)
        if axis == LAST and setting is RowsOf.CHANNELS:
            axis = None  # the person knows better
        sizes = Sizes() if axis is not None else self._around(module)
        return Rows(setting, axis, sizes)

    def of_parameter(self, parameter: torch.Tensor, module: nn.Module, setting: RowsOf) -> Rows:
        """For a parameter of `module`, or of a module in it: the weight [O, I, kH, kW] of a
        convolution has a row of I for each output channel and place in the kernel."""
        owner = next(
            (
                m
                for m in module.modules()
                if any(p is parameter for p in m.parameters(recurse=False))
            ),
            None,
        )
        turned = isinstance(owner, AnyConvolution) or setting is RowsOf.CHANNELS
        return Rows(setting, 1 if turned and parameter.ndim > 2 else LAST, Sizes())

    def _around(self, module: nn.Module) -> Sizes:
        """Of the modules in `module`; where none tells, of those around it."""
        here: nn.Module | None = module
        while here is not None:
            sizes = self._inside(here)
            if sizes:
                return sizes
            here = self._parents.get(here)
        return Sizes()

    def _inside(self, module: nn.Module) -> Sizes:
        known = self._known.get(module)
        if known is None:
            known = self._known[module] = Sizes()
            _add(module, known)
            for child in module.children():
                inner = self._inside(child)
                known.channels |= inner.channels
                known.ranks |= inner.ranks
                known.widths |= inner.widths
        return known


def axis_of_type(module: nn.Module) -> int | None:
    """Where a module of this type keeps its rows; None: the type does not say."""
    if isinstance(module, AnyConvolution):
        return -1 - len(module.kernel_size)
    for kind, rank in _RANK.items():
        if isinstance(module, kind):
            return -1 - rank
    if isinstance(module, _BATCHED):
        return 1
    if isinstance(module, _IMAGES):
        return -3
    for kind in _LAST:  # transformers' ConvNextLayerNorm is a LayerNorm that can be channels first
        if isinstance(module, kind) and (
            not isinstance(module, nn.LayerNorm) or type(module).forward is nn.LayerNorm.forward
        ):
            return LAST
    return None


def _add(module: nn.Module, sizes: Sizes) -> None:
    """What `module` itself says, without the modules in it."""

    def numbers(*names: str) -> Iterator[int]:
        for name in names:
            value: Any = getattr(module, name, None)
            if isinstance(value, int):
                yield value

    axis = axis_of_type(module)
    if isinstance(module, nn.LayerNorm):
        width = module.normalized_shape[-1]
        sizes.widths.add(width)
        if axis is None:
            sizes.channels.add(width)
            sizes.ranks.update((1, 2, 3))
    elif isinstance(module, nn.RMSNorm):
        sizes.widths.add(module.normalized_shape[-1])
    elif axis == LAST:
        sizes.widths.update(
            numbers("in_features", "out_features", "embedding_dim", "embed_dim", "hidden_size")
        )
    elif axis is not None:
        sizes.channels.update(
            numbers("in_channels", "out_channels", "num_features", "num_channels")
        )
        rank = -1 - axis if axis < 0 else 0
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            rank = 2 if isinstance(module, nn.BatchNorm2d) else 3
        if rank:
            sizes.ranks.add(rank)
