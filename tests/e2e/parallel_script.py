"""Trainings over two or four ranks under torchrun, on the CPU with gloo; run by test_observe_parallel.py.

Each rank also trains the whole model by itself on the batches of all, and writes what it then saw
(`reference-<rank>.pt`): hook name -> [steps, ...] of this rank's calls or of the gradients of all.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import asys_bench

case, runs, dtype, steps = (
    sys.argv[1],
    Path(sys.argv[2]),
    getattr(torch, sys.argv[3]),
    int(sys.argv[4]),
)
rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
SETTINGS = {
    "run": {"dir": str(runs), "drain_timeout_s": 60},
    "bus": {"backend": "cpp_spmc", "on_full": "block", "block_timeout_s": 50},
}


class Stages(torch.nn.Module):
    """Some of the layers of the whole model, under its names."""

    def __init__(self, kept):
        super().__init__()
        torch.manual_seed(0)
        layers = {
            "0": torch.nn.Linear(8, 32), "1": torch.nn.ReLU(), "2": torch.nn.Linear(32, 7),
            "3": torch.nn.Tanh(),
        }  # fmt: skip
        self.layers = torch.nn.ModuleDict({name: layers[name] for name in kept}).to(dtype)

    def forward(self, x):
        for layer in self.layers.values():
            x = layer(x)
        return x


def batch(step, of_rank):
    generator = torch.Generator().manual_seed(1000 * step + of_rank)
    return torch.randn(6, 8, generator=generator, dtype=torch.float64).to(dtype)


def loss_of(output):
    return output.square().mean()


def reference(own, batches):
    """What the unsharded model computes, trained on the mean loss of all `batches`; this rank sees `own`."""
    model = Stages("0123")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = {f"layers.{name}": [] for name in "0123"}
    seen |= {f"{name}:grad": [] for name, _ in model.named_parameters()}
    seen |= {f"{name}:value": [one.detach().clone()] for name, one in model.named_parameters()}
    for name, layer in model.layers.items():
        layer.register_forward_hook(
            lambda _, __, output, key=f"layers.{name}": seen[key].append(output.detach().clone())
        )
    for step in range(steps):
        optimizer.zero_grad()
        for other in range(batches):
            (loss_of(model(batch(step, other))) / batches).backward()
            if other != own:
                for name in "0123":
                    seen[f"layers.{name}"].pop()
        for name, parameter in model.named_parameters():
            seen[f"{name}:grad"].append(parameter.grad.clone())
        optimizer.step()
        for name, parameter in model.named_parameters():
            seen[f"{name}:value"].append(parameter.detach().clone())
    torch.save(
        {name: torch.stack(found) for name, found in seen.items()}, runs / f"reference-{rank}.pt"
    )


def fsdp2():
    from torch.distributed.fsdp import fully_shard

    model = Stages("0123")
    for name in "02":
        fully_shard(model.layers[name])
    fully_shard(model)
    return model, [{"match": "layers.*", "capture": ["activation"]},
                   {"match": "layers.[02]", "capture": ["parameter_gradient", "parameter"],
                    "every": 2}]  # fmt: skip


def fsdp1():
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    model = FullyShardedDataParallel(
        Stages("0123"), auto_wrap_policy=ModuleWrapPolicy({torch.nn.Linear}),
        device_id=torch.device("cpu"), use_orig_params=True,
    )  # fmt: skip
    return model, [{"match": "layers.*"}]


def tensor_parallel():
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    model = Stages("0123")
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("tp",))
    plan = {"layers.0": ColwiseParallel(), "layers.2": RowwiseParallel()}
    parallelize_module(model, mesh, plan)
    return model, [
        {"match": "layers.2", "capture": ["activation"], "ranks": "tp"},
        {"match": ["layers.0", "layers.3"]},
        {"match": "layers.[02]", "capture": ["parameter_gradient"]},
    ]


def mesh():
    """Two ranks of data (`dp`, FSDP2) times two of columns (`tp`)."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    model = Stages("0123")
    both = init_device_mesh("cpu", (size // 2, 2), mesh_dim_names=("dp", "tp"))
    plan = {"layers.0": ColwiseParallel(), "layers.2": RowwiseParallel()}
    parallelize_module(model, both["tp"], plan)
    for name in "02":
        fully_shard(model.layers[name], mesh=both["dp"])
    fully_shard(model, mesh=both["dp"])
    return model, [
        {"match": "layers.2", "capture": ["activation"], "ranks": "tp"},
        {"match": ["layers.0", "layers.3"]},
        {"match": "layers.[02]", "capture": ["parameter_gradient", "parameter"], "every": 2},
    ]


def distributed_outputs():
    """Modules that return DTensors: of columns, and of rows."""
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    model = Stages("0123")
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("tp",))
    plan = {
        "layers.0": ColwiseParallel(use_local_output=False),
        "layers.2": RowwiseParallel(output_layouts=Shard(0), use_local_output=False),
    }
    parallelize_module(model, mesh, plan)
    both = {"match": "layers.[23]", "capture": ["activation", "gradient"]}
    return model, [{"match": "layers.0"}, both]


def train(model, rules, own):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with asys_bench.observe(model, SETTINGS, hooks=rules, sae=False) as observation:
        for step in range(steps):
            optimizer.zero_grad()
            loss_of(model(batch(step, own))).backward()
            optimizer.step()
            observation.step()


def accelerate():
    """As Accelerate's own examples: it wraps the model, deals out the batches and calls backward."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = Stages("0123")
    rows = torch.cat([batch(step, of_rank) for step in range(steps) for of_rank in range(size)])
    model, optimizer, batches = accelerator.prepare(
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        torch.utils.data.DataLoader(rows, batch_size=6),
    )
    assert isinstance(model, torch.nn.parallel.DistributedDataParallel)
    with asys_bench.observe(model, SETTINGS, hooks="layers.*", sae=False) as observation:
        for x in batches:
            optimizer.zero_grad()
            accelerator.backward(loss_of(model(x)))
            optimizer.step()
            observation.step()


def deepspeed():
    """DeepSpeed's engine, with ZeRO of the case's stage."""
    from deepspeed import init_distributed, initialize

    init_distributed("gloo")
    model = Stages("0123")
    zero = {"stage": int(case[-1]), "stage3_param_persistence_threshold": 0}
    config = {"train_micro_batch_size_per_gpu": 6, "zero_optimization": zero}
    engine, *_ = initialize(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        config=config | {"zero_allow_untested_optimizer": True},
    )
    with asys_bench.observe(engine, SETTINGS, hooks="layers.*", sae=False) as observation:
        for step in range(steps):
            engine.backward(loss_of(engine(batch(step, own))))
            engine.step()
            observation.step()


def pipeline():
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    model = Stages("01" if rank == 0 else "23")
    x, middle, y = (torch.empty(3, width, dtype=dtype) for width in (8, 32, 7))
    middle.requires_grad_()
    # Without them the stage is called once more, to learn its shapes.
    given = {"input_args": (x,), "output_args": (middle,)}
    if rank == 1:
        given = {"input_args": (middle,), "output_args": (y.requires_grad_(),)}
    stage = PipelineStage(model, rank, size, torch.device("cpu"), **given)
    schedule = ScheduleGPipe(stage, 2, loss_fn=lambda output, _: loss_of(output), scale_grads=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rules = [{"match": ["layers.0", "layers.2"], "missing": "ok"}]
    rules.append({"match": "layers.[13]", "missing": "ok"})
    with asys_bench.observe(model, SETTINGS, hooks=rules, sae=False) as observation:
        for step in range(steps):
            optimizer.zero_grad()
            if rank == 0:
                schedule.step(batch(step, 0))
            else:
                schedule.step(target=torch.zeros(6, 7, dtype=dtype))
            optimizer.step()
            observation.step()


kind = case.rstrip("0123")
OWN = {"mesh": (rank // 2, size // 2)} | dict.fromkeys(
    ("fsdp2", "fsdp1", "accelerate", "deepspeed"), (rank, size)
)
WHOLE = {"pipeline": pipeline, "accelerate": accelerate, "deepspeed": deepspeed}
"""Cases that train by themselves; the others say which model and which rules."""
own, batches = OWN.get(case, OWN.get(kind, (0, 1)))
reference(own, batches)
if kind not in ("accelerate", "deepspeed"):  # which make the process group themselves
    dist.init_process_group("gloo")
if kind in WHOLE:
    WHOLE[kind]()
else:
    train(*globals()[case](), own)
dist.barrier()
dist.destroy_process_group()
