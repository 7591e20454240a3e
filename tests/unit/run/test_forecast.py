"""What a run is forecast to take, and what is refused before a worker dies of it."""

import pytest

from asys_bench.config import load_config
from asys_bench.contracts.bus import Delivery, GroupSpec
from asys_bench.contracts.launch import WorkerSpec
from asys_bench.contracts.sink import PlannedSAE, SinkOptions, SinkPlugin
from asys_bench.contracts.stats import StatsPage
from asys_bench.registry import registry
from asys_bench.run import forecast
from asys_bench.run.forecast import (
    RunForecast,
    forecast_saes,
    planned_saes,
    shortage,
    size_text,
)
from asys_bench.sae import SAEConfig
from asys_bench.workers.trainer_manager import SAETrainerManager

OWN = (  # whatever the profile has
    "sinks.trainer.options.sae.dtype=float32",
    "sinks.trainer.options.sae.d_sae=null",
    "sinks.trainer.options.sae.expansion_factor=8",
    "sinks.trainer.options.sae.buffer_rows=32768",
    "sinks.trainer.options.sae.batch_rows=1024",
    "sinks.trainer.options.sae.held_out_rows=4096",
    "sinks.trainer.options.sae.k=16",
)


def config(*sets):
    sets = (*OWN, *sets)
    return load_config("profile_consumer.yaml", sets, {}).config


def test_each_sae_of_a_hook_is_forecast_with_its_sizes():
    found = forecast_saes(config(), {"a": 64, "b": 2})
    assert [str(f) for f in found] == [
        "a: d_in 64, d_sae 512, 13.0 MiB of memory, 11.1 MiB per checkpoint",
        "b: d_in 2, d_sae 16, 1.2 MiB of memory, 1.2 MiB per checkpoint",
    ]


def test_an_sae_on_a_gpu_is_forecast_with_what_it_takes_on_both_sides(monkeypatch):
    """Per feature and column a weight, two moments, a gradient and the last good state, twice, and the
    last decoder; rows stay in the machine's memory, and so do the decoder at birth and the counts of lives.

    GPU: 8 decoders and 7 encoders of 4 x 4096 x 32768 bytes (512 MiB), six batches of 16 MiB, twice 128 MiB
    of pre-activations, energies twice 8 MiB: 8,048 MiB and 1.7 of vectors are 7.86 GiB. Memory: rows 672.9
    MiB, 256 in bfloat16, twice 1.25 of counts are 931.4 MiB."""
    (found,) = forecast_saes(config("sinks.trainer.options.device=auto"), {"a": 4096})
    assert str(found) == (
        "a: d_in 4096, d_sae 32768, 7.86 GiB of a GPU (and 512 MiB for the context of each worker) and "
        "931 MiB of memory, or on the CPU 7.90 GiB of memory, 4.82 GiB per checkpoint"
    )
    monkeypatch.setattr(forecast, "memory_limit_bytes", lambda: 4 << 30)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    (there,) = forecast_saes(config("sinks.trainer.options.device=cuda"), {"a": 4096})
    assert there.misfit is None


def test_a_k_that_only_the_width_of_the_rows_shows_to_be_too_large_is_a_misfit():
    (found,) = forecast_saes(config("sinks.trainer.options.sae.k=2000"), {"a": 64})
    assert found.size is None
    assert found.misfit == "k 2000 is more than d_sae 512 (d_in 64); lower k or raise d_sae"


def test_overrides_that_meet_on_one_hook_and_do_not_go_together_are_a_misfit():
    sets = ('sinks.trainer.options.overrides={"a*": {"d_sae": 16, "k": 2}, "*b": {"k": 40}}',)
    (problem,) = RunForecast(config(*sets), ["ab", "ac"]).problems
    assert problem == "the SAE of hook 'ab': k 40 is more than d_sae 16"


def test_an_sae_larger_than_the_machine_is_a_misfit_in_gib(monkeypatch):
    monkeypatch.setattr(forecast, "memory_limit_bytes", lambda: 4 << 30)
    (found,) = forecast_saes(config(), {"a": 4096})
    assert found.misfit.startswith(
        "d_sae 32768 (d_in 4096) takes 7.90 GiB of memory, and this machine has 4.00 GiB"
    )


def test_saes_that_exceed_what_is_free_are_one_warning(monkeypatch):
    monkeypatch.setattr(forecast, "memory_available_bytes", lambda: 20 << 20)
    run = config()
    assert shortage(forecast_saes(run, {"a": 64})) is None
    message = shortage(forecast_saes(run, {"a": 64, "b": 64}))
    assert message.startswith("the SAEs will take 26.0 MiB of memory and 20.0 MiB are free")


def test_a_hook_that_the_sink_does_not_get_has_no_sae():
    assert planned_saes(config("sinks.trainer.hooks=[b]"), "a") == {}


def test_a_transcoder_is_forecast_once_both_widths_are_known():
    sets = (
        'sinks.trainer.options.transcoders=[{"input": "a", "output": "b"}]',
        "sinks.trainer.options.plain_saes=false",
    )
    assert forecast_saes(config(*sets), {"a": 8}) == []
    (found,) = forecast_saes(config(*sets), {"a": 8, "b": 4})
    assert (found.label, found.size.d_in, found.size.d_out) == ("a->b", 8, 4)


def test_a_crosscoder_is_forecast_once_the_widths_of_all_its_hooks_are_known():
    sets = (
        'sinks.trainer.options.crosscoders=[{"hooks": ["a", "b", "c"]}]',
        "sinks.trainer.options.plain_saes=false",
    )
    assert forecast_saes(config(*sets), {"a": 8, "c": 4}) == []
    (found,) = forecast_saes(config(*sets), {"a": 8, "b": 6, "c": 4})
    assert (found.label, found.size.d_in, found.size.d_out) == ("a+b+c", 18, 18)


@pytest.mark.parametrize(
    ("n", "text"),
    [(12.3 * 2**20, "12.3 MiB"), (7.63 * 2**30, "7.63 GiB"), (300 * 2**30, "300 GiB")],
)
def test_sizes_are_binary(n, text):
    assert size_text(n) == text


@pytest.mark.parametrize(
    ("limit", "use"),
    [("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")],
)
def test_what_is_free_is_no_more_than_the_cgroup_of_either_version_leaves(
    tmp_path, monkeypatch, limit, use
):
    monkeypatch.setattr(forecast, "cgroup_folders", lambda: [tmp_path])
    (tmp_path / limit).write_text(f"{300 << 10}\n")
    (tmp_path / use).write_text(f"{100 << 10}\n")
    assert forecast.memory_available_bytes() == 200 << 10


class OtherOptions(SinkOptions):
    """Of a sink that is not ours and trains an SAE on each hook."""

    k: int = 3

    def planned_saes(self, hooks):
        return [PlannedSAE(f"{hook}@mine", hook, SAEConfig(k=self.k, d_sae=16)) for hook in hooks]


def test_whatever_sink_trains_saes_is_known_by_its_capability(monkeypatch):
    mine = SinkPlugin(
        name="mine",
        summary="a trainer of somebody else's",
        options=OtherOptions,
        build=lambda options: None,
        default_delivery=Delivery.AT_MOST_ONCE,
        trains_saes=True,
    )
    monkeypatch.setitem(registry("sink")._loaded, "mine", mine)
    sets = ("sinks.trainer.enabled=false", "sinks.other.kind=mine", "sinks.other.options.k=2")
    run = config(*sets)
    assert [f.label for f in forecast_saes(run, {"a": 64})] == ["a@mine"]
    assert forecast.configured_l0(run, ["a", "b"]) == {"a@mine": 2, "b@mine": 2}
    workers = [WorkerSpec("other-0", "sink", "mine", {}, group="other")]
    workers += [WorkerSpec("archive-0", "sink", "archiver", {}, group="archive")]
    groups = [GroupSpec("other"), GroupSpec("archive")]
    page = StatsPage.create(["other-0", "archive-0"])
    trainers = SAETrainerManager(page, workers, groups, ["a", "b"])
    assert trainers.hooks == {"other-0": ("a", "b")}
    page.close()


def test_a_hook_is_known_by_its_very_name_whatever_characters_it_has():
    assert list(planned_saes(config('sinks.trainer.hooks=["layer[0]"]'), "layer[0]")) == [
        "layer[0]"
    ]
