"""A trainer on a GPU: the weights of the CPU's, rows on their way while steps run, memory that ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from asys_bench.sae import ARCHITECTURES, SAEConfig, SAETrainer, SparseAutoencoder, SparseKernels
from asys_bench.sae.checkpoint.checkpoint_files import read_tensors
from asys_bench.sae.footprint import footprint
from asys_bench.sae.kernels import choice
from asys_bench.sae.training import learner as learner_module
from asys_bench.sae.training.device import (
    CPU,
    CudaDevice,
    DeviceMemoryError,
    DeviceUnavailableError,
    TrainingDevice,
)
from asys_bench.sae.training.feed import StagedFeed
from asys_bench.sae.training.learner import Learner

from .simulated_gpu import COUNTS, SimulatedGpu
from .step_by_step import B, D, config_of, pool_of_rows, rows_for


class TorchOnCpu(TrainingDevice):
    """The CPU with the kernels of the simulated device."""

    def kernels(self, config: SAEConfig, sae: SparseAutoencoder) -> SparseKernels:
        return SparseKernels()


def _config(architecture: str, **more: object) -> SAEConfig:
    wanted = {"buffer_rows": 1024, "held_out_rows": 256, "passes": 2, **more}
    return config_of(architecture).model_copy(update=wanted)


def _ingest(trainer: SAETrainer, rows: torch.Tensor, first: int, count: int) -> None:
    """Packets of 160 rows; between two of them it trains on what is allowed."""
    for number, part in enumerate(rows.split(160)[first : first + count], first):
        x, y = part[:, :D], part[:, D:]
        trainer.ingest(
            x,
            (0, 0, number),
            1.0 + number % 2,
            target_ND=y if y.numel() else None,
            hook_widths=trainer.config.hook_widths,
            host_step=number,
            weights_version=number,
        )
        trainer.train()


def _saved(trainer: SAETrainer, folder: Path) -> dict[str, object]:
    """Every tensor and number of a checkpoint."""
    path = trainer.save(folder, sync=False)
    assert path is not None
    found: dict[str, object] = {}
    for file in path.glob("*.safetensors"):
        found |= {
            f"{file.name}.{n}": t.view(torch.uint8).numpy().tobytes()
            for n, t in read_tensors(file).items()
        }
    for name in ("cfg.json", "trainer_state.json"):
        found[name] = json.loads((path / name).read_text())
    return found


@pytest.mark.parametrize(
    "architecture",
    [
        name if name == "topk" else pytest.param(name, marks=pytest.mark.rest)
        for name in ARCHITECTURES
    ],
)
def test_it_trains_as_the_same_kernels_do_on_the_cpu(architecture: str, tmp_path: Path) -> None:
    rows, config = rows_for(architecture), _config(architecture)
    here = SAETrainer(config, hook_name="h", device=TorchOnCpu())
    _ingest(here, rows, 0, 6)
    with SimulatedGpu() as gpu:
        there = SAETrainer(config, hook_name="h", device=gpu)
        _ingest(there, rows, 0, 6)
        assert there.steps == here.steps > 12
        assert there.evaluate() == here.evaluate()
        assert _saved(there, tmp_path / "there") == _saved(here, tmp_path / "here")
        assert there.sae is not None
        assert there.sae.W_enc.is_cpu


@pytest.mark.rest
@pytest.mark.parametrize("architecture", ["topk", "jumprelu"])
def test_auxk_and_dense_steps_run_there_too(architecture: str, tmp_path: Path) -> None:
    config = _config(architecture, dead_policy="auxk", dead_after_rows=300, k=2)
    rows = rows_for(architecture)
    here = SAETrainer(config, device=TorchOnCpu())
    _ingest(here, rows, 0, 8)
    with SimulatedGpu() as gpu:
        there = SAETrainer(config, device=gpu)
        _ingest(there, rows, 0, 8)
        assert there.metrics.dead_fraction == here.metrics.dead_fraction > 0
        assert _saved(there, tmp_path / "there") == _saved(here, tmp_path / "here")


@pytest.mark.parametrize(
    "architecture", ["topk", pytest.param("skip_transcoder", marks=pytest.mark.rest)]
)
def test_it_resumes_bit_for_bit(architecture: str, tmp_path: Path) -> None:
    rows, config = rows_for(architecture), _config(architecture)
    with SimulatedGpu() as gpu:
        through = SAETrainer(config, hook_name="h", device=gpu)
        _ingest(through, rows, 0, 5)
        stopped = SAETrainer(config, hook_name="h", device=gpu)
        _ingest(stopped, rows, 0, 3)
        stopped.save(tmp_path / "checkpoints", sync=False)
        resumed = SAETrainer(config, hook_name="h", device=gpu)
        assert resumed.load(tmp_path / "checkpoints") is not None
        assert resumed.steps == stopped.steps
        _ingest(resumed, rows, 3, 2)
        one, other = _saved(through, tmp_path / "one"), _saved(resumed, tmp_path / "other")
        for saved in (
            one,
            other,
        ):  # feature_survival: since the checkpoint before, which only one has
            saved["cfg.json"]["metadata"].pop("feature_survival", None)  # type: ignore[index]
        assert one == other


def test_a_checkpoint_of_a_gpu_goes_on_on_the_cpu_and_back(tmp_path: Path) -> None:
    rows, config = rows_for("topk"), _config("topk")
    with SimulatedGpu() as gpu:
        there = SAETrainer(config, device=gpu)
        _ingest(there, rows, 0, 4)
        there.save(tmp_path, sync=False)
    here = SAETrainer(config)
    assert here.load(tmp_path) is not None
    _ingest(here, rows, 4, 2)
    here.save(tmp_path, sync=False)
    with SimulatedGpu() as gpu:
        back = SAETrainer(config, device=gpu)
        assert back.load(tmp_path) is not None
        assert back.steps == here.steps > there.steps


@pytest.mark.rest
def test_batches_are_brought_while_the_step_before_runs() -> None:
    with SimulatedGpu() as gpu:
        trainer = SAETrainer(_config("topk", passes=4), device=gpu)
        _ingest(trainer, rows_for("topk"), 0, 7)
        assert trainer._hook is not None
        feed = trainer._hook.feed
        assert isinstance(feed, StagedFeed)
        # Ahead: all but the first of each call of `train`, and those that begin a new pass.
        assert trainer.steps > 20
        assert 0.6 * trainer.steps < feed.brought_ahead < trainer.steps
        assert len(gpu.copies) == trainer.steps, "each batch is copied once"
        assert all(copy.done for copy in gpu.copies)


def test_what_was_brought_ahead_is_not_used_after_new_rows_came() -> None:
    """The same places of the reservoir, but other rows."""
    rows = pool_of_rows()
    with SimulatedGpu() as gpu:
        trainer = SAETrainer(_config("topk"), device=gpu)
        _ingest(trainer, rows, 0, 8)
        hook = trainer._hook
        assert hook is not None
        slots = hook.buffer.upcoming(B)
        assert slots is not None
        hook.feed.ahead()
        hook.buffer._held.rows_ND.add_(1.0)
        hook.buffer.changes += 1
        batch = hook.feed.take()
        assert torch.equal(batch.rows_ND.cpu(), hook.buffer._held.rows_ND[slots])


def test_a_step_waits_for_few_values() -> None:
    """Each makes the GPU idle until the next operators are there. The bound is what a step needs now:
    loss, one norm and one check per parameter, dead features, L0."""
    with SimulatedGpu() as gpu:
        trainer = SAETrainer(_config("topk", dead_policy="none"), device=gpu)
        rows = pool_of_rows()
        trainer.ingest(rows[:1000], (0, 0, 0))
        trainer.train(max_steps=2)
        COUNTS.clear()
        assert trainer.train(max_steps=5) == 5
        assert COUNTS["waits"] <= 5 * 13
        assert COUNTS["to_host"] == 0


def test_what_does_not_fit_is_said_with_sizes_before_memory_is_taken() -> None:
    config = _config("topk", d_sae=1 << 20)
    size = footprint(config, 4096)
    # In GiB: weights 2 x 16, as much for gradients, moments and the last good state 6 x 32, the decoder
    # of the last checkpoint 16, a step, and of the features' lives their energies by window and a copy,
    # 2 x 64 x 4 bytes x 2**20 = 0.5.
    assert size.device_bytes / (1 << 30) == pytest.approx(32 + 192 + 16 + 1 + 0.6, abs=0.1)
    # On the CPU are the rows, and of the lives the decoder at birth in bfloat16 and twice five counts.
    rows = size.buffer_bytes + size.held_out_bytes + size.staging_bytes
    assert size.host_bytes == rows + (4096 * 2 + 2 * 5 * 8) * 2**20
    with SimulatedGpu(free_gib=1.5) as gpu:
        trainer = SAETrainer(config, hook_name="layers.3", device=gpu)
        with pytest.raises(DeviceMemoryError) as raised:
            trainer.ingest(torch.zeros(4, 4096), (0, 0, 0))
    message = str(raised.value)
    assert message.startswith(
        "layers.3: cuda:7 is out of memory: an SAE of d_in 4096 and d_sae 1048576 "
    )
    assert "1.50 GiB of 80.00 GiB are free; lower d_sae, expansion_factor or batch_rows" in message


def test_a_gpu_that_fills_up_later_is_said_and_the_last_checkpoint_goes_on(tmp_path: Path) -> None:
    rows, config = rows_for("topk"), _config("topk")
    with SimulatedGpu() as gpu:
        trainer = SAETrainer(config, hook_name="h", device=gpu)
        _ingest(trainer, rows, 0, 4)
        steps = trainer.steps
        gpu.is_full = True
        trainer.ingest(rows[:500], (0, 0, 99))
        with pytest.raises(DeviceMemoryError, match="h: cuda:7 is out of memory"):
            trainer.train()
        gpu.is_full = False
        assert trainer.train() > 0
        assert trainer.steps > steps


def test_the_cpu_names_itself_and_takes_what_comes() -> None:
    assert (CPU.name, CPU.tensors.type) == ("cpu", "cpu")
    CPU.require("h", footprint(_config("topk", d_sae=1 << 20), 4096))


class FakeCuda:
    """As much of torch.cuda as a device asks for before it trains."""

    def __init__(self, gpus: int) -> None:
        self.gpus, self.current, self.fraction = gpus, -1, 1.0

    def is_available(self) -> bool:
        return self.gpus > 0

    def device_count(self) -> int:
        return self.gpus

    def set_device(self, index: int) -> None:
        self.current = index

    def mem_get_info(self, index: int) -> tuple[int, int]:
        return 60 << 30, 80 << 30

    def memory_reserved(self, index: int) -> int:
        return 3 << 30

    def set_per_process_memory_fraction(self, fraction: float, index: int) -> None:
        self.fraction = fraction

    def Stream(self, device: int) -> object:
        return object()


@pytest.mark.parametrize(
    ("gpus", "index", "message"),
    [(0, 0, "finds no CUDA device here"), (2, 2, "this process sees 2 GPUs, cuda:0 to cuda:1")],
)
def test_a_gpu_that_is_not_there_is_refused(gpus: int, index: int, message: str) -> None:
    with pytest.raises(DeviceUnavailableError, match=message):
        CudaDevice(index, cuda=FakeCuda(gpus))


def test_a_capped_gpu_counts_only_what_it_may_take() -> None:
    cuda = FakeCuda(2)
    device = CudaDevice(1, most_bytes=8 << 30, cuda=cuda)
    assert (cuda.current, cuda.fraction) == (1, 0.1)
    assert device.memory() == (5 << 30, 8 << 30)
    assert CudaDevice(1, cuda=FakeCuda(2)).memory() == (60 << 30, 80 << 30)


def _torch_cuda_is_untouched(make: Callable[[], object]) -> None:
    make()
    assert not torch.cuda.is_initialized()


def test_nothing_makes_a_context_before_a_device_is_asked_for() -> None:
    """The fork server imports all this, and what is forked from a process with a context has none."""
    import asys_bench.sinks.sae_trainer  # noqa: F401

    _torch_cuda_is_untouched(lambda: SAETrainer(_config("topk")))


class _Clock:
    """Says that Triton's kernels take `share` of what torch's take."""

    def __init__(self, share: float) -> None:
        self.share, self.calls = share, 0

    def __call__(self, work: Callable[[], object]) -> float:
        self.calls += 1
        work()
        return 1.0 if self.calls <= choice.TIMES else self.share


class _NearTorch(SparseKernels):
    """In place of Triton's."""

    name = "triton"
    factor = 1.0

    def accumulate(self, *arguments: Any) -> torch.Tensor:
        return super().accumulate(*arguments).mul_(self.factor)


class _FarFromTorch(_NearTorch):
    factor = 1.01


@pytest.mark.parametrize(
    ("kernels", "share", "chosen"),
    [(_NearTorch, 0.5, "triton"), (_NearTorch, 1.5, "torch"), (_FarFromTorch, 0.5, "torch")],
)
def test_kernels_are_chosen_by_their_speed_where_they_are_right(
    kernels: type[SparseKernels], share: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(name: str, *, rough: bool) -> SparseKernels:
        return kernels(rough=rough) if name == "triton" else SparseKernels(rough=rough)

    monkeypatch.setattr(choice, "named_kernels", named)
    monkeypatch.setattr(choice, "find_spec", lambda name: object())
    found = choice.faster_kernels(16, 8, 32, 3, torch.device("cpu"), _Clock(share), rough=True)
    assert (found.name, found.rough, found.measured) == (chosen, True, True)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_largest_are_found_in_the_faster_way(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    found = choice.faster_kernels(16, 8, 320, 3, torch.device("cpu"), _Clock(share), rough=False)
    assert (found.name, found.staged, found.measured) == ("torch", share < 1, True)


def test_the_largest_in_two_stages_train_the_same(tmp_path: Path) -> None:
    class Staged(SimulatedGpu):
        def kernels(self, config: SAEConfig, sae: SparseAutoencoder) -> SparseKernels:
            made = super().kernels(config, sae)
            made.staged = True
            return made

    rows, config = rows_for("topk"), _config("topk", k=3)
    here = SAETrainer(config, device=TorchOnCpu())
    _ingest(here, rows, 0, 6)
    with Staged() as gpu:
        there = SAETrainer(config, device=gpu)
        _ingest(there, rows, 0, 6)
        assert there.steps == here.steps > 12
        assert _saved(there, tmp_path / "there") == _saved(here, tmp_path / "here")


def test_a_resumed_training_keeps_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock may say something else the next time, and other kernels are other bits."""

    def device(kernels: type[SparseKernels], *, staged: bool = False) -> TrainingDevice:
        class Measured(TrainingDevice):
            def kernels(self, config: SAEConfig, sae: SparseAutoencoder) -> SparseKernels:
                made = kernels()
                made.measured, made.staged = True, staged
                return made

        return Measured()

    by_name = {"triton": _NearTorch, "torch": SparseKernels}
    monkeypatch.setattr(learner_module, "named_kernels", lambda name, rough: by_name[name]())
    config = _config("topk")
    before = Learner(config, D, device=device(_NearTorch))
    after = Learner(config, D, device=device(SparseKernels))
    assert (before.kernels.name, after.kernels.name) == ("triton", "torch")
    after.load_state_dict(before.state_dict())
    assert after.kernels.name == after.adam.kernels.name == "triton"
    before.load_state_dict(Learner(config, D).state_dict())  # of a CPU: nothing was chosen
    assert before.kernels.name == "triton"
    staged = Learner(config, D, device=device(_NearTorch, staged=True))
    after.load_state_dict(staged.state_dict())
    assert after.kernels.staged
    earlier = {n: v for n, v in before.state_dict().items() if n != "staged"}
    after.load_state_dict(earlier)  # of a version that had one stage alone
    assert not after.kernels.staged
