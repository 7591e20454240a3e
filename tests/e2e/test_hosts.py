"""Hosts end to end: a script as it is, a function, and a Hugging Face model over text."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import asys_bench
from asys_bench.rundir.token_rows import token_rows
from asys_bench.rundir.top_tokens import top_tokens

PATIENCE_S = 240.0
pytestmark = pytest.mark.timeout(600)
SINKS = """\
    run: {drain_timeout_s: 60}
    sinks:
      trainer:
        kind: sae_trainer
        options: {final_train_s: 0.5, sae: {k: 4, batch_rows: 64, buffer_rows: 512}}
      archive: {kind: archiver}
    monitors: {log: {kind: logging_csv}}
"""
TRAIN = """\
    import sys
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters())
    model.train()
    for _ in range(int(sys.argv[1])):
        loss = model(torch.randn(32, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print("loss", loss.item())
"""


def python(*words, cwd, **environment):
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
    )


def write(path, text):
    path.write_text(textwrap.dedent(text))
    return path.name


def losses(done):
    return [line for line in done.stdout.splitlines() if line.startswith("loss")]


def test_a_script_is_run_unchanged_and_computes_the_same(tmp_path):
    script = write(tmp_path / "train.py", TRAIN)
    hooks = 'hooks: [{match: "0"}]\nhost: {kind: script}\n'
    config = write(tmp_path / "c.yaml", hooks + textwrap.dedent(SINKS))
    plain = python(script, "40", cwd=tmp_path)
    words = ("-m", "asys_bench", "run", "-c", config, "--", script, "40")
    observed = python(*words, cwd=tmp_path, PYTHONUNBUFFERED="1")  # print writes a line in pieces
    assert observed.returncode == 0, observed.stderr + observed.stdout
    assert losses(observed) == losses(plain)
    assert "workers 2/2" in observed.stderr
    assert "workers 2/2" not in observed.stdout
    assert len(losses(plain)) == 40
    run = asys_bench.open_run(tmp_path / "runs")
    assert run.summary["bus"]["produced"] == 40
    assert run.summary["host"]["steps"] == 40
    assert len(run.archive.numpy("0", ("row",))["row"]) == 40 * 32


@pytest.mark.rest
def test_sigterm_ends_a_script_in_order_with_its_summary(tmp_path):
    script = write(tmp_path / "train.py", TRAIN)
    hooks = 'hooks: [{match: "0"}]\nhost: {kind: script}\n'
    config = write(tmp_path / "c.yaml", hooks + textwrap.dedent(SINKS))
    endless = str(10**9)
    command = [sys.executable, "-u", "-m", "asys_bench", "run", "-c", config, "--", script, endless]
    with (tmp_path / "out.txt").open("w+") as out:
        running = subprocess.Popen(command, cwd=tmp_path, stdout=out, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while "loss" not in (said := (tmp_path / "out.txt").read_text()):
                assert running.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.1)
            running.terminate()
            assert running.wait(PATIENCE_S) == 143, (tmp_path / "out.txt").read_text()
        finally:
            running.kill()
            running.wait()
    summary = asys_bench.open_run(tmp_path / "runs").summary
    assert summary["outcome"] == "interrupted"
    assert summary["bus"]["produced"] > 0
    assert summary["balanced"]


@pytest.mark.rest
def test_a_script_without_a_fitting_model_says_why_and_exits_1(tmp_path):
    script = write(tmp_path / "train.py", TRAIN)
    hooks = "hooks: [{match: layers.9}]\nhost: {kind: script}\n"
    config = write(tmp_path / "c.yaml", hooks + textwrap.dedent(SINKS))
    done = python("-m", "asys_bench", "run", "-c", config, "--", script, "3", cwd=tmp_path)
    assert done.returncode == 1
    text = " ".join((done.stderr + done.stdout).split())
    assert "none of the modules that it trained is the one that is meant" in text
    assert "'layers.9' matches no module of Sequential" in text


def test_a_function_is_a_host(tmp_path):
    write(
        tmp_path / "mine.py",
        """\
        import torch

        def build(seed, width):
            model = torch.nn.Sequential(torch.nn.Linear(width, 16))

            def train(clock):
                for _ in range(25):
                    model(torch.randn(8, width))
                    clock.step()

            return model, train
        """,
    )
    config = write(
        tmp_path / "c.yaml",
        'hooks: [{match: "0"}]\n'
        "host: {kind: callable, options: {callable: {function: mine:build, kwargs: {width: 8}}}}\n"
        + textwrap.dedent(SINKS),
    )
    done = python("-m", "asys_bench", "run", "-c", config, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr + done.stdout
    assert asys_bench.open_run(tmp_path / "runs").summary["bus"]["produced"] == 25


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A GPT-2 of two layers with a vocabulary of words, and a text of uneven length."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tiny")
    words = [f"w{i}" for i in range(50)]
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {word: i + 2 for i, word in enumerate(words)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]"
    )
    tokenizer.save_pretrained(folder / "model")
    config = transformers.GPT2Config(
        vocab_size=len(vocabulary), n_positions=32, n_embd=32, n_layer=2, n_head=2
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "model")
    (folder / "a.txt").write_text(" ".join(words[i % 50] for i in range(131)))
    return folder


def run_tiny(tiny, folder, task, hook):
    options = f"model: {tiny / 'model'}, texts: ['{tiny}/*.txt'], task: {task}, block_tokens: 16"
    more = "batch_size: 4, total_tokens: 1500, prompt_tokens: 5, new_tokens: 6"
    config = write(
        folder / "c.yaml",
        f"hooks: [{{match: {hook}}}]\n"
        f"host: {{kind: transformers, options: {{transformers: {{{options}, {more}}}}}}}\n"
        + textwrap.dedent(SINKS),
    )
    done = python("-m", "asys_bench", "run", "-c", config, cwd=folder)
    assert done.returncode == 0, done.stderr + done.stdout
    return asys_bench.open_run(folder / "runs")


@pytest.mark.parametrize(
    ("task", "hook"),
    [
        ("train", "transformer.h.1"),
        pytest.param("encode", "h.1", marks=pytest.mark.rest),
        pytest.param("generate", "transformer.h.1", marks=pytest.mark.rest),
    ],
)
def test_text_becomes_rows_with_tokens_and_no_padding(tiny, tmp_path, task, hook):
    run = run_tiny(tiny, tmp_path, task, hook)
    assert run.hooks == [hook], "the side stream is no hook"
    assert set(run.saes()) == {hook}, "and nothing is trained on it"
    archived = len(run.archive.numpy(hook, ("row",))["row"])
    parts = list(token_rows(run.archive, hook))
    ids = np.concatenate([part.token_id_N for part in parts])
    assert len(ids) == archived > 500, "every row has its token"
    assert 0 not in ids.tolist(), "padding"
    joined = run.archive.torch([hook, "tokens"], batch_rows=100)
    batches = list(joined)
    assert joined.left_out == 0
    assert np.array_equal(np.concatenate([batch["tokens"][:, 0] for batch in batches]), ids)
    values_ND = np.concatenate([part.values_ND for part in parts])
    assert np.array_equal(np.concatenate([batch[hook] for batch in batches]), values_ND)
    positions = np.concatenate([part.position_N for part in parts])
    assert positions.min() == 0
    assert positions.max() == (9 if task == "generate" else 15)
    texts = {run.vocabulary[int(i)] for i in ids}
    assert texts <= {f"w{i}" for i in range(50)} | {"[PAD]", "[UNK]"}
    found = top_tokens(run, hook, tokens=3, most_features=5)
    assert found
    assert all(top.activation > 0 for feature in found for top in feature.top)
    if task == "encode":
        top = found[0].top[0]
        number = int(top.text[1:])
        assert [int(word[1:]) for word in top.after] == [
            (number + 1 + i) % 50 for i in range(len(top.after))
        ], "neighbours are those of the text"
