"""Hugging Face Trainer: a tiny GPT-2, from scratch, on a line of text."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

TEXT = "a telescope for the inside of a running model, and nothing else in this line. "


class PrintLosses(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            print("loss", state.global_step, logs["loss"])


ids = torch.tensor([ord(c) for c in TEXT * 40])
blocks = [{"input_ids": b, "labels": b} for b in ids[: len(ids) // 32 * 32].view(-1, 32)]
torch.manual_seed(0)
config = GPT2Config(vocab_size=128, n_positions=32, n_embd=48, n_layer=4, n_head=4)
model = GPT2LMHeadModel(config)
arguments = TrainingArguments(
    output_dir="trainer-output",
    max_steps=40,
    per_device_train_batch_size=8,
    logging_steps=1,
    save_strategy="no",
    report_to=[],
    disable_tqdm=True,
    use_cpu=True,
    seed=0,
)
callbacks = [PrintLosses()]
Trainer(model, arguments, train_dataset=blocks, callbacks=callbacks).train()
