"""SAEs that turn out not to fit the rows of their hook, at the hook's first call."""

import pytest
import torch

from asys_bench.config import load_config
from asys_bench.config.assembly import AssemblyError
from asys_bench.run.run_dir import RunDir
from asys_bench.run.session import ObservationSession


@pytest.fixture
def session(tmp_path):
    made = []

    def make(model, *sets, on_misfit=None):
        own = (
            "sinks.trainer.options.sae.d_sae=null",
            "sinks.trainer.options.sae.expansion_factor=8",
        )
        sets = ("host.kind=observed", 'hooks=[{match: ["0", "1"]}]', *own, *sets)
        config = load_config("profile_consumer.yaml", sets, {}).config
        run_dir = RunDir.create(tmp_path, "test")
        made.append(ObservationSession(config, model, run_dir, on_misfit=on_misfit))
        return made[-1]

    yield make
    for one in made:
        one.abort()
        one.close()


def model():
    return torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Linear(64, 16))


def test_a_hook_whose_sae_cannot_be_trained_is_said_once_and_left_alone(session, caplog):
    observed = model()
    made = session(observed, "sinks.trainer.options.sae.k=200")
    made.hooker.attach()
    for _ in range(20):
        observed(torch.randn(2, 4))
    assert made.misfits == [
        "SAE '1' cannot be trained: k 200 is more than d_sae 128 (d_in 16); lower k or raise d_sae"
    ]
    assert caplog.text.count("cannot be trained") == 1
    metrics = made.page.slot("host").metrics()
    assert metrics["hook_captured{hook=0}"].value == 20
    assert metrics["hook_captured{hook=1}"].value == 0


def test_a_hook_with_a_variant_that_fits_goes_on(session):
    observed = model()
    variants = 'sinks.trainer.options.variants={"small": {"k": 4}, "large": {"k": 600}}'
    made = session(observed, variants)
    made.hooker.attach()
    observed(torch.randn(2, 4))
    assert [m.partition(" cannot")[0] for m in made.misfits] == ["SAE '0#large'", "SAE '1#large'"]
    assert made.page.slot("host").metrics()["hook_captured{hook=0}"].value == 1


def test_whoever_wants_to_know_is_told_in_the_first_call(session):
    calls = []
    observed = model()
    made = session(
        observed, "sinks.trainer.options.sae.k=200", on_misfit=lambda: calls.append("told")
    )
    made.hooker.attach()
    observed(torch.randn(2, 4))
    assert calls == ["told"]


def test_the_width_is_the_one_that_preprocessing_leaves(session):
    observed = model()
    hooks = 'hooks=[{match: "0", preprocess: [{random_projection: {d_out: 8}}]}]'
    made = session(observed, hooks)
    made.hooker.attach()
    observed(torch.randn(2, 4))
    assert [(f.size.d_in, f.size.d_sae) for f in made.forecast.saes] == [(8, 64)]


def test_overrides_that_do_not_go_together_on_a_hook_end_before_any_worker_starts(session):
    overrides = 'sinks.trainer.options.overrides={"[01]": {"d_sae": 16, "k": 2}, "1*": {"k": 40}}'
    with pytest.raises(AssemblyError, match="the SAE of hook '1': k 40 is more than d_sae 16"):
        session(model(), overrides)
