"""A typed text's features are those of running the whole model, by whichever class it is loaded."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from asys_bench.eye.typed import reading as module
from asys_bench.eye.typed.reading import CancelledTypingError, TextReader, TypedError
from asys_bench.eye.typed.same_weights import compare
from asys_bench.sae import SAEConfig, build_sae, load_sae, save_sae
from asys_bench.sae.architectures.scaling import InputScaling
from asys_bench.sae.checkpoint.checkpoint_store import CheckpointStore

TINY = runpy.run_path(str(Path(__file__).parents[2] / "rundir" / "tiny_lm.py"))
TEXT = "w1 w2 w7 w7 w3"
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers deprecates its own


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny")
    TINY["write_model"](folder)
    return folder


def checkpoint(run_dir: Path, hook: str, step: int, width: int = TINY["WIDTH"]) -> None:
    """An SAE of which two features fire on every row."""
    sae = build_sae(SAEConfig(architecture="topk", d_sae=64, k=2, seed=step), width)
    CheckpointStore(run_dir / "sae" / hook).write(
        step, lambda into: save_sae(into, sae, InputScaling.identity(width), {})
    )


def run(tiny: Path, into: Path, hook: str = "transformer.h.0", **more: Any) -> Path:
    told = TINY["options"](tiny, **more)
    run_dir: Path = TINY["write_run"](
        into, {"kind": "transformers", "options": {"transformers": told}}, hook
    )
    checkpoint(run_dir, hook, 40)
    return run_dir


def reader(run_dir: Path, tiny: Path) -> TextReader:
    return TextReader(run_dir, str(tiny / "model"), None)


def never() -> bool:
    return False


def truth(run_dir: Path, tiny: Path, layer: int) -> torch.Tensor:
    """[T, F]: every layer computed, and the rows taken from the list of hidden states."""
    import transformers

    model = transformers.AutoModel.from_pretrained(tiny / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny / "model")
    (checkpoint,) = run_dir.glob("sae/*/latest")
    sae, _ = load_sae(checkpoint)
    kept: list[torch.Tensor] = []
    model.h[layer].register_forward_hook(
        lambda _, __, out: kept.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    with torch.no_grad():
        model(torch.tensor([tokenizer(TEXT)["input_ids"]]))
        return sae.encode(kept[0][0])


@pytest.mark.parametrize(
    ("hook", "more"),
    [
        ("transformer.h.0", {"auto_class": "AutoModelForCausalLM"}),
        ("h.1", {}),
        ("h.0", {"task": "train"}),
    ],
)
def test_features_are_those_of_the_whole_model(tiny, tmp_path, hook, more) -> None:
    run_dir = run(tiny, tmp_path, hook, **more)
    found = reader(run_dir, tiny).features(hook, TEXT, never)
    acts_TF = truth(run_dir, tiny, int(hook[-1]))
    assert [token.strip() for token in found["tokens"]] == TEXT.split()
    assert (found["cut"], found["checkpoint"]) == (False, "step_000000040")
    firing = (acts_TF.max(0).values > 0).nonzero()[:, 0].tolist()
    assert sorted(one["feature"] for one in found["features"]) == firing
    values = [one["activation"] for one in found["features"]]
    assert values == sorted(values, reverse=True)
    for one in found["features"]:
        assert one["levels"] == pytest.approx(
            acts_TF[:, one["feature"]].tolist(), rel=1e-3, abs=1e-5
        )


def test_options_of_a_kind_that_the_runs_host_is_not_are_not_taken(tiny, tmp_path) -> None:
    told = TINY["options"](tiny, auto_class="NoSuchClass", dtype="float16")
    host = {"kind": "script", "options": {"transformers": told, "script": {}}}
    run_dir = TINY["write_run"](tmp_path, host, "h.0")
    checkpoint(run_dir, "h.0", 40)
    made = reader(run_dir, tiny)
    assert made._model.dtype == torch.float32
    assert made.features("h.0", TEXT, never)["features"]


def test_what_comes_after_the_hooked_module_is_not_computed_and_no_hook_is_left(
    tiny, tmp_path
) -> None:
    run_dir = run(tiny, tmp_path)
    made = reader(run_dir, tiny)
    called: list[str] = []
    for name, one in made._model.named_modules():
        one.register_forward_hook(lambda *_, name=name: called.append(name))
    made.features("transformer.h.0", TEXT, never)
    first = list(called)
    made.features("transformer.h.0", TEXT, never)
    assert called == first * 2
    assert any("h.0" in name for name in first)
    assert not any("h.1" in name or "lm_head" in name for name in first)
    assert torch.nn.modules.module._global_forward_pre_hooks == {}


def test_a_text_that_nobody_waits_for_is_given_up_inside_the_model(tiny, tmp_path) -> None:
    made = reader(run(tiny, tmp_path), tiny)
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > 2

    with pytest.raises(CancelledTypingError):
        made.features("transformer.h.0", TEXT, cancelled)
    assert len(asked) == 3
    assert made.features("transformer.h.0", TEXT, never)["features"]


def test_a_long_text_is_cut_at_what_the_model_takes(tiny, tmp_path, monkeypatch) -> None:
    run_dir = run(tiny, tmp_path)
    long = " ".join([TEXT] * 100)
    found = reader(run_dir, tiny).features("transformer.h.0", long, never)
    assert (len(found["tokens"]), found["cut"]) == (32, True)
    monkeypatch.setattr(module, "MOST_TOKENS", 7)
    assert len(reader(run_dir, tiny).features("transformer.h.0", long, never)["tokens"]) == 7


def test_what_does_not_fit_is_said(tiny, tmp_path) -> None:
    run_dir = run(tiny, tmp_path)
    made = reader(run_dir, tiny)
    with pytest.raises(TypedError, match="no SAE 'nowhere'"):
        made.features("nowhere", TEXT, never)
    with pytest.raises(TypedError, match="no tokens"):
        made.features("transformer.h.0", "  ", never)
    checkpoint(run_dir, "transformer.h.0", 41, width=8)
    with pytest.raises(TypedError, match="takes rows of 8"):
        made.features("transformer.h.0", TEXT, never)
    with pytest.raises(TypedError, match="--model: '/no/such' cannot be loaded"):
        TextReader(run_dir, "/no/such", None)


def test_another_models_modules_are_said(tiny, tmp_path) -> None:
    run_dir = run(tiny, tmp_path, "decoder.block.3")
    with pytest.raises(TypedError, match=r"no module 'decoder\.block\.3'"):
        reader(run_dir, tiny).features("decoder.block.3", TEXT, never)


def test_a_newer_checkpoint_is_taken(tiny, tmp_path) -> None:
    run_dir = run(tiny, tmp_path)
    made = reader(run_dir, tiny)
    made.features("transformer.h.0", TEXT, never)
    checkpoint(run_dir, "transformer.h.0", 41)
    assert made.features("transformer.h.0", TEXT, never)["checkpoint"] == "step_000000041"


# ---- whose weights


def test_the_runs_own_weights_are_known_by_their_folder_and_a_copy_by_its_digest(
    tiny, tmp_path
) -> None:
    run_dir = run(tiny, tmp_path)
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    own = compare(run_dir, config, str(tiny / "model"), None)
    assert own.about.startswith("model (sha256 ")
    assert own.warning == ""
    copy = shutil.copytree(tiny / "model", tmp_path / "copy")
    assert compare(run_dir, config, str(copy), None).warning == ""
    other = tmp_path / "other"
    TINY["write_model"](other, seed=1)
    found = compare(run_dir, config, str(other / "model"), None)
    assert "not the weights of model, which the run observed" in found.warning


def test_of_a_run_that_trained_the_newest_kept_weights_are_the_right_ones(tiny, tmp_path) -> None:
    run_dir = run(tiny, tmp_path, task="train")
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    found = compare(run_dir, config, str(tiny / "model"), None)
    assert "trained its model and kept no weights" in found.warning
    for step in (100, 200):
        kept = run_dir / "host" / f"weights_{step:09d}"
        TINY["write_model"](tmp_path / str(step), seed=step)
        shutil.copytree(tmp_path / str(step) / "model", kept)
        (kept / "weights.json").write_text(f'{{"schema": "asys.weights/1", "host_step": {step}}}')
    newest = compare(run_dir, config, str(run_dir / "host" / "weights_000000200"), None)
    assert newest.about.startswith("weights that the run kept at host step 200, ")
    assert newest.warning == ""
    for folder in (run_dir / "host" / "weights_000000100", tiny / "model"):
        found = compare(run_dir, config, str(folder), None)
        assert "the newest that the run kept (host step 200)" in found.warning


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ({"kind": "script"}, "does not say which weights"), ({}, "does not say which weights"), ({"kind":
        "transformers", "options": {"transformers": {"model": "org/name"}}}, "name, which is not here"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_compared_are_said_to_be_so(tiny, tmp_path, host, why) -> None:
    assert why in compare(tmp_path, {"host": host}, str(tiny / "model"), None).warning
