"""`python train.py KIND FOLDER DURING STEPS`: one of TRL's trainers over a tiny model; DURING `-`:
nobody observes it. Prints losses, a digest of the weights and the run's folder."""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from datasets import Dataset

from asys_bench.callbacks.transformers import ObserveCallback

HOOK = "transformer.h.1"
WORDS = [f"w{i}" for i in range(40)]


def tokenizer() -> Any:
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[EOS]": 2} | {w: i + 3 for i, w in enumerate(WORDS)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", eos_token="[EOS]"
    )


def model() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=43, n_positions=64, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=2, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def remainder(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """A reward that anybody can compute again from the tokens."""
    return [float(sum(ids) % 5) for ids in completion_ids]


def length(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [len(ids) / 10 for ids in completion_ids]


def words(first: int, count: int) -> str:
    return " ".join(WORDS[(first + 3 * i) % 40] for i in range(count))


def trainer_of(kind: str, folder: Path, steps: int, callback: ObserveCallback | None) -> Any:
    import trl

    common: dict[str, Any] = {
        "output_dir": str(folder / "out"), "max_steps": steps, "per_device_train_batch_size": 4,
        "use_cpu": True, "report_to": [], "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True,
        "seed": 0, "learning_rate": 1e-3, "dataloader_pin_memory": False, "bf16": False,
        "gradient_checkpointing": False,
    }  # fmt: skip
    parts = {"model": model(), "processing_class": tokenizer()}
    parts["callbacks"] = [callback] if callback is not None else []
    prompts = [words(i, 2 + i % 4) for i in range(32)]
    answers = [words(2 * i, 5) for i in range(32)]
    if kind == "grpo":
        functions = [remainder, length]
        if callback is not None:
            functions = [callback.observe_rewards(function) for function in functions]
        arguments = trl.GRPOConfig(**common, num_generations=4, max_completion_length=6)
        data = Dataset.from_dict({"prompt": prompts})
        return trl.GRPOTrainer(args=arguments, train_dataset=data, reward_funcs=functions, **parts)
    if kind == "sft":
        texts = [f"{one} {two}" for one, two in zip(prompts, answers, strict=True)]
        arguments = trl.SFTConfig(**common, max_length=16)
        return trl.SFTTrainer(
            args=arguments, train_dataset=Dataset.from_dict({"text": texts}), **parts
        )
    data = Dataset.from_dict({"prompt": prompts, "chosen": answers, "rejected": answers[::-1]})
    arguments = trl.DPOConfig(**common, max_length=32)
    return trl.DPOTrainer(args=arguments, train_dataset=data, ref_model=model(), **parts)


def main(kind: str, folder: Path, during: str, steps: int) -> None:
    callback = None
    if during != "-":
        runs = {"dir": str(folder / "runs")}
        callback = ObserveCallback(hooks=[HOOK], sae=False, during=during, quiet=True, run=runs)
    trainer = trainer_of(kind, folder, steps, callback)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    digest = hashlib.sha256()
    for name, tensor in sorted(trainer.model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    run = None
    if callback is not None:
        assert callback.observation is not None
        run = str(callback.observation.run_dir)
        assert "generate" not in vars(trainer.model), "the model is as it was"
    print(json.dumps({"losses": losses, "weights": digest.hexdigest(), "run": run}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
