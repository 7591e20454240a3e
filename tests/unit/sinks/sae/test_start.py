"""`start_from`: a live training goes on from an SAE that exists, and what does not fit is said early."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

import pytest
import torch

from asys_bench.config import ConfigError, load_config
from asys_bench.sae.exchange import FORMATS, ExchangeError, export
from asys_bench.sinks.sae import start as start_module

from .conftest import rig_in

WIDTH = 8


def truth(seed: int, count: int = 64) -> torch.Tensor:
    """Rows of a few directions, which an SAE learns well."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.relu(torch.randn(count, 6, generator=generator) - 0.5)
    directions = torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(99))
    return codes @ directions * 5 + 20


def feed(rig, worker, first, last, hook=1):
    for seq in range(first, last):
        rig.feed(worker, rig.packet(truth(seq), seq, hook))
        worker.idle()


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    """A folder like a run's, with an SAE of layer.0 that was trained well."""
    folder = tmp_path_factory.mktemp("earlier")
    with rig_in(folder) as rig:
        worker = rig.start()
        feed(rig, worker, 0, 200)
        worker.close()
    return folder


@pytest.fixture
def known(earlier, tmp_path) -> Path:
    """A test's own copy of it."""
    return shutil.copytree(earlier, tmp_path / "earlier", symlinks=True)


def fvu_at_once(rig, **options) -> float:
    """Held-out FVU of a worker that has trained for only a step or so."""
    worker = rig.start(final_train_s=0.0, **options)
    feed(rig, worker, 500, 504)
    worker.close()
    return rig.figure("sae_fvu", "layer.0")


@pytest.mark.rest
@pytest.mark.parametrize("name", FORMATS)
def test_a_live_training_goes_on_from_what_our_export_wrote(rig, known, tmp_path, name):
    source = known / "sae" / "layer.0" / "latest"
    folder = export(source, FORMATS[name], tmp_path / "out").folder
    sae = {"held_out_fraction": 0.4, "min_buffer_fill_ratio": 0.2, "passes": 0.5, "d_sae": None}
    begun = fvu_at_once(rig, sae=sae, start_from={"path": str(folder), "format": name})
    rig.run_dir = tmp_path / "anew"
    anew = fvu_at_once(rig, sae=sae | {"d_sae": 32})
    assert begun < 0.1 < anew


@pytest.mark.rest
def test_each_hook_of_an_earlier_run_goes_on_from_its_own(rig, known, caplog):
    worker = rig.start(start_from=str(known))
    feed(rig, worker, 500, 510)
    rig.feed(worker, rig.packet(truth(0), 0, 2))  # layer.1 has none there
    worker.idle()
    worker.close()
    assert rig.figure("sae_fvu", "layer.0") < 0.1
    assert rig.figure("sae_rejected_packets", "layer.1") == 1
    assert "no SAE is there, and none of 'layer.1' among ['layer.0']" in caplog.text


def test_a_restarted_worker_resumes_instead_of_beginning_again(rig, known):
    start = {"layer.*": str(known)}
    worker = rig.start(start_from=start)
    feed(rig, worker, 500, 540)
    worker.close()
    steps = rig.figure("sae_steps", "layer.0")
    again = rig.start(incarnation=1, start_from=start)
    feed(rig, again, 540, 560)
    again.close()
    assert rig.figure("sae_steps", "layer.0") > steps > 1


def test_rows_of_another_width_stop_that_sae_alone(rig, known, caplog):
    worker = rig.start(start_from={"layer.0": str(known)})
    for seq in range(8):
        rig.feed(worker, rig.packet(rig.rows(seq, width=5), seq, 1), rig.packet(truth(seq), seq, 2))
        worker.idle()
    worker.close()
    assert "layer.0: not trained any more" in caplog.text
    assert "8 -> 32 -> 8, the trainer is configured for topk with 5 -> 32 -> 5" in caplog.text
    assert rig.figure("sae_steps", "layer.1") > 0
    assert rig.figure("sae_steps", "layer.0") == 0


def written(tmp_path, options, sink, hooks="'*'"):
    """A configuration with this sink: its path and its text."""
    text = f"""\
        extends: profile_consumer.yaml
        hooks: [{{match: layer.*}}]
        sinks:
          archive: null
          trainer: null
          mine:
            hooks: [{hooks}]
        """
    body = textwrap.dedent(text) + textwrap.indent(
        "\n".join(sink.split(", ")) + "\noptions:\n" + textwrap.indent(options, "  "), " " * 4
    )
    (tmp_path / "c.yaml").write_text(body)
    return tmp_path / "c.yaml", body


def checked(tmp_path, options, sink="kind: sae_trainer", hooks="'*'"):
    """The problems of a configuration with this sink, as text."""
    path, body = written(tmp_path, options, sink, hooks)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    lines = body.splitlines()
    return [(lines[(problem.line or 1) - 1].strip(), problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("options", "line", "message", "fix"),
    [
        ("start_from: {path: SAE/no}", "start_from:", "no such folder", "name the folder"),
        (
            "sae: {architecture: gated}\nstart_from: {path: SAE}",
            "start_from:",
            "it is topk, and sae.architecture is gated",
            "set sae.architecture: topk",
        ),
        (
            "sae: {d_sae: 64}\nstart_from:\n  layer.0: SAE",
            "layer.0:",
            "it has 32 features, and sae.d_sae asks for 64",
            "set sae.d_sae: 32",
        ),
        (
            "sae: {expansion_factor: 2}\nstart_from:\n  layer.0: {path: SAE}",
            "layer.0:",
            "sae.expansion_factor asks for 16",
            "set sae.d_sae: 32",
        ),
        ("sae: {k: 40}\nstart_from: SAE", "start_from:", "k 40 is more than", "at most 32"),
        (
            "start_from: {path: SAE, format: sparsify}",
            "start_from:",
            "sae.safetensors",
            "name another one",
        ),
        ("start_from: RUN", "start_from:", "no SAE is there", "name the folder"),
    ],
)
def test_a_misfit_is_reported_with_its_line_before_anything_starts(
    known, tmp_path, options, line, message, fix
):
    sae = str(known / "sae" / "layer.0" / "latest")
    text = options.replace("SAE", sae).replace("RUN", str(known / "sae" / "layer.0"))
    if "RUN" in options:
        for file in (known / "sae" / "layer.0").glob("*/sae_weights.safetensors"):
            file.unlink()
    ((found, problem),) = checked(tmp_path, text)
    assert found.startswith(line)
    assert message in str(problem)
    assert fix in problem.fix


def test_a_run_is_taken_by_a_glob_and_looked_into_when_hooks_are_known(known, tmp_path):
    (tmp_path / "c.yaml").write_text(
        "extends: profile_consumer.yaml\n"
        f"sinks: {{trainer: {{options: {{start_from: {{path: {known}}}}}}}}}\n"
    )
    options = load_config(tmp_path / "c.yaml").config.sinks["trainer"].options
    assert options["start_from"] == {"*": {"path": str(known), "format": "auto"}}


def test_a_transcoder_whose_hooks_may_be_parted_is_refused_with_its_line(tmp_path):
    options = "transcoders: [{input: layer.0, output: layer.1}]"
    ((found, problem),) = checked(tmp_path, options, sink="kind: sae_trainer, workers: 2")
    assert found == "workers: 2"
    assert "the hooks of layer.0->layer.1 may be with different ones" in str(problem)
    assert "one worker" in problem.fix
    ((found, problem),) = checked(tmp_path, options, hooks="layer.0")
    assert found == options
    assert problem.path == "sinks.mine.options.transcoders[0].output"
    assert "does not get that hook" in str(problem)


def test_a_crosscoders_hook_that_the_sink_does_not_get_is_refused_at_its_place(tmp_path):
    options = "crosscoders: [{hooks: [layer.0, layer.1]}]"
    ((_, problem),) = checked(tmp_path, options, hooks="layer.0")
    assert problem.path == "sinks.mine.options.crosscoders[0].hooks[1]"
    ((found, problem),) = checked(tmp_path, options, sink="kind: sae_trainer, workers: 2")
    assert found == "workers: 2"
    assert "the hooks of layer.0+layer.1 may be with different ones" in str(problem)


def test_a_watched_sae_that_is_not_there_is_refused_with_its_line(tmp_path):
    ((found, problem),) = checked(tmp_path, "saes:\n  '*': nowhere", sink="kind: sae_watch")
    assert found == "'*': nowhere"
    assert "no such folder" in str(problem)


SINKS = {
    "sae_watch": "saes:\n  '*': 'PLACE'",
    "probe": "saes:\n  '*': 'PLACE'",
    "feature_index": "saes:\n  '*': 'PLACE'",
    "alarm": "watch:\n- sae: 'PLACE'",
    "sae_trainer": "start_from:\n  '*': 'PLACE'",
}
"""Each that takes an SAE's place, with the options that name one."""


class Hub:
    """In the place of the hub: `asked` is what it was asked for."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []

    def __call__(self, place):
        self.asked.append(place)
        if place.endswith("/none"):
            raise ExchangeError(place, "cannot be had: Timeout", "check the name")
        return self.folder


@pytest.fixture
def hub(known, monkeypatch):
    made = Hub(known)
    monkeypatch.setattr(start_module, "from_hub", made)
    return made


def placed(options, place):
    return options.replace("PLACE", place)


@pytest.mark.parametrize("kind", SINKS)
def test_each_sink_takes_a_place_on_the_hub(hub, tmp_path, kind):
    path, _ = written(tmp_path, placed(SINKS[kind], "hf://org/saes"), f"kind: {kind}")
    assert load_config(path).config.sinks["mine"].kind == kind
    assert set(hub.asked) == {"hf://org/saes"}


@pytest.mark.parametrize("kind", SINKS)
def test_a_place_that_the_hub_does_not_give_is_asked_for_once_and_refused_with_its_line(
    hub, tmp_path, kind
):
    options = placed(SINKS[kind], "hf://org/none")
    ((found, problem),) = checked(tmp_path, options, sink=f"kind: {kind}")
    assert "hf://org/none" in found
    assert "cannot be had: Timeout" in str(problem)
    assert problem.fix == "check the name"
    assert hub.asked == ["hf://org/none"]
    if kind != "sae_trainer":
        assert str(problem).count("hf://org/none") == 1
        assert str(problem).count("check the name") == 1


@pytest.mark.parametrize("kind", ["sae_watch", "probe", "feature_index"])
def test_a_place_without_letters_is_no_folder(tmp_path, kind):
    ((found, problem),) = checked(tmp_path, placed(SINKS[kind], ""), sink=f"kind: {kind}")
    assert found == "'*': ''"
    assert "no such folder" in str(problem)


@pytest.mark.parametrize(("own", "left_out"), [("auto", 0), ("skip", 50)])
def test_an_sae_that_leaves_no_rows_alone_goes_on_so_unless_it_is_asked_for(
    rig, known, own, left_out
):
    rig.names = (*rig.names, "tokens")
    worker = rig.start(start_from=str(known), sae={"outliers": own})
    for seq in range(60):
        rows = truth(seq)
        rows[0] *= 100
        rig.feed(worker, rig.packet(rows, 500 + seq))
        worker.idle()
    worker.close()
    assert rig.figure("sae_outlier_rows", "layer.0") >= left_out
    assert (rig.figure("sae_outlier_rows", "layer.0") == 0) == (own == "auto")
