"""Every archived row carries the token that it is of, in whatever way and thread the model is called.

The hooked rows hold their own token id, so that a label is right or wrong, not likely. One host after
the other, with steps marked and not, in one thread and in three. Cells that cannot exist:

- a script and steps marked: a script that marks steps calls `observe` (that row), and a function that
  is run as a host has a clock to mark them on (`callable`, which has no cell without).
- the `transformers` host, the Trainer, Lightning and stable-baselines3 without marked steps: their own
  loop marks them, always. In three threads: that loop is one thread's, and none of them trains one
  model in several (their data loaders' threads do not call it).
- stable-baselines3 and tokens: its policies take observations. There the row holds the environment
  step that it was observed at, and the tag of the row has to say the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
import torch

import asys_bench
from asys_bench.rundir.token_rows import token_rows

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]
PATIENCE_S = 240.0
CALLS, BATCH, LENGTH, WORDS = 12, 3, 7, 1000
NO_TRAINER = {"trainer": None}
BUS = {"on_full": "block", "block_timeout_s": 50}


class Text(torch.nn.Module):
    """Rows of its embedding hold their token id; 0 is padding."""

    def __init__(self):
        super().__init__()
        self.emb = torch.nn.Embedding(WORDS, 8)
        self.mid = torch.nn.Identity()
        self.head = torch.nn.Linear(8, 1)
        with torch.no_grad():
            self.emb.weight.copy_(torch.arange(float(WORDS))[:, None].expand(-1, 8))
        self.emb.weight.requires_grad_(False)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.mid(self.emb(input_ids)) / WORDS)


def padded(generator, batch=BATCH, length=LENGTH):
    """(ids, mask) of texts of uneven length."""
    ids_BT = torch.randint(1, WORDS, (batch, length), generator=generator)
    mask_BT = torch.ones_like(ids_BT)
    for text in range(batch):
        ids_BT[text, length - text % length :] = 0
        mask_BT[text, length - text % length :] = 0
    return ids_BT, mask_BT


REAL_ROWS = int(padded(torch.Generator())[1].sum())


def call_and_mark(model, mark, seed, calls=CALLS):
    """The host's own loop, in one thread."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(calls):
        model(*padded(generator))
        time.sleep(0.001)  # threads take turns
        if mark is not None:
            mark()


def in_threads(threads, work):
    """`work(seed)` in so many threads at once; in this one if it is one."""
    if threads == 1:
        work(0)
        return
    started = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


def check(run, hook, rows):
    """All `rows` of `hook` are archived, all are labelled, and each with the id that it holds."""
    held = run.archive.numpy(hook, ("values",))["values"][:, 0]
    assert len(held) == rows
    assert (held != 0).all(), "rows of padding"
    parts = list(token_rows(run.archive, hook))
    values = np.concatenate([part.values_ND[:, 0] for part in parts])
    labels = np.concatenate([part.token_id_N for part in parts])
    assert len(labels) == rows, "rows without a label"
    wrong = int((values != labels).sum())
    assert wrong == 0, f"{wrong} of {rows} rows carry the token of another"
    assert sorted(values.tolist()) == sorted(held.tolist())


def run_host(folder, config, *words):
    (folder / "c.yaml").write_text(textwrap.dedent(config))
    done = subprocess.run(
        [sys.executable, "-m", "asys_bench", "run", "-c", "c.yaml", *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=folder,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(folder),
        },
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return asys_bench.open_run(folder / "runs")


CONFIG = """\
hooks: [{match: mid}]
sinks: {archive: {kind: archiver}}
bus: {on_full: block, block_timeout_s: 50}
run: {drain_timeout_s: 60}
"""
LOOP = f"""\
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_token_labels import Text, call_and_mark, in_threads
"""


@pytest.mark.parametrize(
    ("marked", "threads"),
    [
        (False, 3),
        *(
            pytest.param(*case, marks=pytest.mark.rest)
            for case in [(False, 1), (True, 1), (True, 3)]
        ),
    ],
)
def test_observe(tmp_path, marked, threads):
    model = Text()
    with asys_bench.observe(
        model,
        hooks="mid",
        run={"dir": str(tmp_path), "drain_timeout_s": 60},
        sinks=NO_TRAINER,
        bus=BUS,
    ) as observation:
        mark = observation.step if marked else None
        in_threads(threads, lambda seed: call_and_mark(model, mark, seed))
    check(observation.run, "mid", threads * CALLS * REAL_ROWS)
    if threads == 1:  # in several, calls before the first mark are counted as steps
        assert observation.steps == CALLS


@pytest.mark.rest
def test_samples_of_a_live_run_say_which_tokens_their_rows_are(tmp_path):
    model = Text()
    with (
        asys_bench.observe(
            model,
            hooks="mid",
            run={"dir": str(tmp_path), "drain_timeout_s": 60},
            sinks=NO_TRAINER,
            bus=BUS,
        ) as observation,
        asys_bench.subscribe(observation.run) as live,
    ):
        call_and_mark(model, None, 0)
        model(*padded(torch.Generator()))
        samples = [live.get(60.0) for _ in range(2 * CALLS + 2)]
    tokens = {(s.host_step, s.microbatch, s.text): s.tensor for s in samples if s.hook == "tokens"}
    found = [s for s in samples if s.hook == "mid"]
    assert len(tokens) == len(found) == CALLS + 1
    for sample in found:
        ids = tokens[sample.host_step, sample.microbatch, sample.text][:, 0]
        assert sample.tensor[:, 0].int().tolist() == ids.tolist()


@pytest.mark.rest
def test_a_script_as_it_is(tmp_path):
    script = """\
model = Text().train()
call_and_mark(model, None, 100, calls=1)  # the call that it is found by
for threads in (1, 3):
    in_threads(threads, lambda seed: call_and_mark(model, None, seed))
"""
    (tmp_path / "train.py").write_text(LOOP + script)
    run = run_host(tmp_path, CONFIG + "host: {kind: script}\n", "--", "train.py")
    check(run, "mid", (4 * CALLS + 1) * REAL_ROWS)


@pytest.mark.rest
def test_a_function_that_marks_steps(tmp_path):
    function = """\
def build(seed):
    model = Text()
    def train(clock):
        for threads in (1, 3):
            in_threads(threads, lambda seed: call_and_mark(model, clock.step, seed))
    return model, train
"""
    (tmp_path / "mine.py").write_text(LOOP + function)
    host = 'host: {kind: callable, options: {callable: {function: "mine:build"}}}\n'
    check(run_host(tmp_path, CONFIG + host), "mid", 4 * CALLS * REAL_ROWS)


def gpt2(words=52):
    """A GPT-2 whose token embeddings are the ids."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=words, n_positions=32, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1
    )  # fmt: skip
    config.tie_word_embeddings = False
    model = transformers.GPT2LMHeadModel(config)
    wte = model.transformer.wte
    with torch.no_grad():
        wte.weight.copy_(torch.arange(float(words))[:, None].expand(-1, 8))
    wte.weight.requires_grad_(False)
    return model


@pytest.mark.rest
@pytest.mark.parametrize(("task", "hook"), [("encode", "wte"), ("generate", "transformer.wte")])
def test_the_transformers_host(tmp_path, task, hook):
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = [f"w{i}" for i in range(50)]
    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {word: i + 2 for i, word in enumerate(words)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(tmp_path / "model")
    gpt2().save_pretrained(tmp_path / "model")
    (tmp_path / "a.txt").write_text(" ".join(words[i * 7 % 50] for i in range(90)))
    host = f"""\
host:
  kind: transformers
  options:
    transformers: {{model: ./model, texts: [a.txt], task: {task}, block_tokens: 16, batch_size: 3,
      total_tokens: 150, prompt_tokens: 4, new_tokens: 5}}
"""
    run = run_host(tmp_path, CONFIG.replace("mid", hook) + host)
    held = run.archive.numpy(hook, ("values",))["values"]
    assert len(held) > 90
    if task == "encode":
        check(run, hook, len(held))
        return
    parts = list(token_rows(run.archive, hook))
    assert sum(len(part.token_id_N) for part in parts) == len(held)
    assert all((part.values_ND[:, 0] == part.token_id_N).all() for part in parts)


@pytest.mark.rest
def test_the_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    from asys_bench.callbacks.transformers import ObserveCallback

    generator = torch.Generator().manual_seed(0)
    blocks = []
    for _ in range(8):
        ids_BT, mask_BT = padded(generator)
        blocks += [
            {"input_ids": ids % 52, "attention_mask": mask, "labels": ids % 52}
            for ids, mask in zip(ids_BT.clamp(max=51), mask_BT, strict=True)
        ]
    callback = ObserveCallback(
        hooks="transformer.wte",
        run={"dir": str(tmp_path), "drain_timeout_s": 60},
        sinks=NO_TRAINER,
        bus=BUS,
    )
    transformers.Trainer(
        gpt2(),
        transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"),
            max_steps=4,
            per_device_train_batch_size=3,
            gradient_accumulation_steps=2,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=blocks,
        callbacks=[callback],
    ).train()
    observation = callback.observation
    rows = sum(int(block["attention_mask"].sum()) for block in blocks)
    check(observation.run, "transformer.wte", rows)
    assert observation.steps == 4


@pytest.mark.rest
def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")
    from asys_bench.callbacks.lightning import ObserveCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Text()

        def training_step(self, batch, batch_idx):
            ids_BT, mask_BT = batch
            return self.net(ids_BT, attention_mask=mask_BT).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.head.parameters(), lr=1e-3)

    generator = torch.Generator().manual_seed(0)
    batches = [padded(generator) for _ in range(CALLS)]
    callback = ObserveCallback(
        hooks="net.mid",
        run={"dir": str(tmp_path), "drain_timeout_s": 60},
        sinks=NO_TRAINER,
        bus=BUS,
    )
    lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        accumulate_grad_batches=2,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Module(), torch.utils.data.DataLoader(batches, batch_size=None))
    check(callback.observation.run, "net.mid", CALLS * REAL_ROWS)
    assert callback.observation.steps == CALLS // 2


@pytest.mark.rest
def test_stable_baselines3(tmp_path):
    gymnasium = pytest.importorskip("gymnasium")
    stable_baselines3 = pytest.importorskip("stable_baselines3")
    from asys_bench.callbacks.stable_baselines3 import ObserveCallback

    class Counting(gymnasium.Env):
        """Observes how many steps it has made."""

        observation_space = gymnasium.spaces.Box(0.0, 1e6, (3,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def __init__(self):
            self.made = 0

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.full(3, self.made, np.float32), {}

        def step(self, action):
            self.made += 1
            return np.full(3, self.made, np.float32), 0.0, False, self.made % 10 == 0, {}

    callback = ObserveCallback(
        hooks=[{"match": "features_extractor", "phase": "eval"}],
        run={"dir": str(tmp_path), "drain_timeout_s": 60},
        sinks=NO_TRAINER,
        bus=BUS,
    )
    model = stable_baselines3.PPO(
        "MlpPolicy", Counting(), n_steps=16, batch_size=16, n_epochs=1, device="cpu", seed=0
    )
    model.learn(32, callback=callback)
    rows = callback.observation.run.archive.numpy("features_extractor", ("values", "host_step"))
    assert len(rows["values"]) >= 32
    assert (rows["values"][:, 0] == rows["host_step"]).all()
