"""Where an offline training's settings come from, and what is said when they are wrong."""

from dataclasses import replace
from pathlib import Path

import pytest

from asys_bench.config import ConfigError
from asys_bench.config.document import run_config_data
from asys_bench.contracts.sink import SinkPlugin
from asys_bench.offline import read_plan
from asys_bench.registry import registry

RUN = """\
run: {seed: 5}
sinks:
  archive: {kind: archiver}
  spare: {kind: sae_trainer, enabled: false, options: {sae: {k: 2}}}
  trainer:
    kind: sae_trainer
    hooks: ["policy.*"]
    options:
      sae: {architecture: topk, k: 8}
      overrides: {"policy.big": {k: 32}}
"""


def test_the_runs_own_trainer_is_the_default(tmp_path):
    (tmp_path / "config.yaml").write_text(RUN)
    plan = read_plan(tmp_path, None, ["epochs=3", "sae.expansion_factor=16"])
    assert (plan.epochs, plan.seed, plan.sae.k, plan.sae.expansion_factor) == (3, 5, 8, 16)
    jobs = {job.label: job.config for job in plan.jobs(["policy.mlp", "policy.big", "value.mlp"])}
    assert {label: sae.k for label, sae in jobs.items()} == {"policy.mlp": 8, "policy.big": 32}


def test_a_run_of_an_earlier_version_is_trained_from_without_the_options_that_are_gone(tmp_path):
    old = RUN.replace(
        "k: 8}", "k: 8, lr_tracking: false, lr_decay_steps: null, survival_cosine: 0.9}"
    )
    old = old.replace("    options:\n", "    options:\n      linger_s: 0.05\n")
    old = old.replace("{k: 32}", "{k: 32, lr_tracking: true}")
    old += "      variants: {slow: {lr_decay_steps: 9}}\n"
    old += "      transcoders: [{input: a, output: b, sae: {k: 2, survival_cosine: 0.8}}]\n"
    old += "device: {encode_on: host_stream}\nhooks: [{match: a, sampling: {seed: 3, min_rate: 0.5}}]\n"
    (tmp_path / "config.yaml").write_text(old)
    assert run_config_data(tmp_path)["hooks"] == [{"match": "a", "sampling": {"min_rate": 0.5}}]
    plan = read_plan(tmp_path, None, [])
    assert plan.sae.k == 8
    assert plan.overrides == {"policy.big": {"k": 32}}
    assert plan.variants == {"slow": {}}
    assert [coder.sae for coder in plan.transcoders] == [{"k": 2}]
    (tmp_path / "other.yaml").write_text("sae: {k: 4, lr_tracking: false}\n")
    with pytest.raises(ConfigError, match=r"(?s)option of an earlier version.*remove the line"):
        read_plan(tmp_path, str(tmp_path / "other.yaml"), [])


def test_a_sink_that_trains_saes_is_known_by_its_capability(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text(RUN.replace("kind: sae_trainer\n", "kind: mine\n"))
    assert read_plan(tmp_path, None, []).sae.k != 8, "nobody here knows it"
    trainer = registry("sink").get("sae_trainer", SinkPlugin)
    monkeypatch.setitem(registry("sink")._loaded, "mine", replace(trainer, name="mine"))
    assert read_plan(tmp_path, None, []).sae.k == 8


def test_a_file_may_be_a_plan_or_another_runs_configuration(tmp_path):
    (tmp_path / "plan.yaml").write_text("epochs: 2\nsae: {k: 4}\nstart_from: {'*': old/sae}\n")
    plan = read_plan(tmp_path, str(tmp_path / "plan.yaml"), [])
    assert (plan.epochs, plan.sae.k) == (2, 4)
    assert plan.start_of("anything") == Path("old/sae")
    (tmp_path / "other.yaml").write_text(RUN)
    assert read_plan(tmp_path, str(tmp_path / "other.yaml"), []).sae.k == 8


def test_without_any_file_the_defaults_stand(tmp_path):
    plan = read_plan(tmp_path, None, [])
    assert plan.epochs == 4
    assert plan.start_of("x") is None


@pytest.mark.parametrize(
    ("text", "sets", "said"),
    [
        ("epochz: 2\n", [], r"plan.yaml:1:1: epochz: unknown key.*valid:.*epochs"),
        ("epochs: 0\n", [], r"plan.yaml:1:9: epochs: .*greater than or equal to 1"),
        ("sae: {k: many}\n", [], r"plan.yaml:1:10: sae.k: "),
        ("epochs: 1\n", ["sae.architecture=none"], r"--set .*one of the valid words.*topk"),
        ("overrides: {h: {k: 0}}\n", [], "plan.yaml"),
    ],
)
def test_a_mistake_is_reported_at_its_place(tmp_path, text, sets, said):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_plan(tmp_path, str(tmp_path / "plan.yaml"), sets)


def test_variants_and_transcoders_are_jobs_of_their_own(tmp_path):
    (tmp_path / "plan.yaml").write_text(
        "variants: {small: {k: 4}, wide: {k: 16}}\ntranscoders: [{input: a, output: b}]\n"
        "crosscoders: [{hooks: [b, a]}]\n"
    )
    plan = read_plan(tmp_path, str(tmp_path / "plan.yaml"), ["hooks=a"])
    jobs = plan.jobs(["a", "b"])
    assert [(job.label, job.hook, job.others) for job in jobs] == [
        ("a#small", "a", ()),
        ("a#wide", "a", ()),
        ("a->b", "a", ("b",)),
        ("b+a", "b", ("a",)),
    ]
    assert jobs[2].config.architecture == "skip_transcoder"
    begun = plan.model_copy(update={"start_from": {"*": "somewhere"}})
    assert [begun.start_of(job.label) is None for job in jobs] == [False, False, True, True]
    named = plan.model_copy(update={"start_from": {"a->b": "somewhere"}})
    assert [named.start_of(job.label) is None for job in jobs] == [True, True, False, True]
    with pytest.raises(ValueError, match="skip_transcoder a->b: the archive has no b; it has a"):
        plan.jobs(["a"])
    with pytest.raises(ValueError, match="match none of the archive's: c"):
        read_plan(tmp_path, None, ["hooks=x"]).jobs(["c"])


def test_no_sae_is_trained_on_token_ids_unless_they_are_named(tmp_path):
    plan = read_plan(tmp_path, None, [])
    assert [job.hook for job in plan.jobs(["layers.14", "tokens"])] == ["layers.14"]
    named = read_plan(tmp_path, None, ["hooks=[tokens]"])
    assert [job.hook for job in named.jobs(["layers.14", "tokens"])] == ["tokens"]
