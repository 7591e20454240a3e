"""The Hugging Face callback: `state.global_step`, evaluations left out, one training at a time."""

from __future__ import annotations

import copy
import functools
import io
import pickle

import pytest
import torch

transformers = pytest.importorskip("transformers")

from asys_bench.callbacks.transformers import ObserveCallback  # noqa: E402
from asys_bench.config import ConfigError  # noqa: E402

TRAIN_ROWS, EVAL_ROWS = 2, 3


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(2, 8)
        self.fails_at = -1
        self.calls = 0

    def forward(self, x, labels=None):
        self.calls += 1
        if self.calls == self.fails_at:
            raise ZeroDivisionError("a bad batch")
        return {"loss": self.body(x).square().mean(), "logits": x}


def rows(count):
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(0))
    return [{"x": row, "labels": 0} for row in x]


class Samples(transformers.TrainerCallback):
    """Calls the model between steps."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        model(torch.ones(5, 2))


def train(tmp_path, model, callbacks, resume=None, **options):
    settings = {
        "output_dir": str(tmp_path / "out"),
        "per_device_train_batch_size": TRAIN_ROWS,
        "per_device_eval_batch_size": EVAL_ROWS,
        "max_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 1,
        "dataloader_pin_memory": False,
    }
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(**{**settings, **options}),
        train_dataset=rows(64),
        eval_dataset=rows(6),
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_a_resumed_training_is_observed_from_its_own_step_on_and_without_its_evaluations(
    observations, tmp_path
):
    train(tmp_path, Net(), [], save_strategy="steps", save_steps=4, max_steps=4)
    checkpoint = str(tmp_path / "out" / "checkpoint-4")
    trainer = train(tmp_path, Net(), [ObserveCallback(hooks="body")], checkpoint, max_steps=9)
    (one,) = observations
    assert one.first == 4
    assert one.seen == [(step, 0, TRAIN_ROWS) for step in range(4, 9)]
    assert one.steps == trainer.state.global_step == 9


def test_batches_whose_gradients_are_accumulated_are_microbatches_of_one_step(
    observations, tmp_path
):
    options = {"gradient_accumulation_steps": 3, "max_steps": 4}
    train(tmp_path, Net(), [ObserveCallback(hooks="body")], **options)
    assert observations[0].seen == [
        (step, micro, TRAIN_ROWS) for step in range(4) for micro in range(3)
    ]


@pytest.mark.parametrize(
    ("during", "sizes"), [("validation", {EVAL_ROWS, 5}), ("all", {TRAIN_ROWS, EVAL_ROWS, 5})]
)
def test_evaluations_are_captured_when_asked_for(observations, tmp_path, during, sizes):
    callbacks = [ObserveCallback(hooks="body", during=during), Samples()]
    train(tmp_path, Net(), callbacks, eval_on_start=True)
    (one,) = observations
    assert {row[2] for row in one.seen} == sizes
    evaluated = [row[0] for row in one.seen if row[2] == EVAL_ROWS]
    assert evaluated == [0, 0, 2, 2, 4, 4, 6, 6]


def test_what_is_left_out_is_counted_and_the_losses_are_the_same(observations, tmp_path):
    losses = []
    for callbacks in ([], [ObserveCallback(hooks="body"), Samples()]):
        torch.manual_seed(0)
        trainer = train(tmp_path, Net(), callbacks, eval_on_start=True)
        losses.append(
            [log[key] for log in trainer.state.log_history for key in log if "loss" in key]
        )
    assert losses[0] == losses[1]
    assert len(losses[0]) > 8
    assert observations[0].counted == (6 + 8 + 6, 6, 8 + 6)


class Speaker(torch.nn.Module):
    """A language model as Hugging Face makes them: the loss of a token is at the one before it."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(11, 8)
        self.body = torch.nn.Linear(8, 11)

    def forward(self, input_ids, attention_mask=None, labels=None, domain=None):
        logits = self.body(self.embed(input_ids))
        shifted = torch.nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), shifted.flatten(), reduction="sum"
        )
        return transformers.utils.ModelOutput(loss=total / (shifted != -100).sum(), logits=logits)


def test_each_token_is_labelled_with_its_loss_and_each_sample_with_the_columns_that_are_named(
    observations, tmp_path
):
    torch.manual_seed(0)
    samples = [
        {"input_ids": ids, "labels": ids.clone(), "domain": float(n)}
        for n, ids in enumerate(torch.randint(0, 11, (8, 5)))
    ]
    samples[0]["labels"][3] = -100
    model = Speaker()
    reported = []

    class Losses(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            reported.extend([logs["loss"]] if "loss" in logs else [])

    settings = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, use_cpu=True, report_to=[],
        disable_tqdm=True, logging_steps=1, save_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    callback = ObserveCallback(hooks="body", labels={"columns": ["domain"]})
    transformers.Trainer(
        model, settings, train_dataset=samples, callbacks=[callback, Losses()]
    ).train()
    losses = [values for _, _, name, values in observations[0].labels if name == "loss"]
    domains = [values for _, _, name, values in observations[0].labels if name == "domain"]
    assert [tuple(values.shape) for values in losses] == [(4, 5), (4, 5)]
    assert sorted(torch.cat(domains).tolist()) == [*map(float, range(8))]
    for found, mean in zip(losses, reported, strict=True):
        assert torch.isnan(found[:, -1]).all(), "nothing follows the last token"
        assert float(found.nanmean()) == pytest.approx(mean, abs=1e-4)
    assert sum(int(torch.isnan(found).sum()) for found in losses) == 9
    assert not model._forward_hooks, "what labelled is gone with the training"


@pytest.mark.parametrize("archive", [True, False])
def test_losses_are_read_where_some_sink_takes_labels_alone(
    observations, tmp_path, monkeypatch, archive
):
    asked = []
    monkeypatch.setattr("asys_bench.callbacks.transformers.loss_rows_or_none", asked.append)
    train(tmp_path, Net(), [ObserveCallback(hooks="body", archive=archive)])
    assert len(asked) == (6 if archive else 0)
    assert len(observations[0].seen) == 6


def test_a_trainer_that_never_says_that_a_step_begins_is_captured_whole(observations):
    """As some of TRL's."""
    model, state = Net(), transformers.TrainerState()
    callback = ObserveCallback(hooks="body")
    control = transformers.TrainerControl()
    callback.on_train_begin(None, state, control, model=model)
    for _ in range(3):
        model(torch.ones(2, 2))
        state.global_step += 1
        callback.on_step_end(None, state, control)
    callback.on_train_end(None, state, control)
    assert [row[0] for row in observations[0].seen] == [0, 1, 2]


def test_a_callback_that_is_used_again_after_a_failure_observes_the_new_model(
    observations, tmp_path
):
    callback = ObserveCallback(hooks="body")
    first, second = Net(), Net()
    first.fails_at = 3
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, first, [callback])
    train(tmp_path, second, [callback])
    before, after = observations
    assert before.closed
    assert not first.body._forward_hooks
    assert callback.observation is after
    assert after._model is second
    assert [row[0] for row in before.seen] == [0, 1]
    assert [row[0] for row in after.seen] == list(range(6))


def test_two_trainings_at_a_time_do_not_mark_each_others_steps(observations):
    callback = ObserveCallback(hooks="body")
    control = transformers.TrainerControl()
    states = [transformers.TrainerState(), transformers.TrainerState()]
    for state in states:
        callback.on_train_begin(None, state, control, model=Net())
    states[0].global_step = 70
    callback.on_step_end(None, states[0], control)
    callback.on_train_end(None, states[0], control)
    assert not observations[1].closed
    assert observations[1].steps == 0
    callback.on_train_end(None, states[1], control)
    assert observations[1].closed


def test_what_a_callback_is_told_wrongly_is_said_with_the_valid_words():
    with pytest.raises(
        ValueError, match=r"during: .*'validtion'; valid: training, validation, all"
    ):
        ObserveCallback(during="validtion")
    with pytest.raises(TypeError, match="start_step: a callback takes the trainer's own"):
        ObserveCallback(start_step=3)


def test_the_callbacks_tokenizer_goes_before_the_trainers(observations):
    callback = ObserveCallback(hooks="body", tokenizer="mine", step_unit="update")
    control = transformers.TrainerControl()
    state = transformers.TrainerState()
    callback.on_train_begin(None, state, control, model=Net(), processing_class="theirs")
    assert observations[0].options["tokenizer"] == "mine"
    assert observations[0].options["step_unit"] == "update"


class Writer(Net):
    """Generates in its own training steps, as TRL's GRPO trainer lets it."""

    def generate(self):
        return self.body(torch.ones(7, 2))


class Generating(transformers.Trainer):
    def training_step(self, model, *args, **kwargs):
        with torch.no_grad():
            model.generate()
        return super().training_step(model, *args, **kwargs)


@pytest.mark.parametrize(
    ("during", "sizes"),
    [("training", {TRAIN_ROWS}), ("generation", {7}), ("all", {TRAIN_ROWS, 7, EVAL_ROWS})],
)
def test_what_is_generated_within_a_step_is_told_from_what_is_trained(
    observations, tmp_path, monkeypatch, during, sizes
):
    monkeypatch.setattr(transformers, "Trainer", Generating)
    model = Writer()
    train(tmp_path, model, [ObserveCallback(hooks="body", during=during)])
    (one,) = observations
    assert {row[2] for row in one.seen} == sizes
    assert {row[0] for row in one.seen} >= set(range(6))
    assert "generate" not in vars(model)
    with pytest.raises(ConfigError, match="generation"):
        ObserveCallback(during="generations")


class Calling(Writer):
    """Generates as transformers' models do: by calls of the model itself."""

    def generate(self):
        return self(torch.ones(7, 2))


def test_where_everything_is_captured_labels_say_what_was_generated_and_what_validated(
    observations, tmp_path, monkeypatch
):
    monkeypatch.setattr(transformers, "Trainer", Generating)
    train(tmp_path, Calling(), [ObserveCallback(hooks="body", during="all")])
    (one,) = observations
    parts = {(step, micro, name): float(value) for step, micro, name, value in one.labels}
    told = {
        (rows, *(parts[step, micro, name] for name in ("generation", "validation")))
        for step, micro, rows in one.seen
    }
    assert told == {(7, 1.0, 0.0), (TRAIN_ROWS, 0.0, 0.0), (EVAL_ROWS, 0.0, 1.0)}


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301
    "torch.save": saved,
}


class Copying(transformers.TrainerCallback):
    """Copies the model in the first step of its training."""

    def __init__(self, make):
        self.make, self.copies = make, []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if not self.copies:
            self.copies.append(self.make(model))


def seven(model):
    return model.body(torch.ones(7, 2))


class Wrapper(Net):
    """Hands on what it has not itself, as PEFT's models do."""

    def __getattr__(self, name):
        if name == "generate":
            return functools.partial(seven, self)
        return super().__getattr__(name)


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("kind", [Writer, Wrapper])
def test_a_copy_made_during_a_training_generates_with_its_own_weights(
    observations, tmp_path, monkeypatch, kind, make
):
    monkeypatch.setattr(transformers, "Trainer", Generating)
    before = dict(vars(kind))
    model, copying = kind(), Copying(make)
    train(tmp_path, model, [ObserveCallback(hooks="body", during="generation"), copying])
    (one,) = observations
    assert {row[2] for row in one.seen} == {7}
    (made,) = copying.copies
    assert "generate" not in vars(made)
    with torch.no_grad():
        made.body.weight.zero_()
        made.body.bias.fill_(3.0)
    assert torch.equal(made.generate(), torch.full((7, 8), 3.0))
    assert not torch.equal(model.generate(), made.generate())
    assert dict(vars(kind)) == before
    assert "generate" not in vars(model)


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
def test_a_copy_has_the_generate_that_the_model_alone_has(
    observations, tmp_path, monkeypatch, make
):
    monkeypatch.setattr(transformers, "Trainer", Generating)
    model, copying = Net(), Copying(make)
    model.generate = own = rows_of_seven
    monkeypatch.setitem(globals(), "generating_model", model)
    train(tmp_path, model, [ObserveCallback(hooks="body", during="generation"), copying])
    (one,) = observations
    assert {row[2] for row in one.seen} == {7}
    assert copying.copies[0].generate is own
    assert model.generate is own


generating_model = None


def rows_of_seven():
    return generating_model.body(torch.ones(7, 2))


def test_a_copys_generation_during_a_training_is_not_taken_for_the_models(
    observations, tmp_path, monkeypatch
):
    class Trainer(transformers.Trainer):
        def training_step(self, model, *args, **kwargs):
            with torch.no_grad():
                other.generate(model.body)
            return super().training_step(model, *args, **kwargs)

    class Other(Writer):
        def generate(self, body):
            return body(torch.ones(5, 2))

    monkeypatch.setattr(transformers, "Trainer", Trainer)
    model, other = Other(), Other()
    train(tmp_path, model, [ObserveCallback(hooks="body", during="training")])
    (one,) = observations
    assert {row[2] for row in one.seen} == {TRAIN_ROWS, 5}
    assert not hasattr(Other.generate, "__wrapped__")
