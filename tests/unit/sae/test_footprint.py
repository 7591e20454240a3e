"""The forecast of an SAE's size against what it really holds."""

import pytest
import torch

from asys_bench.sae.architectures.by_name import ARCHITECTURES
from asys_bench.sae.config import SAEConfig
from asys_bench.sae.footprint import footprint, step_seconds
from asys_bench.sae.training.lives import FeatureLives
from asys_bench.sae.training.trainer_parts import TrainerParts


def nbytes(state):
    return sum(value.numel() * value.element_size() for value in state.values())


WITH_THRESHOLD = ("batchtopk", "matryoshka", "skip_transcoder", "crosscoder")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forecast_bytes_are_those_of_the_tensors(architecture):
    config = SAEConfig(
        architecture=architecture, d_sae=96, k=4, buffer_rows=2048, held_out_rows=64,
        hook_widths=(5, 15) if architecture == "crosscoder" else None,
    )  # fmt: skip
    d_out = 12 if architecture == "skip_transcoder" else None
    parts = TrainerParts(config, 20, d_out)
    expected = footprint(config, 20, d_out)
    weights = sum(p.numel() * 4 for p in parts.learner.sae.parameters())
    assert expected.weights_bytes == weights
    moments = sum(m.numel() * 4 for pair in parts.learner.adam.moments.values() for m in pair)
    moments += sum(steps.numel() * 4 for steps in parts.learner.adam.row_steps.values())
    parts.learner.mark_good()
    good = sum(
        nbytes({name: value})
        for name, value in parts.learner._good.items()
        if name.startswith(("sae.", "adam.")) and hasattr(value, "numel")
    )
    lives = 2 * 96 * (4 * 64 + 40) + nbytes({"birth": parts.learner.lives.birth_FD})
    rough = 2 * 96 * 20 if config.rough_products else 0
    threshold = 4 * 96 if architecture in WITH_THRESHOLD else 0
    assert moments + good + weights + lives - threshold == expected.optimizer_bytes - rough
    held = parts.buffer._held
    buffer = nbytes(
        {
            "rows": held.rows_ND,
            "weight": held.weight_N,
            "step": held.step_N,
            "version": held.version_N,
            "order": parts.buffer._order_C,
        }
    )
    width = 20 + (d_out or 0)
    assert expected.buffer_bytes == buffer + 4096 * 4 * width
    assert expected.held_out_bytes == 64 * (4 * width + 4)


def test_of_the_lives_a_gpu_has_the_energies_alone():
    lives = FeatureLives(torch.empty(96, 20, device="meta"))
    tensors = {n: one for n, one in vars(lives).items() if isinstance(one, torch.Tensor)}
    assert [n for n, one in tensors.items() if one.device.type == "meta"] == ["energy_WF"]
    size = footprint(SAEConfig(d_sae=96, k=4), 20)
    # Five counts of 8 bytes a feature, again in the last good state; 20 columns in bfloat16.
    assert size.host_lives_bytes == 96 * (2 * 5 * 8 + 20 * 2)
    assert size.device_optimizer_bytes + size.host_lives_bytes == size.optimizer_bytes


def test_an_sae_of_4096_by_32768_takes_seven_gib_and_a_quarter_of_weights_and_optimizer():
    forecast = footprint(SAEConfig(dtype="float32"), 4096)
    assert forecast.d_sae == 32768
    assert (forecast.weights_bytes + forecast.optimizer_bytes) / 2**30 == pytest.approx(
        7.27, abs=0.01
    )
    assert forecast.memory_bytes / 2**30 == pytest.approx(7.9, abs=0.1)


def test_what_does_not_fit_the_width_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"k 2000 is more than d_sae 512 \(d_in 64\)"):
        footprint(SAEConfig(k=2000), 64)


def test_a_larger_sae_is_forecast_to_step_for_longer():
    """Sizes a factor of 256 apart: no load on the machine makes up for that."""
    small, large = SAEConfig(d_sae=64, k=2), SAEConfig(d_sae=16384)
    assert min(step_seconds(large, 512) for _ in range(3)) > step_seconds(small, 16)
