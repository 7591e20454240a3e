"""`asys-run evaluate`: a run's SAEs, or one alone, in the model that they are of; what cannot be says why."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from asys_bench.cli import run as command
from asys_bench.rundir.evaluation import (
    EvaluationError,
    of_several_hooks,
    run_model,
    run_targets,
)
from asys_bench.rundir.evaluation_documents import read_evaluations, write_evaluation

sys.path.insert(0, str(Path(__file__).parent))
from tiny_lm import LAYER, options, write_model, write_run, write_sae

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers deprecates its own


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder)
    return folder


def host(tiny, **more):
    return {"kind": "transformers", "options": {"transformers": options(tiny, **more)}}


def evaluate(capsys, *words):
    """(exit code, what it said)."""
    code = command.main(["evaluate", *map(str, words)])
    return code, " ".join(capsys.readouterr().out.split())


@pytest.mark.rest
def test_a_runs_saes_are_put_back_into_its_model(tiny, tmp_path, capsys):
    run_dir = write_run(tmp_path, host(tiny, auto_class="AutoModelForCausalLM"))
    code, said = evaluate(capsys, run_dir, "--tokens", 400)
    assert code == 0, said
    for words in ("CE with the SAE", "CE with zeros", "CE recovered", "KL, p95", "L2 ratio",
                  "FVU at position 8-15"):  # fmt: skip
        assert words in said
    (document,) = read_evaluations(run_dir)
    assert document["sae"] == document["hook"] == LAYER
    assert document["language"]["tokens"] >= 400
    assert document["rows"]["rows"] == document["language"]["tokens"]
    assert len(document["rows"]["fvu_by_position"]) == 16
    assert document["language"]["replaced"]["spliced"]["kl_mean"] > 0
    assert document["steps"] > 0


def test_evaluations_are_of_the_same_tokens_each_time_and_touch_no_generator(
    tiny, tmp_path, capsys
):
    run_dir = write_run(tmp_path, host(tiny, auto_class="AutoModelForCausalLM"))
    state = torch.random.get_rng_state()
    found = []
    for _ in range(2):
        assert evaluate(capsys, run_dir, "--tokens", 400)[0] == 0
        found.append(read_evaluations(run_dir)[0])
    assert found[0]["language"] == found[1]["language"]
    assert found[0]["rows"] == found[1]["rows"]
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_run_that_only_encoded_is_evaluated_with_the_head_that_its_model_has(
    tiny, tmp_path, capsys
):
    run_dir = write_run(tmp_path, host(tiny), hook="h.1")
    code, said = evaluate(capsys, run_dir, "--tokens", 400)
    assert code == 0, said
    encoded = read_evaluations(run_dir)[0]["language"]
    named = write_sae(tmp_path / "named")
    arguments = ("--model", tiny / "model", "--text", f"{tiny}/*.txt", "--tokens", 400)
    out = tmp_path / "found.json"
    code, said = evaluate(capsys, named, *arguments, "--out", out)
    assert code == 0, said
    (alone,) = json.loads(out.read_text())
    assert alone["hook"] == LAYER, "what the checkpoint says of itself"
    assert encoded["replaced"]["spliced"]["kl_mean"] > 0
    assert encoded["ce"] == pytest.approx(alone["language"]["ce"], rel=0.2)


def test_a_model_that_predicts_no_tokens_gets_figures_of_its_rows_alone(tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    write_model(tmp_path)
    config = transformers.BertConfig(
        vocab_size=52, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(tmp_path / "model")
    run_dir = write_run(tmp_path, host(tmp_path), hook="encoder.layer.1")
    code, said = evaluate(capsys, run_dir, "--tokens", 400)
    assert code == 0, said
    (document,) = read_evaluations(run_dir)
    assert document["language"] is None
    assert document["rows"]["fvu"] > 0
    assert "CE" not in said.replace("CE,", "CE")
    assert "cosine" in said


def test_a_host_that_trained_is_evaluated_with_the_weights_that_it_kept(tiny, tmp_path, capsys):
    from asys_bench.hosts.transformers import plugin

    run_dir = write_run(tmp_path, host(tiny, task="train"))
    code, said = evaluate(capsys, run_dir)
    assert code == 2
    assert "kept no weights; set host.keep_weights: true" in said
    built = plugin.build(plugin.options.model_validate(options(tiny, task="train")), 0)
    model = built.build()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    kept = run_dir / "host" / "step_000000012"
    kept.mkdir(parents=True)
    built.save_weights(kept)
    (kept / "weights.json").write_text(json.dumps({"schema": "asys.weights/1", "host_step": 12}))
    code, said = evaluate(capsys, run_dir, "--tokens", 400)
    assert code == 0, said
    (document,) = read_evaluations(run_dir)
    assert document["weights"]["host_step"] == 12
    assert document["language"]["ce"] == pytest.approx(torch.tensor(52.0).log().item(), rel=1e-5)
    assert document["language"]["replaced"]["ce_recovered"] is None, "zeros do no harm"


def test_weights_that_a_host_replaces_while_they_are_loaded_are_taken_anew(tiny, tmp_path):
    import shutil

    from asys_bench.hosts.transformers import plugin

    run_dir = write_run(tmp_path, host(tiny, task="train"))
    built = plugin.build(plugin.options.model_validate(options(tiny, task="train")), 0)
    built.build()

    def keep(step):
        folder = run_dir / "host" / f"step_{step:09d}"
        folder.mkdir(parents=True)
        built.save_weights(folder)
        (folder / "weights.json").write_text(json.dumps({"host_step": step}))
        return folder

    first, real, asked = keep(1), plugin.evaluated, []

    def evaluated(given, seed, weights):
        asked.append(weights.name)
        if len(asked) == 1:
            keep(2)
            shutil.rmtree(first)
        return real(given, seed, weights)

    object.__setattr__(plugin, "evaluated", evaluated)
    try:
        _, weights = run_model(run_dir, {})
    finally:
        object.__setattr__(plugin, "evaluated", real)
    assert asked == ["step_000000001", "step_000000002"]
    assert weights.about["host_step"] == 2


def test_an_agent_plays_with_its_sae(tmp_path, capsys):
    pytest.importorskip("stable_baselines3")
    from asys_bench.hosts.ppo import plugin

    hook = "mlp_extractor.policy_net"
    given = {"n_envs": 2, "n_steps": 16, "batch_size": 32}
    run_dir = write_run(tmp_path, {"kind": "ppo", "options": {"ppo": given}}, hook)
    store = run_dir / "sae" / hook
    for path in sorted(store.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    write_sae(store, hook, width=64)
    built = plugin.build(plugin.options.model_validate(given), 0)
    policy = built.build()
    kept = run_dir / "host" / "step_000000064"
    kept.mkdir(parents=True)
    built.save_weights(kept)
    (kept / "weights.json").write_text(json.dumps({"schema": "asys.weights/1", "host_step": 64}))
    built.close()
    evaluated, weights = run_model(run_dir, {})
    assert weights.about["host_step"] == 64
    for name, tensor in policy.state_dict().items():
        assert torch.equal(evaluated.model.state_dict()[name], tensor), name
    code, said = evaluate(capsys, run_dir, "--episodes", 2)
    assert code == 0, said
    assert "return recovered" in said
    (document,) = read_evaluations(run_dir)
    assert document["policy"]["episodes"] == 2
    assert document["policy"]["states"] == document["rows"]["rows"]
    assert document["policy"]["replaced"]["spliced"]["kl_mean"] > 0
    value = document["policy"]["replaced"]["spliced"]
    assert value["value_rmse"] == 0.0, "the value network does not see the policy's layers"


def test_what_cannot_be_evaluated_says_why_and_what_to_do(tiny, tmp_path, capsys, monkeypatch):
    run_dir = write_run(tmp_path, {"kind": "synthetic"})
    assert "known to the host alone" in evaluate(capsys, run_dir)[1]
    assert "no SAE 'other' has a checkpoint" in evaluate(capsys, run_dir, "--sae", "other")[1]
    sae = write_sae(tmp_path / "sae")
    assert "name the model that it is of with --model" in evaluate(capsys, sae)[1]
    assert "neither a run nor an SAE" in evaluate(capsys, tiny)[1]
    monkeypatch.chdir(tmp_path)
    assert "runs/ has no runs" in evaluate(capsys)[1]
    given = ("--model", tiny / "model", "--text", f"{tiny}/*.txt")
    code, said = evaluate(capsys, sae, *given, "--hook", "transformer.h.11")
    assert code == 2
    assert "no module 'transformer.h.11'; did you mean transformer.h.1," in said
    code, said = evaluate(capsys, sae, *given, "--hook", "lm_head")
    assert "rows are 52 wide, and the SAE takes 32" in said
    code, said = evaluate(capsys, sae, "--model", tiny, "--text", f"{tiny}/*.txt")
    assert code == 2
    assert "host.options.transformers.model" in said


def test_a_gradients_sae_is_not_replaced_in_a_forward_pass(tmp_path):
    run_dir = write_run(tmp_path, {"kind": "synthetic"})
    document = json.loads((run_dir / "run.json").read_text())
    document["streams"][0]["kind"] = "gradient"
    (run_dir / "run.json").write_text(json.dumps(document))
    with pytest.raises(EvaluationError, match="gradient is no part of a forward pass"):
        run_targets(run_dir)


def test_an_sae_of_several_hooks_is_left_out_and_said(tiny, tmp_path, capsys):
    run_dir = write_run(tmp_path, host(tiny, auto_class="AutoModelForCausalLM"))
    shutil.copytree(run_dir / "sae" / LAYER, run_dir / "sae" / "both")
    assert of_several_hooks(run_dir) == ["both"]
    code, said = evaluate(capsys, run_dir, "--tokens", 100)
    assert code == 0, said
    assert "both is an SAE of several hooks (a transcoder or crosscoder)" in said
    code, said = evaluate(capsys, run_dir, "--sae", "both")
    assert code == 2
    assert "'both' is an SAE of several hooks" in said


def test_evaluations_of_strangers_are_passed_over(tmp_path):
    run_dir = write_run(tmp_path, {"kind": "synthetic"})
    good = {
        "schema": "asys.evaluation/1", "sae": "a/b", "checkpoint": "x/step_000000001",
        "checkpoint_unix_ns": 7, "rows": {},
    }  # fmt: skip
    path = write_evaluation(run_dir, good)
    assert path.stat().st_mode & 0o777 == 0o600
    for index, bad in enumerate(
        ("[]", "{", '{"schema": "other"}', json.dumps(good | {"checkpoint_unix_ns": 1 << 80}),
         json.dumps(good | {"rows": 5}))
    ):  # fmt: skip
        path.with_name(f"bad{index}.json").write_text(bad)
    (run_dir / "evaluation" / "file").touch()
    assert read_evaluations(run_dir) == [good]


def test_a_checkpoint_that_is_deleted_while_the_model_is_loaded_was_read_before(
    tiny, tmp_path, capsys, monkeypatch
):
    """A trainer keeps few checkpoints, and a model takes a minute."""
    import shutil

    from asys_bench.rundir import evaluation

    run_dir = write_run(tmp_path, host(tiny, auto_class="AutoModelForCausalLM"))
    real = evaluation.run_model

    def slow(*given):
        shutil.rmtree(run_dir / "sae")
        return real(*given)

    monkeypatch.setattr(evaluation, "run_model", slow)
    code, said = evaluate(capsys, run_dir, "--tokens", 400)
    assert code == 0, said
    assert len(read_evaluations(run_dir)) == 1


def test_an_sae_of_several_hooks_is_refused(tmp_path):
    from asys_bench.rundir.evaluation import Target, read_targets
    from asys_bench.sae import SAEConfig, SAETrainer

    trainer = SAETrainer(
        SAEConfig(architecture="skip_transcoder", d_sae=64, k=4, batch_rows=64, buffer_rows=256),
        hook_name=LAYER,
    )
    rows_ND = torch.randn(128, 32, generator=torch.Generator().manual_seed(0))
    trainer.ingest(rows_ND, (0, 0, 0), target_ND=rows_ND)
    folder = trainer.save(tmp_path / "sae")
    with pytest.raises(EvaluationError, match="a skip_transcoder is of several hooks"):
        read_targets([Target(LAYER, LAYER, folder, LAYER)])
