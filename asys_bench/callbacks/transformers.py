"""Hugging Face `Trainer` (and TRL's, which are Trainers): `Trainer(..., callbacks=[ObserveCallback()])`.

Hook names are those of the model's modules, such as `model.layers.5`. Rows of padding are left out,
and token ids are archived beside the activations (on a CPU host; see `capture.tags.text_inputs`).
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch.compiler import is_dynamo_compiling
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from asys_bench.callbacks.loss_rows import loss_rows_or_none, rows_of_tokens
from asys_bench.callbacks.observed_training import During, ObservedTraining
from asys_bench.callbacks.rewards import CompletionRewards
from asys_bench.capture.hooks.own_hooks import LiveHook, StandIn, replace
from asys_bench.run.observation import Observation
from asys_bench.run.settings import ConfigLike

log = logging.getLogger(__name__)


class ObserveCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Observes the model during each `train`; arguments as `asys_bench.observe`'s, without the model.

    One step is one optimizer step, `state.global_step`: a resumed training goes on from its own. The
    batches whose gradients it accumulates are its microbatches 0, 1, ...

    Tokens (or samples) are labelled with their loss, where the model makes it with torch's cross entropy, and
    with `labels.columns` of what the model is called with.

    during: "training" is what happens within a step, in whatever mode the model is, but for what the model
        generates there (TRL's GRPO and RLOO), which is "generation"; "validation" is what happens between two
        steps (`evaluate`, `predict`, a callback that generates text).

    A training that raises does not tell its callbacks: then the observation ends when the callback's
    next one begins, by `close()`, or when the interpreter exits.
    """

    def __init__(
        self,
        config: ConfigLike = None,
        *,
        during: During | Literal["generation"] = "training",
        **options: Any,
    ) -> None:
        super().__init__()
        self._training = ObservedTraining(config, "optimizer step", during, options, generates=True)
        self._rewards = CompletionRewards()
        self._restore_generate: Callable[[], None] | None = None
        self._marks_steps = False
        self._label_hook: RemovableHandle | None = None

    @property
    def observation(self) -> Observation | None:
        """Of the `train` that goes on, or of the last one."""
        return self._training.observation

    def observe_rewards(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A reward function of TRL's GRPO or RLOO trainer, with its rewards as labels of the rows that the
        training then makes of its completions: `reward_funcs=[callback.observe_rewards(function)]`.

        The label is `reward_<name of the function>`, one per sequence; `completion` says of each token
        whether it is the completion's. Both are joined by the completion's tokens.

        Raises: TypeError: it is a reward model.
        """
        return self._rewards.observe(function)

    def close(self) -> None:
        """End the observation now. Idempotent."""
        self._unlabel()
        self._training.close()

    def on_train_begin(
        self,
        args: Any,
        state: Any,
        control: Any,
        model: Any = None,
        processing_class: Any = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        self._marks_steps = False
        self._training.start(
            state,
            model,
            state.global_step,
            tokenizer=processing_class,
            optimizers=[optimizer] if optimizer is not None else [],
        )
        evaluates_first = getattr(args, "eval_on_start", False)
        self._training.enter(state, "validation" if evaluates_first else "training")
        self._unlabel()  # of a training that has failed
        if isinstance(model, torch.nn.Module) and self._training.wants_labels:
            hook = _LabelHook(self._training, state, self._rewards)
            self._label_hook = model.register_forward_hook(hook, with_kwargs=True)
        self._restore_generate = _told_of_generation(self._training, state, model)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._marks_steps = True
        self._training.step_to(state, state.global_step)
        self._training.enter(state, "training")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training.step_to(state, state.global_step)
        self._step_is_over(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step_is_over(state)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        self._training.report(state, logs or {})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._training.follows(state):
            self._unlabel()
        self._training.end(state)

    def _unlabel(self) -> None:
        hook, self._label_hook = self._label_hook, None
        if hook is not None:
            hook.remove()
        restore, self._restore_generate = self._restore_generate, None
        if restore is not None:
            restore()

    def _step_is_over(self, state: Any) -> None:
        """Some of TRL's trainers never say that a step begins: there, all calls are the training's."""
        if self._marks_steps:
            self._training.enter(state, "validation")


def _told_of_generation(
    training: ObservedTraining, state: Any, model: Any
) -> Callable[[], None] | None:
    """Let `model.generate` say while it runs that it does; returns what takes that back.

    It is replaced in the model's class, so that copies and pickles of the model have nothing of ours, and
    those of other models do what they did. One that the model alone has is replaced there (`StandIn`).
    """
    if not isinstance(model, torch.nn.Module) or not callable(getattr(model, "generate", None)):
        return None
    if "generate" in vars(model) or not _is_method(type(model), "generate"):
        return replace(model, "generate", lambda own: _own_told(training, state, model, own))
    meant: list[torch.nn.Module] = [model]

    def make(generate: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(generate)
        def told(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not any(self is one for one in meant):
                return generate(self, *args, **kwargs)
            with training.generating(state):
                return generate(self, *args, **kwargs)

        return told

    restore = replace(type(model), "generate", make)

    def undo() -> None:
        meant.clear()  # somebody may have put another one over it, which goes on calling it
        restore()

    return undo


def _is_method(owner: type, name: str) -> bool:
    """A plain function of the class, which is called with the object."""
    return inspect.isfunction(inspect.getattr_static(owner, name, None))


def _own_told(
    training: ObservedTraining, state: Any, model: torch.nn.Module, own: Callable[..., Any]
) -> StandIn:
    @functools.wraps(own)
    def told(*args: Any, **kwargs: Any) -> Any:
        with training.generating(state):
            return own(*args, **kwargs)

    return StandIn(model, "generate", told)


class _LabelHook(LiveHook):
    """The forward hook of the model that labels what the call itself tells; behind the observation's own."""

    def __init__(self, training: ObservedTraining, state: Any, rewards: CompletionRewards) -> None:
        self._training, self._state, self._rewards = training, state, rewards

    def __call__(
        self, module: Any = None, args: Any = (), kwargs: Any = None, out: Any = None
    ) -> None:
        if is_dynamo_compiling():
            return
        try:
            self._training.label_part(self._state)
            if not torch.is_grad_enabled():
                return
            loss = out.get("loss") if isinstance(out, Mapping) else None
            rows = loss_rows_or_none(loss)
            if rows is not None:
                logits = out.get("logits")
                shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else ()
                self._training.label(self._state, loss=rows_of_tokens(rows, shape))
            if found := self._rewards.labels_of(kwargs):
                self._training.label(self._state, **found)
            self._training.label_columns_of(self._state, kwargs)
        except Exception as error:  # noqa: BLE001 - nothing of ours may reach the host
            log.debug("a call is not labelled: %s", error)
