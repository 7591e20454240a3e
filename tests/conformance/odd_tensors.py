"""Tensors of every odd kind, and hosts that make a hook of each kind meet them.

Run as a script it is the long check of `make sanitize`: `odd_tensors.py COUNT [FOLDER]`, FOLDER being a
build tree whose extension modules are taken instead of the installed ones.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

BACKENDS = ("mp_queue", "numba_ring", "cpp_spmc")
KINDS = ("activation", "input", "gradient", "input_gradient", "parameter_gradient")
DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16,
    torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16,
    torch.uint32, torch.uint64, torch.complex64, torch.complex128, torch.float8_e4m3fnuz,
)  # fmt: skip
PREPROCESS = (["identity"], ["identity"], [{"cast": {"dtype": "float16"}}], ["int8"])


class Subclass(torch.Tensor):
    """A subclass that changes nothing."""


class Odd:
    """Makes odd tensors from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.kinds: dict[str, Callable[[], object]] = {
            name.removeprefix("make_"): getattr(self, name)
            for name in dir(self)
            if name.startswith("make_")
        }

    def one(self) -> tuple[str, object]:
        name = self.random.choice(sorted(self.kinds))
        return name, self.kinds[name]()

    def dense(self, dtype: torch.dtype = torch.float32, least: int = 1) -> torch.Tensor:
        shape = [self.random.randint(least, 7) for _ in range(self.random.randint(1, 4))]
        count = int(torch.tensor(shape).prod())
        return torch.arange(count).remainder(100).reshape(shape).to(dtype)

    def make_dense(self):
        return self.dense(self.random.choice(DTYPES))

    def make_zero_size(self):
        return self.dense(self.random.choice(DTYPES), least=0)[:0]

    def make_scalar(self):
        return torch.tensor(3.5)

    def make_transposed(self):
        return self.dense().movedim(0, -1)

    def make_strided(self):
        return self.dense()[::2, ...]

    def make_offset(self):
        return torch.arange(100.0)[self.random.randint(1, 50) :]

    def make_expanded(self):
        return torch.ones(1, 6).expand(self.random.randint(1, 9), 6)

    def make_huge_expanded(self):
        return torch.ones(1, 1).expand(1 << 20, 1 << self.random.randint(14, 16))

    def make_endless_dimension(self):
        return torch.ones(1).expand(1 << 34)

    def make_overlapping(self):
        return torch.as_strided(torch.arange(10.0), (4, 4), (1, 1))

    def make_many_dimensions(self):
        return torch.ones([1] * self.random.randint(9, 20) + [3])

    def make_freed(self):
        tensor = self.dense(self.random.choice(DTYPES))
        tensor.untyped_storage().resize_(0)
        return tensor

    def make_freed_view(self):
        tensor = torch.ones(40, 16)
        view = tensor[self.random.randint(1, 30) :]
        tensor.untyped_storage().resize_(0)
        return view

    def make_shrunken(self):
        tensor = torch.ones(self.random.randint(2, 4000), 16)
        tensor.untyped_storage().resize_(self.random.randint(0, tensor.nbytes - 1))
        return tensor

    def make_shrunken_strided(self):
        tensor = torch.ones(64, 64)[:, ::2]
        tensor.untyped_storage().resize_(self.random.randint(0, 64 * 63 * 4))
        return tensor

    def make_alias(self):
        return torch.empty(0).set_(torch.arange(64.0).untyped_storage(), 5, (3, 4), (8, 2))

    def make_shrunken_alias(self):
        tensor = torch.empty(0).set_(torch.arange(64.0).untyped_storage(), 5, (3, 4), (4, 1))
        tensor.untyped_storage().resize_(self.random.choice([0, 20, 64]))
        return tensor

    def make_conjugated(self):
        return torch.complex(torch.arange(6.0), torch.ones(6)).conj()

    def make_negated(self):
        return (
            torch.complex(torch.arange(6.0), torch.ones(6))
            .conj()
            .imag[: self.random.choice([1, 4])]
        )

    def make_negated_contiguous(self):
        return torch._neg_view(self.dense())

    def make_zero_without_memory(self):
        return torch._efficientzerotensor(3, 4)

    def make_channels_last(self):
        return torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)

    def make_parameter(self):
        return torch.nn.Parameter(self.dense())

    def make_subclass(self):
        return self.dense().as_subclass(Subclass)

    def make_inference(self):
        with torch.inference_mode():
            return self.dense() + 0

    def make_sparse(self):
        return self.dense().to_sparse()

    def make_compressed(self):
        return torch.eye(4).to_sparse_csr()

    def make_quantised(self):
        return torch.quantize_per_tensor(self.dense(), 0.1, 0, torch.quint8)

    def make_nested(self):
        return torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)])

    def make_jagged(self):
        return torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)

    def make_meta(self):
        return torch.empty(3, 4, device="meta")

    def make_mkldnn(self):
        return torch.ones(3, 4).to_mkldnn()

    def make_fake(self):
        with FakeTensorMode():
            return torch.ones(3, 4)

    def make_dead_wrapper(self):
        kept = []
        torch.vmap(lambda x: kept.append(x) or x)(torch.ones(3, 4))
        return kept[0]

    def make_large(self):
        return torch.ones(3 << 20)

    def make_structure(self):
        inner = self.dense()
        return self.random.choice([None, "text", 5, (1, (inner,)), [], {"z": inner}])


class Text(torch.nn.Module):
    """Takes text, and anything beside it that text models take; reads its ids alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(9, 4)
        self.block = torch.nn.Linear(4, 4)

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, cache_position=None,
        encoder_hidden_states=None, pixel_values=None,
    ):  # fmt: skip
        ids = input_ids if is_ids(input_ids) else torch.tensor([[1, 2, 3], [4, 5, 6]])
        return self.block(self.embed(ids))


class PlainText(Text):
    """As `Text`, and its ids are known by the embedding that they go into."""

    def forward(self, ids, *beside):
        return self.block(self.embed(ids if is_ids(ids) else torch.tensor([[1, 2, 3], [4, 5, 6]])))


def is_ids(value: object) -> bool:
    """What an embedding can be called with."""
    return (
        type(value) is torch.Tensor
        and value.layout is torch.strided
        and value.is_cpu
        and value.dtype is torch.int64
        and value.untyped_storage().nbytes() == 2 * 3 * 8
    )


class Emits(torch.nn.Module):
    """Returns its input; the gradient of its parameter is what `swap` makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))
        self.swap = None
        # Before ours, which are called in the order of their registration.
        self.weight.register_post_accumulate_grad_hook(
            lambda weight: self.swap and self.swap(weight)
        )

    def forward(self, x):
        return x


class PassesOn(torch.autograd.Function):
    """The gradient arrives as it is sent: nobody in between reads it."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Ends(torch.autograd.Function):
    """Takes the gradient and sends none on."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return None


class Sends(torch.autograd.Function):
    """Sends `gradient` back."""

    @staticmethod
    def forward(ctx, x, gradient):
        ctx.gradient = gradient
        return x.sum()

    @staticmethod
    def backward(ctx, _):
        return ctx.gradient, None


class Through(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return PassesOn.apply(x)


def meet(kind: str, model: torch.nn.Module, odd: object) -> bool:
    """Let the hook of `kind` on `model[0]` meet `odd`. False: torch itself does not allow it."""
    if kind in ("activation", "input"):
        model(odd)
        return True
    if not isinstance(odd, torch.Tensor) or odd.is_nested or odd.numel() > 1 << 24:
        return False
    try:
        if kind == "parameter_gradient":
            return _meet_on_parameter(model[0], odd)
        leaf = torch.zeros(odd.shape, dtype=odd.dtype, device=odd.device, requires_grad=True)
        total = Sends.apply(model(Ends.apply(leaf)), odd)
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    try:
        total.backward()
    except (RuntimeError, NotImplementedError):  # the engine refuses such a gradient
        return False
    return True


def _meet_on_parameter(module: Emits, odd: torch.Tensor) -> bool:
    weight = module.weight

    def swap(parameter):
        parameter.grad = None
        parameter.data = torch.zeros(odd.shape, dtype=odd.dtype)
        parameter.grad = odd

    module.swap = swap
    try:
        weight.sum().backward()
    finally:
        module.swap = None
        weight.grad = None
        weight.data = torch.zeros(2)
    return True


def readable_value(odd: object) -> torch.Tensor | None:
    """What a packet of `odd` must hold; None: it holds nothing that could be compared."""
    if type(odd) not in (torch.Tensor, torch.nn.Parameter, Subclass):
        return None
    return odd.detach().as_subclass(torch.Tensor).resolve_conj().resolve_neg()


def main(count: int, built: str | None) -> None:
    """`count` tensors x kinds x backends. Raises on the first call that is not counted."""
    if built is not None:
        for path in Path(built).rglob("_*.cpython*.so"):
            parts = path.relative_to(built).parent.parts
            folder = ".".join(parts if parts[0] == "asys_bench" else ("asys_bench", *parts))
            name = f"{folder}.{path.name.partition('.')[0]}"
            spec = importlib.util.spec_from_file_location(name, path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.modules[name] = module
            setattr(importlib.import_module(folder), name.rpartition(".")[2], module)
            print(f"  {name} from {path}", flush=True)
    from asys_bench.config.sections.hooks import HookConfig
    from tests.unit.capture.conftest import Rig

    warnings.simplefilter("ignore")
    began = time.monotonic()
    met = refused = 0
    for backend in BACKENDS:
        for kind in KINDS:
            for preprocess in PREPROCESS[1:]:
                odd = Odd(len(kind))
                model = torch.nn.Sequential(Through() if kind == "input_gradient" else Emits())
                rule = {"match": "0", "capture": kind, "preprocess": preprocess}
                rig = Rig(model, [HookConfig.model_validate(rule)], backend=backend)
                (stream,) = rig.hooker._streams
                for _ in range(count // len(PREPROCESS[1:]) + 1):
                    name, tensor = odd.one()
                    before = stream.calls.value
                    if meet(kind, model, tensor):
                        met += 1
                        if stream.calls.value != before + 1:
                            raise SystemExit(
                                f"{backend} {kind} {preprocess}: {name} is not counted"
                            )
                    else:
                        refused += 1
                    rig.packets() if met % 16 == 0 else None
                if stream.failures.value or not rig.is_accounted_for(stream.name):
                    raise SystemExit(
                        f"{backend} {kind} {preprocess}: off, or calls unaccounted for"
                    )
                rig.close()
        print(f"  {backend}: {time.monotonic() - began:.0f} s", flush=True)
    print(f"  {met} calls met an odd tensor, {refused} were refused by torch itself")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
