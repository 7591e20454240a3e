"""A text through a model up to a hooked module, and an SAE's features on its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from asys_bench.config.document import host_options, run_config_data
from asys_bench.contracts.host import HostError
from asys_bench.eye.features import Document
from asys_bench.eye.typed.same_weights import Known, compare
from asys_bench.eye.watch import plain
from asys_bench.hosts.model_folder import as_arguments
from asys_bench.hosts.pretrained import AUTO_CLASSES, architectures, load, predicts
from asys_bench.hosts.text_corpus import vocabulary_document
from asys_bench.reports.run_report.inputs import texts
from asys_bench.rundir.evaluation import (
    EvaluationError,
    Target,
    TargetSAE,
    read_targets,
    run_targets,
)
from asys_bench.sae.evaluation import Place
from asys_bench.sae.evaluation.splice import rows_at

MOST_TOKENS = 256
SHOWN = 40


class TypedError(RuntimeError):
    """The text cannot be read by this model or SAE; says why."""


class CancelledTypingError(TypedError):
    """Nobody waits for the answer any more."""


class _ReachedError(Exception):
    """The hooked module has been called: what comes after it is not needed."""


class TextReader:
    """A model in memory, with the SAEs of a run."""

    def __init__(self, run_dir: Path, model: str, gguf_file: str | None) -> None:
        """Raises TypedError: the model cannot be loaded."""
        self._run_dir = run_dir
        config = run_config_data(run_dir)
        kind, told = host_options(config)
        told = told if kind == "transformers" else {}
        try:
            loaded, self._tokenizer = load(
                model,
                auto_class=_auto_class(told, model, gguf_file),
                gguf_file=gguf_file,
                dtype=str(told.get("dtype", "float32")),
            )
        except HostError as error:
            raise TypedError(as_arguments(error)) from error
        self._model: Any = loaded.eval().requires_grad_(False)
        longest = getattr(self._model.config, "max_position_embeddings", None)
        self._most = min(MOST_TOKENS, longest or MOST_TOKENS)
        self._pieces = texts([str(one) for one in vocabulary_document(self._tokenizer)["tokens"]])
        self._read: dict[str, TargetSAE] = {}
        self.known: Known = compare(run_dir, config, model, gguf_file)

    def features(self, label: str, text: str, cancelled: Callable[[], bool]) -> Document:
        """The features that fire on `text`, by their largest activation, with that on each token.

        Raises:
            TypedError: there is no such SAE, or it does not fit this model. CancelledTypingError.
        """
        target = self._target(label)
        ids = self._tokenizer(text, truncation=True, max_length=self._most + 1)["input_ids"]
        cut = len(ids) > self._most
        ids = ids[: self._most]
        if not ids:
            raise TypedError("the text has no tokens")
        rows_TD = self._rows(target.target, torch.tensor([ids]), cancelled)
        if rows_TD.shape != (len(ids), target.sae.d_in):
            raise TypedError(
                f"{target.target.module} gives {tuple(rows_TD.shape)} for {len(ids)} tokens, and the SAE "
                f"takes rows of {target.sae.d_in}: this is another model than the run's, or "
                "the run captured its rows in another form"
            )
        return {
            "tokens": [self._piece(token) for token in ids],
            "cut": cut,
            "checkpoint": Path(str(target.about["checkpoint"])).name,
            "features": _strongest(target, rows_TD),
        }

    def _piece(self, token: int) -> str:
        return self._pieces[token] if 0 <= token < len(self._pieces) else f"<{token}>"

    def _target(self, label: str) -> TargetSAE:
        """The newest checkpoint's; read when there is a newer one."""
        try:
            (target,) = run_targets(self._run_dir, label)
            known = self._read.get(label)
            if known is None or known.target.folder.resolve() != target.folder.resolve():
                (known,) = read_targets([target])
                self._read = {label: known}
        except (EvaluationError, OSError) as error:
            raise TypedError(str(error)) from error
        return known

    @torch.no_grad()
    def _rows(
        self, target: Target, ids_1T: torch.Tensor, cancelled: Callable[[], bool]
    ) -> torch.Tensor:
        """float32[N, D]: what the hooked module gives for the text."""
        module = self._module(target.module)
        at: Any = "input" if target.at == "input" else "output"
        place = Place(module, at, target.select, target.row_dim)

        def reached(*_: Any) -> None:
            raise _ReachedError

        with rows_at({"rows": place}) as found, _ended_if(cancelled):
            # After the hook that takes the rows, so that they are there.
            if at == "output":
                handle = module.register_forward_hook(reached)
            else:
                handle = module.register_forward_pre_hook(reached)
            try:
                self._model(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T))
            except _ReachedError:
                pass
            except ValueError as error:
                raise TypedError(f"{target.module}: {error}") from error
            finally:
                handle.remove()
        if not found["rows"]:
            raise TypedError(f"{target.module} is not called for a text")
        rows = found["rows"][0]
        return rows.reshape(-1, rows.shape[-1])

    def _module(self, name: str) -> torch.nn.Module:
        """By its name in the run, with or without the model's own prefix in front."""
        modules = dict(self._model.named_modules())
        prefix = f"{getattr(self._model, 'base_model_prefix', '')}."
        for spelled in (name, prefix + name, name.removeprefix(prefix)):
            if spelled in modules:
                found: torch.nn.Module = modules[spelled]
                return found
        raise TypedError(f"this model has no module {name!r}: it is another one than the run's")


@contextmanager
def _ended_if(cancelled: Callable[[], bool]) -> Iterator[None]:
    """Asked before each module of whatever is computed inside."""

    def look(*_: Any) -> None:
        if cancelled():
            raise CancelledTypingError("cancelled")

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _strongest(target: TargetSAE, rows_TD: torch.Tensor) -> list[Document]:
    acts_TF = target.sae.encode(torch.nan_to_num(rows_TD, 0.0, 0.0, 0.0)).float()
    most_F = acts_TF.max(0).values
    values, numbers = most_F.topk(min(SHOWN, len(most_F)))
    return [
        {
            "feature": int(number),
            "activation": plain(float(value)),
            "levels": [plain(float(level)) for level in acts_TF[:, number]],
        }
        for value, number in zip(values, numbers, strict=True)
        if float(value) > 0
    ]


def _auto_class(told: Mapping[str, Any], model: str, gguf_file: str | None) -> str:
    """As the run's host loaded it; of another host, by what the weights are of."""
    if told.get("auto_class"):
        return str(told["auto_class"])
    if told:
        return AUTO_CLASSES.get(str(told.get("task")), "AutoModel")
    classes = architectures(model, gguf_file, None)
    return "AutoModelForCausalLM" if predicts(classes) else "AutoModel"
