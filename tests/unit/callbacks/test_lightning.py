"""The Lightning callback: the trainer's own step, its validation left out, one training at a time."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

lightning = pytest.importorskip("lightning")

from asys_bench.callbacks.lightning import ObserveCallback  # noqa: E402
from asys_bench.contracts.labels import text_code  # noqa: E402

TRAIN_ROWS, EVAL_ROWS = 4, 3
pytestmark = [
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
]


class Net(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(2, 8)
        self.fails_at = -1
        self.losses = []

    def _loss(self, batch):
        return self.body(batch[0]).square().mean()

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fails_at:
            raise ZeroDivisionError("a bad batch")
        loss = self._loss(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val", self._loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches(rows, count):
    x = torch.randn(rows * count, 2, generator=torch.Generator().manual_seed(rows))
    return DataLoader(TensorDataset(x), batch_size=rows)


def fit(model, callbacks, ckpt_path=None, **options):
    trainer = lightning.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_steps": 6, "num_sanity_val_steps": 1, "val_check_interval": 4, **options},
    )
    trainer.fit(model, batches(TRAIN_ROWS, 8), batches(EVAL_ROWS, 2), ckpt_path=ckpt_path)
    return trainer


def test_a_resumed_fit_is_observed_from_its_own_step_on_and_without_its_validation(
    observations, tmp_path
):
    trainer = fit(Net(), [], max_steps=8)
    trainer.save_checkpoint(tmp_path / "at_8.ckpt")
    fit(Net(), [ObserveCallback(hooks="body")], tmp_path / "at_8.ckpt", max_steps=13)
    (one,) = observations
    assert one.first == 8
    assert one.seen == [(step, 0, TRAIN_ROWS) for step in range(8, 13)]
    assert one.steps == 13


def test_batches_of_one_optimizer_step_are_its_microbatches(observations):
    fit(Net(), [ObserveCallback(hooks="body")], accumulate_grad_batches=2, max_steps=4)
    assert [row[:2] for row in observations[0].seen] == [
        (step, micro) for step in range(4) for micro in range(2)
    ]


@pytest.mark.parametrize(
    ("during", "rows"), [("validation", {EVAL_ROWS}), ("all", {TRAIN_ROWS, EVAL_ROWS})]
)
def test_validation_and_sanity_check_are_captured_when_asked_for(observations, during, rows):
    fit(Net(), [ObserveCallback(hooks="body", during=during)])
    (one,) = observations
    assert {row[2] for row in one.seen} == rows
    of_validation = [row[0] for row in one.seen if row[2] == EVAL_ROWS]
    assert of_validation == [0, 4, 4]  # the sanity check has one batch
    assert one.counted[1] == len(one.seen)


def test_what_is_left_out_is_counted_and_the_losses_are_the_same(observations):
    torch.manual_seed(0)
    plain = Net()
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    fit(plain, [])
    watched = Net()
    watched.load_state_dict(state)
    fit(watched, [ObserveCallback(hooks="body")])
    assert watched.losses == plain.losses
    assert observations[0].counted == (8, 6, 2)  # calls, captured, skipped: one validation of two


@pytest.mark.parametrize("archive", [True, False])
def test_losses_are_read_where_some_sink_takes_labels_alone(observations, monkeypatch, archive):
    asked = []
    monkeypatch.setattr("asys_bench.callbacks.lightning.loss_rows_or_none", asked.append)
    fit(Net(), [ObserveCallback(hooks="body", archive=archive)])
    assert len(asked) == (6 if archive else 0)
    assert len(observations[0].seen) == 6


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(2, 8)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.body(batch["x"]), batch["y"])


def test_each_row_is_labelled_with_its_loss_and_the_columns_that_are_named(observations):
    data = [
        {"x": torch.randn(2), "y": n % 8, "sample": 10 * n, "domain": "odd" if n % 2 else "even"}
        for n in range(12)
    ]
    callback = ObserveCallback(hooks="body", labels={"columns": ["sample", "domain"]})
    trainer = lightning.Trainer(
        accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, max_steps=3,
    )  # fmt: skip
    trainer.fit(Classifier(), DataLoader(data, batch_size=4))
    found = {}
    for step, _, name, values in observations[0].labels:
        found.setdefault(name, []).append((step, values.flatten().tolist()))
    assert found["sample"] == [
        (step, [10.0 * n for n in range(4 * step, 4 * step + 4)]) for step in range(3)
    ]
    even, odd = text_code("even"), text_code("odd")
    assert found["domain"] == [(step, [even, odd, even, odd]) for step in range(3)]
    assert [(step, len(values)) for step, values in found["loss"]] == [(0, 4), (1, 4), (2, 4)]


def test_a_callback_that_is_used_again_after_a_failure_observes_the_new_model(observations):
    callback = ObserveCallback(hooks="body")
    first, second = Net(), Net()
    first.fails_at = 2
    with pytest.raises(ZeroDivisionError):
        fit(first, [callback])
    assert observations[0].closed
    fit(second, [callback])
    assert callback.observation is observations[1]
    assert callback.observation._model is second
    assert [row[0] for row in observations[0].seen] == [0, 1]
    assert [row[0] for row in observations[1].seen] == list(range(6))
    assert not first.body._forward_hooks
