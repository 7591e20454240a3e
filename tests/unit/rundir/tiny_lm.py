"""A causal language model of random weights with its tokenizer, text, and a run that observed it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml

from asys_bench.sae import SAEConfig, SAETrainer

WORDS = [f"w{i}" for i in range(50)]
WIDTH, LAYER = 32, "transformer.h.1"


def write_model(folder: Path, seed: int = 0) -> None:
    """What `from_pretrained` reads, and `a.txt` of 1,310 words."""
    import tokenizers
    import transformers

    vocabulary = {"[PAD]": 0, "[UNK]": 1} | {word: i + 2 for i, word in enumerate(WORDS)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]"
    )
    tokenizer.save_pretrained(folder / "model")
    config = transformers.GPT2Config(
        vocab_size=len(vocabulary), n_positions=32, n_embd=WIDTH, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder / "model")
    (folder / "a.txt").write_text(" ".join(WORDS[i % 50] for i in range(1310)))


def options(folder: Path, **more: object) -> dict[str, object]:
    """Of the host `transformers` on it."""
    return {
        "model": str(folder / "model"), "texts": [f"{folder}/*.txt"], "block_tokens": 16,
        "batch_size": 4,
    } | more  # fmt: skip


def write_sae(store: Path, hook: str = LAYER, width: int = WIDTH, step: int = 6) -> Path:
    """A checkpoint of an SAE of random rows."""
    trainer = SAETrainer(
        SAEConfig(d_sae=64, k=4, batch_rows=64, buffer_rows=256), hook_name=hook
    )  # fmt: skip
    generator = torch.Generator().manual_seed(step)
    for seq in range(step):
        trainer.ingest(torch.randn(64, width, generator=generator), (0, 0, seq))
        trainer.train()
    found = trainer.save(store)
    assert found is not None
    return found


def write_run(folder: Path, host: dict[str, object], hook: str = LAYER) -> Path:
    """A run that has ended, with an SAE of `hook`."""
    run_dir = folder / "run"
    run_dir.mkdir()
    config = {"run": {"seed": 0}, "host": host, "hooks": [{"match": [hook]}], "sinks": {}}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    document = {
        "schema": "asys.run/1", "run_id": "r", "hooks": [hook], "host_pid": 1 << 22,
        "started_unix_ns": 1,
        "streams": [{"name": hook, "module": hook, "kind": "activation", "rows": "last"}],
    }  # fmt: skip
    (run_dir / "run.json").write_text(json.dumps(document))
    write_sae(run_dir / "sae" / hook, hook)
    return run_dir
